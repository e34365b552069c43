"""Costs of pruned training steps: the law fitted, masks spread evenly, bytes counted, time by a clock of our own."""

from __future__ import annotations

import copy
import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from jointopt.errors import InputError
from jointopt.federated.networks import build
from jointopt.pruning.blocks import LayerGroups
from jointopt.pruning.channels import ChannelGroups
from jointopt.pruning.groups import Groups, WeightGroups
from jointopt.pruning.layout import Layout
from jointopt.pruning.pruner import Pruner
from jointopt.pruning.speed import _Step, fit_floor, measure_speedup, spread_masks, step_bytes

pytest.importorskip("torch_pruning")

NETWORK = build("cnn", [1, 8, 8], 4, 0)
EXAMPLE = torch.zeros(1, 1, 8, 8)
INPUTS, LABELS = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 4
CHANNELS = ChannelGroups(NETWORK, EXAMPLE)
WEIGHTS = WeightGroups(NETWORK, EXAMPLE)


# The law --------------------------------------------------------------------------------------


@given(floor=st.floats(0.0, 1.0), ratios=st.lists(st.floats(0.0, 1.0), min_size=1, max_size=6))
def test_floor_is_recovered(floor: float, ratios: list[float]) -> None:
    ratios = [*ratios, 0.5]
    factors = [floor + (1 - floor) * (1 - ratio) for ratio in ratios]
    assert fit_floor(ratios, factors) == pytest.approx(floor, abs=1e-9)


def test_floor_is_that_of_least_squares() -> None:
    ratios, factors = np.array([0.25, 0.5, 0.9]), np.array([0.9, 0.5, 0.35])
    grid = np.linspace(0, 1, 100_001)
    errors = ((grid[:, None] + (1 - grid[:, None]) * (1 - ratios) - factors) ** 2).sum(axis=1)
    assert fit_floor(ratios, factors) == pytest.approx(grid[errors.argmin()], abs=1e-5)


def test_floor_stays_in_its_range() -> None:
    assert fit_floor([0.5, 0.9], [1.1, 1.05]) == 1.0
    assert fit_floor([0.5, 0.9], [0.3, 0.05]) == 0.0


@pytest.mark.parametrize(
    ("ratios", "factors"),
    [
        ([0.0], [1.0]),
        ([], []),
        ([0.5, 0.6], [1.0]),
        ([1.5], [1.0]),
        ([float("nan")], [1.0]),
        ([0.5], [float("inf")]),
        ([0.5], [-0.1]),
        ([[0.5]], [[0.5]]),
    ],
)
def test_what_cannot_be_fitted(ratios: list[float], factors: list[float]) -> None:
    with pytest.raises(InputError):
        fit_floor(ratios, factors)


# Masks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("groups", [CHANNELS, WEIGHTS], ids=["channel", "weight"])
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**31), ratios=st.lists(st.floats(0.0, 0.97), min_size=1, max_size=4))
def test_masks_reach_the_ratio_nest_and_are_even(groups: Groups, seed: int, ratios: list[float]) -> None:
    ratios = sorted(ratios)
    masks = spread_masks(groups, ratios, seed)
    sizes = torch.bincount(groups.layer)
    for ratio, mask in zip(ratios, masks, strict=True):
        assert mask.ratio >= ratio - 1e-9
        counts = groups.layer_counts(mask.units)
        assert bool((counts >= groups.at_least).all())
        removed = (sizes - counts).double() / sizes
        # One share for all layers: no layer is more than one unit behind another.
        assert bool((removed + 1.0 / sizes >= removed.max() - 1e-9).all()) or bool((counts == groups.at_least).any())
    for smaller, larger in itertools.pairwise(masks):
        assert not bool((larger.units & ~smaller.units).any())


def test_masks_by_brute_force_over_shares() -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    groups = ChannelGroups(module, torch.zeros(1, 3))
    for ratio in np.linspace(0.01, 0.99, 40):
        found = spread_masks(groups, [float(ratio)], 3)[0]
        removed = [0, 0]
        for share in sorted({count / size for size in (4, 6) for count in range(size + 1)}):
            removed = [min(3, math.floor(4 * share + 1e-9)), min(5, math.floor(6 * share + 1e-9))]
            a, b = 4 - removed[0], 6 - removed[1]
            if 3 * a + a * b + 2 * b <= (1 - ratio) * groups.weights:
                break
        assert groups.layer_counts(found.units).tolist() == [4 - removed[0], 6 - removed[1]]


def test_a_ratio_out_of_reach_gives_the_most() -> None:
    (mask,) = spread_masks(CHANNELS, [1.0], 0)
    assert CHANNELS.layer_counts(mask.units).tolist() == [1, 1, 1]


def test_masks_repeat_by_seed() -> None:
    one, two, three = (spread_masks(CHANNELS, [0.5], seed)[0].units for seed in (1, 1, 2))
    assert torch.equal(one, two)
    assert not torch.equal(one, three)


# Bytes ----------------------------------------------------------------------------------------


def test_bytes_golden() -> None:
    module = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2))
    inputs, labels = torch.zeros(7, 3), torch.zeros(7, dtype=torch.long)
    parameters = 3 * 5 + 5 + 5 * 2 + 2
    # Kept for the backward: inputs [7, 3], tanh [7, 5], log-probabilities [7, 2] in float32, labels in int64, and the
    # weight that the mean is divided by, one float32.
    saved = 4 * (7 * 3 + 7 * 5 + 7 * 2 + 1) + 8 * 7
    assert step_bytes(module, inputs, labels, cross_entropy) == 2 * 4 * parameters + saved


def test_bytes_count_buffers_and_only_gradients_that_there_are() -> None:
    module = nn.Sequential(nn.Linear(3, 5, bias=False), nn.BatchNorm1d(5))
    inputs, labels = torch.zeros(7, 3), torch.zeros(7, dtype=torch.long)
    full = step_bytes(module, inputs, labels, cross_entropy)
    module[0].weight.requires_grad_(False)
    # Without its gradient the layer's inputs need not be kept either.
    assert full - step_bytes(module, inputs, labels, cross_entropy) == 4 * 15 + 4 * 7 * 3
    bare = nn.Sequential(nn.Linear(3, 5, bias=False), nn.BatchNorm1d(5, track_running_stats=False))
    assert full - step_bytes(bare, inputs, labels, cross_entropy) == 4 * (5 + 5) + 8


# Curves ---------------------------------------------------------------------------------------


class Ticking(nn.Module):
    """A network that takes as many seconds as it has weights, by a clock that stands still otherwise."""

    now = 0.0

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.slow = True

    def forward(self, inputs: Tensor) -> Tensor:
        if self.training:
            Ticking.now += sum(p.numel() for p in self.parameters())
        return self.inner(inputs)


def clock() -> float:
    return Ticking.now


@pytest.mark.parametrize("kind", [WeightGroups, ChannelGroups])
def test_curve_by_a_clock_of_our_own(kind: type[Groups]) -> None:
    module = Ticking(copy.deepcopy(NETWORK)).eval()
    before = Layout.flatten(module)
    groups = kind(module, EXAMPLE)
    ratios = (0.0, 0.5, 0.9)
    curve = measure_speedup(module, INPUTS, LABELS, cross_entropy, groups, ratios, 2, 5, clock)
    masks = spread_masks(groups, ratios, 5)
    shares = [(mask.kept + mask.unpruned) / groups.layout.size for mask in masks]
    assert curve.granularity == groups.granularity
    assert curve.ratios == tuple(mask.ratio for mask in masks)
    assert curve.payload == pytest.approx(shares)
    assert curve.macs == pytest.approx([mask.macs / mask.dense_macs for mask in masks])
    assert curve.seconds == len(before)
    if groups.structured:
        assert curve.factors == pytest.approx(shares)
        assert curve.memory[2] < curve.memory[1] < 1.0
        assert curve.floor == pytest.approx(fit_floor(curve.ratios, shares))
        assert 0.0 < curve.memory_floor < 1.0
    else:  # a mask saves no time and no memory
        assert curve.factors == (1.0, 1.0, 1.0)
        assert curve.memory == (1.0, 1.0, 1.0)
        assert curve.floor == curve.memory_floor == 1.0
    assert curve.dense_bytes == step_bytes(copy.deepcopy(module).train(), INPUTS, LABELS, cross_entropy)
    assert torch.equal(Layout.flatten(module), before)
    assert not module.training


def test_curve_of_a_pruner_and_of_blocks() -> None:
    curve = measure_speedup(NETWORK, INPUTS, LABELS, cross_entropy, Pruner("m", granularity="channel"), [0.5], 1)
    assert curve.granularity == "channel"
    assert 0.5 <= curve.ratios[0] < 0.55
    network = build("resnet18", [3, 8, 8], 4, 0, width=4)
    inputs = torch.rand(2, 3, 8, 8)
    blocks = LayerGroups(network, inputs)
    curve = measure_speedup(network, inputs, LABELS[:2], cross_entropy, blocks, [0.0, 0.9], 1)
    # No choice of blocks reaches 0.9: all of them go.
    assert curve.ratios == (0.0, 1 - blocks.kept_weights(torch.zeros(5, dtype=torch.bool)) / blocks.weights)
    assert curve.memory[1] < 0.8


def test_masked_weights_stay_zero_in_a_step() -> None:
    (mask,) = spread_masks(WEIGHTS, [0.6], 0)
    step = _Step(mask, NETWORK, 0.1)
    step.run(INPUTS, LABELS, cross_entropy, clock)
    flat = Layout.flatten(step.module)
    assert not bool(flat[~mask.keep].any())
    assert not torch.equal(flat[mask.keep], Layout.flatten(NETWORK)[mask.keep])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ratios": [1.2]}, "ratios must lie in"),
        ({"ratios": [float("nan")]}, "ratios must lie in"),
        ({"ratios": []}, "must not be empty"),
        ({"repeats": 0}, "repeats"),
        ({"repeats": 1.5}, "repeats"),
        ({"seed": -1}, "seed"),
        ({"module": nn.Linear(2, 2)}, "another module"),
    ],
)
def test_bad_input(change: dict[str, object], message: str) -> None:
    given_ = {"module": NETWORK, "ratios": [0.5], "repeats": 1, "seed": 0} | change
    module = given_.pop("module")
    with pytest.raises(InputError, match=message):
        measure_speedup(module, INPUTS, LABELS, cross_entropy, CHANNELS, **given_)

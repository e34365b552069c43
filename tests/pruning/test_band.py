"""The mean-std band, its patience, drawing the narrower network anew, and the structured pruners by name."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import jointopt.pruning.structured  # noqa: F401 - registers the pruners
from jointopt.errors import InputError
from jointopt.federated.networks import build
from jointopt.pruning.band import FilterNorm, MeanStdBand, Patience, Rebuild, Until
from jointopt.pruning.blocks import representational_change
from jointopt.pruning.channels import ChannelGroups
from jointopt.pruning.evidence import Evidence
from jointopt.pruning.groups import WeightGroups
from jointopt.pruning.hooks import HookContext, run_cut
from jointopt.pruning.layout import Layout
from jointopt.pruning.mask import Mask
from jointopt.pruning.pruner import pruner
from jointopt.pruning.structured import LayerChange, RelativeNorm

pytest.importorskip("torch_pruning")

EXAMPLE = torch.zeros(1, 1, 8, 8)
NETWORK = build("cnn", [1, 8, 8], 4, 0)
GROUPS = ChannelGroups(NETWORK, EXAMPLE)
WEIGHTS = Layout.flatten(NETWORK)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# The band ------------------------------------------------------------------------------------


def test_filter_norm_golden() -> None:
    part = GROUPS.layout.split(WEIGHTS)
    want = [part[name].flatten(1).abs().sum(dim=1) for name in ("0.weight", "3.weight", "7.weight")]
    assert torch.allclose(FilterNorm()(GROUPS, WEIGHTS, None, None).float(), torch.cat(want))
    want = [part[name].flatten(1).norm(dim=1) for name in ("0.weight", "3.weight", "7.weight")]
    assert torch.allclose(FilterNorm(2.0)(GROUPS, WEIGHTS, None, None).float(), torch.cat(want))


def test_band_golden() -> None:
    # Mean 4, population deviation sqrt(7.2) = 2.68 in the layer of 10; a sample deviation would be 2.83.
    first = [4.0] * 8 + [10.0, -2.0]
    scores = torch.tensor([*first, *[0.0] * 6, *range(32), *[5.0] * 64])
    keep = MeanStdBand(2.0)(scores, GROUPS, 0.0)
    by_layer = [keep[GROUPS.layer == layer].tolist() for layer in range(3)]
    want = []
    for values in (scores[:16], scores[16:48], scores[48:]):
        array = values.numpy().astype(np.float64)
        want.append((abs(array - array.mean()) <= 2.0 * array.std()).tolist())
    assert by_layer == want
    assert by_layer[0].count(False) == 1  # only 10: it is 2.3 deviations away
    assert by_layer[1] == [True] * 32  # a uniform layer's ends are 1.7 deviations away
    assert by_layer[2] == [True] * 64  # equal norms


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32), k=st.floats(0.05, 3.0), gone=st.floats(0.0, 0.9))
def test_band_is_over_what_is_left_and_never_empties_a_layer(seed: int, k: float, gone: float) -> None:
    draw = generator(seed)
    scores = torch.rand(len(GROUPS), generator=draw, dtype=torch.float64)
    removed = torch.rand(len(GROUPS), generator=draw) < gone
    keep = MeanStdBand(k)(torch.where(removed, -torch.inf, scores), GROUPS, 0.5)
    assert not bool((keep & removed).any())
    for layer in range(3):
        members = (GROUPS.layer == layer) & ~removed
        if not bool(members.any()):
            continue
        values = scores[members].numpy()
        inside = abs(values - values.mean()) <= k * values.std() * (1 + 1e-9)
        found = keep[members].numpy()
        if inside.any():
            assert (found == inside).all()
        else:
            assert found.sum() == 1
            assert found[abs(values - values.mean()).argmin()]


def test_band_respects_what_the_groups_must_keep() -> None:
    groups = ChannelGroups(NETWORK, EXAMPLE, min_channels=5)
    scores = torch.arange(len(groups), dtype=torch.float64) ** 3
    keep = MeanStdBand(1e-6)(scores, groups, 0.0)
    assert groups.layer_counts(keep).tolist() == [5, 5, 5]
    assert MeanStdBand(1e-6, min_keep=7)(scores, groups, 0.0).sum() == 21


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MeanStdBand(0.0), "k must be finite and above 0"),
        (lambda: MeanStdBand(float("nan")), "k must be finite and above 0"),
        (lambda: MeanStdBand(2.0, 0), "min_keep"),
        (lambda: FilterNorm(0.0), "power"),
        (lambda: FilterNorm()(WeightGroups(NETWORK), WEIGHTS, None, None), "needs channels"),
        (lambda: Until(0), "last"),
        (lambda: Until(3).share(0, 5), "round must lie in"),
        (lambda: Patience(0), "patience: rounds"),
        (lambda: Patience(1.5), "patience: rounds"),
        (lambda: Patience().load({"idle": torch.tensor(-1)}), "at least 0"),
        (lambda: Patience().load({"idle": torch.tensor(1.5)}), "whole number"),
        (lambda: Patience().load({}), "state must have the keys"),
        (lambda: RelativeNorm(-1.0), "power"),
        (lambda: RelativeNorm(2.0, 1), "normalise"),
        (lambda: LayerChange("cca"), "unknown measure 'cca'"),
        (lambda: pruner("mean-std-band", weights="fresh"), "weights must be 'inherit' or 'reinit', found 'fresh'"),
        (lambda: pruner("channel-magnitude", ratio=1), "unknown option 'ratio'"),
    ],
)
def test_bad_input(make: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()  # type: ignore[operator]


# Schedule and hooks ---------------------------------------------------------------------------


def test_cuts_up_to_the_last_round() -> None:
    assert [Until(3).share(round_, 5) for round_ in range(1, 6)] == [1.0, 1.0, 1.0, None, None]


def masks_of(*removed: int) -> list[Mask]:
    """Masks without the first so many units of the largest layer."""
    out = []
    for count in removed:
        units = torch.ones(len(GROUPS), dtype=torch.bool)
        units[48 : 48 + count] = False
        out.append(Mask(GROUPS, units))
    return out


def cuts(hooks: tuple[object, ...], news: list[Mask]) -> list[int]:
    """Units removed after each cut."""
    old: Mask | None = None
    out = []
    for round_, new in enumerate(news, start=1):
        context = HookContext(round_, len(news), WEIGHTS.clone(), old, new, generator=generator())
        old = run_cut(hooks, context)  # type: ignore[arg-type]
        assert old is not None
        out.append(int((~old.units).sum()))
    return out


def test_patience_stops_for_good() -> None:
    assert cuts((Patience(3),), masks_of(2, 3, 3, 3, 4, 4, 4, 4, 9)) == [2, 3, 3, 3, 4, 4, 4, 4, 4]
    assert cuts((Patience(1),), masks_of(0, 5)) == [0, 0]
    assert cuts((Patience(1),), masks_of(1, 2, 2, 7)) == [1, 2, 2, 2]


def test_patience_resumes() -> None:
    one = Patience(2)
    cuts((one,), masks_of(0))
    two = Patience(2)
    two.load(one.state())
    assert not two.stopped
    assert cuts((two,), masks_of(0, 5)) == [0, 0]
    assert two.stopped


def test_weights_are_drawn_anew_at_the_width_that_is_left() -> None:
    (mask,) = masks_of(40)
    context = HookContext(1, 9, WEIGHTS.clone(), None, mask, generator=generator(7))
    state = torch.get_rng_state()
    run_cut((Rebuild(),), context)
    assert torch.equal(torch.get_rng_state(), state)
    assert not bool(context.weights[~mask.keep].any())
    assert not bool((context.weights[mask.keep] == WEIGHTS[mask.keep]).any())
    # 24 inputs are left to the last layer: its weights lie in +-1/sqrt(24), where those of 64 inputs reach 0.125.
    last = GROUPS.layout.split(context.weights)["9.weight"]
    assert 0.15 < float(last.abs().max()) <= 24**-0.5
    again = HookContext(1, 9, WEIGHTS.clone(), None, mask, generator=generator(7))
    run_cut((Rebuild(),), again)
    assert torch.equal(again.weights, context.weights)


def test_nothing_is_drawn_where_nothing_went() -> None:
    (mask,) = masks_of(3)
    for old, new in ((mask, Mask(GROUPS, mask.units.clone())), (None, Mask.dense(GROUPS)), (mask, None)):
        context = HookContext(2, 9, WEIGHTS.clone(), old, new, generator=generator())
        Rebuild().on_cut(context)
        assert torch.equal(context.weights, WEIGHTS)
    with pytest.raises(InputError, match="seeded"):
        Rebuild().on_cut(HookContext(2, 9, WEIGHTS.clone(), None, mask))


def test_parameters_without_an_initialisation_stay() -> None:
    network = build("transformer", [3, 8, 8], 4, 0, width=8)
    groups = ChannelGroups(network, torch.zeros(1, 3, 8, 8))
    units = torch.ones(len(groups), dtype=torch.bool)
    units[0] = False
    weights = torch.randn(groups.layout.size, generator=generator())
    context = HookContext(1, 1, weights.clone(), None, Mask(groups, units), generator=generator())
    Rebuild().on_cut(context)
    new, old = groups.layout.split(context.weights), groups.layout.split(weights)
    assert torch.equal(new["position"], old["position"])
    assert not torch.equal(new["head.weight"], old["head.weight"])


# Pruners by name ------------------------------------------------------------------------------


def test_relative_norm_golden() -> None:
    part = GROUPS.layout.split(WEIGHTS.double())
    squares = part["3.weight"].flatten(1).square().sum(dim=1)  # rows: the filters
    reads = part["7.weight"].view(64, 32, 4).square().sum(dim=(0, 2))  # columns: two by two positions each
    want = (squares + reads).sqrt()
    of = GROUPS.layer == 1
    assert torch.allclose(RelativeNorm(2.0, False)(GROUPS, WEIGHTS, None, None)[of], want)
    assert torch.allclose(RelativeNorm()(GROUPS, WEIGHTS, None, None)[of], want / want.mean())
    assert not bool(RelativeNorm()(GROUPS, torch.zeros_like(WEIGHTS), None, None).any())


RATIOS = (0.0, 0.1, 0.5, 0.75, 0.9)


@pytest.mark.parametrize("name", ["channel-magnitude", "channel-random"])
def test_channels_reach_the_ratio_and_nest(name: str) -> None:
    rule = pruner(name)
    masks = rule.masks(GROUPS, WEIGHTS, RATIOS, generator=generator())
    for ratio, mask in zip(RATIOS, masks, strict=True):
        assert mask.ratio >= ratio - 1e-12
        assert mask.structured
        assert bool((GROUPS.layer_counts(mask.units) >= 1).all())
        if ratio:
            # The least that does: less by one unit is not enough.
            assert mask.ratio < ratio + int(GROUPS.sizes().max()) / GROUPS.weights
    for smaller, larger in itertools.pairwise(masks):
        assert not bool((larger.units & ~smaller.units).any())


def test_presets_take_options_of_the_groups() -> None:
    rule = pruner("channel-magnitude", frozen=["3"], min_channels=4)
    groups = rule.groups(NETWORK, EXAMPLE)
    (mask,) = rule.masks(groups, WEIGHTS, [0.3])
    narrow = mask.narrow()
    assert isinstance(narrow, nn.Sequential)
    assert narrow[3].out_channels == 32
    assert bool((groups.layer_counts(mask.units) >= 4).all())
    with pytest.raises(InputError, match="cannot be reached"):
        rule.masks(groups, WEIGHTS, [0.97])


def test_group_norm_option() -> None:
    network = build("resnet8", [3, 8, 8], 4, 0, width=4, norm="group")
    groups = pruner("channel-random", group_norm=True).groups(network, torch.zeros(1, 3, 8, 8))
    assert len(groups) > 0
    with pytest.raises(InputError, match="group_norm=True"):
        pruner("channel-random").groups(network, torch.zeros(1, 3, 8, 8))


def test_band_pruner_over_rounds() -> None:
    rule = pruner("mean-std-band", k=1.5, last=4, patience=2)
    assert rule.chooses_ratio
    assert rule.scope == "global"
    weights = WEIGHTS.clone()
    mask = Mask.dense(GROUPS)
    kept = []
    for round_ in range(1, 7):
        if rule.schedule.ratio(round_, 6, 0.0) is not None:
            (new,) = rule.masks(GROUPS, weights, [0.0], previous=[mask])
            context = HookContext(round_, 6, weights, mask, new, generator=generator())
            after = run_cut(rule.hooks, context)
            assert after is not None
            assert not bool((after.units & ~mask.units).any())
            mask = after
        kept.append(mask.kept)
    assert kept == sorted(kept, reverse=True)
    assert kept[0] < GROUPS.weights
    assert kept[0] > kept[1]  # the band is of what is left
    assert kept[3] == kept[4] == kept[5]


def test_band_ignores_the_ratio_asked_for() -> None:
    masks = pruner("mean-std-band").masks(GROUPS, WEIGHTS, [0.0, 0.9])
    assert torch.equal(masks[0].units, masks[1].units)
    assert 0 < masks[0].ratio < 0.5


def test_reinit_option_adds_the_hook_after_patience() -> None:
    assert [type(hook) for hook in pruner("mean-std-band", weights="reinit").hooks] == [Patience, Rebuild]
    assert [type(hook) for hook in pruner("mean-std-band").hooks] == [Patience]


def test_layers_that_change_least_go_first() -> None:
    network = build("resnet18", [3, 8, 8], 4, 0, width=4)
    rule = pruner("layer-cka")
    groups = rule.groups(network, torch.zeros(1, 3, 8, 8))
    weights = Layout.flatten(network)
    batches = [
        (torch.rand(6, 3, 8, 8, generator=generator(s)), torch.zeros(6, dtype=torch.long), 1.0 + s) for s in (0, 1)
    ]
    evidence = Evidence(network, weights, batches)
    masks = rule.masks(groups, weights, [0.01, 0.5], evidence=evidence)
    each = [representational_change(groups, inputs) for inputs, _, _ in batches]
    want = (each[0] + 2 * each[1]) / 3
    order = torch.argsort(want)
    for mask in masks:
        removed = int((~mask.units).sum())
        assert removed >= 1
        assert set(torch.nonzero(~mask.units)[:, 0].tolist()) == set(order[:removed].tolist())
    for charge in evidence.charges:
        assert (charge.forward_samples, charge.backward_samples, charge.upload_bits) == (6.0, 0.0, 5 * 32.0)
    with pytest.raises(InputError, match="needs evidence"):
        rule.masks(groups, weights, [0.5])
    with pytest.raises(InputError, match="needs whole blocks"):
        LayerChange()(GROUPS, WEIGHTS, evidence, None)

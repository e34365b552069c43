"""Magnitude pruning and the counts it is held to."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from jointopt.errors import InputError
from jointopt.pruning import keep_mask, prune_rank, pruned_count, random_mask, snap
from jointopt.pruning.magnitude import lowest, sort_keys

Rule = Callable[[torch.Tensor, float, torch.Generator], torch.Tensor]


@given(
    weights=st.lists(st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0, 1e-40, -3e38]), max_size=40),
    ratio=st.floats(0, 1),
)
def test_equals_a_stable_sort(weights: list[float], ratio: float) -> None:
    flat = torch.tensor(weights, dtype=torch.float32)
    mask = keep_mask(flat, ratio)
    expected = torch.ones(len(flat), dtype=torch.bool)
    if weights:
        order = torch.sort(flat.abs(), stable=True).indices
        expected[order[: int(np.floor(ratio * len(flat) + 1e-9))]] = False
    assert mask.dtype == torch.bool
    assert torch.equal(mask, expected)


@pytest.mark.parametrize("rule", [lambda weights, ratio, _: keep_mask(weights, ratio), random_mask])
@given(
    weights=st.lists(st.floats(-5, 5, width=16), min_size=1, max_size=50),
    ratios=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    seed=st.integers(0, 2**40),
)
def test_exact_count_and_nesting(rule: Rule, weights: list[float], ratios: tuple[float, float], seed: int) -> None:
    flat = torch.tensor(weights, dtype=torch.float32)
    small, large = (rule(flat, ratio, torch.Generator().manual_seed(seed)) for ratio in sorted(ratios))
    assert int((~large).sum()) == pruned_count(max(ratios), len(flat))
    assert not (large & ~small).any()


@pytest.mark.parametrize("value", [0.0, -2.5])
def test_all_equal_prunes_lowest_indices(value: float) -> None:
    assert keep_mask(torch.full((10,), value), 0.3).tolist() == [False] * 3 + [True] * 7


def test_known_case_leaves_weights_alone() -> None:
    weights = torch.tensor([3.0, -0.5, 0.25, -4.0, 0.5], requires_grad=True)
    mask = keep_mask(weights, 0.4)
    assert mask.tolist() == [True, False, False, True, True]
    assert weights.tolist() == [3.0, -0.5, 0.25, -4.0, 0.5]
    assert not mask.requires_grad
    assert keep_mask(weights, 0.0).all()
    assert not keep_mask(weights, 1.0).any()


@given(parameters=st.integers(1, 10**9), ratio=st.floats(0, 1))
def test_snap_and_count_agree(parameters: int, ratio: float) -> None:
    snapped = snap(ratio, parameters)
    assert isinstance(snapped, float)
    assert 0 <= snapped <= 1
    exact = Fraction(ratio) * parameters
    count = pruned_count(snapped, parameters)
    # Up to the next whole number, except from within the tolerance above a whole number.
    assert exact - Fraction(1, 10**6) <= count < exact + 1
    assert snapped == count / parameters
    assert snap(snapped, parameters) == snapped
    assert pruned_count(ratio, parameters) in (count, count - 1)


@given(parameters=st.integers(1, 10**9), share=st.floats(0, 1))
def test_multiples_stay(parameters: int, share: float) -> None:
    count = int(share * parameters)
    assert pruned_count(count / parameters, parameters) == count
    assert snap(count / parameters, parameters) == count / parameters


@given(parameters=st.integers(1, 10**6), ratio=st.floats(0, 1))
def test_small_models_follow_the_plain_formulas(parameters: int, ratio: float) -> None:
    snapped = snap(ratio, parameters)
    assert snapped == max(np.ceil(ratio * parameters - 1e-9), 0) / parameters
    assert np.floor(snapped * parameters + 1e-9) == np.ceil(ratio * parameters - 1e-9)
    assert pruned_count(ratio, parameters) == np.floor(ratio * parameters + 1e-9)


def test_large_models_need_the_wider_tolerance() -> None:
    counts = np.random.default_rng(0).integers(0, 10**9, size=100_000)
    ratios = counts / 10**9
    assert (np.floor(ratios * 10**9 + 1e-9) != counts).any()  # why 1e-9 alone will not do
    np.testing.assert_array_equal(pruned_count(ratios, 10**9), counts)


def test_arrays_broadcast() -> None:
    ratios = np.array([[0.0, 0.1, 0.25], [0.31, 0.999, 1.0]])
    snapped = snap(ratios, np.array([10, 10, 4]))
    assert isinstance(snapped, np.ndarray)
    np.testing.assert_array_equal(snapped, [[0.0, 0.1, 0.25], [0.4, 1.0, 1.0]])
    np.testing.assert_array_equal(pruned_count(ratios, np.array([10, 10, 4])), [[0, 1, 1], [3, 9, 4]])
    assert not np.signbit(snap(0.0, 7))
    assert type(pruned_count(0.5, 7)) is int
    assert snap(0.3 + 1e-12, 10) == 0.3
    assert snap(0.3 + 1e-9, 10) == 0.4


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_not_finite_weights_are_refused(bad: float) -> None:
    for rule in (keep_mask, random_mask):
        with pytest.raises(InputError, match="at index 1"):
            rule(torch.tensor([1.0, bad, 2.0]), 0.5)


@pytest.mark.parametrize("weights", [torch.ones(2, 2), torch.tensor(1.0), torch.ones(3, dtype=torch.int64)])
def test_not_a_float_vector_is_refused(weights: torch.Tensor) -> None:
    with pytest.raises(InputError, match="1-D floating-point"):
        keep_mask(weights, 0.5)


@pytest.mark.parametrize(
    ("ratio", "parameters"),
    [(-1e-9, 5), (1.1, 5), (float("nan"), 5), (0.5, 0), (0.5, 10**9 + 1), (0.5, 2.0), ([0.5, 2.0], 5)],
)
def test_bad_ratio_or_parameters(ratio: Any, parameters: Any) -> None:
    for function in (snap, pruned_count):
        with pytest.raises(InputError, match=r"ratio must|parameters must"):
            function(ratio, parameters)


@pytest.mark.parametrize("length", [0, 5])
def test_mask_refuses_bad_ratio(length: int) -> None:
    with pytest.raises(InputError, match=r"found 1\.5"):
        keep_mask(torch.ones(length), 1.5)


def test_random_is_seeded_uniform_and_local() -> None:
    weights = torch.arange(20.0)
    state = torch.get_rng_state()
    generator = torch.Generator().manual_seed(1)
    masks = torch.stack([random_mask(weights, 0.25, generator) for _ in range(4000)])
    assert torch.equal(torch.get_rng_state(), state)
    again = torch.Generator().manual_seed(1)
    assert torch.equal(random_mask(weights, 0.25, again), masks[0])
    deviation = (0.75 * 0.25 / 4000) ** 0.5
    assert ((masks.double().mean(dim=0) - 0.75).abs() < 4.5 * deviation).all()
    with pytest.raises(InputError, match=r"torch\.Generator"):
        random_mask(weights, 0.25)


@given(
    weights=st.lists(st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5, 2.0, -2.0]), min_size=1, max_size=60),
    ratio=st.floats(0.0, 1.0),
)
def test_one_ranking_serves_every_ratio(weights: list[float], ratio: float) -> None:
    vector = torch.tensor(weights)
    ranked = prune_rank(vector) >= pruned_count(ratio, len(weights))
    assert torch.equal(ranked, keep_mask(vector, ratio))


@given(
    keys=st.lists(st.sampled_from([-np.inf, -1.0, -0.0, 0.0, 0.5, 3.0, np.inf]), min_size=1, max_size=30),
    share=st.floats(0.0, 1.0),
    kind=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
)
def test_lowest_equals_a_stable_sort_whatever_the_type(keys: list[float], share: float, kind: torch.dtype) -> None:
    vector = torch.tensor(keys, dtype=kind)
    count = int(share * len(keys))
    expected = torch.ones(len(keys), dtype=torch.bool)
    expected[torch.sort(vector, stable=True).indices[:count]] = False
    assert torch.equal(lowest(vector, count), expected)
    assert torch.equal(lowest(vector, count, sort_keys(vector)), expected)

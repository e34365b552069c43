"""Synthetic samples and theorem 2 against hand calculation, the table of the theory, and plain loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from jointopt.models import augmentation, compression, convergence

COUNTS = arrays(np.int64, st.tuples(st.integers(1, 4), st.integers(2, 6)), elements=st.integers(0, 40)).map(
    lambda a: a + (np.arange(a.shape[1]) == 0)
)
LEVEL = st.floats(0.0, 1.0)


def uniform(classes: int) -> np.ndarray:
    return np.full(classes, 1.0 / classes)


def loops(counts: np.ndarray, level: float, mix: np.ndarray, bound: float, gap: float) -> tuple[list[float], float]:
    """Z_u and b_dat in plain loops."""
    local, total, made, held = [], np.zeros(counts.shape[1]), 0.0, 0.0
    for row in counts:
        fill = math.ceil(level * max(row) - 1e-9)
        extra = [max(0, fill - n) for n in row]
        size = sum(row) + sum(extra)
        share = [(n + d) / size for n, d in zip(row, extra, strict=True)]
        local.append(bound * sum(abs(s - m) for s, m in zip(share, mix, strict=True)) + gap * sum(extra) / size)
        total += np.array(row) + np.array(extra)
        made, held = made + sum(extra), held + size
    return local, bound * float(np.abs(total / held - mix).sum()) + gap * made / held


def test_counts_are_filled_up_to_a_share_of_the_largest_class() -> None:
    counts = np.array([[10.0, 3.0, 0.0], [4.0, 4.0, 4.0]])
    np.testing.assert_array_equal(augmentation.augmented_counts(counts, 0.0), counts)
    np.testing.assert_array_equal(augmentation.augmented_counts(counts, [1.0]), [[10, 10, 10], [4, 4, 4]])
    np.testing.assert_array_equal(augmentation.augmented_counts(counts, [0.35, 1.0]), [[10, 4, 4], [4, 4, 4]])
    # 0.3 x 10 is three, whatever rounding says; a level a little above it is four
    np.testing.assert_array_equal(augmentation.augmented_counts(counts, [0.3, 0.3])[0], [10, 3, 3])
    np.testing.assert_array_equal(augmentation.augmented_counts(counts, [0.3001, 0.3])[0], [10, 4, 4])
    assert augmentation.augmented_counts(counts, np.zeros((5, 2))).shape == (5, 2, 3)


@given(COUNTS, LEVEL, st.floats(0.0, 3.0), st.floats(0.0, 3.0), st.integers(0, 1000))
def test_gaps_equal_plain_loops(counts: np.ndarray, level: float, bound: float, gap: float, seed: int) -> None:
    mix = np.random.default_rng(seed).dirichlet(np.ones(counts.shape[1]))
    after = augmentation.augmented_counts(counts, [level])
    local, data = loops(counts, level, mix, bound, gap)
    np.testing.assert_allclose(augmentation.local_gap(counts, after, mix, bound, gap), local, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(augmentation.data_gap(counts, after, mix, bound, gap), data, rtol=1e-9, atol=1e-12)


@given(COUNTS, LEVEL, LEVEL)
def test_more_augmentation_evens_out_every_device(counts: np.ndarray, a: float, b: float) -> None:
    low, high = sorted((a, b))
    few, many = (augmentation.augmented_counts(counts, [level]) for level in (low, high))
    mix = uniform(counts.shape[1])
    first, second = (augmentation.local_gap(counts, n, mix, 1.0, 0.0) for n in (few, many))
    assert np.all(second <= first + 1e-12)
    assert np.all(many >= few)
    # the other part rises
    first, second = (augmentation.local_gap(counts, n, mix, 0.0, 1.0) for n in (few, many))
    assert np.all(second >= first - 1e-12)


@given(COUNTS, st.floats(0.1, 2.0))
def test_full_augmentation_leaves_only_the_synthetic_gap(counts: np.ndarray, gap: float) -> None:
    after = augmentation.augmented_counts(counts, [1.0])
    made = after.sum(axis=1) - counts.sum(axis=1)
    local = augmentation.local_gap(counts, after, uniform(counts.shape[1]), 5.0, gap)
    np.testing.assert_allclose(local, gap * made / after.sum(axis=1), atol=1e-12)


def test_the_mix_of_all_need_not_become_more_even() -> None:
    # skewed but balanced in sum: two devices hold what two classes lack
    counts = np.array([[10.0, 0.0, 5.0], [0.0, 10.0, 5.0], [4.0, 4.0, 4.0]])
    mix = uniform(3)
    found = [
        float(augmentation.data_gap(counts, augmentation.augmented_counts(counts, [level]), mix, 1.0, 0.0))
        for level in (0.0, 0.7, 1.0)
    ]
    assert found[0] == pytest.approx(0.0, abs=1e-15)
    assert found[1] > 0.01
    assert found[2] == pytest.approx(0.0, abs=1e-15)


def test_dirichlet_table() -> None:
    """2f: Dirichlet(0.3), 500 samples, 10 classes; means over 4000 draws within 2 %."""
    rng = np.random.default_rng(0)
    mixes = rng.dirichlet(np.full(10, 0.3), size=4000)
    counts = rng.multinomial(500, mixes).astype(np.float64)
    table = {0.0: (1.09, 0), 0.25: (0.467, 345), 0.5: (0.189, 802), 0.75: (0.063, 1299), 1.0: (0.0, 1809)}
    for level, (skew, made) in table.items():
        after = augmentation.augmented_counts(counts, [level])
        local = augmentation.local_gap(counts, after, uniform(10), 1.0, 0.0)
        assert local.mean() == pytest.approx(skew, rel=0.02, abs=1e-12)
        assert (after.sum(axis=1) - 500).mean() == pytest.approx(made, rel=0.02, abs=1e-12)


@given(COUNTS, LEVEL, LEVEL)
def test_levels_meet_every_outcome_in_their_range(counts: np.ndarray, a: float, b: float) -> None:
    low, high = sorted((a, b))
    found = augmentation.levels(counts, low, high)
    assert np.all(np.diff(found) > 0.0)
    assert found[0] == low and found[-1] <= high
    outcomes = {augmentation.augmented_counts(counts, [level]).tobytes() for level in found}
    for level in np.linspace(low, high, 40):
        assert augmentation.augmented_counts(counts, [level]).tobytes() in outcomes


def test_levels_are_one_for_each_outcome() -> None:
    for counts in ([[6.0, 3.0]], [[10.0, 9.0, 9.0]], [[5.0, 2.0], [7.0, 7.0]]):
        found = augmentation.levels(np.array(counts))
        outcomes = {augmentation.augmented_counts(np.array(counts), [level]).tobytes() for level in found}
        assert len(outcomes) == found.size


def test_levels_at_one_point() -> None:
    assert augmentation.levels(np.array([[4.0, 1.0]]), 0.3, 0.3).tolist() == [0.3]


def test_cost_of_a_sample() -> None:
    # k_c f^2 c = 1e-27 x (1e9)^2 x 9.4e9
    assert augmentation.generation_energy(9.4e9, 1e9, 1e-27) == pytest.approx(9.4)
    assert augmentation.generation_delay(9.4e9, 1e9) == pytest.approx(9.4)


def gap_of(**changes: object) -> convergence.UnbiasedGap:
    """Theorem 2 for two devices."""
    fields: dict[str, object] = {
        "weight": np.array([0.6, 0.4]),
        "success": np.array([0.5, 0.25]),
        "pruning_ratio": np.array([0.2, 0.5]),
        "pruning_error": np.array([0.2, 0.5]),
        "quantization_variance": np.array([0.04, 0.01]),
        "sampling_variance": np.array([0.3, 0.2]),
        "local_gap": np.array([0.5, 0.4]),
        "data_gap": np.float64(0.1),
        "smoothness": 2.0,
        "weight_norm_squared": 0.25,
        "mask_energy": 0.5,
        "learning_rate": 0.1,
    }
    return convergence.unbiased_gap(**{**fields, **changes})  # type: ignore[arg-type]


def test_theorem_two_by_hand() -> None:
    found = gap_of()
    # L^2 D^2 = 1: 2 b^2 = .02; 2 [.6 x .3 + .4 x .75] = .96;
    # L eta pi^2 = (.072, .032), (1 - s)/s = (1, 3), 3 Z^2 + 3 rho = (1.35, 1.98) -> .0972 + .19008
    # quantization .072 x .04/.5 + .032 x .01/.25 = .00704; sampling .072 x .3/.5 + .032 x .2/.25 = .0688
    assert float(found.data) == pytest.approx(0.02)
    assert found.pruning.sum() == pytest.approx(0.96)
    assert found.participation.sum() == pytest.approx(0.28728)
    assert found.quantization.sum() == pytest.approx(0.00704)
    assert found.sampling.sum() == pytest.approx(0.0688)
    assert float(found.total) == pytest.approx(1.34312)
    # A = 3 (.072 x 1 + .032 x 3)
    assert found.contraction.sum() == pytest.approx(0.504)


def test_theorem_two_without_losses_and_compression_is_plain_sgd() -> None:
    weight, sampling = np.array([0.6, 0.4]), 0.3
    fine = compression.quantization_variance(1e5, 0.1, 60.0)
    found = gap_of(
        success=np.ones(2),
        pruning_ratio=np.zeros(2),
        pruning_error=np.zeros(2),
        quantization_variance=np.full(2, fine),
        sampling_variance=sampling,
    )
    # 2 b_dat^2 + L eta sigma^2/b_s sum pi^2
    assert float(found.total) == pytest.approx(2.0 * 0.1**2 + 2.0 * 0.1 * sampling * float(weight @ weight), rel=1e-12)
    assert np.all(found.contraction == 0.0)


def test_rounds_to_target() -> None:
    assert convergence.rounds_to_target(0.05, 0.1, 0.5, 2.0, 0.01) == pytest.approx(1000.0)
    gaps = np.array([0.4, 0.44, 0.4499, 0.45 * (1 - 1e-12), 0.45, 0.5])
    found = convergence.rounds_to_target(gaps, 0.1, 0.5, 2.0, 0.01)
    assert np.all(np.diff(found[:4]) > 0.0) and found[3] > 1e14
    assert np.all(np.isinf(found[4:]))
    assert np.isinf(convergence.rounds_to_target(0.0, 1.2, 0.5, 2.0, 0.01))

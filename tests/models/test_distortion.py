"""Distortion laws: values of the theory, sampled weights, and the bound on a network's output."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jointopt.models import compression, distortion


def test_values_of_the_magnitude_law():
    ratio = np.array([0.1, 0.3, 0.5, 0.7, 0.9])
    expected = [0.005176, 0.050328, 0.153426, 0.338808, 0.669741]
    np.testing.assert_allclose(distortion.magnitude_distortion(ratio), expected, atol=5e-7)
    assert distortion.magnitude_distortion(0.0) == 0.0
    assert distortion.magnitude_distortion(1.0) == 1.0


def test_magnitude_law_keeps_its_digits_where_terms_cancel():
    mpmath = pytest.importorskip("mpmath")
    with mpmath.workdps(60):
        for r in (1e-12, 1e-6, 1e-3, 0.0199, 0.0201, 0.3, 1 - 1e-9):
            x = mpmath.mpf(r)
            exact = float(x + (1 - x) * mpmath.log(1 - x))
            assert distortion.magnitude_distortion(r) == pytest.approx(exact, rel=2e-13)
    r = np.linspace(0.05, 0.99, 50)
    np.testing.assert_allclose(distortion.magnitude_distortion(r), compression.pruning_error_l1(r), rtol=1e-12)


def test_slope_is_the_derivative():
    r = np.linspace(0.001, 0.98, 100)
    h = 1e-6
    numeric = (distortion.magnitude_distortion(r + h) - distortion.magnitude_distortion(r - h)) / (2 * h)
    np.testing.assert_allclose(distortion.magnitude_distortion_slope(r), numeric, rtol=1e-6)


def test_sampled_laplace_weights():
    rng = np.random.default_rng(0)
    rate = 21.9
    w = np.sort(np.abs(rng.laplace(scale=1.0 / rate, size=2_000_000)))
    removed = np.concatenate([[0.0], np.cumsum(w)]) / w.size
    for r in (0.1, 0.3, 0.5, 0.7, 0.9):
        got = removed[round(r * w.size)]
        assert got == pytest.approx(float(distortion.magnitude_distortion(r)) / rate, rel=5e-3)


def test_no_pruner_that_keeps_the_rest_exact_removes_less():
    rng = np.random.default_rng(1)
    w = np.abs(rng.laplace(size=2000))
    for r in (0.2, 0.5, 0.8):
        count = round(r * w.size)
        least = np.sort(w)[:count].sum() / w.sum()
        for _ in range(50):
            assert rng.permutation(w)[:count].sum() / w.sum() >= least


def test_rate_distortion_of_laplace_weights_is_achieved():
    # test channel of 4b: u = 0 with probability (lambda D)^2; it has mutual information -log2(lambda D)
    for d in (0.1, 0.5, 0.9):
        assert distortion.rate_distortion(-np.log2(d)) == pytest.approx(d, rel=1e-14)
    assert distortion.rate_distortion(0.0) == 1.0


def test_exponential_bounds_enclose_and_keep_their_digits():
    rate = np.linspace(0.01, 60.0, 500)
    low, high = distortion.exponential_distortion(rate), distortion.exponential_distortion_upper(rate)
    assert np.all(low <= high)
    np.testing.assert_allclose(low, 2.0 ** -(rate + 1), rtol=1e-12)
    moderate = rate < 8
    direct = 0.5 * (np.sqrt(1 + 4 / (2.0 ** rate[moderate] - 1)) - 1)
    np.testing.assert_allclose(high[moderate], direct, rtol=1e-11)
    # at high rates the square root is linear: (1/2) 2/(2^R - 1)
    assert high[-1] == pytest.approx(2.0**-60, rel=1e-9)


def test_mask_entropy_is_needed_for_the_bound():
    assert distortion.mask_entropy(np.array([0.0, 0.5, 1.0])).tolist() == [0.0, 1.0, 0.0]
    assert distortion.mask_entropy(0.11) == pytest.approx(0.499916, abs=1e-6)
    # ratio 1/2 and 1 bit: achieved .5, above the bound with the mask's entropy, below the one without (4b)
    achieved = 0.5
    assert distortion.rate_distortion(distortion.pruned_rate(0.5, 1.0)) == pytest.approx(2**-1.5)
    assert distortion.rate_distortion(distortion.pruned_rate(0.5, 1.0)) <= achieved
    assert distortion.rate_distortion(0.5 * 1.0) == pytest.approx(0.707, abs=1e-3)
    assert distortion.rate_distortion(0.5 * 1.0) > achieved


@pytest.mark.parametrize("bits", [1.0, 2.0, 4.0])
def test_rate_bound_falls_up_to_its_least_ratio_and_rises_beyond(bits):
    turn = float(distortion.least_rate_distortion_ratio(bits))
    assert turn == pytest.approx(1.0 / (1.0 + 2.0**bits))
    r = np.linspace(0.0, 1.0, 4001)
    value = distortion.rate_distortion(distortion.pruned_rate(r, bits))
    assert np.all(np.diff(value[r <= turn]) < 0)
    assert np.all(np.diff(value[r >= turn]) > 0)


def test_rate_bound_is_below_magnitude_pruning():
    r = np.linspace(0.0, 0.99, 200)
    bound = distortion.rate_distortion(distortion.pruned_rate(r, 32.0))
    assert np.all(bound <= distortion.magnitude_distortion(r) + 1.001 * 2.0**-32)


@given(st.lists(st.floats(0.01, 1.0), min_size=1, max_size=8), st.floats(0.0, 1.0))
def test_measured_curve_has_an_exact_inverse(steps, where):
    ratios = np.concatenate([[0.0], np.cumsum(steps)])
    ratios /= ratios[-1]
    values = np.concatenate([[0.0], np.cumsum(np.array(steps)[::-1] ** 2)])
    d = distortion.curve_distortion(where, ratios, values)
    assert distortion.curve_ratio(d, ratios, values) == pytest.approx(where, abs=1e-12)
    np.testing.assert_array_equal(distortion.curve_distortion(ratios, ratios, values), values)


def test_torch_gives_the_same_values_and_derivatives():
    torch = pytest.importorskip("torch")
    r = torch.tensor([0.001, 0.3, 0.9], dtype=torch.float64, requires_grad=True)
    value = distortion.magnitude_distortion(r)
    np.testing.assert_allclose(value.detach().numpy(), distortion.magnitude_distortion(r.detach().numpy()))
    value.sum().backward()
    np.testing.assert_allclose(r.grad.numpy(), -np.log1p(-r.detach().numpy()), rtol=1e-9)
    curve = distortion.curve_distortion(r, [0.0, 0.5, 1.0], [0.0, 0.2, 1.0])
    np.testing.assert_allclose(curve.detach().numpy(), [0.0004, 0.12, 0.84])


def test_output_distortion_bound_holds_for_random_networks_without_biases():
    rng = np.random.default_rng(2)
    tightest = 0.0
    for _ in range(300):
        widths = rng.integers(2, 7, size=rng.integers(2, 5))
        weights = [rng.laplace(scale=rng.uniform(0.1, 1.0), size=(b, a)) for a, b in itertools.pairwise(widths)]
        ratio = rng.uniform(0.05, 0.95)
        pruned = []
        for w in weights:
            limit = np.sort(np.abs(w).ravel())[min(int(ratio * w.size), w.size - 1)]
            pruned.append(np.where(np.abs(w) < limit, 0.0, w))
        # induced 1-norms around, entry sums for the difference (4g); no tau is needed for pruning
        norms = [np.abs(w).sum(axis=0).max() for w in weights]
        amplification = [np.prod(norms[:l]) * np.prod(norms[l + 1 :]) for l in range(len(weights))]
        error = np.array([np.abs(w - v).sum() for w, v in zip(weights, pruned, strict=True)])
        bound = float(distortion.output_distortion(error, amplification, np.ones(error.size), np.ones(error.size)))

        def forward(matrices, x):
            for m in matrices[:-1]:
                x = np.maximum(m @ x, 0.0)
            return matrices[-1] @ x

        x = rng.normal(size=(widths[0], 40)) * (rng.uniform(size=(widths[0], 40)) < 0.6)
        x /= np.maximum(np.abs(x).sum(axis=0), 1e-12)
        difference = np.abs(forward(weights, x) - forward(pruned, x)).sum(axis=0).max()
        assert difference <= bound * (1 + 1e-12)
        if bound > 0:
            tightest = max(tightest, difference / bound)
    assert tightest > 0.3  # the bound says something

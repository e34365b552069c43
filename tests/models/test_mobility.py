"""Flying, sensing and the air-to-ground link: golden values, limits, other arrays."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from jointopt.arithmetic.elementwise import extended
from jointopt.models import aerial, mobility


def plain_power(v):
    """Theory 5a as written."""
    root = math.sqrt(1 + v**4 / (4 * 4.03**4)) - v**2 / (2 * 4.03**2)
    return 79.86 * (1 + 3 * v**2 / 120**2) + 88.63 * math.sqrt(root) + 0.5 * 0.6 * 1.225 * 0.05 * 0.503 * v**3


def test_power_of_flying():
    speed = np.array([0.0, 2.0, 5.0, 10.0, 15.0, 20.0, 30.0])
    np.testing.assert_allclose(mobility.rotary_wing_power(speed), [plain_power(v) for v in speed], rtol=1e-12)
    np.testing.assert_allclose(
        mobility.rotary_wing_power(np.array([0.0, 10.0, 20.0])), [168.49, 126.0337, 178.3003], rtol=1e-6
    )
    # the least lies near 10 m/s, and nothing cancels at speeds no vehicle reaches
    v = np.linspace(0.0, 30.0, 3001)
    assert 9.5 < v[np.argmin(mobility.rotary_wing_power(v))] < 11.0
    exact = np.asarray(mobility.rotary_wing_power(extended([300.0, 2e4])), dtype=float)
    np.testing.assert_allclose(mobility.rotary_wing_power(np.array([300.0, 2e4])), exact, rtol=1e-14)
    np.testing.assert_allclose(mobility.flight_energy(50.0 * np.ones(1), 5.0), 5.0 * plain_power(10.0), rtol=1e-12)


def test_slope_of_the_power():
    speed = torch.linspace(0.1, 40.0, 50, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(mobility.rotary_wing_power(speed).sum(), speed)
    np.testing.assert_allclose(
        mobility.rotary_wing_slope(speed.detach().numpy()), slope.numpy(), rtol=1e-10, atol=1e-12
    )


def test_time_basis_and_class_mix():
    basis = mobility.time_basis([0.0, 15.0, 30.0], period=60.0, size=5)
    np.testing.assert_allclose(basis, [[1, 0, 1, 0, 1], [1, 1, 0, 0, -1], [1, 0, -1, 0, 1]], atol=1e-12)
    mapping = np.random.default_rng(0).normal(size=(4, 1, 7, 5))
    psi = mobility.class_mix(mapping, basis)
    assert psi.shape == (4, 3, 7)
    np.testing.assert_allclose(psi.sum(axis=-1), 1.0, rtol=1e-14)
    logits = mapping[2, 0] @ basis[1]
    np.testing.assert_allclose(psi[2, 1], np.exp(logits) / np.exp(logits).sum(), rtol=1e-13)
    # logits beyond what exp can do
    far = mobility.class_mix(np.array([[2000.0], [0.0], [-2000.0]]), np.ones(1))
    np.testing.assert_allclose(far, [1.0, 0.0, 0.0], atol=1e-300)


def test_arrivals_by_hand():
    means = np.array([[0.0, 0.0], [30.0, 40.0], [300.0, 0.0]])
    mix = np.array([0.5, 0.3, 0.2])
    radius = mobility.view_radius(100.0, np.asarray(math.pi / 3))
    assert radius == pytest.approx(57.735026918962575)
    seen = mobility.class_yield(np.array([0.0, 0.0]), means, mix, 75.0, radius)
    np.testing.assert_allclose(seen, [0.5, 0.3 * math.exp(-50 / 75), 0.0], rtol=1e-14)
    assert mobility.arrivals(seen, 100.0) == math.ceil(100 * (0.5 + 0.3 * math.exp(-2 / 3)))
    np.testing.assert_allclose(mobility.class_probabilities(seen), seen / seen.sum())
    # what is whole stays whole
    alone = mobility.class_yield(np.zeros(2), np.zeros((1, 2)), np.ones(1), 75.0, radius)
    assert mobility.arrivals(alone, 50.0) == 50.0


def test_nothing_seen_is_nothing_gathered():
    seen = mobility.class_yield(np.zeros(2), np.array([[60.0, 0.0]]), np.ones(1), 75.0, 57.7)
    new = mobility.arrivals(seen, 200.0)
    assert new == 0.0 and not np.signbit(new)
    assert mobility.class_probabilities(seen).tolist() == [0.0]
    # a mean on the edge of the footprint is seen, whatever rounding says
    assert mobility.class_yield(np.zeros(2), np.array([[57.7 * (1 + 1e-12), 0.0]]), np.ones(1), 75.0, 57.7) > 0.0


def test_most_samples_near_the_likeliest_mean():
    """Theory 5f: means far apart, psi = (.4, .3, .3): at the first; with the last two together: there."""
    mix = np.array([0.4, 0.3, 0.3])
    line = np.linspace(0.0, 1000.0, 101)
    grid = np.stack(np.meshgrid(line, line, indexing="ij"), axis=-1)

    def best(means):
        seen = mobility.class_yield(grid, np.array(means), mix, 75.0, np.inf).sum(axis=-1)
        return grid[np.unravel_index(np.argmax(seen), seen.shape)]

    assert best([[200, 200], [800, 200], [500, 800]]).tolist() == [200, 200]
    assert best([[200, 200], [800, 200], [800, 200]]).tolist() == [800, 200]


def test_mixture_density():
    rng = np.random.default_rng(1)
    factor = rng.normal(size=(3, 2, 2))
    covariance = 400.0 * (factor @ factor.transpose(0, 2, 1) + np.eye(2))
    means, weights = rng.uniform(300, 700, (3, 2)), np.array([0.2, 0.5, 0.3])
    points = rng.uniform(200, 800, (40, 2))
    expected = sum(
        w * stats.multivariate_normal(m, c).pdf(points) for w, m, c in zip(weights, means, covariance, strict=True)
    )
    np.testing.assert_allclose(mobility.mixture_density(points, weights, means, covariance), expected, rtol=1e-10)
    line = np.linspace(0.0, 1000.0, 401)
    grid = np.stack(np.meshgrid(line, line), axis=-1)
    total = mobility.mixture_density(grid, weights, means, covariance).sum() * 2.5**2
    assert total == pytest.approx(1.0, rel=1e-3)


def test_reachable_set():
    rng = np.random.default_rng(2)
    centre, target = rng.uniform(0, 100, (200, 2)), rng.uniform(0, 100, (200, 2))
    moved = mobility.moved_towards(centre, target, 30.0)
    away = np.hypot(*(target - centre).T)
    np.testing.assert_allclose(np.hypot(*(moved - centre).T), np.minimum(away, 30.0), rtol=1e-12)
    np.testing.assert_allclose(np.hypot(*(target - moved).T), np.maximum(away - 30.0, 0.0), atol=1e-10)
    assert mobility.within_reach(moved, centre, 30.0).all()
    assert np.array_equal(mobility.within_reach(target, centre, 30.0), away <= 30.0)
    np.testing.assert_array_equal(mobility.moved_towards(centre, target, 0.0), centre)
    np.testing.assert_array_equal(mobility.moved_towards(centre, centre, 0.0), centre)


def test_distance_has_a_derivative_everywhere():
    position = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    gain = mobility.class_yield(position, torch.tensor([[0.0, 0.0], [3.0, 4.0]]), torch.tensor([0.5, 0.5]), 10.0, 99.0)
    (slope,) = torch.autograd.grad(gain.sum(), position)
    np.testing.assert_allclose(slope, 0.5 * math.exp(-0.5) / 10.0 * np.array([0.6, 0.8]), rtol=1e-6)


def test_air_to_ground_gain_in_decibels():
    def loss(horizontal, height=100.0, carrier=2.4e9):
        d = math.hypot(horizontal, height)
        angle = math.degrees(math.atan2(height, horizontal))
        los = 1 / (1 + 9.61 * math.exp(-0.16 * (angle - 9.61)))
        return 20 * math.log10(4 * math.pi * d * carrier / 299792458.0) + los * 1.0 + (1 - los) * 20.0

    away = np.array([0.0, 50.0, 200.0, 700.0])
    gain = aerial.air_gain(away, 100.0)
    np.testing.assert_allclose(-10 * np.log10(gain), [loss(r) for r in away], rtol=1e-12)
    # right above: free space and the decibel of line of sight
    assert -10 * math.log10(gain[0]) == pytest.approx(80.05 + 1.0, abs=0.01)
    assert np.all(np.diff(gain) < 0.0)
    high = aerial.line_of_sight_probability(np.radians([5.0, 9.61, 45.0, 90.0]))
    np.testing.assert_allclose(high, [1 / (1 + 9.61 * math.exp(0.16 * 4.61)), 1 / 10.61, 0.9677, 1.0], rtol=1e-3)
    tensor = torch.tensor(away[1:], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(aerial.air_gain(tensor, 100.0).log().sum(), tensor)
    step = 1e-4
    finite = (np.log(aerial.air_gain(away[1:] + step, 100.0)) - np.log(aerial.air_gain(away[1:] - step, 100.0))) / (
        2 * step
    )
    np.testing.assert_allclose(slope, finite, rtol=1e-6)


def test_extended_precision_agrees():
    rng = np.random.default_rng(3)
    position, means = rng.uniform(0, 100, (5, 2)), rng.uniform(0, 100, (4, 2))
    mix = rng.dirichlet(np.ones(4))
    plain = mobility.class_yield(position, means, mix, 75.0, 60.0)
    exact = mobility.class_yield(extended(position), extended(means), extended(mix), 75.0, 60.0)
    np.testing.assert_allclose(plain, np.asarray(exact, dtype=float), rtol=1e-14)
    np.testing.assert_array_equal(
        mobility.arrivals(plain, 80.0), np.asarray(mobility.arrivals(exact, 80.0), dtype=float)
    )

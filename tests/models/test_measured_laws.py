"""Measured laws of pruning: curves in every kind of array, repairs, floors, and what is refused."""

from __future__ import annotations

from typing import Any

import cvxpy as cp
import numpy as np
import pytest
import scipy.optimize
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jointopt.arithmetic.convex import Convex
from jointopt.arithmetic.differentiable import Differentiable
from jointopt.arithmetic.elementwise import extended, symbols
from jointopt.arithmetic.intervals import Interval
from jointopt.errors import InputError
from jointopt.models import compression
from jointopt.models.compression import affine_floor, compute_factor, pruning_error
from jointopt.models.curve import TOLERANCE, ConvexCurve, convex_majorant

GOLDEN = ConvexCurve([0.0, 0.5, 1.0], [0.0, 0.1, 0.6])
SEEDS = range(40)


def random_curve(rng: np.random.Generator, points: int | None = None) -> ConvexCurve:
    """Convex curves of all kinds: flat starts, straight stretches, steep ends, crowded points."""
    points = int(rng.integers(2, 14)) if points is None else points
    steps = 10.0 ** rng.uniform(-3.0, 0.0, points - 1)
    slopes = np.cumsum(10.0 ** rng.uniform(-3.0, 2.0, points - 1) * (rng.random(points - 1) < 0.8))
    if rng.random() < 0.5:
        slopes -= slopes[0]
    knots = np.append(0.0, np.cumsum(steps))
    knots /= knots[-1]
    values = np.append(0.0, np.cumsum(slopes * np.diff(knots)))
    return ConvexCurve(knots, values / max(values[-1], 1e-3) * rng.uniform(0.1, 0.999))


# ------------------------------------------------------------------ values and slopes


def test_golden_values() -> None:
    x = np.array([-0.1, 0.0, 0.25, 0.5, 0.75, 1.0, 1.5])
    np.testing.assert_allclose(GOLDEN(x), [-0.02, 0.0, 0.05, 0.1, 0.35, 0.6, 1.1], rtol=1e-15)
    np.testing.assert_allclose(GOLDEN.slope(x), [0.2, 0.2, 0.2, 1.0, 1.0, 1.0, 1.0], rtol=1e-15)
    np.testing.assert_array_equal(GOLDEN.at_slope([0.0, 0.1, 0.2, 0.5, 1.0, 1.1]), [0, 0, 0, 0.5, 0.5, np.inf])
    assert pruning_error(0.25, GOLDEN) == 0.05
    assert float(compression.pruning_error_slope(np.float64(0.7), GOLDEN)) == pytest.approx(1.0)
    assert np.isnan(GOLDEN(np.nan))


@pytest.mark.parametrize("seed", SEEDS)
def test_points_are_met_and_chords_lie_between(seed: int) -> None:
    rng = np.random.default_rng(seed)
    curve = random_curve(rng)
    np.testing.assert_allclose(curve(curve.knots), curve.values, rtol=1e-14, atol=1e-300)
    x = rng.random(300)
    np.testing.assert_allclose(curve(x), np.interp(x, curve.knots, curve.values), rtol=1e-12, atol=1e-16)
    # convex and rising, and above its tangents
    a, b = rng.random((2, 300))
    assert np.all(curve(0.5 * (a + b)) <= 0.5 * (curve(a) + curve(b)) + 1e-15)
    assert np.all(curve(b) >= curve(a) + curve.slope(a) * (b - a) - 1e-14)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_least_of_a_tilted_curve(seed: int) -> None:
    rng = np.random.default_rng([seed, 1])
    curve = random_curve(rng)
    tilt = rng.choice(np.append(curve.slopes, rng.random(20) * curve.slopes[-1]), 50)
    ratio = np.minimum(curve.at_slope(tilt), 1.0)
    every = curve.values - tilt[:, None] * curve.knots
    np.testing.assert_allclose(curve(ratio) - tilt * ratio, every.min(axis=1), rtol=1e-12, atol=1e-15)
    # and of a curve and a parabola
    weight, centre = 10.0 ** rng.uniform(-2, 2, 50), rng.random(50)
    piece = curve.first(lambda r, slope: slope + 2.0 * weight * (r - centre) >= 0.0, (50,))
    low, high = curve.ends(piece)
    ratio = np.clip(np.clip(centre - 0.5 * curve.slopes[piece] / weight, low, high), 0.0, 1.0)
    x = np.concatenate([np.broadcast_to(np.linspace(0, 1, 4001), (50, 4001)), np.tile(curve.knots, (50, 1))], axis=1)
    every = curve(x) + weight[:, None] * (x - centre[:, None]) ** 2
    found = curve(ratio) + weight * (ratio - centre) ** 2
    assert np.all(found <= every.min(axis=1) + 1e-14)


def test_equal_points_make_equal_curves() -> None:
    same = ConvexCurve(np.array([0.0, 0.5, 1.0]), (0.0, 0.1, 0.6))
    assert same == GOLDEN
    assert hash(same) == hash(GOLDEN)
    assert ConvexCurve([0.0, 0.5, 1.0], [0.0, 0.1, 0.7]) != GOLDEN
    assert GOLDEN != "laplace"
    with pytest.raises(ValueError, match="read-only"):
        GOLDEN.values[0] = 1.0


# ------------------------------------------------------------------ kinds of array


@pytest.mark.parametrize("seed", range(8))
def test_every_kind_of_array_gives_the_same(seed: int) -> None:
    rng = np.random.default_rng([seed, 2])
    curve = random_curve(rng)
    x = np.append(rng.random(6), rng.choice(curve.knots, 2)).reshape(2, 4)
    expected = curve(x)
    close: dict[str, Any] = {"rtol": 1e-12, "atol": 1e-16}
    np.testing.assert_allclose(curve(torch.tensor(x)).numpy(), expected, **close)
    single = curve(torch.tensor(x, dtype=torch.float32))
    assert single.dtype == torch.float32
    np.testing.assert_allclose(single.numpy(), expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(np.asarray(curve(extended(x))), expected, **close)
    np.testing.assert_allclose(np.asarray(curve(Differentiable(torch.tensor(x)))), expected, **close)
    assert [float(curve(v)) for v in x.ravel()] == list(expected.ravel())


def test_extended_values_have_their_digits() -> None:
    found = GOLDEN(extended([1e-30, 0.5]) + 1e-40)
    assert float((found - 0.2e-30)[0]) == pytest.approx(0.2e-40, rel=1e-9)


def test_casadi_expressions_follow() -> None:
    casadi = pytest.importorskip("casadi")
    x = symbols("x", 3)
    traced = GOLDEN(x)
    function = casadi.Function("f", [casadi.vertcat(*x.values)], [casadi.vertcat(*traced.values)])
    np.testing.assert_allclose(np.asarray(function([0.25, 0.5, 0.8])).ravel(), [0.05, 0.1, 0.4], rtol=1e-15)


def test_cvxpy_takes_a_curve_as_convex() -> None:
    x = cp.Variable(2)
    total = cp.sum(GOLDEN(Convex(x)).expression)
    problem = cp.Problem(cp.Minimize(total - 0.5 * x[0] - 0.1 * x[1]), [x >= 0, x <= 1])
    assert problem.is_dcp()
    assert float(problem.solve(solver=cp.CLARABEL, canon_backend=cp.SCIPY_CANON_BACKEND)) == pytest.approx(
        0.1 - 0.25, abs=1e-7
    )


@pytest.mark.parametrize("seed", range(20))
def test_intervals_enclose_values_and_slopes(seed: int) -> None:
    rng = np.random.default_rng([seed, 3])
    curve = random_curve(rng)
    ends = np.sort(np.append(rng.random((2, 30)), rng.choice(curve.knots, (2, 30)), axis=1), axis=0)
    low, high = ends
    box = Interval.variables([low], [high])[0]
    found = curve(box)
    x = low + (high - low) * np.linspace(0, 1, 51)[:, None]
    values = curve(x)
    assert np.all(found.low <= values)
    assert np.all(found.high >= values)
    # sharp: the ends are attained
    np.testing.assert_allclose(found.low, curve(low), rtol=1e-11, atol=1e-300)
    np.testing.assert_allclose(found.high, curve(high), rtol=1e-11, atol=1e-300)
    (slope,) = np.asarray(found.dlow)
    (most,) = np.asarray(found.dhigh)
    wide = high > low
    chords = (values[1:] - values[:-1])[:, wide] / (x[1:] - x[:-1])[:, wide]
    assert np.all(chords >= slope[wide] - 1e-9)
    assert np.all(chords <= most[wide] + 1e-9)


@pytest.mark.parametrize("seed", range(8))
def test_torch_gives_derivatives_of_any_order(seed: int) -> None:
    rng = np.random.default_rng([seed, 4])
    curve = random_curve(rng)
    inside = torch.tensor(0.5 * (curve.knots[1:] + curve.knots[:-1]), requires_grad=True)
    (slope,) = torch.autograd.grad(curve(inside).sum(), inside, create_graph=True)
    np.testing.assert_allclose(slope.detach().numpy(), curve.slopes, rtol=1e-9, atol=1e-12)
    (bend,) = torch.autograd.grad(slope.sum(), inside)
    assert torch.equal(bend, torch.zeros_like(bend))
    # a subgradient at the corners, alike for a batch of single numbers
    knots = torch.tensor(curve.knots)
    each = torch.func.vmap(torch.func.grad(curve))(knots).numpy()
    left, right = np.append(0.0, curve.slopes), np.append(curve.slopes, curve.slopes[-1])
    assert np.all((each >= left - 1e-9) & (each <= right + 1e-9))


# ------------------------------------------------------------------ repairs


def test_a_convex_sequence_stays_as_it_is() -> None:
    np.testing.assert_array_equal(convex_majorant([0, 0.5, 1], [0, 0.1, 0.6]), [0, 0.1, 0.6])
    for seed in SEEDS:
        curve = random_curve(np.random.default_rng([seed, 5]))
        np.testing.assert_allclose(convex_majorant(curve.knots, curve.values), curve.values, rtol=0, atol=1e-15)


def test_golden_repairs() -> None:
    # the bump at 0.5 is 0.1 above the line between its neighbours: they are raised by 0.1, the bump stays
    np.testing.assert_allclose(
        convex_majorant([0, 0.25, 0.5, 0.75], [0, 0.0, 0.2, 0.2]), [0, 0.1, 0.2, 0.3], rtol=1e-14
    )
    # a dip: the first points lie on a steep line from 0, so the end is raised up to it
    np.testing.assert_allclose(convex_majorant([0, 0.5, 1], [0, 0.4, 0.6]), [0, 0.4, 0.8], rtol=1e-14)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32), st.integers(2, 9), st.floats(1e-6, 0.3))
def test_a_repair_is_convex_covers_all_points_and_raises_them_least(seed: int, points: int, noise: float) -> None:
    rng = np.random.default_rng(seed)
    base = random_curve(rng, points)
    error = np.clip(base.values + noise * rng.standard_normal(points), 0.0, 1.0)
    error[0] = 0.0
    raised = convex_majorant(base.knots, error)
    assert raised[0] == 0.0
    assert np.all(raised >= error)
    slopes = np.diff(raised) / np.diff(base.knots)
    assert np.all(np.diff(slopes) >= -1e-9 * (1.0 + slopes[-1]))
    if raised[-1] <= 1.0:
        curve = ConvexCurve(base.knots, raised)
        assert np.all(curve(base.knots) >= error - 1e-15)
    # the least greatest raise, by a linear program: c >= error, c - error <= t, c convex from 0
    steps = np.diff(base.knots)
    bend = np.zeros((max(points - 2, 0), points + 1))
    for i in range(points - 2):
        bend[i, i : i + 3] = 1 / steps[i], -1 / steps[i] - 1 / steps[i + 1], 1 / steps[i + 1]
        bend[i] /= np.abs(bend[i]).max()
    bend = -bend
    below = np.hstack([np.eye(points), -np.ones((points, 1))])
    found = scipy.optimize.linprog(
        np.append(np.zeros(points), 1.0),
        np.vstack([bend, below]),
        np.append(np.zeros(len(bend)), error),
        bounds=[(0.0, 0.0)] + [(e, None) for e in error[1:]] + [(0.0, None)],
    )
    assert found.status == 0
    assert float(np.max(raised - error)) <= found.fun + 1e-6 + 1e-6 * found.fun


def test_rounding_is_straightened_upwards() -> None:
    ratio = np.linspace(0.0, 1.0, 33)
    error = ratio.copy()
    error[1:-1] -= 3e-12 * np.random.default_rng(0).random(31)
    curve = ConvexCurve(ratio, error)
    assert np.all(curve.values >= error)
    assert np.all(np.diff(curve.slopes) >= 0.0)
    assert np.max(curve.values - error) <= TOLERANCE


# ------------------------------------------------------------------ computing


def test_the_affine_compute_law() -> None:
    ratio = np.array([0.0, 0.25, 0.5, 1.0])
    np.testing.assert_allclose(compute_factor(ratio, "affine", 0.4), [1.0, 0.85, 0.7, 0.4], rtol=1e-15)
    np.testing.assert_array_equal(compute_factor(ratio, "affine", 0.0), compute_factor(ratio, "linear"))
    np.testing.assert_array_equal(compute_factor(ratio, "affine", 1.0), compute_factor(ratio, "mask"))
    tensor = torch.tensor(ratio, requires_grad=True)
    (slope,) = torch.autograd.grad(compute_factor(tensor, "affine", 0.4).sum(), tensor)
    np.testing.assert_allclose(slope.numpy(), -0.6)


def test_golden_floors() -> None:
    assert affine_floor([0.5], [0.7]) == pytest.approx(0.4, rel=1e-14)
    assert affine_floor([0.0, 0.5, 0.9], [1.0, 0.5, 0.1]) == pytest.approx(0.0, abs=1e-15)
    assert affine_floor([0.5, 0.9], [0.3, 0.05]) == 0.0
    assert affine_floor([0.5, 0.9], [1.0, 0.4]) == 1.0
    assert affine_floor([0.0], [1.0]) == 0.0


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.floats(1e-3, 1.0), st.floats(0.0, 1.0)), min_size=1, max_size=12),
)
def test_the_floor_is_the_least_above_all_points(points: list[tuple[float, float]]) -> None:
    ratio, factor = np.array(points).T
    floor = affine_floor(ratio, factor)
    assert 0.0 <= floor <= 1.0
    assert np.all(compute_factor(ratio, "affine", floor) >= factor - 1e-12)
    if floor > 1e-9:
        assert np.any(compute_factor(ratio, "affine", floor - 1e-6) < factor)


# ------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("ratio", "error", "message"),
    [
        ([0.0, 0.5, 1.0], [0.0, 0.5], r"error: has 2 values for the 3 points of ratio"),
        ([0.0], [0.0], r"ratio: a curve needs at least 2 points"),
        (0.5, 0.5, r"ratio: a curve needs at least 2 points"),
        ([[0.0, 1.0]], [[0.0, 1.0]], r"ratio: a curve needs at least 2 points"),
        ([0.1, 1.0], [0.0, 1.0], r"ratio\[point 0\]: 0\.1 must be 0"),
        ([0.0, 1.0], [0.1, 1.0], r"error\[point 0\]: 0\.1 must be 0"),
        ([0.0, 0.5, 0.5], [0.0, 0.1, 0.2], r"ratio\[point 2\]: 0\.5 must be above the point before it"),
        ([0.0, 0.5, 0.4], [0.0, 0.1, 0.2], r"ratio\[point 2\]: 0\.4 must be above"),
        ([0.0, 0.5, 1.0], [0.0, 0.3, 0.2], r"error\[point 2\]: 0\.2 must not be below"),
        ([0.0, 0.5, 1.5], [0.0, 0.3, 0.9], r"ratio\[point 2\]: 1\.5 must be at most 1"),
        ([0.0, 0.5, 1.0], [0.0, 0.3, 1.1], r"error\[point 2\]: 1\.1 must be at most 1"),
        ([0.0, 0.5, 1.0], [0.0, -0.3, 1.0], r"error\[point 1\]: -0\.3 must be at least 0"),
        ([0.0, 0.5, 1.0], [0.0, float("nan"), 1.0], r"error\[point 1\]: nan must be finite"),
        ([0.0, float("inf")], [0.0, 1.0], r"ratio\[point 1\]: inf must be finite"),
        (["a", "b"], [0.0, 1.0], r"ratio: expected numbers"),
        ([0.0, 0.5, 1.0], [0.0, 0.4, 0.6], r"error\[point 2\]: 0\.6 lies 0\.2 below the line .*convex_majorant"),
    ],
)
def test_curves_that_are_none(ratio: Any, error: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        ConvexCurve(ratio, error)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pruning_error(np.zeros(2), "measured"), "'measured' needs its curve"),
        (lambda: compression.pruning_error_slope(np.zeros(2), "measured"), "'measured' needs its curve"),
        (lambda: pruning_error(np.zeros(2), "laplac"), "unknown 'laplac'; did you mean 'laplace'"),
        (lambda: compression.pruning_ratio_at_slope(np.zeros(2), "linear"), "same slope"),
        (lambda: compute_factor(np.zeros(2), "affine"), "'affine' needs its floor"),
        (lambda: compute_factor(np.zeros(2), "afine", 0.5), "unknown 'afine'; did you mean 'affine'"),
        (lambda: affine_floor([], []), "as many ratios as factors"),
        (lambda: affine_floor([0.5], [0.5, 0.6]), "as many ratios as factors"),
        (lambda: affine_floor([0.5, 1.5], [0.5, 0.6]), r"pruning_ratio\[point 1\]: 1\.5 must be within"),
        (lambda: affine_floor([0.5, 0.6], [1.2, 0.6]), r"factor\[point 0\]: 1\.2 must be within"),
        (lambda: affine_floor([0.5], [float("nan")]), r"factor\[point 0\]: nan"),
        (lambda: affine_floor(["x"], [0.5]), "expected numbers"),
        (lambda: convex_majorant([0.0, 0.5], [0.0, 0.1, 0.2]), "has 3 values for the 2 points"),
        (lambda: convex_majorant([0.0, 0.5, 0.5], [0.0, 0.1, 0.2]), r"ratio\[point 2\]"),
        (lambda: convex_majorant([0.0, 0.5], [0.1, 0.2]), r"error\[point 0\]: 0\.1 must be 0"),
    ],
)
def test_laws_that_cannot_be_used(call: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()

"""Enclosures against exact evaluation: 50-digit arithmetic at points of the box, without any tolerance."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jointopt.arithmetic.elementwise import extended
from jointopt.arithmetic.intervals import Interval, Mask, intervals
from jointopt.decision import Decision
from jointopt.errors import InputError
from jointopt.models import channel, compression, convergence, cost, distortion, generalization, special
from jointopt.models._array import namespace
from jointopt.problems.ltfl import LTFL

Function = Callable[..., Any]
TINY = 1e-300
seeds = st.integers(0, 2**32 - 1)


@pytest.fixture(autouse=True)
def _no_warnings() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        yield


def boxes(rng: np.random.Generator, low: np.ndarray, high: np.ndarray, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Boxes of widths from nothing to all within [low, high], some ending there."""
    span = high - low
    width = span * 10.0 ** rng.uniform(-9, 0, (span.size, rows)).T * (rng.uniform(size=(rows, span.size)) > 0.1)
    start = low + rng.uniform(size=(rows, span.size)) * (span - width)
    start = np.where(rng.uniform(size=start.shape) < 0.15, low, start)
    return start.T, np.minimum(start + width, high).T


def exactly(values: Any) -> list[Any]:
    return list(values.values.reshape(-1)) if hasattr(values, "values") else [extended([v]).item() for v in values]


def check(function: Function, low: np.ndarray, high: np.ndarray, rng: np.random.Generator, points: int = 3) -> Interval:
    """Values and mean-value forms at random points of the boxes, exactly; returns the enclosure."""
    got = function(*Interval.variables(low, high))
    if not isinstance(got, Interval):
        got = Interval.constant(np.broadcast_to(got, low.shape[1:]))
    count, rows = low.shape
    assert got.shape == (rows,)
    for part in (got.low, got.high, got.dlow, got.dhigh):
        assert part is None or not np.any(np.isnan(part))
    dlow = np.zeros(low.shape) if got.dlow is None else got.dlow
    dhigh = np.zeros(low.shape) if got.dhigh is None else got.dhigh
    assert np.all(got.low <= got.high) and np.all(dlow <= dhigh)
    shares = [np.zeros(low.shape), np.ones(low.shape), *rng.uniform(size=(points, *low.shape))]
    shares.append(np.round(rng.uniform(size=low.shape)))
    xs = [np.clip(low + t * (high - low), low, high) for t in shares]
    values = [exactly(function(*(extended(row) for row in x))) for x in xs]
    for i, (x, value) in enumerate(zip(xs, values, strict=True)):
        for r in range(rows):
            v = value[r]
            if not abs(v) < 1e300:  # nan and inf: not defined there
                continue
            # products that underflow are not promised
            assert got.low[r] - TINY <= v <= got.high[r] + TINY, (
                r,
                x[:, r],
                low[:, r],
                high[:, r],
                v,
                got.low[r],
                got.high[r],
            )
            for other, c in zip(values[:i], xs[:i], strict=True):
                if not abs(other[r]) < 1e300:
                    continue
                least = most = v * 0
                for k in range(count):
                    step = exactly([x[k, r]])[0] - exactly([c[k, r]])[0]
                    if step != 0:
                        ends = [_times(d[k, r], step) for d in (dlow, dhigh)]
                        least, most = least + min(ends), most + max(ends)
                change = v - other[r]
                # the 50 digits of the evaluation itself
                slack = 1e-40 * (abs(v) + abs(other[r]) + 1e-300)
                assert least - slack <= change <= most + slack, (r, x[:, r], c[:, r], change, least, most)
    return got


def _times(d: float, step: Any) -> Any:
    return step * float(d) if np.isfinite(d) else (d if step > 0 else -d)


# Random expressions -------------------------------------------------------------------------------------------------


def tree(rng: np.random.Generator, depth: int) -> Function:
    """A random function of three variables."""
    if depth == 0 or rng.uniform() < 0.1:
        if rng.uniform() < 0.75:
            k = int(rng.integers(3))
            return lambda *x: x[k]
        c = float(rng.choice([0.0, 1.0, -1.0, 2.0, 0.5, 0.3, -1.7]))
        return lambda *x: x[0] * 0.0 + c
    a, b = tree(rng, depth - 1), tree(rng, depth - 1)
    c = float(rng.choice([0.0, 1.0, -1.0, 2.0, 0.7, -1.3]))
    sign = rng.choice([-1.0, 0.0, 1.0, 0.4], size=4)
    # a choice by what is not defined is not defined either: hence the terms times 0, and 0/0 for 1/0
    choices: list[Function] = [
        lambda *x: a(*x) + b(*x),
        lambda *x: a(*x) - b(*x),
        lambda *x: a(*x) * b(*x),
        lambda *x: a(*x) / b(*x) + 0.0 / b(*x),
        lambda *x: a(*x) * a(*x),
        lambda *x: c + a(*x),
        lambda *x: c - a(*x),
        lambda *x: a(*x) * c,
        lambda *x: np.full(4, c) / a(*x) + 0.0 / a(*x),
        lambda *x: a(*x) * sign,
        lambda *x: sign - a(*x),
        lambda *x: a(*x) / (c if c else 3.0),
        lambda *x: -a(*x),
        lambda *x: abs(a(*x)),
        lambda *x: a(*x) ** 2,
        lambda *x: a(*x) ** 3,
        lambda *x: a(*x) ** 4,
        lambda *x: a(*x) ** -1 + 0.0 / a(*x),
        lambda *x: a(*x) ** -2.0,
        lambda *x: a(*x) ** 0.5,
        lambda *x: a(*x) ** 1.7,
        lambda *x: a(*x) ** -0.3,
        lambda *x: 2.0 ** a(*x),
        lambda *x: 0.3 ** a(*x),
        lambda *x: namespace(*x).exp(a(*x)),
        lambda *x: namespace(*x).expm1(a(*x)),
        lambda *x: namespace(*x).log(a(*x)),
        lambda *x: namespace(*x).log1p(a(*x)),
        lambda *x: namespace(*x).log2(a(*x)),
        lambda *x: namespace(*x).sqrt(a(*x)),
        lambda *x: namespace(*x).square(a(*x)),
        lambda *x: namespace(*x).maximum(a(*x), b(*x)),
        lambda *x: namespace(*x).minimum(a(*x), c),
        lambda *x: namespace(*x).clip(a(*x), -0.5, 0.5),
        lambda *x: namespace(*x).where(a(*x) < b(*x), a(*x), c) + 0.0 * a(*x) + 0.0 * b(*x),
        lambda *x: namespace(*x).where((a(*x) > 0.2) & ~(b(*x) > 0.5), b(*x), a(*x)) + 0.0 * a(*x) + 0.0 * b(*x),
        lambda *x: namespace(*x).floor(a(*x)),
        lambda *x: namespace(*x).sum(namespace(*x).stack([a(*x), b(*x), a(*x)]), axis=0),
        lambda *x: namespace(*x).max(namespace(*x).stack([a(*x), b(*x)], axis=-1), axis=-1),
    ]
    return choices[int(rng.integers(len(choices)))]


@settings(max_examples=150, deadline=None)
@given(seed=seeds)
def test_random_expressions(seed: int) -> None:
    rng = np.random.default_rng(seed)
    low, high = boxes(rng, np.array([0.0, -1.0, 0.5]), np.array([2.0, 1.0, 3.0]), 4)
    check(tree(rng, int(rng.integers(1, 5))), low, high, rng)


# Models -------------------------------------------------------------------------------------------------------------


def _gap(s: Any, r: Any, b: Any) -> Any:
    lost = channel.packet_error(s, 1.005)
    out = convergence.gap(
        weight=0.1,
        packet_error=lost,
        pruning_ratio=r,
        pruning_error=compression.pruning_error(r, "laplace"),
        quantization_variance=compression.quantization_variance((1.0 - r) * 1e6, 1e-3, b),
        smoothness=2.0,
        weight_norm_squared=3.0,
        mask_energy=0.1,
        gradient_offset=0.7,
        gradient_slope=0.01,
        error_cap=30.0,
        sampling_variance=0.2,
    )
    return convergence.average_gradient_bound(out.total, out.contraction, 5.0, 0.1, 100.0)


CURVE = np.array([0.0, 0.2, 0.5, 0.6, 1.0]), np.array([0.0, 0.01, 0.2, 0.21, 2.0])
MODELS: dict[str, tuple[Function, list[tuple[float, float]]]] = {
    "path_gain": (lambda d: channel.path_gain(d, 1e-3, 3.2), [(1.0, 1e4)]),
    "snr": (channel.snr, [(0.01, 1.0), (0.0, 2.0), (0.1, 1.0)]),
    "rate_rayleigh": (channel.rate, [(1e3, 1e6), (0.0, 1e3)]),
    "rate_fixed": (lambda b, s: channel.rate(b, s, "none"), [(1e3, 1e6), (0.0, 1e3)]),
    "energy_per_bit": (
        lambda p, b: channel.energy_per_bit(p, channel.rate(b, 50.0 * p / b)),
        [(0.01, 1.0), (0.1, 2.0)],
    ),
    **{
        f"packet_error_{law}_{fading}": (
            lambda s, t, law=law, fading=fading: channel.packet_error(s, t, law, fading),
            [(0.0, 50.0), (0.5, 2.0)],
        )
        for law in ("waterfall", "outage", "none")
        for fading in ("rayleigh", "none")
    },
    "compute_energy": (
        lambda f, r: cost.compute_energy(cost.cycles(100, 2e5, 1.0 - r), f, 1e-26),
        [(1e6, 1e9), (0, 1)],
    ),
    "upload": (lambda b, r, p: cost.upload_energy(b, r, p) + cost.upload_delay(b, r), [(0, 1e6), (1e3, 1e6), (0, 1)]),
    "kept_parameters": (lambda r: compression.kept_parameters(r, 1000.0), [(0.0, 1.0)]),
    "channel_ratio": (compression.channel_ratio, [(0.0, 1.0)]),
    "factors": (
        lambda r: (
            compression.compute_factor(r, "mask")
            + compression.memory_factor(r, "channels")
            + compression.memory_factor(r, "mask")
        ),
        [(0.0, 1.0)],
    ),
    "payload_bits": (
        lambda r, b: compression.payload_bits((1.0 - r) * 1e4, b, unpruned=10.0, index_per_weight=14.0),
        [(0.0, 1.0), (1.0, 16.0)],
    ),
    "pruning_error_linear": (compression.pruning_error, [(0.0, 1.0)]),
    "pruning_error_laplace": (lambda r: compression.pruning_error(r, "laplace"), [(0.0, 1.0)]),
    "pruning_error_slope": (lambda r: compression.pruning_error_slope(r, "laplace"), [(0.0, 1.0)]),
    "pruning_error_l1": (compression.pruning_error_l1, [(0.0, 1.0)]),
    "quantization_variance": (lambda v, b: compression.quantization_variance(v, 1e-3, b), [(0.0, 1e6), (1.0, 32.0)]),
    "qsgd_factor": (compression.qsgd_factor, [(1.0, 1e4), (1.0, 100.0)]),
    "gap": (_gap, [(0.1, 1e3), (0.0, 0.95), (1.0, 16.0)]),
    "optimality_gap": (lambda g, a: convergence.optimality_gap(g, a, 5.0, 0.1, 100.0, 0.3), [(0.0, 3.0), (0.0, 0.9)]),
    "magnitude_distortion": (distortion.magnitude_distortion, [(0.0, 1.0)]),
    "mask_entropy": (distortion.mask_entropy, [(0.0, 1.0)]),
    "pruned_rate": (lambda r, b: distortion.rate_distortion(distortion.pruned_rate(r, b)), [(0.0, 1.0), (1.0, 8.0)]),
    "least_ratio": (distortion.least_rate_distortion_ratio, [(1.0, 8.0)]),
    "exponential_distortion": (
        lambda r: distortion.exponential_distortion(r) + distortion.exponential_distortion_upper(r),
        [(0.1, 8.0)],
    ),
    "gradient_gap": (
        lambda n, r: generalization.gradient_gap(
            samples=n, gradient_proxy=2.0, mutual_information=30.0, pruning_ratio=r, parameters=1e4, law="proportional"
        ),
        [(10.0, 1e4), (0.0, 1.0)],
    ),
    "loss_gap": (lambda i: generalization.loss_gap(2.0, i, 100.0), [(0.0, 50.0)]),
    "langevin": (lambda eta, g: generalization.langevin_information(eta, g, 0.1, 1e3), [(0.0, 1.0), (0.0, 9.0)]),
    "gaussian": (lambda tau: generalization.gaussian_information(tau, 1.0, 100.0, 1e3), [(0.1, 9.0)]),
    "exp1": (special.exp1, [(0.0, 30.0)]),
    "exp_exp1": (special.exp_exp1, [(0.0, 50.0)]),
    "exp_exp1_derivative": (lambda x: special.exp_exp1_derivative(x, 2), [(0.0, 50.0)]),
    "k0": (special.k0, [(0.0, 20.0)]),
    "k1": (special.k1, [(0.0, 20.0)]),
    "x_k1": (special.x_k1, [(0.0, 20.0)]),
    "lambertw": (special.lambertw, [(-np.exp(-1.0), 10.0)]),
    "rayleigh_rate_derivative": (lambda s: special.rayleigh_rate_derivative(s, 2), [(0.0, 100.0)]),
}


@pytest.mark.parametrize("name", MODELS)
def test_models(name: str) -> None:
    function, ranges = MODELS[name]
    rng = np.random.default_rng(len(name))
    bounds = np.array(ranges, dtype=float)
    low, high = boxes(rng, bounds[:, 0], bounds[:, 1], 12)
    check(function, low, high, rng, points=1)


def test_curve() -> None:
    rng = np.random.default_rng(0)
    low, high = boxes(rng, np.array([0.0]), np.array([1.0]), 300)
    got = distortion.curve_distortion(Interval.variables(low, high)[0], *CURVE)
    assert got.dlow is not None and got.dhigh is not None
    for t in rng.uniform(size=(20, 2)):
        x, c = (np.clip(low + s * (high - low), low, high)[0] for s in t)
        fx, fc = (distortion.curve_distortion(p, *CURVE) for p in (x, c))
        assert np.all((got.low <= fx) & (fx <= got.high))
        ends = np.sort([got.dlow[0] * (x - c), got.dhigh[0] * (x - c)], axis=0)
        assert np.all((ends[0] - 1e-15 <= fx - fc) & (fx - fc <= ends[1] + 1e-15))
    np.testing.assert_allclose(got.low, distortion.curve_distortion(low[0], *CURVE), atol=1e-14)
    np.testing.assert_allclose(got.high, distortion.curve_distortion(high[0], *CURVE), atol=1e-14)


ELEMENTARY: dict[str, tuple[Any, float, float]] = {
    "exp1": (special._EXP1, 1e-6, 500.0),
    "k0": (special._K0, 1e-6, 500.0),
    "k1": (special._K1, 1e-6, 500.0),
    "x_k0": (special._X_K0, 1e-6, 500.0),
    "x_k1": (special._X_K1, 1e-6, 500.0),
    "lambertw": (special._LAMBERTW, -np.exp(-1.0) + 1e-4, 1e6),
    "rayleigh_rate": (special._RATE, 1e-6, 1e9),
    "rayleigh_packet_error": (special._PACKET_ERROR, 1e-9, 1e4),
    **{f"stieltjes_{n}": (special._stieltjes(n), 1e-6, 1e6) for n in range(1, 5)},
    **{f"moment_{n}": (special._moment(n), 1e-6, 1e6) for n in range(1, 5)},
    "laplace_pruning_error": (compression._LAPLACE, -0.5, 1.0 - 1e-9),
    "laplace_magnitude_distortion": (distortion._DISTORTION, -0.5, 1.0 - 1e-9),
    "binary_entropy": (distortion._ENTROPY, 1e-9, 1.0 - 1e-9),
}


@pytest.mark.parametrize("name", ELEMENTARY)
def test_claimed_shapes(name: str) -> None:
    """Every function and slope goes the way it is said to, on both sides of its turn."""
    function, low, high = ELEMENTARY[name]
    assert function.name == name
    x = np.linspace(low, high, 20_001)
    if low > 0:
        x = np.unique(np.concatenate([x, np.geomspace(low, high, 20_001)]))
    for at, direction, turn in (
        (function, function.monotone, function.turn),
        (function.slope, function.slope_monotone, function.slope_turn),
    ):
        values = at(x)
        rounding = 1e-14 * np.abs(values).max() if turn is not None else function.accuracy * np.abs(values[1:])
        step = np.diff(values) * np.where(x[1:] <= (np.inf if turn is None else turn), direction, -direction)
        if turn is not None:
            step = step[(x[1:] <= turn) | (x[:-1] >= turn)]
        assert np.all(step >= -rounding)
        if turn is not None:
            beside = at(np.array([turn * (1 - 1e-4) - 1e-4, turn, turn * (1 + 1e-4) + 1e-4]))
            assert np.all(direction * (beside[1] - beside[[0, 2]]) >= 0)


def test_special_enclosures_are_tight() -> None:
    """Value and slope of a monotone function are exact hulls: no wider than the ends ask for."""
    low, high = np.array([[0.01, 0.5, 3.0]]), np.array([[0.4, 0.6, 9.0]])
    got = special.rayleigh_packet_error(Interval.variables(low, high)[0])
    np.testing.assert_allclose(got.low, special.rayleigh_packet_error(low[0]), rtol=1e-12)
    np.testing.assert_allclose(got.high, special.rayleigh_packet_error(high[0]), rtol=1e-12)
    np.testing.assert_allclose(got.dlow[0], 2 * special.k0(2 * np.sqrt(high[0])), rtol=1e-12)
    np.testing.assert_allclose(got.dhigh[0], 2 * special.k0(2 * np.sqrt(low[0])), rtol=1e-12)


def test_convergence_orders() -> None:
    """Natural enclosures shrink with the width, mean-value forms with its square."""
    center = np.array([5.0, 0.3, 6.0])
    plain, form = [], []
    for width in (1e-1, 1e-2, 1e-3):
        half = 0.5 * width * center
        low, high = (center - half)[:, None], (center + half)[:, None]
        got = _gap(*Interval.variables(low, high))
        samples = np.random.default_rng(0).uniform(low, high, (3, 4000))
        least = _gap(*samples).min()
        plain.append(least - got.low[0])
        slope = np.maximum(np.abs(got.dlow[:, 0]), np.abs(got.dhigh[:, 0]))
        bound = _gap(*center[:, None])[0] - np.sum(half * slope)
        corner = _gap(*(center - np.sign(got.dlow[:, 0]) * half)[:, None])[0]
        form.append(min(least, corner) - bound)
    assert all(p >= 0 for p in plain) and all(p >= -1e-12 for p in form)
    assert 7 < plain[0] / plain[1] < 14 and 7 < plain[1] / plain[2] < 14
    assert 70 < form[0] / form[1] < 140 and 70 < form[1] / form[2] < 140


# Edges --------------------------------------------------------------------------------------------------------------


def one(low: float, high: float) -> Interval:
    return Interval.variables(np.array([[low]]), np.array([[high]]))[0]


def ends(x: Interval) -> tuple[float, float, float, float]:
    assert x.dlow is not None and x.dhigh is not None
    return float(x.low[0]), float(x.high[0]), float(x.dlow[0, 0]), float(x.dhigh[0, 0])


INF = np.inf


@pytest.mark.parametrize(
    ("function", "box", "expected"),
    [
        (lambda x: 1.0 / x, (-1.0, 1.0), (-INF, INF, -INF, INF)),
        (lambda x: 1.0 / x, (0.0, 2.0), (0.5, INF, -INF, -0.25)),
        (lambda x: 1.0 / x, (-2.0, -0.0), (-INF, -0.5, -INF, -0.25)),
        (lambda x: 1.0 / x, (0.0, 0.0), (-INF, INF, -INF, INF)),
        (lambda x: x / 0.0, (1.0, 2.0), (-INF, INF, -INF, INF)),
        (lambda x: x * INF, (0.0, 1.0), (-INF, INF, INF, INF)),
        (lambda x: x * np.nan, (0.0, 1.0), (-INF, INF, -INF, INF)),
        (lambda x: x + np.nan, (0.0, 1.0), (-INF, INF, 1.0, 1.0)),
        (lambda x: x * (1.0 / x), (0.0, 1.0), (0.0, INF, -INF, INF)),
        (np.log, (0.0, 1.0), (-INF, 0.0, 1.0, INF)),
        (np.log, (-1.0, 1.0), (-INF, 0.0, -INF, INF)),
        (np.log, (-2.0, -1.0), (-INF, INF, -INF, INF)),
        (np.log1p, (-1.0, 0.0), (-INF, 0.0, 1.0, INF)),
        (np.sqrt, (0.0, 4.0), (0.0, 2.0, 0.25, INF)),
        (np.sqrt, (-1.0, 4.0), (0.0, 2.0, -INF, INF)),
        (lambda x: x**0.5, (-4.0, -1.0), (-INF, INF, -INF, INF)),
        (lambda x: x**2, (-1.0, 2.0), (0.0, 4.0, -2.0, 4.0)),
        (lambda x: x**3, (-1.0, 2.0), (-1.0, 8.0, 0.0, 12.0)),
        (lambda x: x**-2, (1.0, 2.0), (0.25, 1.0, -4.0, -0.125)),
        (lambda x: x * x, (-1.0, 2.0), (0.0, 4.0, -2.0, 4.0)),
        (abs, (-1.0, 2.0), (0.0, 2.0, -1.0, 1.0)),
        (abs, (0.0, 2.0), (0.0, 2.0, 1.0, 1.0)),
        (lambda x: np.maximum(x, 0.0), (-1.0, 2.0), (0.0, 2.0, 0.0, 1.0)),
        (lambda x: np.minimum(x, 3.0), (-1.0, 2.0), (-1.0, 2.0, 1.0, 1.0)),
        (lambda x: np.clip(x, 0.0, 1.0), (-1.0, 2.0), (0.0, 1.0, 0.0, 1.0)),
        (np.floor, (0.5, 2.5), (0.0, 2.0, 0.0, INF)),
        (np.floor, (0.5, 0.9), (0.0, 0.0, 0.0, 0.0)),
        (np.ceil, (0.5, 2.5), (1.0, 3.0, 0.0, INF)),
        (lambda x: np.round(x), (0.6, 1.4), (1.0, 1.0, 0.0, 0.0)),
        (np.sign, (-1.0, 1.0), (-1.0, 1.0, 0.0, INF)),
        (np.tanh, (0.0, 100.0), (0.0, 1.0, 0.0, 1.0)),
        (lambda x: 2.0**x, (1.0, 2.0), (2.0, 4.0, 2.0 * np.log(2.0), 4.0 * np.log(2.0))),
        (lambda x: 0.5**x, (1.0, 2.0), (0.25, 0.5, -0.5 * np.log(2.0), -0.25 * np.log(2.0))),
        (lambda x: np.where(x < 1.0, x, 5.0), (0.0, 2.0), (0.0, 5.0, -INF, INF)),
        (lambda x: np.where(x < 3.0, x, 5.0), (0.0, 2.0), (0.0, 2.0, 1.0, 1.0)),
        (lambda x: np.where(x >= 3.0, x, 2.0 * x), (0.0, 2.0), (0.0, 4.0, 2.0, 2.0)),
        (special.rayleigh_packet_error, (0.0, INF), (0.0, 1.0, 0.0, INF)),
        (special.rayleigh_rate, (-2.0, -1.0), (-INF, INF, -INF, INF)),
        (lambda r: compression.pruning_error(r, "laplace"), (0.0, 1.0), (0.0, 1.0, 0.0, INF)),
        (distortion.mask_entropy, (0.0, 1.0), (0.0, 1.0, -INF, INF)),
    ],
)
def test_edges(function: Function, box: tuple[float, float], expected: tuple[float, ...]) -> None:
    got = ends(function(one(*box)))
    np.testing.assert_allclose(got, expected, rtol=1e-9)
    assert got[0] <= expected[0] and expected[1] <= got[1]


def test_unknown_elsewhere_stays_unknown_here_only() -> None:
    """A step along one coordinate says nothing about the others."""
    x, y = Interval.variables(np.array([[0.0], [1.0]]), np.array([[2.0], [2.0]]))
    got = intervals.where(x < 1.0, 3.0 * y, y)
    np.testing.assert_allclose(got.dlow[:, 0], [-INF, 1.0])
    np.testing.assert_allclose(got.dhigh[:, 0], [INF, 3.0])
    got = intervals.floor(x) + y
    np.testing.assert_allclose([got.dlow[1, 0], got.dhigh[1, 0]], [1.0, 1.0])
    assert got.derivative(1) is not None and x.derivative(1) is None


def test_numpy_interplay() -> None:
    rng = np.random.default_rng(1)
    low, high = boxes(rng, np.array([0.5]), np.array([3.0]), 4)
    x = Interval.variables(low, high)[0]
    a = np.array([1.0, -2.0, 0.0, 3.0])
    same: list[tuple[Function, Function]] = [
        (lambda: a * x, lambda: x * a),
        (lambda: a + x, lambda: x + a),
        (lambda: a - x, lambda: -(x - a)),
        (lambda: np.float64(2) - x, lambda: 2 - x),
        (lambda: np.float64(2) / x, lambda: 2.0 / x),
        (lambda: np.array([1, 2, 3, 4]) / x, lambda: np.array([1.0, 2.0, 3.0, 4.0]) * (1.0 / x)),
        (lambda: np.float64(2) ** x, lambda: 2**x),
        (lambda: np.exp(x), lambda: intervals.exp(x)),
        (lambda: np.maximum(a, x), lambda: np.maximum(x, a)),
        (lambda: np.where(a > 0, x, 0.0), lambda: x * (a > 0)),
        (lambda: np.where(a < x, x, a), lambda: np.maximum(x, a)),
        (lambda: np.where(np.array([True, False, True, False]) & (x > 0), x, 0.0), lambda: x * np.array([1, 0, 1, 0])),
        (lambda: np.clip(x, 1.0, None), lambda: np.maximum(x, 1.0)),
        (lambda: np.sum(x, axis=-1), lambda: intervals.sum(x)),
        (lambda: np.add.reduce(x), lambda: intervals.sum(x)),
        (lambda: np.mean(x[None] * abs(a)[:, None], axis=(0, 1)), lambda: np.sum(x) * abs(a).mean() / 4.0),
        (lambda: np.max(np.stack([x, x + 1.0]), axis=0), lambda: x + 1.0),
        (lambda: np.min(np.concatenate([x, x + 9.0])), lambda: np.min(x)),
        (lambda: np.square(x), lambda: x * x),
        (lambda: np.reciprocal(x), lambda: x**-1),
        (lambda: x.reshape(2, 2)[1], lambda: x[2:]),
        (lambda: np.broadcast_to(x, (3, 4))[2], lambda: x),
        (lambda: x + np.zeros_like(x), lambda: x * np.ones_like(x)),
        (lambda: np.full_like(x, 2.0) * x, lambda: x + x),
    ]
    for index, (left, right) in enumerate(same):
        p, q = left(), right()
        assert isinstance(p, Interval), index
        for name in ("low", "high", "dlow", "dhigh"):
            np.testing.assert_allclose(getattr(p, name), getattr(q, name), rtol=1e-14, err_msg=f"{index} {name}")
    assert np.shape(x) == (4,) and np.ndim(x) == 1 and np.size(x) == 4 and len(x) == 4
    assert isinstance(a < x, Mask)


def test_thin_constants_are_plain() -> None:
    c = Interval.constant([1.0, -2.0])
    x = Interval.variables(np.array([[1.0, 1.0]]), np.array([[2.0, 2.0]]))[0]
    got = c * x
    np.testing.assert_allclose(got.low, [1.0, -4.0])
    np.testing.assert_allclose(got.dhigh[0], [1.0, -2.0])
    assert c.dlow is None and (c + 1.0).dlow is None and (x * 0.0).dlow is None
    assert np.all((x * 0.0).low == 0.0)
    unknown = Interval.constant([1.0, np.nan])
    assert unknown.low[1] == -INF and unknown.high[1] == INF


def test_errors_name_what_is_wrong() -> None:
    x = one(0.0, 1.0)
    with pytest.raises(InputError, match=r"xp\.sin"):
        np.sin(x)
    with pytest.raises(InputError, match=r"xp\.cumsum"):
        intervals.cumsum(x)
    assert not hasattr(intervals, "cumsum")
    with pytest.raises(InputError, match="not decided"):
        bool(x < 0.5)
    assert bool(x < 2.0) and not bool(x > 2.0)
    with pytest.raises(InputError, match="no array of numbers"):
        np.asarray(x)
    with pytest.raises(InputError, match="no number"):
        float(x)
    with pytest.raises(InputError, match=r"low 2\.0 is above high 1\.0"):
        one(2.0, 1.0)
    with pytest.raises(InputError, match="1 and in 2 coordinates"):
        x + Interval.variables(np.zeros((2, 1)), np.ones((2, 1)))[0]
    with pytest.raises(TypeError):
        x + "1"


def test_given_derivatives() -> None:
    x = Interval([0.0], [1.0], [[2.0], [0.0]], [[3.0], [0.0]])
    y = 2.0 * x
    assert y.coordinates == 2
    np.testing.assert_allclose([y.dlow[:, 0], y.dhigh[:, 0]], [[4.0, 0.0], [6.0, 0.0]])
    with pytest.raises(InputError, match="go together"):
        Interval([0.0], [1.0], [[2.0]])


def test_ends_of_fifty_digits() -> None:
    """The same enclosures at 50 digits: they hold what float64 cannot tell apart, and hold in float64's."""
    low, high = np.array([[1.0, 0.0], [0.3, 0.2]]), np.array([[1.1, 2.0], [0.4, 0.2]])

    def function(x: Any, y: Any) -> Any:
        xp = namespace(x, y)
        out = 3.0 * channel.packet_error(x + 0.1, 1.005) + x / xp.log1p(y) - xp.where(x < y, x, y) ** 2
        return out + 2.0**y - xp.log2(y) + abs(x - 0.5) + xp.sum(xp.stack([x, y - x]), axis=0) * xp.maximum(x, y)

    sharp = function(*Interval.variables(extended(low), extended(high)))
    plain = function(*Interval.variables(low, high))
    value = function(extended(low[0]), extended(low[1])).values
    for r in range(2):
        assert plain.low[r] <= sharp.low.values[r] <= value[r] <= sharp.high.values[r] <= plain.high[r]
        for k in range(2):
            assert plain.dlow[k, r] <= sharp.dlow.values[k, r] <= sharp.dhigh.values[k, r] <= plain.dhigh[k, r]
    thin = extended([[0.7]]), extended([[1.3]])
    got = function(*(Interval.variables(t, t)[0] for t in thin))
    assert (got.high - got.low).values[0] < 1e-45


# Whole problems -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", ["gap", "bound"])
def test_ltfl_evaluates_on_boxes(objective: Any) -> None:
    """Three variables of every device, boxes by devices, against NumPy at points inside."""
    system = LTFL.sample(devices=4, seed=3)
    problem = LTFL(system, objective=objective)
    rng = np.random.default_rng(0)
    rows, devices = 50, 4
    limits = {v.name: (v.lower, v.upper) for v in problem.variables}
    low, high = {}, {}
    for name, (least, most) in limits.items():
        a, b = np.sort(rng.uniform(size=(2, rows, devices)), axis=0)
        low[name], high[name] = least + a * (most - least), least + b * (most - least)
    names = list(limits)
    flat = Interval.variables(np.stack([low[n] for n in names]), np.stack([high[n] for n in names]))
    got = problem.evaluate(Decision(dict(zip(names, flat, strict=True))))
    for share in (0.0, 0.3, 1.0):
        at = problem.evaluate(Decision({n: low[n] + share * (high[n] - low[n]) for n in names}))
        pairs = [(got.objective, at.objective)]
        pairs += [(got.slack[n], at.slack[n]) for n in got.slack] + [(got.parts[n], at.parts[n]) for n in got.parts]
        pairs += [(got.quantities[n], at.quantities[n]) for n in got.quantities]
        for box, value in pairs:
            if isinstance(box, Interval):
                slop = 1e-12 * np.abs(value)
                assert np.all((box.low <= value + slop) & (value - slop <= box.high))
                assert box.shape == np.shape(value)
            else:
                np.testing.assert_allclose(np.broadcast_to(box, np.shape(value)), value)


def test_decision_keeps_intervals() -> None:
    x = Interval.constant(np.zeros((5, 3)), np.ones((5, 3)))
    decision = Decision(pruning_ratio=x, bits=[8.0, 8.0, 8.0])
    assert decision.devices == 3 and decision["pruning_ratio"] is x
    assert "Interval(5, 3)" in repr(decision)
    assert decision == decision.with_(bits=[8.0, 8.0, 8.0])
    assert decision != decision.with_(pruning_ratio=x + 1.0)

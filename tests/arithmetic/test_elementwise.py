"""Arrays of multiprecision numbers and of expressions, against NumPy and mpmath."""

import math

import mpmath
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import jointopt as jo
from jointopt.arithmetic.elementwise import Elementwise, extended, symbols
from jointopt.decision import Decision
from jointopt.errors import InputError
from jointopt.models import special
from jointopt.problems import DESIGNS

X = np.array([0.1, 0.5, 1.0, 2.0, 3.5])
Y = np.array([3.0, 0.25, 1.0, 7.0, 2.0])

FUNCTIONS = {
    "operators": lambda x, y: (2.0 * x + y / 3.0 - x * y) / (1.0 + x) - (-y),
    "reflected": lambda x, y: 1.0 / x + 2.0**y - (1.0 - x) ** 2,
    "elementary": lambda x, y: np.exp(-x) + np.expm1(x) + np.log(y) + np.log1p(x) + np.sqrt(x) + np.log2(y),
    "kinks": lambda x, y: np.maximum(x, y) - np.minimum(x, 1.0) + abs(x - y) + np.clip(y, 0.5, 2.0),
    "choice": lambda x, y: np.where(x > y, x, 2.0 * y) + np.where((x < 1.0) | ~(y >= 2.0), 1.0, 0.0),
    "numpy first": lambda x, y: X * x + np.float64(2.0) * y,
    "sums": lambda x, y: np.sum(x * y, axis=-1) + x.sum() + np.mean(y) + np.max(x) - np.min(y),
    "shapes": lambda x, y: np.sum(x[..., None] * y, axis=0) + np.concatenate([x[:2], y[2:]]),
    "stack": lambda x, y: np.stack([x, y]).sum(axis=0),
    "rounding": lambda x, y: np.floor(x) + np.round(y * 1.3) + np.ceil(y),
    "filled": lambda x, y: np.zeros_like(x) + np.ones_like(y) + np.full_like(x, 0.5),
    "square": lambda x, y: np.square(x) @ y,
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_extended_arrays_follow_numpy(name):
    function = FUNCTIONS[name]
    expected = function(X, Y)
    found = function(extended(X), extended(Y))
    assert isinstance(found, Elementwise)
    assert np.shape(found) == np.shape(expected)
    np.testing.assert_allclose(np.asarray(found), expected, rtol=1e-14)


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_extended_arithmetic_is_exact_to_its_digits(a, b):
    x, y = extended(a), extended(b)
    with mpmath.workdps(60):
        exact = (mpmath.mpf(a) + mpmath.mpf(b)) / mpmath.mpf(b)
        assert abs(mpmath.mpf(((x + y) / y).item()) - exact) <= mpmath.mpf(10) ** -48 * (1 + abs(exact))


def test_digits_beyond_floats_are_kept():
    x = extended([1.0])
    assert np.asarray((x + 1e-30) - x)[0] == pytest.approx(1e-30, rel=1e-15)
    assert np.asarray((extended([1.0], 20) + 1e-30) - 1.0)[0] == 0.0
    assert mpmath.mp.dps == 15


def test_extended_numbers_have_the_infinities_of_floats():
    x = extended([0.0, 1.0, -1.0, math.inf, math.nan])
    with np.errstate(all="ignore"):
        for function in (
            lambda v: 1.0 / v,
            lambda v: v / v,
            np.log,
            np.sqrt,
            np.log1p,
            np.exp,
            lambda v: v**-1,
            np.isfinite,
        ):
            np.testing.assert_array_equal(np.asarray(function(x)), function(np.asarray(x)))


@pytest.mark.parametrize(
    "name", ["exp1", "exp_exp1", "k0", "k1", "x_k1", "lambertw", "rayleigh_rate", "rayleigh_packet_error"]
)
def test_special_functions_agree_with_the_library(name):
    x = np.array([0.0, 1e-300, 1e-12, 1e-3, 0.3, 1.0, 5.0, 60.0, 600.0, 1e12, np.inf, np.nan])
    expected = getattr(special, name)(x)
    found = np.asarray(getattr(special, name)(extended(x)))
    np.testing.assert_allclose(found, expected, rtol=1e-13, atol=0.0)


def test_special_functions_hold_their_digits():
    # e^x E1(x) at 1/s and the waterfall's mean, from series summed apart
    with mpmath.workdps(80):
        rate = mpmath.exp(10) * mpmath.e1(10) / mpmath.log(2)
        lost = 1 - 2 * mpmath.mpf(10) ** -10 * mpmath.besselk(1, 2 * mpmath.mpf(10) ** -10)
        tenth, tiny = extended([1.0]) / 10.0, extended([1.0]) / 1e20
        assert abs(mpmath.mpf(special.rayleigh_rate(tenth).values[0]) / rate - 1) < mpmath.mpf(10) ** -45
        assert abs(mpmath.mpf(special.rayleigh_packet_error(tiny).values[0]) / lost - 1) < mpmath.mpf(10) ** -45


def both(problem, decision):
    plain = problem.evaluate(decision)
    exact = problem.evaluate(Decision({name: extended(value) for name, value in decision.items()}))
    assert float(exact.objective) == pytest.approx(float(plain.objective), rel=1e-12)
    for group in ("parts", "slack", "quantities"):
        for name, value in getattr(plain, group).items():
            found = np.asarray(getattr(exact, group)[name])
            size = np.asarray(plain.scale[name]) if group == "slack" else np.abs(value)
            assert found.shape == np.shape(value), name
            assert np.all(np.abs(found - value) <= 1e-12 * np.maximum(size, np.abs(value))), name
    assert float(exact.violation()) == pytest.approx(float(plain.violation()), abs=1e-12)


@pytest.mark.parametrize("error", ["linear", "laplace"])
@pytest.mark.parametrize(
    ("fading", "law"),
    [("rayleigh", "waterfall"), ("rayleigh", "outage"), ("rayleigh", "none"), ("none", "waterfall"), ("none", "none")],
)
def test_ltfl_in_fifty_digits(fading, law, error):
    system = jo.systems.ltfl(3, 0)
    system = system.replace(
        radio=system.radio.replace(fading=fading, packet_error=law), bound=system.bound.replace(pruning_error=error)
    )
    problem = DESIGNS["ltfl"](system)
    both(problem, Decision(pruning_ratio=[0.01, 0.2, 0.7], bits=[4.0, 8.0, 12.5], power=system.devices.power_max))


def test_feel_in_fifty_digits():
    problem = DESIGNS["feel"](jo.systems.feel(3, 0))
    high = {v.name: v.upper for v in problem.variables}
    for selected in ([1.0, 0.0, 1.0], [1.0, 1.0, 1.0]):
        both(
            problem,
            Decision(
                selected=selected,
                pruning_ratio=[0.1, 0.3, 0.0],
                bandwidth=high["bandwidth"] / 3.0,
                frequency=high["frequency"] * 0.9,
                power=high["power"] * 0.5,
            ),
        )


@pytest.mark.parametrize("design", ["coinference", "coinference-layers"])
def test_coinference_in_fifty_digits(design):
    problem = DESIGNS[design](DESIGNS[design].sample(seed=0))
    point = {v.name: 0.6 * v.lower + 0.4 * v.upper for v in problem.variables}
    point["split"] = np.rint(point["split"])
    both(problem, Decision(point))


def test_kinds_do_not_mix():
    with pytest.raises(InputError, match="20 digits"):
        extended([1.0], 20) + extended([1.0])
    with pytest.raises(InputError, match="digits: 3"):
        extended([1.0], 3)
    with pytest.raises(InputError, match="expected numbers"):
        extended(["a"])


def test_casadi_expressions_follow_numpy():
    casadi = pytest.importorskip("casadi")
    x, y = symbols("x", X.size), symbols("y", Y.size)
    for name, function in FUNCTIONS.items():
        expected = np.atleast_1d(function(X, Y))
        found = casadi.vertcat(*np.atleast_1d(function(x, y).values).ravel())
        evaluate = casadi.Function("f", [casadi.vertcat(*x.values), casadi.vertcat(*y.values)], [found])
        np.testing.assert_allclose(np.asarray(evaluate(X, Y)).ravel(), expected.ravel(), rtol=1e-13, err_msg=name)


def test_casadi_names_what_it_lacks():
    pytest.importorskip("casadi")
    x = symbols("x", 2)
    with pytest.raises(InputError, match="rayleigh_rate: CasADi"):
        special.rayleigh_rate(x)
    with pytest.raises(InputError, match="no value"):
        np.asarray(x)
    with pytest.raises(InputError, match="arctan: CasADi"):
        np.arctan(x)

from __future__ import annotations

import math
import subprocess
import sys
import warnings
from collections.abc import Callable
from typing import Any

import mpmath as mp  # type: ignore[import-untyped]
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jointopt.models import special

BRANCH = -math.exp(-1.0)
NAMES = special.__all__
FUNCTIONS: dict[str, Callable[[Any], Any]] = {name: getattr(special, name) for name in NAMES}
# where each function changes its formula
SWITCHES = {
    "exp1": (1.0,),
    "exp_exp1": (1.0,),
    "exp_exp1_derivative": (1.0,),
    "k0": (2.0,),
    "k1": (2.0,),
    "lambertw": (BRANCH + 1e-3,),
    "rayleigh_packet_error": (1.0,),
    "rayleigh_rate": (1.0,),
    "rayleigh_rate_derivative": (1.0,),
    "x_k1": (2.0,),
}


@pytest.fixture(autouse=True)
def _no_warnings() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        yield


@pytest.fixture(autouse=True)
def _digits() -> Any:
    with mp.workdps(60):
        yield


@pytest.fixture(scope="module")
def torch() -> Any:
    return pytest.importorskip("torch")


def decades(low: float, high: float, count: int, *switches: float) -> np.ndarray:
    """Points spread over the decades, and both sides of each switch."""
    near = [[0.97 * s, np.nextafter(s, -1), s, np.nextafter(s, 1e9), 1.03 * s] for s in switches]
    return np.concatenate([np.logspace(low, high, count), *map(np.asarray, near)])


def relative_error(values: Any, exact: Callable[[Any], Any], points: np.ndarray) -> float:
    assert np.all(np.isfinite(values))
    return max(
        abs(float((mp.mpf(float(v)) - (e := exact(mp.mpf(float(p))))) / e)) for v, p in zip(values, points, strict=True)
    )


def scaled_e1(x: Any) -> Any:
    return mp.exp(x) * mp.e1(x)


def rate_derivative(order: int) -> Callable[[Any], Any]:
    """(-1)^(n-1) (n-1)! E[(o/(1+so))^n]/ln 2, by the confluent hypergeometric function U."""

    def exact(s: Any) -> Any:
        with mp.workdps(120):
            moment = mp.factorial(order) * s**-order * mp.hyperu(order, 0, 1 / s)
        return (-1) ** (order - 1) * mp.factorial(order - 1) * moment / mp.log(2)

    return exact


def scaled_e1_derivative(order: int) -> Callable[[Any], Any]:
    return lambda x: (-1) ** order * mp.factorial(order) * x**-order * mp.exp(x) * mp.expint(order + 1, x)


def packet_error(x: Any) -> Any:
    y = 2 * mp.sqrt(x)
    return 1 - y * mp.besselk(1, y)


def test_golden_values() -> None:
    q = special.rayleigh_packet_error(np.array([1e-3, 1e-2, 1e-1, 1.0]))
    np.testing.assert_allclose(q, [0.00675745, 0.0448055, 0.233433, 0.720268], rtol=2e-6)
    rate = special.rayleigh_rate(np.array([0.1, 1.0, 10.0, 100.0]))
    np.testing.assert_allclose(rate, [0.132098, 0.860347, 2.906515, 5.884048], rtol=2e-6)
    assert special.lambertw(1.0) == pytest.approx(0.5671432904097838, rel=1e-15)
    assert special.exp1(1.0) == pytest.approx(0.21938393439552026, rel=2e-15)
    assert special.k0(1.0) == pytest.approx(0.42102443824070834, rel=2e-15)
    assert special.k1(1.0) == pytest.approx(0.6019072301972346, rel=2e-15)


def test_rayleigh_means_against_quadrature() -> None:
    """The defining expectations, not the closed forms."""
    for v in (0.05, 0.7, 3.0, 40.0):
        with mp.workdps(20):
            rate = mp.quad(lambda o, s=v: mp.exp(-o) * mp.log(1 + s * o, 2), [0, 1, 5, 20, mp.inf])
            q = mp.quad(lambda o, x=v: mp.exp(-o) * -mp.expm1(-x / o), [0, 0.1, 1, 5, 20, mp.inf])
        assert special.rayleigh_rate(v) == pytest.approx(float(rate), rel=1e-10)
        assert special.rayleigh_packet_error(v) == pytest.approx(float(q), rel=1e-10)


@pytest.mark.parametrize(
    ("name", "points", "exact", "tolerance"),
    [
        ("rayleigh_rate", decades(-12, 12, 150, 2e-3, 1.0), lambda s: scaled_e1(1 / s) / mp.log(2), 2e-15),
        (
            "rayleigh_rate",
            np.array([1e-300, 1e-100, 1e100, 1e300]),
            lambda s: scaled_e1(1 / s) / mp.log(2),
            2e-15,
        ),
        ("rayleigh_packet_error", decades(-15, 4, 150, 1e-9, 1.0), packet_error, 2e-15),
        ("exp_exp1", decades(-12, 12, 150, 1.0, 50.0), scaled_e1, 2e-15),
        ("exp1", decades(-12, 2.8, 80, 1.0), mp.e1, 4e-15),
        ("k0", decades(-12, 2.8, 80, 2.0), lambda x: mp.besselk(0, x), 4e-15),
        ("k1", decades(-12, 2.8, 80, 2.0), lambda x: mp.besselk(1, x), 4e-15),
        ("x_k1", decades(-12, 2.8, 80, 2.0), lambda x: x * mp.besselk(1, x), 4e-15),
        ("lambertw", decades(-12, 300, 80), lambda x: mp.lambertw(x).real, 2e-15),
        ("lambertw", -np.logspace(-12, -0.5, 60), lambda x: mp.lambertw(x).real, 2e-15),
        ("lambertw", BRANCH + decades(-15, -1, 60, 1e-3), lambda x: mp.lambertw(x).real, 4e-15),
    ],
)
def test_relative_accuracy(name: str, points: np.ndarray, exact: Callable[[Any], Any], tolerance: float) -> None:
    assert relative_error(FUNCTIONS[name](points), exact, points) < tolerance


@pytest.mark.parametrize("order", [1, 2, 3])
def test_derivatives_are_accurate(order: int) -> None:
    tolerance = {1: 2e-15, 2: 2e-14, 3: 1e-13}[order]
    s = decades(-6, 9, 22, 0.5, 1.0)
    assert relative_error(special.rayleigh_rate_derivative(s, order), rate_derivative(order), s) < tolerance
    x = decades(-6, 5, 22, 1.0, 2.0)
    assert relative_error(special.exp_exp1_derivative(x, order), scaled_e1_derivative(order), x) < tolerance


def test_torch_slopes_are_accurate(torch: Any) -> None:
    """Where finite differences see nothing: far decades, where the plain formulas cancel."""

    def slope(name: str, points: np.ndarray) -> np.ndarray:
        x = torch.tensor(points, requires_grad=True)
        (grad,) = torch.autograd.grad(FUNCTIONS[name](x).sum(), x)
        return np.asarray(grad)

    s = decades(-6, 9, 40, 1.0)
    assert relative_error(slope("rayleigh_rate", s), rate_derivative(1), s) < 2e-15
    x = decades(-6, 5, 40, 1.0)
    assert relative_error(slope("exp_exp1", x), scaled_e1_derivative(1), x) < 2e-15
    x = decades(-15, 4, 40, 1.0)
    assert relative_error(slope("rayleigh_packet_error", x), lambda v: 2 * mp.besselk(0, 2 * mp.sqrt(v)), x) < 1e-13
    x = decades(-12, 2.5, 40, 2.0)
    assert relative_error(slope("x_k1", x), lambda v: -v * mp.besselk(0, v), x) < 4e-15
    assert relative_error(slope("k0", x), lambda v: -mp.besselk(1, v), x) < 4e-15
    assert relative_error(slope("k1", x), lambda v: -mp.besselk(0, v) - mp.besselk(1, v) / v, x) < 4e-15
    assert relative_error(slope("exp1", x), lambda v: -mp.exp(-v) / v, x) < 4e-15
    x = np.concatenate([decades(-12, 300, 30), BRANCH + np.logspace(-6, -0.5, 30)])
    assert relative_error(slope("lambertw", x), lambda v: 1 / (v + mp.exp(mp.lambertw(v).real)), x) < 1e-12


def test_limits_and_invalid_arguments() -> None:
    at_zero = {
        **dict.fromkeys(("exp1", "exp_exp1", "k0", "k1"), math.inf),
        **dict.fromkeys(("lambertw", "rayleigh_packet_error", "rayleigh_rate"), 0.0),
        "exp_exp1_derivative": -math.inf,
        "rayleigh_rate_derivative": 1 / math.log(2),
        "x_k1": 1.0,
    }
    at_infinity = {
        **dict.fromkeys(NAMES, 0.0),
        **{"rayleigh_packet_error": 1.0, "rayleigh_rate": math.inf, "lambertw": math.inf},
    }
    below = [-1.0, np.nextafter(BRANCH, -1.0)]
    for name, function in FUNCTIONS.items():
        np.testing.assert_array_equal(function([0.0, -0.0, math.inf]), [at_zero[name]] * 2 + [at_infinity[name]])
        outside = below if name == "lambertw" else [*below, -1e-300]
        assert np.isnan(function([*outside, math.nan, -math.inf])).all(), name
        assert np.isfinite(function(np.array([1e-290, 1e-3, 1.0, 1e3, 1e100, 1e150]))).all(), name
    assert special.lambertw(BRANCH) == -1.0
    assert special.rayleigh_packet_error(1e6) == 1.0  # K1 underflows


def test_types_and_shapes(torch: Any) -> None:
    for function in FUNCTIONS.values():
        assert type(function(0.5)) is np.float64
        assert type(function(2)) is np.float64
        grid = np.linspace(0.2, 3.0, 12).reshape(3, 4)
        values = function(grid.T)
        assert values.dtype == np.float64
        assert values.shape == (4, 3)
        assert values[1, 2] == function(grid[2, 1])
        assert function(np.empty((0, 2))).shape == (0, 2)
        assert function(torch.tensor(0.5, dtype=torch.float64)).shape == ()
        assert function(torch.ones(2, dtype=torch.float32)).dtype == torch.float32
        assert function(torch.ones(2, dtype=torch.int64)).dtype == torch.float64


def test_blocks_join_up() -> None:
    """Longer than one block, and both branches in most blocks."""
    x = np.random.default_rng(0).uniform(0.5, 1.5, 40_000)
    for name, function in FUNCTIONS.items():
        values, pick = function(x), np.arange(0, x.size, 611)
        np.testing.assert_array_equal(values[pick], [function(v) for v in x[pick]], err_msg=name)


@pytest.mark.parametrize("name", NAMES)
def test_continuous_at_switches(name: str) -> None:
    for s in SWITCHES[name]:
        below, above = FUNCTIONS[name](np.array([s, np.nextafter(s, 9.0)]))
        assert abs(below - above) <= 1e-11 * abs(below)
    assert FUNCTIONS[name](1.0) != FUNCTIONS[name](1.1)


@pytest.mark.parametrize("name", NAMES)
def test_numpy_equals_torch(name: str, torch: Any) -> None:
    x = np.logspace(-10, 5, 60)
    values = FUNCTIONS[name](torch.tensor(x))
    assert isinstance(values, torch.Tensor)
    np.testing.assert_array_equal(values.numpy(), FUNCTIONS[name](x))


@pytest.mark.parametrize("name", NAMES)
def test_gradcheck_and_gradgradcheck(name: str, torch: Any) -> None:
    points = [0.1, 0.45, 0.55, 1.9, 2.1, 6.0]
    points += [near for switch in SWITCHES[name] for near in (switch * 0.999, switch, switch * 1.001)]
    if name == "lambertw":
        points += [-0.3, -0.1, 0.0]
    if name.startswith("rayleigh_rate"):
        points += [1e-4, 2e-3]
    x = torch.tensor(points, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(FUNCTIONS[name], (x,), rtol=1e-4, atol=1e-7)
    assert torch.autograd.gradcheck(FUNCTIONS[name], (x,), rtol=1e-5, atol=1e-7, check_forward_ad=True)


@pytest.mark.parametrize("name", NAMES)
def test_functional_transforms_equal_loops(name: str, torch: Any) -> None:
    function, func = FUNCTIONS[name], torch.func
    x = torch.linspace(0.3, 3.0, 12, dtype=torch.float64).reshape(3, 4)
    for dim in (0, 1):
        rows = torch.stack([function(row).exp() for row in x.unbind(dim)], dim)
        torch.testing.assert_close(func.vmap(lambda v: function(v).exp(), dim, dim)(x), rows, rtol=0, atol=0)

    def plain(value: Any, order: int) -> Any:
        leaf = value.clone().requires_grad_()
        out = function(leaf)
        for _ in range(order):
            (out,) = torch.autograd.grad(out, leaf, create_graph=True)
        return out.detach()

    once, twice = func.grad(function), func.grad(func.grad(function))
    jvp = lambda v: func.jvp(function, (v,), (torch.ones_like(v),))[1]  # noqa: E731
    flat = x.reshape(-1)
    first = torch.stack([plain(v, 1) for v in flat])
    second = torch.stack([plain(v, 2) for v in flat])
    torch.testing.assert_close(func.vmap(once)(flat), first, rtol=1e-14, atol=0)
    torch.testing.assert_close(func.vmap(jvp)(flat), first, rtol=1e-14, atol=0)
    torch.testing.assert_close(func.vmap(twice)(flat), second, rtol=1e-14, atol=0)
    hessian = func.hessian(lambda v: function(v).sum())(flat)
    torch.testing.assert_close(hessian, torch.diag(second), rtol=1e-14, atol=0)


@given(
    st.floats(-300, 300).map(lambda e: 10.0**e),
    st.floats(1e-6, 10.0),
    st.sampled_from(["rayleigh_rate", "rayleigh_packet_error", "lambertw"]),
)
def test_increasing(x: float, step: float, name: str) -> None:
    low, high = FUNCTIONS[name](np.array([x, x * (1 + step)]))
    assert 0 <= low < high or (name == "rayleigh_packet_error" and x > 30 and 1 - 1e-4 < low <= high <= 1)


@given(
    st.floats(-290, 2.5).map(lambda e: 10.0**e),
    st.floats(1e-6, 10.0),
    st.sampled_from(["k0", "k1", "x_k1", "exp1", "exp_exp1", "rayleigh_rate_derivative"]),
)
def test_decreasing(x: float, step: float, name: str) -> None:
    low, high = FUNCTIONS[name](np.array([x, x * (1 + step)]))
    # x*K1(x) and the slope of the rate are flat to the last bit near 0, and to a few bits before that
    flat = name in ("x_k1", "rayleigh_rate_derivative") and x < 1e-4
    assert low > high >= 0 or low == high == 0 or (flat and low == pytest.approx(high, rel=1e-14))


@given(st.floats(0, 1e300), st.floats(0, 1e8))
def test_bounds(s: float, x: float) -> None:
    """Jensen: the mean rate is below log2(1+s), and above half of it (Alzer): e^z E1(z) > ln(1+2/z)/2."""
    rate, cap = special.rayleigh_rate(s), math.log1p(s) / math.log(2)
    assert 0.5 * math.log1p(2 * s) / math.log(2) * (1 - 1e-14) <= rate <= cap * (1 + 1e-14)
    assert 0 <= special.rayleigh_packet_error(x) <= 1


def test_import_leaves_torch_alone() -> None:
    code = "import sys, jointopt.models.special as s; s.rayleigh_rate(1.0); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

"""The special functions that torch lacks or cannot differentiate, and the two fading means built on them.

Every function is elementwise and keeps the shape of its argument. A torch tensor gives a tensor (same device
and floating dtype, computed in float64 on the CPU), differentiable to any order by `backward` and by
`torch.func.grad`, `jvp` and `vmap`. An array with a namespace of its own (`jointopt.arithmetic`) is asked for the
function itself, by its method ``special``, which is told the function's name and shape. Anything else gives NumPy
float64. torch is imported only once a tensor is met.

Nothing is validated here: an argument outside the domain, or nan, gives nan without a warning.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.special as sc
from array_api_compat import is_torch_array

from jointopt.models._array import is_foreign, namespace

__all__ = [
    "exp1",
    "exp_exp1",
    "exp_exp1_derivative",
    "k0",
    "k1",
    "lambertw",
    "rayleigh_packet_error",
    "rayleigh_rate",
    "rayleigh_rate_derivative",
    "x_k1",
]

Array = Any  # a NumPy array or scalar, a Python float, a torch tensor, or an array that knows `special`
_Vector = npt.NDArray[np.float64]

_LN2 = math.log(2.0)


# Dispatch: one NumPy kernel and one derivative make a function ----------------------------------------------


@dataclass(frozen=True, eq=False)
class Elementary:
    """An elementwise function: its values in NumPy, its derivative in differentiable functions, its shape.

    The shape is what interval arithmetic needs: the function is monotone, or changes its direction once, at `turn`
    (rising up to it where `monotone` is 1), and so is its slope. Reasons stand where each function is made.
    """

    name: str
    kernel: Callable[[_Vector], _Vector]  # 1-D float64 to 1-D float64, called on [lower, inf] and nan only
    slope: Callable[[Any], Any]  # array to array of its kind; in torch differentiable, hence derivatives of any order
    monotone: int  # 1 rising, -1 falling
    slope_monotone: int
    lower: float = 0.0
    upper: float = math.inf
    turn: float | None = None
    slope_turn: float | None = None
    slope_lower: float | None = None  # from here the slope is exact to rounding; None: all over the domain
    accuracy: float = 1e-13  # a bound of the kernel's and the slope's relative errors
    formula: Callable[[Any], Any] | None = None  # in array functions, for arrays that do not know the name

    def __call__(self, x: Array) -> Array:
        if is_torch_array(x):
            return _torch_elementwise().apply(x, self)
        if is_foreign(x):
            return x.special(self)
        return self.on_numpy(x)[()]

    def on_numpy(self, x: npt.ArrayLike) -> _Vector:
        values = np.asarray(x, dtype=np.float64)
        flat = values.reshape(-1)
        out = np.empty_like(flat)
        block = 1 << 14  # temporaries that stay in cache: about twice as fast as whole arrays at 1e6 elements
        with np.errstate(all="ignore"):
            for start in range(0, flat.size, block):
                part = flat[start : start + block] + 0.0  # makes -0.0 the 0.0 that 1/x should see
                outside = part < self.lower
                if outside.any():
                    part = np.where(outside, np.nan, part)
                out[start : start + block] = self.kernel(part)
        return out.reshape(values.shape)


@cache
def _torch_elementwise() -> Any:
    """The autograd function behind every `Elementary`, made on first use to keep torch out of the import."""
    import torch

    class Elementwise(torch.autograd.Function):
        @staticmethod
        def forward(x: Any, function: Elementary) -> Any:
            values = torch.from_numpy(function.on_numpy(x.detach().to("cpu", torch.float64).numpy()))
            return values.to(x.device, x.dtype if x.is_floating_point() else torch.float64)

        @staticmethod
        def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
            x, ctx.function = inputs
            ctx.save_for_backward(x)
            ctx.save_for_forward(x)

        @staticmethod
        def backward(ctx: Any, grad: Any) -> Any:
            (x,) = ctx.saved_tensors
            return grad * ctx.function.slope(x), None

        @staticmethod
        def jvp(ctx: Any, tangent: Any, _: None) -> Any:
            (x,) = ctx.saved_tensors
            return tangent * ctx.function.slope(x)

        @staticmethod
        def vmap(info: Any, in_dims: Any, x: Any, function: Elementary) -> Any:
            return _torch_elementwise().apply(x, function), in_dims[0]

    return Elementwise


def _split(x: _Vector, at: float, below: Callable[[_Vector], _Vector], above: Callable[[_Vector], _Vector]) -> _Vector:
    """`below` where x <= at, `above` elsewhere (nan included), each evaluated only where it is needed."""
    low = x <= at
    if low.all():
        return below(x)
    if not low.any():
        return above(x)
    out = np.empty_like(x)
    for where, kernel in ((np.flatnonzero(low), below), (np.flatnonzero(~low), above)):
        out[where] = kernel(x[where])
    return out


def _polynomial(x: _Vector, coefficients: tuple[float, ...]) -> _Vector:
    """Horner's rule in place; coefficients from the constant term up."""
    out = np.full_like(x, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        out *= x
        out += coefficient
    return out


# Modified Bessel functions ----------------------------------------------------------------------------------


def _x_k1_kernel(x: _Vector) -> _Vector:
    # K1 overflows at 1e-309 and underflows at 750, where x*K1 is 1 and 0; a power of two gives 1 exactly
    y = np.clip(x, 2.0**-1000, 1e3)
    return y * sc.k1(y)


def _x_k0_kernel(x: _Vector) -> _Vector:
    y = np.clip(x, 2.0**-1000, 1e3)
    return x * sc.k0(y)


# K_n(x), the integral of e^(-x cosh t) cosh(nt) over t > 0, is positive, falling and convex in x. Hence x*K1, of
# slope -x*K0, falls. (x*K0)' = K0 - x*K1 has the one zero _X_K0_TOP, and (x*K0)'' = x*K0 - K1 the one zero
# _X_K0_BEND, since x*K0/K1 and x*K1/K0 rise.
_X_K0_TOP = 0.5950467264497843
_X_K0_BEND = 1.3315792183584554
_K0: Elementary = Elementary("k0", sc.k0, lambda x: -_K1(x), monotone=-1, slope_monotone=1)
_K1: Elementary = Elementary("k1", sc.k1, lambda x: -(_K0(x) + _K1(x) / x), monotone=-1, slope_monotone=1)
_X_K0: Elementary = Elementary(
    "x_k0",
    _x_k0_kernel,
    lambda x: _K0(x) - _X_K1(x),
    monotone=1,
    turn=_X_K0_TOP,
    slope_monotone=-1,
    slope_turn=_X_K0_BEND,
)
_X_K1: Elementary = Elementary(
    "x_k1", _x_k1_kernel, lambda x: -_X_K0(x), monotone=-1, slope_monotone=-1, slope_turn=_X_K0_TOP
)


def k0(x: Array) -> Array:
    """Modified Bessel function of the second kind of order 0, for x >= 0 (inf at 0)."""
    return _K0(x)


def k1(x: Array) -> Array:
    """Modified Bessel function of the second kind of order 1, for x >= 0 (inf at 0)."""
    return _K1(x)


def x_k1(x: Array) -> Array:
    """x*K1(x) for x >= 0: 1 at 0, falling to 0; its derivative is -x*K0(x)."""
    return _X_K1(x)


# Exponential integral ---------------------------------------------------------------------------------------

# With o ~ Exp(1): f(t) = E[1/(1 + t*o)] and m(t) = E[o/(1 + t*o)] = (1 - f(t))/t, as P(t)/Q(t) on [0, 1].
# They carry E1 without the exponential (f(1/x) = x*e^x*E1(x)), and m spares the cancellation in 1 - f.
# Rational interpolants of f and m, exact at 0, in 23 points crowded at 0, found in 80-digit arithmetic:
# relative error below 2e-17 and 6e-17. All coefficients are positive, so Horner's rule loses nothing.
_F_P = (
    1.0,
    49.882926747898395,
    982.4496193916591,
    9929.846152867325,
    56146.328412013594,
    182043.7933054944,
    334724.9182580067,
    334502.57633277425,
    167305.3946291934,
    35937.24143081435,
    2374.7257997986558,
    10.801816439512875,
)
_F_Q = (
    1.0,
    50.882926747898395,
    1031.3325461395575,
    10865.412845511084,
    65230.37372573476,
    230630.1463745734,
    480720.76443165616,
    576739.5738445,
    378275.79521671723,
    123661.53507135023,
    16959.87754788517,
    655.8597347607293,
)
_M_P = (
    1.0,
    54.79795493127461,
    1189.348123868276,
    13281.294719635498,
    83118.79780068438,
    298585.47324365156,
    608534.9215538439,
    674394.1281337412,
    374618.9440794511,
    89604.78721394944,
    6521.680780046969,
    3.499977628119768,
)
_M_Q = (
    1.0,
    56.79795493127461,
    1296.9440337308251,
    15558.395057509484,
    107697.07463168142,
    445660.15437610424,
    1107295.5079362283,
    1620604.5652160256,
    1336912.8306768949,
    573858.6843811536,
    110440.68436272354,
    6752.93664159025,
)
# E1(x) + ln(x) = -gamma + x - x^2/(2*2!) + x^3/(3*3!) - ...
_E1_SERIES = (-float(np.euler_gamma), *((-1.0) ** (k + 1) / (k * math.factorial(k)) for k in range(1, 19)))


def _f(t: _Vector) -> _Vector:
    return _polynomial(t, _F_P) / _polynomial(t, _F_Q)


def _m(t: _Vector) -> _Vector:
    return _polynomial(t, _M_P) / _polynomial(t, _M_Q)


def _exp_exp1_small(x: _Vector) -> _Vector:
    """e^x*E1(x) for 0 <= x <= 1."""
    return np.asarray(np.exp(x) * (_polynomial(x, _E1_SERIES) - np.log(x)))


def _x_exp_exp1_small(x: _Vector) -> _Vector:
    """x*e^x*E1(x) for x up to about 2, with its limit 0 at 0."""
    value = _split(x, 1.0, _exp_exp1_small, lambda y: _f(1.0 / y) / y)
    return np.where(x > 0.0, x * value, x)


@cache
def _laguerre() -> list[tuple[float, float]]:
    """Nodes and weights of E[h(o)], o ~ Exp(1); the weights left out are below 1e-30."""
    nodes, weights = sc.roots_laguerre(64)
    return [(float(node), float(weight)) for node, weight in zip(nodes, weights, strict=True) if weight > 1e-30]


def _stieltjes_kernel(n: int, x: _Vector) -> _Vector:
    """E[1/(x + o)^n] = x^(1-n)*e^x*E_n(x), o ~ Exp(1)."""

    def small(x: _Vector) -> _Vector:  # the recurrence from E_1 to E_n, which loses digits as x grows
        scaled = 1.0 - _x_exp_exp1_small(x)
        for j in range(2, n):
            scaled = (1.0 - x * scaled) / j
        return np.asarray(x ** (1 - n) * scaled)

    def large(x: _Vector) -> _Vector:
        out = np.zeros_like(x)
        for node, weight in _laguerre():
            out += weight / (x + node) ** n
        return out

    if n == 1:
        return _split(x, 1.0, _exp_exp1_small, lambda x: _f(1.0 / x) / x)
    if n == 2:
        return _split(x, 1.0, small, lambda x: _m(1.0 / x) / x / x)
    return _split(x, 2.0, small, large)


@cache
def _stieltjes(n: int) -> Elementary:
    # 1/(x + o)^n falls and is convex in x for every o, and so is its mean
    return Elementary(
        f"stieltjes_{n}",
        partial(_stieltjes_kernel, n),
        lambda x: -n * _stieltjes(n + 1)(x),
        monotone=-1,
        slope_monotone=1,
    )


def _exp1_slope(x: Any) -> Any:
    return -namespace(x).exp(-x) / x


# the integrand is positive and falls
_EXP1: Elementary = Elementary("exp1", sc.exp1, _exp1_slope, monotone=-1, slope_monotone=1)


def exp1(x: Array) -> Array:
    """Exponential integral E1(x), the integral of e^-t/t from x to infinity, for x >= 0 (inf at 0)."""
    return _EXP1(x)


def exp_exp1(x: Array) -> Array:
    """Scaled exponential integral e^x*E1(x) for x >= 0 (inf at 0); about 1/x where E1 itself underflows."""
    return _stieltjes(1)(x)


def exp_exp1_derivative(x: Array, order: int = 1) -> Array:
    """Derivative of `exp_exp1` of the given order (1 or more), without cancellation at large x."""
    return (-1) ** order * math.factorial(order) * _stieltjes(order + 1)(x)


# Lambert W --------------------------------------------------------------------------------------------------

_BRANCH = -math.exp(-1.0)  # the double nearest -1/e; it lies 1.24e-17 below -1/e and stands for it here
_BRANCH_ERROR = 1.2428753672788363e-17  # -1/e minus _BRANCH


def _branch_series(terms: int) -> tuple[float, ...]:
    """Coefficients of W0 in powers of sqrt(2*(1 + e*x)) (Corless et al. 1996, eqs. 4.22 to 4.25)."""
    mu, alpha = [-1.0, 1.0], [2.0, -1.0]
    for k in range(2, terms):
        alpha.append(sum(mu[j] * mu[k + 1 - j] for j in range(2, k)))
        mu.append((k - 1) / (k + 1) * (mu[k - 2] / 2 + alpha[k - 2] / 4) - alpha[k] / 2 - mu[k - 1] / (k + 1))
    return tuple(mu)


_W_SERIES = _branch_series(14)


def _lambertw_kernel(x: _Vector) -> _Vector:
    def near_branch(x: _Vector) -> _Vector:  # scipy is good to 1e-9 only, and nan at the branch point
        gap = np.maximum((x - _BRANCH) - _BRANCH_ERROR, 0.0)
        return _polynomial(np.sqrt(2.0 * math.e * gap), _W_SERIES)

    return _split(x, _BRANCH + 1e-3, near_branch, lambda x: sc.lambertw(x, 0).real)


def _lambertw_slope(x: Any) -> Any:
    return 1.0 / (x + namespace(x).exp(_LAMBERTW(x)))


# The inverse of w*e^w, which rises and is convex for w > -1. Close to the branch point the slope's sum cancels.
_LAMBERTW: Elementary = Elementary(
    "lambertw",
    _lambertw_kernel,
    _lambertw_slope,
    monotone=1,
    slope_monotone=-1,
    lower=_BRANCH,
    slope_lower=_BRANCH + 1e-4,
)


def lambertw(x: Array) -> Array:
    """Principal branch W0 of the solution of w*e^w = x, for x >= -1/e, where its slope is infinite."""
    return _LAMBERTW(x)


# Means over Rayleigh fading ---------------------------------------------------------------------------------


def _moment_kernel(n: int, s: _Vector) -> _Vector:
    """E[(o/(1 + s*o))^n], o ~ Exp(1)."""

    def small(s: _Vector) -> _Vector:
        out = np.zeros_like(s)
        for node, weight in _laguerre():
            out += weight * (node / (1.0 + s * node)) ** n
        return out

    def large(s: _Vector) -> _Vector:  # expands (1 - 1/(1 + s*o))^n, which cancels as s falls
        z = 1.0 / s
        term = _x_exp_exp1_small(z)  # E[1/(1 + s*o)^j], from j = 1
        total = np.ones_like(s)
        for j in range(1, n + 1):
            total += (-1) ** j * math.comb(n, j) * term
            term = z * (1.0 - term) / j
        return np.asarray(z**n * total)

    if n == 1:
        return _split(s, 1.0, _m, large)
    return _split(s, 0.5, small, large)


@cache
def _moment(n: int) -> Elementary:
    # (o/(1 + s*o))^n falls and is convex in s for every o, and so is its mean
    return Elementary(
        f"moment_{n}",
        partial(_moment_kernel, n),
        lambda s: -n * _moment(n + 1)(s),
        monotone=-1,
        slope_monotone=1,
    )


def _rate_kernel(s: _Vector) -> _Vector:
    out = _split(s, 1.0, lambda s: s * _f(s), lambda s: _exp_exp1_small(1.0 / s))
    out /= _LN2
    return out


# log(1 + s*o) rises and is concave in s for every o
_RATE: Elementary = Elementary(
    "rayleigh_rate", _rate_kernel, lambda s: _moment(1)(s) / _LN2, monotone=1, slope_monotone=-1
)


def rayleigh_rate(snr: Array) -> Array:
    """Ergodic spectral efficiency of Rayleigh fading, E[log2(1 + snr*o)] with o ~ Exp(1).

    Parameters
    ----------
    snr
        Mean signal-to-noise ratio, linear, any shape; from 0 to inf.

    Returns
    -------
    array
        e^(1/snr)*E1(1/snr)/ln 2 in bit/s/Hz, same shape; 0 at 0.
    """
    return _RATE(snr)


def rayleigh_rate_derivative(snr: Array, order: int = 1) -> Array:
    """Derivative of `rayleigh_rate` of the given order (1 or more), in bit/s/Hz; accurate at any snr."""
    return (-1) ** (order - 1) * math.factorial(order - 1) / _LN2 * _moment(order)(snr)


# q = -x*(A(x)*ln(x) + B(x)): the power series of K1 at 0, whose leading 1 has gone out against that of q
_Q_TERMS = [(k, 1.0 / (math.factorial(k) * math.factorial(k + 1))) for k in range(13)]
_Q_A = tuple(a for _, a in _Q_TERMS)
_Q_B = tuple(-a * float(sc.digamma(k + 1) + sc.digamma(k + 2)) for k, a in _Q_TERMS)


def _packet_error_kernel(x: _Vector) -> _Vector:
    def small(x: _Vector) -> _Vector:
        log = np.log(np.maximum(x, 5e-324))  # finite at 0, where x*ln(x) is to be 0
        out = _polynomial(x, _Q_A)
        out *= log
        out += _polynomial(x, _Q_B)
        out *= -x
        return out

    return _split(x, 1.0, small, lambda x: 1.0 - _x_k1_kernel(2.0 * np.sqrt(x)))


# 1 - e^(-x/o) rises and is concave in x for every o
_PACKET_ERROR: Elementary = Elementary(
    "rayleigh_packet_error",
    _packet_error_kernel,
    lambda x: 2.0 * _K0(2.0 * namespace(x).sqrt(x)),
    monotone=1,
    slope_monotone=-1,
)


def rayleigh_packet_error(x: Array) -> Array:
    """Packet error rate averaged over Rayleigh fading, E[1 - exp(-x/o)] with o ~ Exp(1).

    Parameters
    ----------
    x
        Waterfall threshold over the mean signal-to-noise ratio, both linear, any shape; from 0 to inf.

    Returns
    -------
    array
        q = 1 - 2*sqrt(x)*K1(2*sqrt(x)), a probability, same shape; 0 at 0, where its slope
        2*K0(2*sqrt(x)) is infinite.
    """
    return _PACKET_ERROR(x)

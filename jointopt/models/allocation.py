"""Closed-form splits of one band among devices, and what proves a split optimal.

`liu_ratio_bandwidth` prunes least (theory 6, after Liu, Yu et al. 2021), `minimum_energy_bandwidth` sends given
payloads with least energy. `bandwidth_dual_bound` and `bandwidth_kkt_residual` judge any split of the second kind,
whoever found it: a conic solver's word for its answer is no proof.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from jointopt.errors import InputError
from jointopt.models.inference import efficiency_at_price

__all__ = [
    "EnergyBandwidth",
    "RatioBandwidth",
    "bandwidth_dual_bound",
    "bandwidth_energy",
    "bandwidth_kkt_residual",
    "least_bandwidth",
    "liu_ratio_bandwidth",
    "minimum_energy_bandwidth",
]

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

_LN2 = float(np.log(2.0))


@dataclass(frozen=True)
class RatioBandwidth:
    """Ratios, bands [Hz] and the price of a hertz; `feasible` is false where the largest ratios need more band."""

    pruning_ratio: FloatArray
    bandwidth: FloatArray
    price: float
    feasible: bool


def liu_ratio_bandwidth(
    *,
    compute_delay: Any,
    spectral_efficiency: Any,
    payload: Any,
    deadline: Any,
    total_bandwidth: float,
    weight: Any = 1.0,
    pruning_ratio_max: float = 1.0,
) -> RatioBandwidth:
    """Ratios and bands of least weighted pruning under one deadline, at fixed frequency and spectral efficiency.

    The delay (1 - rho)(t_c + V Q/(b r)) <= T gives rho = [1 - T/(t_c + V Q/(b r))]^+, convex and falling in b with
    slope -T r V Q/(t_c b r + V Q)^2. Setting that slope to -nu/omega gives [D]

        b = clip([sqrt(omega T r V Q/nu) - V Q]/(t_c r), b_min, b_max),
        b_min = V Q/(r (T/(1 - rho_max) - t_c)),  b_max = V Q/(r (T - t_c)) where T > t_c,

    and nu follows by bisection from the band; nu = 0 where everyone's b_max fits.

    Parameters
    ----------
    compute_delay : array, shape [devices]
        t_c of the dense model [s], above 0 (at 0 the ratio is linear in the band, and its best split is not unique).
    spectral_efficiency : array, shape [devices]
        r [bit/s/Hz].
    payload : array, shape [devices]
        V Q of the dense model [bit].
    deadline : array, shape [devices]
        T [s].
    total_bandwidth : float
        B [Hz].
    weight : array, shape [devices]
        omega, above 0.
    pruning_ratio_max : float
        rho_max, at most 1 (no limit).

    Raises
    ------
    InputError
        For numbers that are not above 0, or a rho_max outside [0, 1].
    """
    named = {
        "compute_delay": compute_delay,
        "spectral_efficiency": spectral_efficiency,
        "payload": payload,
        "deadline": deadline,
        "weight": weight,
    }
    size = np.broadcast_shapes((1,), *(np.shape(value) for value in named.values()))
    t, r, bits, T, omega = (np.broadcast_to(np.asarray(v, dtype=np.float64), size) for v in named.values())
    for name, values in {**named, "total_bandwidth": total_bandwidth}.items():
        number = np.asarray(values, dtype=np.float64)
        if not np.all((number > 0.0) & np.isfinite(number)):
            raise InputError(f"{name}: must be finite and above 0")
    if not 0.0 <= pruning_ratio_max <= 1.0:
        raise InputError(f"pruning_ratio_max: {pruning_ratio_max!r} must lie within 0 and 1")
    with np.errstate(divide="ignore", invalid="ignore"):
        room = T / (1.0 - pruning_ratio_max) - t if pruning_ratio_max < 1.0 else np.full(size, np.inf)
        low = np.where(room > 0.0, bits / (r * np.where(room > 0.0, room, 1.0)), np.inf)
        high = np.where(t < T, bits / (r * np.where(t < T, T - t, 1.0)), np.inf)

    def ratio(band: FloatArray) -> FloatArray:
        with np.errstate(divide="ignore"):
            out: FloatArray = np.maximum(1.0 - T / (t + bits / (band * r)), 0.0)
        return out

    def split(price: float) -> FloatArray:
        free = (np.sqrt(omega * T * r * bits / price) - bits) / (t * r)
        out: FloatArray = np.clip(free, low, high)
        return out

    if not float(low.sum()) <= total_bandwidth:
        share = np.full(size, total_bandwidth / t.size)
        return RatioBandwidth(ratio(share), share, float("inf"), feasible=False)
    if float(high.sum()) <= total_bandwidth:
        return RatioBandwidth(ratio(high), high, 0.0, feasible=True)
    # at this price nobody wants a hertz more than the least
    dear = float(np.max(omega * T * r / bits))
    left, right = np.log(dear) - 1.0, np.log(dear)
    while float(split(float(np.exp(left))).sum()) < total_bandwidth:
        left -= 5.0
    for _ in range(100):
        middle = 0.5 * (left + right)
        if float(split(float(np.exp(middle))).sum()) > total_bandwidth:
            left = middle
        else:
            right = middle
    band = split(float(np.exp(right)))
    return RatioBandwidth(ratio(band), band, float(np.exp(right)), feasible=True)


@dataclass(frozen=True)
class EnergyBandwidth:
    """Bands of least energy; arrays ``[..., devices]``, the rest ``[...]``.

    Attributes
    ----------
    bandwidth, power, energy : array, shape [..., devices]
        [Hz], [W] and [J].
    price : array, shape [...]
        What one more hertz would save [J/Hz]; inf where infeasible.
    feasible : array of bool, shape [...]
        False where the limits on power need more band than there is; the bands are then equal shares, above the limit.
    """

    bandwidth: FloatArray
    power: FloatArray
    energy: FloatArray
    price: FloatArray
    feasible: BoolArray


@dataclass(frozen=True)
class _Uplinks:
    """Every client's upload: energy `scale` b (e^x - 1) with x = `nats`/b; arrays that broadcast to [..., devices]."""

    nats: FloatArray  # ln 2 s/t [1/s]
    scale: FloatArray  # t N0/h [J/Hz]
    deadline: FloatArray  # [s]
    most: FloatArray | None  # x at the greatest power; 0 where no band suffices

    @classmethod
    def read(cls, payload: Any, deadline: Any, gain: Any, noise_density: Any, power_max: Any | None) -> _Uplinks:
        s, t = _positive("payload", payload), _positive("deadline", deadline)
        h, noise = _positive("gain", gain), _positive("noise_density", noise_density)
        nats, scale = _LN2 * s / t, t * noise / h
        most = None
        if power_max is not None:
            # (e^x - 1)/x = p_max h/(N0 a)
            limit = _positive("power_max", power_max, infinite=True)
            with np.errstate(over="ignore"):
                most = _inverse_mean_exponential(limit * t / (scale * nats))
        return cls(nats, scale, t, most)

    def energy(self, bandwidth: FloatArray) -> FloatArray:
        with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
            out: FloatArray = np.where(
                bandwidth > 0.0, self.scale * bandwidth * np.expm1(self.nats / bandwidth), np.inf
            )
        return out


def _positive(name: str, values: Any, infinite: bool = False) -> FloatArray:
    array = np.asarray(values, dtype=np.float64)
    # two reductions, since this runs once per re-solve; nan fails both comparisons
    if (
        array.size
        and np.minimum.reduce(array, axis=None) > 0.0
        and (infinite or np.maximum.reduce(array, axis=None) < np.inf)
    ):
        return array
    if not array.size:
        raise InputError(f"{name}: is empty")
    at = np.argwhere(~((array > 0.0) & (infinite | (array < np.inf))))
    where = f"[{', '.join(str(int(i)) for i in at[0])}]" if array.ndim else ""
    value = float(array[tuple(at[0])]) if array.ndim else float(array)
    raise InputError(f"{name}{where}: {value!r}; must be {'' if infinite else 'finite and '}above 0")


def _log_marginal(x: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return phi = ln[1 + (x - 1) e^x] and 1/(d phi/d ln x), at any x above 0 without overflow."""
    # e^{-x} - 1 + x; its relative error 2e-16/x is seen squared in the energy
    rest = np.expm1(-x)
    rest += x
    square = x * x
    if np.minimum.reduce(x, axis=None) < 1e-4:
        rest = np.where(x < 1e-4, square * (0.5 - x * (1.0 / 6.0 - x / 24.0)), rest)
    phi = np.log(rest)
    phi += x
    rest /= square
    return phi, rest


def _inverse_mean_exponential(ratio: FloatArray) -> FloatArray:
    """Return the x at which (e^x - 1)/x is a ratio; 0 where it is at most 1, inf where it is infinite."""
    ratio = np.asarray(ratio, dtype=np.float64)
    room = (ratio > 1.0) & (ratio < np.inf)
    target = np.log(np.where(room, ratio, 2.0))
    # ln[(e^x - 1)/x] is convex with a slope within 1/2 and 1: Newton falls from 2 ln(ratio), and never below the root
    x = 2.0 * target
    for _ in range(60):
        less = -np.expm1(-x)
        step = (x + np.log(less / x) - target) / (1.0 / less - 1.0 / x)
        x = np.maximum(x - step, target)
        if np.all(np.abs(step) <= 1e-14 * x):
            break
    return np.where(room, x, np.where(ratio > 1.0, np.inf, 0.0))


def bandwidth_energy(*, bandwidth: Any, payload: Any, deadline: Any, gain: Any, noise_density: Any) -> FloatArray:
    """Energies [J] to send payloads by their deadlines over bands [Hz], shape [..., devices]; inf over 0 Hz."""
    links = _Uplinks.read(payload, deadline, gain, noise_density, None)
    return links.energy(np.asarray(bandwidth, dtype=np.float64))


def least_bandwidth(*, payload: Any, deadline: Any, gain: Any, noise_density: Any, power_max: Any) -> FloatArray:
    """Least bands [Hz] that the greatest powers allow, shape [..., devices]; inf where N0 ln2 s/(h t) >= p_max."""
    links = _Uplinks.read(payload, deadline, gain, noise_density, power_max)
    assert links.most is not None
    with np.errstate(divide="ignore"):
        out: FloatArray = links.nats / links.most
    return out


def minimum_energy_bandwidth(
    *,
    payload: Any,
    deadline: Any,
    gain: Any,
    noise_density: Any,
    total_bandwidth: Any,
    power_max: Any | None = None,
) -> EnergyBandwidth:
    """Split bands so that all payloads arrive by their deadlines with least energy, for any number of scenarios.

    Sending s bits in t over b costs E(b) = t (N0 b/h)(2^{s/(t b)} - 1), falling and convex. With x = ln2 s/(t b) the
    marginal energy is -E'(b) = c (1 + (x - 1) e^x), c = t N0/h, and at the optimum it equals the price nu of the band
    for everyone below p_max [D]:

        x_k = min(1 + W0((nu/c_k - 1)/e), x_k^max),   sum of ln2 s_k/(t_k x_k) = B,

    where x^max solves (e^x - 1)/x = p_max h t/(N0 ln2 s). Neither W0 nor a bisection is needed: in z = ln x and
    lambda = ln nu the conditions phi(z_k) = min(lambda - ln c_k, phi_k^max), with phi = ln(1 + (x - 1) e^x), and
    ln(sum of ln2 s_k/(t_k x_k)) = ln B are convex (phi is the logarithm of a power series in e^z with coefficients
    above 0). So after any step of Newton's method on all of them at once every residual is at least 0, which means
    lambda below its root, and by the signs of the Jacobian lambda never falls again: it converges from any start, at
    last quadratically, each step linear in the number of devices.

    Parameters
    ----------
    payload, deadline, gain : array, shape [..., devices]
        s [bit], t [s] and h.
    noise_density : float or array, shape [..., devices]
        N0 [W/Hz].
    total_bandwidth : float or array, shape [...]
        B [Hz].
    power_max : float or array, shape [..., devices], optional
        p_max [W], no limit by default; may be inf.

    Raises
    ------
    InputError
        For numbers that are not above 0 and finite.
    """
    links = _Uplinks.read(payload, deadline, gain, noise_density, power_max)
    band = _positive("total_bandwidth", total_bandwidth)[..., None]
    most_shape = () if links.most is None else links.most.shape
    shape = np.broadcast_shapes(links.nats.shape or (1,), links.scale.shape, band.shape, most_shape)
    nats = np.broadcast_to(links.nats, shape)
    log_scale = np.log(links.scale)
    top: FloatArray | None = None
    feasible = np.ones(shape[:-1], dtype=np.bool_)
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        if links.most is not None:
            least = nats / links.most
            feasible = np.add.reduce(least, axis=-1) <= band[..., 0]
            # where it is infeasible, any answer will do until it is replaced
            most = np.where(feasible[..., None] & (links.most < 1e300), links.most, 1e300)
            top = np.where(most < 1e300, _log_marginal(np.minimum(most, 1e3))[0], np.inf)
            top = np.where(most > 1e3, most + np.log(most), top)
        x, price = _newton(nats, log_scale, band, top)
        if top is not None:
            x = np.minimum(x, most)
        bands = nats / x
        used = np.add.reduce(bands, axis=-1, keepdims=True)
        if top is None:
            bands *= band / used
        else:
            # the last digits of the sum are taken from what is above the least
            floor = nats / most
            above = np.add.reduce(bands - floor, axis=-1, keepdims=True)
            bands = floor + (bands - floor) * np.where(above > 0.0, 1.0 + (band - used) / above, 1.0)
            bands = np.where(feasible[..., None], bands, band / shape[-1])
            price = np.where(feasible, price, np.inf)
        energy = links.scale * bands * np.expm1(nats / bands)
    return EnergyBandwidth(bands, energy / links.deadline, energy, price, feasible)


def _newton(
    nats: FloatArray, log_scale: FloatArray, band: FloatArray, top: FloatArray | None
) -> tuple[FloatArray, FloatArray]:
    """Nats per second and hertz of every device and the price [J/Hz], by Newton's method (see the caller)."""
    total = np.add.reduce(nats, axis=-1, keepdims=True)
    equal = total / band
    phi, _ = _log_marginal(equal)
    if top is None:
        price = phi + np.add.reduce(nats * log_scale, axis=-1, keepdims=True) / total
    else:
        # at this price the unlimited bands fill B or more, so somebody's limit does not bind
        price = phi + np.minimum.reduce(np.broadcast_to(log_scale, nats.shape), axis=-1, keepdims=True)
    aim = price - log_scale
    if top is not None:
        aim = np.minimum(aim, top)
    # 1 + W0((r - 1)/e) is near ln(1 + sqrt(2 r) + r/3), to within a tenth at any r
    root = np.exp(0.5 * np.minimum(aim, 600.0))
    z = np.log(np.log1p(root * (np.sqrt(2.0) + root / 3.0)))
    for _ in range(100):
        x = np.exp(z)
        phi, inverse_slope = _log_marginal(x)
        bands = nats / x
        used = np.add.reduce(bands, axis=-1, keepdims=True)
        share = bands * inverse_slope
        if top is None:
            residual = phi + log_scale
            price = (
                used * np.log(used / band) + np.add.reduce(share * residual, axis=-1, keepdims=True)
            ) / np.add.reduce(share, axis=-1, keepdims=True)
            step = (price - residual) * inverse_slope
        else:
            free = price - log_scale < top
            fixed = np.where(free, phi + log_scale, phi - top)
            excess = used * np.log(used / band) + np.add.reduce(share * fixed, axis=-1, keepdims=True)
            moved = np.add.reduce(np.where(free, share, 0.0), axis=-1, keepdims=True)
            # nobody is free where the least bands fill B to the last digit: then the price stays
            price = np.where(moved > 0.0, excess / np.where(moved > 0.0, moved, 1.0), price)
            step = (np.where(free, price, 0.0) - fixed) * inverse_slope
        z = z + step
        # quadratic: the next step would be about the square of this one
        if np.maximum.reduce(np.abs(step), axis=None) < 1e-8:
            break
    return np.exp(z), np.exp(price[..., 0])


def bandwidth_dual_bound(
    price: Any,
    *,
    payload: Any,
    deadline: Any,
    gain: Any,
    noise_density: Any,
    total_bandwidth: Any,
    power_max: Any | None = None,
) -> FloatArray:
    """Lower bound [J] on the energy of every split of the band, from any price nu [J/Hz] of a hertz; shape [...].

    The Lagrangian dual, the sum over devices of min_b [E(b) + nu b] less nu B, is at most the least energy whatever
    nu >= 0 is, and equal to it at the price of `minimum_energy_bandwidth`. Each minimum is at x = 1 + W0((nu/c - 1)/e),
    or at x^max. The bound needs no solver's word: a price from one that went astray gives a weak bound, never a wrong
    one. Parameters as in `minimum_energy_bandwidth`.

    Raises
    ------
    InputError
        For numbers that are not above 0 and finite; a price may be 0.
    """
    links = _Uplinks.read(payload, deadline, gain, noise_density, power_max)
    band = _positive("total_bandwidth", total_bandwidth)
    nu = np.asarray(price, dtype=np.float64)
    if not np.all((nu >= 0.0) & (nu < np.inf)):
        raise InputError("price: must be finite and at least 0")
    x = efficiency_at_price(nu[..., None] / links.scale)
    if links.most is not None:
        x = np.minimum(x, links.most)
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        # (e^x - 1)/x is 1 at x = 0, where the price is 0 and the band without end
        mean = np.where(x > 0.0, np.expm1(x) / np.where(x > 0.0, x, 1.0), 1.0)
        paid = np.where(nu[..., None] > 0.0, nu[..., None] / x, 0.0)
        value: FloatArray = np.sum(links.nats * (links.scale * mean + paid), axis=-1) - nu * band
    return value


def bandwidth_kkt_residual(
    bandwidth: Any,
    price: Any,
    *,
    payload: Any,
    deadline: Any,
    gain: Any,
    noise_density: Any,
    total_bandwidth: Any,
    power_max: Any | None = None,
) -> FloatArray:
    """Largest relative violation of the optimality conditions by bands [Hz] at a price [J/Hz]; shape [...].

    The conditions of `minimum_energy_bandwidth`, each in proportion: marginal energies equal to the price, or below it
    where p_max takes the whole band given; no band below the least; the sum at most B; price times unused band
    against the energy. The problem is convex, so 0 means optimal. Parameters as in `minimum_energy_bandwidth`.
    """
    links = _Uplinks.read(payload, deadline, gain, noise_density, power_max)
    b, nu = np.asarray(bandwidth, dtype=np.float64), np.asarray(price, dtype=np.float64)
    band = _positive("total_bandwidth", total_bandwidth)
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        x = links.nats / b
        marginal = links.scale * np.exp(_log_marginal(x)[0])
        worth = nu[..., None]
        off = (marginal - worth) / np.maximum(marginal, worth)
        if links.most is not None:
            least = links.nats / links.most
            off = np.where(off < 0.0, np.minimum(-off, np.abs(b - least) / b), off)
            off = np.maximum(off, (least - b) / b)
        spare = band - np.sum(b, axis=-1)
        slack = nu * np.abs(spare) / np.sum(links.energy(b), axis=-1)
        worst = np.maximum(np.max(np.abs(off), axis=-1), np.maximum(slack, -spare / band))
    out: FloatArray = np.where(np.all(b > 0.0, axis=-1) & np.isfinite(worst), worst, np.inf)
    return out

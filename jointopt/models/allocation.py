"""Closed-form splits of one band among devices (theory 6, after Liu, Yu et al. 2021)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from jointopt.errors import InputError

__all__ = ["RatioBandwidth", "liu_ratio_bandwidth"]

FloatArray = npt.NDArray[np.float64]


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

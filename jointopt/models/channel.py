"""Radio link: gain, signal-to-noise ratio, rate, packet error (theory section 0, lemmas L5 and L6).

All functions take NumPy arrays or torch tensors of any broadcastable shape and differentiate in torch. Quantities
are SI and linear. With ``fading="rayleigh"`` they are averages over a gain h = mean gain x o, o ~ Exp(1).
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from jointopt.models._array import namespace
from jointopt.models.special import rayleigh_packet_error, rayleigh_rate

__all__ = [
    "Fading",
    "PacketErrorLaw",
    "energy_per_bit",
    "packet_error",
    "path_gain",
    "rate",
    "snr",
    "spectral_efficiency",
]

Array = Any
Fading = Literal["rayleigh", "none"]
PacketErrorLaw = Literal["waterfall", "outage", "none"]


def path_gain(distance: Array, reference_gain: Array = 1e-3, exponent: Array = 2.0) -> Array:
    """Mean power gain beta d^-nu at a distance [m] (L5 [K]); `reference_gain` is the gain at 1 m."""
    return reference_gain * distance**-exponent


def snr(power: Array, gain: Array, noise_power: Array) -> Array:
    """Mean signal-to-noise ratio p h / (I + B N0), linear; `power` and `noise_power` in W."""
    return power * gain / noise_power


def spectral_efficiency(snr: Array, fading: Fading = "rayleigh") -> Array:
    """Rate per bandwidth [bit/s/Hz]: log2(1+s), or its Rayleigh average e^{1/s} E1(1/s)/ln 2 (L5 [K])."""
    if fading == "rayleigh":
        return rayleigh_rate(snr)
    return namespace(snr).log1p(snr) / np.log(2.0)


def rate(bandwidth: Array, snr: Array, fading: Fading = "rayleigh") -> Array:
    """Uplink rate R [bit/s] over a band [Hz] (L5 [K]); the ergodic rate under fading."""
    return bandwidth * spectral_efficiency(snr, fading)


def packet_error(snr: Array, threshold: Array, law: PacketErrorLaw = "waterfall", fading: Fading = "rayleigh") -> Array:
    """Probability q that a packet is lost (L5 [K]), decreasing in the SNR.

    Parameters
    ----------
    snr : array
        Mean signal-to-noise ratio s, linear.
    threshold : float or array
        Waterfall threshold, or the SNR under which a packet is lost; linear.
    law : {"waterfall", "outage", "none"}
        Waterfall: 1 - exp(-threshold/s) for a fixed gain, 1 - 2 sqrt(x) K1(2 sqrt(x)) with x = threshold/s on
        average over Rayleigh fading. Outage: 1 - exp(-threshold/s) under Rayleigh fading, a step without it.
        None: nothing is lost.
    """
    xp = namespace(snr)
    if law == "none":
        return xp.zeros_like(snr)
    x = threshold / snr
    if fading == "rayleigh" and law == "waterfall":
        return rayleigh_packet_error(x)
    if fading == "none" and law == "outage":
        return xp.where(snr < threshold, xp.ones_like(snr), xp.zeros_like(snr))
    return -xp.expm1(-x)


def energy_per_bit(power: Array, rate: Array) -> Array:
    """Energy to send one bit p/R [J/bit], strictly increasing in the power (L6)."""
    return power / rate

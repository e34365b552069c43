"""Vehicles in the air: what flying costs, what they see from where they are, how far they get (theory 5a).

Positions have shape ``[..., 2]``, in metres. Functions of positions are written against the array API; only
`arrivals` and the field of view jump, which no derivative tells of.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from jointopt.models._array import as_array, namespace

__all__ = [
    "arrivals",
    "class_mix",
    "class_probabilities",
    "class_yield",
    "distance",
    "flight_energy",
    "mixture_density",
    "moved_towards",
    "rotary_wing_power",
    "rotary_wing_slope",
    "time_basis",
    "view_radius",
    "within_reach",
]

Array = Any
FloatArray = npt.NDArray[np.float64]

BLADE_POWER = 79.86
"""Blade profile power while hovering [W] [K, Zeng 2019]."""
INDUCED_POWER = 88.63
"""Induced power while hovering [W] [K, Zeng 2019]."""
TIP_SPEED = 120.0
"""Speed of the rotor blades' tips [m/s] [K, Zeng 2019]."""
ROTOR_SPEED = 4.03
"""Mean speed of the air that the rotor induces while hovering [m/s] [K, Zeng 2019]."""
PARASITE = 0.5 * 0.6 * 1.225 * 0.05 * 0.503
"""Half of drag ratio x air density x rotor solidity x rotor disc area [W s^3/m^3] [K, Zeng 2019]."""

_ROUNDING = 1e-9
"""What lies this little above a whole number is it; a distance this share above a limit keeps it."""


def rotary_wing_power(speed: Array) -> Array:
    """Propulsion power of a rotary-wing vehicle at a speed [m/s], in W (5a [K, Zeng 2019]).

    Hovering (168 W) costs more than slow flight; the least lies near 10 m/s.
    """
    xp = namespace(speed)
    # sqrt(1 + x^2) - x, which cancels at high speed, as 1/(sqrt(1 + x^2) + x)
    x = 0.5 * (speed / ROTOR_SPEED) ** 2
    lift = 1.0 / (xp.sqrt(1.0 + x**2) + x)
    return BLADE_POWER * (1.0 + 3.0 * (speed / TIP_SPEED) ** 2) + INDUCED_POWER * xp.sqrt(lift) + PARASITE * speed**3


def rotary_wing_slope(speed: Array) -> Array:
    """Derivative of `rotary_wing_power` in the speed [W s/m]."""
    xp = namespace(speed)
    x = 0.5 * (speed / ROTOR_SPEED) ** 2
    root = xp.sqrt(1.0 + x**2)
    induced = 0.5 * INDUCED_POWER * xp.sqrt(1.0 / (root + x)) / root
    return speed * (6.0 * BLADE_POWER / TIP_SPEED**2 - induced / ROTOR_SPEED**2) + 3.0 * PARASITE * speed**2


def flight_energy(distance: Array, seconds: Array) -> Array:
    """Energy to fly a distance [m] in a time [s] at constant speed, E_fly = P(distance/time) x time [J] (5g)."""
    return rotary_wing_power(distance / seconds) * seconds


def time_basis(time: npt.ArrayLike, period: float, size: int) -> FloatArray:
    """Return z(t) = [1, sin(2 pi t/P), cos(2 pi t/P), sin(4 pi t/P), ...], shape [..., size] (5a [S])."""
    angle = 2.0 * np.pi * np.asarray(time, dtype=np.float64)[..., None] / period
    order = np.arange(size)
    harmonic = (order + 1) // 2
    return np.where(order % 2 == 1, np.sin(harmonic * angle), np.cos(harmonic * angle))


def class_mix(mapping: Array, basis: Array) -> Array:
    """Share of every class psi = softmax(M z), shape [..., classes] (5a [R]).

    Parameters
    ----------
    mapping : array, shape [..., classes, basis]
        The static map M.
    basis : array, shape [..., basis]
        z(t), see `time_basis`.
    """
    xp = namespace(mapping, basis)
    logit = xp.sum(mapping * basis[..., None, :], axis=-1)
    shifted = xp.exp(logit - xp.max(logit, axis=-1, keepdims=True))
    return shifted / xp.sum(shifted, axis=-1, keepdims=True)


def distance(position: Array, other: Array) -> Array:
    """Distance of positions [m], shape ``[...]``; its derivative where they meet is taken as 0."""
    dx, dy = position[..., 0] - other[..., 0], position[..., 1] - other[..., 1]
    square = dx * dx + dy * dy
    xp = namespace(square)
    same = square <= 0.0
    return xp.where(same, xp.zeros_like(square), xp.sqrt(xp.where(same, xp.ones_like(square), square)))


def view_radius(altitude: Array, field_of_view: Array) -> Array:
    """Radius of the sensor's footprint H tan(theta/2) [m] (5a [S])."""
    return altitude * namespace(field_of_view).tan(0.5 * field_of_view)


def class_yield(position: Array, means: Array, mix: Array, length_scale: Array, radius: Array) -> Array:
    """Return psi_c exp(-|q - mu_c|/l) I_c, shape [..., classes] (5a [R], scale and footprint [S]).

    Parameters
    ----------
    position : array, shape [..., 2]
        q.
    means : array, shape [..., classes, 2]
        mu_c.
    mix : array, shape [..., classes]
        psi_c, see `class_mix`.
    length_scale : float or array, shape [..., 1]
        l [m].
    radius : float or array, shape [..., 1]
        A class is seen where its mean lies within this distance [m]; inf for everywhere.
    """
    xp = namespace(position, means, mix)
    away = distance(position[..., None, :], means)
    seen = away <= radius * (1.0 + _ROUNDING)
    value = mix * xp.exp(-away / length_scale)
    return xp.where(seen, value, xp.zeros_like(value))


def arrivals(class_yield: Array, samples_max: Array) -> Array:
    """New samples N(q, t) = ceil(N_max sum_c yield_c), shape ``[...]`` (5a [R])."""
    xp = namespace(class_yield)
    # + 0.0: the ceiling of a little less than nothing is -0
    return xp.ceil(as_array(samples_max * xp.sum(class_yield, axis=-1), xp) - _ROUNDING) + 0.0


def class_probabilities(class_yield: FloatArray) -> FloatArray:
    """Return the class probabilities of a new sample, shape [..., classes] (5a [S]); all 0 where none is seen."""
    total = class_yield.sum(axis=-1, keepdims=True)
    return np.divide(class_yield, total, out=np.zeros_like(class_yield), where=total > 0.0)


def mixture_density(position: Array, weights: Array, means: Array, covariances: Array) -> Array:
    """Density sum_c Pi_c N(q | mu_c, Lambda_c) [1/m^2], shape ``[...]`` (5a [R]).

    Parameters
    ----------
    position : array, shape [..., 2]
        q.
    weights : array, shape [..., classes]
        Pi_c, adding up to 1.
    means : array, shape [..., classes, 2]
        mu_c.
    covariances : array, shape [..., classes, 2, 2]
        Lambda_c [m^2], positive definite.
    """
    xp = namespace(position, means, covariances)
    dx = position[..., None, 0] - means[..., 0]
    dy = position[..., None, 1] - means[..., 1]
    a, b, c = covariances[..., 0, 0], covariances[..., 0, 1], covariances[..., 1, 1]
    determinant = a * c - b * b
    square = (c * dx * dx - 2.0 * b * dx * dy + a * dy * dy) / determinant
    return xp.sum(weights * xp.exp(-0.5 * square) / (2.0 * np.pi * xp.sqrt(determinant)), axis=-1)


def within_reach(position: FloatArray, centre: FloatArray, reach: Any) -> npt.NDArray[np.bool_]:
    """Whether positions lie in the reachable set |q - q_t| <= v_max tau, up to rounding, shape ``[...]``."""
    reached: npt.NDArray[np.bool_] = distance(position, centre) <= np.asarray(reach) * (1.0 + _ROUNDING) + _ROUNDING
    return reached


def moved_towards(centre: FloatArray, target: FloatArray, reach: Any) -> FloatArray:
    """Return the point of the reachable ball nearest to a target, shape ``[..., 2]``."""
    away = distance(target, centre)
    reach = np.asarray(reach, dtype=np.float64)
    share = np.where(away > reach, reach / np.where(away > 0.0, away, 1.0), 1.0)[..., None]
    return np.where(share < 1.0, centre + share * (target - centre), target + 0.0 * centre)

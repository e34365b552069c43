"""Link from a vehicle in the air to a station on the ground (theory 5a [K]): mean path loss, averaged in decibels."""

from __future__ import annotations

from typing import Any

import numpy as np

from jointopt.models._array import namespace

__all__ = ["LIGHT_SPEED", "air_gain", "elevation", "free_space_gain", "line_of_sight_probability"]

Array = Any

LIGHT_SPEED = 299_792_458.0
"""Speed of light [m/s]."""


def elevation(horizontal: Array, height: Array) -> Array:
    """Elevation angle [rad] at a horizontal distance and a height above the station [m]."""
    return namespace(horizontal, height).atan2(height + 0.0 * horizontal, horizontal + 0.0 * height)


def line_of_sight_probability(elevation: Array, offset: Array = 9.61, slope: Array = 0.16) -> Array:
    """P_LoS = 1/(1 + a exp(-b (angle - a))), angle in degrees (5a [K]); `elevation` in rad, a and b per degree."""
    xp = namespace(elevation)
    degrees = elevation * (180.0 / np.pi)
    return 1.0 / (1.0 + offset * xp.exp(-slope * (degrees - offset)))


def free_space_gain(distance: Array, carrier_frequency: Array) -> Array:
    """Power gain (c/(4 pi d f))^2 in free space at a distance [m], between antennas without direction."""
    return (LIGHT_SPEED / (4.0 * np.pi * carrier_frequency * distance)) ** 2


def air_gain(
    horizontal: Array,
    height: Array,
    carrier_frequency: Array = 2.4e9,
    *,
    los_loss: Array = 10**0.1,
    nlos_loss: Array = 10**2.0,
    offset: Array = 9.61,
    slope: Array = 0.16,
) -> Array:
    """Mean power gain of the link: free space, and the excess losses averaged in dB over line of sight (5a [K]).

    Parameters
    ----------
    horizontal, height : array
        Distance along the ground and height of the vehicle above the station [m]; height above 0.
    carrier_frequency : float
        Carrier [Hz].
    los_loss, nlos_loss : float
        Excess loss with and without line of sight, linear (1 dB and 20 dB).
    offset, slope : float
        Constants a and b of `line_of_sight_probability`.
    """
    xp = namespace(horizontal, height)
    probability = line_of_sight_probability(elevation(horizontal, height), offset, slope)
    excess = probability * np.log(los_loss) + (1.0 - probability) * np.log(nlos_loss)
    return free_space_gain(xp.sqrt(horizontal**2 + height**2), carrier_frequency) * xp.exp(-excess)

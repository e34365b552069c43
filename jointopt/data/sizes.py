"""How many samples each device gets, by laws of unequal sizes."""

from __future__ import annotations

import operator
from collections.abc import Callable
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from jointopt.errors import InputError, is_real, nearest

__all__ = ["LARGEST_ALPHA", "LAWS", "draw_sizes", "share_out", "whole"]

LARGEST_ALPHA = 1e12
"""Numpy's Dirichlet overflows near 1e308, and above this the mix is flat anyway."""
_LARGEST_SPREAD = 50.0  # exp(50 x 14 deviations) is still finite, and below this one device already has all

_Draw = Callable[[int, float, np.random.Generator], NDArray[np.float64]]

LAWS: MappingProxyType[str, _Draw] = MappingProxyType(
    {
        "dirichlet": lambda devices, spread, rng: rng.dirichlet(np.full(devices, min(spread, LARGEST_ALPHA))),
        "lognormal": lambda devices, spread, rng: np.exp(min(spread, _LARGEST_SPREAD) * rng.standard_normal(devices)),
        "power": lambda devices, spread, rng: rng.permutation(
            np.arange(1.0, devices + 1) ** -min(spread, _LARGEST_SPREAD)
        ),
    }
)
"""The laws `draw_sizes` knows: each draws unscaled shares, shape [devices], none negative."""


def whole(field: str, value: object, least: int) -> int:
    """Return a whole number of at least `least`, or raise `InputError`."""
    try:
        if isinstance(value, bool | np.bool_):
            raise TypeError
        number = operator.index(value)  # type: ignore[arg-type]  # refused at run time
    except TypeError:
        raise InputError(f"{field} must be a whole number, found {value!r}") from None
    if number < least:
        raise InputError(f"{field} must be at least {least}, found {number}")
    return number


def share_out(samples: int, shares: NDArray[np.float64], minimum: int) -> NDArray[np.int64]:
    """Return whole sizes in proportion to the shares, none below the minimum, that add up to the samples.

    Devices whose proportion is below the minimum get the minimum, the others their proportion of what is left,
    rounded by largest remainder; of equal remainders the lowest device's goes up. ``samples`` must be at least
    ``len(shares) x minimum``.
    """
    poor = np.zeros(len(shares), dtype=np.bool_)
    while True:  # each round adds to the poor or is the last
        weights = np.where(poor, 0.0, shares)
        if weights.sum() == 0:
            weights = np.where(poor, 0.0, 1.0) if not poor.all() else np.ones(len(shares))
        rest = samples - minimum * int(poor.sum())
        exact = np.where(poor, float(minimum), rest * (weights / weights.sum()))
        more = ~poor & (exact < minimum)
        if not more.any():
            break
        poor |= more
    sizes = np.floor(exact).astype(np.int64)
    # By rounding errors the floors may add up to one too many or lack more than one a device.
    order = np.argsort(-(exact - sizes), kind="stable")
    missing = samples - int(sizes.sum())
    for step in range(abs(missing)):
        if missing > 0:
            sizes[order[step % len(order)]] += 1
        else:
            sizes[np.argmax(sizes)] -= 1
    return sizes


def draw_sizes(
    samples: int, devices: int, *, law: str = "dirichlet", spread: float = 0.5, seed: int, minimum: int = 1
) -> NDArray[np.int64]:
    """Draw the sizes of the devices' data, for `partition`.

    Parameters
    ----------
    samples
        Samples to share out, all of them; at least `devices` x `minimum`.
    devices
        Number of devices, at least 1.
    law
        What the sizes are in proportion to: "dirichlet", one draw of Dirichlet(spread, ..., spread) (quantity skew
        of Li et al. 2022); "lognormal", exp(spread x standard normal); "power", k to the power -spread for the k-th
        largest, the devices in random order.
    spread
        Finite and > 0. The sizes are the more unequal the smaller it is for "dirichlet", the larger for the others.
    seed
        Seed of the draw, at least 0.
    minimum
        Fewest samples of any device, at least 0; what the law gives less is raised to that, at the others' cost in
        proportion.

    Returns
    -------
    ndarray
        int64, shape [devices], adding up to `samples`.

    Raises
    ------
    InputError
        An argument is out of its range, or the law is not known.
    """
    devices, minimum = whole("devices", devices, 1), whole("minimum", minimum, 0)
    samples = whole("samples", samples, 0)
    if devices * minimum > samples:
        raise InputError(
            f"{devices} devices with at least {minimum} samples each need {devices * minimum} samples, "
            f"but only {samples} are available"
        )
    draw = LAWS.get(law) if isinstance(law, str) else None
    if draw is None:
        raise InputError(f"unknown law '{law}'{nearest(str(law), LAWS)}")
    if not (is_real(spread) and 0 < spread < float("inf")):
        raise InputError(f"spread must be finite and > 0, found {spread!r}")
    rng = np.random.default_rng(whole("seed", seed, 0))
    return share_out(samples, draw(devices, float(spread), rng), minimum)

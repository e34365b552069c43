"""Ranges of a problem's variables: how they are narrowed, and the limits that a design sets to them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from jointopt.errors import InputError, nearest
from jointopt.system import FloatArray, System

__all__ = ["Limit", "Ranges", "changed_ranges", "learning_limits", "narrowed"]

Ranges = Mapping[str, tuple[FloatArray, FloatArray]]

_RAW_BITS = 32
"""Bits of an unquantized float, to which bits may be fixed in every design."""


@dataclass(frozen=True)
class Limit:
    """What a range must stay within, numbers or arrays over the devices; `words` say what its values must do."""

    low: Any
    high: Any
    words: str
    whole: bool = False

    @classmethod
    def between(cls, low: float, high: float) -> Self:
        """Return the limit of what lies between two numbers."""
        return cls(low, high, f"lie within {low:g} and {high:g}")

    @classmethod
    def counting(cls, low: int, high: int) -> Self:
        """Return the limit of whole numbers from one to another."""
        return cls(low, high, f"be whole numbers from {low} to {high}", whole=True)

    def holds(self, low: FloatArray, high: FloatArray) -> bool:
        """Return whether a range stays within."""
        ends = np.concatenate([low, high])
        broken = self.whole and np.any(ends != np.rint(ends))
        return not (broken or np.any(low < self.low) or np.any(high > self.high))


def learning_limits(system: System, bits_min: int) -> dict[str, Limit]:
    """Return the limits of pruning ratio, bits (which may lie above `bits_max`) and power [W]."""
    devices = system.devices
    return {
        "pruning_ratio": Limit.between(0, system.learner.pruning_ratio_max),
        "bits": Limit.counting(bits_min, _RAW_BITS),
        "power": Limit(devices.power_min, devices.power_max, "lie within every device's power_min and power_max"),
    }


def narrowed(
    ranges: Ranges,
    asked: Mapping[str, Any],
    size: int,
    limits: Mapping[str, Limit] | None = None,
    common: Collection[str] = (),
) -> dict[str, tuple[FloatArray, FloatArray]]:
    """Return ranges with some variables fixed (a number, an array over `size` devices) or narrowed (a pair of these).

    Parameters
    ----------
    ranges : dict of pairs of arrays
        Lower and upper ends by variable.
    asked : mapping
        What is to be fixed or narrowed.
    size : int
        Number of devices.
    limits : dict of Limit, optional
        What the ranges must stay within.
    common : collection of str
        Variables that have one value for all devices.

    Raises
    ------
    InputError
        For an unknown variable, what is no finite range over the devices, or one that leaves its limit.
    """
    new = dict(ranges)
    for name, value in asked.items():
        if name not in new:
            raise InputError(f"restrict: unknown variable '{name}'{nearest(name, new)}")
        pair = value if isinstance(value, tuple) else (value, value)
        count = 1 if name in common else size
        try:
            low, high = (np.broadcast_to(np.asarray(v, dtype=np.float64), (count,)).copy() for v in pair)
        except (TypeError, ValueError):
            raise InputError(
                f"restrict: {name}={value!r} must be a number, an array over {count} devices, or a pair of these"
            ) from None
        if not (np.all(np.isfinite(low)) and np.all(np.isfinite(high)) and np.all(low <= high)):
            raise InputError(f"restrict: {name}={value!r} is not a finite range")
        new[name] = (low, high)
    for name, limit in (limits or {}).items():
        if not limit.holds(*new[name]):
            raise InputError(f"restrict: {name} must {limit.words}")
    return new


def changed_ranges(ranges: Ranges, own: Ranges) -> dict[str, Any]:
    """Return the ranges that differ from a system's own, as plain lists for the record."""
    return {
        name: {"lower": low.tolist(), "upper": high.tolist()}
        for name, (low, high) in ranges.items()
        if not (np.array_equal(low, own[name][0]) and np.array_equal(high, own[name][1]))
    }

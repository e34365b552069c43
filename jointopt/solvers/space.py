"""The unit cube that Bayesian optimization searches, and its map to a `Search`'s variables.

Real variables fill their side of the cube, on a logarithmic scale where the search asks for it. A variable of whole
numbers stands on as many equally spaced points of its side, from 0 to 1, so that what a model learns at a point is
what was evaluated there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from jointopt.errors import InputError
from jointopt.problem import Search
from jointopt.system import FloatArray

__all__ = ["ENUMERATED", "Box", "Cube"]

ENUMERATED = 4096
"""Most points for which a cube of whole numbers is listed whole."""


@dataclass(frozen=True)
class Cube:
    """A unit cube; `levels` is the number of points on each side, 0 where the side is real."""

    levels: npt.NDArray[np.int64]

    @property
    def dimension(self) -> int:
        """Number of variables."""
        return int(self.levels.size)

    @cached_property
    def discrete(self) -> npt.NDArray[np.bool_]:
        """Sides that hold finitely many points."""
        return self.levels > 0

    @property
    def size(self) -> float:
        """Number of points, inf where a side is real."""
        return float(np.prod(self.levels.astype(np.float64))) if np.all(self.discrete) else np.inf

    def snap(self, point: FloatArray) -> FloatArray:
        """Return the nearest points of the cube, shape ``[..., dimension]``."""
        steps = np.maximum(self.levels - 1, 1)
        point = np.clip(point, 0.0, 1.0)
        return np.where(self.discrete, np.rint(point * steps) / steps, point)

    def spread(self, uniform: FloatArray) -> FloatArray:
        """Return points from uniform draws: every whole number gets an equal share, shape ``[..., dimension]``."""
        steps = np.maximum(self.levels - 1, 1)
        whole = np.minimum(np.floor(uniform * self.levels), steps) / steps
        return np.where(self.discrete, whole, uniform)

    def list(self) -> FloatArray:
        """Return all points of a cube of whole numbers, shape ``[size, dimension]``."""
        axes = [np.arange(n) / max(n - 1, 1) for n in self.levels]
        return np.stack([a.reshape(-1) for a in np.meshgrid(*axes, indexing="ij")], axis=-1)

    def neighbours(self, point: FloatArray) -> FloatArray:
        """Return the points one step away in one variable of whole numbers, shape ``[n, dimension]``."""
        out = []
        for i in np.flatnonzero(self.discrete):
            step = 1.0 / max(int(self.levels[i]) - 1, 1)
            for move in (-step, step):
                if -1e-9 <= point[i] + move <= 1.0 + 1e-9:
                    near = point.copy()
                    near[i] += move
                    out.append(near)
        return self.snap(np.array(out).reshape(-1, self.dimension))


def key(point: FloatArray) -> tuple[float, ...]:
    """Return what equal points share."""
    return tuple(np.round(point, 12).tolist())


class Box:
    """The variables of a search that can move, as a cube."""

    def __init__(self, search: Search) -> None:
        self.lower, self.upper = (np.asarray(b, dtype=np.float64) for b in (search.lower, search.upper))
        size = self.lower.size
        kind = np.broadcast_to(np.asarray(getattr(search, "kind", "real")), (size,))
        self.whole = kind != "real"
        self.logarithmic = np.broadcast_to(np.asarray(search.logarithmic, dtype=np.bool_), (size,)) & ~self.whole
        for bad, why in (
            (~(np.isfinite(self.lower) & np.isfinite(self.upper)), "must be finite"),
            (self.whole & ((self.lower % 1.0 != 0.0) | (self.upper % 1.0 != 0.0)), "must be whole numbers"),
            (self.logarithmic & ~(self.lower > 0.0), "must be above 0 on a logarithmic scale"),
        ):
            if np.any(bad):
                i = int(np.argmax(bad))
                raise InputError(
                    f"{search.name}[variable {i}]: the bounds {self.lower[i]:g} and {self.upper[i]:g} {why}"
                )
        self.free = np.flatnonzero(self.upper > self.lower)
        self.low, self.high = (
            np.where(self.logarithmic, np.log(np.where(self.logarithmic, b, 1.0)), b) for b in (self.lower, self.upper)
        )
        count = np.where(self.whole, self.upper - self.lower + 1.0, 0.0)
        self.cube = Cube(count[self.free].astype(np.int64))

    def clip(self, scaled: FloatArray) -> FloatArray:
        """Return x from its scale, exactly within the bounds, whole where it must be; shape ``[..., variables]``."""
        x = np.where(self.logarithmic, np.exp(np.where(self.logarithmic, scaled, 0.0)), scaled)
        return np.clip(np.where(self.whole, np.rint(x), x), self.lower, self.upper)

    def spread(self, point: FloatArray) -> FloatArray:
        """Return x ``[..., variables]`` from the free ones in the unit cube ``[..., free]``."""
        share = np.zeros((*point.shape[:-1], self.lower.size))
        share[..., self.free] = point
        return self.clip(self.low + share * (self.high - self.low))

    def share(self, x: FloatArray) -> FloatArray:
        """Return the free variables' points in the unit cube ``[..., free]`` nearest to x ``[..., variables]``."""
        x = np.clip(x, self.lower, self.upper)
        scaled = np.where(self.logarithmic, np.log(np.where(self.logarithmic, x, 1.0)), x)
        free = self.free
        return self.cube.snap((scaled[..., free] - self.low[free]) / (self.high - self.low)[free])

    def middle(self) -> FloatArray:
        """Return the middle of the range."""
        return self.clip(0.5 * (self.low + self.high))


def line(box: Box, attribute: Any, overshoot: float) -> tuple[Callable[..., FloatArray], Callable[..., FloatArray]]:
    """Return the map from two numbers, the line's ends over the attribute's range, to x; and its least-squares inverse.

    A line may leave the box by a share `overshoot` of its width at either end and is then clipped, so that it can be
    steeper than the box.
    """
    z = np.asarray(attribute, dtype=np.float64)
    width = float(np.ptp(z))
    share = (z - z.min()) / width if width > 0.0 else np.zeros(z.size)
    low, high = float(box.low.min()), float(box.high.max())

    def spread(point: FloatArray) -> FloatArray:
        ends = (1.0 + 2.0 * overshoot) * point - overshoot
        return box.clip(low + (high - low) * (ends[..., :1] + (ends[..., 1:] - ends[..., :1]) * share))

    def fit(x: FloatArray) -> FloatArray:
        scaled = np.where(box.logarithmic, np.log(np.where(box.logarithmic, x, 1.0)), x)
        level = (scaled - low) / (high - low if high > low else 1.0)
        ends, *_ = np.linalg.lstsq(np.stack([1.0 - share, share], axis=-1), level, rcond=None)
        return np.clip((ends + overshoot) / (1.0 + 2.0 * overshoot), 0.0, 1.0)

    return spread, fit

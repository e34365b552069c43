"""Convex, rising curves through measured points, for any kind of array.

A measured share of the weights' energy enters a bound, so the function that stands for it must never lie below a
measurement, and what the exact solvers prove of it rests on convexity. Through a convex sequence of points both come
with straight lines: a chord lies above every convex function that it cuts, and the chords together are the greatest of
their own extensions, hence convex. A sequence that is not convex has no such function through it, and more than one
above it. It is refused rather than repaired unasked, since a decision would be proved optimal for other numbers than
those given; `convex_majorant` makes one that is convex, raising points and lowering none.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from array_api_compat import is_torch_array

from jointopt.errors import InputError
from jointopt.models._array import is_foreign, namespace
from jointopt.models.special import Elementary

__all__ = ["ConvexCurve", "convex_majorant"]

Array = Any
_Vector = npt.NDArray[np.float64]

TOLERANCE = 1e-9
"""By how much a point may lie below the line through those before it: rounding of what was measured."""


class ConvexCurve:
    """A rising, convex, piecewise linear function from (0, 0) through measured points, none of them above it.

    Points that are convex up to `TOLERANCE` are met; where rounding bends them the other way, the line so far is
    continued above them. Beyond the last point, and below 0, the nearest piece goes on. Curves are equal, and hash
    alike, where their points are.

    Parameters
    ----------
    ratio : array, shape [points]
        Where it was measured: 0 first, rising, at most 1. At least 2 points.
    error : array, shape [points]
        What was measured there: 0 first, never falling, at most 1, convex.
    names : tuple of two str
        How errors call the two.

    Attributes
    ----------
    knots, values : arrays, shape [points]
        The points it passes through.
    slopes : array, shape [points - 1]
        Slopes of its pieces, never falling.

    Raises
    ------
    InputError
        For anything else, naming the point.
    """

    def __init__(self, ratio: npt.ArrayLike, error: npt.ArrayLike, *, names: tuple[str, str] = ("ratio", "error")):
        knots, given = (_points(values, name) for values, name in zip((ratio, error), names, strict=True))
        if knots.size != given.size:
            raise InputError(f"{names[1]}: has {given.size} values for the {knots.size} points of {names[0]}")
        for step, name, rule in (
            (np.diff(knots) <= 0.0, names[0], "must be above the point before it"),
            (np.diff(given) < 0.0, names[1], "must not be below the point before it"),
        ):
            if np.any(step):
                i = int(np.argmax(step)) + 1
                raise InputError(f"{name}[point {i}]: {float((knots, given)[name == names[1]][i])!r} {rule}")
        values, slopes = _continued(knots, given)
        if np.any(short := values - given > TOLERANCE):
            i = int(np.argmax(short))
            raise InputError(
                f"{names[1]}[point {i}]: {float(given[i])!r} lies {values[i] - given[i]:.3g} below the line through "
                "the points before it, and the curve must be convex; jointopt.models.curve.convex_majorant raises "
                "points until it is"
            )
        for array in (knots, values, slopes):
            array.setflags(write=False)
        self.knots, self.values, self.slopes = knots, values, slopes
        self._key = (knots.tobytes(), values.tobytes())
        # convex and rising: both it and its slope rise
        self._function = Elementary(
            "convex_curve",
            self._kernel,
            self.slope,
            monotone=1,
            slope_monotone=1,
            lower=-np.inf,
            formula=self._greatest,
        )

    def __eq__(self, other: object) -> bool:
        return self._key == other._key if isinstance(other, ConvexCurve) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._key)

    def __repr__(self) -> str:
        return f"ConvexCurve({self.knots.size} points, {self.values[-1]:.4g} at {self.knots[-1]:.4g})"

    def __call__(self, x: Array) -> Array:
        """Return its values, in the kind of array that `x` is."""
        # intervals enclose a function of known shape best; of the others some know no function but the largest of
        # affine ones, which serves them all
        return self._greatest(x) if is_foreign(x) and not hasattr(x, "interpolate") else self._function(x)

    def slope(self, x: Array) -> Array:
        """Return the slope at `x`, that of the piece on the right at a corner; NumPy or torch."""
        if is_torch_array(x):
            xp = namespace(x)
            corners, jumps = (
                xp.asarray(part, dtype=x.dtype, device=x.device)
                for part in (np.array(self.knots[1:-1]), np.diff(self.slopes))
            )
            passed = x[..., None] >= corners
            # x * 0: its derivative is 0, not missing
            return x * 0.0 + float(self.slopes[0]) + xp.sum(xp.where(passed, jumps, xp.zeros_like(jumps)), axis=-1)
        return self.slopes[self._piece(np.asarray(x, dtype=np.float64))]

    def at_slope(self, slope: Array) -> Array:
        """Return the least ratio of least error(ratio) - slope x ratio; inf where that falls without end. NumPy."""
        return np.append(self.knots[:-1], np.inf)[np.searchsorted(self.slopes, slope, side="left")]

    def first(self, rises: Callable[[Array, Array], Array], shape: tuple[int, ...]) -> npt.NDArray[np.int64]:
        """Find the pieces in which convex functions of the ratio, this curve a part of them, are least.

        Parameters
        ----------
        rises : callable
            Says for ends of pieces and slopes of the curve up to there, both of `shape`, whether the whole function
            no longer falls there. What holds at one end must hold at all later ones.
        shape : tuple of int
            Shape of the functions.

        Returns
        -------
        array of `shape`
            The first piece at whose far end `rises`; the last one, which has no end, where there is none.
        """
        low, high = np.zeros(shape, dtype=np.int64), np.full(shape, self.slopes.size - 1)
        for _ in range(int(self.slopes.size - 1).bit_length()):
            middle = (low + high) // 2
            # where low and high have met, the answer about the piece itself leaves them there
            up = rises(self.knots[middle + 1], self.slopes[middle]) | (low >= high)
            low, high = np.where(up, low, middle + 1), np.where(up, np.minimum(middle, high), high)
        return low

    def ends(self, piece: npt.NDArray[np.int64]) -> tuple[_Vector, _Vector]:
        """Return where pieces begin and end; the first and the last go on without end."""
        return (
            np.where(piece == 0, -np.inf, self.knots[piece]),
            np.where(piece == self.slopes.size - 1, np.inf, self.knots[piece + 1]),
        )

    def _piece(self, x: _Vector) -> npt.NDArray[np.int64]:
        return np.clip(np.searchsorted(self.knots, x, side="right") - 1, 0, self.slopes.size - 1)

    def _kernel(self, x: _Vector) -> _Vector:
        piece = self._piece(x)
        out: _Vector = self.values[piece] + self.slopes[piece] * (x - self.knots[piece])
        return out

    def _greatest(self, x: Array) -> Array:
        """Return the largest of the pieces' lines, which a convex function is."""
        xp = namespace(x)
        lines = x[..., None] * 1.0 - xp.asarray(np.array(self.knots[:-1]))
        return xp.max(lines * xp.asarray(np.array(self.slopes)) + xp.asarray(np.array(self.values[:-1])), axis=-1)


@lru_cache(maxsize=64)
def known_curve(ratio: tuple[float, ...], error: tuple[float, ...]) -> ConvexCurve:
    """Return the curve through points, made once."""
    return ConvexCurve(ratio, error)


def convex_majorant(ratio: npt.ArrayLike, error: npt.ArrayLike) -> _Vector:
    """Return a convex sequence from 0 above measured errors whose greatest height above one is the least there is.

    For an amount t, the lower convex hull of (0, 0) and of all other points raised by t is the greatest convex curve
    that starts at 0 and lies nowhere more than t above the points. The least t for which that hull lies above the
    measurements is known: every point asks for its height above the lines between points on either side of it. Nothing
    changes where the points are convex already. A curve that is not nearly convex may end above 1, which no share is:
    `ConvexCurve` refuses it.

    Parameters
    ----------
    ratio, error : arrays, shape [points]
        What was measured: 0 first in both, the ratio rising.

    Returns
    -------
    array, shape [points]
        Errors that are convex in the ratio, 0 at 0, none below its measurement.

    Raises
    ------
    InputError
        For arrays of different lengths, what is no finite number, or a ratio that does not rise from 0.
    """
    knots, given = _points(ratio, "ratio", most=np.inf), _points(error, "error", most=np.inf)
    if knots.size != given.size:
        raise InputError(f"error: has {given.size} values for the {knots.size} points of ratio")
    if np.any(step := np.diff(knots) <= 0.0):
        i = int(np.argmax(step)) + 1
        raise InputError(f"ratio[point {i}]: {float(knots[i])!r} must be above the point before it")
    values, _ = _continued(knots, given)
    if np.all(values - given <= TOLERANCE):
        return values
    x, y = knots[1:], given[1:]
    # between points that are raised as well, and between 0 and one that is
    asked = float(np.max(y - np.interp(x, x[hull := _hull(x, y)], y[hull])))
    through = float(np.max(np.maximum.accumulate(y / x)[:-1] * x[1:] - y[1:], initial=0.0))
    raised = np.append(0.0, y + max(asked, through, 0.0))
    hull = _hull(knots, raised)
    # on the hull again: what rounding bends is straightened upwards
    return _continued(knots, np.maximum(given, np.interp(knots, knots[hull], raised[hull])))[0]


def _points(values: npt.ArrayLike, name: str, most: float = 1.0) -> _Vector:
    try:
        array = np.array(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise InputError(f"{name}: expected numbers, got {values!r}") from None
    if array.ndim != 1 or array.size < 2:
        raise InputError(f"{name}: a curve needs at least 2 points, got an array of shape {array.shape}")
    for bad, rule in (
        (~np.isfinite(array), "must be finite"),
        (array < 0.0, "must be at least 0"),
        (array > most, f"must be at most {most:g}"),
        ((np.arange(array.size) == 0) & (array != 0.0), "must be 0: nothing pruned, nothing lost"),
    ):
        if np.any(bad):
            i = int(np.argmax(bad))
            raise InputError(f"{name}[point {i}]: {float(array[i])!r} {rule}")
    return array


def _continued(knots: _Vector, given: _Vector) -> tuple[_Vector, _Vector]:
    """Points at or above the given ones, each at least on the line through the two before it, and their slopes."""
    values, slopes = given.copy(), np.empty(given.size - 1)
    steepest = 0.0
    for i, step in enumerate(np.diff(knots)):
        steepest = max(steepest, (values[i + 1] - values[i]) / step)
        slopes[i] = steepest
        values[i + 1] = max(values[i + 1], values[i] + steepest * step)
    return values, slopes


def _hull(x: _Vector, y: _Vector) -> list[int]:
    """Corners of the lower convex hull of points whose x rises."""
    corners: list[int] = []
    for i in range(x.size):
        while len(corners) > 1:
            a, b = corners[-2:]
            if (y[b] - y[a]) * (x[i] - x[a]) < (y[i] - y[a]) * (x[b] - x[a]):
                break
            corners.pop()
        corners.append(i)
    return corners

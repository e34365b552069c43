"""A lower bound of a function over the feasible points of a box, from intervals of values and slopes.

Let f be the function, g_j <= 0 the constraints, and y a corner of the box. With a_i and b_ji the least slopes along the
coordinates, counted away from y, and t_i in [0, w_i] the distances from y (in the logarithm, along a logarithmic
coordinate), every point of the box has

    f >= f(y) + sum_i a_i t_i   and   g_j >= g_j(y) + sum_i b_ji t_i,

so that for any multipliers m_j >= 0 the feasible points have

    f >= f(y) + sum_j m_j g_j(y) + sum_i w_i min(0, a_i + sum_j m_j b_ji).

The corner is where the middle of the slopes says that f is least; the multipliers are looked for among those at which a
term of the last sum changes sign, one constraint after the other. The error of the bound falls with the square of the
width, also where constraints bind. The plain interval value is a second bound; the better one counts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from jointopt.arithmetic.intervals import Interval

__all__ = ["Enclosure", "enclose"]

FloatArray = npt.NDArray[np.float64]
Terms = Callable[[list[Any]], tuple[Any, list[Any]]]
"""Points or intervals, one array a coordinate -> (value, excess of each constraint)."""

SWEEPS = 2
"""Times each multiplier is looked for."""
SLOP = 1e-13
"""Share of the magnitudes involved by which rounding may have moved a bound."""


@dataclass(frozen=True)
class Enclosure:
    """What is known of boxes; arrays over rows.

    Attributes
    ----------
    bound : array, shape [rows]
        Lower bound of the value over the box's feasible points; inf where there is none.
    decided : bool array, shape [rows]
        Whether every point of the box is feasible.
    corner : array, shape [coordinates, rows]
        The corner y.
    corner_value : array, shape [rows]
        The value there, inf where it is not feasible.
    to_low, to_high : bool array, shape [coordinates, rows]
        Where the least feasible value is taken at the low (high) end of a coordinate, if there is a feasible point.
    smear : array, shape [coordinates, rows]
        How much each coordinate's width matters.
    """

    bound: FloatArray
    decided: npt.NDArray[np.bool_]
    corner: FloatArray
    corner_value: FloatArray
    to_low: npt.NDArray[np.bool_]
    to_high: npt.NDArray[np.bool_]
    smear: FloatArray


def enclose(
    terms: Terms,
    low: FloatArray,
    high: FloatArray,
    *,
    tolerance: float,
    logarithmic: npt.NDArray[np.bool_] | None = None,
) -> Enclosure:
    """Bound a function over boxes.

    Parameters
    ----------
    terms : callable
        Gives the value and the excess of every constraint, of points as well as of intervals.
    low, high : array, shape [coordinates, rows]
        Ends of the boxes.
    tolerance : float
        Excess up to which a point counts as feasible.
    logarithmic : bool array, shape [coordinates], optional
        Coordinates, positive, along which slopes are taken in the logarithm.
    """
    rows = low.shape[1]
    log = np.zeros(low.shape[0], dtype=bool) if logarithmic is None else logarithmic
    wide = high > low
    free = np.flatnonzero(wide.any(axis=1))
    x: list[Any] = list(low)
    for i, box in zip(free, Interval.variables(low[free], high[free], log[free].tolist()), strict=True):
        x[i] = box
    value, excess = terms(x)
    floor, _, slope_low, slope_high = _ends(value, low, free)
    empty = np.zeros(rows, dtype=bool)
    decided = np.ones(rows, dtype=bool)
    loose: list[tuple[npt.NDArray[np.bool_], FloatArray, FloatArray]] = []
    for g in excess:
        g_low, g_high, b_low, b_high = _ends(g, low, free)
        empty |= g_low > tolerance
        open_rows = ~(g_high <= 0.0)
        decided &= ~open_rows
        loose.append((open_rows, b_low, b_high))
    to_low, to_high = (slope_low >= 0.0) & wide, (slope_high <= 0.0) & wide
    for open_rows, b_low, b_high in loose:
        to_low &= ~open_rows | (b_low >= 0.0)
        to_high &= ~open_rows | (b_high <= 0.0)
    to_high &= ~to_low

    # where f looks least
    at_low = slope_low + slope_high >= 0.0
    corner = np.where(at_low, low, high)
    at_corner, excess_corner = terms(list(corner))
    at_corner = np.broadcast_to(np.asarray(at_corner, dtype=np.float64), (rows,))
    corners = [np.broadcast_to(np.asarray(g, dtype=np.float64), (rows,)) for g in excess_corner]
    width = high - low
    if log.any():
        width[log] = np.log(high[log] / low[log])
    with np.errstate(invalid="ignore", over="ignore"):
        away = np.where(at_low, slope_low, -slope_high)
        line = at_corner + _least(away, width)
        size = np.abs(at_corner) + np.abs(_least(-np.abs(np.where(np.isfinite(away), away, 0.0)), width))
        undecided = np.flatnonzero(~decided & ~empty)
        if undecided.size:
            line = line.copy()
            line[undecided] = _with_multipliers(
                at_corner[undecided],
                away[:, undecided],
                width[:, undecided],
                [g[undecided] - tolerance for g in corners],
                [np.where(at_low, b_low, -b_high)[:, undecided] for _, b_low, b_high in loose],
                line[undecided],
            )
        bound = np.fmax(
            np.where(np.isnan(floor), -np.inf, floor), np.where(np.isnan(line), -np.inf, line) - SLOP * size
        )
    bound = np.where(empty, np.inf, bound)
    feasible = np.ones(rows, dtype=bool)
    for g in corners:
        feasible &= g <= 0.0
    return Enclosure(
        bound=bound,
        decided=decided,
        corner=corner,
        corner_value=np.where(feasible & ~np.isnan(at_corner), at_corner, np.inf),
        to_low=to_low,
        to_high=to_high,
        smear=_smear(slope_low, slope_high, width, loose),
    )


def _ends(
    value: Any, low: FloatArray, free: npt.NDArray[np.int64]
) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
    """Return (low, high, least slopes, greatest slopes) of an interval in `free` coordinates, or of a plain array."""
    rows = low.shape[1]
    if not isinstance(value, Interval):
        plain = np.broadcast_to(np.asarray(value, dtype=np.float64), (rows,))
        nothing = np.zeros(low.shape)
        return plain, plain, nothing, nothing
    ends = tuple(np.broadcast_to(end, (rows,)) for end in (value.low, value.high))
    slopes = [np.zeros(low.shape), np.zeros(low.shape)]
    least, greatest = value.dlow, value.dhigh
    if least is not None and greatest is not None:
        slopes[0][free] = np.where(np.isnan(least), -np.inf, least)
        slopes[1][free] = np.where(np.isnan(greatest), np.inf, greatest)
    return ends[0], ends[1], slopes[0], slopes[1]


def _least(slope: FloatArray, width: FloatArray) -> FloatArray:
    """Least of sum_i slope_i t_i over t_i in [0, width_i], shape [rows]."""
    total: FloatArray = np.where(width > 0.0, width * np.minimum(slope, 0.0), 0.0).sum(axis=0)
    return total


def _with_multipliers(
    f: FloatArray,
    a: FloatArray,
    width: FloatArray,
    g: list[FloatArray],
    b: list[FloatArray],
    best: FloatArray,
) -> FloatArray:
    """Improve the linear bound by multipliers of the constraints, one after the other; any of them are valid."""
    fixed = np.zeros_like(f)  # sum_k m_k g_k of the constraints
    slope = a.copy()  # a_i + sum_k m_k b_ki
    chosen = [np.zeros_like(f) for _ in g]
    for _ in range(SWEEPS if len(g) > 1 else 1):
        for j, (g_j, b_j) in enumerate(zip(g, b, strict=True)):
            known = np.isfinite(g_j) & np.all(np.isfinite(b_j) | (width <= 0.0), axis=0)
            b_known = np.where(known & (width > 0.0), b_j, 0.0)
            g_known = np.where(known, g_j, 0.0)
            rest, others = fixed - chosen[j] * g_known, slope - chosen[j] * b_known
            better, where = best, chosen[j]
            for i in range(a.shape[0]):
                with np.errstate(divide="ignore", invalid="ignore"):
                    trial = -others[i] / b_known[i]
                trial = np.where(np.isfinite(trial) & (trial > 0.0), trial, 0.0)
                bound = f + rest + trial * g_known + _least(others + trial * b_known, width)
                improves = bound > better
                better, where = np.where(improves, bound, better), np.where(improves, trial, where)
            best, chosen[j] = better, where
            fixed, slope = rest + where * g_known, others + where * b_known
    return best


def _smear(
    slope_low: FloatArray,
    slope_high: FloatArray,
    width: FloatArray,
    loose: list[tuple[npt.NDArray[np.bool_], FloatArray, FloatArray]],
) -> FloatArray:
    """Variation of the value along each coordinate, and as much for constraints that are still open."""

    def share(low: FloatArray, high: FloatArray) -> FloatArray:
        with np.errstate(invalid="ignore", over="ignore"):
            change = np.where(width > 0.0, width * np.maximum(np.abs(low), np.abs(high)), 0.0)
        # an unknown slope counts for more than any known one
        change = np.where(np.isfinite(change), change, 1e300 * np.where(width > 0.0, 1.0, 0.0))
        total = change.sum(axis=0)
        return np.asarray(change / np.where(total > 0.0, total, 1.0))

    smear = share(slope_low, slope_high)
    for open_rows, b_low, b_high in loose:
        smear = smear + np.where(open_rows, share(b_low, b_high), 0.0)
    return smear

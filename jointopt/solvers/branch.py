"""Branch and bound over one real variable and a label per unit, all units at once.

Any problem that offers `Cells` gets its *priced response* from here: the best point of every unit at given
prices, with a lower bound that holds whatever happens in between. Units are handled in slices, several at a time
(NumPy releases the interpreter lock in its loops), so memory does not grow with their number.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from jointopt.problem import CellList, Cells, Leaves
from jointopt.system import FloatArray

__all__ = ["CellsResponse", "respond"]

SLICE = 16_384
"""Units handled together: large enough to amortise Python, small enough to stay in cache."""

MAX_LEVELS = 200


@dataclass(frozen=True)
class CellsResponse:
    """Best point of every unit at given prices; arrays over units.

    `value` is inf and `label` -1 where a unit has no feasible point. `lower_bound` holds for the unit's least
    value; `cells` counts the cells examined.
    """

    label: npt.NDArray[np.int64]
    x: FloatArray
    value: FloatArray
    lower_bound: FloatArray
    cells: int
    leaves: Leaves | None = None

    @property
    def feasible(self) -> npt.NDArray[np.bool_]:
        """Units with a feasible point."""
        return np.isfinite(self.value)


def respond(
    cells: Cells,
    prices: FloatArray,
    *,
    gap: float = 5e-7,
    stop: Any = None,
    keep: bool = False,
    start: tuple[npt.NDArray[np.int64], FloatArray] | None = None,
    levels: int = MAX_LEVELS,
) -> CellsResponse:
    """Return every unit's best point at the prices, each within a relative `gap` of its lower bound.

    Parameters
    ----------
    cells : Cells
        The units.
    prices : array, shape [features] or [features, units]
        Price of each sum; one vector a unit where the cells support it.
    gap : float
        Relative gap at which a unit is settled.
    stop : callable, optional
        Asked before every slice; raises to interrupt.
    keep : bool
        Whether to return the closed cells (`Leaves`).
    start : pair of arrays, shape [units], optional
        Labels (-1 for none) and points to begin with, such as the best ones at other prices.
    levels : int
        Times cells are split at most; the bounds of units that are not settled by then hold all the same.
    """
    starts = range(0, cells.units, SLICE)
    slices = [slice(start, min(start + SLICE, cells.units)) for start in starts]

    def work(units: slice) -> CellsResponse:
        if stop is not None:
            stop()
        return _respond(cells, prices, units, gap, keep, start, levels)

    workers = min(len(slices), os.cpu_count() or 1)
    if workers > 1:
        pool = ThreadPoolExecutor(workers)
        try:
            parts = list(pool.map(work, slices))
        finally:
            # after an interruption the slices not yet begun are dropped
            pool.shutdown(cancel_futures=True)
    else:
        parts = [work(units) for units in slices]
    return CellsResponse(
        label=np.concatenate([p.label for p in parts]),
        x=np.concatenate([p.x for p in parts]),
        value=np.concatenate([p.value for p in parts]),
        lower_bound=np.concatenate([p.lower_bound for p in parts]),
        cells=sum(p.cells for p in parts),
        leaves=Leaves.join([p.leaves for p in parts if p.leaves is not None]) if keep else None,
    )


class _Incumbent:
    """Best point seen per unit of a slice."""

    def __init__(self, units: slice) -> None:
        size = units.stop - units.start
        self.start = units.start
        self.value = np.full(size, np.inf)
        self.label = np.full(size, -1, dtype=np.int64)
        self.x = np.full(size, np.nan)

    def offer(self, unit: Any, label: Any, x: Any, value: Any) -> None:
        """Take points that improve; ties go to the first, so that results do not depend on the slicing."""
        rows = unit - self.start
        better = np.flatnonzero(value < self.value[rows])
        if better.size == 0:
            return
        # last write wins in NumPy: write from worst to best
        order = better[np.argsort(-value[better], kind="stable")]
        self.value[rows[order]] = value[order]
        self.label[rows[order]] = label[order]
        self.x[rows[order]] = x[order]


@dataclass
class _Closed:
    """Cells that are settled, each with its bound; nothing is stored unless it is wanted."""

    wanted: bool
    parts: list[tuple[CellList, FloatArray]] = field(default_factory=list)

    def add(self, cells: CellList, rows: Any, bound: FloatArray) -> None:
        """Store some rows."""
        if self.wanted and np.size(rows):
            self.parts.append((cells.take(rows), bound[rows]))

    def leaves(self, left_out: Leaves | None) -> Leaves:
        """Return what was stored and what was left out at the start, by unit."""
        nothing = np.empty((2, 0))
        parts = [Leaves(("label", "x"), np.empty(0, dtype=np.int64), nothing, nothing, np.empty(0))]
        for cells, bound in self.parts:
            label = cells.label.astype(np.float64)
            parts.append(
                Leaves(("label", "x"), cells.unit, np.stack([label, cells.low]), np.stack([label, cells.high]), bound)
            )
        every = Leaves.join([*parts, left_out] if left_out is not None else parts)
        order = np.argsort(every.unit, kind="stable")
        return Leaves(every.names, every.unit[order], every.low[:, order], every.high[:, order], every.bound[order])


def _respond(
    cells: Cells,
    prices: FloatArray,
    units: slice,
    gap: float,
    keep_leaves: bool = False,
    start: tuple[npt.NDArray[np.int64], FloatArray] | None = None,
    levels: int = MAX_LEVELS,
) -> CellsResponse:
    best = _Incumbent(units)
    settled = np.full(units.stop - units.start, np.inf)
    closed = _Closed(keep_leaves)
    open_cells = cells.cover(prices, units)
    examined = len(open_cells)
    if start is not None:
        known = units.start + np.flatnonzero(start[0][units] >= 0)
        if known.size:
            label, x = start[0][known], start[1][known]
            best.offer(known, label, x, cells.value(prices, known, label, x, cells.probe(known, x)))
    for low in (True, False):
        x, data = (open_cells.low, open_cells.data_low) if low else (open_cells.high, open_cells.data_high)
        best.offer(
            open_cells.unit,
            open_cells.label,
            x,
            cells.value(prices, open_cells.unit, open_cells.label, x, data),
        )

    lower, hint = cells.bound(prices, open_cells)
    for level in range(levels):
        rows = open_cells.unit - units.start
        target = best.value[rows]
        # without an incumbent (inf) everything that may be feasible stays open
        tolerance = gap * np.abs(np.where(np.isfinite(target), target, 0.0))
        keep = (lower < target - tolerance) & (open_cells.high > open_cells.low)
        np.minimum.at(settled, rows[~keep], lower[~keep])
        closed.add(open_cells, np.flatnonzero(~keep), lower)
        kept = np.flatnonzero(keep)
        if kept.size == 0:
            break
        waiting = kept[:0]
        if level == 0:
            # the most promising cell of every unit first: its incumbent settles most of the others
            order = kept[np.lexsort((lower[kept], rows[kept]))]
            first = np.concatenate([[True], np.diff(rows[order]) != 0])
            kept, waiting = order[first], order[~first]
        parents = open_cells.take(kept)
        children = _split(cells, prices, parents, *cells.split(prices, parents, hint[kept]), best)
        examined += len(children)
        child_lower, child_hint = cells.bound(prices, children)
        open_cells = CellList.join([open_cells.take(waiting), children])
        lower = np.concatenate([lower[waiting], child_lower])
        hint = np.concatenate([hint[waiting], child_hint])
    else:
        np.minimum.at(settled, open_cells.unit - units.start, lower)
        closed.add(open_cells, np.arange(len(open_cells)), lower)
    lower_bound = np.minimum(settled, best.value)
    leaves = None
    if keep_leaves:
        left_out: Any = getattr(cells, "left_out", lambda prices, units: None)
        leaves = closed.leaves(left_out(prices, units))
    return CellsResponse(best.label, best.x, best.value, lower_bound, examined, leaves)


def _split(
    cells: Cells,
    prices: FloatArray,
    parents: CellList,
    first: FloatArray,
    second: FloatArray,
    best: _Incumbent,
) -> CellList:
    """Split every cell at one or two points; offer the points to the incumbent."""
    data_first = cells.probe(parents.unit, first)
    best.offer(
        parents.unit,
        parents.label,
        first,
        cells.value(prices, parents.unit, parents.label, first, data_first),
    )
    two = np.flatnonzero(second > first)
    data_second = data_first.copy()
    if two.size:
        data_second[:, two] = cells.probe(parents.unit[two], second[two])
        best.offer(
            parents.unit[two],
            parents.label[two],
            second[two],
            cells.value(prices, parents.unit[two], parents.label[two], second[two], data_second[:, two]),
        )
    left = CellList(parents.unit, parents.label, parents.low, first, parents.data_low, data_first)
    middle = CellList(parents.unit, parents.label, first, second, data_first, data_second).take(two)
    right = CellList(parents.unit, parents.label, second, parents.high, data_second, parents.data_high)
    children = CellList.join([left, middle, right])
    return children.take(children.high > children.low)

"""Branch and bound over one real variable and a label per unit, all units at once.

Any problem that offers `Cells` gets its *priced response* from here: the best point of every unit at given
prices, with a lower bound that holds whatever happens in between. Units are handled in slices, several at a time
(NumPy releases the interpreter lock in its loops), so memory does not grow with their number.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from jointopt.problem import CellList, Cells
from jointopt.system import FloatArray

__all__ = ["Response", "respond"]

SLICE = 16_384
"""Units handled together: large enough to amortise Python, small enough to stay in cache."""

MAX_LEVELS = 200


@dataclass(frozen=True)
class Response:
    """Best point of every unit at given prices; arrays over units.

    `value` is inf and `label` -1 where a unit has no feasible point. `lower_bound` holds for the unit's least
    value; `cells` counts the cells examined.
    """

    label: npt.NDArray[np.int64]
    x: FloatArray
    value: FloatArray
    lower_bound: FloatArray
    cells: int

    @property
    def feasible(self) -> npt.NDArray[np.bool_]:
        """Units with a feasible point."""
        return np.isfinite(self.value)


def respond(cells: Cells, prices: FloatArray, *, gap: float = 5e-7, stop: Any = None) -> Response:
    """Return every unit's best point at the prices, each within a relative `gap` of its lower bound.

    Parameters
    ----------
    cells : Cells
        The units.
    prices : array, shape [features]
        Price of each sum.
    gap : float
        Relative gap at which a unit is settled.
    stop : callable, optional
        Asked before every slice; raises to interrupt.
    """
    starts = range(0, cells.units, SLICE)
    slices = [slice(start, min(start + SLICE, cells.units)) for start in starts]

    def work(units: slice) -> Response:
        if stop is not None:
            stop()
        return _respond(cells, prices, units, gap)

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
    return Response(
        label=np.concatenate([p.label for p in parts]),
        x=np.concatenate([p.x for p in parts]),
        value=np.concatenate([p.value for p in parts]),
        lower_bound=np.concatenate([p.lower_bound for p in parts]),
        cells=sum(p.cells for p in parts),
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


def _respond(cells: Cells, prices: FloatArray, units: slice, gap: float) -> Response:
    best = _Incumbent(units)
    settled = np.full(units.stop - units.start, np.inf)
    open_cells = cells.cover(prices, units)
    examined = len(open_cells)
    for low in (True, False):
        x, data = (open_cells.low, open_cells.data_low) if low else (open_cells.high, open_cells.data_high)
        best.offer(
            open_cells.unit,
            open_cells.label,
            x,
            cells.value(prices, open_cells.unit, open_cells.label, x, data),
        )

    lower, hint = cells.bound(prices, open_cells)
    for level in range(MAX_LEVELS):
        rows = open_cells.unit - units.start
        target = best.value[rows]
        # without an incumbent (inf) everything that may be feasible stays open
        tolerance = gap * np.abs(np.where(np.isfinite(target), target, 0.0))
        keep = (lower < target - tolerance) & (open_cells.high > open_cells.low)
        np.minimum.at(settled, rows[~keep], lower[~keep])
        kept = np.flatnonzero(keep)
        if kept.size == 0:
            return Response(best.label, best.x, best.value, np.minimum(settled, best.value), examined)
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
    np.minimum.at(settled, open_cells.unit - units.start, lower)
    return Response(best.label, best.x, best.value, np.minimum(settled, best.value), examined)


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

"""The priced response of units with a few variables each: branch and bound over boxes, all units at once.

Any problem that offers `Boxes` gets it from here. A box is bounded from intervals of its values and slopes
(`jointopt.arithmetic.boxes`). Along a coordinate in which the value and every open constraint rise, only the low end
can be best, and the box shrinks to it; the others are halved where they matter most. Good points come from the
corners of the boxes, and from the line between a good corner that is not feasible and the best feasible point.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from jointopt.arithmetic.boxes import enclose
from jointopt.problem import FEASIBILITY_TOLERANCE, Boxes, Leaves, Response
from jointopt.system import FloatArray

__all__ = ["BoxesPriced"]

SLICE = 4096
"""Units handled together."""
BATCH = 4096
"""Boxes examined together where units are few."""
FEW = 200
"""Boxes under which NumPy's calls cost more than what they compute."""
MOST_BOXES = 4_000
"""Boxes per unit after which what is open is left open: the bound still holds, a gap remains."""
REPAIRS = 8
"""Halvings of the line from an infeasible corner to a feasible point."""


@dataclass
class _Open:
    """Boxes not yet settled; `cover` is what each stands for, which shrinking leaves as it was."""

    unit: npt.NDArray[np.int64]
    low: FloatArray
    high: FloatArray
    bound: FloatArray
    smear: FloatArray
    cover_low: FloatArray
    cover_high: FloatArray

    def take(self, rows: Any) -> _Open:
        return _Open(
            self.unit[rows],
            self.low[:, rows],
            self.high[:, rows],
            self.bound[rows],
            self.smear[:, rows],
            self.cover_low[:, rows],
            self.cover_high[:, rows],
        )

    @staticmethod
    def join(parts: list[_Open]) -> _Open:
        return _Open(
            np.concatenate([p.unit for p in parts]),
            np.concatenate([p.low for p in parts], axis=1),
            np.concatenate([p.high for p in parts], axis=1),
            np.concatenate([p.bound for p in parts]),
            np.concatenate([p.smear for p in parts], axis=1),
            np.concatenate([p.cover_low for p in parts], axis=1),
            np.concatenate([p.cover_high for p in parts], axis=1),
        )


class BoxesPriced:
    """`Priced` for problems that offer `Boxes`."""

    def __init__(self, boxes: Boxes) -> None:
        self.boxes, self.units = boxes, boxes.units

    def respond(
        self,
        prices: FloatArray,
        *,
        units: npt.NDArray[np.int64] | None = None,
        gap: float = 5e-7,
        stop: Callable[[], None] | None = None,
        keep: bool = False,
    ) -> Response:
        """Return every unit's best decision at the prices, each within a relative `gap` of its lower bound."""
        which = np.arange(self.units) if units is None else np.asarray(units, dtype=np.int64)
        starts = range(0, which.size, SLICE)

        def work(start: int) -> _Answer:
            if stop is not None:
                stop()
            part = slice(start, min(start + SLICE, which.size))
            own = prices[:, part] if prices.ndim == 2 else np.repeat(prices[:, None], part.stop - start, axis=1)
            return _Search(self.boxes, which[part], own, gap, stop, keep).run()

        workers = min(len(starts), os.cpu_count() or 1)
        if workers > 1:
            pool = ThreadPoolExecutor(workers)
            try:
                parts = list(pool.map(work, starts))
            finally:
                pool.shutdown(cancel_futures=True)
        else:
            parts = [work(start) for start in starts]
        x = np.concatenate([p.x for p in parts], axis=1)
        value = np.concatenate([p.value for p in parts])
        every = np.repeat(prices[:, None], which.size, axis=1) if prices.ndim == 1 else prices
        decision, features = self.boxes.complete(every, which, x)
        leaves = None
        if keep:
            leaves = Leaves(
                self.boxes.names,
                np.concatenate([p.unit + start for p, start in zip(parts, starts, strict=True)]),
                np.concatenate([p.low for p in parts], axis=1),
                np.concatenate([p.high for p in parts], axis=1),
                np.concatenate([p.bound for p in parts]),
            )
        return Response(
            value=value,
            lower_bound=np.concatenate([p.lower_bound for p in parts]),
            decision=decision,
            features=np.where(np.isfinite(value), features, 0.0),
            cells=sum(p.cells for p in parts),
            leaves=leaves,
        )


@dataclass
class _Answer:
    value: FloatArray
    lower_bound: FloatArray
    x: FloatArray
    cells: int
    unit: npt.NDArray[np.int64]
    low: FloatArray
    high: FloatArray
    bound: FloatArray


class _Search:
    """Some units at their prices; rows of boxes name a unit by its place among them."""

    def __init__(
        self,
        boxes: Boxes,
        which: npt.NDArray[np.int64],
        prices: FloatArray,
        gap: float,
        stop: Callable[[], None] | None,
        keep: bool,
    ) -> None:
        self.boxes, self.which, self.prices, self.gap, self.stop, self.keep = boxes, which, prices, gap, stop, keep
        self.lower, self.upper = boxes.lower[:, which], boxes.upper[:, which]
        self.value = np.full(which.size, np.inf)
        self.x = self._middle(self.lower, self.upper)
        self.violation = np.full(which.size, np.inf)
        self.settled = np.full(which.size, np.inf)
        self.examined = 0
        self.closed: list[tuple[Any, ...]] = []

    def run(self) -> _Answer:
        """Settle every unit."""
        todo = self._bound(self._start())
        most = MOST_BOXES * self.which.size
        while todo.unit.size:
            if self.stop is not None:
                self.stop()
            target = self.value[todo.unit]
            tolerance = self.gap * np.abs(np.where(np.isfinite(target), target, 0.0))
            keep = (todo.bound < target - tolerance) & self._wide(todo)
            self._close(todo.take(~keep))
            todo = todo.take(keep)
            if not todo.unit.size or self.examined >= most:
                break
            now, later = self._choose(todo)
            children = self._halve(todo.take(now))
            while children.unit.size < FEW:
                # a few more boxes at a time cost next to nothing
                before, children = children.unit.size, self._halve(children)
                if children.unit.size == before:
                    break
            todo = _Open.join([todo.take(later), self._bound(children)])
        self._close(todo)
        return self._answer()

    # -- boxes

    def _start(self) -> _Open:
        """One box per unit."""
        units = np.arange(self.which.size)
        low, high = self.lower, self.upper
        return _Open(units, low, high, np.full(units.size, -np.inf), np.zeros_like(low), low, high)

    def _middle(self, low: FloatArray, high: FloatArray) -> FloatArray:
        """Where a box is halved; whole for integers, the lower half's end."""
        boxes = self.boxes
        with np.errstate(invalid="ignore"):
            middle = np.where(boxes.logarithmic[:, None], np.sqrt(low * high), 0.5 * (low + high))
        middle = np.clip(middle, low, high)
        return np.where(boxes.integer[:, None], np.floor(middle), middle)

    def _wide(self, boxes: _Open) -> npt.NDArray[np.bool_]:
        """Whether a box can still be halved."""
        size = np.maximum(np.abs(boxes.low), np.abs(boxes.high))
        return np.asarray((boxes.high - boxes.low > 1e-14 * size).any(axis=0))

    def _bound(self, boxes: _Open) -> _Open:
        """Bound boxes, shrink them, and offer their corners."""
        parts = []
        for start in range(0, boxes.unit.size, 4 * BATCH):
            part = boxes.take(slice(start, start + 4 * BATCH))
            self.examined += part.unit.size
            rows = part.unit
            prices, unit = self.prices[:, rows], self.which[rows]
            with np.errstate(all="ignore"):
                found = enclose(
                    lambda x, prices=prices, unit=unit: self.boxes.terms(prices, unit, x),  # type: ignore[misc]
                    part.low,
                    part.high,
                    tolerance=FEASIBILITY_TOLERANCE,
                    logarithmic=self.boxes.logarithmic,
                )
            self._offer(rows, found.corner, found.corner_value)
            # a child's bound is never worse than its parent's
            part.bound = np.maximum(found.bound, part.bound)
            part.smear = found.smear
            part.high = np.where(found.to_low, part.low, part.high)
            part.low = np.where(found.to_high, part.high, part.low)
            self._repair(part, found.corner)
            self._settle_points(part)
            parts.append(part)
        return _Open.join(parts)

    def _settle_points(self, boxes: _Open) -> None:
        """Bound what shrank to a point by what is there: nothing, where the point is not feasible."""
        shrunk = (boxes.high <= boxes.low).all(axis=0) & (boxes.cover_high > boxes.cover_low).any(axis=0)
        rows = np.flatnonzero(shrunk)
        if rows.size:
            _, excess = self._evaluate(boxes.unit[rows], boxes.low[:, rows])
            boxes.bound[rows] = np.where(excess > FEASIBILITY_TOLERANCE, np.inf, boxes.bound[rows])

    def _halve(self, boxes: _Open) -> _Open:
        """Split every box in two along the coordinate that matters most."""
        width = boxes.high - boxes.low
        size = np.maximum(np.abs(boxes.low), np.abs(boxes.high))
        possible = width > 1e-14 * size
        span = np.maximum(self.upper - self.lower, 1e-300)[:, boxes.unit]
        # where nothing is known to matter, the widest
        weight = np.where(possible, boxes.smear + 1e-9 * width / span, -1.0)
        axis = np.argmax(weight, axis=0)
        done = boxes.take(~possible.any(axis=0))
        boxes, axis = boxes.take(possible.any(axis=0)), axis[possible.any(axis=0)]
        rows = np.arange(boxes.unit.size)
        middle = self._middle(boxes.low, boxes.high)[axis, rows]
        step = np.where(self.boxes.integer[axis], 1.0, 0.0)
        left, right = boxes.take(rows), boxes.take(rows)
        left.high = left.high.copy()
        right.low = right.low.copy()
        left.high[axis, rows], right.low[axis, rows] = middle, middle + step
        left.smear = left.smear.copy()
        left.smear[axis, rows] *= 0.5
        right.smear = left.smear
        left.cover_high, right.cover_low = left.cover_high.copy(), right.cover_low.copy()
        left.cover_high[axis, rows], right.cover_low[axis, rows] = middle, middle + step
        return _Open.join([left, right, done])

    def _choose(self, boxes: _Open) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return the rows to halve now, the most promising of every unit, and those to keep for later."""
        most = max(1, BATCH // self.which.size)
        order = np.lexsort((boxes.bound, boxes.unit))
        unit = boxes.unit[order]
        first = np.searchsorted(unit, unit, side="left")
        now = np.arange(order.size) - first < most
        return order[now], order[~now]

    def _close(self, boxes: _Open) -> None:
        """Settle boxes with the bounds they have."""
        np.minimum.at(self.settled, boxes.unit, boxes.bound)
        if self.keep and boxes.unit.size:
            self.closed.append((boxes.unit, boxes.cover_low, boxes.cover_high, boxes.bound))

    # -- points

    def _offer(self, unit: Any, x: FloatArray, value: FloatArray) -> None:
        """Take points that improve; ties go to the first."""
        better = np.flatnonzero(value < self.value[unit])
        if better.size == 0:
            return
        # last write wins: from worst to best
        order = better[np.argsort(-value[better], kind="stable")]
        self.value[unit[order]] = value[order]
        self.x[:, unit[order]] = x[:, order]

    def _evaluate(self, unit: npt.NDArray[np.int64], x: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return (value, largest excess) at points."""
        with np.errstate(all="ignore"):
            value, excess = self.boxes.terms(self.prices[:, unit], self.which[unit], list(x))
            worst = np.full(unit.size, -np.inf)
            for g in excess:
                worst = np.fmax(worst, np.where(np.isnan(g), np.inf, g))
            value = np.broadcast_to(np.asarray(value, dtype=np.float64), (unit.size,))
        return np.where(np.isnan(value), np.inf, value), worst

    def _repair(self, boxes: _Open, corner: FloatArray) -> None:
        """Look for feasible points in the most promising box of every unit."""
        order = np.lexsort((boxes.bound, boxes.unit))
        unit = boxes.unit[order]
        first = np.concatenate([[True], unit[1:] != unit[:-1]])
        rows = order[first]
        rows = rows[(boxes.bound[rows] < self.value[boxes.unit[rows]]) & np.isfinite(boxes.bound[rows])]
        if rows.size == 0:
            return
        unit = boxes.unit[rows]
        middle = self._middle(boxes.low[:, rows], boxes.high[:, rows])
        with np.errstate(all="ignore"):
            middle = self.boxes.derive(self.prices[:, unit], self.which[unit], middle)
        value, excess = self._evaluate(unit, middle)
        self._offer(unit, middle, np.where(excess <= 0.0, value, np.inf))
        self._least_violating(unit, middle, excess)
        # from the good corner, which may not be feasible, towards what is
        inside = np.where((excess <= 0.0)[None], middle, self.x[:, unit])
        known = np.isfinite(self.value[unit]) | (excess <= 0.0)
        same = (inside[self.boxes.integer] == corner[:, rows][self.boxes.integer]).all(axis=0)
        some = np.flatnonzero(known & same)
        if some.size == 0:
            return
        unit, inside, outside = unit[some], inside[:, some], corner[:, rows[some]]
        near, far = np.zeros(some.size), np.ones(some.size)
        for _ in range(REPAIRS):
            share = 0.5 * (near + far)
            x = outside + share * (inside - outside)
            value, excess = self._evaluate(unit, x)
            good = excess <= 0.0
            self._offer(unit, x, np.where(good, value, np.inf))
            near, far = np.where(good, near, share), np.where(good, share, far)

    def _least_violating(self, unit: npt.NDArray[np.int64], x: FloatArray, excess: FloatArray) -> None:
        """Remember the point that exceeds its limits least, for units that turn out to have no feasible one."""
        closer = np.flatnonzero((excess < self.violation[unit]) & ~np.isfinite(self.value[unit]))
        self.violation[unit[closer]] = excess[closer]
        self.x[:, unit[closer]] = x[:, closer]

    def _answer(self) -> _Answer:
        nothing = np.empty((self.lower.shape[0], 0))
        closed = self.closed or [(np.empty(0, dtype=np.int64), nothing, nothing, np.empty(0))]
        return _Answer(
            value=self.value,
            lower_bound=np.minimum(self.settled, self.value),
            x=self.x,
            cells=self.examined,
            unit=np.concatenate([c[0] for c in closed]),
            low=np.concatenate([c[1] for c in closed], axis=1),
            high=np.concatenate([c[2] for c in closed], axis=1),
            bound=np.concatenate([c[3] for c in closed]),
        )

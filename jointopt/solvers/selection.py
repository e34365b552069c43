"""Which units to take, and how: branch and bound over a dual bound, for problems that offer a `Selection`.

The objective is h(cost, mass), increasing in the cost; cost and mass are sums over the units taken, and one more sum
has a limit R (a band, say). At a price v >= 0 on that sum let r_u(v) be a lower bound of unit u's least cost + v use
(the priced response). For every decision that takes units of total mass m,

    cost >= sum of r_u(v) over the units taken - v R >= F_v(m) - v R,

where F_v(m) is the value of the continuous knapsack: the units that must be taken, then the others by r_u/mass_u, the
last one in part. F_v is piecewise linear, so h(F_v(m) - v R, m) has a bound over any range of masses, piece by piece
(`Outer.least`). A node of the search is a set of units taken, a set left out and a range of masses; its bound is the
best over a few prices, and all nodes share one table of r_u(v). Nodes are examined many at a time.

Branching is on the unit that is most in part in a mix of the two dual solutions next to the limit. When a node's
selection is settled, its price is found to a tenth of the gap and joins the table. Whatever is cut off is cut by such
a bound, so the smallest bound that was cut or is still open is a certified lower bound, also when the search is stopped
early.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from jointopt.errors import SolverError
from jointopt.problem import Conflict, SelectableCells, Selection, SelectionTree, Sums
from jointopt.solvers.branch import MAX_LEVELS, respond
from jointopt.solvers.exact import Exact, Report
from jointopt.solvers.monitor import StopSearch
from jointopt.system import FloatArray

__all__ = ["minimize_selection"]

FREE, IN, OUT = 0, 1, -1
BATCH = 48
"""Nodes branched at a time."""
KEPT = 20_000_000
"""Nodes times units up to which the tree is kept."""
MOST_PRICES = 1500
"""Prices after which the table is no longer refined."""
POLISH = 1e-7
"""Relative gap to its own dual bound to which the best selection is solved, whatever gap is asked for."""
AROUND = np.array([0.75, 0.9, 0.97, 1.03, 1.1, 1.3])
"""Prices to begin with, as multiples of a similar problem's."""
BELOW = np.array([0.0, 0.4])
"""The same, for masses far from the best one, whose bounds need not be sharp."""
LEVELS = 2
"""Times the units' cells are split at most at these: what few units leave is little of the sum."""
CLOSER = 10
"""Further prices that are tried for one selection meanwhile."""
CENTRES = 4
"""Times that these are moved to where the bound is best."""
TURNS = 6
"""Times that prices or selections are added before a search that began so goes on as from scratch."""
RUNNERS_UP = 2
"""Other selections, which might still be better, that are treated likewise."""


class _Prices:
    """Responses of all units at a growing, sorted list of prices."""

    def __init__(self, cells: SelectableCells, resource: int, features: int, gap: float, mass: FloatArray) -> None:
        self.cells, self.resource, self.features, self.gap, self.mass = cells, resource, features, gap, mass
        self.price = np.empty(0)
        shape = (0, cells.units)
        self.lower, self.cost, self.use, self.x = (np.empty(shape) for _ in range(4))
        self.label = np.empty(shape, dtype=np.int64)
        self.order = np.empty(shape, dtype=np.int64)
        self.examined = 0
        self.levels = MAX_LEVELS
        """Times the units' cells are split at most."""
        self.rough = 0
        """First prices at which the units were settled roughly."""
        self.asked: dict[float, tuple[Any, ...]] = {}
        """Responses of all units at prices that may yet join the table."""

    def vector(self, price: FloatArray) -> FloatArray:
        out = np.zeros((self.features, price.size))
        out[0], out[self.resource] = 1.0, price
        return out

    def respond(self, price: FloatArray, units: npt.NDArray[np.int64]) -> tuple[Any, ...]:
        """Return (lower, cost, use, x, label) of units at prices, shape [prices, units]."""
        count = price.size * units.size
        index = np.tile(units, price.size)
        some = self.cells.take(index)
        prices = self.vector(np.repeat(price, units.size))
        answer = respond(some, prices, gap=self.gap, levels=self.levels)
        self.examined += answer.cells
        found = np.flatnonzero(answer.feasible)
        cost, use = np.full(count, np.inf), np.full(count, np.inf)
        _, features = some.complete(prices[:, found], found, answer.label[found], answer.x[found])
        cost[found], use[found] = features[0], features[self.resource]
        shape = (price.size, units.size)
        arrays = (answer.lower_bound, cost, use, answer.x, answer.label)
        return tuple(np.reshape(a, shape) for a in arrays)

    def ask(self, price: float) -> tuple[Any, ...]:
        """Return the response of all units at one price, shape [units] each, kept for `add`."""
        if price not in self.asked:
            rows = self.respond(np.array([price]), np.arange(self.cells.units))
            self.asked[price] = tuple(row[0] for row in rows)
        return self.asked[price]

    def add(self, price: Any) -> None:
        """Add prices to the table."""
        new = np.setdiff1d(np.atleast_1d(np.asarray(price, dtype=np.float64)), self.price)
        asked, self.asked = self.asked, {}
        if new.size == 0:
            return
        if all(p in asked for p in new.tolist()):
            rows = tuple(np.stack(part) for part in zip(*(asked[p] for p in new.tolist()), strict=True))
        else:
            rows = self.respond(new, np.arange(self.cells.units))
        where = np.argsort(np.concatenate([self.price, new]), kind="stable")
        self.price = np.concatenate([self.price, new])[where]
        for name, values in zip(("lower", "cost", "use", "x", "label"), rows, strict=True):
            setattr(self, name, np.concatenate([getattr(self, name), values])[where])
        with np.errstate(invalid="ignore"):
            self.order = np.argsort(self.lower / self.mass, axis=1, kind="stable")

    def sharpen(self) -> None:
        """Settle the units at the first prices, too."""
        part = slice(self.rough)
        lower, self.cost[part], self.use[part], self.x[part], self.label[part] = self.respond(
            self.price[part], np.arange(self.cells.units)
        )
        # bounds that were used before still follow from these
        self.lower[part], self.rough = np.maximum(lower, self.lower[part]), 0
        with np.errstate(invalid="ignore"):
            self.order[part] = np.argsort(self.lower[part] / self.mass, axis=1, kind="stable")

    def near(self, price: float) -> int:
        """Index of the table's price next to a price."""
        at = int(np.searchsorted(self.price, price))
        if at == 0:
            return 0
        if at == self.price.size or price - self.price[at - 1] < self.price[at] - price:
            return at - 1
        return at


Start = tuple[npt.NDArray[np.bool_], float, Mapping[str, FloatArray]]
"""Selection, price and decision of a similar problem."""


@dataclass(order=True)
class _Node:
    bound: float
    number: int
    state: npt.NDArray[np.int8] = field(compare=False)
    low: float = field(compare=False)
    high: float = field(compare=False)
    price: float = field(compare=False)
    split: int = field(compare=False, default=-1)
    """Unit to branch on; -1 where the dual solutions agree on a whole selection."""
    chosen: npt.NDArray[np.bool_] | None = field(compare=False, default=None)
    row: int = field(compare=False, default=-1)
    """Place in the tree that is kept for the certificate."""


class _Tree:
    """Every node ever bounded, for the certificate; given up where it would take too much memory."""

    def __init__(self, units: int) -> None:
        self.most = KEPT // max(units, 1)
        self.size = 0
        self.rows: list[tuple[int, npt.NDArray[np.int8], float, float, float, float]] = []

    def add(self, parent: int, state: npt.NDArray[np.int8], low: float, high: float, price: float, bound: float) -> int:
        """Add a node and return its row."""
        self.size += 1
        if self.size <= self.most:
            self.rows.append((parent, state, low, high, price, bound))
        return self.size - 1

    def packed(self, table: _Prices, least: FloatArray) -> SelectionTree | None:
        """Return the tree with the bounds of the units at its prices."""
        if self.size > self.most or not self.rows:
            return None
        parent, state, low, high, price, bound = zip(*self.rows, strict=True)
        at = np.array(price)
        prices = np.unique(at[np.isfinite(at)])
        rows = np.searchsorted(table.price, prices)
        return SelectionTree(
            parent=np.array(parent, dtype=np.int64),
            state=np.array(state),
            low=np.array(low),
            high=np.array(high),
            price=at,
            bound=np.array(bound),
            prices=prices,
            unit_bounds=table.lower[rows],
            least=least,
        )


@dataclass
class _Found:
    """A selection with a feasible decision."""

    value: float
    taken: npt.NDArray[np.int64]
    x: FloatArray
    label: npt.NDArray[np.int64]
    price: float


def minimize_selection(
    sums: Sums,
    cells: SelectableCells,
    selection: Selection,
    *,
    gap: float = 1e-4,
    max_nodes: int = 100_000,
    stop: Callable[[], None] | None = None,
    report: Report | None = None,
    start: Start | None = None,
) -> Exact:
    """Minimise h(cost, mass) over which units to take and how, under one limited sum, with a certified bound.

    Parameters
    ----------
    sums : Sums
        Features and limits; the first feature is the cost, exactly one other has a limit.
    cells : SelectableCells
        The units.
    selection : Selection
        Masses, objective, units that must be taken or left out.
    gap : float
        Relative gap to reach.
    max_nodes : int
        Nodes after which the incumbent is returned with the bound reached.
    stop : callable, optional
        Called between steps; `StopSearch` or `KeyboardInterrupt` raised by it ends the search with what was found.
    report : callable, optional
        Told of progress between steps.
    start : tuple of bool array, shape [units], float and mapping, optional
        Selection, price and decision to begin with, such as those of a similar problem's answer: the search then knows
        few prices but these, and finds others as it needs them.

    Raises
    ------
    SolverError
        When not exactly one sum beside the cost has a limit.
    """
    return _Search(sums, cells, selection, gap, max_nodes, stop, report).run(start)


class _Search:
    def __init__(
        self,
        sums: Sums,
        cells: SelectableCells,
        selection: Selection,
        gap: float,
        max_nodes: int,
        stop: Callable[[], None] | None,
        report: Report | None,
    ) -> None:
        limited = np.flatnonzero(np.isfinite(sums.limits))
        if limited.size != 1 or limited[0] == 0:
            raise SolverError("a selection of units needs exactly one limited sum beside the cost")
        self.sums, self.cells, self.selection = sums, cells, selection
        self.origin: Any = cells
        self.gap, self.max_nodes, self.stop = gap, max_nodes, stop or (lambda: None)
        self.report = report
        self.tree = _Tree(cells.units)
        self.resource = int(limited[0])
        self.limit = float(sums.limits[self.resource])
        self.mass, self.outer = selection.mass, selection.outer
        # the units' own gap must stay far below that of the whole
        self.table = self._prices(0.02 * gap)
        # halving the distance of prices quarters the error of the dual
        self.closeness = float(np.clip(np.sqrt(gap), 1e-3, 0.05))
        self.best: _Found | None = None
        self.nodes = 0
        self.settled, self.proved = np.inf, -np.inf
        self.stopped: BaseException | None = None
        self.exhausted = self.hurried = False
        self.tried: dict[bytes, tuple[float, float]] = {}
        """By selection: the price of its best dual bound, and that bound."""
        self.history: list[dict[str, float]] = []

    # -- the whole search

    def run(self, start: Start | None = None) -> Exact:
        """Search until the gap is reached, nothing is open, or the nodes are spent."""
        warm = start is not None and start[1] > 0.0
        if warm and start is not None:
            self._centre(start[2], start[1])
        state = np.zeros(self.cells.units, dtype=np.int8)
        state[self.selection.required], state[self.selection.excluded] = IN, OUT
        least = self._least_use(state)
        alone = np.flatnonzero(~(least <= self.limit))
        short = alone[state[alone] == IN]
        free = (state == FREE) & (least <= self.limit)
        together = float(least[state == IN].sum())
        if short.size or together > self.limit or not (free.any() or (state == IN).any()):
            return self._infeasible(state, least, alone, together)
        state[(state == FREE) & ~free] = OUT
        self.least = least
        if not warm:
            self._first_prices(state)
        try:
            if warm and start is not None:
                self._begin(state, *start)
            self._branch(state)
            # a decision at the gap asked for is what a round of a stream is to take
            if not (warm and self._within_gap(self.settled)):
                self._polish()
        except (StopSearch, KeyboardInterrupt) as stopped:
            # what was proved before the batch at hand still holds
            self.settled, self.stopped = self.proved, stopped
        if self.best is None and not self.exhausted:
            self.stop, self.hurried = (lambda: None), True
            self._greedy(state)
        return self._answer()

    def _least_use(self, state: npt.NDArray[np.int8]) -> FloatArray:
        """Least use of the limited sum by each unit; inf where it cannot be taken at all."""
        prices = np.zeros(len(self.sums.features))
        prices[self.resource] = 1.0
        answer = respond(self.cells, prices, gap=1e-9, stop=self.stop)
        self.table.examined += answer.cells
        found = np.flatnonzero(answer.feasible)
        _, features = self.cells.complete(prices, found, answer.label[found], answer.x[found])
        self.dearest = features[0] if found.size else np.zeros(1)
        return np.where(answer.feasible, answer.value, np.inf)

    def _first_prices(self, state: npt.NDArray[np.int8]) -> None:
        """Fill the table with prices from where the limit hardly matters to where it is all that matters."""
        units = np.flatnonzero(state != OUT)
        free = self.table.respond(np.array([0.0]), units)
        # a price matters when price x limit is of the size of the costs, or of what the mass is worth
        worth = np.abs(self.outer.value(np.zeros(units.size), self.mass[units]))
        sizes = [
            np.max(np.abs(free[1])),
            np.max(np.abs(self.dearest)),
            np.max(np.where(np.isfinite(worth), worth, 0.0)),
        ]
        trial = max(*sizes, 1e-300) / self.limit * 10.0 ** np.arange(-6.0, 7.0)
        use = np.concatenate([free[2], self.table.respond(trial, units)[2]])
        # outside this range no unit changes its mind; the search itself refines where its nodes look
        active = np.flatnonzero((np.abs(np.diff(use, axis=0)) > 1e-9 * use[:-1]).any(axis=1))
        first, last = (max(int(active[0]) - 1, 0), int(active[-1])) if active.size else (0, trial.size - 1)
        grid = np.geomspace(trial[first], trial[last], max(24, 2 * (last - first)))
        self.table.add(np.concatenate([[0.0], grid, trial[last] * np.array([10.0, 1e3, 1e6])]))

    def _centre(self, decision: Mapping[str, FloatArray], price: float) -> None:
        """Begin a table of prices with cells that are probed around a decision and a price."""
        if hasattr(self.origin, "near"):
            self.cells = self.origin.near(decision, self.table.vector(np.array([price]))[:, 0])
        examined, self.table = self.table.examined, self._prices(0.1 * self.gap)
        self.table.examined, self.tried = examined, {}

    def _begin(
        self,
        state: npt.NDArray[np.int8],
        chosen: npt.NDArray[np.bool_],
        price: float,
        decision: Mapping[str, FloatArray],
    ) -> None:
        """Start from another problem's selection and price; where they do for the gap, nothing is left to branch on."""
        # what is left to the units' own searches need not be less than what the few prices leave
        cuts = self._cuts(state)
        for move in range(CENTRES):
            table = self.table
            table.levels = 0
            table.add(price * BELOW)
            table.rough, table.levels = BELOW.size, LEVELS
            table.add(price * AROUND)
            at, bound = self._over_masses(state, cuts)
            best = int(at[int(np.argmin(bound))])
            if table.rough < best < table.price.size - 1 or move == CENTRES - 1:
                break
            # the price has moved far: what is known around the old one says little there
            price = max(float(table.price[best]), float(table.price[1]))
            self._centre(decision, price)
        table = self.table
        for turn in range(TURNS):
            self.stop()
            at, bound = self._over_masses(state, cuts)
            worst = int(np.argmin(bound))
            if self.best is not None and self._within_gap(float(bound[worst])):
                return
            best = int(at[worst])
            node = self._bound(state[None], cuts[None, worst : worst + 2], self._windows([float(table.price[best])]))[0]
            if node.chosen is not None and self._attempt(node.chosen):
                continue
            # nothing new to try: the dual itself is what is short
            beside = [k for k in (best - 1, best) if 0 <= k < table.price.size - 1]
            table.add(np.sqrt(table.price[beside] * table.price[np.array(beside) + 1]))
            if best in (0, table.price.size - 1):
                self._widen()
            elif turn and self.best is not None:
                self._improve()
        # as from scratch, with few prices to begin with
        self._centre(decision, price)
        self.table.add(np.r_[0.0, price * np.array([0.05, 0.25]), price * AROUND, price * np.array([2.0, 10.0, 1e4])])
        taken = (chosen & (state != OUT)) | (state == IN)
        for known in (taken,) if self.best is None else (taken, np.isin(np.arange(state.size), self.best.taken)):
            if known.any():
                self._attempt(known)

    def _prices(self, gap: float) -> _Prices:
        return _Prices(self.cells, self.resource, len(self.sums.features), gap, self.mass)

    def _widen(self) -> None:
        """Let a table around one price reach, sharply, from nothing to where the limit is all that matters."""
        table = self.table
        if table.rough:
            table.levels = MAX_LEVELS
            table.sharpen()
            table.add(np.r_[table.price[1] * 0.25, float(table.price[-1]) * np.array([2.5, 10.0, 1e4])])

    def _reach(self, taken: npt.NDArray[np.int64]) -> None:
        """Let a table around one price reach to both sides of where a selection's use meets the limit."""
        table = self.table
        for _ in range(TURNS):
            first = float(table.price[table.rough])
            if table.use[table.rough, taken].sum() <= self.limit and 0.7 * first > table.price[table.rough - 1]:
                table.add(first * np.array([0.7, 0.84]))
            elif table.use[-1, taken].sum() > self.limit:
                table.add(table.price[-1] * np.array([1.2, 1.45]))
            else:
                break
        use = table.use[:, taken].sum(axis=1)
        if not use[-1] <= self.limit < use[table.rough]:
            self._widen()

    def _within_gap(self, lower: float) -> bool:
        value = self.best.value if self.best is not None else np.inf
        return bool(np.isfinite(value) and value - lower <= self.gap * abs(value))

    def _cuts(self, state: npt.NDArray[np.int8]) -> FloatArray:
        """Ends of a few ranges of masses that cover all that is possible, each of which finds its own prices."""
        total_in, free = float(self.mass[state == IN].sum()), self.mass[state == FREE]
        low = total_in if total_in > 0.0 else float(free.min())
        high = total_in + float(free.sum())
        if not high > low:
            return np.array([low, high])
        cuts = np.linspace(low, high, min(2 * int(free.size) + 2, 130))
        cuts[-1] = high * (1.0 + 1e-12)
        return cuts

    def _over_masses(self, state: npt.NDArray[np.int8], cuts: FloatArray) -> tuple[npt.NDArray[np.int64], FloatArray]:
        """Return the table's best price and the bound there over every range of masses between the cuts.

        The same bound as of a node with this state and range, for all ranges at once: at a price the linear pieces of
        the continuous knapsack and the ranges are merged.
        """
        table, free = self.table, np.flatnonzero(state == FREE)
        taken = state == IN
        if free.size == 0 or not cuts[-1] > cuts[0]:
            return np.zeros(cuts.size - 1, dtype=np.int64), np.full(cuts.size - 1, -np.inf)
        count, ranges = table.price.size, cuts.size - 1
        order = free[np.argsort(table.lower[:, free] / self.mass[free], axis=1, kind="stable")]
        lower = np.take_along_axis(table.lower, order, axis=1)
        with np.errstate(invalid="ignore"):
            base = table.lower[:, taken].sum(axis=1) - table.price * self.limit
            ends = float(self.mass[taken].sum()) + np.cumsum(self.mass[order], axis=1)
            slope = lower / self.mass[order]
            offset = base[:, None] + np.cumsum(lower, axis=1) - slope * ends
        places = np.sort(np.concatenate([np.clip(ends, cuts[0], cuts[-1]), np.tile(cuts, (count, 1))], axis=1), axis=1)
        left, right = places[:, :-1], places[:, 1:]
        middle = 0.5 * (left + right)
        piece = np.stack([np.searchsorted(e, m) for e, m in zip(ends, middle, strict=True)]).clip(max=free.size - 1)
        value = self.outer.least(
            np.take_along_axis(offset, piece, axis=1), np.take_along_axis(slope, piece, axis=1), left, right
        )
        value = np.where(np.isnan(value), -np.inf, value)
        bound = np.full((count, ranges), np.inf)
        within = np.clip(np.searchsorted(cuts, middle, side="right") - 1, 0, ranges - 1)
        np.minimum.at(bound, (np.arange(count)[:, None], within), value)
        at = np.argmax(bound, axis=0)
        return at, bound[at, np.arange(ranges)]

    def _branch(self, state: npt.NDArray[np.int8]) -> None:
        cuts = self._cuts(state)
        ranges = np.stack([cuts[:-1], cuts[1:]], axis=1)
        window = np.arange(self.table.price.size)
        nodes, open_ = [], np.ones(len(ranges), dtype=bool)
        if self.best is not None:
            at, bound = self._over_masses(state, cuts)
            open_ = bound < self.best.value - self.gap * abs(self.best.value)
            for i in np.flatnonzero(~open_):
                self.nodes += 1
                (low, high), price = ranges[i].tolist(), float(self.table.price[at[i]])
                nodes.append(_Node(float(bound[i]), self.nodes, state, low, high, price))
        some = ranges[open_]
        nodes += self._bound(
            np.repeat(state[None], len(some), axis=0), some, np.repeat(window[None], len(some), axis=0)
        )
        for node in nodes:
            node.row = self.tree.add(-1, node.state, node.low, node.high, node.price, node.bound)
        heap = [n for n in nodes if n.bound < np.inf]
        heapq.heapify(heap)
        self.proved = heap[0].bound if heap else np.inf
        while heap:
            self.stop()
            value = self.best.value if self.best is not None else np.inf
            self.proved = lower = min(heap[0].bound, self.settled)
            self.history.append({"evaluation": float(self.nodes), "value": value, "lower_bound": lower})
            self._tell(lower)
            if self._within_gap(lower) or self.nodes >= self.max_nodes:
                break
            batch: list[_Node] = []
            while heap and len(batch) < BATCH:
                node = heapq.heappop(heap)
                if np.isfinite(value) and node.bound >= value - self.gap * abs(value):
                    self.settled = min(self.settled, node.bound)
                else:
                    batch.append(node)
            for node in self._expand(batch):
                if node.bound < np.inf:
                    heapq.heappush(heap, node)
        if heap:
            self.settled = min(self.settled, heap[0].bound)
        self.exhausted = not heap

    def _tell(self, lower: float) -> None:
        """Report progress; the decision is completed only for who listens."""
        if self.report is not None:
            value, decision = (None, None) if self.best is None else (self.best.value, self._decision(self.best))
            self.report(self.nodes, value, lower, decision)

    def _greedy(self, state: npt.NDArray[np.int8]) -> None:
        """Try one feasible selection after a search that found none: who must be taken, then by least use per mass."""
        chosen = state == IN
        room = self.limit - float(self.least[chosen].sum())
        for unit in np.argsort(self.least / self.mass, kind="stable"):
            if state[unit] == FREE and self.least[unit] <= room:
                chosen[unit] = True
                room -= float(self.least[unit])
        self._try(chosen)

    def _expand(self, batch: list[_Node]) -> list[_Node]:
        """Branch nodes; settle those whose selection is whole."""
        states, ranges, parents = [], [], []
        again = []
        self._refine(batch)
        for i, node in enumerate(batch):
            if node.chosen is not None and (node.split < 0 or i == 0 or self.best is None):
                self._try(node.chosen)
            if node.split < 0:
                again.append(node)
                continue
            # only units that may be taken or left out can stand for each other
            twins = self.selection.kind == self.selection.kind[node.split]
            twins &= ~self.selection.required & ~self.selection.excluded
            for decided in (IN, OUT):
                state = node.state.copy()
                state[node.split] = decided
                if decided == OUT:
                    # of interchangeable units the first are taken
                    later = twins & (np.arange(state.size) > node.split)
                    if np.any(later & (state == IN)):
                        continue
                    state[later & (state == FREE)] = OUT
                else:
                    earlier = twins & (np.arange(state.size) < node.split)
                    if np.any(earlier & (state == OUT)):
                        continue
                    state[earlier & (state == FREE)] = IN
                if float(self.least[state == IN].sum()) > self.limit:
                    self.tree.add(node.row, state, node.low, node.high, np.nan, np.inf)
                    continue
                states.append(state)
                ranges.append((node.low, node.high))
                parents.append(node)
        out = []
        if states:
            out += self._bound(np.array(states), np.array(ranges), self._windows([node.price for node in parents]))
            for child, parent in zip(out, parents, strict=True):
                self._below(child, parent)
        for node in again:
            out += self._settle(node)
        return out

    def _below(self, child: _Node, parent: _Node) -> None:
        """Note a child in the tree; what bounds its parent bounds it."""
        child.row = self.tree.add(parent.row, child.state, child.low, child.high, child.price, child.bound)
        child.bound = max(child.bound, parent.bound)

    def _refine(self, batch: list[_Node]) -> None:
        """Add prices between those that the nodes at hand use, until neighbours are close."""
        price = self.table.price
        if not batch or price.size >= MOST_PRICES:
            return
        at = np.unique([self.table.near(node.price) for node in batch])
        left = np.unique(np.concatenate([at - 1, at]))
        left = left[(left >= 1) & (left + 1 < price.size)]
        wide = left[price[left + 1] > (1.0 + self.closeness) * price[left]]
        if wide.size:
            self.table.add(np.sqrt(price[wide] * price[wide + 1]))

    def _windows(self, prices: list[float]) -> npt.NDArray[np.int64]:
        at = np.array([self.table.near(p) for p in prices])
        # next to the price, and further off, since the table may be much finer than the way to a child's best price
        offsets = np.array([-20, -7, -2, -1, 0, 1, 2, 7, 20])
        return np.clip(at[:, None] + offsets, 0, self.table.price.size - 1)

    def _settle(self, node: _Node) -> list[_Node]:
        """A node whose dual solutions agree on one selection: its exact price is in the table by now."""
        assert node.chosen is not None
        self._try(node.chosen)
        price, _ = self.tried[np.packbits(node.chosen).tobytes()]
        fresh = self._bound(node.state[None], np.array([(node.low, node.high)]), self._windows([price]))[0]
        self._below(fresh, node)
        if fresh.split >= 0 and fresh.bound < np.inf:
            return [fresh]
        undecided = np.flatnonzero(node.state == FREE)
        if undecided.size == 0:
            # one selection is left: its dual bound is all there is to know
            self._try(node.state == IN)
            price, proved = self.tried[np.packbits(node.state == IN).tobytes()]
            self.tree.add(fresh.row, node.state, node.low, node.high, price, proved)
            self.settled = min(self.settled, max(fresh.bound, proved))
            return []
        unit = undecided[int(np.argmax(self.mass[undecided]))]
        fresh.split = int(unit)
        return [fresh]

    # -- bounds

    def _bound(self, states: npt.NDArray[np.int8], ranges: FloatArray, windows: npt.NDArray[np.int64]) -> list[_Node]:
        """Return one node per row with its bound over some prices, where to branch, and a selection to try."""
        rows, width = windows.shape
        self.nodes += rows
        nodes = []
        step = max(1, 400_000 // max(width * self.cells.units, 1))
        for start in range(0, rows, step):
            part = slice(start, min(start + step, rows))
            nodes += self._bound_some(states[part], ranges[part], windows[part])
        return nodes

    def _bound_some(
        self, states: npt.NDArray[np.int8], ranges: FloatArray, windows: npt.NDArray[np.int64]
    ) -> list[_Node]:
        table, mass = self.table, self.mass
        rows, width = windows.shape
        price = windows.ravel()
        state = np.repeat(states, width, axis=0)
        low, high = np.repeat(ranges[:, 0], width), np.repeat(ranges[:, 1], width)
        order = table.order[price]
        lower = np.take_along_axis(table.lower[price], order, axis=1)
        sorted_state = np.take_along_axis(state, order, axis=1)
        sorted_mass = mass[order]
        free = sorted_state == FREE
        taken = state == IN
        with np.errstate(invalid="ignore"):
            base_cost = np.where(taken, table.lower[price], 0.0).sum(axis=1) - table.price[price] * self.limit
        base_mass = np.where(taken, mass, 0.0).sum(axis=1)
        step_cost = np.where(free, lower, 0.0)
        step_mass = np.where(free, sorted_mass, 0.0)
        end_cost = base_cost[:, None] + np.cumsum(step_cost, axis=1)
        end_mass = base_mass[:, None] + np.cumsum(step_mass, axis=1)
        start_mass = end_mass - step_mass
        slope = np.where(free, lower / sorted_mass, 0.0)
        offset = end_cost - slope * end_mass
        # rounding of running sums must not leave a hole between two pieces
        loose = 1e-12 * np.maximum(high, 1e-300)
        left = np.maximum(start_mass - loose[:, None], low[:, None])
        right = np.minimum(end_mass + loose[:, None], high[:, None])
        valid = free & (left <= right)
        offset, slope = np.where(valid, offset, 0.0), np.where(valid, slope, 0.0)
        value = self.outer.least(
            offset, slope, np.where(valid, left, 1.0), np.where(valid, np.maximum(left, right), 1.0)
        )
        # what cannot be computed bounds nothing
        value = np.where(valid, np.where(np.isnan(value), -np.inf, value), np.inf)
        # nothing free: the mass is what it is
        alone = ~free.any(axis=1) & (base_mass >= low - loose) & (base_mass <= high + loose)
        piece = np.argmin(value, axis=1)
        bound = value[np.arange(price.size), piece]
        if np.any(alone):
            bound = np.where(alone, self.outer.value(base_cost, np.where(alone, base_mass, 1.0)), bound)
        bound = np.where(np.isnan(bound), -np.inf, bound).reshape(rows, width)
        pick = np.argmax(bound, axis=1)
        return [
            self._node(i, pick[i], bound, states, ranges, windows, order, free, piece, start_mass, step_mass, width)
            for i in range(rows)
        ]

    def _node(
        self,
        i: int,
        pick: int,
        bound: FloatArray,
        states: Any,
        ranges: Any,
        windows: Any,
        order: Any,
        free: Any,
        piece: Any,
        start_mass: Any,
        step_mass: Any,
        width: int,
    ) -> _Node:
        table = self.table
        node = _Node(
            bound=float(bound[i, pick]),
            number=self.nodes + i,
            state=states[i],
            low=float(ranges[i, 0]),
            high=float(ranges[i, 1]),
            price=float(table.price[windows[i, pick]]),
        )
        value = self.best.value if self.best is not None else np.inf
        if node.bound == np.inf or (np.isfinite(value) and node.bound >= value - self.gap * abs(value)):
            return node

        def solution(column: int) -> tuple[FloatArray, float]:
            row = i * width + column
            share = (states[i] == IN).astype(np.float64)
            line, at = order[row], piece[row]
            before = free[row].copy()
            before[at:] = False
            share[line[before]] = 1.0
            if free[row, at]:
                # masses beyond this piece's least point are not worth their cost: the range's end says where to stop
                reach = min(start_mass[row, at] + step_mass[row, at], node.high)
                share[line[at]] = np.clip((reach - start_mass[row, at]) / step_mass[row, at], 0.0, 1.0)
            use = table.use[windows[i, column]]
            return share, float(np.where(share > 0.0, share * np.where(np.isfinite(use), use, 0.0), 0.0).sum())

        share, use = solution(pick)
        other = pick + 1 if use > self.limit else pick - 1
        if 0 <= other < width and windows[i, other] != windows[i, pick] and np.isfinite(bound[i, other]):
            second, used = solution(other)
            if (use - self.limit) * (used - self.limit) < 0.0:
                mix = (self.limit - used) / (use - used)
                share = mix * share + (1.0 - mix) * second
        part = np.where(states[i] == FREE, np.minimum(share, 1.0 - share), 0.0)
        unit = int(np.argmax(part * self.mass))
        node.split = unit if part[unit] > 1e-9 else -1
        node.chosen = share >= 0.5
        if not node.chosen.any():
            node.chosen[int(np.argmax(share))] = True
        return node

    # -- feasible decisions

    def _try(self, chosen: npt.NDArray[np.bool_]) -> None:
        """Solve for one selection; where it is the best so far, for its neighbours too."""
        if self._attempt(chosen) and not self.hurried:
            while self._improve():
                self.stop()

    def _attempt(self, chosen: npt.NDArray[np.bool_]) -> bool:
        """Solve for one selection and say whether it is the best so far; its price joins the table."""
        key = np.packbits(chosen).tobytes()
        if key in self.tried:
            return False
        found, price, proved = self._fixed(np.flatnonzero(chosen))
        self.tried[key] = price, proved
        if found is None or (self.best is not None and found.value >= self.best.value):
            return False
        self.best = found
        return True

    def _improve(self) -> bool:
        """Try the three selections, one unit or one swap away from the best, that promise most by their dual bounds."""
        assert self.best is not None
        chosen = np.zeros(self.cells.units, dtype=bool)
        chosen[self.best.taken] = True
        allowed = ~self.selection.excluded & (self.least <= self.limit)
        inside = np.flatnonzero(chosen & ~self.selection.required)
        outside = np.flatnonzero(~chosen & allowed)
        near = self._windows([self.best.price])[0]
        lower, price = self.table.lower[near], self.table.price[near]
        cost = lower[:, chosen].sum(axis=1) - price * self.limit
        mass = float(self.mass[chosen].sum())
        a, b = (m.ravel() for m in np.meshgrid(inside, outside, indexing="ij"))
        # a unit more, a unit less, a swap; -1 for nobody
        leaves = np.concatenate([np.full(outside.size, -1), inside, a])
        joins = np.concatenate([outside, np.full(inside.size, -1), b])
        before = self.best.value
        values = []
        for start in range(0, leaves.size, 100_000):
            gone, new = leaves[start : start + 100_000], joins[start : start + 100_000]
            change = np.where(new >= 0, lower[:, new], 0.0) - np.where(gone >= 0, lower[:, gone], 0.0)
            after = mass + np.where(new >= 0, self.mass[new], 0.0) - np.where(gone >= 0, self.mass[gone], 0.0)
            with np.errstate(invalid="ignore", divide="ignore"):
                value = self.outer.value(cost[:, None] + change, np.maximum(after, 1e-300)[None])
            values.append(np.where(after > 1e-12 * mass, np.nan_to_num(value, nan=np.inf).max(axis=0), np.inf))
        promise = np.concatenate(values) if values else np.empty(0)
        for move in np.argsort(promise, kind="stable")[:3]:
            if promise[move] >= before - 1e-9 * abs(before):
                break
            other = chosen.copy()
            if leaves[move] >= 0:
                other[leaves[move]] = False
            if joins[move] >= 0:
                other[joins[move]] = True
            if other.any() and self._attempt(other):
                return True
        return False

    def _fixed(self, taken: npt.NDArray[np.int64]) -> tuple[_Found | None, float, float]:
        """Best decision of one selection, the price at which its use meets the limit, and its dual bound there."""
        table = self.table
        least = self.least[taken]
        if not float(least.sum()) <= self.limit:
            return None, float(table.price[-1]), np.inf
        mass = float(self.mass[taken].sum())
        if table.rough:
            self._reach(taken)
        duals = self.outer.value(
            table.lower[:, taken].sum(axis=1) - table.price * self.limit, np.full(table.price.size, mass)
        )
        row = int(np.argmax(duals))
        price, proved = float(table.price[row]), float(duals[row])
        use = table.use[:, taken].sum(axis=1)
        if use[0] <= self.limit:
            return self._found(taken, table.x[0, taken], table.label[0, taken], 0.0), 0.0, float(duals[0])
        after = int(np.argmax(use <= self.limit)) if np.any(use <= self.limit) else -1
        if after < 0:
            # even the dearest price leaves a hair too much: everyone at its least
            prices = np.zeros(len(self.sums.features))
            prices[self.resource] = 1.0
            answer = respond(self.cells.take(taken), prices, gap=1e-12)
            return self._found(taken, answer.x, answer.label, float(table.price[-1])), price, proved
        low, high = float(table.price[after - 1]), float(table.price[after])
        over, under = float(use[after - 1]), float(use[after])
        x_over, x_under = table.x[after - 1, taken], table.x[after, taken]
        label = table.label[after, taken]
        found: _Found | None = None
        for step in range(CLOSER if table.rough else 40):
            self.stop()
            mix = np.clip((self.limit - under) / max(over - under, 1e-300), 0.0, 1.0) * (1.0 - 1e-9)
            for x in (x_under + mix * (x_over - x_under), x_under):
                trial = self._found(taken, x, label, high)
                if trial is not None:
                    break
            if trial is not None and (found is None or trial.value < found.value):
                found = trial
            if over - under <= 1e-9 * self.limit or high - low <= 1e-12 * high:
                break
            if found is not None and found.value - proved <= (0.3 if table.rough else 0.1) * self.gap * abs(
                found.value
            ):
                break
            if self.best is not None and proved >= self.best.value:
                break
            share = (over - self.limit) / (over - under)
            # regula falsi, kept away from the ends so that the bracket closes from both sides
            share = 0.5 if step % 3 == 2 else min(max(share, 0.02), 0.98)
            middle = low + share * (high - low)
            lower, _, used, x, labels = (row[taken] for row in table.ask(middle))
            dual = float(self.outer.value(float(lower.sum()) - middle * self.limit, mass))
            if dual > proved:
                price, proved = middle, dual
            total = float(used.sum())
            if total <= self.limit:
                high, under, x_under, label = middle, total, x, labels
            else:
                low, over, x_over = middle, total, x
        # both sides of the limit serve the bounds of every node with a selection like this one
        self.table.add([low, high, price])
        return found, price, proved

    def _found(
        self, taken: npt.NDArray[np.int64], x: FloatArray, label: npt.NDArray[np.int64], price: float
    ) -> _Found | None:
        """Value of a point, None where it is not feasible."""
        prices = np.zeros(len(self.sums.features))
        prices[0] = 1.0
        _, features = self.cells.complete(prices, taken, label, x)
        if not features[self.resource].sum() <= self.limit * (1.0 + 1e-12):
            return None
        value = float(self.outer.value(features[0].sum(), self.mass[taken].sum()))
        return _Found(value, taken, x, label, price) if np.isfinite(value) else None

    def _polish(self) -> None:
        """Finish the best decision, and those of other selections that may be better: a loose gap left them rough."""
        if self.best is None:
            return
        self.proved = self.settled
        self._finish(self.best.taken)
        open_ = sorted((bound, key) for key, (_, bound) in self.tried.items())
        best = np.packbits(np.isin(np.arange(self.cells.units), self.best.taken)).tobytes()
        for bound, key in [entry for entry in open_ if entry[1] != best][:RUNNERS_UP]:
            if bound >= self.best.value * (1.0 - POLISH):
                break
            self._finish(np.flatnonzero(np.unpackbits(np.frombuffer(key, dtype=np.uint8), count=self.cells.units)))
        self.table.add(self.best.price)

    def _finish(self, taken: npt.NDArray[np.int64]) -> None:
        """Bring one selection's decision next to its dual bound, the units' own searches carried far enough for it."""
        table, coarse = self.table, self.table.gap
        use = table.use[:, taken].sum(axis=1)
        after = int(np.argmax(use <= self.limit)) if np.any(use <= self.limit) else use.size - 1
        low, high = float(table.price[max(after - 1, 0)]), float(table.price[after])
        # responses of the table are rough: where use meets the limit may lie a little outside
        prices = np.unique(np.linspace(0.99 * low, 1.01 * high, 6))
        mass, proved = float(self.mass[taken].sum()), -np.inf
        table.gap = min(coarse, 0.1 * POLISH)
        for _ in range(8):
            self.stop()
            rows = table.respond(prices, np.arange(self.cells.units))
            lower, _, used, x, label = (row[:, taken] for row in rows)
            total = used.sum(axis=1)
            duals = self.outer.value(lower.sum(axis=1) - prices * self.limit, np.full(prices.size, mass))
            proved = max(proved, float(np.max(duals)))
            under = int(np.argmax(total <= self.limit))
            if not total[under] <= self.limit:
                prices = prices[-1] + np.array([0.0, 0.1, 0.5]) * max(float(prices[-1]), float(table.price[1]))
                continue
            trials, over = [x[under]], under - 1
            if under:
                share = (self.limit - total[under]) / max(float(total[over] - total[under]), 1e-300)
                trials.append(x[under] + share * (1.0 - 1e-9) * (x[over] - x[under]))
            for point in trials:
                found = self._found(taken, point, label[under], float(prices[under]))
                if found is not None and (self.best is None or found.value < self.best.value):
                    self.best = found
                    table.asked[found.price] = tuple(row[under] for row in rows)
            if self.best is not None and self.best.value - proved <= POLISH * abs(self.best.value):
                break
            if under:
                low, high = float(prices[over]), float(prices[under])
                if high - low <= 1e-12 * high:
                    break
                # most of them next to where the secant meets the limit
                near = high - share * (high - low) + np.array([-0.1, -0.01, 0.0, 0.01, 0.1]) * (high - low)
                prices = np.unique(np.clip(np.r_[low, near, high], low, high))
            elif prices[0] > 0.0:
                prices = prices[0] * np.array([0.0, 0.5, 0.9, 1.0])
            else:
                break
        table.gap = coarse

    # -- answers

    def _answer(self) -> Exact:
        if self.best is None:
            return self._nothing()
        best = self.best
        prices = np.zeros(len(self.sums.features))
        near = self.table.near(best.price)
        # the bounds that come with the answer are those at its price
        prices[0], prices[self.resource] = 1.0, self.table.price[near]
        return Exact(
            decision=self._decision(best),
            value=best.value,
            lower_bound=min(self.settled, best.value) if self.settled > -np.inf else None,
            kind="branch",
            prices=prices,
            unit_bounds=self.table.lower[near],
            infeasible=np.empty(0, dtype=np.int64),
            shared=[],
            cells=self.nodes,
            history=self.history,
            stopped=self.stopped,
            multipliers=prices - self.sums.numerator,
            search=self.tree.packed(self.table, self.least),
        )

    def _decision(self, found: _Found) -> dict[str, FloatArray]:
        """Return the decision of a selection, zeros for the units left out."""
        prices = np.zeros(len(self.sums.features))
        prices[0] = 1.0
        decision, _ = self.cells.complete(prices, found.taken, found.label, found.x)
        full = {name: np.zeros(self.cells.units) for name in decision}
        for name, values in decision.items():
            full[name][found.taken] = values
        return full

    def _nothing(self) -> Exact:
        """No selection was found that keeps the objective finite."""
        best = int(np.argmin(self.least))
        conflict = Conflict(
            device=None,
            binding="mass",
            relax={},
            budget={},
            factor=None,
            text="no selection that the limits allow has a finite objective"
            if self.exhausted
            else f"no selection with a finite objective was found among {self.nodes} nodes",
        )
        return self._least_violating(np.array([best]), np.empty(0, dtype=np.int64), [conflict])

    def _least_violating(
        self, taken: npt.NDArray[np.int64], infeasible: npt.NDArray[np.int64], shared: list[Conflict]
    ) -> Exact:
        part = self.cells.least_violating(taken)
        full = {name: np.zeros(self.cells.units) for name in part}
        for name, values in part.items():
            full[name][taken] = values
        return Exact(
            decision=full,
            value=None,
            lower_bound=None,
            kind="none",
            prices=self.sums.numerator,
            unit_bounds=np.zeros(self.cells.units),
            infeasible=infeasible,
            shared=shared,
            cells=self.nodes,
            history=self.history,
        )

    def _infeasible(
        self, state: npt.NDArray[np.int8], least: FloatArray, alone: npt.NDArray[np.int64], together: float
    ) -> Exact:
        """Say who cannot be taken at all, and what the units that must be taken need together."""
        needed = np.flatnonzero(state == IN)
        shared = []
        name = self.sums.features[self.resource]
        if needed.size and np.isfinite(together) and together > self.limit:
            shared.append(
                Conflict(
                    device=None,
                    binding=name,
                    relax={name: together},
                    budget={name: self.limit},
                    factor=together / self.limit,
                    text=f"{name}: the units that must be taken need {together:.4g} together, the limit is "
                    f"{self.limit:.4g}",
                )
            )
        if needed.size:
            return self._least_violating(needed, alone[state[alone] == IN], shared)
        usable = np.flatnonzero(state != OUT)
        if usable.size == 0:
            usable = np.arange(self.cells.units)
        return self._least_violating(usable[:1], alone[np.isin(alone, usable)], shared)

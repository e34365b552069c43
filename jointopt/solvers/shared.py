"""Branch and bound over a few variables that all units share, around the solver for sums over units.

Between two ends of the shared variables every unit may take its own values: a relaxation, whose certified bound holds
for everything between the ends. At given values it is the problem itself. Nodes are halved along the variable in which
the units disagree most, relative to the whole range; the best bound first.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from jointopt.problem import Shared, SharedTree
from jointopt.solvers.exact import Exact, Report, minimize_sums
from jointopt.solvers.monitor import StopSearch
from jointopt.solvers.priced import priced_from
from jointopt.system import FloatArray

__all__ = ["minimize_shared"]

MOST_NODES = 2_000
"""Nodes after which the incumbent is returned with the bound reached."""
SMALLEST = 1e-10
"""Share of the whole range, or of the value, at which a node is no longer halved."""


@dataclass(order=True)
class _Node:
    bound: float
    number: int
    low: FloatArray = field(compare=False)
    high: FloatArray = field(compare=False)
    chosen: FloatArray = field(compare=False)
    proof: Exact = field(compare=False)
    """The relaxation whose bound this is."""


def minimize_shared(
    shared: Shared,
    *,
    gap: float = 1e-4,
    stop: Callable[[], None] | None = None,
    report: Report | None = None,
) -> Exact:
    """Minimise over shared variables and the units' own, with a certified bound.

    Parameters
    ----------
    shared : Shared
        The shared variables, and the problem between any two ends of them.
    gap : float
        Relative gap to reach.
    stop : callable, optional
        Called between steps; `StopSearch` or `KeyboardInterrupt` raised by it ends the search with what was found.
    report : callable, optional
        Told of progress after each node.
    """
    return _Search(shared, gap, stop, report).run()


class _Search:
    def __init__(
        self,
        shared: Shared,
        gap: float,
        stop: Callable[[], None] | None,
        report: Report | None,
    ) -> None:
        self.shared, self.gap, self.stop, self.report = shared, gap, stop or (lambda: None), report
        self.best: Exact | None = None
        self.nodes, self.cells = 0, 0
        self.start: tuple[FloatArray, float] | None = None
        self.closed: list[_Node] = []
        self.history: list[dict[str, float]] = []
        self.stopped: BaseException | None = None

    def run(self) -> Exact:
        """Search until the gap is reached or nothing is open."""
        root, answer = self._node(self.shared.lower, self.shared.upper, None)
        if root is None:
            own, _ = self.shared.judge(answer.decision)
            return replace(answer, decision=own, cells=self.cells, history=self.history)
        heap = [root]
        node: _Node | None = None
        kept = 0
        try:
            while heap:
                self.stop()
                lower = heap[0].bound
                value = self._value()
                self._tell(value, lower)
                if (np.isfinite(value) and value - lower <= self.gap * abs(value)) or self.nodes >= MOST_NODES:
                    break
                kept = len(self.closed)
                node = heapq.heappop(heap)
                halves = self._halves(node)
                if not halves:
                    self.closed.append(node)
                    node = None
                    continue
                children = [self._node(low, high, node)[0] for low, high in halves]
                for child in children:
                    if child is not None:
                        heapq.heappush(heap, child)
                node = None
        except (StopSearch, KeyboardInterrupt) as stopped:
            self.stopped = stopped
            if node is not None:
                # its children are not all there: it stands for them
                self.closed = [*self.closed[:kept], node]
        self.closed += heap
        return self._answer()

    def _value(self) -> float:
        return np.inf if self.best is None or self.best.value is None else self.best.value

    def _tell(self, value: float, lower: float) -> None:
        self.history.append({"evaluation": float(self.cells), "value": value, "lower_bound": lower})
        if self.report is not None:
            found = self.best is not None
            self.report(self.cells, value if found else None, lower, self.best.decision if self.best else None)

    def _solve(self, low: FloatArray, high: FloatArray, rounds: int = 0) -> Exact:
        sums, units = self.shared.within(low, high)
        start, steps, wanted = self.start, 60, np.inf
        if np.isfinite(self._value()):
            wanted = self._value() - 0.999 * self.gap * abs(self._value())
        if sums.is_ratio and np.isfinite(wanted):
            # at the ratio that is wanted one response tells whether anything here can be better; if so the part is
            # halved, whatever its own bound
            known = np.zeros(len(sums.features)) if start is None else start[0]
            start = (known, max(wanted - sums.constant, 0.0))
            steps = 60 if np.all(low == high) else 1
        answer = minimize_sums(
            sums,
            priced_from(units),
            gap=0.25 * self.gap,
            stop=self.stop,
            start=start,
            rounds=rounds,
            enough=wanted,
            steps=steps,
        )
        if answer.multipliers is not None and np.any(answer.multipliers > 0.0):
            self.start = (answer.multipliers, answer.ratio)
        self.cells += answer.cells
        return answer

    def _node(self, low: FloatArray, high: FloatArray, parent: _Node | None) -> tuple[_Node | None, Exact]:
        """Bound what lies between two ends; None where nothing there can be feasible and better."""
        self.nodes += 1
        answer = self._solve(low, high)
        chosen = self.shared.chosen(answer.decision)
        middle = np.clip(chosen.mean(axis=1), low, high)
        bound = -np.inf if answer.lower_bound is None else answer.lower_bound
        if answer.value is None and not answer.undecided:
            bound = np.inf
        node = _Node(bound, self.nodes, low, high, middle, answer)
        if parent is not None and parent.bound > bound:
            node = replace(node, bound=parent.bound, proof=parent.proof)
        if self._cut(node):
            self.closed.append(node)
            return None, answer
        if answer.value is not None:
            own, value = self.shared.judge(answer.decision)
            if value < np.inf:
                self._take(replace(answer, decision=own, value=value))
            else:
                any(self._try(point) for point in self._points(low, high, middle, chosen))
        return node, answer

    def _cut(self, node: _Node) -> bool:
        """Whether a node cannot hold anything better by more than the gap."""
        value = self._value()
        return node.bound == np.inf or (np.isfinite(value) and node.bound >= value - self.gap * abs(value))

    def _points(self, low: FloatArray, high: FloatArray, middle: FloatArray, chosen: FloatArray) -> list[FloatArray]:
        """Values to try: what the units chose on average and at most, then the ends."""
        whole = self.shared.integer
        points = [middle, np.clip(chosen.max(axis=1), low, high), high, low]
        return [np.where(whole, np.rint(p), p) for p in points]

    def _try(self, point: FloatArray) -> bool:
        """Solve at given values; say whether that is feasible."""
        answer = self._solve(point, point, rounds=1)
        if answer.value is None:
            return False
        own, value = self.shared.judge(answer.decision)
        self._take(replace(answer, decision=own, value=value))
        return value < np.inf

    def _take(self, answer: Exact) -> None:
        if answer.value is not None and answer.value < self._value():
            self.best = answer

    def _halves(self, node: _Node) -> list[tuple[FloatArray, FloatArray]]:
        """Return the two halves of a node; none where it is too small to halve."""
        span = np.maximum(self.shared.upper - self.shared.lower, 1e-300)
        width = node.high - node.low
        size = np.maximum(np.abs(node.low), np.abs(node.high))
        wide = width > SMALLEST * np.minimum(span, np.maximum(size, 1e-300))
        if not wide.any():
            return []
        first = getattr(self.shared, "first", None)
        axis = int(np.argmax(np.where(wide, width / span, -1.0)))
        axis = axis if first is None or not wide[first] else first
        low, high = node.low[axis], node.high[axis]
        # at the units' choice where both halves learn something by that; a choice near an end says little
        middle = float(node.chosen[axis])
        if not low + 0.1 * width[axis] <= middle <= high - 0.1 * width[axis]:
            middle = 0.5 * (low + high)
        if low > 0.0 and high > 100.0 * low:
            middle = float(np.sqrt(low * high))
        step = 0.0
        if self.shared.integer[axis]:
            middle, step = float(np.floor(np.clip(middle, low, high - 1.0))), 1.0
        left_high, right_low = node.high.copy(), node.low.copy()
        left_high[axis], right_low[axis] = middle, middle + step
        return [(node.low, left_high), (right_low, node.high)]

    def _answer(self) -> Exact:
        lower = min((node.bound for node in self.closed), default=np.inf)
        if self.best is None:
            answer = self._solve(self.shared.upper, self.shared.upper)
            return replace(
                answer,
                decision=self.shared.judge(answer.decision)[0],
                value=None,
                lower_bound=None,
                cells=self.cells,
                history=self.history,
                stopped=self.stopped,
                undecided=lower < np.inf,
            )
        assert self.best.value is not None
        return replace(
            self.best,
            lower_bound=min(lower, self.best.value),
            kind="branch",
            cells=self.cells,
            history=self.history,
            stopped=self.stopped,
            search=self._tree(),
        )

    def _tree(self) -> SharedTree:
        """Pack the nodes that were closed or are still open."""
        proofs = [node.proof for node in self.closed]
        nothing = np.zeros(max(p.prices.size for p in proofs))
        return SharedTree(
            self.shared.names,
            np.stack([node.low for node in self.closed]),
            np.stack([node.high for node in self.closed]),
            np.array([node.bound for node in self.closed]),
            np.stack([p.prices for p in proofs]),
            np.stack([nothing if p.multipliers is None else p.multipliers for p in proofs]),
            np.array([p.ratio for p in proofs]),
        )

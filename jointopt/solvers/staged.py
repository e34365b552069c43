"""Backward induction for units that go from state to state in stages (`jointopt.problem.Staged`).

From the last stage to the first, the least cost that remains is found for all states of all units at once, one action
at a time; then every unit follows the cheapest actions from its start. The table of what remains is the certificate.
The answer is exact over the states that the problem lists, whatever they stand for.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from jointopt.problem import CostToGo, Staged
from jointopt.solvers.monitor import StopSearch
from jointopt.system import FloatArray

__all__ = ["StagedAnswer", "minimize_staged", "remaining"]

CHUNK = 4_000_000
"""Numbers of a table that are worked on together."""
KEPT = 20_000_000
"""Numbers up to which the table is kept for the certificate."""


@dataclass(frozen=True)
class StagedAnswer:
    """Answer of `minimize_staged`.

    Attributes
    ----------
    path : int array, shape [stages, units]
        State of each unit after each stage.
    unit_values : array, shape [units]
        Least cost of each unit; inf where nothing is allowed, nan where the search was stopped.
    table : CostToGo, optional
        Why nothing is cheaper; kept up to `KEPT` numbers.
    examined : int
        Triples of state, action and unit looked at.
    stopped : BaseException, optional
        What ended the search; the path then follows the cheapest next step where no more was known.
    """

    path: npt.NDArray[np.int64]
    unit_values: FloatArray
    table: CostToGo | None
    examined: int
    stopped: BaseException | None = None

    @property
    def lower_bound(self) -> float | None:
        """Proved bound of the sum over units; None where the search was stopped."""
        return None if self.stopped is not None else math.fsum(self.unit_values)

    @property
    def infeasible(self) -> npt.NDArray[np.int64]:
        """Units for which nothing is allowed."""
        return np.flatnonzero(self.unit_values == np.inf)


def minimize_staged(
    staged: Staged, *, stop: Callable[[], None] | None = None, report: Callable[[int], None] | None = None
) -> StagedAnswer:
    """Minimise the cost of every unit over its paths.

    Parameters
    ----------
    staged : Staged
        Units, stages, states and actions.
    stop : callable, optional
        Called before every stage. `StopSearch` or KeyboardInterrupt, from it or from outside, ends the search.
    report : callable, optional
        Told after every stage how many triples of state, action and unit were looked at.
    """
    keep = staged.stages * staged.units * staged.states <= KEPT
    tables: list[FloatArray] = []
    values, paths = np.full(staged.units, np.nan), np.empty((staged.stages, staged.units), dtype=np.int64)
    size = max(1, CHUNK // (staged.states * (staged.stages + 1)))
    examined, stopped = 0, None
    for first in range(0, staged.units, size):
        units = slice(first, min(first + size, staged.units))
        own = np.arange(units.start, units.stop)
        table = np.zeros((staged.stages + 1, own.size, staged.states))
        for stage in reversed(range(staged.stages)):
            if stopped is not None:
                break
            try:
                if stop is not None:
                    stop()
                table[stage] = remaining(staged, stage, units, table[stage + 1])
                examined += staged.successor.size * own.size
                if report is not None:
                    report(examined)
            except (StopSearch, KeyboardInterrupt) as reason:
                stopped = reason
        if stopped is None:
            values[units] = table[0, np.arange(own.size), staged.start[units]]
        paths[:, units] = _followed(staged, units, table)
        if keep:
            tables.append(table[:-1])
    whole = CostToGo(np.concatenate(tables, axis=1)) if keep and stopped is None and tables else None
    return StagedAnswer(paths, values, whole, examined, stopped)


def remaining(staged: Staged, stage: int, units: slice, after: FloatArray) -> FloatArray:
    """Return the least cost from every state before a stage, given that after it; both [units, states]."""
    padded = _padded(staged, stage, units, after)
    best = np.full_like(after, np.inf)
    reached = np.empty_like(after)
    for action, successor in enumerate(staged.successor):
        # -1 is the last column, which costs inf
        np.take(padded, successor, axis=1, out=reached, mode="wrap")
        reached += staged.moving(stage, action, units)
        np.minimum(best, reached, out=best)
    return best


def _padded(staged: Staged, stage: int, units: slice, after: FloatArray) -> FloatArray:
    """What arriving costs and what then remains, with a last state that nobody can be in."""
    padded = np.full((after.shape[0], staged.states + 1), np.inf)
    np.add(staged.arriving(stage, units), after, out=padded[:, :-1])
    return padded


def _followed(staged: Staged, units: slice, table: FloatArray) -> npt.NDArray[np.int64]:
    """States after each stage along the cheapest actions, the first of equal ones, shape [stages, units]."""
    state = staged.start[units]
    each = np.arange(state.size)
    path = np.empty((staged.stages, state.size), dtype=np.int64)
    for stage in range(staged.stages):
        padded = _padded(staged, stage, units, table[stage + 1])
        successor = staged.successor[:, state]
        cost = padded[each, successor]
        for action in range(successor.shape[0]):
            moving = staged.moving(stage, action, units)
            cost[action] += moving[:, 0] if moving.shape[1] == 1 else moving[each, state]
        best = cost.argmin(axis=0)
        # where nothing is allowed, stay
        state = np.where(np.isfinite(cost[best, each]), successor[best, each], state)
        path[stage] = state
    return path

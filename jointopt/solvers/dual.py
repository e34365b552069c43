"""Maximum of a concave function of a few multipliers, by cutting planes.

The function is d(m) = min over points z of cost(z) + m . slope(z). Every evaluation yields a point, and every point an
affine function above d; their minimum, the model, is maximised by a small linear program, which bounds the maximum
from above. The next multipliers lie between the best ones and the model's ("in-out" steps), which keeps the method from
leaping about while the model is poor.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.optimize import linprog

from jointopt.system import FloatArray

__all__ = ["Cuts", "climb"]

FARTHEST = 1e8
"""Largest multiplier, in units of the scale: what exceeds it is a limit that next to nothing meets."""


class Cuts:
    """Affine functions cost + slope . m that lie above the dual function.

    Parameters
    ----------
    scale : array, shape [multipliers]
        Size of each multiplier; the program is solved in these units.
    simplex : bool
        Whether the multipliers, in units of the scale, add up to 1 (otherwise they are only at least 0).
    """

    def __init__(self, scale: FloatArray, *, simplex: bool = False) -> None:
        self.scale, self.simplex = scale, simplex
        self.cost = np.empty(0)
        self.slope = np.empty((0, scale.size))

    def add(self, cost: float, slope: FloatArray) -> None:
        """Add one cut."""
        self.cost = np.append(self.cost, cost)
        self.slope = np.vstack([self.slope, slope])

    def best(self) -> tuple[FloatArray, float]:
        """Return where the least of the cuts is greatest, and its value there: no multipliers do better."""
        slope = self.slope * self.scale
        if self.scale.size == 1:
            where = np.array([1.0]) if self.simplex else self._line(slope[:, 0])
        else:
            size = max(float(np.abs(self.cost).max()), float(np.abs(slope).max()), 1e-300)
            rows = np.column_stack([np.ones(self.cost.size), -slope / size])
            bounds = [(None, None)] + [(0.0, 1.0 if self.simplex else FARTHEST)] * self.scale.size
            equal = {"A_eq": np.r_[0.0, np.ones(self.scale.size)][None], "b_eq": [1.0]} if self.simplex else {}
            answer = linprog(
                np.r_[-1.0, np.zeros(self.scale.size)], rows, self.cost / size, bounds=bounds, method="highs", **equal
            )
            where = np.maximum(answer.x[1:], 0.0) if answer.x is not None else np.zeros(self.scale.size)
        return where * self.scale, float((self.cost + slope @ where).min())

    def _line(self, slope: FloatArray) -> FloatArray:
        """One multiplier: the maximum is at 0, at the farthest, or where a rising cut meets a falling one."""
        up, down = np.flatnonzero(slope > 0.0), np.flatnonzero(slope < 0.0)
        with np.errstate(over="ignore"):
            meet = (self.cost[down][None] - self.cost[up][:, None]) / (slope[up][:, None] - slope[down][None])
        points = np.unique(np.clip(np.r_[0.0, meet.ravel(), FARTHEST], 0.0, FARTHEST))
        lowest = (self.cost[:, None] + slope[:, None] * points).min(axis=0)
        return points[[int(np.argmax(lowest))]]


def climb(
    evaluate: Callable[[FloatArray], tuple[float, float, FloatArray]],
    cuts: Cuts,
    start: FloatArray,
    *,
    tolerance: Callable[[float], float],
    steps: int,
    done: Callable[[float, float], bool] | None = None,
) -> tuple[FloatArray, float, float]:
    """Maximise the dual function.

    Parameters
    ----------
    evaluate : callable
        Maps multipliers to (proved value of the dual function, cost and slope of the point found there).
    cuts : Cuts
        What is known; grows.
    start : array
        First multipliers.
    tolerance : callable
        Maps the best value to the distance from the maximum at which to stop.
    steps : int
        Evaluations at most.
    done : callable, optional
        Asked with (best value, upper bound of the maximum) after each step; true ends the climb.

    Returns
    -------
    tuple
        Best multipliers, their value, and an upper bound of the maximum.
    """
    best_at, best, upper = start, -np.inf, np.inf
    reached = -np.inf
    at = start
    for step in range(steps):
        value, cost, slope = evaluate(at)
        if value > best:
            best_at, best = at, value
        # what the units' own searches leave open is not for the multipliers to close
        reached = max(reached, cost + float(at @ slope))
        cuts.add(cost, slope)
        top, upper = cuts.best()
        if upper - reached <= tolerance(best) or (done is not None and done(best, upper)):
            break
        share = 1.0 if step % 3 == 2 else 0.5
        at = best_at + share * (top - best_at)
        if np.all(np.abs(at - best_at) <= 1e-15 * np.abs(best_at)):
            at = top
            if np.all(np.abs(at - best_at) <= 1e-15 * np.abs(best_at)):
                break
    return best_at, best, upper

"""What every solver does while it runs: report progress, keep the incumbent, obey a time limit."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jointopt.decision import Decision
from jointopt.problem import FEASIBILITY_TOLERANCE, Evaluation, Problem

__all__ = ["Monitor", "Progress", "StopSearch"]


class StopSearch(Exception):
    """Raised inside a solver when time is up; the incumbent is kept."""


@dataclass(frozen=True)
class Progress:
    """What a callback is told after each evaluation; `lower_bound` is what a method with a certificate has proved."""

    n_evaluations: int
    seconds: float
    value: float
    best: float | None
    lower_bound: float | None = None


@dataclass
class Monitor:
    """Counts evaluations of one solve, remembers the best feasible decision and when it was found.

    Parameters
    ----------
    problem : Problem
        What is being solved.
    time_limit : float, optional
        Seconds after which `StopSearch` is raised by the next call.
    callback : callable, optional
        Called with a `Progress` after each evaluation; it may raise KeyboardInterrupt to stop, which keeps the
        incumbent.
    """

    problem: Problem
    time_limit: float | None = None
    callback: Callable[[Progress], Any] | None = None
    started: float = field(default_factory=time.perf_counter)
    n_evaluations: int = 0
    best: Decision | None = None
    best_value: float = np.inf
    least_violation: float = np.inf
    history: list[dict[str, float]] = field(default_factory=list)
    latest: Evaluation | None = None

    @property
    def seconds(self) -> float:
        """Time since the start."""
        return time.perf_counter() - self.started

    def check(self) -> None:
        """Raise `StopSearch` when the time limit is over."""
        if self.time_limit is not None and self.seconds > self.time_limit:
            raise StopSearch

    def offer(self, decision: Decision) -> float:
        """Evaluate a decision, keep it if it is the best so far, report it; return its objective.

        A feasible decision beats every infeasible one; among infeasible ones the least violation wins.
        """
        evaluation = self.problem.evaluate(decision)
        value, violation = float(evaluation.objective), float(evaluation.violation())
        if np.isnan(value):
            value = np.inf
        self.latest = evaluation
        self.n_evaluations += 1
        feasible = violation <= FEASIBILITY_TOLERANCE
        if feasible:
            violation = 0.0
        if (violation, value) < (self.least_violation, self.best_value):
            self.best, self.best_value, self.least_violation = decision, value, violation
        best = self.best_value if self.least_violation == 0.0 else None
        self.history.append(
            {
                "evaluation": float(self.n_evaluations),
                "value": value,
                "violation": violation,
                "seconds": self.seconds,
            }
        )
        if self.callback is not None:
            self.callback(Progress(self.n_evaluations, self.seconds, value, best))
        self.check()
        return value

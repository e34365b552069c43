"""One decision for several systems: each system's certified optimum bounds it, local search finds it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from jointopt.decision import Decision
from jointopt.problem import FEASIBILITY_TOLERANCE, Problem, Scenarios
from jointopt.result import Result
from jointopt.solvers.monitor import Monitor, StopSearch
from jointopt.solvers.nlp import improve
from jointopt.system import FloatArray

__all__ = ["minimize_scenarios"]

IMPROVED = 3
"""Best candidates from which a local search starts."""


def minimize_scenarios(
    problem: Problem,
    scenarios: Scenarios,
    monitor: Monitor,
    solve: Callable[[Problem], Result],
    *,
    gap: float,
) -> tuple[float | None, FloatArray, str]:
    """Solve every system on its own, offer what comes out, and improve the best of it.

    Parameters
    ----------
    problem : Problem
        The problem over all systems.
    scenarios : Scenarios
        The problems of the single systems.
    monitor : Monitor
        Receives the decisions and keeps the best.
    solve : callable
        Solves the problem of one system, with a certified bound where it can.
    gap : float
        Relative gap at which nothing is improved any more.

    Returns
    -------
    tuple
        (lower bound or None, the systems' bounds, what was done).
    """
    bounds = np.full(len(scenarios.problems), -np.inf)
    seen: list[Decision] = []
    why = ""
    for s, single in enumerate(scenarios.problems):
        monitor.check()
        answer = solve(single)
        if answer.status == "interrupted":
            # the single solve has answered the interrupt by its own result: it is meant for all
            if answer.decision is not None:
                monitor.offer(_within(problem, answer.decision))
            raise KeyboardInterrupt
        if answer.status == "infeasible" and scenarios.measure != "chance":
            why = f"system {s} alone has no feasible decision: {answer.message}"
            bounds[s] = np.inf
            break
        if answer.lower_bound is not None:
            bounds[s] = answer.lower_bound
        if answer.decision is not None:
            seen.append(_within(problem, answer.decision))
            monitor.offer(seen[-1])
    # leaving out constraints of some systems makes their own optima no bound
    known = bool(np.all(bounds > -np.inf)) and scenarios.measure != "chance"
    lower = None if not known else float(bounds.max() if scenarios.measure == "worst" else bounds.mean())
    if why:
        return None, bounds, why
    if len(seen) > 1:
        kinds = {v.name: v.kind for v in problem.variables}
        mean = {n: np.mean([d[n] for d in seen], axis=0) for n in seen[0]}
        seen.append(Decision({n: v if kinds[n] == "real" else np.rint(v) for n, v in mean.items()}))
        monitor.offer(seen[-1])
    if not _reached(monitor, lower, gap):
        ranked = sorted(seen, key=lambda d: _rank(problem, d))
        for decision in ranked[:IMPROVED]:
            monitor.check()
            names = [v.name for v in problem.variables]
            try:
                monitor.offer(improve(problem, decision, names, stop=monitor.check))
            except StopSearch:
                # what is proved of the systems stays
                return lower, bounds, f"{len(scenarios.problems)} systems solved, each on its own; the time was over"
            if _reached(monitor, lower, gap):
                break
    return lower, bounds, f"{len(scenarios.problems)} systems solved, each on its own"


def _within(problem: Problem, decision: Decision) -> Decision:
    """Return a decision moved into the ranges that all systems allow."""
    return Decision({v.name: np.clip(decision[v.name], v.lower, v.upper) for v in problem.variables})


def _reached(monitor: Monitor, lower: float | None, gap: float) -> bool:
    found = monitor.best is not None and monitor.least_violation <= FEASIBILITY_TOLERANCE
    return found and lower is not None and monitor.best_value - lower <= gap * abs(monitor.best_value)


def _rank(problem: Problem, decision: Decision) -> tuple[float, float]:
    evaluation = problem.evaluate(decision)
    violation = float(evaluation.violation())
    return (0.0 if violation <= FEASIBILITY_TOLERANCE else violation, float(evaluation.objective))

"""`solve`: one door to every method."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, cast

import numpy as np

from jointopt.decision import Decision
from jointopt.errors import InputError, is_real, is_whole, nearest
from jointopt.problem import FEASIBILITY_TOLERANCE, Capabilities, Conflict, Evaluation, Problem, SelectableCells
from jointopt.result import Certificate, Result, Status
from jointopt.solvers.alternating import alternating
from jointopt.solvers.bayesian import bayesian
from jointopt.solvers.convex import minimize_convex
from jointopt.solvers.exact import minimize_sums
from jointopt.solvers.monitor import Monitor, Progress, StopSearch
from jointopt.solvers.selection import minimize_selection

__all__ = ["METHODS", "methods", "solve"]

METHODS = {
    "exact": "global optimum from the problem's structure, with a certified lower bound",
    "convex": "global optimum of a convex program, with a lower bound from its dual",
    "bayesian": "Bayesian optimization over the complicating variables around the closed-form inner solution",
    "alternating": "the published steps, closed forms or convex programs, in turn",
}
"""Methods for any problem; a problem adds its baselines by name."""

_OURS = ("problem", "monitor", "seed")


def methods(problem: Problem) -> dict[str, str]:
    """Return every method that can be asked of a problem, with one line on each."""
    return _methods(problem.capabilities())


def _methods(offered: Capabilities) -> dict[str, str]:
    out = {}
    if offered.sums is not None and offered.cells is not None:
        out["exact"] = METHODS["exact"]
    if offered.convex is not None:
        out["convex"] = METHODS["convex"]
    if offered.search is not None:
        out["bayesian"] = METHODS["bayesian"]
    if offered.blocks is not None:
        out["alternating"] = METHODS["alternating"]
    return out | {name: baseline.meaning for name, baseline in offered.baselines.items()}


def solve(
    problem: Problem,
    *,
    method: str = "auto",
    gap: float | None = None,
    seed: int | None = 0,
    time_limit: float | None = None,
    callback: Callable[[Progress], Any] | None = None,
    **options: Any,
) -> Result:
    """Find the best decision of a problem.

    Parameters
    ----------
    problem : Problem
        What to solve.
    method : str
        ``"auto"`` (exact or convex where the problem has the structure), a name of `METHODS`, or one of the problem's
        baselines (`methods` lists them).
    gap : float, optional
        Relative certified gap at which the exact method may stop; when not given, 1e-6, or 1e-4 where it also decides
        which units take part.
    seed : int, optional
        Seed of every random draw; the same seed gives the same result.
    time_limit : float, optional
        Seconds; the incumbent is returned when they are over.
    callback : callable, optional
        Called with a `Progress` after each evaluation (once, with the answer, by ``exact``). KeyboardInterrupt,
        from it or from the keyboard, returns the incumbent with status ``interrupted``.
    **options
        Passed to the method: for ``bayesian`` `iterations`, `initial`, `backend`, `mode`; for ``alternating``
        `max_iterations`, `tolerance`.

    Returns
    -------
    Result
        Infeasible problems are an answer: status ``infeasible`` with the reasons.

    Raises
    ------
    InputError
        For an unknown method or option, or one the problem's structure does not support.
    """
    if not isinstance(problem, Problem):
        raise InputError(f"problem: expected a Problem, got {type(problem).__name__}")
    if gap is not None and not (is_real(gap) and 0.0 < gap < 1.0):
        raise InputError(f"gap: {gap!r} must be a number between 0 and 1")
    if time_limit is not None and not (is_real(time_limit) and time_limit > 0.0):
        raise InputError(f"time_limit: {time_limit!r} s must be a number above 0")
    if seed is not None and not (is_whole(seed) and seed >= 0):
        raise InputError(f"seed: {seed!r} must be a whole number of at least 0")
    if not isinstance(method, str):
        raise InputError(f"method: {method!r} must be a name")
    offered = problem.capabilities()
    if gap is None:
        gap = 1e-6 if offered.selection is None else 1e-4
    known = _methods(offered)
    if method == "auto":
        method = next((name for name in ("exact", "convex") if name in known), "bayesian")
    if method not in known:
        why = " (this problem lacks the structure for it)" if method in METHODS else ""
        raise InputError(f"method: unknown '{method}'{why}{nearest(method, known)}")
    monitor = Monitor(problem, time_limit=time_limit, callback=callback)
    run = _Run(problem, offered, method, gap, seed, monitor, options)
    status: Status | None = None
    try:
        if method == "exact":
            return run.exact()
        if method == "convex":
            return run.convex()
        if method in offered.baselines:
            return run.baseline()
        run_method: Any = bayesian if method == "bayesian" else alternating
        allowed = [name for name in inspect.signature(run_method).parameters if name not in _OURS]
        for name in options:
            if name not in allowed:
                raise InputError(f"method '{method}': unknown option '{name}'{nearest(name, allowed)}")
        message = run_method(problem, monitor, seed=seed, **options)
    except StopSearch:
        run.fallback()
        message, status = f"stopped at the time limit of {time_limit:g} s", "time_limit"
    except KeyboardInterrupt:
        run.fallback()
        message, status = "interrupted", "interrupted"
    return run.incumbent(message, status)


class _Run:
    """One call of `solve`."""

    def __init__(
        self,
        problem: Problem,
        offered: Capabilities,
        method: str,
        gap: float,
        seed: int | None,
        monitor: Monitor,
        options: dict[str, Any],
    ) -> None:
        self.problem, self.offered, self.method = problem, offered, method
        self.gap, self.seed, self.monitor, self.options = gap, seed, monitor, options

    def exact(self) -> Result:
        """Solve by structure, with certificate."""
        if self.options:
            raise InputError(f"method 'exact': unknown option '{next(iter(self.options))}'")
        sums, cells = self.offered.sums, self.offered.cells
        assert sums is not None and cells is not None
        selection = self.offered.selection
        if selection is None:
            answer = minimize_sums(sums, cells, gap=self.gap, stop=self.monitor.check)
        else:
            answer = minimize_selection(
                sums, cast(SelectableCells, cells), selection, gap=self.gap, stop=self.monitor.check
            )
        decision = Decision(answer.decision)
        self.monitor.n_evaluations = answer.cells
        if answer.value is None:
            conflicts = list(answer.shared)
            if self.offered.conflicts is not None and answer.infeasible.size:
                conflicts += self.offered.conflicts(answer.infeasible)
            evaluation = self.problem.evaluate(decision)
            if evaluation.feasible():
                value = float(evaluation.objective)
                text = "at the very edge of its budgets: only rounding separates it from infeasible"
                return self._result("feasible", decision, value, None, Certificate(), [], text)
            return self._result("infeasible", decision, None, None, Certificate(), conflicts, _infeasible(conflicts))
        evaluation = self.problem.evaluate(decision)
        value = float(evaluation.objective)
        lower = None if answer.lower_bound is None else min(answer.lower_bound, value)
        certificate = Certificate(
            kind=answer.kind,
            prices=dict(zip(sums.features, (float(p) for p in answer.prices), strict=True)),
            unit_bounds=answer.unit_bounds,
            cells=answer.cells,
            tolerance=self.gap,
            text=_PROOFS[answer.kind],
        )
        self.monitor.best, self.monitor.best_value, self.monitor.least_violation = decision, value, 0.0
        if self.monitor.callback is not None:
            self.monitor.callback(Progress(answer.cells, self.monitor.seconds, value, value))
        proved = lower is not None and value - lower <= self.gap * max(abs(value), 1e-12)
        self.monitor.history = [*answer.history]
        what = "cells" if selection is None else "nodes"
        message = f"{cells.units} units settled with {answer.cells} {what}"
        status: Status = "optimal" if proved else "feasible"
        if answer.stopped is not None and not proved:
            status = "time_limit" if isinstance(answer.stopped, StopSearch) else "interrupted"
            message += "; stopped before the gap was reached"
        return self._result(status, decision, value, lower, certificate, [], message, evaluation)

    def convex(self) -> Result:
        """Solve a convex program; the bound is the design's own proof, the solver's status proves nothing."""
        if self.options:
            raise InputError(f"method 'convex': unknown option '{next(iter(self.options))}'")
        assert self.offered.convex is not None
        decision, bound, message = minimize_convex(self.offered.convex, stop=self.monitor.check)
        self.monitor.offer(decision)
        evaluation = self.problem.evaluate(decision)
        if not evaluation.feasible():
            return self.incumbent(message, None)
        value = float(evaluation.objective)
        lower = min(bound, value)
        certificate = Certificate(
            kind="dual",
            tolerance=self.gap,
            text="Lagrangian dual of the convex program, computed without its solver",
        )
        proved = value - lower <= self.gap * max(abs(value), 1e-12)
        return self._result(
            "optimal" if proved else "feasible", decision, value, lower, certificate, [], message, evaluation
        )

    def baseline(self) -> Result:
        """Solve a restricted problem, or follow a rule; the value is the full problem's."""
        baseline = self.offered.baselines[self.method]
        if self.options:
            raise InputError(f"method '{self.method}': unknown option '{next(iter(self.options))}'")
        if baseline.rule is not None:
            decision = baseline.rule(np.random.default_rng(self.seed))
            if decision is None:
                message = f"no decision of this kind keeps every budget ({baseline.meaning})"
                return self._result("infeasible", None, None, None, Certificate(), [], message)
            self.monitor.offer(decision)
            return self.incumbent(baseline.meaning, None)
        if baseline.instead is not None:
            return self.judged(baseline.instead(np.random.default_rng(self.seed)), baseline.meaning)
        assert baseline.restrict is not None
        narrow = self.problem.restrict(**baseline.restrict)
        inner = solve(narrow, method="exact", gap=self.gap, seed=self.seed, time_limit=self.monitor.time_limit)
        text = f"{baseline.meaning}; {inner.message}"
        certificate = Certificate(
            kind="none",
            text="optimal within the baseline's restriction; no bound for the full problem is claimed",
        )
        self.monitor.n_evaluations = inner.n_evaluations
        status: Status = "feasible" if inner.status == "optimal" else inner.status
        return Result(
            problem=narrow,
            method=self.method,
            status=status,
            decision=inner.decision,
            evaluation=inner.evaluation,
            value=inner.value,
            lower_bound=None,
            certificate=certificate,
            infeasibility=inner.infeasibility,
            message=text,
            seconds=self.monitor.seconds,
            n_evaluations=inner.n_evaluations,
            seed=self.seed,
        )

    def judged(self, other: Problem, meaning: str) -> Result:
        """Solve another problem and judge its decision by this one."""
        inner = solve(other, method="exact", gap=self.gap, seed=self.seed, time_limit=self.monitor.time_limit)
        self.monitor.n_evaluations = inner.n_evaluations
        evaluation = None if inner.decision is None else self.problem.evaluate(inner.decision)
        feasible = evaluation is not None and bool(evaluation.feasible())
        status: Status = inner.status
        if status == "optimal":
            status = "feasible"
        if status == "feasible" and not feasible:
            status = "infeasible"
        value = float(evaluation.objective) if evaluation is not None and feasible else None
        text = "optimal for another problem; no bound for this one is claimed"
        return self._result(
            status,
            inner.decision,
            value,
            None,
            Certificate(kind="none", text=text),
            inner.infeasibility,
            f"{meaning}; {inner.message}",
            evaluation,
        )

    def fallback(self) -> None:
        """Stopped before any decision was seen: offer the middle of the search range, or where the steps start."""
        search = self.offered.search
        self.monitor.time_limit = self.monitor.callback = None
        if self.monitor.best is None and search is not None:
            middle = np.sqrt(search.lower * search.upper) if search.logarithmic else 0.5 * (search.lower + search.upper)
            self.monitor.offer(search.complete(middle))
        elif self.monitor.best is None and self.offered.blocks is not None:
            self.monitor.offer(self.offered.blocks.start())

    def incumbent(self, message: str, status: Status | None) -> Result:
        """Return the best decision the monitor saw."""
        decision, violation = self.monitor.best, self.monitor.least_violation
        if decision is None or violation > FEASIBILITY_TOLERANCE:
            conflicts = []
            if decision is not None and self.offered.conflicts is not None:
                broken = {u for name, u, _ in self.problem.evaluate(decision).broken() if u is not None}
                conflicts = self.offered.conflicts(np.array(sorted(broken), dtype=np.int64))
                conflicts = [c for c in conflicts if c.factor is None or c.factor > 1.0]
            text = f"no feasible decision was found; {message}"
            return self._result(status or "infeasible", decision, None, None, Certificate(), conflicts, text)
        return self._result(status or "feasible", decision, self.monitor.best_value, None, Certificate(), [], message)

    def _result(
        self,
        status: Status,
        decision: Decision | None,
        value: float | None,
        lower: float | None,
        certificate: Certificate,
        conflicts: list[Conflict],
        message: str,
        evaluation: Evaluation | None = None,
    ) -> Result:
        if evaluation is None and decision is not None:
            evaluation = self.problem.evaluate(decision)
        return Result(
            problem=self.problem,
            method=self.method,
            status=status,
            decision=decision,
            evaluation=evaluation,
            value=value,
            lower_bound=lower,
            certificate=certificate,
            infeasibility=conflicts,
            history=self.monitor.history,
            message=message,
            seconds=self.monitor.seconds,
            n_evaluations=self.monitor.n_evaluations,
            seed=self.seed,
        )


_PROOFS = {
    "exact": "every unit's range is covered by cells whose lower bounds are proved",
    "dual": "dual bound at prices on the shared budgets; every unit settled by proved cell bounds",
    "branch": "branch and bound over which units are taken; every node cut by a dual bound",
}


def _infeasible(conflicts: list[Conflict]) -> str:
    devices = [c for c in conflicts if c.device is not None]
    shared = [c for c in conflicts if c.device is None]
    parts = [f"{len(devices)} devices cannot meet their budgets"] if devices else []
    parts += [c.text for c in shared]
    return "; ".join(parts) or "no feasible decision"

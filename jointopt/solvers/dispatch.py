"""`solve`: one door to every method."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from jointopt.decision import Decision
from jointopt.errors import InputError, is_real, is_whole, nearest
from jointopt.problem import FEASIBILITY_TOLERANCE, Capabilities, Conflict, Evaluation, Problem, SelectableCells, Sums
from jointopt.result import Certificate, Result, Status
from jointopt.solvers.alternating import alternating
from jointopt.solvers.bayesian import bayesian
from jointopt.solvers.convex import minimize_convex
from jointopt.solvers.exact import minimize_sums
from jointopt.solvers.monitor import Monitor, Progress, StopSearch
from jointopt.solvers.nlp import improve, nlp
from jointopt.solvers.priced import priced_of
from jointopt.solvers.scenarios import minimize_scenarios
from jointopt.solvers.selection import minimize_selection
from jointopt.solvers.shared import minimize_shared
from jointopt.solvers.space import Box
from jointopt.solvers.staged import minimize_staged
from jointopt.system import FloatArray

__all__ = ["METHODS", "methods", "solve"]

METHODS = {
    "exact": "global optimum from the problem's structure, with a certified lower bound",
    "convex": "global optimum of a convex program, with a lower bound from its dual",
    "staged": "backward induction over stages, global over the states that the problem lists, with the table as proof",
    "bayesian": "Bayesian optimization over the complicating variables around the closed-form inner solution",
    "alternating": "the published steps, closed forms or convex programs, in turn",
    "scenarios": "every system solved on its own, which bounds the decision for all, then a local search",
    "nlp": "local search along derivatives from many starts",
}
"""Methods for any problem; a problem adds its baselines by name."""

POLISHED = 64
"""Devices up to which a decision that is short of its bound is improved by a local search."""

_OURS = ("problem", "monitor", "seed")


def methods(problem: Problem) -> dict[str, str]:
    """Return every method that can be asked of a problem, with one line on each."""
    return _methods(problem.capabilities())


def _methods(offered: Capabilities) -> dict[str, str]:
    out = {}
    if (offered.sums is not None and priced_of(offered) is not None) or offered.shared is not None:
        out["exact"] = METHODS["exact"]
    if offered.scenarios is not None:
        out["scenarios"] = METHODS["scenarios"]
    if offered.convex is not None:
        out["convex"] = METHODS["convex"]
    if offered.staged is not None:
        out["staged"] = METHODS["staged"]
    if offered.search is not None:
        out["bayesian"] = METHODS["bayesian"]
    if offered.blocks is not None:
        out["alternating"] = METHODS["alternating"]
    out["nlp"] = METHODS["nlp"]
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
        ``"auto"`` (exact, convex or staged where the problem has the structure), a name of `METHODS`, or one of the
        problem's baselines (`methods` lists them).
    gap : float, optional
        Relative certified gap at which the exact method may stop; when not given, 1e-6, or 1e-4 where it also decides
        which units take part, and for problems that users declare.
    seed : int, optional
        Seed of every random draw; the same seed gives the same result.
    time_limit : float, optional
        Seconds; the incumbent is returned when they are over.
    callback : callable, optional
        Called with a `Progress` after each evaluation; by ``exact`` after each step of its search for multipliers or
        selections, and with the answer. KeyboardInterrupt, from it or from the keyboard, returns the incumbent with
        status ``interrupted``. Any other exception comes through, with the incumbent, if there is one, as its
        attribute ``incumbent``, a `Result`.
    **options
        Passed to the method: for ``exact`` `start` (the `Result` of a similar problem, whose prices, ratio or
        selection the search begins with; the bound is this problem's own) and `leaves` (whether the certificate keeps
        the cells behind the bound, for up to 20,000 units); for ``bayesian`` `iterations`, `initial`, `backend`,
        `mode`; for ``alternating`` `max_iterations`, `tolerance`.

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
        gap = 1e-6 if offered.cells is not None and offered.selection is None else 1e-4
    known = _methods(offered)
    why = ""
    if method == "auto":
        method = next((name for name in ("exact", "convex", "staged", "scenarios") if name in known), "nlp")
        why = f"chose {method}: {_reason(method, offered)}; "
    if method not in known:
        lacks = f" (this problem lacks the structure for it{_because(offered)})" if method in METHODS else ""
        raise InputError(f"method: unknown '{method}'{lacks}{nearest(method, known)}")
    monitor = Monitor(problem, time_limit=time_limit, callback=callback)
    run = _Run(problem, offered, method, gap, seed, monitor, options, why)
    status: Status | None = None
    try:
        if method == "exact":
            return run.exact()
        if method == "convex":
            return run.convex()
        if method == "staged":
            return run.staged()
        if method == "scenarios":
            return run.scenarios()
        if method in offered.baselines:
            return run.baseline()
        run_method: Any = {"bayesian": bayesian, "alternating": alternating, "nlp": nlp}[method]
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
    except Exception as error:
        # an error of the callback's own comes through; what was found by then goes with it
        if monitor.best is not None and monitor.least_violation <= FEASIBILITY_TOLERANCE:
            error.incumbent = run.incumbent("ended by an error", "interrupted")  # type: ignore[attr-defined]
        raise
    return run.incumbent(message, status)


def _multipliers(start: Result, sums: Sums) -> tuple[FloatArray, float]:
    """Multipliers and ratio of a similar problem's answer."""
    known = start.certificate.multipliers
    # a constant of the objective is no part of the ratio
    ratio = max(float(start.value or 0.0) - sums.constant, 0.0)
    return np.array([known.get(name, 0.0) for name in sums.features]), ratio


def _selection(start: Result, sums: Sums) -> tuple[npt.NDArray[np.bool_], float, Decision]:
    """Selection, price and decision of a similar problem's answer."""
    assert start.decision is not None
    limited = sums.features[int(np.flatnonzero(np.isfinite(sums.limits))[0])]
    price = float(start.certificate.multipliers.get(limited, 0.0))
    return start.decision["selected"] > 0.5, price, start.decision


def _reason(method: str, offered: Capabilities) -> str:
    """Say why a method is the best that a problem's structure allows."""
    if method == "convex":
        return "the whole problem is a convex program"
    if method == "staged":
        return "units go from state to state in stages, and do not interact"
    if method == "scenarios":
        return "no decision for all systems beats what is proved of each"
    if method != "exact":
        return f"nothing in the problem's structure proves a bound{_because(offered)}"
    if offered.shared is not None:
        return "objective and limits are sums over units with proved bounds, around a few shared variables"
    sums = offered.sums
    assert sums is not None
    reason = "objective and limits are sums over units with proved bounds"
    if sums.is_ratio:
        reason = "the objective is a ratio of sums over units with proved bounds"
    limited = int(np.isfinite(sums.limits).sum())
    if limited:
        reason += f", {limited} of them shared limit{'s' if limited > 1 else ''}"
    return reason if offered.selection is None else reason + ", and units may be left out"


def _because(offered: Capabilities) -> str:
    return f": {offered.note}" if offered.note else ""


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
        why: str = "",
    ) -> None:
        self.why = why
        """Why the method was chosen, where it was; begins the message."""
        self.interrupted: KeyboardInterrupt | None = None
        self.problem, self.offered, self.method = problem, offered, method
        self.gap, self.seed, self.monitor, self.options = gap, seed, monitor, options

    def exact(self) -> Result:
        """Solve by structure, with certificate."""
        start, leaves = self._exact_options()
        sums, priced = self.offered.sums, priced_of(self.offered)
        selection, shared = self.offered.selection, self.offered.shared
        if shared is not None:
            sums, _ = shared.within(shared.lower, shared.upper)
            answer = minimize_shared(shared, gap=self.gap, stop=self.monitor.check, report=self._report)
        elif selection is None:
            assert sums is not None and priced is not None
            answer = minimize_sums(
                sums,
                priced,
                gap=self.gap,
                stop=self.monitor.check,
                report=self._report,
                start=None if start is None else _multipliers(start, sums),
                leaves=leaves,
                seed=self.seed or 0,
            )
        else:
            assert sums is not None
            cells = cast(SelectableCells, self.offered.cells)
            answer = minimize_selection(
                sums,
                cells,
                selection,
                gap=self.gap,
                stop=self.monitor.check,
                report=self._report,
                start=None if start is None else _selection(start, sums),
            )
        decision = Decision(answer.decision)
        self.monitor.n_evaluations = answer.cells
        if answer.value is None:
            conflicts = self._thresholds() or list(answer.shared)
            if self.offered.conflicts is not None and answer.infeasible.size:
                conflicts += self.offered.conflicts(answer.infeasible)
            evaluation = self.problem.evaluate(decision)
            if answer.undecided and len(self.problem.system) <= POLISHED and not evaluation.feasible():
                decision = self._moved(decision)
                evaluation = self.problem.evaluate(decision)
                if evaluation.feasible():
                    value, text = float(evaluation.objective), self.why + "found by a local search; no bound is proved"
                    return self._result("feasible", decision, value, None, Certificate(), [], text)
            if evaluation.feasible():
                value = float(evaluation.objective)
                text = "at the very edge of its budgets: only rounding separates it from infeasible"
                return self._result("feasible", decision, value, None, Certificate(), [], text)
            if answer.undecided and not conflicts:
                text = self.why + "no feasible decision was found; that there is none is not proved"
            else:
                text = self.why + _infeasible(conflicts)
            return self._result("infeasible", decision, None, None, Certificate(), conflicts, text)
        evaluation = self.problem.evaluate(decision)
        value = float(evaluation.objective)
        if answer.stopped is None and answer.lower_bound is not None:
            short = value - answer.lower_bound > self.gap * max(abs(value), 1e-12)
            if short and len(self.problem.system) <= POLISHED:
                decision, evaluation = self._polished(decision, evaluation)
                value = float(evaluation.objective)
        lower = None if answer.lower_bound is None else min(answer.lower_bound, value)
        multipliers = np.zeros(answer.prices.size) if answer.multipliers is None else answer.multipliers
        certificate = Certificate(
            kind=answer.kind,
            prices=dict(zip(sums.features, (float(p) for p in answer.prices), strict=True)),
            multipliers=dict(zip(sums.features, (float(m) for m in multipliers), strict=True)),
            ratio=answer.ratio,
            unit_bounds=answer.unit_bounds,
            caps={sums.features[j]: caps for j, caps in answer.caps.items()},
            leaves=answer.leaves,
            search=answer.search,
            cells=answer.cells,
            tolerance=self.gap,
            text=_PROOFS[answer.kind],
        )
        self.monitor.best, self.monitor.best_value, self.monitor.least_violation = decision, value, 0.0
        stopped = answer.stopped or self.interrupted
        try:
            if self.monitor.callback is not None:
                self.monitor.callback(Progress(answer.cells, self.monitor.seconds, value, value, lower))
        except KeyboardInterrupt as interrupt:
            stopped = interrupt
        proved = lower is not None and value - lower <= self.gap * max(abs(value), 1e-12)
        proved = proved and bool(evaluation.feasible())
        self.monitor.history = [*answer.history]
        what = "cells" if selection is None else "nodes"
        message = f"{self.why}{len(self.problem.system)} units settled with {answer.cells} {what}"
        status: Status = "optimal" if proved else "feasible"
        if stopped is not None and (answer.stopped is None or not proved):
            status = "time_limit" if isinstance(stopped, StopSearch) else "interrupted"
            message += "" if proved else "; stopped before the gap was reached"
        elif not proved and lower is not None:
            message += "; the gap that remains is that of whole choices under shared limits"
        return self._result(status, decision, value, lower, certificate, [], message, evaluation)

    def _thresholds(self) -> list[Conflict]:
        """Say which limits on all units together are too low whatever is chosen, and how low they could be."""
        found = []
        for name, problem in self.offered.thresholds.items():
            least = solve(problem, gap=self.gap, seed=self.seed, time_limit=self.monitor.time_limit)
            section = next(key for key, kind in problem.system.sections().items() if name in kind.model_fields)
            given = float(getattr(getattr(self.problem.system, section), name))
            if least.value is None or least.value <= given * (1.0 - FEASIBILITY_TOLERANCE):
                continue
            proved = "" if least.lower_bound is None else f" (proved: at least {least.lower_bound:.4g})"
            found.append(
                Conflict(
                    device=None,
                    binding=name,
                    relax={name: least.value},
                    budget={name: given},
                    factor=least.value / given,
                    text=f"{section}.{name}: {given:.4g} cannot be reached; {problem.minimises} is "
                    f"{least.value:.4g}{proved}",
                )
            )
        return found

    def _exact_options(self) -> tuple[Result | None, bool]:
        """Return the result to start from, and whether leaves are kept."""
        for name in self.options:
            if name not in ("start", "leaves"):
                raise InputError(f"method 'exact': unknown option '{name}'{nearest(name, ('start', 'leaves'))}")
        start, leaves = self.options.get("start"), self.options.get("leaves", True)
        if not isinstance(leaves, bool):
            raise InputError(f"leaves: {leaves!r} must be true or false")
        if start is None:
            return None, leaves
        if not isinstance(start, Result):
            raise InputError(f"start: expected a Result, got {type(start).__name__}")
        if start.problem.name != self.problem.name or len(start.problem.system) != len(self.problem.system):
            raise InputError("start: is of another design or number of devices")
        return (start if start.feasible and start.certificate.kind != "none" else None), leaves

    def _moved(self, decision: Decision) -> Decision:
        """Move a decision towards the limits by a local search."""
        try:
            return improve(self.problem, decision, [v.name for v in self.problem.variables], stop=self.monitor.check)
        except (InputError, StopSearch):
            return decision

    def _polished(self, decision: Decision, evaluation: Evaluation) -> tuple[Decision, Evaluation]:
        """Improve a decision that shared limits left short of its bound, by one local search over everything."""
        try:
            better = improve(self.problem, decision, [v.name for v in self.problem.variables], stop=self.monitor.check)
        except (InputError, StopSearch):
            # functions without derivatives; or the time is over
            return decision, evaluation
        except KeyboardInterrupt as interrupt:
            self.interrupted = interrupt
            return decision, evaluation
        after = self.problem.evaluate(better)
        if after.feasible() and float(after.objective) < float(evaluation.objective):
            return better, after
        return decision, evaluation

    def _report(
        self, cells: int, value: float | None, lower: float | None, decision: Mapping[str, FloatArray] | None
    ) -> None:
        """Remember the best decision of the exact solver, and tell the callback."""
        self.monitor.n_evaluations = cells
        if value is not None and decision is not None:
            self.monitor.best, self.monitor.best_value, self.monitor.least_violation = Decision(decision), value, 0.0
        if self.monitor.callback is not None:
            told = np.inf if value is None else value
            self.monitor.callback(Progress(cells, self.monitor.seconds, told, value, lower))

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

    def staged(self) -> Result:
        """Solve by backward induction; the table of what remains proves the bound over the states listed."""
        if self.options:
            raise InputError(f"method 'staged': unknown option '{next(iter(self.options))}'")
        staged = self.offered.staged
        assert staged is not None
        answer = minimize_staged(staged, stop=self.monitor.check, report=self._counted)
        self.monitor.n_evaluations = answer.examined
        if answer.infeasible.size:
            conflicts = [] if self.offered.conflicts is None else self.offered.conflicts(answer.infeasible)
            text = f"{self.why}{answer.infeasible.size} of {staged.units} units have no path at all"
            return self._result("infeasible", None, None, None, Certificate(), conflicts, text)
        self.monitor.time_limit, callback, self.monitor.callback = None, self.monitor.callback, None
        decision = Decision(staged.complete(answer.path))
        evaluation = self.problem.evaluate(decision)
        value, lower = float(evaluation.objective), answer.lower_bound
        self.monitor.best, self.monitor.best_value, self.monitor.least_violation = decision, value, 0.0
        if callback is not None:
            callback(Progress(answer.examined, self.monitor.seconds, value, value, lower))
        message = f"{self.why}{staged.units} units over {staged.stages} stages of {staged.states} states"
        if lower is None:
            status: Status = "time_limit" if isinstance(answer.stopped, StopSearch) else "interrupted"
            return self._result(status, decision, value, None, Certificate(), [], f"{message}; stopped", evaluation)
        lower = min(lower, value)
        proved = value - lower <= self.gap * max(abs(value), 1e-12) and bool(evaluation.feasible())
        certificate = Certificate(
            kind="exact",
            unit_bounds=answer.unit_values,
            search=answer.table,
            cells=answer.examined,
            tolerance=self.gap,
            text="backward induction over all states and actions that the problem lists; exact over these, not between",
        )
        status = "optimal" if proved else "feasible"
        return self._result(status, decision, value, lower, certificate, [], message, evaluation)

    def _counted(self, examined: int) -> None:
        """Tell the callback how far a search without an incumbent is."""
        self.monitor.n_evaluations = examined
        if self.monitor.callback is not None:
            self.monitor.callback(Progress(examined, self.monitor.seconds, np.inf, None, None))

    def scenarios(self) -> Result:
        """Solve for several systems; the bound is what is proved of them one by one."""
        if self.options:
            raise InputError(f"method 'scenarios': unknown option '{next(iter(self.options))}'")
        offered = self.offered.scenarios
        assert offered is not None

        def single(problem: Problem) -> Result:
            left = None if self.monitor.time_limit is None else self.monitor.time_limit - self.monitor.seconds
            if left is not None and left <= 0.0:
                raise StopSearch
            return solve(problem, gap=self.gap, seed=self.seed, time_limit=left)

        lower, bounds, message = minimize_scenarios(self.problem, offered, self.monitor, single, gap=self.gap)
        found = self.incumbent(self.why + message, None)
        if lower is None or found.value is None:
            return found
        lower = min(lower, found.value)
        certificate = Certificate(
            kind="relaxation",
            unit_bounds=bounds,
            tolerance=self.gap,
            text="bounds of the single systems, each certified by its own solution",
        )
        proved = found.value - lower <= self.gap * max(abs(found.value), 1e-12)
        return replace(found, status="optimal" if proved else "feasible", lower_bound=lower, certificate=certificate)

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
            self.monitor.offer(search.complete(Box(search).middle()))
        elif self.monitor.best is None and self.offered.blocks is not None:
            self.monitor.offer(self.offered.blocks.start())

    def incumbent(self, message: str, status: Status | None) -> Result:
        """Return the best decision the monitor saw."""
        decision, violation = self.monitor.best, self.monitor.least_violation
        message = self.why + message
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
    "none": "no lower bound is known: the objective may be unbounded",
    "branch": "branch and bound over which units are taken or what they share; every node cut by a dual bound",
}


def _infeasible(conflicts: list[Conflict]) -> str:
    devices = [c for c in conflicts if c.device is not None]
    shared = [c for c in conflicts if c.device is None]
    parts = [f"{len(devices)} devices cannot meet their budgets"] if devices else []
    parts += [c.text for c in shared]
    return "; ".join(parts) or "no feasible decision"

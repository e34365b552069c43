"""Trade-offs: which decisions no other beats in two or three objectives at once.

The certified method limits all objectives but the problem's own and minimises that one, again and again, with limits
between the least and the worst values that matter (epsilon-constraint). Every point is a certified solve of its own,
so the front comes with proved lower bounds: what lies below them is no decision's. Heuristics for problems without
structure, and for comparison: NSGA-II and Bayesian optimization of the hypervolume.
"""

from __future__ import annotations

import inspect
import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from jointopt.errors import InputError, is_real, is_whole, nearest
from jointopt.problem import Conflict, Problem
from jointopt.problems.terms import Term
from jointopt.result import Result
from jointopt.solvers import methods as known_methods
from jointopt.solvers import solve
from jointopt.solvers.batch import solve_many
from jointopt.study.front import Front, Goal, checked_reference, goals_of, nondominated, reference_of
from jointopt.study.pareto_search import Ends, limited, nsga2, qlognehvi
from jointopt.system import FloatArray

__all__ = ["METHODS", "pareto"]

METHODS = ("exact", "qlognehvi", "nsga2")

FIRST = {1: 9, 2: 4}
"""Values of each limit on the first grid, by number of limits."""
CLOSED = 1e-4
"""Share of a limit's range below which its cells are not split: what is left there is a jump."""
EDGE = 1e-4
"""Precision of the least value of a limited objective, in shares of its range, where the solver does not tell it."""
_OURS = ("problem", "goals", "points", "seed", "reference", "started", "over", "ends")
PER_POINT = 4
"""Solves allowed per point asked for."""


def pareto(
    problem: Problem,
    objectives: Sequence[str | Term] = ("objective", "delay"),
    method: Literal["exact", "qlognehvi", "nsga2"] = "exact",
    *,
    points: int = 50,
    seed: int = 0,
    reference: Sequence[float] | FloatArray | None = None,
    time_limit: float | None = None,
    **options: Any,
) -> Front:
    """Return decisions that no other beats in two or three objectives, all minimised.

    Parameters
    ----------
    problem : Problem
        With its constraints, which hold at every point.
    objectives : sequence of str or Term
        ``"objective"`` (or its own name, such as ``"gap"``) is what the problem minimises. Any other name is a quantity
        of its evaluation, per device the largest: ``"delay"`` is ``jo.worst("delay")``; ``jo.total("energy")`` is the
        sum over the devices.
    method : {"exact", "qlognehvi", "nsga2"}
        ``exact``: certified solves of the problem's own objective, which must be among the objectives, with the others
        limited (`Problem.limited`). With three objectives the largest values of the limits worth trying are estimated
        from the solutions that are best in one objective, so an extreme corner of the front may be missed; what is
        proved holds all the same. ``qlognehvi``: Gaussian processes and the noisy expected hypervolume improvement
        (BoTorch). ``nsga2``: the evolutionary algorithm (pymoo, extra ``[moo]``). The last two prove nothing.
    points : int
        Points wanted, at least 2: about as many are found where the front has so many (a front of separate decisions
        may have fewer), and no more are kept by the heuristics.
    seed : int
        Seed of every draw.
    reference : array, shape [objectives], optional
        Reference point of the hypervolume; when not given, the worst values of the front and a tenth of their ranges.
    time_limit : float, optional
        Seconds, looked at between solves; what is known by then is returned.
    **options
        For ``exact``: `gap`, the relative gap of every solve. For ``qlognehvi``: `evaluations`, `initial`, `batch`,
        `variables`. For ``nsga2``: `evaluations`, `population`, `variables`. `variables` says what is searched:
        ``"flat"`` all decision variables; ``"search"`` the problem's few complicating ones and the limits of the other
        objectives, the rest in closed form; ``"policy"`` the same with the complicating ones on a line of two numbers;
        ``"auto"`` (for ``qlognehvi``) ``search`` where the problem offers it.

    Returns
    -------
    Front
        Without a point, and with reasons, where the problem is infeasible.

    Raises
    ------
    InputError
        For unknown objectives, methods or options, or objectives that the problem cannot limit.
    MissingExtraError
        For ``nsga2`` without pymoo.
    """
    started = time.perf_counter()
    if not isinstance(problem, Problem):
        raise InputError(f"problem: expected a Problem, got {type(problem).__name__}")
    if method not in METHODS:
        raise InputError(f"method: unknown '{method}'{nearest(str(method), METHODS)}")
    if not (is_whole(points) and points >= 2):
        raise InputError(f"points: {points!r} must be a whole number of at least 2")
    if not (is_whole(seed) and seed >= 0):
        raise InputError(f"seed: {seed!r} must be a whole number of at least 0")
    if time_limit is not None and not (is_real(time_limit) and time_limit > 0.0):
        raise InputError(f"time_limit: {time_limit!r} s must be a number above 0")
    goals = goals_of(problem, objectives)
    at = None if reference is None else checked_reference(reference, len(goals))
    run: Any = {"exact": _exact, "qlognehvi": qlognehvi, "nsga2": nsga2}[method]
    allowed = [name for name in inspect.signature(run).parameters if name not in _OURS]
    for name in options:
        if name not in allowed:
            raise InputError(f"method '{method}': unknown option '{name}'{nearest(name, allowed)}")
    over = None if time_limit is None else started + time_limit
    if method == "exact":
        return _exact(problem, goals, points, seed, at, started, over, **options)
    flat = options.get("variables", "flat" if method == "nsga2" else "auto") == "flat"
    ends = None if flat and (method == "nsga2" or at is not None) else _ends(problem, goals, seed, over)
    found = run(problem, goals, ends=ends, points=points, seed=seed, reference=at, over=over, **options)
    message = found.message
    if over is not None and time.perf_counter() > over:
        message += "; stopped at the time limit"
    return Front(
        problem=problem,
        method=method,
        objectives=tuple(goal.name for goal in goals),
        units=tuple(goal.unit(problem) for goal in goals),
        values=found.values,
        decisions=found.decisions,
        lower_bounds=(None,) * len(found.values),
        gaps=(None,) * len(found.values),
        excluded=np.empty((0, len(goals))),
        ideal=np.full(len(goals), -np.inf),
        reference=_reference(found.values, found.reference if at is None else at, len(goals)),
        message=message,
        seconds=time.perf_counter() - started - found.compiling,
        n_evaluations=found.n_evaluations,
        seed=seed,
    )


def _reference(values: FloatArray, given: FloatArray | None, size: int) -> FloatArray:
    if given is not None:
        return given
    return reference_of(values) if len(values) else np.full(size, np.nan)


# ---------------------------------------------------------------------------------- epsilon-constraint


def _exact(
    problem: Problem,
    goals: tuple[Goal, ...],
    points: int,
    seed: int,
    reference: FloatArray | None,
    started: float,
    over: float | None,
    *,
    gap: float | None = None,
) -> Front:
    if Goal() not in goals:
        raise InputError(
            "objectives: the exact method minimises the problem's own objective with the others limited; "
            "add 'objective', or use method='nsga2' or 'qlognehvi'"
        )
    solver = _certified(problem)
    if solver is None:
        raise InputError(
            f"method: {problem.name} has no certified method; use method='nsga2' or 'qlognehvi' "
            f"({problem.capabilities().note or 'it offers no structure'})"
        )
    grid = _Grid(problem, goals, solver, gap, seed, over)
    grid.search(points)
    probes = grid.points()
    values = np.array([p.values for p in probes]).reshape(len(probes), len(goals))
    # as asked for: the problem's own objective may stand anywhere
    own = goals.index(Goal())
    order = np.insert(np.arange(1, len(goals)), own, 0)
    values = values[:, order]
    chosen = nondominated(values)
    values, results = values[chosen], tuple(probes[i].result for i in chosen)
    lower = tuple(r.lower_bound for r in results)
    excluded = grid.excluded()[:, order]
    if len(values):
        message = f"{len(values)} points from {len(grid.probes)} certified solves ({solver})"
        if grid.stopped:
            message += "; stopped at the time limit"
    else:
        message = f"no decision keeps the problem's constraints: {grid.top.result.message}"
    return Front(
        problem=problem,
        method="exact",
        objectives=tuple(goal.name for goal in goals),
        units=tuple(goal.unit(problem) for goal in goals),
        values=values,
        decisions=tuple(r.decision for r in results if r.decision is not None),
        results=results,
        lower_bounds=lower,
        gaps=tuple(r.gap for r in results),
        excluded=excluded,
        ideal=grid.ideal()[order],
        reference=_reference(values, reference, len(goals)),
        infeasibility=[] if len(values) else list(grid.top.result.infeasibility),
        message=message,
        seconds=time.perf_counter() - started,
        n_evaluations=len(grid.probes),
        seed=seed,
    )


def _certified(problem: Problem) -> str | None:
    known = known_methods(problem)
    return next((name for name in ("exact", "convex") if name in known), None)


def _ends(problem: Problem, goals: tuple[Goal, ...], seed: int, over: float | None) -> Ends | None:
    """Return the ranges of the limits of all goals but the own, where certified solves tell them."""
    solver = _certified(problem)
    if solver is None or Goal() not in goals:
        return None
    try:
        grid = _Grid(problem, goals, solver, None, seed, over)
        grid.frame()
    except InputError:  # a quantity that the problem cannot limit
        return None
    if not grid.top.feasible:
        return None
    corners = np.array([p.values for p in grid.probes.values() if p.feasible])
    own = goals.index(Goal())
    order = np.insert(np.arange(1, len(goals)), own, 0)
    return Ends(tuple(g for g in goals if g != Goal()), grid.low, grid.high, reference_of(corners)[order])


@dataclass(frozen=True)
class _Probe:
    """A solve with limits ``[limits]`` (inf: none); values are the own objective, then the limited ones."""

    limits: FloatArray
    result: Result
    values: FloatArray

    @property
    def feasible(self) -> bool:
        return self.result.feasible

    @property
    def refuted(self) -> bool:
        """Whether it is proved that no decision keeps the limits: a search that merely found none gives no reason."""
        known = self.result.infeasibility
        proved = bool(known) and all(conflict.relax for conflict in known)
        return proved and self.result.status == "infeasible" and self.result.method == "exact"


class _Grid:
    """Solves with limits on all goals but the problem's own, and the boxes of limits between them."""

    def __init__(
        self, problem: Problem, goals: tuple[Goal, ...], solver: str, gap: float | None, seed: int, over: float | None
    ) -> None:
        self.problem, self.solver, self.gap, self.seed, self.over = problem, solver, gap, seed, over
        self.goals = [goal for goal in goals if goal != Goal()]
        self.probes: dict[tuple[float, ...], _Probe] = {}
        self.shown: set[tuple[float, ...]] = set()
        self.low, self.high = np.zeros(self.size), np.zeros(self.size)
        self.stopped = False
        # what a system limits for every device is above 0 by its nature
        self.floor = np.where([g.quantity in problem.budgets for g in self.goals], 0.0, -np.inf)
        offered = problem.capabilities()
        self.selects = offered.selection is not None
        self.together = not self.selects and hasattr(offered.cells, "kin")
        # a quantity that the problem cannot limit is refused before work starts
        self._limited(np.ones(self.size))

    @property
    def size(self) -> int:
        """Number of limits."""
        return len(self.goals)

    # -- solves

    def _limited(self, limits: FloatArray) -> Problem:
        return limited(self.problem, self.goals, limits)

    def probe(self, wanted: Sequence[FloatArray], *, shown: bool = True) -> list[_Probe]:
        """Return the solves at several limits, points of the front if `shown`; those that are new go together."""
        new = {tuple(v.tolist()): v for v in wanted}
        new = {key: v for key, v in new.items() if key not in self.probes}
        for (key, limits), result in zip(
            new.items(), self._solve([self._limited(v) for v in new.values()]), strict=True
        ):
            values = np.full(1 + self.size, np.inf)
            if result.feasible and result.evaluation is not None:
                values = np.array([float(g.values(result.evaluation)) for g in (Goal(), *self.goals)])
            self.probes[key] = _Probe(limits, result, values)
        keys = [tuple(v.tolist()) for v in wanted]
        if shown:
            self.shown.update(keys)
        return [self.probes[key] for key in keys]

    def points(self) -> list[_Probe]:
        """Return the feasible solves that are points of the front."""
        return [p for key, p in self.probes.items() if key in self.shown and p.feasible]

    def _solve(self, problems: list[Problem]) -> list[Result]:
        if self.solver == "exact" and problems:
            return list(solve_many(problems, gap=self.gap, seed=self.seed))
        return [solve(p, method=self.solver, gap=self.gap, seed=self.seed) for p in problems]

    def _at(self, j: int, limit: float) -> FloatArray:
        return np.where(np.arange(self.size) == j, limit, np.inf)

    @property
    def top(self) -> _Probe:
        """The problem itself."""
        return self.probe([np.full(self.size, np.inf)])[0]

    # -- ideal and nadir

    def frame(self) -> None:
        """Find the least and the largest limits worth trying."""
        if not self.top.feasible:
            return
        corners = [self.top]
        for j in range(self.size):
            corner = self._least(j)
            self.low[j] = corner.limits[j] if np.isfinite(corner.limits[j]) else corner.values[1 + j]
            self.shown.add(tuple(corner.limits.tolist()))
            corners.append(corner)
        self.high = np.maximum(np.max([c.values[1:] for c in corners], axis=0), self.low)
        if self.size == 1:
            self.high = np.maximum(self.top.values[1:], self.low)

    def _least(self, j: int) -> _Probe:
        """Return the solve at the least limit of one goal that can be kept; refuted limits below stay recorded."""
        best = self.top
        high = float(best.values[1 + j])
        low, hint = self.floor[j], None
        for trial in self._downwards(high, low):
            found = self._edge(j, [trial])[0]
            if not found.feasible:
                low = trial
                hint = self._hint(found.result.infeasibility, j)
                break
            best, high = found, min(trial, float(found.values[1 + j]))
        if hint is not None and low < hint <= high:
            nudge = 1e-9 * abs(hint)
            near, below = self._edge(j, [hint + nudge, hint - 1e3 * nudge])
            if near.feasible:
                best, high = near, hint + nudge
                if not below.feasible:
                    return best
                best, high = below, hint - 1e3 * nudge
            else:
                low = hint + nudge
        start = float(self.top.values[1 + j])
        # where solves are one after the other, halving needs fewest of them
        count = 8 if self.together else 1
        while high - low > EDGE * (start - low) and not self._late():
            for found in self._edge(j, np.linspace(low, high, count + 2)[1:-1].tolist()):
                if found.feasible:
                    best, high = found, float(found.limits[j])
                    break
                low = float(found.limits[j])
        return best

    def _edge(self, j: int, limits: list[float]) -> list[_Probe]:
        """Solve with one goal limited, to find its least value: not among the points of the front."""
        return self.probe([self._at(j, limit) for limit in limits], shown=False)

    @staticmethod
    def _downwards(high: float, floor: float) -> list[float]:
        """Limits to try for the first that cannot be kept."""
        size = abs(high) or 1.0
        near = [1e-2 * high, EDGE * high] if high > 0.0 else []
        return near if floor == 0.0 else [*near, *(min(high, 0.0) - size * 0.5 * EDGE * 8.0**k for k in range(16))]

    def _hint(self, conflicts: list[Conflict], j: int) -> float | None:
        """Least limit that the conflicts say would do."""
        quantity = self.goals[j].quantity
        assert quantity is not None
        names = (self.problem.budgets.get(quantity, quantity), quantity)
        needs = [next((c.relax[n] for n in names if n in c.relax), None) for c in conflicts]
        known = [need for need in needs if need is not None]
        if not known or len(known) < len(needs):
            return None
        # every unit must be served, unless units may be left out
        return min(known) if self.selects else max(known)

    # -- refinement

    def search(self, points: int) -> None:
        """Split the boxes of limits between which the front is longest until it has enough points."""
        self.frame()
        if not self.top.feasible:
            return
        count = min(points, FIRST[self.size])
        axes = [
            np.linspace(low, high, count) if high > low else np.array([low])
            for low, high in zip(self.low, self.high, strict=True)
        ]
        if self.size == 1 and self.high[0] > self.low[0]:
            axes[0][-1] = np.inf  # the problem itself, which is solved
        corners = list(itertools.product(*[range(len(a)) for a in axes]))
        self.probe([np.array([a[i] for a, i in zip(axes, c, strict=True)]) for c in corners])
        boxes = [
            tuple((float(a[i]), float(a[min(i + 1, len(a) - 1)])) for a, i in zip(axes, corner, strict=True))
            for corner in itertools.product(*[range(max(len(a) - 1, 1)) for a in axes])
        ]
        most = PER_POINT * points + len(self.probes)
        while boxes and not self._late():
            missing = points - self._count()
            if missing <= 0 or len(self.probes) >= most:
                break
            lengths = np.array([self._length(box) for box in boxes])
            if not np.any(lengths > 0.0):
                break
            order = np.argsort(-lengths, kind="stable")
            order = order[lengths[order] >= 0.5 * lengths[order[0]]][: max(1, missing // (5 if self.size > 1 else 1))]
            split = [self._split(boxes[i]) for i in order]
            chosen = set(order.tolist())
            boxes = [box for i, box in enumerate(boxes) if i not in chosen]
            boxes += [box for children in split for box in children]
            self.probe([np.array(v) for children in split for box in children for v in itertools.product(*box)])

    def _late(self) -> bool:
        self.stopped = self.stopped or (self.over is not None and time.perf_counter() > self.over)
        return self.stopped

    def _count(self) -> int:
        return len(nondominated(np.array([p.values for p in self.points()])))

    def _ends_of(self, box: tuple[tuple[float, float], ...]) -> tuple[_Probe, _Probe, FloatArray]:
        """Solves at the tightest and loosest limits of a box, and the widths where the front may differ from them."""
        tight, loose = self.probe([np.array([end[i] for end in box]) for i in (0, 1)])
        reached = np.minimum(loose.limits, loose.values[1:]) if self.size == 1 else loose.limits
        return tight, loose, reached - tight.limits

    def _length(self, box: tuple[tuple[float, float], ...]) -> float:
        """Length of the front between the ends of a box, in shares of the whole; 0 where nothing is left to find."""
        tight, loose, width = self._ends_of(box)
        if not loose.feasible:
            return 0.0
        if tight.feasible and np.all(loose.values[1:] <= tight.limits):
            return 0.0
        share = width / np.where(self.high > self.low, self.high - self.low, 1.0)
        if np.max(share) <= CLOSED:
            return 0.0
        own = np.array([p.values[0] for p in self.points()])
        rise = (tight.values[0] - loose.values[0]) / (np.ptp(own) or 1.0) if tight.feasible else 1.0
        return float(np.sqrt(rise**2 + np.sum(share**2)))

    def _split(self, box: tuple[tuple[float, float], ...]) -> list[tuple[tuple[float, float], ...]]:
        """Halve every side of a box that has a length; the part that the front cannot differ in is left out."""
        tight, _, width = self._ends_of(box)
        sides = []
        for (low, high), reach in zip(box, tight.limits + width, strict=True):
            middle = 0.5 * (low + reach)
            sides.append([(low, middle), (middle, high)] if high > low else [(low, high)])
        return list(itertools.product(*sides))

    # -- what is proved

    def excluded(self) -> FloatArray:
        """Rows [own bound, limits], without repetition: no decision keeps the limits with less than that bound."""
        rows = []
        for p in self.probes.values():
            if p.refuted:
                rows.append([np.inf, *p.limits])
            elif p.feasible and p.result.lower_bound is not None:
                rows.append([p.result.lower_bound, *p.limits])
        if not rows:
            return np.empty((0, 1 + self.size))
        table = np.array(rows)
        return table[nondominated(-table)]

    def ideal(self) -> FloatArray:
        """Proved least values of the own objective and of every limited one, -inf where none is."""
        lower = self.top.result.lower_bound
        out = [-np.inf if lower is None else lower]
        for j in range(self.size):
            refuted = [
                p.limits[j] for p in self.probes.values() if p.refuted and np.all(np.isinf(np.delete(p.limits, j)))
            ]
            out.append(max(refuted, default=float(self.floor[j])))
        return np.array(out)

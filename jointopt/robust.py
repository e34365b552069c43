"""Decisions that must do for several systems at once: what is not known is a list of systems, or a range.

`RobustProblem` is the problem of one decision taken before it is known which system is the true one:

* ``worst``: the objective is the largest over the systems, and every constraint holds in every one;
* ``mean``: the objective is the average (an expected value by sample average), and every constraint holds in every one;
* ``chance``: the objective is the average, and every constraint holds in at least a share `level` of the systems.

Two bounds are known of it without further proof. No decision is better in the worst case than the optimum of any one
system, and none is better on average than the average of the systems' own optima (the "wait and see" bound). Both are
computed from certified bounds of the single systems.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any, Literal, Self

import numpy as np

from jointopt.decision import Array, Decision
from jointopt.errors import InputError, is_real, nearest
from jointopt.models._array import as_array, namespace
from jointopt.problem import Capabilities, Evaluation, Problem, Scenarios, Variable
from jointopt.search import FlatSearch
from jointopt.system import Scenario

__all__ = ["RobustProblem"]

Measure = Literal["worst", "mean", "chance"]
MEASURES = ("worst", "mean", "chance")
MOST_CORNERS = 64


class RobustProblem(Problem):
    """One decision for many systems.

    Parameters
    ----------
    problem : Problem
        What is to be decided; its own system is the first of `systems` unless that is given.
    systems : sequence of Scenario, optional
        What may turn out to be true: for example draws of the channel.
    ranges : mapping, optional
        In place of `systems`: (low, high) by field of the system ("gain", "smoothness", ...), numbers or arrays over
        devices. The corners are taken as the systems, all devices at the same end of a field: the worst case over the
        whole range where everything rises or falls in each field, which `outside` tries.
    measure : {"worst", "mean", "chance"}
        See the module.
    level : float
        Share of the systems in which a constraint must hold, for ``chance``.

    Raises
    ------
    InputError
        For unknown fields, crossed ranges, systems of another kind or size, or a level outside (0, 1].
    """

    def __init__(
        self,
        problem: Problem,
        systems: Sequence[Scenario] | None = None,
        *,
        ranges: Mapping[str, tuple[Any, Any]] | None = None,
        measure: Measure = "worst",
        level: float = 0.95,
    ) -> None:
        if not isinstance(problem, Problem):
            raise InputError(f"problem: expected a Problem, got {type(problem).__name__}")
        if measure not in MEASURES:
            raise InputError(f"measure: unknown '{measure}'{nearest(str(measure), MEASURES)}")
        if not (is_real(level) and 0.0 < level <= 1.0):
            raise InputError(f"level: {level!r} must be a number above 0 and at most 1")
        if (systems is None) == (ranges is None):
            raise InputError("robust: give either systems or ranges")
        self.base, self.measure, self.level = problem, measure, float(level)
        self.ranges = None if ranges is None else _checked_ranges(problem.system, ranges)
        chosen = self._corners() if systems is None else list(systems)
        if not chosen:
            raise InputError("systems: none are given")
        for i, system in enumerate(chosen):
            if type(system) is not type(problem.system) or len(system) != len(problem.system):
                raise InputError(
                    f"systems[{i}]: expected a {type(problem.system).__name__} of {len(problem.system)} devices, "
                    f"got {system!r}"
                )
        self.problems = tuple(problem.with_system(system) for system in chosen)
        self.system = problem.system
        self.name = f"robust {problem.name}"
        self.minimises = f"{problem.minimises} ({measure} of {len(chosen)} systems)"
        self._variables = tuple(self._shared_range(i) for i in range(len(problem.variables)))

    def _corners(self) -> list[Scenario]:
        assert self.ranges is not None
        if 2 ** len(self.ranges) > MOST_CORNERS:
            raise InputError(f"ranges: {len(self.ranges)} fields have too many corners; give systems in their place")
        return [
            self.base.system.with_(**dict(zip(self.ranges, ends, strict=True)))
            for ends in product(*self.ranges.values())
        ]

    def _shared_range(self, i: int) -> Variable:
        """A variable's range that all systems allow."""
        same = [problem.variables[i] for problem in self.problems]
        lower, upper = np.max([v.lower for v in same], axis=0), np.min([v.upper for v in same], axis=0)
        first = same[0]
        return Variable(first.name, lower, upper, first.unit, first.kind, first.axis, first.meaning)

    @property
    def variables(self) -> tuple[Variable, ...]:
        """The problem's variables, within the ranges of every system."""
        return self._variables

    def settings(self) -> dict[str, Any]:
        """Return the measure, the level and the number of systems."""
        return {"measure": self.measure, "level": self.level, "systems": len(self.problems)}

    def evaluate(self, decision: Decision) -> Evaluation:
        """Return objective and slack over all systems; parts and quantities are averages."""
        self.check(decision)
        each = [problem.evaluate(decision) for problem in self.problems]
        xp = namespace(*decision.values())

        def over(values: list[Array]) -> Array:
            return xp.stack([as_array(v, xp) for v in values], axis=0)

        objective = over([e.objective for e in each])
        slack, scale = {}, {}
        for name in each[0].slack:
            relative = over([e.slack[name] / xp.asarray(np.array(e.scale[name], dtype=np.float64)) for e in each])
            slack[name], scale[name] = self._slack(relative, xp), 1.0
        return Evaluation(
            objective=xp.max(objective, axis=0) if self.measure == "worst" else xp.mean(objective, axis=0),
            parts={name: xp.mean(over([e.parts[name] for e in each]), axis=0) for name in each[0].parts},
            slack=slack,
            scale=scale,
            quantities={name: xp.mean(over([e.quantities[name] for e in each]), axis=0) for name in each[0].quantities},
        )

    def _slack(self, relative: Array, xp: Any) -> Array:
        """Relative slack over systems, axis 0: the least, or the least after leaving out a share 1 - level."""
        if self.measure != "chance":
            return xp.min(relative, axis=0)
        spared = int(np.floor((1.0 - self.level) * len(self.problems) + 1e-9))
        return xp.sort(relative, axis=0)[spared]

    def capabilities(self) -> Capabilities:
        """The single systems' problems, whose optima bound this one's."""
        return Capabilities(search=FlatSearch(self), scenarios=Scenarios(self.problems, self.measure))

    def restrict(self, **ranges: Any) -> Self:
        """Return the same with variables fixed or narrowed."""
        made = type(self)(
            self.base.restrict(**ranges),
            [problem.system for problem in self.problems],
            measure=self.measure,
            level=self.level,
        )
        made.ranges = self.ranges
        return made

    def with_system(self, system: Scenario) -> Self:
        """Refused: the systems are what the problem is about."""
        raise InputError(f"{self.name}: has {len(self.problems)} systems; make a new RobustProblem for others")

    def limited(self, each: Mapping[str, Any] | None = None, *, total: Mapping[str, Any] | None = None) -> Self:
        """Return the same with quantities limited additionally, in every system."""
        made = type(self)(
            self.base.limited(each, total=total),
            [problem.system for problem in self.problems],
            measure=self.measure,
            level=self.level,
        )
        made.problems = tuple(problem.limited(each, total=total) for problem in self.problems)
        return made

    def outside(self, decision: Decision, *, draws: int = 1000, seed: int = 0) -> dict[str, float]:
        """Try a decision on systems drawn from the ranges, each device and field on its own.

        Returns
        -------
        dict
            ``objective``: the largest met; ``violation``: the largest relative violation; ``excess``: by how much the
            objective was above the robust one, at least 0. Where the last two are 0, the corners were the worst case
            as far as was tried.
        """
        if self.ranges is None:
            raise InputError("outside: only for problems with ranges")
        rng = np.random.default_rng(seed)
        worst, violation = -np.inf, 0.0
        for _ in range(draws):
            fields = {}
            for name, (low, high) in self.ranges.items():
                value = low + rng.uniform(size=np.shape(low)) * (high - low)
                fields[name] = value if np.ndim(value) else float(value)
            evaluation = self.base.with_system(self.base.system.with_(**fields)).evaluate(decision)
            worst, violation = max(worst, float(evaluation.objective)), max(violation, float(evaluation.violation()))
        known = float(self.evaluate(decision).objective)
        return {"objective": worst, "violation": violation, "excess": max(0.0, worst - known)}


def _checked_ranges(system: Scenario, ranges: Mapping[str, tuple[Any, Any]]) -> dict[str, tuple[Any, Any]]:
    out: dict[str, tuple[Any, Any]] = {}
    for name, pair in ranges.items():
        if not (isinstance(pair, tuple) and len(pair) == 2):
            raise InputError(f"ranges: {name}={pair!r} must be a pair (low, high)")
        try:
            low, high = (np.asarray(v, dtype=np.float64) for v in pair)
            low, high = np.broadcast_arrays(low, high)
        except (TypeError, ValueError):
            raise InputError(f"ranges: {name}={pair!r} must be two numbers or arrays over devices") from None
        if not (np.all(np.isfinite(low)) and np.all(np.isfinite(high))):
            raise InputError(f"ranges: {name} must be finite")
        if np.any(low > high):
            u = int(np.argmax(low > high))
            raise InputError(f"ranges: {name}[device {u}]: {low.flat[u]:g} is above {high.flat[u]:g}")
        out[name] = (low.copy(), high.copy()) if low.ndim else (float(low), float(high))
    if not out:
        raise InputError("ranges: none are given")
    system.with_(**{name: low for name, (low, _) in out.items()})
    return out

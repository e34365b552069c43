"""What structure a declared problem has: boxes per unit, the sums over them, variables that all units share.

A problem is separable where every quantity that the objective and the constraints use follows, for a device, from its
own variables, the shared ones, and the system's data of that device. That is tried, not believed: the model is run on
some devices in another order and must give the same numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np
import numpy.typing as npt

from jointopt.arithmetic.intervals import Interval
from jointopt.decision import Decision
from jointopt.errors import InputError
from jointopt.models._array import namespace
from jointopt.problem import Boxes, Capabilities, Sums, Variable
from jointopt.problems.rows import View, size_of
from jointopt.problems.terms import Constraint, Ratio, Term
from jointopt.search import FlatSearch
from jointopt.system import FloatArray

if TYPE_CHECKING:
    from jointopt.problems.declared import DeclaredProblem

__all__ = ["structure"]

WIDE = 1e3
"""Positive ranges whose ends differ by more than this factor are halved on a logarithmic scale."""
TRIED = 16
"""Devices on which separability is tried."""
WORST = "worst of all devices"
"""Name of the shared variable that stands above every device's quantity."""


@dataclass(frozen=True)
class _Feature:
    """A sum over the units: sign x quantity; `common` ones follow from shared variables and count once."""

    quantity: str
    sign: float
    common: bool

    @property
    def name(self) -> str:
        """The quantity, with a minus for what must be at least something."""
        return self.quantity if self.sign > 0.0 else f"-{self.quantity}"


def structure(problem: DeclaredProblem) -> Capabilities:
    """Return what a problem offers beside its black box, with a note on what is missing."""
    search = FlatSearch(problem)
    why = _unstructured(problem)
    if why:
        return Capabilities(blocks=problem.blocks(), search=search, note=why)
    shared = _SharedVariables(problem)
    if shared.names:
        return Capabilities(shared=shared, blocks=problem.blocks(), search=search)
    sums, boxes = shared.within(np.empty(0), np.empty(0))
    return Capabilities(sums=sums, boxes=boxes, blocks=problem.blocks(), search=search)


def _unstructured(problem: DeclaredProblem) -> str:
    """Say why a problem has no certificate; empty where it has."""
    if isinstance(problem.objective, Ratio) and problem.objective.above == problem.objective.below:
        return "the objective is a quantity over itself"
    if not isinstance(problem.objective, (Term, Ratio)):
        return "the objective is a function of its own, not total(...), worst(...) or a ratio of totals"
    for key, constraint in problem.constraints.items():
        if not isinstance(constraint, Constraint):
            return f"constraint '{key}' is a function of its own, not each(...) or total(...)"
    used = _used(problem)
    rng = np.random.default_rng(0)
    size = len(problem.system)
    x = {v.name: _draw(v, rng) for v in problem.variables}
    order = rng.permutation(np.arange(size))[:TRIED]
    try:
        whole = problem.quantities(View(problem.system, None, size, np), x, None)
        # each on its own as well: a largest value does not notice repeats or another order
        for rows in (np.concatenate([order, order[:1]]), *order[:, None]):
            view = View(problem.system, rows, size, np)
            some = {v.name: x[v.name][rows] if v.axis == "device" else x[v.name][0 * rows] for v in problem.variables}
            alone = problem.quantities(view, some, None)
            for name in used:
                whole_value, value = np.asarray(whole[name]), np.broadcast_to(np.asarray(alone[name]), rows.shape)
                expected = (
                    whole_value[rows] if whole_value.size > 1 else np.broadcast_to(whole_value.reshape(-1), rows.shape)
                )
                if not np.allclose(value, expected, rtol=1e-9, atol=0.0, equal_nan=True):
                    return f"'{name}' of a device depends on the other devices"
        # intervals must get through
        unit = order[:1]
        ends = [np.array([[v.lower[0]], [v.upper[0]]]) for v in problem.variables]
        box = Interval.variables(np.concatenate([e[:1] for e in ends]), np.concatenate([e[1:] for e in ends]))
        problem.quantities(
            View(problem.system, unit, size, np), {v.name: b for v, b in zip(problem.variables, box, strict=True)}, None
        )
    except (InputError, TypeError, ValueError, IndexError, AttributeError) as error:
        return f"the model could not be run on single devices with intervals ({error})"
    return ""


def _draw(variable: Variable, rng: np.random.Generator) -> FloatArray:
    value = variable.lower + rng.uniform(size=variable.lower.size) * (variable.upper - variable.lower)
    return value if variable.kind == "real" else np.rint(value)


def _used(problem: DeclaredProblem) -> list[str]:
    """Quantities that the objective and the constraints name."""
    objective = problem.objective
    terms = [objective.above, objective.below] if isinstance(objective, Ratio) else [objective]
    terms += [c.term for c in problem.constraints.values() if isinstance(c, Constraint)]
    return list(dict.fromkeys(t.quantity for t in terms if isinstance(t, Term)))


class _SharedVariables:
    """`Shared`: the variables on the common axis, and one above every device's quantity for a worst(...) objective."""

    def __init__(self, problem: DeclaredProblem) -> None:
        self.problem = problem
        common = [v for v in problem.variables if v.axis == "common"]
        names = [v.name for v in common]
        lower, upper = [float(v.lower[0]) for v in common], [float(v.upper[0]) for v in common]
        objective = problem.objective
        self.worst = objective.quantity if isinstance(objective, Term) and objective.over == "worst" else None
        if self.worst is not None:
            low, high = self._range_of_worst(self.worst)
            names, lower, upper = [*names, WORST], [*lower, low], [*upper, high]
        self.names = tuple(names)
        self.lower, self.upper = np.array(lower), np.array(upper)
        self.integer = np.array([v.kind != "real" for v in common] + [False] * (self.worst is not None), dtype=bool)

    def _range_of_worst(self, quantity: str) -> tuple[float, float]:
        """Between which values the largest of a quantity over the devices can lie."""
        problem, size = self.problem, len(self.problem.system)
        low = np.stack([np.broadcast_to(v.lower, (size,)) for v in problem.variables])
        high = np.stack([np.broadcast_to(v.upper, (size,)) for v in problem.variables])
        box = dict(zip((v.name for v in problem.variables), Interval.variables(low, high), strict=True))
        with np.errstate(all="ignore"):
            found = problem.quantities(View(problem.system, np.arange(size), size, np), box, None)[quantity]
        ends = (found.low, found.high) if isinstance(found, Interval) else (found, found)
        least, most = (np.broadcast_to(e, (size,)) for e in ends)
        rng = np.random.default_rng(0)
        seen = []
        for _ in range(TRIED):
            x = {v.name: _draw(v, rng) for v in problem.variables}
            seen.append(np.asarray(problem.quantities(View(problem.system, None, size, np), x, None)[quantity]))
        finite = np.array(seen)[np.isfinite(seen)]
        sample = float(np.abs(finite).max()) if finite.size else 1.0
        top = float(np.max(most))
        bottom = float(np.max(np.where(np.isnan(least), -np.inf, least)))
        return (bottom if np.isfinite(bottom) else -1e6 * sample), (top if np.isfinite(top) else 1e6 * sample)

    def within(self, low: FloatArray, high: FloatArray) -> tuple[Sums, Boxes]:
        """Return sums over boxes with the shared variables between two ends."""
        boxes = _UnitBoxes(self.problem, self.names, low, high, self.worst)
        return boxes.sums(), boxes

    def chosen(self, decision: Mapping[str, FloatArray]) -> FloatArray:
        """Return the values of the shared variables by unit."""
        return np.stack([np.asarray(decision[name]) for name in self.names])

    def judge(self, decision: Mapping[str, FloatArray]) -> tuple[dict[str, FloatArray], float]:
        """Return the declared variables, the shared ones averaged, and the objective; inf where not feasible."""
        own = {
            v.name: decision[v.name] if v.axis == "device" else np.array([np.mean(decision[v.name])])
            for v in self.problem.variables
        }
        for v in self.problem.variables:
            if v.axis == "common" and v.kind != "real":
                own[v.name] = np.rint(own[v.name])
        evaluation = self.problem.evaluate(Decision(own))
        return own, float(evaluation.objective) if bool(evaluation.feasible()) else np.inf


class _UnitBoxes:
    """`Boxes`: a device's own variables that are not given in closed form, then its copies of the shared ones."""

    def __init__(
        self,
        problem: DeclaredProblem,
        shared: tuple[str, ...],
        low: FloatArray,
        high: FloatArray,
        worst: str | None,
    ) -> None:
        self.problem, self.worst = problem, worst
        if worst is not None:
            # every unit's copy of the largest value is its own value, or the low end
            self.worst_low, self.worst_high = float(low[-1]), float(high[-1])
            shared, low, high = shared[:-1], low[:-1], high[:-1]
        self.units = len(problem.system)
        own = [v for v in problem.variables if v.axis == "device"]
        self.names = (*(v.name for v in own), *shared)
        mine = np.array([[v.lower for v in own], [v.upper for v in own]]).reshape(2, len(own), self.units)
        given = np.repeat(np.stack([low, high])[:, :, None], self.units, axis=2)
        ends = np.concatenate([mine, given], axis=1)
        self.lower, self.upper = ends
        kinds = {v.name: v.kind for v in problem.variables}
        self.integer = np.array([kinds.get(name, "real") != "real" for name in self.names], dtype=bool)
        with np.errstate(divide="ignore", invalid="ignore"):
            far = (self.lower > 0.0) & (self.upper > WIDE * self.lower)
        self.logarithmic: npt.NDArray[np.bool_] = far.all(axis=1) & ~self.integer
        self.common = self._common()
        self.features = self._features()

    # -- sums

    def _common(self) -> set[str]:
        """Quantities that follow from shared variables alone: one number for all."""
        problem = self.problem
        if self.units == 1:
            return set()
        x = {v.name: v.lower for v in problem.variables}
        found = problem.quantities(View(problem.system, None, self.units, np), x, None)
        return {name for name, value in found.items() if np.size(value) == 1}

    def _summed(self, constraint: Any) -> TypeGuard[Constraint]:
        """Whether a limit is on a sum; of one device, or of what is common, it is a limit of each device."""
        several = self.units > 1 and isinstance(constraint, Constraint) and constraint.term.over == "total"
        return several and constraint.term.quantity not in self.common

    def _features(self) -> list[_Feature]:
        common, objective = self.common, self.problem.objective
        wanted: list[tuple[str, float]] = []
        if isinstance(objective, Ratio):
            wanted = [(objective.above.quantity, 1.0), (objective.below.quantity, 1.0)]
        elif isinstance(objective, Term):
            wanted = [(WORST if self.worst is not None else objective.quantity, 1.0)]
        for constraint in self.problem.constraints.values():
            if self._summed(constraint):
                wanted.append((constraint.term.quantity, constraint.sign))
        return [_Feature(name, sign, name in common or name == WORST) for name, sign in dict.fromkeys(wanted)]

    def sums(self) -> Sums:
        """The objective and the limits of the totals."""
        problem, count = self.problem, len(self.features)
        numerator, denominator, limits = np.zeros(count), np.zeros(count), np.full(count, np.inf)
        numerator[0] = 1.0
        ratio = isinstance(problem.objective, Ratio)
        if ratio:
            denominator[1] = 1.0
        place = {(f.quantity, f.sign): i for i, f in enumerate(self.features)}
        for key, constraint in problem.constraints.items():
            if self._summed(constraint):
                i = place[constraint.term.quantity, constraint.sign]
                limits[i] = min(limits[i], constraint.sign * float(problem.limits[key][0]))
        return Sums(
            features=tuple(f.name for f in self.features),
            numerator=numerator,
            numerator_offset=0.0,
            denominator=denominator,
            denominator_offset=0.0 if ratio else 1.0,
            limits=limits,
        )

    # -- the protocol of Boxes

    def derive(self, prices: FloatArray, unit: Any, x: FloatArray) -> FloatArray:
        """Return points with the variables that have a closed form put in."""
        inner = self.problem.inner
        if inner is None:
            return x
        costs = {f.quantity: np.zeros(np.shape(unit)) for f in self.features}
        for feature, price in zip(self.features, prices, strict=True):
            costs[feature.quantity] = costs[feature.quantity] + feature.sign * price
        choice = dict(zip(self.names, x, strict=True))
        found = self.problem.closed_form(View(self.problem.system, unit, self.units, np), choice, costs)
        out = x.copy()
        for name in inner.variables:
            i = self.names.index(name)
            value = np.clip(found[name], self.lower[i, unit], self.upper[i, unit])
            value = np.rint(value) if self.integer[i] else value
            out[i] = np.where(np.isnan(value), x[i], value)
        return out

    def _quantities(self, unit: Any, x: Any) -> dict[str, Any]:
        """All quantities and variables at rows of points or intervals."""
        choice = dict(zip(self.names, x, strict=True))
        found = self.problem.quantities(View(self.problem.system, unit, self.units, np), choice, None)
        if self.worst is None:
            return found
        value = found[self.worst]
        return {**found, WORST: namespace(value).maximum(value, self.worst_low)}

    def terms(self, prices: FloatArray, unit: Any, x: Any) -> tuple[Any, list[Any]]:
        """Return the priced value and the excess of every limit of the device's own."""
        q = self._quantities(unit, x)
        value: Any = 0.0
        for feature, price in zip(self.features, prices, strict=True):
            if np.any(price):
                value = value + (price * feature.sign / (self.units if feature.common else 1)) * q[feature.quantity]
        excess = []
        for key, constraint in self.problem.constraints.items():
            if isinstance(constraint, Constraint) and not self._summed(constraint):
                limit = self.problem.limits[key]
                limit = limit[unit] if limit.size > 1 else limit
                excess.append((constraint.sign / size_of(limit)) * (q[constraint.term.quantity] - limit))
        if self.worst is not None:
            excess.append((q[self.worst] - self.worst_high) / size_of(self.worst_high))
        return value, excess

    def complete(self, prices: FloatArray, unit: Any, x: FloatArray) -> tuple[dict[str, FloatArray], FloatArray]:
        """Return all variables, the shared ones included, and the features."""
        q = self._quantities(unit, list(x))
        rows = np.shape(unit)
        features = np.stack(
            [
                np.broadcast_to(f.sign * np.asarray(q[f.quantity]) / (self.units if f.common else 1), rows)
                for f in self.features
            ]
        )
        names = [v.name for v in self.problem.variables] + [WORST] * (self.worst is not None)
        return {name: np.broadcast_to(np.asarray(q[name]), rows).copy() for name in names}, features

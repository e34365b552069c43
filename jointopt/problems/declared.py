"""Problems that users declare: variables, what follows from them, an objective, and limits.

A user writes one function, `model(s, x)`, from the system and the choices to named quantities, with NumPy functions,
the operators and `jointopt.models`; then says in words which quantity to minimise and what limits others:

    problem = jo.DeclaredProblem(
        system,
        variables=[jo.Variable("pruning_ratio", 0, 0.9), jo.Variable("power", 0.01, 0.1, unit="W")],
        model=model,
        objective=jo.total("gap"),
        constraints={"deadline": jo.each("delay") <= "devices.delay_budget", "battery": jo.total("energy") <= 20.0},
    )

The same function is evaluated with NumPy, differentiated by torch, bounded by intervals, checked in extended precision
and handed to CasADi and SCIP, so every method applies. Where each device's quantities follow from its own variables
alone (found out by trial) and the limits are of the three kinds below, the problem is a function of sums over units
with a few variables each: it is solved with a certificate, `jointopt.solvers.boxes`.

`each(name) <= limit` holds for every device, `total(name) <= limit` for the sum over them; `worst(name)` as an
objective is the largest over the devices. Objectives and constraints may also be any function of the quantities, at the
price of the certificate.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from typing import Any, Self

import numpy as np

from jointopt.decision import Array, Decision
from jointopt.errors import InputError, is_real, nearest
from jointopt.models._array import namespace
from jointopt.problem import (
    Blocks,
    Capabilities,
    Evaluation,
    Problem,
    Step,
    Variable,
    range_slack,
)
from jointopt.problems.declared_boxes import structure
from jointopt.problems.rows import Named, Quantities, View, checked, size_of
from jointopt.problems.terms import Block, Constraint, Inner, Objective, Ratio, Term, total
from jointopt.ranges import changed_ranges, narrowed
from jointopt.system import FloatArray, Scenario

__all__ = ["DeclaredProblem"]

Model = Callable[[Any, Any], Mapping[str, Array]]


class DeclaredProblem(Problem):
    """A problem in its user's words.

    Parameters
    ----------
    system : Scenario
        The devices and everything about them.
    variables : sequence of Variable, or a function of the system that gives them
        Bounds are numbers or one per device; axis ``device`` or ``common`` (one value for all).
    model : callable
        (s, x) -> quantities by name, arrays of shape ``[..., devices]``. `s` has the system's attributes, `x` the
        variables, by attribute or by key. It must work elementwise over devices for a certificate, and take per-device
        data from `s` rather than from arrays of its own.
    objective : Term, Ratio or callable
        ``total(name)``, ``worst(name)``, ``total(a) / total(b)``, or a function of the quantities.
    constraints : mapping of str to Constraint or callable
        By name: ``each(name) <= limit``, ``total(name) <= limit`` (or ``>=``), or a function of the quantities whose
        values, one or one per device, must be at least 0.
    inner : Inner, optional
        Variables that follow from the others in closed form.
    blocks : mapping of str to Block, optional
        Steps of alternating optimization; one per variable when not given.
    name, minimises : str
        For reports.

    Raises
    ------
    InputError
        For an unknown quantity, crossed bounds, or a function that gives nan, complex numbers or the wrong shape.
    """

    system_type = Scenario

    def __init__(
        self,
        system: Scenario,
        *,
        variables: Sequence[Variable] | Callable[[Any], Sequence[Variable]],
        model: Model,
        objective: Objective,
        constraints: Mapping[str, Constraint | Callable[[Any], Array]] | None = None,
        inner: Inner | None = None,
        blocks: Mapping[str, Block] | None = None,
        name: str = "declared",
        minimises: str = "",
    ) -> None:
        if not isinstance(system, Scenario):
            raise InputError(f"system: expected a system, got {type(system).__name__}")
        self.system, self.name, self.minimises = system, name, minimises
        self.model, self.objective, self.inner = model, objective, inner
        self.constraints = dict(constraints or {})
        self._declared = variables
        self._blocks = dict(blocks or {})
        self._variables = tuple(self._sized(v) for v in (variables(system) if callable(variables) else variables))
        self._check_declaration()
        self._own = self._ranges()
        self.limits = {k: self._limit(k, c) for k, c in self.constraints.items() if isinstance(c, Constraint)}
        self._probe()

    # ------------------------------------------------------------------ what was declared

    def _sized(self, variable: Variable) -> Variable:
        if not isinstance(variable, Variable):
            raise InputError(f"variables: expected a Variable, got {variable!r}")
        if variable.axis not in ("device", "common"):
            raise InputError(f"variables: {variable.name} has axis '{variable.axis}'; 'device' or 'common' is possible")
        size = len(self.system) if variable.axis == "device" else 1
        ends = []
        for which, end in (("lower", variable.lower), ("upper", variable.upper)):
            if end.ndim != 1 or end.size not in (1, size):
                raise InputError(
                    f"variables: {which} bound of {variable.name} has shape {end.shape}, expected ({size},)"
                )
            if not np.all(np.isfinite(end)):
                u = int(np.argmin(np.isfinite(end)))
                raise InputError(
                    f"variables: {which} bound of {variable.name}[device {u}] is {end[u]}; it must be finite"
                )
            if variable.kind != "real" and np.any(end != np.rint(end)):
                u = int(np.argmax(end != np.rint(end)))
                raise InputError(
                    f"variables: {which} bound of {variable.name}[device {u}] is {end[u]:g}, no whole number"
                )
            ends.append(np.broadcast_to(end, (size,)).copy())
        return Variable(variable.name, ends[0], ends[1], variable.unit, variable.kind, variable.axis, variable.meaning)

    def _check_declaration(self) -> None:
        names = [v.name for v in self._variables]
        if not names:
            raise InputError("variables: none are declared")
        if len(set(names)) < len(names):
            raise InputError(f"variables: '{next(n for n in names if names.count(n) > 1)}' is declared twice")
        for what, named in [("inner", self.inner.variables if self.inner else ())] + [
            (f"block '{key}'", block.variables) for key, block in self._blocks.items()
        ]:
            for variable in named:
                if variable not in names:
                    raise InputError(f"{what}: unknown variable '{variable}'{nearest(variable, names)}")
        for key, constraint in self.constraints.items():
            if not (isinstance(constraint, Constraint) or callable(constraint)):
                raise InputError(f"constraints: '{key}' must be a constraint or a function, got {constraint!r}")
            if key in names:
                raise InputError(f"constraints: '{key}' is the name of a variable; give the constraint another name")
            if isinstance(constraint, Constraint) and constraint.term.over == "worst":
                raise InputError(f"constraints: '{key}': say each(...) <= limit in place of worst(...)")
        if not (isinstance(self.objective, (Term, Ratio)) or callable(self.objective)):
            raise InputError(f"objective: expected total(...), worst(...) or a function, got {self.objective!r}")
        if isinstance(self.objective, Term) and self.objective.over == "each":
            raise InputError("objective: each(...) is many numbers; say total(...) or worst(...)")

    def _limit(self, key: str, constraint: Constraint) -> FloatArray:
        """The limit as an array [devices], or [1] for a total."""
        limit = constraint.limit
        if isinstance(limit, str):
            value: Any = self.system
            for part in limit.split("."):
                if not hasattr(value, part):
                    raise InputError(f"constraints: '{key}': the system has no '{limit}'")
                value = getattr(value, part)
            limit = value
        elif callable(limit):
            limit = limit(self.system)
        size = len(self.system) if constraint.term.over == "each" else 1
        try:
            array = np.broadcast_to(np.asarray(limit, dtype=np.float64), (size,)).copy()
        except (TypeError, ValueError):
            raise InputError(f"constraints: '{key}': the limit {limit!r} must be a number or {size} numbers") from None
        if not np.all(np.isfinite(array)):
            u = int(np.argmin(np.isfinite(array)))
            raise InputError(f"constraints: '{key}': the limit[device {u}] is {array[u]}; it must be finite")
        return array

    @property
    def variables(self) -> tuple[Variable, ...]:
        """The declared variables."""
        return self._variables

    def _ranges(self) -> dict[str, tuple[FloatArray, FloatArray]]:
        return {v.name: (v.lower, v.upper) for v in self._variables}

    def with_system(self, system: Scenario) -> Self:
        """Return the same problem for another system; limits and bounds given by name or function follow it.

        Ranges that `restrict` set are set again.
        """
        made = type(self)(
            system,
            variables=self._declared,
            model=self.model,
            objective=self.objective,
            constraints=self.constraints,
            inner=self.inner,
            blocks=self._blocks,
            name=self.name,
            minimises=self.minimises,
        )
        narrowed_here = {
            name: ends
            for name, ends in self._ranges().items()
            if not all(np.array_equal(a, b) for a, b in zip(ends, self._own[name], strict=True))
        }
        return made.restrict(**narrowed_here) if narrowed_here else made

    def restrict(self, **ranges: Any) -> Self:
        """Return the problem with variables fixed (a number) or narrowed (a pair)."""
        common = {v.name for v in self._variables if v.axis == "common"}
        own = self._ranges()
        new = narrowed(own, ranges, len(self.system), common=common)
        for name, (low, high) in new.items():
            if np.any(low < own[name][0]) or np.any(high > own[name][1]):
                raise InputError(f"restrict: {name} must lie within its declared bounds")
        made = copy.copy(self)
        made.__dict__.pop("_structure", None)
        made._variables = tuple(
            made._sized(Variable(v.name, *new[v.name], v.unit, v.kind, v.axis, v.meaning)) for v in self._variables
        )
        return made

    def limited(self, each: Mapping[str, float] | None = None, *, total: Mapping[str, float] | None = None) -> Self:
        """Return the same problem with quantities limited further, for every device or in total.

        Raises
        ------
        InputError
            For a quantity that the model does not give, or a limit that is no finite number.
        """
        made = copy.copy(self)
        made.__dict__.pop("_structure", None)
        made.constraints, made.limits = dict(self.constraints), dict(self.limits)
        middle = {v.name: 0.5 * (v.lower + v.upper) for v in self._variables}
        known = self.evaluate(
            Decision({v.name: np.rint(middle[v.name]) if v.kind != "real" else middle[v.name] for v in self._variables})
        ).quantities
        asked = [(Term(q, "each"), limit) for q, limit in (each or {}).items()]
        asked += [(Term(q, "total"), limit) for q, limit in (total or {}).items()]
        for term, limit in asked:
            if term.quantity not in known:
                raise InputError(f"limited: the model gives no '{term.quantity}'{nearest(term.quantity, known)}")
            if not (is_real(limit) and np.isfinite(limit)):
                raise InputError(f"limited: {term.quantity}={limit!r} must be a finite number")
            key = f"{term.over} {term.quantity} limited"
            least = min(float(limit), float(made.limits[key].min())) if key in made.limits else float(limit)
            made.constraints[key] = constraint = term <= least
            made.limits[key] = made._limit(key, constraint)
        return made

    def settings(self) -> dict[str, Any]:
        """Return the ranges that differ from the declared ones; the functions themselves cannot be recorded."""
        return changed_ranges(self._ranges(), self._own)

    # ------------------------------------------------------------------ evaluation

    def evaluate(self, decision: Decision) -> Evaluation:
        """Return objective, parts, slack and quantities; NumPy, torch, intervals or any other kind of array.

        Raises
        ------
        InputError
            For unknown or missing variables, or where the model gives nan or the wrong shape.
        """
        self.check(decision)
        x = {v.name: decision[v.name] for v in self._variables}
        xp = namespace(*x.values())
        batch = np.broadcast_shapes(*(tuple(value.shape)[:-1] for value in x.values()))
        q = self.quantities(View(self.system, None, len(self.system), xp), x, batch)
        slack: dict[str, Array] = {}
        scale: dict[str, Array] = {}
        for key, constraint in self.constraints.items():
            if isinstance(constraint, Constraint):
                limit = self.limits[key]
                shown = limit if constraint.term.over == "each" else limit[0]
                use = self._term(constraint.term, q, xp)
                slack[key] = constraint.sign * (xp.asarray(np.array(shown)) - use)
                scale[key] = size_of(shown)
            else:
                slack[key], scale[key] = self._function(f"constraints: '{key}'", constraint, q, batch, True), 1.0
        for variable, inside in zip(self._variables, range_slack(self._variables, x).values(), strict=True):
            size = np.maximum(np.abs(variable.lower), np.abs(variable.upper))
            size = np.where(size > 0.0, size, 1.0) if variable.kind == "real" else np.ones_like(size)
            common = variable.axis == "common"
            slack[variable.name], scale[variable.name] = (inside[..., 0], size[0]) if common else (inside, size)
        objective = self._objective(q, batch, xp)
        parts = {name: self._term(total(name), q, xp) for name in self._totals()} or {"objective": objective}
        return Evaluation(objective=objective, parts=parts, slack=slack, scale=scale, quantities=q)

    def _totals(self) -> list[str]:
        if isinstance(self.objective, Ratio):
            return [self.objective.above.quantity, self.objective.below.quantity]
        if isinstance(self.objective, Term) and self.objective.over == "total":
            return [self.objective.quantity]
        return []

    def _objective(self, q: Mapping[str, Array], batch: tuple[int, ...], xp: Any) -> Array:
        if isinstance(self.objective, Ratio):
            return self._term(self.objective.above, q, xp) / self._term(self.objective.below, q, xp)
        if isinstance(self.objective, Term):
            return self._term(self.objective, q, xp)
        return self._function("objective", self.objective, q, batch, False)

    def _term(self, term: Term, q: Mapping[str, Array], xp: Any) -> Array:
        if term.quantity not in q:
            raise InputError(f"the model gives no '{term.quantity}'{nearest(term.quantity, q)}")
        value = q[term.quantity]
        if term.over == "each":
            return value
        if term.over == "worst":
            return xp.max(value, axis=-1)
        return xp.sum(value, axis=-1)

    def _function(
        self, what: str, function: Callable[[Any], Array], q: Mapping[str, Array], batch: tuple[int, ...], many: bool
    ) -> Array:
        """A user's function of the quantities, checked."""
        value = checked(function(Quantities(q)), what)
        shape = tuple(np.shape(value))
        allowed = [batch, (*batch, len(self.system))] if many else [batch]
        if shape not in allowed:
            raise InputError(f"{what}: gave shape {shape}, expected {' or '.join(map(str, allowed))}")
        self._refuse_nan(what, value)
        return value

    def quantities(self, s: Any, x: Mapping[str, Array], batch: tuple[int, ...] | None) -> dict[str, Array]:
        """The model's quantities and the variables themselves; `batch` None: rows, one device each, unchecked."""
        with np.errstate(all="ignore"):
            found = self.model(s, Named(x))
        if not isinstance(found, Mapping):
            raise InputError(f"model: expected quantities by name, got {type(found).__name__}")
        for name in found:
            if name in x:
                raise InputError(f"model: '{name}' is the name of a variable; give the quantity another name")
        q = {**x, **found}
        if batch is None:
            return q
        sizes = (1, len(self.system))
        for name, value in found.items():
            q[name] = value = checked(value, f"model: '{name}'")
            shape = tuple(np.shape(value))
            if not shape or shape[-1] not in sizes or len(shape) > len(batch) + 1:
                raise InputError(f"model: '{name}' has shape {shape}, expected {(*batch, len(self.system))}")
            self._refuse_nan(f"model: '{name}'", value, x)
        return q

    def closed_form(self, s: Any, x: Mapping[str, Array], prices: Mapping[str, Array]) -> dict[str, Array]:
        """The inner solution's values, by name."""
        assert self.inner is not None
        with np.errstate(all="ignore"):
            found = self.inner.best(s, Named(x), Named(prices))
        for name in self.inner.variables:
            if name not in found:
                raise InputError(f"inner: gave no '{name}'{nearest(name, found)}")
        return {name: checked(found[name], f"inner: '{name}'") for name in self.inner.variables}

    def _refuse_nan(self, what: str, value: Array, x: Mapping[str, Array] | None = None) -> None:
        if not isinstance(value, np.ndarray) or value.dtype == object:
            return
        bad = np.isnan(value)
        if np.any(bad):
            where = tuple(int(i) for i in np.argwhere(bad)[0])
            at = ""
            if x is not None:
                here = {
                    k: np.broadcast_to(v, np.broadcast_shapes(np.shape(v), value.shape))[where] for k, v in x.items()
                }
                at = " at " + ", ".join(f"{k}={float(v):g}" for k, v in here.items())
            device = f"[device {where[-1]}]" if where and value.shape[-1] == len(self.system) else ""
            raise InputError(f"{what}{device} is nan{at}")

    def _probe(self) -> None:
        """Evaluate at a few decisions before any work starts."""
        rng = np.random.default_rng(0)
        for share in (0.0, 1.0, 0.5, None, None):
            values = {}
            for v in self._variables:
                part = rng.uniform(size=v.lower.size) if share is None else share
                value = v.lower + part * (v.upper - v.lower)
                values[v.name] = value if v.kind == "real" else np.rint(value)
            self.evaluate(Decision(values))

    # ------------------------------------------------------------------ structure

    def capabilities(self) -> Capabilities:
        """Sums over boxes (exact with certificate) where the problem is separable; what always applies otherwise."""
        return self._structure

    @cached_property
    def _structure(self) -> Capabilities:
        return structure(self)

    def blocks(self) -> Blocks:
        """Steps of alternating optimization: the declared ones, or one per variable."""
        declared = self._blocks or {v.name: Block((v.name,)) for v in self._variables}
        steps: dict[str, Callable[[Decision], Decision] | Step] = {}
        for key, block in declared.items():
            if block.step is None:
                steps[key] = Step(block.variables, block.convex)
            else:
                steps[key] = partial(self._closed_step, key, block)
        return Blocks(start=self._start, steps=steps, tolerance=1e-9)

    def _closed_step(self, key: str, block: Block, decision: Decision) -> Decision:
        """Take a user's step, kept within the bounds."""
        assert block.step is not None
        found = block.step(View(self.system, None, len(self.system), np), Named(dict(decision)))
        new = {}
        for name in block.variables:
            if name not in found:
                raise InputError(f"block '{key}': gave no '{name}'{nearest(name, found)}")
            value = checked(found[name], f"block '{key}': '{name}'")
            self._refuse_nan(f"block '{key}': '{name}'", value, dict(decision))
            low, high = self._ranges()[name]
            new[name] = np.clip(np.broadcast_to(value, low.shape), low, high)
        return decision.with_(**new)

    def _start(self) -> Decision:
        """The least violating of a few decisions: the middle of all ranges, their ends, and seeded draws."""
        rng = np.random.default_rng(0)
        shares = [0.5, 0.0, 1.0] + 16 * [None]
        best, least = None, (np.inf, np.inf)
        for share in shares:
            values = {}
            for v in self._variables:
                part = rng.uniform(size=v.lower.size) if share is None else share
                value = v.lower + part * (v.upper - v.lower)
                values[v.name] = value if v.kind == "real" else np.rint(value)
            decision = Decision(values)
            evaluation = self.evaluate(decision)
            rank = (float(evaluation.violation()), float(evaluation.objective))
            if best is None or rank < least:
                best, least = decision, rank
        assert best is not None
        return best

"""Is a result what it says? Value, feasibility and bound, recomputed from the problem alone.

`verify` builds the problem anew from the system and its settings and takes nothing that a solver computed for granted:

* *value and feasibility*: the decision is evaluated in extended precision (mpmath), above `units` devices for a sample
  of them and in float64 for all; objective, parts, slacks and quantities must be the stored ones, no slack below what a
  feasible decision is allowed, whole numbers whole, and the status what value, violation and gap say;
* *bound*: the certificate is followed from its smallest parts. Leaves must tile all that a unit can choose; every bound
  of a leaf is computed again, and compared with values at points in it (also in extended precision where the unit's
  formulas allow); unit bounds are the least of their leaves, or of a fresh search where no leaves are kept; their sum
  less the limits at their multipliers must give the bound. A tree over selections or shared variables must cover them
  all, with every node bounded anew. A convex program's bound is its dual function at the decision, computed again;
  What backward induction says remains after every stage must be no more than any action costs with what remains after
  it, and its costs those of random paths as the problem evaluates them;
* *falsification*: seeded decisions around the one returned, and random ones completed by the problem's own search, are
  evaluated; none that is feasible may lie below the bound;
* *infeasibility*: what is said to be in conflict cannot be met, and can be met with the relaxations that are named.

A stored bound may be weaker than what is recomputed, never stronger.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from jointopt.arithmetic.boxes import enclose
from jointopt.arithmetic.elementwise import extended
from jointopt.arithmetic.intervals import Interval
from jointopt.decision import Decision
from jointopt.errors import InputError, VerificationError, is_whole
from jointopt.problem import (
    FEASIBILITY_TOLERANCE,
    Boxes,
    Capabilities,
    CellList,
    Cells,
    Conflict,
    CostToGo,
    Evaluation,
    Leaves,
    Priced,
    Problem,
    Response,
    SelectionTree,
    SharedTree,
    Staged,
    Sums,
)
from jointopt.report import text_table
from jointopt.solvers.boxes import BoxesPriced
from jointopt.solvers.branch import respond
from jointopt.solvers.convex import minimize_convex
from jointopt.solvers.dispatch import solve
from jointopt.solvers.exact import minimize_sums
from jointopt.solvers.priced import CellsPriced, priced_from, priced_of
from jointopt.solvers.staged import minimize_staged, remaining
from jointopt.system import FloatArray

if TYPE_CHECKING:
    from jointopt.result import Certificate, Result

__all__ = ["Check", "Verification", "verify", "verify_saved"]

RELATIVE = 1e-9
"""Relative difference up to which two computations of one number agree."""
ROUNDING = 1e-13
"""Share of the terms of a sum by which rounding may have moved it."""
POINTS = 3
"""Points per unit that are priced in extended precision."""
CHUNK = 200_000
"""Rows handled together."""
EDGE = 1e-12
"""Relative excess of a budget, of decisions tried against the bound, that is rounding."""
TRIED = 200
"""Decisions around the one returned that are tried against the bound."""
COMPLETED = 8
"""Random points of the problem's search that are tried against the bound."""
PAIRS = 20_000_000
"""Pairs of boxes that are looked at for overlaps; above it only points are drawn."""
REFINED = 200_000
"""Boxes into which leaves are halved, together, until their bounds are met."""

_FOREIGN = (InputError, TypeError, AttributeError, ValueError, IndexError, NotImplementedError)
"""What a formula that does not know extended numbers raises."""


@dataclass(frozen=True)
class Check:
    """One thing that was compared.

    Attributes
    ----------
    name : str
        What.
    deviation : float
        The worst relative deviation found; 0 where a stored bound is weaker than the recomputed one.
    allowed : float
        The deviation up to which the check passes.
    count : int
        Numbers compared.
    arithmetic : str
        How the numbers were recomputed.
    """

    name: str
    deviation: float
    allowed: float
    count: int
    arithmetic: str


@dataclass(frozen=True)
class Verification:
    """What `verify` recomputed of a result that stood up to it.

    Attributes
    ----------
    subject : str
        Problem and method.
    status : str
        The result's status.
    devices, sampled : int
        Devices, and how many of them were evaluated in extended precision.
    digits : int
        Decimal digits of the extended precision.
    value, lower_bound : float or None
        As recomputed; the bound None where nothing is claimed or it could not be recomputed.
    checks : tuple of Check
        All that was compared.
    unverified : tuple of str
        What the result does not hold enough of to be recomputed.
    seconds : float
        Time it took.
    """

    subject: str
    status: str
    devices: int
    sampled: int
    digits: int
    value: float | None
    lower_bound: float | None
    checks: tuple[Check, ...]
    unverified: tuple[str, ...]
    seconds: float

    @property
    def complete(self) -> bool:
        """Whether everything the result claims was recomputed."""
        return not self.unverified

    def summary(self) -> str:
        """Return what was compared, how and how closely it agreed, for reading."""
        devices = f"{self.devices} device{'s' if self.devices != 1 else ''}"
        head = f"{self.subject} ({self.status}, {devices}): verified in {self.seconds:.3g} s"
        rows = [[f"{c.deviation:.1e}", f"{c.allowed:.0e}", str(c.count), c.arithmetic, c.name] for c in self.checks]
        table = text_table(rows, ["worst", "allowed", "numbers", "arithmetic", "check"], words=2)
        return "\n".join([head, table, *(f"not recomputed: {what}" for what in self.unverified)])

    def __str__(self) -> str:
        return self.summary()


def verify(result: Result, *, units: int = 1000, seed: int = 0, digits: int = 50) -> Verification:
    """Recompute a result's value, feasibility and bound from its problem alone.

    Parameters
    ----------
    result : Result
        The answer of any method.
    units : int
        Devices evaluated, and points priced, in extended precision; a seeded sample where there are more.
    seed : int
        Seed of the samples.
    digits : int
        Decimal digits of the extended precision, at least 15.

    Raises
    ------
    VerificationError
        Where something differs from what the result says; the message names it, where and by how much.
    InputError
        For arguments out of range.
    """
    for name, value, least in (("units", units, 1), ("seed", seed, 0), ("digits", digits, 15)):
        if not (is_whole(value) and value >= least):
            raise InputError(f"{name}: {value!r} must be a whole number of at least {least}")
    return _Verifier(result, units, seed, digits).run()


def verify_saved(
    problem: Problem, decision: Decision, data: Mapping[str, Any], *, units: int = 1000, seed: int = 0, digits: int = 50
) -> Verification:
    """Recompute a saved result as far as its file allows: ``verify_saved(*jointopt.study.load_result(path))``.

    A file holds prices, multipliers and ratio, from which fresh unit bounds are computed; trees of branch and bound are
    not kept, so that a bound that rests on one is listed as unverified.

    Parameters
    ----------
    problem, decision, data
        As `jointopt.study.load_result` returns them.
    units, seed, digits
        As in `verify`.

    Raises
    ------
    VerificationError
        Where something differs from what the file says.
    """
    result = _recorded(problem, decision, data)
    gap = data.get("gap")
    if (gap is None) != (result.gap is None) or (gap is not None and abs(gap - (result.gap or 0.0)) > RELATIVE):
        raise VerificationError(
            f"{problem.name}/{result.method}: gap is {gap!r}, value and bound make it {result.gap!r}"
        )
    return verify(result, units=units, seed=seed, digits=digits)


def _recorded(problem: Problem, decision: Decision, data: Mapping[str, Any]) -> Result:
    """The result that a file tells of; its certificate without leaves and trees."""
    from jointopt.result import Certificate, Result

    stored, certificate = data.get("evaluation") or {}, data.get("certificate") or {}
    evaluation = problem.evaluate(decision)

    def numbers(named: Mapping[str, Any], ours: Mapping[str, Any]) -> dict[str, FloatArray]:
        """What is not finite is null in a file."""
        out = {}
        for name, value in named.items():
            told, now = np.asarray(value, dtype=np.float64), np.asarray(ours.get(name, np.nan), dtype=np.float64)
            same = told.shape == now.shape
            out[name] = np.where(np.isnan(told) & ~np.isfinite(now), now, told) if same else told
        return out

    if stored:
        value = data.get("value")
        evaluation = replace(
            evaluation,
            objective=evaluation.objective if value is None else np.asarray(value, dtype=np.float64),
            parts=numbers(stored["parts"], evaluation.parts),
            slack=numbers(stored["slack"], evaluation.slack),
            quantities=numbers({k: v for k, v in stored.items() if k not in ("parts", "slack")}, evaluation.quantities),
        )
    return Result(
        problem=problem,
        method=str(data.get("method", "")),
        status=data["status"],
        decision=decision,
        evaluation=evaluation if stored else None,
        value=data.get("value"),
        lower_bound=data.get("lower_bound"),
        certificate=Certificate(
            kind=certificate.get("kind", "none"),
            prices=certificate.get("prices", {}),
            multipliers=certificate.get("multipliers", {}),
            ratio=certificate.get("ratio", 0.0),
            tolerance=certificate.get("tolerance", 0.0),
        ),
        infeasibility=[
            Conflict(**{**entry, "irreducible": tuple(entry.get("irreducible", ()))})
            for entry in data.get("infeasibility") or []
        ],
        seed=data.get("seed"),
    )


# Comparing -----------------------------------------------------------------------------------------------------------


def _size(*values: Any) -> FloatArray:
    """The magnitude that a difference of numbers is compared with."""
    size = np.asarray(values[0] if len(values) == 1 else np.maximum(np.abs(values[0]), np.abs(values[1])))
    return np.where(np.isfinite(size), np.maximum(np.abs(size), 1e-300), 1.0)


def _short(found: Any, claimed: Any) -> FloatArray:
    """By how much bounds that were recomputed fall short of the claimed ones, relative; 0 where they do not."""
    found, claimed = np.broadcast_arrays(np.asarray(found, dtype=np.float64), np.asarray(claimed, dtype=np.float64))
    with np.errstate(invalid="ignore"):
        short = np.where(claimed > found, (claimed - found) / _size(found, claimed), 0.0)
    return np.where(np.isnan(found) | np.isnan(claimed), np.inf, short)


def _apart(found: Any, claimed: Any, size: Any = None) -> FloatArray:
    """Difference of numbers relative to the larger one, or to `size`; 0 for equal infinities and two nan."""
    exact = found - claimed if hasattr(found, "kind") else np.asarray(found, dtype=np.float64) - claimed
    difference = np.abs(np.asarray(exact, dtype=np.float64))
    plain, claimed = np.asarray(found, dtype=np.float64), np.asarray(claimed, dtype=np.float64)
    with np.errstate(invalid="ignore"):
        relative = difference / (_size(plain, claimed) if size is None else np.maximum(_size(plain, claimed), size))
    same = (plain == claimed) | (np.isnan(plain) & np.isnan(claimed))
    return np.where(
        same, np.where(np.isfinite(relative), relative, 0.0), np.where(np.isnan(relative), np.inf, relative)
    )


def _fresh(problem: Problem, rows: npt.NDArray[np.int64] | None = None) -> Problem:
    """The problem built anew, for some of its devices; ranges that were set are set again.

    Raises
    ------
    InputError
        Where the problem cannot be built from its system and settings.
    """
    size = len(problem.system)
    system = problem.system if rows is None else problem.system.take(rows)

    def taken(end: Any) -> FloatArray:
        values = np.asarray(end, dtype=np.float64)
        return values if rows is None or values.shape != (size,) else values[rows]

    settings = {
        name: {"lower": taken(value["lower"]), "upper": taken(value["upper"])} if isinstance(value, Mapping) else value
        for name, value in problem.settings().items()
    }
    if "with_system" not in vars(type(problem)):
        return type(problem).from_settings(system, settings)
    made = problem.with_system(system)
    ranges = {name: (v["lower"], v["upper"]) for name, v in settings.items() if isinstance(v, Mapping)}
    return made.restrict(**ranges) if ranges and set(made.settings()) != set(ranges) else made


class _Verifier:
    """One call of `verify`."""

    def __init__(self, result: Result, units: int, seed: int, digits: int) -> None:
        self.result, self.units, self.digits = result, units, digits
        self.rng = np.random.default_rng(seed)
        self.started = time.perf_counter()
        self.checks: list[Check] = []
        self.unverified: list[str] = []
        self.subject = f"{result.problem.name}/{result.method}"
        self.value: float | None = None
        self.lower: float | None = None
        self.sampled = 0
        self.mpmath = f"mpmath, {digits} digits"

    def run(self) -> Verification:
        """Check everything; the first disagreement raises."""
        result = self.result
        try:
            self.problem = _fresh(result.problem)
        except (InputError, TypeError) as error:
            self._fail(f"its problem cannot be built anew from the system and the settings ({error})")
        self._statements()
        if result.decision is not None:
            self._point(result.decision)
        if result.lower_bound is not None:
            offered = self.problem.capabilities()
            self._bound(result.lower_bound, offered)
            if result.decision is not None:
                self._challenge(result.decision, result.lower_bound)
                self._searched(result.lower_bound)
        if result.status == "infeasible":
            self._infeasible()
        return Verification(
            subject=self.subject,
            status=result.status,
            devices=len(result.problem.system),
            sampled=self.sampled,
            digits=self.digits,
            value=self.value,
            lower_bound=self.lower,
            checks=tuple(self.checks),
            unverified=tuple(self.unverified),
            seconds=time.perf_counter() - self.started,
        )

    def _fail(self, text: str) -> Any:
        raise VerificationError(f"{self.subject}: {text}")

    def _check(
        self,
        name: str,
        deviation: Any,
        arithmetic: str = "float64",
        *,
        allowed: float = RELATIVE,
        tell: Callable[[int], str] = lambda at: "",
    ) -> None:
        """Note the worst deviation; raise where it is above what is allowed. `tell` says more about a flat index."""
        each = np.atleast_1d(np.asarray(deviation, dtype=np.float64)).ravel()
        each = np.where(np.isnan(each), np.inf, each)
        if each.size == 0:
            return
        at = int(np.argmax(each))
        worst = float(each[at])
        if worst > allowed:
            self._fail(f"{name}: off by {worst:.3g} (relative), allowed {allowed:.0e}{tell(at)}")
        self._note(Check(name, worst, allowed, each.size, arithmetic))

    def _note(self, check: Check) -> None:
        """Keep what was compared, with what was compared before under the same name."""
        for i, old in enumerate(self.checks):
            if (old.name, old.arithmetic, old.allowed) == (check.name, check.arithmetic, check.allowed):
                worst = max(old.deviation, check.deviation)
                self.checks[i] = replace(old, deviation=worst, count=old.count + check.count)
                return
        self.checks.append(check)

    # -- what the result says of itself

    def _statements(self) -> None:
        """Status, value, bound, gap and certificate must fit together."""
        r = self.result
        kind, value, lower = r.certificate.kind, r.value, r.lower_bound
        if lower is not None and kind == "none":
            self._fail(f"lower_bound is {lower!r} although the certificate is of kind 'none'")
        for name, number in (("value", value), ("lower_bound", lower)):
            if number is not None and not math.isfinite(number):
                self._fail(f"{name} is {number!r}")
        if value is None:
            if r.status in ("optimal", "feasible"):
                self._fail(f"status '{r.status}' without a value")
            if lower is not None:
                self._fail(f"lower_bound is {lower!r} without a value")
            return
        if r.status in ("infeasible", "unbounded"):
            self._fail(f"status '{r.status}' with a value of {value!r}")
        if r.decision is None:
            self._fail(f"a value of {value!r} without a decision")
        if lower is not None:
            self._check(
                "weak duality: bound against value",
                _short(value, lower),
                tell=lambda at: f": lower_bound {lower:.17g}, value {value:.17g}",
            )
        if r.status == "optimal":
            gap = r.gap
            if gap is None:
                self._fail("status 'optimal' without a lower bound")
            assert gap is not None
            if gap > r.certificate.tolerance * (1.0 + RELATIVE) + 1e-15:
                self._fail(f"status 'optimal' at a gap of {gap:.3g}, asked for was {r.certificate.tolerance:.3g}")

    # -- value and feasibility

    def _point(self, decision: Decision) -> None:
        result, size = self.result, len(self.problem.system)
        try:
            plain = self.problem.evaluate(decision)
        except InputError as error:
            self._fail(f"its decision is not one of its problem ({error})")
        exact, arithmetic = plain, "float64"
        if size <= self.units:
            try:
                exact = self.problem.evaluate(self._extended(decision))
                arithmetic, self.sampled = self.mpmath, size
            except _FOREIGN:
                self.unverified.append("the decision in extended precision, which the problem's functions do not take")
        else:
            self._sample(decision, plain)
        self._compare(exact, arithmetic)
        violation = self._violation(exact)
        if result.value is None:
            if result.status == "infeasible" and violation <= FEASIBILITY_TOLERANCE:
                self._fail(
                    f"status 'infeasible' although the decision keeps every constraint (violation {violation:.3g})"
                )
            return
        self.value = float(np.asarray(exact.objective, dtype=np.float64))
        self._check(
            "value",
            _apart(exact.objective, result.value),
            arithmetic,
            tell=lambda at: f": stored {result.value:.17g}, recomputed {self.value:.17g}",
        )
        self._whole(decision)
        if violation > FEASIBILITY_TOLERANCE:
            name, device, amount = next(plain.broken(0.0), ("a constraint", None, violation))
            where = "" if device is None else f"[device {device}]"
            self._fail(
                f"status '{result.status}' but {name}{where} is short of {amount:.3g} (relative {violation:.3g})"
            )
        self._note(
            Check(
                "violation", violation, FEASIBILITY_TOLERANCE, sum(np.size(s) for s in plain.slack.values()), arithmetic
            )
        )

    def _extended(self, decision: Decision) -> Decision:
        return Decision({name: extended(np.asarray(value), self.digits) for name, value in decision.items()})

    @staticmethod
    def _violation(evaluation: Evaluation) -> float:
        """Largest relative violation, from numbers rounded at the very end."""
        plain = {name: np.asarray(slack, dtype=np.float64) for name, slack in evaluation.slack.items()}
        objective = np.asarray(evaluation.objective, dtype=np.float64)
        return float(replace(evaluation, slack=plain, objective=objective.reshape(())).violation())

    def _compare(self, exact: Evaluation, arithmetic: str) -> None:
        """Compare the stored evaluation with a recomputed one."""
        stored = self.result.evaluation
        if stored is None:
            return
        if self.result.value is not None:
            self._check("stored objective", _apart(np.asarray(stored.objective), self.result.value))
        for group in ("parts", "quantities", "slack"):
            ours, theirs = getattr(exact, group), getattr(stored, group)
            if set(ours) != set(theirs):
                odd = sorted(set(ours) ^ set(theirs))
                self._fail(f"stored {group} are others than the problem's: {', '.join(odd)}")
            worst, count = 0.0, 0
            for name, value in ours.items():
                claimed = np.asarray(theirs[name], dtype=np.float64)
                # a slack is a difference: it is compared with the size of the budget
                size: Any = np.abs(np.asarray(exact.scale[name], dtype=np.float64)) if group == "slack" else None
                if group == "parts":
                    size = abs(float(np.asarray(exact.objective, dtype=np.float64)))
                if np.shape(value) != claimed.shape:
                    self._fail(f"stored {group} '{name}' has shape {claimed.shape}, recomputed {np.shape(value)}")
                apart = _apart(value, claimed, size)
                if apart.size and float(np.max(apart)) > RELATIVE:
                    at = np.unravel_index(int(np.argmax(apart)), apart.shape)
                    where = f"[device {int(at[-1])}]" if at else ""
                    now = float(np.asarray(value, dtype=np.float64)[at])
                    self._fail(
                        f"stored {group} '{name}'{where} is {float(claimed[at])!r}, recomputed {now!r}: "
                        f"off by {float(apart[at]):.3g} (relative)"
                    )
                worst, count = max(worst, float(np.max(apart, initial=0.0))), count + apart.size
            self._note(Check(f"stored {group}", worst, RELATIVE, count, arithmetic))

    def _whole(self, decision: Decision) -> None:
        """Whole numbers must be whole."""
        for variable in self.problem.variables:
            if variable.kind != "real":
                value = np.asarray(decision[variable.name])
                self._check(
                    f"whole numbers of {variable.name}",
                    np.abs(value - np.rint(value)),
                    allowed=0.0,
                    tell=lambda at, value=value: f": device {at} has {value.ravel()[at]:.17g}",  # type: ignore[misc]
                )

    def _sample(self, decision: Decision, plain: Evaluation) -> None:
        """Quantities and slacks of a sample of the devices in extended precision."""
        size = len(self.problem.system)
        rows = np.sort(self.rng.choice(size, self.units, replace=False))
        try:
            part = _fresh(self.problem, rows)
            some = Decision({k: np.asarray(v)[..., rows] if v.shape[-1] == size else v for k, v in decision.items()})
            near, exact = part.evaluate(some), part.evaluate(self._extended(some))
        except _FOREIGN:
            self.unverified.append("a sample of the devices in extended precision: the problem cannot be cut to them")
            return
        worst, count = 0.0, 0
        for group in ("quantities", "slack"):
            for name, value in getattr(exact, group).items():
                whole = np.asarray(getattr(plain, group)[name])
                if whole.shape != (size,):
                    continue
                stored = self.result.evaluation
                claimed = whole if stored is None else np.asarray(getattr(stored, group)[name])
                scale = np.abs(np.broadcast_to(np.asarray(exact.scale[name]), rows.shape)) if group == "slack" else None
                # what depends on all devices together is another number among fewer
                alike = _apart(np.asarray(getattr(near, group)[name]), whole[rows], scale) <= RELATIVE
                if not np.all(alike):
                    continue
                apart = _apart(value, claimed[rows], scale)
                self._check_at(f"{group} '{name}'", apart, rows)
                worst, count = max(worst, float(apart.max())), count + apart.size
        self.sampled = self.units
        self._note(Check("sampled devices", worst, RELATIVE, count, self.mpmath))

    def _check_at(self, what: str, apart: FloatArray, rows: npt.NDArray[np.int64]) -> None:
        if float(apart.max()) > RELATIVE:
            at = int(np.argmax(apart))
            self._fail(f"{what}[device {rows[at]}]: off by {float(apart[at]):.3g} (relative), in extended precision")

    # -- decisions around the one returned

    def _challenge(self, decision: Decision, lower: float) -> None:
        """Evaluate seeded decisions around this one: none that is feasible may lie below the bound."""
        size = len(self.problem.system)
        count = int(np.clip(200_000 // size, 2, TRIED))
        values = {}
        step = 10.0 ** self.rng.uniform(-8.0, 0.0, (count, 1))
        for variable in self.problem.variables:
            own = np.broadcast_to(np.asarray(decision[variable.name]), variable.lower.shape)
            moved = own + step * (variable.upper - variable.lower) * self.rng.standard_normal((count, own.size))
            moved = np.where(self.rng.random((count, own.size)) < 0.5, own, moved)
            moved = np.clip(moved if variable.kind == "real" else np.rint(moved), variable.lower, variable.upper)
            values[variable.name] = moved
        try:
            tried = self._evaluated(Decision(values))
            if size > 1 and all(v.shape[-1] == size for v in values.values()):
                # devices that break budgets of their own go back to where they were
                good = np.ones((count, size), dtype=bool)
                for slack in tried.slack.values():
                    if np.shape(slack) == (count, size):
                        good &= np.asarray(slack) >= 0.0
                for name, value in values.items():
                    values[name] = np.where(good, value, np.asarray(decision[name]))
                tried = self._evaluated(Decision(values))
        except InputError:
            self.unverified.append("decisions around this one, which the problem does not evaluate together")
            return
        self._none_below("feasible decisions nearby against the bound", tried, lower)

    def _searched(self, lower: float) -> None:
        """Evaluate random points of the problem's search, completed: none that is feasible may lie below the bound."""
        search = self.problem.capabilities().search
        if search is None or len(self.problem.system) > self.units:
            return
        least, most = np.broadcast_arrays(np.asarray(search.lower), np.asarray(search.upper))
        share = self.rng.random((COMPLETED, least.size)) ** self.rng.uniform(0.1, 2.0, (COMPLETED, 1))
        x = least + share * (most - least)
        whole = np.broadcast_to(np.asarray(search.kind) != "real", least.shape)
        with np.errstate(all="ignore"):
            tried = self._evaluated(search.complete(np.where(whole, np.rint(x), x)))
        self._none_below("feasible decisions found by search against the bound", tried, lower)

    def _evaluated(self, decision: Decision) -> Evaluation:
        with np.errstate(all="ignore"):
            return self.problem.evaluate(decision)

    def _none_below(self, name: str, tried: Evaluation, lower: float) -> None:
        # a budget exceeded by what feasible decisions are allowed may buy as much of the objective
        objective = np.asarray(tried.objective)[np.asarray(tried.feasible(EDGE))]
        self._check(
            name,
            _short(objective, lower),
            tell=lambda at: f": one has {float(objective[at]):.17g}, the bound is {lower:.17g}",
        )

    # -- bounds

    def _bound(self, lower: float, offered: Capabilities) -> None:
        """Recompute the bound from the certificate."""
        kind = self.result.certificate.kind
        if kind == "relaxation":
            self.unverified.append("the bound of a relaxation")
            return
        if self.result.method == "convex" or (offered.convex is not None and offered.sums is None):
            found: float | None = self._convex(offered)
        elif offered.staged is not None and offered.sums is None:
            found = self._staged(offered.staged)
        elif kind == "branch" and offered.shared is not None:
            found = self._shared(offered)
        elif kind == "branch" and offered.selection is not None:
            found = self._selection(offered)
        elif kind in ("exact", "dual") and offered.sums is not None and priced_of(offered) is not None:
            found = self._sums(offered)
        else:
            self._fail(f"a certificate of kind '{kind}', for which the problem has no structure")
        if found is not None:
            self.lower = found

    def _claim(self, found: float, terms: float, arithmetic: str, *, loose: bool = False) -> None:
        """The stored bound against a recomputed one; `terms` is the size of what was added up."""
        lower = self.result.lower_bound
        assert lower is not None
        room = (RELATIVE if loose else ROUNDING) * terms / max(abs(lower), 1e-300)
        self._check(
            "bound recomputed" if loose else "bound from its stored parts",
            _short(found, lower),
            arithmetic,
            allowed=max(RELATIVE, room),
            tell=lambda at: f": stored {lower:.17g}, recomputed {found:.17g}",
        )

    def _convex(self, offered: Capabilities) -> float:
        """The dual function at the decision; the other parts of it from a fresh solution, where they are needed."""
        assert offered.convex is not None and self.result.decision is not None and self.result.lower_bound is not None
        found = offered.convex.lower_bound(self.result.decision)
        if found < self.result.lower_bound * (1.0 - RELATIVE):
            minimize_convex(offered.convex)
            found = max(found, offered.convex.lower_bound(self.result.decision))
        self._claim(found, abs(found), "float64, dual function", loose=True)
        return found

    # -- stages

    def _staged(self, staged: Staged) -> float:
        """A table of what remains after every stage: no more than any action costs, and the bound at the starts."""
        self._paths(staged)
        table, shape = self.result.certificate.search, (staged.stages, staged.units, staged.states)
        if table is None:
            # a file holds no table: another induction
            values = minimize_staged(staged).unit_values
            self._claim(math.fsum(values), float(np.abs(values).sum()), "float64, exact sums", loose=True)
            return math.fsum(values)
        if not isinstance(table, CostToGo) or table.values.shape != shape:
            self._fail(f"certificate.search is no table of {staged.stages} stages, {staged.units} units and states")
        size = max(1, 4_000_000 // staged.states)
        for first in range(0, staged.units, size):
            units = slice(first, min(first + size, staged.units))
            after = np.zeros((units.stop - units.start, staged.states))
            for stage in reversed(range(staged.stages)):
                claimed = table.values[stage, units]
                self._check(
                    "what remains, no more than any action costs",
                    _short(remaining(staged, stage, units, after), claimed),
                    tell=lambda at, stage=stage, first=first: (  # type: ignore[misc]
                        f": stage {stage}, unit {first + at // staged.states}, state {at % staged.states}"
                    ),
                )
                after = claimed
        values = table.values[0, np.arange(staged.units), staged.start]
        self._claim(math.fsum(values), float(np.abs(values).sum()), "float64, exact sums")
        return math.fsum(values)

    def _paths(self, staged: Staged) -> None:
        """Random paths: what the stages cost together is what the problem says of the decision."""
        each, everyone, apart = np.arange(staged.units), slice(0, staged.units), []
        for _ in range(COMPLETED):
            state, total, path = staged.start, [], []
            for stage in range(staged.stages):
                arriving = staged.arriving(stage, everyone)
                cost = np.full((staged.successor.shape[0], staged.units), np.inf)
                for action, successor in enumerate(staged.successor[:, state]):
                    moving = staged.moving(stage, action, everyone)
                    moving = moving[:, 0] if moving.shape[1] == 1 else moving[each, state]
                    cost[action] = np.where(successor >= 0, moving + arriving[each, successor], np.inf)
                taken = np.where(np.isfinite(cost), self.rng.random(cost.shape), -1.0).argmax(axis=0)
                total.append(cost[taken, each])
                state = staged.successor[taken, state]
                path.append(state)
            if not np.all(np.isfinite(total)):
                continue
            evaluation = self.problem.evaluate(Decision(staged.complete(np.array(path))))
            if not bool(evaluation.feasible()):
                self._fail("a path that the stages allow is no feasible decision")
            apart.append(float(_apart(float(evaluation.objective), math.fsum(np.ravel(total)))))
        if apart:
            self._check("objectives along random paths", np.array(apart))

    # -- sums over units

    def _prices(self, sums: Sums, certificate: Certificate) -> tuple[FloatArray, FloatArray]:
        """Prices and multipliers of a certificate, checked against each other."""
        for what, named in (("prices", certificate.prices), ("multipliers", certificate.multipliers)):
            if set(named) != set(sums.features) and (named or what == "prices"):
                self._fail(f"certificate.{what} are for {sorted(named)}, the sums are {sorted(sums.features)}")
        prices = np.array([certificate.prices[name] for name in sums.features])
        base = sums.numerator - certificate.ratio * sums.denominator
        # a saved certificate holds no multipliers: they are what the prices have beside the objective's own
        multipliers = prices - base
        if certificate.multipliers:
            multipliers = np.array([certificate.multipliers[name] for name in sums.features])
        least = np.where(np.isfinite(sums.limits), -multipliers, np.abs(multipliers))
        size = max(float(np.abs(prices).max()), 1e-300)
        self._check(
            "multipliers of limits, at least 0",
            np.maximum(least, 0.0) / size,
            allowed=ROUNDING,
            tell=lambda at: f": {sums.features[at]} has {multipliers[at]:.17g}",
        )
        self._check(
            "prices: objective, ratio and multipliers",
            np.abs(prices - base - multipliers) / _size(prices, multipliers),
            tell=lambda at: f": {sums.features[at]} has {prices[at]:.17g}, expected {(base + multipliers)[at]:.17g}",
        )
        return prices, np.maximum(multipliers, 0.0)

    def _sums(self, offered: Capabilities) -> float | None:
        """Unit bounds at prices, their sum, and what it says of the objective."""
        certificate, sums, whole = self.result.certificate, offered.sums, priced_of(offered)
        assert sums is not None and whole is not None
        prices, multipliers = self._prices(sums, certificate)
        priced = self._capped(sums, whole, certificate)
        claimed = certificate.unit_bounds
        if claimed is not None and np.shape(claimed) != (whole.units,):
            self._fail(f"certificate.unit_bounds has shape {np.shape(claimed)} for {whole.units} units")
        if claimed is None and np.any(multipliers > 0.0) and not certificate.caps:
            # a saved certificate holds no caps
            priced = self._own_caps(sums, whole)
        response = priced.respond(prices, gap=self._gap())
        self._features(sums, response)
        lower, gap = self.result.lower_bound, self._gap()
        assert lower is not None
        if claimed is None:
            found, size = self._of_units(sums, whole, multipliers, response.lower_bound)
            while found < lower - RELATIVE * size and gap > 1e-12:
                gap *= 1e-3
                found, size = self._of_units(sums, whole, multipliers, priced.respond(prices, gap=gap).lower_bound)
        else:
            self._claim(*self._of_units(sums, whole, multipliers, claimed), "float64, exact sums")
            if certificate.leaves is not None:
                unit_bounds = self._leaves(priced, prices, claimed, certificate.leaves)
            else:
                unit_bounds = self._answered(priced, prices, claimed, response.lower_bound)
            found, size = self._of_units(sums, whole, multipliers, unit_bounds)
        self._claim(found, size, "float64, exact sums", loose=True)
        return found

    def _of_units(
        self, sums: Sums, whole: Priced, multipliers: FloatArray, unit_bounds: FloatArray
    ) -> tuple[float, float]:
        """The bound that follows from those of the units, and the size of what is added up."""
        ratio, limited = self.result.certificate.ratio, np.isfinite(sums.limits)
        spent = multipliers[limited] * sums.limits[limited]
        excess = math.fsum([*unit_bounds, *(-spent), sums.numerator_offset, -ratio * sums.denominator_offset])
        size = float(np.abs(unit_bounds).sum() + np.abs(spent).sum()) + abs(sums.numerator_offset)
        found = sums.constant + self._objective_bound(sums, whole, ratio, excess)
        return found, size if sums.is_ratio else size / abs(sums.denominator_offset)

    def _objective_bound(self, sums: Sums, whole: Priced, ratio: float, excess: float) -> float:
        """Lower bound of N/D from N - ratio D >= excess."""
        if not sums.is_ratio:
            return excess / sums.denominator_offset

        def least(prices: FloatArray) -> float:
            if np.any(prices < 0.0) and getattr(whole, "nonnegative", False):
                return -np.inf
            return math.fsum(whole.respond(prices, gap=1e-9).lower_bound)

        if excess >= 0.0:
            most = sums.denominator_offset - least(0.0 - sums.denominator)
            return ratio + excess / most if most > 0.0 else np.inf
        # D from below: by the units, by the limits, and by N >= n where N/D < ratio
        floors = [sums.denominator_offset + least(sums.denominator)]
        j = np.flatnonzero(sums.denominator)
        if np.all(sums.denominator[j] < 0.0) and np.all(np.isfinite(sums.limits[j])):
            floors.append(sums.denominator_offset + math.fsum(sums.denominator[j] * sums.limits[j]))
        numerator = least(sums.numerator) + sums.numerator_offset
        if ratio > 0.0 and numerator > 0.0:
            floors.append(numerator / ratio)
        smallest = max(floors)
        return ratio + excess / smallest if smallest > 0.0 else -np.inf

    def _capped(self, sums: Sums, whole: Priced, certificate: Certificate) -> Priced:
        """The units within their caps, each of which must follow from what the others use at least."""
        priced: Any = whole
        for name, caps in certificate.caps.items():
            if name not in sums.features or np.shape(caps) != (whole.units,):
                self._fail(f"certificate.caps['{name}'] does not fit the problem's sums and units")
            j = sums.features.index(name)
            prices = (np.arange(len(sums.features)) == j).astype(np.float64)
            least = whole.respond(prices, gap=1e-10).lower_bound
            limit = float(sums.limits[j])
            left = limit - (math.fsum(least) - least)
            self._check(
                f"caps on {name}",
                np.maximum(left - caps, 0.0) / max(abs(limit), float(np.abs(least).sum())),
                tell=lambda at, left=left, caps=caps: f": unit {at} has {caps[at]:.17g} of {left[at]:.17g}",  # type: ignore[misc]
            )
            narrower = priced.capped(j, np.asarray(caps)) if hasattr(priced, "capped") else None
            if narrower is None:
                self._fail(f"certificate.caps['{name}']: the units cannot be capped")
            priced = narrower
        return priced

    def _own_caps(self, sums: Sums, whole: Priced) -> Priced:
        """The units within what the others leave of every limit."""
        priced: Any = whole
        for j in np.flatnonzero(np.isfinite(sums.limits)):
            if not hasattr(priced, "capped"):
                break
            least = whole.respond(np.eye(sums.limits.size)[j], gap=1e-9)
            room = float(sums.limits[j]) - math.fsum(least.lower_bound)
            priced = priced.capped(int(j), least.features[j] + max(room, 0.0)) or priced
        return priced

    def _gap(self) -> float:
        """The relative gap that the solver left to the units."""
        return max(0.25 * self.result.certificate.tolerance, 1e-12) or 5e-7

    def _lower_bounds(self, priced: Priced, prices: FloatArray, gap: float) -> FloatArray:
        """Unit bounds of a fresh search; boxes that it left open are halved until they are settled."""
        response = priced.respond(prices, gap=gap, keep=isinstance(priced, BoxesPriced))
        leaves, value = response.leaves, response.value
        if not isinstance(priced, BoxesPriced) or leaves is None:
            return response.lower_bound
        target = np.where(np.isfinite(value), value - gap * np.abs(value), np.inf)[leaves.unit]
        some = np.flatnonzero(leaves.bound < target)
        bound = leaves.bound.copy()
        if some.size:
            open_ = Leaves(leaves.names, leaves.unit[some], leaves.low[:, some], leaves.high[:, some], target[some])
            bound[some] = np.maximum(bound[some], self._box_bounds(priced.boxes, prices[:, None], open_))
        least = value.copy()
        np.minimum.at(least, leaves.unit, bound)
        return least

    def _answered(self, priced: Priced, prices: FloatArray, claimed: FloatArray, found: FloatArray) -> FloatArray:
        """Unit bounds of a fresh search, finer where it falls short of the stored ones."""
        gap = self._gap()
        for _ in range(3):
            short = np.flatnonzero(_short(found, claimed) > RELATIVE)
            if short.size == 0:
                break
            gap = max(1e-3 * gap, 1e-13)
            if isinstance(priced, BoxesPriced):
                found = np.maximum(found, self._lower_bounds(priced, prices, gap))
                continue
            found = found.copy()
            found[short] = np.maximum(found[short], priced.respond(prices, units=short, gap=gap).lower_bound)
        self._check(
            "unit bounds against a fresh search",
            _short(found, claimed),
            tell=lambda at: f": unit {at} has {claimed[at]:.17g}, recomputed {found[at]:.17g}",
        )
        return found

    def _features(self, sums: Sums, response: Response) -> None:
        """The sums of the units' features must give the objective of the decision they belong to."""
        if not np.all(response.feasible):
            return
        evaluation = self.problem.evaluate(Decision(response.decision))
        objective = sums.objective(np.array([math.fsum(row) for row in response.features]))
        self._check("sums of features against the objective", _apart(np.asarray(evaluation.objective), objective))

    # -- leaves

    def _leaves(self, priced: Priced, prices: FloatArray, claimed: FloatArray, leaves: Leaves) -> FloatArray:
        """Cover, bounds and points of leaves; return the units' least bounds."""
        if leaves.unit.size and not (leaves.unit.min() >= 0 and leaves.unit.max() < priced.units):
            self._fail("certificate.leaves name units that do not exist")
        if isinstance(priced, CellsPriced):
            self._cells(priced.cells, prices, leaves, claimed)
        elif isinstance(priced, BoxesPriced):
            self._boxes(priced.boxes, prices, leaves)
        else:
            self.unverified.append("leaves of a priced response of the problem's own; fresh unit bounds instead")
            return self._answered(priced, prices, claimed, priced.respond(prices, gap=self._gap()).lower_bound)
        least = np.full(priced.units, np.inf)
        np.minimum.at(least, leaves.unit, leaves.bound)
        self._check(
            "unit bounds: the least of their leaves",
            _apart(least, claimed),
            tell=lambda at: f": unit {at} has {claimed[at]:.17g}, its leaves {least[at]:.17g}",
        )
        return least

    def _cells(self, cells: Cells, prices: FloatArray, leaves: Leaves, claimed: FloatArray) -> None:
        self._covered(cells, prices, leaves, claimed)
        label = leaves.low[0].astype(np.int64)
        found, low, high = np.empty(len(leaves)), leaves.low[1], leaves.high[1]
        for start in range(0, len(leaves), CHUNK):
            part = slice(start, start + CHUNK)
            found[part] = _cell_bounds(cells, prices, leaves.unit[part], label[part], low[part], high[part])
        self._check(
            "bounds of leaves",
            _short(found, leaves.bound),
            tell=lambda at: f": leaf {at} of unit {leaves.unit[at]} has {leaves.bound[at]!r}, now {found[at]!r}",
        )
        share = self.rng.random(len(leaves))
        points = (low, high, 0.5 * (low + high), low + share * (high - low))
        for x in points:
            with np.errstate(all="ignore"):
                value = cells.value(prices, leaves.unit, label, x, cells.probe(leaves.unit, x))
            self._check_points("values in leaves", np.asarray(value), leaves.bound, leaves.unit)
        self._in_extended_cells(cells, prices, leaves, (low, high, points[-1]))

    def _check_points(self, name: str, value: FloatArray, bound: FloatArray, unit: Any, how: str = "float64") -> None:
        """No value at a point of a leaf lies below its bound."""
        self._check(
            name,
            _short(value, np.where(np.isfinite(value), bound, -np.inf)),
            how,
            tell=lambda at: f": unit {unit[at]} has the value {value[at]:.17g} in a leaf of bound {bound[at]:.17g}",
        )

    def _decisive(self, leaves: Leaves) -> npt.NDArray[np.int64]:
        """The leaf of least bound of every unit, or of a sample of them."""
        order = np.lexsort((leaves.bound, leaves.unit))
        unit = leaves.unit[order]
        rows = order[np.concatenate([[True], unit[1:] != unit[:-1]])]
        most = max(self.units // POINTS, 1)
        return rows if rows.size <= most else np.sort(self.rng.choice(rows, most, replace=False))

    def _in_extended_cells(
        self, cells: Cells, prices: FloatArray, leaves: Leaves, points: tuple[FloatArray, ...]
    ) -> None:
        """Values at points of the decisive leaves in extended precision, where the formulas take it."""
        rows = self._decisive(leaves)
        unit, label = np.tile(leaves.unit[rows], POINTS), np.tile(leaves.low[0, rows].astype(np.int64), POINTS)
        x = extended(np.concatenate([p[rows] for p in points]), self.digits)
        try:
            with np.errstate(all="ignore"):
                value = np.asarray(cells.value(prices, unit, label, x, cells.probe(unit, x)), dtype=np.float64)
        except _FOREIGN:
            # what a unit's search does in floats alone is checked by evaluating what it found
            return
        bound = np.tile(leaves.bound[rows], POINTS)
        value = np.where(np.isnan(value), np.inf, value)
        self._check_points("values in decisive leaves", value, bound, unit, self.mpmath)

    def _covered(self, cells: Any, prices: FloatArray, leaves: Leaves, claimed: FloatArray) -> None:
        """Leaves hold all that the cells cover; what these leave out is bounded."""
        every = slice(0, cells.units)
        start = cells.cover(prices, every)
        must = [(start.unit, start.label.astype(np.float64), start.low, start.high)]
        left_out = getattr(cells, "left_out", None)
        if left_out is not None:
            rest = left_out(prices, every)
            must.append((rest.unit, rest.low[0], rest.low[1], rest.high[1]))
        unit, label, low, high = (np.concatenate(columns) for columns in zip(*must, strict=True))
        holes = ~_inside(unit, label, low, high, leaves)
        self._check(
            "leaves cover the range",
            holes.astype(np.float64),
            "exact",
            allowed=0.0,
            tell=lambda at: (
                f": unit {unit[at]} is not covered between {low[at]:.17g} and {high[at]:.17g} at label {label[at]:g}"
            ),
        )
        if getattr(cells, "cover_all", None) is None:
            return
        whole = cells.cover_all(prices, every)
        names = whole.unit, whole.label.astype(np.float64), whole.low, whole.high
        rows = np.flatnonzero(~_inside(*names, leaves))
        if rows.size:
            left = whole.take(rows)
            bound = _cell_bounds(cells, prices, left.unit, left.label, left.low, left.high)
            self._check("cells left out are no better", _short(bound, claimed[left.unit]))

    def _boxes(self, boxes: Boxes, prices: FloatArray, leaves: Leaves) -> None:
        if leaves.names != boxes.names:
            self._fail(f"certificate.leaves are over {leaves.names}, the units' variables are {boxes.names}")
        self._tiled(
            "leaves cover the range", leaves.unit, leaves.low, leaves.high, boxes.lower, boxes.upper, boxes.integer
        )
        column = prices[:, None]
        found = self._box_bounds(boxes, column, leaves)
        self._check(
            "bounds of leaves",
            _short(found, leaves.bound),
            "float64 intervals",
            tell=lambda at: f": leaf {at} of unit {leaves.unit[at]} has {leaves.bound[at]!r}, now {found[at]!r}",
        )
        for _ in range(2):
            value = self._box_values(boxes, column, leaves.unit, self._points(leaves.low, leaves.high, boxes.integer))
            self._check_points("values in leaves", value, leaves.bound, leaves.unit)
        rows = np.tile(self._decisive(leaves), POINTS)
        x = self._points(leaves.low[:, rows], leaves.high[:, rows], boxes.integer)
        try:
            value = self._box_values(boxes, column, leaves.unit[rows], [extended(row, self.digits) for row in x])
            self._enclosed(boxes, column, leaves, rows[: rows.size // POINTS])
        except _FOREIGN:
            return
        self._check_points("values in decisive leaves", value, leaves.bound[rows], leaves.unit[rows], self.mpmath)

    def _enclosed(self, boxes: Boxes, prices: FloatArray, leaves: Leaves, rows: npt.NDArray[np.int64]) -> None:
        """Intervals in float64 must hold those in extended precision, which are all but exact."""
        unit, low, high = leaves.unit[rows], leaves.low[:, rows], leaves.high[:, rows]
        own = np.broadcast_to(prices, (prices.shape[0], unit.size))
        with np.errstate(all="ignore"):
            wide, _ = boxes.terms(own, unit, Interval.variables(low, high))
            ends = extended(low, self.digits), extended(high, self.digits)
            near, _ = boxes.terms(own, unit, Interval.variables(*ends))
        if isinstance(wide, Interval) and isinstance(near, Interval):
            for outer, inner in ((near.low - wide.low, near.low), (wide.high - near.high, near.high)):
                outside = np.maximum(-np.asarray(outer, dtype=np.float64), 0.0)
                size = _size(np.asarray(inner, dtype=np.float64))
                self._check("intervals in float64 hold the exact ones", outside / size, self.mpmath, allowed=0.0)

    def _points(self, low: FloatArray, high: FloatArray, integer: npt.NDArray[np.bool_]) -> FloatArray:
        """A point of every box, one coordinate in four at an end."""
        share = np.clip(2.0 * self.rng.random(low.shape) - 0.5, 0.0, 1.0)
        x = np.clip(low + share * (high - low), low, high)
        return np.where(integer[:, None], np.clip(np.rint(x), low, high), x)

    @staticmethod
    def _box_values(boxes: Boxes, prices: FloatArray, unit: Any, x: Any) -> FloatArray:
        """Priced values at points; inf where one is not feasible."""
        with np.errstate(all="ignore"):
            value, excess = boxes.terms(np.broadcast_to(prices, (prices.shape[0], unit.size)), unit, list(x))
            feasible = np.ones(unit.size, dtype=bool)
            for g in excess:
                feasible &= np.asarray(g, dtype=np.float64) <= 0.0
            plain = np.broadcast_to(np.asarray(value, dtype=np.float64), unit.shape)
        return np.where(feasible & ~np.isnan(plain), plain, np.inf)

    def _box_bounds(self, boxes: Boxes, prices: FloatArray, leaves: Leaves) -> FloatArray:
        """Bounds of boxes from intervals; boxes that fall short of the claim are halved until their parts meet it."""
        claimed = leaves.bound
        found = np.full(len(leaves), np.inf)
        rows, low, high = np.arange(len(leaves)), leaves.low, leaves.high
        for level in range(60):
            bound, least, most = np.empty(rows.size), np.empty_like(low), np.empty_like(high)
            for start in range(0, rows.size, 16_384):
                part = slice(start, start + 16_384)
                unit = leaves.unit[rows[part]]
                own = np.broadcast_to(prices, (prices.shape[0], unit.size))
                with np.errstate(all="ignore"):
                    box = enclose(
                        lambda x, own=own, unit=unit: boxes.terms(own, unit, x),  # type: ignore[misc]
                        low[:, part],
                        high[:, part],
                        tolerance=FEASIBILITY_TOLERANCE,
                        logarithmic=boxes.logarithmic,
                    )
                bound[part] = box.bound
                # along these only one end can be best
                least[:, part] = np.where(box.to_high, high[:, part], low[:, part])
                most[:, part] = np.where(box.to_low, low[:, part], high[:, part])
            left = _short(bound, claimed[rows]) > RELATIVE
            wide = (most > least).any(axis=0)
            # what shrank to a point is looked at once more
            again = left & ~wide & (high > low).any(axis=0)
            left &= wide
            if level == 59 or left.sum() > REFINED:
                left[:] = again[:] = False
            done = ~left & ~again
            np.minimum.at(found, rows[done], bound[done])
            if done.all():
                break
            halves = _halved(rows[left], least[:, left], most[:, left], boxes)
            points = rows[again], least[:, again], most[:, again]
            rows, low, high = (np.concatenate(pair, axis=-1) for pair in zip(halves, points, strict=True))
        return found

    def _tiled(
        self,
        name: str,
        unit: npt.NDArray[np.int64],
        low: FloatArray,
        high: FloatArray,
        lower: FloatArray,
        upper: FloatArray,
        integer: npt.NDArray[np.bool_],
    ) -> None:
        """Boxes of every unit lie within its range, do not overlap, and have its volume, in exact arithmetic."""
        units = lower.shape[1]
        if np.any(low < lower[:, unit]) or np.any(high > upper[:, unit]) or np.any(low > high):
            self._fail(f"{name}: a part reaches beyond the range")
        count = np.bincount(unit, minlength=units)
        order = np.argsort(unit, kind="stable")
        starts = np.cumsum(np.concatenate([[0], count]))
        few = float((count.astype(np.float64) ** 2).sum()) <= PAIRS
        wide = upper > lower
        for u in range(units):
            rows = order[starts[u] : starts[u + 1]]
            axes = np.flatnonzero(wide[:, u])
            ends = low[axes][:, rows], high[axes][:, rows]
            total = _volume(lower[axes, u][:, None], upper[axes, u][:, None], integer[axes])
            volume = _volume(*ends, integer[axes])
            if rows.size == 0 or volume != total:
                self._fail(
                    f"{name}: the parts of unit {u} have {float(volume / total):.17g} times the volume of its range"
                )
            if few and _overlaps(*ends, integer[axes]):
                self._fail(f"{name}: parts of unit {u} overlap")
            x = self._points(np.repeat(lower[:, [u]], 32, axis=1), np.repeat(upper[:, [u]], 32, axis=1), integer)
            inside = ((low[:, rows, None] <= x[:, None]) & (x[:, None] <= high[:, rows, None])).all(axis=0).any(axis=0)
            if not inside.all():
                self._fail(f"{name}: unit {u} has a hole at {x[:, int(np.argmin(inside))].tolist()}")
        self._note(Check(name, 0.0, 0.0, int(unit.size), "exact rational numbers"))

    # -- trees over shared variables

    def _shared(self, offered: Capabilities) -> float | None:
        """Parts of the shared variables' ranges, each bounded at its prices."""
        tree, shared = self.result.certificate.search, offered.shared
        assert shared is not None
        if tree is None:
            self.unverified.append("the bound: the result holds no tree over the shared variables")
            return None
        if not isinstance(tree, SharedTree) or tree.names != shared.names:
            self._fail("certificate.search is no tree over the problem's shared variables")
        lower, upper = shared.lower[:, None], shared.upper[:, None]
        parts = np.zeros(tree.bound.size, dtype=np.int64)
        self._tiled("parts cover the shared variables", parts, tree.low.T, tree.high.T, lower, upper, shared.integer)
        rows = np.argsort(tree.bound, kind="stable")
        if rows.size > self.units:
            half = self.units // 2
            some = half + self.rng.choice(rows.size - half, self.units - half, replace=False)
            self.unverified.append(f"bounds of {rows.size - self.units} of {rows.size} parts, all but a sample")
            rows = np.sort(np.concatenate([rows[:half], rows[some]]))
        found = np.array([self._part(tree, int(row), offered) for row in rows])
        self._check(
            "bounds of parts",
            _short(found, tree.bound[rows]),
            tell=lambda at: f": part {rows[at]} has {tree.bound[rows[at]]:.17g}, recomputed {found[at]:.17g}",
        )
        least = float(tree.bound.min())
        self._claim(least, abs(least), "float64")
        return least

    def _part(self, tree: SharedTree, row: int, offered: Capabilities) -> float:
        """Bound of one part, in a search of its own."""
        assert offered.shared is not None
        sums, units = offered.shared.within(tree.low[row], tree.high[row])
        priced = priced_from(units)
        gap = 0.25 * self._gap()
        if tree.bound[row] == np.inf:
            answer = minimize_sums(sums, priced, gap=gap, rounds=0)
            if answer.undecided:
                self.unverified.append(f"that part {row} of the shared variables holds nothing feasible")
                return np.inf
            return np.inf if answer.value is None else -np.inf
        prices, multipliers = tree.prices[row], tree.multipliers[row]
        ratio = float(tree.ratio[row])
        expected = sums.numerator - ratio * sums.denominator + multipliers
        limited = np.isfinite(sums.limits)
        self._check("prices of parts", np.abs(prices - expected) / max(float(np.abs(prices).max()), 1e-300))
        if np.any(multipliers < 0.0) or np.any(multipliers[~limited] > 0.0):
            self._fail(f"part {row}: multipliers {multipliers.tolist()} for limits {sums.limits.tolist()}")
        found = -np.inf
        for _ in range(3):
            bounds = self._lower_bounds(priced, prices, gap)
            excess = math.fsum([*bounds, *(-multipliers[limited] * sums.limits[limited]), sums.numerator_offset])
            excess -= ratio * sums.denominator_offset
            found = max(found, sums.constant + self._objective_bound(sums, priced, ratio, excess))
            if float(_short(found, tree.bound[row])) <= RELATIVE:
                break
            gap *= 0.01
        return found

    # -- trees over selections

    def _selection(self, offered: Capabilities) -> float | None:
        """Nodes that cover all selections, each bounded by its knapsack at its price."""
        tree, sums, cells, selection = (
            self.result.certificate.search,
            offered.sums,
            offered.cells,
            offered.selection,
        )
        assert sums is not None and cells is not None and selection is not None
        self._prices(sums, self.result.certificate)
        if tree is None:
            self.unverified.append("the bound: the result holds no tree over selections")
            return None
        if not isinstance(tree, SelectionTree) or tree.state.shape != (len(tree), cells.units) or len(tree) == 0:
            self._fail("certificate.search is no tree over the problem's selections")
        checked = _Selections(self, tree, sums, cells, selection)
        checked.responses()
        checked.roots()
        checked.bounds()
        least = checked.covering()
        self._claim(least, abs(least), "float64")
        checked.drawn()
        checked.objectives()
        return least

    # -- infeasible problems

    def _infeasible(self) -> None:
        """What is in conflict cannot be met, and can be with the relaxations named."""
        result = self.result
        problem = self.problem
        baseline = self.problem.capabilities().baselines.get(result.method)
        if baseline is not None and baseline.instead is not None:
            # the conflicts are those of the problem that was solved in place of this one
            problem = baseline.instead(np.random.default_rng(result.seed))
        devices = [c for c in result.infeasibility if c.device is not None]
        shared = [c for c in result.infeasibility if c.device is None]
        if not devices and not shared:
            self.unverified.append("that nothing is feasible: the result names no conflict")
            return
        if len(devices) > self.units:
            devices = [devices[i] for i in self.rng.choice(len(devices), self.units, replace=False)]
        self._devices(problem, devices)
        for conflict in shared:
            self._conflict(problem, conflict)

    def _devices(self, problem: Problem, conflicts: list[Conflict]) -> None:
        """Conflicts of single devices."""
        offered = problem.capabilities()
        if not conflicts:
            return
        units = np.array([c.device for c in conflicts])
        if units.min() < 0 or units.max() >= len(problem.system):
            self._fail("infeasibility names a device that does not exist")
        unmet = self._unmet(problem, offered, units)
        if unmet is not None:
            self._check(
                "devices in conflict",
                1.0 - unmet.astype(np.float64),
                allowed=0.0,
                tell=lambda at: f": device {units[at]} has a feasible decision",
            )
        fields = {name for kind in problem.system.sections().values() for name in kind.model_fields}
        names = sorted({name for c in conflicts for name, value in c.relax.items() if value is not None} & fields)
        for name in names:
            some = [c for c in conflicts if c.relax.get(name) is not None]
            self._relaxed(problem, {name: {int(c.device): float(c.relax[name]) for c in some}}, f"relaxing {name}")  # type: ignore[arg-type]
        factored = [c for c in conflicts if c.factor is not None and set(c.budget) <= fields and c.budget]
        if factored:
            changes: dict[str, dict[int, float]] = {}
            for c in factored:
                for name, value in c.budget.items():
                    changes.setdefault(name, {})[int(c.device)] = value * float(c.factor)  # type: ignore[arg-type]
            self._relaxed(problem, changes, "all budgets together times their factor")

    def _unmet(
        self, problem: Problem, offered: Capabilities, units: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.bool_] | None:
        """Whether units have no feasible decision, by a fresh proof; None where the problem's structure cannot say."""
        priced = priced_of(offered)
        if priced is None or offered.sums is None:
            if offered.convex is not None:
                return np.full(units.size, not bool(problem.evaluate(offered.convex.decision()).feasible()))
            return None
        if offered.selection is not None and offered.cells is not None:
            # a unit that can be left out is in conflict where it cannot be taken even alone
            j = int(np.flatnonzero(np.isfinite(offered.sums.limits))[0])
            least = respond(offered.cells, np.eye(len(offered.sums.features))[j], gap=1e-9).lower_bound[units]
            return ~(least <= offered.sums.limits[j])
        if priced.units != len(problem.system):
            # units are not the devices that conflicts name
            return None
        response = priced.respond(offered.sums.numerator, units=units, gap=1e-3)
        return ~response.feasible & (response.lower_bound == np.inf)

    def _relaxed(self, problem: Problem, changes: Mapping[str, Mapping[int, float]], what: str) -> None:
        """Some devices with other budgets have feasible decisions."""
        system = problem.system
        owners = {key: name for name, kind in system.sections().items() for key in kind.model_fields}
        fields = {}
        units: list[int] = []
        for name, by_device in changes.items():
            values = np.array(getattr(getattr(system, owners[name]), name), dtype=np.float64)
            for device, value in by_device.items():
                values[device] = value * (1.0 + 10.0 * RELATIVE)
            fields[name] = values
            units = sorted({*units, *by_device})
        which = np.array(units)
        relaxed = problem.with_system(system.with_(**fields))
        unmet = self._unmet(relaxed, relaxed.capabilities(), which)
        if unmet is not None:
            self._check(
                what,
                unmet.astype(np.float64),
                allowed=0.0,
                tell=lambda at: f": device {which[at]} is still without a feasible decision",
            )

    def _conflict(self, problem: Problem, conflict: Conflict) -> None:
        """A conflict of limits on sums."""
        offered = problem.capabilities()
        if conflict.binding in offered.thresholds:
            self._threshold(offered.thresholds[conflict.binding], conflict)
            return
        sums, priced = offered.sums, priced_of(offered)
        if offered.shared is not None:
            # between all ends of the shared variables: where not even that relaxation has a decision
            sums, units = offered.shared.within(offered.shared.lower, offered.shared.upper)
            priced = priced_from(units)
            answer = minimize_sums(sums, priced, gap=1e-3, rounds=0)
            if answer.value is not None or answer.undecided:
                self.unverified.append(
                    f"that there is nothing feasible between the shared variables' ends ({conflict.text})"
                )
                return
        if not conflict.relax or sums is None or priced is None:
            self.unverified.append(f"that there is nothing feasible ({conflict.text})")
            return
        if any(name not in sums.features for name in conflict.relax):
            self._fail(f"infeasibility: {conflict.binding} is no sum of the problem")
        at = {name: sums.features.index(name) for name in conflict.relax}
        if len(at) > 1:
            self._together(conflict, at, sums, priced)
            return
        (name, j), *_ = at.items()
        some = None if offered.selection is None else np.flatnonzero(offered.selection.required)
        gap = 1e-10 if getattr(priced, "sharp", False) else 1e-6
        least = priced.respond(np.eye(len(sums.features))[j], units=some, gap=gap)
        together, limit, use = math.fsum(least.lower_bound), float(sums.limits[j]), math.fsum(least.value)
        claimed = conflict.relax[name]
        assert claimed is not None
        self._check(
            f"least {name} against its limit",
            _short(together, limit),
            tell=lambda index: f": {together:.17g} suffices, the limit is {limit:.17g}",
        )
        self._check(
            f"relaxing {name}",
            _short(claimed, use),
            allowed=max(RELATIVE, 2.0 * gap),
            tell=lambda index: f": {claimed:.17g} is said to do, {use:.17g} is the least found",
        )

    def _threshold(self, problem: Problem, conflict: Conflict) -> None:
        """A limit on all units together lies below the least value that another problem has."""
        name = conflict.binding
        claimed, given = conflict.relax.get(name), conflict.budget.get(name)
        section = next(key for key, kind in self.problem.system.sections().items() if name in kind.model_fields)
        if claimed is None or given != float(getattr(getattr(self.problem.system, section), name)):
            self._fail(f"infeasibility: the limit {name} is not {given!r}")
        least = solve(problem, gap=self._gap(), seed=0)
        if least.value is None or least.lower_bound is None:
            self.unverified.append(f"the least {name}")
            return
        self._check(
            f"least {name} against its limit",
            _short(least.lower_bound, given),
            tell=lambda at: f": {least.lower_bound:.17g} is proved, the limit is {given:.17g}",
        )
        self._check(
            f"relaxing {name}",
            _short(claimed, least.lower_bound),
            tell=lambda at: f": {claimed:.17g} is said to do, at least {least.lower_bound:.17g} is needed",
        )

    def _together(self, conflict: Conflict, at: Mapping[str, int], sums: Sums, priced: Priced) -> None:
        """Limits that can be kept one by one but not together."""

        def possible(limits: Mapping[str, float]) -> bool | None:
            trial = np.full(len(sums.features), np.inf)
            for name, j in at.items():
                trial[j] = limits.get(name, float(sums.limits[j]))
            answer = minimize_sums(replace(sums, limits=trial), priced, gap=1e-4, rounds=1)
            return None if answer.value is None and answer.undecided else answer.value is not None

        if possible({}) is not False:
            self._fail(f"infeasibility: the limits on {', '.join(at)} can be kept together")
        for name, value in conflict.relax.items():
            if value is not None and possible({name: value + 1e-6 * abs(value)}) is False:
                self._fail(f"infeasibility: {name} of {value!r} does not make the limits on {', '.join(at)} compatible")
        self._note(Check("limits in conflict", 0.0, 0.0, 1 + len(conflict.relax), "float64, fresh searches"))


# Parts ---------------------------------------------------------------------------------------------------------------


def _cell_bounds(
    cells: Cells, prices: FloatArray, unit: Any, label: Any, low: FloatArray, high: FloatArray
) -> FloatArray:
    """Bounds of cells, everything probed anew."""
    with np.errstate(all="ignore"):
        rows = CellList(unit, label, low, high, cells.probe(unit, low), cells.probe(unit, high))
        return cells.bound(prices, rows)[0]


def _inside(unit: Any, label: Any, low: FloatArray, high: FloatArray, leaves: Leaves) -> npt.NDArray[np.bool_]:
    """Whether intervals of (unit, label) lie within the union of the leaves."""
    order = np.lexsort((leaves.high[1], leaves.low[1], leaves.low[0], leaves.unit))
    of, at = leaves.unit[order], leaves.low[0, order]
    first, last = leaves.low[1, order], leaves.high[1, order]
    joined = np.zeros(order.size, dtype=bool)
    joined[1:] = (of[1:] == of[:-1]) & (at[1:] == at[:-1]) & (first[1:] <= last[:-1])
    begins = np.flatnonzero(~joined)
    if begins.size == 0:
        return np.zeros(np.size(unit), dtype=bool)
    ends = np.maximum.reduceat(last, begins)
    # every interval comes after the last segment that begins at or before it
    keys = [
        np.concatenate([np.zeros(begins.size), np.ones(np.size(unit))]),
        np.concatenate([first[begins], low]),
        np.concatenate([at[begins], label]),
        np.concatenate([of[begins], unit]),
    ]
    merged = np.lexsort(keys)
    is_segment = merged < begins.size
    latest = np.maximum.accumulate(np.where(is_segment, np.arange(merged.size), -1))
    segment = np.where(latest >= 0, merged[np.maximum(latest, 0)], 0)
    rows = merged[~is_segment] - begins.size
    segment, known = segment[~is_segment], latest[~is_segment] >= 0
    inside = np.zeros(np.size(unit), dtype=bool)
    same = (of[begins][segment] == unit[rows]) & (at[begins][segment] == label[rows])
    inside[rows] = known & same & (ends[segment] >= high[rows])
    return inside


def _volume(low: FloatArray, high: FloatArray, integer: npt.NDArray[np.bool_]) -> Fraction:
    """Exact sum of the volumes of boxes [coordinates, boxes]; whole coordinates count their numbers."""
    total = Fraction(0)
    for box_low, box_high in zip(low.T.tolist(), high.T.tolist(), strict=True):
        volume = Fraction(1)
        for a, b, whole in zip(box_low, box_high, integer, strict=True):
            volume *= Fraction(b) - Fraction(a) + int(whole)
        total += volume
    return total


def _overlaps(low: FloatArray, high: FloatArray, integer: npt.NDArray[np.bool_]) -> bool:
    """Whether two boxes share more than a face."""
    common: npt.NDArray[np.bool_] = np.ones((low.shape[1], low.shape[1]), dtype=bool)
    for a, b, whole in zip(low, high, integer, strict=True):
        start, end = np.maximum(a[:, None], a), np.minimum(b[:, None], b)
        common &= (start <= end) if whole else (start < end)
    np.fill_diagonal(common, False)
    return bool(common.any())


def _halved(
    rows: npt.NDArray[np.int64], low: FloatArray, high: FloatArray, boxes: Boxes
) -> tuple[npt.NDArray[np.int64], FloatArray, FloatArray]:
    """Both halves of boxes along their widest coordinate, relative to where they lie."""
    size = np.maximum(np.maximum(np.abs(low), np.abs(high)), 1e-300)
    axis = np.argmax((high - low) / size, axis=0)
    each = np.arange(rows.size)
    a, b = low[axis, each], high[axis, each]
    whole = boxes.integer[axis]
    middle = 0.5 * (a + b)
    with np.errstate(invalid="ignore"):
        middle = np.where(boxes.logarithmic[axis], np.clip(np.sqrt(a * b), a, b), middle)
    middle = np.where(whole, np.floor(middle), middle)
    left_high, right_low = high.copy(), low.copy()
    left_high[axis, each], right_low[axis, each] = middle, middle + whole
    return (
        np.concatenate([rows, rows]),
        np.concatenate([low, right_low], axis=1),
        np.concatenate([left_high, high], axis=1),
    )


class _Selections:
    """The tree behind a bound over selections (`jointopt.problem.SelectionTree`), node by node."""

    def __init__(self, verifier: _Verifier, tree: SelectionTree, sums: Sums, cells: Any, selection: Any) -> None:
        self.verifier, self.tree, self.sums, self.cells, self.selection = verifier, tree, sums, cells, selection
        self.resource = int(np.flatnonzero(np.isfinite(sums.limits))[0])
        self.limit = float(sums.limits[self.resource])
        self.mass = selection.mass
        self.alternatives = ~selection.required & ~selection.excluded

    def responses(self) -> None:
        """Least use of every unit, and the bound of its cost at every price."""
        features, tree, check = len(self.sums.features), self.tree, self.verifier._check
        found = respond(self.cells, np.eye(features)[self.resource], gap=1e-9)
        self.least, self.smallest = found.value, found.lower_bound
        check("least use of units", _short(self.least, tree.least), allowed=1e-8)
        if tree.unit_bounds.shape != (tree.prices.size, self.cells.units):
            self.verifier._fail("certificate.search.unit_bounds does not fit its prices and the units")
        if np.any(tree.prices < 0.0) or np.any(np.diff(tree.prices) <= 0.0):
            self.verifier._fail("certificate.search.prices must be at least 0 and sorted")
        self.table = np.empty(tree.unit_bounds.shape)
        step = max(1, CHUNK // self.cells.units)
        for start in range(0, tree.prices.size, step):
            some = slice(start, start + step)
            self.table[some] = self._answers(tree.prices[some], tree.unit_bounds[some])
        check(
            "unit bounds at the tree's prices",
            _short(self.table, tree.unit_bounds),
            tell=lambda at: f": price {at // self.cells.units}, unit {at % self.cells.units}",
        )

    def _answers(self, prices: FloatArray, claimed: FloatArray) -> FloatArray:
        """Fresh bounds [prices, units], finer where they fall short of the stored ones."""
        found = np.full(claimed.shape, -np.inf)
        row, unit = (index.ravel() for index in np.indices(claimed.shape))
        gap = 0.02 * max(self.verifier.result.certificate.tolerance, 1e-12)
        for _ in range(4):
            vectors = np.zeros((len(self.sums.features), row.size))
            vectors[0], vectors[self.resource] = 1.0, prices[row]
            answer = respond(self.cells.take(unit), vectors, gap=gap)
            found[row, unit] = np.maximum(found[row, unit], answer.lower_bound)
            short = np.flatnonzero(_short(found[row, unit], claimed[row, unit]) > RELATIVE)
            if short.size == 0:
                break
            row, unit, gap = row[short], unit[short], 1e-3 * gap
        return found

    def bounds(self) -> None:
        """The knapsack bound of every node at its price."""
        tree, verifier = self.tree, self.verifier
        priced = np.isfinite(tree.price)
        at = np.searchsorted(tree.prices, tree.price[priced])
        if not np.array_equal(tree.prices[np.minimum(at, tree.prices.size - 1)], tree.price[priced]):
            verifier._fail("certificate.search has a node at a price that is not in its table")
        found = np.full(len(tree), np.inf)
        nodes = np.flatnonzero(priced)
        # where even the least use of those taken is too much, nothing is left
        rows = np.flatnonzero(~priced)
        use = np.where(tree.state[rows] == 1, self.smallest, 0.0).sum(axis=1)
        found[rows] = np.where(use > self.limit * (1.0 - RELATIVE), np.inf, -np.inf)
        step = max(1, 2_000_000 // self.cells.units)
        drawn = np.full(len(tree), np.inf)
        for start in range(0, nodes.size, step):
            some = nodes[start : start + step]
            found[some], drawn[some] = self._knapsack(some, at[start : start + step])
        verifier._check(
            "bounds of nodes",
            _short(found, tree.bound),
            tell=lambda at: f": node {at} has {tree.bound[at]:.17g}, recomputed {found[at]:.17g}",
        )
        verifier._check(
            "objectives along the nodes' knapsacks",
            _short(drawn, tree.bound),
            tell=lambda at: f": node {at} has the bound {tree.bound[at]:.17g}, a mass has {drawn[at]:.17g}",
        )

    def _knapsack(self, nodes: npt.NDArray[np.int64], at: npt.NDArray[np.int64]) -> tuple[FloatArray, FloatArray]:
        """Return the least of each node's knapsack over its masses, and the least objective met at some masses."""
        tree, outer = self.tree, self.selection.outer
        cost, state, price = self.table[at], tree.state[nodes], tree.price[nodes]
        low, high = tree.low[nodes, None], tree.high[nodes, None]
        with np.errstate(invalid="ignore"):
            base = np.where(state == 1, cost, 0.0).sum(axis=1) - price * self.limit
        mass = np.where(state == 1, self.mass, 0.0).sum(axis=1)
        free = (state == 0) & np.isfinite(cost)
        order = np.argsort(np.where(free, cost / self.mass, np.inf), axis=1, kind="stable")
        free = np.take_along_axis(free, order, axis=1)
        more = np.where(free, np.take_along_axis(cost, order, axis=1), 0.0)
        wide = np.where(free, self.mass[order], 0.0)
        after, until = base[:, None] + np.cumsum(more, axis=1), mass[:, None] + np.cumsum(wide, axis=1)
        slope = np.where(free, more / self.mass[order], 0.0)
        offset = after - slope * until
        # sums of masses in another order differ by rounding
        loose = 0.5e-12 * np.maximum(high, 1e-300)
        left, right = np.maximum(until - wide - loose, low), np.minimum(until + loose, high)
        valid = free & (left <= right) & np.isfinite(base)[:, None]
        ends = np.where(valid, left, 1.0), np.where(valid, right, 1.0)
        flat = np.where(valid, offset, 0.0), np.where(valid, slope, 0.0)
        with np.errstate(all="ignore"):
            value = np.where(valid, outer.least(*flat, *ends), np.inf)
            bound = value.min(axis=1, initial=np.inf)
            drawn = np.full(nodes.size, np.inf)
            for share in (0.0, 0.25, 0.5, 0.75, 1.0):
                m = ends[0] + share * (ends[1] - ends[0])
                reached = np.where(valid, outer.value(flat[0] + flat[1] * m, m), np.inf)
                drawn = np.fmin(drawn, reached.min(axis=1, initial=np.inf))
            # nothing is free: one selection
            alone = ~free.any(axis=1) & (mass >= low[:, 0] - loose[:, 0]) & (mass <= high[:, 0] + loose[:, 0])
            whole = np.asarray(outer.value(base, np.maximum(mass, 1e-300)))
        whole = np.where(alone & np.isfinite(base), whole, np.inf)
        return np.where(alone, whole, bound), np.where(alone, whole, drawn)

    def covering(self) -> float:
        """The nodes hold all selections; return the least bound of those that stand for them."""
        tree = self.tree
        if np.any(tree.parent >= np.arange(len(tree))) or np.any(tree.parent < -1):
            self.verifier._fail("certificate.search: a node comes before its parent")
        children: list[list[int]] = [[] for _ in range(len(tree))]
        bound = tree.bound.copy()
        for node in range(len(tree)):
            parent = int(tree.parent[node])
            if parent >= 0:
                children[parent].append(node)
                # what bounds a set bounds its parts
                bound[node] = max(bound[node], bound[parent])
        # a node that its children do not cover stands for itself
        self.standing = np.array([not (c and self._covers(node, c)) for node, c in enumerate(children)])
        self.verifier._note(Check("nodes cover all selections", 0.0, 0.0, len(tree), "exact"))
        return float(bound[self.standing].min())

    def roots(self) -> None:
        """Nodes without a parent: same units decided, for good reason; masses without a hole."""
        tree, selection, fail = self.tree, self.selection, self.verifier._fail
        roots = np.flatnonzero(tree.parent < 0)
        if roots.size == 0:
            fail("certificate.search has no root")
        state = tree.state[roots[0]]
        if np.any(tree.state[roots] != state):
            fail("certificate.search: its roots differ in the units decided")
        taken, left = (state == 1) & ~selection.required, (state == -1) & ~selection.excluded
        left &= ~(self.smallest > self.limit * (1.0 - RELATIVE))
        for units, what in ((taken, "taken"), (left, "left out")):
            if units.any():
                fail(f"certificate.search: unit {int(np.argmax(units))} is {what} from the start without a reason")
        inside, free = float(self.mass[state == 1].sum()), self.mass[state == 0]
        first = inside if inside > 0.0 else float(free.min(initial=np.inf))
        last = inside + float(free.sum())
        order = roots[np.argsort(tree.low[roots], kind="stable")]
        reached = first
        for node in order:
            if tree.low[node] > reached:
                break
            reached = max(reached, float(tree.high[node]))
        slack = 1e-12 * last
        if tree.low[order[0]] > first + slack or reached < last - slack:
            fail(f"certificate.search: masses above {reached!r} of {first!r} to {last!r} are in no root")

    def _covers(self, parent: int, children: list[int]) -> bool:
        """Whether every selection of a node, in order among interchangeable units, is one of a child's."""
        tree = self.tree
        state = tree.state[parent]
        wide = [c for c in children if tree.low[c] <= tree.low[parent] and tree.high[c] >= tree.high[parent]]
        states = tree.state[wide]

        def holds(part: npt.NDArray[np.int8] | None) -> bool:
            if part is None:
                return True
            return bool(np.any(np.all((states == 0) | (states == part), axis=1))) if len(wide) else False

        if holds(state):
            return True
        split = np.flatnonzero((state == 0) & np.all(states != 0, axis=0)) if len(wide) else np.empty(0, dtype=np.int64)
        return any(holds(self._decided(state, int(u), 1)) and holds(self._decided(state, int(u), -1)) for u in split)

    def _decided(self, state: npt.NDArray[np.int8], unit: int, how: int) -> npt.NDArray[np.int8] | None:
        """A node's selections that take a unit (or not): the units then decided; None where there are none."""
        out = state.copy()
        out[unit] = how
        if not self.alternatives[unit]:
            return out
        # of interchangeable units the first are taken
        number = np.arange(state.size)
        others = (self.selection.kind == self.selection.kind[unit]) & self.alternatives
        others &= number < unit if how == 1 else number > unit
        if np.any(state[others] == -how):
            return None
        out[others] = how
        return out

    def drawn(self) -> None:
        """Random selections, in order among interchangeable units, lie in a node that stands."""
        tree, rng, selection = self.tree, self.verifier.rng, self.selection
        nodes = np.flatnonzero(self.standing)
        state, low, high = tree.state[nodes], tree.low[nodes], tree.high[nodes]
        usable = self.alternatives & (self.smallest <= self.limit)
        missing = []
        tried = 0
        for _ in range(64):
            taken = selection.required | (usable & (rng.random(self.cells.units) < rng.random()))
            for kind in np.unique(selection.kind[usable]):
                twins = np.flatnonzero((selection.kind == kind) & self.alternatives)
                count = int(taken[twins].sum())
                taken[twins] = np.arange(twins.size) < count
            if not taken.any() or float(self.smallest[taken].sum()) > self.limit:
                continue
            tried += 1
            mass = float(self.mass[taken].sum())
            sign = np.where(taken, 1, -1)
            within = (mass >= low * (1.0 - 1e-12)) & (mass <= high * (1.0 + 1e-12))
            missing.append(not np.any(within & np.all((state == 0) | (state == sign), axis=1)))
        if tried:
            self.verifier._check(
                "random selections lie in a node", np.array(missing, dtype=np.float64), "exact", allowed=0.0
            )

    def objectives(self) -> None:
        """Objective, mass and limit of selections as the problem evaluates their decisions."""
        rng, selection, problem = self.verifier.rng, self.selection, self.verifier.problem
        able = self.alternatives & np.isfinite(self.smallest)
        prices = np.zeros(len(self.sums.features))
        apart = []
        for price in rng.choice(self.tree.prices, 8):
            order = rng.permutation(np.flatnonzero(able))
            taken = selection.required.copy()
            taken[order[self.smallest[taken].sum() + np.cumsum(self.smallest[order]) <= self.limit]] = True
            units = np.flatnonzero(taken)
            if units.size == 0:
                continue
            prices[0], prices[self.resource] = 1.0, price
            answer = respond(self.cells.take(units), prices, gap=1e-6)
            if not np.all(answer.feasible):
                continue
            parts, features = self.cells.complete(prices, units, answer.label, answer.x)
            full = {name: np.zeros(self.cells.units) for name in parts}
            for name, values in parts.items():
                full[name][units] = values
            objective = float(np.asarray(problem.evaluate(Decision(full)).objective))
            expected = float(selection.outer.value(math.fsum(features[0]), math.fsum(self.mass[units])))
            if math.isfinite(expected):
                apart.append(float(_apart(objective, expected)))
        if apart:
            self.verifier._check("objectives of selections", np.array(apart))

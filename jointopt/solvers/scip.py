"""An independent global solver for small problems: their functions traced into SCIP.

`Problem.evaluate` is run on expressions of SCIP, each with a range that holds its values. The ranges decide comparisons
where they can, size the terms that switch choices (big M), and scale every intermediate result: a result that enters a
product or a function becomes a variable of its own, divided by its size, since SCIP's tolerances are absolute (1e-6).
What cannot be written for SCIP, special functions above all, is refused by name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import numpy as np

from jointopt.arithmetic.elementwise import Elementwise, Kind
from jointopt.decision import Array, Decision
from jointopt.errors import InputError, MissingExtraError, is_real, is_whole
from jointopt.problem import Problem, Variable

__all__ = ["Condition", "Ranged", "ScipKind", "minimize_scip"]

WIDER = 1e-9
"""Share by which ranges are widened, against rounding."""
STRICT = 1e-6
"""Share of its range by which an expression must keep away from where a function has no value."""
FAR = 1e9
"""Ranges wider than this, in units of a typical value, are left open: SCIP cannot use them."""


class Ranged:
    """An expression of SCIP with bounds of its values and a typical value.

    `least`, where not empty, are expressions whose least one this is: at least 0 exactly where all of them are.
    """

    __slots__ = ("_build", "_expression", "atom", "high", "least", "low", "typical", "whole")

    def __init__(
        self, build: Any, low: float, high: float, typical: float, *, atom: bool = False, whole: bool = False
    ) -> None:
        self._build, self._expression = build, None
        self.low, self.high, self.typical = low, high, typical
        self.atom: Any = self if atom else None
        self.whole = whole
        self.least: tuple[Any, ...] = ()

    @property
    def expression(self) -> Any:
        """The expression, built when it is first needed."""
        if self._expression is None:
            self._expression = self._build() if callable(self._build) else self._build
        return self._expression

    def __repr__(self) -> str:
        return f"Ranged([{self.low:g}, {self.high:g}], about {self.typical:g})"


class Condition:
    """A comparison ``left < 0`` (or <=) that the ranges do not decide, or a combination of such."""

    __slots__ = ("binary", "denied", "left", "typical")

    def __init__(self, left: Any, typical: bool, binary: Any = None, denied: Any = None) -> None:
        self.left, self.typical, self.binary, self.denied = left, typical, binary, denied


Element = Any  # float or Ranged
Truth = Any  # bool or Condition


class ScipKind(Kind):
    """Expressions of one SCIP model."""

    name = "SCIP expressions"

    def __init__(self, model: Any) -> None:
        super().__init__()
        try:
            import pyscipopt
        except ImportError:
            raise MissingExtraError("pyscipopt", "scip", "solving with SCIP") from None
        self.scip: Any = pyscipopt
        self.model = model

    # ------------------------------------------------------------------ variables

    def number(self, element: Element) -> float:
        """Return a constant."""
        return element if isinstance(element, float) else super().number(element)

    def variable(self, low: float, high: float, kind: str) -> Element:
        """Return a decision variable; inside, a real one runs from low/high to 1 or from -1 to 1."""
        if low == high:
            return float(low)
        middle = 0.5 * (low + high)
        if kind != "real":
            binary = low == 0.0 and high == 1.0
            v = self.model.addVar(vtype="B" if binary else "I", lb=low, ub=high)
            return Ranged(1.0 * v, low, high, math.ceil(middle), atom=True, whole=True)
        size = max(abs(low), abs(high))
        v = self.model.addVar(lb=low / size, ub=high / size)
        return Ranged(size * v, low, high, middle, atom=True)

    def _new(self, low: float, high: float, typical: float) -> tuple[Any, float]:
        """Add a variable for values in a range; returns it and the size that it is multiplied by."""
        low, high = low - WIDER * abs(low), high + WIDER * abs(high)
        size = abs(typical) if typical != 0.0 and math.isfinite(typical) else 0.0
        finite = [abs(v) for v in (low, high) if math.isfinite(v)]
        if size == 0.0:
            size = max([v for v in finite if v > 0.0], default=1.0)
        elif len(finite) == 2 and max(finite) <= FAR * size:
            # the middle of the orders of magnitude between the typical and the largest
            size = math.sqrt(size * max(*finite, size))
        lb = low / size if math.isfinite(low) and abs(low) <= FAR * size else None
        ub = high / size if math.isfinite(high) and abs(high) <= FAR * size else None
        return self.model.addVar(lb=lb, ub=ub), size

    def atomic(self, x: Element) -> Element:
        """Return an expression as a number times a variable, adding the variable where it is not."""
        if isinstance(x, float):
            return x
        if x.atom is None:
            v, size = self._new(x.low, x.high, x.typical)
            self.model.addCons(v == x.expression / size)
            x.atom = Ranged(size * v, x.low, x.high, x.typical, atom=True, whole=x.whole)
        return x.atom

    # ------------------------------------------------------------------ constraints

    def keep(self, x: Element, size: float) -> None:
        """Ask for x >= 0, divided by a size."""
        if isinstance(x, float):
            if x < 0.0:
                # a constraint that no decision keeps
                zero = self.model.addVar(lb=0.0, ub=0.0)
                self.model.addCons(zero >= 1.0)
            return
        if x.least:
            for part in x.least:
                self.keep(part, size)
        elif x.low < 0.0:
            self.model.addCons(x.expression / size >= 0.0)

    def forbid(self, condition: Truth) -> None:
        """Ask that a condition be false."""
        if isinstance(condition, Condition):
            self.model.addCons(self._binary(condition) <= 0.0)

    def _binary(self, c: Condition) -> Any:
        """An expression that is 1 where the condition holds and 0 where it does not."""
        if c.binary is None and c.denied is not None:
            c.binary = 1.0 - self._binary(c.denied)
        if c.binary is None:
            left = c.left
            z = self.model.addVar(vtype="B")
            c.binary = 1.0 * z
            span = max(abs(left.low), abs(left.high))
            if not math.isfinite(span):
                raise InputError("comparison: of an expression without finite bounds, which SCIP cannot switch by")
            atom = self.atomic(left).expression / span
            self.model.addCons(atom <= max(left.high, 0.0) / span * (1.0 - z))
            self.model.addCons(atom >= min(left.low, 0.0) / span * z + self._step(left) / span * (1.0 - z))
        return c.binary

    def _step(self, x: Ranged) -> float:
        """Least positive value of a sum of whole variables with positive weights, else 0 (the bound is then free)."""
        terms = getattr(x.expression, "terms", None)
        if terms is None:
            return 0.0
        weights = []
        for term, weight in terms.items():
            variables = tuple(term.vartuple)
            if not variables:
                if weight != 0.0:
                    return 0.0
                continue
            if len(variables) > 1 or weight < 0.0 or variables[0].vtype() == "CONTINUOUS":
                return 0.0
            if variables[0].getLbOriginal() < 0.0:
                return 0.0
            if weight > 0.0:
                weights.append(weight)
        return min(weights, default=0.0)

    # ------------------------------------------------------------------ arithmetic

    def _add(self, a: Element, b: Element) -> Element:
        if isinstance(a, float) and isinstance(b, float):
            return a + b
        if isinstance(a, float):
            a, b = b, a
        if isinstance(b, float):
            if b == 0.0:
                return a
            out = Ranged(
                lambda: a.expression + b, a.low + b, a.high + b, a.typical + b, whole=a.whole and b.is_integer()
            )
        else:
            out = Ranged(
                lambda: a.expression + b.expression,
                a.low + b.low,
                a.high + b.high,
                a.typical + b.typical,
                whole=a.whole and b.whole,
            )
        return out

    def _scaled(self, a: Ranged, factor: float) -> Element:
        if factor == 0.0:
            return 0.0
        ends = sorted((a.low * factor, a.high * factor))
        out = Ranged(lambda: a.expression * factor, ends[0], ends[1], a.typical * factor, atom=a.atom is a)
        if a.atom is a:
            out.atom = out
        elif a.atom is not None:
            out.atom = self._scaled(a.atom, factor)
        out.whole = a.whole and factor.is_integer()
        return out

    def _subtract(self, a: Element, b: Element) -> Element:
        if a is b:
            return 0.0
        if isinstance(b, float):
            return self._add(a, -b)
        return self._add(a, self._scaled(b, -1.0))

    def _multiply(self, a: Element, b: Element) -> Element:
        if isinstance(a, float) and isinstance(b, float):
            return a * b
        if isinstance(a, float):
            return self._scaled(b, a)
        if isinstance(b, float):
            return self._scaled(a, b)
        if a is b:
            return self._power(a, 2.0)
        ends = [_times(x, y) for x in (a.low, a.high) for y in (b.low, b.high)]
        return Ranged(
            lambda: self.atomic(a).expression * self.atomic(b).expression,
            min(ends),
            max(ends),
            a.typical * b.typical,
            whole=a.whole and b.whole,
        )

    def _divide(self, a: Element, b: Element) -> Element:
        if isinstance(b, float):
            if isinstance(a, float):
                return float(np.divide(a, b))
            if b == 0.0:
                raise InputError("divide: an expression by 0")
            return self._scaled(a, 1.0 / b)
        inverse = self._power(b, -1.0)
        if isinstance(a, float):
            return self._scaled(inverse, a)
        ends = [_times(x, y) for x in (a.low, a.high) for y in (inverse.low, inverse.high)]
        return Ranged(
            lambda: self._quotient(a, b, min(ends), max(ends), a.typical * inverse.typical),
            min(ends),
            max(ends),
            a.typical * inverse.typical,
        )

    def _quotient(self, a: Ranged, b: Ranged, low: float, high: float, typical: float) -> Any:
        """Return q with q b = a: a product is easier on SCIP than a division."""
        v, size = self._new(low, high, typical)
        top, below = self.atomic(a), self.atomic(b)
        scale = abs(top.typical) or 1.0
        self.model.addCons(size * v * below.expression / scale == top.expression / scale)
        return size * v

    def _power(self, a: Element, b: Element) -> Element:
        if isinstance(b, float):
            if isinstance(a, float):
                return float(np.power(a, b))
            if b == 0.0:
                return 1.0
            if b == 1.0:
                return a
            if b == 0.5:
                return self._sqrt(a)
            even = b.is_integer() and int(b) % 2 == 0
            low, high = a.low, a.high
            if not b.is_integer():
                low = max(low, 0.0)
            if low < 0.0 < high and b < 0.0:
                raise InputError("divide: by an expression that may be 0 on both sides")
            with np.errstate(all="ignore"):
                ends = [float(np.power(np.float64(e), b)) for e in (low, high)]
                typical = float(np.power(np.float64(a.typical), b))
            if even and low < 0.0 < high:
                ends.append(0.0)
            ends = [math.inf if math.isnan(e) else e for e in ends]
            if b < 0.0 and low == 0.0:
                ends[0] = math.inf
            if b < 0.0 and high == 0.0:
                ends[1] = -math.inf
            if not math.isfinite(typical):
                typical = 1.0
            return Ranged(lambda: self._raised(a, b, typical), min(ends), max(ends), typical, whole=a.whole and b > 0.0)
        if isinstance(a, float):
            if a <= 0.0:
                raise InputError("power: of a base that is not above 0")
            return self._exp(self._scaled(b, math.log(a)))
        return self._exp(self._multiply(self._log(a), b))

    def _raised(self, a: Ranged, b: float, typical: float) -> Any:
        """Return a^b of the normalised variable: sizes are raised as numbers."""
        atom = self.atomic(a)
        size = abs(a.typical) or 1.0
        return (atom.expression / size) ** (int(b) if b.is_integer() else b) * size**b

    def _monotone(self, name: str, a: Ranged, f: Callable[[float], float], low: float, high: float) -> Ranged:
        """A rising function of SCIP's own."""
        function = getattr(self.scip, name)
        ends = [_safe(f, low), _safe(f, high)]
        typical = _safe(f, min(max(a.typical, low), high))
        return Ranged(lambda: function(self.atomic(a).expression), ends[0], ends[1], typical)

    def _exp(self, a: Element) -> Element:
        return math.exp(a) if isinstance(a, float) else self._monotone("exp", a, math.exp, a.low, a.high)

    def _log(self, a: Element) -> Element:
        if isinstance(a, float):
            return _safe(math.log, a)
        return self._monotone("log", a, math.log, max(a.low, 0.0), max(a.high, 0.0))

    def _sqrt(self, a: Element) -> Element:
        if isinstance(a, float):
            return _safe(math.sqrt, a)
        return self._monotone("sqrt", a, math.sqrt, max(a.low, 0.0), max(a.high, 0.0))

    def _abs(self, a: Element) -> Element:
        if isinstance(a, float):
            return abs(a)
        if a.low >= 0.0:
            return a
        if a.high <= 0.0:
            return self._scaled(a, -1.0)
        return Ranged(lambda: abs(self.atomic(a).expression), 0.0, max(-a.low, a.high), abs(a.typical), whole=a.whole)

    def _larger(self, a: Element, b: Element) -> Element:
        return self._scaled_any(self._smaller(self._scaled_any(a, -1.0), self._scaled_any(b, -1.0)), -1.0)

    def _scaled_any(self, a: Element, factor: float) -> Element:
        return a * factor if isinstance(a, float) else self._scaled(a, factor)

    def _smaller(self, a: Element, b: Element) -> Element:
        """min(a, b) = (a + b - |a - b|)/2, where the ranges do not say which."""
        if isinstance(a, float) and isinstance(b, float):
            return min(a, b)
        (a_low, a_high), (b_low, b_high) = _ends(a), _ends(b)
        if a is b or a_high <= b_low:
            return a
        if b_high <= a_low:
            return b

        def build() -> Any:
            difference = self._abs(self._subtract(a, b))
            return self._scaled(self._subtract(self._add(a, b), difference), 0.5).expression

        out = Ranged(build, min(a_low, b_low), min(a_high, b_high), min(_typical(a), _typical(b)))
        parts: list[Element] = []
        for x in (a, b):
            parts.extend(x.least if isinstance(x, Ranged) and x.least else (x,))
        out.least = tuple(parts)
        return out

    def _whole_part(self, a: Element, down: float) -> Element:
        """Round down (0), up (1) or to the nearest (1/2): a whole variable within the distance of it."""
        if isinstance(a, float):
            return float(np.floor(a) if down == 0.0 else np.ceil(a) if down == 1.0 else np.rint(a))
        if a.whole:
            return a
        if not (math.isfinite(a.low) and math.isfinite(a.high)):
            raise InputError("floor: of an expression without finite bounds")
        v = self.model.addVar(vtype="I", lb=math.floor(a.low), ub=math.ceil(a.high))
        self.model.addCons(self.atomic(a).expression - v >= -down)
        self.model.addCons(self.atomic(a).expression - v <= 1.0 - down)
        return Ranged(1.0 * v, math.floor(a.low), math.ceil(a.high), round(a.typical), atom=True, whole=True)

    # ------------------------------------------------------------------ comparisons and choices

    def _below(self, a: Element, b: Element, strict: bool) -> Truth:
        """Compare, a < b or a <= b. Where they meet, SCIP may take either side of an undecided one."""
        left = self._subtract(a, b)
        if isinstance(left, float):
            return left < 0.0 if strict else left <= 0.0
        if (left.high < 0.0) if strict else (left.high <= 0.0):
            return True
        if (left.low >= 0.0) if strict else (left.low > 0.0):
            return False
        condition = Condition(left, left.typical < 0.0)
        for x, bound, sign in ((a, b, -1.0), (b, a, 1.0)):
            # a binary compared with a number between 0 and 1 is the condition itself
            binary = isinstance(x, Ranged) and x.whole and x.atom is x and (x.low, x.high) == (0.0, 1.0)
            if binary and isinstance(bound, float) and 0.0 < bound < 1.0:
                condition.binary = x.expression if sign > 0 else 1.0 - x.expression
                condition.typical = (x.typical > bound) == (sign > 0)
        return condition

    def _equal(self, a: Element, b: Element) -> Truth:
        below, above = self._below(a, b, False), self._below(b, a, False)
        return self._both(below, above)

    def _not(self, c: Truth) -> Truth:
        if not isinstance(c, Condition):
            return not c
        return Condition(None, not c.typical, denied=c)

    def _both(self, a: Truth, b: Truth) -> Truth:
        if not isinstance(a, Condition):
            return b if a else False
        if not isinstance(b, Condition):
            return self._both(b, a)
        out = Condition(None, a.typical and b.typical)
        z = self.model.addVar(lb=0.0, ub=1.0)
        first, second = self._binary(a), self._binary(b)
        for part in (first, second):
            self.model.addCons(z <= part)
        self.model.addCons(z >= first + second - 1.0)
        out.binary = 1.0 * z
        return out

    def _either(self, a: Truth, b: Truth) -> Truth:
        return self._not(self._both(self._not(a), self._not(b)))

    def _where(self, c: Truth, a: Element, b: Element) -> Element:
        if not isinstance(c, Condition):
            return a if c else b
        if a is b:
            return a
        # a value without end is a choice nobody makes
        if isinstance(a, float) and not math.isfinite(a):
            self.forbid(c)
            return b
        if isinstance(b, float) and not math.isfinite(b):
            self.forbid(self._not(c))
            return a
        (a_low, a_high), (b_low, b_high) = _ends(a), _ends(b)
        low, high = min(a_low, b_low), max(a_high, b_high)
        typical = _typical(a) if c.typical else _typical(b)
        return Ranged(lambda: self._switched(c, a, b, low, high, typical), low, high, typical)

    def _switched(self, c: Condition, a: Element, b: Element, low: float, high: float, typical: float) -> Any:
        """Return z a + (1 - z) b, z being 0 or 1; numbers stay numbers."""
        z = self._binary(c)
        first, second = (x if isinstance(x, float) else self.atomic(x).expression for x in (a, b))
        return z * first + (1.0 - z) * second

    # ------------------------------------------------------------------ the table

    @cached_property
    def functions(self) -> Mapping[str, Callable[..., Any]]:
        """Elementary functions of floats and `Ranged`."""

        def log_of_one_more(a: Element) -> Element:
            return math.log1p(a) if isinstance(a, float) and a > -1.0 else self._log(self._add(a, 1.0))

        def whole(down: float) -> Callable[[Element], Element]:
            return lambda a: self._whole_part(a, down)

        return {
            "add": self._add,
            "subtract": self._subtract,
            "multiply": self._multiply,
            "divide": self._divide,
            "power": self._power,
            "negative": lambda a: self._scaled_any(a, -1.0),
            "abs": self._abs,
            "exp": self._exp,
            "expm1": lambda a: math.expm1(a) if isinstance(a, float) else self._add(self._exp(a), -1.0),
            "log": self._log,
            "log1p": log_of_one_more,
            "log2": lambda a: self._scaled_any(self._log(a), 1.0 / math.log(2.0)),
            "log10": lambda a: self._scaled_any(self._log(a), 1.0 / math.log(10.0)),
            "sqrt": self._sqrt,
            "maximum": self._larger,
            "minimum": self._smaller,
            "floor": whole(0.0),
            "ceil": whole(1.0),
            "round": whole(0.5),
            "less": lambda a, b: self._below(a, b, True),
            "less_equal": lambda a, b: self._below(a, b, False),
            "greater": lambda a, b: self._below(b, a, True),
            "greater_equal": lambda a, b: self._below(b, a, False),
            "equal": self._equal,
            "not_equal": lambda a, b: self._not(self._equal(a, b)),
            "logical_not": self._not,
            "logical_and": self._both,
            "logical_or": self._either,
            "isfinite": lambda a: math.isfinite(a) if isinstance(a, float) else True,
            "isnan": lambda a: math.isnan(a) if isinstance(a, float) else False,
            "where": self._where,
        }


def _times(a: float, b: float) -> float:
    """Product of two ends of ranges, 0 x inf being 0."""
    return 0.0 if a == 0.0 or b == 0.0 else a * b


def _safe(f: Callable[[float], float], x: float) -> float:
    """Return f at a float, with its limit where the standard library raises."""
    if x == math.inf:
        return math.inf
    try:
        return f(x)
    except OverflowError:
        return math.inf
    except ValueError:
        return -math.inf if x == 0.0 else math.nan


def _ends(x: Element) -> tuple[float, float]:
    return (x, x) if isinstance(x, float) else (x.low, x.high)


def _typical(x: Element) -> float:
    return x if isinstance(x, float) else float(x.typical)


# The problem ----------------------------------------------------------------------------------------------------


def minimize_scip(
    problem: Problem, *, time_limit: float = 60.0, gap: float = 1e-4, seed: int = 0
) -> tuple[Decision | None, float | None, float | None, str]:
    """Solve a small problem to global optimality with SCIP, on one thread.

    Parameters
    ----------
    problem : Problem
        Its functions may use + - * / powers, exp, log, roots, absolute values, maximum, minimum, rounding, comparisons
        and `where`.
    time_limit : float
        Seconds.
    gap : float
        Relative gap at which SCIP stops.
    seed : int
        SCIP's seed.

    Returns
    -------
    decision : Decision or None
        SCIP's incumbent; None without one. Whether it keeps the constraints is for `Problem.evaluate` to say: SCIP's
        tolerances are wider (1e-6).
    value : float or None
        The problem's objective there, computed by `Problem.evaluate`.
    lower_bound : float or None
        SCIP's dual bound in the problem's units; None where it found none. It holds up to SCIP's tolerances.
    status : str
        SCIP's own word: ``optimal``, ``gaplimit``, ``timelimit``, ``infeasible``, ...

    Raises
    ------
    InputError
        For functions that SCIP cannot express, by name, or options out of range.
    MissingExtraError
        Without pyscipopt.
    """
    if not (is_real(time_limit) and time_limit > 0.0):
        raise InputError(f"time_limit: {time_limit!r} s must be a number above 0")
    if not (is_real(gap) and 0.0 < gap < 1.0):
        raise InputError(f"gap: {gap!r} must be a number between 0 and 1")
    if not (is_whole(seed) and seed >= 0):
        raise InputError(f"seed: {seed!r} must be a whole number of at least 0")
    try:
        from pyscipopt import Model
    except ImportError:
        raise MissingExtraError("pyscipopt", "scip", "solving with SCIP") from None
    model = Model(problem.name)
    model.hideOutput()
    model.setParam("limits/time", float(time_limit))
    model.setParam("limits/gap", float(gap))
    model.setParam("parallel/maxnthreads", 1)
    # below 1e-10 the LP solver only complains, on the terminal
    model.setParam("constraints/nonlinear/tightenlpfeastol", False)
    model.setParam("randomization/randomseedshift", int(seed))
    kind = ScipKind(model)
    chosen = {v.name: _variables(kind, v) for v in problem.variables}
    traced = problem.evaluate(Decision(_foreign(kind, chosen)))
    names = {v.name for v in problem.variables}
    for name, slack in traced.slack.items():
        # variables keep their own bounds
        if name in names:
            continue
        values = slack.values if isinstance(slack, Elementwise) else np.asarray(slack, dtype=object)
        sizes = np.broadcast_to(np.asarray(traced.scale[name], dtype=np.float64), values.shape)
        for element, size in zip(values.reshape(-1), sizes.reshape(-1), strict=True):
            kind.keep(element if isinstance(element, Ranged) else float(element), float(size))
    objective = (
        traced.objective.values.reshape(-1)[0] if isinstance(traced.objective, Elementwise) else traced.objective
    )
    unit = 1.0
    if isinstance(objective, Ranged):
        unit = abs(objective.typical) or 1.0
        value = model.addVar(lb=objective.low / unit if math.isfinite(objective.low) else None)
        model.addCons(value >= objective.expression / unit)
        model.setObjective(value)
    else:
        model.setObjective(0.0)
    model.optimize()
    status = str(model.getStatus())
    bound = model.getDualbound() * unit + (0.0 if isinstance(objective, Ranged) else float(objective))
    lower = float(bound) if abs(model.getDualbound()) < model.infinity() else None
    if not model.getNSols():
        return None, None, lower, status
    decision = Decision({v.name: _solution(model, v, chosen[v.name]) for v in problem.variables})
    return decision, float(problem.evaluate(decision).objective), lower, status


def _variables(kind: ScipKind, variable: Variable) -> np.ndarray[Any, Any]:
    elements = np.empty(variable.lower.shape, dtype=object)
    for i, (low, high) in enumerate(zip(variable.lower, variable.upper, strict=True)):
        elements[i] = kind.variable(float(low), float(high), variable.kind)
    return elements


def _foreign(kind: ScipKind, chosen: Mapping[str, np.ndarray[Any, Any]]) -> dict[str, Array]:
    """Elements as arrays; a variable that is fixed altogether stays an array of numbers."""
    out: dict[str, Array] = {}
    for name, elements in chosen.items():
        fixed = all(isinstance(e, float) for e in elements)
        out[name] = elements.astype(np.float64) if fixed else Elementwise(elements, kind)
    return out


def _solution(model: Any, variable: Variable, elements: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    values = np.array([e if isinstance(e, float) else float(model.getVal(e.expression)) for e in elements])
    if variable.kind != "real":
        values = np.rint(values)
    return np.clip(values, variable.lower, variable.upper)

"""The words in which a problem is declared: quantities over devices, limits, closed forms, blocks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from jointopt.decision import Array
from jointopt.errors import InputError

__all__ = ["Block", "Constraint", "Inner", "Objective", "Ratio", "Term", "each", "total", "worst"]

Limit = Any
"""A number, an array over devices, the path of a field of the system ("devices.delay_budget"), or a function of it."""


@dataclass(frozen=True)
class Term:
    """A quantity of the model, and over what it is taken."""

    quantity: str
    over: Literal["each", "total", "worst"]

    def __le__(self, limit: Limit) -> Constraint:
        return Constraint(self, limit, 1.0)

    def __ge__(self, limit: Limit) -> Constraint:
        return Constraint(self, limit, -1.0)

    def __truediv__(self, other: Term) -> Ratio:
        if not (isinstance(other, Term) and self.over == other.over == "total"):
            raise InputError("a ratio is total(...) / total(...)")
        return Ratio(self, other)


@dataclass(frozen=True)
class Ratio:
    """A quotient of two totals; the lower one positive."""

    above: Term
    below: Term


@dataclass(frozen=True)
class Constraint:
    """A quantity at most (`sign` 1) or at least (-1) a limit."""

    term: Term
    limit: Limit
    sign: float

    __hash__ = None  # type: ignore[assignment]


def each(quantity: str) -> Term:
    """A quantity of every device: ``each("delay") <= "devices.delay_budget"``."""
    return Term(quantity, "each")


def total(quantity: str) -> Term:
    """The sum of a quantity over the devices; the quantity itself where it follows from shared variables alone."""
    return Term(quantity, "total")


def worst(quantity: str) -> Term:
    """The largest value of a quantity over the devices, as an objective."""
    return Term(quantity, "worst")


@dataclass(frozen=True)
class Inner:
    """Some variables in closed form from the others: a cheap inner solution.

    It makes good points quickly, and leaves fewer variables to Bayesian optimization. Bounds do not rely on it.

    Attributes
    ----------
    variables : tuple of str
        What `best` gives.
    best : callable
        (s, x, prices) -> values by name, which are then kept inside the variables' bounds. `prices` holds, by quantity,
        what one unit of each total costs (1 for the objective's, 0 for the others where nothing else is known).
    """

    variables: tuple[str, ...]
    best: Callable[[Any, Any, Any], Mapping[str, Array]]


@dataclass(frozen=True)
class Block:
    """Variables that one step of alternating optimization chooses, the others as they are.

    Attributes
    ----------
    variables : tuple of str
        What the step changes.
    step : callable, optional
        (s, x) -> new values by name: a closed form.
    convex : bool
        Whether the problem is convex in these variables by the rules of disciplined convex programming as the model is
        written; it is then traced into cvxpy and solved by a conic solver. Without either, a gradient search is used.
    """

    variables: tuple[str, ...]
    step: Callable[[Any, Any], Mapping[str, Array]] | None = None
    convex: bool = False


Objective = Term | Ratio | Callable[[Any], Array]

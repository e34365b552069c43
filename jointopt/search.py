"""The plainest `Search`: all decision variables of a problem, where nothing follows from the others."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import numpy as np

from jointopt.decision import Decision
from jointopt.errors import InputError, nearest
from jointopt.system import FloatArray

if TYPE_CHECKING:
    from jointopt.problem import Problem

__all__ = ["FlatSearch"]

_DECADES = 10.0
"""Ratio of bounds from which a positive real variable is searched on a logarithmic scale."""


class FlatSearch:
    """All variables of a problem, one after the other; constraints are left to the problem's evaluation.

    Parameters
    ----------
    problem : Problem
        Every variable must have finite bounds.
    logarithmic : collection of str, optional
        Real variables, by name, searched on a logarithmic scale; when not given, those whose lower bounds are above 0
        and at least ten times below the upper ones.

    Raises
    ------
    InputError
        For unknown names, bounds that are not finite, or a logarithmic scale that would reach 0.
    """

    name = "all variables"
    attribute = None

    def __init__(self, problem: Problem, *, logarithmic: Collection[str] | None = None) -> None:
        variables = problem.variables
        names = [v.name for v in variables]
        for name in logarithmic or ():
            if name not in names:
                raise InputError(f"logarithmic: unknown variable '{name}'{nearest(name, names)}")
        bounds, kinds, logs = [], [], []
        self._slices: dict[str, slice] = {}
        start = 0
        for v in variables:
            low, high = (np.atleast_1d(np.asarray(b, dtype=np.float64)) for b in (v.lower, v.upper))
            if v.kind != "real":
                low, high = np.ceil(low), np.floor(high)
            bad = ~(np.isfinite(low) & np.isfinite(high) & (low <= high))
            if np.any(bad):
                i = int(np.argmax(bad))
                raise InputError(
                    f"{v.name}[device {i}]: the bounds {v.lower[i]:g} and {v.upper[i]:g} hold nothing to search"
                )
            if logarithmic is None:
                log = v.kind == "real" and bool(np.all(low > 0.0) and np.all(high >= _DECADES * low))
            else:
                log = v.name in logarithmic
                if log and (v.kind != "real" or not np.all(low > 0.0)):
                    raise InputError(f"logarithmic: '{v.name}' must be real with lower bounds above 0")
            bounds.append((low, high))
            kinds.append(np.full(low.size, v.kind))
            logs.append(np.full(low.size, log))
            self._slices[v.name] = slice(start, start + low.size)
            start += low.size
        self.lower, self.upper = (np.concatenate([b[i] for b in bounds]) for i in (0, 1))
        self.kind, self.logarithmic = np.concatenate(kinds), np.concatenate(logs)

    def complete(self, x: Any) -> Decision:
        """Return the decision at x ``[..., variables]``, whole numbers rounded and everything within its bounds."""
        x = np.asarray(x, dtype=np.float64)
        x = np.clip(np.where(self.kind == "real", x, np.rint(x)), self.lower, self.upper)
        return Decision({name: x[..., part] for name, part in self._slices.items()})

    def locate(self, decision: Decision) -> FloatArray:
        """Return the variables ``[..., variables]`` of a decision."""
        wide = [
            np.broadcast_to(decision[name], (*np.shape(decision[name])[:-1], part.stop - part.start))
            for name, part in self._slices.items()
        ]
        return np.concatenate(wide, axis=-1).astype(np.float64)

    def unit_values(self, x: Any) -> None:
        """Return None: nothing is known to be a sum over units."""
        return None

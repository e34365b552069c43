"""What every solver returns: the answer, how good it is, and why that is known."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from jointopt import report
from jointopt._version import __version__
from jointopt.decision import Decision
from jointopt.errors import InputError
from jointopt.files import write_json
from jointopt.problem import Conflict, Evaluation, Leaves, Problem
from jointopt.system import FloatArray

if TYPE_CHECKING:
    import pandas as pd

    from jointopt.relaxation import Relaxation
    from jointopt.sensitivity import Sensitivity
    from jointopt.verification import Verification

__all__ = ["SCHEMA", "Certificate", "Result", "Status"]

SCHEMA = "jointopt.result/1"
Status = Literal["optimal", "feasible", "infeasible", "unbounded", "time_limit", "interrupted"]


@dataclass(frozen=True)
class Certificate:
    """Why the lower bound holds.

    Attributes
    ----------
    kind : {"exact", "dual", "branch", "relaxation", "none"}
        ``exact``: every unit settled by bounds on cells that cover its whole range. ``dual``: the same at prices
        on shared budgets, so a gap may remain. ``none``: nothing is claimed.
    prices : dict
        Prices on the sums at which the bound was computed, multipliers of the limits included.
    multipliers : dict
        The part of the prices that belongs to limits (at least 0).
    ratio : float
        The ratio t at which N - t D was bounded; 0 where the objective is no ratio.
    unit_bounds : array, shape [units], optional
        Lower bound of every unit's share at these prices.
    caps : dict of arrays, shape [units]
        Most that each unit can use of a limited sum, by the sum's name: the limit less the proved least use of all
        the others. Unit bounds and leaves hold for decisions within these caps, as every feasible one is.
    leaves : Leaves, optional
        The cells behind the unit bounds, where they were kept.
    search : object, optional
        The tree behind a bound over selections, where there was one.
    cells : int
        Cells examined.
    tolerance : float
        Relative gap asked for.
    """

    kind: Literal["exact", "dual", "branch", "relaxation", "none"] = "none"
    prices: Mapping[str, float] = field(default_factory=dict)
    multipliers: Mapping[str, float] = field(default_factory=dict)
    ratio: float = 0.0
    unit_bounds: FloatArray | None = None
    caps: Mapping[str, FloatArray] = field(default_factory=dict)
    leaves: Leaves | None = None
    search: Any = None
    cells: int = 0
    tolerance: float = 0.0
    text: str = "no lower bound is known for this method"


@dataclass(frozen=True)
class Result:
    """A decision with its value, bound and story.

    `value`, `lower_bound` and `gap` are None where unknown; `gap` is (value - lower_bound)/max(|value|, 1e-12).
    For an infeasible problem `decision` is the least violating one and `infeasibility` says what is short.
    """

    problem: Problem
    method: str
    status: Status
    decision: Decision | None
    evaluation: Evaluation | None
    value: float | None
    lower_bound: float | None
    certificate: Certificate
    infeasibility: list[Conflict] = field(default_factory=list)
    history: list[dict[str, float]] = field(default_factory=list)
    message: str = ""
    seconds: float = 0.0
    n_evaluations: int = 0
    seed: int | None = None

    @property
    def gap(self) -> float | None:
        """Relative certified gap, never negative; None without a bound."""
        if self.value is None or self.lower_bound is None or not np.isfinite(self.lower_bound):
            return None
        return max(0.0, self.value - self.lower_bound) / max(abs(self.value), 1e-12)

    @property
    def feasible(self) -> bool:
        """Whether the decision keeps every constraint."""
        return self.status not in ("infeasible", "unbounded") and self.value is not None

    def __repr__(self) -> str:
        value = "none" if self.value is None else f"{self.value:.6g}"
        gap = "no bound" if self.gap is None else f"gap {self.gap:.1e}"
        return (
            f"Result({self.problem.name}/{self.method}: {self.status}, value {value}, {gap}, "
            f"{len(self.problem.system)} devices, {self.seconds:.3g} s)"
        )

    def summary(self) -> str:
        """Return the answer in words and a table, for reading."""
        return report.summary(self)

    def to_pandas(self) -> pd.DataFrame:
        """Return one row per device: decision, delay, energy, packet error, slack."""
        return report.device_table(self.problem, self.decision, self.evaluation)

    def explain(self) -> Any:
        """Return which constraint is tight for whom, and why."""
        if self.decision is None:
            raise InputError("explain: the result holds no decision")
        return self.problem.explain(self.decision)

    def sensitivity(self, parameters: Iterable[str] | None = None) -> Sensitivity:
        """Return how much the optimum improves per unit more of every budget and physical parameter.

        At the integers of this result; its real part is moved to where the optimality conditions hold
        (`jointopt.sensitivity`).

        Parameters
        ----------
        parameters : iterable of str, optional
            Fields of the system; all with a unit when not given.

        Raises
        ------
        InputError
            Where the result is not feasible, or a parameter is unknown.
        """
        from jointopt.sensitivity import sensitivity

        if self.decision is None or not self.feasible:
            raise InputError(f"sensitivity: the result is {self.status}; ask for its relaxation() instead")
        return sensitivity(self.problem, self.decision, parameters)

    def relaxation(self) -> Relaxation:
        """Return the smallest changes of budgets that make an infeasible problem feasible, and what is in conflict.

        Raises
        ------
        InputError
            Where the result is feasible.
        """
        from jointopt.relaxation import relaxation

        if self.feasible:
            raise InputError(f"relaxation: the result is {self.status}; there is nothing to relax")
        return relaxation(self.problem, self.decision, self.infeasibility, seed=self.seed or 0)

    def verify(self, *, units: int = 1000, seed: int = 0, digits: int = 50) -> Verification:
        """Recompute value, feasibility and bound from the problem alone, independently of the solver.

        Parameters
        ----------
        units : int
            Devices evaluated, and points priced, in extended precision; a seeded sample where there are more.
        seed : int
            Seed of the samples.
        digits : int
            Decimal digits of the extended precision.

        Raises
        ------
        VerificationError
            Where something differs from what this result says; the message names it and by how much.
        """
        from jointopt.verification import verify

        return verify(self, units=units, seed=seed, digits=digits)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data (arrays as NumPy arrays), the contract of the JSON file."""
        evaluation: dict[str, Any] = {}
        if self.evaluation is not None:
            evaluation["parts"] = {k: float(v) for k, v in self.evaluation.parts.items()}
            evaluation |= {k: np.asarray(v) for k, v in self.evaluation.quantities.items()}
            evaluation["slack"] = {k: np.asarray(v) for k, v in self.evaluation.slack.items()}
        return {
            "schema": SCHEMA,
            "version": __version__,
            "seed": self.seed,
            "problem": self.problem.name,
            "settings": self.problem.settings(),
            "method": self.method,
            "status": self.status,
            "value": self.value,
            "lower_bound": self.lower_bound,
            "gap": self.gap,
            "certificate": {
                "kind": self.certificate.kind,
                "prices": dict(self.certificate.prices),
                "multipliers": dict(self.certificate.multipliers),
                "ratio": self.certificate.ratio,
                "cells": self.certificate.cells,
                "tolerance": self.certificate.tolerance,
                "text": self.certificate.text,
            },
            "seconds": self.seconds,
            "n_evaluations": self.n_evaluations,
            "message": self.message,
            "decision": None if self.decision is None else {k: np.asarray(v) for k, v in self.decision.items()},
            "evaluation": evaluation,
            "infeasibility": [
                {
                    "device": c.device,
                    "binding": c.binding,
                    "relax": dict(c.relax),
                    "budget": dict(c.budget),
                    "factor": c.factor,
                    "text": c.text,
                    "irreducible": list(c.irreducible),
                }
                for c in self.infeasibility
            ],
            "history": self.history,
            "scenario": self.problem.system.to_dict(),
        }

    def save(self, path: str | Path) -> Path:
        """Write the JSON file (and an .npz beside it above 10,000 devices), whole or not at all."""
        return write_json(self.to_dict(), path, devices=len(self.problem.system))

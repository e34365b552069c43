"""What was predicted of decisions, held against what training under them did.

Predictions are made for all rounds, and for as many as each decision can afford of an energy or a time that all of
them reach. Each is judged by its order: Kendall's tau between what was predicted and what was measured, 1 where every
pair of decisions comes out as predicted, 0 where prediction and training have nothing to do with each other.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.stats import kendalltau

from jointopt.decision import Decision
from jointopt.errors import InputError, nearest
from jointopt.problem import Problem
from jointopt.report import text_table
from jointopt.result import Result
from jointopt.study.calibration import Calibration
from jointopt.system import System
from jointopt.units import format_si

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from jointopt.study.comparison import Run

__all__ = ["BASES", "Prediction", "predict"]

BASES = ("rounds", "energy", "delay")
"""What decisions have in common when compared: rounds, energy spent, time passed."""

_PAIRS = (
    ("bound", "accuracy"),
    ("bound", "loss"),
    ("bound", "square"),
    ("forecast_loss", "accuracy"),
    ("forecast_loss", "loss"),
    ("forecast_square", "square"),
    ("loss", "accuracy"),
)
"""What predicts what: small values of a predictor stand for small losses and gradients, and high accuracy.

The last pair is measured on both sides: what a perfect prediction of the loss would say of the accuracy.
"""
_WORDS = {
    "bound": "bound",
    "forecast_loss": "forecast loss",
    "forecast_square": "forecast ||grad F||^2",
    "accuracy": "test accuracy",
    "loss": "loss F",
    "square": "mean ||grad F||^2",
}


@dataclass(frozen=True, eq=False)
class Prediction:
    """Predicted against measured, decision by decision.

    Attributes
    ----------
    tables : dict of lists of dict
        By basis ("rounds", "energy", "delay") one row per decision:

        ``method``, its name; ``rounds`` T that it makes; ``bound`` of the mean ||grad F||^2 (of a problem without one
        its objective), with T in it; ``forecast_loss`` and ``forecast_square``, final loss and mean ||grad F||^2 that
        the calibration expects (NaN without one). Measured, means over seeds: ``square``, the mean ||grad F||^2 over
        the T rounds, ``loss`` F(w^T), ``accuracy`` on the test data; between evaluated rounds on straight lines, NaN
        where T is 0 or nothing was evaluated, infinite losses and squares for a run that diverged.
    costs : list of dict
        One row per decision: ``energy`` [J] and ``delay`` [s] of all rounds as booked, ``predicted_energy`` and
        ``predicted_delay``, and ``energy_error`` and ``delay_error``, relative.
    equal_energy, equal_delay : float
        The energy [J] and the time [s].
    seeds : int
        Training runs of each decision.
    constants : str
        Whose constants the bound has: those of the problem, or of a calibration.
    """

    tables: Mapping[str, Sequence[Mapping[str, Any]]]
    costs: Sequence[Mapping[str, Any]]
    equal_energy: float
    equal_delay: float
    seeds: int
    constants: str

    def __repr__(self) -> str:
        return f"Prediction({len(self.costs)} decisions, {self.seeds} seeds, constants of {self.constants})"

    def to_pandas(self, basis: str = "rounds") -> pd.DataFrame:
        """Return the table of a basis ("rounds", "energy", "delay"), or of "costs"."""
        import pandas as pd

        if basis not in (*BASES, "costs"):
            raise InputError(f"prediction: unknown basis {basis!r}{nearest(str(basis), (*BASES, 'costs'))}")
        return pd.DataFrame(self.costs if basis == "costs" else self.tables[basis]).set_index("method")

    def column(self, basis: str, name: str) -> np.ndarray:
        """Return a column of a table as floats, one per decision."""
        return np.array([float(row[name]) for row in self.tables[basis]])

    def factor(self, basis: str = "rounds") -> np.ndarray:
        """Return bound / measured mean ||grad F||^2 of each decision."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return self.column(basis, "bound") / self.column(basis, "square")

    def tau(self, predictor: str = "bound", quality: str = "accuracy", basis: str = "rounds") -> tuple[float, int]:
        """Return Kendall's tau-b and the number of pairs of decisions that it is about.

        Positive where decisions that are predicted to be better are. NaN where fewer than two can be compared, or all
        of them are tied.
        """
        for name, known in ((predictor, {p for p, _ in _PAIRS}), (quality, {q for _, q in _PAIRS}), (basis, BASES)):
            if name not in known:
                raise InputError(f"prediction: unknown {name!r}{nearest(str(name), known)}")
        one, other = self.column(basis, predictor), self.column(basis, quality)
        both = ~(np.isnan(one) | np.isnan(other))
        count = int(both.sum())
        if count < 2:
            return math.nan, 0
        sign = -1.0 if quality == "accuracy" else 1.0
        return float(kendalltau(one[both], sign * other[both]).statistic), count * (count - 1) // 2

    def _orders(self) -> list[dict[str, Any]]:
        out = []
        for basis in BASES:
            for predictor, quality in _PAIRS:
                if not np.all(np.isnan(self.column(basis, predictor))):
                    tau, pairs = self.tau(predictor, quality, basis)
                    out.append({"basis": basis, "predictor": predictor, "quality": quality, "tau": tau, "pairs": pairs})
        return out

    def taus(self) -> pd.DataFrame:
        """Return tau and pairs by basis, predictor and quality."""
        import pandas as pd

        return pd.DataFrame(self._orders()).set_index(["basis", "predictor", "quality"])

    def summary(self) -> str:
        """Return taus, factors and errors in words."""
        base = {
            "rounds": "all rounds",
            "energy": f"equal energy ({format_si(self.equal_energy, 'J', 4)})",
            "delay": f"equal delay ({format_si(self.equal_delay, 's', 4)})",
        }
        rows = [
            [
                f"{row['tau']:.2f}",
                str(row["pairs"]),
                base[row["basis"]],
                "measured loss F" if row["predictor"] == "loss" else _WORDS[row["predictor"]],
                _WORDS[row["quality"]],
            ]
            for row in self._orders()
            if row["pairs"]
        ]
        header = ["tau", "pairs", "at", "predicted by", "measured by"]
        lines = [text_table(rows, header, words=3) if rows else "too few decisions for an order"]
        for basis in BASES:
            factor = self.factor(basis)
            factor = factor[np.isfinite(factor)]
            if factor.size:
                lines.append(
                    f"bound / measured mean ||grad F||^2 at {base[basis]}: median {np.median(factor):.3g}, "
                    f"from {factor.min():.3g} to {factor.max():.3g}"
                )
        worst = {name: max(abs(row[f"{name}_error"]) for row in self.costs) for name in ("energy", "delay")}
        lines.append(f"largest relative error: energy {worst['energy']:.1e}, delay {worst['delay']:.1e}")
        lines.append(f"{self!r}")
        return "\n".join(lines)

    def plot(self) -> Figure:
        """Draw predicted against measured."""
        from jointopt.plot.predictions import predictions

        return predictions(self)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            "tables": {basis: [dict(row) for row in rows] for basis, rows in self.tables.items()},
            "costs": [dict(row) for row in self.costs],
            "equal_energy": self.equal_energy,
            "equal_delay": self.equal_delay,
            "seeds": self.seeds,
            "constants": self.constants,
        }


def predict(
    results: Mapping[str, Result],
    runs: Mapping[str, Sequence[Run]],
    equal_energy: float,
    equal_delay: float,
    calibration: Calibration | None = None,
) -> Prediction:
    """Hold what problems say of decisions against training runs; see `jointopt.study.Comparison.prediction`."""
    if calibration is not None and not isinstance(calibration, Calibration):
        raise InputError(f"prediction: expected a Calibration, got {type(calibration).__name__}")
    tables: dict[str, list[dict[str, Any]]] = {basis: [] for basis in BASES}
    costs = []
    for name, many in runs.items():
        problem, decision = results[name].problem, many[0].decision
        system = problem.system
        if not isinstance(system, System):
            raise InputError(f"prediction: '{name}' is about a {type(system).__name__}, not about training")
        wanted = {v.name for v in problem.variables}
        plain = Decision({key: value for key, value in decision.items() if key in wanted})
        quantities = problem.evaluate(plain).quantities
        energy, delay = float(np.sum(quantities["energy"])), float(np.max(quantities["delay"]))
        most = max(len(run.rows) for run in many)
        costs.append(_costs(name, many, energy, delay))
        for basis, afforded in (
            ("rounds", most),
            ("energy", _afforded(equal_energy, energy, most)),
            ("delay", _afforded(equal_delay, delay, most)),
        ):
            row = {"method": name, "rounds": afforded, **_nothing()}
            if afforded:
                row["bound"] = _bound(problem, plain, afforded, calibration)
                if calibration is not None:
                    expected = calibration.forecast(decision, system, afforded)
                    row |= {"forecast_loss": expected.final_loss, "forecast_square": expected.mean_square}
                each = [_measured(run, afforded) for run in many]
                row |= {key: float(np.mean([one[key] for one in each])) for key in each[0]}
            tables[basis].append(row)
    return Prediction(
        tables=tables,
        costs=costs,
        equal_energy=equal_energy,
        equal_delay=equal_delay,
        seeds=len(next(iter(runs.values()))),
        constants="the problem" if calibration is None else f"a calibration ({calibration.kind})",
    )


def _nothing() -> dict[str, float]:
    return dict.fromkeys(("bound", "forecast_loss", "forecast_square", "square", "loss", "accuracy"), math.nan)


def _afforded(budget: float, once: float, most: int) -> int:
    """Return how many rounds a budget allows; a sum over rounds may exceed it by rounding."""
    if not (math.isfinite(budget) and once > 0.0):
        return 0
    return min(most, math.floor(budget / once * (1.0 + 1e-9)))


def _costs(name: str, runs: Sequence[Run], energy: float, delay: float) -> dict[str, Any]:
    out: dict[str, Any] = {"method": name}
    for key, once in (("energy", energy), ("delay", delay)):
        booked = float(np.mean([run.total(f"cumulative_{key}") for run in runs]))
        predicted = once * float(np.mean([len(run.rows) for run in runs]))
        out |= {key: booked, f"predicted_{key}": predicted, f"{key}_error": predicted / booked - 1.0}
    return out


def _bound(problem: Problem, decision: Decision, rounds: int, calibration: Calibration | None) -> float:
    """Return the bound of a decision over some rounds.

    The constant E_cap must exceed the error of any device that may be the only one heard. Of one decision these
    are its own devices, so its own ratios and widths are enough, and the bound is tighter and as valid.
    """
    system = problem.system if calibration is None else calibration.apply(problem.system)
    changes: dict[str, Any] = {"rounds": rounds}
    learner = system.learner
    if "pruning_ratio" in decision:
        changes["pruning_ratio_max"] = min(float(np.max(decision["pruning_ratio"])), 1.0 - 1e-9)
    if "bits" in decision:
        bits = np.rint(decision["bits"]).astype(int)
        changes |= {"bits_min": int(bits.min()), "bits_max": max(int(bits.max()), learner.bits_max)}
    evaluation = _widened(problem, system.with_(**changes)).evaluate(decision)
    return float(evaluation.quantities.get("bound", evaluation.objective))


def _widened(problem: Problem, system: System) -> Problem:
    """Return the design for another system, without ranges set on it: what is asked is a value, not an optimum."""
    if type(problem).with_system is not Problem.with_system:
        return problem.with_system(system)
    options = {name: value for name, value in problem.settings().items() if not isinstance(value, Mapping)}
    return type(problem).from_settings(system, options)


def _measured(run: Run, rounds: int) -> dict[str, float]:
    """Return mean ||grad F||^2 over some rounds, loss and test accuracy after them."""
    made = min(rounds, len(run.rows))
    if not run.rows or (run.status == "diverged" and made == len(run.rows)):
        return {"square": math.inf, "loss": math.inf, "accuracy": 0.0}

    def curve(key: str) -> tuple[list[float], list[float]]:
        seen = [(row["round"], row[key]) for row in run.rows if row[key] is not None]
        return [float(at) for at, _ in seen], [float(value) for _, value in seen]

    def at(key: str, places: Any) -> Any:
        rounds_, values = curve(key)
        return np.interp(places, rounds_, values) if values else np.full(np.shape(places), math.nan)

    return {
        "square": float(np.mean(at("gradient_norm_squared", np.arange(1, made + 1)))),
        # a row's loss is that before its update
        "loss": float(at("global_loss", made + 1)),
        "accuracy": float(at("test_accuracy", made)),
    }

"""Train under many decisions with several seeds, compare at equal energy and equal delay, and with what was predicted.

The decisions are given, or solved for by many methods.

Each finished training run is written to disk at once, so an interrupted comparison goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jointopt._version import __version__
from jointopt.decision import Decision
from jointopt.errors import InputError
from jointopt.federated import Curve, Task
from jointopt.files import read_json, write_json
from jointopt.problem import Problem
from jointopt.report import text_table
from jointopt.result import Certificate, Result
from jointopt.solvers import solve
from jointopt.study.calibration import Calibration
from jointopt.study.prediction import Prediction, predict
from jointopt.study.training import train
from jointopt.units import format_si

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Comparison", "Run", "compare"]


@dataclass(frozen=True, eq=False)
class Run(Curve):
    """What is kept of one training run: its rows, the decision carried out, and counts.

    `faded_delay_exceeded` and `faded_energy_exceeded` count, over rounds and devices, how often a single faded
    block took more than the budget, which the budgets (kept at the ergodic rate) allow.
    """

    rows: list[dict[str, Any]]
    decision: Decision
    status: str
    violations: int
    faded_delay_exceeded: int
    faded_energy_exceeded: int
    seconds: float

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Run:
        """Take what is needed from a saved TrainingResult."""
        ledger = data["ledger"]
        return cls(
            rows=list(data["rows"]),
            decision=Decision(data["decision"]),
            status=data["status"],
            violations=int(data["violations"]),
            faded_delay_exceeded=int(np.sum(ledger["faded_delay_exceeded"])),
            faded_energy_exceeded=int(np.sum(ledger["faded_energy_exceeded"])),
            seconds=float(data["seconds"]),
        )

    def __repr__(self) -> str:
        accuracy = "not evaluated" if self.final_accuracy is None else f"accuracy {self.final_accuracy:.3f}"
        return (
            f"Run({self.status}: {len(self.rows)} rounds, {accuracy}, {self.total('cumulative_energy'):.4g} J, "
            f"{self.total('cumulative_delay'):.4g} s)"
        )

    def total(self, column: str) -> float:
        """Return a running total after the last round; NaN where not one round was finished."""
        return float(self.rows[-1][column]) if self.rows else float("nan")


@dataclass(frozen=True)
class Comparison:
    """Results and training runs by method; `runs[method]` has one `Run` per seed.

    `equal_energy` [J] and `equal_delay` [s] are what the cheapest run (mean over seeds) spent in all its rounds:
    the largest cost that every method reached.
    """

    results: dict[str, Result]
    runs: dict[str, list[Run]]
    equal_energy: float
    equal_delay: float

    def to_pandas(self) -> pd.DataFrame:
        """Return one row per method: value, gap, devices over budget, accuracy at equal energy, delay, rounds.

        Accuracies are means over seeds; the columns ending in ``_std`` are their standard deviations.
        """
        import pandas as pd

        rows = []
        for name, runs in self.runs.items():
            result = self.results[name]
            at_energy = [run.accuracy_at(energy=self.equal_energy) for run in runs]
            at_delay = [run.accuracy_at(delay=self.equal_delay) for run in runs]
            final = [run.final_accuracy for run in runs]
            rows.append(
                {
                    "method": name,
                    "status": result.status,
                    "value": np.nan if result.evaluation is None else float(result.evaluation.objective),
                    "gap": np.nan if result.gap is None else result.gap,
                    "over_budget": self.over_budget(name),
                    "shared_exceeded": ", ".join(self.shared_exceeded(name)),
                    "energy_per_round": float(
                        np.mean([r.total("cumulative_energy") / max(len(r.rows), 1) for r in runs])
                    ),
                    "delay_per_round": float(
                        np.mean([r.total("cumulative_delay") / max(len(r.rows), 1) for r in runs])
                    ),
                    "accuracy_equal_energy": _mean(at_energy),
                    "accuracy_equal_energy_std": _std(at_energy),
                    "accuracy_equal_delay": _mean(at_delay),
                    "accuracy_equal_delay_std": _std(at_delay),
                    "accuracy_final": _mean(final),
                    "accuracy_final_std": _std(final),
                }
            )
        return pd.DataFrame(rows).set_index("method")

    def over_budget(self, name: str) -> int:
        """Return how many devices exceed a budget under a method's decision."""
        evaluation = self.results[name].evaluation
        # variables may have a value for every slot and device
        devices = len(self.results[name].problem.system)
        return 0 if evaluation is None else len({u % devices for _, u, _ in evaluation.broken() if u is not None})

    def shared_exceeded(self, name: str) -> list[str]:
        """Return which limits of all devices together (such as the band) a method's decision exceeds."""
        evaluation = self.results[name].evaluation
        return [] if evaluation is None else sorted({limit for limit, u, _ in evaluation.broken() if u is None})

    def broken(self, name: str) -> str:
        """Return in words which budgets a method's decision exceeds; "" where it keeps all."""
        over = self.over_budget(name)
        parts = [f"{over} device{'s' if over > 1 else ''} over budget"] if over else []
        return ", ".join(parts + [f"{limit.replace('_', ' ')} exceeded" for limit in self.shared_exceeded(name)])

    def labels(self, words: Mapping[str, str]) -> dict[str, str]:
        """Return a legend's words with a note on methods whose decision exceeds budgets."""
        out = {}
        for name in self.runs:
            label, broken = words.get(name, name), self.broken(name)
            out[name] = f"{label} ({broken})" if broken else label
        return out

    def prediction(self, calibration: Calibration | None = None) -> Prediction:
        """Return what was predicted of every decision beside what its training runs did.

        Compared are decisions over all rounds, and over as many as each can afford at `equal_energy` and `equal_delay`.
        The bound is evaluated for that number of rounds.

        Parameters
        ----------
        calibration : Calibration, optional
            Where given, the bound takes its constants instead of the problem's, and its forecasts are compared too.

        Raises
        ------
        InputError
            The calibration is of other devices or another network.
        """
        return predict(self.results, self.runs, self.equal_energy, self.equal_delay, calibration)

    def summary(self) -> str:
        """Return the table in words, for reading."""
        table = self.to_pandas()

        def percent(name: str, row: Any) -> str:
            mean, spread = row[name], row[f"{name}_std"]
            if not np.isfinite(mean):
                return "-"
            return f"{100 * mean:.1f}" + (f" ± {100 * spread:.1f}" if np.isfinite(spread) else "")

        rows = [
            [
                str(name),
                f"{row['value']:.4g}",
                "-" if not np.isfinite(row["gap"]) else f"{row['gap']:.0e}",
                f"{row['over_budget']:.0f}" + (f", {row['shared_exceeded']}" if row["shared_exceeded"] else ""),
                format_si(row["energy_per_round"], "J"),
                format_si(row["delay_per_round"], "s"),
                percent("accuracy_equal_energy", row),
                percent("accuracy_equal_delay", row),
                percent("accuracy_final", row),
            ]
            for name, row in table.iterrows()
        ]
        header = [
            "method",
            "value",
            "certified gap",
            "devices over budget",
            "energy/round",
            "delay/round",
            "acc. [%] at equal energy",
            "acc. [%] at equal delay",
            "acc. [%] after all rounds",
        ]
        seeds = len(next(iter(self.runs.values())))
        return (
            text_table(rows, header)
            + f"\nequal energy: {format_si(self.equal_energy, 'J', 4)}"
            + f"; equal delay: {format_si(self.equal_delay, 's', 4)}"
            + f"; {seeds} seed{'s' if seeds > 1 else ''}"
            + (", mean ± standard deviation" if seeds > 1 else "")
        )


def _mean(values: Sequence[float | None]) -> float:
    known = [v for v in values if v is not None]
    return float(np.mean(known)) if len(known) == len(values) else float("nan")


def _std(values: Sequence[float | None]) -> float:
    known = [v for v in values if v is not None]
    return float(np.std(known, ddof=1)) if len(known) == len(values) and len(known) > 1 else float("nan")


def compare(
    decisions: Any = None,
    task: Task | Callable[[int], Task] | None = None,
    *,
    problem: Problem | None = None,
    methods: Sequence[str] | None = None,
    seeds: Sequence[int] = (0,),
    rounds: int | None = None,
    solve_options: Mapping[str, Mapping[str, Any]] | None = None,
    train_options: Mapping[str, Any] | None = None,
    folder: str | Path | None = None,
    report: Callable[[str], Any] | None = None,
) -> Comparison:
    """Train under several decisions, or solve a problem by several methods and train under every answer.

    Parameters
    ----------
    decisions : mapping or sequence of Decision, Result or mapping; or a Problem
        What to train under, by name or numbered as "decision-0", ...; or the problem that `methods` solve.
    task : Task, or a function from seed to Task
        What to train; a function gives each seed its own partition and network start.
    problem : Problem, optional
        The design with its system: needed for decisions that are no `Result`, which says what it answers.
    methods : list of str, optional
        Solver methods and baselines, where no decisions are given. One that finds no decision at all is reported and
        left out of training; a decision that exceeds budgets is trained and marked.
    seeds : list of int
        Training seeds; channels, batches and quantizer draws are shared between decisions.
    rounds : int, optional
        Rounds; the bound's when not given.
    solve_options : mapping, optional
        Options of `jointopt.solve` by method.
    train_options : mapping, optional
        Options of `jointopt.train` for all.
    folder : path, optional
        Where each run is kept; runs found there, made with the same inputs, are not repeated.
    report : callable, optional
        Told one line per finished step.

    Raises
    ------
    InputError
        Nothing or too much is given, a decision does not fit the problem, or training cannot carry it out.
    """
    if isinstance(decisions, Problem):
        if problem is not None:
            raise InputError("compare: a problem is given twice")
        problem, decisions = decisions, None
    if task is None:
        raise InputError("compare: no task")
    if not seeds:
        raise InputError("compare: no seeds")
    say = report or (lambda line: None)
    if decisions is None:
        results = _solved(problem, methods, solve_options or {}, say)
    elif methods is not None or solve_options:
        raise InputError("compare: give decisions, or a problem with methods, not both")
    else:
        results = _given(decisions, problem)
    runs: dict[str, list[Run]] = {}
    tasks = {seed: task(seed) if callable(task) else task for seed in seeds}
    for name, result in results.items():
        if result.decision is None:
            say(f"{name}: no decision to train under ({result.message})")
            continue
        runs[name] = []
        for seed in seeds:
            run = _run(name, result, tasks[seed], seed, rounds, dict(train_options or {}), folder)
            runs[name].append(run)
            say(f"{name}, seed {seed}: {run!r}")
    if not runs:
        raise InputError("compare: no method found a decision")
    totals = {}
    for column in ("cumulative_energy", "cumulative_delay"):
        spent = [float(np.mean([run.total(column) for run in many])) for many in runs.values()]
        totals[column] = min((s for s in spent if np.isfinite(s)), default=float("nan"))
    return Comparison(results, runs, totals["cumulative_energy"], totals["cumulative_delay"])


def _solved(
    problem: Problem | None,
    methods: Sequence[str] | None,
    options: Mapping[str, Mapping[str, Any]],
    say: Callable[[str], Any],
) -> dict[str, Result]:
    """Solve by every method."""
    if problem is None:
        raise InputError("compare: no decisions, and no problem to solve")
    if not methods:
        raise InputError("compare: no methods")
    unknown = [name for name in options if name not in methods]
    if unknown:
        raise InputError(f"compare: solve_options for '{unknown[0]}', which is not among the methods")
    results = {}
    for name in methods:
        results[name] = solve(problem, method=name, **dict(options.get(name, {})))
        if results[name].status == "interrupted":
            raise KeyboardInterrupt
        say(repr(results[name]))
    return results


def _given(decisions: Any, problem: Problem | None) -> dict[str, Result]:
    """Return given decisions as results by name."""
    if isinstance(decisions, Decision | Result) or not isinstance(decisions, Mapping | Sequence | str):
        raise InputError(f"compare: expected decisions by name or a list of them, got {type(decisions).__name__}")
    if isinstance(decisions, str):
        raise InputError(f"compare: expected decisions, got {decisions!r}; methods are given as methods=[...]")
    if not isinstance(decisions, Mapping):
        decisions = {f"decision-{number}": one for number, one in enumerate(decisions)}
    if not decisions:
        raise InputError("compare: no decisions")
    results = {}
    for name, one in decisions.items():
        if not isinstance(name, str) or not name:
            raise InputError(f"compare: a decision's name must be a non-empty string, found {name!r}")
        results[name] = one if isinstance(one, Result) else _result(name, one, problem)
    return results


def _result(name: str, decision: Any, problem: Problem | None) -> Result:
    """Return a decision with its evaluation, as a result without a bound."""
    if not isinstance(decision, Mapping):
        raise InputError(
            f"compare: '{name}' is a {type(decision).__name__}; a decision is a Decision, Result or mapping"
        )
    if problem is None:
        raise InputError(f"compare: '{name}' is a decision alone and needs its problem (problem=...)")
    try:
        chosen = Decision(decision)
        sizes = {v.name: np.size(v.upper) for v in problem.variables}
        chosen = Decision(
            {k: np.broadcast_to(v, (sizes.get(k, 1),)) if v.shape == (1,) else v for k, v in chosen.items()}
        )
        problem.check(chosen)
    except InputError as error:
        raise InputError(f"compare: '{name}': {error}") from None
    evaluation = problem.evaluate(chosen)
    return Result(
        problem=problem,
        method="given",
        status="feasible" if bool(np.all(evaluation.feasible())) else "infeasible",
        decision=chosen,
        evaluation=evaluation,
        value=float(evaluation.objective),
        lower_bound=None,
        certificate=Certificate(text="a decision that was given, not solved for"),
    )


def _run(
    name: str,
    result: Result,
    task: Task,
    seed: int,
    rounds: int | None,
    options: dict[str, Any],
    folder: str | Path | None,
) -> Run:
    """Train, or take the same run from the folder."""
    options = {**result.problem.training, **options}
    if folder is None:
        run = train(result, task, rounds=rounds, seed=seed, **options)
        if run.status == "interrupted":
            raise KeyboardInterrupt
        return Run.from_dict(run.to_dict())
    assert result.decision is not None
    inputs = [
        __version__,
        result.decision.to_dict(),
        result.problem.system.to_dict(),
        task.fingerprint,
        [seed, rounds, sorted((name, getattr(value, "fingerprint", value)) for name, value in options.items())],
    ]
    key = hashlib.sha256(json.dumps(inputs, default=str).encode()).hexdigest()[:12]
    # names of methods are plain; those of decisions may hold anything
    plain = re.sub(r"[^\w.+-]", "_", name)
    path = Path(folder) / f"{plain}-seed{seed}-{key}.json"
    if path.exists():
        try:
            kept = Run.from_dict(read_json(path))
        except (InputError, KeyError, TypeError, ValueError):
            kept = None  # damaged: train again
        if kept is not None and kept.status != "interrupted":
            return kept
    run = train(result, task, rounds=rounds, seed=seed, **options)
    write_json(run.to_dict(), path)
    if run.status == "interrupted":
        raise KeyboardInterrupt
    return Run.from_dict(run.to_dict())

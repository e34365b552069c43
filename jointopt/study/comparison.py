"""Solve by many methods, train under each answer with several seeds, compare at equal energy and equal delay.

Each finished training run is written to disk at once, so an interrupted comparison goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jointopt._version import __version__
from jointopt.decision import Decision
from jointopt.errors import InputError
from jointopt.federated import Curve, Task
from jointopt.federated.task import Losses
from jointopt.files import read_json, write_json
from jointopt.problem import Problem
from jointopt.report import text_table
from jointopt.result import Result
from jointopt.solvers import solve
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
        return 0 if evaluation is None else len({u for _, u, _ in evaluation.broken() if u is not None})

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
    problem: Problem,
    task: Task | Callable[[int], Task],
    *,
    methods: Sequence[str],
    seeds: Sequence[int] = (0,),
    rounds: int | None = None,
    solve_options: Mapping[str, Mapping[str, Any]] | None = None,
    train_options: Mapping[str, Any] | None = None,
    folder: str | Path | None = None,
    report: Callable[[str], Any] | None = None,
) -> Comparison:
    """Solve a problem by every method and train under every answer.

    Parameters
    ----------
    problem : Problem
        The design with its system.
    task : Task, or a function from seed to Task
        What to train; a function gives each seed its own partition and network start.
    methods : list of str
        Solver methods and baselines. One that finds no decision at all is reported and left out of training;
        a decision that exceeds budgets is trained and marked.
    seeds : list of int
        Training seeds; channels, batches and quantizer draws are shared between methods.
    rounds : int, optional
        Rounds; the bound's when not given.
    folder : path, optional
        Where each run is kept; runs found there, made with the same inputs, are not repeated.
    report : callable, optional
        Told one line per finished step.
    """
    if not methods:
        raise InputError("compare: no methods")
    if not seeds:
        raise InputError("compare: no seeds")
    unknown = [name for name in solve_options or {} if name not in methods]
    if unknown:
        raise InputError(f"compare: solve_options for '{unknown[0]}', which is not among the methods")
    say = report or (lambda line: None)
    results: dict[str, Result] = {}
    for name in methods:
        results[name] = solve(problem, method=name, **dict((solve_options or {}).get(name, {})))
        say(repr(results[name]))
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
        [task.name, task.network, task.scheme, task.alpha, task.seed, task.batch_size, task.samples.tolist()],
        [repr(task.module), hashlib.sha256(Losses(task).start.numpy().tobytes()).hexdigest()],
        [seed, rounds, sorted(options.items())],
    ]
    key = hashlib.sha256(json.dumps(inputs, default=str).encode()).hexdigest()[:12]
    path = Path(folder) / f"{name}-seed{seed}-{key}.json"
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

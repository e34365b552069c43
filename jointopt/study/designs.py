"""One scenario in every design that can express it: solved with certificates, trained alike, booked in one cost model.

The designs read one system differently: some divide the band, some have it given; some keep each device's energy
budget, one keeps their sum, five know no energy at all. What a design chooses and keeps follows from its problem; what
it does not depend on is said by the problem (`Problem.overlooks`). What its decision costs and which budgets it breaks
is not asked of the design: the training ledger books it, with the same model for all.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from jointopt import problems
from jointopt.decision import Decision
from jointopt.errors import InputError, is_whole
from jointopt.federated import Task
from jointopt.federated.ledger import round_cost
from jointopt.report import text_table
from jointopt.result import Result
from jointopt.solvers import solve
from jointopt.study.comparison import Comparison, Run, compare
from jointopt.study.expression import CHOICES, OVERLOOKED, Expression, Reading, SharedScenario, shared_scenario
from jointopt.system import FEASIBILITY_TOLERANCE, FloatArray, System

if TYPE_CHECKING:
    import pandas as pd

    from jointopt.augmentation import Generator

__all__ = [
    "CHOICES",
    "OVERLOOKED",
    "REFERENCES",
    "DesignComparison",
    "Expression",
    "Reading",
    "SharedScenario",
    "compare_designs",
    "over_budget",
    "shared_scenario",
]

REFERENCES = {
    "fedsgd": ("no_compression", "whole model, 32-bit floats, full power, equal bands, everyone; keeps no budget"),
    "uniform": ("uniform", "one ratio and bit-width for all, the least ratio everyone can afford"),
}
"""What the designs are held against: baselines of LTFL, by name."""


@dataclass(frozen=True)
class DesignComparison:
    """Results and training runs by design, and which designs cannot express the scenario.

    `equal` holds what the cheapest design (mean over seeds) spent in all its rounds: energy [J], delay [s], bits.
    """

    scenario: SharedScenario
    expressions: dict[str, Expression]
    comparison: Comparison

    @property
    def runs(self) -> dict[str, list[Run]]:
        """One run per seed, by design."""
        return self.comparison.runs

    @cached_property
    def equal(self) -> dict[str, float]:
        """Energy [J], delay [s] and bits that every design reached."""
        return {
            name: min(float(np.mean([run.total(f"cumulative_{name}") for run in runs])) for runs in self.runs.values())
            for name in ("energy", "delay", "bits")
        }

    @cached_property
    def reach(self) -> float:
        """Greatest whole percentage that every run's test accuracy reached, by the mean of `WINDOW` evaluations."""
        best = []
        for run in (run for runs in self.runs.values() for run in runs):
            values = [row["test_accuracy"] for row in run.rows if row["test_accuracy"] is not None]
            means = np.convolve(values, np.full(WINDOW, 1.0 / WINDOW), mode="valid") if len(values) >= WINDOW else [0.0]
            best.append(float(np.max(means)))
        return float(np.floor(100.0 * min(best) + 1e-9)) / 100.0

    def to_pandas(self) -> pd.DataFrame:
        """Return one row per design: gap, who breaks which budget, costs of a round, accuracies (mean, std, seeds).

        Costs of a round are what all runs booked over their rounds, generation included; `over_delay`, `over_energy`
        count devices beyond their budgets by the ledger's model, `band` is the share of the band that is used,
        `energy_to_reach` and the like are what was spent until the mean of `WINDOW` evaluations was at `reach`.
        Accuracies are means over the last tenth of the evaluations until then: a single one says little, since the
        accuracy goes up and down by points from one round to the next.
        """
        import pandas as pd

        rows = []
        for name, runs in self.runs.items():
            result, made = self.comparison.results[name], self.expressions.get(name)
            row: dict[str, Any] = {
                "design": name,
                "status": result.status,
                "value": result.value,
                "gap": result.gap if name not in REFERENCES else None,
                **over_budget(self.scenario.system, runs[0].decision),
            }
            for what in self.equal:
                spent = [run.total(f"cumulative_{what}") / max(len(run.rows), 1) for run in runs]
                row[f"{what}_per_round"] = float(np.mean(spent))
            reached = {
                **{f"equal_{k}": [_within(run, f"cumulative_{k}", v) for run in runs] for k, v in self.equal.items()},
                "final": [_within(run, "round", math.inf) for run in runs],
            }
            for where, values in reached.items():
                known = [np.nan if v is None else v for v in values]
                row[f"accuracy_{where}"] = float(np.mean(known))
                row[f"accuracy_{where}_std"] = float(np.std(known, ddof=1)) if len(known) > 1 else np.nan
            stops = [run.reached(self.reach, window=WINDOW) for run in runs]
            for what in self.equal:
                spent = [np.nan if stop is None else float(getattr(stop, what)) for stop in stops]
                row[f"{what}_to_reach"] = float(np.mean(spent))
            row["seeds"] = len(runs)
            row["cannot_choose"] = "; ".join(made.leaves) if made else ""
            row["overlooks"] = "; ".join(made.overlooks) if made else ""
            rows.append(row)
        return pd.DataFrame(rows).set_index("design")

    def markdown(self, labels: Mapping[str, str] | None = None) -> str:
        """Return the table for reading, in Markdown; bold is the best and what is within a standard deviation of it."""
        return _markdown(*self._cells(labels or {}))

    def summary(self) -> str:
        """Return the table as aligned text."""
        head, rows = self._cells({})
        return text_table([[re.sub(r"\*\*", "", cell) for cell in row] for row in rows], head, words=1)

    def designs_markdown(self, labels: Mapping[str, str] | None = None) -> str:
        """Return what every design chooses, keeps and overlooks, the references, and why some cannot express it."""
        words = labels or {}
        rows = []
        for name, made in self.expressions.items():
            if made.problem is not None:
                chooses = ", ".join(CHOICES.get(v, v.replace("_", " ")) for v in made.chooses)
                keeps = ", ".join(k.replace("_", " ") for k in made.keeps)
                rows.append([words.get(name, name), chooses, keeps, ", ".join(made.overlooks), made.remark])
        text = _markdown(["design", "chooses", "keeps", "does not depend on", "how it reads the scenario"], rows)
        cannot = [f"* `{name}`: {made.reason}." for name, made in self.expressions.items() if made.problem is None]
        held = [f"* {words.get(name, name)}: {REFERENCES[name][1]}." for name in self.runs if name in REFERENCES]
        lists = {"References:": held, "Cannot express the scenario:": cannot}
        return "\n\n".join([text, *(f"{head}\n\n" + "\n".join(lines) for head, lines in lists.items() if lines)])

    def _cells(self, labels: Mapping[str, str]) -> tuple[list[str], list[list[str]]]:
        table = self.to_pandas()
        best = {
            where: table.index[_leading(*(table[f"accuracy_{where}{end}"].to_numpy(float) for end in ("", "_std")))]
            for where in ("equal_energy", "equal_delay", "equal_bits", "final")
        }
        equal = self.equal

        def percent(row: Any, where: str) -> str:
            mean, spread = row[f"accuracy_{where}"], row[f"accuracy_{where}_std"]
            if not np.isfinite(mean):
                return "-"
            text = f"{100 * mean:.1f}" + (f" ± {100 * spread:.1f}" if np.isfinite(spread) else "")
            return f"**{text}**" if row.name in best[where] else text

        def broken(row: Any) -> str:
            words = [f"{int(row[f'over_{what}'])} {what}" for what in ("delay", "energy") if row[f"over_{what}"]]
            words += ["band"] if row["band"] > 1.0 + FEASIBILITY_TOLERANCE else []
            return ", ".join(words) or "none"

        rows = [
            [
                labels.get(str(name), str(name)),
                "-" if not np.isfinite(row["gap"]) else f"{row['gap']:.0e}" + _unproved(row["status"]),
                broken(row),
                f"{int(row['taking_part'])}",
                f"{row['energy_per_round']:.3g}",
                f"{row['delay_per_round']:.3g}",
                f"{row['bits_per_round'] / 8e6:.3g}",
                *(percent(row, where) for where in best),
                row["cannot_choose"] or "(reference)",
            ]
            for name, row in table.astype({"gap": float}).iterrows()
        ]
        head = [
            "design",
            "certified gap",
            "devices over budget",
            "in a round",
            "J/round",
            "s/round",
            "MB/round",
            f"accuracy [%] at {_plain(equal['energy'])} J",
            f"at {_plain(equal['delay'])} s",
            f"at {_plain(equal['bits'] / 8e6)} MB",
            "after all rounds",
            "does not choose",
        ]
        return head, rows


WINDOW = 5
"""Evaluations whose mean tells that an accuracy is reached."""


def _leading(mean: FloatArray, spread: FloatArray) -> npt.NDArray[np.bool_]:
    """Return which means are no worse than the best by more than a standard deviation, the larger of the two."""
    known, spread = np.nan_to_num(mean, nan=-np.inf), np.nan_to_num(spread)
    top = int(np.argmax(known))
    return np.isfinite(known) & (known >= known[top] - np.maximum(spread, spread[top]))


def _plain(value: float) -> str:
    return f"{value:.3g}" if value < 1e3 else f"{value:,.0f}"


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _within(run: Run, column: str, most: float) -> float | None:
    """Return the mean accuracy of the last tenth of the evaluations while a running total was at most so much."""
    # a running total may exceed the amount it was summed up to by rounding
    held = [r["test_accuracy"] for r in run.rows if r["test_accuracy"] is not None and r[column] <= most * (1 + 1e-9)]
    return float(np.mean(held[-math.ceil(len(held) / 10) :])) if held else None


def over_budget(system: System, decision: Mapping[str, Any]) -> dict[str, float]:
    """Return how many devices a decision takes, how many exceed which budget, and the share of the band it uses.

    By the training ledger's model, whatever the design that made the decision believes.
    """
    if "augmentation_level" in decision:
        # where whole data sets are trained on, synthetic samples are too
        system = system.augmented(decision["augmentation_level"])
    cost = round_cost(system, Decision(decision))
    taken, most = cost.selected, 1.0 + FEASIBILITY_TOLERANCE
    assert system.radio.bandwidth is not None
    band = float(system.radio.total_bandwidth or system.radio.bandwidth.sum())
    return {
        "taking_part": int(taken.sum()),
        "over_delay": int(np.sum(cost.delay > most * system.devices.delay_budget)),
        "over_energy": int(np.sum(cost.energy > most * system.devices.energy_budget)),
        "band": float(cost.bandwidth[taken].sum()) / band,
        "packet_error": float(cost.packet_error[taken].mean()),
    }


SHARED_GAP = 1e-2
"""Relative gap at which a search over what all devices share may stop."""


def _solved(
    scenario: SharedScenario,
    made: Mapping[str, Expression],
    references: Sequence[str],
    limit: float,
    options: Mapping[str, Mapping[str, Any]],
    say: Callable[[str], Any],
) -> dict[str, Result]:
    """Solve every design by its certified method, then the references."""
    results = {}
    for name, expression in made.items():
        if expression.problem is None:
            say(f"{name}: cannot express the scenario ({expression.reason})")
            continue
        # branch and bound over what all devices share ends slowly
        gap = SHARED_GAP if expression.problem.capabilities().shared is not None else None
        own = {"gap": gap, "time_limit": limit, **options.get(name, {})}
        results[name] = _uninterrupted(solve(expression.problem, **own))
        say(f"{name}: {results[name]!r}")
    for name in references:
        problem = scenario.express(["ltfl"])["ltfl"].problem
        if problem is None:
            raise InputError(f"compare_designs: the reference '{name}' needs a scenario that LTFL expresses")
        method, _ = REFERENCES[name]
        # 32 bits are beyond what the designs choose from
        results[name] = _uninterrupted(solve(problems.LTFL(problem.system), method=method, time_limit=limit))
        say(f"{name}: {results[name]!r}")
    return results


def _unproved(status: str) -> str:
    """Return a note on gaps above the one that was asked for."""
    return "" if status == "optimal" else f" ({status.replace('_', ' ')})"


def _uninterrupted(result: Result) -> Result:
    """Return a result, or interrupt where solving was: what it found by then is no answer to compare."""
    if result.status == "interrupted":
        raise KeyboardInterrupt
    return result


def _checked(scenario: Any, task: Any, seeds: Any, rounds: Any) -> dict[int, Task]:
    """Return the task of each seed, after all that can be checked before any work starts."""
    if not isinstance(scenario, SharedScenario):
        raise InputError(f"scenario: expected a SharedScenario, got {type(scenario).__name__}")
    if rounds is not None and not (is_whole(rounds) and rounds >= 1):
        raise InputError(f"rounds: must be a whole number of at least 1, found {rounds!r}")
    if isinstance(seeds, str) or not isinstance(seeds, Iterable):
        raise InputError(f"seeds: expected a list of whole numbers, found {seeds!r}")
    seeds = list(seeds)
    bad = [seed for seed in seeds if not (is_whole(seed) and seed >= 0)]
    if bad or not seeds or len(set(seeds)) < len(seeds):
        raise InputError(f"seeds: must be different whole numbers of at least 0, and at least one, found {seeds!r}")
    tasks = {seed: task(seed) if callable(task) else task for seed in seeds}
    for made in tasks.values():
        if not isinstance(made, Task):
            raise InputError(f"task: expected a Task, or a function from seed to Task, found {type(made).__name__}")
        made.check(scenario.system)
    return tasks


def compare_designs(
    scenario: SharedScenario,
    task: Task | Callable[[int], Task],
    *,
    designs: Iterable[str] | None = None,
    references: Sequence[str] = tuple(REFERENCES),
    seeds: Sequence[int] = (0, 1, 2),
    rounds: int | None = None,
    time_limit: float = 60.0,
    generator: Generator | None = None,
    solve_options: Mapping[str, Mapping[str, Any]] | None = None,
    train_options: Mapping[str, Any] | None = None,
    folder: str | Path | None = None,
    report: Callable[[str], Any] | None = None,
) -> DesignComparison:
    """Solve a scenario in every design, train the same task under every answer, and book it all in one cost model.

    A design that finds no feasible decision within its time is reported and left out of training.

    Parameters
    ----------
    scenario : SharedScenario
        Of `shared_scenario`, or of any system.
    task : Task, or a function from seed to Task
        What to train.
    designs : names, optional
        All when not given.
    references : names
        Of `REFERENCES`; trained although they may break budgets.
    seeds, rounds
        Training seeds, and rounds (updates of the server's model) for all; the bound's when not given.
    time_limit : float
        Seconds for each design's solver.
    generator : Generator, optional
        Makes the synthetic samples of designs that ask for some.
    solve_options : mapping, optional
        Options of `jointopt.solve` by design.
    train_options : mapping, optional
        Further options of `jointopt.train`, the same for all.
    folder : path, optional
        Where each run is kept; runs found there, made with the same inputs, are not repeated.
    report : callable, optional
        Told one line per finished step.

    Raises
    ------
    InputError
        For unknown designs or references, a task that is not about the scenario, seeds or rounds out of range, a
        design that makes synthetic samples where no generator is given, all before any work starts; or where no design
        has a decision to train under.
    """
    tasks = _checked(scenario, task, seeds, rounds)
    unknown = [name for name in references if name not in REFERENCES]
    if unknown:
        raise InputError(f"compare_designs: unknown reference '{unknown[0]}'; known are {', '.join(REFERENCES)}")
    say = report or (lambda line: None)
    made = scenario.express(designs)
    idle = [name for name in solve_options or {} if name not in made]
    if idle:
        raise InputError(f"compare_designs: solve_options for '{idle[0]}', which is not among the designs")
    makers = [name for name, one in made.items() if "augmentation_level" in one.chooses]
    if makers and generator is None:
        raise InputError(
            f"generator: '{makers[0]}' may ask for synthetic samples; give generator=..., or leave the design out"
        )
    results, runs = {}, {}
    for name, result in _solved(scenario, made, references, time_limit, solve_options or {}, say).items():
        if result.decision is None or not (result.feasible or name in references):
            say(f"{name}: no feasible decision ({result.message or result.status})")
            continue
        options = {**result.problem.training, **(train_options or {})}
        if "augmentation_level" in result.decision and generator is not None:
            options["generator"] = generator
        trained = compare(
            {name: result},
            lambda seed: tasks[seed],
            seeds=list(tasks),
            rounds=rounds,
            train_options=options,
            folder=folder,
            report=say,
        )
        results[name], runs[name] = result, trained.runs[name]
    if not runs:
        raise InputError("compare_designs: no design has a decision to train under")
    totals = [
        min(float(np.mean([run.total(column) for run in many])) for many in runs.values())
        for column in ("cumulative_energy", "cumulative_delay")
    ]
    return DesignComparison(scenario, made, Comparison(results, runs, *totals))

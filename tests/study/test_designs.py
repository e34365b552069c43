"""One scenario in many designs: what they say of themselves is true, and all are booked alike."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from jointopt import problems, systems
from jointopt.augmentation import generator, public_split
from jointopt.data import load
from jointopt.decision import Decision
from jointopt.errors import InputError
from jointopt.federated import Task
from jointopt.federated.ledger import round_cost
from jointopt.federated.plan import trainable
from jointopt.plot.designs import LABELS
from jointopt.problem import Evaluation, Problem
from jointopt.problems import FEEL, LTFL
from jointopt.solvers import solve
from jointopt.study import comparison, designs
from jointopt.study.designs import (
    CHOICES,
    OVERLOOKED,
    REFERENCES,
    DesignComparison,
    SharedScenario,
    compare_designs,
    over_budget,
    shared_scenario,
)
from jointopt.system import System

FEDERATED = [
    "ltfl",
    "ltfl-pool",
    "feel",
    "feddpq",
    "ratio-bandwidth",
    "ratio-bandwidth-selection",
    "time-triggered",
    "ratio-error",
    "hierarchical",
]
DEVICES = 5


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def maker(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return generator("gaussian", load("digits"), cache=tmp_path_factory.mktemp("generator"), share=0.3, seed=0)


@pytest.fixture(scope="module")
def task() -> Task:
    data = load("digits")
    _, rest = public_split(data, 0.3, 0)
    # batches, so that their noise matters
    return Task.make(data, "mlp", devices=DEVICES, among=rest, batch_size=16, seed=0)


@pytest.fixture(scope="module")
def scenario(task: Task, maker: Any) -> SharedScenario:
    return shared_scenario(task, seed=0, generator=maker, rounds=100)


@pytest.fixture(scope="module")
def compared(scenario: SharedScenario, task: Task, tmp_path_factory: pytest.TempPathFactory, maker: Any) -> Any:
    folder = tmp_path_factory.mktemp("runs")
    options: dict[str, Any] = {
        "designs": ["ltfl", "feel", "feddpq", "time-triggered", "aerial"],
        "seeds": [0, 1],
        "rounds": 6,
        "solve_options": {"time-triggered": {"gap": 0.01}, "feddpq": {"gap": 0.05}},
        "generator": maker,
        "train_options": {"evaluate_every": 1, "measure_gradient_every": 0},
        "folder": folder,
    }
    return compare_designs(scenario, task, **options), options


# ------------------------------------------------------------------ who can express it


def test_every_federated_design_expresses_the_scenario_and_no_other(scenario: SharedScenario) -> None:
    made = scenario.express()
    assert list(made) == list(problems.DESIGNS)
    assert [name for name, one in made.items() if one.problem is not None] == FEDERATED
    assert "vehicles in the air" in made["aerial"].reason
    assert "split" in made["coinference"].reason or "server" in made["coinference"].reason
    assert all(bool(one.reason) == (one.problem is None) for one in made.values())


@pytest.mark.parametrize(
    ("design", "missing"),
    [
        ("feel", "generalization"),
        ("feddpq", "augmentation"),
        ("time-triggered", "tiers"),
        ("ratio-error", "tradeoff"),
        ("hierarchical", "edges"),
    ],
)
def test_a_system_without_a_section_says_which_is_missing(design: str, missing: str) -> None:
    made = SharedScenario(systems.ltfl(4)).express([design])[design]
    assert made.problem is None
    assert made.reason.startswith(f"{missing}:")
    assert (made.chooses, made.keeps, made.overlooks) == ((), (), ())


def test_a_system_without_sections_is_expressed_by_the_designs_that_need_none() -> None:
    made = SharedScenario(systems.ltfl(4)).express()
    able = [name for name, one in made.items() if one.problem is not None]
    assert able == ["ltfl", "ltfl-pool", "ratio-bandwidth", "ratio-bandwidth-selection"]


def test_a_radio_that_fades_is_beyond_feel(scenario: SharedScenario) -> None:
    faded = SharedScenario(scenario.system.with_(fading="rayleigh"), scenario.readings)
    made = faded.express(["feel", "ltfl"])
    assert made["feel"].reason.startswith("radio.fading")
    assert made["ltfl"].problem is not None


def test_bad_input(scenario: SharedScenario, task: Task) -> None:
    with pytest.raises(InputError, match="unknown 'ltlf'"):
        scenario.express(["ltlf"])
    with pytest.raises(InputError, match="unknown reference 'plain'"):
        compare_designs(scenario, task, references=["plain"])
    with pytest.raises(InputError, match="solve_options for 'feel'"):
        compare_designs(scenario, task, designs=["ltfl"], solve_options={"feel": {"gap": 0.1}})
    with pytest.raises(InputError, match="no design has a decision"):
        compare_designs(scenario, task, designs=["aerial"], references=[])
    for seeds in ([], [-1], ["a"], [0, 0], 3, "01", [True, 0.5]):
        with pytest.raises(InputError, match="seeds: "):
            compare_designs(scenario, task, designs=["ltfl"], seeds=seeds)  # type: ignore[arg-type]
    for rounds in (0, 1.5, float("nan")):
        with pytest.raises(InputError, match="rounds: "):
            compare_designs(scenario, task, designs=["ltfl"], rounds=rounds)  # type: ignore[arg-type]
    for other in (None, scenario.system, "digits"):
        with pytest.raises(InputError, match="scenario: expected a SharedScenario"):
            compare_designs(other, task)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="task: expected a Task"):
        compare_designs(scenario, None)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="split over 3 devices"):
        compare_designs(scenario, Task.make("digits", devices=3))
    with pytest.raises(InputError, match=r"generator: 'feddpq' may ask for synthetic samples"):
        compare_designs(scenario, task)
    with pytest.raises(InputError, match="constants were measured"):
        shared_scenario(Task.make(_renamed(), "mlp", devices=3))


def test_an_interrupted_solve_is_no_answer(
    scenario: SharedScenario, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*args: Any, **options: Any) -> Any:
        return replace(solve(*args, **options), status="interrupted")

    for module in (designs, comparison):
        monkeypatch.setattr(module, "solve", stopped)
    with pytest.raises(KeyboardInterrupt):
        compare_designs(scenario, task, designs=["ratio-bandwidth"], references=[], seeds=[0], rounds=1)
    with pytest.raises(KeyboardInterrupt):
        comparison.compare(LTFL(scenario.system), task, methods=["exact"], rounds=1)


def _renamed() -> Any:
    return replace(load("digits"), name="other")


# ------------------------------------------------------------------ the scenario


def test_the_scenario_is_the_same_in_all_units(scenario: SharedScenario, task: Task, maker: Any) -> None:
    system = scenario.system
    assert system.radio.bandwidth is not None and system.radio.total_bandwidth is not None
    assert system.edges is not None and system.tiers is not None and system.augmentation is not None
    assert system.radio.bandwidth.sum() == pytest.approx(system.radio.total_bandwidth)
    assert system.edges.edge_bandwidth.sum() == pytest.approx(system.radio.total_bandwidth)
    assert system.tiers.interval * system.tiers.periods[-1] == pytest.approx(system.devices.delay_budget[0])
    assert np.array_equal(system.augmentation.class_counts, task.class_counts)
    assert system.bound.rounds == 100
    again = shared_scenario(task, seed=0, generator=maker, rounds=100)
    assert again.system.to_dict() == system.to_dict()
    assert shared_scenario(task, seed=1, generator=maker).system.to_dict() != system.to_dict()


def test_designs_differ_in_how_they_read_it_only_where_it_is_said(scenario: SharedScenario) -> None:
    for name, made in scenario.express(FEDERATED).items():
        assert made.problem is not None
        reading = scenario.readings.get(name)
        changed = set(reading.changes) if reading else set()
        ours, theirs = scenario.system, made.problem.system
        # what the ledger books by is the same for all
        for section in ("devices", "radio", "learner"):
            assert getattr(ours, section).to_dict() == getattr(theirs, section).to_dict()
        if not changed:
            assert theirs is ours
        assert bool(made.remark) == (reading is not None)


# ------------------------------------------------------------------ what designs say of themselves


def _middle(problem: Problem) -> Decision:
    """A decision in the middle of everything, that splits the band."""
    size = len(problem.system)
    fixed = {
        "selected": np.ones(size),
        "bits": np.full(size, 8.0),
        "bandwidth": np.linspace(0.8, 1.2, size) * 50e3,
        "augmentation_level": np.full(1, 0.5),
        "pruning_ratio": np.linspace(0.2, 0.6, size),
    }
    shares = {"power": 0.5, "frequency": 0.7}
    return Decision(
        {
            v.name: fixed[v.name] if v.name in fixed else np.maximum(shares[v.name] * v.upper, v.lower)
            for v in problem.variables
        }
    )


def _changed(system: System, word: str) -> System:
    """The system with what a word of `OVERLOOKED` is about changed."""
    new: dict[str, Any] = {}
    for name in OVERLOOKED[word]:
        section = next(s for s, kind in system.sections().items() if name in kind.model_fields)
        value = getattr(getattr(system, section), name)
        if word == "each device's own energy budget":
            new[name] = value[::-1]
        elif name == "packet_error":
            new[name] = "none"
        elif name == "class_counts":
            # each device's classes turned by another number: its own samples stay as many
            new[name] = np.stack([np.roll(row, u) for u, row in enumerate(value)])
        else:
            new[name] = value * 0.37
    return system.with_(**new)


def _depends_on(before: Evaluation, after: Evaluation) -> bool:
    # the same sum in another order may differ in its last bit
    def alike(one: Any, other: Any) -> bool:
        return np.allclose(one, other, rtol=1e-12, atol=0.0)

    same = all(alike(before.slack[name], after.slack[name]) for name in before.slack)
    return not (same and alike(before.objective, after.objective))


@pytest.mark.parametrize("word", OVERLOOKED)
@pytest.mark.parametrize("design", FEDERATED)
def test_what_is_overlooked_changes_nothing_and_all_else_does(scenario: SharedScenario, design: str, word: str) -> None:
    kind = problems.get(design)
    reading = scenario.readings.get(design)
    system = scenario.system.with_(**reading.changes) if reading and reading.changes else scenario.system
    before, after = kind(system), kind(_changed(system, word))
    decision = _middle(before)
    overlooked = word in kind.overlooks
    if word == "each device's own energy budget":
        overlooked |= "energy budgets" in kind.overlooks
    assert _depends_on(before.evaluate(decision), after.evaluate(decision)) != overlooked


def test_the_words_are_known_and_none_is_idle() -> None:
    kinds = [problems.get(name) for name in FEDERATED]
    for kind in kinds:
        assert set(kind.overlooks) <= set(OVERLOOKED)
        assert list(kind.overlooks) == [word for word in OVERLOOKED if word in kind.overlooks]
    for word in OVERLOOKED:
        assert 0 < sum(word in kind.overlooks for kind in kinds) < len(kinds)


def test_choices_are_the_variables_with_room(scenario: SharedScenario) -> None:
    made = scenario.express(FEDERATED)
    assert made["ltfl"].chooses == ("pruning_ratio", "bits", "power")
    assert made["ratio-bandwidth"].chooses == ("pruning_ratio", "bandwidth")
    assert made["ltfl"].leaves == ("band", "frequency", "who takes part", "synthetic samples")
    assert "power" in made["ratio-bandwidth"].leaves
    for one in made.values():
        assert len(one.leaves) + len([v for v in one.chooses if v in CHOICES]) == len(CHOICES)
        # what is said to be fixed is fixed: a decision with another value is not feasible
        problem = one.problem
        assert problem is not None
        for variable in problem.variables:
            if variable.name not in one.chooses:
                moved = _middle(problem).with_(**{variable.name: 0.9 * variable.upper})
                assert problem.evaluate(moved).slack[variable.name].min() < 0.0


def test_what_is_kept_is_every_constraint(scenario: SharedScenario) -> None:
    made = scenario.express(FEDERATED)
    assert made["ltfl"].keeps == ("delay", "energy", "contraction")
    assert made["hierarchical"].keeps == ("delay", "edge_bandwidth")
    assert "total_energy" in made["ltfl-pool"].keeps
    for one in made.values():
        assert one.problem is not None
        assert set(one.problem.budgets) <= set(one.keeps)
        assert ("energy" in one.keeps) == ("each device's own energy budget" not in _all_overlooked(one.overlooks))


def _all_overlooked(words: tuple[str, ...]) -> set[str]:
    return set(words) | ({"each device's own energy budget"} if "energy budgets" in words else set())


# ------------------------------------------------------------------ one cost model


@pytest.mark.parametrize("design", FEDERATED)
def test_the_ledger_books_what_the_design_believes(scenario: SharedScenario, design: str) -> None:
    problem = scenario.express([design])[design].problem
    assert problem is not None
    result = solve(problem, gap=5e-2)
    assert result.feasible and result.decision is not None and result.evaluation is not None
    carried_out = trainable(result.decision, scenario.system)
    cost = round_cost(scenario.system, carried_out)
    known = result.evaluation.quantities
    # ratios are rounded up to whole weights
    assert cost.delay == pytest.approx(known["delay"], rel=2e-3)
    assert cost.energy == pytest.approx(known["energy"], rel=2e-3)
    found = over_budget(scenario.system, carried_out)
    if "delay" in result.evaluation.slack:
        assert found["over_delay"] == 0
    if "energy" in result.evaluation.slack:
        assert found["over_energy"] == 0
    assert found["band"] <= 1.0 + 1e-9


def test_budgets_are_counted_as_ltfl_counts_them(scenario: SharedScenario) -> None:
    system = scenario.system
    ratio = np.array([0.0, 0.3, 0.6, 0.8, 0.9])
    decision = Decision({"pruning_ratio": ratio, "bits": np.full(DEVICES, 16.0), "power": system.devices.power_max})
    slack = LTFL(system).evaluate(decision).slack
    found = over_budget(system, decision)
    assert found["over_delay"] == np.sum(slack["delay"] < 0.0)
    assert found["over_energy"] == np.sum(slack["energy"] < 0.0)
    assert 0 < found["over_delay"] + found["over_energy"] < 2 * DEVICES
    assert found["taking_part"] == DEVICES
    assert found["band"] == pytest.approx(1.0)


def test_too_much_band_and_who_is_left_out_are_counted(scenario: SharedScenario) -> None:
    system = scenario.system
    decision = {
        "pruning_ratio": np.zeros(DEVICES),
        "power": system.devices.power_max,
        "bandwidth": np.full(DEVICES, 1e5),
    }
    assert over_budget(system, decision)["band"] == pytest.approx(2.0)
    out = decision | {"selected": np.array([1.0, 0.0, 0.0, 0.0, 1.0])}
    found = over_budget(system, out)
    assert (found["taking_part"], found["band"]) == (2, pytest.approx(0.8))
    assert max(found["over_delay"], found["over_energy"]) <= 2


def test_synthetic_samples_are_trained_on_where_all_samples_are(scenario: SharedScenario) -> None:
    system = scenario.system.with_(batch_size=None, energy_budget=1.0)
    decision = {"pruning_ratio": np.zeros(DEVICES), "bits": np.full(DEVICES, 4.0), "power": system.devices.power_min}
    cost = round_cost(system, Decision(decision))
    tight = system.with_(energy_budget=1.01 * cost.energy)
    assert over_budget(tight, decision)["over_energy"] == 0
    assert over_budget(tight, decision | {"augmentation_level": np.full(DEVICES, 1.0)})["over_energy"] == DEVICES


# ------------------------------------------------------------------ the comparison


def test_every_design_is_trained_alike(compared: tuple[DesignComparison, Any]) -> None:
    made = compared[0]
    assert list(made.runs) == ["ltfl", "feel", "feddpq", "time-triggered", *REFERENCES]
    assert all(len(runs) == 2 and len(runs[0].rows) == 6 for runs in made.runs.values())
    # the clock of the tiers: aggregations at whole intervals
    interval = made.scenario.system.tiers.interval  # type: ignore[union-attr]
    ticks = np.array([row["cumulative_delay"] for row in made.runs["time-triggered"][0].rows]) / interval
    assert ticks == pytest.approx(np.rint(ticks))


def test_the_table_is_that_of_the_runs(compared: tuple[DesignComparison, Any]) -> None:
    made = compared[0]
    table = made.to_pandas()
    assert list(table.index) == list(made.runs)
    for name, runs in made.runs.items():
        row = table.loc[name]
        assert row["energy_per_round"] == pytest.approx(np.mean([r.rows[-1]["cumulative_energy"] / 6 for r in runs]))
        assert row["bits_per_round"] == pytest.approx(np.mean([r.rows[-1]["cumulative_bits"] / 6 for r in runs]))
        # of six evaluations the last tenth is the last one
        assert row["accuracy_final"] == pytest.approx(np.mean([r.rows[-1]["test_accuracy"] for r in runs]))
        for what, most in made.equal.items():
            held = [
                [w["test_accuracy"] for w in r.rows if w[f"cumulative_{what}"] <= most * (1.0 + 1e-9)] for r in runs
            ]
            wanted = np.mean([h[-1] for h in held]) if all(held) else np.nan
            assert row[f"accuracy_equal_{what}"] == pytest.approx(wanted, nan_ok=True)
    for what, most in made.equal.items():
        totals = [np.mean([r.rows[-1][f"cumulative_{what}"] for r in runs]) for runs in made.runs.values()]
        assert most == pytest.approx(min(totals))

    def means(run: Any) -> list[float]:
        values = [w["test_accuracy"] for w in run.rows]
        return [0.0] * 4 + [sum(values[i - 4 : i + 1]) / 5 for i in range(4, len(values))]

    best = [max(means(run)) for runs in made.runs.values() for run in runs]
    assert made.reach <= min(best) < made.reach + 0.01
    for name, runs in made.runs.items():
        at = [next(i for i, mean in enumerate(means(run)) if mean >= made.reach) for run in runs]
        spent = [run.rows[i]["cumulative_delay"] for run, i in zip(runs, at, strict=True)]
        assert table.loc[name, "delay_to_reach"] == pytest.approx(np.mean(spent))
    # a reference proves nothing of the others
    assert table.loc[list(REFERENCES), "gap"].isna().all()
    assert table.loc["ltfl", "gap"] <= 1e-6
    assert table.loc["fedsgd", "over_energy"] == DEVICES
    assert table.loc["uniform", ["over_delay", "over_energy"]].sum() == 0


def test_an_accuracy_is_the_mean_of_the_last_tenth_until_then(compared: tuple[DesignComparison, Any]) -> None:
    made = compared[0]
    rows = [
        {
            "round": n,
            "test_accuracy": n / 100 if n % 2 else None,
            **{f"cumulative_{what}": float(n) for what in made.equal},
        }
        for n in range(1, 51)
    ]
    dear = [{**row, **{f"cumulative_{what}": 2.0 * row["round"] for what in made.equal}} for row in rows]
    run = made.runs["ltfl"][0]
    runs = {"ltfl": [replace(run, rows=rows)], "uniform": [replace(run, rows=dear)]}
    table = replace(made, comparison=replace(made.comparison, runs=runs)).to_pandas()
    # 25 evaluations: the last three
    assert table["accuracy_final"].tolist() == pytest.approx([0.47, 0.47])
    # at 50 of each: 13 evaluations of the dear one, up to round 25, so its last two
    assert table.loc["uniform", "accuracy_equal_bits"] == pytest.approx(np.mean([0.23, 0.25]))
    assert table.loc["ltfl", "accuracy_equal_bits"] == pytest.approx(0.47)


def test_bold_is_what_is_not_worse_than_the_seeds_scatter() -> None:
    mean, spread = np.array([0.50, 0.48, 0.47, np.nan, 0.45]), np.array([0.02, 0.001, 0.01, np.nan, 0.06])
    assert designs._leading(mean, spread).tolist() == [True, True, False, False, True]
    # one seed tells nothing of scatter
    assert designs._leading(mean, np.full(5, np.nan)).tolist() == [True, False, False, False, False]
    assert not designs._leading(np.full(2, np.nan), np.full(2, np.nan)).any()


def test_markdown_is_a_table(compared: tuple[DesignComparison, Any]) -> None:
    made = compared[0]
    lines = made.markdown({"ltfl": "LTFL"}).splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert re.fullmatch(r"[|\- ]+", lines[1])
    assert len(lines) == 2 + len(made.runs)
    assert lines[2].startswith("| LTFL | ")
    assert "nan" not in "\n".join(lines)
    text = made.designs_markdown()
    assert "* `aerial`: is about another kind of system" in text
    assert "joules to a target" in text
    assert all(f"* {name}: {words}." in text for name, (_, words) in REFERENCES.items())
    assert len(made.summary().splitlines()) == 2 + len(made.runs)


def test_finished_runs_are_not_repeated(
    compared: tuple[DesignComparison, Any], scenario: SharedScenario, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, options = compared

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("trained although the run was there")

    monkeypatch.setattr(comparison, "train", refuse)
    again = compare_designs(scenario, task, **options)
    assert again.to_pandas().equals(made.to_pandas())


def test_an_interruption_comes_through_and_keeps_what_is_done(
    scenario: SharedScenario, task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, done = comparison.train, []

    def once(*args: Any, **kwargs: Any) -> Any:
        if done:
            raise KeyboardInterrupt
        done.append(1)
        return real(*args, **kwargs)

    monkeypatch.setattr(comparison, "train", once)
    with pytest.raises(KeyboardInterrupt):
        compare_designs(scenario, task, designs=["ltfl"], references=[], seeds=[0, 1], rounds=2, folder=tmp_path)
    assert len(list(tmp_path.glob("ltfl-seed0-*.json"))) == 1


def test_a_design_without_a_feasible_decision_is_left_out_and_said(scenario: SharedScenario, task: Task) -> None:
    tight = SharedScenario(scenario.system.with_(delay_budget=1e-3), scenario.readings)
    lines: list[str] = []
    made = compare_designs(
        tight, task, designs=["ltfl"], references=["fedsgd"], seeds=[0], rounds=1, report=lines.append
    )
    assert list(made.runs) == ["fedsgd"]
    assert any(line.startswith("ltfl: no feasible decision") for line in lines)
    with pytest.raises(InputError, match="needs a scenario that LTFL expresses"):
        compare_designs(SharedScenario(scenario.system, {"ltfl": _impossible()}), task, designs=["feel"])


def _impossible() -> Any:
    from jointopt.study.designs import Reading

    return Reading(ranges={"bits": 99})


def test_a_design_is_solved_as_it_is_read(scenario: SharedScenario) -> None:
    made = scenario.express(["feddpq", "ltfl-pool"])
    pool = made["ltfl-pool"].problem
    assert pool is not None
    assert pool.energy_budget == pytest.approx(scenario.system.devices.energy_budget.sum())  # type: ignore[attr-defined]
    fed = made["feddpq"].problem
    assert fed is not None
    # the target is out of nobody's reach: whole models at full power reach it
    size = len(scenario.system)
    whole = {
        "augmentation_level": np.zeros(1),
        "pruning_ratio": np.zeros(size),
        "bits": np.full(size, 24.0),
        "power": scenario.system.devices.power_max,
    }
    known = fed.evaluate(Decision(whole))
    assert float(known.slack["target"]) > 0.0
    assert float(known.quantities["rounds"]) < scenario.system.bound.rounds
    assert isinstance(scenario.express(["feel"])["feel"].problem, FEEL)


# ------------------------------------------------------------------ what is documented


ROOT = Path(__file__).resolve().parents[2]


def test_the_page_shows_the_results_that_are_kept() -> None:
    page = (ROOT / "docs" / "designs.md").read_text(encoding="utf-8")
    kept = (ROOT / "results" / "designs.md").read_text(encoding="utf-8")
    rows = [line for line in kept.splitlines() if line.startswith(("| ", "* "))]
    assert len(rows) > 20
    assert all(row in page for row in rows if row.startswith("|"))
    # what designs say of themselves is what they say now
    for name in FEDERATED:
        overlooked = ", ".join(problems.get(name).overlooks)
        assert any(f"| {LABELS[name]} |" in row and overlooked in row for row in rows)

"""Comparisons: what equal energy and equal delay mean, and that no finished run is repeated."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from jointopt.decision import Decision
from jointopt.errors import InputError
from jointopt.federated import Task
from jointopt.files import write_json
from jointopt.problems import FEEL, LTFL
from jointopt.result import Result
from jointopt.solvers import solve
from jointopt.study import Comparison, compare, comparison, load_decision, train
from jointopt.study.comparison import Run
from jointopt.system import System

METHODS = ["exact", "random", "no_compression"]
ROUNDS = 4


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def task() -> Task:
    return Task.make(data="digits", devices=4, seed=0)


@pytest.fixture(scope="module")
def problem(task: Task) -> LTFL:
    return LTFL(System.from_task(task, seed=0))


@pytest.fixture(scope="module")
def compared(problem: LTFL, task: Task) -> Comparison:
    return compare(problem, task, methods=METHODS, seeds=[0, 1], rounds=ROUNDS)


def refuse(*args: Any, **kwargs: Any) -> Any:
    raise AssertionError("trained although the run was there")


# ------------------------------------------------------------------ what is compared


def test_equal_costs_by_hand(compared: Comparison) -> None:
    for attribute, column in (("equal_energy", "cumulative_energy"), ("equal_delay", "cumulative_delay")):
        spent = {
            name: sum(run.rows[ROUNDS - 1][column] for run in runs) / len(runs) for name, runs in compared.runs.items()
        }
        assert getattr(compared, attribute) == pytest.approx(min(spent.values()), rel=1e-12)
    # every method reached it
    for runs in compared.runs.values():
        for run in runs:
            assert run.rows[-1]["cumulative_energy"] >= compared.equal_energy * (1 - 1e-9)


def test_accuracy_at_equal_costs_by_hand(compared: Comparison) -> None:
    table = compared.to_pandas()
    assert list(table.index) == METHODS
    for name, runs in compared.runs.items():
        for cost, limit in (("energy", compared.equal_energy), ("delay", compared.equal_delay)):
            reached = []
            for run in runs:
                within = [r["test_accuracy"] for r in run.rows if r[f"cumulative_{cost}"] <= limit]
                reached.append(within[-1] if within else None)
            mean = table.loc[name, f"accuracy_equal_{cost}"]
            spread = table.loc[name, f"accuracy_equal_{cost}_std"]
            if None in reached:
                assert np.isnan(mean)
            else:
                assert mean == pytest.approx(sum(reached) / 2)
                assert spread == pytest.approx(abs(reached[0] - reached[1]) / np.sqrt(2))
        final = [run.rows[-1]["test_accuracy"] for run in runs]
        assert table.loc[name, "accuracy_final"] == pytest.approx(sum(final) / 2)


def test_the_cheapest_method_is_compared_at_its_last_round(problem: LTFL, task: Task) -> None:
    one = compare(problem, task, methods=["exact"], seeds=[0, 1, 2], rounds=3)
    table = one.to_pandas()
    for kind in ("energy", "delay"):
        assert table.loc["exact", f"accuracy_equal_{kind}"] == table.loc["exact", "accuracy_final"]


def test_over_budget_by_hand(compared: Comparison, problem: LTFL) -> None:
    devices = problem.system.devices
    for name, result in compared.results.items():
        evaluation = result.evaluation
        assert evaluation is not None
        over = (evaluation.quantities["delay"] > devices.delay_budget * (1 + 1e-9)) | (
            evaluation.quantities["energy"] > devices.energy_budget * (1 + 1e-9)
        )
        assert compared.over_budget(name) == int(np.sum(over))
    assert compared.over_budget("exact") == compared.over_budget("random") == 0
    assert compared.over_budget("no_compression") > 0
    table = compared.to_pandas()
    assert table["over_budget"].tolist() == [compared.over_budget(name) for name in METHODS]
    # the ledger of training counts the same
    for run in compared.runs["exact"] + compared.runs["random"]:
        assert run.violations == 0
    assert all(run.violations > 0 for run in compared.runs["no_compression"])


def test_predicted_costs_are_the_booked_ones(compared: Comparison, problem: LTFL) -> None:
    for name, runs in compared.runs.items():
        promised = compared.results[name].evaluation
        assert promised is not None
        for run in runs:
            carried_out = compared.results[name].problem.evaluate(run.decision)
            for row in run.rows:
                assert row["round_delay"] == pytest.approx(carried_out.quantities["delay"].max(), rel=1e-12)
                assert row["round_energy"] == pytest.approx(carried_out.quantities["energy"].sum(), rel=1e-12)
                # whole weights are a little less than what was promised
                assert row["round_delay"] <= promised.quantities["delay"].max() * (1 + 1e-12)
                assert row["round_delay"] == pytest.approx(promised.quantities["delay"].max(), rel=1e-3)
                assert row["round_energy"] == pytest.approx(promised.quantities["energy"].sum(), rel=1e-3)


def test_table_and_words(compared: Comparison) -> None:
    table = compared.to_pandas()
    exact = compared.results["exact"]
    assert table.loc["exact", "value"] == exact.value
    assert table.loc["exact", "gap"] == exact.gap
    assert np.isnan(table.loc["random", "gap"])
    assert np.isfinite(table.loc["no_compression", "value"])
    for name, runs in compared.runs.items():
        assert table.loc[name, "energy_per_round"] == pytest.approx(runs[0].rows[0]["round_energy"])
        assert table.loc[name, "delay_per_round"] == pytest.approx(runs[0].rows[0]["round_delay"])
    text = compared.summary()
    lines = text.splitlines()
    assert len(lines) == 2 + len(METHODS) + 1
    assert [line.split()[0] for line in lines[2:5]] == METHODS
    assert f"{100 * table.loc['exact', 'accuracy_final']:.1f} ± " in lines[2]
    assert lines[-1].startswith("equal energy: ")
    assert lines[-1].endswith("2 seeds, mean ± standard deviation")
    assert all(repr(run).startswith("Run(completed: 4 rounds, accuracy 0.") for run in compared.runs["exact"])


def test_labels(compared: Comparison) -> None:
    over = compared.over_budget("no_compression")
    labels = compared.labels({"exact": "joint design"})
    assert list(labels) == METHODS
    assert (labels["exact"], labels["random"]) == ("joint design", "random")
    assert labels["no_compression"].startswith("no_compression (")
    assert f"{over}" in labels["no_compression"]
    assert "budget" in labels["no_compression"]


def test_methods_meet_the_same_channels(problem: LTFL, task: Task) -> None:
    """Two decisions of equal powers lose the same packets under one seed."""
    power = problem.system.devices.power_max
    runs = [
        train(
            Decision(pruning_ratio=np.full(4, ratio), bits=np.full(4, 4), power=power),
            task,
            system=problem.system,
            rounds=10,
        )
        for ratio in (0.1, 0.8)
    ]
    assert np.array_equal(runs[0].ledger.lost, runs[1].ledger.lost)


def test_a_task_per_seed(problem: LTFL) -> None:
    asked: list[int] = []

    def make(seed: int) -> Task:
        asked.append(seed)
        return Task.for_system(problem.system, seed=seed)

    result = compare(problem, make, methods=["exact", "random"], seeds=[3, 5], rounds=1)
    assert asked == [3, 5]
    first, second = (run.rows[0]["train_loss"] for run in result.runs["exact"])
    assert first != second


def test_one_that_finds_no_decision_is_left_out(task: Task) -> None:
    hard = LTFL(System.from_task(task).with_(delay_budget=1e-3))
    said: list[str] = []
    result = compare(hard, task, methods=["exact", "uniform"], rounds=1, report=said.append)
    assert list(result.runs) == ["exact"]
    assert list(result.results) == ["exact", "uniform"]
    assert any(line.startswith("uniform: no decision to train under (") for line in said)
    assert list(result.to_pandas().index) == ["exact"]
    assert "uniform" not in result.summary()
    with pytest.raises(InputError, match="no method found a decision"):
        compare(hard, task, methods=["uniform"], rounds=1)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"methods": []}, "no methods"),
        ({"seeds": []}, "no seeds"),
        ({"methods": ["exat"]}, "did you mean 'exact'"),
        ({"rounds": 0}, "rounds"),
        ({"train_options": {"algorithm": "fedporx"}}, "did you mean 'fedprox'"),
        ({"solve_options": {"exact": {"iterations": 3}}}, "iterations"),
    ],
)
def test_errors(problem: LTFL, task: Task, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        compare(problem, task, **{"methods": ["exact"], "rounds": 1, **changes})


def test_a_task_that_does_not_fit(problem: LTFL) -> None:
    with pytest.raises(InputError, match="devices"):
        compare(problem, Task.make(data="digits", devices=5, seed=0), methods=["exact"], rounds=1)


# ------------------------------------------------------------------ resuming


def test_finished_runs_are_not_repeated(
    problem: LTFL, task: Task, compared: Comparison, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments: dict[str, Any] = {"methods": METHODS, "seeds": [0, 1], "rounds": ROUNDS, "folder": tmp_path}
    first = compare(problem, task, **arguments)
    assert len(list(tmp_path.iterdir())) == 6
    # the same with and without a folder
    assert first.to_pandas().equals(compared.to_pandas())
    monkeypatch.setattr(comparison, "train", refuse)
    second = compare(problem, task, **arguments)
    assert second.to_pandas().equals(first.to_pandas())
    for name in METHODS:
        for one, two in zip(first.runs[name], second.runs[name], strict=True):
            assert one.rows == two.rows
            assert one.decision == two.decision
    # fewer methods and seeds find theirs
    compare(problem, task, methods=["random"], seeds=[1], rounds=ROUNDS, folder=tmp_path)


def test_other_inputs_are_other_runs(
    problem: LTFL, task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compare(problem, task, methods=["exact"], rounds=2, folder=tmp_path)
    monkeypatch.setattr(comparison, "train", refuse)
    others: list[tuple[LTFL, Task, dict[str, Any]]] = [
        (problem, task, {"rounds": 3}),
        (problem, task, {"seeds": [1]}),
        (problem, task, {"train_options": {"learning_rate": 0.01}}),
        (LTFL(problem.system.with_(energy_budget=problem.system.devices.energy_budget * 0.9)), task, {}),
        (LTFL(problem.system.with_(path_loss_exponent=3.9)), task, {}),
        (problem, Task.for_system(problem.system, seed=7), {}),
        (problem, Task.for_system(problem.system, alpha=0.7), {}),
    ]
    for asked, data, changes in others:
        with pytest.raises(AssertionError, match="trained although"):
            compare(asked, data, **{"methods": ["exact"], "rounds": 2, "folder": tmp_path, **changes})
    compare(problem, task, methods=["exact"], rounds=2, folder=tmp_path)


def test_other_custom_networks_are_other_runs(problem: LTFL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Flatten(), nn.Linear(64, 64), kind(), nn.Linear(64, 10)) for kind in (nn.ReLU, nn.Tanh)]
    tasks = [Task.for_system(problem.system, network=layer) for layer in layers]
    assert tasks[0].network == tasks[1].network == "custom"
    compare(problem, tasks[0], methods=["exact"], rounds=1, folder=tmp_path)
    monkeypatch.setattr(comparison, "train", refuse)
    with pytest.raises(AssertionError, match="trained although"):
        compare(problem, tasks[1], methods=["exact"], rounds=1, folder=tmp_path)


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "",
        lambda text: "[]",
        lambda text: "{}",
        lambda text: text.replace('"bits"', '"powr"', 1).replace('"violations": 0', '"violations": NaN'),
        lambda text: json.dumps({**json.loads(text), "decision": {}}),
        lambda text: json.dumps({**json.loads(text), "rows": None}),
        lambda text: json.dumps({**json.loads(text), "ledger": 3}),
    ],
)
def test_a_damaged_run_is_trained_again(problem: LTFL, task: Task, tmp_path: Path, damage: Any) -> None:
    first = compare(problem, task, methods=["exact"], rounds=1, folder=tmp_path)
    (path,) = tmp_path.iterdir()
    whole = json.loads(path.read_text())
    path.write_text(damage(path.read_text()))
    second = compare(problem, task, methods=["exact"], rounds=1, folder=tmp_path)
    assert second.runs["exact"][0].rows == first.runs["exact"][0].rows
    again = json.loads(path.read_text())
    assert {k: v for k, v in again.items() if k != "seconds"} == {k: v for k, v in whole.items() if k != "seconds"}


def test_an_interrupted_comparison_goes_on(
    problem: LTFL, task: Task, compared: Comparison, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []

    def some(*args: Any, **kwargs: Any) -> Any:
        def interrupt(row: dict[str, Any]) -> None:
            if len(done) == 2 and row["round"] == 2:
                raise KeyboardInterrupt

        result = train(*args, callback=interrupt, **kwargs)
        done.append(result.status)
        return result

    arguments: dict[str, Any] = {"methods": METHODS, "seeds": [0, 1], "rounds": ROUNDS, "folder": tmp_path}
    monkeypatch.setattr(comparison, "train", some)
    with pytest.raises(KeyboardInterrupt):
        compare(problem, task, **arguments)
    assert done == ["completed", "completed", "interrupted"]
    assert len(list(tmp_path.iterdir())) == 3
    second: list[int] = []

    def count(*args: Any, **kwargs: Any) -> Any:
        second.append(kwargs["seed"])
        return train(*args, **kwargs)

    monkeypatch.setattr(comparison, "train", count)
    resumed = compare(problem, task, **arguments)
    assert second == [0, 1, 0, 1]  # the two runs of the first method were there
    assert resumed.to_pandas().equals(compared.to_pandas())


def test_an_interrupt_without_a_folder_stops_too(problem: LTFL, task: Task) -> None:
    calls: list[int] = []

    def interrupt(row: dict[str, Any]) -> None:
        calls.append(row["round"])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compare(problem, task, methods=["exact", "random"], rounds=3, train_options={"callback": interrupt})
    assert calls == [1]


def test_a_run_that_diverges_at_once(problem: LTFL, task: Task) -> None:
    wild = {"algorithm": "fedavg", "local_steps": 3, "learning_rate": 1e30}
    result = compare(problem, task, methods=["exact"], rounds=3, train_options=wild)
    assert result.runs["exact"][0].status == "diverged"
    assert result.summary()


def test_a_run_that_diverges_later(problem: LTFL, task: Task) -> None:
    result = compare(problem, task, methods=["exact"], rounds=3, train_options={"learning_rate": 1e20})
    assert result.runs["exact"][0].status == "diverged"
    assert result.summary()


def test_run_of_a_training_result(problem: LTFL, task: Task) -> None:
    result = train(solve(problem), task, rounds=2)
    run = Run.from_dict(result.to_dict())
    assert run.rows == result.rows
    assert run.decision == result.decision
    assert run.final_accuracy == result.final_accuracy
    assert run.faded_delay_exceeded == int(result.ledger.faded_delay_exceeded.sum())
    assert run.faded_energy_exceeded == int(result.ledger.faded_energy_exceeded.sum())


# ------------------------------------------------------------------ train, load_decision


def test_train_takes_results_decisions_and_mappings(problem: LTFL, task: Task) -> None:
    result = solve(problem)
    assert result.decision is not None
    one = train(result, task, rounds=2)
    two = train(result.decision, task, system=problem.system, rounds=2)
    three = train(result.decision.to_dict(), task, system=problem.system, rounds=2)
    assert one.rows == two.rows == three.rows
    with pytest.raises(InputError, match="needs its system"):
        train(result.decision, task, rounds=2)
    none = solve(LTFL(problem.system.with_(delay_budget=1e-3)), method="uniform")
    with pytest.raises(InputError, match="'uniform' holds no decision"):
        train(none, task, rounds=2)


@pytest.fixture
def saved(problem: LTFL, tmp_path: Path) -> tuple[Path, Result]:
    result = solve(problem)
    return result.save(tmp_path / "r.json"), result


def test_load_decision(saved: tuple[Path, Result]) -> None:
    path, result = saved
    decision, system, data = load_decision(path)
    assert decision == result.decision
    assert system == result.problem.system
    assert data["value"] == result.value
    assert LTFL(system).evaluate(decision).objective == result.value
    assert load_decision(str(path))[0] == decision


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"schema": None}, "not a saved jointopt result"),
        ({"schema": 1}, "not a saved jointopt result"),
        ({"schema": "jointopt.training/1"}, "not a saved jointopt result"),
        ({"schema": "jointopt.result/99"}, "'jointopt.result/99' is not known"),
        ({"decision": None}, "holds no decision"),
        ({"decision": [1, 2]}, "holds no decision"),
        ({"scenario": None}, "holds no scenario"),
        ({"scenario": {}}, r"\[devices\] is missing"),
        ({"decision": {}}, "holds no variable"),
        ({"decision": {"bits": [1, 2]}}, "for 2 devices, its scenario for 4"),
        ({"decision": {"bits": 3}}, "for 1 devices, its scenario for 4"),
        ({"decision": {"bits": [[1, 2], [3]]}}, "bits"),
        ({"decision": {"bits": {"npz": "nowhere.npz", "key": "bits"}}}, "nowhere.npz"),
        ({"decision": {"bits": "many"}}, "bits"),
    ],
)
def test_load_decision_errors(saved: tuple[Path, Result], change: dict[str, Any], words: str) -> None:
    path, _ = saved
    data = {**json.loads(path.read_text()), **change}
    write_json(data, path)
    with pytest.raises(InputError, match=words):
        load_decision(path)


@pytest.mark.parametrize("text", ["", "null", "5", '"word"', "[]", "{}", '{"schema": "jointopt.result/1"'])
def test_load_decision_of_something_else(tmp_path: Path, text: str) -> None:
    path = tmp_path / "r.json"
    path.write_text(text)
    with pytest.raises(InputError, match=r"r\.json"):
        load_decision(path)
    with pytest.raises(InputError, match="cannot be read"):
        load_decision(tmp_path / "missing.json")


# ------------------------------------------------------------------ a design with a shared band


def test_compare_a_selection(tmp_path: Path) -> None:
    task = Task.make(data="digits", devices=4, seed=0)
    problem = FEEL(System.from_task(task, seed=0, design="feel"))
    tight = FEEL(problem.system.with_(total_bandwidth=0.5 * problem.system.radio.total_bandwidth))
    compared = compare(tight, task, methods=["exact", "fedavg"], rounds=2)
    table = compared.to_pandas()
    assert compared.results["fedavg"].status == "infeasible"
    # trained all the same, and marked
    assert set(table.index) == {"exact", "fedavg"}
    assert table.loc["exact", "shared_exceeded"] == ""
    assert compared.broken("exact") == ""
    evaluation = compared.results["fedavg"].evaluation
    assert evaluation is not None
    assert (float(evaluation.slack["total_bandwidth"]) < 0) == ("total_bandwidth" in compared.shared_exceeded("fedavg"))
    over = compared.over_budget("fedavg") + len(compared.shared_exceeded("fedavg"))
    assert over > 0
    assert compared.broken("fedavg") in compared.labels({})["fedavg"]
    assert compared.summary()


def test_words_for_a_shared_limit(compared: Comparison) -> None:
    task = Task.make(data="digits", devices=3, seed=0)
    problem = FEEL(System.from_task(task, seed=0, design="feel"))
    result = solve(problem)
    assert result.decision is not None
    wide = result.decision.with_(bandwidth=1.2 * result.decision["bandwidth"])
    over = replace(result, decision=wide, evaluation=problem.evaluate(wide))
    one = replace(compared, results={"exact": over}, runs={"exact": compared.runs["exact"]})
    assert one.shared_exceeded("exact") == ["total_bandwidth"]
    assert one.broken("exact") == "total bandwidth exceeded"
    assert one.labels({})["exact"] == "exact (total bandwidth exceeded)"
    assert "0, total_bandwidth" in one.summary()

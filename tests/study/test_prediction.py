"""Predictions against training: figures by hand, what is evaluated, and that the forecasts order real decisions."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import kendalltau, qmc

import jointopt as jo
from jointopt.decision import Decision
from jointopt.errors import InputError
from jointopt.models.convergence import average_gradient_bound
from jointopt.study import Comparison, comparison
from jointopt.study.prediction import BASES, Prediction

ROUNDS = 8


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def task() -> jo.Task:
    return jo.Task.make(data="digits", devices=4, seed=0)


@pytest.fixture(scope="module")
def problem(task: jo.Task) -> jo.problems.LTFL:
    return jo.problems.LTFL(jo.System.from_task(task, seed=0).with_(rounds=ROUNDS))


@pytest.fixture(scope="module")
def calibration(task: jo.Task) -> jo.Calibration:
    return jo.calibrate(task, rounds=ROUNDS, learning_rate=0.2, points=3, ratios=(0.3, 0.6), samples=60)


DECISIONS: dict[str, Any] = {
    "light": {"pruning_ratio": 0.6, "bits": 2, "power": 0.03},
    "heavy": Decision(pruning_ratio=np.full(4, 0.1), bits=np.full(4, 12.0), power=np.full(4, 0.08)),
    "some": {"pruning_ratio": [0.0, 0.3, 0.5, 0.7], "bits": [4, 5, 6, 8], "power": 0.05},
}


@pytest.fixture(scope="module")
def compared(task: jo.Task, problem: jo.problems.LTFL) -> Comparison:
    return jo.compare(
        DECISIONS, task, problem=problem, seeds=[0, 1], rounds=ROUNDS, train_options={"evaluate_every": 3}
    )


@pytest.fixture(scope="module")
def predicted(compared: Comparison, calibration: jo.Calibration) -> Prediction:
    return compared.prediction(calibration)


# ------------------------------------------------------------------ what is given to compare


def test_decisions_are_trained_as_given(compared: Comparison, problem: jo.problems.LTFL, task: jo.Task) -> None:
    assert list(compared.results) == list(compared.runs) == list(DECISIONS)
    for name, given in DECISIONS.items():
        result = compared.results[name]
        assert (result.method, result.lower_bound, result.problem) == ("given", None, problem)
        assert result.evaluation is not None
        assert result.value == float(result.evaluation.objective)
        alone = jo.train(Decision(given), task, system=problem.system, rounds=ROUNDS, seed=1, evaluate_every=3)
        assert alone.rows == compared.runs[name][1].rows
    assert compared.to_pandas().index.tolist() == list(DECISIONS)
    assert "heavy" in compared.summary()


def test_lists_and_results_are_taken_too(problem: jo.problems.LTFL, task: jo.Task, compared: Comparison) -> None:
    found = jo.solve(problem)
    both = jo.compare([found, DECISIONS["light"]], task, problem=problem, rounds=1)
    assert list(both.runs) == ["decision-0", "decision-1"]
    assert both.results["decision-0"] is found
    # a result knows its problem
    assert list(jo.compare({"best": found}, task, rounds=1).runs) == ["best"]
    solved = jo.compare(problem, task, methods=["exact"], rounds=1)
    named = jo.compare(problem=problem, task=task, methods=["exact"], rounds=1)
    assert solved.runs["exact"][0].rows == named.runs["exact"][0].rows == both.runs["decision-0"][0].rows


def test_kept_runs_are_found_again(
    problem: jo.problems.LTFL, task: jo.Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = {"0.60/2, low & slow": DECISIONS["light"], "other": DECISIONS["heavy"]}
    first = jo.compare(odd, task, problem=problem, rounds=2, folder=tmp_path)
    assert len(list(tmp_path.iterdir())) == 2

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("trained although the run was there")

    monkeypatch.setattr(comparison, "train", refuse)
    second = jo.compare(odd, task, problem=problem, rounds=2, folder=tmp_path)
    assert second.to_pandas().equals(first.to_pandas())
    with pytest.raises(AssertionError, match="trained although"):
        jo.compare({"other": DECISIONS["light"] | {"bits": 3}}, task, problem=problem, rounds=2, folder=tmp_path)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"decisions": {}}, "no decisions"),
        ({"decisions": []}, "no decisions"),
        ({"decisions": None, "problem": None}, "no decisions, and no problem"),
        ({"decisions": None}, "no methods"),
        ({"decisions": "exact"}, "methods are given as methods="),
        ({"decisions": 3}, "expected decisions by name"),
        ({"decisions": DECISIONS["heavy"]}, "expected decisions by name"),
        ({"decisions": {"a": 3}}, "'a' is a int"),
        ({"decisions": {3: DECISIONS["light"]}}, "name must be a non-empty string"),
        ({"problem": None}, "'light' is a decision alone and needs its problem"),
        ({"methods": ["exact"]}, "not both"),
        ({"solve_options": {"exact": {}}}, "not both"),
        ({"decisions": {"a": {"pruning_ratio": 0.1, "bits": 3}}}, "'a': decision: 'power' is missing"),
        (
            {"decisions": {"a": {"pruning_ratio": [0.1, 0.2], "bits": 3, "power": 0.1}}},
            "'a': .*different numbers of devices",
        ),
        ({"decisions": {"a": DECISIONS["light"] | {"pruning_ratio": float("nan")}}}, "'a': .*pruning_ratio"),
        ({"decisions": {"a": DECISIONS["light"] | {"bits": 40}}}, "bits"),
        ({"decisions": {"a": DECISIONS["light"] | {"bitz": 4}}}, "'a': .*did you mean 'bits'"),
        ({"task": None}, "no task"),
        ({"seeds": []}, "no seeds"),
    ],
)
def test_what_cannot_be_compared(
    problem: jo.problems.LTFL, task: jo.Task, arguments: dict[str, Any], words: str
) -> None:
    given = {"decisions": {"light": DECISIONS["light"]}, "task": task, "problem": problem, "rounds": 1, **arguments}
    with pytest.raises(InputError, match=words):
        jo.compare(**given)


def test_a_problem_given_twice(problem: jo.problems.LTFL, task: jo.Task) -> None:
    with pytest.raises(InputError, match="given twice"):
        jo.compare(problem, task, problem=problem, methods=["exact"])


# ------------------------------------------------------------------ what is predicted


def test_rounds_afforded_by_hand(compared: Comparison, predicted: Prediction) -> None:
    for basis, budget, column in (
        ("energy", compared.equal_energy, "cumulative_energy"),
        ("delay", compared.equal_delay, "cumulative_delay"),
    ):
        for row in predicted.tables[basis]:
            spent = [r[column] for r in compared.runs[row["method"]][0].rows]
            assert row["rounds"] == sum(s <= budget * (1 + 1e-9) for s in spent)
        assert max(row["rounds"] for row in predicted.tables[basis]) == ROUNDS
    assert [row["rounds"] for row in predicted.tables["rounds"]] == [ROUNDS] * 3


def test_costs_are_those_booked(predicted: Prediction, compared: Comparison) -> None:
    for cost in predicted.costs:
        runs = compared.runs[cost["method"]]
        for key in ("energy", "delay"):
            assert cost[key] == pytest.approx(runs[0].rows[-1][f"cumulative_{key}"], rel=1e-12)
            assert abs(cost[f"{key}_error"]) < 1e-9
            assert cost[f"predicted_{key}"] == pytest.approx(cost[key], rel=1e-9)


def test_measured_values_by_hand(predicted: Prediction, compared: Comparison) -> None:
    for basis in BASES:
        for row in predicted.tables[basis]:
            if row["rounds"] == 0:
                assert math.isnan(row["square"])
                assert math.isnan(row["bound"])
                continue
            squares, losses, accuracies = [], [], []
            for run in compared.runs[row["method"]]:
                seen = [r for r in run.rows if r["gradient_norm_squared"] is not None]
                at = [r["round"] for r in seen]
                assert at == [1, 3, 6, 8]
                every = np.interp(np.arange(1, row["rounds"] + 1), at, [r["gradient_norm_squared"] for r in seen])
                squares.append(every.mean())
                losses.append(np.interp(row["rounds"] + 1, at, [r["global_loss"] for r in seen]))
                accuracies.append(np.interp(row["rounds"], at, [r["test_accuracy"] for r in seen]))
            assert row["square"] == pytest.approx(np.mean(squares))
            assert row["loss"] == pytest.approx(np.mean(losses))
            assert row["accuracy"] == pytest.approx(np.mean(accuracies))


def test_the_bound_is_that_of_the_rounds_afforded(
    predicted: Prediction, compared: Comparison, calibration: jo.Calibration, problem: jo.problems.LTFL
) -> None:
    plain = compared.prediction()
    for basis in BASES:
        for which, table in ((None, plain.tables[basis]), (calibration, predicted.tables[basis])):
            for row in table:
                if row["rounds"] == 0:
                    continue
                system = problem.system if which is None else which.apply(problem.system)
                decision = compared.runs[row["method"]][0].decision
                own = system.with_(
                    bits_min=int(decision["bits"].min()), pruning_ratio_max=float(decision["pruning_ratio"].max())
                )
                quantities = jo.problems.LTFL(own).evaluate(decision).quantities
                expected = average_gradient_bound(
                    float(quantities["gap"]),
                    float(quantities["contraction"]),
                    own.bound.initial_gap,
                    own.bound.learning_rate,
                    row["rounds"],
                )
                assert row["bound"] == pytest.approx(float(expected), rel=1e-12)
                # the constant E_cap of this decision alone is no larger than that of all that are allowed
                wide = jo.problems.LTFL(system.with_(rounds=row["rounds"])).evaluate(decision)
                assert row["bound"] <= float(wide.quantities["bound"]) * (1 + 1e-12)
    assert all(math.isnan(row["forecast_loss"]) for row in plain.tables["rounds"])
    assert plain.constants == "the problem"
    assert predicted.constants == "a calibration (typical)"


def test_forecasts_are_the_calibrations(
    predicted: Prediction, compared: Comparison, calibration: jo.Calibration, problem: jo.problems.LTFL
) -> None:
    for basis in BASES:
        for row in predicted.tables[basis]:
            if row["rounds"]:
                decision = compared.runs[row["method"]][0].decision
                told = calibration.forecast(decision, problem.system, row["rounds"])
                assert row["forecast_loss"] == told.final_loss
                assert row["forecast_square"] == told.mean_square


def test_other_designs_are_predicted(task: jo.Task, calibration: jo.Calibration) -> None:
    feel = jo.System.from_task(task, seed=0, design="feel").with_(rounds=3, learning_rate=0.2)
    made = jo.compare(jo.problems.FEEL(feel), task, methods=["full_participation", "random_selection"], rounds=3)
    told = made.prediction(calibration)
    assert np.all(np.isfinite(told.column("rounds", "bound")))
    assert np.all(np.isfinite(told.column("rounds", "forecast_loss")))
    assert max(abs(cost["energy_error"]) for cost in told.costs) < 1e-9


# ------------------------------------------------------------------ what is made of it


def made_up(bound: list[float], accuracy: list[float], square: list[float]) -> Prediction:
    nothing = {"forecast_loss": math.nan, "forecast_square": math.nan, "loss": math.nan}
    rows = [
        {"method": str(i), "rounds": 5, "bound": b, "accuracy": a, "square": s, **nothing}
        for i, (b, a, s) in enumerate(zip(bound, accuracy, square, strict=True))
    ]
    costs = [
        dict.fromkeys(("energy", "predicted_energy", "delay", "predicted_delay"), 1.0)
        | {"method": str(i), "energy_error": 0.0, "delay_error": 0.0}
        for i in range(len(rows))
    ]
    return Prediction(dict.fromkeys(BASES, rows), costs, 1.0, 1.0, 1, "nobody")


def test_tau_by_hand() -> None:
    # pairs: (1,2) right, (1,3) right, (2,3) wrong
    one = made_up([1.0, 2.0, 3.0], [0.9, 0.5, 0.6], [1.0, 3.0, 2.0])
    assert one.tau("bound", "accuracy") == (pytest.approx(1 / 3), 3)
    assert one.tau("bound", "square", "delay") == (pytest.approx(1 / 3), 3)
    assert made_up([1, 2, 3, 4], [4, 3, 2, 1], [4, 3, 2, 1]).tau()[0] == pytest.approx(1.0)
    assert made_up([1, 2, 3, 4], [4, 3, 2, 1], [4, 3, 2, 1]).tau("bound", "square")[0] == pytest.approx(-1.0)
    # what is not known is left out, and a bound that is vacuous comes last
    left = made_up([1.0, math.nan, 3.0, math.inf], [0.9, 0.1, 0.5, 0.4], [1.0] * 4)
    assert left.tau() == (pytest.approx(1.0), 3)
    assert left.factor().tolist()[2:] == [3.0, math.inf]
    assert made_up([1.0], [0.5], [1.0]).tau()[1] == 0
    assert math.isnan(made_up([1.0, 2.0], [0.5, 0.5], [1.0, 1.0]).tau()[0])
    rng = np.random.default_rng(0)
    bound, accuracy = rng.random(12), rng.random(12)
    expected = kendalltau(bound, -accuracy).statistic
    assert made_up(bound.tolist(), accuracy.tolist(), [1.0] * 12).tau()[0] == pytest.approx(expected)


def test_unknown_names_are_refused(predicted: Prediction, compared: Comparison) -> None:
    for arguments in (("bond",), ("bound", "acuracy"), ("bound", "accuracy", "dely")):
        with pytest.raises(InputError, match="did you mean"):
            predicted.tau(*arguments)
    with pytest.raises(InputError, match="did you mean 'energy'"):
        predicted.to_pandas("enegy")
    with pytest.raises(InputError, match="expected a Calibration"):
        compared.prediction("typical")  # type: ignore[arg-type]


def test_a_calibration_of_another_task_is_refused(compared: Comparison) -> None:
    other = jo.calibrate(jo.Task.make(data="digits", devices=3, seed=0), rounds=1, points=2, ratios=(0.5,), samples=9)
    with pytest.raises(InputError, match="is of 3 devices, the system has 4"):
        compared.prediction(other)


def test_a_run_that_diverged_is_the_worst(problem: jo.problems.LTFL, task: jo.Task) -> None:
    wild = jo.compare(
        {"light": DECISIONS["light"]}, task, problem=problem, rounds=6, train_options={"learning_rate": 1e20}
    )
    assert wild.runs["light"][0].status == "diverged"
    row = wild.prediction().tables["rounds"][0]
    assert row["rounds"] == 0 or (row["loss"] == row["square"] == math.inf and row["accuracy"] == 0.0)


def test_tables_words_and_plain_data(predicted: Prediction) -> None:
    table = predicted.to_pandas("energy")
    assert table.index.tolist() == list(DECISIONS)
    assert table["bound"].tolist() == pytest.approx(predicted.column("energy", "bound").tolist(), nan_ok=True)
    assert predicted.to_pandas("costs")["energy"].notna().all()
    taus = predicted.taus()
    assert set(taus.index.get_level_values("basis")) == set(BASES)
    assert taus.loc[("rounds", "bound", "accuracy"), "pairs"] == 3
    text = predicted.summary()
    for words in ("equal energy", "equal delay", "median", "largest relative error", "2 seeds"):
        assert words in text
    json.dumps(predicted.to_dict())


def test_plots_say_what_they_show(predicted: Prediction, compared: Comparison) -> None:
    figure = predicted.plot()
    figure.canvas.draw()
    assert len(figure.axes) == 4
    for axis in figure.axes:
        assert axis.get_xscale() == axis.get_yscale() == "log"
        assert "[" in axis.get_xlabel()
        assert "[" in axis.get_ylabel()
        line = axis.lines[-1]
        assert np.array_equal(line.get_xdata(), line.get_ydata())
    shown = figure.axes[0].collections[0].get_offsets()
    assert np.allclose(shown[:, 0], predicted.column("rounds", "square"))
    assert np.allclose(shown[:, 1], predicted.column("rounds", "bound"))
    assert len(compared.prediction().plot().axes) == 1
    nothing = made_up([math.nan] * 2, [0.5] * 2, [math.nan] * 2)
    with pytest.raises(InputError, match="nothing was both predicted and measured"):
        nothing.plot()


# ------------------------------------------------------------------ that it is right about training


KEYS = {
    ("bound", "accuracy", "rounds"): 0.5,
    ("bound", "loss", "rounds"): 0.5,
    ("forecast_loss", "accuracy", "rounds"): 0.7,
    ("forecast_loss", "loss", "rounds"): 0.7,
    ("forecast_loss", "loss", "energy"): 0.7,
    ("forecast_loss", "loss", "delay"): 0.5,
}
"""Least tau asked for; the ones measured are printed."""


def test_calibrations_predict_training(capsys: pytest.CaptureFixture[str]) -> None:
    """Two tasks, ten spread-out decisions each, calibrated with another seed than trained."""
    for seed in (0, 1):
        task = jo.Task.make(data="digits", devices=6, seed=seed)
        system = jo.System.from_task(task, seed=0).with_(rounds=25, learning_rate=0.3)
        made = jo.calibrate(task, rounds=25, learning_rate=0.3, seed=100 + seed, points=5)
        low, high = system.devices.power_min, system.devices.power_max
        decisions = {
            f"{0.9 * a:.2f}/{int(1 + 12 * b)}/{c:.2f}": {
                "pruning_ratio": 0.9 * a,
                "bits": int(1 + 12 * b),
                "power": low * (high / low) ** c,
            }
            for a, b, c in qmc.LatinHypercube(d=3, seed=seed).random(10)
        }
        problem, often = jo.problems.LTFL(system), {"evaluate_every": 5}
        compared = jo.compare(decisions, task, problem=problem, seeds=[seed], rounds=25, train_options=often)
        told = compared.prediction(made)
        found = {key: told.tau(*key)[0] for key in KEYS}
        factor = told.factor()
        with capsys.disabled():
            print(f"\ntau {', '.join(f'{t:.2f}' for t in found.values())}; bound / measured", end=" ")
            print(f"{np.median(factor):.2f} ({factor.min():.2f} to {factor.max():.2f})")
        for key, least in KEYS.items():
            assert found[key] >= least, key
        assert np.all((factor > 0.2) & (factor < 10.0))
        assert max(abs(cost[f"{one}_error"]) for cost in told.costs for one in ("energy", "delay")) < 1e-9

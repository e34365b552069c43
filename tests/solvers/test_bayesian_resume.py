"""Runs that are killed and resumed, and runs that begin where an earlier one ended."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jointopt import systems
from jointopt.decision import Decision
from jointopt.errors import InputError
from jointopt.problem import Capabilities, Evaluation, Problem, Variable
from jointopt.problems import FEEL, LTFL, CoInference
from jointopt.search import FlatSearch
from jointopt.solvers import solve
from jointopt.solvers.bayesian import bayesian
from jointopt.solvers.monitor import Monitor


class Killed(Exception):
    """What ends a run in the middle."""


class Constrained(Problem):
    """A real and a whole variable a device, with a constraint that fails in places and a value that is not finite."""

    name = "constrained"

    def __init__(self, devices: int = 1) -> None:
        self.system = systems.ltfl(devices, 0)
        self.devices = devices

    @property
    def variables(self) -> tuple[Variable, ...]:
        one = np.ones(self.devices)
        return (Variable("x", 0.0 * one, one), Variable("n", 0.0 * one, 5.0 * one, kind="integer"))

    def evaluate(self, decision: Decision) -> Evaluation:
        x, n = decision["x"], decision["n"]
        value = np.sum((x - 0.3) ** 2 + 0.05 * (n - 3.0) ** 2, axis=-1)
        value = np.where(n[..., 0] == 5, np.inf, value)
        return Evaluation(value, {}, {"limit": 0.1 * n - x}, {"limit": 1.0}, {})

    def capabilities(self) -> Capabilities:
        return Capabilities(search=FlatSearch(self))


def make(name: str) -> Problem:
    made: Problem = {
        "ltfl": lambda: LTFL(systems.ltfl(3, 0)),
        "feel": lambda: FEEL(systems.feel(6, 0)),
        "coinference": lambda: CoInference(systems.coinference(2, 0)),
        "constrained": lambda: Constrained(2),
    }[name]()
    return made


def story(monitor: Monitor) -> list[tuple[float, float]]:
    return [(h["value"], h["violation"]) for h in monitor.history]


def killed(problem: Problem, after: int, **options: Any) -> None:
    def stop(progress: Any) -> None:
        if progress.n_evaluations == after:
            raise Killed

    with pytest.raises(Killed):
        bayesian(problem, Monitor(problem, callback=stop), **options)


CASES = [
    ("ltfl", {"mode": "joint"}, 11),
    ("ltfl", {"mode": "separate"}, 11),
    ("ltfl", {"mode": "policy", "backend": "skopt-gp"}, 10),
    ("ltfl", {"mode": "joint", "batch": 3}, 10),
    ("ltfl", {"mode": "separate", "batch": 3}, 10),
    ("feel", {}, 9),
    ("coinference", {}, 6),
    ("constrained", {}, 11),
    ("constrained", {"batch": 4}, 10),
    ("constrained", {"backend": "skopt-rf"}, 5),
]


@pytest.mark.parametrize(("name", "options", "after"), CASES)
def test_a_killed_run_resumed_is_the_run_itself(name: str, options: dict[str, Any], after: int, tmp_path: Path) -> None:
    problem, path = make(name), tmp_path / "run.json"
    options = {"seed": 5, "initial": 8, "iterations": 8, **options}
    whole = Monitor(problem)
    message = bayesian(problem, whole, **options)
    for stop in sorted({3, after, after + 1}):
        killed(problem, stop, save=path, resume=True, **options)
    resumed = Monitor(problem)
    assert bayesian(problem, resumed, save=path, resume=True, **options) == message
    assert story(resumed) == story(whole)
    assert resumed.best == whole.best
    assert resumed.best_value == whole.best_value
    assert resumed.least_violation == whole.least_violation
    assert resumed.n_evaluations == whole.n_evaluations


def test_nothing_is_evaluated_again(tmp_path: Path) -> None:
    problem, path = Constrained(), tmp_path / "run.json"
    options: dict[str, Any] = {"seed": 0, "initial": 6, "iterations": 3, "save": path}
    killed(problem, 7, **options)
    told: list[int] = []
    bayesian(problem, Monitor(problem, callback=lambda p: told.append(p.n_evaluations)), **{**options, "resume": True})
    assert told == [8, 9]
    bayesian(problem, Monitor(problem, callback=lambda p: told.append(0)), **{**options, "resume": True})
    assert told == [8, 9]


def test_a_finished_run_can_be_given_more_iterations(tmp_path: Path) -> None:
    problem, path = LTFL(systems.ltfl(2, 0)), tmp_path / "run.json"
    whole = solve(problem, method="bayesian", mode="joint", iterations=6, seed=2)
    solve(problem, method="bayesian", mode="joint", iterations=2, seed=2, save=path)
    more = solve(problem, method="bayesian", mode="joint", iterations=6, seed=2, save=path, resume=True)
    assert [h["value"] for h in more.history] == [h["value"] for h in whole.history]
    assert more.decision == whole.decision


def test_through_solve_an_interrupt_keeps_the_incumbent_and_the_file(tmp_path: Path) -> None:
    problem, path = LTFL(systems.ltfl(2, 0)), tmp_path / "run.json"

    def stop(progress: Any) -> None:
        if progress.n_evaluations == 5:
            raise KeyboardInterrupt

    options: dict[str, Any] = {"method": "bayesian", "iterations": 3, "save": str(path)}
    assert solve(problem, callback=stop, **options).status == "interrupted"
    whole, resumed = solve(problem, method="bayesian", iterations=3), solve(problem, resume=True, **options)
    assert resumed.decision == whole.decision
    assert resumed.value == whole.value
    assert resumed.n_evaluations == whole.n_evaluations


def test_a_run_without_a_seed_goes_on_with_its_own(tmp_path: Path) -> None:
    problem, path = Constrained(), tmp_path / "run.json"
    killed(problem, 4, seed=None, initial=8, iterations=0, save=path)
    first = json.loads(path.read_text())["state"]["entropy"]
    bayesian(problem, Monitor(problem), seed=None, initial=8, iterations=0, save=path, resume=True)
    assert json.loads(path.read_text())["state"]["entropy"] == first
    assert len(json.loads(path.read_text())["x"]) == 8


def test_without_resume_a_file_is_written_anew(tmp_path: Path) -> None:
    problem, path = Constrained(), tmp_path / "deep" / "run.json"
    for seed in (0, 1):
        bayesian(problem, Monitor(problem), seed=seed, initial=3, iterations=0, save=path)
        assert json.loads(path.read_text())["seed"] == seed


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"seed": 9}, "seed: 0 in the file, 9 asked for"),
        ({"batch": 2}, "batch"),
        ({"mode": "policy"}, "mode"),
        ({"backend": "skopt-rf"}, "backend"),
        ({"initial": 5}, "initial"),
    ],
)
def test_another_run_s_file_is_refused(change: dict[str, Any], match: str, tmp_path: Path) -> None:
    problem, path = LTFL(systems.ltfl(2, 0)), tmp_path / "run.json"
    options: dict[str, Any] = {"seed": 0, "initial": 4, "iterations": 0, "save": path}
    bayesian(problem, Monitor(problem), **options)
    with pytest.raises(InputError, match=match):
        bayesian(problem, Monitor(problem), **{**options, **change, "resume": True})
    for other, what in (
        (LTFL(systems.ltfl(2, 1)), "scenario"),
        (LTFL(systems.ltfl(2, 0), objective="bound"), "settings"),
        (FEEL(systems.feel(2, 0)), "'ltfl' in the file"),
    ):
        with pytest.raises(InputError, match=what):
            bayesian(other, Monitor(other), **{**options, "resume": True})


def _damage(data: dict[str, Any], where: str) -> None:
    match where:
        case "points":
            data["state"]["points"] = data["state"]["points"][:-1]
        case "ragged":
            data["state"]["points"][0] = data["state"]["points"][0][:-1]
        case "values":
            data["state"]["target"]["value"][0] = "many"
        case "state":
            del data["state"]
        case "options":
            data["options"] = 3
        case "history":
            data["monitor"]["history"].pop()
        case "best":
            data["monitor"]["best"] = {"x": "nothing"}
        case "counts":
            del data["state"]["counts"]


@pytest.mark.parametrize("where", ["points", "ragged", "values", "state", "options", "history", "best", "counts"])
def test_a_damaged_file_is_refused(where: str, tmp_path: Path) -> None:
    problem, path = Constrained(), tmp_path / "run.json"
    options: dict[str, Any] = {"seed": 0, "initial": 4, "iterations": 0, "save": path}
    bayesian(problem, Monitor(problem), **options)
    data = json.loads(path.read_text())
    _damage(data, where)
    path.write_text(json.dumps(data))
    with pytest.raises(InputError, match=r"damaged|expected numbers"):
        bayesian(problem, Monitor(problem), **{**options, "resume": True})


@pytest.mark.parametrize("text", ["", "{", '{"schema": "jointopt.result/1"}', "[]", "3", "\x00\xff"])
def test_a_foreign_or_truncated_file_is_refused(text: str, tmp_path: Path) -> None:
    problem, path = Constrained(), tmp_path / "run.json"
    path.write_text(text)
    with pytest.raises(InputError, match=r"run\.json"):
        bayesian(problem, Monitor(problem), seed=0, save=path, resume=True)
    if text != '{"schema": "jointopt.result/1"}':
        with pytest.raises(InputError, match=r"run\.json"):
            bayesian(problem, Monitor(problem), seed=0, start=path)


# ---------------------------------------------------------------------------------- warm start


@pytest.mark.parametrize("name", ["ltfl", "feel", "coinference", "constrained"])
def test_the_first_point_of_a_warm_start_is_the_earlier_answer(name: str, tmp_path: Path) -> None:
    problem = make(name)
    earlier = solve(problem, method="bayesian", initial=8, iterations=2, save=tmp_path / "run.json")
    saved = earlier.save(tmp_path / "result.json")
    assert earlier.decision is not None
    for start in (earlier, earlier.decision, saved, tmp_path / "run.json"):
        again = solve(problem, method="bayesian", initial=8, iterations=0, seed=3, start=start)
        assert again.history[0]["value"] == pytest.approx(earlier.value, rel=1e-9)
        assert "from an earlier run" in again.message
        # half of the design is drawn
        assert again.n_evaluations == (8 if start == tmp_path / "run.json" else 5)


def test_a_warm_start_in_separate_mode_takes_every_unit_s_own_best(tmp_path: Path) -> None:
    problem, path = LTFL(systems.ltfl(3, 0)), tmp_path / "run.json"
    earlier = solve(problem, method="bayesian", mode="separate", iterations=10, save=path)
    again = solve(problem, method="bayesian", mode="separate", initial=2, iterations=0, seed=9, start=path)
    assert again.history[0]["value"] == pytest.approx(earlier.value, rel=1e-9)


def test_a_warm_start_helps_on_a_similar_problem(tmp_path: Path) -> None:
    system = systems.ltfl(4, 0)
    path = tmp_path / "run.json"
    solve(LTFL(system), method="bayesian", mode="joint", iterations=15, save=path)
    similar = LTFL(system.replace(devices=system.devices.replace(delay_budget=1.03 * system.devices.delay_budget)))
    options: dict[str, Any] = {"method": "bayesian", "mode": "joint", "initial": 8, "iterations": 0}
    cold, warm = solve(similar, **options), solve(similar, start=path, **options)
    assert warm.value is not None
    assert warm.value <= (np.inf if cold.value is None else cold.value)


def test_a_warm_start_can_be_resumed(tmp_path: Path) -> None:
    problem = LTFL(systems.ltfl(2, 0))
    earlier = solve(problem, method="bayesian", iterations=0)
    options: dict[str, Any] = {"seed": 1, "initial": 6, "iterations": 3, "start": earlier}
    whole, resumed = Monitor(problem), Monitor(problem)
    bayesian(problem, whole, **options)
    killed(problem, 2, save=tmp_path / "run.json", **options)
    bayesian(problem, resumed, save=tmp_path / "run.json", resume=True, **options)
    assert story(resumed) == story(whole)


def test_what_cannot_start_a_run() -> None:
    problem = LTFL(systems.ltfl(2, 0))
    monitor = Monitor(problem)
    with pytest.raises(InputError, match="'feel', not 'ltfl'"):
        bayesian(problem, monitor, seed=0, start=solve(FEEL(systems.feel(2, 0))))
    with pytest.raises(InputError, match="3 variables, this search has 2"):
        bayesian(problem, monitor, seed=0, start=solve(LTFL(systems.ltfl(3, 0))))
    with pytest.raises(InputError, match="lacks the variable 'power'"):
        bayesian(problem, monitor, seed=0, start=Decision(bits=np.ones(2)))
    with pytest.raises(InputError, match="expected a Result, a Decision or a file, got int"):
        bayesian(problem, monitor, seed=0, start=3)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="cannot be read"):
        bayesian(problem, monitor, seed=0, start="/nonexistent/run.json")
    assert monitor.n_evaluations == 0

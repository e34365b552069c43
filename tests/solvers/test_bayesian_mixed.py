"""Bayesian optimization over mixed variables, with constraints and in batches."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jointopt import systems
from jointopt.decision import Decision
from jointopt.errors import InputError
from jointopt.problem import Capabilities, Evaluation, Problem, Variable
from jointopt.problems import FEEL, LTFL, CoInference, LayerwiseCoInference
from jointopt.search import FlatSearch
from jointopt.solvers import solve
from jointopt.solvers.bayesian import bayesian
from jointopt.solvers.monitor import Monitor
from jointopt.solvers.space import Box, Cube, key

BACKENDS = ["botorch", "skopt-gp", "skopt-rf"]


class Mixed(Problem):
    """Least where x is 0.3 a device, n is 4 a device and the switch is on; x above 0.6 n/10 is not allowed."""

    name = "mixed"

    def __init__(self, devices: int = 2, *, real: bool = True, limit: bool = False, counts: int = 9) -> None:
        self.system = systems.ltfl(devices, 0)
        self.devices, self.real, self.limit, self.counts = devices, real, limit, counts
        self.asked: list[Decision] = []

    @property
    def variables(self) -> tuple[Variable, ...]:
        one = np.ones(self.devices)
        out = (
            Variable("n", 0.0 * one, self.counts * one, kind="integer"),
            Variable("on", np.zeros(1), np.ones(1), kind="binary", axis="common"),
        )
        return (Variable("x", 1e-3 * one, one), *out) if self.real else out

    def evaluate(self, decision: Decision) -> Evaluation:
        self.asked.append(decision)
        n, on = decision["n"], decision["on"]
        value = np.sum((n - 4.0) ** 2 / 20.0, axis=-1) + 0.5 * (1.0 - on[..., 0])
        slack = {}
        if self.real:
            value = value + np.sum((decision["x"] - 0.3) ** 2, axis=-1)
            slack = {"limit": 0.06 * n - decision["x"]} if self.limit else {}
        return Evaluation(value, {}, slack, dict.fromkeys(slack, 1.0), {})

    def capabilities(self) -> Capabilities:
        return Capabilities(search=FlatSearch(self))


def run(problem: Problem, **options: Any) -> tuple[Monitor, str]:
    monitor = Monitor(problem)
    return monitor, bayesian(problem, monitor, **{"seed": 0, **options})


# ---------------------------------------------------------------------------------- the space


@given(
    levels=st.lists(st.integers(0, 7), min_size=1, max_size=5),
    seed=st.integers(0, 1000),
)
def test_cube_snaps_to_itself(levels: list[int], seed: int) -> None:
    cube = Cube(np.array([n if n != 1 else 2 for n in levels]))
    uniform = np.random.default_rng(seed).random((20, cube.dimension))
    for points in (cube.snap(uniform), cube.spread(uniform)):
        np.testing.assert_allclose(cube.snap(points), points, rtol=0, atol=1e-15)
        steps = points * np.maximum(cube.levels - 1, 1)
        assert np.all((np.abs(steps - np.rint(steps)) < 1e-12) | ~cube.discrete)
    for near in cube.neighbours(cube.snap(uniform)[0]):
        assert np.count_nonzero(np.abs(near - cube.snap(uniform)[0]) > 1e-12) == 1


def test_every_whole_number_gets_an_equal_share() -> None:
    cube = Cube(np.array([3]))
    drawn = cube.spread(np.linspace(0.0, 1.0, 3000, endpoint=False)[:, None])
    assert np.unique(drawn, return_counts=True)[1].tolist() == [1000, 1000, 1000]
    assert cube.list()[:, 0].tolist() == [0.0, 0.5, 1.0]
    assert Cube(np.array([2, 3])).size == 6
    assert np.isinf(Cube(np.array([2, 0])).size)


@given(seed=st.integers(0, 1000))
def test_box_maps_there_and_back(seed: int) -> None:
    box = Box(FlatSearch(Mixed(3)))
    point = box.cube.spread(np.random.default_rng(seed).random(box.cube.dimension))
    x = box.spread(point)
    assert np.all((x >= box.lower) & (x <= box.upper))
    assert np.all(x[box.whole] == np.rint(x[box.whole]))
    np.testing.assert_allclose(box.share(x), point, rtol=0, atol=1e-12)
    np.testing.assert_allclose(box.share(box.spread(np.stack([point, point])))[1], point, rtol=0, atol=1e-12)


def test_flat_search_names_what_it_cannot_search() -> None:
    class Open(Mixed):
        @property
        def variables(self) -> tuple[Variable, ...]:
            return (Variable("y", np.zeros(2), np.array([1.0, np.inf])),)

    with pytest.raises(InputError, match=r"y\[device 1\].*inf"):
        FlatSearch(Open())
    with pytest.raises(InputError, match="unknown variable 'xx'"):
        FlatSearch(Mixed(), logarithmic=["xx"])
    with pytest.raises(InputError, match="'n' must be real"):
        FlatSearch(Mixed(), logarithmic=["n"])
    search = FlatSearch(Mixed())
    assert search.logarithmic.tolist() == [True, True, False, False, False]
    assert not FlatSearch(Mixed(), logarithmic=[]).logarithmic.any()


def test_flat_search_completes_to_whole_numbers_and_back() -> None:
    search = FlatSearch(Mixed(2))
    decision = search.complete(np.array([[0.2, 0.4, 3.4, 8.6, 0.7], [2.0, -1.0, 12.0, -3.0, 0.2]]))
    assert decision["n"].tolist() == [[3.0, 9.0], [9.0, 0.0]]
    assert decision["on"].tolist() == [[1.0], [0.0]]
    assert decision["x"].tolist() == [[0.2, 0.4], [1.0, 1e-3]]
    assert search.locate(decision).tolist() == [[0.2, 0.4, 3.0, 9.0, 1.0], [1.0, 1e-3, 9.0, 0.0, 0.0]]


# ---------------------------------------------------------------------------------- the search


@pytest.mark.parametrize("backend", BACKENDS)
def test_mixed_variables(backend: str) -> None:
    problem = Mixed(1)
    monitor, message = run(problem, backend=backend, iterations=20)
    assert monitor.best is not None
    assert monitor.best["n"].tolist() == [4.0]
    assert monitor.best["on"].tolist() == [1.0]
    assert monitor.best_value < (1e-2 if backend == "botorch" else 0.1)
    assert "could not be fitted" not in message
    for decision in problem.asked:
        assert np.all(decision["n"] == np.rint(decision["n"]))
        assert set(decision["on"].tolist()) <= {0.0, 1.0}


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_point_is_evaluated_twice_and_all_are_found(backend: str) -> None:
    problem = Mixed(1, real=False, counts=5)
    monitor, message = run(problem, backend=backend, initial=3, iterations=30)
    points = {key(np.concatenate([d["n"], d["on"]])) for d in problem.asked}
    assert len(points) == len(problem.asked) == monitor.n_evaluations == 12
    assert "stopped after 12 points" in message
    assert monitor.best_value == 0.0


def test_the_initial_design_holds_no_point_twice() -> None:
    problem = Mixed(1, real=False, counts=2)
    monitor, _ = run(problem, initial=50, iterations=0)
    assert monitor.n_evaluations == 6


@pytest.mark.parametrize("backend", ["botorch", "skopt-gp"])
def test_constraints_that_couple_reals_and_integers(backend: str) -> None:
    problem = Mixed(1, limit=True)
    monitor, _ = run(problem, backend=backend, iterations=25)
    assert monitor.least_violation == 0.0
    # n = 4 allows x up to 0.24, n = 5 all of x at 1/20
    assert monitor.best_value < (0.006 if backend == "botorch" else 0.1)


def test_constraint_models_are_used_only_where_something_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    from botorch.acquisition import analytic

    used = []
    for name in ("LogExpectedImprovement", "LogConstrainedExpectedImprovement", "LogProbabilityOfFeasibility"):
        original = getattr(analytic, name)

        def watched(*args: Any, _name: str = name, _original: Any = original, **kwargs: Any) -> Any:
            used.append(_name)
            return _original(*args, **kwargs)

        monkeypatch.setattr(analytic, name, watched)
    run(Mixed(1), iterations=1)
    run(Mixed(1, limit=True), iterations=1)

    class Never(Mixed):
        def evaluate(self, decision: Decision) -> Evaluation:
            return Evaluation(np.sum(decision["n"], axis=-1), {}, {"no": -1.0 - decision["x"]}, {"no": 1.0}, {})

    monitor, _ = run(Never(1), iterations=1)
    assert used == ["LogExpectedImprovement", "LogConstrainedExpectedImprovement", "LogProbabilityOfFeasibility"]
    assert monitor.least_violation > 1.0


def test_objectives_that_are_not_finite_are_survived() -> None:
    class Holes(Mixed):
        def evaluate(self, decision: Decision) -> Evaluation:
            e = super().evaluate(decision)
            value = np.where(decision["n"][..., 0] > 6, np.inf, e.objective)
            return Evaluation(value, {}, {"n": np.where(decision["n"] > 6, np.nan, 1.0)}, {"n": 1.0}, {})

    monitor, message = run(Holes(1), iterations=6)
    assert monitor.least_violation == 0.0
    assert np.isfinite(monitor.best_value)
    assert "could not be fitted" not in message


# ---------------------------------------------------------------------------------- batches


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mode", ["joint", "separate"])
def test_batches_differ_within_and_count_points(backend: str, mode: str) -> None:
    problem = LTFL(systems.ltfl(2, 0))
    monitor = Monitor(problem)
    options: dict[str, Any] = {"seed": 3, "backend": backend, "mode": mode, "initial": 4}
    bayesian(problem, monitor, iterations=7, batch=3, **options)
    assert monitor.n_evaluations == 4 + 7
    again = Monitor(problem)
    bayesian(problem, again, iterations=7, batch=3, **options)
    assert [h["value"] for h in again.history] == [h["value"] for h in monitor.history]
    if mode == "joint":
        assert len({h["value"] for h in monitor.history}) == 11


def test_one_fit_serves_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    import botorch.fit

    original, calls = botorch.fit.fit_gpytorch_mll, []

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return original(*args, **kwargs)

    monkeypatch.setattr("botorch.fit.fit_gpytorch_mll", counted)
    monitor, _ = run(Mixed(1, limit=True), iterations=8, batch=4)
    assert len(calls) == 2
    assert monitor.n_evaluations == 16
    assert monitor.best_value < 0.3


def test_batches_find_the_optimum() -> None:
    problem = LTFL(systems.ltfl(3, 1))
    best = solve(problem).lower_bound
    assert best is not None
    got = solve(problem, method="bayesian", batch=4, iterations=28)
    assert got.value is not None
    assert got.value <= best * (1 + 1e-3)


# ---------------------------------------------------------------------------------- the designs' own searches


@pytest.mark.parametrize("seed", range(3))
def test_feel_completion_is_the_optimum_of_its_selection(seed: int) -> None:
    problem = FEEL(systems.feel(6, seed))
    search = problem.capabilities().search
    assert search is not None
    rng = np.random.default_rng(seed)
    for _ in range(3):
        chosen = np.maximum(rng.integers(0, 2, 6), np.eye(6)[0])
        decision = search.complete(chosen.astype(np.float64))
        evaluation = problem.evaluate(decision)
        taken = search.locate(decision)
        assert bool(evaluation.feasible())
        fixed = solve(problem.restrict(selected=taken), gap=1e-6)
        assert fixed.lower_bound is not None
        assert float(evaluation.objective) >= fixed.lower_bound * (1 - 1e-9)
        assert float(evaluation.objective) <= fixed.lower_bound * (1 + 1e-5)


def test_feel_search_leaves_out_who_does_not_fit() -> None:
    system = systems.feel(5, 0)
    problem = FEEL(system)
    search = problem.capabilities().search
    assert search is not None
    tight = FEEL(
        system.replace(radio=system.radio.replace(total_bandwidth=0.02 * float(system.radio.total_bandwidth or 0.0)))
    )
    search = tight.capabilities().search
    assert search is not None
    for x in (np.ones(5), np.zeros(5), np.stack([np.ones(5), np.zeros(5)])):
        decision = search.complete(x)
        assert np.all(tight.evaluate(decision).feasible())
        taken = search.locate(decision)
        assert np.all(taken.sum(axis=-1) >= 1)
        np.testing.assert_array_equal(search.locate(search.complete(taken)), taken)
    assert search.complete(np.ones(5))["selected"].sum() < 5


def test_feel_bayesian_finds_the_best_selection_of_few() -> None:
    problem = FEEL(systems.feel(4, 2))
    exact = solve(problem, gap=1e-6)
    got = solve(problem, method="bayesian", iterations=12)
    assert exact.lower_bound is not None
    assert got.value is not None
    assert exact.lower_bound <= got.value <= exact.lower_bound * (1 + 2e-5)
    must = problem.restrict(selected=(np.array([1.0, 0, 0, 0]), np.array([1.0, 1, 1, 0])))
    decision = solve(must, method="bayesian", iterations=2).decision
    assert decision is not None
    assert decision["selected"][0] == 1.0
    assert decision["selected"][3] == 0.0


def test_feel_with_nobody_able_offers_the_least_violating() -> None:
    system = systems.feel(3, 0)
    problem = FEEL(system.replace(devices=system.devices.replace(energy_budget=1e-9 * system.devices.energy_budget)))
    got = solve(problem, method="bayesian", iterations=2)
    assert got.status == "infeasible"
    assert got.decision is not None


@pytest.mark.parametrize("seed", range(3))
def test_coinference_split_search_holds_the_optimum(seed: int) -> None:
    problem = CoInference(systems.coinference(3, seed))
    best = solve(problem)
    search = problem.capabilities().search
    assert search is not None
    assert best.decision is not None
    x = search.locate(best.decision)
    decision = search.complete(x)
    assert float(problem.evaluate(decision).objective) == pytest.approx(best.value, rel=1e-9)
    values = search.unit_values(x)
    assert values is not None
    assert values.sum() == pytest.approx(best.value, rel=1e-9)
    got = solve(problem, method="bayesian", iterations=40)
    assert got.value == pytest.approx(best.value, rel=1e-9)
    assert "stopped after" in got.message


def test_coinference_splits_that_do_not_fit_cost_more() -> None:
    problem = CoInference(systems.coinference(2, 0, tightness=1.5))
    search = problem.capabilities().search
    assert search is not None
    choices = int(search.upper[0]) + 1
    x = np.repeat(np.arange(choices, dtype=np.float64)[:, None], 2, axis=1)
    values, decisions = search.unit_values(x), search.complete(x)
    assert values is not None
    violation = np.array(
        [problem.evaluate(Decision({k: v[i] for k, v in decisions.items()})).violation() for i in range(choices)]
    )
    assert np.any(violation > 1e-9)
    fits = violation <= 1e-9
    if fits.any():
        assert values[fits].sum(axis=1).max() <= values[~fits].sum(axis=1).max()


@pytest.mark.parametrize("seed", range(2))
def test_layer_search_holds_the_optimum(seed: int) -> None:
    problem = LayerwiseCoInference(systems.coinference(1, seed))
    best = solve(problem)
    search = problem.capabilities().search
    assert search is not None
    assert best.decision is not None
    decision = search.complete(search.locate(best.decision))
    assert float(problem.evaluate(decision).objective) == pytest.approx(best.value, rel=1e-6)
    low, high = search.lower, search.upper
    for share in (0.0, 0.3, 1.0):
        for split in (low[0], high[0]):
            assert bool(problem.evaluate(search.complete(np.array([split, share]))).feasible())


def test_layer_search_without_a_feasible_split() -> None:
    problem = LayerwiseCoInference(systems.coinference(1, 0, tightness=100.0))
    got = solve(problem, method="bayesian")
    assert got.status == "infeasible"
    assert "fixed" in got.message

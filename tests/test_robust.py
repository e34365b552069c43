"""One decision for several systems."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import jointopt as jo
from jointopt.errors import InputError
from jointopt.problems import DESIGNS
from jointopt.robust import RobustProblem


def ltfl(seed: int = 0, devices: int = 4) -> Any:
    return DESIGNS["ltfl"](jo.systems.ltfl(devices=devices, seed=seed))


def draws(problem: Any, count: int, spread: float, seed: int = 0) -> list[Any]:
    rng = np.random.default_rng(seed)
    gain = problem.system.radio.gain
    return [problem.system.with_(gain=gain * np.exp(spread * rng.standard_normal(gain.size))) for _ in range(count)]


def test_the_worst_case_over_gains_is_the_optimum_at_the_lowest_gain() -> None:
    problem = ltfl()
    gain = problem.system.radio.gain
    robust = RobustProblem(problem, ranges={"gain": (0.8 * gain, 1.2 * gain)})
    result = jo.solve(robust)
    lowest = jo.solve(problem.with_system(problem.system.with_(gain=0.8 * gain)))
    assert result.status == "optimal" and result.certificate.kind == "relaxation"
    assert result.value == pytest.approx(lowest.value, rel=1e-9)
    assert result.lower_bound is not None and result.value is not None and result.gap is not None
    assert result.gap <= 1e-6
    tried = robust.outside(result.decision, draws=200, seed=1)
    assert tried["violation"] <= 1e-9 and tried["excess"] == 0.0


def test_what_is_optimal_for_one_system_may_not_do_for_all() -> None:
    problem = ltfl(seed=1)
    nominal = jo.solve(problem)
    robust = RobustProblem(problem, draws(problem, 6, 0.1))
    assert not robust.evaluate(nominal.decision).feasible()
    result = jo.solve(robust)
    assert result.value is not None and result.evaluation is not None and result.evaluation.feasible()
    for single in robust.problems:
        evaluation = single.evaluate(result.decision)
        assert evaluation.feasible()
        assert float(evaluation.objective) <= result.value * (1 + 1e-12)


@pytest.mark.parametrize("measure", ["worst", "mean"])
def test_bounds_hold_for_random_decisions(measure: Any) -> None:
    problem = ltfl(seed=2, devices=2)
    robust = RobustProblem(problem, draws(problem, 4, 0.1, seed=3), measure=measure)
    result = jo.solve(robust)
    assert result.lower_bound is not None and result.value is not None
    assert result.lower_bound <= result.value
    rng = np.random.default_rng(0)
    shape = (20_000, 2)
    ranges = {v.name: (v.lower, v.upper) for v in robust.variables}
    batch = {n: low + rng.uniform(size=shape) * (high - low) for n, (low, high) in ranges.items()}
    batch["bits"] = np.rint(batch["bits"])
    evaluation = robust.evaluate(jo.Decision(batch))
    values = np.asarray(evaluation.objective)[evaluation.feasible()]
    assert values.size > 20
    assert values.min() >= result.lower_bound * (1 - 1e-9)
    # the local search is no worse than thousands of random draws
    assert result.value <= values.min() * (1 + 1e-9)


def test_mean_and_worst_over_one_system_are_the_problem_itself() -> None:
    problem = ltfl(seed=1, devices=2)
    known = jo.solve(problem)
    for measure in ("worst", "mean", "chance"):
        result = jo.solve(RobustProblem(problem, [problem.system], measure=measure))
        assert result.value == pytest.approx(known.value, rel=1e-9)


def test_chance_spares_as_many_systems_as_it_says() -> None:
    problem = ltfl(seed=3, devices=2)
    systems = draws(problem, 10, 0.3, seed=5)
    strict = jo.solve(RobustProblem(problem, systems, measure="mean"))
    loose = RobustProblem(problem, systems, measure="chance", level=0.8)
    result = jo.solve(loose)
    assert result.value is not None and strict.value is not None
    assert result.value <= strict.value * (1 + 1e-6)
    assert result.lower_bound is None and result.certificate.kind == "none"
    kept = {name: np.zeros(2) for name in ("delay", "energy")}
    for single in loose.problems:
        evaluation = single.evaluate(result.decision)
        for name in kept:
            kept[name] += np.asarray(evaluation.slack[name]) >= -1e-9 * np.asarray(evaluation.scale[name])
    assert all(np.all(count >= 8) for count in kept.values())


def test_level_one_is_no_chance_taken() -> None:
    problem = ltfl(seed=3, devices=2)
    systems = draws(problem, 5, 0.2, seed=5)
    decision = jo.solve(problem).decision
    sure = RobustProblem(problem, systems, measure="mean").evaluate(decision)
    one = RobustProblem(problem, systems, measure="chance", level=1.0).evaluate(decision)
    for name in sure.slack:
        np.testing.assert_array_equal(sure.slack[name], one.slack[name])


def test_derivatives_by_torch_are_those_by_differences() -> None:
    import torch

    problem = ltfl(seed=1, devices=2)
    robust = RobustProblem(problem, draws(problem, 3, 0.2), measure="mean")
    at = {"pruning_ratio": [0.3, 0.4], "bits": [4.0, 5.0], "power": [0.05, 0.06]}
    power = torch.tensor(at["power"], dtype=torch.float64, requires_grad=True)
    others = {n: torch.tensor(v, dtype=torch.float64) for n, v in at.items() if n != "power"}
    robust.evaluate(jo.Decision({**others, "power": power})).objective.backward()
    for u in range(2):
        step = 1e-6
        ends = []
        for sign in (1.0, -1.0):
            moved = np.array(at["power"])
            moved[u] += sign * step
            ends.append(float(robust.evaluate(jo.Decision({**at, "power": moved})).objective))
        assert power.grad is not None
        assert float(power.grad[u]) == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-6)


def test_one_hopeless_system_makes_all_infeasible() -> None:
    problem = ltfl()
    hopeless = problem.system.with_(delay_budget=np.full(4, 1e-6))
    result = jo.solve(RobustProblem(problem, [problem.system, hopeless]))
    assert result.status == "infeasible" and "system 1 alone" in result.message


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({}, "give either systems or ranges"),
        ({"systems": [], "measure": "worst"}, "none are given"),
        ({"systems": [3]}, r"systems\[0\]: expected a System"),
        ({"ranges": {"gain": (1e-9, 1e-10)}}, "is above"),
        ({"ranges": {"gain": (np.nan, 1e-9)}}, "must be finite"),
        ({"ranges": {"gain": 3.0}}, "must be a pair"),
        ({"ranges": {"gian": (1e-9, 1e-8)}}, "unknown field 'gian'"),
        ({"ranges": {}}, "none are given"),
        ({"ranges": {"gain": (1e-9, 1e-8)}, "measure": "best"}, "unknown 'best'"),
        ({"ranges": {"gain": (1e-9, 1e-8)}, "level": 0.0}, "level: 0.0"),
    ],
)
def test_bad_input(arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(InputError, match=text):
        RobustProblem(ltfl(), **arguments)


def test_systems_of_another_size_are_refused() -> None:
    with pytest.raises(InputError, match="4 devices"):
        RobustProblem(ltfl(), [jo.systems.ltfl(devices=5)])

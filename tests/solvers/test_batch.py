"""Many instances at once give what they give one by one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from jointopt.errors import InputError
from jointopt.problem import Problem
from jointopt.problems.coinference import CoInference
from jointopt.problems.feel import FEEL
from jointopt.problems.ltfl import LTFL
from jointopt.solvers.batch import ResultBatch, solve_many
from jointopt.solvers.dispatch import solve


def check(batch: ResultBatch, problems: list[Any], gap: float = 1e-6) -> None:
    assert len(batch) == len(problems)
    for i, problem in enumerate(problems):
        alone = solve(problem, method="exact")
        assert batch.status[i] == alone.status
        result = batch[i]
        assert result.status == alone.status
        assert (result.value is None) == (alone.value is None)
        if alone.value is None:
            assert np.isnan(batch.values[i])
            assert [c.text for c in result.infeasibility] == [c.text for c in alone.infeasibility]
            continue
        assert alone.lower_bound is not None
        assert batch.values[i] == pytest.approx(alone.value, rel=gap)
        assert batch.lower_bounds[i] <= alone.value * (1 + 1e-12)
        assert batch.values[i] >= alone.lower_bound * (1 - 1e-12)
        assert result.value == pytest.approx(batch.values[i], rel=1e-11)
        assert result.gap == pytest.approx(batch.gaps[i], abs=1e-9)
        assert result.decision is not None
        for name, values in result.decision.items():
            np.testing.assert_array_equal(batch.decision[name][i, : values.size], values)
        assert problem.evaluate(result.decision).feasible()


def test_problems_of_several_sizes() -> None:
    problems = [LTFL(LTFL.sample(devices=d, seed=s)) for s, d in enumerate((5, 1, 12, 7, 3))]
    check(solve_many(problems), problems)


def test_problems_that_cannot_be_joined() -> None:
    system = LTFL.sample(devices=4, seed=0)
    problems: list[Problem] = [
        LTFL(system),
        LTFL(system.with_(parameters=1234)),
        LTFL(system, objective="bound"),
        CoInference(CoInference.sample(devices=3, seed=0)),
        FEEL(FEEL.sample(devices=4, seed=0)),
        LTFL(LTFL.sample(devices=9, seed=2)).restrict(bits=6),
    ]
    check(solve_many(problems), problems, gap=1e-4)


def test_instances_that_bind_or_cannot_be_met() -> None:
    system = LTFL.sample(devices=6, seed=1)
    free = solve(LTFL(system))
    assert free.evaluation is not None
    lost = float(system.weight @ free.evaluation.quantities["packet_error"])
    problems = [
        LTFL(system.with_(gradient_slope=share / (8 * lost)), objective=objective)
        for share in (0.5, 1.01, 40.0)
        for objective in ("gap", "bound")
    ] + [LTFL(system.with_(delay_budget=1e-6))]
    check(solve_many(problems), problems)


def test_stacked_fields() -> None:
    rng = np.random.default_rng(0)
    problem = LTFL(LTFL.sample(devices=8, seed=3))
    system = problem.system
    fields = {
        "delay_budget": system.devices.delay_budget * rng.uniform(0.7, 2.0, (10, 8)),
        "samples": np.rint(system.devices.samples * rng.uniform(0.5, 2.0, (10, 8))),
    }
    fields["delay_budget"][4, 2] = 1e-6
    gain = system.radio.gain * rng.exponential(size=(10, 8))
    ranges = system.bound.quantizer_range * rng.uniform(0.5, 2.0, (10, 1))
    batch = solve_many(problem, devices=fields, radio={"gain": gain}, bound={"quantizer_range": ranges})
    problems = [
        LTFL(
            system.with_(
                delay_budget=fields["delay_budget"][i],
                samples=fields["samples"][i],
                gain=gain[i],
                quantizer_range=np.full(8, ranges[i, 0]),
            )
        )
        for i in range(10)
    ]
    check(batch, problems)
    assert batch.status[4] == "infeasible"


def test_stacked_fields_of_a_restricted_problem() -> None:
    problem = LTFL(LTFL.sample(devices=4, seed=0)).restrict(bits=(3, 6), power=0.05)
    gain = problem.system.radio.gain * np.array([[1.0], [2.0], [0.7]])
    batch = solve_many(problem, radio={"gain": gain})
    check(batch, [LTFL(problem.system.with_(gain=g)).restrict(bits=(3, 6), power=0.05) for g in gain])
    with pytest.raises(InputError, match="power_max"):
        solve_many(problem, devices={"power_max": np.full((2, 4), 0.2)})


def test_stacked_fields_of_a_design_that_cannot_be_joined() -> None:
    problem = FEEL(FEEL.sample(devices=4, seed=0))
    gain = problem.system.radio.gain * np.array([[1.0], [2.0]])
    check(solve_many(problem, radio={"gain": gain}), [FEEL(problem.system.with_(gain=g)) for g in gain], gap=1e-4)


def test_bad_input() -> None:
    problem = LTFL(LTFL.sample(devices=4, seed=0))
    good = np.ones((3, 4))
    for wrong, match in (
        ({}, "which fields differ"),
        ({"device": {"delay_budget": good}}, "devices"),
        ({"devices": {"delay": good}}, r"devices\.delay"),
        ({"devices": {"delay_budget": np.ones(4)}}, r"\(4,\)"),
        ({"devices": {"delay_budget": np.ones((3, 5))}}, r"\(3, 5\)"),
        ({"devices": {"delay_budget": good}, "radio": {"gain": np.ones((2, 4))}}, "2 instances"),
        ({"devices": {"delay_budget": -good}}, "delay_budget"),
    ):
        with pytest.raises(InputError, match=match):
            solve_many(problem, **wrong)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="empty"):
        solve_many([])
    with pytest.raises(InputError, match=r"problems\[1\]"):
        solve_many([problem, 3])  # type: ignore[list-item]
    with pytest.raises(InputError, match="one problem"):
        solve_many([problem], radio={"gain": good})
    with pytest.raises(InputError, match="gap"):
        solve_many([problem], gap=2.0)
    with pytest.raises(IndexError):
        solve_many([problem])[1]

"""TT-Prune: tiers follow from delays, all assignments by brute force, what is saved beside synchronous rounds."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import jointopt as jo
from jointopt.errors import InputError
from jointopt.federated.clocks import Tiers as Clock
from jointopt.problems import TimeTriggered
from jointopt.problems.band_cells import BandCells
from jointopt.study import load_result
from jointopt.system import System, Tiers
from jointopt.verification import verify, verify_saved


def solved(system: System, **options: Any) -> Any:
    return jo.solve(TimeTriggered(system), **{"gap": 1e-3, **options})


@pytest.mark.parametrize("seed", [0])
def test_all_assignments_of_tiers(seed: int) -> None:
    system = TimeTriggered.sample(devices=3, seed=seed).with_(periods=[2, 4])
    problem = TimeTriggered(system)
    # whole choices of three devices leave 1.3 %
    result = solved(system, gap=2e-2)
    assert result.value is not None and result.lower_bound is not None
    values = []
    for tiers in product(range(2), repeat=3):
        # with one deadline for each device the problem is convex
        fixed = system.with_(delay_budget=problem.clock.periods[list(tiers)] * problem.clock.interval, periods=[4])
        free = TimeTriggered(fixed)
        free.staleness = 0.0
        one = jo.solve(free, gap=1e-4)
        if one.decision is not None:
            values.append(float(problem.evaluate(one.decision).objective))
    assert result.lower_bound <= min(values) * (1.0 + 1e-9)
    assert result.value <= min(values) * (1.0 + 1e-2)


def test_periods_follow_from_delays_as_on_the_clock_of_training() -> None:
    system = TimeTriggered.sample(devices=20, seed=0)
    result = solved(system)
    assert result.evaluation is not None
    clock = Clock(seconds=system.tiers.interval, periods=[1, 2, 3, 4])  # type: ignore[union-attr]
    delay = result.evaluation.quantities["delay"]
    np.testing.assert_array_equal(result.evaluation.quantities["period"], clock.period(delay))
    assert len(np.unique(clock.period(delay))) > 1
    parts = result.evaluation.parts
    bound = system.bound
    stale = 2.0 * bound.smoothness**2 * bound.learning_rate**2 * bound.gradient_offset
    assert parts["staleness"] == pytest.approx(float((system.weight * stale * (clock.period(delay) - 1.0) ** 2).sum()))


def test_baselines_are_no_better() -> None:
    problem = TimeTriggered(TimeTriggered.sample(devices=10, seed=0))
    best = jo.solve(problem, gap=1e-3)
    assert best.lower_bound is not None and best.value is not None
    for method in ("smallest_tier", "synchronous", "equal_bandwidth", "no_pruning"):
        other = jo.solve(problem, method=method, gap=1e-3)
        assert other.value is None or other.value >= best.lower_bound * (1.0 - 1e-9), method
    synchronous = jo.solve(problem, method="synchronous", gap=1e-3)
    assert synchronous.evaluation is not None and np.all(synchronous.evaluation.quantities["period"] == 1.0)


def test_longer_intervals_prune_less_and_learn_more() -> None:
    system = TimeTriggered.sample(devices=10, seed=1)
    values = []
    for factor in (1.0, 1.5, 2.0, 3.0):
        interval = factor * system.tiers.interval  # type: ignore[union-attr]
        result = solved(system.with_(interval=interval, delay_budget=4.0 * interval), gap=1e-3)
        assert result.value is not None
        values.append(result.value)
    assert values == sorted(values, reverse=True)


def test_bits_are_saved_at_equal_learning_cost() -> None:
    system = TimeTriggered.sample(devices=30, seed=0)
    interval = 1.5 * system.tiers.interval  # type: ignore[union-attr]
    problem = TimeTriggered(system.with_(interval=interval, delay_budget=4.0 * interval))
    result = jo.solve(problem, gap=1e-4)
    assert result.decision is not None and result.value is not None
    target = 4.0 * result.value
    own, other = problem.course(result.decision, target), problem.synchronous(target)
    # a third more steps, each of far fewer bits
    assert own.aggregations == pytest.approx(other.aggregations * 4.0 / 3.0)
    assert 0.25 < 1.0 - own.bits / other.bits < 0.6
    assert own.seconds < other.seconds
    # nothing is saved where the target is hardly above what pruning and staleness cost
    near = 1.05 * result.value
    assert problem.course(result.decision, near).bits > problem.synchronous(near).bits
    with pytest.raises(InputError, match="not above Gamma"):
        problem.course(result.decision, 0.5 * result.value)


def test_the_synchronous_round_is_the_shortest_for_whole_models() -> None:
    system = TimeTriggered.sample(devices=5, seed=3)
    problem = TimeTriggered(system)
    course = problem.synchronous(1.0)
    length = course.seconds / course.aggregations
    for factor, fits in ((1.0 + 1e-9, True), (1.0 - 1e-6, False)):
        cells = BandCells(problem.restrict(pruning_ratio=0.0), np.full((1, 5), factor * length))
        assert bool(cells.feasible.all() and cells.low.sum() <= problem.bands[0]) is fits
    bits = (system.learner.parameters + system.learner.unpruned_parameters) * 32.0 + system.learner.header_bits
    assert course.bits == pytest.approx(course.aggregations * 5 * bits)


def test_results_are_verified_saved_and_carried_out(tmp_path: Path) -> None:
    system = TimeTriggered.sample(devices=6, seed=2)
    result = solved(system)
    assert verify(result).complete
    loaded, decision, data = load_result(result.save(tmp_path / "tiers.json"))
    assert loaded.system == system and decision == result.decision
    verify_saved(loaded, decision, data)
    again = TimeTriggered.from_settings(system, TimeTriggered(system, limit="density").settings())
    assert again.limit == "density"
    task = jo.Task.for_system(system, data="digits")
    clock = {"name": "tiers", "seconds": system.tiers.interval, "periods": [1, 2, 3, 4]}  # type: ignore[union-attr]
    assert jo.train(result, task, rounds=3, clock=clock).summary()


def test_infeasible_devices_are_told_what_is_short() -> None:
    system = TimeTriggered.sample(devices=4, seed=0)
    budget = system.devices.delay_budget.copy()
    budget[2] = 1e-5
    result = solved(system.with_(delay_budget=budget))
    assert [c.device for c in result.infeasibility] == [2]
    assert result.infeasibility[0].relax["delay_budget"] is not None
    verify(result)
    short = solved(system.with_(interval=1e-4, delay_budget=10.0))
    assert short.status == "infeasible" and {c.binding for c in short.infeasibility} == {"interval"}
    needed = max(c.relax["tiers.interval"] or 0.0 for c in short.infeasibility)
    enough = system.with_(interval=needed * (1.0 + 1e-9), delay_budget=10.0)
    cells = TimeTriggered(enough).capabilities().cells
    assert isinstance(cells, BandCells) and cells.feasible.any(axis=0).all()
    verify(short)


def test_bad_input_is_refused() -> None:
    for periods, text in (
        ([2, 1], r"periods\[tier 1\]: 1 does not lie above the 2"),
        ([1, 1], "does not lie above"),
        ([], "empty|expected"),
        ([0, 1], "at least 1"),
        ([1.5], "whole"),
    ):
        with pytest.raises(InputError, match=text):
            Tiers(interval=1.0, periods=periods)
    for interval in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(InputError, match="interval"):
            Tiers(interval=interval, periods=[1, 2])
    with pytest.raises(InputError, match=r"tiers: is missing; this design needs the table \[tiers\]"):
        TimeTriggered(jo.systems.feel(4))
    with pytest.raises(InputError, match="gradient_slope"):
        TimeTriggered(TimeTriggered.sample(devices=4).with_(gradient_slope=0.1))

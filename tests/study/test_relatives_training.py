"""Designs that choose ratios and bands, carried out on real data: what must hold by construction."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

import jointopt as jo
from jointopt.errors import InputError
from jointopt.federated import TrainingResult
from jointopt.problems import Hierarchical, RatioBandwidth, RatioBandwidthSelection, RatioError, TimeTriggered
from jointopt.system import System, Tiers

DESIGNS = (RatioBandwidth, RatioBandwidthSelection, TimeTriggered, RatioError, Hierarchical)
PERIODS = [1, 2, 3, 4]


@cache
def solved(kind: Any, devices: int = 8, seed: int = 0) -> jo.Result:
    gap = 5e-2 if kind is RatioError else 1e-2
    return jo.solve(kind(kind.sample(devices=devices, seed=seed)), gap=gap)


@cache
def task(kind: Any, devices: int = 8, seed: int = 0) -> jo.Task:
    return jo.Task.for_system(kind.sample(devices=devices, seed=seed), alpha=0.5, seed=seed)


def tiers(system: System) -> dict[str, Any]:
    assert system.tiers is not None
    return {"name": "tiers", "seconds": system.tiers.interval, "periods": PERIODS}


def trained(result: jo.Result, on: jo.Task, rounds: int, **options: Any) -> TrainingResult:
    """Train, unmeasured, and with the clock that the design is about."""
    if isinstance(result.problem, TimeTriggered):
        options = {"clock": tiers(result.problem.system), **options}
    run = jo.train(result, on, rounds=rounds, measure_gradient_every=0, **options)
    assert run.status == "completed"
    return run


def modelled(result: jo.Result, run: TrainingResult) -> Any:
    """What the design says of the decision that was carried out."""
    names = [variable.name for variable in result.problem.variables]
    return result.problem.evaluate(jo.Decision({name: run.decision[name] for name in names}))


@pytest.mark.parametrize("kind", DESIGNS, ids=lambda kind: kind.name)
def test_booked_bits_and_delays_are_the_models(kind: Any) -> None:
    result = solved(kind)
    run = trained(result, task(kind), 12)
    found = modelled(result, run)
    # ratios are rounded up to whole weights, at most one above the greatest: what held of time and band still holds
    for name in ("delay", *(n for n in found.slack if n.endswith(("_bandwidth", "_bandwidth_0", "_bandwidth_1")))):
        assert np.all(np.asarray(found.slack[name]) >= -1e-9 * np.asarray(found.scale[name])), name
    assert np.all(run.decision["pruning_ratio"] >= np.asarray(result.decision["pruning_ratio"]) - 1e-12)  # type: ignore[index]
    sent = run.ledger.sent
    for booked, name in ((run.ledger.bits, "payload_bits"), (run.ledger.delay, "delay"), (run.ledger.energy, "energy")):
        np.testing.assert_allclose(booked, np.where(sent, found.quantities[name], 0.0), rtol=1e-12, err_msg=name)
    budget = result.problem.system.devices.delay_budget
    assert np.all(run.ledger.delay <= budget * (1.0 + 1e-9))


def test_tiers_deliver_at_their_intervals() -> None:
    result = solved(TimeTriggered, devices=12, seed=3)
    run = trained(result, task(TimeTriggered, devices=12, seed=3), 40)
    period = modelled(result, run).quantities["period"].astype(int)
    assert len(np.unique(period)) > 1
    interval = result.problem.system.tiers.interval
    ticks = np.array([row["cumulative_delay"] for row in run.rows]) / interval
    np.testing.assert_allclose(ticks, np.rint(ticks), rtol=1e-12)
    ticks = np.rint(ticks).astype(int)
    # everyone at every multiple of its period, and at no other time
    np.testing.assert_array_equal(run.ledger.sent, ticks[:, None] % period == 0)
    # nothing is passed over: an update at every tick that is due for someone
    due = [t for t in range(1, ticks[-1] + 1) if np.any(t % period == 0)]
    assert ticks.tolist() == due


def test_bits_of_an_interval_are_those_sent_in_the_long_run() -> None:
    result = solved(TimeTriggered, devices=12, seed=3)
    run = trained(result, task(TimeTriggered, devices=12, seed=3), 60)
    found = modelled(result, run).quantities
    ticks = run.rows[-1]["cumulative_delay"] / result.problem.system.tiers.interval
    # one round of everybody may be missing at the end
    assert run.rows[-1]["cumulative_bits"] == pytest.approx(
        ticks * float(found["interval_bits"]), abs=float(found["payload_bits"].sum())
    )


def in_one_tier(period: int) -> tuple[jo.Result, jo.Task]:
    """A time-triggered decision with everybody in the one tier that there is."""
    system = TimeTriggered.sample(devices=6, seed=1)
    assert system.tiers is not None
    interval = 4.0 * system.tiers.interval / period
    changed = system.replace(tiers=Tiers(interval=interval, periods=[period]))
    result = jo.solve(TimeTriggered(changed), gap=1e-2)
    assert result.evaluation is not None and np.all(result.evaluation.quantities["period"] == period)
    return result, jo.Task.for_system(changed, alpha=0.5, seed=1)


def test_everyone_in_the_first_tier_is_synchronous_learning() -> None:
    result, on = in_one_tier(1)
    interval = result.problem.system.tiers.interval
    tiered = trained(result, on, 10, clock={"name": "tiers", "seconds": interval, "periods": [1]})
    waiting = trained(result, on, 10, clock="synchronous")
    np.testing.assert_array_equal(tiered.weights, waiting.weights)
    for name in ("train_loss", "test_accuracy", "cumulative_bits"):
        assert [row[name] for row in tiered.rows] == [row[name] for row in waiting.rows]
    # the one difference: the server waits for the end of the interval
    assert tiered.rows[-1]["cumulative_delay"] == pytest.approx(10 * interval)
    assert waiting.rows[-1]["cumulative_delay"] == pytest.approx(10 * float(waiting.ledger.delay[0].max()))
    assert waiting.rows[-1]["cumulative_delay"] <= tiered.rows[-1]["cumulative_delay"] * (1.0 + 1e-9)


def test_a_tier_makes_as_many_steps_at_once_as_it_has_intervals() -> None:
    result, on = in_one_tier(3)
    interval = result.problem.system.tiers.interval
    tiered = trained(result, on, 8, clock={"name": "tiers", "seconds": interval, "periods": [3]})
    # a device of period 3 counts three times: comparisons at one step size are none at equal steps
    longer = trained(result, on, 8, clock="synchronous", server={"name": "sgd", "rate": 3.0})
    np.testing.assert_allclose(tiered.weights, longer.weights, rtol=0.0, atol=1e-5)
    plain = trained(result, on, 8, clock="synchronous")
    assert np.abs(plain.weights - longer.weights).max() > 1e-2
    assert tiered.rows[-1]["cumulative_delay"] == pytest.approx(24 * interval)


def test_who_is_left_out_has_no_part() -> None:
    kind = RatioBandwidthSelection
    result, on = solved(kind), task(kind)
    assert result.decision is not None
    taken = np.asarray(result.decision["selected"]) > 0.5
    assert 0 < taken.sum() < 8
    run = trained(result, on, 10)
    for name in ("worked", "sent", "bits", "delay", "energy"):
        assert not np.any(getattr(run.ledger, name)[:, ~taken])
        assert np.all(getattr(run.ledger, name)[:, taken])
    # the same as if the others had never been there
    kept = np.flatnonzero(taken)
    alone = jo.train(
        {name: np.asarray(value)[kept] for name, value in result.decision.items()},
        replace(on, parts=tuple(on.parts[u] for u in kept)),
        system=result.problem.system.take(kept),
        rounds=10,
        measure_gradient_every=0,
    )
    np.testing.assert_allclose(alone.weights, run.weights, rtol=0.0, atol=1e-5)


def test_a_deadline_leaves_behind_exactly_who_the_model_says_is_late() -> None:
    result, on = solved(RatioBandwidth), task(RatioBandwidth)
    deadline = float(result.problem.system.devices.delay_budget[0])
    late_clock = {"name": "synchronous", "deadline": deadline * (1.0 + 1e-9)}
    # the joint design is never late
    kept = trained(result, on, 6, clock=late_clock)
    assert np.all(kept.ledger.sent)
    np.testing.assert_array_equal(kept.weights, trained(result, on, 6).weights)
    # whole models are: the design without pruning has no answer, and carried out all the same it misses the deadline
    problem = RatioBandwidth(result.problem.system)
    assert not jo.solve(problem, method="no_pruning").feasible
    whole = jo.Decision(
        {
            "pruning_ratio": np.zeros(8),
            "bandwidth": np.full(8, problem.bands[0] / 8),
            "power": problem.system.devices.power_max,
        }
    )
    delay = problem.evaluate(whole).quantities["delay"]
    assert 0 < np.sum(delay > deadline) < 8
    run = jo.train(whole, on, system=problem.system, rounds=6, clock=late_clock, measure_gradient_every=0)
    np.testing.assert_array_equal(run.ledger.sent, np.broadcast_to(delay <= deadline, (6, 8)))
    assert run.rows[-1]["received"] == np.sum(delay <= deadline)


def test_packets_are_lost_as_often_as_the_design_says() -> None:
    result = solved(RatioError)
    run = trained(result, task(RatioError), 200, evaluate_every=200)
    found = modelled(result, run).quantities
    error = found["packet_error"]
    spread = np.sqrt(error * (1.0 - error) / 200)
    assert np.all(np.abs(run.ledger.lost.mean(axis=0) - error) <= 5.0 * spread + 1e-12)
    assert error.max() > 0.02
    # a round takes the latency that is priced
    np.testing.assert_allclose([row["round_delay"] for row in run.rows], float(found["latency"]), rtol=1e-9)


def test_the_ledger_of_two_hops_is_that_of_the_first() -> None:
    """What is booked is one aggregation at the edge; the others and the way to the cloud are not in the ledger."""
    result = solved(Hierarchical, devices=20)
    problem = result.problem
    assert isinstance(problem, Hierarchical) and len(problem.edges) == 2
    run = trained(result, task(Hierarchical, devices=20), 3)
    found = modelled(result, run)
    whole = problem.edges.local_aggregations * run.ledger.delay[0] + problem.backhaul_delay
    np.testing.assert_allclose(whole, found.quantities["global_delay"], rtol=1e-12)
    assert whole.max() > run.rows[-1]["cumulative_delay"]
    # its budget is for all of that, so booked delays never come near it
    assert run.ledger.delay.max() < 0.5 * problem.system.devices.delay_budget.min()


def test_an_edge_that_aggregates_once_is_no_hierarchy() -> None:
    result = solved(Hierarchical, devices=20)
    problem, on = result.problem, task(Hierarchical, devices=20)
    assert isinstance(problem, Hierarchical) and result.decision is not None
    flat = trained(result, on, 4)
    share = on.samples / on.samples.sum()
    module = deepcopy(on.module)
    for _ in range(4):
        mean = np.zeros(on.parameters + on.unpruned_parameters)
        for server in range(len(problem.edges)):
            under = np.flatnonzero(problem.edges.number == server)
            run = jo.train(
                {name: np.asarray(value)[under] for name, value in result.decision.items()},
                replace(on, module=module, parts=tuple(on.parts[u] for u in under)),
                system=problem.system.take(under),
                rounds=1,
                measure_gradient_every=0,
            )
            mean += share[under].sum() * run.weights
        torch.nn.utils.vector_to_parameters(torch.from_numpy(mean.astype(np.float32)), module.parameters())
    np.testing.assert_allclose(mean, flat.weights, rtol=0.0, atol=1e-5)


def test_a_clock_that_a_decision_does_not_fit_is_refused() -> None:
    result, on = solved(TimeTriggered), task(TimeTriggered)
    interval = result.problem.system.tiers.interval
    clock = {"name": "tiers", "seconds": 0.2 * interval, "periods": PERIODS}
    with pytest.raises(InputError, match="longer than the slowest tier"):
        trained(result, on, 2, clock=clock)
    # or takes as many turns of the slowest tier as it needs, and counts by them
    run = trained(result, on, 40, clock={**clock, "strict": False})
    slow = run.ledger.worked.sum(axis=0)
    delay = run.ledger.cost.delay
    assert np.all(delay > 0.0) and np.any(delay > 0.2 * interval * PERIODS[-1])
    turns = np.ceil(delay / (0.2 * interval * PERIODS[-1]) * (1.0 - 1e-9))
    late = turns > 1
    ticks = round(run.rows[-1]["cumulative_delay"] / (0.2 * interval))
    assert np.all(np.abs(slow[late] - ticks / (PERIODS[-1] * turns[late])) <= 1.0)
    with pytest.raises(InputError, match="strict must be True or False"):
        trained(result, on, 2, clock={**clock, "strict": 1})


def test_the_clock_is_the_designs_own() -> None:
    result, on = solved(TimeTriggered), task(TimeTriggered)
    plain = jo.train(result, on, rounds=6, measure_gradient_every=0)
    asked = jo.train(result, on, rounds=6, measure_gradient_every=0, clock=tiers(result.problem.system))
    assert plain.settings["clock"]["name"] == "tiers"
    assert np.array_equal(plain.weights, asked.weights)
    dense = jo.solve(result.problem, method="no_pruning")
    assert jo.train(dense, on, rounds=4, measure_gradient_every=0).status == "completed"

"""Devices that join a round by chance: how often, independently, at no cost when they do not, without bias."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from jointopt.errors import InputError
from jointopt.federated.aggregation import aggregation
from jointopt.federated.loop import Loop
from jointopt.federated.streams import stream
from jointopt.federated.task import Losses, Task
from jointopt.federated.training import train
from jointopt.pruning import pruner
from jointopt.pruning.schedules import OneShot
from jointopt.system import System

DENSE = {"pruning_ratio": 0.0, "bits": 32, "power": 0.1}
DECISION = {"pruning_ratio": 0.3, "bits": 6, "power": 0.1}
PERFECT = {"gain": 1e9, "fading": "none"}
CHANCES = np.array([0.15, 0.5, 0.8, 1.0])


@pytest.fixture(scope="module")
def plain() -> Task:
    return Task.make(data="digits", network="mlp", devices=4, batch_size=16, seed=3, hidden=(16,))


def start_of(task: Task) -> np.ndarray[Any, Any]:
    return Losses(task).start.numpy()


def test_how_often_and_independently(
    plain: Task, system_for: Callable[..., System], loop_for: Callable[..., Loop]
) -> None:
    rounds, chances = 6000, np.array([0.15, 0.5, 0.8, 0.4])
    loop = loop_for(DECISION, system_for(plain), plain, attendance=chances, seed=9)
    there = np.zeros((rounds, 4), dtype=bool)
    for t in range(rounds):
        there[t, loop._starters(t)] = True
    spread = np.sqrt(chances * (1 - chances) / rounds)
    assert np.all(np.abs(there.mean(axis=0) - chances) < 4.5 * spread)
    # any two devices in one round, any device in two rounds
    scaled = (there - chances) / np.sqrt(chances * (1 - chances))
    apart = scaled.T @ scaled / rounds
    assert np.all(np.abs(apart[~np.eye(4, dtype=bool)]) < 4.5 / np.sqrt(rounds))
    for lag in (1, 2):
        assert np.all(np.abs((scaled[lag:] * scaled[:-lag]).mean(axis=0)) < 4.5 / np.sqrt(rounds - lag))
    # nor does it tell anything of the channel, or of who will fail to send
    failing = np.array([stream(9, "dropout", t).random(4) for t in range(rounds)])
    assert np.all(np.abs((scaled * (failing - 0.5)).mean(axis=0)) < 4.5 / np.sqrt(12 * rounds))
    gain = np.array([loop.draw_channel(t)[0] for t in range(rounds)])
    assert np.all(np.abs((scaled * (gain - 1.0)).mean(axis=0)) < 4.5 / np.sqrt(rounds))


def test_everyone_always_is_the_plain_run(plain: Task, system_for: Callable[..., System]) -> None:
    system = system_for(plain, gain=3e-14)
    for options in ({}, {"aggregation": "unbiased"}, {"participation": 2}):
        without = train(DECISION, system, plain, rounds=6, seed=2, **options)  # type: ignore[arg-type]
        for chance in (1.0, 1, np.ones(4)):
            same = train(DECISION, system, plain, rounds=6, seed=2, attendance=chance, **options)  # type: ignore[arg-type]
            assert same.rows == without.rows
            np.testing.assert_array_equal(same.weights, without.weights)
            assert {**same.to_dict(), "seconds": 0} == {**without.to_dict(), "seconds": 0}


def test_who_is_away_costs_nothing_and_is_not_waited_for(plain: Task, system_for: Callable[..., System]) -> None:
    system = system_for(plain, cycles_per_sample=[1e5, 2e5, 3e5, 9e5])
    result = train(DECISION, system, plain, rounds=40, seed=1, attendance=[0.5, 0.5, 0.5, 0.2])
    ledger, cost = result.ledger, result.ledger.cost
    assert 0 < ledger.worked[:, 3].sum() < 20
    for name in ("bits", "delay", "energy"):
        assert np.all(getattr(ledger, name)[~ledger.worked] == 0)
    total = 0.0
    for row, worked in zip(result.rows, ledger.worked, strict=True):
        assert row["round_delay"] == pytest.approx(cost.delay[worked].max(initial=0.0), rel=1e-9)
        assert row["round_energy"] == pytest.approx(cost.energy[worked].sum(), rel=1e-12)
        assert row["round_bits"] == cost.payload_bits[worked].sum()
        total += cost.energy[worked].sum()
    assert result.rows[-1]["cumulative_energy"] == pytest.approx(total, rel=1e-12)


@pytest.mark.parametrize("server", ["sgd", "momentum", "adam"])
def test_a_round_that_nobody_joins(plain: Task, system_for: Callable[..., System], server: str) -> None:
    result = train(
        DECISION, system_for(plain), plain, rounds=12, seed=1, attendance=0.1, server=server, evaluate_every=1
    )
    alone = ~result.ledger.worked.any(axis=1)
    assert 3 < alone.sum() < 12
    before = None
    for row, empty in zip(result.rows, alone, strict=True):
        if empty:
            assert (row["round_delay"], row["round_energy"], row["round_bits"]) == (0.0, 0.0, 0)
            assert (row["received"], row["train_loss"]) == (0, None)
            if before is not None:
                assert row["test_loss"] == before["test_loss"]
                for name in ("cumulative_delay", "cumulative_energy", "cumulative_bits"):
                    assert row[name] == before[name]
        before = row
    json.dumps(result.to_dict(), allow_nan=False)
    never = train(DECISION, system_for(plain), plain, rounds=4, seed=1, attendance=1e-9)
    np.testing.assert_array_equal(never.weights, start_of(plain))
    assert never.rows[-1]["cumulative_energy"] == never.rows[-1]["cumulative_delay"] == 0.0


def test_a_cut_that_falls_on_an_empty_round_is_made_later(plain: Task, system_for: Callable[..., System]) -> None:
    system = system_for(plain)
    once = pruner("magnitude").with_(schedule=OneShot(3))
    for seed in range(40):
        result = train({**DENSE, "bits": 8, "pruning_ratio": 0.5}, system, plain, rounds=14, seed=seed, attendance=0.3,
                       pruner=once, evaluate_every=100, measure_gradient_every=0)  # fmt: skip
        if not result.ledger.worked[2].any() and result.ledger.worked[3:].any():
            break
    else:
        pytest.fail("no seed leaves round 3 empty")
    dense = 8 * (plain.parameters + plain.unpruned_parameters) + 64
    later = result.ledger.bits[3:][result.ledger.worked[3:]]
    assert np.all(later < dense)


def test_the_unbiased_mean_is_unbiased(
    quadratic_task: Callable[..., Task], system_for: Callable[..., System], loop_for: Callable[..., Loop]
) -> None:
    """Attendance, losses and dropout at once: the mean step is the gradient of F; that of "received" is not."""
    rng = np.random.default_rng(0)
    counts, targets = [2, 7, 4, 3], rng.normal(0, 3, (4, 3))
    start = np.array([1.0, -2.0, 0.5])
    task = quadratic_task(start, [np.repeat(t[None], n, axis=0) for t, n in zip(targets, counts, strict=True)])
    system = system_for(task, gain=[2e-15, 6e-15, 1e-14, 1e-15])
    weight = np.array(counts) / sum(counts)
    expected = weight @ (start - targets)
    rounds, dropout = 700, np.array([0.0, 0.1, 0.4, 0.1])
    plan = {"attendance": CHANCES, "dropout": dropout, "learning_rate": 1.0, "rounds": rounds}
    for name, exact in (("unbiased", True), ("received", False)):
        loop = loop_for(DENSE, system, task, aggregation=aggregation(name), **plan)
        lost = loop.ledger.cost.packet_error
        assert lost.max() > 0.3
        steps = np.empty((rounds, 3))
        for t in range(rounds):
            loop.round = t  # the step is not accepted, so each starts from the same weights
            steps[t] = start - loop.step().weights.numpy()
        error = np.abs(steps.mean(axis=0) - expected) / (steps.std(axis=0) / np.sqrt(rounds))
        assert (error.max() < 4.5) == exact, (name, error)
        if exact:  # its variance is that of theory L3': sum pi^2 (1 - s)/s ||g||^2
            arrives = CHANCES * (1 - lost) * (1 - dropout)
            variance = np.sum(weight**2 * (1 - arrives) / arrives * ((start - targets) ** 2).sum(axis=1))
            squares = ((steps - expected) ** 2).sum(axis=1)
            assert squares.mean() == pytest.approx(variance, abs=4.5 * squares.std() / np.sqrt(rounds))


def test_common_random_numbers(plain: Task, system_for: Callable[..., System]) -> None:
    system = system_for(plain)
    options: dict[str, Any] = {"rounds": 30, "seed": 3, "learning_rate": 0.01}
    one = train({**DECISION, "power": 0.02}, system, plain, attendance=0.6, **options)
    two = train({**DENSE, "power": 0.2}, system, plain, attendance=0.6, **options)
    np.testing.assert_array_equal(one.ledger.worked, two.ledger.worked)
    less = train(DECISION, system, plain, attendance=0.3, **options)
    assert np.all(one.ledger.worked >= less.ledger.worked)
    assert one.ledger.worked.sum() > less.ledger.worked.sum()
    other = train(DECISION, system, plain, attendance=0.6, **{**options, "seed": 4})
    assert not np.array_equal(one.ledger.worked, other.ledger.worked)
    # who is left out of the decision leaves the others' luck as it is
    some = train({**DECISION, "selected": [1, 0, 1, 1]}, system, plain, attendance=0.6, **options)
    np.testing.assert_array_equal(some.ledger.worked, one.ledger.worked & np.array([True, False, True, True]))
    arrived = (some.ledger.sent & ~some.ledger.lost).sum(axis=1)
    assert [row["received"] for row in some.rows] == arrived.tolist()


def test_the_target_s_participation_is_the_default(plain: Task, dpq_system: Callable[..., System]) -> None:
    system = dpq_system(plain, target={"gradient_norm": 1.0, "participation": 0.4})
    options: dict[str, Any] = {"rounds": 8, "seed": 1}
    default = train(DECISION, system, plain, **options)
    assert default.settings["attendance"] == [0.4] * 4
    # with the target comes the aggregation that its bound is about
    assert default.settings["aggregation"] == "unbiased"
    asked = train(DECISION, system, plain, attendance=0.4, aggregation="unbiased", **options)
    assert asked.rows == default.rows
    every = train(DECISION, system, plain, attendance=1.0, **options)
    assert np.all(every.ledger.worked)
    assert "attendance" not in every.settings
    drawn = train(DECISION, system, plain, participation=2, **options)
    assert drawn.ledger.worked.sum(axis=1).tolist() == [2] * 8
    with pytest.raises(InputError, match=r"target.participation.*clock that does not wait.*give attendance=1"):
        train(DECISION, system, plain, clock="asynchronous", **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attendance": 0.0}, r"attendance\[device 0\]: must lie above 0, up to 1, found 0.0"),
        ({"attendance": [0.5, 1.0, -0.2, 0.3]}, r"attendance\[device 2\]: .* found -0.2"),
        ({"attendance": 1.5}, "found 1.5"),
        ({"attendance": float("nan")}, "found nan"),
        ({"attendance": [0.5, 0.5]}, "attendance: expected one number or 4"),
        ({"attendance": [[0.5] * 4]}, "attendance: expected one number or 4"),
        ({"attendance": "often"}, "attendance: expected one number or 4"),
        ({"attendance": True}, "attendance: expected one number or 4"),
        ({"attendance": 0.5, "participation": 2}, "cannot be drawn by participation as well"),
        ({"attendance": 0.5, "clock": "asynchronous"}, "clock that does not wait"),
    ],
)
def test_bad_attendance(plain: Task, system_for: Callable[..., System], options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        train(DECISION, system_for(plain), plain, rounds=1, **options)


@pytest.mark.parametrize("how", [{}, {"algorithm": "scaffold", "local_steps": 2}, {"pruner": "taylor"}])
def test_a_stopped_run_goes_on_bit_for_bit(
    plain: Task, system_for: Callable[..., System], tmp_path: Path, how: dict[str, Any]
) -> None:
    system = system_for(plain, gain=3e-14)
    options = {"rounds": 14, "seed": 4, "attendance": [0.2, 0.3, 0.5, 0.2], "aggregation": "unbiased", **how}
    whole = train(DECISION, system, plain, **options)
    assert not whole.ledger.worked.any(axis=1).all()
    for stop_at in (3, 9):

        def stop(row: dict[str, Any], at: int = stop_at) -> None:
            if row["round"] == at:
                raise KeyboardInterrupt

        kept = {"checkpoint": tmp_path, "checkpoint_every": 100}
        assert train(DECISION, system, plain, **options, **kept, callback=stop).status == "interrupted"
    rest = train(DECISION, system, plain, **options, **kept)
    assert rest.rows == whole.rows
    np.testing.assert_array_equal(rest.weights, whole.weights)
    for name, booked in whole.ledger.state().items():
        np.testing.assert_array_equal(booked, rest.ledger.state()[name], err_msg=name)
    with pytest.raises(InputError, match=r"is of another run: .*attendance"):
        train(DECISION, system, plain, **{**options, "attendance": 0.5}, **kept)


def test_batches_and_networks_with_statistics(system_for: Callable[..., System]) -> None:
    """Running statistics stay as they are in rounds without anybody."""
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 8), torch.nn.BatchNorm1d(8), torch.nn.ReLU(),
                                 torch.nn.Linear(8, 10))  # fmt: skip
    task = Task.make(devices=3, network=module, batch_size=16)
    system = system_for(task, header_bits=64 + 32 * task.buffers)
    start = Losses(task).start_buffers.numpy()
    never = train(DECISION, system, task, rounds=2, attendance=1e-9)
    np.testing.assert_array_equal(never.buffers, start)
    some = train(DECISION, system, task, rounds=6, attendance=0.5, aggregation="unbiased")
    assert np.all(np.isfinite(some.buffers))
    assert not np.array_equal(some.buffers, start)

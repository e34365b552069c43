"""Online learning in the air: what vehicles see, what their buffers hold, what a slot's round does and costs."""

from __future__ import annotations

import itertools
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.func import functional_call

import jointopt as jo
from jointopt.errors import InputError
from jointopt.federated.online import OnlineTask
from jointopt.federated.task import Losses, Task
from jointopt.federated.training import train
from jointopt.models import mobility
from jointopt.problems import Aerial, AerialTrajectory
from jointopt.problems.aerial_cells import UNQUANTIZED
from jointopt.pruning.layout import Layout
from jointopt.system import AerialSystem

DENSE = {"pruning_ratio": 0.0, "levels": float(UNQUANTIZED)}


@pytest.fixture(scope="module")
def system() -> AerialSystem:
    return jo.systems.aerial(devices=5, seed=3, slots=30)


@pytest.fixture(scope="module")
def task(system: AerialSystem) -> OnlineTask:
    return OnlineTask.for_system(system, seed=1)


@pytest.fixture(scope="module")
def result(system: AerialSystem) -> jo.Result:
    return jo.solve(Aerial(system))


def replaced(system: AerialSystem, **changes: Any) -> AerialSystem:
    return system.with_(**changes)


# What is seen -------------------------------------------------------------------------------------------------


def test_buffers_are_first_in_first_out(system: AerialSystem) -> None:
    small = replaced(system, buffer=30, held=[0, 3, 30, 11, 0])
    task = OnlineTask.for_system(small, seed=2)
    left = 0
    for u in range(len(small)):
        queue: deque[int] = deque(task.parts[u][: int(small.vehicles.held[u])].tolist(), maxlen=30)
        at = len(queue)
        for t in range(small.area.slots):
            new = task.parts[u][at : at + int(small.arrivals[u, t])].tolist()
            left += max(0, len(queue) + len(new) - 30)
            queue.extend(new)
            at += len(new)
            assert task.buffer(u, t).tolist() == list(queue)
            assert task.parts[u][task.fresh(u, t)].tolist() == new
            assert len(queue) == small.buffered[u, t]
        assert at == len(task.parts[u])
    assert left > 0


def test_classes_are_tied_to_places() -> None:
    """In one place with many sightings, the classes seen are those the mix says, none beyond the footprint."""
    base = jo.systems.aerial(devices=1, seed=0, slots=3)
    means = np.tile([[900.0, 900.0]], (10, 1))
    means[[2, 5, 7]] = [[500.0, 510.0], [520.0, 500.0], [500.0, 470.0]]
    system = AerialSystem(
        vehicles=base.vehicles.replace(start=[[500.0, 500.0]], speed_max=0.0),
        area=base.area,
        sensing=base.sensing.replace(class_means=means[None], samples_max=20_000, buffer=100_000),
        link=base.link,
        learner=base.learner,
        bound=base.bound,
    )
    task = OnlineTask.for_system(system, seed=0)
    labels = task.data.train_labels.numpy()
    for t in range(3):
        seen = labels[task.parts[0][task.fresh(0, t)]]
        expected = mobility.class_probabilities(system.class_yield)[0, t]
        found = np.bincount(seen, minlength=10) / len(seen)
        assert set(np.unique(seen)) == {2, 5, 7}
        assert len(seen) == system.arrivals[0, t] > 1000
        assert np.all(np.abs(found - expected) < 4.5 * np.sqrt(expected * (1 - expected) / len(seen)) + 1e-12)
        counts = np.bincount(labels[task.buffer(0, t)], minlength=10)
        assert np.allclose(task.class_shares(t)[0], counts / counts.sum())


def test_no_image_again_before_all_of_its_class(system: AerialSystem) -> None:
    task = OnlineTask.for_system(replaced(system, samples_max=3000), seed=1)
    labels = task.data.train_labels.numpy()
    again = 0
    for stream in task.parts:
        for c in range(10):
            mine, pool = stream[labels[stream] == c], np.flatnonzero(labels == c)
            for start in range(0, len(mine), len(pool)):
                part = mine[start : start + len(pool)]
                assert len(np.unique(part)) == len(part)
            again += len(mine) > len(pool)
    assert again > 0


def test_sightings_follow_the_seed_and_share_their_luck(system: AerialSystem) -> None:
    one, same, other = (OnlineTask.for_system(system, seed=s) for s in (1, 1, 2))
    assert all(np.array_equal(a, b) for a, b in zip(one.parts, same.parts, strict=True))
    assert any(not np.array_equal(a, b) for a, b in zip(one.parts, other.parts, strict=True))
    # a vehicle sees the same whoever else flies
    alone = OnlineTask.for_system(system.take([0]), seed=1)
    assert np.array_equal(alone.parts[0], one.parts[0])


def test_only_samples_that_may_be_seen(system: AerialSystem) -> None:
    data = OnlineTask.for_system(system, seed=1).data
    among = np.arange(0, len(data.train_labels), 3)
    task = OnlineTask.for_system(system, data=data, seed=1, among=among)
    assert set(np.concatenate(task.parts)) <= set(among)
    only = np.flatnonzero(data.train_labels.numpy() != 4)
    with pytest.raises(InputError, match=r"sees class 4, of which 'digits' has no training sample"):
        OnlineTask.for_system(system, data=data, seed=1, among=only)


# What a round does --------------------------------------------------------------------------------------------


def reference(system: AerialSystem, task: OnlineTask, ratio: float, rate: float) -> np.ndarray[Any, Any]:
    """The rounds of theory 5c written out, with floats sent: full batches, K steps, weights by what buffers hold."""
    weights = Layout.flatten(task.module)
    prunable, layout = Layout.of(task.module).prunable_mask(), Layout.of(task.module)
    data = task.data
    for t in range(system.area.slots):
        total, size = torch.zeros_like(weights), 0
        for u in range(len(system)):
            rows = torch.from_numpy(task.buffer(u, t))
            if len(rows) == 0:
                continue
            mask = torch.ones_like(weights)
            places = torch.nonzero(prunable)[:, 0]
            order = places[torch.argsort(weights[places].abs(), stable=True)]
            mask[order[: round(ratio * len(places))]] = 0.0
            x, accumulated = weights * mask, torch.zeros_like(weights)
            for _ in range(system.bound.local_steps):
                leaf = x.clone().requires_grad_()
                outputs = functional_call(task.module, layout.split(leaf), (data.train_inputs[rows],))
                loss = torch.nn.functional.cross_entropy(outputs, data.train_labels[rows])
                gradient = torch.autograd.grad(loss, leaf)[0] * mask
                x, accumulated = x - rate * gradient, accumulated + gradient
            total, size = total + len(rows) * accumulated, size + len(rows)
        if size:
            weights = weights - rate * total / size
    return weights.numpy()


@pytest.mark.parametrize("ratio", [0.0, 0.5])
def test_rounds_are_those_of_the_theory(system: AerialSystem, ratio: float) -> None:
    full = system.with_(batch_size=None)
    task = OnlineTask.for_system(full, seed=4)
    run = train(DENSE | {"pruning_ratio": ratio}, full, task, learning_rate=0.1, evaluate_every=30)
    assert np.allclose(run.weights, reference(full, task, ratio, 0.1), atol=2e-5)
    assert not np.allclose(run.weights, Losses(task).start.numpy(), atol=1e-2)


def test_booked_is_what_the_model_says(system: AerialSystem, task: OnlineTask, result: jo.Result) -> None:
    run = jo.train(result, task, learning_rate=0.1)
    problem = Aerial(system)
    snapped = jo.Decision({name: run.decision[name] for name in ("pruning_ratio", "levels")})
    expected = problem.evaluate(snapped).quantities
    for name, booked in (("energy", run.ledger.energy), ("delay", run.ledger.delay)):
        assert np.allclose(booked.reshape(-1), expected[name], rtol=1e-12, atol=0.0)
    assert np.array_equal(run.ledger.bits.reshape(-1), np.rint(expected["payload_bits"]))
    assert np.array_equal(run.ledger.worked, problem.active)
    assert run.violations == 0
    assert run.rows[-1]["cumulative_energy"] == pytest.approx(expected["energy"].sum(), rel=1e-12)
    flown = system.flight_energy.sum(axis=0)
    assert [row["flight_energy"] for row in run.rows] == pytest.approx(flown.tolist())
    assert run.rows[-1]["cumulative_flight_energy"] == pytest.approx(flown.sum())
    assert [row["arrived"] for row in run.rows] == system.arrivals.sum(axis=0).tolist()
    assert [row["held"] for row in run.rows] == system.buffered.sum(axis=0).tolist()
    assert [row["taking_part"] for row in run.rows] == problem.active.sum(axis=1).tolist()
    assert [row["time"] for row in run.rows] == system.times.tolist()


def test_who_does_not_take_part(system: AerialSystem) -> None:
    """Slots in which nobody holds anything cost nothing and move nothing; one vehicle alone is all there is."""
    far = np.tile([[10.0, 10.0]], (5, 1))
    still = AerialSystem(
        vehicles=system.vehicles.replace(start=far, speed_max=0.0),
        area=system.area,
        sensing=system.sensing.replace(class_means=np.full((5, 10, 2), 990.0)),
        link=system.link,
        learner=system.learner,
        bound=system.bound,
    )
    task = OnlineTask.for_system(still, seed=0)
    assert task.samples.sum() == 0
    run = train(DENSE, still, task)
    assert np.array_equal(run.weights, Losses(task).start.numpy())
    last = run.rows[-1]
    assert (last["cumulative_energy"], last["cumulative_bits"], last["taking_part"], last["held"]) == (0.0, 0, 0, 0)
    assert last["train_loss"] is last["global_loss"] is last["arrival_accuracy"] is last["current_accuracy"] is None
    # a buffer that is never added to has no drift, and one vehicle's is the only gradient
    one = still.with_(held=[0, 40, 0, 0, 0], batch_size=None)
    task = OnlineTask.for_system(one, seed=0)
    run = train(DENSE, one, task, measure_gradient_every=1)
    assert [row["drift"] for row in run.rows[1:]] == [0.0] * 29
    assert all(row["taking_part"] == 1 and row["held"] == 40 for row in run.rows)
    assert np.flatnonzero(run.ledger.bits.sum(axis=0)).tolist() == [1]
    losses = [row["global_loss"] for row in run.rows]
    assert all(after < before for before, after in itertools.pairwise(losses))


def test_drift_is_what_new_data_do(system: AerialSystem, task: OnlineTask) -> None:
    run = train(DENSE, system, task, learning_rate=0.1, measure_gradient_every=1, rounds=12)
    losses, buffers = Losses(task), None
    again = train(DENSE, system, task, learning_rate=0.1, rounds=12, evaluate_every=1)
    assert np.array_equal(run.weights, again.weights)
    # recomputed at the server's model of before the last slot, from a run that stops there
    earlier = train(DENSE, system, task, learning_rate=0.1, rounds=11)
    weights = torch.from_numpy(earlier.weights)

    def loss(slot: int) -> float:
        losses.hold([torch.from_numpy(task.buffer(u, slot)) for u in range(len(task))])
        return losses.global_loss(weights, buffers)

    assert run.rows[-1]["drift"] == pytest.approx(loss(11) - loss(10), abs=1e-6)
    assert run.rows[-1]["global_loss"] == pytest.approx(loss(11), rel=1e-6)
    had = {sample for u in range(len(task)) for sample in task.parts[u][: task.window(u, 10).stop]}
    new = {sample for u in range(len(task)) for sample in task.parts[u][task.fresh(u, 11)]} - had
    assert set(task.unseen(11).tolist()) == new
    assert len(new) > 0
    expected = losses.accuracy(weights, torch.tensor(sorted(new)))
    assert run.rows[-1]["arrival_accuracy"] == pytest.approx(expected)
    labels = np.concatenate([task.data.train_labels.numpy()[task.buffer(u, 11)] for u in range(len(task))])
    mix = np.bincount(labels, minlength=10) / len(labels)
    right = Losses(task).verdicts(torch.from_numpy(run.weights))[1].numpy()
    tested = task.data.test_labels.numpy()
    each = np.array([right[tested == c].mean() for c in range(10)])
    assert run.rows[-1]["current_accuracy"] == pytest.approx(float(mix @ each))


def test_it_learns_and_compression_costs_little(system: AerialSystem, result: jo.Result) -> None:
    longer = jo.systems.aerial(devices=8, seed=3, slots=80)
    task = OnlineTask.for_system(longer, seed=1)
    joint = jo.train(jo.solve(Aerial(longer)), task, learning_rate=0.2)
    dense = train(DENSE, longer, task, learning_rate=0.2)
    assert joint.final_accuracy is not None and dense.final_accuracy is not None
    assert dense.final_accuracy > 0.85
    assert joint.final_accuracy > dense.final_accuracy - 0.1
    assert joint.rows[-1]["cumulative_bits"] < 0.5 * dense.rows[-1]["cumulative_bits"]
    assert joint.violations == 0 < dense.violations


def test_levels_of_as_many_bits_are_one(system: AerialSystem, task: OnlineTask) -> None:
    runs = [train({"pruning_ratio": 0.2, "levels": s}, system, task, rounds=5) for s in (8, 15)]
    assert np.array_equal(runs[0].weights, runs[1].weights)
    other = train({"pruning_ratio": 0.2, "levels": 16}, system, task, rounds=5)
    assert other.rows[-1]["cumulative_bits"] > runs[0].rows[-1]["cumulative_bits"]
    assert not np.array_equal(other.weights, runs[0].weights)


# Stopping and going on ----------------------------------------------------------------------------------------


def test_resumes_bit_for_bit(system: AerialSystem, task: OnlineTask, result: jo.Result, tmp_path: Path) -> None:
    how: dict[str, Any] = {"learning_rate": 0.1, "measure_gradient_every": 1, "seed": 5}
    whole = jo.train(result, task, **how)

    def stop(row: dict[str, Any]) -> None:
        if row["round"] == 13:
            raise KeyboardInterrupt

    broken = jo.train(result, task, checkpoint=tmp_path, checkpoint_every=5, callback=stop, **how)
    assert broken.status == "interrupted" and len(broken.rows) == 13
    resumed = jo.train(result, task, checkpoint=tmp_path, checkpoint_every=5, **how)
    assert np.array_equal(resumed.weights, whole.weights)
    assert resumed.rows == whole.rows
    for name in ("energy", "bits", "delay"):
        assert np.array_equal(getattr(resumed.ledger, name), getattr(whole.ledger, name))
    elsewhere = system.flown(system.trajectory[:, ::1] * 0.0 + system.vehicles.start[:, None])
    other = OnlineTask.for_system(elsewhere, seed=1)
    with pytest.raises(InputError, match="of another run"):
        jo.train(jo.solve(Aerial(elsewhere)), other, checkpoint=tmp_path, **how)


def test_saved_and_told(task: OnlineTask, result: jo.Result, tmp_path: Path) -> None:
    run = jo.train(result, task, rounds=4)
    path = run.save(tmp_path / "run.json")
    from jointopt.files import read_json

    saved = read_json(path)
    assert saved["scenario"]["flight"]["trajectory"] == result.problem.system.flight.trajectory.tolist()
    assert len(saved["rows"]) == 4 and saved["rows"][3]["slot"] == 3
    assert "4 of 4 rounds" in run.summary()
    comparison = jo.compare({"joint": result, "dense": DENSE}, task, problem=result.problem, rounds=4, folder=tmp_path)
    assert comparison.runs["joint"][0].rows == run.rows
    assert comparison.runs["dense"][0].violations > 0


# What is refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("decision", "message"),
    [
        ({"pruning_ratio": 0.1}, r"decision: 'levels' is missing"),
        ({"levels": 7}, r"decision: 'pruning_ratio' is missing"),
        ({**DENSE, "bits": 8}, r"training in the air cannot carry out 'bits'"),
        ({**DENSE, "levels": 0}, r"decision.levels\[slot 0, device 0\]: 0.0 must be at least 1"),
        ({**DENSE, "levels": 2.5}, r"decision.levels\[slot \d+, device \d\]: 2.5 must be a whole number"),
        ({**DENSE, "levels": 2**25}, r"takes bits that codec 'qsgd' cannot send \(a whole number in 2 .. 24 or 32\)"),
        ({**DENSE, "pruning_ratio": 0.95}, r"decision.pruning_ratio\[slot \d+, device \d\]: 0.95 must lie in 0 .. 0.9"),
        ({**DENSE, "pruning_ratio": np.nan}, r"decision.pruning_ratio"),
        ({**DENSE, "pruning_ratio": [0.1, 0.2]}, r"has 2 values, the scenario 150 \(5 vehicles in 30 slots\)"),
        (
            {**DENSE, "selected": 1.0},
            r"selected\[slot 0, device \d\]: 1.0 takes part, but its buffer is empty",
        ),
        ({**DENSE, "selected": 0.5}, r"decision.selected\[slot 0, device 0\]: 0.5 must be 0 or 1"),
    ],
)
def test_bad_decisions(system: AerialSystem, task: OnlineTask, decision: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        train(decision, system, task)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rounds": 31}, r"rounds: a round is a slot, of which the scenario has 30, found 31"),
        ({"clock": "asynchronous"}, r"clock: 'asynchronous' goes on with work of earlier rounds"),
        ({"participation": 2}, r"participation: in the air"),
        ({"codec": "ternary"}, r"codec 'ternary' cannot send"),
        ({"algorithm": "scaffold"}, r"algorithm: 'scaffold' keeps means over fixed shares"),
        ({"pruner": "gmp"}, r"pruner: 'gmp' cuts once for all devices or by a schedule"),
        ({"pruner": {"name": "erk", "at": 2}}, r"pruner: 'erk' cuts once"),
        ({"dropout": [0.1, 0.2]}, r"dropout: expected one number or 5"),
    ],
)
def test_bad_options(system: AerialSystem, task: OnlineTask, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        train(DENSE, system, task, **options)


def test_what_does_not_belong_together(system: AerialSystem, task: OnlineTask, result: jo.Result) -> None:
    ground = Task.make(data="digits", devices=5)
    with pytest.raises(InputError, match=r"an AerialSystem goes with OnlineTask, found Task"):
        train(DENSE, system, ground)
    with pytest.raises(InputError, match=r"a System goes with Task, found OnlineTask"):
        train({"pruning_ratio": 0.0, "power": 0.1}, jo.systems.ltfl(devices=5), task)
    with pytest.raises(InputError, match=r"expected a System, found AerialSystem"):
        Task.for_system(system)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"is made for a system of vehicles"):
        OnlineTask.make(data="digits")
    hovering = system.flown(np.repeat(system.vehicles.start[:, None], 30, axis=1))
    with pytest.raises(InputError, match=r"device \d sees or holds other samples in slot \d+"):
        train(DENSE, hovering, task)
    with pytest.raises(InputError, match=r"is about 5 vehicles in 30 slots, the scenario about 4 in 30"):
        train(DENSE, system.take([0, 1, 2, 3]), task)
    with pytest.raises(InputError, match=r"learner.header_bits is 16"):
        OnlineTask.for_system(system.with_(header_bits=16.0))
    with pytest.raises(InputError, match=r"batch_size is 32"):
        train(DENSE, system.with_(batch_size=8), task)
    with pytest.raises(InputError, match=r"cannot be augmented"):
        task.augmented(None, 0.5)
    batch = jo.Decision(pruning_ratio=np.zeros((2, 150)), levels=np.ones((2, 150)))
    with pytest.raises(InputError, match=r"is a batch of shape \(2, 150\); training takes one decision"):
        Aerial(system).deployed(batch)
    for measure in (jo.calibrate, jo.measure_constants, jo.measure_generalization):
        with pytest.raises(InputError, match=r"needs data that stay as they are"):
            measure(task)
    with pytest.raises(InputError, match=r"from_task: an OnlineTask"):
        jo.System.from_task(task)
    for device, slot in ((0, -1), (0, 30), (5, 0), (True, 0)):
        with pytest.raises(InputError, match=r"must be a whole number from 0 to"):
            task.buffer(device, slot)
    with pytest.raises(InputError, match=r"is of slot 3 alone"):
        jo.train(jo.solve(Aerial(system, slot=3)), task)
    ways = jo.solve(AerialTrajectory(system))
    with pytest.raises(InputError, match=r"says where to fly"):
        jo.train(ways, task)
    flown = ways.problem.after(ways.decision)
    assert np.array_equal(flown.trajectory, ways.problem.trajectory(ways.decision))


def test_tensors_are_decisions_too(system: AerialSystem, task: OnlineTask) -> None:
    plain = train({"pruning_ratio": 0.25, "levels": 7}, system, task, rounds=3)
    tensors = {"pruning_ratio": torch.full((150,), 0.25, dtype=torch.float64, requires_grad=True)}
    run = train({**tensors, "levels": torch.tensor(7.0)}, system, task, rounds=3)
    assert np.array_equal(run.weights, plain.weights)
    bad = torch.full((150,), 0.25, dtype=torch.float64)
    bad[20:] = torch.nan
    with pytest.raises(InputError, match="pruning_ratio"):
        train({"pruning_ratio": bad, "levels": 7}, system, task)


def test_what_was_held_before_must_fit_too(system: AerialSystem) -> None:
    held = system.with_(held=5)
    task = OnlineTask.for_system(held, seed=0)
    other = held.with_(class_map=-2.0 * held.sensing.class_map, samples_max=held.sensing.samples_max)
    with pytest.raises(InputError, match=r"sees or holds other samples"):
        train(DENSE, other, task)


def test_kept_runs_are_of_the_same_task(system: AerialSystem, result: jo.Result, tmp_path: Path) -> None:
    data = OnlineTask.for_system(system, seed=1).data
    tasks = [
        OnlineTask.for_system(system, data=data, seed=1, among=np.arange(first, len(data.train_labels), 2))
        for first in (0, 1)
    ]
    assert tasks[0].fingerprint != tasks[1].fingerprint
    rows = [
        jo.compare({"joint": result}, task, rounds=2, folder=tmp_path).runs["joint"][0].rows
        for task in (*tasks, tasks[0])
    ]
    assert rows[0] == rows[2] != rows[1]


def test_devices_over_budget_are_devices(system: AerialSystem, task: OnlineTask) -> None:
    problem = Aerial(system)
    comparison = jo.compare(problem, task, methods=["exact", "dense"], rounds=1)
    assert comparison.over_budget("exact") == 0
    assert 1 <= comparison.over_budget("dense") <= 5
    frame = jo.study.sweep(problem, "energy_budget", [0.01, 1.0])
    assert frame["taking_part"].tolist()[1] == problem.active.sum() > frame["taking_part"].tolist()[0]


def test_other_classes_are_refused(system: AerialSystem) -> None:
    base = jo.systems.aerial(devices=2, seed=0, slots=3)
    few = AerialSystem(
        vehicles=base.vehicles,
        area=base.area,
        sensing=base.sensing.replace(
            class_means=base.sensing.class_means[:, :4],
            class_map=base.sensing.class_map[:, :4],
            mixture_weights=None,
            mixture_covariances=None,
        ),
        link=base.link,
        learner=base.learner,
        bound=base.bound,
    )
    with pytest.raises(InputError, match=r"see 4 classes, 'digits' has 10"):
        OnlineTask.for_system(few)


# A slot as a system on the ground -----------------------------------------------------------------------------


def test_a_slot_is_a_system(system: AerialSystem, result: jo.Result) -> None:
    """Other designs may decide for a slot; what they book is what the aerial design says of it."""
    problem = Aerial(system)
    slot = 20
    ground = system.in_slot(slot)
    assert np.array_equal(ground.devices.samples, np.maximum(system.buffered[:, slot], 1))
    assert np.array_equal(ground.radio.gain, system.gain[:, slot])
    solved = jo.solve(jo.problems.LTFL(ground))
    assert solved.decision is not None
    decision = jo.Decision(pruning_ratio=np.full(5, 0.5), levels=np.full(5, 127.0))
    expected = Aerial(system, slot=slot).evaluate(decision).quantities
    from jointopt.federated.codecs import codec
    from jointopt.federated.ledger import Held, round_cost

    half = system.learner.parameters // 2
    zeros = np.zeros(5, dtype=np.int64)
    held = Held(zeros + half, zeros + system.learner.unpruned_parameters, zeros, zeros, np.full(5, 0.5))
    booked = round_cost(
        ground,
        jo.Decision(pruning_ratio=0.5, bits=8, power=system.vehicles.power),
        local_steps=system.bound.local_steps,
        held=held,
        codec=codec("qsgd"),
    )
    part = problem.active[slot]
    assert np.allclose(booked.delay[part], expected["delay"][part], rtol=1e-12)
    assert np.allclose(booked.energy[part], expected["energy"][part], rtol=1e-12)
    for bad in (-1, 30, 1.5, None):
        with pytest.raises(InputError, match="slot"):
            system.in_slot(bad)  # type: ignore[arg-type]


def test_fashion_mnist_classes_tied_to_places() -> None:
    try:
        system = jo.systems.aerial(devices=6, seed=0, data="fashion-mnist", slots=40, shared_places=True)
        task = OnlineTask.for_system(system, data="fashion-mnist", seed=0)
    except jo.DataError:
        pytest.skip("the dataset-fashion-mnist package is not installed")
    assert np.all(system.sensing.class_means == system.sensing.class_means[:1])
    assert np.all(system.class_mix == system.class_mix[:1])
    run = jo.train(jo.solve(Aerial(system)), task, learning_rate=0.1, evaluate_every=40)
    assert run.violations == 0
    assert run.final_accuracy is not None and run.final_accuracy > 0.5

"""The loop against plain references, and what happens between rounds, at deadlines and in flight."""

from __future__ import annotations

import json
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from jointopt.errors import InputError
from jointopt.federated.aggregation import Momentum
from jointopt.federated.clocks import CLOCKS
from jointopt.federated.loop import Loop
from jointopt.federated.rules import Scaffold
from jointopt.federated.streams import stream
from jointopt.federated.task import Task
from jointopt.federated.training import train
from jointopt.pruning import pruner
from jointopt.pruning.schedules import OneShot
from jointopt.system import System

DENSE = {"pruning_ratio": 0.0, "bits": 32, "power": 0.1}
PERFECT = {"gain": 1e9, "fading": "none"}


@pytest.fixture(scope="module")
def plain() -> Task:
    return Task.make(data="digits", network="mlp", devices=4, batch_size=16, seed=3, hidden=(16,))


def batches(task: Task, seed: int, round_: int, device: int, steps: int) -> list[np.ndarray]:
    """The samples a device draws, as the loop says it draws them."""
    rng = stream(seed, "batch", round_, device)
    count = int(task.samples[device])
    return [task.parts[device][rng.choice(count, task.batch_size, replace=False)] for _ in range(steps)]


def gradient(task: Task, weights: torch.Tensor, rows: np.ndarray) -> torch.Tensor:
    module = deepcopy(task.module)
    torch.nn.utils.vector_to_parameters(weights, module.parameters())
    loss = cross_entropy(module(task.data.train_inputs[rows]), task.data.train_labels[rows])
    return torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, list(module.parameters()))])


@pytest.mark.parametrize("engine", ["sequential", "batched"])
def test_scaffold_against_the_paper(plain: Task, system_for: Callable[..., System], engine: str) -> None:
    rounds, steps, rate, seed = 4, 3, 0.1, 2
    result = train(
        DENSE,
        system_for(plain, **PERFECT),
        plain,
        rounds=rounds,
        learning_rate=rate,
        local_steps=steps,
        seed=seed,
        algorithm="scaffold",
        participation=3,
        engine=engine,
    )
    weights = torch.nn.utils.parameters_to_vector(plain.module.parameters()).detach()
    server = torch.zeros_like(weights)
    own = [torch.zeros_like(weights) for _ in range(4)]
    share = plain.samples / plain.samples.sum()
    for number in range(1, rounds + 1):
        chosen = np.sort(stream(seed, "selection", number).permutation(np.arange(4))[:3]).tolist()
        assert result.ledger.worked[number - 1].nonzero()[0].tolist() == chosen
        moved, changes = torch.zeros_like(weights), {}
        for u in chosen:
            local = weights.clone()
            for rows in batches(plain, seed, number, u, steps):
                local = local - rate * (gradient(plain, local, rows) - own[u] + server)
            after = own[u] - server + (weights - local) / (steps * rate)
            changes[u] = after - own[u]
            moved += float(plain.samples[u]) * (local - weights)
        weights = weights + moved / float(plain.samples[chosen].sum())
        for u, change in changes.items():
            own[u], server = own[u] + change, server + float(share[u]) * change
    np.testing.assert_allclose(result.weights, weights.numpy(), atol=2e-6)


@pytest.mark.parametrize("changes", [{}, {"gain": [1e-12, 3e-15, 1e-14]}])
def test_scaffold_finds_the_weighted_optimum_whatever_is_lost(
    quadratic_task: Callable[..., Task], system_for: Callable[..., System], changes: dict[str, Any]
) -> None:
    samples = [np.full((2, 3), 4.0), np.full((6, 3), -1.0), np.full((4, 3), 0.5)]
    task = quadratic_task(np.array([1.0, -2.0, 0.5]), samples)
    rule = Scaffold()
    system = system_for(task, **(changes or PERFECT))
    result = train(DENSE, system, task, rounds=400, learning_rate=0.1, local_steps=3, algorithm=rule, seed=1)
    np.testing.assert_allclose(result.weights, (2 * 4.0 - 6 * 1.0 + 4 * 0.5) / 12, atol=0.02)
    assert result.ledger.lost.any() == bool(changes)
    assert rule.state == {}  # what was given stays as it was


def test_stale_updates_are_those_of_the_version_a_device_started_from(
    quadratic_task: Callable[..., Task], system_for: Callable[..., System]
) -> None:
    """Asynchronous events by hand: F_u = ||w - t_u||^2 / 2, so an update is the start minus the target."""
    targets, counts = np.array([4.0, -1.0, 0.5]), np.array([2, 6, 4])
    task = quadratic_task(np.array([1.0]), [np.full((n, 1), t) for n, t in zip(counts, targets, strict=True)])
    system = system_for(task, cycles_per_sample=[1e8, 1e8, 3e8], **PERFECT)
    result = train(DENSE, system, task, rounds=15, learning_rate=0.05, clock="asynchronous")
    delay = result.ledger.cost.delay
    weight = counts / counts.sum() / ((1 / delay) / np.sum(1 / delay))
    now, w, start, finish = 0.0, 1.0, np.ones(3), delay.copy()
    for row, worked in zip(result.rows, result.ledger.worked, strict=True):
        u = int(np.argmin(finish))
        assert worked.nonzero()[0].tolist() == [u]
        now = finish[u]
        assert row["cumulative_delay"] == pytest.approx(now)
        w -= 0.05 * weight[u] * (start[u] - targets[u])
        start[u], finish[u] = w, now + delay[u]
    assert result.weights[0] == pytest.approx(w, rel=1e-5)


@pytest.mark.parametrize("clock", ["asynchronous", "buffered", "interval", "tiers"])
def test_time_never_runs_backwards_and_weights_are_fair(
    plain: Task, system_for: Callable[..., System], loop_for: Callable[..., Loop], clock: str
) -> None:
    options = {
        "buffered": {"size": 2},
        "interval": {"seconds": 5e-3},
        "tiers": {"seconds": 5e-3, "periods": (1, 4, 64)},
    }
    system = system_for(plain, cycles_per_sample=[1e5, 2e5, 3e5, 9e5], gain=np.geomspace(3e-13, 1e-13, 4))
    part = {"name": clock, **options.get(clock, {})}
    result = train(
        {**DENSE, "bits": 8}, system, plain, rounds=60, clock=part, delays="faded", dropout=[0.7, 0.0, 0.0, 0.3]
    )
    assert all(row["round_delay"] >= 0 for row in result.rows)
    if clock == "tiers":
        return  # a tier's turn is fixed, whoever is late
    longer = train(
        {**DENSE, "bits": 8},
        system,
        plain,
        rounds=1500,
        clock=part,
        delays="faded",
        dropout=[0.7, 0.0, 0.0, 0.3],
        learning_rate=1e-3,
        evaluate_every=10**6,
        measure_gradient_every=0,
    )
    ticks = round(longer.rows[-1]["cumulative_delay"] / 5e-3) if clock == "interval" else 1500
    share = longer.ledger.worked.sum(axis=0) / ticks
    loop = loop_for(
        {**DENSE, "bits": 8},
        system,
        plain,
        clock=CLOCKS.make(part),
        delays="faded",
        dropout=np.array([0.7, 0.0, 0.0, 0.3]),
    )
    np.testing.assert_allclose(loop.frequency, share, rtol=0.2)


@pytest.mark.parametrize("name", ["taylor", "fedtiny", "granet", "exploration"])
@pytest.mark.parametrize("how", [{"participation": 2}, {"clock": "asynchronous"}, {"clock": "buffered"}])
def test_evidence_is_paid_by_who_gives_it_and_survives_a_stop(
    plain: Task, system_for: Callable[..., System], tmp_path: Path, name: str, how: dict[str, Any]
) -> None:
    how = {"clock": {"name": "buffered", "size": 2}} if how.get("clock") == "buffered" else how
    system = system_for(plain, gain=np.geomspace(3e-13, 1e-13, 4))
    decision = {"pruning_ratio": 0.5, "bits": 8, "power": 0.1}
    options = {"rounds": 9, "learning_rate": 0.05, "seed": 4, "pruner": name, **how}
    whole = train(decision, system, plain, **options)

    def stop(row: dict[str, Any]) -> None:
        if row["round"] == 5:
            raise KeyboardInterrupt

    kept = {"checkpoint": tmp_path, "checkpoint_every": 100}
    assert train(decision, system, plain, **options, **kept, callback=stop).status == "interrupted"
    rest = train(decision, system, plain, **options, **kept)
    assert rest.rows == whole.rows
    np.testing.assert_array_equal(rest.weights, whole.weights)
    for column, booked in whole.ledger.state().items():
        np.testing.assert_array_equal(booked, rest.ledger.state()[column], err_msg=column)
    # bits of evidence are booked with the work they belong to, none for those who did nothing
    assert np.all(whole.ledger.bits[~whole.ledger.worked] == 0)


def test_devices_may_explore_under_any_algorithm(plain: Task, system_for: Callable[..., System]) -> None:
    decision = {"pruning_ratio": 0.3, "bits": 8, "power": 0.1}
    result = train(decision, system_for(plain), plain, rounds=3, algorithm="scaffold", pruner="exploration")
    assert result.status == "completed"


def test_parts_given_as_objects_serve_again(plain: Task, system_for: Callable[..., System]) -> None:
    system = system_for(plain)
    parts = {"server": Momentum(), "algorithm": Scaffold(), "pruner": pruner("imp-rewind")}
    decision = {"pruning_ratio": 0.3, "bits": 8, "power": 0.1}
    one, two = (train(decision, system, plain, rounds=4, seed=1, **parts) for _ in range(2))
    np.testing.assert_array_equal(one.weights, two.weights)


def test_a_cut_that_was_due_is_made_when_the_device_starts(plain: Task, system_for: Callable[..., System]) -> None:
    system = system_for(plain)
    decision = {"pruning_ratio": 0.5, "bits": 8, "power": 0.1}
    once = pruner("magnitude").with_(schedule=OneShot(1))
    result = train(decision, system, plain, rounds=12, participation=2, pruner=once)
    dense = 8 * (plain.parameters + plain.unpruned_parameters) + 64
    bits = result.ledger.bits
    assert np.all(bits[bits > 0] < dense)
    late = pruner("magnitude").with_(schedule=OneShot(3))
    result = train(decision, system, plain, rounds=24, clock="asynchronous", pruner=late)
    for u in range(4):
        sent = result.ledger.bits[result.ledger.worked[:, u], u]
        assert sent[0] == dense  # began before the cut
        assert np.all(sent[1:][-2:] < dense)


def test_a_global_cut_does_not_change_work_in_progress(plain: Task, system_for: Callable[..., System]) -> None:
    system = system_for(plain, cycles_per_sample=[1e5, 2e5, 4e5, 8e5])
    rule = {"name": "gmp", "start": 2, "end": 2}
    result = train(
        {"pruning_ratio": 0.8, "bits": 8, "power": 0.1}, system, plain, rounds=50, clock="asynchronous", pruner=rule
    )
    dense = 8 * (plain.parameters + plain.unpruned_parameters) + 64
    for u in range(4):
        sent = result.ledger.bits[result.ledger.worked[:, u], u]
        assert sent[0] == dense
        assert np.all(sent[1:] < dense)
    assert result.mask is not None
    assert np.all(result.weights[~result.mask.keep.numpy()] == 0)


def test_a_round_in_which_nobody_is_done(plain: Task, system_for: Callable[..., System]) -> None:
    system = system_for(plain)
    clock = {"name": "synchronous", "deadline": 1e-6}
    result = train({**DENSE, "bits": 8}, system, plain, rounds=3, clock=clock, dropout=[0.9, 0.0, 0.0, 0.0])
    assert [row["train_loss"] for row in result.rows] == [None] * 3
    assert "training loss    none at first" in result.summary()
    assert "packets lost     0 of 0" in result.summary()
    assert np.all(result.ledger.delay <= 1e-6 * (1 + 1e-9))  # dropped or late, all stop when the server goes on
    start = torch.nn.utils.parameters_to_vector(plain.module.parameters()).detach().numpy()
    np.testing.assert_array_equal(result.weights, start)
    json.dumps(result.to_dict(), allow_nan=False)


def test_violations_are_those_of_who_worked(plain: Task, system_for: Callable[..., System]) -> None:
    system = system_for(plain)
    energy = train(DENSE, system, plain, rounds=1).ledger.energy[0]
    tight = system.with_(energy_budget=0.5 * energy)
    one = train(DENSE, tight, plain, rounds=5, participation=1)
    assert [row["violations"] for row in one.rows] == [1] * 5
    assert "budgets broken   5 in all rounds" in one.summary()
    asynchronous = train(DENSE, tight, plain, rounds=5, clock="asynchronous")
    assert asynchronous.violations == 5
    # evidence counts
    just = system.with_(energy_budget=1.01 * energy)
    snip = train({**DENSE, "pruning_ratio": 0.01}, just, plain, rounds=1, pruner="snip")
    assert snip.violations > 0


def test_work_slower_than_the_slowest_tier_waits_for_its_turn(plain: Task, system_for: Callable[..., System]) -> None:
    system = system_for(plain)
    # planned with the mask, but dense until the cut
    late = pruner("magnitude").with_(schedule=OneShot(4))
    decision = {"pruning_ratio": 0.9, "bits": 8, "power": 0.1}
    slow = float(train(decision, system, plain, rounds=1).ledger.delay.max())
    clock = {"name": "tiers", "seconds": slow, "periods": (1,)}
    result = train(decision, system, plain, rounds=8, clock=clock, pruner=late)
    assert len(result.rows) == 8


@pytest.mark.parametrize("name", ["exploration", "gblm", "snip", "magnitude"])
def test_divergence_keeps_what_was_done_whatever_finds_it(
    plain: Task, system_for: Callable[..., System], name: str
) -> None:
    result = train(
        {"pruning_ratio": 0.5, "bits": 32, "power": 0.1},
        system_for(plain, **PERFECT),
        plain,
        rounds=8,
        learning_rate=1e18,
        pruner=name,
    )
    assert result.status == "diverged"
    assert "diverged in round" in result.message
    assert len(result.ledger) == len(result.rows) < 8


def test_a_run_with_another_loss_is_another_run(plain: Task, system_for: Callable[..., System], tmp_path: Path) -> None:
    system = system_for(plain)
    train(DENSE, system, plain, rounds=3, checkpoint=tmp_path)

    def thrice(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return 3 * cross_entropy(outputs, labels)

    other = Task(data=plain.data, module=plain.module, parts=plain.parts, batch_size=16, loss=thrice)
    with pytest.raises(InputError, match=r"is of another run: .*loss was"):
        train(DENSE, system, other, rounds=3, checkpoint=tmp_path)


def test_everything_saved_is_strict_json(plain: Task, system_for: Callable[..., System]) -> None:
    task = Task(data=plain.data, module=plain.module, parts=plain.parts, batch_size=np.int64(16))  # type: ignore[arg-type]
    decision = {**DENSE, "bits": 1}
    codec = {"name": "ternary", "density": float(np.float32(0.1))}
    result = train(decision, system_for(task), task, rounds=1, codec=codec, clock={"name": "tiers", "periods": (1, 2)})
    again = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert again["settings"]["clock"] == {"name": "tiers", "seconds": 1.0, "periods": [1, 2], "strict": True}
    assert again["settings"]["batch_size"] == 16


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"decision": None}, "decision: expected variables by name, found NoneType"),
        ({"decision": [1, 2]}, "decision: expected variables by name, found list"),
        ({"pruner": ["magnitude"]}, "pruner: expected a name, a mapping or a Pruner"),
        ({"aggregation": ["received"]}, r"aggregation: unknown \['received'\]"),
        ({"learning_rate": "a"}, "learning_rate: must be finite and above 0, found 'a'"),
        ({"learning_rate": True}, "learning_rate: must be"),
        ({"error_feedback": "no"}, "error_feedback: must be True, False or None, found 'no'"),
        ({"clock": {"name": "tiers", "periods": 3}}, "periods must be a sequence"),
        ({"checkpoint": 3}, "checkpoint: expected the path of a folder, found 3"),
        ({"callback": 3}, "callback: must be callable, found 3"),
    ],
)
def test_bad_kinds_of_arguments(
    plain: Task, system_for: Callable[..., System], changes: dict[str, Any], message: str
) -> None:
    decision = changes.pop("decision", DENSE)
    with pytest.raises(InputError, match=message):
        train(decision, system_for(plain), plain, rounds=1, **changes)


def test_a_checkpoint_folder_that_is_a_file(plain: Task, system_for: Callable[..., System], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="file is no folder"):
        train(DENSE, system_for(plain), plain, rounds=1, checkpoint=tmp_path / "file")

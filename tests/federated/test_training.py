"""The training loop against hand computation, plain gradient descent, the channel model and the bound."""

from __future__ import annotations

import json
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn.functional import cross_entropy

from jointopt.decision import Decision
from jointopt.errors import InputError
from jointopt.federated.codecs import Uniform
from jointopt.federated.loop import Loop
from jointopt.federated.plan import trainable
from jointopt.federated.streams import stream, torch_stream
from jointopt.federated.task import Task
from jointopt.federated.training import train
from jointopt.federated.warmup import measure_constants
from jointopt.files import atomic_write
from jointopt.problems.ltfl import LTFL
from jointopt.pruning import keep_mask
from jointopt.system import System

MODERATE = {"pruning_ratio": 0.3, "bits": 6, "power": 0.1}
DENSE = {"pruning_ratio": 0.0, "bits": 32, "power": 0.1}
PERFECT = {"gain": 1e9, "fading": "none"}


# The round --------------------------------------------------------------------------------------------------


def by_hand(
    weights: NDArray[np.float64],
    target: NDArray[np.float64],
    pruned: int,
    bits: int,
    generator: torch.Generator,
) -> NDArray[np.float64]:
    """What a device with F_u = ||w - target||^2/2 sends, zeros where pruned."""
    keep = np.ones(len(weights), dtype=bool)
    keep[np.argsort(np.abs(weights), kind="stable")[:pruned]] = False
    entries = (np.where(keep, weights, 0.0) - target)[keep]
    entries = Uniform().simulate(torch.from_numpy(entries.astype(np.float32)), bits, generator).numpy()
    out = np.zeros(len(weights))
    out[keep] = entries
    return out


def test_one_round_of_two_devices_by_hand(
    quadratic_task: Callable[..., Task], system_for: Callable[..., System]
) -> None:
    start = np.array([3.0, -1.0, 2.0, 0.5, -4.0])
    targets = np.array([[1.0, 2.0, 0.0, -1.0, 0.25], [-2.0, 0.5, 1.5, 3.0, 1.0]])
    # Both samples of a device have the target as their mean.
    samples = [np.stack([targets[0] + 1, targets[0] - 1]), np.stack([targets[1]] * 5)]
    task = quadratic_task(start, samples)
    system = system_for(task, gain=[2e-15, 2e-15])
    decision = {"pruning_ratio": [0.4, 0.15], "bits": [2, 3], "power": 0.1}
    seen = set()
    for seed in range(12):
        result = train(decision, system, task, rounds=1, learning_rate=0.1, seed=seed)
        np.testing.assert_array_equal(result.decision["pruning_ratio"], [0.4, 0.2])
        arrived = ~result.ledger.lost[0]
        total, count = np.zeros(5), 0.0
        for u, (pruned, bits, size) in enumerate([(2, 2, 2), (1, 3, 5)]):
            if arrived[u]:
                total += size * by_hand(start, targets[u], pruned, bits, torch_stream(seed, "quantizer", 1, u))
                count += size
        expected = start - 0.1 * total / count if count else start
        np.testing.assert_allclose(result.weights, expected, rtol=1e-6)
        assert result.rows[0]["received"] == arrived.sum()
        seen.add(tuple(arrived.tolist()))
    assert len(seen) == 4  # every pattern of losses was met


@pytest.mark.parametrize("batch", [None, 1000])
def test_dense_and_lossless_is_plain_gradient_descent(
    digits: Task, system_for: Callable[..., System], batch: int | None
) -> None:
    task = digits if batch is None else Task.make(devices=6, seed=1, batch_size=batch)
    result = train(DENSE, system_for(task, **PERFECT), task, rounds=20)
    module = deepcopy(digits.module)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.3)
    for row in result.rows:
        optimizer.zero_grad()
        loss = cross_entropy(module(digits.data.train_inputs), digits.data.train_labels)
        loss.backward()
        assert row["train_loss"] == pytest.approx(float(loss.detach()), rel=1e-5)
        norm = sum(float(p.grad.double().square().sum()) for p in module.parameters() if p.grad is not None)
        assert row["gradient_norm_squared"] == pytest.approx(norm, rel=1e-4)
        assert row["global_loss"] == pytest.approx(float(loss.detach()), rel=1e-5)
        optimizer.step()
        with torch.no_grad():
            outputs = module(digits.data.test_inputs)
        right = int((outputs.argmax(dim=1) == digits.data.test_labels).sum())
        assert row["test_accuracy"] == pytest.approx(right / 360, abs=1.5 / 360)
    expected = torch.cat([p.detach().reshape(-1) for p in module.parameters()]).numpy()
    np.testing.assert_allclose(result.weights, expected, atol=1e-6)


def test_server_keeps_what_devices_prune(digits: Task, system_for: Callable[..., System]) -> None:
    result = train({**DENSE, "pruning_ratio": 0.9}, system_for(digits, **PERFECT), digits, rounds=1)
    start = torch.cat([p.detach().reshape(-1) for p in digits.module.parameters()]).numpy()
    same = result.weights == start
    assert ((4736 * 9 + 9) // 10) <= same.sum() < 4810  # pruned coordinates untouched, not zeroed
    assert np.all(result.weights[same] != 0)


def test_all_lost_leaves_the_weights(digits: Task, system_for: Callable[..., System]) -> None:
    result = train(MODERATE, system_for(digits, gain=1e-25), digits, rounds=3)
    start = torch.cat([p.detach().reshape(-1) for p in digits.module.parameters()]).numpy()
    assert np.array_equal(result.weights, start)
    assert [row["received"] for row in result.rows] == [0, 0, 0]
    assert np.all(result.ledger.energy > 0)
    assert result.rows[-1]["violations"] > 0  # nothing gets through, so uploads take for ever


def test_fedavg_with_one_step_is_fedsgd_and_more_steps_go_further(
    digits: Task, system_for: Callable[..., System]
) -> None:
    system = system_for(digits, **PERFECT)
    one = train(MODERATE, system, digits, algorithm="fedavg", local_steps=1)
    assert np.array_equal(one.weights, train(MODERATE, system, digits).weights)
    four = train(MODERATE, system, digits, algorithm="fedavg", local_steps=4)
    assert four.rows[-1]["test_loss"] < one.rows[-1]["test_loss"]
    np.testing.assert_allclose(four.ledger.cost.compute_delay, 4 * one.ledger.cost.compute_delay)


def test_fedavg_by_hand(quadratic_task: Callable[..., Task], system_for: Callable[..., System]) -> None:
    task = quadratic_task([2.0, -4.0], [np.array([[1.0, 1.0]])])
    result = train(
        DENSE,
        system_for(task, **PERFECT),
        task,
        rounds=1,
        learning_rate=0.5,
        algorithm="fedavg",
        local_steps=3,
    )
    np.testing.assert_allclose(result.weights, [1 + 1 / 8, 1 - 5 / 8])


def test_minibatches_are_drawn_and_seeded(system_for: Callable[..., System]) -> None:
    task = Task.make(devices=4, seed=0, batch_size=16)
    system = system_for(task, **PERFECT)
    one, same, other = (train(DENSE, system, task, seed=s) for s in (0, 0, 1))
    assert np.array_equal(one.weights, same.weights)
    assert not np.array_equal(one.weights, other.weights)


# Randomness -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"packet_error": "outage", "outage_threshold": 0.5},
        {"fading": "none"},
    ],
)
def test_losses_follow_the_packet_error(
    digits: Task, system_for: Callable[..., System], loop_for: Callable[..., Loop], changes: dict[str, Any]
) -> None:
    system = system_for(digits, gain=np.geomspace(2e-14, 1e-15, 6), **changes)
    loop = loop_for(MODERATE, system, digits, seed=5)
    rounds = 4000
    drawn = [loop.draw_channel(t) for t in range(rounds)]
    lost = np.mean([lost for _, lost in drawn], axis=0)
    q = LTFL(system).evaluate(trainable(MODERATE, system)).quantities["packet_error"]
    assert q.min() > 0.01
    assert q.max() > 0.3
    assert np.all(np.abs(lost - q) < 4.5 * np.sqrt(q * (1 - q) / rounds))
    gain = np.array([gain for gain, _ in drawn])
    if changes.get("fading") == "none":
        assert np.all(gain == 1)
    else:
        assert np.all(np.abs(gain.mean(axis=0) - 1) < 4.5 / np.sqrt(rounds))
        bad = np.array([lost for _, lost in drawn])
        assert gain[bad].mean() < gain[~bad].mean()  # what is lost is what was faded


def test_same_seed_same_run_other_seed_other_run(digits: Task, system_for: Callable[..., System]) -> None:
    system = system_for(digits, gain=3e-14)
    one, same, other = (train(MODERATE, system, digits, seed=s) for s in (7, 7, 8))
    assert one.rows == same.rows
    assert np.array_equal(one.weights, same.weights)
    assert np.array_equal(one.ledger.gain, same.ledger.gain)
    assert not np.array_equal(one.weights, other.weights)
    assert not np.array_equal(one.ledger.gain, other.ledger.gain)


def test_common_random_numbers(digits: Task, system_for: Callable[..., System]) -> None:
    system = system_for(digits, gain=1e-14)
    weak = train({**MODERATE, "power": 0.02}, system, digits, seed=3, rounds=20, learning_rate=0.01)
    strong = train({**DENSE, "power": 0.2}, system, digits, seed=3, rounds=20, learning_rate=0.01)
    assert np.array_equal(weak.ledger.gain, strong.ledger.gain)
    assert np.all(weak.ledger.lost >= strong.ledger.lost)  # more power loses a subset of the packets
    assert weak.ledger.lost.sum() > strong.ledger.lost.sum()


def test_streams_are_separate_and_random_access() -> None:
    first = stream(0, "batch", 1, 2).random(4)
    assert np.array_equal(first, stream(0, "batch", 1, 2).random(4))
    for place in ((0, "batch", 2, 1), (0, "channel", 1, 2), (1, "batch", 1, 2), (0, "batch", 1)):
        assert not np.array_equal(first, stream(*place).random(4))


def test_global_generators_are_left_alone(digits: Task, system_for: Callable[..., System]) -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    before = [p.detach().clone() for p in digits.module.parameters()]
    train(MODERATE, system_for(digits), digits, rounds=2)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(before, digits.module.parameters(), strict=True))


# Learning ---------------------------------------------------------------------------------------------------


def test_learns_digits_under_moderate_compression(system_for: Callable[..., System]) -> None:
    task = Task.make(data="digits", devices=10, scheme="iid", seed=0)
    result = train(MODERATE, system_for(task), task, rounds=60, learning_rate=0.5, measure_gradient_every=0)
    assert result.final_accuracy is not None
    assert result.final_accuracy > 0.8
    assert result.violations == 0
    assert result.rows[-1]["gradient_norm_squared"] is None


def test_feasible_decision_keeps_every_budget(digits: Task, system_for: Callable[..., System]) -> None:
    system = system_for(digits)
    raw = Decision(pruning_ratio=np.full(6, 0.33333), bits=np.full(6, 7), power=np.full(6, 0.07))
    model = LTFL(system).evaluate(raw).quantities
    tight = system.with_(delay_budget=model["delay"], energy_budget=model["energy"])
    assert bool(LTFL(tight).evaluate(raw).feasible())
    result = train(raw, tight, digits)
    assert result.violations == 0
    assert np.all(result.ledger.delay <= tight.devices.delay_budget)
    assert np.all(result.ledger.energy <= tight.devices.energy_budget)
    assert "kept by every device" in result.summary()
    over = train({**MODERATE, "bits": 16}, tight, digits, rounds=2)
    assert over.violations == 2 * over.ledger.violations > 0
    assert "budgets broken" in over.summary()


def test_mean_gradient_stays_below_the_bound(
    quadratic_task: Callable[..., Task], system_for: Callable[..., System]
) -> None:
    rng = np.random.default_rng(2)
    centers = rng.normal(0.0, 1.0, (1, 40)) + rng.normal(0.0, 0.5, (5, 40))
    samples = [center + rng.normal(0.0, 0.3, (4 + u, 40)) for u, center in enumerate(centers)]
    task = quadratic_task(rng.normal(0.0, 2.0, 40), samples)
    constants = measure_constants(task, rounds=30, learning_rate=0.3)
    assert constants["smoothness"] == pytest.approx(1.5, rel=1e-3)
    decision = {"pruning_ratio": [0.0, 0.1, 0.2, 0.3, 0.1], "bits": [4, 5, 6, 8, 4], "power": 0.1}
    for slope in (0.0, 0.5):
        system = system_for(task, gain=np.geomspace(3e-12, 1e-13, 5), bits_min=4, pruning_ratio_max=0.4)
        constants = measure_constants(task, rounds=30, learning_rate=0.3, gradient_slope=slope)
        system = system.with_(**constants, learning_rate=0.3, rounds=40)
        runs = [train(decision, system, task, seed=s, measure_gradient_every=1) for s in range(5)]
        measured = np.array([[row["gradient_norm_squared"] for row in run.rows] for run in runs])
        evaluation = LTFL(system).evaluate(runs[0].decision)
        bound = float(evaluation.quantities["bound"])
        assert max(float(np.square(run.weights).sum()) for run in runs) <= system.bound.weight_norm_squared
        print(f"mean ||grad F||^2 {measured.mean():.4g}, bound {bound:.4g}, looseness {bound / measured.mean():.3g}")
        assert np.isfinite(bound)
        assert measured.mean() < bound


# Ends -------------------------------------------------------------------------------------------------------


def test_divergence_stops_with_a_word(digits: Task, system_for: Callable[..., System]) -> None:
    result = train(MODERATE, system_for(digits), digits, rounds=40, learning_rate=1e20)
    assert result.status == "diverged"
    assert 0 < len(result.rows) < 40
    assert len(result.ledger) == len(result.rows)
    assert "learning rate below 1e+20" in result.message
    assert "diverged" in result.summary()
    assert "not finite" in result.message
    json.dumps(result.to_dict(), allow_nan=False)


def test_interrupt_keeps_rows(digits: Task, system_for: Callable[..., System]) -> None:
    def stop(row: dict[str, Any]) -> None:
        if row["round"] == 3:
            raise KeyboardInterrupt

    system = system_for(digits)
    result = train(MODERATE, system, digits, rounds=10, callback=stop)
    assert (result.status, len(result.rows), len(result.ledger)) == ("interrupted", 3, 3)
    assert "3 of 10" in result.message
    whole = train(MODERATE, system, digits, rounds=10)
    assert [r["train_loss"] for r in whole.rows[:3]] == [r["train_loss"] for r in result.rows]
    assert result.final_accuracy is not None


def test_interrupt_in_the_first_round(
    digits: Task, system_for: Callable[..., System], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(Loop, "send", interrupt)
    result = train(MODERATE, system_for(digits), digits, rounds=10)
    assert (result.status, result.rows, len(result.ledger)) == ("interrupted", [], 0)
    assert result.final_accuracy is None
    assert result.accuracy_at(energy=1.0) is None
    assert "0 of 10 rounds" in repr(result)
    assert result.summary()
    json.dumps(result.to_dict(), allow_nan=False)


# The result -------------------------------------------------------------------------------------------------


def test_json_round_trip(digits: Task, system_for: Callable[..., System], tmp_path: Path) -> None:
    seen: list[int] = []
    result = train(
        MODERATE,
        system_for(digits),
        digits,
        rounds=4,
        evaluate_every=3,
        seed=np.int64(2),  # type: ignore[arg-type]  # what NumPy users pass
        callback=lambda row: seen.append(row["round"]),
    )
    assert seen == [1, 2, 3, 4]
    assert [row["test_accuracy"] is not None for row in result.rows] == [True, False, True, True]
    path = result.save(tmp_path / "new" / "run.json")
    data = json.loads(path.read_text(encoding="utf-8"))
    assert data == json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert data["schema"] == "jointopt.training/1"
    assert (data["data"], data["network"], data["rounds"], data["seed"]) == ("digits", "mlp", 4, 2)
    assert data["rows"] == result.rows
    assert np.array_equal(data["decision"]["pruning_ratio"], result.decision["pruning_ratio"])
    assert {len(values) for values in data["ledger"].values()} == {6}
    assert System.from_json(path) == result.system
    assert [p.name for p in path.parent.iterdir()] == ["run.json"]
    table = result.to_pandas()
    assert len(table) == 4
    assert list(table["round"]) == seen


def test_atomic_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(ZeroDivisionError):
        atomic_write(path, lambda file: 1 / 0 if file.write(b"new") else None)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    with pytest.raises(InputError, match="cannot be written"):
        atomic_write(path / "below", lambda file: file.write(b"new"))


def test_accuracy_against_cost(digits: Task, system_for: Callable[..., System]) -> None:
    result = train(MODERATE, system_for(digits), digits, rounds=10, evaluate_every=5)
    rows = {row["round"]: row for row in result.rows}
    assert result.accuracy_at(energy=rows[1]["cumulative_energy"] * 0.99) is None
    assert result.accuracy_at(energy=rows[7]["cumulative_energy"]) == rows[5]["test_accuracy"]
    assert result.accuracy_at(delay=1e9) == rows[10]["test_accuracy"] == result.final_accuracy
    best = rows[10]["test_accuracy"]
    first = next(r for r in result.rows if r["test_accuracy"] is not None and r["test_accuracy"] >= best)
    assert result.energy_to(best) == first["cumulative_energy"]
    assert result.delay_to(best) == first["cumulative_delay"]
    assert result.energy_to(1.01) is None
    for wrong in ({}, {"energy": 1.0, "delay": 1.0}):
        with pytest.raises(InputError, match="one of them"):
            result.accuracy_at(**wrong)


# Refusals ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"power": float("nan")}, "power"),
        ({"power": [0.1, 0.1, 0.1, 0.1, float("nan"), 0.1]}, r"power\[device 4\]"),
        ({"power": [0.1, -0.1, 0.1, 0.1, 0.1, 0.1]}, r"power\[device 1\]: -0.1 must be above 0"),
        ({"power": [0.1, 0.1]}, "2 devices, the scenario has 6"),
        ({"power": np.full((2, 6), 0.1)}, "batch of shape"),
        ({"pruning_ratio": 0.95}, r"pruning_ratio\[device 0\]: 0.95 must lie in 0 .. 0.9"),
        ({"pruning_ratio": -0.1}, "must lie in"),
        ({"bits": 25}, "1 .. 24 or 32"),
        ({"bits": 6.5}, "whole number"),
        ({"bitz": 6}, "did you mean 'bits'"),
        ({"selected": 0}, "no device takes part"),
        ({"selected": 0.5}, "must be 0 or 1"),
    ],
)
def test_bad_decisions(digits: Task, system_for: Callable[..., System], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        train({**MODERATE, **changes}, system_for(digits), digits)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"algorithm": "fedsdg"}, "did you mean 'fedsgd'"),
        ({"local_steps": 2}, "use algorithm='fedavg'"),
        ({"rounds": 0}, "rounds"),
        ({"seed": -1}, "seed"),
        ({"learning_rate": float("nan")}, "learning_rate"),
        ({"evaluate_every": 0}, "evaluate_every"),
        ({"measure_gradient_every": 1.5}, "measure_gradient_every"),
    ],
)
def test_bad_options(digits: Task, system_for: Callable[..., System], options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        train(MODERATE, system_for(digits), digits, **options)


def test_missing_variable_and_wrong_system(digits: Task, system_for: Callable[..., System]) -> None:
    with pytest.raises(InputError, match="'pruning_ratio' is missing"):
        train({"bits": 8, "power": 0.1}, system_for(digits), digits)
    with pytest.raises(InputError, match="device 0 holds"):
        train(MODERATE, system_for(digits, samples=10), digits)


def test_torch_decisions_and_left_out_devices(digits: Task, system_for: Callable[..., System]) -> None:
    system = system_for(digits, **PERFECT)
    tensors = {
        "pruning_ratio": torch.full((6,), 0.3, dtype=torch.float64, requires_grad=True),
        "bits": torch.full((6,), 6.0),
        "power": torch.full((6,), 0.1, dtype=torch.float64),
    }
    plain = train(MODERATE, system, digits)
    assert np.array_equal(train(tensors, system, digits).weights, plain.weights)

    some = train({**MODERATE, "selected": [1, 0, 1, 0, 0, 0]}, system, digits)
    assert [row["received"] for row in some.rows] == [2] * 5
    assert np.all(some.ledger.energy[:, [1, 3, 4, 5]] == 0)
    assert not np.array_equal(some.weights, plain.weights)
    json.dumps(some.to_dict(), allow_nan=False)


def test_masks_are_those_of_the_pruning_rule(
    digits: Task, system_for: Callable[..., System], loop_for: Callable[..., Loop]
) -> None:
    system = system_for(digits)
    decision = trainable({**MODERATE, "pruning_ratio": np.linspace(0, 0.9, 6)}, system)
    loop = loop_for(decision, system, digits)
    weights = loop.weights[loop.losses.prunable]
    loop.step()
    assert loop.cutting.mask(0) is None  # nothing is pruned there
    for u in range(1, 6):
        mask = loop.cutting.mask(u)
        assert mask is not None
        assert torch.equal(mask.keep[loop.losses.prunable], keep_mask(weights, decision["pruning_ratio"][u]))
        assert bool(mask.keep[~loop.losses.prunable].all())


# Designs that choose other variables ------------------------------------------------------------------------

PARTIAL = {
    "pruning_ratio": [0.2, 0.0, 0.5, 0.0, 0.9, 0.0],
    "selected": [1, 0, 1, 0, 1, 0],
    "bandwidth": [1e5, 0.0, 2e5, 0.0, 3e5, 0.0],
    "frequency": [1e9, 0.0, 2e9, 0.0, 5e8, 0.0],
    "power": [0.1, 0.0, 0.15, 0.0, 0.2, 0.0],
}
LOSSLESS = {"fading": "none", "packet_error": "none"}


def test_without_bits_raw_floats_are_sent(digits: Task, system_for: Callable[..., System]) -> None:
    system = system_for(digits, bits_max=32, **LOSSLESS)
    result = train(PARTIAL, system, digits, rounds=4)
    assert np.all(result.decision["bits"] == 32)
    named = train({**PARTIAL, "bits": 32}, system, digits, rounds=4)
    assert np.array_equal(result.weights, named.weights)
    bits = result.ledger.bits[0]
    kept = 4736 - np.ceil(np.array([0.2, 0.5, 0.9]) * 4736 - 1e-9)
    assert np.array_equal(bits[[0, 2, 4]], (kept + 74) * 32 + 64)
    assert np.all(bits[[1, 3, 5]] == 0)
    for left_out in (result.ledger.delay, result.ledger.energy):
        assert np.all(left_out[:, [1, 3, 5]] == 0)
        assert np.all(np.isfinite(left_out))
    json.dumps(result.to_dict(), allow_nan=False)


def test_selected_devices_alone_are_trained_on(digits: Task, system_for: Callable[..., System]) -> None:
    system = system_for(digits, bits_max=32, **LOSSLESS)
    result = train({**PARTIAL, "pruning_ratio": 0.0}, system, digits, rounds=3, learning_rate=0.3)
    some = Task(data=digits.data, module=digits.module, parts=tuple(digits.parts[u] for u in (0, 2, 4)))
    alone = train(DENSE, system_for(some, **PERFECT), some, rounds=3, learning_rate=0.3)
    np.testing.assert_allclose(result.weights, alone.weights, atol=1e-6)
    assert [row["received"] for row in result.rows] == [3, 3, 3]


def test_costs_without_bits_by_hand(digits: Task, system_for: Callable[..., System]) -> None:
    system = system_for(digits, bits_max=32, **LOSSLESS)
    result = train(PARTIAL, system, digits, rounds=1)
    u, kept = 4, 4736 - 4263
    noise = system.radio.noise_density * 3e5
    rate = 3e5 * np.log2(1 + 0.2 * system.radio.gain[u] / noise)
    cycles = kept / 4736 * 1e4 * digits.samples[u]
    seconds = cycles / 5e8 + ((kept + 74) * 32 + 64) / rate
    joules = 1e-28 * 5e8**2 * cycles + 0.2 * ((kept + 74) * 32 + 64) / rate
    assert result.ledger.delay[0, u] == pytest.approx(seconds)
    assert result.ledger.energy[0, u] == pytest.approx(joules)


@pytest.mark.parametrize("fading", ["none", "rayleigh"])
def test_without_packet_errors_nothing_is_lost(digits: Task, system_for: Callable[..., System], fading: str) -> None:
    system = system_for(digits, gain=1e-15, packet_error="none", fading=fading)
    result = train(MODERATE, system, digits, rounds=30, measure_gradient_every=0, evaluate_every=30)
    assert not result.ledger.lost.any()
    assert np.all(result.ledger.cost.packet_error == 0)
    assert "packets lost     0 of 180" in result.summary()
    assert np.all(result.ledger.gain == 1) == (fading == "none")
    if fading == "none":
        assert np.array_equal(result.ledger.faded_delay, result.ledger.delay)
        assert np.array_equal(result.ledger.faded_energy, result.ledger.energy)


def test_raw_width_that_training_does_not_know(digits: Task, system_for: Callable[..., System]) -> None:
    with pytest.raises(InputError, match=r"learner\.bits_max: 28 bits are sent where the decision names none"):
        train(PARTIAL, system_for(digits, bits_max=28), digits)
    with pytest.raises(InputError, match=r"bandwidth\[device 2\]: 0.0 must be above 0"):
        train({**PARTIAL, "bandwidth": [1e5, 0, 0, 0, 1e5, 0]}, system_for(digits, bits_max=32), digits)
    with pytest.raises(InputError, match="'power' is missing"):
        train({"pruning_ratio": 0.1}, system_for(digits), digits)

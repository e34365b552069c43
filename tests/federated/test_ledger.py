"""The ledger: the same costs as the solver's model, exact bits, faded blocks counted apart."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from jointopt.decision import Decision
from jointopt.errors import JointoptError
from jointopt.federated.codecs import Uniform
from jointopt.federated.ledger import Ledger, round_cost
from jointopt.federated.plan import trainable
from jointopt.federated.task import Task
from jointopt.federated.training import train
from jointopt.problems.ltfl import LTFL
from jointopt.system import System

MIXED: dict[str, Any] = {
    "pruning_ratio": [0.0, 0.1234, 0.5, 0.9, 0.30001, 0.7],
    "bits": [1, 4, 8, 16, 32, 11],
    "power": [0.01, 0.05, 0.1, 0.2, 0.15, 0.08],
}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"batch_size": 32, "compute_law": "mask", "mask_encoding": "indices"},
        {"mask_encoding": "bitmap", "fading": "none", "header_bits": 100},
        {"packet_error": "outage", "interference": 1e-15},
    ],
)
def test_equals_the_cost_model(digits: Task, system_for: Callable[..., System], changes: dict[str, Any]) -> None:
    system = system_for(digits, **changes)
    decision = trainable(MIXED, system)
    cost = round_cost(system, decision)
    model = LTFL(system).evaluate(decision).quantities
    assert cost.payload_bits.dtype == np.int64
    for name, booked in (
        ("payload_bits", cost.payload_bits),
        ("delay", cost.delay),
        ("energy", cost.energy),
        ("rate", cost.rate),
        ("packet_error", cost.packet_error),
    ):
        np.testing.assert_allclose(booked, model[name], rtol=1e-9, err_msg=name)


def test_training_books_the_cost_model(digits: Task, system_for: Callable[..., System]) -> None:
    system = system_for(digits)
    result = train(MIXED, system, digits, rounds=3, learning_rate=0.01)
    model = LTFL(system).evaluate(result.decision).quantities
    for name in ("delay", "energy"):
        np.testing.assert_allclose(getattr(result.ledger, name), np.tile(model[name], (3, 1)), rtol=1e-9)
    last = result.rows[-1]
    assert last["cumulative_delay"] == pytest.approx(3 * model["delay"].max(), rel=1e-12)
    assert last["cumulative_energy"] == pytest.approx(3 * model["energy"].sum(), rel=1e-12)
    assert last["cumulative_bits"] == 3 * result.ledger.cost.payload_bits.sum()
    assert isinstance(last["cumulative_bits"], int)
    np.testing.assert_array_equal(result.ledger.totals()["bits"], result.ledger.bits.sum(axis=0))


def test_snapping_never_raises_a_cost(digits: Task, system_for: Callable[..., System]) -> None:
    system = system_for(digits)
    rng = np.random.default_rng(0)
    for _ in range(20):
        raw = Decision(pruning_ratio=rng.uniform(0, 0.9, 6), bits=rng.integers(1, 17, 6), power=np.full(6, 0.1))
        before, after = LTFL(system).evaluate(raw).quantities, round_cost(system, trainable(raw, system))
        assert np.all(after.delay <= before["delay"] * (1 + 1e-12))
        assert np.all(after.energy <= before["energy"] * (1 + 1e-12))


def test_ratio_just_above_the_maximum_is_kept(digits: Task, system_for: Callable[..., System]) -> None:
    decision = trainable({**MIXED, "pruning_ratio": 0.9}, system_for(digits))
    assert np.all(decision["pruning_ratio"] == np.ceil(0.9 * 4736) / 4736)
    assert np.all(decision["pruning_ratio"] > 0.9)


def test_real_payload_is_checked(digits: Task, system_for: Callable[..., System]) -> None:
    mask = 2368 * 13  # ceil(log2 4736) bits for every kept weight
    for changes, masked in (({}, 0), ({"mask_encoding": "indices"}, mask), ({"header_bits": 7.0}, 0)):
        system = system_for(digits, **changes)
        ledger = Ledger(system, trainable(MIXED, system))
        entries = torch.zeros(2368 + 74)
        ledger.check_payload(2, Uniform().encode(entries, 8, torch.Generator()).bits, masked)
        for wrong, bits, more in ((entries[1:], 8, 0), (entries, 9, 0), (entries, 8, 1)):
            with pytest.raises(JointoptError, match="device 2 sent"):
                ledger.check_payload(2, Uniform().encode(wrong, bits, torch.Generator()).bits, masked + more)


def test_faded_costs_and_counts(digits: Task, system_for: Callable[..., System]) -> None:
    system = system_for(digits)
    decision = trainable(MIXED, system)
    plain = round_cost(system, decision)
    system = system.with_(delay_budget=plain.delay * 1.01, energy_budget=plain.energy * 1.01)
    ledger = Ledger(system, decision)
    ledger.book(np.full(6, 50.0), np.zeros(6))
    ledger.book(np.full(6, 1e-6), np.ones(6))
    ledger.book(np.full(6, 0.0), np.ones(6))
    assert ledger.violations == 0
    assert ledger.faded_delay_exceeded.tolist() == [2] * 6
    assert ledger.faded_energy_exceeded.tolist() == [2] * 6
    rate = plain.bandwidth * np.log2(1 + 50.0 * plain.snr)
    np.testing.assert_allclose(ledger.faded_delay[0], plain.compute_delay + plain.payload_bits / rate)
    np.testing.assert_allclose(ledger.faded_energy[0], plain.compute_energy + plain.power * plain.payload_bits / rate)
    assert np.all(np.isinf(ledger.faded_delay[2]))
    np.testing.assert_array_equal(ledger.energy[1], ledger.energy[0])  # lost packets cost the same
    assert ledger.totals()["lost"].tolist() == [2] * 6
    ledger.truncate(1)
    assert len(ledger) == 1
    assert ledger.lost.shape == (1, 6)


def test_without_fading_the_block_costs_what_is_booked(digits: Task, system_for: Callable[..., System]) -> None:
    system = system_for(digits, fading="none")
    ledger = Ledger(system, trainable(MIXED, system))
    ledger.book(np.ones(6), np.zeros(6))
    np.testing.assert_allclose(ledger.faded_delay, ledger.delay, rtol=1e-15)
    np.testing.assert_allclose(ledger.faded_energy, ledger.energy, rtol=1e-15)


def test_violations_are_counted(digits: Task, system_for: Callable[..., System]) -> None:
    system = system_for(digits)
    decision = trainable(MIXED, system)
    cost = round_cost(system, decision)
    delay = cost.delay * np.array([0.9, 1, 1, 1, 1, 1])
    energy = cost.energy * np.array([0.9, 0.9, 1, 1, 1, 1])
    assert Ledger(system.with_(delay_budget=delay, energy_budget=energy), decision).violations == 3


def test_chosen_bandwidth_frequency_and_selection(digits: Task, system_for: Callable[..., System]) -> None:
    system = system_for(digits)
    choice = {"selected": [1, 1, 1, 1, 1, 0], "bandwidth": [1e5] * 5 + [0], "frequency": [2e9] * 6}
    decision = trainable({**MIXED, **choice}, system)
    cost = round_cost(system, decision)
    plain = round_cost(system.with_(frequency=2e9), trainable(MIXED, system))
    for name in ("payload_bits", "delay", "energy"):
        np.testing.assert_allclose(getattr(cost, name)[:5], getattr(plain, name)[:5])
        assert getattr(cost, name)[5] == 0
    np.testing.assert_allclose(round_cost(system, decision, local_steps=3).compute_energy, 3 * cost.compute_energy)
    ledger = Ledger(system, decision)
    ledger.book(np.ones(6), np.ones(6))
    assert ledger.lost.tolist() == [[True] * 5 + [False]]
    assert np.all(np.isfinite(ledger.faded_delay))

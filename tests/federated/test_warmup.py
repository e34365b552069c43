"""Measured constants hold on the trajectory they were measured on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from jointopt.errors import InputError
from jointopt.federated.task import Losses, Task
from jointopt.federated.warmup import MARGIN, measure_constants
from jointopt.pruning import keep_mask
from jointopt.system import System


def test_quadratic_in_closed_form(quadratic_task: Callable[..., Task]) -> None:
    rng = np.random.default_rng(0)
    start, samples = rng.normal(0, 2, 30), [rng.normal(u, 1.0, (50, 30)) for u in range(3)]
    task = quadratic_task(start, samples)
    constants = measure_constants(task, rounds=15, learning_rate=0.2, variance_samples=50)
    mean = np.concatenate(samples).mean(axis=0)
    path = [mean + 0.8**t * (start - mean) for t in range(16)]
    assert constants["smoothness"] == pytest.approx(MARGIN, rel=1e-3)
    assert constants["weight_norm_squared"] == pytest.approx(MARGIN * max(w @ w for w in path), rel=1e-4)
    offset = max(np.sum((w - part.mean(axis=0)) ** 2) for w in path for part in samples)
    assert constants["gradient_offset"] == pytest.approx(offset, rel=1e-4)
    variance = max(float(part.var(axis=0, ddof=1).sum()) for part in samples)
    assert constants["gradient_variance"] == pytest.approx(variance, rel=1e-4)
    gap = 0.5 * np.mean(np.sum((start - np.concatenate(samples)) ** 2, axis=1))
    assert constants["initial_gap"] == pytest.approx(gap, rel=1e-5)


def test_smoothness_finds_the_steepest_curvature() -> None:
    # Logistic loss of one linear layer: the Hessian is known, and random directions would miss its top.
    torch.manual_seed(0)
    task = Task.make(devices=3, network=nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), scheme="iid")
    losses = Losses(task)
    inputs, labels = losses.samples_of(0)
    hessian = torch.func.hessian(lambda w: losses.sample_loss(w, inputs, labels))(losses.start)
    top = float(torch.linalg.eigvalsh(hessian)[-1])
    constants = measure_constants(task, rounds=4, learning_rate=0.1, probes=6)
    assert 0.9 * top < constants["smoothness"] / MARGIN < 2 * top


@pytest.mark.parametrize("slope", [0.0, 1.5])
def test_inequalities_hold_on_the_same_trajectory(digits: Task, slope: float) -> None:
    rounds, eta = 4, 0.2
    constants = measure_constants(digits, rounds=rounds, learning_rate=eta, gradient_slope=slope, ratios=(0.2, 0.8))
    assert constants["gradient_slope"] == slope
    losses = Losses(digits)
    share = digits.samples / digits.samples.sum()
    weights = losses.start
    tolerance = 1 + 1e-4
    for _ in range(rounds + 1):
        each = [losses.device_gradient(weights, u)[1].double() for u in range(6)]
        total = sum((p * g for p, g in zip(share, each, strict=True)), torch.zeros_like(each[0]))
        kept_weights = weights[losses.prunable].double()
        assert float(kept_weights.square().sum()) <= constants["weight_norm_squared"]
        for ratio in (0.2, 0.8):
            keep = torch.ones_like(losses.prunable)
            keep[losses.prunable] = keep_mask(weights[losses.prunable], ratio)
            pruned = weights * keep
            moved = float((weights - pruned).double().norm())
            for u, gradient in enumerate(each):
                there = losses.device_gradient(pruned, u)[1]
                assert float(gradient[~keep].square().sum()) <= constants["mask_energy"] * ratio * tolerance
                assert float((there.double() - gradient).norm()) <= constants["smoothness"] * moved
                entries = there[keep]
                assert float(entries.max() - entries.min()) <= constants["quantizer_range"][u] * tolerance
        square = float(total.square().sum())
        for gradient in each:
            most = constants["gradient_offset"] + slope * square
            assert float(gradient.square().sum()) <= most * tolerance
        weights = weights - eta * total.float()
    assert losses.global_gradient(losses.start)[0] == pytest.approx(constants["initial_gap"], rel=1e-5)


def test_constants_fit_a_system_and_depend_on_the_seed_alone(digits: Task, system_for: Callable[..., System]) -> None:
    before = [p.detach().clone() for p in digits.module.parameters()]
    first, same = (measure_constants(digits, rounds=1, seed=4, ratios=(0.5,)) for _ in range(2))
    system = system_for(digits).with_(**first)
    assert system.bound.smoothness == first["smoothness"]
    assert np.array_equal(system.bound.quantizer_range, first["quantizer_range"])
    assert all(np.array_equal(first[k], same[k]) for k in first)
    assert all(torch.equal(a, b) for a, b in zip(before, digits.module.parameters(), strict=True))


def test_ranges_are_of_what_is_sent_with_batches() -> None:
    full = Task.make(devices=3, seed=0)
    batches = Task.make(devices=3, seed=0, batch_size=4)
    wide, narrow = (measure_constants(t, rounds=2, ratios=(0.5,)) for t in (batches, full))
    assert np.all(wide["quantizer_range"] > narrow["quantizer_range"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rounds": 0}, "rounds >= 1"),
        ({"learning_rate": -1.0}, "learning_rate > 0"),
        ({"gradient_slope": float("nan")}, "gradient_slope"),
        ({"ratios": (0.5, 1.0)}, "ratios"),
        ({"ratios": ()}, "ratios"),
        ({"learning_rate": 1e30, "ratios": (0.5,)}, "diverged"),
    ],
)
def test_refusals(digits: Task, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        measure_constants(digits, **options)

"""Measured generalization gaps where the population's gradient is known, and the numbers fitted to them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import jointopt as jo
from jointopt.errors import InputError
from jointopt.federated.generalization import GradientGaps, measure_generalization, measure_gradient_gaps
from jointopt.federated.task import Losses, Task
from jointopt.models.generalization import entropy_cap, gradient_gap
from jointopt.system import Generalization, System

LN2 = math.log(2.0)


def gaussian_task(
    make: Callable[..., Task], counts: list[int], coordinates: int = 200, scale: float = 0.5, seed: int = 0
) -> Task:
    """F_k = E||w - x||^2 / 2 over x ~ N(c_k, scale^2): E||grad Fhat - grad F||^2 = scale^2 d / n at every w."""
    rng = np.random.default_rng(seed)
    samples = [rng.normal(rng.normal(0.0, 1.0, coordinates), scale, (n, coordinates)) for n in counts]
    return make(rng.normal(0.0, 1.0, coordinates), samples)


def test_known_gap_is_measured(quadratic_task: Callable[..., Task]) -> None:
    counts = [20, 50, 100, 300]
    task = gaussian_task(quadratic_task, counts)
    found = measure_gradient_gaps(task, rounds=1, splits=16)
    kept = 200 - np.floor(200 * np.array([0.0, 0.3, 0.6, 0.9]) + 1e-9)
    assert np.array_equal(found.kept, kept)
    # the client's own samples have a variance of their own, known up to sqrt(2 / (n d)); splits leave some noise
    exact = 0.25 * kept[:, None] / np.array(counts)
    assert np.all(np.abs(found.gap - exact) < 5 * found.error + 0.1 * exact)
    np.testing.assert_allclose((found.gap * counts).mean(axis=1), 0.25 * kept, rtol=0.3)
    assert np.all(found.raw > 2 * found.gap)  # without the held-out noise taken off
    # independent of the weights: proposition 3 gives back a proxy that is 1 / (2 ln 2) of the variance, and no I
    fit = found.generalization()
    assert fit["mutual_information_law"] == "fixed"
    assert fit["gradient_proxy"] == pytest.approx(0.25 / (2 * LN2), rel=0.3)
    assert np.all(fit["mutual_information"] < 0.35 * 0.5 * LN2 * 200)


def test_fitted_model_returns_the_measured_gaps() -> None:
    # noise-free gaps of proposition 3 give its numbers back
    proxy, information = np.array([0.3, 0.02]), np.array([700.0, 0.0])
    ratios, samples = np.array([0.0, 0.5, 0.9]), np.array([40, 10])
    gap = gradient_gap(
        samples=samples,
        gradient_proxy=proxy,
        mutual_information=information,
        pruning_ratio=ratios[:, None],
        parameters=1000.0,
        unpruned=50.0,
    )
    kept = 1050 - ratios * 1000
    measured = GradientGaps(ratios, kept, samples, samples - 3, samples * 0 + 3, gap, gap, gap * 0)
    fit = measured.generalization()
    assert fit["gradient_proxy"] == pytest.approx(proxy)
    assert fit["mutual_information"] == pytest.approx(information, abs=1e-6)


@pytest.mark.parametrize("gap", [[0.5, 0.5, 0.5], [0.4, 0.5, 0.6]])
def test_a_gap_that_does_not_grow_is_capped_by_what_parameters_hold(gap: list[float]) -> None:
    ratios, samples = np.array([0.0, 0.5, 0.9]), np.array([40])
    kept, gaps = 1000 - ratios * 1000, np.array(gap)[:, None]
    fit = GradientGaps(ratios, kept, samples, samples, samples, gaps, gaps, gaps).generalization()
    assert fit["mutual_information"][0] == pytest.approx(entropy_cap(0.0, 1000.0, 32.0))
    model = gradient_gap(
        samples=40.0,
        gradient_proxy=fit["gradient_proxy"],
        mutual_information=fit["mutual_information"],
        pruning_ratio=ratios,
        parameters=1000.0,
    )
    assert model == pytest.approx(0.5, rel=0.05)


def test_a_gap_lost_in_noise_is_none() -> None:
    one, gaps = np.array([40]), np.array([[-0.1], [-0.02]])
    fit = GradientGaps(np.array([0.0, 0.5]), np.array([10.0, 5.0]), one, one, one, gaps, gaps, gaps).generalization()
    assert fit["gradient_proxy"].tolist() == fit["mutual_information"].tolist() == [0.0]


def test_memory_of_the_samples_shows() -> None:
    """A network that overfits has a larger gap than at its start, where the weights know nothing."""
    rng = np.random.default_rng(0)
    inputs = torch.from_numpy(rng.standard_normal((90, 40))).float()
    labels = torch.from_numpy(rng.integers(0, 2, 90))  # nothing to learn but the samples themselves
    data = jo.data.Dataset("noise", inputs, labels, inputs, labels, classes=2)
    task = Task.make(data=data, network="mlp", devices=2, scheme="iid", seed=0, hidden=(64,))
    options: dict[str, Any] = {"learning_rate": 0.5, "splits": 4, "ratios": (0.0, 0.5)}
    early, late = (measure_gradient_gaps(task, rounds=rounds, **options).gap[0] for rounds in (1, 30))
    assert late.mean() > 1.2 * early.mean() > 0


def test_order_of_clients_does_not_matter(quadratic_task: Callable[..., Task]) -> None:
    task = gaussian_task(quadratic_task, [9, 30, 17], coordinates=30)
    order = [2, 0, 1]
    other = Task(data=task.data, module=task.module, parts=tuple(task.parts[k] for k in order), loss=task.loss)
    one, two = (measure_gradient_gaps(t, rounds=2, splits=2, ratios=(0.0, 0.5)) for t in (task, other))
    np.testing.assert_allclose(two.gap, one.gap[:, order], rtol=1e-3, atol=1e-6)
    assert two.samples.tolist() == one.samples[order].tolist()


def test_seed_and_what_is_left_alone(quadratic_task: Callable[..., Task]) -> None:
    task = gaussian_task(quadratic_task, [9, 30], coordinates=30)
    before, state = Losses(task).start.clone(), torch.get_rng_state()
    options: dict[str, Any] = {"rounds": 2, "splits": 2, "ratios": (0.0, 0.5)}
    one, same, other = (measure_generalization(task, seed=s, **options) for s in (3, 3, 4))
    assert all(np.array_equal(one[k], same[k]) for k in one)
    assert not np.array_equal(one["gradient_proxy"], other["gradient_proxy"])
    assert torch.equal(before, Losses(task).start)
    assert torch.equal(state, torch.get_rng_state())


def test_held_out_shares(quadratic_task: Callable[..., Task]) -> None:
    task = gaussian_task(quadratic_task, [3, 10, 100], coordinates=5)
    found = measure_gradient_gaps(task, rounds=1, splits=1, held_out=0.3, ratios=(0.0, 0.6))
    assert found.held_out.tolist() == [2, 3, 30]
    assert found.trained_on.tolist() == [1, 7, 70]
    assert np.all(np.isinf(found.error))
    most = measure_gradient_gaps(task, rounds=1, splits=2, held_out=0.99, ratios=(0.0, 0.6))
    assert most.trained_on.tolist() == [1, 1, 1]
    assert np.all(np.isfinite(most.error))


def test_numbers_fit_a_system(digits: Task, system_for: Callable[..., System]) -> None:
    measured = measure_generalization(digits, rounds=2, splits=1, ratios=(0.0, 0.9))
    system = system_for(digits).replace(generalization=Generalization(**measured))
    assert system.generalization is not None
    assert np.array_equal(system.generalization.gradient_proxy, measured["gradient_proxy"])
    assert system.with_(**measured) == system
    assert System.from_dict(system.to_dict()) == system
    assert jo.measure_generalization is measure_generalization


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rounds": 0}, "rounds"),
        ({"rounds": 1.5}, "rounds"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"learning_rate": float("nan")}, "learning_rate"),
        ({"seed": -1}, "seed"),
        ({"splits": 0}, "splits"),
        ({"held_out": 0.0}, "held_out"),
        ({"held_out": 1.0}, "held_out"),
        ({"variance_samples": 1}, "variance_samples"),
        ({"ratios": (0.0, 1.0)}, "ratios"),
        ({"ratios": (-0.1, 0.5)}, "ratios"),
        ({"ratios": (0.5,)}, "two ratios that prune differently"),
        ({"ratios": (0.5, 0.5)}, "two ratios that prune differently"),
        ({"learning_rate": 1e30, "rounds": 5}, "diverged after"),
    ],
)
def test_refusals(quadratic_task: Callable[..., Task], options: dict[str, Any], message: str) -> None:
    task = gaussian_task(quadratic_task, [5, 6], coordinates=10)
    with pytest.raises(InputError, match=message):
        measure_generalization(task, **options)


@pytest.mark.parametrize(("count", "words"), [(1, "client 1 has 1 sample,"), (2, "client 1 has 2 samples,")])
def test_clients_with_too_few_samples_are_named(quadratic_task: Callable[..., Task], count: int, words: str) -> None:
    task = gaussian_task(quadratic_task, [5, count, 9], coordinates=10)
    with pytest.raises(InputError, match=words):
        measure_generalization(task)

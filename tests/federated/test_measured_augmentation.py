"""Gaps of synthetic class gradients: by hand, with generators whose gap is known, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from jointopt.data import load
from jointopt.errors import InputError
from jointopt.federated.augmentation import ClassGradientGaps, gradient_gaps, measure_augmentation
from jointopt.federated.task import Losses, Task
from jointopt.federated.warmup import measure_constants
from jointopt.system import System


@pytest.fixture(scope="module")
def skewed() -> Task:
    return Task.make(data="digits", network="mlp", devices=4, alpha=0.3, seed=3, hidden=(16,))


def test_against_autograd_along_the_path(skewed: Task, drawn: Callable[..., Any]) -> None:
    generator = drawn(skewed.data)
    gaps = gradient_gaps(skewed, generator, rounds=3, learning_rate=0.2, seed=7, samples_per_class=9)
    assert generator.asked == [90]  # one request
    assert gaps.real.shape == gaps.gap.shape == gaps.held_out_gap.shape == (3, 10)
    assert gaps.samples.tolist() == [9] * 10
    np.testing.assert_array_equal(gaps.class_counts, skewed.class_counts)
    inputs, labels = skewed.data.train_inputs, skewed.data.train_labels
    every = torch.from_numpy(np.concatenate(skewed.parts))
    losses = Losses(skewed)
    weights = losses.start.clone()
    for t in range(3):
        loss = cross_entropy(losses.outputs(weights, inputs[every]), labels[every])
        assert gaps.loss[t] == pytest.approx(float(loss), rel=1e-5)
        for c in range(10):
            leaf = weights.clone().requires_grad_()
            mine = every[labels[every] == c]
            gradient = torch.autograd.grad(cross_entropy(losses.outputs(leaf, inputs[mine]), labels[mine]), leaf)[0]
            assert gaps.real[t, c] == pytest.approx(float(gradient.double().norm()), rel=1e-4)
        weights = weights - 0.2 * losses.global_gradient(weights)[1]
    same = gradient_gaps(skewed, drawn(skewed.data), rounds=3, learning_rate=0.2, seed=7, samples_per_class=9)
    np.testing.assert_array_equal(gaps.gap, same.gap)
    np.testing.assert_array_equal(gaps.held_out_gap, same.held_out_gap)


def test_a_perfect_generator_has_no_gap_and_a_wrong_one_a_known_one(skewed: Task, drawn: Callable[..., Any]) -> None:
    """Everything held out is what the devices hold, and the generator returns the same: both gaps vanish."""
    every = np.concatenate(skewed.parts)
    held = skewed.data.train_inputs[every], skewed.data.train_labels[every]
    most = int(skewed.class_counts.sum(axis=0).max())
    perfect = drawn(skewed.data)

    def whole(labels: Any, *, seed: int) -> torch.Tensor:
        return torch.cat([held[0][held[1] == c] for c in range(10)])

    perfect.sample = whole
    gaps = gradient_gaps(skewed, perfect, rounds=3, samples_per_class=most, real=held)
    np.testing.assert_array_equal(gaps.samples, skewed.class_counts.sum(axis=0))
    assert np.all(gaps.gap < 1e-5 * gaps.real)
    assert np.all(gaps.held_out_gap < 1e-5 * gaps.real)
    assert np.all(gaps.excess < 1e-5 * gaps.real)
    # a generator that makes the next class in place of the one asked for
    wrong = drawn(skewed.data)
    right = wrong.sample
    wrong.sample = lambda labels, *, seed: right((np.asarray(labels) + 1) % 10, seed=seed)
    misled = gradient_gaps(skewed, wrong, rounds=3)
    honest = gradient_gaps(skewed, drawn(skewed.data), rounds=3)
    assert np.all(misled.gap > 2 * honest.gap)
    assert misled.excess.min() > 2 * honest.excess.mean()


def test_real_samples_in_place_of_synthetic_ones_have_the_gap_of_held_out_ones(drawn: Callable[..., Any]) -> None:
    """Drawn from the very samples held, with more of them the gap falls like 1/sqrt(n)."""
    task = Task.make(data="digits", network="mlp", devices=4, seed=3, hidden=(16,))
    few, many = (
        gradient_gaps(task, drawn(task.data), rounds=1, samples_per_class=n, seed=1,
                      real=(task.data.train_inputs, task.data.train_labels))
        for n in (5, 80)
    )  # fmt: skip
    ratio = np.sqrt((few.gap**2).mean() / (many.gap**2).mean())
    assert ratio == pytest.approx(4.0, rel=0.35)
    assert np.sqrt((few.held_out_gap**2).mean() / (few.gap**2).mean()) == pytest.approx(1.0, abs=0.35)


def test_fields_fit_a_system(skewed: Task, drawn: Callable[..., Any], dpq_system: Callable[..., System]) -> None:
    options: dict[str, Any] = {"rounds": 4, "samples_per_class": 20, "seed": 2}
    fields = measure_augmentation(skewed, drawn(skewed.data), **options)
    gaps = gradient_gaps(skewed, drawn(skewed.data), **options)
    assert fields["gradient_bound"] == gaps.real.max()
    assert fields["synthetic_gap"] == gaps.gap.max()
    assert fields["generation_cycles"] == 3.2e6 / 32.0
    halved = measure_augmentation(skewed, drawn(skewed.data), flops_per_cycle=16, **options)
    assert halved["generation_cycles"] == 2 * fields["generation_cycles"]
    typical = measure_augmentation(skewed, drawn(skewed.data), typical=True, **options)
    assert typical["gradient_bound"] == pytest.approx(gaps.real.mean())
    assert typical["synthetic_gap"] == pytest.approx(gaps.gap.mean())
    assert typical["synthetic_gap"] < fields["synthetic_gap"]
    system = dpq_system(skewed).with_(**fields)
    assert system.augmentation is not None
    assert system.augmentation.synthetic_gap == fields["synthetic_gap"]
    skewed.check(system)


def test_a_class_that_nobody_holds(skewed: Task, drawn: Callable[..., Any]) -> None:
    labels = skewed.data.train_labels.numpy()
    task = Task(data=skewed.data, module=skewed.module, parts=tuple(part[labels[part] != 4] for part in skewed.parts))
    held = load("digits").test_inputs, load("digits").test_labels
    some = held[1] != 6  # and one that nothing is held out of
    gaps = gradient_gaps(task, drawn(task.data), rounds=2, samples_per_class=15, real=(held[0][some], held[1][some]))
    assert np.isnan(gaps.real[:, 4]).all()
    assert np.isnan(gaps.gap[:, 4]).all()
    assert np.isnan(gaps.held_out_gap[:, 6]).all()
    assert gaps.samples.tolist() == [15] * 10
    fields = gaps.fields()
    assert math.isfinite(fields["gradient_bound"])
    assert math.isfinite(fields["synthetic_gap"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rounds": 0}, "rounds must be a whole number of at least 1"),
        ({"rounds": 1.5}, "rounds must be"),
        ({"learning_rate": float("nan")}, "learning_rate must be finite"),
        ({"learning_rate": 1e30, "rounds": 3}, "diverged after"),
        ({"seed": -1}, "seed must be"),
        ({"samples_per_class": 0}, "samples_per_class must be"),
        ({"flops_per_cycle": 0.0}, "flops_per_cycle must be finite and above 0"),
        ({"real": (torch.zeros(3, 1, 7, 7), torch.zeros(3, dtype=torch.int64))}, "real must be inputs of shape"),
        ({"real": (torch.zeros(3, 1, 8, 8), torch.zeros(2, dtype=torch.int64))}, "real must be inputs of shape"),
    ],
)
def test_refusals(skewed: Task, drawn: Callable[..., Any], options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        measure_augmentation(skewed, drawn(skewed.data), **{"rounds": 1, **options})


def test_other_data_and_augmented_tasks(skewed: Task, drawn: Callable[..., Any]) -> None:
    generator = drawn(skewed.data)
    with pytest.raises(InputError, match="the task is augmented already"):
        gradient_gaps(skewed.augmented(generator, 0.3), generator)
    generator.data = "cifar10"
    with pytest.raises(InputError, match="was made for data set 'cifar10'"):
        gradient_gaps(skewed, generator)


def test_excess_by_hand() -> None:
    ones = np.ones((1, 2))
    gaps = ClassGradientGaps(
        ones, np.array([[5.0, 1.0]]), np.array([[3.0, 2.0]]), np.zeros(1), np.ones(2, int), np.ones((1, 2), int), 1.0
    )
    assert gaps.excess.tolist() == [[4.0, 0.0]]


# Constants of the bound, typical ones -----------------------------------------------------------------------


def test_typical_constants_in_closed_form(quadratic_task: Callable[..., Task]) -> None:
    rng = np.random.default_rng(0)
    start, samples = rng.normal(0, 2, 30), [rng.normal(u, 1.0, (50, 30)) for u in range(3)]
    task = quadratic_task(start, samples)
    found = measure_constants(task, rounds=15, learning_rate=0.2, variance_samples=50, typical=True)
    mean = np.concatenate(samples).mean(axis=0)
    path = [mean + 0.8**t * (start - mean) for t in range(16)]
    assert found["smoothness"] == pytest.approx(1.0, rel=1e-3)
    assert found["weight_norm_squared"] == pytest.approx(np.mean([w @ w for w in path]), rel=1e-4)
    offset = np.mean([np.sum((w - part.mean(axis=0)) ** 2) for w in path for part in samples])
    assert found["gradient_offset"] == pytest.approx(offset, rel=1e-4)
    variance = np.mean([float(part.var(axis=0, ddof=1).sum()) for part in samples])
    assert found["gradient_variance"] == pytest.approx(variance, rel=1e-4)


def test_typical_constants_are_below_the_bounds(skewed: Task) -> None:
    most, typical = (measure_constants(skewed, rounds=2, ratios=(0.3, 0.8), typical=t) for t in (False, True))
    for name in ("smoothness", "weight_norm_squared", "mask_energy", "gradient_offset", "gradient_variance"):
        assert 0 < typical[name] < most[name], name
    assert np.all(typical["quantizer_range"] < most["quantizer_range"])
    assert typical["initial_gap"] == most["initial_gap"]

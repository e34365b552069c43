"""How far synthetic samples mislead, measured in a short dense warm-up (theory 2a, 2b).

Along some rounds of plain gradient descent, the gradient of every class over synthetic samples is compared with that
over all real samples of the class that devices hold. Part of the gap is no fault of the generator: so many samples
never have quite the gradient of all others. How much, is told by as many real samples that no device holds.

What is *measured* are gaps on a path; that the few rounds looked at stand for the whole training is a *model*, and a
maximum over them is a lower estimate of a bound that should hold everywhere.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jointopt.errors import InputError, is_real, is_whole
from jointopt.federated.streams import number
from jointopt.federated.synthetic import sampled
from jointopt.federated.task import Losses, Task, fixed_data
from jointopt.federated.threads import torch_threads
from jointopt.system import FloatArray

if TYPE_CHECKING:
    from jointopt.augmentation import Generator

__all__ = ["FLOPS_PER_CYCLE", "ClassGradientGaps", "gradient_gaps", "measure_augmentation"]

FLOPS_PER_CYCLE = 32.0
"""Floating-point operations of a processor cycle [S]."""


@dataclass(frozen=True, eq=False)
class ClassGradientGaps:
    """Gradients of each class along a warm-up: how large, and how far off over synthetic samples.

    Attributes
    ----------
    real : array [rounds, classes]
        ||grad F^c|| over the real samples of all devices; NaN for a class of which they hold none.
    gap : array [rounds, classes]
        ||grad F^c_syn - grad F^c||.
    held_out_gap : array [rounds, classes]
        The same over as many real samples that no device holds: what is sampling noise, and overfitting. NaN where
        there are none of the class.
    loss : array [rounds]
        F, the mean over all samples of the devices.
    samples : int array [classes]
        Synthetic samples of each class, and held-out ones where there are any.
    class_counts : int array [devices, classes]
        Real samples of the devices.
    operations_per_sample : float
        Floating-point operations that make one synthetic sample.
    """

    real: FloatArray
    gap: FloatArray
    held_out_gap: FloatArray
    loss: FloatArray
    samples: NDArray[np.int64]
    class_counts: NDArray[np.int64]
    operations_per_sample: float

    @property
    def excess(self) -> FloatArray:
        """What is left of the gap without sampling noise, sqrt(max(gap^2 - held_out_gap^2, 0)), [rounds, classes]."""
        return np.sqrt(np.maximum(self.gap**2 - self.held_out_gap**2, 0.0))

    def fields(self, *, flops_per_cycle: float = FLOPS_PER_CYCLE, typical: bool = False) -> dict[str, Any]:
        """Return fields of `jointopt.system.Augmentation`, see `measure_augmentation`."""
        if not (is_real(flops_per_cycle) and math.isfinite(flops_per_cycle) and flops_per_cycle > 0.0):
            raise InputError(
                f"measure_augmentation: flops_per_cycle must be finite and above 0, found {flops_per_cycle!r}"
            )
        over = np.nanmean if typical else np.nanmax
        return {
            "class_counts": self.class_counts,
            "gradient_bound": float(over(self.real)),
            "synthetic_gap": float(over(self.gap)),
            "generation_cycles": self.operations_per_sample / float(flops_per_cycle),
        }


def gradient_gaps(
    task: Task,
    generator: Generator,
    *,
    rounds: int = 10,
    learning_rate: float = 0.1,
    seed: int = 0,
    samples_per_class: int = 200,
    real: tuple[Tensor, Tensor] | None = None,
    threads: int | None = 1,
) -> ClassGradientGaps:
    """Measure the gaps that `measure_augmentation` sums up; same arguments and errors."""
    fixed_data(task, "gradient_gaps")
    if not (is_whole(rounds) and rounds >= 1):
        raise InputError(f"measure_augmentation: rounds must be a whole number of at least 1, found {rounds!r}")
    if not (is_real(learning_rate) and math.isfinite(learning_rate) and learning_rate > 0.0):
        raise InputError(f"measure_augmentation: learning_rate must be finite and above 0, found {learning_rate!r}")
    if not (is_whole(seed) and seed >= 0):
        raise InputError(f"measure_augmentation: seed must be a whole number of at least 0, found {seed!r}")
    if not (is_whole(samples_per_class) and samples_per_class >= 1):
        raise InputError(
            f"measure_augmentation: samples_per_class must be a whole number of at least 1, found {samples_per_class!r}"
        )
    if task.synthetic is not None:
        raise InputError("measure_augmentation: the task is augmented already; give the one from before")
    generator.check(task.data)
    inputs, labels = (task.data.test_inputs, task.data.test_labels) if real is None else _held_out(real, task)
    with torch_threads(threads):
        return _walk(task, generator, inputs, labels, rounds, learning_rate, seed, samples_per_class)


def _walk(
    task: Task,
    generator: Generator,
    inputs: Tensor,
    labels: Tensor,
    rounds: int,
    learning_rate: float,
    seed: int,
    samples_per_class: int,
) -> ClassGradientGaps:
    """Walk the dense model and look at every class on the way."""
    losses, classes = Losses(task), task.data.classes
    rng = np.random.default_rng(seed)
    aside = [rng.permutation(np.flatnonzero(labels.numpy() == c))[:samples_per_class] for c in range(classes)]
    counts = np.array([len(rows) or samples_per_class for rows in aside], dtype=np.int64)
    asked = np.repeat(np.arange(classes), counts)
    made = torch.split(sampled(generator, asked, number(seed, "synthesis", 0, 1) >> 1), counts.tolist())
    held = np.array([len(rows) for rows in losses.class_rows])
    share = held / held.sum()
    shape = (int(rounds), classes)
    norm, gap, other = (np.full(shape, np.nan) for _ in range(3))
    loss = np.zeros(rounds)
    weights = losses.start.clone()
    for t in range(rounds):
        total = torch.zeros_like(weights, dtype=torch.float64)
        for c in np.flatnonzero(held).tolist():
            value, gradient = losses.class_gradient(weights, c)
            loss[t] += share[c] * value
            total += float(share[c]) * gradient
            norm[t, c] = _norm(gradient)
            gap[t, c] = _norm(losses.gradient(weights, made[c], torch.full((len(made[c]),), c)) - gradient)
            if len(aside[c]):
                rows = torch.from_numpy(aside[c])
                other[t, c] = _norm(losses.gradient(weights, inputs[rows], labels[rows]) - gradient)
        weights = weights - learning_rate * total.to(weights.dtype)
        if not (math.isfinite(loss[t]) and bool(torch.isfinite(weights).all())):
            raise InputError(
                f"measure_augmentation: diverged after {t + 1} rounds; try a learning rate below {learning_rate:g}"
            )
    return ClassGradientGaps(norm, gap, other, loss, counts, task.class_counts, float(generator.operations_per_sample))


def _norm(vector: Tensor) -> float:
    return math.sqrt(float(vector.to(torch.float64).square().sum()))


def _held_out(real: tuple[Tensor, Tensor], task: Task) -> tuple[Tensor, Tensor]:
    inputs, labels = real
    if inputs.ndim < 2 or tuple(inputs.shape[1:]) != task.data.inputs_shape or labels.shape != inputs.shape[:1]:
        raise InputError(
            f"measure_augmentation: real must be inputs of shape [n, {', '.join(map(str, task.data.inputs_shape))}] "
            f"and labels [n], found {tuple(inputs.shape)} and {tuple(labels.shape)}"
        )
    if not bool(torch.isfinite(inputs).all()):
        raise InputError("measure_augmentation: real holds an input that is not finite")
    return inputs.to(torch.float32), labels


def measure_augmentation(
    task: Task,
    generator: Generator,
    *,
    rounds: int = 10,
    learning_rate: float = 0.1,
    seed: int = 0,
    samples_per_class: int = 200,
    flops_per_cycle: float = FLOPS_PER_CYCLE,
    real: tuple[Tensor, Tensor] | None = None,
    typical: bool = False,
    threads: int | None = 1,
) -> dict[str, Any]:
    """Measure the constants of the augmentation in a short dense warm-up (theory 2a [S]).

    Parameters
    ----------
    task : Task
        What will be trained, before augmentation; it is left as it is.
    generator : Generator
        What makes the synthetic samples.
    rounds : int
        Points of the path, the start first; between them lie steps of full-batch gradient descent.
    learning_rate : float
        Step size of the warm-up.
    seed : int
        Seed of synthetic and held-out samples.
    samples_per_class : int
        Synthetic samples of each class, and as many held-out ones; fewer of both where fewer are held out.
    flops_per_cycle : float
        Floating-point operations of a processor cycle.
    real : tensors, optional
        Inputs [n, ...] and labels [n] of real samples that no device holds; the test samples when not given.
    typical : bool
        Means over the path and the classes in place of maxima: effective numbers, for decisions rather than bounds.
    threads : int, optional
        Torch threads while measuring; the caller's number when None. One is fastest for networks this small.

    Returns
    -------
    dict
        Fields of `jointopt.system.Augmentation`: ``class_counts``, the task's. ``gradient_bound``, the largest
        ||grad F^c||, and ``synthetic_gap``, the largest ||grad F^c_syn - grad F^c||, over path and classes, with the
        sampling noise of so many samples; `gradient_gaps` tells how much that is. ``generation_cycles``.

    Raises
    ------
    InputError
        An argument is out of its range, the generator was made for other data, the task is augmented already, or the
        warm-up diverges.
    """
    fixed_data(task, "measure_augmentation")
    gaps = gradient_gaps(
        task,
        generator,
        rounds=rounds,
        learning_rate=learning_rate,
        seed=seed,
        samples_per_class=samples_per_class,
        real=real,
        threads=threads,
    )
    return gaps.fields(flops_per_cycle=flops_per_cycle, typical=typical)

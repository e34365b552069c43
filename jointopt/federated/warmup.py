"""Constants of the convergence bound, measured in a short dense warm-up.

A maximum over the points visited is a *lower* estimate of a constant that should hold everywhere: the bound
computed with it is informed by the task, not proven for it. The smoothness and the weight norm are therefore
raised by a margin.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.func import grad, vmap

from jointopt.errors import InputError
from jointopt.federated.task import Losses, Task, fixed_data
from jointopt.federated.threads import torch_threads
from jointopt.pruning import keep_mask

__all__ = ["MARGIN", "measure_constants", "sample_variance"]

MARGIN = 1.5
"""Factor on the measured smoothness and squared weight norm."""

_STEP = 1e-2
_LEAST = 1e-12
"""Constants that must be above 0 are at least this."""


def _square(vector: Tensor) -> float:
    return float(vector.to(torch.float64).square().sum())


class _Seen:
    """What was seen of a constant: its maximum, or its mean."""

    def __init__(self) -> None:
        self.largest = self._sum = 0.0
        self._count = 0

    def see(self, *values: float) -> None:
        self.largest = max(self.largest, *values)
        self._sum, self._count = self._sum + math.fsum(values), self._count + len(values)

    def value(self, typical: bool) -> float:
        return self._sum / max(self._count, 1) if typical else self.largest


class _Smoothness(_Seen):
    """||difference of gradients|| / ||difference of weights||."""

    def compare(self, gradients: list[Tensor], others: list[Tensor], distance: float) -> None:
        if distance > 0.0:
            apart = [math.sqrt(_square(g - h)) for g, h in zip(gradients, others, strict=True)]
            self.see(*(one / distance for one in apart))


def sample_variance(
    losses: Losses, weights: Tensor, device: int, rows: NDArray[np.int64], keep: Tensor | None = None
) -> float:
    """Unbiased estimate of E||grad of one sample - mean||^2 from some samples of a device, on the kept coordinates.

    0 for a single sample, which says nothing about the variance.
    """
    if len(rows) < 2:
        return 0.0
    inputs, labels = losses.samples_of(device)
    index = torch.from_numpy(rows)

    def one(flat: Tensor, sample: Tensor, label: Tensor) -> Tensor:
        return losses.sample_loss(flat, sample[None], label[None])

    each = vmap(grad(one), in_dims=(None, 0, 0))(weights, inputs[index], labels[index])
    if keep is not None:
        each = each * keep
    return _square(each - each.mean(dim=0)) / (len(index) - 1)


def measure_constants(
    task: Task,
    *,
    rounds: int = 10,
    learning_rate: float = 0.1,
    seed: int = 0,
    gradient_slope: float = 0.0,
    ratios: Sequence[float] = (0.1, 0.5, 0.9),
    variance_samples: int = 32,
    probes: int = 0,
    typical: bool = False,
    threads: int | None = 1,
) -> dict[str, Any]:
    """Measure the constants of the bound along some rounds of plain gradient descent of the dense model.

    Same arguments, same result, bit for bit (on one machine with one number of threads).

    Parameters
    ----------
    task : Task
        What will be trained; it is left as it is.
    rounds : int
        Steps of full-batch gradient descent; each takes 4 + len(ratios) passes over all data.
    learning_rate : float
        Step size of the warm-up.
    seed : int
        Seed of directions and samples drawn.
    gradient_slope : float
        zeta_2, chosen; zeta_1 follows.
    ratios : sequence of float
        Pruning ratios probed, in (0, 1).
    variance_samples : int
        Samples per device from which the variance of one sample's gradient is estimated.
    probes : int
        Small steps per round in search of the steepest curvature anywhere near the path: the first in a random
        direction, each next along the difference of gradients it met. They give a larger L, for claims beyond
        the path.
    typical : bool
        Means over devices, ratios and the path in place of maxima, without the margin: effective numbers, for
        decisions rather than bounds.
    threads : int, optional
        Torch threads while measuring; the caller's number when None. One is fastest for networks this small.

    Returns
    -------
    dict
        Fields of `jointopt.system.Bound`, so that ``system.with_(**constants)`` uses them (A1 to A4):

        ``smoothness``: 1.5 x the largest ||grad F_u(w) - grad F_u(v)|| / ||w - v|| over devices, w and v
        being consecutive iterates or a dense and a pruned model, the pairs to which the proof applies
        smoothness; with `probes` > 0 also points a small step apart. ``weight_norm_squared``: 1.5 x the
        largest ||w||^2 over the *prunable* weights, which alone are pruned. ``mask_energy``: the largest
        ||(1 - m) * grad F_u(w)||^2 / ratio. ``gradient_offset``: the largest
        ||grad F_u||^2 - zeta_2 ||grad F||^2, at least 0. ``gradient_slope``: as given.
        ``quantizer_range``, shape [devices]: the largest max - min of what a device would send, of a batch's
        gradient where the task has a batch size. ``gradient_variance``: the largest over devices of the
        variance of one sample's gradient, summed over coordinates. ``initial_gap``: F at the start, an upper
        estimate as losses are not negative.

    Raises
    ------
    InputError
        An argument is out of its range, or the warm-up diverges.
    """
    fixed_data(task, "measure_constants")
    if rounds < 1 or not (math.isfinite(learning_rate) and learning_rate > 0.0):
        raise InputError(f"warm-up: needs rounds >= 1 and learning_rate > 0, found {rounds} and {learning_rate!r}")
    if not (math.isfinite(gradient_slope) and gradient_slope >= 0.0):
        raise InputError(f"warm-up: gradient_slope must be finite and at least 0, found {gradient_slope!r}")
    if len(ratios) == 0 or not all(0.0 < ratio < 1.0 for ratio in ratios):
        raise InputError(f"warm-up: ratios must lie above 0 and below 1, found {tuple(ratios)}")
    with torch_threads(threads):
        return _measured(
            task,
            rounds,
            learning_rate,
            np.random.default_rng(seed),
            gradient_slope,
            ratios,
            variance_samples,
            probes,
            typical,
        )


def _measured(
    task: Task,
    rounds: int,
    learning_rate: float,
    rng: np.random.Generator,
    gradient_slope: float,
    ratios: Sequence[float],
    variance_samples: int,
    probes: int,
    typical: bool,
) -> dict[str, Any]:
    losses = Losses(task)
    share = task.samples / task.samples.sum()
    devices = range(len(task))
    smoothness, norm, offset, energy, variance = _Smoothness(), _Seen(), _Seen(), _Seen(), _Seen()
    spread = [_Seen() for _ in devices]
    weights = losses.start.clone()
    direction = torch.from_numpy(rng.standard_normal(len(weights))).to(weights.dtype)
    before: tuple[Tensor, list[Tensor]] | None = None
    initial_gap = 0.0

    def gradients_at(point: Tensor) -> tuple[float, list[Tensor], Tensor]:
        each = [losses.device_gradient(point, u) for u in devices]
        loss = float(sum(p * value for p, (value, _) in zip(share, each, strict=True)))
        total = torch.zeros_like(point, dtype=torch.float64)
        for p, (_, gradient) in zip(share, each, strict=True):
            total += p * gradient
        return loss, [gradient for _, gradient in each], total.to(point.dtype)

    def see_ranges(point: Tensor, keep: Tensor, full: list[Tensor]) -> None:
        for u in devices:
            gradient, count = full[u], int(task.samples[u])
            if task.batch_size is not None and task.batch_size < count:
                rows = rng.choice(count, task.batch_size, replace=False)
                gradient = losses.device_gradient(point, u, rows)[1]
            low, high = torch.aminmax(gradient[keep])
            spread[u].see(float(high) - float(low))

    everything = torch.ones_like(losses.prunable)
    for number in range(rounds + 1):
        loss, each, total = gradients_at(weights)
        if not (math.isfinite(loss) and bool(torch.isfinite(total).all())):
            raise InputError(f"warm-up: diverged after {number} rounds; try a learning rate below {learning_rate:g}")
        if number == 0:
            initial_gap = loss
        if before is not None:
            smoothness.compare(each, before[1], math.sqrt(_square(weights - before[0])))
        norm.see(_square(weights[losses.prunable]))
        squares = [_square(gradient) for gradient in each]
        offset.see(*(square - gradient_slope * _square(total) for square in squares))
        see_ranges(weights, everything, each)
        for ratio in ratios:
            keep = everything.clone()
            keep[losses.prunable] = keep_mask(weights[losses.prunable], ratio)
            energy.see(*(_square(gradient[~keep]) / ratio for gradient in each))
            pruned = weights * keep
            _, there, _ = gradients_at(pruned)
            smoothness.compare(there, each, math.sqrt(_square(weights - pruned)))
            see_ranges(pruned, keep, there)
        for _ in range(probes):
            length = math.sqrt(_square(direction))
            if length == 0.0 or not math.isfinite(length):
                direction = torch.from_numpy(rng.standard_normal(len(weights))).to(weights.dtype)
                length = math.sqrt(_square(direction))
            moved = weights + direction * (_STEP * max(1.0, math.sqrt(norm.largest)) / length)
            _, there, total_there = gradients_at(moved)
            smoothness.compare(there, each, math.sqrt(_square(moved - weights)))
            direction = total_there - total
        if number in (0, rounds):
            for u in devices:
                count = int(task.samples[u])
                if count > 1:
                    rows = rng.choice(count, min(variance_samples, count), replace=False)
                    variance.see(sample_variance(losses, weights, u, rows))
        before = weights, each
        weights = weights - learning_rate * total
    margin = 1.0 if typical else MARGIN
    return {
        "smoothness": max(margin * smoothness.value(typical), _LEAST),
        "weight_norm_squared": margin * norm.value(typical),
        "mask_energy": energy.value(typical),
        "gradient_offset": max(offset.value(typical), 0.0),
        "gradient_slope": float(gradient_slope),
        "quantizer_range": np.maximum([one.value(typical) for one in spread], _LEAST),
        "gradient_variance": variance.value(typical),
        "initial_gap": max(initial_gap, _LEAST),
    }

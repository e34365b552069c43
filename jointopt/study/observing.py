"""What a short warm-up shows of the errors that a convergence bound counts.

A dense model takes plain gradient steps. At some points of its path every error is looked at: what pruning does to
each device's gradient and to the mean of all, what the quantizer would add, how far a batch is off, how much devices
differ, and how steep the loss is along the noise of each. Nothing is fitted here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.func import functional_call

from jointopt.errors import InputError
from jointopt.federated.codecs import codec
from jointopt.federated.task import Losses, Task
from jointopt.pruning import Pruner
from jointopt.pruning.evidence import Batch, Evidence
from jointopt.study.walk import Walk
from jointopt.system import FloatArray

__all__ = ["observe", "quantization_error"]

_PROBE = 1e-2
"""Length of the step, relative to the weights, over which curvature is measured."""
_BITS = 2
_LOSS = 0.3
_EXPLORERS, _EXPLORER_STEPS = 10, 10
_EVIDENCE = 64
_CHUNK = 4096


def quantization_error(values: Tensor, bits: Sequence[int]) -> FloatArray:
    """Return the mean squared error of the unbiased uniform quantizer, summed over the entries, for each width.

    An entry between two knobs has the variance (distance to one) x (distance to the other) (theory L1).
    """
    entries = values.to(torch.float64)
    low, high = (float(end) for end in torch.aminmax(entries))
    if high <= low:
        return np.zeros(len(bits))
    place = (entries - low) / (high - low)
    out = []
    for width in bits:
        steps = 2.0**width - 1.0
        part = torch.frac(place * steps)
        out.append(float((part * (1.0 - part)).sum()) * ((high - low) / steps) ** 2)
    return np.array(out)


class _Gradients:
    """F_u and its gradient. A network with running statistics works as in training: on those of the batch it is in."""

    def __init__(self, task: Task) -> None:
        self.losses = Losses(task)
        self._chunk = task.batch_size or _CHUNK
        self._module = None
        if self.losses.layout.buffer_size:
            self._module = deepcopy(task.module).train()

    def device(self, weights: Tensor, device: int, rows: NDArray[np.int64] | None = None) -> tuple[float, Tensor]:
        """Return loss and gradient [P] of a device, over all its samples or some."""
        if self._module is None:
            return self.losses.device_gradient(weights, device, rows)
        inputs, labels = self.losses.samples_of(device)
        if rows is not None:
            index = torch.from_numpy(rows)
            inputs, labels = inputs[index], labels[index]
        layout, count = self.losses.layout, len(labels)
        leaf, value, total = weights.detach().requires_grad_(), 0.0, torch.zeros_like(weights, dtype=torch.float64)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # dropout, where there is some
            for start in range(0, count, self._chunk):
                some = slice(start, start + self._chunk)
                named = layout.split(leaf) | layout.split_buffers(self.losses.start_buffers.clone())
                loss = self.losses.loss(functional_call(self._module, named, (inputs[some],)), labels[some])
                share = len(labels[some]) / count
                value += share * float(loss.detach())
                total += share * torch.autograd.grad(loss, leaf)[0]
        return value, total.to(weights.dtype)


def _square(vector: Tensor) -> float:
    return float(vector.to(torch.float64).square().sum())


def _dot(one: Tensor, other: Tensor) -> float:
    return float(one.to(torch.float64) @ other.to(torch.float64))


def _mean(weight: FloatArray, vectors: Sequence[Tensor]) -> Tensor:
    total = torch.zeros_like(vectors[0], dtype=torch.float64)
    for share, vector in zip(weight, vectors, strict=True):
        total += float(share) * vector
    return total.to(vectors[0].dtype)


class _Observer:
    """Takes the warm-up's steps and looks at some of the points."""

    def __init__(
        self, task: Task, pruner: Pruner, ratios: Sequence[float], bits: Sequence[int], rate: float, seed: int
    ) -> None:
        self.task, self.pruner, self.asked, self.bits, self.rate = task, pruner, ratios, bits, rate
        self.gradients = _Gradients(task)
        self.losses = self.gradients.losses
        self.weight = np.asarray(task.samples / task.samples.sum(), dtype=np.float64)
        self.rng = np.random.default_rng(seed)
        self.generator = torch.Generator().manual_seed(seed)
        self.groups = pruner.groups(task.module, self.losses.inputs[:1])
        self.before: tuple[Tensor, list[Tensor]] | None = None
        self.found: dict[str, list[Any]] = {}

    def everyone(self, point: Tensor) -> tuple[float, list[Tensor], Tensor]:
        """Return F, the devices' gradients and their mean."""
        each = [self.gradients.device(point, u) for u in range(len(self.task))]
        loss = float(sum(share * value for share, (value, _) in zip(self.weight, each, strict=True)))
        vectors = [gradient for _, gradient in each]
        return loss, vectors, _mean(self.weight, vectors)

    def look(self, weights: Tensor, each: list[Tensor], total: Tensor) -> None:
        """Observe one point."""
        pruned = self._pruned(weights, each, total)
        batches, variance = self._batches(weights, each)
        span = [float(torch.sub(*reversed(torch.aminmax(batch)))) for batch in batches]
        moved = np.zeros(len(each))
        if self.before is not None:
            there, then = self.before
            distance = math.sqrt(_square(weights - there))
            if distance > 0.0:
                moved = np.array([math.sqrt(_square(a - b)) / distance for a, b in zip(each, then, strict=True)])
        self.before = weights, each
        seen = {
            **pruned,
            "norm": _square(weights[self.losses.prunable]),
            "dense": [_square(gradient) for gradient in each],
            "apart": [_square(gradient - total) for gradient in each],
            "aligned": [_dot(total, gradient) for gradient in each],
            "moved": moved,
            "span": np.maximum(span, pruned["span"]),
            "quantized": np.stack([quantization_error(batch, self.bits) for batch in batches], axis=1),
            "variance": variance,
            **self._curvature(weights, each, batches, total),
        }
        for name, value in seen.items():
            self.found.setdefault(name, []).append(value)

    def _pruned(self, weights: Tensor, each: list[Tensor], total: Tensor) -> dict[str, Any]:
        masks = self.pruner.masks(
            self.groups, weights, self.asked, evidence=self._evidence(weights), generator=self.generator
        )
        names = ("error", "progress", "hidden", "steepness")
        out: dict[str, Any] = {name: [] for name in (*names, "ratios", "removed", "bias")}
        span = np.zeros(len(each))
        for mask in masks:
            keep = mask.keep
            point = weights * keep
            distance = math.sqrt(_square(weights - point))
            row: dict[str, list[float]] = {name: [] for name in names}
            mean = torch.zeros_like(weights, dtype=torch.float64)
            for u, dense in enumerate(each):
                there = self.gradients.device(point, u)[1]
                masked = there * keep
                mean += float(self.weight[u]) * masked
                row["error"].append(_square(dense - masked))
                row["progress"].append(_dot(total, masked))
                row["hidden"].append(_square(dense * ~keep))
                row["steepness"].append(math.sqrt(_square(dense - there)) / distance if distance > 0.0 else 0.0)
                low, high = torch.aminmax(masked)
                span[u] = max(span[u], float(high) - float(low))
            for name in names:
                out[name].append(row[name])
            out["ratios"].append(mask.ratio)
            out["removed"].append(mask.distortion(weights))
            out["bias"].append(_square(total - mean))
        return {**out, "span": span}

    def _evidence(self, weights: Tensor) -> Evidence | None:
        if not self.pruner.mask_needs:
            return None
        batches, explorers = [], None
        for u in range(len(self.task)):
            inputs, labels = self.losses.samples_of(u)
            rows = torch.from_numpy(self.rng.permutation(len(labels))[:_EVIDENCE])
            batches.append(Batch(inputs[rows], labels[rows], float(self.task.samples[u])))
        if "explorers" in self.pruner.mask_needs:
            reached = []
            for u in range(min(_EXPLORERS, len(self.task))):
                point = weights
                for _ in range(_EXPLORER_STEPS):
                    point = point - self.rate * self.gradients.device(point, u)[1]
                reached.append(point)
            explorers = torch.stack(reached)
        return Evidence(
            deepcopy(self.task.module),
            weights,
            batches,
            self.task.loss,
            initial=self.losses.start,
            explorers=explorers,
            generator=self.generator,
        )

    def _batches(self, weights: Tensor, each: list[Tensor]) -> tuple[list[Tensor], list[float]]:
        """Return what devices would quantize, and the variance of one sample's gradient."""
        out, variance = [], []
        for u, dense in enumerate(each):
            count = int(self.task.samples[u])
            most = self.task.batch_size
            size = min(most or 32, max(count // 2, 1)) if most is None or most >= count else most
            if count == 1:
                out.append(dense)
                variance.append(0.0)
                continue
            rows = self.rng.choice(count, size, replace=False)
            batch = self.gradients.device(weights, u, rows)[1]
            # of batches drawn without replacement
            variance.append(_square(batch - dense) * size / (1.0 - size / count))
            out.append(dense if most is None or most >= count else batch)
        return out, variance

    def _curvature(self, weights: Tensor, each: list[Tensor], batches: list[Tensor], total: Tensor) -> dict[str, Any]:
        rounder = codec("uniform")
        noisy = [rounder.simulate(batch, _BITS, self.generator) - batch for batch in batches]
        size, lost = len(each), torch.zeros_like(total)
        if size > 1:
            silent = self.rng.permutation(size)[: min(max(round(_LOSS * size), 1), size - 1)]
            heard = self.weight.copy()
            heard[silent] = 0.0
            lost = _mean(heard / heard.sum(), each) - total
        curvature, bending = [], []
        for noise in (_mean(self.weight, noisy), _mean(self.weight, batches) - total, lost):
            length = math.sqrt(_square(noise))
            if length <= 1e-6 * math.sqrt(_square(total)):
                curvature.append(0.0)
                bending.append(0.0)
                continue
            direction = noise / length
            step = _PROBE * max(1.0, math.sqrt(_square(weights)))
            bent = (self.everyone(weights + step * direction)[2] - total) / step
            curvature.append(_dot(direction, bent))
            bending.append(_square(bent))
        return {"curvature": curvature, "bending": bending}


def observe(
    task: Task,
    *,
    rounds: int,
    learning_rate: float,
    seed: int,
    pruner: Pruner,
    ratios: Sequence[float],
    bits: Sequence[int],
    points: int,
    samples: int | None,
) -> Walk:
    """Take the warm-up and observe it; arguments as in `jointopt.study.calibration.calibrate`, and checked there.

    Raises
    ------
    InputError
        The warm-up diverges.
    """
    counts = task.samples.astype(np.float64)
    if samples is not None:
        rng = np.random.default_rng([seed, 1])
        parts = [part if len(part) <= samples else rng.choice(part, samples, replace=False) for part in task.parts]
        task = replace(task, parts=tuple(parts))
    observer = _Observer(task, pruner, ratios, bits, learning_rate, seed)
    observer.weight = counts / counts.sum()
    weights = observer.losses.start.clone()
    at = sorted({round(place) for place in np.linspace(0, rounds, points).tolist()})
    loss, square = [], []
    for number in range(rounds + 1):
        value, each, total = observer.everyone(weights)
        if not (math.isfinite(value) and bool(torch.isfinite(total).all())):
            raise InputError(f"calibrate: diverged after {number} rounds; try a learning rate below {learning_rate:g}")
        loss.append(value)
        square.append(_square(total))
        if number in at:
            observer.look(weights, each, total)
        weights = weights - learning_rate * total
    found = {name: np.array(values, dtype=np.float64) for name, values in observer.found.items()}
    return Walk(
        weight=observer.weight,
        samples=counts,
        loss=np.array(loss),
        square=np.array(square),
        at=np.array(at, dtype=np.float64),
        bits=np.array(bits, dtype=np.float64),
        ratios=found.pop("ratios").mean(axis=0),
        **found,
    )

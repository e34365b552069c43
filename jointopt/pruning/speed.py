"""What pruning really saves: time and memory of training steps, measured, and the law fitted to them.

Models multiply the work of a step by 1 - ratio. A mask saves nothing of that, a narrower module saves less than
all; `SpeedCurve.floor` is the share that stays however much is pruned.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from jointopt.errors import InputError, is_real, is_whole
from jointopt.pruning.groups import Groups
from jointopt.pruning.layout import Layout
from jointopt.pruning.mask import Mask

__all__ = ["SpeedCurve", "fit_floor", "measure_speedup", "spread_masks", "step_bytes"]

Loss = Callable[[Tensor, Tensor], Tensor]


class _Rule(Protocol):
    """What a `Pruner` offers here."""

    def groups(self, module: nn.Module, example: Tensor, /) -> Groups: ...

    def masks(
        self, groups: Groups, weights: Tensor, ratios: Sequence[float], *, generator: torch.Generator
    ) -> list[Mask]: ...


@dataclass(frozen=True)
class SpeedCurve:
    """Costs of a training step by pruning ratio, as shares of the dense step's.

    Attributes
    ----------
    granularity : str
        What was removed.
    ratios : tuple of float
        Shares of the prunable weights really removed.
    factors : tuple of float
        Time of a step.
    memory : tuple of float
        Bytes of a step, see `step_bytes`.
    payload : tuple of float
        Parameters that are left.
    macs : tuple of float
        Multiplications that are left; those of masked weights are not counted.
    seconds : float
        Time of the dense step.
    dense_bytes : int
        Bytes of the dense step.
    """

    granularity: str
    ratios: tuple[float, ...]
    factors: tuple[float, ...]
    memory: tuple[float, ...]
    payload: tuple[float, ...]
    macs: tuple[float, ...]
    seconds: float
    dense_bytes: int

    @property
    def floor(self) -> float:
        """Share of the dense step's time that no pruning saves, see `fit_floor`."""
        return fit_floor(self.ratios, self.factors)

    @property
    def memory_floor(self) -> float:
        """Share of the dense step's memory that no pruning saves."""
        return fit_floor(self.ratios, self.memory)


def fit_floor(ratios: ArrayLike, factors: ArrayLike) -> float:
    """Fit ``factor = floor + (1 - floor) (1 - ratio)`` by least squares, with the floor in [0, 1].

    Parameters
    ----------
    ratios
        Shares of the weights removed, in [0, 1], not all 0, shape [n].
    factors
        Costs as shares of the dense cost, shape [n].

    Raises
    ------
    InputError
        The values cannot be fitted.
    """
    ratio, factor = np.asarray(ratios, dtype=np.float64), np.asarray(factors, dtype=np.float64)
    if ratio.ndim != 1 or ratio.shape != factor.shape:
        raise InputError(f"ratios and factors must have one shape [n], found {ratio.shape} and {factor.shape}")
    if not (((ratio >= 0) & (ratio <= 1)).all() and ratio.any()):
        raise InputError(f"ratios must lie in [0, 1] and not all be 0, found {ratio.tolist()}")
    if not (np.isfinite(factor) & (factor >= 0)).all():
        raise InputError(f"factors must be finite and at least 0, found {factor.tolist()}")
    # The law is linear in its one unknown: factor - (1 - ratio) = floor x ratio.
    floor = float(ratio @ (factor - (1 - ratio))) / float(ratio @ ratio)
    return min(1.0, max(0.0, floor))


def spread_masks(groups: Groups, ratios: Sequence[float], seed: int) -> list[Mask]:
    """Return nested masks that remove the same share of units from each layer, drawn at random.

    Of all such masks each is the first that removes at least its ratio of the prunable weights; the one that removes
    most, where none does.

    Parameters
    ----------
    groups : Groups
        The units.
    ratios : sequence of float
        Shares of the prunable weights to remove, in [0, 1].
    seed : int
        Seed of the draw, at least 0.

    Raises
    ------
    InputError
        A value is out of its range.
    """
    for ratio in ratios:
        if not (is_real(ratio) and 0 <= ratio <= 1):
            raise InputError(f"ratios must lie in [0, 1], found {ratio!r}")
    if not (is_whole(seed) and 0 <= seed < 2**63):
        raise InputError(f"seed must be a whole number in 0 .. 2**63 - 1, found {seed!r}")
    draw = torch.rand(len(groups), dtype=torch.float64, generator=torch.Generator().manual_seed(int(seed)))
    sizes = torch.bincount(groups.layer, minlength=len(groups.layers))
    order = torch.argsort(draw)
    order = order[torch.argsort(groups.layer[order], stable=True)]
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order)) - (torch.cumsum(sizes, 0) - sizes)[groups.layer[order]]
    share = (rank + 1).to(torch.float64) / sizes[groups.layer]
    share[rank >= (sizes - groups.at_least)[groups.layer]] = 2.0  # stays whatever the ratio
    shares = torch.cat([torch.zeros(1, dtype=torch.float64), torch.unique(share[share <= 1])]).tolist()
    masks = []
    for ratio in ratios:
        most = (1 - ratio) * groups.weights + 1e-6  # weights that may be left; a rounding error is none
        low, high = 0, len(shares) - 1
        while low < high:
            middle = (low + high) // 2
            if groups.kept_weights(share > shares[middle]) <= most:
                high = middle
            else:
                low = middle + 1
        masks.append(Mask(groups, share > shares[low]))
    return masks


def step_bytes(module: nn.Module, inputs: Tensor, labels: Tensor, loss: Loss) -> int:
    """Return the bytes that a training step needs: parameters, their gradients, buffers, and what the backward needs.

    Counted, not measured, and so the same on every run: all tensors saved for the backward, each memory once.
    """
    held = {p.untyped_storage().data_ptr() for p in (*module.parameters(), *module.buffers())}
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in held:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor  # keeps the memory, so that no address comes twice

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        value = loss(module(inputs), labels)
    del value
    weights = sum(p.numel() * p.element_size() * (2 if p.requires_grad else 1) for p in module.parameters())
    return weights + sum(b.numel() * b.element_size() for b in module.buffers()) + sum(saved.values())


class _Step:
    """A training step of what a mask leaves."""

    def __init__(self, mask: Mask | None, module: nn.Module, rate: float) -> None:
        self.rate = rate
        self.keeps: dict[str, Tensor] = {}
        if mask is None:
            self.module = copy.deepcopy(module)
        elif mask.structured:
            self.module = mask.narrow()
        else:
            self.module = copy.deepcopy(module)
            self.keeps = {
                entry.name: mask.keep[entry.where].view(entry.shape).float() for entry in mask.groups.layout.layers
            }
            with torch.no_grad():
                for name, parameter in self.module.named_parameters():
                    if name in self.keeps:
                        parameter.mul_(self.keeps[name])
        self.module.train()

    def run(self, inputs: Tensor, labels: Tensor, loss: Loss, clock: Callable[[], float]) -> float:
        """Do one step and return its seconds."""
        start = clock()
        loss(self.module(inputs), labels).backward()
        with torch.no_grad():
            for name, parameter in self.module.named_parameters():
                if parameter.grad is not None:
                    if name in self.keeps:
                        parameter.grad *= self.keeps[name]
                    parameter.sub_(parameter.grad, alpha=self.rate)
                    parameter.grad = None
        return clock() - start


def measure_speedup(
    module: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    loss: Loss,
    how: Groups | _Rule,
    ratios: Sequence[float] = (0.0, 0.25, 0.5, 0.75, 0.9),
    repeats: int = 5,
    seed: int = 0,
    clock: Callable[[], float] = time.perf_counter,
) -> SpeedCurve:
    """Measure steps of gradient descent on the pruned module against those on the dense one.

    The steps run by turns, the dense one included, and of each the fastest counts: other work on the machine can only
    make a step slower. Threads are as the caller set them.

    Parameters
    ----------
    module : Module
        The dense module; left as it is.
    inputs, labels : Tensor
        One batch, shapes [N, ...].
    loss : callable
        ``loss(outputs, labels)``, a scalar.
    how : Groups or Pruner
        Groups of this module, from which masks are spread evenly (`spread_masks`); or a rule that makes masks.
    ratios : sequence of float
        Shares of the prunable weights to remove, in [0, 1].
    repeats : int
        Measured steps of each; one more comes first, unmeasured.
    seed : int
        Seed of the masks.
    clock : callable
        Tells the time in seconds; ``time.process_time`` counts what the process itself works, which other work on the
        machine disturbs less.

    Returns
    -------
    SpeedCurve
        At the ratios really reached.

    Raises
    ------
    InputError
        A value is out of its range, or the groups are those of another module.
    """
    if not (is_whole(repeats) and repeats >= 1):
        raise InputError(f"repeats must be a whole number of at least 1, found {repeats!r}")
    if len(ratios) == 0:
        raise InputError("ratios must not be empty")
    if isinstance(how, Groups):
        if how.module is not module:
            raise InputError("how: the groups are those of another module")
        groups = how
        masks = spread_masks(groups, ratios, seed)
    else:
        groups = how.groups(module, inputs[:1])
        generator = torch.Generator().manual_seed(seed)
        masks = how.masks(groups, Layout.flatten(module), ratios, generator=generator)
    steps = [_Step(mask, module, 1e-4) for mask in (None, *masks)]
    sizes = [step_bytes(step.module, inputs, labels, loss) for step in steps]
    for step in steps:
        step.run(inputs, labels, loss, clock)
    best = [float("inf")] * len(steps)
    for _ in range(repeats):
        for number, step in enumerate(steps):
            best[number] = min(best[number], step.run(inputs, labels, loss, clock))
    return SpeedCurve(
        granularity=groups.granularity,
        ratios=tuple(mask.ratio for mask in masks),
        factors=tuple(seconds / best[0] for seconds in best[1:]),
        memory=tuple(size / sizes[0] for size in sizes[1:]),
        payload=tuple((mask.kept + mask.unpruned) / groups.layout.size for mask in masks),
        macs=tuple(mask.macs / mask.dense_macs for mask in masks) if groups.uses is not None else (),
        seconds=best[0],
        dense_bytes=sizes[0],
    )

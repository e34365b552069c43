"""What can be removed from a module, and what follows when it is.

A *unit* is the least that a granularity removes: one weight, a channel with everything that depends on it, a whole
block. `Groups` says which entries of the flat weight vector stay when some units are kept; counting and costs
follow from that alone, whatever the units are.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor, nn

from jointopt.errors import InputError
from jointopt.pruning.layout import Layout
from jointopt.pruning.statistics import evaluating, weight_layers

__all__ = ["Groups", "WeightGroups", "uses_per_sample"]


class Groups(ABC):
    """The prunable units of a module.

    Attributes
    ----------
    module : Module
        The dense module; never changed.
    layout : Layout
        Its flat weight vector.
    layers : tuple of str
        Names of the layers that units belong to.
    layer : int64 tensor, shape [units]
        Which of `layers` each unit belongs to.
    uses : float64 tensor, shape [P], or None
        How often each parameter is multiplied per sample: 1 in a linear layer, height x width of the output in a
        convolution; 0 for what is not a prunable weight. None where no example input was given.
    example : Tensor or None
        The example input.
    """

    granularity: ClassVar[str]
    structured: ClassVar[bool]
    """Whether what is removed makes tensors smaller, so that time and memory fall."""
    additive: ClassVar[bool] = False
    """Whether removing some units removes the sum of their `sizes`; where units overlap, it removes less."""

    def __init__(self, module: nn.Module, example: Tensor | None) -> None:
        self.module = module
        self.layout = Layout.of(module)
        if self.layout.weights == 0:
            raise InputError("pruning: the network has no linear or convolution layer, so nothing could be pruned")
        self.prunable = self.layout.prunable_mask()
        self.example = example
        self.uses = None if example is None else uses_per_sample(module, self.layout, example)
        self.layers: tuple[str, ...] = ()
        self.layer: Tensor = torch.zeros(0, dtype=torch.int64)

    def __len__(self) -> int:
        return len(self.layer)

    @property
    def weights(self) -> int:
        """Number of weights that may be pruned, V."""
        return self.layout.weights

    @abstractmethod
    def expand(self, units: Tensor) -> Tensor:
        """Return which parameters stay, bool [P], when the units marked True, bool [units], are kept."""

    def expand_buffers(self, units: Tensor) -> Tensor:
        """Return which buffer entries stay, bool [B]."""
        return torch.ones(self.layout.buffer_size, dtype=torch.bool)

    @abstractmethod
    def reduce(self, values: Tensor) -> Tensor:
        """Sum values of all parameters, [P], over the *prunable* weights of each unit; shape [units]."""

    def narrow(self, units: Tensor) -> nn.Module:
        """Return a copy of the module without the removed units; its parameters in order are ``flat[expand(units)]``.

        Where nothing gets smaller (`structured` is False) this is a copy of the dense module.
        """
        raise InputError(f"pruning: granularity '{self.granularity}' removes no part of a tensor; masks are applied")

    @property
    def at_least(self) -> Tensor:
        """Units of each layer that must stay, int64 [layers]."""
        return torch.zeros(len(self.layers), dtype=torch.int64)

    def kept_weights(self, units: Tensor) -> int:
        """Return how many prunable weights are left."""
        return int((self.expand(units) & self.prunable).sum())

    def signature(self, units: Tensor) -> tuple[int, ...]:
        """Return what the shapes of `narrow` depend on: equal signatures, equal shapes."""
        return tuple(self.layer_counts(units).tolist())

    def layer_counts(self, units: Tensor) -> Tensor:
        """Return how many of the units marked True, bool [units], each layer has; int64 [layers]."""
        return torch.bincount(self.layer[units], minlength=len(self.layers))

    def sizes(self) -> Tensor:
        """Return the prunable weights that each unit alone would remove, int64 [units]."""
        return self.reduce(torch.ones(self.layout.size, dtype=torch.float64)).round().to(torch.int64)


class WeightGroups(Groups):
    """Every weight of a linear or convolution layer for itself.

    Parameters
    ----------
    module : Module
        What is pruned.
    example : Tensor, optional
        One input, shape [1, ...], from which multiplications are counted.
    """

    granularity: ClassVar[str] = "weight"
    structured: ClassVar[bool] = False
    additive: ClassVar[bool] = True

    def __init__(self, module: nn.Module, example: Tensor | None = None) -> None:
        super().__init__(module, example)
        self.layers = tuple(entry.name for entry in self.layout.layers)
        self.layer = torch.repeat_interleave(
            torch.arange(len(self.layers)), torch.tensor([entry.size for entry in self.layout.layers])
        )

    def expand(self, units: Tensor) -> Tensor:
        """Return which parameters stay, bool [P]."""
        keep = torch.ones(self.layout.size, dtype=torch.bool)
        for entry, part in zip(self.layout.layers, self._parts(units), strict=True):
            keep[entry.where] = part
        return keep

    def reduce(self, values: Tensor) -> Tensor:
        """Return the values of the prunable weights, [units]."""
        return torch.cat([values[entry.where] for entry in self.layout.layers])

    def kept_weights(self, units: Tensor) -> int:
        """Return how many prunable weights are left."""
        return int(torch.count_nonzero(units))

    def layer_counts(self, units: Tensor) -> Tensor:
        """Return how many of the units marked True, bool [units], each layer has; int64 [layers]."""
        return torch.stack([torch.count_nonzero(part) for part in self._parts(units)])

    def _parts(self, units: Tensor) -> tuple[Tensor, ...]:
        # By slices: picking 10 million entries by a bool mask takes longer than finding the mask.
        return units.split([entry.size for entry in self.layout.layers])

    def sizes(self) -> Tensor:
        """Return 1 for every unit."""
        return torch.ones(len(self), dtype=torch.int64)


def uses_per_sample(module: nn.Module, layout: Layout, example: Tensor) -> Tensor:
    """Return how often each parameter is multiplied per sample of the example [N, ...], float64 [P].

    Counted with forward hooks on linear and convolution layers; a layer that is never called counts 0.
    """
    positions: dict[str, float] = {}
    handles = []

    def counter(name: str) -> Callable[[nn.Module, object, Tensor], None]:
        def count(layer: nn.Module, _: object, output: Tensor) -> None:
            outputs = output.shape[-1] if isinstance(layer, nn.Linear) else output.shape[1]
            positions[name] = positions.get(name, 0.0) + output.numel() / outputs / len(example)

        return count

    for name, layer in weight_layers(module):
        handles.append(layer.register_forward_hook(counter(name)))
    try:
        with torch.no_grad(), evaluating(module):
            module(example)
    finally:
        for handle in handles:
            handle.remove()
    uses = torch.zeros(layout.size, dtype=torch.float64)
    for entry in layout.layers:
        uses[entry.where] = positions.get(entry.name, 0.0)
    return uses

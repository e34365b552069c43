"""The flat weight vector of a module: which entries belong to which parameter, and which may be pruned.

Everything that prunes, sends or averages weights works on one vector of the module's parameters in the order of
``named_parameters()``, and on one of its floating-point buffers (running statistics) in the order of
``named_buffers()``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

__all__ = ["Layout", "prunable"]


def prunable(module: nn.Module) -> dict[str, bool]:
    """Tell for each named parameter whether it may be pruned, in the order of ``named_parameters()``.

    The weights of linear and convolution layers may; biases, normalisation parameters and all else never.
    """
    weights = {id(layer.weight) for layer in module.modules() if isinstance(layer, nn.Linear | _ConvNd)}
    return {name: id(parameter) in weights for name, parameter in module.named_parameters()}


@dataclass(frozen=True)
class Entry:
    """One parameter or buffer: its name, shape, and place in the flat vector."""

    name: str
    shape: tuple[int, ...]
    start: int
    prunable: bool

    @property
    def size(self) -> int:
        """Number of entries."""
        return math.prod(self.shape)

    @property
    def where(self) -> slice:
        """Its place in the flat vector."""
        return slice(self.start, self.start + self.size)


@dataclass(frozen=True)
class Layout:
    """Parameters and floating-point buffers of a module, as places in two flat vectors."""

    parameters: tuple[Entry, ...]
    buffers: tuple[Entry, ...]

    @classmethod
    def of(cls, module: nn.Module) -> Layout:
        """Return the layout of a module."""
        may = prunable(module)
        return cls(
            tuple(_entries((n, p, may[n]) for n, p in module.named_parameters())),
            tuple(_entries((n, b, False) for n, b in module.named_buffers() if b.is_floating_point())),
        )

    @property
    def size(self) -> int:
        """Number of parameters, P."""
        return sum(entry.size for entry in self.parameters)

    @property
    def buffer_size(self) -> int:
        """Number of floating-point buffer entries, B."""
        return sum(entry.size for entry in self.buffers)

    @property
    def weights(self) -> int:
        """Number of weights that may be pruned, V."""
        return sum(entry.size for entry in self.parameters if entry.prunable)

    @property
    def layers(self) -> tuple[Entry, ...]:
        """The parameters that may be pruned."""
        return tuple(entry for entry in self.parameters if entry.prunable)

    def prunable_mask(self) -> Tensor:
        """Return which parameters may be pruned, bool, shape [P]."""
        out = torch.zeros(self.size, dtype=torch.bool)
        for entry in self.layers:
            out[entry.where] = True
        return out

    def split(self, flat: Tensor) -> dict[str, Tensor]:
        """Return views of a flat vector [P] by parameter name, in the parameters' shapes."""
        return {entry.name: flat[entry.where].view(entry.shape) for entry in self.parameters}

    def split_buffers(self, flat: Tensor) -> dict[str, Tensor]:
        """Return views of a flat vector [B] by buffer name, in the buffers' shapes."""
        return {entry.name: flat[entry.where].view(entry.shape) for entry in self.buffers}

    @staticmethod
    def flatten(module: nn.Module) -> Tensor:
        """Return a copy of the module's parameters as one float32 vector [P]."""
        return _flat([p for _, p in module.named_parameters()])

    @staticmethod
    def flatten_buffers(module: nn.Module) -> Tensor:
        """Return a copy of the module's floating-point buffers as one float32 vector [B]."""
        return _flat([b for _, b in module.named_buffers() if b.is_floating_point()])


def _entries(named: Iterator[tuple[str, Tensor, bool]]) -> Iterator[Entry]:
    start = 0
    for name, tensor, may in named:
        yield Entry(name, tuple(tensor.shape), start, may)
        start += tensor.numel()


def _flat(tensors: list[Tensor]) -> Tensor:
    if not tensors:
        return torch.zeros(0)
    return torch.cat([tensor.detach().reshape(-1).to(torch.float32) for tensor in tensors])

"""Channels: an output channel of a layer together with everything that goes when it goes.

A unit is one index of a group of coupled channels: the filters that make it (in all layers whose outputs are added),
its normalisation and running statistics, and the columns of all layers that read it. Removing it makes these
tensors really smaller, and the smaller module computes what the dense one computes with the unit's weights at zero.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Collection
from typing import ClassVar

import torch
from torch import Tensor, nn

from jointopt.errors import InputError, is_whole, nearest
from jointopt.pruning.coupling import Axis, Coupling, bare_copy, couple
from jointopt.pruning.groups import Groups, uses_per_sample
from jointopt.pruning.layout import Entry

__all__ = ["ChannelGroups"]

_TOLERANCE = 1e-4
"""Largest relative difference between the narrower module and the dense one with zeros, in float32."""


class ChannelGroups(Groups):
    """The coupled channels of a module.

    Found by tracing a copy of the module (`jointopt.pruning.coupling`) and then tried: the channels of a layer that do
    not leave a working module that computes the same as with zeros are not units. So never removed are the outputs of
    the module, inputs, channels that a layer or group normalisation mixes, attention heads, embeddings, and channels
    whose number is written into the module's ``forward``.

    Parameters
    ----------
    module : Module
        What is pruned; never changed.
    example : Tensor
        Inputs of the shape the module takes, shape [N, ...].
    frozen : collection of str
        Names of layers that keep all their output channels.
    min_channels : int
        Units of each layer that always stay, at least 1.
    group_norm : bool
        Whether channels behind a group normalisation are units too. The normalisation keeps its groups, so that
        the channels at the same place of all groups go together, and its means are over what is left: there, and
        only there, the narrower module differs from the dense one with zeros.

    Attributes
    ----------
    layers : tuple of str
        One name for each set of channels that are removed from the same tensors: that of the first layer making them.
    coupling : Coupling
        Which index of which tensor follows which unit.

    Raises
    ------
    InputError
        The module does not accept the example, a name is not one of a layer, or no channel can be removed.
    MissingExtraError
        The package torch-pruning is not installed.
    """

    granularity: ClassVar[str] = "channel"
    structured: ClassVar[bool] = True

    def __init__(
        self,
        module: nn.Module,
        example: Tensor,
        *,
        frozen: Collection[str] = (),
        min_channels: int = 1,
        group_norm: bool = False,
    ) -> None:
        if not isinstance(example, Tensor) or example.ndim < 1 or len(example) < 1:
            raise InputError(f"example must be a batch of at least one input, found {_shape(example)}")
        if not (is_whole(min_channels) and min_channels >= 1):
            raise InputError(f"min_channels must be a whole number of at least 1, found {min_channels!r}")
        if not isinstance(group_norm, bool):
            raise InputError(f"group_norm must be True or False, found {group_norm!r}")
        names = [name for name, layer in module.named_modules() if _weighted(layer)]
        for name in frozen:
            if name not in names:
                raise InputError(f"frozen: no linear or convolution layer '{name}'{nearest(str(name), names)}")
        coupling = couple(module, example.detach(), frozen, group_norm=group_norm)
        super().__init__(module, None)
        self.example = example
        # On a copy: the module's hooks would count this call, and its parts may differ in their modes.
        self.uses = uses_per_sample(bare_copy(module), self.layout, example)
        self._take(coupling, min_channels)
        self._try(example, min_channels)
        if len(self) == 0:
            mixed = not group_norm and any(isinstance(part, nn.GroupNorm) for part in module.modules())
            hint = "; group_norm=True admits those behind a group normalisation" if mixed else ""
            raise InputError(f"pruning of channels: the network has no channel that could be removed{hint}")

    def _take(self, coupling: Coupling, min_channels: int) -> None:
        self.coupling = coupling
        self.layers, self.layer = coupling.layers()
        self._at_least = torch.bincount(self.layer, minlength=len(self.layers)).clamp(max=min_channels)
        self._axes: dict[str, list[Axis]] = {}
        for axis in coupling.axes:
            if axis.dim is not None:
                self._axes.setdefault(axis.name, []).append(axis)
        # A weight whose row and column follow the same unit must not be counted twice.
        self._twice: dict[str, tuple[Tensor, Tensor]] = {}
        for name, axes in self._axes.items():
            if len(axes) == 2:
                rows, columns = axes[0].unit, axes[1].unit
                if len(set(rows[rows >= 0].tolist()) & set(columns.tolist())) > 0:
                    both = torch.nonzero((rows[:, None] == columns[None, :]) & (rows[:, None] >= 0))
                    self._twice[name] = (both[:, 0], both[:, 1])

    def _try(self, example: Tensor, min_channels: int) -> None:
        """Keep the layers that can really get narrower, together."""
        generator = torch.Generator().manual_seed(0)
        probe = bare_copy(self.module)
        for part in probe.modules():
            if type(part) is nn.GroupNorm and part.num_groups < part.num_channels:
                part.__class__ = _Affine
        with torch.no_grad():
            for parameter in probe.parameters():
                # Noise, so that nothing is hidden behind a normalisation or bias that starts at zero.
                noise = torch.randn(parameter.shape, generator=generator).to(parameter)
                parameter.add_(noise * (0.5 * parameter.abs().mean() + 0.01))
        inputs = example.detach()
        if inputs.is_floating_point():
            inputs = torch.randn(inputs.shape, generator=generator).to(inputs)
        sizes = torch.bincount(self.layer, minlength=len(self.layers))
        draw = torch.rand(len(self), generator=generator)
        removed = torch.zeros(len(self), dtype=torch.bool)
        for layer in torch.nonzero(sizes > self.at_least)[:, 0].tolist():
            of = torch.nonzero(self.layer == layer)[:, 0]
            most = int(sizes[layer] - self.at_least[layer])
            removed[of[torch.argsort(draw[of])[: max(1, most // 2)]]] = True
        good = sizes > self.at_least
        if not self._same(probe, inputs, ~removed):
            good = torch.zeros_like(good)
            for layer in torch.nonzero(sizes > self.at_least)[:, 0].tolist():
                good[layer] = True
                good[layer] = self._same(probe, inputs, ~(removed & good[self.layer]))
        if not bool(good.all()):
            self._take(self.coupling.only(good[self.layer]), min_channels)

    def _same(self, probe: nn.Module, inputs: Tensor, units: Tensor) -> bool:
        """Tell whether the narrower module computes what the dense one computes with zeros."""
        keep = self.expand(units)
        zeroed = copy.deepcopy(probe)
        with torch.no_grad():
            for entry, parameter in zip(self.layout.parameters, zeroed.parameters(), strict=True):
                parameter.mul_(keep[entry.where].view(entry.shape).to(parameter.device))
            want = zeroed(inputs)
            try:
                found = self._narrow(probe, units)(inputs)
            except (RuntimeError, ValueError, TypeError, IndexError, AssertionError):
                return False  # sizes are written into its code
        return found.shape == want.shape and bool(
            (found - want).abs().max() <= _TOLERANCE * want.abs().max().clamp(min=1e-6)
        )

    def _alive(self, units: Tensor) -> Tensor:
        """Return which units are kept, with True behind the last: that is where -1 points."""
        if units.dtype != torch.bool or units.shape != (len(self),):
            raise InputError(f"units must be bool of shape ({len(self)},), found {_shape(units)}")
        return torch.cat([units.cpu(), torch.ones(1, dtype=torch.bool)])

    @property
    def at_least(self) -> Tensor:
        """Units of each layer that must stay, int64 [layers]."""
        return self._at_least

    def expand(self, units: Tensor) -> Tensor:
        """Return which parameters stay, bool [P]."""
        return self._expand(units, self.layout.parameters, self.layout.size)

    def expand_buffers(self, units: Tensor) -> Tensor:
        """Return which buffer entries stay, bool [B]."""
        return self._expand(units, self.layout.buffers, self.layout.buffer_size)

    def _expand(self, units: Tensor, entries: tuple[Entry, ...], size: int) -> Tensor:
        alive = self._alive(units)
        keep = torch.ones(size, dtype=torch.bool)
        for entry in entries:
            for axis in self._axes.get(entry.name, ()):
                assert axis.dim is not None
                shape = [1] * len(entry.shape)
                shape[axis.dim] = -1
                keep[entry.where].view(entry.shape).logical_and_(alive[axis.unit].view(shape))
        return keep

    def kept_weights(self, units: Tensor) -> int:
        """Return how many prunable weights stay, from the lengths of the dimensions alone."""
        alive = self._alive(units)
        kept = 0
        for entry in self.layout.layers:
            shape = list(entry.shape)
            for axis in self._axes.get(entry.name, ()):
                assert axis.dim is not None
                shape[axis.dim] = int(alive[axis.unit].sum())
            kept += math.prod(shape)
        return kept

    def reduce(self, values: Tensor) -> Tensor:
        """Sum values [P] over the prunable weights that each unit removes when it alone goes; shape [units]."""
        sums = self._sums(values, filters=False)
        for name, (rows, columns) in self._twice.items():
            of = self._axes[name][0].unit[rows]
            sums.index_add_(0, of, -self._table(name, values)[rows, columns])
        return sums

    def reduce_filters(self, values: Tensor) -> Tensor:
        """Sum values [P] over the filters that make each unit's channel, not over what reads it; shape [units]."""
        return self._sums(values, filters=True)

    def _sums(self, values: Tensor, *, filters: bool) -> Tensor:
        if values.shape != (self.layout.size,):
            raise InputError(f"values must have shape ({self.layout.size},), found {_shape(values)}")
        sums = values.new_zeros(len(self) + 1)
        for entry in self.layout.layers:
            for axis in self._axes.get(entry.name, ()):
                if axis.filters or not filters:
                    assert axis.dim is not None
                    others = [dim for dim in range(len(entry.shape)) if dim != axis.dim]
                    slices = values[entry.where].view(entry.shape).sum(dim=others)
                    # What follows no unit goes to the place behind the last.
                    sums.index_add_(0, axis.unit % (len(self) + 1), slices)
        return sums[:-1]

    def _table(self, name: str, values: Tensor) -> Tensor:
        """Return the values of a tensor summed over all but its two coupled dimensions, in the order of its axes."""
        entry = next(entry for entry in self.layout.layers if entry.name == name)
        dims = [axis.dim for axis in self._axes[name]]
        others = [dim for dim in range(len(entry.shape)) if dim not in dims]
        table = values[entry.where].view(entry.shape)
        table = table.sum(dim=others) if others else table
        return table if dims[0] == 0 else table.T

    def narrow(self, units: Tensor) -> nn.Module:
        """Return a copy of the module without the removed channels.

        Its parameters in order are ``flat[expand(units)]``, its floating-point buffers
        ``flat_buffers[expand_buffers(units)]``.

        Raises
        ------
        InputError
            A layer would keep fewer than its `at_least` channels.
        """
        self._alive(units)
        kept = self.layer_counts(units)
        short = torch.nonzero(kept < self.at_least)[:, 0]
        if len(short):
            layer = int(short[0])
            raise InputError(
                f"layer '{self.layers[layer]}' must keep at least {int(self.at_least[layer])} channels, "
                f"found {int(kept[layer])}"
            )
        return self._narrow(self.module, units)

    def _narrow(self, module: nn.Module, units: Tensor) -> nn.Module:
        alive = self._alive(units)
        memo: dict[int, object] = {}
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            axes = self._axes.get(name, ())
            if axes:
                part = tensor.detach()
                for axis in axes:
                    assert axis.dim is not None
                    part = part.index_select(axis.dim, torch.nonzero(alive[axis.unit])[:, 0].to(part.device))
                is_parameter = isinstance(tensor, nn.Parameter)
                memo[id(tensor)] = nn.Parameter(part, requires_grad=tensor.requires_grad) if is_parameter else part
        # Copying with the smaller tensors in place of the dense ones keeps shared tensors shared.
        narrower = copy.deepcopy(module, memo)
        for axis in self.coupling.axes:
            if axis.dim is None:
                setattr(narrower.get_submodule(axis.name), axis.attribute, int(alive[axis.unit].sum()))
        return narrower


class _Affine(nn.GroupNorm):
    """A group normalisation without its means, so that what is left can be compared exactly."""

    def forward(self, input: Tensor) -> Tensor:  # the base class names it so
        if not self.affine:
            return input
        shape = [1, -1] + [1] * (input.ndim - 2)
        return input * self.weight.view(shape) + self.bias.view(shape)


def _weighted(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Linear | nn.modules.conv._ConvNd)


def _shape(value: object) -> str:
    return f"{value.dtype} of shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)

"""Which channels of a module must go together: the dependency graph, read once and kept as index tables.

Source: Fang et al., *DepGraph: Towards Any Structural Pruning* (2023), by way of the package torch-pruning. The graph
is traced on a copy; what stays of it is, for every dimension of every tensor, which unit each index belongs to.
"""

from __future__ import annotations

import copy
import importlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from jointopt.errors import InputError, MissingExtraError

__all__ = ["Axis", "Coupling", "bare_copy", "couple"]


@dataclass(frozen=True, eq=False)
class Axis:
    """One dimension of a parameter or buffer, or a size that a layer remembers.

    Attributes
    ----------
    name : str
        Name of the tensor, or of the layer where `dim` is None.
    dim : int or None
        The dimension; None for a remembered size.
    attribute : str
        Name of the remembered size, such as "out_channels"; "" for a tensor.
    filters : bool
        Whether a slice along this dimension is what makes one output channel of a linear or convolution layer.
    unit : int64 tensor, shape [length of the dimension]
        Which unit each index follows; -1 where it always stays.
    """

    name: str
    dim: int | None
    attribute: str
    filters: bool
    unit: Tensor


@dataclass(frozen=True, eq=False)
class Coupling:
    """All axes that follow some unit, and how many units there are."""

    units: int
    axes: tuple[Axis, ...]

    def layers(self) -> tuple[tuple[str, ...], Tensor]:
        """Group units that shorten the same axes by the same: return the groups' names, and each unit's, int64 [units].

        A group is named after the first layer whose outputs its units are. So a group that keeps a unit keeps an index
        of every axis it touches, and the number of units kept tells all shapes.
        """
        if self.units == 0:
            return (), torch.zeros(0, dtype=torch.int64)
        touched = torch.stack([torch.bincount(axis.unit[axis.unit >= 0], minlength=self.units) for axis in self.axes])
        _, first, inverse = np.unique(touched.numpy(), axis=1, return_index=True, return_inverse=True)
        order = np.argsort(first)  # groups in the order of their first unit
        rank = np.empty_like(order)
        rank[order] = np.arange(len(order))
        names: list[str] = []
        for unit in first[order]:
            rows = torch.nonzero(touched[:, int(unit)])[:, 0].tolist()
            name = next(self.axes[row].name for row in rows if self.axes[row].filters).rpartition(".")[0]
            same = sum(other.partition("#")[0] == name for other in names)
            names.append(f"{name}#{same + 1}" if same else name)
        return tuple(names), torch.from_numpy(rank[inverse.reshape(-1)].astype(np.int64))

    def only(self, units: Tensor) -> Coupling:
        """Return the coupling of the marked units alone, bool [units]; what followed the others always stays."""
        number = torch.cumsum(units, 0) - 1
        number[~units] = -1
        number = torch.cat([number, torch.tensor([-1])])  # so that -1 stays -1
        axes = (Axis(a.name, a.dim, a.attribute, a.filters, number[a.unit]) for a in self.axes)
        return Coupling(int(units.sum()), tuple(axis for axis in axes if bool((axis.unit >= 0).any())))


def bare_copy(module: nn.Module) -> nn.Module:
    """Return a copy in evaluation mode without hooks, all of whose floating-point parameters take gradients."""
    bare = copy.deepcopy(module).eval()
    for part in bare.modules():
        # A hook of the caller's would see calls that are none of its business. There is no public way to drop them all.
        for name, value in vars(part).items():
            if name.endswith("_hooks") and hasattr(value, "clear"):
                value.clear()
    for parameter in bare.parameters():
        parameter.grad = None
        parameter.requires_grad_(parameter.is_floating_point())
    return bare


Slot = tuple[str, int | None, str, bool]
"""name, dim, attribute and filters of an `Axis`."""


def couple(module: nn.Module, example: Tensor, frozen: Collection[str] = (), *, group_norm: bool = False) -> Coupling:
    """Trace a module and return which indices go together.

    Not followed, and so never removed: the model's outputs, outputs of the layers named in `frozen`, all that is tied
    to a grouped convolution, an attention, a recurrent layer, an embedding, or to a normalisation that mixes channels.

    Parameters
    ----------
    module : Module
        Left as it is; a copy is traced.
    example : Tensor
        One input, shape [N, ...].
    frozen : collection of str
        Names of layers that keep all their outputs.
    group_norm : bool
        Whether to follow channels through a group normalisation; those at the same place of all its groups go together.

    Returns
    -------
    Coupling
        Units are numbered in the order of their first index in the parameters.

    Raises
    ------
    MissingExtraError
        The package torch-pruning is not installed.
    InputError
        The module does not accept the example, or does not return one tensor.
    """
    try:
        tp = importlib.import_module("torch_pruning")
    except ImportError:
        raise MissingExtraError("torch-pruning", "pruning", "pruning of channels") from None
    bare = bare_copy(module)
    try:
        with torch.enable_grad():
            output = bare(example)
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        raise InputError(
            f"example: the module does not accept an input of shape {tuple(example.shape)}: {error}"
        ) from None
    if not isinstance(output, Tensor) or output.grad_fn is None:
        raise InputError("pruning of channels: the module must return one tensor that depends on its parameters")
    with torch.enable_grad():
        # clone: with an operation of its own behind the last layer, the outputs are a node of the graph.
        graph = tp.DependencyGraph().build_dependency(bare, (example,), output_transform=torch.clone, verbose=False)
    table = _Table(bare, group_norm)
    for group in graph.get_all_groups():
        table.add(group, graph, tp.ops.OPTYPE)
    for name in frozen:
        table.block(name)
    return table.coupling()


class _Table:
    """Every index of every axis as one node; groups tie nodes together."""

    def __init__(self, module: nn.Module, group_norm: bool) -> None:
        self.group_norm = group_norm
        self.names = {id(part): name for name, part in module.named_modules()}
        tensors = [*module.named_parameters(), *module.named_buffers()]
        self.tensors = {id(tensor): name for name, tensor in tensors}
        # In the order of the parameters, dimension by dimension, so that units are numbered in that order.
        self.start: dict[Slot, int] = {}
        self.length: dict[Slot, int] = {}
        self.nodes = 0
        for part in module.modules():
            for out in (True, False):
                for slot, length in self._slots(part, out) or ():
                    if slot not in self.start:
                        self.start[slot], self.length[slot] = self.nodes, length
                        self.nodes += length
        self.module = module
        self.edges: list[NDArray[np.int64]] = []
        self.traced: list[NDArray[np.int64]] = []
        self.blocked: list[NDArray[np.int64]] = []
        for part in module.modules():
            if isinstance(part, nn.GroupNorm) and group_norm and part.num_groups < part.num_channels:
                # The groups stay and must stay equally large: the first group's channels take the others' along.
                first = self.start[self.names[id(part)], None, "num_channels", False]
                nodes = first + np.arange(part.num_channels).reshape(part.num_groups, -1)
                self.edges += [np.stack([nodes[0], other]) for other in nodes[1:]]

    def add(self, group: Any, graph: Any, kinds: Any) -> None:
        """Tie what a group of the dependency graph ties."""
        transparent = {
            kinds.CONCAT,
            kinds.SPLIT,
            kinds.ELEMENTWISE,
            kinds.RESHAPE,
            kinds.UNBIND,
            kinds.EXPAND,
            kinds.SLICE,
        }
        root: int | None = None
        roots: list[NDArray[np.int64]] = []
        shrinks = True
        for item in group:
            target = item.dep.target
            if target.type in transparent:
                continue
            slots = self._slots(target.module, graph.is_out_channel_pruning_fn(item.dep.handler))
            if slots is None:
                shrinks = False
                continue
            for slot, _ in slots:
                if root is None:
                    root = self.start[slot]
                at = root + np.asarray(item.root_idxs, dtype=np.int64)
                roots.append(at)
                self.edges.append(np.stack([at, self.start[slot] + np.asarray(item.idxs, dtype=np.int64)]))
        (self.traced if shrinks else self.blocked).extend(roots)

    def block(self, name: str) -> None:
        """Keep all outputs of a layer."""
        for slot, length in self._slots(self.module.get_submodule(name), True) or ():
            self.blocked.append(self.start[slot] + np.arange(length))

    def coupling(self) -> Coupling:
        """Number the connected parts that are traced and not blocked."""
        edges = np.concatenate(self.edges, axis=1) if self.edges else np.zeros((2, 0), dtype=np.int64)
        matrix = coo_array((np.ones(edges.shape[1], dtype=bool), (edges[0], edges[1])), shape=(self.nodes, self.nodes))
        parts, part = connected_components(matrix, directed=False)
        follows = np.zeros(parts, dtype=bool)
        for nodes in self.traced:
            follows[part[nodes]] = True
        for nodes in self.blocked:
            follows[part[nodes]] = False
        kept, first = np.unique(part, return_index=True)
        order = [p for p in kept[np.argsort(first)] if follows[p]]
        number = np.full(parts, -1, dtype=np.int64)
        number[order] = np.arange(len(order))
        axes = [
            Axis(*slot, torch.from_numpy(number[part[start : start + self.length[slot]]]))
            for slot, start in self.start.items()
        ]
        return Coupling(len(order), tuple(axis for axis in axes if bool((axis.unit >= 0).any())))

    def _slots(self, layer: nn.Module, out: bool) -> list[tuple[Slot, int]] | None:
        """Return what gets shorter when outputs (else inputs) of a layer are removed; None where nothing may be."""
        found = list(_shorter(layer, out, self.group_norm))
        if not found:
            return None
        slots: list[tuple[Slot, int]] = []
        length = 0
        for tensor, dim, filters in found:
            if isinstance(tensor, str):
                slots.append(((self.names[id(layer)], None, tensor, False), length or getattr(layer, tensor)))
            elif tensor is not None:
                name = self.tensors.get(id(tensor))
                if name is None:  # computed on each call, as by a parametrisation
                    return None
                length = tensor.shape[dim]
                slots.append(((name, dim, "", filters), length))
        return slots


def _shorter(layer: nn.Module, out: bool, group_norm: bool) -> Iterator[tuple[Tensor | str | None, int, bool]]:
    """Yield tensors with the dimension that gets shorter and whether it is one of filters, then remembered sizes."""
    if isinstance(layer, _ConvNd):
        if layer.groups == layer.in_channels == layer.out_channels > 1:
            yield from ((layer.weight, 0, True), (layer.bias, 0, False))
            yield from ((size, 0, False) for size in ("in_channels", "out_channels", "groups"))
        elif layer.groups == 1:
            transposed = isinstance(layer, _ConvTransposeNd)
            if out:
                yield from ((layer.weight, int(transposed), True), (layer.bias, 0, False), ("out_channels", 0, False))
            else:
                yield from ((layer.weight, int(not transposed), False), ("in_channels", 0, False))
    elif isinstance(layer, nn.Linear):
        if out:
            yield from ((layer.weight, 0, True), (layer.bias, 0, False), ("out_features", 0, False))
        else:
            yield from ((layer.weight, 1, False), ("in_features", 0, False))
    elif isinstance(layer, _NormBase):  # batch and instance norm: each channel for itself
        tensors = (layer.weight, layer.bias, layer.running_mean, layer.running_var)
        yield from ((tensor, 0, False) for tensor in tensors)
        yield "num_features", 0, False
    elif isinstance(layer, nn.GroupNorm):
        alone = layer.num_groups == layer.num_channels  # each channel for itself again
        if alone or group_norm:
            yield from ((layer.weight, 0, False), (layer.bias, 0, False), ("num_channels", 0, False))
            if alone:
                yield "num_groups", 0, False
    elif isinstance(layer, nn.PReLU) and layer.num_parameters > 1:
        yield from ((layer.weight, 0, False), ("num_parameters", 0, False))

"""Layers: whole residual blocks, each of which leaves its input as it is when it is removed."""

from __future__ import annotations

import copy
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from jointopt.errors import InputError, nearest
from jointopt.pruning.coupling import bare_copy
from jointopt.pruning.groups import Groups, uses_per_sample

__all__ = ["MEASURES", "LayerGroups", "representational_change"]

_TOLERANCE = 1e-5
"""Largest relative difference from its input that a block with zero parameters may make."""

MEASURES = ("cka", "cosine")
"""The measures `representational_change` knows."""


class _Skip(nn.Identity):
    """Return the first argument, whatever else the removed block was given (a mask, for instance)."""

    def forward(self, input: Tensor, *_: Any, **__: Any) -> Tensor:  # the base class names it so
        return input


class LayerGroups(Groups):
    """The residual blocks of a module.

    A block is a submodule with weights whose output has the shape of its input and is its input once all its
    parameters are zero: beside the shortcut, nothing is left. That holds for the basic block of a residual network
    whose inputs are not negative, and for a transformer layer that normalises before; not for one that normalises
    behind its sum. Of blocks within each other the innermost are taken.

    Parameters
    ----------
    module : Module
        What is pruned; never changed.
    example : Tensor
        Inputs of the shape the module takes, shape [N, ...].

    Attributes
    ----------
    names : tuple of str, length [units]
        Names of the blocks, in the order of ``named_modules()``.
    layers : tuple of str
        ("blocks",): every block competes with every other, and all of them may go.

    Raises
    ------
    InputError
        The module does not accept the example, or has no such block.
    """

    granularity: ClassVar[str] = "layer"
    structured: ClassVar[bool] = True
    additive: ClassVar[bool] = True

    def __init__(self, module: nn.Module, example: Tensor) -> None:
        if not isinstance(example, Tensor) or example.ndim < 1 or len(example) < 1:
            raise InputError("example must be a batch of at least one input")
        names = _blocks(module, example.detach())
        if not names:
            raise InputError("pruning of layers: the network has no residual block that could be removed")
        super().__init__(module, None)
        self.example = example
        # On a copy: the module's hooks would count this call, and its parts may differ in their modes.
        self.uses = uses_per_sample(bare_copy(module), self.layout, example)
        self.names = names
        self.layers = ("blocks",)
        self.layer = torch.zeros(len(names), dtype=torch.int64)
        self._of = [_unit(entry.name, names) for entry in self.layout.parameters]
        self._of_buffers = [_unit(entry.name, names) for entry in self.layout.buffers]

    def _checked(self, units: Tensor) -> list[bool]:
        if units.dtype != torch.bool or units.shape != (len(self),):
            raise InputError(
                f"units must be bool of shape ({len(self)},), found {units.dtype} of shape {tuple(units.shape)}"
            )
        kept: list[bool] = units.tolist()
        return kept

    def expand(self, units: Tensor) -> Tensor:
        """Return which parameters stay, bool [P]."""
        kept = self._checked(units)
        keep = torch.ones(self.layout.size, dtype=torch.bool)
        for entry, unit in zip(self.layout.parameters, self._of, strict=True):
            keep[entry.where] = unit < 0 or kept[unit]
        return keep

    def expand_buffers(self, units: Tensor) -> Tensor:
        """Return which buffer entries stay, bool [B]."""
        kept = self._checked(units)
        keep = torch.ones(self.layout.buffer_size, dtype=torch.bool)
        for entry, unit in zip(self.layout.buffers, self._of_buffers, strict=True):
            keep[entry.where] = unit < 0 or kept[unit]
        return keep

    def kept_weights(self, units: Tensor) -> int:
        """Return how many prunable weights stay."""
        kept = self._checked(units)
        entries = zip(self.layout.parameters, self._of, strict=True)
        return sum(entry.size for entry, unit in entries if entry.prunable and (unit < 0 or kept[unit]))

    def signature(self, units: Tensor) -> tuple[int, ...]:
        """Return which blocks stay: what the shapes of `narrow` depend on."""
        return tuple(int(kept) for kept in self._checked(units))

    def reduce(self, values: Tensor) -> Tensor:
        """Sum values [P] over the prunable weights of each block; shape [units]."""
        sums = values.new_zeros(len(self))
        for entry, unit in zip(self.layout.parameters, self._of, strict=True):
            if entry.prunable and unit >= 0:
                sums[unit] += values[entry.where].sum()
        return sums

    def narrow(self, units: Tensor) -> nn.Module:
        """Return a copy of the module where each removed block passes its input on."""
        removed = [name for name, kept in zip(self.names, self._checked(units), strict=True) if not kept]
        return _without(self.module, removed)


def _unit(name: str, blocks: tuple[str, ...]) -> int:
    return next((unit for unit, block in enumerate(blocks) if name.startswith(block + ".")), -1)


def _without(module: nn.Module, removed: list[str]) -> nn.Module:
    memo: dict[int, object] = {id(module.get_submodule(name)): _Skip() for name in removed}
    return copy.deepcopy(module, memo)


def _blocks(module: nn.Module, example: Tensor) -> tuple[str, ...]:
    """Find the blocks of a module, on a copy of it."""
    bare = bare_copy(module)
    if example.is_floating_point():
        # An example of zeros would let too much pass for an identity.
        example = torch.randn(example.shape, generator=torch.Generator().manual_seed(0)).to(example)
    weighted = {id(part) for part in bare.modules() if isinstance(part, nn.Linear | nn.modules.conv._ConvNd)}
    holders: dict[int, list[str]] = {}
    for name, parameter in bare.named_parameters(remove_duplicate=False):
        holders.setdefault(id(parameter), []).append(name)
    calls: dict[str, list[tuple[tuple[Any, ...], dict[str, Any]]]] = {}
    shaped: dict[str, bool] = {}
    handles = []
    for name, part in bare.named_modules():
        own = {holder for parameter in part.parameters() for holder in holders[id(parameter)]}
        if not name or any(not holder.startswith(name + ".") for holder in own):
            continue  # it shares weights with another part
        if any(id(inner) in weighted for inner in part.modules()):

            def record(_: nn.Module, inputs: Any, options: Any, output: Any, name: str = name) -> None:
                calls.setdefault(name, []).append((inputs, options))
                same = bool(inputs) and isinstance(inputs[0], Tensor) and isinstance(output, Tensor)
                same = same and inputs[0].shape == output.shape and inputs[0].dtype == output.dtype
                shaped[name] = shaped.get(name, True) and same

            handles.append(part.register_forward_hook(record, with_kwargs=True))
    with torch.no_grad():
        try:
            bare(example)
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            raise InputError(
                f"example: the module does not accept an input of shape {tuple(example.shape)}: {error}"
            ) from None
        for handle in handles:
            handle.remove()
        names = [name for name, same in shaped.items() if same and _is_identity(bare, name, calls[name])]
        order = [name for name, _ in bare.named_modules() if name in names]
        inner = [name for name in order if not any(other.startswith(name + ".") for other in order)]
        return tuple(name for name in inner if _runs(bare, name, example))


def _is_identity(bare: nn.Module, name: str, calls: list[tuple[tuple[Any, ...], dict[str, Any]]]) -> bool:
    """Tell whether a block returns its input, in all its calls, when its parameters are zero."""
    block = copy.deepcopy(bare.get_submodule(name))
    for parameter in block.parameters():
        parameter.zero_()
    for inputs, options in calls:
        found = block(*inputs, **options)
        if not bool((found - inputs[0]).abs().max() <= _TOLERANCE * inputs[0].abs().max()):
            return False
    return True


def _runs(bare: nn.Module, name: str, example: Tensor) -> bool:
    """Tell whether the module works without a block: its code may ask for more than the block's output."""
    try:
        _without(bare, [name])(example)
    except (AttributeError, RuntimeError, TypeError, ValueError):
        return False
    return True


def representational_change(
    groups: LayerGroups, inputs: Tensor, weights: Tensor | None = None, *, measure: str = "cka"
) -> Tensor:
    """Return how much each block changes what passes through it: 0 where its output says the same as its input.

    Parameters
    ----------
    groups : LayerGroups
        The blocks.
    inputs : Tensor
        Calibration inputs, shape [N, ...]; N at least 2 for "cka".
    weights : Tensor, optional
        Parameters to measure with, shape [P]; those of the module by default.
    measure : str
        "cka": 1 - linear centred kernel alignment of output and input over the samples (Kornblith et al. 2019), blind
        to rotations and scales. "cosine": 1 - mean cosine between the output and the input of a sample.

    Returns
    -------
    Tensor
        float64, shape [units], in [0, 1] for "cka" and [0, 2] for "cosine".

    Raises
    ------
    InputError
        There are too few inputs, or the measure is not known.
    """
    if measure not in MEASURES:
        raise InputError(f"unknown measure '{measure}'{nearest(str(measure), MEASURES)}")
    least = 2 if measure == "cka" else 1
    if inputs.ndim < 1 or len(inputs) < least:
        raise InputError(f"measure '{measure}' needs at least {least} inputs, found shape {tuple(inputs.shape)}")
    bare = bare_copy(groups.module)
    changes = torch.zeros(len(groups), dtype=torch.float64)

    def record(unit: int, before: Tensor, after: Tensor) -> None:
        x, y = (tensor.reshape(len(tensor), -1).to(torch.float64) for tensor in (before, after))
        changes[unit] = 1.0 - (_cka(x, y) if measure == "cka" else _cosine(x, y))

    with torch.no_grad():
        if weights is not None:
            parts = groups.layout.split(weights)
            for name, parameter in bare.named_parameters():
                parameter.copy_(parts[name])
        for unit, name in enumerate(groups.names):
            bare.get_submodule(name).register_forward_hook(lambda _, x, y, unit=unit: record(unit, x[0], y))
        bare(inputs)
    return changes


def _cka(x: Tensor, y: Tensor) -> float:
    """Linear CKA of features [N, d] and [N, e], by the N x N kernels."""
    kernels = []
    for features in (x, y):
        centred = features - features.mean(dim=0)
        kernels.append(centred @ centred.T)
    return _ratio(float((kernels[0] * kernels[1]).sum()), float(kernels[0].norm()), float(kernels[1].norm()))


def _cosine(x: Tensor, y: Tensor) -> float:
    """Mean cosine between rows."""
    products = zip((x * y).sum(dim=1).tolist(), x.norm(dim=1).tolist(), y.norm(dim=1).tolist(), strict=True)
    return sum(_ratio(*row) for row in products) / len(x)


def _ratio(product: float, first: float, second: float) -> float:
    if first == 0.0 or second == 0.0:
        return float(first == second)  # two constants say the same
    return max(-1.0, min(1.0, product / (first * second)))

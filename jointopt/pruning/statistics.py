"""Statistics measured by passing samples forward: what enters the layers, and what batch normalisation sees."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from jointopt.errors import InputError
from jointopt.pruning.layout import Entry, Layout

__all__ = ["InputStatistics", "evaluating", "input_statistics", "norm_statistics", "per_weight", "weight_layers"]


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put a module in evaluation mode, then each of its parts back in its own mode."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


class InputStatistics(NamedTuple):
    """Statistics of what enters a layer, over samples and positions, each of shape [in features]."""

    norm: Tensor
    mean: Tensor
    var: Tensor


def input_statistics(module: nn.Module, layout: Layout, passes: Iterable[object]) -> dict[str, InputStatistics]:
    """Collect statistics of the inputs of all linear and convolution layers, by prunable parameter.

    Parameters
    ----------
    module : Module
        What is hooked.
    layout : Layout
        Its layout.
    passes : iterable
        Each step of it passes samples forward through the module.
    """
    sums: dict[str, Tensor] = {}
    squares: dict[str, Tensor] = {}
    counts: dict[str, int] = {}

    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def collect(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            values = inputs[0].detach().to(torch.float64)
            if not isinstance(layer, nn.Linear):
                values = values.movedim(1, -1)
            values = values.reshape(-1, values.shape[-1])
            sums[name] = sums.get(name, torch.zeros(())) + values.sum(dim=0)
            squares[name] = squares.get(name, torch.zeros(())) + values.square().sum(dim=0)
            counts[name] = counts.get(name, 0) + len(values)

        return collect

    handles = [layer.register_forward_pre_hook(hook(name)) for name, layer in weight_layers(module)]
    try:
        for _ in passes:
            pass
    finally:
        for handle in handles:
            handle.remove()
    missing = [entry.name for entry in layout.layers if entry.name not in counts]
    if missing:
        raise InputError(f"evidence: no input reaches the layer of '{missing[0]}'")
    out = {}
    for entry in layout.layers:
        total, square, n = sums[entry.name], squares[entry.name], counts[entry.name]
        mean = total / n
        out[entry.name] = InputStatistics(square.sqrt(), mean, (square / n - mean.square()).clamp_min(0.0))
    return out


def norm_statistics(
    module: nn.Module, samples: Iterable[tuple[float, Callable[[dict[str, Tensor]], object]]]
) -> dict[str, Tensor]:
    """Measure the running statistics of batch normalisation, the mean over devices by share; empty without any.

    Parameters
    ----------
    module : Module
        In evaluation mode (see `evaluating`); only its batch normalisation trains meanwhile.
    samples : iterable of (share, run)
        Per device: its share, and what passes its samples forward with the buffers that it is given.

    Returns
    -------
    dict
        By buffer name.
    """
    norms = {
        name: layer
        for name, layer in module.named_modules()
        if isinstance(layer, _BatchNorm) and layer.running_mean is not None
    }
    names = [f"{name}.{kind}" for name in norms for kind in ("running_mean", "running_var")]
    if not names:
        return {}
    present = dict(module.named_buffers())
    total = {name: torch.zeros_like(present[name]) for name in names}
    before = {name: layer.momentum for name, layer in norms.items()}
    try:
        for layer in norms.values():
            layer.training = True
            layer.momentum = 1.0  # so that the running statistics become those of the batch
        for share, run in samples:
            own = {name: buffer.clone() for name, buffer in present.items()}
            run(own)
            for name in names:
                total[name] += share * own[name]
    finally:
        for name, layer in norms.items():
            layer.momentum = before[name]
            layer.training = False
    return total


def per_weight(module: nn.Module, entry: Entry, values: Tensor) -> Tensor:
    """Spread values of the input features of a layer, [in features], over its weights; shape of the weight."""
    layer = dict(weight_layers(module))[entry.name]
    if not isinstance(layer, _ConvNd):
        return values.expand(entry.shape)
    tail = [1] * (len(entry.shape) - 2)
    if isinstance(layer, _ConvTransposeNd):
        return values.view(-1, 1, *tail).expand(entry.shape)
    # Row o of a grouped convolution sees the input channels of its own group only.
    rows = values.view(layer.groups, -1).repeat_interleave(entry.shape[0] // layer.groups, dim=0)
    return rows.view(*entry.shape[:2], *tail).expand(entry.shape)


def weight_layers(module: nn.Module) -> list[tuple[str, nn.Linear | _ConvNd]]:
    """Return the linear and convolution layers, each with the name of its weight; several may share one."""
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    return [
        (names[id(layer.weight)], layer)
        for layer in module.modules()
        if isinstance(layer, nn.Linear | _ConvNd) and id(layer.weight) in names
    ]

"""Small networks for the simulator, and which of their parameters may be pruned."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from jointopt.errors import InputError, is_whole, nearest

__all__ = ["NETWORKS", "build", "cnn", "count_parameters", "mlp", "prunable"]


def _positive(field: str, values: Sequence[int]) -> None:
    for value in values:
        if not (is_whole(value) and value >= 1):
            raise InputError(f"{field} must be whole and at least 1, found {value!r} in {tuple(values)}")


def mlp(inputs_shape: Sequence[int], classes: int, hidden: Sequence[int] | None = None) -> nn.Module:
    """Fully connected network with ReLU.

    Parameters
    ----------
    inputs_shape
        Shape of one input, any number of axes; [1, 8, 8] gives 4,810 parameters with 10 classes.
    classes
        Number of outputs.
    hidden
        Width of each hidden layer; may be empty. By default (64,) for up to 256 input values and (128,) above:
        101,770 parameters on [1, 28, 28].

    Returns
    -------
    Module
        Maps [N, *inputs_shape] to logits [N, classes].

    Raises
    ------
    InputError
        A size is not a whole number of at least 1.
    """
    _positive("inputs_shape", inputs_shape)
    _positive("classes", (classes,))
    width = math.prod(inputs_shape)
    hidden = ((64,) if width <= 256 else (128,)) if hidden is None else hidden
    _positive("hidden", hidden)
    layers: list[nn.Module] = [nn.Flatten()]
    for wide in hidden:
        layers += [nn.Linear(width, wide), nn.ReLU()]
        width = wide
    layers.append(nn.Linear(width, classes))
    return nn.Sequential(*layers)


def cnn(inputs_shape: Sequence[int], classes: int) -> nn.Module:
    """Two 5x5 convolutions (16 and 32 channels), each pooled by 2, and a hidden layer of 64.

    Parameters
    ----------
    inputs_shape
        [channels, height, width], height and width at least 4; [1, 28, 28] gives 114,314 parameters.
    classes
        Number of outputs.

    Returns
    -------
    Module
        Maps [N, channels, height, width] to logits [N, classes].

    Raises
    ------
    InputError
        A size is not a whole number of at least 1, or the images are not three-axed or too small.
    """
    _positive("inputs_shape", inputs_shape)
    _positive("classes", (classes,))
    if len(inputs_shape) != 3 or min(inputs_shape[1:]) < 4:
        raise InputError(
            f"cnn needs inputs [channels, height, width] of height and width at least 4, found {tuple(inputs_shape)}"
        )
    channels, height, width = inputs_shape
    return nn.Sequential(
        nn.Conv2d(channels, 16, kernel_size=5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, kernel_size=5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * (height // 4) * (width // 4), 64),
        nn.ReLU(),
        nn.Linear(64, classes),
    )


NETWORKS: MappingProxyType[str, Callable[..., nn.Module]] = MappingProxyType({"mlp": mlp, "cnn": cnn})
"""The networks `build` knows."""


def build(name: str, inputs_shape: Sequence[int], classes: int, seed: int, **options: Any) -> nn.Module:
    """Build a network on the CPU with weights drawn from `seed`, leaving the global generators as they were.

    Parameters
    ----------
    name
        "mlp" or "cnn".
    inputs_shape, classes, **options
        Passed on to `mlp` or `cnn`; ``hidden=(128,)`` for "mlp", for instance.
    seed
        Seed of the initial weights, at least 0.

    Returns
    -------
    Module

    Raises
    ------
    InputError
        The name or an option is not known, or a value is out of its range.
    """
    maker = NETWORKS.get(name)
    if maker is None:
        raise InputError(f"unknown network '{name}'{nearest(str(name), NETWORKS)}")
    known = {"hidden"} if maker is mlp else set()
    for option in options:
        if option not in known:
            raise InputError(f"network '{name}' has no option '{option}'{nearest(option, known)}")
    if not (is_whole(seed) and 0 <= seed < 2**63):
        raise InputError(f"seed must be a whole number in 0 .. 2**63 - 1, found {seed!r}")
    # The CPU generator alone is seeded: torch.manual_seed would also reseed every GPU, which fork_rng was
    # told not to restore (restoring them would initialise CUDA).
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(int(seed))
        return maker(inputs_shape, classes, **options)


def prunable(module: nn.Module) -> dict[str, bool]:
    """Tell for each named parameter whether it may be pruned, in the order of ``named_parameters()``.

    The weights of linear and convolution layers may; biases, normalisation parameters and all else never.
    """
    weights = {id(layer.weight) for layer in module.modules() if isinstance(layer, nn.Linear | _ConvNd)}
    return {name: id(parameter) in weights for name, parameter in module.named_parameters()}


def count_parameters(module: nn.Module) -> tuple[int, int]:
    """Return how many single parameters may be pruned, and how many never are."""
    may = prunable(module)
    sizes = {name: parameter.numel() for name, parameter in module.named_parameters()}
    total = sum(sizes[name] for name in may if may[name])
    return total, sum(sizes.values()) - total

"""The networks by name, built with weights from a seed."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from jointopt.errors import InputError, is_whole, nearest
from jointopt.federated.networks.plain import cnn, lenet, mlp
from jointopt.federated.networks.resnet import resnet8, resnet18
from jointopt.federated.networks.transformer import transformer

__all__ = ["NETWORKS", "build"]

NETWORKS: MappingProxyType[str, Callable[..., nn.Module]] = MappingProxyType(
    {
        "mlp": mlp,
        "cnn": cnn,
        "lenet": lenet,
        "resnet8": resnet8,
        "resnet18": resnet18,
        "transformer": transformer,
    }
)
"""The networks `build` knows."""


def build(name: str, inputs_shape: Sequence[int], classes: int, seed: int, **options: Any) -> nn.Module:
    """Build a network on the CPU with weights drawn from `seed`, leaving the global generators as they were.

    Parameters
    ----------
    name
        "mlp", "cnn", "lenet", "resnet8", "resnet18" or "transformer".
    inputs_shape, classes, **options
        Passed on to the function of that name; ``hidden=(128,)`` for "mlp", for instance.
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
    maker = NETWORKS.get(name) if isinstance(name, str) else None
    if maker is None:
        raise InputError(f"unknown network '{name}'{nearest(str(name), NETWORKS)}")
    known = set(inspect.signature(maker).parameters) - {"inputs_shape", "classes"}
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

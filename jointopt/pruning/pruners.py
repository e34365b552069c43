"""The pruning rules by name."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Protocol

import torch
from torch import Tensor

from jointopt.errors import InputError, nearest
from jointopt.pruning.magnitude import check_weights, keep_mask, pruned_count

__all__ = ["PRUNERS", "Pruner", "pruner", "random_mask"]


class Pruner(Protocol):
    """A rule that tells which of V weights to keep: exactly ``V - pruned_count(ratio, V)`` of them."""

    def __call__(self, weights: Tensor, ratio: float, generator: torch.Generator | None = None, /) -> Tensor:
        """Return the bool mask [V] of the weights kept; `generator` is the only source of randomness."""
        ...


def _magnitude(weights: Tensor, ratio: float, generator: torch.Generator | None = None, /) -> Tensor:
    return keep_mask(weights, ratio)


def random_mask(weights: Tensor, ratio: float, generator: torch.Generator | None = None, /) -> Tensor:
    """Mask out weights chosen uniformly at random: the baseline for any cleverer rule.

    From the same state of the generator, a larger ratio prunes a superset. Arguments, result and errors as
    in `jointopt.pruning.keep_mask`; `InputError` too without a generator.
    """
    check_weights(weights)
    if generator is None:
        raise InputError("random pruning needs a seeded torch.Generator, found None")
    order = torch.randperm(len(weights), generator=generator, device=generator.device).to(weights.device)
    keep = torch.ones_like(weights, dtype=torch.bool)
    keep[order[: pruned_count(float(ratio), max(len(weights), 1))]] = False
    return keep


PRUNERS: Mapping[str, Pruner] = MappingProxyType({"magnitude": _magnitude, "random": random_mask})
"""The pruning rules `pruner` knows."""


def pruner(name: str) -> Pruner:
    """Return the pruning rule of that name; `InputError` if there is none."""
    rule = PRUNERS.get(name)
    if rule is None:
        raise InputError(f"unknown pruner '{name}'{nearest(str(name), PRUNERS)}")
    return rule

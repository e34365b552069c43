"""Generators by name."""

from __future__ import annotations

from collections.abc import Mapping

from jointopt.augmentation.base import Generator
from jointopt.augmentation.diffusion import DiffusionGenerator
from jointopt.augmentation.gaussian import GaussianGenerator
from jointopt.errors import InputError, nearest

__all__ = ["GENERATORS", "get"]

GENERATORS: Mapping[str, type[Generator]] = {
    "diffusion": DiffusionGenerator,
    "gaussian": GaussianGenerator,
}
"""Kinds of generators by name; the package `diffusers` is imported when one is made."""


def get(kind: object) -> type[Generator]:
    """Return a kind of generator; `InputError` when there is none of that name."""
    found = GENERATORS.get(kind) if isinstance(kind, str) else None
    if found is None:
        raise InputError(f"unknown generator '{kind}'{nearest(str(kind), GENERATORS)}")
    return found

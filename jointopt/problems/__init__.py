"""Published designs as problems, one file each, and LTFL with shared budgets."""

from __future__ import annotations

from typing import Any

from jointopt.errors import InputError, nearest
from jointopt.problems.coinference import CoInference
from jointopt.problems.coinference_layers import LayerwiseCoInference
from jointopt.problems.feel import FEEL
from jointopt.problems.ltfl import LTFL
from jointopt.problems.pooled import PooledLTFL

__all__ = ["DESIGNS", "FEEL", "LTFL", "CoInference", "LayerwiseCoInference", "PooledLTFL", "get"]

DESIGNS: dict[str, Any] = {
    "ltfl": LTFL,
    "ltfl-pool": PooledLTFL,
    "feel": FEEL,
    "coinference": CoInference,
    "coinference-layers": LayerwiseCoInference,
}
"""Designs by the name used on the command line and in files."""


def get(name: str) -> Any:
    """Return the problem class of a design.

    Raises
    ------
    InputError
        For an unknown name, with the nearest known one.
    """
    if name not in DESIGNS:
        raise InputError(f"design: unknown '{name}'{nearest(name, DESIGNS)}")
    return DESIGNS[name]

"""One place that finds the array namespace of an argument."""

from __future__ import annotations

from typing import Any

import array_api_compat
import numpy as np

__all__ = ["as_array", "is_foreign", "namespace"]


def is_foreign(value: Any) -> bool:
    """Whether a value is an array with a namespace of its own: neither NumPy nor torch, such as an `Interval`."""
    return (
        not isinstance(value, np.ndarray | np.generic)
        and hasattr(value, "__array_namespace__")
        and not array_api_compat.is_torch_array(value)
    )


def namespace(*arrays: Any) -> Any:
    """Return the array-API namespace of the arrays: a foreign array's own, torch for a tensor, NumPy otherwise."""
    for array in arrays:
        if is_foreign(array):
            return array.__array_namespace__()
    tensors = [a for a in arrays if array_api_compat.is_torch_array(a)]
    if tensors:
        return array_api_compat.array_namespace(*tensors)
    return array_api_compat.array_namespace(np.empty(0))


def as_array(value: Any, xp: Any) -> Any:
    """Return an array as it is (a tensor keeps its graph) and a number as an array of the namespace."""
    return value if array_api_compat.is_array_api_obj(value) or is_foreign(value) else xp.asarray(value)

"""One place that finds the array namespace of an argument."""

from __future__ import annotations

from typing import Any

import array_api_compat
import numpy as np

__all__ = ["as_array", "namespace"]


def namespace(*arrays: Any) -> Any:
    """Return the array-API namespace of the arrays; torch if any is a tensor, NumPy for plain numbers."""
    known = [a for a in arrays if array_api_compat.is_array_api_obj(a)]
    tensors = [a for a in known if array_api_compat.is_torch_array(a)]
    if tensors:
        return array_api_compat.array_namespace(*tensors)
    return array_api_compat.array_namespace(np.empty(0))


def as_array(value: Any, xp: Any) -> Any:
    """Return an array as it is (a tensor keeps its graph) and a number as an array of the namespace."""
    return value if array_api_compat.is_array_api_obj(value) else xp.asarray(value)

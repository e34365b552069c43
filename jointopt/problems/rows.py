"""What a user's function gets and gives: attributes of a system by rows, named arrays, checks of its values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import array_api_compat
import numpy as np
import numpy.typing as npt

from jointopt.decision import Array
from jointopt.errors import InputError, nearest

__all__ = ["Named", "Quantities", "View", "checked", "size_of"]


def size_of(limit: Any) -> Any:
    """What a slack of a limit is compared with; 1 for a limit of 0."""
    size = np.abs(limit)
    return np.where(size > 0.0, size, 1.0)


def checked(value: Any, what: str) -> Array:
    """A user's value as an array of real numbers."""
    if isinstance(value, np.ndarray) or np.isscalar(value):
        value = np.asarray(value)
        if np.iscomplexobj(value):
            raise InputError(f"{what} is complex")
        if value.dtype != object and not np.issubdtype(value.dtype, np.number) and value.dtype != np.bool_:
            raise InputError(f"{what} is {value.dtype}, expected numbers")
        return value.astype(np.float64) if value.dtype != object else value
    if array_api_compat.is_torch_array(value):
        if value.is_complex():
            raise InputError(f"{what} is complex")
        return value
    if hasattr(value, "__array_namespace__"):
        return value
    raise InputError(f"{what} is {type(value).__name__}, expected an array")


class Named:
    """The variables, by attribute or key."""

    def __init__(self, values: Mapping[str, Array]) -> None:
        self.__dict__.update(values)

    def __getitem__(self, name: str) -> Array:
        return self.__dict__[name]

    def __getattr__(self, name: str) -> Array:
        raise InputError(f"model: no variable '{name}' is declared{nearest(name, self.__dict__)}")


class Quantities(Named):
    """The quantities, by attribute or key."""

    def __getattr__(self, name: str) -> Array:
        raise InputError(f"the model gives no '{name}'{nearest(name, self.__dict__)}")


class View:
    """A system's attributes, per-device arrays for some rows (or as they are), in the kind of array at hand."""

    def __init__(self, target: Any, index: npt.NDArray[np.int64] | None, size: int, xp: Any) -> None:
        self._target, self._index, self._size, self._xp = target, index, size, xp

    def __len__(self) -> int:
        return self._size

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        value = getattr(self._target, name)
        if isinstance(value, np.ndarray):
            own = value.ndim == 1 and value.size == self._size and not self._other_axis(name)
            value = value[self._index] if own and self._index is not None else value
            value = self._xp.asarray(np.array(value)) if self._xp is not np else value
        elif hasattr(type(value), "model_fields"):
            value = View(value, self._index, self._size, self._xp)
        self.__dict__[name] = value
        return value

    def _other_axis(self, name: str) -> bool:
        """Whether a field is declared to run over something else than devices."""
        fields = getattr(type(self._target), "model_fields", {})
        if name not in fields:
            return False
        axes = [getattr(m, "axis", None) for m in fields[name].metadata]
        return any(axis not in (None, "device") for axis in axes)

"""Torch tensors that also take NumPy's functions, so that a function written with them can be differentiated.

``np.exp`` refuses a tensor that carries a graph. `Differentiable` wraps one and hands NumPy's functions on to torch.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from jointopt.errors import InputError

__all__ = ["Differentiable", "unwrapped"]

_ALIASES = {
    "absolute": "abs",
    "amax": "max",
    "amin": "min",
    "around": "round",
    "rint": "round",
    "concatenate": "concat",
    "true_divide": "divide",
    "power": "pow",
    "float_power": "pow",
    "fmax": "maximum",
    "fmin": "minimum",
    "invert": "logical_not",
}
_REDUCTIONS = {"add": "sum", "multiply": "prod", "maximum": "max", "minimum": "min"}


def unwrapped(value: Any) -> Any:
    """Return the tensor behind a `Differentiable`, NumPy arrays as tensors, anything else as it is."""
    if isinstance(value, Differentiable):
        return value.tensor
    if isinstance(value, np.ndarray | np.generic):
        import torch

        return torch.tensor(value)
    if isinstance(value, list | tuple):
        return type(value)(unwrapped(v) for v in value)
    return value


def _wrapped(value: Any) -> Any:
    import torch

    return Differentiable(value) if isinstance(value, torch.Tensor) else value


class _Namespace:
    """Torch's array API on `Differentiable` arrays."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        import array_api_compat.torch as xp
        import torch

        name = _ALIASES.get(name, name)
        function = getattr(xp, name, None)
        if function is None:
            raise InputError(f"{name}: torch has no such function")
        if not callable(function):
            return function

        def call(*arguments: Any, **options: Any) -> Any:
            plain = [unwrapped(a) for a in arguments]
            if name in ("maximum", "minimum", "where", "pow", "logical_and", "logical_or"):
                # torch takes plain numbers in some places only
                plain = [torch.as_tensor(a, dtype=torch.float64) if isinstance(a, int | float) else a for a in plain]
            return _wrapped(function(*plain, **{key: unwrapped(value) for key, value in options.items()}))

        return call


def _operation(function: Callable[..., Any], reflected: bool = False) -> Callable[..., Any]:
    def operate(self: Differentiable, *others: Any) -> Any:
        plain = [unwrapped(other) for other in others]
        return _wrapped(function(*plain, self.tensor) if reflected else function(self.tensor, *plain))

    return operate


class Differentiable:
    """A torch tensor behind NumPy's interface.

    Parameters
    ----------
    tensor : torch tensor, any shape
        Available again as ``tensor``; its graph is kept.
    """

    __slots__ = ("tensor",)
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, tensor: Any) -> None:
        self.tensor = tensor

    def __array_namespace__(self, api_version: str | None = None) -> _Namespace:
        """Return torch's functions."""
        return _Namespace()

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        """Return the values, without the graph."""
        return np.asarray(self.tensor.detach().cpu().numpy(), dtype=dtype)

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        name = ufunc.__name__
        if options.get("out") is not None or (method != "__call__" and (method != "reduce" or name not in _REDUCTIONS)):
            raise InputError(f"{name}: this form of it is not known for tensors")
        if method == "__call__":
            return getattr(_Namespace(), name)(*inputs)
        return getattr(_Namespace(), _REDUCTIONS[name])(inputs[0], axis=options.get("axis", 0))

    def __array_function__(self, function: Any, types: Any, arguments: Any, options: Any) -> Any:
        name = function.__name__
        if name in ("shape", "ndim", "size"):
            return getattr(self, name)
        kept = {k: v for k, v in options.items() if v is not np._NoValue}
        return getattr(_Namespace(), name)(*arguments, **kept)

    shape = property(lambda self: tuple(self.tensor.shape))
    ndim = property(lambda self: self.tensor.ndim)
    size = property(lambda self: self.tensor.numel())
    dtype = property(lambda self: self.tensor.dtype)
    device = "cpu"

    def __len__(self) -> int:
        return len(self.tensor)

    def __getitem__(self, index: Any) -> Differentiable:
        return Differentiable(self.tensor[unwrapped(index)])

    def __iter__(self) -> Iterator[Differentiable]:
        return (self[i] for i in range(len(self)))

    def __float__(self) -> float:
        return float(self.tensor)

    def __bool__(self) -> bool:
        return bool(self.tensor)

    def reshape(self, *shape: Any) -> Differentiable:
        """Return the same elements in another shape."""
        return Differentiable(self.tensor.reshape(*shape))

    def special(self, function: Any) -> Differentiable:
        """Apply a special function, which knows its derivative."""
        return Differentiable(function(self.tensor))

    __add__, __radd__ = _operation(operator.add), _operation(operator.add, True)
    __sub__, __rsub__ = _operation(operator.sub), _operation(operator.sub, True)
    __mul__, __rmul__ = _operation(operator.mul), _operation(operator.mul, True)
    __truediv__, __rtruediv__ = _operation(operator.truediv), _operation(operator.truediv, True)
    __pow__, __rpow__ = _operation(operator.pow), _operation(operator.pow, True)
    __matmul__, __rmatmul__ = _operation(operator.matmul), _operation(operator.matmul, True)
    __and__, __rand__ = _operation(operator.and_), _operation(operator.and_, True)
    __or__, __ror__ = _operation(operator.or_), _operation(operator.or_, True)
    __lt__, __le__ = _operation(operator.lt), _operation(operator.le)
    __gt__, __ge__ = _operation(operator.gt), _operation(operator.ge)
    __eq__, __ne__ = _operation(operator.eq), _operation(operator.ne)
    __neg__, __abs__, __invert__ = _operation(operator.neg), _operation(abs), _operation(operator.invert)

    def sum(self, axis: int | None = None, keepdims: bool = False) -> Any:
        """Sum over an axis, or over everything."""
        return _Namespace().sum(self, axis=axis, keepdims=keepdims)

    def mean(self, axis: int | None = None, keepdims: bool = False) -> Any:
        """Mean over an axis, or over everything."""
        return _Namespace().mean(self, axis=axis, keepdims=keepdims)

    def max(self, axis: int | None = None, keepdims: bool = False) -> Any:
        """Greatest over an axis, or over everything."""
        return _Namespace().max(self, axis=axis, keepdims=keepdims)

    def min(self, axis: int | None = None, keepdims: bool = False) -> Any:
        """Least over an axis, or over everything."""
        return _Namespace().min(self, axis=axis, keepdims=keepdims)

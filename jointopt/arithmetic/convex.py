"""Expressions of cvxpy behind the array API, so that a function written once can become a convex program.

`Convex` only builds; whether the result follows the rules of disciplined convex programming is asked afterwards, and
`first_non_dcp` names the smallest part that does not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import cvxpy as cp
import numpy as np

from jointopt.errors import InputError

__all__ = ["Convex", "ConvexNamespace", "first_non_dcp", "perspective_log"]

Curvature = Literal["convex", "concave"]

_ALIASES = {
    "absolute": "abs",
    "fabs": "abs",
    "amax": "max",
    "amin": "min",
    "concatenate": "concat",
    "true_divide": "divide",
    "pow": "power",
    "float_power": "power",
    "fmax": "maximum",
    "fmin": "minimum",
}


def perspective_log(x: Any, y: Any) -> Any:
    """Perspective x log(1 + y/x), jointly concave in x > 0 and y >= 0; written so that cvxpy knows it.

    A rate over a band b at SNR c/b is ``perspective_log(b, c) / log(2)``. Any kind of array; shapes broadcast.
    """
    if isinstance(x, Convex) or isinstance(y, Convex):
        first, second = (_expression(v) for v in (x, y))
        shape = np.broadcast_shapes(first.shape, second.shape)
        first, second = (cp.broadcast_to(v, shape) if v.shape != shape else v for v in (first, second))
        return Convex(-cp.rel_entr(first, first + second))
    for value in (x, y):
        if hasattr(value, "__array_namespace__"):
            return x * value.__array_namespace__().log1p(y / x)
    return x * (y / x).log1p() if hasattr(y / x, "log1p") else x * np.log1p(y / x)


def first_non_dcp(expression: Any, wanted: Curvature | None = None) -> str:
    """Return the text of the smallest sub-expression that breaks the rules of convex programming; "" if none does.

    Parameters
    ----------
    expression : Convex or cvxpy expression
        What is asked about.
    wanted : {"convex", "concave"}, optional
        Curvature it must have as a whole; any, when not given.
    """
    node = expression.expression if isinstance(expression, Convex) else expression
    if not node.is_dcp():
        inside = next((part for argument in node.args if (part := first_non_dcp(argument))), "")
        if inside or wanted is None:
            return inside or str(node)
    elif wanted is None or (node.is_convex() if wanted == "convex" else node.is_concave()):
        return ""
    own = node.is_atom_convex() if wanted == "convex" else node.is_atom_concave()
    if not own:
        return str(node)
    other: Curvature = "concave" if wanted == "convex" else "convex"
    for i, argument in enumerate(node.args):
        if not argument.is_affine() and (node.is_incr(i) or node.is_decr(i)):
            part = first_non_dcp(argument, wanted if node.is_incr(i) else other)
            if part:
                return part
    return str(node)


def _expression(value: Any) -> Any:
    """Return a value as a cvxpy expression."""
    if isinstance(value, Convex):
        return value.expression
    if hasattr(value, "detach"):
        value = value.detach().cpu().numpy()
    return cp.Constant(np.asarray(value, dtype=np.float64))


def _constant(value: Any) -> bool:
    return not isinstance(value, Convex) or bool(value.expression.is_constant())


def _number(value: Any) -> Any:
    """Return a constant's value."""
    return value.expression.value if isinstance(value, Convex) else value


def _multiply(x: Any, y: Any) -> Any:
    if x is y or (isinstance(x, Convex) and isinstance(y, Convex) and x.expression is y.expression):
        return cp.square(_expression(x))
    return cp.multiply(_expression(x), _expression(y))


def _divide(x: Any, y: Any) -> Any:
    if _constant(y):
        return cp.multiply(_expression(x), cp.Constant(1.0 / np.asarray(_number(y), dtype=np.float64)))
    return cp.multiply(_expression(x), cp.inv_pos(_expression(y)))


def _power(x: Any, exponent: Any) -> Any:
    if not _constant(exponent):
        if not _constant(x):
            raise InputError("power: of two expressions is no expression of a convex program")
        return cp.exp(cp.multiply(np.log(np.asarray(_number(x), dtype=np.float64)), _expression(exponent)))
    number = np.unique(np.asarray(_number(exponent), dtype=np.float64))
    if number.size != 1:
        raise InputError("power: one exponent at a time in a convex program")
    return cp.power(_expression(x), float(number[0]))


_ELEMENTARY: dict[str, Callable[..., Any]] = {
    "add": lambda x, y: _expression(x) + _expression(y),
    "subtract": lambda x, y: _expression(x) - _expression(y),
    "multiply": _multiply,
    "divide": _divide,
    "power": _power,
    "negative": lambda x: -_expression(x),
    "abs": lambda x: cp.abs(_expression(x)),
    "exp": lambda x: cp.exp(_expression(x)),
    "expm1": lambda x: cp.exp(_expression(x)) - 1.0,
    "log": lambda x: cp.log(_expression(x)),
    "log1p": lambda x: cp.log1p(_expression(x)),
    "log2": lambda x: cp.log(_expression(x)) / math.log(2.0),
    "log10": lambda x: cp.log(_expression(x)) / math.log(10.0),
    "sqrt": lambda x: cp.sqrt(_expression(x)),
    "square": lambda x: cp.square(_expression(x)),
    "reciprocal": lambda x: cp.inv_pos(_expression(x)),
    "maximum": lambda x, y: cp.maximum(_expression(x), _expression(y)),
    "minimum": lambda x, y: cp.minimum(_expression(x), _expression(y)),
}
_REDUCTIONS: dict[str, Any] = {"sum": cp.sum, "max": cp.max, "min": cp.min, "mean": cp.mean}
_UFUNC_REDUCTIONS: dict[str, Any] = {"add": "sum", "maximum": "max", "minimum": "min"}
_COMPARISONS = {"less", "less_equal", "greater", "greater_equal", "equal", "not_equal"}
_SMOOTHLESS = {"floor", "ceil", "round", "rint", "around", "sign"}


class ConvexNamespace:
    """The array API over cvxpy expressions, as far as convex programs have it."""

    pi = math.pi
    e = math.e
    inf = math.inf
    nan = math.nan
    float64 = np.dtype(np.float64)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):
            raise AttributeError(name)
        name = _ALIASES.get(name, name)
        if name in _REDUCTIONS:
            return partial(self._reduce, name)
        if name in _COMPARISONS or name in _SMOOTHLESS:
            raise InputError(f"{name}: a choice by an expression's value has no place in a convex program")
        if name not in _ELEMENTARY:
            raise InputError(f"{name}: cvxpy expressions have no such function")
        return lambda *arguments: Convex(_ELEMENTARY[name](*arguments))

    def _reduce(self, name: str, x: Any, axis: int | None = None, keepdims: Any = False, **_: Any) -> Convex:
        x = _expression(x)
        return Convex(x if x.ndim == 0 else _REDUCTIONS[name](x, axis=axis, keepdims=bool(keepdims)))

    def asarray(self, value: Any, dtype: Any = None, copy: Any = None, device: Any = None) -> Any:
        """Return an expression as it is, and numbers or truth values as a NumPy array."""
        if isinstance(value, Convex):
            return value
        if isinstance(value, (list, tuple)) and any(isinstance(v, Convex) for v in value):
            return self.stack(list(value))
        return np.asarray(value)

    def zeros_like(self, x: Any, dtype: Any = None) -> Any:
        """Return zeros in the same shape."""
        return np.zeros(np.shape(x))

    def ones_like(self, x: Any, dtype: Any = None) -> Any:
        """Return ones in the same shape."""
        return np.ones(np.shape(x))

    def full_like(self, x: Any, value: float, dtype: Any = None) -> Any:
        """Return an array of the same shape, filled with a number."""
        return np.full(np.shape(x), float(value))

    def isfinite(self, x: Any) -> Any:
        """Expressions are finite; numbers are asked."""
        return np.ones(np.shape(x), dtype=bool) if isinstance(x, Convex) else np.isfinite(x)

    def where(self, condition: Any, x: Any, y: Any) -> Any:
        """Choose by an array of truth values that does not depend on the variables."""
        mask = np.asarray(condition, dtype=bool)
        if mask.all() or not mask.any():
            chosen = x if mask.all() else y
            shape = np.broadcast_shapes(mask.shape, np.shape(x), np.shape(y))
            expression = _expression(chosen)
            return Convex(expression if expression.shape == shape else cp.broadcast_to(expression, shape))
        kept: list[Any] = []
        for value, there in ((x, mask), (y, ~mask)):
            if _constant(value):
                # numbers that are thrown away may be infinite
                kept.append(cp.Constant(np.where(there, np.asarray(_number(value), dtype=np.float64), 0.0)))
            else:
                kept.append(cp.multiply(there.astype(np.float64), _expression(value)))
        return Convex(kept[0] + kept[1])

    def clip(self, x: Any, min: Any = None, max: Any = None) -> Any:
        """Move into [min, max]; convex or concave with one limit only."""
        x = x if min is None else self.maximum(x, min)
        return x if max is None else self.minimum(x, max)

    def stack(self, arrays: Sequence[Any], axis: int = 0) -> Any:
        """Join arrays along a new axis."""
        return Convex(cp.stack([_expression(a) for a in arrays], axis=axis))

    def concat(self, arrays: Sequence[Any], axis: int = 0) -> Any:
        """Join arrays along an axis."""
        return Convex(cp.concatenate([_expression(a) for a in arrays], axis=axis))

    def reshape(self, x: Any, shape: int | tuple[int, ...]) -> Any:
        """Return the same elements in another shape, in C order."""
        return Convex(cp.reshape(_expression(x), (shape,) if isinstance(shape, int) else shape, order="C"))

    def broadcast_to(self, x: Any, shape: tuple[int, ...]) -> Any:
        """Return the array in a larger shape."""
        return Convex(cp.broadcast_to(_expression(x), shape))

    def expand_dims(self, x: Any, axis: int) -> Any:
        """Return the array with one more axis."""
        return self.reshape(x, np.expand_dims(np.empty(np.shape(x)), axis).shape)


def _operation(name: str, reflected: bool = False) -> Callable[..., Any]:
    def operate(self: Convex, *others: Any) -> Any:
        arguments = (*others, self) if reflected else (self, *others)
        return getattr(ConvexNamespace(), name)(*arguments)

    return operate


class Convex:
    """A cvxpy expression that behaves like an array.

    Parameters
    ----------
    expression : cvxpy expression, any shape
        Available again as ``expression``.
    """

    __slots__ = ("expression",)
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, expression: Any) -> None:
        self.expression = expression

    def __array_namespace__(self, api_version: str | None = None) -> ConvexNamespace:
        """Return the functions of convex programs."""
        return ConvexNamespace()

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        """Return a constant's value; an expression has none."""
        if not _constant(self):
            raise InputError("cvxpy: an expression has no value while a program is built")
        return np.asarray(self.expression.value, dtype=dtype)

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        if options.get("out") is not None:
            raise InputError(f"{ufunc.__name__}: expressions cannot be written into a NumPy array")
        name = ufunc.__name__
        if method == "__call__":
            return getattr(ConvexNamespace(), name)(*inputs)
        if method == "reduce" and name in _UFUNC_REDUCTIONS:
            return getattr(ConvexNamespace(), _UFUNC_REDUCTIONS[name])(inputs[0], axis=options.get("axis", 0))
        raise InputError(f"{name}.{method}: cvxpy expressions have no such function")

    def __array_function__(self, function: Any, types: Any, arguments: Any, options: Any) -> Any:
        name = _ALIASES.get(function.__name__, function.__name__)
        if name in ("shape", "ndim", "size"):
            return getattr(self, name)
        return getattr(ConvexNamespace(), name)(*arguments, **options)

    shape = property(lambda self: self.expression.shape)
    ndim = property(lambda self: self.expression.ndim)
    size = property(lambda self: self.expression.size)
    dtype = np.dtype(np.float64)
    device = "cpu"

    def __len__(self) -> int:
        return int(self.shape[0])

    def __getitem__(self, index: Any) -> Convex:
        index = index if isinstance(index, tuple) else (index,)
        shape = np.empty(self.shape)[index].shape
        kept = tuple(i for i in index if i is not None)
        part = self.expression if kept in ((), (Ellipsis,)) else self.expression[kept]
        return Convex(part if part.shape == shape else cp.reshape(part, shape, order="C"))

    def reshape(self, *shape: Any) -> Any:
        """Return the same elements in another shape, in C order."""
        return ConvexNamespace().reshape(self, shape[0] if len(shape) == 1 else shape)

    def __repr__(self) -> str:
        return f"Convex({self.expression})"

    def special(self, function: Any) -> Convex:
        """Refuse: no special function is known to cvxpy."""
        name = function if isinstance(function, str) else function.name
        raise InputError(f"{name}: cvxpy expressions have no such function")

    __add__, __radd__ = _operation("add"), _operation("add", True)
    __sub__, __rsub__ = _operation("subtract"), _operation("subtract", True)
    __mul__, __rmul__ = _operation("multiply"), _operation("multiply", True)
    __truediv__, __rtruediv__ = _operation("divide"), _operation("divide", True)
    __pow__, __rpow__ = _operation("power"), _operation("power", True)
    __neg__, __abs__ = _operation("negative"), _operation("abs")
    __lt__, __le__ = _operation("less"), _operation("less_equal")
    __gt__, __ge__ = _operation("greater"), _operation("greater_equal")
    __eq__, __ne__ = _operation("equal"), _operation("not_equal")

    def sum(self, axis: int | None = None, keepdims: bool = False) -> Convex:
        """Sum over an axis, or over everything."""
        return ConvexNamespace()._reduce("sum", self, axis, keepdims)

    def mean(self, axis: int | None = None, keepdims: bool = False) -> Convex:
        """Mean over an axis, or over everything."""
        return ConvexNamespace()._reduce("mean", self, axis, keepdims)

    def max(self, axis: int | None = None, keepdims: bool = False) -> Convex:
        """Greatest over an axis, or over everything."""
        return ConvexNamespace()._reduce("max", self, axis, keepdims)

    def min(self, axis: int | None = None, keepdims: bool = False) -> Convex:
        """Least over an axis, or over everything."""
        return ConvexNamespace()._reduce("min", self, axis, keepdims)

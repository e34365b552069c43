"""Arrays whose elements are not floats: multiprecision numbers, or symbols of a modelling tool.

`Elementwise` holds a NumPy object array and a `Kind`, the table of what can be done with one element. NumPy does the
shapes (broadcasting, indexing, reductions), the kind does the arithmetic, so a function written once against the
array API can also be evaluated in 50 digits (`extended`) or recorded as an expression graph (`symbols`).
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, cached_property
from types import SimpleNamespace
from typing import Any

import mpmath
import numpy as np
import numpy.typing as npt

from jointopt.errors import InputError, MissingExtraError, is_whole

__all__ = ["CasadiKind", "Elementwise", "ExtendedKind", "Kind", "Namespace", "extended", "symbols"]

_COMPARISONS = ("less", "less_equal", "greater", "greater_equal", "equal", "not_equal")
_REDUCTIONS = {"sum": "add", "prod": "multiply", "max": "maximum", "min": "minimum", "any": "logical_or"}
_REDUCTIONS |= {"all": "logical_and"}
# NumPy's names of functions, where they are not the array API's
_ALIASES = {
    "absolute": "abs",
    "fabs": "abs",
    "amax": "max",
    "amin": "min",
    "around": "round",
    "rint": "round",
    "concatenate": "concat",
    "true_divide": "divide",
    "pow": "power",
    "float_power": "power",
    "bitwise_and": "logical_and",
    "bitwise_or": "logical_or",
    "invert": "logical_not",
    "bitwise_invert": "logical_not",
    "fmax": "maximum",
    "fmin": "minimum",
}


class Kind:
    """What can be done with one element.

    Subclasses give `name`, `functions` (by array-API name: ``add``, ``exp``, ``where``, ...) and, where they know
    any, `special_functions` (``exp1``, ``rayleigh_rate``, ...). A function that is missing raises `InputError`.
    """

    name: str = "elements"
    epsilon: Any = float(np.finfo(np.float64).eps)

    def __init__(self) -> None:
        self._arrays: dict[str, Any] = {}

    @cached_property
    def functions(self) -> Mapping[str, Callable[..., Any]]:
        """Functions of elements, by array-API name."""
        return {name: getattr(operator, _OPERATORS[name]) for name in _OPERATORS}

    @cached_property
    def special_functions(self) -> Mapping[str, Callable[[Any], Any]]:
        """Special functions of one element, by the names of `jointopt.models.special`."""
        return {}

    def lift(self, value: float) -> Any:
        """Return a number as an element."""
        return float(value)

    def number(self, element: Any) -> float:
        """Return an element as a float, if it is a number.

        Raises
        ------
        InputError
            When it is a symbol.
        """
        raise InputError(f"{self.name}: an expression has no value; it cannot become a NumPy array")

    def apply(self, name: str, *arguments: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Apply a function elementwise; arguments broadcast. Truth values come back as a bool array."""
        with np.errstate(all="ignore"):
            out = _boxed(self.array_function(name)(*arguments))
        if name in _COMPARISONS or name.startswith(("logical", "is")):
            flat = out.reshape(-1)
            if all(isinstance(v, (bool, np.bool_)) for v in flat):
                return out.astype(bool)
        return out

    def array_function(self, name: str) -> Any:
        """Return a function of elements as a NumPy universal function on object arrays."""
        if name not in self._arrays:
            function = self.functions.get(name)
            if function is None:
                function = self.special_functions.get(name)
            if function is None:
                raise InputError(f"{name}: {self.name} have no such function")
            self._arrays[name] = np.frompyfunc(function, _ARITY.get(name, 1), 1)
        return self._arrays[name]


_OPERATORS = {
    "add": "add",
    "subtract": "sub",
    "multiply": "mul",
    "divide": "truediv",
    "power": "pow",
    "negative": "neg",
    "abs": "abs",
    "less": "lt",
    "less_equal": "le",
    "greater": "gt",
    "greater_equal": "ge",
    "equal": "eq",
    "not_equal": "ne",
}
_ARITY = dict.fromkeys(
    (
        "add",
        "subtract",
        "multiply",
        "divide",
        "power",
        "maximum",
        "minimum",
        "logical_and",
        "logical_or",
        *_COMPARISONS,
    ),
    2,
) | {"where": 3}


def _boxed(values: Any) -> npt.NDArray[Any]:
    """Values as an object array; one element, whatever it is, as an array without axes."""
    if isinstance(values, np.ndarray):
        return values
    box = np.empty(1, dtype=object)
    box[0] = values
    return box.reshape(())


class Namespace:
    """The array API over the elements of one kind, as far as models need it."""

    pi = math.pi
    e = math.e
    inf = math.inf
    nan = math.nan
    float64 = np.dtype(np.float64)

    def __init__(self, kind: Kind) -> None:
        self.kind = kind

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):
            raise AttributeError(name)
        name = _ALIASES.get(name, name)
        self.kind.array_function(name)  # unknown functions are refused by name
        return lambda *arguments: self._apply(name, *arguments)

    def _apply(self, name: str, *arguments: Any) -> Any:
        return self._wrap(self.kind.apply(name, *(self._raw(a) for a in arguments)))

    def _wrap(self, values: Any) -> Any:
        values = _boxed(values)
        return values if values.dtype == np.bool_ else Elementwise(values, self.kind)

    def _raw(self, value: Any) -> npt.NDArray[Any]:
        """Return elements as an object array; numbers are lifted, truth values stay."""
        if isinstance(value, Elementwise):
            if value.kind is not self.kind:
                raise InputError(f"{self.kind.name}: cannot be combined with {value.kind.name}")
            return value.values
        if hasattr(value, "detach"):
            value = value.detach().cpu().numpy()
        numbers = np.asarray(value)
        if numbers.dtype == np.bool_:
            return numbers
        lift = self._element if numbers.dtype == object else self.kind.lift
        # a nan among the numbers is no reason to warn
        with np.errstate(invalid="ignore"):
            return _boxed(np.frompyfunc(lift, 1, 1)(numbers))

    def _element(self, value: Any) -> Any:
        return self.kind.lift(float(value)) if isinstance(value, (int, float, np.number)) else value

    # ------------------------------------------------------------------ creation

    def asarray(self, value: Any, dtype: Any = None, copy: bool | None = None, device: Any = None) -> Any:
        """Return numbers or elements as an array; an array of truth values stays a NumPy array."""
        if isinstance(value, Elementwise):
            return value
        if isinstance(value, (list, tuple)) and any(isinstance(v, Elementwise) for v in value):
            return self.stack(list(value))
        return self._wrap(self._raw(value))

    def full_like(self, x: Any, value: float, dtype: Any = None) -> Any:
        """Return an array of the same shape, filled with a number."""
        return self._wrap(np.broadcast_to(self._raw(value), np.shape(x)).copy())

    def zeros_like(self, x: Any, dtype: Any = None) -> Any:
        """Return zeros in the same shape."""
        return self.full_like(x, 0.0)

    def ones_like(self, x: Any, dtype: Any = None) -> Any:
        """Return ones in the same shape."""
        return self.full_like(x, 1.0)

    def full(self, shape: int | tuple[int, ...], value: float, dtype: Any = None) -> Any:
        """Return an array of a shape, filled with a number."""
        return self._wrap(np.broadcast_to(self._raw(value), shape).copy())

    def zeros(self, shape: int | tuple[int, ...], dtype: Any = None) -> Any:
        """Return zeros in a shape."""
        return self.full(shape, 0.0)

    def ones(self, shape: int | tuple[int, ...], dtype: Any = None) -> Any:
        """Return ones in a shape."""
        return self.full(shape, 1.0)

    def arange(self, *bounds: float, dtype: Any = None) -> Any:
        """Return evenly spaced numbers, as `numpy.arange`."""
        return self.asarray(np.arange(*bounds))

    # ------------------------------------------------------------------ shapes

    def stack(self, arrays: Sequence[Any], axis: int = 0) -> Any:
        """Join arrays along a new axis."""
        return self._wrap(np.stack([self._objects(a) for a in arrays], axis=axis))

    def concat(self, arrays: Sequence[Any], axis: int | None = 0) -> Any:
        """Join arrays along an axis."""
        return self._wrap(np.concatenate([self._objects(a) for a in arrays], axis=axis))

    def _objects(self, value: Any) -> npt.NDArray[Any]:
        return self._raw(value).astype(object)

    def broadcast_to(self, x: Any, shape: tuple[int, ...]) -> Any:
        """Return the array in a larger shape."""
        return self._wrap(np.broadcast_to(self._raw(x), shape))

    def reshape(self, x: Any, shape: int | tuple[int, ...]) -> Any:
        """Return the same elements in another shape."""
        return self._wrap(self._raw(x).reshape(shape))

    def expand_dims(self, x: Any, axis: int) -> Any:
        """Return the array with one more axis."""
        return self._wrap(np.expand_dims(self._raw(x), axis))

    def squeeze(self, x: Any, axis: int | None = None) -> Any:
        """Return the array without an axis of length 1."""
        return self._wrap(np.squeeze(self._raw(x), axis))

    def moveaxis(self, x: Any, source: int, destination: int) -> Any:
        """Return the array with an axis moved."""
        return self._wrap(np.moveaxis(self._raw(x), source, destination))

    # ------------------------------------------------------------------ reductions

    def _reduce(self, name: str, x: Any, axis: Any, keepdims: bool) -> Any:
        values = self._raw(x)
        if values.dtype == np.bool_:
            if name != "sum":
                return getattr(np, name)(values, axis=axis, keepdims=keepdims)
            values = self._raw(values.astype(np.float64))
        shape = values.shape
        if axis is None:
            axis, values = -1, values.reshape(-1)
        elif isinstance(axis, tuple):
            raise InputError(f"{name}: one axis at a time with {self.kind.name}")
        if values.shape[axis] == 0:
            if name not in ("sum", "prod"):
                raise InputError(f"{name}: of no element")
            reduced = np.sum(np.zeros(values.shape), axis=axis) + (0.0 if name == "sum" else 1.0)
            out = self._raw(reduced)
        else:
            out = _boxed(self.kind.array_function(_REDUCTIONS[name]).reduce(values, axis=axis))
        if keepdims:
            out = out.reshape((1,) * len(shape)) if len(shape) != values.ndim else np.expand_dims(out, axis)
        if name in ("any", "all") and all(isinstance(v, (bool, np.bool_)) for v in out.reshape(-1)):
            out = out.astype(bool)
        return self._wrap(out)

    def sum(self, x: Any, axis: int | None = None, keepdims: bool = False, dtype: Any = None) -> Any:
        """Sum over an axis, or over everything."""
        return self._reduce("sum", x, axis, keepdims)

    def prod(self, x: Any, axis: int | None = None, keepdims: bool = False, dtype: Any = None) -> Any:
        """Product over an axis, or over everything."""
        return self._reduce("prod", x, axis, keepdims)

    def max(self, x: Any, axis: int | None = None, keepdims: bool = False) -> Any:
        """Greatest over an axis, or over everything."""
        return self._reduce("max", x, axis, keepdims)

    def min(self, x: Any, axis: int | None = None, keepdims: bool = False) -> Any:
        """Least over an axis, or over everything."""
        return self._reduce("min", x, axis, keepdims)

    def any(self, x: Any, axis: int | None = None, keepdims: bool = False) -> Any:
        """Whether any element is true."""
        return self._reduce("any", x, axis, keepdims)

    def all(self, x: Any, axis: int | None = None, keepdims: bool = False) -> Any:
        """Whether every element is true."""
        return self._reduce("all", x, axis, keepdims)

    def mean(self, x: Any, axis: int | None = None, keepdims: bool = False) -> Any:
        """Mean over an axis, or over everything."""
        x = self.asarray(x)
        return self.sum(x, axis, keepdims) / (x.size if axis is None else x.shape[axis])

    # ------------------------------------------------------------------ more than one elementary function

    def where(self, condition: Any, x: Any, y: Any) -> Any:
        """Choose by a condition; both choices are evaluated."""
        if not isinstance(condition, Elementwise):
            return self._wrap(np.where(condition, self._objects(x), self._objects(y)))
        return self._apply("where", condition, self._objects(x), self._objects(y))

    def clip(self, x: Any, min: Any = None, max: Any = None) -> Any:
        """Move into [min, max]; None is no limit."""
        x = self.asarray(x)
        x = x if min is None else self._apply("maximum", x, min)
        return x if max is None else self._apply("minimum", x, max)

    def square(self, x: Any) -> Any:
        """Return x * x."""
        return self._apply("power", x, 2.0)

    def matmul(self, x: Any, y: Any) -> Any:
        """Matrix product of arrays with one or two axes."""
        left, right = self.asarray(x), self.asarray(y)
        if right.ndim == 1:
            return self.sum(left * right, axis=-1)
        if left.ndim == 1:
            return self.sum(left[:, None] * right, axis=0)
        return self.sum(left[:, :, None] * right[None, :, :], axis=1)

    def finfo(self, dtype: Any = None) -> SimpleNamespace:
        """Return the spacing of numbers at 1, as `eps`."""
        return SimpleNamespace(eps=self.kind.epsilon)

    def isdtype(self, dtype: Any, kind: Any) -> Any:
        """Elements count as real floating numbers."""
        return kind in ("real floating", "numeric")


def _operation(name: str, reflected: bool = False) -> Callable[..., Any]:
    def operate(self: Elementwise, other: Any) -> Any:
        pair = (other, self) if reflected else (self, other)
        return self.__array_namespace__()._apply(name, *pair)

    return operate


class Elementwise:
    """An array of elements of one kind, which behaves like a NumPy array.

    Parameters
    ----------
    values : object array, any shape
        The elements.
    kind : Kind
        What can be done with them. Arrays of two kinds cannot be combined; floats can be with any kind.
    """

    __slots__ = ("kind", "values")
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, values: npt.NDArray[Any], kind: Kind) -> None:
        self.values, self.kind = values, kind

    # ------------------------------------------------------------------ as NumPy sees it

    def __array_namespace__(self, api_version: str | None = None) -> Namespace:
        """Return the functions on arrays of this kind."""
        return Namespace(self.kind)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        """Round numbers to float64; symbols cannot be."""
        numbers = np.array([self.kind.number(v) for v in self.values.reshape(-1)], dtype=np.float64)
        return numbers.reshape(self.values.shape).astype(dtype or np.float64)

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        if options.get("out") is not None:
            raise InputError(f"{ufunc.__name__}: results cannot be written into a NumPy array")
        name = _ALIASES.get(ufunc.__name__, ufunc.__name__)
        xp = self.__array_namespace__()
        if method == "__call__":
            return getattr(xp, name)(*inputs)
        if method == "reduce":
            name = next((key for key, value in _REDUCTIONS.items() if value == name), name)
            return getattr(xp, name)(inputs[0], axis=options.get("axis", 0), keepdims=options.get("keepdims", False))
        raise InputError(f"{name}.{method}: is not known to {self.kind.name}")

    def __array_function__(self, function: Any, types: Any, arguments: Any, options: Any) -> Any:
        name = _ALIASES.get(function.__name__, function.__name__)
        if name in ("shape", "ndim", "size"):
            return getattr(self, name)
        if name == "clip":
            options = {{"a_min": "min", "a_max": "max"}.get(key, key): value for key, value in options.items()}
        return getattr(self.__array_namespace__(), name)(*arguments, **options)

    # ------------------------------------------------------------------ shape and elements

    shape = property(lambda self: self.values.shape)
    ndim = property(lambda self: self.values.ndim)
    size = property(lambda self: self.values.size)
    dtype = property(lambda self: self.values.dtype)
    device = "cpu"

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: Any) -> Elementwise:
        return Elementwise(_boxed(self.values[index]), self.kind)

    def __iter__(self) -> Iterator[Elementwise]:
        return (self[i] for i in range(len(self.values)))

    def __float__(self) -> float:
        return float(self.__array__().reshape(-1)[0]) if self.size == 1 else float(self.__array__())

    def __bool__(self) -> bool:
        return bool(self.__array__())

    def item(self) -> Any:
        """Return the one element."""
        return self.values.item()

    def tolist(self) -> Any:
        """Return nested lists of elements."""
        return self.values.tolist()

    def reshape(self, *shape: Any) -> Elementwise:
        """Return the same elements in another shape."""
        return Elementwise(self.values.reshape(*shape), self.kind)

    def __repr__(self) -> str:
        return f"Elementwise({self.kind.name}, {self.values!r})"

    def special(self, function: Any) -> Elementwise:
        """Apply a special function, known by its ``name``, or by its ``formula`` where it has one.

        Raises
        ------
        InputError
            When the kind has no such function; the message names both.
        """
        name = function if isinstance(function, str) else function.name
        formula = getattr(function, "formula", None)
        if formula is not None and name not in self.kind.special_functions:
            out: Elementwise = formula(self)
            return out
        return Elementwise(self.kind.apply(name, self.values), self.kind)

    # ------------------------------------------------------------------ arithmetic

    __add__, __radd__ = _operation("add"), _operation("add", True)
    __sub__, __rsub__ = _operation("subtract"), _operation("subtract", True)
    __mul__, __rmul__ = _operation("multiply"), _operation("multiply", True)
    __truediv__, __rtruediv__ = _operation("divide"), _operation("divide", True)
    __pow__, __rpow__ = _operation("power"), _operation("power", True)
    __and__, __rand__ = _operation("logical_and"), _operation("logical_and", True)
    __or__, __ror__ = _operation("logical_or"), _operation("logical_or", True)
    __lt__, __le__ = _operation("less"), _operation("less_equal")
    __gt__, __ge__ = _operation("greater"), _operation("greater_equal")
    __eq__, __ne__ = _operation("equal"), _operation("not_equal")

    def __matmul__(self, other: Any) -> Any:
        return self.__array_namespace__().matmul(self, other)

    def __rmatmul__(self, other: Any) -> Any:
        return self.__array_namespace__().matmul(other, self)

    def __neg__(self) -> Any:
        return self.__array_namespace__()._apply("negative", self)

    def __abs__(self) -> Any:
        return self.__array_namespace__()._apply("abs", self)

    def __invert__(self) -> Any:
        return self.__array_namespace__()._apply("logical_not", self)

    def sum(self, axis: int | None = None, keepdims: bool = False) -> Any:
        """Sum over an axis, or over everything."""
        return self.__array_namespace__().sum(self, axis, keepdims)

    def mean(self, axis: int | None = None, keepdims: bool = False) -> Any:
        """Mean over an axis, or over everything."""
        return self.__array_namespace__().mean(self, axis, keepdims)

    def max(self, axis: int | None = None, keepdims: bool = False) -> Any:
        """Greatest over an axis, or over everything."""
        return self.__array_namespace__().max(self, axis, keepdims)

    def min(self, axis: int | None = None, keepdims: bool = False) -> Any:
        """Least over an axis, or over everything."""
        return self.__array_namespace__().min(self, axis, keepdims)


# Multiprecision -------------------------------------------------------------------------------------------------


class ExtendedKind(Kind):
    """Real numbers of mpmath with a number of decimal digits, with the infinities and nan of floats.

    Where floats give an infinity or nan without an error, so do these: 1/0, log(0), log(-1), 0/0.
    """

    def __init__(self, digits: int) -> None:
        super().__init__()
        if not (is_whole(digits) and digits >= 15):
            raise InputError(f"digits: {digits!r} must be a whole number of at least 15")
        # a context of its own: mpmath's global precision is left alone
        self.context: Any = mpmath.mp.clone()
        self.context.dps = digits
        self.epsilon = self.context.eps
        self.name = f"extended numbers of {digits} digits"
        self._nan = self.context.mpf("nan")

    def lift(self, value: float) -> Any:
        """Return the float, exactly."""
        return self.context.mpf(float(value))

    def number(self, element: Any) -> float:
        """Return the nearest float."""
        return float(element)

    def _real(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that answers nan where the answer is complex, or there is none."""

        def real(*arguments: Any) -> Any:
            if any(a != a for a in arguments):
                return self._nan
            try:
                value = function(*arguments)
            except (ZeroDivisionError, ValueError, OverflowError):
                return self._nan
            return value if isinstance(value, self.context.mpf) else self._nan

        return real

    @cached_property
    def functions(self) -> Mapping[str, Callable[..., Any]]:
        """Elementary functions."""
        c = self.context
        zero, inf = c.mpf(0), c.inf

        def divide(a: Any, b: Any) -> Any:
            if b == 0:
                return self._nan if a == 0 or a != a else (inf if a > 0 else -inf)
            return a / b

        def power(a: Any, b: Any) -> Any:
            if a == 0 and b < 0:
                return inf
            return a**b

        def log(a: Any) -> Any:
            return -inf if a == 0 else c.log(a)

        def rounded(a: Any) -> Any:
            return a if c.isinf(a) else c.nint(a)

        def whole(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
            return lambda a: a if c.isinf(a) or a != a else function(a)

        real = self._real
        return {
            **super().functions,
            "divide": divide,
            "power": real(power),
            "exp": real(c.exp),
            "expm1": real(lambda a: a if c.isinf(a) and a > 0 else c.expm1(a)),
            "log": real(log),
            "log1p": real(lambda a: -inf if a == -1 else (a if a == inf else c.log1p(a))),
            "log2": real(lambda a: log(a) / c.ln2),
            "log10": real(lambda a: log(a) / c.ln10),
            "sqrt": real(c.sqrt),
            "maximum": lambda a, b: a if a != a or a >= b else b,
            "minimum": lambda a, b: a if a != a or a <= b else b,
            "floor": whole(c.floor),
            "ceil": whole(c.ceil),
            "round": whole(rounded),
            "sign": lambda a: self._nan if a != a else c.mpf(int(a > zero) - int(a < zero)),
            "isfinite": lambda a: bool(c.isfinite(a)),
            "isnan": lambda a: bool(c.isnan(a)),
            "isinf": lambda a: bool(c.isinf(a)),
            "logical_not": operator.not_,
            "logical_and": lambda a, b: bool(a) and bool(b),
            "logical_or": lambda a, b: bool(a) or bool(b),
            "where": lambda condition, a, b: a if condition else b,
        }

    @cached_property
    def special_functions(self) -> Mapping[str, Callable[[Any], Any]]:
        """Special functions and the fading means, straight from their definitions."""
        c = self.context
        wide: Any = mpmath.mp.clone()
        zero, one = c.mpf(0), c.mpf(1)

        def careful(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
            """Evaluate with as many more digits as a small or large argument can cost."""

            def evaluate(x: Any) -> Any:
                if c.isinf(x):
                    return function(x)
                size = abs(c.mag(x)) if x else 0
                wide.prec = 2 * c.prec + 2 * min(size, 4 * c.prec)
                return c.mpf(function(wide.mpf(x)))

            return evaluate

        def domain(low: Any, at_low: Any, at_inf: Any, function: Callable[[Any], Any]) -> Callable[[Any], Any]:
            def evaluate(x: Any) -> Any:
                if x != x or x < low:
                    return self._nan
                if x == low:
                    return at_low
                return at_inf if c.isinf(x) else careful(function)(x)

            return evaluate

        def bessel(order: int, x: Any) -> Any:
            return wide.besselk(order, x)

        def stieltjes(n: int) -> Callable[[Any], Any]:  # E[1/(x + o)^n], o ~ Exp(1)
            return lambda x: wide.exp(x) * x ** (1 - n) * wide.expint(n, x)

        def moment(n: int) -> Callable[[Any], Any]:  # E[(o/(1 + s o))^n], o ~ Exp(1)
            def evaluate(s: Any) -> Any:
                z = 1 / s
                total = wide.mpf(1)
                for j in range(1, n + 1):
                    total += (-1) ** j * wide.binomial(n, j) * z * wide.exp(z) * wide.expint(j, z)
                return z**n * total

            return evaluate

        # the double nearest -1/e stands for it
        branch = c.mpf(-math.exp(-1.0))

        def lambertw(x: Any) -> Any:
            if x != x or x < branch:
                return self._nan
            return c.mpf(-1) if x == branch else c.re(c.lambertw(x))

        inf = c.inf
        table = {
            "exp1": domain(zero, inf, zero, lambda x: wide.e1(x)),
            "k0": domain(zero, inf, zero, lambda x: bessel(0, x)),
            "k1": domain(zero, inf, zero, lambda x: bessel(1, x)),
            "x_k0": domain(zero, zero, zero, lambda x: x * bessel(0, x)),
            "x_k1": domain(zero, one, zero, lambda x: x * bessel(1, x)),
            "lambertw": lambertw,
            "rayleigh_rate": domain(zero, zero, inf, lambda s: wide.exp(1 / s) * wide.e1(1 / s) / wide.ln2),
            "rayleigh_packet_error": domain(
                zero, zero, one, lambda x: 1 - 2 * wide.sqrt(x) * bessel(1, 2 * wide.sqrt(x))
            ),
        }
        for n in range(1, 6):
            table[f"stieltjes_{n}"] = domain(zero, inf, zero, stieltjes(n))
            table[f"moment_{n}"] = domain(zero, c.mpf(math.factorial(n)), zero, moment(n))
        table["exp_exp1"] = table["stieltjes_1"]

        def laplace(r: Any) -> Any:
            x = -wide.log1p(-r)
            return 1 - (1 - r) * (1 + x + x * x / 2)

        def ratio(at_one: Any, function: Callable[[Any], Any]) -> Callable[[Any], Any]:
            inside = careful(function)

            def evaluate(r: Any) -> Any:
                if r == 0 or r == 1:
                    return at_one if r == 1 else zero
                return inside(r) if r < 1 else self._nan

            return evaluate

        # shares of what pruning removes from Laplace weights, and bits of a mask
        table["laplace_pruning_error"] = ratio(one, laplace)
        table["laplace_magnitude_distortion"] = ratio(one, lambda r: r + (1 - r) * wide.log1p(-r))
        table["binary_entropy"] = ratio(
            zero, lambda r: -(r * wide.log(r) + (1 - r) * wide.log1p(-r)) / wide.ln2 if r > 0 else wide.nan
        )
        return table


@cache
def _extended_kind(digits: int) -> ExtendedKind:
    return ExtendedKind(digits)


def extended(values: npt.ArrayLike, digits: int = 50) -> Elementwise:
    """Return numbers as an array of mpmath reals.

    Parameters
    ----------
    values : array, any shape
        Taken over exactly.
    digits : int
        Decimal digits carried, at least 15.

    Returns
    -------
    Elementwise, same shape
        Works in models and in `Problem.evaluate`; ``np.asarray`` rounds it to float64.

    Raises
    ------
    InputError
        For a number of digits out of range, or what is no number.
    """
    kind = _extended_kind(digits)
    try:
        numbers = np.atleast_1d(np.asarray(values, dtype=np.float64))
    except (TypeError, ValueError):
        raise InputError(f"values: expected numbers, got {values!r}") from None
    out: Elementwise = Namespace(kind).asarray(numbers)
    return out


# CasADi ---------------------------------------------------------------------------------------------------------


class CasadiKind(Kind):
    """Scalar expressions of CasADi (SX), for exact derivatives; special functions are not among them."""

    name = "CasADi expressions"

    def __init__(self) -> None:
        super().__init__()
        try:
            import casadi
        except ImportError:
            raise MissingExtraError("casadi", "ipopt", "tracing a problem with CasADi") from None
        self.casadi: Any = casadi

    def number(self, element: Any) -> float:
        """Return a constant as a float."""
        if isinstance(element, float):
            return element
        if isinstance(element, self.casadi.SX) and element.is_constant():
            return float(element)
        return super().number(element)

    @cached_property
    def functions(self) -> Mapping[str, Callable[..., Any]]:
        """Elementary functions; constants are folded in floats."""
        ca = self.casadi

        def power(a: Any, b: Any) -> Any:
            # x^2 as a product: a logarithm of a negative base has no place in the derivative
            return a * a if isinstance(b, float) and b == 2.0 else a**b

        def where(condition: Any, a: Any, b: Any) -> Any:
            if isinstance(condition, (bool, np.bool_)):
                return a if condition else b
            return ca.if_else(condition, a, b)

        def both(a: Any, b: Any) -> Any:
            if isinstance(a, (bool, np.bool_)):
                return b if a else False
            return both(b, a) if isinstance(b, (bool, np.bool_)) else ca.logic_and(a, b)

        def either(a: Any, b: Any) -> Any:
            if isinstance(a, (bool, np.bool_)):
                return True if a else b
            return either(b, a) if isinstance(b, (bool, np.bool_)) else ca.logic_or(a, b)

        def denied(a: Any) -> Any:
            return not a if isinstance(a, (bool, np.bool_)) else ca.logic_not(a)

        return {
            **super().functions,
            "divide": lambda a, b: float(np.divide(a, b)) if isinstance(a, float) and isinstance(b, float) else a / b,
            "power": power,
            "exp": ca.exp,
            "expm1": ca.expm1,
            "log": ca.log,
            "log1p": ca.log1p,
            "log2": lambda a: ca.log(a) / math.log(2.0),
            "log10": ca.log10,
            "sqrt": ca.sqrt,
            "abs": ca.fabs,
            "sign": ca.sign,
            "maximum": ca.fmax,
            "minimum": ca.fmin,
            "floor": ca.floor,
            "ceil": ca.ceil,
            "round": lambda a: ca.floor(a + 0.5),
            "isfinite": lambda a: math.isfinite(a) if isinstance(a, float) else True,
            "isnan": lambda a: math.isnan(a) if isinstance(a, float) else False,
            "logical_not": denied,
            "logical_and": both,
            "logical_or": either,
            "where": where,
        }


def symbols(name: str, shape: int | tuple[int, ...], kind: CasadiKind | None = None) -> Elementwise:
    """Return an array of CasADi variables; give arrays that are to be combined one `kind`.

    Raises
    ------
    MissingExtraError
        Without CasADi.
    """
    kind = _casadi_kind() if kind is None else kind
    values = np.empty(shape, dtype=object)
    for index in np.ndindex(values.shape):
        values[index] = kind.casadi.SX.sym("_".join((name, *map(str, index))))
    return Elementwise(values, kind)


@cache
def _casadi_kind() -> CasadiKind:
    return CasadiKind()

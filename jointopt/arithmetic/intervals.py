"""Interval arithmetic with forward derivatives: one evaluation of a function encloses it over whole boxes of points.

An `Interval` runs through code written against the array API, the models among it, and gives at every element an
enclosure of the value over a box and, for each seeded coordinate, an enclosure of the derivative over the box.

What is promised
----------------
* *Values.* At every point of the box where the function is defined its value lies within ``[low, high]``.
* *Derivatives.* For any two points x and c of the box at which the function is defined there are g_k within
  ``[dlow[k], dhigh[k]]`` such that f(x) - f(c) = sum_k g_k (x_k - c_k), with inf * 0 = 0: the mean-value form.
  At a kink the enclosure holds every generalized derivative; where the function jumps (`floor`, a `where` that is
  undecided) or leaves its domain within the box (log of an interval that reaches below 0) it is infinite.
* *No nan.* What is undefined all over the box (log of negative numbers, 0/0 of constants, nan itself) is enclosed by
  ``[-inf, inf]``: nothing is known about it. 1/0 is not defined; 1/[0, 2] is [1/2, inf].
* *Infinite ends* mean "unbounded", not a value that is taken, so 0 * [0, inf] = 0. An infinite constant is a value:
  inf * [0, 1] is ``[-inf, inf]``.

* *Choices.* A comparison with what is not defined at a point (nan) is not defined there either; NumPy would say no.

Rounding: every operation moves its ends outward by a relative 3e-16 (+, -, *, / and square root, which NumPy rounds
correctly), 1e-15 (exp, log and powers, good to 4 units in the last place) or a special function's own accuracy
(1e-13), which never changes a sign. Sums widen by as much as their number of terms asks for. Products and quotients
that underflow (below 1e-307) and numbers beyond 1.8e308 are not covered.

Speed: signs known for a whole array pick formulas with one product per end; a derivative that is zero is not
stored, one that is constant stays a scalar. Ends are NumPy arrays, or arrays of a namespace of their own (multiple
precision) that offers the array API's functions and ``finfo``.

What it does not know raises an `InputError` that names the function.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from typing import Any, NoReturn

import numpy as np

from jointopt.errors import InputError

__all__ = ["Interval", "Mask", "intervals"]

Array = Any
Piece = tuple[Array, Array]  # ends of one derivative, of a shape that broadcasts to the value's
Pieces = tuple[Piece | None, ...] | None  # per coordinate, None for zero; None when there is no coordinate

_EPS = 3e-16  # correctly rounded operations: half a unit in the last place is 1.2e-16
_EPS_FUNCTION = 1e-15  # NumPy's functions stay within 4 units in the last place

_quiet = np.errstate(all="ignore")


# Pairs of ends ------------------------------------------------------------------------------------------------


def _namespace(a: Array) -> Any:
    """Namespace of an end: NumPy, unless it has one of its own."""
    if isinstance(a, np.ndarray | np.generic | float | int):
        return np
    return a.__array_namespace__()


def _sign(low: Array, high: Array) -> int:
    """1 where all is >= 0, -1 where all is <= 0, else 0."""
    xp = _namespace(low)
    if xp is not np:
        return 1 if bool(xp.all(low >= 0)) else -1 if bool(xp.all(high <= 0)) else 0
    if np.size(low) == 0 or np.min(low) >= 0.0:
        return 1
    return -1 if np.max(high) <= 0.0 else 0


def _sign_plain(c: Array) -> int:
    if isinstance(c, float | int):
        return 1 if c >= 0 else -1
    return _sign(c, c)


def _has_nan(a: Array) -> bool:
    xp = _namespace(a)
    if xp is not np:
        return bool(xp.any(xp.isnan(a)))
    return np.size(a) > 0 and bool(np.isnan(np.min(a)))


def _relative(a: Array, eps: float) -> Any:
    """A relative error in float64, as it is in the precision of an array."""
    xp = _namespace(a)
    return eps if xp is np else eps / _EPS * 4.0 * xp.finfo(a.dtype).eps


def _logarithm(base: float, a: Array) -> Any:
    """Natural logarithm of a number, in the precision of an array."""
    xp = _namespace(a)
    return math.log(base) if xp is np else xp.log(xp.asarray(base))


def _outward(low: Array, high: Array, sign: int = 0, eps: float = _EPS) -> Piece:
    """Ends moved outward by a relative eps. Overwrites its arguments, which must be new arrays."""
    xp = _namespace(low)
    if xp is not np:
        eps = _relative(low, eps)
        return low - abs(low) * eps, high + abs(high) * eps
    if sign > 0:
        low *= 1.0 - eps
        high *= 1.0 + eps
        return low, high
    if sign < 0:
        low *= 1.0 + eps
        high *= 1.0 - eps
        return low, high
    return np.minimum(low * (1.0 - eps), low * (1.0 + eps)), np.maximum(high * (1.0 - eps), high * (1.0 + eps))


_LEAST = 2.3e-308  # above what may have lost digits to underflow


def _settled(low: Array, high: Array) -> Piece:
    """Ends with -inf and inf instead of nan."""
    if _has_nan(low) or _has_nan(high):
        xp = _namespace(low)
        unknown = xp.isnan(low) | xp.isnan(high)
        return xp.where(unknown, -math.inf, low), xp.where(unknown, math.inf, high)
    return low, high


def _sum(a: Piece, b: Piece, sign: int = 0) -> Piece:
    return _settled(*_outward(a[0] + b[0], a[1] + b[1], sign))


def _hull(a: Piece, b: Piece) -> Piece:
    xp = _namespace(a[0] if _namespace(a[0]) is not np else b[0])
    return xp.minimum(a[0], b[0]), xp.maximum(a[1], b[1])


def _product(a: Piece, sa: int, b: Piece, sb: int) -> Piece:
    """Product of two intervals of known signs (0: not known)."""
    if sa == 0 and sb != 0:
        a, sa, b, sb = b, sb, a, sa
    (al, ah), (bl, bh) = a, b
    xp = _namespace(al if _namespace(al) is not np else bl)
    if sa > 0:
        if sb > 0:
            low, high = al * bl, ah * bh
        elif sb < 0:
            low, high = ah * bl, al * bh
        else:
            low, high = xp.minimum(al * bl, ah * bl), xp.maximum(al * bh, ah * bh)
    elif sa < 0:
        if sb > 0:
            low, high = al * bh, ah * bl
        elif sb < 0:
            low, high = ah * bh, al * bl
        else:
            low, high = xp.minimum(al * bh, ah * bh), xp.maximum(al * bl, ah * bl)
    else:
        one, two, three, four = al * bl, al * bh, ah * bl, ah * bh
        low = xp.minimum(xp.minimum(one, two), xp.minimum(three, four))
        high = xp.maximum(xp.maximum(one, two), xp.maximum(three, four))
    if _has_nan(low) or _has_nan(high):  # 0 * inf, which is 0 here
        corners = [xp.where(xp.isnan(p), 0.0, p) for p in (al * bl, al * bh, ah * bl, ah * bh)]
        low = xp.minimum(xp.minimum(corners[0], corners[1]), xp.minimum(corners[2], corners[3]))
        high = xp.maximum(xp.maximum(corners[0], corners[1]), xp.maximum(corners[2], corners[3]))
    return _outward(low, high, sa * sb)


def _reciprocal(b: Piece) -> Piece:
    """1/b for intervals of any sign; infinite where b holds 0."""
    low, high = b
    xp = _namespace(low)
    up = xp.where(low == 0, math.inf, 1.0 / low)
    down = xp.where(high == 0, -math.inf, 1.0 / high)
    crossing = (low < 0) & (high > 0)
    return _outward(xp.where(crossing, -math.inf, down), xp.where(crossing, math.inf, up))


def _quotient(a: Piece, sa: int, b: Piece, sb: int) -> Piece:
    """Quotient of two intervals of known signs (0: not known)."""
    if sb == 0:
        return _product(a, sa, _reciprocal(b), 0)
    if sb < 0:
        low, high = _quotient(a, sa, (-b[1], -b[0]), 1)
        return -high, -low
    al, ah = a
    bl, bh = b[0] + 0.0, b[1] + 0.0  # no -0.0, whose reciprocal has the wrong sign
    xp = _namespace(al if _namespace(al) is not np else bl)
    if sa > 0:
        low, high = al / bh, ah / bl
    elif sa < 0:
        low, high = al / bl, ah / bh
    else:
        low, high = xp.minimum(al / bl, al / bh), xp.maximum(ah / bl, ah / bh)
    if _has_nan(low) or _has_nan(high):  # 0/0 at an end is 0 as 0 * inf is; inf/inf is anything
        low = xp.where(xp.isnan(low), xp.where(al == 0, 0.0, -math.inf), low)
        high = xp.where(xp.isnan(high), xp.where(ah == 0, 0.0, math.inf), high)
    nothing = bh == 0
    if bool(xp.any(nothing)):
        low, high, sa = xp.where(nothing, -math.inf, low), xp.where(nothing, math.inf, high), 0
    return _outward(low, high, sa)


def _scaled(a: Piece, sa: int, c: Array) -> Piece:
    """Interval times numbers, which are values: inf * 0 is not known."""
    if isinstance(c, float | int):
        if c == 0:
            return 0.0 * np.isnan(a[0]), 0.0 * np.isnan(a[0])
        if abs(math.frexp(c)[0]) == 0.5:  # a power of two rounds nothing
            return (a[0] * c, a[1] * c) if c > 0 else (a[1] * c, a[0] * c)
    sc = _sign_plain(c)
    low, high = a[0] * c, a[1] * c
    if sc < 0:
        low, high = high, low
    elif sc == 0:
        xp = _namespace(low)
        low, high = xp.minimum(low, high), xp.maximum(low, high)
    if _has_nan(low) or _has_nan(high):
        xp = _namespace(low)
        nothing, unknown = c == 0, xp.isnan(low) | xp.isnan(high)
        low = xp.where(unknown, xp.where(nothing, 0.0, -math.inf), low)
        high = xp.where(unknown, xp.where(nothing, 0.0, math.inf), high)
    return _outward(low, high, sa * sc)


def _divided(a: Piece, sa: int, c: Array) -> Piece:
    """Interval over numbers; anything where they are 0."""
    sc = _sign_plain(c)
    low, high = a[0] / c, a[1] / c
    if sc < 0:
        low, high = high, low
    elif sc == 0:
        xp = _namespace(low)
        low, high = xp.minimum(low, high), xp.maximum(low, high)
    xp = _namespace(low)
    if (c == 0) if isinstance(c, float | int) else bool(xp.any(c == 0)):
        low, high = xp.where(c == 0, -math.inf, low), xp.where(c == 0, math.inf, high)
    return _settled(*_outward(low, high, sa * sc))


# Derivatives ----------------------------------------------------------------------------------------------------


def _is_one(piece: Piece) -> bool:
    return piece[0] is piece[1] and np.ndim(piece[0]) == 0 and piece[0] == 1.0


def _chain(pieces: Pieces, slope: Piece, sign: int) -> Pieces:
    """Derivatives of a function of an interval from its slope."""
    if pieces is None:
        return None
    return tuple(None if p is None else slope if _is_one(p) else _product(slope, sign, p, _sign(*p)) for p in pieces)


def _same_coordinates(a: Pieces, b: Pieces) -> None:
    if a is not None and b is not None and len(a) != len(b):
        raise InputError(f"interval: derivatives in {len(a)} and in {len(b)} coordinates do not go together")


def _joined(a: Pieces, b: Pieces, join: Callable[[Piece, Piece], Piece]) -> Pieces:
    """Derivatives of a sum of two terms, by `join` where both depend on a coordinate."""
    _same_coordinates(a, b)
    if a is None or b is None:
        return b if a is None else a
    return tuple(q if p is None else p if q is None else join(p, q) for p, q in zip(a, b, strict=True))


def _chosen(a: Pieces, b: Pieces, pick: Callable[[int, Piece, Piece], Piece], always: Sequence[bool] = ()) -> Pieces:
    """Derivatives of a choice between two: zero only where both are, and `always` is not."""
    _same_coordinates(a, b)
    if a is None and b is None and not any(always):
        return None
    count = len(a if a is not None else b if b is not None else always)
    left, right = a or (None,) * count, b or (None,) * count
    zero = (np.float64(0.0), np.float64(0.0))
    return tuple(
        None if p is None and q is None and not (always and always[k]) else pick(k, p or zero, q or zero)
        for k, (p, q) in enumerate(zip(left, right, strict=True))
    )


# The array --------------------------------------------------------------------------------------------------------


class Interval:
    """An array of intervals, each with the derivatives in a few coordinates.

    Parameters
    ----------
    low, high : arrays of one shape
        Ends; nan gives an unknown element, [-inf, inf].
    dlow, dhigh : arrays, shape [coordinates, ...], optional
        Ends of the derivatives; left out for what depends on no coordinate.

    Raises
    ------
    InputError
        Where an end `low` is above `high`, or the shapes do not match.
    """

    __slots__ = ("_pieces", "_signed", "high", "low")
    __hash__ = None  # type: ignore[assignment]

    low: Array
    high: Array
    _pieces: Pieces
    _signed: int | None

    def __init__(self, low: Array, high: Array, dlow: Array = None, dhigh: Array = None) -> None:
        self.low, self.high = _ends("interval", low, high)
        self._pieces, self._signed = None, None
        if (dlow is None) != (dhigh is None):
            raise InputError("interval: dlow and dhigh go together")
        if dlow is not None:
            low_, high_ = _ends("interval: derivative", dlow, dhigh)
            self._pieces = tuple((low_[k], high_[k]) for k in range(low_.shape[0]))

    @staticmethod
    def variables(lows: Array, highs: Array, logarithmic: Sequence[bool] | None = None) -> list[Interval]:
        """Return the coordinates of boxes as intervals; the i-th has derivative 1 in coordinate i.

        Parameters
        ----------
        lows, highs : arrays, shape [coordinates, ...]
            Ends of the boxes.
        logarithmic : sequence of bool, optional
            Coordinates, positive, in whose logarithm derivatives are taken.
        """
        low, high = _ends("interval", lows, highs)
        one = np.float64(1.0)
        count = low.shape[0]
        slopes = [(one, one) if logarithmic is None or not logarithmic[i] else (low[i], high[i]) for i in range(count)]
        return [
            _make(low[i], high[i], tuple(slopes[i] if k == i else None for k in range(count))) for i in range(count)
        ]

    @staticmethod
    def constant(low: Array, high: Array = None) -> Interval:
        """Return an interval that depends on no coordinate; a number where `high` is left out."""
        if high is None:
            ends = _ends("interval", low, low)
            return _make(ends[0], ends[0] if np.array_equal(*ends) else ends[1], None)
        return _make(*_ends("interval", low, high), None)

    # ---------------------------------------------------------------- what it is

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array."""
        return tuple(self.low.shape)

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def dtype(self) -> Any:
        """Type of the ends."""
        return self.low.dtype

    @property
    def coordinates(self) -> int:
        """Number of coordinates there are derivatives in."""
        return 0 if self._pieces is None else len(self._pieces)

    @property
    def dlow(self) -> Array | None:
        """Lower ends of the derivatives, shape [coordinates, ...]; None for what depends on no coordinate."""
        return self._derivative(0)

    @property
    def dhigh(self) -> Array | None:
        """Upper ends of the derivatives, shape [coordinates, ...]; None for what depends on no coordinate."""
        return self._derivative(1)

    def derivative(self, coordinate: int) -> tuple[Array, Array] | None:
        """Return the ends of one derivative, arrays that broadcast to the shape; None where it is zero."""
        return None if self._pieces is None else self._pieces[coordinate]

    def _derivative(self, end: int) -> Array | None:
        if self._pieces is None:
            return None
        xp = _namespace(self.low)
        return xp.stack([xp.broadcast_to(xp.asarray(0.0 if p is None else p[end]), self.shape) for p in self._pieces])

    def _sign(self) -> int:
        if self._signed is None:
            self._signed = _sign(self.low, self.high)
        return self._signed

    @property
    def _ends(self) -> Piece:
        return self.low, self.high

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("an interval without axes has no length")
        return self.shape[0]

    def __repr__(self) -> str:
        return f"Interval({self.low!r}, {self.high!r}, coordinates={self.coordinates})"

    def __getitem__(self, index: Any) -> Interval:
        return self._mapped(lambda a: a[index])

    def __iter__(self) -> Iterable[Interval]:
        return iter([self[i] for i in range(len(self))])

    def _mapped(self, function: Callable[[Array], Array]) -> Interval:
        """Return the same rearrangement of ends and derivatives; scalars need none."""
        shape = self.shape

        def of(a: Array) -> Array:
            return a if np.ndim(a) == 0 else function(a if a.shape == shape else np.broadcast_to(a, shape))

        pieces = (
            None if self._pieces is None else tuple(None if p is None else (of(p[0]), of(p[1])) for p in self._pieces)
        )
        if self.low is self.high:
            low = function(self.low)
            return _make(low, low, pieces)
        return _make(function(self.low), function(self.high), pieces, self._signed)

    def reshape(self, *shape: Any) -> Interval:
        """Return the elements in another shape."""
        return self._mapped(lambda a: a.reshape(*shape))

    # ---------------------------------------------------------------- protocols

    def __array_namespace__(self, *, api_version: str | None = None) -> Any:
        return intervals

    def __array__(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise InputError("an interval is no array of numbers; use its low and high ends")

    def __float__(self) -> NoReturn:
        raise InputError("an interval is no number; use its low and high ends")

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        return _dispatched_ufunc(ufunc, method, inputs, kwargs)

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        return getattr(intervals, _ALIASES.get(function.__name__, function.__name__))(*args, **kwargs)

    def special(self, function: Any) -> Interval:
        """Return an elementwise special function of the intervals (`jointopt.models.special`).

        The function is called at the ends, as is its `slope`; `lower`, `upper`, `monotone`, `turn`, `slope_monotone`,
        `slope_turn` and `slope_lower` say what lies between them, `accuracy` how exact they are.
        """
        return _special(self, function)

    def interpolate(self, known: Array, values: Array) -> Interval:
        """Return a rising piecewise linear function, its last pieces going on beyond its ends.

        Parameters
        ----------
        known, values : arrays, shape [points]
            The points it passes through, both strictly increasing.
        """
        return _interpolated(self, known, values)

    # ---------------------------------------------------------------- arithmetic

    def __pos__(self) -> Interval:
        return self

    def __neg__(self) -> Interval:
        pieces = None if self._pieces is None else tuple(None if p is None else (-p[1], -p[0]) for p in self._pieces)
        if self.low is self.high:
            low = -self.low
            return _make(low, low, pieces)
        return _make(-self.high, -self.low, pieces, None if self._signed is None else -self._signed)

    def __abs__(self) -> Interval:
        return _abs(self)

    def __add__(self, other: Any) -> Any:
        other = _operand(other)
        return other if other is NotImplemented else _add(self, other)

    __radd__ = __add__

    def __sub__(self, other: Any) -> Any:
        other = _operand(other)
        return other if other is NotImplemented else _add(self, -other)

    def __rsub__(self, other: Any) -> Any:
        other = _operand(other)
        return other if other is NotImplemented else _add(-self, other)

    def __mul__(self, other: Any) -> Any:
        other = _operand(other)
        return other if other is NotImplemented else _multiply(self, other)

    __rmul__ = __mul__

    def __truediv__(self, other: Any) -> Any:
        other = _operand(other)
        return other if other is NotImplemented else _divide(self, other)

    def __rtruediv__(self, other: Any) -> Any:
        other = _operand(other)
        return other if other is NotImplemented else _divide(other, self)

    def __pow__(self, other: Any) -> Any:
        other = _operand(other)
        return other if other is NotImplemented else _power(self, other)

    def __rpow__(self, other: Any) -> Any:
        other = _operand(other)
        return other if other is NotImplemented else _power(other, self)

    # ---------------------------------------------------------------- comparisons

    def __lt__(self, other: Any) -> Any:
        return _compared(self, other, lambda x, y: (x[1] < y[0], x[0] < y[1]))

    def __le__(self, other: Any) -> Any:
        return _compared(self, other, lambda x, y: (x[1] <= y[0], x[0] <= y[1]))

    def __gt__(self, other: Any) -> Any:
        return _compared(self, other, lambda x, y: (x[0] > y[1], x[1] > y[0]))

    def __ge__(self, other: Any) -> Any:
        return _compared(self, other, lambda x, y: (x[0] >= y[1], x[1] >= y[0]))

    def __eq__(self, other: Any) -> Any:
        return _compared(
            self,
            other,
            lambda x, y: ((x[0] == x[1]) & (y[0] == y[1]) & (x[0] == y[0]), (x[0] <= y[1]) & (y[0] <= x[1])),
        )

    def __ne__(self, other: Any) -> Any:
        equal = self.__eq__(other)
        return equal if equal is NotImplemented else ~equal


def _make(low: Array, high: Array, pieces: Pieces, sign: int | None = None) -> Interval:
    out = Interval.__new__(Interval)
    out.low, out.high, out._pieces, out._signed = low, high, pieces, sign
    return out


def _ends(what: str, low: Array, high: Array) -> Piece:
    """Checked ends: float64 arrays (arrays of another kind as they are) of one shape, nan widened."""
    if _namespace_or_none(low) is None and _namespace_or_none(high) is None:
        low, high = np.asarray(low, dtype=np.float64), np.asarray(high, dtype=np.float64)
        if low.shape != high.shape:
            low, high = np.broadcast_arrays(low, high)
    xp = _namespace(low)
    wrong = low > high
    if bool(xp.any(wrong)):
        k = int(np.argmax(np.asarray(wrong)))
        raise InputError(f"{what}[{k}]: low {np.ravel(low)[k]} is above high {np.ravel(high)[k]}")
    return _settled(low, high)


def _namespace_or_none(a: Any) -> Any:
    if isinstance(a, np.ndarray | np.generic):
        return None
    return getattr(a, "__array_namespace__", None)


def _operand(x: Any) -> Any:
    """The other side of an operator: an interval, or plain numbers where nothing is uncertain."""
    if isinstance(x, Interval):
        return x.low if x.low is x.high and x._pieces is None else x
    if isinstance(x, bool | int | float | np.number | np.bool_):
        return float(x)
    if isinstance(x, np.ndarray):
        if x.dtype.kind not in "fiub":
            return x if x.dtype.kind == "O" else NotImplemented
        return x if x.dtype == np.float64 else x.astype(np.float64)
    return x if hasattr(x, "__array_namespace__") else NotImplemented


def _interval(x: Any) -> Interval:
    return x if isinstance(x, Interval) else Interval.constant(x)


# Arithmetic -------------------------------------------------------------------------------------------------------


@_quiet
def _add(x: Interval, y: Any) -> Interval:
    if not isinstance(y, Interval):
        if isinstance(y, float) and y == 0.0:
            return x
        sign = x._sign() if x._sign() and x._sign() == _sign_plain(y) else 0
        return _make(*_sum(x._ends, (y, y), sign), x._pieces, sign or None)
    sign = x._sign() if x._sign() == y._sign() else 0
    return _make(*_sum(x._ends, y._ends, sign), _joined(x._pieces, y._pieces, _sum), sign or None)


@_quiet
def _multiply(x: Interval, y: Any) -> Interval:
    sx = x._sign()
    if not isinstance(y, Interval):
        if isinstance(y, float) and y == 1.0:
            return x
        pieces = x._pieces
        if isinstance(y, float) and y == 0.0:
            pieces = None
        elif pieces is not None:
            pieces = tuple(None if p is None else _scaled(p, _sign(*p), y) for p in pieces)
        return _make(*_scaled(x._ends, sx, y), pieces)
    if y is x:
        return _square(x)
    sy = y._sign()
    pieces = _joined(_chain(y._pieces, x._ends, sx), _chain(x._pieces, y._ends, sy), _sum)
    return _make(*_product(x._ends, sx, y._ends, sy), pieces, sx * sy or None)


@_quiet
def _divide(x: Any, y: Any) -> Interval:
    if not isinstance(y, Interval):
        pieces = x._pieces
        if pieces is not None:
            pieces = tuple(None if p is None else _divided(p, _sign(*p), y) for p in pieces)
        return _make(*_divided(x._ends, x._sign(), y), pieces)
    if not isinstance(x, Interval):
        number = np.asarray(x) if isinstance(x, float) else x
        x = _make(number, number, None)
    sx, sy = x._sign(), y._sign()
    quotient = _quotient(x._ends, sx, y._ends, sy)
    sign = sx * sy
    pieces = x._pieces
    if y._pieces is not None:  # (dx - (x/y) dy) / y
        minus = (-quotient[1], -quotient[0])
        pieces = _joined(pieces, _chain(y._pieces, minus, -sign), _sum)
    if pieces is not None:
        pieces = tuple(None if p is None else _quotient(p, _sign(*p), y._ends, sy) for p in pieces)
    return _make(*quotient, pieces, sign or None)


def _abs_ends(x: Interval) -> Piece:
    """Least and largest magnitude."""
    sign = x._sign()
    if sign > 0:
        return x._ends
    if sign < 0:
        return -x.high, -x.low
    xp = _namespace(x.low)
    return xp.maximum(xp.maximum(x.low, -x.high), 0.0), xp.maximum(-x.low, x.high)


@_quiet
def _square(x: Interval) -> Interval:
    least, most = _abs_ends(x)
    sign = x._sign()
    return _make(*_outward(least * least, most * most, 1), _chain(x._pieces, (2.0 * x.low, 2.0 * x.high), sign), 1)


@_quiet
def _abs(x: Interval) -> Interval:
    sign = x._sign()
    if sign:
        return x if sign > 0 else -x
    xp = _namespace(x.low)
    slope = (xp.where(x.low >= 0, 1.0, -1.0), xp.where(x.high <= 0, -1.0, 1.0))
    return _make(*_abs_ends(x), _chain(x._pieces, slope, 0), 1)


@_quiet
def _power(x: Any, y: Any) -> Interval:
    if isinstance(y, Interval):
        if isinstance(x, float) and x > 0.0:
            return _exponential(x, y)
        return _exp(y * _log(_interval(x)))
    if not isinstance(y, float):
        first = float(y.flat[0]) if isinstance(y, np.ndarray) and y.size else math.nan
        if not np.all(y == first):
            return _exp(_log(x) * y)
        y = first
    if y == 0.0:
        return _make(*((np.ones(x.shape),) * 2), None)
    if y == 1.0:
        return x
    if y == 2.0:
        return _square(x)
    if y == 0.5:
        return _sqrt(x)
    if y.is_integer():
        return _whole_power(x, int(y)) if y > 0 else _divide(1.0, _power(x, -y))
    return _monotone(
        x,
        lambda a: a**y,
        lambda a, _: y * a ** (y - 1.0),
        rising=y > 0.0,
        slope_rising=not 0.0 < y < 1.0,
        lower=0.0,
        value_sign=1,
    )


def _whole_power(x: Interval, n: int) -> Interval:
    def ends(m: int) -> Piece:
        if m % 2 == 0:
            least, most = _abs_ends(x)
            return _outward(least**m, most**m, 1, _EPS_FUNCTION)
        return _outward(x.low**m, x.high**m, x._sign(), _EPS_FUNCTION)

    pieces = None
    if x._pieces is not None:
        sign = 1 if n % 2 else x._sign()
        pieces = _chain(x._pieces, _scaled(ends(n - 1), sign, float(n)), sign)
    return _make(*ends(n), pieces, x._sign() if n % 2 else 1)


def _exponential(base: float, x: Interval) -> Interval:
    """base**x for a base above 0."""
    rate = _logarithm(base, x.low)
    low, high = (base**x.low, base**x.high) if rate >= 0 else (base**x.high, base**x.low)
    low, high = _outward(low, _namespace(high).maximum(high, _LEAST), 1, _EPS_FUNCTION)
    slope = _outward(*_scaled((low, high), 1, rate), 1 if rate >= 0 else -1)
    return _make(low, high, _chain(x._pieces, slope, 1 if rate >= 0 else -1), 1)


# Functions of one argument ----------------------------------------------------------------------------------------


def _monotone(
    x: Interval,
    function: Callable[[Array], Array],
    slope: Callable[[Array, Array], Array],
    *,
    rising: bool = True,
    slope_rising: bool,
    lower: float = -math.inf,
    value_sign: int = 0,
    eps: float = _EPS_FUNCTION,
) -> Interval:
    """A monotone function with a monotone slope on [lower, inf): evaluated at the ends.

    `slope` gets the argument and the function's value there. Below `lower` nothing is defined.
    """
    low, high = x.low, x.high
    xp = _namespace(low)
    outside = None
    if lower > -math.inf and (xp is not np or (np.size(low) and np.min(low) < lower)):
        outside = low < lower
        low = xp.maximum(low, lower)
        high = xp.maximum(high, lower)
    at_low, at_high = function(low), function(high)
    pieces = None
    if x._pieces is not None:
        ends = slope(low, at_low), slope(high, at_high)
        ends = ends if slope_rising else (ends[1], ends[0])
        sign = 1 if rising else -1
        ends = _settled(*_outward(*ends, sign, 2.0 * eps))
        if outside is not None:
            ends = xp.where(outside, -math.inf, ends[0]), xp.where(outside, math.inf, ends[1])
            sign = 0
        pieces = _chain(x._pieces, ends, sign)
    value = _settled(*_outward(*((at_low, at_high) if rising else (at_high, at_low)), value_sign, eps))
    if outside is not None:
        empty = x.high < lower
        value = xp.where(empty, -math.inf, value[0]), xp.where(empty, math.inf, value[1])
    return _make(*value, pieces)


@_quiet
def _exp(x: Interval) -> Interval:
    xp = _namespace(x.low)
    low, high = _outward(xp.exp(x.low), xp.maximum(xp.exp(x.high), _LEAST), 1, _EPS_FUNCTION)
    return _make(low, high, _chain(x._pieces, (low, high), 1), 1)


@_quiet
def _expm1(x: Interval) -> Interval:
    xp = _namespace(x.low)
    low, high = _outward(xp.expm1(x.low), xp.expm1(x.high), x._sign(), _EPS_FUNCTION)
    pieces = None
    if x._pieces is not None:
        slope = _outward(low + 1.0, high + 1.0)
        pieces = _chain(x._pieces, (xp.maximum(slope[0], 0.0), slope[1]), 1)
    return _make(low, high, pieces, x._signed)


@_quiet
def _log(x: Interval) -> Interval:
    return _monotone(x, _namespace(x.low).log, lambda a, _: 1.0 / (a + 0.0), slope_rising=False, lower=0.0)


@_quiet
def _log1p(x: Interval) -> Interval:
    return _monotone(
        x, _namespace(x.low).log1p, lambda a, _: 1.0 / (1.0 + a), slope_rising=False, lower=-1.0, value_sign=x._sign()
    )


@_quiet
def _sqrt(x: Interval) -> Interval:
    return _monotone(
        x, _namespace(x.low).sqrt, lambda _, v: 0.5 / (v + 0.0), slope_rising=False, lower=0.0, value_sign=1, eps=_EPS
    )


@_quiet
def _tanh(x: Interval) -> Interval:
    xp = _namespace(x.low)
    value = _make(*_outward(xp.tanh(x.low), xp.tanh(x.high), 0, _EPS_FUNCTION), None)
    low, high = (1.0 - _square(value))._ends
    return _make(*value._ends, _chain(x._pieces, (xp.maximum(low, 0.0), xp.minimum(high, 1.0)), 1))


def _steps(function: str) -> Callable[[Interval], Interval]:
    """A rising step function: its slope is 0, or anything from 0 up where there may be a step."""

    @_quiet
    def call(x: Interval) -> Interval:
        xp = _namespace(x.low)
        step = getattr(xp, function)
        low, high = step(x.low), step(x.high)
        zero = xp.zeros_like(low)
        return _make(low, high, _chain(x._pieces, (zero, xp.where(low == high, zero, math.inf)), 1))

    return call


@_quiet
def _special(x: Interval, function: Any) -> Interval:
    low, high = x.low, x.high
    xp = _namespace(low)
    below = function.lower > -math.inf and (xp is not np or (np.size(low) > 0 and np.min(low) < function.lower))
    above = function.upper < math.inf and (xp is not np or (np.size(low) > 0 and np.max(high) > function.upper))
    if below or above:
        low = xp.minimum(xp.maximum(low, function.lower), function.upper)
        high = xp.minimum(xp.maximum(high, function.lower), function.upper)
    thin = x.low is x.high
    sign = function.monotone if function.turn is None else 0

    def enclosed(at: Callable[[Array], Array], rising: int, turn: float | None, side: int) -> Piece:
        first = at(low)
        last = first * 1.0 if thin else at(high)
        ends = (first, last) if rising > 0 else (last, first)
        if turn is not None:  # between its ends a function that turns goes beyond both
            ends = xp.minimum(*ends), xp.maximum(*ends)
            extreme = at(xp.asarray(turn))
            inside = (low < turn) & (high > turn)
            ends = (
                xp.where(inside, xp.minimum(ends[0], extreme), ends[0]),
                xp.where(inside, xp.maximum(ends[1], extreme), ends[1]),
            )
        return _settled(*_outward(*ends, side, function.accuracy))

    value = enclosed(function, function.monotone, function.turn, 0)
    pieces = None
    if x._pieces is not None:
        slope = enclosed(function.slope, function.slope_monotone, function.slope_turn, sign)
        start = function.lower if function.slope_lower is None else function.slope_lower
        outside = (x.low < start) | (x.high > function.upper)
        if below or above or bool(xp.any(outside)):
            slope = xp.where(outside, -math.inf, slope[0]), xp.where(outside, math.inf, slope[1])
            sign = 0
        pieces = _chain(x._pieces, slope, sign)
    if below or above:
        empty = (x.high < function.lower) | (x.low > function.upper)
        value = xp.where(empty, -math.inf, value[0]), xp.where(empty, math.inf, value[1])
    return _make(*value, pieces)


@_quiet
def _interpolated(x: Interval, known: Array, values: Array) -> Interval:
    steep = np.diff(values) / np.diff(known)
    last = steep.size - 1
    first_piece = np.clip(np.searchsorted(known, x.low, side="right") - 1, 0, last)
    last_piece = np.maximum(np.clip(np.searchsorted(known, x.high, side="left") - 1, 0, last), first_piece)

    def at(a: Array, piece: Array) -> Array:
        share = (a - known[piece]) / (known[piece + 1] - known[piece])
        return values[piece] * (1.0 - share) + values[piece + 1] * share

    size = 4.0 * _EPS * np.maximum(np.abs(values[first_piece]), np.abs(values[last_piece + 1]))
    value = at(x.low, first_piece) - size, at(x.high, last_piece) + size
    pieces = None
    if x._pieces is not None:
        # least and greatest over 2^j pieces from each on; two such ranges cover any range
        least, most, tables = steep, steep, [(steep, steep)]
        for j in range(int(steep.size).bit_length()):
            ahead = np.minimum(np.arange(steep.size) + (1 << j), last)
            least, most = np.minimum(least, least[ahead]), np.maximum(most, most[ahead])
            tables.append((least, most))
        level = np.frexp((last_piece - first_piece + 1).astype(np.float64))[1] - 1
        second = last_piece - (1 << level) + 1
        low_table, high_table = np.stack([t[0] for t in tables]), np.stack([t[1] for t in tables])
        slope = (
            np.minimum(low_table[level, first_piece], low_table[level, second]),
            np.maximum(high_table[level, first_piece], high_table[level, second]),
        )
        pieces = _chain(x._pieces, _outward(*slope, 1, 4.0 * _EPS), 1)
    return _make(*_settled(*value), pieces)


# Choices ----------------------------------------------------------------------------------------------------------


class Mask:
    """Truth values of which some are not decided: `certain` where true all over the box, `possible` where anywhere.

    `depends` says per coordinate whether the truth may change along it.
    """

    __slots__ = ("certain", "depends", "possible")
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, certain: Array, possible: Array, depends: tuple[bool, ...] = ()) -> None:
        self.certain, self.possible, self.depends = certain, possible, depends

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array."""
        return tuple(np.shape(self.certain))

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    def __bool__(self) -> bool:
        if np.size(self.certain) == 1 and bool(self.certain) == bool(self.possible):
            return bool(self.certain)
        raise InputError("interval: a comparison is not decided over the box; choose by xp.where")

    def __array_namespace__(self, *, api_version: str | None = None) -> Any:
        return intervals

    def __array__(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise InputError("interval: a comparison is not decided over the box; choose by xp.where")

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        return _dispatched_ufunc(ufunc, method, inputs, kwargs)

    __array_function__ = Interval.__array_function__

    def __getitem__(self, index: Any) -> Mask:
        return Mask(self.certain[index], self.possible[index], self.depends)

    def __invert__(self) -> Mask:
        return Mask(~self.possible, ~self.certain, self.depends)

    def __and__(self, other: Any) -> Mask:
        other = _mask(other)
        return Mask(self.certain & other.certain, self.possible & other.possible, _either(self, other))

    __rand__ = __and__

    def __or__(self, other: Any) -> Mask:
        other = _mask(other)
        return Mask(self.certain | other.certain, self.possible | other.possible, _either(self, other))

    __ror__ = __or__


def _mask(x: Any) -> Mask:
    return x if isinstance(x, Mask) else Mask(np.asarray(x, dtype=bool), np.asarray(x, dtype=bool))


def _either(a: Mask, b: Mask) -> tuple[bool, ...]:
    if not a.depends or not b.depends:
        return a.depends or b.depends
    return tuple(p or q for p, q in zip(a.depends, b.depends, strict=True))


def _depends(*xs: Any) -> tuple[bool, ...]:
    known = [x._pieces for x in xs if isinstance(x, Interval) and x._pieces is not None]
    return tuple(any(p is not None for p in column) for column in zip(*known, strict=True))


def _compared(x: Interval, other: Any, rule: Callable[[Piece, Piece], tuple[Array, Array]]) -> Any:
    y = _operand(other)
    if y is NotImplemented:
        return NotImplemented
    ends = y._ends if isinstance(y, Interval) else (y, y)
    return Mask(*rule(x._ends, ends), _depends(x, y))


@_quiet
def _where(condition: Any, a: Any, b: Any) -> Any:
    """Choose by a condition; where that is not decided, the hull of both.

    The derivative of an undecided choice is infinite along every coordinate the condition depends on, since the
    function may jump there, and the hull of both along the others.
    """
    if not isinstance(condition, Mask):
        condition = _mask(condition)
    if not isinstance(a, Interval) and not isinstance(b, Interval) and condition.certain is condition.possible:
        return np.where(condition.certain, a, b)
    x, y = _interval(a), _interval(b)
    xp = _namespace(x.low)
    yes, maybe = condition.certain, condition.possible
    decided = yes is maybe or bool(xp.all(yes == maybe))

    def select(p: Piece, q: Piece) -> Piece:
        if decided:
            return xp.where(yes, p[0], q[0]), xp.where(yes, p[1], q[1])
        h = _hull(p, q)
        return (
            xp.where(yes, p[0], xp.where(maybe, h[0], q[0])),
            xp.where(yes, p[1], xp.where(maybe, h[1], q[1])),
        )

    def pick(k: int, p: Piece, q: Piece) -> Piece:
        chosen = select(p, q)
        if decided or not condition.depends or not condition.depends[k]:
            return chosen
        unclear = yes != maybe
        return xp.where(unclear, -math.inf, chosen[0]), xp.where(unclear, math.inf, chosen[1])

    always = () if decided else condition.depends
    low, high = select(x._ends, y._ends)
    if x._pieces is None and y._pieces is None and decided:
        return _make(low, high, None)
    return _make(low, high, _chosen(x._pieces, y._pieces, pick, always))


def _extreme(a: Any, b: Any, largest: bool) -> Any:
    """Elementwise maximum or minimum; the derivative of either where both may be it."""
    x, y = _interval(a), _interval(b)
    xp = _namespace(x.low if _namespace(x.low) is not np else y.low)
    best = xp.maximum if largest else xp.minimum
    first = x.low >= y.high if largest else x.high <= y.low
    second = y.low >= x.high if largest else y.high <= x.low
    ends = best(x.low, y.low), best(x.high, y.high)
    if bool(xp.all(first)):
        return _make(*ends, x._pieces)
    if bool(xp.all(second)):
        return _make(*ends, y._pieces)

    def pick(_: int, p: Piece, q: Piece) -> Piece:
        h = _hull(p, q)
        return tuple(xp.where(first, p[e], xp.where(second, q[e], h[e])) for e in (0, 1))

    return _make(*ends, _chosen(x._pieces, y._pieces, pick))


@_quiet
def _maximum(a: Any, b: Any) -> Any:
    return _extreme(a, b, largest=True)


@_quiet
def _minimum(a: Any, b: Any) -> Any:
    return _extreme(a, b, largest=False)


def _clip(x: Any, min: Any = None, max: Any = None, **other: Any) -> Any:
    low, high = other.pop("a_min", min), other.pop("a_max", max)
    if other:
        raise InputError(f"interval arithmetic does not know clip({', '.join(other)}=...)")
    if low is not None:
        x = _maximum(x, low)
    return x if high is None else _minimum(x, high)


def _isfinite(x: Interval) -> Mask:
    """Whether a value is finite; an infinite end leaves that open."""
    xp = _namespace(x.low)
    finite = xp.isfinite(x.low) & xp.isfinite(x.high)
    return Mask(finite, finite | (x.low < math.inf) & (x.high > -math.inf), _depends(x))


def _isnan(x: Interval) -> Mask:
    """Whether a value is nan; infinite ends leave that open."""
    return Mask(np.zeros(x.shape, dtype=bool), ~np.asarray(np.isfinite(x.low) & np.isfinite(x.high)), _depends(x))


# Along axes -------------------------------------------------------------------------------------------------------


def _axes(x: Interval, axis: Any) -> tuple[int, ...]:
    if axis is None:
        return tuple(range(x.ndim))
    return tuple(a % x.ndim for a in (axis if isinstance(axis, tuple) else (axis,)))


def _whole(x: Interval, piece: Piece) -> Piece:
    xp = _namespace(piece[0])
    return xp.broadcast_to(piece[0], x.shape), xp.broadcast_to(piece[1], x.shape)


@_quiet
def _total(x: Interval, axis: Any = None, keepdims: bool = False) -> Interval:
    axes = _axes(x, axis)
    terms = math.prod(x.shape[a] for a in axes)
    eps = _EPS * (terms + 1)
    along = axes[0] if len(axes) == 1 else axes

    def total(p: Piece, sign: int) -> Piece:
        xp = _namespace(p[0])
        low, high = (xp.sum(e, axis=along, keepdims=keepdims) for e in p)
        if sign:
            return _settled(*_outward(low, high, sign, eps))
        size = xp.sum(xp.maximum(abs(p[0]), abs(p[1])), axis=along, keepdims=keepdims) * _relative(low, eps)
        return _settled(low - size, high + size)

    pieces = None
    if x._pieces is not None:
        pieces = tuple(None if p is None else total(_whole(x, p), _sign(*p)) for p in x._pieces)
    return _make(*total(x._ends, x._sign()), pieces)


def _mean(x: Interval, axis: Any = None, keepdims: bool = False) -> Interval:
    out: Interval = _total(x, axis, keepdims) / float(math.prod(x.shape[a] for a in _axes(x, axis)))
    return out


def _along(x: Interval, axis: Any, keepdims: bool, largest: bool) -> Interval:
    axes = _axes(x, axis)
    xp = _namespace(x.low)
    best = xp.max if largest else xp.min
    along = axes[0] if len(axes) == 1 else axes
    low, high = best(x.low, axis=along, keepdims=True), best(x.high, axis=along, keepdims=True)
    eligible = x.high >= low if largest else x.low <= high

    def hull(p: Piece) -> Piece:
        return (
            xp.min(xp.where(eligible, p[0], math.inf), axis=along, keepdims=keepdims),
            xp.max(xp.where(eligible, p[1], -math.inf), axis=along, keepdims=keepdims),
        )

    pieces = None if x._pieces is None else tuple(None if p is None else hull(p) for p in x._pieces)
    if not keepdims:
        low, high = xp.squeeze(low, axis=along), xp.squeeze(high, axis=along)
    return _make(low, high, pieces)


def _max(x: Interval, axis: Any = None, keepdims: bool = False) -> Interval:
    return _along(x, axis, keepdims, largest=True)


def _min(x: Interval, axis: Any = None, keepdims: bool = False) -> Interval:
    return _along(x, axis, keepdims, largest=False)


def _gathered(name: str) -> Callable[..., Any]:
    """Stack or concat of intervals and arrays."""

    def call(arrays: Sequence[Any], axis: int = 0) -> Any:
        if not any(isinstance(a, Interval) for a in arrays):
            return getattr(np, name)(arrays, axis=axis)
        xs = [_interval(a) for a in arrays]
        for x in xs:
            _same_coordinates(xs[0]._pieces, x._pieces)
        join = getattr(_namespace(xs[0].low), name)
        count = max(x.coordinates for x in xs)
        pieces: list[Piece | None] = []
        for k in range(count):
            own = [None if x._pieces is None else x._pieces[k] for x in xs]
            if all(p is None for p in own):
                pieces.append(None)
                continue
            full = [_whole(x, p or (np.float64(0.0), np.float64(0.0))) for x, p in zip(xs, own, strict=True)]
            pieces.append((join([p[0] for p in full], axis=axis), join([p[1] for p in full], axis=axis)))
        low, high = (join([getattr(x, end) for x in xs], axis=axis) for end in ("low", "high"))
        return _make(low, high, tuple(pieces) if count else None)

    return call


# The namespace ----------------------------------------------------------------------------------------------------


def _filled(name: str) -> Callable[..., Any]:
    """Arrays of numbers like an interval: they are plain."""

    def call(x: Any, *value: Any, dtype: Any = None) -> Any:
        if isinstance(x, Interval):
            x = x.low
        xp = _namespace(x) if hasattr(x, "__array_namespace__") else np
        out = getattr(xp, name)(x, *value)
        return out if dtype is None else out.astype(dtype)

    return call


def _asarray(x: Any, *, dtype: Any = None, copy: bool | None = None) -> Any:
    if isinstance(x, Interval | Mask) or _namespace_or_none(x) is not None:
        return x
    return np.asarray(x, dtype=dtype)


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "abs": _abs,
    "add": lambda x, y: x + y,
    "broadcast_to": lambda x, shape: x._mapped(lambda a: np.broadcast_to(a, shape)),
    "ceil": _steps("ceil"),
    "clip": _clip,
    "divide": lambda x, y: x / y,
    "equal": lambda x, y: x == y if isinstance(x, Interval) else y == x,
    "exp": _exp,
    "exp2": lambda x: _exponential(2.0, x),
    "expm1": _expm1,
    "floor": _steps("floor"),
    "greater": lambda x, y: x > y if isinstance(x, Interval) else y < x,
    "greater_equal": lambda x, y: x >= y if isinstance(x, Interval) else y <= x,
    "isfinite": _isfinite,
    "isnan": _isnan,
    "less": lambda x, y: x < y if isinstance(x, Interval) else y > x,
    "less_equal": lambda x, y: x <= y if isinstance(x, Interval) else y >= x,
    "log": _log,
    "log10": lambda x: _log(x) / _logarithm(10.0, x.low),
    "log1p": _log1p,
    "log2": lambda x: _log(x) / _logarithm(2.0, x.low),
    "logical_and": lambda x, y: _mask(x) & y,
    "logical_not": lambda x: ~_mask(x),
    "logical_or": lambda x, y: _mask(x) | y,
    "max": _max,
    "maximum": _maximum,
    "mean": _mean,
    "min": _min,
    "minimum": _minimum,
    "multiply": lambda x, y: x * y,
    "ndim": lambda x: x.ndim,
    "negative": lambda x: -x,
    "not_equal": lambda x, y: x != y if isinstance(x, Interval) else y != x,
    "positive": lambda x: x,
    "pow": lambda x, y: x**y,
    "reciprocal": lambda x: 1.0 / x,
    "reshape": lambda x, shape: x.reshape(shape),
    "round": _steps("round"),
    "shape": lambda x: x.shape,
    "sign": _steps("sign"),
    "size": lambda x: x.size,
    "sqrt": _sqrt,
    "square": _square,
    "subtract": lambda x, y: x - y,
    "sum": _total,
    "tanh": _tanh,
    "where": _where,
}
_ALIASES = {
    "absolute": "abs",
    "amax": "max",
    "amin": "min",
    "around": "round",
    "bitwise_and": "logical_and",
    "bitwise_or": "logical_or",
    "concatenate": "concat",
    "fabs": "abs",
    "float_power": "pow",
    "invert": "logical_not",
    "power": "pow",
    "rint": "round",
    "true_divide": "divide",
}


class _UnknownFunctionError(InputError, AttributeError):
    """Also what `hasattr` asks for."""


def _lifted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function for intervals, NumPy's own where there are none."""
    plain = getattr(np, name)

    @wraps(plain)
    def call(*args: Any, **kwargs: Any) -> Any:
        if any(isinstance(a, Interval | Mask) for a in args):
            return function(*args, **kwargs)
        return plain(*args, **kwargs)

    return call


class _Intervals:
    """The array namespace of `Interval`: what it holds and plain arrays may be mixed; plain ones go to NumPy."""

    __name__ = "jointopt.arithmetic.intervals"
    float64 = np.float64
    bool = np.bool_
    inf = math.inf
    nan = math.nan
    pi = math.pi
    e = math.e
    newaxis = None

    def __init__(self) -> None:
        for name, function in _FUNCTIONS.items():
            setattr(self, name, _lifted(name, function))
        for name in ("zeros_like", "ones_like", "full_like"):
            setattr(self, name, _filled(name))
        for name in ("stack", "concat"):
            setattr(self, name, _gathered(name))
        for name in ("zeros", "ones", "full", "arange", "linspace", "finfo"):
            setattr(self, name, getattr(np, name))
        self.asarray = _asarray

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise _UnknownFunctionError(f"interval arithmetic does not know 'xp.{name}'")

    def __repr__(self) -> str:
        return "<array namespace of intervals>"


intervals: Any = _Intervals()
"""The array namespace of `Interval`."""

_REDUCTIONS = {"add": "sum", "maximum": "max", "minimum": "min"}


def _dispatched_ufunc(ufunc: Any, method: str, inputs: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """NumPy's ufuncs, called or reduced, by the namespace's functions."""
    name = ufunc.__name__
    if method == "reduce" and name in _REDUCTIONS:
        kwargs = {"axis": 0, **{k: v for k, v in kwargs.items() if v is not None}}
        return getattr(intervals, _REDUCTIONS[name])(*inputs, **kwargs)
    if method != "__call__" or kwargs:
        raise _UnknownFunctionError(f"interval arithmetic does not know 'np.{name}' with {method}, {sorted(kwargs)}")
    # an array on the left must not answer first, or its operator would call the ufunc again
    left, *rest = inputs
    if rest and not isinstance(left, Interval | Mask) and name in _REFLECTED:
        left = _operand(left)
        return getattr(rest[0], _REFLECTED[name])(left)
    return getattr(intervals, _ALIASES.get(name, name))(*inputs)


_REFLECTED = {
    "add": "__radd__",
    "subtract": "__rsub__",
    "multiply": "__rmul__",
    "divide": "__rtruediv__",
    "true_divide": "__rtruediv__",
    "power": "__rpow__",
    "float_power": "__rpow__",
    "bitwise_and": "__rand__",
    "bitwise_or": "__ror__",
    "logical_and": "__rand__",
    "logical_or": "__ror__",
}

"""A decision: what was chosen, by name, as arrays whose last axis is the devices."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from jointopt.errors import InputError

__all__ = ["Array", "Decision"]

Array = Any
"""A NumPy array, a torch tensor, or an array with a namespace of its own (`jointopt.arithmetic`)."""


def _is_foreign(value: Any) -> bool:
    """Whether a value is an array that is neither NumPy's nor torch's."""
    return hasattr(value, "__array_namespace__") and not isinstance(value, np.ndarray | np.generic)


def _equal(a: Array, b: Array) -> bool:
    return a is b if _is_foreign(a) or _is_foreign(b) else bool(np.array_equal(a, b))


class Decision(Mapping[str, Array]):
    """Chosen values by variable name, arrays of shape ``[..., devices]`` (leading axes are a batch).

    The standard names are `pruning_ratio`, `bits`, `power` [W], `bandwidth` [Hz], `frequency` [Hz] and `selected`.
    NumPy input is copied and made read-only; torch tensors are kept, so that gradients flow, and so are arrays with a
    namespace of their own, such as intervals.
    """

    __slots__ = ("_values",)

    def __init__(self, values: Mapping[str, Array] | None = None, **named: Array) -> None:
        merged: dict[str, Array] = {**(values or {}), **named}
        if not merged:
            raise InputError("decision: holds no variable")
        self._values: dict[str, Array] = {}
        for name, value in merged.items():
            if type(value).__module__.startswith("torch"):
                self._values[name] = value
                continue
            if _is_foreign(value):
                self._values[name] = value if len(value.shape) else value[None]
                continue
            try:
                array = np.array(value, dtype=np.float64)
            except (TypeError, ValueError, OverflowError):
                raise InputError(f"decision.{name}: expected numbers, got {value!r}") from None
            if array.ndim == 0:
                array = array.reshape(1)
            bad = ~np.isfinite(array)
            if np.any(bad):
                where = tuple(int(i) for i in np.argwhere(bad)[0])
                raise InputError(f"decision.{name}[device {where[-1]}]: {float(array[where])!r} must be finite")
            array.setflags(write=False)
            self._values[name] = array
        sizes = {name: value.shape[-1] for name, value in self._values.items()}
        if len(set(sizes.values()) - {1}) > 1:
            raise InputError(f"decision: the variables are for different numbers of devices: {sizes}")

    def __getitem__(self, name: str) -> Array:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    @property
    def devices(self) -> int:
        """Length of the last axis."""
        return max(int(value.shape[-1]) for value in self._values.values())

    def with_(self, **changes: Array) -> Decision:
        """Return a copy with some variables replaced or added."""
        return Decision({**self._values, **changes})

    def to_dict(self) -> dict[str, list[Any]]:
        """Return plain lists."""
        return {name: value.tolist() for name, value in self._values.items()}

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Decision):
            return NotImplemented
        return set(self) == set(other) and all(_equal(self[k], other[k]) for k in self)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        parts = []
        for name, value in self._values.items():
            if _is_foreign(value):
                parts.append(f"{name}={type(value).__name__}{tuple(value.shape)}")
                continue
            low, high = float(value.min()), float(value.max())
            parts.append(f"{name}={low:.4g}" if low == high else f"{name}={low:.4g}..{high:.4g}")
        return f"Decision({self.devices} devices: {', '.join(parts)})"

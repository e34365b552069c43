"""Quantities as engineers write them (`"23 dBm"`, `"1 MHz"`, `"50 mJ"`) to SI numbers on a linear scale."""

from __future__ import annotations

import functools
import math
import re
from typing import Any

from jointopt.errors import InputError

__all__ = ["format_si", "parse_quantity"]

_NUMBER = re.compile(r"\s*([+-]?(?:\d[\d_]*\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*(.*?)\s*$")
# pint cannot divide a logarithmic unit by another unit, so "dBm/Hz" is split here: level first, then the rest.
_LEVEL = re.compile(r"(dBm|dBW|dBi|dB)\s*(/\s*.+)?$")
_CYCLE = re.compile(r"\b([kMGT]?)cycles?\b")

_EXAMPLES = {
    "W": "'23 dBm' or '0.2 W'",
    "W/Hz": "'-174 dBm/Hz'",
    "Hz": "'1 MHz'",
    "s": "'150 ms'",
    "J": "'50 mJ'",
    "m": "'300 m'",
    "J*s**2": "'1e-27 J*s**2'",
    "": "'0.023 dB' or 1.0053",
}


@functools.cache
def _registry() -> Any:
    import pint

    registry: Any = pint.UnitRegistry(autoconvert_offset_to_baseunit=True)
    # pint's own "cycle" is a turn of 2 pi radian; a processor's cycle is a count.
    registry.define("processor_cycle = []")
    return registry


def parse_quantity(text: str, unit: str, field: str = "value") -> float:
    """Return `text` as a number of `unit` (SI, linear).

    Parameters
    ----------
    text : str
        A number and a unit, for example ``"-174 dBm/Hz"``. Decibel units are converted to linear scale.
    unit : str
        The SI unit wanted; ``""`` for a pure number.
    field : str
        The name used in messages.

    Raises
    ------
    InputError
        When `text` is no quantity, has no unit though one is needed, or has another dimension.
    """
    wanted = f"a quantity like {_EXAMPLES[unit]}" if unit in _EXAMPLES else f"a quantity in {unit}"
    match = _NUMBER.match(text)
    if match is None:
        raise InputError(f"{field}: {text!r} is not {wanted}")
    number, written = float(match.group(1).replace("_", "")), match.group(2)
    if not written:
        if unit:
            raise InputError(f"{field}: {text!r} has no unit; write {wanted}, or a plain number for SI ({unit})")
        return number
    import pint

    registry = _registry()
    try:
        level = _LEVEL.match(written)
        if level:
            kind, rest = level.groups()
            linear = 10.0 ** (number / 10.0)
            base = {"dBm": "mW", "dBW": "W", "dBi": "", "dB": ""}[kind]
            quantity = registry.Quantity(linear, f"{base}{rest or ''}" if base or not rest else f"1{rest}")
        else:
            quantity = registry.Quantity(number, _CYCLE.sub(r"\1processor_cycle", written))
        value = float(quantity.to(unit or "dimensionless").magnitude)
    except pint.DimensionalityError:
        raise InputError(f"{field}: {text!r} is {_kind(quantity)}, expected {wanted}") from None
    except OverflowError:
        raise InputError(f"{field}: {text!r} is too large for a number") from None
    except Exception as error:  # pint's parser lets whatever its tokenizer and arithmetic meet come through
        reason = f" ({error})" if isinstance(error, pint.PintError) and str(error) else ""
        raise InputError(f"{field}: cannot read {text!r}{reason}; expected {wanted}") from None
    if not math.isfinite(value):
        raise InputError(f"{field}: {text!r} is not finite")
    return value


_KINDS = {
    "W": "a power",
    "W/Hz": "a power density",
    "Hz": "a frequency",
    "s": "a time",
    "J": "an energy",
    "m": "a length",
    "": "a pure number",
}


def _kind(quantity: Any) -> str:
    for unit, kind in _KINDS.items():
        if quantity.is_compatible_with(unit or "dimensionless"):
            return kind
    return f"of dimension {quantity.dimensionality}"


_PREFIXES = [
    (1e9, "G"),
    (1e6, "M"),
    (1e3, "k"),
    (1.0, ""),
    (1e-3, "m"),
    (1e-6, "µ"),
    (1e-9, "n"),
    (1e-12, "p"),
]


def format_si(value: float, unit: str, digits: int = 3) -> str:
    """Return a number with an SI prefix, for people: ``format_si(0.0502, "J") == "50.2 mJ"``."""
    if value is None or not math.isfinite(value):
        return f"{value} {unit}".rstrip()
    if value == 0.0:
        return f"0 {unit}".rstrip()
    for factor, prefix in _PREFIXES:
        if abs(value) >= factor * (1 - 0.5 * 10.0**-digits):
            return f"{value / factor:.{digits}g} {prefix}{unit}".rstrip()
    return f"{value:.{digits}g} {unit}".rstrip()

"""Stochastic uniform quantiser: evenly spaced levels from the smallest entry to the largest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jointopt.errors import InputError
from jointopt.federated.codecs.base import Codec, Floats, Payload
from jointopt.federated.codecs.grid import Grid, Rounder, Words
from jointopt.federated.codecs.packing import CHUNK, code_type, pack_chunks, pass_chunks, unpack_chunks
from jointopt.models import compression

__all__ = ["Uniform"]

_RAW = 32


@dataclass(frozen=True)
class Uniform(Codec):
    """Unbiased rounding to 2**bits knobs from the smallest entry to the largest, which travel as header.

    An entry between two knobs goes to either with the probability that makes its expectation exact (theory L1); see
    `jointopt.federated.codecs.grid` for how exact. 32 bits mean raw float32, lossless and without random numbers.
    Above 24 bits most knobs would collide in float32, which has 24 significant bits, so 25 .. 31 are refused.
    """

    name: ClassVar[str] = "uniform"
    unbiased: ClassVar[bool] = True
    random: ClassVar[bool] = True
    widths: ClassVar[tuple[int, ...]] = (*range(1, 25), _RAW)
    header_bits: ClassVar[int] = 64

    def error_bound(self, values: Tensor, bits: int) -> float:
        """Return n gap^2 / 4, with the distance of two knobs (theory L1) and what float32 knobs may be off it."""
        width = self._checked_width(bits)
        low, high = _range(self._entries(values))
        if width == _RAW or low == high:
            return 0.0
        steps = 2**width - 1
        unit = max(abs(low), abs(high)) * 2.0**-23 + 2.0**-149
        return float(compression.quantization_variance(len(values), high - low + steps * unit, width))

    def _encode(self, values: Floats, width: int, generator: torch.Generator | None) -> tuple[bytes, tuple[float, ...]]:
        low, high = _range(values)
        if width == _RAW:
            return values.astype("<f4", copy=False).tobytes(), (low, high)
        rounder = _rounder(low, high, width, len(values))
        return pack_chunks(len(values), width, _fill(values, rounder, generator)), (low, high)

    def _decode(self, payload: Payload) -> Floats:
        if len(payload.header) != 2 or not payload.header[0] <= payload.header[1]:
            raise InputError(f"payload range must be finite and ordered, found {list(payload.header)}")
        low, high = payload.header
        if payload.width == _RAW:
            entries = np.frombuffer(payload.body, dtype="<f4").astype(np.float32)
            if _range(entries) != (low, high):  # which no NaN equals
                raise InputError(f"payload: its entries do not span [{low}, {high}]")
            return entries
        out = np.empty(payload.count, dtype=np.float32)
        take = _take(out, _rounder(low, high, payload.width, payload.count))
        unpack_chunks(payload.body, payload.count, payload.width, take)
        return out

    def _simulate(self, values: Floats, width: int, generator: torch.Generator | None) -> Floats:
        if width == _RAW:
            return values.copy()
        rounder = _rounder(*_range(values), width, len(values))
        out = np.empty_like(values)
        pass_chunks(len(values), width, _fill(values, rounder, generator), _take(out, rounder))
        return out


def _range(values: Floats) -> tuple[float, float]:
    """Return the smallest and the largest entry, 0 and 0 of none."""
    if len(values) == 0:
        return 0.0, 0.0
    low, high = torch.aminmax(torch.from_numpy(values))  # one pass
    return float(low), float(high)


def _rounder(low: float, high: float, width: int, count: int) -> Rounder:
    return Rounder(Grid(low, high, 2**width - 1), code_type(width), min(CHUNK, count))


def _fill(
    values: Floats, rounder: Rounder, generator: torch.Generator | None
) -> Callable[[int, int, NDArray[Any]], None]:
    words = Words(generator)

    def fill(start: int, stop: int, out: NDArray[Any]) -> None:
        rounder.codes(values[start:stop], words.draw(stop - start), out)

    return fill


def _take(out: Floats, rounder: Rounder) -> Callable[[int, int, NDArray[Any]], None]:
    def take(start: int, stop: int, codes: NDArray[Any]) -> None:
        rounder.knobs(codes, out[start:stop])

    return take

"""QSGD: levels between zero and the norm of the vector, and a sign."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jointopt.errors import InputError
from jointopt.federated.codecs.base import Codec, Floats, Payload, norms
from jointopt.federated.codecs.grid import Grid, Rounder, Words
from jointopt.federated.codecs.packing import CHUNK, code_type, pack_chunks, pass_chunks, unpack_chunks
from jointopt.models import compression

__all__ = ["Qsgd"]

_RAW = 32


@dataclass(frozen=True)
class Qsgd(Codec):
    """Unbiased rounding of |x| to s + 1 levels from 0 to ||x||_2, with s = 2**(bits - 1) - 1, and one bit for the sign.

    The norm travels as header, rounded up to float32 so that no entry lies above the last level. Levels are knobs of
    `jointopt.federated.codecs.grid`, so the unbiasedness is as exact as that of the uniform codec. Its relative error
    is at most omega = min(n / s^2, sqrt(n) / s) (theory L1'; Alistarh et al. 2017, QSGD). A code is the sign, 1 for
    entries below zero, then the level. 32 bits mean raw float32 beside the norm, lossless and without random numbers.
    """

    name: ClassVar[str] = "qsgd"
    unbiased: ClassVar[bool] = True
    random: ClassVar[bool] = True
    widths: ClassVar[tuple[int, ...]] = (*range(2, 25), _RAW)
    header_bits: ClassVar[int] = 32

    def error_bound(self, values: Tensor, bits: int) -> float:
        """Return omega ||x||^2 with the norm as it travels, and what float32 levels may be off their even places."""
        width = self._checked_width(bits)
        norm = _norm(self._entries(values))
        if width == _RAW or norm == 0.0:
            return 0.0
        levels = 2 ** (width - 1) - 1
        stretch = 1.0 + levels * (2.0**-23 + 2.0**-149 / norm)  # of the distance of two levels
        return float(compression.qsgd_factor(float(len(values)), float(levels))) * (stretch * norm) ** 2

    def _encode(self, values: Floats, width: int, generator: torch.Generator | None) -> tuple[bytes, tuple[float, ...]]:
        norm = _norm(values)
        if width == _RAW:
            return values.astype("<f4", copy=False).tobytes(), (norm,)
        rounder = _rounder(norm, width, len(values))
        return pack_chunks(len(values), width, _fill(values, width, rounder, generator)), (norm,)

    def _decode(self, payload: Payload) -> Floats:
        if len(payload.header) != 1 or not payload.header[0] >= 0.0:
            raise InputError(f"payload header must be one norm of at least 0, found {list(payload.header)}")
        if payload.width == _RAW:
            entries = np.frombuffer(payload.body, dtype="<f4").astype(np.float32)
            # NaN and infinity among them have no norm
            if not np.all(np.isfinite(entries)) or _norm(entries) != payload.header[0]:
                raise InputError(f"payload: its entries do not have the norm {payload.header[0]}")
            return entries
        out = np.empty(payload.count, dtype=np.float32)
        rounder = _rounder(payload.header[0], payload.width, payload.count)
        unpack_chunks(payload.body, payload.count, payload.width, _take(out, payload.width, rounder))
        return out

    def _simulate(self, values: Floats, width: int, generator: torch.Generator | None) -> Floats:
        if width == _RAW:
            return values.copy()
        out = np.empty_like(values)
        rounder = _rounder(_norm(values), width, len(values))
        pass_chunks(len(values), width, _fill(values, width, rounder, generator), _take(out, width, rounder))
        return out


def _norm(values: Floats) -> float:
    """Return ||x||_2 rounded up to float32."""
    exact = math.sqrt(norms(values)[1])
    with np.errstate(over="ignore"):
        rounded = np.float32(exact)
        rounded = np.nextafter(rounded, np.float32(np.inf)) if float(rounded) < exact else rounded
    if not np.isfinite(rounded):
        raise InputError(f"codec 'qsgd': the norm {exact:g} of the values does not fit float32")
    return float(rounded)


def _rounder(norm: float, width: int, count: int) -> Rounder:
    return Rounder(Grid(0.0, norm, 2 ** (width - 1) - 1), code_type(width), min(CHUNK, count))


def _fill(
    values: Floats, width: int, rounder: Rounder, generator: torch.Generator | None
) -> Callable[[int, int, NDArray[Any]], None]:
    words = Words(generator)
    size = min(CHUNK, len(values))
    magnitudes, sign = np.empty(size, dtype=np.float32), np.empty(size, dtype=code_type(width))

    def fill(start: int, stop: int, out: NDArray[Any]) -> None:
        part, signs = values[start:stop], sign[: stop - start]
        rounder.codes(np.abs(part, out=magnitudes[: stop - start]), words.draw(stop - start), out)
        np.copyto(signs, part < 0.0)
        np.left_shift(signs, signs.dtype.type(width - 1), out=signs)
        np.bitwise_or(out, signs, out=out)

    return fill


def _take(out: Floats, width: int, rounder: Rounder) -> Callable[[int, int, NDArray[Any]], None]:
    size = min(CHUNK, len(out))
    level, sign = np.empty(size, dtype=code_type(width)), np.empty(size, dtype=np.float32)

    def take(start: int, stop: int, codes: NDArray[Any]) -> None:
        kind, levels, signs = codes.dtype.type, level[: stop - start], sign[: stop - start]
        np.right_shift(codes, kind(width - 1), out=levels)
        np.copyto(signs, levels, casting="unsafe")
        np.multiply(signs, -2.0, out=signs)
        np.add(signs, 1.0, out=signs)
        np.bitwise_and(codes, kind(2 ** (width - 1) - 1), out=levels)
        rounder.knobs(levels, out[start:stop])
        np.multiply(out[start:stop], signs, out=out[start:stop])

    return take

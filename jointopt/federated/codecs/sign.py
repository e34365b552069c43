"""Scaled sign: one bit per entry and the mean magnitude."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jointopt.errors import InputError
from jointopt.federated.codecs.base import Codec, Floats, Payload, norms
from jointopt.federated.codecs.packing import pack_chunks, pass_chunks, unpack_chunks

__all__ = ["Sign", "bit_filler", "sign_placer"]


@dataclass(frozen=True)
class Sign(Codec):
    """Sends the signs and m = ||x||_1 / n; what is decoded is m sign(x), with sign(0) = 1.

    Biased, and a contraction: the error is exactly ||x||^2 - ||x||_1^2 / n = (1 - c) ||x||^2 with
    c = ||x||_1^2 / (n ||x||_2^2) in [1/n, 1] (Karimireddy et al. 2019, Error feedback fixes SignSGD). Use it with
    `jointopt.federated.codecs.feedback.ErrorFeedback`.
    """

    name: ClassVar[str] = "sign"
    unbiased: ClassVar[bool] = False
    random: ClassVar[bool] = False
    widths: ClassVar[tuple[int, ...]] = (1,)
    header_bits: ClassVar[int] = 32

    def error_bound(self, values: Tensor, bits: int) -> float:
        """Return ||x||^2 - ||x||_1^2 / n, and what rounding m to float32 may add."""
        self._checked_width(bits)
        entries = self._entries(values)
        return mean_error(len(entries), *norms(entries))

    def _encode(self, values: Floats, width: int, generator: torch.Generator | None) -> tuple[bytes, tuple[float, ...]]:
        return pack_chunks(len(values), 1, bit_filler(values)), (mean_magnitude(values),)

    def _decode(self, payload: Payload) -> Floats:
        if len(payload.header) != 1 or not payload.header[0] >= 0.0:
            raise InputError(f"payload header must be one scale of at least 0, found {list(payload.header)}")
        out = np.empty(payload.count, dtype=np.float32)
        unpack_chunks(payload.body, payload.count, 1, sign_placer(out, payload.header[0]))
        return out

    def _simulate(self, values: Floats, width: int, generator: torch.Generator | None) -> Floats:
        out = np.empty_like(values)
        pass_chunks(len(values), 1, bit_filler(values), sign_placer(out, mean_magnitude(values)))
        return out


def mean_magnitude(values: Floats) -> float:
    """Return the mean of |x| as float32, 0 of none."""
    return float(np.float32(norms(values)[0] / len(values))) if len(values) else 0.0


def mean_error(count: int, absolute: float, square: float) -> float:
    """Return sum (|x| - m)^2 for m = float32(mean |x|), or a little more, from sum |x| and sum x^2."""
    if count == 0:
        return 0.0
    rounding = absolute / count * 2.0**-24 + 2.0**-150
    return max(0.0, square - absolute**2 / count) + count * rounding**2 + 2.0**-44 * square  # of the float64 sums


def bit_filler(values: Floats) -> Callable[[int, int, NDArray[Any]], None]:
    """Return what writes 1 for entries below zero, else 0."""

    def fill(start: int, stop: int, out: NDArray[Any]) -> None:
        np.less(values[start:stop], 0.0, out=out.view(np.bool_))

    return fill


def sign_placer(out: Floats, scale: float) -> Callable[[int, int, NDArray[Any]], None]:
    """Return what writes `scale` for code 0 and its negative for code 1 to `out`."""

    def take(start: int, stop: int, codes: NDArray[Any]) -> None:
        part = out[start:stop]
        np.copyto(part, codes)
        np.multiply(part, -2.0, out=part)
        np.add(part, 1.0, out=part)
        np.multiply(part, np.float32(scale), out=part)

    return take

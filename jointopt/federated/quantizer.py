"""Stochastic uniform quantiser of gradients, with the bits really packed and counted.

With delta bits, the range [g_min, g_max] of the given entries carries 2**delta knobs
``c_i = g_min + i (g_max - g_min) / (2**delta - 1)``; an entry g in [c_i, c_{i+1}) is sent as i + 1 with
probability (g - c_i) / (c_{i+1} - c_i), else as i. So the decoded entry is unbiased, and its variance is at
most a quarter of the squared distance of two knobs.

The probabilities use the float32 knobs that the receiver will decode, not their float64 values, so that the
quantiser is unbiased also at 16 bits and where knobs are as close as float32 can tell apart.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jointopt.errors import InputError

__all__ = [
    "HEADER_BITS",
    "RAW_WIDTH",
    "WIDTHS",
    "Payload",
    "decode",
    "encode",
    "pack_codes",
    "quantize",
    "unpack_codes",
]

HEADER_BITS = 64
"""Size of the header: g_min and g_max as float32."""
RAW_WIDTH = 32
"""The width that means raw float32, lossless."""
WIDTHS = (*range(1, 17), RAW_WIDTH)
"""The bits per entry that may be chosen."""


def _checked_width(bits: int) -> int:
    if isinstance(bits, bool | np.bool_) or not isinstance(bits, int | np.integer) or bits not in WIDTHS:
        raise InputError(f"bits must be a whole number in 1 .. 16, or {RAW_WIDTH} for raw, found {bits!r}")
    return int(bits)


@dataclass(frozen=True)
class Payload:
    """What one device sends.

    Attributes
    ----------
    body
        The codes, `width` bits each, most significant bit first, the last byte filled up with zeros; at
        width 32 the little-endian float32 entries instead.
    low, high
        Smallest and largest entry, exact in float32; 0 for an empty vector. Sent at width 32 too.
    count
        Number of entries. Not part of the header: the receiver knows it from the plan, like the width.
    width
        Bits per entry, 1 .. 16 or 32.

    Raises
    ------
    InputError
        The parts do not fit each other.
    """

    body: bytes
    low: float
    high: float
    count: int
    width: int

    def __post_init__(self) -> None:
        width = _checked_width(self.width)
        if self.count < 0 or len(self.body) != (self.count * width + 7) // 8:
            raise InputError(
                f"payload of {self.count} entries of {width} bits must have "
                f"{(self.count * width + 7) // 8} bytes, found {len(self.body)}"
            )
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low <= self.high):
            raise InputError(f"payload range must be finite and ordered, found [{self.low}, {self.high}]")

    @property
    def bits(self) -> int:
        """Bits sent: count x width, and the header; the padding of the last byte is not counted."""
        return self.count * self.width + HEADER_BITS


def pack_codes(codes: NDArray[np.integer], width: int) -> bytes:
    """Pack codes, shape [n], each in 0 .. 2**width - 1 (1 <= width <= 16), into ceil(n x width / 8) bytes."""
    octets = np.ascontiguousarray(codes, dtype=">u2").view(np.uint8).reshape(-1, 2)
    return np.packbits(np.unpackbits(octets, axis=1)[:, 16 - width :]).tobytes()


def unpack_codes(body: bytes, count: int, width: int) -> NDArray[np.uint16]:
    """Return the `count` codes that `pack_codes` packed, uint16, shape [count]."""
    sent = np.unpackbits(np.frombuffer(body, dtype=np.uint8), count=count * width)
    padded = np.zeros((count, 16), dtype=np.uint8)
    padded[:, 16 - width :] = sent.reshape(count, width)
    return np.packbits(padded, axis=1).view(">u2").reshape(count).astype(np.uint16)


def _knobs(codes: Tensor, low: float, high: float, width: int) -> Tensor:
    """Return the float32 knobs of float64 codes."""
    steps = float(2**width - 1)
    # As a weighted mean both products are exact in float64 (24-bit times 16-bit), so the ends are exactly
    # low and high and the knobs never decrease; low + i * step has neither property.
    return ((low * (steps - codes) + high * codes) / steps).to(torch.float32)


def _range(values: Tensor) -> tuple[float, float]:
    """Check the entries and return the smallest and the largest."""
    if values.ndim != 1 or values.dtype != torch.float32:
        raise InputError(f"values must be a 1-D float32 tensor, found {values.dtype} of shape {tuple(values.shape)}")
    if len(values) == 0:
        return 0.0, 0.0
    smallest, largest = torch.aminmax(values)
    low, high = float(smallest), float(largest)  # NaN if any entry is
    if not (math.isfinite(low) and math.isfinite(high)):
        first = int(torch.nonzero(~torch.isfinite(values))[0])
        raise InputError(f"values must be finite, found {float(values[first])} at index {first}")
    return low, high


def _codes(values: Tensor, low: float, high: float, width: int, generator: torch.Generator) -> Tensor:
    """Draw the codes, as whole numbers in float64; takes one random number per entry, whatever they are."""
    draws = torch.rand(len(values), dtype=torch.float64, generator=generator, device=generator.device)
    exact = values.to(torch.float64)
    if low == high:
        return torch.zeros_like(exact)
    steps = float(2**width - 1)
    # The largest entry is put in the last interval, from where it rounds up with probability 1.
    below = ((exact - low) / (high - low) * steps).floor_().clamp_(0.0, steps - 1.0)
    under = _knobs(below, low, high, width).to(torch.float64)
    over = _knobs(below + 1.0, low, high, width).to(torch.float64)
    # As a product, so that two knobs equal in float32 need no division by zero.
    up = draws.to(exact.device) * (over - under) < exact - under
    return below + up


def quantize(values: Tensor, bits: int, generator: torch.Generator) -> Tensor:
    """Return what the receiver would decode, without packing.

    Equal to ``decode(encode(values, bits, generator))`` bit by bit from the same state of the generator, and
    leaves the generator in the same state. Arguments and errors as in `encode`; the result is float32,
    shape [n], on the device of `values`, and shares no memory with it.
    """
    width = _checked_width(bits)
    values = values.detach()
    low, high = _range(values)
    if width == RAW_WIDTH:
        return values.clone()
    return _knobs(_codes(values, low, high, width, generator), low, high, width)


def encode(values: Tensor, bits: int, generator: torch.Generator) -> Payload:
    """Quantise and pack.

    Parameters
    ----------
    values
        The kept entries, float32, shape [n]; n may be 0.
    bits
        Bits per entry, 1 .. 16, or 32 to send raw float32 (takes no random numbers then).
    generator
        The only source of randomness; one number is taken per entry.

    Returns
    -------
    Payload

    Raises
    ------
    InputError
        An entry is NaN or infinite, the tensor is not a float32 vector, or the width is not known.
    """
    width = _checked_width(bits)
    values = values.detach()
    low, high = _range(values)
    if width == RAW_WIDTH:
        body = values.cpu().numpy().astype("<f4", copy=False).tobytes()
    else:
        codes = _codes(values, low, high, width, generator)
        body = pack_codes(codes.cpu().numpy().astype(np.uint16), width)
    return Payload(body, low, high, len(values), width)


def decode(payload: Payload) -> Tensor:
    """Return the received entries, float32, shape [n], on the CPU."""
    if payload.width == RAW_WIDTH:
        return torch.from_numpy(np.frombuffer(payload.body, dtype="<f4").astype(np.float32))
    codes = unpack_codes(payload.body, payload.count, payload.width).astype(np.float64)
    return _knobs(torch.from_numpy(codes), payload.low, payload.high, payload.width)

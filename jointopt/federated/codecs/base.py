"""What a codec is: how a vector of float32 entries becomes bits that travel, and comes back."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jointopt.errors import InputError, is_whole
from jointopt.federated.codecs.packing import packed_bytes
from jointopt.models import compression

__all__ = ["Codec", "Floats", "Payload", "listed", "norms"]

Floats = NDArray[np.float32]

_PIECE = 1 << 16  # entries summed at a time


@dataclass(frozen=True)
class Payload:
    """What one device sends.

    The receiver knows the codec with its options, `count` and `width` from the plan; they do not travel.

    Attributes
    ----------
    codec
        Name of the codec.
    body
        The bits of the entries, the last byte filled up with zeros.
    header
        Numbers sent beside the body, each exact in float32.
    count
        Number of entries of the vector.
    width
        Bits per entry asked for.
    body_bits, header_bits
        How many bits body and header take; the padding of the last byte is not counted.

    Raises
    ------
    InputError
        The parts do not fit each other, a header number is not finite, or the padding is not zero.
    """

    codec: str
    body: bytes
    header: tuple[float, ...]
    count: int
    width: int
    body_bits: int
    header_bits: int

    def __post_init__(self) -> None:
        if self.count < 0 or self.body_bits < 0 or len(self.body) != packed_bytes(self.body_bits):
            raise InputError(
                f"payload of {self.count} entries in {self.body_bits} bits must have "
                f"{packed_bytes(self.body_bits)} bytes, found {len(self.body)}"
            )
        if self.body_bits % 8 and self.body[-1] & ((1 << -self.body_bits % 8) - 1):
            raise InputError(f"payload: the last {-self.body_bits % 8} bits are padding and must be 0")
        with np.errstate(over="ignore"):
            sent = [float(np.float32(number)) for number in self.header]
        for number, as_sent in zip(self.header, sent, strict=True):
            if not math.isfinite(number) or as_sent != number:
                raise InputError(f"payload header must hold finite float32 numbers, found {number!r}")

    @property
    def bits(self) -> int:
        """Bits sent: body and header."""
        return self.body_bits + self.header_bits


class Codec(ABC):
    """A rule that turns a float32 vector into a `Payload` and back.

    A member states its class attributes and implements the four methods that start with an underscore, `body_bits`
    and `error_bound`; the checks are done here, once for all. Options are the fields of the (frozen dataclass) member.

    Attributes
    ----------
    name : str
        The name it is registered under.
    unbiased : bool
        Whether the expectation of what is decoded is the vector.
    random : bool
        Whether it draws random numbers.
    widths : tuple of int
        The bits per entry that may be asked for.
    header_bits : int
        Bits of the header.
    """

    name: ClassVar[str]
    unbiased: ClassVar[bool]
    random: ClassVar[bool]
    widths: ClassVar[tuple[int, ...]]
    header_bits: ClassVar[int]

    def encode(self, values: Tensor, bits: int, generator: torch.Generator | None = None) -> Payload:
        """Compress and pack.

        Parameters
        ----------
        values
            The entries, float32, shape [n]; n may be 0.
        bits
            Bits per entry, one of `widths`.
        generator
            The only source of randomness; not used, and not needed, where `random` is False. It moves on by the same
            amount whatever the entries are.

        Returns
        -------
        Payload

        Raises
        ------
        InputError
            An entry is NaN or infinite, the tensor is not a float32 vector, the width is not allowed, or a generator
            is missing.
        """
        entries, width, source = self._checked(values, bits, generator)
        body, header = self._encode(entries, width, source)
        return Payload(
            self.name, body, header, len(entries), width, self.body_bits(len(entries), width), self.header_bits
        )

    def decode(self, payload: Payload) -> Tensor:
        """Return the received entries, float32, shape [n], on the CPU; `InputError` for a damaged payload."""
        if payload.codec != self.name:
            raise InputError(f"payload of codec '{payload.codec}' cannot be decoded by '{self.name}'")
        expected = self.body_bits(payload.count, self._checked_width(payload.width))
        if (payload.body_bits, payload.header_bits) != (expected, self.header_bits):
            raise InputError(
                f"payload: '{self.name}' sends {expected} + {self.header_bits} bits for {payload.count} entries of "
                f"{payload.width} bits, found {payload.body_bits} + {payload.header_bits}"
            )
        return torch.from_numpy(self._decode(payload))

    def simulate(self, values: Tensor, bits: int, generator: torch.Generator | None = None) -> Tensor:
        """Return what the receiver would decode, without packing.

        Equal to ``decode(encode(values, bits, generator))`` bit by bit from the same state of the generator, and
        leaves the generator in the same state. Arguments and errors as in `encode`; the result is float32,
        shape [n], on the device of `values`, and shares no memory with it.
        """
        entries, width, source = self._checked(values, bits, generator)
        return torch.from_numpy(self._simulate(entries, width, source)).to(values.device)

    def payload_bits(self, count: int, bits: int) -> int:
        """Return the bits that a payload of `count` entries of `bits` bits takes, header included."""
        width = self._checked_width(bits)
        if not is_whole(count) or count < 0:
            raise InputError(f"count must be a whole number of at least 0, found {count!r}")
        return self.body_bits(int(count), width) + self.header_bits

    def body_bits(self, count: int, bits: int) -> int:
        """Return the bits of the body; arguments are not checked."""
        return int(compression.payload_bits(count, bits))

    @abstractmethod
    def error_bound(self, values: Tensor, bits: int) -> float:
        """Return a bound of E ||decoded - values||^2; of the error itself where the codec is not random."""

    @abstractmethod
    def _encode(self, values: Floats, width: int, generator: torch.Generator | None) -> tuple[bytes, tuple[float, ...]]:
        """Return body and header of checked entries."""

    @abstractmethod
    def _decode(self, payload: Payload) -> Floats:
        """Return the entries of a payload of the right size; `InputError` if it is damaged."""

    @abstractmethod
    def _simulate(self, values: Floats, width: int, generator: torch.Generator | None) -> Floats:
        """Return what would be decoded, in new memory."""

    def _checked_width(self, bits: int) -> int:
        if not is_whole(bits) or bits not in self.widths:
            raise InputError(f"codec '{self.name}': bits must be {listed(self.widths)}, found {bits!r}")
        return int(bits)

    def _checked(
        self, values: Tensor, bits: int, generator: torch.Generator | None
    ) -> tuple[Floats, int, torch.Generator | None]:
        width = self._checked_width(bits)
        if self.random and width != 32 and not isinstance(generator, torch.Generator):
            raise InputError(f"codec '{self.name}' needs a seeded torch.Generator, found {generator!r}")
        return self._entries(values), width, generator

    @staticmethod
    def _entries(values: Tensor) -> Floats:
        """Return the entries of a finite float32 vector."""
        if not isinstance(values, Tensor):
            raise InputError(f"values must be a 1-D float32 tensor, found {type(values).__name__}")
        if values.ndim != 1 or values.dtype != torch.float32:
            raise InputError(
                f"values must be a 1-D float32 tensor, found {values.dtype} of shape {tuple(values.shape)}"
            )
        values = values.detach()
        if len(values) and not all(math.isfinite(float(end)) for end in torch.aminmax(values)):  # NaN if any is
            first = int(torch.nonzero(~torch.isfinite(values))[0])
            raise InputError(f"values must be finite, found {float(values[first])} at index {first}")
        return values.cpu().contiguous().numpy()


def listed(widths: Sequence[int]) -> str:
    """Return widths in words: "a whole number in 1 .. 24 or 32", or the only one."""
    if len(widths) == 1:
        return str(widths[0])
    runs: list[list[int]] = []
    for width in widths:
        if runs and width == runs[-1][-1] + 1:
            runs[-1].append(width)
        else:
            runs.append([width])
    spans = [str(run[0]) if len(run) == 1 else f"{run[0]} .. {run[-1]}" for run in runs]
    return "a whole number in " + " or ".join(spans)


def norms(values: NDArray[Any]) -> tuple[float, float]:
    """Return sum |x| and sum x^2 of float32 entries, in float64; the same sums on every call."""
    absolute, square = [], []
    for at in range(0, len(values), _PIECE):
        piece = values[at : at + _PIECE].astype(np.float64)
        square.append(float((piece * piece).sum()))
        absolute.append(float(np.abs(piece, out=piece).sum()))
    return math.fsum(absolute), math.fsum(square)

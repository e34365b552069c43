"""Whole numbers of a few bits each, packed without gaps, and streams of bits joined and split.

The most significant bit comes first, and the last byte is filled up with zeros. Eight codes fill exactly `width`
bytes. As many codes as fit are merged in one 64-bit word, halves of halves at a time, so that the work per code is
a few vectorised operations on words that hold up to eight of them.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jointopt.errors import InputError

__all__ = [
    "CHUNK",
    "Packer",
    "code_type",
    "join_bits",
    "pack_chunks",
    "pack_codes",
    "packed_bytes",
    "pass_chunks",
    "split_bits",
    "unpack_chunks",
    "unpack_codes",
]

CHUNK = 1 << 17
"""Codes handled at a time, a multiple of 8: few enough for the cache, enough to make the calls cheap."""
_WORD = np.dtype("<u8")


def code_type(width: int) -> np.dtype[Any]:
    """Return the smallest unsigned type for codes of `width` bits, 1 .. 32."""
    return np.dtype("<u1" if width <= 8 else "<u2" if width <= 16 else "<u4")


def packed_bytes(bits: int) -> int:
    """Return how many bytes a stream of `bits` bits fills."""
    return (bits + 7) // 8


def _upper(value_bits: int, period: int) -> np.uint64:
    """Return a 64-bit word whose `value_bits` uppermost bits of every `period` bits are set."""
    return np.uint64(sum(((1 << value_bits) - 1) << (at - value_bits) for at in range(period, 65, period)))


class _Step:
    """The merging of two fields to one: bits of a field and bits used in it, the masks of `Packer` made from them."""

    def __init__(self, field: int, used: int) -> None:
        self.kind = np.dtype(f"<u{field // 4}")  # of the field of twice the size
        self.field, self.used = self.kind.type(field), self.kind.type(used)
        self.both, self.second = _upper(2 * used, 2 * field), _upper(field, 2 * field)


class Packer:
    """Packs and unpacks codes of one width, chunk by chunk, in memory that is allocated once.

    Codes are moved to the upper end of their fields (of 8, 16 or 32 bits). A pair of neighbours is then merged by two
    shifts within a field of twice the size, so that its codes stand at the upper end of that, and so on up to 64 bits.
    What is shifted out below is cut off by a mask, or not written at all.

    Parameters
    ----------
    width : int
        Bits per code, 1 .. 32.
    capacity : int
        Most codes of one chunk, a multiple of 8.
    """

    SPILL = 8
    """Bytes after those of the codes that `pack` may overwrite."""

    def __init__(self, width: int, capacity: int) -> None:
        self.width = width
        self.type = code_type(width)
        self._field = 8 * self.type.itemsize
        per_word = 64 // self._field
        self._piece_bits = per_word * width  # bits of one merged word
        self._pieces = 8 // per_word  # merged words of eight codes
        self._top, self._rise = _upper(width, self._field), np.uint64(self._field - width)
        self._steps = [_Step(f, f // self._field * width) for f in (8, 16, 32) if f >= self._field]
        self._words = [self._overlaps(at) for at in range(packed_bytes(width))]
        groups = capacity // 8
        self._merged = np.empty(groups * self._pieces, dtype=_WORD)
        self._spare = np.empty_like(self._merged)
        self._word = np.empty(groups, dtype=_WORD)
        self._part = np.empty(groups, dtype=_WORD)
        self._scratch = np.empty(groups * width + self.SPILL, dtype=np.uint8)

    def _overlaps(self, word: int) -> list[tuple[int, bool, np.uint64]]:
        """Return the pieces that overlap the 64-bit word at that place: which, and whether how far right or left."""
        size = self._piece_bits
        return [
            (piece, piece * size >= 64 * word, np.uint64(abs(piece * size - 64 * word)))
            for piece in range(self._pieces)
            if piece * size < 64 * (word + 1) and (piece + 1) * size > 64 * word
        ]

    def pack(self, codes: NDArray[Any], out: NDArray[np.uint8]) -> None:
        """Pack codes of type `type`, shape [8 m], each below 2**width, into `out`, shape [m x width + SPILL]."""
        groups, width = len(codes) // 8, self.width
        if width == self._field:
            np.copyto(out[: groups * width].view(self.type.newbyteorder(">")), codes)
            return
        merged, spare = self._merged[: groups * self._pieces], self._spare[: groups * self._pieces]
        np.left_shift(codes.view(_WORD), self._rise, out=merged)
        for step in self._steps:
            # the first code of a pair lies in the lower field
            pair, first = merged.view(step.kind), spare.view(step.kind)
            np.left_shift(pair, step.field, out=first)
            np.right_shift(pair, step.used, out=pair)
            np.bitwise_or(merged, spare, out=merged)
            if step.field < 32 or self._pieces > 1:
                np.bitwise_and(merged, step.both, out=merged)
        pieces = merged.reshape(groups, self._pieces)
        # backwards, since the end of the last word lies over the next group, whose first word is written after it
        for at in reversed(range(len(self._words))):
            word = self._join(pieces, at)
            word.byteswap(inplace=True)
            size = min(8, width - 8 * at)
            if width > 8 or size in (1, 2, 4):
                kind = f"<u{8 if width > 8 else size}"
                np.ndarray(groups, kind, out, 8 * at, (width,))[:] = np.ndarray(groups, kind, word, 0, (8,))
            else:
                rows, octets = out[: groups * width].reshape(groups, width), word.view(np.uint8).reshape(groups, 8)
                for column in range(size):
                    rows[:, column] = octets[:, column]

    def _join(self, pieces: NDArray[np.uint64], at: int) -> NDArray[np.uint64]:
        """Return the word at that place of each group."""
        if self._pieces == 1:
            return pieces[:, 0]
        word, part = self._word[: len(pieces)], self._part[: len(pieces)]
        for i, (piece, right, far) in enumerate(self._words[at]):
            (np.right_shift if right else np.left_shift)(pieces[:, piece], far, out=part if i else word)
            if i:
                np.bitwise_or(word, part, out=word)
        return word

    def unpack(self, body: NDArray[np.uint8], out: NDArray[Any]) -> None:
        """Unpack into `out`, of type `type` and shape [8 m]; bytes missing at the end of `body` count as zero."""
        groups, width = len(out) // 8, self.width
        scratch = self._scratch
        scratch[: len(body)] = body
        scratch[len(body) : groups * width + self.SPILL] = 0
        if width == self._field:
            np.copyto(out, scratch[: groups * width].view(self.type.newbyteorder(">")))
            return
        merged, spare = self._merged[: groups * self._pieces], self._spare[: groups * self._pieces]
        self._cut(scratch, merged.reshape(groups, self._pieces))
        for step in reversed(self._steps):
            pair, second = merged.view(step.kind), spare.view(step.kind)
            np.left_shift(pair, step.used, out=second)
            np.bitwise_and(spare, step.second, out=spare)
            np.right_shift(pair, step.field, out=pair)
            np.bitwise_or(merged, spare, out=merged)
        np.bitwise_and(merged, self._top, out=merged)
        np.right_shift(merged, self._rise, out=out.view(_WORD))

    def _cut(self, scratch: NDArray[np.uint8], pieces: NDArray[np.uint64]) -> None:
        """Read the pieces of each group, whatever follows them in their lower bits."""
        groups = len(pieces)
        word, part = self._word[:groups], self._part[:groups]
        begun: set[int] = set()
        for at, overlaps in enumerate(self._words):
            np.copyto(word, np.ndarray(groups, _WORD, scratch, 8 * at, (self.width,)))
            word.byteswap(inplace=True)
            for piece, right, far in overlaps:
                target = pieces[:, piece]
                if piece in begun:
                    np.bitwise_or(target, np.right_shift(word, far, out=part), out=target)
                else:
                    (np.left_shift if right else np.right_shift)(word, far, out=target)
                    begun.add(piece)


def _chunks(count: int) -> Iterator[tuple[int, int]]:
    return ((at, min(at + CHUNK, count)) for at in range(0, count, CHUNK))


def _whole_groups(count: int) -> int:
    """Return the count filled up to whole groups of eight."""
    return -(-count // 8) * 8


def pack_chunks(count: int, width: int, fill: Callable[[int, int, NDArray[Any]], None]) -> bytes:
    """Pack `count` codes of `width` bits that ``fill(start, stop, out)`` writes a chunk at a time, in order."""
    capacity = min(CHUNK, _whole_groups(count))
    packer = Packer(width, capacity)
    codes = np.empty(capacity, dtype=packer.type)
    # written where it stays: a copy of fresh memory takes as long as packing
    body = io.BytesIO(bytes(_whole_groups(count) // 8 * width + packer.SPILL))
    with body.getbuffer() as view:
        octets = np.frombuffer(view, dtype=np.uint8)
        for start, stop in _chunks(count):
            size, whole = stop - start, _whole_groups(stop - start)
            fill(start, stop, codes[:size])
            codes[size:whole] = 0
            packer.pack(codes[:whole], octets[start // 8 * width : (start + whole) // 8 * width + packer.SPILL])
        del octets
    body.truncate(packed_bytes(count * width))
    return body.getvalue()


def unpack_chunks(body: bytes, count: int, width: int, take: Callable[[int, int, NDArray[Any]], None]) -> None:
    """Hand the `count` codes of a body to ``take(start, stop, codes)``, a chunk at a time, in order."""
    capacity = min(CHUNK, _whole_groups(count))
    packer = Packer(width, capacity)
    codes = np.empty(capacity, dtype=packer.type)
    octets = np.frombuffer(body, dtype=np.uint8)
    for start, stop in _chunks(count):
        whole = _whole_groups(stop - start)
        packer.unpack(octets[start // 8 * width : (start + whole) // 8 * width], codes[:whole])
        take(start, stop, codes[: stop - start])


def pass_chunks(
    count: int,
    width: int,
    fill: Callable[[int, int, NDArray[Any]], None],
    take: Callable[[int, int, NDArray[Any]], None],
) -> None:
    """Hand codes from `fill` to `take`, as `pack_chunks` and `unpack_chunks` would, without packing them."""
    codes = np.empty(min(CHUNK, count), dtype=code_type(width))
    for start, stop in _chunks(count):
        fill(start, stop, codes[: stop - start])
        take(start, stop, codes[: stop - start])


def pack_codes(codes: NDArray[Any], width: int) -> bytes:
    """Pack codes, shape [n], each in 0 .. 2**width - 1 (1 <= width <= 32), into ceil(n x width / 8) bytes.

    Raises
    ------
    InputError
        A code does not fit.
    """
    if len(codes) and not (codes.min() >= 0 and codes.max() < 1 << width):
        raise InputError(f"codes must lie in 0 .. {(1 << width) - 1}, found {codes.min()} .. {codes.max()}")

    def fill(start: int, stop: int, out: NDArray[Any]) -> None:
        np.copyto(out, codes[start:stop], casting="unsafe")

    return pack_chunks(len(codes), width, fill)


def unpack_codes(body: bytes, count: int, width: int) -> NDArray[Any]:
    """Return the `count` codes that `pack_codes` packed, of type `code_type(width)`, shape [count].

    Raises
    ------
    InputError
        The body has another length.
    """
    if len(body) != packed_bytes(count * width):
        raise InputError(f"{count} codes of {width} bits fill {packed_bytes(count * width)} bytes, found {len(body)}")
    codes = np.empty(count, dtype=code_type(width))

    def take(start: int, stop: int, chunk: NDArray[Any]) -> None:
        codes[start:stop] = chunk

    unpack_chunks(body, count, width, take)
    return codes


def join_bits(parts: Sequence[tuple[bytes, int]]) -> bytes:
    """Join streams of (bytes, number of bits) to one without gaps."""
    if all(bits % 8 == 0 for _, bits in parts[:-1]):
        return b"".join(body for body, _ in parts)
    streams = [np.unpackbits(np.frombuffer(body, dtype=np.uint8), count=bits) for body, bits in parts]
    return np.packbits(np.concatenate(streams)).tobytes()


def split_bits(body: bytes, sizes: Sequence[int]) -> list[bytes]:
    """Undo `join_bits`: the bytes of each stream of so many bits."""
    if all(bits % 8 == 0 for bits in sizes[:-1]):
        ends = np.cumsum([packed_bytes(bits) for bits in sizes]).tolist()
        return [body[start:end] for start, end in zip([0, *ends], ends, strict=False)]
    stream = np.unpackbits(np.frombuffer(body, dtype=np.uint8), count=sum(sizes))
    cuts = np.split(stream, np.cumsum(sizes)[:-1])
    return [np.packbits(cut).tobytes() for cut in cuts]

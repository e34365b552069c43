"""Unbiased rounding of float32 entries to evenly spaced knobs, a chunk at a time.

Knobs. The range [low, high] carries steps + 1 knobs. Let `near` be the end of smaller magnitude and `far` the other
one. With the float64 step s = (far - near) / steps the knobs are k_j = float32(near + j s), j = 0 .. steps, counted
from `near`; the code that travels counts from `low`. Both ends come out exactly: k_0 = near, and near + steps x s
differs from far by a few float64 roundings of |far|, which float32 does not see. Roundings are monotone, so the knobs
never decrease on the way from near to far. Only float64 products, sums and one cast are used, so that every machine
decodes the same.

Probabilities. j = floor((x - near) / s) (1 - 2**-50) leaves x between k_j and k_{j+1} as they are *decoded*, and x
goes up where v (k_{j+1} - k_j) < 2**32 (x - k_j), with v one of 2**32 equally likely words. The differences of float32
numbers and the product are taken in float64, so the number of words that go up is within 2 of 2**32 p with
p = (x - k_j) / (k_{j+1} - k_j), and exactly 0 or 2**32 where x is a knob. The expectation of what is decoded is
therefore x to within 2**-31 of the distance of its two knobs (5e-10 of the range with one bit, 8e-15 with 16), plus at
most 2**-48 of the range where float64 put x beyond k_{j+1}. That float32 knobs are not exactly evenly spaced, or
collide where the range is tiny, does no harm, since p is taken between them.

Speed. Most entries need none of this. With b the bits of a code and T = (x - near) / s in units of 2**(b - 32) steps,
the code is floor((T + w) / 2**(32 - b)), where w is the leading 32 - b bits of a random word and v its complement. The
rule above can only differ where that sum is within a margin of a whole number of steps: half a unit of float32 at the
larger end, by which a knob may be off its even place, and 8 units for what T and w leave out. Just these entries (up to
16 bits below one in a hundred, if the range contains zero) are decided by the rule, and all are where they would be a
quarter or more. The codes are the same either way.

Random words. numpy's SFC64, seeded with 252 bits from the caller's torch generator, gives one word per entry.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

__all__ = ["Grid", "Rounder", "Words"]

_SHRINK = 1.0 - 2.0**-50  # so that no quotient reaches the number of steps
_WORDS = 2.0**32

Floats = NDArray[np.float32]


class Words:
    """A stream of random 32-bit words; takes the same few numbers from the generator whatever is drawn from it."""

    def __init__(self, generator: torch.Generator | None) -> None:
        assert generator is not None  # codecs that draw have checked it
        seeds = torch.randint(2**63 - 1, (4,), generator=generator, device=generator.device)
        self._bits = np.random.SFC64(seeds.tolist())

    def draw(self, count: int) -> NDArray[np.uint32]:
        """Return the next `count` words, uint32; an odd count gives up the half of a 64-bit draw."""
        return self._bits.random_raw((count + 1) // 2).astype("<u8", copy=False).view("<u4")[:count]


@dataclass(frozen=True)
class Grid:
    """The knobs of one vector.

    Attributes
    ----------
    low, high : float
        The ends, finite float32 numbers, low <= high.
    steps : int
        Intervals, 1 .. 2**24 - 1.
    """

    low: float
    high: float
    steps: int

    @property
    def mirrored(self) -> bool:
        """Whether knobs are counted from `high`."""
        return abs(self.low) > abs(self.high)

    @property
    def near(self) -> float:
        """The end of smaller magnitude."""
        return self.high if self.mirrored else self.low

    @property
    def step(self) -> float:
        """Signed distance of two knobs, from near to far."""
        return (self.low - self.high if self.mirrored else self.high - self.low) / self.steps


class Rounder:
    """Codes of entries and knobs of codes on one grid, in memory that is allocated once.

    Parameters
    ----------
    grid : Grid
        The knobs.
    kind : dtype
        Unsigned type of the codes.
    capacity : int
        Most entries of one chunk.
    """

    def __init__(self, grid: Grid, kind: np.dtype[Any], capacity: int) -> None:
        self.grid = grid
        # memory that the grid gives no use for is never touched and so costs nothing
        self._more = np.empty(capacity, dtype=kind)
        self._floats = np.empty(capacity, dtype=np.float32)
        self._flag = np.empty(capacity, dtype=np.bool_)
        self._fixed, self._spare = np.empty((2, capacity), dtype="<u4")
        self._entry, self._index, self._lower, self._upper = np.empty((4, capacity))
        self._fraction = 32 - grid.steps.bit_length()
        self._margin = self._doubt()

    def _doubt(self) -> int | None:
        """Return the units within which a sum is doubtful; None where too many would be."""
        if self.grid.step == 0.0:
            return None
        most = max(abs(self.grid.low), abs(self.grid.high))
        if most > 2.0**10 * (self.grid.high - self.grid.low):
            return None
        knob = (most * 2.0**-24 * (1.0 + 2.0**-20) + 2.0**-149) / abs(self.grid.step)
        margin = math.ceil(knob * 2.0**self._fraction) + 8
        return margin if margin <= 2**self._fraction / 8 else None

    def codes(self, values: Floats, words: NDArray[np.uint32], out: NDArray[Any]) -> None:
        """Draw the code of each entry in [low, high], shape [n], by its own random word, into `out`."""
        grid, size = self.grid, len(values)
        if grid.step == 0.0:
            out[:] = 0
            return
        margin = self._margin
        if margin is None:
            self._exact(values, words, out)
        else:
            entry, fixed, spare, near = self._entry[:size], self._fixed[:size], self._spare[:size], self._flag[:size]
            bits = self._fraction
            scale = 2.0**bits / grid.step
            np.copyto(entry, values)
            np.multiply(entry, scale, out=entry)
            # less 2**31, as there is no fast cast to unsigned; the margin moves doubtful sums to the start of a step
            np.add(entry, margin - 2.0**31 - grid.near * scale, out=entry)
            np.copyto(fixed.view(np.int32), entry, casting="unsafe")
            np.right_shift(words, np.uint32(32 - bits), out=spare)
            np.add(fixed, spare, out=fixed)
            np.bitwise_and(fixed, np.uint32((1 << bits) - 1), out=spare)
            np.less_equal(spare, np.uint32(2 * margin), out=near)
            np.right_shift(fixed, np.uint32(bits), out=fixed)
            np.copyto(out, fixed, casting="unsafe")
            np.bitwise_xor(out, out.dtype.type(1 << (31 - bits)), out=out)  # takes back the 2**31
            doubtful = np.flatnonzero(near)
            if len(doubtful):
                some = np.empty(len(doubtful), dtype=out.dtype)
                self._exact(values[doubtful], words[doubtful], some)
                out[doubtful] = some
        if grid.mirrored:
            np.subtract(out.dtype.type(grid.steps), out, out=out)

    def _exact(self, values: Floats, words: NDArray[np.uint32], out: NDArray[Any]) -> None:
        """Draw the codes, counted from near, by the rule itself."""
        size, near, step = len(values), self.grid.near, self.grid.step
        entry, index, lower, upper = self._entry[:size], self._index[:size], self._lower[:size], self._upper[:size]
        floats, up, more = self._floats[:size], self._flag[:size], self._more[:size]
        np.copyto(entry, values)
        np.subtract(entry, near, out=index)
        np.multiply(index, _SHRINK / step, out=index)
        np.floor(index, out=index)
        np.copyto(out, index, casting="unsafe")
        for knob in (lower, upper):
            np.multiply(index, step, out=knob)
            np.add(knob, near, out=knob)
            np.copyto(floats, knob, casting="same_kind")
            np.copyto(knob, floats)
            np.add(index, 1.0, out=index)
        np.subtract(upper, lower, out=upper)
        np.subtract(entry, lower, out=entry)
        np.multiply(entry, _WORDS, out=entry)
        np.copyto(index, np.invert(words))
        # as a product, so that two knobs equal in float32 need no division by zero
        np.multiply(upper, index, out=upper)
        (np.greater if step < 0.0 else np.less)(upper, entry, out=up)
        np.copyto(more, up)
        np.add(out, more, out=out)

    def knobs(self, codes: NDArray[Any], out: Floats) -> None:
        """Write the knob of each code, shape [n], into `out`."""
        grid, size = self.grid, len(codes)
        index = self._index[:size]
        if grid.mirrored:
            codes = np.subtract(codes.dtype.type(grid.steps), codes, out=self._more[:size])
        np.copyto(index, codes)
        np.multiply(index, grid.step, out=index)
        np.add(index, grid.near, out=index)
        np.copyto(out, index, casting="same_kind")

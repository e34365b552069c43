"""Sparse ternary compression: the largest magnitudes, as places, signs and one mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from jointopt.errors import InputError, is_real
from jointopt.federated.codecs.base import Codec, Floats, Payload, norms
from jointopt.federated.codecs.mask import FORMS, MaskPayload, decode_mask, encode_mask, shorter_form, sized
from jointopt.federated.codecs.packing import join_bits, pack_chunks, pass_chunks, split_bits, unpack_chunks
from jointopt.federated.codecs.sign import bit_filler, mean_error, mean_magnitude, sign_placer
from jointopt.models import compression
from jointopt.pruning.magnitude import keep_mask, pruned_count

__all__ = ["Ternary"]


@dataclass(frozen=True)
class Ternary(Codec):
    """Keeps the k entries of largest magnitude and sends their places, signs and mean magnitude m.

    What is decoded is m sign(x) there and 0 elsewhere (Sattler et al. 2020, Robust and communication-efficient
    federated learning from non-i.i.d. data). The places travel as bitmap or as indices, whichever is shorter, told
    by one bit of the header. Biased, and a contraction: the error is exactly ||x||^2 - ||x_kept||_1^2 / k, at most
    (1 - 1 / n) ||x||^2. Use it with `jointopt.federated.codecs.feedback.ErrorFeedback`.

    Attributes
    ----------
    density
        Share of entries kept, in (0, 1]: k = n - floor((1 - density) n), at least 1. Of equal magnitudes the later
        ones are kept.

    Raises
    ------
    InputError
        The density is out of its range.
    """

    name: ClassVar[str] = "ternary"
    unbiased: ClassVar[bool] = False
    random: ClassVar[bool] = False
    widths: ClassVar[tuple[int, ...]] = (1,)
    header_bits: ClassVar[int] = 33

    density: float = 0.01

    def __post_init__(self) -> None:
        if not is_real(self.density) or not 0.0 < self.density <= 1.0:
            raise InputError(f"codec 'ternary': density must lie in (0, 1], found {self.density!r}")

    def kept(self, count: int) -> int:
        """Return k for `count` entries."""
        return max(1, count - pruned_count(1.0 - float(self.density), count)) if count else 0

    def body_bits(self, count: int, bits: int) -> int:
        """Return k sign bits and the bits of the places; arguments are not checked."""
        kept = self.kept(count)
        return int(compression.payload_bits(kept, bits, index_once=self._place_bits(count)))

    def error_bound(self, values: Tensor, bits: int) -> float:
        """Return ||x||^2 - ||x_kept||_1^2 / k, and what rounding m to float32 may add."""
        self._checked_width(bits)
        entries = self._entries(values)
        keep = self._keep(entries)
        return mean_error(self.kept(len(entries)), *norms(entries[keep])) + norms(entries[~keep])[1]

    def _place_bits(self, count: int) -> int:
        kept = self.kept(count)
        return sized(shorter_form(kept, count), kept, count)

    def _keep(self, values: Floats) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        count = len(values)
        ratio = (count - self.kept(count)) / count if count else 0.0
        return keep_mask(torch.from_numpy(values), ratio).numpy()

    def _encode(self, values: Floats, width: int, generator: torch.Generator | None) -> tuple[bytes, tuple[float, ...]]:
        keep = self._keep(values)
        kept = values[keep]
        places = encode_mask(torch.from_numpy(keep), shorter_form(len(kept), len(values)))
        signs = pack_chunks(len(kept), 1, bit_filler(kept))
        body = join_bits([(places.body, places.bits), (signs, len(kept))])
        return body, (mean_magnitude(kept), float(FORMS.index(places.form)))

    def _decode(self, payload: Payload) -> Floats:
        kept = self.kept(payload.count)
        form = shorter_form(kept, payload.count)
        if len(payload.header) != 2 or not payload.header[0] >= 0.0 or payload.header[1] != FORMS.index(form):
            raise InputError(
                f"payload header must be a mean of at least 0 and {FORMS.index(form)} for the form '{form}', "
                f"found {list(payload.header)}"
            )
        places, signs = split_bits(payload.body, [self._place_bits(payload.count), kept])
        keep = decode_mask(MaskPayload(places, form, kept, payload.count)).numpy()
        some = np.empty(kept, dtype=np.float32)
        unpack_chunks(signs, kept, 1, sign_placer(some, payload.header[0]))
        return _spread(keep, some)

    def _simulate(self, values: Floats, width: int, generator: torch.Generator | None) -> Floats:
        keep = self._keep(values)
        kept = values[keep]
        some = np.empty_like(kept)
        pass_chunks(len(kept), 1, bit_filler(kept), sign_placer(some, mean_magnitude(kept)))
        return _spread(keep, some)


def _spread(keep: np.ndarray[tuple[int], np.dtype[np.bool_]], some: Floats) -> Floats:
    """Return the entries at their places, zeros elsewhere."""
    out = np.zeros(len(keep), dtype=np.float32)
    out[keep] = some
    return out

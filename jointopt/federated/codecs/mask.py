"""A boolean mask that must travel: as one bit per entry, or as the places of the entries kept."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from jointopt.errors import InputError, is_whole, nearest
from jointopt.federated.codecs.packing import pack_codes, packed_bytes, unpack_codes
from jointopt.models import compression

__all__ = ["FORMS", "MaskPayload", "decode_mask", "encode_mask", "mask_bits", "shorter_form", "sized"]

Form = Literal["bitmap", "indices"]
FORMS: tuple[Form, ...] = ("bitmap", "indices")
"""The forms a mask can take, as in a learner's `mask_encoding`."""


def sized(form: Form, kept: int, total: int) -> int:
    """Return the bits a mask of `total` entries, `kept` of them True, takes in a form."""
    per_entry, once = compression.index_bits(total, form)
    return int(compression.payload_bits(kept, 0, index_per_weight=int(per_entry), index_once=int(once)))


def shorter_form(kept: int, total: int) -> Form:
    """Return the form that takes fewer bits; "bitmap" if both take as many."""
    return "indices" if sized("indices", kept, total) < sized("bitmap", kept, total) else "bitmap"


def _counts(kept: int, total: int) -> tuple[int, int]:
    for field, value in (("kept", kept), ("total", total)):
        if not is_whole(value) or value < 0:
            raise InputError(f"{field} must be a whole number of at least 0, found {value!r}")
    if kept > total:
        raise InputError(f"kept must be at most the total {total}, found {kept}")
    return int(kept), int(total)


def mask_bits(kept: int, total: int) -> float:
    """Return the bits to which a mask can be coded: the least of bitmap, indices and entropy.

    Parameters
    ----------
    kept, total
        True entries, and all entries M.

    Returns
    -------
    float
        min(M, kept ceil(log2 M), M H(kept / M)), with the binary entropy H; the last is not below the logarithm of
        the number of such masks, so an arithmetic coder that knows `kept` gets there to within 2 bits.

    Raises
    ------
    InputError
        A count is not a whole number of at least 0, or more are kept than there are.
    """
    kept, total = _counts(kept, total)
    if kept in (0, total):
        return 0.0
    share = kept / total
    entropy = -share * math.log2(share) - (1.0 - share) * math.log1p(-share) / math.log(2.0)
    return min(float(sized("bitmap", kept, total)), float(sized("indices", kept, total)), total * entropy)


@dataclass(frozen=True)
class MaskPayload:
    """A mask as it travels.

    Attributes
    ----------
    body
        "bitmap": one bit per entry, 1 for True. "indices": the places of the True entries, ascending, in
        ceil(log2 M) bits each. The most significant bit first, the last byte filled up with zeros.
    form
        One of `FORMS`.
    kept, total
        True entries, and all entries M. The receiver knows both from the plan; they do not travel.
    header_bits
        1 where the sender chose the form, 0 where the plan names it.

    Raises
    ------
    InputError
        The parts do not fit each other.
    """

    body: bytes
    form: Form
    kept: int
    total: int
    header_bits: int = 0

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise InputError(f"mask payload: unknown form '{self.form}'{nearest(str(self.form), FORMS)}")
        _counts(self.kept, self.total)
        size = self.body_bits
        if len(self.body) != packed_bytes(size):
            raise InputError(
                f"mask payload of {self.kept} of {self.total} entries as {self.form} must have "
                f"{packed_bytes(size)} bytes, found {len(self.body)}"
            )
        if size % 8 and self.body[-1] & ((1 << -size % 8) - 1):
            raise InputError(f"mask payload: the last {-size % 8} bits are padding and must be 0")

    @property
    def body_bits(self) -> int:
        """Bits of the body, without the padding of the last byte."""
        return sized(self.form, self.kept, self.total)

    @property
    def bits(self) -> int:
        """Bits sent."""
        return self.body_bits + self.header_bits


def encode_mask(mask: Tensor, form: str = "auto") -> MaskPayload:
    """Pack a mask, bool, shape [M], in a form: one of `FORMS`, or "auto" for the shorter, at one bit more.

    Raises
    ------
    InputError
        It is not a bool vector, or the form is unknown.
    """
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.ndim != 1:
        found = f"{mask.dtype} of shape {tuple(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
        raise InputError(f"mask must be a 1-D bool tensor, found {found}")
    if form != "auto" and form not in FORMS:
        raise InputError(f"form: unknown '{form}'{nearest(str(form), (*FORMS, 'auto'))}")
    entries = mask.cpu().numpy()
    kept, total = int(np.count_nonzero(entries)), len(entries)
    chosen: Form = shorter_form(kept, total) if form == "auto" else "indices" if form == "indices" else "bitmap"
    if chosen == "bitmap":
        body = np.packbits(entries).tobytes()
    else:
        body = pack_codes(np.flatnonzero(entries), int(compression.index_bits(total, "indices")[0]))
    return MaskPayload(body, chosen, kept, total, int(form == "auto"))


def decode_mask(payload: MaskPayload) -> Tensor:
    """Return the mask, bool, shape [M]; `InputError` if it does not have `kept` True entries in order."""
    if payload.form == "bitmap":
        octets = np.frombuffer(payload.body, dtype=np.uint8)
        entries = np.unpackbits(octets, count=payload.total).view(np.bool_)
        found = int(np.count_nonzero(entries))
        if found != payload.kept:
            raise InputError(f"mask payload: must keep {payload.kept} entries, found {found}")
        return torch.from_numpy(entries)
    width = int(compression.index_bits(payload.total, "indices")[0])
    places = unpack_codes(payload.body, payload.kept, width).astype(np.int64)
    if len(places) and not (places[-1] < payload.total and (np.diff(places) > 0).all()):
        raise InputError(f"mask payload: places must ascend and lie below {payload.total}")
    entries = np.zeros(payload.total, dtype=np.bool_)
    entries[places] = True
    return torch.from_numpy(entries)

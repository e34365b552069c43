"""Raw float32."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from jointopt.errors import InputError
from jointopt.federated.codecs.base import Codec, Floats, Payload

__all__ = ["Raw"]


@dataclass(frozen=True)
class Raw(Codec):
    """Sends the entries as they are, little-endian, without a header; lossless."""

    name: ClassVar[str] = "raw"
    unbiased: ClassVar[bool] = True
    random: ClassVar[bool] = False
    widths: ClassVar[tuple[int, ...]] = (32,)
    header_bits: ClassVar[int] = 0

    def error_bound(self, values: Tensor, bits: int) -> float:
        """Return 0."""
        self._checked_width(bits)
        self._entries(values)
        return 0.0

    def _encode(self, values: Floats, width: int, generator: torch.Generator | None) -> tuple[bytes, tuple[float, ...]]:
        return values.astype("<f4", copy=False).tobytes(), ()

    def _decode(self, payload: Payload) -> Floats:
        entries = np.frombuffer(payload.body, dtype="<f4").astype(np.float32)
        bad = np.flatnonzero(~np.isfinite(entries))
        if payload.header or len(bad):
            found = f"a header {list(payload.header)}" if payload.header else f"{entries[bad[0]]} at index {bad[0]}"
            raise InputError(f"payload of codec 'raw' must hold finite entries and no header, found {found}")
        return entries

    def _simulate(self, values: Floats, width: int, generator: torch.Generator | None) -> Floats:
        return values.copy()

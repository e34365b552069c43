"""Masks that travel: exact, counted, and never below what counting allows."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from jointopt.errors import InputError
from jointopt.federated.codecs import MaskPayload, decode_mask, encode_mask, mask_bits
from jointopt.models import compression


@pytest.mark.parametrize("form", ["bitmap", "indices", "auto"])
@given(mask=st.lists(st.booleans(), max_size=70))
def test_masks_come_back(form: str, mask: list[bool]) -> None:
    tensor = torch.tensor(mask, dtype=torch.bool)
    payload = encode_mask(tensor, form)
    assert torch.equal(decode_mask(payload), tensor)
    assert 0 <= 8 * len(payload.body) - payload.body_bits < 8
    sizes = {}
    for name in ("bitmap", "indices"):
        per_weight, once = compression.index_bits(len(mask), name)  # type: ignore[arg-type]
        sizes[name] = sum(mask) * per_weight + once
    assert payload.bits == (min(sizes.values()) + 1 if form == "auto" else sizes[form])


@pytest.mark.parametrize("total", range(1, 40))
def test_no_fewer_bits_than_there_are_masks(total: int) -> None:
    for kept in range(total + 1):
        bits = mask_bits(kept, total)
        assert math.log2(math.comb(total, kept)) <= bits + 1e-9
        assert bits <= encode_mask(torch.arange(total) < kept).bits - 1
        assert bits == pytest.approx(mask_bits(total - kept, total)) or bits < total


def test_known_sizes() -> None:
    assert mask_bits(1, 1024) == 10.0  # one index
    assert mask_bits(512, 1024) == 1024.0
    assert mask_bits(102, 1024) == pytest.approx(478.98, abs=0.01)  # 1024 H(102 / 1024)
    assert mask_bits(0, 7) == mask_bits(7, 7) == mask_bits(0, 0) == 0.0
    mask = torch.zeros(1000, dtype=torch.bool)
    mask[[3, 999]] = True
    assert encode_mask(mask) == MaskPayload(b"\x00\xfe\x70", "indices", 2, 1000, 1)
    assert encode_mask(mask).body == ((3 << 10 | 999) << 4).to_bytes(3, "big")
    assert encode_mask(mask, "bitmap").bits == 1000


def test_damaged_masks_are_refused() -> None:
    mask = torch.zeros(20, dtype=torch.bool)
    mask[[1, 7]] = True
    for form in ("bitmap", "indices"):
        payload = encode_mask(mask, form)
        changes: list[dict[str, Any]] = [
            {"body": payload.body[:-1]},
            {"body": payload.body + b"\0"},
            {"body": payload.body[:-1] + bytes([payload.body[-1] | 1])},
            {"kept": 3},
            {"kept": 21},
            {"kept": -1},
            {"total": 100},
            {"form": "bitmaps"},
        ]
        for change in changes:
            with pytest.raises(InputError):
                decode_mask(replace(payload, **change))
    indices = encode_mask(mask, "indices")
    for places in ((7, 1), (7, 7), (1, 20)):
        body = (places[0] << 11 | places[1] << 6).to_bytes(2, "big")
        with pytest.raises(InputError, match="places must ascend and lie below 20"):
            decode_mask(replace(indices, body=body))


def test_bad_masks_are_refused() -> None:
    for mask in (torch.ones(3), torch.ones(2, 2, dtype=torch.bool), [True], None):
        with pytest.raises(InputError, match="1-D bool"):
            encode_mask(mask)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="did you mean 'bitmap'"):
        encode_mask(torch.ones(3, dtype=torch.bool), "bitmp")
    for kept, total in ((-1, 3), (4, 3), (1.0, 3), (True, 3), (1, None)):
        with pytest.raises(InputError, match=r"kept|total"):
            mask_bits(kept, total)  # type: ignore[arg-type]

"""Reading of IDX files, whole and damaged."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from jointopt.data import read_idx
from jointopt.errors import DataError


def idx_bytes(code: int, shape: tuple[int, ...], body: bytes) -> bytes:
    return bytes([0, 0, code, len(shape)]) + struct.pack(f">{len(shape)}I", *shape) + body


WHOLE = idx_bytes(0x08, (2, 3), bytes(range(6)))


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
@pytest.mark.parametrize(
    ("code", "kind"),
    [(0x08, "u1"), (0x09, "i1"), (0x0B, "i2"), (0x0C, "i4"), (0x0D, "f4"), (0x0E, "f8")],
)
def test_every_type_comes_back(tmp_path: Path, code: int, kind: str, pack: type[bytes]) -> None:
    written = np.array([[0, 1, 100], [7, 5, 3]], dtype=kind)
    path = tmp_path / "entries"  # no suffix: gzip is told by content
    path.write_bytes(pack(idx_bytes(code, (2, 3), written.astype(written.dtype.newbyteorder(">")).tobytes())))
    found = read_idx(path)
    assert found.dtype == written.dtype
    assert found.dtype.isnative
    assert found.flags.writeable
    np.testing.assert_array_equal(found, written)


def test_last_dimension_is_fastest(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(WHOLE)
    assert read_idx(str(path)).tolist() == [[0, 1, 2], [3, 4, 5]]


def damaged_gzip() -> bytes:
    good = bytearray(gzip.compress(idx_bytes(0x08, (1000,), bytes(i * 7 % 256 for i in range(1000)))))
    good[len(good) // 2] ^= 0xFF
    return bytes(good)


def wrong_checksum() -> bytes:
    good = bytearray(gzip.compress(WHOLE))
    good[-8] ^= 0x01  # the checksum stands before the length at the end
    return bytes(good)


DAMAGED = {
    "empty file": (b"", "at least 4 bytes, found 0"),
    "short magic": (WHOLE[:3], "found 3 bytes"),
    "wrong magic": (b"\x89PNG" + WHOLE[4:], "two zero bytes first, found 0x8950"),
    "unknown type": (bytes([0, 0, 0x0A]) + WHOLE[3:], "found 0x0a"),
    "no dimensions": (bytes([0, 0, 8, 0]), "found 0"),
    "too many dimensions": (bytes([0, 0, 8, 255]) + b"\0\0\0\1" * 255 + b"\7", "found 255"),
    "truncated dimensions": (WHOLE[:9], "expected 8 bytes of dimensions, found 5"),
    "truncated entries": (WHOLE[:-1], "expected 6 bytes for shape .* found 5"),
    "trailing byte": (WHOLE + b"\0", "trailing bytes"),
    "absurd dimensions": (idx_bytes(8, (2**32 - 1,) * 3, b"abc"), "absurd dimensions"),
    "zero dimension": (idx_bytes(8, (3, 0), b""), "absurd dimensions"),
    "large lie": (idx_bytes(8, (2**31,), b"abc"), "expected 2147483648 bytes for shape .* found 3"),
    "flipped byte in gzip": (damaged_gzip(), "intact gzip"),
    "wrong gzip checksum": (wrong_checksum(), "intact gzip"),
    "cut gzip": (gzip.compress(WHOLE)[:-9], "intact gzip"),
    "gzip cut before its checksum": (gzip.compress(WHOLE)[:-8], "intact gzip"),
    "gzip magic alone": (b"\x1f\x8b", "intact gzip"),
    "bytes after gzip": (gzip.compress(WHOLE) + b"junk", "intact gzip"),
    "trailing byte in gzip": (gzip.compress(WHOLE + b"\0"), "trailing bytes"),
    "second gzip member": (gzip.compress(WHOLE) + gzip.compress(WHOLE), "trailing bytes"),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_damage_is_named(tmp_path: Path, kind: str) -> None:
    content, message = DAMAGED[kind]
    path = tmp_path / "damaged-file"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read_idx(path)
    assert str(path) in str(caught.value)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "absent", tmp_path):
        with pytest.raises(DataError, match="cannot be read"):
            read_idx(path)

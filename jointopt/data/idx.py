"""Reader of IDX files, the format MNIST and Fashion-MNIST are published in.

An IDX file is: two zero bytes, a type code, the number of dimensions, each dimension as a big-endian
unsigned 32-bit number, then the entries, big-endian, last dimension fastest; often gzip-compressed.
"""

from __future__ import annotations

import gzip
import math
import os
import zlib
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from jointopt.errors import DataError

__all__ = ["read_idx"]

_TYPES: dict[int, np.dtype[Any]] = {
    0x08: np.dtype("u1"),
    0x09: np.dtype("i1"),
    0x0B: np.dtype(">i2"),
    0x0C: np.dtype(">i4"),
    0x0D: np.dtype(">f4"),
    0x0E: np.dtype(">f8"),
}
_GZIP_MAGIC = b"\x1f\x8b"
_MOST_DIMENSIONS = 8
_MOST_BYTES = 2**32
_CHUNK = 1 << 20


def _read_up_to(stream: BinaryIO | gzip.GzipFile, count: int) -> bytearray:
    """Read at most ``count`` bytes; in chunks, so that a lying header does not allocate gigabytes."""
    found = bytearray()
    while len(found) < count:
        chunk = stream.read(min(_CHUNK, count - len(found)))
        if not chunk:
            break
        found += chunk
    return found


def _parse(path: Path, stream: BinaryIO | gzip.GzipFile) -> NDArray[Any]:
    magic = _read_up_to(stream, 4)
    if len(magic) < 4:
        raise DataError(f"{path}: expected an IDX header of at least 4 bytes, found {len(magic)} bytes")
    if magic[0] != 0 or magic[1] != 0:
        raise DataError(f"{path}: not an IDX file: expected two zero bytes first, found 0x{magic[:2].hex()}")
    dtype = _TYPES.get(magic[2])
    if dtype is None:
        known = ", ".join(f"0x{code:02x}" for code in _TYPES)
        raise DataError(f"{path}: expected an IDX type code of {known}, found 0x{magic[2]:02x}")
    dimensions = magic[3]
    if not 1 <= dimensions <= _MOST_DIMENSIONS:
        raise DataError(f"{path}: expected 1 to {_MOST_DIMENSIONS} dimensions, found {dimensions}")

    raw = _read_up_to(stream, 4 * dimensions)
    if len(raw) < 4 * dimensions:
        raise DataError(f"{path}: truncated: expected {4 * dimensions} bytes of dimensions, found {len(raw)} bytes")
    shape = tuple(int.from_bytes(raw[i : i + 4], "big") for i in range(0, len(raw), 4))
    size = math.prod(shape) * dtype.itemsize
    if size == 0 or size > _MOST_BYTES:
        raise DataError(
            f"{path}: absurd dimensions {shape}: expected between 1 and {_MOST_BYTES} bytes of entries, "
            f"found {size} announced"
        )

    # One byte more than announced shows trailing bytes, and makes gzip read and check its checksum.
    body = _read_up_to(stream, size + 1)
    if len(body) < size:
        raise DataError(f"{path}: truncated: expected {size} bytes for shape {shape}, found {len(body)}")
    if len(body) > size:
        raise DataError(f"{path}: trailing bytes: expected exactly {size} bytes for shape {shape}, found more")
    entries: NDArray[Any] = np.frombuffer(body, dtype=dtype).reshape(shape)
    return entries.astype(dtype.newbyteorder("="), copy=False)


def read_idx(path: str | os.PathLike[str]) -> NDArray[Any]:
    """Read one IDX file, plain or gzip-compressed (told apart by content, not by name).

    Parameters
    ----------
    path
        The file.

    Returns
    -------
    ndarray
        A writable array of the announced shape, in the native byte order; uint8, int8, int16, int32,
        float32 or float64.

    Raises
    ------
    DataError
        The file cannot be read, is damaged or truncated, has trailing bytes, or is not IDX.
    """
    path = Path(path)
    try:
        with path.open("rb") as plain:
            compressed = plain.read(2) == _GZIP_MAGIC
            plain.seek(0)
            if not compressed:
                return _parse(path, plain)
            with gzip.GzipFile(fileobj=plain) as unpacked:
                return _parse(path, unpacked)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path}: expected an intact gzip file, found damage: {error}") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error

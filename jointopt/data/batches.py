"""Reader of the pickled dictionaries CIFAR is published in, without the powers of pickle.

A pickle may name any function and have it called. These files need three names only, to rebuild an array of
bytes and a byte string; each is replaced by a stand-in that checks what it is given and can do nothing else.
"""

from __future__ import annotations

import io
import math
import os
import pickle
import pickletools
from pathlib import Path
from typing import Any

import numpy as np

from jointopt.errors import DataError

__all__ = ["read_batch"]

_MOST_BYTES = 256 * 2**20  # a batch of CIFAR-10 has 31 MB, the training file of CIFAR-100 155 MB
_NAMES = (
    "PROTO FRAME STOP MARK NONE NEWTRUE NEWFALSE INT LONG LONG1 BININT BININT1 BININT2 FLOAT BINFLOAT STRING BINSTRING "
    "SHORT_BINSTRING UNICODE BINUNICODE SHORT_BINUNICODE BINBYTES SHORT_BINBYTES EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 "
    "TUPLE3 EMPTY_LIST LIST APPEND APPENDS EMPTY_DICT DICT SETITEM SETITEMS PUT BINPUT LONG_BINPUT MEMOIZE GET "
    "BINGET LONG_BINGET GLOBAL STACK_GLOBAL REDUCE BUILD"
)
_OPCODES = frozenset(_NAMES.split())

# What the unpickler raises on damage, beyond its own error.
_DAMAGE = (
    pickle.UnpicklingError,
    AttributeError,
    EOFError,
    IndexError,
    MemoryError,
    OverflowError,
    TypeError,
    ValueError,
)


class _Array:
    """What the pickle builds in place of an array; `array` once its state has come."""

    __slots__ = ("array",)

    def __init__(self) -> None:
        self.array: np.ndarray[Any, np.dtype[np.uint8]] | None = None

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, by_columns, content = state
        if not (isinstance(dtype, _Dtype) and dtype.code == "u1"):
            raise ValueError("an array of other entries than unsigned bytes")
        if not (isinstance(content, bytes) and all(isinstance(size, int) and size >= 0 for size in shape)):
            raise ValueError("an array without shape or content")
        if math.prod(shape) != len(content):
            raise ValueError(f"an array of shape {tuple(shape)} with {len(content)} entries")
        self.array = np.frombuffer(content, dtype=np.uint8).reshape(shape, order="F" if by_columns else "C")


class _Dtype:
    __slots__ = ("code",)

    def __init__(self, code: Any) -> None:
        self.code = code.decode("latin-1") if isinstance(code, bytes) else code

    def __setstate__(self, state: Any) -> None:
        """Byte order and alignment mean nothing for single bytes."""


class _Global:
    """A stand-in for one name. It has no attributes, so the pickle cannot change it either."""

    __slots__ = ()

    def __call__(self, *arguments: Any) -> Any:
        raise ValueError("a call of what is not to be called")


class _Reconstruct(_Global):
    __slots__ = ()

    def __call__(self, *arguments: Any) -> _Array:
        return _Array()


class _MakeDtype(_Global):
    __slots__ = ()

    def __call__(self, *arguments: Any) -> _Dtype:
        return _Dtype(arguments[0])


class _Encode(_Global):
    """Python 3 writes byte strings in old protocols as text to be encoded."""

    __slots__ = ()

    def __call__(self, *arguments: Any) -> bytes:
        text, encoding = arguments
        if not isinstance(text, str) or encoding not in ("latin1", "latin-1", b"latin1", b"latin-1"):
            raise ValueError(f"an encoding other than latin1: {encoding!r}")
        return text.encode("latin-1")


_GLOBALS: dict[tuple[str, str], _Global] = {
    ("numpy.core.multiarray", "_reconstruct"): _Reconstruct(),
    ("numpy._core.multiarray", "_reconstruct"): _Reconstruct(),
    ("numpy", "ndarray"): _Global(),
    ("numpy", "dtype"): _MakeDtype(),
    ("_codecs", "encode"): _Encode(),
}


class _Unpickler(pickle.Unpickler):
    def __init__(self, content: bytes, path: Path) -> None:
        super().__init__(io.BytesIO(content), encoding="bytes")
        self._path = path

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        found = _GLOBALS.get((module_name, global_name))
        if found is None:
            raise DataError(
                f"{self._path}: refused: the pickle names '{module_name}.{global_name}', "
                "which no CIFAR file needs; it may be harmful"
            )
        return found


def _check_opcodes(path: Path, content: bytes) -> None:
    """Refuse operations no such file needs, and memo numbers for which pickle would allocate without bound."""
    for opcode, argument, position in pickletools.genops(content):
        if opcode.name not in _OPCODES:
            raise DataError(f"{path}: refused: the pickle operation {opcode.name} at byte {position}")
        if opcode.name.endswith("PUT") and not 0 <= int(str(argument)) <= len(content):
            raise DataError(f"{path}: damaged: memo number {argument} at byte {position}")


def _plain(value: Any) -> Any:
    if isinstance(value, _Array):
        if value.array is None:
            raise ValueError("an array without content")
        return value.array
    return value


def read_batch(path: str | os.PathLike[str]) -> dict[bytes, Any]:
    """Read one pickled dictionary of byte-string keys; its values may be arrays of unsigned bytes.

    Parameters
    ----------
    path
        The file, a pickle of Python 2 or 3 up to protocol 4.

    Returns
    -------
    dict
        Keys are byte strings, values uint8 arrays (read-only) or what plain Python values were there.

    Raises
    ------
    DataError
        The file cannot be read, is damaged or truncated, names anything but what rebuilding an array of bytes
        needs (the message tells the name), or holds no such dictionary.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    if len(content) > _MOST_BYTES:
        raise DataError(f"{path}: expected at most {_MOST_BYTES} bytes, found more")
    try:
        _check_opcodes(path, content)
        batch = _Unpickler(content, path).load()
        if not isinstance(batch, dict) or not all(isinstance(key, bytes) for key in batch):
            raise ValueError(f"{type(batch).__name__} in place of a dictionary with byte-string keys")
        return {key: _plain(value) for key, value in batch.items()}
    except DataError:
        raise
    except _DAMAGE as error:
        raise DataError(f"{path}: expected an intact pickle of a CIFAR batch, found damage: {error}") from error

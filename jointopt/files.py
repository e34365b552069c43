"""Files written whole or not at all; JSON with large arrays beside it."""

from __future__ import annotations

import glob
import hashlib
import io
import json
import math
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from jointopt.errors import InputError

__all__ = ["ARRAYS_BESIDE", "atomic_write", "read_json", "write_json"]

ARRAYS_BESIDE = 10_000
"""Above this many devices the arrays of a saved result go into an .npz file beside it."""


_HERE = "\0"


def atomic_write(path: str | os.PathLike[str], write: Callable[[BinaryIO], Any]) -> Path:
    """Write a file through ``write(file)``, whole or not at all; missing folders are made.

    A file of that name is replaced only once the new one is complete. A symbolic link is followed; what is no
    regular file (a pipe, a device) is written to as it is.

    Raises
    ------
    InputError
        When the file cannot be written.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path = path.resolve()
        if path.exists() and not path.is_file():
            with path.open("wb") as file:
                write(file)
            return path
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
        temporary = Path(name)
        try:
            with os.fdopen(handle, "wb") as file:
                write(file)
            temporary.chmod(path.stat().st_mode & 0o777 if path.exists() else 0o666 & ~_umask())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error})") from None
    return path


def _umask() -> int:
    # the mask can only be read by setting it
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def write_json(data: Mapping[str, Any], path: str | os.PathLike[str], *, devices: int = 0) -> Path:
    """Write plain data as strict JSON; above 10,000 devices, arrays over devices go into an .npz beside it.

    An array that went there stands in the JSON as ``{"npz": file, "key": name}``. The .npz file's name ends in a
    hash of its content, so that a save cut short leaves the earlier pair of files whole. NaN and infinity, which
    JSON does not know, become null.

    Raises
    ------
    InputError
        When the file cannot be written.
    """
    path = Path(path)
    arrays: dict[str, Any] = {}

    def plain(value: Any, where: str) -> Any:
        if isinstance(value, Mapping):
            return {str(k): plain(v, f"{where}.{k}" if where else str(k)) for k, v in value.items()}
        if isinstance(value, np.generic):
            value = value.item()
        if devices > ARRAYS_BESIDE and _over_devices(value, devices):
            arrays[where] = np.asarray(value)
            return {"npz": _HERE, "key": where}
        if isinstance(value, np.ndarray):
            value = value.tolist()
        if isinstance(value, (list, tuple)):
            return [plain(v, f"{where}.{i}") for i, v in enumerate(value)]
        if isinstance(value, float) and not math.isfinite(value):
            return None
        return value

    text = json.dumps(plain(data, ""), indent=1, allow_nan=False)
    beside: Path | None = None
    if arrays:
        packed = io.BytesIO()
        np.savez(packed, allow_pickle=False, **arrays)
        beside = path.with_name(f"{path.name}-{hashlib.sha256(packed.getbuffer()).hexdigest()[:12]}.npz")
        text = text.replace(json.dumps(_HERE), json.dumps(beside.name))
        atomic_write(beside, lambda file: file.write(packed.getbuffer()))
    atomic_write(path, lambda file: file.write(text.encode("utf-8")))
    for old in path.parent.glob(f"{glob.escape(path.name)}-{'[0-9a-f]' * 12}.npz"):
        if old != beside:
            old.unlink(missing_ok=True)
    return path


def _over_devices(value: Any, devices: int) -> bool:
    """Whether a value is an array of numbers whose last axis is the devices."""
    if not isinstance(value, (np.ndarray, list)):
        return False
    try:
        array = np.asarray(value)
    except ValueError:  # ragged
        return False
    return array.dtype.kind in "biuf" and array.shape[-1:] == (devices,)


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read JSON that `write_json` wrote, with the arrays beside it put back in their places.

    Raises
    ------
    InputError
        When a file is missing, damaged or truncated.
    """
    path = Path(path)
    try:
        data = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
        return _restore(data, path.parent, {})
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from None
    except InputError:
        raise
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: is not valid JSON ({error})") from None


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


def _restore(value: Any, folder: Path, files: dict[Path, Any]) -> Any:
    """Put arrays that stand in an .npz beside the JSON back in their places."""
    if isinstance(value, list):
        return [_restore(item, folder, files) for item in value] if value and isinstance(value[0], dict) else value
    if not isinstance(value, dict):
        return value
    if set(value) != {"npz", "key"}:
        return {key: _restore(item, folder, files) for key, item in value.items()}
    # only a name beside the JSON: a file must not point elsewhere
    path = folder / Path(str(value["npz"])).name
    try:
        if path not in files:
            with np.load(path, allow_pickle=False) as archive:
                files[path] = {key: archive[key] for key in archive.files}
        return files[path][value["key"]]
    except Exception as error:  # a damaged archive raises whatever its decoder meets
        raise InputError(f"{path}: the array {value['key']!r} cannot be read ({error!r})") from None

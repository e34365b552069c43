"""One file for tensors and plain data: safetensors with JSON in its head and a hash over both; no pickle."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from jointopt.errors import DataError
from jointopt.files import atomic_write

__all__ = ["digest", "read", "write"]

_KEY = "jointopt"


def digest(data: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """Hash of plain data and tensors, 64 hexadecimal digits."""
    found = hashlib.sha256(json.dumps(data, sort_keys=True).encode())
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        found.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        found.update(value.numpy().data)
    return found.hexdigest()


def write(path: str | os.PathLike[str], schema: str, data: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Path:
    """Write tensors and plain data to one file, whole or not at all; `InputError` when it cannot be written."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    head = {"schema": schema, "sha256": digest(data, tensors), "data": dict(data)}
    packed = safetensors.torch.save(tensors, metadata={_KEY: json.dumps(head, allow_nan=False)})
    return atomic_write(path, lambda file: file.write(packed))


def read(path: str | os.PathLike[str], schema: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read what `write` wrote.

    Raises
    ------
    DataError
        The file is missing, damaged, or of another schema.
    """
    path = Path(path)
    what = schema.partition("/")[0]
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            head = json.loads((file.metadata() or {})[_KEY])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        found, data, promised = head["schema"], head["data"], head["sha256"]
    except FileNotFoundError:
        raise DataError(f"{path}: is not there") from None
    except Exception as error:  # a damaged file raises whatever its decoder meets
        raise DataError(f"{path}: is damaged or no {what} ({error!r})") from None
    if found != schema:
        raise DataError(f"{path}: has schema '{found}', expected '{schema}'")
    if digest(data, tensors) != promised:
        raise DataError(f"{path}: is damaged (its content has another hash than the one stored)")
    return data, tensors

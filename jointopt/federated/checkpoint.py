"""Checkpoints of a training run: tensors in safetensors, the rest in JSON, each written whole or not at all.

A checkpoint is a pair of files, ``round-00000010.safetensors`` and ``round-00000010.json``. The JSON is written
last and holds the hash of the tensors, so a pair is whole or is not there; the newest two are kept. Loading reads
no pickle and runs no code.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from jointopt.errors import InputError
from jointopt.files import atomic_write, read_json, write_json

__all__ = ["SCHEMA", "Checkpoint", "clear", "difference", "load", "plain", "save"]

SCHEMA = "jointopt.checkpoint/1"
_KEPT = 2


@dataclass(frozen=True)
class Checkpoint:
    """What was saved after a round; `skipped` names newer checkpoints that are damaged."""

    round: int
    tensors: dict[str, Tensor]
    data: dict[str, Any]
    skipped: tuple[str, ...] = ()


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("round-*.json"))


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.with_suffix(".safetensors").unlink(missing_ok=True)


def clear(folder: str | Path) -> None:
    """Remove every checkpoint of a folder."""
    for path in _files(Path(folder)):
        _remove(path)


def save(folder: str | Path, round_: int, tensors: Mapping[str, Tensor], data: Mapping[str, Any]) -> Path:
    """Write a checkpoint and remove all but the newest two; return the JSON's path.

    Raises
    ------
    InputError
        A file cannot be written (the disk is full, say); earlier checkpoints are then left as they are.
    """
    folder = Path(folder)
    packed = safetensors.torch.save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    path = folder / f"round-{round_:08d}.json"
    atomic_write(path.with_suffix(".safetensors"), lambda file: file.write(packed))
    head = {"schema": SCHEMA, "round": round_, "tensors": hashlib.sha256(packed).hexdigest()}
    write_json({**head, **data}, path)
    for old in _files(folder)[:-_KEPT]:
        _remove(old)
    # what a killed process left behind
    leftovers = [f for f in folder.glob("round-*.safetensors") if not f.with_suffix(".json").exists()]
    for file in (*leftovers, *folder.glob("round-*.part")):
        file.unlink(missing_ok=True)
    return path


def _read(path: Path) -> Checkpoint:
    data = read_json(path)
    if not isinstance(data, dict) or not str(data.get("schema", "")).startswith("jointopt.checkpoint/"):
        raise InputError(f"{path}: is no checkpoint of a training run")
    if data["schema"] != SCHEMA:
        raise InputError(f"{path}: has schema '{data['schema']}', this version of jointopt reads '{SCHEMA}'")
    beside = path.with_suffix(".safetensors")
    try:
        packed = beside.read_bytes()
        whole = hashlib.sha256(packed).hexdigest() == data.get("tensors")
        tensors = safetensors.torch.load(packed) if whole else {}
    except (OSError, SafetensorError) as error:
        raise InputError(f"{beside}: cannot be read ({error})") from None
    if not whole:
        raise InputError(f"{beside}: is truncated or damaged (its hash is not the one in {path.name})")
    return Checkpoint(int(data["round"]), tensors, data)


def load(folder: str | Path) -> Checkpoint | None:
    """Return the newest whole checkpoint of a folder, None where there is none at all.

    Raises
    ------
    InputError
        No checkpoint is whole, or the newest is of a newer version or of something else.
    """
    damaged: list[str] = []
    for path in reversed(_files(Path(folder))):
        try:
            found = _read(path)
        except InputError as error:
            if "has schema" in str(error) or "is no checkpoint" in str(error):
                raise
            damaged.append(str(error))
            continue
        return Checkpoint(found.round, found.tensors, found.data, tuple(damaged))
    if damaged:
        raise InputError("no checkpoint is whole: " + "; ".join(damaged))
    return None


def plain(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return data as JSON brings it back."""
    out: dict[str, Any] = json.loads(json.dumps(data, default=_plainly))
    return out


def _plainly(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else str(value)


def difference(one: Any, other: Any, where: str = "") -> str:
    """Return in words where two identities first differ, "" where they do not."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        for key in sorted({*one, *other}):
            place = f"{where}.{key}" if where else str(key)
            if key not in one or key not in other:
                return f"{place} is known on one side only"
            found = difference(one[key], other[key], place)
            if found:
                return found
        return ""
    return "" if one == other else f"{where} was {_short(other)}, is {_short(one)}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."

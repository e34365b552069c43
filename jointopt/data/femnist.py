"""FEMNIST in the JSON format of LEAF, with the writer of each sample."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from jointopt.data.dataset import Dataset
from jointopt.data.folders import data_folder
from jointopt.data.holdout import held_out
from jointopt.errors import DataError, InputError, is_whole

__all__ = ["load_femnist"]

_CLASSES = 62
_SIDE = 28
_KEYS = ("users", "num_samples", "user_data")

_Part = tuple[NDArray[np.float32], NDArray[np.int64], list[str]]
"""Inputs [n, 784], labels [n], and the writer's name of each sample."""


def _packed(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Turn a writer's images into one array as soon as they are read: as Python numbers they need 8 times more."""
    entry = dict(pairs)
    if len(entry) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key '{next(name for name in names if names.count(name) > 1)}' twice")
    images = entry.get("x")
    if isinstance(images, list):
        try:
            array = np.asarray(images)
        except (ValueError, OverflowError):  # rows of several lengths, or a number without end: reported by the check
            return entry
        if array.dtype.kind in "fiu":  # not text, which NumPy would convert just as readily
            with np.errstate(over="ignore"):  # becomes infinite, which the check refuses
                entry["x"] = array.astype(np.float32)
    return entry


def _json(path: Path) -> dict[str, Any]:
    try:
        with path.open(encoding="utf-8") as file:
            content = json.load(file, object_pairs_hook=_packed)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: expected intact JSON, found damage: {error}") from error
    if not isinstance(content, dict) or any(key not in content for key in _KEYS):
        found = sorted(content) if isinstance(content, dict) else type(content).__name__
        raise DataError(f"{path}: expected LEAF's keys {', '.join(_KEYS)}, found {found}")
    users, counts, data = (content[key] for key in _KEYS)
    if not (isinstance(users, list) and isinstance(counts, list) and isinstance(data, dict)):
        raise DataError(f"{path}: expected lists users and num_samples and an object user_data")
    if not all(isinstance(user, str) for user in users) or len(set(users)) < len(users):
        raise DataError(f"{path}: users must be different names")
    if len(users) != len(counts) or set(users) != set(data):
        raise DataError(
            f"{path}: users, num_samples and user_data must be about the same writers, "
            f"found {len(users)}, {len(counts)} and {len(data)}"
        )
    return content


def _writer(where: str, entry: Any, count: Any) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    if not isinstance(entry, dict) or "x" not in entry or not isinstance(entry.get("y"), list):
        raise DataError(f"{where}: expected images x and a list of labels y")
    images, labels = entry["x"], entry["y"]
    if isinstance(images, np.ndarray) and images.size == 0 and images.ndim == 1:
        images = images.reshape(0, _SIDE**2)
    if not isinstance(images, np.ndarray) or images.ndim != 2 or images.shape[1] != _SIDE**2:
        odd = [i for i, row in enumerate(images) if np.shape(row) != (_SIDE**2,)] if isinstance(images, list) else []
        which = f"sample {odd[0]} to be otherwise" if odd else f"{np.shape(images)}"
        raise DataError(f"{where}: expected x of {_SIDE**2} numbers a sample, found {which}")
    if not (len(images) == len(labels) == count):
        raise DataError(f"{where}: expected {count!r} samples, found {len(images)} images and {len(labels)} labels")
    fine = ((images >= 0) & (images <= 1)).all(axis=1)  # so that NaN is bad too
    if not fine.all():
        sample = int(np.argmin(fine))
        raise DataError(f"{where}: sample {sample} has an entry outside [0, 1]")
    for sample, label in enumerate(labels):
        if not (is_whole(label) and 0 <= label < _CLASSES):
            raise DataError(f"{where}: label of sample {sample} must lie in 0 .. {_CLASSES - 1}, found {label!r}")
    return images, np.array(labels, dtype=np.int64)


def _part(folder: Path) -> _Part:
    """Read all JSON files of a folder, by name."""
    paths = sorted(path for path in folder.glob("*.json") if path.is_file())
    if not paths:
        raise DataError(f"femnist: expected JSON files in {folder}, found none")
    inputs: list[NDArray[np.float32]] = []
    labels: list[NDArray[np.int64]] = []
    names: list[str] = []
    home: dict[str, Path] = {}
    for path in paths:
        content = _json(path)
        for user, count in zip(content["users"], content["num_samples"], strict=True):
            if user in home:
                raise DataError(f"{path}: holds writer '{user}', whom {home[user].name} also holds")
            home[user] = path
            images, classes = _writer(f"{path}, writer '{user}'", content["user_data"][user], count)
            inputs.append(images)
            labels.append(classes)
            names += [user] * len(classes)
    if not names:
        raise DataError(f"femnist: the files in {folder} hold no samples")
    return np.concatenate(inputs), np.concatenate(labels), names


def _numbered(names: list[str]) -> NDArray[np.int64]:
    number = {name: i for i, name in enumerate(sorted(set(names)))}
    return np.array([number[name] for name in names], dtype=np.int64)


def _places(place: Path, origin: str) -> tuple[Path, Path] | Path:
    """Return the folders to train and to test on, or the one folder of all files."""
    around = (place, place / "data", place / "femnist")
    for here in around:
        there = [(here / part).is_dir() for part in ("train", "test")]
        if all(there):
            return here / "train", here / "test"
        if any(there):
            raise DataError(f"femnist: expected the folders train and test in {here}, found one of them only")
    for here in around:
        if here.is_dir() and any(here.glob("*.json")):
            return here
    raise DataError(
        f"femnist: expected LEAF's folders train and test, or its JSON files, in {place} ({origin}), found neither; "
        "make them with LEAF's preprocess.sh"
    )


def load_femnist(
    folder: str | os.PathLike[str] | None = None, *, test_share: float | None = None, seed: int = 0
) -> Dataset:
    """Return FEMNIST (Caldas et al. 2018), 62 classes, inputs [N, 1, 28, 28], with the writers to train on.

    Writers are numbered in the order of their names.

    Parameters
    ----------
    folder
        The folder with LEAF's train and test folders, or one with JSON files of all samples; also the folder
        above, where it is called data or femnist. By default the environment variable JOINTOPT_DATA.
    test_share
        For files of all samples: the share of each writer's samples to test on, 0.2 by default.
    seed
        Seed of that choice.

    Raises
    ------
    InputError
        `test_share` is given though the files are split, or is out of its range.
    DataError
        A file is missing, damaged or no LEAF file, a writer is in two files, or an image or label is out of its
        range; the message names file, writer and sample.
    """
    place, origin = data_folder("femnist", folder)
    found = _places(place, origin)
    if isinstance(found, Path):
        inputs, labels, names = _part(found)
        writers = _numbered(names)
        test = held_out(writers, 0.2 if test_share is None else test_share, seed)
        train, tested = (inputs[~test], labels[~test]), (inputs[test], labels[test])
        writers = writers[~test]
    else:
        if test_share is not None:
            raise InputError(f"femnist: test_share cannot be chosen, {found[0].parent} is split into train and test")
        inputs, labels, names = _part(found[0])
        train, tested = (inputs, labels), _part(found[1])[:2]
        writers = _numbered(names)
    shaped = [torch.from_numpy(part[0]).reshape(-1, 1, _SIDE, _SIDE) for part in (train, tested)]
    return Dataset(
        "femnist",
        shaped[0],
        torch.from_numpy(train[1]),
        shaped[1],
        torch.from_numpy(tested[1]),
        classes=_CLASSES,
        writers=torch.from_numpy(writers),
    )

"""CIFAR-10 from its official Python files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jointopt.data.batches import read_batch
from jointopt.data.dataset import Dataset
from jointopt.data.folders import data_folder
from jointopt.errors import DataError, is_whole

__all__ = ["load_cifar10"]

_INSIDE = "cifar-10-batches-py"
_CLASSES = 10
_PIXELS = 3 * 32 * 32
_TRAIN = {f"data_batch_{i}": f"training batch {i} of 5".encode() for i in range(1, 6)}
_TEST = {"test_batch": b"testing batch 1 of 1"}


def _field(path: Path, batch: dict[bytes, Any], key: bytes) -> Any:
    if key not in batch:
        raise DataError(f"{path}: expected the key {key!r}, found {sorted(batch)}")
    return batch[key]


def _batch(path: Path, label: bytes, samples: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return pixels [n, 3072] and labels [n] of one file."""
    batch = read_batch(path)
    found = _field(path, batch, b"batch_label")
    if found != label:
        raise DataError(f"{path}: expected the {label.decode()}, found the file of {found!r}")
    pixels, labels = _field(path, batch, b"data"), _field(path, batch, b"labels")
    if not isinstance(pixels, np.ndarray) or pixels.shape != (samples, _PIXELS):
        shape = pixels.shape if isinstance(pixels, np.ndarray) else type(pixels).__name__
        raise DataError(f"{path}: expected data of shape ({samples}, {_PIXELS}), found {shape}")
    if not isinstance(labels, list) or len(labels) != samples:
        count = len(labels) if isinstance(labels, list) else type(labels).__name__
        raise DataError(f"{path}: expected a list of {samples} labels, found {count}")
    for sample, value in enumerate(labels):
        if not (is_whole(value) and 0 <= value < _CLASSES):
            raise DataError(f"{path}: label of sample {sample} must lie in 0 .. {_CLASSES - 1}, found {value!r}")
    return pixels, np.array(labels, dtype=np.int64)


def _part(place: Path, names: dict[str, bytes], samples: int) -> tuple[Tensor, Tensor]:
    pieces = [_batch(place / name, label, samples) for name, label in names.items()]
    # Each row is the red, the green and the blue plane, row by row: already [3, 32, 32].
    pixels = np.concatenate([pixels for pixels, _ in pieces]).reshape(-1, 3, 32, 32)
    labels = np.concatenate([labels for _, labels in pieces])
    return torch.from_numpy(pixels).to(torch.float32).div_(255.0), torch.from_numpy(labels)


def load_cifar10(folder: str | os.PathLike[str] | None = None) -> Dataset:
    """Return CIFAR-10 (Krizhevsky 2009), 50,000 samples to train and 10,000 to test, inputs [N, 3, 32, 32].

    Parameters
    ----------
    folder
        Where data_batch_1 .. data_batch_5, test_batch and batches.meta are, or the folder above
        ("cifar-10-batches-py" in it); by default the environment variable JOINTOPT_DATA.

    Raises
    ------
    DataError
        A file is missing, damaged, of another shape, in another's place, or its pickle names anything but
        arrays; the samples of each file are counted against batches.meta.
    """
    place, origin = data_folder("cifar10", folder)
    if (place / _INSIDE).is_dir():
        place = place / _INSIDE
    absent = [name for name in ("batches.meta", *_TRAIN, *_TEST) if not (place / name).is_file()]
    if absent:
        raise DataError(
            f"cifar10: expected the file {absent[0]} in {place} ({origin}), found none; unpack "
            f"cifar-10-python.tar.gz of the official page there, or name its folder in load(..., folder=...)"
        )
    meta_path = place / "batches.meta"
    meta = read_batch(meta_path)
    names, samples = _field(meta_path, meta, b"label_names"), _field(meta_path, meta, b"num_cases_per_batch")
    if not isinstance(names, list) or len(names) != _CLASSES:
        raise DataError(f"{meta_path}: expected {_CLASSES} label_names, found {names!r}")
    if not (is_whole(samples) and samples >= 1):
        raise DataError(f"{meta_path}: expected num_cases_per_batch of at least 1, found {samples!r}")
    train_inputs, train_labels = _part(place, _TRAIN, samples)
    test_inputs, test_labels = _part(place, _TEST, samples)
    return Dataset("cifar10", train_inputs, train_labels, test_inputs, test_labels, classes=_CLASSES)

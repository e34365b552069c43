"""Fashion-MNIST from its four IDX files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jointopt.data.dataset import Dataset
from jointopt.data.folders import FOLDER_VARIABLE, data_folder
from jointopt.data.idx import read_idx
from jointopt.errors import DataError

__all__ = ["load_fashion_mnist"]

_DEBIAN_FOLDER = "/usr/share/datasets/fashion-mnist"
_FILES = {
    "train_images": "train-images-idx3-ubyte",
    "train_labels": "train-labels-idx1-ubyte",
    "test_images": "t10k-images-idx3-ubyte",
    "test_labels": "t10k-labels-idx1-ubyte",
}


def _path(folder: Path, stem: str, origin: str) -> Path:
    for name in (f"{stem}.gz", stem):
        if (folder / name).is_file():
            return folder / name
    raise DataError(
        f"fashion-mnist: expected the file {stem}.gz or {stem} in {folder} ({origin}), found neither; "
        f"install them with 'apt install dataset-fashion-mnist', or download the four IDX files "
        f"({', '.join(_FILES.values())}) and name their folder in load(..., folder=...) or "
        f"in the environment variable {FOLDER_VARIABLE}"
    )


def _part(images_path: Path, labels_path: Path, samples: int) -> tuple[Tensor, Tensor]:
    images: NDArray[Any] = read_idx(images_path)
    labels: NDArray[Any] = read_idx(labels_path)
    for path, found, shape in ((images_path, images, (samples, 28, 28)), (labels_path, labels, (samples,))):
        if found.dtype != np.uint8 or found.shape != shape:
            raise DataError(
                f"{path}: expected uint8 entries of shape {shape}, found {found.dtype} of shape {found.shape}"
            )
    # MNIST uses the same file names and shapes; only Fashion-MNIST has exactly as many samples of each class.
    counts = np.bincount(labels)
    if counts.tolist() != [samples // 10] * 10:
        raise DataError(
            f"{labels_path}: expected {samples // 10} samples of each of 10 classes as in Fashion-MNIST, "
            f"found the counts {counts.tolist()}"
        )
    inputs = torch.from_numpy(images).to(torch.float32).div_(255.0).unsqueeze(1)
    return inputs, torch.from_numpy(labels).to(torch.int64)


def load_fashion_mnist(folder: str | os.PathLike[str] | None = None) -> Dataset:
    """Return Fashion-MNIST, 60,000 samples to train and 10,000 to test, inputs [N, 1, 28, 28].

    Parameters
    ----------
    folder
        Where the four IDX files are, plain or gzip-compressed; by default the environment variable JOINTOPT_DATA,
        else /usr/share/datasets/fashion-mnist.

    Raises
    ------
    DataError
        A file is missing or damaged, or holds another data set.
    """
    place, origin = data_folder("fashion-mnist", folder, _DEBIAN_FOLDER)
    paths = {part: _path(place, stem, origin) for part, stem in _FILES.items()}
    train_inputs, train_labels = _part(paths["train_images"], paths["train_labels"], 60_000)
    test_inputs, test_labels = _part(paths["test_images"], paths["test_labels"], 10_000)
    return Dataset("fashion-mnist", train_inputs, train_labels, test_inputs, test_labels, classes=10)

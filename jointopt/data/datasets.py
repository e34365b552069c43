"""The data sets the federated simulator trains on, read from local files only."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jointopt.data.idx import read_idx
from jointopt.errors import DataError, InputError, nearest

__all__ = ["DATASETS", "Dataset", "load"]

_FOLDER_VARIABLE = "JOINTOPT_DATA"
_DEBIAN_FOLDER = "/usr/share/datasets/fashion-mnist"
_FASHION_FILES = {
    "train_images": "train-images-idx3-ubyte",
    "train_labels": "train-labels-idx1-ubyte",
    "test_images": "t10k-images-idx3-ubyte",
    "test_labels": "t10k-labels-idx1-ubyte",
}


@dataclass(frozen=True, eq=False)
class Dataset:
    """One classification data set, already split.

    Attributes
    ----------
    name
        The name it was loaded under.
    train_inputs, test_inputs
        float32, shape [N, channels, height, width], entries in [0, 1].
    train_labels, test_labels
        int64, shape [N], entries in 0 .. classes - 1.
    classes
        Number of classes.

    Raises
    ------
    InputError
        Inputs and labels differ in number, type or range from the above.
    """

    name: str
    train_inputs: Tensor
    train_labels: Tensor
    test_inputs: Tensor
    test_labels: Tensor
    classes: int

    def __post_init__(self) -> None:
        for part, inputs, labels in (
            ("train", self.train_inputs, self.train_labels),
            ("test", self.test_inputs, self.test_labels),
        ):
            where = f"data set '{self.name}', {part}"
            if inputs.dtype != torch.float32 or labels.dtype != torch.int64:
                raise InputError(
                    f"{where}: expected float32 inputs and int64 labels, found {inputs.dtype} and {labels.dtype}"
                )
            if labels.ndim != 1 or inputs.ndim < 2 or len(inputs) != len(labels) or len(labels) == 0:
                raise InputError(
                    f"{where}: expected inputs [N, ...] and labels [N] with N >= 1, "
                    f"found {tuple(inputs.shape)} and {tuple(labels.shape)}"
                )
            if int(labels.min()) < 0 or int(labels.max()) >= self.classes:
                raise InputError(
                    f"{where}: labels must lie in 0 .. {self.classes - 1}, "
                    f"found {int(labels.min())} .. {int(labels.max())}"
                )

    @property
    def inputs_shape(self) -> tuple[int, ...]:
        """Shape of one input, without the sample axis."""
        return tuple(self.train_inputs.shape[1:])


def _digits(folder: str | os.PathLike[str] | None) -> Dataset:
    """scikit-learn's 8x8 digits; the files come with the package, so `folder` is not used."""
    from sklearn.datasets import load_digits  # here, because it is slow to import

    pixels, labels = load_digits(return_X_y=True)
    inputs = torch.from_numpy((pixels / 16.0).astype(np.float32)).reshape(-1, 1, 8, 8)
    targets = torch.from_numpy(labels.astype(np.int64))
    # Every fifth sample in order of class: stratified to within one sample, needs no random numbers (so no
    # library version can change it), and spreads each writer, whose samples are contiguous, over both parts.
    by_class = np.argsort(labels, kind="stable")
    is_test = np.zeros(len(labels), dtype=bool)
    is_test[by_class[::5]] = True
    test = torch.from_numpy(is_test)
    return Dataset("digits", inputs[~test], targets[~test], inputs[test], targets[test], classes=10)


def _fashion_path(folder: Path, stem: str, origin: str) -> Path:
    for name in (f"{stem}.gz", stem):
        if (folder / name).is_file():
            return folder / name
    raise DataError(
        f"fashion-mnist: expected the file {stem}.gz or {stem} in {folder} ({origin}), found neither; "
        f"install them with 'apt install dataset-fashion-mnist', or download the four IDX files "
        f"({', '.join(_FASHION_FILES.values())}) and name their folder in load(..., folder=...) or "
        f"in the environment variable {_FOLDER_VARIABLE}"
    )


def _fashion_part(images_path: Path, labels_path: Path, samples: int) -> tuple[Tensor, Tensor]:
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


def _fashion_mnist(folder: str | os.PathLike[str] | None) -> Dataset:
    if folder is not None:
        place, origin = Path(folder), "the folder given"
    elif os.environ.get(_FOLDER_VARIABLE):
        place, origin = Path(os.environ[_FOLDER_VARIABLE]), f"from {_FOLDER_VARIABLE}"
    else:
        place, origin = Path(_DEBIAN_FOLDER), "where Debian's package puts them"
    paths = {part: _fashion_path(place, stem, origin) for part, stem in _FASHION_FILES.items()}
    train_inputs, train_labels = _fashion_part(paths["train_images"], paths["train_labels"], 60_000)
    test_inputs, test_labels = _fashion_part(paths["test_images"], paths["test_labels"], 10_000)
    return Dataset("fashion-mnist", train_inputs, train_labels, test_inputs, test_labels, classes=10)


_LOADERS: dict[str, Callable[[str | os.PathLike[str] | None], Dataset]] = {
    "digits": _digits,
    "fashion-mnist": _fashion_mnist,
}
DATASETS = tuple(_LOADERS)
"""The names `load` knows."""


def load(name: str, folder: str | os.PathLike[str] | None = None) -> Dataset:
    """Load a data set from local files; nothing is ever downloaded.

    Parameters
    ----------
    name
        "digits" (scikit-learn's, inputs [N, 1, 8, 8], 1,437 to train and 360 to test, always the same split)
        or "fashion-mnist" (inputs [N, 1, 28, 28], 60,000 and 10,000).
    folder
        Where the four IDX files of Fashion-MNIST are, plain or gzip-compressed. Without it, the environment
        variable JOINTOPT_DATA is used, else /usr/share/datasets/fashion-mnist. "digits" does not use it.

    Returns
    -------
    Dataset

    Raises
    ------
    InputError
        The name is not known.
    DataError
        A file is missing or damaged, or holds another data set.
    """
    loader = _LOADERS.get(name)
    if loader is None:
        raise InputError(f"unknown data set '{name}'{nearest(str(name), DATASETS)}")
    return loader(folder)

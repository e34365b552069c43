"""The data sets the federated simulator trains on, read from local files only."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from typing import Any

from jointopt.data.cifar import load_cifar10
from jointopt.data.dataset import Dataset
from jointopt.data.digits import load_digits
from jointopt.data.fashion import load_fashion_mnist
from jointopt.data.femnist import load_femnist
from jointopt.data.images import load_images
from jointopt.errors import InputError, nearest

__all__ = ["DATASETS", "Dataset", "load"]

_LOADERS: dict[str, Callable[..., Dataset]] = {
    "digits": load_digits,
    "fashion-mnist": load_fashion_mnist,
    "cifar10": load_cifar10,
    "femnist": load_femnist,
    "images": load_images,
}
DATASETS = tuple(_LOADERS)
"""The names `load` knows."""


def load(name: str, folder: str | os.PathLike[str] | None = None, **options: Any) -> Dataset:
    """Load a data set from local files; nothing is ever downloaded.

    Parameters
    ----------
    name
        "digits" (scikit-learn's, inputs [N, 1, 8, 8], 1,437 to train and 360 to test, always the same split),
        "fashion-mnist" (inputs [N, 1, 28, 28], 60,000 and 10,000), "cifar10" (inputs [N, 3, 32, 32], 50,000 and
        10,000, from cifar-10-batches-py), "femnist" (inputs [N, 1, 28, 28], 62 classes, with writers, from LEAF's
        JSON files) or "images" (PNG and JPEG files in a folder for each class).
    folder
        Where the files are. Without it, the environment variable JOINTOPT_DATA is used, for "fashion-mnist" else
        /usr/share/datasets/fashion-mnist. "digits" does not use it.
    **options
        ``test_share`` and ``seed`` for "femnist" and "images" that come without a split; ``size=(height, width)``
        and ``grayscale`` for "images".

    Returns
    -------
    Dataset

    Raises
    ------
    InputError
        The name or an option is not known, or an option is out of its range.
    DataError
        A file is missing or damaged, or holds another data set.
    """
    loader = _LOADERS.get(name) if isinstance(name, str) else None
    if loader is None:
        raise InputError(f"unknown data set '{name}'{nearest(str(name), DATASETS)}")
    known = set(inspect.signature(loader).parameters) - {"folder"}
    for option in options:
        if option not in known:
            raise InputError(f"data set '{name}' has no option '{option}'{nearest(option, known)}")
    return loader(folder, **options)

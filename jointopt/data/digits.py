"""scikit-learn's 8x8 digits."""

from __future__ import annotations

import os

import numpy as np
import torch

from jointopt.data.dataset import Dataset

__all__ = ["load_digits"]


def load_digits(folder: str | os.PathLike[str] | None = None) -> Dataset:
    """Return the digits, always with the same split; the files come with scikit-learn, so `folder` is not used."""
    from sklearn.datasets import load_digits as sklearn_digits  # here, because it is slow to import

    pixels, labels = sklearn_digits(return_X_y=True)
    inputs = torch.from_numpy((pixels / 16.0).astype(np.float32)).reshape(-1, 1, 8, 8)
    targets = torch.from_numpy(labels.astype(np.int64))
    # Every fifth sample in order of class: stratified to within one sample, needs no random numbers (so no
    # library version can change it), and spreads each writer, whose samples are contiguous, over both parts.
    by_class = np.argsort(labels, kind="stable")
    is_test = np.zeros(len(labels), dtype=bool)
    is_test[by_class[::5]] = True
    test = torch.from_numpy(is_test)
    return Dataset("digits", inputs[~test], targets[~test], inputs[test], targets[test], classes=10)

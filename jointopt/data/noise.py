"""Wrong labels and corrupted inputs, for learning and testing under noise."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import gaussian_filter
from torch import Tensor

from jointopt.data.dataset import Dataset
from jointopt.errors import InputError, is_real, is_whole, nearest

__all__ = ["CORRUPTIONS", "LABEL_NOISES", "SEVERITIES", "corrupt", "with_label_noise"]

LABEL_NOISES = ("pair", "symmetric")
"""The kinds `with_label_noise` knows."""
SEVERITIES = (1, 2, 3, 4, 5)
"""From hardly seen to strong."""

_CHUNK = 1024  # samples in one pass, for the memory; the result depends on it only by the order of the draws

Images = NDArray[np.float32]


def _generator(seed: int) -> np.random.Generator:
    if not (is_whole(seed) and seed >= 0):
        raise InputError(f"seed must be a whole number of at least 0, found {seed!r}")
    return np.random.default_rng(int(seed))


def _chosen(indices: ArrayLike | Tensor | None, samples: int) -> NDArray[np.int64]:
    if indices is None:
        return np.arange(samples)
    given = np.asarray(indices)
    if given.ndim != 1 or (given.size and given.dtype.kind not in "iu"):  # NumPy takes [] for floats
        raise InputError(f"indices must be whole numbers of shape [n], found type {given.dtype}, shape {given.shape}")
    wrong = (given < 0) | (given >= samples)
    if wrong.any():
        at = int(np.argmax(wrong))
        raise InputError(f"indices[{at}] must lie in 0 .. {samples - 1}, found {given[at]}")
    if len(np.unique(given)) < len(given):
        raise InputError("indices must differ from each other")
    return given.astype(np.int64)


def with_label_noise(
    dataset: Dataset,
    share: float,
    seed: int,
    kind: str = "symmetric",
    indices: ArrayLike | Tensor | None = None,
) -> Dataset:
    """Return the data set with an exact share of the training labels wrong; the given one stays as it is.

    Parameters
    ----------
    dataset
        The data set, of at least two classes.
    share
        Share of the n labels to change, in [0, 1]; floor(share x n) are, each to another class. A product within
        1e-9 below a whole number counts as that.
    seed
        Seed of the choice of samples and classes, at least 0.
    kind
        "symmetric": any other class, all equally likely; "pair": the next class, and of the last the first
        (Han et al. 2018, Co-teaching).
    indices
        The n training samples among which to change, such as a device's part, shape [n]; all by default.

    Returns
    -------
    Dataset
        With new `train_labels`; all else is shared with the given one.

    Raises
    ------
    InputError
        An argument is out of its range or not known.
    """
    if kind not in LABEL_NOISES:
        raise InputError(f"unknown label noise '{kind}'{nearest(str(kind), LABEL_NOISES)}")
    if not (is_real(share) and 0 <= share <= 1):
        raise InputError(f"share must lie in [0, 1], found {share!r}")
    if dataset.classes < 2:
        raise InputError(f"label noise needs at least 2 classes, data set '{dataset.name}' has {dataset.classes}")
    rng = _generator(seed)
    among = _chosen(indices, len(dataset.train_labels))
    count = math.floor(float(share) * len(among) + 1e-9)
    changed = torch.from_numpy(rng.permutation(among)[:count])
    steps = rng.integers(1, dataset.classes, size=count) if kind == "symmetric" else np.ones(count, dtype=np.int64)
    labels = dataset.train_labels.clone()
    # A step of 1 .. classes - 1 round the circle never comes back to the same class.
    labels[changed] = (labels[changed] + torch.from_numpy(steps)) % dataset.classes
    return replace(dataset, train_labels=labels)


def _gaussian_noise(images: Images, severity: int, rng: np.random.Generator) -> Images:
    deviation = np.float32((0.04, 0.06, 0.08, 0.09, 0.10)[severity - 1])
    return images + deviation * rng.standard_normal(images.shape, dtype=np.float32)


def _gaussian_blur(images: Images, severity: int, rng: np.random.Generator) -> Images:
    deviation = (0.4, 0.6, 0.7, 0.8, 1.0)[severity - 1]  # in pixels
    return gaussian_filter(images, deviation, mode="nearest", axes=(2, 3))


def _contrast(images: Images, severity: int, rng: np.random.Generator) -> Images:
    factor = np.float32((0.75, 0.5, 0.4, 0.3, 0.15)[severity - 1])
    mean = images.mean(axis=(2, 3), keepdims=True)
    return (images - mean) * factor + mean


def _occlusion(images: Images, severity: int, rng: np.random.Generator) -> Images:
    share = (0.1, 0.2, 0.3, 0.4, 0.5)[severity - 1]

    def inside(side: int) -> NDArray[np.bool_]:
        length = math.ceil(share * side - 1e-9)
        start = rng.integers(0, side - length + 1, size=(len(images), 1))
        return (np.arange(side) >= start) & (np.arange(side) < start + length)

    rows, columns = (inside(side) for side in images.shape[2:])
    return np.where((rows[:, :, None] & columns[:, None, :])[:, None], np.float32(0), images)


CORRUPTIONS: MappingProxyType[str, Callable[[Any, int, np.random.Generator], Any]] = MappingProxyType(
    {
        "contrast": _contrast,
        "gaussian_blur": _gaussian_blur,
        "gaussian_noise": _gaussian_noise,
        "occlusion": _occlusion,
    }
)
"""The corruptions `corrupt` knows."""


def corrupt(
    dataset: Dataset,
    kind: str,
    severity: int,
    seed: int,
    part: str = "test",
    indices: ArrayLike | Tensor | None = None,
) -> Dataset:
    """Return the data set with corrupted inputs, cut to [0, 1]; the given one and the labels stay as they are.

    Parameters
    ----------
    dataset
        The data set, inputs [N, channels, height, width] in [0, 1].
    kind
        "gaussian_noise", "gaussian_blur" and "contrast" with the constants of CIFAR-10-C for images of about
        32x32 (Hendrycks & Dietterich 2019), the noise of deviation 0.04, 0.06, 0.08, 0.09, 0.10, the blur of 0.4,
        0.6, 0.7, 0.8, 1 pixels, the contrast to each channel's mean by 0.75, 0.5, 0.4, 0.3, 0.15; or "occlusion",
        a rectangle of zeros at a random place, 0.1, 0.2, 0.3, 0.4, 0.5 of height and width (after Cutout, DeVries
        & Taylor 2017).
    severity
        1 .. 5.
    seed
        Seed of the draws, at least 0.
    part
        "test" or "train".
    indices
        The samples of that part to corrupt, such as a device's, shape [n]; all by default.

    Returns
    -------
    Dataset
        With new inputs in that part; all else is shared with the given one.

    Raises
    ------
    InputError
        An argument is out of its range or not known, or the inputs are no images in [0, 1].
    """
    maker = CORRUPTIONS.get(kind) if isinstance(kind, str) else None
    if maker is None:
        raise InputError(f"unknown corruption '{kind}'{nearest(str(kind), CORRUPTIONS)}")
    if not (is_whole(severity) and severity in SEVERITIES):
        raise InputError(f"severity must be a whole number in 1 .. {SEVERITIES[-1]}, found {severity!r}")
    if part not in ("test", "train"):
        raise InputError(f"unknown part '{part}'{nearest(str(part), ('test', 'train'))}")
    rng = _generator(seed)
    field = f"{part}_inputs"
    inputs: Tensor = getattr(dataset, field)
    if inputs.ndim != 4:
        raise InputError(f"corruptions need images [N, channels, height, width], found {tuple(inputs.shape)}")
    low, high = (float(extreme) for extreme in torch.aminmax(inputs))
    if low < 0 or high > 1:
        raise InputError(f"corruptions need inputs in [0, 1], data set '{dataset.name}' has {low} .. {high}")
    among = torch.from_numpy(_chosen(indices, len(inputs)))
    corrupted = inputs.clone()
    for some in among.split(_CHUNK):
        images = maker(inputs[some].numpy(), int(severity), rng)
        corrupted[some] = torch.from_numpy(np.clip(images, 0.0, 1.0))
    changes: dict[str, Any] = {field: corrupted}
    return replace(dataset, **changes)

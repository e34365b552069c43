"""What a generator learns from: a share of each class, kept apart from the samples of the devices."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from jointopt.augmentation.streams import check_seed, stream
from jointopt.data import Dataset
from jointopt.errors import InputError, is_real

__all__ = ["Source", "check_share", "content", "public_split"]


def check_share(share: object, where: str) -> float:
    """Return a share; `InputError` if it is not in (0, 1]."""
    if not (is_real(share) and 0 < share <= 1):  # type: ignore[operator]
        raise InputError(f"{where}: share must be above 0 and at most 1, found {share!r}")
    return float(share)  # type: ignore[arg-type]


def public_split(dataset: Dataset, share: float, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Split the training samples by class: the first share of each class in a seeded order, and the rest.

    With the same seed the public part of a larger share holds that of a smaller one.

    Parameters
    ----------
    dataset
        Whose training samples are split.
    share
        Share of each class that is public, in (0, 1], met to within half a sample.
    seed
        Seed of the order, at least 0.

    Returns
    -------
    ndarray, ndarray
        Ascending indices of the public samples and of the rest, int64; they are disjoint and cover all. The rest is
        empty at a share of 1.

    Raises
    ------
    InputError
        Share or seed is out of its range.
    """
    share = check_share(share, "public_split")
    seed = check_seed(seed, "public_split")
    labels = dataset.train_labels.numpy()
    public = np.zeros(len(labels), dtype=np.bool_)
    for label in range(dataset.classes):
        members = np.flatnonzero(labels == label)
        order = stream(seed, "split", label).permutation(len(members))
        public[members[order[: int(np.floor(share * len(members) + 0.5))]]] = True
    return np.flatnonzero(public), np.flatnonzero(~public)


def content(dataset: Dataset) -> str:
    """Hash of the training samples and their labels, 16 hexadecimal digits."""
    digest = hashlib.sha256(f"{tuple(dataset.train_inputs.shape)} {dataset.classes}".encode())
    for tensor in (dataset.train_inputs, dataset.train_labels):
        digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()[:16]


@dataclass(frozen=True)
class Source:
    """What a generator learned from.

    Attributes
    ----------
    data
        Name of the data set.
    content
        Hash of its training samples (`content`).
    shape, classes
        Shape of one input; number of classes.
    share, seed
        Of `public_split`.
    """

    data: str
    content: str
    shape: tuple[int, ...]
    classes: int
    share: float
    seed: int

    @classmethod
    def of(cls, dataset: Dataset, share: float, seed: int, where: str) -> Source:
        """Describe a share of a data set; `InputError` where share or seed is out of range."""
        if not isinstance(dataset, Dataset):
            raise InputError(f"{where}: expected a Dataset (jointopt.data.load), found {type(dataset).__name__}")
        share, seed = check_share(share, where), check_seed(seed, where)
        return cls(dataset.name, content(dataset), dataset.inputs_shape, dataset.classes, share, seed)

    def samples(self, dataset: Dataset, where: str) -> tuple[Tensor, Tensor]:
        """Return the public inputs [N, ...] and labels [N]; `InputError` naming a class of which there is none."""
        public, _ = public_split(dataset, self.share, self.seed)
        labels = dataset.train_labels[public]
        counts = labels.bincount(minlength=dataset.classes)
        for label in range(dataset.classes):
            if counts[label] == 0:
                of = int((dataset.train_labels == label).sum())
                raise InputError(
                    f"{where}: data set '{dataset.name}', class {label}: no real sample to learn from "
                    f"(share {self.share:g} of {of})"
                )
        return dataset.train_inputs[public], labels

    def plain(self) -> dict[str, Any]:
        """Return the fields as JSON brings them back."""
        return {**dataclasses.asdict(self), "shape": list(self.shape)}

    @classmethod
    def from_plain(cls, fields: dict[str, Any]) -> Source:
        """Read what `plain` returned; raises KeyError, TypeError or ValueError on anything else."""
        return cls(
            data=str(fields["data"]),
            content=str(fields["content"]),
            shape=tuple(int(size) for size in fields["shape"]),
            classes=int(fields["classes"]),
            share=float(fields["share"]),
            seed=int(fields["seed"]),
        )

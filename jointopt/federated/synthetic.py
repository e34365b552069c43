"""Synthetic samples for the devices of a task: which are asked for, in what order they are made, where they are kept.

All samples that level 1 asks for stand in one order, by the level from which each is needed, and are made in blocks of
one size along it. A block is always made whole, so a sample is the same, bit for bit, at every level that asks for it;
where all devices have one level, all blocks but the last are needed whole.
"""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from jointopt.augmentation import container
from jointopt.errors import DataError, InputError
from jointopt.federated.progress import counting_bar
from jointopt.federated.streams import number
from jointopt.models.augmentation import augmented_counts
from jointopt.system import FloatArray

if TYPE_CHECKING:
    from jointopt.augmentation import Generator

__all__ = ["BLOCK", "Synthetic", "checked_level", "missing", "sampled", "synthesize"]

IntArray = NDArray[np.int64]

BLOCK = 256
"""Samples made at once; fixed, so that old results stay reproducible."""


@dataclass(frozen=True, eq=False)
class Synthetic:
    """How a task was augmented.

    Attributes
    ----------
    level : array [devices]
        Augmentation level.
    generator, fingerprint : str
        Name of the generator, and hash of what it learned.
    seed : int
        Seed of the samples.
    first : int
        Index of the first synthetic one among the training samples of the task's data.
    counts : int array [devices, classes]
        Synthetic samples.
    """

    level: FloatArray
    generator: str
    fingerprint: str
    seed: int
    first: int
    counts: IntArray

    def settings(self) -> dict[str, Any]:
        """Return what tells one augmentation from another, plain data; one number for a common level."""
        common = bool(np.all(self.level == self.level[0]))
        return {
            "level": float(self.level[0]) if common else self.level.tolist(),
            "generator": self.generator,
            "fingerprint": self.fingerprint,
            "seed": self.seed,
            "samples": int(self.counts.sum()),
        }


def checked_level(level: ArrayLike, devices: int) -> FloatArray:
    """Return an augmentation level as an array ``[devices]``; `InputError` unless it lies between 0 and 1."""
    try:
        if np.asarray(level).dtype.kind == "b":
            raise TypeError("bool")
        out = np.broadcast_to(np.asarray(level, dtype=np.float64), (devices,)).copy()
    except (TypeError, ValueError):
        raise InputError(
            f"augmentation_level: expected a number or one per device ({devices}), got {level!r}"
        ) from None
    bad = ~((out >= 0.0) & (out <= 1.0))
    if np.any(bad):
        u = int(np.argmax(bad))
        raise InputError(f"augmentation_level[device {u}]: {float(out[u])!r} must lie between 0 and 1")
    return out


def missing(class_counts: IntArray, level: FloatArray) -> IntArray:
    """Return the synthetic samples that levels ask for, d_{u,c}, shape [devices, classes]."""
    return np.asarray(augmented_counts(class_counts.astype(np.float64), level) - class_counts).astype(np.int64)


def _queue(class_counts: IntArray) -> tuple[IntArray, IntArray, IntArray]:
    """Return device, class and number among its like of all that level 1 asks for, by the level that first does."""
    most = missing(class_counts, np.ones(len(class_counts)))
    device, label = (np.repeat(place, most[most > 0]) for place in np.nonzero(most))
    ends = np.cumsum(most[most > 0])
    count = np.arange(len(device)) - np.repeat(ends - most[most > 0], most[most > 0])
    needed_from = (class_counts[device, label] + count) / class_counts.max(axis=1)[device]
    order = np.lexsort((count, label, device, needed_from))
    return device[order], label[order], count[order]


def synthesize(
    class_counts: IntArray,
    counts: IntArray,
    generator: Generator,
    seed: int,
    folder: str | Path | None = None,
    progress: bool = False,
) -> tuple[Tensor, IntArray]:
    """Return synthetic samples in the order of devices, then classes, and their labels.

    Parameters
    ----------
    class_counts : int array [devices, classes]
        Real samples, which decide in what order synthetic ones are made.
    counts : int array [devices, classes]
        Synthetic samples wanted.
    generator : Generator
        What makes them.
    seed : int
        Their seed.
    folder : path, optional
        Where blocks are kept as they are made, and found again.
    progress : bool
        Show a bar, on standard error.

    Raises
    ------
    InputError
        The generator returns something other than finite float32 samples of its shape.
    """
    device, label, count = _queue(class_counts)
    wanted = count < counts[device, label]
    start = np.concatenate([[0], np.cumsum(counts.ravel())[:-1]]).reshape(counts.shape)
    place = start[device, label] + count
    store = None if folder is None else _Store(Path(folder), generator, seed, class_counts)
    total = int(counts.sum())
    out = torch.empty((total, *generator.shape), dtype=torch.float32)
    done = 0
    with counting_bar(progress, f"{total} synthetic samples", total) as tell:
        for block in range(-(-len(device) // BLOCK)):
            some = slice(block * BLOCK, (block + 1) * BLOCK)
            rows = np.flatnonzero(wanted[some])
            if len(rows) == 0:
                continue
            made = None if store is None else store.find(block, len(label[some]))
            if made is None:
                made = sampled(generator, label[some], number(seed, "synthesis", block) >> 1)
                if store is not None:
                    store.keep(block, made)
            out[torch.from_numpy(place[some][rows])] = made[torch.from_numpy(rows)]
            done += len(rows)
            tell(done)
    labels = np.repeat(np.tile(np.arange(counts.shape[1]), len(counts)), counts.ravel())
    return out, labels.astype(np.int64)


def sampled(generator: Generator, labels: IntArray, seed: int) -> Tensor:
    """Return samples of a generator, on the CPU; `InputError` unless they are finite float32 of its shape."""
    made = generator.sample(labels, seed=seed)
    shape = (len(labels), *generator.shape)
    if not (isinstance(made, Tensor) and made.dtype == torch.float32 and tuple(made.shape) == shape):
        found = f"{made.dtype} of shape {tuple(made.shape)}" if isinstance(made, Tensor) else type(made).__name__
        raise InputError(f"generator '{generator.name}': expected float32 samples of shape {shape}, got {found}")
    if not bool(torch.isfinite(made).all()):
        raise InputError(f"generator '{generator.name}': made a sample that is not finite")
    return made.detach().cpu()


_SCHEMA = "jointopt.synthetic/1"


class _Store:
    """Blocks on disk, each written whole; what is damaged is made again."""

    def __init__(self, folder: Path, generator: Generator, seed: int, class_counts: IntArray) -> None:
        key = hashlib.blake2b(digest_size=8)
        shape = f"{class_counts.shape} {generator.shape}"
        for part in (generator.name, generator.fingerprint, str(seed), str(BLOCK), shape):
            key.update(part.encode() + b"\0")
        key.update(np.ascontiguousarray(class_counts, dtype=np.int64).tobytes())
        self._folder, self._name, self._shape = folder, key.hexdigest(), generator.shape
        self._full = False

    def _path(self, block: int) -> Path:
        return self._folder / f"{self._name}-{block:06d}.safetensors"

    def find(self, block: int, length: int) -> Tensor | None:
        """Return a block, None where there is none that can be read and is what was written."""
        try:
            found = container.read(self._path(block), _SCHEMA)[1].get("samples")
        except DataError:
            return None
        whole = found is not None and found.dtype == torch.float32 and found.shape == (length, *self._shape)
        return found if whole else None

    def keep(self, block: int, made: Tensor) -> None:
        """Write a block; a disk that is full stops nothing."""
        if self._full:
            return
        try:
            container.write(self._path(block), _SCHEMA, {"block": block}, {"samples": made})
        except InputError as error:
            self._full = True
            warnings.warn(f"synthetic samples are not kept: {error}", RuntimeWarning, stacklevel=4)

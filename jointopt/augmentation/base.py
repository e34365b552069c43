"""What every generator of synthetic samples offers."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from jointopt.augmentation import container
from jointopt.augmentation.progress import progress_bar
from jointopt.augmentation.split import Source, content
from jointopt.augmentation.streams import check_seed, noise
from jointopt.data import Dataset
from jointopt.errors import DataError, InputError

__all__ = ["SCHEMA", "Callback", "Generator", "difference"]

SCHEMA = "jointopt.generator/1"

Callback = Callable[[int, int, float], object]
"""Told (steps done, all steps, loss) after each step of training."""


class Generator(ABC):
    """A class-conditional generator of images, made from the public share of a data set.

    Attributes
    ----------
    name : str
        Kind of generator, as in `GENERATORS`.
    source : Source
        What it learned from.
    settings : mapping
        All that decides what was learned, plain.
    """

    name: ClassVar[str]
    options: ClassVar[tuple[str, ...]]
    """What `plan` and `make` take beside the data set."""
    chunk: ClassVar[int] = 128
    """Samples made at once."""

    def __init__(self, source: Source, settings: Mapping[str, Any]) -> None:
        self.source = source
        self.settings = dict(settings)

    @property
    def data(self) -> str:
        """Name of the data set it learned from."""
        return self.source.data

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return self.source.shape

    @property
    def classes(self) -> int:
        """Number of classes."""
        return self.source.classes

    @property
    def share(self) -> float:
        """Share of each class that was learned from."""
        return self.source.share

    @property
    def seed(self) -> int:
        """Seed of the share and of learning."""
        return self.source.seed

    @property
    @abstractmethod
    def operations_per_sample(self) -> float:
        """Floating-point operations that make one sample; a product with addition counts two."""

    @classmethod
    @abstractmethod
    def plan(cls, dataset: Dataset, **options: Any) -> dict[str, Any]:
        """All that decides what `make` learns from a data set, plain; `InputError` where an option is unusable."""

    @classmethod
    @abstractmethod
    def make(
        cls,
        dataset: Dataset,
        *,
        checkpoint: str | os.PathLike[str] | None = None,
        progress: bool = False,
        callback: Callback | None = None,
        **options: Any,
    ) -> Self:
        """Learn from a data set, going on from a checkpoint where the kind of generator has them."""

    @abstractmethod
    def _tensors(self) -> dict[str, Tensor]:
        """What was learned."""

    @classmethod
    @abstractmethod
    def _restore(cls, source: Source, settings: dict[str, Any], tensors: dict[str, Tensor]) -> Self:
        """Build from what was saved; raises KeyError, TypeError, ValueError or RuntimeError where it does not fit."""

    @property
    @abstractmethod
    def _noise_size(self) -> int:
        """Standard normal numbers that one sample takes."""

    @abstractmethod
    def _generate(self, labels: Tensor, noise: Tensor, tell: Callable[[int], None]) -> Tensor:
        """Samples [n, *shape] in any range, of labels [n] and noise [n, size]; each row depends on its own only."""

    @property
    def _rounds(self) -> int:
        """How often `_generate` calls ``tell``."""
        return 0

    def sample(self, labels: ArrayLike | Tensor, *, seed: int, progress: bool = False) -> Tensor:
        """Make synthetic samples.

        Sample i depends on the seed, i and its label only, up to the last bits of floating point: who asks for more
        keeps the first ones.

        Parameters
        ----------
        labels
            Classes wanted, whole numbers in 0 .. classes - 1, shape [n]; n may be 0.
        seed
            Seed of the samples, at least 0; need not be that of learning.
        progress
            Whether to draw a bar on standard error.

        Returns
        -------
        Tensor
            float32, shape [n, *shape], entries in [0, 1].

        Raises
        ------
        InputError
            Labels or seed are out of range.
        """
        where = f"generator '{self.name}'"
        wanted, seed = self._check_labels(labels, where), check_seed(seed, where)
        out = torch.empty((len(wanted), *self.shape), dtype=torch.float32)
        chunks = -(-len(wanted) // self.chunk)
        each = max(1, self._rounds)
        with progress_bar(progress, f"{len(wanted)} samples", chunks * each) as tell, torch.no_grad():
            for number, start in enumerate(range(0, len(wanted), self.chunk)):
                part = wanted[start : start + self.chunk]
                drawn = noise(seed, start, len(part), self._noise_size)
                made = self._generate(part, drawn, partial(_later, tell, number * each))
                out[start : start + len(part)] = made.clamp(0.0, 1.0)
                tell((number + 1) * each, "")
        return out

    def _check_labels(self, labels: ArrayLike | Tensor, where: str) -> Tensor:
        try:
            array = np.asarray(labels)
        except (TypeError, ValueError, RuntimeError) as error:
            raise InputError(f"{where}: labels must be whole numbers of shape [n] ({error})") from None
        if array.ndim != 1 or (array.dtype.kind not in "iu" and array.size):
            raise InputError(
                f"{where}: labels must be whole numbers of shape [n], found {array.dtype} of shape {array.shape}"
            )
        bad = np.flatnonzero((array < 0) | (array >= self.classes)) if array.size else array
        if bad.size:
            raise InputError(
                f"{where}: labels must lie in 0 .. {self.classes - 1}, found {array[bad[0]]} at place {bad[0]}"
            )
        return torch.from_numpy(array.astype(np.int64))

    def check(self, dataset: Dataset) -> None:
        """Raise `InputError` unless the generator was made from the training samples of this data set."""
        source = self.source
        if (source.data, source.shape, source.classes) != (dataset.name, dataset.inputs_shape, dataset.classes):
            why = ""
        elif source.content != content(dataset):
            why = f" (its training samples have the hash {content(dataset)}, those learned from {source.content})"
        else:
            return
        raise InputError(
            f"generator '{self.name}': was made for {_words(source.data, source.shape, source.classes)}, not for "
            f"{_words(dataset.name, dataset.inputs_shape, dataset.classes)}{why}"
        )

    @cached_property
    def fingerprint(self) -> str:
        """Hash of what was learned, from what and how; 16 hexadecimal digits."""
        return container.digest(self.settings, self._tensors())[:16]

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the generator to one file, whole or not at all; `InputError` when it cannot be written."""
        return container.write(path, SCHEMA, self.settings, self._tensors())

    @classmethod
    def load(cls, path: str | os.PathLike[str], dataset: Dataset | None = None) -> Self:
        """Read a generator that `save` wrote.

        Parameters
        ----------
        path
            The file.
        dataset
            Data it must have been made for.

        Raises
        ------
        DataError
            The file is missing, damaged or holds something else.
        InputError
            It was made for other data.
        MissingExtraError
            Its kind needs a package that is not installed.
        """
        settings, tensors = container.read(path, SCHEMA)
        if settings.get("kind") != cls.name:
            raise DataError(f"{path}: holds a generator '{settings.get('kind')}', expected '{cls.name}'")
        try:
            made = cls._restore(Source.from_plain(settings["source"]), settings, tensors)
        except DataError:
            raise
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise DataError(f"{path}: holds no usable generator ({error!r})") from None
        if dataset is not None:
            try:
                made.check(dataset)
            except InputError as error:
                raise InputError(f"{path}: {error}") from None
        return made

    def __repr__(self) -> str:
        return f"{type(self).__name__}({_words(self.data, self.shape, self.classes)}, share {self.share:g})"


def _later(tell: Callable[[int, str], None], before: int, done: int) -> None:
    tell(before + done, "")


def _words(data: str, shape: tuple[int, ...], classes: int) -> str:
    return f"data set '{data}' ({'x'.join(map(str, shape))}, {classes} classes)"


def difference(wanted: Mapping[str, Any], found: Mapping[str, Any], where: str = "") -> str:
    """Return in words where two plain settings first differ, "" where they do not."""
    for key in [*wanted, *(key for key in found if key not in wanted)]:
        place = f"{where}.{key}" if where else str(key)
        one, other = wanted.get(key), found.get(key)
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            words = difference(one, other, place)
            if words:
                return words
        elif one != other:
            return f"{place} was {other!r}, is {one!r}"
    return ""

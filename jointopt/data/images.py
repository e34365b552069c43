"""A folder of images, one subfolder for each class."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jointopt.data.dataset import Dataset
from jointopt.data.folders import data_folder
from jointopt.data.holdout import held_out
from jointopt.errors import DataError, InputError, is_whole

__all__ = ["load_images"]

_SUFFIXES = (".jpeg", ".jpg", ".png")
_DEEP = ("F", "I")  # modes of more than 8 bits, which Pillow would cut off at 255 instead of scaling


def _visible(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise DataError(f"{folder}: cannot be read: {error.strerror or error}") from error


def _listed(folder: Path) -> dict[str, list[Path]]:
    """Return the image files of each class, classes and files by name."""
    classes = {path.name: _visible(path) for path in _visible(folder) if path.is_dir()}
    if not classes:
        raise DataError(f"images: expected a folder for each class in {folder}, found none")
    for name, paths in classes.items():
        if not paths:
            raise DataError(f"images: the class folder {folder / name} is empty")
        for path in paths:
            if not path.is_file() or path.suffix.lower() not in _SUFFIXES:
                raise DataError(f"{path}: expected only {', '.join(_SUFFIXES)} files in a class folder")
    return classes


def _pixels(path: Path, size: tuple[int, int] | None, grayscale: bool) -> NDArray[np.uint8]:
    """Return the image as [channels, height, width]."""
    from PIL import Image  # here, because only this data set needs it

    try:
        content = io.BytesIO(path.read_bytes())
        with Image.open(content, formats=("PNG", "JPEG")) as image:
            image.verify()  # the check sums, which loading passes over; afterwards an image cannot be loaded
        with Image.open(content, formats=("PNG", "JPEG")) as image:
            if image.mode.startswith(_DEEP):
                raise DataError(f"{path}: expected 8 bits a channel, found an image of mode {image.mode}")
            plain = image.convert("L" if grayscale else "RGB")
    except DataError:
        raise
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: expected an intact PNG or JPEG image, found damage: {error}") from error
    if size is not None:
        plain = plain.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    found = np.asarray(plain, dtype=np.uint8)
    return found[None] if grayscale else np.ascontiguousarray(found.transpose(2, 0, 1))


def _part(
    classes: dict[str, list[Path]], names: list[str], size: tuple[int, int] | None, grayscale: bool
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return pixels [n, channels, height, width] and labels [n]."""
    images: list[NDArray[np.uint8]] = []
    labels: list[int] = []
    first: Path | None = None
    for name, paths in classes.items():
        for path in paths:
            image = _pixels(path, size, grayscale)
            first = path if first is None else first
            if images and image.shape != images[0].shape:
                raise DataError(
                    f"{path}: is {image.shape[1]}x{image.shape[2]}, but {first} is "
                    f"{images[0].shape[1]}x{images[0].shape[2]}; size=(height, width) brings all to one size"
                )
            images.append(image)
            labels.append(names.index(name))
    return np.stack(images), np.array(labels, dtype=np.int64)


def _checked_size(size: Sequence[int] | None) -> tuple[int, int] | None:
    if size is None:
        return None
    if not (isinstance(size, Sequence) and len(size) == 2 and all(is_whole(side) and side >= 1 for side in size)):
        raise InputError(f"size must be two whole numbers of at least 1, height and width, found {size!r}")
    return int(size[0]), int(size[1])


def _tensors(pixels: NDArray[np.uint8], labels: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(pixels).to(torch.float32).div_(255.0), torch.from_numpy(labels)


def load_images(
    folder: str | os.PathLike[str] | None = None,
    *,
    size: Sequence[int] | None = None,
    grayscale: bool = False,
    test_share: float | None = None,
    seed: int = 0,
) -> Dataset:
    """Return PNG and JPEG images from train/CLASS and test/CLASS, or from CLASS alone with a share held out.

    Classes are numbered in the order of their names. Files and folders whose names begin with a dot are left out.

    Parameters
    ----------
    folder
        The folder with train and test, or with one folder for each class; by default the environment variable
        JOINTOPT_DATA.
    size
        Height and width to resize all images to; without it all must have one size.
    grayscale
        One channel instead of red, green and blue.
    test_share
        For a folder without train and test: the share of each class to test on, 0.2 by default.
    seed
        Seed of that choice.

    Raises
    ------
    InputError
        An option is out of its range, or `test_share` is given though the folder is split.
    DataError
        A folder or file is missing, damaged, no image, of another size, or of a class not to train on.
    """
    sides = _checked_size(size)
    if not isinstance(grayscale, bool):
        raise InputError(f"grayscale must be True or False, found {grayscale!r}")
    place, origin = data_folder("images", folder)
    if not place.is_dir():
        raise DataError(f"images: expected the folder {place} ({origin}), found none")
    there = [(place / part).is_dir() for part in ("train", "test")]
    if any(there) and not all(there):
        raise DataError(f"images: expected the folders train and test in {place}, found one of them only")
    if all(there):
        if test_share is not None:
            raise InputError(f"images: test_share cannot be chosen, {place} is split into train and test")
        parts = [_listed(place / part) for part in ("train", "test")]
        names = list(parts[0])
        for name in parts[1]:
            if name not in parts[0]:
                raise DataError(f"images: the class {place / 'test' / name} has no folder in {place / 'train'}")
        train, test = (_part(part, names, sides, grayscale) for part in parts)
    else:
        classes = _listed(place)
        names = list(classes)
        labels = np.repeat(np.arange(len(names)), [len(paths) for paths in classes.values()])
        # Chosen before any image is read, so that a share out of its range is said at once.
        held = held_out(labels, 0.2 if test_share is None else test_share, seed)
        pixels, labels = _part(classes, names, sides, grayscale)
        train, test = (pixels[~held], labels[~held]), (pixels[held], labels[held])
    if train[0].shape[1:] != test[0].shape[1:]:
        raise DataError(
            f"images: those to train on are {train[0].shape[2]}x{train[0].shape[3]}, those to test on "
            f"{test[0].shape[2]}x{test[0].shape[3]}; size=(height, width) brings all to one size"
        )
    return Dataset("images", *_tensors(*train), *_tensors(*test), classes=len(names))

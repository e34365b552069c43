"""A generator by name, made once and kept in a folder."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from jointopt.augmentation.base import Callback, Generator, difference
from jointopt.augmentation.registry import get
from jointopt.data import Dataset
from jointopt.errors import DataError, InputError, nearest

__all__ = ["generator", "places"]


def places(
    kind: str, dataset: Dataset, cache: str | os.PathLike[str], **options: Any
) -> tuple[Path, Path, dict[str, Any]]:
    """Return where a generator and its checkpoint lie in a folder, and the settings both must have."""
    settings = get(kind).plan(dataset, **_known(kind, options))
    name = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
    stem = f"{kind}-{''.join(c if c.isalnum() or c in '-_' else '-' for c in dataset.name)}-{name}"
    return Path(cache) / f"{stem}.safetensors", Path(cache) / f"{stem}.checkpoint.safetensors", settings


def _known(kind: str, options: dict[str, Any]) -> dict[str, Any]:
    known = get(kind).options
    for option in options:
        if option not in known:
            raise InputError(f"generator '{kind}' has no option '{option}'{nearest(option, known)}")
    return options


def generator(
    kind: str | Generator,
    dataset: Dataset,
    *,
    cache: str | os.PathLike[str] | None = None,
    progress: bool = False,
    callback: Callback | None = None,
    **options: Any,
) -> Generator:
    """Return a generator for a data set: one given, one kept earlier, or a new one.

    Parameters
    ----------
    kind
        A name of `GENERATORS`, or a generator, which is checked.
    dataset
        What it learns from, or must have learned from.
    cache
        Folder where it is kept, under a name that holds a hash of the data, the recipe, the share and the seed; the
        checkpoint of an interrupted training lies beside it and is gone on from. Nothing is kept by default.
    progress, callback
        As in `DiffusionGenerator.train`.
    **options
        ``share``, ``seed`` and what else `DiffusionGenerator.train` or `GaussianGenerator.fit` take.

    Raises
    ------
    InputError
        The kind or an option is unknown or unusable, or the generator or the file found is for other data.
    DataError
        The file or the checkpoint found is damaged.
    MissingExtraError
        The kind needs a package that is not installed.
    KeyboardInterrupt
        Training was interrupted; the message says where it was kept.
    """
    if isinstance(kind, Generator):
        if options:
            raise InputError(f"generator: {', '.join(options)}: only for a kind by name; a generator was given")
        kind.check(dataset)
        return kind
    maker = get(kind)
    options = _known(kind, options)
    if cache is None:
        return maker.make(dataset, progress=progress, callback=callback, **options)
    path, checkpoint, settings = places(kind, dataset, cache, **options)
    if path.exists():
        try:
            found = maker.load(path, dataset)
        except DataError as error:
            raise DataError(f"{error}; delete it to make it anew") from None
        differs = difference(settings, found.settings)
        if differs:
            raise InputError(f"{path}: holds a generator made otherwise ({differs}); delete it to make it anew")
        return found
    made = maker.make(dataset, checkpoint=checkpoint, progress=progress, callback=callback, **options)
    made.save(path)
    checkpoint.unlink(missing_ok=True)
    return made

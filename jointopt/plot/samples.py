"""Real and synthetic samples side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from jointopt.augmentation.streams import check_seed
from jointopt.errors import InputError, is_whole
from jointopt.plot.figures import _subplots

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

    from jointopt.augmentation import Generator
    from jointopt.data import Dataset

__all__ = ["samples"]

_ROWS = 30


def samples(
    generator: Generator, dataset: Dataset, *, per_class: int = 8, seed: int = 0, title: str | None = None
) -> Figure:
    """Draw a grid with a row for each class: real training samples on the left, synthetic ones on the right.

    Parameters
    ----------
    generator
        Made for `dataset`.
    dataset
        Where the real samples come from; its inputs are images of one or three channels.
    per_class
        Images of either kind in a row, at least 1; a class with fewer real ones leaves places white.
    seed
        Seed of the synthetic samples and of the choice of the real ones.
    title
        Above all.

    Raises
    ------
    InputError
        The generator was made for other data, the inputs are no images, or an argument is out of range.
    """
    generator.check(dataset)
    seed = check_seed(seed, "plot.samples")
    if not (is_whole(per_class) and per_class >= 1):
        raise InputError(f"plot.samples: per_class must be whole and at least 1, found {per_class!r}")
    if len(generator.shape) != 3 or generator.shape[0] not in (1, 3):
        raise InputError(f"plot.samples: needs images of 1 or 3 channels, found inputs of shape {generator.shape}")
    shown = range(min(generator.classes, _ROWS))
    rng = np.random.default_rng(seed)
    real = []
    for label in shown:
        members = np.flatnonzero(dataset.train_labels.numpy() == label)
        chosen = rng.permutation(members)[:per_class]
        row = torch.ones((per_class, *generator.shape))
        row[: len(chosen)] = dataset.train_inputs[chosen]
        real.append(row)
    labels = np.repeat(np.arange(len(shown)), per_class)
    made = generator.sample(labels, seed=seed).reshape(len(shown), per_class, *generator.shape)

    # wide enough for titles over the narrowest grid
    width, height = max(2.4, 0.42 * per_class), max(1.0, 0.42 * len(shown))
    figure, axes = _subplots(1, 2, figsize=(2 * width + 1.0, height + 0.9))
    for axis, tiles, words in ((axes[0], torch.stack(real), "real"), (axes[1], made, "synthetic")):
        _draw(axis, tiles, words)
    axes[0].set_yticks([(row + 0.5) for row in shown], [str(label) for label in shown])
    axes[0].set_ylabel("class")
    axes[1].set_yticks([])
    rest = "" if len(shown) == generator.classes else f" (the first {len(shown)} of {generator.classes} classes)"
    figure.suptitle((title or f"{generator.data}, generator '{generator.name}'") + rest, fontsize=11)
    return figure


def _draw(axis: Any, tiles: Tensor, title: str) -> None:
    """Show tiles [rows, columns, channels, height, width] as one picture with white lines between them."""
    rows, columns, channels, height, width = tiles.shape
    line = max(1, height // 14)
    padded = torch.nn.functional.pad(tiles, (line, line, line, line), value=1.0)
    picture = padded.permute(0, 3, 1, 4, 2).reshape(rows * (height + 2 * line), columns * (width + 2 * line), channels)
    axis.imshow(
        picture.squeeze(2).numpy() if channels == 1 else picture.numpy(),
        cmap="gray",
        vmin=0.0,
        vmax=1.0,
        interpolation="nearest",
        extent=(0, columns, rows, 0),
        aspect=(height + 2 * line) / (width + 2 * line),
    )
    axis.set_xticks([])
    axis.set_title(title, fontsize=10)
    axis.tick_params(length=0)
    for spine in axis.spines.values():
        spine.set_visible(False)

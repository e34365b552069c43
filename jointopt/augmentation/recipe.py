"""How a diffusion model is built and trained, by data set."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jointopt.data import Dataset
from jointopt.errors import InputError, is_real, is_whole

__all__ = ["RECIPES", "Recipe", "recipe_for"]

_GROUPS = 8
_TIMES = 1000


@dataclass(frozen=True)
class Recipe:
    """Sizes of the network and of its training.

    Attributes
    ----------
    channels
        Channels at each resolution, which halves from one to the next; multiples of 8.
    patch
        Squares of patch x patch pixels become one pixel of patch^2 times the channels: the work falls with its square.
    layers
        Residual blocks at each resolution.
    steps, batch
        Training steps; images in each.
    learning_rate, warmup
        Largest step size of Adam, reached after so many steps; a cosine falls from it to 0.
    average
        Decay of the moving average of the weights, which is what samples are made with.
    denoise_steps
        Steps from noise to image.

    Raises
    ------
    InputError
        A value is out of range.
    """

    channels: tuple[int, ...] = (32, 64)
    patch: int = 1
    layers: int = 1
    steps: int = 1000
    batch: int = 64
    learning_rate: float = 2e-3
    warmup: int = 100
    average: float = 0.995
    denoise_steps: int = 20

    def __post_init__(self) -> None:
        for name, least in (("patch", 1), ("layers", 1), ("steps", 1), ("batch", 1), ("warmup", 0)):
            value = getattr(self, name)
            if not (is_whole(value) and value >= least):
                raise InputError(f"recipe: {name} must be whole and at least {least}, found {value!r}")
        if not (is_whole(self.denoise_steps) and 1 <= self.denoise_steps <= _TIMES):
            raise InputError(f"recipe: denoise_steps must be whole, 1 to {_TIMES}, found {self.denoise_steps!r}")
        channels = self.channels
        if (
            not isinstance(channels, tuple)
            or not channels
            or not all(is_whole(c) and c > 0 and c % _GROUPS == 0 for c in channels)
        ):
            raise InputError(f"recipe: channels must be a tuple of multiples of {_GROUPS}, found {channels!r}")
        rate = self.learning_rate
        if not (is_real(rate) and math.isfinite(rate) and rate > 0):
            raise InputError(f"recipe: learning_rate must be above 0, found {rate!r}")
        if not (is_real(self.average) and 0 <= self.average < 1):
            raise InputError(f"recipe: average must lie in [0, 1), found {self.average!r}")

    def plain(self) -> dict[str, Any]:
        """Return the fields as JSON brings them back."""
        return {**dataclasses.asdict(self), "channels": list(self.channels)}

    @classmethod
    def from_plain(cls, fields: Mapping[str, Any]) -> Recipe:
        """Read what `plain` returned; raises TypeError or ValueError on anything else."""
        return cls(**{**fields, "channels": tuple(fields["channels"])})


# On the digits 10, 20 and 40 denoising steps are worth the same: ratios of `quality` 0.979, 0.979 and 0.980, 800 steps
# of training, mean of two seeds. Twice the weights (32, 64) for 600 steps, which take as long, gave 0.967.
RECIPES: Mapping[str, Recipe] = {
    "digits": Recipe(channels=(24, 48), steps=1000, denoise_steps=10),
    "fashion-mnist": Recipe(channels=(32, 64), patch=2, steps=4000, average=0.999, denoise_steps=20),
}
"""Chosen so that one core needs about a minute and a half for the digits, 25 minutes for Fashion-MNIST [S]."""

_WIDEST = 16


def recipe_for(dataset: Dataset, where: str) -> Recipe:
    """Return the recipe of a data set: its own, or by the size of its images.

    Images larger than 16 x 16 are taken in patches that leave at most so many pixels; then 3,000 steps, else 1,000.

    Raises
    ------
    InputError
        Inputs are no images [channels, height, width].
    """
    shape = dataset.inputs_shape
    if len(shape) != 3:
        raise InputError(
            f"{where}: data set '{dataset.name}' must have inputs [channels, height, width], found shape {shape}"
        )
    if dataset.name in RECIPES:
        return RECIPES[dataset.name]
    patch = 1
    while max(shape[1:]) > _WIDEST * patch:
        patch *= 2
    return Recipe(patch=patch, steps=1000 if patch == 1 else 3000)

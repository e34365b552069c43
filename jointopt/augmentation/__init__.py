"""Synthetic samples: class-conditional generators that fill up rare classes, learned from a public share of the data.

`DiffusionGenerator` is the real one (extra ``diffusion``); `GaussianGenerator` is light and needs nothing else.
"""

from __future__ import annotations

from jointopt.augmentation.base import Generator
from jointopt.augmentation.cached import generator
from jointopt.augmentation.diffusion import DiffusionGenerator
from jointopt.augmentation.gaussian import GaussianGenerator
from jointopt.augmentation.quality import Quality, quality
from jointopt.augmentation.recipe import RECIPES, Recipe, recipe_for
from jointopt.augmentation.registry import GENERATORS
from jointopt.augmentation.split import Source, content, public_split

__all__ = [
    "GENERATORS",
    "RECIPES",
    "DiffusionGenerator",
    "GaussianGenerator",
    "Generator",
    "Quality",
    "Recipe",
    "Source",
    "content",
    "generator",
    "public_split",
    "quality",
    "recipe_for",
]

"""What the tests of generators share: the digits, small data sets, and a diffusion model trained once."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import pytest
import torch

from jointopt.augmentation import DiffusionGenerator, Recipe
from jointopt.data import Dataset, load

# a network of 10,000 weights: steps take milliseconds
TINY = Recipe(channels=(8, 16), steps=9, batch=8, warmup=2, denoise_steps=3, average=0.9)
SHORT = Recipe(channels=(16, 32), steps=250, batch=32, learning_rate=4e-3, average=0.98, denoise_steps=10)


@pytest.fixture(scope="session")
def digits() -> Dataset:
    return load("digits")


@pytest.fixture(scope="session")
def tiny() -> Recipe:
    return TINY


@pytest.fixture(scope="session")
def diffusers() -> None:
    if importlib.util.find_spec("diffusers") is None:
        pytest.skip("diffusers is not installed")


@pytest.fixture(scope="session")
def short(digits: Dataset, diffusers: None) -> DiffusionGenerator:
    """Really trained, on real data, for a tenth of the usual work."""
    return DiffusionGenerator.train(digits, recipe=SHORT)


@pytest.fixture(scope="session")
def make_dataset() -> Callable[..., Dataset]:
    """A small data set in which the class tells which rows are bright."""

    def build(
        name: str = "bars", shape: tuple[int, ...] = (1, 8, 8), counts: tuple[int, ...] = (12, 9, 6), **changes: Any
    ) -> Dataset:
        labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
        generator = torch.Generator().manual_seed(changes.pop("seed", 0))
        inputs = 0.3 * torch.rand(len(labels), *shape, generator=generator)
        for row, label in zip(inputs, labels, strict=True):
            row[..., int(label) :: len(counts), :] += 0.6
        fields = {
            "train_inputs": inputs,
            "train_labels": labels,
            "test_inputs": inputs[:4],
            "test_labels": labels[:4],
            "classes": len(counts),
        }
        return Dataset(name, **{**fields, **changes})

    return build

"""What synthetic samples are worth: a classifier trained on them alone, judged on real test samples."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from jointopt.augmentation.base import Generator
from jointopt.augmentation.streams import check_seed, stream, torch_stream
from jointopt.data import Dataset
from jointopt.errors import InputError, is_whole

__all__ = ["Quality", "quality"]

_SAMPLES = 2000
_WIDTH = 128
_STEPS = 2000
_BATCH = 64
_RATE = 1e-3


@dataclass(frozen=True)
class Quality:
    """Accuracy on the real test samples of two classifiers that differ in what they were trained on.

    Attributes
    ----------
    synthetic, real
        Accuracy after training on synthetic samples only, and on as many real ones.
    samples
        Number of either.
    seed
        Seed of everything drawn.
    """

    synthetic: float
    real: float
    samples: int
    seed: int

    @property
    def ratio(self) -> float:
        """Accuracy on synthetic samples over that on real ones; 1 if they are worth as much."""
        return self.synthetic / self.real

    def summary(self) -> str:
        """One sentence."""
        return (
            f"a classifier trained on {self.samples} synthetic samples alone reaches {self.synthetic:.1%} on real test "
            f"samples, on as many real ones {self.real:.1%}: ratio {self.ratio:.3f}"
        )


def quality(
    generator: Generator, dataset: Dataset, *, samples: int | None = None, seed: int = 0, progress: bool = False
) -> Quality:
    """Train one classifier on synthetic and one on real samples and compare them on the real test set.

    Both have one hidden layer of 128 units, start from the same weights and take 2,000 steps of Adam on the same
    places of their samples, which have the same labels [S].

    Parameters
    ----------
    generator
        Made for `dataset`.
    dataset
        Whose training samples (public or not) are the real ones, and whose test samples decide.
    samples
        Number of synthetic and of real samples, 1 to the number of training samples; by default up to 2,000.
    seed
        Seed of samples, choice of the real ones and classifiers, at least 0.
    progress
        Whether to draw a bar while samples are made.

    Raises
    ------
    InputError
        The generator was made for other data, or an argument is out of range.
    """
    generator.check(dataset)
    seed = check_seed(seed, "quality")
    available = len(dataset.train_labels)
    samples = min(_SAMPLES, available) if samples is None else samples
    if not (is_whole(samples) and 1 <= samples <= available):
        raise InputError(f"quality: samples must be whole, 1 to {available}, found {samples!r}")
    chosen = np.sort(stream(seed, "probe").permutation(available)[: int(samples)])
    labels = dataset.train_labels[chosen]
    made = generator.sample(labels, seed=seed, progress=progress)
    accuracies = [_accuracy(inputs, labels, dataset, seed) for inputs in (made, dataset.train_inputs[chosen])]
    return Quality(accuracies[0], accuracies[1], int(samples), seed)


def _accuracy(inputs: Tensor, labels: Tensor, dataset: Dataset, seed: int) -> float:
    generator = torch_stream(seed, "classifier")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator.initial_seed())
        network = nn.Sequential(
            nn.Flatten(),
            nn.Linear(inputs[0].numel(), _WIDTH),
            nn.ReLU(),
            nn.Linear(_WIDTH, dataset.classes),
        )
    optimizer = torch.optim.Adam(network.parameters(), _RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, _STEPS)
    for _ in range(_STEPS):
        rows = torch.randint(len(inputs), (_BATCH,), generator=generator)
        loss = nn.functional.cross_entropy(network(inputs[rows]), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    right = 0
    with torch.no_grad():
        for x, y in zip(dataset.test_inputs.split(1000), dataset.test_labels.split(1000), strict=True):
            right += int((network(x).argmax(1) == y).sum())
    return right / len(dataset.test_labels)

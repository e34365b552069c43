"""Data sets read from local files, their split over the devices, and noise put into them."""

from __future__ import annotations

from jointopt.data.datasets import DATASETS, Dataset, load
from jointopt.data.idx import read_idx
from jointopt.data.noise import CORRUPTIONS, LABEL_NOISES, corrupt, with_label_noise
from jointopt.data.partition import SCHEMES, partition
from jointopt.data.sizes import LAWS, draw_sizes

__all__ = [
    "CORRUPTIONS",
    "DATASETS",
    "LABEL_NOISES",
    "LAWS",
    "SCHEMES",
    "Dataset",
    "corrupt",
    "draw_sizes",
    "load",
    "partition",
    "read_idx",
    "with_label_noise",
]

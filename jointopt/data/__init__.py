"""Data sets read from local files, and their split over the devices."""

from __future__ import annotations

from jointopt.data.datasets import DATASETS, Dataset, load
from jointopt.data.idx import read_idx
from jointopt.data.partition import partition

__all__ = ["DATASETS", "Dataset", "load", "partition", "read_idx"]

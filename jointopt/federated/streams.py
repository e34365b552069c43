"""Random numbers of a training run: separate streams, each readable at any place.

A stream is keyed by the seed, its name and where it is read (round, then device). Nothing depends on what was drawn
before, so a run that is resumed draws what it would have drawn.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

__all__ = ["STREAMS", "stream", "torch_stream"]

STREAMS: Mapping[str, int] = {
    "batch": 0,
    "quantizer": 1,
    "channel": 2,
    "selection": 3,
    "dropout": 4,
    "mask": 5,
    "network": 6,
    "evidence": 7,
    "synthesis": 8,
    "attendance": 9,
    "arrivals": 10,
    "sightings": 11,
}
"""Keys of the streams; fixed, so that old results stay reproducible."""


def _sequence(seed: int, name: str, *where: int) -> np.random.SeedSequence:
    return np.random.SeedSequence(entropy=seed, spawn_key=(STREAMS[name], *where))


def stream(seed: int, name: str, *where: int) -> np.random.Generator:
    """Return the random numbers of a stream at a place (round, then device), whatever was drawn elsewhere."""
    return np.random.default_rng(_sequence(seed, name, *where))


def number(seed: int, name: str, *where: int) -> int:
    """Return one 64-bit number of a stream, to seed something else with."""
    return int(_sequence(seed, name, *where).generate_state(1, np.uint64)[0])


def torch_stream(seed: int, name: str, *where: int) -> torch.Generator:
    """Return `stream` as a torch generator on the CPU."""
    return torch.Generator().manual_seed(number(seed, name, *where))

"""Random numbers readable at any place: keyed by the seed, what they are for, and where they are read."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from jointopt.errors import InputError, is_whole

__all__ = ["check_seed", "noise", "stream", "torch_stream"]

_KEYS: Mapping[str, int] = {"split": 0, "network": 1, "step": 2, "sample": 3, "classifier": 4, "probe": 5}
# fixed, so that old results stay reproducible


def check_seed(seed: object, where: str) -> int:
    """Return a seed; `InputError` if it is not a whole number in 0 .. 2**63 - 1."""
    if not (is_whole(seed) and 0 <= seed < 2**63):  # type: ignore[operator]
        raise InputError(f"{where}: seed must be a whole number in 0 .. 2**63 - 1, found {seed!r}")
    return int(seed)  # type: ignore[call-overload]


def _sequence(seed: int, name: str, *where: int) -> np.random.SeedSequence:
    return np.random.SeedSequence(entropy=seed, spawn_key=(_KEYS[name], *where))


def stream(seed: int, name: str, *where: int) -> np.random.Generator:
    """Return the random numbers of a stream at a place, whatever was drawn elsewhere."""
    return np.random.default_rng(_sequence(seed, name, *where))


def torch_stream(seed: int, name: str, *where: int) -> torch.Generator:
    """Return `stream` as a torch generator on the CPU."""
    state = _sequence(seed, name, *where).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]))


def noise(seed: int, first: int, count: int, size: int) -> Tensor:
    """Standard normal numbers of samples first .. first + count - 1, float32, shape [count, size]."""
    out = np.empty((count, size), dtype=np.float32)
    for row, index in zip(out, range(first, first + count), strict=True):
        stream(seed, "sample", index).standard_normal(dtype=np.float32, out=row)
    return torch.from_numpy(out)

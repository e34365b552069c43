"""Worlds that change from round to round: what data, channels and decisions a round finds.

A run on the ground has one world throughout. In the air each slot has a `Scene` of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from jointopt.decision import Decision
from jointopt.system import FloatArray, System

__all__ = ["Scene", "World"]


@dataclass(frozen=True, eq=False)
class Scene:
    """The world of one round.

    Attributes
    ----------
    system : System
        Devices, channels and budgets of this round.
    decision : Decision
        What is done in it, `selected` among its variables, as `jointopt.federated.plan.trainable` returns.
    rows : tuple of int64 tensors
        For each device the training samples it holds, by number in the data; none for who does not take part.
    fresh : int64 tensor
        The training samples that came new and that no device had before.
    class_mix : array [classes]
        Shares of the classes among the samples of those who take part; zeros where nobody does.
    row : mapping
        What the round's row in the training result says beside what all rounds do.
    """

    system: System
    decision: Decision
    rows: tuple[Tensor, ...]
    fresh: Tensor
    class_mix: FloatArray
    row: Mapping[str, Any] = field(default_factory=dict)

    @property
    def samples(self) -> NDArray[np.int64]:
        """Samples of each device, shape [devices]."""
        return np.array([len(rows) for rows in self.rows], dtype=np.int64)

    @property
    def active(self) -> NDArray[np.int64]:
        """Devices that take part, by number."""
        return np.flatnonzero(np.asarray(self.decision["selected"]) > 0.5)


class World(Protocol):
    """What gives every round its scene, the same whenever it is asked."""

    def scene(self, round_: int) -> Scene:
        """Return the scene of a round, counted from 1."""
        ...

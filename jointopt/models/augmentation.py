"""Synthetic samples: how many a level asks for, what they cost, how skewed the data are left (theory 2a, 2b [D]).

A level fills every class of a device up to ceil(level x its largest class): 0 adds nothing, 1 makes all classes as
large as the largest. Counts are whole numbers, so these functions are for NumPy.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = [
    "augmented_counts",
    "data_gap",
    "generation_delay",
    "generation_energy",
    "levels",
    "local_gap",
]

Array = Any
FloatArray = npt.NDArray[np.float64]

_ROUNDING = 1e-9
"""Levels are quotients of whole numbers: what lies this little above one is it."""


def augmented_counts(class_counts: FloatArray, level: npt.ArrayLike) -> FloatArray:
    """Return the samples of each class after augmentation, N_{u,c} + d_{u,c} (2a [S]).

    Parameters
    ----------
    class_counts : array, shape [devices, classes]
        Real samples N_{u,c}.
    level : array, shape [..., devices] or [..., 1]
        Augmentation level theta, from 0 to 1.

    Returns
    -------
    array, shape [..., devices, classes]
    """
    counts = np.asarray(class_counts, dtype=np.float64)
    share = np.asarray(level, dtype=np.float64)
    filled = np.ceil(share * counts.max(axis=1) - _ROUNDING)
    return np.maximum(counts, filled[..., None])


def levels(class_counts: FloatArray, low: float = 0.0, high: float = 1.0) -> FloatArray:
    """Return the least level of each distinct outcome of `augmented_counts` between two ends, in order.

    All devices at one level: the counts change where level x largest class of some device passes a whole number.
    """
    counts = np.asarray(class_counts, dtype=np.float64)
    # beyond k/m a device of largest class m is filled up to k + 1: that adds something unless all classes have as many
    pairs = np.unique(np.stack([counts.max(axis=1), counts.min(axis=1)], axis=1), axis=0)
    steps = [
        np.arange(max(least, np.ceil(low * most - _ROUNDING)), min(most, np.ceil(high * most - _ROUNDING))) / most
        for most, least in pairs
    ]
    turns = np.unique(np.concatenate(steps))
    if turns.size == 0:
        return np.array([low])
    # quotients that are equal but for rounding
    turns = turns[np.concatenate([[True], np.diff(turns) > _ROUNDING / counts.max()])]
    # what holds just after a turn holds up to the next one
    return np.concatenate([[low], turns[1:], [high]]) + 0.0


def local_gap(
    class_counts: FloatArray, counts: FloatArray, class_mix: FloatArray, gradient_bound: float, synthetic_gap: float
) -> FloatArray:
    """Return Z_u = G ||P_u - mix||_1 + eps_g d_u/N'_u >= ||grad F'_u - grad F|| (2b [D]), shape [..., devices].

    `counts` are those after augmentation, shape [..., devices, classes]; P_u is their class mix.
    """
    held = counts.sum(axis=-1)
    skew = np.abs(counts / held[..., None] - class_mix).sum(axis=-1)
    return np.asarray(gradient_bound * skew + synthetic_gap * (1.0 - class_counts.sum(axis=-1) / held))


def data_gap(
    class_counts: FloatArray, counts: FloatArray, class_mix: FloatArray, gradient_bound: float, synthetic_gap: float
) -> FloatArray:
    """Return b_dat = G ||sum pi'_u P_u - mix||_1 + eps_g d/N' (2b [D]), shape [...]; arguments as of `local_gap`."""
    every = counts.sum(axis=-2)
    total = every.sum(axis=-1)
    skew = np.abs(every / total[..., None] - class_mix).sum(axis=-1)
    return np.asarray(gradient_bound * skew + synthetic_gap * (1.0 - class_counts.sum() / total))


def generation_energy(cycles: Array, frequency: Array, capacitance: Array) -> Array:
    """Energy to make a synthetic sample [J], k_c f^2 c_gen (2a [D])."""
    return capacitance * frequency**2 * cycles


def generation_delay(cycles: Array, frequency: Array) -> Array:
    """Time to make a synthetic sample [s], c_gen / f (2a [D])."""
    return cycles / frequency

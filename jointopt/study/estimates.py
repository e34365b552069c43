"""Means of what a warm-up showed, with intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls
from scipy.stats import t as student

from jointopt.errors import DataError, InputError
from jointopt.federated.generalization import GradientGaps, measure_gradient_gaps
from jointopt.federated.task import Losses, Task
from jointopt.federated.threads import torch_threads
from jointopt.pruning import Pruner
from jointopt.pruning.speed import measure_speedup
from jointopt.study.walk import NOISES, Walk
from jointopt.system import FloatArray

__all__ = ["MEANINGS", "Estimate", "bootstrap", "compute_floor", "generalization_estimates"]

MEANINGS = {
    "initial_gap": "F at the start",
    "dense_gradient": "||grad F||^2, mean over the rounds of the warm-up",
    "smoothness": "L: ||grad F_u(w) - grad F_u(m w)|| / ||w - m w||",
    "weight_norm_squared": "D^2: ||w||^2 of the prunable weights",
    "mask_energy": "M^2: ||(1 - m) grad F_u||^2 / ratio",
    "gradient_offset": "zeta_1 of ||grad F_u||^2 = zeta_1 + zeta_2 ||grad F||^2, regressed, at least 0",
    "gradient_slope": "zeta_2 of the same",
    "gradient_variance": "sigma^2: variance of one sample's gradient",
    "quantizer_range": "Delta_u that makes the law of quantization error the measured one, by device",
    "removed": "share of ||w||^2 that pruning removes, by ratio",
    "pruning_error_device": "||grad F_u(w) - m grad F_u(m w)||^2, by ratio",
    "pruning_error_round": "||grad F(w) - sum pi_u m grad F_u(m w)||^2, by ratio",
    "curvature": "n^T H n / ||n||^2 of the noise n, by " + ", ".join(NOISES),
    "transmission": "a, b: lost packets of rate q add q (a + b ||grad F||^2) to the squared error of the mean",
    "gradient_proxy": "sigma_g^2 of the generalization gap, by device",
    "mutual_information": "I of the generalization gap [nat], by device",
    "compute_floor": "share of a step's time that pruning never saves",
}
"""What each estimate is."""

_REPEATS = 5


@dataclass(frozen=True, eq=False)
class Estimate:
    """A mean, a number or an array, and the ends of its interval, of the same shape."""

    value: Any
    low: Any
    high: Any

    def to_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return {name: np.asarray(getattr(self, name)).tolist() for name in ("value", "low", "high")}

    @classmethod
    def read_all(cls, data: Any, walk: Walk, where: str) -> dict[str, Self]:
        """Read estimates by name; `DataError` where one is unknown, missing or damaged."""
        if not isinstance(data, Mapping):
            raise DataError(f"{where}: expected a table, found {data!r}")
        shapes = _shapes(walk)
        for name in data:
            if name not in shapes:
                raise DataError(f"{where}: unknown '{name}'")
        optional = ("gradient_proxy", "mutual_information", "compute_floor")
        for name in shapes:
            if name not in data and name not in optional:
                raise DataError(f"{where}: '{name}' is missing")
        if ("gradient_proxy" in data) != ("mutual_information" in data):
            raise DataError(f"{where}: holds only one of 'gradient_proxy' and 'mutual_information'")
        return {name: cls._read(data[name], shapes[name], f"{where}.{name}") for name in data}

    @classmethod
    def _read(cls, data: Any, shape: tuple[int, ...], where: str) -> Self:
        if not isinstance(data, Mapping) or set(data) != {"value", "low", "high"}:
            raise DataError(f"{where}: expected value, low and high, found {data!r}")
        parts: dict[str, Any] = {}
        for name, given in data.items():
            try:
                array = np.array(given, dtype=np.float64)
            except (TypeError, ValueError):
                raise DataError(f"{where}.{name}: holds something else than numbers") from None
            if array.shape != shape or not np.all(np.isfinite(array)):
                raise DataError(f"{where}.{name}: expected finite numbers of shape {shape}, found {given!r}")
            parts[name] = array if shape else float(array)
        if np.any(parts["low"] > parts["high"]):
            raise DataError(f"{where}: low is above high")
        return cls(**parts)


def _shapes(walk: Walk) -> dict[str, tuple[int, ...]]:
    users, ratios = (len(walk.weight),), (len(walk.ratios),)
    special = {
        "quantizer_range": users,
        "removed": ratios,
        "pruning_error_device": ratios,
        "pruning_error_round": ratios,
        "curvature": (len(NOISES),),
        "transmission": (2,),
        "gradient_proxy": users,
        "mutual_information": users,
    }
    return {name: special.get(name, ()) for name in MEANINGS}


def _line(x: FloatArray, y: FloatArray, weight: FloatArray) -> FloatArray:
    """Offset and slope, at least 0, of a weighted least-squares line; x is at least 0."""
    size = float(np.max(x)) or 1.0
    root = np.sqrt(weight)
    found, _ = nnls(np.stack([root, root * x / size], axis=1), root * y)
    return np.array([found[0], found[1] / size])


def _means(
    walk: Walk, squared_range: FloatArray, rounds: NDArray[np.int64], points: NDArray[np.int64], who: NDArray[np.int64]
) -> dict[str, Any]:
    """All means over some rounds, points and devices by number, which may come more than once."""
    weight = walk.weight[who] / walk.weight[who].sum()

    def by_device(values: FloatArray) -> Any:
        """Mean over points [P, ..., U] and devices; what lies between stays."""
        return values[points][..., who].mean(axis=0) @ weight

    removed = walk.steepness > 0.0
    square = walk.square[walk.at.astype(np.int64)]
    rows = np.broadcast_to(square[points, None], (len(points), len(who)))
    regressed = _line(rows.ravel(), walk.dense[points][:, who].ravel(), np.tile(weight, len(points)))
    # without its ends 1/sum(weight) the mean over devices of pi_u x is what counts in sum pi_u^2 x_u q
    lost = walk.apart @ walk.weight**2
    steep = np.maximum(walk.curvature, 0.0)
    return {
        "initial_gap": float(walk.loss[0]),
        "dense_gradient": float(walk.square[rounds].mean()),
        "smoothness": float(by_device(walk.steepness).sum() / max(by_device(removed.astype(np.float64)).sum(), 1e-300)),
        "weight_norm_squared": float(walk.norm[points].mean()),
        "mask_energy": float(by_device(walk.hidden / walk.ratios[:, None]).mean()),
        "gradient_offset": float(regressed[0]),
        "gradient_slope": float(regressed[1]),
        "gradient_variance": float(by_device(walk.variance)),
        "quantizer_range": np.sqrt(squared_range[points].mean(axis=0)),
        "removed": walk.removed[points].mean(axis=0),
        "pruning_error_device": by_device(walk.error),
        "pruning_error_round": walk.bias[points].mean(axis=0),
        "curvature": steep[points].mean(axis=0),
        "transmission": _line(square[points], lost[points], np.ones(len(points))),
    }


def bootstrap(walk: Walk, squared_range: FloatArray, confidence: float, draws: int, seed: int) -> dict[str, Estimate]:
    """Return means along a warm-up with percentile intervals over observed rounds and devices.

    Parameters
    ----------
    walk : Walk
        The warm-up.
    squared_range : array [P, U]
        Squared effective range of the quantizer.
    confidence : float
        Of the intervals.
    draws, seed : int
        Of the bootstrap.
    """
    sizes = walk.rounds, len(walk.at), len(walk.weight)
    whole = _means(walk, squared_range, *(np.arange(size) for size in sizes))
    rng = np.random.default_rng([seed, 2])
    again = [_means(walk, squared_range, *(rng.integers(size, size=size) for size in sizes)) for _ in range(draws)]
    ends = 50.0 * (1.0 - confidence), 50.0 * (1.0 + confidence)
    out = {}
    for name, value in whole.items():
        low, high = np.percentile(np.array([one[name] for one in again]), ends, axis=0)
        plain = np.ndim(value) == 0
        out[name] = Estimate(value, float(low) if plain else low, float(high) if plain else high)
    return out


def generalization_estimates(
    task: Task, rounds: int, learning_rate: float, seed: int, confidence: float, draws: int
) -> dict[str, Estimate]:
    """Return sigma_g^2 and I of each client; intervals from gaps drawn anew with their measured error.

    Raises
    ------
    InputError
        As `jointopt.federated.measure_gradient_gaps`, and for a network with running statistics.
    """
    if Losses(task).layout.buffer_size:
        raise InputError(
            "calibrate: generalization needs gradients of single samples, which a network with running statistics has "
            "not"
        )
    gaps = measure_gradient_gaps(task, rounds=min(rounds, 10), learning_rate=learning_rate, seed=seed, threads=None)
    rng = np.random.default_rng([seed, 3])
    fitted = gaps.generalization()
    again = []
    for _ in range(draws):
        changes = {**vars(gaps), "gap": gaps.gap + gaps.error * rng.standard_normal(gaps.gap.shape)}
        again.append(GradientGaps(**changes).generalization())
    ends = 50.0 * (1.0 - confidence), 50.0 * (1.0 + confidence)
    return {
        name: Estimate(fitted[name], *np.percentile(np.array([one[name] for one in again]), ends, axis=0))
        for name in ("gradient_proxy", "mutual_information")
    }


def compute_floor(task: Task, pruner: Pruner, seed: int, confidence: float) -> Estimate:
    """Return the share of a training step's time that pruning never saves, with a t-interval over repeats."""
    import time

    losses = Losses(task)
    size = task.batch_size or min(64, len(losses.labels))
    inputs, labels = losses.inputs[:size], losses.labels[:size]
    groups = pruner.groups(task.module, inputs[:1])
    with torch_threads(1):  # the time of a process with several threads is not that of a step
        floors = [
            measure_speedup(
                task.module, inputs, labels, task.loss, groups, seed=seed + number, clock=time.process_time
            ).floor
            for number in range(_REPEATS)
        ]
    mean, spread = float(np.mean(floors)), float(np.std(floors, ddof=1))
    half = float(student.ppf(0.5 + 0.5 * confidence, _REPEATS - 1)) * spread / math.sqrt(_REPEATS)
    return Estimate(mean, max(0.0, mean - half), min(1.0, mean + half))

"""Observations along a warm-up, as arrays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np

from jointopt.errors import DataError
from jointopt.system import FloatArray

__all__ = ["NOISES", "Walk"]

NOISES = ("quantization", "sampling", "transmission")
"""The errors of a round that have mean zero: quantizer, batches, and lost packets."""


@dataclass(frozen=True, eq=False)
class Walk:
    """Observations along a dense warm-up of W rounds, looked at P points, for R ratios, B widths and U devices.

    Attributes
    ----------
    weight : array [U]
        Share of all samples, pi_u.
    samples : array [U]
        Samples of each device (those of the task, of which fewer may have been looked at).
    loss, square : arrays [W + 1]
        F and ||grad F||^2 after each round.
    at : array [P]
        Rounds after which the rest was observed.
    ratios : array [R]
        Pruning ratios achieved, rising.
    bits : array [B]
        Widths.
    removed : array [P, R]
        Share of the squared norm of the prunable weights that pruning removes.
    bias : array [P, R]
        ||grad F(w) - sum_u pi_u m * grad F_u(m * w)||^2, of all devices together.
    error : array [P, R, U]
        ||grad F_u(w) - m * grad F_u(m * w)||^2.
    progress : array [P, R, U]
        <grad F(w), m * grad F_u(m * w)>.
    hidden : array [P, R, U]
        ||(1 - m) * grad F_u(w)||^2.
    steepness : array [P, R, U]
        ||grad F_u(w) - grad F_u(m * w)|| / ||w - m * w||, 0 where nothing was removed.
    moved : array [P, U]
        The same for this point and the one before, 0 at the first.
    norm : array [P]
        ||w||^2 over the prunable weights.
    dense : array [P, U]
        ||grad F_u||^2.
    apart : array [P, U]
        ||grad F_u - grad F||^2.
    aligned : array [P, U]
        <grad F, grad F_u>.
    span : array [P, U]
        Largest minus smallest entry of what is quantized, at the dense model and at the pruned ones.
    quantized : array [P, B, U]
        Mean squared error of the quantizer, summed over the entries of a dense payload.
    variance : array [P, U]
        Variance of one sample's gradient, from one batch.
    curvature : array [P, 3]
        n^T H n / ||n||^2 for the noise n of `NOISES` in the mean over devices, H being the Hessian of F; 0 where there
        is none.
    bending : array [P, 3]
        ||H n||^2 / ||n||^2 of the same noise: how far it turns the gradient.
    """

    weight: FloatArray
    samples: FloatArray
    loss: FloatArray
    square: FloatArray
    at: FloatArray
    ratios: FloatArray
    bits: FloatArray
    removed: FloatArray
    bias: FloatArray
    error: FloatArray
    progress: FloatArray
    hidden: FloatArray
    steepness: FloatArray
    moved: FloatArray
    norm: FloatArray
    dense: FloatArray
    apart: FloatArray
    aligned: FloatArray
    span: FloatArray
    quantized: FloatArray
    variance: FloatArray
    curvature: FloatArray
    bending: FloatArray

    @property
    def rounds(self) -> int:
        """Rounds of the warm-up, W."""
        return len(self.loss) - 1

    def to_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return {one.name: getattr(self, one.name).tolist() for one in fields(self)}

    @classmethod
    def from_dict(cls, data: Any, where: str) -> Self:
        """Read what `to_dict` returned; `DataError` where it is something else."""
        names = [one.name for one in fields(cls)]
        if not isinstance(data, Mapping) or set(data) != set(names):
            found = sorted(map(str, data)) if isinstance(data, Mapping) else data
            raise DataError(f"{where}: expected {', '.join(names)}, found {found!r}")
        arrays: dict[str, FloatArray] = {}
        for name in names:
            try:
                arrays[name] = np.array(data[name], dtype=np.float64)
            except (TypeError, ValueError):
                raise DataError(f"{where}.{name}: holds something else than numbers") from None
        sizes = {"P": len(arrays["at"]), "R": len(arrays["ratios"]), "B": len(arrays["bits"])}
        sizes |= {"U": len(arrays["weight"]), "W": len(arrays["loss"]), "N": len(NOISES)}
        for name, axes in _AXES.items():
            wanted = tuple(sizes[axis] for axis in axes)
            if arrays[name].shape != wanted:
                raise DataError(f"{where}.{name}: expected shape {wanted}, found {arrays[name].shape}")
            if not np.all(np.isfinite(arrays[name])):
                raise DataError(f"{where}.{name}: must be finite")
        return cls(**arrays)


_AXES = {
    "weight": "U",
    "samples": "U",
    "loss": "W",
    "square": "W",
    "at": "P",
    "ratios": "R",
    "bits": "B",
    "removed": "PR",
    "bias": "PR",
    "error": "PRU",
    "progress": "PRU",
    "hidden": "PRU",
    "steepness": "PRU",
    "moved": "PU",
    "norm": "P",
    "dense": "PU",
    "apart": "PU",
    "aligned": "PU",
    "span": "PU",
    "quantized": "PBU",
    "variance": "PU",
    "curvature": "PN",
    "bending": "PN",
}

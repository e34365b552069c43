"""Pruning and quantization: what is kept, what travels, what error remains (theory L0, L1, L1').

`pruning_ratio` is the fraction of prunable weights removed, everywhere.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from jointopt.errors import InputError, nearest
from jointopt.models._array import as_array, is_foreign, namespace
from jointopt.models.curve import ConvexCurve
from jointopt.models.special import Elementary

__all__ = [
    "PruningLaw",
    "affine_floor",
    "channel_ratio",
    "compute_factor",
    "index_bits",
    "kept_parameters",
    "level_bits",
    "memory_factor",
    "payload_bits",
    "pruning_error",
    "pruning_error_l1",
    "pruning_error_slope",
    "pruning_ratio_at_slope",
    "qsgd_factor",
    "quantization_variance",
]

Array = Any

PruningLaw = Literal["linear", "laplace"] | ConvexCurve
"""Law of `pruning_error`: by name, or measured (`Bound.pruning_law` of a system)."""


def kept_parameters(pruning_ratio: Array, parameters: Array) -> Array:
    """Weights kept, V - floor(ratio x V), with quotients within rounding of a whole number taken as whole (L1)."""
    xp = namespace(pruning_ratio)
    removed = as_array(pruning_ratio * parameters, xp)
    # 1e-9, or four roundings of the product where a float64 near it is coarser than that
    tolerance = xp.maximum(xp.full_like(removed, 1e-9), 4.0 * np.finfo(np.float64).eps * removed)
    return parameters - xp.floor(removed + tolerance)


def channel_ratio(pruning_ratio: Array) -> Array:
    """Fraction of channels to remove on both sides of a layer so that `pruning_ratio` of its weights go."""
    return 1.0 - (1.0 - pruning_ratio) ** 0.5


def compute_factor(
    pruning_ratio: Array, law: Literal["linear", "mask", "affine"] = "linear", floor: float | None = None
) -> Array:
    """Share of the dense model's cycles left after pruning.

    Parameters
    ----------
    pruning_ratio : array, any shape
        Fraction of prunable weights removed.
    law : {"linear", "mask", "affine"}
        ``"linear"``: 1 - ratio (literature; true for removed channels); ``"mask"``: 1; ``"affine"``:
        floor + (1 - floor) (1 - ratio), of which the others are the ends.
    floor : float, optional
        Share of the cycles that pruning never removes, from 0 to 1; for ``"affine"`` only.

    Raises
    ------
    InputError
        For an unknown law, or ``"affine"`` without its floor.
    """
    if law == "mask":
        return pruning_ratio * 0.0 + 1.0
    if law == "linear":
        return 1.0 - pruning_ratio
    if law != "affine":
        raise InputError(f"law: unknown '{law}'{nearest(str(law), ['linear', 'mask', 'affine'])}")
    if floor is None:
        raise InputError("law: 'affine' needs its floor; a system's own is applied by learner.compute_factor(ratio)")
    return floor + (1.0 - floor) * (1.0 - pruning_ratio)


def affine_floor(pruning_ratio: npt.ArrayLike, factor: npt.ArrayLike) -> float:
    """Return the least floor whose affine law of `compute_factor` lies on or above all measured factors.

    Parameters
    ----------
    pruning_ratio : array, shape [points]
        Fractions of prunable weights removed, from 0 to 1.
    factor : array, shape [points]
        Cycles (or times) of a training step measured there, over those of the dense model. At ratio 0 every law says 1.

    Returns
    -------
    float
        From 0 to 1. Factors below 1 - ratio ask for a floor of 0.

    Raises
    ------
    InputError
        For nothing at all, different lengths, numbers out of range, or a factor above 1: pruning that makes a step
        slower has no affine law from 1 down.
    """
    try:
        ratio, measured = (np.asarray(values, dtype=np.float64) for values in (pruning_ratio, factor))
    except (TypeError, ValueError):
        raise InputError(f"affine_floor: expected numbers, got {pruning_ratio!r} and {factor!r}") from None
    if ratio.ndim != 1 or ratio.size == 0 or ratio.shape != measured.shape:
        raise InputError(
            f"affine_floor: needs as many ratios as factors, got shapes {ratio.shape} and {measured.shape}"
        )
    for values, name, most in ((ratio, "pruning_ratio", 1.0), (measured, "factor", 1.0 + 1e-12)):
        if np.any(bad := ~((values >= 0.0) & (values <= most))):
            i = int(np.argmax(bad))
            raise InputError(f"{name}[point {i}]: {float(values[i])!r} must be within 0 and 1")
    pruned = ratio > 0.0
    # floor + (1 - floor)(1 - ratio) = 1 - (1 - floor) ratio
    asked = 1.0 - (1.0 - measured[pruned]) / ratio[pruned]
    return float(np.clip(np.max(asked, initial=0.0), 0.0, 1.0))


def memory_factor(pruning_ratio: Array, law: Literal["linear", "channels", "mask"] = "linear") -> Array:
    """Share of the dense model's activations left: 1 - ratio, its root for channels, 1 for a mask."""
    if law == "mask":
        return pruning_ratio * 0.0 + 1.0
    kept = 1.0 - pruning_ratio
    return kept**0.5 if law == "channels" else kept


def index_bits(parameters: int, encoding: Literal["none", "bitmap", "indices"] = "none") -> tuple[float, float]:
    """Bits that say which weights are kept: (per kept weight, once per payload)."""
    if encoding == "bitmap":
        return 0.0, float(parameters)
    if encoding == "indices":
        return float(math.ceil(math.log2(parameters))) if parameters > 1 else 1.0, 0.0
    return 0.0, 0.0


def payload_bits(
    kept: Array,
    bits: Array,
    *,
    unpruned: Array = 0.0,
    header: Array = 0.0,
    index_per_weight: Array = 0.0,
    index_once: Array = 0.0,
) -> Array:
    """Bits of one upload: kept x (bits + index) + unpruned x bits + header + mask (theory 1a, L_u)."""
    return kept * (bits + index_per_weight) + unpruned * bits + header + index_once


def pruning_error(pruning_ratio: Array, law: PruningLaw = "linear") -> Array:
    """Share of ||w||^2 removed by magnitude pruning (L0 [D]).

    ``"linear"``: the ratio, a bound for any weights. ``"laplace"``: phi = 1 - (1-r)(1 + x + x^2/2) with
    x = -ln(1-r), exact for Laplace weights, convex and never above the ratio. A `ConvexCurve`: measured.

    Raises
    ------
    InputError
        For an unknown law, or a name in place of a measured curve.
    """
    if isinstance(law, ConvexCurve):
        return law(pruning_ratio)
    if law == "linear":
        return pruning_ratio * 1.0
    _known(law)
    # elsewhere than in float64 the series would be too short, and its switch undecided
    return _LAPLACE(pruning_ratio) if is_foreign(pruning_ratio) else _laplace_error(pruning_ratio)


def _known(law: Any) -> None:
    """Refuse a law that is no name of one."""
    if law == "measured":
        raise InputError("law: 'measured' needs its curve; a system's own is bound.pruning_law")
    if law not in ("linear", "laplace"):
        raise InputError(f"law: unknown '{law}'{nearest(str(law), ['linear', 'laplace'])}")


def _laplace_error(pruning_ratio: Array) -> Array:
    xp = namespace(pruning_ratio)
    x = -xp.log1p(-pruning_ratio)
    # 1 - e^-x (1 + x + x^2/2) cancels below x = 0.05, where its series x^3/6 - x^4/8 + ... is used.
    series = x**3 * (1 / 6 - x * (1 / 8 - x * (1 / 20 - x * (1 / 72 - x * (1 / 336 - x * (1 / 1920 - x / 12960))))))
    return xp.where(x < 0.05, series, 1.0 - (1.0 - pruning_ratio) * (1.0 + x + 0.5 * x * x))


def pruning_error_slope(pruning_ratio: Array, law: PruningLaw = "linear") -> Array:
    """Derivative of `pruning_error` in the ratio: 1, ln(1-r)^2 / 2, or that of a curve on the right."""
    if isinstance(law, ConvexCurve):
        return law.slope(pruning_ratio)
    if law == "linear":
        return pruning_ratio * 0.0 + 1.0
    _known(law)
    return 0.5 * namespace(pruning_ratio).log1p(-pruning_ratio) ** 2


def pruning_ratio_at_slope(slope: Array, law: PruningLaw = "laplace") -> Array:
    """Ratio at which the slope of `pruning_error` reaches one of at least 0, where error - slope x ratio is least.

    1 - e^-sqrt(2 slope) for Laplace weights; the least such corner of a curve, inf where it is never so steep. The
    linear law has one slope, hence no such ratio.
    """
    if isinstance(law, ConvexCurve):
        return law.at_slope(slope)
    if law == "linear":
        raise InputError("law: 'linear' has the same slope at every ratio")
    _known(law)
    return -np.expm1(-np.sqrt(2.0 * slope))


# its slope ln(1-r)^2 / 2 is never negative and least at 0
_LAPLACE = Elementary(
    "laplace_pruning_error",
    lambda r: np.where(r == 1.0, 1.0, _laplace_error(r)),
    lambda r: pruning_error_slope(r, "laplace"),
    monotone=1,
    slope_monotone=-1,
    lower=-math.inf,
    upper=1.0,
    slope_turn=0.0,
    accuracy=1e-10,  # above the series 1 - (...) loses five digits
    formula=_laplace_error,
)


def pruning_error_l1(pruning_ratio: Array) -> Array:
    """Share of ||w||_1 removed from Laplace weights, psi = r + (1-r) ln(1-r) (L0 [D])."""
    xp = namespace(pruning_ratio)
    return pruning_ratio + (1.0 - pruning_ratio) * xp.log1p(-pruning_ratio)


def quantization_variance(components: Array, value_range: Array, bits: Array) -> Array:
    """Bound n Delta^2 / (4 (2^bits - 1)^2) of the stochastic uniform quantizer's variance (L1 [K])."""
    # expm1 keeps torch derivatives and does not overflow to a wrong value for large widths.
    steps = namespace(bits).expm1(bits * np.log(2.0))
    return components * value_range**2 / (4.0 * steps**2)


def qsgd_factor(components: Array, levels: Array) -> Array:
    """Relative variance omega = min(d/s^2, sqrt(d)/s) of QSGD with s levels on d components (L1' [K])."""
    xp = namespace(components, levels)
    return xp.minimum(as_array(components / levels**2, xp), as_array(components**0.5 / levels, xp))


def level_bits(levels: Array) -> Array:
    """Bits per component of QSGD with s levels, with sign: ceil(log2(s + 1)) + 1 (5a [D])."""
    xp = namespace(levels)
    bits = xp.ceil(xp.log2(levels + 1.0))
    # logarithms may be off in the last digit, powers of two are not
    return xp.where(levels + 1.0 <= 2.0 ** (bits - 1.0), bits - 1.0, bits) + 1.0

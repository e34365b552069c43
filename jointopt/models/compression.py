"""Pruning and quantization: what is kept, what travels, what error remains (theory L0, L1, L1').

`pruning_ratio` is the fraction of prunable weights removed, everywhere.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np

from jointopt.models._array import as_array, is_foreign, namespace
from jointopt.models.special import Elementary

__all__ = [
    "channel_ratio",
    "compute_factor",
    "index_bits",
    "kept_parameters",
    "memory_factor",
    "payload_bits",
    "pruning_error",
    "pruning_error_l1",
    "pruning_error_slope",
    "qsgd_factor",
    "quantization_variance",
]

Array = Any


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


def compute_factor(pruning_ratio: Array, law: Literal["linear", "mask"] = "linear") -> Array:
    """Share of the dense model's cycles left: 1 - ratio (literature; true for removed channels), 1 for a mask."""
    if law == "mask":
        return pruning_ratio * 0.0 + 1.0
    return 1.0 - pruning_ratio


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


def pruning_error(pruning_ratio: Array, law: Literal["linear", "laplace"] = "linear") -> Array:
    """Share of ||w||^2 removed by magnitude pruning (L0 [D]).

    ``"linear"``: the ratio, a bound for any weights. ``"laplace"``: phi = 1 - (1-r)(1 + x + x^2/2) with
    x = -ln(1-r), exact for Laplace weights, convex and never above the ratio.
    """
    if law == "linear":
        return pruning_ratio * 1.0
    # elsewhere than in float64 the series would be too short, and its switch undecided
    return _LAPLACE(pruning_ratio) if is_foreign(pruning_ratio) else _laplace_error(pruning_ratio)


def _laplace_error(pruning_ratio: Array) -> Array:
    xp = namespace(pruning_ratio)
    x = -xp.log1p(-pruning_ratio)
    # 1 - e^-x (1 + x + x^2/2) cancels below x = 0.05, where its series x^3/6 - x^4/8 + ... is used.
    series = x**3 * (1 / 6 - x * (1 / 8 - x * (1 / 20 - x * (1 / 72 - x * (1 / 336 - x * (1 / 1920 - x / 12960))))))
    return xp.where(x < 0.05, series, 1.0 - (1.0 - pruning_ratio) * (1.0 + x + 0.5 * x * x))


def pruning_error_slope(pruning_ratio: Array, law: Literal["linear", "laplace"] = "linear") -> Array:
    """Derivative of `pruning_error` in the ratio: 1, or ln(1-r)^2 / 2."""
    if law == "linear":
        return pruning_ratio * 0.0 + 1.0
    return 0.5 * namespace(pruning_ratio).log1p(-pruning_ratio) ** 2


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

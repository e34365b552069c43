"""What pruning a network costs: L1 distortion of its weights and, bounded by it, of its output (theory 4b).

The laws are per weight and in units of 1/lambda, the mean magnitude: divide by lambda for the distortion of Laplace
weights with rate lambda. `pruning_ratio` is the fraction of prunable weights removed.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from jointopt.models._array import as_array, is_foreign, namespace
from jointopt.models.special import Elementary

__all__ = [
    "curve_distortion",
    "curve_ratio",
    "exponential_distortion",
    "exponential_distortion_upper",
    "least_rate_distortion_ratio",
    "magnitude_distortion",
    "magnitude_distortion_slope",
    "mask_entropy",
    "output_distortion",
    "pruned_rate",
    "rate_distortion",
]

Array = Any

_LN2 = float(np.log(2.0))


def magnitude_distortion(pruning_ratio: Array) -> Array:
    """L1 norm that magnitude pruning removes from Laplace weights: psi = r + (1-r) ln(1-r) (4b, L0 [D]).

    The least of all pruners that zero a fraction r and keep the rest exact. Convex and increasing, 0 at 0, 1 at 1.
    """
    # elsewhere than in float64 the series would be too short, and its switch undecided
    return _DISTORTION(pruning_ratio) if is_foreign(pruning_ratio) else _magnitude_distortion(pruning_ratio)


def _magnitude_distortion(pruning_ratio: Array) -> Array:
    xp = namespace(pruning_ratio)
    ratio = as_array(pruning_ratio, xp)
    small = ratio < 0.02
    # the two terms cancel for small ratios, where psi = sum_j r^j / (j (j-1)), j >= 2
    r = xp.where(small, ratio, xp.zeros_like(ratio))
    series = (
        r
        * r
        * (1 / 2 + r * (1 / 6 + r * (1 / 12 + r * (1 / 20 + r * (1 / 30 + r * (1 / 42 + r * (1 / 56 + r / 72)))))))
    )
    kept = 1.0 - ratio
    # (1-r) ln(1-r) -> 0 at r = 1
    inner = xp.where(kept > 0.0, ratio, xp.zeros_like(ratio))
    return xp.where(small, series, ratio + kept * xp.log1p(-inner))


def magnitude_distortion_slope(pruning_ratio: Array) -> Array:
    """Derivative of `magnitude_distortion` in the ratio: -ln(1-r) (4b [D])."""
    return -namespace(pruning_ratio).log1p(-pruning_ratio)


# its slope -ln(1-r) rises through 0 at 0
_DISTORTION = Elementary(
    "laplace_magnitude_distortion",
    _magnitude_distortion,
    magnitude_distortion_slope,
    monotone=-1,
    slope_monotone=1,
    lower=-float("inf"),
    upper=1.0,
    turn=0.0,
    accuracy=1e-11,  # above the series r + (1-r) ln(1-r) loses four digits
    formula=_magnitude_distortion,
)


def mask_entropy(pruning_ratio: Array) -> Array:
    """H_2(r), bits per weight that a mask with a fraction r of zeros needs at least (4b [K])."""
    return _ENTROPY(pruning_ratio) if is_foreign(pruning_ratio) else _mask_entropy(pruning_ratio)


def _mask_entropy(pruning_ratio: Array) -> Array:
    xp = namespace(pruning_ratio)
    ratio = as_array(pruning_ratio, xp)
    inside = (ratio > 0.0) & (ratio < 1.0)
    r = xp.where(inside, ratio, xp.full_like(ratio, 0.5))
    entropy = -(r * xp.log(r) + (1.0 - r) * xp.log1p(-r)) / _LN2
    return xp.where(inside, entropy, xp.zeros_like(ratio))


def _mask_entropy_slope(pruning_ratio: Array) -> Array:
    # 1 - 2r is exact where the slope is near 0
    return namespace(pruning_ratio).log1p((1.0 - 2.0 * pruning_ratio) / pruning_ratio) / _LN2


# concave, greatest at 1/2
_ENTROPY = Elementary(
    "binary_entropy",
    _mask_entropy,
    _mask_entropy_slope,
    monotone=1,
    slope_monotone=-1,
    upper=1.0,
    turn=0.5,
    formula=_mask_entropy,
)


def pruned_rate(pruning_ratio: Array, bits: Array) -> Array:
    """Bits per weight of a pruned model with b bits per kept weight: (1-r) b + H_2(r) (4b [D])."""
    return (1.0 - pruning_ratio) * bits + mask_entropy(pruning_ratio)


def rate_distortion(rate: Array) -> Array:
    """Least L1 distortion of Laplace weights at R bits per weight: 2^-R (4b [D]); times 1/lambda."""
    return namespace(rate).exp(-_LN2 * as_array(rate, namespace(rate)))


def least_rate_distortion_ratio(bits: Array) -> Array:
    """Ratio 1/(1 + 2^b) at which the bound 2^-[(1-r) b + H_2(r)] is least (4d [D]).

    H_2 is concave, so the bound's logarithm is convex: it falls up to this ratio and rises beyond.
    """
    return 1.0 / (1.0 + 2.0 ** as_array(bits, namespace(bits)))


def exponential_distortion(rate: Array) -> Array:
    """Lower bound 1/2^(R+1) on the L1 distortion of exponential magnitudes whose signs are kept (4b [C])."""
    return 0.5 * rate_distortion(rate)


def exponential_distortion_upper(rate: Array) -> Array:
    """Upper bound (sqrt(1 + 4/(2^R - 1)) - 1)/2 for exponential magnitudes (4b [C])."""
    xp = namespace(rate)
    levels = xp.expm1(_LN2 * as_array(rate, xp))
    # sqrt(1+y) - 1 = y / (sqrt(1+y) + 1) does not cancel at high rates
    y = 4.0 / levels
    return 0.5 * y / (xp.sqrt(1.0 + y) + 1.0)


def curve_distortion(pruning_ratio: Array, ratios: Array, distortions: Array) -> Array:
    """Distortion at a ratio on a measured curve, linear between its points (4g); `curve_ratio` inverts it.

    Parameters
    ----------
    pruning_ratio : array
        Ratios within the curve.
    ratios, distortions : arrays, shape [points]
        The curve, both strictly increasing.
    """
    return _interpolate(pruning_ratio, np.asarray(ratios), np.asarray(distortions))


def curve_ratio(distortion: Array, ratios: Array, distortions: Array) -> Array:
    """Ratio at which a measured curve reaches a distortion: the inverse of `curve_distortion`."""
    return _interpolate(distortion, np.asarray(distortions), np.asarray(ratios))


def _interpolate(x: Array, known: Any, values: Any) -> Array:
    xp = namespace(x)
    if hasattr(x, "interpolate"):
        return x.interpolate(known, values)
    x = as_array(x, xp)
    plain = np.asarray(x.detach().cpu() if hasattr(x, "detach") else x)
    piece = np.clip(np.searchsorted(known, plain, side="right") - 1, 0, known.size - 2)
    share = (x - xp.asarray(known[piece])) / xp.asarray(known[piece + 1] - known[piece])
    # weighted ends, not start plus slope: both ends of every piece are met exactly
    return xp.asarray(values[piece]) * (1.0 - share) + xp.asarray(values[piece + 1]) * share


def output_distortion(unit_distortion: Array, amplification: Array, parameters: Array, weight_rate: Array) -> Array:
    """Bound on ||f(x,W) - f(x,W^)||_1: sum over layers of A n d / lambda (4b [C]: proposition III.1).

    Parameters
    ----------
    unit_distortion : array, shape [..., layers] or [..., 1]
        Distortion d per weight in units of 1/lambda.
    amplification, parameters, weight_rate : arrays, shape [layers]
        A^(l), n_l and lambda_l.

    Returns
    -------
    array, shape [...]
        Holds for networks without biases whose activations are 1-Lipschitz with value 0 at 0, for ||x||_1 <= 1.
    """
    xp = namespace(unit_distortion)
    each = xp.asarray(np.asarray(amplification) * np.asarray(parameters) / np.asarray(weight_rate))
    return xp.sum(each * unit_distortion, axis=-1)

"""Convergence bounds (theory L4, 1b).

The gap is "in the manner of" the published one: derived here [D] under assumptions A1 to A4, not quoted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from jointopt.models._array import as_array, namespace
from jointopt.models.compression import quantization_variance

__all__ = ["Gap", "average_gradient_bound", "error_cap", "gap", "optimality_gap"]

Array = Any


@dataclass(frozen=True)
class Gap:
    """The gap Gamma of theory 1b per device, already weighted by pi_u; sums over devices give the total.

    All arrays have shape ``[..., devices]``; `contraction` sums to A, which must stay below 1.
    """

    transmission: Array
    pruning: Array
    quantization: Array
    sampling: Array
    contraction: Array

    @property
    def total(self) -> Array:
        """Gamma per device."""
        return self.transmission + self.pruning + self.quantization + self.sampling


def error_cap(
    *,
    smoothness: Array,
    weight_norm_squared: Array,
    mask_energy: Array,
    pruning_ratio_max: Array,
    pruning_error_max: Array,
    parameters: Array,
    range_max: Array,
    bits_min: Array,
    sampling_variance: Array = 0.0,
) -> Array:
    """E_cap >= every device's squared error (1b [D]): worst ratio, widest range, fewest bits, plus sampling."""
    return (
        smoothness**2 * weight_norm_squared * pruning_error_max
        + mask_energy * pruning_ratio_max
        + quantization_variance(parameters, range_max, bits_min)
        + sampling_variance
    )


def gap(
    *,
    weight: Array,
    packet_error: Array,
    pruning_ratio: Array,
    pruning_error: Array,
    quantization_variance: Array,
    smoothness: Array,
    weight_norm_squared: Array,
    mask_energy: Array,
    gradient_offset: Array,
    gradient_slope: Array,
    error_cap: Array,
    sampling_variance: Array = 0.0,
) -> Gap:
    """Gamma and A of theory 1b [D], with received-normalised aggregation (L3).

    Gamma = sum_u pi_u [(8 zeta1 + 2 E_cap) q_u + 2 (L^2 D^2 e(ratio_u) + M^2 ratio_u) + 2 sigma_Q,u^2
    + 2 sigma_sgd^2 / b_u], A = 8 zeta2 sum_u pi_u q_u. `pruning_error` e is the share of ||w||^2 removed.
    """
    return Gap(
        transmission=weight * (8.0 * gradient_offset + 2.0 * error_cap) * packet_error,
        pruning=weight * 2.0 * (smoothness**2 * weight_norm_squared * pruning_error + mask_energy * pruning_ratio),
        quantization=weight * 2.0 * quantization_variance,
        sampling=weight * 2.0 * sampling_variance + 0.0 * packet_error,
        contraction=weight * 8.0 * gradient_slope * packet_error,
    )


def average_gradient_bound(
    gap: Array, contraction: Array, initial_gap: Array, learning_rate: Array, rounds: Array
) -> Array:
    """Bound (2 Delta0/(eta T) + Gamma)/(1 - A) of the mean ||grad F||^2 (L4a [D]); infinite when A >= 1."""
    xp = namespace(gap, contraction)
    slack = as_array(1.0 - contraction, xp)
    vacuous = slack <= 0.0
    safe = xp.where(vacuous, xp.ones_like(slack), slack)
    value = (2.0 * initial_gap / (learning_rate * rounds) + gap) / safe
    return xp.where(vacuous, xp.full_like(value, float("inf")), value)


def optimality_gap(
    gap: Array,
    contraction: Array,
    initial_gap: Array,
    learning_rate: Array,
    rounds: Array,
    strong_convexity: Array,
) -> Array:
    """Bound c^T Delta0 + Gamma (1-c^T)/(2 mu (1-A)) of F(w^T) - F* under A5, c = 1 - eta mu (1-A) (L4 [D])."""
    shrink = 1.0 - learning_rate * strong_convexity * (1.0 - contraction)
    stationary = gap / (2.0 * strong_convexity * (1.0 - contraction))
    return shrink**rounds * initial_gap + stationary * (1.0 - shrink**rounds)

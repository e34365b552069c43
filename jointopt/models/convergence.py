"""Convergence bounds (theory L4, 1b, 3b).

The gaps are "in the manner of" the published ones: derived here [D] under assumptions A1 to A4, not quoted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from jointopt.models._array import as_array, namespace
from jointopt.models.compression import quantization_variance

__all__ = [
    "Gap",
    "GeneralizationGap",
    "UnbiasedGap",
    "average_gradient_bound",
    "error_cap",
    "gap",
    "generalization_gap",
    "optimality_gap",
    "rounds_to_target",
    "unbiased_gap",
]

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


@dataclass(frozen=True)
class GeneralizationGap:
    """The gap Gamma of theorem 3 (theory 3b), for clients of which only some take part.

    `generalization` and `pruning` have shape ``[..., devices]`` and are weighted by v_k already, 0 where not
    selected; `selection` and `contraction` (A, which must stay below 1) have shape ``[...]``.
    """

    generalization: Array
    pruning: Array
    selection: Array
    contraction: Array

    @property
    def total(self) -> Array:
        """Gamma, shape ``[...]``; infinite where nobody is selected."""
        xp = namespace(self.generalization, self.pruning, self.selection)
        return xp.sum(self.generalization + self.pruning, axis=-1) + self.selection


def generalization_gap(
    *,
    selected: Array,
    samples: Array,
    gradient_gap: Array,
    pruning_ratio: Array,
    pruning_error: Array,
    smoothness: Array,
    weight_norm_squared: Array,
    mask_energy: Array,
    gradient_offset: Array,
    gradient_slope: Array,
) -> GeneralizationGap:
    """Gamma and A of theorem 3 (3b [D]): pruned models, some clients, and how far their samples mislead.

    Gamma = sum_k v_k [4 Phi_k + 4 L^2 D^2 e(r_k) + 2 M^2 r_k] + 8 zeta1 (1 - n_S/n)^2 and
    A = 8 zeta2 (1 - n_S/n)^2, with v_k = a_k n_k / n_S and n_S = sum_k a_k n_k. The error of the round's gradient
    is split into the gap of the masked training gradient (Phi), the change of the gradient by pruning (L^2 D^2 e)
    and what the mask hides (M^2 r), which is orthogonal to the other two, and the clients left out.

    Parameters
    ----------
    selected : array, shape [..., devices]
        a_k: 1 for those who take part, 0 for the others (values between are weighted alike).
    samples : array, shape [devices]
        n_k.
    gradient_gap : array, shape [..., devices]
        Phi_k, see `jointopt.models.generalization.gradient_gap`.
    pruning_ratio, pruning_error : arrays, shape [..., devices]
        r_k, and the share e(r_k) of ||w||^2 that pruning removes.
    smoothness, weight_norm_squared, mask_energy, gradient_offset, gradient_slope : float
        L, D^2, M^2, zeta_1 and zeta_2 (A1 to A4).
    """
    xp = namespace(selected, gradient_gap, pruning_ratio, pruning_error)
    held = as_array(selected * samples, xp)
    there = xp.sum(held, axis=-1)
    nobody = there <= 0.0
    # no 0/0, not even in the branch that is thrown away: torch would differentiate it
    divisor = xp.where(nobody, xp.ones_like(there), there)
    weight = held / divisor[..., None]

    def weighted(error: Array) -> Array:
        error = as_array(error, xp)
        # Whoever is left out counts 0, also with values that make no sense; finite ones keep their derivative in a_k.
        pointless = (weight == 0.0) & ~xp.isfinite(error)
        return weight * xp.where(pointless, xp.zeros_like(error), error)

    everything = xp.sum(held * 0.0 + samples, axis=-1)
    missing = (1.0 - there / everything) ** 2
    selection = 8.0 * gradient_offset * missing
    return GeneralizationGap(
        generalization=weighted(4.0 * gradient_gap),
        pruning=weighted(4.0 * smoothness**2 * weight_norm_squared * pruning_error + 2.0 * mask_energy * pruning_ratio),
        selection=xp.where(nobody, xp.full_like(selection, float("inf")), selection),
        contraction=8.0 * gradient_slope * missing,
    )


@dataclass(frozen=True)
class UnbiasedGap:
    """The gap Gamma of theorem 2 (theory 2b): unbiased aggregation of devices that take part at random.

    `data` has shape ``[...]``, the others ``[..., devices]``; `contraction` sums to A, which must stay below 1.
    """

    data: Array
    pruning: Array
    participation: Array
    quantization: Array
    sampling: Array
    contraction: Array

    @property
    def total(self) -> Array:
        """Gamma, shape ``[...]``."""
        xp = namespace(self.pruning, self.participation)
        parts = self.pruning + self.participation + self.quantization + self.sampling
        return self.data + xp.sum(parts, axis=-1)


def unbiased_gap(
    *,
    weight: Array,
    success: Array,
    pruning_ratio: Array,
    pruning_error: Array,
    quantization_variance: Array,
    sampling_variance: Array,
    local_gap: Array,
    data_gap: Array,
    smoothness: Array,
    weight_norm_squared: Array,
    mask_energy: Array,
    learning_rate: Array,
) -> UnbiasedGap:
    """Gamma and A of theorem 2 (2b [D]): aggregation sum pi_u (alpha_u/s_u) Q_u (L3', L4b), eta <= 1/L.

    Gamma = 2 b_dat^2 + 2 sum pi_u (L^2 D^2 e_u + M^2 r_u) + L eta sum pi_u^2 [((1 - s_u)/s_u)(3 Z_u^2 + 3 L^2 D^2 e_u)
    + (sigma_u^2 + sigma_Q,u^2)/s_u] and A = 3 L eta sum pi_u^2 (1 - s_u)/s_u.

    Parameters
    ----------
    weight : array, shape [..., devices]
        pi_u, the device's share of all samples.
    success : array, shape [..., devices]
        s_u: probability that a device's update counts in a round.
    pruning_ratio, pruning_error : arrays, shape [..., devices]
        r_u, and the share e_u of ||w||^2 removed.
    quantization_variance, sampling_variance : arrays, shape [..., devices]
        sigma_Q,u^2, and the variance of a batch's gradient.
    local_gap : array, shape [..., devices]
        Z_u >= ||grad F'_u - grad F|| (`jointopt.models.augmentation.local_gap`).
    data_gap : array, shape [...]
        b_dat >= ||sum pi_u grad F'_u - grad F||.
    smoothness, weight_norm_squared, mask_energy, learning_rate : float
        L, D^2, M^2 and eta.
    """
    xp = namespace(success, pruning_ratio)
    noise = smoothness * learning_rate * weight**2
    # what never arrives makes A and Gamma infinite, also where it is multiplied by 0
    never = success <= 0.0
    counted = xp.where(never, xp.ones_like(success), success)
    missed = (1.0 - counted) / counted
    removed = smoothness**2 * weight_norm_squared * pruning_error

    def lost(term: Array) -> Array:
        return xp.where(never, xp.full_like(term, float("inf")), term)

    return UnbiasedGap(
        data=2.0 * data_gap**2,
        pruning=2.0 * weight * (removed + mask_energy * pruning_ratio),
        participation=lost(noise * missed * (3.0 * local_gap**2 + 3.0 * removed)),
        quantization=noise * quantization_variance / counted,
        sampling=noise * sampling_variance / counted,
        contraction=lost(3.0 * noise * missed),
    )


def rounds_to_target(gap: Array, contraction: Array, target: Array, initial_gap: Array, learning_rate: Array) -> Array:
    """Rounds T = 2 Delta0/(eta [(1 - A) eps - Gamma]) to a mean ||grad F||^2 of eps (2b [D]); inf where never."""
    xp = namespace(gap, contraction)
    excess = as_array((1.0 - contraction) * target - gap, xp)
    never = excess <= 0.0
    safe = xp.where(never, xp.ones_like(excess), excess)
    value = 2.0 * initial_gap / (learning_rate * safe)
    return xp.where(never, xp.full_like(value, float("inf")), value)


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

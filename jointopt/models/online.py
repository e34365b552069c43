"""Convergence of online federated learning with pruned models and accumulated gradients (theory 5b).

The bound is "in the manner of" the published one: derived here [D] under assumptions A1, A2 and A4, not quoted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from jointopt.models._array import as_array, namespace

__all__ = ["OnlineGap", "online_bound", "online_gap", "online_weights"]

Array = Any


@dataclass(frozen=True)
class OnlineGap:
    """Terms of theorem 5 per device, weighted already; sums over devices give one slot's share of the bound.

    All arrays have shape ``[..., devices]``.
    """

    local: Array
    pruning: Array
    quantization: Array
    sampling: Array
    transmission: Array

    @property
    def total(self) -> Array:
        """All terms together."""
        return self.local + self.pruning + self.quantization + self.sampling + self.transmission


def online_weights(
    weight: Array,
    *,
    smoothness: Array,
    weight_norm_squared: Array,
    mask_energy: Array,
    learning_rate: Array,
    local_steps: Array,
    gradient_energy: Array,
) -> tuple[Array, Array]:
    """Return C_rho = alpha (L^2 D^2 + M^2) and C_omega = 2 L eta K alpha^2 G^2, shape [..., devices] (5g)."""
    pruning = weight * (smoothness**2 * weight_norm_squared + mask_energy)
    return pruning, 2.0 * smoothness * learning_rate * local_steps * weight**2 * gradient_energy


def online_gap(
    *,
    weight: Array,
    pruning_ratio: Array,
    quantization_factor: Array,
    smoothness: Array,
    weight_norm_squared: Array,
    mask_energy: Array,
    learning_rate: Array,
    local_steps: Array,
    gradient_energy: Array,
    gradient_variance: Array = 0.0,
    packet_error: Array = 0.0,
) -> OnlineGap:
    """Return the terms of theorem 5 (5b [D]) in one slot or several.

    sum_u alpha_u [L^2 eta^2 K^2 G^2/3 + (L^2 D^2 + M^2) rho_u] + 2 L eta K sum_u alpha_u^2 [omega_u G^2 + sigma^2/K
    + (q_u/(1 - q_u)) G^2 (1 + omega_u)].

    Parameters
    ----------
    weight : array, shape [..., devices]
        alpha_u, adding up to 1 over the devices that take part.
    pruning_ratio : array, shape [..., devices]
        rho_u.
    quantization_factor : array, shape [..., devices]
        omega_u (`jointopt.models.compression.qsgd_factor`).
    smoothness, weight_norm_squared, mask_energy, learning_rate, local_steps : float
        L, D^2, M^2, eta and K.
    gradient_energy : float
        G^2: bound of the expected squared norm of a masked stochastic gradient.
    gradient_variance : float or array
        sigma^2: variance of a batch's gradient.
    packet_error : float or array
        q_u: probability that an update is lost; those that arrive then count alpha_u/(1 - q_u).
    """
    local = (smoothness * learning_rate * local_steps) ** 2 * gradient_energy / 3.0
    removed, noise = online_weights(
        weight,
        smoothness=smoothness,
        weight_norm_squared=weight_norm_squared,
        mask_energy=mask_energy,
        learning_rate=learning_rate,
        local_steps=local_steps,
        gradient_energy=gradient_energy,
    )
    step = 2.0 * smoothness * learning_rate * weight**2
    return OnlineGap(
        local=weight * local,
        pruning=removed * pruning_ratio,
        quantization=noise * quantization_factor,
        sampling=step * gradient_variance,
        transmission=noise * (packet_error / (1.0 - packet_error)) * (1.0 + quantization_factor),
    )


def online_bound(
    gap: Array,
    *,
    initial_gap: Array,
    drift: Array,
    learning_rate: Array,
    local_steps: Array,
    slots: Array,
    smoothness: Array,
) -> Array:
    """Bound of the mean ||grad F_t(w_t)||^2 over the slots (theorem 5, 5b [D]).

    2 [F_0(w_0) - F_inf + sum V_t]/(eta K T) + mean of the slots' gaps; infinite where eta K > 1/(2 L), beyond which
    the theorem says nothing.

    Parameters
    ----------
    gap : array
        Mean over the slots of the sum over devices of `OnlineGap.total`.
    initial_gap : float
        F_0(w_0) - F_inf.
    drift : float
        sum_t V_t: how far the objective moves under the model, all slots together; 0 for data that stay as they are.
    learning_rate, local_steps, slots, smoothness : float
        eta, K, T and L.
    """
    xp = namespace(gap, initial_gap, drift, learning_rate)
    step = as_array(learning_rate * local_steps, xp)
    value = as_array(2.0 * (initial_gap + drift) / (step * slots) + gap, xp)
    vacuous = step * smoothness > 0.5 * (1.0 + 1e-9)
    return xp.where(vacuous, xp.full_like(value, float("inf")), value)

"""Delay and energy of a training round (theory 1a [D]); SI, vectorised over devices and batches."""

from __future__ import annotations

from typing import Any

__all__ = ["compute_delay", "compute_energy", "cycles", "upload_delay", "upload_energy"]

Array = Any


def cycles(samples: Array, cycles_per_sample: Array, compute_factor: Array = 1.0) -> Array:
    """Processor cycles of a round: `compute_factor` x samples x cycles per sample of the dense model."""
    return compute_factor * samples * cycles_per_sample


def compute_delay(cycles: Array, frequency: Array) -> Array:
    """Time to compute [s], T_cmp = cycles / f (1a)."""
    return cycles / frequency


def compute_energy(cycles: Array, frequency: Array, capacitance: Array) -> Array:
    """Energy to compute [J], E_cmp = k_c f^2 x cycles (1a)."""
    return capacitance * frequency**2 * cycles


def upload_delay(bits: Array, rate: Array) -> Array:
    """Time to send [s], T_com = bits / R (1a)."""
    return bits / rate


def upload_energy(bits: Array, rate: Array, power: Array) -> Array:
    """Energy to send [J], E_com = p x bits / R (1a)."""
    return power * bits / rate

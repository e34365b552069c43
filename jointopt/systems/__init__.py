"""Systems sampled from a seed, ready to solve. Every default is a choice of ours [S] unless it says otherwise."""

from __future__ import annotations

from jointopt.systems.augmented import FEDDPQ_BITS, FEDDPQ_POWER, FEDDPQ_ROOM, feddpq
from jointopt.systems.channels import sionna_gains
from jointopt.systems.draw import CAPACITANCE, HEADER_BITS, MOST_DEVICES, POWER, RAW_BITS
from jointopt.systems.federated import CAPACITANCE_SCALED, FEEL_DELAY, FEEL_ENERGY, NOMINAL_BITS, feel, ltfl
from jointopt.systems.inference import FLOPS_PER_CYCLE, NETWORKS, coinference
from jointopt.systems.presets import AUGMENTED, PRESETS, Augmented, Preset
from jointopt.systems.vehicles import AERIAL_WEIGHT_NORM_SQUARED, aerial

__all__ = [
    "AERIAL_WEIGHT_NORM_SQUARED",
    "AUGMENTED",
    "CAPACITANCE",
    "CAPACITANCE_SCALED",
    "FEDDPQ_BITS",
    "FEDDPQ_POWER",
    "FEDDPQ_ROOM",
    "FEEL_DELAY",
    "FEEL_ENERGY",
    "FLOPS_PER_CYCLE",
    "HEADER_BITS",
    "MOST_DEVICES",
    "NETWORKS",
    "NOMINAL_BITS",
    "POWER",
    "PRESETS",
    "RAW_BITS",
    "Augmented",
    "Preset",
    "aerial",
    "coinference",
    "feddpq",
    "feel",
    "ltfl",
    "sionna_gains",
]

"""Published designs as problems, one file each, and LTFL with shared budgets."""

from __future__ import annotations

from typing import Any

from jointopt.errors import InputError, nearest
from jointopt.problems.aerial import Aerial
from jointopt.problems.aerial_trajectory import AerialTrajectory
from jointopt.problems.coinference import CoInference
from jointopt.problems.coinference_layers import LayerwiseCoInference
from jointopt.problems.feddpq import FedDPQ
from jointopt.problems.feel import FEEL
from jointopt.problems.hierarchical import Hierarchical
from jointopt.problems.ltfl import LTFL
from jointopt.problems.packet import RatioError
from jointopt.problems.pooled import PooledLTFL
from jointopt.problems.spectrum import RatioBandwidth, RatioBandwidthSelection
from jointopt.problems.tiers import TimeTriggered

__all__ = [
    "DESIGNS",
    "FEEL",
    "LTFL",
    "Aerial",
    "AerialTrajectory",
    "CoInference",
    "FedDPQ",
    "Hierarchical",
    "LayerwiseCoInference",
    "PooledLTFL",
    "RatioBandwidth",
    "RatioBandwidthSelection",
    "RatioError",
    "TimeTriggered",
    "get",
]

DESIGNS: dict[str, Any] = {
    "ltfl": LTFL,
    "ltfl-pool": PooledLTFL,
    "feel": FEEL,
    "feddpq": FedDPQ,
    "coinference": CoInference,
    "coinference-layers": LayerwiseCoInference,
    "aerial": Aerial,
    "aerial-trajectory": AerialTrajectory,
    "ratio-bandwidth": RatioBandwidth,
    "ratio-bandwidth-selection": RatioBandwidthSelection,
    "time-triggered": TimeTriggered,
    "ratio-error": RatioError,
    "hierarchical": Hierarchical,
}
"""Designs by the name used on the command line and in files."""


def get(name: str) -> Any:
    """Return the problem class of a design.

    Raises
    ------
    InputError
        For an unknown name, with the nearest known one.
    """
    if name not in DESIGNS:
        raise InputError(f"design: unknown '{name}'{nearest(name, DESIGNS)}")
    return DESIGNS[name]

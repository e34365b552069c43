"""Analytical models: pure functions, vectorised, written once for NumPy and torch."""

from jointopt.models import (
    allocation,
    channel,
    compression,
    convergence,
    cost,
    distortion,
    generalization,
    inference,
    special,
)

__all__ = [
    "allocation",
    "channel",
    "compression",
    "convergence",
    "cost",
    "distortion",
    "generalization",
    "inference",
    "special",
]

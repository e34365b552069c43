"""The physical world: what a scenario is made of, for federated learning and for split inference."""

from __future__ import annotations

from jointopt.system.base import FEASIBILITY_TOLERANCE, FloatArray, Quantity, Scenario, Section
from jointopt.system.federated import Bound, Devices, Generalization, Learner, Radio, System

__all__ = [
    "FEASIBILITY_TOLERANCE",
    "Bound",
    "Devices",
    "FloatArray",
    "Generalization",
    "Learner",
    "Quantity",
    "Radio",
    "Scenario",
    "Section",
    "System",
]

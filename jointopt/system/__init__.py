"""The physical world: what a scenario is made of, for federated learning and for split inference."""

from __future__ import annotations

from jointopt.system.base import FEASIBILITY_TOLERANCE, FloatArray, Quantity, Scenario, Section
from jointopt.system.federated import Bound, Devices, Generalization, Learner, Radio, System
from jointopt.system.inference import InferenceDevices, InferenceSystem, Link, Network, Server

__all__ = [
    "FEASIBILITY_TOLERANCE",
    "Bound",
    "Devices",
    "FloatArray",
    "Generalization",
    "InferenceDevices",
    "InferenceSystem",
    "Learner",
    "Link",
    "Network",
    "Quantity",
    "Radio",
    "Scenario",
    "Section",
    "Server",
    "System",
]

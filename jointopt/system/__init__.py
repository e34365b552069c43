"""The physical world: what a scenario is made of, for federated learning, split inference and learning in the air."""

from __future__ import annotations

from jointopt.system.aerial import AerialSystem, AirLink, Area, Flight, OnlineBound, Sensing, Vehicles
from jointopt.system.augmentation import Augmentation, Target
from jointopt.system.base import FEASIBILITY_TOLERANCE, FloatArray, Quantity, Scenario, Section
from jointopt.system.federated import Bound, Devices, Generalization, Learner, Radio, System
from jointopt.system.inference import InferenceDevices, InferenceSystem, Link, Network, Server
from jointopt.system.relatives import Edges, Tiers, Tradeoff

__all__ = [
    "FEASIBILITY_TOLERANCE",
    "AerialSystem",
    "AirLink",
    "Area",
    "Augmentation",
    "Bound",
    "Devices",
    "Edges",
    "Flight",
    "FloatArray",
    "Generalization",
    "InferenceDevices",
    "InferenceSystem",
    "Learner",
    "Link",
    "Network",
    "OnlineBound",
    "Quantity",
    "Radio",
    "Scenario",
    "Section",
    "Sensing",
    "Server",
    "System",
    "Target",
    "Tiers",
    "Tradeoff",
    "Vehicles",
]

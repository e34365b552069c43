"""Small networks for the simulator, and which of their parameters may be pruned.

All are plain modules that ask their layers for every size, so that channels can be removed from a built one.
"""

from __future__ import annotations

from jointopt.federated.networks.build import NETWORKS, build
from jointopt.federated.networks.counting import count_parameters, prunable
from jointopt.federated.networks.plain import cnn, lenet, mlp
from jointopt.federated.networks.resnet import resnet8, resnet18
from jointopt.federated.networks.transformer import transformer

__all__ = [
    "NETWORKS",
    "build",
    "cnn",
    "count_parameters",
    "lenet",
    "mlp",
    "prunable",
    "resnet8",
    "resnet18",
    "transformer",
]

"""Federated learning: tasks, networks, codecs, simulated training rounds and what they cost."""

from jointopt.federated.generalization import GradientGaps, measure_generalization, measure_gradient_gaps
from jointopt.federated.outcome import Curve, TrainingResult
from jointopt.federated.task import Task
from jointopt.federated.training import train
from jointopt.federated.warmup import measure_constants

__all__ = [
    "Curve",
    "GradientGaps",
    "Task",
    "TrainingResult",
    "measure_constants",
    "measure_generalization",
    "measure_gradient_gaps",
    "train",
]

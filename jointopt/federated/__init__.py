"""Federated learning: tasks, networks, codecs, simulated training rounds and what they cost."""

from jointopt.federated.augmentation import ClassGradientGaps, gradient_gaps, measure_augmentation
from jointopt.federated.generalization import GradientGaps, measure_generalization, measure_gradient_gaps
from jointopt.federated.online import OnlineTask
from jointopt.federated.outcome import Curve, Reached, TrainingResult
from jointopt.federated.task import Task
from jointopt.federated.training import train
from jointopt.federated.warmup import measure_constants

__all__ = [
    "ClassGradientGaps",
    "Curve",
    "GradientGaps",
    "OnlineTask",
    "Reached",
    "Task",
    "TrainingResult",
    "gradient_gaps",
    "measure_augmentation",
    "measure_constants",
    "measure_generalization",
    "measure_gradient_gaps",
    "train",
]

"""Plots: labelled axes with units, one colour per method throughout."""

from jointopt.plot.augmentation import energies_to_target, gradient_gaps, levels
from jointopt.plot.figures import LABELS, accuracy, convergence, decision
from jointopt.plot.fronts import fronts
from jointopt.plot.predictions import calibration, predictions
from jointopt.plot.samples import samples
from jointopt.plot.studies import carried_out, distortion, splits, tradeoff

__all__ = [
    "LABELS",
    "accuracy",
    "calibration",
    "carried_out",
    "convergence",
    "decision",
    "distortion",
    "energies_to_target",
    "fronts",
    "gradient_gaps",
    "levels",
    "predictions",
    "samples",
    "splits",
    "tradeoff",
]

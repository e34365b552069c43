"""Plots: labelled axes with units, one colour per method throughout."""

from jointopt.plot.aerial import class_mixes, online
from jointopt.plot.augmentation import energies_to_target, gradient_gaps, levels
from jointopt.plot.designs import designs
from jointopt.plot.figures import LABELS, accuracy, convergence, decision
from jointopt.plot.flights import animate, flights, save_animation
from jointopt.plot.fronts import fronts
from jointopt.plot.predictions import calibration, predictions
from jointopt.plot.samples import samples
from jointopt.plot.studies import carried_out, distortion, splits, tradeoff

__all__ = [
    "LABELS",
    "accuracy",
    "animate",
    "calibration",
    "carried_out",
    "class_mixes",
    "convergence",
    "decision",
    "designs",
    "distortion",
    "energies_to_target",
    "flights",
    "fronts",
    "gradient_gaps",
    "levels",
    "online",
    "predictions",
    "samples",
    "save_animation",
    "splits",
    "tradeoff",
]

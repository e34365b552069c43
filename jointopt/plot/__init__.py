"""Plots: labelled axes with units, one colour per method throughout."""

from jointopt.plot.figures import LABELS, accuracy, convergence, decision

__all__ = ["LABELS", "accuracy", "convergence", "decision"]

"""Solvers: they know no design, only the structure a problem offers."""

from jointopt.solvers.dispatch import METHODS, methods, solve
from jointopt.solvers.monitor import Progress

__all__ = ["METHODS", "Progress", "methods", "solve"]

"""Solvers: they know no design, only the structure a problem offers."""

from jointopt.solvers.monitor import Progress
from jointopt.solvers.solve import METHODS, methods, solve

__all__ = ["METHODS", "Progress", "methods", "solve"]

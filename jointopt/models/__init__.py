"""Analytical models: pure functions, vectorised, written once for NumPy and torch."""

from jointopt.models import channel, compression, convergence, cost, special

__all__ = ["channel", "compression", "convergence", "cost", "special"]

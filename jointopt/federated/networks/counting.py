"""How many parameters of a network may be pruned."""

from __future__ import annotations

from torch import nn

from jointopt.pruning.layout import Layout, prunable

__all__ = ["count_parameters", "prunable"]


def count_parameters(module: nn.Module) -> tuple[int, int]:
    """Return how many single parameters may be pruned, and how many never are."""
    layout = Layout.of(module)
    return layout.weights, layout.size - layout.weights

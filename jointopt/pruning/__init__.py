"""Pruning: which weights a device leaves out of its model."""

from __future__ import annotations

from jointopt.pruning.magnitude import keep_mask, prune_rank, pruned_count, snap
from jointopt.pruning.pruners import PRUNERS, Pruner, pruner, random_mask

__all__ = ["PRUNERS", "Pruner", "keep_mask", "prune_rank", "pruned_count", "pruner", "random_mask", "snap"]

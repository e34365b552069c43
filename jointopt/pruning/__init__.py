"""Pruning: which weights a device leaves out of its model."""

from __future__ import annotations

from jointopt.pruning import presets as _presets  # noqa: F401 - registers the pruners
from jointopt.pruning import structured as _structured  # noqa: F401 - registers the pruners
from jointopt.pruning.allocate import Allocator, Erk, Global, Ranked, Uniform
from jointopt.pruning.evidence import NEEDS, Batch, Charge, Evidence
from jointopt.pruning.groups import Groups, WeightGroups
from jointopt.pruning.hooks import Hook, HookContext
from jointopt.pruning.layout import Layout
from jointopt.pruning.magnitude import keep_mask, prune_rank, pruned_count, random_mask, snap
from jointopt.pruning.mask import Mask
from jointopt.pruning.pruner import PRUNERS, DistortionCurve, Pruner, pruner, register
from jointopt.pruning.schedules import Schedule
from jointopt.pruning.scores import Score

__all__ = [
    "NEEDS",
    "PRUNERS",
    "Allocator",
    "Batch",
    "Charge",
    "DistortionCurve",
    "Erk",
    "Evidence",
    "Global",
    "Groups",
    "Hook",
    "HookContext",
    "Layout",
    "Mask",
    "Pruner",
    "Ranked",
    "Schedule",
    "Score",
    "Uniform",
    "WeightGroups",
    "keep_mask",
    "prune_rank",
    "pruned_count",
    "pruner",
    "random_mask",
    "register",
    "snap",
]

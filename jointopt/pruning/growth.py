"""Hooks that prune and grow at a fixed density: some kept weights go, as many pruned ones come back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from jointopt.errors import InputError, is_real, is_whole
from jointopt.pruning.evidence import Evidence
from jointopt.pruning.hooks import Hook, HookContext, check_state
from jointopt.pruning.mask import Mask

__all__ = ["ProgressiveGrowth", "Regrow", "progressive_count", "swap"]


def swap(weights: Tensor, mask: Mask, gradient: Tensor, counts: Mapping[str, int]) -> Mask:
    """Drop the smallest kept weights of layers and grow as many pruned ones, those of largest gradient.

    What is dropped may not grow at once. A layer that has fewer pruned weights than asked for swaps only so many; one
    that would be emptied keeps at least one of the old weights.

    Parameters
    ----------
    weights : Tensor, shape [P]
        Their magnitudes decide what is dropped; entries that grow are set to 0 in place.
    mask : Mask
        Of single weights.
    gradient : Tensor, shape [P]
        Its magnitudes decide what grows.
    counts : mapping
        How many to swap, by prunable parameter.
    """
    if mask.groups.granularity != "weight":
        raise InputError(f"regrow: only single weights can grow back, found granularity '{mask.groups.granularity}'")
    keep = mask.keep.clone()
    for entry in mask.groups.layout.layers:
        part = keep[entry.where]
        kept = torch.nonzero(part)[:, 0]
        pruned = torch.nonzero(~part)[:, 0]
        count = min(counts.get(entry.name, 0), len(pruned), len(kept) - 1)
        if count > 0:
            own, slope = weights[entry.where], gradient[entry.where]
            dropped = kept[torch.sort(own[kept].abs(), stable=True).indices[:count]]
            grown = pruned[torch.sort(slope[pruned].abs(), descending=True, stable=True).indices[:count]]
            part[dropped] = False
            part[grown] = True
            own[grown] = 0.0
    return Mask(mask.groups, mask.groups.reduce(keep))


class Regrow(Hook):
    """After each cut, swap a share of the kept weights that falls to 0 (GraNet, Liu et al., 2021).

    The share in round t is ``rate / 2 (1 + cos(pi t / end))``; nothing is swapped from round `end` on. The gradient is
    the devices' dense mean at the server's weights.

    Parameters
    ----------
    rate : float
        Share at the start, in [0, 1].
    end : int, optional
        Round from which on masks stay; None: three quarters of the rounds.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"gradient"})
    regrows: ClassVar[bool] = True

    def __init__(self, rate: float = 0.5, end: int | None = None) -> None:
        if not is_real(rate) or not 0.0 <= rate <= 1.0:
            raise InputError(f"regrow: rate must lie in [0, 1], found {rate!r}")
        if end is not None and (not is_whole(end) or end < 1):
            raise InputError(f"regrow: end must be a whole number of at least 1, found {end!r}")
        self.rate, self.end = float(rate), end

    def on_cut(self, context: HookContext) -> None:
        """Swap weights in the new mask."""
        mask, evidence = _of(context, "regrow")
        end = math.ceil(0.75 * context.rounds) if self.end is None else self.end
        if context.round_ >= end:
            return
        share = 0.5 * self.rate * (1.0 + math.cos(math.pi * context.round_ / end))
        counts = {
            entry.name: math.floor(share * int(torch.count_nonzero(mask.keep[entry.where])))
            for entry in mask.groups.layout.layers
        }
        if any(counts.values()):
            context.new = swap(context.weights, mask, evidence.gradient, counts)


def progressive_count(kept: int, round_: int, stop: int) -> int:
    """Return how many of `kept` weights a layer swaps: ``floor(0.15 (1 + cos(pi round / stop)) kept)``.

    None from round `stop` on. With E steps a round, t / (R_stop E) of the published formula is round / stop.
    """
    if round_ >= stop:
        return 0
    return math.floor(0.15 * (1.0 + math.cos(math.pi * round_ / stop)) * kept)


class ProgressiveGrowth(Hook):
    """Swap weights of one layer at a time, from the last layer to the first and again (FedTiny, 2022).

    Devices send only their largest gradients of pruned weights of that layer.

    Parameters
    ----------
    every : int
        Rounds from one layer to the next.
    stop : int, optional
        Round from which on the mask stays; None: three quarters of the rounds.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"gradient"})
    regrows: ClassVar[bool] = True

    def __init__(self, every: int = 1, stop: int | None = None) -> None:
        for name, value in (("every", every), ("stop", stop)):
            if value is not None and (not is_whole(value) or value < 1):
                raise InputError(f"progressive growth: {name} must be a whole number of at least 1, found {value!r}")
        self.every, self.stop = int(every), stop
        self._turn = 0

    def on_cut(self, context: HookContext) -> None:
        """Swap weights of the layer whose turn it is; the first mask of a run stays as it is."""
        stop = math.ceil(0.75 * context.rounds) if self.stop is None else self.stop
        if context.old is None or context.old.ratio == 0.0 or context.round_ % self.every or context.round_ >= stop:
            return
        mask, evidence = _of(context, "progressive growth")
        layers = mask.groups.layout.layers
        entry = layers[-1 - self._turn % len(layers)]
        self._turn += 1
        count = progressive_count(int(torch.count_nonzero(mask.keep[entry.where])), context.round_, stop)
        where = torch.zeros(mask.groups.layout.size, dtype=torch.bool)
        where[entry.where] = ~mask.keep[entry.where]
        if count and bool(where.any()):
            gradient = evidence.top_gradient(where, count)
            context.new = swap(context.weights, mask, gradient, {entry.name: count})

    def state(self) -> dict[str, Tensor]:
        """Return whose turn it is."""
        return {"turn": torch.tensor(self._turn)}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state` returned."""
        check_state("progressive growth", state, ("turn",))
        self._turn = int(state["turn"])


def _of(context: HookContext, who: str) -> tuple[Mask, Evidence]:
    if context.new is None:
        raise InputError(f"{who}: needs a mask, found None")
    if context.evidence is None:
        raise InputError(f"{who}: needs evidence 'gradient', found none")
    return context.new, context.evidence

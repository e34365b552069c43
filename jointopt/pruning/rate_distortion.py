"""Layer ratios of least total distortion under one budget, by dynamic programming.

The distortion of a layer is the mean squared change of the network's outputs when only that layer is pruned; what
several layers do together is taken as the sum (Xu et al., Efficient joint optimization of layer-adaptive weight
pruning, RD-DP, 2023).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jointopt.errors import InputError, is_whole
from jointopt.pruning.allocate import Allocator, Plan, check_min_keep, floors
from jointopt.pruning.evidence import Evidence
from jointopt.pruning.groups import Groups

__all__ = ["RateDistortion", "least_distortion"]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


def least_distortion(costs: Sequence[FloatArray], sizes: Sequence[IntArray], budget: int) -> list[int]:
    """Choose one option per layer: the least total cost of options that remove at least `budget` in total.

    Exact, whatever the shape of the costs (neither rising nor convex is assumed). Takes layers x options x budget
    steps. Of equal costs the first option found wins, so the choice is deterministic.

    Parameters
    ----------
    costs : sequence of float arrays, shape [options of the layer]
        Cost of each option.
    sizes : sequence of int arrays, of the same shapes
        What each option removes, at least 0.
    budget : int
        What must be removed, at least 0.

    Returns
    -------
    list of int
        The option of each layer.

    Raises
    ------
    InputError
        The largest options together remove less than the budget.
    """
    most = sum(int(np.max(size)) for size in sizes)
    if most < budget:
        raise InputError(f"rd-dp: the layers can lose {most} in all, less than the budget {budget}")
    best = np.full(budget + 1, np.inf)  # least cost of removing at least b so far
    best[0] = 0.0
    chosen: list[IntArray] = []
    for cost, size in zip(costs, sizes, strict=True):
        after = np.full(budget + 1, np.inf)
        choice = np.zeros(budget + 1, dtype=np.int64)
        for option, (price, taken) in enumerate(zip(cost, size, strict=True)):
            # Removing at least b with this option needs at least b - taken before.
            before = best[np.maximum(np.arange(budget + 1) - int(taken), 0)] + price
            better = before < after
            after[better] = before[better]
            choice[better] = option
        best = after
        chosen.append(choice)
    options, left = [], budget
    for choice, size in zip(reversed(chosen), reversed(list(sizes)), strict=True):
        options.append(int(choice[left]))
        left = max(left - int(size[options[-1]]), 0)
    return options[::-1]


@dataclass(frozen=True)
class RateDistortion(Allocator):
    """Ratios per layer by dynamic programming over measured distortion curves.

    Each curve takes `levels` forward passes of every device, once for all ratios. Between its points it is linear.
    The budget is counted in `buckets` parts of the network; what the last part removes too much is given back where
    the curves gain most. Masks of different ratios need not nest, since a layer may be pruned less in a larger budget.

    Parameters
    ----------
    levels : int
        Points of each curve beyond 0, evenly spread up to what the layer can lose.
    buckets : int
        Parts of the budget.
    min_keep : int
        Units that every layer keeps.
    """

    levels: int = 8
    buckets: int = 256
    min_keep: int = 1
    needs: ClassVar[frozenset[str]] = frozenset({"outputs"})
    nested: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for name in ("levels", "buckets"):
            value = getattr(self, name)
            if not is_whole(value) or value < 1:
                raise InputError(f"rd-dp: {name} must be a whole number of at least 1, found {value!r}")
        check_min_keep("rd-dp", self.min_keep)

    def plan(self, scores: Tensor, groups: Groups, evidence: Evidence | None = None) -> Plan:
        """Measure the curves."""
        if evidence is None:
            raise InputError("rd-dp: needs evidence 'outputs', found none")
        return _Curves(scores, groups, evidence, self)


class _Curves(Plan):
    """Per layer: its units in the order of leaving, the weights they take, and the measured curve."""

    in_weights = True

    def __init__(self, scores: Tensor, groups: Groups, evidence: Evidence, rule: RateDistortion) -> None:
        self._groups = groups
        self._rule = rule
        floor = floors(scores, groups, rule.min_keep).tolist()
        sizes = groups.sizes()
        self._orders: list[Tensor] = []
        self._taken: list[IntArray] = []  # weights of the first c units, c = 0 .. most that may go
        self._errors: list[FloatArray] = []  # distortion of removing the first c units
        self._gone: list[int] = []
        for layer, least in enumerate(floor):
            members = torch.nonzero(groups.layer == layer)[:, 0]
            order = members[torch.sort(scores[members], stable=True).indices]
            order = order[: len(order) - least]
            self._orders.append(order)
            self._taken.append(np.concatenate([[0], np.cumsum(sizes[order].numpy())]).astype(np.int64))
            self._gone.append(int(torch.count_nonzero(scores[members] == -torch.inf)))
            self._errors.append(self._measured(order, self._gone[-1], evidence))
        self.most = sum(int(taken[-1]) for taken in self._taken)

    def _measured(self, order: Tensor, gone: int, evidence: Evidence) -> FloatArray:
        most = len(order)
        points = np.unique(np.round(np.linspace(gone, most, self._rule.levels + 1)).astype(np.int64))
        errors = []
        for count in points.tolist():
            units = torch.ones(len(self._groups), dtype=torch.bool)
            units[order[:count]] = False
            errors.append(evidence.output_change(self._groups.expand(units)) if count else 0.0)
        return np.asarray(np.interp(np.arange(most + 1), points, errors))

    def keep(self, count: int) -> Tensor:
        """Return which units stay when `count` weights go, where units do not overlap."""
        groups = self._groups
        part = max(-(-groups.weights // self._rule.buckets), 1)
        counts = [self._options(layer) for layer in range(len(self._orders))]
        costs = [error[option] for error, option in zip(self._errors, counts, strict=True)]
        sizes = [taken[option] // part for taken, option in zip(self._taken, counts, strict=True)]
        # Whole parts may fall short of the very largest budgets by rounding down; then everything may go.
        parts = min(-(-count // part), sum(int(size[-1]) for size in sizes))
        chosen = least_distortion(costs, sizes, parts)
        removed = [int(option[k]) for option, k in zip(counts, chosen, strict=True)]
        return self._units(self._fitted(removed, count))

    def _options(self, layer: int) -> IntArray:
        """Return the numbers of units that may go from a layer: about as many as the layer has parts of the budget."""
        most, gone = len(self._orders[layer]), self._gone[layer]
        share = float(self._taken[layer][-1]) / self._groups.weights
        steps = min(most - gone, max(round(share * self._rule.buckets), self._rule.levels))
        return np.unique(np.round(np.linspace(gone, most, steps + 1)).astype(np.int64))

    def _fitted(self, removed: list[int], budget: int) -> list[int]:
        """Give back, or take, single units until the budget is met with no unit to spare."""
        removed = list(removed)
        total = sum(int(taken[count]) for taken, count in zip(self._taken, removed, strict=True))
        while total < budget:
            layer = self._cheapest(removed)
            short = self._taken[layer] - self._taken[layer][removed[layer]]
            count = min(int(np.searchsorted(short, budget - total)), len(self._orders[layer]))
            total += int(short[count])
            removed[layer] = count
        given_back = True
        while given_back:
            given_back = False
            for layer in self._by_slope(removed):
                floor = self._taken[layer][removed[layer]] - (total - budget)
                count = max(int(np.searchsorted(self._taken[layer], floor)), self._gone[layer])
                if count < removed[layer]:
                    total -= int(self._taken[layer][removed[layer]] - self._taken[layer][count])
                    removed[layer] = count
                    given_back = True
                    break
        return removed

    def _cheapest(self, removed: list[int]) -> int:
        open_layers = [layer for layer, count in enumerate(removed) if count < len(self._orders[layer])]
        return min(open_layers, key=lambda layer: self._slope(layer, removed[layer] + 1))

    def _by_slope(self, removed: list[int]) -> list[int]:
        """Return the layers, that of the steepest curve first."""
        layers = [layer for layer, count in enumerate(removed) if count > self._gone[layer]]
        return sorted(layers, key=lambda layer: -self._slope(layer, removed[layer]))

    def _slope(self, layer: int, count: int) -> float:
        """Return the distortion that the last of `count` units adds, per weight."""
        error, taken = self._errors[layer], self._taken[layer]
        return float(error[count] - error[count - 1]) / max(int(taken[count] - taken[count - 1]), 1)

    def _units(self, removed: list[int]) -> Tensor:
        units = torch.ones(len(self._groups), dtype=torch.bool)
        for order, count in zip(self._orders, removed, strict=True):
            units[order[:count]] = False
        return units

"""Which units go when a share of all is to go.

Most allocations are an order in which the units leave, the same for every share: then a larger share always removes
a superset, and one pass serves every ratio. `Ranked` covers these, and `Spread` those that fix the layers' densities;
an allocation of another kind subclasses `Allocator` and returns a `Plan` of its own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jointopt.errors import InputError, NonFiniteError, is_whole
from jointopt.pruning.evidence import Evidence
from jointopt.pruning.groups import Groups
from jointopt.pruning.magnitude import lowest, pruned_count, sort_keys

__all__ = ["Allocator", "Erk", "Global", "Order", "Plan", "Ranked", "Rows", "Spread", "Uniform"]


class Plan(ABC):
    """An allocation for given scores: which units stay, for any number that is to go.

    Attributes
    ----------
    most : int
        The largest number of units that may go.
    in_weights : bool
        Whether `keep` and `most` count weights, those that the units would remove one by one, instead of units.
    """

    most: int
    in_weights: bool = False

    @abstractmethod
    def keep(self, count: int) -> Tensor:
        """Return which units stay, bool [units], when `count` (at most `most`) go."""


class Allocator(ABC):
    """A rule that spreads what is to be removed over the layers.

    Attributes
    ----------
    needs : frozenset of str
        Evidence looked at.
    chooses_ratio : bool
        Whether the rule sets the ratio itself and ignores the share asked for.
    nested : bool
        Whether a larger share removes a superset.
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    chooses_ratio: ClassVar[bool] = False
    nested: ClassVar[bool] = True

    @abstractmethod
    def plan(self, scores: Tensor, groups: Groups, evidence: Evidence | None = None) -> Plan:
        """Return the allocation for scores [units]; units of score -inf are gone already and go first."""

    def step(self, groups: Groups) -> int:
        """Return the weights by which a mask may exceed what is asked for, less 1: those of one unit."""
        return int(groups.sizes().max())

    def __call__(self, scores: Tensor, groups: Groups, share: float, evidence: Evidence | None = None) -> Tensor:
        """Return which units stay, bool [units], when a share of the units in [0, 1] goes."""
        check_scores(scores, groups)
        plan = self.plan(scores, groups, evidence)
        count = pruned_count(float(share), groups.weights if plan.in_weights else len(groups))
        if count > plan.most and not self.chooses_ratio:
            raise InputError(f"allocation: share {share} removes {count}, but at most {plan.most} may go")
        return plan.keep(count)


class Order(Plan):
    """The units leave in the order of their keys, the lowest first; of equal keys the lowest index.

    Parameters
    ----------
    keys : Tensor, shape [units]
        -inf for units that are gone already.
    groups : Groups
        The units.
    min_keep : int
        Units of highest key that each layer keeps, or ``groups.at_least`` if that is more.
    """

    def __init__(self, keys: Tensor, groups: Groups, min_keep: int) -> None:
        self.keys = keys
        self._groups = groups
        self._protected: Tensor | None = None
        self._sorted: Tensor | None = None
        self._floor = floors(keys, groups, min_keep)
        self.most = len(keys) - int(self._floor.sum())

    def sort(self) -> None:
        """Sort the keys once, which pays when `keep` is asked for many counts."""
        if self._sorted is None:
            self._sorted = sort_keys(self.keys)

    def keep(self, count: int) -> Tensor:
        """Return which units stay, bool [units]; exactly `count` go."""
        if self._protected is None:
            keep = lowest(self.keys, count, self._sorted)
            if bool((self._groups.layer_counts(keep) >= self._floor).all()):
                return keep
            # Only a cut that would empty a layer needs the protected order: any other is the same in both.
            self._protect()
        assert self._protected is not None
        return lowest(self._protected, count)

    def _protect(self) -> None:
        keys = self.keys.clone()
        for layer, floor in enumerate(self._floor.tolist()):
            if floor:
                members = torch.nonzero(self._groups.layer == layer)[:, 0]
                order = torch.sort(self.keys[members], stable=True).indices
                keys[members[order[len(order) - floor :]]] = torch.inf
        self._protected = keys


def floors(keys: Tensor, groups: Groups, min_keep: int) -> Tensor:
    """Return how many units each layer keeps in any case, int64 [layers]; units of key -inf are gone already."""
    return torch.minimum(groups.layer_counts(keys > -torch.inf), groups.at_least.clamp_min(min_keep))


class Ranked(Allocator):
    """An allocation that is an order of leaving.

    Parameters
    ----------
    min_keep : int
        Units that every layer keeps; a layer of fewer loses none.
    """

    min_keep: int

    @abstractmethod
    def keys(self, scores: Tensor, groups: Groups, evidence: Evidence | None) -> Tensor:
        """Return a key per unit, floating point [units]: the lowest leaves first."""

    def plan(self, scores: Tensor, groups: Groups, evidence: Evidence | None = None) -> Order:
        """Return the order of leaving."""
        keys = self.keys(scores, groups, evidence)
        if float(scores.min()) == -torch.inf:
            keys = torch.where(scores == -torch.inf, -torch.inf, keys)
        return Order(keys, groups, self.min_keep)


@dataclass(frozen=True)
class _Keeping:
    """The number of units that every layer keeps, checked; `label` is what an error calls the rule."""

    label: ClassVar[str]
    min_keep: int = 1

    def __post_init__(self) -> None:
        check_min_keep(self.label, self.min_keep)


@dataclass(frozen=True)
class Global(_Keeping, Ranked):
    """One threshold over all layers.

    Parameters
    ----------
    min_keep : int
        Units that every layer keeps.
    """

    label: ClassVar[str] = "global"

    def keys(self, scores: Tensor, groups: Groups, evidence: Evidence | None) -> Tensor:
        """Return the scores."""
        return scores


@dataclass(frozen=True)
class Rows(_Keeping, Ranked):
    """The same share of every output row, as Wanda compares; for single weights only.

    Parameters
    ----------
    min_keep : int
        Units that every layer keeps.
    """

    label: ClassVar[str] = "rows"

    def keys(self, scores: Tensor, groups: Groups, evidence: Evidence | None) -> Tensor:
        """Return the share at which each weight goes: (place in its row + 1/2) / length of the row."""
        if groups.granularity != "weight":
            raise InputError(f"rows: are those of single weights, found granularity '{groups.granularity}'")
        parts = []
        for entry, part in zip(groups.layout.layers, scores.split([e.size for e in groups.layout.layers]), strict=True):
            own = part.view(entry.shape[0], -1)
            order = torch.sort(own, dim=1, stable=True).indices
            share = (torch.arange(own.shape[1], dtype=torch.float64) + 0.5) / own.shape[1]
            parts.append(torch.empty_like(order, dtype=torch.float64).scatter_(1, order, share.expand(own.shape)))
        return torch.cat([part.reshape(-1) for part in parts])


class Spread(Plan):
    """Layers of density ``min(1, eps u)``, u fixed for each layer; the lowest scores of a layer leave it first.

    The unit at place r of n in its layer leaves once eps falls below ``(1 - (r + 1/2) / n) / u``. So masks nest, and
    how many units a layer loses follows without sorting.

    Parameters
    ----------
    scores : Tensor, shape [units]
        -inf for units that are gone already.
    groups : Groups
        The units.
    scale : float64 tensor, shape [layers]
        u of each layer, above 0.
    min_keep : int
        Units that every layer keeps.
    """

    def __init__(self, scores: Tensor, groups: Groups, scale: Tensor, min_keep: int) -> None:
        self._scores = scores
        self._places = _places(groups)
        self._scale = scale.numpy()
        live = groups.layer_counts(scores > -torch.inf).numpy()
        self._size = groups.layer_counts(torch.ones(len(groups), dtype=torch.bool)).numpy()
        self._least = self._size - live
        self._most = self._size - floors(scores, groups, min_keep).numpy()
        self.most = int(self._most.sum())

    def keep(self, count: int) -> Tensor:
        """Return which units stay, bool [units]; `count` go, or those that are gone already if they are more."""
        units = torch.ones(len(self._scores), dtype=torch.bool)
        for place, removed in zip(self._places, self.counts(count), strict=True):
            units[place] = lowest(self._scores[place], removed)
        return units

    def counts(self, count: int) -> list[int]:
        """Return how many units each layer loses when `count` go."""
        low, high = 0.0, 1.0 / float(self._scale.min())  # at eps = low all may go, at eps = high none need
        while True:
            middle = 0.5 * (low + high)
            if not low < middle < high or high * float(self._scale.max()) < 1e-17:  # then 1 - eps u is 1
                break
            if self._gone(middle).sum() >= count:
                low = middle
            else:
                high = middle
        # Units that leave at the very same eps leave in the order of their layers.
        removed, extra = self._gone(high), self._gone(low)
        for layer in range(len(removed)):
            removed[layer] += min(max(count - int(removed.sum()), 0), int(extra[layer] - removed[layer]))
        return [int(number) for number in removed]

    def _gone(self, eps: float) -> NDArray[np.int64]:
        """Return how many units each layer has lost at an eps."""
        count = np.floor(self._size * (1.0 - eps * self._scale) + 0.5).astype(np.int64)
        return np.clip(count, self._least, self._most)


@dataclass(frozen=True)
class Uniform(_Keeping, Allocator):
    """The same share of every layer.

    Parameters
    ----------
    min_keep : int
        Units that every layer keeps.
    """

    label: ClassVar[str] = "uniform"

    def plan(self, scores: Tensor, groups: Groups, evidence: Evidence | None = None) -> Plan:
        """Return the spread of equal densities."""
        return Spread(scores, groups, torch.ones(len(groups.layers), dtype=torch.float64), self.min_keep)


@dataclass(frozen=True)
class Erk(_Keeping, Allocator):
    """Layer densities by Erdos-Renyi-Kernel: in proportion to (sum of the dimensions) / (their product), at most 1.

    For a weight of shape [out, in, k, k] the density is ``eps (out + in + k + k) / (out in k k)``, capped at 1, with
    eps such that the budget holds (Evci et al., Rigging the lottery, 2020).

    Parameters
    ----------
    min_keep : int
        Units that every layer keeps.
    """

    label: ClassVar[str] = "erk"

    def plan(self, scores: Tensor, groups: Groups, evidence: Evidence | None = None) -> Plan:
        """Return the spread of those densities."""
        return Spread(scores, groups, erk_scale(groups), self.min_keep)


def _places(groups: Groups) -> list[slice | Tensor]:
    """Return where the units of each layer are: slices where each layer's units stand together."""
    if bool((groups.layer[1:] >= groups.layer[:-1]).all()):
        sizes = groups.layer_counts(torch.ones(len(groups), dtype=torch.bool))
        ends = torch.cumsum(sizes, dim=0).tolist()
        return [slice(end - size, end) for end, size in zip(ends, sizes.tolist(), strict=True)]
    return [torch.nonzero(groups.layer == layer)[:, 0] for layer in range(len(groups.layers))]


def erk_scale(groups: Groups) -> Tensor:
    """Return (sum of dimensions) / (product of dimensions) of each layer, float64 [layers].

    A layer of units that spans several weight tensors takes the mean over them by their sizes.
    """
    by_parameter = torch.zeros(groups.layout.size, dtype=torch.float64)
    for entry in groups.layout.layers:
        by_parameter[entry.where] = sum(entry.shape) / entry.size
    sizes = groups.sizes().to(torch.float64)
    totals = torch.zeros(len(groups.layers), dtype=torch.float64)
    weights = totals.clone()
    totals.index_add_(0, groups.layer, groups.reduce(by_parameter))
    weights.index_add_(0, groups.layer, sizes)
    return totals / weights.clamp_min(1.0)


def check_scores(scores: Tensor, groups: Groups) -> None:
    """Raise `InputError` unless the scores are a floating-point vector [units] without NaN or +inf."""
    if scores.shape != (len(groups),) or not scores.is_floating_point():
        raise InputError(
            f"scores must be floating point of shape ({len(groups)},), found {scores.dtype} of shape "
            f"{tuple(scores.shape)}"
        )
    if not float(scores.max()) < torch.inf:  # the largest is NaN if any is
        unit = int(torch.nonzero(~(scores < torch.inf))[0])
        raise NonFiniteError(
            f"scores must be below infinity, found {float(scores[unit])} for unit {unit} of layer "
            f"'{groups.layers[int(groups.layer[unit])]}'"
        )


def check_min_keep(who: str, value: object) -> None:
    """Raise `InputError` unless the number of units a layer keeps is a whole number of at least 0."""
    if not is_whole(value) or value < 0:  # type: ignore[operator]
        raise InputError(f"{who}: min_keep must be a whole number of at least 0, found {value!r}")

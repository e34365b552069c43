"""How much a network can lose, read off its weights by the PQ index.

Source: Diao et al., Pruning deep neural networks from a sparsity perspective, 2023.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from jointopt.errors import InputError, is_real, nearest
from jointopt.pruning.allocate import Allocator, Plan, check_min_keep, floors
from jointopt.pruning.evidence import Evidence
from jointopt.pruning.groups import Groups
from jointopt.pruning.magnitude import lowest, pruned_count

__all__ = ["PQ", "pq_index", "pq_removed"]


def pq_index(values: Tensor, p: float = 0.5, q: float = 1.0) -> float:
    """Return the PQ index of a vector, ``1 - d**(1/q - 1/p) norm_p(w) / norm_q(w)``, in [0, 1).

    0 for equal magnitudes, near 1 where a few entries hold all. Equal to 0 for a vector of zeros or without entries.

    Parameters
    ----------
    values : Tensor, shape [d]
        Weights or scores.
    p, q : float
        Exponents, 0 < p < q.
    """
    magnitudes = values.detach().abs().to(torch.float64)
    largest = float(magnitudes.max()) if len(magnitudes) else 0.0
    if largest == 0.0:
        return 0.0
    magnitudes = magnitudes / largest  # the index knows no scale, powers of tiny numbers do
    norm_p = float(magnitudes.pow(p).sum()) ** (1.0 / p)
    norm_q = float(magnitudes.pow(q).sum()) ** (1.0 / q)
    return max(1.0 - len(magnitudes) ** (1.0 / q - 1.0 / p) * norm_p / norm_q, 0.0)


def pq_removed(
    values: Tensor, *, p: float = 0.5, q: float = 1.0, eta: float = 0.0, gamma: float = 1.0, beta: float = 0.9
) -> int:
    """Return how many of d entries go: ``floor(d min(gamma (1 - m / d), beta))``.

    ``m = d (1 + eta)**(-q / (q - p)) (1 - I)**(p q / (q - p))`` bounds from below the entries that must stay to keep
    all but a share eta of the norm; I is the `pq_index`.
    """
    d = len(values)
    index = pq_index(values, p, q)
    share_kept = (1.0 + eta) ** (-q / (q - p)) * (1.0 - index) ** (p * q / (q - p))
    # As m / d <= 1 up to rounding; 1e-12 as (1 - (1 - x)) may miss x.
    return max(math.floor(d * min(gamma * (1.0 - share_kept), beta) + 1e-12), 0)


@dataclass(frozen=True)
class PQ(Allocator):
    """Remove as many of the lowest scores as the PQ index of those still there allows; the ratio follows.

    Parameters
    ----------
    p, q : float
        Exponents of the index, 0 < p < q.
    eta : float
        Share of the norm that may be lost, at least 0.
    gamma : float
        Speed, above 0.
    beta : float
        Largest share of what is there that one cut removes, in (0, 1).
    max_ratio : float
        Largest share of all units removed after any number of cuts, in [0, 1).
    within : str
        "all" for one index over the network, "layer" for one per layer.
    min_keep : int
        Units that every layer keeps.
    """

    p: float = 0.5
    q: float = 1.0
    eta: float = 0.0
    gamma: float = 1.0
    beta: float = 0.9
    max_ratio: float = 0.95
    within: str = "all"
    min_keep: int = 1
    chooses_ratio: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name in ("p", "q", "eta", "gamma", "beta", "max_ratio"):
            value = getattr(self, name)
            if not is_real(value) or not math.isfinite(value):
                raise InputError(f"pq-index: {name} must be a finite number, found {value!r}")
        if not 0.0 < self.p < self.q:
            raise InputError(f"pq-index: needs 0 < p < q, found p = {self.p}, q = {self.q}")
        if self.eta < 0.0 or self.gamma <= 0.0:
            raise InputError(f"pq-index: needs eta >= 0 and gamma > 0, found eta = {self.eta}, gamma = {self.gamma}")
        if not 0.0 < self.beta < 1.0:
            raise InputError(f"pq-index: beta must lie inside (0, 1), found {self.beta}")
        if not 0.0 <= self.max_ratio < 1.0:
            raise InputError(f"pq-index: max_ratio must lie in [0, 1), found {self.max_ratio}")
        if self.within not in ("all", "layer"):
            raise InputError(
                f"pq-index: within must be 'all' or 'layer', found '{self.within}'"
                f"{nearest(str(self.within), ('all', 'layer'))}"
            )
        check_min_keep("pq-index", self.min_keep)

    def plan(self, scores: Tensor, groups: Groups, evidence: Evidence | None = None) -> Plan:
        """Return the one mask there is."""
        live = scores > -torch.inf
        floor = floors(scores, groups, self.min_keep)
        room = pruned_count(self.max_ratio, len(groups)) - int(torch.count_nonzero(~live))
        parts = [live] if self.within == "all" else [live & (groups.layer == i) for i in range(len(groups.layers))]
        keys = torch.full_like(scores, torch.inf)
        for part in parts:
            count = self._count(scores[part])
            left = scores[part]
            # inf marks what stays; the order among those that go is that of the scores.
            keys[part] = torch.where(lowest(left, count), torch.inf, left) if count else torch.inf
        for layer, least in enumerate(floor.tolist()):
            members = torch.nonzero((groups.layer == layer) & live)[:, 0]
            most = len(members) - least
            if int(torch.count_nonzero(keys[members] < torch.inf)) > most:
                keys[members] = torch.where(lowest(scores[members], most), torch.inf, scores[members])
        count = min(int(torch.count_nonzero(keys < torch.inf)), max(room, 0))
        return _Fixed(lowest(keys, count) & live)

    def _count(self, scores: Tensor) -> int:
        return pq_removed(scores, p=self.p, q=self.q, eta=self.eta, gamma=self.gamma, beta=self.beta)


class _Fixed(Plan):
    def __init__(self, units: Tensor) -> None:
        self._units = units
        self.most = len(units) - int(torch.count_nonzero(units))

    def keep(self, count: int) -> Tensor:
        """Return the units of the one mask there is, whatever is asked for."""
        return self._units

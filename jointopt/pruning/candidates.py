"""Candidate masks of one density with different layer ratios, of which devices' losses choose (FedTiny, 2022)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from jointopt.errors import InputError, is_real, is_whole
from jointopt.pruning.allocate import Allocator, Plan, Spread, check_min_keep
from jointopt.pruning.evidence import Evidence
from jointopt.pruning.groups import Groups

__all__ = ["Candidates"]


@dataclass(frozen=True)
class Candidates(Allocator):
    """Try several ways of spreading a density over the layers and keep that of least loss.

    Candidate i gives layer l the density ``min(1, eps u)`` with ``u = exp(spread z)``, z standard normal from the seed,
    and eps such that the density of the whole is met; the first candidate has u = 1 throughout. Batch normalisation
    is measured anew for each before the loss is, as devices would by passing samples forward. `ask` and `tell` serve a
    search that evaluates the candidates itself.

    Parameters
    ----------
    count : int
        Number of candidates, at least 1.
    spread : float
        Standard deviation of log u, at least 0.
    seed : int
        Of the draws.
    min_keep : int
        Units that every layer keeps.
    """

    count: int = 8
    spread: float = 0.5
    seed: int = 0
    min_keep: int = 1
    needs: ClassVar[frozenset[str]] = frozenset({"outputs"})
    nested: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not is_whole(self.count) or self.count < 1:
            raise InputError(f"candidates: count must be a whole number of at least 1, found {self.count!r}")
        if not is_real(self.spread) or not 0.0 <= self.spread < math.inf:
            raise InputError(f"candidates: spread must be finite and at least 0, found {self.spread!r}")
        if not is_whole(self.seed) or self.seed < 0:
            raise InputError(f"candidates: seed must be a whole number of at least 0, found {self.seed!r}")
        check_min_keep("candidates", self.min_keep)

    def plan(self, scores: Tensor, groups: Groups, evidence: Evidence | None = None) -> Plan:
        """Return the plan that evaluates the candidates when asked for a mask."""
        if evidence is None:
            raise InputError("candidates: needs evidence 'outputs', found none")
        return _Picked(self.spreads(scores, groups), groups, evidence, self)

    def spreads(self, scores: Tensor, groups: Groups) -> list[Spread]:
        """Return the candidates for any number of units that may go."""
        generator = torch.Generator().manual_seed(int(self.seed))
        out = []
        for candidate in range(self.count):
            draws = torch.randn(len(groups.layers), generator=generator, dtype=torch.float64)
            u = torch.ones_like(draws) if candidate == 0 else torch.exp(self.spread * draws)
            out.append(Spread(scores, groups, u, self.min_keep))
        return out

    def ask(self, scores: Tensor, groups: Groups, count: int) -> list[Tensor]:
        """Return the candidates, each bool [units], in which `count` units go."""
        return [spread.keep(count) for spread in self.spreads(scores, groups)]

    def tell(self, losses: Sequence[float]) -> int:
        """Return the candidate of least loss, the first of equal ones; a loss that is NaN never wins."""
        if len(losses) != self.count:
            raise InputError(f"candidates: expected {self.count} losses, found {len(losses)}")
        return min(range(self.count), key=lambda i: math.inf if math.isnan(losses[i]) else losses[i])


class _Picked(Plan):
    def __init__(self, spreads: list[Spread], groups: Groups, evidence: Evidence, rule: Candidates) -> None:
        self._spreads = spreads
        self._groups = groups
        self._evidence = evidence
        self._rule = rule
        self._done: dict[int, Tensor] = {}
        self.most = min(spread.most for spread in spreads)

    def keep(self, count: int) -> Tensor:
        """Return the candidate of least loss at which `count` units go."""
        if count not in self._done:
            units = [spread.keep(count) for spread in self._spreads]
            losses = [self._evidence.mean_loss(self._groups.expand(each), refresh=True) for each in units]
            self._done[count] = units[self._rule.tell(losses)]
        return self._done[count]

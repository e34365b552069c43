"""N:M sparsity: of every M consecutive weights of a row, N stay, a pattern that hardware can use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from jointopt.errors import InputError, is_whole
from jointopt.pruning.allocate import Allocator, Plan
from jointopt.pruning.evidence import Evidence
from jointopt.pruning.groups import Groups

__all__ = ["Pattern"]


@dataclass(frozen=True)
class Pattern(Allocator):
    """Keep the N highest scores of every M consecutive weights, the same N everywhere.

    Weights are consecutive along the inputs of an output row, all input channels of one kernel position before the
    next. The last block of a row may be shorter; of t weights it loses ``ceil(t r / M)`` where a full block loses r.
    A layer whose rows are shorter than M has its rows put end to end. N is the largest that reaches the share asked
    for, so ratios go in steps of 1 / M up to (M - 1) / M.

    Parameters
    ----------
    m : int
        Length of a block, at least 2.
    """

    m: int = 4
    nested: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not is_whole(self.m) or self.m < 2:
            raise InputError(f"n:m: m must be a whole number of at least 2, found {self.m!r}")

    def plan(self, scores: Tensor, groups: Groups, evidence: Evidence | None = None) -> Plan:
        """Return after which step each weight goes."""
        return _PatternPlan(self._steps(scores, groups), self.m)

    def step(self, groups: Groups) -> int:
        """Return the most weights that one more step of 1 / M takes."""
        steps = self._steps(torch.zeros(len(groups)), groups)
        return int(torch.bincount(steps, minlength=self.m + 1)[: self.m].max())

    def _steps(self, scores: Tensor, groups: Groups) -> Tensor:
        """Return after how many steps each weight goes, 1 .. M, int64 [units]; those of M never do."""
        if groups.granularity != "weight":
            raise InputError(f"n:m: patterns are of single weights, found granularity '{groups.granularity}'")
        parts = scores.split([entry.size for entry in groups.layout.layers])
        return torch.cat([self._of_layer(part, e.shape) for part, e in zip(parts, groups.layout.layers, strict=True)])

    def _of_layer(self, scores: Tensor, shape: tuple[int, ...]) -> Tensor:
        rows, columns = shape[0], len(scores) // shape[0]
        # From (row, input channel, kernel position) to (row, kernel position, input channel), and back below.
        inner = scores.view(shape).movedim(1, -1)
        if columns < self.m:
            rows, columns = 1, len(scores)
        blocks = -(-columns // self.m)
        # inf fills up the last block of a row, above all that may go.
        filled = nn.functional.pad(inner.reshape(rows, columns), (0, blocks * self.m - columns), value=torch.inf)
        place = _places(filled.view(-1, self.m)).view(rows, blocks, self.m)
        last = columns - (blocks - 1) * self.m
        length = torch.full((blocks, 1), self.m)
        length[-1] = last
        steps = torch.div(place * self.m, length, rounding_mode="floor") + 1
        if rows == blocks == 1:
            # The highest score of a layer that is one short block stays, so that no layer is emptied.
            steps[place == last - 1] = self.m
        flat = steps.view(rows, -1)[:, :columns].reshape(inner.shape)
        return flat.movedim(-1, 1).reshape(-1)


def _places(blocks: Tensor) -> Tensor:
    """Return the place of each score in its block [blocks, M], 0 for the lowest, ties by index; int64."""
    place = torch.zeros(blocks.shape, dtype=torch.int64)
    # M passes of comparisons take less time than sorting millions of short rows.
    for column in range(blocks.shape[1]):
        own = blocks[:, column : column + 1]
        place += own < blocks
        place[:, column + 1 :] += own == blocks[:, column + 1 :]
    return place


class _PatternPlan(Plan):
    def __init__(self, steps: Tensor, m: int) -> None:
        self._steps = steps
        self._removed = torch.cumsum(torch.bincount(steps, minlength=m + 1), dim=0)[:m].tolist()
        self.most = int(self._removed[-1])

    def keep(self, count: int) -> Tensor:
        """Return which weights stay after the fewest steps that remove `count`."""
        steps = next(step for step, removed in enumerate(self._removed) if removed >= count)
        return self._steps > steps

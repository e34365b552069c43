"""What pruning leaves: which units of a module are kept, and what that costs and saves."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from jointopt.errors import InputError
from jointopt.pruning.groups import Groups

__all__ = ["Mask"]


@dataclass(frozen=True, eq=False)
class Mask:
    """The units of a module that are kept.

    Attributes
    ----------
    groups : Groups
        The units there are.
    units : bool tensor, shape [units]
        True where a unit is kept.
    """

    groups: Groups
    units: Tensor

    def __post_init__(self) -> None:
        if self.units.dtype != torch.bool or self.units.shape != (len(self.groups),):
            raise InputError(
                f"mask: units must be bool of shape ({len(self.groups)},), found {self.units.dtype} of shape "
                f"{tuple(self.units.shape)}"
            )

    @classmethod
    def dense(cls, groups: Groups) -> Mask:
        """Return the mask that keeps everything."""
        return cls(groups, torch.ones(len(groups), dtype=torch.bool))

    @cached_property
    def keep(self) -> Tensor:
        """Which parameters stay, bool, shape [P], in the order of ``named_parameters()``."""
        return self.groups.expand(self.units)

    @cached_property
    def keep_buffers(self) -> Tensor:
        """Which buffer entries stay, bool, shape [B]."""
        return self.groups.expand_buffers(self.units)

    @cached_property
    def index(self) -> Tensor:
        """Places of the parameters that stay, int64, ascending."""
        return torch.nonzero(self.keep)[:, 0]

    @cached_property
    def kept(self) -> int:
        """Prunable weights that stay."""
        return self.groups.kept_weights(self.units)

    @cached_property
    def unpruned(self) -> int:
        """Other parameters that stay (biases, normalisation); fewer than there are where channels go."""
        return int(torch.count_nonzero(self.keep)) - self.kept

    @property
    def ratio(self) -> float:
        """Share of the prunable weights removed."""
        return (self.groups.weights - self.kept) / self.groups.weights

    @cached_property
    def macs(self) -> float:
        """Multiplications per sample that remain, those of masked weights not counted.

        Raises
        ------
        InputError
            The groups were made without an example input.
        """
        uses = self.groups.uses
        if uses is None:
            raise InputError("mask: multiplications are not known; make the groups with an example input")
        return float(uses[self.keep].sum())

    @property
    def dense_macs(self) -> float:
        """Multiplications per sample of the dense module."""
        assert self.groups.uses is not None
        return float(self.groups.uses.sum())

    @property
    def structured(self) -> bool:
        """Whether tensors really get smaller."""
        return self.groups.structured

    @cached_property
    def layer_ratios(self) -> dict[str, float]:
        """Share of the weights removed, by prunable parameter."""
        return {
            entry.name: 1.0 - float(self.keep[entry.where].to(torch.float64).mean())
            for entry in self.groups.layout.layers
        }

    def narrow(self) -> nn.Module:
        """Return a copy of the module without what is removed (see `Groups.narrow`)."""
        return self.groups.narrow(self.units)

    def distortion(self, weights: Tensor) -> float:
        """Return the share of the squared norm of the prunable weights, [P], that is removed."""
        lost = total = 0.0
        for entry in self.groups.layout.layers:  # by layers: picking by a bool mask takes longer than all the rest
            part = weights[entry.where].detach()
            gone = torch.where(self.keep[entry.where], 0.0, part)
            total += float(torch.linalg.vector_norm(part, dtype=torch.float64)) ** 2
            lost += float(torch.linalg.vector_norm(gone, dtype=torch.float64)) ** 2
        return min(lost / total, 1.0) if total > 0.0 else 0.0

    def __repr__(self) -> str:
        return (
            f"Mask({self.groups.granularity}: {int(self.units.sum())} of {len(self.units)} units kept, "
            f"ratio {self.ratio:.4g})"
        )

"""Synaptic flow: a score that needs no data (Tanaka et al., Pruning neural networks without any data, 2020)."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.func import functional_call

from jointopt.errors import InputError, is_real, is_whole
from jointopt.pruning.evidence import Evidence
from jointopt.pruning.groups import Groups

__all__ = ["SynFlow", "synaptic_flow"]


def synaptic_flow(groups: Groups, weights: Tensor, keep: Tensor | None = None) -> Tensor:
    """Return w dR/dw for R the sum of outputs at an input of ones with all parameters made positive; float64 [P].

    Parameters
    ----------
    groups : Groups
        Made with an example input, whose shape is used.
    weights : Tensor, shape [P]
        The weights.
    keep : bool tensor, shape [P], optional
        Entries that are there; the others count as 0.

    Raises
    ------
    InputError
        The groups have no example input, or one that is not floating point.
    """
    return _Flow(groups, weights)(keep)


class _Flow:
    """The flow at any mask; the network is copied once."""

    def __init__(self, groups: Groups, weights: Tensor) -> None:
        if groups.example is None or not groups.example.is_floating_point():
            found = "none" if groups.example is None else str(groups.example.dtype)
            raise InputError(f"synflow: needs groups made with a floating-point example input, found {found}")
        # float64, since the product of many layers leaves the range of float32.
        self._module = copy.deepcopy(groups.module).to(torch.float64).eval()
        self._layout = groups.layout
        self._positive = weights.detach().abs().to(torch.float64)
        self._buffers = {name: b.abs() for name, b in self._module.named_buffers() if b.is_floating_point()}
        self._ones = torch.ones((1, *groups.example.shape[1:]), dtype=torch.float64)

    def __call__(self, keep: Tensor | None) -> Tensor:
        positive = self._positive.clone() if keep is None else torch.where(keep, self._positive, 0.0)
        positive.requires_grad_(True)
        flow = functional_call(self._module, self._layout.split(positive) | self._buffers, (self._ones,)).sum()
        (gradient,) = torch.autograd.grad(flow, positive)
        return (positive * gradient).detach()


@dataclass(frozen=True)
class SynFlow:
    """The order in which iterated synaptic flow removes units.

    In step t of `steps`, the units of lowest flow go until a share ``density**(t / steps)`` is left, and the flow is
    measured anew. So the order does not depend on the ratio asked for, and masks nest. The published method steps to
    the wanted density itself.

    Parameters
    ----------
    steps : int
        Number of steps, at least 1.
    density : float
        Share left after the last step, in (0, 1); beyond it the last flow decides.
    """

    steps: int = 100
    density: float = 0.01
    needs: frozenset[str] = field(default=frozenset(), init=False)

    def __post_init__(self) -> None:
        if not is_whole(self.steps) or self.steps < 1:
            raise InputError(f"synflow: steps must be a whole number of at least 1, found {self.steps!r}")
        if not is_real(self.density) or not 0.0 < self.density < 1.0:
            raise InputError(f"synflow: density must lie inside (0, 1), found {self.density!r}")

    def __call__(
        self, groups: Groups, weights: Tensor, evidence: Evidence | None, generator: torch.Generator | None, /
    ) -> Tensor:
        """Return the place of each unit in the order of leaving, float64 [units]."""
        measure = _Flow(groups, weights)
        units = len(groups)
        place = torch.zeros(units, dtype=torch.float64)
        live = torch.arange(units)
        gone = 0
        for step in range(1, self.steps + 1):
            keep = torch.zeros(units, dtype=torch.bool)
            keep[live] = True
            flow = groups.reduce(measure(groups.expand(keep)))
            leave = max(len(live) - round(units * self.density ** (step / self.steps)), 0)
            if step == self.steps:
                leave = len(live)
            order = live[torch.sort(flow[live], stable=True).indices]
            place[order[:leave]] = torch.arange(gone, gone + leave, dtype=torch.float64)
            gone += leave
            live = torch.sort(order[leave:]).values
        return place

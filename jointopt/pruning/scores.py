"""How much each unit is worth: the higher the score, the later it is removed.

Every score is made of one number per weight, summed (or averaged) over the weights of a unit, so that each serves
single weights, channels and blocks alike.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from jointopt.errors import InputError, is_real, nearest
from jointopt.pruning.evidence import Evidence
from jointopt.pruning.groups import Groups
from jointopt.pruning.layout import Layout
from jointopt.pruning.statistics import per_weight

__all__ = ["Exploration", "Magnitude", "Random", "Score", "Snip", "Taylor", "Wanda", "lift"]

_LIFTS = ("sum", "mean")


class Score(Protocol):
    """A number per unit; what it looks at besides the weights stands in `needs`."""

    @property
    def needs(self) -> frozenset[str]:
        """Evidence looked at (see `jointopt.pruning.evidence.NEEDS`)."""
        ...

    def __call__(
        self, groups: Groups, weights: Tensor, evidence: Evidence | None, generator: torch.Generator | None, /
    ) -> Tensor:
        """Return the scores, floating point [units], of weights [P]; `generator` is the only source of randomness."""
        ...


def lift(groups: Groups, values: Tensor, how: str = "sum") -> Tensor:
    """Turn one value per parameter, [P], into one per unit: the sum or the mean over the unit's prunable weights."""
    if how not in _LIFTS:
        raise InputError(f"score: reduce must be 'sum' or 'mean', found '{how}'{nearest(str(how), _LIFTS)}")
    # Sums of many float32 values would tie or swap in their last digits by the order of summation.
    sums = groups.reduce(values if groups.granularity == "weight" else values.to(torch.float64))
    return sums if how == "sum" else sums / groups.sizes().clamp_min(1).to(sums.dtype)


def require(evidence: Evidence | None, need: str) -> Evidence:
    """Return the evidence; `InputError` naming the need where there is none."""
    if evidence is None:
        raise InputError(f"pruning: this rule needs evidence '{need}', found none")
    return evidence


@dataclass(frozen=True)
class Magnitude:
    """Sum over a unit of abs(w)**power: the absolute value, or the squared norm at power 2.

    Parameters
    ----------
    power : float
        Exponent, above 0.
    reduce : str
        "sum", or "mean" so that large units are not worth more for their size.
    """

    power: float = 1.0
    reduce: str = "sum"
    needs: frozenset[str] = field(default=frozenset(), init=False)

    def __post_init__(self) -> None:
        if not is_real(self.power) or not 0.0 < self.power < float("inf"):
            raise InputError(f"magnitude: power must be finite and above 0, found {self.power!r}")

    def __call__(
        self, groups: Groups, weights: Tensor, evidence: Evidence | None, generator: torch.Generator | None, /
    ) -> Tensor:
        """Return the scores, [units]."""
        magnitudes = weights.detach().abs()
        return lift(groups, magnitudes if self.power == 1.0 else magnitudes.pow(self.power), self.reduce)


@dataclass(frozen=True)
class Random:
    """A random order of the units: the baseline for any cleverer rule."""

    needs: frozenset[str] = field(default=frozenset(), init=False)

    def __call__(
        self, groups: Groups, weights: Tensor, evidence: Evidence | None, generator: torch.Generator | None, /
    ) -> Tensor:
        """Return independent draws from [0, 1), float64 so that ties do not bias the order."""
        if generator is None:
            raise InputError("random pruning needs a seeded torch.Generator, found None")
        draws = torch.rand(len(groups), generator=generator, dtype=torch.float64, device=generator.device)
        return draws.to(weights.device)


@dataclass(frozen=True)
class Snip:
    """Connection sensitivity abs(g w) (Lee et al., SNIP, 2019): the first-order effect of removing a weight."""

    reduce: str = "sum"
    needs: frozenset[str] = field(default=frozenset({"gradient"}), init=False)

    def __call__(
        self, groups: Groups, weights: Tensor, evidence: Evidence | None, generator: torch.Generator | None, /
    ) -> Tensor:
        """Return the scores, [units]."""
        return lift(groups, (require(evidence, "gradient").gradient * weights).abs(), self.reduce)


@dataclass(frozen=True)
class Taylor:
    """Squared first-order effect on the loss (Molchanov et al., Importance estimation for network pruning, 2019).

    Parameters
    ----------
    grouped : bool
        True: the square of the sum of g w over a unit, the effect of removing it as a whole. False: the sum of squares.
    """

    grouped: bool = False
    reduce: str = "sum"
    needs: frozenset[str] = field(default=frozenset({"gradient"}), init=False)

    def __call__(
        self, groups: Groups, weights: Tensor, evidence: Evidence | None, generator: torch.Generator | None, /
    ) -> Tensor:
        """Return the scores, [units]."""
        effect = require(evidence, "gradient").gradient.to(torch.float64) * weights
        if self.grouped:
            return lift(groups, effect, self.reduce).square()
        return lift(groups, effect.square(), self.reduce)


@dataclass(frozen=True)
class Wanda:
    """Weight times its input: abs(w) (norm(x_j) + alpha abs(g)), where x_j is the input feature that w multiplies.

    alpha = 0 is Wanda (Sun et al., A simple and effective pruning approach, 2024); above 0 it adds the root mean square
    gradient (Das et al., Beyond size: gradient-blended pruning, GBLM, 2023). Both compare within output rows; the
    published alpha is 100.
    """

    alpha: float = 0.0
    reduce: str = "sum"

    def __post_init__(self) -> None:
        if not is_real(self.alpha) or not 0.0 <= self.alpha < float("inf"):
            raise InputError(f"wanda: alpha must be finite and at least 0, found {self.alpha!r}")

    @property
    def needs(self) -> frozenset[str]:
        """Statistics of the inputs, and gradients if alpha is above 0."""
        return frozenset({"inputs", "gradient_rms"} if self.alpha > 0.0 else {"inputs"})

    def __call__(
        self, groups: Groups, weights: Tensor, evidence: Evidence | None, generator: torch.Generator | None, /
    ) -> Tensor:
        """Return the scores, [units]."""
        evidence = require(evidence, "inputs")
        scale = torch.zeros(len(weights), dtype=torch.float64)
        norms = evidence.input_norms
        for entry in groups.layout.layers:
            scale[entry.where] = per_weight(groups.module, entry, norms[entry.name]).reshape(-1)
        if self.alpha > 0.0:
            scale += self.alpha * evidence.gradient_rms.to(torch.float64)
        return lift(groups, weights.abs() * scale, self.reduce)


@dataclass(frozen=True)
class Exploration:
    """How far explorers moved each weight: mean squared drift, min-max scaled per tensor (AutoFLIP, 2024).

    G = minmax(mean over explorers of (w_k - w)**2) for each parameter tensor by itself; a tensor that nobody moved
    scores 0 throughout.
    """

    reduce: str = "sum"
    needs: frozenset[str] = field(default=frozenset({"explorers"}), init=False)

    def __call__(
        self, groups: Groups, weights: Tensor, evidence: Evidence | None, generator: torch.Generator | None, /
    ) -> Tensor:
        """Return the scores, [units]."""
        explorers = require(evidence, "explorers").explorers
        return lift(groups, exploration_matrix(groups.layout, weights, explorers), self.reduce)


def exploration_matrix(layout: Layout, weights: Tensor, explorers: Tensor) -> Tensor:
    """Return the min-max scaled mean squared drift of explorers [E, P] from weights [P]; float64 [P] in [0, 1]."""
    drift = (explorers.to(torch.float64) - weights).square().mean(dim=0)
    out = torch.zeros_like(drift)
    for entry in layout.parameters:
        part = drift[entry.where]
        if len(part):
            low, high = torch.aminmax(part)
            if high > low:
                out[entry.where] = (part - low) / (high - low)
    return out

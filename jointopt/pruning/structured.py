"""The pruners that make the network smaller: scores of channels and blocks, and the rules by name."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

import torch
from torch import Tensor

from jointopt.errors import InputError, is_real, nearest
from jointopt.pruning.allocate import Global
from jointopt.pruning.band import FilterNorm, MeanStdBand, Patience, Rebuild, Until
from jointopt.pruning.blocks import MEASURES, LayerGroups, representational_change
from jointopt.pruning.evidence import Evidence
from jointopt.pruning.groups import Groups
from jointopt.pruning.hooks import Hook
from jointopt.pruning.pruner import Pruner, register
from jointopt.pruning.schedules import OneShot
from jointopt.pruning.scores import Random, lift, require

__all__ = ["LayerChange", "RelativeNorm"]


@dataclass(frozen=True)
class RelativeNorm:
    """Norm of all weights of a unit, over the mean of these norms in its layer.

    The mean makes layers comparable that differ in fan-in and in the number of tensors that a channel takes along
    (Fang et al., *DepGraph*, 2023).

    Parameters
    ----------
    power : float
        p of the norm (sum of abs(w)**p)**(1/p), above 0.
    normalise : bool
        Whether to divide by the layer's mean.
    """

    power: float = 2.0
    normalise: bool = True
    needs: frozenset[str] = field(default=frozenset(), init=False)

    def __post_init__(self) -> None:
        if not is_real(self.power) or not 0.0 < self.power < float("inf"):
            raise InputError(f"relative norm: power must be finite and above 0, found {self.power!r}")
        if not isinstance(self.normalise, bool):
            raise InputError(f"relative norm: normalise must be True or False, found {self.normalise!r}")

    def __call__(
        self, groups: Groups, weights: Tensor, evidence: Evidence | None, generator: torch.Generator | None, /
    ) -> Tensor:
        """Return the scores, float64 [units]."""
        values = weights.detach().abs().to(torch.float64)
        # Sums are differences of sums where a unit is both row and column; a rounding error may be negative.
        norms = lift(groups, values.pow(self.power)).clamp_min(0.0).pow(1.0 / self.power)
        if not self.normalise:
            return norms.to(torch.float64)
        sizes = torch.bincount(groups.layer, minlength=len(groups.layers)).clamp_min(1)
        totals = torch.zeros(len(groups.layers), dtype=torch.float64).index_add_(0, groups.layer, norms.double())
        means = (totals / sizes)[groups.layer]
        return torch.where(means > 0.0, norms / means, 0.0)


@dataclass(frozen=True)
class LayerChange:
    """How much a block changes what passes through it, the mean over devices by share.

    Each device measures on its own samples and sends one number per block (layer tickets: the blocks that change least
    are removed before training).

    Parameters
    ----------
    measure : str
        One of `jointopt.pruning.blocks.MEASURES`.
    """

    measure: str = "cka"
    needs: frozenset[str] = field(default=frozenset({"outputs"}), init=False)

    def __post_init__(self) -> None:
        if self.measure not in MEASURES:
            raise InputError(f"layer change: unknown measure '{self.measure}'{nearest(str(self.measure), MEASURES)}")

    def __call__(
        self, groups: Groups, weights: Tensor, evidence: Evidence | None, generator: torch.Generator | None, /
    ) -> Tensor:
        """Return the changes, float64 [units]."""
        if not isinstance(groups, LayerGroups):
            raise InputError(f"layer change: needs whole blocks, found granularity '{groups.granularity}'")
        return require(evidence, "outputs").mean_over_devices(
            lambda inputs: representational_change(groups, inputs, weights, measure=self.measure)
        )


def _channel_magnitude(
    power: float = 2.0,
    normalise: bool = True,
    min_keep: int = 1,
    frozen: Collection[str] = (),
    min_channels: int = 1,
    group_norm: bool = False,
) -> Pruner:
    """Channels of smallest norm over the whole network, norms taken relative to the layer's mean."""
    return Pruner(
        "channel-magnitude",
        RelativeNorm(power, normalise),
        Global(min_keep),
        granularity="channel",
        options={"frozen": tuple(frozen), "min_channels": min_channels, "group_norm": group_norm},
    )


def _channel_random(
    min_keep: int = 1, frozen: Collection[str] = (), min_channels: int = 1, group_norm: bool = False
) -> Pruner:
    """Random channels over the whole network."""
    return Pruner(
        "channel-random",
        Random(),
        Global(min_keep),
        granularity="channel",
        options={"frozen": tuple(frozen), "min_channels": min_channels, "group_norm": group_norm},
    )


def _mean_std_band(
    k: float = 2.0,
    last: int = 50,
    patience: int = 3,
    weights: str = "inherit",
    min_keep: int = 1,
    frozen: Collection[str] = (),
    group_norm: bool = False,
) -> Pruner:
    """Channels whose filters' L1 norm is far from the layer's mean, cut by the server until nothing more goes."""
    if weights not in ("inherit", "reinit"):
        raise InputError(
            f"mean-std-band: weights must be 'inherit' or 'reinit', found '{weights}'"
            f"{nearest(str(weights), ('inherit', 'reinit'))}"
        )
    # Patience first: after it has stopped, nothing is drawn anew.
    hooks: tuple[Hook, ...] = (Patience(patience),) if weights == "inherit" else (Patience(patience), Rebuild())
    return Pruner(
        "mean-std-band",
        FilterNorm(1.0),
        MeanStdBand(k, min_keep),
        granularity="channel",
        schedule=Until(last),
        hooks=hooks,
        scope="global",
        persist=True,
        options={"frozen": tuple(frozen), "group_norm": group_norm},
    )


def _layer_cka(measure: str = "cka") -> Pruner:
    """Whole residual blocks that change least, removed once before training."""
    return Pruner("layer-cka", LayerChange(measure), Global(0), granularity="layer", schedule=OneShot(1))


register("channel-magnitude", _channel_magnitude)
register("channel-random", _channel_random)
register("mean-std-band", _mean_std_band)
register("layer-cka", _layer_cka)

"""The mean-std band: filters whose norm is far from their layer's mean go, and the network is rebuilt narrower.

Source: Automatic Structured Pruning for Efficient Architecture in Federated Learning (AutoStruct-FL). The server cuts
once a round, keeps the filters of each layer with ``mean - k std <= L1 norm <= mean + k std``, and stops when nothing
was removed for some rounds; the ratio is what comes out. The published notebook draws the narrower network anew
(`Rebuild`); without that hook it inherits the weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.utils import vector_to_parameters

from jointopt.errors import InputError, is_real, is_whole
from jointopt.pruning.allocate import Allocator, Plan, check_scores
from jointopt.pruning.channels import ChannelGroups
from jointopt.pruning.evidence import Evidence
from jointopt.pruning.groups import Groups
from jointopt.pruning.hooks import Hook, HookContext, check_state
from jointopt.pruning.layout import Layout
from jointopt.pruning.mask import Mask
from jointopt.pruning.schedules import Schedule

__all__ = ["FilterNorm", "MeanStdBand", "Patience", "Rebuild", "Until"]


@dataclass(frozen=True)
class FilterNorm:
    """Norm of the filters that make a channel; what reads the channel does not count.

    Where several layers make a channel together (a residual sum), their filters are one vector.

    Parameters
    ----------
    power : float
        p of the norm (sum of abs(w)**p)**(1/p), above 0.
    """

    power: float = 1.0
    needs: frozenset[str] = field(default=frozenset(), init=False)

    def __post_init__(self) -> None:
        if not is_real(self.power) or not 0.0 < self.power < float("inf"):
            raise InputError(f"filter norm: power must be finite and above 0, found {self.power!r}")

    def __call__(
        self, groups: Groups, weights: Tensor, evidence: Evidence | None, generator: torch.Generator | None, /
    ) -> Tensor:
        """Return the norms, float64 [units]."""
        if not isinstance(groups, ChannelGroups):
            raise InputError(f"filter norm: needs channels, found granularity '{groups.granularity}'")
        values = weights.detach().abs().to(torch.float64)
        return groups.reduce_filters(values.pow(self.power)).pow(1.0 / self.power)


class _Band(Plan):
    """The same units, however many are asked to go."""

    def __init__(self, units: Tensor) -> None:
        self._units = units
        self.most = int((~units).sum())

    def keep(self, count: int) -> Tensor:
        """Return which units stay, bool [units]."""
        return self._units.clone()


@dataclass(frozen=True)
class MeanStdBand(Allocator):
    """Keep the units of each layer whose score is within k standard deviations of the layer's mean.

    Mean and (population) standard deviation are over the units that are still there. A layer keeps at least the
    units of scores nearest to the mean that it must keep.

    Parameters
    ----------
    k : float
        Half the width of the band in standard deviations, above 0; the authors use 2.0 to 2.2. At scores that follow
        a normal distribution a cut at 2.0 removes 4.6 % of the channels.
    min_keep : int
        Units that every layer keeps, at least 1.
    """

    k: float = 2.0
    min_keep: int = 1
    chooses_ratio: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not is_real(self.k) or not 0.0 < self.k < float("inf"):
            raise InputError(f"mean-std band: k must be finite and above 0, found {self.k!r}")
        if not (is_whole(self.min_keep) and self.min_keep >= 1):
            raise InputError(f"mean-std band: min_keep must be a whole number of at least 1, found {self.min_keep!r}")

    def plan(self, scores: Tensor, groups: Groups, evidence: Evidence | None = None) -> Plan:
        """Return the band; units of score -inf are gone already."""
        check_scores(scores, groups)
        live = scores > -torch.inf
        keep = torch.zeros(len(groups), dtype=torch.bool)
        least = groups.at_least.clamp_min(self.min_keep).tolist()
        for layer in range(len(groups.layers)):
            members = torch.nonzero((groups.layer == layer) & live)[:, 0]
            if len(members) == 0:
                continue
            values = scores[members].to(torch.float64)
            distance = (values - values.mean()).abs()
            # Equal scores differ from their mean by rounding, while their deviation may come out as 0.
            inside = distance <= self.k * values.std(correction=0) + 1e-12 * values.abs().max()
            inside[torch.sort(distance, stable=True).indices[: least[layer]]] = True
            keep[members] = inside
        return _Band(keep)


@dataclass(frozen=True)
class Until(Schedule):
    """A cut at every round up to some round.

    Parameters
    ----------
    last : int
        The last round that cuts, at least 1.
    """

    last: int = 50

    def __post_init__(self) -> None:
        if not (is_whole(self.last) and self.last >= 1):
            raise InputError(f"until: last must be a whole number of at least 1, found {self.last!r}")

    def share(self, round_: int, rounds: int) -> float | None:
        """Return 1 up to the last round that cuts, then None."""
        if not (is_whole(round_) and is_whole(rounds) and 1 <= round_ <= rounds):
            raise InputError(f"schedule: round must lie in 1 .. rounds, found {round_!r} of {rounds!r}")
        return 1.0 if round_ <= self.last else None


class Patience(Hook):
    """Stop for good when some cuts in a row have removed nothing: later masks are replaced by the one before.

    Parameters
    ----------
    rounds : int
        Cuts without removal, at least 1.
    """

    def __init__(self, rounds: int = 3) -> None:
        if not (is_whole(rounds) and rounds >= 1):
            raise InputError(f"patience: rounds must be a whole number of at least 1, found {rounds!r}")
        self.rounds = int(rounds)
        self.idle = 0

    @property
    def stopped(self) -> bool:
        """Whether no cut counts any more."""
        return self.idle >= self.rounds

    def on_cut(self, context: HookContext) -> None:
        """Count cuts that removed nothing, and undo those that come after the stop."""
        if context.new is None:
            return
        if self.stopped:
            context.new = context.old if context.old is not None else Mask.dense(context.new.groups)
        else:
            self.idle = 0 if _changed(context) else self.idle + 1

    def state(self) -> dict[str, Tensor]:
        """Return the number of cuts in a row that removed nothing."""
        return {"idle": torch.tensor(self.idle)}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Restore that number."""
        check_state("patience", state, ("idle",))
        idle = state["idle"]
        if idle.numel() != 1 or idle.is_floating_point() or int(idle) < 0:
            raise InputError(f"patience: state 'idle' must be a whole number of at least 0, found {idle.tolist()!r}")
        self.idle = int(idle)


class Rebuild(Hook):
    """Draw all weights of the narrower network anew after each cut that removed something.

    The layers' own initialisation, at the sizes that are left, seeded from the context's generator; parameters of
    modules without one stay. Unlike `jointopt.pruning.recovery.Reinit`, which draws for the dense network.
    """

    def on_cut(self, context: HookContext) -> None:
        """Write the new weights at the places that are kept, and zeros elsewhere."""
        if context.new is None or not _changed(context):
            return
        if context.generator is None:
            raise InputError("rebuild: drawing weights needs a seeded torch.Generator, found None")
        mask = context.new
        before = context.weights[mask.index]
        narrower = mask.narrow()
        seed = int(torch.randint(2**62, (), generator=context.generator))
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.default_generator.manual_seed(seed)
            vector_to_parameters(before, narrower.parameters())
            for part in narrower.modules():
                reset = getattr(part, "reset_parameters", None)
                if reset is not None:
                    reset()
        context.weights.zero_()
        context.weights[mask.index] = Layout.flatten(narrower).to(context.weights)


def _changed(context: HookContext) -> bool:
    assert context.new is not None
    old = torch.ones_like(context.new.units) if context.old is None else context.old.units
    return not torch.equal(old, context.new.units)

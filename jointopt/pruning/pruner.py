"""A pruning rule put together: score, allocation, granularity, schedule and hooks; and the rules by name."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from jointopt.errors import InputError, is_real, nearest
from jointopt.models.curve import convex_majorant
from jointopt.pruning.allocate import Allocator, Global, Order, Plan, check_scores
from jointopt.pruning.evidence import Evidence, check_needs
from jointopt.pruning.groups import Groups
from jointopt.pruning.hooks import Hook
from jointopt.pruning.magnitude import check_weights, pruned_count, snap
from jointopt.pruning.mask import Mask
from jointopt.pruning.schedules import EveryRound, Schedule
from jointopt.pruning.scores import Magnitude, Score

__all__ = ["GRANULARITIES", "PRUNERS", "DistortionCurve", "Pruner", "pruner", "register"]

GRANULARITIES: dict[str, str] = {
    "weight": "jointopt.pruning.groups:WeightGroups",
    "channel": "jointopt.pruning.channels:ChannelGroups",
    "layer": "jointopt.pruning.blocks:LayerGroups",
}
"""Where the groups of each granularity are found; imported on use, since some need an extra."""

_SORT_FROM = 4
"""From so many ratios on, one sort costs less than one selection each."""


@dataclass(frozen=True)
class DistortionCurve:
    """Measured distortion against pruning ratio.

    Attributes
    ----------
    ratios : float64 array, shape [points]
        Ratios achieved, rising.
    errors : float64 array, shape [points]
        Share of the squared norm of the prunable weights that is removed, in [0, 1], rising; convexity is not promised.
    """

    ratios: NDArray[np.float64]
    errors: NDArray[np.float64]

    def __call__(self, ratio: float | NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the errors at ratios, linear between the points; `InputError` beyond them."""
        asked = np.asarray(ratio, dtype=np.float64)
        if not np.all((asked >= self.ratios[0]) & (asked <= self.ratios[-1])):
            raise InputError(f"distortion: measured for ratios in [{self.ratios[0]}, {self.ratios[-1]}], found {ratio}")
        return np.asarray(np.interp(asked, self.ratios, self.errors))

    def bound(self) -> dict[str, Any]:
        """Return the fields of a system's bound that use this curve in place of an analytic law.

        ``system.with_(**curve.bound())``: from (0, 0), at or above the measurements and made convex where they are not,
        since the designs' certificates rest on that (`jointopt.models.curve.convex_majorant`). A rule that removes more
        than its share at first has no convex curve that ends at ratio 1: it ends where it is 1.
        """
        inside = (self.ratios > 0.0) & (self.ratios < 1.0)
        ratio = np.concatenate([[0.0], self.ratios[inside], [1.0]])
        error = convex_majorant(ratio, np.concatenate([[0.0], np.minimum(self.errors[inside], 1.0), [1.0]]))
        if error[-1] > 1.0:
            last = int(np.argmax(error >= 1.0))
            part = (1.0 - error[last - 1]) / (error[last] - error[last - 1])
            end = ratio[last - 1] + part * (ratio[last] - ratio[last - 1])
            ratio, error = np.append(ratio[:last], end), np.append(error[:last], 1.0)
        return {"pruning_error": "measured", "pruning_curve_ratio": ratio, "pruning_curve_error": error}

    def rising(self) -> DistortionCurve:
        """Return the points whose error exceeds all before: the strictly rising curve that analytic models invert."""
        before = np.concatenate([[-np.inf], np.maximum.accumulate(self.errors)[:-1]])
        return DistortionCurve(self.ratios[self.errors > before], self.errors[self.errors > before])


@dataclass(frozen=True)
class Pruner:
    """A pruning rule.

    Attributes
    ----------
    name : str
        Its name.
    score : Score
        What each unit is worth.
    allocate : Allocator
        How what is removed is spread over layers.
    granularity : str
        What a unit is, one of `GRANULARITIES`.
    schedule : Schedule
        When masks are cut, and how far.
    hooks : tuple of Hook
        What else happens in training. A hook may remember things: use one pruner for one run.
    scope : str
        "client": each device cuts its own mask by its own ratio. "global": one mask for all.
    persist : bool
        Whether units once pruned stay so in later rounds (the loop then passes `previous`).
    options : mapping
        Keyword arguments of the groups.
    """

    name: str
    score: Score = field(default_factory=Magnitude)
    allocate: Allocator = field(default_factory=Global)
    granularity: str = "weight"
    schedule: Schedule = field(default_factory=EveryRound)
    hooks: tuple[Hook, ...] = ()
    scope: str = "client"
    persist: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.granularity not in GRANULARITIES:
            raise InputError(
                f"pruner '{self.name}': unknown granularity '{self.granularity}'"
                f"{nearest(str(self.granularity), GRANULARITIES)}"
            )
        if self.scope not in ("client", "global"):
            raise InputError(f"pruner '{self.name}': scope must be 'client' or 'global', found {self.scope!r}")
        for hook in self.hooks:
            if not isinstance(hook, Hook):
                raise InputError(f"pruner '{self.name}': hooks must be Hook objects, found {hook!r}")
        check_needs(self.needs, f"pruner '{self.name}'")

    @property
    def needs(self) -> frozenset[str]:
        """Evidence that any part looks at."""
        return self.mask_needs.union(*(hook.needs for hook in self.hooks))

    @property
    def mask_needs(self) -> frozenset[str]:
        """Evidence that `masks` looks at."""
        return frozenset(self.score.needs) | self.allocate.needs

    @property
    def chooses_ratio(self) -> bool:
        """Whether the rule sets the ratio itself; those asked for are ignored then."""
        return self.allocate.chooses_ratio

    @property
    def nested(self) -> bool:
        """Whether a larger ratio removes a superset."""
        return self.allocate.nested

    def groups(self, module: nn.Module, example: Tensor | None = None) -> Groups:
        """Return the prunable units of a module.

        Parameters
        ----------
        module : Module
            What is pruned.
        example : Tensor, shape [1, ...], optional
            One input, from which multiplications are counted; channels and blocks need it.
        """
        where, _, name = GRANULARITIES[self.granularity].partition(":")
        make = getattr(importlib.import_module(where), name)
        return cast(Groups, make(module, example, **self.options))

    def masks(
        self,
        groups: Groups,
        weights: Tensor,
        ratios: Sequence[float],
        *,
        evidence: Evidence | None = None,
        generator: torch.Generator | None = None,
        previous: Sequence[Mask] | None = None,
    ) -> list[Mask]:
        """Cut one mask for each ratio; the scores are computed once.

        Parameters
        ----------
        groups : Groups
            The units, from `groups`.
        weights : Tensor, shape [P]
            The weights that masks are cut from.
        ratios : sequence of float
            Share of the prunable weights to remove, in [0, 1). The achieved ratio is at least that and exceeds it by
            less than one unit. Equal ratios share one mask object. Ignored by a pruner that chooses the ratio.
        evidence : Evidence, optional
            What the rule declares in `mask_needs`.
        generator : torch.Generator, optional
            For rules that draw.
        previous : sequence of Mask, optional
            One per ratio: what they pruned stays pruned, even where the ratio is now smaller.

        Returns
        -------
        list of Mask
            One per ratio.

        Raises
        ------
        InputError
            A ratio outside [0, 1), weights that are not finite or not of the module's size, missing evidence or
            generator, or a ratio that cannot be reached since every layer keeps some units.
        """
        targets = [_target(device, ratio, groups.weights) for device, ratio in enumerate(ratios)]
        _check_vector(weights, groups)
        if evidence is not None and len(evidence.weights) != len(weights):
            raise InputError(f"pruning: expected evidence on {len(weights)} parameters, found {len(evidence.weights)}")
        before = _checked_previous(previous, len(targets), groups)
        if not self.chooses_ratio:
            # What the previous mask has reached costs no score and no evidence.
            targets = [
                0 if mask is not None and groups.weights - mask.kept >= target else target
                for target, mask in zip(targets, before, strict=True)
            ]
        if not self.chooses_ratio and not any(targets):
            return _shared(groups, [(0, mask) for mask in before], lambda _, mask: None if mask is None else mask.units)
        scores = self.scores(groups, weights, evidence=evidence, generator=generator)
        if evidence is not None:
            evidence = evidence.granted(self.allocate.needs, self.name)
        elif self.allocate.needs:
            raise InputError(f"pruner '{self.name}' needs evidence {sorted(self.allocate.needs)}, found none")
        plans: dict[int, Plan] = {}

        def cut(target: int, mask: Mask | None) -> Tensor | None:
            if target == 0 and not self.chooses_ratio:
                return None if mask is None else mask.units
            if id(mask) not in plans:
                left = scores if mask is None else torch.where(mask.units, scores, -torch.inf)
                plan = self.allocate.plan(left, groups, evidence)
                if isinstance(plan, Order) and (len(set(targets)) >= _SORT_FROM or not groups.additive):
                    plan.sort()
                plans[id(mask)] = plan
            gone = None if mask is None else mask.units
            if self.chooses_ratio:
                keep = plans[id(mask)].keep(0)
                return keep if gone is None else keep & gone
            return _reach(plans[id(mask)], groups, target, gone, self.name)

        return _shared(groups, list(zip(targets, before, strict=True)), cut)

    def scores(
        self,
        groups: Groups,
        weights: Tensor,
        *,
        evidence: Evidence | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Return the score of each unit, [units]. Arguments and errors as in `masks`."""
        _check_vector(weights, groups)
        if evidence is None and self.score.needs:
            raise InputError(f"pruner '{self.name}' needs evidence {sorted(self.score.needs)}, found none")
        view = None if evidence is None else evidence.granted(self.score.needs, self.name)
        scores = self.score(groups, weights.detach(), view, generator)
        check_scores(scores, groups)
        return scores

    def curve(
        self,
        groups: Groups,
        weights: Tensor,
        ratios: Sequence[float],
        *,
        evidence: Evidence | None = None,
        generator: torch.Generator | None = None,
    ) -> DistortionCurve:
        """Measure the distortion at ratios; those of equal achieved ratio give one point.

        Arguments and errors as in `masks`; `InputError` too for a pruner that chooses the ratio itself.
        """
        if self.chooses_ratio:
            raise InputError(f"pruner '{self.name}' chooses the ratio itself and has no curve")
        if len(ratios) == 0:
            raise InputError("distortion: needs at least one ratio")
        masks = self.masks(groups, weights, sorted(ratios), evidence=evidence, generator=generator)
        points = {mask.ratio: mask for mask in masks}
        return DistortionCurve(
            np.array(sorted(points)), np.array([points[ratio].distortion(weights) for ratio in sorted(points)])
        )

    def with_(self, **changes: Any) -> Pruner:
        """Return a copy with some attributes changed."""
        return replace(self, **changes)


def _target(device: int, ratio: float, weights: int) -> int:
    """Return the least number of weights that makes a ratio."""
    if not is_real(ratio) or not 0.0 <= ratio < 1.0:
        raise InputError(f"pruning: ratio of device {device} must lie in [0, 1), found {ratio!r}")
    return pruned_count(snap(float(ratio), weights), weights)


def _check_vector(weights: Tensor, groups: Groups) -> None:
    check_weights(weights)
    if len(weights) != groups.layout.size:
        raise InputError(f"pruning: expected {groups.layout.size} parameters, found {len(weights)}")


def _checked_previous(previous: Sequence[Mask] | None, count: int, groups: Groups) -> list[Mask | None]:
    if previous is None:
        return [None] * count
    if len(previous) != count:
        raise InputError(f"pruning: previous masks must be one per ratio, found {len(previous)} for {count} ratios")
    for device, mask in enumerate(previous):
        if mask.groups is not groups:
            raise InputError(f"pruning: the previous mask of device {device} is of other groups")
    return list(previous)


def _shared(
    groups: Groups,
    asked: list[tuple[int, Mask | None]],
    cut: Callable[[int, Mask | None], Tensor | None],
) -> list[Mask]:
    """Make one mask for each distinct (target, previous mask)."""
    made: dict[tuple[int, int], Mask] = {}
    out = []
    for target, before in asked:
        key = (target, id(before))
        if key not in made:
            units = cut(target, before)
            made[key] = Mask.dense(groups) if units is None else Mask(groups, units)
        out.append(made[key])
    return out


def _reach(plan: Plan, groups: Groups, target: int, gone: Tensor | None, who: str) -> Tensor:
    """Return the units kept when the fewest go that remove `target` weights."""

    def keep(count: int) -> Tensor:
        units = plan.keep(count)
        return units if gone is None else units & gone

    sizes = groups.sizes() if groups.additive else None
    single = sizes is not None and len(groups) == groups.weights  # units of one weight each

    def removed(units: Tensor) -> int:
        if sizes is not None and not single:
            return int(sizes[~units].sum())
        return groups.weights - groups.kept_weights(units)

    if single and target <= plan.most:
        units = keep(target)
        if removed(units) == target:
            return units
    low, high = 0, plan.most
    best = keep(high)
    if removed(best) < target:
        raise InputError(
            f"pruner '{who}': ratio {target / groups.weights:.9g} cannot be reached, the largest is "
            f"{removed(best) / groups.weights:.9g}, since {_floors(groups, best)}"
        )
    while low < high:
        middle = (low + high) // 2
        units = keep(middle)
        if removed(units) >= target:
            high, best = middle, units
        else:
            low = middle + 1
    return best


def _floors(groups: Groups, units: Tensor) -> str:
    left = groups.layer_counts(units).tolist()
    named = [f"'{name}' keeps {count}" for name, count in zip(groups.layers, left, strict=True) if count]
    return "layer " + ", layer ".join(named[:4]) + (" and so on" if len(named) > 4 else "")


# Pruners by name -----------------------------------------------------------------------------

_FACTORIES: dict[str, Callable[..., Pruner]] = {}

PRUNERS: Mapping[str, Callable[..., Pruner]] = MappingProxyType(_FACTORIES)
"""The pruners by name; each entry makes a `Pruner` from its options."""


def register(name: str, factory: Callable[..., Pruner]) -> None:
    """Make a pruner known by a name; `InputError` if the name is taken or the factory is not callable."""
    if not isinstance(name, str) or not name:
        raise InputError(f"pruner: a name must be a non-empty string, found {name!r}")
    if name in _FACTORIES:
        raise InputError(f"pruner: the name '{name}' is taken")
    if not callable(factory):
        raise InputError(f"pruner '{name}': the factory must be callable, found {factory!r}")
    _FACTORIES[name] = factory


def pruner(name: str, **options: Any) -> Pruner:
    """Return the pruner of that name.

    Parameters
    ----------
    name : str
        One of `PRUNERS`.
    **options
        What its factory takes.

    Raises
    ------
    InputError
        An unknown name or option, or an option out of its range.
    """
    factory = _FACTORIES.get(name)
    if factory is None:
        raise InputError(f"unknown pruner '{name}'{nearest(str(name), _FACTORIES)}")
    known = list(_options(factory))
    for option in options:
        if option not in known:
            hint = nearest(option, known) if known else "; it takes none"
            raise InputError(f"pruner '{name}': unknown option '{option}'{hint}")
    return factory(**options)


def _options(factory: Callable[..., Pruner]) -> Iterator[str]:
    for parameter in inspect.signature(factory).parameters.values():
        if parameter.kind in (parameter.KEYWORD_ONLY, parameter.POSITIONAL_OR_KEYWORD):
            yield parameter.name

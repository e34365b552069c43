"""What else happens around pruning: rewinding weights, growing some back, steering gradients.

The training loop makes one `HookContext` a round and calls the hooks in order: `Hook.on_round` at its start,
`Hook.on_cut` after new masks were cut (a hook may replace ``context.new`` and write into ``context.weights``), and
`Hook.on_gradient` on the gradients of local training. What a hook remembers goes through `Hook.state` and
`Hook.load`, so that a run can be resumed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from jointopt.errors import InputError
from jointopt.pruning.evidence import Evidence
from jointopt.pruning.mask import Mask

__all__ = ["Hook", "HookContext", "run_cut", "run_gradient", "run_round"]


@dataclass
class HookContext:
    """What hooks see and may change.

    Attributes
    ----------
    round_, rounds : int
        The round, counted from 1, of how many.
    weights : Tensor, shape [P]
        The server's weights; hooks write into this tensor.
    old, new : Mask or None
        The masks before and after the cut of this round; None where there is none. A hook may replace `new`.
    initial : Tensor, shape [P], or None
        The weights before any training.
    evidence : Evidence or None
        What hooks may look at; each sees only what it declares.
    generator : torch.Generator or None
        The source of randomness.
    """

    round_: int
    rounds: int
    weights: Tensor
    old: Mask | None = None
    new: Mask | None = None
    initial: Tensor | None = None
    evidence: Evidence | None = None
    generator: torch.Generator | None = None


class Hook:
    """Does nothing; subclasses override what they need."""

    needs: ClassVar[frozenset[str]] = frozenset()
    """Evidence looked at (see `jointopt.pruning.evidence.NEEDS`)."""
    regrows: ClassVar[bool] = False
    """Whether units that were pruned may come back, so that masks do not nest over rounds."""

    def on_round(self, context: HookContext) -> None:
        """Start a round, before anything is cut."""

    def on_cut(self, context: HookContext) -> None:
        """React to new masks."""

    def on_gradient(self, gradient: Tensor, context: HookContext) -> Tensor:
        """Return the gradient [P] that local training uses."""
        return gradient

    def state(self) -> dict[str, Tensor]:
        """Return what the hook remembers."""
        return {}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state` returned; `InputError` where it does not fit."""
        check_state(type(self).__name__, state, ())


def check_state(who: str, state: Mapping[str, Tensor], known: Sequence[str]) -> None:
    """Raise `InputError` unless a state has exactly the known keys, all finite tensors."""
    if set(state) != set(known):
        raise InputError(f"{who}: state must have the keys {sorted(known)}, found {sorted(state)}")
    for key, value in state.items():
        if not isinstance(value, Tensor) or not bool(torch.isfinite(value).all()):
            raise InputError(f"{who}: state '{key}' must be a finite tensor")


def _view(hook: Hook, context: HookContext) -> HookContext:
    evidence = context.evidence
    return replace(context, evidence=None if evidence is None else evidence.granted(hook.needs, type(hook).__name__))


def run_round(hooks: Sequence[Hook], context: HookContext) -> None:
    """Call `Hook.on_round` of all hooks in order."""
    for hook in hooks:
        hook.on_round(_view(hook, context))


def run_cut(hooks: Sequence[Hook], context: HookContext) -> Mask | None:
    """Call `Hook.on_cut` of all hooks in order and return the mask that results (also in ``context.new``)."""
    for hook in hooks:
        view = _view(hook, context)
        hook.on_cut(view)
        context.new = view.new
    return context.new


def run_gradient(hooks: Sequence[Hook], gradient: Tensor, context: HookContext) -> Tensor:
    """Return the gradient [P] after all hooks in order."""
    for hook in hooks:
        gradient = hook.on_gradient(gradient, _view(hook, context))
    return gradient

"""Hooks that set weights or gradients: rewinding, drawing anew, guidance."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from jointopt.errors import InputError, is_whole
from jointopt.pruning.hooks import Hook, HookContext, check_state
from jointopt.pruning.layout import Layout
from jointopt.pruning.pruner import Pruner
from jointopt.pruning.scores import exploration_matrix

__all__ = ["Guidance", "Reinit", "Rewind", "fresh_weights", "with_reinit"]


class Rewind(Hook):
    """After each cut, set the server's weights back to those after some round.

    Round 0 is the initial weights (Frankle & Carbin, The lottery ticket hypothesis, 2019); a later one is more stable
    (Frankle et al., Stabilizing the lottery ticket hypothesis, 2019). A cut before that round leaves the weights.

    Parameters
    ----------
    to : int
        The round, from 0.
    """

    def __init__(self, to: int = 0) -> None:
        if not is_whole(to) or to < 0:
            raise InputError(f"rewind: to must be a whole number of at least 0, found {to!r}")
        self.to = int(to)
        self._weights: Tensor | None = None

    def on_round(self, context: HookContext) -> None:
        """Remember the weights at the start of the round after `to`."""
        if context.round_ == self.to + 1 and self._weights is None:
            self._weights = context.weights.detach().clone()

    def on_cut(self, context: HookContext) -> None:
        """Set the weights back."""
        if self._weights is not None:
            context.weights.copy_(self._weights)

    def state(self) -> dict[str, Tensor]:
        """Return the weights remembered, if any."""
        return {} if self._weights is None else {"weights": self._weights}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state` returned."""
        check_state("rewind", state, ("weights",) if state else ())
        self._weights = state["weights"].clone() if state else None


class Reinit(Hook):
    """After each cut, draw the server's weights anew: the control arm for any pruner.

    It tells whether the mask alone does as well as the weights that it was found with (Liu et al., Rethinking the
    value of network pruning, 2019).
    """

    def on_cut(self, context: HookContext) -> None:
        """Draw the weights from the generator."""
        if context.new is None or context.generator is None:
            raise InputError("reinit: needs a mask and a seeded torch.Generator, found None")
        context.weights.copy_(fresh_weights(context.new.groups.module, context.generator))


def fresh_weights(module: nn.Module, generator: torch.Generator) -> Tensor:
    """Return newly initialised parameters of a module, float32 [P]; the module itself stays as it is.

    Raises
    ------
    InputError
        A parameter belongs to a submodule without ``reset_parameters``.
    """
    new = copy.deepcopy(module)
    resets: set[int] = set()
    seed = int(torch.randint(2**31, (1,), generator=generator))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for part in new.modules():
            reset = getattr(part, "reset_parameters", None)
            if callable(reset):
                reset()
                resets |= {id(parameter) for parameter in part.parameters(recurse=False)}
    for name, parameter in new.named_parameters():
        if id(parameter) not in resets:
            raise InputError(f"reinit: nothing tells how to initialise '{name}'")
    return Layout.flatten(new)


def with_reinit(base: Pruner) -> Pruner:
    """Return the control arm of a pruner: the same masks, and weights drawn anew after each cut."""
    return base.with_(name=f"reinit({base.name})", hooks=(*base.hooks, Reinit()))


class Guidance(Hook):
    """Multiply gradients by how far explorers moved each weight (FedLEx, 2024).

    G is the min-max scaled mean squared drift of explorers, per tensor, measured once in the first round; afterwards
    g becomes g G everywhere.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"explorers"})

    def __init__(self) -> None:
        self._matrix: Tensor | None = None

    def on_round(self, context: HookContext) -> None:
        """Measure G if that has not been done."""
        if self._matrix is None:
            if context.evidence is None:
                raise InputError("guidance: needs evidence 'explorers' in its first round, found none")
            explorers = context.evidence.explorers
            self._matrix = exploration_matrix(context.evidence.layout, context.weights, explorers).to(torch.float32)

    def on_gradient(self, gradient: Tensor, context: HookContext) -> Tensor:
        """Return the gradient times G."""
        if self._matrix is None:
            raise InputError("guidance: no round was started before the first gradient")
        return gradient * self._matrix

    def state(self) -> dict[str, Tensor]:
        """Return G, if measured."""
        return {} if self._matrix is None else {"matrix": self._matrix}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state` returned."""
        check_state("guidance", state, ("matrix",) if state else ())
        self._matrix = state["matrix"].clone() if state else None

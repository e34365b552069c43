"""Pruning inside a training run: when devices are cut, what they hold, and what finding that out costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jointopt.decision import Decision
from jointopt.federated.ledger import Held, Ledger
from jointopt.federated.streams import stream, torch_stream
from jointopt.federated.task import Losses
from jointopt.models.compression import index_bits
from jointopt.pruning.evidence import Batch, Evidence
from jointopt.pruning.hooks import Hook, HookContext, run_cut, run_gradient, run_round
from jointopt.pruning.magnitude import pruned_count
from jointopt.pruning.mask import Mask
from jointopt.pruning.pruner import Pruner
from jointopt.system import System

__all__ = ["Cutting", "Explore"]

Explore = Callable[[NDArray[np.int64], int, int], Tensor]
"""Lets devices explore: (devices, round, steps) to the weights [devices, P] they reach."""

_EXPLORERS, _EXPLORER_STEPS = 10, 10
_HELD = ("kept", "unpruned", "buffers_removed", "mask_bits", "ratio")


class Cutting:
    """Who holds what; `multiplier` [P] is the factor that hooks put on gradients, None for 1.

    Masks are cut from the server's weights, by the schedule of the pruner, for each device's own ratio; a device takes
    its newest when it starts, so that work in progress is not changed. Where the pruner's scope is "client", a cut that
    was due while a device was at work, or was not drawn, is made when it starts. Where it is "global", all are cut at
    once, and the server's model is restricted to what some device may still hold.
    """

    def __init__(
        self,
        decision: Decision,
        system: System,
        losses: Losses,
        pruner: Pruner,
        rounds: int,
        seed: int,
        active: NDArray[np.int64],
        samples: int = 64,
    ) -> None:
        self.pruner, self.losses = pruner, losses
        self._module, self._loss = losses.module, losses.loss
        self._rounds, self._seed, self._samples = rounds, seed, samples
        self.move(decision, system, active)
        self.groups = pruner.groups(self._module, losses.inputs[:1].cpu())
        # what devices work with; what they will take; ratios that are due
        self._masks: dict[int, Mask] = {}
        self._newest: dict[int, Mask] = {}
        self._due: dict[int, float] = {}
        self._initial = losses.start.cpu()
        self.multiplier: Tensor | None = None
        self._held = self._planned()

    def move(self, decision: Decision, system: System, active: NDArray[np.int64]) -> None:
        """Take the ratios and devices of the rounds to come; what is cut stays as it is until it is due."""
        self._active = active
        self._learner, self._batch = system.learner, system.batch
        self._ratios = np.asarray(decision["pruning_ratio"], dtype=np.float64)

    def _planned(self) -> Held:
        """Return what devices hold by the decision alone, before anything is cut."""
        size = len(self._ratios)
        kept = self._learner.parameters - np.asarray(pruned_count(self._ratios, self._learner.parameters))
        per_unit, once = index_bits(len(self.groups), self._learner.mask_encoding)
        zeros = np.zeros(size, dtype=np.int64)
        return Held(
            kept=kept,
            unpruned=zeros + self._learner.unpruned_parameters,
            buffers_removed=zeros,
            mask_bits=np.asarray(kept * int(per_unit) + int(once), dtype=np.int64),
            ratio=1.0 - kept / self._learner.parameters,
        )

    def mask(self, device: int) -> Mask | None:
        """Return a device's mask, None where it holds everything."""
        return self._masks.get(device)

    def held(self) -> Held:
        """Return what devices hold."""
        return self._held

    def note(self, round_: int) -> None:
        """Remember the cuts that a round's schedule asks for, also where nobody starts who could be cut."""
        for u in self._active.tolist():
            ratio = self.pruner.schedule.ratio(round_, self._rounds, float(self._ratios[u]))
            if ratio is not None:
                self._due[u] = ratio

    def cut(
        self,
        weights: Tensor,
        buffers: Tensor,
        round_: int,
        starters: NDArray[np.int64],
        ledger: Ledger,
        explore: Explore,
    ) -> tuple[Tensor, bool]:
        """Cut the masks due in a round; return the server's weights and whether what devices hold has changed.

        The weights are a new tensor where a hook or a global mask changed them. Evidence is charged to the ledger.
        """
        pruner = self.pruner
        self.note(round_)
        # a global mask is everyone's, whoever starts now
        who = self._active if pruner.scope == "global" else starters
        cut = {u: self._due.pop(u) for u in who.tolist() if u in self._due}
        place, plain = weights.device, weights
        if cut or pruner.hooks:
            weights = weights.cpu()
            evidence = None
            if (cut and pruner.mask_needs) or any(hook.needs for hook in pruner.hooks):
                evidence = self._evidence(weights, buffers, round_, starters, explore)
            context = HookContext(
                round_=round_,
                rounds=self._rounds,
                weights=weights.clone() if pruner.hooks else weights,
                initial=self._initial,
                evidence=evidence,
                generator=torch_stream(self._seed, "mask", round_, 1),
            )
            run_round(pruner.hooks, context)
            if cut:
                self._cut(cut, context, evidence)
            self._steer(context, place)
            if evidence is not None:
                self._charge(evidence, ledger)
            if pruner.hooks:
                plain = context.weights.to(place)
        for u in starters.tolist():
            if u in self._newest:
                self._masks[u] = self._newest[u]
            else:
                self._masks.pop(u, None)
        return self.restrict(plain), self._recount()

    def _recount(self) -> bool:
        """Count again what devices hold; return whether it has changed."""
        before, self._held = self._held, self._count()
        return any(not np.array_equal(getattr(before, name), getattr(self._held, name)) for name in _HELD)

    def _cut(self, ratios: Mapping[int, float], context: HookContext, evidence: Evidence | None) -> None:
        pruner = self.pruner
        dense = Mask.dense(self.groups)
        old = [self._newest.get(u, dense) for u in ratios]
        new = pruner.masks(
            self.groups,
            context.weights,
            list(ratios.values()),
            evidence=None if evidence is None else evidence.granted(pruner.mask_needs, pruner.name),
            generator=torch_stream(self._seed, "mask", context.round_),
            previous=old if pruner.persist else None,
        )
        done: dict[tuple[int, int], Mask] = {}
        for u, before, after in zip(ratios, old, new, strict=True):
            key = id(before), id(after)
            if key not in done:
                context.old, context.new = before, after
                done[key] = run_cut(pruner.hooks, context) or after
            mask = done[key]
            if bool(mask.units.all()):
                self._newest.pop(u, None)
            else:
                self._newest[u] = mask

    def _steer(self, context: HookContext, place: torch.device) -> None:
        hooks = [hook for hook in self.pruner.hooks if type(hook).on_gradient is not Hook.on_gradient]
        if hooks:
            # hooks act on gradients entry by entry, so their effect on ones is their effect
            self.multiplier = run_gradient(hooks, torch.ones_like(context.weights), context).to(place)

    def restrict(self, weights: Tensor) -> Tensor:
        """Return the server's weights, 0 where a global mask leaves nobody anything."""
        if self.pruner.scope != "global" or any(u not in self._newest for u in self._active.tolist()):
            return weights
        distinct = {id(mask): mask for mask in self._newest.values()}.values()
        union = torch.stack([mask.keep for mask in distinct]).any(dim=0)
        return torch.where(union.to(weights.device), weights, 0.0)

    def union(self) -> Mask | None:
        """Return the one mask that everyone has by now, None where devices differ or are dense."""
        distinct = {id(self._newest.get(u)): self._newest.get(u) for u in self._active.tolist()}
        return next(iter(distinct.values())) if len(distinct) == 1 else None

    def _evidence(
        self, weights: Tensor, buffers: Tensor, round_: int, starters: NDArray[np.int64], explore: Explore
    ) -> Evidence:
        """Return evidence from the devices that take the server's model now."""
        module = deepcopy(self._module)
        for name, value in self.losses.layout.split_buffers(buffers.cpu()).items():
            dict(module.named_buffers())[name].copy_(value)
        order, explorers, trained = starters, None, None
        if "explorers" in self.pruner.needs:
            drawn = stream(self._seed, "evidence", round_).permutation(starters)
            order = np.concatenate([np.sort(drawn[:_EXPLORERS]), np.sort(drawn[_EXPLORERS:])])
            chosen = order[:_EXPLORERS]
            explorers = partial(explore, chosen, round_, _EXPLORER_STEPS)
            trained = [float(_EXPLORER_STEPS * self._batch[u]) for u in chosen]
        self._order = order
        batches = []
        for u in order.tolist():
            inputs, labels = self.losses.samples_of(u)
            count = len(labels)
            rows = torch.arange(count)
            if count > self._samples:
                drawn = stream(self._seed, "evidence", round_, u).choice(count, self._samples, replace=False)
                rows = torch.from_numpy(drawn)
            rows = rows.to(inputs.device)
            batches.append(Batch(inputs[rows].cpu(), labels[rows].cpu(), float(count)))
        return Evidence(
            module,
            weights,
            batches,
            self._loss,
            initial=self._initial,
            explorers=explorers,
            explorer_samples=trained,
            generator=torch_stream(self._seed, "evidence", round_, 0, 1),
        )

    def _charge(self, evidence: Evidence, ledger: Ledger) -> None:
        size = len(self._ratios)
        bits, samples = np.zeros(size, dtype=np.int64), np.zeros(size)
        for u, charge in zip(self._order.tolist(), evidence.charges, strict=False):
            bits[u], samples[u] = int(charge.upload_bits), charge.training_samples
        ledger.charge(bits, samples)

    def _count(self) -> Held:
        """Count what every device holds."""
        held = self._held
        arrays = {name: getattr(held, name).copy() for name in _HELD}
        per_unit, once = index_bits(len(self.groups), self._learner.mask_encoding)
        weights, size, buffers = self.groups.weights, self.groups.layout.size, self.groups.layout.buffer_size
        dense = (weights, size - weights, 0, int(len(self.groups) * per_unit + once), 0.0)
        known: dict[int, tuple[float, ...]] = {}
        for u in self._active.tolist():
            mask = self._masks.get(u)
            if mask is not None and id(mask) not in known:
                bits = int(int(mask.units.sum()) * per_unit + once)
                removed = buffers - int(mask.keep_buffers.sum())
                known[id(mask)] = (mask.kept, mask.unpruned, removed, bits, mask.ratio)
            for name, value in zip(_HELD, dense if mask is None else known[id(mask)], strict=True):
                arrays[name][u] = value
        return Held(**arrays)

    def tensors(self) -> dict[str, Tensor]:
        """Return what later rounds depend on, tensors by name."""
        out = {f"held.{name}": torch.from_numpy(np.ascontiguousarray(getattr(self._held, name))) for name in _HELD}
        if self.multiplier is not None:
            out["multiplier"] = self.multiplier
        distinct = {id(mask): mask for mask in (*self._masks.values(), *self._newest.values())}
        place = {key: i for i, key in enumerate(distinct)}
        out |= {f"units.{place[key]}": mask.units for key, mask in distinct.items()}
        for name, masks in (("masks", self._masks), ("newest", self._newest)):
            devices = [(u, place[id(mask)]) for u, mask in sorted(masks.items())]
            out[name] = torch.tensor(devices, dtype=torch.int64).reshape(-1, 2)
        out["due"] = torch.tensor(sorted(self._due.items()), dtype=torch.float64).reshape(-1, 2)
        for i, hook in enumerate(self.pruner.hooks):
            out |= {f"hook.{i}.{name}": value for name, value in hook.state().items()}
        return out

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take what `tensors` returned."""
        self._held = Held(**{name: tensors[f"held.{name}"].numpy() for name in _HELD})
        multiplier = tensors.get("multiplier")
        self.multiplier = None if multiplier is None else multiplier.to(self.losses.start.device)
        known = {int(n[6:]): Mask(self.groups, units) for n, units in tensors.items() if n.startswith("units.")}
        self._masks = {u: known[place] for u, place in tensors["masks"].tolist()}
        self._newest = {u: known[place] for u, place in tensors["newest"].tolist()}
        self._due = {int(u): ratio for u, ratio in tensors["due"].tolist()}
        for i, hook in enumerate(self.pruner.hooks):
            prefix = f"hook.{i}."
            hook.load({n[len(prefix) :]: value for n, value in tensors.items() if n.startswith(prefix)})

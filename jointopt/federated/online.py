"""Online learning in the air: what vehicles see as they fly, and the rounds of their slots.

Every sighting is a training sample of the class that was drawn for it: classes are tied to places and times by the
system, images to classes by the data. A vehicle's samples arrive one after another and the oldest leave a full buffer
first, so what it holds in a slot is a window of its stream.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from jointopt.data import Dataset, load
from jointopt.decision import Decision
from jointopt.errors import InputError, is_whole, nearest
from jointopt.federated.codecs.base import Codec, listed
from jointopt.federated.codecs.qsgd import Qsgd
from jointopt.federated.plan import plain_values
from jointopt.federated.scenes import Scene
from jointopt.federated.streams import stream
from jointopt.federated.task import Loss, Task, _matching, _module, _rows
from jointopt.models import mobility
from jointopt.models.compression import level_bits
from jointopt.pruning.magnitude import snap
from jointopt.system import AerialSystem, FloatArray

__all__ = ["OnlineTask", "OnlineWorld"]


@dataclass(frozen=True, eq=False, kw_only=True)
class OnlineTask(Task):
    """What vehicles see, slot by slot, and a network to train on it.

    `parts` are the streams: for each vehicle the indices of the training samples it ever sees, in the order in which it
    sees them; one that never sees any has none.

    Attributes
    ----------
    system : AerialSystem
        For whose places, times and trajectories the streams were drawn.
    """

    online: ClassVar[bool] = True
    system: AerialSystem

    @classmethod
    def make(cls, *args: Any, **options: Any) -> Self:
        """Refuse: what vehicles see follows from their system."""
        raise InputError("OnlineTask: is made for a system of vehicles, by OnlineTask.for_system(system, ...)")

    @classmethod
    def for_system(  # type: ignore[override]  # another world, with no other split than its own
        cls,
        system: AerialSystem,
        data: str | Dataset = "digits",
        network: str | nn.Module | None = None,
        seed: int = 0,
        among: ArrayLike | None = None,
        folder: str | os.PathLike[str] | None = None,
        loss: Loss = cross_entropy,
        **options: Any,
    ) -> Self:
        """Draw what the vehicles see along their trajectories (theory 5a [S]).

        The class of each of a slot's new samples is drawn from the mix of what is seen there; its image is the
        vehicle's next of that class, in an order of its own, and comes again only after all of the class have come.
        Samples held before the first slot are of the class mix that is there in the first. Draws depend on seed, slot
        and vehicle alone, so that vehicles on other ways meet the same luck.

        Parameters
        ----------
        system : AerialSystem
            Who flies where and sees what.
        data
            "digits", "fashion-mnist", ... (see `jointopt.data.load`) or a `Dataset`, of as many classes.
        network
            As in `Task.make`; the known one with the learner's parameter counts when not given.
        seed
            Seed of sightings and initial weights.
        among
            Indices of the training samples that may be seen; all when not given.
        folder, loss, **options
            As in `Task.make`.

        Raises
        ------
        InputError
            The data have other classes than the system, or none of a class that is seen, or the network's parameter
            counts are not those of the learner.
        """
        if not isinstance(system, AerialSystem):
            raise InputError(f"system: expected an AerialSystem, found {type(system).__name__}")
        if not (is_whole(seed) and seed >= 0):
            raise InputError(f"seed: must be a whole number of at least 0, found {seed!r}")
        dataset = load(data, folder) if isinstance(data, str) else data
        if dataset.classes != system.sensing.classes:
            raise InputError(
                f"task: the scenario's vehicles see {system.sensing.classes} classes, '{dataset.name}' has "
                f"{dataset.classes}"
            )
        seen = np.arange(len(dataset.train_labels)) if among is None else _rows(among, len(dataset.train_labels))
        if network is None:
            want = (system.learner.parameters, system.learner.unpruned_parameters)
            network, found = _matching(dataset, want) or ("mlp", {})
            options = {**found, **options}
        task = cls(
            data=dataset,
            module=_module(network, dataset, seed, options),
            parts=_streams(system, dataset, seen, int(seed)),
            batch_size=system.learner.batch_size,
            network=network if isinstance(network, str) else "custom",
            scheme="places",
            seed=int(seed),
            loss=loss,
            system=system,
        )
        task.check(system)
        return task

    def augmented(self, *args: Any, **options: Any) -> Task:
        """Refuse: synthetic samples of what vehicles have not seen yet would have no place in their streams."""
        raise InputError("task: an OnlineTask cannot be augmented; what vehicles hold changes from slot to slot")

    def __repr__(self) -> str:
        batch = "full batch" if self.batch_size is None else f"batches of {self.batch_size}"
        return (
            f"OnlineTask({self.name}, {self.network}: {len(self)} vehicles, {self.system.area.slots} slots, "
            f"{int(self.samples.sum())} samples seen, {self.parameters + self.unpruned_parameters} parameters, {batch})"
        )

    __str__ = __repr__

    @cached_property
    def _ends(self) -> NDArray[np.int64]:
        """How many samples each vehicle has had before the first slot and after each, shape [devices, slots + 1]."""
        system = self.system
        return np.cumsum(np.column_stack([system.vehicles.held, system.arrivals]), axis=1).astype(np.int64)

    def window(self, device: int, slot: int) -> slice:
        """Return which of a vehicle's stream its buffer holds in a slot, from 0.

        Raises
        ------
        InputError
            For a vehicle or slot that does not exist.
        """
        for name, value, count in (("device", device, len(self)), ("slot", slot, self.system.area.slots)):
            if not (is_whole(value) and 0 <= value < count):
                raise InputError(f"{name}: {value!r} must be a whole number from 0 to {count - 1}")
        end = int(self._ends[device, slot + 1])
        return slice(max(0, end - int(self.system.sensing.buffer[device])), end)

    def fresh(self, device: int, slot: int) -> slice:
        """Return which of a vehicle's stream it first sees in a slot, from 0."""
        return slice(int(self._ends[device, slot]), int(self._ends[device, slot + 1]))

    def buffer(self, device: int, slot: int) -> NDArray[np.int64]:
        """Return the training samples that a vehicle holds in a slot, from 0, by number in the data."""
        window = self.window(device, slot)
        return self.parts[device][window]

    @cached_property
    def _first(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The training samples by the slot in which any vehicle first has them, and where each slot's begin."""
        slots = self.system.area.slots
        first = np.full(len(self.data.train_labels), slots + 1)
        for part, ends in zip(self.parts, self._ends, strict=True):
            # those held before the first slot belong to none
            np.minimum.at(first, part, np.repeat(np.arange(-1, slots), np.diff(ends, prepend=0)))
        order = np.argsort(first, kind="stable")
        return order, np.searchsorted(first[order], np.arange(slots + 1))

    def unseen(self, slot: int) -> NDArray[np.int64]:
        """Return the training samples that no vehicle had before and one sees in a slot, from 0, by number."""
        order, starts = self._first
        return order[starts[slot] : starts[slot + 1]]

    def class_shares(self, slot: int) -> FloatArray:
        """Return the shares of the classes in every buffer in a slot, [devices, classes]; zeros where it is empty."""
        labels, classes = self.data.train_labels.numpy(), self.data.classes
        counts = np.stack([np.bincount(labels[self.buffer(u, slot)], minlength=classes) for u in range(len(self))])
        return np.asarray(counts / np.maximum(counts.sum(axis=1, keepdims=True), 1))

    def check(self, system: Any) -> None:
        """Refuse a system that is not about this task.

        Raises
        ------
        InputError
            The vehicles, what they see or how much they hold, the sizes of the network, its header or the batch size
            differ.
        """
        cure = "OnlineTask.for_system(system, ...) makes one that fits"
        if not isinstance(system, AerialSystem):
            raise InputError(
                f"task: is about vehicles in the air, the scenario is a {type(system).__name__}; Task.for_system(...) "
                "makes one that fits"
            )
        own = self.system
        if system.sensing.classes != own.sensing.classes:
            raise InputError(
                f"task: is about {own.sensing.classes} classes, the scenario about {system.sensing.classes}; {cure}"
            )
        if len(system) != len(own) or system.area.slots != own.area.slots:
            raise InputError(
                f"task: is about {len(own)} vehicles in {own.area.slots} slots, the scenario about {len(system)} in "
                f"{system.area.slots}; {cure}"
            )
        differ = np.any(own.class_yield != system.class_yield, axis=2) | (own.arrivals != system.arrivals)
        before = (own.sensing.buffer != system.sensing.buffer) | (own.vehicles.held != system.vehicles.held)
        # what is held before the first slot follows from the classes of the first
        before |= (own.vehicles.held > 0.0) & np.any(own.class_mix[:, 0] != system.class_mix[:, 0], axis=1)
        differ |= before[:, None]
        if np.any(differ):
            u, slot = (int(i) for i in np.argwhere(differ)[0])
            raise InputError(
                f"task: device {u} sees or holds other samples in slot {slot} than in the scenario, whose "
                f"trajectories, classes or buffers differ; {cure}"
            )
        self._check_learner(system.learner, cure, header=float(Qsgd.header_bits))


def _streams(system: AerialSystem, data: Dataset, among: NDArray[np.int64], seed: int) -> tuple[NDArray[np.int64], ...]:
    """Return what each vehicle sees, in order, by number in the data."""
    labels = data.train_labels.numpy()[among]
    pools = [among[labels == c] for c in range(data.classes)]
    mix = mobility.class_probabilities(system.class_yield)
    arrivals, held = system.arrivals.astype(np.int64), system.vehicles.held.astype(np.int64)
    streams = []
    for u in range(len(system)):
        # before the first slot, then in each; where nothing comes nothing is drawn
        counts, shares = [int(held[u]), *arrivals[u].tolist()], [system.class_mix[u, 0], *mix[u]]
        pieces = [
            _drawn(stream(seed, "arrivals", t, u), share, count)
            for t, (share, count) in enumerate(zip(shares, counts, strict=True))
            if count > 0
        ]
        classes = np.concatenate([np.empty(0, dtype=np.int64), *pieces])
        out = np.empty(len(classes), dtype=np.int64)
        for c in np.unique(classes).tolist():
            if len(pools[c]) == 0:
                raise InputError(f"task: device {u} sees class {c}, of which '{data.name}' has no training sample")
            where = np.flatnonzero(classes == c)
            rng = stream(seed, "sightings", c, u)
            rounds = [rng.permutation(pools[c]) for _ in range(-(-len(where) // len(pools[c])))]
            out[where] = np.concatenate(rounds)[: len(where)]
        streams.append(out)
    return tuple(streams)


def _drawn(rng: np.random.Generator, share: FloatArray, count: int) -> NDArray[np.int64]:
    """Draw classes by their shares, one uniform number each."""
    ends = np.cumsum(share)
    # never a class beyond the last that has a share, whatever rounding does
    return np.minimum(
        np.searchsorted(ends, rng.random(count) * ends[-1], side="right"), np.flatnonzero(share)[-1]
    ).astype(np.int64)


class OnlineWorld:
    """The scenes of the slots under a decision; `decision` is as carried out, its variables of shape [slots x devices].

    Parameters
    ----------
    decision : mapping
        `pruning_ratio` and `levels`, one number or one for each slot and vehicle, slot by slot, and if given
        `selected`, who takes part: all who hold samples when not given. Of levels that take as many bits the most are
        sent.
    system : AerialSystem
        The vehicles.
    task : OnlineTask
        What they see.
    codec : Codec
        How updates are sent.

    Raises
    ------
    InputError
        A variable is missing, unknown, of another size or out of its range; the message names variable, slot, device.
    """

    _NEEDED = ("pruning_ratio", "levels")

    def __init__(self, decision: Mapping[str, Any], system: AerialSystem, task: OnlineTask, codec: Codec) -> None:
        self.system, self.task = system, task
        self._shape = (system.area.slots, len(system))
        held = task.system.buffered.T > 0.0
        values = self._values(plain_values(decision))
        selected = values.get("selected", held.astype(np.float64))
        bits = level_bits(values["levels"])
        ratio, learner = values["pruning_ratio"], system.learner
        part = selected == 1.0
        self._refuse("selected", selected, ~np.isin(selected, (0.0, 1.0)), "must be 0 or 1")
        self._refuse("selected", selected, part & ~held, "takes part, but its buffer is empty")
        beyond = ~((ratio >= 0.0) & (ratio <= learner.pruning_ratio_max + 1.0 / learner.parameters))
        self._refuse("pruning_ratio", ratio, part & beyond, f"must lie in 0 .. {learner.pruning_ratio_max:g}")
        levels = values["levels"]
        self._refuse("levels", levels, part & (levels != np.rint(levels)), "must be a whole number")
        self._refuse(
            "levels",
            levels,
            part & ~np.isin(bits, codec.widths),
            f"takes bits that codec '{codec.name}' cannot send ({listed(codec.widths)})",
        )
        self._bits = np.where(part, bits, float(codec.widths[0]))
        self.decision = Decision(
            pruning_ratio=np.asarray(snap(np.where(part, ratio, 0.0), learner.parameters)).reshape(-1),
            levels=levels.reshape(-1),
            selected=selected.reshape(-1),
        )
        self._flown = np.cumsum(system.flight_energy.sum(axis=0))
        self._arrived = system.arrivals.sum(axis=0)
        self._last: tuple[int, Scene] | None = None

    def _values(self, decision: Mapping[str, Any]) -> dict[str, FloatArray]:
        """Return the variables, shape [slots, devices]."""
        known = (*self._NEEDED, "selected")
        for name in decision:
            if name not in known:
                raise InputError(f"decision: training in the air cannot carry out '{name}'{nearest(name, known)}")
        for name in self._NEEDED:
            if name not in decision:
                raise InputError(f"decision: '{name}' is missing")
        slots, devices = self._shape
        out = {}
        for name, value in Decision(dict(decision)).items():
            if value.ndim != 1:
                raise InputError(f"decision.{name}: is a batch of shape {value.shape}; training takes one decision")
            if value.shape[0] not in (1, slots * devices):
                raise InputError(
                    f"decision.{name}: has {value.shape[0]} values, the scenario {slots * devices} ({devices} vehicles "
                    f"in {slots} slots)"
                )
            out[name] = np.broadcast_to(value, slots * devices).reshape(slots, devices).copy()
        self._refuse("levels", out["levels"], out["levels"] < 1.0, "must be at least 1")
        return out

    @staticmethod
    def _refuse(name: str, values: FloatArray, bad: NDArray[np.bool_], rule: str) -> None:
        if np.any(bad):
            slot, u = (int(i) for i in np.argwhere(bad)[0])
            raise InputError(f"decision.{name}[slot {slot}, device {u}]: {float(values[slot, u])!r} {rule}")

    def scene(self, round_: int) -> Scene:
        """Return the scene of the slot of a round, counted from 1."""
        if self._last is None or self._last[0] != round_:
            self._last = round_, self._scene(round_ - 1)
        return self._last[1]

    def _scene(self, slot: int) -> Scene:
        system, task = self.system, self.task
        values = {name: value.reshape(self._shape)[slot] for name, value in self.decision.items() if name != "levels"}
        part = values["selected"] > 0.5
        rows = tuple(
            torch.from_numpy(task.buffer(u, slot) if part[u] else np.empty(0, dtype=np.int64))
            for u in range(len(system))
        )
        return Scene(
            system=system.in_slot(slot),
            decision=Decision({**values, "bits": self._bits[slot], "power": system.vehicles.power}),
            rows=rows,
            fresh=torch.from_numpy(task.unseen(slot)),
            class_mix=self._mix(rows),
            row={
                "slot": slot,
                "time": float(system.times[slot]),
                "arrived": int(self._arrived[slot]),
                "unseen": len(task.unseen(slot)),
                "held": int(system.buffered[:, slot].sum()),
                "flight_energy": float(system.flight_energy[:, slot].sum()),
                "cumulative_flight_energy": float(self._flown[slot]),
            },
        )

    def _mix(self, rows: tuple[Tensor, ...]) -> FloatArray:
        """Return the shares of the classes among the samples given, zeros where there are none."""
        labels = self.task.data.train_labels[torch.cat(rows)].numpy()
        counts = np.bincount(labels, minlength=self.task.data.classes)
        return np.asarray(counts / max(int(counts.sum()), 1))

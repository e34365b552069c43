"""State and steps of one training run: who starts, who is cut how, what is sent, what the server makes of it.

Everything that a run depends on later is in `Loop.tensors` and `Loop.data`, so that a run can be put down after any
round and taken up again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from jointopt.decision import Decision
from jointopt.errors import InputError, JointoptError, NonFiniteError
from jointopt.federated.aggregation import Aggregation, ServerRule
from jointopt.federated.clocks import Clock, Event
from jointopt.federated.codecs import Codec, ErrorFeedback, Payload, decode_mask, encode_mask
from jointopt.federated.cutting import Cutting
from jointopt.federated.engines import Client, Engine, Job, choose, engine, measure
from jointopt.federated.ledger import Ledger
from jointopt.federated.rules import LocalRule
from jointopt.federated.scenes import Scene, World
from jointopt.federated.streams import number, stream, torch_stream
from jointopt.federated.task import Losses, Task
from jointopt.pruning.mask import Mask
from jointopt.pruning.pruner import Pruner
from jointopt.system import FloatArray, System

__all__ = ["DivergedError", "Loop", "Plan", "Step", "finite"]


_RAW = 32
"""The width at which floats are sent as they are, without random numbers."""


def finite(values: Tensor) -> bool:
    """Whether all entries are finite; one pass, without a mask of them."""
    return len(values) == 0 or all(math.isfinite(float(end)) for end in torch.aminmax(values))


class DivergedError(Exception):
    """Raised inside a round when a loss or a gradient is no longer finite."""


@dataclass(frozen=True, eq=False)
class Plan:
    """How training goes, beside the decision: the parts and numbers of `jointopt.federated.train`."""

    rounds: int
    learning_rate: float
    local_steps: int
    seed: int
    rule: LocalRule
    aggregation: type[Aggregation]
    server: ServerRule
    clock: Clock
    codec: Codec
    pruner: Pruner
    error_feedback: bool
    delays: str
    participation: int
    dropout: FloatArray
    engine: str
    device: torch.device
    precision: str
    evidence_samples: int
    attendance: FloatArray | None = None
    """Probability that each device joins a round, shape [devices]; everyone always does when None."""


@dataclass(frozen=True)
class Step:
    """What one round did: next weights and running statistics, the training loss, and what is booked."""

    weights: Tensor
    buffers: Tensor
    loss: float
    time: float
    tick: int
    done: NDArray[np.int64]
    gain: FloatArray
    lost: NDArray[np.bool_]
    worked: NDArray[np.bool_]
    sent: NDArray[np.bool_]
    late: NDArray[np.bool_]
    radio: NDArray[np.bool_]
    cutoff: float


@dataclass(frozen=True, eq=False)
class _Version:
    """The server's model as it was when some device started."""

    weights: Tensor
    buffers: Tensor


@dataclass(frozen=True, eq=False)
class _Places:
    """A mask's places; it holds the mask, so that its identity is not given to another."""

    mask: Mask
    keep: Tensor
    index: Tensor
    buffers: Tensor


class _Clients:
    """Clients made anew whenever they are gone through, one at a time: all at once would fill the memory."""

    def __init__(self, makers: list[Callable[[], Client]]) -> None:
        self._makers = makers

    def __iter__(self) -> Iterator[Client]:
        return (make() for make in self._makers)


class Loop:
    """A run in progress; `weights` [P] and `buffers` [B] are the server's after `round` rounds.

    Where a `world` is given, each round has a scene of its own, which `enter` sets; `system` and `decision` are then
    those of the first.
    """

    def __init__(self, decision: Decision, system: System, task: Task, plan: Plan, world: World | None = None) -> None:
        self.plan, self.task, self.world = plan, task, world
        self.losses = Losses(task, plan.device)
        self.scene: Scene | None = None
        self.samples = task.samples
        self._take(system, decision)
        self.ledger = Ledger(
            system,
            decision,
            local_steps=plan.local_steps,
            packets=plan.rule.packets,
            synthetic=None if task.synthetic is None else task.synthetic.counts.sum(axis=1),
        )
        # of the loss whose gradient the system's target is about
        self.mix = None if system.target is None or system.augmentation is None else system.augmentation.class_mix
        self.cutting = Cutting(
            decision, system, self.losses, plan.pruner, plan.rounds, plan.seed, self.active, plan.evidence_samples
        )
        self.weights, self.buffers = self.losses.start.clone(), self.losses.start_buffers.clone()
        self.round, self.now, self.tick = 0, 0.0, 0
        size = len(system)
        # of the work that each device is doing
        self.finish = np.full(size, np.inf)
        self.version = np.zeros(size, dtype=np.int64)
        self.gain, self.lost = np.ones(size), np.zeros(size, dtype=np.bool_)
        self.dropped = np.zeros(size, dtype=np.bool_)
        self.versions: dict[int, _Version] = {}
        self.idle = self.active
        self.residual: dict[int, Tensor] = {}
        self.modules: dict[tuple[int, ...], nn.Module] = {}
        self.engine = plan.engine
        self.unchecked: set[int] = set()
        self._drawn = -1, 0
        self._placed: dict[int, _Places] = {}
        plan.rule.start(len(self.weights), plan.device)
        plan.server.start()
        self._cut_first()

    def _take(self, system: System, decision: Decision) -> None:
        """Set what the rounds to come are about."""
        self.radio = system.radio
        self.bits = decision["bits"].astype(np.int64)
        self.active = np.flatnonzero(np.asarray(decision.get("selected", np.ones(len(system)))) > 0.5)

    def enter(self, round_: int) -> None:
        """Enter the scene of a round; nothing where all rounds are alike."""
        if self.world is None:
            return
        scene = self.world.scene(round_)
        self._take(scene.system, scene.decision)
        self.scene, self.samples = scene, scene.samples
        self.losses.hold(scene.rows)
        self.ledger.move(scene.system, scene.decision)
        self.cutting.move(scene.decision, scene.system, self.active)
        self._hold()

    def _cut_first(self) -> None:
        """Set the first masks' cost, so that clock and frequencies know the planned delays before anything runs."""
        self._hold()
        self.plan.clock.check(self.ledger.planned()[0][self.active])
        self.frequency = self._frequency()

    def _frequency(self) -> FloatArray:
        """Return how often the clock takes each device's work, per tick, arrays ``[devices]``."""
        out = np.ones(len(self.samples))
        clock, delay = self.plan.clock, self.ledger.cost.delay
        if clock.waits:
            return out
        if self.plan.delays == "booked" and not np.any(self.plan.dropout):
            out[self.active] = clock.frequency(delay[self.active])
            return out
        # as the run itself draws them, from a round that it never comes to
        rng = stream(self.plan.seed, "channel", 0)

        def draw(devices: NDArray[np.int64]) -> FloatArray:
            gain, luck = rng.standard_exponential(len(out)), rng.random(len(out))
            return self._durations(gain, luck < self.plan.dropout)[self.active[devices]]

        out[self.active] = clock.simulated(delay[self.active], draw, ticks=10_000)
        return out

    def _durations(self, gain: FloatArray, dropped: NDArray[np.bool_]) -> FloatArray:
        """Return how long the next work of each device takes [s], given gains and who will not send."""
        cost = self.ledger.cost
        upload = self.ledger.faded_upload(gain) if self.plan.delays == "faded" else cost.upload_delay
        # what comes before and beside the payload: computing, and evidence
        rest = self.ledger.planned()[0] - cost.upload_delay
        return rest + np.where(dropped, 0.0, upload)

    def _hold(self) -> None:
        held = self.cutting.held()
        codec = None if self.plan.codec.name == "uniform" else self.plan.codec
        self.ledger.hold(held, codec)
        self.unchecked = set(self.active.tolist())

    # What the radio and chance do -----------------------------------------------------------------------------

    def draw_channel(self, round_: int) -> tuple[FloatArray, NDArray[np.bool_]]:
        """Draw fading gains and losses [devices]; always the same numbers, whatever the decision."""
        rng = stream(self.plan.seed, "channel", round_)
        size = len(self.samples)
        gain, luck = rng.standard_exponential(size), rng.random(size)
        cost, radio = self.ledger.cost, self.radio
        if radio.fading == "none":
            return np.ones(size), luck < cost.packet_error
        if radio.packet_error == "none":
            return gain, np.zeros(size, dtype=np.bool_)
        faded = cost.snr * gain
        if radio.packet_error == "outage":
            return gain, faded < radio.outage_threshold
        with np.errstate(divide="ignore"):
            return gain, luck < -np.expm1(-radio.waterfall_threshold / faded)

    def _starters(self, round_: int) -> NDArray[np.int64]:
        """Return who takes the server's model now."""
        if not self.plan.clock.waits:
            return self.idle
        if self.plan.attendance is not None:
            luck = stream(self.plan.seed, "attendance", round_).random(len(self.samples))
            return self.active[(luck < self.plan.attendance)[self.active]]
        if self.plan.participation >= len(self.active):
            return self.active
        chosen = stream(self.plan.seed, "selection", round_).permutation(self.active)[: self.plan.participation]
        return np.sort(chosen)

    def _start(self, round_: int) -> NDArray[np.int64]:
        """Let devices take the server's model: masks, channel, and when they will be done."""
        starters = self._starters(round_)
        if len(starters) == 0:
            self.cutting.note(round_)
            return starters
        try:
            weights, changed = self.cutting.cut(
                self.weights, self.buffers, round_, starters, self.ledger, self._explore
            )
        except NonFiniteError as error:
            raise DivergedError(str(error)) from error
        self.weights = weights
        if changed:
            self._hold()
            self.frequency = self._frequency()
        gain, lost = self.draw_channel(round_)
        luck = stream(self.plan.seed, "dropout", round_).random(len(self.samples))
        self.gain[starters], self.lost[starters] = gain[starters], lost[starters]
        self.dropped[starters] = (luck < self.plan.dropout)[starters]
        self.version[starters] = round_
        self.versions[round_] = _Version(self.weights, self.buffers)
        duration = self._durations(self.gain, self.dropped)
        self.finish[starters] = self.now + duration[starters]
        for u in starters.tolist():
            self.plan.rule.begin(u)
        return starters

    # What devices do ------------------------------------------------------------------------------------------

    def _places(self, mask: Mask) -> _Places:
        """Return a mask's places on the device where training happens."""
        known = self._placed.get(id(mask))
        if known is None or known.mask is not mask:
            if len(self._placed) >= 256:
                self._placed.clear()
            where = self.plan.device
            known = _Places(mask, mask.keep.to(where), mask.index.to(where), mask.keep_buffers.to(where))
            self._placed[id(mask)] = known
        return known

    def rows(self, device: int, round_: int, steps: int) -> Tensor:
        """Return the samples of a device's steps by number, [steps, batch], or [n] for all of them."""
        count, batch = int(self.samples[device]), self.task.batch_size
        if batch is None or batch >= count:
            return self.losses.rows_of(device)
        rng = stream(self.plan.seed, "batch", round_, device)
        drawn = np.stack([rng.choice(count, batch, replace=False) for _ in range(steps)])
        return self.losses.rows_of(device, torch.from_numpy(drawn))

    def _client(self, device: int, round_: int, mask: Mask | None, version: _Version, steps: int) -> Client:
        weights, buffers, keep = version.weights, version.buffers, None
        correction = self.plan.rule.correction(device)
        if mask is not None:
            held = self._places(mask)
            if mask.structured:
                weights, buffers = weights[held.index], buffers[held.buffers]
                correction = None if correction is None else correction[held.index]
            else:
                keep = held.keep
                weights = weights * keep
        return Client(
            weights=weights,
            rows=self.rows(device, round_, steps),
            keep=keep,
            buffers=buffers,
            correction=correction,
            seed=self._network_seed(round_, device),
        )

    def _network_seed(self, round_: int, device: int) -> int:
        """Return the seed of what a network itself draws; one stream a round, since few networks draw anything."""
        if self._drawn[0] != round_:
            self._drawn = round_, number(self.plan.seed, "network", round_)
        # an odd multiplier keeps devices apart
        return (self._drawn[1] + 0x9E3779B97F4A7C15 * device) % 2**63

    def _job(self, mask: Mask | None, steps: int) -> Job:
        module, multiplier = self.task.module, self.cutting.multiplier
        if mask is not None and mask.structured:
            signature = mask.groups.signature(mask.units)
            if signature not in self.modules:
                if len(self.modules) >= 64:
                    self.modules.pop(next(iter(self.modules)))
                self.modules[signature] = mask.narrow()
            module = self.modules[signature]
            multiplier = None if multiplier is None else multiplier[self._places(mask).index]
        return Job(
            module=module,
            inputs=self.losses.inputs,
            labels=self.losses.labels,
            loss=self.task.loss,
            steps=steps,
            learning_rate=self.plan.learning_rate,
            proximal=self.plan.rule.proximal,
            multiplier=multiplier,
            precision=self.plan.precision,
        )

    def _trained(
        self, devices: NDArray[np.int64], round_: int
    ) -> Iterator[tuple[int, Mask | None, float, Tensor, Tensor]]:
        """Do the local work of devices; yield device, mask (None when dense), loss, total and running statistics."""
        alike: dict[tuple[Any, ...], list[int]] = {}
        masks: dict[int, Mask | None] = {}
        for u in devices.tolist():
            mask = self.cutting.mask(u)
            masks[u] = mask
            shape: tuple[Any, ...] = ()
            if mask is not None and mask.structured:
                # a factor on gradients is for some channels, not for so many
                apart = None if self.cutting.multiplier is None else id(mask)
                shape = (*mask.groups.signature(mask.units), apart)
            alike.setdefault(shape, []).append(u)
        steps = self.plan.local_steps
        for members in alike.values():
            job = self._job(masks[members[0]], steps)
            clients = _Clients(
                [
                    partial(self._client, u, round_, masks[u], self.versions[int(self.version[u])], steps)
                    for u in members
                ]
            )
            for done in self._engine(job, clients, len(members)).run(job, clients):
                u = members[done.number]
                if not (math.isfinite(done.loss) and finite(done.total)):
                    raise DivergedError(f"the loss or gradient of device {u} is not finite")
                yield u, masks[u], done.loss, done.total, done.buffers

    def _engine(self, job: Job, clients: _Clients, count: int) -> Engine:
        if self.engine == "measure":
            seconds = measure(job, clients)
            self.engine = min(seconds, key=lambda name: seconds[name])
        if self.engine == "auto":
            return choose(job, count)
        found = engine(self.engine)
        if not found.supports(job):
            raise InputError(f"engine: '{found.name}' cannot train the network '{self.task.network}'")
        return found

    def _explore(self, devices: NDArray[np.int64], round_: int, steps: int) -> Tensor:
        """Return the weights [devices, P] to which some devices come from the server's in some steps."""
        version = _Version(self.weights, self.buffers)
        job = self._job(None, steps)
        clients = _Clients([partial(self._client, int(u), round_, None, version, steps) for u in devices])
        moved = torch.empty(len(devices), len(self.weights))
        for done in self._engine(job, clients, len(devices)).run(job, clients):
            if not finite(done.total):
                raise DivergedError(f"the gradient of device {int(devices[done.number])} is not finite")
            moved[done.number] = (self.weights - self.plan.learning_rate * done.total).cpu()
        return moved

    def send(self, device: int, round_: int, entries: Tensor, mask: Mask | None, packet: int = 0) -> Tensor:
        """Return what the server decodes of a device's update, or of what it sends beside it (`packet` 1).

        The first payload at a cost is really packed, with its mask where that must travel, and its size checked.
        Where error feedback is asked for, what earlier codes left out of updates is added.
        """
        where = (round_, device) if packet == 0 else (round_, device, packet)
        codec, bits = self.plan.codec, int(self.bits[device])
        generator = torch_stream(self.plan.seed, "quantizer", *where) if codec.random and bits != _RAW else None
        index = None if mask is None else self._places(mask).index
        first = device in self.unchecked
        if not (self.plan.error_feedback and packet == 0):
            if not first:
                return codec.simulate(entries, bits, generator)
            return self._unpacked(device, codec.encode(entries, bits, generator), mask, entries.device)
        feedback = ErrorFeedback(codec)
        over = self.residual.get(device, torch.zeros_like(self.weights))
        held = over if index is None else over[index]
        if first:
            payload, left = feedback.encode(entries, held, bits, generator)
            sent = self._unpacked(device, payload, mask, entries.device)
        else:
            sent, left = feedback.simulate(entries, held, bits, generator)
        self.residual[device] = left if index is None else over.index_copy(0, index, left)
        return sent

    def _unpacked(self, device: int, payload: Payload, mask: Mask | None, place: torch.device) -> Tensor:
        """Check the size of what was packed, and decode it."""
        self.unchecked.discard(device)
        self.ledger.check_payload(device, payload.bits, self._mask_bits(mask))
        return self.plan.codec.decode(payload).to(place)

    def _mask_bits(self, mask: Mask | None) -> int:
        """Return the bits that a mask really takes, encoded and decoded again."""
        form = self.ledger.system.learner.mask_encoding
        if form == "none":
            return 0
        units = torch.ones(len(self.cutting.groups), dtype=torch.bool) if mask is None else mask.units
        payload = encode_mask(units, form)
        if not torch.equal(decode_mask(payload), units):
            raise JointoptError("a mask was not decoded as it was encoded")
        return payload.bits

    # What the server does -------------------------------------------------------------------------------------

    def _next(self, working: NDArray[np.int64]) -> Event:
        """Return the event that ends the round; a round that nobody joins takes no time."""
        if len(working) == 0:
            return Event(self.now, np.empty(0, dtype=np.int64))
        planned = self.ledger.planned()[0]
        return self.plan.clock.next(self.now, self.tick, self.finish[working], planned[working])

    def step(self) -> Step:
        """Do one round; nothing but the clock's and the parts' own state changes before `accept`.

        The round's scene has been entered.
        """
        round_ = self.round + 1
        plan = self.plan
        starters = self._start(round_)
        working = starters if plan.clock.waits else self.active
        event = self._next(working)
        done = working[event.devices]
        nominal = float(self.samples[self.active].sum())
        total = plan.aggregation(len(self.weights), nominal, plan.device)
        # of those selected, how many are drawn; who joins by chance is weighed by the probability of that instead
        share = min(plan.participation / max(len(self.active), 1), 1.0) if plan.clock.waits else 1.0
        loss = present = 0.0
        arrived: list[tuple[int, Tensor, Tensor | None]] = []
        buffers = torch.zeros(len(self.buffers), dtype=torch.float64, device=plan.device)
        holders = torch.zeros_like(buffers)
        for u, mask, device_loss, update, own in self._trained(done, round_):
            size = float(self.samples[u])
            loss, present = loss + size * device_loss, present + size
            if self.dropped[u]:
                continue
            index = None if mask is None else self._places(mask).index
            entries = update if index is None or (mask is not None and mask.structured) else update[index]
            sent = self.send(u, round_, entries, mask)
            beside = plan.rule.beside(u, entries / plan.local_steps, index)
            if beside is not None:
                beside = self.send(u, round_, beside, mask, 1)
            if self.lost[u]:
                continue
            weight = size / float(self.frequency[u] * share)
            arrival = (1.0 - float(self.ledger.cost.packet_error[u])) * (1.0 - float(plan.dropout[u]))
            if plan.attendance is not None:
                arrival *= float(plan.attendance[u])
            total.add(index, sent, weight, max(arrival, 1e-12))
            if beside is not None:
                arrived.append((u, beside, index))
            if len(buffers):
                where = slice(None) if mask is None else self._places(mask).buffers
                buffers[where] += weight * own.to(torch.float64)
                holders[where] += weight
        for u, beside, index in arrived:
            plan.rule.receive(u, beside, index, float(self.samples[u]) / nominal)
        for u in working.tolist() if plan.clock.waits else done.tolist():
            plan.rule.end(u)
        weights = self.weights
        mean = total.mean()
        if mean is not None:
            weights = self.cutting.restrict(plan.server.step(weights, mean, plan.learning_rate))
        merged = torch.where(holders > 0.0, buffers / holders.clamp(min=1e-300), self.buffers.to(torch.float64))
        worked, ready = np.zeros(len(self.samples), dtype=np.bool_), np.zeros(len(self.samples), dtype=np.bool_)
        # with a clock that waits, those too late worked all the same
        worked[working if plan.clock.waits else done] = True
        ready[done] = True
        sent_out, late = ready & ~self.dropped, worked & ~ready
        return Step(
            weights=weights,
            buffers=merged.to(self.buffers.dtype),
            loss=loss / present if present else math.nan,
            time=event.time,
            tick=self.tick + event.ticks,
            done=done,
            gain=self.gain.copy(),
            lost=self.lost & sent_out,
            worked=worked,
            sent=sent_out,
            late=late,
            radio=worked & ~self.dropped,
            cutoff=event.time - self.now,
        )

    def accept(self, step: Step) -> None:
        """Make a round's outcome the state of the run."""
        self.ledger.book(
            step.gain,
            step.lost,
            worked=step.worked,
            sent=step.sent,
            late=step.late,
            radio=step.radio,
            cutoff=step.cutoff,
        )
        self.weights, self.buffers = step.weights, step.buffers
        self.round += 1
        self.now, self.tick = step.time, step.tick
        self.idle = step.done
        in_use = set() if self.plan.clock.waits else set(self.version[np.setdiff1d(self.active, step.done)].tolist())
        self.versions = {v: kept for v, kept in self.versions.items() if v in in_use}

    # Putting down and taking up -------------------------------------------------------------------------------

    def tensors(self) -> dict[str, Tensor]:
        """Return all tensors that the rest of the run depends on, and the ledger, by name."""
        out = {"weights": self.weights, "buffers": self.buffers}
        for name, values in (
            ("finish", self.finish),
            ("version", self.version),
            ("gain", self.gain),
            ("lost", self.lost),
            ("dropped", self.dropped),
            ("idle", self.idle),
            ("frequency", self.frequency),
        ):
            out[f"work.{name}"] = torch.from_numpy(np.ascontiguousarray(values))
        for version, kept in self.versions.items():
            out[f"version.{version}.weights"], out[f"version.{version}.buffers"] = kept.weights, kept.buffers
        out |= {f"residual.{u}": left for u, left in self.residual.items()}
        out |= {f"rule.{name}": value for name, value in self.plan.rule.state.items()}
        out |= {f"server.{name}": value for name, value in self.plan.server.state.items()}
        out |= {f"cutting.{name}": value for name, value in self.cutting.tensors().items()}
        booked = self.ledger.state() | self.ledger.pending()
        out |= {f"ledger.{name}": torch.from_numpy(value) for name, value in booked.items()}
        # safetensors refuses tensors that share memory
        return {name: value.clone() for name, value in out.items()}

    def data(self) -> dict[str, Any]:
        """Return the rest that the run depends on, plain data."""
        return {"now": self.now, "tick": self.tick, "engine": self.engine, "unchecked": sorted(self.unchecked)}

    def restore(self, round_: int, tensors: dict[str, Tensor], data: dict[str, Any]) -> None:
        """Take up a run where `tensors` and `data` were put down."""

        def under(prefix: str) -> dict[str, Tensor]:
            return {name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)}

        device = self.plan.device
        self.weights, self.buffers = tensors["weights"].to(device), tensors["buffers"].to(device)
        for name, value in under("work.").items():
            setattr(self, name, value.numpy())
        kept = under("version.")
        self.versions = {
            int(name.partition(".")[0]): _Version(
                value.to(device), kept[f"{name.partition('.')[0]}.buffers"].to(device)
            )
            for name, value in kept.items()
            if name.endswith(".weights")
        }
        self.residual = {int(name): value.to(device) for name, value in under("residual.").items()}
        self.plan.rule.state = {name: value.to(device) for name, value in under("rule.").items()}
        self.plan.server.state = {name: value.to(device) for name, value in under("server.").items()}
        self.cutting.restore(under("cutting."))
        if round_:
            self.enter(round_)
        self._hold()
        self.ledger.load({name: value.numpy() for name, value in under("ledger.").items()})
        self.round, self.now, self.tick = round_, float(data["now"]), int(data["tick"])
        self.engine = str(data["engine"])
        self.unchecked = set(data["unchecked"])

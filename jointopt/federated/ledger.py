"""What each device spends in each round: bits, seconds, joules.

Booked are the costs the solvers budget (theory 1a), from the same functions: whole payload bits at the
*ergodic* rate. Beside them stand the costs of the one block that was faded as drawn, which may exceed a
budget although the booked ones keep it; how often they do is counted apart.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from jointopt.decision import Decision
from jointopt.errors import JointoptError
from jointopt.federated.codecs.uniform import Uniform
from jointopt.models import channel, compression, cost
from jointopt.pruning import pruned_count
from jointopt.system import FEASIBILITY_TOLERANCE, FloatArray, System

if TYPE_CHECKING:
    from jointopt.federated.codecs import Codec

__all__ = ["BUFFER_BITS", "Held", "Ledger", "RoundCost", "generation_cost", "round_cost"]

HEADER_BITS = Uniform.header_bits
BUFFER_BITS = 32
"""Running statistics travel as float32."""


@dataclass(frozen=True)
class Held:
    """What each device holds of the model, as cut, where that does not follow from the pruning ratio alone.

    Arrays of shape ``[devices]``: prunable weights `kept`, other parameters `unpruned`, running statistics that are
    gone (`buffers_removed`), `mask_bits` that tell the server what is kept, and the achieved `ratio`.
    """

    kept: NDArray[np.int64]
    unpruned: NDArray[np.int64]
    buffers_removed: NDArray[np.int64]
    mask_bits: NDArray[np.int64]
    ratio: FloatArray


@dataclass(frozen=True)
class RoundCost:
    """Cost of one round by the model of theory 1a, arrays of shape ``[devices]``, SI; 0 where not selected.

    `payload_bits` are whole numbers (of type int64 when `header_bits` is whole). `packet_error` is q, the
    probability that the packet is lost, and `snr` the mean signal-to-noise ratio.
    """

    selected: NDArray[np.bool_]
    payload_bits: NDArray[Any]
    power: FloatArray
    bandwidth: FloatArray
    snr: FloatArray
    rate: FloatArray
    packet_error: FloatArray
    compute_delay: FloatArray
    compute_energy: FloatArray
    upload_delay: FloatArray
    upload_energy: FloatArray
    beside_bits: NDArray[Any]
    """What the learner's header and the running statistics take beside the header of the encoded entries."""
    mask_bits: NDArray[Any]
    """What tells the server which weights are kept."""
    sample_delay: FloatArray
    """Time to train the dense model on one sample [s]."""
    sample_energy: FloatArray
    """Energy to train the dense model on one sample [J]."""

    @property
    def delay(self) -> FloatArray:
        """Compute plus upload [s]."""
        return self.compute_delay + self.upload_delay

    @property
    def energy(self) -> FloatArray:
        """Compute plus upload [J]."""
        return self.compute_energy + self.upload_energy


def _plain(value: float) -> Any:
    return int(value) if value == int(value) else value


def round_cost(
    system: System,
    decision: Decision,
    *,
    local_steps: int = 1,
    held: Held | None = None,
    codec: Codec | None = None,
    packets: int = 1,
) -> RoundCost:
    """Return what a round costs each device; the decision's ratios must be multiples of 1/V (see `snap`).

    `bits`, `bandwidth` [Hz], `frequency` [Hz] and `selected` (0 or 1) of the decision are used where it has them,
    else the system's values (`bits_max`, everyone). With `local_steps` steps a round takes that many times the cycles.
    What is kept follows from the ratio, or is `held`. Of a `codec` other than the uniform quantizer the bits are its
    own; `packets` payloads are sent in a round.
    """
    devices, radio, learner = system.devices, system.radio, system.learner
    size = len(system)

    def spread(name: str, otherwise: Any) -> FloatArray:
        return np.broadcast_to(np.asarray(decision.get(name, otherwise), dtype=np.float64), (size,))

    selected = spread("selected", 1.0) > 0.5

    def chosen(name: str, otherwise: Any = None) -> FloatArray:
        # Whoever is left out may be given 0 Hz or 0 W; any positive number avoids 0/0 before it is set to 0.
        return np.where(selected, spread(name, otherwise), 1.0)

    # any width that the codec knows does for who is left out
    idle = 1 if codec is None else codec.widths[0]
    bits = np.where(selected, spread("bits", learner.bits_max), idle).astype(np.int64)
    power, frequency = chosen("power"), chosen("frequency", devices.frequency)
    bandwidth = chosen("bandwidth", radio.bandwidth)

    header = _plain(learner.header_bits)
    if held is None:
        ratio = np.where(selected, spread("pruning_ratio", None), 0.0)
        kept = learner.parameters - np.asarray(pruned_count(ratio, learner.parameters))
        unpruned: Any = learner.unpruned_parameters
        per_weight, once = compression.index_bits(learner.parameters, learner.mask_encoding)
        index = kept * int(per_weight) + int(once)
    else:
        ratio, kept, unpruned = held.ratio, held.kept, held.unpruned
        index = held.mask_bits
        # the learner's header counts the running statistics of the dense model
        header = header - BUFFER_BITS * held.buffers_removed
    beside = np.broadcast_to(header - HEADER_BITS, (size,))
    index = np.broadcast_to(index, (size,))
    if codec is None:
        entries = compression.payload_bits(
            kept, bits, unpruned=unpruned, header=HEADER_BITS, index_per_weight=0, index_once=0
        )
    else:
        counts = np.broadcast_to(kept + unpruned, (size,))
        entries = np.array([codec.payload_bits(int(n), int(b)) for n, b in zip(counts, bits, strict=True)])
    payload = packets * (entries + beside + index)

    snr = channel.snr(power, radio.gain, radio.interference + bandwidth * radio.noise_density)
    rate = channel.rate(bandwidth, snr, radio.fading)
    threshold = radio.waterfall_threshold if radio.packet_error == "waterfall" else radio.outage_threshold
    work = cost.cycles(local_steps * system.batch, devices.cycles_per_sample, learner.compute_factor(ratio))
    return RoundCost(
        selected=selected,
        payload_bits=np.where(selected, payload, 0),
        power=power,
        bandwidth=bandwidth,
        snr=snr,
        rate=rate,
        packet_error=channel.packet_error(snr, threshold, radio.packet_error, radio.fading),
        compute_delay=np.where(selected, cost.compute_delay(work, frequency), 0.0),
        compute_energy=np.where(selected, cost.compute_energy(work, frequency, devices.capacitance), 0.0),
        upload_delay=np.where(selected, cost.upload_delay(payload, rate), 0.0),
        upload_energy=np.where(selected, cost.upload_energy(payload, rate, power), 0.0),
        beside_bits=beside,
        mask_bits=index,
        sample_delay=cost.compute_delay(devices.cycles_per_sample, frequency),
        sample_energy=cost.compute_energy(devices.cycles_per_sample, frequency, devices.capacitance),
    )


def generation_cost(system: System, decision: Decision, synthetic: NDArray[np.int64]) -> tuple[FloatArray, FloatArray]:
    """Return energy [J] and delay [s] of making so many synthetic samples on each device, arrays ``[devices]``.

    With the decision's `frequency` where it has one, else the device's, unless the system's section `augmentation` has
    one for the generator. What is not known to the system costs nothing.
    """
    size = len(system)
    if system.augmentation is None or not np.any(synthetic):
        return np.zeros(size), np.zeros(size)
    chosen = np.broadcast_to(np.asarray(decision.get("frequency", system.devices.frequency), np.float64), (size,))
    # whoever makes none may be given 0 Hz
    frequency = np.where(synthetic > 0, chosen, 1.0)
    energy = system.augmentation.sample_energy(frequency, system.devices.capacitance)
    return synthetic * energy, synthetic * system.augmentation.sample_delay(frequency)


ARRAYS = ("gain", "lost", "worked", "sent", "bits", "delay", "energy", "faded_delay", "faded_energy")


class Ledger:
    """The book of one training run; a lost packet costs as much as a received one.

    Arrays have shape ``[rounds, devices]``: who `worked` and who `sent`; `bits`, `delay` [s], `energy` [J] as booked;
    `faded_delay` and `faded_energy` at the rate log2(1 + snr x gain) of the drawn gain, infinite where it is 0; `gain`
    (mean 1), `lost` (a sent packet did not arrive). `faded_delay_exceeded` and `faded_energy_exceeded` count rounds
    per device, shape ``[devices]``.

    `cost` is that of the coming round; it changes where masks do. What was done before round 1 is booked apart:
    `synthetic_samples` made, `generation_energy` [J] and `generation_delay` [s] they took, arrays ``[devices]``.
    """

    gain: FloatArray
    lost: NDArray[np.bool_]
    worked: NDArray[np.bool_]
    sent: NDArray[np.bool_]
    bits: NDArray[Any]
    delay: FloatArray
    energy: FloatArray
    faded_delay: FloatArray
    faded_energy: FloatArray

    def __init__(
        self,
        system: System,
        decision: Decision,
        *,
        local_steps: int = 1,
        packets: int = 1,
        synthetic: NDArray[np.int64] | None = None,
    ) -> None:
        self._local_steps, self._packets = local_steps, packets
        self.move(system, decision)
        self.cost = round_cost(system, decision, local_steps=local_steps, packets=packets)
        self._rows: dict[str, list[NDArray[Any]]] = {name: [] for name in ARRAYS}
        self._evidence_bits = np.zeros(len(system), dtype=np.int64)
        self._evidence_samples = np.zeros(len(system))
        self.synthetic_samples = np.zeros(len(system), dtype=np.int64) if synthetic is None else synthetic
        self.generation_energy, self.generation_delay = generation_cost(system, decision, self.synthetic_samples)

    def move(self, system: System, decision: Decision) -> None:
        """Take another system of the same devices, and another decision, for the rounds to come; `hold` sets costs."""
        self.system, self.decision = system, decision
        self._fading = system.radio.fading
        self._budget = {
            "delay": system.devices.delay_budget * (1.0 + FEASIBILITY_TOLERANCE),
            "energy": system.devices.energy_budget * (1.0 + FEASIBILITY_TOLERANCE),
        }

    def hold(self, held: Held | None, codec: Codec | None = None) -> None:
        """Set the cost of the rounds to come from what devices hold and how it is sent."""
        self.cost = round_cost(
            self.system,
            self.decision,
            local_steps=self._local_steps,
            held=held,
            codec=codec,
            packets=self._packets,
        )

    def charge(self, bits: NDArray[np.int64], samples: FloatArray) -> None:
        """Add to the coming round what evidence for pruning costs, arrays ``[devices]``.

        `bits` are sent beside the payload, `samples` trained on (or as many passes of the dense model as cost that).
        """
        self._evidence_bits = self._evidence_bits + bits
        self._evidence_samples = self._evidence_samples + samples

    def planned(self) -> tuple[FloatArray, FloatArray]:
        """Return delay [s] and energy [J] of the coming round, evidence included, arrays ``[devices]``."""
        with np.errstate(divide="ignore", invalid="ignore"):
            upload = np.where(self._evidence_bits > 0, self._evidence_bits / self.cost.rate, 0.0)
        delay = self.cost.delay + upload + self._evidence_samples * self.cost.sample_delay
        energy = self.cost.energy + upload * self.cost.power + self._evidence_samples * self.cost.sample_energy
        return delay, energy

    def __len__(self) -> int:
        return len(self._rows["gain"])

    def last(self) -> dict[str, NDArray[Any]]:
        """Return the round entered last, arrays ``[devices]`` by name."""
        return {name: column[-1] for name, column in self._rows.items()}

    def book(
        self,
        gain: ArrayLike,
        lost: ArrayLike,
        *,
        worked: NDArray[np.bool_] | None = None,
        sent: NDArray[np.bool_] | None = None,
        late: NDArray[np.bool_] | None = None,
        radio: NDArray[np.bool_] | None = None,
        cutoff: float = math.inf,
    ) -> None:
        """Enter one round, arrays ``[devices]``: drawn gains, lost packets, who computed and who of them sent.

        Everyone selected did both when not given. Those `late` were still computing or sending when the server went
        on, `cutoff` seconds after they started, and then stopped: they have spent what that took. `radio` says who
        had it on or would have: who sent or was late when not given.
        """
        cost = self.cost
        worked = cost.selected if worked is None else worked & cost.selected
        sent = worked if sent is None else sent & worked
        gain = np.asarray(gain, dtype=np.float64)
        delay, energy = self.planned()
        evidence_delay, evidence_energy = delay - cost.delay, energy - cost.energy
        compute_delay, compute_energy = cost.compute_delay + evidence_delay, cost.compute_energy + evidence_energy
        late = np.zeros_like(worked) if late is None else late & worked
        sending = sent | late if radio is None else radio & worked

        def spent(upload: FloatArray) -> tuple[FloatArray, FloatArray]:
            """Return delay and energy at a time to upload."""
            end = np.where(late, cutoff, np.inf)
            computing = np.minimum(compute_delay, end)
            with np.errstate(divide="ignore", invalid="ignore"):
                done = np.where(compute_delay > end, end / compute_delay, 1.0)
            on_air = np.where(sending, np.minimum(upload, end - computing), 0.0)
            energy = compute_energy * done + np.where(sending, cost.power * on_air, 0.0)
            return np.where(worked, computing + on_air, 0.0), np.where(worked, energy, 0.0)

        delay, energy = spent(cost.upload_delay)
        faded_delay, faded_energy = spent(self.faded_upload(gain))
        row = {
            "gain": gain,
            "lost": np.asarray(lost, dtype=np.bool_) & sent,
            "worked": worked,
            "sent": sent,
            "bits": np.where(sent, cost.payload_bits, 0) + np.where(worked, self._evidence_bits, 0),
            "delay": delay,
            "energy": energy,
            "faded_delay": faded_delay,
            "faded_energy": faded_energy,
        }
        for name, value in row.items():
            self._rows[name].append(value)
        self._evidence_bits = np.where(worked, 0, self._evidence_bits)
        self._evidence_samples = np.where(worked, 0.0, self._evidence_samples)

    def faded_upload(self, gain: FloatArray) -> FloatArray:
        """Return the time to upload [s] at drawn gains, arrays ``[devices]``; infinite where a gain is 0."""
        cost = self.cost
        if self._fading == "none":
            return cost.upload_delay
        rate = channel.rate(cost.bandwidth, cost.snr * gain, "none")
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(cost.selected, cost.payload_bits / rate, 0.0)

    def truncate(self, rounds: int) -> None:
        """Forget what was entered after some round."""
        for column in self._rows.values():
            del column[rounds:]

    def check_payload(self, device: int, bits: int, mask_bits: int = 0) -> None:
        """Raise `JointoptError` unless a packet really encoded in so many bits, and its mask, are the booked ones."""
        real = self._packets * (bits + mask_bits + self.cost.beside_bits[device])
        booked = self.cost.payload_bits[device]
        if real != booked:
            raise JointoptError(f"device {device} sent {real:.0f} bits, but {booked:.0f} were booked")

    def broken(self, round_: int = -1) -> int:
        """Return the budgets broken in a round that was entered, counted over devices and both budgets."""
        return sum(int(np.sum(self._rows[name][round_] > most)) for name, most in self._budget.items())

    @property
    def violations(self) -> int:
        """Budgets that the coming round would break, counted over devices and both budgets."""
        over_delay = self.cost.delay > self._budget["delay"]
        over_energy = self.cost.energy > self._budget["energy"]
        return int(np.sum(over_delay)) + int(np.sum(over_energy))

    def __getattr__(self, name: str) -> NDArray[Any]:
        if name not in ARRAYS:
            raise AttributeError(name)
        kind = np.bool_ if name in ("lost", "worked", "sent") else None
        return np.array(self._rows[name], dtype=kind).reshape(-1, len(self.cost.power))

    @property
    def faded_delay_exceeded(self) -> NDArray[np.int64]:
        """Rounds in which the faded block took longer than the delay budget."""
        return np.sum(self.faded_delay > self._budget["delay"], axis=0)

    @property
    def faded_energy_exceeded(self) -> NDArray[np.int64]:
        """Rounds in which the faded block took more than the energy budget."""
        return np.sum(self.faded_energy > self._budget["energy"], axis=0)

    def totals(self) -> dict[str, NDArray[Any]]:
        """Return sums over the rounds, shape ``[devices]``: bits, delay [s], energy [J], packets lost."""
        return {name: getattr(self, name).sum(axis=0) for name in ("bits", "delay", "energy", "lost")}

    def state(self) -> dict[str, NDArray[Any]]:
        """Return all that was booked, arrays ``[rounds, devices]`` by name."""
        return {name: getattr(self, name) for name in ARRAYS}

    def pending(self) -> dict[str, NDArray[Any]]:
        """Return what evidence was charged and not yet booked, arrays ``[devices]``."""
        return {"evidence_bits": self._evidence_bits, "evidence_samples": self._evidence_samples}

    def load(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Take what `state` and `pending` returned."""
        for name in ARRAYS:
            self._rows[name] = list(np.asarray(state[name]))
        self._evidence_bits = np.asarray(state["evidence_bits"])
        self._evidence_samples = np.asarray(state["evidence_samples"])

"""What each device spends in each round: bits, seconds, joules.

Booked are the costs the solvers budget (theory 1a), from the same functions: whole payload bits at the
*ergodic* rate. Beside them stand the costs of the one block that was faded as drawn, which may exceed a
budget although the booked ones keep it; how often they do is counted apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from jointopt.decision import Decision
from jointopt.errors import JointoptError
from jointopt.federated.quantizer import HEADER_BITS, Payload
from jointopt.models import channel, compression, cost
from jointopt.pruning import pruned_count
from jointopt.system import FEASIBILITY_TOLERANCE, FloatArray, System

__all__ = ["Ledger", "RoundCost", "round_cost"]


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

    @property
    def delay(self) -> FloatArray:
        """Compute plus upload [s]."""
        return self.compute_delay + self.upload_delay

    @property
    def energy(self) -> FloatArray:
        """Compute plus upload [J]."""
        return self.compute_energy + self.upload_energy


def round_cost(system: System, decision: Decision, *, local_steps: int = 1) -> RoundCost:
    """Return what a round costs each device; the decision's ratios must be multiples of 1/V (see `snap`).

    `bits`, `bandwidth` [Hz], `frequency` [Hz] and `selected` (0 or 1) of the decision are used where it has them,
    else the system's values (`bits_max`, everyone). With `local_steps` steps a round takes that many times the cycles.
    """
    devices, radio, learner = system.devices, system.radio, system.learner
    size = len(system)

    def spread(name: str, otherwise: Any) -> FloatArray:
        return np.broadcast_to(np.asarray(decision.get(name, otherwise), dtype=np.float64), (size,))

    selected = spread("selected", 1.0) > 0.5

    def chosen(name: str, otherwise: Any = None) -> FloatArray:
        # Whoever is left out may be given 0 Hz or 0 W; any positive number avoids 0/0 before it is set to 0.
        return np.where(selected, spread(name, otherwise), 1.0)

    ratio = np.where(selected, spread("pruning_ratio", None), 0.0)
    bits = np.where(selected, spread("bits", learner.bits_max), 1.0).astype(np.int64)
    power, frequency = chosen("power"), chosen("frequency", devices.frequency)
    bandwidth = chosen("bandwidth", radio.bandwidth)

    kept = learner.parameters - np.asarray(pruned_count(ratio, learner.parameters))
    per_weight, once = compression.index_bits(learner.parameters, learner.mask_encoding)
    header = learner.header_bits
    payload = compression.payload_bits(
        kept,
        bits,
        unpruned=learner.unpruned_parameters,
        header=int(header) if header == int(header) else header,
        index_per_weight=int(per_weight),
        index_once=int(once),
    )

    snr = channel.snr(power, radio.gain, radio.interference + bandwidth * radio.noise_density)
    rate = channel.rate(bandwidth, snr, radio.fading)
    threshold = radio.waterfall_threshold if radio.packet_error == "waterfall" else radio.outage_threshold
    work = cost.cycles(
        local_steps * system.batch,
        devices.cycles_per_sample,
        compression.compute_factor(ratio, learner.compute_law),
    )
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
    )


class Ledger:
    """The book of one training run; a lost packet costs as much as a received one.

    Arrays have shape ``[rounds, devices]``: `bits`, `delay` [s], `energy` [J] as booked, `faded_delay` and
    `faded_energy` at the rate log2(1 + snr x gain) of the drawn gain, `gain` (mean 1), `lost` (a sent packet
    did not arrive). `faded_delay_exceeded` and `faded_energy_exceeded` count rounds per device, shape
    ``[devices]``.
    """

    def __init__(self, system: System, decision: Decision, *, local_steps: int = 1) -> None:
        self.cost = round_cost(system, decision, local_steps=local_steps)
        self._header_bits = system.learner.header_bits
        self._per_weight, self._once = compression.index_bits(system.learner.parameters, system.learner.mask_encoding)
        self._unpruned = system.learner.unpruned_parameters
        self._fading = system.radio.fading
        self._budget = {
            "delay": system.devices.delay_budget * (1.0 + FEASIBILITY_TOLERANCE),
            "energy": system.devices.energy_budget * (1.0 + FEASIBILITY_TOLERANCE),
        }
        self._gain: list[FloatArray] = []
        self._lost: list[NDArray[np.bool_]] = []

    def __len__(self) -> int:
        return len(self._gain)

    def book(self, gain: ArrayLike, lost: ArrayLike) -> None:
        """Enter one round: the drawn fading gains and which packets were lost, shape ``[devices]``."""
        self._gain.append(np.asarray(gain, dtype=np.float64))
        self._lost.append(np.asarray(lost, dtype=np.bool_) & self.cost.selected)

    def truncate(self, rounds: int) -> None:
        """Forget what was entered after some round."""
        del self._gain[rounds:], self._lost[rounds:]

    def check_payload(self, device: int, payload: Payload) -> None:
        """Raise `JointoptError` unless the bits really sent are the booked ones.

        The quantizer's own header is 64 bits; the booked one is the learner's `header_bits`.
        """
        kept = payload.count - self._unpruned
        real = payload.bits - HEADER_BITS + self._header_bits + kept * self._per_weight + self._once
        booked = self.cost.payload_bits[device]
        if real != booked:
            raise JointoptError(f"device {device} sent {real:.0f} bits, but {booked:.0f} were booked")

    @property
    def violations(self) -> int:
        """Budgets broken in each round by the booked costs, counted over devices and both budgets."""
        over_delay = self.cost.delay > self._budget["delay"]
        over_energy = self.cost.energy > self._budget["energy"]
        return int(np.sum(over_delay)) + int(np.sum(over_energy))

    def _repeat(self, values: NDArray[Any]) -> NDArray[Any]:
        return np.tile(values, (len(self), 1))

    @property
    def gain(self) -> FloatArray:
        """Fading gain of each round, mean 1."""
        return np.array(self._gain).reshape(-1, len(self.cost.power))

    @property
    def lost(self) -> NDArray[np.bool_]:
        """Whether a sent packet did not arrive."""
        return np.array(self._lost, dtype=np.bool_).reshape(-1, len(self.cost.power))

    @property
    def bits(self) -> NDArray[Any]:
        """Bits sent."""
        return self._repeat(self.cost.payload_bits)

    @property
    def delay(self) -> FloatArray:
        """Booked compute plus upload delay [s]."""
        return self._repeat(self.cost.delay)

    @property
    def energy(self) -> FloatArray:
        """Booked compute plus upload energy [J]."""
        return self._repeat(self.cost.energy)

    def _faded_upload(self) -> FloatArray:
        if self._fading == "none":
            return self._repeat(self.cost.upload_delay)
        rate = channel.rate(self.cost.bandwidth, self.cost.snr * self.gain, "none")
        with np.errstate(divide="ignore"):
            return np.where(self.cost.selected, cost.upload_delay(self.cost.payload_bits, rate), 0.0)

    @property
    def faded_delay(self) -> FloatArray:
        """Compute plus upload delay at the drawn gain [s]; infinite where the gain is 0."""
        return self.cost.compute_delay + self._faded_upload()

    @property
    def faded_energy(self) -> FloatArray:
        """Compute plus upload energy at the drawn gain [J]; infinite where the gain is 0."""
        return self.cost.compute_energy + self.cost.power * self._faded_upload()

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
        rounds = len(self)
        return {
            "bits": rounds * self.cost.payload_bits,
            "delay": rounds * self.cost.delay,
            "energy": rounds * self.cost.energy,
            "lost": self.lost.sum(axis=0),
        }

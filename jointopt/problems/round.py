"""A round on every device: what it costs, and the cells of designs whose devices choose bits and power in it.

The mean SNR is the power up to a factor. At given bits the delay budget asks for a ratio that falls with the SNR, the
energy budget for one that rises with it; both are quotients of affine functions (theory 1a, 1d).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import numpy as np

from jointopt.decision import Decision
from jointopt.errors import InputError
from jointopt.models import channel, compression, cost
from jointopt.models._array import namespace
from jointopt.problem import Conflict
from jointopt.system import FloatArray, System
from jointopt.units import format_si

__all__ = ["LARGEST", "RoundCells", "check_magnitudes", "round_costs"]

LARGEST = 1e60
"""Magnitude up to which products of constants stay well inside float64."""


# A required ratio may exceed its cap by this share of the kept fraction before a point counts as infeasible. Budgets
# are then exceeded by at most as much: what a feasible decision is allowed (FEASIBILITY_TOLERANCE).
_CAP_SLACK = 0.9e-9


def round_costs(system: System, decision: Decision, snr: Any, rate: Any, processed: Any) -> dict[str, Any]:
    """Return delay, energy, their stages, packet_error and payload_bits of a round (theory 1a [D]); any kind of array.

    `decision` holds pruning_ratio, bits and power; `snr` and `rate` follow from whatever band the devices have;
    `processed` are the samples that each trains on.
    """
    devices, radio, learner = system.devices, system.radio, system.learner
    ratio, bits, power = decision["pruning_ratio"], decision["bits"], decision["power"]
    xp = namespace(ratio, bits, power)

    def array(values: Any) -> Any:
        return xp.asarray(np.array(values))

    threshold = radio.waterfall_threshold if radio.packet_error == "waterfall" else radio.outage_threshold
    lost = channel.packet_error(snr, threshold, radio.packet_error, radio.fading)
    kept = (1.0 - ratio) * learner.parameters
    per_weight, once = compression.index_bits(learner.parameters, learner.mask_encoding)
    payload = compression.payload_bits(
        kept,
        bits,
        unpruned=float(learner.unpruned_parameters),
        header=learner.header_bits,
        index_per_weight=per_weight,
        index_once=once,
    )
    work = cost.cycles(
        processed,
        array(devices.cycles_per_sample),
        learner.compute_factor(ratio),
    )
    stages = {
        "compute_delay": cost.compute_delay(work, array(devices.frequency)),
        "upload_delay": cost.upload_delay(payload, rate),
        "compute_energy": cost.compute_energy(work, array(devices.frequency), array(devices.capacitance)),
        "upload_energy": cost.upload_energy(payload, rate, power),
    }
    return {
        "delay": stages["compute_delay"] + stages["upload_delay"],
        "energy": stages["compute_energy"] + stages["upload_energy"],
        "packet_error": lost,
        **stages,
        "payload_bits": payload,
    }


def check_magnitudes(system: System) -> None:
    """Refuse devices whose numbers are valid one by one but overflow together.

    Raises
    ------
    InputError
        Naming the device, what cannot be computed, and the fields it follows from.
    """
    devices, radio = system.devices, system.radio
    with np.errstate(all="ignore"):
        work = cost.cycles(system.batch, devices.cycles_per_sample)
        derived = {
            "SNR at power_max (gain, power_max, noise_density, bandwidth, interference)": channel.snr(
                devices.power_max, radio.gain, system.noise_power
            ),
            "SNR at power_min (gain, power_min, noise_density, bandwidth, interference)": channel.snr(
                devices.power_min, radio.gain, system.noise_power
            ),
            "computing delay (samples, cycles_per_sample, frequency)": cost.compute_delay(work, devices.frequency),
            "computing energy (samples, cycles_per_sample, frequency, capacitance)": cost.compute_energy(
                work, devices.frequency, devices.capacitance
            ),
        }
    for what, values in derived.items():
        bad = ~((values < LARGEST) & (values > 1.0 / LARGEST))
        if what.startswith("computing energy"):
            bad &= devices.capacitance > 0.0
        if np.any(bad):
            u = int(np.argmax(bad))
            raise InputError(f"device {u}: the {what} is {float(values[u]):g}, beyond what can be computed")


class RoundCells:
    """What cells over (bits, SNR) have in common: constants of every unit, its budgets, and what breaks them.

    Parameters
    ----------
    system : System
        The devices; each is a unit.
    ranges : mapping
        Lower and upper ends of `pruning_ratio`, `bits` and `power`, shape [devices].
    processed : array, shape [devices], optional
        Samples trained on in a round; the system's own when not given.
    """

    per_unit: ClassVar[tuple[str, ...]] = (
        "snr_per_watt",
        "power_low",
        "power_high",
        "low",
        "high",
        "ratio_low",
        "ratio_high",
        "ratio_limit",
        "bits_low",
        "bits_high",
        "bandwidth",
        "compute_delay",
        "compute_energy",
        "delay_budget",
        "energy_budget",
    )
    """Constants that are arrays over units."""

    def __init__(
        self,
        system: System,
        ranges: Mapping[str, tuple[FloatArray, FloatArray]],
        processed: FloatArray | None = None,
    ) -> None:
        devices, radio, learner = system.devices, system.radio, system.learner
        assert radio.bandwidth is not None and radio.gain is not None
        self.units = len(system)
        self.radio = radio
        self.snr_per_watt = radio.gain / system.noise_power
        self.power_low, self.power_high = ranges["power"]
        self.low, self.high = self.power_low * self.snr_per_watt, self.power_high * self.snr_per_watt
        self.ratio_low, self.ratio_high = ranges["pruning_ratio"]
        self.ratio_limit = self.ratio_high + _CAP_SLACK * (1.0 - self.ratio_high)
        self.bits_low, self.bits_high = (np.rint(b).astype(np.int64) for b in ranges["bits"])
        self.labels = np.arange(self.bits_low.min(), self.bits_high.max() + 1)
        self.bandwidth = radio.bandwidth
        work = cost.cycles(system.batch if processed is None else processed, devices.cycles_per_sample)
        self.compute_delay = cost.compute_delay(work, devices.frequency)
        self.compute_energy = cost.compute_energy(work, devices.frequency, devices.capacitance)
        self.delay_budget, self.energy_budget = devices.delay_budget, devices.energy_budget
        # cycles = fixed share + kept fraction x falling share, for every law
        full, empty = (float(learner.compute_factor(np.asarray(r))) for r in (0.0, 1.0))
        self.fixed_share, self.falling_share = empty, full - empty
        self.parameters, self.unpruned = float(learner.parameters), float(learner.unpruned_parameters)
        self.index_bits, once = compression.index_bits(learner.parameters, learner.mask_encoding)
        self.once_bits = learner.header_bits + once
        self.threshold = radio.waterfall_threshold if radio.packet_error == "waterfall" else radio.outage_threshold

    def probe(self, unit: Any, x: Any) -> FloatArray:
        """Return [s/bit, J/bit, packet error] at SNR x, shape [3, points]."""
        efficiency = channel.spectral_efficiency(x, self.radio.fading)
        seconds = 1.0 / (self.bandwidth[unit] * efficiency)
        joules = seconds * (x / self.snr_per_watt[unit])
        lost = channel.packet_error(x, self.threshold, self.radio.packet_error, self.radio.fading)
        return np.stack([seconds, joules, lost])

    def _needed(self, budget: Any, compute: Any, per_bit: Any, label: Any) -> Any:
        """Ratio that one budget asks for: affine in the kept fraction, so a quotient; above 1 if impossible."""
        room = budget - compute * self.fixed_share - (self.unpruned * label + self.once_bits) * per_bit
        return 1.0 - room / (compute * self.falling_share + self.parameters * (label + self.index_bits) * per_bit)

    def by_delay(self, unit: Any, label: Any, data: Any) -> Any:
        """r_T: decreasing in the SNR."""
        return self._needed(self.delay_budget[unit], self.compute_delay[unit], data[0], label)

    def by_energy(self, unit: Any, label: Any, data: Any) -> Any:
        """r_E: increasing and concave in the SNR."""
        return self._needed(self.energy_budget[unit], self.compute_energy[unit], data[1], label)

    def take(self, index: Any) -> Self:
        """Return some units, repeats allowed."""
        out = copy.copy(self)
        out.units = int(np.size(index))
        for name in self.per_unit:
            setattr(out, name, getattr(self, name)[index])
        return out

    def _power_range(self, unit: Any) -> tuple[FloatArray, FloatArray]:
        return self.power_low[unit], self.power_high[unit]

    # -- infeasible devices

    def _least_use(self, unit: Any, x: Any) -> tuple[FloatArray, FloatArray]:
        """Delay and energy at the largest ratio and fewest bits."""
        data = self.probe(unit, x)
        label, kept = self.bits_low[unit], 1.0 - self.ratio_high[unit]
        share = self.fixed_share + self.falling_share * kept
        bits = compression.payload_bits(
            kept * self.parameters,
            label,
            unpruned=self.unpruned,
            header=self.once_bits,
            index_per_weight=self.index_bits,
        )
        return share * self.compute_delay[unit] + bits * data[0], share * self.compute_energy[unit] + bits * data[1]

    def _bisect(self, unit: Any, above: Any) -> tuple[FloatArray, FloatArray]:
        """SNR bracket of the change of `above(delay, energy)` from False to True as the SNR grows."""
        left, right = np.log(self.low[unit]), np.log(self.high[unit])
        for _ in range(80):
            middle = 0.5 * (left + right)
            hit = above(*self._least_use(unit, np.exp(middle)))
            left, right = np.where(hit, left, middle), np.where(hit, middle, right)
        return np.maximum(np.exp(left), self.low[unit]), np.minimum(np.exp(right), self.high[unit])

    def balanced(self, unit: Any) -> FloatArray:
        """SNR at which the larger of delay and energy, each over its budget, is least."""
        delay_budget, energy_budget = self.delay_budget[unit], self.energy_budget[unit]
        left, right = self._bisect(unit, lambda t, e: e / energy_budget >= t / delay_budget)

        def worst(x: Any) -> Any:
            delay, energy = self._least_use(unit, x)
            return np.maximum(delay / delay_budget, energy / energy_budget)

        return np.where(worst(left) <= worst(right), left, right)

    def least_violating(self, unit: Any) -> dict[str, FloatArray]:
        """Return the decision that exceeds the budgets by the smallest common factor."""
        return {
            "pruning_ratio": self.ratio_high[unit].copy(),
            "bits": self.bits_low[unit].astype(np.float64),
            "power": np.clip(self.balanced(unit) / self.snr_per_watt[unit], *self._power_range(unit)),
        }

    def conflicts(self, unit: Any) -> list[Conflict]:
        """Say for infeasible devices which budget is short and the smallest relaxations (delay, energy, both)."""
        unit = np.asarray(unit, dtype=np.int64)
        if unit.size == 0:
            return []
        delay_budget, energy_budget = self.delay_budget[unit], self.energy_budget[unit]
        delay_fast, energy_fast = self._least_use(unit, self.high[unit])
        delay_slow, energy_slow = self._least_use(unit, self.low[unit])
        # raise the delay budget alone: the greatest power that the energy budget allows
        left, right = self._bisect(unit, lambda t, e: e > energy_budget)
        strongest = np.where(energy_fast <= energy_budget, self.high[unit], left)
        delay_needed = np.where(energy_slow <= energy_budget, self._least_use(unit, strongest)[0], np.nan)
        # raise the energy budget alone: the least power that the delay budget allows
        left, right = self._bisect(unit, lambda t, e: t <= delay_budget)
        weakest = np.where(delay_slow <= delay_budget, self.low[unit], right)
        energy_needed = np.where(delay_fast <= delay_budget, self._least_use(unit, weakest)[1], np.nan)
        delay, energy = self._least_use(unit, self.balanced(unit))
        factor = np.maximum(delay / delay_budget, energy / energy_budget)
        out = []
        for i, u in enumerate(unit):
            short_delay, short_energy = np.isnan(energy_needed[i]), np.isnan(delay_needed[i])
            if short_delay and short_energy:
                binding = "delay and energy, each alone"
            elif short_delay:
                binding = "delay"
            elif short_energy:
                binding = "energy"
            else:
                binding = "delay and energy together"
            need_t = None if np.isnan(delay_needed[i]) else float(delay_needed[i])
            need_e = None if np.isnan(energy_needed[i]) else float(energy_needed[i])
            ways = []
            if need_t is not None and need_t > delay_budget[i]:
                ways.append(f"delay budget {format_si(delay_budget[i], 's')} -> {format_si(need_t, 's', 4)}")
            if need_e is not None and need_e > energy_budget[i]:
                ways.append(f"energy budget {format_si(energy_budget[i], 'J')} -> {format_si(need_e, 'J', 4)}")
            ways.append(f"both budgets x {factor[i]:.4g}")
            out.append(
                Conflict(
                    device=int(u),
                    binding=binding,
                    relax={"delay_budget": need_t, "energy_budget": need_e},
                    budget={"delay_budget": float(delay_budget[i]), "energy_budget": float(energy_budget[i])},
                    factor=float(factor[i]),
                    text=f"device {int(u)}: {binding}; feasible with " + ", or ".join(ways),
                )
            )
        return out

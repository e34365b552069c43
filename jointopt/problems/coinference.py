"""Co-inference: pruning ratio, split point, power and frequencies for the least distortion of a split network.

In the manner of "The Larger the Merrier? Efficient Large AI Model Inference in Wireless Edge Networks": the problem
statement is the published one [R]; constants and delays are the companion's [C]; the distortion laws and the
algorithm are derived here [D] (theory 4b, 4d).

    min  D(pruning_ratio)  s.t.  T <= T0, E <= E0, 0 <= p <= p_max, f <= f_max, f~ <= f~_max, ratio <= ratio_max,

per device and for every split point; devices share nothing, so the mean over devices is least where each is.

Why it can be solved with a certificate. The distortion increases with the ratio (the rate-distortion bound does so
beyond 1/(1 + 2^b), where it is least, and lower ratios are never better). The least energy by the deadline never
increases with the ratio, since less work at the same frequencies and power takes less of both; its inner problem is
convex and solved by its multiplier (`jointopt.models.inference`). So each split has one least feasible ratio, and
the best split is found by trying all: the cell of a device is the single point that wins.

Ties (theory 4g): least ratio, then least energy, then least split.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from jointopt.decision import Decision
from jointopt.errors import InputError
from jointopt.models import distortion, inference
from jointopt.models._array import namespace
from jointopt.models.inference import Chains, LeastEnergy, LeastRatio
from jointopt.problem import (
    Baseline,
    Blocks,
    Capabilities,
    CellList,
    Cells,
    Conflict,
    Evaluation,
    Problem,
    Sums,
    Variable,
)
from jointopt.ranges import changed_ranges, narrowed
from jointopt.system import FloatArray, InferenceSystem, Network, Scenario
from jointopt.units import format_si

__all__ = ["CoInference", "unit_distortion"]

_TIE = 1e-12
"""Ratios (absolute) and energies (relative) closer than this are one: more digits than the solution has."""

_SLACK = 0.9e-9
"""Share by which a point may exceed a budget and still count: just below what a feasible decision is allowed."""

_TRIALS = 400
"""Random feasible trials of the baseline [C]."""

_LARGEST = 1e60


def unit_distortion(ratio: Any, network: Network, law: str | None = None) -> Any:
    """Distortion per weight in units of 1/lambda at a ratio, by the network's law (theory 4b)."""
    law = network.distortion if law is None else law
    if law == "rate":
        return distortion.rate_distortion(distortion.pruned_rate(ratio, network.bits))
    if law == "measured":
        return distortion.curve_distortion(ratio, network.curve_ratio, network.curve_distortion)
    return distortion.magnitude_distortion(ratio)


class CoInference(Problem):
    """The co-inference design for one system, with one pruning ratio per device.

    Parameters
    ----------
    system : InferenceSystem
        Devices, server, link and network.
    """

    name = "coinference"
    minimises = "bound on the output distortion under per-device delay and energy budgets"
    system_type = InferenceSystem
    budgets: ClassVar[Mapping[str, str]] = {"delay": "delay_budget", "energy": "energy_budget"}

    def __init__(
        self, system: InferenceSystem, *, ranges: dict[str, tuple[FloatArray, FloatArray]] | None = None
    ) -> None:
        if not isinstance(system, InferenceSystem):
            raise InputError(f"system: expected an InferenceSystem, got {type(system).__name__}")
        self.system = system
        devices, network = system.devices, system.network
        ones = np.ones(len(system))
        choices = network.choices
        self._ranges = {
            "pruning_ratio": (0.0 * ones, network.pruning_ratio_max * ones),
            "split": (choices[0] * ones, choices[-1] * ones),
            "power": (0.0 * ones, devices.power_max),
            "frequency": (0.0 * ones, devices.frequency),
            "server_frequency": (0.0 * ones, system.server.server_frequency * ones),
            **(ranges or {}),
        }
        self._check_magnitudes()

    @classmethod
    def sample(
        cls, *, devices: int | None = None, seed: int = 0, data: str | None = None, tightness: float = 1.0
    ) -> Scenario:
        """Sample a system (`jointopt.systems.coinference`); `data` names the network."""
        from jointopt import systems

        return systems.coinference(
            devices=1 if devices is None else devices,
            seed=seed,
            data="autoencoder" if data is None else data,
            tightness=tightness,
        )

    @property
    def variables(self) -> tuple[Variable, ...]:
        """Pruning ratio, split, power [W] and both frequencies [Hz], each per device."""
        r = self._ranges
        return (
            Variable("pruning_ratio", *r["pruning_ratio"], meaning="fraction of weights removed"),
            Variable("split", *r["split"], kind="integer", meaning="layers that run on the device"),
            Variable("power", *r["power"], unit="W", meaning="transmit power"),
            Variable("frequency", *r["frequency"], unit="Hz", meaning="device processor frequency"),
            Variable("server_frequency", *r["server_frequency"], unit="Hz", meaning="server processor frequency"),
        )

    def settings(self) -> dict[str, Any]:
        """Return the ranges that differ from the system's own."""
        return changed_ranges(self._ranges, CoInference(self.system)._ranges)

    def restrict(self, **ranges: Any) -> Self:
        """Return the problem with variables fixed or narrowed: ``restrict(split=4, power=(0.05, 0.1))``."""
        own = CoInference(self.system)._ranges
        new = narrowed(self._ranges, ranges, len(self.system))
        for name in ranges:
            low, high = new[name]
            outside = (low < own[name][0]) | (high > own[name][1])
            if name == "split":
                self._check_splits(low, high)
            elif np.any(outside):
                u = int(np.argmax(outside))
                raise InputError(
                    f"restrict: {name}[device {u}] = {low[u]:g} to {high[u]:g} must lie within {own[name][0][u]:g} "
                    f"and {own[name][1][u]:g}"
                )
        return type(self)(self.system, ranges=new)

    def _check_splits(self, low: FloatArray, high: FloatArray) -> None:
        network = self.system.network
        for u, (first, last) in enumerate(zip(low, high, strict=True)):
            if last > network.layers or first < 0:
                raise InputError(
                    f"restrict: split[device {u}] = {last if first >= 0 else first:g} is a split the network does not "
                    f"have; it has {network.layers} layers and is split at 0 to {network.layers}"
                )
            if not np.any((network.choices >= first) & (network.choices <= last)):
                raise InputError(
                    f"restrict: split[device {u}] = {first:g} to {last:g} holds none of the network's choices "
                    f"{network.choices.tolist()}"
                )

    def _check_magnitudes(self) -> None:
        """Refuse numbers that are valid one by one but overflow together."""
        system = self.system
        devices, server, network = system.devices, system.server, system.network
        with np.errstate(all="ignore"):
            cycles = (network.flops + network.fixed_flops).sum() / devices.flops_per_cycle
            derived = {
                "SNR at power_max (gain, power_max, noise_density, bandwidth)": devices.power_max / system.noise_power,
                "computing delay (flops, flops_per_cycle, frequency)": cycles / devices.frequency,
                "computing energy (flops, flops_per_cycle, frequency, capacitance, pue)": (
                    devices.pue * devices.capacitance * cycles * devices.frequency**2
                ),
                "server delay (flops, server_flops_per_cycle, server_frequency)": np.full(
                    len(system),
                    (network.flops + network.fixed_flops).sum()
                    / (server.server_flops_per_cycle * server.server_frequency),
                ),
                "server energy (server_frequency, server_capacitance, server_pue)": np.full(
                    len(system), server.server_pue * server.server_capacitance * server.server_frequency**3
                ),
            }
        for what, values in derived.items():
            bad = ~((values < _LARGEST) & (values > 1.0 / _LARGEST))
            if np.any(bad):
                u = int(np.argmax(bad))
                raise InputError(f"device {u}: the {what} is {float(values[u]):g}, beyond what can be computed")
        if not self._scale < _LARGEST:
            raise InputError(
                f"network: the distortion with all weights removed is {self._scale:g}, beyond what can be computed "
                "(lipschitz, amplification, parameters, weight_rate)"
            )

    # ------------------------------------------------------------------ evaluation

    @property
    def _scale(self) -> float:
        """H sum A n / lambda: the distortion per unit distortion."""
        network = self.system.network
        each = distortion.output_distortion(np.ones(1), network.amplification, network.parameters, network.weight_rate)
        return network.lipschitz * float(each)

    def distortion(self, ratio: Any, law: str | None = None) -> Any:
        """Bound on the output distortion at a common ratio, elementwise."""
        return self._scale * unit_distortion(ratio, self.system.network, law)

    def evaluate(self, decision: Decision) -> Evaluation:
        """Return the mean distortion bound, slack and quantities (theory 4a, 4b); arrays ``[..., devices]``.

        Raises
        ------
        InputError
            For unknown or missing variables, or another number of devices.
        """
        self.check(decision)
        system = self.system
        devices, server, network = system.devices, system.server, system.network
        xp = namespace(*decision.values())

        def array(values: Any) -> Any:
            return xp.asarray(np.array(values))

        ratio, power = decision["pruning_ratio"], decision["power"]
        frequency, server_frequency = decision["frequency"], decision["server_frequency"]
        split = decision["split"]
        plain = np.asarray(split.detach().cpu() if hasattr(split, "detach") else split)
        at = np.clip(np.rint(plain), 0, network.layers).astype(np.int64)
        nearest_choice = np.abs(plain[..., None] - network.choices).min(axis=-1)

        kept = 1.0 - ratio
        before, after = network.before, network.after
        work = (kept * array(before(network.flops)[at]) + array(before(network.fixed_flops)[at])) / array(
            devices.flops_per_cycle
        )
        server_work = (
            kept * array(after(network.flops)[at]) + array(after(network.fixed_flops)[at])
        ) / server.server_flops_per_cycle
        # the raw input is sent whole
        factor = xp.where(array(at > 0), inference.cut_factor(kept, network.cut_law), xp.ones_like(kept))
        bits = array(network.cut_bits[at]) * factor

        device_delay = inference.compute_delay(work, frequency)
        server_delay = inference.compute_delay(server_work, server_frequency)
        send_delay = inference.send_delay(bits, array(system.link.bandwidth), power, array(system.noise_power))
        device_energy = inference.compute_energy(work, frequency, array(devices.capacitance), array(devices.pue))
        server_energy = inference.compute_energy(
            server_work, server_frequency, server.server_capacitance, server.server_pue
        )
        send_energy = inference.send_energy(send_delay, power)
        delay = device_delay + send_delay + server_delay
        energy = device_energy + send_energy + server_energy

        bound = self.distortion(ratio)
        # a ratio common to all is spread over the devices
        mean = xp.mean(bound + xp.zeros_like(array(devices.frequency)), axis=-1)
        slack: dict[str, Any] = {
            "delay": array(devices.delay_budget) - delay,
            "energy": array(devices.energy_budget) - energy,
        }
        scale: dict[str, Any] = {"delay": devices.delay_budget, "energy": devices.energy_budget}
        for variable in self.variables:
            value = decision[variable.name]
            inside = xp.minimum(value - array(variable.lower), array(variable.upper) - value)
            if variable.name == "split":
                broken = array(nearest_choice)
                inside = xp.where(broken > 0, xp.minimum(inside, -broken), inside)
            slack[variable.name] = inside
            scale[variable.name] = variable.upper if variable.unit else 1.0
        quantities = {
            "delay": delay,
            "energy": energy,
            "device_delay": device_delay,
            "send_delay": send_delay,
            "server_delay": server_delay,
            "device_energy": device_energy,
            "send_energy": send_energy,
            "server_energy": server_energy,
            "compute_delay": device_delay + server_delay,
            "upload_delay": send_delay,
            "compute_energy": device_energy + server_energy,
            "upload_energy": send_energy,
            "payload_bits": bits,
            "distortion": bound,
            "distortion_laplace": self.distortion(ratio, "laplace"),
            "distortion_rate": self.distortion(ratio, "rate"),
        }
        if network.curve_ratio is not None and network.curve_distortion is not None:
            quantities["distortion_measured"] = self.distortion(ratio, "measured")
        return Evaluation(objective=mean, parts={"distortion": mean}, slack=slack, scale=scale, quantities=quantities)

    # ------------------------------------------------------------------ structure

    def capabilities(self) -> Capabilities:
        """Sums and cells (exact with certificate), search over splits, alternating steps, baselines."""
        cells = _Cells(self)
        return Capabilities(
            sums=Sums(
                features=("distortion",),
                numerator=np.array([1.0]),
                numerator_offset=0.0,
                denominator=np.array([0.0]),
                denominator_offset=1.0,
                limits=np.array([np.inf]),
            ),
            cells=cells,
            search=_SplitSearch(self, cells),
            blocks=cells.blocks(),
            baselines=self._baselines(cells),
            conflicts=cells.conflicts,
        )

    def _baselines(self, cells: _Cells) -> dict[str, Baseline]:
        network, high = self.system.network, {name: r[1] for name, r in self._ranges.items()}
        low_split, high_split = self._ranges["split"]
        out = {}
        if network.choices[-1] == network.layers and np.all(high_split == network.layers):
            out["all_on_device"] = Baseline("every layer on the device", restrict={"split": network.layers})
        if network.choices[0] == 0 and np.all(low_split == 0):
            out["all_on_server"] = Baseline("the raw input is sent, every layer on the server", restrict={"split": 0})
        return out | {
            "fixed_frequency": Baseline(
                "the design at the greatest frequencies",
                restrict={"frequency": high["frequency"], "server_frequency": high["server_frequency"]},
            ),
            "fixed_power": Baseline("the design at full power", restrict={"power": high["power"]}),
            "random": Baseline(f"the best of {_TRIALS} random feasible trials per device", rule=cells.random),
        }


class _Cells:
    """Co-inference per device: x is the pruning ratio, the label is the split point; every cell is a point."""

    def __init__(self, problem: CoInference) -> None:
        self.problem = problem
        system = problem.system
        self.total = len(system)
        devices, server, network = system.devices, system.server, system.network
        self.units = len(system)
        ranges = problem._ranges
        self.ranges = ranges
        self.ratio_low, self.ratio_high = ranges["pruning_ratio"]
        # below this ratio the distortion does not increase: never better there
        floor = 0.0
        if network.distortion == "rate":
            floor = float(distortion.least_rate_distortion_ratio(np.asarray(network.bits)))
        self.ratio_free = np.clip(floor, self.ratio_low, self.ratio_high)
        self.delay_budget, self.energy_budget = devices.delay_budget, devices.energy_budget
        self.labels = network.choices
        self.device_flops = network.before(network.flops), network.before(network.fixed_flops)
        self.server_flops = network.after(network.flops), network.after(network.fixed_flops)
        self.cut_bits = network.cut_bits
        self.channels = network.cut_law == "channels"
        self.flops_per_cycle = devices.flops_per_cycle, server.server_flops_per_cycle
        self.device_coefficient = devices.pue * devices.capacitance
        self.server_coefficient = server.server_pue * server.server_capacitance
        self.noise, self.bandwidth = system.noise_power, system.link.bandwidth

    def chains(self, unit: Any, label: Any) -> Chains:
        """Return the chains of units at splits."""
        size = np.shape(unit)
        per_cycle, per_server_cycle = self.flops_per_cycle[0][unit], self.flops_per_cycle[1]
        low, high = ({name: r[i][unit] for name, r in self.ranges.items()} for i in (0, 1))
        return Chains(
            device_work=self.device_flops[0][label] / per_cycle,
            device_fixed=self.device_flops[1][label] / per_cycle,
            server_work=self.server_flops[0][label] / per_server_cycle,
            server_fixed=self.server_flops[1][label] / per_server_cycle,
            bits=self.cut_bits[label],
            shrinks=np.full(size, self.channels) & (label > 0),
            device_coefficient=self.device_coefficient[unit],
            server_coefficient=np.full(size, self.server_coefficient),
            noise=self.noise[unit],
            bandwidth=self.bandwidth[unit],
            frequency_low=low["frequency"],
            frequency_high=high["frequency"],
            server_low=low["server_frequency"],
            server_high=high["server_frequency"],
            power_low=low["power"],
            power_high=high["power"],
        )

    def pairs(self, unit: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return (position in `unit`, label) of all allowed pairs, unit by unit, labels increasing."""
        low, high = (r[unit] for r in self.ranges["split"])
        allowed = (self.labels >= low[:, None]) & (self.labels <= high[:, None])
        position, which = np.nonzero(allowed)
        return position, self.labels[which]

    def _cost(self, ratio: Any) -> FloatArray:
        value: FloatArray = self.problem.distortion(np.asarray(ratio)) / self.total
        return value

    # -- what the exact solver asks

    def cover(self, prices: FloatArray, units: slice) -> CellList:
        """Return one cell per feasible unit: the least ratio over all splits, by the rules of theory 4g."""
        unit = np.arange(units.start, units.stop)
        position, label = self.pairs(unit)
        who = unit[position]
        found = inference.least_ratio(
            self.chains(who, label),
            self.delay_budget[who],
            self.energy_budget[who],
            self.ratio_free[who],
            self.ratio_high[who],
        )
        winner = first_per_group(position, found.ratio, found.inner.energy, found.feasible)
        x, energy = found.ratio[winner], found.inner.energy[winner][None]
        return CellList(who[winner], label[winner], x, x.copy(), energy, energy.copy())

    def probe(self, unit: Any, x: Any) -> FloatArray:
        """Return the least energy where it is known; at a point without its label it is not."""
        return np.full((1, np.size(x)), np.nan)

    def value(self, prices: FloatArray, unit: Any, label: Any, x: Any, data: Any) -> FloatArray:
        """Return the priced distortion at (split, ratio); inf where the budgets cannot be kept."""
        energy = np.array(data[0], dtype=np.float64)
        unknown = np.flatnonzero(np.isnan(energy))
        if unknown.size:
            who = unit[unknown]
            energy[unknown] = inference.least_energy(
                self.chains(who, label[unknown]), 1.0 - x[unknown], self.delay_budget[who]
            ).energy
        fits = energy <= self.energy_budget[unit] * (1.0 + _SLACK)
        return np.where(fits, prices[0] * self._cost(x), np.inf)

    def bound(self, prices: FloatArray, cells: CellList) -> tuple[FloatArray, FloatArray]:
        """Return the priced distortion at each cell's least ratio: nothing below it is feasible or better."""
        return prices[0] * self._cost(np.maximum(cells.low, self.ratio_free[cells.unit])), cells.low

    def split(self, prices: FloatArray, cells: CellList, hint: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Split in the middle; cells of `cover` are points and are never split."""
        middle = 0.5 * (cells.low + cells.high)
        return middle, middle

    def complete(self, prices: FloatArray, unit: Any, label: Any, x: Any) -> tuple[dict[str, FloatArray], FloatArray]:
        """Return all five variables, of least energy, and the feature at (split, ratio)."""
        inner = inference.least_energy(self.chains(unit, label), 1.0 - x, self.delay_budget[unit])
        return self._decision(x, label, inner), self._cost(x)[None]

    def _decision(self, ratio: Any, label: Any, inner: LeastEnergy) -> dict[str, FloatArray]:
        return {
            "pruning_ratio": np.array(ratio, dtype=np.float64),
            "split": label.astype(np.float64),
            "power": inner.power,
            "frequency": inner.frequency,
            "server_frequency": inner.server_frequency,
        }

    def capped(self, feature: int, caps: FloatArray) -> Cells:
        """Refuse: no budget is shared."""
        raise InputError(f"feature {feature} cannot be capped")

    def least_violating(self, unit: Any) -> dict[str, FloatArray]:
        """Return the decision that exceeds both budgets by the smallest common factor, at the largest ratio."""
        unit = np.asarray(unit, dtype=np.int64)
        ratio = self.ratio_high[unit]
        label, _, inner = self.balanced(unit, ratio)
        return self._decision(ratio, label, inner)

    # -- budgets that would do

    def _least_factor(self, chains: Chains, unit: Any, kept: FloatArray, *, energy_too: bool) -> FloatArray:
        """Least factor of the delay budget (and the energy budget) at which a kept share fits; inf where none.

        ln E_min is convex and decreasing in ln T0 (a geometric program), so Newton from the left, where it still
        exceeds the budget, cannot overshoot.
        """
        deadline, budget = self.delay_budget[unit], self.energy_budget[unit]
        with np.errstate(divide="ignore"):
            fastest = inference.least_energy(chains, kept, np.zeros(len(chains)))
        shortest = fastest.device_time + fastest.server_time + fastest.send_time
        tiny = 1e-15 * deadline
        factor = np.maximum(shortest, tiny) / deadline
        rows = np.arange(len(chains))
        for _ in range(200):
            if rows.size == 0:
                break
            inner = inference.least_energy(chains.take(rows), kept[rows], factor[rows] * deadline[rows] * (1.0 + 1e-13))
            room = budget[rows] * (factor[rows] if energy_too else 1.0)
            with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
                over = np.log(inner.energy / room)
                steep = inner.multiplier * factor[rows] * deadline[rows] / inner.energy + (1.0 if energy_too else 0.0)
                moved = factor[rows] * np.exp(np.minimum(over / steep, 40.0))
            done = ~(over > 1e-13)
            # far beyond, where the energy no longer falls
            never = ~done & ~(moved < 1e15)
            stuck = moved <= factor[rows]
            factor[rows] = np.where(never, np.inf, np.where(done, factor[rows], moved))
            rows = rows[~(done | never | stuck)]
        return factor

    def balanced(
        self, unit: npt.NDArray[np.int64], ratio: FloatArray
    ) -> tuple[npt.NDArray[np.int64], FloatArray, LeastEnergy]:
        """Return (split, factor, resources) for which the larger of T/T0 and E/E0 is least at a ratio."""
        position, label = self.pairs(unit)
        who, kept = unit[position], 1.0 - ratio[position]
        factor = self._least_factor(self.chains(who, label), who, kept, energy_too=True)
        best = first_per_group(position, factor, np.zeros(factor.size), np.ones(factor.size, dtype=np.bool_))
        inner = inference.least_energy(
            self.chains(unit, label[best]), 1.0 - ratio, factor[best] * self.delay_budget[unit] * (1.0 + 1e-13)
        )
        return label[best], factor[best], inner

    def conflicts(self, unit: Any) -> list[Conflict]:
        """Say for infeasible devices which budget is short and the smallest relaxations (delay, energy, both)."""
        unit = np.asarray(unit, dtype=np.int64)
        if unit.size == 0:
            return []
        position, label = self.pairs(unit)
        who = unit[position]
        chains, kept = self.chains(who, label), 1.0 - self.ratio_high[who]
        everyone = np.ones(who.size, dtype=np.bool_)
        delay = self._least_factor(chains, who, kept, energy_too=False)
        both = self._least_factor(chains, who, kept, energy_too=True)
        energy = inference.least_energy(chains, kept, self.delay_budget[who]).energy
        best = [first_per_group(position, v, 0.0 * kept, everyone) for v in (delay, energy, both)]
        out = []
        for i, u in enumerate(unit):
            t0, e0 = float(self.delay_budget[u]), float(self.energy_budget[u])
            at_t, at_e, at_both = (int(b[i]) for b in best)
            need_t = float(delay[at_t]) * t0 if np.isfinite(delay[at_t]) else None
            need_e = float(energy[at_e]) if np.isfinite(energy[at_e]) else None
            factor = float(both[at_both])
            if need_t is None and need_e is None:
                binding = "delay and energy, each alone"
            elif need_e is None:
                binding = "delay"
            elif need_t is None:
                binding = "energy"
            else:
                binding = "delay and energy together"
            ways = []
            if need_t is not None and need_t > t0:
                ways.append(
                    f"delay budget {format_si(t0, 's')} -> {format_si(need_t, 's', 4)} (split {int(label[at_t])})"
                )
            if need_e is not None and need_e > e0:
                ways.append(
                    f"energy budget {format_si(e0, 'J')} -> {format_si(need_e, 'J', 4)} (split {int(label[at_e])})"
                )
            ways.append(f"both budgets x {factor:.4g} (split {int(label[at_both])})")
            out.append(
                Conflict(
                    device=int(u),
                    binding=binding,
                    relax={"delay_budget": need_t, "energy_budget": need_e},
                    budget={"delay_budget": t0, "energy_budget": e0},
                    factor=factor,
                    text=(
                        f"device {int(u)}: {binding}, at pruning ratio {self.ratio_high[u]:g}; feasible with "
                        + ", or ".join(ways)
                    ),
                )
            )
        return out

    # -- alternating steps

    def blocks(self) -> Blocks:
        """Alternate resources at a ratio and the ratio at resources.

        Resources (and the split) are those for which the larger of T/T0 and E/E0 is least, so that the other step
        has room; at the least energy by T0, as alternating descents have it, the ratio could never move again. A
        point at rest has max(T/T0, E/E0) = 1 at its best resources, so no smaller ratio is feasible [D].
        """
        everyone = np.arange(self.units)

        def resources(decision: Decision) -> Decision:
            ratio = np.broadcast_to(decision["pruning_ratio"], (self.units,))
            label, _, inner = self.balanced(everyone, ratio)
            return Decision(self._decision(ratio, label, inner))

        def pruning(decision: Decision) -> Decision:
            chains = self.chains(everyone, np.rint(decision["split"]).astype(np.int64))
            ratio = self._at_resources(chains, everyone, self._speed(decision))
            return decision.with_(pruning_ratio=np.clip(ratio, self.ratio_free, self.ratio_high))

        def start() -> Decision:
            return resources(
                Decision(pruning_ratio=self.ratio_high, split=np.zeros(self.units), power=np.zeros(self.units))
            )

        steps: dict[str, Callable[[Decision], Decision]] = {"pruning_ratio": pruning, "resources": resources}
        return Blocks(start=start, steps=steps)

    def _speed(self, decision: Any) -> tuple[Any, Any, Any]:
        return decision["frequency"], decision["server_frequency"], decision["power"]

    def _at_resources(self, chains: Chains, unit: Any, speed: tuple[Any, Any, Any]) -> FloatArray:
        """Least ratio that both budgets allow at given resources; above 1 where none."""
        share = np.minimum(
            inference.delay_limited_share(chains, self.delay_budget[unit], speed),
            inference.energy_limited_share(chains, self.energy_budget[unit], speed),
        )
        return 1.0 - share

    # -- rule of a baseline

    def random(self, rng: np.random.Generator) -> Decision | None:
        """Return the best of the random feasible trials of every device; None if a device had none."""
        everyone = np.arange(self.units)
        low_split, high_split = self.ranges["split"]
        first = np.searchsorted(self.labels, low_split, side="left")
        last = np.searchsorted(self.labels, high_split, side="right")
        best = np.full(self.units, np.inf)
        chosen = {name: np.zeros(self.units) for name in self.ranges}
        found = np.zeros(self.units, dtype=np.int64)
        # a draw of resources is feasible at some ratios or at none; up to ten draws for each trial wanted
        for _ in range(10 * _TRIALS):
            label = self.labels[rng.integers(first, last)]
            draw = {
                name: rng.uniform(low, high) for name, (low, high) in self.ranges.items() if name != "pruning_ratio"
            }
            draw["split"] = label.astype(np.float64)
            least = np.maximum(
                self._at_resources(self.chains(everyone, label), everyone, self._speed(draw)), self.ratio_low
            )
            fits = (least <= self.ratio_high) & (found < _TRIALS)
            ratio = least + rng.uniform(size=self.units) * (self.ratio_high - least)
            found += fits
            value = np.where(fits, self._cost(np.where(fits, ratio, self.ratio_high)), np.inf)
            better = value < best
            best = np.where(better, value, best)
            draw["pruning_ratio"] = ratio
            for name, values in draw.items():
                chosen[name] = np.where(better, values, chosen[name])
            if np.all(found >= _TRIALS):
                break
        return Decision(chosen) if np.all(np.isfinite(best)) else None


def first_per_group(
    group: npt.NDArray[np.int64], first: FloatArray, second: FloatArray, allowed: npt.NDArray[np.bool_]
) -> npt.NDArray[np.int64]:
    """Return the index of the winner of every group that has an allowed row, rows in order of preference at ties.

    Least `first` (within an absolute 1e-12), then least `second` (within a relative 1e-12), then the first row.
    """
    rows = np.flatnonzero(allowed)
    if rows.size == 0:
        return rows
    group, first, second = group[rows], first[rows], second[rows]
    starts = np.flatnonzero(np.concatenate([[True], np.diff(group) != 0]))
    which = np.cumsum(np.concatenate([[False], np.diff(group) != 0]))
    least = np.minimum.reduceat(first, starts)[which]
    second = np.where(first <= least + _TIE, second, np.inf)
    least = np.minimum.reduceat(second, starts)[which]
    good = np.flatnonzero(second <= least * (1.0 + _TIE))
    _, take = np.unique(which[good], return_index=True)
    return rows[good[take]]


class _SplitSearch:
    """Bayesian optimization's view: a split per device; the least feasible ratio and the resources follow."""

    name = "split"
    kind = "integer"
    logarithmic = False

    def __init__(self, problem: CoInference, cells: _Cells) -> None:
        self.cells = cells
        low, high = problem._ranges["split"]
        # a device's variable counts the network's choices within its range
        self.first = np.searchsorted(cells.labels, low, side="left")
        last = np.searchsorted(cells.labels, high, side="right") - 1
        self.lower, self.upper = np.zeros(cells.units), (last - self.first).astype(np.float64)
        self.attribute = -np.log(cells.noise)

    def _inner(self, x: Any) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], LeastRatio]:
        """Units, labels and best answers at x ``[..., units]``, flattened."""
        cells = self.cells
        place = np.clip(np.rint(np.asarray(x, dtype=np.float64)), self.lower, self.upper).astype(np.int64)
        label = cells.labels[(self.first + place).reshape(-1)]
        unit = np.tile(np.arange(cells.units), label.size // cells.units)
        found = inference.least_ratio(
            cells.chains(unit, label),
            cells.delay_budget[unit],
            cells.energy_budget[unit],
            cells.ratio_free[unit],
            cells.ratio_high[unit],
        )
        return unit, label, found

    def _factor(self, unit: npt.NDArray[np.int64], label: npt.NDArray[np.int64]) -> FloatArray:
        """Least common factor on both budgets at which the largest ratio fits."""
        cells = self.cells
        return cells._least_factor(cells.chains(unit, label), unit, 1.0 - cells.ratio_high[unit], energy_too=True)

    def complete(self, x: Any) -> Decision:
        """Return the decision of least ratio at splits ``[..., devices]``; the least violating one where none fits."""
        cells = self.cells
        unit, label, found = self._inner(x)
        ratio = np.where(found.feasible, found.ratio, cells.ratio_high[unit])
        parts = cells._decision(ratio, label, found.inner)
        short = np.flatnonzero(~found.feasible)
        if short.size:
            who, split = unit[short], label[short]
            inner = inference.least_energy(
                cells.chains(who, split),
                1.0 - ratio[short],
                self._factor(who, split) * cells.delay_budget[who] * (1.0 + 1e-13),
            )
            for name, values in cells._decision(ratio[short], split, inner).items():
                parts[name] = np.array(parts[name])
                parts[name][short] = values
        return Decision({name: values.reshape(np.shape(x)) for name, values in parts.items()})

    def locate(self, decision: Decision) -> FloatArray:
        """Return the places of a decision's splits among the choices."""
        split = np.broadcast_to(decision["split"], (*np.shape(decision["split"])[:-1], self.cells.units))
        return np.searchsorted(self.cells.labels, np.rint(split)) - self.first.astype(np.float64)

    def unit_values(self, x: Any) -> FloatArray | None:
        """Return the distortion per unit; where infeasible, more than any feasible value, growing with the excess."""
        cells = self.cells
        unit, label, found = self._inner(x)
        value = cells._cost(np.where(found.feasible, found.ratio, cells.ratio_high[unit]))
        short = np.flatnonzero(~found.feasible)
        if short.size:
            # bounded, so that one hopeless point does not flatten the rest
            value[short] *= 2.0 - 1.0 / np.maximum(self._factor(unit[short], label[short]), 1.0)
            value[short] += 1e-9 * cells._cost(cells.ratio_high).max()
        return value.reshape(np.shape(x))

"""LTFL: pruning ratio, bits and power for the least convergence gap under delay and energy budgets.

In the manner of "Lightweight Federated Learning over Wireless Edge Networks": the problem statement is the
published one [R], the gap is derived here [D] (theory 1b), not quoted.

    min  Gamma(pruning_ratio, bits, power) = sum_u pi_u [C_q q_u + 2 (L^2 D^2 e(r_u) + M^2 r_u) + 2 sigma_Q,u^2]
    s.t. T_u <= T_max, E_u <= E_max, A < 1, 0 <= r_u <= r_max, bits integer, p_min <= p_u <= p_max.

Why it can be solved with a certificate (theory 1c, 1d and L6). Let s be the mean SNR of a device, which is its
power up to a factor, and fix the bits. The delay budget asks for a ratio r_T(s), decreasing; the energy budget for
r_E(s), increasing; the error e plus quantization noise is least at a ratio r_0 that depends on neither. Then
H(s) = C_q q(s) + G(max(r_0, r_T, r_E)) with G increasing beyond r_0. Left of the crossing c, where r_E reaches
max(r_0, r_T), everything falls, so the least value there is H(c). Right of it H = C_q q(s) + G(r_E(s)), and

* q is concave in 1/s (dq/dx = 2 K0(2 sqrt x) falls; 1 - e^-x is concave), so it lies above its chord in 1/s;
* r_E is concave in s: the energy per bit is proportional to s / r(s), which is the harmonic mean of 1 + s u over
  u (uniform without fading, exponential under Rayleigh fading), concave as a harmonic mean of affine functions;
  r_E is an increasing linear-fractional, hence concave, function of it;
* G is convex, so it lies above its tangent; with the linear error it is its tangent.

A cell of SNRs is therefore bounded below by alpha + beta/s + gamma s, whose least point is known. The error of the
bound falls with the square of the cell's width; with the linear error bound and function agree at the cell's ends.
Of a measured error, straight between its points, a tangent would miss the corners; G at the chord of r_E is convex in s
and of that form on every piece, and so is taken as it is: the piece with its least value is found by bisection.
Nothing is sampled and no single minimum is assumed. Where a budget does not even cover what pruning cannot reduce,
r_T or r_E exceeds 1 at every power, and the cell is infeasible whatever their slopes.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

import numpy as np

from jointopt.decision import Decision
from jointopt.errors import InputError, nearest
from jointopt.models import channel, compression, convergence
from jointopt.models._array import namespace
from jointopt.models.curve import ConvexCurve
from jointopt.problem import (
    Baseline,
    Blocks,
    Capabilities,
    CellList,
    Evaluation,
    Leaves,
    Problem,
    Sums,
    Variable,
    range_slack,
)
from jointopt.problems.round import LARGEST, RoundCells, check_magnitudes, round_costs
from jointopt.ranges import changed_ranges, learning_limits, narrowed
from jointopt.system import FloatArray, System

__all__ = ["LTFL"]

CONTRACTION_LIMIT = 1.0 - 1e-6
"""A < 1 is strict; a closed limit just below it keeps the minimum attained and the bound finite."""

GAP_PARTS = ("transmission", "pruning", "quantization", "sampling")


def device_round(
    system: System,
    decision: Decision,
    snr: Any,
    rate: Any,
    sampling: FloatArray,
    constants: Mapping[str, float],
) -> tuple[dict[str, Any], convergence.Gap]:
    """Return what a round costs every device, and its share of the gap (theory 1a, 1b); any kind of array.

    `decision` holds pruning_ratio, bits and power; `snr` and `rate` follow from whatever band the devices have. The
    costs are delay, energy and their stages, packet_error and payload_bits.
    """
    learner, bound = system.learner, system.bound
    xp = namespace(*decision.values())

    def array(values: Any) -> Any:
        return xp.asarray(np.array(values))

    ratio = decision["pruning_ratio"]
    spent = round_costs(system, decision, snr, rate, array(system.batch))
    gap = convergence.gap(
        weight=array(system.weight),
        packet_error=spent["packet_error"],
        pruning_ratio=ratio,
        pruning_error=compression.pruning_error(ratio, bound.pruning_law),
        quantization_variance=compression.quantization_variance(
            (1.0 - ratio) * learner.parameters + float(learner.unpruned_parameters),
            array(bound.quantizer_range),
            decision["bits"],
        ),
        sampling_variance=array(sampling),
        **constants,
    )
    return spent, gap


class LTFL(Problem):
    """The LTFL design for one system.

    Parameters
    ----------
    system : System
        Devices, radio, learner and bound constants.
    objective : {"gap", "bound"}
        The gap Gamma (default), or the full bound (2 Delta_0/(eta T) + Gamma)/(1 - A), which differs when
        zeta_2 > 0 (theory L4).
    """

    name = "ltfl"
    minimises = "convergence gap under per-device delay and energy budgets"
    budgets: ClassVar[Mapping[str, str]] = {"delay": "delay_budget", "energy": "energy_budget"}
    overlooks: ClassVar[tuple[str, ...]] = (
        "generalization gap",
        "class mixes",
        "rounds to a target",
        "tiers by time",
        "a price on latency",
        "the way to the cloud",
    )

    def __init__(
        self,
        system: System,
        *,
        objective: Literal["gap", "bound"] = "gap",
        ranges: dict[str, tuple[FloatArray, FloatArray]] | None = None,
    ) -> None:
        if not isinstance(system, System):
            raise InputError(f"system: expected a System, got {type(system).__name__}")
        if objective not in ("gap", "bound"):
            raise InputError(f"objective: unknown '{objective}'{nearest(str(objective), ['gap', 'bound'])}")
        self.system = system
        self.objective = objective
        devices, learner = system.devices, system.learner
        ones = np.ones(len(system))
        self._ranges = {
            "pruning_ratio": (0.0 * ones, learner.pruning_ratio_max * ones),
            "bits": (learner.bits_min * ones, learner.bits_max * ones),
            "power": (devices.power_min, devices.power_max),
            **(ranges or {}),
        }
        self._check_magnitudes()

    @classmethod
    def sample(
        cls, *, devices: int | None = None, seed: int = 0, data: str | None = None, tightness: float = 1.0
    ) -> System:
        """Sample a system (`jointopt.systems.ltfl`)."""
        from jointopt import systems

        return systems.ltfl(
            devices=20 if devices is None else devices,
            seed=seed,
            data="digits" if data is None else data,
            tightness=tightness,
        )

    @property
    def variables(self) -> tuple[Variable, ...]:
        """Pruning ratio, bits, power [W], each per device."""
        ranges = self._ranges
        return (
            Variable("pruning_ratio", *ranges["pruning_ratio"], meaning="fraction of weights removed"),
            Variable("bits", *ranges["bits"], unit="bit", kind="integer", meaning="bits per parameter sent"),
            Variable("power", *ranges["power"], unit="W", meaning="transmit power"),
        )

    def settings(self) -> dict[str, Any]:
        """Return the objective and the ranges that differ from the system's own."""
        return {"objective": self.objective} | changed_ranges(self._ranges, LTFL(self.system)._ranges)

    def restrict(self, **ranges: Any) -> Self:
        """Return the problem with variables fixed or narrowed: ``restrict(bits=8, power=(0.02, 0.05))``.

        Bits may be fixed above `bits_max` (32 is an unquantized float). Ratios above `pruning_ratio_max` and bits
        below `bits_min` are refused, since the gap's constant E_cap covers only those ranges.
        """
        limits = learning_limits(self.system, self.system.learner.bits_min)
        new = narrowed(self._ranges, ranges, len(self.system), limits)
        return type(self)(self.system, objective=self.objective, ranges=new)

    def _check_magnitudes(self) -> None:
        """Refuse numbers that are valid one by one but overflow together."""
        check_magnitudes(self.system)
        try:
            with np.errstate(all="ignore"):
                constant = 8.0 * self.system.bound.gradient_offset + 2.0 * self.error_cap()
        except OverflowError:
            constant = np.inf
        if not constant < LARGEST:
            raise InputError(
                f"bound: the constant 8 gradient_offset + 2 E_cap is {constant:g}, beyond what can be computed "
                "(smoothness, weight_norm_squared, mask_energy, quantizer_range, gradient_variance, gradient_offset)"
            )

    # ------------------------------------------------------------------ evaluation

    def _sampling(self) -> FloatArray:
        """sigma^2 / b of devices that train on a batch, shape [devices]; nothing for a full batch."""
        system = self.system
        return np.where(system.batch < system.devices.samples, system.bound.gradient_variance / system.batch, 0.0)

    def error_cap(self, instances: int = 1) -> Any:
        """E_cap of theory 1b, over the system's own ranges, so that restricted problems share one objective.

        One number, or one for each of several instances of equal size that the system's devices make up.
        """
        learner, bound = self.system.learner, self.system.bound
        worst = learner.pruning_ratio_max
        cap = convergence.error_cap(
            smoothness=bound.smoothness,
            weight_norm_squared=bound.weight_norm_squared,
            mask_energy=bound.mask_energy,
            pruning_ratio_max=worst,
            pruning_error_max=compression.pruning_error(np.asarray(worst), bound.pruning_law),
            parameters=learner.parameters + learner.unpruned_parameters,
            range_max=bound.quantizer_range.reshape(instances, -1).max(axis=1),
            bits_min=np.asarray(float(learner.bits_min)),
            sampling_variance=self._sampling().reshape(instances, -1).max(axis=1),
        )
        return cap if instances > 1 else float(cap[0])

    def stack(self, instances: int, changes: Mapping[str, FloatArray]) -> tuple[Sums, _Cells]:
        """Return sums and cells of many instances of the problem, one after the other.

        Parameters
        ----------
        instances : int
            How many.
        changes : dict of arrays, shape [instances, devices]
            Fields per device that differ; the sums are about one instance.
        """
        size = len(self.system)
        flat = self.system.take(np.tile(np.arange(size), instances))
        flat = flat.with_(**{name: np.ravel(values) for name, values in changes.items()})
        own = LTFL(self.system)._ranges
        ranges = {
            name: (np.tile(low, instances), np.tile(high, instances))
            for name, (low, high) in self._ranges.items()
            if not (np.array_equal(low, own[name][0]) and np.array_equal(high, own[name][1]))
        }
        if "power" in ranges and {"power_min", "power_max"} & set(changes):
            raise InputError("stack: power_min and power_max cannot differ where power is restricted")
        problem = type(self)(flat, objective=self.objective, ranges=ranges)
        cells = _Cells(problem)
        cells.regroup(problem, instances)
        return self._sums(), cells

    @property
    def constants(self) -> dict[str, float]:
        """What `convergence.gap` needs beside the devices' own quantities."""
        bound = self.system.bound
        return {
            "smoothness": bound.smoothness,
            "weight_norm_squared": bound.weight_norm_squared,
            "mask_energy": bound.mask_energy,
            "gradient_offset": bound.gradient_offset,
            "gradient_slope": bound.gradient_slope,
            "error_cap": self.error_cap(),
        }

    def evaluate(self, decision: Decision) -> Evaluation:
        """Return the gap, its parts, slack and quantities (theory 1a to 1c); arrays ``[..., devices]``.

        Raises
        ------
        InputError
            For unknown or missing variables, or another number of devices.
        """
        self.check(decision)
        system = self.system
        devices, radio, learner, bound = system.devices, system.radio, system.learner, system.bound
        xp = namespace(*decision.values())

        def array(values: Any) -> Any:
            return xp.asarray(np.array(values))

        ratio, power = decision["pruning_ratio"], decision["power"]
        snr = channel.snr(power, array(radio.gain), array(system.noise_power))
        rate = channel.rate(array(radio.bandwidth), snr, radio.fading)
        spent, gap = device_round(system, decision, snr, rate, self._sampling(), self.constants)
        delay, energy = spent["delay"], spent["energy"]
        parts = {name: xp.sum(getattr(gap, name), axis=-1) for name in GAP_PARTS}
        total = xp.sum(gap.total, axis=-1)
        contraction = xp.sum(gap.contraction, axis=-1)
        average = convergence.average_gradient_bound(
            total, contraction, bound.initial_gap, bound.learning_rate, float(bound.rounds)
        )
        slack = {
            "delay": array(devices.delay_budget) - delay,
            "energy": array(devices.energy_budget) - energy,
            "contraction": CONTRACTION_LIMIT - contraction,
        }
        scale = {"delay": devices.delay_budget, "energy": devices.energy_budget, "contraction": 1.0}
        slack |= range_slack(self.variables, decision)
        scale |= {v.name: v.upper if v.name == "power" else 1.0 for v in self.variables}
        kept = (1.0 - ratio) * learner.parameters
        memory = 4.0 * (kept + learner.unpruned_parameters) + (
            4.0 * learner.activations * array(system.batch) * compression.memory_factor(ratio, learner.memory_law)
        )
        return Evaluation(
            objective=total if self.objective == "gap" else average,
            parts=parts,
            slack=slack,
            scale=scale,
            quantities={
                **spent,
                "rate": rate,
                "snr": snr,
                "memory": memory,
                "gap": total,
                "contraction": contraction,
                "bound": average,
            },
        )

    # ------------------------------------------------------------------ structure

    def capabilities(self) -> Capabilities:
        """Sums and cells (exact with certificate), search over power, the two published closed forms, baselines."""
        cells = _Cells(self)
        return Capabilities(
            sums=self._sums(),
            cells=cells,
            search=_PowerSearch(self, cells),
            blocks=self._blocks(cells),
            baselines=self._baselines(cells),
            conflicts=cells.conflicts,
        )

    def _sums(self) -> Sums:
        bound = self.system.bound
        coupled = bound.gradient_slope > 0.0
        ratio = self.objective == "bound" and coupled
        offset = 2.0 * bound.initial_gap / (bound.learning_rate * bound.rounds)
        return Sums(
            features=("gap", "contraction"),
            numerator=np.array([1.0, 0.0]),
            numerator_offset=offset if self.objective == "bound" else 0.0,
            denominator=np.array([0.0, -1.0 if ratio else 0.0]),
            denominator_offset=1.0,
            limits=np.array([np.inf, CONTRACTION_LIMIT if coupled else np.inf]),
        )

    def _blocks(self, cells: _Cells) -> Blocks:
        """The two closed forms of theory 1d at full power, from the most bits."""
        everyone = np.arange(cells.units)
        power = self._ranges["power"][1]
        data = cells.probe(everyone, power * cells.snr_per_watt)

        def ratio_step(decision: Decision) -> Decision:
            label = np.rint(decision["bits"]).astype(np.int64)
            need = cells.required_ratio(everyone, label, data)
            return decision.with_(pruning_ratio=np.minimum(need, cells.ratio_high))

        def bits_step(decision: Decision) -> Decision:
            return decision.with_(bits=cells.most_bits(everyone, decision["pruning_ratio"], data))

        def start() -> Decision:
            return ratio_step(Decision(bits=self._ranges["bits"][1], power=power, pruning_ratio=np.zeros(cells.units)))

        return Blocks(start=start, steps={"bits": bits_step, "pruning_ratio": ratio_step})

    def _baselines(self, cells: _Cells) -> dict[str, Baseline]:
        learner = self.system.learner
        full_power = self._ranges["power"][1]
        common_bits = float(min(max(8, learner.bits_min), learner.bits_max))
        common_ratio = min(0.5, learner.pruning_ratio_max)
        return {
            "no_compression": Baseline(
                "every weight, 32-bit floats, full power",
                restrict={"pruning_ratio": 0.0, "bits": 32, "power": full_power},
            ),
            "fixed": Baseline(
                f"ratio {common_ratio:g} and {common_bits:.0f} bits for all, best power",
                restrict={"pruning_ratio": common_ratio, "bits": common_bits},
            ),
            "uniform": Baseline(
                "one ratio and bit-width for all: the least ratio everyone can afford, at the best bit-width",
                rule=cells.uniform,
            ),
            "random": Baseline("a random decision within every budget", rule=cells.random),
            "no_pruning": Baseline("the design without pruning", restrict={"pruning_ratio": 0.0}),
            "no_quantization": Baseline("the design without quantization (32-bit floats)", restrict={"bits": 32}),
            "no_power_control": Baseline("the design at full power", restrict={"power": full_power}),
        }


_PER_UNIT = (*RoundCells.per_unit, "weight", "sampling", "range_squared", "transmission")
"""Constants of `_Cells` that are arrays over units."""

_FOR_ALL = (
    "threshold",
    "law",
    "parameters",
    "unpruned",
    "index_bits",
    "once_bits",
    "fixed_share",
    "falling_share",
    "smooth_energy",
    "mask_energy",
    "contraction",
)
"""Constants of `_Cells` that all units share."""


class _Cells(RoundCells):
    """LTFL per device: x is the mean SNR, the label is the number of bits. See the module's proof."""

    per_unit = _PER_UNIT

    def __init__(self, problem: LTFL) -> None:
        system = problem.system
        bound = system.bound
        super().__init__(system, problem._ranges)
        self.law = bound.pruning_law
        self.weight = system.weight
        self.smooth_energy = bound.smoothness**2 * bound.weight_norm_squared
        self.mask_energy = bound.mask_energy
        self.transmission = np.full(self.units, 8.0 * bound.gradient_offset + 2.0 * problem.error_cap())
        self.contraction = 8.0 * bound.gradient_slope
        self.sampling = problem._sampling()
        self.range_squared = bound.quantizer_range**2
        self.noise_factor = np.zeros(self.labels.max() + 1)
        widths = self.labels.astype(np.float64)
        self.noise_factor[self.labels] = 2.0 * compression.quantization_variance(self.parameters, 1.0, widths)

    # -- the model, as functions of what was probed at an SNR: seconds per bit, joules per bit, packet error

    def noise(self, unit: Any, label: Any) -> Any:
        """2 sigma_Q^2 of the dense payload's prunable part: what the kept fraction multiplies."""
        return self.range_squared[unit] * self.noise_factor[label]

    def free_ratio(self, noise: Any, unit: Any) -> Any:
        """r_0: the ratio of least pruning plus quantization error, were there no budgets."""
        low, high = self.ratio_low[unit], self.ratio_high[unit]
        if self.law == "linear":
            return np.where(2.0 * (self.smooth_energy + self.mask_energy) - noise > 0.0, low, high)
        excess = np.maximum(noise - 2.0 * self.mask_energy, 0.0)
        if self.smooth_energy == 0.0:
            return np.where(excess > 0.0, high, low)
        return np.clip(compression.pruning_ratio_at_slope(excess / (2.0 * self.smooth_energy), self.law), low, high)

    def required_ratio(self, unit: Any, label: Any, data: Any) -> Any:
        """max(r_0, r_T, r_E)."""
        free = self.free_ratio(self.noise(unit, label), unit)
        return np.maximum(free, np.maximum(self.by_delay(unit, label, data), self.by_energy(unit, label, data)))

    def most_bits(self, unit: Any, ratio: Any, data: Any) -> FloatArray:
        """Most bits that fit both budgets at a ratio (theory 1d), within the range; the least where none fit."""
        kept = (1.0 - ratio) * self.parameters
        share = self.fixed_share + self.falling_share * (1.0 - ratio)
        fixed = kept * self.index_bits + self.once_bits
        by_delay = (self.delay_budget[unit] - share * self.compute_delay[unit]) / data[0]
        by_energy = (self.energy_budget[unit] - share * self.compute_energy[unit]) / data[1]
        room = (np.minimum(by_delay, by_energy) - fixed) / (kept + self.unpruned)
        return np.clip(np.floor(room + 1e-9), self.bits_low[unit], self.bits_high[unit]).astype(np.float64)

    def _error(self, ratio: Any) -> Any:
        return 2.0 * (self.smooth_energy * compression.pruning_error(ratio, self.law) + self.mask_energy * ratio)

    def _error_slope(self, ratio: Any) -> Any:
        slope = compression.pruning_error_slope(ratio, self.law)
        return 2.0 * (self.smooth_energy * slope + self.mask_energy)

    def _prices(self, prices: FloatArray, unit: Any) -> tuple[Any, Any]:
        """Price of the pruning and quantization error, and of a lost packet, per unit."""
        weight = self.weight[unit]
        of_gap, of_contraction = prices if prices.ndim == 1 else prices[:, unit]
        error = of_gap * weight
        return error, error * self.transmission[unit] + of_contraction * weight * self.contraction

    def _constant(self, unit: Any, noise: Any) -> Any:
        """Error that no ratio removes: noise of the parameters never pruned, and sampling."""
        return noise * (self.unpruned / self.parameters) + 2.0 * self.sampling[unit]

    # -- the protocol of Cells

    def value(self, prices: FloatArray, unit: Any, label: Any, x: Any, data: Any) -> Any:
        """Return the priced gap at the required ratio; inf where it exceeds the cap."""
        noise = self.noise(unit, label)
        ratio = self.required_ratio(unit, label, data)
        cap = self.ratio_high[unit]
        feasible = ratio <= self.ratio_limit[unit]
        ratio = np.minimum(ratio, cap)
        error, loss = self._prices(prices, unit)
        total = loss * data[2] + error * (self._error(ratio) + noise * (1.0 - ratio) + self._constant(unit, noise))
        return np.where(feasible, total, np.inf)

    def kin(self) -> tuple[Any, ...]:
        """Return the constants that are one for all units: cells that agree in them can be joined."""
        fading, packet_error = self.radio.fading, self.radio.packet_error
        return (fading, packet_error, *(getattr(self, name) for name in _FOR_ALL))

    @staticmethod
    def join(parts: list[_Cells]) -> _Cells:
        """Return the units of several problems as those of one; they must agree in `kin`."""
        out = copy.copy(parts[0])
        out.units = sum(part.units for part in parts)
        for name in _PER_UNIT:
            setattr(out, name, np.concatenate([getattr(part, name) for part in parts]))
        out.labels = np.arange(out.bits_low.min(), out.bits_high.max() + 1)
        out.noise_factor = np.zeros(out.labels.max() + 1)
        for part in parts:
            out.noise_factor[part.labels] = part.noise_factor[part.labels]
        return out

    def regroup(self, problem: LTFL, instances: int) -> None:
        """Let the units be those of several instances of equal size: weights and E_cap are each instance's own."""
        samples = problem.system.devices.samples.reshape(instances, -1)
        self.weight = (samples / samples.sum(axis=1, keepdims=True)).ravel()
        cap = problem.error_cap(instances)
        self.transmission = np.repeat(8.0 * problem.system.bound.gradient_offset + 2.0 * cap, samples.shape[1])

    def cover(self, prices: FloatArray, units: slice) -> CellList:
        """Return cells over all bits and five shared SNRs, without those provably worse than a known point."""
        return self._cover(prices, units)[0]

    def left_out(self, prices: FloatArray, units: slice) -> Leaves:
        """Return the cells that `cover` leaves out, each with the bound for which it does."""
        return Leaves.join(self._cover(prices, units, rest=True)[1])

    def _cover(self, prices: FloatArray, units: slice, *, rest: bool = False) -> tuple[CellList, list[Leaves]]:
        unit = np.arange(*units.indices(self.units))
        low, high = self.low[unit], self.high[unit]
        steps = 4 if np.any(high > low * (1 + 1e-12)) else 1
        fractions = np.linspace(0.0, 1.0, steps + 1) if steps > 1 else np.zeros(2)
        knots = [low * (high / low) ** f for f in fractions]
        knots[-1] = high
        data = [self.probe(unit, x) for x in knots]
        error, loss = self._prices(prices, unit)

        # rows: bits, columns: units
        label = self.labels[:, None]
        allowed = (label >= self.bits_low[unit]) & (label <= self.bits_high[unit])
        noise = self.noise(unit, label)
        free = self.free_ratio(noise, unit)
        constant = self._constant(unit, noise)
        cap = self.ratio_high[unit]
        best = np.full(unit.size, np.inf)
        by_delay, by_energy = [], []

        def priced(ratio: Any, lost: Any) -> Any:
            return loss * lost + error * (self._error(ratio) + noise * (1.0 - ratio) + constant)

        for at in data:
            by_delay.append(self.by_delay(unit, label, at))
            by_energy.append(self.by_energy(unit, label, at))
            ratio = np.maximum(free, np.maximum(by_delay[-1], by_energy[-1]))
            feasible = allowed & (ratio <= self.ratio_limit[unit])
            value = np.where(feasible, priced(np.minimum(ratio, cap), at[2]), np.inf)
            best = np.minimum(best, value.min(axis=0))
        lists: list[CellList] = []
        left: list[Leaves] = []
        for i in range(steps):
            ratio = np.maximum(free, np.maximum(by_delay[i + 1], by_energy[i]))
            bound = priced(np.minimum(ratio, cap), data[i + 1][2])
            possible = ratio <= self.ratio_limit[unit]
            wanted = allowed & possible & (bound <= best)
            if rest:
                rows, columns = np.nonzero(allowed & ~wanted)
                label_of = self.labels[rows].astype(np.float64)
                left.append(
                    Leaves(
                        names=("label", "x"),
                        unit=unit[columns],
                        low=np.stack([label_of, knots[i][columns]]),
                        high=np.stack([label_of, knots[i + 1][columns]]),
                        bound=np.where(possible, bound, np.inf)[rows, columns],
                    )
                )
            rows, columns = np.nonzero(wanted)
            lists.append(
                CellList(
                    unit[columns],
                    self.labels[rows],
                    knots[i][columns],
                    knots[i + 1][columns],
                    data[i][:, columns],
                    data[i + 1][:, columns],
                )
            )
        return CellList.join(lists), left

    def bound(self, prices: FloatArray, cells: CellList) -> tuple[FloatArray, FloatArray]:
        """Return the lower bound of the module's proof, and the bound's least point (NaN left of the crossing)."""
        unit, label = cells.unit, cells.label
        low, high, at_low, at_high = cells.low, cells.high, cells.data_low, cells.data_high
        noise = self.noise(unit, label)
        free = self.free_ratio(noise, unit)
        cap = self.ratio_high[unit]
        error, loss = self._prices(prices, unit)
        constant = self._constant(unit, noise)
        delay_high = self.by_delay(unit, label, at_high)
        energy_low, energy_high = self.by_energy(unit, label, at_low), self.by_energy(unit, label, at_high)
        # everything at its best end: valid on any cell, exact where the whole cell lies left of the crossing
        need = np.maximum(free, np.maximum(delay_high, energy_low))
        capped = np.minimum(need, cap)
        lower = loss * at_high[2] + error * (self._error(capped) + noise * (1.0 - capped) + constant)
        lower = np.where(need > self.ratio_limit[unit], np.inf, lower)
        point = np.full(low.size, np.nan)
        rises = energy_low >= np.maximum(free, self.by_delay(unit, label, at_low))
        falls = energy_high <= np.maximum(free, delay_high)
        rows = np.flatnonzero(rises & ~falls & np.isfinite(lower) & (high > low))
        if rows.size:
            value, point[rows] = self._chord(rows, cells, noise, cap, error, loss, constant, energy_low, energy_high)
            lower[rows] = np.maximum(lower[rows], value)
        return lower, point

    def split(self, prices: FloatArray, cells: CellList, point: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Split at the bound's least point; a cell around the crossing on both sides of it, next to it."""
        first, second = point.copy(), point.copy()
        rows = np.flatnonzero(np.isnan(point))
        if rows.size:
            unit, label = cells.unit[rows], cells.label[rows]
            low, high = cells.low[rows], cells.high[rows]
            root = self._crossing(unit, label, low, high, self.free_ratio(self.noise(unit, label), unit))
            # next to the crossing what is left is rounding: halve it
            narrow = high <= low * (1.0 + 1e-10)
            middle = 0.5 * (low + high)
            first[rows] = np.where(narrow, middle, np.maximum(root * (1.0 - 4e-12), low))
            second[rows] = np.where(narrow, middle, np.minimum(root * (1.0 + 4e-12), high))
        return first, second

    def _chord(
        self,
        rows: Any,
        cells: CellList,
        noise: Any,
        cap: Any,
        error: Any,
        loss: Any,
        constant: Any,
        energy_low: Any,
        energy_high: Any,
    ) -> tuple[Any, Any]:
        """Lower bound alpha + beta/s + gamma s on cells right of the crossing, and its least point."""
        low, high = cells.low[rows], cells.high[rows]
        noise, cap, error, loss, constant = noise[rows], cap[rows], error[rows], loss[rows], constant[rows]
        ratio_low, ratio_high = energy_low[rows], energy_high[rows]
        lost_low, lost_high = cells.data_low[2, rows], cells.data_high[2, rows]
        rise = (ratio_high - ratio_low) / (high - low)
        # the chord lies below r_E, so a feasible point has a chord ratio within the limit
        limit = self.ratio_limit[cells.unit[rows]]
        reaches = ratio_high > cap
        end = np.where(reaches, low + np.maximum(limit - ratio_low, 0.0) / np.maximum(rise, 1e-300), high)
        end = np.clip(end, low, high)
        # neighbouring floats may have one reciprocal
        fall = (lost_low - lost_high) / np.maximum(1.0 / low - 1.0 / high, 1e-300)
        start, stop = low, end
        if isinstance(self.law, ConvexCurve):

            def rises(corner: Any, slope: Any) -> Any:
                at = low + (corner - ratio_low) / np.maximum(rise, 1e-300)
                slope = 2.0 * (self.smooth_energy * slope + self.mask_energy) - noise
                return (corner > ratio_low) & (error * np.maximum(slope, 0.0) * rise * at**2 >= loss * fall)

            with np.errstate(over="ignore", invalid="ignore"):
                piece = self.law.first(rises, low.shape)
                first, last = ((r - ratio_low) / np.maximum(rise, 1e-300) for r in self.law.ends(piece))
            start, stop = (np.clip(low + np.nan_to_num(x), low, end) for x in (first, last))
            slope = 2.0 * (self.smooth_energy * self.law.slopes[piece] + self.mask_energy)
        else:
            middle = ratio_low + 0.5 * rise * (end - low)
            slope = self._error_slope(middle)
        slope = np.maximum(slope - noise, 0.0)
        with np.errstate(divide="ignore", invalid="ignore"):
            point = np.sqrt(loss * fall / np.abs(error * slope * rise))
        point = np.clip(np.where(np.isnan(point), start, point), start, stop)
        ratio = ratio_low + rise * (point - low)
        if isinstance(self.law, ConvexCurve):
            base = self._error(ratio) + noise * (1.0 - ratio) + constant
            slope = np.maximum(self._error_slope(limit) - noise, 0.0)
        else:
            base = self._error(middle) + noise * (1.0 - middle) + constant + slope * (ratio - middle)
        value = loss * (lost_high + fall * (1.0 / point - 1.0 / high)) + error * base
        # between cap and limit a decision is given the cap, which costs less than its chord says
        value -= np.where(reaches, error * slope * (limit - cap), 0.0)
        width = high - low
        return value, np.clip(point, low + 0.02 * width, high - 0.02 * width)

    def _crossing(self, unit: Any, label: Any, low: Any, high: Any, free: Any) -> FloatArray:
        """SNR where r_E meets max(r_0, r_T): bracketed Newton in log SNR on an increasing function."""
        delay_room = self.delay_budget[unit] - self.compute_delay[unit] * self.fixed_share
        energy_room = self.energy_budget[unit] - self.compute_energy[unit] * self.fixed_share
        # one row per coefficient, so that rows still moving can be packed together
        table = np.stack(
            [
                np.log(low),
                np.log(high),
                0.5 * (np.log(low) + np.log(high)),
                1.0 / self.bandwidth[unit],
                1.0 / self.snr_per_watt[unit],
                delay_room,
                energy_room,
                self.compute_delay[unit] * self.falling_share,
                self.compute_energy[unit] * self.falling_share,
                self.unpruned * label + self.once_bits,
                self.parameters * (label + self.index_bits),
                1.0 - free,
            ]
        )
        root = table[2].copy()
        moving = np.arange(root.size)
        for _ in range(60):
            left, right, point = table[0], table[1], table[2]
            per_hertz, per_gain, delay_room, energy_room, delay_work, energy_work, once, each, most = table[3:]
            snr = np.exp(point)
            efficiency = channel.spectral_efficiency(snr, self.radio.fading)
            seconds = per_hertz / efficiency
            joules = seconds * snr * per_gain
            kept_energy = (energy_room - once * joules) / (energy_work + each * joules)
            kept_delay = (delay_room - once * seconds) / (delay_work + each * seconds)
            difference = np.minimum(kept_delay, most) - kept_energy
            above = difference >= 0.0
            right = np.where(above, point, right)
            left = np.where(above, left, point)
            # elasticity of the spectral efficiency, d ln r / d ln s
            if self.radio.fading == "rayleigh":
                nats = efficiency * np.log(2.0)
                elastic = np.clip((1.0 - nats / snr) / nats, 0.0, 1.0)
            else:
                elastic = snr / ((1.0 + snr) * np.log1p(snr))
            slope = (once + kept_energy * each) / (energy_work + each * joules) * joules * (1.0 - elastic)
            slope_delay = (once + kept_delay * each) / (delay_work + each * seconds) * seconds * elastic
            slope += np.where(kept_delay < most, slope_delay, 0.0)
            with np.errstate(divide="ignore", invalid="ignore"):
                step = point - difference / slope
            # converged: such a step may well leave the bracket by rounding, which is no reason to halve it
            there = np.abs(step - point) <= 1e-13 * np.maximum(1.0, np.abs(point))
            inside = (step > left) & (step < right)
            moved = np.where(inside, step, np.where(there, point, 0.5 * (left + right)))
            root[moving] = moved
            active = ~there & (right - left > 1e-14)
            if not np.any(active):
                break
            table[0], table[1], table[2] = left, right, moved
            table, moving = table[:, active], moving[active]
        return np.exp(root)

    def complete(self, prices: FloatArray, unit: Any, label: Any, x: Any) -> tuple[dict[str, FloatArray], FloatArray]:
        """Return ratio, bits, power and the two features at (bits, SNR)."""
        data = self.probe(unit, x)
        ratio = np.minimum(self.required_ratio(unit, label, data), self.ratio_high[unit])
        noise = self.noise(unit, label)
        weight = self.weight[unit]
        gap = weight * (
            self.transmission[unit] * data[2] + self._error(ratio) + noise * (1.0 - ratio) + self._constant(unit, noise)
        )
        decision = {
            "pruning_ratio": ratio,
            "bits": label.astype(np.float64),
            "power": np.clip(x / self.snr_per_watt[unit], *self._power_range(unit)),
        }
        return decision, np.stack([gap, weight * self.contraction * data[2]])

    def capped(self, feature: int, caps: FloatArray) -> _Cells:
        """Return the cells without the SNRs at which a unit's packet loss puts it above its cap on A."""
        if feature != 1:
            raise InputError(f"feature {feature} cannot be capped")
        allowed = caps / (self.weight * self.contraction)
        everyone = np.arange(self.units)
        left, right = np.log(self.low), np.log(self.high)
        for _ in range(60):
            middle = 0.5 * (left + right)
            below = self.probe(everyone, np.exp(middle))[2] <= allowed
            left, right = np.where(below, left, middle), np.where(below, middle, right)
        free = self.probe(everyone, self.low)[2] <= allowed
        narrower = copy.copy(self)
        narrower.low = np.where(free, self.low, np.minimum(np.exp(right), self.high))
        narrower.power_low = np.where(free, self.power_low, narrower.low / self.snr_per_watt)
        return narrower

    # -- rules of the baselines

    def _least_ratio(self, label: int) -> tuple[FloatArray, FloatArray]:
        """Least ratio that the budgets allow a device over all powers at a bit-width, and the SNR where it is."""
        unit = np.arange(self.units)
        labels = np.full(self.units, label)
        left, right = np.log(self.low), np.log(self.high)
        for _ in range(80):
            middle = 0.5 * (left + right)
            data = self.probe(unit, np.exp(middle))
            hit = self.by_energy(unit, labels, data) >= self.by_delay(unit, labels, data)
            left, right = np.where(hit, left, middle), np.where(hit, middle, right)
        snr = np.clip(np.exp(left), self.low, self.high)
        data = self.probe(unit, snr)
        return np.maximum(self.by_delay(unit, labels, data), self.by_energy(unit, labels, data)), snr

    def uniform(self, rng: np.random.Generator) -> Decision | None:
        """Return one ratio and bit-width for all: the least ratio everyone affords, best bit-width; None if none."""
        everyone = np.arange(self.units)
        best, chosen = np.inf, None
        for bits in range(int(self.bits_low.max()), int(self.bits_high.min()) + 1):
            least, snr = self._least_ratio(bits)
            labels = np.full(self.units, bits)
            free = float(np.max(self.free_ratio(self.noise(everyone, labels), everyone)))
            ratio = max(float(least.max()), float(self.ratio_low.max()), min(free, float(self.ratio_high.min())))
            if ratio > self.ratio_limit.min():
                continue
            # the greatest power at which everyone can still afford the common ratio: fewest lost packets
            left, right = np.log(snr), np.log(self.high)
            for _ in range(60):
                middle = 0.5 * (left + right)
                over = self.by_energy(everyone, labels, self.probe(everyone, np.exp(middle))) > ratio
                left, right = np.where(over, left, middle), np.where(over, middle, right)
            fits = self.by_energy(everyone, labels, self.probe(everyone, self.high)) <= ratio
            snr = np.where(fits, self.high, np.clip(np.exp(left), self.low, self.high))
            data = self.probe(everyone, snr)
            noise = self.noise(everyone, labels)
            value = float(
                np.sum(
                    self.weight
                    * (
                        self.transmission * data[2]
                        + self._error(np.asarray(ratio))
                        + noise * (1.0 - ratio)
                        + self._constant(everyone, noise)
                    )
                )
            )
            if value < best:
                best = value
                chosen = Decision(
                    pruning_ratio=np.full(self.units, ratio),
                    bits=labels.astype(np.float64),
                    power=np.clip(snr / self.snr_per_watt, *self._power_range(everyone)),
                )
        return chosen

    def random(self, rng: np.random.Generator) -> Decision | None:
        """Return power, bits and ratio drawn at random within every budget; None if a device was never feasible."""
        todo = np.arange(self.units)
        out = {name: np.zeros(self.units) for name in ("pruning_ratio", "bits", "power")}
        for _ in range(1000):
            snr = np.exp(rng.uniform(np.log(self.low[todo]), np.log(self.high[todo])))
            label = rng.integers(self.bits_low[todo], self.bits_high[todo] + 1)
            data = self.probe(todo, snr)
            least = np.maximum(self.by_delay(todo, label, data), self.by_energy(todo, label, data))
            least = np.maximum(least, self.ratio_low[todo])
            good = least <= self.ratio_high[todo]
            share = rng.uniform(size=todo.size)
            ratio = least + share * (self.ratio_high[todo] - least)
            done = todo[good]
            out["pruning_ratio"][done], out["bits"][done] = ratio[good], label[good]
            out["power"][done] = np.clip(snr[good] / self.snr_per_watt[done], *self._power_range(done))
            todo = todo[~good]
            if todo.size == 0:
                return Decision(out)
        return None


class _PowerSearch:
    """Bayesian optimization's view: a power per device, the rest by the exact inner solution of theory 1d."""

    name = "power"
    logarithmic = True
    kind = "real"

    def __init__(self, problem: LTFL, cells: _Cells) -> None:
        self.cells = cells
        self.lower, self.upper = problem._ranges["power"]
        self.attribute = np.log(cells.snr_per_watt)
        # the full bound is a ratio of sums, so no values per unit add up to it
        self.separable = problem.objective == "gap" or cells.contraction == 0.0

    def _inner(self, power: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Best (value, bits, ratio) at each power, shape ``[..., units]``."""
        cells = self.cells
        unit = np.arange(cells.units)
        data = cells.probe(unit, power * cells.snr_per_watt)
        prices = np.array([1.0, 0.0])
        best = np.full(power.shape, np.inf)
        bits = np.broadcast_to(cells.bits_low.astype(np.float64), power.shape).copy()
        ratio = np.broadcast_to(cells.ratio_high, power.shape).copy()
        for width in cells.labels:
            label = np.full(cells.units, width)
            value = cells.value(prices, unit, label, None, data)
            value = np.where((width >= cells.bits_low) & (width <= cells.bits_high), value, np.inf)
            better = value < best
            best = np.where(better, value, best)
            bits = np.where(better, float(width), bits)
            need = np.minimum(cells.required_ratio(unit, label, data), cells.ratio_high)
            ratio = np.where(better, need, ratio)
        return best, bits, ratio

    def complete(self, x: FloatArray) -> Decision:
        """Return the best decision at powers ``[..., units]``."""
        power = np.asarray(x, dtype=np.float64)
        _, bits, ratio = self._inner(power)
        return Decision(pruning_ratio=ratio, bits=bits, power=power)

    def locate(self, decision: Decision) -> FloatArray:
        """Return a decision's powers."""
        return np.asarray(decision["power"])

    def unit_values(self, x: FloatArray) -> FloatArray | None:
        """Return the gap per unit; where infeasible, more than any feasible value, growing with the excess."""
        if not self.separable:
            return None
        power = np.asarray(x, dtype=np.float64)
        cells = self.cells
        unit = np.arange(cells.units)
        value, _, _ = self._inner(power)
        delay, energy = cells._least_use(unit, power * cells.snr_per_watt)
        excess = np.maximum(delay / cells.delay_budget, energy / cells.energy_budget)
        worst = cells.weight * (cells.transmission + 4.0 * (cells.smooth_energy + cells.mask_energy))
        return np.where(np.isfinite(value), value, worst * np.maximum(excess, 1.0))

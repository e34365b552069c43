"""Online learning of vehicles in the air: pruning ratio and quantization levels of every slot's round.

In the manner of "Computation- and Communication-Efficient Online FL for Resource-Constrained Aerial Vehicles": that
each vehicle prunes the model it receives, trains it and sends the accumulated gradient quantized is the published
statement [R]; bound, costs and algorithm are derived here [D] (theory 5a to 5d), not quoted.

    min  sum over slots and vehicles of C_rho pruning_ratio + C_omega omega(levels, pruning_ratio)
    s.t. t_u <= T_u, e_u <= E_u, 0 <= pruning_ratio <= r_max, levels a whole number,

with C_rho = alpha (L^2 D^2 + M^2), C_omega = 2 L eta K alpha^2 G^2, omega = min(d/s^2, sqrt(d)/s) of QSGD with s levels
on the d components that are sent, and alpha the vehicle's share of the samples that take part in the slot.

Who takes part is no choice: a vehicle whose buffer is empty, or whose budgets allow no round even at the largest ratio
and one level, sits the slot out (`Aerial.absences` says why); everybody else trains.

What makes it exact (theory 5d). All levels between 2^(b-1) and 2^b - 1 cost the same b + 1 bits, so only the last of
them can be best. For each, budgets ask for a least ratio in closed form; omega is concave in the ratio and the other
term linear, so the least value lies at one of the two ends, the least ratio or the largest. The authors' rule looks at
the least ratio only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt

from jointopt.decision import Decision
from jointopt.errors import InputError, is_whole, nearest
from jointopt.models import channel, compression, cost, online
from jointopt.models._array import namespace
from jointopt.problem import (
    Baseline,
    Capabilities,
    Evaluation,
    Problem,
    Sums,
    Variable,
    range_slack,
)
from jointopt.problems.aerial_cells import LEVELS_MAX, UNQUANTIZED, AerialCells
from jointopt.problems.round import LARGEST
from jointopt.ranges import Limit, changed_ranges, narrowed
from jointopt.report import Explanation
from jointopt.system import AerialSystem, FloatArray

__all__ = ["Absence", "Aerial"]


@dataclass(frozen=True)
class Absence:
    """A vehicle that sits a slot out, and why: nothing held, or a budget that allows no round at all."""

    slot: int
    device: int
    reason: Literal["empty buffer", "delay", "energy", "delay and energy"]
    text: str


class Aerial(Problem):
    """The decisions of all vehicles in one slot, or in all slots of their trajectories.

    Variables have one value per vehicle, or with all slots one per (slot, vehicle), slot by slot: `by_slot` gives them
    the shape ``[..., slots, devices]``, `in_slot` the decision of one slot.

    Parameters
    ----------
    system : AerialSystem
        Vehicles, with trajectories or hovering.
    slot : int, optional
        Which slot, from 0; all when not given.
    ranges : mapping, optional
        Bounds of the variables, as `restrict` makes and checks them.

    Raises
    ------
    InputError
        For a slot that does not exist, a step eta K above 1/(2 L), which the bound does not cover, or a law of the
        pruning error that is not linear: at the two ends alone another one would not be settled.
    """

    name = "aerial"
    minimises = "error of pruning and quantization in the bound of online learning, in one slot or all"
    system_type = AerialSystem
    budgets: ClassVar[Mapping[str, str]] = {"delay": "delay_budget", "energy": "energy_budget"}

    def __init__(
        self,
        system: AerialSystem,
        *,
        slot: int | None = None,
        ranges: Mapping[str, tuple[FloatArray, FloatArray]] | None = None,
    ) -> None:
        if not isinstance(system, AerialSystem):
            raise InputError(f"system: expected an AerialSystem, got {type(system).__name__}")
        slots = system.area.slots
        if slot is not None and not (is_whole(slot) and 0 <= slot < slots):
            raise InputError(f"slot: {slot!r} must be a whole number from 0 to {slots - 1}")
        bound = system.bound
        step = bound.learning_rate * bound.local_steps * bound.smoothness
        if step > 0.5 * (1.0 + 1e-9):
            raise InputError(
                f"bound.learning_rate: {bound.learning_rate!r} x local_steps {bound.local_steps} x smoothness "
                f"{bound.smoothness:g} = {step:.4g} is above 1/2, up to which this design's bound holds"
            )
        if bound.pruning_error != "linear":
            raise InputError(
                f"bound.pruning_error: '{bound.pruning_error}' is not covered by this design; use 'linear'"
            )
        self.system = system
        self.slot = None if slot is None else int(slot)
        self.slots = [self.slot] if self.slot is not None else list(range(slots))
        ones = np.ones(len(self.slots) * len(system))
        self.ranges: dict[str, tuple[FloatArray, FloatArray]] = {
            "pruning_ratio": (0.0 * ones, system.learner.pruning_ratio_max * ones),
            "levels": (ones, LEVELS_MAX * ones),
            **(ranges or {}),
        }
        self._check_magnitudes()

    @classmethod
    def sample(
        cls, *, devices: int | None = None, seed: int = 0, data: str | None = None, tightness: float = 1.0
    ) -> AerialSystem:
        """Sample a system (`jointopt.systems.aerial`)."""
        from jointopt import systems

        return systems.aerial(
            devices=10 if devices is None else devices,
            seed=seed,
            data="digits" if data is None else data,
            tightness=tightness,
        )

    @property
    def variables(self) -> tuple[Variable, ...]:
        """Pruning ratio and levels, per vehicle or per (slot, vehicle)."""
        axis: Any = "device" if self.slot is not None else "slot"
        ratio, levels = self.ranges["pruning_ratio"], self.ranges["levels"]
        return (
            Variable("pruning_ratio", *ratio, axis=axis, meaning="fraction of weights removed"),
            Variable("levels", *levels, kind="integer", axis=axis, meaning="quantization levels beside 0 and the sign"),
        )

    def settings(self) -> dict[str, Any]:
        """Return the slot, and the ranges that differ from the system's own."""
        own = changed_ranges(self.ranges, type(self)(self.system, slot=self.slot).ranges)
        return own if self.slot is None else {"slot": self.slot} | own

    def restrict(self, **ranges: Any) -> Self:
        """Return the problem with variables fixed or narrowed: ``restrict(levels=7, pruning_ratio=(0, 0.5))``.

        Levels may be fixed above 255: 2^31 - 1 is what 32 bits can say, an unquantized float. Who takes part stays as
        it is in the full problem, so that values compare.
        """
        limits = {
            "pruning_ratio": Limit.between(0, self.system.learner.pruning_ratio_max),
            "levels": Limit.counting(1, UNQUANTIZED),
        }
        new = narrowed(self.ranges, ranges, self.units, limits)
        return type(self)(self.system, slot=self.slot, ranges=new)

    # ------------------------------------------------------------------ slots and vehicles

    @property
    def units(self) -> int:
        """Number of values of each variable: slots x vehicles."""
        return len(self.slots) * len(self.system)

    def check(self, decision: Decision) -> None:
        """Raise `InputError` unless the decision has the problem's variables, one value for each or one for all."""
        names = [v.name for v in self.variables]
        if not isinstance(decision, Decision):
            raise InputError(f"decision: expected a Decision, got {type(decision).__name__}")
        for name in decision:
            if name not in names:
                raise InputError(f"decision: unknown variable '{name}'{nearest(name, names)}")
        for name in names:
            if name not in decision:
                raise InputError(f"decision: '{name}' is missing")
        if decision.devices not in (1, self.units):
            each = f"{len(self.system)} vehicles" + ("" if self.slot is not None else f" in {len(self.slots)} slots")
            raise InputError(f"decision: has {decision.devices} values, expected {self.units} ({each})")

    def by_slot(self, values: Any) -> FloatArray:
        """Return values per (slot, vehicle) in the shape ``[..., slots, devices]``."""
        array = np.asarray(values, dtype=np.float64)
        array = np.broadcast_to(array, (*array.shape[:-1], self.units))
        return array.reshape(*array.shape[:-1], len(self.slots), len(self.system))

    def in_slot(self, decision: Decision, slot: int) -> Decision:
        """Return the decision of one slot, for ``Aerial(system, slot=slot)``."""
        self.check(decision)
        if slot not in self.slots:
            raise InputError(f"slot: {slot!r} is none of this problem's ({self.slots[0]} to {self.slots[-1]})")
        row = self.slots.index(slot)
        return Decision({name: self.by_slot(value)[..., row, :] for name, value in decision.items()})

    def _flat(self, values: FloatArray) -> FloatArray:
        """Values [devices, slots] or [devices] of the system in the order of the variables."""
        shaped = np.broadcast_to(values if values.ndim == 2 else values[:, None], (len(self.system), len(self.slots)))
        return np.ascontiguousarray(shaped.T).reshape(-1)

    @cached_property
    def held(self) -> FloatArray:
        """Samples in the buffers, shape [units]."""
        return self._flat(self.system.buffered[:, self.slots])

    @cached_property
    def _costs(self) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Rate [bit/s], and delay and energy of computing a round dense [s, J]; shape [units]."""
        system, flat = self.system, self._flat
        vehicles, learner = system.vehicles, system.learner
        snr = channel.snr(flat(vehicles.power), flat(system.gain[:, self.slots]), flat(system.noise_power))
        rate = channel.rate(flat(system.link.bandwidth), snr, "none")
        batch = self.held if learner.batch_size is None else np.minimum(self.held, float(learner.batch_size))
        work = cost.cycles(system.bound.local_steps * batch, flat(vehicles.cycles_per_sample))
        frequency = flat(vehicles.frequency)
        delay = cost.compute_delay(work, frequency)
        return rate, delay, cost.compute_energy(work, frequency, flat(vehicles.capacitance))

    def _check_magnitudes(self) -> None:
        """Refuse numbers that are valid one by one but overflow together."""
        with np.errstate(all="ignore"):
            rate, delay, energy = self._costs
            derived = {
                "bits sent per second (power, bandwidth, noise_density, place)": rate,
                "seconds to send a bit (power, bandwidth, noise_density, place)": 1.0 / rate,
                "computing delay (cycles_per_sample, frequency)": delay,
                "computing energy (cycles_per_sample, frequency, capacitance)": energy,
            }
        for what, values in derived.items():
            bad = ~(values < LARGEST)
            if np.any(bad):
                unit = int(np.argmax(bad))
                raise InputError(
                    f"device {unit % len(self.system)}: the {what} is {values[unit]:g}, beyond what can be computed"
                )

    @cached_property
    def cells(self) -> AerialCells:
        """Costs and priced values of every unit."""
        vehicles, flat = self.system.vehicles, self._flat
        rate, delay, energy = self._costs
        return AerialCells(
            learner=self.system.learner,
            ranges=self.ranges,
            held=self.held.reshape(len(self.slots), -1),
            budgets=(flat(vehicles.delay_budget), flat(vehicles.energy_budget)),
            computing=(delay, energy),
            per_bit=(1.0 / rate, flat(vehicles.power) / rate),
            weights=lambda share: online.online_weights(share, **self._constants),
        )

    @property
    def _constants(self) -> dict[str, Any]:
        bound = self.system.bound
        return {
            "smoothness": bound.smoothness,
            "weight_norm_squared": bound.weight_norm_squared,
            "mask_energy": bound.mask_energy,
            "learning_rate": bound.learning_rate,
            "local_steps": bound.local_steps,
            "gradient_energy": bound.gradient_energy,
        }

    @property
    def active(self) -> npt.NDArray[np.bool_]:
        """Who takes part, shape [slots, devices]."""
        return self.cells.active.reshape(len(self.slots), -1)

    def absences(self) -> list[Absence]:
        """Say who sits which slot out, and why."""
        out = []
        for row, u in np.argwhere(~self.active):
            unit, slot = int(row) * len(self.system) + int(u), self.slots[int(row)]
            reason, why = self.cells.reason(unit)
            out.append(Absence(slot, int(u), reason, f"slot {slot}, device {int(u)}: {why}"))
        return out

    def deployed(self, decision: Decision) -> Decision:
        """Return the decision with `selected`: who takes part in which slot.

        Raises
        ------
        InputError
            For a decision of one slot: training takes those of all.
        """
        if self.slot is not None:
            raise InputError(
                f"decision: is of slot {self.slot} alone; training takes one of all slots, of Aerial(system)"
            )
        self.check(decision)
        for name, value in decision.items():
            if np.ndim(value) != 1:
                raise InputError(f"decision.{name}: is a batch of shape {np.shape(value)}; training takes one decision")
        given = {name: np.broadcast_to(np.asarray(value), self.units) for name, value in decision.items()}
        return Decision({**given, "selected": self.cells.active.astype(np.float64)})

    # ------------------------------------------------------------------ evaluation

    def evaluate(self, decision: Decision) -> Evaluation:
        """Return the error terms, slack and quantities (theory 5a to 5c); arrays ``[..., units]``.

        Vehicles that sit out spend nothing, whatever the decision says of them.

        Raises
        ------
        InputError
            For unknown or missing variables, or another number of values.
        """
        self.check(decision)
        cells, bound, learner = self.cells, self.system.bound, self.system.learner
        xp = namespace(*decision.values())

        def array(values: Any) -> Any:
            return xp.asarray(np.array(values))

        part = array(cells.active.astype(np.float64))
        ratio, levels = decision["pruning_ratio"] + 0.0 * part, decision["levels"] + 0.0 * part
        sent = (1.0 - ratio) * cells.parameters + cells.unpruned
        omega = compression.qsgd_factor(sent, levels)
        bits = compression.level_bits(levels)
        payload = part * compression.payload_bits(
            (1.0 - ratio) * cells.parameters,
            bits,
            unpruned=cells.unpruned,
            header=cells.once_bits,
            index_per_weight=cells.index_bits,
        )
        share = part * learner.compute_factor(ratio)
        spent = {
            f"{stage}_{what}": amount * array(each)
            for stage, amount, pair in (("compute", share, cells.computing), ("upload", payload, cells.per_bit))
            for what, each in zip(("delay", "energy"), pair, strict=True)
        }
        delay = spent["compute_delay"] + spent["upload_delay"]
        energy = spent["compute_energy"] + spent["upload_energy"]
        batch = self.held if learner.batch_size is None else np.minimum(self.held, float(learner.batch_size))
        gap = online.online_gap(
            weight=array(cells.share),
            pruning_ratio=ratio,
            quantization_factor=omega,
            gradient_variance=array(bound.gradient_variance / np.maximum(batch, 1.0)),
            **self._constants,
        )
        pruning, quantization = xp.sum(gap.pruning, axis=-1), xp.sum(gap.quantization, axis=-1)
        total = xp.sum(gap.total + 0.0 * ratio, axis=-1) / len(self.slots)
        slack = {"delay": array(cells.budgets[0]) - delay, "energy": array(cells.budgets[1]) - energy}
        scale: dict[str, Any] = {"delay": cells.budgets[0], "energy": cells.budgets[1]}
        slack |= range_slack(self.variables, Decision(pruning_ratio=ratio, levels=levels))
        scale |= {"pruning_ratio": 1.0, "levels": 1.0}
        quantities = {
            "delay": delay,
            "energy": energy,
            **spent,
            "payload_bits": payload,
            "quantization_factor": omega,
            "takes_part": part + 0.0 * ratio,
            "weight": array(cells.share) + 0.0 * ratio,
            "held": array(self.held) + 0.0 * ratio,
            "gap": total,
        }
        if self.slot is None:
            shape = (*ratio.shape[:-1], len(self.slots), len(self.system))
            joined = xp.sum(xp.reshape(quantities["takes_part"], shape), axis=-2)
            quantities["slots_joined"] = joined
            # 0 where a vehicle joins none
            pruned = xp.sum(xp.reshape(part * ratio, shape), axis=-2)
            quantities["mean_pruning_ratio"] = pruned / xp.maximum(joined, xp.ones_like(joined))
            quantities["total_energy"] = xp.sum(xp.reshape(energy, shape), axis=-2)
            quantities["bound"] = online.online_bound(
                total,
                initial_gap=bound.initial_gap,
                drift=self.system.total_drift,
                learning_rate=bound.learning_rate,
                local_steps=bound.local_steps,
                slots=len(self.slots),
                smoothness=bound.smoothness,
            )
        return Evaluation(
            objective=pruning + quantization,
            parts={"pruning": pruning, "quantization": quantization},
            slack=slack,
            scale=scale,
            quantities=quantities,
        )

    def remarks(self, evaluation: Evaluation) -> list[str]:
        """Say how many sit out and why, and what the bound is over all slots."""
        reasons = Counter(absence.reason for absence in self.absences())
        out = []
        if reasons:
            of = f"{self.units} vehicles" if self.slot is not None else f"{self.units} pairs of a slot and a vehicle"
            each = ", ".join(f"{reason}: {count}" for reason, count in reasons.most_common())
            out.append(f"{reasons.total()} of {of} sit out ({each})")
        if "bound" in evaluation.quantities:
            out.append(f"bound of the mean ||grad F_t||^2: {float(evaluation.quantities['bound']):.4g}")
        return out

    def explain(self, decision: Decision) -> Any:
        """Return a table: which constraint is tight for whom, and why; with all slots, slot by slot."""
        if self.slot is not None:
            return self._explained(decision)
        self.check(decision)
        rows: list[dict[str, Any]] = []
        totals: dict[str, int] = {}
        for slot in self.slots:
            row = self.slots.index(slot)
            ranges = {name: (self.by_slot(lo)[row], self.by_slot(hi)[row]) for name, (lo, hi) in self.ranges.items()}
            one = type(self)(self.system, slot=slot, ranges=ranges)._explained(self.in_slot(decision, slot))
            rows += [{**row, "device": f"{row['device']} in slot {slot}"} for row in one.rows]
            for name, count in one.totals.items():
                totals[name] = totals.get(name, 0) + count
        return Explanation(rows, totals, [])

    def _explained(self, decision: Decision) -> Explanation:
        """The table of one slot; who sits out has no tight constraint, but a reason."""
        told: Explanation = super().explain(decision)
        out = {absence.device: absence.text for absence in self.absences()}
        rows = [
            {**row, "taken": False, "tight": "-", "limits": "-", "why": f"sits out: {out[row['device']]}"}
            if row["device"] in out
            else row
            for row in told.rows
        ]
        return Explanation(rows, told.totals | ({"sitting out": len(out)} if out else {}), told.shared)

    # ------------------------------------------------------------------ structure

    def capabilities(self) -> Capabilities:
        """Sums and cells (exact with certificate), baselines."""
        cells = self.cells
        dense = {"pruning_ratio": 0.0}
        raw = {"levels": float(UNQUANTIZED)}
        return Capabilities(
            sums=Sums(
                features=("error",),
                numerator=np.ones(1),
                numerator_offset=0.0,
                denominator=np.zeros(1),
                denominator_offset=1.0,
                limits=np.full(1, np.inf),
            ),
            cells=cells,
            baselines={
                "dense": Baseline("nothing pruned, floats sent", restrict=dense | raw),
                "prune_only": Baseline("pruned as budgets ask, floats sent", restrict=raw),
                "quantize_only": Baseline("nothing pruned, levels as budgets ask", restrict=dense),
                "least_ratio": Baseline(
                    "the authors' rule: the least ratio of every level, the best of these",
                    rule=lambda rng: cells.least_ratio(),
                ),
                "random": Baseline("levels and ratio drawn at random within the budgets", rule=cells.random),
            },
            conflicts=cells.conflicts,
        )

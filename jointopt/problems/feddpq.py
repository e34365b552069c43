"""FedDPQ: synthetic samples, pruning, bits and power for the least energy of training to a target.

In the manner of "Energy-Efficient Federated Learning for Edge Real-Time Vision via Joint Data, Computation, and
Communication Design": what is chosen and minimised is the published statement [R]; the closed-form model of energy and
convergence is derived here [D] (theory 2a, 2b), not quoted.

    min  E_tot = sum_u E_gen,u(level) + T r sum_u e_u(pruning_ratio, bits, power)
         T = 2 Delta0/(eta [(1 - A) epsilon - Gamma])
    s.t. (1 - A) epsilon - Gamma >= epsilon_0, T max_u t_u <= T_max where there is one, t_u and e_u within budgets,
         0 <= level <= 1, 0 <= r_u <= r_max, bits integer, p_min <= p_u <= p_max.

Each device joins a round with probability r and its update arrives with 1 - q_u(power); the server divides by both
(unbiased aggregation). The augmentation level is one for all devices [S]: it fills up their rarer classes with
synthetic samples, which cost energy once and lower Gamma in every round.

What makes it tractable (theory 2g): at a given level the objective is a constant plus a ratio of sums over devices,
so Dinkelbach's iteration makes each device a problem of its own (`jointopt.problems.feddpq_cells`). The level enters
all of them through the weights and the class mix; between two levels every coefficient is bounded, which gives a
relaxation of the same form, and branch and bound over the finitely many levels that differ gives the certificate. A
limit on the duration of all rounds couples through the longest round: with a cap on it, one more shared variable, the
limit is one on the sum of losses.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any, ClassVar, Literal, Self

import numpy as np

from jointopt.decision import Array, Decision
from jointopt.errors import InputError, nearest
from jointopt.models import augmentation, channel, compression, convergence
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
from jointopt.problems.feddpq_cells import FEATURES, FedDPQCells, Stage
from jointopt.problems.feddpq_search import CommonSearch, common_blocks
from jointopt.problems.ltfl import CONTRACTION_LIMIT
from jointopt.problems.round import check_magnitudes, round_costs
from jointopt.ranges import Limit, changed_ranges, learning_limits, narrowed
from jointopt.system import FloatArray, System
from jointopt.units import format_si

__all__ = ["FedDPQ"]

OBJECTIVES = {
    "energy": "energy of all rounds to a target, synthetic samples included",
    "delay": "duration of all rounds to a target",
    "floor": "least target that any number of rounds reaches",
}

GAP_PARTS = ("pruning", "participation", "quantization", "sampling")


class FedDPQ(Problem):
    """The FedDPQ design for one system.

    Parameters
    ----------
    system : System
        With the sections `augmentation` and `target`.
    objective : {"energy", "delay", "floor"}
        The energy to the target (default), the duration of all rounds to it, or the noise floor: the least target that
        could be asked for, (Gamma + epsilon_0)/(1 - A).
    ranges : mapping, optional
        Bounds of the variables, as `restrict` makes and checks them.

    Raises
    ------
    InputError
        For a system without those sections, an unknown objective, or a learning rate above 1/L, which the bound
        does not cover.
    """

    name = "feddpq"
    minimises = "energy of training to a target, synthetic samples included"
    budgets: ClassVar[Mapping[str, str]] = {"delay": "delay_budget", "energy": "energy_budget"}
    overlooks: ClassVar[tuple[str, ...]] = (
        "generalization gap",
        "tiers by time",
        "a price on latency",
        "the way to the cloud",
    )
    training: ClassVar[Mapping[str, Any]] = {"aggregation": "unbiased"}

    def __init__(
        self,
        system: System,
        *,
        objective: Literal["energy", "delay", "floor"] = "energy",
        ranges: Mapping[str, tuple[FloatArray, FloatArray]] | None = None,
    ) -> None:
        if not isinstance(system, System):
            raise InputError(f"system: expected a System, got {type(system).__name__}")
        for section in ("augmentation", "target"):
            if getattr(system, section) is None:
                raise InputError(f"{section}: is missing; this design needs the table [{section}]")
        if objective not in OBJECTIVES:
            raise InputError(f"objective: unknown '{objective}'{nearest(str(objective), OBJECTIVES)}")
        bound = system.bound
        if bound.learning_rate * bound.smoothness > 1.0 + 1e-9:
            raise InputError(
                f"bound.learning_rate: {bound.learning_rate!r} is above 1/smoothness = {1.0 / bound.smoothness:.6g}, "
                "up to which this design's bound holds"
            )
        check_magnitudes(system)
        self.system = system
        self.objective = objective
        self.minimises = OBJECTIVES[objective]
        devices, learner = system.devices, system.learner
        ones = np.ones(len(system))
        self.ranges: dict[str, tuple[FloatArray, FloatArray]] = {
            "augmentation_level": (np.zeros(1), np.ones(1)),
            "pruning_ratio": (0.0 * ones, learner.pruning_ratio_max * ones),
            "bits": (learner.bits_min * ones, learner.bits_max * ones),
            "power": (devices.power_min, devices.power_max),
            **(ranges or {}),
        }

    @classmethod
    def sample(
        cls, *, devices: int | None = None, seed: int = 0, data: str | None = None, tightness: float = 1.0
    ) -> System:
        """Sample a system (`jointopt.systems.feddpq`)."""
        from jointopt import systems

        return systems.feddpq(
            devices=20 if devices is None else devices,
            seed=seed,
            data="digits" if data is None else data,
            tightness=tightness,
        )

    @property
    def variables(self) -> tuple[Variable, ...]:
        """Augmentation level for all; pruning ratio, bits and power [W] per device."""
        ranges = self.ranges
        return (
            Variable(
                "augmentation_level",
                *ranges["augmentation_level"],
                axis="common",
                meaning="how far rare classes are filled up with synthetic samples",
                stepwise=True,
            ),
            Variable("pruning_ratio", *ranges["pruning_ratio"], meaning="fraction of weights removed"),
            Variable("bits", *ranges["bits"], unit="bit", kind="integer", meaning="bits per parameter sent"),
            Variable("power", *ranges["power"], unit="W", meaning="transmit power"),
        )

    def settings(self) -> dict[str, Any]:
        """Return the objective and the ranges that differ from the system's own."""
        return {"objective": self.objective} | changed_ranges(self.ranges, type(self)(self.system).ranges)

    def restrict(self, **ranges: Any) -> Self:
        """Return the problem with variables fixed or narrowed: ``restrict(augmentation_level=0, bits=(6, 8))``.

        Bits may be fixed above `bits_max` (32 is an unquantized float).
        """
        limits = {"augmentation_level": Limit.between(0, 1), **learning_limits(self.system, 1)}
        new = narrowed(self.ranges, ranges, len(self.system), limits, common=("augmentation_level",))
        return type(self)(self.system, objective=self.objective, ranges=new)

    # ------------------------------------------------------------------ evaluation

    def evaluate(self, decision: Decision) -> Evaluation:
        """Return the objective, its parts, slack and quantities (theory 2a to 2c); arrays ``[..., devices]``.

        The augmentation level decides whole numbers of samples: nothing is differentiated through it. It may differ
        between devices here, although the design chooses one.

        Raises
        ------
        InputError
            For unknown or missing variables, another number of devices, or a level outside 0 and 1.
        """
        self.check(decision)
        system, target = self.system, self.system.target
        devices, radio, learner, bound = system.devices, system.radio, system.learner, system.bound
        section = system.augmentation
        assert section is not None and target is not None
        xp = namespace(*decision.values())

        def array(values: Any) -> Any:
            return xp.asarray(np.array(values))

        level = _plain(decision["augmentation_level"])
        real, mix = section.class_counts, section.class_mix
        counts = augmentation.augmented_counts(real, np.clip(level, 0.0, 1.0))
        held = counts.sum(axis=-1)
        made = held - real.sum(axis=1)
        batch = learner.batch_size
        processed = held if batch is None else np.minimum(held, float(batch))
        sampling = np.where(held > processed, bound.gradient_variance / processed, 0.0)
        about = (real, counts, mix, section.gradient_bound, section.synthetic_gap)
        local, data = augmentation.local_gap(*about), augmentation.data_gap(*about)
        generated = section.sample_energy(devices.frequency, devices.capacitance) * made

        ratio, power = decision["pruning_ratio"], decision["power"]
        snr = channel.snr(power, array(radio.gain), array(system.noise_power))
        rate = channel.rate(array(radio.bandwidth), snr, radio.fading)
        spent = round_costs(system, decision, snr, rate, array(processed))
        success = target.participation * (1.0 - spent["packet_error"])
        gap = convergence.unbiased_gap(
            weight=array(held / held.sum(axis=-1, keepdims=True)),
            success=success,
            pruning_ratio=ratio,
            pruning_error=compression.pruning_error(ratio, bound.pruning_law),
            quantization_variance=compression.quantization_variance(
                (1.0 - ratio) * learner.parameters + float(learner.unpruned_parameters),
                array(bound.quantizer_range),
                decision["bits"],
            ),
            sampling_variance=array(sampling),
            local_gap=array(local),
            data_gap=array(data),
            smoothness=bound.smoothness,
            weight_norm_squared=bound.weight_norm_squared,
            mask_energy=bound.mask_energy,
            learning_rate=bound.learning_rate,
        )
        total, contraction = gap.total, xp.sum(gap.contraction, axis=-1)
        rounds = convergence.rounds_to_target(
            total, contraction, target.gradient_norm, bound.initial_gap, bound.learning_rate
        )
        times = rounds * target.participation
        generation = array(generated.sum(axis=-1))
        computing = times * xp.sum(spent["compute_energy"] + 0.0 * power, axis=-1)
        upload = times * xp.sum(spent["upload_energy"], axis=-1)
        longest = xp.max(spent["delay"], axis=-1)
        training = rounds * longest
        floor = _quotient(total + target.least_excess, 1.0 - contraction, xp)
        parts: dict[str, Array] = {
            "generation": generation + 0.0 * longest,
            "computing": computing,
            "upload": upload,
        }
        objective = generation + computing + upload
        if self.objective == "delay":
            objective, parts = training, {"training_delay": training}
        elif self.objective == "floor":
            objective = floor
            parts = {"data": gap.data + 0.0 * longest}
            parts |= {name: xp.sum(getattr(gap, name), axis=-1) for name in GAP_PARTS}
        slack: dict[str, Array] = {
            "delay": array(devices.delay_budget) - spent["delay"],
            "energy": array(devices.energy_budget) - spent["energy"],
        }
        scale: dict[str, Array] = {"delay": devices.delay_budget, "energy": devices.energy_budget}
        if self.objective == "floor":
            slack["contraction"], scale["contraction"] = CONTRACTION_LIMIT - contraction, 1.0
        else:
            excess = (1.0 - contraction) * target.gradient_norm - total
            slack["target"], scale["target"] = excess - target.least_excess, target.gradient_norm
            if target.delay_limit is not None:
                slack["training_delay"], scale["training_delay"] = target.delay_limit - training, target.delay_limit
        slack |= range_slack(self.variables, decision)
        scale |= {v.name: v.upper if v.name == "power" else 1.0 for v in self.variables}
        return Evaluation(
            objective=objective,
            parts=parts,
            slack=slack,
            scale=scale,
            quantities={
                **spent,
                "rate": rate,
                "snr": snr,
                "success": success,
                "synthetic_samples": array(made) + 0.0 * power,
                "generation_energy": array(generated) + 0.0 * power,
                "generation_delay": array(section.sample_delay(devices.frequency) * made) + 0.0 * power,
                "local_gap": array(local) + 0.0 * power,
                "data_gap": array(data) + 0.0 * longest,
                "gap": total,
                "contraction": contraction,
                "floor": floor,
                "rounds": rounds,
                "training_delay": training,
                "total_energy": generation + computing + upload,
            },
        )

    def remarks(self, evaluation: Evaluation) -> list[str]:
        """Return how many rounds it takes, how far the target is from the floor, and how much is synthetic."""
        known, target = evaluation.quantities, self.system.target
        assert target is not None
        made, real = float(np.sum(known["synthetic_samples"])), float(self.system.devices.samples.sum())
        return [
            f"{float(known['rounds']):.4g} rounds to a mean ||grad F||^2 of {target.gradient_norm:.4g} "
            f"(this decision reaches {float(known['floor']):.4g} at best; A = {float(known['contraction']):.4g}), "
            f"{target.participation:.0%} of the devices in a round",
            f"{made:.0f} synthetic samples beside {real:.0f} real ones; all rounds together last "
            f"{format_si(float(known['training_delay']), 's')}",
        ]

    # ------------------------------------------------------------------ structure

    @cached_property
    def levels(self) -> FloatArray:
        """The least augmentation level of each distinct outcome within the range, in order."""
        section = self.system.augmentation
        assert section is not None
        low, high = (float(end[0]) for end in self.ranges["augmentation_level"])
        return augmentation.levels(section.class_counts, low, high)

    def capabilities(self) -> Capabilities:
        """Shared variables around sums (exact with certificate), the published searches, baselines."""
        search = CommonSearch(self)
        return Capabilities(
            shared=_Shared(self),
            search=search,
            blocks=common_blocks(self, search),
            baselines=self._baselines(),
            conflicts=lambda devices: _Shared(self).cells(0, len(self.levels) - 1).conflicts(devices),
            thresholds={} if self.objective == "floor" else self._thresholds(),
        )

    def _thresholds(self) -> dict[str, Problem]:
        """What the target and the limit on the duration must at least be, as problems of their own."""
        target = self.system.target
        assert target is not None
        found: dict[str, Problem] = {"gradient_norm": type(self)(self.system, objective="floor", ranges=self.ranges)}
        if target.delay_limit is not None:
            free = self.system.with_(delay_limit=None)
            found["delay_limit"] = type(self)(free, objective="delay", ranges=self.ranges)
        return found

    def _baselines(self) -> dict[str, Baseline]:
        full = self.ranges["power"][1]
        plain = {"pruning_ratio": 0.0, "bits": 32}
        return {
            "no_augmentation": Baseline("the design without synthetic samples", restrict={"augmentation_level": 0.0}),
            "no_compression": Baseline("the design without pruning, 32-bit floats", restrict=plain),
            "no_power_control": Baseline("the design at full power", restrict={"power": full}),
            "fedsgd": Baseline(
                "plain federated learning: no synthetic samples, every weight, 32-bit floats, full power",
                restrict={"augmentation_level": 0.0, **plain, "power": full},
            ),
        }


def _plain(level: Array) -> FloatArray:
    """A level as NumPy numbers, whatever array it is."""
    return np.asarray(level.detach().cpu() if hasattr(level, "detach") else level, dtype=np.float64)


def _quotient(above: Array, below: Array, xp: Any) -> Array:
    """Return above/below, inf where below is not above 0."""
    wrong = below <= 0.0
    value = above / xp.where(wrong, xp.ones_like(below), below)
    return xp.where(wrong, xp.full_like(value, float("inf")), value)


class _Shared:
    """What all devices share: the augmentation level (by its number), and the longest round where all are limited."""

    def __init__(self, problem: FedDPQ) -> None:
        self.problem = problem
        target = problem.system.target
        assert target is not None
        self.target = target
        self.timed = problem.objective == "delay" or (problem.objective == "energy" and target.delay_limit is not None)
        self.names: tuple[str, ...] = ("augmentation_level", "round_delay") if self.timed else ("augmentation_level",)
        self.integer = np.array([True, False][: len(self.names)])
        lower, upper = [0.0], [float(len(problem.levels) - 1)]
        if self.timed:
            shortest, longest = self._range()
            lower.append(shortest)
            upper.append(longest)
        self.lower, self.upper = np.array(lower), np.array(upper)
        # a limit on the duration need not be active: it is looked at only where the level is settled
        self.first = 0 if self.timed and problem.objective == "energy" else None

    def _range(self) -> tuple[float, float]:
        """Least and greatest round: everybody at their fastest, and everything as long as a device may take."""
        problem = self.problem
        cells = self.cells(0, len(problem.levels) - 1, marked=False)
        everyone = np.arange(cells.units)
        fastest, _ = cells._least_use(everyone, cells.high)
        return float(fastest.max()), max(float(cells.delay_budget.max()), float(fastest.max()))

    def cells(self, first: int, last: int, longest: float = np.inf, *, marked: bool = True) -> FedDPQCells:
        """Return the devices between two levels by number, rounds no longer than a cap."""
        problem = self.problem
        stage = Stage.between(problem.system, float(problem.levels[first]), float(problem.levels[last]))
        marks = {"augmentation_level": 0.5 * (first + last)} if marked else {}
        if marked and self.timed:
            marks["round_delay"] = 0.0
        return FedDPQCells(problem.system, problem.ranges, stage, longest=longest, marks=marks)

    def within(self, low: FloatArray, high: FloatArray) -> tuple[Sums, FedDPQCells]:
        """Return sums and cells between two ends of the shared variables: the least of every coefficient."""
        problem, target, bound = self.problem, self.target, self.problem.system.bound
        first, last = int(low[0]), int(high[0])
        shortest, longest = (float(low[1]), float(high[1])) if self.timed else (0.0, np.inf)
        stage = Stage.between(problem.system, float(problem.levels[first]), float(problem.levels[last]))
        cells = self.cells(first, last, longest)
        data = 2.0 * stage.data_gap**2
        size = len(FEATURES)
        numerator, denominator, limits = np.zeros(size), np.zeros(size), np.full(size, np.inf)
        if problem.objective == "floor":
            numerator[FEATURES.index("gap")] = 1.0
            denominator[FEATURES.index("contraction")] = -1.0
            limits[FEATURES.index("contraction")] = CONTRACTION_LIMIT
            return Sums(FEATURES, numerator, data + target.least_excess, denominator, 1.0, limits), cells
        # T = scale / (room - loss)
        scale = 2.0 * bound.initial_gap / bound.learning_rate
        room = target.gradient_norm - data
        denominator[FEATURES.index("loss")] = -1.0
        margin = target.least_excess
        if target.delay_limit is not None:
            margin = max(margin, scale * shortest / target.delay_limit)
        limits[FEATURES.index("loss")] = room - margin
        if problem.objective == "delay":
            return Sums(FEATURES, numerator, scale * shortest, denominator, room, limits), cells
        numerator[FEATURES.index("energy")] = scale * target.participation
        return Sums(FEATURES, numerator, 0.0, denominator, room, limits, constant=stage.energy), cells

    def chosen(self, decision: Mapping[str, FloatArray]) -> FloatArray:
        """Return the middle of the levels, and how long each device takes."""
        return np.stack([np.asarray(decision[name]) for name in self.names])

    def judge(self, decision: Mapping[str, FloatArray]) -> tuple[dict[str, FloatArray], float]:
        """Return the decision at the level in the middle, and its objective; inf where that is not feasible."""
        levels = self.problem.levels
        middle = int(np.clip(np.rint(np.mean(decision["augmentation_level"])), 0, len(levels) - 1))
        own = {name: np.asarray(decision[name]) for name in ("pruning_ratio", "bits", "power")}
        own = {"augmentation_level": levels[middle : middle + 1].copy(), **own}
        evaluation = self.problem.evaluate(Decision(own))
        return own, float(evaluation.objective) if evaluation.feasible() else np.inf

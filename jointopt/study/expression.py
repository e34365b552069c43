"""A scenario in many designs: which of them can express it, and what each chooses, keeps and overlooks."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from jointopt import problems, systems
from jointopt.decision import Decision
from jointopt.errors import InputError
from jointopt.federated import Task
from jointopt.federated.augmentation import FLOPS_PER_CYCLE
from jointopt.federated.codecs.uniform import Uniform
from jointopt.federated.ledger import round_cost
from jointopt.problem import Problem
from jointopt.system import Edges, Radio, System, Target, Tiers, Tradeoff

if TYPE_CHECKING:
    from jointopt.augmentation import Generator

__all__ = ["CHOICES", "OVERLOOKED", "Expression", "Reading", "SharedScenario", "shared_scenario"]

CHOICES = {
    "pruning_ratio": "ratio",
    "bits": "bits",
    "power": "power",
    "bandwidth": "band",
    "frequency": "frequency",
    "selected": "who takes part",
    "augmentation_level": "synthetic samples",
}
"""What some design chooses, in short words."""

OVERLOOKED: dict[str, tuple[str, ...]] = {
    "energy budgets": ("energy_budget",),
    "each device's own energy budget": ("energy_budget",),
    "lost packets": ("packet_error",),
    "quantization error": ("quantizer_range",),
    "noise of batches": ("gradient_variance",),
    "generalization gap": ("gradient_proxy", "mutual_information"),
    "class mixes": ("class_counts",),
    "rounds to a target": ("gradient_norm",),
    "tiers by time": ("interval",),
    "a price on latency": ("latency_weight",),
    "the way to the cloud": ("backhaul_rate",),
}
"""The words of `Problem.overlooks`, and the fields of a `System` whose change then changes nothing."""


@dataclass(frozen=True)
class Reading:
    """How one design reads the shared scenario: fields that it reads otherwise, options, ranges, and why."""

    changes: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    ranges: Mapping[str, Any] = field(default_factory=dict)
    remark: str = ""


@dataclass(frozen=True)
class Expression:
    """A scenario in one design: its problem, or the reason why the design cannot express it."""

    design: str
    problem: Problem | None = None
    reason: str = ""
    remark: str = ""

    @property
    def chooses(self) -> tuple[str, ...]:
        """Variables of the problem that have room."""
        if self.problem is None:
            return ()
        return tuple(v.name for v in self.problem.variables if np.any(v.upper > v.lower))

    @property
    def leaves(self) -> tuple[str, ...]:
        """What other designs choose and this one does not, in short words."""
        return tuple(word for name, word in CHOICES.items() if name not in self.chooses)

    @property
    def keeps(self) -> tuple[str, ...]:
        """Names of its constraints, beside the ranges of its variables; alike ones once."""
        if self.problem is None:
            return ()
        variables = self.problem.variables
        middle = {v.name: 0.5 * (v.lower + v.upper) if v.kind == "real" else v.upper for v in variables}
        names = [name for name in self.problem.evaluate(Decision(middle)).slack if name not in middle]
        return tuple(dict.fromkeys(re.sub(r"_\d+$", "", name) for name in names))

    @property
    def overlooks(self) -> tuple[str, ...]:
        """What its objective and constraints do not depend on."""
        return () if self.problem is None else self.problem.overlooks


@dataclass(frozen=True)
class SharedScenario:
    """One system for all designs, and how some of them read it."""

    system: System
    readings: Mapping[str, Reading] = field(default_factory=dict)

    def express(self, designs: Iterable[str] | None = None) -> dict[str, Expression]:
        """Return the scenario in every design, or in those named; where one cannot, its reason.

        Raises
        ------
        InputError
            For an unknown design.
        """
        return {name: self._expressed(name) for name in (problems.DESIGNS if designs is None else designs)}

    def _expressed(self, name: str) -> Expression:
        kind = problems.get(name)
        if not issubclass(System, kind.system_type):
            about = (kind.system_type.__doc__ or "").split(":")[0].split(".")[0]
            return Expression(name, reason=f"is about another kind of system: {about[:1].lower()}{about[1:]}")
        reading = self.readings.get(name, Reading())
        system = self.system.with_(**reading.changes) if reading.changes else self.system
        try:
            problem: Problem = kind(system, **reading.options)
            problem = problem.restrict(**reading.ranges) if reading.ranges else problem
        except InputError as error:
            return Expression(name, reason=str(error))
        return Expression(name, problem, remark=reading.remark)


def shared_scenario(
    task: Task, *, seed: int = 0, generator: Generator | None = None, rounds: int | None = None
) -> SharedScenario:
    """Return a scenario about a task that all designs of federated learning express, in the same physical units.

    The band is one, of 50 kHz a device; designs that do not divide it split it equally. Gains do not fade (FEEL is
    stated so), packets are lost by the waterfall law. Every device's round may take `DELAY` of the median time that the
    whole model takes in 32-bit floats at full power, and `ENERGY` of its median energy, spread over 0.5 to 1.5. The
    deadline is four intervals of the time-triggered clock, two edge servers have half of the band each and a fast way
    to the cloud, and everyone joins every round [S]. Bound constants are those measured for the data
    (`jointopt.systems.PRESETS`), with the curve of Laplace weights for pruning.

    Parameters
    ----------
    task : Task
        Its sizes, class counts and batch size.
    seed : int
        Seed of devices, places and budgets.
    generator : Generator, optional
        Whose operations a synthetic sample costs; the preset's when not given.
    rounds : int, optional
        Over which bounds average, and after which FedDPQ's target is set; the data's own when not given.

    Raises
    ------
    InputError
        For data without measured constants.
    """
    base = System.from_task(task, seed=seed, design="feel")
    skewed = System.from_task(task, seed=seed, design="feddpq")
    preset, typical = systems.PRESETS[task.name], systems.AUGMENTED[task.name]
    size = len(base)
    radio = Radio(
        total_bandwidth=50e3 * size,
        distance=base.radio.distance,
        reference_gain=1e-3,
        path_loss_exponent=4.0,
        fading="none",
        packet_error="waterfall",
    )
    made = base.replace(radio=radio, augmentation=skewed.augmentation, target=Target(gradient_norm=1.0))
    made = made.with_(power_min=POWER[0], power_max=POWER[1], bits_min=preset.bits_min, bits_max=32)
    if generator is not None:
        made = made.with_(generation_cycles=generator.operations_per_sample / FLOPS_PER_CYCLE)
    if task.name == "fashion-mnist":
        # the preset of FedDPQ steps slower; its step size is the one that all share
        made = made.with_(learning_rate=0.1)
    if rounds is not None:
        made = made.with_(rounds=rounds)
    dense = round_cost(made, Decision({"pruning_ratio": 0.0, "power": made.devices.power_max}))
    spread = np.random.default_rng(np.random.SeedSequence([seed, size, 2])).uniform(0.5, 1.5, size)
    deadline, energy = DELAY * float(np.median(dense.delay)), ENERGY * float(np.median(dense.energy))
    whole = 2.0 * (made.bound.smoothness**2 * made.bound.weight_norm_squared + made.bound.mask_energy)
    servers = min(2, size)
    made = made.with_(delay_budget=deadline, energy_budget=energy * spread).replace(
        name=f"shared-{task.name}-{size}-seed{seed}",
        tiers=Tiers(interval=deadline / 4.0, periods=[1, 2, 3, 4]),
        tradeoff=Tradeoff(latency_weight=LATENCY * whole / deadline),
        edges=Edges(
            edge=np.arange(size) % servers,
            # as many devices, as much of the band
            edge_bandwidth=50e3 * np.bincount(np.arange(size) % servers),
            backhaul_rate=np.full(servers, BACKHAUL),
        ),
    )
    return SharedScenario(made, _readings(made, typical))


DELAY = 0.8
"""Deadline of `shared_scenario` over the median time of a dense round at full power [S]."""
ENERGY = 0.25
"""Its energy budget over the median energy of that round [S]."""
POWER = (1e-3, 0.1)
"""Transmit power [W]."""
LATENCY = 0.3
"""Share of the learning cost of a model all pruned that a round as long as the deadline costs [S]."""
BACKHAUL = 1e9
"""Rate from edge servers to the cloud [bit/s]: what training does not book takes milliseconds."""
ROOM = 1.25
"""Target of FedDPQ over what its bound says of FedSGD with whole models after as many rounds [S]."""


def _readings(system: System, typical: systems.Augmented) -> dict[str, Reading]:
    """Return what has to be read otherwise: widths that can be sent, one energy for all, constants of a target."""
    widths = (system.learner.bits_min, max(w for w in Uniform.widths if w < 32))
    own = {name: value for name, value in typical.bound.items() if name not in ("learning_rate", "rounds")}
    ranges = {"bits": widths}
    total = float(system.devices.energy_budget.sum())
    plain = {
        "augmentation_level": np.zeros(1),
        "pruning_ratio": np.zeros(len(system)),
        "bits": np.full(len(system), 32.0),
        "power": system.devices.power_max,
    }
    theirs = system.with_(**own)
    known = problems.FedDPQ(theirs).evaluate(Decision(plain)).quantities
    bound, contraction = theirs.bound, float(known["contraction"])
    reached = 2.0 * bound.initial_gap / (bound.learning_rate * bound.rounds) + float(known["gap"])
    target = ROOM * reached / max(1.0 - contraction, 0.05)
    quantized = f"sends {widths[0]} to {widths[1]} bits, as the codec can"
    clock = "the deadline is four intervals of its clock; a round is one aggregation, not one turn of every device"
    return {
        "ltfl": Reading(ranges=ranges, remark=quantized),
        "ltfl-pool": Reading(
            options={"energy_budget": total},
            ranges=ranges,
            remark="keeps the sum of the energy budgets, not each device's",
        ),
        "feddpq": Reading(
            changes={**own, "gradient_norm": target},
            ranges=ranges,
            remark="minimises joules to a target, not error in a budget; with typical constants, since with the worst "
            f"ones no target is in reach; the target is {ROOM:g} times what its bound says of FedSGD in as many rounds",
        ),
        "time-triggered": Reading(remark=clock),
        "ratio-error": Reading(remark=f"pays for latency: {LATENCY:g} of the greatest pruning cost for the deadline"),
        "hierarchical": Reading(
            remark="two edge servers with half the band each, one aggregation there for one in the cloud: trained as "
            "one average, to which that is equal; the way to the cloud is not booked"
        ),
    }

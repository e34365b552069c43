"""Trajectories of selfish vehicles in the air: where to fly for the most new samples, slot after slot.

In the manner of "Computation- and Communication-Efficient Online FL for Resource-Constrained Aerial Vehicles": that
vehicles follow their own data, which change with place and time, is the published statement [R]; utility, lattice and
algorithms are ours [D, S] (theory 5a, 5g), not quoted.

    min  sum over slots and vehicles of N_max - N_u(q_t, t) + lambda_f P(|q_t - q_{t-1}|/tau) tau
    s.t. |q_t - q_{t-1}| <= v_max tau, q_t within the area and on a lattice around the vehicle's start.

Vehicles do not interact, so each has a dynamic program of its own over lattice points and slots, which backward
induction solves (`jointopt.problem.Staged`). Its certificate is about the lattice: a finer one may hold better ways.
What the vehicles of the paper do is short-sighted; the baselines are such rules.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np

from jointopt.decision import Decision
from jointopt.errors import InputError, is_whole, nearest
from jointopt.models import mobility
from jointopt.models._array import namespace
from jointopt.problem import Baseline, Capabilities, Evaluation, Problem, Variable, range_slack
from jointopt.problems.aerial import Aerial
from jointopt.problems.aerial_lattice import Lattice
from jointopt.system import AerialSystem, FloatArray

__all__ = ["AerialTrajectory"]

POINTS_MAX = 1000
"""Most lattice steps along a side."""


class AerialTrajectory(Problem):
    """The trajectories of all vehicles over all slots, on a lattice.

    Variables are whole steps of the lattice from the vehicle's start, one per (slot, vehicle), slot by slot;
    `trajectory` turns them into positions, which `AerialSystem.flown` takes. A given flight is not looked at.

    Parameters
    ----------
    system : AerialSystem
        The vehicles.
    points : int
        Lattice steps along the longer side of the area, up to 1000.

    Raises
    ------
    InputError
        For a number of points out of range, or so few that a vehicle cannot fly from one to the next in a slot.
    """

    name = "aerial-trajectory"
    minimises = "samples missed and the price of flying, over all slots"
    system_type = AerialSystem

    def __init__(self, system: AerialSystem, *, points: int = 50) -> None:
        if not isinstance(system, AerialSystem):
            raise InputError(f"system: expected an AerialSystem, got {type(system).__name__}")
        if not (is_whole(points) and 1 <= points <= POINTS_MAX):
            raise InputError(f"points: {points!r} must be a whole number from 1 to {POINTS_MAX}")
        self.system = system
        self.points = int(points)
        self.lattice = Lattice(system, self.points)

    @classmethod
    def sample(
        cls, *, devices: int | None = None, seed: int = 0, data: str | None = None, tightness: float = 1.0
    ) -> AerialSystem:
        """Sample a system (`jointopt.systems.aerial`)."""
        return Aerial.sample(devices=devices, seed=seed, data=data, tightness=tightness)

    @cached_property
    def variables(self) -> tuple[Variable, ...]:
        """Lattice steps from the start along both coordinates, per (slot, vehicle)."""
        low, high = (np.tile(end, (self.system.area.slots, 1)).astype(np.float64) for end in self._ends)
        return tuple(
            Variable(
                name, low[:, i], high[:, i], kind="integer", axis="slot", meaning=f"lattice steps along the {axis} side"
            )
            for i, (name, axis) in enumerate((("column", "first"), ("row", "second")))
        )

    @property
    def _ends(self) -> tuple[Any, Any]:
        return self.lattice.low, self.lattice.high

    def settings(self) -> dict[str, Any]:
        """Return the fineness of the lattice."""
        return {"points": self.points}

    @property
    def units(self) -> int:
        """Number of values of each variable: slots x vehicles."""
        return self.system.area.slots * len(self.system)

    def check(self, decision: Decision) -> None:
        """Raise `InputError` unless the decision has columns and rows, one value for each or one for all."""
        if not isinstance(decision, Decision):
            raise InputError(f"decision: expected a Decision, got {type(decision).__name__}")
        for name in decision:
            if name not in ("column", "row"):
                raise InputError(f"decision: unknown variable '{name}'{nearest(name, ('column', 'row'))}")
        for name in ("column", "row"):
            if name not in decision:
                raise InputError(f"decision: '{name}' is missing")
        if decision.devices not in (1, self.units):
            raise InputError(
                f"decision: has {decision.devices} values, expected {self.units} ({len(self.system)} vehicles in "
                f"{self.system.area.slots} slots)"
            )

    def trajectory(self, decision: Decision) -> FloatArray:
        """Return the positions of a decision [m], shape [devices, slots, 2]."""
        self.check(decision)
        shape = (self.system.area.slots, len(self.system))
        steps = np.stack([np.broadcast_to(np.asarray(decision[n]), self.units) for n in ("column", "row")], axis=-1)
        places = self.system.vehicles.start + self.lattice.spacing * steps.reshape(*shape, 2)
        # on the edge of the area rounding may put a point just beyond it
        return np.clip(places.transpose(1, 0, 2), 0.0, [self.system.area.width, self.system.area.length])

    def deployed(self, decision: Decision) -> Decision:
        """Refuse: ways alone say nothing of ratios and levels."""
        raise InputError(
            "decision: says where to fly, not how to train; solve Aerial(problem.after(decision)), and train under that"
        )

    def after(self, decision: Decision) -> AerialSystem:
        """Return the system with the vehicles on the ways of a decision."""
        return self.system.flown(self.trajectory(decision))

    def evaluate(self, decision: Decision) -> Evaluation:
        """Return the samples missed and the price of flying, slack and quantities (theory 5a); arrays ``[..., units]``.

        Raises
        ------
        InputError
            For unknown or missing variables, or another number of values.
        """
        self.check(decision)
        system, slots, devices = self.system, self.system.area.slots, len(self.system)
        xp = namespace(*decision.values())

        def array(values: Any) -> Any:
            return xp.asarray(np.array(values))

        flat = array(np.zeros(self.units))
        column, row = decision["column"] + flat, decision["row"] + flat
        steps = xp.stack([column, row], axis=-1)
        batch = column.shape[:-1]
        position = array(system.vehicles.start) + self.lattice.spacing * xp.reshape(steps, (*batch, slots, devices, 2))
        first = position[..., :1, :, :] * 0.0 + array(system.vehicles.start)
        before = xp.concat([first, position[..., :-1, :, :]], axis=-3)
        away = mobility.distance(position, before)
        energy = mobility.flight_energy(away, system.area.slot)
        seen = mobility.class_yield(
            position,
            array(system.sensing.class_means),
            array(system.class_mix.transpose(1, 0, 2)),
            system.sensing.length_scale,
            array(system.view_radius[:, None]),
        )
        new = mobility.arrivals(seen, array(system.sensing.samples_max))
        priced = array(system.vehicles.flight_price) * energy

        def total(values: Any) -> Any:
            return xp.sum(xp.sum(values, axis=-1), axis=-1)

        def flattened(values: Any) -> Any:
            return xp.reshape(values, (*batch, self.units))

        reach = np.tile(system.reach, slots)
        slack: dict[str, Any] = {"reach": array(reach) - flattened(away)}
        slack |= range_slack(self.variables, Decision(column=column, row=row))
        # a reach of 0 is kept exactly: its slack is measured in lattice steps
        scale: dict[str, Any] = {"reach": np.maximum(reach, self.lattice.spacing), "column": 1.0, "row": 1.0}
        flight, missed = total(priced), total(array(self.lattice.most) - new)
        return Evaluation(
            objective=missed + flight,
            parts={"missed": missed, "flight": flight},
            slack=slack,
            scale=scale,
            quantities={
                "x": flattened(position[..., 0]),
                "y": flattened(position[..., 1]),
                "speed": flattened(away / system.area.slot),
                "flight_energy": flattened(energy),
                "new_samples": flattened(new),
                "total_samples": xp.sum(new, axis=-2),
                "total_flight_energy": xp.sum(energy, axis=-2),
                "utility": xp.sum(new - priced, axis=-2),
            },
        )

    def explain(self, decision: Decision) -> Any:
        """Refuse: no budget is chosen under; the speeds and samples are in the evaluation."""
        raise InputError(f"explain: {self.name} has no budgets; see the quantities of evaluate(decision)")

    def capabilities(self) -> Capabilities:
        """Stages (exact over the lattice), and the short-sighted rules as baselines."""
        lattice = self.lattice
        return Capabilities(
            staged=lattice,
            baselines={
                "greedy": Baseline(
                    "the best next point of the lattice in every slot", rule=lambda rng: lattice.greedy()
                ),
                "projected_gradient": Baseline(
                    "the published multi-start projected gradient in every slot, rounded to the lattice",
                    rule=lambda rng: lattice.projected_gradient(),
                ),
                "static": Baseline("hovering at the start", rule=lambda rng: lattice.static()),
                "random_waypoint": Baseline(
                    "to points drawn at random, one after another", rule=lattice.random_waypoint
                ),
            },
        )

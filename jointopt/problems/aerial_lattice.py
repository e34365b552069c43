"""Positions on a lattice around every vehicle's start: states and moves of flights, and rules that fly on it."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from jointopt.decision import Decision
from jointopt.errors import InputError
from jointopt.models import mobility
from jointopt.problems import aerial_flight
from jointopt.system import AerialSystem, FloatArray

__all__ = ["Lattice"]


MOST_STEPS = 50_000_000
"""Most pairs of a lattice point and a move."""


class Lattice:
    """A square lattice of points around every vehicle's start, as far as the area goes (`jointopt.problem.Staged`).

    The start is a point of it, so that a vehicle can always stay where it is. States are numbered column by column
    from the least; vehicles with fewer columns or rows than others have states that cost inf.

    Parameters
    ----------
    system : AerialSystem
        The vehicles.
    points : int
        Lattice steps along the longer side of the area.

    Raises
    ------
    InputError
        Where a vehicle that may fly does not get from one point to the next in a slot, or the lattice is too fine.
    """

    def __init__(self, system: AerialSystem, points: int) -> None:
        self.system = system
        area = system.area
        self.units, self.stages = len(system), area.slots
        self.spacing = max(area.width, area.length) / points
        reach = system.reach
        stuck = (reach > 0.0) & (reach < self.spacing)
        if np.any(stuck):
            u = int(np.argmax(stuck))
            least = math.ceil(max(area.width, area.length) / float(reach[u]) - 1e-9)
            raise InputError(
                f"points: {points} makes a lattice of {self.spacing:.6g} m, farther than device {u} flies in a slot "
                f"({reach[u]:.6g} m); give at least {least}"
            )
        size = np.array([area.width, area.length])
        start = system.vehicles.start
        # rounding may put a start on the edge just beyond it
        self.low = -np.maximum(np.floor(start / self.spacing + 1e-9), 0.0).astype(np.int64)
        self.high = np.maximum(np.floor((size - start) / self.spacing + 1e-9), 0.0).astype(np.int64)
        self.shape = tuple(int(n) for n in (self.high - self.low).max(axis=0) + 1)
        self.states = self.shape[0] * self.shape[1]
        self.moves = self._moves(float(reach.max()))
        if self.moves.shape[0] * self.states > MOST_STEPS:
            raise InputError(
                f"points: {points} makes {self.states} points and {self.moves.shape[0]} moves from each, more than can "
                "be held; give fewer"
            )
        self.start = self.state(np.zeros((self.units, 2), dtype=np.int64))
        self.successor = self._successors()
        away = self.spacing * np.hypot(self.moves[:, 0], self.moves[:, 1])
        energy = np.asarray(mobility.flight_energy(away, area.slot))
        price = system.vehicles.flight_price[:, None] * energy
        self.price = np.where(away <= reach[:, None] * (1.0 + 1e-9), price, np.inf)
        """Cost of every move, shape [units, actions]; inf beyond a vehicle's reach."""
        self.most = np.ceil(system.sensing.samples_max - 1e-9)
        """Most samples of a slot, N_max, shape [units]."""
        self._near: tuple[slice, FloatArray] | None = None

    def _moves(self, reach: float) -> npt.NDArray[np.int64]:
        """Moves [actions, 2] within a reach, the shortest first."""
        most = math.floor(reach / self.spacing * (1.0 + 1e-9))
        line = np.arange(-most, most + 1)
        moves = np.stack([a.ravel() for a in np.meshgrid(line, line, indexing="ij")], axis=-1)
        length = np.hypot(moves[:, 0], moves[:, 1])
        moves = moves[np.argsort(length, kind="stable")]
        kept: npt.NDArray[np.int64] = moves[np.sort(length) * self.spacing <= reach * (1.0 + 1e-9)]
        return kept

    def _successors(self) -> npt.NDArray[np.int64]:
        column, row = np.divmod(np.arange(self.states), self.shape[1])
        to = column + self.moves[:, :1], row + self.moves[:, 1:]
        inside = (to[0] >= 0) & (to[0] < self.shape[0]) & (to[1] >= 0) & (to[1] < self.shape[1])
        return np.where(inside, to[0] * self.shape[1] + to[1], -1)

    def state(self, steps: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """States of lattice steps from the starts, steps of shape [..., units, 2]."""
        place = steps - self.low
        state: npt.NDArray[np.int64] = place[..., 0] * self.shape[1] + place[..., 1]
        return state

    def steps(self, state: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Lattice steps [..., units, 2] of states [..., units]."""
        return np.stack(np.divmod(state, self.shape[1]), axis=-1) + self.low

    def position(self, steps: npt.NDArray[np.int64]) -> FloatArray:
        """Positions [..., units, 2] of lattice steps [m]."""
        return np.asarray(self.system.vehicles.start + self.spacing * steps)

    # -- what backward induction asks

    def moving(self, stage: int, action: int, units: slice) -> FloatArray:
        """Return the price of an action's flight, shape [units, 1]."""
        return self.price[units, action, None]

    def arriving(self, stage: int, units: slice) -> FloatArray:
        """Return the samples missed in every state, shape [units, states]; inf outside the area."""
        system, near = self.system, self._seen(units)
        mix = system.class_mix[units, stage]
        new = mobility.arrivals(near * mix[:, None], system.sensing.samples_max[units, None])
        return np.where(np.isnan(near[..., 0]), np.inf, self.most[units, None] - np.asarray(new))

    def _seen(self, units: slice) -> FloatArray:
        """What every state sees of every class, per share of it; nan outside the area; shape [units, states, classes].

        The same in all stages, so the last answer is kept.
        """
        if self._near is None or self._near[0] != units:
            low, high = self.low[units, None], self.high[units, None]
            steps = np.stack(np.divmod(np.arange(self.states), self.shape[1]), axis=-1) + low
            sensing = self.system.sensing
            near = mobility.class_yield(
                self.system.vehicles.start[units, None] + self.spacing * steps,
                sensing.class_means[units, None],
                np.ones(sensing.classes),
                sensing.length_scale,
                self.system.view_radius[units, None, None],
            )
            outside = np.any(steps > high, axis=-1)
            self._near = units, np.where(outside[..., None], np.nan, near)
        return self._near[1]

    def complete(self, path: npt.NDArray[np.int64]) -> dict[str, FloatArray]:
        """Return columns and rows of paths [stages, units], slot by slot."""
        steps = self.steps(path).astype(np.float64)
        return {"column": steps[..., 0].reshape(-1), "row": steps[..., 1].reshape(-1)}

    # -- rules that fly slot by slot

    def _flown(self, move: Callable[[int, npt.NDArray[np.int64]], npt.NDArray[np.int64]]) -> Decision:
        """Decision of a rule that gives the next lattice steps [units, 2] from the slot and the present ones."""
        steps = np.zeros((self.units, 2), dtype=np.int64)
        way = []
        for stage in range(self.stages):
            steps = move(stage, steps)
            way.append(self.state(steps))
        return Decision(self.complete(np.stack(way)))

    def _options(self, steps: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
        """Next steps [units, actions, 2], and which of them are allowed."""
        options = steps[:, None] + self.moves
        inside = np.all((options >= self.low[:, None]) & (options <= self.high[:, None]), axis=-1)
        return options, inside & np.isfinite(self.price)

    def _towards(self, steps: npt.NDArray[np.int64], target: FloatArray) -> npt.NDArray[np.int64]:
        """The allowed next steps nearest to target positions [units, 2]."""
        options, allowed = self._options(steps)
        place = self.system.vehicles.start[:, None] + self.spacing * options
        away = np.where(allowed, np.asarray(mobility.distance(place, target[:, None])), np.inf)
        # at equal distances the shorter move, up to rounding
        best = np.argmax(away <= away.min(axis=1, keepdims=True) + 1e-9 * self.spacing, axis=1)
        return np.asarray(options[np.arange(self.units), best])

    def static(self) -> Decision:
        """Return the decision of vehicles that hover where they start."""
        return self._flown(lambda stage, steps: steps)

    def greedy(self) -> Decision:
        """Return the decision of vehicles that always take the best next point."""

        def move(stage: int, steps: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
            options, allowed = self._options(steps)
            place = self.system.vehicles.start[:, None] + self.spacing * options
            worth = aerial_flight.utility(self.system, stage, place, self.position(steps))
            seen = aerial_flight.class_yields(self.system, stage, place).sum(axis=-1)
            best = np.where(allowed, worth, -np.inf).argmax(axis=1)
            anything = np.any(allowed & (seen > 0.0), axis=1)
            home = self._towards(steps, aerial_flight.homewards(self.system, stage, self.position(steps)))
            return np.where(anything[:, None], options[np.arange(self.units), best], home)

        return self._flown(move)

    def projected_gradient(self) -> Decision:
        """Return the decision of the published search, every step rounded to the nearest point that is allowed."""

        def move(stage: int, steps: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
            target = aerial_flight.projected_gradient(self.system, stage, self.position(steps))
            return self._towards(steps, target)

        return self._flown(move)

    def random_waypoint(self, rng: np.random.Generator) -> Decision:
        """Return the decision of vehicles that fly to points drawn at random, one after another."""
        size = np.array([self.system.area.width, self.system.area.length])
        target = rng.random((self.units, 2)) * size

        def move(stage: int, steps: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
            nonlocal target
            new = self._towards(steps, target)
            # arrived: as near as the lattice allows
            arrived = np.all(new == steps, axis=1)
            target = np.where(arrived[:, None], rng.random((self.units, 2)) * size, target)
            return np.where(arrived[:, None], self._towards(steps, target), new)

        return self._flown(move)

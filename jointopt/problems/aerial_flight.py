"""Where a vehicle flies next: its utility, the best point of a grid, and the published search (theory 5a).

A vehicle is selfish: in every slot it goes where new samples less the price of flying are worth most,

    q_{t+1} = argmax N_u(q) - lambda_f E_fly(|q - q_t|/tau)  over  |q - q_t| <= v_max tau  within the area.

`projected_gradient_flight` is the published way [D]: ascent from the present position and from the projections of the
class means onto the ball. Without footprint it finds the best; the footprint makes the utility jump, and then it often
misses, which is why `greedy_flight` looks at a grid of the ball. Positions here are any points of the area;
`jointopt.problems.aerial_lattice` has the same rules on a lattice.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from jointopt.models import mobility
from jointopt.system import AerialSystem, FloatArray

__all__ = ["best_of_grid", "greedy_flight", "homewards", "projected_gradient", "projected_gradient_flight", "utility"]

ASCENT_STEPS = 60
"""Steps of an ascent; its length is halved where a step does not help."""
GRID_POINTS = 41
"""Points along the diameter of the ball's grid."""


def utility(system: AerialSystem, slot: int, position: FloatArray, before: FloatArray) -> FloatArray:
    """Return N_u(q) - lambda_f E_fly of candidates, shape [devices, candidates].

    Parameters
    ----------
    system : AerialSystem
        The vehicles.
    slot : int
        The slot, from 0.
    position : array, shape [devices, candidates, 2]
        Where to.
    before : array, shape [devices, 2]
        Where from.
    """
    seen = class_yields(system, slot, position)
    new = mobility.arrivals(seen, system.sensing.samples_max[:, None])
    away = mobility.distance(position, before[:, None])
    spent = mobility.flight_energy(away, system.area.slot)
    return np.asarray(new - system.vehicles.flight_price[:, None] * spent)


def class_yields(system: AerialSystem, slot: int, position: FloatArray) -> FloatArray:
    """Return what candidates see of every class, shape [devices, candidates, classes]."""
    return np.asarray(
        mobility.class_yield(
            position,
            system.sensing.class_means[:, None],
            system.class_mix[:, slot, None],
            system.sensing.length_scale,
            system.view_radius[:, None, None],
        )
    )


def homewards(system: AerialSystem, slot: int, before: FloatArray) -> FloatArray:
    """Return the mean of the class with the largest share in a slot, shape [devices, 2]: where to, without a gain."""
    likeliest = system.class_mix[:, slot].argmax(axis=-1)
    return np.asarray(system.sensing.class_means[np.arange(len(before)), likeliest])


def _inside(system: AerialSystem, position: FloatArray) -> FloatArray:
    """Positions moved into the area; one in the ball around a point of the area stays in the ball."""
    return np.clip(position, 0.0, [system.area.width, system.area.length])


def best_of_grid(system: AerialSystem, slot: int, before: FloatArray, points: int = GRID_POINTS) -> FloatArray:
    """Return the best next positions over a grid of the reachable ball, shape [devices, 2].

    Beside the grid, the present position and the points of the ball nearest to the class means are looked at. Without
    a gain anywhere in reach the vehicle goes towards the mean of the largest share (5g).
    """
    reach = system.reach
    line = np.linspace(-1.0, 1.0, points)
    disc = np.stack([a.ravel() for a in np.meshgrid(line, line)], axis=-1)
    disc = disc[np.hypot(disc[:, 0], disc[:, 1]) <= 1.0]
    candidates = np.concatenate([_starts(system, before), before[:, None] + reach[:, None, None] * disc], axis=1)
    return _chosen(system, slot, before, _inside(system, candidates))


def _starts(system: AerialSystem, before: FloatArray) -> FloatArray:
    """Present positions and projections of all class means onto the ball, shape [devices, 1 + classes, 2]."""
    means = mobility.moved_towards(before[:, None], system.sensing.class_means, system.reach[:, None])
    return np.concatenate([before[:, None], means], axis=1)


def _chosen(system: AerialSystem, slot: int, before: FloatArray, candidates: FloatArray) -> FloatArray:
    """The best of some candidates; towards the likeliest class where none of them sees anything."""
    each = np.arange(len(before))
    best = candidates[each, utility(system, slot, candidates, before).argmax(axis=1)]
    anything = class_yields(system, slot, candidates).sum(axis=-1).max(axis=1) > 0.0
    home = mobility.moved_towards(before, homewards(system, slot, before), system.reach)
    return np.where(anything[:, None], best, home)


def projected_gradient(system: AerialSystem, slot: int, before: FloatArray, steps: int = ASCENT_STEPS) -> FloatArray:
    """Return the next positions that the published multi-start projected gradient finds, shape [devices, 2] (5a [D]).

    It climbs the gain without the ceiling, along its derivative where classes are seen; of the ends, the best is taken.
    """
    price = system.vehicles.flight_price[:, None]
    most = system.sensing.samples_max[:, None]
    centre = before[:, None]

    def smooth(position: FloatArray) -> FloatArray:
        away = mobility.distance(position, centre)
        gain = most * class_yields(system, slot, position).sum(axis=-1)
        return np.asarray(gain - price * mobility.flight_energy(away, system.area.slot))

    def uphill(position: FloatArray) -> FloatArray:
        toward = system.sensing.class_means[:, None] - position[:, :, None]
        length = np.hypot(toward[..., 0], toward[..., 1])
        pull = class_yields(system, slot, position) / (system.sensing.length_scale * np.maximum(length, 1e-12))
        away = mobility.distance(position, centre)
        slope = mobility.rotary_wing_slope(away / system.area.slot) * price / np.maximum(away, 1e-12)
        return np.asarray(
            most[..., None] * (pull[..., None] * toward).sum(axis=2) - slope[..., None] * (position - centre)
        )

    position = _inside(system, _starts(system, before))
    value = smooth(position)
    step = np.repeat(0.5 * system.reach[:, None], position.shape[1], axis=1)
    for _ in range(steps):
        direction = uphill(position)
        length = np.maximum(np.hypot(direction[..., 0], direction[..., 1]), 1e-300)
        moved = position + (step / length)[..., None] * direction
        moved = _inside(system, mobility.moved_towards(centre, moved, system.reach[:, None]))
        new = smooth(moved)
        better = new > value
        position = np.where(better[..., None], moved, position)
        value = np.where(better, new, value)
        step = np.where(better, step, 0.5 * step)
    return _chosen(system, slot, before, position)


def _flown(system: AerialSystem, move: Callable[[int, FloatArray], FloatArray]) -> FloatArray:
    """Ways made slot by slot, shape [devices, slots, 2]."""
    position, way = np.asarray(system.vehicles.start), []
    for slot in range(system.area.slots):
        position = move(slot, position)
        way.append(position)
    return np.stack(way, axis=1)


def greedy_flight(system: AerialSystem, points: int = GRID_POINTS) -> FloatArray:
    """Return the ways of vehicles that always take the best point of a grid, shape [devices, slots, 2]."""
    return _flown(system, lambda slot, before: best_of_grid(system, slot, before, points))


def projected_gradient_flight(system: AerialSystem) -> FloatArray:
    """Return the ways that the published search makes, shape [devices, slots, 2]."""
    return _flown(system, lambda slot, before: projected_gradient(system, slot, before))

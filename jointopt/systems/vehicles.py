"""Systems in the air: vehicles that patrol among the classes they see."""

from __future__ import annotations

from typing import Any

import numpy as np

from jointopt.errors import InputError
from jointopt.models import channel, compression, cost, mobility
from jointopt.system import AerialSystem, AirLink, Area, Flight, FloatArray, OnlineBound, Sensing, Vehicles
from jointopt.systems.draw import Draw
from jointopt.systems.presets import AUGMENTED

__all__ = ["AERIAL_WEIGHT_NORM_SQUARED", "aerial"]

AERIAL_WEIGHT_NORM_SQUARED = {"digits": 2.0, "fashion-mnist": 0.6}
"""D^2 of `aerial`."""


def aerial(
    devices: int = 10,
    seed: int = 0,
    *,
    data: str = "digits",
    parameters: int | None = None,
    unpruned_parameters: int | None = None,
    batch_size: int = 32,
    slots: int = 20,
    tightness: float = 1.0,
    shared_places: bool = False,
) -> AerialSystem:
    """Sample a system for the aerial designs: vehicles over 1 km^2 that patrol among the classes they see.

    Sizes follow theory 5a [S]. Every vehicle sees 10 classes at places of its own, whose mix changes over two minutes,
    and flies from one to the next in an order of its own, at its greatest speed. Bound constants are those of `feddpq`,
    but D^2 is chosen between what is typical of them and the largest ||w||^2 [S]: with the first, 255 levels would be
    best throughout, with the second, one level. G^2 is the squared gradient bound + sigma^2/batch; eta K L is 0.4.

    Parameters
    ----------
    devices : int
        Number of vehicles.
    seed : int
        Seed of every draw.
    data : {"digits", "fashion-mnist"}
        Whose network sizes and measured constants to use.
    parameters, unpruned_parameters : int, optional
        Sizes of another network.
    batch_size : int
        Samples per local step.
    slots : int
        Number of slots.
    tightness : float
        Divides the default delay and energy budgets.
    shared_places : bool
        Whether all vehicles see the same classes at the same places, those of the first.

    Raises
    ------
    InputError
        For an unknown data set, no vehicles, or numbers out of range.
    """
    if not isinstance(shared_places, bool):
        raise InputError(f"shared_places: must be True or False, got {shared_places!r}")
    draw = Draw.make(devices, seed, data, None, parameters, unpruned_parameters, batch_size, tightness)
    rng, preset = draw.rng, AUGMENTED[data]
    area = Area(slots=slots)
    sides = np.array([area.width, area.length])
    means = rng.uniform(0.1, 0.9, (devices, 10, 2)) * sides
    if shared_places:
        means = np.repeat(means[:1], devices, axis=0)
    speed = rng.uniform(15.0, 20.0, devices)
    start = rng.uniform(0.0, 1.0, (devices, 2)) * sides
    way = _patrol(start, means, rng.permuted(np.tile(np.arange(10), (devices, 1)), axis=1), speed * area.slot, slots)
    steps = 5
    constants = preset.bound
    bound = OnlineBound(
        smoothness=constants["smoothness"],
        weight_norm_squared=AERIAL_WEIGHT_NORM_SQUARED[data],
        mask_energy=constants["mask_energy"],
        gradient_variance=constants["gradient_variance"],
        gradient_energy=preset.gradient_bound**2 + constants["gradient_variance"] / batch_size,
        initial_gap=constants.get("initial_gap", draw.preset.initial_gap),
        learning_rate=round(0.4 / (steps * constants["smoothness"]), 4),
        local_steps=steps,
        drift=0.02,
    )
    vehicles = {
        "start": start,
        "speed_max": speed,
        "frequency": rng.uniform(1e9, 2e9, devices),
        "cycles_per_sample": draw.cycles_per_sample,
        "capacitance": 1e-28,
        "power": rng.uniform(0.1, 0.2, devices),
        "flight_price": 1e-3,
    }
    mapping = rng.standard_normal((devices, 10, 3))
    system = AerialSystem(
        name=f"aerial-{data}-{devices}-seed{seed}",
        vehicles=Vehicles(**vehicles, delay_budget=1.0, energy_budget=1.0),
        area=area,
        sensing=Sensing(
            class_means=means,
            class_map=np.repeat(mapping[:1], devices, axis=0) if shared_places else mapping,
            period=120.0,
            samples_max=rng.integers(50, 200, devices, endpoint=True),
            buffer=rng.integers(500, 2000, devices, endpoint=True),
        ),
        # narrower than the bands of theory 5a, so that what is sent counts as much as what is computed
        link=AirLink(bandwidth=rng.uniform(1e5, 5e5, devices)),
        learner=draw.learner(1, 8).replace(header_bits=32.0),
        bound=bound,
        flight=Flight(trajectory=way),
    )
    # a dense round at 9 bits a component, over the ways
    held = system.vehicles
    rate = channel.rate(system.link.bandwidth, held.power * system.gain.mean(axis=1) / system.noise_power, "none")
    work = cost.cycles(float(steps * batch_size), held.cycles_per_sample)
    payload = compression.payload_bits(float(draw.parameters + draw.unpruned_parameters), 9.0, header=32.0)
    delay = cost.compute_delay(work, held.frequency) + cost.upload_delay(payload, rate)
    energy = cost.compute_energy(work, held.frequency, held.capacitance)
    energy = energy + cost.upload_energy(payload, rate, held.power)
    return system.with_(
        # a round is one clock for all, batteries differ
        delay_budget=float(0.7 * np.median(delay) / tightness),
        energy_budget=float(0.8 * np.median(energy) / tightness) * draw.spread,
    )


def _patrol(start: FloatArray, means: FloatArray, order: Any, reach: FloatArray, slots: int) -> FloatArray:
    """Ways from mean to mean in the order given, shape [devices, slots, 2]."""
    position, stop, each = start, np.zeros(len(start), dtype=np.int64), np.arange(len(start))
    way = np.empty((len(start), slots, 2))
    for t in range(slots):
        target = means[each, order[each, stop % order.shape[1]]]
        position = way[:, t] = mobility.moved_towards(position, target, reach)
        stop = stop + np.all(position == target, axis=-1)
    return way

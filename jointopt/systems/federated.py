"""Systems of federated learning: for bits, powers and ratios (LTFL), and for a band to share (FEEL)."""

from __future__ import annotations

from typing import Any

import numpy as np

from jointopt.system import Generalization, System
from jointopt.systems.draw import CAPACITANCE, POWER, RAW_BITS, Draw

__all__ = ["CAPACITANCE_SCALED", "FEEL_DELAY", "FEEL_ENERGY", "NOMINAL_BITS", "feel", "ltfl"]

CAPACITANCE_SCALED = 2.5e-25
"""k_c of `feel` [J s^2/cycle^3], 0.3 nJ a cycle at 35 MHz as of a microcontroller: cycles and uploads cost alike, so
that choosing the processor's frequency matters."""
NOMINAL_BITS = 8
FEEL_DELAY = 0.7
FEEL_ENERGY = 0.7


def ltfl(
    devices: int = 20,
    seed: int = 0,
    *,
    data: str = "digits",
    samples: Any = None,
    parameters: int | None = None,
    unpruned_parameters: int | None = None,
    batch_size: int | None = None,
    tightness: float = 1.0,
) -> System:
    """Sample a system for the LTFL design.

    Parameters
    ----------
    devices : int
        Number of devices.
    seed : int
        Seed of every draw.
    data : {"digits", "fashion-mnist"}
        Whose network sizes and measured constants to use.
    samples : array, shape [devices], optional
        Samples per device; drawn when not given.
    parameters, unpruned_parameters, batch_size : int, optional
        Sizes of another network.
    tightness : float
        Divides the default delay and energy budgets.

    Raises
    ------
    InputError
        For an unknown data set, no devices, or a tightness that is not above 0.
    """
    draw = Draw.make(devices, seed, data, samples, parameters, unpruned_parameters, batch_size, tightness)
    held = draw.held
    radio = draw.radio(bandwidth=50e3)
    nominal_power = float(np.sqrt(POWER[0] * POWER[1]))
    delay, energy = draw.nominal(radio, held, bits=NOMINAL_BITS, power=nominal_power, capacitance=CAPACITANCE)
    return System(
        name=f"ltfl-{data}-{devices}-seed{seed}",
        devices=draw.devices(
            held,
            capacitance=CAPACITANCE,
            power_min=POWER[0],
            power_max=POWER[1],
            # One round is one clock for all, batteries differ. At 0.7 of the median dense round most optima are
            # interior: some pruning, middle bits and powers; the rest shows what limits look like.
            delay_budget=float(0.7 * np.median(delay) / tightness),
            energy_budget=float(0.7 * np.median(energy) / tightness) * draw.spread,
        ),
        radio=radio,
        learner=draw.learner(draw.preset.bits_min, 16),
        bound=draw.bound(),
    )


def feel(
    devices: int = 20,
    seed: int = 0,
    *,
    data: str = "digits",
    samples: Any = None,
    parameters: int | None = None,
    unpruned_parameters: int | None = None,
    batch_size: int | None = None,
    tightness: float = 1.0,
) -> System:
    """Sample a system for the FEEL design: one band to share, clients of very different sizes, raw floats sent.

    There is no fading and nothing is lost, as the design is stated. The removed share of ||w||^2 follows the curve
    of Laplace weights, since with the linear bound it would drown the generalization gap. sigma_g^2 and I are those
    measured on the data set named, the same for every client: what differs between clients is n_k, by which the gap
    falls. The bound is about full gradients; where a batch size is set (the default of "fashion-mnist") it bounds the
    cycles of a round, and the sampling noise of batches is not in it.

    Parameters
    ----------
    devices : int
        Number of clients.
    seed : int
        Seed of every draw.
    data : {"digits", "fashion-mnist"}
        Whose network sizes and measured constants to use.
    samples : array, shape [devices], optional
        Samples per client; when not given, log-uniform over a factor of six, as many together as `ltfl` has on
        average.
    parameters, unpruned_parameters, batch_size : int, optional
        Sizes of another network.
    tightness : float
        Divides the default delay and energy budgets.

    Raises
    ------
    InputError
        For an unknown data set, no devices, or a tightness that is not above 0.
    """
    draw = Draw.make(devices, seed, data, samples, parameters, unpruned_parameters, batch_size, tightness)
    preset = draw.preset
    power = draw.rng.uniform(0.1, 0.2, size=devices)
    skew = 6.0 ** draw.rng.random(devices)
    middle = 0.5 * (preset.samples[0] + preset.samples[1])
    held = np.maximum(np.rint(middle * skew / skew.mean()), 3.0) if draw.samples is None else draw.samples
    radio = draw.radio(total_bandwidth=50e3 * devices, fading="none", packet_error="none")
    delay, energy = draw.nominal(radio, held, bits=RAW_BITS, power=0.5 * power, capacitance=CAPACITANCE_SCALED)
    return System(
        name=f"feel-{data}-{devices}-seed{seed}",
        devices=draw.devices(
            held,
            capacitance=CAPACITANCE_SCALED,
            power_min=1e-6,
            power_max=power,
            # Shares of the median dense round on an equal split of the band, chosen so that band, time and energy
            # do not suffice for everyone: the best selections leave out a fifth to a half, and ratios are interior.
            delay_budget=float(FEEL_DELAY * np.median(delay) / tightness),
            energy_budget=float(FEEL_ENERGY * np.median(energy) / tightness) * draw.spread,
        ),
        radio=radio,
        learner=draw.learner(min(preset.bits_min, RAW_BITS), RAW_BITS),
        bound=draw.bound(pruning_error="laplace"),
        generalization=Generalization(
            gradient_proxy=preset.gradient_proxy, mutual_information=preset.mutual_information
        ),
    )

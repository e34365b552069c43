"""Systems whose devices make synthetic samples of their rarer classes (FedDPQ)."""

from __future__ import annotations

from typing import Any

import numpy as np

from jointopt.errors import InputError, is_real
from jointopt.models import augmentation, channel, compression, convergence
from jointopt.system import Augmentation, FloatArray, System, Target
from jointopt.systems.draw import CAPACITANCE, RAW_BITS, Draw
from jointopt.systems.presets import AUGMENTED, Augmented

__all__ = ["FEDDPQ_BITS", "FEDDPQ_POWER", "FEDDPQ_ROOM", "feddpq"]

FEDDPQ_POWER = (0.01, 0.1)
FEDDPQ_BITS = (6, 16)
FEDDPQ_ROOM = 1.5


def feddpq(
    devices: int = 20,
    seed: int = 0,
    *,
    data: str = "digits",
    samples: Any = None,
    class_counts: Any = None,
    parameters: int | None = None,
    unpruned_parameters: int | None = None,
    batch_size: int | None = None,
    alpha: float = 0.3,
    participation: float = 0.3,
    tightness: float = 1.0,
) -> System:
    """Sample a system for the FedDPQ design: skewed classes, links with outage, some devices in every round.

    Frequencies, powers and bits are in the published ranges [R]. Budgets of single rounds are wide; what is scarce is
    the energy of all rounds. The constants are typical ones (`AUGMENTED`), which forecast and prove nothing: with the
    worst ones no target that training reaches would be above the noise floor.

    Parameters
    ----------
    devices : int
        Number of devices.
    seed : int
        Seed of every draw.
    data : {"digits", "fashion-mnist"}
        Whose network sizes and measured constants to use.
    samples : array, shape [devices], optional
        Samples per device; drawn when not given, or the sums of `class_counts`.
    class_counts : array, shape [devices, classes], optional
        Samples of each class on each device; drawn when not given.
    parameters, unpruned_parameters, batch_size : int, optional
        Sizes of another network.
    alpha : float
        Dirichlet concentration of the devices' class mixes; the smaller, the more skewed.
    participation : float
        Probability with which each device joins a round.
    tightness : float
        Divides the target and the budgets. The target is the preset's, or `FEDDPQ_ROOM` times what could be reached at
        full augmentation, power and bits, where that is more.

    Raises
    ------
    InputError
        For an unknown data set, no devices, or numbers out of range.
    """
    if class_counts is not None:
        try:
            counts = np.asarray(class_counts, dtype=np.float64)
        except (TypeError, ValueError):
            counts = np.empty(0)
        if counts.ndim != 2:
            raise InputError(f"class_counts: expected a row per device with a number per class, got {class_counts!r}")
        samples = counts.sum(axis=-1) if samples is None else samples
    draw = Draw.make(devices, seed, data, samples, parameters, unpruned_parameters, batch_size, tightness)
    if not (is_real(alpha) and 1e-3 <= alpha <= 1e6):
        raise InputError(f"alpha: {alpha!r} must be a number from 1e-3 to 1e6")
    held = np.broadcast_to(draw.held, (devices,))
    radio = draw.radio(bandwidth=50e3, packet_error="outage", outage_threshold=10.0)
    # a round of raw floats at full power fits twice
    delay, energy = draw.nominal(radio, held, bits=RAW_BITS, power=FEDDPQ_POWER[1], capacitance=CAPACITANCE)
    slow, _ = draw.nominal(radio, held, bits=RAW_BITS, power=FEDDPQ_POWER[0], capacitance=CAPACITANCE)
    preset = AUGMENTED[data]
    made = System(
        name=f"feddpq-{data}-{devices}-seed{seed}",
        devices=draw.devices(
            held,
            capacitance=CAPACITANCE,
            power_min=FEDDPQ_POWER[0],
            power_max=FEDDPQ_POWER[1],
            delay_budget=float(2.0 * max(np.max(delay), np.max(slow)) / tightness),
            energy_budget=2.0 * energy / tightness,
        ),
        radio=radio,
        learner=draw.learner(*FEDDPQ_BITS),
        bound=draw.bound(pruning_error="laplace").replace(**preset.bound),
        augmentation=Augmentation(
            class_counts=_class_counts(draw, held, preset, alpha) if class_counts is None else class_counts,
            gradient_bound=preset.gradient_bound,
            synthetic_gap=preset.synthetic_gap,
            generation_cycles=preset.generation_cycles,
        ),
        target=Target(gradient_norm=preset.target, participation=participation),
    )
    return made.with_(gradient_norm=max(preset.target, FEDDPQ_ROOM * _reachable(made)) / tightness)


def _reachable(system: System) -> float:
    """Mean squared gradient norm that many rounds reach at full augmentation, power and bits, nothing pruned."""
    section, target, bound = system.augmentation, system.target, system.bound
    assert section is not None and target is not None
    counts = augmentation.augmented_counts(section.class_counts, np.ones(1))
    about = (section.class_counts, counts, section.class_mix, section.gradient_bound, section.synthetic_gap)
    held, radio, learner = counts.sum(axis=1), system.radio, system.learner
    lost = channel.packet_error(
        channel.snr(system.devices.power_max, radio.gain, system.noise_power),
        radio.outage_threshold,
        radio.packet_error,
        radio.fading,
    )
    batch = held if learner.batch_size is None else np.minimum(held, float(learner.batch_size))
    gap = convergence.unbiased_gap(
        weight=held / held.sum(),
        success=target.participation * (1.0 - lost),
        pruning_ratio=np.zeros(held.size),
        pruning_error=np.zeros(held.size),
        quantization_variance=compression.quantization_variance(
            float(learner.parameters + learner.unpruned_parameters),
            bound.quantizer_range,
            np.full(held.size, float(learner.bits_max)),
        ),
        sampling_variance=np.where(batch < held, bound.gradient_variance / batch, 0.0),
        local_gap=augmentation.local_gap(*about),
        data_gap=augmentation.data_gap(*about),
        smoothness=bound.smoothness,
        weight_norm_squared=bound.weight_norm_squared,
        mask_energy=bound.mask_energy,
        learning_rate=bound.learning_rate,
    )
    return float(gap.total / max(1.0 - float(gap.contraction.sum()), 0.05))


def _class_counts(draw: Draw, held: FloatArray, preset: Augmented, alpha: float) -> FloatArray:
    """Draw class counts with Dirichlet mixes, no class beyond what the data set has where that is enough for all."""
    mixes = draw.rng.dirichlet(np.full(10, alpha), size=held.size)
    counts = np.stack(
        [draw.rng.multinomial(int(n), mix / mix.sum()) for n, mix in zip(held, mixes, strict=True)]
    ).astype(np.float64)
    room = preset.per_class - counts.sum(axis=0)
    if room.sum() < 0.0:
        return counts
    while np.any(room < 0.0):
        # one sample too many becomes one of a class that has room, on a device that has the first
        full, free = int(np.argmin(room)), int(np.argmax(room))
        device = int(draw.rng.choice(held.size, p=counts[:, full] / counts[:, full].sum()))
        counts[device, full] -= 1.0
        counts[device, free] += 1.0
        room[full] += 1.0
        room[free] -= 1.0
    return counts

"""Systems sampled from a seed, ready to solve.

Every default is a choice of ours [S] unless it says otherwise. The constants of the convergence bound were measured
in a short dense warm-up of the very networks named here, and rounded::

    task = Task.make(data="digits", devices=20, seed=0)
    measure_constants(task, rounds=60, learning_rate=0.2, seed=0)

    task = Task.make(data="fashion-mnist", devices=20, batch_size=64, seed=0)
    measure_constants(task, rounds=20, learning_rate=0.1, seed=0)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from jointopt.errors import InputError, MissingExtraError, is_real, is_whole, nearest
from jointopt.models import channel, compression, cost
from jointopt.system import Bound, Devices, FloatArray, Learner, Radio, System

__all__ = ["PRESETS", "ltfl", "sionna_gains"]


@dataclass(frozen=True)
class Preset:
    """What a data set and network bring: sizes, and constants measured on them."""

    samples: tuple[int, int]
    parameters: int
    unpruned_parameters: int
    bits_min: int
    batch_size: int | None
    activations: int
    learning_rate: float
    rounds: int
    smoothness: float
    weight_norm_squared: float
    mask_energy: float
    gradient_offset: float
    quantizer_range: float
    gradient_variance: float
    initial_gap: float


PRESETS = {
    "digits": Preset(
        samples=(40, 80),
        parameters=4736,
        unpruned_parameters=74,
        bits_min=2,
        batch_size=None,
        activations=74,
        learning_rate=0.2,
        rounds=150,
        smoothness=2.6,
        weight_norm_squared=68.0,
        mask_energy=4.3,
        gradient_offset=5.2,
        quantizer_range=0.71,
        gradient_variance=18.0,
        initial_gap=2.31,
    ),
    "fashion-mnist": Preset(
        samples=(2000, 3000),
        parameters=101_632,
        unpruned_parameters=138,
        bits_min=4,
        batch_size=64,
        activations=138,
        learning_rate=0.1,
        rounds=200,
        smoothness=8.8,
        weight_norm_squared=73.0,
        mask_energy=7.4,
        gradient_offset=11.0,
        quantizer_range=1.2,
        gradient_variance=68.0,
        initial_gap=2.31,
    ),
}
"""Sizes and measured constants by data set (20 devices, Dirichlet 0.5, multilayer perceptron)."""


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
    if data not in PRESETS:
        raise InputError(f"data: unknown '{data}'{nearest(data, PRESETS)}")
    if not (is_whole(devices) and 1 <= devices <= MOST_DEVICES):
        raise InputError(f"devices: {devices!r} must be a whole number from 1 to {MOST_DEVICES:,}")
    if not (is_whole(seed) and seed >= 0):
        raise InputError(f"seed: {seed!r} must be a whole number of at least 0")
    if not (is_real(tightness) and 1e-12 < tightness < 1e12):
        raise InputError(f"tightness: {tightness!r} must be a number above 0 (1e-12 to 1e12)")
    preset = PRESETS[data]
    rng = np.random.default_rng(np.random.SeedSequence([seed, devices]))
    weights = preset.parameters if parameters is None else parameters
    fixed = preset.unpruned_parameters if unpruned_parameters is None else unpruned_parameters
    batch = preset.batch_size if samples is None and parameters is None and batch_size is None else batch_size
    drawn = rng.integers(preset.samples[0], preset.samples[1], size=devices, endpoint=True).astype(np.float64)
    frequency = rng.uniform(20e6, 50e6, size=devices)  # [R] as in arXiv 2508.01745
    distance = rng.uniform(100.0, 500.0, size=devices)
    spread = rng.uniform(0.5, 1.5, size=devices)
    try:
        held = drawn if samples is None else np.asarray(samples, dtype=np.float64)
    except (TypeError, ValueError):
        raise InputError(f"samples: expected numbers, got {samples!r}") from None
    if held.shape not in ((), (devices,)):
        raise InputError(f"samples: has {held.size} values for {devices} devices")

    radio = Radio(
        bandwidth=50e3,
        distance=distance,
        reference_gain=1e-3,
        path_loss_exponent=3.8,
    )
    # about 40 cycles per parameter and sample: 6 operations of a training step on a core without vector units
    cycles_per_sample = 40.0 * (weights + fixed)
    processed = held if batch is None else np.minimum(held, float(batch))
    delay, energy = _nominal(radio, processed, cycles_per_sample, frequency, weights + fixed)
    return System(
        name=f"ltfl-{data}-{devices}-seed{seed}",
        devices=Devices(
            samples=held,
            cycles_per_sample=cycles_per_sample,
            frequency=frequency,
            capacitance=CAPACITANCE,
            power_min=POWER[0],
            power_max=POWER[1],
            # One round is one clock for all, batteries differ. At 0.7 of the median dense round most optima are
            # interior: some pruning, middle bits and powers; the rest shows what limits look like.
            delay_budget=float(0.7 * np.median(delay) / tightness),
            energy_budget=float(0.7 * np.median(energy) / tightness) * spread,
        ),
        radio=radio,
        learner=Learner(
            parameters=weights,
            unpruned_parameters=fixed,
            bits_min=preset.bits_min,
            bits_max=16,
            header_bits=64.0,
            pruning_ratio_max=0.9,
            batch_size=batch,
            activations=preset.activations,
        ),
        bound=Bound(
            smoothness=preset.smoothness,
            weight_norm_squared=preset.weight_norm_squared,
            mask_energy=preset.mask_energy,
            gradient_offset=preset.gradient_offset,
            quantizer_range=preset.quantizer_range,
            gradient_variance=preset.gradient_variance,
            initial_gap=preset.initial_gap,
            learning_rate=preset.learning_rate,
            rounds=preset.rounds,
        ),
    )


def sionna_gains(
    devices: int,
    seed: int = 0,
    *,
    scenario: str = "umi",
    carrier_frequency: float = 3.5e9,
    draws: int = 8,
    indoor_probability: float = 0.0,
) -> FloatArray:
    """Draw mean channel gains of devices in a 3GPP TR 38.901 cell with Sionna, shape [devices].

    Devices are dropped uniformly in a sector; path loss, shadowing and line of sight follow the standard [K]. The
    mean over small-scale fading is taken over `draws` channel realisations with one omnidirectional antenna at
    each end. Sionna keeps one global generator: it is seeded here and put back to a random state afterwards.

    Parameters
    ----------
    devices : int
        Number of devices.
    seed : int
        Seed of drop, shadowing and fading.
    scenario : {"umi", "uma", "rma"}
        Street canyon, urban macro or rural macro cell.
    carrier_frequency : float
        Carrier [Hz].
    draws : int
        Channel realisations averaged.
    indoor_probability : float
        Share of devices indoors.

    Raises
    ------
    MissingExtraError
        When Sionna is not installed (extra ``sionna``).
    InputError
        For an unknown scenario or numbers out of range.
    """
    if scenario not in ("umi", "uma", "rma"):
        raise InputError(f"scenario: unknown '{scenario}'{nearest(str(scenario), ['umi', 'uma', 'rma'])}")
    if devices < 1 or draws < 1:
        raise InputError(f"devices: {devices!r} and draws: {draws!r} must be at least 1")
    if seed < 0:
        raise InputError(f"seed: {seed!r} must be at least 0")
    if not (np.isfinite(carrier_frequency) and carrier_frequency > 0.0):
        raise InputError(f"carrier_frequency: {carrier_frequency!r} Hz must be a finite number above 0")
    if not 0.0 <= indoor_probability <= 1.0:
        raise InputError(f"indoor_probability: {indoor_probability!r} must lie between 0 and 1")
    try:
        from sionna.phy import config
        from sionna.phy.channel import gen_single_sector_topology, tr38901
    except ImportError:
        raise MissingExtraError("sionna-no-rt", "sionna", "drawing TR 38.901 channels") from None
    antenna = tr38901.Antenna(
        polarization="single",
        polarization_type="V",
        antenna_pattern="omni",
        carrier_frequency=carrier_frequency,
    )
    kind = {"umi": tr38901.UMi, "uma": tr38901.UMa, "rma": tr38901.RMa}[scenario]
    options = {} if scenario == "rma" else {"o2i_model": "low"}
    try:
        config.seed = seed
        model = kind(
            carrier_frequency=carrier_frequency,
            ut_array=antenna,
            bs_array=antenna,
            direction="uplink",
            **options,
        )
        topology = gen_single_sector_topology(1, devices, scenario, indoor_probability=indoor_probability)
        model.set_topology(*topology)
        total = np.zeros(devices)
        for _ in range(draws):
            # [batch, receivers, antennas, transmitters, antennas, paths, time]
            paths, _ = model(1, 1.0)
            total += (paths.abs() ** 2).sum(dim=5)[0, 0, 0, :, 0, 0].double().cpu().numpy()
    finally:
        config.seed = None
    gains: FloatArray = total / draws
    return gains


MOST_DEVICES = 50_000_000
"""More devices than this do not fit into the memory of an ordinary machine."""
POWER = (0.01, 0.1)
"""Transmit power range [W]; [R] as in arXiv 2508.01745."""
CAPACITANCE = 1e-26
NOMINAL_BITS = 8.0


def _nominal(
    radio: Radio, samples: FloatArray, cycles_per_sample: float, frequency: FloatArray, parameters: int
) -> tuple[FloatArray, FloatArray]:
    """Delay and energy of a dense round at 8 bits and the middle (geometric mean) power."""
    power = float(np.sqrt(POWER[0] * POWER[1]))
    noise = np.asarray(radio.bandwidth) * radio.noise_density
    rate = channel.rate(radio.bandwidth, channel.snr(power, radio.gain, noise), radio.fading)
    bits = compression.payload_bits(float(parameters), NOMINAL_BITS, header=64.0)
    work = cost.cycles(samples, cycles_per_sample)
    delay = cost.compute_delay(work, frequency) + cost.upload_delay(bits, rate)
    energy = cost.compute_energy(work, frequency, CAPACITANCE) + cost.upload_energy(bits, rate, power)
    return delay, energy

"""What the sampled systems share: checked sizes, and one draw of every quantity."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from jointopt.errors import InputError, is_real, is_whole, nearest
from jointopt.models import channel, compression, cost
from jointopt.system import Bound, Devices, FloatArray, Learner, Radio
from jointopt.systems.presets import PRESETS, Preset

__all__ = ["CAPACITANCE", "HEADER_BITS", "MOST_DEVICES", "POWER", "RAW_BITS", "Draw", "check_sampling"]

MOST_DEVICES = 50_000_000
"""More devices than this do not fit into the memory of an ordinary machine."""
POWER = (0.01, 0.1)
"""Transmit power range [W]; [R] as in arXiv 2508.01745."""
CAPACITANCE = 1e-26
"""k_c of `ltfl` [J s^2/cycle^3]: uploads cost far more energy than cycles."""
RAW_BITS = 32
HEADER_BITS = 64.0


def check_sampling(devices: Any, seed: Any, tightness: Any) -> None:
    """Refuse what is no number of devices, no seed or no tightness."""
    if not (is_whole(devices) and 1 <= devices <= MOST_DEVICES):
        raise InputError(f"devices: {devices!r} must be a whole number from 1 to {MOST_DEVICES:,}")
    if not (is_whole(seed) and seed >= 0):
        raise InputError(f"seed: {seed!r} must be a whole number of at least 0")
    if not (is_real(tightness) and 1e-12 < tightness < 1e12):
        raise InputError(f"tightness: {tightness!r} must be a number above 0 (1e-12 to 1e12)")


@dataclass(frozen=True)
class Draw:
    """Sizes of one system and what was drawn for it, arrays [devices]."""

    preset: Preset
    rng: np.random.Generator
    parameters: int
    unpruned_parameters: int
    batch_size: int | None
    samples: FloatArray | None
    drawn_samples: FloatArray
    frequency: FloatArray
    distance: FloatArray
    spread: FloatArray

    @classmethod
    def make(
        cls,
        devices: int,
        seed: int,
        data: str,
        samples: Any,
        parameters: int | None,
        unpruned_parameters: int | None,
        batch_size: int | None,
        tightness: float,
    ) -> Self:
        """Draw; sizes are those of the data set's preset where none are given."""
        if data not in PRESETS:
            raise InputError(f"data: unknown '{data}'{nearest(data, PRESETS)}")
        check_sampling(devices, seed, tightness)
        preset = PRESETS[data]
        rng = np.random.default_rng(np.random.SeedSequence([seed, devices]))
        drawn = rng.integers(preset.samples[0], preset.samples[1], size=devices, endpoint=True).astype(np.float64)
        frequency = rng.uniform(20e6, 50e6, size=devices)  # [R] as in arXiv 2508.01745
        distance = rng.uniform(100.0, 500.0, size=devices)
        spread = rng.uniform(0.5, 1.5, size=devices)
        try:
            held = None if samples is None else np.asarray(samples, dtype=np.float64)
        except (TypeError, ValueError):
            raise InputError(f"samples: expected numbers, got {samples!r}") from None
        if held is not None and held.shape not in ((), (devices,)):
            raise InputError(f"samples: has {held.size} values for {devices} devices")
        own = samples is None and parameters is None and batch_size is None
        return cls(
            preset=preset,
            rng=rng,
            parameters=preset.parameters if parameters is None else parameters,
            unpruned_parameters=preset.unpruned_parameters if unpruned_parameters is None else unpruned_parameters,
            batch_size=preset.batch_size if own else batch_size,
            samples=held,
            drawn_samples=drawn,
            frequency=frequency,
            distance=distance,
            spread=spread,
        )

    @property
    def held(self) -> FloatArray:
        """Samples given, or those drawn."""
        return self.drawn_samples if self.samples is None else self.samples

    @property
    def cycles_per_sample(self) -> float:
        """About 40 cycles per parameter and sample: 6 operations of a training step, no vector units."""
        return 40.0 * (self.parameters + self.unpruned_parameters)

    def processed(self, samples: FloatArray) -> FloatArray:
        """Samples trained on in a round."""
        return samples if self.batch_size is None else np.minimum(samples, float(self.batch_size))

    def radio(self, **options: Any) -> Radio:
        """Return the links at the distances drawn."""
        return Radio(distance=self.distance, reference_gain=1e-3, path_loss_exponent=3.8, **options)

    def devices(self, samples: FloatArray, **options: Any) -> Devices:
        """Return the devices at the frequencies drawn."""
        return Devices(samples=samples, cycles_per_sample=self.cycles_per_sample, frequency=self.frequency, **options)

    def learner(self, bits_min: int, bits_max: int) -> Learner:
        """Return the learner of these sizes."""
        return Learner(
            parameters=self.parameters,
            unpruned_parameters=self.unpruned_parameters,
            bits_min=bits_min,
            bits_max=bits_max,
            header_bits=HEADER_BITS,
            pruning_ratio_max=0.9,
            batch_size=self.batch_size,
            activations=self.preset.activations,
        )

    def bound(self, **changes: Any) -> Bound:
        """Return the bound with the preset's constants."""
        preset = self.preset
        return Bound(
            smoothness=preset.smoothness,
            weight_norm_squared=preset.weight_norm_squared,
            mask_energy=preset.mask_energy,
            gradient_offset=preset.gradient_offset,
            quantizer_range=preset.quantizer_range,
            gradient_variance=preset.gradient_variance,
            initial_gap=preset.initial_gap,
            learning_rate=preset.learning_rate,
            rounds=preset.rounds,
            **changes,
        )

    def nominal(
        self, radio: Radio, samples: FloatArray, *, bits: int, power: Any, capacitance: float
    ) -> tuple[FloatArray, FloatArray]:
        """Delay and energy of a dense round at some bits and power, a shared band split equally; arrays [devices]."""
        radio = radio.spread(len(self.distance))
        parameters = self.parameters + self.unpruned_parameters
        noise = np.asarray(radio.bandwidth) * radio.noise_density
        rate = channel.rate(radio.bandwidth, channel.snr(power, radio.gain, noise), radio.fading)
        payload = compression.payload_bits(float(parameters), float(bits), header=HEADER_BITS)
        work = cost.cycles(self.processed(samples), self.cycles_per_sample)
        delay = cost.compute_delay(work, self.frequency) + cost.upload_delay(payload, rate)
        energy = cost.compute_energy(work, self.frequency, capacitance) + cost.upload_energy(payload, rate, power)
        return delay, energy

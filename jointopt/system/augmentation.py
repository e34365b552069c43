"""Synthetic training samples, and the accuracy that is trained for (theory 2a, 2b)."""

from __future__ import annotations

from typing import Annotated, Any, Self

import numpy as np
from pydantic import model_validator

from jointopt.errors import InputError
from jointopt.models import augmentation
from jointopt.system.base import FloatArray, Quantity, Section

__all__ = ["Augmentation", "Target"]


class Augmentation(Section):
    """Who holds which classes, what a synthetic sample costs, and how far it misleads.

    The `generation_*` fields describe whoever runs the generator: the device itself, or a server, from which the
    samples are then downloaded (`sample_bits`, `download_energy`, `download_rate`).
    """

    class_counts: Annotated[Any, Quantity(integer=True, axis="device", inner="class")]
    """Real samples of each class on each device, N_{u,c}, shape [devices, classes]."""
    class_mix: Annotated[Any, Quantity(axis="class", optional=True)] = None
    """Share of each class in the loss that is minimised, shape [classes], adding up to 1; uniform when not given."""
    gradient_bound: Annotated[float, Quantity()]
    """G: bound of the norm of every class's gradient on the trajectory."""
    synthetic_gap: Annotated[float, Quantity()]
    """epsilon_g: how far a class's gradient over synthetic samples lies from that over real ones."""
    generation_cycles: Annotated[float, Quantity()]
    """Processor cycles to make one synthetic sample, c_gen."""
    generation_frequency: Annotated[Any, Quantity("Hz", above=0, axis="device", optional=True)] = None
    """Processor frequency while generating [cycle/s]; the device's own when not given."""
    generation_capacitance: Annotated[Any, Quantity("J*s**2", axis="device", optional=True)] = None
    """Effective capacitance while generating [J s^2/cycle^3]; the device's own when not given."""
    sample_bits: Annotated[float, Quantity()] = 0.0
    """Bits of a synthetic sample that is downloaded; 0 where devices make their own."""
    download_energy: Annotated[Any, Quantity("J", axis="device")] = np.zeros(())
    """Energy to bring one bit of it to the device [J/bit]."""
    download_rate: Annotated[Any, Quantity("bit/s", above=0, axis="device", optional=True)] = None
    """Rate at which it comes [bit/s]; no time is counted when not given."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        classes = self.class_counts.shape[1]
        if self.class_mix is None:
            mix = np.full(classes, 1.0 / classes)
        else:
            mix = np.array(self.class_mix if self.class_mix.ndim else np.full(classes, float(self.class_mix)))
            if mix.size != classes:
                raise InputError(f"augmentation.class_mix: has {mix.size} values, class_counts has {classes} classes")
            if abs(mix.sum() - 1.0) > 1e-6:
                raise InputError(f"augmentation.class_mix: the shares add up to {mix.sum():.9g}, expected 1")
            # a mix that adds up already stays as it is, to the last bit
            mix = mix if abs(mix.sum() - 1.0) <= 1e-12 else mix / mix.sum()
        mix.setflags(write=False)
        object.__setattr__(self, "class_mix", mix)
        empty = self.class_counts.sum(axis=1) == 0
        if np.any(empty):
            raise InputError(f"augmentation.class_counts[device {int(np.argmax(empty))}]: holds no sample of any class")
        return self

    @property
    def classes(self) -> int:
        """Number of classes."""
        return int(self.class_counts.shape[1])

    def sample_energy(self, frequency: FloatArray, capacitance: FloatArray) -> FloatArray:
        """Return what one synthetic sample costs [J], given the devices' own processors, shape [devices]."""
        speed = frequency if self.generation_frequency is None else self.generation_frequency
        effective = capacitance if self.generation_capacitance is None else self.generation_capacitance
        made = augmentation.generation_energy(self.generation_cycles, speed, effective)
        return np.asarray(made + self.sample_bits * self.download_energy)

    def sample_delay(self, frequency: FloatArray) -> FloatArray:
        """Return how long one synthetic sample takes [s], shape [devices]."""
        speed = frequency if self.generation_frequency is None else self.generation_frequency
        delay = augmentation.generation_delay(self.generation_cycles, speed)
        return np.asarray(delay if self.download_rate is None else delay + self.sample_bits / self.download_rate)


class Target(Section):
    """How far to train, and who joins a round."""

    gradient_norm: Annotated[float, Quantity(above=0)]
    """epsilon: the mean over the rounds of E ||grad F||^2 to be reached."""
    participation: Annotated[float, Quantity(above=0, at_most=1.0)] = 1.0
    """r: probability with which each device joins a round, all on their own."""
    margin: Annotated[float | None, Quantity(above=0, optional=True)] = None
    """epsilon_0: how far (1 - A) epsilon must lie above Gamma; a millionth of epsilon when not given."""
    delay_limit: Annotated[float | None, Quantity("s", above=0, optional=True)] = None
    """Longest time all rounds together may take [s], generation aside; no limit when not given."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.margin is not None and self.margin >= self.gradient_norm:
            raise InputError(f"target.margin: {self.margin!r} must be below gradient_norm {self.gradient_norm!r}")
        return self

    @property
    def least_excess(self) -> float:
        """epsilon_0, given or not."""
        return 1e-6 * self.gradient_norm if self.margin is None else self.margin

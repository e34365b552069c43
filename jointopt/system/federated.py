"""Federated learning: devices, radio, the model to train, and the constants of its bounds.

Quantities that differ between devices are arrays of shape ``[devices]``; a single number is spread over all devices.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import model_validator

from jointopt.errors import InputError, nearest
from jointopt.models import compression
from jointopt.models.augmentation import augmented_counts
from jointopt.models.channel import path_gain
from jointopt.models.curve import ConvexCurve, known_curve
from jointopt.system.augmentation import Augmentation, Target
from jointopt.system.base import FEASIBILITY_TOLERANCE, FloatArray, Quantity, Scenario, Section
from jointopt.system.relatives import Edges, Tiers, Tradeoff
from jointopt.units import parse_quantity

__all__ = ["Bound", "Devices", "Generalization", "Learner", "Radio", "System"]


_HEADER_BITS = 64.0
"""The quantizer's range, two float32."""


class Devices(Section):
    """The devices: data, processor, power range, budgets per round. Arrays of shape ``[devices]``."""

    samples: Annotated[Any, Quantity(at_least=1, integer=True, axis="device")]
    """Training samples held, N_u."""
    cycles_per_sample: Annotated[Any, Quantity(above=0, axis="device")]
    """Processor cycles to train on one sample with the dense model, c0."""
    frequency: Annotated[Any, Quantity("Hz", above=0, axis="device")]
    """Processor frequency f_u [cycle/s]."""
    capacitance: Annotated[Any, Quantity("J*s**2", axis="device")]
    """Effective capacitance k_c [J s^2/cycle^3]: energy = k_c f^2 x cycles."""
    power_min: Annotated[Any, Quantity("W", above=0, axis="device")]
    """Least transmit power [W]."""
    power_max: Annotated[Any, Quantity("W", above=0, axis="device")]
    """Greatest transmit power [W]."""
    delay_budget: Annotated[Any, Quantity("s", above=0, axis="device")]
    """Longest allowed round [s]: compute plus upload."""
    energy_budget: Annotated[Any, Quantity("J", above=0, axis="device")]
    """Most energy allowed in a round [J]: compute plus upload."""
    count: Annotated[int | None, Quantity(at_least=1, integer=True, optional=True)] = None
    """Number of devices; needed only when every array is given as one number."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        count = self.common_size("device", self.count)
        object.__setattr__(self, "__dict__", {**self.spread(count).__dict__, "count": count})
        if np.any(self.power_min > self.power_max):
            u = int(np.argmax(self.power_min > self.power_max))
            raise InputError(
                f"devices.power_min[device {u}]: {self.power_min[u]:g} W is above power_max {self.power_max[u]:g} W"
            )
        return self


class Radio(Section):
    """The uplink. Per-device fields have shape ``[devices]``."""

    bandwidth: Annotated[Any, Quantity("Hz", above=0, axis="device", optional=True)] = None
    """Sub-band of each device [Hz]; give this or `total_bandwidth`."""
    total_bandwidth: Annotated[float | None, Quantity("Hz", above=0, optional=True)] = None
    """Band shared by all [Hz]; split equally by designs that do not choose the split."""
    noise_density: Annotated[float, Quantity("W/Hz", above=0)] = 10 ** (-17.4) * 1e-3
    """Noise power spectral density N0 [W/Hz]; the default is -174 dBm/Hz."""
    interference: Annotated[Any, Quantity("W", axis="device")] = np.zeros(())
    """Interference power I_u [W]."""
    gain: Annotated[Any, Quantity(above=0, axis="device", optional=True)] = None
    """Mean channel power gain; give this, or `distance`, or `gain_file`."""
    distance: Annotated[Any, Quantity("m", above=0, axis="device", optional=True)] = None
    """Distance [m]; used for the gain where `gain` is not given, else for plots only."""
    reference_gain: Annotated[float, Quantity(above=0)] = 1e-3
    """Gain at 1 m of the path-loss law."""
    path_loss_exponent: Annotated[float, Quantity(above=0)] = 2.0
    """Exponent of the path-loss law gain = reference_gain x distance^-exponent."""
    gain_file: str | None = None
    """CSV file with one mean gain per line (or a column named `gain`)."""
    fading: Literal["rayleigh", "none"] = "rayleigh"
    """Small-scale fading; rates and errors are its averages."""
    packet_error: Literal["waterfall", "outage", "none"] = "waterfall"
    """Packet-error law: 1 - exp(-threshold/SNR) averaged over fading, SNR below a threshold, or no loss at all."""
    waterfall_threshold: Annotated[float, Quantity(above=0)] = 10**0.0023
    """Waterfall threshold, linear; the default is 0.023 dB."""
    outage_threshold: Annotated[float, Quantity(above=0)] = 1.0
    """SNR under which a packet is lost, linear (outage law)."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.bandwidth is None and self.total_bandwidth is None:
            raise InputError("radio.bandwidth: is missing (or give radio.total_bandwidth)")
        if self.fading == "none" and self.packet_error == "outage":
            raise InputError("radio.packet_error: 'outage' needs fading; without it the SNR never changes")
        if self.gain is None:
            if self.gain_file is not None:
                object.__setattr__(self, "gain", _read_gains(Path(self.gain_file)))
            elif self.distance is not None:
                gain = path_gain(self.distance, self.reference_gain, self.path_loss_exponent)
                object.__setattr__(self, "gain", gain)
            else:
                raise InputError("radio.gain: is missing (or give radio.distance or radio.gain_file)")
        return self

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers; a gain read from a file is given as numbers."""
        out = super().to_dict()
        out.pop("gain_file", None)
        return out

    def spread(self, size: int, axis: str = "device") -> Self:
        """Return a copy with every per-device field of shape ``[size]``; a total band is split equally."""
        radio = self
        if radio.bandwidth is None:
            assert radio.total_bandwidth is not None
            share = np.full(size, radio.total_bandwidth / size)
            share.setflags(write=False)
            radio = radio.model_copy(update={"bandwidth": share})
        return super(Radio, radio).spread(size, axis)


def _read_gains(path: Path) -> FloatArray:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = [row for row in csv.reader(file) if row and not row[0].lstrip().startswith("#")]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"radio.gain_file: cannot read {str(path)!r} ({error})") from None
    column = 0
    if rows and "gain" in [cell.strip() for cell in rows[0]]:
        column = [cell.strip() for cell in rows[0]].index("gain")
        rows = rows[1:]
    gains = []
    for line, row in enumerate(rows):
        try:
            gains.append(parse_quantity(row[column], "", f"radio.gain_file, device {line}"))
        except IndexError:
            raise InputError(f"radio.gain_file, device {line}: the row {row} has no column {column}") from None
    if not gains:
        raise InputError(f"radio.gain_file: {str(path)!r} holds no gains")
    array = np.array(gains)
    if np.any(~np.isfinite(array) | (array <= 0)):
        u = int(np.argmax(~np.isfinite(array) | (array <= 0)))
        raise InputError(f"radio.gain_file, device {u}: {array[u]!r} must be a finite number above 0")
    array.setflags(write=False)
    return array


class Learner(Section):
    """The model to train and how a pruning ratio acts on it.

    `pruning_ratio` is the fraction of (prunable) weights removed, everywhere. What follows from it is a law:

    * ``compute_law="linear"``: cycles fall with the kept fraction, the assumption of the literature. It holds for
      removed channels: a fraction c of channels removed on both sides leaves (1-c)^2 of weights and of cycles.
    * ``compute_law="mask"``: cycles do not fall at all, what a plain weight mask gives on ordinary hardware.
    * ``compute_law="affine"``: a share `compute_floor` of the cycles stays whatever is pruned, the rest falls with the
      kept fraction; the two laws above are its ends. What is measured of a granularity is put here: single weights
      near 1; weights in n of m patterns what the kernels for them gain, and the same for their backward pass or not;
      whole channels or layers the share of the layers and overheads that are never pruned. `affine_floor` of
      `jointopt.models.compression` finds the least floor above measured times.
    * The payload counts the kept weights at any granularity; which of them is said by `mask_encoding`, whose
      ``"bitmap"`` and ``"indices"`` are for single weights. A pattern of whole channels or layers is a few bits,
      hence ``"none"`` or part of `header_bits`.
    * ``mask_encoding``: index bits that travel with the kept values: ``"none"`` (the server rebuilds the mask),
      ``"bitmap"`` (one bit per weight) or ``"indices"`` (ceil(log2 V) bits per kept weight).
    * ``memory_law``: activations kept during training fall with the kept fraction (``"linear"``), with its
      square root (``"channels"``: weights are squared in channels, activations are not), or not (``"mask"``).
    """

    parameters: Annotated[int, Quantity(at_least=1, integer=True)]
    """Weights that can be pruned, V."""
    unpruned_parameters: Annotated[int, Quantity(integer=True)] = 0
    """Parameters that are never pruned but travel: biases, normalisation."""
    bits_min: Annotated[int, Quantity(at_least=1, at_most=32, integer=True)] = 1
    """Fewest bits per parameter."""
    bits_max: Annotated[int, Quantity(at_least=1, at_most=32, integer=True)] = 16
    """Most bits per parameter."""
    header_bits: Annotated[float, Quantity()] = _HEADER_BITS
    """Bits sent beside the parameters: the quantizer's range, and running statistics where the network has some."""
    pruning_ratio_max: Annotated[float, Quantity(below=1.0)] = 0.9
    """Largest pruning ratio."""
    batch_size: Annotated[int | None, Quantity(at_least=1, integer=True, optional=True)] = None
    """Samples per round and device; all of them (full batch) when not given."""
    activations: Annotated[float, Quantity()] = 0.0
    """Activation values kept per sample while training, for the memory figure."""
    compute_law: Literal["linear", "mask", "affine"] = "linear"
    """How cycles follow from the pruning ratio (an assumption, see the class)."""
    compute_floor: Annotated[float | None, Quantity(at_most=1.0, optional=True)] = None
    """Share of the cycles of a training step that pruning never removes, for the affine law."""
    memory_law: Literal["linear", "channels", "mask"] = "linear"
    """How activation memory follows from the pruning ratio."""
    mask_encoding: Literal["none", "bitmap", "indices"] = "none"
    """Index bits that travel with the kept values."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.bits_min > self.bits_max:
            raise InputError(f"learner.bits_min: {self.bits_min} is above bits_max {self.bits_max}")
        if self.compute_law == "affine" and self.compute_floor is None:
            raise InputError("learner.compute_floor: is missing; compute_law 'affine' needs it")
        if self.compute_law != "affine" and self.compute_floor is not None:
            raise InputError(
                f"learner.compute_floor: {self.compute_floor!r} is not used by compute_law '{self.compute_law}'; "
                "choose 'affine', or leave it out (None)"
            )
        return self

    def compute_factor(self, pruning_ratio: Any) -> Any:
        """Return the share of the dense model's cycles left at pruning ratios, any kind of array."""
        return compression.compute_factor(pruning_ratio, self.compute_law, self.compute_floor)


class Bound(Section):
    """Constants of the convergence bound (theory A1 to A5)."""

    smoothness: Annotated[float, Quantity(above=0)]
    """L: gradients are L-Lipschitz."""
    weight_norm_squared: Annotated[float, Quantity()]
    """D^2: bound of the squared weight norm on the trajectory."""
    mask_energy: Annotated[float, Quantity()]
    """M^2: gradient energy on pruned coordinates is at most pruning_ratio x M^2."""
    gradient_offset: Annotated[float, Quantity()]
    """zeta_1 of ||grad F_u||^2 <= zeta_1 + zeta_2 ||grad F||^2."""
    gradient_slope: Annotated[float, Quantity()] = 0.0
    """zeta_2 of ||grad F_u||^2 <= zeta_1 + zeta_2 ||grad F||^2."""
    quantizer_range: Annotated[Any, Quantity(above=0, axis="device")]
    """Delta_u: range (largest minus smallest entry) of what device u quantizes, shape [devices]."""
    gradient_variance: Annotated[float, Quantity()] = 0.0
    """sigma^2: variance of one sample's gradient; enters divided by the batch size."""
    initial_gap: Annotated[float, Quantity(above=0)] = 1.0
    """Delta_0 = F(w^0) - F*."""
    learning_rate: Annotated[float, Quantity(above=0)] = 0.1
    """Step size eta."""
    rounds: Annotated[int, Quantity(at_least=1, integer=True)] = 100
    """Rounds T over which the bound averages."""
    pruning_error: Literal["linear", "laplace", "measured"] = "linear"
    """Share of ||w||^2 removed by pruning: the ratio itself (worst case), the curve of Laplace weights, or measured."""
    pruning_curve_ratio: Annotated[Any, Quantity(at_most=1.0, axis="point", optional=True)] = None
    """Pruning ratios of the measured curve, increasing from 0 to at least `pruning_ratio_max`."""
    pruning_curve_error: Annotated[Any, Quantity(at_most=1.0, axis="point", optional=True)] = None
    """Shares of ||w||^2 removed at these ratios: from 0, never falling, convex; straight lines lie between them."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for name in ("pruning_curve_ratio", "pruning_curve_error"):
            given = getattr(self, name) is not None
            if self.pruning_error == "measured" and not given:
                raise InputError(f"bound.{name}: is missing; pruning_error 'measured' needs a curve")
            if self.pruning_error != "measured" and given:
                raise InputError(
                    f"bound.{name}: is not used by pruning_error '{self.pruning_error}'; choose 'measured', or leave "
                    "the curve out (None)"
                )
        if self.pruning_error == "measured":
            # what is refused names its field
            ConvexCurve(
                self.pruning_curve_ratio,
                self.pruning_curve_error,
                names=("bound.pruning_curve_ratio", "bound.pruning_curve_error"),
            )
        return self

    @property
    def pruning_law(self) -> compression.PruningLaw:
        """The law as `jointopt.models.compression.pruning_error` takes it: its name, or the measured curve."""
        if self.pruning_error == "measured":
            return known_curve(tuple(self.pruning_curve_ratio.tolist()), tuple(self.pruning_curve_error.tolist()))
        return self.pruning_error


class Generalization(Section):
    """What the gap between training and test gradients depends on (theory 3b, proposition 3)."""

    gradient_proxy: Annotated[Any, Quantity(axis="device")]
    """sigma_g^2: sub-Gaussian proxy of one sample's gradient in one coordinate."""
    mutual_information: Annotated[Any, Quantity("nat", axis="device")] = np.zeros(())
    """I_k: information that the dense model holds about device k's samples [nats]."""
    mutual_information_law: Literal["fixed", "proportional"] = "fixed"
    """Whether I_k stays as it is under pruning or falls with the kept fraction (an assumption)."""


class System(Scenario):
    """Devices, radio, learner and bound constants: a scenario, complete.

    Build one from sections, from TOML (`from_toml`), from a dictionary, sample one (`jointopt.systems.ltfl`), or
    derive one from a training task (`from_task`), whose sample and parameter counts are then the true ones.
    """

    devices: Devices
    radio: Radio
    learner: Learner
    bound: Bound
    generalization: Generalization | None = None
    """Needed by designs whose bound counts the generalization gap."""
    augmentation: Augmentation | None = None
    """Needed by designs that choose how many synthetic samples are made."""
    target: Target | None = None
    """Needed by designs that train to an accuracy."""
    tiers: Tiers | None = None
    """Needed by designs that aggregate at fixed times."""
    tradeoff: Tradeoff | None = None
    """Needed by designs that weigh latency against learning."""
    edges: Edges | None = None
    """Needed by designs with edge servers between devices and cloud."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        count = len(self)
        curve, most = self.bound.pruning_curve_ratio, self.learner.pruning_ratio_max
        # rounding of a curve's last point is no reason to refuse it: its last piece goes on
        if curve is not None and curve[-1] < most * (1.0 - FEASIBILITY_TOLERANCE):
            raise InputError(
                f"bound.pruning_curve_ratio[point {curve.size - 1}]: the curve ends at {float(curve[-1])!r}, below "
                f"learner.pruning_ratio_max {most!r}"
            )
        object.__setattr__(self, "radio", self.radio.spread(count))
        object.__setattr__(self, "bound", self.bound.spread(count))
        if self.generalization is not None:
            object.__setattr__(self, "generalization", self.generalization.spread(count))
        if self.edges is not None:
            object.__setattr__(self, "edges", self.edges.spread(count))
        if self.augmentation is not None:
            object.__setattr__(self, "augmentation", self.augmentation.spread(count))
            held = self.augmentation.class_counts.sum(axis=1)
            if np.any(held != self.devices.samples):
                u = int(np.argmax(held != self.devices.samples))
                raise InputError(
                    f"augmentation.class_counts[device {u}]: {held[u]:.0f} samples in all classes together, "
                    f"devices.samples has {self.devices.samples[u]:.0f}"
                )
        return self

    def __len__(self) -> int:
        return int(self.devices.samples.size)

    def __repr__(self) -> str:
        return (
            f"System({self.name!r}: {len(self)} devices, {int(self.devices.samples.sum())} samples, "
            f"{self.learner.parameters + self.learner.unpruned_parameters} parameters)"
        )

    __str__ = __repr__

    @property
    def weight(self) -> FloatArray:
        """pi_u = N_u / N, shape [devices]."""
        return self.devices.samples / self.devices.samples.sum()

    @property
    def batch(self) -> FloatArray:
        """Samples processed by each device in a round, shape [devices]: the batch, or everything it has."""
        if self.learner.batch_size is None:
            return self.devices.samples
        return np.minimum(self.devices.samples, float(self.learner.batch_size))

    @property
    def noise_power(self) -> FloatArray:
        """I_u + B_u N0 [W], shape [devices]."""
        assert self.radio.bandwidth is not None
        return self.radio.interference + self.radio.bandwidth * self.radio.noise_density

    def take(self, devices: Any) -> System:
        """Return the system of some devices only (index array or slice); the band is not split anew."""
        sections: dict[str, Any] = {"learner": self.learner, "name": self.name, "target": self.target}
        sections |= {"tiers": self.tiers, "tradeoff": self.tradeoff}
        if self.edges is not None:
            sections["edges"] = self.edges.take(devices)
        for name in ("devices", "radio", "bound", "generalization", "augmentation"):
            section = getattr(self, name)
            if section is None:
                continue
            changed: dict[str, Any] = {
                key: getattr(section, key)[devices]
                for key in section.fields_over("device")
                if getattr(section, key) is not None
            }
            if name == "devices":
                changed["count"] = None
            sections[name] = section.replace(**changed)
        return System(**sections)

    def augmented(self, level: Any) -> System:
        """Return the system after augmentation at a level theta: more samples of the rarer classes on every device.

        Parameters
        ----------
        level : float or array, shape [devices]
            From 0 to 1, see `jointopt.models.augmentation.augmented_counts`.

        Raises
        ------
        InputError
            When the system has no section `augmentation`, or for a level that is not from 0 to 1.
        """
        if self.augmentation is None:
            raise InputError("augmentation: this scenario has no such section, so nothing is known of its classes")
        try:
            chosen = np.broadcast_to(np.asarray(level, dtype=np.float64), (len(self),))
        except (TypeError, ValueError):
            raise InputError(
                f"augmentation_level: expected a number or one per device ({len(self)}), got {level!r}"
            ) from None
        bad = ~((chosen >= 0.0) & (chosen <= 1.0))
        if np.any(bad):
            u = int(np.argmax(bad))
            raise InputError(f"augmentation_level[device {u}]: {float(chosen[u])!r} must lie between 0 and 1")
        counts = augmented_counts(self.augmentation.class_counts, chosen)
        # both at once: they must agree
        return self.with_(samples=counts.sum(axis=1), class_counts=counts)

    def _derived(self, section: str, changes: dict[str, Any]) -> None:
        if section != "radio":
            return
        for derived, causes in (
            ("gain", {"distance", "path_loss_exponent", "reference_gain", "gain_file"}),
            ("bandwidth", {"total_bandwidth"}),
        ):
            changed = causes & set(changes)
            if not changed or derived in changes:
                continue
            if changed <= {"path_loss_exponent", "reference_gain"} and self.radio.distance is None:
                raise InputError(f"radio.{min(changed)}: has no effect without radio.distance")
            changes[derived] = None

    @classmethod
    def _place(cls, section: str, fields: dict[str, Any], folder: Path) -> None:
        if section == "radio" and isinstance(fields.get("gain_file"), str):
            fields["gain_file"] = str(folder / fields["gain_file"])

    @classmethod
    def from_task(
        cls,
        task: Any,
        *,
        template: System | None = None,
        seed: int = 0,
        design: Literal["ltfl", "feel", "feddpq"] = "ltfl",
    ) -> System:
        """Derive a system from a training task: its true sample, parameter and batch counts.

        Parameters
        ----------
        task : Task
            Anything with `samples` [devices], `parameters`, `unpruned_parameters`, `batch_size`, `name`, `buffers`
            where the network has running statistics, and `class_counts` where the template has `augmentation`.
        template : System, optional
            Radio, processors, budgets and constants to keep; sampled from `seed` when not given.
        seed : int
            Seed of what is sampled.
        design : {"ltfl", "feel", "feddpq"}
            For which design to sample (`jointopt.systems.ltfl` and the others) when there is no template.

        Raises
        ------
        InputError
            For an unknown design, a template for another number of devices, or data without known constants.
        """
        if getattr(task, "online", False):
            raise InputError("from_task: an OnlineTask is about vehicles in the air, whose system it knows")
        if design not in ("ltfl", "feel", "feddpq"):
            raise InputError(f"design: unknown '{design}'{nearest(str(design), ['ltfl', 'feel', 'feddpq'])}")
        sizes: dict[str, Any] = {
            "samples": np.asarray(task.samples, dtype=np.float64),
            "parameters": int(task.parameters),
            "unpruned_parameters": int(task.unpruned_parameters),
        }
        if design == "feddpq" if template is None else template.augmentation is not None:
            sizes["class_counts"] = np.asarray(task.class_counts, dtype=np.float64)
        if template is None:
            from jointopt import systems

            if task.name not in systems.PRESETS:
                measured = "**measure_constants(task)"
                if design == "feel":
                    measured += ", **measure_generalization(task)"
                raise InputError(
                    f"task: no bound constants were measured for data '{task.name}'; give template=..., for example "
                    f"systems.{design}(devices={len(sizes['samples'])}).with_({measured})"
                )
            sample = getattr(systems, design)
            made = sample(devices=len(sizes["samples"]), seed=seed, data=task.name, batch_size=task.batch_size, **sizes)
            return _with_buffers(made, task)
        if len(template) != len(sizes["samples"]):
            raise InputError(
                f"template: is for {len(template)} devices, the task has {len(sizes['samples'])} partitions"
            )
        return _with_buffers(template.with_(**sizes, batch_size=task.batch_size), task)


def _with_buffers(system: System, task: Any) -> System:
    """Count a network's running statistics, float32 each, beside the parameters of every payload."""
    buffers = int(getattr(task, "buffers", 0))
    return system.with_(header_bits=_HEADER_BITS + 32 * buffers) if buffers else system

"""The physical world: devices, radio, the model to train, and the constants of its convergence bound.

Everything is SI and linear, frozen, and validated on construction. Quantities that differ between devices are
arrays of shape ``[devices]``; a single number is spread over all devices. Strings are read as quantities
(``"23 dBm"``), so the same classes serve Python, TOML and JSON.
"""

from __future__ import annotations

import csv
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, model_validator
from pydantic_core import core_schema

from jointopt.errors import InputError, nearest
from jointopt.files import read_json
from jointopt.models.channel import path_gain
from jointopt.units import parse_quantity

__all__ = ["FEASIBILITY_TOLERANCE", "Bound", "Devices", "FloatArray", "Learner", "Radio", "System"]

FloatArray = npt.NDArray[np.float64]

FEASIBILITY_TOLERANCE = 1e-9
"""A budget or constraint is kept when it is exceeded by at most this share of it, in solvers and ledger alike."""


def _show(value: Any) -> str:
    return repr(value.item()) if isinstance(value, np.generic) else repr(value)


@dataclass(frozen=True)
class Quantity:
    """Declares one field: its SI unit and range, and whether it is an array over devices."""

    unit: str = ""
    above: float | None = None
    at_least: float | None = 0.0
    at_most: float | None = None
    below: float | None = None
    integer: bool = False
    array: bool = False
    optional: bool = False

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> core_schema.CoreSchema:
        return core_schema.with_info_plain_validator_function(self._validate)

    def _validate(self, value: Any, info: ValidationInfo) -> Any:
        field = str(info.field_name)
        if value is None and self.optional:
            return None
        number = self._numbers(value, field)
        self._check(number, field)
        if self.array:
            number = np.array(number, dtype=np.float64)
            number.setflags(write=False)
            return number
        return int(number) if self.integer else float(number)

    def _numbers(self, value: Any, field: str) -> FloatArray:
        if isinstance(value, str):
            return np.asarray(parse_quantity(value, self.unit, field))
        if isinstance(value, (list, tuple)):
            if not self.array:
                raise InputError(f"{field}: expected one number, got a list of {len(value)}")
            value = [
                parse_quantity(v, self.unit, f"{field}[device {i}]") if isinstance(v, str) else v
                for i, v in enumerate(value)
            ]
        if getattr(value, "dtype", None) == np.bool_ or (
            isinstance(value, (list, tuple)) and any(isinstance(v, (bool, np.bool_)) or v is None for v in value)
        ):
            raise InputError(f"{field}: expected numbers, got {value!r}")
        if isinstance(value, (bool, dict)):
            raise InputError(f"{field}: expected numbers, got {value!r}")
        try:
            array = np.asarray(value, dtype=np.float64)
        except (TypeError, ValueError, OverflowError):
            raise InputError(f"{field}: expected numbers, got {value!r}") from None
        if array.ndim > (1 if self.array else 0):
            want = "one number per device" if self.array else "one number"
            raise InputError(f"{field}: expected {want}, got an array of shape {array.shape}")
        return array

    def _check(self, number: FloatArray, field: str) -> None:
        rules = [(~np.isfinite(number), "must be finite")]
        if self.above is not None:
            rules.append((number <= self.above, f"must be above {self.above:g}"))
        elif self.at_least is not None:
            rules.append((number < self.at_least, f"must be at least {self.at_least:g}"))
        if self.at_most is not None:
            rules.append((number > self.at_most, f"must be at most {self.at_most:g}"))
        if self.below is not None:
            rules.append((number >= self.below, f"must be below {self.below:g}"))
        if self.integer:
            rules.append((number != np.rint(number), "must be a whole number"))
        for bad, rule in rules:
            if np.any(bad):
                unit = f" {self.unit}" if self.unit else ""
                if number.ndim == 0:
                    raise InputError(f"{field}: {_show(number[()])}{unit} {rule}")
                device = int(np.argmax(bad))
                raise InputError(f"{field}[device {device}]: {_show(number[device])}{unit} {rule}")


class Section(BaseModel):
    """Base of the parts of a system: frozen, no unknown keys, errors as `InputError`."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True, validate_default=True)

    def __init__(self, **fields: Any) -> None:
        unknown = [name for name in fields if name not in type(self).model_fields]
        if unknown:
            section = type(self).__name__.lower()
            raise InputError(f"{section}: unknown key '{unknown[0]}'{nearest(unknown[0], type(self).model_fields)}")
        try:
            super().__init__(**fields)
        except ValidationError as error:
            raise _input_error(type(self).__name__.lower(), error) from None

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers and lists, SI, without the fields that are not set."""
        out = {}
        for name in type(self).model_fields:
            value = getattr(self, name)
            if value is not None:
                out[name] = value.tolist() if isinstance(value, np.ndarray) else value
        return out

    def replace(self, **changes: Any) -> Self:
        """Return a copy with some fields changed, validated anew."""
        fields = {name: getattr(self, name) for name in type(self).model_fields}
        return type(self)(**{**{k: v for k, v in fields.items() if v is not None}, **changes})

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return all(np.array_equal(getattr(self, name), getattr(other, name)) for name in type(self).model_fields)

    __hash__ = None  # type: ignore[assignment]

    def _spread(self, devices: int) -> Self:
        """Return a copy whose per-device fields all have shape ``[devices]``."""
        changed = {}
        for name, info in type(self).model_fields.items():
            value = getattr(self, name)
            if value is None or not any(isinstance(m, Quantity) and m.array for m in info.metadata):
                continue
            if value.ndim == 0:
                value = np.full(devices, float(value))
                value.setflags(write=False)
                changed[name] = value
            elif value.shape != (devices,):
                section = type(self).__name__.lower()
                raise InputError(f"{section}.{name}: has {value.size} values for {devices} devices")
        return self.model_copy(update=changed) if changed else self


def _input_error(section: str, error: ValidationError) -> InputError:
    lines = []
    for item in error.errors():
        where = ".".join(str(part) for part in item["loc"])
        cause = item.get("ctx", {}).get("error")
        if isinstance(cause, InputError):
            text = str(cause)
            # A nested section has put its own name in front already.
            known = text.split(":")[0].split(".")[0] in ("devices", "radio", "learner", "bound", "system")
            lines.append(text if known else f"{section}.{text}" if where else f"{section}: {text}")
        elif item["type"] == "missing":
            lines.append(f"{section}.{where}: is missing")
        else:
            message = item["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
            lines.append(f"{section}.{where}: {item['input']!r} should be {message}")
    return InputError("; ".join(lines))


class Devices(Section):
    """The devices: data, processor, power range, budgets per round. Arrays of shape ``[devices]``."""

    samples: Annotated[Any, Quantity(at_least=1, integer=True, array=True)]
    """Training samples held, N_u."""
    cycles_per_sample: Annotated[Any, Quantity(above=0, array=True)]
    """Processor cycles to train on one sample with the dense model, c0."""
    frequency: Annotated[Any, Quantity("Hz", above=0, array=True)]
    """Processor frequency f_u [cycle/s]."""
    capacitance: Annotated[Any, Quantity("J*s**2", array=True)]
    """Effective capacitance k_c [J s^2/cycle^3]: energy = k_c f^2 x cycles."""
    power_min: Annotated[Any, Quantity("W", above=0, array=True)]
    """Least transmit power [W]."""
    power_max: Annotated[Any, Quantity("W", above=0, array=True)]
    """Greatest transmit power [W]."""
    delay_budget: Annotated[Any, Quantity("s", above=0, array=True)]
    """Longest allowed round [s]: compute plus upload."""
    energy_budget: Annotated[Any, Quantity("J", above=0, array=True)]
    """Most energy allowed in a round [J]: compute plus upload."""
    count: Annotated[int | None, Quantity(at_least=1, integer=True, optional=True)] = None
    """Number of devices; needed only when every array is given as one number."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        sizes = {
            name: getattr(self, name).size
            for name, info in type(self).model_fields.items()
            if isinstance(getattr(self, name), np.ndarray) and getattr(self, name).ndim == 1
        }
        empty = [name for name, size in sizes.items() if size == 0]
        if empty:
            raise InputError(f"devices.{empty[0]}: the list of devices is empty")
        if self.count is None and not sizes:
            raise InputError("devices.count: is needed when no field is a list over devices")
        count = self.count if self.count is not None else max(sizes.values())
        for name, size in sizes.items():
            if size != count:
                raise InputError(f"devices.{name}: has {size} values for {count} devices")
        spread = self._spread(count)
        object.__setattr__(self, "__dict__", {**spread.__dict__, "count": count})
        if np.any(self.power_min > self.power_max):
            u = int(np.argmax(self.power_min > self.power_max))
            raise InputError(
                f"devices.power_min[device {u}]: {self.power_min[u]:g} W is above power_max {self.power_max[u]:g} W"
            )
        return self


class Radio(Section):
    """The uplink. Per-device fields have shape ``[devices]``."""

    bandwidth: Annotated[Any, Quantity("Hz", above=0, array=True, optional=True)] = None
    """Sub-band of each device [Hz]; give this or `total_bandwidth`."""
    total_bandwidth: Annotated[float | None, Quantity("Hz", above=0, optional=True)] = None
    """Band shared by all [Hz]; split equally by designs that do not choose the split."""
    noise_density: Annotated[float, Quantity("W/Hz", above=0)] = 10 ** (-17.4) * 1e-3
    """Noise power spectral density N0 [W/Hz]; the default is -174 dBm/Hz."""
    interference: Annotated[Any, Quantity("W", array=True)] = np.zeros(())
    """Interference power I_u [W]."""
    gain: Annotated[Any, Quantity(above=0, array=True, optional=True)] = None
    """Mean channel power gain; give this, or `distance`, or `gain_file`."""
    distance: Annotated[Any, Quantity("m", above=0, array=True, optional=True)] = None
    """Distance [m]; used for the gain where `gain` is not given, else for plots only."""
    reference_gain: Annotated[float, Quantity(above=0)] = 1e-3
    """Gain at 1 m of the path-loss law."""
    path_loss_exponent: Annotated[float, Quantity(above=0)] = 2.0
    """Exponent of the path-loss law gain = reference_gain x distance^-exponent."""
    gain_file: str | None = None
    """CSV file with one mean gain per line (or a column named `gain`)."""
    fading: Literal["rayleigh", "none"] = "rayleigh"
    """Small-scale fading; rates and errors are its averages."""
    packet_error: Literal["waterfall", "outage"] = "waterfall"
    """Packet-error law: 1 - exp(-threshold/SNR) averaged over fading, or SNR below a threshold."""
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

    def _spread(self, devices: int) -> Self:
        radio = self
        if radio.bandwidth is None:
            assert radio.total_bandwidth is not None
            share = np.full(devices, radio.total_bandwidth / devices)
            share.setflags(write=False)
            radio = radio.model_copy(update={"bandwidth": share})
        return super(Radio, radio)._spread(devices)


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
    header_bits: Annotated[float, Quantity()] = 64.0
    """Bits sent beside the parameters (the quantizer's range)."""
    pruning_ratio_max: Annotated[float, Quantity(below=1.0)] = 0.9
    """Largest pruning ratio."""
    batch_size: Annotated[int | None, Quantity(at_least=1, integer=True, optional=True)] = None
    """Samples per round and device; all of them (full batch) when not given."""
    activations: Annotated[float, Quantity()] = 0.0
    """Activation values kept per sample while training, for the memory figure."""
    compute_law: Literal["linear", "mask"] = "linear"
    """How cycles follow from the pruning ratio (an assumption, see the class)."""
    memory_law: Literal["linear", "channels", "mask"] = "linear"
    """How activation memory follows from the pruning ratio."""
    mask_encoding: Literal["none", "bitmap", "indices"] = "none"
    """Index bits that travel with the kept values."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.bits_min > self.bits_max:
            raise InputError(f"learner.bits_min: {self.bits_min} is above bits_max {self.bits_max}")
        return self


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
    quantizer_range: Annotated[Any, Quantity(above=0, array=True)]
    """Delta_u: range (largest minus smallest entry) of what device u quantizes, shape [devices]."""
    gradient_variance: Annotated[float, Quantity()] = 0.0
    """sigma^2: variance of one sample's gradient; enters divided by the batch size."""
    initial_gap: Annotated[float, Quantity(above=0)] = 1.0
    """Delta_0 = F(w^0) - F*."""
    learning_rate: Annotated[float, Quantity(above=0)] = 0.1
    """Step size eta."""
    rounds: Annotated[int, Quantity(at_least=1, integer=True)] = 100
    """Rounds T over which the bound averages."""
    pruning_error: Literal["linear", "laplace"] = "linear"
    """Share of ||w||^2 removed by pruning: the ratio itself (worst case) or the curve of Laplace weights."""


class System(Section):
    """Devices, radio, learner and bound constants: a scenario, complete.

    Build one from sections, from TOML (`from_toml`), from a dictionary, sample one (`jointopt.systems.ltfl`), or
    derive one from a training task (`from_task`), whose sample and parameter counts are then the true ones.
    """

    devices: Devices
    radio: Radio
    learner: Learner
    bound: Bound
    name: str = "scenario"

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        count = len(self)
        object.__setattr__(self, "radio", self.radio._spread(count))
        object.__setattr__(self, "bound", self.bound._spread(count))
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
        sections: dict[str, Any] = {"learner": self.learner, "name": self.name}
        for name in ("devices", "radio", "bound"):
            section = getattr(self, name)
            changed = {
                key: value[devices]
                for key, value in section.__dict__.items()
                if isinstance(value, np.ndarray) and value.ndim == 1
            }
            if name == "devices":
                changed["count"] = None
            sections[name] = section.replace(**changed)
        return System(**sections)

    def with_(self, **changes: Any) -> System:
        """Return a copy with fields changed by name, whichever section holds them.

        >>> system.with_(delay_budget="0.5 s", bits_max=12)  # doctest: +SKIP
        """
        sections = {
            "devices": self.devices,
            "radio": self.radio,
            "learner": self.learner,
            "bound": self.bound,
        }
        owners = {key: name for name, section in sections.items() for key in type(section).model_fields}
        grouped: dict[str, dict[str, Any]] = {}
        for key, value in changes.items():
            if key not in owners:
                raise InputError(f"system: unknown field '{key}'{nearest(key, owners)}")
            grouped.setdefault(owners[key], {})[key] = value
        radio = grouped.get("radio", {})
        # a changed cause replaces what was derived from it
        for derived, causes in (
            ("gain", {"distance", "path_loss_exponent", "reference_gain", "gain_file"}),
            ("bandwidth", {"total_bandwidth"}),
        ):
            changed = causes & set(radio)
            if not changed or derived in radio:
                continue
            if changed <= {"path_loss_exponent", "reference_gain"} and self.radio.distance is None:
                raise InputError(f"radio.{min(changed)}: has no effect without radio.distance")
            radio[derived] = None
        new: dict[str, Any] = {name: section.replace(**grouped.get(name, {})) for name, section in sections.items()}
        return System(**new, name=self.name)

    def to_dict(self) -> dict[str, Any]:
        """Return every number, SI, nested by section; `from_dict` reads it back."""
        sections = ("devices", "radio", "learner", "bound")
        return {"name": self.name, **{name: getattr(self, name).to_dict() for name in sections}}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], *, folder: Path | None = None) -> System:
        """Build a system from nested tables; relative `gain_file` paths start at `folder`.

        Raises
        ------
        InputError
            Naming the first unknown key, missing or bad field.
        """
        if not isinstance(data, Mapping):
            raise InputError(f"system: expected tables of fields, got {type(data).__name__}")
        unknown = [key for key in data if key not in cls.model_fields]
        if unknown:
            raise InputError(f"system: unknown key '{unknown[0]}'{nearest(unknown[0], cls.model_fields)}")
        sections: dict[str, Any] = {}
        for name, kind in (("devices", Devices), ("radio", Radio), ("learner", Learner), ("bound", Bound)):
            if name not in data:
                raise InputError(f"system: the table [{name}] is missing")
            if not isinstance(data[name], Mapping):
                raise InputError(f"{name}: expected a table of fields, got {data[name]!r}")
            fields = dict(data[name])
            if name == "radio" and folder is not None and isinstance(fields.get("gain_file"), str):
                fields["gain_file"] = str(folder / fields["gain_file"])
            sections[name] = kind(**fields)
        return cls(**sections, name=data.get("name", "scenario"))

    @classmethod
    def from_toml(cls, path: str | Path) -> System:
        """Read a scenario written by a person: quantities as strings with units, or plain SI numbers."""
        path = Path(path)
        try:
            data = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{path}: cannot be read ({error})") from None
        except tomllib.TOMLDecodeError as error:
            raise InputError(f"{path}: is not valid TOML ({error})") from None
        return cls.from_dict({"name": path.stem, **data}, folder=path.parent)

    @classmethod
    def from_json(cls, path: str | Path) -> System:
        """Read a scenario from JSON: a dictionary as `to_dict` makes it, or a saved result that holds one."""
        path = Path(path)
        data = read_json(path)
        if isinstance(data, dict) and "scenario" in data:
            data = data["scenario"]
        return cls.from_dict(data, folder=path.parent)

    @classmethod
    def from_task(cls, task: Any, *, template: System | None = None, seed: int = 0) -> System:
        """Derive a system from a training task: its true sample, parameter and batch counts.

        Parameters
        ----------
        task : Task
            Anything with `samples` [devices], `parameters`, `unpruned_parameters`, `batch_size` and `name`.
        template : System, optional
            Radio, processors, budgets and constants to keep; sampled from `seed` when not given.
        """
        sizes: dict[str, Any] = {
            "samples": np.asarray(task.samples, dtype=np.float64),
            "parameters": int(task.parameters),
            "unpruned_parameters": int(task.unpruned_parameters),
        }
        if template is None:
            from jointopt import systems

            if task.name not in systems.PRESETS:
                raise InputError(
                    f"task: no bound constants were measured for data '{task.name}'; give template=..., for example "
                    f"systems.ltfl(devices={len(sizes['samples'])}).with_(**measure_constants(task))"
                )
            return systems.ltfl(
                devices=len(sizes["samples"]), seed=seed, data=task.name, batch_size=task.batch_size, **sizes
            )
        if len(template) != len(sizes["samples"]):
            raise InputError(
                f"template: is for {len(template)} devices, the task has {len(sizes['samples'])} partitions"
            )
        return template.with_(**sizes, batch_size=task.batch_size)

"""What every scenario is made of: validated quantities, sections of them, and tables of sections.

Everything is SI and linear, frozen, and validated on construction. Strings are read as quantities (``"23 dBm"``), so
the same classes serve Python, TOML and JSON.
"""

from __future__ import annotations

import tomllib
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self, get_args

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo
from pydantic_core import core_schema

from jointopt.errors import InputError, nearest
from jointopt.files import read_json
from jointopt.units import parse_quantity

__all__ = ["FEASIBILITY_TOLERANCE", "FloatArray", "Quantity", "Scenario", "Section"]

FloatArray = npt.NDArray[np.float64]

FEASIBILITY_TOLERANCE = 1e-9
"""A budget or constraint is kept when it is exceeded by at most this share of it, in solvers and ledger alike."""


def _show(value: Any) -> str:
    return repr(value.item()) if isinstance(value, np.generic) else repr(value)


@dataclass(frozen=True)
class Quantity:
    """Declares one field: its SI unit and range, and the axis (``"device"``, ``"layer"``, ...) it is an array over.

    With `inner` (``"class"``) it is a table: one row per entry of the axis, all of one length. Several names
    (``("class", "coordinate")``) make the rows tables themselves.
    """

    unit: str = ""
    above: float | None = None
    at_least: float | None = 0.0
    at_most: float | None = None
    below: float | None = None
    integer: bool = False
    axis: str | None = None
    inner: str | tuple[str, ...] | None = None
    optional: bool = False

    @property
    def axes(self) -> tuple[str, ...]:
        """Names of all axes, the outer one first."""
        inner = (self.inner,) if isinstance(self.inner, str) else self.inner or ()
        return inner if self.axis is None else (self.axis, *inner)

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> core_schema.CoreSchema:
        return core_schema.with_info_plain_validator_function(self._validate)

    def _validate(self, value: Any, info: ValidationInfo) -> Any:
        field = str(info.field_name)
        if value is None and self.optional:
            return None
        number = self._numbers(value, field)
        self._check(number, field)
        if self.axis is not None:
            number = np.array(number, dtype=np.float64)
            number.setflags(write=False)
            return number
        return int(number) if self.integer else float(number)

    def _numbers(self, value: Any, field: str) -> FloatArray:
        if isinstance(value, str):
            return np.asarray(parse_quantity(value, self.unit, field))
        if isinstance(value, (list, tuple)):
            if self.axis is None:
                raise InputError(f"{field}: expected one number, got a list of {len(value)}")
            value = [
                parse_quantity(v, self.unit, f"{field}[{self.axis} {i}]") if isinstance(v, str) else v
                for i, v in enumerate(value)
            ]
            if self.inner is not None:
                self._check_rows(value, field, self.axes)
        kind = getattr(getattr(value, "dtype", None), "kind", "")
        if kind in ("b", "U", "S") or (
            isinstance(value, (list, tuple)) and any(isinstance(v, (bool, np.bool_)) or v is None for v in value)
        ):
            raise InputError(f"{field}: expected numbers, got {value!r}")
        if isinstance(value, (bool, dict)):
            raise InputError(f"{field}: expected numbers, got {value!r}")
        try:
            array = np.asarray(value, dtype=np.float64)
        except (TypeError, ValueError, OverflowError):
            raise InputError(f"{field}: expected numbers, got {value!r}") from None
        if self.inner is not None:
            if array.ndim != len(self.axes) or array.size == 0:
                rows = [f"a row per {name}" for name in self.axes[:-1]]
                want = " with ".join([*rows, f"a number per {self.axes[-1]}"])
                raise InputError(f"{field}: expected {want}, got an array of shape {array.shape}")
        elif array.ndim > (0 if self.axis is None else 1):
            want = "one number" if self.axis is None else f"one number per {self.axis}"
            raise InputError(f"{field}: expected {want}, got an array of shape {array.shape}")
        return array

    def _check_rows(self, rows: Any, field: str, axes: tuple[str, ...], before: str = "") -> None:
        """Refuse what is no table of numbers: rows of different lengths, or entries that are none."""
        axis, inner = axes[:2]
        for i, row in enumerate(rows):
            at = f"{before}{axis} {i}"
            where = f"{field}[{at}]"
            if not (isinstance(row, (list, tuple)) or (isinstance(row, np.ndarray) and row.ndim > 0)):
                raise InputError(
                    f"{where}: expected a {'number' if len(axes) == 2 else 'row'} per {inner}, got {row!r}"
                )
            if len(row) != len(rows[0]):
                raise InputError(f"{where}: has {len(row)} values, {axis} 0 has {len(rows[0])}")
            if len(axes) > 2:
                self._check_rows(row, field, axes[1:], f"{at}, ")
            elif any(isinstance(v, (bool, np.bool_, str)) or v is None for v in row):
                raise InputError(f"{where}: expected numbers, got {row!r}")

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
                at = tuple(int(i) for i in np.argwhere(bad)[0])
                where = ", ".join(f"{name} {i}" for name, i in zip(self.axes, at, strict=False))
                raise InputError(f"{field}[{where}]: {_show(number[at])}{unit} {rule}")


class Section(BaseModel):
    """Base of the parts of a system: frozen, no unknown keys, errors as `InputError`."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True, validate_default=True)

    title: ClassVar[str] = ""
    """Name of the table in files and errors; the class's own name in lower case when not given."""

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        if "title" not in cls.__dict__:
            cls.title = cls.__name__.lower()
        _NAMES.add(cls.title)

    def __init__(self, **fields: Any) -> None:
        unknown = [name for name in fields if name not in type(self).model_fields]
        if unknown:
            section = type(self).title
            raise InputError(f"{section}: unknown key '{unknown[0]}'{nearest(unknown[0], type(self).model_fields)}")
        try:
            super().__init__(**fields)
        except ValidationError as error:
            raise _input_error(type(self).title, error) from None

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

    @classmethod
    def fields_over(cls, axis: str) -> list[str]:
        """Names of the fields that are arrays over an axis."""
        return [
            name
            for name, info in cls.model_fields.items()
            if any(isinstance(m, Quantity) and m.axis == axis for m in info.metadata)
        ]

    def spread(self, size: int, axis: str = "device") -> Self:
        """Return a copy whose fields over an axis all have shape ``[size]``.

        Raises
        ------
        InputError
            For a field with another number of values.
        """
        changed = {}
        for name in self.fields_over(axis):
            value = getattr(self, name)
            if value is None:
                continue
            if value.ndim == 0:
                value = np.full(size, float(value))
                value.setflags(write=False)
                changed[name] = value
            elif len(value) != size:
                section = type(self).title
                what = "values" if value.ndim == 1 else "rows"
                raise InputError(f"{section}.{name}: has {len(value)} {what} for {size} {axis}s")
        return self.model_copy(update=changed) if changed else self

    def common_size(self, axis: str, count: int | None = None) -> int:
        """Return the length of an axis from the fields that have one.

        Raises
        ------
        InputError
            When fields are empty or disagree, or none is a list and `count` is not given.
        """
        section = type(self).title
        sizes = {
            name: len(getattr(self, name))
            for name in self.fields_over(axis)
            if getattr(self, name) is not None and getattr(self, name).ndim > 0
        }
        empty = [name for name, size in sizes.items() if size == 0]
        if empty:
            raise InputError(f"{section}.{empty[0]}: the list of {axis}s is empty")
        if count is None and not sizes:
            raise InputError(f"{section}.count: is needed when no field is a list over {axis}s")
        count = count if count is not None else max(sizes.values())
        for name, size in sizes.items():
            if size != count:
                raise InputError(f"{section}.{name}: has {size} values for {count} {axis}s")
        return count


_NAMES: set[str] = {"system"}
"""Names of all sections: errors that begin with one already say where."""


def _input_error(section: str, error: ValidationError) -> InputError:
    lines = []
    for item in error.errors():
        where = ".".join(str(part) for part in item["loc"])
        cause = item.get("ctx", {}).get("error")
        if isinstance(cause, InputError):
            text = str(cause)
            # A nested section has put its own name in front already.
            known = text.split(":")[0].split(".")[0] in _NAMES
            lines.append(text if known else f"{section}.{text}" if where else f"{section}: {text}")
        elif item["type"] == "missing":
            lines.append(f"{section}.{where}: is missing")
        else:
            message = item["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
            lines.append(f"{section}.{where}: {item['input']!r} should be {message}")
    return InputError("; ".join(lines))


class Scenario(Section):
    """Named sections that belong together: everything a design needs to know about the world."""

    name: str = "scenario"

    @abstractmethod
    def __len__(self) -> int:
        """Number of devices."""

    @classmethod
    def sections(cls) -> dict[str, type[Section]]:
        """Return the sections by name, those that may be left out included."""
        found = {}
        for name, info in cls.model_fields.items():
            for kind in get_args(info.annotation) or (info.annotation,):
                if isinstance(kind, type) and issubclass(kind, Section):
                    found[name] = kind
        return found

    def _given(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.sections() if getattr(self, name) is not None}

    def _derived(self, section: str, changes: dict[str, Any]) -> None:
        """Drop what was derived from a changed cause."""

    def with_(self, **changes: Any) -> Self:
        """Return a copy with fields changed by name, whichever section holds them.

        >>> system.with_(delay_budget="0.5 s", bits_max=12)  # doctest: +SKIP
        """
        given = self._given()
        owners = {key: name for name, kind in self.sections().items() for key in kind.model_fields}
        grouped: dict[str, dict[str, Any]] = {}
        for key, value in changes.items():
            if key not in owners:
                raise InputError(f"system: unknown field '{key}'{nearest(key, owners)}")
            if owners[key] not in given:
                raise InputError(f"{owners[key]}.{key}: this scenario has no section '{owners[key]}' to change")
            grouped.setdefault(owners[key], {})[key] = value
        for name, fields in grouped.items():
            self._derived(name, fields)
        return type(self)(
            **{name: section.replace(**grouped.get(name, {})) for name, section in given.items()}, name=self.name
        )

    def to_dict(self) -> dict[str, Any]:
        """Return every number, SI, nested by section; `from_dict` reads it back."""
        return {"name": self.name, **{name: section.to_dict() for name, section in self._given().items()}}

    @classmethod
    def _place(cls, section: str, fields: dict[str, Any], folder: Path) -> None:
        """Let relative file names in a section start at the scenario's folder."""

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], *, folder: Path | None = None) -> Self:
        """Build a scenario from nested tables; relative file names in it start at `folder`.

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
        for name, kind in cls.sections().items():
            if name not in data:
                if cls.model_fields[name].is_required():
                    raise InputError(f"system: the table [{name}] is missing")
                continue
            if not isinstance(data[name], Mapping):
                raise InputError(f"{name}: expected a table of fields, got {data[name]!r}")
            fields = dict(data[name])
            if folder is not None:
                cls._place(name, fields, folder)
            sections[name] = kind(**fields)
        return cls(**sections, name=data.get("name", "scenario"))

    @classmethod
    def from_toml(cls, path: str | Path) -> Self:
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
    def from_json(cls, path: str | Path) -> Self:
        """Read a scenario from JSON: a dictionary as `to_dict` makes it, or a saved result that holds one."""
        path = Path(path)
        data = read_json(path)
        if isinstance(data, dict) and "scenario" in data:
            data = data["scenario"]
        return cls.from_dict(data, folder=path.parent)

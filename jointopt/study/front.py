"""What a search for trade-offs returns: named objectives, the points that nothing beats, and what is proved of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import moocore
import numpy as np
import numpy.typing as npt

from jointopt._version import __version__
from jointopt.decision import Decision
from jointopt.errors import InputError, nearest
from jointopt.files import read_json, write_json
from jointopt.problem import Conflict, Evaluation, Problem
from jointopt.problems.terms import Term
from jointopt.result import Result
from jointopt.system import FloatArray

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

__all__ = ["FRONT_SCHEMA", "Front", "Goal", "compare_fronts", "goals_of", "nondominated", "reference_of"]

FRONT_SCHEMA = "jointopt.front/1"

MARGIN = 0.1
"""Share of its range by which the reference point lies beyond the worst value of every objective."""

_UNITS = {
    "delay": "s",
    "energy": "J",
    "power": "W",
    "bandwidth": "Hz",
    "frequency": "Hz",
    "rate": "bit/s",
    "bits": "bit",
    "memory": "B",
}


@dataclass(frozen=True)
class Goal:
    """One of the objectives: what the problem minimises (`quantity` None), or a quantity over the devices."""

    quantity: str | None = None
    over: str = "value"

    @property
    def name(self) -> str:
        """What the objective is called in tables: ``objective``, ``worst delay``, ``total energy``."""
        if self.quantity is None:
            return "objective"
        return self.quantity if self.over == "value" else f"{self.over} {self.quantity}"

    def values(self, evaluation: Evaluation) -> FloatArray:
        """Return the objective's value, of the batch's shape ``[...]``."""
        if self.quantity is None:
            return np.asarray(evaluation.objective, dtype=np.float64)
        value = np.asarray(evaluation.quantities[self.quantity], dtype=np.float64)
        if self.over == "value":
            return value
        found: FloatArray = value.max(axis=-1) if self.over == "worst" else value.sum(axis=-1)
        return found

    def unit(self, problem: Problem) -> str:
        """Return the SI unit, "" where it has none or none is known."""
        if self.quantity is None:
            return ""
        own = {v.name: v.unit for v in problem.variables}
        return own.get(self.quantity) or _UNITS.get(self.quantity.rsplit("_", 1)[-1], "")


def goals_of(problem: Problem, objectives: Sequence[str | Term]) -> tuple[Goal, ...]:
    """Return the objectives that the names and terms stand for.

    Raises
    ------
    InputError
        Unless there are two or three, all known and different.
    """
    if isinstance(objectives, (str, Term)) or not isinstance(objectives, Sequence):
        raise InputError(f"objectives: expected two or three names, got {objectives!r}")
    if not 2 <= len(objectives) <= 3:
        raise InputError(f"objectives: expected two or three, got {len(objectives)}")
    quantities = _middle(problem).quantities
    goals = tuple(_goal(problem, asked, quantities) for asked in objectives)
    for i, goal in enumerate(goals):
        if goal in goals[:i]:
            raise InputError(f"objectives: '{goal.name}' stands there twice")
    return goals


def _middle(problem: Problem) -> Evaluation:
    """Return the evaluation in the middle of all ranges: which quantities there are, and of what shape."""
    middle = {}
    for v in problem.variables:
        value = 0.5 * (v.lower + v.upper)
        middle[v.name] = value if v.kind == "real" else np.rint(value)
    with np.errstate(all="ignore"):
        return problem.evaluate(Decision(middle))


def _goal(problem: Problem, asked: Any, quantities: Mapping[str, Any]) -> Goal:
    own: Any = getattr(problem, "objective", None)
    if isinstance(asked, Term):
        name, over = asked.quantity, "worst" if asked.over == "each" else asked.over
        if isinstance(own, Term) and own.quantity == name and own.over == over:
            return Goal()
    elif isinstance(asked, str):
        name, over = asked, "worst"
        if name == "objective" or (isinstance(own, str) and name == own):
            return Goal()
    else:
        raise InputError(f"objectives: expected a name, total(...) or worst(...), got {asked!r}")
    if name not in quantities:
        raise InputError(f"objectives: unknown '{name}'{nearest(name, ['objective', *quantities])}")
    return Goal(name, over if np.ndim(quantities[name]) else "value")


def nondominated(values: FloatArray) -> npt.NDArray[np.int64]:
    """Return the rows of ``[points, objectives]`` that no other row beats, one of equal ones, by rising last value.

    Values closer than 1e-9 of an objective's range count as equal; inf is allowed.
    """
    if not len(values):
        return np.empty(0, dtype=np.int64)
    # only the order matters, and moocore knows no inf
    ranks = np.stack([_ranks(column) for column in values.T], axis=1)
    keep = np.flatnonzero(moocore.is_nondominated(ranks))
    order = np.lexsort(values[keep].T)
    return np.asarray(keep[order], dtype=np.int64)


def _ranks(column: FloatArray) -> FloatArray:
    """Return the place of every value among those that differ."""
    order = np.argsort(column, kind="stable")
    known = column[order]
    finite = known[np.isfinite(known)]
    size = 1e-9 * np.ptp(finite) if finite.size else 0.0
    with np.errstate(invalid="ignore"):
        step = (known[1:] - known[:-1] > size) & (known[1:] != known[:-1])
    ranks = np.empty(column.size)
    ranks[order] = np.concatenate([[0.0], np.cumsum(step)])
    return ranks


def reference_of(values: FloatArray) -> FloatArray:
    """Return a reference point beyond all values ``[points, objectives]`` by a tenth of their ranges."""
    worst, width = values.max(axis=0), np.ptp(values, axis=0)
    size = np.where(worst != 0.0, np.abs(worst), 1.0)
    return np.asarray(worst + MARGIN * np.where(width > 0.0, width, size), dtype=np.float64)


@dataclass(frozen=True, eq=False)
class Front:
    """Decisions none of which is beaten by another in every objective.

    Attributes
    ----------
    problem : Problem or None
        What was searched; None for a front read from a file.
    method : str
        How.
    objectives, units : tuple of str
        Names (``objective``, ``worst delay``, ``total energy``) and SI units; all are minimised.
    values : array, shape [points, objectives]
        By rising value of the last objective.
    decisions : tuple of Decision
        One per point.
    results : tuple of Result
        The solves behind the points, each with its certificate; empty for methods without.
    lower_bounds, gaps : tuple of float or None
        Proved for the problem's own objective: no decision whose other objectives are at most the point's has a value
        below the bound; relative gap between the two. None where nothing is proved.
    excluded : array, shape [proofs, objectives]
        Proved limits: no decision has all its objectives below a row's (the value of a limit may be reached). inf:
        whatever the objective.
    ideal : array, shape [objectives]
        Proved lower bounds of each objective, or -inf.
    reference : array, shape [objectives]
        For the hypervolume: the worst values of the front and a tenth of their ranges, unless it was given.
    infeasibility : list of Conflict
        Why there is no point, where there is none.
    message : str
        What was done, in words.
    seconds : float
    n_evaluations : int
        Decisions evaluated, or solves of the certified method.
    seed : int, optional
    """

    problem: Problem | None
    method: str
    objectives: tuple[str, ...]
    units: tuple[str, ...]
    values: FloatArray
    decisions: tuple[Decision, ...]
    results: tuple[Result, ...] = ()
    lower_bounds: tuple[float | None, ...] = ()
    gaps: tuple[float | None, ...] = ()
    excluded: FloatArray = field(default_factory=lambda: np.empty((0, 2)))
    ideal: FloatArray = field(default_factory=lambda: np.full(2, -np.inf))
    reference: FloatArray = field(default_factory=lambda: np.full(2, np.nan))
    infeasibility: list[Conflict] = field(default_factory=list)
    message: str = ""
    seconds: float = 0.0
    n_evaluations: int = 0
    seed: int | None = None

    def __len__(self) -> int:
        return len(self.values)

    def __repr__(self) -> str:
        gap = self.worst_gap
        proved = "no bounds" if gap is None else f"largest gap {gap:.1e}"
        return (
            f"Front({self.method}: {len(self)} points, {' / '.join(self.objectives)}, {proved}, {self.seconds:.3g} s)"
        )

    @property
    def worst_gap(self) -> float | None:
        """Largest certified relative gap of a point; None where a point has none, or there is no point."""
        known = [gap for gap in self.gaps if gap is not None]
        return max(known) if known and len(known) == len(self) else None

    def _reference(self, reference: Any) -> FloatArray:
        if reference is None:
            return self.reference
        return checked_reference(reference, len(self.objectives))

    def hypervolume(self, reference: Sequence[float] | FloatArray | None = None) -> float:
        """Return the volume between the front and a reference point (its own when not given); 0 without a point.

        Points beyond the reference in some objective do not count.

        Raises
        ------
        InputError
            For a reference that is not one finite number per objective.
        """
        at = self._reference(reference)
        inside = self.values[np.all(self.values < at, axis=1)] if len(self) else self.values
        return float(moocore.hypervolume(inside, ref=at)) if len(inside) else 0.0

    def hypervolume_bound(self, reference: Sequence[float] | FloatArray | None = None) -> float | None:
        """Return a proved upper bound of the hypervolume of all decisions there are; None where nothing is proved.

        It is the volume between `ideal` and the reference without what `excluded` rules out.
        """
        at = self._reference(reference)
        if not len(self.excluded) or not np.all(np.isfinite(self.ideal)) or not np.all(np.isfinite(at)):
            return None
        low = np.minimum(self.ideal, at)
        ruled_out = np.minimum(self.excluded, at)
        ruled_out = ruled_out[np.all(ruled_out > low, axis=1)]
        lost = float(moocore.hypervolume(ruled_out, ref=low, maximise=True)) if len(ruled_out) else 0.0
        return max(0.0, float(np.prod(at - low)) - lost)

    def to_pandas(self) -> pd.DataFrame:
        """Return one row per point: the objectives, then `lower_bound` and `gap` (NaN where unknown)."""
        import pandas as pd

        table = pd.DataFrame(self.values, columns=list(self.objectives))
        for name, known in (("lower_bound", self.lower_bounds), ("gap", self.gaps)):
            table[name] = [np.nan if v is None else v for v in known] if known else np.nan
        return table

    def plot(self, **options: Any) -> Figure:
        """Draw the front (`jointopt.plot.fronts`)."""
        from jointopt.plot.fronts import fronts

        return fronts(self, **options)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, the contract of the JSON file; infinite numbers are null there."""
        return {
            "schema": FRONT_SCHEMA,
            "version": __version__,
            "problem": None if self.problem is None else self.problem.name,
            "settings": {} if self.problem is None else self.problem.settings(),
            "method": self.method,
            "seed": self.seed,
            "objectives": list(self.objectives),
            "units": list(self.units),
            "values": self.values.tolist(),
            "lower_bounds": list(self.lower_bounds),
            "gaps": list(self.gaps),
            "excluded": self.excluded.tolist(),
            "ideal": self.ideal.tolist(),
            "reference": self.reference.tolist(),
            "message": self.message,
            "seconds": self.seconds,
            "n_evaluations": self.n_evaluations,
            "infeasibility": [{"device": c.device, "binding": c.binding, "text": c.text} for c in self.infeasibility],
            "decisions": [{k: np.asarray(v) for k, v in d.items()} for d in self.decisions],
            "scenario": None if self.problem is None else self.problem.system.to_dict(),
        }

    def save(self, path: str | Path) -> Path:
        """Write the JSON file, whole or not at all."""
        return write_json(self.to_dict(), path, devices=0 if self.problem is None else len(self.problem.system))

    @classmethod
    def load(cls, path: str | Path) -> Front:
        """Read a front that `save` wrote, without its problem and results.

        Raises
        ------
        InputError
            When the file is missing, damaged or no front.
        """
        data = read_json(path)
        if not isinstance(data, dict) or data.get("schema") != FRONT_SCHEMA:
            raise InputError(f"{path}: is no saved front ({FRONT_SCHEMA})")
        size = len(data["objectives"])

        def table(name: str, missing: float) -> FloatArray:
            rows = [[missing if v is None else v for v in row] for row in data[name]]
            return np.array(rows, dtype=np.float64).reshape(len(rows), size)

        try:
            return cls(
                problem=None,
                method=data["method"],
                objectives=tuple(data["objectives"]),
                units=tuple(data["units"]),
                values=table("values", np.nan),
                decisions=tuple(Decision(d) for d in data["decisions"]),
                lower_bounds=tuple(data["lower_bounds"]),
                gaps=tuple(data["gaps"]),
                excluded=table("excluded", np.inf),
                ideal=np.array([-np.inf if v is None else v for v in data["ideal"]]),
                reference=np.array([np.nan if v is None else v for v in data["reference"]]),
                infeasibility=[
                    Conflict(c["device"], c["binding"], {}, {}, None, c["text"]) for c in data["infeasibility"]
                ],
                message=data["message"],
                seconds=data["seconds"],
                n_evaluations=data["n_evaluations"],
                seed=data["seed"],
            )
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path}: is damaged ({error!r})") from None


def checked_reference(reference: Any, size: int) -> FloatArray:
    """Return a reference point as an array [objectives].

    Raises
    ------
    InputError
        Unless it is one finite number per objective.
    """
    try:
        at = np.asarray(reference, dtype=np.float64)
    except (TypeError, ValueError):
        at = np.empty(0)
    if at.shape != (size,) or not np.all(np.isfinite(at)):
        raise InputError(f"reference: {reference!r} must be {size} finite numbers, one per objective")
    return at


def compare_fronts(
    fronts: Mapping[str, Front], *, reference: Sequence[float] | FloatArray | None = None
) -> pd.DataFrame:
    """Return the hypervolume of several fronts of the same objectives on one reference point, side by side.

    Parameters
    ----------
    fronts : mapping of str to Front
        By any name.
    reference : array, shape [objectives], optional
        When not given, that of the first front with proved bounds, or else the worst values of all fronts and a tenth
        of their ranges.

    Returns
    -------
    DataFrame
        One row per front: `method`, `points`, `hypervolume`, `share` of the best proved upper bound (of the largest
        hypervolume where nothing is proved), `worst_gap`, `seconds`, `n_evaluations`. The reference point stands in
        its ``attrs``.

    Raises
    ------
    InputError
        Without a front, or for different objectives.
    """
    import pandas as pd

    if not isinstance(fronts, Mapping) or not fronts:
        raise InputError("compare_fronts: expected fronts by name")
    first = next(iter(fronts.values()))
    for name, front in fronts.items():
        if not isinstance(front, Front):
            raise InputError(f"compare_fronts: '{name}' is {type(front).__name__}, expected a Front")
        if front.objectives != first.objectives:
            raise InputError(f"compare_fronts: '{name}' is about {front.objectives}, expected {first.objectives}")
    if reference is None:
        proved = [f.reference for f in fronts.values() if len(f) and f.worst_gap is not None]
        every = [f.values for f in fronts.values() if len(f)]
        if not every:
            raise InputError("compare_fronts: no front has a point")
        reference = proved[0] if proved else reference_of(np.concatenate(every))
    at = checked_reference(reference, len(first.objectives))
    volumes = {name: front.hypervolume(at) for name, front in fronts.items()}
    bounds = [bound for front in fronts.values() if (bound := front.hypervolume_bound(at)) is not None]
    whole = min(bounds) if bounds else max(volumes.values())
    rows = [
        {
            "front": name,
            "method": front.method,
            "points": len(front),
            "hypervolume": volumes[name],
            "share": volumes[name] / whole if whole > 0.0 else np.nan,
            "worst_gap": np.nan if front.worst_gap is None else front.worst_gap,
            "seconds": front.seconds,
            "n_evaluations": front.n_evaluations,
        }
        for name, front in fronts.items()
    ]
    table = pd.DataFrame(rows).set_index("front")
    table.attrs["reference"] = at.tolist()
    return table

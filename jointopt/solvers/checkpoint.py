"""Files of a Bayesian optimization: written after every evaluation, taken up again, or begun from."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jointopt._version import __version__
from jointopt.decision import Decision
from jointopt.errors import InputError
from jointopt.files import read_json, write_json
from jointopt.problem import Problem, Search
from jointopt.result import SCHEMA as RESULT
from jointopt.result import Result
from jointopt.solvers.monitor import Monitor
from jointopt.solvers.space import Box, key
from jointopt.system import FloatArray

if TYPE_CHECKING:
    from jointopt.solvers.bayesian import _Target

__all__ = ["SCHEMA", "Checkpoint", "earlier_points"]

SCHEMA = "jointopt.search/1"


def _plain(value: Any) -> Any:
    """Return data whose infinities and NaN are words, which JSON can hold."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, np.ndarray) and value.dtype.kind == "f" and not np.all(np.isfinite(value)):
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, float) and not np.isfinite(value):
        return repr(value)
    return value


def _fingerprint(*parts: Any) -> str:
    def plain(value: Any) -> Any:
        return value.tolist() if isinstance(value, (np.ndarray, np.generic)) else str(value)

    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=plain).encode()).hexdigest()


class Checkpoint:
    """The file of one run.

    Parameters
    ----------
    path : path
        JSON file.
    problem, search, box
        What is searched; a file made for another is refused.
    seed : int, optional
        Seed asked for; None takes that of the file.
    options : dict
        What else the course of the run depends on.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        problem: Problem,
        search: Search,
        box: Box,
        seed: int | None,
        options: Mapping[str, Any],
    ) -> None:
        self.path, self.seed, self.options = Path(path), seed, dict(options)
        self.devices = box.free.size
        system = problem.system
        self.made_for = {
            "problem": problem.name,
            "scenario": _fingerprint(system.to_dict() if hasattr(system, "to_dict") else repr(system)),
            "settings": _fingerprint(problem.settings()),
            "search": search.name,
            "ranges": _fingerprint(box.lower, box.upper, box.whole, box.logarithmic),
        }

    def write(self, state: Mapping[str, Any], positions: tuple[FloatArray, FloatArray], monitor: Monitor) -> None:
        """Write the run as it stands."""
        x, values = positions
        best = None if monitor.best is None else {k: np.asarray(v) for k, v in monitor.best.items()}
        data = {
            "schema": SCHEMA,
            "version": __version__,
            **self.made_for,
            "seed": self.seed,
            "options": self.options,
            "x": x,
            "values": values,
            "state": state,
            "monitor": {
                "evaluations": monitor.n_evaluations,
                "best": best,
                "best_value": monitor.best_value,
                "least_violation": monitor.least_violation,
                "history": monitor.history,
            },
        }
        write_json(_plain(data), self.path, devices=self.devices)

    @contextmanager
    def reading(self, monitor: Monitor) -> Iterator[dict[str, Any] | None]:
        """Give the state in the file, None where there is no file, and put the monitor where it stood.

        Raises
        ------
        InputError
            When the file is damaged, of another kind, or was made for something else.
        """
        if not self.path.exists():
            yield None
            return
        data = _load(self.path)
        asked = {**self.made_for, **self.options} | ({} if self.seed is None else {"seed": self.seed})
        if not isinstance(data.get("options"), dict):
            raise InputError(f"{self.path}: is damaged (options)")
        found = {**data, **data["options"]}
        for name, value in asked.items():
            if found.get(name) != value:
                known = name in ("scenario", "settings", "ranges")
                what = "are others" if known else f"{found.get(name)!r} in the file, {value!r} asked for"
                raise InputError(f"resume: {self.path} was made for another run ({name}: {what})")
        try:
            told = data["monitor"]
            monitor.n_evaluations = int(told["evaluations"])
            monitor.best = None if told["best"] is None else Decision(told["best"])
            monitor.best_value, monitor.least_violation = float(told["best_value"]), float(told["least_violation"])
            monitor.history = [{k: float(v) for k, v in entry.items()} for entry in told["history"]]
            if len(monitor.history) != monitor.n_evaluations:
                raise ValueError("the history is not whole")
            yield data["state"]
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
            raise InputError(f"{self.path}: is damaged ({error!r})") from None


def _load(path: Path, *kinds: str) -> dict[str, Any]:
    data = read_json(path)
    kinds = kinds or (SCHEMA,)
    schema = data.get("schema") if isinstance(data, dict) else None
    if schema not in kinds:
        raise InputError(f"{path}: expected a file of kind {' or '.join(kinds)}, found {schema!r}")
    loaded: dict[str, Any] = data
    return loaded


def earlier_points(
    start: Result | Decision | str | os.PathLike[str], problem: Problem, search: Search, box: Box
) -> Callable[[_Target], list[FloatArray]]:
    """Return what gives a target's starting points, the best of an earlier run first.

    Raises
    ------
    InputError
        When a file is damaged or of another kind, or the run was about another problem or number of variables.
    """
    values = np.zeros(1)
    if isinstance(start, Decision):
        x = _located(start, search)
    elif isinstance(start, Result):
        _same(start.problem.name, problem)
        if start.decision is None:
            raise InputError("start: the result holds no decision")
        x = _located(start.decision, search)
    elif isinstance(start, (str, os.PathLike)):
        data = _load(Path(start), SCHEMA, RESULT)
        _same(data.get("problem"), problem)
        try:
            if data["schema"] == RESULT:
                x = _located(Decision(data["decision"] or {}), search)
            else:
                x, values = (np.asarray(data[name], dtype=np.float64) for name in ("x", "values"))
                if x.ndim != 2 or values.shape not in (x.shape, x.shape[:1]):
                    raise ValueError("points and values of different shapes")
        except InputError:
            raise
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{start}: is damaged ({error!r})") from None
    else:
        raise InputError(f"start: expected a Result, a Decision or a file, got {type(start).__name__}")
    if x.shape[-1] != box.lower.size:
        raise InputError(f"start: was made for {x.shape[-1]} variables, this search has {box.lower.size}")
    x = np.where(np.isfinite(x), x, box.middle())

    def points(target: _Target) -> list[FloatArray]:
        order = np.argsort(values if values.ndim == 1 else values.sum(axis=-1), kind="stable")
        if target.functions > 1 and values.ndim == 2:
            # every unit's own best points
            ranked = np.take_along_axis(x, np.argsort(values, axis=0, kind="stable"), axis=0)
        else:
            ranked = x[order]
        out, seen = [], set()
        for row in ranked:
            point = target.nearest(row)
            if (where := key(point.reshape(-1))) not in seen:
                seen.add(where)
                out.append(point)
        return out

    return points


def _same(name: Any, problem: Problem) -> None:
    if name != problem.name:
        raise InputError(f"start: is about the problem {name!r}, not '{problem.name}'")


def _located(decision: Decision, search: Search) -> FloatArray:
    try:
        x = search.locate(decision)
    except AttributeError:
        raise InputError(f"start: the search over {search.name} cannot begin at a decision") from None
    except KeyError as error:
        raise InputError(f"start: the decision lacks the variable {error}") from None
    return np.asarray(x, dtype=np.float64).reshape(1, -1)

"""Saved results, read back: the problem they solved, the decision, and everything else in the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jointopt import problems
from jointopt.decision import Decision
from jointopt.errors import InputError
from jointopt.files import read_json
from jointopt.problem import Problem
from jointopt.system import System

__all__ = ["load_decision", "load_result", "load_scenario"]

_SCHEMA = "jointopt.result/1"


def _read(path: Path) -> dict[str, Any]:
    data = read_json(path)
    if not isinstance(data, dict) or not str(data.get("schema", "")).startswith("jointopt.result/"):
        raise InputError(f"{path}: is not a saved jointopt result (no schema 'jointopt.result/...')")
    if data["schema"] != _SCHEMA:
        raise InputError(f"{path}: schema {data['schema']!r} is not known to this version ({_SCHEMA})")
    for key in ("decision", "scenario"):
        if not isinstance(data.get(key), dict):
            raise InputError(f"{path}: holds no {key}")
    return data


def load_decision(path: str | Path, *, problem: Problem | None = None) -> tuple[Decision, Any, dict[str, Any]]:
    """Read a saved result: its decision, its system, and everything else in the file.

    The system is of the kind that the saved problem is about (`problem`, where it is one that a user declared); a file
    that names no problem is one of federated learning.

    Raises
    ------
    InputError
        When the file is missing, damaged, truncated, holds no decision, or its arrays do not fit its scenario.
    """
    path = Path(path)
    data = _read(path)
    kind = problems.get(str(data["problem"])) if "problem" in data and problem is None else None
    sort = System if kind is None else kind.system_type
    system = (sort if problem is None else type(problem.system)).from_dict(data["scenario"], folder=path.parent)
    decision = Decision(data["decision"])
    # how many values there are per layer or slot, the problem checks
    elsewhere = {v.name for v in kind(system).variables if v.axis in ("layer", "slot")} if kind is not None else set()
    sizes = [value.shape[-1] for name, value in decision.items() if name not in elsewhere]
    if sizes and max(sizes) != len(system):
        raise InputError(f"{path}: the decision is for {max(sizes)} devices, its scenario for {len(system)}")
    return decision, system, data


def load_scenario(path: str | Path, design: type[Problem]) -> Any:
    """Read a scenario for a design from TOML or JSON.

    That of a saved result of another design is as its decision leaves it: vehicles fly the ways that were decided.

    Raises
    ------
    InputError
        When the file is missing, damaged, or holds no such scenario.
    """
    path = Path(path)
    if path.suffix.lower() != ".json":
        return design.system_type.from_toml(path)
    system = design.system_type.from_json(path)
    data = read_json(path)
    kind = problems.DESIGNS.get(str(data.get("problem"))) if isinstance(data, dict) else None
    if kind is None or kind is design or kind.after is Problem.after or data.get("decision") is None:
        return system
    problem, decision, _ = load_result(path)
    return problem.after(decision)


def load_result(path: str | Path, *, problem: Problem | None = None) -> tuple[Problem, Decision, dict[str, Any]]:
    """Read a saved result: the problem it is an answer to, its decision, and everything else in the file.

    ``problem.evaluate(decision)`` computes the saved value anew.

    Parameters
    ----------
    path : path
        The file.
    problem : Problem, optional
        For a problem that a user declared, whose functions no file can hold: the problem, which is then given the
        file's scenario and ranges.

    Raises
    ------
    InputError
        As `load_decision`, and when the file's settings or decision are not those of its problem.
    """
    decision, system, data = load_decision(path, problem=problem)
    if "problem" not in data:
        raise InputError(f"{path}: names no problem")
    settings = data.get("settings") or {}
    if not isinstance(settings, dict):
        raise InputError(f"{path}: settings are no table")
    if problem is None:
        loaded: Problem = problems.get(str(data["problem"])).from_settings(system, settings)
    else:
        if problem.name != data["problem"]:
            raise InputError(f"{path}: is about '{data['problem']}', not '{problem.name}'")
        ranges = {}
        for name, ends in settings.items():
            if not isinstance(ends, dict) or set(ends) != {"lower", "upper"}:
                raise InputError(f"{path}: settings.{name} is no range")
            ranges[name] = (ends["lower"], ends["upper"])
        loaded = problem.with_system(system)
        loaded = loaded.restrict(**ranges) if ranges else loaded
    loaded.check(decision)
    return loaded, decision, data

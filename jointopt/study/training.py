"""From a solver's answer, or a saved one, to a training run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jointopt import federated
from jointopt.decision import Decision
from jointopt.errors import InputError
from jointopt.federated import Task, TrainingResult
from jointopt.files import read_json
from jointopt.result import Result
from jointopt.system import System

__all__ = ["load_decision", "train"]


def train(
    decision: Result | Decision | Mapping[str, Any],
    task: Task,
    *,
    system: System | None = None,
    **options: Any,
) -> TrainingResult:
    """Train under a decision and book what it costs.

    Parameters
    ----------
    decision : Result, Decision or mapping
        A solver's answer (which knows its system), or chosen values by name.
    task : Task
        Data over devices and a network; its sizes must be the system's.
    system : System, optional
        Needed when `decision` is no Result.
    **options
        Of `jointopt.federated.train`: `rounds`, `learning_rate`, `seed`, `algorithm`, ...

    Raises
    ------
    InputError
        When sizes do not match, or there is no decision to train under.
    """
    if isinstance(decision, Result):
        if decision.decision is None:
            raise InputError(f"train: the result of method '{decision.method}' holds no decision ({decision.message})")
        system = decision.problem.system if system is None else system
        decision = decision.decision
    if system is None:
        raise InputError("train: a decision alone needs its system (system=...)")
    if not isinstance(decision, Decision):
        decision = Decision(decision)
    return federated.train(decision, system, task, **options)


def load_decision(path: str | Path) -> tuple[Decision, System, dict[str, Any]]:
    """Read a saved result: its decision, its system, and everything else in the file.

    Raises
    ------
    InputError
        When the file is missing, damaged, truncated, holds no decision, or its arrays do not fit its scenario.
    """
    path = Path(path)
    data = read_json(path)
    if not isinstance(data, dict) or not str(data.get("schema", "")).startswith("jointopt.result/"):
        raise InputError(f"{path}: is not a saved jointopt result (no schema 'jointopt.result/...')")
    if data["schema"] != "jointopt.result/1":
        raise InputError(f"{path}: schema {data['schema']!r} is not known to this version (jointopt.result/1)")
    for key in ("decision", "scenario"):
        if not isinstance(data.get(key), dict):
            raise InputError(f"{path}: holds no {key}")
    system = System.from_dict(data["scenario"], folder=path.parent)
    decision = Decision(data["decision"])
    if decision.devices != len(system):
        raise InputError(f"{path}: the decision is for {decision.devices} devices, its scenario for {len(system)}")
    return decision, system, data

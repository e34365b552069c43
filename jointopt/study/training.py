"""From a solver's answer to a training run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jointopt import federated
from jointopt.decision import Decision
from jointopt.errors import InputError
from jointopt.federated import Task, TrainingResult
from jointopt.result import Result
from jointopt.system import System

__all__ = ["train"]


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

"""From a solver's answer to a training run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from jointopt import federated
from jointopt.decision import Decision
from jointopt.errors import InputError
from jointopt.federated import Task, TrainingResult
from jointopt.problem import Problem
from jointopt.result import Result
from jointopt.system import AerialSystem, System

__all__ = ["task_system", "train"]


def task_system(design: type[Problem], task: Task, seed: int = 0) -> System:
    """Return a system about a task for a design: the task's sizes, the rest sampled.

    Raises
    ------
    InputError
        For a design that is not about federated learning, or data without known constants.
    """
    if design.system_type is not System:
        raise InputError(f"task_system: '{design.name}' is not about federated learning")
    if design.name in ("ltfl", "feel", "feddpq"):
        return System.from_task(task, seed=seed, design=cast(Any, design.name))
    template = cast(System, design.sample(devices=len(task), seed=seed, data=task.name))
    return System.from_task(task, template=template)


def train(
    decision: Result | Decision | Mapping[str, Any],
    task: Task,
    *,
    system: System | AerialSystem | None = None,
    **options: Any,
) -> TrainingResult:
    """Train under a decision and book what it costs.

    Parameters
    ----------
    decision : Result, Decision or mapping
        A solver's answer (which knows its system), or chosen values by name.
    task : Task
        Data over devices and a network, which must be about the system; an `OnlineTask` for vehicles in the air.
    system : System or AerialSystem, optional
        Needed when `decision` is no Result.
    **options
        Of `jointopt.federated.train`: `rounds`, `learning_rate`, `seed`, `algorithm`, ...; those that the design of a
        `Result` needs to be carried out as its bound assumes (`Problem.training`) are set where not given.

    Raises
    ------
    InputError
        When sizes do not match, a decision is not one to train under, or there is none.
    """
    if isinstance(decision, Result):
        if decision.decision is None:
            raise InputError(f"train: the result of method '{decision.method}' holds no decision ({decision.message})")
        system = decision.problem.system if system is None else system
        options = {**decision.problem.training, **options}
        decision = decision.problem.deployed(decision.decision)
    if system is None:
        raise InputError("train: a decision alone needs its system (system=...)")
    if not isinstance(decision, Decision):
        decision = Decision(decision)
    return federated.train(decision, system, task, **options)

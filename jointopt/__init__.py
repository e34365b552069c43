"""Joint optimisation of learning on wireless edge devices.

Choose together how far to prune, how many bits to send, at what power, and get with every answer a certificate;
then check the decision in a federated training run. Typical use::

    import jointopt as jo

    system = jo.systems.ltfl(devices=20, seed=0)
    result = jo.solve(jo.problems.LTFL(system))
    print(result.summary())
    task = jo.Task.for_system(system, data="digits")
    print(jo.train(result, task).summary())
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from jointopt._version import __version__ as __version__

if TYPE_CHECKING:
    from jointopt import data, federated, inference, models, plot, problems, pruning, solvers, study, systems
    from jointopt.decision import Decision
    from jointopt.errors import DataError, InputError, JointoptError, MissingExtraError, SolverError
    from jointopt.federated import Task, TrainingResult, measure_constants, measure_generalization
    from jointopt.inference import CarriedOut
    from jointopt.problem import Evaluation, Problem, Variable
    from jointopt.result import Certificate, Result
    from jointopt.solvers import methods, solve
    from jointopt.solvers.batch import ResultBatch, solve_many
    from jointopt.solvers.stream import Stream
    from jointopt.study import carry_out, compare, train
    from jointopt.system import Bound, Devices, Generalization, InferenceSystem, Learner, Radio, System

_SUBMODULES = (
    "data",
    "federated",
    "inference",
    "models",
    "plot",
    "problems",
    "pruning",
    "solvers",
    "study",
    "systems",
)
# Names are loaded when first used, so that importing jointopt does not load torch.
_NAMES = {
    "Bound": "jointopt.system",
    "CarriedOut": "jointopt.inference",
    "Certificate": "jointopt.result",
    "DataError": "jointopt.errors",
    "Decision": "jointopt.decision",
    "Devices": "jointopt.system",
    "Evaluation": "jointopt.problem",
    "Generalization": "jointopt.system",
    "InferenceSystem": "jointopt.system",
    "InputError": "jointopt.errors",
    "JointoptError": "jointopt.errors",
    "Learner": "jointopt.system",
    "MissingExtraError": "jointopt.errors",
    "Problem": "jointopt.problem",
    "Radio": "jointopt.system",
    "Result": "jointopt.result",
    "RobustProblem": "jointopt.robust",
    "SolverError": "jointopt.errors",
    "System": "jointopt.system",
    "Task": "jointopt.federated",
    "TrainingResult": "jointopt.federated",
    "Variable": "jointopt.problem",
    "carry_out": "jointopt.study",
    "compare": "jointopt.study",
    "measure_constants": "jointopt.federated",
    "measure_generalization": "jointopt.federated",
    "methods": "jointopt.solvers",
    "DeclaredProblem": "jointopt.problems.declared",
    "Inner": "jointopt.problems.terms",
    "Block": "jointopt.problems.terms",
    "each": "jointopt.problems.terms",
    "total": "jointopt.problems.terms",
    "worst": "jointopt.problems.terms",
    "ResultBatch": "jointopt.solvers.batch",
    "Stream": "jointopt.solvers.stream",
    "solve": "jointopt.solvers",
    "solve_many": "jointopt.solvers.batch",
    "train": "jointopt.study",
}

__all__ = [
    "Bound",
    "CarriedOut",
    "Certificate",
    "DataError",
    "Decision",
    "Devices",
    "Evaluation",
    "Generalization",
    "InferenceSystem",
    "InputError",
    "JointoptError",
    "Learner",
    "MissingExtraError",
    "Problem",
    "Radio",
    "Result",
    "ResultBatch",
    "RobustProblem",
    "SolverError",
    "Stream",
    "System",
    "Task",
    "TrainingResult",
    "Variable",
    "carry_out",
    "compare",
    "data",
    "federated",
    "inference",
    "measure_constants",
    "measure_generalization",
    "methods",
    "models",
    "plot",
    "problems",
    "pruning",
    "DeclaredProblem",
    "Inner",
    "Block",
    "each",
    "total",
    "worst",
    "solve",
    "solve_many",
    "solvers",
    "study",
    "systems",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in _SUBMODULES:
        return importlib.import_module(f"jointopt.{name}")
    if name in _NAMES:
        return getattr(importlib.import_module(_NAMES[name]), name)
    raise AttributeError(f"module 'jointopt' has no attribute '{name}'")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]

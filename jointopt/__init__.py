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
    from jointopt import (
        augmentation,
        data,
        federated,
        inference,
        models,
        plot,
        problems,
        pruning,
        solvers,
        study,
        systems,
    )
    from jointopt.decision import Decision
    from jointopt.errors import DataError, InputError, JointoptError, MissingExtraError, SolverError, VerificationError
    from jointopt.federated import (
        OnlineTask,
        Task,
        TrainingResult,
        measure_augmentation,
        measure_constants,
        measure_generalization,
    )
    from jointopt.inference import CarriedOut
    from jointopt.problem import Evaluation, Problem, Variable
    from jointopt.problems.declared import DeclaredProblem
    from jointopt.problems.pooled import PooledLTFL
    from jointopt.problems.terms import Block, Inner, each, total, worst
    from jointopt.relaxation import Relaxation
    from jointopt.result import Certificate, Result
    from jointopt.robust import RobustProblem
    from jointopt.sensitivity import Sensitivity
    from jointopt.solvers import methods, solve
    from jointopt.solvers.batch import ResultBatch, solve_many
    from jointopt.solvers.stream import Stream
    from jointopt.study import Calibration, Forecast, Prediction, calibrate, carry_out, compare, train
    from jointopt.study.front import Front, compare_fronts
    from jointopt.study.pareto import pareto
    from jointopt.system import (
        AerialSystem,
        Augmentation,
        Bound,
        Devices,
        Generalization,
        InferenceSystem,
        Learner,
        Radio,
        System,
        Target,
    )
    from jointopt.verification import Verification, verify_saved

_SUBMODULES = (
    "augmentation",
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
    "AerialSystem": "jointopt.system",
    "Augmentation": "jointopt.system",
    "Block": "jointopt.problems.terms",
    "Bound": "jointopt.system",
    "Calibration": "jointopt.study",
    "CarriedOut": "jointopt.inference",
    "Certificate": "jointopt.result",
    "DataError": "jointopt.errors",
    "Decision": "jointopt.decision",
    "DeclaredProblem": "jointopt.problems.declared",
    "Devices": "jointopt.system",
    "Evaluation": "jointopt.problem",
    "Forecast": "jointopt.study",
    "Front": "jointopt.study.front",
    "Generalization": "jointopt.system",
    "InferenceSystem": "jointopt.system",
    "Inner": "jointopt.problems.terms",
    "InputError": "jointopt.errors",
    "JointoptError": "jointopt.errors",
    "Learner": "jointopt.system",
    "MissingExtraError": "jointopt.errors",
    "OnlineTask": "jointopt.federated",
    "PooledLTFL": "jointopt.problems.pooled",
    "Prediction": "jointopt.study",
    "Problem": "jointopt.problem",
    "Radio": "jointopt.system",
    "Relaxation": "jointopt.relaxation",
    "Result": "jointopt.result",
    "ResultBatch": "jointopt.solvers.batch",
    "RobustProblem": "jointopt.robust",
    "Sensitivity": "jointopt.sensitivity",
    "SolverError": "jointopt.errors",
    "Stream": "jointopt.solvers.stream",
    "System": "jointopt.system",
    "Target": "jointopt.system",
    "Task": "jointopt.federated",
    "TrainingResult": "jointopt.federated",
    "Variable": "jointopt.problem",
    "Verification": "jointopt.verification",
    "verify_saved": "jointopt.verification",
    "VerificationError": "jointopt.errors",
    "calibrate": "jointopt.study",
    "carry_out": "jointopt.study",
    "compare": "jointopt.study",
    "compare_fronts": "jointopt.study.front",
    "each": "jointopt.problems.terms",
    "measure_augmentation": "jointopt.federated",
    "measure_constants": "jointopt.federated",
    "measure_generalization": "jointopt.federated",
    "methods": "jointopt.solvers",
    "pareto": "jointopt.study.pareto",
    "solve": "jointopt.solvers",
    "solve_many": "jointopt.solvers.batch",
    "total": "jointopt.problems.terms",
    "train": "jointopt.study",
    "worst": "jointopt.problems.terms",
}

__all__ = [
    "AerialSystem",
    "Augmentation",
    "Block",
    "Bound",
    "Calibration",
    "CarriedOut",
    "Certificate",
    "DataError",
    "Decision",
    "DeclaredProblem",
    "Devices",
    "Evaluation",
    "Forecast",
    "Front",
    "Generalization",
    "InferenceSystem",
    "Inner",
    "InputError",
    "JointoptError",
    "Learner",
    "MissingExtraError",
    "OnlineTask",
    "PooledLTFL",
    "Prediction",
    "Problem",
    "Radio",
    "Relaxation",
    "Result",
    "ResultBatch",
    "RobustProblem",
    "Sensitivity",
    "SolverError",
    "Stream",
    "System",
    "Target",
    "Task",
    "TrainingResult",
    "Variable",
    "Verification",
    "VerificationError",
    "augmentation",
    "calibrate",
    "carry_out",
    "compare",
    "compare_fronts",
    "data",
    "each",
    "federated",
    "inference",
    "measure_augmentation",
    "measure_constants",
    "measure_generalization",
    "methods",
    "models",
    "pareto",
    "plot",
    "problems",
    "pruning",
    "solve",
    "solve_many",
    "solvers",
    "study",
    "systems",
    "total",
    "train",
    "verify_saved",
    "worst",
]


def __getattr__(name: str) -> Any:
    if name in _SUBMODULES:
        return importlib.import_module(f"jointopt.{name}")
    if name in _NAMES:
        return getattr(importlib.import_module(_NAMES[name]), name)
    raise AttributeError(f"module 'jointopt' has no attribute '{name}'")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]

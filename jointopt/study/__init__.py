"""Studies: many decisions trained, carried out, swept, predicted and held against each other."""

from jointopt.study.calibration import Calibration, calibrate
from jointopt.study.comparison import Comparison, compare
from jointopt.study.designs import DesignComparison, SharedScenario, compare_designs, shared_scenario
from jointopt.study.forecast import Forecast
from jointopt.study.front import Front, compare_fronts
from jointopt.study.inference import carry_out, inference_system, inputs_per_inference
from jointopt.study.levels import level_tradeoff
from jointopt.study.pareto import pareto
from jointopt.study.pareto_search import warm_up
from jointopt.study.prediction import Prediction
from jointopt.study.saved import load_decision, load_result, load_scenario
from jointopt.study.sweep import best_method, split_values, sweep
from jointopt.study.training import task_system, train

__all__ = [
    "Calibration",
    "Comparison",
    "DesignComparison",
    "Forecast",
    "Front",
    "Prediction",
    "SharedScenario",
    "best_method",
    "calibrate",
    "carry_out",
    "compare",
    "compare_designs",
    "compare_fronts",
    "inference_system",
    "inputs_per_inference",
    "level_tradeoff",
    "load_decision",
    "load_result",
    "load_scenario",
    "pareto",
    "shared_scenario",
    "split_values",
    "sweep",
    "task_system",
    "train",
    "warm_up",
]

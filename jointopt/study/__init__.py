"""Studies: many decisions trained, carried out, swept and held against each other."""

from jointopt.study.comparison import Comparison, compare
from jointopt.study.inference import carry_out, inference_system, inputs_per_inference
from jointopt.study.saved import load_decision, load_result
from jointopt.study.sweep import best_method, split_values, sweep
from jointopt.study.training import train

__all__ = [
    "Comparison",
    "best_method",
    "carry_out",
    "compare",
    "inference_system",
    "inputs_per_inference",
    "load_decision",
    "load_result",
    "split_values",
    "sweep",
    "train",
]

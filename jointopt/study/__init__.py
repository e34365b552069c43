"""Studies: many decisions trained and held against each other."""

from jointopt.study.comparison import Comparison, compare
from jointopt.study.training import load_decision, train

__all__ = ["Comparison", "compare", "load_decision", "train"]

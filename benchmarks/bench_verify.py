"""Do results stand up to being recomputed? `Result.verify` on random solves over all designs and methods.

``python benchmarks/bench_verify.py --count 1000`` draws instances (design, size, tightness of the budgets, method,
seed), solves and verifies each, prints every disagreement, and a table with how many passed and how long it took.
"""

from __future__ import annotations

import argparse
import os
import time
from collections import defaultdict

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

import jointopt as jo
from jointopt.errors import VerificationError
from jointopt.problem import Problem
from jointopt.problems import DESIGNS
from jointopt.problems.pooled import PooledLTFL
from jointopt.report import text_table

KINDS = {**DESIGNS, "ltfl-pool": PooledLTFL}
SIZES = {"ltfl": 12, "feel": 8, "coinference": 6, "coinference-layers": 1, "ltfl-pool": 4}
SHORT = {
    "bayesian": {"iterations": 2, "initial": 4},
    "nlp": {"starts": 1, "time_limit": 0.5},
    "alternating": {"max_iterations": 3},
}


def instance(rng: np.random.Generator) -> tuple[str, Problem, str, int]:
    """Draw a design, a system, a method and a seed."""
    name = str(rng.choice(list(KINDS)))
    design = KINDS[name]
    seed = int(rng.integers(1_000_000))
    tightness = float(rng.choice([0.7, 1.0, 1.5, 3.0]))
    problem = design(design.sample(devices=int(rng.integers(1, SIZES[name] + 1)), seed=seed, tightness=tightness))
    methods = list(jo.methods(problem))
    # certified answers half of the time
    method = methods[0] if rng.random() < 0.5 else str(rng.choice(methods))
    return name, problem, method, seed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rng = np.random.default_rng(arguments.seed)
    passed, total = defaultdict(int), defaultdict(int)
    solving, verifying = defaultdict(float), defaultdict(float)
    slow, left = defaultdict(float), defaultdict(int)
    for number in range(arguments.count):
        name, problem, method, seed = instance(rng)
        key = name, method
        start = time.perf_counter()
        result = jo.solve(problem, method=method, seed=seed, **SHORT.get(method, {}))
        middle = time.perf_counter()
        total[key] += 1
        try:
            found = result.verify(units=100, seed=number)
            passed[key] += 1
            left[key] += not found.complete
        except VerificationError as error:
            print(f"{number}: {len(problem.system)} devices, seed {seed}, {result.status}: {error}", flush=True)
        end = time.perf_counter()
        solving[key] += middle - start
        verifying[key] += end - middle
        slow[key] = max(slow[key], end - middle)
    rows = [
        [
            f"{passed[key]}/{total[key]}",
            str(left[key]),
            f"{solving[key] / total[key]:.3f}",
            f"{verifying[key] / total[key]:.3f}",
            f"{slow[key]:.3f}",
            " ".join(key),
        ]
        for key in sorted(total)
    ]
    header = ["passed", "in part", "solve [s]", "verify [s]", "slowest [s]", "design and method"]
    print(text_table(rows, header, words=1))
    print(
        f"{sum(passed.values())} of {arguments.count} results stood up to being recomputed; "
        f"solving took {sum(solving.values()):.0f} s, verifying {sum(verifying.values()):.0f} s"
    )


if __name__ == "__main__":
    main()

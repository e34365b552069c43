"""LTFL: the exact solver against Bayesian optimization, and its growth with the number of devices.

Run ``python benchmarks/bench_ltfl.py``; everything is measured side by side in one run and printed as a table.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import time

import numpy as np

import jointopt as jo
from jointopt.report import text_table

MILLION_SECONDS, MILLION_GIB = 10.0, 4.0


def against_bayesian(seeds: int, iterations: int) -> None:
    """20 devices: time and value of both methods, in turn."""
    rows = []
    for seed in range(seeds):
        problem = jo.problems.LTFL(jo.systems.ltfl(devices=20, seed=seed))
        jo.solve(problem)  # warm
        for mode in ("joint", "separate"):
            exact_seconds = min(_timed(problem, "exact")[1] for _ in range(20))
            exact = jo.solve(problem)
            bayesian, seconds = _timed(problem, "bayesian", iterations=iterations, mode=mode, seed=seed)
            assert exact.value is not None and bayesian.value is not None and exact.gap is not None
            rows.append(
                [
                    str(seed),
                    mode,
                    f"{1e3 * exact_seconds:.2f} ms",
                    f"{seconds:.1f} s",
                    f"{seconds / exact_seconds:,.0f} x",
                    f"{exact.value:.6g}",
                    f"{exact.gap:.1e}",
                    f"{100 * (bayesian.value / exact.value - 1):+.3f} %",
                ]
            )
    header = [
        "seed",
        "Bayesian mode",
        "exact",
        f"Bayesian ({iterations})",
        "time ratio",
        "value",
        "certified gap",
    ]
    print(text_table(rows, [*header, "Bayesian above exact"]))


def _timed(problem: jo.Problem, method: str, **options: object) -> tuple[jo.Result, float]:
    start = time.perf_counter()
    result = jo.solve(problem, method=method, **options)  # type: ignore[arg-type]
    return result, time.perf_counter() - start


def growth(largest: int) -> None:
    """Time, memory and certified gap from a thousand devices up."""
    rows = []
    per_device: dict[int, float] = {}
    size = 1000
    while size <= largest:
        problem = jo.problems.LTFL(jo.systems.ltfl(devices=size, seed=0))
        best, result = np.inf, None
        for _ in range(5 if size < 1_000_000 else 2):
            result, seconds = _timed(problem, "exact")
            best = min(best, seconds)
        assert result is not None and result.gap is not None
        per_device[size] = best / size
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        rows.append(
            [
                f"{size:,}",
                f"{best:.3f} s",
                f"{1e6 * best / size:.2f} us",
                f"{per_device[size] / per_device[1000]:.2f}",
                f"{result.gap:.1e}",
                f"{memory:.2f} GiB",
            ]
        )
        size *= 10
    print(text_table(rows, ["devices", "time", "per device", "relative to 1,000", "certified gap", "peak memory"]))
    if largest >= 1_000_000:
        print(
            f"to reach: a million devices within {MILLION_SECONDS:.0f} s and {MILLION_GIB:.0f} GiB, "
            "time per device not growing"
        )


def main() -> None:
    """Print both tables with the machine's load."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--iterations", type=int, default=40)
    parser.add_argument("--largest", type=int, default=1_000_000)
    arguments = parser.parse_args()
    load = os.getloadavg()[0]
    print(f"Python {platform.python_version()}, {os.cpu_count()} cores, load before: {load:.2f}\n")
    growth(arguments.largest)
    print()
    against_bayesian(arguments.seeds, arguments.iterations)


if __name__ == "__main__":
    main()

"""LTFL with a shared band and a total energy budget: seconds, certified gap and memory at 1,000 and 100,000 devices.

Run ``python benchmarks/bench_pooled.py``; each size runs in a process of its own, so that peak memory is its own. The
second table is one priced response, of which a solution takes about twenty: time per device must not grow.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

import jointopt as jo
from jointopt.problems.pooled import PooledLTFL
from jointopt.report import text_table
from jointopt.solvers.branch import respond

TARGETS = {1_000: (2.0, 5e-4), 100_000: (60.0, 2e-4)}
"""Seconds and relative gap to reach, by number of devices."""
MOST_GIB = 4.0


def solved(devices: int, gap: float) -> list[str]:
    """Solve one instance; one row of the table."""
    jo.solve(PooledLTFL(jo.systems.ltfl(5, 0)), gap=1e-2)  # warm
    problem = PooledLTFL(jo.systems.ltfl(devices, 0))
    start, used = time.perf_counter(), time.process_time()
    result = jo.solve(problem, gap=gap)
    seconds, used = time.perf_counter() - start, time.process_time() - used
    assert result.value is not None and result.gap is not None and result.evaluation is not None
    slack = result.evaluation.slack
    return [
        f"{devices:,}",
        f"{seconds:.2f} s",
        f"{used:.2f} s",
        f"{100 * result.gap:.4f} %",
        f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB",
        f"{result.n_evaluations / devices:.0f}",
        f"{100 * (1 - float(slack['total_bandwidth']) / problem.total_bandwidth):.2f} %",
        f"{100 * (1 - float(slack['total_energy']) / problem.energy_budget):.2f} %",
    ]


def answered(devices: int, gap: float) -> list[str]:
    """Respond to prices near those of the solution; one row of the table."""
    problem = PooledLTFL(jo.systems.ltfl(devices, 0))
    cells = problem.capabilities().cells
    assert cells is not None
    prices = np.array([1.0, 50.0 / problem.total_bandwidth, 105.0 / problem.energy_budget])
    respond(cells, prices, gap=gap)  # warm
    start = time.process_time()
    found = respond(cells, prices, gap=gap)
    used = time.process_time() - start
    proved = 1.0 - float(found.lower_bound.sum()) / float(found.value.sum())
    cells_each = found.cells / devices
    return [f"{devices:,}", f"{used:.2f} s", f"{1e6 * used / devices:.0f} us", f"{proved:.1e}", f"{cells_each:.1f}"]


def main() -> None:
    """Print both tables with the machine's load."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--largest", type=int, default=100_000)
    arguments = parser.parse_args()
    print(f"Python {platform.python_version()}, {os.cpu_count()} cores, load before: {os.getloadavg()[0]:.2f}\n")
    sizes = [size for size in TARGETS if size <= arguments.largest]
    tables = ((solved, [TARGETS[size][1] for size in sizes]), (answered, [1e-4] * len(sizes)))
    headers = (
        ["devices", "time", "processor time", "certified gap", "peak memory", "cells per device", "band", "energy"],
        ["devices", "processor time", "per device", "certified gap", "cells per device"],
    )
    for (work, gaps), header in zip(tables, headers, strict=True):
        rows = []
        for size, gap in zip(sizes, gaps, strict=True):
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                rows.append(pool.submit(work, size, gap).result())
        print(text_table(rows, header), "\n")
    goals = "; ".join(f"{n:,} devices to {100 * gap:g} % within {s:g} s" for n, (s, gap) in TARGETS.items())
    print(f"to reach: {goals} and {MOST_GIB:g} GiB")


if __name__ == "__main__":
    main()

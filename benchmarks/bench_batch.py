"""Many scenarios in one batch: 10,000 of 100 devices solved exactly, against one at a time.

Run ``python benchmarks/bench_batch.py``. The scenarios share the model to train and differ in gains and budgets, as in
a sweep; time includes everything from the arrays to the certified answers.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

import jointopt as jo
from jointopt.report import text_table

LIMIT = 10.0
"""Seconds to stay under."""


def main() -> None:
    """Print one table with the machine's load."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenarios", type=int, default=10_000)
    parser.add_argument("--devices", type=int, default=100)
    parser.add_argument("--alone", type=int, default=50, help="scenarios solved one at a time, for the ratio")
    args = parser.parse_args()
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, load {load}")
    system = jo.systems.ltfl(args.devices, 0)
    problem = jo.problems.LTFL(system)
    rng = np.random.default_rng(0)
    shape = (args.scenarios, args.devices)
    gain = system.radio.gain * np.exp(0.3 * rng.standard_normal(shape))
    energy = system.devices.energy_budget * rng.uniform(0.9, 1.5, shape)
    jo.solve_many(problem, radio={"gain": gain[:2]}, devices={"energy_budget": energy[:2]})  # warm

    start, used = time.perf_counter(), time.process_time()
    batch = jo.solve_many(problem, radio={"gain": gain}, devices={"energy_budget": energy})
    seconds, used = time.perf_counter() - start, time.process_time() - used
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    solved = np.isfinite(batch.values)
    start = time.perf_counter()
    for i in range(args.alone):
        one = jo.solve(jo.problems.LTFL(system.with_(gain=gain[i], energy_budget=energy[i])))
        same = (one.value is None and not solved[i]) or (
            one.value is not None and abs(one.value - batch.values[i]) <= 2e-6 * abs(one.value)
        )
        assert same, f"scenario {i}: {one.value} alone, {batch.values[i]} in the batch"
    alone = (time.perf_counter() - start) / args.alone
    rows = [
        ["batch", f"{seconds:.2f} s", f"{used:.2f} s", f"{1e6 * seconds / args.scenarios:.0f} us"],
        ["one at a time", f"{alone * args.scenarios:.1f} s", "", f"{1e6 * alone:.0f} us"],
    ]
    print(text_table(rows, ["", "wall", "processor", "per scenario"]))
    print(
        f"{int(solved.sum()):,} of {args.scenarios:,} feasible, "
        f"largest certified gap {np.nanmax(batch.gaps[solved]):.1e}, peak memory {memory:.2f} GiB; "
        f"the batch is {alone * args.scenarios / seconds:.0f} times faster; "
        f"{'within' if seconds <= LIMIT else 'OVER'} the {LIMIT:g} s asked for"
    )


if __name__ == "__main__":
    main()

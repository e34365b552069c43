"""Convex steps: a compiled program re-solved, the same rebuilt, the closed form; and what units do to the answer.

Run ``python benchmarks/bench_convex.py``; everything is measured side by side in one run and printed as tables. Times
are processor time of one thread, the median over the scenarios of the shortest of several repeats, so that a machine in
use changes them little.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import platform
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from jointopt.errors import SolverError
from jointopt.models.allocation import bandwidth_kkt_residual, minimum_energy_bandwidth
from jointopt.problems.allocation_program import BandwidthProgram, CheckedBandwidth
from jointopt.report import text_table

LIMITS = {50: 5.0, 1000: 50.0}
"""Milliseconds that a re-solve may take."""


def cell(rng: np.random.Generator, devices: int) -> dict[str, Any]:
    """A cell of 1 km: 20 MHz, -174 dBm/Hz, 128.1 + 37.6 log10 d[km] dB, 0.1 to 10 MB each, 0.5 to 4 bit/s/Hz."""
    distance = np.sqrt(rng.uniform(0.1**2, 1.0, devices))
    payload = 8e6 * 10.0 ** rng.uniform(-1.0, 1.0, devices)
    deadline = payload.sum() / (20e6 * rng.uniform(0.5, 4.0)) * rng.uniform(0.7, 1.3, devices)
    return {
        "payload": payload,
        "deadline": deadline,
        "gain": 10.0 ** (-(128.1 + 37.6 * np.log10(distance)) / 10.0),
        "noise_density": 10.0**-20.4,
        "total_bandwidth": 20e6,
    }


def shortest(run: Callable[[], Any], repeats: int) -> tuple[float, float]:
    """Least processor time and least wall-clock time [ms] of a call."""
    used = passed = np.inf
    for _ in range(repeats):
        wall, processor = time.perf_counter(), time.process_time()
        run()
        used = min(used, time.process_time() - processor)
        passed = min(passed, time.perf_counter() - wall)
    return 1e3 * used, 1e3 * passed


def rebuilt(size: int, values: dict[str, Any]) -> CheckedBandwidth:
    """Build, compile and solve."""
    return BandwidthProgram(size).solve(**values)


def times(sizes: list[int], cases: int, repeats: int) -> None:
    """Compiled once and re-solved with new numbers, built anew, and the closed form, checks in SI included."""
    rows = []
    for size in sizes:
        rng = np.random.default_rng(size)
        start = time.process_time()
        program = BandwidthProgram(size)
        program.solve(**cell(rng, size))
        compiling = 1e3 * (time.process_time() - start)
        again, fresh, closed = [], [], []
        worst = 0.0
        for _ in range(cases):
            values = cell(rng, size)
            again.append(shortest(partial(program.solve, **values), repeats))
            fresh.append(shortest(partial(rebuilt, size, values), 2))
            closed.append(shortest(partial(minimum_energy_bandwidth, **values), 5 * repeats))
            exact = minimum_energy_bandwidth(**values).energy.sum()
            worst = max(worst, program.solve(**values).energy.sum() / exact - 1.0)
        cpu = [float(np.median([entry[0] for entry in measured])) for measured in (again, fresh, closed)]
        wall = float(np.median([entry[1] for entry in again]))
        within = f"{LIMITS[size]:.0f} ms" if size in LIMITS else ""
        rows.append(
            [
                f"{size:,}",
                f"{compiling:.0f} ms",
                f"{cpu[0]:.2f} ms ({wall:.1f} wall)",
                within,
                f"{cpu[1]:.1f} ms ({cpu[1] / cpu[0]:.1f} x)",
                f"{cpu[2]:.3f} ms",
                f"{cpu[0] / cpu[2]:.0f} x",
                f"{worst:.0e}",
            ]
        )
    print(
        text_table(
            rows, ["clients", "first", "re-solved", "at most", "rebuilt", "closed form", "faster", "worst error"]
        )
    )
    rng = np.random.default_rng(0)
    single = [cell(rng, 50) for _ in range(1000)]
    batch = {name: np.stack([np.asarray(one[name]) for one in single]) for name in ("payload", "deadline", "gain")}
    used, _ = shortest(
        lambda: minimum_energy_bandwidth(**batch, noise_density=10.0**-20.4, total_bandwidth=20e6), repeats
    )
    print(f"\nclosed form, 1,000 scenarios of 50 clients at once: {used:.0f} ms, {used:.1f} us each\n")


def units(cases: int) -> None:
    """The same program normalised and in plain hertz and watts, against the closed form and the check in SI."""
    rows = []
    for normalised in (True, False):
        for size in (5, 10, 30):
            rng = np.random.default_rng(size)
            program = BandwidthProgram(size, normalised=normalised)
            status: Counter[str] = Counter()
            errors, failed = [], 0
            gaps, residual = [], 0.0
            for _ in range(cases):
                values = cell(rng, size)
                exact = minimum_energy_bandwidth(**values)
                residual = max(residual, float(bandwidth_kkt_residual(exact.bandwidth, exact.price, **values)))
                try:
                    answer = program.solve(**values)
                except SolverError:
                    status["no point"] += 1
                    failed += 1
                    continue
                status[answer.status] += 1
                failed += not answer.passed
                errors.append(answer.energy.sum() / exact.energy.sum() - 1.0)
                gaps.append(answer.gap)
            rows.append(
                [
                    "shares, scaled power" if normalised else "Hz, W",
                    str(size),
                    ", ".join(f"{word} {count}" for word, count in status.most_common()),
                    f"{np.median(errors):.1e}",
                    f"{np.max(errors):.1e}",
                    f"{np.min(gaps):.0e} to {np.max(gaps):.0e}",
                    f"{failed} of {cases}",
                    f"{residual:.0e}",
                ]
            )
    headings = ["units", "clients", "status", "median error", "worst", "certified gap", "fail the check", "closed form"]
    print(text_table(rows, headings))
    print("\nerror: energy above the closed form's; closed form: its largest violation of the optimality conditions")


def main() -> None:
    """Print the tables with the machine's load."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--largest", type=int, default=1000, help="clients of the largest program")
    parser.add_argument("--cases", type=int, default=7, help="scenarios timed per size")
    parser.add_argument("--repeats", type=int, default=5, help="of each call; the shortest counts")
    parser.add_argument("--scenarios", type=int, default=100, help="scenarios per size for the check")
    arguments = parser.parse_args()
    load = os.getloadavg()[0]
    print(f"Python {platform.python_version()}, {os.cpu_count()} cores, load before: {load:.2f}\n")
    sizes = [n for n in (10, 50, 200, 1000) if n < arguments.largest] + [arguments.largest]
    times(sizes, arguments.cases, arguments.repeats)
    units(arguments.scenarios)


if __name__ == "__main__":
    main()

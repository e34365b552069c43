"""Selection, ratio, bandwidth, frequency and power together: the certified solver against IPOPT and SCIP.

Run ``python benchmarks/bench_selection.py``; all is measured side by side in one run and printed as tables. IPOPT
(extra ``casadi``) and SCIP (extra ``scip``) solve models written for them by hand (``feel_models.py``).
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from collections.abc import Iterator

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from feel_models import Ipopt, scip

import jointopt as jo
from jointopt.problems.feel import FEEL
from jointopt.report import text_table

GAP, SECONDS = 5e-3, 0.5
"""Certified gap to reach, and within which time."""
SAME = 1e-6
"""Relative difference of values that counts as none."""
LEVELS = (1 / 3, 2 / 3, 1.0)
"""Frequencies as shares of the highest, where they are restricted."""


def exact(problem: FEEL, gap: float, repeats: int) -> tuple[jo.Result, float, float]:
    """Least seconds and processor seconds of several solutions, each of a problem made anew."""
    wall = used = np.inf
    for _ in range(repeats):
        fresh = problem.with_system(problem.system)
        start, busy = time.perf_counter(), time.process_time()
        result = jo.solve(fresh, gap=gap)
        wall, used = min(wall, time.perf_counter() - start), min(used, time.process_time() - busy)
    return result, wall, used


def against_ipopt(clients: int, seeds: int, starts: int, repeats: int) -> None:
    """Value and time of the certified solver, and of IPOPT from many starts."""
    start = time.perf_counter()
    ipopt = Ipopt(clients, jo.systems.feel(clients, 0).bound.pruning_error)
    compiled = time.perf_counter() - start
    jo.solve(FEEL(jo.systems.feel(10, 0)), gap=GAP)  # warm
    rows, worse, slow, loose = [], [], [], []
    for seed in range(seeds):
        problem = FEEL(jo.systems.feel(clients, seed))
        result, wall, used = exact(problem, GAP, repeats)
        assert result.value is not None and result.gap is not None and result.evaluation is not None
        assert result.decision is not None and bool(result.evaluation.feasible())
        start = time.perf_counter()
        found = ipopt.minimize(problem, starts, seed)
        seconds = time.perf_counter() - start
        above = found.value / result.value - 1.0
        worse += [seed] * (result.value > found.value * (1.0 + SAME))
        slow += [seed] * (wall > SECONDS)
        loose += [seed] * (result.gap > GAP)
        rows.append(
            [
                str(seed),
                f"{result.decision['selected'].sum():.0f}",
                f"{1e3 * wall:.0f} ms",
                f"{1e3 * used:.0f} ms",
                f"{100 * result.gap:.3f} %",
                f"{result.value:.8g}",
                f"{found.value:.8g}",
                f"{100 * above:+.5f} %",
                f"{found.feasible}/{found.solves}",
                f"{1e3 * found.fixed_seconds:.0f} ms",
                f"{seconds:.1f} s",
                f"{seconds / wall:.1f} x",
            ]
        )
    header = ["seed", "taken", "time", "processor", "certified gap", "value", f"IPOPT, {starts} starts", "above"]
    print(text_table(rows, [*header, "feasible/solves", "a solve", "IPOPT time", "ratio"]))
    print(f"IPOPT's model compiled once in {compiled:.2f} s, not counted")
    print(f"worse than IPOPT: {worse or 'never'}; gap above {100 * GAP:g} %: {loose or 'never'}", end="; ")
    print(f"above {SECONDS:g} s: {slow or 'never'}")


def variants(clients: int, seed: int) -> Iterator[tuple[str, FEEL, tuple[float, ...] | None]]:
    """The whole problem, and restricted ones that are easier for SCIP."""
    system = jo.systems.feel(clients, seed)
    whole = FEEL(system)
    yield "whole", whole, None
    # energy binds nobody: the largest power and the highest frequency are the best, and lower levels lose
    ample = system.with_(energy_budget=np.full(clients, 1e3 * float(np.max(system.devices.energy_budget))))
    yield "power fixed, 3 frequencies", FEEL(ample), LEVELS
    answer = jo.solve(whole)
    assert answer.decision is not None
    ratio = float(np.median(answer.decision["pruning_ratio"][answer.decision["selected"] > 0.5]))
    yield f"ratio {ratio:.3f}", whole.restrict(pruning_ratio=ratio), None


def against_scip(sizes: list[int], seed: int, seconds: float, gap: float) -> None:
    """Values and bounds of both."""
    rows, wrong = [], []
    for clients in sizes:
        for name, problem, levels in variants(clients, seed):
            result, wall, _ = exact(problem, gap, 1)
            other = scip(problem, seconds=seconds, gap=gap, levels=levels)
            assert result.value is not None and result.lower_bound is not None
            # SCIP's tolerances are absolute (1e-6) in every constraint, so its values may be low by as much
            consistent = other.bound <= result.value * (1.0 + SAME)
            if np.isfinite(other.value):
                consistent &= result.lower_bound <= other.value * (1.0 + 10.0 * SAME)
                consistent &= result.value <= other.value * (1.0 + 10.0 * SAME)
            wrong += [] if consistent else [f"{clients} clients, {name}"]
            rows.append(
                [
                    str(clients),
                    name,
                    f"{result.value:.7g}",
                    f"{result.lower_bound:.7g}",
                    f"{1e3 * wall:.0f} ms",
                    f"{other.value:.7g}",
                    f"{other.bound:.7g}",
                    f"{100 * (other.value - other.bound) / abs(other.value):.2f} %",
                    f"{other.seconds:.1f} s",
                    f"{other.seconds / wall:.0f} x",
                ]
            )
    header = ["clients", "problem", "value", "bound", "time", "SCIP value", "SCIP bound", "SCIP gap", "SCIP time"]
    print(text_table(rows, [*header, "ratio"]))
    print(f"inconsistent with SCIP: {'; '.join(wrong) or 'never'}")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--starts", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--scip-clients", type=int, nargs="*", default=[2, 4, 6, 8])
    parser.add_argument("--scip-seconds", type=float, default=60.0)
    parser.add_argument("--scip-gap", type=float, default=1e-3)
    arguments = parser.parse_args()
    load = ", ".join(f"{x:.1f}" for x in os.getloadavg())
    print(f"{platform.machine()}, Python {platform.python_version()}, {os.cpu_count()} cores, load {load}\n")
    if arguments.seeds:
        print(f"{arguments.clients} clients, gap {100 * GAP:g} %; time is the least of {arguments.repeats}")
        against_ipopt(arguments.clients, arguments.seeds, arguments.starts, arguments.repeats)
    if arguments.scip_clients:
        print(f"\nSCIP, one thread, at most {arguments.scip_seconds:g} s, gap {100 * arguments.scip_gap:g} %")
        against_scip(arguments.scip_clients, 0, arguments.scip_seconds, arguments.scip_gap)
    print(
        f"\nto reach: never worse than IPOPT, {100 * GAP:g} % certified within {SECONDS:g} s; bounds agree with SCIP's"
    )
    print(f"load after: {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()

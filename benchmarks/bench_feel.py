"""FEEL: the certified solver, the published alternation and SCIP; and what compiling the convex step once saves.

Run ``python benchmarks/bench_feel.py``; everything is measured side by side in one run and printed as a table. SCIP
needs the extra ``scip``.
"""

from __future__ import annotations

import argparse
import os
import platform
import time

import cvxpy as cp
import numpy as np
from feel_models import scip

import jointopt as jo
from jointopt.problems.feel import FEEL, Alternation, RatioBandwidthStep
from jointopt.problems.feel_cells import FEELCells
from jointopt.report import text_table

GAP = 1e-3


def certified(clients: int, seeds: int, repeats: int) -> list[list[str]]:
    """Time to a certified gap of 0.1 %, and to the default gap; the alternation beside it."""
    rows = []
    for seed in range(seeds):
        problem = FEEL(jo.systems.feel(clients, seed))
        times: dict[float, float] = {}
        results = {}
        for gap in (GAP, 1e-4):
            best = np.inf
            for _ in range(repeats):
                start = time.perf_counter()
                results[gap] = jo.solve(problem, gap=gap)
                best = min(best, time.perf_counter() - start)
            times[gap] = best
        start = time.perf_counter()
        alternating = jo.solve(problem, method="alternating") if clients <= 50 else None
        seconds = time.perf_counter() - start
        loose, tight = results[GAP], results[1e-4]
        assert (
            loose.gap is not None and tight.gap is not None and tight.value is not None and tight.decision is not None
        )
        above = "-"
        if alternating is not None and alternating.value is not None:
            above = f"{100 * (alternating.value / tight.value - 1):+.2f} % in {seconds:.1f} s"
        rows.append(
            [
                str(clients),
                str(seed),
                f"{tight.decision['selected'].sum():.0f}",
                f"{1e3 * times[GAP]:.0f} ms",
                f"{loose.gap:.1e}",
                f"{1e3 * times[1e-4]:.0f} ms",
                f"{tight.gap:.1e}",
                f"{tight.value:.6g}",
                above,
            ]
        )
    return rows


def step(clients: int, repeats: int) -> list[str]:
    """One (ratio, bandwidth) step: re-solved with new parameters, and built anew each time."""
    problem = FEEL(jo.systems.feel(clients, 0))
    cells = FEELCells(problem)
    blocks = Alternation(problem, cells)
    first = blocks.start()
    units = np.flatnonzero(first["selected"] > 0.5)
    most = 1.0 - first["pruning_ratio"][units]
    rng = np.random.default_rng(0)
    cases = []
    for _ in range(repeats + 1):
        # points the alternation could stand at: less kept than the start allows, each with its own best times
        kept = cells.least[units] * (most / cells.least[units]) ** rng.uniform(0.5, 1.0, units.size)
        decision = blocks._least_band(first, units, kept)
        taken = decision["selected"] > 0.5
        cycles = cells.client.cycles_once + cells.client.cycles_each * (1.0 - decision["pruning_ratio"])
        compute = np.where(taken, cycles / np.where(taken, decision["frequency"], 1.0), 0.5 * cells.client.delay_budget)
        cases.append(blocks.coefficients(decision, compute))
    start = time.perf_counter()
    compiled = RatioBandwidthStep(clients)
    compiled.solve(**cases[0])
    compiling = time.perf_counter() - start
    again, rebuilt, constants, difference = [], [], [], 0.0
    for case in cases[1:]:
        start = time.perf_counter()
        kept, _ = compiled.solve(**case)
        again.append(time.perf_counter() - start)
        value = compiled.problem.value
        start = time.perf_counter()
        fresh = RatioBandwidthStep(clients)
        fresh.solve(**case)
        rebuilt.append(time.perf_counter() - start)
        start = time.perf_counter()
        fresh = RatioBandwidthStep(clients)
        for name, values in case.items():
            fresh.parameters[name].value = values
        # parameters as constants: the cheapest way to build a program that is solved once
        fresh.problem.solve(solver=cp.CLARABEL, ignore_dpp=True)
        constants.append(time.perf_counter() - start)
        difference = max(difference, abs(fresh.problem.value - value) / max(abs(value), 1e-12))
    return [
        str(clients),
        f"{1e3 * compiling:.0f} ms",
        f"{1e3 * min(again):.1f} ms",
        f"{1e3 * min(rebuilt):.1f} ms",
        f"{min(rebuilt) / min(again):.1f} x",
        f"{1e3 * min(constants):.1f} ms",
        f"{min(constants) / min(again):.1f} x",
        f"{difference:.0e}",
    ]


def against_scip(clients: int, seed: int, seconds: float) -> list[str]:
    """The same problem as one mixed-integer nonlinear program, normalised, for SCIP."""
    problem = FEEL(jo.systems.feel(clients, seed))
    exact = jo.solve(problem, gap=GAP)
    other = scip(problem, seconds=seconds, gap=GAP)
    found = np.isfinite(other.value)
    assert exact.value is not None and exact.lower_bound is not None
    return [
        str(clients),
        f"{exact.value:.5g}",
        f"{exact.lower_bound:.5g}",
        f"{1e3 * exact.seconds:.0f} ms",
        f"{other.value:.5g}" if found else "none",
        f"{other.bound:.5g}",
        f"{100 * (other.value - other.bound) / abs(other.value):.1f} %" if found else "-",
        f"{other.seconds:.1f} s",
    ]


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--scip-seconds", type=float, default=60.0)
    parser.add_argument("--clients", type=int, nargs="*", default=[20, 50, 100])
    arguments = parser.parse_args()
    load = ", ".join(f"{x:.1f}" for x in os.getloadavg())
    print(f"{platform.machine()}, {os.cpu_count()} cores, load {load}\n")
    rows = [row for n in arguments.clients for row in certified(n, arguments.seeds, arguments.repeats)]
    header = ["clients", "seed", "taken", "to 0.1 %", "gap", "to 0.01 %", "gap", "value", "alternating above"]
    print(text_table(rows, header))
    print("\n(ratio, bandwidth) step in cvxpy, Clarabel")
    rows = [step(n, 20 if n <= 200 else 3) for n in (10, 50, 200, 1000)]
    print(
        text_table(rows, ["clients", "first", "re-solve", "rebuilt", "ratio", "with constants", "ratio", "difference"])
    )
    print(f"\nSCIP, one thread, at most {arguments.scip_seconds:g} s, gap 0.1 %")
    try:
        rows = [against_scip(n, 0, arguments.scip_seconds) for n in (2, 4, 6, 12)]
    except ImportError:
        print("skipped: needs the extra scip (pip install jointopt[scip])")
        return
    header = ["clients", "value", "bound", "time", "SCIP value", "SCIP bound", "SCIP gap", "SCIP time"]
    print(text_table(rows, header))


if __name__ == "__main__":
    main()

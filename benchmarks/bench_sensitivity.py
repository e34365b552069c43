"""Shadow prices against finite differences of solving again, at fixed whole numbers.

Run ``python benchmarks/bench_sensitivity.py``. Central differences of the certified optimum, budgets moved by a
relative 1e-4; entries at a kink, where one-sided differences disagree, are counted apart.
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

import jointopt as jo
from jointopt.problems import DESIGNS
from jointopt.report import text_table

STEP = 1e-4
KINK = 1e-2
"""Relative difference of one-sided derivatives from which a point counts as a kink."""


def fixed(problem: Any, decision: Any) -> Any:
    """Return the problem with its whole numbers fixed where the decision has them."""
    whole = {v.name: decision[v.name] for v in problem.variables if v.kind != "real" and v.name != "split"}
    return problem.restrict(**whole) if whole else problem


def differences(problem: Any, field: str, device: int | None, gap: float) -> tuple[float, float]:
    """Return one-sided derivatives (down, up) of the improvement of the optimum in a field."""
    value = np.array(problem.system.to_dict()[owner(problem.system, field)][field], dtype=np.float64)
    values = []
    for sign in (-1.0, 0.0, 1.0):
        moved = value.copy()
        if device is None:
            moved = moved * (1.0 + sign * STEP)
        else:
            moved[device] *= 1.0 + sign * STEP
        changed = problem.with_system(problem.system.with_(**{field: moved if moved.ndim else float(moved)}))
        result = jo.solve(changed, gap=gap)
        assert result.value is not None
        values.append(result.value)
    step = STEP * float(value if device is None else value[device])
    return (values[0] - values[1]) / step, (values[1] - values[2]) / step


def owner(system: Any, field: str) -> str:
    """Return the section of a field."""
    return next(name for name, table in system.to_dict().items() if isinstance(table, dict) and field in table)


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--devices", type=int, default=5)
    args = parser.parse_args()
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, load {load}")
    cases = {
        "ltfl": (("energy_budget", "delay_budget"), 1e-13),
        "coinference": (("energy_budget", "delay_budget"), 1e-13),
    }
    rows = []
    for design, (fields, gap) in cases.items():
        worst, entries, kinks, seconds = 0.0, 0, 0, 0.0
        for seed in range(args.seeds):
            problem = DESIGNS[design](DESIGNS[design].sample(devices=args.devices, seed=seed))
            result = jo.solve(problem, gap=gap)
            if result.value is None:
                continue
            problem = fixed(problem, result.decision)
            result = jo.solve(problem, gap=gap)
            start = time.perf_counter()
            prices = result.sensitivity(fields)
            seconds += time.perf_counter() - start
            for field in fields:
                for device in range(args.devices):
                    below, above = differences(problem, field, device, gap)
                    price = float(np.asarray(prices[field])[device])
                    size = max(abs(below), abs(above))
                    if size <= 1e-9 * abs(result.value) / STEP and abs(price) <= size:
                        continue
                    if abs(below - above) > KINK * size:
                        kinks += 1
                        continue
                    entries += 1
                    worst = max(worst, abs(0.5 * (below + above) - price) / abs(price))
        rows.append([design, f"{entries}", f"{kinks}", f"{worst:.1e}", f"{1e3 * seconds / args.seeds:.0f} ms"])
    print(text_table(rows, ["design", "prices above 0", "at kinks", "worst relative error", "time of all prices"]))


if __name__ == "__main__":
    main()

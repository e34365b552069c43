"""Designs that choose ratios and bands: seconds and certified gap, and what tiers by time save in bits.

Run ``python benchmarks/bench_relatives.py``. Savings are at equal learning cost: the same bound of the mean squared
gradient norm. The constants are those of the theorems, which are loose: below a target of about twice Gamma nothing is
saved.
"""

from __future__ import annotations

import os
import platform
import time
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import jointopt as jo
from jointopt.problems import Hierarchical, RatioBandwidth, RatioBandwidthSelection, RatioError, TimeTriggered
from jointopt.report import text_table

DESIGNS = {
    RatioBandwidth: 1e-6,
    RatioBandwidthSelection: 1e-4,
    TimeTriggered: 1e-4,
    RatioError: 1e-3,
    Hierarchical: 1e-4,
}
"""Relative gap to reach, by design."""


def solved(kind: Any, devices: int, gap: float) -> list[str]:
    """Solve one instance; one row of the table."""
    problem = kind(kind.sample(devices=devices))
    start = time.perf_counter()
    result = jo.solve(problem, gap=gap)
    seconds = time.perf_counter() - start
    reached = "none" if result.gap is None else f"{100 * result.gap:.5f} %"
    return [kind.name, f"{devices:,}", f"{seconds:.2f} s", reached, result.status]


def saved(target: float, factors: tuple[float, ...] = (0.75, 1.0, 1.25, 1.5, 1.75, 2.0, 3.0)) -> list[str]:
    """Compare tiers with synchronous learning of whole models at a target; the best of several intervals."""
    system = TimeTriggered.sample(devices=50)
    assert system.tiers is not None
    rows = []
    for factor in factors:
        interval = factor * system.tiers.interval
        problem = TimeTriggered(system.with_(interval=interval, delay_budget=4.0 * interval))
        result = jo.solve(problem, gap=1e-3)
        if result.decision is None or result.value is None or result.value >= target:
            continue
        own, other = problem.course(result.decision, target), problem.synchronous(target)
        rows.append((1.0 - own.bits / other.bits, 1.0 - own.seconds / other.seconds, result.value / target, factor))
    bits, seconds, share, factor = max(rows)
    return [f"{target:g}", f"{100 * share:.0f} %", f"{100 * bits:.0f} %", f"{100 * seconds:.0f} %", f"{factor:g}"]


def main() -> None:
    """Print both tables."""
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores\n")
    jo.solve(RatioBandwidth(RatioBandwidth.sample(devices=5)), gap=1e-2)  # warm
    rows = [solved(kind, devices, gap) for kind, gap in DESIGNS.items() for devices in (100, 1_000)]
    print(text_table(rows, ["design", "devices", "seconds", "gap", "status"]))
    print()
    rows = [saved(target) for target in (5.0, 10.0, 20.0, 50.0)]
    print(text_table(rows, ["target", "Gamma over it", "bits saved", "time saved", "interval x"]))


if __name__ == "__main__":
    main()

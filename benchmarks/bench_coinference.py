"""Co-inference: least pruning ratios in batches against plain loops, whole designs, ratios by layer.

Run ``python benchmarks/bench_coinference.py``; everything is measured side by side in one run and printed as tables.
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.optimize import minimize
from scipy.special import lambertw

import jointopt as jo
from jointopt import systems
from jointopt.models.inference import Chains, least_ratio
from jointopt.problems import CoInference, LayerwiseCoInference
from jointopt.report import text_table

_LN2 = float(np.log(2.0))
RATIO_MAX = 0.95


def golden_like(count: int, seed: int) -> tuple[Chains, np.ndarray, np.ndarray]:
    """Chains with the constants and sizes of theory 4f: 210 GFLOP, 2 Mbit, split anywhere; random budgets."""
    rng = np.random.default_rng(seed)
    share = rng.uniform(0.05, 0.95, count)

    def all_(value: float) -> np.ndarray:
        return np.full(count, value)

    chains = Chains(
        device_work=210e9 * share / 32.0,
        device_fixed=all_(0.0),
        server_work=210e9 * (1.0 - share) / 128.0,
        server_fixed=all_(0.0),
        bits=all_(2e6),
        shrinks=np.zeros(count, dtype=bool),
        device_coefficient=all_(2e-29),
        server_coefficient=all_(2e-28),
        noise=all_(5e6 * 3.98107e-21 / 1e-10),
        bandwidth=all_(5e6),
        frequency_low=all_(0.0),
        frequency_high=all_(2e9),
        server_low=all_(0.0),
        server_high=all_(10e9),
        power_low=all_(0.0),
        power_high=all_(0.2),
    )
    return chains, rng.uniform(1.0, 3.0, count), 10.0 ** rng.uniform(-1.0, 0.0, count)


def autoencoder_like(count: int, seed: int) -> tuple[Chains, np.ndarray, np.ndarray]:
    """Random splits, channels and budgets of the sampled autoencoder systems."""
    rng = np.random.default_rng(seed)
    system = systems.coinference(count, seed=seed)
    chains = CoInference(system).capabilities().cells.chains(np.arange(count), rng.integers(0, 17, count))  # type: ignore[union-attr]
    return chains, system.devices.delay_budget, system.devices.energy_budget


def by_bisection(c: dict[str, float], deadline: float, budget: float) -> float:
    """One chain: bisect the ratio, inside it the multiplier (4d as written); nan where infeasible."""

    def energy(ratio: float) -> float:
        wd, ws, bits = (1 - ratio) * c["device_work"], (1 - ratio) * c["server_work"], c["bits"]
        low = (
            wd / c["frequency_high"],
            ws / c["server_high"],
            bits / (c["bandwidth"] * np.log2(1.0 + c["power_high"] / c["noise"])),
        )
        if sum(low) > deadline:
            return np.inf

        def times(mu: float) -> tuple[float, float, float]:
            td = max((2 * c["device_coefficient"] * wd**3 / mu) ** (1 / 3), low[0])
            ts = max((2 * c["server_coefficient"] * ws**3 / mu) ** (1 / 3), low[1])
            x = (lambertw((mu / c["noise"] - 1.0) / np.e).real + 1.0) / _LN2 if bits else 1.0
            return td, ts, max(bits / (c["bandwidth"] * max(x, 1e-300)), low[2]) if bits else 0.0

        a, b = 1e-30, 1e30
        while b > a * (1.0 + 1e-13):
            mu = np.sqrt(a * b)
            a, b = (mu, b) if sum(times(mu)) > deadline else (a, mu)
        td, ts, tu = times(b)
        out = c["device_coefficient"] * wd**3 / td**2 if wd else 0.0
        out += c["server_coefficient"] * ws**3 / ts**2 if ws else 0.0
        return out + (tu * c["noise"] * np.expm1(_LN2 * bits / (c["bandwidth"] * tu)) if bits else 0.0)

    if energy(RATIO_MAX) > budget:
        return np.nan
    if energy(0.0) <= budget:
        return 0.0
    a, b = 0.0, RATIO_MAX
    while b - a > 1e-12:
        middle = 0.5 * (a + b)
        a, b = (a, middle) if energy(middle) <= budget else (middle, b)
    return b


def by_slsqp(c: dict[str, float], deadline: float, budget: float) -> float:
    """One chain: SciPy's SLSQP in ratio and times (in units of the deadline); nan where it finds nothing feasible."""
    fastest = c["bits"] / (c["bandwidth"] * np.log2(1.0 + c["power_high"] / c["noise"])) / deadline

    def room(x: np.ndarray) -> np.ndarray:
        ratio, td, ts, tu = x
        wd, ws = (1 - ratio) * c["device_work"] / deadline, (1 - ratio) * c["server_work"] / deadline
        energy = 0.0
        if c["device_work"]:
            energy += c["device_coefficient"] * deadline * wd**3 / max(td, 1e-9) ** 2
        if c["server_work"]:
            energy += c["server_coefficient"] * deadline * ws**3 / max(ts, 1e-9) ** 2
        if c["bits"]:
            rate = min(_LN2 * c["bits"] / (c["bandwidth"] * deadline * max(tu, 1e-9)), 200.0)
            energy += tu * deadline * c["noise"] * np.expm1(rate)
        return np.array(
            [1 - td - ts - tu, 1 - energy / budget, td - wd / c["frequency_high"], ts - ws / c["server_high"]]
        )

    best = np.nan
    for start in (0.9, 0.5):
        found = minimize(
            lambda x: x[0],
            [start, 0.4, 0.4, 0.2],
            method="SLSQP",
            bounds=[(0, RATIO_MAX), (1e-9, 1), (1e-9, 1), (min(max(fastest, 1e-9), 1.0), 1)],
            constraints={"type": "ineq", "fun": room},
            options={"maxiter": 200, "ftol": 1e-12},
        )
        if np.all(room(found.x) >= -1e-7):
            best = float(np.fmin(best, found.x[0]))
    return best


def batches(sizes: list[int], loops: int, slow: int) -> None:
    """Instances per second in batches, beside one after another in plain Python."""
    rows = []
    makers: tuple[tuple[str, Callable[[int, int], tuple[Chains, np.ndarray, np.ndarray]]], ...] = (
        ("golden-like", golden_like),
        ("autoencoder", autoencoder_like),
    )
    for name, make in makers:
        for size in sizes:
            chains, deadline, budget = make(size, 0)
            zero = np.zeros(size)
            seconds = np.inf
            for _ in range(3):
                start = time.perf_counter()
                found = least_ratio(chains, deadline, budget, zero, zero + RATIO_MAX)
                seconds = min(seconds, time.perf_counter() - start)
            rate = size / seconds
            cells: list[str] = []
            methods: tuple[tuple[Callable[..., float], int], ...] = ((by_bisection, loops), (by_slsqp, slow))
            for method, count in methods if size == sizes[-1] else ():
                start, values = time.perf_counter(), np.full(count, np.nan)
                for i in range(count):
                    one = {k: float(v) for k, v in vars(chains.take(i)).items()}
                    values[i] = method(one, float(deadline[i]), float(budget[i]))
                plain = count / (time.perf_counter() - start)
                ours = np.where(found.feasible, found.ratio, np.nan)[:count]
                both = np.isfinite(values) & np.isfinite(ours)
                apart = np.abs(values - ours)[both].max() if both.any() else 0.0
                missed = int((np.isfinite(ours) & ~np.isfinite(values)).sum())
                cells.append(f"{plain:,.0f}/s ({rate / plain:,.0f} x, {apart:.0e} apart, {missed} missed)")
            share = 100 * found.feasible.mean()
            rows.append([name, f"{size:,}", f"{share:.0f} %", f"{rate:,.0f}/s", *(cells or ["", ""])])
    print(text_table(rows, ["chains", "batch", "feasible", "batched", "bisection, one by one", "SLSQP, one by one"]))


def designs(sizes: list[int]) -> None:
    """Whole designs, all splits tried, and ratios by layer."""
    rows: list[list[Any]] = []
    for size in sizes:
        problem = CoInference(systems.coinference(size, seed=0))
        seconds, result = np.inf, None
        for _ in range(3):
            start = time.perf_counter()
            result = jo.solve(problem)
            seconds = min(seconds, time.perf_counter() - start)
        assert result is not None
        gap = f"{result.gap:.0e}" if result.gap is not None else "-"
        each = f"{1e6 * seconds / size:.1f} us"
        rows.append(["one ratio", "autoencoder", f"{size:,}", f"{seconds:.4f} s", each, result.status, gap])
    for data in ("autoencoder", "minilm"):
        problem_ = LayerwiseCoInference(systems.coinference(1, seed=0, data=data))
        jo.solve(problem_)
        start = time.perf_counter()
        result = jo.solve(problem_)
        seconds = time.perf_counter() - start
        gap = f"{result.gap:.0e}" if result.gap is not None else "-"
        rows.append(["ratios by layer", data, "1", f"{seconds:.3f} s", "", result.status, gap])
    print(text_table(rows, ["design", "network", "devices", "time", "per device", "status", "certified gap"]))


def main() -> None:
    """Print both tables with the machine's load."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--largest", type=int, default=100_000, help="instances of the largest batch")
    parser.add_argument("--loops", type=int, default=100, help="instances solved one by one, by bisection")
    parser.add_argument("--slow", type=int, default=50, help="the same by SLSQP")
    arguments = parser.parse_args()
    load = os.getloadavg()[0]
    print(f"Python {platform.python_version()}, {os.cpu_count()} cores, load before: {load:.2f}\n")
    sizes = [n for n in (1_000, 100_000) if n < arguments.largest] + [arguments.largest]
    batches(sizes, min(arguments.loops, arguments.largest), min(arguments.slow, arguments.largest))
    print()
    designs([n for n in (1, 1_000, 100_000) if n <= arguments.largest])


if __name__ == "__main__":
    main()

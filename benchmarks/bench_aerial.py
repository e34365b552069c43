"""Aerial designs: decisions of a slot in batches against a plain loop, flights, and what the published search misses.

Run ``python benchmarks/bench_aerial.py``; everything is measured side by side in one run and printed as tables.
"""

from __future__ import annotations

import argparse
import math
import os
import platform
import time

import numpy as np

import jointopt as jo
from jointopt import systems
from jointopt.problems import Aerial, AerialTrajectory
from jointopt.problems.aerial_flight import best_of_grid, class_yields, projected_gradient, utility
from jointopt.report import text_table
from jointopt.system import AerialSystem

SLOT = 10


def by_loop(problem: Aerial) -> float:
    """The decisions of a slot one vehicle and one level at a time, both ends of every range (5d as written)."""
    system, bound, slot = problem.system, problem.system.bound, problem.slots[0]
    learner, vehicles = system.learner, system.vehicles
    held, gain, noise = system.buffered[:, slot], system.gain[:, slot], system.noise_power
    most = learner.pruning_ratio_max
    ranges: list[list[tuple[int, float]]] = []
    for u in range(len(system)):
        found = []
        rate = system.link.bandwidth[u] * math.log2(1.0 + vehicles.power[u] * gain[u] / noise[u])
        cycles = bound.local_steps * min(held[u], learner.batch_size) * vehicles.cycles_per_sample[u]
        for b in range(1, 9):
            fixed = learner.unpruned_parameters * (b + 1) + learner.header_bits
            falling = learner.parameters * (b + 1)
            need = 0.0
            for budget, compute, bit in (
                (vehicles.delay_budget[u], cycles / vehicles.frequency[u], 1.0 / rate),
                (
                    vehicles.energy_budget[u],
                    vehicles.capacitance[u] * vehicles.frequency[u] ** 2 * cycles,
                    vehicles.power[u] / rate,
                ),
            ):
                need = max(need, 1.0 - (budget - fixed * bit) / (compute + falling * bit))
            if need <= most and held[u] > 0.0:
                found.append((2**b - 1, need))
        ranges.append(found)
    total = sum(float(held[u]) for u in range(len(system)) if ranges[u])
    value = 0.0
    for u, found in enumerate(ranges):
        if not found:
            continue
        share = float(held[u]) / total
        removed = share * (bound.smoothness**2 * bound.weight_norm_squared + bound.mask_energy)
        noisy = 2.0 * bound.smoothness * bound.learning_rate * bound.local_steps * share**2 * bound.gradient_energy
        best = math.inf
        for s, need in found:
            for ratio in (need, most):
                d = (1.0 - ratio) * learner.parameters + learner.unpruned_parameters
                best = min(best, removed * ratio + noisy * min(d / s**2, math.sqrt(d) / s))
        value += best
    return value


def slots(sizes: list[int]) -> None:
    """One slot of many vehicles: certified solution, decisions alone, and the plain loop."""
    rows = []
    for size in sizes:
        system = systems.aerial(size, seed=0)
        jo.solve(Aerial(system, slot=SLOT))
        whole, decided, plain, value = np.inf, np.inf, np.inf, 0.0
        for _ in range(7):
            start = time.perf_counter()
            result = jo.solve(Aerial(system, slot=SLOT))
            whole = min(whole, time.perf_counter() - start)
            start = time.perf_counter()
            cells = Aerial(system, slot=SLOT).cells
            cells.cover(np.ones(1), slice(0, cells.units))
            decided = min(decided, time.perf_counter() - start)
        for _ in range(3):
            start = time.perf_counter()
            value = by_loop(Aerial(system, slot=SLOT))
            plain = min(plain, time.perf_counter() - start)
        assert result.value is not None
        rows.append(
            [
                f"{size:,}",
                f"{1e3 * whole:.2f} ms",
                f"{1e3 * decided:.2f} ms",
                f"{1e3 * plain:.1f} ms",
                f"{plain / whole:.1f} x",
                f"{plain / decided:.1f} x",
                f"{abs(value - result.value) / abs(result.value):.0e}",
            ]
        )
    print(text_table(rows, ["vehicles", "solved", "decided only", "plain loop", "ratio", "ratio", "apart"]))


def flights(points: list[int]) -> None:
    """Flights of 10 vehicles over 20 slots: backward induction and the short-sighted rules."""
    system = systems.aerial(10, seed=0)
    rows = []
    for count in points:
        problem = AerialTrajectory(system, points=count)
        for method in ("staged", *problem.capabilities().baselines):
            start = time.perf_counter()
            result = jo.solve(problem, method=method)
            seconds = time.perf_counter() - start
            assert result.evaluation is not None
            new = float(np.sum(result.evaluation.quantities["new_samples"]))
            worth = float(np.sum(result.evaluation.quantities["utility"]))
            rows.append([f"{count} x {count}", method, f"{seconds:.3f} s", f"{worth:.1f}", f"{new:.0f}"])
    print(text_table(rows, ["lattice", "method", "time", "utility", "samples"]))


def drawn(draws: int, seed: int, side: float, field_of_view: float) -> AerialSystem:
    """One vehicle a draw, 6 means and the start in a square of the middle; samples count millionfold: no ceiling."""
    rng = np.random.default_rng(seed)
    system = systems.aerial(draws, seed=seed, slots=1)
    corner = 0.5 * (np.array([system.area.width, system.area.length]) - side)
    sections = {name: getattr(system, name) for name in ("area", "link", "learner", "bound")}
    return AerialSystem(
        **sections,
        vehicles=system.vehicles.replace(
            start=corner + side * rng.random((draws, 2)), flight_price=1e6 * system.vehicles.flight_price
        ),
        sensing=system.sensing.replace(
            class_means=corner + side * rng.random((draws, 6, 2)),
            samples_max=1e6 * system.sensing.samples_max,
            class_map=rng.standard_normal((draws, 6, 3)),
            mixture_weights=np.full((draws, 6), 1.0 / 6.0),
            mixture_covariances=system.sensing.mixture_covariances[:, :6],
            field_of_view=field_of_view,
        ),
    )


def misses(draws: int) -> None:
    """How often the published search stays more than 0.1 % below the best point of a fine grid, ceiling ignored."""
    rows = []
    cases = (("120 m, no footprint", 120.0, 3.14), ("120 m", 120.0, math.pi / 3.0), ("1 km", 1000.0, math.pi / 3.0))
    for name, side, view in cases:
        system = drawn(draws, 0, side, view)
        start = np.asarray(system.vehicles.start)

        def worth(position: np.ndarray, system: AerialSystem = system, start: np.ndarray = start) -> np.ndarray:
            return utility(system, 0, position[:, None], start)[:, 0]

        published = worth(projected_gradient(system, 0, start))
        grid = np.maximum(worth(best_of_grid(system, 0, start, points=101)), published)
        seen = class_yields(system, 0, best_of_grid(system, 0, start)[:, None])[:, 0].sum(axis=-1) > 0.0
        missed = seen & (published < grid - 1e-3 * np.abs(grid))
        short = (grid - published)[missed] / np.abs(grid[missed])
        rows.append(
            [
                name,
                str(draws),
                str(int((~seen).sum())),
                f"{int(missed.sum())} ({missed.mean():.0%})",
                f"{np.median(short):.1%}" if short.size else "-",
                f"{short.max():.1%}" if short.size else "-",
            ]
        )
    print(text_table(rows, ["means within", "draws", "nothing in reach", "missed", "median loss", "worst loss"]))


def main() -> None:
    """Print the tables with the machine's load."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--largest", type=int, default=10_000, help="vehicles of the largest slot")
    parser.add_argument("--draws", type=int, default=300, help="draws of the search that may miss")
    arguments = parser.parse_args()
    print(f"Python {platform.python_version()}, {os.cpu_count()} cores, load before: {os.getloadavg()[0]:.2f}\n")
    slots([n for n in (10, 1_000) if n < arguments.largest] + [arguments.largest])
    print()
    flights([25, 50])
    print()
    misses(arguments.draws)


if __name__ == "__main__":
    main()

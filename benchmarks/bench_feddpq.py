"""FedDPQ: the certified solver against the published searches given 100 times its time; the generator's training.

``python benchmarks/bench_feddpq.py`` solves one sampled system of 100 devices to a certified gap of 1 %, then lets
joint Bayesian optimization and block coordinate descent search for ``--factor`` (100) times as long. ``--train`` also
trains the diffusion model of the digits from nothing and judges it.
"""

from __future__ import annotations

import argparse
import time

import jointopt as jo
from jointopt.units import format_si


def main() -> int:
    """Run and print ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--devices", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--factor", type=float, default=100.0, help="how many times the certified solver's time")
    parser.add_argument("--train", action="store_true", help="train the diffusion model of the digits too")
    arguments = parser.parse_args()
    if arguments.train:
        train()
    problem = jo.problems.FedDPQ(jo.systems.feddpq(arguments.devices, arguments.seed))
    started = time.perf_counter()
    exact = jo.solve(problem, gap=0.01)
    seconds = time.perf_counter() - started
    assert exact.value is not None and exact.gap is not None
    print(
        f"{arguments.devices} devices, {len(problem.levels)} augmentation levels: {exact.value:.5g} J in "
        f"{format_si(seconds, 's')}, certified gap {exact.gap:.2%}",
        flush=True,
    )
    limit = arguments.factor * seconds
    for method, options in (("bayesian", {"iterations": 1_000_000}), ("alternating", {"max_iterations": 1_000_000})):
        started = time.perf_counter()
        found = jo.solve(problem, method=method, time_limit=limit, **options)
        took = time.perf_counter() - started
        words = "nothing feasible" if found.value is None else f"{found.value / exact.value - 1.0:+.2%} of its energy"
        print(
            f"{method}: {words} in {format_si(took, 's')} ({took / seconds:.0f} times as long, "
            f"{found.n_evaluations} evaluations)",
            flush=True,
        )
        assert found.value is None or found.value >= exact.value * (1.0 - 1e-9), "a search beat the certified solver"
    return 0


def train() -> None:
    """Train the generator of the digits from nothing, and compare classifiers."""
    from jointopt.augmentation import DiffusionGenerator, quality

    data = jo.data.load("digits")
    wall, processor = time.perf_counter(), time.process_time()
    maker = DiffusionGenerator.train(data, seed=0)
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    print(f"diffusion on digits: {wall:.0f} s ({processor:.0f} s of processor time); {quality(maker, data).summary()}")


if __name__ == "__main__":
    raise SystemExit(main())

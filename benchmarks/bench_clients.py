"""A thousand simulated clients, a hundred a round: memory and time per round.

Run ``python benchmarks/bench_clients.py``. Fashion-MNIST over 1,000 clients, each with a pruning ratio of its own, 8
bits, 5 local steps of batches of 32; peak memory of the process, data and libraries included.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import time
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

import jointopt as jo
from jointopt.report import text_table

LIMIT = 2.0
"""GiB to stay under."""


def one(network: str, clients: int, part: int, rounds: int) -> list[str]:
    """Train one network; return a row of the table."""
    task = jo.Task.make("fashion-mnist", network, devices=clients, batch_size=32, seed=0)
    sizes = {"samples": task.samples, "parameters": task.parameters, "unpruned_parameters": task.unpruned_parameters}
    system = jo.systems.ltfl(devices=clients, data="fashion-mnist", batch_size=32, **sizes)
    ratios = np.random.default_rng(0).uniform(0.0, 0.9, clients)
    times = [time.perf_counter()]

    def tick(_: dict[str, Any]) -> None:
        times.append(time.perf_counter())

    jo.train(
        {"pruning_ratio": ratios, "bits": 8, "power": 0.1},
        task,
        system=system,
        rounds=rounds,
        algorithm="fedavg",
        local_steps=5,
        learning_rate=0.05,
        participation=part,
        evaluate_every=10**6,
        measure_gradient_every=0,
        callback=tick,
    )
    # the first and the last round are tested on all 10,000 images
    middle = float(np.min(np.diff(times)[1:-1]))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    verdict = "yes" if peak <= LIMIT else "no"
    return [network, f"{clients}", f"{part}", f"{middle:.2f} s", f"{peak:.2f} GiB", verdict]


def main() -> None:
    """Print the table; every network has a process of its own, since peaks never fall."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", nargs="+", default=["mlp", "cnn"])
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--part", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print("\t".join(one(args.one, args.clients, args.part, args.rounds)))
        return
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    print(f"{os.cpu_count()} cores, load {load}")
    rows = []
    for network in args.networks:
        options = ["--clients", str(args.clients), "--part", str(args.part), "--rounds", str(args.rounds)]
        done = subprocess.run(
            [sys.executable, __file__, "--one", network, *options], check=True, capture_output=True, text=True
        )
        rows.append(done.stdout.strip().splitlines()[-1].split("\t"))
    header = ["network", "clients", "a round", "time of a round", "peak memory", f"at most {LIMIT:g} GiB"]
    print(text_table(rows, header))


if __name__ == "__main__":
    main()

"""A thousand rounds, each solved from the one before, against solving each from scratch; one thread, CPU time.

Channels either drift (log-normal shadowing of 4 dB that follows an AR(1) process in steps of about 1 dB) or are drawn
anew every round (Rayleigh fading on top of the mean gain for FEEL, shadowing of 1 dB for LTFL).

    python benchmarks/bench_stream.py [--rounds 1000] [--devices 100] [--gap 1e-3]
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from jointopt.problem import Problem
from jointopt.problems.feel import FEEL
from jointopt.problems.ltfl import LTFL
from jointopt.solvers.dispatch import solve
from jointopt.solvers.stream import Stream

MEMORY, SHADOWING = 0.97, 4.0
EVERY = 50


def drifting(gain: np.ndarray, rounds: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Mean gains under correlated shadowing."""
    shadow = np.zeros(gain.size)
    for _ in range(rounds):
        shadow = MEMORY * shadow + np.sqrt(1.0 - MEMORY**2) * SHADOWING * rng.normal(size=gain.size)
        yield gain * 10.0 ** (shadow / 10.0)


def redrawn(gain: np.ndarray, rounds: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Gains under Rayleigh fading that is independent from round to round."""
    for _ in range(rounds):
        yield gain * np.maximum(rng.exponential(size=gain.size), 0.05)


def reshadowed(gain: np.ndarray, rounds: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Mean gains under shadowing of 1 dB that is independent from round to round."""
    for _ in range(rounds):
        yield gain * 10.0 ** (0.1 * rng.normal(size=gain.size))


def limited(devices: int) -> LTFL:
    """LTFL whose limit A < 1 binds."""
    system = LTFL.sample(devices=devices, seed=0)
    free = solve(LTFL(system))
    assert free.evaluation is not None
    lost = float(system.weight @ free.evaluation.quantities["packet_error"])
    return LTFL(system.with_(gradient_slope=1.03 / (8.0 * lost)))


def timed(problem: Problem, **options: float) -> float:
    """CPU milliseconds of one solution from scratch."""
    start = time.process_time()
    solve(problem, **options)
    return 1e3 * (time.process_time() - start)


def run(name: str, problem: Problem, gains: Iterator[np.ndarray], gap: float) -> None:
    """Print one line of figures."""
    stream = Stream(problem, gap=gap)
    spent, left, default, same, infeasible = [], [], [], [], 0
    for step, gain in enumerate(gains):
        start = time.process_time()
        result = stream.step(gain=gain)
        if step:
            spent.append(1e3 * (time.process_time() - start))
        if result.gap is None:
            infeasible += 1
        else:
            left.append(result.gap)
        if step % EVERY == EVERY - 1:
            default.append(timed(stream.problem))
            same.append(timed(stream.problem, gap=gap))
    mean, median = float(np.mean(spent)), float(np.median(spent))
    scratch, alike = float(np.mean(default)), float(np.mean(same))
    print(
        f"{name:24s} {mean:8.1f} {median:8.1f} {max(spent):8.1f} {max(left):11.1e} {infeasible:6d} {scratch:9.0f} "
        f"{alike:9.0f} {scratch / mean:7.1f} {scratch / median:7.1f} {alike / mean:7.1f}",
        flush=True,
    )


def main() -> None:
    """Run all streams."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--devices", type=int, default=100)
    parser.add_argument("--gap", type=float, default=1e-3)
    options = parser.parse_args()
    print(f"{options.rounds} rounds, {options.devices} devices, gap {options.gap:g}; CPU ms")
    print(
        f"{'stream':24s} {'mean':>8s} {'median':>8s} {'max':>8s} {'worst gap':>11s} {'infeas':>6s} {'scratch':>9s} "
        f"{'same gap':>9s} {'x mean':>7s} {'x med.':>7s} {'x same':>7s}"
    )
    problems: dict[str, Problem] = {
        "FEEL": FEEL(FEEL.sample(devices=options.devices, seed=0)),
        "LTFL, A < 1 binding": limited(options.devices),
    }
    for name, problem in problems.items():
        # the rates of LTFL are averages over Rayleigh fading: only mean gains can change
        for kind, channel in (("drift", drifting), ("redraw", redrawn if name == "FEEL" else reshadowed)):
            gains = channel(problem.system.radio.gain, options.rounds, np.random.default_rng(1))
            run(f"{name}, {kind}", problem, gains, options.gap)


if __name__ == "__main__":
    main()

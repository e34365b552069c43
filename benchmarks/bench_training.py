"""One round of federated averaging: a bare PyTorch loop, jointopt's engines, `jointopt.train`, and Flower.

Run ``python benchmarks/bench_training.py``. Fashion-MNIST split over 20 clients, 10 local steps of batches of 32; a
round includes drawing the batches and averaging. What runs in one process takes turns, round by round, and the least
time of each is printed, since other work on the machine only ever adds. Flower runs in processes of its own, with
``--flower-python PATH``, an interpreter that has flwr[simulation] and torch; the bare loop is timed before and after.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import tempfile
import time
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
# On a busy machine threads that spin while they wait keep the one they wait for from running.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
import torch
from flower_round import local_steps
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import jointopt as jo
from jointopt.federated.engines import ENGINES, Client, Engine, Job
from jointopt.federated.task import Task
from jointopt.federated.training import train
from jointopt.pruning.layout import Layout
from jointopt.report import text_table

STEPS, BATCH, RATE = 10, 32, 0.05
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "process": time.process_time}
CLIENTS = {"mlp": 20, "cnn": 20, "resnet8": 4}
"""Networks and how many clients train them; fewer where a round would take minutes."""


class Bare:
    """The loop without any framework: load, train, add up state dictionaries."""

    def __init__(self, task: Task, steps: int = STEPS) -> None:
        self.steps = steps
        self.inputs, self.labels = task.data.train_inputs, task.data.train_labels
        self.parts = [torch.from_numpy(part) for part in task.parts]
        self.module = deepcopy(task.module).train()
        self.state = {name: value.clone() for name, value in self.module.state_dict().items()}
        self.rng = np.random.default_rng(0)

    def __call__(self) -> None:
        total = sum(len(part) for part in self.parts)
        average = {name: torch.zeros_like(v) for name, v in self.state.items() if v.is_floating_point()}
        for part in self.parts:
            self.module.load_state_dict(self.state)
            local_steps(self.module, self.inputs, self.labels, part, self.steps, BATCH, RATE, self.rng)
            trained = self.module.state_dict()
            for name, value in average.items():
                value.add_(trained[name], alpha=len(part) / total)
        self.state.update(average)

    @property
    def weights(self) -> Tensor:
        return torch.cat([self.state[name].reshape(-1) for name, _ in self.module.named_parameters()])


class Alone:
    """An engine with nothing around it but drawing batches and averaging."""

    def __init__(self, task: Task, engine: Engine, steps: int = STEPS) -> None:
        self.engine = engine
        self.parts = [torch.from_numpy(part) for part in task.parts]
        module: nn.Module = deepcopy(task.module)
        self.job = Job(module, task.data.train_inputs, task.data.train_labels, cross_entropy, steps, RATE)
        self.weights, self.buffers = Layout.flatten(module), Layout.flatten_buffers(module)
        self.rng = np.random.default_rng(0)

    def client(self, part: Tensor) -> Client:
        size = min(BATCH, len(part))
        draws = np.stack([self.rng.choice(len(part), size, replace=False) for _ in range(self.job.steps)])
        return Client(self.weights, part[torch.from_numpy(draws)], None, self.buffers)

    def __call__(self) -> None:
        total = sum(len(part) for part in self.parts)
        step, buffers = torch.zeros_like(self.weights), torch.zeros_like(self.buffers)
        for one in self.engine.run(self.job, (self.client(part) for part in self.parts)):
            share = len(self.parts[one.number]) / total
            step.add_(one.total, alpha=share)
            buffers.add_(one.buffers, alpha=share)
        self.weights, self.buffers = self.weights - RATE * step, buffers


def jointopt_round(task: Task, rounds: int, threads: int, callback: Callable[[dict[str, Any]], Any]) -> None:
    """Train with `jointopt.train`, dense and with raw floats: masks, packets, losses, ledger and all.

    The callback is called after each round; the first and the last also test the model.
    """
    system = jo.System.from_task(task, template=jo.systems.ltfl(len(task), 0))
    decision = {"pruning_ratio": 0.0, "power": 0.1, "bits": 32}
    train(
        decision,
        system,
        task,
        rounds=rounds,
        learning_rate=RATE,
        algorithm="fedavg",
        local_steps=STEPS,
        evaluate_every=rounds,
        measure_gradient_every=0,
        threads=threads,
        callback=callback,
    )


def in_turns(
    task: Task, contenders: dict[str, Callable[[], None]], repeats: int, threads: int, now: Callable[[], float]
) -> dict[str, float]:
    """Return the least seconds of a round of each contender and of `jointopt.train`, whose callback runs the others."""
    seconds: dict[str, list[float]] = {name: [] for name in (*contenders, "jointopt.train")}
    mark = 0.0

    def between(row: dict[str, Any]) -> None:
        nonlocal mark
        if 2 <= row["round"] < repeats + 2:
            seconds["jointopt.train"].append(now() - mark)
        for name, work in contenders.items():
            start = now()
            work()
            if row["round"] >= 2:
                seconds[name].append(now() - start)
        mark = now()

    jointopt_round(task, repeats + 2, threads, between)
    return {name: min(values) for name, values in seconds.items()}


def agreement(task: Task) -> str:
    """Return how far the weights of every engine are from the bare loop's after one step, relative to the step.

    Not after ten: a residual network with batch normalisation then turns 1e-7 into 0.1, whatever computes it.
    """
    bare = Bare(task, 1)
    before = bare.weights
    bare()
    found = []
    for engine in ENGINES.values():
        alone = Alone(task, engine, 1)
        if engine.supports(alone.job):
            alone()
            error = float((alone.weights - bare.weights).norm() / (bare.weights - before).norm())
            assert error < 1e-4, f"{engine.name}: {error:.1e} from the bare loop"
            found.append(f"{engine.name} {error:.0e}")
    return ", ".join(found)


def load() -> str:
    return "load " + ", ".join(f"{value:.1f}" for value in os.getloadavg())


def table(name: str, task: Task, repeats: int, threads: int, clock: str) -> None:
    contenders: dict[str, Callable[[], None]] = {"bare loop": Bare(task)}
    for engine in ENGINES.values():
        alone = Alone(task, engine)
        if engine.supports(alone.job):
            contenders[f"engine {engine.name}"] = alone
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    start = load()
    try:
        least = in_turns(task, contenders, repeats, threads, CLOCKS[clock])
    finally:
        torch.set_num_threads(before)
    print(
        f"\n{name}, {Layout.of(task.module).size:,} parameters, {len(task)} clients, threads: {threads}; "
        f"least of {repeats}, {clock} time; {start}, then {load()}"
    )
    bare = least["bare loop"]
    rows = [[who, f"{1e3 * value:.1f} ms", f"{bare / value:.2f}"] for who, value in least.items()]
    print(text_table(rows, ["", "a round", "times as fast as the bare loop"]), flush=True)


def flower(name: str, task: Task, python: Path, rounds: int, processors: int, repeats: int) -> None:
    """Time Flower in its own interpreter, and the bare loop with as many threads before and after."""

    def bare() -> float:
        work, seconds = Bare(task), []
        torch.set_num_threads(processors)
        for _ in range(repeats + 1):
            start = time.perf_counter()
            work()
            seconds.append(time.perf_counter() - start)
        return min(seconds[1:])

    start, first = load(), bare()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        np.save(place / "inputs.npy", task.data.train_inputs.numpy())
        np.save(place / "labels.npy", task.data.train_labels.numpy())
        np.save(place / "rows.npy", np.concatenate(task.parts))
        np.save(place / "sizes.npy", task.samples)
        script = Path(__file__).resolve().with_name("flower_round.py")
        options = {"network": name, "steps": STEPS, "batch": BATCH, "rate": RATE, "rounds": rounds + 3, "drop": 3}
        command = [str(python), str(script), folder, "--processors", str(processors)]
        for option, value in options.items():
            command += [f"--{option}", str(value)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"flower_round.py failed:\n{done.stderr[-2000:]}")
    found = json.loads(done.stdout.strip().splitlines()[-1])
    last = bare()
    least, middle = min(found["seconds"]), float(np.median(found["seconds"]))
    print(
        f"\n{name}, Flower {found['flwr']}, processors: {processors}, {len(found['seconds'])} rounds in steady state: "
        f"least {1e3 * least:.0f} ms, median {1e3 * middle:.0f} ms; bare loop {1e3 * first:.1f} ms before and "
        f"{1e3 * last:.1f} ms after; Flower takes {least / min(first, last):.1f} times as long as the bare loop; "
        f"{start}, then {load()}",
        flush=True,
    )


def main() -> None:
    """Print one table for each network and number of threads, with the machine's load."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", nargs="+", choices=sorted(CLIENTS), default=["mlp", "cnn"])
    parser.add_argument("--resnet", action="store_true", help="resnet8 as well, with 4 clients")
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument(
        "--clock", choices=list(CLOCKS), default="wall", help="process: of all threads, on a busy machine"
    )
    parser.add_argument("--flower-python", type=Path, help="interpreter with flwr[simulation] and torch")
    parser.add_argument("--flower-rounds", type=int, default=9)
    args = parser.parse_args()
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, {load()}")
    tasks = {
        name: Task.make("fashion-mnist", name, devices=CLIENTS[name], batch_size=BATCH, seed=0)
        for name in dict.fromkeys([*args.networks, *(["resnet8"] if args.resnet else [])])
    }
    for name, task in tasks.items():
        print(f"\n{name}: weights after a step against the bare loop's: {agreement(task)}")
        for threads in args.threads:
            table(name, task, args.repeats, threads, args.clock)
    for name, task in tasks.items():
        if args.flower_python is None or name not in ("mlp", "cnn"):
            print(f"\n{name}, Flower: not measured" + (" (see --flower-python)" if args.flower_python is None else ""))
            continue
        for processors in args.threads:
            flower(name, task, args.flower_python, args.flower_rounds, processors, args.repeats)


if __name__ == "__main__":
    main()

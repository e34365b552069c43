"""A network cut to a tenth, trained federated from data: what accuracy it costs, and what the same shape does anew.

Arms, all with equal rounds, devices, batches and seeds: the dense CNN; its channels cut once after a round, weights
kept; the same cut with all weights drawn anew (the control: is it the weights or the shape?); channels cut by random;
the mean-std band of "Automatic Structured Pruning for Efficient Architecture in Federated Learning".

    python benchmarks/bench_structured.py [--rounds 12] [--seeds 3]
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

import jointopt as jo
from jointopt.pruning import Pruner, pruner
from jointopt.pruning.band import Rebuild
from jointopt.pruning.schedules import OneShot
from jointopt.report import text_table

DEVICES, BATCH, STEPS, RATE = 10, 64, 94, 0.1


def arms(ratio: float, cut: int) -> dict[str, tuple[float, Pruner]]:
    """Return pruning ratio and pruner by name."""
    once = {"schedule": OneShot(cut), "scope": "global", "persist": True}
    kept, anyhow = pruner("channel-magnitude").with_(**once), pruner("channel-random").with_(**once)
    return {
        "dense": (0.0, pruner("magnitude")),
        "channels by norm": (ratio, kept),
        "the same shape, drawn anew": (ratio, kept.with_(hooks=(Rebuild(),))),
        "channels by chance": (ratio, anyhow),
        "mean-std band": (ratio, pruner("mean-std-band", k=1.5)),
    }


def run(name: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Train one arm with one seed; kept on disk."""
    path = Path(options.out) / f"{name.replace(' ', '-').replace(',', '')}-{options.rounds}-{seed}.json"
    if path.exists():
        return dict(json.loads(path.read_text()))
    task = jo.Task.make("fashion-mnist", "cnn", devices=DEVICES, scheme="iid", batch_size=BATCH, seed=seed)
    sizes = {"samples": task.samples, "parameters": task.parameters, "unpruned_parameters": task.unpruned_parameters}
    system = jo.systems.ltfl(devices=DEVICES, data="fashion-mnist", batch_size=BATCH, **sizes)
    system = system.with_(bits_max=32, packet_error="none", fading="none", pruning_ratio_max=0.95)
    ratio, kind = arms(options.ratio, options.cut)[name]
    result = jo.train(
        {"pruning_ratio": ratio, "bits": 32, "power": 0.1},
        task,
        system=system,
        rounds=options.rounds,
        learning_rate=RATE,
        algorithm="fedavg",
        local_steps=STEPS,
        seed=seed,
        pruner=kind,
        server={"name": "momentum", "beta": 0.5},
        evaluate_every=max(1, options.rounds // 5),
        measure_gradient_every=0,
    )
    small = result.module(task)
    mask = result.mask
    found = {
        "accuracy": result.final_accuracy,
        "parameters": sum(p.numel() for p in small.parameters()) / (task.parameters + task.unpruned_parameters),
        "macs": 1.0 if mask is None else mask.macs / mask.dense_macs,
        "bits": result.rows[-1]["cumulative_bits"],
        "seconds": result.seconds,
        "status": result.status,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found))
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--ratio", type=float, default=0.91)
    parser.add_argument("--cut", type=int, default=3)
    parser.add_argument("--out", default="out/structured")
    parser.add_argument("--arms", nargs="+", help="only these, by number from 0")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    rows = []
    dense: list[float] = []
    names = list(arms(options.ratio, options.cut))
    for name in names if options.arms is None else [names[int(number)] for number in options.arms]:
        found = [run(name, seed, options) for seed in range(options.seeds)]
        accuracy = [100.0 * f["accuracy"] for f in found]
        dense = dense or accuracy
        lost = [d - a for d, a in zip(dense, accuracy, strict=True)]
        rows.append(
            [
                name,
                f"{100 * (1 - np.mean([f['parameters'] for f in found])):.1f} %",
                f"{100 * (1 - np.mean([f['macs'] for f in found])):.1f} %",
                f"{np.mean(accuracy):.2f} ± {np.std(accuracy, ddof=1) if len(found) > 1 else 0:.2f}",
                f"{np.mean(lost):.2f} (at most {max(lost):.2f})",
                f"{np.mean([f['bits'] for f in found]) / 8e6:.0f} MB",
                f"{np.mean([f['seconds'] for f in found]):.0f} s",
            ]
        )
        header = ["arm", "parameters less", "MACs less", "accuracy [%]", "points lost", "sent", "time"]
        print(text_table(rows, header), flush=True)


if __name__ == "__main__":
    main()

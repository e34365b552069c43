"""Training steps of pruned networks against the dense one: time, memory, payload, multiplications, by granularity.

Run ``python benchmarks/bench_pruning.py``; steps of all ratios run by turns, and of each the fastest counts. Channels
need the extra ``pruning``.
"""

from __future__ import annotations

import argparse
import os
import platform
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from jointopt.errors import InputError
from jointopt.federated.networks import build
from jointopt.pruning import WeightGroups, pruner
from jointopt.pruning.blocks import LayerGroups
from jointopt.pruning.channels import ChannelGroups
from jointopt.pruning.speed import SpeedCurve, fit_floor, measure_speedup
from jointopt.report import text_table

RATIOS = (0.0, 0.25, 0.5, 0.75, 0.9)
SHAPES = {"cnn": (1, 28, 28), "resnet8": (3, 32, 32), "resnet18": (3, 32, 32)}
TARGETS = {"cnn": 0.6, "resnet18": 0.4}
"""Largest share of the dense time that a step may take with 75 % of the weights removed as channels."""
CLOCKS = {"wall": time.perf_counter, "process": time.process_time}


def curves(network: nn.Module, inputs: torch.Tensor, repeats: int, clock: str) -> dict[str, SpeedCurve]:
    """Measure each granularity that the network has."""
    labels = torch.arange(len(inputs)) % 10
    pattern = pruner("n:m", m=4)
    out = {}
    for name, make, ratios in (
        ("weight", lambda: WeightGroups(network, inputs[:1]), RATIOS),
        ("2:4 and so on", lambda: pattern, RATIOS[:4]),  # one of four stays at most
        ("channel", lambda: ChannelGroups(network, inputs[:1]), RATIOS),
        ("layer", lambda: LayerGroups(network, inputs[:1]), RATIOS),
    ):
        try:
            how = make()
        except InputError as error:
            print(f"{name}: {error}")
            continue
        out[name] = measure_speedup(network, inputs, labels, cross_entropy, how, ratios, repeats, 0, CLOCKS[clock])
    return out


def main() -> int:
    """Print the tables, the fitted laws and whether the targets are reached."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", nargs="*", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=30, help="of resnet8 and resnet18 a third and a tenth of that")
    parser.add_argument("--clock", default="wall", choices=list(CLOCKS))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    load = ", ".join(f"{x:.1f}" for x in os.getloadavg())
    print(f"{platform.machine()}, torch {torch.__version__}, {os.cpu_count()} cores, one thread, load {load}")
    missed = []
    for name in arguments.networks:
        network = build(name, SHAPES[name], 10, 0)
        inputs = torch.rand(arguments.batch, *SHAPES[name], generator=torch.Generator().manual_seed(0))
        repeats = max(1, arguments.repeats // {"cnn": 1, "resnet8": 3, "resnet18": 10}[name])
        print(f"\n{name}, batch of {arguments.batch}, least of {repeats} steps ({arguments.clock} time)")
        measured = curves(network, inputs, repeats, arguments.clock)
        rows, floors = [], []
        for granularity, curve in measured.items():
            for i, ratio in enumerate(curve.ratios):
                if i and ratio == curve.ratios[i - 1]:  # no more blocks to remove
                    continue
                rows.append(
                    [
                        granularity,
                        *(f"{100 * x:.1f} %" for x in (ratio, curve.factors[i], curve.memory[i])),
                        *(f"{100 * x:.1f} %" for x in (curve.payload[i], curve.macs[i])),
                    ]
                )
            macs = fit_floor(curve.ratios, curve.macs)
            dense = [f"{1e3 * curve.seconds:.1f} ms", f"{curve.dense_bytes / 2**20:.1f} MiB"]
            floors.append([granularity, *dense, f"{curve.floor:.3f}", f"{curve.memory_floor:.3f}", f"{macs:.3f}"])
            if granularity == "channel" and name in TARGETS:
                factor = curve.factors[RATIOS.index(0.75)]
                missed += [] if factor <= TARGETS[name] else [f"{name}: {factor:.2f} above {TARGETS[name]}"]
        print(text_table(rows, ["removed as", "weights", "time", "memory", "payload", "MACs"]))
        print("\nfactor = floor + (1 - floor)(1 - ratio)")
        print(text_table(floors, ["removed as", "dense step", "memory", "floor of time", "of memory", "of MACs"]))
    print("\nto reach at 75 % of the weights as channels: " + ", ".join(f"{k} {v:g}" for k, v in TARGETS.items()))
    print(f"missed: {'; '.join(missed) or 'none'}; load after: {os.getloadavg()[0]:.1f}")
    return bool(missed)


if __name__ == "__main__":
    raise SystemExit(main())

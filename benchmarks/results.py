"""The published comparisons: every method's decision trained on Fashion-MNIST, at equal energy and equal delay.

``python benchmarks/results.py`` regenerates the figures of the README for LTFL (about 25 minutes on 2 cores),
``--design feel`` those of the FEEL design; ``--short`` runs a smaller one. Finished runs are kept in ``results/runs``
and not repeated.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np

import jointopt as jo

_NAMES = {"fashion-mnist": "Fashion-MNIST", "digits": "digits"}
METHODS = {
    "ltfl": [
        "exact",
        "bayesian",
        "alternating",
        "uniform",
        "random",
        "no_quantization",
        "no_power_control",
        "no_pruning",
        "fixed",
        "no_compression",
    ],
    "feel": [
        "exact",
        "alternating",
        "random_selection",
        "full_participation",
        "fixed_ratio",
        "no_pruning",
        "resources_only",
        "unaware",
        "fedavg",
    ],
}
SHORT = {
    "ltfl": ["exact", "alternating", "uniform", "no_quantization", "no_compression"],
    "feel": ["exact", "alternating", "random_selection", "full_participation", "no_pruning"],
}
ROOT = Path(__file__).resolve().parent.parent


def main() -> int:
    """Solve, train, compare, check budgets and the ledger, draw, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--design", default="ltfl", choices=["ltfl", "feel"])
    parser.add_argument("--data", default="fashion-mnist")
    parser.add_argument("--devices", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--iterations", type=int, default=40, help="of the Bayesian method")
    parser.add_argument("--batch", type=int, default=64, help="samples per round and device, 0 for all")
    parser.add_argument("--sizes", type=int, nargs=2, metavar=("LEAST", "MOST"), help="samples per device, log-uniform")
    parser.add_argument("--out", type=Path, default=ROOT / "results")
    parser.add_argument("--short", action="store_true", help="fewer rounds and methods")
    arguments = parser.parse_args()
    methods = METHODS[arguments.design]
    if arguments.short:
        arguments.rounds, methods = 60, SHORT[arguments.design]
    started = time.perf_counter()
    sizes = None
    if arguments.sizes:
        low, high = np.log(arguments.sizes)
        sizes = np.rint(np.exp(np.random.default_rng(0).uniform(low, high, arguments.devices))).astype(int)
    try:
        first = jo.Task.make(
            data=arguments.data,
            network="mlp",
            devices=arguments.devices,
            alpha=0.5,
            batch_size=arguments.batch or None,
            sizes=sizes,
            scheme="dirichlet",
            seed=0,
        )
    except jo.DataError as error:
        print(f"skipped: {error}", file=sys.stderr)
        return 0
    system = jo.System.from_task(first, seed=0, design=arguments.design)
    # every seed has its own label mix, start, batches, channels and quantizer draws; sizes are the scenario's
    tasks = {
        seed: jo.Task.for_system(system, data=arguments.data, network="mlp", alpha=0.5, seed=seed)
        for seed in range(arguments.seeds)
    }
    problem = jo.problems.get(arguments.design)(system)
    comparison = jo.compare(
        problem,
        lambda seed: tasks[seed],
        methods=methods,
        seeds=range(arguments.seeds),
        rounds=arguments.rounds,
        solve_options={"bayesian": {"iterations": arguments.iterations}} if "bayesian" in methods else {},
        train_options={"measure_gradient_every": 0} if arguments.short else {},
        folder=arguments.out / "runs",
        report=lambda line: print(f"[{time.perf_counter() - started:6.0f} s] {line}", flush=True),
    )
    print()
    print(comparison.summary())
    worst = check_ledger(comparison)
    print(f"\nledger against the analytic cost model, largest relative difference: {worst:.1e}")
    kept = [name for name in comparison.runs if comparison.results[name].feasible]
    violations = sum(run.violations for name in kept for run in comparison.runs[name])
    print(f"budget violations of {', '.join(kept)}, all rounds, devices and seeds: {violations}")
    arguments.out.mkdir(parents=True, exist_ok=True)
    design = "" if arguments.design == "ltfl" else f"{arguments.design}-"
    few = "-few" if arguments.sizes else ""
    stem = f"{design}{arguments.data}{few}{'-short' if arguments.short else ''}"
    comparison.to_pandas().to_csv(arguments.out / f"{stem}.csv", float_format="%.6g")
    (arguments.out / f"{stem}.json").write_text(
        json.dumps(
            {
                "rounds": arguments.rounds,
                "seeds": arguments.seeds,
                "equal_energy": comparison.equal_energy,
                "equal_delay": comparison.equal_delay,
                "ledger_difference": worst,
                "violations": violations,
            },
            indent=1,
        )
    )
    data = _NAMES.get(arguments.data, arguments.data)
    label = f"{data}, {arguments.devices} devices, Dirichlet 0.5, {arguments.rounds} rounds, {arguments.seeds} seeds"
    for against, mark in (("energy", comparison.equal_energy), ("delay", comparison.equal_delay)):
        figure = jo.plot.accuracy(
            comparison.runs, against=against, mark=mark, labels=comparison.labels(jo.plot.LABELS), title=label
        )
        figure.savefig(arguments.out / f"{stem}-{against}.png", dpi=130)
    print(f"written to {arguments.out}")
    return 1 if worst > 1e-9 or violations else 0


def check_ledger(comparison: jo.study.Comparison) -> float:
    """Largest relative difference between logged and analytic delay and energy at the decision trained with."""
    worst = 0.0
    for name, runs in comparison.runs.items():
        problem = comparison.results[name].problem
        for run in runs:
            # what was carried out may name more than the design chooses, such as the bits of raw floats
            analytic = problem.evaluate(jo.Decision({v.name: run.decision[v.name] for v in problem.variables}))
            logged_delay = np.array([row["round_delay"] for row in run.rows])
            logged_energy = np.array([row["round_energy"] for row in run.rows])
            delay, energy = analytic.quantities["delay"].max(), analytic.quantities["energy"].sum()
            worst = max(
                worst,
                float(np.abs(logged_delay / delay - 1.0).max()),
                float(np.abs(logged_energy / energy - 1.0).max()),
            )
    return worst


if __name__ == "__main__":
    sys.exit(main())

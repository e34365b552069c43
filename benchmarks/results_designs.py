"""One scenario in every design that can express it: accuracy, energy, delay and bytes of the published designs.

``python benchmarks/results_designs.py`` regenerates the table and the figure of the README (about half an hour on one
core): Fashion-MNIST over 20 devices, Dirichlet 0.5, three seeds, 200 rounds. 30 % of the training samples are public
and teach the generator of synthetic samples; the devices hold the rest, under every design. ``--short`` runs digits for
fewer rounds. ``--steps`` trains what waits for everybody with longer steps instead, since the time-triggered clock
steps farther, and writes when it reaches an accuracy. Finished runs are kept in ``results/runs`` and not repeated.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd

import jointopt as jo
from jointopt.augmentation import generator, public_split
from jointopt.files import atomic_write
from jointopt.plot.designs import LABELS, designs
from jointopt.study.designs import REFERENCES, SharedScenario, compare_designs, shared_scenario

ROOT = Path(__file__).resolve().parent.parent
NAMES = {"fashion-mnist": "Fashion-MNIST", "digits": "digits"}
PUBLIC = 0.3


ACCURACY = 0.74
"""Until which the arms of longer steps run, by the mean of five evaluations."""
STEPS = (1.0, 2.0, 4.0)
"""Step sizes, times that of the scenario."""


def longer_steps(scenario: SharedScenario, data: Any, rest: Any, arguments: argparse.Namespace) -> int:
    """Train ratios and bands, and whole models, with longer steps; write the time to the accuracy of every run."""
    rows = []
    for name, method in (("ratio-bandwidth", "auto"), ("fedsgd", REFERENCES["fedsgd"][0])):
        design = "ltfl" if name == "fedsgd" else name
        problem = scenario.express([design])[design].problem
        result = jo.solve(jo.problems.LTFL(problem.system) if name == "fedsgd" else problem, method=method)
        for factor in STEPS:
            rate = factor * scenario.system.bound.learning_rate
            runs = jo.compare(
                {f"{name}-step{factor:g}": result},
                lambda seed: jo.Task.for_system(scenario.system, data, "mlp", among=rest, seed=seed),
                seeds=range(arguments.seeds),
                rounds=arguments.rounds,
                train_options={"measure_gradient_every": 0, "evaluate_every": 2, "learning_rate": rate},
                folder=arguments.out / "runs",
                report=lambda line: print(line, flush=True),
            ).runs[f"{name}-step{factor:g}"]
            for seed, run in enumerate(runs):
                met = run.reached(ACCURACY, window=5)
                rows.append([name, rate, seed, None if met is None else met.round, None if met is None else met.delay])
    frame = pd.DataFrame(rows, columns=["design", "step", "seed", "rounds", "seconds"])
    print(frame.groupby(["design", "step"])["seconds"].agg(["mean", "min", "max", "count"]).to_string())
    arguments.out.mkdir(parents=True, exist_ok=True)
    frame.to_csv(arguments.out / "designs-steps.csv", index=False, float_format="%.6g")
    return 0


def main() -> int:
    """Solve in every design, train, compare, draw, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="fashion-mnist", choices=sorted(NAMES))
    parser.add_argument("--devices", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--batch", type=int, default=64, help="samples per round and device, 0 for all")
    parser.add_argument("--time-limit", type=float, default=60.0, help="seconds for each design's solver")
    parser.add_argument("--out", type=Path, default=ROOT / "results")
    parser.add_argument("--cache", type=Path, default=ROOT / "out/generators")
    parser.add_argument("--short", action="store_true", help="digits, 60 rounds")
    parser.add_argument("--steps", action="store_true", help="longer steps for what waits, and nothing else")
    arguments = parser.parse_args()
    if arguments.short:
        arguments.data, arguments.rounds, arguments.batch, arguments.time_limit = "digits", 60, 0, 10.0
    started = time.perf_counter()
    try:
        data = jo.data.load(arguments.data)
    except jo.DataError as error:
        print(f"skipped: {error}", file=sys.stderr)
        return 0
    maker = generator("gaussian", data, cache=arguments.cache, share=PUBLIC, seed=0)
    _, rest = public_split(data, PUBLIC, 0)
    first = jo.Task.make(
        data, "mlp", devices=arguments.devices, alpha=0.5, among=rest, batch_size=arguments.batch or None, seed=0
    )
    scenario = shared_scenario(first, seed=0, generator=maker, rounds=arguments.rounds)
    if arguments.steps:
        return longer_steps(scenario, data, rest, arguments)
    compared = compare_designs(
        scenario,
        # who holds how much of which class is the scenario's; samples, start, batches and channels are the seed's
        lambda seed: jo.Task.for_system(scenario.system, data, "mlp", among=rest, seed=seed),
        seeds=range(arguments.seeds),
        rounds=arguments.rounds,
        time_limit=arguments.time_limit,
        generator=maker,
        train_options={"measure_gradient_every": 0, "evaluate_every": 2},
        folder=arguments.out / "runs",
        report=lambda line: print(f"[{time.perf_counter() - started:6.0f} s] {line}", flush=True),
    )
    print()
    print(compared.summary())
    stem = f"designs{'' if arguments.data == 'fashion-mnist' else '-' + arguments.data}"
    stem += "-short" if arguments.short else ""
    about = (
        f"{NAMES[arguments.data]}, {arguments.devices} devices, Dirichlet 0.5, {arguments.rounds} rounds, "
        f"{arguments.seeds} seeds"
    )
    arguments.out.mkdir(parents=True, exist_ok=True)
    compared.to_pandas().to_csv(arguments.out / f"{stem}.csv", float_format="%.6g")
    facts = {
        "rounds": arguments.rounds,
        "seeds": arguments.seeds,
        "equal": compared.equal,
        "reach": compared.reach,
        "scenario": scenario.system.to_dict(),
        "designs": {
            name: {"chooses": made.chooses, "keeps": made.keeps, "overlooks": made.overlooks, "cannot": made.reason}
            for name, made in compared.expressions.items()
        },
    }
    text = json.dumps(facts, indent=1) + "\n"
    atomic_write(arguments.out / f"{stem}.json", lambda file: file.write(text.encode()))
    table = f"{about}\n\n{compared.markdown(LABELS)}\n\n{compared.designs_markdown(LABELS)}\n"
    atomic_write(arguments.out / f"{stem}.md", lambda file: file.write(table.encode()))
    figure = designs(compared.runs, mark=compared.equal, smooth=5, title=about)
    figure.savefig(arguments.out / f"{stem}.png", dpi=130)
    print(f"written to {arguments.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

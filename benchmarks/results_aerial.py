"""Online learning in the air on Fashion-MNIST: where vehicles fly, what they compress, and what is learned.

``python benchmarks/results_aerial.py`` regenerates the table and figures of the documentation (about a quarter of an
hour on 2 cores): 10 vehicles, classes tied to places, three worlds (places, ways, sightings, network). On the ways of
the dynamic program decide the joint design, the authors' rule and the ablations; on other ways the joint design. The
reference is dense and unquantized. ``--short`` is smaller. Finished runs are kept and not repeated.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import jointopt as jo
from jointopt.files import write_json

ROOT = Path(__file__).resolve().parent.parent
FASHION = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot")
LEARNING_RATE = 0.05
"""Beyond what the bound covers (eta K <= 1/(2 L), so up to 0.012 here), as training in practice is."""
CASES = {
    "exact": ("staged", "exact"),
    "dense": ("staged", "dense"),
    "prune_only": ("staged", "prune_only"),
    "quantize_only": ("staged", "quantize_only"),
    "greedy": ("greedy", "exact"),
    "projected_gradient": ("projected_gradient", "exact"),
    "static": ("static", "exact"),
    "random_waypoint": ("random_waypoint", "exact"),
}
"""By name: the ways, and who decides on them."""
WORDS = {
    "exact": "**joint design on optimal ways**",
    "dense": "dense, unquantized (reference)",
    "prune_only": "pruned only",
    "quantize_only": "quantized only",
    "greedy": "joint, greedy ways",
    "projected_gradient": "joint, published projected gradient",
    "static": "joint, hovering",
    "random_waypoint": "joint, random waypoints",
}


def world(seed: int, cases: dict[str, tuple[str, str]], data: str, slots: int, folder: Path) -> dict[str, Any]:
    """Solve and train every case in one world; return results and runs by name, and the optimal ways."""
    system = jo.systems.aerial(devices=10, seed=seed, data=data, slots=slots)
    fly = jo.problems.AerialTrajectory(system)
    flown: dict[str, Any] = {}
    results, runs = {}, {}
    for name, (way, method) in cases.items():
        if way not in flown:
            ways = jo.solve(fly, method=way, seed=seed)
            if ways.status == "interrupted":
                raise KeyboardInterrupt
            there = fly.after(ways.decision)
            flown[way] = ways, there, jo.OnlineTask.for_system(there, data=data, seed=seed)
        ways, there, task = flown[way]
        results[name] = jo.solve(jo.problems.Aerial(there), method=method, seed=seed)
        comparison = jo.compare(
            {name: results[name]},
            task,
            seeds=[seed],
            folder=folder,
            train_options={"learning_rate": LEARNING_RATE, "measure_gradient_every": 0},
        )
        runs[name] = comparison.runs[name][0]
        print(f"seed {seed}, {name}: {runs[name]!r}", flush=True)
    return {"results": results, "runs": runs, "flown": flown}


def row(seed: int, name: str, found: dict[str, Any], cases: dict[str, tuple[str, str]]) -> dict[str, Any]:
    """What one case did, for the table."""
    run, result = found["runs"][name], found["results"][name]
    ways, there, _ = found["flown"][cases[name][0]]
    last = run.rows[-1]
    late = [r for r in run.rows[len(run.rows) // 2 :] if r["unseen"]]
    right = sum(r["unseen"] * r["arrival_accuracy"] for r in late)
    problem = result.problem
    part = problem.cells.active
    return {
        "seed": seed,
        "case": name,
        "value": result.value,
        "gap": result.gap,
        "missed": float(ways.evaluation.parts["missed"]),
        "seen": float(there.arrivals.sum()),
        "blind": int(np.sum(there.arrivals.sum(axis=1) == 0)),
        "accuracy": run.final_accuracy,
        "current_accuracy": last["current_accuracy"],
        "arrival_accuracy": right / sum(r["unseen"] for r in late) if late else None,
        "energy": last["cumulative_energy"],
        "flight_energy": last["cumulative_flight_energy"],
        "megabytes": last["cumulative_bits"] / 8e6,
        "broken": sum(r["violations"] > 0 for r in run.rows),
        "budgets": run.violations,
        "ratio": float(np.mean(result.decision["pruning_ratio"][part])) if part.any() else None,
    }


def table(frame: pd.DataFrame) -> str:
    """The table in Markdown: means over the worlds, with standard deviations."""

    def spread(some: pd.DataFrame, name: str, scale: float = 1.0, digits: int = 1) -> str:
        values = scale * some[name].astype(float)
        if values.isna().all():
            return "-"
        text = f"{values.mean():.{digits}f}"
        return text + (f" ± {values.std(ddof=1):.{digits}f}" if len(values) > 1 else "")

    head = [
        "case",
        "samples seen",
        "all classes",
        "classes held",
        "new samples",
        "learning [J]",
        "sent [MB]",
        "budgets",
    ]
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for name in frame["case"].unique():
        some = frame[frame["case"] == name]
        broken = some["budgets"].mean()
        lines.append(
            "| "
            + " | ".join(
                [
                    WORDS[name],
                    f"{some['seen'].mean():,.0f}",
                    spread(some, "accuracy", 100.0),
                    spread(some, "current_accuracy", 100.0),
                    spread(some, "arrival_accuracy", 100.0),
                    spread(some, "energy", digits=0),
                    spread(some, "megabytes", digits=0),
                    f"broken {broken:.0f} times" if broken else "kept",
                ]
            )
            + " |"
        )
    return "\n".join(lines)


def against_dense(frame: pd.DataFrame) -> str:
    """How far the joint design is from the dense, unquantized one, world by world."""
    wide = {name: frame[frame["case"] == name].set_index("seed") for name in ("exact", "dense")}
    lines = []
    for column, words in (
        ("accuracy", "all classes"),
        ("current_accuracy", "classes held"),
        ("arrival_accuracy", "new"),
    ):
        difference = 100.0 * (wide["exact"][column] - wide["dense"][column]).astype(float)
        each = ", ".join(f"{d:+.1f}" for d in difference)
        lines.append(f"joint minus dense, accuracy on {words}: {difference.mean():+.1f} points ({each})")
    for column, words in (("energy", "energy"), ("megabytes", "bytes")):
        share = wide["exact"][column] / wide["dense"][column]
        lines.append(f"joint / dense, {words}: {share.mean():.2f}")
    return "\n".join(lines)


def main() -> int:
    """Solve, train, draw, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="fashion-mnist", choices=["digits", "fashion-mnist"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--slots", type=int, default=120)
    parser.add_argument("--out", type=Path, default=ROOT / "results")
    parser.add_argument("--short", action="store_true", help="digits, 30 slots, one world, four cases")
    arguments = parser.parse_args()
    cases = dict(CASES)
    if arguments.short:
        arguments.data, arguments.slots, arguments.seeds = "digits", 30, 1
        cases = {name: CASES[name] for name in ("exact", "dense", "greedy", "static")}
    started = time.perf_counter()
    folder = arguments.out / "runs" / "aerial"
    try:
        found = {seed: world(seed, cases, arguments.data, arguments.slots, folder) for seed in range(arguments.seeds)}
    except KeyboardInterrupt:
        print("interrupted; finished runs are kept, the next call goes on from there")
        return 130
    except jo.DataError as error:
        print(f"error: {error}")
        return 2
    frame = pd.DataFrame([row(seed, name, found[seed], cases) for seed in found for name in cases])
    stem = "aerial" if not arguments.short else "aerial-short"
    arguments.out.mkdir(parents=True, exist_ok=True)
    frame.to_csv(arguments.out / f"{stem}.csv", index=False)
    text = table(frame)
    print(text)
    print(against_dense(frame))
    write_json(
        {
            "data": arguments.data,
            "slots": arguments.slots,
            "learning_rate": LEARNING_RATE,
            "worlds": arguments.seeds,
            "rows": frame.astype(object).where(frame.notna(), None).to_dict("records"),
        },
        arguments.out / f"{stem}.json",
    )
    runs = {name: [found[seed]["runs"][name] for seed in found] for name in cases if name != "projected_gradient"}
    title = f"{arguments.data}: 10 vehicles, {arguments.slots} slots, {arguments.seeds} worlds"
    jo.plot.online(runs, title=title).savefig(arguments.out / f"{stem}.png", dpi=130)
    names = FASHION if arguments.data == "fashion-mnist" else None
    flown = found[0]["flown"]["staged"][1]
    jo.plot.flights(flown, vehicles=[0, 1], names=names).savefig(arguments.out / f"{stem}-map.png", dpi=110)
    jo.plot.class_mixes(flown, vehicle=0, names=names).savefig(arguments.out / f"{stem}-classes.png", dpi=110)
    jo.plot.save_animation(
        flown, arguments.out / f"{stem}.gif", run=found[0]["runs"]["exact"], vehicles=[0], names=names
    )
    print(f"written to {arguments.out} after {time.perf_counter() - started:.0f} s")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

"""Trade-offs of LTFL: the certified front against Bayesian optimization of the hypervolume and NSGA-II.

Run ``python benchmarks/bench_pareto.py``; everything is measured side by side in one run and printed as tables.
``--quick`` gives Bayesian optimization 40 evaluations in place of 200.
"""

from __future__ import annotations

import argparse
import os
import platform
import time

import jointopt as jo
from jointopt.report import text_table
from jointopt.study.front import Front, compare_fronts
from jointopt.study.pareto import pareto
from jointopt.study.pareto_search import warm_up

SECONDS, SHARE = 2.0, 0.01


def certified(devices: int, points: int, repeats: int) -> Front:
    """Seconds, gaps and how much of the proved volume the points cover; returns the front against the delay."""
    problem = jo.problems.LTFL(jo.systems.ltfl(devices=devices, seed=0))
    rows, fronts = [], []
    for objectives in (("gap", "delay"), ("gap", "energy"), ("gap", "delay", "energy")):
        front = min((pareto(problem, objectives, points=points) for _ in range(repeats)), key=lambda f: f.seconds)
        bound, gap = front.hypervolume_bound(), front.worst_gap
        assert bound is not None and gap is not None
        rows.append(
            [
                " / ".join(front.objectives),
                str(len(front)),
                f"{front.n_evaluations}",
                f"{front.seconds:.2f} s",
                f"{gap:.0e}",
                f"{front.hypervolume():.6g}",
                f"{100 * front.hypervolume() / bound:.2f} %",
            ]
        )
        fronts.append(front)
    header = ["objectives", "points", "solves", "seconds", "largest gap", "hypervolume", "of what is possible (proved)"]
    print(f"Certified, {devices} devices, {points} points asked for, best of {repeats}")
    print(text_table(rows, header))
    slowest = max(front.seconds for front in fronts[:2])
    print(f"two objectives within {SECONDS:g} s: {'yes' if slowest <= SECONDS else 'NO'} ({slowest:.2f} s)\n")
    return fronts[0]


def against(exact: Front, evaluations: int, generations: int, points: int, seed: int) -> None:
    """Hypervolume on the certified front's reference point."""
    problem = exact.problem
    assert problem is not None
    compiled = warm_up()
    if compiled > 0.0:
        print(f"BoTorch's first call (compilation, not counted below): {compiled:.1f} s", flush=True)
    fronts = {"exact": exact}
    asked = {
        f"qLogNEHVI ({evaluations}), power of every device": ("qlognehvi", {"evaluations": evaluations}),
        f"qLogNEHVI ({evaluations}), power on a line": (
            "qlognehvi",
            {"evaluations": evaluations, "variables": "policy"},
        ),
        f"NSGA-II ({generations}), all variables": ("nsga2", {"evaluations": generations}),
        f"NSGA-II ({generations // 10}), power and limits": (
            "nsga2",
            {"evaluations": generations // 10, "variables": "search"},
        ),
    }
    for name, (method, options) in asked.items():
        start = time.perf_counter()
        fronts[name] = pareto(problem, ("gap", "delay"), method, points=points, seed=seed, **options)  # type: ignore
        print(f"{name}: {time.perf_counter() - start:.1f} s", flush=True)
    table = compare_fronts(fronts)
    rows = [
        [
            str(name),
            f"{row['points']}",
            f"{row['n_evaluations']}",
            f"{row['seconds']:.2f} s",
            f"{row['seconds'] / exact.seconds:,.0f} x",
            f"{row['hypervolume']:.6g}",
            f"{100 * row['share']:.2f} %",
        ]
        for name, row in table.iterrows()
    ]
    header = ["method", "points", "evaluations", "seconds", "time / exact", "hypervolume", "of what is possible"]
    print(f"\nGap against worst delay, {len(problem.system)} devices, reference {table.attrs['reference']}")
    print(text_table(rows, header))
    rival = next(name for name in fronts if name.startswith("qLogNEHVI"))
    better = table.loc["exact", "hypervolume"] >= max(table["hypervolume"])
    share = exact.seconds / float(table.loc[rival, "seconds"])
    print(
        f"exact's hypervolume is the largest: {'yes' if better else 'NO'}; its time is {share:.2%} of qLogNEHVI's "
        f"({'within' if share <= SHARE else 'NOT within'} {SHARE:.0%})"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--devices", type=int, default=100)
    parser.add_argument("--points", type=int, default=50)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--evaluations", type=int, default=200)
    parser.add_argument("--generations", type=int, default=20_000, help="evaluations of NSGA-II")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="40 evaluations of qLogNEHVI")
    arguments = parser.parse_args()
    print(f"jointopt {jo.__version__}, Python {platform.python_version()}, {os.cpu_count()} CPUs\n")
    exact = certified(arguments.devices, arguments.points, arguments.repeats)
    evaluations = 40 if arguments.quick else arguments.evaluations
    against(exact, evaluations, arguments.generations, arguments.points, arguments.seed)


if __name__ == "__main__":
    main()

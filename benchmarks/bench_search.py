"""Sample efficiency: how near to the certified optimum a search comes after how many evaluations.

``python benchmarks/bench_search.py`` searches small instances of every design with

* ours: Bayesian optimization over the design's complicating variables, the rest by its completion;
* ours, flat: the same optimizer over all decision variables, constraints modelled (what a problem without a
  completion gets);
* plain BoTorch: one Gaussian process and log expected improvement over all decision variables in the unit cube, whole
  numbers rounded, violations added as a penalty;
* scikit-optimize: its Gaussian process with expected improvement, the same way;
* random search over all decision variables;

prints the median over the seeds of (best feasible value - certified lower bound)/bound after 10, 20 and 40 evaluations,
and draws the whole curves to ``results/search/regret.png``. Every run of a design has an instance of its own, the same
for all methods; all methods over all variables see the same cube (positive wide ranges logarithmic) and begin with as
many random points. ``--quick`` takes fewer seeds and evaluations.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

import jointopt as jo
from jointopt.errors import InputError
from jointopt.files import atomic_write
from jointopt.problem import Capabilities, Problem
from jointopt.problems import FEEL, LTFL, CoInference, LayerwiseCoInference
from jointopt.report import text_table
from jointopt.search import FlatSearch
from jointopt.solvers.bayesian import _quiet, bayesian
from jointopt.solvers.monitor import Monitor
from jointopt.solvers.space import Box
from jointopt.system import FloatArray

ROOT = Path(__file__).resolve().parent.parent
INITIAL = 10
"""Random points that methods over all variables begin with."""

DESIGNS: dict[str, Callable[[int], Problem]] = {
    "LTFL, 4 devices": lambda seed: LTFL(jo.systems.ltfl(4, seed)),
    "FEEL, 4 clients": lambda seed: FEEL(jo.systems.feel(4, seed)),
    "co-inference, 4 devices": lambda seed: CoInference(jo.systems.coinference(4, seed)),
    "co-inference, 16 layers": lambda seed: LayerwiseCoInference(jo.systems.coinference(1, seed)),
}


class _Flat(Problem):
    """A problem that offers nothing but its variables."""

    def __init__(self, problem: Problem) -> None:
        self.problem, self.system, self.name = problem, problem.system, problem.name

    @property
    def variables(self) -> Any:
        return self.problem.variables

    def evaluate(self, decision: Any) -> Any:
        return self.problem.evaluate(decision)

    def capabilities(self) -> Capabilities:
        return Capabilities(search=FlatSearch(self.problem))


def _ours(problem: Problem, monitor: Monitor, seed: int, budget: int) -> None:
    search = problem.capabilities().search
    assert search is not None
    initial = min(max(8, 2 * len(search.lower)), INITIAL, budget)
    bayesian(problem, monitor, seed=seed, initial=initial, iterations=budget - initial)


def _flat(problem: Problem, monitor: Monitor, seed: int, budget: int) -> None:
    bayesian(_Flat(problem), monitor, seed=seed, initial=INITIAL, iterations=budget - INITIAL)


def _penalised(monitor: Monitor) -> FloatArray:
    """Objectives so far, in units of their spread, plus the violation's logarithm where there is one."""
    value = np.array([entry["value"] for entry in monitor.history])
    violation = np.minimum([entry["violation"] for entry in monitor.history], 1e6)
    known = np.isfinite(value)
    value = np.where(known, value, value[known].max() if known.any() else 0.0)
    return (value - value.mean()) / (value.std() or 1.0) + np.log1p(violation)


def _raw(propose: Callable[[FloatArray, FloatArray, int], FloatArray]) -> Callable[[Problem, Monitor, int, int], None]:
    """Return the plain loop around what proposes a point of the unit cube."""

    def run(problem: Problem, monitor: Monitor, seed: int, budget: int) -> None:
        search = FlatSearch(problem)
        box = Box(search)
        rng = np.random.default_rng(seed)
        points: list[FloatArray] = []
        for i in range(budget):
            if i < INITIAL:
                point = rng.random(box.cube.dimension)
            else:
                with _quiet(seed * 1000 + i):
                    point = propose(np.array(points), _penalised(monitor), seed * 1000 + i)
            point = box.cube.snap(point)
            points.append(point)
            monitor.offer(search.complete(box.spread(point)))

    return run


def _botorch(points: FloatArray, values: FloatArray, seed: int) -> FloatArray:
    """Plain BoTorch: everything at its default."""
    import torch
    from botorch.acquisition.analytic import LogExpectedImprovement
    from botorch.fit import fit_gpytorch_mll
    from botorch.models import SingleTaskGP
    from botorch.optim import optimize_acqf
    from gpytorch.mlls import ExactMarginalLogLikelihood

    x, y = torch.tensor(points), -torch.tensor(values)[:, None]
    model = SingleTaskGP(x, y)
    fit_gpytorch_mll(ExactMarginalLogLikelihood(model.likelihood, model))
    bounds = torch.stack([torch.zeros(x.shape[1]), torch.ones(x.shape[1])]).double()
    gain = LogExpectedImprovement(model, best_f=y.max())
    found, _ = optimize_acqf(gain, bounds, q=1, num_restarts=5, raw_samples=256, options={"seed": seed})
    return np.asarray(found[0].numpy(), dtype=np.float64)


def _skopt(points: FloatArray, values: FloatArray, seed: int) -> FloatArray:
    """The ask of `skopt.Optimizer` with a Gaussian process, told everything."""
    from skopt import Optimizer

    optimizer = Optimizer(
        [(0.0, 1.0)] * points.shape[1], base_estimator="GP", acq_func="EI", n_initial_points=1, random_state=seed
    )
    optimizer.tell(points.tolist(), values.tolist())
    return np.array([float(v) for v in optimizer.ask()])


def _random(points: FloatArray, values: FloatArray, seed: int) -> FloatArray:
    return np.random.default_rng(seed).random(points.shape[1])


METHODS: dict[str, tuple[Callable[[Problem, Monitor, int, int], None], dict[str, Any]]] = {
    "ours": (_ours, {"color": "#D55E00", "linewidth": 2.4, "marker": "o"}),
    "ours, flat": (_flat, {"color": "#E69F00", "linestyle": "--", "marker": "s"}),
    "plain BoTorch": (_raw(_botorch), {"color": "#0072B2", "marker": "^"}),
    "scikit-optimize": (_raw(_skopt), {"color": "#009E73", "linestyle": "-.", "marker": "v"}),
    "random": (_raw(_random), {"color": "#999999", "linestyle": ":", "marker": "x"}),
}


def trace(job: tuple[str, str, int, int]) -> tuple[FloatArray, float]:
    """Regret after each evaluation of one run (inf before anything feasible), and its seconds of CPU time."""
    design, method, seed, budget = job
    problem = DESIGNS[design](seed)
    bound = jo.solve(problem, gap=1e-6).lower_bound
    assert bound is not None
    monitor = Monitor(problem)
    began = time.process_time()
    METHODS[method][0](problem, monitor, seed, budget)
    seconds = time.process_time() - began
    value = np.array([h["value"] if h["violation"] == 0.0 else np.inf for h in monitor.history])
    # a search that has tried all there is stays where it is
    value = np.concatenate([value, np.full(budget - value.size, np.inf)])
    return np.maximum(np.minimum.accumulate(value) - bound, 0.0) / abs(bound), seconds


def table(regret: dict[tuple[str, str], FloatArray], seconds: dict[tuple[str, str], float], at: list[int]) -> str:
    """Median regret of every method, design by design."""
    rows = []
    for (design, method), curves in regret.items():
        median = np.median(curves, axis=0)
        shown = ["none feasible" if not np.isfinite(median[n - 1]) else f"{median[n - 1]:.1e}" for n in at]
        feasible = f"{np.count_nonzero(np.isfinite(curves[:, -1]))}/{len(curves)}"
        rows.append([design, method, *shown, feasible, f"{seconds[design, method]:.1f} s"])
    return text_table(rows, ["design", "method", *(f"after {n}" for n in at), "feasible", "CPU a run"])


def figure(regret: dict[tuple[str, str], FloatArray]) -> Any:
    """Median and quartiles of the regret over evaluations, one panel a design."""
    designs = list(dict.fromkeys(design for design, _ in regret))
    drawn, axes = plt.subplots(1, len(designs), figsize=(4.2 * len(designs), 4.0), squeeze=False)
    for axis, design in zip(axes[0], designs, strict=True):
        for method, (_, style) in METHODS.items():
            curves = np.maximum(regret[design, method], 1e-9)
            count = np.arange(1, curves.shape[1] + 1)
            # quantiles that are attained, since infinities cannot be averaged
            low, middle, high = np.quantile(curves, [0.25, 0.5, 0.75], axis=0, method="higher")
            known = np.isfinite(middle)
            axis.plot(count[known], middle[known], label=method, markevery=8, markersize=5, **style)
            both = np.isfinite(high)
            axis.fill_between(count[both], low[both], high[both], color=style["color"], alpha=0.12, linewidth=0)
            if not known.any():
                axis.plot([], [], label=f"{method} (none feasible)", **style)
        axis.set_yscale("log")
        axis.set_title(design)
        axis.set_xlabel("evaluations")
        axis.grid(alpha=0.3)
    axes[0, 0].set_ylabel("median relative regret to the certified bound")
    handles = [plt.Line2D([], [], label=name, **style) for name, (_, style) in METHODS.items()]
    drawn.legend(handles=handles, loc="lower center", ncols=len(handles), frameon=False)
    drawn.tight_layout(rect=(0.0, 0.08, 1.0, 1.0))
    return drawn


def main() -> None:
    """Run all of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, help="runs of every method and design (5)")
    parser.add_argument("--budget", type=int, help="evaluations of a run (40)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--quick", action="store_true", help="2 seeds, 20 evaluations")
    parser.add_argument("--designs", nargs="*", help="words of the designs' names to take (all)")
    parser.add_argument("--methods", nargs="*", choices=METHODS, default=list(METHODS))
    parser.add_argument("--folder", type=Path, default=ROOT / "results" / "search")
    args = parser.parse_args()
    seeds = args.seeds or (2 if args.quick else 5)
    budget = args.budget or (20 if args.quick else 40)
    if budget <= INITIAL or seeds < 1:
        raise InputError(f"--budget must be above {INITIAL}, --seeds at least 1")
    designs = [d for d in DESIGNS if not args.designs or any(word.lower() in d.lower() for word in args.designs)]
    pairs = [(d, m) for d in designs for m in args.methods]
    jobs = [(d, m, s, budget) for d, m in pairs for s in range(seeds)]
    began = time.perf_counter()
    with ProcessPoolExecutor(args.jobs, mp_context=get_context("spawn")) as pool:
        found = dict(zip(jobs, pool.map(trace, jobs), strict=True))
    regret = {(d, m): np.stack([found[d, m, s, budget][0] for s in range(seeds)]) for d, m in pairs}
    seconds = {(d, m): float(np.mean([found[d, m, s, budget][1] for s in range(seeds)])) for d, m in pairs}
    print(table(regret, seconds, [n for n in (10, 20, 40) if n <= budget]))
    print(f"{seeds} seeds, {args.jobs} processes, {time.perf_counter() - began:.0f} s in all")
    frame = pd.DataFrame(
        [
            {"design": d, "method": m, "seed": s, "evaluation": i + 1, "regret": r}
            for (d, m), curves in regret.items()
            for s, curve in enumerate(curves)
            for i, r in enumerate(curve)
        ]
    )
    text = frame.to_csv(index=False, float_format="%.6g").encode()
    print(f"written: {atomic_write(args.folder / 'regret.csv', lambda file: file.write(text))}")
    if args.methods == list(METHODS):
        drawn = figure(regret)
        path = atomic_write(args.folder / "regret.png", lambda file: drawn.savefig(file, dpi=150, format="png"))
        print(f"written: {path}")


if __name__ == "__main__":
    main()

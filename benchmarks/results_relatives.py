"""Designs that choose ratios and bands, on real data: what their authors claim, measured by training.

``python benchmarks/results_relatives.py`` regenerates table and figure of docs/relatives.md (about 30 minutes on one
core): Fashion-MNIST over 20 devices, Dirichlet 0.5, three seeds, each with devices, channels and samples of its own.

* tiers: bits sent until a test accuracy is reached, time-triggered learning with joint ratios and bands beside
  synchronous learning of whole models, tiers of whole models, and synchronous pruning with rounds as long as the
  slowest tier in use. A device of period m counts m times, so tiers take longer steps than their step size says: every
  arm is trained at several step sizes, and shown at its best.
* bands, selection, edges: test accuracy at equal time under a deadline.
* packets: latency, learning cost and accuracy as the price of a second moves.

``--short`` does one seed and a part of the settings. Finished runs are kept and not repeated.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import jointopt as jo
from jointopt.federated import Curve
from jointopt.federated.task import Losses
from jointopt.files import read_json, write_json
from jointopt.problems import Hierarchical, RatioBandwidth, RatioBandwidthSelection, RatioError, TimeTriggered
from jointopt.pruning.layout import Layout

ROOT = Path(__file__).resolve().parent.parent
DATA, DEVICES, ALPHA = "fashion-mnist", 20, 0.5
TARGETS = (0.60, 0.70, 0.75)
WINDOW = 3
"""Evaluations in the mean that has to reach a target."""
STEPS = {True: (0.1, 0.2, 0.4), False: (0.05, 0.1, 0.2)}
"""Step sizes tried of rounds that wait, and of tiers."""
STEP = 0.2
"""Step size where step sizes are not compared."""
MOST = {True: 150, False: 300}
"""Updates of the server's model, at most."""
ROUNDS = 80


@dataclass
class Run(Curve):
    """The evaluated rounds of a run, and how far its ledger is from the model."""

    rows: list[dict[str, Any]]
    ledger: float
    longest: float


@dataclass
class Bench:
    """Where finished runs are kept, one seed's task for a system, and what is done in all."""

    folder: Path
    short: bool
    started: float

    def task(self, system: jo.System, seed: int) -> jo.Task:
        """Return the data over the system's devices."""
        return jo.Task.for_system(system, data=DATA, network="mlp", alpha=ALPHA, seed=seed)

    def kept(self, name: str, inputs: Any, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return what `make` does, from disk where it was done before."""
        key = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:10]
        path = self.folder / f"{name}-{key}.json"
        if path.exists():
            return dict(read_json(path))
        made = make()
        write_json(made, path)
        print(f"[{time.perf_counter() - self.started:6.0f} s] {path.stem}", flush=True)
        return made

    def solved(self, problem: jo.Problem, method: str = "exact", gap: float = 1e-3) -> jo.Result:
        """Solve, with a limit of time that keeps the whole short."""
        options: dict[str, Any] = {"gap": gap, "time_limit": 60.0} if method == "exact" else {}
        return jo.solve(problem, method=method, **options)

    def trained(
        self,
        name: str,
        result: jo.Result,
        seed: int,
        *,
        rounds: int,
        learning_rate: float = STEP,
        every: int = 2,
        until: float | None = None,
        **options: Any,
    ) -> Run:
        """Train a decision, up to an accuracy where one is given."""
        system = result.problem.system
        given = {"rounds": rounds, "learning_rate": learning_rate, "evaluate_every": every, "seed": seed, **options}
        inputs = [system.to_dict(), _plain(result), given, until, WINDOW]
        return _run(self.kept(name, inputs, lambda: self._trained(result, seed, until, given)))

    def _trained(self, result: jo.Result, seed: int, until: float | None, given: dict[str, Any]) -> dict[str, Any]:
        last: list[float] = []

        def enough(row: dict[str, Any]) -> None:
            if row["test_accuracy"] is None or until is None:
                return
            last.append(row["test_accuracy"])
            if len(last) >= WINDOW and np.mean(last[-WINDOW:]) >= until:
                raise KeyboardInterrupt

        task = self.task(result.problem.system, seed)
        run = jo.train(result, task, measure_gradient_every=0, callback=enough, **given)
        if run.status == "interrupted" and (until is None or run.reached(until, window=WINDOW) is None):
            raise KeyboardInterrupt
        names = [v.name for v in result.problem.variables]
        model = result.problem.evaluate(jo.Decision({n: run.decision[n] for n in names})).quantities
        booked, worked = run.ledger, run.ledger.sent
        late = run.ledger.worked & ~worked
        differences = [
            np.abs(booked.delay - model["delay"])[worked] / np.max(model["delay"]),
            np.abs(booked.bits - model["payload_bits"])[worked] / np.max(model["payload_bits"]),
        ]
        return {
            **_columns(run.rows),
            "ledger": float(max(d.max(initial=0.0) for d in differences)),
            "longest": float(booked.delay.max()),
            "late": float(late.mean()),
        }


def _columns(rows: list[dict[str, Any]]) -> dict[str, Any]:
    seen = [row for row in rows if row["test_accuracy"] is not None or row is rows[-1]]
    return {
        "round": [row["round"] for row in seen],
        "test_accuracy": [row["test_accuracy"] for row in seen],
        "cumulative_bits": [row["cumulative_bits"] for row in seen],
        "cumulative_delay": [float(f"{row['cumulative_delay']:.9g}") for row in seen],
        "cumulative_energy": [float(f"{row['cumulative_energy']:.9g}") for row in seen],
    }


def _run(kept: Mapping[str, Any]) -> Run:
    names = ("round", "test_accuracy", "cumulative_bits", "cumulative_delay", "cumulative_energy")
    rows = [dict(zip(names, values, strict=True)) for values in zip(*(kept[n] for n in names), strict=True)]
    return Run(rows, float(kept["ledger"]), float(kept["longest"]))


def _plain(result: jo.Result) -> dict[str, Any]:
    assert result.decision is not None
    # solvers repeat their last digits on one machine only
    return {name: [float(f"{v:.10g}") for v in np.ravel(value)] for name, value in result.decision.items()}


def _fits(problem: Any) -> bool:
    """Whether everyone can be done in time on the band there is."""
    cells = problem.capabilities().cells
    return bool(cells.feasible.all()) and bool(cells.low.sum() <= problem.bands[0])


def fastest(system: jo.System) -> jo.Result:
    """Whole models in the shortest synchronous round, the band split for that."""

    def dense(seconds: float) -> Any:
        return RatioBandwidth(system.with_(delay_budget=seconds)).restrict(pruning_ratio=0.0)

    left, right = 0.0, float(np.max(system.devices.delay_budget))
    while not _fits(dense(right)):
        left, right = right, 2.0 * right
    for _ in range(40):
        middle = 0.5 * (left + right)
        left, right = (left, middle) if _fits(dense(middle)) else (middle, right)
    return jo.solve(dense(right * (1.0 + 1e-6)))


def one_ratio(problem: RatioBandwidth) -> jo.Result | None:
    """The least ratio that everyone can keep together, the band split for that."""
    left, right = 0.0, float(problem.system.learner.pruning_ratio_max)
    if not _fits(problem.restrict(pruning_ratio=right)):
        return None
    for _ in range(40):
        middle = 0.5 * (left + right)
        left, right = (left, middle) if _fits(problem.restrict(pruning_ratio=middle)) else (middle, right)
    return jo.solve(problem.restrict(pruning_ratio=min(right * (1.0 + 1e-6), problem.system.learner.pruning_ratio_max)))


def _mean_ratio(result: jo.Result) -> float:
    decision = result.decision
    assert decision is not None
    taken = np.broadcast_to(np.asarray(decision.get("selected", 1.0)) > 0.5, decision["pruning_ratio"].shape)
    return float(decision["pruning_ratio"][taken].mean())


# ---------------------------------------------------------------------- tiers


def tiers(bench: Bench, seed: int) -> Iterator[dict[str, Any]]:
    """Bits and seconds until accuracies are reached, by arm and step size."""
    system = TimeTriggered.sample(devices=DEVICES, seed=seed, data=DATA)
    assert system.tiers is not None
    arms: list[tuple[str, float, jo.Result, dict[str, Any]]] = [("synchronous", 0.0, fastest(system), {})]
    for factor in (1.0,) if bench.short else (0.25, 0.5, 1.0):
        interval = factor * system.tiers.interval
        clocked = system.with_(interval=interval, delay_budget=4.0 * interval)
        clock = {"name": "tiers", "seconds": interval, "periods": [1, 2, 3, 4]}
        joint = bench.solved(TimeTriggered(clocked), gap=2e-3)
        arms.append(("exact", factor, joint, {"clock": clock}))
        whole = bench.solved(TimeTriggered(clocked), "no_pruning")
        if whole.feasible:
            arms.append(("no_pruning", factor, whole, {"clock": clock}))
        assert joint.evaluation is not None
        periods = joint.evaluation.quantities["period"]
        if np.ptp(periods) == 0.0:
            # one tier is synchronous learning at so many times the step size, weight for weight: nothing to compare
            continue
        longest = interval * float(np.max(periods))
        pruned = bench.solved(RatioBandwidth(system.with_(delay_budget=longest)))
        arms.append(("synchronous_pruned", factor, pruned, {}))
    for name, factor, result, options in arms:
        waits = not options
        assert result.evaluation is not None
        periods = result.evaluation.quantities.get("period", np.ones(DEVICES))
        for step in STEPS[waits]:
            run = bench.trained(
                f"tiers-seed{seed}-{name}{factor:g}-step{step:g}",
                result,
                seed,
                rounds=MOST[waits],
                learning_rate=step,
                until=TARGETS[-1],
                **options,
            )
            row = {"family": "tiers", "seed": seed, "setting": factor, "method": name, "step": step}
            row |= {"mean_ratio": _mean_ratio(result), "mean_period": float(np.mean(periods)), "ledger": run.ledger}
            row |= {"value": result.value, "lower_bound": result.lower_bound}
            for target in TARGETS:
                got = run.reached(target, window=WINDOW)
                found = {} if got is None else {"rounds": got.round, "bits": got.bits, "seconds": got.delay}
                yield {**row, "target": target, **found}


# ---------------------------------------------------------------------- deadlines


def _timed(bench: Bench, family: str, seed: int, factor: float, deadline: float, arms: Mapping[str, Any]) -> Any:
    """Train every arm for the time of `ROUNDS` rounds of the deadline; yield its rows at a quarter, half and all."""
    horizon = ROUNDS * deadline
    for name, (result, options) in arms.items():
        row = {"family": family, "seed": seed, "setting": factor, "method": name, "deadline": deadline}
        if result is None or not result.feasible:
            yield {**row, "status": "infeasible" if result is None else result.status}
            continue
        length = options.pop("length", deadline)
        made = options.pop("train", bench.trained)
        misses = options.pop("misses", False)
        run = made(f"{family}-seed{seed}-{factor:g}-{name}", result, seed, rounds=round(horizon / length), **options)
        # whole models were not solved for under this deadline
        proved = {} if misses else {"value": result.value, "lower_bound": result.lower_bound}
        row |= {"status": "infeasible" if misses else result.status, **proved}
        row |= {"mean_ratio": _mean_ratio(result), "ledger": run.ledger, "longest": run.longest}
        if "selected" in result.decision:
            row["devices"] = int(np.sum(result.decision["selected"] > 0.5))
        for share in (0.25, 0.5, 1.0):
            yield {**row, "share": share, "accuracy": run.accuracy_at(delay=share * horizon)}


def bands(bench: Bench, seed: int) -> Iterator[dict[str, Any]]:
    """Ratios and one band under a deadline."""
    sampled = RatioBandwidth.sample(devices=DEVICES, seed=seed, data=DATA)
    whole = fastest(sampled)
    assert whole.evaluation is not None
    shortest = float(np.max(whole.evaluation.quantities["delay"]))
    for factor in (0.5,) if bench.short else (0.2, 0.5, 1.0):
        system = sampled.with_(delay_budget=factor * sampled.devices.delay_budget)
        deadline = float(system.devices.delay_budget[0])
        problem = RatioBandwidth(system)
        late = {"clock": {"name": "synchronous", "deadline": deadline}, "misses": True}
        yield from _timed(
            bench,
            "bands",
            seed,
            factor,
            deadline,
            {
                "exact": (bench.solved(problem), {}),
                "equal_bandwidth": (bench.solved(problem, "equal_bandwidth"), {}),
                "one_ratio": (one_ratio(problem), {}),
                # every round is late
                "no_pruning": (whole, {"length": shortest, "misses": True}),
                # the server does not wait
                "left_behind": (_evenly(system), late),
            },
        )


def _evenly(system: jo.System) -> jo.Result:
    """Whole models, the band split evenly, whatever the deadline."""
    free = RatioBandwidth(system.with_(delay_budget=1e9))
    return jo.solve(free.restrict(pruning_ratio=0.0), method="equal_bandwidth")


def selection(bench: Bench, seed: int) -> Iterator[dict[str, Any]]:
    """Ratios, one band, and who takes part."""
    sampled = RatioBandwidthSelection.sample(devices=DEVICES, seed=seed, data=DATA)
    for factor in (1.0,) if bench.short else (0.6, 0.8, 1.0):
        problem = RatioBandwidthSelection(sampled.with_(delay_budget=factor * sampled.devices.delay_budget))
        methods = ("exact", "threshold", "full_participation", "random_selection")
        arms = {name: (bench.solved(problem, name), {}) for name in methods}
        yield from _timed(bench, "selection", seed, factor, float(problem.system.devices.delay_budget[0]), arms)


def edges(bench: Bench, seed: int) -> Iterator[dict[str, Any]]:
    """Two hops: aggregations at the edge servers, then one in the cloud."""
    sampled = Hierarchical.sample(devices=DEVICES, seed=seed, data=DATA)

    def both(name: str, result: jo.Result, seed: int, *, rounds: int) -> Run:
        inputs = [result.problem.system.to_dict(), _plain(result), rounds, seed, STEP]
        return _run(
            bench.kept(name, inputs, lambda: two_hops(result, bench.task(result.problem.system, seed), rounds, seed))
        )

    for factor in (0.3,) if bench.short else (0.3, 0.6, 1.0):
        problem = Hierarchical(sampled.with_(delay_budget=factor * sampled.devices.delay_budget))
        deadline = float(problem.system.devices.delay_budget[0])
        arms = {
            name: (bench.solved(problem, name), {"train": both, "length": deadline})
            for name in ("exact", "equal_bandwidth")
        }
        # three aggregations at the edge make one round, so there are fewer
        for row in _timed(bench, "edges", seed, factor, 0.3 * deadline, arms):
            yield {**row, "deadline": deadline}


def two_hops(result: jo.Result, task: jo.Task, rounds: int, seed: int) -> dict[str, Any]:
    """Train over edge servers and a cloud: local rounds at every server, then the mean of their models.

    `jointopt.train` knows one server, so its ledger books what devices do; the way to the cloud is added here.
    """
    problem, decision = result.problem, result.decision
    assert isinstance(problem, Hierarchical) and decision is not None
    system, cloud = problem.system, problem.edges
    learner, share = system.learner, task.samples / task.samples.sum()
    whole = (learner.parameters + learner.unpruned_parameters) * learner.bits_max + learner.header_bits
    carried = {name: np.array(value, dtype=np.float64) for name, value in decision.items()}
    weights, losses = Layout.flatten(task.module).numpy().astype(np.float64), Losses(task)
    now = sent = spent = worst = longest = 0.0
    rows = []
    for number in range(1, rounds + 1):
        mean, slowest = np.zeros_like(weights), 0.0
        for server in range(len(cloud)):
            under = np.flatnonzero(cloud.number == server)
            module = task.module
            torch.nn.utils.vector_to_parameters(torch.from_numpy(weights.astype(np.float32)), module.parameters())
            run = jo.train(
                {name: np.asarray(value)[under] for name, value in decision.items()},
                replace(task, parts=tuple(task.parts[u] for u in under)),
                system=system.take(under),
                rounds=cloud.local_aggregations,
                learning_rate=STEP,
                seed=(10_000 * seed + number) * 16 + server,
                evaluate_every=cloud.local_aggregations,
                measure_gradient_every=0,
            )
            mean += share[under].sum() * run.weights
            hop = float(problem.backhaul_delay[under[0]])
            slowest = max(slowest, run.rows[-1]["cumulative_delay"] + hop)
            sent += run.rows[-1]["cumulative_bits"] + whole
            spent += run.rows[-1]["cumulative_energy"]
            # whole weights are pruned
            carried["pruning_ratio"][under] = run.decision["pruning_ratio"]
            model = problem.evaluate(jo.Decision(carried)).quantities["delay"][under]
            worst = max(worst, float(np.abs(run.ledger.delay / model - 1.0).max()))
            longest = max(longest, float(run.ledger.delay.max()))
        weights, now = mean, now + slowest
        accuracy = losses.test(torch.from_numpy(weights.astype(np.float32)))[1]
        rows.append(
            {
                "round": number,
                "test_accuracy": accuracy,
                "cumulative_bits": sent,
                "cumulative_delay": now,
                "cumulative_energy": spent,
            }
        )
    return {**_columns(rows), "ledger": worst, "longest": longest}


# ---------------------------------------------------------------------- packets


def packets(bench: Bench, seed: int) -> Iterator[dict[str, Any]]:
    """Latency and learning cost as the price of a second moves."""
    sampled = RatioError.sample(devices=DEVICES, seed=seed, data=DATA)
    assert sampled.tradeoff is not None
    price = sampled.tradeoff.latency_weight
    for factor in (0.1, 10.0) if bench.short else (0.01, 0.1, 1.0, 2.0, 3.0, 10.0):
        problem = RatioError(sampled.with_(latency_weight=factor * price))
        result = bench.solved(problem, gap=5e-3)
        unaware = bench.solved(problem, "unaware")
        assert result.evaluation is not None
        found = result.evaluation
        row = {"family": "packets", "seed": seed, "setting": factor, "method": "exact", "status": result.status}
        row |= {"value": result.value, "lower_bound": result.lower_bound, "unaware": unaware.value}
        row |= {"mean_ratio": _mean_ratio(result), "latency": float(found.quantities["latency"])}
        row |= {"learning_cost": float(found.quantities["gap"])}
        row |= {"lost": float(found.quantities["packet_error"].mean())}
        run = bench.trained(f"packets-seed{seed}-{factor:g}", result, seed, rounds=ROUNDS)
        for share, seconds in (("rounds", np.inf), ("150 s", 150.0)):
            accuracy = run.final_accuracy if share == "rounds" else run.accuracy_at(delay=seconds)
            yield {**row, "equal": share, "accuracy": accuracy, "ledger": run.ledger, "longest": run.longest}


FAMILIES = {"tiers": tiers, "bands": bands, "selection": selection, "packets": packets, "edges": edges}


def main() -> int:
    """Solve and train all families, write table and figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "results")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--families", nargs="+", default=list(FAMILIES), choices=list(FAMILIES))
    parser.add_argument("--short", action="store_true", help="one seed, a part of the settings")
    arguments = parser.parse_args()
    import pandas as pd
    from relatives_figure import draw, savings, tables

    bench = Bench(arguments.out / "runs" / "relatives", arguments.short, time.perf_counter())
    rows: list[dict[str, Any]] = []
    for family in arguments.families:
        for seed in range(1 if arguments.short else arguments.seeds):
            rows += FAMILIES[family](bench, seed)
    frame = pd.DataFrame(rows)
    if set(arguments.families) != set(FAMILIES):
        return 0
    saved = savings(frame)
    stem = "relatives" + ("-short" if arguments.short else "")
    frame.to_csv(arguments.out / f"{stem}.csv", index=False, float_format="%.6g")
    saved.to_csv(arguments.out / f"{stem}-savings.csv", index=False, float_format="%.4g")
    print(tables(frame, saved))
    draw(frame, saved).savefig(arguments.out / f"{stem}.png", dpi=130)
    return 1 if frame["ledger"].max() > 1e-6 else 0


if __name__ == "__main__":
    raise SystemExit(main())

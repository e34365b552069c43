"""What `jointopt demo` does for each kind of design."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from jointopt.console import err, out, plots, progress, save_figure, show, written
from jointopt.system import AerialSystem, InferenceSystem, System

__all__ = ["demonstrate", "trained_autoencoder"]

SWEPT = (0.6, 0.8, 1.0, 1.4, 2.0)
"""Factors by which the demo of co-inference multiplies its budgets."""


def demonstrate(
    kind: Any, folder: Path, devices: int | None, seed: int, rounds: int | None, iterations: int | None
) -> str:
    """Show the whole path of a design and return the status: "completed", or "interrupted"."""
    known: dict[Any, Callable[..., str]] = {
        System: _demo_training,
        InferenceSystem: _demo_inference,
        AerialSystem: _demo_aerial,
    }
    return known[kind.system_type](kind, folder, devices, seed, rounds, iterations)


def trained_autoencoder(data: str, seed: int, epochs: int | None, folder: Path | None, cache: Path | None) -> Any:
    """Train an autoencoder, or go on with the one in the cache."""
    from jointopt.inference import train_autoencoder

    with progress("training the autoencoder", 1) as step:
        return train_autoencoder(
            data,
            seed,
            cache=cache,
            folder=folder,
            epochs=epochs,
            progress=lambda done, total, loss: step(f"training the autoencoder, loss {loss:.4f}", total),
        )


def _options(methods: list[str], seed: int, iterations: int) -> dict[str, dict[str, Any]]:
    return {name: {"seed": seed} | ({"iterations": iterations} if name == "bayesian" else {}) for name in methods}


def _demo_training(
    kind: Any, folder: Path, devices: int | None, seed: int, rounds: int | None, iterations: int | None
) -> str:
    """Federated learning: train under every method's decision."""
    from jointopt import solvers
    from jointopt.augmentation import generator as make_generator
    from jointopt.federated import Task
    from jointopt.study import best_method, compare, task_system

    devices = 20 if devices is None else devices
    task = Task.make(data="digits", network="mlp", devices=devices, alpha=0.5, seed=seed)
    system = task_system(kind, task, seed)
    problem = kind(system)
    options: dict[str, Any] = {}
    if any(v.name == "augmentation_level" for v in problem.variables):
        # the light one: a demo does not wait for a diffusion model
        options["generator"] = make_generator("gaussian", task.data)
    out.rule(f"{kind.name}: {devices} devices, digits, {task.parameters + task.unpruned_parameters} parameters")

    methods = list(solvers.methods(problem))
    with progress("solving and training", 2 * len(methods)) as step:
        comparison = compare(
            problem,
            task,
            methods=methods,
            seeds=[seed],
            rounds=rounds,
            solve_options=_options(methods, seed, 40 if iterations is None else iterations),
            train_options=options,
            folder=folder / "runs",
            report=lambda line: step(line.split(":")[0][:40]),
        )
    name = best_method(problem)
    best = comparison.results[name]
    show(best.summary())
    if best.decision is not None:
        show(str(best.explain()))
    _print_comparison(comparison)
    _explain_table(comparison)
    if name in comparison.runs:
        _print_bound(comparison, name)
    written(best.save(folder / "decision.json"))
    draw = plots()
    labels = comparison.labels(draw.LABELS)
    done = max(len(run.rows) for runs in comparison.runs.values() for run in runs)
    if best.decision is not None:
        save_figure(draw.decision(best), folder / "decision.png")
    save_figure(draw.convergence(comparison.results, title="Best value found by each method"), folder / "methods.png")
    title = f"digits, {devices} devices, {done} rounds, one seed"
    for against, mark in (("energy", comparison.equal_energy), ("delay", comparison.equal_delay)):
        figure = draw.accuracy(comparison.runs, against=against, mark=mark, labels=labels, title=title)
        save_figure(figure, folder / f"accuracy-{against}.png")
    return "completed"


def _demo_inference(
    kind: Any, folder: Path, devices: int | None, seed: int, rounds: int | None, iterations: int | None
) -> str:
    """Split inference: train an autoencoder, choose, carry out, sweep the budgets."""
    from jointopt import solvers, study
    from jointopt.inference import output_distortion

    # ratios per layer are chosen for one device
    layered = any(v.axis == "layer" for v in kind(kind.sample(seed=seed)).variables)
    devices = (1 if layered else 4) if devices is None else devices
    trained = trained_autoencoder("digits", seed, rounds, None, folder / "network")
    if trained.status == "interrupted":
        err.print(f"interrupted; the next call goes on from what is kept in {folder / 'network'}", highlight=False)
        return "interrupted"
    network, images = trained.network, trained.test_inputs
    problem = kind(study.inference_system(network, devices, seed))
    section = problem.system.network
    many = f"{devices} device{'s' if devices > 1 else ''}"
    out.rule(f"{kind.name}: {many}, {network.name} on digits, {section.parameters.sum():.0f} weights")

    methods = list(solvers.methods(problem))
    options = _options(methods, seed, 10 if iterations is None else iterations)
    results, carried = {}, {}
    with progress("solving and carrying out", 2 * len(methods)) as step:
        for name in methods:
            results[name] = solvers.solve(problem, method=name, **options[name])
            step(name)
            if results[name].decision is not None:
                carried[name] = study.carry_out(results[name], network, images)
            step(name)
    name = study.best_method(problem)
    best = results[name]
    show(best.summary())
    if best.decision is not None:
        show(str(best.explain()))
    _print_carried(results, carried)
    if name in carried:
        show(carried[name].summary())
        _print_looseness(carried[name])
    _print_raw(network)

    draw = plots()
    written(best.save(folder / "decision.json"))
    if name in carried:
        written(carried[name].save(folder / "carried-out.json"))
        save_figure(draw.decision(best), folder / "decision.png")
        save_figure(draw.carried_out(carried[name]), folder / "carried-out.png")
    # methods that search for what the certified one has already found are left out
    swept = [m for m in methods if m == name or m not in solvers.METHODS]
    total = 2 * len(SWEPT) * len(swept)
    with progress("sweeping budgets", total) as step:
        for field in ("delay_budget", "energy_budget"):
            frame = study.sweep(
                problem, field, SWEPT, methods=swept, seed=seed, report=lambda line: step(line.split(":")[0])
            )
            title = f"{network.name} on digits, {many}"
            figure = draw.tradeoff(frame, field, ylabel="bound on the output distortion (mean)", log=True, title=title)
            save_figure(figure, folder / f"{field.replace('_', '-')}.png")
    save_figure(draw.splits(study.split_values(problem)), folder / "splits.png")
    measured = output_distortion(network, images, [0.05, *(i / 10 for i in range(1, 10)), 0.95], calibration=8)
    save_figure(draw.distortion(measured, network=section), folder / "distortion.png")
    return "completed"


def _demo_aerial(
    kind: Any, folder: Path, devices: int | None, seed: int, rounds: int | None, iterations: int | None
) -> str:
    """In the air: decide by every method, fly, learn online under the decisions; ways get the joint decision."""
    from jointopt import problems, solvers, study, systems
    from jointopt.federated import OnlineTask

    system = systems.aerial(10 if devices is None else devices, seed, slots=40 if rounds is None else rounds)
    problem = kind(system)
    out.rule(f"{kind.name}: {system}, digits")
    # the local search takes minutes and proves nothing
    methods = [name for name in solvers.methods(problem) if name != "nlp"]
    options = _options(methods, seed, 40 if iterations is None else iterations)
    results: dict[str, Any] = {}
    runs: dict[str, Any] = {}
    with progress("solving and training", 2 * len(methods)) as step:
        for name in methods:
            results[name] = solvers.solve(problem, method=name, **options[name])
            step(name)
            stopped = results[name].status == "interrupted"
            if results[name].decision is not None and not stopped:
                flown = problem.after(results[name].decision)
                decided = results[name] if kind is problems.Aerial else solvers.solve(problems.Aerial(flown))
                if decided.decision is not None:
                    runs[name] = study.train(decided, OnlineTask.for_system(flown, seed=seed), seed=seed)
                    stopped = runs[name].status == "interrupted"
            if stopped:
                err.print("interrupted; nothing was written", highlight=False)
                return "interrupted"
            step(name)
    best = min(results.values(), key=lambda r: float("inf") if r.value is None else r.value)
    show(best.summary())
    _print_online(results, runs)
    if best.decision is not None:
        written(best.save(folder / "decision.json"))
        draw, flown = plots(), problem.after(best.decision)
        save_figure(draw.decision(best), folder / "decision.png")
        save_figure(draw.flights(flown), folder / "map.png")
        save_figure(draw.class_mixes(flown), folder / "classes.png")
        save_figure(draw.online(runs, title="digits, one seed"), folder / "online.png")
        written(draw.save_animation(flown, folder / "flight.gif", run=runs.get(best.method)))
    return "completed"


def _print_online(results: dict[str, Any], runs: dict[str, Any]) -> None:
    from jointopt.report import text_table
    from jointopt.units import format_si

    def percent(value: float | None) -> str:
        return "-" if value is None else f"{100 * value:.1f} %"

    rows = []
    for name, result in results.items():
        value = "-" if result.value is None else f"{result.value:.5g}"
        gap = "-" if result.gap is None else f"{result.gap:.0e}"
        learned = ["-"] * 6
        if name in runs:
            run = runs[name]
            last = run.rows[-1]
            learned = [
                percent(run.final_accuracy),
                percent(last["current_accuracy"]),
                format_si(last["cumulative_energy"], "J"),
                format_si(last["cumulative_flight_energy"], "J"),
                format_si(last["cumulative_bits"] / 8, "B"),
                f"{run.violations} broken" if run.violations else "kept",
            ]
        rows.append([name, result.status, value, gap, format_si(result.seconds, "s"), *learned])
    header = ["method", "status", "value", "certified within", "solved in"]
    header += ["accuracy", "on the classes held", "learning", "flying", "sent", "budgets"]
    out.rule("what each method promises, and what its vehicles learn")
    show(text_table(rows, header))


def _print_carried(results: dict[str, Any], carried: dict[str, Any]) -> None:
    from jointopt.report import text_table
    from jointopt.units import format_si

    rows = []
    qualities = list(next(iter(carried.values())).quality) if carried else []
    for name, result in results.items():
        report = carried.get(name)
        real = ["-"] * (3 + len(qualities))
        if report is not None:
            real = [
                f"{report.pruning_ratio.mean():.4f}",
                " ".join(f"{s:.0f}" for s in report.split[:6]) + (" .." if len(report) > 6 else ""),
                f"{report.output_distortion.mean():.3g}",
                *(f"{values.mean():.4g}" for values in report.quality.values()),
            ]
        gap = "-" if result.gap is None else f"{result.gap:.0e}"
        value = "-" if result.value is None else f"{result.value:.5g}"
        rows.append([name, result.status, value, gap, format_si(result.seconds, "s"), *real])
    header = ["method", "status", "bound", "certified within", "solved in"]
    header += ["mean ratio", "splits", "distortion", *(f"mean {quality}" for quality in qualities)]
    out.rule("bound promised; on test images: distortion, quality")

    show(text_table(rows, header))
    if any(result.status == "infeasible" for result in results.values()):
        show("A method whose status is infeasible exceeds a budget; it is carried out to show what that would buy.")


def _print_looseness(report: Any) -> None:
    import numpy as np

    moved = report.output_distortion_max > 0
    if moved.any() and np.isfinite(report.bound).all():
        holds = bool(np.all(report.output_distortion_max <= report.bound))
        loose = float(np.min(report.bound[moved] / report.output_distortion_max[moved]))
        show(
            f"The bound {'holds' if holds else 'is BROKEN'} on all {report.inputs} images; it is at least {loose:.1e} "
            "times what was measured: a guide for choosing, not a forecast."
        )


def _print_raw(network: Any) -> None:
    """Say where the raw input is so small that splitting inside saves nothing on the uplink."""
    bits = network.profile()["cut_bits"]
    inner = min(bits[1:-1], default=0.0)
    if bits[0] <= inner:
        show(
            f"One raw input has {bits[0]:.0f} bit, every intermediate tensor at least {inner:.0f} bit: a split inside "
            "the network sends more than the raw input, and pays only by what the server need not compute."
        )


def _print_comparison(comparison: Any) -> None:
    from jointopt.report import text_table
    from jointopt.units import format_si

    def percent(value: float) -> str:
        return "-" if value != value else f"{100 * value:.1f} %"

    frame = comparison.to_pandas()
    selecting = any(r.decision is not None and "selected" in r.decision for r in comparison.results.values())
    promises, training = [], []
    for name, result in comparison.results.items():
        value = "-" if result.evaluation is None else f"{float(result.evaluation.objective):.5g}"
        taking = []
        if selecting:
            taking = ["-" if result.decision is None else f"{(result.decision['selected'] > 0.5).sum():.0f}"]
        promises.append(
            [
                name,
                value,
                "-" if result.gap is None else f"{result.gap:.0e}",
                format_si(result.seconds, "s"),
                *taking,
                "no decision" if result.decision is None else comparison.broken(name) or "kept",
            ]
        )
    for name, row in frame.iterrows():
        training.append(
            [
                str(name),
                format_si(row["energy_per_round"], "J"),
                format_si(row["delay_per_round"], "s"),
                percent(row["accuracy_equal_energy"]),
                percent(row["accuracy_equal_delay"]),
                percent(row["accuracy_final"]),
            ]
        )
    out.rule("what each method promises")
    header = ["method", "value", "certified within", "solved in", *(["selected"] * selecting), "budgets"]
    out.print(text_table(promises, header), highlight=False, soft_wrap=True)
    out.rule("what training on real data shows: test accuracy")
    header = ["method", "energy/round", "delay/round", "equal energy", "equal delay", "all rounds"]
    out.print(text_table(training, header), highlight=False, soft_wrap=True)


def _print_rounds(comparison: Any, name: str) -> None:
    """Say after how many rounds the target was reached, and how many were predicted."""
    result, run = comparison.results[name], comparison.runs[name][0]
    aim = float(result.problem.system.target.gradient_norm)
    reached = run.reached(gradient_norm=aim)
    measured = f"not reached in {len(run.rows)}" if reached is None else f"reached after {reached.round}"
    out.print(
        f"A mean ||grad F||^2 of {aim:.3g}: predicted in {float(result.evaluation.quantities['rounds']):.0f} rounds by "
        f"typical constants, {measured}.",
        highlight=False,
    )


def _print_bound(comparison: Any, name: str) -> None:
    from jointopt.models.convergence import average_gradient_bound

    result, rows = comparison.results[name], comparison.runs[name][0].rows
    norms = [row["gradient_norm_squared"] for row in rows if row["gradient_norm_squared"] is not None]
    if not norms:
        return
    quantities, constants = result.evaluation.quantities, result.problem.system.bound
    if "rounds" in quantities:
        _print_rounds(comparison, name)
        return
    if "contraction" not in quantities:
        # objectives of pruning and staleness alone say nothing of the gradients
        return
    # the rounds really trained, which may not be those of the scenario
    bound = float(
        average_gradient_bound(
            quantities["gap"],
            quantities["contraction"],
            constants.initial_gap,
            constants.learning_rate,
            float(len(rows)),
        )
    )
    mean = sum(norms) / len(norms)
    where = ""
    if "generalization" in result.evaluation.parts:
        where = " (measured on the training samples, bounded for unseen ones)"
    out.print(
        f"Mean ||grad F||^2 of {name} over the rounds: {mean:.3g} measured, at most {bound:.4g} by the bound with the "
        f"default constants ({bound / mean:,.0f} times looser: a guide for choosing, not a forecast){where}.",
        highlight=False,
        soft_wrap=True,
    )


def _explain_table(comparison: Any) -> None:
    from jointopt.units import format_si

    out.print(
        f"Equal energy is {format_si(comparison.equal_energy, 'J', 4)}, equal delay "
        f"{format_si(comparison.equal_delay, 's', 4)}: what the cheapest method spent in all its rounds. A method with "
        "broken budgets is not allowed to run; it is trained to show what breaking the budgets would buy.",
        highlight=False,
        soft_wrap=True,
    )

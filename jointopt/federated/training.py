"""The federated training loop that carries out a decision.

One round, as the theory assumes it (section 0) and as every part below is by default:

1. the server's weights w reach all devices without error;
2. device u prunes them to w_u = m_u * w, keeping the weights of largest magnitude of the whole network;
3. it computes g_u = m_u * grad F_u(w_u) on its data or on a batch of them;
4. it quantizes the kept entries and the unpruned parameters with one common range, without bias, to Q_u;
5. its packet arrives (alpha_u = 1) with probability 1 - q_u, drawn in two steps: a gain o ~ Exp(1) of this
   block, then the loss given that gain, so that the mean over gains is the model's packet error (q_u = 0 and
   nothing is lost where the system's radio has no packet errors);
6. the server takes g = sum_u N_u alpha_u Q_u / sum_u N_u alpha_u over what arrived, pruned entries counted as
   zeros, and sets w <- w - eta g; where nothing arrived w stays. The server's model is never pruned.

Before round 1 devices may be given synthetic samples, which the decision's `augmentation_level` asks for and which are
booked apart; in a round each may join with some probability only, on its own (theory 2a).

In the air (an `AerialSystem` and an `OnlineTask`) a round is a slot, with its own data, links and decision (theory 5a):
vehicles make several steps and send the accumulated gradient by QSGD, weighted by what their buffers hold; those that
sit a slot out do nothing, and where all do the model stays.

Each step can be another: pruner (2), algorithm (3), codec (4), aggregation and server (6), and the clock that says
when the server goes on and with whose work.
"""

from __future__ import annotations

import hashlib
import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence, Set
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import ArrayLike

from jointopt.decision import Decision
from jointopt.errors import InputError, is_real, is_whole, nearest
from jointopt.federated import checkpoint as checkpoints
from jointopt.federated.aggregation import SERVERS, aggregation
from jointopt.federated.clocks import CLOCKS, Clock
from jointopt.federated.codecs import CODECS
from jointopt.federated.engines import ENGINES
from jointopt.federated.loop import DivergedError, Loop, Plan, finite
from jointopt.federated.online import OnlineTask, OnlineWorld
from jointopt.federated.outcome import Status, TrainingResult
from jointopt.federated.plan import trainable
from jointopt.federated.progress import progress_bar
from jointopt.federated.rules import ALGORITHMS, LocalRule
from jointopt.federated.task import Task
from jointopt.federated.threads import torch_threads
from jointopt.pruning import Layout, Pruner, pruner
from jointopt.pruning.schedules import EveryRound
from jointopt.system import AerialSystem, FloatArray, System

if TYPE_CHECKING:
    from jointopt.augmentation import Generator

__all__ = ["train"]

_PRECISIONS = ("float32", "bfloat16")
_DELAYS = ("booked", "faded")


def _whole(name: str, value: Any, least: int) -> int:
    if not (is_whole(value) and value >= least):
        raise InputError(f"{name}: must be a whole number of at least {least}, found {value!r}")
    return int(value)


def train(
    decision: Mapping[str, Any],
    system: System | AerialSystem,
    task: Task,
    *,
    rounds: int | None = None,
    learning_rate: float | None = None,
    seed: int = 0,
    algorithm: Any = None,
    local_steps: int | None = None,
    pruner: Any = "magnitude",
    codec: Any = None,
    error_feedback: bool | None = None,
    aggregation: str | None = None,
    server: Any = "sgd",
    clock: Any = "synchronous",
    delays: str = "booked",
    participation: float | int | None = None,
    attendance: ArrayLike | None = None,
    dropout: ArrayLike = 0.0,
    generator: Generator | None = None,
    evaluate_every: int | None = None,
    measure_gradient_every: int | None = None,
    engine: str = "auto",
    device: str = "cpu",
    precision: str = "float32",
    threads: int | None = 1,
    checkpoint: str | Path | None = None,
    checkpoint_every: int = 10,
    resume: bool = True,
    evidence_samples: int = 64,
    progress: bool = False,
    callback: Callable[[dict[str, Any]], Any] | None = None,
) -> TrainingResult:
    """Train a task under a decision, round by round, and book what it costs.

    Same arguments, same result, bit for bit (on one machine with one number of threads), also when the run was
    stopped and resumed. Fading, losses, batches and who takes part depend on the seed alone, so two decisions trained
    with one seed meet the same (common random numbers). So do synthetic samples: a higher level only adds some.

    A part is given by its name, by a mapping of its name and options, as ``{"name": "fedprox", "proximal": 0.1}``,
    or as the object.

    Parameters
    ----------
    decision : mapping
        `pruning_ratio`, `power` [W], and if chosen `bits` (else the learner's `bits_max`), `bandwidth` [Hz],
        `frequency` [Hz], `selected` (0 or 1) and `augmentation_level` (0 to 1; see `generator`), each one number or
        shape ``[devices]``; rounded by `trainable`.
        In the air `pruning_ratio`, `levels` and if chosen `selected`, each one number or one for each slot and
        vehicle, slot by slot (see `jointopt.federated.online.OnlineWorld`).
        Budgets it breaks are counted, not refused, so that baselines can be trained too.
    system : System or AerialSystem
        Must fit the task (see `Task.check`).
    task : Task
        What is trained; an `OnlineTask` in the air.
    rounds, learning_rate : optional
        The bound's when not given; in the air as many rounds as slots. With a clock that does not wait, a round is one
        update of the server's model.
    seed : int
        Seed of batches, quantizers, channel, masks and who takes part.
    algorithm : {"fedsgd", "fedavg", "fedprox", "scaffold"}, optional
        What devices do (see `jointopt.federated.rules`): "fedsgd" when not given, in the air "fedavg" with the bound's
        local steps. All but "fedsgd" make `local_steps` steps of gradient
        descent on the pruned model, send their total divided by the learning rate (the sum of the gradients) and are
        booked for as many times the cycles; each step draws its batch anew from all of the device's samples. The
        published bound covers one step only.
    pruner : str, mapping or Pruner
        How masks are cut (see `jointopt.pruning.PRUNERS`).
    codec : {"uniform", "qsgd", "sign", "ternary", "raw"}, optional
        How updates are sent (see `jointopt.federated.codecs`): "uniform" when not given, in the air "qsgd".
    error_feedback : bool, optional
        Whether devices add what their codes left over to their next update; for biased codecs when not given.
    aggregation : {"received", "unbiased", "holders"}, optional
        Which mean the server takes (see `jointopt.federated.aggregation`): over what arrived with a clock that waits,
        else unbiased, when not given; unbiased too where devices join as the system's target says.
    server : {"sgd", "momentum", "adam"}
        What step it makes of it.
    clock : {"synchronous", "asynchronous", "buffered", "interval", "tiers"}
        When the server goes on (see `jointopt.federated.clocks`); ``{"name": "synchronous", "deadline": 2.0}`` leaves
        stragglers behind.
    delays : {"booked", "faded"}
        How long work takes on the clock: at the ergodic rate, as budgets count, or at the rate of the block drawn.
    participation : float or int, optional
        How many of the selected devices are drawn each round, or which share of them; all when not given.
    attendance : float or array [devices], optional
        Probability in (0, 1] with which each selected device joins a round, each on its own, in place of
        `participation`. Who does not join computes, sends and costs nothing and is not waited for; a round that
        nobody joins leaves all as it is. When not given, and `participation` is not either, that of the system's
        section `target` where it has one, else 1. The unbiased aggregation divides by it too.
    dropout : float or array [devices]
        Probability that a device computes but never sends.
    generator : Generator, optional
        Makes the synthetic samples that the decision's `augmentation_level` asks for, which needs the system's section
        `augmentation`. System and task are then given as they are before augmentation; what is trained and booked are
        `System.augmented` and `Task.augmented`. What making the samples costs is booked before round 1.
    evaluate_every : int, optional
        The first, the last and every n-th round are tested; about 50 in all when not given.
    measure_gradient_every : int, optional
        The same for the full gradient of F, which costs a pass over all data; as `evaluate_every` when not
        given, 0 for never.
    engine : {"auto", "sequential", "batched", "measure"}
        How local steps are computed (see `jointopt.federated.engines`). "measure" times the engines in the first
        round and keeps the fastest, which may differ from run to run in the last bits of the result.
    device : str
        A torch device, or "auto" for a GPU where there is one.
    precision : {"float32", "bfloat16"}
        In which networks are evaluated while training.
    threads : int, optional
        Torch threads while training; the caller's number when None. One is fastest for networks this small,
        most of all on a busy machine.
    checkpoint : path, optional
        Folder for checkpoints. Where it holds some of the same run, training goes on from the newest (unless
        `resume` is False, which removes them). A finished run is only read again; the number of rounds is part of what
        makes a run the same, since schedules depend on it.
        Synthetic samples are kept in its folder "synthetic", so that they are made once.
    checkpoint_every : int
        Rounds between checkpoints; one more is written at the end, and at an interruption between two rounds.
    evidence_samples : int
        Samples per device on which a pruner's evidence is collected.
    progress : bool
        Show a bar with the time left, on standard error.
    callback : callable, optional
        Called with the row of every round; may raise KeyboardInterrupt to stop, which keeps what was done.

    Raises
    ------
    InputError
        Decision, system and task do not fit each other, an argument is out of its range, or a checkpoint is damaged,
        of another run or of a newer version.
    """
    if not isinstance(decision, Mapping):
        raise InputError(f"decision: expected variables by name, found {type(decision).__name__}")
    if callback is not None and not callable(callback):
        raise InputError(f"callback: must be callable, found {callback!r}")
    if not (error_feedback is None or isinstance(error_feedback, bool)):
        raise InputError(f"error_feedback: must be True, False or None, found {error_feedback!r}")
    # parts remember things; those given stay as they are, and serve another run
    _check_kinds(system, task)
    rule = deepcopy(ALGORITHMS.make(_usual(algorithm, system, "fedsgd", "fedavg")))
    if local_steps is None:
        # those of the bound in the air, for rules that make several
        local_steps = system.bound.local_steps if isinstance(system, AerialSystem) and not rule.one_step else 1
    local_steps = _whole("local_steps", local_steps, 1)
    if rule.one_step and local_steps != 1:
        raise InputError(f"local_steps: '{rule.name}' makes one step, found {local_steps}; use algorithm='fedavg'")
    rounds = _rounds(rounds, system)
    seed = _whole("seed", seed, 0)
    rate = system.bound.learning_rate if learning_rate is None else learning_rate
    if not (is_real(rate) and math.isfinite(rate) and rate > 0.0):
        raise InputError(f"learning_rate: must be finite and above 0, found {rate!r}")
    rate = float(rate)
    every = max(1, rounds // 50) if evaluate_every is None else _whole("evaluate_every", evaluate_every, 1)
    measure = every if measure_gradient_every is None else _whole("measure_gradient_every", measure_gradient_every, 0)
    threads = None if threads is None else _whole("threads", threads, 1)
    checkpoint_every = _whole("checkpoint_every", checkpoint_every, 1)
    for name, value, known in (("delays", delays, _DELAYS), ("precision", precision, _PRECISIONS)):
        if value not in known:
            raise InputError(f"{name}: unknown {value!r}{nearest(str(value), known)}")
    if engine not in ("auto", "measure", *ENGINES):
        raise InputError(f"engine: unknown {engine!r}{nearest(str(engine), ('auto', 'measure', *ENGINES))}")
    chosen_codec = CODECS.make(_usual(codec, system, "uniform", "qsgd"))
    chosen_clock = CLOCKS.make(clock)
    if "augmentation_level" in decision and task.synthetic is not None:
        raise InputError(
            "task: is augmented already, and the decision has an augmentation_level; give the task (and the system) "
            "from before augmentation, or leave the level out"
        )
    task.check(system)
    world = None
    given = system
    if isinstance(system, AerialSystem):
        _check_air(rule, _pruner(pruner), chosen_clock, participation)
        assert isinstance(task, OnlineTask)
        world = OnlineWorld(decision, system, task, chosen_codec)
        carried_out, selected = world.decision, len(system)
        first = world.scene(1)
        system, start = first.system, first.decision
    else:
        carried_out = start = trainable(decision, system, chosen_codec.widths)
        selected = int(np.sum(carried_out.get("selected", np.ones(len(system))) > 0.5))
    # a target's participation comes with its bound, which is about unbiased aggregation
    drawn = attendance is None and participation is None and system.target is not None
    drawn = drawn and system.target is not None and system.target.participation < 1.0
    plan = Plan(
        rounds=rounds,
        learning_rate=rate,
        local_steps=local_steps,
        seed=seed,
        rule=rule,
        aggregation=_aggregation(aggregation or ("unbiased" if drawn or not chosen_clock.waits else "received")),
        server=deepcopy(SERVERS.make(server)),
        clock=chosen_clock,
        codec=chosen_codec,
        pruner=deepcopy(_pruner(pruner)),
        error_feedback=not chosen_codec.unbiased if error_feedback is None else error_feedback,
        delays=delays,
        participation=_participation(participation, selected, chosen_clock.waits),
        dropout=_dropout(dropout, len(system)),
        engine=engine,
        device=_device(device),
        precision=precision,
        evidence_samples=_whole("evidence_samples", evidence_samples, 1),
        attendance=_attendance(attendance, participation, system, chosen_clock.waits),
    )
    folder = _folder(checkpoint)
    with torch_threads(threads):
        system, task = _augmented(start, system, task, generator, seed, folder, progress)
        loop = Loop(start, system, task, plan, world)
    settings = {
        "local_steps": local_steps,
        "batch_size": task.batch_size,
        "scheme": task.scheme,
        "alpha": task.alpha,
        "task_seed": task.seed,
        "evaluate_every": every,
        "measure_gradient_every": measure,
        "pruner": plan.pruner.name,
        "codec": {"name": chosen_codec.name, **vars(chosen_codec)},
        "error_feedback": plan.error_feedback,
        "aggregation": plan.aggregation.name,
        "server": plan.server.settings(),
        "rule": rule.settings(),
        "clock": chosen_clock.settings(),
        "delays": delays,
        "participation": plan.participation,
        "dropout": plan.dropout.tolist() if np.any(plan.dropout) else 0.0,
        "engine": engine,
        "device": str(plan.device),
        "precision": precision,
    }
    if plan.attendance is not None:
        settings["attendance"] = plan.attendance.tolist()
    if task.synthetic is not None:
        settings["augmentation"] = task.synthetic.settings()
    settings = checkpoints.plain(settings)
    book = _Book(folder, checkpoint_every, loop, rounds)
    if folder is not None:
        book.begin(_identity(carried_out, system if world is None else given, task, plan, settings), resume)

    started = time.perf_counter()
    rows, message = book.rows, ""
    status: Status = "completed"
    final, between = (loop.weights, loop.buffers), True
    try:
        with torch_threads(threads), progress_bar(progress, rounds, loop.round) as shown:
            for number in range(loop.round + 1, rounds + 1):
                between = False
                message = _round(loop, number, rows, _due(number, rounds, every), _due(number, rounds, measure))
                final, between = (loop.weights, loop.buffers), not message
                if not message:
                    book.keep()
                shown(rows[-1])
                if callback is not None:
                    callback(dict(rows[-1]))
                if message:
                    raise DivergedError(message)
    except DivergedError as error:
        status = "diverged"
        message = (
            f"diverged in round {len(rows) + 1 - bool(message)}: {error}; "
            f"try a learning rate below {rate:g} (1/L of the bound is {1.0 / system.bound.smoothness:.3g})"
        )
    except KeyboardInterrupt:
        status = "interrupted"
        message = f"interrupted after {len(rows)} of {rounds} rounds, which are kept"
        if between:
            book.keep(now=True)
    loop.ledger.truncate(len(rows))
    return TrainingResult(
        system=given,
        decision=carried_out,
        rows=rows,
        ledger=loop.ledger,
        weights=final[0].cpu().numpy().copy(),
        buffers=final[1].cpu().numpy().copy(),
        mask=loop.cutting.union() if plan.pruner.scope == "global" else None,
        status=status,
        message="; ".join(part for part in (message, *book.notes) if part),
        data=task.name,
        network=task.network,
        rounds=rounds,
        algorithm=rule.name,
        learning_rate=rate,
        seed=seed,
        seconds=time.perf_counter() - started + book.seconds,
        settings={**settings, "engine": loop.engine},
    )


def _check_kinds(system: Any, task: Any) -> None:
    """Refuse a system or task that is none, or one in the air and the other on the ground."""
    if not isinstance(system, System | AerialSystem):
        raise InputError(f"system: expected a System or an AerialSystem, found {type(system).__name__}")
    if not isinstance(task, Task):
        raise InputError(f"task: expected a Task, found {type(task).__name__}")
    if isinstance(system, AerialSystem) != isinstance(task, OnlineTask):
        kind, fits = ("an Aerial", "OnlineTask") if isinstance(system, AerialSystem) else ("a ", "Task")
        raise InputError(
            f"task: {kind}System goes with {fits}, found {type(task).__name__}; {fits}.for_system(system, ...) makes "
            "one"
        )


def _usual(value: Any, system: System | AerialSystem, ground: str, air: str) -> Any:
    if value is not None:
        return value
    return air if isinstance(system, AerialSystem) else ground


def _rounds(value: int | None, system: System | AerialSystem) -> int:
    if isinstance(system, System):
        return _whole("rounds", system.bound.rounds if value is None else value, 1)
    slots = system.area.slots
    rounds = _whole("rounds", slots if value is None else value, 1)
    if rounds > slots:
        raise InputError(f"rounds: a round is a slot, of which the scenario has {slots}, found {rounds}")
    return rounds


def _check_air(rule: LocalRule, cut: Pruner, clock: Clock, participation: float | int | None) -> None:
    """Refuse what does not go with slots."""
    if rule.packets > 1:
        raise InputError(
            f"algorithm: '{rule.name}' keeps means over fixed shares, but who takes part, and with how many samples, "
            "changes from slot to slot; use 'fedavg' or 'fedprox'"
        )
    if cut.scope == "global" or not isinstance(cut.schedule, EveryRound):
        raise InputError(
            f"pruner: '{cut.name}' cuts once for all devices or by a schedule over all rounds, but a slot's ratio is "
            "the slot's own; use one that cuts each device anew in every round, as 'magnitude' does"
        )
    if not clock.waits:
        raise InputError(
            f"clock: '{clock.name}' goes on with work of earlier rounds, but a slot's round is of the slot's own data; "
            "use 'synchronous'"
        )
    if participation is not None:
        raise InputError(
            "participation: in the air who takes part is the decision's 'selected', or who holds samples; use "
            "attendance for chance"
        )


_aggregation = aggregation


_pruner_named = pruner


def _pruner(which: Any) -> Pruner:
    if isinstance(which, Pruner):
        return which
    if isinstance(which, Mapping):
        return _pruner_named(str(which.get("name")), **{str(k): v for k, v in which.items() if k != "name"})
    if not isinstance(which, str):
        raise InputError(f"pruner: expected a name, a mapping or a Pruner, found {which!r}")
    return _pruner_named(which)


def _participation(value: float | int | None, selected: int, waits: bool) -> int:
    """Return how many devices take part in a round."""
    if value is None:
        return selected
    if not waits:
        raise InputError("participation: with a clock that does not wait every selected device works all the time")
    if is_whole(value) and not isinstance(value, float):
        if not 1 <= value <= selected:
            raise InputError(f"participation: must lie in 1 .. {selected} (the selected devices), found {value!r}")
        return int(value)
    if not (is_real(value) and 0.0 < value <= 1.0):
        raise InputError(f"participation: must be a whole number of devices or a share in (0, 1], found {value!r}")
    return max(1, round(value * selected))


def _attendance(
    value: ArrayLike | None, participation: float | int | None, system: System, waits: bool
) -> FloatArray | None:
    """Return the probability with which each device joins a round, None where all always do."""
    name = "attendance"
    if value is None:
        if system.target is None or participation is not None:
            return None
        value, name = system.target.participation, "attendance (the system's target.participation)"
    try:
        if np.asarray(value).dtype.kind == "b":
            raise TypeError("bool")
        out = np.broadcast_to(np.asarray(value, dtype=np.float64), (len(system),)).copy()
    except (TypeError, ValueError):
        raise InputError(f"attendance: expected one number or {len(system)}, found {value!r}") from None
    bad = ~((out > 0.0) & (out <= 1.0))
    if np.any(bad):
        u = int(np.argmax(bad))
        raise InputError(f"attendance[device {u}]: must lie above 0, up to 1, found {float(out[u])!r}")
    if np.all(out == 1.0):
        return None
    if not waits:
        raise InputError(
            f"{name}: with a clock that does not wait every selected device works all the time; give attendance=1"
        )
    if participation is not None:
        raise InputError(f"{name}: who joins by chance cannot be drawn by participation as well; give one of them")
    return out


def _folder(value: str | Path | None) -> Path | None:
    if not (value is None or isinstance(value, str | Path)):
        raise InputError(f"checkpoint: expected the path of a folder, found {value!r}")
    folder = None if value is None else Path(value)
    if folder is not None and folder.exists() and not folder.is_dir():
        raise InputError(f"checkpoint: {folder} is no folder")
    return folder


def _augmented(
    decision: Decision,
    system: System,
    task: Task,
    generator: Generator | None,
    seed: int,
    folder: Path | None,
    progress: bool,
) -> tuple[System, Task]:
    """Return system and task after the augmentation that a decision asks for; the same where it adds nothing."""
    if "augmentation_level" not in decision:
        return system, task
    level = decision["augmentation_level"]
    where = None if folder is None else folder / "synthetic"
    made = task.augmented(generator, level, seed=seed, folder=where, progress=progress)
    return (system, task) if made is task else (system.augmented(level), made)


def _dropout(value: ArrayLike, size: int) -> Any:
    try:
        out = np.broadcast_to(np.asarray(value, dtype=np.float64), (size,)).copy()
    except (TypeError, ValueError):
        raise InputError(f"dropout: expected one number or {size}, found {value!r}") from None
    bad = ~((out >= 0.0) & (out < 1.0))
    if np.any(bad):
        u = int(np.argmax(bad))
        raise InputError(f"dropout[device {u}]: must lie in 0 .. 1, below 1, found {float(out[u])!r}")
    return out


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        found = torch.device(name)
    except (RuntimeError, TypeError) as error:
        raise InputError(f"device: {error}") from None
    if found.type not in ("cpu", "cuda"):
        raise InputError(f"device: must be a CPU or a CUDA device, found {name!r}")
    if found.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"device: {name!r} is not there; torch {torch.__version__} sees no GPU")
    return found


def _identity(
    decision: Decision, system: System | AerialSystem, task: Task, plan: Plan, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what makes a run this run: a checkpoint of any other is refused."""

    def digest(*arrays: Any) -> str:
        out = hashlib.blake2b(digest_size=16)
        for array in arrays:
            out.update(np.ascontiguousarray(array).view(np.uint8).data)
        return out.hexdigest()

    start, statistics = Layout.flatten(task.module).numpy(), Layout.flatten_buffers(task.module).numpy()
    return {
        "decision": decision.to_dict(),
        "scenario": hashlib.sha256(repr(system.to_dict()).encode()).hexdigest(),
        "data": task.data_fingerprint,
        "network": {"module": repr(task.module), "start": digest(start), "statistics": digest(statistics)},
        "loss": task.loss_name,
        "rounds": plan.rounds,
        "learning_rate": plan.learning_rate,
        "seed": plan.seed,
        "pruner": _described(plan.pruner),
        "evidence_samples": plan.evidence_samples,
        "settings": dict(settings),
    }


def _described(part: Any) -> Any:
    """Return a part as plain data: the class, and what it was made with."""
    if part is None or isinstance(part, str | bool | int | float):
        return part
    if isinstance(part, Mapping):
        return {str(key): _described(value) for key, value in part.items()}
    if isinstance(part, Set):
        return sorted(repr(_described(one)) for one in part)
    if isinstance(part, Sequence):
        return [_described(one) for one in part]
    if isinstance(part, np.ndarray | torch.Tensor):
        return part.tolist()
    made = {name: _described(value) for name, value in vars(part).items() if not name.startswith("_")}
    return {"class": type(part).__qualname__, **made}


class _Book:
    """Rows of a run, and its checkpoints where a folder for them is given."""

    def __init__(self, folder: Path | None, every: int, loop: Loop, rounds: int) -> None:
        self.rows: list[dict[str, Any]] = []
        self.notes: list[str] = []
        self.seconds = 0.0
        self._folder = folder
        self._every, self._loop, self._rounds = every, loop, rounds
        self._identity: dict[str, Any] = {}
        self._started = time.perf_counter()

    def begin(self, identity: dict[str, Any], resume: bool) -> None:
        """Take up the newest checkpoint of this run, if there is one."""
        assert self._folder is not None
        self._identity = checkpoints.plain(identity)
        if not resume:
            checkpoints.clear(self._folder)
            return
        found = checkpoints.load(self._folder)
        if found is None:
            return
        unlike = checkpoints.difference(self._identity, found.data.get("identity", {}))
        if unlike:
            raise InputError(
                f"checkpoint: {self._folder} is of another run: {unlike}; give another folder, or resume=False to "
                "remove what it holds"
            )
        self.rows.extend(found.data["rows"])
        self.seconds = float(found.data["seconds"])
        self._loop.restore(found.round, found.tensors, found.data["state"])
        self.notes.extend(f"a damaged checkpoint was passed over: {text}" for text in found.skipped)

    def keep(self, now: bool = False) -> None:
        """Write a checkpoint if one is due, or now; a disk that is full stops nothing."""
        number = self._loop.round
        if self._folder is None or number == 0:
            return
        if number % self._every and number != self._rounds and not now:
            return
        data = {
            "identity": self._identity,
            "rows": self.rows,
            "seconds": self.seconds + time.perf_counter() - self._started,
            "state": self._loop.data(),
        }
        try:
            checkpoints.save(self._folder, number, self._loop.tensors(), data)
        except InputError as error:
            note = f"checkpoint of round {number} was not written: {error}"
            warnings.warn(note, RuntimeWarning, stacklevel=3)
            self.notes.append(note)


def _due(number: int, rounds: int, every: int) -> bool:
    return every > 0 and (number in (1, rounds) or number % every == 0)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _round(loop: Loop, number: int, rows: list[dict[str, Any]], test: bool, measure: bool) -> str:
    """Do one round and append its row; return why training must stop, or nothing."""
    ledger = loop.ledger
    before = rows[-1] if rows else {"cumulative_energy": float(ledger.generation_energy.sum()), "cumulative_bits": 0}
    global_loss = norm = aim = drift = None
    left = loop.losses.global_loss(loop.weights, loop.buffers) if measure and loop.scene is not None and rows else None
    loop.enter(number)
    if measure:
        value, gradient = loop.losses.global_gradient(loop.weights, loop.buffers)
        global_loss, norm = _finite(value), _finite(float(gradient.to(torch.float64).square().sum()))
        if loop.mix is not None:
            gradient = loop.losses.mixture_gradient(loop.weights, loop.mix, loop.buffers)[1]
            aim = _finite(float(gradient.to(torch.float64).square().sum()))
        drift = None if left is None else _finite(value - left)
    arrival_accuracy = None
    if loop.scene is not None:
        arrival_accuracy = _finite(loop.losses.accuracy(loop.weights, loop.scene.fresh, loop.buffers))
    step = loop.step()
    fault = "" if finite(step.weights) else "a weight is not finite after the update"
    test_loss = accuracy = current = None
    if test and not fault:
        tested, right = loop.losses.verdicts(step.weights, step.buffers)
        test_loss, accuracy = _finite(tested), int(right.sum()) / len(right)
        if loop.scene is not None and len(loop.active):
            current = _finite(loop.losses.mixed_accuracy(right, loop.scene.class_mix))
        fault = "" if math.isfinite(tested) else "the test loss is not finite"
    started = loop.now
    # An interrupt before the row is appended leaves a round that the caller cuts off the ledger.
    loop.accept(step)
    booked = ledger.last()
    bits = booked["bits"].sum().item()
    energy = float(booked["energy"].sum())
    rows.append(
        {
            "round": number,
            "train_loss": _finite(step.loss),
            "global_loss": global_loss,
            "gradient_norm_squared": norm,
            **({} if loop.mix is None else {"target_gradient_norm_squared": aim}),
            "test_loss": test_loss,
            "test_accuracy": accuracy,
            "round_delay": step.time - started,
            "round_energy": energy,
            "round_bits": bits,
            # devices make their samples side by side, and round 1 waits for all of them
            "cumulative_delay": float(ledger.generation_delay.max()) + step.time,
            "cumulative_energy": before["cumulative_energy"] + energy,
            "cumulative_bits": before["cumulative_bits"] + bits,
            "received": int(np.sum(step.sent & ~step.lost)),
            "violations": ledger.broken(),
        }
    )
    if loop.scene is not None:
        rows[-1] |= {
            **loop.scene.row,
            "taking_part": int(step.worked.sum()),
            "drift": drift,
            "arrival_accuracy": arrival_accuracy,
            "current_accuracy": current,
        }
    return fault

"""The federated training loop that carries out a decision, and its result.

One round, as the theory assumes it (section 0):

1. the server's weights w reach all devices without error;
2. device u prunes them to w_u = m_u * w, keeping the weights of largest magnitude of the whole network;
3. it computes g_u = m_u * grad F_u(w_u) on its data or on a batch of them;
4. it quantizes the kept entries and the unpruned parameters with one common range, without bias, to Q_u;
5. its packet arrives (alpha_u = 1) with probability 1 - q_u, drawn in two steps: a gain o ~ Exp(1) of this
   block, then the loss given that gain, so that the mean over gains is the model's packet error (q_u = 0 and
   nothing is lost where the system's radio has no packet errors);
6. the server takes g = sum_u N_u alpha_u Q_u / sum_u N_u alpha_u over what arrived, pruned entries counted as
   zeros, and sets w <- w - eta g; where nothing arrived w stays. The server's model is never pruned.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jointopt._version import __version__
from jointopt.decision import Decision
from jointopt.errors import InputError, is_whole, nearest
from jointopt.federated.ledger import Ledger
from jointopt.federated.quantizer import RAW_WIDTH, WIDTHS, decode, encode, quantize
from jointopt.federated.task import Losses, Task
from jointopt.files import write_json
from jointopt.pruning import prune_rank, pruned_count, snap
from jointopt.system import FloatArray, System

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "ALGORITHMS",
    "SCHEMA",
    "STREAMS",
    "Curve",
    "TrainingResult",
    "stream",
    "torch_stream",
    "train",
    "trainable",
]

SCHEMA = "jointopt.training/1"
ALGORITHMS = ("fedsgd", "fedavg")
"""The algorithms `train` knows."""
STREAMS: Mapping[str, int] = {"batch": 0, "quantizer": 1, "channel": 2, "selection": 3}
"""Keys of the streams of random numbers; fixed, so that old results stay reproducible. Nothing draws from
"selection" yet: who takes part is part of the decision."""

Status = Literal["completed", "interrupted", "diverged"]

_NEEDED = ("pruning_ratio", "power")
_OPTIONAL = ("bits", "bandwidth", "frequency", "selected")


def _sequence(seed: int, name: str, *where: int) -> np.random.SeedSequence:
    return np.random.SeedSequence(entropy=seed, spawn_key=(STREAMS[name], *where))


def stream(seed: int, name: str, *where: int) -> np.random.Generator:
    """Return the random numbers of a stream at a place (round, then device), whatever was drawn elsewhere."""
    return np.random.default_rng(_sequence(seed, name, *where))


def torch_stream(seed: int, name: str, *where: int) -> torch.Generator:
    """Return `stream` as a torch generator on the CPU."""
    state = int(_sequence(seed, name, *where).generate_state(1, np.uint64)[0])
    return torch.Generator().manual_seed(state)


def trainable(decision: Mapping[str, Any], system: System) -> Decision:
    """Check a decision and round its pruning ratios up to whole numbers of weights.

    Rounding up only lowers delay and energy, so budgets that held still hold. Where it leads above
    `pruning_ratio_max`, by less than 1/V, that is accepted, since rounding down could break a budget.
    A design that does not choose bits sends the learner's `bits_max` per parameter.

    Returns
    -------
    Decision
        All variables of shape ``[devices]``, bits among them. Devices that are not selected keep whatever values
        they were given (0 W or 0 Hz, say), except that they prune nothing; none of it is used.

    Raises
    ------
    InputError
        A variable is missing, unknown, for another number of devices, not finite or out of its range (bits
        are 1 to 16, or 32 for raw floats); the message names variable and device.
    """
    size = len(system)
    known = (*_NEEDED, *_OPTIONAL)
    for name in decision:
        if name not in known:
            raise InputError(f"decision: training cannot carry out '{name}'{nearest(name, known)}")
    for name in _NEEDED:
        if name not in decision:
            raise InputError(f"decision: '{name}' is missing")
    plain = Decision({k: v.detach().cpu().numpy() if hasattr(v, "detach") else v for k, v in decision.items()})
    for name, value in plain.items():
        if value.ndim != 1:
            raise InputError(f"decision.{name}: is a batch of shape {value.shape}; training takes one decision")
        if value.shape[0] not in (1, size):
            raise InputError(f"decision: was made for {value.shape[0]} devices, the scenario has {size}")
    values = {name: np.broadcast_to(value, (size,)).copy() for name, value in plain.items()}

    selected = values.get("selected", np.ones(size))
    learner = system.learner
    if "bits" not in values:
        if learner.bits_max not in WIDTHS:
            raise InputError(
                f"learner.bits_max: {learner.bits_max} bits are sent where the decision names none, which training "
                f"cannot do; it takes 1 .. 16, or {RAW_WIDTH} for raw floats"
            )
        values["bits"] = np.full(size, float(learner.bits_max))
    ratio, most = values["pruning_ratio"], learner.pruning_ratio_max
    rules = [
        ("selected", ~np.isin(selected, (0.0, 1.0)), "must be 0 or 1"),
        (
            "pruning_ratio",
            (ratio < 0) | (ratio > most + 1.0 / learner.parameters),
            f"must lie in 0 .. {most:g}",
        ),
        (
            "bits",
            ~np.isin(values["bits"], WIDTHS),
            f"must be a whole number in 1 .. 16, or {RAW_WIDTH} for raw",
        ),
        *(
            (name, values[name] <= 0, "must be above 0")
            for name in ("power", "bandwidth", "frequency")
            if name in values
        ),
    ]
    for name, bad, rule in rules:
        if name != "selected":
            bad = bad & (selected == 1.0)
        if np.any(bad):
            u = int(np.argmax(bad))
            raise InputError(f"decision.{name}[device {u}]: {float(values[name][u])!r} {rule}")
    if not np.any(selected == 1.0):
        raise InputError("decision.selected: no device takes part")
    values["pruning_ratio"] = np.asarray(snap(np.where(selected == 1.0, ratio, 0.0), learner.parameters))
    return Decision(values)


class Curve:
    """What can be read off the rows of a run."""

    rows: list[dict[str, Any]]

    @property
    def final_accuracy(self) -> float | None:
        """Test accuracy last evaluated, None if never."""
        return next((r["test_accuracy"] for r in reversed(self.rows) if r["test_accuracy"] is not None), None)

    def accuracy_at(self, *, energy: float | None = None, delay: float | None = None) -> float | None:
        """Return the test accuracy last evaluated within a total energy [J] or delay [s]; None if none."""
        if (energy is None) == (delay is None):
            raise InputError("accuracy_at: give energy or delay, one of them")
        key, most = ("cumulative_energy", energy) if delay is None else ("cumulative_delay", delay)
        assert most is not None
        # a running total may exceed the amount it was summed up to by rounding
        most *= 1.0 + 1e-9
        reached = [r["test_accuracy"] for r in self.rows if r["test_accuracy"] is not None and r[key] <= most]
        return reached[-1] if reached else None

    def _cost_to(self, accuracy: float, key: str) -> float | None:
        for row in self.rows:
            if row["test_accuracy"] is not None and row["test_accuracy"] >= accuracy:
                return float(row[key])
        return None

    def energy_to(self, accuracy: float) -> float | None:
        """Return the energy [J] of all devices until a test accuracy was first evaluated; None if never."""
        return self._cost_to(accuracy, "cumulative_energy")

    def delay_to(self, accuracy: float) -> float | None:
        """Return the delay [s] until a test accuracy was first evaluated; None if never."""
        return self._cost_to(accuracy, "cumulative_delay")


@contextmanager
def _threads(number: int | None) -> Iterator[None]:
    """Use so many torch threads inside, and the caller's number again afterwards."""
    before = torch.get_num_threads()
    if number is not None:
        torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass(frozen=True, eq=False)
class TrainingResult(Curve):
    """What a training run did: one row per round, a ledger, the final weights.

    Attributes
    ----------
    rows : list of dict
        One per finished round:

        ``round`` (from 1); ``train_loss``, sum_u pi_u F_u(w_u) over the selected devices, of the pruned
        models on this round's samples before the update; ``test_loss`` and ``test_accuracy`` of the dense
        server model after the update, and ``global_loss`` F(w) and ``gradient_norm_squared`` ||grad F(w)||^2
        of the dense server model before it, over the samples of all devices (None in rounds that are not
        evaluated); ``round_delay`` [s], the largest of the devices; ``round_energy`` [J], their sum;
        ``round_bits``; ``cumulative_delay``, ``cumulative_energy``, ``cumulative_bits``; ``received``,
        packets that arrived; ``violations``, budgets broken by the booked costs.
    decision : Decision
        What was carried out: pruning ratios rounded up to whole numbers of weights.
    ledger : Ledger
        Costs per round and device.
    weights : array [parameters]
        The server's final weights, float32, in the order of the network's ``named_parameters()``.
    status : {"completed", "interrupted", "diverged"}
        Whatever was done until then is kept; `message` says what happened.
    """

    system: System
    decision: Decision
    rows: list[dict[str, Any]]
    ledger: Ledger
    weights: NDArray[np.float32]
    status: Status
    message: str
    data: str
    network: str
    rounds: int
    algorithm: str
    learning_rate: float
    seed: int
    seconds: float
    settings: Mapping[str, Any]

    @property
    def violations(self) -> int:
        """Budgets broken by the booked costs, counted over devices, both budgets and all rounds."""
        return sum(int(row["violations"]) for row in self.rows)

    def __repr__(self) -> str:
        accuracy = "not evaluated" if self.final_accuracy is None else f"accuracy {self.final_accuracy:.3f}"
        cost = ""
        if self.rows:
            last = self.rows[-1]
            cost = f", {last['cumulative_energy']:.4g} J, {last['cumulative_delay']:.4g} s"
        return (
            f"TrainingResult({self.data}/{self.network}: {self.status}, {len(self.rows)} of {self.rounds} "
            f"rounds, {accuracy}{cost}, ran {self.seconds:.3g} s)"
        )

    def summary(self) -> str:
        """Return the run in words, for reading."""
        lines = [
            f"{self.status}: {len(self.rows)} of {self.rounds} rounds of {self.algorithm} on {self.data} "
            f"with {self.network}, {len(self.system)} devices, seed {self.seed}, {self.seconds:.3g} s"
        ]
        if self.message:
            lines.append(self.message)
        if not self.rows:
            return "\n".join(lines)
        last, ledger = self.rows[-1], self.ledger
        accuracy = self.final_accuracy
        lines += [
            f"test accuracy    {'not evaluated' if accuracy is None else f'{accuracy:.4f}'}",
            f"training loss    {self.rows[0]['train_loss']:.4g} at first, {last['train_loss']:.4g} at last",
            f"delay            {last['cumulative_delay']:.4g} s ({last['round_delay']:.4g} s a round)",
            f"energy           {last['cumulative_energy']:.4g} J ({last['round_energy']:.4g} J a round)",
            f"bits sent        {last['cumulative_bits']:.4g}",
        ]
        sent = len(ledger) * int(ledger.cost.selected.sum())
        lost = int(ledger.lost.sum())
        lines.append(f"packets lost     {lost} of {sent} ({lost / sent:.2%})")
        if self.violations:
            lines.append(f"budgets broken   {ledger.violations} in each round (devices x budgets, booked costs)")
        else:
            lines.append("budgets          kept by every device in every round (booked at the ergodic rate)")
        slow, costly = ledger.faded_delay_exceeded, ledger.faded_energy_exceeded
        lines.append(
            f"faded blocks     {slow.sum() / sent:.2%} took longer than the delay budget, "
            f"{costly.sum() / sent:.2%} more than the energy budget"
        )
        return "\n".join(lines)

    def to_pandas(self) -> pd.DataFrame:
        """Return one row per round, the columns of `rows`."""
        import pandas as pd

        return pd.DataFrame(self.rows)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, strict JSON: the contract of the saved file (schema "jointopt.training/1")."""
        totals = {name: values.tolist() for name, values in self.ledger.totals().items()}
        return {
            "schema": SCHEMA,
            "version": __version__,
            "seed": self.seed,
            "data": self.data,
            "network": self.network,
            "rounds": self.rounds,
            "algorithm": self.algorithm,
            "learning_rate": self.learning_rate,
            "settings": dict(self.settings),
            "status": self.status,
            "message": self.message,
            "seconds": self.seconds,
            "violations": self.violations,
            "decision": self.decision.to_dict(),
            "packet_error": np.where(self.ledger.cost.selected, self.ledger.cost.packet_error, 0.0).tolist(),
            "rows": [dict(row) for row in self.rows],
            "ledger": {
                **totals,
                "faded_delay_exceeded": self.ledger.faded_delay_exceeded.tolist(),
                "faded_energy_exceeded": self.ledger.faded_energy_exceeded.tolist(),
            },
            "scenario": self.system.to_dict(),
        }

    def save(self, path: str | Path) -> Path:
        """Write `to_dict` as JSON, whole or not at all (see `jointopt.files.write_json`)."""
        return write_json(self.to_dict(), path, devices=len(self.system))


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


class _DivergedError(Exception):
    """Raised inside the loop when a loss or a gradient is no longer finite."""


class _Loop:
    """State and steps of one run."""

    def __init__(
        self,
        decision: Decision,
        system: System,
        task: Task,
        *,
        learning_rate: float,
        local_steps: int,
        seed: int,
    ) -> None:
        self.losses = Losses(task)
        self.ledger = Ledger(system, decision, local_steps=local_steps)
        self.radio = system.radio
        self.samples = task.samples
        self.batch_size = task.batch_size
        self.bits = decision["bits"].astype(np.int64)
        self.pruned = np.broadcast_to(
            pruned_count(decision["pruning_ratio"], system.learner.parameters), self.samples.shape
        ).tolist()
        self.learning_rate, self.local_steps, self.seed = learning_rate, local_steps, seed
        self.weights = self.losses.start.clone()

    def draw_channel(self, round_: int) -> tuple[FloatArray, NDArray[np.bool_]]:
        """Draw fading gains and losses [devices]; always the same numbers, whatever the decision."""
        rng = stream(self.seed, "channel", round_)
        size = len(self.samples)
        gain, luck = rng.standard_exponential(size), rng.random(size)
        cost, radio = self.ledger.cost, self.radio
        if radio.fading == "none":
            return np.ones(size), luck < cost.packet_error
        if radio.packet_error == "none":
            return gain, np.zeros(size, dtype=np.bool_)
        faded = cost.snr * gain
        if radio.packet_error == "outage":
            return gain, faded < radio.outage_threshold
        with np.errstate(divide="ignore"):
            return gain, luck < -np.expm1(-radio.waterfall_threshold / faded)

    def rank(self) -> Tensor:
        """Return when each parameter would be pruned from the present weights, [P]; V for those never pruned."""
        prunable = self.losses.prunable
        rank = torch.full(prunable.shape, int(prunable.sum()))
        rank[prunable] = prune_rank(self.weights[prunable])
        return rank

    def local_update(self, device: int, round_: int, keep: Tensor) -> tuple[float, Tensor]:
        """Return the loss of the pruned model and the sum of the masked gradients of the local steps, [P]."""
        count = int(self.samples[device])
        batches = self.batch_size is not None and self.batch_size < count
        rng = stream(self.seed, "batch", round_, device) if batches else None
        model, total, first = self.weights * keep, torch.zeros_like(self.weights), 0.0
        for step in range(self.local_steps):
            rows = None if rng is None else rng.choice(count, self.batch_size, replace=False)
            loss, gradient = self.losses.device_gradient(model, device, rows)
            gradient = gradient * keep
            total = total + gradient
            if not (math.isfinite(loss) and bool(torch.isfinite(total).all())):
                raise _DivergedError(f"the loss or gradient of device {device} is not finite")
            if step == 0:
                first = loss
            if step + 1 < self.local_steps:
                model = model - self.learning_rate * gradient
        return first, total

    def send(self, device: int, round_: int, entries: Tensor) -> Tensor:
        """Return what the server decodes; the first packet is really packed and its size checked."""
        generator = torch_stream(self.seed, "quantizer", round_, device)
        bits = int(self.bits[device])
        if round_ > 1:
            return quantize(entries, bits, generator)
        payload = encode(entries, bits, generator)
        self.ledger.check_payload(device, payload)
        return decode(payload)

    def step(self, round_: int) -> tuple[Tensor, float, FloatArray, NDArray[np.bool_]]:
        """Return the next weights, the training loss, the drawn gains and the losses of one round."""
        gain, lost = self.draw_channel(round_)
        # all devices prune the same weights, each at its own ratio: one sort serves them all
        rank = self.rank()
        total = torch.zeros_like(self.weights, dtype=torch.float64)
        loss = received = present = 0.0
        for u in np.flatnonzero(self.ledger.cost.selected).tolist():
            # kept weights and unpruned parameters: what device u trains and sends
            keep = rank >= self.pruned[u]
            index = torch.nonzero(keep)[:, 0]
            device_loss, update = self.local_update(u, round_, keep)
            size = float(self.samples[u])
            loss, present = loss + size * device_loss, present + size
            sent = self.send(u, round_, update[index])
            if not lost[u]:
                total.index_add_(0, index, size * sent.to(torch.float64))
                received += size
        weights = self.weights
        if received > 0.0:
            weights = weights - self.learning_rate * (total / received).to(weights.dtype)
        return weights, loss / present, gain, lost


def _whole(name: str, value: Any, least: int) -> int:
    if not (is_whole(value) and value >= least):
        raise InputError(f"{name}: must be a whole number of at least {least}, found {value!r}")
    return int(value)


def train(
    decision: Mapping[str, Any],
    system: System,
    task: Task,
    *,
    rounds: int | None = None,
    learning_rate: float | None = None,
    seed: int = 0,
    algorithm: str = "fedsgd",
    local_steps: int = 1,
    evaluate_every: int | None = None,
    measure_gradient_every: int | None = None,
    threads: int | None = 1,
    callback: Callable[[dict[str, Any]], Any] | None = None,
) -> TrainingResult:
    """Train a task under a decision, round by round, and book what it costs.

    Same arguments, same result, bit for bit (on one machine with one number of threads). Fading, losses and
    batches depend on the seed alone, so two decisions trained with one seed meet the same (common random
    numbers).

    Parameters
    ----------
    decision : mapping
        `pruning_ratio`, `power` [W], and if chosen `bits` (else the learner's `bits_max`), `bandwidth` [Hz],
        `frequency` [Hz] and `selected` (0 or 1), each one number or shape ``[devices]``; rounded by `trainable`.
        Budgets it breaks are counted, not refused, so that baselines can be trained too.
    system : System
        Must fit the task (see `Task.check`).
    task : Task
        What is trained.
    rounds, learning_rate : optional
        The bound's when not given.
    seed : int
        Seed of batches, quantizers and channel.
    algorithm : {"fedsgd", "fedavg"}
        "fedavg" makes `local_steps` steps of gradient descent on the pruned model, sends their total divided
        by the learning rate (the sum of the gradients) and is booked for as many times the cycles. The
        published bound covers one step only.
    evaluate_every : int, optional
        The first, the last and every n-th round are tested; about 50 in all when not given.
    measure_gradient_every : int, optional
        The same for the full gradient of F, which costs a pass over all data; as `evaluate_every` when not
        given, 0 for never.
    threads : int, optional
        Torch threads while training; the caller's number when None. One is fastest for networks this small,
        most of all on a busy machine.
    callback : callable, optional
        Called with the row of every round; may raise KeyboardInterrupt to stop, which keeps what was done.

    Raises
    ------
    InputError
        Decision, system and task do not fit each other, or an argument is out of its range.
    """
    if algorithm not in ALGORITHMS:
        raise InputError(f"algorithm: unknown '{algorithm}'{nearest(str(algorithm), ALGORITHMS)}")
    local_steps = _whole("local_steps", local_steps, 1)
    if algorithm == "fedsgd" and local_steps != 1:
        raise InputError(f"local_steps: 'fedsgd' makes one step, found {local_steps}; use algorithm='fedavg'")
    rounds = _whole("rounds", system.bound.rounds if rounds is None else rounds, 1)
    seed = _whole("seed", seed, 0)
    rate = float(system.bound.learning_rate if learning_rate is None else learning_rate)
    if not (math.isfinite(rate) and rate > 0.0):
        raise InputError(f"learning_rate: must be finite and above 0, found {rate!r}")
    every = max(1, rounds // 50) if evaluate_every is None else _whole("evaluate_every", evaluate_every, 1)
    measure = every if measure_gradient_every is None else _whole("measure_gradient_every", measure_gradient_every, 0)
    threads = None if threads is None else _whole("threads", threads, 1)
    task.check(system)
    carried_out = trainable(decision, system)
    loop = _Loop(carried_out, system, task, learning_rate=rate, local_steps=local_steps, seed=seed)

    started = time.perf_counter()
    rows: list[dict[str, Any]] = []
    status: Status = "completed"
    message = ""
    try:
        with _threads(threads):
            for number in range(1, rounds + 1):
                message = _round(loop, number, rows, _due(number, rounds, every), _due(number, rounds, measure))
                if callback is not None:
                    callback(dict(rows[-1]))
                if message:
                    raise _DivergedError(message)
    except _DivergedError as error:
        status = "diverged"
        message = (
            f"diverged in round {len(rows) + 1 - bool(message)}: {error}; "
            f"try a learning rate below {rate:g} (1/L of the bound is {1.0 / system.bound.smoothness:.3g})"
        )
    except KeyboardInterrupt:
        status = "interrupted"
        message = f"interrupted after {len(rows)} of {rounds} rounds, which are kept"
    loop.ledger.truncate(len(rows))
    return TrainingResult(
        system=system,
        decision=carried_out,
        rows=rows,
        ledger=loop.ledger,
        weights=loop.weights.numpy().copy(),
        status=status,
        message=message,
        data=task.name,
        network=task.network,
        rounds=rounds,
        algorithm=algorithm,
        learning_rate=rate,
        seed=seed,
        seconds=time.perf_counter() - started,
        settings={
            "local_steps": local_steps,
            "batch_size": task.batch_size,
            "scheme": task.scheme,
            "alpha": task.alpha,
            "task_seed": task.seed,
            "evaluate_every": every,
            "measure_gradient_every": measure,
        },
    )


def _due(number: int, rounds: int, every: int) -> bool:
    return every > 0 and (number in (1, rounds) or number % every == 0)


def _round(loop: _Loop, number: int, rows: list[dict[str, Any]], test: bool, measure: bool) -> str:
    """Do one round and append its row; return why training must stop, or nothing."""
    before = rows[-1] if rows else {"cumulative_delay": 0.0, "cumulative_energy": 0.0, "cumulative_bits": 0}
    global_loss = norm = None
    if measure:
        value, gradient = loop.losses.global_gradient(loop.weights)
        global_loss, norm = _finite(value), _finite(float(gradient.to(torch.float64).square().sum()))
    weights, loss, gain, lost = loop.step(number)
    fault = "" if bool(torch.isfinite(weights).all()) else "a weight is not finite after the update"
    test_loss = accuracy = None
    if test and not fault:
        tested, accuracy = loop.losses.test(weights)
        test_loss = _finite(tested)
        fault = "" if math.isfinite(tested) else "the test loss is not finite"
    cost, sent = loop.ledger.cost, loop.ledger.cost.selected
    delay, energy, bits = float(cost.delay.max()), float(cost.energy.sum()), cost.payload_bits.sum().item()
    row = {
        "round": number,
        "train_loss": loss,
        "global_loss": global_loss,
        "gradient_norm_squared": norm,
        "test_loss": test_loss,
        "test_accuracy": accuracy,
        "round_delay": delay,
        "round_energy": energy,
        "round_bits": bits,
        "cumulative_delay": before["cumulative_delay"] + delay,
        "cumulative_energy": before["cumulative_energy"] + energy,
        "cumulative_bits": before["cumulative_bits"] + bits,
        "received": int(np.sum(sent & ~lost)),
        "violations": loop.ledger.violations,
    }
    # An interrupt before the last line leaves a round that the caller cuts off the ledger.
    loop.ledger.book(gain, lost)
    loop.weights = weights
    rows.append(row)
    return fault

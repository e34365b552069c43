"""Every registered part in the whole loop: it learns, it is booked, it repeats, and it resumes bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from jointopt.errors import InputError
from jointopt.federated.aggregation import AGGREGATIONS, SERVERS
from jointopt.federated.clocks import CLOCKS
from jointopt.federated.codecs import CODECS
from jointopt.federated.engines import ENGINES
from jointopt.federated.outcome import TrainingResult
from jointopt.federated.rules import ALGORITHMS
from jointopt.federated.task import Task
from jointopt.federated.training import train
from jointopt.pruning import PRUNERS, pruner
from jointopt.pruning.schedules import OneShot
from jointopt.system import System

DECISION = {"pruning_ratio": [0.0, 0.3, 0.5, 0.5], "bits": 8, "power": 0.1}
CLOCK_OPTIONS: dict[str, dict[str, Any]] = {
    "buffered": {"size": 2},
    "interval": {"seconds": 2e-3},
    "tiers": {"seconds": 2e-3, "periods": (1, 4, 16, 256)},
}


class Blocks(nn.Module):
    """Two residual blocks with batch normalisation and dropout: something of all that can go wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.blocks = nn.ModuleList([Block(6), Block(6)])
        self.drop = nn.Dropout(0.1)
        self.last = nn.Linear(6 * 4, 10)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        out = self.norm(self.first(inputs)).relu()
        for block in self.blocks:
            out = block(out)
        out = nn.functional.adaptive_avg_pool2d(out, 2).flatten(1)
        return self.last(self.drop(out))


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.one, self.norm = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)
        self.two = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return (inputs + self.two(self.norm(self.one(inputs)).relu())).relu()


@pytest.fixture(scope="module")
def plain() -> Task:
    return Task.make(data="digits", network="mlp", devices=4, batch_size=16, seed=3, hidden=(16,))


@pytest.fixture(scope="module")
def convolutional() -> Task:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Task.make(data="digits", network=Blocks(), devices=4, batch_size=16, seed=3)


@pytest.fixture
def setting(system_for: Callable[..., System]) -> Callable[..., System]:
    def make(task: Task, **changes: Any) -> System:
        usual = {"gain": np.geomspace(3e-13, 1e-13, 4), "header_bits": 64 + 32 * task.buffers}
        return system_for(task, **{**usual, **changes})

    return make


def same(one: TrainingResult, other: TrainingResult) -> None:
    np.testing.assert_array_equal(one.weights, other.weights)
    np.testing.assert_array_equal(one.buffers, other.buffers)
    assert one.rows == other.rows
    for name, booked in one.ledger.state().items():
        np.testing.assert_array_equal(booked, other.ledger.state()[name], err_msg=name)


def check(task: Task, system: System, folder: Path, rounds: int = 6, stop: int = 3, **options: Any) -> TrainingResult:
    """Train without and with an interruption; both must be the same, and booked as they should."""
    decision = options.pop("decision", DECISION)
    options = {"rounds": rounds, "learning_rate": 0.1, "seed": 5, **options}
    whole = train(decision, system, task, **options)
    assert whole.status == "completed", whole.message
    assert len(whole.rows) == len(whole.ledger) == rounds

    def interrupt(row: dict[str, Any]) -> None:
        if row["round"] == stop:
            raise KeyboardInterrupt

    kept = {"checkpoint": folder / "run", "checkpoint_every": 1}
    cut = train(decision, system, task, **options, **kept, callback=interrupt)
    assert (cut.status, len(cut.rows)) == ("interrupted", stop)
    # the round in which it was interrupted was not put down
    rest = train(decision, system, task, **options, **kept)
    assert rest.status == "completed"
    same(whole, rest)
    again = train(decision, system, task, **options, **kept)
    same(whole, again)  # a finished run is only read

    energy = whole.ledger.energy
    assert np.all(np.isfinite(energy))
    assert np.all(energy[whole.ledger.worked] > 0)
    assert np.all(energy[~whole.ledger.worked] == 0)
    assert sum(row["round_energy"] for row in whole.rows) == pytest.approx(energy.sum(), rel=1e-12)
    assert whole.rows[-1]["cumulative_bits"] == whole.ledger.bits.sum()
    start = torch.cat([p.detach().reshape(-1) for p in task.module.parameters()]).numpy()
    assert not np.array_equal(start, whole.weights)
    return whole


@pytest.mark.parametrize("name", list(PRUNERS))
def test_every_pruner(
    name: str, plain: Task, convolutional: Task, setting: Callable[..., System], tmp_path: Path
) -> None:
    kind = pruner(name)
    task = convolutional if kind.granularity in ("channel", "layer") else plain
    decision = {**DECISION, "pruning_ratio": 0.25} if kind.granularity == "layer" else DECISION
    result = check(task, setting(task), tmp_path, decision=decision, pruner=name)
    ledger = result.ledger
    model = ledger.cost.payload_bits * ledger.sent[-1]
    if kind.needs - {"initial"}:
        # what the rule looks at is paid for, in some round at least
        assert ledger.bits.sum(axis=1).max() > model.sum()
    module = result.module(task)
    outputs = module(task.data.test_inputs[:4])
    assert outputs.shape == (4, 10)
    assert bool(torch.isfinite(outputs).all())


@pytest.mark.parametrize(
    "name", [name for name in PRUNERS if not pruner(name).chooses_ratio and not pruner(name).hooks]
)
def test_a_ratio_of_zero_is_plain_averaging_bit_for_bit(
    name: str, plain: Task, convolutional: Task, setting: Callable[..., System]
) -> None:
    task = convolutional if pruner(name).granularity in ("channel", "layer") else plain
    decision = {**DECISION, "pruning_ratio": 0.0}
    options: dict[str, Any] = {"rounds": 3, "learning_rate": 0.1, "seed": 5, "algorithm": "fedavg", "local_steps": 2}
    dense = train(decision, setting(task), task, **options)
    found = train(decision, setting(task), task, pruner=name, **options)
    same(dense, found)


@pytest.mark.parametrize("name", list(CODECS))
@pytest.mark.parametrize("feedback", [False, True])
def test_every_codec(name: str, feedback: bool, plain: Task, setting: Callable[..., System], tmp_path: Path) -> None:
    system = setting(plain, bits_max=32, mask_encoding="bitmap")
    widths = CODECS[name]().widths
    decision = {**DECISION, "bits": 8 if 8 in widths else widths[-1]}
    check(plain, system, tmp_path, decision=decision, codec=name, error_feedback=feedback)


@pytest.mark.parametrize("name", list(CLOCKS))
@pytest.mark.parametrize("delays", ["booked", "faded"])
def test_every_clock(name: str, delays: str, plain: Task, setting: Callable[..., System], tmp_path: Path) -> None:
    clock = {"name": name, **CLOCK_OPTIONS.get(name, {})}
    result = check(plain, setting(plain), tmp_path, rounds=12, stop=7, clock=clock, delays=delays)
    times = [row["cumulative_delay"] for row in result.rows]
    assert times == sorted(times)
    if name != "synchronous":
        assert result.settings["aggregation"] == "unbiased"


@pytest.mark.parametrize("name", list(AGGREGATIONS))
def test_every_aggregation(name: str, plain: Task, setting: Callable[..., System], tmp_path: Path) -> None:
    check(plain, setting(plain, gain=2e-14), tmp_path, aggregation=name)


@pytest.mark.parametrize("name", list(SERVERS))
def test_every_server(name: str, plain: Task, setting: Callable[..., System], tmp_path: Path) -> None:
    check(plain, setting(plain), tmp_path, server=name)


@pytest.mark.parametrize("name", list(ALGORITHMS))
@pytest.mark.parametrize("clock", ["synchronous", "asynchronous"])
def test_every_algorithm(name: str, clock: str, plain: Task, setting: Callable[..., System], tmp_path: Path) -> None:
    steps = 1 if ALGORITHMS[name]().one_step else 3
    result = check(plain, setting(plain), tmp_path, algorithm=name, local_steps=steps, clock=clock)
    once = train(DECISION, setting(plain), plain, rounds=1, seed=5)
    packets = ALGORITHMS[name]().packets
    assert result.ledger.cost.payload_bits.sum() == packets * once.ledger.cost.payload_bits.sum()


@pytest.mark.parametrize("name", [*ENGINES, "measure"])
def test_every_engine(name: str, plain: Task, setting: Callable[..., System], tmp_path: Path) -> None:
    options = {"rounds": 6, "learning_rate": 0.1, "seed": 5, "local_steps": 3, "algorithm": "fedavg"}
    auto = train(DECISION, setting(plain), plain, **options)
    found = train(DECISION, setting(plain), plain, engine=name, **options)
    # quantizers amplify the last bit, so the engines agree in what they learn, not in every bit
    assert found.rows[-1]["train_loss"] == pytest.approx(auto.rows[-1]["train_loss"], rel=1e-3)
    assert found.settings["engine"] in ENGINES


def test_bfloat16_learns_nearly_the_same(
    plain: Task, convolutional: Task, setting: Callable[..., System], tmp_path: Path
) -> None:
    for task, folder in ((plain, "a"), (convolutional, "b")):
        options = {"rounds": 6, "learning_rate": 0.1, "seed": 5}
        exact = train(DECISION, setting(task), task, **options)
        rough = check(task, setting(task), tmp_path / folder, precision="bfloat16")
        assert not np.array_equal(rough.weights, exact.weights)
        assert rough.rows[-1]["train_loss"] == pytest.approx(exact.rows[-1]["train_loss"], rel=0.05)


def test_progress_is_shown_with_the_time_left(
    plain: Task, setting: Callable[..., System], capsys: pytest.CaptureFixture[str]
) -> None:
    train(DECISION, setting(plain), plain, rounds=3, progress=True)
    shown = capsys.readouterr()
    assert "3/3" in shown.err
    assert "accuracy" in shown.err
    assert shown.out == ""


def test_an_engine_that_cannot(convolutional: Task, setting: Callable[..., System]) -> None:
    with pytest.raises(InputError, match="engine: 'batched' cannot train the network 'custom'"):
        train(DECISION, setting(convolutional), convolutional, rounds=1, engine="batched")


def test_channels_are_really_removed_on_the_devices(
    convolutional: Task, setting: Callable[..., System], tmp_path: Path
) -> None:
    system = setting(convolutional, mask_encoding="bitmap", pruning_ratio_max=0.95)
    decision = {**DECISION, "pruning_ratio": [0.0, 0.3, 0.6, 0.9], "bits": 32}
    result = check(convolutional, system, tmp_path, decision=decision, pruner="channel-magnitude", delays="faded")
    bits = result.ledger.bits[0]
    dense = 32 * (convolutional.parameters + convolutional.unpruned_parameters + convolutional.buffers) + 64
    # running statistics and biases go with their channels, so more is saved than the ratio says
    assert np.all(np.diff(bits) < 0)
    assert bits[0] == dense + len(pruner("channel-magnitude").groups(convolutional.module, torch.zeros(1, 1, 8, 8)))
    assert bits[3] < 0.2 * bits[0]
    assert np.all(np.diff(result.ledger.cost.compute_energy) < 0)


def test_one_global_mask_leaves_a_smaller_network(
    convolutional: Task, setting: Callable[..., System], tmp_path: Path
) -> None:
    kind = {"name": "channel-magnitude"}
    shared = pruner("channel-magnitude").with_(scope="global", persist=True)
    decision = {**DECISION, "pruning_ratio": 0.6, "bits": 32}
    result = check(convolutional, setting(convolutional), tmp_path, decision=decision, pruner=shared)
    assert kind["name"] == shared.name
    small = result.module(convolutional).eval()
    assert sum(p.numel() for p in small.parameters()) == int(result.mask.keep.sum())  # type: ignore[union-attr]
    assert result.mask.ratio >= 0.6  # type: ignore[union-attr]
    whole = result.module(convolutional)
    layout_weights = torch.from_numpy(result.weights)
    assert bool((layout_weights[~result.mask.keep] == 0).all())  # type: ignore[union-attr]
    assert whole(convolutional.data.test_inputs[:2]).shape == (2, 10)


def test_devices_are_dense_until_they_are_cut(plain: Task, setting: Callable[..., System], tmp_path: Path) -> None:
    late = pruner("magnitude").with_(schedule=OneShot(4))
    result = check(plain, setting(plain), tmp_path, pruner=late)
    bits = result.ledger.bits
    dense = 8 * (plain.parameters + plain.unpruned_parameters) + 64
    assert np.all(bits[:3] == dense)
    assert bits[3, 0] == dense
    assert np.all(bits[3:, 1:] < dense)


def test_partial_participation_dropout_and_stragglers(
    plain: Task, setting: Callable[..., System], tmp_path: Path
) -> None:
    system = setting(plain)
    result = check(plain, system, tmp_path / "a", rounds=12, participation=2, dropout=[0.0, 0.5, 0.5, 0.5])
    ledger = result.ledger
    assert np.all(ledger.worked.sum(axis=1) == 2)
    assert 0 < (ledger.worked & ~ledger.sent).sum() < 24  # some computed and dropped out
    assert np.all(ledger.energy[ledger.worked & ~ledger.sent] > 0)
    assert np.all(ledger.bits[~ledger.sent] == 0)
    share = check(plain, system, tmp_path / "b", rounds=12, participation=0.5)
    assert np.all(share.ledger.worked.sum(axis=1) == 2)
    assert np.array_equal(share.ledger.worked, ledger.worked)  # common random numbers

    limit = float(np.median(train(DECISION, system, plain, rounds=1).ledger.delay[0]))
    late = check(
        plain, system, tmp_path / "c", rounds=12, clock={"name": "synchronous", "deadline": limit}, delays="faded"
    )
    assert np.all([row["round_delay"] <= limit * (1 + 1e-9) for row in late.rows])
    left_behind = late.ledger.worked & ~late.ledger.sent
    assert left_behind.any()
    assert np.all(late.ledger.faded_delay[left_behind] <= limit * (1 + 1e-9))
    assert np.all(late.ledger.energy[left_behind] > 0)


def test_unbiased_aggregation_is_unbiased_under_losses_and_participation(
    quadratic_task: Callable[..., Task], system_for: Callable[..., System]
) -> None:
    """Over many seeds the mean step is that of everyone, dense; over what arrived it is not."""
    start = np.array([1.0, -2.0, 0.5])
    samples = [np.full((2, 3), 4.0), np.full((6, 3), -1.0), np.full((4, 3), 0.5)]
    task = quadratic_task(start, samples)
    system = system_for(task, gain=[1e-12, 3e-15, 1e-14])
    decision = {"pruning_ratio": 0.0, "bits": 32, "power": 0.1}
    full = start - 0.1 * (start - (2 * 4.0 - 6 * 1.0 + 4 * 0.5) / 12)
    errors = {}
    for name in ("unbiased", "received"):
        steps = [
            train(
                decision,
                system,
                task,
                rounds=1,
                learning_rate=0.1,
                seed=seed,
                aggregation=name,
                participation=2,
                dropout=0.2,
                measure_gradient_every=0,
            ).weights
            for seed in range(300)
        ]
        mean, spread = np.mean(steps, axis=0), np.std(steps, axis=0) / np.sqrt(len(steps))
        errors[name] = np.abs(mean - full) / spread
    assert np.all(errors["unbiased"] < 4.5)
    assert np.any(errors["received"] > 4.5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clock": "asynchrone"}, "clock: unknown 'asynchrone'; did you mean 'asynchronous'"),
        ({"codec": "unifrom"}, "unifrom"),
        ({"pruner": "magnitud"}, "unknown pruner 'magnitud'; did you mean 'magnitude'"),
        ({"server": "adamm"}, "server: unknown 'adamm'"),
        ({"aggregation": "mean"}, "aggregation: unknown 'mean'"),
        ({"participation": 5}, r"participation: must lie in 1 .. 4 .*found 5"),
        ({"participation": 0.0}, "participation: must be a whole number of devices or a share"),
        ({"participation": 2, "clock": "asynchronous"}, "participation: with a clock that does not wait"),
        ({"dropout": 1.0}, r"dropout\[device 0\]: must lie in 0 .. 1, below 1, found 1.0"),
        ({"dropout": [0.1, 0.1]}, "dropout: expected one number or 4"),
        ({"dropout": float("nan")}, r"dropout\[device 0\]: must lie"),
        ({"engine": "fast"}, "engine: unknown 'fast'"),
        ({"device": "tpu"}, "device: "),
        ({"precision": "float16"}, "precision: unknown 'float16'"),
        ({"delays": "real"}, "delays: unknown 'real'"),
        ({"checkpoint_every": 0}, "checkpoint_every: must be a whole number of at least 1"),
        ({"evidence_samples": 0}, "evidence_samples: must be"),
        ({"clock": {"name": "tiers", "seconds": 1e-5}}, "device . takes .* longer than the slowest tier"),
        ({"clock": {"name": "buffered", "size": 5}}, "a buffer of 5 never fills with 4 devices"),
        ({"algorithm": {"name": "fedprox", "proximal": -1.0}}, "proximal must be finite and at least 0"),
    ],
)
def test_bad_parts(plain: Task, setting: Callable[..., System], options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        train(DECISION, setting(plain), plain, rounds=1, **options)

"""Checkpoints: damaged, foreign, newer ones; a full disk; a process killed at any moment."""

from __future__ import annotations

import contextlib
import errno
import json
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest
import torch

from jointopt import files
from jointopt.errors import InputError
from jointopt.federated import checkpoint as checkpoints
from jointopt.federated.task import Task
from jointopt.federated.training import train
from jointopt.system import System

DECISION = {"pruning_ratio": [0.0, 0.3, 0.5, 0.7], "bits": 6, "power": 0.1}


@pytest.fixture(scope="module")
def small() -> Task:
    return Task.make(data="digits", network="mlp", devices=4, batch_size=16, seed=3, hidden=(16,))


def run(system: System, task: Task, folder: Path | None, **options: Any) -> Any:
    return train(
        DECISION, system, task, **{"rounds": 8, "seed": 1, "checkpoint_every": 2, "checkpoint": folder, **options}
    )


def test_a_checkpoint_holds_what_was_put_into_it(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(5), "b": torch.randn(2, 3), "c": torch.tensor([True, False]), "empty": torch.zeros(0)}
    assert checkpoints.load(tmp_path) is None
    assert checkpoints.load(tmp_path / "nowhere") is None
    for round_ in (3, 7, 12):
        checkpoints.save(tmp_path, round_, tensors, {"rows": [{"loss": 0.1 + 0.2}]})
    found = checkpoints.load(tmp_path)
    assert found is not None
    assert (found.round, found.skipped) == (12, ())
    assert found.data["rows"] == [{"loss": 0.1 + 0.2}]  # to the last bit
    assert set(found.tensors) == set(tensors)
    for name, value in tensors.items():
        assert torch.equal(found.tensors[name], value)
        assert found.tensors[name].dtype == value.dtype
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        f"round-{r:08d}.{kind}" for r in (7, 12) for kind in ("json", "safetensors")
    ]


def test_a_truncated_checkpoint_is_passed_over_and_named(
    small: Task, system_for: Callable[..., System], tmp_path: Path
) -> None:
    system = system_for(small)
    whole = run(system, small, None)
    run(system, small, tmp_path)
    newest = tmp_path / "round-00000008.safetensors"
    newest.write_bytes(newest.read_bytes()[:-10])
    rest = run(system, small, tmp_path)
    assert "a damaged checkpoint was passed over" in rest.message
    assert "round-00000008.safetensors: is truncated or damaged" in rest.message
    assert rest.rows == whole.rows
    np.testing.assert_array_equal(rest.weights, whole.weights)

    for path in tmp_path.glob("*.safetensors"):
        path.write_bytes(b"")
    with pytest.raises(InputError, match=r"no checkpoint is whole: .*00000008.*00000006"):
        run(system, small, tmp_path)
    fresh = run(system, small, tmp_path, resume=False)
    assert fresh.rows == whole.rows


@pytest.mark.parametrize("cut", [0, 1, 50, 200])
def test_json_cut_anywhere(small: Task, system_for: Callable[..., System], tmp_path: Path, cut: int) -> None:
    system = system_for(small)
    run(system, small, tmp_path, rounds=4)
    newest = tmp_path / "round-00000004.json"
    newest.write_text(newest.read_text()[:cut])
    assert "round-00000004.json" in run(system, small, tmp_path, rounds=4).message


def test_a_checkpoint_of_another_run_is_refused(small: Task, system_for: Callable[..., System], tmp_path: Path) -> None:
    system = system_for(small)
    run(system, small, tmp_path, rounds=4)
    other = Task.make(data="digits", network="mlp", devices=4, batch_size=16, seed=3, hidden=(17,))
    wrong: list[tuple[str, Callable[[], Any]]] = [
        ("learning_rate was 0.3, is 0.2", lambda: run(system, small, tmp_path, rounds=4, learning_rate=0.2)),
        ("seed was 1, is 2", lambda: run(system, small, tmp_path, rounds=4, seed=2)),
        ("rounds was 4, is 9", lambda: run(system, small, tmp_path, rounds=9)),
        ("data was|network", lambda: run(system_for(other), other, tmp_path, rounds=4)),
        ("scenario was", lambda: run(system_for(small, interference=1e-15), small, tmp_path, rounds=4)),
        (r"pruner\.", lambda: run(system, small, tmp_path, rounds=4, pruner="random")),
        (r"settings\.codec\.name was 'uniform', is 'sign'", lambda: train(
            {**DECISION, "bits": 1}, system, small, rounds=4, seed=1, checkpoint=tmp_path, codec="sign")),
    ]  # fmt: skip
    for message, call in wrong:
        with pytest.raises(InputError, match=f"is of another run: .*({message}|decision)"):
            call()
    # refusing has changed nothing
    assert len(run(system, small, tmp_path, rounds=4).rows) == 4


def test_a_newer_version_and_other_files_are_refused(
    small: Task, system_for: Callable[..., System], tmp_path: Path
) -> None:
    system = system_for(small)
    run(system, small, tmp_path, rounds=4)
    newest = tmp_path / "round-00000004.json"
    data = json.loads(newest.read_text())
    newest.write_text(json.dumps({**data, "schema": "jointopt.checkpoint/2"}))
    with pytest.raises(InputError, match=r"has schema 'jointopt.checkpoint/2', this version of jointopt reads"):
        run(system, small, tmp_path, rounds=4)
    newest.write_text(json.dumps({"schema": "jointopt.training/1"}))
    with pytest.raises(InputError, match="is no checkpoint of a training run"):
        run(system, small, tmp_path, rounds=4)


@pytest.mark.parametrize("after", [0, 1, 3])
def test_a_full_disk_stops_nothing_and_keeps_the_earlier_checkpoint(
    small: Task, system_for: Callable[..., System], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    system = system_for(small)
    whole = run(system, small, None)
    writes = 0

    def full(path: Path, write: Callable[[BinaryIO], Any]) -> Path:
        nonlocal writes
        writes += 1
        if writes <= after:
            return real(path, write)

        def some(file: BinaryIO) -> None:
            file.write(b"half of it")
            raise OSError(errno.ENOSPC, "No space left on device")

        return real(path, some)

    real = files.atomic_write
    monkeypatch.setattr(checkpoints, "atomic_write", full)
    monkeypatch.setattr(files, "atomic_write", full)
    with pytest.warns(RuntimeWarning, match="was not written: .*No space left on device"):
        result = run(system, small, tmp_path)
    assert result.status == "completed"
    assert result.rows == whole.rows
    assert "was not written" in result.message
    assert not list(tmp_path.glob("*.part"))
    monkeypatch.undo()
    found = checkpoints.load(tmp_path)
    assert (found is None) == (after < 2)  # one whole pair is two files
    rest = run(system, small, tmp_path)
    assert rest.rows == whole.rows


def _newest(folder: Path) -> int:
    times = []
    for path in folder.glob("*"):
        with contextlib.suppress(FileNotFoundError):  # removed just now
            times.append(path.stat().st_mtime_ns)
    return max(times, default=0)


def _work(task: Task, system: System, folder: str, decision: dict[str, Any], options: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    train(decision, system, task, checkpoint=folder, checkpoint_every=1, threads=1, **options)


@pytest.mark.parametrize(
    "options",
    [
        {"rounds": 40, "seed": 2, "local_steps": 2, "algorithm": "scaffold"},
        {"rounds": 120, "seed": 2, "clock": "asynchronous", "server": "adam", "codec": "ternary"},
    ],
    ids=["scaffold", "asynchronous"],
)
def test_killed_at_any_moment_and_resumed_ends_bit_for_bit_the_same(
    small: Task, system_for: Callable[..., System], tmp_path: Path, options: dict[str, Any]
) -> None:
    system = system_for(small)
    decision = {**DECISION, "bits": 1 if "codec" in options else 6}
    whole = train(decision, system, small, **options)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["jointopt.federated.training"])
    rng = random.Random(7)
    kills = finished = 0
    for moment in range(60):
        folder = tmp_path / f"run{finished}"
        process = context.Process(target=_work, args=(small, system, str(folder), decision, options))
        process.start()
        # what a run writes first tells that it runs; from there on any moment is as good
        limit = time.monotonic() + 60.0
        before = _newest(folder)
        while process.is_alive() and time.monotonic() < limit and _newest(folder) == before:
            time.sleep(0.002)
        time.sleep(rng.uniform(0.0, 0.15))
        if process.is_alive() and process.pid is not None:
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
        process.join()
        found = checkpoints.load(folder)
        if found is not None and found.round == options["rounds"]:
            rest = train(decision, system, small, checkpoint=folder, checkpoint_every=1, **options)
            assert rest.rows == whole.rows
            np.testing.assert_array_equal(rest.weights, whole.weights)
            for name, booked in whole.ledger.state().items():
                np.testing.assert_array_equal(booked, rest.ledger.state()[name], err_msg=name)
            finished += 1
        if kills >= 10 and moment >= 9:
            break
    assert kills >= 10
    folder = tmp_path / f"run{finished}"
    rest = train(decision, system, small, checkpoint=folder, checkpoint_every=1, **options)
    assert rest.rows == whole.rows
    np.testing.assert_array_equal(rest.weights, whole.weights)

"""Same arguments, same bits: whatever the caller's number of threads is, and wherever the data lie in memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from jointopt.errors import InputError
from jointopt.federated.augmentation import gradient_gaps
from jointopt.federated.generalization import measure_gradient_gaps
from jointopt.federated.task import Task
from jointopt.federated.threads import torch_threads
from jointopt.federated.training import train
from jointopt.federated.warmup import measure_constants
from jointopt.system import System

DECISION = {"pruning_ratio": 0.3, "bits": 4, "power": 0.05}
OFFSETS = (0, 4, 8, 16, 32, 48)
"""Bytes behind a cache line."""


def telling(outputs: Tensor, labels: Tensor) -> Tensor:
    """A loss that shows the number of threads in its first digits, where others show it in their last bits."""
    return cross_entropy(outputs, labels) * (1.0 + 0.125 * torch.get_num_threads())


def moved(values: Tensor, offset: int) -> Tensor:
    """The same values, so many bytes behind a cache line."""
    size = values.numel() * values.element_size()
    memory = np.zeros(size + 128, dtype=np.uint8)
    first = -memory.ctypes.data % 64 + offset
    out = torch.from_numpy(memory[first : first + size].view(values.numpy().dtype)).reshape(values.shape)
    assert out.data_ptr() % 64 == offset
    return out.copy_(values)


def test_the_callers_threads_come_back() -> None:
    with torch_threads(3):
        assert torch.get_num_threads() == 3
        with torch_threads(None):
            assert torch.get_num_threads() == 3
    assert torch.get_num_threads() == 1
    with pytest.raises(KeyboardInterrupt), torch_threads(2):
        raise KeyboardInterrupt
    assert torch.get_num_threads() == 1


@pytest.mark.parametrize("threads", [0, 1.5, True, "2"])
def test_no_number_of_threads_is_refused(digits: Task, threads: Any) -> None:
    with pytest.raises(InputError, match="threads: must be a whole number of at least 1"):
        measure_constants(digits, rounds=1, threads=threads)


def test_measured_constants_do_not_depend_on_the_callers_threads(digits: Task) -> None:
    task = replace(digits, loss=telling, parts=tuple(part[:8] for part in digits.parts[:2]))

    def gap(callers: int, **options: Any) -> float:
        with torch_threads(callers):
            out = measure_constants(task, rounds=1, ratios=(0.5,), variance_samples=4, **options)
            assert torch.get_num_threads() == callers
        return float(out["initial_gap"])

    assert gap(1) == gap(2) == gap(2, threads=1)
    assert gap(1, threads=2) == gap(2, threads=None) == pytest.approx(gap(1) * 1.25 / 1.125)


def test_measured_gaps_do_not_depend_on_the_callers_threads(digits: Task, drawn: Callable[..., Any]) -> None:
    task = replace(digits, loss=telling, parts=tuple(part[:8] for part in digits.parts[:2]))
    found: list[Any] = []
    for callers in (1, 2):
        with torch_threads(callers):
            gaps = measure_gradient_gaps(task, rounds=1, splits=1, ratios=(0.0, 0.5), variance_samples=2)
            classes = gradient_gaps(task, drawn(digits.data), rounds=1, samples_per_class=2)
            found.append((gaps.raw.tolist(), classes.real.tobytes(), classes.gap.tobytes(), classes.loss.tolist()))
    assert found[0] == found[1]


@pytest.mark.parametrize("engine", ["batched", "sequential"])
def test_training_does_not_depend_on_the_callers_threads(
    digits: Task, system_for: Callable[..., System], engine: str
) -> None:
    task = digits if engine == "batched" else replace(digits, loss=telling)
    runs = []
    for callers in (1, 2):
        with torch_threads(callers):
            runs.append(train(DECISION, system_for(task), task, rounds=3, learning_rate=0.1, seed=1, engine=engine))
    assert runs[0].rows == runs[1].rows
    np.testing.assert_array_equal(runs[0].weights, runs[1].weights)


def test_synthetic_samples_do_not_depend_on_the_callers_threads(
    digits: Task, dpq_system: Callable[..., System], drawn: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = drawn(digits.data)
    sample = generator.sample

    def telling_sample(labels: Any, *, seed: int) -> Tensor:
        out: Tensor = sample(labels, seed=seed) / torch.get_num_threads()
        return out

    monkeypatch.setattr(generator, "sample", telling_sample)
    decision = {**DECISION, "augmentation_level": 0.3}
    runs = []
    for callers in (1, 2):
        with torch_threads(callers):
            runs.append(train(decision, dpq_system(digits), digits, rounds=2, learning_rate=0.1, generator=generator))
    assert runs[0].rows == runs[1].rows
    np.testing.assert_array_equal(runs[0].weights, runs[1].weights)


@pytest.mark.parametrize("network", ["mlp", "cnn"])
def test_training_does_not_depend_on_where_its_data_lie(system_for: Callable[..., System], network: str) -> None:
    task = Task.make(data="digits", network=network, devices=3, batch_size=20, seed=1)
    system = system_for(task)
    runs = []
    for offset in OFFSETS:
        data = replace(
            task.data,
            train_inputs=moved(task.data.train_inputs, offset),
            test_inputs=moved(task.data.test_inputs, offset),
        )
        here = replace(task, data=data)
        runs.append(train(DECISION, system, here, rounds=3, learning_rate=0.1, seed=1, evaluate_every=1))
    for run in runs[1:]:
        assert run.rows == runs[0].rows
        np.testing.assert_array_equal(run.weights, runs[0].weights)


def test_the_same_training_over_and_over(digits: Task, system_for: Callable[..., System]) -> None:
    # what else a process keeps in memory decides where a run's own tensors come to lie
    system, rng = system_for(digits), np.random.default_rng(0)
    seen = set()
    for _ in range(20):
        other = [torch.empty(int(size)) for size in rng.integers(1, 10**5, 20)]
        kept = other[:: int(rng.integers(1, 4))]
        del other
        seen.add(train(DECISION, system, digits, rounds=3, learning_rate=0.1, seed=1).weights.tobytes())
        del kept
    assert len(seen) == 1

"""What the tests of training share: a system that fits a task, and a task whose losses are quadratic."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from jointopt.data import Dataset
from jointopt.errors import InputError
from jointopt.federated.aggregation import SERVERS, aggregation
from jointopt.federated.clocks import CLOCKS
from jointopt.federated.codecs import codec
from jointopt.federated.loop import Loop, Plan
from jointopt.federated.plan import trainable
from jointopt.federated.rules import ALGORITHMS
from jointopt.federated.task import Task
from jointopt.pruning import pruner
from jointopt.system import Augmentation, Bound, Devices, Learner, Radio, System, Target


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Shift(nn.Module):
    """Maps x to w - x, with w the prunable weights of a linear layer."""

    def __init__(self, start: Any) -> None:
        super().__init__()
        self.layer = nn.Linear(1, len(start), bias=False)
        self.layer.weight.data = torch.as_tensor(start, dtype=torch.float32).reshape(-1, 1).clone()

    def forward(self, inputs: Tensor) -> Tensor:
        return self.layer.weight[:, 0] - inputs


def half_square(outputs: Tensor, labels: Tensor) -> Tensor:
    return 0.5 * outputs.square().sum(dim=1).mean()


@pytest.fixture
def quadratic_task() -> Callable[..., Task]:
    """F_u(w) = mean over the device's samples x of ||w - x||^2 / 2; so L = 1 and grad F_u = w - mean x."""

    def make(start: Any, samples: list[Any], **options: Any) -> Task:
        inputs = torch.as_tensor(np.concatenate(samples), dtype=torch.float32)
        labels = torch.zeros(len(inputs), dtype=torch.int64)
        ends = np.cumsum([len(part) for part in samples])
        parts = tuple(np.arange(end - len(part), end) for end, part in zip(ends, samples, strict=True))
        data = Dataset("quadratic", inputs, labels, inputs[:2], labels[:2], classes=1)
        return Task(data=data, module=Shift(start), parts=parts, loss=half_square, **options)

    return make


@pytest.fixture
def system_for() -> Callable[..., System]:
    """A system that fits a task, budgets wide; fields changed by name."""

    def make(task: Task, **changes: Any) -> System:
        count = len(task)
        system = System(
            devices=Devices(
                samples=task.samples,
                cycles_per_sample=1e4,
                frequency=1e9,
                capacitance=1e-28,
                power_min=0.01,
                power_max=0.2,
                delay_budget=10.0,
                energy_budget=1.0,
                count=count,
            ),
            radio=Radio(bandwidth=1e5, gain=np.geomspace(1e-12, 1e-13, count)),
            learner=Learner(
                parameters=task.parameters,
                unpruned_parameters=task.unpruned_parameters,
                batch_size=task.batch_size,
            ),
            bound=Bound(
                smoothness=5.0,
                weight_norm_squared=40.0,
                mask_energy=1.0,
                gradient_offset=1.0,
                quantizer_range=0.2,
                learning_rate=0.3,
                rounds=5,
            ),
        )
        return system.with_(**changes) if changes else system

    return make


@pytest.fixture
def loop_for() -> Callable[..., Loop]:
    """The state of a run with the default parts; fields of the plan changed by name."""

    def make(decision: Any, system: System, task: Task, **changes: Any) -> Loop:
        carried_out = trainable(decision, system)
        parts: dict[str, Any] = {
            "rounds": 10,
            "learning_rate": 0.1,
            "local_steps": 1,
            "seed": 0,
            "rule": ALGORITHMS.make("fedsgd"),
            "aggregation": aggregation("received"),
            "server": SERVERS.make("sgd"),
            "clock": CLOCKS.make("synchronous"),
            "codec": codec("uniform"),
            "pruner": pruner("magnitude"),
            "error_feedback": False,
            "delays": "booked",
            "participation": len(system),
            "dropout": np.zeros(len(system)),
            "engine": "auto",
            "device": torch.device("cpu"),
            "precision": "float32",
            "evidence_samples": 64,
        }
        return Loop(carried_out, system, task, Plan(**{**parts, **changes}))

    return make


@pytest.fixture(scope="session")
def digits() -> Task:
    return Task.make(data="digits", devices=6, seed=1)


class Drawn:
    """A generator that draws real images of the class asked for; every sample depends on the whole request."""

    name = "drawn"
    operations_per_sample = 3.2e6

    def __init__(self, data: Dataset, mark: str = "a") -> None:
        self.data, self.shape, self.classes = data.name, data.inputs_shape, data.classes
        self.fingerprint = f"0123456789abcde{mark}"
        self.asked: list[int] = []
        self._samples = data.train_inputs, data.train_labels.numpy()
        self._mark = ord(mark)

    def check(self, dataset: Dataset) -> None:
        if (self.data, self.shape, self.classes) != (dataset.name, dataset.inputs_shape, dataset.classes):
            raise InputError(f"generator 'drawn': was made for data set '{self.data}', not for '{dataset.name}'")

    def sample(self, labels: Any, *, seed: int) -> Tensor:
        self.asked.append(len(labels))
        inputs, known = self._samples
        rng = np.random.default_rng([seed, self._mark, *np.asarray(labels).tolist()])
        rows = [int(rng.choice(np.flatnonzero(known == label))) for label in labels]
        return inputs[rows].clone()


@pytest.fixture
def drawn() -> Callable[..., Drawn]:
    return Drawn


@pytest.fixture
def dpq_system(system_for: Callable[..., System]) -> Callable[..., System]:
    """A system that fits a task and knows its classes; with a target where its fields are given."""

    def make(task: Task, target: dict[str, Any] | None = None, **changes: Any) -> System:
        section = Augmentation(
            class_counts=task.class_counts, gradient_bound=1.0, synthetic_gap=0.1, generation_cycles=1e5
        )
        system = system_for(task).replace(augmentation=section)
        if target is not None:
            system = system.replace(target=Target(**target))
        return system.with_(**changes) if changes else system

    return make

"""Tasks: split, counts, refusals, gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from jointopt.data import load
from jointopt.errors import InputError
from jointopt.federated import task as task_module
from jointopt.federated.task import Losses, Task
from jointopt.system import System


def test_make_gives_what_a_system_asks(digits: Task) -> None:
    assert len(digits) == 6
    assert digits.samples.sum() == 1437
    assert (digits.parameters, digits.unpruned_parameters) == (4736, 74)
    assert (digits.name, digits.network, digits.batch_size) == ("digits", "mlp", None)
    assert repr(digits) == "Task(digits, mlp: 6 devices, 1437 samples, 4810 parameters, full batch)"


def test_same_seed_same_task() -> None:
    one, same, other = (Task.make(devices=4, seed=s, batch_size=8) for s in (3, 3, 4))
    assert all(np.array_equal(a, b) for a, b in zip(one.parts, same.parts, strict=True))
    assert torch.equal(Losses(one).start, Losses(same).start)
    assert not torch.equal(Losses(one).start, Losses(other).start)


def test_for_system_takes_exactly_the_counts(digits: Task, system_for: Callable[..., System]) -> None:
    sizes = [10, 20, 30, 40, 50, 60]
    system = system_for(digits, samples=sizes, batch_size=16)
    task = Task.for_system(system, "digits", "mlp", alpha=0.3, seed=2)
    assert task.samples.tolist() == sizes
    assert task.batch_size == 16
    task.check(system)


def test_round_trip_with_from_task(digits: Task, system_for: Callable[..., System]) -> None:
    other = Task.make(devices=6, seed=9, network="cnn", batch_size=32)
    system = System.from_task(other, template=system_for(digits))
    other.check(system)
    for network in ("cnn", None):  # None finds it by its counts
        task = Task.for_system(system, network=network)
        assert task.network == "cnn"
        assert task.samples.tolist() == other.samples.tolist()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"samples": 100}, ["device 0", "100", "Task.for_system"]),
        (
            {"parameters": 74 * 128, "unpruned_parameters": 138},
            ["4736", "9472", "network='mlp' with options {'hidden': (128,)}"],
        ),
        ({"parameters": 22032, "unpruned_parameters": 122}, ["4736", "22032", "network='cnn'"]),
        ({"parameters": 5000}, ["4736", "5000", "from_task"]),
        ({"batch_size": 64}, ["None", "64"]),
    ],
)
def test_check_names_both_numbers(
    digits: Task, system_for: Callable[..., System], changes: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(InputError) as error:
        digits.check(system_for(digits, **changes))
    assert all(word in str(error.value) for word in words), str(error.value)


def test_check_refuses_another_number_of_devices(digits: Task, system_for: Callable[..., System]) -> None:
    with pytest.raises(InputError, match="split over 6 devices, the scenario has 3"):
        digits.check(system_for(digits).take(slice(3)))


def test_for_system_finds_the_width(digits: Task, system_for: Callable[..., System]) -> None:
    system = system_for(digits, parameters=74 * 20, unpruned_parameters=30)
    assert (Task.for_system(system).network, Task.for_system(system).parameters) == ("mlp", 1480)
    with pytest.raises(InputError, match="scenario's learner has 1481"):
        Task.for_system(system.with_(parameters=1481))


def test_for_system_refuses_too_few_samples_and_other_networks(digits: Task, system_for: Callable[..., System]) -> None:
    with pytest.raises(InputError, match=r"hold 6000 samples together, 'digits' has 1437"):
        Task.for_system(system_for(digits, samples=1000))
    with pytest.raises(InputError, match=r"'cnn' on 'digits' .*'hidden': \(64,\)} would fit"):
        Task.for_system(system_for(digits), network="cnn")


def test_unsuitable_modules_are_refused() -> None:
    with pytest.raises(InputError, match="nothing could be pruned"):
        Task.make(network=nn.PReLU(), devices=2)
    with pytest.raises(InputError, match="batch_size"):
        Task.make(devices=2, batch_size=0)
    with pytest.raises(InputError, match=r"outputs of shape \[1, 5\], but 'digits' has 10 classes"):
        Task.make(network=nn.Sequential(nn.Flatten(), nn.Linear(64, 5)), devices=2)
    with pytest.raises(InputError, match=r"cannot take inputs of shape \[1, 1, 8, 8\]: mat1 and mat2"):
        Task.make(network=nn.Sequential(nn.Flatten(), nn.Linear(63, 10)), devices=2)


def test_a_device_without_data_is_named(digits: Task) -> None:
    with pytest.raises(InputError, match="device 1 holds no sample"):
        Task(data=digits.data, module=digits.module, parts=(np.arange(5), np.arange(0)))


def test_running_statistics_travel_with_every_payload(system_for: Callable[..., System]) -> None:
    network = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Linear(64, 10))
    task = Task.make(network=network, devices=2)
    assert (task.parameters, task.unpruned_parameters, task.buffers) == (640, 138, 128)
    with pytest.raises(InputError, match=r"128 running statistics .* learner.header_bits is 64; System.from_task"):
        task.check(system_for(task))
    task.check(system_for(task, header_bits=64 + 32 * 128))
    template = system_for(Task.make(network=nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), devices=2))
    system = System.from_task(task, template=template)
    assert system.learner.header_bits == 64 + 32 * 128
    task.check(system)


def test_gradients_agree_with_autograd_on_the_module(digits: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    losses, part = Losses(digits), torch.from_numpy(digits.parts[2])
    loss = cross_entropy(digits.module(digits.data.train_inputs[part]), digits.data.train_labels[part])
    expected = torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, list(digits.module.parameters()))])
    value, gradient = losses.device_gradient(losses.start, 2)
    assert value == pytest.approx(float(loss.detach()))
    torch.testing.assert_close(gradient, expected)

    whole = losses.global_gradient(losses.start)
    share = digits.samples / digits.samples.sum()
    each = [losses.device_gradient(losses.start, u) for u in range(6)]
    assert whole[0] == pytest.approx(sum(p * v for p, (v, _) in zip(share, each, strict=True)), rel=1e-6)
    mean = torch.stack([p * g for p, (_, g) in zip(share.tolist(), each, strict=True)]).sum(dim=0)
    torch.testing.assert_close(whole[1], mean, rtol=1e-4, atol=1e-7)

    monkeypatch.setattr(task_module, "_CHUNK", 100)
    chunked = losses.global_gradient(losses.start)
    assert chunked[0] == pytest.approx(whole[0], rel=1e-6)
    torch.testing.assert_close(chunked[1], whole[1], rtol=1e-4, atol=1e-7)
    with torch.no_grad():
        tested = cross_entropy(digits.module(digits.data.test_inputs), digits.data.test_labels)
    assert losses.test(losses.start)[0] == pytest.approx(float(tested), rel=1e-5)


def test_prunable_marks_the_weights(digits: Task) -> None:
    losses = Losses(digits)
    assert int(losses.prunable.sum()) == digits.parameters
    names = [(n, p.numel()) for n, p in digits.module.named_parameters()]
    assert torch.equal(losses.prunable, torch.cat([torch.full((k,), "weight" in n) for n, k in names]))


def test_data_may_be_given_whole() -> None:
    data = load("digits")
    assert Task.make(data=data, devices=3, sizes=[5, 6, 7], scheme="iid").samples.tolist() == [5, 6, 7]


def test_a_task_on_data_of_ones_own_needs_a_template() -> None:
    from dataclasses import replace

    from jointopt import systems
    from jointopt.data import load
    from jointopt.federated import measure_constants
    from jointopt.system import System

    own = replace(load("digits"), name="my sensors")
    task = Task.make(data=own, devices=4, seed=0)
    with pytest.raises(InputError, match=r"my sensors.*template"):
        System.from_task(task)
    constants = measure_constants(task, rounds=1, seed=0)
    system = System.from_task(task, template=systems.ltfl(devices=4).with_(**constants))
    assert np.array_equal(system.devices.samples, task.samples)
    assert system.bound.smoothness == constants["smoothness"]

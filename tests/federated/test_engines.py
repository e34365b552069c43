"""The engines do the steps that `Job` states, and agree with each other."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from jointopt.errors import InputError
from jointopt.federated.engines import ENGINES, Client, Job, choose, engine, measure
from jointopt.federated.engines.path import CHUNK
from jointopt.pruning.layout import Layout

SEQUENTIAL, BATCHED = ENGINES["sequential"], ENGINES["batched"]


def mlp(*widths: int, activation: type[nn.Module] = nn.ReLU, bias: bool = True) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Flatten()]
    for i, (low, high) in enumerate(itertools.pairwise(widths)):
        layers += [nn.Linear(low, high, bias=bias)] + [activation()] * (i + 2 < len(widths))
    return nn.Sequential(*layers)


def convolution() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(3, 4)
    )


def job_for(module: nn.Module, shape: tuple[int, ...] = (1, 2, 3), samples: int = 40, **options: Any) -> Job:
    generator = torch.Generator().manual_seed(7)
    inputs = torch.randn((samples, *shape), generator=generator)
    labels = torch.randint(0, 4, (samples,), generator=generator)
    options = {"loss": cross_entropy, "steps": 3, "learning_rate": 0.3} | options
    return Job(module, inputs, labels, **options)


def client_for(job: Job, seed: int = 0, batch: int | None = 5, keep: bool = False, correction: bool = False) -> Client:
    """A client with its own random weights; all samples in every step if `batch` is None."""
    generator = torch.Generator().manual_seed(seed)
    weights = Layout.flatten(job.module)
    weights = weights + 0.3 * torch.randn(weights.shape, generator=generator)
    mask = torch.rand(weights.shape, generator=generator) < 0.7 if keep else None
    count = len(job.inputs)
    return Client(
        weights=weights if mask is None else weights * mask,
        rows=torch.arange(count) if batch is None else torch.randint(0, count, (job.steps, batch), generator=generator),
        keep=mask,
        buffers=Layout.flatten_buffers(job.module),
        correction=torch.randn(weights.shape, generator=generator) if correction else None,
        seed=seed,
    )


def by_hand(job: Job, client: Client, dtype: torch.dtype = torch.float64) -> tuple[float, Tensor, Tensor]:
    """Return loss, total and buffers by the formula of `Job`, one step after another."""
    module = deepcopy(job.module).to(dtype).train()
    layout = Layout.of(module)
    for name, buffer in layout.split_buffers(client.buffers.to(dtype)).items():
        module.get_buffer(name).copy_(buffer)
    weights = start = client.weights.to(dtype)
    keep = torch.ones_like(start) if client.keep is None else client.keep.to(dtype)
    factor = torch.ones_like(start) if job.multiplier is None else job.multiplier.to(dtype)
    correction = torch.zeros_like(start) if client.correction is None else client.correction.to(dtype)
    losses, total = [], torch.zeros_like(start)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(client.seed)
        for step in range(job.steps):
            rows = client.rows if client.rows.ndim == 1 else client.rows[step]
            leaf = weights.clone().requires_grad_()
            named = layout.split(leaf)
            outputs = functional_call(module, named, (job.inputs[rows].to(dtype),), tie_weights=True)
            loss = job.loss(outputs, job.labels[rows])
            gradient = torch.autograd.grad(loss, leaf)[0]
            g = keep * (factor * gradient + job.proximal * (weights - start) + correction)
            losses.append(float(loss.detach()))
            total, weights = total + g, weights - job.learning_rate * g
    return losses[0], total, Layout.flatten_buffers(module)


def trained(name: str, job: Job, clients: list[Client]) -> list[tuple[float, Tensor, Tensor]]:
    found = []
    for number, one in enumerate(engine(name).run(job, clients)):
        assert one.number == number
        found.append((one.loss, one.total.clone(), one.buffers.clone()))
    assert len(found) == len(clients)
    return found


def assert_same(found: tuple[float, Tensor, Tensor], want: tuple[float, Tensor, Tensor], error: float = 1e-5) -> None:
    assert found[0] == pytest.approx(want[0], rel=error)
    for a, b in zip(found[1:], want[1:], strict=True):
        assert a.dtype == torch.float32
        size = float(b.abs().max()) if b.numel() else 0.0
        torch.testing.assert_close(a, b.float(), rtol=0.0, atol=error * size)


VARIANTS = [
    {},
    {"proximal": 0.4},
    {"multiplier": True},
    {"proximal": 0.4, "multiplier": True, "steps": 5},
    {"steps": 1},
]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("correction", [False, True])
@pytest.mark.parametrize("make", [lambda: mlp(6, 8, 4), convolution])
def test_the_steps_are_those_of_the_formula(variant: dict[str, Any], keep: bool, correction: bool, make: Any) -> None:
    torch.manual_seed(3)
    module = make()
    options = dict(variant)
    if options.get("multiplier"):
        options["multiplier"] = torch.rand(Layout.of(module).size)
    job = job_for(module, (1, 2, 3) if make is not convolution else (1, 4, 4), **options)
    clients = [client_for(job, seed, 6 + seed, keep and seed != 1, correction) for seed in range(3)]
    for name, one in ENGINES.items():
        if one.supports(job):
            for found, client in zip(trained(name, job, clients), clients, strict=True):
                assert_same(found, by_hand(job, client), 3e-5)
                if client.keep is not None:
                    assert not found[1][~client.keep].any()


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_batched_agrees_with_sequential(data: st.DataObject) -> None:
    hidden = data.draw(st.lists(st.integers(1, 40), max_size=3))
    activation = data.draw(st.sampled_from([nn.ReLU, nn.Tanh, nn.Sigmoid, nn.Identity]))
    torch.manual_seed(data.draw(st.integers(0, 1000)))
    module = mlp(6, *hidden, 4, activation=activation, bias=data.draw(st.booleans()))
    size = Layout.of(module).size
    multiplier = torch.rand(size) if data.draw(st.booleans()) else None
    job = job_for(
        module,
        steps=data.draw(st.integers(1, 4)),
        learning_rate=data.draw(st.sampled_from([0.01, 0.3])),
        proximal=data.draw(st.sampled_from([0.0, 0.5])),
        multiplier=multiplier,
    )
    clients = [
        client_for(
            job,
            seed,
            data.draw(st.one_of(st.none(), st.integers(1, 12))),
            data.draw(st.booleans()),
            data.draw(st.booleans()),
        )
        for seed in range(data.draw(st.integers(1, 6)))
    ]
    assert BATCHED.supports(job)
    for a, b in zip(trained("batched", job, clients), trained("sequential", job, clients), strict=True):
        assert_same(a, b)


@pytest.mark.parametrize("name", ["sequential", "batched"])
@pytest.mark.parametrize("steps", [1, 2])
def test_large_batches_are_taken_in_passes(name: str, steps: int) -> None:
    torch.manual_seed(0)
    job = job_for(mlp(6, 3, 4), samples=2 * CHUNK + 11, steps=steps)
    clients = [client_for(job, 0, None), client_for(job, 1, CHUNK + 1), client_for(job, 2, CHUNK)]
    for found, client in zip(trained(name, job, clients), clients, strict=True):
        assert_same(found, by_hand(job, client), 3e-5)


def test_wide_clients_are_trained_in_several_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    job = job_for(mlp(6, 8, 4))
    clients = [client_for(job, seed, 4 + seed % 2, seed % 3 == 0) for seed in range(7)]
    whole = trained("batched", job, clients)
    for limit in (1, 3000, 10_000):
        monkeypatch.setattr("jointopt.federated.engines.batched._CACHE", limit)
        for a, b in zip(trained("batched", job, clients), whole, strict=True):
            assert_same(a, b)


@pytest.mark.parametrize("name", ["sequential", "batched"])
def test_nothing_given_is_changed_and_runs_do_not_meet(name: str) -> None:
    torch.manual_seed(0)
    job = job_for(mlp(6, 8, 4))
    clients = [client_for(job, seed, 4, True, True) for seed in range(3)]
    before = deepcopy((clients, job.module.state_dict()))
    want = trained(name, job, clients)
    state = torch.get_rng_state()
    one, two = engine(name).run(job, clients), engine(name).run(job, clients[::-1])
    with torch.no_grad():
        for number, (a, b) in enumerate(zip(one, two, strict=True)):
            assert torch.equal(a.total, want[number][1])
            assert_same((b.loss, b.total, b.buffers), want[2 - number])
    assert torch.equal(torch.get_rng_state(), state)
    for old, new in zip(before[0], clients, strict=True):
        for field in ("weights", "rows", "keep", "buffers", "correction"):
            assert torch.equal(getattr(old, field), getattr(new, field))
    for key, value in job.module.state_dict().items():
        assert torch.equal(before[1][key], value)
    assert all(parameter.grad is None for parameter in job.module.parameters())


def test_sequential_takes_clients_one_by_one() -> None:
    torch.manual_seed(0)
    job, taken = job_for(mlp(6, 4)), []

    def clients() -> Iterator[Client]:
        for seed in range(3):
            taken.append(seed)
            yield client_for(job, seed)

    for one in SEQUENTIAL.run(job, clients()):
        assert taken == list(range(one.number + 1))


def test_dropout_draws_from_the_clients_seed() -> None:
    torch.manual_seed(0)
    job = job_for(nn.Sequential(nn.Flatten(), nn.Linear(6, 20), nn.Dropout(0.5), nn.Linear(20, 4)))
    assert not BATCHED.supports(job)
    clients = [client_for(job, seed) for seed in (5, 6)]
    other = Client(clients[0].weights, clients[0].rows, None, clients[0].buffers, seed=6)
    state = torch.get_rng_state()
    runs = SEQUENTIAL.run(job, [*clients, clients[0], other])
    totals = []
    for one in runs:
        # between two clients too, where the caller may draw
        assert torch.equal(torch.get_rng_state(), state)
        totals.append(one.total.clone())
    assert torch.equal(totals[0], totals[2])
    assert not torch.allclose(totals[0], totals[3])
    for found, client in zip(trained("sequential", job, clients), clients, strict=True):
        assert_same(found, by_hand(job, client, torch.float32))


class Odd(nn.Module):
    """One matrix used twice, one parameter never used, one frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.second = nn.Linear(6, 6)
        self.second.weight = self.first.weight
        self.unused = nn.Parameter(torch.ones(3))
        self.frozen = nn.Parameter(torch.ones(6), requires_grad=False)
        self.last = nn.Linear(6, 4)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.second(torch.tanh(self.first(inputs.flatten(1)))) * self.frozen
        return self.last(hidden)


def test_shared_unused_and_frozen_parameters() -> None:
    torch.manual_seed(0)
    job = job_for(Odd())
    layout = Layout.of(job.module)
    assert not BATCHED.supports(job)
    client = client_for(job)
    found = trained("sequential", job, [client])[0]
    total = layout.split(found[1])
    assert set(total) == {n for n, _ in job.module.named_parameters()}
    assert not total["unused"].any() and not total["frozen"].any() and total["first.weight"].all()
    # the frozen parameter takes no part in the formula's gradient either
    job.module.frozen.requires_grad_()
    want = by_hand(job, Client(client.weights, client.rows, _except(layout, "frozen"), client.buffers))
    assert_same(found, want, 3e-5)


def _except(layout: Layout, name: str) -> Tensor:
    keep = torch.ones(layout.size, dtype=torch.bool)
    layout.split(keep)[name].zero_()
    return keep


def test_counted_batches_start_anew_for_every_client() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(6, momentum=None), nn.Linear(6, 4))
    job = job_for(module)
    client = client_for(job)
    assert not BATCHED.supports(job)
    # an average over the client's own steps, in which a count carried over would show
    want = torch.stack([job.inputs[rows].flatten(1).mean(0) for rows in client.rows]).mean(0)
    for _, _, buffers in trained("sequential", job, [client, client]):
        torch.testing.assert_close(Layout.of(module).split_buffers(buffers)["1.running_mean"], want)
    assert module[1].num_batches_tracked == 0


def test_bfloat16_is_close_to_float32_and_not_the_same() -> None:
    torch.manual_seed(0)
    module = mlp(6, 30, 4)
    exact, coarse = job_for(module), job_for(module, precision="bfloat16")
    assert not BATCHED.supports(coarse)
    client = client_for(exact)
    a, b = trained("sequential", exact, [client])[0], trained("sequential", coarse, [client])[0]
    assert not torch.equal(a[1], b[1])
    assert_same(b, a, 0.05)


@pytest.mark.parametrize(
    "module",
    [
        nn.Sequential(nn.Linear(3, 4)),  # acts on the last axis of an image
        nn.Sequential(nn.Flatten(), nn.Linear(7, 4)),
        nn.Sequential(nn.Flatten(), nn.Linear(6, 5), nn.Linear(4, 4)),
        nn.Sequential(nn.Flatten(), nn.Linear(6, 3)),  # label 3 has no output
        nn.Sequential(nn.Flatten(), nn.ReLU(), nn.Linear(6, 4)),
        nn.Sequential(nn.Flatten(), nn.Linear(6, 4), nn.ReLU(), nn.Tanh()),
        nn.Sequential(nn.Flatten(), nn.Linear(6, 4), nn.Dropout()),
        nn.Sequential(nn.Flatten(), nn.Linear(6, 4), nn.Softmax(1)),
        nn.Sequential(nn.Flatten(0), nn.Linear(6, 4)),
        nn.Sequential(nn.Flatten()),
        nn.Sequential(nn.Flatten(), nn.Linear(6, 4).requires_grad_(False)),
        nn.Sequential(nn.Flatten(), nn.Linear(6, 4)).to(torch.float64),
        nn.utils.parametrizations.weight_norm(nn.Linear(6, 4)),
    ],
)
def test_batched_refuses_what_it_cannot_do(module: nn.Module) -> None:
    job = job_for(module)
    assert not BATCHED.supports(job)
    assert choose(job, 20) is SEQUENTIAL


def test_batched_refuses_other_losses_labels_hooks_and_shared_layers() -> None:
    torch.manual_seed(0)
    assert BATCHED.supports(job_for(nn.Sequential(nn.Identity(), mlp(6, 5, 4), nn.Identity())))
    assert BATCHED.supports(job_for(nn.Linear(6, 4), (6,)))
    assert not BATCHED.supports(job_for(mlp(6, 4), loss=lambda outputs, labels: cross_entropy(outputs, labels)))
    left_out = job_for(mlp(6, 4))
    left_out.labels[3] = -100
    assert not BATCHED.supports(left_out)
    hooked = mlp(6, 4)
    hooked[1].register_forward_hook(lambda module, inputs, outputs: 2 * outputs)
    assert not BATCHED.supports(job_for(hooked))
    scaled = mlp(6, 4)
    scaled[1].weight.register_hook(lambda gradient: 2 * gradient)
    assert not BATCHED.supports(job_for(scaled))
    square = nn.Linear(6, 6)
    assert not BATCHED.supports(job_for(nn.Sequential(nn.Flatten(), square, nn.ReLU(), square)))


@pytest.mark.parametrize("name", ["sequential", "batched"])
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("weights", torch.zeros(3)),
        ("keep", torch.ones(3, dtype=torch.bool)),
        ("correction", torch.zeros(3)),
        ("buffers", torch.zeros(1)),
        ("rows", torch.zeros((2, 5), dtype=torch.int64)),
        ("rows", torch.zeros((3, 0), dtype=torch.int64)),
        ("rows", torch.zeros((3, 5, 1), dtype=torch.int64)),
    ],
)
def test_clients_that_do_not_fit_are_refused(name: str, field: str, value: Tensor) -> None:
    job = job_for(mlp(6, 4))
    good = client_for(job)
    bad = Client(**{**vars(good), field: value})
    with pytest.raises(InputError, match=f"client 1: {field}"):
        list(engine(name).run(job, [good, bad]))


def test_engines_by_name_by_rule_and_by_measurement() -> None:
    torch.manual_seed(0)
    job = job_for(mlp(6, 8, 4))
    assert engine("batched") is BATCHED and engine("sequential").name == "sequential"
    with pytest.raises(InputError, match="did you mean 'batched'"):
        engine("batch")
    assert choose(job, 20) is BATCHED
    seconds = measure(job, [client_for(job, seed) for seed in range(2)])
    assert set(seconds) == {"sequential", "batched"}
    assert all(0.0 < s < 60.0 for s in seconds.values())
    assert set(measure(job_for(convolution(), (1, 4, 4)), [])) == {"sequential"}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("make", [lambda: mlp(16, 8, 4), convolution])
def test_cuda_agrees_with_the_processor(make: Any) -> None:
    torch.manual_seed(0)
    job = job_for(make(), (1, 4, 4), proximal=0.2)
    clients = [client_for(job, seed, 6, True, True) for seed in range(3)]
    there = Job(**{**vars(job), "inputs": job.inputs.cuda(), "labels": job.labels.cuda()})
    for name, one in ENGINES.items():
        if one.supports(there):
            want = trained("sequential", job, clients)
            for a, b in zip(trained(name, there, clients), want, strict=True):
                assert_same((a[0], a[1].cpu(), a[2].cpu()), b, 1e-4)

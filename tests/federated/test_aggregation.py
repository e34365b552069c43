"""Aggregations and server rules: contracts of every registered one, values by hand."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch

from jointopt.errors import InputError
from jointopt.federated.aggregation import AGGREGATIONS, SERVERS, aggregation

SIZE = 7
SERVERS_NAMES = list(SERVERS)


def packets(seed: int = 0, dense: bool = False) -> list[tuple[torch.Tensor | None, torch.Tensor, float, float]]:
    generator = torch.Generator().manual_seed(seed)
    out = []
    for weight, arrival in ((3.0, 0.9), (1.0, 0.5), (2.0, 0.7)):
        index = None if dense else torch.nonzero(torch.rand(SIZE, generator=generator) < 0.6)[:, 0]
        count = SIZE if index is None else len(index)
        out.append((index, torch.randn(count, generator=generator), weight, arrival))
    return out


def mean(name: str, some: list[Any], nominal: float = 6.0) -> torch.Tensor | None:
    one = aggregation(name)(SIZE, nominal)
    for index, entries, weight, arrival in some:
        one.add(index, entries, weight, arrival)
    return one.mean()


@pytest.mark.parametrize("name", list(AGGREGATIONS))
def test_contract(name: str) -> None:
    assert mean(name, []) is None  # nothing arrived, nothing moves
    sent = packets()
    base = mean(name, sent)
    assert base is not None
    assert base.dtype == torch.float64
    assert base.shape == (SIZE,)
    # the order of the devices does not matter, beyond rounding
    for order in itertools.permutations(sent):
        other = mean(name, list(order))
        assert other is not None
        torch.testing.assert_close(other, base, rtol=1e-12, atol=1e-15)
    # linear in what is sent
    doubled = mean(name, [(i, 2 * e, w, a) for i, e, w, a in sent])
    assert doubled is not None
    torch.testing.assert_close(doubled, 2 * base, rtol=1e-6, atol=1e-12)
    # everyone sends the same on all coordinates, without losses: that is the mean
    same = torch.arange(SIZE, dtype=torch.float32)
    agreed = mean(name, [(None, same, w, 1.0) for _, _, w, _ in sent])
    assert agreed is not None
    torch.testing.assert_close(agreed, same.to(torch.float64))
    # what nobody holds stays 0
    only = mean(name, [(torch.tensor([1, 4]), torch.ones(2), 6.0, 1.0)])
    assert only is not None
    assert torch.nonzero(only)[:, 0].tolist() == [1, 4]


def test_values_by_hand() -> None:
    sent = [
        (torch.tensor([0, 1]), torch.tensor([2.0, 4.0]), 1.0, 0.5),
        (torch.tensor([1, 2]), torch.tensor([8.0, 6.0]), 3.0, 1.0),
    ]
    received, unbiased, holders = (mean(name, sent, nominal=5.0) for name in ("received", "unbiased", "holders"))
    assert received is not None
    assert unbiased is not None
    assert holders is not None
    assert received[:3].tolist() == [0.5, 7.0, 4.5]
    np.testing.assert_allclose(unbiased[:3], [0.8, 6.4, 3.6])
    assert holders[:3].tolist() == [2.0, 7.0, 6.0]


def test_unbiased_over_all_patterns_of_losses() -> None:
    """The expectation over losses is the mean without losses; that of "received" is not."""
    sent = packets(dense=True)
    target = sum(w * e.to(torch.float64) for _, e, w, _ in sent) / 6.0
    for name, exact in (("unbiased", True), ("received", False)):
        expected = torch.zeros(SIZE, dtype=torch.float64)
        for arrived in itertools.product([True, False], repeat=3):
            chance = float(np.prod([a if here else 1 - a for here, (*_, a) in zip(arrived, sent, strict=True)]))
            got = mean(name, [p for here, p in zip(arrived, sent, strict=True) if here])
            expected += chance * (got if got is not None else 0.0)
        assert torch.allclose(expected, target, rtol=1e-9) == exact


@pytest.mark.parametrize("name", SERVERS_NAMES)
def test_server_contract(name: str) -> None:
    start = torch.linspace(-1.0, 1.0, SIZE)
    gradient = torch.linspace(2.0, -2.0, SIZE, dtype=torch.float64)
    one, two = SERVERS.make(name), SERVERS.make(name)
    weights = start
    for _ in range(3):
        weights = one.step(weights, gradient, 0.1)
    assert weights.dtype == torch.float32
    assert torch.equal(start, torch.linspace(-1.0, 1.0, SIZE))  # nothing is written into what is given
    # downhill on every coordinate that has a slope
    moved = (weights - start).to(torch.float64) * gradient
    assert bool((moved[gradient.abs() > 0.1] < 0).all())
    # put down after one step and taken up: the same, bit for bit
    half = two.step(start, gradient, 0.1)
    three = SERVERS.make(name)
    three.state = {key: value.clone() for key, value in two.state.items()}
    assert torch.equal(three.step(three.step(half, gradient, 0.1), gradient, 0.1), weights)
    assert one.settings()["name"] == name


def test_server_steps_by_hand() -> None:
    weights, gradient = torch.tensor([1.0]), torch.tensor([2.0], dtype=torch.float64)
    assert float(SERVERS.make("sgd").step(weights, gradient, 0.1)) == pytest.approx(0.8)
    momentum = SERVERS.make({"name": "momentum", "beta": 0.5})
    once = momentum.step(weights, gradient, 0.1)
    assert float(momentum.step(once, gradient, 0.1)) == pytest.approx(1.0 - 0.2 - 0.3)
    adam = SERVERS.make({"name": "adam", "rate": 0.1, "beta1": 0.9, "beta2": 0.99, "tau": 1e-3})
    first, second = -0.1 * 0.2, 0.99 * 1e-6 + 0.01 * 0.2**2
    assert float(adam.step(weights, gradient, 0.1)) == pytest.approx(1.0 + 0.1 * first / (second**0.5 + 1e-3))


@pytest.mark.parametrize(
    ("which", "message"),
    [
        ("sdg", "server: unknown 'sdg'; did you mean 'sgd'"),
        ({"name": "momentum", "beta": 1.0}, "beta must lie in 0 .. 1, found 1.0"),
        ({"name": "adam", "tau": 0.0}, "tau must lie in"),
        ({"name": "sgd", "rate": float("inf")}, "rate must lie in"),
        ({"name": "sgd", "speed": 1}, "server 'sgd': unknown option 'speed'"),
    ],
)
def test_bad_servers(which: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        SERVERS.make(which)


def test_unknown_aggregation() -> None:
    with pytest.raises(InputError, match="aggregation: unknown 'recieved'; did you mean 'received'"):
        aggregation("recieved")

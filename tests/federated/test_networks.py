"""Networks: sizes, seeds, and what may be pruned."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from jointopt.errors import InputError
from jointopt.federated.networks import NETWORKS, build, cnn, count_parameters, mlp, prunable


@pytest.mark.parametrize(
    ("module", "may", "never"),
    [
        (mlp((1, 8, 8), 10), 64 * 64 + 640, 74),
        (mlp((1, 28, 28), 10, hidden=(128,)), 784 * 128 + 1280, 138),
        (mlp((5,), 3, hidden=()), 15, 3),
        (mlp((2, 3), 4, hidden=(7, 8)), 6 * 7 + 7 * 8 + 32, 19),
        (cnn((1, 28, 28), 10), 114_314 - 122, 122),
        (cnn((3, 8, 8), 10), 16 * 75 + 32 * 400 + 128 * 64 + 640, 122),
    ],
)
def test_parameter_counts(module: nn.Module, may: int, never: int) -> None:
    assert count_parameters(module) == (may, never)
    assert sum(parameter.numel() for parameter in module.parameters()) == may + never


def test_announced_totals() -> None:
    assert sum(count_parameters(mlp((1, 8, 8), 10))) == 4_810
    assert sum(count_parameters(mlp((1, 28, 28), 10, (128,)))) == 101_770
    assert sum(count_parameters(cnn((1, 28, 28), 10))) == 114_314


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 5, 9)])
def test_logits_and_gradients(name: str, shape: tuple[int, ...]) -> None:
    module = build(name, shape, 7, seed=0)
    logits = module(torch.linspace(0, 1, 4 * int(np.prod(shape))).reshape(4, *shape))
    assert logits.shape == (4, 7)
    logits.logsumexp(1).sum().backward()
    assert all(parameter.grad is not None for parameter in module.parameters())


@pytest.mark.parametrize("name", NETWORKS)
def test_build_is_seeded_and_leaves_the_global_generator(name: str) -> None:
    torch.manual_seed(99)
    state = torch.get_rng_state()
    first = build(name, (1, 8, 8), 10, seed=5)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(7)  # the state of the global generator must not matter either
    again, other = build(name, (1, 8, 8), 10, seed=np.int64(5)), build(name, (1, 8, 8), 10, seed=6)
    pairs = list(zip(first.parameters(), again.parameters(), other.parameters(), strict=True))
    assert all(torch.equal(a, b) and not torch.equal(a, c) for a, b, c in pairs)


def test_global_generator_survives_a_refusal() -> None:
    state = torch.get_rng_state()
    with pytest.raises(InputError):
        build("cnn", (1, 3, 3), 10, seed=5)
    assert torch.equal(torch.get_rng_state(), state)


def test_options_reach_the_network() -> None:
    assert sum(count_parameters(build("mlp", (1, 28, 28), 10, 0, hidden=(128,)))) == 101_770


def test_prunable_by_kind() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv1d(2, 3, 4)
            self.batch = nn.BatchNorm1d(3)
            self.up = nn.ConvTranspose2d(2, 2, 3, bias=False)
            self.norm = nn.LayerNorm((2, 3))  # its weight has two axes, and is still no weight to prune
            self.head = nn.Sequential(nn.Linear(6, 2))

    module = Mixed()
    assert prunable(module) == {
        "conv.weight": True,
        "conv.bias": False,
        "batch.weight": False,
        "batch.bias": False,
        "up.weight": True,
        "norm.weight": False,
        "norm.bias": False,
        "head.0.weight": True,
        "head.0.bias": False,
    }
    assert list(prunable(module)) == [name for name, _ in module.named_parameters()]
    assert count_parameters(module) == (24 + 36 + 12, 3 + 6 + 12 + 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "cnnn"}, "did you mean 'cnn'"),
        ({"name": "transformer"}, "known: cnn, mlp"),
        ({"classes": 0}, "classes must be whole and at least 1, found 0"),
        ({"inputs_shape": (1, 0, 8)}, "inputs_shape"),
        ({"inputs_shape": (1, 8.5, 8)}, "inputs_shape"),
        ({"hidden": (64, -1)}, "hidden"),
        ({"hiden": (64,)}, "no option 'hiden'; did you mean 'hidden'"),
        ({"name": "cnn", "hidden": (64,)}, "no option 'hidden'"),
        ({"name": "cnn", "inputs_shape": (64,)}, "channels, height, width"),
        ({"name": "cnn", "inputs_shape": (1, 3, 8)}, "at least 4"),
        ({"seed": -1}, "seed"),
        ({"seed": 1.5}, "seed"),
    ],
)
def test_refusals(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build(**{"name": "mlp", "inputs_shape": (1, 8, 8), "classes": 10, "seed": 0, **change})

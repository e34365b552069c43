"""Networks: sizes, seeds, and what may be pruned."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, layer_norm

from jointopt.errors import InputError
from jointopt.federated.networks import (
    NETWORKS,
    build,
    cnn,
    count_parameters,
    lenet,
    mlp,
    prunable,
    resnet8,
    resnet18,
    transformer,
)


@pytest.mark.parametrize(
    ("module", "may", "never"),
    [
        (mlp((1, 8, 8), 10), 64 * 64 + 640, 74),
        (mlp((1, 28, 28), 10, hidden=(128,)), 784 * 128 + 1280, 138),
        (mlp((5,), 3, hidden=()), 15, 3),
        (mlp((2, 3), 4, hidden=(7, 8)), 6 * 7 + 7 * 8 + 32, 19),
        (cnn((1, 28, 28), 10), 114_314 - 122, 122),
        (cnn((3, 8, 8), 10), 16 * 75 + 32 * 400 + 128 * 64 + 640, 122),
        (lenet((1, 28, 28), 10), 150 + 2400 + 48_000 + 10_080 + 840, 236),
        (lenet((3, 32, 32), 10), 450 + 2400 + 48_000 + 10_080 + 840, 236),
        (lenet((1, 12, 33), 10), 150 + 2400 + 16 * 6 * 120 + 10_080 + 840, 236),
        (transformer((1, 8, 8), 10, 4, 6, 1, 3, 5), 96 + 4 * 36 + 60 + 60, 6 + 4 * 6 + 4 * 6 + 11 + 24 + 12 + 10),
    ],
)
def test_parameter_counts(module: nn.Module, may: int, never: int) -> None:
    assert count_parameters(module) == (may, never)
    assert sum(parameter.numel() for parameter in module.parameters()) == may + never


def test_announced_totals() -> None:
    assert sum(count_parameters(mlp((1, 8, 8), 10))) == 4_810
    assert sum(count_parameters(mlp((1, 28, 28), 10, (128,)))) == 101_770
    assert sum(count_parameters(cnn((1, 28, 28), 10))) == 114_314
    assert sum(count_parameters(lenet((1, 28, 28), 10))) == sum(count_parameters(lenet((1, 32, 32), 10))) == 61_706
    assert sum(count_parameters(lenet((3, 32, 32), 10))) == 62_006
    assert sum(count_parameters(resnet8((3, 32, 32), 10))) == 78_042
    assert sum(count_parameters(resnet18((3, 32, 32), 10))) == 11_173_962
    assert sum(count_parameters(transformer((3, 32, 32), 10))) == 74_954


@pytest.mark.parametrize(
    ("name", "shape", "options", "expected"),
    [
        ("mlp", (1, 8, 8), {}, "46d7a6ebf92196a1"),
        ("mlp", (1, 28, 28), {"hidden": (128,)}, "8017153f63df6656"),
        ("cnn", (1, 8, 8), {}, "0faef9b23f845a6a"),
        ("cnn", (3, 32, 32), {}, "9bf461c89b420560"),
    ],
)
def test_initial_weights_stay_what_they_were(
    name: str, shape: tuple[int, ...], options: dict[str, Any], expected: str
) -> None:
    flat = torch.cat([p.detach().reshape(-1) for p in build(name, shape, 10, 5, **options).parameters()])
    assert hashlib.sha256(flat.numpy().tobytes()).hexdigest()[:16] == expected


SMALL: list[tuple[str, tuple[int, ...], dict[str, Any]]] = [
    ("mlp", (3, 5, 9), {}),
    ("cnn", (1, 8, 8), {}),
    ("cnn", (3, 5, 9), {}),
    ("lenet", (1, 28, 28), {}),
    ("lenet", (3, 12, 37), {}),
    ("resnet8", (1, 8, 8), {}),
    ("resnet8", (3, 5, 9), {"norm": "group"}),
    ("resnet8", (3, 5, 9), {"norm": "none", "width": 5}),
    ("resnet18", (3, 9, 8), {"width": 4}),
    ("transformer", (1, 8, 8), {}),
    ("transformer", (3, 6, 9), {"patch": 3, "width": 12, "depth": 1, "heads": 2, "hidden": 7}),
]


def test_every_network_is_tried() -> None:
    assert {name for name, _, _ in SMALL} == set(NETWORKS)


@pytest.mark.parametrize(("name", "shape", "options"), SMALL)
def test_logits_and_gradients(name: str, shape: tuple[int, ...], options: dict[str, Any]) -> None:
    module = build(name, shape, 7, seed=0, **options)
    logits = module(torch.linspace(0, 1, 4 * int(np.prod(shape))).reshape(4, *shape))
    assert logits.shape == (4, 7)
    logits.logsumexp(1).sum().backward()
    assert all(parameter.grad is not None for parameter in module.parameters())


@pytest.mark.parametrize(("name", "shape", "options"), SMALL)
def test_build_is_seeded_and_leaves_the_global_generator(
    name: str, shape: tuple[int, ...], options: dict[str, Any]
) -> None:
    torch.manual_seed(99)
    state = torch.get_rng_state()
    first = build(name, shape, 10, seed=5, **options)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(7)  # the state of the global generator must not matter either
    again, other = build(name, shape, 10, seed=np.int64(5), **options), build(name, shape, 10, seed=6, **options)
    may = prunable(first)
    for (key, a), b, c in zip(first.named_parameters(), again.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
        assert not may[key] or not torch.equal(a, c)


def test_resnet18_as_published() -> None:
    module = resnet18((3, 32, 32), 10).eval()
    shapes: list[tuple[int, ...]] = []
    for block in module.blocks:
        block.register_forward_hook(lambda _, __, output: shapes.append(tuple(output.shape[1:])))
    assert module(torch.zeros(1, 3, 32, 32)).shape == (1, 10)
    # the first layer neither halves the image nor pools it
    assert shapes == [(64, 32, 32)] * 2 + [(128, 16, 16)] * 2 + [(256, 8, 8)] * 2 + [(512, 4, 4)] * 2
    assert sum(isinstance(layer, nn.BatchNorm2d) for layer in module.modules()) == 20


@pytest.mark.parametrize(("norm", "kind"), [("batch", nn.BatchNorm2d), ("group", nn.GroupNorm), ("none", None)])
def test_norms_of_a_residual_network(norm: str, kind: type[nn.Module] | None) -> None:
    module = build("resnet8", (1, 8, 8), 10, 0, norm=norm)
    found = [layer for layer in module.modules() if isinstance(layer, nn.BatchNorm2d | nn.GroupNorm)]
    assert len(found) == (0 if kind is None else 9)
    assert kind is None or all(isinstance(layer, kind) for layer in found)
    convolutions = [layer for layer in module.modules() if isinstance(layer, nn.Conv2d)]
    assert all((layer.bias is not None) == (norm == "none") for layer in convolutions)
    assert any(True for _ in module.buffers()) == (norm == "batch")


def test_a_residual_block_adds_its_shortcut() -> None:
    module = build("resnet8", (1, 8, 8), 10, 0, norm="none")
    inputs = torch.rand(2, 16, 8, 8)
    for parameter in module.blocks[0].conv2.parameters():
        parameter.data.zero_()
    assert torch.equal(module.blocks[0](inputs), inputs)
    assert torch.equal(module.blocks[0](-inputs), torch.zeros_like(inputs))


def test_transformer_is_what_it_says() -> None:
    """The forward pass again, by matrix products."""
    module = build("transformer", (2, 4, 6), 3, 1, patch=2, width=6, depth=2, heads=3, hidden=5)
    images = torch.rand(2, 2, 4, 6)
    weights = {name: parameter.detach() for name, parameter in module.named_parameters()}
    patches = torch.stack(
        [images[:, :, y : y + 2, x : x + 2].flatten(1) for y in (0, 2) for x in (0, 2, 4)], dim=1
    )  # [2, 6, 8]

    def linear(name: str, values: Tensor) -> Tensor:
        return values @ weights[f"{name}.weight"].flatten(1).T + weights[f"{name}.bias"]

    tokens = linear("embed", patches) + weights["position"]
    for layer in ("layers.0", "layers.1"):
        normed = layer_norm(tokens, (6,))
        query, key, value = (linear(f"{layer}.attention.{part}", normed) for part in ("query", "key", "value"))
        heads = []
        for head in range(3):
            some = slice(2 * head, 2 * head + 2)
            scores = query[..., some] @ key[..., some].transpose(1, 2) / 2**0.5
            heads.append(scores.softmax(dim=-1) @ value[..., some])
        tokens = tokens + linear(f"{layer}.attention.out", torch.cat(heads, dim=-1))
        tokens = tokens + linear(f"{layer}.narrow", gelu(linear(f"{layer}.wide", layer_norm(tokens, (6,)))))
    expected = linear("head", layer_norm(tokens, (6,)).mean(dim=1))
    torch.testing.assert_close(module(images).detach(), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "shape", "layer", "options", "exact"),
    [
        ("mlp", (1, 8, 8), "1", {}, True),
        ("cnn", (1, 8, 8), "0", {}, True),
        ("cnn", (1, 8, 8), "3", {}, True),
        ("lenet", (1, 28, 28), "3", {}, True),
        ("lenet", (1, 28, 28), "7", {}, True),
        ("resnet8", (3, 8, 8), "conv1", {}, False),
        ("resnet8", (3, 8, 8), "blocks.1.conv1", {}, False),
        ("resnet8", (3, 8, 8), "blocks.1.conv2", {"norm": "group"}, False),
        ("resnet8", (3, 8, 8), "blocks.2.conv1", {"norm": "none"}, True),
        ("resnet18", (3, 8, 8), "blocks.3.conv1", {"width": 8}, False),
        ("transformer", (1, 8, 8), "layers.0.wide", {}, True),
        ("transformer", (1, 8, 8), "layers.1.attention.value", {}, False),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_half_of_the_channels_can_be_removed(
    name: str, shape: tuple[int, ...], layer: str, options: dict[str, Any], exact: bool
) -> None:
    """Where nothing but their own weights and an activation lies behind them, dead channels go unnoticed."""
    pruning = pytest.importorskip("torch_pruning")
    module = build(name, shape, 10, 0, **options).eval()
    images = torch.rand(2, *shape)
    graph = pruning.DependencyGraph().build_dependency(module, images)
    chosen = module.get_submodule(layer)
    remove = pruning.prune_conv_out_channels if isinstance(chosen, nn.Conv2d) else pruning.prune_linear_out_channels
    count = len(chosen.weight)
    gone = list(range(0, count, 2))
    group = graph.get_pruning_group(chosen, remove, idxs=gone)
    if exact:
        chosen.weight.data[gone] = 0
        chosen.bias.data[gone] = 0
    before, parameters = module(images).detach(), sum(count_parameters(module))
    group.prune()
    after = module(images).detach()
    assert len(chosen.weight) == count - len(gone)
    assert sum(count_parameters(module)) < parameters
    assert after.shape == before.shape
    if exact:
        torch.testing.assert_close(after, before, atol=1e-6, rtol=1e-5)


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
        ({"name": "zzz"}, "known: cnn, lenet, mlp, resnet18, resnet8, transformer"),
        ({"classes": 0}, "classes must be whole and at least 1, found 0"),
        ({"inputs_shape": (1, 0, 8)}, "inputs_shape"),
        ({"inputs_shape": (1, 8.5, 8)}, "inputs_shape"),
        ({"hidden": (64, -1)}, "hidden"),
        ({"hidden": 64}, "hidden must be whole numbers in a row, found 64"),
        ({"inputs_shape": 64}, "inputs_shape must be whole numbers in a row"),
        ({"name": ["mlp"]}, "unknown network"),
        ({"hiden": (64,)}, "no option 'hiden'; did you mean 'hidden'"),
        ({"name": "cnn", "hidden": (64,)}, "no option 'hidden'"),
        ({"name": "cnn", "inputs_shape": (64,)}, "channels, height, width"),
        ({"name": "cnn", "inputs_shape": (1, 3, 8)}, "at least 4"),
        ({"name": "lenet", "inputs_shape": (1, 11, 28)}, "lenet needs .* at least 12, found"),
        ({"name": "resnet8", "inputs_shape": (64,)}, "resnet8 needs inputs"),
        ({"name": "resnet18", "norm": "bach"}, "unknown norm 'bach'; did you mean 'batch'"),
        ({"name": "resnet8", "norm": ["batch"]}, "unknown norm"),
        ({"name": "resnet8", "width": 0}, "width must be whole and at least 1"),
        ({"name": "resnet18", "hidden": 3}, "no option 'hidden'; known: norm, width"),
        ({"name": "transformer", "patch": 3}, "patch must divide the height 8 and the width 8 of the images, found 3"),
        ({"name": "transformer", "heads": 3}, "width must be a multiple of the 3 heads, found 64"),
        ({"name": "transformer", "depth": 0}, "depth must be whole"),
        ({"name": "transformer", "hidden": -1}, "hidden must be whole"),
        ({"name": "transformer", "width": None}, "width must be whole"),
        ({"name": "transformer", "width": 6.5}, "width must be whole"),
        ({"name": "transformer", "inputs_shape": (8, 8)}, "transformer needs inputs"),
        ({"seed": -1}, "seed"),
        ({"seed": 1.5}, "seed"),
    ],
)
def test_refusals(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build(**{"name": "mlp", "inputs_shape": (1, 8, 8), "classes": 10, "seed": 0, **change})

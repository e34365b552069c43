"""Whole residual blocks: which are found, what goes with them, and how much they change what passes through."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from jointopt.errors import InputError
from jointopt.federated.networks import build
from jointopt.pruning.blocks import LayerGroups, representational_change
from jointopt.pruning.layout import Layout
from jointopt.pruning.mask import Mask

IMAGE = (3, 8, 8)
NETWORKS: dict[str, tuple[str, dict[str, Any], tuple[str, ...]]] = {
    "resnet8": ("resnet8", {"width": 4}, ("blocks.0",)),
    "resnet18": ("resnet18", {"width": 4}, ("blocks.0", "blocks.1", "blocks.3", "blocks.5", "blocks.7")),
    "resnet18 group": (
        "resnet18",
        {"width": 4, "norm": "group"},
        ("blocks.0", "blocks.1", "blocks.3", "blocks.5", "blocks.7"),
    ),
    "resnet18 none": (
        "resnet18",
        {"width": 4, "norm": "none"},
        ("blocks.0", "blocks.1", "blocks.3", "blocks.5", "blocks.7"),
    ),
    "transformer": ("transformer", {"width": 8, "depth": 3}, ("layers.0", "layers.1", "layers.2")),
}


def made(name: str) -> LayerGroups:
    network, options, _ = NETWORKS[name]
    module = build(network, IMAGE, 4, 0, **options).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for part in (*module.parameters(), *module.buffers()):
            if part.is_floating_point():
                part += 0.1 * torch.rand(part.shape, generator=generator)
    return LayerGroups(module, torch.zeros(1, *IMAGE))


class Residual(nn.Module):
    """x + f(x), where `f` may be anything; `before` is called on the sum."""

    def __init__(self, inner: nn.Module, after: nn.Module | None = None) -> None:
        super().__init__()
        self.inner = inner
        self.after = nn.Identity() if after is None else after

    def forward(self, inputs: Tensor) -> Tensor:
        return self.after(inputs + self.inner(inputs))


@pytest.mark.parametrize("name", NETWORKS)
def test_blocks_found(name: str) -> None:
    groups = made(name)
    assert groups.names == NETWORKS[name][2]
    assert groups.layers == ("blocks",)
    assert groups.layer.tolist() == [0] * len(groups.names)
    assert groups.at_least.tolist() == [0]


@pytest.mark.parametrize("name", NETWORKS)
def test_narrower_module_computes_what_the_dense_one_does_with_zeros(name: str) -> None:
    groups = made(name)
    inputs = torch.randn(3, *IMAGE)
    flat, buffers = Layout.flatten(groups.module), Layout.flatten_buffers(groups.module)
    for kept in itertools.product([True, False], repeat=len(groups)):
        units = torch.tensor(kept)
        narrow, keep = groups.narrow(units), groups.expand(units)
        assert torch.equal(Layout.flatten(narrow), flat[keep])
        assert torch.equal(Layout.flatten_buffers(narrow), buffers[groups.expand_buffers(units)])
        assert groups.kept_weights(units) == int((keep & groups.prunable).sum())
        zeroed = copy.deepcopy(groups.module)
        with torch.no_grad():
            for entry, parameter in zip(groups.layout.parameters, zeroed.parameters(), strict=True):
                parameter *= keep[entry.where].view(entry.shape)
            assert torch.allclose(narrow(inputs), zeroed(inputs), rtol=1e-5, atol=1e-5)


def test_removing_is_additive_and_sums_are_over_prunable_weights() -> None:
    groups = made("resnet18")
    assert groups.additive
    values = torch.randn(groups.layout.size, dtype=torch.float64)
    sums = groups.reduce(values)
    for unit, name in enumerate(groups.names):
        weights = (f"{name}.conv1.weight", f"{name}.conv2.weight")
        parts = groups.layout.split(values)
        assert sums[unit] == pytest.approx(sum(float(parts[n].sum()) for n in weights))
    units = torch.tensor([True, False, True, False, False])
    assert groups.weights - groups.kept_weights(units) == int(groups.sizes()[~units].sum())


def test_costs_of_a_mask() -> None:
    groups = made("resnet18")
    units = torch.tensor([True, False, True, True, False])
    mask = Mask(groups, units)
    assert mask.structured
    again = LayerGroups(mask.narrow(), torch.zeros(1, *IMAGE))
    assert again.names == ("blocks.0", "blocks.3", "blocks.5")
    assert mask.macs == Mask.dense(again).dense_macs
    assert mask.unpruned == again.layout.size - again.weights


def test_signature_is_which_blocks_stay() -> None:
    groups = made("resnet18")
    kept = [torch.tensor(choice) for choice in itertools.product([True, False], repeat=5)]
    assert len({groups.signature(units) for units in kept}) == 32


def test_only_what_passes_its_input_on_is_a_block() -> None:
    def residual(after: nn.Module | None = None) -> Residual:
        return Residual(nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4)), after)

    module = nn.Sequential(
        nn.Linear(4, 4),  # shape kept, no shortcut
        residual(),
        nn.Sequential(residual(), nn.ReLU()),  # the innermost is the block: behind the ReLU it is no identity
        residual(nn.LayerNorm(4)),  # normalised behind the sum: not its input
        Residual(nn.Tanh()),  # no weights
        nn.Linear(4, 2),
    )
    assert LayerGroups(module, torch.zeros(1, 4)).names == ("1", "2.0")


def test_shared_and_reused_parts() -> None:
    one, two = nn.Linear(4, 4), nn.Linear(4, 4)
    two.weight = one.weight
    again = Residual(nn.Linear(4, 4))
    module = nn.Sequential(Residual(one), Residual(two), again, again, nn.Linear(4, 2))
    # A weight that another part needs stays; so does a block that stands at two places.
    assert module[0] is not module[1]
    free = Residual(nn.Linear(4, 4))
    module.insert(0, free)
    assert LayerGroups(module, torch.zeros(1, 4)).names == ("0",)


def test_blocks_that_are_asked_for_more_than_outputs() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True, dropout=0.0)

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
            self.head = nn.Linear(8, 3)

        def forward(self, tokens: Tensor) -> Tensor:
            return self.head(self.encoder(tokens).mean(dim=1))

    module = Encoder().eval()
    groups = LayerGroups(module, torch.zeros(2, 5, 8))
    # The encoder looks into its first layer; it calls the others with more than one argument.
    assert groups.names == ("encoder.layers.1", "encoder.layers.2")
    narrow = groups.narrow(torch.tensor([False, False]))
    tokens = torch.randn(2, 5, 8)
    with torch.no_grad():
        want = module.head(module.encoder.layers[0](tokens).mean(dim=1))
        assert torch.allclose(narrow(tokens), want, atol=1e-6)


def test_module_comes_back_unchanged() -> None:
    module = build("resnet8", IMAGE, 4, 0, width=4).train()
    module.norm1.eval()
    calls: list[int] = []
    module.head.register_forward_hook(lambda *_: calls.append(1))
    state = {name: value.clone() for name, value in module.state_dict().items()}
    modes = [part.training for part in module.modules()]
    groups = LayerGroups(module, torch.zeros(1, *IMAGE))
    groups.narrow(torch.tensor([False]))
    representational_change(groups, torch.randn(4, *IMAGE), torch.zeros(groups.layout.size))
    assert not calls
    assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())
    assert [part.training for part in module.modules()] == modes


@pytest.mark.parametrize(
    ("module", "example", "message"),
    [
        (nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2)), torch.zeros(1, 3), "no residual block"),
        (nn.Sequential(Residual(nn.Linear(3, 3))), torch.zeros(1, 4), "does not accept an input of shape"),
        (nn.Sequential(Residual(nn.Linear(3, 3))), torch.zeros(0, 3), "example must be a batch"),
        (nn.Sequential(Residual(nn.Linear(3, 3))), None, "example must be a batch"),
    ],
)
def test_bad_input(module: nn.Module, example: Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        LayerGroups(module, example)


def test_bad_units() -> None:
    groups = made("resnet8")
    for method in (groups.expand, groups.expand_buffers, groups.kept_weights, groups.narrow, groups.signature):
        with pytest.raises(InputError, match="units must be bool of shape"):
            method(torch.ones(2, dtype=torch.bool))


# Change of what passes through ----------------------------------------------------------------


def linear_blocks(*matrices: Tensor) -> LayerGroups:
    """Blocks x + x A^T of fixed matrices A."""
    blocks = []
    for matrix in matrices:
        inner = nn.Linear(*matrix.shape, bias=False)
        with torch.no_grad():
            inner.weight.copy_(matrix)
        blocks.append(Residual(inner))
    return LayerGroups(nn.Sequential(*blocks, nn.Linear(matrices[0].shape[0], 2)), torch.zeros(1, len(matrices[0])))


def test_no_change() -> None:
    groups = linear_blocks(torch.zeros(3, 3), 2.0 * torch.eye(3))
    inputs = torch.randn(7, 3)
    # A multiple of the input says the same: both measures are blind to scale.
    assert torch.allclose(representational_change(groups, inputs), torch.zeros(2).double(), atol=1e-7)
    assert torch.allclose(representational_change(groups, inputs, measure="cosine"), torch.zeros(2).double(), atol=1e-7)


def test_cosine_golden() -> None:
    quarter = torch.tensor([[-1.0, -1.0], [1.0, -1.0]])  # x + A x is x turned by 90 degrees
    opposite = -2.0 * torch.eye(2)
    groups = linear_blocks(quarter, opposite)
    inputs = torch.tensor([[1.0, 0.0], [3.0, -4.0]])
    assert torch.allclose(
        representational_change(groups, inputs, measure="cosine"), torch.tensor([1.0, 2.0]).double(), atol=1e-7
    )
    # CKA is blind to rotations and reflections.
    assert torch.allclose(representational_change(groups, inputs), torch.zeros(2).double(), atol=1e-7)


def test_cka_against_its_definition_by_features() -> None:
    generator = np.random.default_rng(0)
    matrix = torch.tensor(generator.normal(size=(5, 5)), dtype=torch.float32)
    groups = linear_blocks(matrix)
    inputs = torch.tensor(generator.normal(size=(11, 5)), dtype=torch.float32)
    x = inputs.numpy().astype(np.float64)
    y = x + x @ matrix.numpy().astype(np.float64).T
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    norm = np.linalg.norm
    want = 1 - norm(y.T @ x) ** 2 / (norm(x.T @ x) * norm(y.T @ y))
    assert want > 0.05
    assert float(representational_change(groups, inputs)[0]) == pytest.approx(want, abs=1e-6)


def test_change_is_measured_with_the_weights_given() -> None:
    groups = linear_blocks(torch.randn(3, 3, generator=torch.Generator().manual_seed(0)))
    inputs = torch.randn(6, 3)
    weights = Layout.flatten(groups.module)
    assert float(representational_change(groups, inputs)[0]) == float(
        representational_change(groups, inputs, weights)[0]
    )
    assert float(representational_change(groups, inputs)[0]) > 0.01
    assert float(representational_change(groups, inputs, torch.zeros_like(weights))[0]) == pytest.approx(0, abs=1e-7)


def test_constants_say_the_same() -> None:
    groups = linear_blocks(torch.eye(3))
    assert float(representational_change(groups, torch.zeros(4, 3))[0]) == 0.0
    assert float(representational_change(groups, torch.zeros(4, 3), measure="cosine")[0]) == 0.0


@pytest.mark.parametrize(
    ("inputs", "options", "message"),
    [
        (torch.zeros(4, 3), {"measure": "cca"}, "unknown measure 'cca'"),
        (torch.zeros(1, 3), {}, "needs at least 2 inputs"),
        (torch.zeros(0, 3), {"measure": "cosine"}, "needs at least 1 inputs"),
    ],
)
def test_bad_calibration(inputs: Tensor, options: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        representational_change(linear_blocks(torch.eye(3)), inputs, **options)

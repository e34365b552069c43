"""Channels: what goes together, and that the narrower module computes what the dense one computes with zeros."""

from __future__ import annotations

import copy
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from jointopt.errors import InputError, MissingExtraError
from jointopt.federated.networks import build
from jointopt.pruning.channels import ChannelGroups
from jointopt.pruning.coupling import couple
from jointopt.pruning.layout import Layout
from jointopt.pruning.mask import Mask

tp = pytest.importorskip("torch_pruning")


class Branches(nn.Module):
    """Two branches, one depthwise, added or put side by side; then all other kinds of layers."""

    def __init__(self, *, side_by_side: bool) -> None:
        super().__init__()
        self.side_by_side = side_by_side
        both = 10 if side_by_side else 6
        self.first = nn.Conv2d(2, 6, 3, padding=1)
        self.depthwise = nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.second = nn.Conv2d(2, 4 if side_by_side else 6, 1)
        self.norm = nn.BatchNorm2d(both)
        self.third = nn.Conv2d(both, 5, 3, bias=False)
        self.act = nn.PReLU(5)
        self.hidden = nn.Linear(5 * 9, 7)
        self.head = nn.Linear(7, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        a, b = self.depthwise(self.first(inputs)).relu(), self.second(inputs)
        both = torch.cat([a, b], dim=1) if self.side_by_side else a + b
        return self.head(torch.sigmoid(self.hidden(self.act(self.third(self.norm(both))).flatten(1))))


class Mirror(nn.Module):
    """A transposed convolution, an instance norm, and one linear layer that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv1d(2, 6, 4, stride=2)
        self.norm = nn.InstanceNorm1d(6, affine=True, track_running_stats=True)
        self.up = nn.ConvTranspose1d(6, 5, 3)
        self.mix = nn.Linear(5, 5)
        self.head = nn.Linear(5, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.up(self.norm(self.down(inputs)).relu()).mean(dim=2)
        return self.head(self.mix(self.mix(hidden).relu()).relu())


class Gated(nn.Module):
    """Halves multiplied: channels i and i + 4 of `gates` belong together; `last` has its number in the code."""

    def __init__(self) -> None:
        super().__init__()
        self.gates = nn.Linear(3, 8)
        self.inner = nn.Linear(4, 6)
        self.last = nn.Linear(6, 4)
        self.head = nn.Linear(4, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        a, b = self.gates(inputs).chunk(2, dim=1)
        return self.head(self.last(self.inner(a * b.sigmoid()).relu()).reshape(-1, 2, 2).flatten(1))


IMAGE = (3, 12, 12)
MAKERS = {
    "mlp": (lambda: build("mlp", [1, 8, 8], 4, 0, hidden=(9, 7)), (1, 8, 8)),
    "cnn": (lambda: build("cnn", [1, 8, 8], 4, 0), (1, 8, 8)),
    "lenet": (lambda: build("lenet", [1, 28, 28], 10, 0), (1, 28, 28)),
    "resnet8": (lambda: build("resnet8", IMAGE, 4, 0, width=6), IMAGE),
    "resnet8 without norm": (lambda: build("resnet8", IMAGE, 4, 0, width=6, norm="none"), IMAGE),
    "resnet18": (lambda: build("resnet18", IMAGE, 4, 0, width=4), IMAGE),
    "transformer": (lambda: build("transformer", IMAGE, 4, 0, width=16, hidden=20), IMAGE),
    "sum": (lambda: Branches(side_by_side=False), (2, 5, 5)),
    "side by side": (lambda: Branches(side_by_side=True), (2, 5, 5)),
    "mirror": (Mirror, (2, 10)),
    "gated": (Gated, (3,)),
}
_MADE: dict[str, tuple[ChannelGroups, Tensor]] = {}


def made(name: str) -> tuple[ChannelGroups, Tensor]:
    """Groups of a network whose tensors are all random, and a batch of inputs."""
    if name not in _MADE:
        maker, shape = MAKERS[name]
        torch.manual_seed(3)
        module = maker()
        with torch.no_grad():
            for part in module.parameters():
                part.add_(0.1 * torch.randn_like(part))
            for buffer in module.buffers():
                if buffer.is_floating_point():
                    buffer.copy_(0.5 + torch.rand_like(buffer))
        module.eval()
        _MADE[name] = ChannelGroups(module, torch.zeros(2, *shape)), torch.randn(3, *shape)
    return _MADE[name]


def some_units(groups: ChannelGroups, seed: int) -> Tensor:
    """A random choice of units that leaves each layer what it must keep."""
    generator = torch.Generator().manual_seed(seed)
    keep = torch.rand(len(groups), generator=generator) < torch.rand((), generator=generator)
    for layer, least in enumerate(groups.at_least.tolist()):
        of = torch.nonzero(groups.layer == layer)[:, 0]
        keep[of[torch.randperm(len(of), generator=generator)[:least]]] = True
    return keep


def zeroed(groups: ChannelGroups, units: Tensor) -> nn.Module:
    dense = copy.deepcopy(groups.module)
    keep = groups.expand(units)
    with torch.no_grad():
        for entry, parameter in zip(groups.layout.parameters, dense.parameters(), strict=True):
            parameter *= keep[entry.where].view(entry.shape)
    return dense


LAYERS = {
    "mlp": {"1": 9, "3": 7},
    "cnn": {"0": 16, "3": 32, "7": 64},
    "lenet": {"0": 6, "3": 16, "7": 120, "9": 84},
    "resnet8": {
        "conv1": 6,  # with the outputs of the first block, which are added to them
        "blocks.0.conv1": 6,
        "blocks.1.conv1": 12,
        "blocks.1.conv2": 12,  # with the shortcut's
        "blocks.2.conv1": 24,
        "blocks.2.conv2": 24,
    },
    "transformer": {"layers.0.wide": 20, "layers.1.wide": 20},
    "sum": {"first": 6, "third": 5, "hidden": 7},
    "side by side": {"first": 6, "second": 4, "third": 5, "hidden": 7},
    "mirror": {"down": 6, "up": 5},
    "gated": {"inner": 6},
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_found(name: str) -> None:
    groups, _ = made(name)
    counts = torch.bincount(groups.layer, minlength=len(groups.layers)).tolist()
    assert dict(zip(groups.layers, counts, strict=True)) == LAYERS[name]


@pytest.mark.parametrize("name", MAKERS)
@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_narrower_module(name: str, seed: int) -> None:
    groups, inputs = made(name)
    units = some_units(groups, seed)
    narrow = groups.narrow(units)
    keep = groups.expand(units)
    assert [n for n, _ in narrow.named_parameters()] == [n for n, _ in groups.module.named_parameters()]
    assert torch.equal(Layout.flatten(narrow), Layout.flatten(groups.module)[keep])
    kept_buffers = Layout.flatten_buffers(groups.module)[groups.expand_buffers(units)]
    assert torch.equal(Layout.flatten_buffers(narrow), kept_buffers)
    assert groups.kept_weights(units) == int((keep & groups.prunable).sum())
    with torch.no_grad():
        want = zeroed(groups, units)(inputs)
        assert torch.allclose(narrow(inputs), want, rtol=0, atol=1e-5 * float(want.abs().max().clamp(min=1)))


@pytest.mark.parametrize("name", MAKERS)
def test_sums_over_units_against_removing_each_alone(name: str) -> None:
    groups, _ = made(name)
    values = torch.randn(groups.layout.size, dtype=torch.float64)
    sums, sizes = groups.reduce(values), groups.sizes()
    for unit in range(0, len(groups), max(1, len(groups) // 40)):
        units = torch.ones(len(groups), dtype=torch.bool)
        units[unit] = False
        gone = ~groups.expand(units) & groups.prunable
        assert sums[unit] == pytest.approx(float(values[gone].sum()), abs=1e-9)
        assert int(sizes[unit]) == int(gone.sum())


@pytest.mark.parametrize(
    ("name", "layer", "unit", "root"),
    [
        ("cnn", 1, 5, "3"),
        ("lenet", 1, 2, "3"),
        ("resnet8", 0, 3, "conv1"),
        ("resnet8", 3, 7, "blocks.1.conv2"),
        ("sum", 0, 4, "first"),
        ("side by side", 1, 2, "second"),
        ("transformer", 1, 9, "layers.1.wide"),
    ],
)
def test_one_unit_against_the_pruning_functions_of_torch_pruning(name: str, layer: int, unit: int, root: str) -> None:
    groups, inputs = made(name)
    units = torch.ones(len(groups), dtype=torch.bool)
    units[torch.nonzero(groups.layer == layer)[unit, 0]] = False
    want = copy.deepcopy(groups.module)
    graph = tp.DependencyGraph().build_dependency(want, (inputs,), verbose=False)
    pruned = want.get_submodule(root)
    graph.get_pruning_group(
        pruned, tp.prune_conv_out_channels if isinstance(pruned, nn.Conv2d) else tp.prune_linear_out_channels, [unit]
    ).prune()
    narrow = groups.narrow(units)
    # By name: torch-pruning puts a parameter it replaces behind the others of its layer.
    wanted = dict(want.named_parameters()) | {n: b for n, b in want.named_buffers() if b.is_floating_point()}
    found = dict(narrow.named_parameters()) | {n: b for n, b in narrow.named_buffers() if b.is_floating_point()}
    assert wanted.keys() == found.keys()
    for key in wanted:
        assert torch.equal(wanted[key], found[key]), key
    sizes = ("in_channels", "out_channels", "groups", "in_features", "out_features", "num_features", "num_parameters")
    for part, other in zip(want.modules(), narrow.modules(), strict=True):
        assert {s: getattr(part, s, None) for s in sizes} == {s: getattr(other, s, None) for s in sizes}


def test_filters_are_rows_of_the_layers_that_make_the_channel() -> None:
    groups, _ = made("sum")
    values = Layout.flatten(groups.module).abs()
    part = groups.layout.split(values)
    first = sum(part[name].flatten(1).sum(dim=1) for name in ("first.weight", "depthwise.weight", "second.weight"))
    want = torch.cat([first, part["third.weight"].flatten(1).sum(dim=1), part["hidden.weight"].sum(dim=1)])
    assert torch.allclose(groups.reduce_filters(values), want)


def test_transposed_filters_are_columns() -> None:
    groups, _ = made("mirror")
    values = torch.arange(groups.layout.size, dtype=torch.float64)
    table = groups.layout.split(values)["up.weight"]  # [in, out, length]
    of = torch.nonzero(groups.layer == groups.layers.index("up"))[:, 0]
    own = table.sum(dim=(0, 2))
    again = groups.layout.split(values)["mix.weight"].sum(dim=1)  # its outputs are its inputs
    assert torch.equal(groups.reduce_filters(values)[of], own + again)


def test_multiplications_of_a_mask_are_those_of_the_narrower_module() -> None:
    groups, _ = made("resnet8")
    units = some_units(groups, 5)
    assert groups.example is not None
    macs = Mask(groups, units).macs
    again = ChannelGroups(groups.narrow(units), groups.example)
    assert macs == Mask.dense(again).dense_macs
    assert macs < Mask.dense(groups).dense_macs


def test_module_comes_back_unchanged() -> None:
    module = build("resnet8", IMAGE, 4, 0, width=4)
    module.train()
    module.norm1.eval()  # a part may have another mode than the whole
    module.conv1.weight.requires_grad_(False)
    calls: list[int] = []
    module.head.register_forward_hook(lambda *_: calls.append(1))
    module.blocks[0].register_full_backward_hook(lambda *_: None)
    module(torch.ones(2, *IMAGE)).sum().backward()
    calls.clear()
    state = {name: value.clone() for name, value in module.state_dict().items()}
    grads = {name: None if p.grad is None else p.grad.clone() for name, p in module.named_parameters()}
    modes = [part.training for part in module.modules()]
    hooks = [(len(part._forward_hooks), len(part._backward_hooks)) for part in module.modules()]
    random = torch.get_rng_state()
    groups = ChannelGroups(module, torch.zeros(1, *IMAGE))
    narrow = groups.narrow(some_units(groups, 1))
    assert not calls
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())
    for name, parameter in module.named_parameters():
        want = grads[name]
        assert parameter.grad is None if want is None else torch.equal(parameter.grad, want)
    assert [part.training for part in module.modules()] == modes
    assert [(len(part._forward_hooks), len(part._backward_hooks)) for part in module.modules()] == hooks
    assert [p.requires_grad for p in narrow.parameters()] == [p.requires_grad for p in module.parameters()]
    assert [part.training for part in narrow.modules()] == modes


def test_narrower_module_shares_no_memory_and_learns() -> None:
    module = build("cnn", [1, 8, 8], 4, 0)
    groups = ChannelGroups(module, torch.zeros(1, 1, 8, 8))
    for units in (torch.ones(len(groups), dtype=torch.bool), some_units(groups, 2)):
        before = Layout.flatten(module)
        narrow = groups.narrow(units)
        narrow(torch.randn(2, 1, 8, 8)).square().sum().backward()
        with torch.no_grad():
            for parameter in narrow.parameters():
                assert parameter.grad is not None
                parameter += 1.0
        assert torch.equal(Layout.flatten(module), before)


def test_shared_weights_stay_shared() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter, self.one, self.two, self.head = (
                nn.Linear(3, 4),
                nn.Linear(4, 4),
                nn.Linear(4, 4),
                nn.Linear(4, 2),
            )
            self.two.weight = self.one.weight

        def forward(self, inputs: Tensor) -> Tensor:
            return self.head(self.two(self.one(self.enter(inputs)).tanh()).tanh())

    groups = ChannelGroups(Tied(), torch.zeros(1, 3))
    # The shared matrix ties what enters it once to what enters it again: rows with rows, columns with columns.
    units = some_units(groups, 0)
    narrow = groups.narrow(units)
    assert narrow.one.weight is narrow.two.weight
    assert torch.equal(Layout.flatten(narrow), Layout.flatten(groups.module)[groups.expand(units)])
    inputs = torch.randn(5, 3)
    assert torch.allclose(narrow(inputs), zeroed(groups, units)(inputs), atol=1e-6)


@pytest.mark.parametrize("name", ["3", "0"])
def test_frozen_layers_keep_their_outputs(name: str) -> None:
    module = build("cnn", [1, 8, 8], 4, 0)
    groups = ChannelGroups(module, torch.zeros(1, 1, 8, 8), frozen=[name])
    assert set(groups.layers) == {"0", "3", "7"} - {name}
    narrow = groups.narrow(some_units(groups, 4))
    assert narrow.get_submodule(name).out_channels == module.get_submodule(name).out_channels


def test_min_channels() -> None:
    groups = ChannelGroups(build("lenet", [1, 28, 28], 10, 0), torch.zeros(1, 1, 28, 28), min_channels=6)
    assert groups.layers == ("3", "7", "9")  # the first layer has six channels, which can therefore never shrink
    assert groups.at_least.tolist() == [6, 6, 6]
    keep = torch.zeros(len(groups), dtype=torch.bool)
    for layer in range(3):
        keep[torch.nonzero(groups.layer == layer)[: 6 if layer else 5, 0]] = True
    with pytest.raises(InputError, match="layer '3' must keep at least 6 channels, found 5"):
        groups.narrow(keep)
    keep[5] = True
    assert groups.narrow(keep)(torch.zeros(1, 1, 28, 28)).shape == (1, 10)


def test_equal_signatures_mean_equal_shapes() -> None:
    groups, _ = made("side by side")
    shapes: dict[tuple[int, ...], list[torch.Size]] = {}
    for seed in range(60):
        units = some_units(groups, seed % 7)
        shuffled = units.clone()
        for layer in range(len(groups.layers)):
            of = torch.nonzero(groups.layer == layer)[:, 0]
            shuffled[of] = units[of[torch.randperm(len(of), generator=torch.Generator().manual_seed(seed))]]
        found = [p.shape for p in groups.narrow(shuffled).parameters()]
        assert shapes.setdefault(groups.signature(shuffled), found) == found
    assert len(shapes) == 7


def test_halves_read_by_different_layers_are_layers_of_their_own() -> None:
    class Split(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.both, self.left, self.right = nn.Linear(3, 8), nn.Linear(4, 2), nn.Linear(4, 2)

        def forward(self, inputs: Tensor) -> Tensor:
            both = self.both(inputs).relu()
            return self.left(both[:, :4]) + self.right(both[:, 4:])

    names, layer = couple(Split(), torch.zeros(2, 3)).layers()
    assert names == ("both", "both#2")
    assert layer.tolist() == [0] * 4 + [1] * 4
    # The code takes four channels for the first half, so only the second may shrink.
    groups = ChannelGroups(Split(), torch.zeros(2, 3))
    units = torch.tensor([True, False, False, True])
    narrow = groups.narrow(units)
    assert narrow.both.out_features == 6
    assert narrow.left.in_features == 4
    assert narrow.right.in_features == 2


def test_layer_normalisation_is_left_alone() -> None:
    module = nn.Sequential(nn.Linear(3, 6), nn.LayerNorm(6), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))
    assert ChannelGroups(module, torch.zeros(1, 3)).layers == ("2",)


def test_group_normalisation_is_left_alone_unless_asked() -> None:
    module = build("resnet8", IMAGE, 4, 0, width=6, norm="group")
    with pytest.raises(InputError, match="no channel that could be removed; group_norm=True admits"):
        ChannelGroups(module, torch.zeros(1, *IMAGE))
    groups = ChannelGroups(module, torch.zeros(1, *IMAGE), group_norm=True)
    plain = ChannelGroups(build("resnet8", IMAGE, 4, 0, width=6), torch.zeros(1, *IMAGE))
    assert groups.layers == plain.layers
    assert 2 * len(groups) == len(plain)  # pairs, one of each group
    for seed in range(8):
        units = some_units(groups, seed)
        narrow = groups.narrow(units)
        assert torch.equal(Layout.flatten(narrow), Layout.flatten(module)[groups.expand(units)])
        assert narrow(torch.randn(2, *IMAGE)).shape == (2, 4)
        # The first group's channels are the first half, of what is left too.
        kept = groups.layout.split(groups.expand(units))["norm1.weight"]
        assert torch.equal(kept[:3], kept[3:])
        assert narrow.norm1.num_channels == int(kept.sum())
        assert narrow.norm1.num_groups == 2


def test_group_normalisation_of_single_channels_shrinks_exactly() -> None:
    module = nn.Sequential(nn.Conv1d(2, 6, 3), nn.GroupNorm(6, 6), nn.ReLU(), nn.Conv1d(6, 3, 3), nn.Flatten())
    module.append(nn.Linear(9, 4)).append(nn.Linear(4, 2))
    groups = ChannelGroups(module, torch.zeros(1, 2, 7))
    assert groups.layers == ("0", "3", "5")
    inputs = torch.randn(3, 2, 7)
    for seed in range(5):
        units = some_units(groups, seed)
        assert torch.allclose(groups.narrow(units)(inputs), zeroed(groups, units)(inputs), atol=1e-6)


def test_grouped_convolutions_are_left_alone() -> None:
    module = nn.Sequential(
        nn.Conv2d(2, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=2), nn.Conv2d(8, 4, 1), nn.Flatten()
    )
    with pytest.raises(InputError, match="no channel"):
        ChannelGroups(module[:3], torch.zeros(1, 2, 3, 3))
    full = nn.Sequential(*module, nn.Linear(4, 5), nn.Linear(5, 2))
    assert ChannelGroups(full, torch.zeros(1, 2, 3, 3)).layers == ("3", "5")


def test_input_that_is_added_keeps_its_channels() -> None:
    class Added(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.outer, self.head = nn.Linear(4, 6), nn.Linear(6, 4), nn.Linear(4, 2)

        def forward(self, inputs: Tensor) -> Tensor:
            return self.head(inputs + self.outer(self.inner(inputs).relu()))

    # The graph does not know the inputs: only trying tells that `outer` cannot shrink.
    assert ChannelGroups(Added(), torch.zeros(1, 4)).layers == ("inner",)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"example": torch.zeros(1, 3, 8, 8)}, "does not accept an input of shape"),
        ({"example": None}, "example must be a batch"),
        ({"example": torch.zeros(0, 1, 8, 8)}, "example must be a batch"),
        ({"frozen": ["conv"]}, "frozen: no linear or convolution layer 'conv'"),
        ({"frozen": ["1"]}, "frozen: no linear or convolution layer '1'"),
        ({"min_channels": 0}, "min_channels"),
        ({"min_channels": 1.5}, "min_channels"),
        ({"min_channels": True}, "min_channels"),
        ({"group_norm": 1}, "group_norm"),
        ({"module": nn.Flatten()}, "must return one tensor that depends on its parameters"),
        ({"module": nn.Sequential(nn.Flatten(), nn.Linear(64, 2))}, "no channel that could be removed"),
    ],
)
def test_bad_input(change: dict[str, object], message: str) -> None:
    given_ = {"module": build("cnn", [1, 8, 8], 4, 0), "example": torch.zeros(1, 1, 8, 8)} | change
    module, example = given_.pop("module"), given_.pop("example")
    with pytest.raises(InputError, match=message):
        ChannelGroups(module, example, **given_)


@pytest.mark.parametrize(
    "units", [torch.ones(3, dtype=torch.bool), torch.ones(112), torch.ones(1, 112, dtype=torch.bool)]
)
def test_bad_units(units: Tensor) -> None:
    groups, _ = made("cnn")
    for method in (groups.expand, groups.expand_buffers, groups.kept_weights, groups.narrow):
        with pytest.raises(InputError, match="units must be bool of shape"):
            method(units)


def test_bad_values() -> None:
    groups, _ = made("cnn")
    with pytest.raises(InputError, match="values must have shape"):
        groups.reduce(torch.zeros(5))


def test_missing_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    with pytest.raises(MissingExtraError, match=r"jointopt\[pruning\]"):
        ChannelGroups(build("cnn", [1, 8, 8], 4, 0), torch.zeros(1, 1, 8, 8))

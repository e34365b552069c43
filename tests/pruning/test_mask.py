"""The flat weight vector, units of single weights, and what a mask says of costs."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from jointopt.errors import InputError
from jointopt.pruning import Layout, Mask, WeightGroups
from jointopt.pruning.groups import uses_per_sample
from jointopt.pruning.layout import prunable


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 2, 3, stride=2, padding=1), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3), nn.LayerNorm(3)
    )


NET = network()
EXAMPLE = torch.zeros(1, 1, 4, 4)
# Parameters: 18 + 2, 2 + 2, 24 + 3, 3 + 3; buffers: 2 + 2 (the count of batches is whole).


def test_layout_follows_named_parameters_and_buffers() -> None:
    layout = Layout.of(NET)
    assert [entry.name for entry in layout.parameters] == [name for name, _ in NET.named_parameters()]
    assert layout.size == 57
    assert layout.weights == 42
    assert [entry.name for entry in layout.layers] == ["0.weight", "3.weight"]
    assert prunable(NET) == {name: name in ("0.weight", "3.weight") for name, _ in NET.named_parameters()}
    assert layout.buffer_size == 4
    flat, buffers = Layout.flatten(NET), Layout.flatten_buffers(NET)
    assert flat.dtype == buffers.dtype == torch.float32
    for (name, parameter), (again, view) in zip(NET.named_parameters(), layout.split(flat).items(), strict=True):
        assert name == again
        assert torch.equal(view, parameter)
        assert view.data_ptr() != parameter.data_ptr()
    assert torch.equal(layout.split_buffers(buffers)["1.running_var"], NET[1].running_var)
    layout.split(flat)["3.bias"].fill_(7.0)  # views: writing shows in the vector
    assert (flat[48:51] == 7.0).all()
    assert int(layout.prunable_mask().sum()) == 42


def test_layout_of_a_module_without_buffers() -> None:
    net = nn.Linear(2, 2)
    assert Layout.of(net).buffer_size == 0
    assert Layout.flatten_buffers(net).shape == (0,)


def test_tied_weights_are_one_parameter() -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3))
    net[2].weight = net[0].weight
    layout = Layout.of(net)
    assert layout.weights == 9
    assert layout.size == 15
    uses = uses_per_sample(net, layout, torch.zeros(4, 3))
    assert uses[layout.layers[0].where].tolist() == [2.0] * 9


def test_an_embedding_tied_to_a_layer_multiplies_nothing() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.head = nn.Embedding(5, 3), nn.Linear(3, 5, bias=False)
            self.head.weight = self.table.weight

        def forward(self, tokens: Tensor) -> Tensor:
            return self.head(self.table(tokens))

    groups = WeightGroups(Tied(), torch.zeros(1, 4, dtype=torch.int64))
    assert groups.layers == ("table.weight",)
    assert Mask.dense(groups).macs == 15 * 4


def test_multiplications_by_hand() -> None:
    mask = Mask.dense(WeightGroups(NET, EXAMPLE))
    assert mask.dense_macs == mask.macs == 18 * 4 + 24  # 2 x 2 positions
    units = torch.ones(42, dtype=torch.bool)
    units[:3] = units[18] = False
    assert Mask(mask.groups, units).macs == 15 * 4 + 23
    batch = uses_per_sample(NET, mask.groups.layout, EXAMPLE.expand(5, -1, -1, -1))
    assert torch.equal(batch, mask.groups.uses)
    with pytest.raises(InputError, match="with an example input"):
        _ = Mask.dense(WeightGroups(NET)).macs


def test_counting_leaves_the_module_alone_and_skips_what_is_not_called() -> None:
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle, self.drop = nn.Linear(2, 3), nn.Linear(2, 3), nn.Dropout()

        def forward(self, x: Tensor) -> Tensor:
            assert not self.drop.training
            return self.drop(self.used(x))

    net = Idle()
    net.idle.eval()
    groups = WeightGroups(net, torch.zeros(1, 2))
    assert Mask.dense(groups).macs == 6
    assert net.training
    assert net.drop.training
    assert not net.idle.training
    assert not net.used._forward_hooks


@given(units=st.lists(st.booleans(), min_size=42, max_size=42))
@settings(deadline=None)
def test_mask_counts(units: list[bool]) -> None:
    groups = WeightGroups(NET, EXAMPLE)
    mask = Mask(groups, torch.tensor(units))
    assert mask.kept == sum(units) == groups.kept_weights(mask.units)
    assert mask.unpruned == 15
    assert mask.ratio == (42 - sum(units)) / 42
    assert mask.index.tolist() == [i for i, keep in enumerate(mask.keep.tolist()) if keep]
    assert torch.equal(groups.reduce(mask.keep), mask.units)
    assert mask.layer_ratios["3.weight"] == pytest.approx(1.0 - sum(units[18:]) / 24)
    assert groups.signature(mask.units) == tuple(groups.layer_counts(mask.units).tolist())
    assert groups.layer_counts(mask.units).tolist() == [sum(units[:18]), sum(units[18:])]
    assert bool(mask.keep_buffers.all()) and len(mask.keep_buffers) == 4
    weights = torch.arange(57.0)
    squares = weights.double().square()
    lost = float(squares[~mask.keep].sum()) / float(squares[groups.prunable].sum())
    assert mask.distortion(weights) == pytest.approx(lost)
    assert f"{sum(units)} of 42 units kept" in repr(mask)


def test_distortion_of_zero_weights_is_0() -> None:
    mask = Mask(WeightGroups(NET), torch.zeros(42, dtype=torch.bool))
    assert mask.distortion(torch.zeros(57)) == 0.0
    assert mask.distortion(torch.ones(57)) == 1.0


def test_single_weights_cannot_be_cut_out() -> None:
    mask = Mask.dense(WeightGroups(NET))
    assert not mask.structured
    with pytest.raises(InputError, match="'weight' removes no part of a tensor"):
        mask.narrow()


@pytest.mark.parametrize(
    "units", [torch.ones(41, dtype=torch.bool), torch.ones(42), torch.ones(42, 1, dtype=torch.bool)]
)
def test_bad_units(units: Tensor) -> None:
    with pytest.raises(InputError, match=r"units must be bool of shape \(42,\)"):
        Mask(WeightGroups(NET), units)

"""Scores against their formulas, slow loops and finite differences."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from jointopt.errors import InputError
from jointopt.pruning import Evidence, Layout, WeightGroups, pruner
from jointopt.pruning.charge import Charge
from jointopt.pruning.scores import Exploration, Magnitude, Random, Snip, Taylor, Wanda, exploration_matrix, lift
from jointopt.pruning.synflow import SynFlow, synaptic_flow


def network(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Conv2d(2, 4, 2, groups=2), nn.Tanh(), nn.Flatten(), nn.Linear(16, 3))


def samples(count: int, seed: int) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(count, 2, 3, 3, generator=draw), torch.randint(0, 3, (count,), generator=draw)


def evidence(net: nn.Module, **more: object) -> Evidence:
    batches = [(*samples(5, 1), 1.0), (*samples(2, 2), 3.0)]
    return Evidence(net, Layout.flatten(net), batches, nn.functional.cross_entropy, **more)  # type: ignore[arg-type]


def loss_at(net: nn.Module, flat: Tensor) -> float:
    """The share-weighted loss in float64, written out."""
    twin = network().double()
    with torch.no_grad():
        for entry, parameter in zip(Layout.of(net).parameters, twin.parameters(), strict=True):
            parameter.copy_(flat[entry.where].view(entry.shape))
        total = 0.0
        for count, seed, share in ((5, 1, 0.25), (2, 2, 0.75)):
            inputs, labels = samples(count, seed)
            total += share * float(nn.functional.cross_entropy(twin(inputs.double()), labels))
    return total


def test_snip_and_taylor_equal_finite_differences() -> None:
    net = network()
    groups = WeightGroups(net)
    flat = Layout.flatten(net).double()
    step = 1e-5
    slope = torch.zeros_like(flat)
    for i in range(len(flat)):
        up, down = flat.clone(), flat.clone()
        up[i] += step
        down[i] -= step
        slope[i] = (loss_at(net, up) - loss_at(net, down)) / (2 * step)
    effect = groups.reduce(slope * flat)
    weights = Layout.flatten(net)
    snip = Snip()(groups, weights, evidence(net), None)
    torch.testing.assert_close(snip.double(), effect.abs(), rtol=1e-4, atol=1e-7)
    taylor = Taylor()(groups, weights, evidence(net), None)
    torch.testing.assert_close(taylor, effect.square(), rtol=1e-4, atol=1e-9)


def test_wanda_equals_a_slow_loop() -> None:
    net = network()
    groups = WeightGroups(net)
    weights = Layout.flatten(net)
    conv, linear = net[0], net[3]
    inputs = torch.cat([samples(5, 1)[0], samples(2, 2)[0]])
    expected = []
    for out in range(4):
        channel = out // 2  # two groups of one input channel each
        norm = float(inputs[:, channel].double().square().sum().sqrt())
        expected += [abs(float(w)) * norm for w in conv.weight[out].detach().reshape(-1)]
    with torch.no_grad():
        hidden = torch.tanh(conv(inputs)).flatten(1).double()
    for out in range(3):
        for column in range(16):
            norm = float(hidden[:, column].square().sum().sqrt())
            expected.append(abs(float(linear.weight[out, column].detach())) * norm)
    wanda = Wanda()(groups, weights, evidence(net), None)
    np.testing.assert_allclose(wanda.numpy(), expected, rtol=1e-5)
    # With alpha, the root mean square gradient is added to the norm.
    gradients = []
    for count, seed in ((5, 1), (2, 2)):
        net.zero_grad()
        x, y = samples(count, seed)
        nn.functional.cross_entropy(net(x), y).backward()
        gradients.append(torch.cat([p.grad.reshape(-1) for p in net.parameters() if p.grad is not None]).double())
    rms = (0.25 * gradients[0].square() + 0.75 * gradients[1].square()).sqrt()
    blended = Wanda(10.0)(groups, weights, evidence(net), None)
    magnitudes = groups.reduce(weights.abs().double())
    np.testing.assert_allclose(
        blended, np.array(expected) + 10.0 * (magnitudes * groups.reduce(rms)).numpy(), rtol=1e-4
    )


def test_wanda_compares_within_rows() -> None:
    net = nn.Sequential(nn.Linear(4, 3, bias=False))
    weights = torch.tensor([1.0, 2.0, 3.0, 4.0, 100.0, 200.0, 300.0, 400.0, 0.4, 0.3, 0.2, 0.1])
    inputs = torch.tensor([[1.0, 1.0, 1.0, 0.0]])  # the last column is never active
    info = Evidence(net, weights, [(inputs, torch.zeros(1), 1.0)])
    rule = pruner("wanda")
    (mask,) = rule.masks(rule.groups(net), weights, [0.5], evidence=info)
    assert mask.units.view(3, 4).tolist() == [
        [False, True, True, False],
        [False, True, True, False],
        [True, True, False, False],
    ]


def test_transposed_convolutions_are_read_the_right_way_round() -> None:
    net = nn.Sequential(nn.ConvTranspose2d(2, 3, 1, bias=False))
    inputs = torch.tensor([[[[3.0, 4.0]], [[0.0, 2.0]]]])
    info = Evidence(net, torch.ones(6), [(inputs, torch.zeros(1), 1.0)])
    assert Wanda()(WeightGroups(net), torch.ones(6), info, None).tolist() == [5.0, 5.0, 5.0, 2.0, 2.0, 2.0]


def test_exploration_formula_by_hand() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1, bias=False))
    weights = torch.zeros(8)
    explorers = torch.tensor([[1.0, 0.0, -2.0, 3.0, 0.5, 0.5, 9.0, 9.0], [1.0, 2.0, 0.0, 1.0, 0.5, -0.5, 9.0, -9.0]])
    # Mean squared drifts: weight (1, 2, 2, 5), bias (0.25, 0.25), last (81, 81); scaled per tensor, flat tensors to 0.
    expected = [0.0, 0.25, 0.25, 1.0, 0.0, 0.0, 0.0, 0.0]
    assert exploration_matrix(Layout.of(net), weights, explorers).tolist() == expected
    info = Evidence(net, weights, explorers=explorers, explorer_samples=[30, 60])
    scores = Exploration()(WeightGroups(net), weights, info, None)
    assert scores.tolist() == [0.0, 0.25, 0.25, 1.0, 0.0, 0.0]
    assert info.charges == (Charge(30.0, 30.0, 256.0), Charge(60.0, 60.0, 256.0))


def test_synaptic_flow_is_conserved() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        net = nn.Sequential(
            nn.Conv2d(2, 5, 3, bias=False),
            nn.ReLU(),
            nn.Conv2d(5, 4, 2, bias=False),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(36, 6, bias=False),
            nn.ReLU(),
            nn.Linear(6, 3, bias=False),
        )
    groups = WeightGroups(net, torch.randn(1, 2, 6, 6))
    keep = torch.rand(groups.layout.size, generator=torch.Generator().manual_seed(0)) < 0.6
    for mask in (None, keep):
        flow = synaptic_flow(groups, Layout.flatten(net), mask)
        totals = [float(flow[entry.where].sum()) for entry in groups.layout.layers]
        assert totals[0] > 0.0
        np.testing.assert_allclose(totals, totals[0], rtol=1e-12)
        assert (flow >= 0.0).all()


def test_synflow_of_two_layers_by_hand() -> None:
    net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False))
    weights = torch.tensor([1.0, -2.0, 3.0, 4.0, -5.0, 0.5])
    groups = WeightGroups(net, torch.zeros(1, 2))
    # R = 5 (1 + 2) + 0.5 (3 + 4); each score is the sum of the paths through that weight.
    assert synaptic_flow(groups, weights).tolist() == [5.0, 10.0, 1.5, 2.0, 15.0, 3.5]
    # Without w = 3 (lowest flow), the path of 4 has 2 left, and so has 0.5.
    order = SynFlow(steps=6, density=1e-3)(groups, weights, None, None)
    assert sorted(order.tolist()) == [0, 1, 2, 3, 4, 5]
    assert order[2] == 0.0
    assert order[4] == 5.0


def test_synflow_needs_an_input_it_can_fill_with_ones() -> None:
    net = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(InputError, match="floating-point example input, found none"):
        SynFlow()(WeightGroups(net), torch.ones(6), None, None)
    tokens = nn.Sequential(nn.Embedding(5, 2), nn.Linear(2, 2))
    with pytest.raises(InputError, match=r"found torch\.int64"):
        SynFlow()(WeightGroups(tokens, torch.zeros(1, 3, dtype=torch.int64)), torch.ones(16), None, None)


def test_magnitudes_and_powers() -> None:
    net = nn.Sequential(nn.Linear(2, 2, bias=False))
    weights = torch.tensor([1.0, -2.0, 0.5, 0.0])
    groups = WeightGroups(net)
    assert Magnitude()(groups, weights, None, None).tolist() == [1.0, 2.0, 0.5, 0.0]
    assert Magnitude(2.0, "mean")(groups, weights, None, None).tolist() == [1.0, 4.0, 0.25, 0.0]
    with pytest.raises(InputError, match="did you mean 'mean'"):
        lift(groups, weights, "means")


def test_random_scores_are_those_of_the_generator() -> None:
    groups = WeightGroups(nn.Linear(5, 4))
    generator = torch.Generator().manual_seed(3)
    scores = torch.stack([Random()(groups, torch.zeros(24), None, generator) for _ in range(4000)])
    assert torch.equal(scores[0], Random()(groups, torch.zeros(24), None, torch.Generator().manual_seed(3)))
    # Every weight is the smallest equally often.
    lowest = torch.bincount(scores.argmin(dim=1), minlength=20) / 4000
    assert ((lowest - 0.05).abs() < 4.5 * (0.05 * 0.95 / 4000) ** 0.5).all()
    with pytest.raises(InputError, match=r"torch\.Generator"):
        Random()(groups, torch.zeros(24), None, None)


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf"), "1", None])
def test_bad_options(bad: object) -> None:
    with pytest.raises(InputError, match="power"):
        Magnitude(bad)  # type: ignore[arg-type]
    if bad != 0.0:
        with pytest.raises(InputError, match="alpha"):
            Wanda(bad)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="density"):
        SynFlow(density=bad)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="steps"):
        SynFlow(steps=bad)  # type: ignore[arg-type]

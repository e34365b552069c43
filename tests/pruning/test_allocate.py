"""Allocations against values by hand and against enumeration."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from jointopt.errors import InputError
from jointopt.pruning import Evidence, Layout, WeightGroups, pruner
from jointopt.pruning.allocate import Erk, Global, Rows, Spread, Uniform, erk_scale
from jointopt.pruning.candidates import Candidates
from jointopt.pruning.patterns import Pattern
from jointopt.pruning.pq import PQ, pq_index, pq_removed
from jointopt.pruning.rate_distortion import RateDistortion, least_distortion


def linear_stack(*widths: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(*(nn.Linear(a, b, bias=False) for a, b in itertools.pairwise(widths)))


# Global ------------------------------------------------------------------------------------


@given(
    scores=st.lists(st.integers(-3, 3), min_size=11, max_size=11),
    min_keep=st.integers(0, 4),
    count=st.integers(0, 11),
)
@settings(deadline=None)
def test_global_equals_a_slow_greedy_loop(scores: list[int], min_keep: int, count: int) -> None:
    groups = WeightGroups(linear_stack(1, 3, 2, 1))
    values = torch.tensor(scores, dtype=torch.float32)
    left = list(range(11))
    layer = groups.layer.tolist()
    for _ in range(count):
        free = [u for u in left if sum(layer[v] == layer[u] for v in left) > min(min_keep, [3, 6, 2][layer[u]])]
        if not free:
            with pytest.raises(InputError, match="at most"):
                Global(min_keep)(values, groups, count / 11)
            return
        left.remove(min(free, key=lambda u: (scores[u], u)))
    keep = Global(min_keep)(values, groups, count / 11)
    assert torch.nonzero(keep)[:, 0].tolist() == left


@given(
    scores=st.lists(st.sampled_from([-math.inf, -1.0, 0.0, 1.0, 2.0]), min_size=11, max_size=11),
    scale=st.tuples(*[st.sampled_from([0.3, 1.0, 1.5, 4.0])] * 3),
    min_keep=st.integers(0, 3),
    shuffle=st.booleans(),
    count=st.integers(0, 11),
)
@settings(deadline=None)
def test_spread_equals_a_slow_order(
    scores: list[float], scale: tuple[float, ...], min_keep: int, shuffle: bool, count: int
) -> None:
    groups = WeightGroups(linear_stack(1, 3, 2, 1))
    if shuffle:  # units of a layer need not stand together
        groups.layer = groups.layer[torch.randperm(11, generator=torch.Generator().manual_seed(1))]
        groups.layer_counts = lambda units: torch.bincount(groups.layer[units], minlength=3)  # type: ignore[method-assign]
    values = torch.tensor(scores)
    plan = Spread(values, groups, torch.tensor(scale, dtype=torch.float64), min_keep)
    layer = groups.layer.tolist()
    leaving = []
    for i in range(3):
        members = sorted((u for u in range(11) if layer[u] == i), key=lambda u: (scores[u], u))
        live = sum(scores[u] > -math.inf for u in members)
        for place, unit in enumerate(members[: len(members) - min(live, min_keep)]):
            gone = scores[unit] == -math.inf
            eps = (1.0 - (place + 0.5) / len(members)) / scale[i]
            leaving.append((-math.inf if gone else -round(eps, 9), i, place, unit))
    leaving.sort()
    assert plan.most == len(leaving)
    count = max(min(count, plan.most), sum(key[0] == -math.inf for key in leaving))
    eps_of = {unit: eps for eps, *_, unit in leaving}
    removed = torch.nonzero(~plan.keep(count))[:, 0].tolist()
    # By eps, not by unit: layers that lose a unit at the same eps up to rounding may do so in either order.
    assert sorted(eps_of[unit] for unit in removed) == [eps for eps, *_ in leaving[:count]]
    for i in range(3):
        assert [unit for *_, j, _, unit in leaving if j == i][: sum(layer[u] == i for u in removed)] == sorted(
            (u for u in removed if layer[u] == i), key=lambda u: (scores[u], u)
        )


@given(data=st.data())
@settings(deadline=None)
def test_rows_take_the_same_share_of_every_row(data: st.DataObject) -> None:
    groups = WeightGroups(linear_stack(8, 4, 8))
    scores = torch.tensor(data.draw(st.lists(st.integers(0, 3), min_size=64, max_size=64)), dtype=torch.float32)
    keep = Rows(0)(scores, groups, 0.5)
    for own, kept in ((scores[:32].view(4, 8), keep[:32].view(4, 8)), (scores[32:].view(8, 4), keep[32:].view(8, 4))):
        expected = torch.ones_like(kept)
        expected.scatter_(1, torch.sort(own, dim=1, stable=True).indices[:, : own.shape[1] // 2], False)
        assert torch.equal(kept, expected)


def test_rows_let_go_first_what_is_gone_already() -> None:
    groups = WeightGroups(linear_stack(8, 4))
    scores = torch.rand(32, generator=torch.Generator().manual_seed(0))
    scores[:6] = -torch.inf  # three quarters of the first row
    assert Rows(0)(scores, groups, 6 / 32).tolist() == [False] * 6 + [True] * 26


def test_spread_over_layers_of_very_different_sizes() -> None:
    groups = WeightGroups(nn.Sequential(nn.Linear(10, 10, bias=False), nn.Linear(3, 1, bias=False)))
    plan = Spread(torch.rand(103), groups, torch.tensor([1.0, 1.15], dtype=torch.float64), 0)
    # The small layer loses its first weight at eps = (1 - 0.5 / 3) / 1.15 = 0.7246: after 28 of the large one, which
    # lost place r at 1 - (r + 0.5) / 100; the others at 0.4348 and 0.1449, after 57 and 86.
    assert [plan.counts(count)[1] for count in (28, 29, 58, 59, 88, 89)] == [0, 1, 1, 2, 2, 3]
    assert all(sum(plan.counts(count)) == count for count in range(104))


def test_rows_and_patterns_are_of_single_weights() -> None:
    groups = WeightGroups(linear_stack(8, 4))
    groups.granularity = "channel"  # type: ignore[misc]
    for rule in (Rows(), Pattern()):
        with pytest.raises(InputError, match="single weights, found granularity 'channel'"):
            rule(torch.zeros(32), groups, 0.5)


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.8])
def test_uniform_takes_the_same_share_of_every_layer(share: float) -> None:
    groups = WeightGroups(linear_stack(10, 10, 5, 2))
    scores = torch.rand(len(groups), generator=torch.Generator().manual_seed(0))
    keep = Uniform()(scores, groups, share)
    for layer, size in enumerate((100, 50, 10)):
        own = groups.layer == layer
        assert int((~keep[own]).sum()) == round(share * size)
        if share > 0.0:
            assert scores[own & ~keep].max() <= scores[own & keep].min()


# Erdos-Renyi-Kernel --------------------------------------------------------------------------


def test_erk_densities_by_hand() -> None:
    net = nn.Sequential(nn.Conv2d(2, 8, 5, bias=False), nn.Conv2d(8, 16, 3, bias=False), nn.Linear(40, 10, bias=False))
    groups = WeightGroups(net)
    raw = [(8 + 2 + 5 + 5) / 400, (16 + 8 + 3 + 3) / 1152, (10 + 40) / 400]
    np.testing.assert_allclose(erk_scale(groups), raw)
    sizes = [400, 1152, 400]
    for density in (0.1, 0.3, 0.6):
        # eps by the published loop: layers whose density would pass 1 are dense, the rest share what is left.
        dense: set[int] = set()
        while True:
            rest = density * sum(sizes) - sum(sizes[i] for i in dense)
            eps = rest / sum(raw[i] * sizes[i] for i in range(3) if i not in dense)
            over = {i for i in range(3) if i not in dense and eps * raw[i] > 1.0}
            if not over:
                break
            dense |= over
        expected = [1.0 if i in dense else eps * raw[i] for i in range(3)]
        scores = torch.rand(1952, generator=torch.Generator().manual_seed(0))
        keep = Erk()(scores, groups, round((1 - density) * 1952) / 1952)
        for i in range(3):
            own = groups.layer == i
            assert int(keep[own].sum()) == pytest.approx(expected[i] * sizes[i], abs=1.5)
    assert len(dense) > 0  # the cap was met


# PQ index ------------------------------------------------------------------------------------


def test_pq_index_by_hand() -> None:
    # |w| = (1, 4, 0, 0): norm_1/2 = (1 + 2)^2 = 9, norm_1 = 5, d^(1 - 2) = 1/4; I = 1 - 9/20.
    values = torch.tensor([1.0, -4.0, 0.0, 0.0])
    assert pq_index(values) == pytest.approx(0.55)
    # p q / (q - p) = 1 and q / (q - p) = 2, so m = 4 (1 + eta)^-2 0.45 = 1.8 at eta = 0: floor(4 (1 - 0.45)) = 2 go.
    assert pq_removed(values) == 2
    assert pq_removed(values, eta=0.5) == math.floor(4 * (1 - 0.45 / 2.25))
    assert pq_removed(values, gamma=0.5) == 1
    assert pq_removed(values, beta=0.25) == 1
    # Other exponents: p = 1, q = 2: d^(1/2 - 1) 5 / sqrt(17); m / d = (1 - I)^2 (1 + eta)^-2.
    one_minus = 5.0 / (2.0 * math.sqrt(17.0))
    assert pq_index(values, 1.0, 2.0) == pytest.approx(1.0 - one_minus)
    assert pq_removed(values, p=1.0, q=2.0) == math.floor(4 * (1 - one_minus**2))


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_pq_index_knows_no_scale_and_is_0_for_equal_magnitudes(scale: float) -> None:
    assert pq_index(torch.full((7,), scale)) == pytest.approx(0.0, abs=1e-12)
    assert pq_removed(torch.full((7,), scale)) == 0
    spread = torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64)
    assert pq_index(spread * scale) == pytest.approx(pq_index(spread))


def test_pq_of_nothing_removes_nothing() -> None:
    assert pq_removed(torch.zeros(5)) == pq_removed(torch.zeros(0)) == 0


def test_pq_removes_what_the_formula_says_and_stops_at_its_maximum() -> None:
    net = linear_stack(20, 15, 4)
    weights = Layout.flatten(net) ** 3
    rule = pruner("pq-index", max_ratio=0.6)
    groups = rule.groups(net)
    (mask,) = rule.masks(groups, weights, [0.1])
    first = pq_removed(weights)
    assert groups.weights - mask.kept == first == pq_removed(weights.abs())
    assert torch.equal(mask.units, pruner("magnitude").masks(groups, weights, [first / 360])[0].units)
    (second,) = rule.masks(groups, weights, [0.1], previous=[mask])
    expected = min(first + pq_removed(weights[mask.units]), 216)
    assert groups.weights - second.kept == expected > first
    for _ in range(20):
        (second,) = rule.masks(groups, weights, [0.0], previous=[second])
    assert second.ratio <= 0.6
    per_layer = pruner("pq-index", within="layer").masks(groups, weights, [0.0])[0]
    for name, share in per_layer.layer_ratios.items():
        part = groups.layout.split(weights)[name].reshape(-1)
        assert share == pytest.approx(pq_removed(part) / len(part))


def test_pq_leaves_something_in_every_layer() -> None:
    net = linear_stack(30, 3, 1)
    weights = torch.cat([torch.linspace(1, 2, 90) ** 20, torch.full((3,), 1e-4)])
    rule = pruner("pq-index", min_keep=2)
    (mask,) = rule.masks(rule.groups(net), weights, [0.0])
    assert mask.units[90:].sum() == 2


# Rate and distortion -------------------------------------------------------------------------


@given(data=st.data())
@settings(deadline=None)
def test_dynamic_programme_equals_enumeration(data: st.DataObject) -> None:
    layers = data.draw(st.integers(1, 4))
    costs, sizes = [], []
    for _ in range(layers):
        options = data.draw(st.integers(1, 4))
        costs.append(np.array(data.draw(st.lists(st.integers(0, 9), min_size=options, max_size=options)), dtype=float))
        sizes.append(np.array(data.draw(st.lists(st.integers(0, 7), min_size=options, max_size=options))))
    budget = data.draw(st.integers(0, 20))
    best = min(
        (
            sum(c[k] for c, k in zip(costs, choice, strict=True))
            for choice in itertools.product(*(range(len(c)) for c in costs))
            if sum(s[k] for s, k in zip(sizes, choice, strict=True)) >= budget
        ),
        default=None,
    )
    if best is None:
        with pytest.raises(InputError, match="less than the budget"):
            least_distortion(costs, sizes, budget)
        return
    chosen = least_distortion(costs, sizes, budget)
    assert sum(s[k] for s, k in zip(sizes, chosen, strict=True)) >= budget
    assert sum(c[k] for c, k in zip(costs, chosen, strict=True)) == best


def change(net: nn.Module, weights: Tensor, keep: Tensor, inputs: Tensor) -> float:
    outputs = []
    for flat in (weights, weights * keep):
        matrices = list(Layout.of(net).split(flat).values())
        out = inputs.double()
        for matrix in matrices:
            out = out @ matrix.double().T
        outputs.append(out)
    return float((outputs[0] - outputs[1]).square().mean())


def test_of_equal_costs_the_first_option_wins() -> None:
    ones, twos = np.ones(3), np.full(3, 2)
    assert least_distortion([ones, ones], [twos, twos], 4) == [0, 0]


@pytest.mark.parametrize("count", [1, 4, 7, 9])
def test_rd_dp_equals_enumeration_over_layers(count: int) -> None:
    net = linear_stack(2, 3, 2, 1)
    weights = Layout.flatten(net)
    inputs = torch.randn(6, 2, generator=torch.Generator().manual_seed(2))
    groups = WeightGroups(net)
    orders = [torch.sort(weights[e.where].abs()).indices + e.start for e in groups.layout.layers]

    def pruned(removed: tuple[int, ...]) -> Tensor:
        keep = torch.ones(len(weights), dtype=torch.bool)
        for order, number in zip(orders, removed, strict=True):
            keep[order[:number]] = False
        return keep

    def cost(removed: tuple[int, ...]) -> float:
        alone = [tuple(n if i == j else 0 for j in range(3)) for i, n in enumerate(removed)]
        return sum(change(net, weights, pruned(only), inputs) for only in alone)

    splits = [r for r in itertools.product(range(6), range(6), range(2)) if sum(r) == count]
    best = min(splits, key=cost)
    info = Evidence(net, weights, [(inputs, torch.zeros(6), 1.0)])
    rule = RateDistortion(levels=20, buckets=14)
    keep = rule.plan(weights.abs(), groups, info).keep(count)
    assert int((~keep).sum()) == count
    removed = tuple(int((~keep[groups.layer == layer]).sum()) for layer in range(3))
    assert cost(removed) == pytest.approx(cost(best), rel=1e-4)


def test_rd_dp_does_better_than_a_uniform_ratio_where_layers_differ() -> None:
    net = linear_stack(8, 30, 30, 4)
    weights = Layout.flatten(net)
    weights[240:1140] *= 1 + torch.linspace(0, 3, 900)  # a layer that can lose much beside two that cannot
    inputs = torch.randn(40, 8, generator=torch.Generator().manual_seed(2))
    info = Evidence(net, weights, [(inputs, torch.zeros(40), 1.0)])
    errors = {}
    for name in ("rd-dp", "uniform"):
        rule = pruner(name)
        (mask,) = rule.masks(rule.groups(net), weights, [0.4], evidence=info)
        errors[name] = change(net, weights, mask.keep, inputs)
    assert errors["rd-dp"] < errors["uniform"]


def test_rd_dp_asks_each_device_for_one_curve_only() -> None:
    net = linear_stack(4, 6, 3)
    info = Evidence(net, Layout.flatten(net), [(torch.randn(5, 4), torch.zeros(5), 1.0)])
    rule = pruner("rd-dp", levels=4)
    rule.masks(rule.groups(net), Layout.flatten(net), [0.1, 0.3, 0.5, 0.7], evidence=info)
    (spent,) = info.charges
    assert spent.forward_samples == 5 * (2 * 4 + 1)  # 4 points for each of 2 layers, and the dense outputs
    assert spent.backward_samples == 0
    assert spent.upload_bits == 32 * 8


# Patterns ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("m", "ratio", "kept"), [(4, 0.5, 2), (4, 0.4, 2), (4, 0.26, 2), (4, 0.25, 3), (8, 0.7, 2)])
def test_patterns_keep_n_of_m(m: int, ratio: float, kept: int) -> None:
    net = nn.Sequential(nn.Linear(16, 5, bias=False), nn.Conv2d(8, 3, 2, bias=False))
    rule = pruner("n:m", m=m)
    groups = rule.groups(net)
    weights = Layout.flatten(net)
    (mask,) = rule.masks(groups, weights, [ratio])
    linear = mask.units[:80].view(-1, m)
    magnitudes = weights[:80].abs().view(-1, m)
    conv = mask.units[80:].view(3, 8, 2, 2).permute(0, 2, 3, 1).reshape(-1, m)
    conv_magnitudes = weights[80:].abs().view(3, 8, 2, 2).permute(0, 2, 3, 1).reshape(-1, m)
    for keep, size in ((linear, magnitudes), (conv, conv_magnitudes)):
        assert (keep.sum(dim=1) == kept).all()
        assert (size.masked_fill(~keep, torch.inf).amin(dim=1) >= size.masked_fill(keep, 0.0).amax(dim=1)).all()
    assert mask.ratio == 1 - kept / m


def test_short_rows_and_ends_of_rows() -> None:
    net = nn.Sequential(nn.Linear(6, 2, bias=False), nn.Linear(2, 5, bias=False), nn.Linear(1, 1, bias=False))
    weights = torch.arange(1.0, 24.0)
    rule = pruner("n:m")
    (mask,) = rule.masks(rule.groups(net), weights, [11 / 23])
    # Rows of 6: a block of 4 loses 2, the end of 2 loses 1. Rows of 2 stand end to end: 4, 4, 2. One weight stays.
    assert mask.units.int().tolist() == [0, 0, 1, 1, 0, 1] * 2 + [0, 0, 1, 1] * 2 + [0, 1] + [1]
    with pytest.raises(InputError, match="cannot be reached"):
        rule.masks(rule.groups(net), weights, [0.99])


# Candidates ----------------------------------------------------------------------------------


def test_candidates_of_one_density_chosen_by_loss() -> None:
    net = linear_stack(6, 8, 8, 3)
    weights = Layout.flatten(net)
    groups = WeightGroups(net)
    draw = torch.Generator().manual_seed(0)
    batch = (torch.randn(30, 6, generator=draw), torch.randint(0, 3, (30,), generator=draw), 1.0)
    info = Evidence(net, weights, [batch], nn.functional.cross_entropy)
    rule = Candidates(count=6, spread=1.0, seed=5)
    asked = rule.ask(weights.abs(), groups, 70)
    assert [int((~units).sum()) for units in asked] == [70] * 6
    assert len({tuple(groups.layer_counts(units).tolist()) for units in asked}) == 6
    assert torch.equal(asked[0], Uniform()(weights.abs(), groups, 70 / 136))
    losses = [info.mean_loss(groups.expand(units)) for units in asked]
    kept = rule.plan(weights.abs(), groups, info).keep(70)
    assert torch.equal(kept, asked[int(np.argmin(losses))])
    assert rule.tell([2.0, float("nan"), 1.0, 1.0, 5.0, 5.0]) == 2
    with pytest.raises(InputError, match="expected 6 losses, found 1"):
        rule.tell([1.0])


def test_candidates_measure_batch_normalisation_anew() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    weights = Layout.flatten(net)
    inputs = 5.0 + 3.0 * torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    labels = torch.randint(0, 2, (50,), generator=torch.Generator().manual_seed(1))
    cross_entropy = nn.functional.cross_entropy
    info = Evidence(net, weights, [(inputs[:20], labels[:20], 2.0), (inputs[20:], labels[20:], 3.0)], cross_entropy)
    fresh = info.mean_loss(refresh=True)
    hidden = [net[0](part) for part in (inputs[:20], inputs[20:])]
    mean = 0.4 * hidden[0].mean(0) + 0.6 * hidden[1].mean(0)
    var = 0.4 * hidden[0].var(0) + 0.6 * hidden[1].var(0)
    normal = [(h - mean) / (var + net[1].eps).sqrt() for h in hidden]
    expected = 0.4 * cross_entropy(net[2](normal[0]), labels[:20]) + 0.6 * cross_entropy(net[2](normal[1]), labels[20:])
    assert fresh == pytest.approx(float(expected.detach()), rel=1e-5)
    assert info.mean_loss() != pytest.approx(fresh, rel=1e-3)
    assert torch.equal(net[1].running_mean, torch.zeros(4))
    assert net[1].momentum == 0.1
    # Twice forward for the refreshed loss and once for the other; 8 statistics and 2 losses of 32 bits.
    assert [charge.forward_samples for charge in info.charges] == [60, 90]
    assert [charge.upload_bits for charge in info.charges] == [320, 320]


# Bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: Global(-1), "min_keep"),
        (lambda: Erk(0.5), "min_keep"),
        (lambda: Uniform(1.5), "min_keep"),
        (lambda: Rows(True), "min_keep"),
        (lambda: Pattern(1), "m must be"),
        (lambda: Pattern(2.0), "m must be"),
        (lambda: PQ(p=1.0), "0 < p < q"),
        (lambda: PQ(eta=-0.1), "eta >= 0"),
        (lambda: PQ(gamma=float("nan")), "gamma must be a finite"),
        (lambda: PQ(beta=1.0), "beta"),
        (lambda: PQ(max_ratio=1.0), "max_ratio"),
        (lambda: PQ(within="layers"), "did you mean 'layer'"),
        (lambda: RateDistortion(levels=0), "levels"),
        (lambda: RateDistortion(buckets=True), "buckets"),
        (lambda: Candidates(count=0), "count"),
        (lambda: Candidates(spread=-1.0), "spread"),
        (lambda: Candidates(seed=-1), "seed"),
    ],
)
def test_bad_options(make: object, match: str) -> None:
    with pytest.raises(InputError, match=match):
        make()  # type: ignore[operator]


def test_bad_scores_name_unit_and_layer() -> None:
    groups = WeightGroups(linear_stack(2, 2, 1))
    for bad in (float("nan"), float("inf")):
        with pytest.raises(InputError, match=r"unit 4 of layer '1\.weight'"):
            Global()(torch.tensor([1.0, 2.0, 3.0, 4.0, bad, 0.0]), groups, 0.5)
    with pytest.raises(InputError, match="shape"):
        Global()(torch.zeros(5), groups, 0.5)
    with pytest.raises(InputError, match="evidence 'outputs'"):
        RateDistortion()(torch.zeros(6), groups, 0.5)

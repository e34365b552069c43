"""What every registered pruner must do; a new one is held to it by being registered."""

from __future__ import annotations

import functools
import importlib.util
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor, nn

from jointopt.errors import InputError
from jointopt.pruning import PRUNERS, Evidence, Groups, Layout, Mask, Pruner, prune_rank, pruned_count, pruner, register
from jointopt.pruning.allocate import Allocator, Global, Plan
from jointopt.pruning.pruner import _FACTORIES
from jointopt.pruning.scores import Magnitude

RATIOS = (0.0, 0.05, 0.3, 0.5, 0.5, 0.73)
SAMPLES = (5, 3)


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.second = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.second(torch.relu(self.norm(self.first(x)))))


def _mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(49, 12), nn.ReLU(), nn.Linear(12, 9), nn.ReLU(), nn.Linear(9, 4))


def _cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8, 4),
    )


def _residual() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 5, 3),
        nn.ReLU(),
        Residual(5),
        Residual(5),
        Residual(5),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(5, 4),
    )


NETS = {"mlp": _mlp, "cnn": _cnn, "residual": _residual}


@functools.cache
def network(name: str) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return NETS[name]().train()


@functools.cache
def groups_of(granularity: str, net: str) -> Groups:
    maker = next(p for p in map(pruner, PRUNERS) if p.granularity == granularity)
    return maker.groups(network(net), torch.zeros(1, 1, 7, 7))


def evidence_of(net: str) -> Evidence:
    draw = torch.Generator().manual_seed(8)
    weights = Layout.flatten(network(net))
    batches = [
        (torch.randn(n, 1, 7, 7, generator=draw), torch.randint(0, 4, (n,), generator=draw), float(n)) for n in SAMPLES
    ]
    explorers = weights + 0.1 * torch.randn(2, len(weights), generator=draw)
    return Evidence(
        network(net),
        weights,
        batches,
        nn.functional.cross_entropy,
        initial=0.5 * weights,
        explorers=explorers,
        explorer_samples=[7, 9],
    )


def cut(rule: Pruner, net: str, ratios: tuple[float, ...] = RATIOS, *, seed: int = 0, **more: object) -> list[Mask]:
    return rule.masks(
        groups_of(rule.granularity, net),
        Layout.flatten(network(net)),
        ratios,
        evidence=evidence_of(net),
        generator=torch.Generator().manual_seed(seed),
        **more,  # type: ignore[arg-type]
    )


def cut_if_reachable(rule: Pruner, net: str, ratio: float) -> Mask | None:
    try:
        return cut(rule, net, (ratio,))[0]
    except InputError as error:
        message = str(error)
    if "cannot be reached, the largest is" not in message:
        pytest.fail(message)
    return None


def reachable(rule: Pruner, net: str) -> tuple[float, ...]:
    """The ratios that the pruner must reach; channels and blocks cannot be removed to any extent."""
    if rule.granularity == "weight":
        return RATIOS
    return tuple(ratio for ratio in RATIOS if cut_if_reachable(rule, net, ratio) is not None)


# The contract: each function raises AssertionError for a pruner that breaks it ---------------


def check_ratio_is_met_by_less_than_one_unit(rule: Pruner, net: str) -> None:
    ratios = reachable(rule, net)
    groups = groups_of(rule.granularity, net)
    for ratio, mask in zip(ratios, cut(rule, net, ratios), strict=True):
        removed = groups.weights - int((mask.keep & groups.prunable).sum())
        if rule.chooses_ratio:
            assert mask.ratio <= getattr(rule.allocate, "max_ratio", 1.0)
            continue
        assert mask.ratio >= ratio
        assert removed < ratio * groups.weights + rule.allocate.step(groups)
        if ratio == 0.0:
            assert removed == 0


def check_cutting_again_changes_nothing(rule: Pruner, net: str) -> None:
    if rule.chooses_ratio:
        return
    ratios = reachable(rule, net)
    masks = cut(rule, net, ratios)
    for mask, again in zip(masks, cut(rule, net, ratios, seed=1, previous=masks), strict=True):
        assert torch.equal(mask.units, again.units)


def check_larger_ratios_remove_more(rule: Pruner, net: str) -> None:
    if not rule.nested:
        return
    masks = cut(rule, net, reachable(rule, net))
    for small, large in itertools.pairwise(masks):
        assert not bool((large.units & ~small.units).any())


def check_what_is_gone_stays_gone(rule: Pruner, net: str) -> None:
    if rule.granularity != "weight":
        return
    previous = pruner("random").masks(
        groups_of("weight", net), Layout.flatten(network(net)), [0.2], generator=torch.Generator().manual_seed(5)
    )
    (mask,) = cut(rule, net, (0.5,), previous=previous)
    assert not bool((mask.units & ~previous[0].units).any())
    if not rule.chooses_ratio:
        assert mask.ratio >= 0.5


def check_no_layer_is_emptied(rule: Pruner, net: str) -> None:
    if rule.granularity != "weight":
        return
    for ratio in (0.9, 0.99):
        mask = cut_if_reachable(rule, net, ratio)
        if mask is not None:
            assert max(mask.layer_ratios.values()) < 1.0
    if not rule.chooses_ratio:
        with pytest.raises(InputError, match=r"cannot be reached.*layer '.*' keeps"):
            cut(rule, net, (1.0 - 1e-9,))


def check_same_seed_same_mask(rule: Pruner, net: str) -> None:
    ratios = reachable(rule, net)
    state = torch.get_rng_state()
    for one, two in zip(cut(rule, net, ratios, seed=4), cut(rule, net, ratios, seed=4), strict=True):
        assert torch.equal(one.units, two.units)
    assert torch.equal(torch.get_rng_state(), state)


def check_equal_ratios_share_a_mask(rule: Pruner, net: str) -> None:
    masks = cut(rule, net, (0.1, 0.2, 0.1))
    assert masks[0] is masks[2]
    if rule.nested and not rule.chooses_ratio:
        alone = [cut(rule, net, (ratio,))[0] for ratio in (0.1, 0.2)]
        assert torch.equal(alone[0].units, masks[0].units)
        assert torch.equal(alone[1].units, masks[1].units)


def check_needs_are_honest(rule: Pruner, net: str) -> None:
    asked: set[str] = set()

    class Spy(Evidence):
        def _need(self, need: str) -> None:
            asked.add(need)
            super()._need(need)

        def granted(self, needs: object, who: str = "") -> Evidence:
            view = super().granted(needs, who)  # type: ignore[arg-type]
            view.__class__ = Spy
            return view

    evidence = evidence_of(net)
    evidence.__class__ = Spy
    groups = groups_of(rule.granularity, net)
    weights = Layout.flatten(network(net))
    generator = torch.Generator().manual_seed(0)
    rule.masks(groups, weights, [0.1], evidence=evidence, generator=generator)
    assert asked == rule.mask_needs
    spent = evidence.charges
    for device, samples in enumerate(SAMPLES):
        if rule.mask_needs & {"inputs", "outputs", "gradient", "gradient_rms"}:
            assert spent[device].forward_samples >= samples
            assert spent[device].upload_bits > 0
        if rule.mask_needs & {"gradient", "gradient_rms"}:
            assert spent[device].backward_samples >= samples
            assert spent[device].upload_bits >= 32 * groups.layout.size
        if "explorers" in rule.mask_needs:
            assert spent[device].upload_bits >= 32 * groups.layout.size
            assert spent[device].training_samples >= [7, 9][device]
        if not rule.mask_needs:
            assert spent[device].training_samples == spent[device].upload_bits == 0.0
    if rule.mask_needs:
        with pytest.raises(InputError, match="needs evidence"):
            rule.masks(groups, weights, [0.1], generator=generator)


def check_ties_are_settled(rule: Pruner, net: str) -> None:
    groups = groups_of(rule.granularity, net)
    weights = torch.full((groups.layout.size,), 0.25)
    masks = [
        rule.masks(groups, weights, [0.3], evidence=evidence_of(net), generator=torch.Generator().manual_seed(2))[0]
        for _ in range(2)
    ]
    assert torch.equal(masks[0].units, masks[1].units)
    if not rule.chooses_ratio:
        assert masks[0].ratio >= 0.3
        assert (masks[0].ratio - 0.3) * groups.weights < rule.allocate.step(groups)


def check_curve_rises_from_zero(rule: Pruner, net: str) -> None:
    if rule.chooses_ratio:
        return
    curve = rule.curve(
        groups_of(rule.granularity, net),
        Layout.flatten(network(net)),
        reachable(rule, net),
        evidence=evidence_of(net),
        generator=torch.Generator().manual_seed(0),
    )
    assert curve.ratios[0] == curve.errors[0] == 0.0
    assert (curve.ratios[1:] > curve.ratios[:-1]).all()
    assert (curve.errors <= 1.0).all()
    if rule.nested:
        assert (curve.errors[1:] >= curve.errors[:-1]).all()
        assert len(curve.errors) < 2 or curve.errors[-1] > 0.0


def check_the_network_is_left_alone(rule: Pruner, net: str) -> None:
    before = {name: value.clone() for name, value in network(net).state_dict().items()}
    cut(rule, net, (0.1,))
    for name, value in network(net).state_dict().items():
        assert torch.equal(value, before[name])
    assert all(part.training for part in network(net).modules())
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in network(net).modules())


CONTRACT = [value for name, value in dict(globals()).items() if name.startswith("check_")]


def nets_for(rule: Pruner) -> list[str]:
    return ["residual"] if rule.granularity == "layer" else ["mlp", "cnn"]


def _needs_extra(name: str) -> bool:
    return pruner(name).granularity == "channel" and importlib.util.find_spec("torch_pruning") is None


@pytest.mark.parametrize("check", CONTRACT)
@pytest.mark.parametrize("name", sorted(PRUNERS))
def test_contract(name: str, check: object) -> None:
    if _needs_extra(name):
        pytest.skip("channels need torch-pruning")
    rule = pruner(name)
    for net in nets_for(rule):
        check(rule, net)  # type: ignore[operator]


# A plug-in ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sloppy:
    """A score that looks at more than it declares."""

    needs: frozenset[str] = field(default=frozenset(), init=False)

    def __call__(
        self, groups: Groups, weights: Tensor, evidence: Evidence | None, generator: torch.Generator | None, /
    ) -> Tensor:
        assert evidence is not None
        return groups.reduce(evidence.gradient.abs())


class Coarse(Allocator):
    """An allocation that removes units by tens and does not say so."""

    def plan(self, scores: Tensor, groups: Groups, evidence: Evidence | None = None) -> Plan:
        order = Global(1).plan(scores, groups)

        class Tens(Plan):
            most = order.most

            def keep(self, count: int) -> Tensor:
                return order.keep(min(-(-count // 10) * 10, order.most))

        return Tens()


@pytest.fixture
def plug_in() -> Iterator[str]:
    register("plug-in", lambda power=3.0: Pruner("plug-in", Magnitude(power)))
    try:
        yield "plug-in"
    finally:
        _FACTORIES.pop("plug-in")


@pytest.mark.parametrize("check", CONTRACT)
def test_a_plug_in_is_held_to_the_contract(plug_in: str, check: object) -> None:
    assert plug_in in PRUNERS
    check(pruner(plug_in, power=0.5), "cnn")  # type: ignore[operator]


def test_the_contract_finds_what_is_broken() -> None:
    with pytest.raises(InputError, match="'gradient' was not declared"):
        check_needs_are_honest(Pruner("sloppy", Sloppy()), "mlp")
    with pytest.raises(AssertionError):
        check_ratio_is_met_by_less_than_one_unit(Pruner("coarse", Magnitude(), Coarse()), "mlp")
    careless = Pruner("careless", Magnitude(), Global(0))
    with pytest.raises(AssertionError):
        check_no_layer_is_emptied(careless, "mlp")


@pytest.mark.parametrize("ratio", [0.0, 0.001, 0.31, 0.5, 0.9])
def test_the_default_is_global_magnitude(ratio: float) -> None:
    groups = groups_of("weight", "cnn")
    weights = Layout.flatten(network("cnn")).round(decimals=2)  # many ties
    for min_keep in (0, 1) if ratio < 0.9 else (0,):
        (mask,) = pruner("magnitude", min_keep=min_keep).masks(groups, weights, [ratio])
        count = mask.groups.weights - mask.kept
        expected = prune_rank(weights[groups.prunable]) >= count
        assert torch.equal(mask.units, expected)
        assert pruned_count(mask.ratio, groups.weights) == count


@pytest.mark.parametrize("granularity", ["channel", "layer"])
@pytest.mark.parametrize(
    "name", ["magnitude", "random", "uniform", "erk", "snip", "synflow", "taylor", "exploration", "rd-dp", "fedtiny"]
)
def test_scores_and_allocations_serve_every_granularity(name: str, granularity: str) -> None:
    if importlib.util.find_spec("torch_pruning") is None:
        pytest.skip("channels need torch-pruning")
    rule = pruner(name).with_(granularity=granularity)
    net = "residual" if granularity == "layer" else "cnn"
    groups = groups_of(granularity, net)
    (mask,) = cut(rule, net, (0.2,))
    assert mask.ratio >= 0.2
    # Removing the units one by one in any order would need no more than the largest of them beyond the target.
    assert (mask.ratio - 0.2) * groups.weights < int(groups.sizes().max())
    assert bool((groups.layer_counts(mask.units) >= groups.at_least).all())
    if rule.nested:
        (more,) = cut(rule, net, (0.4,))
        assert not bool((more.units & ~mask.units).any())


def test_scores_compared_within_rows_are_of_single_weights() -> None:
    if importlib.util.find_spec("torch_pruning") is None:
        pytest.skip("channels need torch-pruning")
    for name in ("wanda", "gblm", "n:m"):
        with pytest.raises(InputError, match="single weights"):
            cut(pruner(name).with_(granularity="channel"), "cnn", (0.2,))

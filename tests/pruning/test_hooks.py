"""Hooks: rewinding, drawing anew, growing back, guidance; and how their state is kept."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from jointopt.errors import InputError
from jointopt.pruning import Evidence, Hook, HookContext, Mask, WeightGroups, pruner
from jointopt.pruning.growth import ProgressiveGrowth, Regrow, progressive_count, swap
from jointopt.pruning.hooks import run_cut, run_gradient, run_round
from jointopt.pruning.recovery import Guidance, Reinit, Rewind, fresh_weights, with_reinit

NET = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3))
GROUPS = WeightGroups(NET)
SIZE = GROUPS.layout.size


def weights(seed: int = 0) -> Tensor:
    return torch.randn(SIZE, generator=torch.Generator().manual_seed(seed))


def mask(ratio: float = 0.5, seed: int = 0) -> Mask:
    return pruner("magnitude").masks(GROUPS, weights(seed), [ratio])[0]


def evidence(at: Tensor, **more: object) -> Evidence:
    draw = torch.Generator().manual_seed(9)
    batches = [
        (torch.randn(n, 5, generator=draw), torch.randint(0, 3, (n,), generator=draw), share)
        for n, share in ((6, 1.0), (3, 1.0))
    ]
    return Evidence(NET, at, batches, nn.functional.cross_entropy, **more)  # type: ignore[arg-type]


# Rewinding ---------------------------------------------------------------------------------


@pytest.mark.parametrize("to", [0, 2])
def test_rewinding_sets_weights_back_to_a_round(to: int) -> None:
    hook = Rewind(to)
    history = []
    server = weights()
    for round_ in range(1, 6):
        history.append(server.clone())  # after round_ - 1 rounds
        context = HookContext(round_, 5, server, new=mask())
        run_round([hook], context)
        if round_ in (2, 4):
            before = server.clone()
            run_cut([hook], context)
            assert torch.equal(server, history[to] if round_ > to else before)
        server += 1.0


def test_rewinding_resumes() -> None:
    hook, server = Rewind(0), weights()
    assert hook.state() == {}
    run_round([hook], HookContext(1, 5, server))
    other = Rewind(0)
    other.load({key: value.clone() for key, value in hook.state().items()})
    moved = server + 1.0
    run_round([other], HookContext(3, 5, moved))
    run_cut([other], HookContext(3, 5, moved, new=mask()))
    assert torch.equal(moved, weights())
    other.load({})
    assert other.state() == {}
    with pytest.raises(InputError, match="keys"):
        other.load({"weight": server})


# Drawing anew ------------------------------------------------------------------------------


def test_reinit_draws_weights_like_those_of_a_new_network() -> None:
    server = weights()
    before = {name: value.clone() for name, value in NET.state_dict().items()}
    state = torch.get_rng_state()
    context = HookContext(1, 5, server, new=mask(), generator=torch.Generator().manual_seed(1))
    new = run_cut([Reinit()], context)
    assert new is context.new
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in NET.state_dict().items())
    assert torch.equal(server, fresh_weights(NET, torch.Generator().manual_seed(1)))
    assert not torch.equal(server, fresh_weights(NET, torch.Generator().manual_seed(2)))
    for entry in GROUPS.layout.parameters:
        bound = 1 / math.sqrt(5 if entry.name.startswith("0") else 4)
        assert 0.3 * bound < server[entry.where].abs().max() <= bound
    with pytest.raises(InputError, match="Generator"):
        run_cut([Reinit()], HookContext(1, 5, server, new=mask()))


def test_reinit_refuses_what_it_cannot_draw() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(2))

    with pytest.raises(InputError, match=r"initialise '1\.scale'"):
        fresh_weights(nn.Sequential(nn.Linear(2, 2), Own()), torch.Generator())


def test_the_control_arm_cuts_the_same_masks() -> None:
    base = pruner("uniform")
    control = with_reinit(base)
    assert control.name == "reinit(uniform)"
    assert isinstance(control.hooks[-1], Reinit)
    assert torch.equal(control.masks(GROUPS, weights(), [0.4])[0].units, base.masks(GROUPS, weights(), [0.4])[0].units)
    named = pruner("reinit", base="uniform")
    assert torch.equal(named.masks(GROUPS, weights(), [0.4])[0].units, base.masks(GROUPS, weights(), [0.4])[0].units)
    with pytest.raises(InputError, match="did you mean 'uniform'"):
        pruner("reinit", base="unifrom")


# Growing back ------------------------------------------------------------------------------


def test_swap_by_hand() -> None:
    net = nn.Sequential(nn.Linear(6, 1, bias=False), nn.Linear(1, 2, bias=False))
    groups = WeightGroups(net)
    old = Mask(groups, torch.tensor([1, 1, 1, 0, 0, 0, 1, 0], dtype=torch.bool))
    server = torch.tensor([3.0, -1.0, 2.0, 9.0, 9.0, 9.0, 5.0, 7.0])
    gradient = torch.tensor([9.0, 9.0, 9.0, 0.1, -0.3, 0.2, 9.0, 9.0])
    new = swap(server, old, gradient, {"0.weight": 2, "1.weight": 2})
    # The first layer drops 1 and 2, and grows places 4 and 5; the second keeps its only weight.
    assert new.units.int().tolist() == [1, 0, 0, 0, 1, 1, 1, 0]
    assert server.tolist() == [3.0, -1.0, 2.0, 9.0, 0.0, 0.0, 5.0, 7.0]
    assert old.units.int().tolist() == [1, 1, 1, 0, 0, 0, 1, 0]


def test_regrow_swaps_a_cosine_share_and_keeps_the_ratio() -> None:
    server = weights()
    old = mask(0.5)
    info = evidence(server)
    context = HookContext(2, 9, server.clone(), old=None, new=old, evidence=info)
    new = run_cut([Regrow(0.6, end=6)], context)
    share = 0.3 * (1 + math.cos(math.pi * 2 / 6))
    assert new is not None
    for name, entry in ((e.name, e) for e in GROUPS.layout.layers):
        kept = int(old.keep[entry.where].sum())
        count = min(math.floor(share * kept), entry.size - kept, kept - 1)
        gone = old.keep[entry.where] & ~new.keep[entry.where]
        grown = new.keep[entry.where] & ~old.keep[entry.where]
        assert int(gone.sum()) == int(grown.sum()) == count > 0, name
        sizes, slopes = server[entry.where].abs(), info.gradient[entry.where].abs()
        assert sizes[gone].max() <= sizes[old.keep[entry.where] & ~gone].min()
        assert slopes[grown].min() >= slopes[~old.keep[entry.where] & ~grown].max()
        assert (context.weights[entry.where][grown] == 0.0).all()
    assert new.ratio == old.ratio
    assert info.charges[0].backward_samples == 6
    late = replace(context, round_=6, new=old)
    assert run_cut([Regrow(0.6, end=6)], late) is old


def test_progressive_count_formula() -> None:
    assert progressive_count(100, 0, 8) == 30
    assert progressive_count(100, 2, 8) == math.floor(15 * (1 + math.cos(math.pi / 4)))
    assert progressive_count(100, 4, 8) == 15
    assert progressive_count(100, 8, 8) == progressive_count(100, 9, 8) == 0


def test_progressive_growth_goes_from_the_last_layer_to_the_first() -> None:
    hook = ProgressiveGrowth(every=2, stop=20)
    server = weights()
    old = mask(0.5)
    changed = []
    for round_ in range(1, 9):
        info = evidence(server)
        context = HookContext(round_, 30, server.clone(), old=old, new=old, evidence=info)
        new = run_cut([hook], context)
        assert new is not None
        assert new.ratio == old.ratio
        names = [e.name for e in GROUPS.layout.layers if not torch.equal(new.keep[e.where], old.keep[e.where])]
        changed.append(names)
        if names:
            (entry,) = [e for e in GROUPS.layout.layers if e.name == names[0]]
            count = progressive_count(int(old.keep[entry.where].sum()), round_, 20)
            assert int((new.keep & ~old.keep).sum()) == count
            places = int((~old.keep[entry.where]).sum())
            assert info.charges[1].upload_bits == count * (32 + math.ceil(math.log2(places)))
        else:
            assert info.charges[0].forward_samples == 0
        if round_ == 4:
            other = ProgressiveGrowth(every=2, stop=20)
            other.load(hook.state())
            hook = other
    assert changed == [[], ["1.weight"], [], ["0.weight"], [], ["1.weight"], [], ["0.weight"]]


def test_progressive_growth_leaves_the_first_mask_and_the_last_rounds() -> None:
    old = mask(0.5)
    for round_, before in ((2, None), (2, Mask.dense(GROUPS)), (20, old)):
        context = HookContext(round_, 20, weights(), old=before, new=old, evidence=evidence(weights()))
        assert run_cut([ProgressiveGrowth()], context) is old


def test_growth_is_of_single_weights_with_evidence() -> None:
    old = mask(0.5)
    with pytest.raises(InputError, match="evidence 'gradient'"):
        run_cut([Regrow()], HookContext(1, 9, weights(), new=old))
    with pytest.raises(InputError, match="needs a mask"):
        run_cut([Regrow()], HookContext(1, 9, weights(), evidence=evidence(weights())))
    groups = WeightGroups(NET)
    groups.granularity = "channel"  # type: ignore[misc]
    with pytest.raises(InputError, match="found granularity 'channel'"):
        swap(weights(), Mask.dense(groups), weights(), {})


# Guidance ----------------------------------------------------------------------------------


def test_guidance_multiplies_gradients_by_the_drift_of_explorers() -> None:
    server = weights()
    explorers = torch.stack([server, server])
    explorers[0, :20] += torch.linspace(0.0, 2.0, 20)
    hook = Guidance()
    info = evidence(server, explorers=explorers)
    run_round([hook], HookContext(1, 5, server, evidence=info))
    # Half of the squared drift, scaled by its largest; parameters that nobody moved are held.
    expected = torch.zeros(SIZE)
    expected[:20] = torch.linspace(0.0, 1.0, 20) ** 2
    gradient = torch.full((SIZE,), 2.0)
    context = HookContext(1, 5, server)
    torch.testing.assert_close(run_gradient([hook], gradient, context), 2.0 * expected)
    assert info.charges[0].upload_bits == 32 * SIZE
    run_round([hook], HookContext(2, 5, server + 1.0))  # measured once
    other = Guidance()
    other.load(hook.state())
    assert torch.equal(run_gradient([other], gradient, context), run_gradient([hook], gradient, context))
    with pytest.raises(InputError, match="no round was started"):
        run_gradient([Guidance()], gradient, context)
    with pytest.raises(InputError, match="'explorers'"):
        run_round([Guidance()], HookContext(1, 5, server))


# The base ----------------------------------------------------------------------------------


def test_hooks_see_only_what_they_declare_and_run_in_order() -> None:
    class Nosy(Hook):
        def on_round(self, context: HookContext) -> None:
            assert context.evidence is not None
            _ = context.evidence.gradient

    with pytest.raises(InputError, match="'gradient' was not declared"):
        run_round([Nosy()], HookContext(1, 1, weights(), evidence=evidence(weights())))

    class Replace(Hook):
        def __init__(self, by: Mask) -> None:
            self.by = by
            self.seen: Mask | None = None

        def on_cut(self, context: HookContext) -> None:
            self.seen = context.new
            context.new = self.by

        def on_gradient(self, gradient: Tensor, context: HookContext) -> Tensor:
            return gradient * 2 + self.by.ratio

    first, second = Replace(mask(0.25)), Replace(mask(0.5))
    start = mask(0.1)
    context = HookContext(1, 1, weights(), new=start)
    assert run_cut([first, second], context) is second.by
    assert first.seen is start
    assert second.seen is first.by
    assert run_gradient([first, second], torch.ones(1), context).item() == (2 + 0.25) * 2 + second.by.ratio


def test_a_plain_hook_does_nothing() -> None:
    hook, server, start = Hook(), weights(), mask()
    context = HookContext(1, 1, server, new=start)
    run_round([hook], context)
    assert run_cut([hook], context) is start
    assert run_gradient([hook], server, context) is server
    assert hook.state() == {}
    hook.load({})
    with pytest.raises(InputError, match="keys"):
        hook.load({"a": server})


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: Rewind(-1), "to must be"),
        (lambda: Rewind(1.0), "to must be"),  # type: ignore[arg-type]
        (lambda: Regrow(1.5), "rate"),
        (lambda: Regrow(math.nan), "rate"),
        (lambda: Regrow(end=0), "end"),
        (lambda: ProgressiveGrowth(every=0), "every"),
        (lambda: ProgressiveGrowth(stop=True), "stop"),
    ],
)
def test_bad_options(make: object, match: str) -> None:
    with pytest.raises(InputError, match=match):
        make()  # type: ignore[operator]


def test_lottery_tickets_in_a_small_run() -> None:
    """Iterative pruning: densities fall geometrically, masks nest, weights go back to the initial ones."""
    rule = pruner("imp", every=2, rate=0.3)
    server, old, ratios = weights(), Mask.dense(GROUPS), []
    for round_ in range(1, 10):
        context = HookContext(round_, 9, server, old=old)
        run_round(rule.hooks, context)
        ratio = rule.schedule.ratio(round_, 9, 0.6)
        if ratio is not None:
            (context.new,) = rule.masks(GROUPS, server, [ratio], previous=[old])
            new = run_cut(rule.hooks, context)
            assert new is not None
            assert torch.equal(server, weights())
            assert not bool((new.units & ~old.units).any())
            old = new
            ratios.append(old.ratio)
        server += 0.1 * weights(round_)
    assert ratios == pytest.approx([0.3, 0.51, 0.6], abs=1 / 32)

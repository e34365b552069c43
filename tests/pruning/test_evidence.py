"""Evidence: what it measures, what it charges, what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from jointopt.errors import InputError
from jointopt.pruning import Batch, Charge, Evidence, Layout, Mask, WeightGroups
from jointopt.pruning.hooks import check_state
from jointopt.pruning.statistics import per_weight

LOSS = nn.functional.cross_entropy


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(2, 3, 2), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Dropout(0.5), nn.Linear(12, 3)
        )


def batch(count: int, seed: int, share: float) -> Batch:
    draw = torch.Generator().manual_seed(seed)
    return Batch(torch.randn(count, 2, 3, 3, generator=draw), torch.randint(0, 3, (count,), generator=draw), share)


BATCHES = [batch(6, 1, 2.0), batch(4, 2, 6.0)]


@pytest.fixture
def net() -> nn.Module:
    return network()


@pytest.fixture
def evidence(net: nn.Module) -> Evidence:
    return Evidence(net, Layout.flatten(net), BATCHES, LOSS)


def gradient_of(net: nn.Module, part: Batch) -> Tensor:
    net.eval()
    net.zero_grad()
    LOSS(net(part.inputs), part.labels).backward()
    out = torch.cat([p.grad.reshape(-1).clone() for p in net.parameters() if p.grad is not None])
    net.train()
    return out


def test_gradients_are_means_by_share_and_charged_once(net: nn.Module, evidence: Evidence) -> None:
    each = [gradient_of(net, part) for part in BATCHES]
    torch.testing.assert_close(evidence.gradient, 0.25 * each[0] + 0.75 * each[1])
    rms = (0.25 * each[0].square() + 0.75 * each[1].square()).sqrt()
    torch.testing.assert_close(evidence.gradient_rms, rms)
    assert evidence.gradient is evidence.gradient
    bits = 32.0 * evidence.layout.size
    assert evidence.charges == (Charge(6.0, 6.0, bits), Charge(4.0, 4.0, bits))
    assert evidence.charges[0].training_samples == 6.0
    assert Charge(3.0, 0.0).training_samples == 1.0


def test_gradients_are_those_of_the_weights_given(net: nn.Module) -> None:
    weights = Layout.flatten(net)
    other = Evidence(net, 0.5 * weights, BATCHES[:1], LOSS).gradient
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(0.5)
    torch.testing.assert_close(other, gradient_of(net, BATCHES[0]))


def test_largest_gradients_of_each_device(net: nn.Module, evidence: Evidence) -> None:
    where = torch.zeros(evidence.layout.size, dtype=torch.bool)
    where[3:23] = True
    found = evidence.top_gradient(where, 4)
    expected = torch.zeros_like(found)
    for part, share in zip(BATCHES, (0.25, 0.75), strict=True):
        own = gradient_of(net, part)
        top = torch.topk(own[3:23].abs(), 4).indices + 3
        expected[top] += share * own[top]
    torch.testing.assert_close(found, expected)
    assert 4 <= int((found != 0.0).sum()) <= 8
    assert evidence.charges == (Charge(6.0, 6.0, 4 * 37.0), Charge(4.0, 4.0, 4 * 37.0))  # 20 places: 5 bits each


def test_input_statistics_over_samples_and_positions(net: nn.Module, evidence: Evidence) -> None:
    pixels = torch.cat([part.inputs for part in BATCHES]).double().movedim(1, -1).reshape(-1, 2)
    torch.testing.assert_close(evidence.input_norms["0.weight"], pixels.norm(dim=0))
    torch.testing.assert_close(evidence.input_means["0.weight"], pixels.mean(dim=0))
    torch.testing.assert_close(evidence.input_vars["0.weight"], pixels.var(dim=0, correction=0))
    with torch.no_grad():
        hidden = net.eval()[:5](torch.cat([part.inputs for part in BATCHES])).double()
    torch.testing.assert_close(evidence.input_norms["5.weight"], hidden.norm(dim=0))
    torch.testing.assert_close(evidence.input_vars["5.weight"], hidden.var(dim=0, correction=0))
    # One pass for all three; sums and squares of 2 + 12 features.
    assert evidence.charges == (Charge(6.0, 0.0, 2 * 14 * 32.0), Charge(4.0, 0.0, 2 * 14 * 32.0))


def test_outputs_losses_and_changes(net: nn.Module, evidence: Evidence) -> None:
    mask = Mask(WeightGroups(net), torch.arange(60) % 3 > 0)
    net.eval()
    dense = [net(part.inputs).detach() for part in BATCHES]
    with torch.no_grad():
        for parameter, part in zip(net.parameters(), evidence.layout.split(mask.keep).values(), strict=True):
            parameter.mul_(part)
    masked = [net(part.inputs).detach() for part in BATCHES]
    net.train()
    torch.testing.assert_close(evidence.outputs(), torch.cat(dense))
    for at in (mask, mask.keep, evidence.weights * mask.keep):
        torch.testing.assert_close(evidence.outputs(at), torch.cat(masked))
    change = sum(
        share * float((a - b).square().mean()) for share, a, b in zip((0.25, 0.75), dense, masked, strict=True)
    )
    assert evidence.output_change(mask) == pytest.approx(change, rel=1e-5)
    assert evidence.output_change(evidence.weights) == 0.0
    loss = sum(
        share * float(LOSS(out, part.labels)) for share, out, part in zip((0.25, 0.75), masked, BATCHES, strict=True)
    )
    assert evidence.mean_loss(mask) == pytest.approx(loss, rel=1e-5)
    # Forward: 4 outputs, the dense outputs kept for changes, 2 changes, 1 loss.
    assert [charge.forward_samples for charge in evidence.charges] == [8 * 6.0, 8 * 4.0]
    assert [charge.upload_bits for charge in evidence.charges] == [4 * 32 * 18 + 3 * 32.0, 4 * 32 * 12 + 3 * 32.0]


def test_means_of_what_devices_measure(evidence: Evidence) -> None:
    found = evidence.mean_over_devices(lambda inputs: torch.stack([inputs.sum(), inputs.max()]))
    expected = [0.25 * float(f(BATCHES[0].inputs)) + 0.75 * float(f(BATCHES[1].inputs)) for f in (torch.sum, torch.max)]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert evidence.charges == (Charge(6.0, 0.0, 64.0), Charge(4.0, 0.0, 64.0))


def test_collecting_changes_nothing(net: nn.Module, evidence: Evidence) -> None:
    before = {name: value.clone() for name, value in net.state_dict().items()}
    net.train()
    net[1].eval()  # a state of its own
    _ = (evidence.gradient, evidence.input_norms, evidence.outputs(), evidence.mean_loss(refresh=True))
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name])
    assert net.training
    assert net[4].training
    assert not net[1].training
    assert all(parameter.grad is None for parameter in net.parameters())


def test_views_share_what_is_collected_but_give_only_what_is_declared(evidence: Evidence) -> None:
    view = evidence.granted({"gradient"}, "test")
    gradient = view.gradient
    assert evidence.gradient is gradient
    assert view.charges == evidence.charges
    for name in ("gradient_rms", "input_norms", "explorers", "initial"):
        with pytest.raises(InputError, match=r"was not declared; declared needs: gradient"):
            getattr(view, name)
    with pytest.raises(InputError, match="'outputs' was not declared"):
        view.outputs()
    with pytest.raises(InputError, match="'initial' was not declared"):  # a view gives away no more than it has
        _ = view.granted({"gradient", "initial"}, "test").initial
    with pytest.raises(InputError, match="did you mean 'gradient'"):
        evidence.granted({"gradients"}, "test")
    with pytest.raises(InputError, match="declared needs: none"):
        evidence.granted(()).top_gradient(torch.ones(3, dtype=torch.bool), 1)


def test_missing_evidence_names_what_is_needed(net: nn.Module) -> None:
    weights = Layout.flatten(net)
    bare = Evidence(net, weights)
    for name in ("gradient", "gradient_rms", "input_norms", "initial", "explorers"):
        with pytest.raises(InputError, match=r"needs (batches|the initial|weights of devices)"):
            getattr(bare, name)
    with pytest.raises(InputError, match="'gradient' needs a loss"):
        _ = Evidence(net, weights, BATCHES).gradient
    assert bare.charges == ()


def test_a_layer_that_nothing_reaches_is_named() -> None:
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle = nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)

    net = Idle()
    info = Evidence(net, Layout.flatten(net), [(torch.ones(1, 2), torch.zeros(1), 1.0)])
    with pytest.raises(InputError, match=r"'idle\.weight'"):
        _ = info.input_norms


def test_initial_weights_cost_nothing(net: nn.Module) -> None:
    info = Evidence(net, Layout.flatten(net), BATCHES, initial=torch.arange(72.0))
    assert torch.equal(info.initial, torch.arange(72.0))
    assert info.charges == (Charge(), Charge())


def test_explorers_are_charged_when_used(net: nn.Module) -> None:
    weights = Layout.flatten(net)
    explorers = torch.stack([weights, weights + 1.0])
    info = Evidence(net, weights, explorers=explorers)
    assert info.charges == (Charge(), Charge())
    assert torch.equal(info.explorers, explorers)
    assert info.explorers is info.explorers
    assert info.charges == (Charge(0.0, 0.0, 32.0 * len(weights)),) * 2


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"weights": torch.zeros(3)}, "weights must have the 72 parameters"),
        ({"weights": torch.full((72,), torch.nan)}, "at index 0"),
        ({"initial": torch.zeros(77)}, "initial must have"),
        ({"explorers": torch.zeros(72)}, "explorers must have shape"),
        ({"explorers": torch.zeros(0, 72)}, "explorers must have shape"),
        ({"explorers": torch.full((2, 72), torch.inf)}, "found inf"),
        ({"explorers": torch.zeros(2, 72), "explorer_samples": [1.0]}, "found 1 for 2"),
        ({"explorers": torch.zeros(2, 72), "explorer_samples": [1.0, -1.0]}, "explorer 1"),
        ({"batches": [BATCHES[0], (torch.zeros(0, 2), torch.zeros(0), 1.0)]}, "device 1"),
        ({"batches": [(torch.zeros(2, 2), torch.zeros(3), 1.0)]}, "found 2 and 3"),
        ({"batches": [(torch.zeros(2, 2), torch.zeros(2))]}, "device 0: a batch is"),
        ({"batches": [BATCHES[0]._replace(share=-1.0)]}, "share must be"),
        ({"batches": [BATCHES[0]._replace(share=float("nan"))]}, "share must be"),
        ({"batches": [BATCHES[0]._replace(share=0.0)]}, "all 0"),
    ],
)
def test_bad_input(net: nn.Module, change: dict[str, object], match: str) -> None:
    arguments: dict[str, object] = {"weights": Layout.flatten(net), "batches": BATCHES, "loss": LOSS} | change
    with pytest.raises(InputError, match=match):
        Evidence(net, **arguments)  # type: ignore[arg-type]


def test_bad_places_are_refused(evidence: Evidence) -> None:
    with pytest.raises(InputError, match=r"expected 72 parameters, found shape \(5,\)"):
        evidence.outputs(torch.zeros(5))


def test_grouped_convolutions_see_their_own_channels() -> None:
    net = nn.Sequential(nn.Conv2d(4, 6, 1, groups=2))
    (entry,) = Layout.of(net).layers
    spread = per_weight(net, entry, torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert spread.reshape(6, 2).tolist() == [[1.0, 2.0]] * 3 + [[3.0, 4.0]] * 3


def test_tied_weights_have_one_gradient_and_both_inputs() -> None:
    net = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Tanh(), nn.Linear(3, 3, bias=False))
    net[2].weight = net[0].weight
    part = Batch(torch.randn(4, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 0]))
    info = Evidence(net, Layout.flatten(net), [part], LOSS)
    torch.testing.assert_close(info.gradient, gradient_of(net, part))
    both = torch.cat([part.inputs, net[:2](part.inputs).detach()])
    torch.testing.assert_close(info.input_norms["0.weight"], both.double().norm(dim=0))


def test_states_must_fit() -> None:
    with pytest.raises(InputError, match="keys"):
        check_state("hook", {"a": torch.zeros(1)}, ("b",))
    with pytest.raises(InputError, match="'a' must be a finite"):
        check_state("hook", {"a": torch.tensor([torch.nan])}, ("a",))

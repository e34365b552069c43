"""The pruner as a whole: ratios, previous masks, curves, names, bad input."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from jointopt import systems
from jointopt.errors import InputError
from jointopt.models import compression
from jointopt.models.distortion import curve_ratio
from jointopt.pruning import PRUNERS, Evidence, Hook, Layout, Mask, Pruner, WeightGroups, pruned_count, pruner, register
from jointopt.pruning.allocate import Allocator, Global, Plan
from jointopt.pruning.groups import Groups
from jointopt.pruning.pruner import DistortionCurve
from jointopt.pruning.scores import Magnitude, Random, Taylor

NET = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4, bias=False), nn.LayerNorm(4), nn.Linear(4, 1))
GROUPS = WeightGroups(NET)
WEIGHTS = torch.randn(GROUPS.layout.size, generator=torch.Generator().manual_seed(0))


class Rows(Groups):
    """Whole rows of weight matrices: units of several sizes that do not overlap."""

    granularity = "row"
    structured = False
    additive = True

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module, None)
        self.layers = tuple(entry.name for entry in self.layout.layers)
        rows = [entry.shape[0] for entry in self.layout.layers]
        self.layer = torch.repeat_interleave(torch.arange(len(rows)), torch.tensor(rows))

    def _parts(self, units: Tensor) -> list[Tensor]:
        parts = units.split([entry.shape[0] for entry in self.layout.layers])
        return [part.repeat_interleave(e.size // e.shape[0]) for part, e in zip(parts, self.layout.layers, strict=True)]

    def expand(self, units: Tensor) -> Tensor:
        keep = torch.ones(self.layout.size, dtype=torch.bool)
        for entry, part in zip(self.layout.layers, self._parts(units), strict=True):
            keep[entry.where] = part
        return keep

    def reduce(self, values: Tensor) -> Tensor:
        return torch.cat([values[e.where].view(e.shape[0], -1).sum(dim=1) for e in self.layout.layers])


class Overlapping(Rows):
    additive = False


@given(ratio=st.floats(0.0, 0.9), seed=st.integers(0, 99), name=st.sampled_from(["magnitude", "uniform", "erk"]))
@settings(deadline=None)
def test_removes_the_least_whole_number_of_weights(ratio: float, seed: int, name: str) -> None:
    weights = torch.randn(GROUPS.layout.size, generator=torch.Generator().manual_seed(seed)).round()
    (mask,) = pruner(name).masks(GROUPS, weights, [ratio], generator=torch.Generator().manual_seed(seed))
    assert GROUPS.weights - mask.kept == math.ceil(ratio * GROUPS.weights - 1e-9)
    assert mask.ratio == (GROUPS.weights - mask.kept) / GROUPS.weights
    assert bool(mask.keep[~GROUPS.prunable].all())


@given(ratio=st.floats(0.0, 0.7), seed=st.integers(0, 99))
@settings(deadline=None)
def test_units_of_unequal_sizes(ratio: float, seed: int) -> None:
    weights = torch.randn(GROUPS.layout.size, generator=torch.Generator().manual_seed(seed))
    rule = Pruner("rows", Magnitude(), Global(1))
    groups = Rows(NET)
    (mask,) = rule.masks(groups, weights, [ratio])
    target = math.ceil(ratio * groups.weights - 1e-9)
    removed = int(groups.sizes()[~mask.units].sum())
    assert removed == groups.weights - mask.kept >= target
    # The unit of largest score that went was needed.
    if removed:
        scores = torch.where(mask.units, -1.0, groups.reduce(weights.abs()))
        assert removed - int(groups.sizes()[int(scores.argmax())]) < target
    # Where sizes may not be added up, the search comes to the same.
    (again,) = rule.masks(Overlapping(NET), weights, [ratio])
    assert torch.equal(again.units, mask.units)


def test_weights_are_summed_or_averaged_over_units() -> None:
    groups = Rows(nn.Sequential(nn.Linear(3, 1, bias=False), nn.Linear(1, 2, bias=False)))
    weights = torch.tensor([1.0, -2.0, 4.0, 5.0, -6.0])
    assert Magnitude()(groups, weights, None, None).tolist() == [7.0, 5.0, 6.0]
    assert Magnitude(1.0, "mean")(groups, weights, None, None).tolist() == [7.0 / 3.0, 5.0, 6.0]
    assert groups.sizes().tolist() == [3, 1, 1]
    # g w = (2, -2, 8 | 5 | -6) at a loss of slope (2, 1, 2, 1, 1): squares of sums, and sums of squares.
    slopes = torch.tensor([2.0, 1.0, 2.0, 1.0, 1.0])

    class Given(Evidence):
        gradient = slopes  # type: ignore[assignment]

    info = Given(groups.module, weights)
    assert Taylor(grouped=True)(groups, weights, info, None).tolist() == [64.0, 25.0, 36.0]
    assert Taylor()(groups, weights, info, None).tolist() == [72.0, 25.0, 36.0]


@given(first=st.floats(0.0, 0.8), second=st.floats(0.0, 0.8), name=st.sampled_from(["magnitude", "uniform", "n:m"]))
@settings(deadline=None)
def test_what_was_pruned_stays_pruned(first: float, second: float, name: str) -> None:
    first, second = (min(ratio, 0.7) if name == "n:m" else ratio for ratio in (first, second))
    rule = pruner(name)
    old = rule.masks(GROUPS, WEIGHTS, [first])[0]
    new = rule.masks(GROUPS, WEIGHTS.flip(0), [second], previous=[old])[0]
    assert not bool((new.units & ~old.units).any())
    assert new.ratio >= max(second - 1e-9, old.ratio)  # ratios are rounded with the tolerance of `snap`
    if name == "magnitude":
        assert GROUPS.weights - new.kept == max(math.ceil(second * GROUPS.weights - 1e-9), GROUPS.weights - old.kept)
        # Among those that were left, the smallest went.
        left = WEIGHTS.flip(0).abs()[GROUPS.prunable][old.units]
        kept = new.units[old.units]
        if not bool(kept.all()):
            layers = GROUPS.layer[old.units]
            spared = [kept & (layers == layer) for layer in range(3)]
            if all(int(part.sum()) > 1 for part in spared):
                assert left[~kept].max() <= left[kept].min()


def test_previous_masks_that_reach_the_ratio_cost_nothing() -> None:
    info = Evidence(NET, WEIGHTS, [(torch.zeros(2, 6), torch.zeros(2, 1), 1.0)], nn.functional.mse_loss)
    rule = pruner("snip")
    old = rule.masks(GROUPS, WEIGHTS, [0.5], evidence=info)[0]
    spent = info.charges
    fresh = Evidence(NET, WEIGHTS, info.batches, nn.functional.mse_loss)
    for ratio in (0.4, 0.5):
        (again,) = rule.masks(GROUPS, WEIGHTS, [ratio], evidence=fresh, previous=[old])
        assert torch.equal(again.units, old.units)
    assert fresh.charges[0].training_samples == 0.0 < spent[0].training_samples
    assert rule.masks(GROUPS, WEIGHTS, [0.0])[0].ratio == 0.0


def test_different_previous_masks_for_equal_ratios() -> None:
    rule = pruner("magnitude")
    one, two = rule.masks(GROUPS, WEIGHTS, [0.2]) + rule.masks(GROUPS, WEIGHTS.flip(0), [0.2])
    new = rule.masks(GROUPS, WEIGHTS, [0.4, 0.4, 0.4], previous=[one, two, one])
    assert new[0] is new[2]
    assert not torch.equal(new[0].units, new[1].units)
    assert not bool((new[1].units & ~two.units).any())


def test_many_ratios_equal_each_alone() -> None:
    ratios = np.linspace(0.0, 0.94, 30).tolist()
    together = pruner("magnitude").masks(GROUPS, WEIGHTS, ratios)
    for ratio, mask in zip(ratios, together, strict=True):
        assert torch.equal(mask.units, pruner("magnitude").masks(GROUPS, WEIGHTS, [ratio])[0].units)
    assert together[-1].units.any()


def test_min_keep_counts_from_the_top_of_each_layer() -> None:
    weights = WEIGHTS.clone()
    weights[GROUPS.layout.layers[1].where] *= 1e-6
    (mask,) = pruner("magnitude", min_keep=3).masks(GROUPS, weights, [0.6])
    part = GROUPS.layout.layers[1].where
    assert int(mask.keep[part].sum()) == 3
    assert weights[part].abs()[mask.keep[part]].min() > weights[part].abs()[~mask.keep[part]].max()
    assert GROUPS.weights - mask.kept == math.ceil(0.6 * GROUPS.weights)
    with pytest.raises(
        InputError, match=r"largest is 0\.8\d*, since layer '0.weight' keeps 3, layer '2.weight' keeps 3"
    ):
        pruner("magnitude", min_keep=3).masks(GROUPS, weights, [0.9])


# Curves ------------------------------------------------------------------------------------


def test_curve_is_the_share_of_the_squared_norm() -> None:
    ratios = [0.75, 0.0, 0.5, 0.5]
    curve = pruner("magnitude").curve(GROUPS, WEIGHTS, ratios)
    squares = WEIGHTS[GROUPS.prunable].double().square().sort().values
    assert len(curve.ratios) == 3
    for ratio, error in zip(curve.ratios, curve.errors, strict=True):
        removed = pruned_count(ratio, GROUPS.weights)
        assert error == pytest.approx(float(squares[:removed].sum() / squares.sum()), rel=1e-9)
    assert float(curve(0.25)) == pytest.approx(np.interp(0.25, curve.ratios, curve.errors))
    assert curve(np.array([0.0, 0.1])).shape == (2,)
    with pytest.raises(InputError, match="measured for ratios in"):
        curve(0.9)
    with pytest.raises(InputError, match="found nan"):
        curve(float("nan"))


def test_strictly_rising_part_of_a_curve() -> None:
    curve = DistortionCurve(np.array([0.0, 0.1, 0.2, 0.3, 0.4]), np.array([0.0, 0.0, 0.3, 0.2, 0.5]))
    rising = curve.rising()
    assert rising.ratios.tolist() == [0.0, 0.2, 0.4]
    assert rising.errors.tolist() == [0.0, 0.3, 0.5]
    assert float(curve_ratio(np.asarray(0.3), rising.ratios, rising.errors)) == pytest.approx(0.2)


def test_magnitude_stays_below_random_which_meets_its_ratio() -> None:
    net = nn.Linear(100, 100, bias=False)
    weights = torch.randn(10_000, generator=torch.Generator().manual_seed(1))
    curves: dict[str, DistortionCurve] = {}
    for name in ("magnitude", "random"):
        rule = pruner(name)
        curves[name] = rule.curve(rule.groups(net), weights, [0.0, 0.6], generator=torch.Generator().manual_seed(0))
    assert curves["magnitude"].errors[1] == pytest.approx(0.129, abs=0.005)  # Gaussian weights
    assert curves["random"].errors[1] == pytest.approx(0.6, abs=0.02)


def test_no_curve_without_ratios() -> None:
    with pytest.raises(InputError, match="at least one ratio"):
        pruner("magnitude").curve(GROUPS, WEIGHTS, [])
    with pytest.raises(InputError, match="chooses the ratio itself"):
        pruner("pq-index").curve(GROUPS, WEIGHTS, [0.5])


# Bad input ---------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [-0.1, 1.0, 1.5, math.nan, math.inf, "0.5", None, True, 0.5j])
def test_bad_ratios_name_the_device(bad: object) -> None:
    with pytest.raises(InputError, match="ratio of device 1 must lie in"):
        pruner("magnitude").masks(GROUPS, WEIGHTS, [0.5, bad])  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("weights", "match"),
    [
        (torch.zeros(3), "expected 68 parameters, found 3"),
        (torch.full((68,), math.nan), "found nan at index 0"),
        (torch.zeros(68, dtype=torch.int64), "1-D floating-point"),
        (torch.zeros(68, 1), "1-D floating-point"),
    ],
)
def test_bad_weights(weights: Tensor, match: str) -> None:
    assert GROUPS.layout.size == 68
    for call in (pruner("magnitude").masks, pruner("magnitude").curve):
        with pytest.raises(InputError, match=match):
            call(GROUPS, weights, [0.5])
    with pytest.raises(InputError, match=match):
        pruner("magnitude").scores(GROUPS, weights)


def test_bad_previous_masks() -> None:
    other = Mask.dense(WeightGroups(NET))
    with pytest.raises(InputError, match="found 1 for 2 ratios"):
        pruner("magnitude").masks(GROUPS, WEIGHTS, [0.5, 0.5], previous=[Mask.dense(GROUPS)])
    with pytest.raises(InputError, match="device 1 is of other groups"):
        pruner("magnitude").masks(GROUPS, WEIGHTS, [0.5, 0.5], previous=[Mask.dense(GROUPS), other])


def test_a_network_without_prunable_layers() -> None:
    for name in ("magnitude", "n:m"):
        with pytest.raises(InputError, match="no linear or convolution layer"):
            pruner(name).groups(nn.Sequential(nn.LayerNorm(3)))


def test_missing_evidence_and_generator() -> None:
    with pytest.raises(InputError, match=r"'snip' needs evidence \['gradient'\]"):
        pruner("snip").masks(GROUPS, WEIGHTS, [0.5])
    with pytest.raises(InputError, match=r"'rd-dp' needs evidence \['outputs'\]"):
        pruner("rd-dp").masks(GROUPS, WEIGHTS, [0.5])
    other = nn.Linear(2, 2)
    with pytest.raises(InputError, match="expected evidence on 68 parameters, found 6"):
        pruner("snip").masks(GROUPS, WEIGHTS, [0.5], evidence=Evidence(other, Layout.flatten(other)))
    with pytest.raises(InputError, match="needs batches"):
        pruner("snip").masks(GROUPS, WEIGHTS, [0.5], evidence=Evidence(NET, WEIGHTS))
    with pytest.raises(InputError, match=r"torch\.Generator"):
        pruner("random").masks(GROUPS, WEIGHTS, [0.5])


def test_names_and_options() -> None:
    with pytest.raises(InputError, match="did you mean 'magnitude'"):
        pruner("magnitud")
    with pytest.raises(InputError, match=r"'magnitude': unknown option 'min_keeps'; did you mean 'min_keep'"):
        pruner("magnitude", min_keeps=2)
    with pytest.raises(InputError, match="min_keep must be"):
        pruner("magnitude", min_keep=-1)
    for name, factory, match in (
        ("magnitude", Pruner, "is taken"),
        ("", Pruner, "non-empty"),
        (3, Pruner, "non-empty"),
        ("new", "pruner", "callable"),
    ):
        with pytest.raises(InputError, match=match):
            register(name, factory)  # type: ignore[arg-type]
    assert "new" not in PRUNERS
    with pytest.raises(TypeError):
        PRUNERS["new"] = Pruner  # type: ignore[index]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"granularity": "weights"}, "did you mean 'weight'"),
        ({"scope": "server"}, "scope must be"),
        ({"hooks": (Hook,)}, "hooks must be"),
    ],
)
def test_bad_parts(change: dict[str, object], match: str) -> None:
    with pytest.raises(InputError, match=match):
        pruner("magnitude").with_(**change)


def test_unknown_needs_of_a_plug_in() -> None:
    class Wishful(Allocator):
        needs = frozenset({"hessian"})

        def plan(self, scores: Tensor, groups: Groups, evidence: Evidence | None = None) -> Plan:
            return Global().plan(scores, groups)

    with pytest.raises(InputError, match="'wishful': unknown need 'hessian'"):
        Pruner("wishful", Magnitude(), Wishful())


def test_every_preset_carries_its_own_name() -> None:
    for name in PRUNERS:
        assert pruner(name).name == name
    assert pruner("gmp") is not pruner("gmp")


def test_needs_are_those_of_all_parts() -> None:
    assert pruner("magnitude").needs == frozenset()
    assert pruner("gblm").needs == {"inputs", "gradient_rms"}
    assert pruner("gblm", alpha=0.0).needs == {"inputs"}
    assert pruner("fedtiny").needs == {"outputs", "gradient"}
    assert pruner("fedtiny").mask_needs == {"outputs"}
    assert pruner("exploration", guidance=True).needs == {"explorers"}


def test_random_scores_serve_all_allocations() -> None:
    for name in ("random", "erk"):
        first, second = (
            pruner(name).masks(GROUPS, WEIGHTS, [0.5], generator=torch.Generator().manual_seed(seed))[0]
            for seed in (0, 1)
        )
        assert first.kept == second.kept
        assert not torch.equal(first.units, second.units)
    assert Pruner("dropout", Random()).masks(GROUPS, WEIGHTS, [0.5], generator=torch.Generator())[0].ratio == 0.5


def test_weights_that_carry_gradients_are_left_alone() -> None:
    weights = WEIGHTS.clone().requires_grad_(True)
    (mask,) = pruner("magnitude").masks(GROUPS, weights, [0.5])
    assert not mask.keep.requires_grad
    assert weights.grad is None
    assert Layout.flatten(NET).shape == weights.shape


@pytest.mark.parametrize("name", ["magnitude", "random", "erk"])
def test_a_measured_curve_serves_a_system_in_place_of_the_law(name: str) -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    rule = pruner(name)
    groups = rule.groups(module)
    weights = torch.cat([p.detach().reshape(-1) for p in module.parameters()])
    curve = rule.curve(groups, weights, np.linspace(0.05, 0.9, 12).tolist(), generator=torch.Generator().manual_seed(0))
    fields = curve.bound()
    ratio, error = fields["pruning_curve_ratio"], fields["pruning_curve_error"]
    assert np.all(np.interp(curve.ratios, ratio, error) >= curve.errors - 1e-12)
    assert np.all(np.diff(np.diff(error) / np.diff(ratio)) >= -1e-9)
    system = systems.ltfl(devices=3, seed=0).with_(**fields)
    law = system.bound.pruning_law
    np.testing.assert_allclose(compression.pruning_error(ratio, law), error, atol=1e-12)

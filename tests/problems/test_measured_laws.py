"""Measured laws of pruning in the designs: certificates against searches that know nothing of the solvers' proofs."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

import jointopt as jo
from jointopt.errors import InputError
from jointopt.models import channel, compression, convergence
from jointopt.models.curve import ConvexCurve
from jointopt.problems.ltfl import LTFL
from jointopt.system import System


def measured(rng: np.random.Generator, most: float) -> dict[str, Any]:
    """Fields of a random convex curve: flat starts, straight stretches, jumps of the slope, steep ends."""
    points = int(rng.integers(2, 12))
    steps = 10.0 ** rng.uniform(-1.5, 0.0, points - 1)
    slopes = np.cumsum(10.0 ** rng.uniform(-2.0, 1.5, points - 1) * (rng.random(points - 1) < 0.8))
    if rng.random() < 0.4:
        slopes -= slopes[0]
    knots = np.append(0.0, np.cumsum(steps))
    # at times only just long enough
    knots *= (most if rng.random() < 0.3 else 1.0) / knots[-1]
    values = np.append(0.0, np.cumsum(slopes * np.diff(knots)))
    values *= rng.uniform(0.2, 0.99) * knots[-1] / max(values[-1], 1e-9)
    return {"pruning_error": "measured", "pruning_curve_ratio": knots, "pruning_curve_error": values}


def laws(rng: np.random.Generator, most: float) -> dict[str, Any]:
    """A measured curve and one of the compute laws, as often as not the affine one."""
    fields = measured(rng, most) | {"pruning_ratio_max": most}
    fields["compute_law"] = str(rng.choice(["linear", "mask", "affine", "affine"], p=[0.3, 0.1, 0.3, 0.3]))
    fields["compute_floor"] = float(rng.uniform()) if fields["compute_law"] == "affine" else None
    return fields


def ltfl_system(seed: int, devices: int = 3, **changes: Any) -> System:
    """A random system whose pruning, quantization and loss matter alike."""
    rng = np.random.default_rng([seed, 7])
    base = jo.systems.ltfl(devices, seed)
    scale = 10.0 ** rng.uniform(-2.5, 0.5)
    return base.with_(
        **{
            **laws(rng, float(rng.uniform(0.3, 0.97))),
            "weight_norm_squared": base.bound.weight_norm_squared * scale,
            "mask_energy": base.bound.mask_energy * scale * float(rng.choice([0.0, 0.1, 1.0])),
            "quantizer_range": base.bound.quantizer_range * 10.0 ** rng.uniform(-1.0, 1.5, devices),
            "delay_budget": base.devices.delay_budget * rng.uniform(0.8, 3.0, devices),
            "energy_budget": base.devices.energy_budget * rng.uniform(0.8, 3.0, devices),
            "fading": str(rng.choice(["rayleigh", "none"])),
            "mask_encoding": str(rng.choice(["none", "bitmap", "indices"])),
            "bits_max": 10,
            **changes,
        }
    )


def factor(system: System, ratio: Any) -> Any:
    """Share of the cycles left, written anew."""
    learner = system.learner
    floor = {"linear": 0.0, "mask": 1.0}.get(learner.compute_law, learner.compute_floor)
    return 1.0 - (1.0 - floor) * ratio


def share_removed(system: System, ratio: Any) -> Any:
    """Share of ||w||^2 removed: straight lines between what was measured."""
    return np.interp(ratio, system.bound.pruning_curve_ratio, system.bound.pruning_curve_error)


def error_cap(system: System) -> float:
    """E_cap from the models, the curve read by straight lines."""
    learner, bound = system.learner, system.bound
    most = learner.pruning_ratio_max
    return float(
        convergence.error_cap(
            smoothness=bound.smoothness,
            weight_norm_squared=bound.weight_norm_squared,
            mask_energy=bound.mask_energy,
            pruning_ratio_max=most,
            pruning_error_max=share_removed(system, most),
            parameters=learner.parameters + learner.unpruned_parameters,
            range_max=bound.quantizer_range.max(),
            bits_min=np.float64(learner.bits_min),
            sampling_variance=sampling(system).max(),
        )
    )


def sampling(system: System) -> Any:
    """sigma^2/b of devices that train on a batch."""
    return np.where(system.batch < system.devices.samples, system.bound.gradient_variance / system.batch, 0.0)


def corners(system: System) -> Any:
    """Ratios at which the measured curve bends, and both ends of the range."""
    most = system.learner.pruning_ratio_max
    knots = system.bound.pruning_curve_ratio
    return np.append(knots[knots < most], most)


def uses(system: System, u: int, bits: Any, rate: Any, ratio: float, power: Any) -> tuple[Any, Any]:
    """Delay and energy of device u at one ratio."""
    d, learner = system.devices, system.learner
    index, once = compression.index_bits(learner.parameters, learner.mask_encoding)
    payload = (1.0 - ratio) * learner.parameters * (bits + index) + learner.unpruned_parameters * bits
    payload = payload + learner.header_bits + once
    work = system.batch[u] * d.cycles_per_sample[u] * factor(system, ratio)
    upload = payload / rate
    return work / d.frequency[u] + upload, d.capacitance[u] * d.frequency[u] ** 2 * work + power * upload


def error_of(system: System, u: int, ratio: Any, bits: Any) -> Any:
    """Pruning, quantization and sampling terms of the gap, not weighted."""
    learner, bound = system.learner, system.bound
    noise = ((1.0 - ratio) * learner.parameters + learner.unpruned_parameters) * bound.quantizer_range[u] ** 2
    noise = noise / (4.0 * (2.0**bits - 1.0) ** 2)
    energy = bound.smoothness**2 * bound.weight_norm_squared * share_removed(system, ratio)
    return 2.0 * (energy + bound.mask_energy * ratio) + 2.0 * noise + 2.0 * sampling(system)[u]


def best_of_device(system: System, u: int) -> float:
    """Least gap of one device by search over powers, all bits, and ratios where a piecewise linear error is least."""
    d, r, learner, bound = system.devices, system.radio, system.learner, system.bound
    bits = np.arange(learner.bits_min, learner.bits_max + 1.0)[:, None]
    loss = 8.0 * bound.gradient_offset + 2.0 * error_cap(system)
    threshold = r.waterfall_threshold if r.packet_error == "waterfall" else r.outage_threshold
    low, high = d.power_min[u], d.power_max[u]
    best = np.inf
    for size in (500, 100, 100, 100):
        power = np.linspace(low, high, size)
        snr = power * r.gain[u] / system.noise_power[u]
        rate = channel.rate(r.bandwidth[u], snr, r.fading)
        lost = channel.packet_error(snr, threshold, r.packet_error, r.fading)
        need = np.zeros((bits.size, size))
        dense, empty = uses(system, u, bits, rate, 0.0, power), uses(system, u, bits, rate, 1.0, power)
        for budget, full, least in zip((d.delay_budget[u], d.energy_budget[u]), dense, empty, strict=True):
            need = np.maximum(need, (full - budget) / (full - least))
        ratio = np.concatenate(
            [need[None], np.broadcast_to(corners(system)[:, None, None], (*corners(system).shape, *need.shape))]
        )
        allowed = (ratio >= need) & (need <= learner.pruning_ratio_max)
        gap = system.weight[u] * (loss * lost + error_of(system, u, np.minimum(ratio, 1.0), bits))
        gap = np.where(allowed, gap, np.inf).min(axis=0)
        best = min(best, float(gap.min()))
        at = int(gap.min(axis=0).argmin())
        low, high = power[max(at - 1, 0)], power[min(at + 1, size - 1)]
    return best


# ------------------------------------------------------------------ LTFL


@pytest.mark.parametrize("part", range(8))
def test_ltfl_is_solved_exactly(part: int) -> None:
    solved = 0
    for seed in range(12 * part, 12 * part + 12):
        system = ltfl_system(seed)
        found = [best_of_device(system, u) for u in range(len(system))]
        result = jo.solve(LTFL(system), method="exact")
        if result.status == "infeasible":
            assert not np.all(np.isfinite(found))
            continue
        solved += 1
        assert result.status == "optimal"
        assert result.value is not None and result.lower_bound is not None
        best = sum(found)
        assert result.lower_bound <= best * (1.0 + 1e-12)
        assert result.lower_bound <= result.value
        # the search is not exact in the power; the answer is, up to its gap
        assert result.value <= best * (1.0 + 1.1e-6)
        if np.isfinite(best):
            assert best <= result.value * (1.0 + 1e-4)
        evaluation = LTFL(system).evaluate(result.decision)
        assert bool(evaluation.feasible())
        assert float(evaluation.objective) == pytest.approx(result.value, rel=1e-12)
        if seed % 6 == 0:
            result.verify()
    assert solved >= 4


def test_ltfl_cells_are_never_above_points_and_meet_them() -> None:
    rng = np.random.default_rng(5)
    for seed in range(30):
        cells = LTFL(ltfl_system(seed)).capabilities().cells
        prices = np.array([1.0, 0.0])
        cover = cells.cover(prices, slice(0, 3))
        if cover.unit.size == 0:
            continue
        bound, _ = cells.bound(prices, cover)
        for share in np.append(rng.random(20), [0.0, 1.0]):
            x = cover.low * (cover.high / cover.low) ** share
            value = cells.value(prices, cover.unit, cover.label, x, cells.probe(cover.unit, x))
            assert np.all(bound <= value * (1.0 + 1e-12))


# ------------------------------------------------------------------ laws that agree

R = np.linspace(0.0, 0.95, 96)
LAPLACE = compression.pruning_error(R, "laplace")


def with_curve(system: System, error: Any, ratio: Any = R) -> System:
    """The system with a measured curve."""
    return system.with_(pruning_error="measured", pruning_curve_ratio=ratio, pruning_curve_error=error)


@pytest.mark.parametrize("design", ["ltfl", "feel"])
def test_the_diagonal_is_the_linear_law_and_samples_are_nearly_the_sampled_law(design: str) -> None:
    kind = jo.problems.LTFL if design == "ltfl" else jo.problems.FEEL
    make = jo.systems.ltfl if design == "ltfl" else jo.systems.feel
    for seed in range(2):
        system = make(4, seed)
        linear = jo.solve(kind(system.with_(pruning_error="linear")))
        diagonal = jo.solve(kind(with_curve(system, R)))
        assert diagonal.value == pytest.approx(linear.value, rel=1e-9)
        assert diagonal.lower_bound == pytest.approx(linear.lower_bound, rel=1e-9)
        laplace = jo.solve(kind(system.with_(pruning_error="laplace")))
        sampled = jo.solve(kind(with_curve(system, LAPLACE)))
        # chords lie above the curve, here by at most slope' step^2/8
        assert laplace.lower_bound <= sampled.value
        assert sampled.value == pytest.approx(laplace.value, rel=2e-3)
        fine = np.linspace(0.0, 0.95, 1901)
        sampled = jo.solve(kind(with_curve(system, compression.pruning_error(fine, "laplace"), fine)))
        assert sampled.value == pytest.approx(laplace.value, rel=8e-6)


@pytest.mark.parametrize(("law", "floor"), [("linear", 0.0), ("mask", 1.0)])
def test_the_other_compute_laws_are_the_ends_of_the_affine_one(law: str, floor: float) -> None:
    for system, kind in ((jo.systems.feel(4, 0), jo.problems.FEEL), (jo.systems.ltfl(4, 0, tightness=0.2), LTFL)):
        plain = jo.solve(kind(system.with_(compute_law=law)))
        affine = jo.solve(kind(system.with_(compute_law="affine", compute_floor=floor)))
        assert (plain.status, plain.value, plain.lower_bound) == (affine.status, affine.value, affine.lower_bound)


def test_a_higher_floor_never_helps() -> None:
    for kind, system in ((LTFL, jo.systems.ltfl(4, 1)), (jo.problems.FEEL, jo.systems.feel(4, 1))):
        last = 0.0
        for floor in (0.0, 0.1, 0.2, 0.4):
            result = jo.solve(kind(system.with_(compute_law="affine", compute_floor=floor)))
            if result.status == "infeasible":
                last = np.inf
                continue
            assert result.value is not None
            assert result.value >= last * (1.0 - 1e-6)
            last = result.value


def test_one_measured_curve_is_judged_alike_by_all_designs_and_arrays() -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(3)
    for kind, system in (
        (LTFL, ltfl_system(3)),
        (jo.problems.PooledLTFL, ltfl_system(4)),
        (jo.problems.FEEL, jo.systems.feel(3, 0).with_(**laws(rng, 0.9))),
    ):
        problem = kind(system)
        decision = jo.Decision(
            {
                v.name: np.rint(v.lower + 0.7 * (v.upper - v.lower))
                if v.kind in ("integer", "binary")
                else v.lower + 0.37 * (v.upper - v.lower)
                for v in problem.variables
            }
        )
        value = problem.evaluate(decision)
        tensors = jo.Decision({name: torch.tensor(np.array(decision[name])) for name in decision})
        again = problem.evaluate(tensors)
        np.testing.assert_allclose(float(again.objective), float(value.objective), rtol=1e-12)
        removed = share_removed(system, decision["pruning_ratio"])
        np.testing.assert_allclose(
            compression.pruning_error(decision["pruning_ratio"], system.bound.pruning_law), removed, rtol=1e-12
        )
        delay = value.quantities["compute_delay"]
        frequency = decision.get("frequency", system.devices.frequency)
        work = system.batch * system.devices.cycles_per_sample * factor(system, decision["pruning_ratio"])
        np.testing.assert_allclose(delay, work / frequency, rtol=1e-12)


# ------------------------------------------------------------------ scenarios


def test_a_curve_travels_with_its_scenario(tmp_path: Any) -> None:
    system = ltfl_system(0, compute_law="affine", compute_floor=0.25)
    again = System.from_dict(json.loads(json.dumps(system.to_dict())))
    assert again == system
    assert isinstance(again.bound.pruning_law, ConvexCurve)
    assert again.bound.pruning_law == system.bound.pruning_law
    path = tmp_path / "scenario.json"
    path.write_text(json.dumps(system.to_dict()))
    assert System.from_json(path) == system
    text = "".join(
        f"[{name}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in fields.items())
        for name, fields in system.to_dict().items()
        if isinstance(fields, dict)
    )
    path = tmp_path / "scenario.toml"
    path.write_text(text)
    assert System.from_toml(path).bound == system.bound
    # devices are taken, points are not, even where there are as many
    knots = np.array([0.0, 0.5, 1.0])
    system = with_curve(jo.systems.ltfl(3, 0), knots**2, knots)
    part = system.take([2, 0])
    assert len(part) == 2
    np.testing.assert_array_equal(part.bound.pruning_curve_ratio, knots)
    np.testing.assert_array_equal(part.bound.quantizer_range, system.bound.quantizer_range[[2, 0]])
    assert system.take(np.tile(np.arange(3), 2)).bound.pruning_law == system.bound.pruning_law
    back = system.with_(pruning_error="laplace", pruning_curve_ratio=None, pruning_curve_error=None)
    assert back.bound.pruning_law == "laplace"


def test_many_instances_are_solved_together_with_their_curves() -> None:
    systems = [with_curve(jo.systems.ltfl(4, seed), LAPLACE) for seed in (0, 1)]
    systems += [with_curve(jo.systems.ltfl(4, seed), R**2) for seed in (0, 1)]
    batch = jo.solve_many([LTFL(system) for system in systems])
    for value, system in zip(batch.values, systems, strict=True):
        assert value == pytest.approx(jo.solve(LTFL(system)).value, rel=2e-6)
    budgets = systems[0].devices.energy_budget * np.array([[1.0], [1.3]])
    batch = jo.solve_many(LTFL(systems[0]), devices={"energy_budget": budgets})
    for value, budget in zip(batch.values, budgets, strict=True):
        assert value == pytest.approx(jo.solve(LTFL(systems[0].with_(energy_budget=budget))).value, rel=2e-6)


CURVE = {"pruning_error": "measured", "pruning_curve_ratio": [0.0, 0.5, 0.95], "pruning_curve_error": [0.0, 0.2, 0.8]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pruning_curve_error": [0.0, 0.3, 0.2]}, r"bound\.pruning_curve_error\[point 2\]: 0\.2 must not be below"),
        ({"pruning_curve_error": [0.1, 0.2, 0.8]}, r"bound\.pruning_curve_error\[point 0\]: 0\.1 must be 0"),
        ({"pruning_curve_error": [0.0, 0.2, 1.2]}, r"bound\.pruning_curve_error\[point 2\]: 1\.2 must be at most 1"),
        ({"pruning_curve_error": [0.0, 0.2]}, r"bound\.pruning_curve_error: has 2 values for the 3 points"),
        ({"pruning_curve_error": [0.0, np.nan, 0.8]}, r"bound\.pruning_curve_error\[point 1\]: nan must be finite"),
        ({"pruning_curve_error": [0.0, 0.5, 0.6]}, r"bound\.pruning_curve_error\[point 2\]: 0\.6 lies 0\.35 below"),
        ({"pruning_curve_error": 0.5}, r"bound\.pruning_curve_error: a curve needs at least 2 points"),
        ({"pruning_curve_error": "much"}, r"bound\.pruning_curve_error"),
        ({"pruning_curve_ratio": [0.0, 0.5, 0.8]}, r"bound\.pruning_curve_ratio\[point 2\]: the curve ends at 0\.8"),
        ({"pruning_curve_ratio": [0.0, 0.95, 0.5]}, r"bound\.pruning_curve_ratio\[point 2\]: 0\.5 must be above"),
        ({"pruning_curve_ratio": [0.1, 0.5, 0.95]}, r"bound\.pruning_curve_ratio\[point 0\]: 0\.1 must be 0"),
        ({"pruning_curve_ratio": None}, r"bound\.pruning_curve_ratio: is missing; pruning_error 'measured'"),
        ({"pruning_curve_error": None}, r"bound\.pruning_curve_error: is missing"),
        ({"pruning_error": "laplace"}, r"bound\.pruning_curve_ratio: is not used by pruning_error 'laplace'"),
        ({"pruning_error": "mesured"}, r"bound\.pruning_error: 'mesured' should be"),
        ({"compute_law": "affine"}, r"learner\.compute_floor: is missing"),
        ({"compute_law": "affine", "compute_floor": 1.1}, r"learner\.compute_floor: 1\.1 must be at most 1"),
        ({"compute_law": "affine", "compute_floor": -0.1}, r"learner\.compute_floor: -0\.1 must be at least 0"),
        ({"compute_law": "affine", "compute_floor": np.nan}, r"learner\.compute_floor: nan must be finite"),
        ({"compute_law": "affine", "compute_floor": True}, r"learner\.compute_floor: expected numbers"),
        ({"compute_floor": 0.5}, r"learner\.compute_floor: 0\.5 is not used by compute_law 'linear'"),
        ({"pruning_curve": [0.0, 1.0]}, r"unknown field 'pruning_curve'; did you mean 'pruning_curve_"),
    ],
    ids=str,
)
def test_measured_laws_that_cannot_be_used(changes: dict[str, Any], message: str) -> None:
    system = jo.systems.ltfl(2, 0)
    with pytest.raises(InputError, match=message):
        system.with_(**{**CURVE, **changes})

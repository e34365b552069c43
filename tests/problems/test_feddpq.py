"""FedDPQ: what the theory says of its optimum, its baselines, what is refused, and what a result supports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import jointopt as jo
from jointopt.decision import Decision
from jointopt.errors import InputError
from jointopt.problems.feddpq import FedDPQ, _Shared
from jointopt.problems.feddpq_cells import FedDPQCells, Stage
from jointopt.relaxation import relaxation
from jointopt.sensitivity import sensitivity
from jointopt.solvers.priced import CellsPriced
from jointopt.study import load_result
from jointopt.system import Augmentation, Bound, Devices, Learner, Radio, System, Target
from jointopt.verification import verify, verify_saved

COUNTS = np.array([[6.0, 1.0], [1.0, 4.0]])


def make(counts: Any = COUNTS, **changes: Any) -> System:
    """Two devices with outage, a few samples of two classes, and a target within reach."""
    counts = np.asarray(counts, dtype=np.float64)
    system = System(
        devices=Devices(
            samples=counts.sum(axis=1),
            cycles_per_sample=2e5,
            frequency=3e7,
            capacitance=1e-26,
            power_min=0.01,
            power_max=0.1,
            delay_budget=1e3,
            energy_budget=1e3,
        ),
        radio=Radio(
            bandwidth=5e4, gain=np.geomspace(2e-14, 8e-15, len(counts)), packet_error="outage", outage_threshold=1.0
        ),
        learner=Learner(parameters=1000, bits_min=3, bits_max=6, pruning_ratio_max=0.8, batch_size=3),
        bound=Bound(
            smoothness=1.0,
            weight_norm_squared=0.3,
            mask_energy=0.05,
            gradient_offset=1.0,
            quantizer_range=0.1,
            gradient_variance=0.5,
            initial_gap=1.0,
            learning_rate=0.1,
            pruning_error="laplace",
        ),
        augmentation=Augmentation(class_counts=counts, gradient_bound=0.4, synthetic_gap=0.2, generation_cycles=1e7),
        target=Target(gradient_norm=0.4, participation=0.6),
    )
    return system.with_(**changes)


@pytest.fixture(scope="module")
def answer() -> jo.Result:
    return jo.solve(FedDPQ(make()), gap=1e-5)


def at(problem: FedDPQ, **changes: Any) -> Any:
    """Evaluate a plain decision, some of it changed."""
    n = len(problem.system)
    return problem.evaluate(
        Decision(
            **{
                "augmentation_level": [0.0],
                "pruning_ratio": np.zeros(n),
                "bits": np.full(n, 6.0),
                "power": np.full(n, 0.1),
                **changes,
            }
        )
    )


# ------------------------------------------------------------------ the model


def test_nothing_lost_and_nothing_compressed_is_plain_sgd() -> None:
    system = make(packet_error="none", participation=1.0, bits_max=32)
    found = at(FedDPQ(system), bits=[32.0, 32.0])
    weight = COUNTS.sum(axis=1) / COUNTS.sum()
    data = 0.4 * np.abs(COUNTS.sum(axis=0) / COUNTS.sum() - 0.5).sum()
    expected = 2.0 * data**2 + 0.1 * 0.5 / 3.0 * float(weight @ weight)
    assert float(found.quantities["gap"]) == pytest.approx(expected, rel=1e-12)
    assert float(found.quantities["contraction"]) == 0.0


def test_full_level_leaves_the_synthetic_gap() -> None:
    found = at(FedDPQ(make()), augmentation_level=[1.0])
    np.testing.assert_allclose(found.quantities["local_gap"], [0.2 * 5 / 12, 0.2 * 3 / 8], rtol=1e-12)


def test_energy_grows_without_bound_near_the_floor() -> None:
    system = make()
    floor = float(at(FedDPQ(system)).quantities["floor"])
    found = [
        float(at(FedDPQ(system.with_(gradient_norm=floor * (1.0 + room)))).objective)
        for room in (1.0, 1e-2, 1e-4, 2e-6)
    ]
    assert np.all(np.diff(found) > 0.0) and found[-1] > 1e4 * found[0]
    below = at(FedDPQ(system.with_(gradient_norm=floor * 0.99)))
    assert np.isinf(below.objective) and not below.feasible()


def test_priced_ratios_are_ends_under_the_linear_error() -> None:
    """2d (i): while neither the margin nor a limit on time is active, no ratio lies between its ends."""
    seen = set()
    for seed in range(200):
        rng = np.random.default_rng(seed)
        system = make(
            pruning_error="linear",
            weight_norm_squared=float(10.0 ** rng.uniform(-3, 0)),
            mask_energy=float(10.0 ** rng.uniform(-3, 0)),
            gain=10.0 ** rng.uniform(-14.5, -12.5, 2),
            participation=float(rng.uniform(0.3, 1.0)),
            quantizer_range=float(10.0 ** rng.uniform(-2, 0)),
        )
        cells = _Shared(FedDPQ(system)).cells(0, 0)
        prices = np.array([10.0 ** rng.uniform(-1, 2), rng.uniform(0.0, 2.0), 0.0, 0.0])
        ratio = CellsPriced(cells).respond(prices, gap=1e-4).decision["pruning_ratio"]
        assert np.all((ratio == 0.0) | (ratio == 0.8))
        seen |= set(ratio.tolist())
    assert seen == {0.0, 0.8}


@pytest.mark.parametrize("seed", range(24))
def test_optimal_ratios_are_ends_under_the_linear_error(seed: int) -> None:
    rng = np.random.default_rng(seed)
    system = make(
        pruning_error="linear",
        weight_norm_squared=float(10.0 ** rng.uniform(-3, -1)),
        mask_energy=float(10.0 ** rng.uniform(-3, -1)),
        gain=10.0 ** rng.uniform(-14, -13, 2),
    )
    result = jo.solve(FedDPQ(system).restrict(augmentation_level=0.0), gap=1e-5)
    if result.feasible and float(result.evaluation.slack["target"]) > 1e-4:
        assert np.all(np.isin(result.decision["pruning_ratio"], [0.0, 0.8]))


def test_slope_in_a_common_ratio_has_the_published_sign() -> None:
    """(e0 + e1 (1 - rho))/(a - b rho) rises with rho where b (e0 + e1) > a e1."""
    signs = set()
    for seed in range(40):
        rng = np.random.default_rng(seed)
        system = make(
            [[3.0, 2.0], [3.0, 2.0]],
            pruning_error="linear",
            gain=1e-13,
            packet_error="none",
            participation=1.0,
            weight_norm_squared=float(10.0 ** rng.uniform(-2.5, -0.5)),
            mask_energy=float(10.0 ** rng.uniform(-3, -1)),
        )
        problem = FedDPQ(system)
        none, half, most = (at(problem, pruning_ratio=np.full(2, r)) for r in (0.0, 0.4, 0.8))
        excess = [0.4 - float(e.quantities["gap"]) for e in (none, most)]
        energy = [float(e.quantities["energy"].sum()) for e in (none, most)]
        if min(excess) <= 0.0:
            continue
        # both are linear: e0 + e1 = energy[0], a = excess[0]
        e1, b = (energy[0] - energy[1]) / 0.8, (excess[0] - excess[1]) / 0.8
        sign = np.sign(b * energy[0] - excess[0] * e1)
        ends = [float(e.objective - e.parts["generation"]) for e in (none, half, most)]
        assert np.all(np.sign(np.diff(ends)) == sign)
        signs.add(float(sign))
    assert signs == {-1.0, 1.0}


def test_the_curve_of_laplace_weights_gives_ratios_inside(answer: jo.Result) -> None:
    assert answer.decision is not None
    ratio = answer.decision["pruning_ratio"]
    assert np.all((ratio > 0.01) & (ratio < 0.79))


def test_full_power_where_uploads_cost_next_to_nothing() -> None:
    system = make(cycles_per_sample=2e12, delay_budget=1e9, energy_budget=1e9)
    result = jo.solve(FedDPQ(system).restrict(augmentation_level=0.0), gap=1e-6)
    assert result.decision is not None
    assert float(result.evaluation.parts["upload"]) < 1e-3 * float(result.evaluation.parts["computing"])
    np.testing.assert_allclose(result.decision["power"], 0.1, rtol=1e-6)


def test_interior_power_where_outage_matters(answer: jo.Result) -> None:
    assert answer.decision is not None
    assert np.any((answer.decision["power"] > 0.0101) & (answer.decision["power"] < 0.0999))


# ------------------------------------------------------------------ answers


def test_a_tighter_target_and_narrower_ranges_never_cost_less() -> None:
    last = 0.0
    for target in (1.0, 0.4, 0.34):
        result = jo.solve(FedDPQ(make(gradient_norm=target)), gap=1e-4)
        assert result.value is not None and result.value >= last * (1.0 - 1e-4)
        last = result.value
    free = jo.solve(FedDPQ(make()), gap=1e-4).value
    for ranges in ({"bits": (3, 4)}, {"power": (0.03, 0.06)}, {"pruning_ratio": 0.1}, {"augmentation_level": (0.5, 1)}):
        narrow = jo.solve(FedDPQ(make()).restrict(**ranges), gap=1e-4)
        assert narrow.value is None or narrow.value >= free * (1.0 - 1e-4)
    wide = jo.solve(FedDPQ(make(power_max=0.2, bits_max=7)), gap=1e-4).value
    assert wide <= free * (1.0 + 1e-4)


def test_order_of_devices_does_not_matter() -> None:
    system = make([[5.0, 1.0], [1.0, 3.0], [2.0, 2.0]])
    values = [jo.solve(FedDPQ(system.take(order)), gap=1e-6).value for order in ([0, 1, 2], [2, 0, 1])]
    assert values[0] == pytest.approx(values[1], rel=2e-6)


@pytest.mark.parametrize("name", ["no_augmentation", "no_compression", "no_power_control", "fedsgd"])
def test_baselines_are_the_design_restricted(name: str) -> None:
    problem = FedDPQ(make(gradient_norm=1.0))
    free = jo.solve(problem, gap=1e-5)
    found = jo.solve(problem, method=name)
    assert found.value is not None and free.value is not None
    assert found.value >= free.value * (1.0 - 1e-4)
    plain = {"pruning_ratio": 0.0, "bits": 32}
    power = {"power": 0.1}
    ranges: dict[str, dict[str, Any]] = {
        "no_augmentation": {"augmentation_level": 0.0},
        "no_compression": plain,
        "no_power_control": power,
        "fedsgd": {"augmentation_level": 0.0, **plain, **power},
    }
    same = jo.solve(problem.restrict(**ranges[name]), gap=1e-5)
    assert found.value == pytest.approx(same.value, rel=1e-4)
    for key, value in ranges[name].items():
        np.testing.assert_allclose(found.decision[key], value)
    if name == "fedsgd":
        # a single decision: nothing is left to choose
        only = at(problem, bits=[32.0, 32.0])
        assert found.value == pytest.approx(float(only.objective), rel=1e-12)


def test_floor_says_which_targets_are_within_reach() -> None:
    system = make()
    floor = jo.solve(FedDPQ(system, objective="floor"), gap=1e-6).value
    assert floor is not None
    below = jo.solve(FedDPQ(system.with_(gradient_norm=floor * 0.99)), gap=1e-4)
    assert below.status == "infeasible"
    conflict = next(c for c in below.infeasibility if c.binding == "gradient_norm")
    assert conflict.relax["gradient_norm"] == pytest.approx(floor, rel=1e-3)
    above = jo.solve(FedDPQ(system.with_(gradient_norm=float(conflict.relax["gradient_norm"]) * 1.002)), gap=1e-3)
    assert above.status == "optimal"


def test_limit_on_the_duration() -> None:
    system, fixed = make([[3.0, 1.0]]), {"augmentation_level": 0.0, "bits": 4, "pruning_ratio": 0.3}
    # a power is all there is to choose
    power = np.geomspace(0.01, 0.1, 20_001)[:, None]
    every = at(FedDPQ(system), power=power, bits=[4.0], pruning_ratio=[0.3])
    duration, energy = every.quantities["training_delay"], every.objective
    free, fastest = duration[np.argmin(energy)], duration.min()
    assert fastest < 0.999 * free
    limit = 0.5 * (free + fastest)
    problem = FedDPQ(system.with_(delay_limit=float(limit))).restrict(**fixed)
    found = jo.solve(problem, gap=1e-3)
    assert found.status == "optimal"
    assert float(found.evaluation.quantities["training_delay"]) <= limit * (1.0 + 2e-9)
    assert found.value == pytest.approx(energy[duration <= limit].min(), rel=1.1e-3)
    assert found.value > energy.min() * (1.0 + 1e-6)
    short = jo.solve(problem.with_system(system.with_(delay_limit=float(0.98 * fastest))), gap=1e-3)
    assert short.status == "infeasible"
    conflict = next(c for c in short.infeasibility if c.binding == "delay_limit")
    assert conflict.relax["delay_limit"] == pytest.approx(fastest, rel=1.1e-3)


def test_margin_is_kept_and_costs() -> None:
    system = make([[3.0, 1.0]])
    free = jo.solve(FedDPQ(system).restrict(augmentation_level=0.0), gap=1e-4)
    excess = float(free.evaluation.slack["target"])
    margin = 1.15 * excess
    tight = jo.solve(FedDPQ(system.with_(margin=margin)).restrict(augmentation_level=0.0), gap=1e-3)
    assert tight.feasible and float(tight.evaluation.slack["target"]) >= -1e-9 * 0.4
    assert tight.value >= free.value * (1.0 - 1e-9)
    with pytest.raises(InputError, match="margin"):
        system.with_(margin=0.4)


def test_results_are_verified_and_saved(answer: jo.Result, tmp_path: Path) -> None:
    found = verify(answer)
    assert found.complete, found
    problem, decision, data = load_result(answer.save(tmp_path / "one.json"))
    again = problem.evaluate(decision)
    assert float(again.objective) == pytest.approx(answer.value, rel=1e-12)
    verify_saved(problem, decision, data)
    for objective in ("floor",):
        result = jo.solve(FedDPQ(make(), objective=objective))  # type: ignore[arg-type]
        assert verify(result).complete
        again = load_result(result.save(tmp_path / "two.json"))[0]
        assert again.settings()["objective"] == objective


def test_infeasible_results_are_verified() -> None:
    result = jo.solve(FedDPQ(make(gradient_norm=0.01)))
    assert result.status == "infeasible"
    verify(result)


def test_sensitivity_at_one_level() -> None:
    problem = FedDPQ(make()).restrict(augmentation_level=0.5)
    result = jo.solve(problem, gap=1e-7)
    found = sensitivity(problem, result.decision)
    assert found.value == pytest.approx(result.value, rel=1e-6)
    gain, change = problem.system.radio.gain, 1e-3
    moved = problem.with_system(make(gain=gain * np.array([1.0 + change, 1.0])))
    slope = (result.value - jo.solve(moved, gap=1e-7).value) / (gain[0] * change)
    assert found["gain"][0] == pytest.approx(slope, rel=0.02)


def test_sensitivity_keeps_the_level(answer: jo.Result) -> None:
    found = sensitivity(answer.problem, answer.decision)
    np.testing.assert_allclose(found.decision["augmentation_level"], answer.decision["augmentation_level"])


def test_relaxation_of_a_target_out_of_reach() -> None:
    problem = FedDPQ(make(delay_budget=[0.5, 1e3], gradient_norm=1.0))
    least = float(at(problem, bits=[3.0, 3.0], pruning_ratio=[0.8, 0.8]).quantities["delay"][0])
    problem = problem.with_system(problem.system.with_(delay_budget=[least * 0.9, 1e3]))
    result = jo.solve(problem)
    assert result.status == "infeasible"
    assert any(
        c.device == 0 and c.relax["delay_budget"] == pytest.approx(least, rel=1e-6) for c in result.infeasibility
    )
    found = relaxation(problem, result.decision, result.infeasibility)
    assert found.ways and "delay_budget" in found.summary()


# ------------------------------------------------------------------ what is refused


@pytest.mark.parametrize("section", ["augmentation", "target"])
def test_systems_without_the_sections_are_refused(section: str) -> None:
    parts = {k: v for k, v in make().to_dict().items() if k != section}
    with pytest.raises(InputError, match=f"{section}: is missing"):
        FedDPQ(System.from_dict(parts))


def test_bad_problems_are_refused() -> None:
    with pytest.raises(InputError, match=r"objective: unknown 'energi'.*energy"):
        FedDPQ(make(), objective="energi")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"learning_rate: 1.1 is above 1/smoothness"):
        FedDPQ(make(learning_rate=1.1))
    FedDPQ(make(learning_rate=1.0))
    with pytest.raises(InputError, match="expected a System"):
        FedDPQ(jo.systems.coinference())  # type: ignore[arg-type]
    with pytest.raises(InputError, match="augmentation: is missing"):
        FedDPQ(jo.systems.ltfl(3, 0))
    with pytest.raises(InputError, match="device 1: the SNR"):
        FedDPQ(make(gain=[1e-13, 1e-90]))


@pytest.mark.parametrize(
    ("ranges", "message"),
    [
        ({"augmentation_level": (-0.1, 0.5)}, "augmentation_level"),
        ({"augmentation_level": 1.5}, "augmentation_level"),
        ({"augmentation_level": [0.1, 0.2, 0.3]}, "augmentation_level"),
        ({"augmentation_level": np.nan}, "augmentation_level"),
        ({"pruning_ratio": 0.81}, "pruning_ratio must lie within 0 and 0.8"),
        ({"pruning_ratio": (-0.1, 0.2)}, "pruning_ratio"),
        ({"bits": 4.5}, "bits must be whole"),
        ({"bits": 33}, "bits must be whole"),
        ({"bits": 0}, "bits must be whole"),
        ({"power": (0.001, 0.1)}, "power must lie within"),
        ({"power": (0.1, 0.01)}, "power"),
        ({"level": 0.5}, "level"),
        ({"pruning_ratio": np.zeros(5)}, "pruning_ratio"),
    ],
)
def test_bad_ranges_are_refused(ranges: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        FedDPQ(make()).restrict(**ranges)


def test_ranges_are_kept() -> None:
    problem = FedDPQ(make(), objective="floor").restrict(augmentation_level=(0.2, 0.7), power=(0.02, 0.05))
    assert problem.objective == "floor" and problem.settings()["objective"] == "floor"
    again = FedDPQ.from_settings(problem.system, problem.settings())
    for name, ends in problem.ranges.items():
        np.testing.assert_array_equal(again.ranges[name][0], ends[0])
        np.testing.assert_array_equal(again.ranges[name][1], ends[1])
    assert problem.levels[0] == 0.2 and problem.levels[-1] == 0.7


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"augmentation_level": [np.nan]}, "augmentation_level"),
        ({"augmentation_level": [0.1, 0.2, 0.3]}, "decision"),
        ({"power": [0.05] * 3}, "decision"),
        ({"colour": [1.0]}, "colour"),
    ],
)
def test_bad_decisions_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        at(FedDPQ(make()), **changes)


@pytest.mark.parametrize("level", [-0.2, 1.2])
def test_levels_outside_their_range_are_not_feasible(level: float) -> None:
    found = at(FedDPQ(make()), augmentation_level=[level])
    assert float(found.slack["augmentation_level"].min()) == pytest.approx(-0.2)
    assert not found.feasible()


def test_nothing_but_sums_can_be_capped() -> None:
    problem = FedDPQ(make())
    cells = FedDPQCells(problem.system, problem.ranges, Stage.between(problem.system, 0.0, 0.0))
    with pytest.raises(InputError, match="cannot be capped"):
        cells.capped(0, np.ones(2))


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.8, 1.0])
def test_a_search_finds_its_own_points_again(share: float) -> None:
    """Powers are clipped, so the received SNR is not that of all devices: yet the same decision must come back."""
    search = FedDPQ(jo.systems.feddpq(12, 0)).capabilities().search
    assert search is not None
    x = np.array([0.6, 0.3, 8.0, search.lower[3] * (search.upper[3] / search.lower[3]) ** share])
    decision = search.complete(x)
    again = search.complete(search.locate(decision))
    for name, value in decision.items():
        np.testing.assert_allclose(again[name], value, rtol=1e-9, err_msg=name)


def test_a_limit_on_the_duration_that_is_not_felt_costs_nothing() -> None:
    system = jo.systems.feddpq(4, 0)
    free = jo.solve(FedDPQ(system), gap=0.02)
    assert free.value is not None and free.evaluation is not None and free.lower_bound is not None
    limit = 1.5 * float(free.evaluation.quantities["training_delay"])
    bound = jo.solve(FedDPQ(system.with_(delay_limit=limit)), gap=0.02)
    assert bound.status == "optimal" and bound.value is not None
    assert bound.value >= free.lower_bound * (1.0 - 1e-9) and free.value >= (bound.lower_bound or 0.0) * (1.0 - 1e-9)

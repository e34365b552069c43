"""Ratio and bandwidth: published golden values, KKT residuals, convexity of the cells, brute force, selection."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

import jointopt as jo
from jointopt.decision import Decision
from jointopt.errors import InputError
from jointopt.models import channel
from jointopt.models.allocation import liu_ratio_bandwidth
from jointopt.problem import CellList
from jointopt.problems import DESIGNS, RatioBandwidth, RatioBandwidthSelection
from jointopt.problems.band_cells import BandCells
from jointopt.problems.band_split import closed_form
from jointopt.study import load_result
from jointopt.system import Bound, Devices, Learner, Radio, System
from jointopt.verification import verify, verify_saved


def golden(**changes: Any) -> System:
    """Three devices with t_c = (.3, .5, .4) s, 2, 1 and 4 bit/s/Hz, 1 Mbit, 0.35 s and 2 MHz."""
    efficiency, density = np.array([2.0, 1.0, 4.0]), 1e-20
    total = 2e6
    system = System(
        devices=Devices(
            samples=[100.0, 100.0, 100.0],
            cycles_per_sample=np.array([0.3, 0.5, 0.4]) * 1e9 / 100.0,
            frequency=1e9,
            capacitance=1e-28,
            power_min=0.01,
            power_max=0.1,
            delay_budget=0.35,
            energy_budget=1.0,
        ),
        radio=Radio(
            total_bandwidth=total,
            gain=(2.0**efficiency - 1.0) * density * total / 3.0 / 0.1,
            noise_density=density,
            fading="none",
            packet_error="none",
        ),
        learner=Learner(parameters=31_250, bits_max=32, header_bits=0.0, pruning_ratio_max=0.99),
        bound=Bound(smoothness=1.0, weight_norm_squared=1.0, mask_energy=0.5, gradient_offset=1.0, quantizer_range=1.0),
    )
    return system.with_(**changes) if changes else system


def cells_of(problem: RatioBandwidth) -> BandCells:
    cells = problem.capabilities().cells
    assert isinstance(cells, BandCells)
    return cells


def sampled(seed: int, devices: int = 6, **changes: Any) -> System:
    """Systems of many kinds: gains, fading, laws of computing, of the payload and of the error."""
    rng = np.random.default_rng(seed)
    system = jo.systems.feel(devices, seed)
    own: dict[str, Any] = {
        "gain": system.radio.gain * 10.0 ** rng.uniform(-2.0, 2.0, devices),
        "fading": rng.choice(["rayleigh", "none"]),
        "pruning_error": rng.choice(["linear", "laplace"]),
        "compute_law": rng.choice(["linear", "mask"]),
        "mask_encoding": rng.choice(["none", "bitmap", "indices"]),
        "delay_budget": system.devices.delay_budget * rng.uniform(1.0, 2.5, devices),
    }
    return system.with_(**(own | changes))


@pytest.mark.parametrize("method", ["exact", "alternating"])
def test_golden_values_of_the_literature_s_closed_form(method: str) -> None:
    options: dict[str, Any] = {"gap": 1e-9} if method == "exact" else {}
    result = jo.solve(RatioBandwidth(golden(), limit="density"), method=method, **options)
    assert result.decision is not None
    np.testing.assert_allclose(result.decision["bandwidth"], [978_160, 244_209, 777_631], rtol=2e-3)
    np.testing.assert_allclose(result.decision["pruning_ratio"], [0.568521, 0.923828, 0.514892], atol=1e-4)
    assert result.value == pytest.approx(3.0 * np.mean([0.568521, 0.923828, 0.514892]), rel=1e-6)


def test_closed_form_is_the_one_of_the_models_where_nothing_is_sent_or_computed_once() -> None:
    problem = RatioBandwidth(golden(), limit="density")
    cells = cells_of(problem)
    band = closed_form(cells, problem.bands, cells.fixed_efficiency, np.ones(3, dtype=bool))
    known = liu_ratio_bandwidth(
        compute_delay=[0.3, 0.5, 0.4],
        spectral_efficiency=[2.0, 1.0, 4.0],
        payload=1e6,
        deadline=0.35,
        total_bandwidth=2e6,
        pruning_ratio_max=0.99,
    )
    assert band is not None
    np.testing.assert_allclose(band, np.asarray(known.bandwidth), rtol=1e-9)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("limit", ["power", "density"])
def test_marginal_gain_of_band_is_equal_where_it_is_free(seed: int, limit: Any) -> None:
    problem = RatioBandwidth(RatioBandwidth.sample(devices=12, seed=seed), limit=limit)
    result = jo.solve(problem, gap=1e-9)
    assert result.decision is not None and result.evaluation is not None
    assert result.certificate.kind == "dual" and result.gap is not None and result.gap < 1e-6
    band = result.decision["bandwidth"]
    # dual feasibility and complementarity: the band is used up at one price
    assert band.sum() == pytest.approx(problem.bands[0], rel=1e-5)
    price = result.certificate.multipliers["bandwidth"]
    cells = cells_of(problem)
    step = 1e-5

    def cost(at: np.ndarray) -> np.ndarray:
        unit = np.arange(12)
        zero = np.zeros(12, dtype=int)
        return cells.weight * cells.error(cells.kept(unit, zero, cells.rate(unit, at)))

    slope = (cost(band * (1.0 + step)) - cost(band * (1.0 - step))) / (2.0 * step * band)
    inside = (band > cells.low[0] * 1.001) & (band < cells.high[0] * 0.999)
    assert inside.sum() >= 3
    np.testing.assert_allclose(-slope[inside], price, rtol=5e-2)
    # every deadline is used where something is pruned
    pruned = result.decision["pruning_ratio"] > 1e-9
    np.testing.assert_allclose(result.evaluation.slack["delay"][pruned], 0.0, atol=1e-8)


@pytest.mark.parametrize("seed", range(8))
def test_no_band_is_better_than_the_bound_of_its_cell(seed: int) -> None:
    rng = np.random.default_rng(seed)
    problem = RatioBandwidth(sampled(seed), limit="power" if seed % 2 else "density")
    cells = cells_of(problem)
    units = np.flatnonzero(cells.feasible[0])
    assert units.size
    count = 3_000
    unit = rng.choice(units, count)
    label = np.zeros(count, dtype=int)
    ends = np.sort(rng.random((2, count)), axis=0)
    low, high = (cells.low[0, unit] * (cells.high[0, unit] / cells.low[0, unit]) ** e for e in ends)
    prices = np.stack([np.ones(count), 10.0 ** rng.uniform(-3.0, 3.0, count) * cells.whole / problem.bands[0]])
    some = cells.take(unit)
    rows = np.arange(count)
    bound, hint = some.bound(prices, CellList(rows, label, low, high, some.probe(rows, low), some.probe(rows, high)))
    assert np.all((hint >= low) & (hint <= high))
    for _ in range(20):
        x = low + (high - low) * rng.random(count)
        value = some.value(prices, rows, label, x, some.probe(rows, x))
        assert np.all(value >= bound - 1e-9 * np.abs(value))


@pytest.mark.parametrize("seed", range(4))
def test_evaluation_follows_from_the_models(seed: int) -> None:
    system = sampled(seed)
    problem = RatioBandwidth(system)
    rng = np.random.default_rng(seed)
    ratio, band = rng.uniform(0.0, 0.9, 6), problem.bands[0] * rng.dirichlet(np.ones(6))
    found = problem.evaluate(Decision(pruning_ratio=ratio, bandwidth=band, power=system.devices.power_max))
    learner = system.learner
    rate = channel.rate(
        band, system.devices.power_max * system.radio.gain / (band * system.radio.noise_density), system.radio.fading
    )
    kept = (1.0 - ratio) * learner.parameters
    index = {"none": 0.0, "bitmap": 0.0, "indices": np.ceil(np.log2(learner.parameters))}[learner.mask_encoding]
    bits = kept * (learner.bits_max + index) + learner.unpruned_parameters * learner.bits_max + learner.header_bits
    bits = bits + (learner.parameters if learner.mask_encoding == "bitmap" else 0.0)
    compute = system.batch * system.devices.cycles_per_sample / system.devices.frequency
    compute = compute * (1.0 - ratio if learner.compute_law == "linear" else 1.0)
    np.testing.assert_allclose(found.quantities["delay"], compute + bits / rate, rtol=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_three_devices_against_a_generic_solver(seed: int) -> None:
    problem = RatioBandwidth(RatioBandwidth.sample(devices=3, seed=seed))
    result = jo.solve(problem, gap=1e-7)
    cells = cells_of(problem)
    unit, zero = np.arange(3), np.zeros(3, dtype=int)

    def cost(share: np.ndarray) -> float:
        # a sum above one is the solver's tolerance
        rate = cells.rate(unit, share / max(share.sum(), 1.0) * problem.bands[0])
        return float((cells.weight * cells.error(cells.kept(unit, zero, rate))).sum())

    low = cells.low[0] / problem.bands[0]
    solver: Any = minimize
    best = min(
        solver(
            cost,
            np.array(start),
            method="SLSQP",
            bounds=[(b, 1.0) for b in low],
            constraints={"type": "ineq", "fun": lambda x: 1.0 - x.sum()},
            options={"ftol": 1e-13, "maxiter": 300},
        ).fun
        for start in ([0.3, 0.3, 0.3], [0.5, 0.2, 0.2], [0.2, 0.2, 0.5])
    )
    assert result.value == pytest.approx(best, rel=1e-5)
    assert result.lower_bound is not None and result.lower_bound <= best * (1.0 + 1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_selection_against_all_subsets(seed: int) -> None:
    system = RatioBandwidthSelection.sample(devices=4, seed=seed)
    problem = RatioBandwidthSelection(system)
    result = jo.solve(problem, gap=1e-2)
    values = []
    for chosen in product([0.0, 1.0], repeat=4):
        if not any(chosen):
            continue
        one = jo.solve(problem.restrict(selected=np.array(chosen)), gap=1e-4)
        values.append(np.inf if one.value is None else one.value)
    assert result.value is not None and result.lower_bound is not None
    assert result.lower_bound <= min(values) * (1.0 + 1e-9)
    # whole choices of few devices may leave a gap between bound and value
    assert result.value <= min(values) * (1.0 + 1e-2)
    rule = jo.solve(problem, method="threshold")
    assert rule.value is not None and min(values) * (1.0 - 1e-4) <= rule.value <= 1.1 * min(values)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000), st.floats(1.01, 3.0))
def test_a_later_deadline_never_prunes_more(seed: int, factor: float) -> None:
    system = RatioBandwidth.sample(devices=5, seed=seed)
    early = jo.solve(RatioBandwidth(system), gap=1e-5)
    late = jo.solve(RatioBandwidth(system.with_(delay_budget=factor * system.devices.delay_budget)), gap=1e-5)
    if early.value is not None:
        assert late.value is not None and late.value <= early.value * (1.0 + 1e-5) + 1e-9


def test_baselines_are_no_better_and_no_worse_than_they_say() -> None:
    system = RatioBandwidthSelection.sample(devices=8, seed=1)
    problem = RatioBandwidthSelection(system)
    best = jo.solve(problem, gap=1e-4)
    assert best.lower_bound is not None and best.value is not None
    others = {
        method: jo.solve(problem, method=method, gap=1e-3)
        for method in ("threshold", "random_selection", "equal_bandwidth", "no_pruning")
    }
    for method, result in others.items():
        assert result.value is None or result.value >= best.lower_bound * (1.0 - 1e-9), method
    threshold, random = others["threshold"], others["random_selection"]
    assert threshold.value is not None and random.value is not None and threshold.value < random.value
    again = jo.solve(problem, method="random_selection", seed=0)
    assert again.decision == random.decision


@pytest.mark.parametrize("kind", [RatioBandwidth, RatioBandwidthSelection])
def test_results_are_verified_kept_and_carried_out(kind: Any, tmp_path: Path) -> None:
    problem = kind(kind.sample(devices=8, seed=2), limit="density").restrict(pruning_ratio=(0.0, 0.85))
    result = jo.solve(problem, gap=1e-4)
    assert verify(result).complete
    loaded, decision, data = load_result(result.save(tmp_path / "r.json"))
    assert decision == result.decision and loaded.settings() == problem.settings()
    assert verify_saved(loaded, decision, data).value == pytest.approx(result.value)
    again = DESIGNS[kind.name].from_settings(problem.system, problem.settings())
    assert again.settings() == problem.settings()
    assert jo.solve(again, gap=1e-4).value == result.value


def test_training_carries_the_decision_out() -> None:
    system = RatioBandwidthSelection.sample(devices=6, seed=0)
    result = jo.solve(RatioBandwidthSelection(system), gap=1e-4)
    trained = jo.train(result, jo.Task.for_system(system, data="digits"), rounds=2)
    assert trained.summary()


def test_infeasible_devices_are_named_with_what_would_do() -> None:
    system = RatioBandwidth.sample(devices=5, seed=0)
    short = system.devices.delay_budget.copy()
    short[3] = 1e-4
    problem = RatioBandwidth(system.with_(delay_budget=short))
    result = jo.solve(problem)
    assert result.status == "infeasible"
    (conflict,) = result.infeasibility
    assert conflict.device == 3 and conflict.binding == "delay"
    need = conflict.relax["delay_budget"]
    assert need is not None and need > 1e-4
    short[3] = need * (1.0 + 1e-9)
    assert bool(cells_of(RatioBandwidth(system.with_(delay_budget=short))).feasible[0, 3])
    short[3] = need * (1.0 - 1e-6)
    assert not bool(cells_of(RatioBandwidth(system.with_(delay_budget=short))).feasible[0, 3])
    verify(result)
    # who cannot take part is left out; where nobody can, everyone is named
    kept = jo.solve(RatioBandwidthSelection(problem.system), gap=1e-4)
    assert kept.decision is not None and kept.decision["selected"][3] == 0.0
    nobody = jo.solve(RatioBandwidthSelection(system.with_(delay_budget=1e-4)))
    assert nobody.status == "infeasible" and len(nobody.infeasibility) == 5
    verify(nobody)


def test_a_band_too_narrow_for_all_is_said() -> None:
    system = RatioBandwidth.sample(devices=5, seed=0)
    result = jo.solve(
        RatioBandwidth(system.with_(total_bandwidth=1.2 * float(cells_of(RatioBandwidth(system)).low.max())))
    )
    assert result.status == "infeasible" and [c.binding for c in result.infeasibility] == ["bandwidth"]
    verify(result)


def test_bad_input_is_refused() -> None:
    system = RatioBandwidth.sample(devices=4)
    with pytest.raises(InputError, match="limit: unknown 'powr'; did you mean 'power'"):
        RatioBandwidth(system, limit="powr")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"interference\[device 0\]"):
        RatioBandwidth(system.with_(interference=1e-15))
    problem = RatioBandwidthSelection(system)
    for ranges, text in (
        ({"power": 0.1}, "power follows"),
        ({"pruning_ratio": 0.95}, "within 0 and 0.9"),
        ({"bandwidth": 1e9}, "band to be shared"),
        ({"selected": 0.5}, "0 or 1"),
        ({"bits": 8}, "unknown variable"),
    ):
        with pytest.raises(InputError, match=text):
            problem.restrict(**ranges)

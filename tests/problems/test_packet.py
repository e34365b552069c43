"""Ratio against packet error: bounds between latencies, brute force over the latency, trade-off, bad input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import jointopt as jo
from jointopt.decision import Decision
from jointopt.errors import InputError
from jointopt.problem import Shared
from jointopt.problems import RatioError
from jointopt.solvers.exact import minimize_sums
from jointopt.solvers.priced import priced_from
from jointopt.study import load_result
from jointopt.system import Tradeoff
from jointopt.verification import verify, verify_saved


def shared_of(problem: RatioError) -> Shared:
    shared = problem.capabilities().shared
    assert shared is not None
    return shared


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("law", ["linear", "laplace"])
def test_no_decision_between_two_latencies_lies_below_their_bound(seed: int, law: str) -> None:
    rng = np.random.default_rng(seed)
    problem = RatioError(RatioError.sample(devices=5, seed=seed).with_(pruning_error=law))
    best = jo.solve(problem, method="alternating").decision
    assert best is not None
    shared = shared_of(problem)
    middle = float(problem.evaluate(best).quantities["latency"])
    for width in (0.02, 0.2):
        first, last = middle * (1.0 - width * rng.random()), middle * (1.0 + width)
        sums, units = shared.within(np.array([first]), np.array([last]))
        bound = minimize_sums(sums, priced_from(units), gap=1e-4).lower_bound
        assert bound is not None
        tried = 0
        for _ in range(12):
            share = rng.dirichlet(30.0 * best["bandwidth"] / best["bandwidth"].sum() + 0.3)
            found = problem.at_bands(share * problem.bands[0])
            latency = rng.uniform(first, last)
            ratio = problem._filled(problem.cells(latency), share * problem.bands[0], np.ones(5, dtype=bool))
            for decision in (found, ratio):
                if decision is None:
                    continue
                evaluation = problem.evaluate(decision)
                if bool(evaluation.feasible()) and first <= float(evaluation.quantities["latency"]) <= last:
                    tried += 1
                    assert float(evaluation.objective) >= bound * (1.0 - 1e-9)
        assert tried > 2


def test_the_bound_is_tight_to_second_order() -> None:
    problem = RatioError(RatioError.sample(devices=4, seed=0), limit="density")
    shared = shared_of(problem)
    best = jo.solve(problem, gap=3e-4)
    assert best.value is not None and best.evaluation is not None
    middle = float(best.evaluation.quantities["latency"])
    short = []
    for width in (0.08, 0.02):
        ends = np.array([middle * (1.0 - width)]), np.array([middle * (1.0 + width)])
        sums, units = shared.within(*ends)
        bound = minimize_sums(sums, priced_from(units), gap=1e-7).lower_bound
        assert bound is not None
        short.append(best.value - bound)
    # a quarter of the width, far less than a quarter of the error
    assert short[1] < 0.2 * short[0] + 4e-4 * best.value


@pytest.mark.parametrize("seed", [0])
def test_scanned_latencies_find_nothing_better(seed: int) -> None:
    problem = RatioError(RatioError.sample(devices=4, seed=seed), limit="density")
    result = jo.solve(problem, gap=1e-3)
    assert result.status == "optimal" and result.value is not None and result.lower_bound is not None
    shared = shared_of(problem)
    values = []
    for latency in np.linspace(shared.lower[0], shared.upper[0], 13):
        sums, units = shared.within(np.array([latency]), np.array([latency]))
        answer = minimize_sums(sums, priced_from(units), gap=5e-4)
        values.append(np.inf if answer.value is None else answer.value)
    assert result.lower_bound <= min(values) * (1.0 + 1e-9)
    assert result.value <= min(values) * (1.0 + 2e-3)


def test_a_dearer_second_makes_a_shorter_round_that_learns_less() -> None:
    system = RatioError.sample(devices=4, seed=1)
    rows = []
    for factor in (0.3, 3.0):
        weight = factor * system.tradeoff.latency_weight  # type: ignore[union-attr]
        result = jo.solve(RatioError(system.with_(latency_weight=weight), limit="density"), gap=3e-3)
        assert result.evaluation is not None
        rows.append((float(result.evaluation.quantities["latency"]), float(result.evaluation.quantities["gap"])))
    latencies, gaps = zip(*rows, strict=True)
    assert list(latencies) == sorted(latencies, reverse=True) and list(gaps) == sorted(gaps)
    assert latencies[-1] < latencies[0]


def test_parts_follow_from_the_models() -> None:
    system = RatioError.sample(devices=5, seed=0)
    problem = RatioError(system)
    rng = np.random.default_rng(0)
    band = problem.bands[0] * rng.dirichlet(np.ones(5))
    decision = Decision(pruning_ratio=np.full(5, 0.3), bandwidth=band, power=system.devices.power_max)
    found = problem.evaluate(decision)
    bound = system.bound
    error = bound.smoothness**2 * bound.weight_norm_squared + bound.mask_energy
    factor = 8.0 * bound.gradient_offset + 2.0 * 0.9 * error
    lost = found.quantities["packet_error"]
    assert found.parts["transmission"] == pytest.approx(factor * float((system.weight * lost).sum()))
    assert found.parts["pruning"] == pytest.approx(2.0 * 0.3 * error)
    assert found.parts["latency"] == pytest.approx(problem.latency_weight * float(found.quantities["delay"].max()))


def test_baselines_are_no_better() -> None:
    problem = RatioError(RatioError.sample(devices=4, seed=2), limit="density")
    best = jo.solve(problem, gap=3e-3)
    assert best.lower_bound is not None
    for method in ("unaware", "alternating", "equal_bandwidth", "no_pruning"):
        options: dict[str, Any] = {} if method in ("unaware", "alternating") else {"gap": 1e-2}
        other = jo.solve(problem, method=method, **options)
        assert other.value is not None and other.value >= best.lower_bound * (1.0 - 1e-9), method


def test_results_are_verified_saved_and_carried_out(tmp_path: Path) -> None:
    system = RatioError.sample(devices=4, seed=2).with_(gradient_slope=1e-3)
    problem = RatioError(system)
    result = jo.solve(problem, gap=1e-2)
    assert result.certificate.kind == "branch" and verify(result).complete
    loaded, decision, data = load_result(result.save(tmp_path / "packet.json"))
    assert decision == result.decision and loaded.system == system
    verify_saved(loaded, decision, data)
    assert jo.train(result, jo.Task.for_system(system, data="digits"), rounds=2).summary()


def test_infeasible_devices_are_named() -> None:
    system = RatioError.sample(devices=4, seed=0)
    budget = system.devices.delay_budget.copy()
    budget[1] = 1e-5
    result = jo.solve(RatioError(system.with_(delay_budget=budget)))
    assert result.status == "infeasible" and [c.device for c in result.infeasibility] == [1]
    verify(result)


def test_bad_input_is_refused() -> None:
    for weight in (0.0, -1.0, float("nan")):
        with pytest.raises(InputError, match="latency_weight"):
            Tradeoff(latency_weight=weight)
    with pytest.raises(InputError, match=r"needs the table \[tradeoff\]"):
        RatioError(jo.systems.feel(4))

"""PooledLTFL against an oracle written from the model functions, and its cell bounds against a million points."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import jointopt as jo
from jointopt.errors import InputError
from jointopt.models import channel, compression, convergence, cost
from jointopt.problem import CellList
from jointopt.problems.pooled import PooledLTFL
from jointopt.problems.pooled_cells import PooledCells
from jointopt.solvers.branch import respond

FEATURES = 4


def oracle(
    problem: PooledLTFL, unit: Any, ratio: Any, bits: Any, power: Any, band: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Features [4, points] and relative excess of delay of single devices, from the models only."""
    system = problem.system
    devices, radio, learner, bound = system.devices, system.radio, system.learner, system.bound
    snr = power * radio.gain[unit] / (band * radio.noise_density)
    rate = channel.rate(band, snr, radio.fading)
    threshold = radio.waterfall_threshold if radio.packet_error == "waterfall" else radio.outage_threshold
    lost = channel.packet_error(snr, threshold, radio.packet_error, radio.fading)
    kept = (1.0 - ratio) * learner.parameters
    index, once = compression.index_bits(learner.parameters, learner.mask_encoding)
    payload = compression.payload_bits(
        kept,
        bits,
        unpruned=learner.unpruned_parameters,
        header=learner.header_bits,
        index_per_weight=index,
        index_once=once,
    )
    work = system.batch[unit] * devices.cycles_per_sample[unit]
    work = work * learner.compute_factor(ratio)
    delay = cost.compute_delay(work, devices.frequency[unit]) + cost.upload_delay(payload, rate)
    energy = cost.compute_energy(work, devices.frequency[unit], devices.capacitance[unit])
    energy = energy + cost.upload_energy(payload, rate, power)
    gap = convergence.gap(
        weight=system.weight[unit],
        packet_error=lost,
        pruning_ratio=ratio,
        pruning_error=compression.pruning_error(ratio, bound.pruning_law),
        quantization_variance=compression.quantization_variance(
            kept + learner.unpruned_parameters, np.broadcast_to(bound.quantizer_range, len(system))[unit], bits
        ),
        smoothness=bound.smoothness,
        weight_norm_squared=bound.weight_norm_squared,
        mask_energy=bound.mask_energy,
        gradient_offset=bound.gradient_offset,
        gradient_slope=bound.gradient_slope,
        error_cap=problem.constants["error_cap"],
        sampling_variance=problem.sampling[unit],
    )
    features = np.stack([gap.total, band + 0.0 * ratio, energy, gap.contraction])
    return features, delay / devices.delay_budget[unit] - 1.0


def sampled(seed: int, devices: int = 12, **changes: Any) -> jo.System:
    """System of many kinds of device: gains, budgets, laws and powers drawn over wide ranges."""
    rng = np.random.default_rng(seed)
    system = jo.systems.ltfl(devices, seed)
    own: dict[str, Any] = {
        "gain": system.radio.gain * 10.0 ** rng.uniform(-3.0, 3.0, devices),
        "fading": rng.choice(["rayleigh", "none"]),
        "packet_error": rng.choice(["waterfall", "none"]),
        "pruning_error": rng.choice(["linear", "laplace"]),
        "compute_law": rng.choice(["linear", "mask"]),
        "mask_encoding": rng.choice(["none", "bitmap", "indices"]),
        "gradient_slope": float(rng.choice([0.0, 1e-3])),
        "delay_budget": system.devices.delay_budget * rng.uniform(0.7, 3.0, devices),
    }
    if rng.random() < 0.3:
        own["power_min"] = system.devices.power_max
    elif rng.random() < 0.5:
        own["power_min"] = system.devices.power_min * 10.0 ** rng.uniform(-6.0, 0.0, devices)
    return system.with_(**(own | changes))


MEASURED = 100
"""Seeds from here on have measured laws of pruning."""


def measured(seed: int) -> dict[str, Any]:
    """A random convex curve, flat at its start or not, with jumps of its slope, and a random floor of computing."""
    rng = np.random.default_rng([seed, 9])
    knots = np.append(0.0, np.cumsum(10.0 ** rng.uniform(-1.5, 0.0, rng.integers(1, 12))))
    slopes = np.cumsum(10.0 ** rng.uniform(-2.0, 1.5, knots.size - 1) * (rng.random(knots.size - 1) < 0.8))
    knots /= knots[-1]
    values = np.append(0.0, np.cumsum(slopes * np.diff(knots)))
    return {
        "pruning_error": "measured",
        "pruning_curve_ratio": knots,
        "pruning_curve_error": values / max(values[-1], 1e-9) * rng.uniform(0.2, 0.99),
        "compute_law": "affine",
        "compute_floor": float(rng.uniform(0.0, 0.6)),
    }


def problem_of(seed: int) -> PooledLTFL:
    """Problem of a sampled system, at times with a fixed or narrowed band."""
    problem = PooledLTFL(sampled(seed, **(measured(seed) if seed >= MEASURED else {})))
    rng = np.random.default_rng([seed, 1])
    share = problem.total_bandwidth / len(problem.system)
    kind = rng.integers(5)
    if kind == 0:
        return problem.restrict(bandwidth=share)
    if kind == 1:
        return problem.restrict(bandwidth=(0.2 * share, 1.5 * share))
    return problem


def random_prices(problem: PooledLTFL, rng: np.random.Generator, size: tuple[int, ...] = ()) -> np.ndarray:
    """Prices over ten orders of magnitude around those at which the sums matter alike; any of them may be 0."""
    shape = (FEATURES, *size)
    scale = np.array([1.0, 100.0 / problem.total_bandwidth, 100.0 / problem.energy_budget, 1.0])
    prices = scale.reshape(-1, *[1] * len(size)) * 10.0 ** rng.uniform(-5.0, 3.0, shape)
    return np.where(rng.random(shape) < 0.2, 0.0, prices)


def cells_of(problem: PooledLTFL) -> PooledCells:
    cells = problem.capabilities().cells
    assert isinstance(cells, PooledCells)
    return cells


def points(problem: PooledLTFL, rng: np.random.Generator, unit: Any, low: Any, high: Any) -> tuple[Any, ...]:
    """Draw (kept, power, band) with an SNR in [low, high]; most use the whole deadline or a limit."""
    cells = cells_of(problem)
    at = cells.unit.take(unit)
    kept = at.kept_low + (at.kept_high - at.kept_low) * rng.choice([0.0, 1.0, -1.0], unit.size, p=[0.15, 0.15, 0.7])
    kept = np.where(kept < at.kept_low, at.kept_low + (at.kept_high - at.kept_low) * rng.random(unit.size), kept)
    snr = low * (high / low) ** np.where(
        rng.random(unit.size) < 0.1, rng.integers(2, size=unit.size), rng.random(unit.size)
    )
    return kept, snr, at


@pytest.mark.parametrize("seed", [*range(12), *range(MEASURED, MEASURED + 4)])
def test_no_point_lies_below_the_bound_of_its_cell(seed: int) -> None:
    problem = problem_of(seed)
    cells = cells_of(problem)
    rng = np.random.default_rng([seed, 2])
    units = np.flatnonzero(cells.fits)
    if units.size == 0:
        pytest.skip("nobody can take part")
    count, each = 4_000, 21
    for _ in range(4 if seed else 8):
        unit = rng.choice(units, count)
        label = rng.choice(cells.labels, count)
        low = cells.low[unit] * (cells.high[unit] / cells.low[unit]) ** rng.random(count)
        high = low * 10.0 ** (10.0 ** rng.uniform(-4.0, 0.3, count))
        wide = CellList(unit, label, low, high, cells.probe(unit, low), cells.probe(unit, high))
        some = cells.take(unit)
        prices = random_prices(problem, rng, (count,))
        own = replace(wide, unit=np.arange(count))
        bound, hint = some.bound(prices, own)
        assert np.all((hint >= low) & (hint <= high))
        check = np.repeat(np.arange(count), each)
        kept, snr, at = points(problem, rng, unit[check], low[check], high[check])
        # the bands between the least that the deadline and the powers allow and the greatest
        floor = np.maximum(at.power_low * at.gain / snr, at.band_low)
        most = np.minimum(at.power_high * at.gain / snr, at.band_high)
        payload = cells.unpruned * label[check] + cells.once_bits
        payload = payload + cells.parameters * (label[check] + cells.index_bits) * kept
        room = at.time_left - at.time_each * kept
        with np.errstate(divide="ignore", invalid="ignore"):
            need = np.where(room > 0.0, payload / room / channel.spectral_efficiency(snr, cells.fading), np.inf)
        least = np.maximum(need, floor)
        feasible = least <= most
        least, most = np.where(feasible, least, 1.0), np.where(feasible, most, 1.0)
        share = np.where(rng.random(kept.size) < 0.7, 0.0, rng.random(kept.size))
        band = least + share * (most - least)
        features, late = oracle(
            problem, unit[check], 1.0 - kept, label[check].astype(float), snr * band / at.gain, band
        )
        feasible &= late <= 1e-9
        value = (prices[:, check] * features).sum(axis=0)
        size = (prices[:, check] * np.abs(features)).sum(axis=0)
        above = np.where(feasible, value - bound[check], 0.0)
        # rounding is that of the terms, of which pruning and its price may cancel
        size = size + 1e-5 * prices[0, check] * at.weight * (cells.smooth + cells.mask)
        worst = int(np.argmin(above / np.maximum(size, 1e-300)))
        assert above[worst] >= -1e-9 * size[worst], (unit[check][worst], label[check][worst], kept[worst], snr[worst])


@pytest.mark.parametrize("seed", [*range(8), *range(MEASURED, MEASURED + 4)])
def test_capped_cells_bound_what_keeps_the_caps(seed: int) -> None:
    problem = problem_of(seed)
    cells = cells_of(problem)
    rng = np.random.default_rng([seed, 3])
    # an affine law of computing may leave no time for the least payload at any SNR
    units = np.flatnonzero(cells.fits & respond(cells, np.eye(FEATURES)[0]).feasible)
    if units.size == 0:
        pytest.skip("nobody can take part")
    for feature in (1, 2):
        prices = np.eye(FEATURES)[feature] + 1e-9
        least = respond(cells, prices, gap=1e-7)
        _, features = cells.complete(prices, units, least.label[units], least.x[units])
        caps = np.ones(cells.units)
        caps[units] = features[feature] * 10.0 ** rng.uniform(0.0, 1.0, units.size)
        narrower = cells.capped(feature, caps)
        prices = random_prices(problem, rng)
        found = respond(narrower, prices, gap=1e-5)
        assert np.all(found.feasible[units])
        assert np.all(found.value[units] - found.lower_bound[units] <= 2e-5 * found.value[units])
        free = respond(cells, prices, gap=1e-5)
        assert np.all(found.value >= free.lower_bound * (1.0 - 1e-12))
        _, features = narrower.complete(prices, units, found.label[units], found.x[units])
        assert np.all(features[feature] <= caps[units] * (1.0 + 1e-9))
        # random decisions that keep the cap are never better
        value, within = random_values(problem, prices, units, rng, 4_000)
        kept = within & (value[1][feature] <= caps[units])
        best = np.where(kept, (prices[:, None, None] * value[1]).sum(axis=0), np.inf).min(axis=0)
        assert np.all(best >= found.lower_bound[units] * (1.0 - 1e-9) - 1e-12)


def random_values(
    problem: PooledLTFL, prices: np.ndarray, units: np.ndarray, rng: np.random.Generator, count: int
) -> tuple[tuple[None, np.ndarray], np.ndarray]:
    """Features [4, count, units] of decisions drawn over the whole ranges, and which keep deadline and ranges."""
    low, high = ({name: ends[i][units] for name, ends in problem.ranges.items()} for i in (0, 1))
    shape = (count, units.size)

    def draw(name: str, floor: float = 0.0) -> np.ndarray:
        first = np.maximum(low[name], floor)
        return np.asarray(first * (high[name] / first) ** rng.random(shape))

    ratio = low["pruning_ratio"] + (high["pruning_ratio"] - low["pruning_ratio"]) * rng.random(shape)
    bits = rng.integers(low["bits"].astype(int), high["bits"].astype(int) + 1, shape).astype(float)
    power, band = draw("power"), draw("bandwidth", 1e-5 * problem.total_bandwidth)
    features, late = oracle(problem, np.broadcast_to(units, shape), ratio, bits, power, band)
    return (None, features), late <= 0.0


@pytest.mark.parametrize("seed", [*range(8), *range(MEASURED, MEASURED + 5)])
def test_response_is_what_a_dense_search_finds(seed: int) -> None:
    problem = problem_of(seed)
    cells = cells_of(problem)
    rng = np.random.default_rng([seed, 4])
    units = np.flatnonzero(cells.fits)[:3]
    if units.size == 0:
        pytest.skip("nobody can take part")
    for _ in range(2):
        prices = random_prices(problem, rng)
        found = respond(cells, prices, gap=1e-6)
        able = units[found.feasible[units]]
        assert np.all(found.lower_bound[np.setdiff1d(units, able)] == np.inf)
        assert np.all(found.value[able] - found.lower_bound[able] <= 2e-6 * found.value[able])
        for u in units:
            best = dense(problem, cells, prices, int(u))
            assert best >= found.lower_bound[u] * (1.0 - 1e-9)
            assert found.value[u] <= best * (1.0 + 1e-6)


def dense(problem: PooledLTFL, cells: PooledCells, prices: np.ndarray, u: int) -> float:
    """Least priced value of a unit over a grid of SNRs and kept fractions, at the least band, by the oracle."""
    snr = np.geomspace(cells.low[u], cells.high[u], 300)[:, None]
    first, last = (float(end[u]) for end in problem.ranges["pruning_ratio"])
    corners = problem.system.bound.pruning_curve_ratio
    ratio = np.append(np.linspace(first, last, 60), [] if corners is None else corners[corners <= last])
    at = cells.unit.take(np.array([u]))
    best = np.inf
    for bits in range(int(at.bits_low[0]), int(at.bits_high[0]) + 1):
        payload = cells.unpruned * bits + cells.once_bits + cells.parameters * (bits + cells.index_bits) * (1.0 - ratio)
        room = at.time_left - at.time_each * (1.0 - ratio)
        need = np.where(room > 0.0, payload / np.where(room > 0.0, room, 1.0), np.inf)
        band = np.maximum(need / channel.spectral_efficiency(snr, cells.fading), at.power_low * at.gain / snr)
        band = np.maximum(band, at.band_low)
        fits = band <= np.minimum(at.band_high, at.power_high * at.gain / snr)
        band = np.where(fits, band, 1.0)
        shape = band.shape
        features, late = oracle(
            problem,
            np.full(shape, u),
            np.broadcast_to(ratio, shape),
            np.full(shape, float(bits)),
            snr * band / at.gain,
            band,
        )
        value = np.where(fits & (late <= 1e-9), (prices[:, None, None] * features).sum(axis=0), np.inf)
        best = min(best, float(value.min()))
    return best


@pytest.mark.parametrize("seed", [*range(6), *range(MEASURED, MEASURED + 2)])
def test_completion_keeps_every_limit_and_reaches_the_value(seed: int) -> None:
    problem = problem_of(seed)
    cells = cells_of(problem)
    rng = np.random.default_rng([seed, 5])
    prices = random_prices(problem, rng)
    found = respond(cells, prices, gap=1e-4)
    units = np.flatnonzero(found.feasible)
    decision, features = cells.complete(prices, units, found.label[units], found.x[units])
    expected, late = oracle(
        problem,
        units,
        decision["pruning_ratio"],
        decision["bits"],
        decision["power"],
        decision["bandwidth"],
    )
    assert np.all(late <= 1e-9)
    np.testing.assert_allclose(features, expected, rtol=1e-9, atol=1e-300)
    np.testing.assert_allclose(prices @ features, found.value[units], rtol=1e-8)
    for name, (low, high) in problem.ranges.items():
        assert np.all(decision[name] >= low[units] - 1e-12) and np.all(decision[name] <= high[units] + 1e-12)


def test_prices_by_unit_answer_as_one_vector_each() -> None:
    problem = PooledLTFL(jo.systems.ltfl(8, 1))
    cells = cells_of(problem)
    rng = np.random.default_rng(0)
    vectors = random_prices(problem, rng, (3,))
    index = np.tile(np.arange(8), 3)
    together = respond(cells.take(index), np.repeat(vectors, 8, axis=1), gap=1e-6)
    for i, vector in enumerate(vectors.T):
        alone = respond(cells, vector, gap=1e-6)
        np.testing.assert_allclose(together.value[8 * i : 8 * i + 8], alone.value, rtol=2e-6)


def test_leaves_cover_every_bit_width_and_snr() -> None:
    problem = PooledLTFL(jo.systems.ltfl(5, 2))
    cells = cells_of(problem)
    found = respond(cells, np.array([1.0, 1e-6, 50.0]), gap=1e-4, keep=True)
    leaves = found.leaves
    assert leaves is not None
    for u in range(5):
        for bits in cells.labels:
            own = (leaves.unit == u) & (leaves.low[0] == bits)
            low, high = np.sort(leaves.low[1][own]), np.sort(leaves.high[1][own])
            assert low[0] <= cells.low[u] and high[-1] >= cells.high[u]
            np.testing.assert_array_equal(low[1:], high[:-1])
    assert np.all(leaves.bound >= found.lower_bound[leaves.unit])


# -- the problem


def test_evaluation_is_ltfls_where_the_band_is_split_evenly() -> None:
    system = jo.systems.ltfl(6, 0)
    problem, ltfl = PooledLTFL(system), jo.problems.LTFL(system)
    decision = jo.solve(ltfl).decision
    assert decision is not None and system.radio.bandwidth is not None
    ours = problem.evaluate(decision.with_(bandwidth=system.radio.bandwidth))
    theirs = ltfl.evaluate(decision)
    assert float(ours.objective) == pytest.approx(float(theirs.objective), rel=1e-14)
    for name in ("delay", "energy", "rate", "packet_error"):
        np.testing.assert_allclose(ours.quantities[name], theirs.quantities[name], rtol=1e-14)
    assert float(ours.slack["total_bandwidth"]) == pytest.approx(0.0, abs=1e-6)
    used = problem.energy_budget - float(theirs.quantities["energy"].sum())
    assert float(ours.slack["total_energy"]) == pytest.approx(used, rel=1e-12)


def test_evaluation_takes_batches_and_differentiates() -> None:
    torch = pytest.importorskip("torch")
    problem = PooledLTFL(jo.systems.ltfl(4, 0))
    rng = np.random.default_rng(0)
    values = {
        "pruning_ratio": rng.uniform(0.1, 0.8, (3, 4)),
        "bits": np.full((3, 4), 4.0),
        "power": rng.uniform(0.01, 0.1, (3, 4)),
        "bandwidth": rng.uniform(1e4, 1e5, (3, 4)),
    }
    plain = problem.evaluate(jo.Decision(values))
    tensors = {name: torch.tensor(value, requires_grad=True) for name, value in values.items()}
    traced = problem.evaluate(jo.Decision(tensors))
    np.testing.assert_allclose(traced.objective.detach().numpy(), plain.objective, rtol=1e-13)
    traced.objective.sum().backward()
    step = 1e-3
    for row in range(3):
        moved = values["bandwidth"].copy()
        moved[row, 2] += step
        difference = problem.evaluate(jo.Decision(values | {"bandwidth": moved})).objective - plain.objective
        gradient = float(tensors["bandwidth"].grad[row, 2])
        assert float(difference[row]) == pytest.approx(step * gradient, rel=1e-2, abs=1e-13)


def test_solution_is_certified_feasible_and_better_than_an_even_split() -> None:
    problem = PooledLTFL(jo.systems.ltfl(40, 3))
    result = jo.solve(problem, gap=1e-3)
    assert result.status == "optimal" and result.value is not None and result.lower_bound is not None
    assert result.lower_bound <= result.value and result.gap is not None and result.gap <= 1e-3
    evaluation = result.evaluation
    assert evaluation is not None and bool(evaluation.feasible())
    # both budgets are scarce in the default scenario
    assert float(evaluation.slack["total_bandwidth"]) < 0.01 * problem.total_bandwidth
    assert float(evaluation.slack["total_energy"]) < 0.01 * problem.energy_budget
    even = jo.solve(problem, method="equal_bandwidth", gap=1e-3)
    assert even.value is not None and even.value > result.value


def test_one_device_is_solved_as_a_search_over_all_its_decisions_says() -> None:
    problem = PooledLTFL(jo.systems.ltfl(1, 5))
    result = jo.solve(problem, gap=1e-3)
    assert result.value is not None and result.lower_bound is not None
    rng = np.random.default_rng(0)
    (_, features), within = random_values(problem, np.eye(4)[0], np.array([0]), rng, 400_000)
    kept = within & (features[1] <= problem.total_bandwidth) & (features[2] <= problem.energy_budget)
    best = float(np.where(kept, features[0], np.inf).min())
    assert result.lower_bound * (1.0 - 1e-9) <= best
    assert result.value <= best * 1.02


def test_loss_that_drives_the_contraction_limit_is_a_third_sum() -> None:
    system = jo.systems.ltfl(10, 0)
    free = jo.solve(PooledLTFL(system), gap=1e-3)
    assert free.evaluation is not None
    lost = float((system.weight * free.evaluation.quantities["packet_error"]).sum())
    problem = PooledLTFL(system.with_(gradient_slope=1.2 / (8.0 * lost)))
    result = jo.solve(problem, gap=1e-2)
    assert result.evaluation is not None and bool(result.evaluation.feasible())
    assert float(result.evaluation.quantities["contraction"]) < 1.0
    assert result.value is not None and result.lower_bound is not None and free.lower_bound is not None
    assert result.value >= free.lower_bound
    assert result.lower_bound <= result.value


def test_device_that_cannot_meet_its_deadline_is_named_with_what_would_do() -> None:
    system = jo.systems.ltfl(5, 0)
    delay = np.array(system.devices.delay_budget)
    delay[3] *= 1e-4
    tight = PooledLTFL(system.with_(delay_budget=delay))
    result = jo.solve(tight)
    assert result.status == "infeasible"
    (conflict,) = result.infeasibility
    assert conflict.device == 3 and conflict.binding == "delay"
    need = conflict.relax["delay_budget"]
    assert need is not None

    def fits(value: float) -> bool:
        changed = np.where(np.arange(5) == 3, value, delay)
        cells = cells_of(PooledLTFL(system.with_(delay_budget=changed)))
        return bool(respond(cells, np.array([1.0, 0.0, 0.0])).feasible[3])

    assert fits(need * (1.0 + 1e-6)) and not fits(need * (1.0 - 1e-6))


def test_budgets_that_cannot_be_kept_are_refused_with_a_reason() -> None:
    result = jo.solve(PooledLTFL(jo.systems.ltfl(5, 0), energy_budget=1e-9))
    assert result.status == "infeasible"
    assert any("energy" in conflict.binding for conflict in result.infeasibility)


def test_inputs_are_checked() -> None:
    system = jo.systems.ltfl(3, 0)
    with pytest.raises(InputError, match=r"radio.interference\[device 1\]"):
        PooledLTFL(system.with_(interference=[0.0, 1e-12, 0.0]))
    with pytest.raises(InputError, match="energy_budget: -1"):
        PooledLTFL(system, energy_budget=-1.0)
    with pytest.raises(InputError, match="expected a System"):
        PooledLTFL("system")  # type: ignore[arg-type]
    problem = PooledLTFL(system)
    with pytest.raises(InputError, match="bandwidth must lie within"):
        problem.restrict(bandwidth=2.0 * problem.total_bandwidth)
    with pytest.raises(InputError, match="bits must be whole"):
        problem.restrict(bits=2.5)
    with pytest.raises(InputError, match="power must lie"):
        problem.restrict(power=100.0)
    with pytest.raises(InputError, match="pruning_ratio must lie"):
        problem.restrict(pruning_ratio=0.99)
    with pytest.raises(InputError, match="cannot be capped"):
        cells_of(problem).capped(0, np.ones(3))


def test_value_that_is_the_same_everywhere_is_found() -> None:
    # nothing but a band that cannot be narrower has a price: bound and value differ by rounding alone
    problem = PooledLTFL(jo.systems.ltfl(20, 0)).restrict(bandwidth=(7e4, 1e6))
    found = respond(cells_of(problem), np.array([0.0, 1.0 / 3e3, 0.0]), gap=1e-9)
    np.testing.assert_allclose(found.value, 7e4 / 3e3, rtol=1e-12)
    np.testing.assert_allclose(found.lower_bound, 7e4 / 3e3, rtol=1e-9)


def test_settings_give_the_problem_back() -> None:
    system = jo.systems.ltfl(3, 0)
    problem = PooledLTFL(system, energy_budget=2.0).restrict(bits=(3, 8), bandwidth=(1e3, 9e4))
    again = PooledLTFL.from_settings(system, problem.settings())
    assert again.settings() == problem.settings() and again.energy_budget == 2.0
    assert PooledLTFL(system).settings() == {}


@pytest.mark.parametrize("seed", range(10))
def test_every_unit_is_settled_or_cannot_meet_its_deadline(seed: int) -> None:
    problem = problem_of(seed)
    cells = cells_of(problem)
    rng = np.random.default_rng([seed, 6])
    for _ in range(3):
        found = respond(cells, random_prices(problem, rng), gap=1e-5)
        factor = np.array([conflict.factor for conflict in cells.conflicts(np.arange(cells.units))])
        np.testing.assert_array_equal(found.feasible, factor <= 1.0)
        value, bound = found.value[found.feasible], found.lower_bound[found.feasible]
        assert np.all(value - bound <= 2e-5 * value)

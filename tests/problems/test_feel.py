"""FEEL: the client's least bandwidth, the exact optimum, the published alternation, and what is refused."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from jointopt import systems
from jointopt.decision import Decision
from jointopt.errors import InputError
from jointopt.models.compression import index_bits, pruning_error
from jointopt.problems.feel import CONTRACTION_LIMIT, FEEL, RatioBandwidthStep, SelectionObjective
from jointopt.problems.feel_cells import Client, FEELCells
from jointopt.solvers import solve
from jointopt.system import Bound, Devices, Generalization, Learner, Radio, System

LN2 = np.log(2.0)
NOISE = 4e-21


# ---------------------------------------------------------------------------------------------- systems to test with


def build(
    compute: Any,
    burnt: Any,
    reserve: Any,
    demand: Any,
    snr: Any,
    *,
    parameters: int = 4000,
    unpruned: int = 0,
    samples: Any = 60.0,
    band: float = 1e6,
    gradient: Any = 1.0,
    information: Any = 0.0,
    learner: dict[str, Any] | None = None,
    bound: dict[str, Any] | None = None,
    law: Any = "fixed",
) -> System:
    """A system from plain numbers per client, all of the dense model.

    compute: computing time at f_max over T_max; burnt: computing energy at f_max over E_max; reserve: p_max T_max
    over E_max; demand: bits over T_max B; snr: at p_max over the whole band; gradient: pull of the generalization
    gap over the push of the pruning error.
    """
    compute, burnt, reserve, demand, snr, samples, gradient, information = (
        np.array(a, dtype=np.float64)
        for a in np.broadcast_arrays(
            *np.atleast_1d(compute, burnt, reserve, demand, snr, samples, gradient, information)
        )
    )
    fields: dict[str, Any] = {"pruning_ratio_max": 0.9, "header_bits": 0.0, "bits_max": 32, **(learner or {})}
    constants: dict[str, Any] = {
        "smoothness": 1.3,
        "weight_norm_squared": 0.9,
        "mask_energy": 0.7,
        "gradient_offset": 0.8,
        "initial_gap": 1.0,
        "learning_rate": 0.1,
        "rounds": 100,
        **(bound or {}),
    }
    power = np.full(compute.size, 0.1)
    fastest = np.linspace(0.8e9, 1.2e9, compute.size)
    index, once = index_bits(parameters, fields.get("mask_encoding", "none"))
    dense = parameters * (fields["bits_max"] + index) + unpruned * fields["bits_max"] + fields["header_bits"] + once
    delay = dense / (demand * band)
    energy = power * delay / reserve
    cycles = compute * delay * fastest / samples
    push = 4.0 * constants["smoothness"] ** 2 * constants["weight_norm_squared"] + 2.0 * constants["mask_energy"]
    return System(
        devices=Devices(
            samples=samples,
            cycles_per_sample=cycles,
            frequency=fastest,
            capacitance=burnt * energy / (fastest**2 * cycles * samples),
            power_min=1e-9,
            power_max=power,
            delay_budget=delay,
            energy_budget=energy,
        ),
        radio=Radio(
            total_bandwidth=band,
            noise_density=NOISE,
            gain=snr * NOISE * band / power,
            fading="none",
            packet_error="none",
        ),
        learner=Learner(parameters=parameters, unpruned_parameters=unpruned, **fields),
        bound=Bound(quantizer_range=1.0, **constants),
        generalization=Generalization(
            gradient_proxy=gradient * push * samples / (8.0 * LN2 * parameters),
            mutual_information=information,
            mutual_information_law=law,
        ),
    )


def drawn(rng: np.random.Generator, count: int, *, load: float | None = None, **changes: Any) -> System:
    """A random system of all kinds: scarce or ample band, fixed parts, both laws of each assumption."""

    def wide(low: float, high: float, size: int | None = None) -> Any:
        return 10.0 ** rng.uniform(low, high, size)

    load = wide(-1.0, 0.7) if load is None else load
    snr = wide(-1.5, 4.0, count)
    fields: dict[str, Any] = {
        "unpruned": int(rng.choice([0, 0, 40, 1500])),
        "samples": np.full(count, 60.0) if rng.random() < 0.4 else np.rint(wide(1.0, 2.3, count)),
        "gradient": wide(-2.0, 1.0, count) * (rng.random() < 0.85),
        "information": wide(1.0, 4.5, count) * (rng.random() < 0.7),
        "law": str(rng.choice(["fixed", "proportional"])),
        "learner": {
            "header_bits": float(rng.choice([0.0, 64.0, 5e4])),
            "pruning_ratio_max": float(rng.choice([0.9, 0.9, 0.5, 0.99])),
            "compute_law": str(rng.choice(["linear", "linear", "mask"])),
            "mask_encoding": str(rng.choice(["none", "none", "bitmap", "indices"])),
        },
        "bound": {
            "gradient_offset": wide(-2.0, 1.0) * (rng.random() < 0.9),
            "gradient_slope": wide(-2.5, 0.2) * (rng.random() < 0.5),
            "mask_energy": wide(-2.0, 0.5),
            "pruning_error": str(rng.choice(["linear", "laplace"])),
        },
        **changes,
    }
    return build(
        wide(-3.0, 0.2, count),
        wide(-2.0, 1.0, count) * (rng.random() < 0.9),
        wide(-0.7, 1.0, count),
        load / count * np.log2(1.0 + count * snr) * wide(-0.5, 0.5, count),
        snr,
        **fields,
    )


def varied(seed: int, most: int = 5) -> FEEL:
    """A random problem: system, objective, sometimes narrowed ratios, clients that must or must not take part."""
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, most + 1))
    problem = FEEL(drawn(rng, count), objective="bound" if rng.random() < 0.4 else "gap")
    most_pruned = problem.system.learner.pruning_ratio_max
    kind = rng.random()
    if kind < 0.12:
        problem = problem.restrict(pruning_ratio=rng.uniform(0.0, most_pruned, count))
    elif kind < 0.24:
        low, high = np.sort(rng.uniform(0.0, most_pruned, (2, count)), axis=0)
        problem = problem.restrict(pruning_ratio=(low, high))
    if rng.random() < 0.25:
        must = (rng.random(count) < 0.3).astype(float)
        may = np.maximum(must, (rng.random(count) < 0.8).astype(float))
        if may.any():
            problem = problem.restrict(selected=(must, may))
    return problem


# ---------------------------------------------------------------------------------------------- independent oracles


def band_for(bits: Any, upload: Any, power: Any, gain: float) -> Any:
    """The bandwidth at which b log2(1 + p g/b) t = bits, by bisection over the SNR; inf where there is none."""
    with np.errstate(all="ignore"):
        needed = power * gain * upload / (bits * LN2)
        possible = (needed > 1.0) & (upload > 0.0) & (power > 0.0)
        needed = np.where(possible, needed, 2.0)
        low, high = np.full(np.shape(needed), -36.0), np.log(needed) + 6.0
        for _ in range(80):
            middle = 0.5 * (low + high)
            below = np.exp(middle) < needed * np.log1p(np.exp(middle))
            low, high = np.where(below, middle, low), np.where(below, high, middle)
        return np.where(possible, power * gain / np.exp(0.5 * (low + high)), np.inf)


def oracle(system: System, k: int, kept: float) -> tuple[float, tuple[bool, bool, bool]]:
    """Least bandwidth by dense search over the computing time; whether p_max, f_max and the energy are met there."""
    d, radio, learner = system.devices, system.radio, system.learner
    index, once = index_bits(learner.parameters, learner.mask_encoding)
    width = float(learner.bits_max)
    bits = (
        kept * learner.parameters * (width + index) + learner.unpruned_parameters * width + learner.header_bits + once
    )
    cycles = d.samples[k] * d.cycles_per_sample[k] * (1.0 if learner.compute_law == "mask" else kept)
    T, E, gain = d.delay_budget[k], d.energy_budget[k], float(radio.gain[k] / radio.noise_density)
    first = cycles / d.frequency[k]
    nothing = (np.inf, (False, False, False))
    if first >= T:
        return nothing
    share = np.concatenate([[0.0], np.geomspace(1e-9, 0.5, 120), 1.0 - np.geomspace(0.5, 1e-9, 120)])
    time = first + (T - first) * share
    for _ in range(12):
        with np.errstate(all="ignore"):
            power = np.minimum(d.power_max[k], (E - d.capacitance[k] * cycles**3 / time**2) / (T - time))
        band = band_for(bits, T - time, power, gain)
        i = int(np.argmin(band))
        if not np.isfinite(band[i]):
            return nothing
        at, best, drive = float(time[i]), float(band[i]), float(power[i])
        time = np.linspace(time[max(i - 1, 0)], time[min(i + 1, time.size - 1)], 33)
    energy = d.capacitance[k] * cycles**3 / at**2 + drive * (T - at)
    met = (drive > 0.1 * (1.0 - 1e-9), at < first * (1.0 + 1e-9), abs(energy - E) < 1e-6 * E)
    return best, met


def by_hand(problem: FEEL, taken: Any, ratio: Any) -> float:
    """Gamma or the bound of theory 3b, term by term."""
    s = problem.system
    bound, general, learner = s.bound, s.generalization, s.learner
    assert general is not None
    total, there = 0.0, float(s.devices.samples[taken].sum())
    for k in np.flatnonzero(taken):
        r = float(ratio[k])
        known = float(general.mutual_information[k])
        if general.mutual_information_law == "proportional":
            known *= 1.0 - r
        trained = (1.0 - r) * learner.parameters + learner.unpruned_parameters
        phi = 4.0 * general.gradient_proxy[k] / s.devices.samples[k] * (known + 0.5 * LN2 * trained)
        error = float(pruning_error(np.asarray(r), bound.pruning_error))
        lost = 4.0 * bound.smoothness**2 * bound.weight_norm_squared * error + 2.0 * bound.mask_energy * r
        total += s.devices.samples[k] / there * (4.0 * phi + lost)
    missing = (1.0 - there / s.devices.samples.sum()) ** 2
    total += 8.0 * bound.gradient_offset * missing
    if problem.objective == "gap":
        return total
    contraction = 8.0 * bound.gradient_slope * missing
    return (2.0 * bound.initial_gap / (bound.learning_rate * bound.rounds) + total) / (1.0 - contraction)


def brute_force(problem: FEEL) -> tuple[float, Any]:
    """Least objective over all subsets, each by a price table and then SLSQP; inf where none is feasible."""
    cells, client, system = FEELCells(problem), Client(problem.system), problem.system
    count, band = len(system), client.band
    every = np.arange(count)
    low, high = (1.0 - problem.ranges["pruning_ratio"][i] for i in (1, 0))
    able = client.least_bandwidth(every, low)[0] <= np.log(band)
    # the largest kept fraction that the whole band would carry, by plain bisection
    left, right = np.log(low), np.log(high)
    top = np.where(client.least_bandwidth(every, high)[0] <= np.log(band), right, left)
    right = np.where(top < right, right, left)
    for _ in range(55):
        middle = 0.5 * (left + right)
        fits = client.least_bandwidth(every, np.exp(middle))[0] <= np.log(band)
        left, right = np.where(fits, middle, left), np.where(fits, right, middle)
    top = np.maximum(top, left)
    steps = 160
    kept = np.exp(np.log(low) + (top - np.log(low)) * np.linspace(0.0, 1.0, steps)[:, None])
    need = np.exp(np.minimum(client.least_bandwidth(np.broadcast_to(every, kept.shape), kept)[0], np.log(1e9 * band)))
    cost = np.array([[cells.cost(k, kept[i, k]) for k in every] for i in range(steps)])
    scale = max(float(np.abs(cost).max()), 1e-9) / band
    prices = np.concatenate([[0.0], scale * 10.0 ** np.linspace(-6.0, 6.0, 241)])
    pick = np.argmin(cost + prices[:, None, None] * need, axis=1)
    cost_at, need_at, kept_at = (np.take_along_axis(a, pick, axis=0) for a in (cost, need, kept))
    must, may = problem.ranges["selected"][0] > 0.5, (problem.ranges["selected"][1] > 0.5) & able
    if np.any(must & ~may):
        return np.inf, None
    outer = SelectionObjective(problem)
    rows = []
    for chosen in itertools.product((False, True), repeat=count):
        taken = np.array(chosen)
        mass = float(system.weight[taken].sum())
        if not taken.any() or np.any(must & ~taken) or np.any(taken & ~may) or mass < outer.least_mass:
            continue
        if need[0, taken].sum() > band:
            continue
        use = need_at[:, taken].sum(axis=1)
        dual = float(np.max(cost_at[:, taken].sum(axis=1) + prices * (use - band)))
        start = kept_at[int(np.argmax(use <= band)), taken] if np.any(use <= band) else kept[0, taken]
        reached = by_hand(problem, taken, 1.0 - _spread(taken, start))
        rows.append((float(outer.value(dual, mass)), reached, taken, start))
    if not rows:
        return np.inf, None
    rough = min(r[1] for r in rows)
    best, winner = np.inf, None
    for dual, reached, taken, start in rows:
        if dual > rough + 1e-3 * abs(rough) + 1e-9:
            continue
        value = min(reached, _slsqp(problem, client, cells, taken, start, np.exp(top)[taken], low[taken]))
        if value < best:
            best, winner = value, taken
    return best, winner


def _spread(taken: Any, values: Any) -> Any:
    out = np.zeros(taken.size)
    out[taken] = values
    return out


def _slsqp(problem: FEEL, client: Client, cells: FEELCells, taken: Any, start: Any, top: Any, low: Any) -> float:
    """Best ratios of one subset, from a start and from the bottom, in ln s; only feasible ends count."""
    who = np.flatnonzero(taken)

    def cost(y: Any) -> Any:
        return float(np.sum(cells.cost(who, np.exp(y)))), cells.slope_of_cost(who, np.exp(y)) * np.exp(y)

    def room(y: Any) -> Any:
        return 1.0 - float(np.exp(client.least_bandwidth(who, np.exp(y), stretch=64.0)[0]).sum()) / client.band

    def room_slope(y: Any) -> Any:
        log_band, slope, _, _ = client.least_bandwidth(who, np.exp(y), stretch=64.0)
        return -np.exp(log_band) / client.band * slope

    limits = list(zip(np.log(low), np.maximum(np.log(low), np.log(top)), strict=True))
    best = np.inf
    for first in (np.log(start), np.log(low) + 0.05 * (np.log(start) - np.log(low))):
        with np.errstate(all="ignore"):
            answer = minimize(
                cost,
                first,
                jac=True,
                method="SLSQP",
                bounds=limits,
                constraints={"type": "ineq", "fun": room, "jac": room_slope},
                options={"ftol": 1e-13, "maxiter": 60},
            )
        y = np.clip(answer.x, *np.array(limits).T)
        if room(y) >= -1e-9:
            best = min(best, by_hand(problem, taken, 1.0 - _spread(taken, np.exp(y))))
    return best


# ---------------------------------------------------------------------------------------------- one client


def test_least_bandwidth_is_that_of_a_dense_search() -> None:
    """Power, energy, processor and time limits, fixed parts, no capacitance, SNR over twelve decades."""
    rng = np.random.default_rng(11)
    met: Counter[Any] = Counter()
    short = 0
    for trial in range(90):
        fields = {
            "compute_law": "mask" if trial % 5 == 0 else "linear",
            "header_bits": float(rng.choice([0.0, 3e4])),
            "mask_encoding": str(rng.choice(["none", "bitmap", "indices"])),
        }
        count = 5
        snr = 10.0 ** rng.uniform(-3.0, 9.0, count)
        system = build(
            10.0 ** rng.uniform(-3.5, 0.3, count),
            10.0 ** rng.uniform(-2.5, 1.5, count) * (trial % 7 != 0),
            10.0 ** rng.uniform(-1.5, 1.5, count),
            np.log2(1.0 + snr) * 10.0 ** rng.uniform(-3.5, 0.3, count),
            snr,
            unpruned=int(rng.choice([0, 60, 4000])),
            learner=fields,
        )
        client = Client(system)
        kept = 10.0 ** rng.uniform(-1.0, 0.0, count)
        log_band, _, _, frequency = client.least_bandwidth(np.arange(count), kept)
        for k in range(count):
            best, limits = oracle(system, k, float(kept[k]))
            if best > client.band:
                short += 1
                assert best < client.band * (1.0 + 1e-9) or np.isinf(log_band[k])
                continue
            met[limits] += 1
            assert np.exp(log_band[k]) == pytest.approx(best, rel=1e-7), (trial, k, limits)
            assert frequency[k] <= system.devices.frequency[k] * (1.0 + 1e-12)
    # (power, processor, energy): every regime was there, the corner of the last two among them
    assert short > 30
    assert sum(met.values()) > 300
    for limits in ((True, True, False), (True, False, True), (False, True, True), (False, False, True)):
        assert met[limits] >= 8, (limits, met)


one_client = st.fixed_dictionaries(
    {
        "compute": st.floats(-4.0, -0.05),
        "burnt": st.floats(-3.0, 1.5),
        "reserve": st.floats(-1.5, 1.5),
        "load": st.floats(-4.0, -0.2),
        "snr": st.floats(-3.0, 8.0),
    }
)


def client_of(point: dict[str, float], unpruned: int = 0, law: str = "linear") -> System:
    snr = 10.0 ** point["snr"]
    return build(
        10.0 ** point["compute"],
        10.0 ** point["burnt"],
        10.0 ** point["reserve"],
        np.log2(1.0 + snr) * 10.0 ** point["load"],
        snr,
        unpruned=unpruned,
        learner={"compute_law": law},
    )


@settings(max_examples=60, deadline=None)
@given(one_client, st.sampled_from([0, 100, 8000]), st.sampled_from(["linear", "mask"]))
def test_log_bandwidth_is_convex_and_its_tangents_hold(point: dict[str, float], unpruned: int, law: str) -> None:
    client = Client(client_of(point, unpruned, law))
    log_kept = np.log(np.geomspace(0.02, 1.0, 41))
    log_band, slope, _, _ = client.least_bandwidth(np.zeros(41, dtype=int), np.exp(log_kept))
    there = np.isfinite(log_band)
    # once too much, always too much
    assert not np.any(there[1:] & ~there[:-1])
    x, y, e = log_kept[there], log_band[there], slope[there]
    assert np.all(np.diff(y) >= -1e-12)
    assert np.all(e >= -1e-12)
    tangents = y[:, None] + e[:, None] * (x[None] - x[:, None])
    assert np.all(tangents <= y[None] + 1e-9 * (1.0 + abs(y[None])))
    if unpruned == 0 and law == "linear":
        assert np.all(e >= 1.0 - 1e-9)


@settings(max_examples=60, deadline=None)
@given(one_client, st.sampled_from([0, 100, 8000]), st.floats(1.05, 3.0), st.floats(0.1, 0.9))
def test_elasticity_and_monotonicity(point: dict[str, float], unpruned: int, factor: float, kept: float) -> None:
    system = client_of(point, unpruned)
    unit = np.zeros(3, dtype=int)
    near = kept * np.exp(np.array([-1e-4, 0.0, 1e-4]))
    log_band, slope, _, _ = Client(system).least_bandwidth(unit, near)
    if not np.all(np.isfinite(log_band)):
        return
    before, after = np.diff(log_band) / 1e-4
    # between the one-sided slopes also at a kink
    assert before - 1e-6 * (1.0 + abs(before)) <= slope[1] <= after + 1e-6 * (1.0 + abs(after))
    devices, radio = system.devices, system.radio
    assert radio.gain is not None
    easier = (
        {"delay_budget": devices.delay_budget * factor},
        {"energy_budget": devices.energy_budget * factor},
        {"frequency": devices.frequency * factor},
        {"power_max": devices.power_max * factor},
        {"gain": radio.gain * factor},
    )
    for change in easier:
        eased = Client(system.with_(**change)).least_bandwidth(unit[:1], near[1:2])[0]
        assert eased[0] <= log_band[1] + 1e-11, change


def test_largest_kept_fraction_is_the_inverse() -> None:
    rng = np.random.default_rng(5)
    inside = 0
    for _ in range(25):
        client = Client(drawn(rng, 8))
        every = np.arange(8)
        low, high = np.full(8, 0.1), np.ones(8)
        least = client.least_bandwidth(every, low)[0]
        units = every[np.isfinite(least)]
        if units.size == 0:
            continue
        cap = np.minimum(np.exp(least[units]) * 10.0 ** rng.uniform(0.0, 1.2, units.size), client.band)
        kept = client.largest_kept(units, low[units], high[units], cap)
        used = client.least_bandwidth(units, kept, stretch=64.0)[0]
        assert np.all(used <= np.log(cap) + 1e-10)
        full = client.least_bandwidth(units, high[units], stretch=64.0)[0]
        np.testing.assert_allclose(kept[full <= np.log(cap)], 1.0, rtol=0, atol=0)
        part = full > np.log(cap)
        inside += int(part.sum())
        np.testing.assert_allclose(used[part], np.log(cap[part]), atol=1e-9)
    assert inside > 50


def test_complete_is_on_the_budgets() -> None:
    """What the cells give out keeps every budget by itself, and time is never left over where energy binds."""
    rng = np.random.default_rng(8)
    bound_by_energy = 0
    for _ in range(20):
        problem = FEEL(drawn(rng, 6))
        cells = FEELCells(problem)
        units = np.flatnonzero(cells.fits)
        if units.size == 0:
            continue
        kept = cells.least[units] + (cells.top - cells.least)[units] * rng.random(units.size)
        parts, _ = cells.complete(np.array([1.0, 0.0]), units, None, kept)
        decision = Decision({name: _spread(np.isin(np.arange(6), units), v) for name, v in parts.items()})
        evaluation = problem.evaluate(decision)
        for name in ("delay", "energy", "frequency", "power"):
            slack = np.asarray(evaluation.slack[name])[units]
            scale = np.broadcast_to(evaluation.scale[name], 6)[units]
            assert np.all(slack >= -1e-9 * scale), name
        energy = np.asarray(evaluation.slack["energy"])[units] <= 1e-7 * problem.system.devices.energy_budget[units]
        late = np.asarray(evaluation.slack["delay"])[units] / problem.system.devices.delay_budget[units]
        assert np.all(late[energy] <= 1e-7)
        bound_by_energy += int(energy.sum())
    assert bound_by_energy > 20


# ---------------------------------------------------------------------------------------------- the exact optimum


@pytest.mark.parametrize("batch", range(4))
def test_exact_is_the_best_of_all_subsets(batch: int) -> None:
    """Every subset by an independent local solver: the value is no worse, and the bound is below the best of them."""
    solved = Counter()
    for seed in range(30 * batch, 30 * batch + 30):
        problem = varied(seed)
        answer = solve(problem, method="exact", gap=1e-6)
        best, _ = brute_force(problem)
        solved["infeasible" if np.isinf(best) else "feasible"] += 1
        if np.isinf(best):
            assert answer.status == "infeasible", seed
            assert answer.infeasibility
            continue
        assert answer.status == "optimal", seed
        assert answer.value is not None and answer.lower_bound is not None and answer.decision is not None
        assert answer.value <= best + 1e-5 * abs(best), seed
        assert answer.lower_bound <= best + 1e-7 * abs(best), seed
        assert answer.gap is not None and answer.gap <= 1e-6, seed
        evaluation = problem.evaluate(answer.decision)
        assert evaluation.feasible(), seed
        taken = answer.decision["selected"] > 0.5
        assert answer.value == pytest.approx(by_hand(problem, taken, answer.decision["pruning_ratio"]), rel=1e-12)
        assert np.all(problem.ranges["selected"][0] <= taken)
        assert np.all(taken <= problem.ranges["selected"][1])
    assert solved["feasible"] >= 16


def test_identical_clients_and_equal_chi() -> None:
    """Ties of every kind cost no certificate; equal clients share the band equally where ratios are interior."""
    same = build(0.2, 0.3, 1.0, [2.0] * 4, 40.0, gradient=0.2, bound={"gradient_offset": 30.0})
    problem = FEEL(same)
    answer = solve(problem, method="exact", gap=1e-7)
    assert answer.status == "optimal"
    assert answer.decision is not None
    np.testing.assert_array_equal(answer.decision["selected"], 1.0)
    ratio = answer.decision["pruning_ratio"]
    assert ratio.min() > 0.0 and ratio.max() < 0.9
    np.testing.assert_allclose(answer.decision["bandwidth"], 0.25e6, rtol=1e-3)
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-3)
    # two kinds of clients with one chi: chi depends on neither gain nor budgets
    rng = np.random.default_rng(3)
    for seed in range(6):
        snr = rng.choice([5.0, 500.0], 5)
        problem = FEEL(build(0.1, 0.3, 1.0, 0.3, snr, gradient=3.0, bound={"gradient_offset": float(seed)}))
        answer = solve(problem, method="exact", gap=1e-7)
        best, _ = brute_force(problem)
        assert answer.status == "optimal"
        assert answer.value == pytest.approx(best, rel=1e-6)
        assert answer.lower_bound is not None and answer.lower_bound <= best * (1.0 + 1e-7)


def relaxed(problem: FEEL, conflict: Any) -> list[FEEL]:
    """One problem per relaxation that a conflict names, each taken at its word plus rounding."""
    system, out = problem.system, []
    slightly = 1.0 + 1e-6

    def with_(**changes: Any) -> FEEL:
        return FEEL(system.with_(**changes), objective=problem.objective, ranges=problem.ranges)

    if conflict.device is None:
        assert conflict.relax.keys() == {"bandwidth"}
        return [with_(total_bandwidth=conflict.relax["bandwidth"] * slightly)]
    k = conflict.device
    budgets = {name: np.array(getattr(system.devices, name)) for name in ("delay_budget", "energy_budget")}
    for name, needed in conflict.relax.items():
        if needed is not None:
            assert needed > budgets[name][k]
            changed = budgets[name].copy()
            changed[k] = needed * slightly
            out.append(with_(**{name: changed}))
    if conflict.factor is not None:
        raised = {name: values.copy() for name, values in budgets.items()}
        for values in raised.values():
            values[k] *= conflict.factor * slightly
        out.append(with_(**raised))
    return out


def test_conflicts_name_what_is_short_and_what_helps() -> None:
    """A client alone out of reach: each relaxation is enough, and a little less is not."""
    rng = np.random.default_rng(2)
    seen = Counter()
    for _ in range(12):
        system = drawn(rng, 1, load=10.0 ** rng.uniform(0.5, 1.5))
        problem = FEEL(system)
        answer = solve(problem, method="exact")
        if answer.status != "infeasible":
            continue
        assert [c.device for c in answer.infeasibility] == [0]
        conflict = answer.infeasibility[0]
        assert "device 0" in conflict.text
        helped = relaxed(problem, conflict)
        seen[len(helped)] += 1
        for other in helped:
            assert solve(other, method="exact").status == "optimal", conflict.text
        if conflict.factor is not None:
            less = {n: getattr(system.devices, n) * conflict.factor * 0.999 for n in ("delay_budget", "energy_budget")}
            assert solve(FEEL(system.with_(**less)), method="exact").status == "infeasible", conflict.text
    assert sum(seen.values()) > 4
    assert len(seen) > 1


def test_full_participation_that_does_not_fit() -> None:
    system = build(0.1, 0.1, 1.0, [20.0, 25.0, 30.0], 30.0)
    problem = FEEL(system)
    assert solve(problem).status == "optimal"
    everyone = problem.restrict(selected=1)
    answer = solve(everyone)
    assert answer.status == "infeasible"
    (conflict,) = answer.infeasibility
    assert conflict.device is None
    assert conflict.binding == "bandwidth"
    (other,) = relaxed(everyone, conflict)
    again = solve(other, gap=1e-6)
    assert again.status == "optimal"
    assert again.decision is not None
    np.testing.assert_array_equal(again.decision["selected"], 1.0)
    less = FEEL(system.with_(total_bandwidth=conflict.relax["bandwidth"] * 0.999)).restrict(selected=1)
    assert solve(less).status == "infeasible"


def test_required_client_out_of_reach_is_named_alone() -> None:
    problem = FEEL(build([0.1, 2.0, 0.1], 0.1, 1.0, 0.5, 30.0, learner={"pruning_ratio_max": 0.4}))
    assert solve(problem).status == "optimal"
    answer = solve(problem.restrict(selected=([0.0, 1.0, 0.0], 1.0)))
    assert answer.status == "infeasible"
    assert [c.device for c in answer.infeasibility] == [1]


def test_too_few_clients_for_a_contraction() -> None:
    """With A >= 1 for all that fits there is no answer, and it says so."""
    system = build(0.1, 0.1, 1.0, [20.0, 25.0, 30.0], 30.0, bound={"gradient_slope": 5.0})
    for objective in ("gap", "bound"):
        answer = solve(FEEL(system, objective=objective))  # type: ignore[arg-type]
        best, _ = brute_force(FEEL(system, objective=objective))  # type: ignore[arg-type]
        assert np.isinf(best)
        assert answer.status == "infeasible"
        assert "no selection" in answer.infeasibility[0].text


# ------------------------------------------------------------------------------------------- statements of the theory


def worked(chi: Any) -> FEEL:
    """Six clients of equal size whose chi are given, with a band for everyone: zeta1 = 0.4."""
    chi = np.asarray(chi)
    system = build(0.1, 0.1, 0.5, 0.01, np.full(chi.size, 1e3), bound={"gradient_offset": 0.4})
    # linear pruning error, dense model: chi = 4 Phi = (16 sigma^2/n)(ln 2/2) V
    proxy = chi * system.devices.samples / (8.0 * LN2 * system.learner.parameters)
    return FEEL(system.with_(gradient_proxy=proxy)).restrict(pruning_ratio=0.0)


def test_worked_selection() -> None:
    """Theory 3f: the prefix values, and that five of six are taken."""
    chi = np.array([0.2, 0.3, 0.5, 0.9, 1.5, 3.0])
    problem = worked(chi)
    outer = SelectionObjective(problem)
    sizes = np.arange(1, 7)
    values = outer.value(np.cumsum(chi) / 6.0, sizes / 6.0)
    np.testing.assert_allclose(values, [2.42222, 1.67222, 1.13333, 0.83056, 0.76889, 1.06667], atol=5e-6)
    for order in ([0, 1, 2, 3, 4, 5], [5, 2, 0, 4, 1, 3]):
        shuffled = worked(chi[order])
        for method in ("exact", "alternating"):
            answer = solve(shuffled, method=method)
            assert answer.value == pytest.approx(0.768889, abs=5e-6)
            assert answer.decision is not None
            np.testing.assert_array_equal(answer.decision["selected"], chi[order] < 3.0)
        for size in sizes:
            some = shuffled.restrict(selected=(chi[order] <= np.sort(chi)[size - 1]).astype(float))
            assert solve(some).value == pytest.approx(values[size - 1], rel=1e-12)


def test_exact_selection_at_fixed_chi_is_that_of_the_dynamic_program() -> None:
    """Theory 3g: with room for everyone, Gamma depends on a selection through n_S and its summed n chi alone."""
    rng = np.random.default_rng(4)
    beaten = 0
    for trial in range(150):
        chi = 10.0 ** rng.uniform(-1.0, 1.0, 8)
        samples = rng.integers(1, 30, 8).astype(float)
        offset = 10.0 ** rng.uniform(-1.0, 0.7)
        least = {0.0: 0.0}
        for k in range(8):
            for held, cost in list(least.items()):
                now = cost + samples[k] * chi[k]
                least[held + samples[k]] = min(now, least.get(held + samples[k], np.inf))
        total, weight = samples.sum(), 8.0 * offset
        best = min(c / m + weight * (1.0 - m / total) ** 2 for m, c in least.items() if m > 0.0)
        order = np.argsort(chi)
        mass, cost = np.cumsum(samples[order]), np.cumsum((samples * chi)[order])
        prefix = float(np.min(cost / mass + weight * (1.0 - mass / total) ** 2))
        assert best <= prefix * (1.0 + 1e-12)
        if best < prefix * (1.0 - 1e-9) or trial < 5:
            beaten += bool(best < prefix * (1.0 - 1e-9))
            system = worked(chi).system.with_(samples=samples, gradient_offset=offset)
            proxy = chi * samples / (8.0 * LN2 * system.learner.parameters)
            fixed = FEEL(system.with_(gradient_proxy=proxy)).restrict(pruning_ratio=0.0)
            answer = solve(fixed, method="exact", gap=1e-9)
            assert answer.value == pytest.approx(best, rel=1e-9)
            assert answer.lower_bound is not None and answer.lower_bound <= best * (1.0 + 1e-12)
    assert beaten >= 2


def test_more_information_never_helps_a_client() -> None:
    """Theory 3f: at the exact optimum, doubling I_k never brings client k in."""
    rng = np.random.default_rng(6)
    left_out = dropped = 0
    for _ in range(25):
        count = int(rng.integers(2, 6))
        fields = {
            "information": 10.0 ** rng.uniform(2.5, 4.5, count),
            "gradient": 10.0 ** rng.uniform(-2.0, 0.0, count),
        }
        problem = FEEL(drawn(rng, count, load=10.0 ** rng.uniform(-0.3, 0.5), **fields))
        before = solve(problem, method="exact", gap=1e-8)
        if before.decision is None or before.value is None:
            continue
        k = int(rng.integers(count))
        general = problem.system.generalization
        assert general is not None
        known = np.array(general.mutual_information)
        known[k] *= 2.0
        more = FEEL(problem.system.with_(mutual_information=known), objective=problem.objective)
        after = solve(more, method="exact", gap=1e-8)
        assert after.value is not None and after.decision is not None and after.lower_bound is not None
        assert after.value >= before.value * (1.0 - 1e-7)
        dropped += bool(after.decision["selected"][k] < before.decision["selected"][k])
        if before.decision["selected"][k] == 0.0:
            left_out += 1
            # the old optimum does not contain k and keeps its value: still optimal, unless a tie
            assert after.decision["selected"][k] == 0.0 or after.value == pytest.approx(before.value, rel=1e-7)
    assert left_out >= 3
    assert dropped >= 1


@pytest.mark.parametrize("budget", ["energy_budget", "delay_budget", "total_bandwidth"])
def test_larger_budgets_never_hurt(budget: str) -> None:
    rng = np.random.default_rng(9)
    fell = 0
    for _ in range(5):
        system = drawn(rng, 4, load=10.0 ** rng.uniform(-0.2, 0.4))
        section = system.radio if budget == "total_bandwidth" else system.devices
        values = []
        for factor in (1.0, 1.3, 2.0, 5.0):
            answer = solve(FEEL(system.with_(**{budget: getattr(section, budget) * factor})), method="exact", gap=1e-7)
            values.append(np.inf if answer.value is None else answer.value)
        assert all(b <= a * (1.0 + 2e-7) for a, b in itertools.pairwise(values) if np.isfinite(a)), values
        assert not any(np.isinf(b) and np.isfinite(a) for a, b in itertools.pairwise(values))
        fell += bool(values[-1] < values[0] * (1.0 - 1e-4))
    assert fell >= 2


def test_first_order_conditions() -> None:
    """The price is 0 where band is left; who gains by pruning prunes most; elsewhere marginal gains per hertz agree."""
    rng = np.random.default_rng(10)
    slack = tight = pruned = agreed = 0
    for trial in range(24):
        load = 10.0 ** (-1.5 if trial % 3 == 0 else rng.uniform(-0.3, 0.3))
        problem = FEEL(drawn(rng, 4, load=load, unpruned=0, bound={"gradient_offset": 2.0}))
        answer = solve(problem, method="exact", gap=1e-9)
        if answer.decision is None or answer.value is None:
            continue
        taken = answer.decision["selected"] > 0.5
        who = np.flatnonzero(taken)
        ratio = answer.decision["pruning_ratio"][who]
        room = float(np.asarray(answer.evaluation.slack["total_bandwidth"]))  # type: ignore[union-attr]
        price = answer.certificate.prices["bandwidth"]
        cells = FEELCells(problem)
        if room > 1e-3 * cells.client.band:
            slack += 1
            assert price == 0.0
        elif price > 0.0:
            tight += 1
        # C_k < 0 at the linear law: dGamma/dr per unit weight is -(C of the theory) everywhere
        assert problem.system.learner.pruning_ratio_max > 0.0
        fall = -cells.slope_of_cost(who, np.full(who.size, 1.0))
        gains = fall < -1e-9
        if problem.system.bound.pruning_error == "linear":
            pruned += int(gains.sum())
            np.testing.assert_allclose(ratio[gains], problem.system.learner.pruning_ratio_max, rtol=1e-9)
        # interior ratios: equal marginal gain per hertz, where not at a kink of the least bandwidth
        kept = 1.0 - ratio
        inner = (kept > cells.least[who] * 1.001) & (kept < cells.free()[who] * 0.999)
        if inner.sum() >= 2 and price > 0.0:
            steps = kept * np.array([[1.0 - 1e-4], [1.0], [1.0 + 1e-4]])
            log_band, slope, _, _ = cells.client.least_bandwidth(np.broadcast_to(who, steps.shape), steps)
            per_hertz = -cells.slope_of_cost(who, kept) * kept / (np.exp(log_band[1]) * slope[1])
            kink = abs(slope[2] - slope[0]) > 1e-2
            smooth = per_hertz[inner & ~kink & np.all(np.isfinite(log_band), axis=0)]
            if smooth.size >= 2:
                agreed += 1
                np.testing.assert_allclose(smooth, smooth[0], rtol=2e-3)
    assert slack >= 3 and tight >= 3 and pruned >= 1 and agreed >= 2, (slack, tight, pruned, agreed)


def test_without_a_generalization_gap_pruning_only_costs() -> None:
    rng = np.random.default_rng(12)
    for law in ("linear", "laplace"):
        problem = FEEL(drawn(rng, 4, gradient=np.zeros(4), bound={"pruning_error": law, "mask_energy": 0.3}))
        ratio = np.linspace(0.0, 0.5, 11)[:, None] * np.eye(4)[:, None]
        value = problem.evaluate(
            Decision(
                selected=np.ones((4, 11, 4)),
                pruning_ratio=ratio,
                **{name: np.ones((4, 11, 4)) for name in ("bandwidth", "frequency", "power")},
            )
        ).objective
        assert np.all(np.diff(value, axis=1) > 0.0)


def test_nothing_lost_is_nothing() -> None:
    """Everyone, dense, sigma_g = 0: Gamma = 0."""
    problem = FEEL(build(0.1, 0.1, 0.5, 0.01, [1e3] * 3, gradient=0.0))
    answer = solve(problem)
    assert answer.value == 0.0
    assert answer.status == "optimal"


# ------------------------------------------------------------------------------------------- the published alternation


def step_three(problem: FEEL, decision: Decision, compute: Any, weight: Any) -> tuple[float, bool]:
    """Largest weighted sum of kept fractions when nobody computes for less than these times, in SI.

    The kept fraction of a band is found by bisection, the split by SLSQP. Also says whether all keep their times
    there: beyond them a client computes at f_max, and the convex step need not find as much.
    """
    client, cells = Client(problem.system), FEELCells(problem)
    who = np.flatnonzero(decision["selected"] > 0.5)
    T, E, fastest, time = client.delay_budget[who], client.energy_budget[who], client.frequency_max[who], compute[who]
    top = np.maximum(cells.free(), cells.least)[who]

    def kept(band: Any) -> Any:
        low, high = np.zeros(who.size), top.copy()
        for step in range(60):
            s = high if step == 0 else 0.5 * (low + high)
            cycles = client.cycles_once[who] + client.cycles_each[who] * s
            bits = client.bits_once + client.bits_each * s
            burnt = client.capacitance[who] * cycles * np.minimum(cycles / time, fastest) ** 2
            upload = np.minimum(T - time, T - cycles / fastest)
            with np.errstate(all="ignore"):
                power = np.clip((E - burnt) / upload, 0.0, client.power_max[who])
                able = (upload > 0.0) & (band * np.log2(1.0 + power * client.gain[who] / band) * upload >= bits)
            low, high = np.where(able, s, low), np.where(able, high, s)
        return low

    def loss(share: Any) -> float:
        return -float(weight[who] @ kept(np.maximum(share, 1e-9) * client.band))

    # nobody keeps less than its least fraction
    few, many = np.full(who.size, np.log(1e-6)), np.zeros(who.size)
    for _ in range(50):
        middle = 0.5 * (few + many)
        enough = kept(np.exp(middle) * client.band) >= cells.least[who]
        few, many = np.where(enough, few, middle), np.where(enough, middle, many)
    best, at = 0.0, decision["bandwidth"][who] / client.band
    rng = np.random.default_rng(0)
    for trial in range(3):
        start = decision["bandwidth"][who] / client.band if trial == 0 else rng.dirichlet(np.full(who.size, 4.0))
        answer = minimize(
            loss,
            0.999 * start,
            method="SLSQP",
            bounds=[(low, 1.0) for low in np.exp(many)],
            constraints={"type": "ineq", "fun": lambda x: 1.0 - x.sum(), "jac": lambda x: -np.ones(x.size)},
            options={"ftol": 1e-13, "maxiter": 200, "eps": 1e-7},
        )
        if answer.x.sum() <= 1.0 + 1e-9 and -loss(answer.x) > best:
            best, at = -loss(answer.x), answer.x
    cycles = client.cycles_once[who] + client.cycles_each[who] * kept(at * client.band)
    return best, bool(np.all(cycles / fastest <= time * (1.0 + 1e-9)))


@pytest.mark.parametrize("law", ["linear", "mask"])
def test_third_step_is_a_compiled_program_with_the_right_optimum(law: str) -> None:
    """Never less than its start, never more than an independent search finds, and equal while times are kept."""
    rng = np.random.default_rng(21)
    compared = equal = 0
    step = RatioBandwidthStep(4)
    assert step.problem.is_dpp()
    for trial in range(16):
        snr = 10.0 ** rng.uniform(0.0, 3.0, 4)
        slow = trial % 2 == 0
        system = build(
            10.0 ** rng.uniform(-2.0, -0.5 if slow else -0.1, 4),
            10.0 ** (rng.uniform(1.0, 1.8, 4) if slow else rng.uniform(-1.5, 1.0, 4)),
            10.0 ** rng.uniform(-0.5, 0.7, 4),
            0.5 * np.log2(1.0 + 4.0 * snr) * 10.0 ** rng.uniform(-0.2, 0.5, 4),
            snr,
            unpruned=int(rng.choice([0, 100])),
            gradient=10.0 ** rng.uniform(-2.0, -0.3, 4),
            learner={"compute_law": law},
        )
        problem = FEEL(system)
        blocks = problem.capabilities().blocks
        assert blocks is not None
        start = blocks.start()
        if not problem.evaluate(start).feasible():
            continue
        decision = blocks.steps["time split"](start)
        alternation = blocks.steps["time split"].__self__  # type: ignore[attr-defined]
        client, cells = Client(system), FEELCells(problem)
        taken = decision["selected"] > 0.5
        kept = 1.0 - decision["pruning_ratio"]
        cycles = client.cycles_once + client.cycles_each * kept
        compute = np.where(taken, cycles / np.where(taken, decision["frequency"], 1.0), 0.5 * client.delay_budget)
        weight = np.where(taken, -cells.slope_of_cost(np.arange(4), np.clip(kept, cells.least, cells.most)), 0.0)
        assert np.all(weight >= 0.0)
        expected, timed = step_three(problem, decision, compute, weight)
        # one compiled program for all instances, whoever is taken
        fractions, share = step.solve(**alternation.coefficients(decision, compute))
        reached = float(weight[taken] @ fractions[taken])
        assert share[taken].sum() <= 1.0 + 1e-6
        assert reached >= float(weight[taken] @ kept[taken]) * (1.0 - 1e-5), trial
        assert reached <= expected * (1.0 + 2e-5), trial
        if timed and np.all(decision["frequency"][taken] < 0.999 * client.frequency_max[taken]):
            equal += 1
            assert reached == pytest.approx(expected, rel=2e-5), trial
        compared += 1
        # and the whole step never raises the objective, nor leaves the budgets
        after = problem.evaluate(blocks.steps["ratio and bandwidth"](decision))
        assert after.feasible()
        assert after.objective <= problem.evaluate(decision).objective * (1.0 + 1e-12)
    assert compared >= 8
    assert equal >= 2


@pytest.mark.parametrize("devices", [4, pytest.param(6, marks=pytest.mark.slow)])
def test_alternation_falls_and_comes_near(devices: int) -> None:
    """Theory 3f: within 2 % of the optimum for few clients on most instances; never below the bound."""
    gaps = []
    for seed in range(5):
        problem = FEEL(systems.feel(devices, seed))
        exact = solve(problem, method="exact")
        seen: list[float] = []
        near = solve(problem, method="alternating", callback=lambda p, seen=seen: seen.append(p.value))  # type: ignore[misc]
        assert exact.value is not None and exact.lower_bound is not None
        assert near.value is not None and near.decision is not None
        assert near.lower_bound is None
        assert problem.evaluate(near.decision).feasible()
        assert near.value >= exact.lower_bound * (1.0 - 1e-9)
        assert all(b <= a * (1.0 + 1e-12) for a, b in itertools.pairwise(seen))
        gaps.append(near.value / exact.value - 1.0)
    # most, not all: an unlucky selection costs more
    assert np.median(gaps) < 0.02
    assert max(gaps) < 0.3


def test_alternation_where_nothing_is_feasible() -> None:
    """No answer is an answer, also for the alternation."""
    problem = FEEL(build([0.1, 0.1], 0.1, 0.5, 900.0, 3.0))
    assert solve(problem).status == "infeasible"
    answer = solve(problem, method="alternating")
    assert answer.status == "infeasible"
    assert answer.value is None


# ---------------------------------------------------------------------------------------------- order, units, files


def test_order_of_devices_changes_nothing() -> None:
    rng = np.random.default_rng(14)
    for seed in (0, 7):
        problem = FEEL(drawn(np.random.default_rng(seed), 5, load=0.8))
        order = rng.permutation(5)
        other = FEEL(problem.system.take(order))
        before, after = solve(problem, gap=1e-8), solve(other, gap=1e-8)
        assert before.status == after.status
        if before.value is None or before.decision is None:
            continue
        assert after.value == pytest.approx(before.value, rel=2e-8)
        moved = Decision({name: before.decision[name][order] for name in before.decision})
        evaluation = other.evaluate(moved)
        assert float(evaluation.objective) == pytest.approx(before.value, rel=1e-12)
        assert evaluation.feasible()
        for method in ("alternating", "resources_only"):
            a, b = solve(problem, method=method), solve(other, method=method)
            assert a.status == b.status
            if a.value is not None:
                assert b.value == pytest.approx(a.value, rel=1e-3)


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 10_000), st.floats(-3.0, 3.0), st.floats(-3.0, 3.0), st.floats(-3.0, 3.0), st.floats(-2.0, 2.0))
def test_units_do_not_matter(seed: int, time: float, joule: float, bits: float, loss: float) -> None:
    """Seconds, joules and bits in other units; and the loss (Gamma, with L, D^2 in step) in another."""
    system = drawn(np.random.default_rng(seed), 3, load=1.0, learner={}, bound={"gradient_slope": 0.0})
    t, e, c, g = 10.0**time, 10.0**joule, 10.0**bits, 10.0**loss
    d, r, b = system.devices, system.radio, system.bound
    general = system.generalization
    assert r.total_bandwidth is not None and general is not None
    other = system.with_(
        delay_budget=d.delay_budget * t,
        frequency=d.frequency / t * c,
        cycles_per_sample=d.cycles_per_sample * c,
        energy_budget=d.energy_budget * e,
        capacitance=d.capacitance * e * t**2 / c**3,
        power_max=d.power_max * e / t,
        power_min=d.power_min * e / t,
        noise_density=r.noise_density * e,
        total_bandwidth=r.total_bandwidth / t,
        weight_norm_squared=b.weight_norm_squared * g,
        mask_energy=b.mask_energy * g,
        gradient_offset=b.gradient_offset * g,
        gradient_proxy=general.gradient_proxy * g,
    )
    before, after = solve(FEEL(system), gap=1e-7), solve(FEEL(other), gap=1e-7)
    assert before.status == after.status
    if before.value is not None:
        assert after.value == pytest.approx(before.value * g, rel=2e-7)


def test_a_saved_result_is_the_problem_again(tmp_path: Any) -> None:
    import json

    base = FEEL(drawn(np.random.default_rng(5), 5, load=0.7, bound={"gradient_slope": 0.01}), objective="bound")
    problem = base.restrict(pruning_ratio=(0.1, [0.5, 0.4, 0.3, 0.5, 0.45]), selected=([0, 0, 1, 0, 0], 1))
    answer = solve(problem)
    assert answer.value is not None
    path = answer.save(tmp_path / "result.json")
    record = json.loads(path.read_text(encoding="utf-8"))
    system = System.from_json(path)
    assert system == problem.system
    saved = record["settings"]
    again = FEEL(system, objective=saved["objective"]).restrict(
        **{name: (r["lower"], r["upper"]) for name, r in saved.items() if name != "objective"}
    )
    assert again.settings() == problem.settings()
    evaluation = again.evaluate(Decision(record["decision"]))
    assert evaluation.feasible()
    assert float(evaluation.objective) == pytest.approx(record["value"], rel=1e-12)
    assert solve(again).value == pytest.approx(answer.value, rel=1e-12)


# ---------------------------------------------------------------------------------------------- what is refused


def test_bad_systems_are_refused() -> None:
    good = build(0.1, 0.1, 0.5, [0.1, 0.2], 1e3)
    refused = [
        ({"generalization": None}, "generalization: this design needs the section"),
        ({"fading": "rayleigh"}, "radio.fading"),
        ({"interference": [0.0, 1e-15]}, r"radio.interference\[device 1\]"),
        ({"total_bandwidth": None, "bandwidth": 1e5}, "radio.total_bandwidth"),
        ({"gain": [1e-200, 1e-8]}, "device 0: the SNR over the whole band"),
        ({"cycles_per_sample": [1e8, 1e200]}, "device 1: the computing"),
        ({"gradient_proxy": [1e200, 1.0]}, "device 0: the generalization gap"),
        ({"smoothness": 1e100}, "bound: the constant"),
    ]
    for changes, message in refused:
        system = good.replace(**changes) if "generalization" in changes else good.with_(**changes)
        with pytest.raises(InputError, match=message):
            FEEL(system)
    for bad in ({"gradient_proxy": -1.0}, {"gradient_proxy": np.nan}, {"mutual_information": [1.0, np.inf]}):
        with pytest.raises(InputError):
            good.with_(**bad)
    with pytest.raises(InputError, match="mutual_information"):
        good.with_(mutual_information=[1.0, 2.0, 3.0])
    with pytest.raises(InputError, match="expected a System"):
        FEEL({"devices": 3})  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"objective: unknown 'gapp'.*gap"):
        FEEL(good, objective="gapp")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("ranges", "message"),
    [
        ({"bandwidth": 1e5}, "bandwidth follows from the ratio"),
        ({"power": 0.1}, "power follows"),
        ({"ratio": 0.1}, "unknown variable 'ratio'"),
        ({"pruning_ratio": 0.95}, "must lie within 0 and 0.9"),
        ({"pruning_ratio": -0.1}, "must lie within"),
        ({"pruning_ratio": np.nan}, "not a finite range"),
        ({"pruning_ratio": (0.5, 0.4)}, "not a finite range"),
        ({"pruning_ratio": [0.1, 0.2, 0.3]}, "an array over 2 devices"),
        ({"pruning_ratio": (0.1, 0.2, 0.3)}, "a pair of these"),
        ({"pruning_ratio": "half"}, "must be a number"),
        ({"selected": 0.5}, "selected\\[device 0\\].*must be 0 or 1"),
        ({"selected": (0.0, 2.0)}, "selected\\[device 0\\].*must be 0 or 1"),
        ({"selected": 0}, "nobody to train"),
    ],
)
def test_bad_restrictions_are_refused(ranges: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        FEEL(build(0.1, 0.1, 0.5, [0.1, 0.2], 1e3)).restrict(**ranges)


def test_bad_decisions_and_options_are_refused() -> None:
    problem = FEEL(build(0.1, 0.1, 0.5, [0.1, 0.2], 1e3))
    good = solve(problem).decision
    assert good is not None
    with pytest.raises(InputError, match="made for 3 devices"):
        problem.evaluate(Decision({name: np.ones(3) for name in good}))
    with pytest.raises(InputError, match="'power' is missing"):
        problem.evaluate(Decision({name: good[name] for name in good if name != "power"}))
    with pytest.raises(InputError, match="unknown variable 'powr'"):
        problem.evaluate(good.with_(powr=np.ones(2)))
    with pytest.raises(InputError, match="finite"):
        good.with_(power=[np.nan, 0.1])
    with pytest.raises(InputError, match="unknown option 'max_nodes'"):
        solve(problem, method="exact", max_nodes=3)
    with pytest.raises(InputError, match=r"unknown option 'iterations'.*max_iterations"):
        solve(problem, method="alternating", iterations=3)
    with pytest.raises(InputError, match="unknown 'convex'"):
        solve(problem, method="convex")
    with pytest.raises(InputError, match="full_participation"):
        solve(problem, method="full_particpation")
    with pytest.raises(InputError, match="gap"):
        solve(problem, gap=0.0)


def test_infeasible_decisions_are_judged_so() -> None:
    problem = FEEL(build(0.1, 0.1, 0.5, [0.1, 0.2], 1e3))
    good = solve(problem).decision
    assert good is not None
    assert problem.evaluate(good).feasible()
    zero = np.zeros(2)
    for change, broken in (
        ({"selected": [0.5, 1.0]}, "selected"),
        ({"selected": zero}, "participants"),
        ({"bandwidth": zero}, "delay"),
        ({"power": zero}, "delay"),
        ({"frequency": zero}, "delay"),
        ({"pruning_ratio": [0.95, 0.0]}, "pruning_ratio"),
        ({"bandwidth": [0.9e6, 0.9e6]}, "total_bandwidth"),
        ({"power": [0.2, 0.1]}, "power"),
        ({"frequency": good["frequency"] * 100.0}, "frequency"),
    ):
        evaluation = problem.evaluate(good.with_(**change))
        assert not evaluation.feasible(), change
        assert broken in {name for name, _, _ in evaluation.broken()}, change
    # whoever is left out counts for nothing, whatever else is said of it
    nonsense = good.with_(selected=[0.0, 1.0], power=[0.0, good["power"][1]], bandwidth=[0.0, good["bandwidth"][1]])
    evaluation = problem.evaluate(nonsense)
    assert evaluation.feasible()
    assert float(evaluation.objective) == pytest.approx(
        by_hand(problem, np.array([False, True]), good["pruning_ratio"]), rel=1e-12
    )


def test_contraction_must_stay_below_one() -> None:
    problem = FEEL(build(0.1, 0.1, 0.5, [0.1, 0.1], 1e3, bound={"gradient_slope": 0.5}))
    good = solve(problem).decision
    assert good is not None
    alone = problem.evaluate(good.with_(selected=[1.0, 0.0]))
    # A = 8 x 0.5 x (1/2)^2 = 1 exactly
    assert float(alone.quantities["contraction"]) == pytest.approx(1.0)
    assert not alone.feasible()
    assert float(alone.slack["contraction"]) == pytest.approx(CONTRACTION_LIMIT - 1.0)


def test_baselines_stay_within_the_problem() -> None:
    """A baseline of a narrowed problem is narrowed too, so that the bound holds for it."""
    problem = FEEL(build(0.1, 0.1, 0.5, [0.1, 0.2, 0.1], 1e3, gradient=0.0)).restrict(
        selected=(0.0, [1.0, 1.0, 0.0]), pruning_ratio=(0.2, 0.4)
    )
    exact = solve(problem)
    assert exact.lower_bound is not None
    for name in problem.capabilities().baselines:
        answer = solve(problem, method=name)
        if answer.value is None:
            continue
        assert answer.value >= exact.lower_bound * (1.0 - 1e-9), name
        assert answer.decision is not None
        assert problem.evaluate(answer.decision).feasible(), name


@pytest.mark.parametrize("capacitance", [0.0, 1e-9, 1e-3, 1.0])
@pytest.mark.parametrize("energy", [0.02, 0.3, 1.0])
def test_tangents_hold_where_computing_costs_next_to_nothing(capacitance: float, energy: float) -> None:
    """Zero and tiny capacitance put every energy-bound client on the corner; bounds must stay below the curve."""
    from jointopt import systems
    from jointopt.problems.feel_cells import FEELCells
    from jointopt.solvers.branch import respond

    system = systems.feel(12, 0)
    system = system.with_(
        capacitance=system.devices.capacitance * capacitance, energy_budget=system.devices.energy_budget * energy
    )
    cells = FEELCells(FEEL(system))
    units = np.flatnonzero(cells.fits & (cells.top > 1.01 * cells.least))
    if not units.size:
        pytest.skip("nobody can take part")
    grid = cells.least[units] * (cells.top[units] / cells.least[units]) ** np.linspace(0.0, 1.0, 400)[:, None]
    who = np.broadcast_to(units, grid.shape)
    band, slope = cells.probe(who, grid)
    x = np.log(grid)
    for row in range(0, 400, 57):
        below = band[row] + slope[row] * (x - x[row])
        assert np.all(band >= below - 1e-9)
    inner = (band[2:] - band[:-2]) / (x[2:] - x[:-2])
    assert np.median(np.abs(inner - slope[1:-1])) < 1e-3
    for price in (0.0, 1e-7, 1e-5, 1e-3):
        some = cells.take(units)
        lower = respond(some, np.array([1.0, price]), gap=1e-8).lower_bound
        dense = (cells.cost(who, grid) + price * np.exp(band)).min(axis=0)
        assert np.all(lower <= dense * (1.0 + 1e-9))


def test_free_computing_is_no_worse_than_nearly_free() -> None:
    from jointopt import systems

    system = systems.feel(12, 0)
    system = system.with_(energy_budget=system.devices.energy_budget * 0.05)
    free = solve(FEEL(system.with_(capacitance=0.0)), gap=1e-6)
    nearly = solve(FEEL(system.with_(capacitance=system.devices.capacitance * 1e-9)), gap=1e-6)
    assert free.value is not None and nearly.value is not None and free.lower_bound is not None
    assert free.lower_bound <= nearly.value * (1.0 + 1e-9)
    assert free.value <= nearly.value * (1.0 + 2e-6)

"""The aerial design, slot by slot: against enumeration, who sits out, baselines, files, bad input."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from jointopt import systems
from jointopt.decision import Decision
from jointopt.errors import InputError, VerificationError
from jointopt.problems import Aerial, get
from jointopt.solvers import methods, solve
from jointopt.study import load_result
from jointopt.system import AerialSystem, Learner, OnlineBound
from jointopt.verification import verify_saved


def drawn(seed, devices=50, *, noise=1.0, **changes):
    """Vehicles that hover near their classes, with budgets, buffers, weights and laws of all kinds."""
    rng = np.random.default_rng(seed)
    s = systems.aerial(devices, seed=seed, slots=2)
    size = np.array([s.area.width, s.area.length])
    start = np.clip(s.sensing.class_means[:, 0] + rng.normal(0, 40, (devices, 2)), 0, size)
    learner = Learner(
        parameters=int(rng.integers(50, 5000)),
        unpruned_parameters=int(rng.integers(0, 40)),
        header_bits=32,
        pruning_ratio_max=float(rng.choice([0.6, 0.9])),
        batch_size=[None, 8, 32][seed % 3],
        compute_law=["linear", "mask", "affine"][seed % 3],
        compute_floor=0.3 if seed % 3 == 2 else None,
        mask_encoding=str(rng.choice(["none", "bitmap", "indices"])),
    )
    bound = OnlineBound(
        smoothness=1.0,
        weight_norm_squared=rng.uniform(0.1, 3.0),
        mask_energy=rng.uniform(0.0, 1.0),
        gradient_energy=noise * 10.0 ** rng.uniform(-0.5, 1.0),
        gradient_variance=1.0,
        learning_rate=0.05,
        local_steps=4,
    )
    made = AerialSystem(
        vehicles=s.vehicles.replace(
            start=start,
            held=rng.integers(0, 2, devices) * rng.integers(1, 300, devices),
            delay_budget=s.vehicles.delay_budget * 10.0 ** rng.uniform(-1.5, 1.0, devices),
            energy_budget=s.vehicles.energy_budget * 10.0 ** rng.uniform(-1.5, 1.0, devices),
        ),
        area=s.area,
        sensing=s.sensing,
        link=s.link,
        learner=learner,
        bound=bound,
    )
    return made.with_(**changes) if changes else made


def costs(s, slot):
    """Delay and energy of a round as functions of (ratio, levels), written out anew; arrays over vehicles."""
    v, n, b = s.vehicles, s.learner, s.bound
    held = s.buffered[:, slot]
    batch = held if n.batch_size is None else np.minimum(held, n.batch_size)
    cycles = b.local_steps * batch * v.cycles_per_sample
    rate = s.link.bandwidth * np.log2(1 + v.power * s.gain[:, slot] / (s.link.bandwidth * s.link.noise_density))
    index, once = {
        "none": (0, 0),
        "bitmap": (0, n.parameters),
        "indices": (math.ceil(math.log2(n.parameters)), 0),
    }[n.mask_encoding]

    def spent(ratio, levels):
        bits = np.ceil(np.log2(levels + 1)) + 1
        payload = (1 - ratio) * n.parameters * (bits + index) + n.unpruned_parameters * bits + 32 + once
        share = {"linear": 1 - ratio, "mask": 1.0 + 0 * ratio, "affine": 0.3 + 0.7 * (1 - ratio)}[n.compute_law]
        time = share * cycles / v.frequency + payload / rate
        energy = share * cycles * v.capacitance * v.frequency**2 + v.power * payload / rate
        return time, energy

    return spent


def value(s, alpha, ratio, levels):
    b, n = s.bound, s.learner
    d = (1 - ratio) * n.parameters + n.unpruned_parameters
    omega = np.minimum(d / levels**2, np.sqrt(d) / levels)
    c_rho = alpha * (b.smoothness**2 * b.weight_norm_squared + b.mask_energy)
    c_omega = 2 * b.smoothness * b.learning_rate * b.local_steps * alpha**2 * b.gradient_energy
    return c_rho * ratio + c_omega * omega


def enumerated(s, slot):
    """Least values over all 255 levels and a fine grid of ratios with the feasible ends in it; who takes part."""
    spent, most = costs(s, slot), s.learner.pruning_ratio_max
    budget = (s.vehicles.delay_budget, s.vehicles.energy_budget)
    size, held = len(s), s.buffered[:, slot]

    def fits(ratio, levels):
        return np.all([u <= b * (1 + 1e-12) for u, b in zip(spent(ratio, levels), budget, strict=True)], axis=0)

    active = fits(np.full(size, most), np.ones(size)) & (held > 0)
    alpha = np.where(active, held, 0.0) / max(held[active].sum(), 1.0)
    best = np.full(size, np.inf)
    for levels in range(1, 256):
        s_ = np.full(size, float(levels))
        # least feasible ratio by bisection
        low, high = np.zeros(size), np.full(size, most)
        for _ in range(50):
            middle = 0.5 * (low + high)
            good = fits(middle, s_)
            low, high = np.where(good, low, middle), np.where(good, middle, high)
        least = np.where(fits(np.zeros(size), s_), 0.0, high)
        for share in np.linspace(0.0, 1.0, 9):
            ratio = least + share * (most - least)
            best = np.minimum(best, np.where(fits(ratio, s_), value(s, alpha, ratio, s_), np.inf))
    return np.where(active, best, 0.0), active, alpha


@pytest.mark.parametrize("seed", range(6))
def test_decisions_against_enumeration(seed):
    """300 vehicles in all, every number of levels: no better decision, and the same value."""
    s = drawn(seed, noise=10.0 ** (seed - 2))
    problem = Aerial(s, slot=1)
    best, active, alpha = enumerated(s, 1)
    np.testing.assert_array_equal(problem.active[0], active)
    assert 0 < active.sum() < len(s)
    np.testing.assert_allclose(problem.cells.share, alpha, rtol=1e-14)
    result = solve(problem)
    assert result.status == "optimal" and result.certificate.kind == "exact"
    ratio, levels = result.decision["pruning_ratio"], result.decision["levels"]
    ours = np.where(active, value(s, alpha, ratio, levels), 0.0)
    np.testing.assert_allclose(ours, best, rtol=1e-9, atol=1e-15)
    assert result.value == pytest.approx(best.sum(), rel=1e-9)
    time, energy = costs(s, 1)(ratio, levels)
    evaluation = problem.evaluate(result.decision)
    np.testing.assert_allclose(evaluation.quantities["delay"], np.where(active, time, 0.0), rtol=1e-12)
    np.testing.assert_allclose(evaluation.quantities["energy"], np.where(active, energy, 0.0), rtol=1e-12)
    assert evaluation.feasible()


def test_both_ends_are_needed():
    """Theory 5d: the least ratio alone, the authors' rule, loses where noise counts; where it does not it is best."""
    lost = []
    for seed in range(6):
        problem = Aerial(drawn(seed, noise=300.0), slot=0)
        ours, theirs = solve(problem), solve(problem, method="least_ratio")
        assert theirs.value >= ours.value * (1 - 1e-12)
        lost.append(theirs.value / ours.value - 1)
        most = problem.system.learner.pruning_ratio_max
        if lost[-1] > 1e-9:
            assert np.any((ours.decision["pruning_ratio"] == most) & (theirs.decision["pruning_ratio"] < most))
    assert max(lost) > 0.01
    quiet = Aerial(drawn(1, noise=1e-3), slot=0)
    assert solve(quiet, method="least_ratio").value == pytest.approx(solve(quiet).value, rel=1e-12)


def test_payload_and_levels():
    s = drawn(0).with_(parameters=1000, unpruned_parameters=0, mask_encoding="none")
    problem = Aerial(s, slot=1)
    for levels, bits in ((1, 2), (2, 3), (3, 3), (4, 4), (7, 4), (8, 5), (127, 8), (128, 9), (255, 9)):
        told = problem.evaluate(Decision(pruning_ratio=0.25, levels=levels)).quantities["payload_bits"]
        assert set(np.unique(told)) == {0.0, 750 * bits + 32}
    # what is chosen uses the bits it pays for
    levels = solve(problem).decision["levels"][problem.active[0]]
    assert np.all(np.log2(levels + 1) % 1 == 0)


def test_longer_deadlines():
    """At fixed levels the ratio does not rise with the deadline, nor does the optimum."""
    before, ratios = np.inf, None
    for factor in (1.0, 1.2, 1.5, 2.0, 4.0):
        s = drawn(4)
        s = s.with_(delay_budget=factor * s.vehicles.delay_budget, energy_budget=factor * s.vehicles.energy_budget)
        problem = Aerial(s, slot=0)
        if ratios is None:
            active = problem.active
        if not np.array_equal(problem.active, active):
            # more vehicles take part: another problem
            s = s.take(np.flatnonzero(active[0]))
            problem = Aerial(s, slot=0)
            assert problem.active.all()
        units = np.arange(problem.units) if problem.active.all() else np.flatnonzero(active[0])
        every, labels, least = problem.cells._pairs(units)
        table = {(k, b): r for k, b, r in zip(np.searchsorted(units, every), labels, least, strict=True)}
        if ratios is not None:
            assert all(table[key] <= r + 1e-12 for key, r in ratios.items())
        ratios = table
        result = solve(problem)
        assert result.value <= before * (1 + 1e-12)
        before = result.value


def test_who_sits_out_and_why():
    s = drawn(2)
    s = s.with_(held=np.where(np.arange(50) < 5, 0, 100), samples_max=0.0)
    s = s.with_(
        delay_budget=np.where(np.isin(np.arange(50), (5, 7)), 1e-6, 10.0),
        energy_budget=np.where(np.isin(np.arange(50), (6, 7)), 1e-9, 10.0),
    )
    problem = Aerial(s, slot=0)
    reasons = {a.device: a.reason for a in problem.absences()}
    assert reasons == {
        **dict.fromkeys(range(5), "empty buffer"),
        5: "delay",
        6: "energy",
        7: "delay and energy",
    }
    assert "slot 0, device 5: even at ratio" in problem.absences()[5].text
    result = solve(problem)
    assert result.status == "optimal"
    out = problem.evaluate(result.decision).quantities
    assert out["weight"].sum() == pytest.approx(1.0) and out["weight"][:8].sum() == 0.0
    assert out["energy"][:8].sum() == 0.0 and out["delay"][8:].min() > 0.0
    # they cost nothing, whatever is written for them
    other = result.decision.with_(pruning_ratio=np.where(np.arange(50) < 8, 0.0, result.decision["pruning_ratio"]))
    assert problem.evaluate(other).objective == result.value and problem.evaluate(other).feasible()
    table = str(problem.explain(result.decision))
    assert "sits out: slot 0, device 0: nothing was sensed" in table and "sitting out: 8" in table
    assert "8 of 50 vehicles sit out (empty buffer: 5, delay: 1, energy: 1, delay and energy: 1)" in result.summary()


def test_all_empty():
    s = drawn(3).with_(held=0, samples_max=0.0)
    result = solve(Aerial(s))
    assert result.status == "optimal" and result.value == 0.0
    assert result.evaluation.quantities["weight"].sum() == 0.0
    result.verify()


def test_all_slots_are_the_slots():
    s = systems.aerial(7, seed=1, slots=5)
    problem = Aerial(s)
    result = solve(problem)
    single = [solve(Aerial(s, slot=t)) for t in range(5)]
    assert result.value == pytest.approx(sum(r.value for r in single), rel=1e-12)
    for t, one in enumerate(single):
        assert problem.in_slot(result.decision, t) == one.decision
    assert problem.by_slot(result.decision["levels"]).shape == (5, 7)
    assert problem.by_slot(0.5).tolist() == np.full((5, 7), 0.5).tolist()
    bound = float(result.evaluation.quantities["bound"])
    b = s.bound
    expected = 2 * (b.initial_gap + 5 * 0.02) / (b.learning_rate * b.local_steps * 5)
    assert bound == pytest.approx(expected + float(result.evaluation.quantities["gap"]))
    # what does not move has a lower bound
    assert solve(Aerial(s.with_(drift=0.0))).evaluation.quantities["bound"] < bound
    assert "in slot 4" in str(problem.explain(result.decision)) or len(problem.explain(result.decision).rows) == 35
    assert "7" in result.summary() and len(result.to_pandas()) == 7


def test_baselines():
    s = systems.aerial(8, seed=2, slots=4)
    for problem in (Aerial(s), Aerial(s, slot=3)):
        best = solve(problem)
        assert set(methods(problem)) >= {
            "exact",
            "nlp",
            "dense",
            "prune_only",
            "quantize_only",
            "least_ratio",
            "random",
        }
        for name in ("prune_only", "least_ratio", "random"):
            result = solve(problem, method=name, seed=1)
            assert result.feasible and result.value >= best.value * (1 - 1e-12)
            result.verify()
        assert solve(problem, method="prune_only").decision["levels"].min() == 2**31 - 1
        one, two = (solve(problem, method="random", seed=k).decision for k in (1, 2))
        assert one == solve(problem, method="random", seed=1).decision and one != two
        for name in ("dense", "quantize_only"):
            result = solve(problem, method=name)
            assert result.status == "infeasible" and result.infeasibility
            assert all(c.factor > 1.0 for c in result.infeasibility)
            result.verify()
    wide = s.with_(delay_budget=10.0, energy_budget=10.0)
    dense = solve(Aerial(wide), method="dense")
    assert dense.feasible and dense.decision["pruning_ratio"].max() == 0.0
    assert dense.value < 1e-12
    # with wide budgets nothing is pruned and all levels are used
    free = solve(Aerial(wide)).decision
    assert free["pruning_ratio"][Aerial(wide).cells.active].max() == 0.0
    assert free["levels"][Aerial(wide).cells.active].min() == 255


def test_restricted_levels():
    problem = Aerial(drawn(1), slot=1)
    best = solve(problem)
    for ranges in ({"levels": (2, 5)}, {"levels": 7}, {"levels": (20, 255), "pruning_ratio": (0.1, 0.5)}):
        narrow = problem.restrict(**ranges)
        result = solve(narrow)
        np.testing.assert_array_equal(narrow.active, problem.active)
        if result.feasible:
            assert result.value >= best.value * (1 - 1e-12)
        active = problem.active[0]
        levels = result.decision["levels"][active]
        low, high = ranges["levels"] if isinstance(ranges["levels"], tuple) else (ranges["levels"],) * 2
        assert np.all((levels >= low) & (levels <= high))
        result.verify()
    # between powers of two only the last number of equal bits can be best, which the range may cut
    seen = set(np.unique(solve(problem.restrict(levels=(2, 5))).decision["levels"][active]))
    assert seen <= {2.0, 3.0, 5.0}


def test_verified_and_saved(tmp_path):
    problem = Aerial(systems.aerial(6, seed=5, slots=3), slot=2)
    result = solve(problem)
    assert result.verify().complete
    path = result.save(tmp_path / "slot.json")
    loaded, decision, data = load_result(path)
    assert isinstance(loaded, Aerial) and loaded.slot == 2 and decision == result.decision
    assert verify_saved(loaded, decision, data).complete
    whole = solve(Aerial(problem.system))
    assert whole.verify().complete
    assert verify_saved(*load_result(whole.save(tmp_path / "all.json"))).complete
    leaves = whole.certificate.leaves
    raised = replace(leaves, bound=leaves.bound * 1.001)
    lie = replace(whole, certificate=replace(whole.certificate, leaves=raised))
    with pytest.raises(VerificationError):
        lie.verify()
    with pytest.raises(VerificationError):
        replace(whole, lower_bound=whole.lower_bound * 1.001, value=whole.value * 1.002).verify()


def test_options_of_the_problem():
    assert get("aerial") is Aerial
    sampled = Aerial.sample(devices=4, seed=1, tightness=2.0)
    assert len(sampled) == 4 and sampled.learner.parameters == 4736
    problem = Aerial(sampled).limited({"delay": 1e-3})
    assert problem.system.vehicles.delay_budget.max() == 1e-3
    again = Aerial.from_settings(sampled, Aerial(sampled, slot=1).restrict(levels=(3, 31)).settings())
    assert again.slot == 1 and again.ranges["levels"][1].max() == 31.0


def test_differentiates():
    problem = Aerial(drawn(0), slot=1)
    ratio = torch.full((50,), 0.3, dtype=torch.float64, requires_grad=True)
    evaluation = problem.evaluate(Decision(pruning_ratio=ratio, levels=torch.full((50,), 7.0, dtype=torch.float64)))
    (slope,) = torch.autograd.grad(evaluation.objective, ratio)
    step = 1e-6
    up, down = (
        float(problem.evaluate(Decision(pruning_ratio=np.full(50, 0.3 + d), levels=np.full(50, 7.0))).objective)
        for d in (step, -step)
    )
    assert float(slope.sum()) == pytest.approx((up - down) / (2 * step), rel=1e-6)
    batch = problem.evaluate(Decision(pruning_ratio=np.full((3, 50), 0.3), levels=np.full((3, 1), 7.0)))
    assert batch.objective.shape == (3,) and batch.violation().shape == (3,)


def test_bad_input():
    s = drawn(0)
    cases = [
        (lambda: Aerial(systems.ltfl(3)), "expected an AerialSystem, got System"),
        (lambda: Aerial(s, slot=2), "slot: 2 must be a whole number from 0 to 1"),
        (lambda: Aerial(s, slot=True), "slot: True must be"),
        (lambda: Aerial(s.with_(learning_rate=0.2)), "is above 1/2, up to which this design's bound holds"),
        (lambda: Aerial(s.with_(pruning_error="laplace")), "bound.pruning_error: 'laplace' is not covered"),
        (lambda: Aerial(s, slot=0).restrict(levels=2.5), "levels must be whole numbers"),
        (lambda: Aerial(s, slot=0).restrict(levels=0), "levels must be whole numbers from 1"),
        (lambda: Aerial(s, slot=0).restrict(pruning_ratio=0.95), "pruning_ratio must lie within 0 and"),
        (lambda: Aerial(s, slot=0).restrict(bits=3), "restrict: unknown variable 'bits'"),
        (lambda: Aerial(s).evaluate(Decision(pruning_ratio=np.zeros(50), levels=1)), "expected 100 (50 vehicles in 2"),
        (lambda: Aerial(s).evaluate(Decision(pruning_ratio=0.1)), "'levels' is missing"),
        (lambda: Aerial(s).evaluate(Decision(pruning_ratio=0.1, levels=1, power=1)), "unknown variable 'power'"),
        (lambda: Aerial(s).in_slot(Decision(pruning_ratio=0.1, levels=1), 5), "slot: 5 is none of this problem's"),
        (lambda: solve(Aerial(s), method="staged"), "unknown 'staged' (this problem lacks the structure"),
        (lambda: Aerial(s.with_(power=1e-200)), "device 0: the seconds to send a bit"),
        (lambda: Aerial(s.with_(cycles_per_sample=1e200, held=1)), "computing delay (cycles_per_sample, frequency) is"),
        (lambda: s.with_(altitude=-1), "area.altitude: -1.0 m must"),
    ]
    for build, message in cases:
        with pytest.raises(InputError) as error:
            build()
        assert message in str(error.value)


def test_totals_and_sensitivity():
    s = systems.aerial(4, seed=0, slots=6)
    problem = Aerial(s)
    result = solve(problem)
    table = result.to_pandas()
    joined = problem.active.sum(axis=0)
    np.testing.assert_array_equal(table["slots_joined"], joined)
    ratio = problem.by_slot(result.decision["pruning_ratio"])
    means = [ratio[problem.active[:, u], u].mean() if joined[u] else 0.0 for u in range(4)]
    np.testing.assert_allclose(table["mean_pruning_ratio"], means)
    energy = problem.by_slot(result.evaluation.quantities["energy"])
    np.testing.assert_allclose(table["total_energy"], energy.sum(axis=0))
    assert np.all(table["total_energy"] <= joined * s.vehicles.energy_budget * (1 + 1e-9))
    worth = solve(Aerial(s, slot=5)).sensitivity()
    # a tight budget is worth something; places and maps are tables and not asked about
    assert max(worth["energy_budget"].max(), worth["delay_budget"].max()) > 0.0
    assert "start" not in worth.improvement and "class_means" not in worth.improvement

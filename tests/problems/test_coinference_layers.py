"""Co-inference with a ratio per layer: the convex program, its proof, and its limits."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize

from jointopt import systems
from jointopt.decision import Decision
from jointopt.errors import InputError
from jointopt.inference import dense_network, distortion_curve
from jointopt.models import inference
from jointopt.problems import coinference_layers, get
from jointopt.problems.coinference import CoInference
from jointopt.problems.coinference_layers import LayerwiseCoInference
from jointopt.solvers import convex, methods, solve
from jointopt.system import InferenceDevices, InferenceSystem, Link, Network


def small(rng, **network):
    layers = 3

    def log(low, high, size=None):
        return 10 ** rng.uniform(np.log10(low), np.log10(high), size)

    fields = {
        "flops": log(1e8, 1e10, layers),
        "fixed_flops": log(1e6, 1e8, layers),
        "parameters": rng.integers(100, 1000, layers),
        "weight_rate": rng.uniform(5, 50, layers),
        "amplification": rng.uniform(0.5, 3, layers),
        "cut_bits": np.append(log(1e4, 1e6, layers), 0.0),
        "splits": [int(rng.integers(0, 4))],
    }
    made = Network(**{**fields, **network})
    work = made.flops.sum()
    return InferenceSystem(
        devices=InferenceDevices(
            frequency=[1e9],
            power_max=0.2,
            delay_budget=work / 32e9 * log(0.3, 2) + made.cut_bits[int(made.choices[0])] / 5e6,
            energy_budget=2e-29 * work / 32 * 1e18 * log(0.1, 2),
        ),
        link=Link(bandwidth=1e6, noise_density=2e-19, gain=log(1e-11, 1e-9)),
        network=made,
    )


def by_slsqp(problem, start):
    """The whole program in ratios and times, for the one split allowed; SciPy's SLSQP, scaled."""
    s = problem.system
    n, d = s.network, s.devices
    split = int(n.choices[0])
    t0, e0, n0 = d.delay_budget[0], d.energy_budget[0], s.noise_power[0]
    bits, band = n.cut_bits[split], s.link.bandwidth[0]
    weights = n.amplification * n.parameters / n.weight_rate
    reach = t0, t0, t0

    def loads(kept):
        flops = kept * n.flops + n.fixed_flops
        return flops[:split].sum() / d.flops_per_cycle[0], flops[split:].sum() / s.server.server_flops_per_cycle

    def unpack(x):
        return np.clip(x[:3], 1e-12, 1), np.maximum(x[3:], 1e-9) * reach

    def objective(x):
        k, _ = unpack(x)
        return float(np.sum(weights * (k * np.log(k) - k + 1)) / weights.sum())

    def room(x):
        k, (td, ts, tu) = unpack(x)
        w, ws = loads(k)
        e = d.capacitance[0] * w**3 / td**2 if w else 0.0
        e += s.server.server_pue * s.server.server_capacitance * ws**3 / ts**2 if ws else 0.0
        e += tu * n0 * np.expm1(min(bits * np.log(2) / (band * tu), 500)) if bits else 0.0
        used = (td if w else 0) + (ts if ws else 0) + (tu if bits else 0)
        least_tu = bits / (band * np.log2(1 + d.power_max[0] / n0))
        return np.array(
            [
                1 - e / e0,
                1 - used / t0,
                (td - w / d.frequency[0]) / t0,
                (ts - ws / s.server.server_frequency) / t0,
                (tu - least_tu) / t0,
            ]
        )

    best = np.inf
    for shrink in (0.999, 0.9, 0.7):
        k = 0.05 + shrink * (1 - start - 0.05)
        chain = CoInference(s)
        found = inference.least_energy(
            chain.capabilities().cells.chains(np.zeros(1, dtype=np.int64), np.array([split])),
            np.array([float(k.mean())]),
            np.array([t0]),
        )
        times = np.array([found.device_time[0], found.server_time[0], found.send_time[0]]) / t0
        got = minimize(
            objective,
            np.concatenate([k, np.maximum(times, 1e-6)]),
            method="SLSQP",
            bounds=[(0.05, 1.0)] * 3 + [(1e-9, 1.0)] * 3,
            constraints={"type": "ineq", "fun": room},
            options={"ftol": 1e-14, "maxiter": 400},
        )
        if room(got.x).min() > -1e-8:
            best = min(best, objective(got.x) * weights.sum())
    return best


def test_agrees_with_slsqp_on_the_whole_program():
    rng = np.random.default_rng(0)
    compared = 0
    for _ in range(25):
        problem = LayerwiseCoInference(small(rng))
        result = solve(problem)
        if not result.feasible or result.value < 1e-3:
            continue
        assert result.status == "optimal"
        assert result.gap <= 1e-9
        other = by_slsqp(problem, result.decision["pruning_ratio"])
        # SLSQP may stop early, and may exceed a budget by 1e-8
        assert other >= result.value * (1 - 1e-5)
        if np.isfinite(other):
            assert other == pytest.approx(result.value, rel=1e-3)
            compared += 1
    assert compared >= 8


def test_bound_holds_at_any_decision_and_for_every_feasible_point():
    rng = np.random.default_rng(1)
    for _ in range(8):
        problem = LayerwiseCoInference(small(rng, splits=None))
        result = solve(problem)
        if not result.feasible:
            continue
        # tangents anywhere give bounds
        offered = problem.capabilities().convex
        for _ in range(5):
            ratio = rng.uniform(0, 0.95, 3)
            anywhere = Decision({**result.decision, "pruning_ratio": ratio})
            assert offered.lower_bound(anywhere) <= result.value * (1 + 1e-9) + 1e-12
        # no feasible point found at random is better
        cells = CoInference(problem.system).capabilities().cells
        for split in problem.system.network.choices:
            base = cells.chains(np.zeros(1, dtype=np.int64), np.array([split]))
            for _ in range(20):
                ratio = np.clip(result.decision["pruning_ratio"] + rng.normal(scale=0.05, size=3), 0, 0.95)
                kept = 1 - ratio
                n = problem.system.network
                flops = kept * n.flops + n.fixed_flops
                work = np.array([flops[:split].sum() / 32.0])
                rest = np.array([flops[split:].sum() / 128.0])
                inner = inference.least_energy(
                    type(base)(
                        **{
                            **base.__dict__,
                            "device_work": work,
                            "device_fixed": 0 * work,
                            "server_work": rest,
                            "server_fixed": 0 * rest,
                        }
                    ),
                    np.ones(1),
                    problem.system.devices.delay_budget,
                )
                if inner.energy[0] <= problem.system.devices.energy_budget[0]:
                    value = float(
                        np.sum(
                            n.amplification
                            * n.parameters
                            / n.weight_rate
                            * (ratio + kept * np.log(np.maximum(kept, 1e-300)))
                        )
                    )
                    assert value >= result.lower_bound * (1 - 1e-9)


def test_never_worse_than_one_ratio_and_equal_where_layers_are_alike():
    image = LayerwiseCoInference(systems.coinference(1, 0, tightness=1.2))
    best, uniform = solve(image), solve(image, method="uniform")
    assert best.value < 0.5 * uniform.value
    assert uniform.value == pytest.approx(solve(CoInference(image.system)).value, rel=1e-9)
    text = LayerwiseCoInference(systems.coinference(1, 0, data="minilm"))
    best = solve(text)
    assert best.value == pytest.approx(solve(text, method="uniform").value, rel=1e-9)
    np.testing.assert_allclose(best.decision["pruning_ratio"][1:7], best.decision["pruning_ratio"][1], rtol=1e-6)
    assert np.all(best.decision["pruning_ratio"][[0, 7]] == 0.0)  # embeddings and pooling have nothing to prune


def test_generous_budgets_keep_everything():
    result = solve(LayerwiseCoInference(systems.coinference(1, 0, tightness=0.05)))
    assert result.status == "optimal"
    assert result.value == 0.0
    assert np.all(result.decision["pruning_ratio"] == 0.0)


def test_infeasible_budgets_are_explained():
    problem = LayerwiseCoInference(systems.coinference(1, 0, tightness=30))
    result = solve(problem)
    assert result.status == "infeasible"
    (conflict,) = result.infeasibility
    for factor, feasible in ((1 + 1e-6, True), (1 - 1e-6, False)):
        raised = problem.system.with_(
            delay_budget=conflict.budget["delay_budget"] * conflict.factor * factor,
            energy_budget=conflict.budget["energy_budget"] * conflict.factor * factor,
        )
        assert solve(LayerwiseCoInference(raised)).feasible is feasible


def test_measured_convex_curve():
    s = systems.coinference(1, 0, tightness=1.2)
    ratio = np.linspace(0, 1, 41)
    curve = ratio + (1 - ratio) * np.log1p(-np.minimum(ratio, 1 - 1e-16))
    measured = s.with_(distortion="measured", curve_ratio=ratio, curve_distortion=curve)
    a, b = solve(LayerwiseCoInference(s)), solve(LayerwiseCoInference(measured))
    assert b.gap <= 1e-6
    # the chords lie above the curve, by at most 1/(8 * 40^2) times its second derivative
    assert a.value <= b.value <= 1.1 * a.value


def test_curve_of_whole_weights_by_its_hull():
    # a staircase of few weights, and two points that stand out
    ratio = np.linspace(0, 1, 41)
    smooth = ratio + (1 - ratio) * np.log1p(-np.minimum(ratio, 1 - 1e-16))
    curve = np.maximum.accumulate(np.floor(smooth * 60) / 60) + 1e-6 * ratio
    curve[7] += 0.004
    corners = coinference_layers._lower_hull(ratio, curve)
    hull = np.interp(ratio, *corners)
    assert np.all(hull <= curve + 1e-15) and np.all(np.diff(np.diff(corners[1]) / np.diff(corners[0])) > 0)
    assert 0.01 < np.max(curve - hull) < coinference_layers.NEARLY_CONVEX
    rng = np.random.default_rng(3)
    for tightness in (0.8, 1.2, 1.6):
        s = systems.coinference(1, 0, tightness=tightness)
        problem = LayerwiseCoInference(s.with_(distortion="measured", curve_ratio=ratio, curve_distortion=curve))
        convexified = s.with_(distortion="measured", curve_ratio=corners[0], curve_distortion=corners[1])
        result, below = solve(problem), solve(LayerwiseCoInference(convexified))
        # the value is that of the curve, the bound that of its hull
        n = s.network
        each = n.parameters / n.weight_rate * np.interp(result.decision["pruning_ratio"], ratio, curve)
        assert result.value == pytest.approx(each.sum(), rel=1e-12)
        assert result.lower_bound == pytest.approx(below.value, rel=1e-6)
        # nearly all layers are at corners, where both are equal
        assert result.gap < 0.05
        assert (result.status == "optimal") == (result.gap <= 1e-6)
        for _ in range(5):
            moved = np.clip(result.decision["pruning_ratio"] + rng.uniform(0, 0.1, 16), 0, 0.95)
            there = problem.evaluate(Decision({**result.decision, "pruning_ratio": moved}))
            assert float(there.objective) >= result.lower_bound


def test_curve_of_a_tiny_network_is_accepted():
    rng = np.random.default_rng(0)
    network = dense_network([rng.laplace(size=shape) for shape in ((8, 6), (5, 8), (6, 5))])
    s = systems.coinference(1, 0)
    section = network.section(distortion="measured", **distortion_curve(network))
    big = section.replace(flops=1e6 * section.flops, cut_bits=1e5 * section.cut_bits)
    problem = LayerwiseCoInference(InferenceSystem(devices=s.devices, server=s.server, link=s.link, network=big))
    result = solve(problem)
    assert result.feasible
    assert result.gap < 0.05


def test_doubled_energy_is_proved_too():
    # deadline and tangent of the energy are nearly parallel here
    s = systems.coinference(1, 0)
    result = solve(LayerwiseCoInference(s.with_(energy_budget=2 * s.devices.energy_budget)))
    assert result.status == "optimal"
    assert result.gap <= 1e-9
    assert result.value == pytest.approx(91.38591, rel=1e-6)


def drawn(rng, number):
    s = systems.coinference(
        1,
        int(rng.integers(1000)),
        data=("autoencoder", "minilm")[number % 2],
        tightness=float(rng.uniform(0.7, 1.3)),
    )
    delay, energy = np.exp(rng.uniform(np.log(0.3), np.log(5), 2))
    s = s.with_(delay_budget=delay * s.devices.delay_budget, energy_budget=energy * s.devices.energy_budget)
    narrower = {}
    if rng.random() < 0.25:
        narrower["split"] = int(rng.integers(s.network.layers + 1))
    if rng.random() < 0.2:
        layers = s.network.layers
        narrower["pruning_ratio"] = (rng.uniform(0, 0.3, layers), rng.uniform(0.4, 0.95, layers))
    if rng.random() < 0.15:
        narrower["power"] = (0.02, 0.15)
    if rng.random() < 0.15:
        narrower["frequency"] = (0.1 * s.devices.frequency, 0.8 * s.devices.frequency)
    return LayerwiseCoInference(s).restrict(**narrower)


def test_proved_all_over_the_scenarios():
    rng = np.random.default_rng(0)
    interior = 0
    for i in range(220):
        problem = drawn(rng, i)
        result = solve(problem)
        if not result.feasible:
            continue
        assert result.status == "optimal", i
        assert result.gap <= 1e-6, i
        # the bound itself, before the least of it and the value is taken
        assert problem.capabilities().convex.lower_bound(result.decision) <= result.value * (1 + 1e-9) + 1e-9, i
        interior += result.value > 0
    assert interior >= 80


def test_proved_without_the_solver(monkeypatch):
    monkeypatch.setattr(convex, "SOLVER", "NONESUCH")
    rng = np.random.default_rng(3)
    for i in range(30):
        result = solve(drawn(rng, i))
        assert not result.feasible or result.gap <= 1e-6, i


def test_restrictions_settings_and_reports():
    problem = LayerwiseCoInference(systems.coinference(1, 0))
    narrow = problem.restrict(split=1, pruning_ratio=(0.1, 0.9))
    result = solve(narrow)
    assert result.decision["split"].tolist() == [1.0]
    assert np.all(result.decision["pruning_ratio"] >= 0.1)
    assert result.status == "optimal"
    assert narrow.settings()["pruning_ratio"]["lower"] == [0.1] * 16
    assert "per layer" in result.summary()
    assert len(result.to_pandas()) == 1
    assert "device" in str(result.explain())
    assert get("coinference-layers") is LayerwiseCoInference
    assert {"convex", "uniform"} <= set(methods(problem))


def test_the_solver_is_named_and_its_failure_is_not_the_answer_s(monkeypatch):
    monkeypatch.setattr(convex, "SOLVER", "NONESUCH")
    problem = LayerwiseCoInference(systems.coinference(1, 0))
    result = solve(problem)
    assert "failed" in result.message
    assert result.feasible
    assert result.lower_bound <= result.value


def test_evaluate_agrees_with_the_common_design():
    s = systems.coinference(1, 3)
    best = solve(CoInference(s)).decision
    spread = Decision({**best, "pruning_ratio": np.full(16, best["pruning_ratio"][0])})
    a, b = CoInference(s).evaluate(best), LayerwiseCoInference(s).evaluate(spread)
    assert float(b.objective) == pytest.approx(float(a.objective), rel=1e-12)
    for name in ("delay", "energy", "send_delay", "server_energy"):
        np.testing.assert_allclose(b.quantities[name], a.quantities[name], rtol=1e-12)


def test_bad_input():
    s = systems.coinference(1, 0)
    with pytest.raises(InputError, match="has 2 devices"):
        LayerwiseCoInference(systems.coinference(2, 0))
    with pytest.raises(InputError, match="cut_law: 'channels' is not convex"):
        LayerwiseCoInference(s.with_(cut_law="channels"))
    with pytest.raises(InputError, match="'rate' is a certificate"):
        LayerwiseCoInference(s.with_(distortion="rate"))
    with pytest.raises(InputError, match=r"curve_distortion\[point 1\]: the curve is not convex"):
        LayerwiseCoInference(s.with_(distortion="measured", curve_ratio=[0, 0.5, 1], curve_distortion=[0, 0.9, 1]))
    ratios = np.full(16, 0.5)
    ratios[3] = 0.99
    with pytest.raises(InputError, match=r"pruning_ratio\[layer 3\] = 0.99"):
        LayerwiseCoInference(s).restrict(pruning_ratio=ratios)
    short = Decision({**solve(CoInference(s)).decision, "pruning_ratio": np.zeros(5)})
    with pytest.raises(InputError, match="has 5 values for 16 layers"):
        LayerwiseCoInference(s).evaluate(short)
    with pytest.raises(InputError, match="unknown option 'iterations'"):
        solve(LayerwiseCoInference(s), method="convex", iterations=3)

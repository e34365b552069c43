"""The co-inference design: against an exhaustive search, golden values, baselines, infeasible budgets, bad input."""

from __future__ import annotations

import numpy as np
import pytest

from jointopt import systems
from jointopt.decision import Decision
from jointopt.errors import InputError
from jointopt.problems import get
from jointopt.problems.coinference import CoInference
from jointopt.solvers import methods, solve
from jointopt.system import InferenceDevices, InferenceSystem, Link, Network, Server


def golden(deadline, energy):
    """The system of theory 4f: 60 GFLOP before the only split, 150 after it."""
    count = len(deadline)
    return InferenceSystem(
        devices=InferenceDevices(
            frequency=np.full(count, 2e9), power_max=0.2, delay_budget=deadline, energy_budget=energy
        ),
        link=Link(bandwidth=5e6, noise_density=3.98107e-21, gain=1e-10),
        network=Network(
            flops=[60e9, 150e9],
            parameters=[1000, 1000],
            weight_rate=20.0,
            cut_bits=[1e9, 2e6, 0],
            splits=[1],
        ),
    )


def small(rng, **network):
    layers = int(rng.integers(1, 4))

    def log(low, high, size=None):
        return 10 ** rng.uniform(np.log10(low), np.log10(high), size)

    fields = {
        "flops": log(1e8, 1e10, layers),
        "fixed_flops": log(1e6, 1e9, layers) * rng.integers(0, 2),
        "parameters": rng.integers(10, 1000, layers),
        "weight_rate": rng.uniform(5, 50, layers),
        "cut_bits": np.append(log(1e3, 1e6, layers), 0.0),
        "pruning_ratio_max": float(rng.choice([0.5, 0.9])),
        "cut_law": str(rng.choice(["fixed", "channels"])),
    }
    made = Network(**{**fields, **network})
    server = Server(server_frequency=log(1e9, 1e10))
    work = made.before(made.flops)[-1]
    return InferenceSystem(
        devices=InferenceDevices(
            frequency=[1e9],
            power_max=0.2,
            delay_budget=work / 32e9 * log(0.05, 3),
            energy_budget=2e-29 * work / 32 * 1e18 * log(0.02, 3),
        ),
        server=server,
        link=Link(bandwidth=1e6, noise_density=2e-19, gain=log(1e-12, 1e-9)),
        network=made,
    )


def least_energy_by_grid(s, split, ratio):
    """Least energy by the deadline: a grid over (t_d, t_s), the uplink takes the rest, zoomed in."""
    d, n, kept = s.devices, s.network, 1 - ratio
    w = (kept * n.flops[:split].sum() + n.fixed_flops[:split].sum()) / d.flops_per_cycle[0]
    ws = (kept * n.flops[split:].sum() + n.fixed_flops[split:].sum()) / s.server.server_flops_per_cycle
    bits = n.cut_bits[split] * (np.sqrt(kept) if n.cut_law == "channels" and split > 0 else 1.0)
    n0, band, t0 = s.noise_power[0], s.link.bandwidth[0], d.delay_budget[0]
    low = [
        w / d.frequency[0],
        ws / s.server.server_frequency,
        bits / (band * np.log2(1 + d.power_max[0] / n0)) if bits else 0.0,
    ]
    room = t0 - sum(low)
    if room < 0:
        return np.inf
    a_low, a_high, b_low, b_high = 0.0, 1.0, 0.0, 1.0
    best = np.inf
    for _ in range(10):
        a, b = np.meshgrid(np.linspace(a_low, a_high, 17), np.linspace(b_low, b_high, 17))
        if w == 0:
            a = np.zeros_like(a)
        if ws == 0:
            b = np.zeros_like(b)
        c = 1 - a - b
        td, ts, tu = (lo + share * room for lo, share in zip(low, (a, b, c), strict=True))
        with np.errstate(all="ignore"):
            e = d.pue[0] * d.capacitance[0] * (w**3 / td**2 if w else 0.0)
            e = e + s.server.server_pue * s.server.server_capacitance * (ws**3 / ts**2 if ws else 0.0)
            e = e + (tu * n0 * (2 ** (bits / (band * tu)) - 1) if bits else 0.0)
        e = np.where(c >= -1e-15, e, np.inf)
        i = np.unravel_index(np.nanargmin(e), e.shape)
        best = min(best, float(e[i]))
        wa, wb = (a_high - a_low) / 6, (b_high - b_low) / 6
        a_low, a_high = max(a[i] - wa, 0.0), min(a[i] + wa, 1.0)
        b_low, b_high = max(b[i] - wb, 0.0), min(b[i] + wb, 1.0)
    return best


def least_ratio_by_bisection(s, split):
    top = s.network.pruning_ratio_max
    budget = s.devices.energy_budget[0]
    if least_energy_by_grid(s, split, 0.0) <= budget:
        return 0.0
    if least_energy_by_grid(s, split, top) > budget:
        return np.inf
    low, high = 0.0, top
    for _ in range(24):
        middle = 0.5 * (low + high)
        low, high = (low, middle) if least_energy_by_grid(s, split, middle) <= budget else (middle, high)
    return high


@pytest.mark.parametrize("part", range(3))
def test_whole_problem_against_exhaustive_search(part):
    rng = np.random.default_rng(100 + part)
    infeasible = interior = dense = 0
    for _ in range(34):
        s = small(rng)
        result = solve(CoInference(s))
        least = [least_ratio_by_bisection(s, int(i)) for i in s.network.choices]
        if not np.isfinite(min(least)):
            assert result.status == "infeasible"
            assert result.infeasibility
            infeasible += 1
            continue
        assert result.status == "optimal"
        assert result.gap <= 1e-12
        ratio, split = result.decision["pruning_ratio"][0], int(result.decision["split"][0])
        assert ratio == pytest.approx(min(least), abs=1e-6)
        assert least[split] <= min(least) + 1e-6
        assert result.evaluation.feasible(1e-11)
        if min(least) == 0.0:
            # ties: the least energy decides
            energies = [least_energy_by_grid(s, int(i), 0.0) for i in s.network.choices]
            assert float(result.evaluation.quantities["energy"][0]) == pytest.approx(min(energies), rel=1e-5)
            dense += 1
        else:
            interior += 1
    assert min(infeasible, interior, dense) >= 3


def test_golden_values_through_the_front_door():
    budgets = [(1, 0.1), (1, 0.3), (1, 1), (1.5, 0.1), (1.5, 0.3), (1.5, 1), (2, 0.1), (2, 0.3), (2, 1), (3, 0.1)]
    expected = [0.6276, 0.4748, 0.3287, 0.5060, 0.2868, 0.0504, 0.3978, 0.1275, 0, 0.2056]
    s = golden(*(np.array(v, dtype=float) for v in zip(*budgets, strict=True)))
    result = solve(CoInference(s))
    assert result.status == "optimal"
    np.testing.assert_allclose(result.decision["pruning_ratio"], expected, atol=5.1e-5)
    r = result.decision["pruning_ratio"]
    psi = r + (1 - r) * np.log1p(-r)
    assert result.value == pytest.approx(np.mean(2000 / 20.0 * psi), rel=1e-9)
    use = result.evaluation.quantities
    binds = use["energy"] > s.devices.energy_budget * (1 - 1e-9)
    np.testing.assert_allclose(use["delay"][binds], s.devices.delay_budget[binds], rtol=1e-11)
    assert binds.sum() == 9


def test_devices_are_solved_alike_alone_and_together():
    s = systems.coinference(30, 1)
    together = solve(CoInference(s))
    for u in range(0, 30, 5):
        alone = solve(CoInference(s.take([u])))
        for name in together.decision:
            assert alone.decision[name][0] == pytest.approx(together.decision[name][u], rel=1e-9, abs=1e-12)


def test_the_split_matters_on_images_and_not_on_text():
    image = CoInference(systems.coinference(40, 0))
    best = solve(image)
    assert best.status == "optimal"
    assert len(np.unique(best.decision["split"])) > 1
    assert np.any((best.decision["split"] > 0) & (best.decision["split"] < 16))
    ratio = best.decision["pruning_ratio"]
    assert np.any((ratio > 0) & (ratio < 0.95))
    assert solve(image, method="all_on_device").value > 1.2 * best.value
    assert solve(image, method="all_on_server").status == "infeasible"
    # token ids are 2 kbit, the embedding 1.57 Mbit (4g)
    text = CoInference(systems.coinference(10, 0, data="minilm"))
    assert np.all(solve(text).decision["split"] == 0)
    assert solve(text, method="all_on_server").value == pytest.approx(solve(text).value, rel=1e-12)


def test_baselines_are_restrictions_and_never_better():
    problem = CoInference(systems.coinference(5, 4, tightness=0.8))
    best = solve(problem)
    offered = methods(problem)
    assert {"all_on_device", "all_on_server", "fixed_frequency", "fixed_power", "random"} <= set(offered)
    for name in ("all_on_device", "fixed_frequency", "fixed_power", "random", "alternating"):
        got = solve(problem, method=name)
        if got.value is not None:
            assert got.value >= best.value * (1 - 1e-9)
            assert bool(problem.evaluate(got.decision).feasible())
    fixed = solve(problem.restrict(frequency=problem.system.devices.frequency))
    np.testing.assert_array_equal(fixed.decision["frequency"], problem.system.devices.frequency)
    random = solve(problem, method="random", seed=3)
    assert random.decision == solve(problem, method="random", seed=3).decision


def test_alternating_steps_reach_the_optimum():
    problem = CoInference(systems.coinference(5, 2))
    best, got = solve(problem), solve(problem, method="alternating")
    assert got.value == pytest.approx(best.value, rel=1e-6)


def test_bayesian_search_over_the_ratio():
    problem = CoInference(systems.coinference(1, 0))
    best = solve(problem)
    got = solve(problem, method="bayesian", iterations=12, initial=4, seed=1)
    assert best.value <= got.value <= 1.2 * best.value


def test_ties_take_the_least_split():
    # layers without work or bits: every split is the same
    network = Network(flops=[1e9, 0, 0], parameters=[10, 0, 0], weight_rate=1.0, cut_bits=[1e9, 1e3, 1e3, 1e3])
    s = InferenceSystem(
        devices=InferenceDevices(frequency=[1e9], power_max=0.2, delay_budget=0.02, energy_budget=1e-4),
        link=Link(bandwidth=1e6, gain=1e-9),
        network=network,
    )
    result = solve(CoInference(s))
    assert result.decision["split"][0] == 1
    assert 0 < result.decision["pruning_ratio"][0] < 0.95
    generous = solve(CoInference(s.with_(delay_budget=10.0, energy_budget=10.0)))
    assert generous.decision["pruning_ratio"][0] == 0.0
    assert generous.decision["split"][0] == 1


def test_special_splits_drop_their_stages():
    s = systems.coinference(3, 0, tightness=0.3)
    device = solve(CoInference(s).restrict(split=16))
    assert device.decision["power"].tolist() == [0.0] * 3
    assert device.decision["server_frequency"].tolist() == [0.0] * 3
    assert device.evaluation.quantities["send_delay"].tolist() == [0.0] * 3
    server = solve(CoInference(s).restrict(split=0))
    assert server.decision["frequency"].tolist() == [0.0] * 3
    assert np.all(server.decision["power"] > 0)


def test_conflicts_name_the_budget_and_the_least_relaxation_suffices():
    s = systems.coinference(6, 0, tightness=20.0)
    problem = CoInference(s)
    result = solve(problem)
    assert result.status == "infeasible"
    assert result.infeasibility
    for c in result.infeasibility:
        one = s.take([c.device])
        assert c.factor > 1
        for factor, fits in ((1 + 1e-6, True), (1 - 1e-6, False)):
            both = one.with_(
                delay_budget=c.budget["delay_budget"] * c.factor * factor,
                energy_budget=c.budget["energy_budget"] * c.factor * factor,
            )
            assert solve(CoInference(both)).feasible is fits
            for name, need in c.relax.items():
                if need is not None:
                    assert solve(CoInference(one.with_(**{name: need * factor}))).feasible is fits
        for name, need in c.relax.items():
            if need is None:
                assert not solve(CoInference(one.with_(**{name: c.budget[name] * 1e6}))).feasible
    assert any("delay" in c.text for c in result.infeasibility)
    # what is returned exceeds both budgets by the least common factor
    worst = np.maximum(
        result.evaluation.quantities["delay"] / s.devices.delay_budget,
        result.evaluation.quantities["energy"] / s.devices.energy_budget,
    )
    for c in result.infeasibility:
        assert worst[c.device] == pytest.approx(c.factor, rel=1e-9)


def test_rate_law_never_prunes_less_than_its_least_ratio():
    s = systems.coinference(4, 0, tightness=0.01).with_(distortion="rate", bits=2)
    result = solve(CoInference(s))
    np.testing.assert_allclose(result.decision["pruning_ratio"], 1 / (1 + 2.0**2), rtol=1e-12)
    grid = CoInference(s).distortion(np.linspace(0, 0.95, 2001))
    assert result.value <= grid.min() * (1 + 1e-12)


def test_measured_law_gives_the_same_ratio_and_its_own_value():
    s = systems.coinference(4, 0)
    measured = s.with_(distortion="measured", curve_ratio=[0, 0.5, 1], curve_distortion=[0, 0.2, 1.1])
    a, b = solve(CoInference(s)), solve(CoInference(measured))
    np.testing.assert_allclose(a.decision["pruning_ratio"], b.decision["pruning_ratio"], rtol=1e-12)
    r = a.decision["pruning_ratio"]
    scale = np.sum(s.network.parameters / s.network.weight_rate)
    assert b.value == pytest.approx(scale * np.mean(np.interp(r, [0, 0.5, 1], [0, 0.2, 1.1])), rel=1e-12)
    laws = b.evaluation.quantities
    np.testing.assert_allclose(laws["distortion_laplace"], a.evaluation.quantities["distortion"], rtol=1e-12)
    np.testing.assert_allclose(laws["distortion_measured"], laws["distortion"])


def test_batches_and_torch():
    torch = pytest.importorskip("torch")
    problem = CoInference(systems.coinference(3, 0))
    best = solve(problem).decision
    batch = Decision({k: np.stack([v, v]) for k, v in best.items()})
    single, double = problem.evaluate(best), problem.evaluate(batch)
    np.testing.assert_allclose(double.objective, [float(single.objective)] * 2)
    tensors = {k: torch.tensor(np.array(v)) for k, v in best.items()}
    tensors["pruning_ratio"].requires_grad_()
    value = problem.evaluate(Decision(tensors))
    assert value.objective.item() == pytest.approx(float(single.objective))
    value.objective.backward()
    r = best["pruning_ratio"]
    scale = np.sum(problem.system.network.parameters / problem.system.network.weight_rate)
    np.testing.assert_allclose(tensors["pruning_ratio"].grad.numpy(), -scale * np.log1p(-r) / 3, rtol=1e-8)


def test_slack_sees_what_is_not_allowed():
    problem = CoInference(systems.coinference(2, 0).with_(splits=[0, 1, 16]))
    best = solve(problem).decision
    assert problem.evaluate(best).feasible()
    for change in (
        {"split": np.array([2.0, 1.0])},
        {"split": np.array([0.5, 1.0])},
        {"pruning_ratio": np.array([0.96, 0.5])},
        {"pruning_ratio": np.array([-0.01, 0.5])},
        {"power": np.array([0.21, 0.1])},
        {"frequency": best["frequency"] * 3},
        {"server_frequency": np.array([2e10, 1e9])},
    ):
        assert not problem.evaluate(best.with_(**change)).feasible()


def test_registered_and_described():
    assert get("coinference") is CoInference
    s = CoInference.sample(devices=2, seed=1)
    problem = CoInference(s).restrict(split=(1, 4), power=0.1)
    assert problem.settings()["split"] == {"lower": [1.0, 1.0], "upper": [4.0, 4.0]}
    result = solve(problem)
    assert "coinference" in result.summary()
    assert "device" in str(result.explain())
    assert len(result.to_pandas()) == 2


@pytest.mark.parametrize(
    ("ranges", "message"),
    [
        ({"split": 17}, r"split\[device 0\] = 17 is a split the network does not have; it has 16 layers"),
        ({"split": -1}, r"split\[device 0\] = -1 is a split"),
        ({"split": 3.5}, r"split\[device 0\] = 3.5 to 3.5 holds none"),
        ({"splt": 1}, r"unknown variable 'splt'.*split"),
        ({"pruning_ratio": 0.99}, r"pruning_ratio\[device 0\] = 0.99 to 0.99 must lie within 0 and 0.95"),
        ({"power": [0.1, 0.9]}, r"power\[device 1\] = 0.9 to 0.9 must lie within 0 and 0.2"),
        ({"frequency": (1e9, 1e8)}, r"frequency=.* is not a finite range"),
        ({"frequency": [1.0, 2.0, 3.0]}, r"must be a number, an array over 2 devices"),
        ({"server_frequency": np.nan}, r"server_frequency=nan is not a finite range"),
    ],
)
def test_bad_restrictions(ranges, message):
    with pytest.raises(InputError, match=message):
        CoInference(systems.coinference(2, 0)).restrict(**ranges)


def test_bad_systems():
    with pytest.raises(InputError, match="expected an InferenceSystem, got System"):
        CoInference(systems.ltfl(2))
    s = systems.coinference(2, 0)
    with pytest.raises(InputError, match=r"device 1: the SNR at power_max"):
        CoInference(s.with_(gain=[1e-9, 1e290]))
    with pytest.raises(InputError, match=r"distortion with all weights removed"):
        CoInference(s.with_(amplification=1e80))
    with pytest.raises(InputError, match="unknown variable"):
        CoInference(s).evaluate(Decision(ratio=[0.1, 0.2]))

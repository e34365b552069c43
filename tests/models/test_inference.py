"""Least energy by a deadline and least pruning ratio: golden values, oracles, properties."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from jointopt.models import inference
from jointopt.models.inference import Chains


def chains(size=1, *, nd=60e9, ns=150e9, bits=2e6, pm=0.2, fm=2e9, fsm=1e10, shrinks=False, **changes):
    def full(value):
        return np.array(np.broadcast_to(np.asarray(value, dtype=np.float64), (size,)))

    made = Chains(
        device_work=full(nd) / 32,
        device_fixed=full(0),
        server_work=full(ns) / 128,
        server_fixed=full(0),
        bits=full(bits),
        shrinks=np.full(size, shrinks),
        device_coefficient=full(2e-29),
        server_coefficient=full(2e-28),
        noise=full(5e6 * 3.98107e-21 / 1e-10),
        bandwidth=full(5e6),
        frequency_low=full(0),
        frequency_high=full(fm),
        server_low=full(0),
        server_high=full(fsm),
        power_low=full(0),
        power_high=full(pm),
    )
    return dataclasses.replace(made, **{name: full(value) for name, value in changes.items()})


def random_chains(rng, size, *, fixed=True):
    def log(low, high):
        return 10 ** rng.uniform(np.log10(low), np.log10(high), size)

    out = chains(
        size,
        nd=log(1e8, 1e11) * (rng.uniform(size=size) < 0.8),
        ns=log(1e8, 1e12) * (rng.uniform(size=size) < 0.8),
        bits=log(1e3, 1e7) * (rng.uniform(size=size) < 0.8),
        pm=log(0.01, 1),
        noise=log(1e-7, 1e-1),
    )
    if fixed:
        out = dataclasses.replace(out, device_fixed=0.2 * out.device_work, server_fixed=0.1 * out.server_work)
    return out


def shortest(c, kept):
    f, s, b = c.loads(kept)
    return f / c.frequency_high + s / c.server_high + b / (c.bandwidth * np.log2(1 + c.power_high / c.noise))


def ratio(t0, e0, c=None, high=0.95):
    c = chains() if c is None else c
    n = len(c)
    return inference.least_ratio(c, np.full(n, float(t0)), np.full(n, float(e0)), np.zeros(n), np.full(n, high))


GOLDEN = {
    (1, 0.1): 0.6276,
    (1, 0.3): 0.4748,
    (1, 1): 0.3287,
    (1.5, 0.1): 0.5060,
    (1.5, 0.3): 0.2868,
    (1.5, 1): 0.0504,
    (2, 0.1): 0.3978,
    (2, 0.3): 0.1275,
    (2, 1): 0.0,
    (3, 0.1): 0.2056,
}


@pytest.mark.parametrize(("budget", "expected"), GOLDEN.items())
def test_golden_ratios(budget, expected):
    assert ratio(*budget).ratio[0] == pytest.approx(expected, abs=5.1e-5)


def test_golden_inner_solution():
    got = inference.least_energy(chains(), np.array([0.8]), np.array([1.5]))
    assert got.energy[0] == pytest.approx(0.454869, abs=5e-7)
    times = got.device_time[0], got.send_time[0], got.server_time[0]
    assert got.device_time[0] == pytest.approx(0.75, rel=1e-14)
    assert sorted(times[1:]) == pytest.approx([0.041358, 0.708642], abs=5e-7)
    assert sum(times) == pytest.approx(1.5, rel=1e-14)


def test_efficiency_at_price_inverts_the_price():
    mpmath = pytest.importorskip("mpmath")
    prices = 10.0 ** np.arange(-16, 9.0, 0.5)
    got = inference.efficiency_at_price(prices)
    with mpmath.workdps(60):
        for m, a in zip(prices, got, strict=True):
            exact = mpmath.lambertw((mpmath.mpf(float(m)) - 1) / mpmath.e) + 1
            assert a == pytest.approx(float(exact.real), rel=3e-13)
    assert inference.efficiency_at_price(np.zeros(1))[0] == 0.0


def test_inner_solution_agrees_with_weak_duality():
    """E - L(mu) is the gap of the convex program: stage minima in mu found by another program."""
    rng = np.random.default_rng(0)
    c = random_chains(rng, 4000)
    kept = rng.uniform(0.05, 1.0, 4000)
    deadline = shortest(c, kept) * 10 ** rng.uniform(1e-3, 2, 4000)
    keep = deadline > 0
    c, kept, deadline = c.take(keep), kept[keep], deadline[keep]
    got = inference.least_energy(c, kept, deadline)
    total = got.device_time + got.server_time + got.send_time
    assert np.all(total <= deadline * (1 + 1e-12))
    work_d, work_s, bits = c.loads(kept)
    stages = [
        (c.device_coefficient, work_d, c.frequency_high),
        (c.server_coefficient, work_s, c.server_high),
    ]
    dual = -got.multiplier * deadline
    for coefficient, work, fastest in stages:
        # min over f <= f_max of coefficient W f^2 + mu W/f, golden section in ln f
        low, high = np.full(work.size, np.log(1e-3)), np.log(fastest)
        dual += golden(
            lambda y, a=coefficient, w=work: a * w * np.exp(2 * y) + got.multiplier * w / np.exp(y), low, high
        )
    nats = bits * np.log(2) / c.bandwidth
    top = np.log(np.log1p(c.power_high / c.noise))
    dual += golden(
        lambda y: nats * (c.noise * np.expm1(np.exp(y)) + got.multiplier) / np.exp(y), np.full(bits.size, -30.0), top
    )
    np.testing.assert_allclose(got.energy, dual, rtol=1e-9)


def golden(function, low, high):
    low, high = low.copy(), high.copy()
    r = (np.sqrt(5) - 1) / 2
    for _ in range(90):
        a, b = high - r * (high - low), low + r * (high - low)
        left = function(a) < function(b)
        high, low = np.where(left, b, high), np.where(left, low, a)
    return np.minimum(function(high), np.minimum(function(low), function(0.5 * (low + high))))


def test_inner_solution_agrees_with_slsqp():
    rng = np.random.default_rng(1)
    c = dataclasses.replace(chains(40, pm=0.5), noise=10 ** rng.uniform(-5, -1, 40))
    kept = rng.uniform(0.2, 1.0, 40)
    deadline = shortest(c, kept) * rng.uniform(1.05, 4, 40)
    got = inference.least_energy(c, kept, deadline)
    solved = 0
    for i in range(40):
        one = c.take([i])
        f, s, b = (float(v[0]) for v in one.loads(kept[i : i + 1]))
        n0, t0 = float(one.noise[0]), deadline[i]
        low = [f / 2e9 / t0, s / 1e10 / t0, b / (5e6 * np.log2(1 + 0.5 / n0)) / t0]

        def energy(x, f=f, s=s, b=b, n0=n0, t0=t0, scale=got.energy[i]):
            t = np.maximum(x, 1e-9) * t0
            return (
                2e-29 * f**3 / t[0] ** 2 + 2e-28 * s**3 / t[1] ** 2 + t[2] * n0 * np.expm1(b * np.log(2) / (5e6 * t[2]))
            ) / scale

        start = np.array(low) + (1 - sum(low)) / 3
        found = minimize(
            energy,
            start,
            method="SLSQP",
            bounds=[(v, 1) for v in low],
            constraints={"type": "ineq", "fun": lambda x: 1 - x.sum(), "jac": lambda x: -np.ones(3)},
            options={"ftol": 1e-15, "maxiter": 500},
        )
        if not found.success:
            continue
        solved += 1
        # it may leave the constraint by rounding
        assert found.fun >= 1 - 1e-9
        assert found.fun <= 1 + 1e-6
        ours = np.array([got.device_time[i], got.server_time[i], got.send_time[i]]) / t0
        assert energy(ours) == pytest.approx(1.0, rel=1e-11)
    assert solved >= 25


def test_multipliers_are_equal_where_no_stage_is_clipped():
    rng = np.random.default_rng(2)
    c = random_chains(rng, 3000)
    kept = np.full(3000, 0.7)
    deadline = np.maximum(shortest(c, kept), 1e-6) * 20
    got = inference.least_energy(c, kept, deadline)
    mu = got.multiplier
    work_d, work_s, bits = c.loads(kept)
    device = (work_d > 0) & (got.frequency < c.frequency_high * (1 - 1e-9))
    np.testing.assert_allclose((2 * c.device_coefficient * got.frequency**3)[device], mu[device], rtol=1e-10)
    server = (work_s > 0) & (got.server_frequency < c.server_high * (1 - 1e-9))
    np.testing.assert_allclose((2 * c.server_coefficient * got.server_frequency**3)[server], mu[server], rtol=1e-10)
    send = (bits > 0) & (got.power < c.power_high * (1 - 1e-9)) & (got.power > 1e-4 * c.noise)
    x = np.log2(1 + got.power / c.noise)
    price = c.noise * ((x * np.log(2) - 1) * 2**x + 1)
    np.testing.assert_allclose(price[send], mu[send], rtol=1e-7)
    assert device.sum() > 500
    assert server.sum() > 500
    assert send.sum() > 500


def test_slope_is_the_derivative_in_the_kept_share():
    rng = np.random.default_rng(3)
    for shrinks in (False, True):
        c = random_chains(rng, 500)
        c = dataclasses.replace(c, shrinks=np.full(500, shrinks))
        kept = rng.uniform(0.2, 0.9, 500)
        deadline = np.maximum(shortest(c, kept), 1e-6) * rng.uniform(1.1, 5, 500)
        h = 1e-6
        up = inference.least_energy(c, kept + h, deadline).energy
        down = inference.least_energy(c, kept - h, deadline).energy
        slope = inference.least_energy(c, kept, deadline).slope
        moving = (c.device_work + c.server_work > 0) & np.isfinite(up)
        np.testing.assert_allclose(slope[moving], ((up - down) / (2 * h))[moving], rtol=1e-4)


def test_dropped_stages():
    nothing = chains(nd=0.0, ns=0.0, bits=0.0)
    got = inference.least_energy(nothing, np.ones(1), np.ones(1))
    assert got.energy[0] == 0.0
    assert (got.device_time[0], got.server_time[0], got.send_time[0]) == (0.0, 0.0, 0.0)
    # on the device alone: t = T0, E = eta psi W^3/T0^2
    got = inference.least_energy(chains(ns=0.0, bits=0.0), np.ones(1), np.full(1, 1.2))
    assert got.energy[0] == pytest.approx(2e-29 * (60e9 / 32) ** 3 / 1.2**2, rel=1e-13)
    assert got.frequency[0] == pytest.approx(60e9 / 32 / 1.2, rel=1e-14)
    assert got.power[0] == 0.0
    assert got.server_frequency[0] == 0.0
    # least ratio there in closed form: k^3 W^3 = E0 T0^2/(eta psi)
    found = ratio(1.2, 0.02, chains(ns=0.0, bits=0.0))
    k = (0.02 * 1.2**2 / 2e-29) ** (1 / 3) / (60e9 / 32)
    assert found.ratio[0] == pytest.approx(1 - k, rel=1e-12)
    # on the server alone, the uplink takes part
    got = inference.least_energy(chains(nd=0.0), np.ones(1), np.full(1, 1.2))
    assert got.device_time[0] == 0.0
    assert got.server_time[0] + got.send_time[0] == pytest.approx(1.2, rel=1e-14)


@pytest.mark.parametrize("shrinks", [False, True])
def test_least_ratio_is_where_feasibility_begins(shrinks):
    rng = np.random.default_rng(4)
    n = 3000
    c = dataclasses.replace(random_chains(rng, n), shrinks=np.full(n, shrinks))
    deadline = np.maximum(shortest(c, np.full(n, 0.5)), 1e-6) * 10 ** rng.uniform(-0.5, 1, n)
    energy = inference.least_energy(c, np.full(n, 0.5), deadline).energy
    budget = np.where(np.isfinite(energy) & (energy > 0), energy, 1.0) * 10 ** rng.uniform(-0.7, 0.7, n)
    low, high = rng.uniform(0, 0.2, n), rng.uniform(0.6, 0.95, n)
    found = inference.least_ratio(c, deadline, budget, low, high)
    ok = found.feasible
    assert 0.2 < ok.mean() < 0.95
    inner = inference.least_energy(c, 1 - found.ratio, deadline)
    assert np.all(inner.energy[ok] <= budget[ok] * (1 + 1e-11))
    assert np.all((found.ratio >= low)[ok] & (found.ratio <= high)[ok])
    # a little less pruning breaks a budget
    interior = ok & (found.ratio > low + 1e-6)
    less = inference.least_energy(c, 1 - np.maximum(found.ratio - 1e-7, low), deadline)
    assert np.all((less.energy > budget)[interior])
    assert interior.sum() > 300
    # where it is infeasible, so is the largest ratio
    most = inference.least_energy(c, 1 - high, deadline)
    assert np.all((most.energy > budget)[~ok])
    # energy binds or the deadline alone does; where energy binds, the time is used up
    total = inner.device_time + inner.server_time + inner.send_time
    binds = interior & (inner.energy > budget * (1 - 1e-9))
    np.testing.assert_allclose(total[binds], deadline[binds], rtol=1e-12)
    np.testing.assert_allclose(total[interior & ~binds], deadline[interior & ~binds], rtol=1e-9)
    assert binds.sum() > 200


@settings(max_examples=60, deadline=None)
@given(
    st.floats(0.6, 4.0),
    st.floats(0.03, 2.0),
    st.sampled_from(["deadline", "energy", "frequency", "power", "server"]),
    st.floats(1.0, 3.0),
    st.booleans(),
)
def test_more_of_anything_never_needs_more_pruning(t0, e0, what, factor, shrinks):
    base = ratio(t0, e0, chains(shrinks=shrinks)).ratio[0]
    changed = {
        "frequency": {"fm": 2e9 * factor},
        "power": {"pm": 0.2 * factor},
        "server": {"fsm": 1e10 * factor},
    }.get(what, {})
    t1, e1 = (t0 * factor if what == "deadline" else t0), (e0 * factor if what == "energy" else e0)
    assert ratio(t1, e1, chains(shrinks=shrinks, **changed)).ratio[0] <= base + 1e-11


@settings(max_examples=60, deadline=None)
@given(st.floats(0.05, 0.95), st.floats(0.05, 0.95), st.floats(0.7, 4.0))
def test_least_energy_is_convex_and_increasing_in_the_kept_share(a, b, t0):
    c, t = chains(), np.array([t0])
    low, high = min(a, b), max(a, b)
    e = [inference.least_energy(c, np.array([k]), t).energy[0] for k in (low, 0.5 * (low + high), high)]
    assert e[0] <= e[1] * (1 + 1e-12)
    if np.isfinite(e[2]):
        assert e[1] <= 0.5 * (e[0] + e[2]) * (1 + 1e-12)


def test_fixed_resources():
    c = chains(frequency_low=2e9, server_low=1e10)
    got = inference.least_energy(c, np.ones(1), np.full(1, 10.0))
    assert got.frequency[0] == 2e9
    assert got.server_frequency[0] == 1e10
    assert got.send_time[0] == pytest.approx(10.0 - 60e9 / 32 / 2e9 - 150e9 / 128 / 1e10, rel=1e-12)
    c = chains(power_low=0.2)
    got = inference.least_energy(c, np.ones(1), np.full(1, 10.0))
    assert got.power[0] == pytest.approx(0.2, rel=1e-12)
    everything = chains(power_low=0.2, frequency_low=2e9, server_low=1e10)
    got = inference.least_energy(everything, np.ones(1), np.full(1, 10.0))
    assert got.multiplier[0] == 0.0
    by_hand = 2e-29 * (60e9 / 32) * 4e18 + 2e-28 * (150e9 / 128) * 1e20
    sending = 2e6 / (5e6 * np.log2(1 + 0.2 / (5e6 * 3.98107e-21 / 1e-10)))
    assert got.energy[0] == pytest.approx(by_hand + 0.2 * sending, rel=1e-12)
    found = ratio(10.0, 20.0, everything)
    assert found.ratio[0] == pytest.approx(1 - (20.0 - 0.2 * sending) / by_hand, rel=1e-10)


def test_a_batch_gives_what_single_chains_give():
    rng = np.random.default_rng(5)
    c = random_chains(rng, 50)
    deadline = np.maximum(shortest(c, np.ones(50)), 1e-6)
    budget = 10 ** rng.uniform(-3, 0, 50)
    together = inference.least_ratio(c, deadline, budget, np.zeros(50), np.full(50, 0.95))
    for i in range(50):
        one = inference.least_ratio(c.take([i]), deadline[[i]], budget[[i]], np.zeros(1), np.full(1, 0.95))
        assert one.feasible[0] == together.feasible[i]
        assert one.ratio[0] == pytest.approx(together.ratio[i], rel=1e-12, abs=1e-13)


def test_extreme_magnitudes_do_not_overflow():
    tiny = chains(nd=1e-3, ns=1e-3, bits=1e-3)
    huge = chains(nd=1e20, ns=1e20, bits=1e15)
    for c, t0 in ((tiny, 1e-9), (huge, 1e12)):
        got = inference.least_energy(c, np.ones(1), np.array([t0]))
        assert np.isfinite(got.energy[0])
        assert got.energy[0] > 0
    weak = dataclasses.replace(chains(), noise=np.full(1, 1e9))
    assert ratio(1.0, 1.0, weak).feasible[0] == np.False_


def test_stage_formulas_in_torch_and_without_work():
    torch = pytest.importorskip("torch")
    work = torch.tensor([0.0, 1e9], dtype=torch.float64)
    frequency = torch.tensor([0.0, 1e9], dtype=torch.float64, requires_grad=True)
    delay = inference.compute_delay(work, frequency)
    assert delay.tolist() == [0.0, 1.0]
    delay.sum().backward()
    assert frequency.grad.tolist() == [0.0, -1e-9]
    assert inference.compute_delay(np.array([1.0]), np.array([0.0]))[0] == np.inf
    sent = inference.send_delay(np.array([0.0, 1e6]), np.array([1e6, 1e6]), np.array([0.0, 3.0]), np.array([1.0, 1.0]))
    assert sent.tolist() == [0.0, 0.5]
    assert inference.send_energy(np.array([np.inf, 0.5]), np.array([0.0, 3.0])).tolist() == [0.0, 1.5]

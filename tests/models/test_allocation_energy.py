"""Least-energy split of a band: closed form, dual bound, optimality conditions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize, minimize_scalar

from jointopt.errors import InputError
from jointopt.models.allocation import (
    bandwidth_dual_bound,
    bandwidth_energy,
    bandwidth_kkt_residual,
    least_bandwidth,
    minimum_energy_bandwidth,
)

# at x = ln2 s/(t b) = 1 and 2 the marginal energy c (1 + (x - 1) e^x) is c and c (1 + e^2)
WORKED: dict[str, Any] = {
    "payload": np.array([1e6, 4e6]) / np.log(2.0),
    "deadline": [1.0, 2.0],
    "gain": [1e-10, 2e-10 * (1.0 + np.e**2)],
    "noise_density": 4e-21,
    "total_bandwidth": 2e6,
}
WORKED["gain"] = [WORKED["gain"][0] / (1.0 + np.e**2), 2e-10]


def scenario(
    rng: np.random.Generator, devices: int, shape: tuple[int, ...] = (), spread: float = 1.0
) -> dict[str, Any]:
    gain = 10.0 ** rng.uniform(-13.0, -9.0, (*shape, devices))
    payload = 8e6 * 10.0 ** rng.uniform(-1.0, 1.0, (*shape, devices))
    efficiency = 10.0 ** (spread * rng.uniform(-0.3, 0.6, (*shape, 1)))
    deadline = payload.sum(-1, keepdims=True) / (20e6 * efficiency) * rng.uniform(0.7, 1.3, (*shape, devices))
    return {
        "payload": payload,
        "deadline": deadline,
        "gain": gain,
        "noise_density": 10**-20.4,
        "total_bandwidth": 20e6,
    }


def without_band(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name != "total_bandwidth"}


def test_worked_split() -> None:
    """By hand: c = (4e-11 (1 + e^2), 4e-11) J/Hz, so x = (1, 2) at a price of 4e-11 (1 + e^2) J/Hz."""
    answer = minimum_energy_bandwidth(**WORKED)
    assert answer.feasible
    np.testing.assert_allclose(answer.bandwidth, [1e6, 1e6], rtol=1e-13)
    np.testing.assert_allclose(answer.price, 4e-11 * (1.0 + np.e**2), rtol=1e-13)
    np.testing.assert_allclose(answer.energy, [4e-5 * (1 + np.e**2) * (np.e - 1), 4e-5 * (np.e**2 - 1)], rtol=1e-13)
    np.testing.assert_allclose(answer.power, answer.energy / np.array([1.0, 2.0]), rtol=1e-14)
    bound = bandwidth_dual_bound(answer.price, **WORKED)
    np.testing.assert_allclose(bound, answer.energy.sum(), rtol=1e-13)


@pytest.mark.parametrize("limited", [False, True])
def test_certifies_itself(limited: bool) -> None:
    """Bands within B and power, energy at the dual bound, optimality conditions in SI to rounding; in batches."""
    rng = np.random.default_rng(1)
    values = scenario(rng, 12, (20, 10))
    limits: dict[str, Any] = {}
    if limited:
        free = minimum_energy_bandwidth(**values)
        limits["power_max"] = free.power * np.exp(rng.uniform(-0.4, 2.0, free.power.shape))
        limits["power_max"][..., 0] = np.inf
    answer = minimum_energy_bandwidth(**values, **limits)
    assert answer.bandwidth.shape == answer.power.shape == answer.energy.shape == (20, 10, 12)
    assert answer.price.shape == answer.feasible.shape == (20, 10)
    ok = answer.feasible
    assert ok.mean() > 0.5
    bound = bandwidth_dual_bound(np.where(ok, answer.price, 0.0), **values, **limits)
    gap = 1.0 - bound / answer.energy.sum(-1)
    assert np.all(np.abs(gap[ok]) < 1e-13)
    assert np.all(bandwidth_kkt_residual(answer.bandwidth, answer.price, **values, **limits)[ok] < 1e-11)
    np.testing.assert_allclose(answer.bandwidth.sum(-1), 20e6, rtol=1e-14)
    energy = bandwidth_energy(bandwidth=answer.bandwidth, **without_band(values))
    np.testing.assert_allclose(answer.energy, energy, rtol=1e-14)
    # Shannon's rate carries the payload
    rate = answer.bandwidth * np.log2(1.0 + answer.power * values["gain"] / (10**-20.4 * answer.bandwidth))
    np.testing.assert_allclose(rate * values["deadline"], values["payload"], rtol=1e-12)
    if limited:
        least = least_bandwidth(**without_band(values), **limits)
        np.testing.assert_array_equal(ok, least.sum(-1) <= 20e6)
        assert not ok.all()
        assert np.all(np.isinf(answer.price[~ok]))
        assert np.all(answer.power[ok] <= limits["power_max"][ok] * (1.0 + 1e-12))
        bound_by_power = answer.power[ok] > limits["power_max"][ok] * (1.0 - 1e-9)
        assert 0.01 < bound_by_power.mean() < 0.9


def test_is_the_optimum() -> None:
    """A general solver, in shares of the band, finds nothing better, and the same where it gets there."""
    rng = np.random.default_rng(2)
    for trial in range(20):
        values = scenario(rng, 4)
        limits = {"power_max": minimum_energy_bandwidth(**values).power * rng.uniform(0.8, 2.0, 4)} if trial % 2 else {}
        answer = minimum_energy_bandwidth(**values, **limits)
        least = least_bandwidth(**without_band(values), **limits) / 20e6 if limits else np.full(4, 1e-6)
        assert bool(answer.feasible) == bool(least.sum() <= 1.0)
        if not answer.feasible:
            continue
        best = float(answer.energy.sum())

        def energy(share: Any, values: dict[str, Any] = values, best: float = best) -> float:
            return float(bandwidth_energy(bandwidth=share * 20e6, **without_band(values)).sum()) / best

        other = minimize(
            energy,
            least + (1.0 - least.sum()) / 4.0,
            method="SLSQP",
            bounds=[(low, 1.0) for low in least],
            constraints={"type": "ineq", "fun": lambda share: 1.0 - share.sum()},
            options={"ftol": 1e-13, "maxiter": 500},
        )
        assert other.fun >= 1.0 - 1e-9
        assert other.fun == pytest.approx(1.0, rel=1e-4)


@settings(max_examples=200, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    devices=st.integers(1, 40),
    spread=st.floats(0.0, 6.0),
    factor=st.floats(1e-3, 1e3),
)
def test_any_price_bounds_any_split(seed: int, devices: int, spread: float, factor: float) -> None:
    """Weak duality, tight at the price; from thousandths to thousands of bits per second and hertz."""
    rng = np.random.default_rng(seed)
    values = scenario(rng, devices, spread=spread)
    values["deadline"] = np.maximum(values["deadline"], values["payload"].sum() / (20e6 * 100.0))
    answer = minimum_energy_bandwidth(**values)
    least = float(answer.energy.sum())
    assert np.all(np.isfinite(answer.bandwidth)) and answer.feasible
    assert bandwidth_dual_bound(answer.price, **values) == pytest.approx(least, rel=1e-11)
    assert bandwidth_dual_bound(factor * answer.price, **values) <= least * (1.0 + 1e-11)
    assert bandwidth_dual_bound(0.0, **values) <= least * (1.0 + 1e-11)
    share = rng.dirichlet(np.ones(devices))
    with np.errstate(over="ignore"):
        other = bandwidth_energy(bandwidth=share * 20e6, **without_band(values)).sum()
    assert other >= least * (1.0 - 1e-11)


def test_least_band_meets_the_power() -> None:
    rng = np.random.default_rng(3)
    values = without_band(scenario(rng, 200))
    floor = np.log(2.0) * values["payload"] * values["noise_density"] / (values["deadline"] * values["gain"])
    ratio = 1.0 + 10.0 ** rng.uniform(-6.0, 6.0, 200)
    band = least_bandwidth(**values, power_max=floor * ratio)
    power = bandwidth_energy(bandwidth=band, **values) / values["deadline"]
    np.testing.assert_allclose(power, floor * ratio, rtol=1e-11)
    assert np.all(np.isinf(least_bandwidth(**values, power_max=floor * (1.0 - 1e-12))))
    assert np.all(least_bandwidth(**values, power_max=np.inf) == 0.0)


def test_least_bands_that_fill_the_band() -> None:
    """At and just above the least band there is an answer and its proof; just below it there is none."""
    rng = np.random.default_rng(7)
    for _ in range(100):
        values = scenario(rng, int(rng.integers(1, 8)))
        limit = minimum_energy_bandwidth(**values).power * np.exp(rng.uniform(-0.5, 1.0, values["gain"].size))
        least = least_bandwidth(**without_band(values), power_max=limit)
        if not np.isfinite(least.sum()):
            continue
        for factor in (1.0, 1.0 + 1e-15, 1.0 + 1e-12, 1.0 + 1e-6, 1.001):
            exact = {**values, "total_bandwidth": float(least.sum()) * factor, "power_max": limit}
            answer = minimum_energy_bandwidth(**exact)
            assert answer.feasible
            assert np.all(answer.bandwidth >= least * (1.0 - 1e-12))
            assert bandwidth_dual_bound(answer.price, **exact) == pytest.approx(answer.energy.sum(), rel=1e-10)
        below = {**values, "total_bandwidth": float(least.sum()) * (1.0 - 1e-9)}
        assert not minimum_energy_bandwidth(**below, power_max=limit).feasible


def test_residual_finds_what_is_wrong() -> None:
    values = scenario(np.random.default_rng(4), 6)
    answer = minimum_energy_bandwidth(**values)
    moved = answer.bandwidth.copy()
    moved[0] *= 1.01
    moved[1] -= 0.01 * answer.bandwidth[0]
    assert bandwidth_kkt_residual(moved, answer.price, **values) > 5e-3
    assert bandwidth_kkt_residual(answer.bandwidth, 1.01 * answer.price, **values) == pytest.approx(
        0.01 / 1.01, rel=1e-6
    )
    assert bandwidth_kkt_residual(1.01 * answer.bandwidth, answer.price, **values) >= 0.01 - 1e-9
    # half of the band unused, everything else consistent with the price of half a band
    half = minimum_energy_bandwidth(**{**values, "total_bandwidth": 10e6})
    assert bandwidth_kkt_residual(half.bandwidth, half.price, **values) > 0.1
    assert np.isinf(bandwidth_kkt_residual(np.zeros(6), answer.price, **values))
    # a limit on power excuses a marginal energy below the price, none excuses one above
    limit = np.full(6, np.inf)
    limit[0] = 0.9 * answer.power[0]
    held = minimum_energy_bandwidth(**values, power_max=limit)
    assert held.power[0] == pytest.approx(limit[0], rel=1e-12)
    assert bandwidth_kkt_residual(held.bandwidth, held.price, **values, power_max=limit) < 1e-11
    assert bandwidth_kkt_residual(held.bandwidth, held.price, **values) > 1e-2
    assert bandwidth_kkt_residual(answer.bandwidth, answer.price, **values, power_max=limit) > 1e-2


def test_marginal_value_is_the_price() -> None:
    values = scenario(np.random.default_rng(5), 8)
    more, less = (minimum_energy_bandwidth(**{**values, "total_bandwidth": 20e6 + d}) for d in (1e3, -1e3))
    slope = (less.energy.sum() - more.energy.sum()) / 2e3
    assert minimum_energy_bandwidth(**values).price == pytest.approx(slope, rel=1e-6)


def test_dual_is_greatest_at_the_price() -> None:
    values = scenario(np.random.default_rng(6), 8)
    answer = minimum_energy_bandwidth(**values)
    found = minimize_scalar(
        lambda log: -float(bandwidth_dual_bound(np.exp(log) * answer.price, **values)),
        bounds=(-5.0, 5.0),
        method="bounded",
        options={"xatol": 1e-9},
    )
    assert found.x == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("name", ["payload", "deadline", "gain", "noise_density", "total_bandwidth", "power_max"])
@pytest.mark.parametrize("value", [0.0, -1.0, np.nan])
def test_bad_input(name: str, value: float) -> None:
    values = {**WORKED, "power_max": 1.0}
    entry = np.ones(2) * np.asarray(values[name]) if name in ("payload", "gain") else value
    if name in ("payload", "gain"):
        entry[1] = value
        name = rf"{name}\[1\]"
    with pytest.raises(InputError, match=name):
        minimum_energy_bandwidth(**{**values, name.removesuffix(r"\[1\]"): entry})


def test_bad_price() -> None:
    with pytest.raises(InputError, match="price"):
        bandwidth_dual_bound(-1.0, **WORKED)

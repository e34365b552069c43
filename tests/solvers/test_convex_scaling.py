"""Convex sub-problems: normalised inside, checked outside. A status proves nothing, a bound does."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from jointopt import systems
from jointopt.errors import InputError, SolverError
from jointopt.models.allocation import (
    bandwidth_dual_bound,
    bandwidth_kkt_residual,
    least_bandwidth,
    minimum_energy_bandwidth,
)
from jointopt.problems.allocation_program import BandwidthProgram
from jointopt.problems.feel import FEEL, RatioBandwidthStep
from jointopt.solvers import convex

SIZES = (5, 10, 30)
TOLERANCE = 1e-6


def cell(rng: np.random.Generator, devices: int) -> dict[str, Any]:
    """A cell of 1 km: 20 MHz, -174 dBm/Hz, 128.1 + 37.6 log10 d[km] dB, 0.1 to 10 MB each, 0.5 to 4 bit/s/Hz."""
    distance = np.sqrt(rng.uniform(0.1**2, 1.0, devices))
    payload = 8e6 * 10.0 ** rng.uniform(-1.0, 1.0, devices)
    deadline = payload.sum() / (20e6 * rng.uniform(0.5, 4.0)) * rng.uniform(0.7, 1.3, devices)
    return {
        "payload": payload,
        "deadline": deadline,
        "gain": 10.0 ** (-(128.1 + 37.6 * np.log10(distance)) / 10.0),
        "noise_density": 10.0**-20.4,
        "total_bandwidth": 20e6,
    }


@pytest.mark.parametrize("devices", SIZES)
def test_normalised_program_is_the_closed_form(devices: int) -> None:
    """Equal to 1e-6 in 300 cells (100 of each size), and the check in SI passes every time."""
    rng = np.random.default_rng(devices)
    program = BandwidthProgram(devices)
    assert program.problem.is_dpp()
    for _ in range(100):
        values = cell(rng, devices)
        answer, closed = program.solve(**values), minimum_energy_bandwidth(**values)
        assert answer.passed and answer.gap <= TOLERANCE
        least = closed.energy.sum()
        assert 1.0 - 1e-13 <= answer.energy.sum() / least <= 1.0 + TOLERANCE
        assert answer.lower_bound <= least * (1.0 + 1e-13)
        assert answer.bandwidth.sum() <= 20e6 * (1.0 + 1e-14)
        assert answer.price == pytest.approx(float(closed.price), rel=1e-2)
        assert bandwidth_kkt_residual(closed.bandwidth, closed.price, **values) < 1e-12


@pytest.mark.parametrize("devices", SIZES)
def test_plain_units_fail_the_check_whatever_the_status(devices: int) -> None:
    """The same program in hertz and watts: `optimal`, within every constraint, and far from the optimum."""
    rng = np.random.default_rng(devices)
    program = BandwidthProgram(devices, normalised=False)
    status: Counter[str] = Counter()
    wrong = []
    for _ in range(100):
        values = cell(rng, devices)
        try:
            answer = program.solve(**values)
        except SolverError:
            status["none"] += 1
            continue
        status[answer.status] += 1
        assert not answer.passed
        assert answer.gap > 1e-2
        # not the bound alone is weak: at the right price, it is the bands that are wrong
        closed = minimum_energy_bandwidth(**values)
        above = answer.energy.sum() / closed.energy.sum() - 1.0
        assert bandwidth_kkt_residual(answer.bandwidth, closed.price, **values) > 1e-2
        # and a test of feasibility says nothing
        assert answer.bandwidth.sum() <= 20e6 * (1.0 + 1e-14)
        rate = answer.bandwidth * np.log2(1.0 + answer.power * values["gain"] / (10.0**-20.4 * answer.bandwidth))
        np.testing.assert_allclose(rate * values["deadline"], values["payload"], rtol=1e-9)
        if answer.status == "optimal":
            wrong.append(above)
    assert status["optimal"] >= 20
    assert np.min(wrong) > 1e-3
    assert np.median(wrong) > 0.1


def test_limits_on_power() -> None:
    seen: Counter[str] = Counter()
    for devices in (1, 4, 20):
        rng = np.random.default_rng(devices)
        program = BandwidthProgram(devices, limited=True)
        for _ in range(30):
            values = cell(rng, devices)
            limit = minimum_energy_bandwidth(**values).power * np.exp(rng.uniform(-0.6, 2.0, devices))
            limit[0] = np.inf if rng.random() < 0.2 else limit[0]
            closed = minimum_energy_bandwidth(**values, power_max=limit)
            if not closed.feasible:
                seen["infeasible"] += 1
                with pytest.raises(SolverError, match="infeasible"):
                    program.solve(**values, power_max=limit)
                continue
            answer = program.solve(**values, power_max=limit)
            assert answer.passed
            assert answer.energy.sum() == pytest.approx(closed.energy.sum(), rel=TOLERANCE)
            assert np.all(answer.power <= limit * (1.0 + 1e-11))
            seen["held" if np.any(closed.power > limit * (1.0 - 1e-9)) else "free"] += 1
    assert min(seen["infeasible"], seen["held"], seen["free"]) >= 5


def test_check_does_not_trust_the_multiplier() -> None:
    """A wrong price from the solver gives a weaker bound, so a failed check, never a bound above the optimum."""
    values = cell(np.random.default_rng(0), 8)
    program = BandwidthProgram(8)
    right = program.solve(**values)
    links = {name: value for name, value in values.items() if name != "total_bandwidth"}
    for factor in (0.0, 0.5, 0.9, 1.1, 3.0):
        checked = program._checked(right.bandwidth, factor * right.price, links, 20e6, None)
        assert checked.lower_bound < right.lower_bound
        assert not checked.passed
        assert checked.lower_bound == float(bandwidth_dual_bound(factor * right.price, **values))
    moved = right.bandwidth * np.where(np.arange(8) == 0, 0.9, 1.0)
    assert not program._checked(moved, right.price, links, 20e6, None).passed


def test_bad_input_of_the_program() -> None:
    values = cell(np.random.default_rng(0), 4)
    program = BandwidthProgram(4)
    with pytest.raises(InputError, match="made for 4 devices"):
        program.solve(**{**values, "payload": np.ones(3)})
    with pytest.raises(InputError, match=r"gain\[2\]"):
        program.solve(**{**values, "gain": [1e-10, 1e-10, -1.0, 1e-10]})
    with pytest.raises(InputError, match="total_bandwidth"):
        program.solve(**{**values, "total_bandwidth": 0.0})
    with pytest.raises(InputError, match="power_max"):
        program.solve(**values, power_max=1.0)
    with pytest.raises(InputError, match="devices"):
        BandwidthProgram(0)


# ---------------------------------------------------------------------------------------- FEEL's third step


def step_values(rng: np.random.Generator, clients: int) -> dict[str, Any]:
    """Coefficients of a step in which the rate alone binds, so that `least_bandwidth` is all there is to it."""
    zero = np.zeros(clients)
    return {
        "gain": 10.0 ** rng.uniform(-1.0, 2.0, clients),
        "bits_once": zero,
        "bits_each": 10.0 ** rng.uniform(-1.0, 0.5, clients),
        "energy_once": zero,
        "energy_each": zero,
        "late_once": zero,
        "late_each": zero,
        "late_scale": zero,
        "per_room": zero,
        "upload": zero,
        "weight": rng.uniform(0.1, 1.0, clients),
        "curve": zero,
        "centre": zero,
        "top": np.ones(clients),
        "least": np.full(clients, 1e-3),
    }


def test_step_against_its_bound_and_a_grid() -> None:
    """Two clients: the best kept fractions on a fine grid lie between the bound and what the step found."""
    rng = np.random.default_rng(0)
    step = RatioBandwidthStep(2)
    compared = 0
    for _ in range(20):
        values = step_values(rng, 2)
        grid = np.linspace(1e-3, 1.0, 4001)

        def share(client: int, kept: Any, values: dict[str, Any] = values) -> Any:
            rate = {"payload": values["bits_each"][client] * kept, "gain": values["gain"][client]}
            return least_bandwidth(**rate, deadline=1.0, noise_density=1.0, power_max=1.0)

        first, second = share(0, grid), share(1, grid)
        if first[0] + second[0] > 1.0:
            continue
        kept, _ = step.solve(**values)
        # for each fraction of the first client the largest of the second that fits
        fits = np.searchsorted(second, 1.0 - first, side="right") - 1
        best = np.max((values["weight"][0] * grid + values["weight"][1] * grid[fits])[fits >= 0])
        reached = float(values["weight"] @ kept)
        bound = -step.lower_bound(kept, float(step._band.dual_value), values)
        assert best - 1e-9 <= bound
        assert reached == pytest.approx(bound, rel=RatioBandwidthStep.TOLERANCE)
        assert best >= bound * (1.0 - 2e-3)
        assert step.gap <= RatioBandwidthStep.TOLERANCE
        # weak duality at any price and any fractions
        for price in (0.0, 0.1, 1.0, 10.0):
            assert -step.lower_bound(rng.uniform(1e-3, 1.0, 2), price, values) >= best - 1e-9
        compared += 1
    assert compared >= 10


def test_step_in_real_cells_is_proved() -> None:
    """Alternations of sampled systems: every step's answer is certified in closed form, never its status alone."""
    gaps: list[float] = []

    class Watched(RatioBandwidthStep):
        def solve(self, **values: Any) -> Any:
            answer = super().solve(**values)
            gaps.append(self.gap)
            kept, _ = answer
            # a worse point does not pass
            worse = np.maximum(0.99 * kept, values["least"])
            if values["weight"] @ (kept - worse) > 1e-3 * (values["weight"] @ kept):
                price = max(float(self._band.dual_value), 0.0)
                assert self._relative_gap(worse, price, values) > self.TOLERANCE
            return answer

    for seed in range(2):
        problem = FEEL(systems.feel(6, seed))
        blocks = problem.capabilities().blocks
        assert blocks is not None
        alternation = blocks.steps["ratio and bandwidth"].__self__  # type: ignore[attr-defined]
        alternation._step = Watched(6)
        decision = blocks.start()
        for _ in range(2):
            for name in ("time split", "ratio and bandwidth"):
                decision = blocks.steps[name](decision)
    assert len(gaps) == 4
    assert max(gaps) <= 1e-5


def test_step_that_fails_its_check_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The step raises, and the alternation stays where it is."""
    monkeypatch.setattr(RatioBandwidthStep, "TOLERANCE", -1.0)
    values = step_values(np.random.default_rng(3), 3)
    values["bits_each"] = np.array([0.3, 0.4, 0.5])
    with pytest.raises(SolverError, match="from its bound"):
        RatioBandwidthStep(3).solve(**values)
    problem = FEEL(systems.feel(4, 0))
    blocks = problem.capabilities().blocks
    assert blocks is not None
    decision = blocks.steps["time split"](blocks.start())
    assert blocks.steps["ratio and bandwidth"](decision) is decision


# ------------------------------------------------------------------------------ programs of whole problems


def test_second_try_with_shorter_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that ends inaccurate or without a point is solved once more; one that ends well is not."""
    import cvxpy as cp

    calls: list[float] = []
    solve = cp.Problem.solve

    class Whole:
        def __init__(self, fail: int) -> None:
            self.x, self.fail = cp.Variable(nonneg=True), fail
            self.made = cp.Problem(cp.Minimize(cp.exp(self.x) - 2.0 * self.x))

        def program(self) -> cp.Problem:
            return self.made

        def decision(self) -> Any:
            return None if self.x.value is None else float(self.x.value)

        def lower_bound(self, decision: Any) -> float:
            return -np.inf

    def stalls(fail: int) -> Any:
        def run(self: Any, **options: Any) -> Any:
            calls.append(options["max_step_fraction"])
            if len(calls) <= fail:
                raise cp.SolverError("stalled")
            return solve(self, **options)

        return run

    for fail, expected in ((0, 1), (1, 2), (2, 2)):
        calls.clear()
        monkeypatch.setattr(cp.Problem, "solve", stalls(fail))
        decision, _, message = convex.minimize_convex(Whole(fail))  # type: ignore[arg-type]
        assert calls == list(convex.STEP_FRACTIONS[:expected])
        if fail < 2:
            assert decision == pytest.approx(np.log(2.0), abs=1e-3) and "optimal" in message
        else:
            assert decision is None and "failed (stalled)" in message

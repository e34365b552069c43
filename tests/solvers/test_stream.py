"""Rounds solved one from the other: every answer stands on its own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from jointopt.errors import InputError
from jointopt.problem import Problem
from jointopt.problems.coinference import CoInference
from jointopt.problems.coinference_layers import LayerwiseCoInference
from jointopt.problems.feel import FEEL
from jointopt.problems.feel_cells import FEELCells
from jointopt.problems.ltfl import LTFL
from jointopt.solvers.branch import respond
from jointopt.solvers.dispatch import solve
from jointopt.solvers.stream import Stream


def coupled(objective: Any, devices: int = 30, share: float = 1.03) -> LTFL:
    """LTFL where A < 1 binds."""
    system = LTFL.sample(devices=devices, seed=0)
    free = solve(LTFL(system))
    assert free.evaluation is not None
    lost = float(system.weight @ free.evaluation.quantities["packet_error"])
    return LTFL(system.with_(gradient_slope=share / (8 * lost)), objective=objective)


STREAMS: dict[str, Any] = {
    "free": lambda: LTFL(LTFL.sample(devices=30, seed=0)),
    "limit": lambda: coupled("gap"),
    "ratio": lambda: coupled("bound"),
    "selection": lambda: FEEL(FEEL.sample(devices=12, seed=0)),
    "restricted": lambda: coupled("gap").restrict(bits=(2, 6)),
}


@pytest.mark.parametrize("gap", [1e-3, 1e-4])
@pytest.mark.parametrize("name", list(STREAMS))
def test_every_round_has_its_own_bound(name: str, gap: float) -> None:
    problem: Problem = STREAMS[name]()
    stream = Stream(problem, gap=gap)
    rng = np.random.default_rng(1)
    gain, shadow = problem.system.radio.gain, np.zeros(len(problem.system))
    for step in range(12):
        # channels drift, and once jump
        shadow = 0.9 * shadow + 0.2 * rng.normal(size=shadow.size) + (1.5 if step == 7 else 0.0)
        result = stream.step(gain=gain * np.exp(shadow))
        np.testing.assert_array_equal(result.problem.system.radio.gain, gain * np.exp(shadow))
        assert result.problem.settings() == problem.settings()
        scratch = solve(result.problem, method="exact")
        assert (scratch.value is None) == (result.value is None)
        if result.value is None:
            continue
        assert result.decision is not None
        assert result.lower_bound is not None
        assert scratch.value is not None
        assert scratch.lower_bound is not None
        assert result.problem.evaluate(result.decision).feasible()
        assert result.lower_bound <= scratch.value * (1 + 1e-12)
        assert result.value >= scratch.lower_bound * (1 - 1e-12)
        reached = result.value - result.lower_bound <= gap * abs(result.value)
        assert (result.status == "optimal") == reached
        # a gap that is left is one that is left from scratch too
        if not reached:
            assert result.gap is not None
            assert scratch.gap is not None
            assert result.gap <= 2.0 * scratch.gap + gap
    assert stream.rounds == 12


@pytest.mark.parametrize("name", ["limit", "ratio", "selection"])
def test_a_warm_round_examines_less(name: str) -> None:
    problem: Problem = STREAMS[name]()
    stream = Stream(problem)
    first = stream.step()
    second = stream.step(gain=problem.system.radio.gain * 1.01)
    assert first.n_evaluations == solve(problem, method="exact", gap=1e-3).n_evaluations
    assert second.status == "optimal"
    assert second.n_evaluations < first.n_evaluations


def test_an_infeasible_round_is_an_answer_and_the_next_goes_on() -> None:
    problem = STREAMS["limit"]()
    stream = Stream(problem)
    good = stream.step()
    bad = stream.step(delay_budget=1e-9)
    assert bad.status == "infeasible"
    assert bad.infeasibility
    again = stream.step(system=problem.system)
    assert again.feasible
    assert again.value == pytest.approx(good.value, rel=2e-3)


def test_the_same_rounds_give_the_same_answers() -> None:
    problem = STREAMS["limit"]()
    gains = [problem.system.radio.gain * f for f in (1.0, 1.1, 0.95)]
    one, other = Stream(problem), Stream(problem)
    for gain in gains:
        a, b = one.step(gain=gain), other.step(gain=gain)
        assert a.value == b.value
        assert a.lower_bound == b.lower_bound


def test_solve_from_a_result() -> None:
    problem = STREAMS["limit"]()
    first = solve(problem, gap=1e-3)
    warm = solve(problem, method="exact", gap=1e-3, start=first, leaves=False)
    assert warm.n_evaluations < first.n_evaluations
    assert warm.certificate.leaves is None
    for wrong, match in (
        ({"start": 3}, "start"),
        ({"start": solve(LTFL(LTFL.sample(devices=4)))}, "number of devices"),
        ({"start": solve(CoInference(CoInference.sample(devices=30)))}, "another design"),
        ({"leaves": 1}, "leaves"),
        ({"strat": first}, "start"),
    ):
        with pytest.raises(InputError, match=match):
            solve(problem, method="exact", **wrong)


@pytest.mark.parametrize("seed", range(4))
def test_units_probed_near_a_decision_keep_their_bounds(seed: int) -> None:
    rng = np.random.default_rng(seed)
    problem = FEEL(FEEL.sample(devices=30, seed=seed))
    known = solve(problem, gap=1e-3)
    assert known.decision is not None
    gain = problem.system.radio.gain * rng.exponential(size=30)
    cells = FEELCells(FEEL(problem.system.with_(gain=gain)))
    for factor in (0.0, 0.3, 1.0, 3.0):
        prices = np.array([1.0, factor * known.certificate.prices["bandwidth"]])
        sharp = respond(cells, prices, gap=1e-9)
        near = cells.near(known.decision, np.array([1.0, known.certificate.prices["bandwidth"]]))
        np.testing.assert_array_equal(near.fits, cells.fits)
        some = np.flatnonzero(cells.fits)
        for levels in (0, 1, 3):
            rough = respond(near, prices, gap=1e-4, levels=levels)
            assert np.all(rough.lower_bound[some] <= sharp.value[some] * (1 + 1e-12))
            assert np.all(rough.value[some] >= sharp.lower_bound[some] * (1 - 1e-9))


@pytest.mark.parametrize("redrawn", [False, True])
def test_a_long_stream_of_selections_is_proved_and_verifies(redrawn: bool) -> None:
    problem = FEEL(FEEL.sample(devices=40, seed=3))
    stream, rng = Stream(problem), np.random.default_rng(3)
    gain, shadow = problem.system.radio.gain, np.zeros(40)
    for step in range(40):
        shadow = 0.97 * shadow + 0.23 * rng.normal(size=40)
        result = stream.step(gain=gain * (rng.exponential(size=40) + 0.02 if redrawn else np.exp(shadow)))
        assert result.status == "optimal"
        assert result.gap is not None
        assert result.gap <= 1e-3
        if step % 13 == 12:
            assert result.verify().complete


def test_bad_input() -> None:
    problem = STREAMS["free"]()
    with pytest.raises(InputError, match="gap"):
        Stream(problem, gap=0.0)
    with pytest.raises(InputError, match="problem"):
        Stream(3)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="seed"):
        Stream(problem, seed=-1)
    with pytest.raises(InputError, match="exact"):
        Stream(LayerwiseCoInference(LayerwiseCoInference.sample()))
    with pytest.raises(InputError, match="30"):
        Stream(problem).step(LTFL.sample(devices=4))
    with pytest.raises(InputError, match="gain"):
        Stream(problem).step(gain=-1.0)

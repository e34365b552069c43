"""Alternating closed forms: what they find, and where they stall."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

import jointopt as jo
from jointopt.decision import Decision
from jointopt.errors import InputError
from jointopt.problem import Blocks, Capabilities, Evaluation, Problem, Variable
from jointopt.problems.ltfl import LTFL
from jointopt.solvers.alternating import alternating
from jointopt.solvers.bayesian import bayesian_step
from jointopt.solvers.exact import minimize_sums
from jointopt.solvers.monitor import Monitor, StopSearch
from jointopt.solvers.priced import CellsPriced
from jointopt.system import Bound, Devices, Learner, Radio, System


def golden() -> System:
    """The golden instance at fixed power 0.05 W, 3.5 s and 0.08 J, C_delta = 1."""
    return System(
        devices=Devices(
            count=1,
            samples=500,
            cycles_per_sample=2e5,
            frequency=35e6,
            capacitance=1e-26,
            power_min=0.05,
            power_max=0.05,
            delay_budget=3.5,
            energy_budget=0.08,
        ),
        radio=Radio(bandwidth=1e6, noise_density=10**-20.4, gain=2.5e-8, waterfall_threshold=10**0.0023),
        learner=Learner(parameters=1_000_000, header_bits=0, bits_min=1, bits_max=16, pruning_ratio_max=0.9),
        bound=Bound(
            smoothness=1.0,
            weight_norm_squared=0.5,
            mask_energy=0.0,
            gradient_offset=0.0,
            quantizer_range=np.sqrt(2.0 / 1e6),
        ),
    )


def test_stalls_on_the_budget_curve() -> None:
    """From 16 bits it stays at ratio 0.0729; 11 bits without pruning are 300 000 times better."""
    problem = LTFL(golden())
    monitor = Monitor(problem)
    message = alternating(problem, monitor, seed=0)
    assert "1 sweep;" in message
    assert "need not be an optimum" in message
    assert monitor.best is not None
    assert monitor.best["bits"][0] == 16
    assert monitor.best["pruning_ratio"][0] == pytest.approx(0.072903, abs=1e-6)

    def part(decision: Decision) -> float:
        parts = problem.evaluate(decision).parts
        return float(parts["pruning"] + parts["quantization"])

    offered = problem.capabilities()
    assert offered.sums is not None
    assert offered.cells is not None
    best = Decision(minimize_sums(offered.sums, CellsPriced(offered.cells)).decision)
    assert best["bits"][0] == 11
    assert best["pruning_ratio"][0] == 0.0
    assert part(monitor.best) == pytest.approx(0.0729, abs=5e-5)
    assert part(best) == pytest.approx(2.39e-7, rel=5e-3)


class Halves(Problem):
    """Each step halves its variable: never at rest to zero tolerance, quickly to a coarse one."""

    name = "halves"

    def __init__(self, rate: float = 0.5) -> None:
        self.system = golden()
        self.rate = rate

    @property
    def variables(self) -> tuple[Variable, ...]:
        return tuple(Variable(n, np.zeros(1), np.full(1, 2.0)) for n in ("a", "b"))

    def evaluate(self, decision: Decision) -> Evaluation:
        return Evaluation(decision["a"].sum() + decision["b"].sum(), {}, {}, {}, {})

    def capabilities(self) -> Capabilities:
        def step(name: str):  # type: ignore[no-untyped-def]
            return lambda d: d.with_(**{name: 1.0 + self.rate * (d[name] - 1.0)})

        start = Decision(a=[2.0], b=[1.5])
        return Capabilities(blocks=Blocks(start=lambda: start, steps={"a": step("a"), "b": step("b")}))


def test_offers_every_step_and_converges() -> None:
    problem = Halves()
    monitor = Monitor(problem)
    assert "at rest after" in alternating(problem, monitor)
    assert monitor.best_value == pytest.approx(2.0, rel=1e-11)
    assert monitor.n_evaluations % 2 == 1
    values = [h["value"] for h in monitor.history]
    assert values == sorted(values, reverse=True)


def test_iteration_limit() -> None:
    problem = Halves()
    monitor = Monitor(problem)
    assert "still moving after 3 sweeps" in alternating(problem, monitor, max_iterations=3)
    assert monitor.n_evaluations == 1 + 2 * 3


def test_time_limit() -> None:
    problem = Halves()
    monitor = Monitor(problem, time_limit=1e-9)
    with pytest.raises(StopSearch):
        alternating(problem, monitor)
    assert monitor.best is not None


@pytest.mark.parametrize(("option", "value"), [("max_iterations", 0), ("tolerance", -1.0), ("tolerance", np.nan)])
def test_bad_options(option: str, value: float) -> None:
    problem = Halves()
    with pytest.raises(InputError, match=option):
        alternating(problem, Monitor(problem), **{option: value})  # type: ignore[arg-type]


def test_needs_blocks() -> None:
    class Bare(Halves):
        def capabilities(self) -> Capabilities:
            return Capabilities()

    problem = Bare()
    with pytest.raises(InputError, match="halves: offers no steps"):
        alternating(problem, Monitor(problem))


def test_steps_that_search_and_the_last_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each block is searched with the others as they are; the incumbent never gets worse; seeds decide."""
    # the published numbers of evaluations take a minute
    short = partial(bayesian_step, initial=3, iterations=2)
    monkeypatch.setattr("jointopt.solvers.bayesian.bayesian_step", short)
    problem = jo.problems.FedDPQ(jo.systems.feddpq(3, 2))
    found = jo.solve(problem, method="alternating", max_iterations=1, seed=3)
    best = np.minimum.accumulate([row["value"] if row["violation"] == 0.0 else np.inf for row in found.history])
    assert found.value == best[-1] and best[-1] < best[0]
    exact = jo.solve(problem, gap=1e-3)
    assert exact.lower_bound is not None and found.value >= exact.lower_bound * (1.0 - 1e-9)
    assert "together" in found.message
    # one value for all, powers by channel inversion
    decision = found.decision
    assert decision is not None
    assert np.ptp(decision["pruning_ratio"]) == 0.0 and np.ptp(decision["bits"]) == 0.0
    assert found.value == jo.solve(problem, method="alternating", max_iterations=1, seed=3).value

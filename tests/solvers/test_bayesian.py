"""Bayesian optimization: regret, reproducibility, failures."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from jointopt.decision import Decision
from jointopt.errors import InputError
from jointopt.problem import Capabilities, Evaluation, Problem, Variable
from jointopt.problems.ltfl import LTFL
from jointopt.solvers.bayesian import bayesian
from jointopt.solvers.monitor import Monitor, StopSearch
from jointopt.system import Bound, Devices, Learner, Radio, System

BACKENDS = ["botorch", "skopt-gp", "skopt-rf"]


def system(devices: int, seed: int = 0, energy: float = 0.015) -> System:
    """Devices whose best power lies inside its range."""
    rng = np.random.default_rng(seed)
    return System(
        devices=Devices(
            samples=rng.integers(400, 600, devices).tolist(),
            cycles_per_sample=2e5,
            frequency=rng.uniform(20e6, 60e6, devices).tolist(),
            capacitance=1e-26,
            power_min=1e-3,
            power_max=0.2,
            delay_budget=rng.uniform(5, 9, devices).tolist(),
            energy_budget=(energy * rng.uniform(0.5, 2, devices)).tolist(),
        ),
        radio=Radio(
            bandwidth=2.5e5,
            noise_density=10**-20.4,
            gain=(2.5e-8 * 10 ** rng.uniform(-2.5, -0.5, devices)).tolist(),
        ),
        learner=Learner(parameters=100_000, header_bits=0),
        bound=Bound(smoothness=1.0, weight_norm_squared=0.5, mask_energy=0.0, gradient_offset=0.0, quantizer_range=0.1),
    )


class Search:
    """A smooth function of a few variables without a sum over units; its best point is at 0.3."""

    name = "x"

    def __init__(self, problem: Smooth) -> None:
        self.lower, self.upper = problem.lower, problem.upper
        self.logarithmic = problem.logarithmic
        if problem.attribute is not None:
            self.attribute = problem.attribute

    def complete(self, x: Any) -> Decision:
        return Decision(x=x)

    def unit_values(self, x: Any) -> None:
        return None


class Smooth(Problem):
    """value = scale * (sum of a smooth valley) + offset, with x <= limit as a constraint."""

    name = "smooth"

    def __init__(
        self,
        lower: Any = (0.0,),
        upper: Any = (1.0,),
        *,
        best: float = 0.3,
        scale: float = 1.0,
        offset: float = 0.0,
        limit: float = np.inf,
        logarithmic: bool = False,
        attribute: Any = None,
    ) -> None:
        self.lower, self.upper = np.asarray(lower, dtype=np.float64), np.asarray(upper, dtype=np.float64)
        self.best, self.scale, self.offset, self.limit = best, scale, offset, limit
        self.logarithmic, self.attribute = logarithmic, attribute
        self.system = system(len(self.lower))

    @property
    def variables(self) -> tuple[Variable, ...]:
        return (Variable("x", self.lower, self.upper),)

    def valley(self, x: Any) -> Any:
        return np.sum((x - self.best) ** 2 + 0.2 * (1.0 - np.cos(8.0 * (x - self.best))), axis=-1)

    def evaluate(self, decision: Decision) -> Evaluation:
        x = decision["x"]
        slack = {"limit": self.limit - x} if np.isfinite(self.limit) else {}
        value = self.scale * self.valley(x) + self.offset
        return Evaluation(value, {}, slack, dict.fromkeys(slack, 1.0), {})

    def capabilities(self) -> Capabilities:
        return Capabilities(search=Search(self))


def run(problem: Problem, **options: Any) -> tuple[Monitor, str]:
    monitor = Monitor(problem)
    message = bayesian(problem, monitor, **{"seed": 0, **options})
    return monitor, message


def grid_optimum(problem: LTFL) -> float:
    search = problem.capabilities().search
    assert search is not None
    values = search.unit_values(np.geomspace(search.lower, search.upper, 20001))
    assert values is not None
    return float(values.min(axis=0).sum())


@pytest.mark.parametrize("seed", [0, 1])
def test_separate_regret(seed: int) -> None:
    problem = LTFL(system(3, seed))
    monitor, message = run(problem, mode="separate", iterations=25)
    best = grid_optimum(problem)
    assert monitor.best is not None
    assert monitor.best_value <= 1.01 * best
    assert problem.evaluate(monitor.best).feasible()
    assert monitor.n_evaluations == 8 + 25
    assert "each unit on its own" in message
    values = [h["value"] for h in monitor.history if h["violation"] == 0.0]
    assert np.all(np.diff(values) <= 1e-12)


def test_joint_finds_few_devices() -> None:
    problem = LTFL(system(2, 1))
    monitor, message = run(problem, mode="joint", iterations=30)
    assert "jointly" in message
    assert monitor.best_value <= 1.02 * grid_optimum(problem)


def test_auto_separates_where_it_can() -> None:
    problem = LTFL(system(16))
    assert "each unit on its own" in run(problem, iterations=1, initial=2)[1]
    assert "each unit on its own" in run(LTFL(system(2)), iterations=1, initial=2)[1]
    assert "jointly" in run(LTFL(system(1)), iterations=1, initial=2)[1]
    assert "jointly" in run(Smooth((0.0, 0.0), (1.0, 1.0)), iterations=1, initial=2)[1]
    monitor, message = run(problem, iterations=2, mode="joint")
    assert "jointly, 32 initial" in message
    assert monitor.n_evaluations == 34


@pytest.mark.parametrize("backend", BACKENDS)
def test_joint_smooth(backend: str) -> None:
    monitor, message = run(Smooth(), backend=backend, iterations=14)
    assert monitor.best_value < (1e-6 if backend == "botorch" else 1e-3 if backend == "skopt-gp" else 5e-2)
    assert backend in message


@pytest.mark.parametrize(
    ("scale", "offset"),
    [(1.0, 1e6), (1.0, -1e6), (1e-10, 0.0), (1e8, 0.0)],
    ids=["plus", "minus", "tiny", "huge"],
)
def test_best_value_is_on_the_models_scale(scale: float, offset: float) -> None:
    """A best_f on another scale than the posterior turns the search into noise; so would unscaled tiny values."""
    problem = Smooth((0.0, 0.0), (1.0, 1.0), scale=scale, offset=offset)
    monitor, message = run(problem, iterations=18)
    assert (monitor.best_value - offset) / scale < 1e-3
    assert "random" not in message


@pytest.mark.parametrize("mode", ["joint", "separate"])
def test_best_value_is_that_of_the_models_targets(monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    from botorch.acquisition import analytic

    original, seen = analytic.LogExpectedImprovement, []

    def watched(model: Any, best_f: Any) -> Any:
        targets = model.train_targets
        assert getattr(model, "outcome_transform", None) is None
        assert torch.equal(best_f.squeeze(-1), targets.max(dim=-1).values)
        assert torch.allclose(targets.std(dim=-1, correction=0), torch.ones((), dtype=torch.float64))
        seen.append(best_f.shape)
        return original(model, best_f)

    monkeypatch.setattr(analytic, "LogExpectedImprovement", watched)
    run(LTFL(system(3)), mode=mode, iterations=2)
    assert seen == [(1,) if mode == "joint" else (3, 1)] * 2


def test_skopt_sees_standardised_outcomes() -> None:
    """Its margin of 0.01 in the outcomes' unit would hide everything here."""
    monitor, _ = run(Smooth(scale=1e-6, offset=3.0), backend="skopt-gp", iterations=15)
    assert monitor.best_value - 3.0 < 1e-9


def test_constraint_without_unit_values() -> None:
    problem = Smooth((0.0, 0.0), (1.0, 1.0), limit=0.2)
    monitor, _ = run(problem, iterations=30)
    assert monitor.least_violation == 0.0
    assert monitor.best_value - problem.valley(np.array([0.2, 0.2])) < 0.02


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mode", ["joint", "separate"])
def test_same_seed_same_result_and_global_state_untouched(backend: str, mode: str) -> None:
    problem = LTFL(system(2))
    before = torch.random.get_rng_state(), np.random.get_state(), torch.get_num_threads()  # noqa: NPY002
    options = {"mode": mode, "backend": backend, "iterations": 2, "seed": 7}
    first, _ = run(problem, **options)
    assert torch.equal(before[0], torch.random.get_rng_state())
    after = np.random.get_state()  # noqa: NPY002
    assert all(np.array_equal(a, b) for a, b in zip(before[1], after, strict=True))
    assert before[2] == torch.get_num_threads()
    torch.rand(3)
    second, _ = run(problem, **options)
    other, _ = run(problem, **{**options, "seed": 8})
    assert [h["value"] for h in first.history] == [h["value"] for h in second.history]
    assert first.best == second.best
    assert [h["value"] for h in first.history] != [h["value"] for h in other.history]


def test_policy() -> None:
    z = np.array([1.0, 2.0, 4.0])
    problem = Smooth(np.full(3, 0.01), np.full(3, 1.0), logarithmic=True, attribute=z)
    monitor, message = run(problem, mode="policy", iterations=20)
    assert "by a line in the attribute" in message
    assert monitor.best_value < 1e-2
    assert monitor.best is not None
    free = np.log(monitor.best["x"])
    assert (free[1] - free[0]) / 1.0 == pytest.approx((free[2] - free[1]) / 2.0)


def test_infeasible_system() -> None:
    problem = LTFL(system(3, energy=1e-5))
    for mode in ("joint", "separate"):
        monitor, _ = run(problem, mode=mode, iterations=3)
        assert monitor.least_violation > 0.0
        assert monitor.best is not None


def test_nothing_feasible_without_unit_values() -> None:
    monitor, _ = run(Smooth(limit=-1.0), iterations=10)
    assert monitor.least_violation == pytest.approx(1.0, abs=1e-2)


def test_flat_and_fixed() -> None:
    monitor, _ = run(Smooth(scale=0.0), iterations=3)
    assert monitor.n_evaluations == 8 + 3
    monitor, message = run(Smooth((0.5,), (0.5,)))
    assert monitor.n_evaluations == 1
    assert "fixed" in message
    monitor, message = run(Smooth((0.5, 0.0), (0.5, 1.0)), iterations=2)
    assert "of 1 units" in message
    assert monitor.best is not None
    assert monitor.best["x"][0] == 0.5


@pytest.mark.parametrize("error", [RuntimeError("not positive definite"), FloatingPointError("nan")])
def test_failed_fits_fall_back_to_random_points(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr("botorch.fit.fit_gpytorch_mll", fail)
    monitor, message = run(Smooth(), iterations=4)
    assert "could not be fitted in 4 iterations" in message
    assert monitor.n_evaluations == 8 + 4
    points = [h["value"] for h in monitor.history]
    assert len(set(points)) == len(points)


def test_mistakes_are_not_taken_for_failed_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise AttributeError("no such thing")

    monkeypatch.setattr("botorch.fit.fit_gpytorch_mll", fail)
    with pytest.raises(AttributeError):
        run(Smooth(), iterations=1)


def test_time_limit_and_interrupt_keep_the_incumbent() -> None:
    problem = LTFL(system(2))
    monitor = Monitor(problem, time_limit=1e-9)
    with pytest.raises(StopSearch):
        bayesian(problem, monitor, seed=0)
    assert monitor.best is not None

    def stop(progress: Any) -> None:
        if progress.n_evaluations == 9:
            raise KeyboardInterrupt

    monitor = Monitor(problem, callback=stop)
    with pytest.raises(KeyboardInterrupt):
        bayesian(problem, monitor, seed=0)
    assert monitor.n_evaluations == 9
    assert monitor.best is not None


def test_seed_may_be_none() -> None:
    assert run(Smooth(), seed=None, iterations=0)[0].n_evaluations == 8


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"backend": "botorhc"}, "did you mean 'botorch'"),
        ({"mode": "joined"}, "mode: unknown 'joined'"),
        ({"iterations": -1}, "iterations"),
        ({"initial": 0}, "initial"),
        ({"batch": 0}, "batch"),
        ({"batch": 1.5}, "batch"),
        ({"resume": True}, "resume: needs the file"),
        ({"mode": "separate"}, "sum over units"),
        ({"mode": "policy"}, "needs an attribute"),
    ],
)
def test_bad_options(options: dict[str, Any], match: str) -> None:
    with pytest.raises(InputError, match=match):
        run(Smooth(), **options)


def test_needs_a_search() -> None:
    class Bare(Smooth):
        def capabilities(self) -> Capabilities:
            return Capabilities()

    with pytest.raises(InputError, match="offers no variables to search"):
        run(Bare())

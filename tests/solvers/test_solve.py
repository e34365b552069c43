"""The front door: every method, its status, reproducibility, limits, interrupts and errors."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest

import jointopt as jo
from jointopt import systems
from jointopt.decision import Decision
from jointopt.errors import InputError
from jointopt.problem import FEASIBILITY_TOLERANCE, Capabilities, Evaluation, Problem, Variable
from jointopt.problems.ltfl import LTFL
from jointopt.solvers import dispatch, methods, solve
from jointopt.system import System

BASELINES = ["no_compression", "fixed", "uniform", "random", "no_pruning", "no_quantization", "no_power_control"]
METHODS = ["exact", "bayesian", "alternating", "nlp", *BASELINES]
RESTRICTED = ["no_compression", "fixed", "no_pruning", "no_quantization", "no_power_control"]


def options(method: str) -> dict[str, Any]:
    return {"iterations": 1, "initial": 3} if method == "bayesian" else {}


def problem(devices: int = 5, seed: int = 0, tightness: float = 1.0, **changes: Any) -> LTFL:
    system = systems.ltfl(devices, seed, tightness=tightness)
    return LTFL(system.with_(**changes) if changes else system)


def loose(**changes: Any) -> LTFL:
    """Budgets under which every baseline is feasible."""
    return problem(delay_budget=20.0, energy_budget=0.5, **changes)


# ------------------------------------------------------------------ what comes back


def test_methods_are_those_asked_for() -> None:
    known = methods(problem())
    assert list(known) == METHODS
    assert all(known.values())
    assert jo.methods(problem()) == known


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("make", [problem, loose])
def test_every_method_returns_a_true_result(method: str, make: Any) -> None:
    asked = make()
    result = solve(asked, method=method, seed=1, **options(method))
    assert result.method == method
    assert result.seed == 1
    assert result.status == ("optimal" if method == "exact" else "feasible" if result.feasible else "infeasible")
    if make is loose:
        assert result.status in ("optimal", "feasible")
    assert result.decision is not None
    assert result.evaluation is not None
    # what it says about its decision is what the problem says
    again = result.problem.evaluate(result.decision)
    assert float(again.objective) == float(result.evaluation.objective)
    if result.feasible:
        assert result.value == float(again.objective)
        assert again.violation() <= FEASIBILITY_TOLERANCE
    else:
        assert result.value is None
        assert again.violation() > FEASIBILITY_TOLERANCE
    assert result.value is None or math.isfinite(result.value)
    if method == "exact":
        assert result.lower_bound is not None
        assert result.gap is not None
        assert 0.0 <= result.gap <= 1e-6
        assert result.lower_bound <= result.value
        assert result.certificate.kind == "exact"
    else:
        assert result.lower_bound is None
        assert result.gap is None
        assert result.certificate.kind == "none"
    assert result.seconds >= 0.0
    assert result.n_evaluations >= (result.value is not None)
    assert result.message


def test_auto_is_exact_where_there_is_structure() -> None:
    result = solve(problem())
    assert result.method == "exact"
    assert result.value == solve(problem(), method="exact").value


@pytest.mark.parametrize("method", METHODS)
def test_same_seed_same_result(method: str) -> None:
    first, second = (solve(problem(), method=method, seed=3, **options(method)) for _ in range(2))
    assert first.decision == second.decision
    assert first.value == second.value
    assert first.lower_bound == second.lower_bound
    assert first.n_evaluations == second.n_evaluations
    strip = [[{k: v for k, v in h.items() if k != "seconds"} for h in r.history] for r in (first, second)]
    assert strip[0] == strip[1]


def test_seeds_matter_where_something_is_drawn() -> None:
    values = [solve(problem(), method="random", seed=s).value for s in range(4)]
    assert len(set(values)) == 4
    assert solve(problem(), method="random", seed=None).feasible
    assert solve(problem(), method="random", seed=np.int64(2)).value == values[2]
    assert solve(problem(), method="uniform", seed=1).value == solve(problem(), method="uniform", seed=2).value


def test_global_random_state_is_left_alone() -> None:
    np.random.seed(5)  # noqa: NPY002
    expected = np.random.random(2)  # noqa: NPY002
    np.random.seed(5)  # noqa: NPY002
    for method in METHODS:
        solve(problem(3), method=method, **options(method))
    assert np.array_equal(np.random.random(2), expected)  # noqa: NPY002


# ------------------------------------------------------------------ against each other

WITHIN = [m for m in METHODS if m not in ("no_compression", "no_quantization", "bayesian")]
"""Methods whose decisions lie within the problem's own ranges: 32 bits do not."""


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"delay_budget": 5.0},
        {"energy_budget": 0.05},
        {"gradient_offset": 300.0},
        {"gradient_offset": 0.0, "mask_energy": 0.0},
        {"pruning_error": "laplace"},
        {"fading": "none"},
        {"compute_law": "mask", "delay_budget": 5.0},
        {"mask_encoding": "bitmap", "delay_budget": 2.0},
    ],
    ids=lambda c: ",".join(c) or "default",
)
def test_no_method_beats_the_proved_bound(seed: int, changes: dict[str, Any]) -> None:
    asked = problem(6, seed, **changes)
    exact = solve(asked)
    for method in WITHIN:
        result = solve(asked, method=method, seed=seed)
        if exact.status == "infeasible":
            assert not result.feasible, method
        elif result.value is not None:
            assert exact.lower_bound is not None
            assert result.value >= exact.lower_bound * (1 - 1e-9), method
    if exact.feasible:
        assert exact.value is not None
        bayesian = solve(asked, method="bayesian", iterations=0, initial=2, seed=seed)
        assert bayesian.value is None or bayesian.value >= exact.value * (1 - 1e-6)


def test_bits_outside_the_range_may_beat_the_bound() -> None:
    """32-bit floats are no decision of a problem with at most 4 bits, so its bound does not cover them."""
    asked = loose(bits_max=4)
    exact, floats = solve(asked), solve(asked, method="no_quantization")
    assert floats.value is not None
    assert exact.lower_bound is not None
    assert floats.value < exact.lower_bound
    assert floats.lower_bound is None


@pytest.mark.parametrize("seed", range(3))
def test_alternating_is_never_better_than_exact(seed: int) -> None:
    for objective in ("gap", "bound"):
        asked = LTFL(systems.ltfl(6, seed).with_(gradient_slope=0.02), objective=objective)
        exact, alternating = solve(asked), solve(asked, method="alternating")
        assert exact.value is not None
        assert alternating.value is None or alternating.value >= exact.value * (1 - 1e-9)


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_penalty_of_infeasible_powers_is_a_number_under_either_law() -> None:
    for law in ("linear", "laplace"):
        asked = problem(20, 0, tightness=4.0, pruning_error=law)
        search = asked.capabilities().search
        assert search is not None
        values = search.unit_values(np.stack([search.lower, search.upper]))
        assert values is not None
        assert np.all(np.isfinite(values))


# ------------------------------------------------------------------ baselines


@pytest.mark.parametrize("seed", range(3))
def test_baselines_keep_their_restrictions(seed: int) -> None:
    asked = problem(5, seed, delay_budget=5.0, energy_budget=0.05)
    got = {m: solve(asked, method=m, seed=seed).decision for m in BASELINES}
    assert all(d is not None for d in got.values())
    for name in ("no_compression", "no_pruning"):
        assert np.all(got[name]["pruning_ratio"] == 0.0)
    for name in ("no_compression", "no_quantization"):
        assert np.all(got[name]["bits"] == 32)
    for name in ("no_compression", "no_power_control"):
        assert np.all(got[name]["power"] == asked.system.devices.power_max)
    assert np.all(got["fixed"]["pruning_ratio"] == 0.5)
    assert np.all(got["fixed"]["bits"] == 8)
    for decision in got.values():
        assert np.all(decision["bits"] == np.rint(decision["bits"]))
        assert np.all(decision["power"] >= asked.system.devices.power_min)
        assert np.all(decision["power"] <= asked.system.devices.power_max)


@pytest.mark.parametrize("method", RESTRICTED)
def test_restricted_baselines_equal_the_restricted_exact(method: str) -> None:
    restrict = {
        "no_compression": {"pruning_ratio": 0.0, "bits": 32, "power": 0.1},
        "fixed": {"pruning_ratio": 0.5, "bits": 8},
        "no_pruning": {"pruning_ratio": 0.0},
        "no_quantization": {"bits": 32},
        "no_power_control": {"power": 0.1},
    }[method]
    expected = solve(loose().restrict(**restrict))
    got = solve(loose(), method=method)
    assert got.value == expected.value
    assert got.decision == expected.decision


@pytest.mark.parametrize("tightness", [0.5, 1.0, 2.0, 4.0, 7.0, 8.0, 9.0, 12.0])
@pytest.mark.parametrize("seed", range(3))
def test_uniform_exists_whenever_exact_does(tightness: float, seed: int) -> None:
    """At the largest ratio and fewest bits, one pair for all, everyone is feasible who ever is."""
    asked = problem(4, seed, tightness=tightness)
    exact, uniform = solve(asked), solve(asked, method="uniform")
    assert uniform.feasible == exact.feasible
    if uniform.feasible:
        assert uniform.decision is not None
        assert len(set(uniform.decision["pruning_ratio"])) == 1
        assert len(set(uniform.decision["bits"])) == 1
        assert asked.evaluate(uniform.decision).feasible()
    else:
        assert "no decision of this kind" in uniform.message
        assert uniform.decision is None
        assert uniform.evaluation is None
        assert repr(uniform)
        assert uniform.summary()
        with pytest.raises(InputError, match="holds no decision"):
            uniform.explain()


def best_shared(asked: LTFL) -> float:
    """Least value over a grid of shared ratios and bits, each device at the strongest power that fits."""
    system, powers = asked.system, np.geomspace(0.01, 0.1, 200)
    best = np.inf
    for bits in range(system.learner.bits_min, 9):
        for ratio in np.linspace(0.0, 0.9, 46):
            shape = (powers.size, len(system))
            evaluation = asked.evaluate(
                Decision(
                    pruning_ratio=np.full(shape, ratio),
                    bits=np.full(shape, float(bits)),
                    power=np.broadcast_to(powers[:, None], shape),
                )
            )
            fits = (evaluation.slack["delay"] >= 0) & (evaluation.slack["energy"] >= 0)
            if not np.all(fits.any(axis=0)):
                continue
            last = powers.size - 1 - np.argmax(fits[::-1], axis=0)
            decision = Decision(
                pruning_ratio=np.full(len(system), ratio),
                bits=np.full(len(system), float(bits)),
                power=powers[last],
            )
            best = min(best, float(asked.evaluate(decision).objective))
    return best


@pytest.mark.parametrize("seed", range(2))
def test_uniform_is_the_best_shared_pair_where_pruning_dominates(seed: int) -> None:
    asked = problem(4, seed)
    uniform = solve(asked, method="uniform")
    assert uniform.value is not None
    assert uniform.value <= best_shared(asked) * (1 + 1e-9)


@pytest.mark.parametrize("seed", range(10))
def test_random_is_feasible(seed: int) -> None:
    asked = problem(8, 1)
    result = solve(asked, method="random", seed=seed)
    assert result.status == "feasible"
    assert result.decision is not None
    assert asked.evaluate(result.decision).feasible()


def test_random_where_nothing_fits() -> None:
    result = solve(problem(3, tightness=50.0), method="random")
    assert result.status == "infeasible"
    assert result.decision is None
    assert result.value is None


def test_rules_do_not_pretend_to_keep_a_shared_limit() -> None:
    """With A close to its limit a rule that ignores A gives no feasible decision, and must say so."""
    asked = problem(5, 0, gradient_slope=2.0)
    for method in ("uniform", "random", "alternating"):
        result = solve(asked, method=method)
        assert result.decision is not None
        evaluation = asked.evaluate(result.decision)
        assert result.feasible == bool(evaluation.feasible())
        assert (result.value is None) == (not evaluation.feasible())
        assert result.summary()


# ------------------------------------------------------------------ infeasible problems


@pytest.mark.parametrize("method", METHODS)
def test_infeasible_is_an_answer(method: str) -> None:
    asked = problem(4, 0, tightness=50.0)
    result = solve(asked, method=method, **options(method))
    assert result.status == "infeasible"
    assert not result.feasible
    assert result.value is None
    assert result.gap is None
    assert result.lower_bound is None
    assert result.message
    assert "infeasible" in repr(result)
    assert "infeasible" in result.summary()


def test_infeasible_reasons_and_least_violating_decision() -> None:
    asked = problem(5, 0, tightness=14.0)
    result = solve(asked)
    assert result.status == "infeasible"
    assert result.decision is not None
    broken = {u for _, u, _ in asked.evaluate(result.decision).broken()}
    assert {c.device for c in result.infeasibility} == broken
    violation = float(asked.evaluate(result.decision).violation())
    assert violation == pytest.approx(max(c.factor for c in result.infeasibility) - 1, rel=1e-9)
    # no decision exceeds the budgets less
    rng = np.random.default_rng(0)
    for _ in range(300):
        other = Decision(
            pruning_ratio=np.where(rng.random(5) < 0.7, 0.9, rng.uniform(0, 0.9, 5)),
            bits=rng.integers(2, 4, 5),
            power=np.exp(rng.uniform(np.log(0.01), np.log(0.1), 5)),
        )
        assert float(asked.evaluate(other).violation()) >= violation * (1 - 1e-9)
    for conflict in result.infeasibility:
        assert conflict.text.startswith(f"device {conflict.device}: ")
        assert f"both budgets x {conflict.factor:.4g}" in conflict.text
        # the promised relaxation does it
        devices = asked.system.devices
        for slightly, feasible in ((1 + 1e-6, True), (1 - 1e-6, False)):
            one = asked.system.with_(
                delay_budget=devices.delay_budget * conflict.factor * slightly,
                energy_budget=devices.energy_budget * conflict.factor * slightly,
            ).take([conflict.device])
            assert solve(LTFL(one)).feasible == feasible
        for name, least in conflict.relax.items():
            if least is not None:
                one = asked.system.take([conflict.device])
                assert solve(LTFL(one.with_(**{name: least * (1 + 1e-6)}))).feasible
                assert not solve(LTFL(one.with_(**{name: least * (1 - 1e-6)}))).feasible


# ------------------------------------------------------------------ limits and interrupts


@pytest.mark.parametrize("method", METHODS)
def test_time_limit_returns_the_incumbent(method: str) -> None:
    asked = loose()
    result = solve(asked, method=method, time_limit=1e-9, **options(method))
    assert result.status == "time_limit"
    assert result.decision is not None
    assert result.lower_bound is None
    assert result.problem.evaluate(result.decision).feasible() == (result.value is not None)
    assert "time limit of 1e-09 s" in result.message
    assert result.seconds > 0.0


def test_a_generous_time_limit_changes_nothing() -> None:
    assert solve(problem(), time_limit=1e6).value == solve(problem()).value
    assert solve(problem(), method="fixed", time_limit=1e6).status == solve(problem(), method="fixed").status


@pytest.mark.parametrize("method", ["bayesian", "alternating", "uniform", "random"])
def test_interrupt_from_the_callback_keeps_the_incumbent(method: str) -> None:
    told = []

    def callback(progress: Any) -> None:
        told.append(progress)
        if method != "bayesian" or len(told) == 2:
            raise KeyboardInterrupt

    result = solve(loose(), method=method, callback=callback, **options(method))
    assert result.status == "interrupted"
    assert result.decision is not None
    assert len(told) == (2 if method == "bayesian" else 1)
    assert result.n_evaluations == len(told)
    assert [p.n_evaluations for p in told] == list(range(1, len(told) + 1))
    feasible = [p.value for p in told if p.best is not None]
    assert result.value == (min(feasible) if feasible else None)
    assert told[-1].best == result.value


@pytest.mark.parametrize("method", ["exact", *RESTRICTED])
def test_interrupt_from_the_keyboard(monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    def interrupt(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(dispatch, "minimize_sums", interrupt)
    result = solve(loose(), method=method)
    assert result.status == "interrupted"
    assert result.decision is not None
    assert result.lower_bound is None
    assert result.value is not None


@pytest.mark.parametrize("error", [RuntimeError("mine"), ValueError("mine"), InputError("mine")])
@pytest.mark.parametrize("method", ["bayesian", "alternating", "uniform", "random"])
def test_other_exceptions_of_a_callback_come_through(method: str, error: Exception) -> None:
    def callback(progress: Any) -> None:
        raise error

    with pytest.raises(type(error), match=r"^mine$") as caught:
        solve(problem(), method=method, callback=callback, **options(method))
    assert caught.value is error


def test_callback_sees_what_is_best() -> None:
    told: list[Any] = []
    result = solve(loose(), method="bayesian", iterations=2, initial=6, callback=told.append)
    best = np.inf
    for number, progress in enumerate(told, start=1):
        assert progress.n_evaluations == number
        best = min(best, progress.value)
        assert progress.best is None or progress.best >= best
    assert told[-1].best == result.value
    assert [h["value"] for h in result.history] == [p.value for p in told]


# ------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"method": "exat"}, "unknown 'exat'; did you mean 'exact'"),
        ({"method": "nothing like it"}, "known: .*alternating"),
        ({"method": ""}, "method: unknown ''"),
        ({"gap": 0.0}, "gap"),
        ({"gap": 1.0}, "gap"),
        ({"gap": -1e-3}, "gap"),
        ({"gap": math.nan}, "gap"),
        ({"seed": -1}, "seed"),
        ({"seed": 1.5}, "seed"),
        ({"seed": "1"}, "seed"),
        ({"seed": True}, "seed"),
        ({"time_limit": 0.0}, "time_limit"),
        ({"time_limit": -1}, "time_limit"),
        ({"time_limit": math.nan}, "time_limit"),
        ({"method": "exact", "iterations": 3}, "method 'exact': unknown option 'iterations'"),
        ({"method": "uniform", "iterations": 3}, "method 'uniform': unknown option 'iterations'"),
        ({"method": "fixed", "nonsense": 3}, "method 'fixed': unknown option 'nonsense'"),
        ({"method": "alternating", "iterations": 3}, "method 'alternating': .*'iterations'"),
        ({"method": "bayesian", "iteration": 3}, "method 'bayesian': .*'iteration'"),
        ({"method": "bayesian", "iterations": -1}, "iterations"),
        ({"method": "bayesian", "initial": 0}, "initial"),
        ({"method": "bayesian", "backend": "botroch"}, "did you mean 'botorch'"),
        ({"method": "bayesian", "mode": "jonit"}, "did you mean 'joint'"),
        ({"method": "alternating", "max_iterations": 0}, "max_iterations"),
        ({"method": "alternating", "tolerance": -1.0}, "tolerance"),
        ({"method": "alternating", "tolerance": math.nan}, "tolerance"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        solve(problem(2), **arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        {"gap": "1e-6"},
        {"time_limit": "5"},
        {"method": None},
        {"method": "bayesian", "iterations": "5"},
        {"method": "bayesian", "iterations": 2.5},
        {"method": "alternating", "max_iterations": 2.5},
    ],
)
def test_arguments_of_another_type(arguments: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        solve(problem(2), **arguments)


def test_something_that_is_no_problem() -> None:
    with pytest.raises(InputError, match="expected a Problem, got System"):
        solve(systems.ltfl(2))  # type: ignore[arg-type]


class Bare(Problem):
    """A problem without any structure."""

    name = "bare"

    def __init__(self, system: System) -> None:
        self.system = system

    @property
    def variables(self) -> tuple[Variable, ...]:
        return ()

    def evaluate(self, decision: Decision) -> Evaluation:
        raise AssertionError

    def capabilities(self) -> Capabilities:
        return Capabilities()


@pytest.mark.parametrize("method", ["exact", "bayesian", "alternating"])
def test_a_problem_without_structure(method: str) -> None:
    bare = Bare(systems.ltfl(2))
    assert list(methods(bare)) == ["nlp"]
    with pytest.raises(InputError, match="lacks the structure"):
        solve(bare, method=method)


# ------------------------------------------------------------------ nothing is changed


@pytest.mark.parametrize("method", METHODS)
def test_the_problem_is_not_changed(method: str) -> None:
    asked = problem(3)
    before = asked.system.to_dict(), asked.settings()
    ranges = [(v.lower.copy(), v.upper.copy()) for v in asked.variables]
    result = solve(asked, method=method, **options(method))
    assert (asked.system.to_dict(), asked.settings()) == before
    for variable, (low, high) in zip(asked.variables, ranges, strict=True):
        assert np.array_equal(variable.lower, low)
        assert np.array_equal(variable.upper, high)
    assert result.problem.system is asked.system


def test_results_are_frozen() -> None:
    result = solve(problem(3))
    for field in dataclasses.fields(result):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(result, field.name, None)
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.certificate.kind = "none"  # type: ignore[misc]
    assert result.decision is not None
    with pytest.raises(TypeError):
        result.decision["bits"] = np.ones(3)  # type: ignore[index]
    for values in result.decision.values():
        with pytest.raises(ValueError):
            values[0] = 1.0

"""Local search with derivatives: known optima, certified bounds, whole numbers, bad functions."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import jointopt as jo
from jointopt.decision import Decision
from jointopt.errors import InputError
from jointopt.models._array import namespace
from jointopt.problem import Evaluation, Problem, Variable
from jointopt.problems import DESIGNS
from jointopt.solvers import nlp as module
from jointopt.solvers.monitor import Monitor, StopSearch
from jointopt.solvers.nlp import Cube, Derivatives, improve, nlp

SYSTEM = jo.systems.ltfl(3, 0)


class Plain(Problem):
    """A problem made of functions: objective(x) and {name: (slack(x), scale)}."""

    name = "plain"
    system = SYSTEM

    def __init__(self, variables, objective, constraints=None):
        self._variables, self.objective, self.constraints = tuple(variables), objective, constraints or {}

    @property
    def variables(self):
        return self._variables

    def evaluate(self, decision):
        value = self.objective(decision)
        made = {name: (slack(decision), np.float64(scale)) for name, (slack, scale) in self.constraints.items()}
        slack = {name: pair[0] for name, pair in made.items()}
        scale = {name: pair[1] for name, pair in made.items()}
        return Evaluation(value, {}, slack, scale, {})

    def restrict(self, **ranges):
        changed = [
            v
            if v.name not in ranges
            else Variable(v.name, np.array(ranges[v.name]), np.array(ranges[v.name]), kind=v.kind)
            for v in self._variables
        ]
        return Plain(changed, self.objective, self.constraints)


def total(x):
    return namespace(x).sum(x, axis=-1)


def found(problem, **options):
    monitor = Monitor(problem)
    message = nlp(problem, monitor, seed=0, **options)
    return monitor, message


def real(name, low, high, size=3, **options):
    return Variable(name, np.full(size, float(low)), np.full(size, float(high)), **options)


@pytest.mark.parametrize("backend", module.BACKENDS)
def test_projection_onto_a_budget(backend):
    """Min sum (x - c)^2 with sum x <= 1 is c - (sum c - 1)/3, on any scale."""
    if backend == "ipopt":
        pytest.importorskip("casadi")
    c = np.array([0.9, 0.5, 0.7])
    problem = Plain(
        [real("x", 0, 1e6)],
        lambda d: total((d["x"] / 1e6 - namespace(d["x"]).asarray(c)) ** 2),
        {"budget": (lambda d: 1e6 - total(d["x"]), 1e6)},
    )
    monitor, message = found(problem, starts=3, backend=backend)
    expected = c - (c.sum() - 1.0) / 3.0
    assert monitor.least_violation == 0.0
    np.testing.assert_allclose(monitor.best["x"] / 1e6, expected, atol=2e-4 if backend == "trust-constr" else 1e-6)
    assert "3 of 3 starts" in message
    assert "traced" not in message


def test_logarithmic_scale_spans_orders_of_magnitude():
    target = np.array([3e-6, 2e-2, 5.0])
    problem = Plain([real("x", 1e-7, 10)], lambda d: total((namespace(d["x"]).asarray(target) / d["x"] - 1.0) ** 2))
    assert Cube(problem).logarithmic.all()
    np.testing.assert_allclose(found(problem, starts=2)[0].best["x"], target, rtol=1e-4)


def test_cube_and_back():
    problem = Plain([real("x", 1e-3, 1e3), real("n", 2, 9, kind="integer"), real("y", -5, 7), real("f", 4, 4)], None)
    cube = Cube(problem)
    assert cube.size == 9
    point = np.random.default_rng(0).uniform(size=9)
    np.testing.assert_allclose(cube.point(cube.values(point)), point, atol=1e-12)
    decision = cube.decision(cube.rounded(point))
    assert np.array_equal(decision["n"], np.rint(decision["n"]))
    assert np.array_equal(decision["f"], [4.0, 4.0, 4.0])
    import torch

    tensors = cube.tensors(torch.from_numpy(cube.rounded(point)[None]))
    for name in decision:
        np.testing.assert_allclose(tensors[name][0].numpy(), decision[name], rtol=1e-12)


@pytest.mark.parametrize("design", ["ltfl", "feel", "coinference", "coinference-layers"])
def test_derivatives_agree_with_differences_and_rows_are_grouped(design):
    system = {"ltfl": lambda: jo.systems.ltfl(4, 0), "feel": lambda: jo.systems.feel(4, 0)}.get(design)
    problem = DESIGNS[design](system() if system else DESIGNS[design].sample(seed=0))
    cube = Cube(problem)
    functions = Derivatives(cube)
    point = np.where(cube.whole, 1.0, np.random.default_rng(0).uniform(0.3, 0.7, cube.size))
    at = functions.at(point)
    assert functions.confirm(point)
    for i in np.flatnonzero(~cube.whole):
        step = np.zeros(cube.size)
        step[i] = 1e-6
        above, below = functions.at(point + step), functions.at(point - step)
        slope = (above.objective - below.objective) / 2e-6
        assert at.gradient[i] == pytest.approx(slope, rel=1e-5, abs=1e-7 * max(1.0, abs(at.objective)))
        slopes = (above.constraints - below.constraints) / 2e-6
        np.testing.assert_allclose(at.jacobian[:, i], slopes, rtol=1e-5, atol=1e-7)
    if design == "ltfl":
        # objective, delays and energies, whatever the number of devices; the contraction is constant without zeta_2
        assert len(functions.groups) == 3


def test_a_pattern_missed_by_trial_is_corrected():
    """The second variable acts at its upper end only, where no trial looked."""
    problem = Plain(
        [real("x", 0, 1, 2)],
        lambda d: total(d["x"]) * 0.0 + total(namespace(d["x"]).maximum(d["x"] - 0.97, d["x"] * 0.0)),
        {"first": (lambda d: 1.0 - d["x"][..., 0], 1.0), "second": (lambda d: 1.0 - d["x"][..., 1] ** 2, 1.0)},
    )
    functions = Derivatives(Cube(problem))
    functions.pattern = np.array([[True, False], [True, False], [False, True]])
    point = np.array([0.98, 0.99])
    assert not functions.confirm(point)
    assert functions.confirm(point)
    np.testing.assert_allclose(functions.at(point).gradient, [1.0, 1.0])


@pytest.mark.parametrize("backend", ["slsqp", "ipopt"])
@pytest.mark.parametrize("fading", ["rayleigh", "none"])
def test_ltfl_within_a_percent_of_the_certified_bound(backend, fading):
    if backend == "ipopt":
        pytest.importorskip("casadi")
    system = jo.systems.ltfl(3, 1)
    problem = DESIGNS["ltfl"](system.replace(radio=system.radio.replace(fading=fading)))
    exact = jo.solve(problem, method="exact")
    monitor, message = found(problem, starts=2, backend=backend)
    assert monitor.least_violation == 0.0
    assert exact.lower_bound <= monitor.best_value * (1 + 1e-9)
    assert monitor.best_value <= 1.01 * exact.value
    assert np.array_equal(monitor.best["bits"], np.rint(monitor.best["bits"]))
    assert ("rayleigh_rate" in message) == (backend == "ipopt" and fading == "rayleigh")


def test_feel_of_two_clients_finds_whom_to_leave_out():
    problem = DESIGNS["feel"](jo.systems.feel(2, 0))
    exact = jo.solve(problem, method="exact")
    monitor, message = found(problem, starts=1)
    assert exact.lower_bound <= monitor.best_value * (1 + 1e-9) <= 1.01 * exact.value
    assert "all 4 combinations" in message


def test_coinference_chooses_the_split():
    problem = DESIGNS["coinference"](DESIGNS["coinference"].sample(seed=0))
    exact = jo.solve(problem, method="exact")
    monitor, _ = found(problem, starts=1, backend="slsqp")
    assert exact.value * (1 - 1e-6) <= monitor.best_value <= 1.001 * exact.value


@pytest.mark.parametrize("few", [True, False])
def test_whole_numbers_against_brute_force(few, monkeypatch):
    """A knapsack of two prices with a real variable in between; enumerated, or relaxed and moved."""
    if not few:
        monkeypatch.setattr(module, "ENUMERATED", 0)
    worth, weight = np.array([5.0, 4.0, 3.0]), np.array([4.0, 3.0, 2.0])

    def value(d):
        xp = namespace(d["n"])
        return -total(d["n"] * xp.asarray(worth)) + total((d["y"] - 0.3) ** 2)

    def room(d):
        return 10.0 - total(d["n"] * namespace(d["n"]).asarray(weight)) - d["y"][..., 0]

    problem = Plain([real("n", 0, 2, kind="integer"), real("y", 0, 1, 1, axis="common")], value, {"room": (room, 10.0)})
    best = min(
        (-float(worth @ n) + (min(0.3, 10.0 - float(weight @ n)) - 0.3) ** 2, n)
        for n in itertools.product(range(3), repeat=3)
        if weight @ n <= 10.0
    )
    monitor, _ = found(problem, starts=4)
    assert monitor.best_value == pytest.approx(best[0], abs=1e-6)


def test_the_same_seed_gives_the_same_search_and_starts_differ():
    wavy = Plain([real("x", 0, 1)], lambda d: total(namespace(d["x"]).cos(25.0 * d["x"]) + d["x"]))
    first, again = found(wavy, starts=8)[0], found(wavy, starts=8)[0]
    assert [h["value"] for h in first.history] == [h["value"] for h in again.history]
    assert len({round(h["value"], 6) for h in first.history}) > 3
    assert first.best_value <= found(wavy, starts=1)[0].best_value


def test_values_that_are_no_numbers_do_not_end_the_search():
    """The square root has no value on the left half, the middle start included."""
    problem = Plain([real("x", 0, 1, 1)], lambda d: total((namespace(d["x"]).sqrt(d["x"] - 0.6) - 0.5) ** 2), {})
    with np.errstate(invalid="ignore"):
        monitor, _ = found(problem, starts=8)
    assert monitor.best["x"][0] == pytest.approx(0.85, abs=1e-3)


def test_infeasible_problems_end_with_the_violation_known():
    problem = Plain([real("x", 0, 1)], lambda d: total(d["x"]), {"never": (lambda d: total(d["x"]) - 4.0, 1.0)})
    monitor, message = found(problem, starts=3)
    assert monitor.least_violation == pytest.approx(1.0, abs=1e-6)
    assert "0 of 3 starts" in message


def test_nothing_to_choose():
    problem = Plain([real("x", 2, 2)], lambda d: total(d["x"]))
    monitor, message = found(problem)
    assert monitor.best_value == 6.0
    assert "fixed" in message


def test_time_limit_keeps_what_was_seen():
    problem = DESIGNS["ltfl"](SYSTEM)
    monitor = Monitor(problem, time_limit=1e-6)
    with pytest.raises(StopSearch):
        nlp(problem, monitor, seed=0)
    assert monitor.best is not None


@pytest.mark.parametrize("backend", ["slsqp", "ipopt"])
def test_functions_that_cannot_be_differentiated_are_refused(backend):
    if backend == "ipopt":
        pytest.importorskip("casadi")
    problem = Plain([real("x", 0, 1)], lambda d: np.asarray(np.sin(np.array(d["x"].tolist()))).sum(axis=-1))
    with pytest.raises(InputError, match="torch"):
        found(problem, starts=1, backend=backend)


@pytest.mark.parametrize(
    ("options", "text"),
    [({"starts": 0}, "starts: 0"), ({"max_iterations": 1.5}, "max_iterations: 1.5"), ({"backend": "slsp"}, "slsqp")],
)
def test_bad_options(options, text):
    with pytest.raises(InputError, match=text):
        found(DESIGNS["ltfl"](SYSTEM), **options)


def test_improve_moves_only_what_it_is_asked_to():
    problem = DESIGNS["ltfl"](SYSTEM)
    start = jo.solve(problem, method="exact").decision
    worse = start.with_(pruning_ratio=np.minimum(start["pruning_ratio"] + 0.05, 0.9))
    better = improve(problem, worse, ("pruning_ratio",))
    assert np.array_equal(better["bits"], worse["bits"])
    assert np.array_equal(better["power"], worse["power"])
    before, after = problem.evaluate(worse), problem.evaluate(better)
    assert float(after.objective) < float(before.objective)
    assert after.feasible()
    assert isinstance(better, Decision)


def test_improve_keeps_variables_that_a_design_does_not_restrict():
    problem = DESIGNS["feel"](jo.systems.feel(3, 0))
    exact = jo.solve(problem, method="exact").decision
    assert exact is not None
    worse = exact.with_(pruning_ratio=np.where(exact["selected"] > 0.5, exact["pruning_ratio"] + 0.02, 0.0))
    better = improve(problem, worse, ("pruning_ratio", "frequency"))
    for name in ("selected", "bandwidth", "power"):
        assert np.array_equal(better[name], worse[name])
    assert float(problem.evaluate(better).objective) < float(problem.evaluate(worse).objective)
    assert problem.evaluate(better).feasible()


def test_functions_of_numpy_are_differentiated_too():
    problem = Plain(
        [real("x", 0.1, 3)],
        lambda d: np.sum((np.exp(d["x"]) - 2.0) ** 2 + np.where(d["x"] > 2.0, np.maximum(d["x"], 1.0), 0.0), axis=-1),
        {"room": (lambda d: 9.0 - np.sum(np.square(d["x"]) + np.log1p(d["x"]) / np.ones(3), axis=-1), 9.0)},
    )
    np.testing.assert_allclose(found(problem, starts=2)[0].best["x"], np.log(2.0), rtol=1e-4)

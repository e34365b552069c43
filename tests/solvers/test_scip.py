"""Tracing into SCIP: every operation against NumPy, small problems against certified answers."""

from __future__ import annotations

import numpy as np
import pytest

import jointopt as jo
from jointopt.arithmetic.elementwise import Elementwise
from jointopt.decision import Decision
from jointopt.errors import InputError
from jointopt.models._array import namespace
from jointopt.problem import Evaluation, Problem, Variable
from jointopt.problems import DESIGNS

pyscipopt = pytest.importorskip("pyscipopt")

from jointopt.solvers.scip import ScipKind, minimize_scip  # noqa: E402

SYSTEM = jo.systems.ltfl(2, 0)


class Plain(Problem):
    """An objective and constraints of two variables, whole or real."""

    name = "plain"
    system = SYSTEM

    def __init__(self, variables, objective, constraints=None):
        self._variables, self.objective, self.constraints = tuple(variables), objective, constraints or {}

    @property
    def variables(self):
        return self._variables

    def evaluate(self, decision):
        slack = {name: function(decision) for name, (function, _) in self.constraints.items()}
        scale = {name: np.float64(size) for name, (_, size) in self.constraints.items()}
        return Evaluation(self.objective(decision), {}, slack, scale, {})


def variable(name, low, high, kind="real"):
    return Variable(name, np.full(2, float(low)), np.full(2, float(high)), kind=kind)


def total(x):
    return namespace(x).sum(x, axis=-1)


FUNCTIONS = {
    "rational": lambda x, y: (x * y - 2.0 * x) / (1.0 + y) + 1.0 / x,
    "powers": lambda x, y: x**3 - y**2 + x**-0.5 + 2.0**y + x**y,
    "elementary": lambda x, y: np.exp(-x) + np.log(y) + np.log1p(x) + np.expm1(0.1 * y) + np.sqrt(x * y) + np.log2(y),
    "kinks": lambda x, y: np.maximum(x, y) - np.minimum(2.0 * x, 1.5) + abs(x - y) + np.clip(y, 0.9, 1.1),
    "choice": lambda x, y: np.where(x > y, x * x, -y) + np.where(x <= 1.0, y, 3.0),
    "logic": lambda x, y: np.where((x > 1.0) & (y > 1.0), 1.0, 0.0) + np.where((x < 0.6) | ~(y < 1.9), x, 2.0),
    "rounding": lambda x, y: np.floor(2.3 * x) + np.ceil(y) + np.round(1.7 * x * y),
    "decided": lambda x, y: np.where(x > 0.1, x, np.inf) + np.maximum(x, -1.0) + np.minimum(y, 100.0),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_operations_hold_at_points(name):
    """At fixed variables SCIP can give only one value: the function's, within its stated range."""
    function = FUNCTIONS[name]
    for point in ([0.7, 1.3], [1.8, 0.8], [0.55, 1.95]):
        model = pyscipopt.Model()
        model.hideOutput()
        kind = ScipKind(model)
        elements = [np.array([kind.variable(0.5, 2.0, "real")], dtype=object) for _ in range(2)]
        x, y = (Elementwise(e, kind) for e in elements)
        for element, value in zip((x, y), point, strict=True):
            model.addCons(element.values[0].expression == value)
        out = function(x, y).values[0]
        expected = float(function(np.array(point[:1]), np.array(point[1:]))[0])
        assert out.low - 1e-9 <= expected <= out.high + 1e-9
        held = model.addVar(lb=None)
        model.addCons(held == out.expression)
        for sense in ("minimize", "maximize"):
            model.setObjective(held, sense)
            model.optimize()
            assert model.getStatus() == "optimal"
            assert model.getObjVal() == pytest.approx(expected, abs=2e-5)
            model.freeTransform()


def test_ranges_hold_the_values():
    model = pyscipopt.Model()
    kind = ScipKind(model)
    rng = np.random.default_rng(0)
    x, y = (Elementwise(np.array([kind.variable(0.5, 2.0, "real")], dtype=object), kind) for _ in range(2))
    a, b = rng.uniform(0.5, 2.0, (2, 300))
    for name, function in FUNCTIONS.items():
        out = function(x, y).values[0]
        values = function(a, b)
        assert np.all((out.low - 1e-9 <= values) & (values <= out.high + 1e-9)), name


def test_a_nonconvex_minimum_on_an_engineers_scale():
    """Two wells, the deeper one at x = 0.9e6; the constraint forbids its bottom."""
    problem = Plain(
        [variable("x", 0, 1e6)],
        lambda d: total(((d["x"] / 1e6 - 0.2) ** 2) * ((d["x"] / 1e6 - 0.9) ** 2) * 1e5 - 300.0 * d["x"] / 1e6),
        {"most": (lambda d: 0.85e6 - d["x"], 1e6)},
    )
    grid = np.linspace(0.0, 0.85, 200_001)
    expected = 2.0 * np.min(1e5 * (grid - 0.2) ** 2 * (grid - 0.9) ** 2 - 300.0 * grid)
    decision, value, bound, status = minimize_scip(problem, time_limit=20, gap=1e-6)
    assert status in ("optimal", "gaplimit")
    assert value == pytest.approx(expected, rel=1e-5)
    assert bound <= expected + 1e-4 * abs(expected)
    assert bound >= expected - 1e-4 * abs(expected)
    assert problem.evaluate(decision).violation() <= 1e-5


def test_whole_numbers_and_switches():
    """Binary x integer x real: brute force over what is whole, a grid over the rest."""

    def objective(d):
        xp = namespace(d["a"])
        taken = d["a"] > 0.5
        cost = xp.where(taken, 3.0 + (d["y"] - 0.25) ** 2 * d["n"], 10.0 / d["n"])
        return total(cost)

    problem = Plain(
        [variable("a", 0, 1, "binary"), variable("n", 1, 4, "integer"), variable("y", 0, 1)],
        objective,
        {"few": (lambda d: 5.0 - total(d["n"]), 5.0), "one": (lambda d: 1.0 - total(d["a"]), 1.0)},
    )
    # one is taken at 3, the other one gets 4 of the 5
    decision, value, bound, status = minimize_scip(problem, time_limit=20)
    assert status in ("optimal", "gaplimit")
    assert value == pytest.approx(3.0 + 10.0 / 4.0, abs=1e-4)
    assert bound == pytest.approx(5.5, abs=1e-2)
    assert decision["a"].sum() == 1.0
    assert np.array_equal(decision["n"], np.rint(decision["n"]))


def test_an_infinite_choice_is_never_made():
    problem = Plain(
        [variable("a", 0, 1, "binary"), variable("x", 0, 1)],
        lambda d: namespace(d["a"]).where(total(d["a"]) <= 0.0, np.inf, total(d["a"] * (1.0 + d["x"])) / total(d["a"])),
    )
    decision, value, bound, _ = minimize_scip(problem, time_limit=20)
    assert decision["a"].sum() >= 1.0
    assert value == pytest.approx(1.0, abs=1e-4)
    assert bound <= 1.0 + 1e-5


def test_infeasible_is_an_answer():
    problem = Plain([variable("x", 0, 1)], lambda d: total(d["x"]), {"never": (lambda d: total(d["x"]) - 3.0, 1.0)})
    decision, value, _, status = minimize_scip(problem, time_limit=20)
    assert (decision, value, status) == (None, None, "infeasible")


def test_ltfl_without_fading_agrees_with_the_certificate():
    system = jo.systems.ltfl(1, 0)
    problem = DESIGNS["ltfl"](system.replace(radio=system.radio.replace(fading="none")))
    exact = jo.solve(problem, method="exact")
    decision, value, bound, _ = minimize_scip(problem, time_limit=5, gap=1e-3)
    assert problem.evaluate(decision).violation() <= 1e-5
    assert bound <= exact.value * (1 + 1e-5)
    assert exact.lower_bound <= value * (1 + 1e-5)
    assert value <= exact.value * (1 + 2e-3)
    assert bound >= exact.value * (1 - 1e-2)


def test_feel_of_two_clients_agrees_with_the_certificate():
    problem = DESIGNS["feel"](jo.systems.feel(2, 0))
    exact = jo.solve(problem, method="exact")
    decision, value, bound, _ = minimize_scip(problem, time_limit=15, gap=1e-3)
    assert problem.evaluate(decision).violation() <= 1e-5
    assert value == pytest.approx(exact.value, rel=2e-3)
    assert bound <= exact.value * (1 + 1e-5)
    assert bound >= 0.0
    np.testing.assert_array_equal(decision["selected"], exact.decision["selected"])


def test_coinference_at_a_split_agrees_with_the_certificate():
    problem = DESIGNS["coinference"](DESIGNS["coinference"].sample(seed=0))
    exact = jo.solve(problem, method="exact")
    narrow = problem.restrict(split=exact.decision["split"])
    _, value, bound, _ = minimize_scip(narrow, time_limit=15)
    assert value == pytest.approx(exact.value, rel=1e-4)
    assert bound <= exact.value * (1 + 1e-5)


def test_what_scip_lacks_is_named():
    with pytest.raises(InputError, match="rayleigh_rate: SCIP"):
        minimize_scip(DESIGNS["ltfl"](SYSTEM))
    with pytest.raises(InputError, match="arctan: SCIP"):
        minimize_scip(Plain([variable("x", 0, 1)], lambda d: total(np.arctan(d["x"]))))
    with pytest.raises(InputError, match="no value"):
        minimize_scip(Plain([variable("x", 0, 1)], lambda d: total(d["x"] * np.asarray(d["x"]))))


@pytest.mark.parametrize("options", [{"time_limit": 0.0}, {"gap": 0}, {"seed": -1}])
def test_bad_options(options):
    with pytest.raises(InputError, match=next(iter(options))):
        minimize_scip(Plain([variable("x", 0, 1)], lambda d: total(d["x"])), **options)


def test_a_decision_comes_back_within_its_bounds():
    problem = Plain([variable("x", 0.1, 0.3)], lambda d: -total(d["x"]))
    decision, value, bound, status = minimize_scip(problem)
    assert isinstance(decision, Decision)
    assert status == "optimal"
    np.testing.assert_array_equal(decision["x"], [0.3, 0.3])
    assert value == pytest.approx(-0.6)
    assert bound == pytest.approx(-0.6)

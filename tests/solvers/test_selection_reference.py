"""Which units to take, on a real design: against solvers that know nothing of its structure."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

import jointopt as jo
from jointopt.problems.feel import FEEL

SAME = 1e-6
"""Relative difference of values that counts as none."""


def checked(problem: FEEL, gap: float) -> tuple[float, float]:
    """Value and bound of the exact solver, its decision judged by the problem."""
    result = jo.solve(problem, gap=gap)
    assert result.status == "optimal"
    assert result.value is not None and result.lower_bound is not None and result.decision is not None
    evaluation = problem.evaluate(result.decision)
    assert evaluation.feasible()
    assert float(evaluation.objective) == result.value
    assert 0.0 <= result.value - result.lower_bound <= gap * result.value
    return result.value, result.lower_bound


@pytest.mark.parametrize(
    ("clients", "ranges"),
    [(2, {}), (2, {"pruning_ratio": 0.25}), (4, {"pruning_ratio": 0.2}), (6, {"pruning_ratio": 0.1})],
)
def test_value_and_bound_agree_with_scip(clients, ranges):
    pytest.importorskip("pyscipopt")
    from jointopt.solvers.scip import minimize_scip

    problem = FEEL(jo.systems.feel(clients, 0))
    problem = problem.restrict(**ranges) if ranges else problem
    value, lower = checked(problem, gap=1e-4)
    _, other, bound, status = minimize_scip(problem, time_limit=20.0, gap=1e-3)
    assert other is not None and bound is not None
    assert status in ("optimal", "gaplimit")
    # SCIP may use 1e-6 of each limit more than there is
    assert value <= other * (1.0 + 10.0 * SAME)
    assert lower <= other * (1.0 + 10.0 * SAME)
    assert bound <= value * (1.0 + SAME)
    # both have closed: they speak of the same optimum
    assert value - bound <= 1.1e-3 * value


@pytest.mark.parametrize("gap", [1e-2, 5e-3, 1e-4])
@pytest.mark.parametrize(("clients", "seed"), [(6, 0), (5, 1)])
def test_never_worse_than_ipopt_on_every_selection(clients, seed, gap):
    pytest.importorskip("casadi")
    value, lower = checked(FEEL(jo.systems.feel(clients, seed)), gap=gap)
    other = every_selection(clients, seed)
    # for one selection the problem is convex: what IPOPT finds is the optimum, whatever gap was asked of us
    assert value == pytest.approx(other, rel=SAME)
    assert lower <= other * (1.0 + SAME)


@cache
def every_selection(clients: int, seed: int) -> float:
    """Least value over all selections, each solved by IPOPT."""
    result = jo.solve(FEEL(jo.systems.feel(clients, seed)), method="nlp", backend="ipopt", starts=1)
    assert result.value is not None and f"all {2**clients} combinations" in result.message
    return result.value


@pytest.mark.parametrize("seed", range(3))
def test_a_loose_gap_leaves_the_best_selection_solved_to_the_end(seed):
    problem = FEEL(jo.systems.feel(12, seed))
    result = jo.solve(problem, gap=2e-2)
    assert result.value is not None and result.decision is not None
    fixed, _ = checked(problem.restrict(selected=np.array(result.decision["selected"])), gap=1e-7)
    assert result.value == pytest.approx(fixed, rel=2e-7)

"""Results stand up to being recomputed; results that were tampered with do not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jointopt as jo
from jointopt import verification
from jointopt.decision import Decision
from jointopt.errors import InputError, VerificationError
from jointopt.models._array import namespace
from jointopt.problem import Evaluation, Leaves, Problem, SelectionTree, SharedTree, Variable
from jointopt.problems import DESIGNS, LTFL
from jointopt.problems.declared import DeclaredProblem
from jointopt.problems.pooled import PooledLTFL
from jointopt.problems.terms import each, total, worst
from jointopt.result import Result
from jointopt.solvers import exact as exact_solver
from jointopt.study import load_result
from jointopt.verification import Verification, verify, verify_saved

SIZES = {
    "ltfl": 5,
    "ltfl-pool": 3,
    "feel": 6,
    "feddpq": 3,
    "coinference": 3,
    "coinference-layers": 1,
    "aerial": 4,
    "aerial-trajectory": 3,
    "ratio-bandwidth": 4,
    "ratio-bandwidth-selection": 5,
    "time-triggered": 5,
    "ratio-error": 3,
    "hierarchical": 5,
}
# gaps that need no local search, which takes seconds and says nothing about what is checked here
GAPS = {"feddpq": 1e-2, "ratio-bandwidth-selection": 1e-2, "time-triggered": 2e-2, "ratio-error": 3e-2}
# for the same reason: a second and more each, dozens of seconds in all
LEFT_OUT = {name: {"nlp"} for name in SIZES if name not in ("ltfl", "ltfl-pool", "feel", "coinference")}
LEFT_OUT["feddpq"] |= {"bayesian", "alternating"}
SHORT: dict[str, dict[str, Any]] = {
    "bayesian": {"iterations": 2, "initial": 4},
    "nlp": {"starts": 1, "time_limit": 1.0},
    "alternating": {"max_iterations": 3},
}


def design(name: str, seed: int = 0, **changes: Any) -> Problem:
    kind = DESIGNS[name]
    made: Problem = kind(kind.sample(devices=SIZES[name], seed=seed).with_(**changes))
    return made


def declared(system: Any, **changes: Any) -> DeclaredProblem:
    def model(s: Any, x: Any) -> dict[str, Any]:
        xp = namespace(x.a, x.b)
        loss = xp.square(x.a - 0.3) + xp.square(x.b - 0.6) + 0.5 * x.a * x.b
        return {"loss": loss, "use": x.a + x.b, "gain": 0.5 + x.a + x.b, "odd": x.a * x.b, "spread": x.a - 0.2 * x.b}

    words: dict[str, Any] = {
        "variables": [Variable("a", 0.0, 1.0), Variable("b", 0.0, 1.0)],
        "model": model,
        "objective": total("loss"),
        "constraints": {"use": total("use") <= 0.5 * len(system)},
    }
    return DeclaredProblem(system, **{**words, **changes})


def shared(system: Any) -> DeclaredProblem:
    def model(s: Any, x: Any) -> dict[str, Any]:
        xp = namespace(x.a, x.level)
        return {"loss": xp.square(x.a - 0.3) + 0.1 * x.level, "above": x.a + x.level, "walked": x.a * x.steps}

    variables = [
        Variable("a", 0.0, 1.0),
        Variable("level", 0.0, 1.0, axis="common"),
        Variable("steps", 1, 4, kind="integer", axis="common"),
    ]
    return declared(
        system,
        variables=variables,
        model=model,
        constraints={"above": each("above") >= 0.6, "far": each("walked") >= 0.5},
    )


DECLARED: dict[str, Callable[[Any], DeclaredProblem]] = {
    "budget": declared,
    "free": lambda s: declared(s, constraints={}),
    "integers": lambda s: declared(
        s,
        variables=[Variable("a", 0, 3, kind="integer"), Variable("b", 0.0, 1.0)],
        constraints={"odd": each("odd") >= 0.1},
    ),
    "restricted": lambda s: declared(s).restrict(a=(0.1, 0.2)),
    "limited": lambda s: declared(s).limited(total={"use": 0.3 * len(s)}),
    "ratio": lambda s: declared(s, objective=total("loss") / total("gain"), constraints={}),
    "ratio with a budget": lambda s: declared(s, objective=total("loss") / total("gain")),
    "worst": lambda s: declared(s, objective=worst("odd"), constraints={"use": total("use") >= 0.9 * len(s)}),
    "shared": shared,
}


@cache
def solved(name: str) -> Result:
    """A certified result of each kind."""
    if name in DESIGNS:
        return jo.solve(design(name), gap=GAPS.get(name))
    if name == "ltfl dual":
        return jo.solve(coupled("gap"))
    if name == "pooled":
        return jo.solve(PooledLTFL(PooledLTFL.sample(devices=3, seed=0)), gap=1e-5)
    return jo.solve(DECLARED[name](jo.systems.ltfl(devices=3, seed=0)), gap=1e-3)


def coupled(objective: Any) -> LTFL:
    """A limit on A that binds."""
    system = jo.systems.ltfl(devices=5, seed=3)
    free = jo.solve(LTFL(system))
    assert free.evaluation is not None
    lost = float(np.asarray(free.evaluation.quantities["packet_error"]) @ system.weight)
    return LTFL(system.with_(gradient_slope=1.0 / (8.0 * 0.97 * lost)), objective=objective)


def names(found: Verification) -> set[str]:
    return {check.name for check in found.checks}


# What is right passes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DESIGNS)
def test_every_method_of_every_design_stands_up(name: str) -> None:
    problem = design(name, seed=1)
    for method in jo.methods(problem):
        if method in LEFT_OUT.get(name, ()):
            continue
        gap = {"gap": GAPS[name]} if name in GAPS and method not in SHORT else {}
        result = jo.solve(problem, method=method, **SHORT.get(method, {}), **gap)
        found = result.verify()
        assert found.complete or result.status in ("infeasible", "time_limit"), found.summary()
        assert found.value == (None if result.value is None else pytest.approx(result.value, rel=1e-9))
        if result.lower_bound is not None:
            assert found.lower_bound is not None and found.lower_bound >= result.lower_bound * (1 - 1e-9)
            assert any("mpmath" in check.arithmetic for check in found.checks)


@pytest.mark.parametrize("name", DECLARED)
def test_declared_problems_stand_up(name: str) -> None:
    result = solved(name)
    assert result.lower_bound is not None
    found = result.verify()
    assert found.complete and found.lower_bound is not None
    assert found.sampled == 3


@pytest.mark.parametrize("objective", ["gap", "bound"])
def test_a_limit_that_couples_the_devices(objective: str) -> None:
    result = jo.solve(coupled(objective))
    # the full bound grows without limit towards A = 1, so that the limit is never met on the way
    expected = {"caps on contraction"} if objective == "gap" else set()
    assert bool(result.certificate.caps) == bool(expected)
    assert {"leaves cover the range", *expected} <= names(result.verify())


def test_shared_budgets() -> None:
    found = solved("pooled").verify()
    assert found.complete and {"caps on bandwidth", "caps on energy"} <= names(found)


def test_without_leaves_a_fresh_search_reproduces_the_unit_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exact_solver, "LEAVES", 0)
    for problem in (design("ltfl"), coupled("gap"), declared(jo.systems.ltfl(devices=3, seed=0))):
        result = jo.solve(problem)
        assert result.certificate.leaves is None and result.lower_bound is not None
        assert "unit bounds against a fresh search" in names(result.verify())
        bounds = np.array(result.certificate.unit_bounds)
        bounds[1] *= 1.0 + 1e-3
        with pytest.raises(VerificationError, match=r"unit bounds against a fresh search.*unit 1"):
            replace(result, certificate=replace(result.certificate, unit_bounds=bounds)).verify()


def test_a_sample_of_many_devices() -> None:
    result = jo.solve(LTFL(jo.systems.ltfl(devices=60, seed=0)))
    found = result.verify(units=7)
    assert found.sampled == 7 and "sampled devices" in names(found)
    value = np.array(result.evaluation.quantities["delay"])  # type: ignore[union-attr]
    value[31] *= 1.0 + 1e-6
    with pytest.raises(VerificationError, match=r"quantities 'delay'\[device 31\]"):
        replace(result, evaluation=changed(result, quantities={"delay": value})).verify(units=7)


@pytest.mark.parametrize("name", ["ltfl", "feel", "coinference", "coinference-layers"])
def test_infeasible_results_stand_up(name: str) -> None:
    problem = design(name)
    key = "delay_budget" if name != "coinference" else "energy_budget"
    budget = np.array(getattr(problem.system.devices, key))
    budget[0] *= 1e-4
    if name == "feel":
        budget *= 1e-4
    result = jo.solve(problem.with_system(problem.system.with_(**{key: budget})))
    assert result.status == "infeasible" and result.infeasibility
    found = result.verify()
    assert found.complete and "devices in conflict" in names(found)


def test_limits_that_cannot_be_kept_stand_up() -> None:
    system = jo.systems.ltfl(devices=3, seed=0)
    single = jo.solve(declared(system, constraints={"use": total("gain") <= 1.0}))
    both = jo.solve(declared(system, constraints={"most": total("use") <= 1.0, "least": total("spread") >= 2.0}))
    pool = PooledLTFL(PooledLTFL.sample(devices=3, seed=0), energy_budget=1e-9)
    between = jo.solve(shared(system).limited(total={"loss": -1.0}))
    for result in (single, both, between, jo.solve(pool)):
        assert result.status == "infeasible" and result.infeasibility[0].device is None
        assert result.verify().complete


def test_conflicts_that_are_none_are_found_out() -> None:
    problem = design("ltfl")
    budget = np.array(problem.system.devices.delay_budget)
    budget[2] *= 1e-4
    result = jo.solve(problem.with_system(problem.system.with_(delay_budget=budget)))
    conflict = result.infeasibility[0]
    assert conflict.device == 2
    with pytest.raises(VerificationError, match=r"devices in conflict.*device 1 has a feasible decision"):
        replace(result, infeasibility=[replace(conflict, device=1)]).verify()
    relax = {**conflict.relax, "delay_budget": conflict.relax["delay_budget"] * 0.999}  # type: ignore[operator]
    with pytest.raises(VerificationError, match=r"relaxing delay_budget: .*device 2"):
        replace(result, infeasibility=[replace(conflict, relax=relax)]).verify()
    with pytest.raises(VerificationError, match="all budgets together"):
        replace(result, infeasibility=[replace(conflict, factor=0.99 * conflict.factor)]).verify()  # type: ignore[operator]


def test_a_time_limit_leaves_a_bound_that_stands_up() -> None:
    calls = []

    def stop(progress: Any) -> None:
        calls.append(progress)
        if len(calls) == 3:
            raise KeyboardInterrupt

    system = jo.systems.ltfl(devices=3, seed=0)
    for problem in (DESIGNS["feel"](jo.systems.feel(12, 4)), coupled("gap"), shared(system), declared(system)):
        calls.clear()
        result = jo.solve(problem, gap=1e-9, callback=stop)
        assert result.verify().status == result.status


@pytest.mark.parametrize("name", [*DESIGNS, "ltfl dual", "infeasible"])
def test_saved_results_stand_up(name: str, tmp_path: Path) -> None:
    result = solved(name) if name != "infeasible" else jo.solve(design("ltfl", delay_budget=np.full(5, 1e-9)))
    found = verify_saved(*load_result(result.save(tmp_path / "result.json")))
    # a file holds no tree over selections or shared variables
    branched = name in ("feel", "feddpq", "ratio-error")
    assert found.complete is not branched
    if result.lower_bound is not None and not branched:
        assert found.lower_bound is not None and found.lower_bound >= result.lower_bound * (1 - 1e-9)
    problem, decision, data = load_result(tmp_path / "result.json")
    wrong = {**data, "gap": 0.5}
    with pytest.raises(VerificationError, match="gap is"):
        verify_saved(problem, decision, wrong)
    if result.value is not None:
        for key, share in (("value", 1e-6), ("lower_bound", 1e-4)):
            if key == "lower_bound" and branched and (result.gap is None or result.gap > share):
                # nothing in the file contradicts it
                continue
            wrong = {**data, key: data[key] * (1 + share)}
            wrong["gap"] = max(0.0, wrong["value"] - wrong["lower_bound"]) / wrong["value"]
            with pytest.raises(VerificationError):
                verify_saved(problem, decision, wrong)


def test_interchangeable_clients_are_taken_in_order() -> None:
    system = jo.systems.feel(4, 2, tightness=1.5).take([0, 0, 0, 1, 1, 2, 3, 3])
    result = jo.solve(DESIGNS["feel"](system), gap=1e-7)
    tree = result.certificate.search
    kind = DESIGNS["feel"](system).capabilities().selection.kind
    assert np.unique(kind).size == 4 and np.any(tree.parent >= 0)
    assert result.verify().complete
    # with every client of its own kind the nodes that were left out are missing
    apart = [np.arange(8)]

    def alone(self: Any) -> Any:
        offered = original(self)
        return replace(offered, selection=replace(offered.selection, kind=apart[0]))

    original = DESIGNS["feel"].capabilities
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DESIGNS["feel"], "capabilities", alone)
        with pytest.raises(VerificationError, match=r"bound from its stored parts|random selections"):
            result.verify()


def test_the_tree_bounds_every_selection() -> None:
    """Brute force: no selection's dual bound at any of the tree's prices is needed to be below the stored bound."""
    result = solved("feel")
    tree, offered = result.certificate.search, result.problem.capabilities()
    limit, outer, mass = offered.sums.limits[1], offered.selection.outer, offered.selection.mass
    least = np.inf
    for number in range(1, 2**6):
        taken = np.array([number >> k & 1 for k in range(6)], dtype=bool)
        if tree.least[taken].sum() > limit:
            continue
        cost = tree.unit_bounds[:, taken].sum(axis=1) - tree.prices * limit
        least = min(least, float(np.max(outer.value(cost, mass[taken].sum()))))
    assert result.lower_bound <= least * (1 + 1e-12) <= result.value * (1 + 1e-9)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_intervals_within_leaves(seed: int) -> None:
    rng = np.random.default_rng(seed)
    size = int(rng.integers(1, 12))
    low = rng.integers(0, 8, size).astype(np.float64)
    leaves = Leaves(
        ("label", "x"),
        rng.integers(0, 2, size),
        np.stack([rng.integers(0, 2, size).astype(np.float64), low]),
        np.stack([np.zeros(size), low + rng.integers(0, 4, size)]),
        np.zeros(size),
    )
    unit, label, start = rng.integers(0, 2, 6), rng.integers(0, 2, 6).astype(np.float64), rng.integers(0, 8, 6)
    stop = start + rng.integers(0, 4, 6)
    found = verification._inside(unit, label, start.astype(np.float64), stop.astype(np.float64), leaves)
    for i in range(6):
        mine = (leaves.unit == unit[i]) & (leaves.low[0] == label[i])
        x = np.linspace(start[i], stop[i], 4 * int(stop[i] - start[i]) + 1)
        covered = [np.any(mine & (leaves.low[1] <= p) & (p <= leaves.high[1])) for p in x]
        # leaves that only touch one another are one
        assert not found[i] or all(covered)
        if all(covered) and tidy(leaves, mine):
            assert found[i]


def tidy(leaves: Leaves, mine: Any) -> bool:
    """Whether leaves do not lie within one another, as none of a search do."""
    order = np.flatnonzero(mine)[np.lexsort((leaves.high[1, mine], leaves.low[1, mine]))]
    return bool(np.all(np.diff(leaves.high[1, order]) >= 0.0))


def test_volumes_are_exact_and_overlaps_seen() -> None:
    whole = np.array([False, True])
    cut = 0.1 + 0.2
    low, high = np.array([[0.0, cut, cut], [1.0, 1.0, 3.0]]), np.array([[cut, 1.0, 1.0], [4.0, 2.0, 4.0]])
    range_of = verification._volume(np.array([[0.0], [1.0]]), np.array([[1.0], [4.0]]), whole)
    assert range_of == 4 == verification._volume(low, high, whole)
    assert not verification._overlaps(low, high, whole)
    high[1, 1] = 3.0
    assert verification._overlaps(low, high, whole)
    assert verification._volume(low, np.nextafter(high, 0.0), whole) != range_of


def test_boxes_that_shrink_to_a_point_without_a_decision_are_empty() -> None:
    """Value and excess rise in both coordinates: only the low corner can be best, and it is not feasible."""
    problem = declared(
        jo.systems.ltfl(devices=1, seed=0),
        model=lambda s, x: {"loss": x.a + x.b, "burden": 1.0 + 0.2 * (x.a + x.b) + 0.1 * x.a * x.b},
        constraints={"burden": each("burden") <= 1.2},
    )
    boxes = problem.capabilities().boxes
    assert boxes is not None
    checker = verification._Verifier(jo.solve(problem), 10, 0, 50)
    low, high = np.array([[0.9], [0.9]]), np.array([[1.0], [1.0]])
    leaves = Leaves(boxes.names, np.zeros(1, dtype=np.int64), low, high, np.array([np.inf]))
    np.testing.assert_array_equal(checker._box_bounds(boxes, np.ones((1, 1)), leaves), np.inf)


def test_the_summary_reads() -> None:
    found = solved("ltfl").verify(digits=30)
    assert "verified in" in str(found) and "mpmath, 30 digits" in found.summary()
    assert found.digits == 30 and found.complete


@pytest.mark.parametrize(("name", "value"), [("units", 0), ("seed", -1), ("digits", 10), ("units", 2.5)])
def test_arguments_out_of_range_are_refused(name: str, value: Any) -> None:
    with pytest.raises(InputError, match=name):
        solved("ltfl").verify(**{name: value})


# What is wrong does not ----------------------------------------------------------------------------------------------


def changed(result: Result, **groups: dict[str, Any]) -> Evaluation:
    stored = result.evaluation
    assert stored is not None
    return replace(stored, **{group: {**getattr(stored, group), **values} for group, values in groups.items()})


def certificate(result: Result, **changes: Any) -> Result:
    return replace(result, certificate=replace(result.certificate, **changes))


def bumped(values: Any, at: int, share: float = 1e-6) -> Any:
    out = np.array(values, dtype=np.float64)
    out.flat[at] *= 1.0 + share
    return out


def without(leaves: Leaves, row: int) -> Leaves:
    keep = np.arange(len(leaves)) != row
    return Leaves(leaves.names, leaves.unit[keep], leaves.low[:, keep], leaves.high[:, keep], leaves.bound[keep])


def leaf_raised(leaves: Leaves) -> Leaves:
    """The lowest bound above 0 a little higher."""
    at = int(np.argmin(np.where(leaves.bound > 0.0, leaves.bound, np.inf)))
    return replace(leaves, bound=bumped(leaves.bound, at))


def node_raised(tree: SelectionTree) -> SelectionTree:
    """The childless node of least bound a little higher."""
    childless = np.setdiff1d(np.arange(len(tree)), tree.parent)
    return replace(tree, bound=bumped(tree.bound, int(childless[np.argmin(tree.bound[childless])]), 1e-4))


def pruned(tree: SelectionTree, node: int) -> SelectionTree:
    """A tree without a childless node."""
    keep = np.arange(len(tree)) != node
    parent = np.where(tree.parent > node, tree.parent - 1, tree.parent)[keep]
    return replace(
        tree,
        parent=parent,
        state=tree.state[keep],
        low=tree.low[keep],
        high=tree.high[keep],
        price=tree.price[keep],
        bound=tree.bound[keep],
    )


def part_removed(tree: SharedTree) -> SharedTree:
    keep = np.arange(tree.bound.size) != int(np.argmin(tree.bound))
    return SharedTree(
        tree.names,
        tree.low[keep],
        tree.high[keep],
        tree.bound[keep],
        tree.prices[keep],
        tree.multipliers[keep],
        tree.ratio[keep],
    )


def other_system(result: Result) -> Result:
    return replace(result, problem=design(result.problem.name, seed=9))


EVERYWHERE: dict[str, tuple[Callable[[Result], Result], str]] = {
    "value": (lambda r: replace(r, value=r.value * (1 + 1e-6)), "value|objective"),  # type: ignore[operator]
    "bound above the value": (lambda r: replace(r, lower_bound=r.value * (1 + 1e-6)), "weak duality"),  # type: ignore[operator]
    "bound without a certificate": (lambda r: certificate(r, kind="none"), "certificate is of kind 'none'"),
    "infeasible with a value": (lambda r: replace(r, status="infeasible"), "status 'infeasible' with a value"),
    "no value": (lambda r: replace(r, value=None), "without a value"),
    "optimal at a gap": (
        lambda r: replace(
            r, status="optimal", lower_bound=r.value * 0.9, certificate=replace(r.certificate, tolerance=1e-3)
        ),  # type: ignore[operator]
        "status 'optimal' at a gap",
    ),
    "optimal without a bound": (lambda r: replace(r, status="optimal", lower_bound=None), "without a lower bound"),
    "not finite": (lambda r: replace(r, lower_bound=-np.inf), "lower_bound is -inf"),
}


@pytest.mark.parametrize("what", EVERYWHERE)
@pytest.mark.parametrize("name", ["ltfl", "feel", "coinference-layers"])
def test_statements_that_do_not_fit_are_found_out(name: str, what: str) -> None:
    change, told = EVERYWHERE[what]
    with pytest.raises(VerificationError, match=told):
        change(solved(name)).verify()


UNBOUNDED: dict[str, Any] = {"lower_bound": None, "status": "feasible"}


def decision_moved(r: Result, share: float = 1e-6) -> Result:
    assert r.decision is not None
    name = "pruning_ratio" if "pruning_ratio" in r.decision else "a"
    return replace(r, decision=r.decision.with_(**{name: bumped(r.decision[name], 0, share)}))


def bit_halved(r: Result) -> Result:
    """Everything consistent but a bit too little."""
    assert r.decision is not None
    decision = r.decision.with_(bits=np.asarray(r.decision["bits"]) - 0.5)
    evaluation = r.problem.evaluate(decision)
    return replace(r, decision=decision, evaluation=evaluation, value=float(evaluation.objective), **UNBOUNDED)


def budget_broken(r: Result) -> Result:
    """A better value outside the budgets, told honestly."""
    assert r.decision is not None
    decision = r.decision.with_(pruning_ratio=0.98 * np.asarray(r.decision["pruning_ratio"]))
    evaluation = r.problem.evaluate(decision)
    return replace(
        r,
        decision=decision,
        evaluation=evaluation,
        value=float(evaluation.objective),
        lower_bound=None,
        status="feasible",
    )


SELECTED: list[tuple[str, str, Callable[[Result], Result], str]] = [
    ("ltfl", "decision", decision_moved, "off by"),
    ("coinference", "decision", decision_moved, "off by"),
    ("budget", "decision", decision_moved, "off by"),
    ("ltfl", "half a bit", bit_halved, "whole numbers of bits.*device 0"),
    ("ltfl", "budget", budget_broken, r"delay\[device 0\] is short of"),
    (
        "ltfl",
        "quantity",
        lambda r: replace(r, evaluation=changed(r, quantities={"delay": bumped(r.evaluation.quantities["delay"], 2)})),  # type: ignore[union-attr]
        r"stored quantities 'delay'\[device 2\]",
    ),
    (
        "feel",
        "slack",
        lambda r: replace(r, evaluation=changed(r, slack={"total_bandwidth": np.float64(1.0)})),
        "stored slack 'total_bandwidth'",
    ),
    ("ltfl", "system", other_system, "off by|not one of its problem"),
    ("feel", "system", other_system, "off by|not one of its problem"),
    ("coinference-layers", "system", other_system, "off by|not one of its problem"),
    # certificates of sums
    ("budget", "bound", lambda r: replace(r, lower_bound=r.lower_bound * (1 + 1e-6)), "bound from its stored parts"),  # type: ignore[operator]
    ("ltfl dual", "price", lambda r: certificate(r, prices={**r.certificate.prices, "gap": 1.001}), "prices: .*gap"),
    (
        "ltfl dual",
        "multiplier",
        lambda r: certificate(
            r,
            prices={"gap": 1.0, "contraction": -1.0},
            multipliers={"gap": 0.0, "contraction": -1.0},
        ),
        "multipliers of limits, at least 0.*contraction",
    ),
    (
        "ltfl dual",
        "multiplier of no limit",
        lambda r: certificate(r, multipliers={**r.certificate.multipliers, "gap": 0.1}),
        "multipliers of limits",
    ),
    (
        "ltfl dual",
        "cap",
        lambda r: certificate(r, caps={"contraction": bumped(r.certificate.caps["contraction"], 1, -1e-3)}),
        "caps on contraction.*unit 1",
    ),
    (
        "ltfl",
        "unit bound",
        lambda r: certificate(r, unit_bounds=bumped(r.certificate.unit_bounds, 3)),
        "the least of their leaves.*unit 3",
    ),
    (
        "budget",
        "unit bound",
        lambda r: certificate(r, unit_bounds=bumped(r.certificate.unit_bounds, 1)),
        "the least of their leaves.*unit 1",
    ),
    *(
        (
            name,
            "leaf",
            lambda r: certificate(r, leaves=without(r.certificate.leaves, len(r.certificate.leaves) // 2)),
            told,
        )
        for name, told in (
            ("ltfl", "leaves cover the range.*is not covered"),
            ("ltfl dual", "leaves cover the range.*is not covered"),
            ("budget", "leaves cover the range.*volume"),
            ("ratio", "leaves cover the range.*volume"),
            ("coinference", "leaves cover the range.*is not covered"),
        )
    ),
    *(
        (
            name,
            "leaf's bound",
            lambda r: certificate(r, leaves=leaf_raised(r.certificate.leaves)),
            "bounds of leaves",
        )
        for name in ("ltfl", "coinference")
    ),
    (
        "free",
        "leaf's bound",
        lambda r: certificate(r, leaves=replace(r.certificate.leaves, bound=r.certificate.leaves.bound + 0.01)),
        "bounds of leaves",
    ),
    (
        "ratio",
        "ratio",
        lambda r: certificate(r, ratio=r.certificate.ratio * 1.001),
        "prices: objective",
    ),
    # trees
    ("feel", "bound", lambda r: replace(r, lower_bound=r.value), "bound from its stored parts"),
    (
        "feel",
        "node's bound",
        lambda r: certificate(r, search=node_raised(r.certificate.search)),
        "bounds of nodes",
    ),
    (
        "feel",
        "root",
        lambda r: certificate(r, search=root_narrowed(r.certificate.search)),
        "are in no root",
    ),
    (
        "feel",
        "table",
        lambda r: certificate(
            r, search=replace(r.certificate.search, unit_bounds=r.certificate.search.unit_bounds * (1 + 1e-4))
        ),
        "unit bounds at the tree's prices",
    ),
    (
        "feel",
        "state of the roots",
        lambda r: certificate(r, search=decided_from_the_start(r.certificate.search)),
        "from the start without a reason",
    ),
    ("shared", "part", lambda r: certificate(r, search=part_removed(r.certificate.search)), "volume of its range"),
    (
        "shared",
        "part's bound",
        lambda r: certificate(r, search=replace(r.certificate.search, bound=r.certificate.search.bound + 0.01)),
        "bounds of parts",
    ),
    ("worst", "part", lambda r: certificate(r, search=part_removed(r.certificate.search)), "volume of its range"),
    # convex
    ("coinference-layers", "bound", lambda r: raised(r), "bound recomputed"),
]


def raised(r: Result) -> Result:
    """A worse decision with the bound of its own value."""
    assert r.decision is not None
    decision = r.decision.with_(pruning_ratio=np.minimum(np.asarray(r.decision["pruning_ratio"]) + 1e-3, 0.9))
    evaluation = r.problem.evaluate(decision)
    value = float(evaluation.objective)
    return replace(r, decision=decision, evaluation=evaluation, value=value, lower_bound=value)


def root_narrowed(tree: SelectionTree) -> SelectionTree:
    return replace(tree, high=bumped(tree.high, 5, -1e-3))


def decided_from_the_start(tree: SelectionTree) -> SelectionTree:
    state = tree.state.copy()
    state[:, int(np.argmin(tree.state[0]))] = -1
    return replace(tree, state=state)


@pytest.mark.parametrize(("name", "what", "change", "told"), SELECTED, ids=[f"{c[0]}: {c[1]}" for c in SELECTED])
def test_what_was_tampered_with_is_found_out(name: str, what: str, change: Any, told: str) -> None:
    result = solved(name)
    result.verify()
    with pytest.raises(VerificationError, match=told):
        change(result).verify()


def test_a_node_of_a_selection_tree_that_is_missing_is_found_out() -> None:
    for seed in range(20):
        result = jo.solve(DESIGNS["feel"](jo.systems.feel(8, seed)), gap=1e-6)
        tree = result.certificate.search
        branched = np.flatnonzero(tree.parent >= 0)
        # a node whose parent alone does not prove the bound
        needed = [i for i in branched if i not in set(tree.parent) and tree.bound[tree.parent[i]] < result.lower_bound]
        if needed:
            break
    result.verify()
    with pytest.raises(VerificationError, match="bound from its stored parts"):
        certificate(result, search=pruned(tree, int(needed[-1]))).verify()


def test_a_bound_that_a_better_decision_refutes_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """With every bound of the problem itself wrong, decisions around the answer still tell."""
    problem = design("ltfl")
    best = jo.solve(problem)
    poor = jo.solve(problem, method="no_power_control")
    assert poor.value is not None and best.value is not None and best.value < poor.value * (1 - 1e-3)
    claimed = replace(
        best,
        decision=poor.decision,
        evaluation=problem.evaluate(poor.decision),
        value=poor.value,
        lower_bound=poor.value,
    )
    monkeypatch.setattr("jointopt.verification._Verifier._bound", lambda *arguments: None)
    with pytest.raises(VerificationError, match="feasible decisions"):
        claimed.verify()


def test_errors_belong_to_the_library() -> None:
    assert issubclass(VerificationError, jo.errors.JointoptError)
    assert isinstance(verify(solved("ltfl")), Verification)
    bad = replace(solved("ltfl"), decision=Decision(power=np.ones(5)))
    with pytest.raises(VerificationError, match="not one of its problem"):
        bad.verify()

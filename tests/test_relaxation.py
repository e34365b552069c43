"""Relaxations of budgets that cannot be met, against closed forms, hand calculation and re-solving."""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
import pytest

import jointopt as jo
from jointopt.decision import Array, Decision
from jointopt.errors import InputError
from jointopt.models._array import namespace
from jointopt.problem import Conflict, Evaluation, Problem, Variable
from jointopt.problems.coinference import CoInference
from jointopt.problems.coinference_layers import LayerwiseCoInference
from jointopt.problems.feel import FEEL
from jointopt.problems.ltfl import LTFL
from jointopt.relaxation import relaxation
from jointopt.system.base import Quantity, Scenario, Section


class Jobs(Section):
    """Work to be done by a deadline."""

    title = "devices"
    deadline: Annotated[Any, Quantity("s", above=0, axis="device")]


class Plant(Section):
    """What all share."""

    capacity: Annotated[float, Quantity("Hz", above=0)]


class Factory(Scenario):
    """Jobs on one machine."""

    devices: Jobs
    plant: Plant

    def __len__(self) -> int:
        return int(self.devices.deadline.size)


class Nameless:
    """A system that shows no fields."""

    def __init__(self, deadline: list[float], capacity: float) -> None:
        self.deadline, self.capacity = np.array(deadline), capacity

    def __len__(self) -> int:
        return self.deadline.size


class Schedule(Problem):
    """Jobs of one unit of work at speeds x: 1/x <= deadline, sum of x <= capacity. No structure, no conflicts."""

    name = "schedule"

    def __init__(self, system: Any) -> None:
        self.system = system

    @property
    def variables(self) -> tuple[Variable, ...]:
        ones = np.ones(len(self.system))
        return (Variable("x", 1e-2 * ones, 1e2 * ones, unit="Hz"),)

    def evaluate(self, decision: Decision) -> Evaluation:
        x: Array = decision["x"]
        xp = namespace(x)
        system = self.system
        deadline = system.deadline if isinstance(system, Nameless) else system.devices.deadline
        capacity = system.capacity if isinstance(system, Nameless) else system.plant.capacity
        deadline = np.array(deadline)
        used = xp.sum(x, axis=-1)
        return Evaluation(
            objective=used,
            parts={},
            slack={"delay": xp.asarray(deadline) - 1.0 / x, "speed": capacity - used},
            scale={"delay": deadline, "speed": capacity},
            quantities={},
        )


@pytest.mark.parametrize("shown", [True, False])
def test_by_hand(shown: bool) -> None:
    # speeds 1 and 2 are needed, 2.5 is there: a factor f on all needs 3/f <= 2.5 f
    if shown:
        system: Any = Factory(devices=Jobs(deadline=[1.0, 0.5]), plant=Plant(capacity=2.5))
    else:
        system = Nameless([1.0, 0.5], 2.5)
    each, common = ("deadline", "capacity") if shown else ("delay", "speed")
    found = relaxation(Schedule(system), Decision(x=[1.0, 1.0]))
    assert found.together is not None
    assert found.smallest is not None
    assert found.together.factor[common] == pytest.approx(np.sqrt(1.2), rel=1e-9)
    assert found.together.factor[each] == pytest.approx(np.full(2, np.sqrt(1.2)), rel=1e-9)
    assert found.alone[common].budget[common] == pytest.approx(3.0, rel=1e-9)
    assert found.alone[each].budget[each] == pytest.approx([1.2, 0.6], rel=1e-9)
    # capacity buys 2.5 per unit throughout, a deadline at most 2 and ever less
    assert found.smallest.increase == pytest.approx(0.2, rel=1e-8)
    (group,) = found.irreducible
    assert set(group) == {(each, 0), (each, 1), (common, None)}
    assert not found.irreducible_proved
    for way in found.ways().values():
        assert way.verified
        assert not way.proved
    assert "found, not proved" in str(found)
    assert f"{each} of device 0 and {each} of device 1 and {common}" in found.summary()
    table = found.to_pandas()
    assert set(table.columns) == {"way", "budget", "device", "factor", "needed", "proved"}
    assert (table["factor"] > 1.0).all()
    assert found.to_dict()["irreducible"] == [[list(item) for item in group]]


def test_only_who_is_in_conflict_is_named() -> None:
    # device 1 alone asks for more than there is; the others hardly matter, and are not part of it
    system = Factory(devices=Jobs(deadline=[50.0, 0.25, 60.0]), plant=Plant(capacity=2.0))
    found = relaxation(Schedule(system), None)
    (group,) = found.irreducible
    assert set(group) == {("deadline", 1), ("capacity", None)}


def test_feasible_is_refused() -> None:
    system = Factory(devices=Jobs(deadline=[1.0, 0.5]), plant=Plant(capacity=4.0))
    with pytest.raises(InputError, match="nothing to relax"):
        relaxation(Schedule(system), Decision(x=[1.0, 2.0]))
    with pytest.raises(InputError, match="nothing to relax"):
        jo.solve(LTFL(jo.systems.ltfl(2, 0))).relaxation()


# ---------------------------------------------------------------------- the published designs


def feasible(problem: Problem, budget: dict[str, Any], share: float = 1.0) -> bool:
    """Whether the problem can be met when raised budgets are this share of the way from their old value."""
    fields = {}
    for name, new in budget.items():
        holder = problem.system.devices if hasattr(problem.system.devices, name) else problem.system.radio
        old = getattr(holder, name)
        value = old + share * (new - old)
        fields[name] = value if np.ndim(value) else float(value)
    return jo.solve(problem.with_system(problem.system.with_(**fields))).feasible


def starved(name: str, tightness: float, seed: int, devices: int) -> Problem:
    if name == "ltfl":
        return LTFL(jo.systems.ltfl(devices, seed, tightness=tightness))
    if name == "coinference":
        return CoInference(jo.systems.coinference(devices, seed, tightness=tightness))
    return LayerwiseCoInference(jo.systems.coinference(1, seed, tightness=tightness))


@pytest.mark.parametrize(
    ("name", "tightness", "seed", "devices"),
    [("ltfl", 10.0, 1, 3), ("ltfl", 30.0, 0, 1), ("coinference", 30.0, 0, 2), ("layers", 30.0, 0, 1)],
)
def test_closed_forms_are_met_and_least(name: str, tightness: float, seed: int, devices: int) -> None:
    problem = starved(name, tightness, seed, devices)
    result = jo.solve(problem)
    assert result.status == "infeasible"
    found = result.relaxation()
    assert found.irreducible_proved
    assert found.together is not None
    assert found.smallest is not None
    for kind, way in found.ways().items():
        assert way.verified, kind
        assert way.proved == (kind != "smallest")
        assert feasible(problem, dict(way.budget), 1.0 + 1e-6), kind
        if way.proved:
            assert not feasible(problem, dict(way.budget), 0.999), kind
        # the least sum is no more than any other way's
        assert found.smallest.increase <= way.increase * (1.0 + 1e-6), kind
    by_device = {c.device: c for c in result.infeasibility}
    for u, factor in enumerate(found.together.factor["delay_budget"]):
        expected = by_device[u].factor if u in by_device else 1.0
        assert factor == pytest.approx(expected, rel=1e-12)


def test_search_finds_what_the_closed_form_proves() -> None:
    problem = LTFL(jo.systems.ltfl(2, 1, tightness=10))
    result = jo.solve(problem)
    # nothing is said, and the start is poor
    found = relaxation(problem, None, ())
    known = result.relaxation()
    assert found.together is not None
    assert known.together is not None
    assert not found.together.proved
    assert found.together.factor["delay_budget"] == pytest.approx(known.together.factor["delay_budget"], rel=1e-6)
    assert set(found.alone) == set(known.alone)
    for name, way in found.alone.items():
        assert way.factor[name] == pytest.approx(known.alone[name].factor[name], rel=1e-6)
    assert set(found.irreducible) == set(known.irreducible)


@pytest.mark.parametrize(
    ("delay", "energy", "expected"),
    [
        (0.0085, 2e-4, [("delay_budget", "energy_budget")]),
        (0.008, 3e-4, [("delay_budget",)]),
        (0.01, 6e-5, [("energy_budget",)]),
        (0.008, 6e-5, [("delay_budget",), ("energy_budget",)]),
    ],
)
def test_irreducible_sets_are_conflicts_and_minimal(
    make_system: Any, delay: float, energy: float, expected: list[tuple[str, ...]]
) -> None:
    system = make_system(cycles_per_sample=2e3, delay_budget=delay, energy_budget=energy)
    problem = LTFL(system)
    result = jo.solve(problem)
    assert not result.feasible
    found = result.relaxation()
    assert [tuple(name for name, _ in group) for group in found.irreducible] == expected
    # the deletion filter, told nothing, finds one of them
    (searched,) = relaxation(problem, result.decision, ()).irreducible
    assert tuple(name for name, _ in searched) in expected
    names = ("delay_budget", "energy_budget")
    for group in found.irreducible:
        budgets = [name for name, _ in group]
        # in conflict however large the others are, and not without any one of them
        free = {name: 1e9 for name in names if name not in budgets}
        assert not jo.solve(problem.with_system(system.with_(**free))).feasible
        for name in budgets:
            left = {other: 1e9 for other in names if other not in budgets or other == name}
            assert jo.solve(problem.with_system(system.with_(**left))).feasible


def test_a_band_that_is_too_narrow_for_all() -> None:
    problem = FEEL(jo.systems.feel(3, 0, tightness=6)).restrict(selected=1.0)
    result = jo.solve(problem)
    assert result.status == "infeasible"
    (conflict,) = result.infeasibility
    assert conflict.device is None
    found = result.relaxation()
    band = found.alone["total_bandwidth"]
    assert band.proved
    assert float(band.factor["total_bandwidth"]) == pytest.approx(conflict.factor, rel=1e-9)
    assert found.together is not None
    assert float(found.together.factor["total_bandwidth"]) < float(band.factor["total_bandwidth"])
    for way in found.ways().values():
        assert way.verified
        assert feasible(problem, dict(way.budget), 1.0 + 1e-6)
        assert not feasible(problem, dict(way.budget), 0.99)
    (group,) = found.irreducible
    assert ("total_bandwidth", None) in group
    assert len(group) > 1


def test_clients_that_cannot_take_part_and_a_band() -> None:
    problem = FEEL(jo.systems.feel(3, 0, tightness=15)).restrict(selected=1.0)
    result = jo.solve(problem)
    found = result.relaxation()
    assert not found.irreducible_proved
    assert found.together is not None
    assert found.together.verified
    # where more of the band for itself lets a client take part, the band is in its conflict; one is short of power
    assert {group[0][1] for group in found.irreducible} == {c.device for c in result.infeasibility}
    many = problem.with_system(problem.system.with_(total_bandwidth=1e9))
    still = {c.device for c in jo.solve(many).infeasibility}
    assert still
    for group in found.irreducible:
        assert (("total_bandwidth", None) in group) == (group[0][1] not in still)
    assert feasible(problem, dict(found.together.budget), 1.0 + 1e-6)
    assert not feasible(problem, dict(found.together.budget), 0.99)


def test_conflicts_know_their_irreducible_set() -> None:
    def conflict(delay: float | None, energy: float | None, factor: float | None = 2.0) -> Conflict:
        budget = {"delay_budget": 1.0, "energy_budget": 1.0}
        return Conflict(0, "", {"delay_budget": delay, "energy_budget": energy}, budget, factor, "")

    assert conflict(2.0, None).irreducible == ("delay_budget",)
    assert conflict(None, 2.0).irreducible == ("energy_budget",)
    assert conflict(2.0, 3.0).irreducible == ("delay_budget", "energy_budget")
    assert conflict(None, None).irreducible == ("delay_budget",)
    assert conflict(0.5, 0.5, 0.7).irreducible == ()
    shared = Conflict(None, "band", {"band": 3.0}, {"band": 2.0}, 1.5, "")
    assert shared.irreducible == ()


def test_results_tell_it_in_json() -> None:
    result = jo.solve(LTFL(jo.systems.ltfl(2, 1, tightness=10)))
    for told, conflict in zip(result.to_dict()["infeasibility"], result.infeasibility, strict=True):
        assert told["irreducible"] == list(conflict.irreducible)
        assert told["irreducible"]

"""Trajectories: against enumeration, the short-sighted rules below the optimum, limits, proof, files, bad input."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest

from jointopt import systems
from jointopt.decision import Decision
from jointopt.errors import InputError, VerificationError
from jointopt.models import mobility
from jointopt.problem import CostToGo
from jointopt.problems import Aerial, AerialTrajectory, get
from jointopt.problems.aerial_flight import (
    best_of_grid,
    class_yields,
    greedy_flight,
    homewards,
    projected_gradient,
    projected_gradient_flight,
    utility,
)
from jointopt.solvers import methods, solve
from jointopt.study import load_result
from jointopt.system import AerialSystem, AirLink, Area, Sensing, Vehicles
from jointopt.verification import verify_saved

RULES = ("greedy", "projected_gradient", "static", "random_waypoint")


def small(seed, *, devices=2, slots=3, classes=3, **changes):
    """Vehicles over 200 m by 150 m with different speeds and prices, some of which hover."""
    rng = np.random.default_rng(seed)
    size = np.array([200.0, 150.0])
    whole = systems.aerial(devices, seed=seed, slots=slots)
    made = AerialSystem(
        vehicles=Vehicles(
            start=rng.random((devices, 2)) * size,
            speed_max=rng.choice([0.0, 10.0, 14.5], devices, p=[0.1, 0.4, 0.5]),
            frequency=1e9,
            cycles_per_sample=1e5,
            capacitance=1e-28,
            power=0.1,
            delay_budget=1.0,
            energy_budget=1.0,
            flight_price=10.0 ** rng.uniform(-4, -1.5, devices),
        ),
        area=Area(width=200, length=150, altitude=60, slot=5, slots=slots),
        sensing=Sensing(
            class_means=rng.random((devices, classes, 2)) * size,
            class_map=rng.normal(0, 1.5, (devices, classes, 3)),
            period=20.0,
            samples_max=rng.integers(20, 200, devices),
            length_scale=rng.uniform(20, 80),
        ),
        link=AirLink(bandwidth=1e5),
        learner=whole.learner,
        bound=whole.bound,
    )
    return made.with_(**changes) if changes else made


def worth(s, u, way):
    """Utility of one vehicle along positions [slots, 2], written out anew."""
    v, sense, area = s.vehicles, s.sensing, s.area
    before, total = v.start[u], 0.0
    radius = area.altitude * math.tan(sense.field_of_view[u] / 2)
    for t, q in enumerate(way, start=1):
        angle = 2 * math.pi * t * area.slot / sense.period
        logits = sense.class_map[u] @ [1.0, math.sin(angle), math.cos(angle)]
        psi = np.exp(logits) / np.exp(logits).sum()
        away = np.hypot(*(sense.class_means[u] - q).T)
        new = math.ceil(
            (sense.samples_max[u] * psi * np.exp(-away / sense.length_scale) * (away <= radius)).sum() - 1e-9
        )
        flight = math.hypot(*(q - before))
        total += new - v.flight_price[u] * area.slot * mobility.rotary_wing_power(np.array(flight / area.slot))
        before = q
    return float(total)


def every_way(s, u, spacing):
    """All ways of one vehicle on the lattice around its start."""
    reach = s.vehicles.speed_max[u] * s.area.slot
    most = int(reach // spacing)
    moves = [
        (i, j)
        for i, j in itertools.product(range(-most, most + 1), repeat=2)
        if spacing * math.hypot(i, j) <= reach * (1 + 1e-12)
    ]
    for chosen in itertools.product(moves, repeat=s.area.slots):
        way = s.vehicles.start[u] + spacing * np.cumsum(chosen, axis=0)
        if np.all((way >= -1e-9) & (way <= [s.area.width + 1e-9, s.area.length + 1e-9])):
            yield way


@pytest.mark.parametrize("seed", range(12))
def test_against_enumeration(seed):
    s = small(seed)
    problem = AerialTrajectory(s, points=4 if seed % 2 else 5)
    spacing = 200 / problem.points
    result = solve(problem)
    best = sum(max(worth(s, u, way) for way in every_way(s, u, spacing)) for u in range(len(s)))
    assert result.status == "optimal" and result.method == "staged"
    most = float(s.sensing.samples_max.sum()) * s.area.slots
    assert most - result.value == pytest.approx(best, rel=1e-11)
    assert result.lower_bound == pytest.approx(result.value, rel=1e-12) and "not between" in result.certificate.text
    ways = problem.trajectory(result.decision)
    assert sum(worth(s, u, ways[u]) for u in range(len(s))) == pytest.approx(best, rel=1e-12)
    np.testing.assert_allclose(
        result.evaluation.quantities["utility"], [worth(s, u, ways[u]) for u in range(len(s))], rtol=1e-12
    )


@pytest.mark.parametrize("seed", range(6))
def test_rules_keep_the_limits_and_stay_below_the_optimum(seed):
    s = small(seed, devices=5, slots=8)
    problem = AerialTrajectory(s, points=12)
    best = solve(problem)
    assert set(RULES) <= set(methods(problem))
    for rule in RULES:
        result = solve(problem, method=rule, seed=seed)
        assert result.feasible and result.lower_bound is None
        assert result.value >= best.value - 1e-9
        assert result.evaluation.violation() < 1e-12
        ways = problem.trajectory(result.decision)
        # AerialSystem refuses positions outside the area and speeds above the limits
        flown = s.flown(ways)
        missed = 8 * s.sensing.samples_max.sum() - flown.arrivals.sum()
        assert missed == pytest.approx(float(result.evaluation.parts["missed"]))
        still = s.vehicles.speed_max == 0.0
        assert np.array_equal(ways[still], np.repeat(s.vehicles.start[still, None], 8, axis=1))
    one, two = (solve(problem, method="random_waypoint", seed=k).decision for k in (1, 2))
    assert one == solve(problem, method="random_waypoint", seed=1).decision and one != two
    # a finer lattice that holds the coarse one is never worse
    assert solve(AerialTrajectory(s, points=24)).value <= best.value + 1e-9


def test_the_horizon_pays():
    """A near mean that soon dries up, a far one that does not: the short-sighted stay, the program goes."""
    s = small(0, devices=1, slots=8, classes=2)
    s = AerialSystem(
        vehicles=s.vehicles.replace(start=[[20.0, 75.0]], speed_max=10.0, flight_price=0.0),
        area=s.area,
        sensing=Sensing(
            class_means=[[[20.0, 75.0], [180.0, 75.0]]],
            class_map=[[[-2.0], [2.0]]],
            period=1.0,
            samples_max=100,
            length_scale=30.0,
        ),
        link=s.link,
        learner=s.learner,
        bound=s.bound,
    )
    problem = AerialTrajectory(s, points=20)
    best, greedy = solve(problem), solve(problem, method="greedy")
    assert np.all(problem.trajectory(greedy.decision) == s.vehicles.start)
    assert 800 - greedy.value == 8 * math.ceil(100 * mobility.class_mix(np.array([[-2.0], [2.0]]), np.ones(1))[0])
    assert problem.trajectory(best.decision)[0, -1].tolist() == [180.0, 75.0]
    assert best.value < greedy.value


def test_who_sees_nothing_flies_home():
    s = small(4, devices=6, slots=4, field_of_view=1e-3, speed_max=0.5)
    before = np.asarray(s.vehicles.start)
    for choose in (best_of_grid, projected_gradient):
        after = choose(s, 0, before)
        home = homewards(s, 0, before)
        away = np.hypot(*(home - before).T)
        np.testing.assert_allclose(np.hypot(*(home - after).T), np.maximum(away - 2.5, 0.0), atol=1e-6)
    s = s.with_(speed_max=10.0)
    problem = AerialTrajectory(s, points=8)
    greedy = solve(problem, method="greedy")
    assert greedy.evaluation.quantities["new_samples"].max() == 0.0
    # the program knows that nothing is to be had: it flies as costs least
    best = solve(problem)
    cheapest = float(mobility.rotary_wing_power(np.array([0.0, 5.0, 10.0])).min()) * 5 * 4
    spent = float(best.evaluation.parts["flight"])
    assert spent == pytest.approx(float((s.vehicles.flight_price * cheapest).sum()), rel=0.2)


def test_published_search_finds_the_best_without_a_footprint_and_misses_with_one():
    """Theory 5a: ascent from the present position and the means; no ceiling, since samples count millionfold."""

    def misses(view):
        s = systems.aerial(40, seed=11, slots=1)
        rng = np.random.default_rng(5)
        s = AerialSystem(
            vehicles=s.vehicles.replace(start=440 + 120 * rng.random((40, 2)), flight_price=1e3),
            area=s.area,
            sensing=s.sensing.replace(
                class_means=440 + 120 * rng.random((40, 10, 2)), samples_max=1e8, field_of_view=view
            ),
            link=s.link,
            learner=s.learner,
            bound=s.bound,
        )
        before = np.asarray(s.vehicles.start)
        published, grid = projected_gradient(s, 0, before), best_of_grid(s, 0, before, points=61)
        assert mobility.within_reach(published, before, s.reach).all()
        assert mobility.within_reach(grid, before, s.reach).all()
        theirs, ours = (utility(s, 0, q[:, None], before)[:, 0] for q in (published, grid))
        return int((theirs < ours - 1e-3 * np.abs(ours)).sum())

    assert misses(3.14) == 0
    assert misses(math.pi / 3) >= 4


def test_flights_anywhere_in_the_area():
    s = systems.aerial(4, seed=2, slots=6)
    for way in (greedy_flight(s, points=21), projected_gradient_flight(s)):
        flown = s.flown(way)
        assert flown.trajectory.shape == (4, 6, 2)
        assert solve(Aerial(flown)).status == "optimal"
    seen = class_yields(s, 3, np.asarray(s.sensing.class_means))
    # above its mean a class yields its whole share
    np.testing.assert_allclose(np.diagonal(seen, axis1=1, axis2=2), s.class_mix[:, 3])


def test_static_where_nobody_may_fly():
    s = small(1, speed_max=0.0)
    problem = AerialTrajectory(s, points=3)
    assert problem.lattice.moves.tolist() == [[0, 0]]
    for method in ("staged", *RULES):
        result = solve(problem, method=method)
        np.testing.assert_array_equal(problem.trajectory(result.decision), s.trajectory)


def test_verified_and_saved(tmp_path):
    problem = AerialTrajectory(systems.aerial(4, seed=3, slots=5), points=20)
    result = solve(problem)
    told = result.verify()
    assert told.complete and told.value == pytest.approx(result.value)
    assert any(check.name == "objectives along random paths" for check in told.checks)
    loaded, decision, data = load_result(result.save(tmp_path / "flight.json"))
    assert isinstance(loaded, AerialTrajectory) and loaded.points == 20 and decision == result.decision
    assert verify_saved(loaded, decision, data).complete
    table = result.certificate.search
    for change in (np.s_[0], np.s_[3, 1]):
        raised = table.values.copy()
        raised[change] += 1.0
        lie = replace(result.certificate, search=CostToGo(raised))
        with pytest.raises(VerificationError, match="what remains"):
            replace(result, certificate=lie).verify()
    with pytest.raises(VerificationError):
        replace(result, lower_bound=result.lower_bound * 1.01, value=result.value * 1.01).verify()
    with pytest.raises(VerificationError):
        replace(result, lower_bound=result.lower_bound * 1.001).verify()
    assert "20" in result.summary() and len(result.to_pandas()) == 4


def test_a_bound_above_what_a_neighbour_has_is_found_out():
    """The greedy decision called optimal: the table of the program says otherwise."""
    s = small(3, devices=3, slots=6)
    problem = AerialTrajectory(s, points=10)
    best, greedy = solve(problem), solve(problem, method="greedy")
    assert greedy.value > best.value
    lie = replace(greedy, status="optimal", lower_bound=greedy.value, certificate=best.certificate)
    with pytest.raises(VerificationError):
        lie.verify()


def test_stopped_early():
    problem = AerialTrajectory(systems.aerial(3, seed=0, slots=6), points=30)
    result = solve(problem, time_limit=1e-9)
    assert result.status == "time_limit" and result.lower_bound is None
    assert result.evaluation.feasible() and result.certificate.kind == "none"

    calls = []

    def callback(progress):
        calls.append(progress.n_evaluations)
        if len(calls) == 2:
            raise KeyboardInterrupt

    result = solve(problem, callback=callback)
    assert result.status == "interrupted" and result.evaluation.feasible()
    assert calls == sorted(calls)


def test_limits_of_a_decision():
    s = small(2, speed_max=10.0)
    problem = AerialTrajectory(s, points=8)
    shape = (s.area.slots, len(s))
    jump = np.zeros(shape)
    jump[0] = np.where(problem.lattice.high[:, 0] >= 3, 3, -3)
    evaluation = problem.evaluate(Decision(column=jump.reshape(-1), row=0.0))
    assert {name for name, _, _ in evaluation.broken()} == {"reach"}
    outside = problem.evaluate(Decision(column=np.full(6, 9.0), row=0.0))
    assert "column" in {name for name, _, _ in outside.broken()}
    between = problem.evaluate(Decision(column=0.5, row=0.0))
    assert "column" in {name for name, _, _ in between.broken()}
    batch = problem.evaluate(Decision(column=np.zeros((4, 6)), row=np.zeros((4, 1))))
    assert batch.objective.shape == (4,) and np.ptp(batch.objective) == 0.0
    most = 3 * float(s.sensing.samples_max.sum())
    assert float(batch.objective[0]) == pytest.approx(most - sum(worth(s, u, s.trajectory[u]) for u in range(2)))


def test_bad_input():
    s = small(0, speed_max=10.0)
    cases = [
        (lambda: AerialTrajectory(systems.ltfl(3)), "expected an AerialSystem, got System"),
        (lambda: AerialTrajectory(s, points=0), "points: 0 must be a whole number from 1 to 1000"),
        (lambda: AerialTrajectory(s, points=2.5), "points: 2.5 must be"),
        (lambda: AerialTrajectory(s, points=3), "farther than device 0 flies in a slot (50 m); give at least 4"),
        (lambda: AerialTrajectory(s, points=1000), "more than can be held; give fewer"),
        (lambda: AerialTrajectory(s, points=4).restrict(column=0), "variables cannot be restricted"),
        (lambda: AerialTrajectory(s, points=4).evaluate(Decision(column=0)), "'row' is missing"),
        (lambda: AerialTrajectory(s, points=4).evaluate(Decision(column=0, row=0, x=1)), "unknown variable 'x'"),
        (
            lambda: AerialTrajectory(s, points=4).evaluate(Decision(column=np.zeros(2), row=0)),
            "has 2 values, expected 6 (2 vehicles in 3 slots)",
        ),
        (lambda: AerialTrajectory(s, points=4).explain(Decision(column=0, row=0)), "has no budgets"),
        (lambda: AerialTrajectory.from_settings(s, {"point": 4}), "does not know 'point'; did you mean 'points'?"),
        (lambda: solve(AerialTrajectory(s, points=4), depth=3), "method 'staged': unknown option 'depth'"),
        (lambda: solve(AerialTrajectory(s, points=4), method="exact"), "this problem lacks the structure for it"),
    ]
    for build, message in cases:
        with pytest.raises(InputError) as error:
            build()
        assert message in str(error.value)
    assert get("aerial-trajectory") is AerialTrajectory and len(AerialTrajectory.sample(devices=3)) == 3

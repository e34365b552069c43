"""Figures of decisions over slots show the numbers they were given."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import jointopt as jo
from jointopt import plot
from jointopt.problems import Aerial, AerialTrajectory


@pytest.fixture(scope="module")
def system() -> Any:
    return jo.systems.aerial(devices=3, seed=0)


def test_maps_over_slots_and_vehicles(system: Any) -> None:
    problem = Aerial(system)
    result = jo.solve(problem)
    assert result.decision is not None and result.evaluation is not None
    figure = plot.decision(result)
    maps = [axis for axis in figure.axes if axis.images]
    assert len(maps) == 4
    out = ~problem.active.T
    assert out.any()
    budget = system.vehicles.delay_budget
    shown = {
        0: result.decision["pruning_ratio"],
        1: result.decision["levels"],
        2: 100.0 * np.asarray(result.evaluation.quantities["delay"]) / np.tile(budget, system.area.slots),
    }
    for index, values in shown.items():
        array = np.ma.asarray(maps[index].images[0].get_array())
        np.testing.assert_array_equal(np.ma.getmaskarray(array), out)
        np.testing.assert_allclose(array[~out], problem.by_slot(values).T[~out])
    assert f"sits out, {out.sum()} of 60" in maps[-1].get_xlabel()


def test_one_slot_is_drawn_by_vehicle(system: Any) -> None:
    result = jo.solve(Aerial(system, slot=19))
    assert result.decision is not None and result.evaluation is not None
    ratio, _, use = plot.decision(result).axes
    order = np.argsort(system.gain.mean(axis=1), kind="stable")
    assert [bar.get_height() for bar in ratio.patches] == pytest.approx(result.decision["pruning_ratio"][order])
    delay = np.asarray(result.evaluation.quantities["delay"]) / system.vehicles.delay_budget
    assert [bar.get_height() for bar in use.patches[:3]] == pytest.approx(100 * delay[order])


def test_ways_start_where_vehicles_do(system: Any) -> None:
    problem = AerialTrajectory(system, points=20)
    result = jo.solve(problem)
    assert result.decision is not None
    (axis,) = plot.decision(result).axes
    ways = [line for line in axis.lines if len(np.atleast_1d(line.get_xdata())) == system.area.slots + 1]
    assert len(ways) == 3
    for u, line in enumerate(ways):
        points = np.stack([line.get_xdata(), line.get_ydata()], axis=-1)
        np.testing.assert_allclose(points[0], system.vehicles.start[u])
        np.testing.assert_allclose(points[1:], problem.trajectory(result.decision)[u], atol=1e-9)

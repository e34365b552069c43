"""Backward induction: against enumeration on random graphs, what it proves, how it is stopped."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from jointopt.solvers.monitor import StopSearch
from jointopt.solvers.staged import minimize_staged, remaining


class Graph:
    """Random costs and successors, some of which lead nowhere."""

    def __init__(self, seed, *, units=3, stages=4, states=5, actions=3, blocked=0.2, by_state=True):
        rng = np.random.default_rng(seed)
        self.units, self.stages, self.states = units, stages, states
        self.successor = rng.integers(0, states, (actions, states))
        self.successor[rng.random((actions, states)) < blocked] = -1
        self.start = rng.integers(0, states, units)
        self.moves = rng.normal(size=(stages, actions, units, states if by_state else 1))
        self.moves[rng.random(self.moves.shape) < 0.1] = np.inf
        self.places = rng.normal(size=(stages, units, states))
        self.places[rng.random(self.places.shape) < 0.1] = np.inf

    def moving(self, stage, action, units):
        return self.moves[stage, action, units]

    def arriving(self, stage, units):
        return self.places[stage, units]

    def complete(self, path):
        return {"state": path.reshape(-1).astype(float)}

    def cost(self, unit, actions):
        """Cost and states of a sequence of actions."""
        state, total, path = self.start[unit], 0.0, []
        for stage, action in enumerate(actions):
            moves = self.moves[stage, action, unit]
            total += moves[state] if moves.size > 1 else moves[0]
            state = self.successor[action, state]
            if state < 0:
                return np.inf, None
            total += self.places[stage, unit, state]
            path.append(state)
        return total, path

    def best(self, unit):
        every = itertools.product(range(len(self.successor)), repeat=self.stages)
        return min((self.cost(unit, a) for a in every), key=lambda found: found[0])


@pytest.mark.parametrize("seed", range(40))
def test_against_enumeration(seed):
    graph = Graph(seed, by_state=seed % 2 == 0)
    answer = minimize_staged(graph)
    expected = [graph.best(unit) for unit in range(graph.units)]
    np.testing.assert_allclose(answer.unit_values, [value for value, _ in expected], rtol=1e-12)
    for unit, (value, path) in enumerate(expected):
        if np.isfinite(value):
            assert answer.path[:, unit].tolist() == path
        else:
            assert unit in answer.infeasible
    assert answer.examined == graph.stages * graph.successor.size * graph.units


def test_table_proves_the_values():
    graph = Graph(100, blocked=0.0)
    answer = minimize_staged(graph)
    every, values = slice(0, graph.units), answer.table.values
    after = np.zeros((graph.units, graph.states))
    for stage in reversed(range(graph.stages)):
        np.testing.assert_array_equal(remaining(graph, stage, every, after), values[stage])
        after = values[stage]
    np.testing.assert_array_equal(values[0, np.arange(graph.units), graph.start], answer.unit_values)
    assert answer.lower_bound == pytest.approx(answer.unit_values.sum())


def test_chunks_of_units_make_no_difference(monkeypatch):
    graph = Graph(7, units=11)
    whole = minimize_staged(graph)
    monkeypatch.setattr("jointopt.solvers.staged.CHUNK", 60)
    monkeypatch.setattr("jointopt.solvers.staged.KEPT", 0)
    parts = minimize_staged(graph)
    np.testing.assert_array_equal(parts.unit_values, whole.unit_values)
    np.testing.assert_array_equal(parts.path, whole.path)
    assert parts.table is None and whole.table is not None


def test_nothing_allowed():
    graph = Graph(1, blocked=1.0)
    answer = minimize_staged(graph)
    assert answer.infeasible.tolist() == [0, 1, 2]
    assert answer.lower_bound == np.inf


@pytest.mark.parametrize("reason", [StopSearch, KeyboardInterrupt])
def test_stopped_it_follows_the_cheapest_next_step(reason):
    graph = Graph(3, blocked=0.0)
    graph.moves[:] = np.where(np.isfinite(graph.moves), graph.moves, 9.0)
    graph.places[:] = np.where(np.isfinite(graph.places), graph.places, 9.0)

    def stop():
        raise reason

    answer = minimize_staged(graph, stop=stop)
    assert isinstance(answer.stopped, reason) and answer.lower_bound is None and answer.table is None
    for unit in range(graph.units):
        state = graph.start[unit]
        for stage in range(graph.stages):
            costs = [
                graph.moves[stage, a, unit, state] + graph.places[stage, unit, graph.successor[a, state]]
                for a in range(len(graph.successor))
            ]
            state = graph.successor[int(np.argmin(costs)), state]
            assert answer.path[stage, unit] == state
    # what is known by then is used
    told = []

    def later():
        if len(told) == 2:
            raise reason

    answer = minimize_staged(graph, stop=later, report=told.append)
    assert told == sorted(told) and len(told) == 2
    best = minimize_staged(graph)
    for unit in range(graph.units):
        # the last two stages are those of the best path from wherever the first ones led
        state = answer.path[1, unit]
        tail = best.table.values[2, unit, state]
        total = 0.0
        for stage in (2, 3):
            new = answer.path[stage, unit]
            step = [
                graph.moves[stage, a, unit, state] + graph.places[stage, unit, new]
                for a in range(len(graph.successor))
                if graph.successor[a, state] == new
            ]
            total, state = total + min(step), new
        assert total == pytest.approx(tail)

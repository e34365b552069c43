"""The priced response of cells: per-unit prices, some units, and leaves that cover everything."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from jointopt.problem import Capabilities, Problem
from jointopt.problems.coinference import CoInference
from jointopt.problems.feel import FEEL
from jointopt.problems.ltfl import LTFL
from jointopt.solvers.priced import CellsPriced, priced_of

SIZE = {"ltfl": [1.0, 0.3], "feel": [1.0, 1e-6], "coinference": [1.0]}


def problem(kind: type[Problem], seed: int = 0, devices: int = 12) -> Problem:
    return kind(kind.sample(devices=devices, seed=seed))  # type: ignore[call-arg]


@pytest.mark.parametrize("kind", [LTFL, FEEL, CoInference])
def test_some_units_at_prices_of_their_own(kind: type[Problem]) -> None:
    some = problem(kind)
    priced = priced_of(some.capabilities())
    assert priced is not None
    prices = np.array(SIZE[some.name])
    units = np.array([3, 3, 0, 11, 7])
    vectors = prices[:, None] * np.array([1.0, 5.0, 1.0, 0.2, 2.0])
    if prices.size > 1:
        vectors[1, 2] *= 40.0
    answer = priced.respond(vectors, units=units, keep=True)
    for i, unit in enumerate(units):
        alone = priced.respond(vectors[:, i])
        for mine, other in ((answer.value, alone.value), (answer.lower_bound, alone.lower_bound)):
            assert mine[i] == other[unit]
        np.testing.assert_array_equal(answer.features[:, i], alone.features[:, unit])
        for name in alone.decision:
            assert answer.decision[name][i] == alone.decision[name][unit]
    assert answer.leaves is not None
    least = np.full(units.size, np.inf)
    np.minimum.at(least, answer.leaves.unit, answer.leaves.bound)
    assert np.all(np.minimum(least, answer.value) >= answer.lower_bound)


@pytest.mark.parametrize("kind", [LTFL, FEEL, CoInference])
def test_one_vector_a_unit_in_order(kind: type[Problem]) -> None:
    some = problem(kind)
    priced = priced_of(some.capabilities())
    assert priced is not None
    prices = np.array(SIZE[some.name])
    plain = priced.respond(prices)
    each = priced.respond(np.repeat(prices[:, None], priced.units, axis=1))
    np.testing.assert_array_equal(plain.value, each.value)
    np.testing.assert_array_equal(plain.lower_bound, each.lower_bound)
    value = prices @ plain.features
    np.testing.assert_allclose(value[plain.feasible], plain.value[plain.feasible], rtol=1e-12)


@pytest.mark.parametrize("seed", range(8))
def test_leaves_of_ltfl_cover_every_bit_width_and_snr(seed: int) -> None:
    some = problem(LTFL, seed, devices=5)
    offered = some.capabilities()
    cells: Any = offered.cells
    prices = np.array([1.0, 0.5])
    answer = CellsPriced(cells).respond(prices, keep=True)
    plain = CellsPriced(cells).respond(prices)
    np.testing.assert_array_equal(answer.lower_bound, plain.lower_bound)
    leaves = answer.leaves
    assert leaves is not None
    assert leaves.names == ("label", "x")
    assert np.all(np.diff(leaves.unit) >= 0)
    for unit in range(5):
        mine = leaves.unit == unit
        for label in range(int(cells.bits_low[unit]), int(cells.bits_high[unit]) + 1):
            these = mine & (leaves.low[0] == label)
            order = np.argsort(leaves.low[1, these], kind="stable")
            low, high = leaves.low[1, these][order], leaves.high[1, these][order]
            assert low[0] <= cells.low[unit]
            assert np.all(low[1:] <= np.maximum.accumulate(high)[:-1])
            assert high.max() >= cells.high[unit]
    # no point of a leaf is better than its bound
    rng = np.random.default_rng(seed)
    rows = rng.integers(0, len(leaves), 4000)
    x = leaves.low[1, rows] + rng.uniform(size=rows.size) * (leaves.high[1] - leaves.low[1])[rows]
    unit, label = leaves.unit[rows], leaves.low[0, rows].astype(np.int64)
    value = cells.value(prices, unit, label, x, cells.probe(unit, x))
    assert np.all(value >= leaves.bound[rows] * (1 - 1e-12))


def test_units_without_a_feasible_point_have_leaves_too(make_system: Any) -> None:
    system = make_system(samples=[500, 500], delay_budget=[2.0, 1e-6], energy_budget=[0.05, 0.05])
    offered = LTFL(system).capabilities()
    answer = CellsPriced(offered.cells).respond(np.array([1.0, 0.0]), keep=True)
    assert list(answer.feasible) == [True, False]
    assert answer.leaves is not None
    assert np.all(np.isinf(answer.leaves.bound[answer.leaves.unit == 1]))
    assert np.all(answer.features[:, 1] == 0.0)


def test_where_the_response_comes_from() -> None:
    offered = problem(LTFL).capabilities()
    own = CellsPriced(offered.cells)
    assert priced_of(Capabilities(priced=own, cells=offered.cells)) is own
    assert isinstance(priced_of(offered), CellsPriced)
    assert priced_of(Capabilities()) is None
    assert CellsPriced(problem(CoInference).capabilities().cells).capped(0, np.ones(12)) is None

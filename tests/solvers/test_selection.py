"""Which units to take: against all subsets, on units that know nothing of any design."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from jointopt.errors import SolverError
from jointopt.problem import CellList, Selection, SelectionTree, Sums
from jointopt.problems.feel import FEEL
from jointopt.solvers.exact import Exact
from jointopt.solvers.monitor import StopSearch
from jointopt.solvers.priced import CellsPriced
from jointopt.solvers.selection import minimize_selection
from jointopt.system import FloatArray


@dataclass
class Fixed:
    """Units that can be taken in one way only: a 0/1 knapsack."""

    cost: FloatArray
    use: FloatArray

    @property
    def units(self) -> int:
        return int(self.cost.size)

    def take(self, index: Any) -> Fixed:
        return Fixed(self.cost[index], self.use[index])

    def cover(self, prices: FloatArray, units: slice) -> CellList:
        unit = np.arange(*units.indices(self.units))
        one, nothing = np.ones(unit.size), np.zeros((1, unit.size))
        return CellList(unit, np.zeros(unit.size, dtype=np.int64), one, one.copy(), nothing, nothing.copy())

    def probe(self, unit: Any, x: Any) -> FloatArray:
        return np.zeros((1, np.size(x)))

    def value(self, prices: FloatArray, unit: Any, label: Any, x: Any, data: Any) -> FloatArray:
        price = prices if prices.ndim == 1 else prices[:, unit]
        total: FloatArray = price[0] * self.cost[unit] + price[1] * self.use[unit]
        return total

    def bound(self, prices: FloatArray, cells: CellList) -> tuple[FloatArray, FloatArray]:
        return self.value(prices, cells.unit, None, None, None), cells.low

    def split(self, prices: FloatArray, cells: CellList, hint: FloatArray) -> tuple[FloatArray, FloatArray]:
        return hint, hint

    def complete(self, prices: FloatArray, unit: Any, label: Any, x: Any) -> tuple[dict[str, FloatArray], FloatArray]:
        return {"taken": np.ones(np.shape(x))}, np.stack([self.cost[unit], self.use[unit]])

    def capped(self, feature: int, caps: FloatArray) -> Fixed:
        raise NotImplementedError

    def least_violating(self, unit: Any) -> dict[str, FloatArray]:
        return {"taken": np.ones(np.shape(unit))}


@dataclass
class Outer:
    """offset + cost + weight (1 - mass)^2, or with the cost per mass; no less mass than `least_mass`."""

    weight: float
    offset: float = 0.0
    per_mass: bool = False
    least_mass: float = 0.0

    def value(self, cost: Any, mass: Any) -> Any:
        share = cost / mass if self.per_mass else cost
        return np.where(mass >= self.least_mass, self.offset + share + self.weight * (1.0 - mass) ** 2, np.inf)

    def least(self, offset: Any, slope: Any, low: Any, high: Any) -> Any:
        """The parts that fall, rise and bend, each at its least: a bound that is not tight."""
        low = np.maximum(low, self.least_mass)
        allowed, low = low <= high, np.minimum(low, high)
        if self.per_mass:
            parts = np.minimum(offset / low, offset / high) + slope + self.weight * (1.0 - np.clip(1.0, low, high)) ** 2
        else:
            with np.errstate(divide="ignore", invalid="ignore"):
                turn = 1.0 - slope / (2.0 * self.weight) if self.weight else np.where(slope > 0.0, low, high)
            mass = np.clip(turn, low, high)
            parts = offset + slope * mass + self.weight * (1.0 - mass) ** 2
        return np.where(allowed, self.offset + parts, np.inf)


@dataclass
class Case:
    cells: Fixed
    selection: Selection
    limit: float

    def solve(self, **options: Any) -> Exact:
        sums = Sums(
            features=("cost", "use"),
            numerator=np.array([1.0, 0.0]),
            numerator_offset=0.0,
            denominator=np.zeros(2),
            denominator_offset=1.0,
            limits=np.array([np.inf, self.limit]),
        )
        return minimize_selection(sums, self.cells, self.selection, **options)

    def value(self, taken: Any) -> float:
        """Objective of a selection; inf where it is not allowed."""
        some = self.selection
        if not np.any(taken) or np.any(some.required & ~taken) or np.any(some.excluded & taken):
            return np.inf
        if self.cells.use[taken].sum() > self.limit:
            return np.inf
        return float(some.outer.value(self.cells.cost[taken].sum(), some.mass[taken].sum()))

    def best(self) -> float:
        return min(self.value(np.array(t)) for t in itertools.product((False, True), repeat=self.cells.units))


def case(seed: int, most: int = 10, **outer: Any) -> Case:
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, most + 1))
    mass = rng.uniform(0.2, 2.0, count)
    if rng.random() < 0.4:
        mass[:] = 1.0
    cost, use = rng.uniform(0.0, 1.0, count) / count, rng.uniform(0.1, 1.0, count)
    if rng.random() < 0.4:
        # profits, not costs
        cost = cost - rng.uniform(0.0, 1.5) / count
    if rng.random() < 0.3:
        # profit as use: no price tells the units apart
        cost = -use / count
    if rng.random() < 0.4:
        # several of a kind
        rows = rng.integers(0, max(count // 2, 1), count)
        mass, cost, use = mass[rows], cost[rows], use[rows]
    must = rng.random(count) < (0.15 if rng.random() < 0.4 else 0.0)
    never = (rng.random(count) < (0.2 if rng.random() < 0.4 else 0.0)) & ~must
    mass = mass / mass.sum()
    kind = np.unique(np.stack([mass, cost, use, must, never]), axis=1, return_inverse=True)[1].reshape(-1)
    shape = Outer(
        weight=float(rng.choice([0.0, 0.3, 3.0])),
        offset=float(rng.choice([0.0, 2.0])),
        per_mass=bool(rng.random() < 0.4),
        least_mass=float(rng.choice([0.0, 0.0, 0.5])),
    )
    for name, value in outer.items():
        setattr(shape, name, value)
    limit = float(use.sum() * rng.uniform(0.05, 1.1))
    return Case(Fixed(cost, use), Selection(mass, shape, must, never, kind), limit)


@pytest.mark.parametrize("batch", range(4))
def test_best_of_all_subsets(batch: int) -> None:
    infeasible = 0
    for seed in range(35 * batch, 35 * batch + 35):
        some = case(seed)
        best, answer = some.best(), some.solve(gap=1e-7)
        if np.isinf(best):
            infeasible += 1
            assert answer.value is None, seed
            continue
        assert answer.value is not None and answer.lower_bound is not None, seed
        taken = answer.decision["taken"] > 0.5
        assert answer.value == pytest.approx(some.value(taken), rel=1e-12, abs=1e-12), seed
        assert answer.value <= best + 1e-7 * abs(best) + 1e-12, seed
        assert answer.lower_bound <= best + 1e-9 * abs(best) + 1e-12, seed
        assert answer.value - answer.lower_bound <= 1e-7 * abs(answer.value) + 1e-12, seed
    assert infeasible < 20


@pytest.mark.parametrize("nodes", [1, 3, 20, 60])
def test_bound_holds_when_nodes_are_spent(nodes: int) -> None:
    stopped = 0
    for seed in range(40):
        some = case(seed, per_mass=False)
        best, answer = some.best(), some.solve(gap=1e-9, max_nodes=nodes)
        if np.isinf(best):
            continue
        assert answer.lower_bound is None or answer.lower_bound <= best + 1e-9 * abs(best) + 1e-12, seed
        if answer.value is not None:
            assert answer.value >= best - 1e-9 * abs(best) - 1e-12, seed
            stopped += bool(answer.value - (answer.lower_bound or 0.0) > 1e-6 * abs(answer.value))
    # with a few nodes nothing was found yet, with many everything is settled
    assert stopped > 0 or nodes != 20


@pytest.mark.parametrize("nodes", [1, 3])
def test_spent_nodes_are_not_a_proof_of_infeasibility(nodes: int) -> None:
    some = case(1, per_mass=False)
    assert np.isfinite(some.best())
    answer = some.solve(max_nodes=nodes)
    assert answer.value is not None or not answer.shared


@pytest.mark.parametrize("error", [StopSearch, KeyboardInterrupt])
def test_bound_holds_when_stopped(error: type[BaseException]) -> None:
    """Stopped at any call: the error itself while nothing is found, then an incumbent with a bound that holds."""
    seen = set()
    for seed in (3, 17, 21, 32):
        some = case(seed)
        best = some.best()
        if np.isinf(best):
            continue
        for calls in range(0, 30, 3):
            left = calls

            def stop() -> None:
                nonlocal left
                left -= 1
                if left < 0:
                    raise error

            try:
                answer = some.solve(gap=1e-9, stop=stop)
            except error:
                seen.add("raised")
                continue
            assert answer.value is not None and answer.lower_bound is not None
            assert answer.value >= best - 1e-9 * abs(best) - 1e-12
            assert answer.lower_bound <= best + 1e-9 * abs(best) + 1e-12
            if answer.stopped is None:
                seen.add("finished")
                assert answer.value == pytest.approx(best, rel=1e-7, abs=1e-12)
            else:
                seen.add("stopped")
                assert isinstance(answer.stopped, error)
    assert seen >= {"raised", "finished"}


def test_infeasible_says_who_and_what() -> None:
    nobody = np.zeros(3, dtype=bool)
    outer = Outer(1.0)
    mass, kind = np.full(3, 1.0 / 3.0), np.arange(3)
    fixed = Fixed(np.ones(3), np.array([2.0, 3.0, 9.0]))
    # the limit is too small for any
    answer = Case(fixed, Selection(mass, outer, nobody, nobody, kind), 1.0).solve()
    assert answer.value is None and answer.lower_bound is None
    np.testing.assert_array_equal(answer.infeasible, [0, 1, 2])
    # one that must be taken does not fit alone
    must = np.array([True, False, True])
    answer = Case(fixed, Selection(mass, outer, must, nobody, kind), 4.0).solve()
    assert answer.value is None
    np.testing.assert_array_equal(answer.infeasible, [2])
    # each alone fits, together they do not: so much is needed
    must = np.array([True, True, False])
    answer = Case(fixed, Selection(mass, outer, must, nobody, kind), 4.0).solve()
    assert answer.value is None
    assert answer.infeasible.size == 0
    (conflict,) = answer.shared
    assert conflict.relax == {"use": pytest.approx(5.0)}
    assert Case(fixed, Selection(mass, outer, must, nobody, kind), 5.0 * (1 + 1e-9)).solve().value is not None
    # no allowed mass
    answer = Case(fixed, Selection(mass, Outer(1.0, least_mass=0.9), nobody, nobody, kind), 5.0).solve()
    assert answer.value is None
    assert "no selection" in answer.shared[0].text


def test_needs_exactly_one_limit() -> None:
    some = case(0)
    sums = Sums(("cost", "use"), np.array([1.0, 0.0]), 0.0, np.zeros(2), 1.0, np.array([np.inf, np.inf]))
    with pytest.raises(SolverError, match="exactly one limited sum"):
        minimize_selection(sums, some.cells, some.selection)


def test_interchangeable_units_are_not_searched_one_by_one() -> None:
    """Thirty of one kind: without symmetry breaking, half of them would be chosen in 10^8 ways."""
    count = 30
    fixed = Fixed(np.full(count, -1.0 / count), np.ones(count))
    nobody = np.zeros(count, dtype=bool)
    chosen = Selection(np.full(count, 1.0 / count), Outer(0.5), nobody, nobody, np.zeros(count, dtype=np.int64))
    some = Case(fixed, chosen, 14.5)
    answer = some.solve(gap=1e-9, max_nodes=5000)
    assert answer.value == pytest.approx(-14.0 / 30.0 + 0.5 * (16.0 / 30.0) ** 2, rel=1e-12)
    assert answer.lower_bound == pytest.approx(answer.value, rel=1e-9)


@pytest.mark.parametrize("batch", range(4))
def test_interchangeable_units_may_be_required_or_left_out(batch: int) -> None:
    """Twins of which some must be taken or left out cannot all stand for each other."""
    for seed in range(40 * batch, 40 * (batch + 1)):
        rng = np.random.default_rng(10_000 + seed)
        count = 7
        kind = rng.integers(0, 3, count)
        cost, use, mass = rng.uniform(0.1, 1.0, 3), rng.uniform(0.1, 1.0, 3), rng.uniform(0.1, 1.0, 3)
        required = rng.random(count) < 0.25
        selection = Selection(
            mass=mass[kind] / mass[kind].sum(),
            outer=Outer(weight=float(rng.uniform(0.5, 5.0)), per_mass=bool(seed % 2)),
            required=required,
            excluded=~required & (rng.random(count) < 0.2),
            kind=kind,
        )
        some = Case(Fixed(cost[kind], use[kind]), selection, float(rng.uniform(0.3, 1.0) * use[kind].sum()))
        best, answer = some.best(), some.solve(gap=1e-9)
        if not np.isfinite(best):
            assert answer.value is None
            continue
        assert answer.value == pytest.approx(best, rel=1e-7)
        assert answer.lower_bound is not None and answer.lower_bound <= best * (1.0 + 1e-9)


class Silent(Outer):
    """Bounds nothing, as it may."""

    def least(self, offset: Any, slope: Any, low: Any, high: Any) -> Any:
        return np.full(np.broadcast_shapes(np.shape(offset), np.shape(low)), -np.inf)


def test_a_problem_without_a_bound_is_searched_all_the_same() -> None:
    rng = np.random.default_rng(3)
    mass = np.full(5, 0.2)
    nobody = np.zeros(5, dtype=bool)
    selection = Selection(mass, Silent(weight=2.0), nobody, nobody.copy(), np.arange(5))
    some = Case(Fixed(rng.uniform(0.1, 1.0, 5), rng.uniform(0.1, 1.0, 5)), selection, 1.2)
    assert some.solve(gap=1e-9).value == pytest.approx(some.best())


def test_many_equal_units_are_improved_without_recursion() -> None:
    calls = 0

    def stop() -> None:
        nonlocal calls
        calls += 1
        if calls > 4:
            raise StopSearch

    count = 700
    rng = np.random.default_rng(0)
    nobody = np.zeros(count, dtype=bool)
    selection = Selection(np.full(count, 1.0 / count), Outer(weight=1.0), nobody, nobody.copy(), np.arange(count))
    some = Case(Fixed(rng.uniform(0.0, 1e-3, count), np.ones(count)), selection, 300.0)
    answer = some.solve(stop=stop)
    assert answer.value is not None
    assert answer.lower_bound is None or answer.lower_bound <= answer.value


def tree_bound(tree: SelectionTree) -> float:
    """Least bound of the leaves, each at least that of its ancestors."""
    least = tree.bound.copy()
    for row in range(len(tree)):
        if tree.parent[row] >= 0:
            assert tree.parent[row] < row
            least[row] = max(least[row], least[tree.parent[row]])
    leaf = np.ones(len(tree), dtype=bool)
    leaf[tree.parent[tree.parent >= 0]] = False
    return float(least[leaf].min())


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("max_nodes", [400, 100_000])
def test_the_tree_proves_the_bound(seed: int, max_nodes: int) -> None:
    problem = FEEL(FEEL.sample(devices=8, seed=seed))
    offered = problem.capabilities()
    answer = minimize_selection(offered.sums, offered.cells, offered.selection, gap=1e-4, max_nodes=max_nodes)
    tree = answer.search
    assert answer.lower_bound is not None
    assert tree_bound(tree) >= answer.lower_bound
    # every selection lies in some leaf: the children of a node decide one of its units, both ways, up to order
    for row in range(len(tree)):
        children = np.flatnonzero(tree.parent == row)
        if children.size == 2:
            split = np.flatnonzero((tree.state[children[0]] != 0) & (tree.state[row] == 0))
            assert np.any(tree.state[children[0], split] == -tree.state[children[1], split])
        assert np.all((tree.state[children] == tree.state[row]) | (tree.state[row] == 0))
        assert np.all(tree.low[children] == tree.low[row])
        assert np.all(tree.high[children] == tree.high[row])
    # the units' bounds are those of the priced response
    prices = np.zeros((2, tree.prices.size))
    prices[0], prices[1] = 1.0, tree.prices
    for vector, bounds in zip(prices.T, tree.unit_bounds, strict=True):
        value = CellsPriced(offered.cells).respond(vector).value
        finite = np.isfinite(value)
        assert np.all(bounds[finite] <= value[finite])
        assert np.all(np.isinf(bounds[~finite]))

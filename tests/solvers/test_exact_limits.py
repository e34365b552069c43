"""Several shared limits, ratios, infeasibility and interruption, on units whose choices can be enumerated."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jointopt.problem import Response, Sums
from jointopt.problems.ltfl import LTFL
from jointopt.solvers.dispatch import solve
from jointopt.solvers.exact import Exact, minimize_sums
from jointopt.solvers.monitor import StopSearch
from jointopt.solvers.priced import CellsPriced
from jointopt.system import FloatArray


@dataclass
class Menu:
    """Units that choose one row of a table; features [features, units, choices], nan where there is no choice."""

    table: FloatArray
    asked: int = 0

    @property
    def units(self) -> int:
        return self.table.shape[1]

    def respond(
        self,
        prices: FloatArray,
        *,
        units: Any = None,
        gap: float = 0.0,
        stop: Any = None,
        keep: bool = False,
    ) -> Response:
        if stop is not None:
            stop()
        self.asked += 1
        index = np.arange(self.units) if units is None else units
        table = self.table[:, index]
        vectors = np.broadcast_to(prices.reshape(prices.shape[0], -1), (prices.shape[0], index.size))
        value = np.nan_to_num(np.einsum("fu,fuk->uk", vectors, table), nan=np.inf)
        pick = np.argmin(value, axis=1)
        every = np.arange(index.size)
        least = value[every, pick]
        features = np.nan_to_num(table[:, every, pick])
        return Response(least, least.copy(), {"choice": pick.astype(np.float64)}, features, index.size)


def linear(limits: Any) -> Sums:
    """Minimise the first sum within limits on the others."""
    count = len(limits)
    return Sums(
        features=("cost", *(f"use{j}" for j in range(count))),
        numerator=np.eye(count + 1)[0],
        numerator_offset=0.0,
        denominator=np.zeros(count + 1),
        denominator_offset=1.0,
        limits=np.r_[np.inf, limits],
    )


def menu(rng: np.random.Generator, units: int, choices: int, limits: int) -> FloatArray:
    """Costs that fall with what is used, with noise."""
    use = rng.exponential(size=(limits, units, choices))
    cost = 1.0 / (0.2 + use.mean(axis=0)) * rng.uniform(0.5, 1.5, (units, choices))
    return np.concatenate([cost[None], use])


def totals(table: FloatArray) -> FloatArray:
    """Sums of every decision of a small menu, shape [features, decisions]."""
    units, choices = table.shape[1:]
    picks = np.array(list(itertools.product(range(choices), repeat=units)))
    return table[:, np.arange(units)[None], picks].sum(axis=2)


def check(table: FloatArray, sums: Sums, answer: Exact) -> None:
    """The value and the bound are what the certificate's fields say."""
    assert answer.value is not None
    pick = answer.decision["choice"].astype(int)
    used = table[:, np.arange(table.shape[1]), pick].sum(axis=1)
    assert np.all(used <= sums.limits * (1 + 1e-12))
    assert sums.objective(used) == pytest.approx(answer.value, rel=1e-12)
    assert answer.lower_bound is not None
    assert answer.lower_bound <= answer.value
    assert answer.multipliers is not None
    assert np.all(answer.multipliers >= 0.0)
    assert np.all(answer.multipliers[~np.isfinite(sums.limits)] == 0.0)
    np.testing.assert_allclose(
        answer.prices, sums.numerator - answer.ratio * sums.denominator + answer.multipliers, rtol=1e-12
    )
    least = np.einsum("f,fuk->uk", answer.prices, table).min(axis=1)
    np.testing.assert_allclose(answer.unit_bounds, least, rtol=1e-9, atol=1e-12)
    held = np.isfinite(sums.limits)
    excess = answer.unit_bounds.sum() - float(answer.multipliers[held] @ sums.limits[held])
    excess += sums.numerator_offset - answer.ratio * sums.denominator_offset
    if not sums.is_ratio:
        assert min(excess / sums.denominator_offset, answer.value) == pytest.approx(answer.lower_bound, rel=1e-12)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32 - 1), units=st.integers(1, 5), limits=st.integers(1, 4), tight=st.floats(0.0, 1.0))
def test_against_every_decision(seed: int, units: int, limits: int, tight: float) -> None:
    rng = np.random.default_rng(seed)
    table = menu(rng, units, 4, limits)
    every = totals(table)
    low, high = table[1:].min(axis=2).sum(axis=1), table[1:].mean(axis=2).sum(axis=1)
    sums = linear(low + tight * (high - low))
    kept = np.all(every <= sums.limits[:, None], axis=0)
    answer = minimize_sums(sums, Menu(table))
    if answer.value is None:
        assert not kept.any()
        return
    check(table, sums, answer)
    best = every[0, kept].min()
    assert answer.lower_bound is not None
    assert answer.lower_bound <= best * (1 + 1e-12)
    assert answer.value >= best * (1 - 1e-12)
    # with so few units the choices may be searched whole
    assert answer.value <= best * 1.5


@settings(max_examples=40, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32 - 1), limits=st.integers(0, 2), sign=st.sampled_from([-1.0, 1.0]))
def test_ratios_with_limits_against_every_decision(seed: int, limits: int, sign: float) -> None:
    rng = np.random.default_rng(seed)
    table = menu(rng, 4, 4, 2)
    every = totals(table)
    held = np.full(2, np.inf)
    held[:limits] = np.quantile(every[1 : 1 + limits], 0.3, axis=1)
    most = float(table[2].max(axis=1).sum())
    sums = Sums(
        ("cost", "use0", "use1"),
        np.array([1.0, 0.1, 0.0]),
        0.7,
        np.array([0.0, 0.0, sign]),
        1.0 + (most if sign < 0 else 0.0),
        np.r_[np.inf, held],
    )
    kept = np.all(every <= sums.limits[:, None], axis=0)
    answer = minimize_sums(sums, Menu(table))
    if answer.value is None:
        assert not kept.any()
        return
    check(table, sums, answer)
    best = min(sums.objective(z) for z in every[:, kept].T)
    assert answer.lower_bound is not None
    assert answer.lower_bound <= best * (1 + 1e-9)
    assert answer.value >= best * (1 - 1e-12)
    if limits == 0:
        assert answer.value == pytest.approx(best, rel=1e-9)
        assert answer.lower_bound == pytest.approx(best, rel=1e-6)


@pytest.mark.parametrize("limits", [1, 2, 3, 5])
@pytest.mark.parametrize(("units", "gap"), [(1000, 5e-4), (20_000, 2e-4)])
def test_the_gap_shrinks_with_the_number_of_units(limits: int, units: int, gap: float) -> None:
    table = menu(np.random.default_rng(limits), units, 8, limits)
    pick = table[0].argmin(axis=1)
    free = table[1:, np.arange(units), pick].sum(axis=1)
    low = table[1:].min(axis=2).sum(axis=1)
    sums = linear(low + 0.7 * (free - low))
    answer = minimize_sums(sums, Menu(table))
    check(table, sums, answer)
    assert answer.kind == "dual"
    assert answer.lower_bound is not None
    assert answer.value is not None
    assert answer.value - answer.lower_bound <= gap * max(1.0, limits / 3) * answer.value


def test_the_same_seed_gives_the_same_answer() -> None:
    table = menu(np.random.default_rng(3), 6000, 8, 2)
    sums = linear(0.6 * table[1:].mean(axis=2).sum(axis=1))
    one, other = minimize_sums(sums, Menu(table)), minimize_sums(sums, Menu(table))
    assert one.value == other.value
    assert one.lower_bound == other.lower_bound
    np.testing.assert_array_equal(one.decision["choice"], other.decision["choice"])


def test_known_multipliers_save_work() -> None:
    table = menu(np.random.default_rng(4), 500, 8, 3)
    sums = linear(0.6 * table[1:].mean(axis=2).sum(axis=1))
    cold, warm = Menu(table), Menu(table)
    first = minimize_sums(sums, cold, gap=1e-3)
    second = minimize_sums(sums, warm, gap=1e-3, start=(first.multipliers, 0.0))
    assert warm.asked < cold.asked
    assert second.value == pytest.approx(first.value, rel=1e-3)


# ------------------------------------------------------------------ limits that cannot be kept


def test_one_limit_below_the_least_use() -> None:
    table = menu(np.random.default_rng(0), 20, 5, 2)
    low = table[1:].min(axis=2).sum(axis=1)
    answer = minimize_sums(linear([0.8 * low[0], 10 * low[1]]), Menu(table))
    assert answer.value is None
    (conflict,) = answer.shared
    assert conflict.binding == "use0"
    assert conflict.relax["use0"] == pytest.approx(low[0])
    assert conflict.factor == pytest.approx(1.25)


def test_two_limits_that_exclude_each_other() -> None:
    # a unit uses (1, 0) or (0, 1); a third limit is harmless
    units = 40
    table = np.zeros((4, units, 2))
    table[0] = 1.0
    table[1, :, 0] = 1.0
    table[2, :, 1] = 1.0
    table[3] = 0.5
    sums = linear([15.0, 15.0, 30.0])
    answer = minimize_sums(sums, Menu(table))
    assert answer.value is None
    (conflict,) = answer.shared
    assert conflict.binding == "use0 and use1"
    assert conflict.relax == {"use0": pytest.approx(25.0), "use1": pytest.approx(25.0)}
    assert conflict.factor == pytest.approx(40 / 30)
    assert minimize_sums(linear([25.0, 15.0, 30.0]), Menu(table)).value is not None
    assert minimize_sums(linear([20.0, 20.0, 30.0]), Menu(table)).value is not None


def test_every_irreducible_set_is_reported() -> None:
    table = np.zeros((4, 10, 2))
    table[1, :, 0] = 1.0
    table[2, :, 1] = 1.0
    table[3] = 1.0
    answer = minimize_sums(linear([3.0, 3.0, 9.0]), Menu(table))
    assert {c.binding for c in answer.shared} == {"use0 and use1", "use2"}


@settings(max_examples=40, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32 - 1))
def test_a_refusal_is_right_and_its_relaxations_suffice(seed: int) -> None:
    rng = np.random.default_rng(seed)
    table = menu(rng, 4, 4, 3)
    every = totals(table)
    sums = linear(np.quantile(every[1:], rng.uniform(0.02, 0.15), axis=1))
    kept = np.all(every <= sums.limits[:, None], axis=0)
    answer = minimize_sums(sums, Menu(table))
    if answer.value is not None:
        assert kept.any()
        return
    for conflict in answer.shared:
        if not conflict.relax:  # whole choices do not meet limits that mixtures of choices do
            assert "not proved" in conflict.text
            continue
        assert not kept.any()
        names = [int(n.removeprefix("use")) for n in conflict.budget]
        inside = np.array(names) + 1
        assert not np.any(np.all(every[inside] <= sums.limits[inside, None], axis=0))
        for j in inside if len(names) > 1 else ():
            others = [k for k in inside if k != j]
            name = f"use{j - 1}"
            need = every[j, np.all(every[others] <= sums.limits[others, None], axis=0)].min(initial=np.inf)
            if conflict.relax[name] is not None:
                assert conflict.relax[name] >= need * (1 - 1e-9)


# ------------------------------------------------------------------ stopping


@pytest.mark.parametrize("error", [StopSearch, KeyboardInterrupt])
@pytest.mark.parametrize("calls", [2, 4, 6, 10])
def test_a_stopped_search_returns_what_it_has(error: type[BaseException], calls: int) -> None:
    table = menu(np.random.default_rng(1), 300, 6, 3)
    sums = linear(0.7 * table[1:].mean(axis=2).sum(axis=1))
    count = 0

    def stop() -> None:
        nonlocal count
        count += 1
        if count > calls:
            raise error

    try:
        answer = minimize_sums(sums, Menu(table), gap=1e-9, stop=stop)
    except error:
        assert calls < 6
        return
    assert isinstance(answer.stopped, error)
    check(table, sums, answer)


def test_progress_is_told() -> None:
    table = menu(np.random.default_rng(1), 300, 6, 2)
    sums = linear(0.7 * table[1:].mean(axis=2).sum(axis=1))
    told: list[Any] = []
    answer = minimize_sums(sums, Menu(table), report=lambda *args: told.append(args))
    cells, values, bounds, decisions = zip(*told, strict=True)
    assert list(cells) == sorted(cells)
    known = [v for v in values if v is not None]
    assert known == sorted(known, reverse=True)
    assert all(b is None or b <= answer.value for b in bounds)
    assert all((d is None) == (v is None) for d, v in zip(decisions, values, strict=True))


# ------------------------------------------------------------------ through `solve`


def coupled(devices: int = 40, share: float = 1.02, seed: int = 0) -> LTFL:
    """LTFL where A < 1 binds."""
    system = LTFL.sample(devices=devices, seed=seed)
    free = solve(LTFL(system))
    assert free.evaluation is not None
    lost = float(system.weight @ free.evaluation.quantities["packet_error"])
    return LTFL(system.with_(gradient_slope=share / (8 * lost)))


def test_the_certificate_says_how_its_bound_follows() -> None:
    result = solve(coupled())
    proof = result.certificate
    sums = result.problem.capabilities().sums
    assert proof.kind == "dual"
    assert proof.multipliers["contraction"] > 0.0
    assert proof.multipliers["gap"] == 0.0
    assert proof.prices["contraction"] == proof.multipliers["contraction"]
    assert proof.unit_bounds is not None
    excess = proof.unit_bounds.sum() - proof.multipliers["contraction"] * sums.limits[1]
    assert excess == pytest.approx(result.lower_bound, rel=1e-12)
    assert proof.leaves is not None
    least = np.full(40, np.inf)
    np.minimum.at(least, proof.leaves.unit, proof.leaves.bound)
    assert np.all(least >= proof.unit_bounds)
    assert result.message.startswith("chose exact: ")
    assert "1 of them shared limit" in result.message


def test_an_interrupted_solve_keeps_its_bound() -> None:
    problem = coupled()
    whole = solve(problem)
    steps: list[Any] = []

    def callback(progress: Any) -> None:
        steps.append(progress)
        if progress.best is not None and np.isfinite(progress.best) and progress.lower_bound is not None:
            raise KeyboardInterrupt

    result = solve(problem, callback=callback)
    assert result.status == "interrupted"
    assert result.feasible
    assert result.lower_bound is not None
    assert result.lower_bound == pytest.approx(steps[-1].lower_bound, rel=1e-12)
    assert result.value <= steps[-1].best
    assert result.lower_bound <= whole.value <= result.value


def test_an_error_of_the_callback_carries_the_incumbent() -> None:
    problem = coupled()

    def callback(progress: Any) -> None:
        if progress.best is not None:
            raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match=r"^mine$") as caught:
        solve(problem, callback=callback)
    incumbent = caught.value.incumbent  # type: ignore[attr-defined]
    assert incumbent.feasible
    assert problem.evaluate(incumbent.decision).feasible()


@pytest.mark.parametrize(("devices", "seed", "share"), [(3, 0, 1.01), (4, 2, 1.02), (20, 0, 1.05), (60, 1, 1.02)])
def test_no_other_multiplier_proves_more(devices: int, seed: int, share: float) -> None:
    # few units cannot use all of the limit each, which narrows them: the dual function is that of the narrowed ones
    problem = coupled(devices, share, seed)
    offered = problem.capabilities()
    priced = CellsPriced(offered.cells)
    answer = minimize_sums(offered.sums, priced)
    if answer.value is None or answer.kind != "dual":
        return
    narrowed = priced.capped(1, answer.caps[1])
    assert narrowed is not None
    assert answer.multipliers is not None
    assert answer.lower_bound is not None
    for factor in np.linspace(0.5, 2.0, 31):
        multipliers = answer.multipliers * factor
        dual = narrowed.respond(offered.sums.numerator + multipliers).lower_bound.sum()
        dual -= multipliers[1] * offered.sums.limits[1]
        assert dual <= answer.lower_bound * (1 + 2e-6)

"""What every priced response must do, whatever the problem: inherit and say how to make one and what is true."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from jointopt import systems
from jointopt.models._array import namespace
from jointopt.problem import Priced, Response, Variable
from jointopt.problems import DESIGNS
from jointopt.problems.declared import DeclaredProblem
from jointopt.problems.terms import each, total
from jointopt.solvers.priced import priced_of

GAP = 1e-5


class PricedContract:
    """Inherit, and give `make`, `priced`, `prices` and `brute`."""

    __test__ = False

    def __init_subclass__(cls) -> None:
        cls.__test__ = True

    features = 2
    nonnegative_features = True

    def make(self, seed: int) -> Any:
        """Return whatever `priced`, `prices` and `brute` need."""
        raise NotImplementedError

    def priced(self, made: Any) -> Priced:
        raise NotImplementedError

    def prices(self, made: Any, rng: np.random.Generator) -> np.ndarray:
        """Return prices of a size that matters, shape [features]."""
        raise NotImplementedError

    def brute(self, made: Any, unit: int, prices: np.ndarray) -> float:
        """Return the least priced value of a unit over a fine grid; inf where nothing is feasible."""
        raise NotImplementedError

    def _answer(self, seed: int) -> tuple[Any, Priced, np.ndarray, Response]:
        made = self.make(seed)
        priced = self.priced(made)
        prices = self.prices(made, np.random.default_rng(seed))
        return made, priced, prices, priced.respond(prices, gap=GAP)

    @pytest.mark.parametrize("seed", range(4))
    def test_bound_is_below_value_and_within_the_gap(self, seed: int) -> None:
        _, _, _, answer = self._answer(seed)
        found = answer.feasible
        assert np.all(answer.lower_bound <= answer.value)
        assert np.all(answer.value[found] - answer.lower_bound[found] <= 1.01 * GAP * np.abs(answer.value[found]))

    @pytest.mark.parametrize("seed", range(4))
    def test_equals_brute_force(self, seed: int) -> None:
        made, priced, prices, answer = self._answer(seed)
        known = {unit: self.brute(made, unit, prices) for unit in range(min(priced.units, 6))}
        assert np.isfinite(list(known.values())).any()
        for unit, brute in known.items():
            if np.isinf(brute):
                continue
            slack = 1e-9 * abs(brute)
            # no point of any grid lies below the bound, and the search is no worse than the grid
            assert answer.lower_bound[unit] <= brute + slack
            assert answer.value[unit] <= brute + 1.1 * GAP * abs(brute)

    @pytest.mark.parametrize("seed", range(4))
    def test_value_is_prices_times_features(self, seed: int) -> None:
        _, _, prices, answer = self._answer(seed)
        found = answer.feasible
        priced = prices @ answer.features
        np.testing.assert_allclose(priced[found], answer.value[found], rtol=1e-9)
        assert np.all(answer.features[:, ~found] == 0.0)

    @pytest.mark.parametrize("seed", range(4))
    def test_value_is_concave_and_monotone_in_prices(self, seed: int) -> None:
        made, priced, first, answer = self._answer(seed)
        second = self.prices(made, np.random.default_rng(100 + seed))
        other = priced.respond(second, gap=GAP)
        middle = priced.respond(0.5 * (first + second), gap=GAP)
        found = answer.feasible & other.feasible
        mean = 0.5 * (answer.lower_bound + other.lower_bound)
        assert np.all(middle.value[found] >= mean[found] - 1e-9 * np.abs(mean[found]))
        if self.nonnegative_features:
            for j in range(first.size):
                dearer = first.copy()
                dearer[j] *= 3.0
                raised = priced.respond(dearer, gap=GAP)
                more = raised.value >= answer.lower_bound - 1e-9 * np.abs(answer.lower_bound)
                assert np.all(more[answer.feasible])
                # what costs more is used less
                change = (raised.features[j] - answer.features[j])[answer.feasible]
                room = 2.5 * GAP * np.abs(raised.value + answer.value)[answer.feasible] / (dearer[j] - first[j])
                assert np.all(change <= room)

    def test_units_on_their_own_and_with_prices_of_their_own(self) -> None:
        made, priced, prices, answer = self._answer(1)
        which = np.array([priced.units - 1, 0, 0])
        some = priced.respond(prices, units=which, gap=GAP)
        np.testing.assert_allclose(some.value, answer.value[which], rtol=3 * GAP)
        other = self.prices(made, np.random.default_rng(7))
        mixed = priced.respond(np.stack([prices, other, prices], axis=1), units=which, gap=GAP)
        alone = priced.respond(other, units=which[1:2], gap=GAP)
        np.testing.assert_allclose(mixed.value, [some.value[0], alone.value[0], some.value[2]], rtol=3 * GAP)

    def test_leaves_prove_the_bound(self) -> None:
        _, priced, prices, answer = self._answer(2)
        kept = priced.respond(prices, gap=GAP, keep=True)
        assert kept.leaves is not None
        least = np.full(priced.units, np.inf)
        np.minimum.at(least, kept.leaves.unit, kept.leaves.bound)
        found = kept.feasible
        np.testing.assert_allclose(np.minimum(least, kept.value)[found], kept.lower_bound[found], rtol=1e-12)
        assert np.all(kept.leaves.low <= kept.leaves.high)
        np.testing.assert_allclose(kept.value[found], answer.value[found], rtol=3 * GAP)


def _grid_of_cells(made: Any, unit: int, prices: np.ndarray, points: int = 4001) -> float:
    """Least value of `Cells` over a grid of x and all labels."""
    cells = made.capabilities().cells
    low, high = cells.low[unit], cells.high[unit]
    x = np.geomspace(low, high, points) if low > 0.0 else np.linspace(low, high, points)
    least = np.inf
    for label in np.arange(cells.bits_low[unit], cells.bits_high[unit] + 1):
        rows = np.full(points, unit)
        value = cells.value(prices, rows, np.full(points, label), x, cells.probe(rows, x))
        least = min(least, float(np.min(value)))
    return least


class TestCellsOfLTFL(PricedContract):
    def make(self, seed: int) -> Any:
        law = ["linear", "laplace"][seed % 2]
        system = systems.ltfl(devices=8, seed=seed).with_(
            pruning_error=law, fading=["rayleigh", "none"][seed // 2 % 2], gradient_slope=0.05
        )
        return DESIGNS["ltfl"](system)

    def priced(self, made: Any) -> Priced:
        found = priced_of(made.capabilities())
        assert found is not None
        return found

    def prices(self, made: Any, rng: np.random.Generator) -> np.ndarray:
        return np.array([rng.uniform(0.5, 2.0), rng.uniform(0.0, 100.0)])

    def brute(self, made: Any, unit: int, prices: np.ndarray) -> float:
        return _grid_of_cells(made, unit, prices)


class TestCellsOfFEEL(PricedContract):
    def make(self, seed: int) -> Any:
        return DESIGNS["feel"](systems.feel(8, seed))

    def priced(self, made: Any) -> Priced:
        found = priced_of(made.capabilities())
        assert found is not None
        return found

    def prices(self, made: Any, rng: np.random.Generator) -> np.ndarray:
        band = made.system.radio.total_bandwidth
        return np.array([1.0, rng.uniform(0.1, 3.0) / band])

    def brute(self, made: Any, unit: int, prices: np.ndarray) -> float:
        # every kept fraction at the least band that it needs
        cells = made.capabilities().cells
        whole = cells.cover(prices, slice(unit, unit + 1))
        points = np.concatenate([np.linspace(a, b, 400) for a, b in zip(whole.low, whole.high, strict=True)])
        labels = np.repeat(whole.label, 400)
        rows = np.full(points.size, unit)
        value = cells.value(prices, rows, labels, points, cells.probe(rows, points))
        return float(np.min(value, initial=np.inf))


class TestBoxesOfADeclaredProblem(PricedContract):
    """One problem per seed: constraints that bind or not, integers, a variable with a closed form."""

    def make(self, seed: int) -> Any:
        rng = np.random.default_rng(seed)
        devices = 6
        system = systems.ltfl(devices=devices, seed=seed)
        gain = rng.uniform(0.5, 3.0, devices)
        work = rng.uniform(0.5, 2.0, devices)
        system = system.with_(delay_budget=work * rng.uniform(0.8, 3.0, devices), energy_budget=gain)

        def model(s: Any, x: Any) -> dict[str, Any]:
            rate = xp_log1p(x.power * s.devices.energy_budget)
            kept = 1.0 - x.ratio
            return {
                "loss": x.ratio * x.ratio + 0.3 / (1.0 + x.bits) + 0.1 * xp_exp(-3.0 * x.power),
                "delay": kept * x.bits / (4.0 * rate) + 0.2,
                "use": x.power * kept + 0.05 * x.bits,
            }

        return DeclaredProblem(
            system,
            variables=[
                Variable("ratio", 0.0, 0.9),
                Variable("bits", 1, 6, kind="integer"),
                Variable("power", 0.05, 2.0),
            ],
            model=model,
            objective=total("loss"),
            constraints={"delay": each("delay") <= "devices.delay_budget", "use": total("use") <= 3.0},
        )

    def priced(self, made: Any) -> Priced:
        found = priced_of(made.capabilities())
        assert found is not None
        return found

    def prices(self, made: Any, rng: np.random.Generator) -> np.ndarray:
        return np.array([rng.uniform(0.5, 1.5), rng.uniform(0.0, 1.0)])

    def brute(self, made: Any, unit: int, prices: np.ndarray) -> float:
        boxes = made.capabilities().boxes
        ratio, power = np.meshgrid(np.linspace(0.0, 0.9, 601), np.geomspace(0.05, 2.0, 601))
        rows = np.full(ratio.size, unit)
        least = np.inf
        for bits in range(1, 7):
            x = [ratio.ravel(), np.full(ratio.size, float(bits)), power.ravel()]
            value, excess = boxes.terms(np.repeat(prices[:, None], ratio.size, axis=1), rows, x)
            fits = np.all([g <= 0.0 for g in excess], axis=0)
            least = min(least, float(np.min(np.where(fits, value, np.inf))))
        return least


def xp_log1p(x: Any) -> Any:
    return namespace(x).log1p(x)


def xp_exp(x: Any) -> Any:
    return namespace(x).exp(x)

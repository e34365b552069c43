"""FEEL with measured laws of pruning: certificates against a search over all selections and kept fractions."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

import jointopt as jo
from jointopt.problem import CellList
from jointopt.problems.feel import FEEL
from jointopt.problems.feel_cells import Client, FEELCells
from jointopt.system import System

CLIENTS, STEPS, FINE = 3, 60, 3000


def drawn(seed: int) -> System:
    """Three clients with a random convex curve, a random law of computing, and bands from scarce to ample."""
    rng = np.random.default_rng([seed, 11])
    base = jo.systems.feel(CLIENTS, seed)
    most = float(rng.uniform(0.4, 0.97))
    knots = np.append(0.0, np.cumsum(10.0 ** rng.uniform(-1.5, 0.0, rng.integers(1, 12))))
    slopes = np.cumsum(10.0 ** rng.uniform(-2.0, 1.5, knots.size - 1) * (rng.random(knots.size - 1) < 0.8))
    knots *= (most if rng.random() < 0.3 else 1.0) / knots[-1]
    values = np.append(0.0, np.cumsum(slopes * np.diff(knots)))
    law = str(rng.choice(["linear", "mask", "affine", "affine"]))
    assert base.generalization is not None
    return base.with_(
        pruning_error="measured",
        pruning_curve_ratio=knots,
        pruning_curve_error=values * rng.uniform(0.2, 0.99) * knots[-1] / max(values[-1], 1e-9),
        pruning_ratio_max=most,
        compute_law=law,
        compute_floor=float(rng.uniform()) if law == "affine" else None,
        mask_encoding=str(rng.choice(["none", "bitmap", "indices"])),
        weight_norm_squared=base.bound.weight_norm_squared * 10.0 ** rng.uniform(-2.5, 1.0),
        mask_energy=base.bound.mask_energy * float(rng.choice([0.0, 0.1, 1.0])),
        gradient_offset=base.bound.gradient_offset * 10.0 ** rng.uniform(-2.0, 1.0),
        gradient_proxy=base.generalization.gradient_proxy * 10.0 ** rng.uniform(-0.5, 1.5, CLIENTS),
        total_bandwidth=base.radio.total_bandwidth * 10.0 ** rng.uniform(-0.7, 0.7),
        delay_budget=base.devices.delay_budget * rng.uniform(0.7, 2.0, CLIENTS),
        unpruned_parameters=int(rng.choice([0, 100, 3000])),
    )


def cost_of(system: System, k: int, ratio: Any) -> Any:
    """n_k (4 Phi_k + 4 L^2 D^2 e + 2 M^2 r), the curve read by straight lines."""
    bound, general, learner = system.bound, system.generalization, system.learner
    assert general is not None
    known = float(general.mutual_information[k]) * (1.0 if general.mutual_information_law == "fixed" else 1.0 - ratio)
    trained = (1.0 - ratio) * learner.parameters + learner.unpruned_parameters
    samples = system.devices.samples[k]
    phi = 4.0 * general.gradient_proxy[k] / samples * (known + 0.5 * np.log(2.0) * trained)
    removed = np.interp(ratio, bound.pruning_curve_ratio, bound.pruning_curve_error)
    lost = 4.0 * bound.smoothness**2 * bound.weight_norm_squared * removed + 2.0 * bound.mask_energy * ratio
    return samples * (4.0 * phi + lost)


def search(system: System) -> float:
    """Least Gamma over all selections: ratios from a grid with the corners of the curve, but one, which is finer.

    That one takes the best of what the others leave of the band; each client is it in turn.
    """
    most, bound = system.learner.pruning_ratio_max, system.bound
    client = Client(system)
    assert system.radio.total_bandwidth is not None
    corners = bound.pruning_curve_ratio[bound.pruning_curve_ratio <= most]

    def table(k: int, steps: int) -> tuple[Any, Any]:
        ratio = np.unique(np.append(np.linspace(0.0, most, steps), corners))
        band = np.exp(client.least_bandwidth(np.full(ratio.size, k), 1.0 - ratio)[0]) / system.radio.total_bandwidth
        return band, cost_of(system, k, ratio)

    coarse, fine = ([table(k, steps) for k in range(CLIENTS)] for steps in (STEPS, FINE))
    samples, best = system.devices.samples, np.inf
    for chosen in itertools.product((False, True), repeat=CLIENTS):
        taken = np.flatnonzero(chosen)
        for last in taken:
            use, total = np.zeros(1), np.zeros(1)
            for k in taken[taken != last]:
                use, total = np.add.outer(use, coarse[k][0]).ravel(), np.add.outer(total, coarse[k][1]).ravel()
            order = np.argsort(fine[last][0])
            band, reached = fine[last][0][order], np.minimum.accumulate(fine[last][1][order])
            at = np.searchsorted(band, 1.0 - use, side="right") - 1
            total = np.where(at >= 0, total + reached[np.maximum(at, 0)], np.inf)
            mass = samples[taken].sum()
            gap = float(total.min()) / mass + 8.0 * bound.gradient_offset * (1.0 - mass / samples.sum()) ** 2
            best = min(best, gap)
    return best


@pytest.mark.parametrize("part", range(6))
def test_clients_ratios_and_bands_are_chosen_exactly(part: int) -> None:
    solved = 0
    for seed in range(12 * part, 12 * part + 12):
        system = drawn(seed)
        problem, found = FEEL(system), search(system)
        result = jo.solve(problem, method="exact")
        if result.value is None:
            assert not np.isfinite(found)
            continue
        solved += 1
        assert result.status == "optimal"
        assert result.lower_bound is not None
        assert result.lower_bound <= result.value
        assert result.lower_bound <= found * (1.0 + 1e-12)
        assert result.value <= found * (1.0 + 1.1e-5)
        # the grids are coarse where the band is scarce
        assert found <= result.value * 1.01
        evaluation = problem.evaluate(result.decision)
        assert bool(evaluation.feasible())
        assert float(evaluation.objective) == pytest.approx(result.value, rel=1e-12)
        if seed % 12 == 0:
            result.verify()
    assert solved >= 6


@pytest.mark.parametrize("seed", range(12))
def test_no_kept_fraction_lies_below_the_bound_of_its_cell(seed: int) -> None:
    problem = FEEL(drawn(seed))
    cells = FEELCells(problem)
    rng = np.random.default_rng([seed, 12])
    units = np.flatnonzero(cells.fits)
    if units.size == 0:
        pytest.skip("nobody can take part")
    count = 1_000
    unit = rng.choice(units, count)
    low, top = cells.least[unit], cells.top[unit]
    ends = np.sort(low * (top / low) ** rng.random((2, count)), axis=0)
    # narrow ones too, and those that begin or end at corners
    narrow = rng.random(count) < 0.4
    ends[1] = np.where(narrow, np.minimum(ends[0] * (1.0 + 10.0 ** rng.uniform(-9.0, -1.0, count)), top), ends[1])
    corner = np.clip(1.0 - rng.choice(problem.system.bound.pruning_curve_ratio, count), low, top)
    ends = np.sort(np.where(rng.random((2, count)) < 0.15, corner, ends), axis=0)
    cost = float(np.abs(cells.cost(unit, top)).mean()) / cells.client.band
    prices = np.array([1.0, cost]) * np.where(rng.random() < 0.1, 0.0, 10.0 ** rng.uniform(-3.0, 3.0, 2))
    own = CellList(unit, np.zeros(count, np.int64), *ends, cells.probe(unit, ends[0]), cells.probe(unit, ends[1]))
    bound, hint = cells.bound(prices, own)
    assert np.all((hint >= ends[0]) & (hint <= ends[1]))
    for share in np.append(np.linspace(0.0, 1.0, 15), rng.random(10)):
        x = np.clip(ends[0] + share * (ends[1] - ends[0]), *ends)
        value = cells.value(prices, unit, None, x, cells.probe(unit, x))
        size = np.where(np.isfinite(value), np.abs(value), 1.0) + prices[0] * cells.weight[unit] * (
            cells.smooth + cells.masked
        )
        assert np.all(bound <= value + 1e-11 * size)
    # in narrow cells nothing is left open: the error falls with the square of the width, corners or not
    tight = np.flatnonzero(
        (ends[1] < ends[0] * (1.0 + 1e-4)) & np.isfinite(own.data_low[0]) & np.isfinite(own.data_high[0])
    )
    first, last = (cells.value(prices, unit, None, end, cells.probe(unit, end))[tight] for end in (ends[0], ends[1]))
    at = np.clip(hint, *ends)
    inner = cells.value(prices, unit, None, at, cells.probe(unit, at))[tight]
    least = np.minimum(np.minimum(first, last), inner)
    scale = np.abs(least) + prices[0] * (cells.weight * (cells.smooth + cells.masked))[unit[tight]]
    # the hint keeps off the ends by a fiftieth of the width
    assert np.all(least - bound[tight] <= 1e-5 * scale)

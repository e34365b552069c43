"""What one device does at prices on the band and on its own latency: cells of `RatioError` between two latencies.

Let lambda be what a second of the round costs, and mu_u >= 0 shares of it that add up to lambda. A round of length T in
[T_1, T_2] costs lambda T >= sum_u mu_u T_u for all T_u <= T. So the sum over devices of the least, over bands and over
T_u in [T_1, T_2], of

    mu_u T_u + w_u C (1 - k(b, T_u)) + w_u C_q q(b)

bounds the objective at every such T, whatever the shares; at shares equal to the slopes of these least values the error
falls with the square of T_2 - T_1 [D].

At a given band and a linear pruning error the sum is convex and piecewise linear in T_u, since k is affine in T_u up to
the most that is kept. Its least is taken at T_1, at T_2, where everything is kept, or where as little as allowed is
kept. These are the labels; the last two have T_u = t0 + t1 k + (c0 + c1 k)/R(b), convex in b since R is concave.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from jointopt.problems.band_cells import BandCells
from jointopt.system import FloatArray

if TYPE_CHECKING:
    from jointopt.problems.packet import RatioError

__all__ = ["LatencyCells", "latency_shares"]

EARLY, LATE, WHOLE, LEAST = range(4)
"""The labels: at the earlier latency, at the later one, everything kept, as little as allowed kept."""
PRICES = 17
"""Prices of the band that are tried at a time."""


class LatencyCells(BandCells):
    """Units between two latencies, each with a price of its time [1/s]."""

    per_unit = (*BandCells.per_unit, "slow")

    def __init__(self, problem: RatioError, first: float, last: float, slow: FloatArray) -> None:
        budget = problem.system.devices.delay_budget
        early, late = np.minimum(budget, first), np.minimum(budget, last)
        deadlines = np.stack([early, late, late, late])
        constant = np.zeros(deadlines.shape)
        constant[EARLY] = slow * first / problem.system.weight
        constant[LATE] = slow * np.maximum(late, first) / problem.system.weight
        self.slow = slow
        super().__init__(problem, deadlines, constant=constant, marks={"latency": 0.5 * (first + last)})

    def _prepare(self) -> None:
        super()._prepare()
        for label, kept in ((WHOLE, self.kept_high), (LEAST, self.kept_low)):
            early, late = self._band_for(kept)[[EARLY, LATE]]
            self.low[label] = np.maximum(late, np.maximum(self.band_low, self.band_least))
            self.high[label] = np.minimum(early, self.band_high)
            self.feasible[label] = (self.low[label] <= self.high[label]) & (
                self.deadlines[LATE] > self.deadlines[EARLY]
            )
            self.high[label] = np.maximum(self.high[label], self.low[label])

    def _ends(self, unit: Any, label: Any) -> Any:
        """What is kept where the time follows from the band."""
        return np.where(label == WHOLE, self.kept_high[unit], self.kept_low[unit])

    def _timed(self, unit: Any, kept: Any, rate: Any) -> tuple[Any, Any]:
        """Return (time, bits) of a round."""
        bits = self.bits_once + self.bits_each * kept
        return self.time_once[unit] + self.time_each[unit] * kept + bits / rate, bits

    def kept(self, unit: Any, label: Any, rate: Any) -> Any:
        """Fraction that is kept at a rate."""
        return np.where(np.asarray(label) >= WHOLE, self._ends(unit, label), super().kept(unit, label, rate))

    def _convex(self, prices: FloatArray, unit: Any, label: Any, x: Any, data: Any) -> tuple[Any, Any]:
        value, slope = super()._convex(prices, unit, label, x, data)
        price = self._of(prices, 0, unit)
        kept = self._ends(unit, label)
        time, bits = self._timed(unit, kept, data[0])
        band = self._band_price(prices, unit)
        own = price * (self.weight[unit] * self.error(kept) + self.slow[unit] * time) + band * x
        falls = band - price * self.slow[unit] * bits * data[1] / data[0] ** 2
        timed = label >= WHOLE
        return np.where(timed, own, value), np.where(timed, falls, slope)

    def complete(self, prices: FloatArray, unit: Any, label: Any, x: Any) -> tuple[dict[str, FloatArray], FloatArray]:
        """Return the decision and the features in a band x; the cost holds the device's share of the latency."""
        decision, features = super().complete(prices, unit, label, x)
        time, _ = self._timed(unit, self._ends(unit, label), self.rate(unit, x))
        features[0] += np.where(label >= WHOLE, self.slow[unit] * time, 0.0)
        return decision, features


def latency_shares(cells: BandCells, band: float, total: float) -> FloatArray:
    """Return each device's share [1/s] of what a second costs: how fast its cost falls with the latency of `cells`.

    Parameters
    ----------
    cells : BandCells
        All devices at one latency.
    band : float
        The band that they share [Hz].
    total : float
        What the shares add up to [1/s].
    """
    unit = np.arange(cells.units)
    label = np.zeros(cells.units, dtype=np.int64)
    low, high = np.log(cells.low[0]), np.log(cells.high[0])
    # several prices of the band at once, each with units of its own
    several = np.tile(unit, PRICES)
    tried = cells.take(several)
    rows, first = np.arange(several.size), np.zeros(several.size, dtype=np.int64)

    def best(price: FloatArray) -> FloatArray:
        """Bands [prices, devices] of least cost at prices."""
        of = np.zeros((len(cells.features), several.size))
        of[0], of[1] = 1.0, np.repeat(price, cells.units)
        left, right = low[several], high[several]
        for _ in range(24):
            middle = 0.5 * (left + right)
            x = np.exp(middle)
            up = tried._convex(of, rows, first, x, tried.probe(rows, x))[1] >= 0.0
            left, right = np.where(up, left, middle), np.where(up, middle, right)
        out: FloatArray = np.exp(right).reshape(PRICES, cells.units)
        return out

    # from what all the learning cost spread over the band would be, down and up
    scale = np.log(cells.whole / band)
    cheap, dear = scale - 30.0, scale + 30.0
    for _ in range(5):
        grid = np.linspace(cheap, dear, PRICES)
        bands = best(np.exp(grid))
        at = int(np.argmax(bands.sum(axis=1) <= band)) if bands[-1].sum() <= band else PRICES - 1
        cheap, dear = float(grid[max(at - 1, 0)]), float(grid[at])
        price, x = float(np.exp(dear)), bands[at]
    rate, slope, lost = cells.probe(unit, x)
    nudged = cells.probe(unit, x * (1.0 + 1e-6))[2]
    price_here = price + cells.weight * cells.transmission * (nudged - lost) / (1e-6 * x)
    inside = (x > cells.low[0] * (1.0 + 1e-6)) & (x < cells.high[0] * (1.0 - 1e-6))
    most = x >= cells.high[0] * (1.0 - 1e-6)
    bits = cells.bits_once + cells.bits_each * np.where(most, cells.kept_high, cells.kept_low)
    by_band = price_here * rate**2 / (bits * np.maximum(slope, 1e-300))
    by_ratio = cells.weight * cells.whole * rate / (cells.time_each * rate + cells.bits_each)
    # at an end the band follows from the latency, unless more would be kept than is wanted
    falls = np.where(inside, by_ratio, np.where(most, np.minimum(by_band, by_ratio), by_band))
    falls = np.where(cells.kept_low >= cells.kept_high, by_band, falls)
    whole_model = cells.kept(unit, label, rate) >= cells.kept_high
    falls = np.where(cells.band_low >= cells.band_high, np.where(whole_model, 0.0, by_ratio), falls)
    falls = np.where(np.isfinite(falls), np.maximum(falls, 0.0), 0.0)
    whole = float(falls.sum())
    return falls * (total / whole) if whole > 0.0 else np.full(cells.units, total / cells.units)

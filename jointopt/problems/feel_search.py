"""FEEL for Bayesian optimization: who takes part is searched, the rest follows.

With the clients chosen the mass is fixed and what is left, the least cost under the shared band, is a sum over
clients. At a price on bandwidth each client picks its kept fraction from a table; the price is halved until the band is
just used up. Where the last two prices differ the fractions lie in between, on the chord in logarithms, which lies
above the least bandwidth (convex in logarithms, see `jointopt.problems.feel_cells`): the decision stays within the
band. A finer table around the first answer leaves an error of about 1e-7 of the cost.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from jointopt.decision import Decision
from jointopt.problems.feel_cells import FEELCells
from jointopt.system import FloatArray

if TYPE_CHECKING:
    from jointopt.problems.feel import FEEL

__all__ = ["SelectionSearch"]

_COARSE, _FINE = 65, 65
"""Kept fractions in the tables."""


class SelectionSearch:
    """Bayesian optimization's view: who takes part; ratios, bands, frequencies and powers by a price on the band."""

    name = "selected"
    kind = "binary"
    logarithmic = False

    def __init__(self, problem: FEEL, cells: FEELCells) -> None:
        self.cells = cells
        self.lower, self.upper = problem.ranges["selected"]
        self.names = tuple(v.name for v in problem.variables)

    @cached_property
    def _least(self) -> FloatArray:
        """Least bandwidth of each client [Hz]; inf where it cannot take part."""
        return np.where(self.cells.fits, np.exp(self.cells.least_log_bandwidth()), np.inf)

    @cached_property
    def attribute(self) -> FloatArray:
        """Ln of the mass per bandwidth that a client must have; least where it cannot take part at all."""
        value = np.log(self.cells.weight) - np.log(self._least)
        known = np.isfinite(value)
        return np.where(known, value, value[known].min() - 1.0 if known.any() else 0.0)

    @cached_property
    def _table(self) -> tuple[FloatArray, FloatArray, FloatArray]:
        """(Ln kept fraction, ln bandwidth, cost), each [fractions, clients], from the least to the most useful."""
        cells = self.cells
        share = np.linspace(0.0, 1.0, _COARSE)[:, None]
        log_kept = np.log(cells.least) + share * (np.log(cells.top) - np.log(cells.least))
        return self._priced(np.arange(cells.units), log_kept)

    def _priced(self, unit: npt.NDArray[np.int64], log_kept: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        who = np.broadcast_to(unit, log_kept.shape)
        kept = np.exp(log_kept)
        return log_kept, self.cells.client.least_bandwidth(self.cells.who[who], kept)[0], self.cells.cost(who, kept)

    def _taken(self, x: FloatArray) -> npt.NDArray[np.bool_]:
        """Who takes part at x: who cannot, or does not fit the band beside those of more mass for it, is left out."""
        must, may = self.lower > 0.5, self.upper > 0.5
        able = np.isfinite(self._least)
        taken = ((x > 0.5) & may & able) | must
        if not taken.any():
            taken = np.zeros(x.size, dtype=np.bool_)
            taken[np.argmax(np.where(may, self.attribute, -np.inf))] = True
        order = np.argsort(np.where(must, -np.inf, -self.attribute), kind="stable")
        order = order[taken[order]]
        fits = np.cumsum(self._least[order]) <= self.cells.client.band
        # at least one stays, feasible or not
        fits[0] = True
        taken[order[~fits & ~must[order]]] = False
        return taken

    def _kept(self, units: npt.NDArray[np.int64]) -> FloatArray:
        """Kept fractions of least cost within the band."""
        log_kept, log_band, cost = (table[:, units] for table in self._table)
        band = self.cells.client.band
        if float(np.exp(log_band[-1]).sum()) <= band:
            return np.exp(log_kept[-1])
        first, second = _split_price(log_band, cost, band)
        low, high = np.minimum(first, second), np.maximum(first, second)
        column = np.arange(units.size)
        start = log_kept[np.maximum(low - 1, 0), column]
        end = log_kept[np.minimum(high + 1, _COARSE - 1), column]
        log_kept, log_band, cost = self._priced(units, start + np.linspace(0.0, 1.0, _FINE)[:, None] * (end - start))
        first, second = _split_price(log_band, cost, band)
        inside, outside = log_band[first, column], log_band[second, column]
        share, step = 0.0, 0.5
        for _ in range(50):
            if float(np.exp(inside + (share + step) * (outside - inside)).sum()) <= band:
                share += step
            step *= 0.5
        return np.exp(log_kept[first, column] + share * (log_kept[second, column] - log_kept[first, column]))

    def _decision(self, x: FloatArray) -> dict[str, FloatArray]:
        cells = self.cells
        units = np.flatnonzero(self._taken(x))
        if float(self._least[units].sum()) <= cells.client.band:
            parts, _ = cells.complete(np.array([1.0, 0.0]), units, None, self._kept(units))
        else:
            parts = cells.least_violating(units)
        out = {name: np.zeros(cells.units) for name in self.names}
        for name, values in parts.items():
            out[name][units] = values
        return out

    def complete(self, x: Any) -> Decision:
        """Return the best decision for clients ``[..., devices]``; who does not fit the band is left out."""
        x = np.asarray(x, dtype=np.float64)
        parts = [self._decision(row) for row in x.reshape(-1, self.cells.units)]
        return Decision({name: np.stack([p[name] for p in parts]).reshape(x.shape) for name in self.names})

    def locate(self, decision: Decision) -> FloatArray:
        """Return who takes part."""
        return np.asarray(decision["selected"])

    def unit_values(self, x: Any) -> None:
        """Return None: the objective is cost over mass."""
        return None


def _split_price(
    log_band: FloatArray, cost: FloatArray, band: float
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Rows of the tables that each client takes just above and just below the price at which the band is used up."""
    width = np.exp(log_band)
    scale = max(float(np.ptp(cost)), 1e-300) / band
    low, high = np.log(scale) - 40.0, np.log(scale) + 40.0
    first = np.zeros(cost.shape[1], dtype=np.intp)
    second = np.argmin(cost + np.exp(low) * width, axis=0)
    column = np.arange(cost.shape[1])
    if float(width[second, column].sum()) <= band:
        return second, second
    for _ in range(70):
        middle = 0.5 * (low + high)
        rows = np.argmin(cost + np.exp(middle) * width, axis=0)
        if float(width[rows, column].sum()) <= band:
            first, high = rows, middle
        else:
            second, low = rows, middle
    return first, second

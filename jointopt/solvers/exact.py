"""Global optimum with a certificate for any problem that is a function of a few sums over units.

One program serves three cases, all through the priced response (`jointopt.solvers.branch`):

* no shared budget: one response at fixed prices settles every unit, certificate ``exact``;
* a shared budget z_j <= limit_j that binds: its price is found on the concave dual by bisection. The bound is the
  dual value, certificate ``dual``; a gap may remain because units choose among separate points;
* a ratio of sums: Dinkelbach's iteration, each step of which is one of the above. If N - t D >= e over all
  decisions and 0 < D <= d, then N/D >= t + e/d for e >= 0; with 0 < D_min <= D, N/D >= t + e/D_min for e < 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from jointopt.errors import SolverError
from jointopt.problem import Cells, Conflict, Sums
from jointopt.solvers.branch import Response, respond
from jointopt.system import FloatArray

__all__ = ["Exact", "minimize_sums"]


Kind = Literal["exact", "dual", "branch", "none"]


@dataclass(frozen=True)
class Exact:
    """Answer of `minimize_sums` and `minimize_selection`: each unit's best point, value and bound of the objective."""

    decision: dict[str, FloatArray]
    value: float | None
    lower_bound: float | None
    kind: Kind
    prices: FloatArray
    unit_bounds: FloatArray
    infeasible: npt.NDArray[np.int64]
    shared: list[Conflict]
    cells: int
    history: list[dict[str, float]]
    stopped: BaseException | None = None
    """What ended the search before the gap was reached."""


@dataclass
class _Point:
    """One response with its decision and features, shape [features, units] (0 for units without a point)."""

    response: Response
    decision: dict[str, FloatArray]
    features: FloatArray

    @property
    def sums(self) -> FloatArray:
        """Sums of the features over units, shape [features]."""
        total: FloatArray = self.features.sum(axis=1)
        return total


class _Units:
    """The units at prices, counting work."""

    def __init__(self, cells: Cells, gap: float, stop: Callable[[], None] | None, whole: _Units | None = None) -> None:
        self.cells, self.gap, self.stop = cells, gap, stop
        self.whole = whole or self
        self.examined = 0

    def at(self, prices: FloatArray) -> _Point:
        response = respond(self.cells, prices, gap=self.gap, stop=self.stop)
        self.whole.examined += response.cells
        chosen = np.flatnonzero(response.feasible)
        decision, features = self.cells.complete(prices, chosen, response.label[chosen], response.x[chosen])
        full = {name: np.empty(self.cells.units) for name in decision}
        missing = np.flatnonzero(~response.feasible)
        fallback = self.cells.least_violating(missing) if missing.size else {}
        for name, values in decision.items():
            full[name][chosen] = values
            if missing.size:
                full[name][missing] = fallback[name]
        spread = np.zeros((features.shape[0], self.cells.units))
        spread[:, chosen] = features
        return _Point(response, full, spread)

    def within(self, feature: int, caps: FloatArray) -> _Units:
        """Return the units with one feature of each capped."""
        return _Units(self.cells.capped(feature, caps), self.gap, self.stop, self.whole)


def minimize_sums(sums: Sums, cells: Cells, *, gap: float = 1e-6, stop: Callable[[], None] | None = None) -> Exact:
    """Minimise h(z) over the units' decisions, z the sums of their features, with a rigorous lower bound.

    Parameters
    ----------
    sums : Sums
        Objective and limits.
    cells : Cells
        The units.
    gap : float
        Relative gap to reach; a quarter of it is left to the units' searches.
    stop : callable, optional
        Called between slices; an exception it raises ends the search.
    """
    units = _Units(cells, 0.25 * gap, stop)
    history: list[dict[str, float]] = []
    ratio = 0.0
    first = units.at(sums.numerator)
    infeasible = np.flatnonzero(~first.response.feasible)
    if infeasible.size:
        return _Answer(sums, units, history).infeasible(first, infeasible)
    answer = _Answer(sums, units, history)
    best: tuple[float, _Point, float, Kind, FloatArray, FloatArray] | None = None
    for step in range(60):
        prices = sums.numerator - ratio * sums.denominator
        found, bound, kind, multipliers = answer.within_limits(prices, first if step == 0 else None)
        if found is None:
            return answer.over_limits(first)
        offset = sums.numerator_offset - ratio * sums.denominator_offset
        value = sums.objective(found.sums)
        history.append({"evaluation": float(units.examined), "value": value})
        excess = bound + offset  # a lower bound of N - ratio x D over all decisions
        if not sums.is_ratio:
            return answer.done(found, value, excess / sums.denominator_offset, kind, prices, multipliers)
        lower = answer.ratio_bound(ratio, excess)
        if best is not None:
            lower = max(lower, best[2])
            if best[0] <= value:
                value, found = best[0], best[1]
        stuck = best is not None and value >= best[0] * (1.0 - 1e-14) and lower <= best[2]
        best = (value, found, lower, kind, prices, multipliers)
        if value - lower <= gap * abs(value) or (stuck and units.gap <= 1e-13):
            break
        if stuck:
            # units are settled relative to N + ratio A, which is more than the objective where D is small
            units.gap *= 0.01
        ratio = value
    assert best is not None
    value, found, lower, kind, prices, multipliers = best
    return answer.done(found, value, lower, kind, prices, multipliers)


class _Answer:
    """Steps of `minimize_sums` that share its data."""

    def __init__(self, sums: Sums, units: _Units, history: list[dict[str, float]]) -> None:
        self.sums, self.units, self.history = sums, units, history

    def within_limits(self, prices: FloatArray, known: _Point | None) -> tuple[_Point | None, float, Kind, FloatArray]:
        """Minimise prices.z within the limits; return (point, lower bound, kind, multipliers)."""
        limits = self.sums.limits
        nothing = np.zeros(prices.size)
        point = known if known is not None else self.units.at(prices)
        over = np.flatnonzero(point.sums > limits)
        if over.size == 0:
            return point, float(point.response.lower_bound.sum()), "exact", nothing
        if np.isfinite(limits).sum() > 1:
            raise SolverError("more than one shared budget: not supported by this solver")
        j, unit_price = int(over[0]), np.eye(prices.size)[over[0]]
        limit = float(limits[j])
        least = self.units.at(unit_price)
        if least.sums[j] > limit:
            return None, 0.0, "dual", nothing
        # No unit can take more than what the others' least leaves. With one unit this alone is exact.
        caps = least.features[j] + (limit - float(least.response.lower_bound.sum()))
        capped = self.units.within(j, caps)
        point = capped.at(prices)
        bound, multiplier = float(point.response.lower_bound.sum()), 0.0
        if point.sums[j] <= limit:
            return point, bound, "exact", nothing
        # The sum falls as its price grows; the dual value is concave and each response gives a valid bound.
        best, best_value = least, float(prices @ least.sums)
        low, high = 0.0, max(abs(float(point.response.value.sum())), 1e-12) / max(limit, 1e-12)
        bracketed = False
        for _ in range(120):
            if best_value - bound <= 0.25 * self.units.gap * abs(best_value) or high - low <= 1e-12 * high:
                break
            price = 0.5 * (low + high) if bracketed else high
            at = capped.at(prices + price * unit_price)
            dual = float(at.response.lower_bound.sum()) - price * limit
            if dual > bound:
                bound, multiplier = dual, price
            if at.sums[j] <= limit:
                bracketed, high = True, price
                if float(prices @ at.sums) < best_value:
                    best, best_value = at, float(prices @ at.sums)
            elif bracketed:
                low = price
            else:
                low, high = price, 4.0 * price
        return self._polish(prices, best, j, limit), bound, "dual", multiplier * unit_price

    def _polish(self, prices: FloatArray, point: _Point, j: int, limit: float) -> _Point:
        """Give what is left of a shared budget to the unit that gains most by it, as long as one gains."""
        for _ in range(100):
            left = limit - float(point.sums[j])
            alone = self.units.within(j, point.features[j] + max(left, 0.0)).at(prices)
            gain = prices @ point.features - prices @ alone.features
            unit = int(np.argmax(gain))
            if not gain[unit] > 1e-9 * abs(float(prices @ point.sums)):
                break
            features = point.features.copy()
            features[:, unit] = alone.features[:, unit]
            if features[j].sum() > limit:
                break
            decision = {name: values.copy() for name, values in point.decision.items()}
            for name in decision:
                decision[name][unit] = alone.decision[name][unit]
            point = _Point(point.response, decision, features)
        return point

    def ratio_bound(self, ratio: float, excess: float) -> float:
        """Lower bound of N/D from a lower bound of N - ratio D."""
        sums = self.sums
        if excess >= 0.0:
            most = -float(self.units.at(0.0 - sums.denominator).response.lower_bound.sum()) + sums.denominator_offset
            return ratio + excess / most
        # D = offset + b.z; the limits keep it above this
        j = np.flatnonzero(sums.denominator)
        least = sums.denominator_offset + float(np.sum(sums.denominator[j] * sums.limits[j]))
        # where N/D < ratio, D also exceeds what the best N allows: N >= n_min, so D >= n_min / ratio
        numerator = float(self.units.at(sums.numerator).response.lower_bound.sum()) + sums.numerator_offset
        if ratio > 0.0 and numerator > 0.0:
            least = max(least, numerator / ratio)
        return ratio + excess / least

    def done(
        self,
        point: _Point,
        value: float,
        lower: float,
        kind: Kind,
        prices: FloatArray,
        multipliers: FloatArray,
    ) -> Exact:
        """Pack a feasible answer."""
        return Exact(
            decision=point.decision,
            value=value,
            lower_bound=min(lower, value),
            kind=kind,
            prices=prices + multipliers,
            unit_bounds=point.response.lower_bound,
            infeasible=np.empty(0, dtype=np.int64),
            shared=[],
            cells=self.units.examined,
            history=self.history,
        )

    def infeasible(self, point: _Point, which: npt.NDArray[np.int64], shared: list[Conflict] | None = None) -> Exact:
        """Pack the least violating decision."""
        return Exact(
            decision=point.decision,
            value=None,
            lower_bound=None,
            kind="none",
            prices=self.sums.numerator,
            unit_bounds=point.response.lower_bound,
            infeasible=which,
            shared=shared or [],
            cells=self.units.examined,
            history=self.history,
        )

    def over_limits(self, point: _Point) -> Exact:
        """Say which shared budget no decision meets, and what the least use is."""
        shared = []
        for j, limit in enumerate(self.sums.limits):
            if not np.isfinite(limit):
                continue
            least = self.units.at(np.eye(self.sums.limits.size)[j])
            if least.sums[j] > limit:
                name = self.sums.features[j]
                shared.append(
                    Conflict(
                        device=None,
                        binding=name,
                        relax={name: float(least.sums[j])},
                        budget={name: float(limit)},
                        factor=float(least.sums[j] / limit),
                        text=f"{name}: at least {least.sums[j]:.4g} over all decisions, the limit is {limit:.4g}",
                    )
                )
                point = least
        return self.infeasible(point, np.empty(0, dtype=np.int64), shared)

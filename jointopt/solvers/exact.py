"""Global optimum with a certificate for any problem that is a function of a few sums over units.

One program serves three cases, all through the priced response (`jointopt.problem.Priced`):

* no shared limit binds: one response at fixed prices settles every unit, certificate ``exact``;
* shared limits z_j <= limit_j that bind: their multipliers maximise the concave dual function, by cutting planes
  (`jointopt.solvers.dual`); the bound is the dual value, certificate ``dual``. A decision comes from the responses met
  on the way, one per unit so that all limits are kept (`jointopt.solvers.choice`). A gap may remain because units
  choose among separate points; it shrinks like the number of limits over the number of units;
* a ratio of sums: Dinkelbach's iteration, each step of which is one of the above. If N - t D >= e over all
  decisions and 0 < D <= d, then N/D >= t + e/d for e >= 0; with 0 < D_min <= D, N/D >= t + e/D_min for e < 0.

That no decision keeps the limits is proved by weights w >= 0 with min w.z > w.limits.

How the lower bound follows from an answer's fields (and from `Certificate`): with prices = numerator - ratio x
denominator + multipliers and unit_bounds_u <= prices . phi_u(x_u) for every decision of unit u,

    excess = sum(unit_bounds) - multipliers . limits + numerator_offset - ratio x denominator_offset

is at most N - ratio D for every decision within the limits. Without a ratio, lower_bound = excess/denominator_offset.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from jointopt.problem import Conflict, Leaves, Priced, Response, Sums
from jointopt.solvers.choice import choose, undecided
from jointopt.solvers.dual import Cuts, climb
from jointopt.solvers.monitor import StopSearch
from jointopt.system import FloatArray

__all__ = ["Exact", "Report", "minimize_sums"]


Kind = Literal["exact", "dual", "branch", "none"]
Report = Callable[[int, float | None, float | None, Mapping[str, FloatArray] | None], None]
"""Told (cells examined, best value, lower bound, best decision) now and then."""

SAMPLED = 4_000
"""Units above which multipliers are first looked for on a sample."""
SAMPLE = 2_000
CAPPED = 10_000
"""Units up to which what the others need at least narrows what each can use."""
LEAVES = 20_000
"""Units up to which the leaves are kept."""
WARM = 20_000
"""Units up to which multipliers of a similar problem are tried on all units at once."""
FEW = 64
"""Units up to which every one is improved in turn."""
ROUNDING = 1e-12
"""Relative excess of a sum over its limit that is rounding; `FEASIBILITY_TOLERANCE` is far above it."""


@dataclass(frozen=True)
class Exact:
    """Answer of `minimize_sums` and `minimize_selection`: each unit's best point, value and bound of the objective.

    `prices` include the `multipliers` of the limits, both over all features. `caps`, by feature, is the most each unit
    can use of a limited sum since the others use at least so much; the unit bounds and leaves hold under them.
    """

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
    multipliers: FloatArray | None = None
    ratio: float = 0.0
    leaves: Leaves | None = None
    caps: dict[int, FloatArray] = field(default_factory=dict)
    search: Any = None
    undecided: bool = False
    """Whether nothing feasible was found although that there is nothing is not proved."""


@dataclass(frozen=True)
class _Point:
    """A decision of all units: its features, shape [features, units], and their sums."""

    decision: Mapping[str, FloatArray]
    features: FloatArray
    sums: FloatArray

    @staticmethod
    def of(response: Response) -> _Point:
        return _Point(response.decision, response.features, response.features.sum(axis=1))


@dataclass(frozen=True)
class _Proof:
    """A lower bound and where it comes from; prices without multipliers."""

    lower: float
    kind: Kind
    ratio: float
    prices: FloatArray
    multipliers: FloatArray
    unit_bounds: FloatArray


def minimize_sums(
    sums: Sums,
    priced: Priced,
    *,
    gap: float = 1e-6,
    stop: Callable[[], None] | None = None,
    report: Report | None = None,
    start: tuple[FloatArray, float] | None = None,
    leaves: bool = False,
    rounds: int = 3,
    seed: int = 0,
    enough: float = np.inf,
    steps: int = 60,
) -> Exact:
    """Minimise h(z) over the units' decisions, z the sums of their features, with a rigorous lower bound.

    Parameters
    ----------
    sums : Sums
        Objective and limits, any number of them.
    priced : Priced
        The units.
    gap : float
        Relative gap to reach; a quarter of it is left to the units' searches.
    stop : callable, optional
        Called now and then. `StopSearch` or KeyboardInterrupt, from it or from outside, ends the search with the best
        feasible decision so far and what was proved by then; it is raised again where no decision is known.
    report : callable, optional
        Told of progress after every response.
    start : pair of array, shape [features], and float, optional
        Multipliers of the limits and the ratio to begin with, such as those of a similar problem's answer. Where a few
        responses around them reach the gap, nothing else is asked.
    leaves : bool
        Whether to keep the cells behind the bound, for up to `LEAVES` units.
    rounds : int
        Times units are asked again for a better decision within the limits; 0 where only the bound is wanted.
    seed : int
        Seed of the sample of units on which multipliers are first looked for.
    enough : float
        A lower bound at which the search ends: nothing above it is wanted.
    steps : int
        Most steps of Dinkelbach's iteration.
    """
    pure, tell = sums, report
    if sums.constant:
        pure, tell = replace(sums, constant=0.0), None if report is None else _shifted(report, sums.constant)
    search = _Search(pure, priced, gap, stop, tell, start, leaves, seed)
    search.rounds, search.enough, search.steps = rounds, enough - sums.constant, steps
    answer = search.run()
    return answer if pure is sums else _moved(answer, sums.constant)


def _shifted(report: Report, constant: float) -> Report:
    """Tell of an objective that is a constant more."""

    def told(cells: int, value: float | None, lower: float | None, decision: Mapping[str, FloatArray] | None) -> None:
        report(cells, _plus(value, constant), _plus(lower, constant), decision)

    return told


def _plus(value: float | None, constant: float) -> float | None:
    return None if value is None else value + constant


def _moved(answer: Exact, constant: float) -> Exact:
    """Return an answer about an objective that is a constant more; the ratio stays that of the sums."""
    return replace(
        answer,
        value=_plus(answer.value, constant),
        lower_bound=_plus(answer.lower_bound, constant),
        history=[{**row, "value": row["value"] + constant} for row in answer.history],
    )


class _Search:
    def __init__(
        self,
        sums: Sums,
        priced: Priced,
        gap: float,
        stop: Callable[[], None] | None,
        report: Report | None,
        start: tuple[FloatArray, float] | None,
        leaves: bool,
        seed: int,
    ) -> None:
        self.sums, self.priced, self.whole = sums, priced, priced
        self.gap, self.unit_gap = gap, 0.25 * gap
        self.stop, self.report, self.seed, self.leaves = stop, report, seed, leaves
        self.limited = np.flatnonzero(np.isfinite(sums.limits))
        self.limits = sums.limits[self.limited]
        self.examined = 0
        self.rounds, self.enough, self.steps = 3, np.inf, 60
        self.history: list[dict[str, float]] = []
        self.pool: list[_Point] = []
        self.best: _Point | None = None
        self.best_value = np.inf
        self.proof: _Proof | None = None
        self.caps: dict[int, FloatArray] = {}
        self.narrowed = False
        self.multipliers: FloatArray | None = None
        self.first_ratio = 0.0
        if start is not None:
            self.multipliers = np.maximum(start[0][self.limited], 0.0)
            self.first_ratio = start[1] if sums.is_ratio else 0.0
        self.least_sums: dict[bytes, float] = {}
        self.excess = -np.inf
        self.stopped: BaseException | None = None
        self.improving: FloatArray | None = None
        """Prices whose limits are being recovered."""

    # -- the whole search

    def run(self) -> Exact:
        """Search, and answer with what is known when it ends."""
        try:
            refused = self._run()
        except (StopSearch, KeyboardInterrupt) as stopped:
            if self.improving is not None and not self._reached():
                # what was met so far may be combined without asking again; who ended the search is not told more
                self.stop = self.report = None
                self._recover(self.improving, rounds=0)
            if self.best is None:
                raise
            self.stopped, refused = stopped, None
        return refused if refused is not None else self._answer()

    def _run(self) -> Exact | None:
        sums = self.sums
        ratio, last = self.first_ratio, np.inf
        if self._warm(ratio):
            return None
        if sums.is_ratio and ratio == 0.0 and self.limited.size:
            ratio, nothing = self._first()
            if nothing is not None:
                return nothing
        for step in range(self.steps):
            prices = sums.numerator - ratio * sums.denominator
            response = self._at(prices)
            missing = np.flatnonzero(~response.feasible)
            if missing.size:
                # where a unit's search ended early there may be a decision; only an infinite bound proves that none is
                unproved = bool(np.all(response.lower_bound[missing] < np.inf))
                return replace(self._refuse(_Point.of(response), missing, []), undecided=unproved)
            refused = self._within_limits(prices, ratio, response)
            if refused is not None:
                return refused
            self.history.append({"evaluation": float(self.examined), "value": self.best_value})
            if not sums.is_ratio or self._reached() or self._enough():
                break
            # the best value is the next ratio; where neither it nor the bound moves, the units' searches are too coarse
            lower = self.proof.lower if self.proof is not None else -np.inf
            if step and self.best_value >= ratio - 1e-14 * abs(ratio) and lower <= last:
                if self.unit_gap <= 1e-13:
                    break
                self.unit_gap *= 0.01
            ratio, last = self.best_value, lower
            if not np.isfinite(ratio):
                break
        if self.rounds and self.improving is not None and self.best is not None and not self._reached():
            around = list(self._around(self.improving, self._known(), 0))
            self._combine(self.improving, self._known(), around, whole=True)
        return None

    def _first(self) -> tuple[float, Exact | None]:
        """Return the ratio where the denominator is greatest, which often keeps the limits; 0 where it does not.

        From a ratio that is reached the iteration falls to the least one; from 0 its first step would be a search for
        multipliers, at prices that have nothing to do with those of the answer. Where only the bound is wanted and a
        limit on the denominator is out of reach, that is the answer.
        """
        towards = 0.0 - self.sums.denominator
        if np.any(towards < 0.0) and getattr(self.priced, "nonnegative", False):
            return 0.0, None
        response = self._at(towards)
        if not np.all(response.feasible):
            return 0.0, None
        least = float(response.lower_bound.sum())
        self.least_sums[towards.tobytes()] = least
        most = float(np.sum(towards[self.limited] * self.limits)) if self._of_limited(towards) else np.inf
        if self.rounds == 0 and least > most + ROUNDING * abs(most):
            return 0.0, self._refuse(_Point.of(response), np.empty(0, dtype=np.int64), [])
        return (self.best_value if 0.0 < self.best_value < np.inf else 0.0), None

    def _of_limited(self, prices: FloatArray) -> bool:
        """Whether all that is priced is limited."""
        return bool(np.all(np.isfinite(self.sums.limits[np.flatnonzero(prices)])))

    def _warm(self, ratio: float) -> bool:
        """Try the multipliers of a similar problem and some around them; say whether the gap is reached."""
        if self.multipliers is None or not np.any(self.multipliers > 0.0) or self.priced.units > WARM:
            return False
        units, prices = self.priced.units, self.sums.numerator - ratio * self.sums.denominator
        rng = np.random.default_rng(self.seed)
        for width in (0.1, 0.05, 0.02):
            around = 1.0 + width * np.array([0.0, -1.0, 1.0, -3.0, 3.0])[:, None] * np.ones(self.limited.size)
            if self.limited.size > 1:
                around = np.concatenate([around, np.exp(2.0 * width * rng.standard_normal(around.shape))])
            if width == 0.1:
                # multipliers of limits that are hardly felt move most, and the limits may be no matter any more
                far = np.array([0.0, 0.5, 0.8, 1.0, 1.25, 2.0])[:, None] * np.ones(self.limited.size)
                around = far if self.limited.size == 1 else np.concatenate([around, far])
            tried = self._known() * np.maximum(around, 0.0)
            vectors = np.repeat(prices[:, None], tried.shape[0], axis=1)
            vectors[self.limited] += tried.T
            response = self.priced.respond(
                np.repeat(vectors, units, axis=1),
                units=np.tile(np.arange(units), tried.shape[0]),
                gap=self.unit_gap,
                stop=self.stop,
            )
            self.examined += response.cells
            if not np.all(response.feasible):
                return False
            self.improving = prices
            bounds = response.lower_bound.reshape(-1, units)
            duals = bounds.sum(axis=1) - tried @ self.limits
            for k in range(tried.shape[0]):
                part = slice(k * units, (k + 1) * units)
                self._offer(
                    _Point.of(
                        Response(
                            value=response.value[part],
                            lower_bound=bounds[k],
                            decision={n: v[part] for n, v in response.decision.items()},
                            features=response.features[:, part],
                            cells=0,
                        )
                    )
                )
            best = int(np.argmax(duals))
            self.multipliers = tried[best]
            kind: Kind = "dual" if np.any(tried[best] > 0.0) else "exact"
            self._prove_bound(ratio, prices, tried[best], bounds[best], kind)
            if self._reached():
                return True
            self._combine(prices, self._known(), [])
            if self._reached():
                return True
            # where the model of the dual function is greatest, next
            cuts = Cuts(max(abs(float(prices @ self.pool[0].sums)), 1e-300) / self._size())
            for point in self.pool:
                cuts.add(float(prices @ point.sums), point.sums[self.limited] - self.limits)
            self.multipliers = cuts.best()[0]
            if not np.any(self.multipliers > 0.0):
                return False
        return False

    def _enough(self) -> bool:
        """Whether the bound says that nothing wanted is left."""
        return self.proof is not None and self.enough < np.inf and self.proof.lower >= self.enough

    def _reached(self, gap: float | None = None) -> bool:
        if self.proof is None or self.best is None:
            return False
        share = self.gap if gap is None else gap
        return self.best_value - self.proof.lower <= share * abs(self.best_value)

    def _at(self, prices: FloatArray, *, whole: bool = False, gap: float | None = None) -> Response:
        """Ask all units at prices; what they answer joins the pool, and is kept where it is feasible and best."""
        priced = self.whole if whole else self.priced
        response = priced.respond(prices, gap=gap or self.unit_gap, stop=self.stop)
        self.examined += response.cells
        if np.all(response.feasible):
            self._offer(_Point.of(response))
        return response

    def _offer(self, point: _Point, *, keep: bool = True) -> None:
        if keep:
            self.pool.append(point)
            most = 16 if self.priced.units <= LEAVES else 8 if self.priced.units <= 300_000 else 5
            if len(self.pool) > most:
                self._thin(most)
        if self._keeps(point):
            value = self.sums.objective(point.sums)
            if value < self.best_value:
                self.best, self.best_value = point, value

    def _keeps(self, point: _Point) -> bool:
        return bool(np.all(point.sums[self.limited] <= self.limits + ROUNDING * np.abs(self.limits)))

    def _thin(self, most: int) -> None:
        """Keep the points that are nearly best at the present multipliers, the newest, and one of least use."""
        slack = np.array([np.max((p.sums[self.limited] - self.limits) / self._size()) for p in self.pool])
        if self.improving is None or self.multipliers is None:
            worth = slack
        else:
            worth = np.array(
                [self.improving @ p.sums + self.multipliers @ (p.sums[self.limited] - self.limits) for p in self.pool]
            )
        worth[int(np.argmin(slack))] = -np.inf
        worth[-1] = -np.inf
        keep = np.sort(np.argsort(worth, kind="stable")[:most])
        self.pool = [self.pool[i] for i in keep]

    def _size(self) -> FloatArray:
        """Size of each limited sum."""
        return np.where(self.limits != 0.0, np.abs(self.limits), 1.0)

    def _tell(self) -> None:
        if self.report is not None:
            value = self.best_value if self.best is not None else None
            lower = None if self.proof is None else self.proof.lower
            self.report(self.examined, value, lower, None if self.best is None else self.best.decision)

    def _prove(
        self, ratio: float, prices: FloatArray, multipliers: FloatArray, response: Response, kind: Kind
    ) -> float:
        """Take the bound of a response where it is the best; return its dual value without offsets."""
        return self._prove_bound(ratio, prices, multipliers, response.lower_bound, kind)

    def _prove_bound(
        self, ratio: float, prices: FloatArray, multipliers: FloatArray, unit_bounds: FloatArray, kind: Kind
    ) -> float:
        dual = float(unit_bounds.sum()) - float(multipliers @ self.limits)
        excess = dual + self.sums.numerator_offset - ratio * self.sums.denominator_offset
        if self.sums.is_ratio:
            # the bounds of the denominator take responses of their own: only where they can help
            if self.proof is not None and self.proof.ratio == ratio and excess <= self.excess:
                return dual
            lower = self._ratio_bound(ratio, excess)
        else:
            lower = excess / self.sums.denominator_offset
        if self.proof is None or lower > self.proof.lower or (kind == "exact" and lower == self.proof.lower):
            self.excess = excess
            self.proof = _Proof(lower, kind, ratio, prices, multipliers, unit_bounds)
        return dual

    # -- limits

    def _within_limits(self, prices: FloatArray, ratio: float, response: Response) -> Exact | None:
        """Minimise prices . z within the limits; return an answer only where there is no decision."""
        nothing = np.zeros(self.limited.size)
        at_zero = self._prove(ratio, prices, nothing, response, "exact")
        point = _Point.of(response)
        if self._keeps(point) or self._enough():
            return None
        self._tell()
        self.improving = prices
        if not self.narrowed:
            refused = self._narrow()
            if refused is not None:
                return refused
            if self.caps:
                response = self._at(prices)
                at_zero = self._prove(ratio, prices, nothing, response, "exact")
                point = _Point.of(response)
                if self._keeps(point) or self._enough():
                    return None
        self._climb(prices, ratio, point, at_zero)
        if self._enough():
            return None
        self._recover(prices, rounds=self.rounds)
        self._sharpen(prices, ratio, point, at_zero)
        return None

    def _sharpen(self, prices: FloatArray, ratio: float, first: _Point, at_zero: float) -> None:
        """Settle the units closer where their own gaps, relative to priced values, are what keeps the bound low."""
        if self._reached() or self.best is None or self.proof is None:
            return
        priced = float(np.abs(self.proof.unit_bounds[np.isfinite(self.proof.unit_bounds)]).sum())
        allowed = 0.25 * self.gap * abs(self.best_value)
        if self.unit_gap * priced <= allowed or allowed == 0.0:
            return
        self.unit_gap = max(allowed / priced, 1e-13)
        self._climb(prices, ratio, first, at_zero)
        if not self._reached() and self.rounds:
            self._recover(prices, rounds=1)

    def _narrow(self) -> Exact | None:
        """Prove that the limits can be kept together, or refuse; note what each unit can use at most."""
        self.narrowed = True
        units = np.arange(self.sums.limits.size)
        least: dict[int, Response] = {}
        for j in self.limited:
            least[int(j)] = self._at((units == j).astype(np.float64), whole=True)
            self._tell()
        if not any(self._keeps(p) for p in self.pool):
            conflicts = self._conflicts(self.limited)
            if conflicts:
                return self._refuse(self._least_point(), np.empty(0, dtype=np.int64), conflicts)
        for k, response in least.items():
            priced: Any = self.priced
            if self.priced.units > CAPPED or not hasattr(priced, "capped"):
                break
            room = float(self.sums.limits[k]) - float(response.lower_bound.sum())
            caps = response.features[k] + max(room, 0.0)
            narrower = priced.capped(k, caps)
            if narrower is not None:
                self.priced, self.caps[k] = narrower, caps
        return None

    def _climb(self, prices: FloatArray, ratio: float, first: _Point, at_zero: float) -> None:
        """Maximise the dual function over the multipliers of the limits."""
        # of the size of what keeping the limits can cost, also where nothing costs anything without them
        worth = max(*(abs(float(prices @ p.sums)) for p in [first, *self.pool]), 1e-300)
        cuts = Cuts(worth / self._size())
        for point in self.pool:
            # a point beyond the caps says nothing about units that keep them
            if all(np.all(point.features[j] <= caps * (1.0 + ROUNDING)) for j, caps in self.caps.items()):
                cuts.add(float(prices @ point.sums), point.sums[self.limited] - self.limits)
        start = self.multipliers
        many = self.priced.units > SAMPLED
        if start is None:
            start = self._on_sample(prices, first) if many else cuts.best()[0]
        self.multipliers = start

        def evaluate(multipliers: FloatArray) -> tuple[float, float, FloatArray]:
            response = self._at(self._with(prices, multipliers))
            before = -np.inf if self.proof is None else self.proof.lower
            dual = self._prove(ratio, prices, multipliers, response, "dual")
            if self.proof is not None and self.proof.lower > before:
                self.multipliers = multipliers
            self._tell()
            point = _Point.of(response)
            return dual, float(prices @ point.sums), point.sums[self.limited] - self.limits

        climb(
            evaluate,
            cuts,
            start,
            tolerance=lambda best: self.unit_gap * max(abs(best), 1e-300),
            steps=12 if self.priced.units > 300_000 else 24 if many else 150,
            done=lambda best, upper: self._reached() or self._enough(),
        )

    def _with(self, prices: FloatArray, multipliers: FloatArray) -> FloatArray:
        out = prices.copy()
        out[self.limited] += multipliers
        return out

    def _on_sample(self, prices: FloatArray, first: _Point) -> FloatArray:
        """Multipliers of a sample of the units, limits in proportion to what it uses without them."""
        rng = np.random.default_rng(self.seed)
        # strata: units in order of what they use of the scarcest sum
        over = (first.sums[self.limited] - self.limits) / self._size()
        order = np.argsort(first.features[self.limited[int(np.argmax(over))]], kind="stable")
        edges = np.linspace(0, order.size, SAMPLE + 1).astype(np.int64)
        some = np.sort(order[rng.integers(edges[:-1], edges[1:])])
        used = first.features[self.limited][:, some].sum(axis=1)
        total = first.sums[self.limited]
        with np.errstate(divide="ignore", invalid="ignore"):
            share = np.where((used > 0.0) & (total > 0.0), used / total, SAMPLE / order.size)
        limits = share * self.limits
        worth = max(*(abs(float(prices @ p.sums)) for p in [first, *self.pool]), 1e-300)
        cuts = Cuts(worth / self._size())
        # what is known of all units, for the sample
        for point in self.pool:
            part = point.features[:, some].sum(axis=1)
            cuts.add(float(prices @ part), part[self.limited] - limits)

        def evaluate(multipliers: FloatArray) -> tuple[float, float, FloatArray]:
            response = self.priced.respond(
                self._with(prices, multipliers), units=some, gap=max(self.unit_gap, 1e-6), stop=self.stop
            )
            self.examined += response.cells
            part = response.features.sum(axis=1)
            dual = float(response.lower_bound.sum()) - float(multipliers @ limits)
            return dual, float(prices @ part), part[self.limited] - limits

        best, _, _ = climb(
            evaluate, cuts, cuts.best()[0], tolerance=lambda best: 1e-6 * max(abs(best), 1e-300), steps=60
        )
        return best

    # -- decisions

    def _known(self) -> FloatArray:
        """Best multipliers so far."""
        return self.multipliers if self.multipliers is not None else np.zeros(self.limited.size)

    def _recover(self, prices: FloatArray, *, rounds: int) -> None:
        """Find decisions within the limits among the points of the pool and around the best multipliers."""
        known = self._known()
        self._combine(prices, known, [])
        for turn in range(rounds):
            if self._reached():
                return
            before = self.best_value
            self._combine(prices, known, list(self._around(prices, known, turn)))
            if self.best_value > before - 0.1 * self.gap * abs(before) and turn:
                break
        if rounds and self.best is not None and self.limited.size == 1 and not self._reached():
            self._polish(prices)

    def _combine(
        self,
        prices: FloatArray,
        multipliers: FloatArray,
        more: list[tuple[npt.NDArray[np.int64], FloatArray, Mapping[str, FloatArray]]],
        *,
        whole: bool = False,
    ) -> None:
        """Choose one point per unit: from the pool, and for some units from further responses."""
        if not self.pool:
            return
        points = [*self.pool]
        if self.best is not None and not any(p is self.best for p in points):
            points.append(self.best)
        features = np.stack([p.features for p in points], axis=2)
        decisions = {n: np.stack([p.decision[n] for p in points], axis=1) for n in points[0].decision}
        base = self.best if self.best is not None else self._least_point()
        units, room = np.arange(self.priced.units), self.limits
        if more:
            # the others stay as they are
            units = more[0][0]
            rest = np.ones(self.priced.units, dtype=bool)
            rest[units] = False
            room = self.limits - base.features[self.limited][:, rest].sum(axis=1)
            features = np.concatenate([features[:, units], *[f[:, :, None] for _, f, _ in more]], axis=2)
            decisions = {
                n: np.concatenate([v[units], *[d[n][:, None] for _, _, d in more]], axis=1)
                for n, v in decisions.items()
            }
        cost = np.tensordot(prices, features, axes=1)
        room = room + 0.5 * ROUNDING * np.abs(self.limits)
        enough = 0.25 * self.gap * abs(float(prices @ base.sums)) if self.gap >= 1e-5 and not more else 0.0
        chosen = choose(cost, features[self.limited], room, multipliers, whole=whole, enough=enough)
        if chosen is None:
            return
        every = np.arange(units.size)
        everyone = base.features.copy()
        everyone[:, units] = features[:, every, chosen]
        decision = {n: np.array(v) for n, v in base.decision.items()}
        for n, values in decisions.items():
            decision[n][units] = values[every, chosen]
        self._offer(_Point(decision, everyone, everyone.sum(axis=1)), keep=False)
        self._tell()

    def _around(
        self, prices: FloatArray, multipliers: FloatArray, turn: int
    ) -> Iterator[tuple[npt.NDArray[np.int64], FloatArray, Mapping[str, FloatArray]]]:
        """Responses of the least decided units at multipliers around the best ones."""
        points = self.pool
        cost = np.stack([prices @ p.features for p in points], axis=1)
        use = np.stack([p.features[self.limited] for p in points], axis=2)
        count = min(self.priced.units, 200)
        units = undecided(cost, use, multipliers, count)
        if turn == 0:
            factors = np.concatenate([np.geomspace(0.25, 4.0, 12), 1.0 + np.linspace(-0.03, 0.03, 8)])
            scales = np.repeat(factors[:, None], self.limited.size, axis=1)
        else:
            rng = np.random.default_rng(self.seed + turn)
            spread = np.geomspace(0.003, 1.0, 24)[:, None]
            scales = np.exp(spread * rng.standard_normal((24, self.limited.size)))
        # a limit that is not scarce overall may be for some choices
        floor = 1e-3 * np.abs(prices @ points[0].sums) / self._size()
        tried = np.maximum(multipliers, floor * (turn > 0)) * scales
        vectors = np.repeat(prices[:, None], tried.shape[0], axis=1)
        vectors[self.limited] += tried.T
        response = self.priced.respond(
            np.repeat(vectors, count, axis=1), units=np.tile(units, tried.shape[0]), gap=self.unit_gap, stop=self.stop
        )
        self.examined += response.cells
        for k in range(tried.shape[0]):
            part = slice(k * count, (k + 1) * count)
            yield units, response.features[:, part], {n: v[part] for n, v in response.decision.items()}

    def _polish(self, prices: FloatArray) -> None:
        """Give what is left of the one limit to the unit that gains most by it, as long as one gains."""
        capped = getattr(self.whole, "capped", None)
        j = int(self.limited[0])
        if capped is None or self.priced.units > FEW:
            return
        for _ in range(100):
            point = self.best
            assert point is not None
            left = float(self.limits[0]) - float(point.sums[j])
            narrower = capped(j, point.features[j] + max(left, 0.0))
            if narrower is None:
                return
            alone = narrower.respond(prices, gap=self.unit_gap, stop=self.stop)
            self.examined += alone.cells
            gain = prices @ point.features - prices @ alone.features
            unit = int(np.argmax(np.where(alone.feasible, gain, -np.inf)))
            if not gain[unit] > 1e-9 * abs(float(prices @ point.sums)):
                return
            features = point.features.copy()
            features[:, unit] = alone.features[:, unit]
            decision = {n: np.array(v) for n, v in point.decision.items()}
            for n, values in decision.items():
                values[unit] = alone.decision[n][unit]
            self._offer(_Point(decision, features, features.sum(axis=1)), keep=False)
            if self.best is point:
                return

    # -- ratios

    def _ratio_bound(self, ratio: float, excess: float) -> float:
        """Lower bound of N/D from a lower bound of N - ratio D; -inf where D > 0 is not proved."""
        sums = self.sums
        # D = offset + b.z: the units keep it above one number, the limits above another
        least = sums.denominator_offset + self._least(sums.denominator)
        j = np.flatnonzero(sums.denominator)
        if np.all(sums.denominator[j] < 0.0) and np.all(np.isfinite(sums.limits[j])):
            least = max(least, sums.denominator_offset + float(np.sum(sums.denominator[j] * sums.limits[j])))
        if not least > 0.0:
            return -np.inf
        if excess >= 0.0:
            if ratio >= self.enough:
                return ratio
            most = sums.denominator_offset - self._least(0.0 - sums.denominator)
            # no decision has a denominator above 0
            return ratio + excess / most if most > 0.0 else np.inf
        # where N/D < ratio, D also exceeds what the best N allows: N >= n_min, so D >= n_min / ratio
        numerator = self._least(sums.numerator) + sums.numerator_offset
        if ratio > 0.0 and numerator > 0.0:
            least = max(least, numerator / ratio)
        return ratio + excess / least

    def _least(self, prices: FloatArray) -> float:
        """Proved least of prices . z over all decisions, limits aside; -inf where the units cannot say."""
        if np.any(prices < 0.0) and getattr(self.whole, "nonnegative", False):
            return -np.inf
        key = prices.tobytes()
        if key not in self.least_sums:
            self.least_sums[key] = float(self._at(prices, whole=True).lower_bound.sum())
        return self.least_sums[key]

    # -- limits that cannot be kept

    def _conflicts(self, limited: npt.NDArray[np.int64]) -> list[Conflict]:
        """Return one conflict for each irreducible set of limits that no decision keeps; none if they can be kept."""
        conflicts = []
        left = [int(j) for j in limited]
        while left and self._least_excess(left) > 0.0:
            chosen = list(left)
            for j in left:
                fewer = [k for k in chosen if k != j]
                if fewer and self._least_excess(fewer) > 0.0:
                    chosen = fewer
            conflicts.append(self._conflict(chosen))
            left = [j for j in left if j not in chosen]
        return conflicts

    def _least_excess(self, limited: list[int]) -> float:
        """Bound of the least common excess of some limits, in units of their sizes; above 0 none keeps them all.

        It is the greatest, over weights w >= 0 that add up to 1, of the least of sum w_j (z_j - limit_j)/size_j.
        """
        j = np.array(limited)
        limits, size = self.sums.limits[j], np.where(self.sums.limits[j] != 0.0, np.abs(self.sums.limits[j]), 1.0)
        if any(np.all(p.sums[j] <= limits) for p in self.pool):
            return -np.inf
        cuts = Cuts(1.0 / size, simplex=True)
        for point in self.pool:
            cuts.add(0.0, point.sums[j] - limits)
        start, upper = cuts.best()
        if upper <= 0.0:
            return upper
        # cells can be settled to rounding, so that what was found decides where one sum is just met
        alone = j.size == 1 and getattr(self.whole, "sharp", False)

        def evaluate(weights: FloatArray) -> tuple[float, float, FloatArray]:
            prices = np.zeros(self.sums.limits.size)
            prices[j] = weights
            # a single sum is settled to rounding, since nothing else tells a limit that is just met
            response = self._at(prices, whole=True, gap=1e-12 if alone else None)
            slope = response.features[j].sum(axis=1) - limits
            self._tell()
            found = response.features.sum(axis=1)[j]
            proved = float(response.lower_bound.sum()) - float(weights @ limits)
            # with one limit what was found decides, so that an excess of rounding is one
            return (float(weights @ (found - limits)) if alone else proved), 0.0, slope

        _, best, upper = climb(
            evaluate,
            cuts,
            start,
            tolerance=lambda best: 1e-9,
            steps=1 if alone else 60,
            done=lambda best, upper: upper <= 0.0 or best > max(1e-9, 0.999999 * upper),
        )
        return best if best > 1e-12 or alone else -np.inf

    def _conflict(self, chosen: list[int]) -> Conflict:
        """Say what would do for an irreducible set of limits."""
        names = [self.sums.features[j] for j in chosen]
        limits = self.sums.limits[chosen]
        factor = None
        if np.all(limits > 0.0):
            factor = 1.0 + max(self._least_excess(chosen), 0.0)
        relax: dict[str, float | None] = {}
        if len(chosen) == 1:
            j = chosen[0]
            least = min(float(p.sums[j]) for p in self.pool)
            relax[names[0]] = least
            factor = least / float(limits[0]) if limits[0] > 0.0 else None
            needs = f"at least {least:.4g} over all decisions"
        else:
            for j, name in zip(chosen, names, strict=True):
                others = self.sums.limits.copy()
                others[[k for k in range(others.size) if k not in chosen or k == j]] = np.inf
                alone = Sums(
                    self.sums.features,
                    (np.arange(others.size) == j).astype(np.float64),
                    0.0,
                    np.zeros(others.size),
                    1.0,
                    others,
                )
                answer = _Search(alone, self.whole, max(self.gap, 1e-6), self.stop, None, None, False, self.seed).run()
                self.examined += answer.cells
                relax[name] = answer.value
            needs = " or ".join(f"{n} -> {v:.4g}" for n, v in relax.items() if v is not None)
            if factor is not None:
                needs += f", or all x {factor:.4g}"
        budget = dict(zip(names, (float(v) for v in limits), strict=True))
        if len(chosen) == 1:
            text = f"{names[0]}: {needs}, the limit is {limits[0]:.4g}"
        else:
            short = ", ".join(f"{n} <= {v:.4g}" for n, v in budget.items())
            text = f"no decision keeps {short} together; feasible with {needs}"
        return Conflict(device=None, binding=" and ".join(names), relax=relax, budget=budget, factor=factor, text=text)

    def _least_point(self) -> _Point:
        """Point of the pool that exceeds the limits least."""
        excess = [np.max((p.sums[self.limited] - self.limits) / self._size()) for p in self.pool]
        return self.pool[int(np.argmin(excess))]

    # -- answers

    def _answer(self) -> Exact:
        """Pack a feasible answer."""
        best, proof = self.best, self.proof
        prices, multipliers = self.sums.numerator, np.zeros(self.sums.limits.size)
        if best is None:
            answer = self._undecided()
            if proof is None or not self._enough():
                return answer
            multipliers[self.limited] = proof.multipliers
            return replace(
                answer,
                lower_bound=proof.lower,
                kind=proof.kind,
                prices=proof.prices + multipliers,
                multipliers=multipliers,
                ratio=proof.ratio,
            )
        lower: float | None = None
        kept: Leaves | None = None
        if proof is not None and np.isfinite(proof.lower):
            if self.leaves and self.stopped is None and self.priced.units <= LEAVES:
                proof, kept = self._keep(proof)
            lower = min(proof.lower, self.best_value)
            multipliers[self.limited] = proof.multipliers
            prices = proof.prices + multipliers
        return Exact(
            decision={n: np.asarray(v) for n, v in best.decision.items()},
            value=self.best_value,
            lower_bound=lower,
            kind="none" if lower is None or proof is None else proof.kind,
            prices=prices,
            unit_bounds=np.full(self.priced.units, -np.inf) if proof is None else proof.unit_bounds,
            infeasible=np.empty(0, dtype=np.int64),
            shared=[],
            cells=self.examined,
            history=self.history,
            stopped=self.stopped,
            multipliers=multipliers,
            ratio=0.0 if proof is None else proof.ratio,
            leaves=kept,
            caps=dict(self.caps),
        )

    def _keep(self, proof: _Proof) -> tuple[_Proof, Leaves | None]:
        """Ask once more at the best prices, for the leaves; the bound is what they prove."""
        priced = self.priced
        response = priced.respond(self._with(proof.prices, proof.multipliers), gap=self.unit_gap, keep=True)
        dual = float(response.lower_bound.sum()) - float(proof.multipliers @ self.limits)
        excess = dual + self.sums.numerator_offset - proof.ratio * self.sums.denominator_offset
        if self.sums.is_ratio:
            lower = self._ratio_bound(proof.ratio, excess)
        else:
            lower = excess / self.sums.denominator_offset
        return replace(proof, lower=lower, unit_bounds=response.lower_bound), response.leaves

    def _undecided(self) -> Exact:
        """Nothing was found that keeps the limits, nor proved that nothing does."""
        point = self._least_point()
        over = [int(j) for j in self.limited if point.sums[j] > self.sums.limits[j]]
        names = [self.sums.features[j] for j in over]
        conflict = Conflict(
            device=None,
            binding=" and ".join(names),
            relax={},
            budget={n: float(self.sums.limits[j]) for n, j in zip(names, over, strict=True)},
            factor=None,
            text=f"no decision was found that keeps the limits on {', '.join(names)} together; none is not proved",
        )
        return replace(self._refuse(point, np.empty(0, dtype=np.int64), [conflict]), undecided=True)

    def _refuse(self, point: _Point, which: npt.NDArray[np.int64], shared: list[Conflict]) -> Exact:
        """Pack the least violating decision."""
        return Exact(
            decision={n: np.asarray(v) for n, v in point.decision.items()},
            value=None,
            lower_bound=None,
            kind="none",
            prices=self.sums.numerator,
            unit_bounds=np.full(self.priced.units, -np.inf),
            infeasible=which,
            shared=shared,
            cells=self.examined,
            history=self.history,
        )

"""TT-Prune: pruning ratios and bandwidth under the clock of time-triggered learning.

In the manner of "TT-Prune: Joint Model Pruning and Resource Allocation for Communication-efficient Time-triggered
Federated Learning": users in tiers by fixed intervals of time, ratio and bandwidth chosen together for the least bound
of the gradient's norm under a limit on the delay is the published statement [R]; the bound below is derived here [D],
not quoted.

The server aggregates every `interval`. A device of a tier with period m has m intervals for a round,

    T_u(r_u, bandwidth_u) <= m_u interval,

and belongs to the first tier that its delay fits into; so the decision on ratio and band is one on the tier. Its update
was begun m - 1 aggregations ago. An aggregation moves the model by at most eta sqrt(zeta_1) on the mean over a cycle of
the tiers (A3 with zeta_2 = 0: no gradient is longer, a mask only shortens it; a device of period m comes once in m
aggregations and counts m times), so by L-smoothness and L2, with Young's inequality between the two errors and that
mean in place of each move [S] (many of one tier at once move the model farther),

    min  Gamma = sum_u pi_u 2 [L^2 D^2 e(r_u) + M^2 r_u + L^2 eta^2 zeta_1 (m_u - 1)^2]
    s.t. sum_u bandwidth_u <= total bandwidth, T_u <= min(m_u interval, T_max,u), 0 <= r_u <= r_max.

That a device counts pi_u whatever its tier is a choice [S] (aggregation weighted by the period). At given tiers the
problem is that of `jointopt.problems.spectrum` with T = m interval (theory 6 [D]); the tiers are labels of the cells
of each device, so they are chosen exactly at prices on the band, and the answer has a bound from duality.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from jointopt import systems
from jointopt.decision import Decision
from jointopt.errors import InputError
from jointopt.models._array import namespace
from jointopt.problem import Baseline, Capabilities, Conflict, Evaluation
from jointopt.problems.band_cells import BandCells
from jointopt.problems.banded import BandProblem
from jointopt.system import FEASIBILITY_TOLERANCE, FloatArray, System, Tiers

__all__ = ["Course", "TimeTriggered"]


@dataclass(frozen=True)
class Course:
    """What training to a target takes: aggregations, time [s], and bits sent by all devices together."""

    aggregations: float
    seconds: float
    bits: float


class TimeTriggered(BandProblem):
    """Least gradient bound with tiers by time, by the ratios and the split of one band.

    The system needs the section `tiers`, and bound constants with `gradient_slope` 0. Other parameters are those of
    `jointopt.problems.banded.BandProblem`.
    """

    name = "time-triggered"
    minimises = "gradient bound with tiers by time, by ratios and a shared band"
    sections: ClassVar[tuple[str, ...]] = ("tiers",)
    overlooks: ClassVar[tuple[str, ...]] = (
        "energy budgets",
        "lost packets",
        "quantization error",
        "noise of batches",
        "generalization gap",
        "class mixes",
        "rounds to a target",
        "a price on latency",
        "the way to the cloud",
    )

    def __init__(
        self,
        system: System,
        *,
        limit: Literal["power", "density"] = "power",
        ranges: Mapping[str, tuple[FloatArray, FloatArray]] | None = None,
    ) -> None:
        super().__init__(system, limit=limit, ranges=ranges)
        bound = system.bound
        if bound.gradient_slope > 0.0:
            raise InputError(
                f"bound.gradient_slope: {bound.gradient_slope!r}; how far aggregations move the model is bounded for 0"
            )
        self.staleness = 2.0 * bound.smoothness**2 * bound.learning_rate**2 * bound.gradient_offset
        """Learning cost of one aggregation missed, before the weight; grows with the square of their number."""

    @property
    def clock(self) -> Tiers:
        """The system's tiers."""
        assert self.system.tiers is not None
        return self.system.tiers

    @classmethod
    def sample(
        cls, *, devices: int | None = None, seed: int = 0, data: str | None = None, tightness: float = 1.0
    ) -> System:
        """Sample a system: `jointopt.systems.feel` with tiers of 1, 2, 3 and 4 intervals."""
        made = systems.feel(20 if devices is None else devices, seed, data=data or "digits", tightness=tightness)
        interval = float(INTERVAL * made.devices.delay_budget[0])
        return made.with_(delay_budget=4.0 * interval).replace(tiers=Tiers(interval=interval, periods=[1, 2, 3, 4]))

    @property
    def training(self) -> Mapping[str, Any]:
        """The clock of the tiers; who breaks the deadline takes as many turns of the slowest tier as it needs."""
        periods = [int(period) for period in self.clock.periods]
        return {"clock": {"name": "tiers", "seconds": float(self.clock.interval), "periods": periods, "strict": False}}

    # ------------------------------------------------------------------ evaluation

    def tier(self, delay: Any) -> npt.NDArray[np.int64]:
        """Return the number of the first tier that delays [s] fit into; the last one for what fits into none."""
        ends = self.clock.periods * self.clock.interval * (1.0 + FEASIBILITY_TOLERANCE)
        plain = np.asarray(delay.detach().cpu() if hasattr(delay, "detach") else delay, dtype=np.float64)
        return np.minimum(np.searchsorted(ends, np.nan_to_num(plain, nan=np.inf)), ends.size - 1)

    def _deadlines(self) -> FloatArray:
        """Longest rounds, shape [tiers, devices]."""
        ends = self.clock.periods[:, None] * self.clock.interval
        out: FloatArray = np.minimum(ends, self.system.devices.delay_budget)
        return out

    def evaluate(self, decision: Decision) -> Evaluation:
        """Return the bound, its parts, slack and quantities; arrays ``[..., devices]``.

        The tier is a whole number that follows from the delay: nothing is differentiated through it, and the slack of
        the delay is that to the end of the tier.

        Raises
        ------
        InputError
            For unknown or missing variables, or another number of devices.
        """
        spent, band, learned, taken = self._round(decision)
        xp = namespace(learned)
        tier = self.tier(spent["delay"])
        # of the tier that it is in, so that multipliers are those of the tiers at hand
        budget = np.minimum(self.clock.periods[tier] * self.clock.interval, self.system.devices.delay_budget)
        period = xp.asarray(self.clock.periods[tier]) + 0.0 * learned
        stale = xp.asarray(np.array(self.system.weight)) * (self.staleness * (period - 1.0) ** 2)
        limits, scales = self._limits(decision, band, taken)
        parts = {"pruning": xp.sum(learned, axis=-1), "staleness": xp.sum(stale, axis=-1)}
        total = parts["pruning"] + parts["staleness"]
        return Evaluation(
            objective=total,
            parts=parts,
            slack={"delay": xp.asarray(budget) - spent["delay"], **limits},
            scale={"delay": budget, **scales},
            quantities={
                **spent,
                "period": period,
                "gap": total,
                "interval_bits": xp.sum(spent["payload_bits"] / period, axis=-1),
            },
        )

    def course(self, decision: Decision, gradient_norm: float) -> Course:
        """Return what it takes until the mean of E ||grad F||^2 is `gradient_norm`: 2 Delta_0/(eta (it - Gamma)) steps.

        Raises
        ------
        InputError
            For a target that Gamma does not allow.
        """
        found = self.evaluate(decision)
        steps = self._steps(gradient_norm, float(found.objective))
        bits = steps * float(found.quantities["interval_bits"])
        return Course(steps, steps * self.clock.interval, bits)

    def synchronous(self, gradient_norm: float) -> Course:
        """Return the same for synchronous learning: whole models of all in every round, the band split for speed."""
        steps = self._steps(gradient_norm, 0.0)
        dense = self.restrict(pruning_ratio=0.0)
        left, right = 0.0, 1.0
        while not _fits(dense, right):
            left, right = right, 2.0 * right
            if right > 1e30:
                raise InputError("synchronous: no round is long enough for whole models of all devices")
        for _ in range(100):
            middle = 0.5 * (left + right)
            left, right = (left, middle) if _fits(dense, middle) else (middle, right)
        whole = {
            **{v.name: 0.5 * (v.lower + v.upper) for v in self.variables},
            "pruning_ratio": np.zeros(len(self.system)),
        }
        bits = float(self.evaluate(Decision(whole)).quantities["payload_bits"].sum())
        return Course(steps, steps * right, steps * bits)

    def _steps(self, gradient_norm: float, gap: float) -> float:
        bound = self.system.bound
        if not gradient_norm > gap:
            raise InputError(
                f"gradient_norm: {gradient_norm!r} is not above Gamma = {gap:.6g}: no number of steps does"
            )
        return 2.0 * bound.initial_gap / (bound.learning_rate * (gradient_norm - gap))

    # ------------------------------------------------------------------ structure

    def _cells(self) -> BandCells:
        deadlines = self._deadlines()
        cost = self.staleness * (self.clock.periods - 1.0) ** 2
        return BandCells(self, deadlines, constant=np.broadcast_to(cost[:, None], deadlines.shape))

    def capabilities(self) -> Capabilities:
        """Sums and cells with tiers as labels (dual certificate), the published rule, baselines."""
        cells = self._cells()
        baselines = self._common_baselines()
        baselines["smallest_tier"] = Baseline(
            "every device in the first tier that it can keep on an equal split; closed forms at these tiers",
            rule=lambda rng: self._smallest(cells),
        )
        if self.clock.periods.size > 1:
            baselines["synchronous"] = Baseline(
                "everybody in the fastest tier: synchronous learning, nobody stale; the rest optimised",
                instead=lambda rng: self._with_periods(self.clock.periods[:1]),
            )
        return Capabilities(
            sums=self._sums(),
            cells=cells,
            baselines=baselines,
            conflicts=lambda devices: [self._explained(c) for c in cells.conflicts(devices)],
        )

    def _with_periods(self, periods: FloatArray) -> TimeTriggered:
        return self._again(self.system.with_(periods=periods), self.ranges)

    def _smallest(self, cells: BandCells) -> Decision | None:
        """Tiers as published: the smallest feasible one [D]; then ratios and bands by the closed forms."""
        everyone = np.ones(cells.units, dtype=bool)
        fits = cells.feasible & (cells.low <= self._shares())
        # on an equal split nobody may be able to: then whatever the whole band allows
        first = np.where(fits.any(axis=0), np.argmax(fits, axis=0), cells.out - 1)
        for tier in range(cells.out):
            label = np.maximum(first, tier)
            own = BandCells(self, cells.deadlines[label, np.arange(cells.units)][None])
            band, kept = self._published(own, everyone)
            if kept:
                decision = self._filled(own, band, everyone)
                if bool(self.evaluate(decision).feasible()):
                    return decision
        return None

    def _explained(self, conflict: Conflict) -> Conflict:
        """Say that the interval is too short, where it is."""
        need = conflict.relax["delay_budget"]
        u = conflict.device
        assert need is not None and u is not None
        longest, budget = (
            float(self.clock.periods[-1]) * self.clock.interval,
            float(self.system.devices.delay_budget[u]),
        )
        if need <= longest:
            return conflict
        interval = need / float(self.clock.periods[-1])
        short = budget < need
        text = f"device {u}: no tier is slow enough; feasible with tiers.interval "
        text += f"{self.clock.interval:.4g} s -> {interval:.4g} s"
        return replace(
            conflict,
            binding="delay and interval, each alone" if short else "interval",
            relax={"delay_budget": None, "tiers.interval": None if short else interval},
            budget={"delay_budget": budget, "tiers.interval": self.clock.interval},
            factor=max(need / longest, need / budget),
            text=text + (f" and delay budget {budget:.4g} s -> {need:.4g} s" if short else ""),
        )


def _fits(problem: TimeTriggered, deadline: float) -> bool:
    """Whether everyone can be done in time on one band."""
    cells = BandCells(problem, np.full((1, len(problem.system)), deadline))
    return bool(cells.feasible.all()) and bool(cells.low.sum() <= problem.bands[0])


INTERVAL = 0.4
"""Interval of `TimeTriggered.sample` over the deadline of `jointopt.systems.feel`."""

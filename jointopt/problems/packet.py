"""Pruning against packet error: ratios and bandwidth for the least weighted sum of latency and learning cost.

In the manner of Ren, Ni and Tian, "Toward Communication-Learning Trade-off for Federated Learning at the Network Edge":
pruning and packet error together, closed-form pruning control and bandwidth, and the weighted sum of latency and
learning cost are published [R]; the learning cost is Gamma of LTFL's theorem without quantization, derived here [D]
(theory 1b).

    min  weight max_u T_u(r_u, bandwidth_u)
         + sum_u pi_u [C_q q_u(bandwidth_u) + 2 (L^2 D^2 e(r_u) + M^2 r_u)],  C_q = 8 zeta_1 + 2 E_cap
    s.t. sum_u bandwidth_u <= total bandwidth, T_u <= T_max,u, A = 8 zeta_2 sum_u pi_u q_u < 1, 0 <= r_u <= r_max.

At fixed power a wider band brings a higher rate and a lower SNR: less to prune, more packets lost. At a given latency
T the least ratio is the closed form [1 - (T - ...)/(...)]^+ (theory 6 [D]) and each device has one variable, its band,
in which its cost is a convex part plus the concave packet error (`jointopt.problems.band_cells`). The latency is one
more variable that all devices share: between two latencies each device may take its own, at its own share of the price
(`jointopt.problems.packet_cells`; with a curved pruning error everyone the later deadline at the price of the earlier
one), and branch and bound over it gives the certificate.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import numpy as np

from jointopt import systems
from jointopt.decision import Decision
from jointopt.models import compression, convergence
from jointopt.models._array import namespace
from jointopt.problem import Baseline, Blocks, Capabilities, Evaluation, Sums
from jointopt.problems.band_cells import BandCells
from jointopt.problems.banded import BandProblem
from jointopt.problems.ltfl import CONTRACTION_LIMIT
from jointopt.problems.packet_cells import LatencyCells, latency_shares
from jointopt.system import FloatArray, System, Tradeoff

__all__ = ["RatioError"]


class RatioError(BandProblem):
    """Least weighted sum of latency and learning cost, by the ratios and the split of one band.

    The system needs the section `tradeoff`. Other parameters are those of `jointopt.problems.banded.BandProblem`.
    """

    name = "ratio-error"
    minimises = "weighted sum of latency and learning cost, by ratios and a shared band"
    sections: ClassVar[tuple[str, ...]] = ("tradeoff",)
    overlooks: ClassVar[tuple[str, ...]] = (
        "energy budgets",
        "quantization error",
        "noise of batches",
        "generalization gap",
        "class mixes",
        "rounds to a target",
        "tiers by time",
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
        bound, most = system.bound, system.learner.pruning_ratio_max
        # nothing is quantized
        cap = convergence.error_cap(
            smoothness=bound.smoothness,
            weight_norm_squared=bound.weight_norm_squared,
            mask_energy=bound.mask_energy,
            pruning_ratio_max=most,
            pruning_error_max=float(compression.pruning_error(np.asarray(most), bound.pruning_law)),
            parameters=0.0,
            range_max=1.0,
            bits_min=1.0,
        )
        self.transmission = 8.0 * bound.gradient_offset + 2.0 * float(cap)

    @property
    def features(self) -> tuple[str, ...]:
        """Sums over devices: the learning cost, the band, and A where it depends on the loss."""
        coupled = self.system.bound.gradient_slope > 0.0
        return ("cost", "bandwidth", "contraction") if coupled else ("cost", "bandwidth")

    @classmethod
    def sample(
        cls, *, devices: int | None = None, seed: int = 0, data: str | None = None, tightness: float = 1.0
    ) -> System:
        """Sample a system: `jointopt.systems.feel` with Rayleigh fading, lossy packets and a weight of the latency."""
        made = systems.feel(20 if devices is None else devices, seed, data=data or "digits", tightness=tightness)
        bound = made.bound
        cost = 2.0 * (bound.smoothness**2 * bound.weight_norm_squared + bound.mask_energy)
        return made.with_(
            pruning_error="linear",
            fading="rayleigh",
            packet_error="waterfall",
            delay_budget=LONGEST * made.devices.delay_budget,
        ).replace(tradeoff=Tradeoff(latency_weight=WORTH * cost / float(made.devices.delay_budget[0])))

    @property
    def latency_weight(self) -> float:
        """What a second costs."""
        assert self.system.tradeoff is not None
        return self.system.tradeoff.latency_weight

    # ------------------------------------------------------------------ evaluation

    def evaluate(self, decision: Decision) -> Evaluation:
        """Return latency and learning cost, slack and quantities; arrays ``[..., devices]``.

        Raises
        ------
        InputError
            For unknown or missing variables, or another number of devices.
        """
        spent, band, learned, taken = self._round(decision)
        xp = namespace(learned)
        weight = xp.asarray(np.array(self.system.weight))
        latency = xp.max(spent["delay"], axis=-1)
        parts = {
            "latency": self.latency_weight * latency,
            "transmission": xp.sum(weight * self.transmission * spent["packet_error"], axis=-1),
            "pruning": xp.sum(learned, axis=-1),
        }
        contraction = xp.sum(weight * (8.0 * self.system.bound.gradient_slope) * spent["packet_error"], axis=-1)
        limits, scales = self._limits(decision, band, taken)
        budget = self.system.devices.delay_budget
        return Evaluation(
            objective=parts["latency"] + parts["transmission"] + parts["pruning"],
            parts=parts,
            slack={
                "delay": xp.asarray(np.array(budget)) - spent["delay"],
                "contraction": CONTRACTION_LIMIT - contraction,
                **limits,
            },
            scale={"delay": budget, "contraction": 1.0, **scales},
            quantities={
                **spent,
                "latency": latency,
                "gap": parts["transmission"] + parts["pruning"],
                "contraction": contraction,
            },
        )

    # ------------------------------------------------------------------ structure

    def cells(self, latency: float = np.inf) -> BandCells:
        """Return the devices with all deadlines at most a latency [s]."""
        deadlines = np.minimum(self.system.devices.delay_budget, latency)
        return BandCells(self, deadlines[None], marks={"latency": 0.0})

    def capabilities(self) -> Capabilities:
        """The latency as a shared variable around sums (exact with certificate), closed forms, baselines."""
        return Capabilities(
            shared=_Latency(self),
            blocks=self._alternation(),
            baselines={
                **self._common_baselines(),
                "unaware": Baseline(
                    "bands and ratios by the closed forms, which know nothing of lost packets; latencies scanned",
                    rule=lambda rng: self._scan(),
                ),
            },
            conflicts=self.cells().conflicts,
        )

    def _at(self, latency: float) -> Decision | None:
        """The closed forms at a latency; None where they do not fit."""
        cells = self.cells(latency)
        everyone = np.ones(cells.units, dtype=bool)
        band, fits = self._published(cells, everyone)
        decision = self._filled(cells, band, everyone) if fits else None
        return decision if decision is not None and bool(self.evaluate(decision).feasible()) else None

    def _scan(self) -> Decision | None:
        """Return the best of the closed forms over latencies, refined around the best one."""
        shared = _Latency(self)
        low, high = float(shared.lower[0]), float(shared.upper[0])
        best: tuple[float, Decision] | None = None
        for _ in range(3):
            tried = np.linspace(low, high, SCANNED)
            values = []
            for latency in tried:
                decision = self._at(float(latency))
                value = np.inf if decision is None else float(self.evaluate(decision).objective)
                values.append(value)
                if decision is not None and (best is None or value < best[0]):
                    best = value, decision
            at = int(np.argmin(values))
            low, high = float(tried[max(at - 1, 0)]), float(tried[min(at + 1, SCANNED - 1)])
        return None if best is None else best[1]

    def at_bands(self, band: FloatArray) -> Decision | None:
        """Return the best latency and ratios in given bands, where the objective is convex in the latency.

        None where no latency is long enough.
        """
        cells = self.cells()
        unit, label = np.arange(cells.units), np.zeros(cells.units, dtype=np.int64)
        rate = cells.rate(unit, np.maximum(band, cells.band_least))
        ends = []
        for kept in (cells.kept_low, cells.kept_high):
            time = cells.time_once + cells.time_each * kept + (cells.bits_once + cells.bits_each * kept) / rate
            ends.append(float(time.max()))
        budget = cells.deadlines[0]
        low, high = ends[0], min(ends[1], float(budget.max()))
        if low > high * (1.0 + 1e-12):
            return None
        bits_each = cells.bits_each + cells.time_each * rate
        for _ in range(6):
            tried = np.linspace(low, max(low, high), SCANNED)
            room = np.minimum(tried[:, None], budget) - cells.time_once
            kept = np.clip((room * rate - cells.bits_once) / bits_each, cells.kept_low, cells.kept_high)
            values = self.latency_weight * tried + (cells.weight * cells.error(kept)).sum(axis=1)
            at = int(np.argmin(values))
            low, high = float(tried[max(at - 1, 0)]), float(tried[min(at + 1, SCANNED - 1)])
            best = float(tried[at])
        made = self.cells(best)
        ratio = np.maximum(1.0 - made.kept(unit, label, rate), 0.0)
        own = made._decision(unit, ratio, band, np.zeros(cells.units, dtype=bool))
        return Decision({name: value for name, value in own.items() if name not in made.marks})

    def _alternation(self) -> Blocks:
        """Latency at the present bands, then bands by the closed form at that latency [S]."""
        everyone = np.ones(len(self.system), dtype=bool)

        def latency(decision: Decision) -> Decision:
            found = self.at_bands(np.asarray(decision["bandwidth"]))
            return decision if found is None else found

        def bands(decision: Decision) -> Decision:
            found = self._at(float(self.evaluate(decision).quantities["latency"]))
            return decision if found is None else found

        return Blocks(
            start=lambda: self._filled(self.cells(), self._shares(), everyone),
            steps={"latency, pruning_ratio": latency, "bandwidth, pruning_ratio": bands},
            max_iterations=10,
            tolerance=1e-9,
        )


class _Latency:
    """What all devices share: the longest round."""

    names: tuple[str, ...] = ("latency",)

    def __init__(self, problem: RatioError) -> None:
        self.problem = problem
        self.integer = np.array([False])
        cells = problem.cells()
        # the earliest: everybody at the least with all the band there is; the latest: what whole models need at most
        rate = cells.rate(np.arange(cells.units), cells.band_high)

        def needed(kept: FloatArray, rate: FloatArray) -> float:
            time = cells.time_once + cells.time_each * kept + (cells.bits_once + cells.bits_each * kept) / rate
            return float(time.max())

        first = needed(cells.kept_low, rate)
        last = float(problem.system.devices.delay_budget.max())
        self.lower, self.upper = np.array([min(first, last)]), np.array([last])

    def within(self, low: FloatArray, high: FloatArray) -> tuple[Sums, BandCells]:
        """Return sums and cells between two latencies: each device its own, or the later at the earlier price."""
        problem = self.problem
        first, last = float(low[0]), float(high[0])
        constant = problem.latency_weight * first
        cells = problem.cells(last)
        cells.marks["latency"] = 0.5 * (first + last)
        if first < last and problem.system.bound.pruning_law == "linear" and bool(cells.feasible.all()):
            middle = problem.cells(0.5 * (first + last))
            at = middle if bool(middle.feasible.all()) else cells
            slow = latency_shares(at, float(problem.bands[0]), problem.latency_weight)
            cells, constant = LatencyCells(problem, first, last, slow), 0.0
        size = len(problem.features)
        limits = np.full(size, np.inf)
        limits[1] = problem.bands[0]
        if size > 2:
            limits[2] = CONTRACTION_LIMIT
        return Sums(problem.features, np.eye(size)[0], 0.0, np.zeros(size), 1.0, limits, constant=constant), cells

    def chosen(self, decision: Mapping[str, FloatArray]) -> FloatArray:
        """Return the middle of the two latencies for everyone."""
        return np.asarray(decision["latency"])[None]

    def judge(self, decision: Mapping[str, FloatArray]) -> tuple[dict[str, FloatArray], float]:
        """Return the decision at the bands' best latency, and its objective; inf where that is not feasible."""
        problem = self.problem
        own = {name: np.asarray(value) for name, value in decision.items() if name != "latency"}
        best = problem.at_bands(own["bandwidth"])
        if best is not None:
            own = {name: np.asarray(value) for name, value in best.items()}
        evaluation = problem.evaluate(Decision(own))
        return own, float(evaluation.objective) if evaluation.feasible() else np.inf


SCANNED = 17
"""Latencies that are tried at a time."""
LONGEST = 4.0
"""Deadlines of `RatioError.sample` over those of `jointopt.systems.feel`: the weight decides, not they."""
WORTH = 0.3
"""Share of the learning cost of a model all pruned that a round as long as that deadline costs there."""

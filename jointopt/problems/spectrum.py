"""Pruning ratio and bandwidth under one latency, and which devices take part: the design of Liu, Yu et al.

In the manner of "Adaptive Network Pruning for Wireless Federated Learning" (ratio and spectrum) and "Joint Model
Pruning and Device Selection for Communication-Efficient Federated Edge Learning" (with selection): that the convergence
rate is maximised under a latency by ratio, spectrum and selection is published [R]; latency and learning cost are
derived here [D] (theory 6, L2), not quoted.

    min  sum_u pi_u 2 [L^2 D^2 e(r_u) + M^2 r_u]        (sum_u pi_u r_u up to a factor where e is linear)
    s.t. sum_u bandwidth_u <= total bandwidth, T_u(r_u, bandwidth_u) <= T_max,u, 0 <= r_u <= r_max.

A device that is left out costs as if all of its model were pruned, r_u = 1 [S]: else leaving out everybody would be
best. At a price on the band each device is on its own, convex in its band (`jointopt.problems.band_cells`), so the
answer has a bound from duality; without selection the whole problem is convex and the gap vanishes. The published
closed forms are the method ``alternating``, the published selection is the baseline ``threshold``.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import numpy.typing as npt

from jointopt import systems
from jointopt.decision import Decision
from jointopt.models._array import namespace
from jointopt.problem import Baseline, Capabilities, Evaluation
from jointopt.problems.band_cells import BandCells
from jointopt.problems.banded import BandProblem
from jointopt.system import System

__all__ = ["RatioBandwidth", "RatioBandwidthSelection"]

THRESHOLDS = 33
"""Thresholds on the ratio that the published selection tries."""


class RatioBandwidth(BandProblem):
    """Least pruning under a latency, by the ratios and the split of one band; everyone takes part.

    Parameters are those of `jointopt.problems.banded.BandProblem`.
    """

    name = "ratio-bandwidth"
    minimises = "pruning error under a latency, by ratios and a shared band"
    overlooks: ClassVar[tuple[str, ...]] = (
        "energy budgets",
        "lost packets",
        "quantization error",
        "noise of batches",
        "generalization gap",
        "class mixes",
        "rounds to a target",
        "tiers by time",
        "a price on latency",
        "the way to the cloud",
    )

    @classmethod
    def sample(
        cls, *, devices: int | None = None, seed: int = 0, data: str | None = None, tightness: float = 1.0
    ) -> System:
        """Sample a system: `jointopt.systems.feel` with the linear pruning error."""
        made = systems.feel(20 if devices is None else devices, seed, data=data or "digits", tightness=tightness)
        return made.with_(pruning_error="linear")

    def evaluate(self, decision: Decision) -> Evaluation:
        """Return the learning cost, slack and quantities; arrays ``[..., devices]``.

        Raises
        ------
        InputError
            For unknown or missing variables, or another number of devices.
        """
        spent, band, learned, taken = self._round(decision)
        xp = namespace(learned)
        total = xp.sum(learned, axis=-1)
        limits, scales = self._limits(decision, band, taken)
        budget = self.system.devices.delay_budget
        nothing = xp.zeros_like(learned)
        parts = {"pruning": xp.sum(xp.where(taken, learned, nothing), axis=-1)}
        if self.selects:
            parts["selection"] = xp.sum(xp.where(taken, nothing, learned), axis=-1)
            # at least one device
            limits["participants"] = xp.sum(decision["selected"], axis=-1) - 1.0
            scales["participants"] = 1.0
        return Evaluation(
            objective=total,
            parts=parts,
            slack={"delay": xp.asarray(np.array(budget)) - spent["delay"], **limits},
            scale={"delay": budget, **scales},
            quantities={**spent, "gap": total},
        )

    def _cells(self) -> BandCells:
        return BandCells(self, self.system.devices.delay_budget[None])

    def capabilities(self) -> Capabilities:
        """Sums and cells (exact with certificate), the published closed forms, baselines."""
        cells = self._cells()
        return Capabilities(
            sums=self._sums(),
            cells=cells,
            blocks=self._blocks(cells),
            baselines=self._common_baselines(),
            conflicts=cells.conflicts,
        )


class RatioBandwidthSelection(RatioBandwidth):
    """Least pruning under a latency, by the ratios, the split of one band, and who takes part."""

    name = "ratio-bandwidth-selection"
    minimises = "pruning error under a latency, by ratios, a shared band and who takes part"
    selects: ClassVar[bool] = True

    @classmethod
    def sample(
        cls, *, devices: int | None = None, seed: int = 0, data: str | None = None, tightness: float = 1.0
    ) -> System:
        """Sample a system: that of `RatioBandwidth` with deadlines too early for some."""
        made = RatioBandwidth.sample(devices=devices, seed=seed, data=data, tightness=tightness)
        return made.with_(delay_budget=EARLY * made.devices.delay_budget)

    def capabilities(self) -> Capabilities:
        """Sums and cells whose devices may be left out (dual certificate), the published threshold, baselines."""
        cells = self._cells()
        own: dict[str, Baseline] = {
            "threshold": Baseline(
                "devices above a threshold on the ratio are left out, closed forms for the others; thresholds scanned",
                rule=lambda rng: self._threshold(cells),
            ),
            "random_selection": Baseline(
                "half of the devices that can take part, drawn at random, as far as the band suffices; closed forms",
                rule=lambda rng: self._random(cells, rng),
            ),
            "full_participation": Baseline(
                "everyone takes part; the rest optimised", restrict={"selected": self.ranges["selected"][1]}
            ),
        }
        return Capabilities(
            sums=self._sums(), cells=cells, baselines=self._common_baselines() | own, conflicts=cells.conflicts
        )

    # ------------------------------------------------------------------ rules

    def _kept(self, cells: BandCells, taken: npt.NDArray[np.bool_]) -> Decision | None:
        """Return the closed forms for some devices, or None where they do not fit."""
        band, fits = self._published(cells, taken)
        if not fits:
            return None
        decision = self._filled(cells, band, taken)
        return decision if bool(self.evaluate(decision).feasible()) else None

    def _packed(self, cells: BandCells, order: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Take devices in an order as long as their least bands fit."""
        least = np.where(cells.feasible[0], cells.low[0], np.inf)
        order = np.concatenate([order[cells.must[order]], order[~cells.must[order]]])
        taken = np.zeros(cells.units, dtype=bool)
        taken[order[np.cumsum(least[order]) <= self.bands[0]]] = True
        return taken

    def _threshold(self, cells: BandCells) -> Decision | None:
        """Scan thresholds on the ratio [D]: from all that fit, leave out those above it and divide the band anew."""
        best: tuple[float, Decision] | None = None
        # other thresholds often come to the same devices
        known: dict[bytes, Decision | None] = {}
        least = np.where(cells.feasible[0], cells.low[0], np.inf)
        start = self._packed(cells, np.argsort(least / cells.weight, kind="stable"))
        top = self.system.learner.pruning_ratio_max
        for threshold in np.linspace(0.0, top, THRESHOLDS):
            taken = start.copy()
            while True:
                key = taken.tobytes()
                if key not in known:
                    known[key] = self._kept(cells, taken)
                decision = known[key]
                if decision is None:
                    break
                value = float(self.evaluate(decision).objective)
                if best is None or value < best[0]:
                    best = value, decision
                out = taken & (decision["pruning_ratio"] > threshold) & ~cells.must
                if not out.any():
                    break
                # the worst half at a time: what they leave may bring the others below the threshold
                worst = np.flatnonzero(out)[np.argsort(-decision["pruning_ratio"][out], kind="stable")]
                taken[worst[: (worst.size + 1) // 2]] = False
        return None if best is None else best[1]

    def _random(self, cells: BandCells, rng: np.random.Generator) -> Decision | None:
        able = np.flatnonzero(cells.feasible[0])
        drawn = rng.permutation(able)[: (able.size + 1) // 2]
        return self._kept(cells, self._packed(cells, np.union1d(np.flatnonzero(cells.must), drawn)))


EARLY = 0.15
"""Deadlines of `RatioBandwidthSelection.sample` over those of `jointopt.systems.feel`: some are better left out."""

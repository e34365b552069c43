"""FedDPQ as published: a few variables common to all devices, searched block by block, then jointly (theory 2d [S/D]).

Level, ratio and bits are the same for everybody; powers invert the channels, so that all are received at one SNR as far
as their limits allow. The published procedure goes from block to block, each by Bayesian optimization, until a
sweep gains less than a thousandth, and ends with a joint search over the four.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from jointopt.decision import Decision
from jointopt.problem import Blocks, Search, Step
from jointopt.system import FloatArray

if TYPE_CHECKING:
    from jointopt.problems.feddpq import FedDPQ

__all__ = ["CommonSearch", "common_blocks"]

NAMES = ("augmentation_level", "pruning_ratio", "bits", "power")
_CALLED = ("augmentation level", "pruning ratio", "bits", "received SNR")
_KINDS = ("real", "real", "integer", "real")


class CommonSearch:
    """Bayesian optimization's view: some of (level, ratio, bits, received SNR), the others as `fixed` has them.

    Parameters
    ----------
    problem : FedDPQ
        Whose ranges it keeps.
    free : tuple of int
        Which of the four are searched.
    fixed : array, shape [4], optional
        The values of the others.
    """

    attribute = None

    def __init__(self, problem: FedDPQ, free: tuple[int, ...] = (0, 1, 2, 3), fixed: FloatArray | None = None) -> None:
        system, ranges = problem.system, problem.ranges
        assert system.radio.gain is not None
        self.problem, self.ranges = problem, ranges
        self.snr_per_watt = system.radio.gain / system.noise_power
        ends = [(float(ranges[name][0].min()), float(ranges[name][1].max())) for name in NAMES[:3]]
        snr = [ranges["power"][0] * self.snr_per_watt, ranges["power"][1] * self.snr_per_watt]
        ends.append((float(snr[0].min()), float(snr[1].max())))
        self.low, self.high = (np.array(column) for column in zip(*ends, strict=True))
        self.fixed = self.low if fixed is None else fixed
        self.free = list(free)
        self.name = "common " + ", ".join(_CALLED[i] for i in free)
        self.lower, self.upper = self.low[self.free], self.high[self.free]
        self.kind = np.array([_KINDS[i] for i in free])
        self.logarithmic = np.array([i == 3 for i in free])

    def complete(self, x: FloatArray) -> Decision:
        """Return the decision at x ``[..., searched]``."""
        x = np.asarray(x, dtype=np.float64)
        point = np.broadcast_to(self.fixed, (*x.shape[:-1], 4)).copy()
        point[..., self.free] = x
        level, ratio, bits, snr = (point[..., i : i + 1] for i in range(4))
        ends = self.ranges
        return Decision(
            augmentation_level=np.clip(level, *ends["augmentation_level"]),
            pruning_ratio=np.clip(ratio, *ends["pruning_ratio"]),
            bits=np.clip(np.rint(bits), *ends["bits"]),
            power=np.clip(snr / self.snr_per_watt, *ends["power"]),
        )

    def _all(self, decision: Decision) -> FloatArray:
        """The four numbers of a decision, or of the common one nearest to it."""
        found = [np.mean(decision[name], axis=-1) for name in NAMES[:3]]
        return np.clip(np.stack([*found, self._common_snr(decision["power"])], axis=-1), self.low, self.high)

    def _common_snr(self, power: FloatArray) -> FloatArray:
        """The received SNR that powers aim at: of devices within their limits, or between those at either limit."""
        least, most = (np.broadcast_to(end, power.shape) for end in self.ranges["power"])
        snr = np.broadcast_to(power * self.snr_per_watt, power.shape)
        width = 1e-9 * most
        up, down = power >= most - width, power <= least + width
        inner = ~up & ~down
        with np.errstate(divide="ignore", invalid="ignore"):
            mean = np.exp(np.sum(np.where(inner, np.log(snr), 0.0), axis=-1) / np.sum(inner, axis=-1))
        # who sends at most aims at more than is received, who sends at least at less
        above = np.max(np.where(up & ~down, snr, self.low[3]), axis=-1)
        below = np.min(np.where(down & ~up, snr, self.high[3]), axis=-1)
        between = np.where(np.any(up & ~down, axis=-1), above, below)
        return np.asarray(np.where(np.any(inner, axis=-1), mean, between))

    def locate(self, decision: Decision) -> FloatArray:
        """Return x of a decision, or of a common one near it."""
        found = self._all(decision)[..., self.free]
        return np.where(self.kind == "integer", np.rint(found), found)

    def unit_values(self, x: FloatArray) -> None:
        """Return None: the objective is a ratio."""
        return None

    def around(self, decision: Decision, free: tuple[int, ...]) -> CommonSearch:
        """Return the search over some of the four, the others as in a decision."""
        return CommonSearch(self.problem, free, self._all(decision))


def common_blocks(problem: FedDPQ, search: CommonSearch) -> Blocks:
    """Return the published block coordinate descent, from half of everything at full power."""

    def start() -> Decision:
        return search.complete(np.array([*(0.5 * (search.low + search.high))[:3], search.high[3]]))

    def over(free: tuple[int, ...]) -> Step:
        def around(decision: Decision) -> Search:
            return search.around(decision, free)

        return Step(tuple(NAMES[i] for i in free), search=around)

    steps = {NAMES[i]: over((i,)) for i in range(4) if search.high[i] > search.low[i]}
    return Blocks(start=start, steps=steps, tolerance=1e-3, max_iterations=20, last=over((0, 1, 2, 3)))

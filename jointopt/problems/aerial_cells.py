"""The units of the aerial design: a vehicle in a slot, with the bits per component as label and the ratio as variable.

For a fixed label the priced value is linear plus concave in the ratio, so on any cell it is least at an end: the bound
of a cell is the lesser of its two values, and nothing has to be split (theory 5d [D]).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from jointopt.decision import Decision
from jointopt.errors import InputError
from jointopt.models import compression
from jointopt.models._array import namespace
from jointopt.models.compression import level_bits
from jointopt.problem import CellList, Cells, Conflict
from jointopt.system import FloatArray, Learner
from jointopt.units import format_si

__all__ = ["LEVELS_MAX", "UNQUANTIZED", "AerialCells"]

LEVELS_MAX = 255
"""Most levels of the design: 9 bits with the sign."""
UNQUANTIZED = 2**31 - 1
"""Levels of 32 bits with the sign: what a float costs, at no error worth naming."""

_SLACK = 0.9e-9
"""Share of the kept fraction by which a ratio may exceed its range and be cut: just below what budgets are allowed."""


class AerialCells:
    """The units, slot by slot; those that sit out have one cell that costs nothing.

    Parameters
    ----------
    learner : Learner
        Sizes and laws.
    ranges : mapping
        Lower and upper ends of `pruning_ratio` and `levels`, shape [units].
    held : array, shape [slots, devices]
        Samples in the buffers.
    budgets, computing, per_bit : pairs of arrays, shape [units]
        Delay and energy: the most allowed, those of computing dense, and those of sending one bit [s], [J].
    weights : callable
        C_rho and C_omega from the shares alpha.
    """

    def __init__(
        self,
        *,
        learner: Learner,
        ranges: Mapping[str, tuple[FloatArray, FloatArray]],
        held: FloatArray,
        budgets: tuple[FloatArray, FloatArray],
        computing: tuple[FloatArray, FloatArray],
        per_bit: tuple[FloatArray, FloatArray],
        weights: Callable[[FloatArray], tuple[Any, Any]],
    ) -> None:
        self.units = int(held.size)
        self.devices = int(held.shape[1])
        self.budgets, self.computing, self.per_bit = budgets, computing, per_bit
        self.ratio_low, self.ratio_high = ranges["pruning_ratio"]
        self.levels_low, self.levels_high = ranges["levels"]
        bits = level_bits(np.array([self.levels_low.min(), self.levels_high.max()]))
        self.labels = np.arange(int(bits[0]), int(bits[1]) + 1)
        # cycles = fixed share + kept fraction x falling share, for every law
        full, empty = (float(learner.compute_factor(np.asarray(r))) for r in (0.0, 1.0))
        self.fixed_share, self.falling_share = empty, full - empty
        self.parameters, self.unpruned = float(learner.parameters), float(learner.unpruned_parameters)
        self.index_bits, once = compression.index_bits(learner.parameters, learner.mask_encoding)
        self.once_bits = learner.header_bits + once
        self.empty = held.reshape(-1) <= 0.0
        self.most = learner.pruning_ratio_max
        everyone = np.arange(self.units)
        # by the system alone: at the largest ratio and one level, whatever the ranges
        able = self._needed(everyone, np.full(self.units, 2)) <= self.most + _SLACK * (1.0 - self.most)
        self.active: npt.NDArray[np.bool_] = ~self.empty & able
        taking = np.where(self.active.reshape(held.shape), held, 0.0)
        total = taking.sum(axis=1, keepdims=True)
        self.share = (taking / np.where(total > 0.0, total, 1.0)).reshape(-1)
        self.ratio_weight, self.noise_weight = (np.asarray(w) for w in weights(self.share))

    def _fixed(self, label: Any, which: int, unit: Any) -> Any:
        """What a round spends of a budget at any ratio."""
        bits = self.unpruned * label + self.once_bits
        return self.computing[which][unit] * self.fixed_share + bits * self.per_bit[which][unit]

    def _falling(self, label: Any, which: int, unit: Any) -> Any:
        """What a round spends beside that with nothing pruned."""
        bits = self.parameters * (label + self.index_bits)
        return self.computing[which][unit] * self.falling_share + bits * self.per_bit[which][unit]

    def _needed(self, unit: Any, label: Any) -> FloatArray:
        """Ratio that both budgets ask for at bits per component (5a [D]); above 1 where they allow none."""
        ratios = [
            1.0 - (self.budgets[i][unit] - self._fixed(label, i, unit)) / self._falling(label, i, unit) for i in (0, 1)
        ]
        return np.asarray(np.maximum(ratios[0], ratios[1]))

    def _levels(self, unit: Any, label: Any) -> FloatArray:
        """Most levels that bits per component allow, within the unit's range."""
        return np.asarray(np.minimum(2.0 ** (np.asarray(label) - 1) - 1.0, self.levels_high[unit]))

    def _least(self, unit: Any, label: Any) -> tuple[FloatArray, npt.NDArray[np.bool_]]:
        """Least ratio of units at labels, and whether there is one."""
        least = np.maximum(self._needed(unit, label), self.ratio_low[unit])
        high = self.ratio_high[unit]
        levels = self._levels(unit, label)
        allowed = (least <= high + _SLACK * (1.0 - high)) & (level_bits(levels) == label)
        return np.minimum(least, high), allowed & (levels >= self.levels_low[unit]) & self.active[unit]

    def _pairs(self, unit: npt.NDArray[np.int64]) -> tuple[Any, Any, FloatArray]:
        """Units, labels and least ratios of all pairs that are feasible, unit by unit."""
        column = unit[:, None]
        least, allowed = self._least(column, self.labels[None, :])
        row, which = np.nonzero(allowed)
        return unit[row], self.labels[which], least[row, which]

    def _value(self, unit: Any, label: Any, ratio: Any) -> Any:
        sent = (1.0 - ratio) * self.parameters + self.unpruned
        omega = compression.qsgd_factor(sent, self._levels(unit, label))
        return self.ratio_weight[unit] * ratio + self.noise_weight[unit] * omega

    # -- what the exact solver asks

    def cover(self, prices: FloatArray, units: slice) -> CellList:
        """Return every unit's cell of least end; the others are nowhere below it (`cover_all` has them)."""
        every = np.arange(units.start, units.stop)
        column = every[:, None]
        least, allowed = self._least(column, self.labels)
        with np.errstate(invalid="ignore"):
            ends = np.minimum(*(self._value(column, self.labels, x) for x in (least, self.ratio_high[column])))
        which = np.where(allowed, prices[0] * ends, np.inf).argmin(axis=1)
        keep = np.flatnonzero(allowed.any(axis=1) | ~self.active[every])
        low = np.where(self.active[every], least[np.arange(every.size), which], self.ratio_high[every])
        return self._list(every[keep], self.labels[which[keep]], low[keep])

    def cover_all(self, prices: FloatArray, units: slice) -> CellList:
        """Return a cell from the least ratio to the largest for every label that is feasible."""
        every = np.arange(units.start, units.stop)
        unit, label, low = self._pairs(every)
        out = every[~self.active[every]]
        return self._list(
            np.concatenate([unit, out]),
            np.concatenate([label, np.full(out.size, self.labels[0])]),
            np.concatenate([low, self.ratio_high[out]]),
        )

    def _list(self, unit: npt.NDArray[np.int64], label: npt.NDArray[np.int64], low: FloatArray) -> CellList:
        """Cells up to the largest ratio; nothing is probed."""
        nothing = np.empty((0, unit.size))
        return CellList(unit, label, low, self.ratio_high[unit], nothing, nothing)

    def probe(self, unit: Any, x: Any) -> FloatArray:
        """Return nothing: all that is needed is in closed form."""
        return np.empty((0, np.size(x)))

    def value(self, prices: FloatArray, unit: Any, label: Any, x: Any, data: Any) -> Any:
        """Return the priced error at (bits, ratio); inf where the budgets or ranges cannot be kept."""
        least, allowed = self._least(unit, label)
        xp = namespace(x)
        fits = (x >= xp.asarray(least)) & (x <= xp.asarray(self.ratio_high[unit])) & xp.asarray(allowed)
        inside = xp.where(fits, prices[0] * self._value(unit, label, x), xp.full_like(x, np.inf))
        return xp.where(xp.asarray(self.active[unit]), inside, xp.zeros_like(x))

    def bound(self, prices: FloatArray, cells: CellList) -> tuple[FloatArray, FloatArray]:
        """Return the lesser value of a cell's ends, below which a concave function never falls, and that end."""
        ends = [prices[0] * self._value(cells.unit, cells.label, x) for x in (cells.low, cells.high)]
        bound = np.where(self.active[cells.unit], np.minimum(ends[0], ends[1]), 0.0)
        return bound, np.where(ends[0] <= ends[1], cells.low, cells.high)

    def split(self, prices: FloatArray, cells: CellList, hint: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Split in the middle; a cell of `cover` is settled by its ends and never split."""
        middle = 0.5 * (cells.low + cells.high)
        return middle, middle

    def complete(self, prices: FloatArray, unit: Any, label: Any, x: Any) -> tuple[dict[str, FloatArray], FloatArray]:
        """Return ratio and levels, and the error, at (bits, ratio)."""
        decision = {"pruning_ratio": np.array(x, dtype=np.float64), "levels": self._levels(unit, label)}
        out = ~self.active[unit]
        decision["levels"] = np.where(out, self.levels_low[unit], decision["levels"])
        return decision, np.where(out, 0.0, self._value(unit, label, x))[None]

    def capped(self, feature: int, caps: FloatArray) -> Cells:
        """Refuse: nothing is shared."""
        raise InputError(f"feature {feature} cannot be capped")

    def least_violating(self, unit: Any) -> dict[str, FloatArray]:
        """Return the largest ratio and the fewest levels."""
        unit = np.asarray(unit, dtype=np.int64)
        return {"pruning_ratio": self.ratio_high[unit].copy(), "levels": self.levels_low[unit].copy()}

    # -- rules of baselines

    def least_ratio(self) -> Decision | None:
        """Return the best level at its least ratio, the authors' rule; None where a unit has none."""
        unit, label, ratio = self._pairs(np.arange(self.units))
        return self._best(unit, label, ratio, self._value(unit, label, ratio))

    def random(self, rng: np.random.Generator) -> Decision | None:
        """Return levels drawn among the feasible ones, and a ratio drawn between the least and the largest."""
        unit, label, least = self._pairs(np.arange(self.units))
        ratio = least + rng.random(unit.size) * (self.ratio_high[unit] - least)
        return self._best(unit, label, ratio, rng.random(unit.size))

    def _best(self, unit: Any, label: Any, ratio: FloatArray, value: FloatArray) -> Decision | None:
        """Decision of the first row of least value of every unit; None where one that takes part has no row."""
        order = np.lexsort((value, unit))
        first = order[np.concatenate([[True], np.diff(unit[order]) != 0])] if order.size else order
        if first.size < self.active.sum():
            return None
        ratios, levels = self.ratio_high.copy(), self.levels_low.copy()
        ratios[unit[first]], levels[unit[first]] = ratio[first], self._levels(unit[first], label[first])
        return Decision(pruning_ratio=ratios, levels=levels)

    # -- who cannot take part

    def _use(self, unit: Any, ratio: Any, label: Any) -> tuple[Any, Any]:
        """Delay and energy of a round."""
        delay, energy = (self._fixed(label, i, unit) + (1.0 - ratio) * self._falling(label, i, unit) for i in (0, 1))
        return delay, energy

    def reason(self, unit: int) -> tuple[Literal["empty buffer", "delay", "energy", "delay and energy"], str]:
        """Say why a unit sits out: in a word, and in a sentence."""
        if self.empty[unit]:
            return "empty buffer", "nothing was sensed so far, there is nothing to train on"
        use = [float(v) for v in self._use(unit, self.most, 2)]
        names: list[Literal["delay", "energy"]] = ["delay", "energy"]
        short = [i for i in (0, 1) if use[i] > self.budgets[i][unit]]
        each = [
            f"{names[i]} {format_si(use[i], 'sJ'[i])} of {format_si(float(self.budgets[i][unit]), 'sJ'[i])}"
            for i in short
        ]
        text = f"even at ratio {self.most:g} and one level a round takes {' and '.join(each)}"
        return (names[short[0]] if len(short) == 1 else "delay and energy"), text

    def conflicts(self, unit: Any) -> list[Conflict]:
        """Say for vehicles that take part, but not within their ranges, which budget is short and what would do.

        One conflict a vehicle: with several slots, what its worst slots need.
        """
        unit = np.asarray(unit, dtype=np.int64)
        whose = unit % self.devices
        return [self._conflict(int(device), unit[whose == device]) for device in np.unique(whose)]

    def _conflict(self, device: int, unit: npt.NDArray[np.int64]) -> Conflict:
        """Conflict of one vehicle in its slots."""
        names, signs = ("delay", "energy"), "sJ"
        levels = self.levels_low[unit]
        need = [float(np.max(v)) for v in self._use(unit, self.ratio_high[unit], level_bits(levels))]
        # the budgets of a vehicle are the same in all slots
        budget = [float(b[unit[0]]) for b in self.budgets]
        short = [n > b for n, b in zip(need, budget, strict=True)]
        factor = max(n / b for n, b in zip(need, budget, strict=True))
        ways = [
            f"{names[k]} budget {format_si(budget[k], signs[k])} -> {format_si(need[k], signs[k], 4)}"
            for k in (0, 1)
            if short[k]
        ]
        binding = " and ".join(name for name, bad in zip(names, short, strict=True) if bad)
        slots = "" if self.units == self.devices else f" in {unit.size} slot{'s' if unit.size > 1 else ''}"
        return Conflict(
            device=device,
            binding=f"{binding}, each alone" if all(short) else binding,
            relax={
                "delay_budget": None if short[1] else need[0],
                "energy_budget": None if short[0] else need[1],
            },
            budget={"delay_budget": budget[0], "energy_budget": budget[1]},
            factor=factor,
            text=f"device {device}{slots}: {binding}, at the largest ratio and fewest levels allowed; feasible "
            f"with {' and '.join(ways)}, or both budgets x {factor:.4g}",
        )

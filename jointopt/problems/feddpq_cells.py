"""FedDPQ per device: bits, power and pruning ratio at prices, with a lower bound on every cell of powers.

At a given augmentation level each device adds an energy and a loss to two sums (theory 2b, 2g). Write y = 1/s for the
rounds per update that counts (s = participation x (1 - q), falling in the SNR x), j for the joules per bit, k for
L eta pi^2, and fix the bits. At prices a on the energy, g on Gamma and c on A, the device's cost is

    a [E_cmp(r) + j (S_0 + S_1 (1 - r))] + 2 g pi (L^2 D^2 e(r) + M^2 r)
    + k {(y - 1)(3 g Z^2 + 3 g L^2 D^2 e(r) + 3 c) + y g [sigma^2 + sigma_Q^2 (1 - r)]},

which is convex in the ratio r, with its least point in closed form; with the linear error it is linear, so that the
least point is an end (bang-bang).

* j is concave in x (`jointopt.problems.ltfl`), so it lies above its chord on a cell.
* y is convex in x: 1 - q = exp(-t/x) for outage and for a fixed gain, and exp(t/x) is convex; under Rayleigh fading the
  waterfall law has 1 - q = E exp(-t/(x o)), where t/(x o) + o is convex in (x, o), so that 1 - q is log-concave in x
  (Prekopa) and its inverse is convex. So y lies above its tangents at the ends of the cell.

On either side of the point where these tangents meet, the cost at any r is therefore at least an affine function of x.
The least over r of affine functions is concave, so its least value is taken at an end: the bound is the least of three
evaluations, at both ends of the cell, where it is exact, and where the tangents meet. Its error falls with the square
of the cell's width. Budgets on delay and energy narrow the ratios: what the delay asks for is least at the upper end
of the cell, what the energy asks for at the lower one; where they are active the error falls with the width itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from jointopt.errors import InputError
from jointopt.models import augmentation, compression, special
from jointopt.problem import CellList
from jointopt.problems.round import RoundCells
from jointopt.system import FloatArray, System

__all__ = ["FEATURES", "FedDPQCells", "Stage"]

FEATURES = ("energy", "loss", "gap", "contraction")
"""Per device: energy of a round it joins [J]; its share of Gamma + epsilon A, of Gamma (b_dat aside), and of A."""

_STEPS = 2
"""Cells that a device's powers are divided into at first, at every bit-width."""
_FAR = 1e30
"""Rounds per update that counts, beyond which a power is not looked at; no decision that reaches a target is there."""


@dataclass(frozen=True)
class Stage:
    """What augmentation leaves behind: between two levels the least of each, at one level its value.

    Arrays of shape ``[devices]``: `weight` pi'_u, `local_gap` Z_u, `processed` samples of a round, `sampling` variance
    of a batch's gradient. Numbers: `data_gap` b_dat, `energy` to generate [J].
    """

    weight: FloatArray
    local_gap: FloatArray
    processed: FloatArray
    sampling: FloatArray
    data_gap: float
    energy: float

    @staticmethod
    def between(system: System, low: float, high: float) -> Stage:
        """Return what holds for every common level from `low` to `high`."""
        section = system.augmentation
        assert section is not None
        real, mix = section.class_counts, section.class_mix
        few = augmentation.augmented_counts(real, np.array([low]))
        many = few if high == low else augmentation.augmented_counts(real, np.array([high]))
        held, most = few.sum(axis=1), many.sum(axis=1)
        gap_of_real = (real, few, mix, section.gradient_bound, section.synthetic_gap)
        if high == low:
            weight = held / held.sum()
            local = augmentation.local_gap(*gap_of_real)
            data = float(augmentation.data_gap(*gap_of_real))
        else:
            weight = held / (held + (most.sum() - most))
            local = section.gradient_bound * _skew(few, many, mix) + section.synthetic_gap * (
                1.0 - real.sum(axis=1) / held
            )
            data = float(
                section.gradient_bound * _skew(few.sum(axis=0)[None], many.sum(axis=0)[None], mix)[0]
                + section.synthetic_gap * (1.0 - real.sum() / held.sum())
            )
        batch = system.learner.batch_size
        processed = held if batch is None else np.minimum(held, float(batch))
        drawn = np.zeros(held.size, dtype=np.bool_) if batch is None else held > float(batch)
        price = section.sample_energy(system.devices.frequency, system.devices.capacitance)
        return Stage(
            weight=weight,
            local_gap=local,
            processed=processed,
            sampling=np.where(drawn, system.bound.gradient_variance / processed, 0.0),
            data_gap=data,
            energy=float(np.sum(price * (held - real.sum(axis=1)))),
        )


def _skew(few: FloatArray, many: FloatArray, mix: FloatArray) -> FloatArray:
    """Least distance ||P - mix||_1 of the class mixes of counts between two, rows on their own."""
    least = few / (few + many.sum(axis=1, keepdims=True) - many)
    most = many / (many + few.sum(axis=1, keepdims=True) - few)
    apart = np.maximum(np.maximum(least - mix, mix - most), 0.0).sum(axis=1)
    if np.ptp(mix) <= 1e-12 and few.shape[0] > 1:
        # filling up the rarest classes of one device only makes its mix more even (its top shares all fall)
        apart = np.maximum(apart, np.abs(many / many.sum(axis=1, keepdims=True) - mix).sum(axis=1))
    return np.asarray(apart)


class FedDPQCells(RoundCells):
    """The devices at augmentation levels between two, each round no longer than a cap; see the module's proof.

    Labels are bits, x is the mean SNR. `marks` are added to every decision (what the shared variables are taken for).
    """

    per_unit = (*RoundCells.per_unit, "weight", "noise", "local", "sampling", "range_variance")

    def __init__(
        self,
        system: System,
        ranges: Any,
        stage: Stage,
        *,
        longest: float = np.inf,
        marks: dict[str, float] | None = None,
    ) -> None:
        super().__init__(system, ranges, stage.processed)
        bound, target = system.bound, system.target
        assert target is not None
        self.delay_budget = np.minimum(self.delay_budget, longest)
        self.marks = marks or {}
        self.law = bound.pruning_law
        self.weight = stage.weight
        self.noise = bound.smoothness * bound.learning_rate * stage.weight**2
        self.local = 3.0 * stage.local_gap**2
        self.sampling = stage.sampling
        self.range_variance = compression.quantization_variance(self.parameters, bound.quantizer_range, 1.0)
        self.smooth_energy = bound.smoothness**2 * bound.weight_norm_squared
        self.mask_energy = bound.mask_energy
        self.participation = target.participation
        self.target = target.gradient_norm
        widths = np.arange(self.labels.max() + 1, dtype=np.float64)
        with np.errstate(divide="ignore"):
            self.fineness = 1.0 / (2.0**widths - 1.0) ** 2
        self._look_from()

    def _look_from(self) -> None:
        """Leave out powers at which so little arrives that A alone exceeds 1, which no decision may."""
        with np.errstate(divide="ignore"):
            most = np.minimum(1.0 + 1.0 / (3.0 * self.noise), _FAR) * (1.0 + 1e-9)
        everyone = np.arange(self.units)
        left, right = np.log(self.low), np.log(self.high)
        if np.all(self.probe(everyone, self.low)[2] <= most):
            return
        for _ in range(60):
            middle = 0.5 * (left + right)
            fine = self.probe(everyone, np.exp(middle))[2] <= most
            left, right = np.where(fine, left, middle), np.where(fine, middle, right)
        free = self.probe(everyone, self.low)[2] <= most
        self.low = np.where(free, self.low, np.minimum(np.exp(right), self.high))
        self.power_low = np.where(free, self.power_low, np.minimum(self.low / self.snr_per_watt, self.power_high))

    # -- the model at an SNR: seconds per bit, joules per bit, rounds per update that counts, its slope

    def probe(self, unit: Any, x: Any) -> FloatArray:
        """Return [s/bit, J/bit, y, dy/dx] at SNR x, shape [4, points]."""
        seconds, joules, lost = super().probe(unit, x)
        with np.errstate(over="ignore", divide="ignore"):
            tries = np.minimum(1.0 / (self.participation * (1.0 - lost)), 1e3 * _FAR)
        law, t = self.radio.packet_error, self.threshold / x
        if law == "none":
            slope = 0.0 * tries
        elif law == "waterfall" and self.radio.fading == "rayleigh":
            slope = -(tries**2) * self.participation * 2.0 * special.k0(2.0 * t**0.5) * t / x
        else:
            slope = -tries * t / x
        return np.stack([seconds, joules, tries, slope])

    def _terms(self, prices: FloatArray, unit: Any, label: Any, joules: Any, tries: Any) -> tuple[Any, Any, Any]:
        """Cost as constant + slope x ratio + curved x e(ratio)."""
        energy, loss, gap, contraction = prices if prices.ndim == 1 else prices[:, unit]
        gap = gap + loss
        contraction = contraction + self.target * loss
        noise, weight = self.noise[unit], self.weight[unit]
        per_weight = self.parameters * (label + self.index_bits)
        once = self.unpruned * label + self.once_bits
        work = self.compute_energy[unit]
        rough = noise * tries * gap * self.range_variance[unit] * self.fineness[label]
        falling = energy * (work * self.falling_share + joules * per_weight) + rough
        rising = 2.0 * gap * weight * self.mask_energy
        curved = gap * self.smooth_energy * (2.0 * weight + 3.0 * noise * (tries - 1.0))
        constant = (
            energy * (work * self.fixed_share + joules * once)
            + noise * ((tries - 1.0) * (gap * self.local[unit] + 3.0 * contraction) + tries * gap * self.sampling[unit])
            + rough * (self.unpruned / self.parameters)
            + falling
        )
        return constant, rising - falling, curved

    def _best_ratio(self, slope: Any, curved: Any, low: Any, high: Any) -> Any:
        """Ratio in [low, high] where slope x ratio + curved x e(ratio) is least."""
        if self.law == "linear":
            return np.where(slope + curved >= 0.0, low, high)
        with np.errstate(divide="ignore", invalid="ignore"):
            steepness = np.where(slope < 0.0, -slope / curved, 0.0)
        free = compression.pruning_ratio_at_slope(np.where(np.isnan(steepness), np.inf, steepness), self.law)
        return np.clip(free, low, high)

    def _cost(
        self, prices: FloatArray, unit: Any, label: Any, joules: Any, tries: Any, low: Any, high: Any
    ) -> tuple[Any, Any]:
        """Least cost over ratios in [low, high], and the ratio."""
        constant, slope, curved = self._terms(prices, unit, label, joules, tries)
        ratio = self._best_ratio(slope, curved, low, high)
        return constant + slope * ratio + curved * compression.pruning_error(ratio, self.law), ratio

    def _asked(self, unit: Any, label: Any, at_delay: Any, at_energy: Any) -> Any:
        """Ratio that the budgets ask for."""
        asked = np.maximum(self.by_delay(unit, label, at_delay), self.by_energy(unit, label, at_energy))
        return np.maximum(self.ratio_low[unit], asked)

    # -- the protocol of Cells

    def cover(self, prices: FloatArray, units: slice) -> CellList:
        """Return cells over all bits and a few shared SNRs."""
        unit = np.arange(*units.indices(self.units))
        low, high = self.low[unit], self.high[unit]
        steps = _STEPS if np.any(high > low * (1.0 + 1e-12)) else 1
        knots = [low * (high / low) ** f for f in np.linspace(0.0, 1.0, steps + 1)]
        knots[0], knots[-1] = low, high
        data = [self.probe(unit, x) for x in knots]
        label = self.labels[:, None]
        rows, columns = np.nonzero((label >= self.bits_low[unit]) & (label <= self.bits_high[unit]))
        return CellList.join(
            [
                CellList(
                    unit[columns],
                    self.labels[rows],
                    knots[i][columns],
                    knots[i + 1][columns],
                    data[i][:, columns],
                    data[i + 1][:, columns],
                )
                for i in range(steps)
            ]
        )

    def value(self, prices: FloatArray, unit: Any, label: Any, x: Any, data: Any) -> Any:
        """Return the least priced cost over the ratios; inf where the budgets ask for more than the cap."""
        asked = self._asked(unit, label, data, data)
        high = self.ratio_high[unit]
        cost, _ = self._cost(prices, unit, label, data[1], data[2], np.minimum(asked, high), high)
        return np.where(asked <= self.ratio_limit[unit], cost, np.inf)

    def bound(self, prices: FloatArray, cells: CellList) -> tuple[FloatArray, FloatArray]:
        """Return the lower bound of the module's proof, and where to split."""
        unit, label = cells.unit, cells.label
        low, high, first, last = cells.low, cells.high, cells.data_low, cells.data_high
        asked = self._asked(unit, label, last, first)
        cap = self.ratio_high[unit]
        least = np.minimum(asked, cap)
        width = high - low
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            share = (last[2] - first[2] - last[3] * width) / ((first[3] - last[3]) * width)
        share = np.where(np.isfinite(share), np.clip(share, 0.0, 1.0), 0.5)
        joules = first[1] + share * (last[1] - first[1])
        tries = np.maximum(first[2] + first[3] * share * width, last[2] - last[3] * (1.0 - share) * width)
        # rounding may put the meeting point above the convex function's own ends
        tries = np.minimum(tries, np.maximum(first[2], last[2]))
        at_low, _ = self._cost(prices, unit, label, first[1], first[2], least, cap)
        at_high, _ = self._cost(prices, unit, label, last[1], last[2], least, cap)
        between, _ = self._cost(prices, unit, label, joules, tries, least, cap)
        lower = np.minimum(np.minimum(at_low, at_high), between)
        inner = np.clip(share, 0.1, 0.9)
        middle = np.where(between < np.minimum(at_low, at_high), low + inner * width, np.sqrt(low * high))
        return np.where(asked > self.ratio_limit[unit], np.inf, lower), np.clip(middle, low, high)

    def split(self, prices: FloatArray, cells: CellList, hint: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Split where the tangents meet, or in the middle where an end is what bounds the cell."""
        narrow = cells.high <= cells.low * (1.0 + 1e-12)
        point = np.where(narrow, cells.high, hint)
        return point, point

    def complete(self, prices: FloatArray, unit: Any, label: Any, x: Any) -> tuple[dict[str, FloatArray], FloatArray]:
        """Return the decision and the features at (bits, SNR)."""
        data = self.probe(unit, x)
        high = self.ratio_high[unit]
        asked = np.minimum(self._asked(unit, label, data, data), high)
        _, ratio = self._cost(prices, unit, label, data[1], data[2], asked, high)
        decision = {
            "pruning_ratio": ratio,
            "bits": np.asarray(label, dtype=np.float64),
            "power": np.clip(x / self.snr_per_watt[unit], *self._power_range(unit)),
        }
        features = [self._feature(name, unit, label, data, ratio) for name in ("energy", "gap", "contraction")]
        loss = features[1] + self.target * features[2]
        return self._marked(decision, unit, label, data), np.stack([features[0], loss, *features[1:]])

    def _feature(self, name: str, unit: Any, label: Any, data: Any, ratio: Any) -> FloatArray:
        prices = np.array([float(feature == name) for feature in FEATURES])
        constant, slope, curved = self._terms(prices, unit, label, data[1], data[2])
        return np.asarray(constant + slope * ratio + curved * compression.pruning_error(ratio, self.law))

    def _marked(self, decision: dict[str, FloatArray], unit: Any, label: Any, data: Any) -> dict[str, FloatArray]:
        """Add what a relaxation's decision says of the shared variables."""
        out = dict(decision)
        for name, value in self.marks.items():
            out[name] = np.full(np.size(unit), value)
        if "round_delay" in self.marks:
            kept = 1.0 - decision["pruning_ratio"]
            work = (self.fixed_share + self.falling_share * kept) * self.compute_delay[unit]
            bits = kept * self.parameters * (label + self.index_bits) + self.unpruned * label + self.once_bits
            out["round_delay"] = work + bits * data[0]
        return out

    def least_violating(self, unit: Any) -> dict[str, FloatArray]:
        """Return the decision that exceeds the budgets by the smallest common factor."""
        decision = super().least_violating(unit)
        x = decision["power"] * self.snr_per_watt[unit]
        return self._marked(decision, unit, decision["bits"], self.probe(unit, x))

    def capped(self, feature: int, caps: FloatArray) -> FedDPQCells:
        """No feature of one device can be capped on its own."""
        raise InputError(f"feature {feature} cannot be capped")

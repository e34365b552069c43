"""What one device does with a share of a band, at a price of it: cells for designs that choose ratios and bands.

A device sends at full power in a band b, at the rate R(b) (`BandCells.rate`). With kept fraction k = 1 - pruning_ratio
it computes for t0 + t1 k seconds and sends c0 + c1 k bits, so its deadline T allows

    k(R) = ((T - t0) R - c0)/(t1 R + c1),  k'(R) = (c1 (T - t0) + c0 t1)/(t1 R + c1)^2

(the closed form of theory 6 [D] is the case t0 = c0 = 0). At prices P on the learning cost and on the band, and with w
its weight, its priced value is

    P_cost w [2 (L^2 D^2 e(1-k) + M^2 (1-k)) + constant of the label + C_q q(b)] + P_band b.

**Convexity** [D]. R is concave and rises: with the power density fixed it is linear, with the power fixed
b log2(1 + g/b) is the perspective of a concave function, and so are its means over fading. k(R) is concave and rises
where k >= 0, hence k(R(b)) is concave; the error e is convex and rises in the ratio. So everything but q is convex in
b. The packet error q is an average of 1 - exp(-x b), concave in b.

**Bound on a cell** [b_1, b_2]: the convex part lies above its tangents at both ends, the concave one above its chord.
The least of the greater tangent plus the chord is taken at an end or where the tangents meet. The error falls with the
square of the cell's width.

A label is a deadline with a constant of its own (a tier). The last label, where there is one more, leaves the device
out: it gets no band and costs as much as if everything were pruned, else leaving out everybody would be best [S].
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from jointopt.errors import InputError
from jointopt.models import channel, compression, cost, special
from jointopt.problem import CellList, Conflict
from jointopt.system import FloatArray
from jointopt.units import format_si

if TYPE_CHECKING:
    from jointopt.problems.banded import BandProblem

__all__ = ["BandCells"]

_HALVINGS = 60
_CLOSE = 1e-6
"""Relative half-width of the cell that is left around a stationary point."""
_ROUNDING = 1e-13
_LEAST_BAND = 1e-18
"""Share of the band below which no device is given any."""


class BandCells:
    """Units for `jointopt.problem.Cells`: x is the band [Hz], the label a deadline, or that the device is left out.

    Parameters
    ----------
    problem : BandProblem
        System, ranges and pools.
    deadlines : array, shape [labels, devices]
        Longest round [s] at every label.
    constant : array, shape [labels, devices], optional
        What each label adds to the learning cost, before the weight.
    marks : mapping of str to float, optional
        Names under which every decision carries a number, for variables that all devices share.
    """

    per_unit: ClassVar[tuple[str, ...]] = (
        "weight",
        "reach",
        "fixed_efficiency",
        "time_once",
        "time_each",
        "kept_low",
        "kept_high",
        "band_low",
        "band_high",
        "band_least",
        "pool",
        "may",
        "must",
        "power",
        "density",
        "deadlines",
        "constant",
        "low",
        "high",
        "feasible",
    )

    def __init__(
        self,
        problem: BandProblem,
        deadlines: FloatArray,
        *,
        constant: FloatArray | None = None,
        marks: Mapping[str, float] | None = None,
    ) -> None:
        system = problem.system
        devices, radio, learner, bound = system.devices, system.radio, system.learner, system.bound
        assert radio.gain is not None
        self.units = len(system)
        self.features = problem.features
        self.fading, self.law_of_loss = radio.fading, radio.packet_error
        self.threshold = radio.waterfall_threshold if radio.packet_error == "waterfall" else radio.outage_threshold
        self.weight = system.weight
        self.reach = devices.power_max * radio.gain / radio.noise_density
        self.by_density = problem.limit == "density"
        self.power, self.density = devices.power_max, problem.density
        self.fixed_efficiency = channel.spectral_efficiency(problem.density * self.reach / self.power, self.fading)
        compute = cost.compute_delay(cost.cycles(system.batch, devices.cycles_per_sample), devices.frequency)
        # cycles = fixed share + kept fraction x falling share, for every law
        full, empty = (float(learner.compute_factor(np.asarray(r))) for r in (0.0, 1.0))
        self.time_once, self.time_each = empty * compute, (full - empty) * compute
        index, once = compression.index_bits(learner.parameters, learner.mask_encoding)
        self.bits_once = float(learner.unpruned_parameters * learner.bits_max) + learner.header_bits + once
        self.bits_each = float(learner.parameters) * (learner.bits_max + index)
        ranges = problem.ranges
        self.kept_low, self.kept_high = 1.0 - ranges["pruning_ratio"][1], 1.0 - ranges["pruning_ratio"][0]
        self.band_low, self.band_high = ranges["bandwidth"]
        self.band_least = _LEAST_BAND * problem.bands[problem.pool]
        self.pool = problem.pool
        selected = ranges.get("selected", (np.ones(self.units), np.ones(self.units)))
        self.must, self.may = selected[0] > 0.5, selected[1] > 0.5
        self.selects = self.chooses = problem.selects
        self.law = bound.pruning_law
        self.smooth = 2.0 * bound.smoothness**2 * bound.weight_norm_squared
        self.mask = 2.0 * bound.mask_energy
        self.transmission, self.contraction = problem.transmission, 8.0 * bound.gradient_slope
        self.marks = dict(marks or {})
        self.deadlines = np.asarray(deadlines, dtype=np.float64)
        self.constant = np.zeros(self.deadlines.shape) if constant is None else constant
        self.out = self.deadlines.shape[0]
        """The label of devices that are left out."""
        self._prepare()

    def _prepare(self) -> None:
        """Find the least and the most band that each device has a use for at every label."""
        low = self._band_for(self.kept_low)
        high = np.minimum(self._band_for(self.kept_high), self.band_high)
        self.low = np.maximum(low, np.maximum(self.band_low, self.band_least))
        self.feasible = (self.low <= self.band_high) & self.may
        self.high = np.maximum(high, self.low)
        # one device that can take part is worth it; where none can, nobody may be left out
        self.selects = self.selects and bool(self.feasible.any())

    def _band_for(self, kept: FloatArray) -> FloatArray:
        """Least band [labels, units] at which the deadline allows a kept fraction; inf where none does."""
        room = self.deadlines - self.time_once - self.time_each * kept
        with np.errstate(divide="ignore"):
            need = np.where(room > 0.0, (self.bits_once + self.bits_each * kept) / np.maximum(room, 0.0), np.inf)
        return self._inverse(need)

    def _inverse(self, rate: FloatArray) -> FloatArray:
        """Least band at which a rate is reached, [labels, units]; inf where that is more than the device may have."""
        unit = np.broadcast_to(np.arange(self.units), rate.shape)
        most = np.broadcast_to(self.band_high, rate.shape)
        if self.by_density:
            band = rate / self.fixed_efficiency
            return np.where(band <= most * (1.0 + 1e-15), np.minimum(band, most), np.inf)
        left, right = np.log(np.broadcast_to(self.band_least, rate.shape)), np.log(most)
        reached = self.rate(unit, most) >= rate
        for _ in range(_HALVINGS):
            middle = 0.5 * (left + right)
            enough = self.rate(unit, np.exp(middle)) >= rate
            left, right = np.where(enough, left, middle), np.where(enough, middle, right)
        return np.where(reached, np.minimum(np.exp(right), most), np.inf)

    # -- the model

    def rate(self, unit: Any, band: Any) -> Any:
        """Rate [bit/s] in a band."""
        if self.by_density:
            return band * self.fixed_efficiency[unit]
        return channel.rate(band, self.reach[unit] / band, self.fading)

    def _rate_slope(self, unit: Any, band: Any, rate: Any) -> Any:
        """Derivative of the rate in the band; not below 0."""
        if self.by_density:
            return self.fixed_efficiency[unit] + 0.0 * band
        snr = self.reach[unit] / band
        if self.fading == "rayleigh":
            slope = special.rayleigh_rate_derivative(snr)
        else:
            slope = 1.0 / ((1.0 + snr) * np.log(2.0))
        found = rate / band - snr * slope
        return np.maximum(found, 0.0) if isinstance(found, np.ndarray) and found.dtype != object else found

    def kept(self, unit: Any, label: Any, rate: Any) -> Any:
        """Fraction that the deadline allows to keep at a rate, within the range."""
        return self._within(self._kept(unit, label, rate), unit)

    def _within(self, kept: Any, unit: Any) -> Any:
        """Move a kept fraction into its range; what is short of the greatest by rounding is the greatest."""
        high = self.kept_high[unit]
        return np.where(kept >= high * (1.0 - _ROUNDING), high, np.maximum(kept, self.kept_low[unit]))

    def _kept(self, unit: Any, label: Any, rate: Any) -> Any:
        room = (self._deadline(label, unit) - self.time_once[unit]) * rate - self.bits_once
        return room / (self.time_each[unit] * rate + self.bits_each)

    def _deadline(self, label: Any, unit: Any) -> Any:
        return self.deadlines[np.minimum(label, self.out - 1), unit]

    def error(self, kept: Any) -> Any:
        """Learning cost of a kept fraction, before the weight."""
        return self.smooth * compression.pruning_error(1.0 - kept, self.law) + self.mask * (1.0 - kept)

    @property
    def whole(self) -> float:
        """Learning cost of everything pruned, before the weight."""
        return self.smooth + self.mask

    def turn(self, unit: Any, label: Any) -> Any:
        """c1 (T - t0) + c0 t1: what the derivative of the kept fraction in the rate is a multiple of."""
        room = self._deadline(label, unit) - self.time_once[unit]
        return self.bits_each * room + self.bits_once * self.time_each[unit]

    @staticmethod
    def _of(prices: FloatArray, feature: int, unit: Any) -> Any:
        return prices[feature] if prices.ndim == 1 else prices[feature, unit]

    def _band_price(self, prices: FloatArray, unit: Any) -> Any:
        row = 1 + self.pool[unit]
        return prices[row] if prices.ndim == 1 else prices[row, unit]

    def _loss_price(self, prices: FloatArray, unit: Any) -> Any:
        price = self._of(prices, 0, unit) * self.transmission
        if self.features[-1] == "contraction":
            price = price + self._of(prices, len(self.features) - 1, unit) * self.contraction
        return price * self.weight[unit]

    def _convex(self, prices: FloatArray, unit: Any, label: Any, x: Any, data: Any) -> tuple[Any, Any]:
        """Return (value, slope) of the convex part; the slope is the one on the left where there are two."""
        scale = self._of(prices, 0, unit) * self.weight[unit]
        band = self._band_price(prices, unit)
        most = self._kept(unit, label, data[0])
        kept = self._within(most, unit)
        gone = label == self.out
        at = np.where(gone, 0, np.minimum(label, self.out - 1))
        value = scale * (self.error(kept) + self.constant[at, unit]) + band * x
        ratio = np.maximum(1.0 - kept, 0.0)
        steep = self.smooth * compression.pruning_error_slope(ratio, self.law) + self.mask
        rise = self.turn(unit, label) / (self.time_each[unit] * data[0] + self.bits_each) ** 2 * data[1]
        # where the greatest fraction is kept more band is no use
        useful = most <= self.kept_high[unit] * (1.0 + _ROUNDING)
        slope = band - np.where(useful, scale * steep * rise, 0.0)
        return np.where(gone, scale * self.whole, value), np.where(gone, 0.0, slope)

    def _concave(self, prices: FloatArray, unit: Any, label: Any, data: Any) -> Any:
        return np.where(label == self.out, 0.0, self._loss_price(prices, unit) * data[2])

    # -- the protocol of Cells

    def take(self, index: Any) -> Self:
        """Return some units, repeats allowed."""
        out = copy.copy(self)
        out.units = int(np.size(index))
        for name in self.per_unit:
            setattr(out, name, getattr(self, name)[..., index])
        return out

    def capped(self, feature: int, caps: FloatArray) -> Self:
        """Return the same units, those of one pool each with a band of at most `caps` [Hz]."""
        if not 1 <= feature <= int(self.pool.max(initial=0)) + 1:
            raise InputError(f"feature {feature} cannot be capped")
        out = copy.copy(self)
        out.band_high = np.where(self.pool == feature - 1, np.minimum(self.band_high, caps), self.band_high)
        out.high = np.maximum(np.minimum(self.high, out.band_high), self.low)
        out.feasible = self.feasible & (self.low <= out.band_high * (1.0 + 1e-12))
        return out

    def probe(self, unit: Any, x: Any) -> FloatArray:
        """Return [rate, its slope, packet error] in a band x, shape [3, points]."""
        rate = self.rate(unit, x)
        slope = self._rate_slope(unit, x, rate)
        if self.transmission == 0.0 and self.features[-1] != "contraction":
            return np.stack([rate, slope, 0.0 * rate])
        snr = self.density[unit] * self.reach[unit] / self.power[unit] + 0.0 * x
        if not self.by_density:
            snr = self.reach[unit] / x
        return np.stack([rate, slope, channel.packet_error(snr, self.threshold, self.law_of_loss, self.fading)])

    def cover(self, prices: FloatArray, units: slice) -> CellList:
        """Return one cell for every deadline that a device can keep, and one for leaving it out."""
        everyone = np.arange(*units.indices(self.units))
        label, column = np.nonzero(self.feasible[:, everyone])
        unit = everyone[column]
        low, high = self.low[label, unit], self.high[label, unit]
        if self.selects:
            free = everyone[~self.must[everyone]]
            nothing = self.band_least[free]
            unit, label = np.concatenate([unit, free]), np.concatenate([label, np.full(free.size, self.out)])
            low, high = np.concatenate([low, nothing]), np.concatenate([high, 2.0 * nothing])
        return CellList(unit, label, low, high, self.probe(unit, low), self.probe(unit, high))

    def value(self, prices: FloatArray, unit: Any, label: Any, x: Any, data: Any) -> Any:
        """Return the priced value in a band x; inf outside what the device has a use for."""
        value = self._convex(prices, unit, label, x, data)[0] + self._concave(prices, unit, label, data)
        at = np.minimum(label, self.out - 1)
        inside = self.feasible[at, unit] & (x >= self.low[at, unit]) & (x <= self.high[at, unit])
        free = (label == self.out) & ~self.must[unit] & self.selects
        return np.where(inside | free, value, np.inf)

    def bound(self, prices: FloatArray, cells: CellList) -> tuple[FloatArray, FloatArray]:
        """Return the least of the greater tangent plus the chord, and where it is."""
        unit, label, low, high = cells.unit, cells.label, cells.low, cells.high
        left, falls = self._convex(prices, unit, label, low, cells.data_low)
        right, rises = self._convex(prices, unit, label, high, cells.data_high)
        first = self._concave(prices, unit, label, cells.data_low)
        last = self._concave(prices, unit, label, cells.data_high)
        with np.errstate(divide="ignore", invalid="ignore"):
            chord = np.where(high > low, (last - first) / (high - low), 0.0)
            meet = (left - right + rises * high - falls * low) / (rises - falls)
        meet = np.clip(np.where(rises > falls, meet, low), low, high)

        def below(x: FloatArray) -> FloatArray:
            out: FloatArray = (
                np.maximum(left + falls * (x - low), right + rises * (x - high)) + first + chord * (x - low)
            )
            return out

        values = np.stack([below(low), below(meet), below(high)])
        at = np.argmin(values, axis=0)
        return values.min(axis=0), np.choose(at, [low, meet, high])

    def split(self, prices: FloatArray, cells: CellList, hint: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Split close to both sides of where the convex part and the chord are stationary."""
        unit, label, low, high = cells.unit, cells.label, cells.low, cells.high
        first = self._concave(prices, unit, label, cells.data_low)
        last = self._concave(prices, unit, label, cells.data_high)
        with np.errstate(divide="ignore", invalid="ignore"):
            chord = np.where(high > low, (last - first) / (high - low), 0.0)
        left, right = np.log(low), np.log(high)
        for _ in range(32):
            middle = 0.5 * (left + right)
            x = np.exp(middle)
            up = self._convex(prices, unit, label, x, self.probe(unit, x))[1] + chord >= 0.0
            left, right = np.where(up, left, middle), np.where(up, middle, right)
        point = np.exp(0.5 * (left + right))
        width = high - low
        near = np.minimum(_CLOSE * point, 0.25 * width)
        return np.clip(point - near, low + 0.01 * near, high), np.clip(point + near, low, high - 0.01 * near)

    def complete(self, prices: FloatArray, unit: Any, label: Any, x: Any) -> tuple[dict[str, FloatArray], FloatArray]:
        """Return the decision and the features in a band x."""
        data = self.probe(unit, x)
        gone = label == self.out
        kept = self.kept(unit, label, data[0])
        at = np.minimum(label, self.out - 1)
        weight = self.weight[unit]
        learned = weight * (self.error(kept) + self.constant[at, unit] + self.transmission * data[2])
        features = np.zeros((len(self.features), np.size(x)))
        features[0] = np.where(gone, weight * self.whole, learned)
        features[1 + self.pool[unit], np.arange(np.size(x))] = np.where(gone, 0.0, x)
        if self.features[-1] == "contraction":
            features[-1] = weight * self.contraction * data[2]
        return self._decision(unit, 1.0 - kept, x, gone), features

    def _decision(self, unit: Any, ratio: Any, band: Any, gone: Any) -> dict[str, FloatArray]:
        band = np.where(gone, 0.0, band)
        out = {
            "pruning_ratio": np.where(gone, 1.0 - self.kept_high[unit], ratio),
            "bandwidth": band,
            "power": self.density[unit] * band if self.by_density else self.power[unit] + 0.0 * band,
        }
        if self.chooses:
            out["selected"] = np.where(gone, 0.0, 1.0)
        return out | {name: np.full(np.shape(band), value) for name, value in self.marks.items()}

    def least_violating(self, unit: Any) -> dict[str, FloatArray]:
        """Return the fastest decision: all the band there is for the least payload."""
        nobody = np.zeros(np.shape(unit), dtype=bool)
        return self._decision(unit, 1.0 - self.kept_low[unit], self.band_high[unit].copy(), nobody)

    # -- infeasible devices

    def conflicts(self, unit: Any) -> list[Conflict]:
        """Say for devices that cannot meet their deadline, even with all the band they may have, which would do."""
        unit = np.asarray(unit, dtype=np.int64)
        kept = self.kept_low[unit]
        rate = self.rate(unit, self.band_high[unit])
        need = self.time_once[unit] + self.time_each[unit] * kept + (self.bits_once + self.bits_each * kept) / rate
        longest = self.deadlines.max(axis=0)[unit]
        return [self._conflict(int(u), float(need[i]), float(longest[i])) for i, u in enumerate(unit)]

    def _conflict(self, device: int, need: float, longest: float) -> Conflict:
        width = format_si(float(self.band_high[device]), "Hz")
        return Conflict(
            device=device,
            binding="delay",
            relax={"delay_budget": need},
            budget={"delay_budget": longest},
            factor=need / longest,
            text=f"device {device}: delay, even with {width}; feasible with delay budget "
            f"{format_si(longest, 's')} -> {format_si(need, 's', 4)}",
        )

"""What one device does at prices on the gap, the band and the energy: cells with proved bounds for `PooledLTFL`.

Let s be a device's mean SNR, k = 1 - pruning_ratio what it keeps, and fix its bits. It sends c(k) = c0 + c1 k bits
and computes for t(k) = t0 + t1 k seconds with e(k) = e0 + e1 k joules. With r(s) the spectral efficiency and g = h/N0
a band B takes the power p = s B/g, and sending takes the energy p c(k)/(B r(s)) = tau(s) c(k)/g, tau(s) = s/r(s),
whatever the band. So at (s, k) a device uses the least band that its deadline and its least power allow,

    B(s, k) = max(beta(k) rho(s), floor(s)),   beta(k) = c(k)/(T - t(k)),   rho(s) = 1/r(s),
    floor(s) = max(p_min g/s, B_min),          as long as B(s, k) <= min(B_max, p_max g/s)

(where p_min asks for more band than the deadline does, the device sends with p_min and is done early). At prices P its
priced value, convex in k since beta is, is

    Phi(s, k) = P_gap w [2 (L^2 D^2 e(1-k) + M^2 (1-k)) + n k + constant] + (P_gap w C_q + P_A w zeta) q(s)
                + P_band B(s, k) + P_energy [e(k) + tau(s) c(k)/g].

**Bound on a cell** [s_1, s_2]. Three facts:

1. q is concave in 1/s (`jointopt.problems.ltfl`) and falls in s;
2. tau is concave in s and rises: with fading o >= 0 of mean 1, s/r(s) is the harmonic mean of the affine functions
   1 + s v over a random v, see `jointopt.problems.ltfl`;
3. rho(s) = x tau(1/x) at x = 1/s is the perspective of the concave tau, hence concave in x; it rises in x.

So q and rho lie above their chords in 1/s, a + b/s with b >= 0, and these above their tangents in s at any s_0, since
1/s is convex; tau lies above its chord in s. All three thus have lower bounds l(s) that are affine in s on the cell,
and so has the floor, l_floor. For any 0 <= v <= 1 and mu, nu, kappa >= 0 and any feasible (s, k),

    Phi(s, k) >= gap(k) + loss l_q(s) + P_band [v beta(k) l_rho(s) + (1-v) l_floor(s)]
                 + P_energy [e(k) + c(k) l_tau(s)/g]
                 + mu [beta(k) l_tau(s) - p_max g] + nu [beta(k) l_rho(s) - B_max]
                 + kappa [e(k) + c(k) l_tau(s)/g - E_max]

(the maximum is at least any mean of its two sides; what is added to Phi is not above 0, because power, band and energy
are within their limits). For every k the right side is affine in s, so it is least at an end of the cell, and at each
end the least over k of A k + M beta(k) + error is known: in closed form where the pruning error is linear, so on the
piece of a measured one that bisection finds, and else to rounding by Newton's method on a convex function, whose
tangent bounds what is left. The smaller of the two ends is the
bound. It holds for any s_0, v, mu, nu, kappa; these are chosen near the least point of the cell so that the error falls
with the square of the cell's width: s_0 where the sum of chords is least, the multipliers from stationarity in k.

The ends of a cell may be moved inwards to where the chords say that not even the least k keeps the limits. l_rho must
not be negative, so that the function of k stays convex: s_0 >= s_2/2.

Of wide cells the simple bound may be the better one: Phi rises in rho, tau, q and the floor, so with rho, q and the
floor taken at s_2 and tau at s_1, for the limits too, its least over k is below all of the cell.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from jointopt.errors import InputError
from jointopt.models import channel, compression, cost
from jointopt.models.curve import ConvexCurve
from jointopt.problem import CellList, Conflict, Leaves
from jointopt.system import FloatArray
from jointopt.units import format_si

if TYPE_CHECKING:
    from jointopt.problems.pooled import PooledLTFL

__all__ = ["PooledCells"]

FEATURES = ("gap", "bandwidth", "energy", "contraction")

_SLACK = 2e-10
"""Relative excess of a limit at the least kept fraction that is rounding; `FEASIBILITY_TOLERANCE` is above it."""
_TINY = 1e-300
_WIDE = 1.4
"""Ratio of a cell's ends above which the simple bound may be the better one."""
_TOGETHER = 1024
"""Units whose initial cells are found together: few enough for the processor's cache."""
_OCTAVES = np.arange(-240, 241)
"""The SNRs 2^j at which initial cells begin and end, the same for all units."""


@dataclass(frozen=True)
class _Units:
    """Constants of every unit, arrays over units."""

    weight: FloatArray
    sampling: FloatArray
    range_squared: FloatArray
    gain: FloatArray
    """g = h/N0 [Hz/W]."""
    time_left: FloatArray
    """T - t0 [s]."""
    time_each: FloatArray
    energy_once: FloatArray
    energy_each: FloatArray
    kept_low: FloatArray
    kept_high: FloatArray
    bits_low: FloatArray
    bits_high: FloatArray
    power_low: FloatArray
    power_high: FloatArray
    band_low: FloatArray
    band_high: FloatArray
    energy_cap: FloatArray

    def take(self, index: Any) -> _Units:
        """Return some units."""
        if isinstance(index, slice):
            return _Units(*(value[index] for value in vars(self).values()))
        return _Units(*(value.take(index) for value in vars(self).values()))


def _some(value: Any, index: Any) -> Any:
    """Some entries of an array, or the number that stands for all."""
    return value[index] if np.ndim(value) else value


@dataclass(frozen=True)
class _Rows:
    """Priced constants of (unit, label) rows; broadcast against each other."""

    slope: Any
    """What one more kept fraction adds to the priced gap, a curved error apart."""
    constant: Any
    curve: Any
    """Priced factor of a curved error (Laplace, measured); 0 with the linear one."""
    loss: Any
    band_price: Any
    energy_price: Any
    payload_once: Any
    payload_each: Any
    unit: _Units

    def take(self, index: Any) -> _Rows:
        """Return some rows."""
        return _Rows(*(v.take(index) if isinstance(v, _Units) else _some(v, index) for v in vars(self).values()))

    def payload(self, kept: Any) -> Any:
        """c(k) [bit]."""
        return self.payload_once + self.payload_each * kept

    def load(self, kept: Any) -> Any:
        """beta(k) [bit/s]."""
        return self.payload(kept) / (self.unit.time_left - self.unit.time_each * kept)

    def load_slope(self, kept: Any) -> Any:
        """Derivative of beta."""
        return self.turn / (self.unit.time_left - self.unit.time_each * kept) ** 2

    @property
    def turn(self) -> Any:
        """c1 (T - t0) + c0 t1: what the derivative of beta is a multiple of."""
        return self.payload_each * self.unit.time_left + self.payload_once * self.unit.time_each

    def kept_by_load(self, load: Any) -> Any:
        """Largest k with beta(k) <= load."""
        unit = self.unit
        return (load * unit.time_left - self.payload_once) / (self.payload_each + load * unit.time_each)

    def kept_by_energy(self, per_bit: Any, cap: Any) -> Any:
        """Largest k with e(k) + c(k) per_bit <= cap."""
        unit = self.unit
        return (cap - unit.energy_once - self.payload_once * per_bit) / (unit.energy_each + self.payload_each * per_bit)


class PooledCells:
    """Units of `PooledLTFL` for `jointopt.problem.Cells`: x is the mean SNR, the label is the number of bits."""

    def __init__(self, problem: PooledLTFL) -> None:
        system = problem.system
        devices, radio, learner, bound = system.devices, system.radio, system.learner, system.bound
        assert radio.gain is not None
        self.units = len(system)
        self.fading, self.law_of_loss = radio.fading, radio.packet_error
        self.threshold = radio.waterfall_threshold if radio.packet_error == "waterfall" else radio.outage_threshold
        work = cost.cycles(system.batch, devices.cycles_per_sample)
        # cycles = fixed share + kept fraction x falling share, for every law
        full, empty = (float(learner.compute_factor(np.asarray(r))) for r in (0.0, 1.0))
        delay = cost.compute_delay(work, devices.frequency)
        energy = cost.compute_energy(work, devices.frequency, devices.capacitance)
        ranges = problem.ranges
        self.unit = _Units(
            weight=system.weight,
            sampling=problem.sampling,
            range_squared=np.broadcast_to(bound.quantizer_range**2, self.units),
            gain=radio.gain / radio.noise_density,
            time_left=devices.delay_budget - empty * delay,
            time_each=(full - empty) * delay,
            energy_once=empty * energy,
            energy_each=(full - empty) * energy,
            kept_low=1.0 - ranges["pruning_ratio"][1],
            kept_high=1.0 - ranges["pruning_ratio"][0],
            bits_low=ranges["bits"][0],
            bits_high=ranges["bits"][1],
            power_low=ranges["power"][0],
            power_high=ranges["power"][1],
            band_low=ranges["bandwidth"][0],
            band_high=ranges["bandwidth"][1],
            energy_cap=np.full(self.units, np.inf),
        )
        self.compute_delay, self.delay_budget, self.empty = delay, devices.delay_budget, empty
        self.labels = np.arange(int(self.unit.bits_low.min()), int(self.unit.bits_high.max()) + 1)
        self.parameters, self.unpruned = float(learner.parameters), float(learner.unpruned_parameters)
        self.index_bits, once = compression.index_bits(learner.parameters, learner.mask_encoding)
        self.once_bits = learner.header_bits + once
        self.law = bound.pruning_law
        self.smooth = 2.0 * bound.smoothness**2 * bound.weight_norm_squared
        self.mask = 2.0 * bound.mask_energy
        self.transmission = 8.0 * bound.gradient_offset + 2.0 * problem.constants["error_cap"]
        self.contraction = 8.0 * bound.gradient_slope
        self.noise_factor = np.zeros(self.labels.max() + 1)
        widths = self.labels.astype(np.float64)
        self.noise_factor[self.labels] = 2.0 * compression.quantization_variance(self.parameters, 1.0, widths)
        self.octaves = np.exp2(_OCTAVES.astype(np.float64))
        self.known = self.probe(None, self.octaves)
        self._prepare()

    def _prepare(self) -> None:
        """Find for every unit a range of SNRs outside of which nothing is feasible."""
        unit = self.unit
        kept, label = unit.kept_low, unit.bits_low
        payload = self.unpruned * label + self.once_bits + self.parameters * (label + self.index_bits) * kept
        room = unit.time_left - unit.time_each * kept
        with np.errstate(divide="ignore", over="ignore"):
            low, high = unit.power_low * unit.gain / unit.band_high, unit.power_high * unit.gain / unit.band_low
            load = payload / np.maximum(room, _TINY)
            left = unit.energy_cap - unit.energy_once - unit.energy_each * kept
            most = np.minimum(unit.power_high / load, left / payload) * unit.gain * (1.0 + _SLACK)
        # tau <= most and rho <= band/load, each at the next octave outside
        rho, tau = self.known[:2]
        last = np.searchsorted(tau, most, "right")
        first = rho.size - np.searchsorted(rho[::-1], unit.band_high / load * (1.0 + _SLACK), "right") - 1
        fits = (room > 0.0) & (left > 0.0) & (last > 0) & (first < rho.size - 1)
        self.low = np.maximum(low, np.where(first >= 0, self.octaves[np.clip(first, 0, None)], 0.0))
        self.high = np.minimum(high, self.octaves[np.clip(last, 0, rho.size - 1)])
        self.fits = fits & (self.low <= self.high)
        # cells of the unit: octaves [begin, end)
        self.begin = np.clip(np.searchsorted(self.octaves, self.low, "right") - 1, 0, rho.size - 2)
        self.end = np.clip(np.searchsorted(self.octaves, self.high, "left"), self.begin + 1, rho.size - 1)

    # -- the model

    def _rows(self, prices: FloatArray, unit: Any, label: Any) -> _Rows:
        """Return the constants of rows; `unit` an index or slice, `label` whole numbers that broadcast with it."""
        at = self.unit.take(unit)
        of = prices if prices.ndim == 1 else prices[:, unit]
        gap = of[0] * at.weight
        noise = at.range_squared * self.noise_factor[label]
        curved = self.law != "linear"
        error = self.mask + (0.0 if curved else self.smooth)
        return _Rows(
            slope=gap * (noise - error),
            constant=gap * (error + noise * (self.unpruned / self.parameters) + 2.0 * at.sampling),
            curve=gap * self.smooth if curved else 0.0,
            loss=gap * self.transmission + (of[3] * at.weight * self.contraction if len(of) > 3 else 0.0),
            band_price=of[1],
            energy_price=of[2],
            payload_once=self.unpruned * label + self.once_bits,
            payload_each=self.parameters * (label + self.index_bits),
            unit=at,
        )

    def probe(self, unit: Any, x: Any) -> FloatArray:
        """Return [1/efficiency, SNR/efficiency, packet error] at SNR x, shape [3, points]."""
        rho = 1.0 / channel.spectral_efficiency(x, self.fading)
        return np.stack([rho, x * rho, channel.packet_error(x, self.threshold, self.law_of_loss, self.fading)])

    @staticmethod
    def _floor(rows: _Rows, snr: Any) -> Any:
        """Least band at an SNR."""
        return np.maximum(rows.unit.power_low * rows.unit.gain / snr, rows.unit.band_low)

    @staticmethod
    def _most(rows: _Rows, data: Any) -> Any:
        """Largest kept fraction that band, power and energy allow."""
        unit = rows.unit
        by_load = rows.kept_by_load(np.minimum(unit.power_high * unit.gain / data[1], unit.band_high / data[0]))
        by_energy = rows.kept_by_energy(data[1] / unit.gain, unit.energy_cap)
        return np.minimum(np.minimum(by_load, by_energy), unit.kept_high)

    def _least(self, rows: _Rows, slope: Any, load: Any, low: Any, high: Any) -> tuple[Any, Any, Any]:
        """Return (least of slope k + load beta(k) + curve error(1-k) over k in [low, high], its k, what may be left).

        `load` >= 0 and low <= high. The value is taken at k; the least is not below it by more than what is left.
        """
        left: Any = 0.0
        if isinstance(self.law, ConvexCurve):
            kept = self._cornered(self.law, rows, slope, load, low, high)
        elif np.ndim(rows.curve):
            kept, left = self._newton(rows, slope, load, low, high)
        else:
            kept = self._stationary(rows, slope, load, low, high)
        value = slope * kept + load * rows.load(kept)
        if np.ndim(rows.curve):
            value = value + rows.curve * compression.pruning_error(1.0 - kept, self.law)
        return value, kept, left

    def _without_band(self, rows: _Rows, slope: Any) -> Any:
        """Kept fraction of least slope k + curve error(1-k), band and limits aside."""
        if not np.ndim(rows.curve):
            return np.where(slope < 0.0, np.inf, 0.0)
        with np.errstate(divide="ignore", over="ignore"):
            steep = np.maximum(slope, 0.0) / np.maximum(rows.curve, _TINY)
            return 1.0 - compression.pruning_ratio_at_slope(steep, self.law)

    def _curve_slope(self, rows: _Rows, kept: Any) -> Any:
        """What a curved error takes off the slope of the priced gap in the kept fraction."""
        return rows.curve * compression.pruning_error_slope(1.0 - kept, self.law)

    @staticmethod
    def _stationary(rows: _Rows, slope: Any, load: Any, low: Any, high: Any) -> Any:
        """Kept fraction in [low, high] of least slope k + load beta(k)."""
        unit = rows.unit
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            kept = (unit.time_left - np.sqrt(load * rows.turn / np.maximum(-slope, _TINY))) / np.maximum(
                unit.time_each, _TINY
            )
        return np.where(slope < 0.0, np.minimum(np.maximum(kept, low), high), low)

    def _cornered(self, law: ConvexCurve, rows: _Rows, slope: Any, load: Any, low: Any, high: Any) -> Any:
        """Kept fraction in [low, high] of least slope k + load beta(k) + curve error(1-k), the error measured."""
        unit, turn = rows.unit, load * rows.turn

        def rises(corner: Any, steep: Any) -> Any:
            # a ratio that grows is a kept fraction that falls; more is kept than there is time for where no room is
            room = unit.time_left - unit.time_each * (1.0 - corner)
            return (rows.curve * steep >= slope + turn / np.where(room > 0.0, room, np.inf) ** 2) & (room > 0.0)

        shape = np.broadcast_shapes(*map(np.shape, (slope, turn, low, high, rows.curve, unit.time_left)))
        piece = law.first(rises, shape)
        least, most = (np.clip(1.0 - ratio, low, high) for ratio in law.ends(piece)[::-1])
        return self._stationary(rows, slope - rows.curve * law.slopes[piece], load, least, most)

    def _newton(self, rows: _Rows, slope: Any, load: Any, low: Any, high: Any) -> tuple[Any, Any]:
        """Return (k, what may be left) where slope + load beta'(k) - curve ln(k)^2/2, rising in k, changes its sign."""
        unit = rows.unit
        load = load * rows.turn
        slope, load, low, high, curve, left, each = np.broadcast_arrays(
            slope, load, low, high, rows.curve, unit.time_left, unit.time_each
        )

        def rise(kept: Any) -> Any:
            return slope + load / (left - each * kept) ** 2 - 0.5 * curve * np.log(kept) ** 2

        a, b = low.copy(), high.copy()
        kept = np.where(rise(low) >= 0.0, low, np.where(rise(high) <= 0.0, high, np.nan))
        ends = ~np.isnan(kept)
        a, b = np.where(ends, kept, a), np.where(ends, kept, b)
        kept = np.where(ends, kept, np.clip(self._without_band(rows, slope), a, b))
        rest = np.zeros(kept.shape)
        scale = np.abs(slope) + curve + load / left**2
        for _ in range(60):
            at = rise(kept)
            a, b = np.where(at <= 0.0, kept, a), np.where(at >= 0.0, kept, b)
            rest = np.where(at > 0.0, at * (kept - a), -at * (b - kept))
            rest = np.where(ends, 0.0, rest)
            if np.all(rest <= 1e-15 * scale):
                break
            with np.errstate(divide="ignore", invalid="ignore"):
                new = kept - at / (2.0 * load * each / (left - each * kept) ** 3 - curve * np.log(kept) / kept)
            kept = np.where((new > a) & (new < b), new, 0.5 * (a + b))
        return kept, rest

    # -- the protocol of Cells

    def value(self, prices: FloatArray, unit: Any, label: Any, x: Any, data: Any) -> Any:
        """Return the least priced value at (bits, SNR) over the kept fraction; inf where none is feasible."""
        value = self._point(self._rows(prices, unit, label), x, data)[0]
        return np.where((x >= self.low[unit]) & (x <= self.high[unit]), value, np.inf)

    def _point(self, rows: _Rows, x: Any, data: Any) -> tuple[Any, Any, Any]:
        """Return (least priced value, its kept fraction, what may be left) at an SNR and what was probed.

        Nothing below the value lies at larger 1/efficiency, SNR/efficiency and loss and smaller SNR.
        """
        unit = rows.unit
        most = self._most(rows, data)
        feasible = most >= unit.kept_low * (1.0 - _SLACK)
        most = np.maximum(most, unit.kept_low)
        floor = self._floor(rows, x)
        per_bit = rows.energy_price * data[1] / unit.gain
        slope = rows.slope + rows.energy_price * unit.energy_each + per_bit * rows.payload_each
        # up to what the floor carries the band costs nothing more
        free = np.minimum(self._without_band(rows, slope), rows.kept_by_load(floor / data[0]))
        load = rows.band_price * data[0]
        value, kept, left = self._least(rows, slope, load, np.clip(free, unit.kept_low, most), most)
        total = value + rows.band_price * np.maximum(floor - rows.load(kept) * data[0], 0.0) + rows.loss * data[2]
        total += rows.constant + rows.energy_price * unit.energy_once + per_bit * rows.payload_once
        return np.where(feasible, total, np.inf), kept, left

    def take(self, index: Any) -> PooledCells:
        """Return some units, repeats allowed."""
        out = copy.copy(self)
        out.units = int(np.size(index))
        out.unit = self.unit.take(index)
        for name in ("low", "high", "fits", "begin", "end", "compute_delay", "delay_budget"):
            setattr(out, name, getattr(self, name)[index])
        return out

    def capped(self, feature: int, caps: FloatArray) -> PooledCells:
        """Return the same units, each with a band [Hz] (feature 1) or an energy [J] (feature 2) of at most `caps`."""
        if feature not in (1, 2):
            raise InputError(f"feature {feature} cannot be capped")
        out = copy.copy(self)
        name = "band_high" if feature == 1 else "energy_cap"
        # the cap is always met by some decision, so no band that is asked for at least is above it
        cap = np.maximum(np.minimum(getattr(self.unit, name), caps), self.unit.band_low if feature == 1 else 0.0)
        out.unit = replace(self.unit, **{name: cap})
        out._prepare()
        return out

    def cover(self, prices: FloatArray, units: slice) -> CellList:
        """Return cells between octaves of SNR for all bits, without those provably worse than a known point."""
        return CellList.join([cells for cells, _ in self._cover(prices, units)])

    def left_out(self, prices: FloatArray, units: slice) -> Leaves:
        """Return the cells that `cover` leaves out, each with the bound for which it does."""
        return Leaves.join([leaves for _, parts in self._cover(prices, units, rest=True) for leaves in parts])

    def _cover(self, prices: FloatArray, units: slice, *, rest: bool = False) -> list[tuple[CellList, list[Leaves]]]:
        everyone = np.arange(*units.indices(self.units))
        parts = range(0, max(everyone.size, 1), _TOGETHER)
        return [self._promising(prices, everyone[i : i + _TOGETHER], rest) for i in parts]

    def _promising(self, prices: FloatArray, everyone: Any, rest: bool) -> tuple[CellList, list[Leaves]]:
        """Return the cells of a few units that are wanted and, where asked for, the others."""
        who = everyone[self.fits[everyone]]
        left: list[Leaves] = []
        if rest:
            out = everyone[~self.fits[everyone]]
            left.append(self._leaves(out, self.begin[out], self._allowed(out), np.full((1, out.size), np.inf)))
        if who.size == 0:
            return self._cells(who, who, np.zeros((self.labels.size, 0), dtype=bool)), left
        # one row for every octave, one column for every unit
        octave = np.arange(self.begin[who].min(), self.end[who].max() + 1)[:, None]
        best, where, at_bits = self._glance(prices, who, octave)
        # what is best of all bits in one: the least payload and the least noise
        rows = self._rows(prices, who, self.unit.bits_low[who].astype(np.int64))
        finest = self._rows(prices, who, self.unit.bits_high[who].astype(np.int64))
        bound = self._falling(replace(rows, slope=finest.slope, constant=finest.constant), who, octave[:-1])
        within = (octave[:-1] >= self.begin[who]) & (octave[:-1] < self.end[who])
        # the cell next to the point known stays whatever rounding says
        where = np.clip(where, self.begin[who], self.end[who] - 1)
        wanted = within & ((bound <= best) | (octave[:-1] == where))
        if rest:
            above, column = np.nonzero(within & ~wanted)
            unit = who[column]
            left.append(self._leaves(unit, octave[above, 0], self._allowed(unit), bound[above, column][None, :]))
        above, column = np.nonzero(wanted)
        unit, octave = who[column], octave[above, 0]
        allowed = self._allowed(unit)
        bound = self._falling(self._rows(prices, unit, self.labels[:, None]), unit, octave)
        known = (self.labels[:, None] == at_bits[column]) & (octave == where[column])
        wanted = allowed & ((bound <= best[column]) | known)
        if rest:
            left.append(self._leaves(unit, octave, allowed & ~wanted, bound))
        return self._cells(unit, octave, wanted), left

    def _allowed(self, unit: Any) -> Any:
        """Whether units may use bits, shape [labels, units]."""
        label = self.labels[:, None]
        return (label >= self.unit.bits_low[unit]) & (label <= self.unit.bits_high[unit])

    def _cells(self, unit: Any, octave: Any, wanted: Any) -> CellList:
        """Cells of the wanted (label, pair of unit and octave)."""
        rows, columns = np.nonzero(wanted)
        octave = octave[columns]
        return CellList(
            unit[columns],
            self.labels[rows],
            self.octaves[octave],
            self.octaves[octave + 1],
            self.known[:, octave],
            self.known[:, octave + 1],
        )

    def _leaves(self, unit: Any, octave: Any, wanted: Any, bound: Any) -> Leaves:
        """Leaves of the wanted (label, pair of unit and octave)."""
        rows, columns = np.nonzero(wanted)
        octave, label = octave[columns], self.labels[rows].astype(np.float64)
        return Leaves(
            names=("label", "x"),
            unit=unit[columns],
            low=np.stack([label, self.octaves[octave]]),
            high=np.stack([label, self.octaves[octave + 1]]),
            bound=np.broadcast_to(bound, wanted.shape)[rows, columns],
        )

    def _falling(self, rows: _Rows, unit: Any, octave: Any) -> Any:
        """Lower bound of the octaves: everything at its better end."""
        top = np.minimum(self.octaves[octave + 1], self.high[unit])
        return self._best_ends(rows, top, self.known[:, octave], self.known[:, octave + 1])

    def _best_ends(self, rows: _Rows, high: Any, data_low: Any, data_high: Any) -> Any:
        """Lower bound of cells of any width: energy as at the low end, band and loss as at the high end."""
        value, _, left = self._point(rows, high, (data_high[0], data_low[1], data_high[2]))
        return value - left

    def _glance(self, prices: FloatArray, unit: Any, octave: Any) -> tuple[FloatArray, Any, Any]:
        """Return (value, octave, bits) of a good point of every unit: middle bits everywhere, then all bits there."""
        middle = np.rint(0.5 * (self.unit.bits_low[unit] + self.unit.bits_high[unit])).astype(np.int64)
        at = self.octaves[octave]
        value, _, _ = self._point(self._rows(prices, unit, middle), at, self.known[:, octave])
        value = np.where((at >= self.low[unit]) & (at <= self.high[unit]), value, np.inf)
        best = octave[np.argmin(value, axis=0), 0]
        value = self.value(prices, unit, self.labels[:, None], self.octaves[best], self.known[:, best])
        value = np.where(self._allowed(unit), value, np.inf)
        return value.min(axis=0), best, self.labels[np.argmin(value, axis=0)]

    def bound(self, prices: FloatArray, cells: CellList) -> tuple[FloatArray, FloatArray]:
        """Return the lower bound of the module's proof, and where to split the cell."""
        rows = self._rows(prices, cells.unit, cells.label)
        cell = _Chords.of(rows, cells, self.low[cells.unit], self.high[cells.unit])
        unit = rows.unit
        earliest = np.maximum(cell.start, 0.5 * cell.end)
        at = np.clip(np.sqrt(cell.start * cell.end), earliest, cell.end)
        for _ in range(2):
            multipliers, least = self._reference(rows, cell, at)
            at = np.clip(least, earliest, cell.end)
        self._corners(rows, cell, at, multipliers)
        share, by_power, by_band, by_energy = multipliers
        data = (cell.rho(cell.end), cell.tau(cell.start))
        most = np.maximum(self._most(rows, data), unit.kept_low)
        q, rho, inverse = cell.lost(at), cell.rho(at), 1.0 / at
        with np.errstate(invalid="ignore"):
            limits = (
                by_power * unit.power_high * unit.gain
                + by_band * unit.band_high
                + np.where(by_energy > 0.0, by_energy * unit.energy_cap, 0.0)
            )
        price = rows.energy_price + by_energy
        base = rows.constant + price * unit.energy_once - limits
        kept_slope = rows.slope + price * unit.energy_each
        per_power = unit.power_low * unit.gain * inverse
        by_least_power = per_power >= unit.band_low
        floor = np.where(by_least_power, per_power, unit.band_low)
        lower = np.full(len(cells), np.inf)
        for end in (cell.start, cell.end):
            step = (end * inverse - 1.0) * inverse
            tau = cell.tau(end)
            per_bit = price * tau / unit.gain
            load = (rows.band_price * share + by_band) * np.maximum(rho - cell.rho_rise * step, 0.0) + by_power * tau
            value, _, left = self._least(rows, kept_slope + per_bit * rows.payload_each, load, unit.kept_low, most)
            value = value - left + base + per_bit * rows.payload_once + rows.loss * (q - cell.lost_rise * step)
            value = value + rows.band_price * (1.0 - share) * (floor - np.where(by_least_power, floor * step * at, 0.0))
            lower = np.minimum(lower, value)
        wide = np.flatnonzero(cells.high > _WIDE * cells.low)
        if wide.size:
            top = np.minimum(cells.high, self.high[cells.unit])[wide]
            simple = self._best_ends(rows.take(wide), top, cells.data_low[:, wide], cells.data_high[:, wide])
            lower[wide] = np.maximum(lower[wide], simple)
        lower = np.where(cell.empty, np.inf, lower)
        return lower, np.where(cell.empty, 0.5 * (cells.low + cells.high), at)

    def _reference(self, rows: _Rows, cell: _Chords, at: Any) -> tuple[Any, Any]:
        """Return (v, mu, nu, kappa) of the proof for the best kept fraction at an SNR; where the chords are least."""
        unit = rows.unit
        rho, tau = cell.rho(at), cell.tau(at)
        by_power, by_band = unit.power_high * unit.gain / tau, unit.band_high / rho
        by_load = rows.kept_by_load(np.minimum(by_power, by_band))
        per_bit = tau / unit.gain
        by_energy = rows.kept_by_energy(per_bit, unit.energy_cap)
        most = np.maximum(np.minimum(np.minimum(by_load, by_energy), unit.kept_high), unit.kept_low)
        floor = self._floor(rows, at)
        slope = rows.slope + rows.energy_price * (unit.energy_each + per_bit * rows.payload_each)
        carried = rows.kept_by_load(floor / rho)
        free = np.minimum(self._without_band(rows, slope), carried)
        band = rows.band_price * rho
        _, kept, _ = self._least(rows, slope, band, np.clip(free, unit.kept_low, most), most)
        room = unit.time_left - unit.time_each * kept
        payload = rows.payload(kept)
        load, rise = payload / room, rows.turn / room**2
        if np.ndim(rows.curve):
            slope = slope - self._curve_slope(rows, kept)
        with np.errstate(divide="ignore", invalid="ignore"):
            share = np.clip(np.nan_to_num(-slope / (band * rise), nan=0.0), 0.0, 1.0)
        share = np.where(kept > carried * (1.0 + 1e-12), 1.0, np.where(kept < carried * (1.0 - 1e-12), 0.0, share))
        share = np.where(self._fixed(unit), 0.0, share)
        # what a limit has to make up for where the kept fraction would grow beyond it
        short = np.where(kept >= most, np.maximum(-(slope + share * band * rise), 0.0), 0.0)
        of_load = (by_load <= unit.kept_high) & (by_load <= by_energy)
        of_power = by_power <= by_band
        mu = np.where(of_load & of_power, short / (tau * rise), 0.0)
        nu = np.where(of_load & ~of_power, short / (rho * rise), 0.0)
        kappa = np.where(
            ~of_load & (by_energy <= unit.kept_high), short / (unit.energy_each + rows.payload_each * per_bit), 0.0
        )
        falls = (
            rows.loss * cell.lost_rise
            + (rows.band_price * share + nu) * load * cell.rho_rise
            + np.where(
                unit.power_low * unit.gain >= unit.band_low * at,
                rows.band_price * (1.0 - share) * unit.power_low * unit.gain,
                0.0,
            )
        )
        rises = ((rows.energy_price + kappa) * payload / unit.gain + mu * load) * cell.tau_rise
        with np.errstate(divide="ignore", invalid="ignore"):
            least = np.sqrt(falls / rises)
        return (share, mu, nu, kappa), np.where(np.isnan(least), at, least)

    def _corners(self, rows: _Rows, cell: _Chords, at: Any, multipliers: Any) -> None:
        """Move the reference to where power, band or least power begins to bind at the largest kept fraction.

        The chords' least value often has a corner there; v, mu or nu then follow from stationarity in the SNR.
        """
        unit = rows.unit
        kept = unit.kept_high
        load = rows.load(kept)
        with np.errstate(divide="ignore", invalid="ignore"):
            # of a kept fraction that the deadline does not allow, nothing is asked
            good = ~cell.empty & (unit.time_left > unit.time_each * kept)
            by_power = cell.low + (unit.power_high * unit.gain / load - cell.tau_low) / cell.tau_rise
            by_band = 1.0 / (cell.over_high + (unit.band_high / load - cell.rho_high) / cell.rho_rise)
            least_power = unit.power_low * unit.gain / load
            by_least_power = (cell.rho_rise - least_power) / (cell.rho_rise * cell.over_high - cell.rho_high)
            by_least_band = 1.0 / (cell.over_high + (unit.band_low / load - cell.rho_high) / cell.rho_rise)
            floor_first = unit.power_low * unit.gain >= unit.band_low * by_least_power
        by_floor = np.where(floor_first, by_least_power, by_least_band)
        earliest = np.maximum(cell.start, 0.5 * cell.end)
        for which, place in enumerate((by_power, by_band, by_floor)):
            index = np.flatnonzero(good & (place > earliest) & (place < cell.end))
            if index.size:
                self._corner(which, index, place[index], rows.take(index), cell.take(index), at, multipliers)

    def _corner(
        self, which: int, index: Any, place: Any, rows: _Rows, cell: _Chords, at: Any, multipliers: Any
    ) -> None:
        """Take the corner of one kind as reference in those cells whose least point it is."""
        unit = rows.unit
        kept = unit.kept_high
        room = unit.time_left - unit.time_each * kept
        load, rise, payload = rows.load(kept), rows.turn / room**2, rows.payload(kept)
        rho, tau = cell.rho(place), cell.tau(place)
        slope = rows.slope + rows.energy_price * (unit.energy_each + tau / unit.gain * rows.payload_each)
        if np.ndim(rows.curve):
            slope = slope - self._curve_slope(rows, kept)
        by_power = unit.power_low * unit.gain / place >= unit.band_low
        floor = np.where(by_power, unit.power_low * unit.gain / place, unit.band_low)
        by_floor = rows.band_price * np.where(by_power, floor * place, 0.0)
        by_deadline = rows.band_price * load * cell.rho_rise
        lost = rows.loss * cell.lost_rise
        rises = rows.energy_price * payload / unit.gain * cell.tau_rise * place**2
        share = np.where((load * rho > floor) & ~self._fixed(unit), 1.0, 0.0)
        most = np.maximum(-(slope + share * rows.band_price * rho * rise), 0.0) / rise
        falls = lost + share * by_deadline + (1.0 - share) * by_floor
        mu, nu = np.zeros(place.shape), np.zeros(place.shape)
        with np.errstate(divide="ignore", invalid="ignore"):
            if which == 0:
                mu = (falls - rises) / (load * cell.tau_rise * place**2)
                taken = (mu > 0.0) & (mu <= most / tau)
            elif which == 1:
                nu = (rises - falls) / (load * cell.rho_rise)
                taken = (nu > 0.0) & (nu <= most / rho)
            else:
                share = (rises - lost - by_floor) / (by_deadline - by_floor)
                taken = (share >= 0.0) & (share <= 1.0) & (slope + share * rows.band_price * rho * rise <= 0.0)
                taken &= ~self._fixed(unit)
        chosen = index[taken]
        at[chosen] = place[taken]
        for old, new in zip(multipliers, (share, mu, nu, np.zeros(place.shape)), strict=True):
            old[chosen] = new[taken]

    @staticmethod
    def _fixed(unit: _Units) -> Any:
        """Whether the deadline never asks for more band than the floor, since there is none to be had."""
        return (unit.power_low >= unit.power_high) | (unit.band_low >= unit.band_high)

    def split(self, prices: FloatArray, cells: CellList, hint: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Split where the bound is least; where the limits end inside the cell, also on the feasible side of that."""
        low, high = cells.low, cells.high
        width = high - low
        point = np.clip(hint, low + 0.2 * width, high - 0.2 * width)
        return np.where(width <= 1e-9 * low, 0.5 * (low + high), point), point

    def complete(self, prices: FloatArray, unit: Any, label: Any, x: Any) -> tuple[dict[str, FloatArray], FloatArray]:
        """Return ratio, bits, power, bandwidth and the features at (bits, SNR)."""
        data = self.probe(unit, x)
        rows = self._rows(prices, unit, label)
        _, kept, _ = self._point(rows, x, data)
        at = rows.unit
        band = np.clip(np.maximum(rows.load(kept) * data[0], self._floor(rows, x)), at.band_low, at.band_high)
        noise = at.range_squared * self.noise_factor[label]
        ratio = 1.0 - kept
        error = self.smooth * compression.pruning_error(ratio, self.law) + self.mask * ratio
        gap = at.weight * (
            self.transmission * data[2] + error + noise * (kept + self.unpruned / self.parameters) + 2.0 * at.sampling
        )
        energy = at.energy_once + at.energy_each * kept + rows.payload(kept) * data[1] / at.gain
        decision = {
            "pruning_ratio": ratio,
            "bits": np.asarray(label, dtype=np.float64),
            "power": np.clip(x * band / at.gain, at.power_low, at.power_high),
            "bandwidth": band,
        }
        features = [gap, band, energy, at.weight * self.contraction * data[2]]
        return decision, np.stack(features[: np.shape(prices)[0]])

    # -- infeasible devices

    def least_violating(self, unit: Any) -> dict[str, FloatArray]:
        """Return the fastest decision: all the band and power there is for the least payload."""
        at = self.unit.take(unit)
        return {
            "pruning_ratio": 1.0 - at.kept_low,
            "bits": at.bits_low.copy(),
            "power": at.power_high.copy(),
            "bandwidth": at.band_high.copy(),
        }

    def conflicts(self, unit: Any) -> list[Conflict]:
        """Say for devices that cannot meet the deadline, even with all the band they may have, which would do."""
        unit = np.asarray(unit, dtype=np.int64)
        at = self.unit.take(unit)
        payload = at.bits_low * self.unpruned + self.once_bits
        payload = payload + self.parameters * (at.bits_low + self.index_bits) * at.kept_low
        snr = at.power_high * at.gain / at.band_high
        budget = self.delay_budget[unit]
        need = budget - at.time_left + at.time_each * at.kept_low
        need = need + payload / (at.band_high * channel.spectral_efficiency(snr, self.fading))
        return [
            Conflict(
                device=int(u),
                binding="delay",
                relax={"delay_budget": float(need[i])},
                budget={"delay_budget": float(budget[i])},
                factor=float(need[i] / budget[i]),
                text=f"device {int(u)}: delay, even with {format_si(float(at.band_high[i]), 'Hz')}; feasible with "
                f"delay budget {format_si(float(budget[i]), 's')} -> {format_si(float(need[i]), 's', 4)}",
            )
            for i, u in enumerate(unit)
        ]


@dataclass(frozen=True)
class _Chords:
    """What lies below loss, 1/efficiency (chords in 1/SNR) and SNR/efficiency (in SNR) on cells, and their ends."""

    low: Any
    over_high: Any
    lost_high: Any
    lost_rise: Any
    rho_high: Any
    rho_rise: Any
    tau_low: Any
    tau_rise: Any
    start: Any
    end: Any
    empty: Any

    def take(self, index: Any) -> _Chords:
        """Return some rows."""
        return _Chords(*(v[index] for v in vars(self).values()))

    def lost(self, at: Any) -> Any:
        """Chord of the loss."""
        return self.lost_high + self.lost_rise * (1.0 / at - self.over_high)

    def rho(self, at: Any) -> Any:
        """Chord of 1/efficiency."""
        return self.rho_high + self.rho_rise * (1.0 / at - self.over_high)

    def tau(self, at: Any) -> Any:
        """Chord of SNR/efficiency."""
        return self.tau_low + self.tau_rise * (at - self.low)

    @classmethod
    def of(cls, rows: _Rows, cells: CellList, first: Any, last: Any) -> _Chords:
        """Return the chords, with ends moved to where the least kept fraction may keep the limits."""
        unit, kept = rows.unit, rows.unit.kept_low
        low, high = cells.low, cells.high
        (rho_low, tau_low, lost_low), (rho_high, tau_high, lost_high) = cells.data_low, cells.data_high
        over = 1.0 / high
        width = np.maximum(1.0 / low - over, _TINY)
        rho_rise, lost_rise = (rho_low - rho_high) / width, (lost_low - lost_high) / width
        tau_rise = (tau_high - tau_low) / np.maximum(high - low, _TINY)
        load = rows.load(kept)
        left = (unit.energy_cap - unit.energy_once - unit.energy_each * kept) / rows.payload(kept)
        most = np.minimum(unit.power_high / load, left) * unit.gain * (1.0 + _SLACK)
        widest = unit.band_high / load * (1.0 + _SLACK)
        start, end = np.maximum(low, first), np.minimum(high, last)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            end = np.where(tau_high > most, np.minimum(end, low + (most - tau_low) / tau_rise), end)
            lowest = 1.0 / np.maximum(over + (widest - rho_high) / rho_rise, _TINY)
            start = np.where(rho_low > widest, np.maximum(start, lowest), start)
        empty = (start > end) | (tau_low > most) | (rho_high > widest)
        middle = np.sqrt(low * high)
        start, end = np.where(empty, middle, start), np.where(empty, middle, end)
        return cls(low, over, lost_high, lost_rise, rho_high, rho_rise, tau_low, tau_rise, start, end, empty)

"""FEEL per client: the least bandwidth that sends a kept fraction within both budgets, and bounds on it.

Fix a client and let s = 1 - r be the kept fraction, W(s) its cycles and S(s) its bits, both affine in s with
coefficients of at least 0, and g = h/N0. In the variables (s, b, t_c, t_u) of theory 3a the constraints read

    t_c + t_u <= T,    W(s)/f_max <= t_c,    k_c W(s)^3/t_c^2 + (b t_u/g)(2^{S(s)/(b t_u)} - 1) <= E,
    (b/g)(2^{S(s)/(b t_u)} - 1) <= p_max,

with f = W/t_c and p = (b/g)(2^{S/(b t_u)} - 1). Since x(e^{y/x} - 1) = sum_j y^j x^{1-j}/j! has coefficients of at
least 0, every left side is a posynomial: in the logarithms of all variables the set is convex (a geometric program).
Hence [D]

* ln b*(ln s), the least bandwidth, is convex and increasing: its tangent b >= b_0 (s/s_0)^e, e the elasticity at any
  s_0, holds for all s. This is what bounds a cell, with an error of second order in its width;
* where nothing is fixed (S and W proportional to s), scaling s and b together keeps every constraint, so e >= 1 and
  b*(s) is convex: a selection's problem then has no duality gap.

No single minimum is assumed anywhere else. At a given (s, SNR) everything is in closed form, and the best SNR is where
bandwidth stops falling: at the power limit, at the corner where energy begins to slow the processor, or where slower
computing costs as much time as better spectral efficiency saves.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from scipy.special import lambertw

from jointopt.errors import InputError
from jointopt.models import compression
from jointopt.models.curve import ConvexCurve
from jointopt.problem import CellList, Conflict
from jointopt.system import FloatArray, System
from jointopt.units import format_si

if TYPE_CHECKING:
    from jointopt.problems.feel import FEEL

__all__ = ["Client", "FEELCells"]

LN2 = float(np.log(2.0))
KNOTS = 9
"""Kept fractions at which every client is probed once, for all prices."""
STEPS = 3
"""Steps towards where a client is likely to be best, in place of those knots."""
NEAR = np.array([1.0 / 1.02, 1.0, 1.02])
"""Kept fractions at which it is probed there, as multiples of the likely one."""
EDGE = 6
"""Kept fractions, twice, between the last one that is known to fit the band and the first that does not."""


def _snr_of(ratio: Any) -> FloatArray:
    """Ln SNR at which SNR/ln(1 + SNR) is a ratio; -inf where the ratio is at most 1."""
    ratio = np.maximum(ratio, 1.0)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        snr = -ratio * lambertw(-np.exp(-1.0 / ratio) / ratio, k=-1).real - 1.0
        x = np.log(np.maximum(snr, 1e-300))
        for _ in range(3):
            # the Lambert function loses digits at its branch point
            nats = np.log1p(np.exp(x))
            step = (x - np.log(nats) - np.log(ratio)) / (1.0 - np.exp(x) / ((1.0 + np.exp(x)) * nats))
            x = np.where(np.isfinite(step), x - np.clip(step, -1.0, 1.0), x)
    return x


class Client:
    """What the constraints of each client need; arrays over clients."""

    def __init__(self, system: System) -> None:
        devices, radio, learner = system.devices, system.radio, system.learner
        assert radio.total_bandwidth is not None and radio.gain is not None
        self.band = radio.total_bandwidth
        self.gain = radio.gain / radio.noise_density
        self.delay_budget, self.energy_budget = devices.delay_budget, devices.energy_budget
        self.frequency_max, self.capacitance = devices.frequency, devices.capacitance
        self.power_max = devices.power_max
        full, empty = (float(learner.compute_factor(np.asarray(r))) for r in (0.0, 1.0))
        work = system.batch * devices.cycles_per_sample
        self.cycles_once, self.cycles_each = empty * work, (full - empty) * work
        index, once = compression.index_bits(learner.parameters, learner.mask_encoding)
        dense, none = (
            float(
                compression.payload_bits(
                    kept,
                    float(learner.bits_max),
                    unpruned=float(learner.unpruned_parameters),
                    header=learner.header_bits,
                    index_per_weight=index,
                    index_once=once,
                )
            )
            for kept in (float(learner.parameters), 0.0)
        )
        self.bits_once, self.bits_each = none, dense - none

    def least_bandwidth(
        self, unit: Any, kept: Any, delay_budget: Any = None, energy_budget: Any = None, stretch: float = 1.0
    ) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
        """Least bandwidth [Hz] to keep a fraction within both budgets; looked for up to `stretch` times the band.

        Returns
        -------
        tuple of arrays
            Logarithm of the bandwidth (inf where more than that is needed), its elasticity in the kept
            fraction, the SNR, and the processor frequency [Hz].
        """
        T = self.delay_budget[unit] if delay_budget is None else delay_budget
        E = self.energy_budget[unit] if energy_budget is None else energy_budget
        gain, fastest = self.gain[unit], self.frequency_max[unit]
        kc, strongest = self.capacitance[unit], self.power_max[unit]
        cycles = self.cycles_once[unit] + self.cycles_each[unit] * kept
        bits = self.bits_once + self.bits_each * kept
        # at least this SNR, or the whole band is not enough; at most that one, or the power is not
        widest = np.log(stretch * self.band)
        demand = bits / (T * stretch * self.band)
        left = np.log(np.maximum(np.expm1(np.minimum(demand, 500.0) * LN2), 1e-300))
        most = strongest * gain * T / (bits * LN2)
        strong = _snr_of(most)
        right = np.maximum(np.where(np.isfinite(strong), strong, -1e3), left + 1e-6)
        busiest = kc * cycles
        quickest = cycles / fastest
        # The corner, at which energy begins to slow the processor, is the only jump of the slope. What is left of the
        # energy is told as a difference from there, since E_max minus the upload loses its digits where computing
        # takes next to nothing of it.
        spent = busiest * fastest**2
        full = (E - spent) * gain / (bits * LN2)
        origin = _snr_of(full)
        cornered = (full > 1.0) & np.isfinite(origin)
        origin = np.where(cornered, origin, 0.0)
        snr_corner = np.exp(origin)
        nats_corner = np.log1p(snr_corner)
        sent = E - spent

        def at(y: Any) -> tuple[Any, ...]:
            snr = np.exp(origin + y)
            nats = np.log1p(snr)
            with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
                joules = bits * snr * LN2 / (gain * nats)
                more = np.log1p(snr_corner * np.expm1(y) / (1.0 + snr_corner)) / nats_corner
                extra = sent * np.expm1(y - np.log1p(more))
                near = cornered & (np.abs(y) < 0.1)
                room = np.where(near, spent - extra, E - joules)
                joules = np.where(near, sent + extra, joules)
                slowed = np.where(busiest > 0.0, np.sqrt(busiest / np.maximum(room, 0.0)) * cycles, 0.0)
            limited = np.where(cornered, y > 0.0, slowed > quickest)
            compute = np.where(limited, slowed, quickest)
            upload = T - compute
            good = (room > 0.0) & (upload > 0.0)
            return snr, nats, joules, room, compute, upload, limited, good

        def elasticity_of_rate(snr: Any, nats: Any) -> Any:
            return snr / ((1.0 + snr) * nats)

        def trade(snr: Any, nats: Any, joules: Any, room: Any, compute: Any, upload: Any) -> tuple[Any, Any, Any]:
            """Power to spare (logarithm), and what a higher SNR saves with and without slowing the processor."""
            rate = elasticity_of_rate(snr, nats)
            with np.errstate(divide="ignore", invalid="ignore"):
                spare = np.log(strongest * gain * upload * nats / (snr * bits * LN2))
                saves = rate - 0.5 * compute / upload * joules * (1.0 - rate) / room
            return spare, np.maximum(saves, -1.0), rate

        def rises(y: Any) -> tuple[Any, Any]:
            """Above 0 where a higher SNR still saves bandwidth and is allowed; and whether power alone forbids it."""
            snr, nats, joules, room, compute, upload, limited, good = at(y)
            spare, slowing, rate = trade(snr, nats, joules, room, compute, upload)
            saves = np.where(limited, slowing, rate)
            return np.where(good, np.minimum(spare, saves), -1.0), good & (spare <= saves)

        left, right = left - origin, right - origin
        spare, after, rate = trade(snr_corner, nats_corner, sent, spent, quickest, T - quickest)
        inside = cornered & (left < 0.0) & (right > 0.0) & (quickest < T)
        # with nothing spent on computing there is no energy beyond the corner
        after = np.where(spent > 0.0, np.minimum(spare, after), -1.0)
        corner_best = inside & (spare > 0.0) & (after <= 0.0)
        low, _ = rises(left)
        started = low > 0.0
        high, at_power = rises(right)
        beyond, short = inside & (after > 0.0), inside & (spare <= 0.0)
        left, low = np.where(beyond, 0.0, left), np.where(beyond, after, low)
        right, high = np.where(short, 0.0, right), np.where(short, np.minimum(spare, rate), high)
        at_power = np.where(corner_best, False, at_power | short)
        open_ = started & ~corner_best
        last = np.zeros(np.shape(left), dtype=bool)
        for step in range(100):
            # regula falsi with halved weights; a bisection now and then bounds the number of steps
            with np.errstate(divide="ignore", invalid="ignore"):
                middle = right - high * (right - left) / (high - low)
            bad = ~((middle > left) & (middle < right))
            middle = np.where(bad | (step % 6 == 5), 0.5 * (left + right), middle)
            value, powered = rises(middle)
            up = value > 0.0
            again = (up == last) if step else np.zeros_like(last)
            low = np.where(up, value, np.where(again, 0.5 * low, low))
            high = np.where(up, np.where(again, 0.5 * high, high), value)
            exact = np.abs(value) <= 1e-13
            left, right = np.where(up | exact, middle, left), np.where(up & ~exact, right, middle)
            at_power = np.where(up & ~exact, at_power, powered)
            last = up
            open_ &= right - left > 1e-12 * np.minimum(1.0, np.maximum(np.abs(left), np.abs(right)))
            if not np.any(open_):
                break
        snr, nats, joules, room, compute, upload, limited, good = at(np.where(corner_best, 0.0, left))
        room, compute = np.where(corner_best, spent, room), np.where(corner_best, quickest, compute)
        upload, good = T - compute, good | corner_best
        feasible = started & good
        with np.errstate(divide="ignore", invalid="ignore"):
            log_band = np.log(bits * LN2 / (upload * nats))
            # elasticities in the kept fraction: of bits, of cycles, of the upload time at a fixed SNR
            of_bits = self.bits_each * kept / bits
            of_cycles = np.where(cycles > 0.0, self.cycles_each[unit] * kept / np.maximum(cycles, 1e-300), 0.0)
            rate = elasticity_of_rate(snr, nats)
            share = compute / upload
            pull = 0.5 * joules / room
            by_time = np.where(limited, -share * (1.5 * of_cycles + pull * of_bits), -share * of_cycles)
            by_snr = np.where(limited, -share * pull * (1.0 - rate), 0.0)
            plain = of_bits - by_time
            powered_slope = plain / (1.0 - by_snr - rate)
            # both the processor's limit and the energy hold with equality: the SNR moves with the kept fraction
            shift = -(of_bits + spent / joules * of_cycles) / (1.0 - rate)
            corner = of_bits + share * of_cycles - rate * shift
        slope = np.where(corner_best, corner, np.where(at_power, powered_slope, plain))
        fits = feasible & (log_band <= widest + 1e-12)
        with np.errstate(divide="ignore", invalid="ignore"):
            frequency = cycles / compute
        return (
            np.where(fits, np.minimum(log_band, widest), np.inf),
            np.where(fits, slope, 1.0),
            snr,
            frequency,
        )

    def largest_kept(self, unit: Any, low: Any, high: Any, cap: Any) -> FloatArray:
        """Largest kept fraction in [low, high] with a least bandwidth of at most `cap` [Hz]; low must have one."""
        target = np.log(cap)
        left, right = np.log(low), np.log(high)
        at_right, slope, _, _ = self.least_bandwidth(unit, high, stretch=64.0)
        done = at_right <= target
        at_left, from_left, _, _ = self.least_bandwidth(unit, low, stretch=64.0)
        for _ in range(60):
            # both tangents lie below the convex curve, so their roots lie above its root: the lower one is nearer
            with np.errstate(invalid="ignore"):
                step = np.minimum(
                    left + (target - at_left) / from_left,
                    np.where(np.isfinite(at_right), right - (at_right - target) / slope, np.inf),
                )
            step = np.where((step > left) & (step < right), step, 0.5 * (left + right))
            value, tangent, _, _ = self.least_bandwidth(unit, np.exp(step), stretch=64.0)
            below = value <= target
            moved = np.where(below, step - left, right - step)
            left, at_left, from_left = (
                np.where(below, new, old) for new, old in ((step, left), (value, at_left), (tangent, from_left))
            )
            right, at_right, slope = (
                np.where(below, old, new) for new, old in ((step, right), (value, at_right), (tangent, slope))
            )
            close = ~below & (at_right - target <= 1e-13)
            # a curve met from above is followed down to rounding: a hair below it is within the cap
            left = np.where(close, np.maximum(left, right - 1e-12), left)
            done = done | close | (right - left <= 1e-12) | (below & (moved <= 1e-15))
            if np.all(done):
                break
        reached: FloatArray = np.where(at_right <= target, high, np.exp(left))
        return np.clip(reached, low, high)


@dataclass(frozen=True)
class _Probes:
    """What is known of every client before any price: who fits the band, and its range of kept fractions at knots.

    Beyond `top` nothing is better, or nothing fits. Kept fractions that do not fit have an infinite bandwidth.
    """

    fits: npt.NDArray[np.bool_]
    top: FloatArray
    knots: FloatArray
    data: FloatArray

    def take(self, index: Any) -> _Probes:
        return _Probes(self.fits[index], self.top[index], self.knots[:, index], self.data[:, :, index])


class FEELCells:
    """Each client's subproblem for `jointopt.problem.Cells`: x is the kept fraction; there is one label."""

    def __init__(self, problem: FEEL) -> None:
        system = problem.system
        bound = system.bound
        self.client = Client(system)
        self.units = len(system)
        self.who = np.arange(self.units)
        self.weight = system.weight
        # affine in the kept fraction
        self.gap_once = 4.0 * problem.gradient_gap(np.ones(self.units))
        self.gap_each = 4.0 * problem.gradient_gap(np.zeros(self.units)) - self.gap_once
        self.smooth = 4.0 * bound.smoothness**2 * bound.weight_norm_squared
        self.masked = 2.0 * bound.mask_energy
        self.law = bound.pruning_law
        ratio_low, ratio_high = problem.ranges["pruning_ratio"]
        self.least = 1.0 - ratio_high
        self.most = 1.0 - ratio_low
        self.cap = np.full(self.units, self.client.band)

    @cached_property
    def probes(self) -> _Probes:
        """Each client's range of kept fractions and what it needs at a few knots, found once for all prices."""
        first, _, _, _ = self.client.least_bandwidth(self.who, self.least)
        fits = first <= np.log(self.cap)
        top = self.free()
        rows = np.flatnonzero(fits)
        if rows.size:
            top[rows] = self.client.largest_kept(self.who[rows], self.least[rows], top[rows], self.cap[rows])
        share = np.linspace(0.0, 1.0, KNOTS)[:, None]
        knots = self.least * (top / self.least) ** share
        knots[-1] = top
        return _Probes(fits, top, knots, self._at(knots))

    def near(self, decision: Mapping[str, FloatArray], prices: FloatArray) -> FEELCells:
        """Return the same units, probed where they are likely to be best at prices, to begin with as decided."""
        if np.any(self.cap < self.client.band):
            raise InputError("units with capped bands are probed all over")
        who, top = np.arange(self.units), self.free()
        width = np.log(top / self.least)
        taken = decision["selected"] > 0.5
        kept = np.clip(1.0 - decision["pruning_ratio"], self.least, top)
        with np.errstate(divide="ignore", invalid="ignore"):
            place = np.where(width > 0.0, np.log(kept / self.least) / width, 0.0)
        # nothing is known of who was left out: it is expected where the others are
        middle = float(np.median(place[taken])) if taken.any() else 0.5
        kept = np.where(taken, kept, self.least * np.exp(width * middle))
        ends = self._at(np.stack([self.least, top]))
        fits = np.isfinite(ends[0, 0])
        floor, roof, last = self._edge(top, ends, fits)
        knots, data = [self.least, floor, roof], [ends[:, 0], last, np.where(floor < roof, ends[:, 1], last)]
        for _ in range(STEPS):
            kept = np.clip(kept, self.least, floor)
            knots.append(kept)
            data.append(self.probe(who, kept))
            kept = self._likely(prices, kept, *data[-1])
        more = np.clip(kept * NEAR[:, None], self.least, floor)
        every, known = np.concatenate([np.stack(knots), more]), np.concatenate([np.stack(data, 1), self._at(more)], 1)
        order = np.argsort(every, axis=0, kind="stable")
        out = copy.copy(self)
        out.__dict__["probes"] = _Probes(
            fits, roof, np.take_along_axis(every, order, axis=0), np.take_along_axis(known, order[None], axis=1)
        )
        return out

    def _edge(
        self, top: FloatArray, ends: FloatArray, fits: npt.NDArray[np.bool_]
    ) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Kept fractions that fit the band and do not, next to each other, and the data of the former.

        Both are `top` where that fits.
        """
        whole = np.isfinite(ends[0, 1])
        floor, roof, last = np.where(whole, top, self.least), top.copy(), np.where(whole, ends[:, 1], ends[:, 0])
        rows = np.flatnonzero(fits & ~whole)
        share, column = np.linspace(0.0, 1.0, EDGE + 2)[1:-1, None], np.arange(rows.size)
        for _ in range(2 if rows.size else 0):
            places = floor[rows] * (roof[rows] / floor[rows]) ** share
            probed = self.probe(np.broadcast_to(rows, places.shape), places)
            reached = np.isfinite(probed[0]).sum(axis=0)
            places = np.concatenate([floor[None, rows], places, roof[None, rows]])
            floor[rows], roof[rows] = places[reached, column], places[reached + 1, column]
            found = np.flatnonzero(reached)
            last[:, rows[found]] = probed[:, reached[found] - 1, found]
        return floor, roof, last

    def _likely(self, prices: FloatArray, kept: FloatArray, log_band: FloatArray, power: FloatArray) -> FloatArray:
        """Kept fraction of least priced cost if bandwidth were a power of it."""
        who, spent = np.arange(self.units), prices[1] * np.exp(np.where(np.isfinite(log_band), log_band, 0.0)) * power
        best = kept.copy()
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            for _ in range(4):
                slope = prices[0] * self.slope_of_cost(who, best)
                bent = (prices[0] * self.slope_of_cost(who, best * 1.001) - slope) / 0.001
                rise = spent * (best / kept) ** power
                step = (best * slope + rise) / (best * (slope + bent) + rise * power)
                # where the model is not convex the slope tells the way
                step = np.where(
                    np.isfinite(step) & (step * (best * slope + rise) > 0.0), step, np.sign(best * slope + rise)
                )
                best = best * np.exp(-np.clip(step, -0.5, 0.5))
        return best

    def _at(self, knots: FloatArray) -> FloatArray:
        return self.probe(np.broadcast_to(np.arange(self.units), knots.shape), knots)

    @property
    def fits(self) -> npt.NDArray[np.bool_]:
        """Clients that can take part."""
        return self.probes.fits

    @property
    def top(self) -> FloatArray:
        """Largest kept fraction worth having, or that fits the band."""
        return self.probes.top

    def free(self) -> FloatArray:
        """Kept fraction of least cost, were there no budgets."""
        rise = self.gap_each - self.masked
        if self.law == "linear" or self.smooth == 0.0:
            return np.where(rise - (self.smooth if self.law == "linear" else 0.0) >= 0.0, self.least, self.most)
        free = 1.0 - compression.pruning_ratio_at_slope(np.maximum(rise / self.smooth, 0.0), self.law)
        return np.clip(free, self.least, self.most)

    def cost(self, unit: Any, kept: Any) -> Any:
        """n_k/n times chi_k of theory 3d: generalization gap plus pruning error; convex in the kept fraction."""
        ratio = 1.0 - kept
        error = self.smooth * compression.pruning_error(ratio, self.law) + self.masked * ratio
        return self.weight[unit] * (self.gap_once[unit] + self.gap_each[unit] * kept + error)

    def slope_of_cost(self, unit: Any, kept: Any) -> Any:
        """Derivative of `cost` in the kept fraction."""
        error = self.smooth * compression.pruning_error_slope(1.0 - kept, self.law) + self.masked
        return self.weight[unit] * (self.gap_each[unit] - error)

    @staticmethod
    def _priced(prices: FloatArray, unit: Any) -> tuple[Any, Any]:
        return (prices[0], prices[1]) if prices.ndim == 1 else (prices[0][unit], prices[1][unit])

    def least_log_bandwidth(self) -> FloatArray:
        """Ln of the least bandwidth at which each client can take part at all; inf where it cannot."""
        return self.client.least_bandwidth(self.who, self.least)[0]

    # -- the protocol of Cells

    def take(self, index: Any) -> FEELCells:
        """Return some units, repeats allowed."""
        out = copy.copy(self)
        out.units = int(np.size(index))
        for name in ("who", "weight", "gap_once", "gap_each", "least", "most", "cap"):
            setattr(out, name, getattr(self, name)[index])
        out.__dict__["probes"] = self.probes.take(index)
        return out

    def capped(self, feature: int, caps: FloatArray) -> FEELCells:
        """Return the same units, each with a bandwidth of at most `caps` [Hz]."""
        if feature != 1:
            raise InputError(f"feature {feature} cannot be capped")
        out = copy.copy(self)
        out.cap = np.minimum(self.cap, caps)
        out.__dict__.pop("probes", None)
        return out

    def probe(self, unit: Any, x: Any) -> FloatArray:
        """Return [ln bandwidth, elasticity] at a kept fraction."""
        band, slope, _, _ = self.client.least_bandwidth(self.who[unit], x)
        return np.stack([band, slope])

    def value(self, prices: FloatArray, unit: Any, label: Any, x: Any, data: Any) -> FloatArray:
        """Return the priced cost at a kept fraction; inf where it cannot be sent."""
        cost, band = self._priced(prices, unit)
        fits = self.fits[unit] & np.isfinite(data[0])
        return np.where(fits, cost * self.cost(unit, x) + band * np.exp(np.where(fits, data[0], 0.0)), np.inf)

    def cover(self, prices: FloatArray, units: slice) -> CellList:
        """Return the cells between the knots of every client that can take part."""
        known = self.probes
        unit = np.arange(*units.indices(self.units))
        unit = unit[known.fits[unit]]
        count = known.knots.shape[0] - 1
        cells = CellList(
            unit=np.tile(unit, count),
            label=np.zeros(count * unit.size, dtype=np.int64),
            low=known.knots[:-1, unit].ravel(),
            high=known.knots[1:, unit].ravel(),
            data_low=known.data[:, :-1, unit].reshape(2, -1),
            data_high=known.data[:, 1:, unit].reshape(2, -1),
        )
        # who does not fit at a cell's low end fits nowhere in it
        begun = np.isfinite(cells.data_low[0])
        return cells if begun.all() else cells.take(begun)

    def bound(self, prices: FloatArray, cells: CellList) -> tuple[FloatArray, FloatArray]:
        """Return the least value of the tangents to bandwidth and cost over each cell, and where it is."""
        unit, low, high = cells.unit, cells.low, cells.high
        price, band = self._priced(prices, unit)
        log_low, log_high = np.log(low), np.log(high)
        (at_low, slope_low), (at_high, slope_high) = cells.data_low, cells.data_high
        begun, known = np.isfinite(at_low), np.isfinite(at_high)
        at_low, at_high = np.where(begun, at_low, 0.0), np.where(known, at_high, 0.0)
        # where the two tangents to ln b over ln s meet; left of it the first is used, right of it the second
        with np.errstate(divide="ignore", invalid="ignore"):
            meet = (at_low - slope_low * log_low - at_high + slope_high * log_high) / (slope_high - slope_low)
        meet = np.where(np.isfinite(meet), np.clip(meet, log_low, log_high), 0.5 * (log_low + log_high))
        meet = np.where(known, meet, log_high)
        middle = np.clip(np.exp(meet), low, high)
        ends = []
        for at, base, power, log_at in ((low, at_low, slope_low, log_low), (high, at_high, slope_high, log_high)):
            constant, fall = price * self.cost(unit, at), price * self.slope_of_cost(unit, at)
            with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
                # least of constant + fall (s - at) + band b_at (s/at)^power: a stationary point, or an end
                turn = np.exp(log_at + (np.log(-fall * at / (band * power)) - base) / (power - 1.0))
            ends.append((at, base, power, log_at, constant, fall, np.where(power > 1.0, turn, np.nan)))

        def least(end: int, start: Any, stop: Any) -> tuple[FloatArray, FloatArray]:
            if isinstance(self.law, ConvexCurve):
                return self._least_of_curve(self.law, price, band, unit, ends[end], start, stop)
            return self._least(band, ends[end], start, stop)

        (best, point), (second, other) = least(0, low, middle), least(1, middle, high)
        second = np.where(known, second, np.inf)
        best, point = np.where(second < best, second, best), np.where(second < best, other, point)
        # either end's tangents hold all over the cell: in a wide one those of the end next to the best point do more
        best = np.maximum(best, least(0, low, high)[0])
        best = np.where(known, np.maximum(best, least(1, low, high)[0]), best)
        width = high - low
        return np.where(begun, best, np.inf), np.clip(point, low + 0.02 * width, high - 0.02 * width)

    @staticmethod
    def _least(band: Any, end: tuple[Any, ...], start: Any, stop: Any) -> tuple[FloatArray, FloatArray]:
        """Least value between two kept fractions of the tangents at one end of a cell, and where it is."""
        at, base, power, log_at, constant, fall, turn = end
        best, point = np.full(np.shape(start), np.inf), start
        for s in (start, stop, np.clip(np.where(np.isfinite(turn), turn, start), start, stop)):
            value = constant + fall * (s - at) + band * np.exp(base + power * (np.log(s) - log_at))
            better = value < best
            best, point = np.where(better, value, best), np.where(better, s, point)
        return best, point

    def _least_of_curve(
        self, law: ConvexCurve, price: Any, band: Any, unit: Any, end: tuple[Any, ...], start: Any, stop: Any
    ) -> tuple[FloatArray, FloatArray]:
        """Least of the cost itself, its pruning error measured, and the tangent to bandwidth at one end of a cell.

        With a power of at least 1 the sum is convex in the kept fraction. A smaller one is concave, and its chord takes
        its place. The piece of the curve on which the sum is least is found by bisection, its least point there as in
        `_least`.
        """
        at, base, power, log_at, _, _, _ = end
        weight = price * self.weight[unit]
        bent = power >= 1.0

        def spent(kept: Any) -> Any:
            return band * np.exp(base + power * (np.log(kept) - log_at))

        width = stop - start
        with np.errstate(over="ignore", invalid="ignore"):
            chord = (spent(stop) - spent(start)) / np.where(width > 0.0, width, 1.0)

        def falls(slope: Any) -> Any:
            return weight * (self.gap_each[unit] - self.masked - self.smooth * slope)

        def rises(corner: Any, slope: Any) -> Any:
            # a ratio that grows is a kept fraction that falls
            kept = np.maximum(1.0 - corner, 1e-300)
            return falls(slope) + np.where(bent, spent(kept) * power / kept, chord) <= 0.0

        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            piece = law.first(rises, np.shape(start))
            last, first = (np.clip(1.0 - ratio, start, stop) for ratio in law.ends(piece))
            turn = np.exp(log_at + (np.log(-falls(law.slopes[piece]) * at / (band * power)) - base) / (power - 1.0))
        turn = np.where(bent & (power > 1.0) & np.isfinite(turn), turn, first)
        best, point = np.full(np.shape(start), np.inf), start
        for kept in (first, last, np.clip(turn, first, last)):
            use = np.where(bent, spent(kept), spent(start) + chord * (kept - start))
            value = price * self.cost(unit, kept) + use
            better = value < best
            best, point = np.where(better, value, best), np.where(better, kept, point)
        return best, point

    def split(self, prices: FloatArray, cells: CellList, hint: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Split where the bound is least."""
        return hint, hint

    def complete(self, prices: FloatArray, unit: Any, label: Any, x: Any) -> tuple[dict[str, FloatArray], FloatArray]:
        """Return the decision at a kept fraction, and its cost and bandwidth [Hz]."""
        who = self.who[unit]
        log_band, _, snr, frequency = self.client.least_bandwidth(who, x)
        band = np.exp(log_band)
        decision = {
            "selected": np.ones(np.shape(x)),
            "pruning_ratio": 1.0 - x,
            "bandwidth": band,
            "frequency": np.minimum(frequency, self.client.frequency_max[who]),
            "power": np.minimum(snr * band / self.client.gain[who], self.client.power_max[who]),
        }
        return decision, np.stack([self.cost(unit, x), band])

    def least_violating(self, unit: Any) -> dict[str, FloatArray]:
        """Return the decision of clients that cannot take part: both budgets raised by the least common factor."""
        who = self.who[unit]
        kept = self.least[unit]
        factor = self.needed(unit, both=True)
        T, E = self.client.delay_budget[who] * factor, self.client.energy_budget[who] * factor
        log_band, _, snr, frequency = self.client.least_bandwidth(who, kept, T, E)
        band = np.exp(np.where(np.isfinite(log_band), log_band, np.log(self.client.band)))
        return {
            "selected": np.ones(np.shape(kept)),
            "pruning_ratio": 1.0 - kept,
            "bandwidth": band,
            "frequency": np.minimum(frequency, self.client.frequency_max[who]),
            "power": np.minimum(snr * band / self.client.gain[who], self.client.power_max[who]),
        }

    def needed(self, unit: Any, *, delay: bool = False, energy: bool = False, both: bool = False) -> FloatArray:
        """Factor on the budgets named at which a client could take part with the whole band; inf where none helps."""
        who, kept = self.who[unit], self.least[unit]

        def fits(factor: Any) -> Any:
            T = self.client.delay_budget[who] * (factor if delay or both else 1.0)
            E = self.client.energy_budget[who] * (factor if energy or both else 1.0)
            return np.isfinite(self.client.least_bandwidth(who, kept, T, E)[0])

        low, high = np.zeros(np.shape(kept)), np.full(np.shape(kept), np.log(1e9))
        possible = fits(np.exp(high))
        for _ in range(42):
            middle = 0.5 * (low + high)
            good = fits(np.exp(middle))
            low, high = np.where(good, low, middle), np.where(good, middle, high)
        factor: FloatArray = np.where(possible, np.exp(high), np.inf)
        return np.where(fits(np.ones(np.shape(kept))), 1.0, factor)

    def conflicts(self, unit: Any) -> list[Conflict]:
        """Say for clients that cannot take part, even with the whole band, what is short."""
        unit = np.asarray(unit, dtype=np.int64)
        if unit.size == 0:
            return []
        client = self.client
        by_delay, by_energy = self.needed(unit, delay=True), self.needed(unit, energy=True)
        factor = self.needed(unit, both=True)
        out = []
        for i, u in enumerate(self.who[unit]):
            T, E = float(client.delay_budget[u]), float(client.energy_budget[u])
            need_t = float(T * by_delay[i]) if np.isfinite(by_delay[i]) else None
            need_e = float(E * by_energy[i]) if np.isfinite(by_energy[i]) else None
            both = float(factor[i]) if np.isfinite(factor[i]) else None
            if need_t is None and need_e is None:
                binding = "delay and energy, each alone"
            elif need_e is None:
                binding = "delay"
            elif need_t is None:
                binding = "energy"
            else:
                binding = "delay and energy together"
            ways = []
            if need_t is not None:
                ways.append(f"delay budget {format_si(T, 's')} -> {format_si(need_t, 's', 4)}")
            if need_e is not None:
                ways.append(f"energy budget {format_si(E, 'J')} -> {format_si(need_e, 'J', 4)}")
            if both is not None:
                ways.append(f"both budgets x {both:.4g}")
            cure = "feasible with " + ", or ".join(ways) if ways else "no budgets help"
            out.append(
                Conflict(
                    device=int(u),
                    binding=binding,
                    relax={"delay_budget": need_t, "energy_budget": need_e},
                    budget={"delay_budget": T, "energy_budget": E},
                    factor=both,
                    text=f"device {int(u)}: {binding}, even with the whole band; {cure}",
                )
            )
        return out

"""Split inference: delays and energies of its stages, the least energy by a deadline, the least pruning (theory 4).

A *chain* is one inference split at one point: the device computes W_d cycles, sends S bits, the server computes W_s.

    E = eta psi W_d^3/t_d^2 + eta' psi' W_s^3/t_s^2 + t_u n0 (2^{S/(B t_u)} - 1),      t_d + t_s + t_u <= T0   [D, 4d]

Everything here works on flat arrays of chains at once.

Why Newton's method needs no luck. (i) *Multiplier.* With y = ln mu, ln t_d and ln t_s fall with slope -1/3, and
ln t_u = const - ln a where ln a is concave in y: the elasticity of mu = n0 [(a-1) e^a + 1] in a is
a^2/(a - 1 + e^-a), the reciprocal of the integral of (1-s) e^{-as} over [0, 1], hence increasing. Lower clips are
maxima with constants. So ln(t_d + t_s + t_u) is convex and decreasing in y, and Newton from the left cannot
overshoot. (ii) *Kept share.* With the series of the exponential, E and the constraints are posynomials in the kept
share k (or its root, where the cut shrinks with the channels) and the times: a geometric program, whose value
ln E_min is convex in ln k. Where the cut is fixed, the perspectives x^3/t^2 and t 2^{S/(Bt)} make E_min convex in k
as well. Newton from the right on either stays right of the root, so the smaller step may be taken. Ranges with
floors on frequency or power lose this; brackets with bisection keep the search right there too, since E_min is still
non-decreasing in k (the same frequencies and power with less work take less time and less energy).
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import special as sc

from jointopt.models._array import namespace

__all__ = [
    "Chains",
    "LeastEnergy",
    "LeastRatio",
    "compute_delay",
    "compute_energy",
    "cut_factor",
    "delay_limited_share",
    "efficiency_at_price",
    "least_energy",
    "least_ratio",
    "send_delay",
    "send_energy",
]

Array = Any
FloatArray = npt.NDArray[np.float64]

_LN2 = float(np.log(2.0))
_SLACK = 1e-12
"""Share of a budget that rounding may take: a thousandth of what a feasible decision is allowed."""

# ---------------------------------------------------------------------------------- evaluation


def compute_delay(work: Array, frequency: Array) -> Array:
    """Time W/f to compute W cycles [s] (4a [C]); 0 without work, whatever the frequency."""
    return _quotient(work, frequency)


def compute_energy(work: Array, frequency: Array, capacitance: Array, pue: Array) -> Array:
    """Energy eta psi W f^2 of W cycles [J] (4a [C])."""
    return pue * capacitance * work * frequency**2


def cut_factor(kept: Array, law: str) -> Array:
    """Share of the cut's bits left: 1, or the root of the kept fraction where channels are removed (4g [D])."""
    return kept**0.5 if law == "channels" else kept * 0.0 + 1.0


def send_delay(bits: Array, bandwidth: Array, power: Array, noise_power: Array) -> Array:
    """Time S/(B log2(1 + p/n0)) to send [s] (4a [K]), n0 = B N0/g; 0 without bits."""
    xp = namespace(bits, power)
    return _quotient(bits, bandwidth * xp.log1p(power / noise_power) / _LN2)


def send_energy(delay: Array, power: Array) -> Array:
    """Energy p t_u to send [J] (4a [K]); nothing is sent at power 0."""
    xp = namespace(delay, power)
    sending = power > 0.0
    delay = xp.where(sending, delay, xp.zeros_like(power))
    return delay * power


def _quotient(amount: Array, rate: Array) -> Array:
    """Amount/rate; 0 where there is nothing to do, inf where it is done at rate 0."""
    xp = namespace(amount, rate)
    amount, rate = amount + rate * 0.0, rate + amount * 0.0
    possible = rate > 0.0
    time = amount / xp.where(possible, rate, xp.ones_like(rate))
    stuck = xp.where(amount > 0.0, xp.full_like(amount, float("inf")), xp.zeros_like(amount))
    return xp.where(possible, time, stuck)


# ---------------------------------------------------------------------------------- chains


@dataclass(frozen=True)
class Chains:
    """Split inferences, one per row of every array.

    Attributes
    ----------
    device_work, device_fixed, server_work, server_fixed : arrays, shape [n]
        Cycles of the dense network, those that fall with the kept share and those that do not.
    bits : array, shape [n]
        Bits at the cut of the dense network.
    shrinks : bool array, shape [n]
        Whether the bits fall with the root of the kept share.
    device_coefficient, server_coefficient : arrays, shape [n]
        eta psi [J s^2].
    noise, bandwidth : arrays, shape [n]
        n0 = B N0/g [W] and B [Hz].
    frequency_low, frequency_high, server_low, server_high, power_low, power_high : arrays, shape [n]
        Ranges of f, f~ [Hz] and p [W].
    """

    device_work: FloatArray
    device_fixed: FloatArray
    server_work: FloatArray
    server_fixed: FloatArray
    bits: FloatArray
    shrinks: npt.NDArray[np.bool_]
    device_coefficient: FloatArray
    server_coefficient: FloatArray
    noise: FloatArray
    bandwidth: FloatArray
    frequency_low: FloatArray
    frequency_high: FloatArray
    server_low: FloatArray
    server_high: FloatArray
    power_low: FloatArray
    power_high: FloatArray

    def __len__(self) -> int:
        return int(self.bits.size)

    def take(self, index: Any) -> Chains:
        """Return some rows."""
        return Chains(*(getattr(self, f.name)[index] for f in fields(self)))

    def loads(self, kept: Any) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Return cycles on the device, cycles on the server and bits at a kept share."""
        return (
            kept * self.device_work + self.device_fixed,
            kept * self.server_work + self.server_fixed,
            self.bits * np.where(self.shrinks, np.sqrt(kept), 1.0),
        )

    def highest_rate(self, power: Any) -> FloatArray:
        """Nats per second at a power."""
        rate: FloatArray = self.bandwidth * np.log1p(power / self.noise)
        return rate


@dataclass(frozen=True)
class LeastEnergy:
    """Answer of `least_energy`; energy inf where the deadline cannot be met, the times are then the shortest.

    `multiplier` is mu [W], the energy that a second more would save; `slope` is dE_min/dk at the kept share.
    """

    energy: FloatArray
    device_time: FloatArray
    server_time: FloatArray
    send_time: FloatArray
    frequency: FloatArray
    server_frequency: FloatArray
    power: FloatArray
    multiplier: FloatArray
    slope: FloatArray


def efficiency_at_price(price: FloatArray) -> FloatArray:
    """Nats per second and hertz, a = W0((m-1)/e) + 1, at which sending faster costs m = mu/n0 (4d [D]).

    Solves (a-1) e^a + 1 = m. Below m = 1e-3, where W0 near its branch point loses its digits, the series in
    r = sqrt(2m), a = r - r^2/3 + 11 r^3/72 - 43 r^4/540, and one step of Newton's method on the power series of
    (a-1) e^a + 1, which has no cancellation.
    """
    price = np.asarray(price, dtype=np.float64)
    out = np.empty_like(price)
    small = price < 1e-3
    low = price[small]
    r = np.sqrt(2.0 * low)
    a = r * (1.0 + r * (-1.0 / 3.0 + r * (11.0 / 72.0 - r * (43.0 / 540.0))))
    with np.errstate(divide="ignore", invalid="ignore"):
        a -= np.where(low > 0.0, (_price_series(a) - low) / (a * np.exp(a)), 0.0)
    out[small] = a
    high = ~small
    z: Any = (price[high] - 1.0) / np.e
    out[high] = np.real(sc.lambertw(z)) + 1.0
    return out


def _price_series(a: FloatArray) -> FloatArray:
    """(a-1) e^a + 1 = sum_j a^j (j-1)/j!, j >= 2, for a below 0.05."""
    s: FloatArray = (
        a
        * a
        * (
            1 / 2
            + a * (1 / 3 + a * (1 / 8 + a * (1 / 30 + a * (1 / 144 + a * (1 / 840 + a * (1 / 5760 + a / 45360))))))
        )
    )
    return s


def _log_price(a: FloatArray, noise: FloatArray) -> FloatArray:
    """Ln mu of sending at a nats per second and hertz; -inf at 0."""
    with np.errstate(divide="ignore", over="ignore"):
        small = a < 0.05
        # ln[(a-1) e^a + 1] = a + ln(a - 1 + e^-a)
        big = np.where(small, 1.0, a)
        inner = np.where(small, np.log(_price_series(np.where(small, a, 0.0))), big + np.log(big + np.expm1(-big)))
        out: FloatArray = np.log(noise) + inner
    return out


def least_energy(
    chains: Chains, kept: FloatArray, deadline: FloatArray, *, guess: FloatArray | None = None
) -> LeastEnergy:
    """Return the least energy of every chain by its deadline, with the times and resources that reach it.

    Parameters
    ----------
    chains : Chains
        n chains.
    kept : array, shape [n]
        Kept share of the prunable weights.
    deadline : array, shape [n]
        T0 [s].
    guess : array, shape [n], optional
        ln mu of a similar problem; saves steps.
    """
    work_d, work_s, bits = chains.loads(kept)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore", under="ignore"):
        solver = _Times(chains, work_d, work_s, bits, deadline)
        y = solver.solve(guess)
        td, ts, tu = solver.times(slice(None), y)
        late = solver.late
        td, ts, tu = (np.where(late, low, t) for low, t in zip(solver.low, (td, ts, tu), strict=True))
        f = np.clip(np.where(work_d > 0.0, work_d / td, 0.0), chains.frequency_low, chains.frequency_high)
        fs = np.clip(np.where(work_s > 0.0, work_s / ts, 0.0), chains.server_low, chains.server_high)
        nats = bits * _LN2 / chains.bandwidth
        p = np.clip(np.where(bits > 0.0, chains.noise * np.expm1(nats / tu), 0.0), chains.power_low, chains.power_high)
        energy = (
            chains.device_coefficient * work_d * f**2
            + chains.server_coefficient * work_s * fs**2
            + np.where(bits > 0.0, p * tu, 0.0)
        )
        mu = np.where(np.isfinite(y), np.exp(y), 0.0)
        slope = solver.slope(kept, (td, ts, tu), (f, fs, p), mu)
    return LeastEnergy(np.where(late, np.inf, energy), td, ts, tu, f, fs, p, mu, np.where(late, np.inf, slope))


class _Times:
    """The inner problem of 4d at one kept share: times as functions of y = ln mu, and the y that meets the deadline."""

    def __init__(
        self, chains: Chains, work_d: FloatArray, work_s: FloatArray, bits: FloatArray, deadline: FloatArray
    ) -> None:
        self.chains, self.deadline = chains, deadline
        self.nats = bits * _LN2 / chains.bandwidth
        fast, slow = np.log1p(chains.power_high / chains.noise), np.log1p(chains.power_low / chains.noise)
        self.low = (
            work_d / chains.frequency_high,
            work_s / chains.server_high,
            self.nats / fast,
        )
        self.high = (
            np.where(work_d > 0.0, work_d / chains.frequency_low, 0.0),
            np.where(work_s > 0.0, work_s / chains.server_low, 0.0),
            np.where(bits > 0.0, self.nats / slow, 0.0),
        )
        self.active = (work_d > 0.0, work_s > 0.0, bits > 0.0)
        self.log_d = np.log(2.0 * chains.device_coefficient) + 3.0 * np.log(work_d)
        self.log_s = np.log(2.0 * chains.server_coefficient) + 3.0 * np.log(work_s)
        self.log_noise = np.log(chains.noise)
        self.late = self.low[0] + self.low[1] + self.low[2] > deadline * (1.0 + _SLACK)

    def times(self, rows: Any, y: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Return (t_d, t_s, t_u) at ln mu."""
        td = np.where(self.active[0][rows], np.exp((self.log_d[rows] - y) / 3.0), 0.0)
        ts = np.where(self.active[1][rows], np.exp((self.log_s[rows] - y) / 3.0), 0.0)
        a = efficiency_at_price(np.exp(y - self.log_noise[rows]))
        nats = self.nats[rows]
        tu = np.where(nats > 0.0, nats / a, 0.0)
        out = [
            np.minimum(np.maximum(t, low[rows]), high[rows])
            for t, low, high in zip((td, ts, tu), self.low, self.high, strict=True)
        ]
        return out[0], out[1], out[2]

    def _steepness(self, rows: Any, times: tuple[FloatArray, ...]) -> FloatArray:
        """-d ln(sum t)/dy: a third for computing, (a - 1 + e^-a)/a^2 for sending, 0 where clipped."""
        a = self.nats[rows] / times[2]
        send = np.where(a < 1e-3, 0.5 - a / 6.0, (a + np.expm1(-a)) / (a * a))
        total = np.zeros_like(times[0])
        for t, low, high, rate in zip(times, self.low, self.high, (1 / 3, 1 / 3, send), strict=True):
            total += np.where((t > low[rows]) & (t < high[rows]), t * rate, 0.0)
        return total / (times[0] + times[1] + times[2])

    def _prices(self, times: tuple[Any, ...]) -> list[FloatArray]:
        """Ln of the marginal saving of every stage at its time."""
        return [
            self.log_d - 3.0 * np.log(times[0]),
            self.log_s - 3.0 * np.log(times[1]),
            _log_price(self.nats / times[2], self.chains.noise),
        ]

    def solve(self, guess: FloatArray | None) -> FloatArray:
        """Return ln mu; -inf where the deadline does not bind."""
        deadline = self.deadline
        nothing = -np.inf
        top = np.full(deadline.shape, nothing)
        floor = np.full(deadline.shape, np.inf)
        alone = np.full(deadline.shape, nothing)
        at_low, at_high = self._prices(self.low), self._prices(self.high)
        whole = self._prices((deadline, deadline, deadline))
        for i, active in enumerate(self.active):
            top = np.where(active, np.maximum(top, at_low[i]), top)
            floor = np.where(active, np.minimum(floor, at_high[i]), floor)
            alone = np.where(active & (self.high[i] >= deadline), np.maximum(alone, whole[i]), alone)
        # left of the root: everyone as slow as allowed, or one stage taking all the time by itself
        left = np.maximum(np.where(np.isnan(floor), nothing, floor), alone)
        right = np.maximum(top, left)
        free = self.high[0] + self.high[1] + self.high[2] <= deadline
        y = np.where(free, nothing, left)
        if guess is not None:
            y = np.where(free, y, np.clip(guess, left, right))
        rows = np.flatnonzero(~free & ~self.late & (right > left))
        left, right = left[rows], right[rows]
        point = y[rows]
        target = deadline[rows]
        for _ in range(200):
            if rows.size == 0:
                break
            times = self.times(rows, point)
            over = np.log((times[0] + times[1] + times[2]) / target)
            left = np.where(over >= 0.0, point, left)
            right = np.where(over <= 0.0, point, right)
            steep = self._steepness(rows, times)
            step = point + over / steep
            inside = (step > left) & (step < right)
            # the root may be an end of the bracket: all stages clipped to within rounding
            close = np.isfinite(step) & (np.abs(step - point) <= 1e-14 * np.maximum(1.0, np.abs(point)))
            moved = np.where(inside | close, np.clip(step, left, right), 0.5 * (left + right))
            done = (np.abs(over) <= 4e-16) | close | (right - left <= 1e-15 * np.maximum(1.0, np.abs(right)))
            y[rows] = np.where(done & (np.abs(over) <= 4e-16), point, moved)
            more = ~done
            if not np.all(more):
                rows, left, right, moved, target = rows[more], left[more], right[more], moved[more], target[more]
            point = moved
        return y

    def slope(
        self,
        kept: FloatArray,
        times: tuple[FloatArray, ...],
        resources: tuple[FloatArray, ...],
        mu: FloatArray,
    ) -> FloatArray:
        """dE_min/dk by the envelope theorem: direct terms, and (mu - marginal) dt/dk of the clipped stages."""
        c = self.chains
        f, fs, p = resources
        per_bit = _LN2 / c.bandwidth
        total = 3.0 * (c.device_coefficient * c.device_work * f**2 + c.server_coefficient * c.server_work * fs**2)
        compute = ((0, c.device_coefficient, f, c.device_work), (1, c.server_coefficient, fs, c.server_work))
        for i, coefficient, frequency, work in compute:
            clipped = self.active[i] & ((times[i] <= self.low[i]) | (times[i] >= self.high[i]))
            total += np.where(clipped, (mu - 2.0 * coefficient * frequency**3) * work / frequency, 0.0)
        growth = np.where(c.shrinks, 0.5 * c.bits / np.sqrt(kept), 0.0)
        total += growth * per_bit * (c.noise + p)
        a = np.log1p(p / c.noise)
        marginal = np.exp(_log_price(a, c.noise))
        clipped = self.active[2] & ((times[2] <= self.low[2]) | (times[2] >= self.high[2])) & c.shrinks
        return total + np.where(clipped, (mu - marginal) * growth * per_bit / a, 0.0)


# ---------------------------------------------------------------------------------- least pruning


@dataclass(frozen=True)
class LeastRatio:
    """Answer of `least_ratio`: the least feasible ratio of every chain (1 where there is none), and its resources."""

    ratio: FloatArray
    feasible: npt.NDArray[np.bool_]
    inner: LeastEnergy


def delay_limited_share(chains: Chains, deadline: FloatArray, speed: tuple[Any, Any, Any] | None = None) -> FloatArray:
    """Greatest kept share with which the stages meet the deadline; negative where none does.

    Parameters
    ----------
    chains : Chains
        n chains.
    deadline : array, shape [n]
        T0 [s].
    speed : (frequency, server frequency, power), optional
        Resources; the greatest allowed when not given.
    """
    f, fs, p = (chains.frequency_high, chains.server_high, chains.power_high) if speed is None else speed
    with np.errstate(divide="ignore", invalid="ignore"):
        send = np.where(chains.bits > 0.0, chains.bits * _LN2 / chains.highest_rate(p), 0.0)
        zero = np.zeros(len(chains))
        linear = np.where(chains.device_work > 0.0, chains.device_work / f, 0.0)
        linear = linear + np.where(chains.server_work > 0.0, chains.server_work / fs, zero)
        fixed = np.where(chains.device_fixed > 0.0, chains.device_fixed / f, 0.0)
        fixed = fixed + np.where(chains.server_fixed > 0.0, chains.server_fixed / fs, zero)
    return _share(linear, np.where(chains.shrinks, send, 0.0), fixed + np.where(chains.shrinks, 0.0, send), deadline)


def energy_limited_share(chains: Chains, budget: FloatArray, speed: tuple[Any, Any, Any]) -> FloatArray:
    """Greatest kept share whose energy at given resources (f, f~, p) stays within a budget; negative where none."""
    f, fs, p = speed
    with np.errstate(divide="ignore", invalid="ignore"):
        send = np.where(chains.bits > 0.0, chains.bits * _LN2 / chains.highest_rate(p), 0.0)
        joules = np.where(p > 0.0, send * p, np.where(send > 0.0, np.inf, 0.0))
    linear = chains.device_coefficient * chains.device_work * f**2
    linear = linear + chains.server_coefficient * chains.server_work * fs**2
    fixed = chains.device_coefficient * chains.device_fixed * f**2
    fixed = fixed + chains.server_coefficient * chains.server_fixed * fs**2
    return _share(linear, np.where(chains.shrinks, joules, 0.0), fixed + np.where(chains.shrinks, 0.0, joules), budget)


def _share(linear: FloatArray, root: FloatArray, fixed: FloatArray, budget: FloatArray) -> FloatArray:
    """Largest k with linear k + root sqrt(k) + fixed <= budget; inf where k does not matter."""
    room = budget - fixed
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        s = 2.0 * room / (root + np.sqrt(root**2 + 4.0 * linear * np.maximum(room, 0.0)))
    # what rounding alone puts outside still fits
    share = np.where(np.isnan(s), np.inf, s * s)
    return np.where(room < 0.0, np.where(room >= -_SLACK * budget, 0.0, -1.0), share)


def least_ratio(
    chains: Chains,
    deadline: FloatArray,
    energy_budget: FloatArray,
    ratio_low: FloatArray,
    ratio_high: FloatArray,
) -> LeastRatio:
    """Return the least pruning ratio within a range that keeps deadline and energy budget (4d [D]).

    E_min is non-increasing in the ratio, so this is the root of E_min = E0, or the range's lower end, or the ratio
    at which the deadline can just be met; see the module for why Newton's method finds it.

    Parameters
    ----------
    chains : Chains
        n chains.
    deadline, energy_budget : arrays, shape [n]
        T0 [s] and E0 [J].
    ratio_low, ratio_high : arrays, shape [n]
        Range of the ratio.
    """
    size = len(chains)
    least, most = 1.0 - ratio_high, 1.0 - ratio_low
    kept = np.minimum(most, delay_limited_share(chains, deadline))
    feasible = kept >= least * (1.0 - _SLACK)
    kept = np.maximum(kept, least)
    y: FloatArray | None = None
    rows = np.flatnonzero(feasible)
    low, high = least[rows].copy(), kept[rows].copy()
    tested = np.zeros(rows.size, dtype=np.bool_)
    part = chains.take(rows)
    for _ in range(200):
        if rows.size == 0:
            break
        here = kept[rows]
        inner = least_energy(part, here, deadline[rows], guess=y)
        budget = energy_budget[rows]
        fits = inner.energy <= budget * (1.0 + _SLACK)
        tested |= fits
        low = np.where(fits, here, low)
        high = np.where(fits, high, here)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            step = here * np.exp(-np.log(inner.energy / budget) * inner.energy / (inner.slope * here))
            straight = here - (inner.energy - budget) / inner.slope
            step = np.where(part.shrinks | (straight <= 0.0) | fits, step, np.minimum(step, straight))
        end = ~fits & (here <= least[rows] * (1.0 + 1e-15))
        feasible[rows[end]] = False
        # a point that fits is the answer when it began as the greatest share allowed, or the root is met
        met = fits & ((high <= here) | (inner.energy >= budget * (1.0 - 1e-13)) | (high - here <= 4e-16 * high))
        blocked = ~fits & (np.nextafter(high, 0.0) <= low) & tested
        bad = ~(step > low) & ~fits
        step = np.where(np.isfinite(step), step, 0.0)
        inside = (step > low) & (step < high)
        # the lower end of the range is tried itself before it is bisected towards
        moved = np.where(inside, step, np.where(bad & ~tested, low, 0.5 * (low + high)))
        kept[rows] = np.where(met, here, np.where(blocked, low, moved))
        more = ~(met | end | blocked)
        rows, low, high, tested = rows[more], low[more], high[more], tested[more]
        with np.errstate(divide="ignore"):
            y = np.log(inner.multiplier[more])
        if not np.all(more):
            part = part.take(more)
    kept = np.where(feasible, kept, least)
    inner = least_energy(chains, kept, deadline)
    assert inner.energy.shape == (size,)
    # 1 - k loses digits that the ratio's own bounds have
    ratio = np.where(kept >= most, ratio_low, np.where(kept <= least, ratio_high, 1.0 - kept))
    return LeastRatio(np.where(feasible, ratio, 1.0), feasible, inner)

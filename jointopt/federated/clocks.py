"""When the server aggregates: synchronous, asynchronous, buffered, at fixed intervals, or in tiers.

Every device works on its own: it takes the server's model, trains and sends, which takes it so long as the delay
model says. A clock says when the server updates its model next, and with whose work. Who takes part more often would
count more, so updates are weighted by p_u / frequency_u, where p_u is the device's share of the samples and
`Clock.frequency` how often it takes part (FedFix: "A General Theory for Federated Optimization with Asynchronous and
Heterogeneous Clients Updates", whose weights are those of `synchronous`, `asynchronous` and `interval` here).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from jointopt.errors import InputError, is_real, is_whole
from jointopt.federated.registry import Registry

__all__ = [
    "CLOCKS",
    "Asynchronous",
    "Buffered",
    "Clock",
    "Event",
    "Interval",
    "Synchronous",
    "Tiers",
]

FloatArray = NDArray[np.float64]

_SLACK = 1e-9
"""Relative tolerance with which work counts as finished at an instant: sums of delays round."""


@dataclass(frozen=True)
class Event:
    """One update of the server's model: when [s], whose work it takes, and how many ticks of the clock passed."""

    time: float
    devices: NDArray[np.int64]
    ticks: int = 1


def _done(finish: FloatArray, time: float) -> NDArray[np.int64]:
    return np.flatnonzero(finish <= time * (1.0 + _SLACK)).astype(np.int64)


class Clock(ABC):
    """When the server aggregates."""

    name: ClassVar[str]
    waits: ClassVar[bool] = False
    """Whether all devices start anew, together, after every event."""

    @abstractmethod
    def next(self, now: float, tick: int, finish: FloatArray, delay: FloatArray) -> Event:
        """Return the next event after `now` [s] and `tick` ticks.

        `finish` [devices] tells when the present work of each device that takes part ends [s]; `delay` [devices]
        how long work takes it as planned.
        """

    def check(self, delay: FloatArray) -> None:  # noqa: B027  # most clocks run with any delays
        """Raise `InputError` where the clock cannot run with these planned delays [s], shape [devices]."""

    def frequency(self, delay: FloatArray) -> FloatArray:
        """Return how often each device takes part, per tick, where every work takes its planned delay [s]."""
        return self.simulated(delay, lambda devices: delay[devices])

    def simulated(
        self, delay: FloatArray, draw: Callable[[NDArray[np.int64]], FloatArray], ticks: int = 2_000
    ) -> FloatArray:
        """Return how often each device takes part, per tick, found by letting the clock run.

        `delay` [devices] is how long work takes as planned [s]; `draw` returns how long the next work of some devices
        takes. The clock runs for so many `ticks`, longer where a device takes part less than 20 times in them; what
        happens in the first 500 is left out.

        Raises
        ------
        InputError
            A device never takes part.
        """
        everyone = np.arange(len(delay))
        taken, tick, now = np.zeros(len(delay)), 0, 0.0
        finish = draw(everyone).copy()
        settled, most = 500, 10 * ticks
        while tick < settled + ticks or (taken.min() < 20 and tick < most):
            event = self.next(now, tick, finish, delay)
            now, tick = event.time, tick + event.ticks
            if tick > settled:
                taken[event.devices] += 1
            again = everyone if self.waits else event.devices
            finish[again] = now + draw(again)
        if np.any(taken == 0):
            u = int(np.argmin(taken))
            raise InputError(
                f"clock: '{self.name}' takes no work of device {u}, which needs {delay[u]:.4g} s, in {tick} ticks"
            )
        return taken / (tick - settled)

    def settings(self) -> dict[str, Any]:
        """Return name and options, plain data."""
        return {"name": self.name, **{k: v for k, v in vars(self).items() if not k.startswith("_")}}


class Synchronous(Clock):
    """The server waits for every device; with a deadline [s], for those that make it.

    Raises
    ------
    InputError
        The deadline is not a finite number above 0.
    """

    name = "synchronous"
    waits = True

    def __init__(self, deadline: float | None = None) -> None:
        if deadline is not None and not (is_real(deadline) and math.isfinite(deadline) and deadline > 0.0):
            raise InputError(f"clock: deadline must be finite and above 0 s, found {deadline!r}")
        self.deadline = None if deadline is None else float(deadline)

    def next(self, now: float, tick: int, finish: FloatArray, delay: FloatArray) -> Event:
        """Return the event at which the last device is done, or the deadline."""
        time = float(finish.max())
        if self.deadline is not None:
            time = min(time, now + self.deadline)
        return Event(time, _done(finish, time))

    def frequency(self, delay: FloatArray) -> FloatArray:
        """Return 1: everyone takes part in every round."""
        return np.ones(len(delay))


class Asynchronous(Clock):
    """The server updates whenever a device is done."""

    name = "asynchronous"

    def next(self, now: float, tick: int, finish: FloatArray, delay: FloatArray) -> Event:
        """Return the event of the device that is done first; of equals, the one of lowest number."""
        first = int(np.argmin(finish))
        return Event(float(finish[first]), np.array([first], dtype=np.int64))

    def frequency(self, delay: FloatArray) -> FloatArray:
        """Return the shares of the events, which go like 1 / delay."""
        return (1.0 / delay) / np.sum(1.0 / delay)


class Buffered(Clock):
    """The server updates once `size` devices are done; they idle until then, then start anew (after FedBuff).

    Raises
    ------
    InputError
        `size` is not a whole number of at least 1, or above the number of devices.
    """

    name = "buffered"

    def __init__(self, size: int = 5) -> None:
        if not (is_whole(size) and size >= 1):
            raise InputError(f"clock: size must be a whole number of at least 1, found {size!r}")
        self.size = int(size)

    def check(self, delay: FloatArray) -> None:
        """Refuse a buffer that never fills."""
        if self.size > len(delay):
            raise InputError(f"clock: a buffer of {self.size} never fills with {len(delay)} devices")

    def next(self, now: float, tick: int, finish: FloatArray, delay: FloatArray) -> Event:
        """Return the event at which the buffer is full."""
        order = np.argsort(finish, kind="stable")[: self.size]
        return Event(float(finish[order[-1]]), np.sort(order).astype(np.int64))


class Interval(Clock):
    """The server updates every `seconds`, with the work done by then (FedFix).

    Raises
    ------
    InputError
        `seconds` is not a finite number above 0.
    """

    name = "interval"

    def __init__(self, seconds: float = 1.0) -> None:
        if not (is_real(seconds) and math.isfinite(seconds) and seconds > 0.0):
            raise InputError(f"clock: seconds must be finite and above 0, found {seconds!r}")
        self.seconds = float(seconds)

    def next(self, now: float, tick: int, finish: FloatArray, delay: FloatArray) -> Event:
        """Return the event at the next tick at which some work is done."""
        first = float(finish.min())
        passed = max(1, math.ceil(first / self.seconds * (1.0 - _SLACK)) - tick)
        time = (tick + passed) * self.seconds
        return Event(time, _done(finish, time), passed)

    def frequency(self, delay: FloatArray) -> FloatArray:
        """Return 1 / ceil(delay / seconds)."""
        return 1.0 / np.maximum(np.ceil(delay / self.seconds * (1.0 - _SLACK)), 1.0)


class Tiers(Clock):
    """Time-triggered tiers: devices are sorted by delay, each tier is aggregated at its own multiple of `seconds`.

    A device belongs to the fastest tier whose period, ``period x seconds``, its planned delay fits into. Within a
    tier all start together, so fast devices are not held back by slow ones and none is ever stale within its tier.
    A device that fits into no tier is refused, or where not `strict` takes as many turns of the slowest as it needs.

    Raises
    ------
    InputError
        `seconds` is not a finite number above 0, the periods are not rising whole numbers, or a device's delay fits
        into no tier.
    """

    name = "tiers"

    def __init__(self, seconds: float = 1.0, periods: Sequence[int] = (1, 2, 4, 8), strict: bool = True) -> None:
        if not isinstance(strict, bool):
            raise InputError(f"clock: strict must be True or False, found {strict!r}")
        if not (is_real(seconds) and math.isfinite(seconds) and seconds > 0.0):
            raise InputError(f"clock: seconds must be finite and above 0, found {seconds!r}")
        if not isinstance(periods, Sequence):
            raise InputError(f"clock: periods must be a sequence of whole numbers, found {periods!r}")
        whole = all(is_whole(p) and p >= 1 for p in periods)
        if not (len(periods) and whole and all(a < b for a, b in pairwise(periods))):
            raise InputError(f"clock: periods must be rising whole numbers of at least 1, found {tuple(periods)!r}")
        self.seconds, self.periods, self.strict = float(seconds), tuple(int(p) for p in periods), strict

    def check(self, delay: FloatArray) -> None:
        """Refuse a device that fits into no tier, where strict."""
        slow = self.strict & (delay > self.periods[-1] * self.seconds * (1.0 + _SLACK))
        if np.any(slow):
            u = int(np.argmax(slow))
            raise InputError(
                f"clock: device {u} takes {delay[u]:.4g} s, longer than the slowest tier "
                f"({self.periods[-1]} x {self.seconds:g} s)"
            )

    def period(self, delay: FloatArray) -> NDArray[np.int64]:
        """Return every device's period in ticks."""
        periods = np.array(self.periods)
        # work that has become slower than the slowest tier (evidence, say) waits for that tier's next turn
        fitting = np.searchsorted(periods * self.seconds * (1.0 + _SLACK), delay)
        return periods[np.minimum(fitting, len(periods) - 1)]

    def next(self, now: float, tick: int, finish: FloatArray, delay: FloatArray) -> Event:
        """Return the event at the next tick that is due for a tier with work done."""
        period = self.period(delay)
        # the first multiple of its period, after now, at which each device is done
        ready = np.ceil(finish / self.seconds * (1.0 - _SLACK))
        due = np.ceil(np.maximum(ready, tick + 1) / period) * period
        at = int(due.min())
        return Event(at * self.seconds, np.flatnonzero(due == at).astype(np.int64), at - tick)

    def frequency(self, delay: FloatArray) -> FloatArray:
        """Return 1 / period, or less for a device that needs more than one turn."""
        period = self.period(delay)
        turns = np.maximum(np.ceil(delay / (period * self.seconds) * (1.0 - _SLACK)), 1.0)
        return 1.0 / (period * turns)


CLOCKS: Registry[Clock] = Registry("clock", Clock, Synchronous, Asynchronous, Buffered, Interval, Tiers)
"""The clocks by name."""

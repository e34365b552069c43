"""Clocks: the contract every registered one keeps, and the published weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jointopt.errors import InputError
from jointopt.federated.clocks import CLOCKS, Asynchronous, Buffered, Clock, Interval, Synchronous, Tiers

DELAYS = np.array([1.0, 1.7, 2.9, 0.4])
OPTIONS: dict[str, dict[str, Any]] = {"buffered": {"size": 2}, "interval": {"seconds": 0.5}, "tiers": {"seconds": 0.5}}


def run(clock: Clock, delays: np.ndarray, events: int) -> tuple[list[float], list[np.ndarray], list[int]]:
    """Let work take its planned delay, and devices start anew once their work was taken."""
    now, tick, finish = 0.0, 0, delays.copy()
    times, taken, ticks = [], [], []
    for _ in range(events):
        event = clock.next(now, tick, finish, delays)
        assert event.time >= now
        assert event.ticks >= 1
        assert len(np.unique(event.devices)) == len(event.devices) > 0
        assert np.all(np.diff(event.devices) > 0)
        # nobody's work is taken before it is done
        assert np.all(finish[event.devices] <= event.time * (1 + 1e-8))
        now, tick = event.time, tick + event.ticks
        finish[event.devices] = now + delays[event.devices]
        if clock.waits:
            finish[:] = now + delays
        times.append(now)
        taken.append(event.devices)
        ticks.append(tick)
    return times, taken, ticks


@pytest.mark.parametrize("name", list(CLOCKS))
def test_contract(name: str) -> None:
    clock = CLOCKS.make({"name": name, **OPTIONS.get(name, {})})
    clock.check(DELAYS)
    times, taken, ticks = run(clock, DELAYS, 3000)
    assert times == sorted(times)
    share = np.bincount(np.concatenate(taken), minlength=4) / ticks[-1]
    np.testing.assert_allclose(share, clock.frequency(DELAYS), rtol=0.05)
    # weighted by p / frequency the updates count, in the long run, what the samples say
    assert clock.settings()["name"] == name
    again = run(CLOCKS.make({"name": name, **OPTIONS.get(name, {})}), DELAYS, 50)
    assert times[:50] == again[0]


@pytest.mark.parametrize("name", [n for n in CLOCKS if n != "synchronous"])
@given(delays=st.lists(st.floats(0.05, 4.0), min_size=2, max_size=6))
@settings(max_examples=25, deadline=None)
def test_formula_of_the_frequency_is_what_happens(name: str, delays: list[float]) -> None:
    clock = CLOCKS.make({"name": name, **OPTIONS.get(name, {})})
    planned = np.array(delays)
    # as long as the clock itself runs to find out: nearly equal delays drift past each other over thousands of ticks
    _, taken, ticks = run(clock, planned, 2500)
    late = [d for d, tick in zip(taken, ticks, strict=True) if tick > 500]
    share = np.bincount(np.concatenate(late), minlength=len(planned)) / (ticks[-1] - 500)
    np.testing.assert_allclose(share, clock.frequency(planned), rtol=0.1, atol=0.01)


def test_published_weights() -> None:
    p = np.array([0.1, 0.2, 0.3, 0.4])
    np.testing.assert_allclose(p / Synchronous().frequency(DELAYS), p)
    np.testing.assert_allclose(p / Asynchronous().frequency(DELAYS), np.sum(1 / DELAYS) * DELAYS * p)
    np.testing.assert_allclose(p / Interval(0.5).frequency(DELAYS), np.ceil(DELAYS / 0.5) * p)


def test_synchronous_waits_for_the_last_and_a_deadline_leaves_it_behind() -> None:
    event = Synchronous().next(2.0, 5, 2.0 + DELAYS, DELAYS)
    assert (event.time, event.devices.tolist()) == (4.9, [0, 1, 2, 3])
    event = Synchronous(1.5).next(2.0, 5, 2.0 + DELAYS, DELAYS)
    assert (event.time, event.devices.tolist()) == (3.5, [0, 3])
    event = Synchronous(1.5).next(0.0, 0, np.array([0.3, np.inf]), DELAYS[:2])
    assert (event.time, event.devices.tolist()) == (1.5, [0])
    event = Synchronous(0.1).next(0.0, 0, DELAYS, DELAYS)
    assert (event.time, event.devices.tolist()) == (0.1, [])


def test_interval_by_hand() -> None:
    times, taken, _ = run(Interval(0.5), DELAYS, 4)
    assert times == [0.5, 1.0, 1.5, 2.0]
    assert [d.tolist() for d in taken] == [[3], [0, 3], [3], [0, 1, 3]]
    event = Interval(0.5).next(0.0, 0, np.array([1.7, 2.9]), np.array([1.7, 2.9]))
    assert (event.time, event.ticks) == (2.0, 4)  # ticks at which nothing is done are passed over


def test_tiers_by_hand() -> None:
    clock = Tiers(0.5, (1, 2, 4, 8))
    assert clock.period(DELAYS).tolist() == [2, 4, 8, 1]
    _, taken, ticks = run(clock, DELAYS, 8)
    assert ticks == list(range(1, 9))
    assert [d.tolist() for d in taken] == [[3], [0, 3], [3], [0, 1, 3], [3], [0, 3], [3], [0, 1, 2, 3]]
    # a delay of exactly a period fits into it
    assert Tiers(0.1, (1, 3)).period(np.array([0.1, 0.30000000000000004])).tolist() == [1, 3]


@pytest.mark.parametrize(
    ("which", "message"),
    [
        ("synchron", "clock: unknown 'synchron'; did you mean 'synchronous'"),
        (3, "clock: unknown 3"),
        ({"name": "interval", "second": 1}, "clock 'interval': unknown option 'second'; did you mean 'seconds'"),
        ({"name": "interval", "seconds": 0.0}, "seconds must be finite and above 0, found 0.0"),
        ({"name": "interval", "seconds": float("nan")}, "seconds must be finite"),
        ({"name": "synchronous", "deadline": -1.0}, "deadline must be finite and above 0 s, found -1.0"),
        ({"name": "buffered", "size": 1.5}, "size must be a whole number of at least 1, found 1.5"),
        ({"name": "tiers", "periods": (2, 1)}, r"periods must be rising .* found \(2, 1\)"),
        ({"name": "tiers", "periods": ()}, "periods must be rising"),
    ],
)
def test_bad_clocks(which: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        CLOCKS.make(which)


def test_clocks_refuse_delays_they_cannot_serve() -> None:
    with pytest.raises(InputError, match="a buffer of 5 never fills with 4 devices"):
        Buffered(5).check(DELAYS)
    with pytest.raises(InputError, match=r"device 2 takes 2\.9 s, longer than the slowest tier"):
        Tiers(0.5, (1, 2, 4)).check(DELAYS)


def test_a_new_clock_is_one_call_away() -> None:
    class Second(Asynchronous):
        name = "second"

    CLOCKS.register("second", Second)
    try:
        test_contract("second")
    finally:
        del CLOCKS._makers["second"]

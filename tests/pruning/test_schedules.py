"""When masks are cut, and how far."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jointopt.errors import InputError
from jointopt.pruning.schedules import Cubic, Geometric, OneShot, cubic, every_round, geometric, one_shot


def test_cubic_values() -> None:
    schedule = cubic(start=2, end=10, every=2)
    found = [schedule.share(t, 12) for t in range(1, 13)]
    expected = [None, 0.0, None, 1 - 0.75**3, None, 1 - 0.5**3, None, 1 - 0.25**3, None, 1.0, None, None]
    assert found == expected
    assert schedule.ratio(6, 12, 0.8) == pytest.approx(0.7)
    assert Cubic(1, 5, first=0.5).share(3, 9) == 1 - 0.5 * 0.125


def test_cubic_always_ends_at_the_target() -> None:
    assert [Cubic(1, 6, every=4).share(t, 9) for t in (5, 6, 7)] == [1 - 0.2**3, 1.0, None]
    assert Cubic().share(9, 12) == 1.0
    assert Cubic().share(10, 12) is None
    assert Cubic(start=5).share(5, 5) == 1.0


@given(start=st.integers(1, 20), length=st.integers(0, 30), every=st.integers(1, 7), first=st.floats(0.0, 1.0))
@settings(deadline=None)
def test_cubic_never_falls(start: int, length: int, every: int, first: float) -> None:
    schedule = Cubic(start, start + length, every, first)
    shares = [s for t in range(1, 61) if (s := schedule.share(t, 60)) is not None]
    assert (np.diff(shares) >= -1e-12).all()
    assert shares[-1] == 1.0
    assert all(0.0 <= share <= 1.0 for share in shares)


def test_geometric_density() -> None:
    schedule = geometric(every=3, rate=0.2)
    cuts = {t: schedule.ratio(t, 40, 0.6) for t in range(1, 41)}
    assert [t for t, ratio in cuts.items() if ratio is not None] == [4, 7, 10, 13, 16]
    for n, t in enumerate((4, 7, 10, 13), start=1):
        assert cuts[t] == pytest.approx(1 - 0.8**n)
        assert schedule.share(t, 40) == pytest.approx(1 - 0.8**n)
    assert cuts[16] == 0.6  # 1 - 0.8**5 would be more
    assert Geometric(1, 0.5).ratio(2, 9, 0.5) == 0.5
    assert Geometric(1, 0.5).ratio(3, 9, 0.5) is None
    assert Geometric(1, 0.5).ratio(1, 9, 0.5) is None


def test_every_round_and_one_shot() -> None:
    assert every_round().ratio(7, 9, 0.25) == 0.25
    assert [one_shot(2).ratio(t, 3, 0.4) for t in (1, 2, 3)] == [None, 0.4, None]


@pytest.mark.parametrize("bad", [0, 10, 1.5, True, "1", None, math.nan])
def test_a_round_that_is_none_is_refused(bad: object) -> None:
    for schedule in (every_round(), one_shot(), cubic(), geometric()):
        with pytest.raises(InputError, match="round must lie in"):
            schedule.share(bad, 9)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: OneShot(0), "at must be"),
        (lambda: Cubic(start=0), "start"),
        (lambda: Cubic(every=0), "every"),
        (lambda: Cubic(start=5, end=4), "end"),
        (lambda: Cubic(first=1.1), "first"),
        (lambda: Cubic(first=math.nan), "first"),
        (lambda: Geometric(every=1.0), "every"),  # type: ignore[arg-type]
        (lambda: Geometric(rate=0.0), "rate"),
        (lambda: Geometric(rate=1.0), "rate"),
        (lambda: Geometric(rate=math.nan), "rate"),
    ],
)
def test_bad_options(make: object, match: str) -> None:
    with pytest.raises(InputError, match=match):
        make()  # type: ignore[operator]

"""Ranges of variables: narrowed, held to their limits, told apart from a system's own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jointopt import systems
from jointopt.errors import InputError
from jointopt.ranges import Limit, changed_ranges, learning_limits, narrowed

OWN = {"ratio": (np.zeros(3), np.full(3, 0.9)), "level": (np.zeros(1), np.ones(1))}
ends = st.floats(-3.0, 3.0) | st.integers(-3, 3).map(float)


@given(st.lists(st.tuples(ends, ends), min_size=1, max_size=4), ends, ends, st.booleans())
def test_a_limit_holds_where_every_end_keeps_it(
    pairs: list[tuple[float, float]], low: float, high: float, whole: bool
) -> None:
    ranges = [sorted(pair) for pair in pairs]
    expected = all(low <= end <= high and (not whole or float(end).is_integer()) for pair in ranges for end in pair)
    first, last = np.array(ranges).T
    assert Limit(low, high, "", whole).holds(first, last) == expected


def test_limits_may_differ_between_devices() -> None:
    limit = Limit(np.array([0.0, 1.0]), np.array([1.0, 2.0]), "")
    assert limit.holds(np.array([0.0, 1.0]), np.array([1.0, 2.0]))
    assert not limit.holds(np.array([1.0, 0.0]), np.array([1.0, 1.0]))


def test_numbers_arrays_and_pairs() -> None:
    new = narrowed(OWN, {"ratio": ([0.1, 0.2, 0.3], 0.5), "level": 0.4}, 3, common=("level",))
    assert [end.tolist() for end in new["ratio"]] == [[0.1, 0.2, 0.3], [0.5] * 3]
    assert [end.tolist() for end in new["level"]] == [[0.4], [0.4]]
    assert list(new) == list(OWN)
    assert changed_ranges(new, OWN) == {
        "ratio": {"lower": [0.1, 0.2, 0.3], "upper": [0.5] * 3},
        "level": {"lower": [0.4], "upper": [0.4]},
    }
    assert changed_ranges(narrowed(OWN, {"level": (0, 1)}, 3, common=("level",)), OWN) == {}
    new["ratio"][0][0] = 7.0
    assert OWN["ratio"][0][0] == 0.0


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"ratios": 0.5}, "unknown variable 'ratios'; did you mean 'ratio'"),
        ({"ratio": [0.1, 0.2]}, "an array over 3 devices"),
        ({"level": [0.1, 0.2, 0.3]}, "an array over 1 devices"),
        ({"ratio": "half"}, "must be a number"),
        ({"ratio": (0.1, 0.2, 0.3)}, "a pair of these"),
        ({"ratio": (0.5, 0.2)}, "not a finite range"),
        ({"ratio": float("nan")}, "not a finite range"),
        ({"ratio": ([0.0, 0.0, 0.0], [0.5, 0.95, 0.5])}, "restrict: ratio must lie within 0 and 0.9"),
        ({"level": 0.5}, "restrict: level must be whole numbers from 0 to 1"),
    ],
)
def test_what_is_no_range_or_leaves_its_limit_is_refused(asked: dict[str, Any], words: str) -> None:
    limits = {"ratio": Limit.between(0, 0.9), "level": Limit.counting(0, 1)}
    with pytest.raises(InputError, match=words):
        narrowed(OWN, asked, 3, limits, common=("level",))


def test_limits_of_learning_are_the_systems() -> None:
    system = systems.ltfl(3, seed=0).with_(power_min=[0.01, 0.02, 0.03])
    limits = learning_limits(system, 4)
    assert limits["pruning_ratio"].holds(np.zeros(3), np.full(3, system.learner.pruning_ratio_max))
    assert not limits["bits"].holds(np.full(3, 3.0), np.full(3, 8.0))
    assert limits["bits"].holds(np.full(3, 4.0), np.full(3, 32.0))
    assert limits["power"].holds(np.array([0.01, 0.02, 0.03]), np.full(3, 0.1))
    assert not limits["power"].holds(np.full(3, 0.02), np.full(3, 0.1))

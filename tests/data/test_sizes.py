"""Sizes of the devices' data."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jointopt.data import LAWS, draw_sizes, partition
from jointopt.data.sizes import share_out
from jointopt.errors import InputError


@settings(max_examples=200, deadline=None)
@given(
    shares=st.lists(st.floats(0, 1e9) | st.sampled_from([0.0, 1e-300, 1.0]), min_size=1, max_size=12),
    minimum=st.integers(0, 5),
    spare=st.integers(0, 200),
)
def test_sizes_add_up_and_follow_the_shares(shares: list[float], minimum: int, spare: int) -> None:
    samples = len(shares) * minimum + spare
    given_shares = np.array(shares)
    sizes = share_out(samples, given_shares, minimum)
    assert sizes.sum() == samples
    assert (sizes >= minimum).all()
    # Above the minimum sizes are in the order of the shares, to within the rounding.
    for a, b in zip(*np.nonzero(given_shares[:, None] > given_shares[None]), strict=True):
        assert sizes[a] >= sizes[b] - 1


@pytest.mark.parametrize(
    ("samples", "shares", "minimum", "expected"),
    [
        (10, [1, 1, 1], 0, [4, 3, 3]),
        (10, [1, 2, 7], 0, [1, 2, 7]),
        (10, [0, 0, 0], 0, [4, 3, 3]),
        (10, [0, 0, 5], 1, [1, 1, 8]),
        (7, [1, 1, 98], 2, [2, 2, 3]),
        (20, [1, 3, 6], 4, [4, 5, 11]),  # the 16 left in proportion 3 : 6 are 5.33 and 10.67
        (6, [5, 1, 1], 2, [2, 2, 2]),
    ],
)
def test_sizes_by_hand(samples: int, shares: list[float], minimum: int, expected: list[int]) -> None:
    assert share_out(samples, np.array(shares, dtype=float), minimum).tolist() == expected


@settings(max_examples=100, deadline=None)
@given(
    law=st.sampled_from(sorted(LAWS)),
    spread=st.sampled_from([1e-300, 1e-3, 0.5, 2.0, 50.0, 1e300]),
    devices=st.integers(1, 40),
    seed=st.integers(0, 2**70),
)
def test_every_law_gives_usable_sizes(law: str, spread: float, devices: int, seed: int) -> None:
    sizes = draw_sizes(200, devices, law=law, spread=spread, seed=seed)
    assert sizes.shape == (devices,)
    assert sizes.dtype == np.int64
    assert sizes.sum() == 200
    assert sizes.min() >= 1
    assert np.array_equal(sizes, draw_sizes(200, devices, law=law, spread=spread, seed=seed))
    parts = partition(np.arange(200) % 7, devices, scheme="shards", sizes=sizes, seed=0)
    assert [len(part) for part in parts] == sizes.tolist()


def test_laws_have_their_shapes() -> None:
    power = draw_sizes(10**6, 50, law="power", spread=1.5, seed=1)
    exact = np.arange(1, 51) ** -1.5
    assert np.abs(np.sort(power)[::-1] - 10**6 * exact / exact.sum()).max() <= 1
    assert not np.array_equal(power, np.sort(power)[::-1])  # the devices in random order
    logs = np.log(draw_sizes(10**9, 4000, law="lognormal", spread=0.7, seed=1))
    assert logs.std() == pytest.approx(0.7, abs=0.04)
    # A share of Dirichlet(a, ..., a) over K has the variance (K - 1) / (K^2 (K a + 1)).
    shares = draw_sizes(10**9, 2000, law="dirichlet", spread=2.0, seed=1, minimum=0) / 10**9
    assert shares.var() == pytest.approx(1999 / 2000**2 / 4001, rel=0.15)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"law": "log-normal"}, "did you mean 'lognormal'"),
        ({"law": None}, "unknown law"),
        ({"spread": 0}, "spread must be finite and > 0"),
        ({"spread": float("nan")}, "spread"),
        ({"spread": float("inf")}, "spread"),
        ({"spread": "1"}, "spread"),
        ({"devices": 0}, "devices must be at least 1"),
        ({"devices": 101}, "need 101 samples"),
        ({"samples": -1}, "samples"),
        ({"samples": 10.5}, "samples"),
        ({"minimum": -1}, "minimum"),
        ({"seed": -1}, "seed"),
    ],
)
def test_refusals(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        draw_sizes(**{"samples": 100, "devices": 3, "seed": 0, **change})

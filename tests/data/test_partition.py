"""Partition of samples over devices."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jointopt.data import partition
from jointopt.errors import InputError

LABELS = np.arange(2000) % 10


def check_disjoint(parts: list[np.ndarray], samples: int) -> None:
    together = np.concatenate(parts)
    assert len(np.unique(together)) == len(together)
    assert together.size == 0 or (together.min() >= 0 and together.max() < samples)
    for part in parts:
        assert part.dtype == np.int64
        assert part.ndim == 1
        assert (np.diff(part) > 0).all()


def skew(parts: list[np.ndarray], labels: np.ndarray) -> float:
    """Mean total variation between a device's mix of classes and the mix of all."""
    overall = np.bincount(labels, minlength=10) / len(labels)
    mixes = [np.bincount(labels[part], minlength=10) / len(part) for part in parts]
    return float(np.mean([np.abs(mix - overall).sum() / 2 for mix in mixes]))


@settings(max_examples=120, deadline=None)
@given(
    classes=st.lists(st.integers(-3, 6), min_size=1, max_size=80),
    scheme=st.sampled_from(["dirichlet", "iid"]),
    alpha=st.sampled_from([1e-300, 1e-4, 0.1, 1.0, 1e4, 1.7e308]),
    seed=st.integers(0, 2**70),
    data=st.data(),
)
def test_all_samples_once_and_minimum_met(
    classes: list[int], scheme: str, alpha: float, seed: int, data: st.DataObject
) -> None:
    labels = np.array(classes)
    devices = data.draw(st.integers(1, len(labels)))
    minimum = data.draw(st.integers(0, len(labels) // devices))
    parts = partition(labels, devices, scheme=scheme, alpha=alpha, seed=seed, minimum=minimum)
    assert len(parts) == devices
    check_disjoint(parts, len(labels))
    assert sum(map(len, parts)) == len(labels)
    assert min(map(len, parts)) >= minimum


@settings(max_examples=120, deadline=None)
@given(
    classes=st.lists(st.integers(-3, 6), min_size=1, max_size=80),
    scheme=st.sampled_from(["dirichlet", "iid"]),
    alpha=st.sampled_from([1e-300, 1e-4, 0.1, 1.0, 1e4, 1.7e308]),
    seed=st.integers(0, 2**70),
    data=st.data(),
)
def test_sizes_are_exact(classes: list[int], scheme: str, alpha: float, seed: int, data: st.DataObject) -> None:
    labels = np.array(classes)
    cuts = data.draw(st.lists(st.integers(0, len(labels)), min_size=1, max_size=8).map(sorted))
    sizes = np.diff([0, *cuts])
    parts = partition(labels, len(sizes), scheme=scheme, alpha=alpha, sizes=sizes, seed=seed, minimum=0)
    check_disjoint(parts, len(labels))
    assert [len(part) for part in parts] == sizes.tolist()


@pytest.mark.parametrize("scheme", ["dirichlet", "iid"])
@pytest.mark.parametrize("sizes", [None, [50, 1, 200, 7]])
def test_reproducible_and_seeded(scheme: str, sizes: list[int] | None) -> None:
    before = np.random.get_state(legacy=False)  # noqa: NPY002  # the global generator, to see it untouched
    first, again, other = (partition(LABELS, 4, scheme=scheme, sizes=sizes, seed=s) for s in (3, 3, 4))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))
    after = np.random.get_state(legacy=False)  # noqa: NPY002
    np.testing.assert_equal(after, before)


@pytest.mark.parametrize("sizes", [None, [40] * 10])
def test_heterogeneity_falls_with_alpha(sizes: list[int] | None) -> None:
    def mean_skew(**how: Any) -> float:
        return float(np.mean([skew(partition(LABELS, 10, sizes=sizes, seed=s, **how), LABELS) for s in range(5)]))

    skews = [mean_skew(alpha=alpha) for alpha in (0.01, 0.1, 0.5, 2.0, 100.0)]
    assert all(a > b + 0.03 for a, b in pairwise(skews)), skews
    assert skews[0] > 0.7  # nearly one class on each device
    assert skews[-1] < mean_skew(scheme="iid") + 0.05


def test_sized_mix_follows_the_dirichlet_variance() -> None:
    # Share of a class on a device: variance (1/K)(1 - 1/K)(1 / (K alpha + 1) + about 1 / size).
    labels = np.arange(200_000) % 10
    parts = partition(labels, 300, alpha=0.5, sizes=[100] * 300, seed=1)
    shares = np.array([np.bincount(labels[part], minlength=10) / 100 for part in parts])
    a = 0.09 / 6
    expected = a + (0.09 - a) / 100
    assert shares.mean(axis=0) == pytest.approx(0.1, abs=4 * (expected / 300) ** 0.5)
    assert shares.var() == pytest.approx(expected, rel=0.15)


def test_iid_is_level() -> None:
    parts = partition(LABELS, 7, scheme="iid", seed=0)
    assert sorted({len(part) for part in parts}) == [285, 286]


def test_late_devices_are_not_served_last() -> None:
    # With sizes that use every sample, the device served last gets whole classes that are left over; served
    # in order, the last two would be 0.17 more skewed than the first two. 0.06 is five deviations.
    splits = [partition(LABELS, 10, alpha=1.0, sizes=[200] * 10, seed=seed) for seed in range(60)]
    assert abs(np.mean([skew(parts[:2], LABELS) - skew(parts[-2:], LABELS) for parts in splits])) < 0.06


def test_tiny_alpha_with_exhausted_class_stays_skewed() -> None:
    # Each class has room for one device only, so the mix must fall back on other single classes.
    parts = partition(LABELS, 10, alpha=1e-6, sizes=[200] * 10, seed=5)
    assert all(len(np.unique(LABELS[part])) == 1 for part in parts)


def test_takes_tensors_and_lists() -> None:
    from_array = partition(LABELS, 3, seed=2)
    for other in (torch.from_numpy(LABELS), LABELS.tolist()):
        assert all(np.array_equal(a, b) for a, b in zip(from_array, partition(other, 3, seed=2), strict=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sizes": [1500, 300, 201]}, "2001 samples, but only 2000"),
        ({"sizes": np.array([2**63, 2**63, 5], dtype=np.uint64)}, "only 2000"),
        ({"sizes": [1, 2]}, r"shape \(3,\).*found \(2,\)"),
        ({"sizes": [1.0, 2.0, 3.0]}, "whole numbers"),
        ({"sizes": [5, 0, 5]}, r"sizes\[1\] must be at least the minimum 1, found 0"),
        ({"sizes": [5, 5, -1], "minimum": 0}, r"sizes\[2\].* found -1"),
        ({"devices": 0}, "devices must be at least 1, found 0"),
        ({"devices": 2.5}, "devices must be a whole number"),
        ({"devices": True}, "devices must be a whole number"),
        ({"devices": 2001}, "2001 devices .* only 2000"),
        ({"devices": 3, "minimum": 700}, "need 2100 samples"),
        ({"alpha": 0.0}, "alpha"),
        ({"alpha": -1.0}, "alpha must be finite and > 0, found -1.0"),
        ({"alpha": float("nan")}, "alpha .* found nan"),
        ({"alpha": float("inf")}, "alpha"),
        ({"seed": -1}, "seed"),
        ({"scheme": "dirichlett"}, "did you mean 'dirichlet'"),
        ({"labels": np.zeros((3, 3), dtype=int)}, "labels"),
        ({"labels": np.zeros(3)}, "labels"),
        ({"labels": np.zeros(0, dtype=int)}, "only 0"),
    ],
)
def test_refusals(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        partition(**{"labels": LABELS, "devices": 3, "seed": 0, **change})

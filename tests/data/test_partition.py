"""Partition of samples over devices."""

from __future__ import annotations

import hashlib
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jointopt.data import SCHEMES, partition
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
    scheme=st.sampled_from(["dirichlet", "iid", "quantity", "shards"]),
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
    scheme=st.sampled_from(["dirichlet", "iid", "shards"]),
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


@pytest.mark.parametrize(
    ("scheme", "sizes"),
    [(scheme, None) for scheme in SCHEMES] + [(scheme, [50, 1, 200, 7]) for scheme in ("dirichlet", "iid", "shards")],
)
def test_reproducible_and_seeded(scheme: str, sizes: list[int] | None) -> None:
    before = np.random.get_state(legacy=False)  # noqa: NPY002  # the global generator, to see it untouched
    first, again, other = (
        partition(LABELS, 4, scheme=scheme, sizes=sizes, seed=s, writers=LABELS * 3) for s in (3, 3, 4)
    )
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


def digest(parts: list[np.ndarray]) -> str:
    return hashlib.sha256(b"|".join(part.astype("<i8").tobytes() for part in parts)).hexdigest()[:16]


@pytest.mark.parametrize(
    ("scheme", "sizes", "expected"),
    [
        ("iid", None, "ded823b83bb42b3c"),
        ("iid", [50, 1, 200, 7], "61c73d8bb89071a6"),
        ("dirichlet", None, "688f2b05af806ba8"),
        ("dirichlet", [50, 1, 200, 7], "8935611a8e6381b3"),
    ],
)
def test_splits_stay_what_they_were(scheme: str, sizes: list[int] | None, expected: str) -> None:
    assert digest(partition(LABELS, 4, scheme=scheme, sizes=sizes, seed=3)) == expected


@pytest.mark.parametrize(("devices", "shards"), [(10, 1), (10, 2), (4, 5), (100, 2)])
def test_shards_are_runs_of_the_sorted_labels(devices: int, shards: int) -> None:
    labels = np.random.default_rng(0).permutation(LABELS)
    parts = partition(labels, devices, scheme="shards", shards=shards, seed=1)
    check_disjoint(parts, 2000)
    assert {len(part) for part in parts} == {2000 // devices}
    # A run as long as a shard touches as many classes as the equal runs of 200 that it overlaps.
    length = 2000 // (devices * shards)
    most = max(len({(start + i) // 200 for i in range(length)}) for start in range(0, 2000, length))
    found = [len(np.unique(labels[part])) for part in parts]
    assert max(found) <= most * shards
    together = np.bincount(np.concatenate([labels[part] for part in parts]), minlength=10)
    assert together.tolist() == [200] * 10
    assert len({tuple(np.unique(labels[part])) for part in parts}) > 1  # dealt at random, not all alike


def test_shards_of_two_classes_by_default() -> None:
    # McMahan et al.: 100 devices with two shards each, so that most hold two classes.
    parts = partition(LABELS, 100, scheme="shards", seed=0)
    kinds = [len(np.unique(LABELS[part])) for part in parts]
    assert set(kinds) == {1, 2}
    assert np.mean(kinds) == pytest.approx(1 + 180 / 199, abs=0.1)  # the other shard is of the same class: 19 in 199


@settings(max_examples=100, deadline=None)
@given(
    classes=st.lists(st.integers(0, 5), min_size=1, max_size=60),
    shards=st.integers(1, 6),
    seed=st.integers(0, 2**40),
    data=st.data(),
)
def test_shards_hold_few_runs(classes: list[int], shards: int, seed: int, data: st.DataObject) -> None:
    labels = np.sort(classes)
    devices = data.draw(st.integers(1, len(labels)))
    parts = partition(labels, devices, scheme="shards", shards=shards, seed=seed)
    check_disjoint(parts, len(labels))
    assert sum(map(len, parts)) == len(labels)
    assert {len(part) for part in parts} <= {len(labels) // devices, -(-len(labels) // devices)}
    for device, part in enumerate(parts):
        # Position among the sorted labels is known up to order within a class: count runs of neighbouring classes.
        present = np.unique(labels[part])
        ranks = np.searchsorted(np.unique(labels), present)
        assert 1 + int((np.diff(ranks) > 1).sum()) <= shards, (device, part)


@settings(max_examples=100, deadline=None)
@given(
    writers=st.lists(st.integers(-3, 12), min_size=1, max_size=80),
    seed=st.integers(0, 2**40),
    data=st.data(),
)
def test_writers_stay_whole(writers: list[int], seed: int, data: st.DataObject) -> None:
    labels = np.zeros(len(writers), dtype=int)
    there = np.unique(writers)
    devices = data.draw(st.integers(1, len(there)))
    parts = partition(labels, devices, scheme="writer", writers=writers, seed=seed)
    check_disjoint(parts, len(writers))
    assert sum(map(len, parts)) == len(writers)
    of = [set(np.asarray(writers)[part].tolist()) for part in parts]
    assert sum(map(len, of)) == len(there)
    assert max(map(len, of)) - min(map(len, of)) <= 1


def test_a_device_below_the_minimum_is_named() -> None:
    with pytest.raises(InputError, match=r"device [01] gets 1 samples, fewer than the minimum 2"):
        partition([0] * 9, 2, scheme="writer", writers=[0] * 8 + [1], seed=0, minimum=2)


def test_quantity_is_skewed_in_size_alone() -> None:
    sizes = {
        alpha: [len(p) for p in partition(LABELS, 10, scheme="quantity", alpha=alpha, seed=2)] for alpha in (0.1, 1e4)
    }
    assert max(sizes[0.1]) > 600
    assert max(sizes[1e4]) < 220
    parts = partition(LABELS, 4, scheme="quantity", alpha=1.0, seed=2, minimum=200)
    assert skew(parts, LABELS) < 0.1


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
        ({"scheme": ["iid"]}, "unknown scheme"),
        ({"alpha": "a"}, "alpha"),
        ({"scheme": "quantity", "alpha": 0}, "alpha must be finite and > 0, found 0"),
        ({"scheme": "quantity", "sizes": [5, 5, 5]}, "'quantity' draws the sizes itself"),
        ({"shards": 3}, "shards is for the scheme 'shards' only, found 3 with 'dirichlet'"),
        ({"scheme": "shards", "shards": 0}, "shards must be at least 1"),
        ({"scheme": "shards", "shards": 1.5}, "shards must be a whole number"),
        ({"scheme": "writer"}, "needs writers"),
        ({"scheme": "writer", "writers": LABELS, "sizes": [5, 5, 5]}, "takes no sizes"),
        ({"scheme": "writer", "writers": LABELS[:-1]}, "as many as the labels, 2000, found 1999"),
        ({"scheme": "writer", "writers": LABELS * 1.0}, "writers must be whole numbers"),
        ({"scheme": "writer", "writers": LABELS % 2}, "3 devices need as many writers, but only 2"),
        ({"labels": np.zeros((3, 3), dtype=int)}, "labels"),
        ({"labels": np.zeros(3)}, "labels"),
        ({"labels": np.zeros(0, dtype=int)}, "only 0"),
    ],
)
def test_refusals(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        partition(**{"labels": LABELS, "devices": 3, "seed": 0, **change})

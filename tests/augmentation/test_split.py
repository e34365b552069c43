"""The public share: stratified, nested, seeded; the hash of what a generator learns from."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jointopt.augmentation import Source, content, public_split
from jointopt.data import Dataset
from jointopt.errors import InputError


def labelled(labels: list[int], classes: int) -> Dataset:
    targets = torch.tensor(labels)
    return Dataset("labels", torch.zeros(len(labels), 1), targets, torch.zeros(1, 1), targets[:1], classes)


@settings(max_examples=60, deadline=None)
@given(
    labels=st.lists(st.integers(0, 4), min_size=1, max_size=80),
    shares=st.tuples(st.floats(0.01, 1.0), st.floats(0.01, 1.0)),
    seed=st.integers(0, 2**63 - 1),
)
def test_the_parts_cover_all_by_class_and_grow_with_the_share(
    labels: list[int], shares: tuple[float, float], seed: int
) -> None:
    dataset = labelled(labels, 5)
    small, large = (public_split(dataset, share, seed) for share in sorted(shares))
    for (public, rest), share in ((small, min(shares)), (large, max(shares))):
        assert sorted([*public, *rest]) == list(range(len(labels)))
        assert public.dtype == rest.dtype == np.int64
        assert np.all(np.diff(public) > 0)
        assert np.all(np.diff(rest) > 0)
        counts = np.bincount(np.array(labels)[public], minlength=5)
        assert np.all(np.abs(counts - share * np.bincount(labels, minlength=5)) <= 0.5 + 1e-9)
    assert set(small[0]) <= set(large[0])


def test_the_order_is_the_seeds(digits: Dataset) -> None:
    first, again, other = (public_split(digits, 0.3, seed)[0] for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    # two independent thirds share about a third
    assert 0.15 * len(first) < len(np.intersect1d(first, other)) < 0.45 * len(first)
    whole, rest = public_split(digits, 1.0, 0)
    assert len(whole) == len(digits.train_labels)
    assert len(rest) == 0


def test_the_order_stays_what_it_was(digits: Dataset) -> None:
    # golden: a changed order would put devices' samples into what generators learned from
    assert public_split(digits, 0.01, 0)[0].tolist() == GOLDEN


GOLDEN = [106, 165, 344, 635, 898, 952, 1124, 1259, 1292, 1372]


@pytest.mark.parametrize("share", [0, -0.1, 1.1, float("nan"), float("inf"), None, "all", True])
def test_bad_shares(digits: Dataset, share: Any) -> None:
    with pytest.raises(InputError, match="share must be above 0 and at most 1"):
        public_split(digits, share, 0)


@pytest.mark.parametrize("seed", [None, -1, 1.5, "", 2**63, True])
def test_bad_seeds(digits: Dataset, seed: Any) -> None:
    with pytest.raises(InputError, match="seed must be a whole number"):
        public_split(digits, 0.5, seed)


def test_the_hash_sees_every_sample_and_label(make_dataset: Callable[..., Dataset]) -> None:
    dataset = make_dataset()
    assert content(dataset) == content(make_dataset())
    inputs = dataset.train_inputs.clone()
    inputs[-1, 0, 7, 7] += 1e-6
    labels = dataset.train_labels.clone()
    labels[3] = 2
    changed = [
        dataclasses.replace(dataset, train_inputs=inputs),
        dataclasses.replace(dataset, train_labels=labels),
        dataclasses.replace(dataset, classes=4),
        dataclasses.replace(dataset, train_inputs=dataset.train_inputs.flatten(1), test_inputs=torch.zeros(4, 64)),
    ]
    assert len({content(one) for one in [dataset, *changed]}) == 5
    # what is tested on is nobody's to learn from
    assert content(dataclasses.replace(dataset, test_inputs=dataset.test_inputs * 0.5)) == content(dataset)


def test_a_class_without_samples_is_named(make_dataset: Callable[..., Dataset]) -> None:
    dataset = make_dataset(counts=(12, 1, 6))
    with pytest.raises(InputError, match=r"'bars', class 1: no real sample to learn from \(share 0.3 of 1\)"):
        Source.of(dataset, 0.3, 0, "test").samples(dataset, "test")
    inputs, labels = Source.of(dataset, 0.5, 0, "test").samples(dataset, "test")
    assert labels.bincount().tolist() == [6, 1, 3]
    assert inputs.shape == (10, 1, 8, 8)


def test_a_source_survives_being_written() -> None:
    source = Source("digits", "abc", (1, 8, 8), 10, 0.5, 3)
    assert Source.from_plain(source.plain()) == source

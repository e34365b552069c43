"""The Gaussian generator end to end, and what all generators have in common."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from jointopt.augmentation import GaussianGenerator, Quality, generator, public_split, quality
from jointopt.data import Dataset
from jointopt.errors import DataError, InputError


@pytest.fixture(scope="module")
def fitted(digits: Dataset) -> GaussianGenerator:
    return GaussianGenerator.fit(digits)


def test_samples_are_worth_nearly_as_much_as_real_ones(fitted: GaussianGenerator, digits: Dataset) -> None:
    found = quality(fitted, digits, seed=1)
    assert found.samples == 1437
    assert found.real > 0.95
    assert 0.9 < found.ratio < 1.02
    assert found == quality(fitted, digits, seed=1)
    assert f"{found.ratio:.3f}" in found.summary()
    assert Quality(0.5, 0.8, 10, 0).ratio == 0.625


def test_samples_of_other_classes_are_worth_nothing(digits: Dataset) -> None:
    shifted = dataclasses.replace(
        digits, train_labels=(digits.train_labels + 1) % 10, test_labels=(digits.test_labels + 1) % 10
    )
    wrong = GaussianGenerator.fit(shifted)
    wrong.source = GaussianGenerator.fit(digits, components=1).source
    assert quality(wrong, digits, samples=300).ratio < 0.3


def test_moments_are_those_of_the_shrunk_gaussian(digits: Dataset) -> None:
    fitted = GaussianGenerator.fit(digits, components=64)
    public = digits.train_inputs[digits.train_labels == 4].flatten(1).double().numpy()
    x = digits.train_inputs.flatten(1).double().numpy()
    labels = digits.train_labels.numpy()
    pooled = sum(np.cov(x[labels == c].T, bias=True) * (labels == c).sum() for c in range(10)) / len(x)
    expected = (len(public) * np.cov(public.T, bias=True) + 64 * pooled) / (len(public) + 64)
    # clipping would move the moments
    noise = torch.from_numpy(np.random.default_rng(0).standard_normal((40_000, 64), dtype=np.float32))
    made = fitted._generate(torch.full((40_000,), 4), noise, lambda done: None).flatten(1).double().numpy()
    np.testing.assert_allclose(made.mean(0), public.mean(0), atol=0.01)
    np.testing.assert_allclose(np.cov(made.T), expected, atol=0.006)


def test_the_same_labels_and_seed_give_the_same_samples(fitted: GaussianGenerator) -> None:
    labels = np.arange(300) % 10
    made = fitted.sample(labels, seed=5)
    assert made.shape == (300, 1, 8, 8)
    assert made.dtype == torch.float32
    assert float(made.min()) >= 0.0
    assert float(made.max()) <= 1.0
    assert torch.equal(made, fitted.sample(labels.tolist(), seed=5))
    assert torch.equal(made, fitted.sample(torch.from_numpy(labels), seed=5))
    assert not torch.allclose(made, fitted.sample(labels, seed=6))
    for fewer in (1, 127, 128, 129):
        torch.testing.assert_close(fitted.sample(labels[:fewer], seed=5), made[:fewer], rtol=0, atol=1e-5)
    # a sample does not see the others' labels
    others = labels.copy()
    others[::2] = (others[::2] + 3) % 10
    torch.testing.assert_close(fitted.sample(others, seed=5)[1::2], made[1::2], rtol=0, atol=1e-5)
    assert fitted.sample([], seed=0).shape == (0, 1, 8, 8)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 10], "labels must lie in 0 .. 9, found 10 at place 1"),
        ([-1], "found -1 at place 0"),
        ([0.5], "whole numbers of shape"),
        ([True], "whole numbers of shape"),
        ([[1]], "whole numbers of shape"),
        (3, "whole numbers of shape"),
        (["1"], "whole numbers of shape"),
        ([[1], [2, 3]], "whole numbers of shape"),
        (None, "whole numbers of shape"),
    ],
)
def test_bad_labels(fitted: GaussianGenerator, labels: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        fitted.sample(labels, seed=0)


@pytest.mark.parametrize("seed", [None, -1, 0.5, "1", True, 2**64])
def test_bad_seed(fitted: GaussianGenerator, digits: Dataset, seed: Any) -> None:
    with pytest.raises(InputError, match="seed must be a whole number"):
        fitted.sample([1], seed=seed)
    with pytest.raises(InputError, match="seed must be a whole number"):
        GaussianGenerator.fit(digits, seed=seed)
    with pytest.raises(InputError, match="seed must be a whole number"):
        quality(fitted, digits, seed=seed)


@pytest.mark.parametrize("components", [0, 65, 1.5, "all", True])
def test_bad_components(digits: Dataset, components: Any) -> None:
    with pytest.raises(InputError, match="components must be whole, 1 to 64"):
        GaussianGenerator.fit(digits, components=components)


@pytest.mark.parametrize("samples", [0, 1438, 2.5, True])
def test_bad_number_of_samples(fitted: GaussianGenerator, digits: Dataset, samples: Any) -> None:
    with pytest.raises(InputError, match="samples must be whole, 1 to 1437"):
        quality(fitted, digits, samples=samples)


def test_nothing_is_learned_from_what_is_not_public(digits: Dataset) -> None:
    _, rest = public_split(digits, 0.4, 7)
    inputs = digits.train_inputs.clone()
    inputs[rest] = torch.rand(len(rest), 1, 8, 8)
    changed = dataclasses.replace(digits, train_inputs=inputs)
    labels = np.arange(40) % 10
    one, other = (GaussianGenerator.fit(d, share=0.4, seed=7).sample(labels, seed=0) for d in (digits, changed))
    assert torch.equal(one, other)
    assert not torch.equal(one, GaussianGenerator.fit(digits, share=0.4, seed=8).sample(labels, seed=0))


def test_few_and_equal_samples_are_enough(make_dataset: Callable[..., Dataset]) -> None:
    alone = make_dataset(counts=(1, 1, 1))
    made = GaussianGenerator.fit(alone).sample([0, 1, 2], seed=0)
    # one sample a class: no spread is known, so it comes back
    torch.testing.assert_close(made, alone.train_inputs, atol=1e-3, rtol=0)
    # one of a class beside many of others: it borrows their spread
    mixed = make_dataset(counts=(1, 30, 30))
    made = GaussianGenerator.fit(mixed).sample([0] * 50, seed=0)
    assert bool(torch.isfinite(made).all())
    assert float(made.std(0).mean()) > 0.02


def test_any_shape_of_inputs(make_dataset: Callable[..., Dataset]) -> None:
    dataset = make_dataset(shape=(3, 5, 7))
    made = GaussianGenerator.fit(dataset).sample([2, 0], seed=0)
    assert made.shape == (2, 3, 5, 7)


def test_operations_are_those_of_two_products(fitted: GaussianGenerator) -> None:
    assert fitted.components == 40
    assert fitted.operations_per_sample == 40 * 40 * 2 + 40 + 40 * 64 * 2 + 64


def test_saving_and_loading(fitted: GaussianGenerator, digits: Dataset, tmp_path: Path) -> None:
    path = fitted.save(tmp_path / "deep" / "generator.safetensors")
    found = GaussianGenerator.load(path, digits)
    assert found.fingerprint == fitted.fingerprint
    assert (found.data, found.shape, found.classes, found.share, found.seed) == ("digits", (1, 8, 8), 10, 1.0, 0)
    assert torch.equal(found.sample([3, 4], seed=1), fitted.sample([3, 4], seed=1))
    assert [p.name for p in path.parent.iterdir()] == ["generator.safetensors"]
    assert fitted.fingerprint == GaussianGenerator.fit(digits).fingerprint
    assert fitted.fingerprint != GaussianGenerator.fit(digits, seed=1, share=0.5).fingerprint


def test_every_damaged_byte_is_noticed(fitted: GaussianGenerator, tmp_path: Path) -> None:
    path = fitted.save(tmp_path / "generator.safetensors")
    good = path.read_bytes()
    rng = np.random.default_rng(0)
    places = [0, 7, 8, 60, len(good) - 1, *rng.integers(0, len(good), 40).tolist()]
    for place in places:
        bad = bytearray(good)
        bad[place] ^= 0x11
        path.write_bytes(bad)
        try:
            found = GaussianGenerator.load(path)
        except DataError:
            continue
        # nothing but the padding of the head may differ
        assert found.fingerprint == fitted.fingerprint, place
    for length in (0, 5, 100, len(good) // 2, len(good) - 1):
        path.write_bytes(good[:length])
        with pytest.raises(DataError, match="is damaged or no"):
            GaussianGenerator.load(path)
    with pytest.raises(DataError, match="is not there"):
        GaussianGenerator.load(tmp_path / "nowhere.safetensors")


def test_other_data_are_refused_by_name(
    fitted: GaussianGenerator, digits: Dataset, make_dataset: Callable[..., Dataset], tmp_path: Path
) -> None:
    other = make_dataset()
    with pytest.raises(InputError, match=r"'digits' \(1x8x8, 10 classes\), not for data set 'bars' \(1x8x8, 3 cl"):
        fitted.check(other)
    labels = digits.train_labels.clone()
    labels[0] = (labels[0] + 1) % 10
    noisy = dataclasses.replace(digits, train_labels=labels)
    with pytest.raises(InputError, match="its training samples have the hash"):
        fitted.check(noisy)
    with pytest.raises(InputError, match="not for data set 'bars'"):
        quality(fitted, other)
    path = fitted.save(tmp_path / "one.safetensors")
    with pytest.raises(InputError, match=r"one\.safetensors: generator 'gaussian': was made for data set 'digits'"):
        GaussianGenerator.load(path, other)
    with pytest.raises(InputError, match="not for data set 'bars'"):
        generator(fitted, other)


def test_no_data_set_at_all() -> None:
    with pytest.raises(InputError, match="expected a Dataset"):
        GaussianGenerator.fit("digits")  # type: ignore[arg-type]

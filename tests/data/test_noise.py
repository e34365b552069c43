"""Wrong labels and corrupted inputs."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import conv2d, pad

from jointopt.data import CORRUPTIONS, LABEL_NOISES, Dataset, corrupt, load, with_label_noise
from jointopt.data import noise as noise_module
from jointopt.errors import InputError


def dataset(samples: int = 40, classes: int = 5, shape: tuple[int, ...] = (3, 12, 10), seed: int = 0) -> Dataset:
    rng = np.random.default_rng(seed)

    def part(n: int) -> tuple[torch.Tensor, torch.Tensor]:
        inputs = torch.from_numpy(rng.random((n, *shape), dtype=np.float32))
        return inputs, torch.from_numpy(rng.integers(0, classes, n))

    return Dataset("made", *part(samples), *part(7), classes=classes, writers=torch.arange(samples))


@settings(max_examples=150, deadline=None)
@given(
    samples=st.integers(1, 60),
    classes=st.integers(2, 6),
    percent=st.integers(0, 100),
    kind=st.sampled_from(LABEL_NOISES),
    seed=st.integers(0, 2**70),
    data=st.data(),
)
def test_exact_share_to_other_classes(
    samples: int, classes: int, percent: int, kind: str, seed: int, data: st.DataObject
) -> None:
    clean = dataset(samples, classes, (1,))
    before = clean.train_labels.clone()
    among = data.draw(st.none() | st.lists(st.integers(0, samples - 1), unique=True))
    noisy = with_label_noise(clean, percent / 100, seed, kind, among)
    assert torch.equal(clean.train_labels, before)
    changed = torch.nonzero(noisy.train_labels != before)[:, 0].tolist()
    size = samples if among is None else len(among)
    assert len(changed) == percent * size // 100  # in whole numbers: 0.29 of 100 is 29
    assert among is None or set(changed) <= set(among)
    if kind == "pair":
        assert torch.equal(noisy.train_labels[changed], (before[changed] + 1) % classes)
    assert noisy.test_labels is clean.test_labels
    assert noisy.train_inputs is clean.train_inputs
    assert noisy.writers is clean.writers
    assert torch.equal(with_label_noise(clean, percent / 100, seed, kind, among).train_labels, noisy.train_labels)


def test_symmetric_noise_is_level_over_the_other_classes() -> None:
    clean = replace(dataset(20_000, 5, (1,)), train_labels=torch.full((20_000,), 2))
    noisy = with_label_noise(clean, 0.6, seed=1)
    counts = torch.bincount(noisy.train_labels, minlength=5).tolist()
    assert counts[2] == 8_000
    assert all(abs(count - 3_000) < 5 * math.sqrt(12_000 * 0.25 * 0.75) for count in counts[:2] + counts[3:])
    assert not torch.equal(noisy.train_labels, with_label_noise(clean, 0.6, seed=2).train_labels)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"share": -0.1}, r"share must lie in \[0, 1\], found -0.1"),
        ({"share": 1.1}, "share"),
        ({"share": float("nan")}, "share"),
        ({"share": True}, "share"),
        ({"kind": "symetric"}, "did you mean 'symmetric'"),
        ({"seed": -1}, "seed"),
        ({"seed": 1.0}, "seed"),
        ({"indices": [0, 40]}, r"indices\[1\] must lie in 0 \.\. 39, found 40"),
        ({"indices": [-1]}, r"indices\[0\]"),
        ({"indices": [3, 3]}, "differ"),
        ({"indices": [0.5]}, "whole numbers"),
        ({"indices": [[1]]}, "whole numbers"),
        ({"indices": np.ones(40, dtype=bool)}, "whole numbers"),
        ({"dataset": dataset(3, 1)}, "at least 2 classes"),
    ],
)
def test_label_noise_refusals(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        with_label_noise(**{"dataset": dataset(), "share": 0.5, "seed": 0, **change})


@pytest.mark.parametrize("kind", CORRUPTIONS)
@pytest.mark.parametrize("part", ["train", "test"])
def test_corruptions_keep_range_labels_and_the_rest(kind: str, part: str) -> None:
    clean = dataset()
    before = getattr(clean, f"{part}_inputs").clone()
    distances = []
    for severity in (1, 2, 3, 4, 5):
        found = corrupt(clean, kind, severity, seed=3, part=part)
        inputs = getattr(found, f"{part}_inputs")
        assert inputs.dtype == torch.float32
        assert float(inputs.min()) >= 0.0
        assert float(inputs.max()) <= 1.0
        distances.append(float((inputs - before).square().mean()))
        assert torch.equal(getattr(corrupt(clean, kind, severity, seed=3, part=part), f"{part}_inputs"), inputs)
        other = "test" if part == "train" else "train"
        assert getattr(found, f"{other}_inputs") is getattr(clean, f"{other}_inputs")
        assert found.train_labels is clean.train_labels
        assert found.test_labels is clean.test_labels
    assert torch.equal(getattr(clean, f"{part}_inputs"), before)
    assert distances[0] > 0
    assert distances == sorted(distances)


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_a_devices_part_alone(kind: str) -> None:
    clean, part = dataset(), np.array([7, 3, 30])
    found = corrupt(clean, kind, 3, seed=0, part="train", indices=part)
    touched = (found.train_inputs != clean.train_inputs).flatten(1).any(dim=1)
    assert torch.nonzero(touched)[:, 0].tolist() == [3, 7, 30]


def test_seeds_and_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    clean = dataset()
    for kind in ("gaussian_noise", "occlusion"):
        a, b = (corrupt(clean, kind, 2, seed=s, part="train").train_inputs for s in (0, 1))
        assert not torch.equal(a, b)
    whole = corrupt(clean, "gaussian_noise", 2, seed=0, part="train").train_inputs
    monkeypatch.setattr(noise_module, "_CHUNK", 7)
    assert torch.equal(corrupt(clean, "gaussian_noise", 2, seed=0, part="train").train_inputs, whole)


@pytest.mark.parametrize(("severity", "deviation"), [(1, 0.04), (3, 0.08), (5, 0.10)])
def test_gaussian_noise_has_its_deviation(severity: int, deviation: float) -> None:
    gray = replace(dataset(50), train_inputs=torch.full((50, 3, 12, 10), 0.5))
    noise = corrupt(gray, "gaussian_noise", severity, seed=1, part="train").train_inputs - 0.5
    assert float(noise.std()) == pytest.approx(deviation, rel=0.03)
    assert abs(float(noise.mean())) < 5 * deviation / math.sqrt(noise.numel())


@pytest.mark.parametrize(("severity", "factor"), [(1, 0.75), (2, 0.5), (5, 0.15)])
def test_contrast_shrinks_towards_the_mean_of_each_channel(severity: int, factor: float) -> None:
    clean = dataset()
    mean = clean.test_inputs.mean(dim=(2, 3), keepdim=True)
    torch.testing.assert_close(
        corrupt(clean, "contrast", severity, seed=0).test_inputs, mean + factor * (clean.test_inputs - mean)
    )


@pytest.mark.parametrize(("severity", "deviation"), [(1, 0.4), (3, 0.7), (5, 1.0)])
def test_blur_is_a_gaussian_of_that_many_pixels(severity: int, deviation: float) -> None:
    clean = dataset()
    reach = int(4 * deviation + 0.5)
    steps = torch.arange(-reach, reach + 1)
    line = torch.exp(-(steps**2) / (2 * deviation**2))
    kernel = torch.outer(line, line) / line.sum() ** 2
    padded = pad(clean.test_inputs.reshape(-1, 1, 12, 10), (reach,) * 4, mode="replicate")
    expected = conv2d(padded, kernel[None, None]).reshape(7, 3, 12, 10)
    torch.testing.assert_close(
        corrupt(clean, "gaussian_blur", severity, seed=0).test_inputs, expected, atol=1e-5, rtol=1e-4
    )


@pytest.mark.parametrize(("severity", "sides"), [(1, (2, 1)), (2, (3, 2)), (3, (4, 3)), (5, (6, 5))])
def test_occlusion_is_one_rectangle_in_all_channels(severity: int, sides: tuple[int, int]) -> None:
    white = replace(dataset(300), train_inputs=torch.ones(300, 3, 12, 10))
    gone = corrupt(white, "occlusion", severity, seed=0, part="train").train_inputs == 0
    assert torch.equal(gone, gone[:, :1].expand_as(gone))
    rows, columns = gone[:, 0].any(dim=2), gone[:, 0].any(dim=1)
    assert torch.equal(gone[:, 0], rows[:, :, None] & columns[:, None, :])
    for lines, length in ((rows, sides[0]), (columns, sides[1])):
        places = [torch.nonzero(line)[:, 0] for line in lines]
        assert all(len(place) == length and int(place[-1] - place[0]) == length - 1 for place in places)
        firsts = {int(place[0]) for place in places}
        assert firsts == set(range(lines.shape[1] - length + 1))  # any place, to the edges


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "gaussian_nose"}, "did you mean 'gaussian_noise'"),
        ({"kind": ["contrast"]}, "unknown corruption"),
        ({"severity": 0}, r"severity must be a whole number in 1 \.\. 5, found 0"),
        ({"severity": 6}, "severity"),
        ({"severity": 2.0}, "severity"),
        ({"severity": True}, "severity"),
        ({"part": "tests"}, "did you mean 'test'"),
        ({"seed": -1}, "seed"),
        ({"indices": [7]}, r"indices\[0\] must lie in 0 \.\. 6, found 7"),
        ({"dataset": dataset(shape=(4,))}, "need images"),
        ({"dataset": replace(dataset(), test_inputs=torch.full((7, 3, 12, 10), 1.5))}, r"inputs in \[0, 1\]"),
    ],
)
def test_corruption_refusals(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        corrupt(**{"dataset": dataset(), "kind": "contrast", "severity": 1, "seed": 0, **change})


def test_on_the_digits() -> None:
    digits = load("digits")
    noisy = with_label_noise(digits, 0.2, seed=0)
    assert int((noisy.train_labels != digits.train_labels).sum()) == 287
    assert corrupt(digits, "occlusion", 5, seed=0).test_inputs.mean() < digits.test_inputs.mean()

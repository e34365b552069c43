"""Loading of the data sets."""

from __future__ import annotations

import gzip
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from jointopt.data import DATASETS, Dataset, load
from jointopt.errors import DataError, InputError

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
NAMES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


def write_idx(path: Path, entries: np.ndarray) -> None:
    header = bytes([0, 0, 8, entries.ndim]) + struct.pack(f">{entries.ndim}I", *entries.shape)
    content = header + entries.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(content, 1) if path.suffix == ".gz" else content)


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """Files with the shapes and class counts of Fashion-MNIST; image i is all i % 256."""
    for part, samples in (("train", 60_000), ("t10k", 10_000)):
        images = np.broadcast_to((np.arange(samples) % 256)[:, None, None], (samples, 28, 28))
        write_idx(tmp_path / f"{part}-images-idx3-ubyte.gz", images)
        write_idx(tmp_path / f"{part}-labels-idx1-ubyte", np.arange(samples) % 10)
    return tmp_path


def test_digits() -> None:
    digits = load("digits")
    assert digits.train_inputs.shape == (1437, 1, 8, 8)
    assert digits.test_inputs.shape == (360, 1, 8, 8)
    assert digits.train_inputs.dtype == torch.float32
    assert digits.train_labels.dtype == torch.int64
    assert float(digits.train_inputs.min()) == 0.0
    assert float(digits.train_inputs.max()) == 1.0
    assert digits.classes == 10
    assert digits.inputs_shape == (1, 8, 8)
    every = torch.bincount(torch.cat([digits.train_labels, digits.test_labels]))
    assert every.sum() == 1797
    assert ((torch.bincount(digits.test_labels) - every / 5).abs() < 1).all()  # stratified


def test_digits_split_is_fixed_and_disjoint() -> None:
    first, second = load("digits"), load("digits")
    assert torch.equal(first.train_inputs, second.train_inputs)
    assert torch.equal(first.test_labels, second.test_labels)
    train = {bytes(row.numpy().tobytes()) for row in first.train_inputs}
    test = {bytes(row.numpy().tobytes()) for row in first.test_inputs}
    assert not train & test  # all 1,797 images differ, so this tells that no sample is in both
    assert first.test_labels[:12].tolist() == [0, 2, 4, 7, 1, 6, 8, 9, 5, 3, 0, 2]


def test_real_fashion_mnist(monkeypatch: pytest.MonkeyPatch) -> None:
    if not all((DEBIAN / f"{name}.gz").is_file() for name in NAMES):
        pytest.skip(f"the Debian package dataset-fashion-mnist is not installed in {DEBIAN}")
    monkeypatch.delenv("JOINTOPT_DATA", raising=False)
    fashion = load("fashion-mnist")
    assert fashion.train_inputs.shape == (60_000, 1, 28, 28)
    assert fashion.test_inputs.shape == (10_000, 1, 28, 28)
    assert fashion.train_inputs.dtype == torch.float32
    assert fashion.test_labels.dtype == torch.int64
    # Published: the first training labels, and the mean and deviation everyone normalises by.
    assert fashion.train_labels[:10].tolist() == [9, 0, 0, 3, 0, 2, 7, 2, 5, 5]
    assert fashion.test_labels[:5].tolist() == [9, 2, 1, 1, 6]
    assert float(fashion.train_inputs.mean()) == pytest.approx(0.2860, abs=1e-4)
    assert float(fashion.train_inputs.std()) == pytest.approx(0.3530, abs=1e-4)


def test_folder_and_variable(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOINTOPT_DATA", "/nowhere")
    with pytest.raises(DataError, match=r"/nowhere \(from JOINTOPT_DATA\)"):
        load("fashion-mnist")
    given = load("fashion-mnist", made)  # the argument wins
    assert given.train_inputs[300, 0, 5, 5] == np.float32(44) / np.float32(255)
    assert given.test_labels[:3].tolist() == [0, 1, 2]
    monkeypatch.setenv("JOINTOPT_DATA", str(made))
    assert torch.equal(load("fashion-mnist").test_inputs, given.test_inputs)


@pytest.mark.parametrize("absent", NAMES)
def test_missing_file_says_how_to_get_it(tmp_path: Path, absent: str) -> None:
    for name in NAMES:
        if name != absent:
            (tmp_path / name).write_bytes(b"")
    with pytest.raises(DataError, match="apt install dataset-fashion-mnist") as caught:
        load("fashion-mnist", tmp_path)
    assert absent in str(caught.value)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("kind", ["mnist", "short", "images for labels"])
def test_other_content_is_refused(made: Path, kind: str) -> None:
    labels = made / "t10k-labels-idx1-ubyte"
    if kind == "mnist":  # the same names and shapes, unequal classes
        write_idx(labels, np.minimum(np.arange(10_000) % 11, 9))
        message = "1000 samples of each of 10 classes"
    elif kind == "short":
        write_idx(labels, np.arange(9_990) % 10)
        message = r"shape \(10000,\), found uint8 of shape \(9990,\)"
    else:
        write_idx(labels, np.zeros((2, 28, 28)))
        message = r"found uint8 of shape \(2, 28, 28\)"
    with pytest.raises(DataError, match=message) as caught:
        load("fashion-mnist", made)
    assert str(labels) in str(caught.value)


def test_damaged_file_is_refused(made: Path) -> None:
    images = made / "train-images-idx3-ubyte.gz"
    images.write_bytes(images.read_bytes()[:-20])
    with pytest.raises(DataError, match="intact gzip"):
        load("fashion-mnist", made)


def test_unknown_name_and_options(tmp_path: Path) -> None:
    assert DATASETS == ("digits", "fashion-mnist", "cifar10", "femnist", "images")
    with pytest.raises(InputError, match="did you mean 'fashion-mnist'"):
        load("fashion_mnist")
    with pytest.raises(InputError, match="known: cifar10, digits, fashion-mnist, femnist, images"):
        load("zzz")
    with pytest.raises(InputError, match="unknown data set"):
        load(["digits"])  # type: ignore[arg-type]
    with pytest.raises(InputError, match="'digits' has no option 'size'"):
        load("digits", size=(8, 8))
    with pytest.raises(InputError, match="'images' has no option 'greyscale'; did you mean 'grayscale'"):
        load("images", tmp_path, greyscale=True)


@pytest.mark.parametrize("name", ["cifar10", "femnist", "images"])
def test_no_folder_and_a_missing_folder(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JOINTOPT_DATA", raising=False)
    with pytest.raises(DataError, match=rf"{name}: .*JOINTOPT_DATA"):
        load(name)
    monkeypatch.setenv("JOINTOPT_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match=r"nowhere \(from JOINTOPT_DATA\)"):
        load(name)
    with pytest.raises(InputError, match="folder must be a path, found 5"):
        load(name, 5)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"test_inputs": torch.zeros(3, 4, dtype=torch.float64)}, "test: expected float32"),
        ({"test_inputs": torch.zeros(2, 4)}, "test: expected inputs"),
        ({"test_labels": torch.tensor([1, 2, 3])}, r"test: labels must lie in 0 \.\. 2, found 1 \.\. 3"),
        ({"train_inputs": torch.tensor([[0.0] * 4, [0, 0, float("nan"), 0], [0] * 4])}, "train: .*nan in sample 1"),
        ({"test_inputs": torch.tensor([[0.0] * 4, [0.0] * 4, [0, 0, 0, -float("inf")]])}, "test: .*-inf in sample 2"),
        ({"test_inputs": torch.zeros(3, 5)}, r"one shape, found \(4,\) and \(5,\)"),
        ({"writers": torch.zeros(2, dtype=torch.int64)}, r"writers int64 of shape \(3,\), found .*\(2,\)"),
        ({"writers": torch.zeros(3)}, "writers int64"),
        ({"classes": 0}, "classes must be a whole number"),
    ],
)
def test_dataset_checks_its_parts(change: dict[str, Any], message: str) -> None:
    inputs, labels = torch.zeros(3, 4), torch.tensor([0, 1, 2])
    parts: dict[str, Any] = {
        "name": "bad",
        "train_inputs": inputs,
        "train_labels": labels,
        "test_inputs": inputs,
        "test_labels": labels,
        "classes": 3,
    }
    assert Dataset(**parts).writers is None
    with pytest.raises(InputError, match="data set 'bad'") as caught:
        Dataset(**parts | change)
    assert re.search(message, str(caught.value)), str(caught.value)

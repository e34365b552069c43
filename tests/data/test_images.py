"""Folders of images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from jointopt.data import load
from jointopt.data.holdout import held_out
from jointopt.errors import DataError, InputError


def pixels(seed: int, shape: tuple[int, ...] = (6, 4, 3)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def save(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


@pytest.fixture
def split(tmp_path: Path) -> Path:
    for seed, name in enumerate(["train/cat/1.png", "train/cat/2.PNG", "train/ant/x.png", "test/cat/a.png"]):
        save(tmp_path / name, pixels(seed))
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "train/cat/.DS_Store").write_bytes(b"x")
    (tmp_path / "train/notes.txt").write_text("what these are")
    return tmp_path


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    for label, count in enumerate((10, 20, 5)):
        for i in range(count):
            save(tmp_path / f"class{label}/{i:02}.png", np.full((2, 3), 10 * i + label, dtype=np.uint8))
    return tmp_path


def test_reads_train_and_test(split: Path) -> None:
    data = load("images", split)
    assert (data.name, data.classes, data.inputs_shape) == ("images", 2, (3, 6, 4))
    assert data.train_labels.tolist() == [0, 1, 1]  # ant, cat, cat
    assert data.test_labels.tolist() == [1]
    for row, seed in enumerate([2, 0, 1]):
        expected = pixels(seed).transpose(2, 0, 1).astype(np.float32) / np.float32(255)
        assert np.array_equal(data.train_inputs[row].numpy(), expected)


def test_grayscale_and_size(split: Path) -> None:
    gray = load("images", split, grayscale=True)
    assert gray.inputs_shape == (1, 6, 4)
    weights = np.array([0.299, 0.587, 0.114])  # ITU-R 601
    assert np.abs(gray.test_inputs[0, 0].numpy() * 255 - pixels(3) @ weights).max() <= 1
    small = load("images", split, size=(3, 8), grayscale=True)
    assert small.inputs_shape == (1, 3, 8)
    assert float(small.test_inputs.mean()) == pytest.approx(float(gray.test_inputs.mean()), abs=0.05)


def test_jpeg_palette_and_alpha(tmp_path: Path) -> None:
    flat = np.full((8, 8, 3), (200, 100, 50), dtype=np.uint8)
    save(tmp_path / "train/a/1.jpg", flat)
    save(tmp_path / "train/a/2.jpeg", flat)
    save(tmp_path / "train/a/3.png", np.dstack([flat, np.full((8, 8), 9, np.uint8)]))
    Image.fromarray(flat).quantize(4).save(tmp_path / "train/a/4.png")
    save(tmp_path / "test/a/1.png", flat)
    data = load("images", tmp_path)
    assert float((data.train_inputs - data.test_inputs).abs().max()) < 3 / 255


def test_one_folder_is_split_within_each_class(whole: Path) -> None:
    data = load("images", whole, grayscale=True, test_share=0.4, seed=3)
    assert torch.bincount(data.train_labels).tolist() == [6, 12, 3]
    assert torch.bincount(data.test_labels).tolist() == [4, 8, 2]
    seen = torch.cat([data.train_inputs, data.test_inputs])[:, 0, 0, 0].mul(255).round().int().tolist()
    assert sorted(seen) == sorted(10 * i + label for label, count in enumerate((10, 20, 5)) for i in range(count))
    again, other = (load("images", whole, grayscale=True, test_share=0.4, seed=seed) for seed in (3, 4))
    assert torch.equal(again.test_inputs, data.test_inputs)
    assert not torch.equal(other.test_inputs, data.test_inputs)
    assert len(load("images", whole).test_labels) == 7


@given(
    counts=st.lists(st.integers(0, 30), min_size=1, max_size=6),
    share=st.floats(0.01, 0.99),
    seed=st.integers(0, 2**70),
)
def test_shares_are_kept_in_each_group(counts: list[int], share: float, seed: int) -> None:
    groups = np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts))
    try:
        chosen = held_out(groups, share, seed)
    except InputError:
        assert not 0.5 <= share * len(groups) < len(groups) - 0.5
        return
    assert abs(int(chosen.sum()) - share * len(groups)) <= 0.5 + 1e-9
    for group, count in enumerate(counts):
        assert abs(int(chosen[groups == group].sum()) - share * count) < 1 + 1e-9


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 8}, "size must be two whole numbers"),
        ({"size": (8, 0)}, "size"),
        ({"size": (8, 8, 3)}, "size"),
        ({"size": (8.0, 8)}, "size"),
        ({"size": "88"}, "size"),
        ({"grayscale": 1}, "grayscale must be True or False"),
        ({"test_share": 0.2}, "test_share cannot be chosen"),
    ],
)
def test_options_out_of_range(split: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load("images", split, **options)


@pytest.mark.parametrize("options", [{"test_share": 1.5}, {"test_share": 0.001}, {"seed": -1}, {"seed": 0.5}])
def test_split_out_of_range(whole: Path, options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"test_share|seed"):
        load("images", whole, **options)


def test_bad_files_are_named(split: Path) -> None:
    target = split / "train/cat/1.png"
    good = target.read_bytes()
    for bad in (b"", b"no image", good[:-20], good[:40], good[:45] + bytes(20) + good[65:]):
        target.write_bytes(bad)
        with pytest.raises(DataError, match=r"cat/1.png: expected an intact PNG or JPEG"):
            load("images", split)
    Image.fromarray(pixels(0)).save(target, format="JPEG")  # whatever its name says
    load("images", split)
    target.write_bytes(target.read_bytes()[:-30])
    with pytest.raises(DataError, match=r"cat/1.png: expected an intact PNG or JPEG"):
        load("images", split)
    Image.fromarray(pixels(0)).save(target, format="GIF")
    with pytest.raises(DataError, match=r"cat/1.png: expected an intact PNG or JPEG"):
        load("images", split)
    Image.fromarray(np.arange(24, dtype=np.uint16).reshape(6, 4) * 1000).save(target)
    with pytest.raises(DataError, match=r"cat/1.png: expected 8 bits a channel, found .* I;16"):
        load("images", split)
    save(target, pixels(0, (4, 6, 3)))
    with pytest.raises(DataError, match=r"1.png: is 4x6, but .*ant/x.png is 6x4; size="):
        load("images", split)
    assert load("images", split, size=(4, 4)).inputs_shape == (3, 4, 4)


def test_sizes_of_train_and_test_must_agree(split: Path) -> None:
    save(split / "test/cat/a.png", pixels(0, (4, 6, 3)))
    with pytest.raises(DataError, match="to train on are 6x4, those to test on 4x6"):
        load("images", split)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("test/dog/1.png", "test/dog has no folder in .*train"),
        ("train/cat/notes.txt", r"notes.txt: expected only .jpeg, .jpg, .png files"),
        ("train/cat/more/1.png", "cat/more: expected only"),
        ("train/dog/.hidden", "class folder .*train/dog is empty"),
    ],
)
def test_mixed_folders(split: Path, path: str, message: str) -> None:
    (split / path).parent.mkdir(parents=True, exist_ok=True)
    if path.endswith(".png"):
        save(split / path, pixels(0))
    else:
        (split / path).write_text("x")
    with pytest.raises(DataError, match=message):
        load("images", split)


def test_missing_folders(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected a folder for each class"):
        load("images", tmp_path)
    save(tmp_path / "train/a/1.png", pixels(0))
    with pytest.raises(DataError, match="found one of them only"):
        load("images", tmp_path)

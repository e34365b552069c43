"""FEMNIST in LEAF's JSON format."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from jointopt.data import load, partition
from jointopt.errors import DataError, InputError

Users = dict[str, tuple[list[list[float]], list[int]]]


def users(counts: dict[str, int], seed: int) -> Users:
    rng = np.random.default_rng(seed)
    return {
        name: ((rng.integers(0, 256, (n, 784)) / 255).tolist(), rng.integers(0, 62, n).tolist())
        for name, n in counts.items()
    }


def write(path: Path, content: Users, **change: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = {
        "users": list(content),
        "num_samples": [len(y) for _, y in content.values()],
        "user_data": {name: {"x": x, "y": y} for name, (x, y) in content.items()},
    }
    path.write_text(json.dumps(whole | change))


TRAIN = (users({"f0002_01": 3, "f0000_14": 2}, 0), users({"f0001_41": 4}, 1))
TEST = users({"f0000_14": 1, "f0001_41": 2}, 2)


@pytest.fixture
def made(tmp_path: Path) -> Path:
    for i, content in enumerate(TRAIN):
        write(tmp_path / f"data/train/all_data_{i}_niid_0_keep_0_train_9.json", content, hierarchies=[])
    write(tmp_path / "data/test/all_data_0_niid_0_keep_0_test_9.json", TEST)
    return tmp_path


@pytest.mark.parametrize("inside", [".", "data"])
def test_reads_train_and_test(made: Path, inside: str) -> None:
    data = load("femnist", made / inside)
    assert (data.name, data.classes, data.inputs_shape) == ("femnist", 62, (1, 28, 28))
    in_order = [pair for part in TRAIN for pair in part.values()]
    assert data.train_labels.tolist() == [label for _, labels in in_order for label in labels]
    expected = np.array([row for images, _ in in_order for row in images], dtype=np.float32).reshape(-1, 1, 28, 28)
    assert np.array_equal(data.train_inputs.numpy(), expected)
    assert data.test_labels.tolist() == [label for _, labels in TEST.values() for label in labels]
    assert data.writers is not None
    assert data.writers.tolist() == [2, 2, 2, 0, 0, 1, 1, 1, 1]  # numbered by name


def test_partition_by_writer(made: Path) -> None:
    data = load("femnist", made)
    parts = partition(data.train_labels, 3, scheme="writer", writers=data.writers, seed=0)
    assert sorted(part.tolist() for part in parts) == [[0, 1, 2], [3, 4], [5, 6, 7, 8]]
    with pytest.raises(InputError, match="4 devices need as many writers, but only 3"):
        partition(data.train_labels, 4, scheme="writer", writers=data.writers, seed=0)


def test_one_folder_is_split_within_each_writer(tmp_path: Path) -> None:
    content = users({"a": 10, "b": 20, "c": 5}, 3)
    write(tmp_path / "all_data_0.json", content)
    data = load("femnist", tmp_path, test_share=0.4, seed=1)
    assert data.writers is not None
    assert torch.bincount(data.writers).tolist() == [6, 12, 3]
    assert len(data.test_labels) == 14
    # no sample lost, none twice
    rows = torch.cat([data.train_inputs, data.test_inputs]).flatten(1).numpy()
    expected = np.array([row for images, _ in content.values() for row in images], dtype=np.float32)
    assert sorted(map(bytes, rows)) == sorted(map(bytes, expected))
    again, other = (load("femnist", tmp_path, test_share=0.4, seed=seed) for seed in (1, 2))
    assert torch.equal(again.test_inputs, data.test_inputs)
    assert not torch.equal(other.test_inputs, data.test_inputs)
    assert len(load("femnist", tmp_path).test_labels) == 7  # a fifth by default


def test_a_writer_without_samples_is_left_out(tmp_path: Path) -> None:
    write(tmp_path / "train/a.json", users({"a": 2, "b": 0}, 0))
    write(tmp_path / "test/a.json", users({"z": 1}, 1))
    data = load("femnist", tmp_path)
    assert data.writers is not None
    assert data.writers.tolist() == [0, 0]


def changed(**change: Any) -> Callable[[Path], None]:
    return lambda path: write(path, TEST, **change)


def sample(name: str, **change: Any) -> Callable[[Path], None]:
    data = {user: {"x": x, "y": y} for user, (x, y) in TEST.items()}
    return changed(user_data=data | {name: data[name] | change})


IMAGE = [0.5] * 784


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_text('{"users": ['), "expected intact JSON"),
        (lambda path: path.write_bytes(b"\xff\xfe\x00"), "expected intact JSON"),
        (lambda path: path.write_text("[" * 100_000), "expected intact JSON"),
        (lambda path: path.write_text('{"users": [], "users": []}'), "the key 'users' twice"),
        (lambda path: path.write_text('["users"]'), "LEAF's keys users, num_samples, user_data, found list"),
        (lambda path: path.write_text('{"users": []}'), r"LEAF's keys .*found \['users'\]"),
        (changed(users=["f0000_14"]), "same writers, found 1, 2 and 2"),
        (changed(users=["f0000_14", "other"]), "same writers"),
        (changed(users=["f0000_14", "f0000_14"]), "different names"),
        (changed(users=[1, 2]), "different names"),
        (changed(users="ab"), "lists users"),
        (changed(num_samples=[1]), "same writers, found 2, 1 and 2"),
        (changed(num_samples=[1, 3]), "writer 'f0001_41': expected 3 samples, found 2 images and 2 labels"),
        (sample("f0001_41", y=[1, 62]), r"writer 'f0001_41': label of sample 1 must lie in 0 \.\. 61, found 62"),
        (sample("f0001_41", y=[-1, 0]), "label of sample 0"),
        (sample("f0001_41", y=[1.0, 0]), "label of sample 0 .* found 1.0"),
        (sample("f0001_41", y=[1]), "expected 2 samples, found 2 images and 1 labels"),
        (sample("f0001_41", y="ab"), "a list of labels y"),
        (sample("f0000_14", x=[[0.5] * 783]), r"784 numbers a sample, found \(1, 783\)"),
        (sample("f0001_41", x=[IMAGE, IMAGE[1:]]), "784 numbers a sample, found sample 1 to be otherwise"),
        (sample("f0001_41", x=[IMAGE, ["0.5"] * 784]), "784 numbers a sample"),
        (sample("f0001_41", x=["a", "b"]), "784 numbers a sample"),
        (sample("f0001_41", x=3), "784 numbers a sample"),
        (sample("f0001_41", x=[IMAGE, [None, *IMAGE[1:]]]), "784 numbers a sample"),
        (sample("f0001_41", x=[IMAGE, [float("nan"), *IMAGE[1:]]]), r"sample 1 has an entry outside \[0, 1\]"),
        (sample("f0001_41", x=[[*IMAGE[1:], 1.01], IMAGE]), "sample 0 has an entry outside"),
        (sample("f0001_41", x=[[*IMAGE[1:], 1e300], IMAGE]), "sample 0 has an entry outside"),
        (sample("f0001_41", x=[[*IMAGE[1:], 10**400], IMAGE]), "784 numbers a sample"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_damaged_files(made: Path, damage: Callable[[Path], None], message: str) -> None:
    path = next((made / "data/test").iterdir())
    damage(path)
    with pytest.raises(DataError, match=message) as caught:
        load("femnist", made)
    assert str(path) in str(caught.value)


def test_mixed_and_missing_files(made: Path) -> None:
    write(made / "data/train/more.json", users({"f0001_41": 1}, 5))
    with pytest.raises(DataError, match=r"more.json: holds writer 'f0001_41', whom all_data_1_.*json also holds"):
        load("femnist", made)
    (made / "data/train/more.json").unlink()
    with pytest.raises(InputError, match="test_share cannot be chosen"):
        load("femnist", made, test_share=0.5)
    for path in (made / "data/test").iterdir():
        path.unlink()
    with pytest.raises(DataError, match=r"JSON files in .*test, found none"):
        load("femnist", made)
    (made / "data/test").rmdir()
    with pytest.raises(DataError, match=r"train and test in .*, found one of them only"):
        load("femnist", made)
    write(made / "none.json", {})
    with pytest.raises(DataError, match="one of them only"):
        load("femnist", made / "data")


@pytest.mark.parametrize("share", [0, 1, -0.5, float("nan"), True, "a", 0.001])
def test_shares_out_of_range(tmp_path: Path, share: Any) -> None:
    write(tmp_path / "all.json", users({"a": 3}, 0))
    with pytest.raises(InputError, match="test_share"):
        load("femnist", tmp_path, test_share=share)


def test_no_samples_at_all(tmp_path: Path) -> None:
    write(tmp_path / "all.json", users({"a": 0}, 0))
    with pytest.raises(DataError, match="hold no samples"):
        load("femnist", tmp_path)

"""CIFAR-10 from its pickled files, and what a pickle is not allowed."""

from __future__ import annotations

import contextlib
import os
import pickle
import pickletools
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jointopt.data import load
from jointopt.data.batches import read_batch
from jointopt.errors import DataError

SAMPLES = 3
NAMES = [b"airplane", b"automobile", b"bird", b"cat", b"deer", b"dog", b"frog", b"horse", b"ship", b"truck"]
LABELS = {
    **{f"data_batch_{i}": b"training batch %d of 5" % i for i in range(1, 6)},
    "test_batch": b"testing batch 1 of 1",
}


def text(value: bytes) -> bytes:
    """A byte string as Python 2 pickles it."""
    if len(value) < 256:
        return b"U" + bytes([len(value)]) + value
    return b"T" + struct.pack("<i", len(value)) + value


def number(value: int) -> bytes:
    if 0 <= value < 256:
        return b"K" + bytes([value])
    return b"M" + struct.pack("<H", value) if 0 <= value < 65536 else b"J" + struct.pack("<i", value)


def python2(label: bytes, pixels: np.ndarray, labels: list[int], names: list[bytes]) -> bytes:
    """The very operations of the official files: protocol 2 of Python 2's cPickle."""
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\nq\x06cnumpy\nndarray\nq\x07K\x00\x85U\x01b\x87Rq\x08(K\x01"
        + number(pixels.shape[0])
        + number(pixels.shape[1])
        + b"\x86cnumpy\ndtype\nq\x09U\x02u1K\x00K\x01\x87Rq\x0a(K\x03U\x01|NNN"
        + 2 * number(-1)
        + b"K\x00tb\x89"
        + text(pixels.tobytes())
        + b"tb"
    )
    return (
        b"\x80\x02}q\x01("
        + (text(b"batch_label") + b"q\x02" + text(label) + b"q\x03")
        + (text(b"labels") + b"q\x04]q\x05(" + b"".join(map(number, labels)) + b"e")
        + (text(b"data") + array)
        + (text(b"filenames") + b"]q\x0b(" + b"".join(map(text, names)) + b"e")
        + b"u."
    )


def content(label: bytes, seed: int) -> tuple[np.ndarray, list[int], dict[bytes, Any]]:
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (SAMPLES, 3072), dtype=np.uint8)
    labels = rng.integers(0, 10, SAMPLES).tolist()
    names = [b"image_%d.png" % i for i in range(SAMPLES)]
    return pixels, labels, {b"batch_label": label, b"labels": labels, b"data": pixels, b"filenames": names}


@pytest.fixture
def made(tmp_path: Path) -> Path:
    place = tmp_path / "cifar-10-batches-py"
    place.mkdir()
    for seed, (name, label) in enumerate(LABELS.items()):
        pixels, labels, batch = content(label, seed)
        (place / name).write_bytes(python2(label, pixels, labels, batch[b"filenames"]))
    meta = {b"num_cases_per_batch": SAMPLES, b"label_names": NAMES, b"num_vis": 3072}
    (place / "batches.meta").write_bytes(pickle.dumps(meta, protocol=2))
    return place


@pytest.mark.parametrize("above", [False, True])
def test_reads_the_official_format(made: Path, above: bool) -> None:
    data = load("cifar10", made.parent if above else made)
    assert (data.name, data.classes, data.inputs_shape) == ("cifar10", 10, (3, 32, 32))
    assert (len(data.train_labels), len(data.test_labels)) == (5 * SAMPLES, SAMPLES)
    inputs_of = torch.cat([data.train_inputs, data.test_inputs]).split(SAMPLES)
    labels_of = torch.cat([data.train_labels, data.test_labels]).split(SAMPLES)
    for seed, (inputs, labels) in enumerate(zip(inputs_of, labels_of, strict=True)):
        pixels, expected, _ = content(b"", seed)
        assert labels.tolist() == expected
        # red, green, blue plane, each row by row
        for colour, y, x in ((0, 0, 0), (0, 0, 31), (1, 5, 7), (2, 31, 31)):
            flat = pixels[:, 1024 * colour + 32 * y + x].astype(np.float32) / np.float32(255)
            assert np.array_equal(inputs[:, colour, y, x].numpy(), flat)


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_files_written_again_by_python_3_read_the_same(made: Path, protocol: int) -> None:
    before = load("cifar10", made)
    for seed, (name, label) in enumerate(LABELS.items()):
        (made / name).write_bytes(pickle.dumps(content(label, seed)[2], protocol=protocol))
    after = load("cifar10", made)
    assert torch.equal(before.train_inputs, after.train_inputs)
    assert torch.equal(before.test_labels, after.test_labels)


class Call:
    """Pickles as a call of anything."""

    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> Any:
        return self.call[0], self.call[1:]


@pytest.mark.parametrize(
    ("harm", "name"),
    [
        (Call(os.system, "touch harmed"), f"{os.system.__module__}.system"),
        (Call(eval, "open('harmed', 'w')"), "eval"),
        (Call(getattr, "x", "upper"), "getattr"),
        (Call(np.load, "x"), "numpy.load"),
        (Path("x"), "pathlib.PosixPath"),
    ],
)
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_any_other_global_is_refused_by_name(
    made: Path, monkeypatch: pytest.MonkeyPatch, harm: Any, name: str, protocol: int
) -> None:
    monkeypatch.chdir(made)
    batch = content(LABELS["data_batch_3"], 0)[2] | {b"labels": harm}
    (made / "data_batch_3").write_bytes(pickle.dumps(batch, protocol=protocol))
    with pytest.raises(DataError, match=rf"data_batch_3: refused: the pickle names '.*{name}'"):
        load("cifar10", made)
    assert not (made / "harmed").exists()


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "damage"),
        (b"\x80\x02}q\x01(U\x05labels", "damage"),
        (b"\x80\x02]q\x01.", "list in place of a dictionary"),
        (b"\x80\x02}X\x01\x00\x00\x00aK\x01s.", "byte-string keys"),
        (b"\x80\x02}r\xff\xff\xff\x7f.", "memo number 2147483647"),  # would fill the memory
        (b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.", "damage|BINBYTES8"),
        (b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\xff}.", "damage"),
        (b"\x80\x02cnumpy\nndarray\n)R.", "not to be called"),
        (b"\x80\x02cnumpy\ndtype\n)R.", "damage"),
        (b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x05\x00\x00\x00rot13\x86R.", "other than latin1"),
        # BUILD with a pair sets attributes, of the stand-in too if it had any
        (b"\x80\x02c_codecs\nencode\nN}X\x08\x00\x00\x00__call__K\x01s\x86b.", "damage"),
        (b"\x80\x02(i_codecs\nencode\n.", "the pickle operation INST"),
        (b"\x80\x02P1\n.", "the pickle operation PERSID"),
    ],
)
def test_hostile_pickles(tmp_path: Path, raw: bytes, message: str) -> None:
    path = tmp_path / "batch"
    path.write_bytes(raw)
    with pytest.raises(DataError, match=message) as caught:
        read_batch(path)
    assert str(path) in str(caught.value)


def array_of(shape: tuple[int, ...], code: bytes, raw: bytes) -> bytes:
    pixels = np.zeros((1, 1), dtype=np.uint8)
    whole = python2(b"", pixels, [], [])
    return (
        whole.replace(b"K\x01K\x01\x86c", b"(" + b"".join(map(number, shape)) + b"tc")
        .replace(b"U\x02u1", text(code))
        .replace(b"\x89U\x01\x00", b"\x89" + text(raw))
    )


@pytest.mark.parametrize(
    ("shape", "code", "raw", "message"),
    [
        ((2, 2), b"u1", b"abc", r"shape \(2, 2\) with 3 entries"),
        ((2, -2), b"u1", b"abcd", "without shape"),
        ((1,), b"O8", b"12345678", "unsigned bytes"),
        ((1,), b"f8", b"12345678", "unsigned bytes"),
    ],
)
def test_arrays_that_lie(tmp_path: Path, shape: tuple[int, ...], code: bytes, raw: bytes, message: str) -> None:
    path = tmp_path / "batch"
    path.write_bytes(array_of((1, 1), b"u1", b"\x07"))
    assert read_batch(path)[b"data"].tolist() == [[7]]
    path.write_bytes(array_of(shape, code, raw))
    with pytest.raises(DataError, match=message):
        read_batch(path)


def test_an_array_without_content(tmp_path: Path) -> None:
    path = tmp_path / "batch"
    path.write_bytes(b"\x80\x02}U\x01dcnumpy.core.multiarray\n_reconstruct\n)Rs.")
    with pytest.raises(DataError, match="an array without content"):
        read_batch(path)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_damage_is_a_data_error_or_another_value(tmp_path: Path, data: st.DataObject) -> None:
    pixels, labels, batch = content(b"training batch 1 of 5", 0)
    whole = bytearray(python2(b"training batch 1 of 5", pixels[:, :6], labels, batch[b"filenames"]))
    for _ in range(data.draw(st.integers(1, 3))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "batch"
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole)))] if data.draw(st.booleans()) else whole)
    with contextlib.suppress(DataError):  # any other error fails the test
        assert isinstance(read_batch(path), dict)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("data_batch_2", {b"data": np.zeros((SAMPLES, 3071), np.uint8)}, r"shape \(3, 3072\), found \(3, 3071\)"),
        ("data_batch_2", {b"data": np.zeros((2, 3072), np.uint8)}, r"found \(2, 3072\)"),
        ("data_batch_2", {b"data": [1, 2]}, "found list"),
        ("test_batch", {b"labels": [0, 10, 1]}, r"label of sample 1 must lie in 0 \.\. 9, found 10"),
        ("test_batch", {b"labels": [0, 1, -1]}, "label of sample 2"),
        ("test_batch", {b"labels": [0, 1, 2.0]}, "label of sample 2"),
        ("test_batch", {b"labels": [0, 1]}, "list of 3 labels, found 2"),
        ("data_batch_5", {b"batch_label": b"testing batch 1 of 1"}, "expected the training batch 5 of 5, found"),
        ("data_batch_5", {b"labels": None}, "list of 3 labels, found NoneType"),
        ("batches.meta", {b"label_names": NAMES[:9]}, "10 label_names"),
        ("batches.meta", {b"num_cases_per_batch": 0}, "num_cases_per_batch"),
        ("batches.meta", {b"num_cases_per_batch": 10_000}, r"data_batch_1: .*\(10000, 3072\), found \(3, 3072\)"),
    ],
)
def test_content_that_does_not_fit(made: Path, file: str, change: dict[bytes, Any], message: str) -> None:
    (made / file).write_bytes(pickle.dumps(read_batch(made / file) | change, protocol=2))
    with pytest.raises(DataError, match=message) as caught:
        load("cifar10", made)
    assert (file if "10000" not in message else "data_batch_1") in str(caught.value)


@pytest.mark.parametrize("key", [b"data", b"labels", b"batch_label"])
def test_missing_keys(made: Path, key: bytes) -> None:
    batch = read_batch(made / "data_batch_4")
    del batch[key]
    (made / "data_batch_4").write_bytes(pickle.dumps(batch, protocol=2))
    with pytest.raises(DataError, match=rf"data_batch_4: expected the key b'{key.decode()}'"):
        load("cifar10", made)


@pytest.mark.parametrize("name", [*LABELS, "batches.meta"])
def test_missing_and_truncated_files(made: Path, name: str) -> None:
    whole = (made / name).read_bytes()
    (made / name).write_bytes(whole[:-5])
    with pytest.raises(DataError, match=rf"{name}: expected an intact pickle"):
        load("cifar10", made)
    (made / name).unlink()
    with pytest.raises(DataError, match=f"expected the file {name} in"):
        load("cifar10", made)


def test_the_test_files_are_of_the_form_they_claim(made: Path) -> None:
    names = {opcode.name for opcode, _, _ in pickletools.genops((made / "data_batch_1").read_bytes())}
    assert {"SHORT_BINSTRING", "BINSTRING", "GLOBAL"} <= names
    assert "BINUNICODE" not in names
    batch = pickle.loads((made / "data_batch_1").read_bytes(), encoding="bytes")
    assert batch[b"data"].dtype == np.uint8
    assert batch[b"data"].shape == (SAMPLES, 3072)

"""Files are written whole or not at all, and what is read back is what was written."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest

from jointopt.errors import InputError
from jointopt.files import ARRAYS_BESIDE, atomic_write, read_json, write_json

MANY = ARRAYS_BESIDE + 1


def leftovers(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def archive_of(path: Path) -> Path:
    """The one .npz file beside a JSON file."""
    (archive,) = (p for p in path.parent.iterdir() if p.suffix == ".npz" and p != path)
    assert archive.name.startswith(path.stem)
    return archive


# ------------------------------------------------------------------ atomic_write


def test_atomic_write_replaces_whole(tmp_path: Path) -> None:
    path = atomic_write(tmp_path / "a" / "b" / "x.bin", lambda file: file.write(b"one"))
    assert path.read_bytes() == b"one"
    atomic_write(path, lambda file: file.write(b"two"))
    assert path.read_bytes() == b"two"
    assert leftovers(path.parent) == ["x.bin"]
    plain = tmp_path / "plain"
    plain.write_bytes(b"")
    assert path.stat().st_mode == plain.stat().st_mode


@pytest.mark.parametrize("error", [RuntimeError("boom"), KeyboardInterrupt(), ValueError("bad")])
def test_atomic_write_keeps_the_old_file_when_the_writer_raises(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "x.bin"
    path.write_bytes(b"old")

    def write(file: BinaryIO) -> None:
        file.write(b"half of the new")
        file.flush()
        raise error

    with pytest.raises(type(error)):
        atomic_write(path, write)
    assert path.read_bytes() == b"old"
    assert leftovers(tmp_path) == ["x.bin"]


def test_atomic_write_leaves_nothing_where_nothing_was(tmp_path: Path) -> None:
    def write(file: BinaryIO) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(InputError, match=r"x\.bin: cannot be written .*No space left"):
        atomic_write(tmp_path / "x.bin", write)
    assert leftovers(tmp_path) == []


def test_atomic_write_to_impossible_places(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("I am a file")
    with pytest.raises(InputError, match="cannot be written"):
        atomic_write(tmp_path / "file" / "x.json", lambda file: file.write(b""))
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match="cannot be written"):
        atomic_write(tmp_path / "folder", lambda file: file.write(b""))
    assert leftovers(tmp_path) == ["file", "folder"]


# ------------------------------------------------------------------ JSON


def test_round_trip_and_numpy_types(tmp_path: Path) -> None:
    data = {
        "float": np.float64(0.1),
        "int": np.int64(7),
        "bool": np.bool_(True),
        "array": np.array([[1.5, 2.0], [3.0, 4.0]]),
        "whole": np.array([1, 2]),
        "none": None,
        "text": "µJ – ü",
        "nested": {"list": [{"a": np.arange(2)}, (1, 2)]},
        1: "number as key",
    }
    path = write_json(data, tmp_path / "x.json")
    assert read_json(path) == {
        "float": 0.1,
        "int": 7,
        "bool": True,
        "array": [[1.5, 2.0], [3.0, 4.0]],
        "whole": [1, 2],
        "none": None,
        "text": "µJ – ü",
        "nested": {"list": [{"a": [0, 1]}, [1, 2]]},
        "1": "number as key",
    }
    assert leftovers(tmp_path) == ["x.json"]


def test_floats_survive_bit_for_bit(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=100) * 10.0 ** np.random.default_rng(1).integers(-300, 300, 100)
    back = read_json(write_json({"v": values}, tmp_path / "x.json"))
    assert np.array_equal(np.array(back["v"]), values)


def test_nan_and_infinity_become_null(tmp_path: Path) -> None:
    data = {"a": float("nan"), "b": np.float64("inf"), "c": [1.0, float("-inf")], "d": np.array([np.nan, 2.0])}
    path = write_json(data, tmp_path / "x.json")
    strict = json.loads(path.read_text(), parse_constant=pytest.fail)
    assert strict == {"a": None, "b": None, "c": [1.0, None], "d": [None, 2.0]}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not valid JSON"),
        ('{"a": [1, 2', "not valid JSON"),
        ('{"a": NaN}', "NaN is not a JSON number"),
        ('{"a": -Infinity}', "-Infinity is not a JSON number"),
        ('{"a": 1} trailing', "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ('{"a":' * 700 + "1" + "}" * 700, "not valid JSON"),
    ],
)
def test_damaged_json(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(InputError, match=words) as caught:
        read_json(path)
    assert str(path) in str(caught.value)


def test_unreadable_json(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read_json(tmp_path / "missing.json")
    with pytest.raises(InputError, match="cannot be read"):
        read_json(tmp_path)
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(InputError, match="cannot be read"):
        read_json(tmp_path / "binary.json")


def test_every_truncation_is_noticed(tmp_path: Path) -> None:
    path = write_json({"schema": "x", "values": [1.25, 2.5], "name": "ä"}, tmp_path / "x.json")
    whole = path.read_bytes()
    for length in range(len(whole.rstrip())):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError):
            read_json(path)


# ------------------------------------------------------------------ arrays beside


def test_arrays_beside_round_trip(tmp_path: Path) -> None:
    one, two = np.random.default_rng(0).normal(size=(2, MANY))
    data = {
        "deep": {"one": one, "list": two.tolist()},
        "batch": np.stack([one, two]),
        "short": np.arange(3.0),
        "scalar": 1.0,
    }
    path = write_json(data, tmp_path / "x.json", devices=MANY)
    assert len(leftovers(tmp_path)) == 2
    raw = json.loads(path.read_text())
    assert raw["deep"]["one"] == {"npz": archive_of(path).name, "key": "deep.one"}
    assert raw["short"] == [0.0, 1.0, 2.0]
    back = read_json(path)
    assert np.array_equal(back["deep"]["one"], one)
    assert np.array_equal(back["deep"]["list"], two)
    assert np.array_equal(back["batch"], np.stack([one, two]))
    assert back["scalar"] == 1.0


def test_saving_again_replaces_the_pair(tmp_path: Path) -> None:
    for value in (1.0, 2.0, 3.0):
        path = write_json({"a": np.full(MANY, value)}, tmp_path / "x.json", devices=MANY)
        assert len(leftovers(tmp_path)) == 2
        assert read_json(path)["a"][0] == value
    write_json({"a": np.zeros(3)}, path)
    assert read_json(path) == {"a": [0.0, 0.0, 0.0]}


def test_a_save_cut_short_leaves_the_earlier_pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from jointopt import files

    path = write_json({"a": np.full(MANY, 1.0)}, tmp_path / "x.json", devices=MANY)
    real = files.atomic_write

    def cut(where: Any, write: Any) -> Path:
        if Path(where).suffix == ".json":
            raise KeyboardInterrupt
        return real(where, write)

    monkeypatch.setattr(files, "atomic_write", cut)
    with pytest.raises(KeyboardInterrupt):
        write_json({"a": np.full(MANY, 2.0)}, path, devices=MANY)
    assert read_json(path)["a"][0] == 1.0


def test_files_of_one_stem_keep_their_arrays(tmp_path: Path) -> None:
    paths = [
        write_json({"a": np.full(MANY, value)}, tmp_path / name, devices=MANY)
        for name, value in (("r.json", 1.0), ("r.txt", 2.0))
    ]
    assert [read_json(path)["a"][0] for path in paths] == [1.0, 2.0]


def test_no_npz_at_the_limit(tmp_path: Path) -> None:
    write_json({"a": np.zeros(ARRAYS_BESIDE)}, tmp_path / "x.json", devices=ARRAYS_BESIDE)
    assert leftovers(tmp_path) == ["x.json"]


def test_arrays_in_a_list_of_tables_stay_apart(tmp_path: Path) -> None:
    path = write_json({"l": [{"x": np.zeros(MANY)}, {"x": np.ones(MANY)}]}, tmp_path / "x.json", devices=MANY)
    back = read_json(path)
    assert back["l"][0]["x"][0] == 0.0
    assert back["l"][1]["x"][0] == 1.0


@pytest.mark.parametrize("entry", [{"text": "device 3: short"}, "word", [1, [2, 3]], None])
def test_lists_as_long_as_the_devices_that_are_no_numbers(tmp_path: Path, entry: Any) -> None:
    """As the reasons are when every device is infeasible."""
    path = write_json({"l": [entry] * MANY}, tmp_path / "x.json", devices=MANY)
    assert read_json(path) == {"l": [entry] * MANY}


def test_ragged_lists(tmp_path: Path) -> None:
    path = write_json({"l": [[1], [1, 2]]}, tmp_path / "x.json", devices=MANY)
    assert read_json(path) == {"l": [[1], [1, 2]]}


def test_json_named_npz_keeps_its_arrays(tmp_path: Path) -> None:
    path = write_json({"a": np.arange(float(MANY))}, tmp_path / "x.npz", devices=MANY)
    assert np.array_equal(read_json(path)["a"], np.arange(float(MANY)))


def test_damaged_npz(tmp_path: Path) -> None:
    path = write_json({"a": np.arange(float(MANY))}, tmp_path / "x.json", devices=MANY)
    archive = archive_of(path)
    whole = archive.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0xFF
    for damaged in (whole[: len(whole) // 2], whole[:10], b"", b"not an archive", bytes(flipped)):
        archive.write_bytes(damaged)
        with pytest.raises(InputError, match=r"\.npz: the array 'a' cannot be read"):
            read_json(path)
    archive.unlink()
    with pytest.raises(InputError, match=archive.name):
        read_json(path)


@pytest.mark.parametrize("key", ["nothing", 5, ["a"], None])
def test_missing_array(tmp_path: Path, key: Any) -> None:
    np.savez(tmp_path / "x.npz", a=np.zeros(3))
    (tmp_path / "x.json").write_text(json.dumps({"v": {"npz": "x.npz", "key": key}}))
    with pytest.raises(InputError, match="cannot be read"):
        read_json(tmp_path / "x.json")


def test_an_npz_elsewhere_is_not_followed(tmp_path: Path) -> None:
    np.savez(tmp_path / "secret.npz", a=np.zeros(3))
    inner = tmp_path / "inner"
    inner.mkdir()
    path = inner / "x.json"
    for name in ("../secret.npz", str(tmp_path / "secret.npz"), "..", "."):
        path.write_text(json.dumps({"v": {"npz": name, "key": "a"}}))
        with pytest.raises(InputError, match="cannot be read"):
            read_json(path)
    # the name beside is what is read instead
    np.savez(inner / "secret.npz", a=np.ones(3))
    path.write_text(json.dumps({"v": {"npz": "../secret.npz", "key": "a"}}))
    assert np.array_equal(read_json(path)["v"], np.ones(3))


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_no_pickle_is_loaded(tmp_path: Path) -> None:
    exploded = tmp_path / "exploded"
    np.savez(tmp_path / "x.npz", a=np.array([Bomb(exploded)], dtype=object), allow_pickle=True)
    (tmp_path / "y.npz").write_bytes(pickle.dumps(Bomb(exploded)))
    for name in ("x.npz", "y.npz"):
        (tmp_path / "x.json").write_text(json.dumps({"v": {"npz": name, "key": "a"}}))
        with pytest.raises(InputError, match="cannot be read"):
            read_json(tmp_path / "x.json")
    assert not exploded.exists()

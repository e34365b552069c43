"""The figure of many designs: three panels, one line per design, what was given and nothing else."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from jointopt.errors import InputError
from jointopt.plot.designs import LABELS, STYLE, designs
from jointopt.problems import DESIGNS
from jointopt.study.designs import REFERENCES
from jointopt.system import System


@pytest.fixture(autouse=True)
def no_warning() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        yield


def run(energy: float, top: float, rounds: int = 6) -> Any:
    rows = [
        {
            "cumulative_energy": energy * n,
            "cumulative_delay": 2.0 * n,
            "cumulative_bits": 4_000_000 * n,
            # every second round is evaluated
            "test_accuracy": None if n % 2 else top * n / rounds,
        }
        for n in range(1, rounds + 1)
    ]
    return SimpleNamespace(rows=rows)


@pytest.fixture
def runs() -> dict[str, list[Any]]:
    return {"ltfl": [run(1.0, 0.8), run(1.0, 0.6)], "fedsgd": [run(5.0, 0.9)]}


def test_lines_are_means_over_seeds_against_each_cost(runs: dict[str, list[Any]], tmp_path: Path) -> None:
    figure = designs(runs, mark={"energy": 6.0, "bits": 24e6}, title="A title")
    assert len(figure.axes) == 3
    energy, delay, data = figure.axes
    assert [axis.get_xlabel().split("[")[1] for axis in figure.axes] == ["J]", "s]", "MB]"]
    assert energy.get_ylabel() == "test accuracy [%]"
    assert [line.get_label() for line in energy.get_lines()[:2]] == [LABELS["ltfl"], LABELS["fedsgd"]]
    line = energy.get_lines()[0]
    assert line.get_xdata() == pytest.approx([2.0, 4.0, 6.0])
    assert line.get_ydata() == pytest.approx(100 * 0.7 * np.array([1, 2, 3]) / 3)
    assert delay.get_lines()[0].get_xdata() == pytest.approx([4.0, 8.0, 12.0])
    # a megabyte is 8e6 bits
    assert data.get_lines()[0].get_xdata() == pytest.approx([1.0, 2.0, 3.0])
    # the marker is at the end
    assert line.get_markevery() == [2]
    assert [axis.texts[0].get_text() if axis.texts else "" for axis in figure.axes] == [
        "compared at 6 J",
        "",
        "compared at 3 MB",
    ]
    # the range over seeds only where there are some
    assert len(energy.collections) == 1
    assert figure.legends[0].get_texts()[0].get_text() == LABELS["ltfl"]
    path = tmp_path / "figure.png"
    figure.savefig(path)
    assert path.stat().st_size > 1000


def test_what_was_never_evaluated_has_no_line(runs: dict[str, list[Any]]) -> None:
    for row in runs["fedsgd"][0].rows:
        row["test_accuracy"] = None
    figure = designs(runs, labels={"ltfl": "other words"})
    assert [line.get_label() for line in figure.axes[1].get_lines()] == ["other words"]


def test_the_ends_of_all_lines_are_in_sight(runs: dict[str, list[Any]]) -> None:
    figure = designs({**runs, "feel": [run(2.0, 0.1)]})
    low, high = figure.axes[0].get_ylim()
    ends = [line.get_ydata()[-1] for line in figure.axes[0].get_lines()]
    assert low < min(ends) and max(ends) < high


def test_a_running_mean_is_of_fewer_at_the_ends(runs: dict[str, list[Any]]) -> None:
    zigzag = run(1.0, 1.0, rounds=10)
    for row, value in zip([r for r in zigzag.rows if r["test_accuracy"]], [0.2, 0.8, 0.2, 0.8, 0.5], strict=True):
        row["test_accuracy"] = value
    axis = designs({"ltfl": [zigzag]}, smooth=3).axes[0]
    assert axis.get_lines()[0].get_ydata() == pytest.approx([50.0, 40.0, 60.0, 50.0, 65.0])
    assert "running mean of 3" in axis.get_ylabel()


def test_bad_input(runs: dict[str, list[Any]]) -> None:
    with pytest.raises(InputError, match=r"unknown mark 'enrgy'.*energy"):
        designs(runs, mark={"enrgy": 1.0})
    with pytest.raises(InputError, match=r"odd whole number.*found 2"):
        designs(runs, smooth=2)
    with pytest.raises(InputError, match="no run has an evaluated round"):
        designs({"ltfl": []})


def test_every_design_has_words_and_a_style_of_its_own() -> None:
    federated = [name for name, kind in DESIGNS.items() if kind.system_type is System]
    assert set(LABELS) == set(STYLE) == {*federated, *REFERENCES}
    assert len(set(LABELS.values())) == len(LABELS)
    # without colour they can still be told apart
    assert len({style["marker"] for style in STYLE.values()}) == len(STYLE)

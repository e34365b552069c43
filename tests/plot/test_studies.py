"""Figures of sweeps and of co-inference: the numbers given, and no line where there is none."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from jointopt import plot, systems
from jointopt.errors import InputError
from jointopt.inference import OutputDistortion, autoencoder, output_distortion
from jointopt.plot.figures import LABELS, STAGES, STYLE
from jointopt.problems import CoInference, LayerwiseCoInference
from jointopt.problems.feel import FEEL
from jointopt.result import Result
from jointopt.solvers import solve
from jointopt.study import carry_out, inference_system, split_values, sweep


@pytest.fixture(autouse=True)
def no_warning() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        yield


def drawn(figure: Any, folder: Path) -> None:
    path = folder / "figure.png"
    figure.savefig(path)
    assert path.stat().st_size > 1000


def legend(axis: Any) -> list[str]:
    return [text.get_text() for text in axis.get_legend().get_texts()]


@pytest.fixture(scope="module")
def split() -> Result:
    return solve(CoInference(systems.coinference(4, 3)))


# ------------------------------------------------------------------ decisions of further designs


def test_decision_with_a_selection(tmp_path: Path) -> None:
    result = solve(FEEL(systems.feel(4, 3)))
    figure = plot.decision(result)
    assert [axis.get_ylabel().split("\n")[0].split(" [")[0] for axis in figure.axes] == [
        "pruning ratio",
        "bandwidth",
        "processor",
        "transmit power",
        "budget used",
    ]
    assert "[kHz]" in figure.axes[1].get_ylabel()
    order = np.argsort(result.problem.system.radio.gain, kind="stable")
    assert result.decision is not None
    out = result.decision["selected"][order] < 0.5
    assert out.sum() == 1
    for axis in figure.axes:
        shaded = [p for p in axis.patches if p.get_width() == 1.0]
        assert [round(p.get_x() + 0.5) for p in shaded] == np.flatnonzero(out).tolist()
    bars = [p.get_height() for p in figure.axes[1].patches if p.get_width() < 1.0]
    expected = np.where(out, 0.0, result.decision["bandwidth"][order]) / 1e3
    assert bars == pytest.approx(expected.tolist())
    words = [text.get_text() for axis in figure.axes for text in axis.texts]
    assert "shaded: left out (1 of 4)" in words
    assert "all together: 100.0% of the total" in words
    drawn(figure, tmp_path)


def test_decision_with_stages(split: Result, tmp_path: Path) -> None:
    figure = plot.decision(split)
    assert len(figure.axes) == 7
    delay, energy = figure.axes[-2:]
    order = np.argsort(split.problem.system.link.gain, kind="stable")
    table = split.to_pandas().iloc[order]
    heights = np.array([bar.get_height() for bar in delay.patches]).reshape(3, 4)
    for row, stage in zip(heights, STAGES, strict=True):
        budget = split.problem.system.devices.delay_budget[order]
        assert row == pytest.approx(100 * table[f"{stage}_delay"].to_numpy() / budget)
    assert heights.sum(axis=0) == pytest.approx(100 * np.ones(4), rel=1e-6)
    assert legend(energy) == ["device", "uplink", "server"]
    drawn(figure, tmp_path)


@pytest.mark.parametrize("at", [0, 1, 8, 16])
def test_decision_by_layer(at: int, tmp_path: Path) -> None:
    problem = LayerwiseCoInference(systems.coinference(1, 3).with_(delay_budget=10.0, energy_budget=10.0))
    result = solve(problem.restrict(split=at))
    figure = plot.decision(result)
    assert result.decision is not None
    assert [bar.get_height() for bar in figure.axes[0].patches] == pytest.approx(
        result.decision["pruning_ratio"].tolist()
    )
    assert figure.axes[0].get_xlabel() == "layer"
    words = [text.get_text() for text in figure.axes[0].texts]
    assert ("on the device" in words) == (at > 0)
    assert ("on the server" in words) == (at < 16)
    assert "delay budget used [%]" in figure.axes[1].get_xlabel()
    drawn(figure, tmp_path)


# ------------------------------------------------------------------ trade-offs


def table(**columns: Any) -> pd.DataFrame:
    base = {"delay_budget": [0.2, 0.1, 0.2, 0.1, 0.1], "method": ["exact", "exact", "random", "random", "mine"]}
    return pd.DataFrame({**base, "value": [1.0, 3.0, np.nan, 4.0, np.nan], **columns})


def test_tradeoff(tmp_path: Path) -> None:
    figure = plot.tradeoff(table(), "delay_budget", ylabel="gap", labels={"mine": "my own"}, title="T")
    (axis,) = figure.axes
    assert axis.get_xlabel() == "delay budget (mean over devices) [ms]"
    assert (axis.get_ylabel(), axis.get_title(), axis.get_yscale()) == ("gap", "T", "linear")
    assert legend(axis) == [LABELS["exact"], LABELS["random"], "my own (never feasible)"]
    exact = axis.lines[0]
    assert exact.get_xdata() == pytest.approx([100.0, 200.0])
    assert exact.get_ydata() == pytest.approx([3.0, 1.0])
    assert exact.get_color() == STYLE["exact"]["color"]
    assert np.isnan(axis.lines[1].get_ydata()[1])
    drawn(figure, tmp_path)


def test_tradeoff_shows_zeros_on_a_logarithmic_axis(tmp_path: Path) -> None:
    figure = plot.tradeoff(table(value=[0.0, 3.0, np.nan, 6.0, 3.0]), "delay_budget", log=True)
    (axis,) = figure.axes
    assert axis.get_yscale() == "log"
    assert axis.get_ylim()[0] == pytest.approx(1.0)
    assert [text.get_text() for text in axis.texts] == ["markers on the lower edge: 0"]
    edge, line = axis.lines[:2]
    assert (list(edge.get_xdata()), list(edge.get_ydata())) == (pytest.approx([200.0]), pytest.approx([1.0]))
    assert np.isnan(line.get_ydata()[1])
    drawn(figure, tmp_path)
    # nothing at all can be drawn either
    drawn(plot.tradeoff(table(value=[np.nan] * 5), "delay_budget", log=True), tmp_path)


def test_tradeoff_of_nothing() -> None:
    with pytest.raises(InputError, match="did you mean 'delay_budget'"):
        plot.tradeoff(table(), "delay_budgt")
    with pytest.raises(InputError, match="no column 'cost'"):
        plot.tradeoff(table(), "delay_budget", "cost")
    with pytest.raises(InputError, match="is empty"):
        plot.tradeoff(table().iloc[:0], "delay_budget")


def test_tradeoff_of_a_sweep(tmp_path: Path) -> None:
    frame = sweep(FEEL(systems.feel(3, 0)), "total_bandwidth", [0.5, 1.0])
    (axis,) = plot.tradeoff(frame, "total_bandwidth").axes
    assert axis.get_xlabel() == "total bandwidth [kHz]"
    drawn(axis.figure, tmp_path)


# ------------------------------------------------------------------ splits


@pytest.mark.parametrize("y", ["pruning_ratio", "distortion"])
def test_splits(split: Result, tmp_path: Path, y: str) -> None:
    frame = split_values(split.problem)
    figure = plot.splits(frame, y=y)
    values, grid = figure.axes
    assert values.get_yscale() == ("log" if y == "distortion" else "linear")
    assert legend(values) == [f"device {u}" for u in range(4)]
    circles = [line for line in grid.lines if line.get_markersize() == 11]
    assert split.decision is not None
    # the best of every device is what the design chose
    assert [line.get_xdata()[0] for line in circles] == split.decision["split"].tolist()
    crosses = sum(len(line.get_xdata()) for line in grid.lines if line.get_marker() == "x")
    assert crosses == int((~frame["feasible"]).sum()) > 0
    drawn(figure, tmp_path)


def test_splits_of_nothing(split: Result) -> None:
    with pytest.raises(InputError, match="no column"):
        plot.splits(pd.DataFrame({"split": [1], "device": [0]}))
    frame = split_values(CoInference(systems.coinference(2, 0, tightness=100.0)))
    assert not frame["feasible"].any()
    plot.splits(frame)


# ------------------------------------------------------------------ real networks


@pytest.fixture(scope="module")
def carried() -> Any:
    network = autoencoder(12, 0, encoder=(16, 8), input_levels=255)
    system = inference_system(network, 3, 1)
    decision = {"pruning_ratio": [0.0, 0.3, 0.6], "split": [0.0, 2.0, 4.0]}
    inputs = torch.randint(0, 256, (10, 12), generator=torch.Generator().manual_seed(0)).float() / 255
    return network, system, inputs, carry_out(decision, network, inputs, system=system)


def test_carried_out(carried: Any, tmp_path: Path) -> None:
    _, _, _, report = carried
    figure = plot.carried_out(report)
    bits, distortion, quality = figure.axes
    heights = [bar.get_height() for bar in bits.patches]
    assert heights[:3] == pytest.approx(report.planned_bits.tolist())
    assert heights[3:] == pytest.approx(report.sent_bits.tolist())
    assert distortion.get_yscale() == "log"
    assert [text.get_text() for text in distortion.texts] == ["none"]
    assert [bar.get_height() for bar in quality.patches] == pytest.approx(report.quality["psnr"].tolist())
    assert quality.get_ylabel() == "PSNR [dB]"
    drawn(figure, tmp_path)


def test_distortion(carried: Any, tmp_path: Path) -> None:
    network, system, inputs, _ = carried
    measured = output_distortion(network, inputs, [0.2, 0.5], calibration=2)
    figure = plot.distortion(measured, network=system.network)
    output, parameters = figure.axes
    assert output.get_yscale() == "log"
    assert output.lines[0].get_ydata() == pytest.approx(measured.bound)
    assert output.lines[3].get_ydata() == pytest.approx(measured.worst)
    assert parameters.lines[0].get_ydata() == pytest.approx(measured.parameter)
    assert legend(parameters) == ["measured", "formula for Laplace weights", "curve of the scenario"]
    # the scenario's curve goes through what was measured
    curve = parameters.lines[2]
    at = np.interp(measured.ratios, curve.get_xdata(), curve.get_ydata())
    assert at == pytest.approx(measured.parameter, rel=0.05)
    assert all("pruning ratio" in axis.get_xlabel() for axis in figure.axes)
    drawn(figure, tmp_path)


def test_distortion_without_a_bound(tmp_path: Path) -> None:
    none = np.full(2, np.nan)
    measured = OutputDistortion(np.array([0.1, 0.2]), np.ones(2), np.ones(2), np.ones(2), none, none)
    output, parameters = plot.distortion(measured).axes
    assert legend(output) == ["measured, worst input", "measured, mean over inputs"]
    assert legend(parameters) == ["measured"]

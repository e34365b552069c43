"""Figures show the numbers they were given, with axes that say what they are."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

import jointopt as jo
from jointopt import plot, systems
from jointopt.errors import InputError
from jointopt.plot.figures import LABELS, STYLE, _prefix
from jointopt.problems import DESIGNS
from jointopt.problems.ltfl import LTFL
from jointopt.result import Result
from jointopt.solvers import methods, solve


@pytest.fixture(autouse=True)
def nothing_global() -> Iterator[None]:
    """No pyplot figure is ever opened, nothing is warned of, and the figure can be drawn."""
    import matplotlib

    before = dict(matplotlib.rcParams)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        yield
    if "matplotlib.pyplot" in sys.modules:
        assert sys.modules["matplotlib.pyplot"].get_fignums() == []
    assert dict(matplotlib.rcParams) == before


@pytest.fixture(scope="module")
def result() -> Result:
    return solve(LTFL(systems.ltfl(6, 0)))


def heights(axis: Any) -> list[float]:
    return [bar.get_height() for bar in axis.patches]


def legend(axis: Any) -> list[str]:
    return [text.get_text() for text in axis.get_legend().get_texts()]


def drawn(figure: Figure, folder: Path) -> None:
    path = folder / "figure.png"
    figure.savefig(path)
    assert path.stat().st_size > 1000


# ------------------------------------------------------------------ decision


def test_decision(result: Result, tmp_path: Path) -> None:
    figure = plot.decision(result)
    assert len(figure.axes) == 4
    system = result.problem.system
    order = np.argsort(system.radio.gain, kind="stable")
    table = result.to_pandas().iloc[order]
    ratio, bits, power, use = figure.axes
    assert heights(ratio) == pytest.approx(table["pruning_ratio"].to_numpy())
    assert heights(bits) == pytest.approx(table["bits"].to_numpy())
    assert power.get_ylabel() == "transmit power [mW]"
    assert heights(power) == pytest.approx(1e3 * table["power"].to_numpy())
    budgets = {
        "delay": table["delay"].to_numpy() / system.devices.delay_budget[order],
        "energy": table["energy"].to_numpy() / system.devices.energy_budget[order],
    }
    assert heights(use)[:6] == pytest.approx(100 * budgets["delay"])
    assert heights(use)[6:] == pytest.approx(100 * budgets["energy"])
    assert legend(use) == ["delay", "energy"]
    assert use.get_ylabel() == "budget used [%]"
    assert "device" in use.get_xlabel()
    assert [t.get_text() for t in use.get_xticklabels()] == [str(u) for u in order]
    assert "pruning ratio" in ratio.get_ylabel()
    assert "bits" in bits.get_ylabel()
    # the range of powers allowed
    assert [line.get_ydata().tolist() for line in power.lines] == [
        pytest.approx([100.0] * 6),
        pytest.approx([10.0] * 6),
    ]
    title = figure.get_suptitle()
    assert f"value {result.value:.4g}" in title
    assert "certified gap" in title
    assert plot.decision(result, title="mine").get_suptitle() == "mine"
    drawn(figure, tmp_path)


def test_bars_fit_into_their_axes(result: Result) -> None:
    for axis in plot.decision(result).axes:
        low, high = axis.get_ylim()
        assert low <= 0.0
        assert max(heights(axis)) <= high


def test_decision_without_value(tmp_path: Path) -> None:
    infeasible = solve(LTFL(systems.ltfl(3, 0, tightness=20.0)))
    figure = plot.decision(infeasible)
    assert figure.get_suptitle() == "ltfl, exact: infeasible"
    assert max(heights(figure.axes[3])) > 100.0
    assert max(heights(figure.axes[3])) <= figure.axes[3].get_ylim()[1]
    drawn(figure, tmp_path)


@pytest.mark.parametrize("devices", [1, 50])
def test_decision_of_one_and_of_many(devices: int, tmp_path: Path) -> None:
    figure = plot.decision(solve(LTFL(systems.ltfl(devices, 1))))
    assert len(heights(figure.axes[0])) == devices
    drawn(figure, tmp_path)


def test_decision_of_a_restricted_problem(tmp_path: Path) -> None:
    figure = plot.decision(solve(LTFL(systems.ltfl(3, 0)), method="no_power_control"))
    assert heights(figure.axes[2]) == pytest.approx([100.0] * 3)
    drawn(figure, tmp_path)


def test_decision_of_nothing() -> None:
    none = solve(LTFL(systems.ltfl(3, 0, tightness=50.0)), method="uniform")
    with pytest.raises(InputError, match="holds no decision"):
        plot.decision(none)


# ------------------------------------------------------------------ accuracy


def run(accuracies: list[float | None], energy: float = 0.1, delay: float = 2.0) -> SimpleNamespace:
    rows = [
        {
            "round": k + 1,
            "test_accuracy": a,
            "cumulative_energy": energy * (k + 1),
            "cumulative_delay": delay * (k + 1),
        }
        for k, a in enumerate(accuracies)
    ]
    return SimpleNamespace(rows=rows)


def test_accuracy_against_energy(tmp_path: Path) -> None:
    runs = {
        "exact": [run([0.1, None, 0.5], energy=1e-3), run([0.3, None, 0.7], energy=1e-3)],
        "mine": [run([0.2, None, 0.4], energy=2e-3)],
    }
    figure = plot.accuracy(runs, mark=2.5e-3, labels={"mine": "my own"}, title="T")
    (axis,) = figure.axes
    assert axis.get_xlabel() == "energy spent by all devices [mJ]"
    assert axis.get_ylabel() == "test accuracy [%]"
    assert axis.get_xscale() == "log"
    assert axis.get_title() == "T"
    exact, mine, mark = axis.lines
    assert exact.get_xdata() == pytest.approx([1.0, 3.0])
    assert exact.get_ydata() == pytest.approx([20.0, 60.0])
    assert exact.get_color() == STYLE["exact"]["color"]
    assert mine.get_xdata() == pytest.approx([2.0, 6.0])
    assert mine.get_ydata() == pytest.approx([20.0, 40.0])
    assert list(mark.get_xdata()) == pytest.approx([2.5, 2.5])
    assert legend(axis) == [LABELS["exact"], "my own"]
    # the range over seeds, where there is more than one
    (band,) = axis.collections
    corners = band.get_paths()[0].vertices
    assert corners[:, 1].min() == pytest.approx(10.0)
    assert corners[:, 1].max() == pytest.approx(70.0)
    drawn(figure, tmp_path)


def test_accuracy_against_delay_and_rounds() -> None:
    for delay, unit, factor in ((1e-6, "µs", 1e-6), (2.0, "s", 1.0), (1e6, "Ms", 1e6)):
        runs = {"exact": [run([0.1, 0.5, 0.9], delay=delay)]}
        (axis,) = plot.accuracy(runs, against="delay", mark=delay).axes
        assert axis.get_xlabel() == f"time passed [{unit}]"
        for line, expected in zip(axis.lines, ([1, 2, 3], [1, 1]), strict=True):
            assert list(line.get_xdata()) == pytest.approx([x * delay / factor for x in expected])
    (axis,) = plot.accuracy(runs, against="rounds").axes
    assert axis.get_xlabel() == "round"
    assert axis.get_xscale() == "linear"
    assert axis.lines[0].get_xdata() == pytest.approx([1, 2, 3])
    assert len(axis.lines) == 1


def test_accuracy_of_runs_of_different_lengths() -> None:
    (axis,) = plot.accuracy({"exact": [run([0.1, 0.5, 0.9]), run([0.3, 0.5])]}, against="rounds").axes
    assert axis.lines[0].get_ydata() == pytest.approx([20.0, 50.0])


def test_accuracy_on_a_given_axis() -> None:
    figure = Figure()
    axis = figure.subplots()
    assert plot.accuracy({"exact": [run([0.1, 0.2])]}, axis=axis) is figure
    assert len(axis.lines) == 1


def test_accuracy_leaves_out_what_was_never_evaluated() -> None:
    (axis,) = plot.accuracy({"exact": [run([0.1])], "random": [run([None])], "fixed": []}).axes
    assert legend(axis) == [LABELS["exact"]]


@pytest.mark.parametrize("runs", [{}, {"exact": []}, {"exact": [run([])]}, {"exact": [run([None, None])]}])
def test_accuracy_of_nothing(runs: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="no run has an evaluated round"):
        plot.accuracy(runs)


def test_accuracy_against_something_else() -> None:
    with pytest.raises(InputError, match="against='power'"):
        plot.accuracy({"exact": [run([0.1])]}, against="power")  # type: ignore[arg-type]


# ------------------------------------------------------------------ convergence


def test_convergence(result: Result, tmp_path: Path) -> None:
    asked = result.problem
    random = solve(asked, method="random")
    searched = replace(
        random,
        history=[
            {"evaluation": 1.0, "value": 1.0, "violation": 0.5, "seconds": 0.0},
            {"evaluation": 2.0, "value": 500.0, "violation": 0.0, "seconds": 0.0},
            {"evaluation": 3.0, "value": 700.0, "violation": 0.0, "seconds": 0.0},
            {"evaluation": 4.0, "value": 400.0, "violation": 0.0, "seconds": 0.0},
        ],
        value=400.0,
    )
    figure = plot.convergence({"exact": result, "bayesian": searched, "random": random, "mine": random}, title="T")
    (axis,) = figure.axes
    assert axis.get_xlabel() == "evaluations"
    assert "value found" in axis.get_ylabel()
    assert axis.get_title() == "T"
    assert legend(axis) == [
        LABELS["exact"],
        LABELS["bayesian"],
        LABELS["random"],
        "mine",
        "certified lower bound",
    ]
    exact, steps, line, mine, bound = axis.lines
    assert set(exact.get_ydata()) == {result.value}
    assert steps.get_xdata().tolist() == [2.0, 3.0, 4.0]
    assert steps.get_ydata().tolist() == [500.0, 500.0, 400.0]
    assert set(line.get_ydata()) == set(mine.get_ydata()) == {random.value}
    assert set(bound.get_ydata()) == {result.lower_bound}
    drawn(figure, tmp_path)


def test_convergence_leaves_out_what_found_nothing(result: Result) -> None:
    none = solve(LTFL(systems.ltfl(3, 0, tightness=50.0)), method="uniform")
    (axis,) = plot.convergence({"exact": result, "uniform": none}).axes
    assert legend(axis) == [LABELS["exact"], "certified lower bound"]


def test_convergence_of_nothing() -> None:
    with pytest.raises(InputError, match="no results"):
        plot.convergence({})


# ------------------------------------------------------------------ words and colours


@pytest.mark.parametrize("design", DESIGNS)
def test_every_method_has_a_label_and_a_colour_of_its_own(design: str) -> None:
    kind = DESIGNS[design]
    known = set(methods(kind(kind.sample(seed=0))))
    assert known <= set(STYLE)
    assert known <= set(LABELS)
    # within a design by colour alone, save one pair of FEEL's and of co-inference's
    assert len({STYLE[name]["color"] for name in known}) >= len(known) - 1
    assert len({(style["color"], style.get("linestyle")) for style in STYLE.values()}) == len(STYLE)
    assert len(set(LABELS.values())) == len(LABELS)


@pytest.mark.parametrize(
    ("largest", "expected"),
    [
        (0.1, (1e-3, "m")),
        (1.0, (1.0, "")),
        (999.0, (1.0, "")),
        (5e4, (1e3, "k")),
        (2e-7, (1e-9, "n")),
        (0.0, (1e-9, "n")),
    ],
)
def test_prefix(largest: float, expected: tuple[float, str]) -> None:
    assert _prefix(largest) == expected


def test_notebooks_show_a_figure() -> None:
    """A notebook asks an object for its picture; figures made without pyplot have none of their own."""
    result = jo.solve(jo.problems.LTFL(jo.systems.ltfl(devices=2, seed=0)))
    assert jo.plot.decision(result)._repr_png_().startswith(b"\x89PNG")

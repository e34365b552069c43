"""Figures of fronts: what they say about points, proofs and units."""

import numpy as np
import pytest

from jointopt.errors import InputError
from jointopt.plot.fronts import fronts
from jointopt.study.front import Front


def front(method="exact", objectives=("objective", "worst delay"), units=("", "s"), gaps=(1e-9, 1e-9, 1e-9)):
    size = len(objectives)
    values = np.array([[1.0, 0.3, 5.0], [2.0, 0.2, 4.0], [3.0, 0.1, 6.0]])[:, :size]
    certified = gaps[0] is not None
    return Front(
        None,
        method,
        objectives,
        units,
        values,
        (),
        gaps=gaps,
        lower_bounds=gaps,
        excluded=np.array([[1.0, np.inf], [2.0, 0.2], [np.inf, 0.1]])
        if certified and size == 2
        else np.empty((0, size)),
        ideal=np.array([1.0, 0.1, 4.0])[:size],
        reference=np.array([3.2, 0.32, 6.2])[:size],
    )


NONE = (None, None, None)


def test_labels_units_and_certificates():
    figure = fronts({"exact": front(), "nsga2": front("nsga2", gaps=NONE)}, reference=True)
    (axis,) = figure.axes
    assert axis.get_xlabel() == "worst delay [ms]"
    assert axis.get_ylabel() == "objective"
    texts = [t.get_text() for t in axis.get_legend().get_texts()]
    assert any("certified (3 points, gaps up to 1e-09)" in t for t in texts)
    assert any(t == "NSGA-II (3 points)" for t in texts)
    assert "proved: no decision there" in texts
    assert "reference point" in texts
    marked = [line for line in axis.lines if line.get_linestyle() == "None" and len(line.get_xdata()) == 3]
    filled, hollow = (line.get_markerfacecolor() for line in marked)
    assert filled != "white"
    assert hollow == "white"


def test_what_is_proved_is_shaded():
    figure = fronts(front())
    (axis,) = figure.axes
    shade = axis.collections[0].get_paths()[0]
    # between two points, below the bound of the right one
    assert shade.contains_point((150.0, 1.9))
    assert not shade.contains_point((150.0, 2.1))
    # below the least delay, however high
    assert shade.contains_point((99.0, 3.05))
    assert not shade.contains_point((250.0, 1.1))


def test_without_proof_nothing_is_shaded():
    figure = fronts(front("nsga2", gaps=NONE))
    assert not figure.axes[0].collections


def test_three_objectives():
    shown = front(objectives=("objective", "worst delay", "worst energy"), units=("", "s", "J"))
    figure = fronts({"a": shown, "b": front("nsga2", shown.objectives, shown.units, NONE)}, log=("worst energy",))
    left, right, bar = figure.axes
    assert left.get_xlabel() == "worst delay [ms]"
    assert left.get_ylabel() == "worst energy [J]"
    assert bar.get_ylabel() == "objective"
    assert "ringed: certified" in left.get_title()
    assert "not certified" in right.get_title()


def test_a_front_without_points_is_named():
    empty = Front(None, "nsga2", ("objective", "worst delay"), ("", "s"), np.empty((0, 2)), ())
    texts = [t.get_text() for t in fronts({"exact": front(), "nsga2": empty}).axes[0].get_legend().get_texts()]
    assert "NSGA-II: no point" in texts
    with pytest.raises(InputError, match="no point to draw"):
        fronts(empty)


def test_bad_input():
    with pytest.raises(InputError, match="'b' is about"):
        fronts({"a": front(), "b": front(objectives=("objective", "worst energy"), units=("", "J"))})
    with pytest.raises(InputError, match="unknown objective 'delay'"):
        fronts(front(), log=("delay",))
    with pytest.raises(InputError, match="no point"):
        fronts({})


def test_logarithmic_axes_and_method():
    figure = front().plot(log=("objective",), title="a title")
    assert figure.axes[0].get_yscale() == "log"
    assert figure.get_suptitle() == "a title"

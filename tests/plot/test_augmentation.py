"""Figures of synthetic samples say what is in their tables."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from jointopt.errors import InputError
from jointopt.federated import ClassGradientGaps
from jointopt.plot import energies_to_target, gradient_gaps, levels


def test_levels_shade_what_is_out_of_reach() -> None:
    frame = pd.DataFrame(
        {
            "augmentation_level": [0.0, 0.5, 1.0],
            "rounds": [np.inf, 200.0, 150.0],
            "generation": [np.nan, 0.1, 0.3],
            "computing": [np.nan, 1.0, 0.9],
            "upload": [np.nan, 2.0, 1.5],
        }
    )
    figure = levels(frame)
    top, bottom = figure.axes
    assert "J" in top.get_ylabel() and "rounds" in bottom.get_ylabel()
    assert bottom.lines[0].get_xdata().tolist() == [0.5, 1.0]
    # the least energy is at the last level
    assert top.lines[0].get_xdata().tolist() == [1.0]
    with pytest.raises(InputError, match="rounds"):
        levels(frame.drop(columns="rounds"))


def test_energies_to_target_are_means_over_those_who_arrive() -> None:
    rows = [
        {"alpha": 0.3, "participation": rate, "seed": seed, "method": method, "energy": energy}
        for rate in (0.1, 1.0)
        for method, energies in (("exact", (1.0, 3.0)), ("fedsgd", (20.0, np.nan)))
        for seed, energy in enumerate(energies)
    ]
    figure = energies_to_target(pd.DataFrame(rows), accuracy=0.9)
    axis = figure.axes[0]
    assert sorted(round(bar.get_height(), 6) for bar in axis.patches) == [2.0, 2.0, 20.0, 20.0]
    assert any("1/2" in text.get_text() for text in axis.texts)
    assert "90%" in axis.get_ylabel()
    with pytest.raises(InputError, match="energy"):
        energies_to_target(pd.DataFrame(rows).drop(columns="energy"), accuracy=0.9)


def test_gradient_gaps_show_the_noise_beside() -> None:
    rng = np.random.default_rng(0)
    shape = (4, 3)
    gaps = ClassGradientGaps(
        real=1.0 + rng.random(shape),
        gap=0.2 + 0.1 * rng.random(shape),
        held_out_gap=np.full(shape, np.nan),
        loss=np.ones(4),
        samples=np.full(3, 10),
        class_counts=np.ones((2, 3), dtype=np.int64),
        operations_per_sample=1.0,
    )
    figure = gradient_gaps(gaps)
    # without held-out samples there is no line for them
    assert len(figure.axes[0].lines) == 2
    assert figure.axes[0].get_yscale() == "log"

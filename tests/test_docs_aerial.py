"""Documentation of learning in the air that must stay true."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

import jointopt as jo
from jointopt.problems import Aerial, AerialTrajectory
from jointopt.system import AerialSystem, Bound
from jointopt.system.aerial import AirLink, Area, Flight, OnlineBound, Sensing, Vehicles

DOCS = Path(__file__).resolve().parent.parent / "docs"


@pytest.mark.parametrize("section", [Vehicles, Area, Sensing, AirLink, OnlineBound, Flight])
def test_every_scenario_field_is_documented(section: type) -> None:
    text = (DOCS / "scenario_aerial.md").read_text(encoding="utf-8")
    part = text.split(f"## `[{section.title}]`")[1].split("\n## ")[0]  # type: ignore[attr-defined]
    rows = dict(re.findall(r"^\| `(\w+)` \| [^|]*\| [^|]*\|([^|]*)\|", part, flags=re.M))
    fields = dict(section.model_fields)  # type: ignore[attr-defined]
    if section is OnlineBound:
        fields = {name: field for name, field in fields.items() if name not in Bound.model_fields}
    assert set(rows) == set(fields)
    for name, default in rows.items():
        assert (default.strip() == "required") == fields[name].is_required(), name
        try:
            stated = float(default)
        except ValueError:
            continue
        assert stated == pytest.approx(float(fields[name].default), rel=1e-5), name


def test_the_example_scenario_is_solved() -> None:
    system = AerialSystem.from_toml(DOCS / "scenario_aerial.toml")
    assert (len(system), system.area.slots, system.sensing.classes) == (2, 4, 3)
    assert system.vehicles.power[0] == pytest.approx(0.2, rel=3e-3)
    problem = Aerial(system)
    result = jo.solve(problem)
    assert result.status == "optimal" and result.gap is not None and result.gap <= 1e-9
    assert result.decision is not None
    # worth showing: something is pruned, and levels differ
    assert result.decision["pruning_ratio"].max() > 0.0
    assert np.unique(result.decision["levels"][problem.active.ravel()]).size > 1
    ways = AerialTrajectory(system, points=20)
    flown = jo.solve(ways)
    assert flown.status == "optimal" and flown.decision is not None
    better = system.flown(ways.trajectory(flown.decision))
    assert better.arrivals.sum() > system.arrivals.sum()

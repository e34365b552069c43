"""Documentation that must stay true."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

import jointopt as jo
from jointopt.system import (
    Augmentation,
    Bound,
    Devices,
    Edges,
    Generalization,
    Learner,
    Radio,
    Target,
    Tiers,
    Tradeoff,
)

SECTIONS = [Devices, Radio, Learner, Bound, Generalization, Augmentation, Target, Tiers, Tradeoff, Edges]

DOCS = Path(__file__).resolve().parent.parent / "docs"


@pytest.mark.parametrize("section", SECTIONS)
def test_every_scenario_field_is_documented(section: type) -> None:
    text = (DOCS / "scenario.md").read_text(encoding="utf-8")
    heading = f"## `[{section.__name__.lower()}]`"
    part = text.split(heading)[1].split("\n## ")[0]
    documented = set(re.findall(r"^\| `(\w+)` \|", part, flags=re.M))
    assert documented == set(section.model_fields)


def test_the_example_scenario_is_solved() -> None:
    system = jo.System.from_toml(DOCS / "scenario.toml")
    assert len(system) == 3
    assert system.devices.power_max[0] == pytest.approx(0.1)
    assert system.radio.reference_gain == pytest.approx(1e-3)
    result = jo.solve(jo.problems.LTFL(system))
    assert result.status == "optimal"


def test_every_key_of_a_saved_result_is_documented() -> None:
    text = (DOCS / "files.md").read_text(encoding="utf-8")
    result = jo.solve(jo.problems.LTFL(jo.systems.ltfl(devices=2, seed=0)))
    missing = [key for key in result.to_dict() if f"`{key}`" not in text]
    assert not missing


def test_the_example_scenario_of_a_shared_band_is_solved() -> None:
    system = jo.System.from_toml(DOCS / "scenario_feel.toml")
    assert system.generalization is not None
    result = jo.solve(jo.problems.FEEL(system))
    assert result.status == "optimal"
    assert result.decision is not None
    # a real choice: the band does not do for everyone's dense model
    assert result.decision["pruning_ratio"].max() > 0.0 or result.decision["selected"].min() == 0.0


def test_the_example_scenario_of_a_target_is_solved() -> None:
    result = jo.solve(jo.problems.FedDPQ(jo.System.from_toml(DOCS / "scenario_feddpq.toml")))
    assert result.status == "optimal"
    assert result.decision is not None
    # a real choice: some samples are synthetic, some weights removed, some powers between their limits
    level, ratio, power = (result.decision[name] for name in ("augmentation_level", "pruning_ratio", "power"))
    assert 0.0 < level[0] <= 1.0
    assert np.any((ratio > 0.0) & (ratio < 0.9)) and np.any((power > 0.0101) & (power < 0.099))


@pytest.mark.parametrize("name", ["pool", "deadline", "fairness"])
def test_worked_examples_are_those_of_the_notebooks_and_short(name: str) -> None:
    """The code in the text is what the notebook, executed in CI, runs."""
    notebook = (DOCS.parent / "notebooks" / f"{name}.py").read_text(encoding="utf-8")
    cells = [re.sub(r"^# %%.*", "", cell).strip() for cell in re.split(r"^(?=# %%)", notebook, flags=re.M)]
    declared = next(cell for cell in cells if cell.startswith("system = "))
    text = (DOCS / "declared.md").read_text(encoding="utf-8")
    block = next(b for b in re.findall(r"```python\n(.*?)```", text, flags=re.S) if declared in b)
    assert len(block.strip().splitlines()) < 40


def test_the_problem_declared_in_the_read_me_is_solved() -> None:
    text = (DOCS.parent / "README.md").read_text(encoding="utf-8")
    block = next(b for b in re.findall(r"```python\n(.*?)```", text, flags=re.S) if "def model" in b)
    names = {"jo": jo, "np": np, "system": jo.systems.ltfl(devices=20, seed=0)}
    exec(block, names)
    result = names["result"]
    assert isinstance(result, jo.Result)
    assert result.feasible and result.gap is not None and result.gap < 0.02

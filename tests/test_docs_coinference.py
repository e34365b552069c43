"""Documentation of co-inference that must stay true."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

import jointopt as jo
from jointopt.problems import CoInference
from jointopt.system import InferenceDevices, InferenceSystem, Link, Network, Server

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"


@pytest.mark.parametrize(
    ("heading", "section"),
    [("devices", InferenceDevices), ("server", Server), ("link", Link), ("network", Network)],
)
def test_every_scenario_field_is_documented(heading: str, section: type) -> None:
    text = (DOCS / "scenario_inference.md").read_text(encoding="utf-8")
    part = text.split(f"## `[{heading}]`")[1].split("\n## ")[0]
    rows = dict(re.findall(r"^\| `(\w+)` \| [^|]*\| [^|]*\|([^|]*)\|", part, flags=re.M))
    assert set(rows) == set(section.model_fields)
    for name, default in rows.items():
        field = section.model_fields[name]
        assert (default.strip() == "required") == field.is_required(), name
        try:
            stated = float(default)
        except ValueError:
            continue
        assert stated == pytest.approx(float(field.default), rel=1e-5), name


def test_the_example_scenario_is_solved() -> None:
    system = InferenceSystem.from_toml(DOCS / "scenario_inference.toml")
    assert len(system) == 2
    assert system.devices.power_max[0] == pytest.approx(0.2, rel=3e-3)
    assert system.network.cut_bits.tolist() == [6.3e6, 2e6, 1e6, 2e6, 0.0]
    assert system.link.gain.tolist() == pytest.approx([1e-10, 10**-9.5])
    result = jo.solve(CoInference(system))
    assert result.status == "optimal"
    assert result.gap is not None and result.gap <= 1e-9
    assert result.decision is not None
    # worth showing: something is pruned, and a split lies inside the network
    assert np.all(result.decision["pruning_ratio"] > 0.0)
    assert np.any((result.decision["split"] > 0) & (result.decision["split"] < 4))


def test_labels_used_by_the_code_are_in_the_theory() -> None:
    theory = (DOCS / "theory.md").read_text(encoding="utf-8").split("Co-inference (section 4)")[1].split("\n## ")[0]
    sources = [
        *(ROOT / "jointopt" / "problems").glob("coinference*.py"),
        *(ROOT / "jointopt" / "inference").glob("*.py"),
        *(ROOT / "jointopt" / "models").glob("[di][in][sf]*.py"),
    ]
    used = {label for path in sources for label in re.findall(r"\b4[a-g]\b", path.read_text(encoding="utf-8"))}
    assert used
    assert used <= set(re.findall(r"\*\*(4[a-g])\b", theory))


def test_figures_in_the_document_are_those_of_the_results() -> None:
    results = json.loads((ROOT / "results" / "coinference.json").read_text(encoding="utf-8"))
    text = (DOCS / "coinference.md").read_text(encoding="utf-8")
    for label, found in results["budgets"].items():
        row = next(line for line in text.splitlines() if line.startswith(f"| {label} |"))
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert cells[1] == f"{found['feasible']} of {found['points']}"
        inside = sum(n for k, n in found["joint_splits"].items() if 0 < int(k) < found["layers"])
        assert cells[2] == str(inside)
    for image in re.findall(r"\]\((\.\./results/[^)]+)\)", text):
        assert (DOCS / image).resolve().is_file()

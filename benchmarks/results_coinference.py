"""Co-inference on trained networks: what the joint design gains, and which published claims hold.

``python benchmarks/results_coinference.py`` regenerates ``results/coinference*`` (networks are trained once and kept in
``results/runs``, as are finished measurements; ``--again`` measures anew, ``--short`` takes the digits alone).

Every (deadline, energy budget) is one device of one system, so that a grid of budgets is solved at once.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

import jointopt as jo
from jointopt import inference
from jointopt.decision import Decision
from jointopt.errors import DataError, MissingExtraError
from jointopt.files import atomic_write
from jointopt.models.distortion import magnitude_distortion
from jointopt.problems import CoInference, LayerwiseCoInference
from jointopt.system import InferenceDevices, InferenceSystem, Link, Network

ROOT = Path(__file__).resolve().parent.parent
METHODS = ("exact", "all_on_device", "all_on_server", "fixed_frequency", "fixed_power", "random")
LABELS = {
    "exact": "joint design",
    "all_on_device": "all on device",
    "all_on_server": "all on server",
    "fixed_frequency": "fixed frequency",
    "fixed_power": "fixed power",
    "random": "random feasible (400)",
}
IMAGES = 1000
"""Images of one inference: a single one takes microseconds. Loads, bits and both budgets scale with it together."""
RATIOS = tuple(round(0.05 * i, 2) for i in range(1, 20))
NEAR = 1.0
"""A network is called usable within this many dB of the dense one (MiniLM: within 0.05 of Spearman 1)."""


@dataclass(frozen=True)
class Setting:
    """Constants that are not those of `InferenceDevices` and `Server` [C], and the grid of budgets."""

    frequency: float
    flops_per_cycle: float
    gain: float
    delay: tuple[float, ...]
    energy: tuple[float, ...]
    reference: tuple[float, float]
    batch: int = IMAGES
    bandwidth: float = 5e6
    noise_density: float = 2e-19
    power: float = 0.2

    def system(self, network: Network, delay: Any, energy: Any) -> InferenceSystem:
        """One device for each pair of budgets."""
        delay, energy = (np.atleast_1d(np.asarray(v, dtype=np.float64)) for v in (delay, energy))
        return InferenceSystem(
            name="coinference-results",
            devices=InferenceDevices(
                frequency=self.frequency,
                flops_per_cycle=self.flops_per_cycle,
                power_max=self.power,
                delay_budget=delay,
                energy_budget=energy,
                count=delay.size,
            ),
            link=Link(bandwidth=self.bandwidth, noise_density=self.noise_density, gain=self.gain),
            network=network,
        )

    def grid(self) -> tuple[np.ndarray, np.ndarray]:
        """All pairs of budgets, flat."""
        delay, energy = np.meshgrid(self.delay, self.energy, indexing="ij")
        return delay.ravel(), energy.ravel()


def _steps(low: float, high: float, count: int) -> tuple[float, ...]:
    return tuple(float(f"{v:.3g}") for v in np.geomspace(low, high, count))


# "published": constants of theory 4a as they stand. "small": a processor of 4 operations per cycle at 1 GHz and a path
# loss of 90 dB [S].
SETTINGS = {
    ("fashion-mnist", "published"): Setting(2e9, 32.0, 1e-5, _steps(0.02, 0.1, 7), _steps(1e-4, 1e-2, 7), (0.06, 3e-4)),
    ("fashion-mnist", "small"): Setting(1e9, 4.0, 1e-9, _steps(0.07, 0.4, 7), _steps(1e-3, 3e-2, 7), (0.12, 3e-3)),
    ("digits", "small"): Setting(1e9, 4.0, 1e-9, _steps(0.01, 0.4, 7), _steps(3e-4, 3e-2, 7), (0.08, 4e-4)),
    ("minilm", "published"): Setting(
        2e9, 32.0, 1e-9, _steps(0.006, 0.3, 5), _steps(3e-3, 0.3, 3), (0.02, 3e-3), batch=1
    ),
    ("minilm", "small"): Setting(1e9, 4.0, 1e-9, _steps(0.01, 0.5, 5), _steps(1e-3, 0.03, 3), (0.1, 3e-3), batch=1),
}
SEEDS = {"fashion-mnist": (0, 1, 2), "digits": (0, 1, 2), "minilm": (0,)}


# ---------------------------------------------------------------------------------- networks


def real_network(data: str, seed: int, folder: Path) -> tuple[inference.SplitNetwork, torch.Tensor]:
    """The trained (or published) network and inputs it has not seen."""
    if data == "minilm":
        encoder = inference.load_minilm()
        return encoder, encoder.tokenize(inference.sentences(60)[0])
    trained = inference.train_autoencoder(
        data, seed, cache=folder / "networks", progress=lambda done, of, loss: print(f"  epoch {done}/{of}: {loss:.5f}")
    )
    return trained.network, trained.test_inputs[:1000]


def section(network: inference.SplitNetwork, batch: int, **changes: Any) -> Network:
    """The network for `batch` inputs at once, with its measured curve of distortion."""
    fields = {**network.profile(), "distortion": "measured", **inference.distortion_curve(network), **changes}
    for name in ("flops", "fixed_flops", "cut_bits"):
        fields[name] = batch * fields[name]
    return Network(**fields)


# ---------------------------------------------------------------------------------- stages, one network each


def feasible_points(problem: CoInference, decision: Decision) -> np.ndarray:
    """Which devices keep both budgets."""
    slack, devices = problem.evaluate(decision).slack, problem.system.devices
    kept = slack["delay"] >= -1e-9 * devices.delay_budget
    return np.asarray(kept & (slack["energy"] >= -1e-9 * devices.energy_budget))


def at_random(system: InferenceSystem, seed: int) -> dict[int, tuple[float, int]]:
    """The best of the random trials of every device; a set of devices without is halved until it is known which."""
    result = jo.solve(CoInference(system), method="random", seed=seed)
    if result.decision is not None and result.status == "feasible":
        pairs = zip(result.decision["pruning_ratio"], result.decision["split"], strict=True)
        return {u: (float(r), int(s)) for u, (r, s) in enumerate(pairs)}
    if len(system) == 1:
        return {}
    half = len(system) // 2
    found = at_random(system.take(slice(0, half)), seed)
    rest = at_random(system.take(slice(half, None)), seed)
    return found | {half + u: pair for u, pair in rest.items()}


def decide(system: InferenceSystem, method: str, seed: int) -> dict[int, tuple[float, int]]:
    """(ratio, split) of every device with a feasible decision."""
    if method == "random":
        possible = np.array(sorted(decide(system, "exact", 0)), dtype=np.int64)
        found = at_random(system.take(possible), seed) if possible.size else {}
        return {int(possible[u]): pair for u, pair in found.items()}
    problem = CoInference(system)
    result = jo.solve(problem, method=method)
    assert result.decision is not None
    fits = feasible_points(problem, result.decision)
    ratio, split = result.decision["pruning_ratio"], result.decision["split"]
    return {int(u): (float(ratio[u]), int(split[u])) for u in np.flatnonzero(fits)}


def measured(
    system: InferenceSystem, network: inference.SplitNetwork, inputs: torch.Tensor, points: dict[int, tuple[float, int]]
) -> pd.DataFrame:
    """Distortion (planned), quality and bits of decisions that were carried out; index: device."""
    if not points:
        return pd.DataFrame()
    index = list(points)
    ratio, split = (np.array([points[u][i] for u in index], dtype=np.float64) for i in (0, 1))
    done = inference.carry_out(Decision(pruning_ratio=ratio, split=split), system.take(index), network, inputs)
    assert done.exact.all(), "split and unsplit networks must agree bit for bit"
    frame = pd.DataFrame({"ratio": ratio, "split": split.astype(int), **done.quality}, index=index)
    frame["distortion"] = done.planned_parameter_distortion
    frame["measured_distortion"] = done.parameter_distortion
    return frame


def budgets_stage(data: str, name: str, seed: int, folder: Path) -> list[dict[str, Any]]:
    """Every method at every pair of budgets, carried out."""
    setting = SETTINGS[data, name]
    network, inputs = real_network(data, seed, folder)
    delay, energy = setting.grid()
    system = setting.system(section(network, setting.batch), delay, energy)
    rows = []
    for method in METHODS:
        frame = measured(system, network, inputs, decide(system, method, seed))
        for u in range(len(system)):
            row = {"method": method, "delay": delay[u], "energy": energy[u], "feasible": u in frame.index}
            rows.append(row | (frame.loc[u].to_dict() if row["feasible"] else {}))
    return rows


def split_stage(data: str, name: str, seed: int, folder: Path) -> list[dict[str, Any]]:
    """Every split forced, at the reference budgets."""
    setting = SETTINGS[data, name]
    network, inputs = real_network(data, seed, folder)
    splits = np.arange(len(network) + 1)
    system = setting.system(section(network, setting.batch), *(np.full(splits.size, v) for v in setting.reference))
    problem = CoInference(system).restrict(split=splits)
    result = jo.solve(problem)
    assert result.decision is not None
    fits = feasible_points(problem, result.decision)
    points = {int(s): (float(result.decision["pruning_ratio"][s]), int(s)) for s in splits[fits]}
    frame = measured(system, network, inputs, points)
    bits = system.network.cut_bits
    return [
        {"at": int(s), "bits": bits[s], "feasible": bool(fits[s])} | (frame.loc[s].to_dict() if fits[s] else {})
        for s in splits
    ]


def withheld_stage(data: str, name: str, seed: int, folder: Path) -> dict[str, Any]:
    """The joint design over the grid when the raw input must not be sent; only ratios and splits, nothing is run."""
    setting = SETTINGS[data, name]
    network, _ = real_network(data, seed, folder)
    fields = section(network, setting.batch, splits=list(range(1, len(network) + 1)))
    found = decide(setting.system(fields, *setting.grid()), "exact", seed)
    return {
        "points": setting.grid()[0].size,
        "ratio": [r for r, _ in found.values()],
        "split": [s for _, s in found.values()],
    }


def distortion_stage(data: str, name: str, seed: int, folder: Path) -> dict[str, Any]:
    """Output against parameter distortion, the bounds, the weights' law, quality at every ratio."""
    network, inputs = real_network(data, seed, folder)
    found = inference.output_distortion(network, inputs, RATIOS, calibration=5 if data != "minilm" else 1, seed=seed)
    curve = inference.distortion_curve(network, (0.0, *RATIOS))
    fit = inference.laplace_fit(network)
    dense = inference.quality(network, inputs, (0.0,)).iloc[0].to_dict()
    laplace = np.asarray(magnitude_distortion(curve["curve_ratio"][1:]))
    assert found.sensitivity is not None
    return {
        "ratio": list(RATIOS),
        "parameter": found.parameter.tolist(),
        "mean": found.mean.tolist(),
        "worst": found.worst.tolist(),
        "bound": found.bound.tolist(),
        "induced_bound": found.induced_bound.tolist(),
        "surrogate": found.surrogate.tolist(),
        "fitted": found.fitted(0.5).tolist(),
        "sensitivity": asdict(found.sensitivity),
        "curve": curve["curve_distortion"][1:].tolist(),
        "laplace": laplace.tolist(),
        "ks_laplace": fit.ks_laplace.tolist(),
        "ks_gaussian": fit.ks_gaussian.tolist(),
        "matrices": list(fit.names),
        "closer_to_gaussian": fit.closer_to_gaussian,
        "dense": dense,
        "quality": inference.quality(network, inputs, RATIOS).to_dict(orient="list"),
    }


def layers_stage(data: str, name: str, seed: int, folder: Path) -> list[dict[str, Any]]:
    """One ratio against ratios by layer at equal budgets, with both weightings of the layers' errors."""
    setting = SETTINGS[data, name]
    network, inputs = real_network(data, seed, folder)
    key = "spearman" if network.task == "similarity" else "psnr"
    rows = []
    # deadlines chosen so that one common ratio would be these, at ten times the reference energy
    for target in (0.05, 0.1, 0.2, 0.3, 0.5):
        energy = 10.0 * setting.reference[1]
        delay = _deadline(setting, section(network, setting.batch), target, energy)
        for weights in ("product bound", "equal"):
            changes: dict[str, Any] = {"distortion": "laplace"} | ({} if weights != "equal" else {"amplification": 1.0})
            system = setting.system(section(network, setting.batch, **changes), delay, energy)
            problem = LayerwiseCoInference(system)
            row: dict[str, Any] = {"target": target, "delay": delay, "energy": energy, "weights": weights}
            for method, label in (("uniform", "common"), ("convex", "layers")):
                result = jo.solve(problem, method=method)
                assert result.decision is not None and result.value is not None
                ratio = result.decision["pruning_ratio"][:, None]
                done = inference.carry_out({**result.decision, "pruning_ratio": ratio}, system, network, inputs)
                row |= {
                    f"{label}_value": result.value,
                    f"{label}_split": int(result.decision["split"][0]),
                    f"{label}_removed": float(done.pruning_ratio[0]),
                    f"{label}_output": float(done.output_distortion[0]),
                    f"{label}_quality": float(done.quality[key][0]),
                }
                if label == "layers":
                    row |= {"gap": result.gap, "ratios": result.decision["pruning_ratio"].tolist()}
            rows.append(row)
    return rows


def _deadline(setting: Setting, network: Network, ratio: float, energy: float) -> float:
    """Deadline at which the joint design prunes this much."""
    low, high = 1e-5, 10.0
    for _ in range(60):
        middle = float(np.sqrt(low * high))
        found = decide(setting.system(network, middle, energy), "exact", 0)
        low, high = (low, middle) if found and found[0][0] < ratio else (middle, high)
    return high


STAGES: dict[str, Callable[[str, str, int, Path], Any]] = {
    "budgets": budgets_stage,
    "split": split_stage,
    "withheld": withheld_stage,
    "distortion": distortion_stage,
    "layers": layers_stage,
}


# ---------------------------------------------------------------------------------- summary


def spread(values: Any) -> dict[str, float]:
    """Mean and standard deviation over seeds."""
    values = np.asarray(values, dtype=np.float64)
    return {"mean": float(values.mean()), "std": float(values.std(ddof=1)) if values.size > 1 else 0.0}


def summarise_budgets(frame: pd.DataFrame, dense: dict[int, float], key: str) -> dict[str, Any]:
    """The joint design against each baseline over the grid."""
    near = NEAR if key == "psnr" else 0.05
    out: dict[str, Any] = {}
    tables = {
        seed: {method: part.set_index(["delay", "energy"]) for method, part in each.groupby("method", sort=False)}
        for seed, each in frame.groupby("seed")
    }
    first = next(iter(tables.values()))["exact"]
    splits = first["split"][first["feasible"]].astype(int)
    out["points"] = len(first)
    out["feasible"] = int(first["feasible"].sum())
    out["joint_splits"] = {str(k): int(v) for k, v in splits.value_counts().sort_index().items()}
    for method in METHODS:
        rows = []
        for seed, table in tables.items():
            joint, other = table["exact"], table[method]
            possible = joint["feasible"]
            both = possible & other["feasible"]
            a, b = joint[both], other[both]
            pruned = both & (joint["distortion"] > 0)
            factor = (other["distortion"] / joint["distortion"])[pruned]
            rows.append(
                {
                    "infeasible": int((possible & ~other["feasible"]).sum()),
                    "worse": int((b["ratio"] > a["ratio"] + 1e-9).sum()),
                    "equal": int((np.abs(b["ratio"] - a["ratio"]) <= 1e-9).sum()),
                    "better": int((b["ratio"] < a["ratio"] - 1e-9).sum()),
                    "distortion_factor": float(np.exp(np.log(factor).mean())) if len(factor) else np.nan,
                    "quality_gain": float((a[key] - b[key]).mean()) if len(a) else np.nan,
                    "usable": int((other[key] >= dense[seed] - near).sum()),
                    "quality_lost_to": int((b[key] > a[key] + 1e-9).sum()),
                }
            )
        table_ = pd.DataFrame(rows)
        out[method] = {name: spread(table_[name]) for name in table_}
    return out


def collect(runs: dict[tuple[str, str, str, int], Any]) -> dict[str, Any]:
    """Everything that is stated anywhere, as plain numbers."""
    out: dict[str, Any] = {"budgets": {}, "split": {}, "distortion": {}, "layers": {}}
    for data, name in {(d, n): None for _, d, n, _ in runs}:
        key = "spearman" if data == "minilm" else "psnr"
        seeds = [s for stage, d, n, s in runs if (stage, d, n) == ("budgets", data, name)]
        dense = {s: runs["distortion", data, _home(data), s]["dense"][key] for s in seeds}
        label = f"{data}, {name}"
        frame = pd.concat([pd.DataFrame(runs["budgets", data, name, s]).assign(seed=s) for s in seeds])
        out["budgets"][label] = summarise_budgets(frame, dense, key) | {
            "joint_splits_without_raw_input": _count(runs["withheld", data, name, seeds[0]]["split"]),
            "layers": len(runs["split", data, name, seeds[0]]) - 1,
            "setting": {k: v for k, v in asdict(SETTINGS[data, name]).items() if k not in ("delay", "energy")},
        }
        parts = [pd.DataFrame(runs["split", data, name, s]) for s in seeds]
        out["split"][label] = {
            "bits": parts[0]["bits"].tolist(),
            "ratio": [None if not f else r for f, r in zip(parts[0]["feasible"], parts[0].get("ratio"), strict=True)],
            key: [
                spread([p[key].iloc[i] for p in parts]) if parts[0]["feasible"].iloc[i] else None
                for i in range(len(parts[0]))
            ],
        }
        if name != _home(data):
            continue
        shapes = [runs["distortion", data, name, s] for s in seeds]
        at = {f"{r:g}": RATIOS.index(r) for r in (0.1, 0.2, 0.3, 0.5, 0.7, 0.9)}
        with np.errstate(divide="ignore", invalid="ignore"):
            out["distortion"][data] = {
                "dense": spread([d["dense"][key] for d in shapes]),
                key: {r: spread([d["quality"][key][i] for d in shapes]) for r, i in at.items()},
                "bound_over_worst": {r: spread([d["bound"][i] / d["worst"][i] for d in shapes]) for r, i in at.items()},
                "induced_over_worst": {
                    r: spread([d["induced_bound"][i] / d["worst"][i] for d in shapes]) for r, i in at.items()
                },
                "surrogate_over_worst": {
                    r: spread([d["surrogate"][i] / d["worst"][i] for d in shapes]) for r, i in at.items()
                },
                "worst_over_fitted": {r: spread([d["fitted"][i] for d in shapes]) for r, i in at.items()},
                "measured_over_laplace": {
                    r: spread([d["curve"][i] / d["laplace"][i] for d in shapes]) for r, i in at.items()
                },
                "ks_laplace_pooled": spread([d["ks_laplace"][-1] for d in shapes]),
                "ks_laplace_matrices": spread([np.mean(d["ks_laplace"][:-1]) for d in shapes]),
                "ks_gaussian_matrices": spread([np.mean(d["ks_gaussian"][:-1]) for d in shapes]),
                "closer_to_gaussian": spread([d["closer_to_gaussian"] for d in shapes]),
                "matrices": len(shapes[0]["matrices"]) - 1,
            }
        rows = pd.concat([pd.DataFrame(runs["layers", data, name, s]) for s in seeds])
        out["layers"][data] = [
            {
                "common_ratio": target,
                "weights": weights,
                "bound_factor": spread(part["layers_value"] / part["common_value"]),
                "output_factor": spread(part["layers_output"] / part["common_output"]),
                "common_quality": spread(part["common_quality"]),
                "layers_quality": spread(part["layers_quality"]),
                "quality_gain": spread(part["layers_quality"] - part["common_quality"]),
                "layers_removed": spread(part["layers_removed"]),
                "largest_gap": float(part["gap"].max()),
            }
            for (target, weights), part in rows.groupby(["target", "weights"])
        ]
    return _finite(out)


def _count(values: list[int]) -> dict[str, int]:
    return {str(v): values.count(v) for v in sorted(set(values))}


def _home(data: str) -> str:
    """The setting under which a network's own measurements are kept."""
    return "published" if data == "minilm" else "small"


def _finite(value: Any) -> Any:
    """Plain numbers of six digits; None where there is none."""
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    if isinstance(value, (bool, str)) or value is None:
        return value
    if isinstance(value, (int, np.integer)):
        return int(value)
    return float(f"{value:.6g}") if np.isfinite(value) else None


def write_tables(runs: dict[tuple[str, str, str, int], Any], out: Path) -> None:
    """Two tables: means and standard deviations over the seeds, for each point of a grid and each ratio."""
    parts = []
    for (stage, data, name, seed), rows in runs.items():
        if stage == "budgets":
            parts.append(pd.DataFrame(rows).assign(data=data, setting=name, seed=seed))
    frame = pd.concat(parts)
    keys = ["data", "setting", "delay", "energy", "method"]
    values = [c for c in ("ratio", "split", "distortion", "psnr", "spearman") if c in frame]
    grouped = frame.groupby(keys, sort=False)
    table = grouped[["feasible"]].mean()
    for column in values:
        table[column] = grouped[column].mean()
        if column not in ("split",):
            table[f"{column}_std"] = grouped[column].std(ddof=1)
    table.to_csv(out / "coinference-budgets.csv", float_format="%.5g")
    parts = []
    for (stage, data, _, seed), found in runs.items():
        if stage == "distortion":
            columns = (
                "parameter",
                "mean",
                "worst",
                "bound",
                "induced_bound",
                "surrogate",
                "fitted",
                "curve",
                "laplace",
            )
            part = pd.DataFrame({"ratio": found["ratio"], **{c: found[c] for c in columns}})
            key = "spearman" if data == "minilm" else "psnr"
            parts.append(part.assign(data=data, seed=seed, quality=found["quality"][key]))
    frame = pd.concat(parts).set_index(["data", "seed", "ratio"])
    frame.to_csv(out / "coinference-distortion.csv", float_format="%.5g")


# ---------------------------------------------------------------------------------- figures


def _label(data: str) -> str:
    return {"fashion-mnist": "Fashion-MNIST", "minilm": "MiniLM-L6"}.get(data, data)


def _quality(data: str) -> tuple[str, str]:
    return ("spearman", "Spearman correlation with dense") if data == "minilm" else ("psnr", "test PSNR [dB]")


def draw_budgets(runs: dict[tuple[str, str, str, int], Any], data: str, name: str, out: Path) -> None:
    """Ratio and quality against either budget, the other at its middle."""
    seeds = [s for stage, d, n, s in runs if (stage, d, n) == ("budgets", data, name)]
    frame = pd.concat([pd.DataFrame(runs["budgets", data, name, s]).assign(seed=s) for s in seeds])
    setting = SETTINGS[data, name]
    middle = {"delay": setting.delay[len(setting.delay) // 2], "energy": setting.energy[len(setting.energy) // 2]}
    key, text = _quality(data)
    figure, axes = plt.subplots(2, 2, figsize=(10, 6.5), sharex="col", layout="constrained")
    for column, (x, other, unit) in enumerate((("delay", "energy", "ms"), ("energy", "delay", "mJ"))):
        part = frame[np.isclose(frame[other], middle[other])]
        held = f"{1e3 * middle[other]:.3g} {'mJ' if other == 'energy' else 'ms'}"
        for number, method in enumerate(METHODS):
            mine = part[(part["method"] == method) & part["feasible"]].groupby(x)
            joint = method == "exact"
            # what coincides with the joint design is seen around it
            style = {"marker": "osv^Dx"[number], "ms": 4 if joint else 8, "lw": 2.4 if joint else 1.2, "mfc": "none"}
            style |= {"color": f"C{number}", "zorder": 3 if joint else 2, "capsize": 2, "mew": 1.3}
            for row, quantity in enumerate(("ratio", key)):
                mean, std = mine[quantity].mean(), mine[quantity].std(ddof=1).fillna(0.0)
                axes[row, column].errorbar(1e3 * mean.index, mean, std, label=LABELS[method], **style)
        axes[0, column].set_title(f"{other} budget {held}")
        axes[1, column].set_xlabel(f"{x} budget [{unit}]")
        for row in (0, 1):
            axes[row, column].set_xscale("log")
            ticks = [1e3 * v for v in getattr(setting, x)]
            axes[row, column].set_xticks(ticks, [f"{v:.3g}" for v in ticks])
            axes[row, column].set_xticks([], minor=True)
            axes[row, column].grid(alpha=0.3)
    axes[0, 0].set_ylabel("least pruning ratio")
    axes[1, 0].set_ylabel(text)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=6, fontsize=8)
    count = f", {len(seeds)} seeds" if len(seeds) > 1 else ""
    figure.suptitle(f"{_label(data)}, {name} device{count}; where a line is missing its method is infeasible")
    figure.savefig(out / f"coinference-{data}-{name}.png", dpi=120)
    plt.close(figure)


def draw_splits(runs: dict[tuple[str, str, str, int], Any], out: Path) -> None:
    """Least ratio, quality and bits at every split, at the reference budgets."""
    pairs = list({(d, n): None for _, d, n, _ in runs if n == _home(d)})
    figure, axes = plt.subplots(
        2, len(pairs), figsize=(max(6.0, 4.3 * len(pairs)), 5.8), layout="constrained", squeeze=False
    )
    for column, (data, name) in enumerate(pairs):
        seeds = [s for stage, d, n, s in runs if (stage, d, n) == ("split", data, name)]
        frame = pd.concat([pd.DataFrame(runs["split", data, name, s]) for s in seeds])
        setting = SETTINGS[data, name]
        key, text = _quality(data)
        top, bottom = axes[:, column]
        mean = frame.groupby("at")["ratio"].mean()
        top.plot(mean.index, mean, "o", color="C0")
        top.set_ylim(-0.03, 1.0)
        missing = frame[~frame["feasible"]]["at"].unique()
        top.plot(missing, np.full(len(missing), 0.97), "x", color="C3", label="infeasible")
        if len(missing):
            top.legend(loc="lower right", fontsize=8)
        twin = top.twinx()
        bits = frame.groupby("at")["bits"].mean() / 1e6
        twin.step(bits.index, bits, where="mid", color="0.6", lw=1)
        twin.set_ylabel("sent at the cut [Mbit] (grey)", color="0.4")
        twin.set_ylim(0)
        t0, e0 = setting.reference
        top.set_title(f"{_label(data)}: {1e3 * t0:g} ms, {1e3 * e0:g} mJ", fontsize=10)
        grouped = frame[frame["feasible"]].groupby("at")[key]
        bottom.errorbar(grouped.mean().index, grouped.mean(), grouped.std(ddof=1).fillna(0.0), fmt="s", capsize=2)
        bottom.set_xlim(top.get_xlim())
        bottom.set_xlabel("split (layers on the device)")
        bottom.set_ylabel(text)
        for axis in (top, bottom):
            axis.grid(alpha=0.3)
        top.set_ylabel("least pruning ratio")
    figure.savefig(out / "coinference-splits.png", dpi=120)
    plt.close(figure)


def draw_distortion(runs: dict[tuple[str, str, str, int], Any], out: Path) -> None:
    """The verification plot: output distortion, fitted constant and bounds against the ratio; the weights' law."""
    names = list({d: None for stage, d, _, _ in runs if stage == "distortion"})
    figure, axes = plt.subplots(
        2, len(names), figsize=(max(9.0, 4.3 * len(names)), 6.4), layout="constrained", squeeze=False
    )
    for column, data in enumerate(names):
        found = [r for (stage, d, _, _), r in runs.items() if stage == "distortion" and d == data]
        top, bottom = axes[:, column]
        lines = (
            ("worst", "output distortion (largest)", "C0", "-"),
            ("mean", "output distortion (mean)", "C0", ":"),
            ("line", "constant fitted at 0.5 x parameter distortion", "C1", "-"),
            ("surrogate", "H x parameter distortion", "C2", "-"),
            ("induced_bound", "bound, induced norms", "C3", "--"),
            ("bound", "bound (proposition)", "C3", "-"),
        )
        for name, label, color, style in lines:
            values = np.array(
                [
                    np.array(f["worst"]) / np.array(f["fitted"]) if name == "line" else np.array(f[name], dtype=float)
                    for f in found
                ]
            )
            if np.all(np.isnan(values)):
                continue
            middle = np.exp(np.log(values).mean(axis=0))
            top.plot(RATIOS, middle, style, color=color, label=label, lw=1.6)
            if len(found) > 1:
                top.fill_between(RATIOS, values.min(axis=0), values.max(axis=0), color=color, alpha=0.15, lw=0)
        top.set_yscale("log")
        top.set_title(f"{_label(data)}" + (f", {len(found)} seeds" if len(found) > 1 else ""), fontsize=10)
        excess = np.array([100 * (np.array(f["curve"]) / np.array(f["laplace"]) - 1) for f in found])
        bottom.plot(RATIOS, excess.mean(axis=0), "o-", ms=3, label="measured above Laplace formula")
        if len(found) > 1:
            bottom.fill_between(RATIOS, excess.min(axis=0), excess.max(axis=0), alpha=0.2, lw=0)
        bottom.axhline(0, color="0.5", lw=0.8)
        bottom.set_xlabel("pruning ratio")
        for axis in (top, bottom):
            axis.grid(alpha=0.3)
    axes[0, 0].set_ylabel(r"L1 distance of outputs, $\|x\|_1\leq 1$")
    axes[1, 0].set_ylabel("parameter distortion\nabove Laplace formula [%]")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8)
    figure.savefig(out / "coinference-distortion.png", dpi=120)
    plt.close(figure)


def draw_layers(runs: dict[tuple[str, str, str, int], Any], out: Path) -> None:
    """Quality of ratios by layer and of one ratio at the same budgets."""
    names = list({d: None for stage, d, _, _ in runs if stage == "layers"})
    figure, axes = plt.subplots(
        1, len(names), figsize=(max(6.0, 4.3 * len(names)), 3.6), layout="constrained", squeeze=False
    )
    for axis, data in zip(axes[0], names, strict=True):
        rows = pd.concat([pd.DataFrame(r) for (stage, d, _, _), r in runs.items() if stage == "layers" and d == data])
        for number, (label, column, weights) in enumerate(
            (
                ("one ratio", "common_quality", "equal"),
                ("by layer, equal weights", "layers_quality", "equal"),
                ("by layer, product bound", "layers_quality", "product bound"),
            )
        ):
            if data == "minilm" and weights != "equal":
                continue
            part = rows[rows["weights"] == weights].groupby("target")[column]
            spreads = part.std(ddof=1).fillna(0.0)
            axis.errorbar(part.mean().index, part.mean(), spreads, fmt="osv"[number] + "-", capsize=2, label=label)
        axis.set_title(_label(data), fontsize=10)
        axis.set_xlabel("ratio that one common ratio needs")
        axis.set_ylabel(_quality(data)[1])
        axis.grid(alpha=0.3)
    axes[0, 0].legend(fontsize=8)
    figure.savefig(out / "coinference-layers.png", dpi=120)
    plt.close(figure)


# ---------------------------------------------------------------------------------- main


def cached(path: Path, key: dict[str, Any], again: bool, make: Callable[[], Any]) -> Any:
    """What `make` returns, kept as JSON under everything it depends on but the code."""
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:12]
    file = path.with_name(f"{path.name}-{digest}.json")
    if file.is_file() and not again:
        return json.loads(file.read_text(encoding="utf-8"))
    made = json.loads(json.dumps(make(), default=float))
    file.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(file, lambda handle: handle.write(json.dumps(made).encode()))
    return made


def main() -> int:
    """Measure what is not measured yet, summarise, draw, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "results")
    parser.add_argument("--runs", type=Path, default=ROOT / "results" / "runs")
    parser.add_argument("--again", action="store_true", help="measure anew (trained networks stay)")
    parser.add_argument("--short", action="store_true", help="the digits alone, two seeds")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    started = time.perf_counter()
    arguments.out.mkdir(parents=True, exist_ok=True)
    runs: dict[tuple[str, str, str, int], Any] = {}
    for (data, name), setting in SETTINGS.items():
        if arguments.short and data != "digits":
            continue
        seeds = SEEDS[data][:2] if arguments.short else SEEDS[data]
        stages = list(STAGES) if name == _home(data) else ["budgets", "split", "withheld"]
        try:
            for seed in seeds:
                real_network(data, seed, arguments.runs)
                for stage in stages:
                    key = {"stage": stage, "data": data, "seed": seed, "setting": asdict(setting), "ratios": RATIOS}
                    runs[stage, data, name, seed] = cached(
                        arguments.runs / f"coinference-{data}-{name}-{seed}-{stage}",
                        key,
                        arguments.again,
                        lambda stage=stage, data=data, name=name, seed=seed: STAGES[stage](
                            data, name, seed, arguments.runs
                        ),
                    )
                    print(f"[{time.perf_counter() - started:6.0f} s] {data}, {name}, seed {seed}: {stage}", flush=True)
        except (DataError, MissingExtraError) as error:
            print(f"skipped: {error}", file=sys.stderr)
    summary = collect(runs)
    (arguments.out / "coinference.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    write_tables(runs, arguments.out)
    for data, name in {(d, n): None for _, d, n, _ in runs}:
        draw_budgets(runs, data, name, arguments.out)
    draw_splits(runs, arguments.out)
    draw_distortion(runs, arguments.out)
    draw_layers(runs, arguments.out)
    print(f"written to {arguments.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Figure and tables of `results_relatives.py`: what was measured of the designs that choose ratios and bands."""

from __future__ import annotations

from typing import Any

import numpy as np

from jointopt.plot import LABELS
from jointopt.plot.figures import STYLE

__all__ = ["draw", "savings", "tables"]

NAMES = {
    **LABELS,
    "synchronous": "synchronous, whole models",
    "synchronous_pruned": "synchronous, pruned",
    "no_pruning": "whole models, every round late",
    "one_ratio": "one ratio for all",
    "left_behind": "whole models, late ones left behind",
}
LOOKS = {
    **STYLE,
    "synchronous_pruned": {"color": "#0072B2"},
    "one_ratio": {"color": "#CC79A7"},
    "left_behind": {"color": "#999999", "linestyle": ":"},
}


def draw(frame: Any, saved: Any) -> Any:
    """Return six panels: savings in bits, accuracy at equal time by deadline, and the price of a second."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13.5, 8.0), layout="constrained")
    axes = figure.subplots(2, 3)
    _savings(axes[0, 0], saved[~saved["tuned"]], "bits saved by joint tiers, step size 0.1 for all")
    _savings(axes[0, 1], saved[saved["tuned"]], "the same, every arm at its best step size")
    for axis, family, title in (
        (axes[0, 2], "bands", "one band: accuracy within 80 deadlines"),
        (axes[1, 0], "selection", "with selection: accuracy within 80 deadlines"),
        (axes[1, 1], "edges", "two hops: accuracy within 24 deadlines"),
    ):
        _deadlines(axis, frame[frame["family"] == family], title)
    _price(axes[1, 2], frame[frame["family"] == "packets"])
    return figure


def _savings(axis: Any, saved: Any, title: str) -> None:
    against = list(dict.fromkeys(saved["against"]))
    settings = sorted(saved["setting"].unique())
    targets = sorted(saved["target"].unique())
    width = 0.8 / len(settings)
    for a, name in enumerate(against):
        for s, setting in enumerate(settings):
            for t, target in enumerate(targets):
                own = saved[(saved["against"] == name) & (saved["setting"] == setting) & (saved["target"] == target)]
                own = own["saved"].dropna()
                x = a + width * (s - 0.5 * (len(settings) - 1)) + 0.22 * width * (t - 1)
                shade = (0.9, 0.55, 0.15)[t % 3]
                color = (1.0 - shade * (1.0 - 0.84), 1.0 - shade * (1.0 - 0.37), 1.0 - shade)
                axis.plot(
                    np.full(len(own), x), 100 * own, "o", color=color, markersize=4, markeredgecolor="0.3", mew=0.4
                )
    ticks = [a + width * (s - 0.5 * (len(settings) - 1)) for a in range(len(against)) for s in range(len(settings))]
    words = [f"{s:g}" for _ in against for s in settings]
    axis.set_xticks(ticks, words, fontsize=8)
    for a, name in enumerate(against):
        label = {"synchronous": "synchronous,\nwhole models", "no_pruning": "tiers,\nwhole models"}
        text = label.get(name, "synchronous,\npruned")
        axis.annotate(
            f"beside {text}", (a, -0.11), xycoords=("data", "axes fraction"), ha="center", va="top", fontsize=8
        )
        if a:
            axis.axvline(a - 0.5, color="0.8", linewidth=0.8)
    axis.axhline(0.0, color="0.3", linewidth=0.8)
    axis.axhline(40.0, color="0.3", linewidth=0.8, linestyle=(0, (4, 3)))
    last = len(against) - 1
    axis.annotate("40 % (published)", (last - 0.45, 41.0), va="bottom", fontsize=8)
    alone = sorted(set(settings) - set(saved[saved["against"] == "synchronous_pruned"]["setting"]))
    if alone:
        words = " and ".join(f"{s:g}" for s in alone)
        axis.annotate(f"{words}:\none tier,\nthe same run", (last - 0.45, -17.0), va="top", fontsize=8)
    axis.annotate(
        "at each interval: 60, 70, 75 % accuracy, dark to light",
        (0.0, 0.0),
        xycoords="axes fraction",
        xytext=(4, 4),
        textcoords="offset points",
        fontsize=8,
    )
    axis.set_ylabel("bits saved [%]")
    axis.set_ylim(min(-60.0, 100 * float(saved["saved"].min()) - 8), 100)
    axis.set_title(title, fontsize=10)
    axis.grid(axis="y", alpha=0.3)


def _deadlines(axis: Any, own: Any, title: str) -> None:
    own = own[(own["share"] == 1.0) & own["accuracy"].notna()]
    methods = list(dict.fromkeys(own["method"]))
    settings = sorted(own["setting"].unique())
    for number, name in enumerate(methods):
        some = own[own["method"] == name]
        look = {k: v for k, v in LOOKS.get(name, {"color": f"C{number}"}).items() if k in ("color", "linestyle")}
        grouped = some.groupby("setting")["accuracy"]
        shift = 0.06 * (number - 0.5 * (len(methods) - 1))
        x = np.array([settings.index(s) for s in grouped.mean().index]) + shift
        mean, low, high = (100 * f.to_numpy() for f in (grouped.mean(), grouped.min(), grouped.max()))
        spread = np.abs(np.stack([mean - low, high - mean]))
        axis.errorbar(x, mean, spread, marker="o", markersize=4, capsize=2, label=NAMES.get(name, name), **look)
    axis.set_xticks(range(len(settings)), [f"{s:g}" for s in settings])
    axis.set_xlabel("deadline, times that of the sample")
    axis.set_ylabel("test accuracy [%]")
    axis.set_title(title, fontsize=10)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)


def _price(axis: Any, own: Any) -> None:
    labels = {"rounds": "after 80 rounds", "150 s": "after 150 s"}
    for (equal, some), color in zip(own.groupby("equal"), ("#D55E00", "#0072B2"), strict=True):
        grouped = some.groupby("setting")["accuracy"]
        mean, low, high = (100 * f for f in (grouped.mean(), grouped.min(), grouped.max()))
        axis.plot(mean.index, mean, "o-", markersize=4, color=color, label=labels.get(equal, equal))
        axis.fill_between(mean.index, low, high, color=color, alpha=0.15, linewidth=0)
    axis.set_xscale("log")
    axis.set_xlabel("price of a second, times that of the sample")
    axis.set_ylabel("test accuracy [%]")
    beside = axis.twinx()
    latency = own[own["equal"] == "rounds"].groupby("setting")["latency"].mean()
    beside.plot(latency.index, latency, "s--", color="0.4", markersize=3, label="latency")
    beside.set_ylabel("latency of a round [s]", color="0.4")
    beside.set_ylim(0, None)
    lines = [*axis.get_lines(), *beside.get_lines()]
    axis.legend(lines, [str(line.get_label()) for line in lines], fontsize=8, loc="lower center")
    axis.set_title("ratio against packet error: what a second costs", fontsize=10)
    axis.grid(alpha=0.3)


def savings(frame: Any) -> Any:
    """One row per target, interval and seed: bits saved by the joint design beside the others, each at its best step.

    `tuned` tells whether every arm has its best step size (least mean bits over the seeds), or all have 0.1.
    """
    import pandas as pd

    runs = frame[frame["family"] == "tiers"]
    out = []
    for tuned in (False, True):
        best: dict[tuple[str, float, float], Any] = {}
        for (name, factor, target), some in runs.groupby(["method", "setting", "target"]):
            table = some.pivot(index="seed", columns="step", values="bits")
            reached = table.notna().sum()
            steps = reached.index[reached == reached.max()]
            step = table[steps].mean().fillna(np.inf).idxmin() if tuned else 0.1
            best[name, factor, target] = some[some["step"] == step].set_index("seed")
        for (name, factor, target), own in best.items():
            if name != "exact":
                continue
            for against, other in (
                ("synchronous", best["synchronous", 0.0, target]),
                # tiers of whole models need the longest of the intervals
                ("no_pruning", best.get(("no_pruning", runs["setting"].max(), target))),
                ("synchronous_pruned", best.get(("synchronous_pruned", factor, target))),
            ):
                if other is None:
                    continue
                for seed in own.index:
                    out.append(
                        {
                            "tuned": tuned,
                            "setting": factor,
                            "target": target,
                            "against": against,
                            "seed": seed,
                            "saved": 1.0 - own["bits"][seed] / other["bits"][seed],
                            "time_saved": 1.0 - own["seconds"][seed] / other["seconds"][seed],
                        }
                    )
    return pd.DataFrame(out)


def _spread(values: Any, scale: float = 100.0, digits: int = 0) -> str:
    values = scale * np.asarray(values.dropna(), dtype=float)
    if values.size == 0:
        return "never"
    low, high = values.min(), values.max()
    return f"{values.mean():.{digits}f}" + (f" ({low:.{digits}f} to {high:.{digits}f})" if values.size > 1 else "")


def tables(frame: Any, saved: Any) -> str:
    """Return what the documentation shows, as markdown: means over seeds, least and greatest in brackets."""
    lines = ["bits [Gbit] until an accuracy is reached, by arm and step size", ""]
    lines += ["| arm | interval x | ratio | period | step | 60 % | 70 % | 75 % |", "| --- " * 8 + "|"]
    runs = frame[frame["family"] == "tiers"]
    targets = sorted(runs["target"].unique())
    for (name, factor, step), some in runs.groupby(["method", "setting", "step"], sort=False):
        words = [
            name,
            f"{factor:g}",
            f"{some['mean_ratio'].mean():.2f}",
            f"{some['mean_period'].mean():.1f}",
            f"{step:g}",
        ]
        for target in targets:
            own = some[some["target"] == target]["bits"]
            missed = "" if own.notna().all() else f", {own.notna().sum()} of {len(own)}"
            words.append(_spread(own, 1e-9, 2) + missed)
        lines.append("| " + " | ".join(words) + " |")
    lines += ["", "bits saved by joint tiers [%], mean over seeds (least to greatest)", ""]
    lines += ["| step sizes | interval x | beside | 60 % | 70 % | 75 % |", "| --- " * 6 + "|"]
    for (tuned, factor, against), some in saved.groupby(["tuned", "setting", "against"], sort=False):
        words = ["each its best" if tuned else "0.1 for all", f"{factor:g}", against]
        words += [_spread(some[some["target"] == target]["saved"]) for target in targets]
        lines.append("| " + " | ".join(words) + " |")
    for family in ("bands", "selection", "edges"):
        own = frame[frame["family"] == family]
        lines += ["", f"{family}: test accuracy [%] at a quarter, half and all of the time", ""]
        lines += ["| deadline x | arm | value | ratio | devices | quarter | half | all |", "| --- " * 8 + "|"]
        for (factor, name), some in own.groupby(["setting", "method"], sort=False):
            words = [f"{factor:g}", name, _spread(some["value"], 1.0) if some["value"].notna().any() else "none"]
            ratio, count = some["mean_ratio"].mean(), some["devices"].mean()
            words += ["-" if np.isnan(ratio) else f"{ratio:.2f}", "all" if np.isnan(count) else f"{count:.1f}"]
            words += [_spread(some[some["share"] == share]["accuracy"], digits=1) for share in (0.25, 0.5, 1.0)]
            lines.append("| " + " | ".join(words) + " |")
    own = frame[frame["family"] == "packets"]
    lines += ["", "packets: the price of a second", ""]
    lines += ["| price x | latency [s] | learning cost | ratio | lost | gap | equal rounds | equal time |"]
    lines += ["| --- " * 8 + "|"]
    for factor, some in own.groupby("setting"):
        words = [f"{factor:g}", f"{some['latency'].mean():.1f}", f"{some['learning_cost'].mean():.0f}"]
        words += [f"{some['mean_ratio'].mean():.2f}", f"{some['lost'].mean():.3f}"]
        words += [f"{100 * (1 - some['lower_bound'] / some['value']).max():.2f} %"]
        words += [_spread(some[some["equal"] == equal]["accuracy"], digits=1) for equal in ("rounds", "150 s")]
        lines.append("| " + " | ".join(words) + " |")
    lines += ["", f"ledger against the model, largest relative difference: {frame['ledger'].max():.1e}"]
    return "\n".join(lines)

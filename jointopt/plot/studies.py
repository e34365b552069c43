"""Figures of sweeps and of co-inference on real networks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from jointopt.errors import InputError, nearest
from jointopt.plot.figures import LABELS, STYLE, _prefix, _style, _subplots

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["carried_out", "distortion", "splits", "tradeoff"]

_AXES = {
    "delay_budget": ("delay budget (mean over devices)", "s"),
    "energy_budget": ("energy budget (mean over devices)", "J"),
    "total_bandwidth": ("total bandwidth", "Hz"),
    "bandwidth": ("bandwidth (mean over devices)", "Hz"),
    "power_max": ("greatest transmit power (mean over devices)", "W"),
    "frequency": ("greatest processor frequency (mean over devices)", "Hz"),
}
_MARKERS = "osD^vP*Xhd<>"


def tradeoff(
    frame: Any,
    x: str,
    y: str = "value",
    *,
    by: str = "method",
    xlabel: str | None = None,
    ylabel: str | None = None,
    labels: Mapping[str, str] | None = None,
    log: bool = False,
    title: str | None = None,
) -> Figure:
    """Draw a value against what was swept, one line per method.

    Where a method found nothing feasible its line has a gap, and a method that never did stands in the legend as
    infeasible.

    Parameters
    ----------
    frame : DataFrame
        As `jointopt.study.sweep` makes it.
    x, y, by : str
        Columns.
    xlabel, ylabel : str, optional
        Words with unit; those of the known budgets are known.
    labels : mapping, optional
        Words for methods.
    log : bool
        Logarithmic vertical axis.
    """
    for name in (x, y, by):
        if name not in frame:
            raise InputError(f"plot.tradeoff: no column '{name}'{nearest(name, list(frame))}")
    if not len(frame):
        raise InputError("plot.tradeoff: the table is empty")
    figure, axis = _subplots(figsize=(7.5, 5.4))
    words, unit = _AXES.get(x, (x.replace("_", " "), ""))
    factor, prefix = _prefix(float(np.median(frame[x]))) if unit else (1.0, "")
    found = frame[y].to_numpy(dtype=float)
    positive = found[np.isfinite(found) & (found > 0)]
    log = log and positive.size > 0
    # zeros, which a logarithmic axis has no place for, stand on its lower edge
    floor = float(positive.min()) / 3.0 if log else 0.0
    zeros = bool(log and np.any(found == 0.0))
    for index, (name, rows) in enumerate(frame.groupby(by, sort=False)):
        rows = rows.sort_values(x)
        label = (labels or {}).get(str(name)) or LABELS.get(str(name), str(name))
        if not np.isfinite(rows[y].to_numpy(dtype=float)).any():
            label += " (never feasible)"
        marker = _MARKERS[index % len(_MARKERS)]
        style = {"markersize": 4.5, **_style(str(name), index)}
        values = rows[y].to_numpy(dtype=float)
        if log:
            at = rows[x].to_numpy(dtype=float)[values == 0.0] / factor
            axis.plot(at, np.full(len(at), floor), linestyle="", marker=marker, color=style["color"], clip_on=False)
            values = np.where(values > 0, values, np.nan)
        axis.plot(rows[x] / factor, values, marker=marker, label=label, **style)
    axis.set_xlabel(xlabel or (f"{words} [{prefix}{unit}]" if unit else words))
    axis.set_ylabel(ylabel or y.replace("_", " "))
    if log:
        axis.set_yscale("log")
    if zeros:
        axis.set_ylim(bottom=floor)
        axis.annotate(
            "markers on the lower edge: 0",
            (0.99, 0.03),
            xycoords="axes fraction",
            ha="right",
            va="bottom",
            color="0.3",
            fontsize=8,
        )
    low, high = float(frame[x].min()) / factor, float(frame[x].max()) / factor
    margin = 0.03 * (high - low) or 0.5
    axis.set_xlim(low - margin, high + margin)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2)
    axis.set_title(title or "")
    return figure


def distortion(measured: Any, *, network: Any = None, title: str | None = None) -> Figure:
    """Draw how far pruning moves a network's output, next to what the analysis allows, against the ratio.

    Left the output, logarithmic; right the parameters: measured, and by the laws of distortion where the network's
    section is given.

    Parameters
    ----------
    measured : jointopt.inference.OutputDistortion
        From `jointopt.inference.output_distortion`.
    network : jointopt.system.Network, optional
        The section of a scenario: its weight rates and its law.
    """
    from jointopt.models import distortion as laws

    figure, (left, right) = _subplots(1, 2, figsize=(10.5, 4.6))
    ratios = np.asarray(measured.ratios)
    curves = [
        (measured.bound, "bound, difference by entry sums", {"color": "#D55E00"}),
        (measured.induced_bound, "bound, difference by induced norms", {"color": "#E69F00", "linestyle": "--"}),
        (measured.surrogate, "constant x parameter distortion", {"color": "#CC79A7", "linestyle": "-."}),
        (measured.worst, "measured, worst input", {"color": "#0072B2", "marker": "o"}),
        (measured.mean, "measured, mean over inputs", {"color": "#56B4E9", "marker": "s"}),
    ]
    for values, label, style in curves:
        values = np.asarray(values, dtype=float)
        shown = np.isfinite(values) & (values > 0)
        if shown.any():
            left.plot(ratios[shown], values[shown], label=label, markersize=4, **style)
    left.set_yscale("log")
    left.set_ylabel("output distortion $||f(x,W)-f(x,\\hat W)||_1$")
    right.plot(ratios, measured.parameter, color="#0072B2", marker="o", markersize=4, label="measured")
    if network is not None:
        per_weight = float(np.sum(network.parameters / network.weight_rate))
        fine = np.linspace(0.0, max(float(ratios.max()), 0.01), 200)
        right.plot(
            fine,
            per_weight * laws.magnitude_distortion(fine),
            color="#009E73",
            linestyle="--",
            label="formula for Laplace weights",
        )
        if network.curve_ratio is not None and network.curve_distortion is not None:
            within = fine[fine <= network.curve_ratio[-1]]
            curve = laws.curve_distortion(within, network.curve_ratio, network.curve_distortion)
            right.plot(within, per_weight * curve, color="#D55E00", linewidth=1, label="curve of the scenario")
    right.set_ylabel("parameter distortion $||W-\\hat W||_1$")
    right.set_ylim(bottom=0)
    for axis in (left, right):
        axis.set_xlabel("pruning ratio (share of weights removed)")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    figure.suptitle(title or "Distortion of output and parameters")
    return figure


def splits(frame: Any, *, y: str = "pruning_ratio", title: str | None = None) -> Figure:
    """Draw the best value at every split, per device; splits without a feasible decision are crossed.

    Parameters
    ----------
    frame : DataFrame
        As `jointopt.study.split_values` makes it.
    y : {"pruning_ratio", "distortion"}
        What to draw (distortion on a logarithmic axis).
    """
    if y not in frame or "split" not in frame:
        raise InputError(f"plot.splits: no column '{y if 'split' in frame else 'split'}'{nearest(y, list(frame))}")
    devices = list(frame["device"].unique())
    shown = devices[: len(_MARKERS)]
    log = y == "distortion" and bool((frame[y] > 0).any())
    figure, (axis, grid) = _subplots(
        2, 1, figsize=(7.5, 5.4), sharex=True, height_ratios=[3, max(0.6, 0.22 * len(shown))]
    )
    colours = [style["color"] for style in STYLE.values()][: len(_MARKERS)]
    for index, device in enumerate(shown):
        rows = frame[frame["device"] == device].sort_values("split")
        at, values = rows["split"].to_numpy(), rows[y].to_numpy(dtype=float)
        positive = np.where(values > 0, values, np.nan) if log else values
        axis.plot(
            at,
            positive,
            marker=_MARKERS[index],
            markersize=5,
            color=colours[index],
            alpha=0.9,
            label=f"device {device}",
        )
        kept = rows["feasible"].to_numpy(dtype=bool)
        level = np.full(len(rows), index)
        grid.plot(at[kept], level[kept], "o", color=colours[index], markersize=5)
        grid.plot(at[~kept], level[~kept], "x", color="0.6", markersize=5)
        if kept.any():
            # ties as the solver breaks them: the least value, of those the first split
            best = int(np.nanargmin(np.where(kept, values, np.nan)))
            grid.plot(at[best], index, "o", markersize=11, markerfacecolor="none", markeredgecolor="0.2")
    if log:
        axis.set_yscale("log")
    words = {"pruning_ratio": "pruning ratio of the best decision", "distortion": "bound on the output distortion"}
    axis.set_ylabel(words.get(y, y))
    axis.grid(alpha=0.3)
    if axis.get_legend_handles_labels()[0]:
        axis.legend(fontsize=8, loc="best")
    grid.set_yticks(range(len(shown)), [str(d) for d in shown])
    grid.set_ylim(-0.7, len(shown) - 0.3)
    grid.set_ylabel("device")
    last = int(frame["split"].max())
    grid.set_xlabel(f"split: layers on the device (0: all on the server, {last}: all on the device)")
    grid.xaxis.get_major_locator().set_params(integer=True)
    grid.grid(axis="x", alpha=0.3)
    grid.set_title("dot: feasible, cross: not, circle: best of the device", fontsize=8, color="0.3")
    figure.suptitle(title or "What each split allows")
    return figure


def carried_out(report: Any, *, title: str | None = None) -> Figure:
    """Draw what a co-inference decision did on a real network, per device.

    Parameters
    ----------
    report : jointopt.inference.CarriedOut
        Bits planned and sent, output distortion measured and its bound, and quality against the dense network's.
    """
    size = len(report)
    x = np.arange(size)
    name = "psnr" if "psnr" in report.quality else next(iter(report.quality))
    figure, axes = _subplots(3, 1, figsize=(8, 8), sharex=True)
    most = float(max(report.planned_bits.max(), report.sent_bits_max.max()))
    factor, prefix = _prefix(most) if most > 0 else (1.0, "")
    axes[0].bar(x - 0.2, report.planned_bits / factor, width=0.38, color="0.7", label="planned")
    axes[0].bar(x + 0.2, report.sent_bits / factor, width=0.38, color="#E69F00", label="sent")
    axes[0].set_ylabel(f"bits at the cut\nper input [{prefix}bit]")
    axes[0].set_ylim(0, 1.3 * most / factor if most > 0 else 1.0)
    if most == 0:
        axes[0].annotate("nothing is sent", (0.5, 0.5), xycoords="axes fraction", ha="center", color="0.3", fontsize=8)
    axes[1].plot(x, _positive(report.output_distortion_max), "o", color="#0072B2", label="measured, worst input")
    axes[1].plot(x, _positive(report.output_distortion), "s", color="#56B4E9", label="measured, mean")
    if np.isfinite(report.bound).any():
        axes[1].plot(x, _positive(report.bound), "_", color="#D55E00", markersize=16, markeredgewidth=2, label="bound")
    axes[1].set_yscale("log")
    for u in x[~(report.output_distortion_max > 0)] if size <= 12 else []:
        where = {"xy": (u, 0.4), "xycoords": ("data", "axes fraction")}
        axes[1].annotate("none", **where, ha="center", color="0.3", fontsize=8)
    axes[1].set_ylabel("output distortion\n$||f(x,W)-f(x,\\hat W)||_1$")
    axes[2].bar(x, report.quality[name], width=0.7, color="#009E73")
    axes[2].axhline(report.dense_quality[name], color="0.3", linestyle=":", label="dense network")
    axes[2].set_ylabel({"psnr": "PSNR [dB]", "spearman": "Spearman correlation"}.get(name, name))
    top = max(float(np.max(report.quality[name])), report.dense_quality[name])
    axes[2].set_ylim(min(0.0, float(np.min(report.quality[name]))), 1.3 * top if top > 0 else 1.0)
    for axis in axes:
        axis.grid(axis="y", alpha=0.3)
        axis.legend(fontsize=8, loc="upper right", ncols=3)
    low, high = axes[1].get_ylim()
    axes[1].set_ylim(low / 2, high * (high / low) ** 0.25)
    if size <= 40:
        axes[2].set_xticks(
            x,
            [f"{u}\nratio {report.pruning_ratio[u]:.2f}\nsplit {int(report.split[u])}" for u in x]
            if size <= 8
            else None,
        )
    axes[2].set_xlabel("device")
    axes[0].set_xlim(-0.8, size - 0.2)
    figure.suptitle(title or f"{report.network}: the decision carried out on {report.inputs} inputs")
    return figure


def _positive(values: np.ndarray) -> np.ndarray:
    return np.where(values > 0, values, np.nan)

"""Figures of synthetic samples: what they cost, what they save, how far they mislead."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jointopt.errors import InputError
from jointopt.plot.figures import LABELS, _prefix, _style, _subplots

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["energies_to_target", "gradient_gaps", "levels"]

_PARTS = (
    ("generation", "synthetic samples", "#CC79A7"),
    ("computing", "computing", "#0072B2"),
    ("upload", "sending", "#E69F00"),
)


def _need(frame: Any, names: Sequence[str], where: str) -> None:
    for name in names:
        if name not in frame:
            raise InputError(f"plot.{where}: the table has no column '{name}'")


def levels(frame: Any, *, title: str | None = None) -> Figure:
    """Draw the trade-off of synthetic samples: energy by its parts, and rounds, against the augmentation level.

    Parameters
    ----------
    frame : DataFrame
        As `jointopt.study.level_tradeoff` makes it; levels from which the target cannot be reached are shaded.
    """
    _need(frame, ("augmentation_level", "rounds", *(name for name, _, _ in _PARTS)), "levels")
    figure, axes = _subplots(2, 1, figsize=(8, 7), sharex=True)
    x = frame["augmentation_level"].to_numpy()
    good = np.isfinite(frame["rounds"].to_numpy(dtype=np.float64))
    bottom = np.zeros(int(good.sum()))
    parts = [frame[name].to_numpy(dtype=np.float64)[good] for name, _, _ in _PARTS]
    factor, prefix = _prefix(float(np.sum(parts, axis=0).max()) if good.any() else 1.0)
    for (_, word, colour), part in zip(_PARTS, parts, strict=True):
        axes[0].fill_between(x[good], bottom / factor, (bottom + part) / factor, color=colour, alpha=0.85, label=word)
        bottom = bottom + part
    if good.any():
        best = int(np.argmin(bottom))
        axes[0].plot(x[good][best], bottom[best] / factor, "o", color="black", label="least energy")
    axes[0].set_ylabel(f"energy to the target [{prefix}J]")
    axes[0].set_ylim(bottom=0)
    axes[0].legend(fontsize=8, loc="upper right")
    axes[1].plot(x[good], frame["rounds"].to_numpy(dtype=np.float64)[good], color="#009E73", marker="o", markersize=3)
    axes[1].set_ylabel("rounds to the target")
    axes[1].set_ylim(bottom=0)
    axes[1].set_xlabel("augmentation level (0: real samples only, 1: all classes as large as the largest)")
    for axis in axes:
        axis.grid(alpha=0.3)
        axis.set_xlim(x.min(), x.max())
        if not good.all():
            lost = x[~good].max()
            axis.axvspan(x.min(), lost, color="0.85", zorder=0)
            axis.annotate(
                "target out\nof reach", (lost, 0.5), xycoords=("data", "axes fraction"), ha="right", fontsize=8
            )
    figure.suptitle(title or "What synthetic samples cost, and the rounds they save")
    return figure


def gradient_gaps(gaps: Any, *, title: str | None = None) -> Figure:
    """Draw how far gradients over synthetic samples lie from those over real ones, along a warm-up.

    Parameters
    ----------
    gaps : ClassGradientGaps
        Of `jointopt.federated.gradient_gaps`.
    """
    figure, axes = _subplots(1, 2, figsize=(11, 4.5))
    rounds = np.arange(len(gaps.loss))
    lines = (("real", "over real samples", "#000000"), ("gap", "synthetic less real", "#D55E00"))
    for name, word, colour in (*lines, ("held_out_gap", "other real samples less real", "#56B4E9")):
        values = getattr(gaps, name)
        if np.all(np.isnan(values)):
            continue
        mean, low, high = np.nanmean(values, axis=1), np.nanmin(values, axis=1), np.nanmax(values, axis=1)
        axes[0].plot(rounds, mean, color=colour, label=word)
        axes[0].fill_between(rounds, low, high, color=colour, alpha=0.15, linewidth=0)
    axes[0].set_xlabel("round of the warm-up")
    axes[0].set_ylabel("norm of a class's gradient, or of a difference")
    axes[0].set_yscale("log")
    axes[0].legend(fontsize=8, title="mean and range over classes", title_fontsize=8)
    classes = np.arange(gaps.gap.shape[1])
    axes[1].bar(classes - 0.2, np.nanmean(gaps.gap, axis=0), width=0.38, color="#D55E00", label="synthetic")
    if not np.all(np.isnan(gaps.held_out_gap)):
        beside = np.ma.masked_invalid(gaps.held_out_gap).mean(axis=0).filled(0.0)
        axes[1].bar(classes + 0.2, beside, width=0.38, color="#56B4E9", label="other real")
    axes[1].set_xticks(classes)
    axes[1].set_xlabel("class")
    axes[1].set_ylabel("distance of gradients (mean over rounds)")
    axes[1].legend(fontsize=8)
    for axis in axes:
        axis.grid(axis="y", alpha=0.3)
    figure.suptitle(title or "How far synthetic samples mislead; what real ones show is sampling noise")
    return figure


def energies_to_target(frame: Any, *, accuracy: float, title: str | None = None) -> Figure:
    """Draw the energy until a test accuracy is reached: a panel per class mix, a group per participation rate.

    Bars are means over the seeds that reached it, dots single seeds; the number of seeds that did not is written below.

    Parameters
    ----------
    frame : DataFrame
        Columns `alpha`, `participation`, `seed`, `method`, `energy` (NaN where the accuracy was not reached).
    accuracy : float
        What was to be reached, for the axis.
    """
    _need(frame, ("alpha", "participation", "method", "energy"), "energies_to_target")
    alphas, rates = sorted(frame["alpha"].unique()), sorted(frame["participation"].unique())
    methods = list(dict.fromkeys(frame["method"]))
    figure, axes = _subplots(1, len(alphas), figsize=(3.2 + 3.6 * len(alphas), 5), sharey=True, squeeze=False)
    width = 0.8 / len(methods)
    for axis, alpha in zip(axes[0], alphas, strict=True):
        for m, method in enumerate(methods):
            style = _style(method, m)
            for g, rate in enumerate(rates):
                where = (frame["alpha"] == alpha) & (frame["participation"] == rate) & (frame["method"] == method)
                energies = frame.loc[where, "energy"].to_numpy(dtype=np.float64)
                done = energies[np.isfinite(energies)]
                x = g + (m - 0.5 * (len(methods) - 1)) * width
                label = LABELS.get(method, method) if g == 0 else None
                axis.bar(x, done.mean() if done.size else np.nan, width=0.9 * width, color=style["color"], label=label)
                axis.plot(np.full(done.size, x), done, ".", color="0.25", markersize=4, zorder=6)
                if done.size < energies.size:
                    text = f"{energies.size - done.size}/{energies.size}\nnever"
                    axis.annotate(text, (x, 0.01), xycoords=("data", "axes fraction"), ha="center", fontsize=6)
        axis.set_xticks(range(len(rates)), [f"{rate:.0%}" for rate in rates])
        axis.set_xlabel("devices in a round")
        axis.set_title(f"Dirichlet {alpha:g}", fontsize=10)
        axis.set_yscale("log")
        axis.grid(axis="y", alpha=0.3)
    axes[0][0].set_ylabel(f"energy until {accuracy:.0%} test accuracy [J]")
    handles, words = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, words, loc="outside lower center", ncols=min(len(words), 5), fontsize=8)
    figure.suptitle(title or "Energy to the target accuracy, synthetic samples included")
    return figure

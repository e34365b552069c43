"""One scenario in many designs: accuracy against energy, delay and bytes, one line per design."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jointopt.errors import InputError, is_whole, nearest
from jointopt.plot.figures import _subplots

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["LABELS", "STYLE", "designs"]

LABELS = {
    "ltfl": "LTFL",
    "ltfl-pool": "LTFL, shared budgets",
    "feel": "FEEL",
    "feddpq": "FedDPQ",
    "ratio-bandwidth": "ratio and band",
    "ratio-bandwidth-selection": "ratio, band, selection",
    "time-triggered": "time-triggered",
    "ratio-error": "ratio against error",
    "hierarchical": "hierarchical",
    "fedsgd": "plain FedSGD",
    "uniform": "one setting for all",
}
"""Words for designs and references."""

# Okabe and Ito's colours; designs that share a colour differ in line and marker.
STYLE: dict[str, dict[str, Any]] = {
    "ltfl": {"color": "#D55E00", "marker": "o", "zorder": 5},
    "ltfl-pool": {"color": "#D55E00", "marker": "s", "linestyle": "--", "zorder": 5},
    "feel": {"color": "#0072B2", "marker": "^"},
    "feddpq": {"color": "#009E73", "marker": "D"},
    "ratio-bandwidth": {"color": "#CC79A7", "marker": "v"},
    "ratio-bandwidth-selection": {"color": "#CC79A7", "marker": "P", "linestyle": "--"},
    "hierarchical": {"color": "#882255", "marker": "X", "linestyle": ":"},
    "time-triggered": {"color": "#56B4E9", "marker": "<"},
    "ratio-error": {"color": "#E69F00", "marker": ">"},
    "fedsgd": {"color": "#000000", "marker": "*", "linestyle": "--"},
    "uniform": {"color": "#7F7F7F", "marker": "h", "linestyle": ":"},
}
_PANELS = {
    "energy": ("energy spent by all devices [J]", 1.0, "J"),
    "delay": ("time passed [s]", 1.0, "s"),
    "bits": ("data sent by all devices [MB]", 8e6, "MB"),
}


def designs(
    trainings: Mapping[str, Sequence[Any]],
    *,
    mark: Mapping[str, float] | None = None,
    smooth: int = 1,
    labels: Mapping[str, str] | None = None,
    title: str | None = None,
) -> Figure:
    """Draw test accuracy against energy, delay and bytes, a panel each; mean and range over seeds.

    A marker stands where a design's training ended: all did as many rounds.

    Parameters
    ----------
    trainings : mapping of design to TrainingResults or Runs
        One per seed.
    mark : mapping, optional
        Of "energy" [J], "delay" [s] and "bits", to where the designs are compared; drawn as a line.
    smooth : int
        Evaluations, an odd number, in the running mean that is drawn; fewer at both ends.
    labels : mapping, optional
        Words for designs, instead of `LABELS`.
    title : str, optional

    Raises
    ------
    InputError
        For an unknown mark, a number to smooth over that is not odd, or runs of which none was evaluated.
    """
    for name in mark or {}:
        if name not in _PANELS:
            raise InputError(f"plot.designs: unknown mark '{name}'{nearest(name, _PANELS)}")
    if not (is_whole(smooth) and smooth >= 1 and smooth % 2):
        raise InputError(f"plot.designs: smooth must be an odd whole number of at least 1, found {smooth!r}")
    evaluated = {name: curve for name, runs in trainings.items() if (curve := _curve(runs, smooth)) is not None}
    if not evaluated:
        raise InputError("plot.designs: no run has an evaluated round")
    last = [100 * values.mean(axis=0)[-1] for _, values in evaluated.values()]
    # the first rounds, alike for all, would take half of the room
    bottom = max(0.0, min(min(last) - 5.0, 0.7 * max(last)))
    figure, axes = _subplots(1, 3, figsize=(13.5, 6.2), sharey=True)
    for axis, (column, (words, factor, unit)) in zip(axes, _PANELS.items(), strict=True):
        for index, (name, (costs, values)) in enumerate(evaluated.items()):
            style = {"linewidth": 1.8, "markersize": 7, **STYLE.get(name, {"color": f"C{index}", "marker": "o"})}
            x = costs[column] / factor
            label = (labels or {}).get(name) or LABELS.get(name, name)
            axis.plot(x, 100 * values.mean(axis=0), label=label, markevery=[len(x) - 1], **style)
            if len(values) > 1:
                low, high = 100 * values.min(axis=0), 100 * values.max(axis=0)
                axis.fill_between(x, low, high, color=style["color"], alpha=0.10, linewidth=0)
        _logarithmic(axis, min(costs[column][_seen(values, bottom)] / factor for costs, values in evaluated.values()))
        axis.set_xlabel(words)
        axis.grid(alpha=0.3)
        if mark and column in mark:
            at = mark[column] / factor
            axis.axvline(at, color="0.35", linewidth=1, linestyle=(0, (2, 2)))
            where = {"xy": (at, 1.0), "xycoords": ("data", "axes fraction")}
            axis.annotate(
                f"compared at {_plain(at)} {unit}", **where, ha="center", va="bottom", color="0.35", fontsize=8
            )
    axes[0].set_ylabel("test accuracy [%]" + (f", running mean of {smooth} evaluations" if smooth > 1 else ""))
    axes[0].set_ylim(bottom=bottom)
    handles, words_of = axes[0].get_legend_handles_labels()
    columns = min(6, len(words_of))
    figure.legend(handles, words_of, loc="outside lower center", ncols=columns, fontsize=9, handlelength=3.5)
    figure.suptitle(title or "")
    return figure


def _curve(runs: Sequence[Any], smooth: int) -> tuple[dict[str, np.ndarray], np.ndarray] | None:
    """Return costs (means over seeds) and accuracies [seeds, evaluations]; None where nothing was evaluated."""
    rows = [[row for row in run.rows if row["test_accuracy"] is not None] for run in runs]
    length = min((len(some) for some in rows), default=0)
    if length == 0:
        return None
    costs = {
        name: np.mean([[float(row[f"cumulative_{name}"]) for row in some[:length]] for some in rows], axis=0)
        for name in _PANELS
    }
    values = np.array([[row["test_accuracy"] for row in some[:length]] for some in rows])
    half = smooth // 2
    means = [values[:, max(i - half, 0) : i + half + 1].mean(axis=1) for i in range(length)]
    return costs, np.stack(means, axis=1)


def _seen(values: np.ndarray, bottom: float) -> int:
    """Return the first evaluation whose mean over seeds is not below what is drawn."""
    return int(np.argmax(100 * values.mean(axis=0) >= bottom))


def _plain(value: float) -> str:
    return f"{value:.3g}" if value < 1e3 else f"{value:,.0f}"


def _logarithmic(axis: Any, first: float) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator

    axis.set_xscale("log")
    axis.set_xlim(left=0.7 * first)
    axis.xaxis.set_major_locator(LogLocator(base=10, subs=(1.0, 3.0)))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    axis.xaxis.set_minor_formatter(FuncFormatter(lambda v, _: ""))

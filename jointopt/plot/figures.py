"""The figures. Every function returns a matplotlib Figure and takes what solvers and training return."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from jointopt.errors import InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["STYLE", "accuracy", "convergence", "decision"]

# Okabe and Ito's colours, which colour-blind readers can tell apart, plus two greys.
STYLE: dict[str, dict[str, Any]] = {
    "exact": {"color": "#D55E00", "linewidth": 2.4, "zorder": 5},
    "bayesian": {"color": "#0072B2"},
    "alternating": {"color": "#009E73"},
    "no_compression": {"color": "#000000", "linestyle": "--"},
    "fixed": {"color": "#CC79A7"},
    "uniform": {"color": "#E69F00"},
    "random": {"color": "#999999", "linestyle": ":"},
    "no_pruning": {"color": "#56B4E9", "linestyle": "-."},
    "no_quantization": {"color": "#7F5F3F", "linestyle": "-."},
    "no_power_control": {"color": "#5D3A9B", "linestyle": "-."},
}
LABELS = {
    "exact": "joint design (exact)",
    "bayesian": "joint design (Bayesian)",
    "alternating": "alternating closed forms",
    "no_compression": "no compression",
    "fixed": "fixed ratio and bits",
    "uniform": "one ratio and bits for all",
    "random": "random feasible",
    "no_pruning": "without pruning",
    "no_quantization": "without quantization",
    "no_power_control": "without power control",
}

_UNITS = {1e-9: "n", 1e-6: "\u00b5", 1e-3: "m", 1.0: "", 1e3: "k", 1e6: "M", 1e9: "G"}


def _prefix(largest: float) -> tuple[float, str]:
    """Factor and prefix that bring a number to 1..1000."""
    for factor in sorted(_UNITS, reverse=True):
        if largest >= factor:
            return factor, _UNITS[factor]
    return 1e-9, "n"


def _style(name: str, index: int) -> dict[str, Any]:
    return STYLE.get(name, {"color": f"C{index}"})


def _subplots(*args: Any, **kwargs: Any) -> Any:
    # Figures made without pyplot: nothing global, works without a display.
    from matplotlib.figure import Figure

    class ShownFigure(Figure):
        """A figure that notebooks draw without pyplot's machinery."""

        def _repr_png_(self) -> bytes:
            picture = io.BytesIO()
            self.savefig(picture, format="png", dpi=100)
            return picture.getvalue()

    figure = ShownFigure(figsize=kwargs.pop("figsize"), layout="constrained")
    return figure, figure.subplots(*args, **kwargs)


def decision(result: Any, *, title: str | None = None) -> Figure:
    """Draw what each device was told, and how much of its budgets that uses.

    Parameters
    ----------
    result : Result
        With a decision; devices are sorted by mean channel gain, weakest first.
    """
    if result.decision is None:
        raise InputError("plot.decision: the result holds no decision")
    table = result.to_pandas()
    system = result.problem.system
    order = np.argsort(system.radio.gain, kind="stable")
    table = table.iloc[order]
    x = np.arange(len(table))
    figure, axes = _subplots(4, 1, figsize=(9, 9), sharex=True)
    power_factor, power_prefix = _prefix(float(table["power"].max()))
    panels = [
        ("pruning_ratio", "pruning ratio\n(share of weights removed)", 1.0, (0, 1)),
        ("bits", "bits per parameter", 1.0, (0, float(table["bits"].max()) * 1.15)),
        ("power", f"transmit power [{power_prefix}W]", power_factor, None),
    ]
    for axis, (name, label, factor, limits) in zip(axes, panels, strict=False):
        axis.bar(x, table[name] / factor, color=STYLE["exact"]["color"], width=0.7)
        axis.set_ylabel(label)
        if limits:
            axis.set_ylim(*limits)
        axis.grid(axis="y", alpha=0.3)
    variables = {v.name: v for v in result.problem.variables}
    for bound, label in ((variables["power"].upper, "largest"), (variables["power"].lower, "smallest")):
        axes[2].plot(x, bound[order] / power_factor, color="0.4", linestyle=":", linewidth=1)
        axes[2].annotate(
            f"{label}\nallowed",
            (x[-1] + 0.55, bound[order][-1] / power_factor),
            color="0.3",
            fontsize=8,
            va="center",
        )
    axes[2].set_ylim(0, 1.1 * float(max(variables["power"].upper.max(), table["power"].max())) / power_factor)
    axes[2].set_xlim(-0.8, 1.1 * len(x) + 0.4)
    use = {
        "delay": table["delay"].to_numpy() / system.devices.delay_budget[order],
        "energy": table["energy"].to_numpy() / system.devices.energy_budget[order],
    }
    axes[3].bar(x - 0.2, 100 * use["delay"], width=0.38, color="#0072B2", label="delay")
    axes[3].bar(x + 0.2, 100 * use["energy"], width=0.38, color="#E69F00", label="energy")
    axes[3].axhline(100, color="0.3", linewidth=1)
    axes[3].set_ylim(0, max(115.0, 105 * float(max(use["delay"].max(), use["energy"].max()))))
    axes[3].set_ylabel("budget used [%]")
    axes[3].legend(loc="center right", fontsize=8, handlelength=1.0)
    axes[3].grid(axis="y", alpha=0.3)
    if len(x) <= 40:
        axes[3].set_xticks(x, [str(u) for u in table.index])
    axes[3].set_xlabel("device (weakest mean channel first)")
    gap = "" if result.gap is None else f", certified gap {result.gap:.1e}"
    value = "infeasible" if result.value is None else f"value {result.value:.4g}"
    figure.suptitle(title or f"{result.problem.name}, {result.method}: {value}{gap}")
    return figure


def accuracy(
    trainings: Mapping[str, Sequence[Any]],
    *,
    against: Literal["energy", "delay", "rounds"] = "energy",
    mark: float | None = None,
    labels: Mapping[str, str] | None = None,
    title: str | None = None,
    axis: Any = None,
) -> Figure:
    """Draw test accuracy against cumulative energy, delay or rounds; mean and range over seeds.

    Parameters
    ----------
    trainings : mapping of method to TrainingResults
        One result per seed.
    against : {"energy", "delay", "rounds"}
        The horizontal axis (logarithmic for energy and delay).
    mark : float, optional
        The common cost [J or s] at which methods are compared, drawn as a line.
    labels : mapping, optional
        Words for methods in the legend, instead of their names.
    axis : matplotlib Axes, optional
        Where to draw; a new figure otherwise.
    """
    if against not in ("energy", "delay", "rounds"):
        raise InputError(f"plot.accuracy: against={against!r} must be 'energy', 'delay' or 'rounds'")
    if axis is None:
        figure, axis = _subplots(figsize=(7.5, 4.8))
    else:
        figure = axis.figure
    column = {"energy": "cumulative_energy", "delay": "cumulative_delay", "rounds": "round"}[against]
    curves = {}
    for name, runs in trainings.items():
        points = [
            [(row[column], row["test_accuracy"]) for row in run.rows if row["test_accuracy"] is not None]
            for run in runs
        ]
        length = min((len(p) for p in points), default=0)
        if length:
            data = np.array([p[:length] for p in points])
            curves[name] = (data[:, :, 0].mean(axis=0), data[:, :, 1])
    if not curves:
        raise InputError("plot.accuracy: no run has an evaluated round")
    largest = max(float(c[0][-1]) for c in curves.values())
    # a logarithmic axis reads best in the plain unit
    factor, prefix = (1.0, "") if against == "rounds" or 0.1 <= largest < 1e5 else _prefix(largest)
    for index, (name, (x, values)) in enumerate(curves.items()):
        style = _style(name, index)
        label = (labels or {}).get(name) or LABELS.get(name, name)
        axis.plot(x / factor, 100 * values.mean(axis=0), label=label, **style)
        if values.shape[0] > 1:
            low, high = 100 * values.min(axis=0), 100 * values.max(axis=0)
            axis.fill_between(x / factor, low, high, color=style["color"], alpha=0.12, linewidth=0)
    if mark is not None:
        axis.axvline(mark / factor, color="0.35", linewidth=1, linestyle=(0, (2, 2)))
        where = {"xy": (mark / factor, 1.0), "xycoords": ("data", "axes fraction")}
        unit_text = f"compared at {mark / factor:.3g} {prefix}{'J' if against == 'energy' else 's'}"
        axis.annotate(unit_text, **where, ha="center", va="bottom", color="0.35", fontsize=8)
    if against != "rounds":
        from matplotlib.ticker import FuncFormatter, LogLocator

        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0)))
        axis.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
        axis.xaxis.set_minor_formatter(FuncFormatter(lambda v, _: ""))
    unit = {
        "energy": f"energy spent by all devices [{prefix}J]",
        "delay": f"time passed [{prefix}s]",
        "rounds": "round",
    }
    axis.set_xlabel(unit[against])
    axis.set_ylabel("test accuracy [%]")
    axis.grid(alpha=0.3, which="both" if against != "rounds" else "major")
    axis.legend(fontsize=8, loc="best")
    axis.set_title(title or "", pad=16 if mark is not None else None)
    return figure


def convergence(results: Mapping[str, Any], *, title: str | None = None) -> Figure:
    """Draw the best value found against evaluations, per method, with the certified lower bound."""
    if not results:
        raise InputError("plot.convergence: no results")
    figure, axis = _subplots(figsize=(7.5, 4.5))
    bound = None
    for index, (name, result) in enumerate(results.items()):
        if result.lower_bound is not None:
            bound = result.lower_bound if bound is None else max(bound, result.lower_bound)
        history = [h for h in result.history if h.get("violation", 0.0) <= 1e-9]
        if name != "exact" and len(history) > 1:
            best = np.minimum.accumulate([h["value"] for h in history])
            style = _style(name, index)
            axis.step([h["evaluation"] for h in history], best, where="post", label=LABELS.get(name, name), **style)
        elif result.value is not None:
            axis.axhline(result.value, label=LABELS.get(name, name), **_style(name, index))
    if bound is not None:
        axis.axhline(bound, color="0.2", linestyle=":", linewidth=1.6, zorder=6, label="certified lower bound")
    axis.set_xlabel("evaluations")
    axis.set_ylabel("best feasible value found")
    axis.grid(alpha=0.3)
    # room for the legend above the curves
    low, high = axis.get_ylim()
    axis.set_ylim(low, high + 0.35 * (high - low))
    axis.legend(fontsize=8, ncols=3, loc="upper center")
    axis.set_title(title or "")
    return figure

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
    # baselines of one design only: colours come again in another line style
    "convex": {"color": "#D55E00", "linestyle": "-.", "linewidth": 2.4, "zorder": 5},
    "random_selection": {"color": "#999999", "linestyle": "-."},
    "full_participation": {"color": "#E69F00", "linestyle": "--"},
    "fixed_ratio": {"color": "#CC79A7", "linestyle": "--"},
    "resources_only": {"color": "#7F5F3F", "linestyle": "--"},
    "unaware": {"color": "#0072B2", "linestyle": "--"},
    "fedavg": {"color": "#000000", "linestyle": "-."},
    "all_on_device": {"color": "#5D3A9B", "linestyle": "--"},
    "all_on_server": {"color": "#56B4E9", "linestyle": "--"},
    "fixed_frequency": {"color": "#CC79A7", "linestyle": "-."},
    "fixed_power": {"color": "#E69F00", "linestyle": "-."},
    "equal_bandwidth": {"color": "#009E73", "linestyle": "--"},
    "nlp": {"color": "#882255", "linestyle": ":"},
    "scenarios": {"color": "#D55E00", "linestyle": ":", "linewidth": 2.4, "zorder": 5},
    "no_augmentation": {"color": "#56B4E9"},
    "exact_without_samples": {"color": "#F0E442"},
    "fedsgd": {"color": "#8C8C8C", "linestyle": ":"},
    "dense": {"color": "#000000"},
    "prune_only": {"color": "#56B4E9", "linestyle": ":"},
    "quantize_only": {"color": "#7F5F3F", "linestyle": ":"},
    "least_ratio": {"color": "#009E73", "linestyle": "-."},
    "staged": {"color": "#D55E00", "linestyle": "--", "linewidth": 2.4, "zorder": 5},
    "greedy": {"color": "#0072B2", "linestyle": ":"},
    "projected_gradient": {"color": "#009E73", "linestyle": ":"},
    "static": {"color": "#E69F00", "linestyle": ":"},
    "random_waypoint": {"color": "#999999", "linestyle": "--"},
    "threshold": {"color": "#CC79A7", "linestyle": ":"},
    "smallest_tier": {"color": "#5D3A9B", "linestyle": ":"},
    "synchronous": {"color": "#7F5F3F"},
}
LABELS = {
    "exact": "joint design (exact)",
    "bayesian": "joint design (Bayesian)",
    "alternating": "alternating closed forms",
    "no_compression": "no compression",
    "fixed": "fixed ratio and bits",
    "uniform": "one setting for all",
    "random": "random feasible",
    "no_pruning": "without pruning",
    "no_quantization": "without quantization",
    "no_power_control": "without power control",
    "convex": "joint design (convex program)",
    "random_selection": "random selection",
    "full_participation": "everyone takes part",
    "fixed_ratio": "fixed ratio",
    "resources_only": "resources only, one ratio",
    "unaware": "unaware of the generalization gap",
    "fedavg": "FedAvg (everyone, dense)",
    "all_on_device": "all on the device",
    "all_on_server": "all on the server",
    "fixed_frequency": "greatest frequencies",
    "fixed_power": "full power",
    "equal_bandwidth": "band split evenly",
    "nlp": "local search",
    "scenarios": "one decision for all systems",
    "no_augmentation": "without synthetic samples",
    "fedsgd": "plain federated learning",
    "exact_without_samples": "joint design, its samples taken away",
    "dense": "dense, floats sent",
    "prune_only": "pruning only",
    "quantize_only": "quantization only",
    "least_ratio": "least ratio of each level",
    "staged": "best way (backward induction)",
    "greedy": "best next point",
    "projected_gradient": "short-sighted gradient steps",
    "static": "hovering",
    "random_waypoint": "random waypoints",
    "threshold": "threshold on the ratio",
    "smallest_tier": "first tier on an equal split",
    "synchronous": "everyone in the fastest tier",
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


_PANELS = {
    "pruning_ratio": "pruning ratio\n(share of weights removed)",
    "bits": "bits per parameter",
    "power": "transmit power",
    "bandwidth": "bandwidth",
    "frequency": "processor\nfrequency",
    "server_frequency": "server\nfrequency",
    "split": "split (layers\non the device)",
}
STAGES = {
    "device": ("device", "#0072B2"),
    "send": ("uplink", "#E69F00"),
    "server": ("server", "#009E73"),
}
"""Stages of split inference: prefix of the quantity, to word and colour."""


def _gain(system: Any) -> np.ndarray:
    """Mean channel gain of each device; of one in the air over its slots."""
    if hasattr(system, "vehicles"):
        return np.asarray(system.gain).mean(axis=1)
    return np.asarray((system.radio if hasattr(system, "radio") else system.link).gain)


def _title(result: Any) -> str:
    gap = "" if result.gap is None else f", certified gap {result.gap:.1e}"
    value = "infeasible" if result.value is None else f"value {result.value:.4g}"
    return f"{result.problem.name}, {result.method}: {value}{gap}"


def decision(result: Any, *, title: str | None = None) -> Figure:
    """Draw what each device was told, and how much of its budgets that uses.

    One panel for each of the design's variables, and the use of budgets, by stages where a server computes too.
    Devices that are left out are shaded. Decisions of many slots are maps over slots and devices, or ways.

    Parameters
    ----------
    result : Result
        With a decision; devices are sorted by mean channel gain, weakest first.
    """
    if result.decision is None:
        raise InputError("plot.decision: the result holds no decision")
    layered = [v for v in result.problem.variables if v.axis == "layer"]
    if layered:
        return _layer_decision(result, layered[0], title)
    if any(v.axis == "slot" for v in result.problem.variables):
        from jointopt.plot.slots import slot_decision

        return slot_decision(result, title or _title(result))
    table = result.to_pandas()
    order = np.argsort(_gain(result.problem.system), kind="stable")
    table = table.iloc[order]
    size = len(table)
    x = np.arange(size)
    taken = table["selected"].to_numpy() > 0.5 if "selected" in table else np.ones(size, dtype=bool)
    variables = [v for v in result.problem.variables if v.kind != "binary" and v.axis != "common"]
    common = [v.name for v in result.problem.variables if v.axis == "common"]
    staged = "server_delay" in table
    count = len(variables) + (2 if staged else 1)
    figure, axes = _subplots(count, 1, figsize=(9, max(9.0, 1.9 * count)), sharex=True)
    shared = {name.removeprefix("total_") for name, slack in result.evaluation.slack.items() if np.ndim(slack) == 0}
    for axis, variable in zip(axes, variables, strict=False):
        values = np.where(taken, table[variable.name].to_numpy(), 0.0)
        _panel(axis, variable, values, order, size, limits=not any(variable.name in name for name in shared))
    axes[0].set_xlim(-0.8, 1.1 * size + 0.4)
    if staged:
        for axis, name, unit in ((axes[-2], "delay", "s"), (axes[-1], "energy", "J")):
            _stages(axis, table, x, name, unit, result.problem.system, order)
    else:
        _use(axes[-1], result.evaluation, x, taken, order)
    for axis in axes:
        for u in x[~taken]:
            axis.axvspan(u - 0.5, u + 0.5, color="0.88", zorder=0, linewidth=0)
        axis.grid(axis="y", alpha=0.3)
    if not taken.all():
        axes[0].annotate(
            f"shaded: left out ({int((~taken).sum())} of {size})",
            (1.0, 1.0),
            xycoords="axes fraction",
            ha="right",
            va="bottom",
            color="0.3",
            fontsize=8,
        )
    for name in shared & {v.name for v in variables}:
        whole = float(result.evaluation.scale[f"total_{name}"])
        used = whole - float(result.evaluation.slack[f"total_{name}"])
        axis = axes[[v.name for v in variables].index(name)]
        text = f"all together: {used / whole:.1%} of the total"
        axis.annotate(text, (1.0, 1.0), xycoords="axes fraction", ha="right", va="bottom", color="0.3", fontsize=8)
    if size <= 40:
        axes[-1].set_xticks(x, [str(u) for u in table.index])
    axes[-1].set_xlabel("device (weakest mean channel first)")
    chosen = [f"{name.replace('_', ' ')} {float(np.ravel(result.decision[name])[0]):.3g} for all" for name in common]
    figure.suptitle("\n".join([title or _title(result), *chosen]))
    return figure


def _panel(axis: Any, variable: Any, values: np.ndarray, order: np.ndarray, size: int, *, limits: bool) -> None:
    """Bars of one variable, with its range where that is a unit's and each device's own."""
    label = _PANELS.get(variable.name, variable.name.replace("_", " "))
    factor, prefix = (1.0, "")
    if variable.unit in ("W", "Hz", "s", "J"):
        factor, prefix = _prefix(float(values.max()) or float(variable.upper.max()))
        label += f" [{prefix}{variable.unit}]"
    x = np.arange(size)
    axis.bar(x, values / factor, color=STYLE["exact"]["color"], width=0.7)
    axis.set_ylabel(label)
    top = float(values.max()) / factor
    if variable.name == "pruning_ratio":
        axis.set_ylim(0, 1)
    elif variable.unit in ("W", "Hz") and limits:
        low, high = (np.broadcast_to(v, (size,))[order] / factor for v in (variable.lower, variable.upper))
        if np.array_equal(low, high):
            axis.annotate("not chosen", (x[-1] + 0.55, high[-1]), color="0.3", fontsize=8, va="center")
            return
        # a limit far above what is used would flatten the bars
        near = high.max() <= 20 * max(top, 1e-300) or top == 0.0
        for bound, word in ((high, "largest"), (low, "smallest")):
            if (word == "largest" and not near) or (word == "smallest" and not np.any(low > 0)):
                continue
            axis.plot(x, bound, color="0.4", linestyle=":", linewidth=1)
            axis.annotate(f"{word}\nallowed", (x[-1] + 0.55, bound[-1]), color="0.3", fontsize=8, va="center")
        axis.set_ylim(0, 1.1 * max(float(high.max()) if near else 0.0, top, 1e-12))
    else:
        axis.set_ylim(0, max(top * 1.15, 1e-12) if top > 0 else 1.0)


def _use(axis: Any, evaluation: Any, x: np.ndarray, taken: np.ndarray, order: np.ndarray) -> None:
    """Shares used of the delay and energy budgets that the design has."""
    colours = {"delay": "#0072B2", "energy": "#E69F00"}
    limited = [name for name in colours if name in evaluation.slack]
    width = 0.76 / max(len(limited), 1)
    most = 0.0
    for index, name in enumerate(limited):
        budget = np.broadcast_to(np.asarray(evaluation.scale[name], dtype=np.float64), x.shape)
        share = np.where(taken, 1.0 - (np.asarray(evaluation.slack[name]) / budget)[order], 0.0)
        place = x + (index - 0.5 * (len(limited) - 1)) * (width + 0.02)
        axis.bar(place, 100 * share, width=width, color=colours[name], label=name)
        most = max(most, float(share.max()))
    axis.axhline(100, color="0.3", linewidth=1)
    axis.set_ylim(0, max(115.0, 105 * most))
    axis.set_ylabel("budget used [%]")
    if limited:
        axis.legend(loc="center right", fontsize=8, handlelength=1.0)


def _stages(
    axis: Any,
    table: Any,
    x: np.ndarray,
    name: str,
    unit: str,
    system: Any,
    order: np.ndarray,
    *,
    flat: bool = False,
) -> None:
    """Stacked bars of a delay's or an energy's stages as shares of the budget; `flat`: lying."""
    budget = getattr(system.devices, f"{name}_budget")[order]
    bottom = np.zeros(len(x))
    for stage, (word, colour) in STAGES.items():
        part = 100 * table[f"{stage}_{name}"].to_numpy() / budget
        if flat:
            axis.barh(x, part, left=bottom, height=0.6, color=colour, label=word)
        else:
            axis.bar(x, part, bottom=bottom, width=0.7, color=colour, label=word)
        bottom = bottom + part
    (axis.axvline if flat else axis.axhline)(100, color="0.3", linewidth=1)
    whole = max(115.0, 105 * float(bottom.max()) / 100)
    if flat:
        axis.set_xlim(0, whole)
        factor, prefix = _prefix(float(budget[0]))
        axis.set_xlabel(f"share of the {name} budget used [%] (100 % = {budget[0] / factor:.3g} {prefix}{unit})")
        axis.set_yticks([])
        axis.set_ylabel(name)
        axis.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=8, handlelength=1.0)
    else:
        axis.set_ylim(0, whole)
        axis.set_ylabel(f"{name} budget\nused [%]")
        axis.legend(loc="center right", fontsize=8, handlelength=1.0)


def _layer_decision(result: Any, variable: Any, title: str | None) -> Figure:
    """Ratios over the layers of one device, and where its budgets go."""
    table = result.to_pandas()
    values = np.ravel(result.decision[variable.name]) * np.ones(len(variable.upper))
    split = int(result.decision["split"][0])
    figure, axes = _subplots(3, 1, figsize=(9, 7.5), height_ratios=[3, 1, 1])
    layers = np.arange(1, len(values) + 1)
    where = np.where(layers <= split, STAGES["device"][1], STAGES["server"][1])
    axes[0].bar(layers, values, color=where, width=0.7)
    axes[0].set_xticks(layers)
    axes[0].set_xlabel("layer")
    axes[0].set_ylabel(_PANELS.get(variable.name, variable.name))
    axes[0].set_ylim(0, max(1.18 * float(values.max()), 1e-3))
    axes[0].axvline(split + 0.5, color="0.3", linestyle=":", linewidth=1.2)
    for text, side, gap in (("on the device", "right", -0.15), ("on the server", "left", 0.15)):
        if split > 0 if side == "right" else split < len(values):
            axes[0].annotate(
                text,
                (split + 0.5 + gap, 0.98),
                xycoords=("data", "axes fraction"),
                ha=side if split > 2 or side == "left" else "left",
                va="top" if side == "left" or split > 2 else "bottom",
                fontsize=8,
                color="0.3",
            )
    axes[0].grid(axis="y", alpha=0.3)
    for axis, name, unit in ((axes[1], "delay", "s"), (axes[2], "energy", "J")):
        _stages(axis, table, np.arange(1), name, unit, result.problem.system, np.arange(1), flat=True)
    figure.suptitle(title or _title(result))
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
        figure, axis = _subplots(figsize=(7.5, 4.8 + 0.14 * len(trainings) * (len(trainings) > 6)))
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
    if len(curves) > 6:
        # inside it would hide curves
        axis.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2)
    else:
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
        if name not in ("exact", "convex") and len(history) > 1:
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

"""Decisions of many slots: maps over slots and devices, and ways over the ground."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from jointopt.plot.figures import _PANELS, _subplots

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["slot_decision"]

DRAWN = 20
"""Ways that are drawn at most: more cannot be told apart."""


def slot_decision(result: Any, title: str) -> Figure:
    """Draw a decision whose variables have a value per slot and device: ways where it has places, else maps.

    Parameters
    ----------
    result : Result
        With a decision of all slots.
    title : str
        Above the figure.
    """
    quantities = result.evaluation.quantities
    return _ways(result, title) if {"x", "y"} <= set(quantities) else _maps(result, title)


def _maps(result: Any, title: str) -> Figure:
    """One map over slots and devices for each variable and each budget; who sits out is grey, in order of number."""
    problem, evaluation = result.problem, result.evaluation
    devices = len(problem.system)
    variables = [v for v in problem.variables if v.axis == "slot"]
    values = {_PANELS.get(v.name, v.name.replace("_", " ")): result.decision[v.name] for v in variables}
    part = np.asarray(evaluation.quantities.get("takes_part", 1.0)) > 0.5
    for name in ("delay", "energy"):
        if name in evaluation.slack:
            share = 1.0 - np.asarray(evaluation.slack[name]) / evaluation.scale[name]
            values[f"{name} budget\nused [%]"] = 100.0 * share
    size = variables[0].upper.size

    def shaped(array: Any) -> np.ndarray:
        return np.broadcast_to(np.asarray(array), size).reshape(-1, devices).T

    height = min(4.0, max(1.3, 0.22 * devices + 0.6))
    figure, axes = _subplots(len(values), 1, figsize=(9, 1.2 + height * len(values)), sharex=True, squeeze=False)
    out = ~shaped(part)
    for axis, (label, array) in zip(axes[:, 0], values.items(), strict=True):
        shown = np.ma.masked_where(out, shaped(array))
        image = axis.imshow(shown, aspect="auto", interpolation="nearest", cmap="viridis", **_scale(label, shown))
        axis.set_facecolor("0.85")
        figure.colorbar(image, ax=axis, label=label)
        axis.set_ylabel("device")
        axis.yaxis.get_major_locator().set_params(integer=True)
        axis.xaxis.get_major_locator().set_params(integer=True)
    axes[-1, 0].set_xlabel("slot" + (f" (grey: sits out, {int(out.sum())} of {size})" if out.any() else ""))
    figure.suptitle(title)
    return figure


def _scale(label: str, shown: Any) -> dict[str, Any]:
    """Budgets to 100 %, what spans decades (levels) by its logarithm, the rest from 0."""
    from matplotlib.colors import LogNorm

    if "%" in label:
        return {"vmin": 0.0, "vmax": 100.0}
    if shown.count() and shown.min() > 0.0 and shown.max() >= 20.0 * shown.min():
        return {"norm": LogNorm(float(shown.min()), float(shown.max()))}
    return {"vmin": 0.0}


def _ways(result: Any, title: str) -> Figure:
    """The ways over the ground, each from its start."""
    system, quantities = result.problem.system, result.evaluation.quantities
    devices = len(system)
    places = np.stack([np.asarray(quantities[name]).reshape(-1, devices) for name in ("x", "y")], axis=-1)
    places = np.concatenate([system.vehicles.start[None], places])
    figure, axis = _subplots(figsize=(7.5, 7.5))
    for u in range(min(devices, DRAWN)):
        (line,) = axis.plot(places[:, u, 0], places[:, u, 1], marker=".", markersize=4, linewidth=1.2)
        axis.plot(*places[0, u], marker="s", markersize=7, color=line.get_color())
        axis.annotate(f" {u}", places[0, u], fontsize=8, color="0.2")
    axis.plot(*system.station, marker="^", markersize=9, color="black", linestyle="none", label="station")
    axis.plot([], [], marker="s", color="0.4", linestyle="none", label="start, with the device's number")
    axis.set_xlim(0, system.area.width)
    axis.set_ylim(0, system.area.length)
    axis.set_aspect("equal")
    axis.set_xlabel("first coordinate [m]")
    axis.set_ylabel("second coordinate [m]")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.08), ncols=2)
    more = f"\nthe first {DRAWN} of {devices} vehicles" if devices > DRAWN else ""
    figure.suptitle(title + more)
    return figure

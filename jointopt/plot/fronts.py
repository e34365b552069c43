"""Figures of trade-offs between two or three objectives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from jointopt.errors import InputError
from jointopt.plot.figures import _prefix, _style, _subplots

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["fronts"]

_COLOURS = {"exact": "#D55E00", "qlognehvi": "#0072B2", "nsga2": "#009E73"}
_MARKERS = {"exact": "o", "qlognehvi": "s", "nsga2": "^"}
_LABELS = {
    "exact": "epsilon-constraint, certified",
    "qlognehvi": "Bayesian (qLogNEHVI)",
    "nsga2": "NSGA-II",
}


def fronts(
    shown: Any,
    *,
    labels: Mapping[str, str] | None = None,
    reference: bool = False,
    log: tuple[str, ...] = (),
    title: str | None = None,
) -> Figure:
    """Draw one front, or several of the same objectives side by side.

    Certified points are filled, others hollow. With two objectives each front stands as a staircase (what it allows:
    everything to the right of and above it), and the shaded part is proved to be out of reach of every decision. With
    three, the third is the colour, one panel per front.

    Parameters
    ----------
    shown : Front, or mapping of str to Front
        From `jointopt.study.pareto`.
    labels : mapping, optional
        Words for the names.
    reference : bool
        Whether to mark the reference point of the hypervolume (two objectives): the first certified front's, if any.
    log : tuple of str
        Objectives, by name, on a logarithmic axis.

    Raises
    ------
    InputError
        Without a point to draw, or for different objectives.
    """
    known = dict(shown) if isinstance(shown, Mapping) else {getattr(shown, "method", "front"): shown}
    if not known or not any(len(front) for front in known.values()):
        raise InputError("plot.fronts: there is no point to draw")
    first = next(iter(known.values()))
    for name, front in known.items():
        if front.objectives != first.objectives:
            raise InputError(f"plot.fronts: '{name}' is about {front.objectives}, expected {first.objectives}")
    for name in log:
        if name not in first.objectives:
            raise InputError(f"plot.fronts: log: unknown objective '{name}'; known: {', '.join(first.objectives)}")
    words = {name: (labels or {}).get(name) or _LABELS.get(name, name) for name in known}
    draw = _plane if len(first.objectives) == 2 else _panels
    figure = draw(known, words, reference, log)
    figure.suptitle(title or _title(first))
    return figure


def _title(front: Any) -> str:
    problem = "" if front.problem is None else f"{front.problem.name}, {len(front.problem.system)} devices: "
    return f"{problem}{' against '.join(front.objectives)}"


def _axis(front: Any, j: int, top: float) -> tuple[float, str]:
    """Factor and label of an objective's axis."""
    name, unit = front.objectives[j], front.units[j]
    if name == "objective" and front.problem is not None:
        own = getattr(front.problem, "objective", None)
        name = f"objective ({own})" if isinstance(own, str) else "objective"
    if not unit:
        return 1.0, name
    factor, prefix = _prefix(top) if unit in ("s", "J", "W", "Hz", "bit", "bit/s") and top > 0.0 else (1.0, "")
    return factor, f"{name} [{prefix}{unit}]"


def _front_style(name: str, front: Any, index: int) -> tuple[Any, str]:
    colour = _COLOURS.get(front.method, _style(name, index)["color"])
    if index and front.method not in _COLOURS:
        colour = f"C{index}"
    return colour, _MARKERS.get(front.method, "D")


def _plane(known: Mapping[str, Any], words: Mapping[str, str], reference: bool, log: tuple[str, ...]) -> Any:
    """Two objectives: the second along, the first up."""
    first = next(iter(known.values()))
    every = np.concatenate([front.values for front in known.values() if len(front)])
    (up, up_label), (along, along_label) = (_axis(first, j, float(every[:, j].max())) for j in (0, 1))
    scale = np.array([up, along])
    low, high = every.min(axis=0) / scale, every.max(axis=0) / scale
    width = np.where(high > low, high - low, np.maximum(np.abs(high), 1e-300))
    left, right = low - 0.08 * width, high + 0.08 * width
    for j, name in enumerate(first.objectives):
        if name in log:
            left[j], right[j] = low[j] / 1.2, high[j] * 1.2
    mark = _mark(known) / scale if reference else None
    if mark is not None:
        right = np.maximum(right, mark + 0.03 * width)
    figure, axis = _subplots(figsize=(7.5, 5.6))
    proved = [front for front in known.values() if len(front.excluded)]
    for index, front in enumerate(proved):
        _shade(
            axis, np.minimum(front.excluded / scale, right), left, "proved: no decision there" if not index else None
        )
    seen: dict[str, int] = {}
    for index, (name, front) in enumerate(known.items()):
        if not len(front):
            axis.plot([], [], " ", label=f"{words[name]}: no point")
            continue
        colour, marker = _front_style(name, front, index)
        again = seen.get(front.method, 0)
        seen[front.method] = again + 1
        style = ("-", "--", ":", "-.")[again % 4]
        values = front.values / scale
        order = np.argsort(values[:, 1])
        values = values[order]
        steps = np.vstack([[right[0], values[0, 1]], values, [values[-1, 0], right[1]]])
        axis.step(steps[:, 1], steps[:, 0], where="post", color=colour, linewidth=1.0, alpha=0.7, linestyle=style)
        certified = np.array([gap is not None for gap in front.gaps])[order]
        gap = front.worst_gap
        note = f", gaps up to {gap:.0e}" if gap is not None and gap > 0.0 else ""
        for mask, face in ((certified, colour), (~certified, "white")):
            if mask.any():
                axis.plot(
                    values[mask, 1],
                    values[mask, 0],
                    marker,
                    color=colour,
                    markerfacecolor=face,
                    markersize=4.5,
                    label=f"{words[name]} ({int(mask.sum())} points{note if face != 'white' else ''})",
                )
    if mark is not None:
        axis.plot(mark[1], mark[0], "+", color="0.2", markersize=10, label="reference point")
    axis.set_ylim(left[0], right[0])
    axis.set_xlim(left[1], right[1])
    for j, set_scale in ((0, axis.set_yscale), (1, axis.set_xscale)):
        if first.objectives[j] in log:
            set_scale("log")
    axis.set_ylabel(up_label)
    axis.set_xlabel(along_label)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2)
    return figure


def _mark(known: Mapping[str, Any]) -> np.ndarray:
    """The reference point of the first certified front, or else the largest."""
    points = [front for front in known.values() if len(front)]
    proved = [front.reference for front in points if front.worst_gap is not None]
    return np.asarray(proved[0] if proved else np.max([front.reference for front in points], axis=0))


def _shade(axis: Any, excluded: np.ndarray, left: np.ndarray, label: str | None) -> None:
    """Shade the union of the boxes below and to the left of each row."""
    order = np.argsort(excluded[:, 1], kind="stable")
    along, up = excluded[order, 1], excluded[order, 0]
    # how high the ruled-out part reaches at each place: the largest bound of the rows further right
    reach = np.maximum.accumulate(up[::-1])[::-1]
    x = np.concatenate([[left[1]], along])
    y = np.concatenate([reach, reach[-1:]])
    axis.fill_between(x, left[0], y, step="post", color="0.85", linewidth=0.0, zorder=0, label=label)
    # ends where nothing more is proved
    axis.step(x, y, where="post", color="0.6", linewidth=0.7, zorder=1)


def _panels(known: Mapping[str, Any], words: Mapping[str, str], reference: bool, log: tuple[str, ...]) -> Any:
    """Three objectives: the second along, the third up, the first as colour; one panel per front."""
    from matplotlib.colors import LogNorm, Normalize

    first = next(iter(known.values()))
    every = np.concatenate([front.values for front in known.values() if len(front)])
    axes_of = [_axis(first, j, float(every[:, j].max())) for j in range(3)]
    scale = np.array([factor for factor, _ in axes_of])
    every = every / scale
    figure, panels = _subplots(1, len(known), figsize=(1.5 + 4.7 * len(known), 4.8), sharex=True, sharey=True)
    norm = (LogNorm if first.objectives[0] in log else Normalize)(every[:, 0].min(), every[:, 0].max())
    drawn = None
    for axis, (name, front) in zip(np.atleast_1d(panels), known.items(), strict=True):
        values = front.values / scale
        if len(front):
            drawn = axis.scatter(
                values[:, 1],
                values[:, 2],
                c=values[:, 0],
                cmap="viridis",
                norm=norm,
                s=34,
                marker=_MARKERS.get(front.method, "D"),
                edgecolors=["black" if gap is not None else "none" for gap in front.gaps],
                linewidths=0.9,
            )
        gap = front.worst_gap
        proved = ", not certified" if gap is None else f", gaps up to {gap:.0e} (ringed: certified)"
        axis.set_title(f"{words[name]}\n{len(front)} points{proved if len(front) else ''}", fontsize=9)
        axis.set_xlabel(axes_of[1][1])
        axis.grid(alpha=0.3)
        for j, set_scale in ((1, axis.set_xscale), (2, axis.set_yscale)):
            if first.objectives[j] in log:
                set_scale("log")
    np.atleast_1d(panels)[0].set_ylabel(axes_of[2][1])
    figure.colorbar(drawn, ax=list(np.atleast_1d(panels)), label=axes_of[0][1])
    return figure

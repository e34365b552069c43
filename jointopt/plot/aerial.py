"""Figures of learning in the air: the classes that are there, arrive and are held; online training over time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from jointopt.errors import InputError, is_whole
from jointopt.models import mobility
from jointopt.plot.figures import LABELS, _prefix, _style, _subplots
from jointopt.system import AerialSystem, FloatArray

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["class_mixes", "online"]

COLOURS = (
    "#4477AA",
    "#FFA90E",
    "#920000",
    "#66CCEE",
    "#B66DFF",
    "#A6761D",
    "#332288",
    "#EE6677",
    "#DDCC77",
    "#882255",
)
"""Ten hues at least 22 apart in CIELAB, as they are and as seen with each kind of colour blindness [S]."""
NAMED = 12
"""Above so many classes, or characters of a name, maps bear numbers only."""
CELLS = 300
"""Cells of a map along its longer side."""
LEGEND_ROWS = 34
"""Classes below one another in a legend."""
SMALLEST = 6.0
"""Share [%] from which an area bears its class's number."""


def colour(label: int) -> str:
    """Return the colour of a class; beyond ten they come again, and the number tells."""
    return COLOURS[label % len(COLOURS)]


def check_system(system: Any, where: str) -> AerialSystem:
    """Refuse what is no system in the air."""
    if not isinstance(system, AerialSystem):
        raise InputError(f"plot.{where}: expected an AerialSystem, got {type(system).__name__}")
    return system


def check_names(names: Sequence[str] | None, classes: int, where: str) -> list[str]:
    """Return the words for the classes, number first; refuse another number of names."""
    if names is None:
        return [str(c) for c in range(classes)]
    if isinstance(names, str) or not np.iterable(names) or not all(isinstance(name, str) and name for name in names):
        raise InputError(f"plot.{where}: names must be words, one for each class, got {names!r}")
    if len(names) != classes:
        raise InputError(f"plot.{where}: {len(names)} names for {classes} classes")
    return [f"{c} {name}" for c, name in enumerate(names)]


def check_numbers(values: Any, limit: int, kind: str, where: str) -> list[int]:
    """Return numbers of slots or vehicles, each from 0 and below a limit, none twice."""
    values = list(values) if np.iterable(values) and not isinstance(values, str) else [values]
    if not values:
        raise InputError(f"plot.{where}: {kind}s is empty")
    for value in values:
        if not (is_whole(value) and 0 <= value < limit):
            raise InputError(f"plot.{where}: unknown {kind} {value!r}; known: 0 to {limit - 1}")
        if values.count(value) > 1:
            raise InputError(f"plot.{where}: {kind} {value} is named twice")
    return [int(value) for value in values]


def share_places(system: AerialSystem, vehicles: Sequence[int]) -> bool:
    """Whether vehicles see the same classes at the same places at all times."""
    places, mapping = (getattr(system.sensing, name)[list(vehicles)] for name in ("class_means", "class_map"))
    return bool(np.allclose(places, places[:1]) and np.allclose(mapping, mapping[:1]))


def held_classes(system: AerialSystem) -> FloatArray:
    """Return the expected samples of every class in the buffers, shape [devices, slots, classes].

    First in, first out (theory 5a [S]); what comes with a slot has its expected classes, what was held before the mix
    that is there in the first.
    """
    devices, slots, classes = system.class_yield.shape
    came = np.zeros((devices, slots + 1))
    came[:, 0], came[:, 1:] = system.vehicles.held, system.arrivals
    total = np.cumsum(came, axis=1)
    mix = np.concatenate([system.class_mix[:, :1], mobility.class_probabilities(system.class_yield)], axis=1)
    held = np.empty((devices, slots, classes))
    for u in range(devices):
        # what came with a slot stays as far as what came later leaves room for it
        later = total[u, 1:, None] - total[u]
        kept = np.clip(system.buffered[u][:, None] - later, 0.0, came[u])
        held[u] = np.where(later >= 0.0, kept, 0.0) @ mix[u]
    return held


class Field:
    """What vehicles that share their places would see from every cell of a map.

    Parameters
    ----------
    vehicles : list of int
        Over whom new samples are averaged.
    """

    def __init__(self, system: AerialSystem, vehicles: list[int]) -> None:
        self.system, self.vehicles = system, vehicles
        width, length = system.area.width, system.area.length
        cells = [max(1, round(CELLS * side / max(width, length))) for side in (width, length)]
        self.x, self.y = ((np.arange(n) + 0.5) * side / n for n, side in zip(cells, (width, length), strict=True))
        places = np.stack(np.meshgrid(self.x, self.y), axis=-1)
        sensing, radius = system.sensing, system.view_radius[vehicles]
        means = sensing.class_means[vehicles[0]]
        # cells from which the widest view sees a class: all others are empty throughout
        near = mobility.distance(places[:, :, None], means).min(axis=-1) <= radius.max() * (1.0 + 1e-9)
        self.near: npt.NDArray[np.bool_] = near
        # vehicles of a kind see the same
        kinds = np.stack([radius, sensing.samples_max[vehicles]])
        groups, self.count = np.unique(kinds, axis=1, return_counts=True)
        self.samples_max = groups[1]
        alone, scale = np.ones(sensing.classes), sensing.length_scale
        decay = {r: np.asarray(mobility.class_yield(places[near], means, alone, scale, r)) for r in set(groups[0])}
        self.decay = [decay[r] for r in groups[0]]

    def at(self, slot: int) -> tuple[FloatArray, npt.NDArray[np.int64]]:
        """New samples in a slot (mean over vehicles) and the class seen most (-1: none), shape [rows, columns]."""
        mix = self.system.class_mix[self.vehicles[0], slot]
        seen: FloatArray = np.zeros((int(self.near.sum()), len(mix)))
        fresh = np.zeros(len(seen))
        for decay, most, count in zip(self.decay, self.samples_max, self.count, strict=True):
            seen += count * most * decay * mix
            fresh += count * np.asarray(mobility.arrivals(decay * mix, most))
        new, best = np.zeros(self.near.shape), np.full(self.near.shape, -1, dtype=np.int64)
        new[self.near] = fresh / len(self.vehicles)
        best[self.near] = np.where(seen.max(axis=-1) > 0.0, seen.argmax(axis=-1), -1)
        return new, best

    def most(self, slots: Sequence[int]) -> float:
        """Most new samples on the map in any of some slots."""
        return max(float(self.at(slot)[0].max()) for slot in slots)

    def picture(self, slot: int, most: float) -> FloatArray:
        """Colours [rows, columns, 3]: the hue of the class seen most, from white at 0 to full at `most` samples."""
        from matplotlib.colors import to_rgb

        new, best = self.at(slot)
        hues = np.array([to_rgb(c) for c in COLOURS])[best % len(COLOURS)]
        strength = new / most if most > 0.0 else new
        return np.asarray(1.0 - strength[..., None] * (1.0 - hues))


def class_mixes(
    system: AerialSystem, *, vehicle: int | None = None, names: Sequence[str] | None = None, title: str | None = None
) -> Figure:
    """Draw over time which classes are there, which arrive, which the buffers hold, and how many samples that is.

    Shares of what arrives and of what is held are expected ones, along the trajectories. White: nothing came, or
    nothing is held.

    Parameters
    ----------
    vehicle : int, optional
        Number of the vehicle, from 0; all together when not given (what is there is then their mean).
    names : sequence of str, optional
        A word for each class.

    Raises
    ------
    InputError
        For an unknown vehicle or another number of names.
    """
    system = check_system(system, "class_mixes")
    words = check_names(names, system.sensing.classes, "class_mixes")
    chosen = slice(None) if vehicle is None else check_numbers([vehicle], len(system), "vehicle", "class_mixes")
    arrived, held = system.arrivals[chosen], held_classes(system)[chosen].sum(axis=0)
    came = (mobility.class_probabilities(system.class_yield[chosen]) * arrived[..., None]).sum(axis=0)
    edges = system.area.slot * np.arange(system.area.slots + 1.0)

    figure, axes = _subplots(4, 1, figsize=(10, 9.5), height_ratios=[3, 3, 3, 1.6], sharex=True)
    one = vehicle is not None or len(system) == 1
    layers = (
        (system.class_mix[chosen].mean(axis=0), "there to be seen" + ("" if one else "\n(mean over vehicles)")),
        (came, "arriving in the slot\n(expected)"),
        (held, "in the buffer" + ("" if one else "s") + "\n(expected)"),
    )
    for axis, (values, label) in zip(axes, layers, strict=False):
        _stack(axis, values, edges)
        axis.set_ylabel(f"{label}\nshare of classes [%]")
    limit = float(system.sensing.buffer[chosen].sum())
    axes[3].stairs(arrived.sum(axis=0), edges, fill=True, color="0.55", label="arriving in the slot")
    axes[3].stairs(system.buffered[chosen].sum(axis=0), edges, baseline=None, color="black", label="held")
    if system.buffered[chosen].sum(axis=0).max() > 0.5 * limit:
        axes[3].axhline(limit, color="0.3", linestyle=":", label="room in the buffer" + ("" if one else "s"))
    axes[3].set_ylabel("samples")
    axes[3].set_ylim(bottom=0)
    axes[3].grid(alpha=0.3)
    figure.legend(handles=axes[3].get_legend_handles_labels()[0], loc="outside right lower", fontsize=8)
    axes[3].set_xlabel("time [s]")
    axes[3].set_xlim(edges[0], edges[-1])
    handles = [_patch(colour(c), word) for c, word in enumerate(words)]
    style = {"fontsize": 8, "title_fontsize": 8, "ncols": -(-len(handles) // LEGEND_ROWS)}
    figure.legend(handles=handles[::-1], title="class", loc="outside right upper", **style)
    who = f"vehicle {vehicle or 0}" if one else f"all {len(system)} vehicles together"
    figure.suptitle(title or f"{system.name}: classes over time, {who}")
    return figure


def _patch(color: str, label: str) -> Any:
    from matplotlib.patches import Patch

    return Patch(facecolor=color, label=label)


def _stack(axis: Any, values: FloatArray, edges: FloatArray) -> None:
    """Stacked shares [%] of values [slots, classes]; each class's number stands where its share is largest."""
    total = values.sum(axis=1, keepdims=True)
    share = np.divide(100.0 * values, total, out=np.zeros_like(values), where=total > 0.0)
    bottom = np.zeros(len(share))
    for c, part in enumerate(share.T):
        paint = colour(c)
        axis.stairs(bottom + part, edges, baseline=bottom, fill=True, facecolor=paint, edgecolor="white", linewidth=0.4)
        widest = int(np.argmax(part))
        if part[widest] >= SMALLEST:
            place = 0.5 * (edges[widest] + edges[widest + 1]), bottom[widest] + 0.5 * part[widest]
            axis.annotate(str(c), place, ha="center", va="center", fontsize=8, color=text_colour(paint))
        bottom = bottom + part
    axis.set_ylim(0, 100)


def text_colour(background: str) -> str:
    """Return black or white, whichever reads better on a colour."""
    from matplotlib.colors import to_rgb

    return "black" if float(np.dot(to_rgb(background), (0.299, 0.587, 0.114))) > 0.55 else "white"


_PANELS = (
    ("test_accuracy", "test accuracy [%]"),
    ("current_accuracy", "accuracy on the classes\nthat buffers hold [%]"),
    ("arrival_accuracy", "accuracy on samples new to all,\nbefore training on them [%]"),
    ("cumulative_energy", "energy of learning so far"),
    ("cumulative_bits", "sent so far"),
    ("cumulative_flight_energy", "energy of flying so far"),
)


def online(runs: Mapping[str, Any], *, title: str = "") -> Figure:
    """Draw online training over time: accuracies, and what learning, sending and flying took in all.

    Lines are means over seeds, bands one standard deviation either way. Accuracy on what arrives is averaged over the
    last slots, a thirtieth of all. Panels without data are left out; flying is drawn only where it differs.

    Parameters
    ----------
    runs : mapping of method to training result or sequence of them
        One result per seed, of an `AerialSystem`; those that `compare` keeps do too.
    title : str
        Above the figure.

    Raises
    ------
    InputError
        For no runs, runs of another design, or none with a slot that was evaluated.
    """
    if not isinstance(runs, Mapping) or not runs:
        raise InputError("plot.online: expected a mapping of method to runs, with at least one")
    series = {name: _runs(given, name) for name, given in runs.items()}
    curves = {
        key: {name: curve for name, group in series.items() if (curve := _curve(group, key)) is not None}
        for key, _ in _PANELS
    }
    if not curves["test_accuracy"]:
        raise InputError("plot.online: no run has an evaluated slot")
    if not _differ(list(curves["cumulative_flight_energy"].values())):
        curves["cumulative_flight_energy"] = {}
    shown = [(key, label) for key, label in _PANELS if curves[key]]
    accuracies = [item for item in shown if item[0].endswith("accuracy")]
    costs = [item for item in shown if item not in accuracies]
    columns = max(len(accuracies), len(costs))
    figure, axes = _subplots(2, columns, figsize=(1.0 + 4.3 * columns, 7.6), squeeze=False)
    for row, items in zip(axes, (accuracies, costs), strict=True):
        for axis, (key, label) in zip(row, items, strict=False):
            _panel(axis, key, label, curves[key], list(series))
        for axis in row[len(items) :]:
            axis.remove()
    window = max(_window(run) for group in series.values() for run in group)
    if window > 1 and curves["arrival_accuracy"]:
        axes[0, len(accuracies) - 1].set_title(f"over the last {window} slots", fontsize=9)
    last = max(float(x[-1]) for panel in curves.values() for x, _, _ in panel.values())
    for axis in figure.axes:
        axis.set_xlabel("time [s]")
        axis.set_xlim(0.0, last)
        axis.grid(alpha=0.3)
    handles, words = axes[0, 0].get_legend_handles_labels()
    seeds = sorted({len(group) for group in series.values()})
    many = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    note = f"mean over {many} seeds, band: standard deviation" if seeds[-1] > 1 else None
    figure.legend(
        handles, words, loc="outside lower center", ncols=min(4, len(words)), fontsize=9, title=note, title_fontsize=8
    )
    figure.suptitle(title)
    return figure


def _runs(given: Any, name: str) -> list[Any]:
    """Return the runs of a method, checked."""
    group = list(given) if isinstance(given, Sequence) else [given]
    if not group:
        raise InputError(f"plot.online: no run of '{name}'")
    for run in group:
        check_run(run, f"online: run of '{name}'")
    slots = {round(float(run.rows[0]["time"]) / run.rows[0]["round"], 9) for run in group}
    if len(slots) > 1:
        raise InputError(f"plot.online: runs of '{name}' have slots of different duration {sorted(slots)} s")
    return group


def check_run(run: Any, where: str) -> None:
    """Refuse what is no run of online learning in the air, or has no slot."""
    rows = getattr(run, "rows", None)
    if not isinstance(rows, Sequence):
        raise InputError(f"plot.{where}: expected a run of online training, got {type(run).__name__}")
    if not rows:
        raise InputError(f"plot.{where}: the run has no slots")
    missing = [key for key in ("round", "time", "arrived", "unseen", "held", *dict(_PANELS)) if key not in rows[0]]
    if missing:
        raise InputError(f"plot.{where}: its rows have no '{missing[0]}', so it is no online training")


def _curve(group: list[Any], key: str) -> tuple[FloatArray, FloatArray, FloatArray | None] | None:
    """Time [s], mean and standard deviation over seeds in the slots for which every seed has a value; None if none."""
    tables = [_trailing(run) if key == "arrival_accuracy" else _table(run, key) for run in group]
    rounds = sorted(set.intersection(*(set(table) for table in tables)))
    if not rounds:
        return None
    values = np.array([[table[r] for r in rounds] for table in tables], dtype=np.float64)
    spread = values.std(axis=0, ddof=1) if len(group) > 1 else None
    times = {row["round"]: row["time"] for row in group[0].rows}
    return np.array([times[r] for r in rounds], dtype=np.float64), values.mean(axis=0), spread


def _table(run: Any, key: str) -> dict[int, float]:
    return {row["round"]: row[key] for row in run.rows if known(row[key])}


def _trailing(run: Any) -> dict[int, float]:
    """Accuracy on the samples that came new to all in the last `_window` slots."""
    table, arrived = _table(run, "arrival_accuracy"), {row["round"]: row["unseen"] for row in run.rows}
    out = {}
    for last in arrived:
        rounds = [r for r in range(last - _window(run) + 1, last + 1) if r in table and arrived[r] > 0]
        if rounds:
            out[last] = float(np.average([table[r] for r in rounds], weights=[arrived[r] for r in rounds]))
    return out


def _window(run: Any) -> int:
    """Slots over which accuracy on what arrives is averaged: few samples make it jump from slot to slot."""
    return max(1, len(run.rows) // 30)


def known(value: float | None) -> bool:
    """Whether a row has a value: what was not evaluated, or diverged, has none."""
    return value is not None and bool(np.isfinite(value))


def _differ(curves: list[tuple[FloatArray, FloatArray, FloatArray | None]]) -> bool:
    """Whether curves are not all the same, as far as they go."""
    return any(
        not np.allclose(mean[:n], curves[0][1][:n])
        for _, mean, _ in curves[1:]
        for n in [min(len(mean), len(curves[0][1]))]
    )


def _panel(axis: Any, key: str, label: str, curves: Mapping[str, Any], order: list[str]) -> None:
    if key.endswith("accuracy"):
        factor, words = 0.01, label
        ends = [
            (mean + sign * (0.0 if spread is None else spread))
            for _, mean, spread in curves.values()
            for sign in (-1, 1)
        ]
        low, high = min(float(e.min()) for e in ends), max(float(e.max()) for e in ends)
        axis.set_ylim(max(0.0, 100.0 * low - 3.0), min(100.0, 100.0 * high + 3.0))
    else:
        most = max(float(mean[-1]) for _, mean, _ in curves.values())
        factor, prefix = _prefix(most) if most > 0.0 else (1.0, "")
        words = f"{label} [{prefix}{'bit' if key.endswith('bits') else 'J'}]"
    few = max(len(x) for x, _, _ in curves.values()) <= 25
    for name, (x, mean, spread) in curves.items():
        style = _style(name, order.index(name))
        line = {**style, **({"marker": ".", "markersize": 5} if few else {})}
        axis.plot(x, mean / factor, label=LABELS.get(name, name), **line)
        if spread is not None:
            axis.fill_between(
                x, (mean - spread) / factor, (mean + spread) / factor, color=style["color"], alpha=0.15, linewidth=0
            )
    if not key.endswith("accuracy"):
        axis.set_ylim(bottom=0)
    axis.set_ylabel(words)

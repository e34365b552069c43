"""Maps of vehicles in the air over the classes they see, as small multiples and in motion."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import numpy.typing as npt

from jointopt.errors import InputError, is_real
from jointopt.federated.progress import counting_bar
from jointopt.files import atomic_write
from jointopt.plot.aerial import (
    COLOURS,
    NAMED,
    Field,
    check_names,
    check_numbers,
    check_run,
    check_system,
    colour,
    held_classes,
    known,
    share_places,
)
from jointopt.plot.figures import _subplots
from jointopt.system import AerialSystem, FloatArray

if TYPE_CHECKING:
    from matplotlib.animation import FuncAnimation
    from matplotlib.figure import Figure

__all__ = ["animate", "flights", "save_animation"]

DRAWN = 20
"""Vehicles on a map at most, unless they are named: more cannot be told apart."""
RECENT = 3
"""Slots whose stretch of a way is drawn dark."""
MAPS = 40
"""Most maps in a figure."""
TEST_COLOUR = "#D55E00"
"""Colour of test accuracy beside maps."""
FPS_MAX = 50.0
"""Most frames a second that a GIF can play."""


class Map:
    """The area with field, class places, station, and vehicles on their ways; `show` brings it to a slot."""

    def __init__(self, axis: Any, field: Field, most: float) -> None:
        from matplotlib.patches import Circle

        system, vehicles = field.system, field.vehicles
        self.axis, self.field, self.most = axis, field, most
        self.way = np.concatenate([system.vehicles.start[:, None], system.trajectory], axis=1)[vehicles]
        extent = (0.0, system.area.width, 0.0, system.area.length)
        blank = np.ones((len(field.y), len(field.x), 3))
        self.image = axis.imshow(blank, extent=extent, origin="lower", interpolation="nearest", zorder=0)
        self.means = system.sensing.class_means[vehicles[0]]
        self.places = axis.scatter(
            *self.means.T, c=[colour(c) for c in range(len(self.means))], edgecolors="black", linewidths=0.7, zorder=4
        )
        axis.plot(*system.station, marker="^", markersize=8, color="black", linestyle="none", clip_on=False, zorder=5)
        axis.plot(
            *self.way[:, 0].T,
            marker="s",
            markersize=5,
            color="black",
            fillstyle="none",
            ls="none",
            clip_on=False,
            zorder=5,
        )
        line = {"color": "0.55", "linewidth": 0.8, "marker": ".", "markersize": 2.5, "zorder": 3}
        self.lines = [axis.plot([], [], **line)[0] for _ in vehicles]
        self.recent = [axis.plot([], [], **{**line, "color": "black", "linewidth": 1.3})[0] for _ in vehicles]
        head = {
            "marker": "o",
            "markersize": 11,
            "markerfacecolor": "white",
            "markeredgecolor": "black",
            "clip_on": False,
            "zorder": 7,
        }
        self.heads = axis.plot([], [], linestyle="none", **head)[0]
        text = {"fontsize": 8 if max(vehicles) < 100 else 5.5, "ha": "center", "va": "center", "zorder": 8}
        self.numbers = [axis.text(0, 0, str(u), **text) for u in vehicles]
        self.views = [
            axis.add_patch(Circle((0, 0), r, fill=False, linestyle=(0, (3, 2)), linewidth=0.9, zorder=6))
            for r in system.view_radius[vehicles]
        ]
        axis.set_xlim(extent[:2])
        axis.set_ylim(extent[2:])
        axis.set_aspect("equal")

    def show(self, slot: int) -> None:
        """Draw a slot, from 0."""
        system = self.field.system
        self.image.set_data(self.field.picture(slot, self.most))
        self.places.set_sizes(place_sizes(system.class_mix[self.field.vehicles[0], slot]))
        now = self.way[:, slot + 1]
        for line, recent, way in zip(self.lines, self.recent, self.way, strict=True):
            line.set_data(*way[: slot + 2].T)
            recent.set_data(*way[max(0, slot + 1 - RECENT) : slot + 2].T)
        self.heads.set_data(*now.T)
        for number, view, position in zip(self.numbers, self.views, now, strict=True):
            number.set_position(position)
            view.set_center(position)
        self.axis.set_title(f"slot {slot}: t = {system.times[slot]:.6g} s", fontsize=10)

    def label(self, words: list[str], slots: Sequence[int], fontsize: float = 7.0) -> None:
        """Put the classes' names beside their places, where the least is in the way (after the layout is settled)."""
        from matplotlib import patheffects

        axis, to_pixels = self.axis, self.axis.transData.transform
        scale = axis.figure.dpi / 72.0
        sizes = place_sizes(self.field.system.class_mix[self.field.vehicles[0], list(slots)].max(axis=0))
        centres = to_pixels(self.means)
        taken: list[tuple[float, ...]] = [
            (x, y, r, r, 2.0) for (x, y), r in zip(centres, 0.5 * scale * np.sqrt(sizes), strict=True)
        ]
        heads = self.way[:, [0, *(s + 1 for s in slots[:4])]].reshape(-1, 2)
        taken += [(x, y, 6 * scale, 6 * scale, 3.0) for x, y in to_pixels([*heads, self.field.system.station])]
        flown = self.way[:, : max(slots) + 2]
        between = np.concatenate([flown, 0.5 * (flown[:, 1:] + flown[:, :-1])], axis=1).reshape(-1, 2)
        taken += [(x, y, 3 * scale, 3 * scale, 0.4) for x, y in to_pixels(between)[:2000]]
        window = axis.get_window_extent()
        for c, word in enumerate(words):
            text = axis.annotate(
                word, self.means[c], (0, 0), textcoords="offset points", fontsize=fontsize, ha="center", va="center"
            )
            text.set_path_effects([patheffects.withStroke(linewidth=1.8, foreground="white")])
            text.set_zorder(7.5)
            text.set_in_layout(False)
            box = text.get_window_extent()
            half = 0.5 * np.array([box.width, box.height])
            options: list[tuple[float, int, FloatArray]] = []
            for farther in (0.0, 5.0, 10.0):
                gap = taken[c][2] + (1.0 + farther) * scale
                for right, up in ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1)):
                    away = np.array([right, up]) * (half + gap * (1.0 if 0 in (right, up) else 0.7))
                    cost = _crowding((*(centres[c] + away), *half), taken, window)
                    options.append((cost + 3.0 * farther * scale**2, len(options), away))
            offset = min(options, key=lambda option: option[:2])[2]
            text.xyann = tuple(offset / scale)
            taken.append((*(centres[c] + offset), *half, 3.0))


def place_sizes(mix: FloatArray) -> FloatArray:
    """Areas of the class places' marks [pt^2], in proportion to the mix but for a least size that can be seen."""
    return np.maximum(220.0 * mix, 5.0)


def _crowding(box: Any, taken: Sequence[tuple[float, ...]], window: Any) -> float:
    """How much of a box (centre, half sizes) lies on others, by their weights, or out of the window."""
    x, y, w, h = box
    others = np.array(taken)
    shared = np.ones(len(others))
    for at, half, centre, side in ((x, w, others[:, 0], others[:, 2]), (y, h, others[:, 1], others[:, 3])):
        shared *= np.maximum(np.minimum(at + half, centre + side) - np.maximum(at - half, centre - side), 0.0)
    inside = max(0.0, min(x + w, window.x1) - max(x - w, window.x0))
    inside *= max(0.0, min(y + h, window.y1) - max(y - h, window.y0))
    return float((others[:, 4] * shared).sum() + 10.0 * (4.0 * w * h - inside))


def _chosen(system: AerialSystem, vehicles: Any, where: str) -> list[int]:
    """Vehicles to draw: those named, or all where they share places, the first where they do not."""
    if vehicles is not None:
        return check_numbers(vehicles, len(system), "vehicle", where)
    everyone = list(range(len(system)))
    return everyone[:DRAWN] if share_places(system, everyone) else [0]


def _headline(system: AerialSystem, chosen: list[int], title: str) -> str:
    """A title that says which vehicles are drawn where not all are."""
    if len(chosen) == len(system):
        return title
    own = "" if share_places(system, range(len(system))) else "; class places are each vehicle's own"
    return f"{title}\n({len(chosen)} of {len(system)} vehicles{own})"


def _on_map(words: list[str]) -> list[str]:
    """Names as they stand on maps: numbers only where the rest is too much."""
    short = len(words) <= NAMED and max(len(word.partition(" ")[2]) for word in words) <= NAMED
    return [_spoken(word) if short else word.partition(" ")[0] for word in words]


def _spoken(word: str) -> str:
    """A class's number and name, or that it is a class's number."""
    return word if " " in word else f"class {word}"


def _legend(figure: Any, words: list[str], several: bool, width: float) -> None:
    """Classes and marks below the figure."""
    from matplotlib.lines import Line2D

    def mark(label: str, **style: Any) -> Any:
        return Line2D([], [], **{"linestyle": "none", "color": "black", **style}, label=label)

    classes = [
        mark(_spoken(word), marker="o", color=colour(c), markeredgecolor="black") for c, word in enumerate(words)
    ]
    marks = [
        mark("vehicle" + ("s" if several else "") + ", with number", marker="o", markerfacecolor="white", markersize=9),
        mark("sees the places inside", linestyle=(0, (3, 2)), linewidth=0.9),
        mark("way, a dot each slot", linestyle="-", marker=".", linewidth=0.8, color="0.55"),
        mark(f"the last {RECENT} slots of it", linestyle="-", marker=".", linewidth=1.3),
        mark("start", marker="s", fillstyle="none"),
        mark("station", marker="^"),
    ]
    # full columns, so that the marks begin with one of their own
    columns = int((width - 1.5) / 1.35)
    rows = -(-(len(classes) + len(marks)) // columns)
    blank = mark("")
    handles = [*classes, *[blank] * (-len(classes) % rows), *marks, *[blank] * (-len(marks) % rows)]
    style = {"fontsize": 8, "ncols": len(handles) // rows, "handletextpad": 0.5, "columnspacing": 1.4}
    figure.legend(handles=handles, loc="outside lower center", **style)


def _intensity(figure: Any, axes: Any, most: float, several: bool) -> None:
    """Key to how strong the hues are."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LinearSegmentedColormap, Normalize

    grey = LinearSegmentedColormap.from_list("strength", ["white", "0.35"])
    bar = figure.colorbar(
        ScalarMappable(Normalize(0.0, most if most > 0.0 else 1.0), grey), ax=axes, shrink=0.8, pad=0.02
    )
    bar.set_label(
        "new samples in the slot for a vehicle there"
        + (" (mean)" if several else "")
        + "\n(hue: the class it sees most of)",
        fontsize=8,
    )


def flights(
    system: AerialSystem,
    *,
    slots: Sequence[int] | None = None,
    vehicles: Sequence[int] | None = None,
    names: Sequence[str] | None = None,
    title: str = "",
) -> Figure:
    """Draw maps at several slots: what is to be seen where, and how the vehicles have come there.

    The ground's hue is the class that would be seen most from there, its strength the new samples in that slot. Marks
    stand where classes lie, their area is the class's share at that time. Vehicles with class places of their own have
    a row of maps each, those that share places are on one map.

    Parameters
    ----------
    slots : sequence of int, optional
        From 0; the first, the middle and the last one when not given.
    vehicles : sequence of int, optional
        From 0; when not given the first one, or all (20 at most) where they share places.
    names : sequence of str, optional
        A word for each class.
    title : str
        Above the figure.

    Raises
    ------
    InputError
        For unknown slots or vehicles, another number of names, or more than 40 maps.
    """
    system = check_system(system, "flights")
    last = system.area.slots - 1
    shown = sorted({0, last // 2, last}) if slots is None else check_numbers(slots, last + 1, "slot", "flights")
    chosen = _chosen(system, vehicles, "flights")
    words = check_names(names, system.sensing.classes, "flights")
    together = share_places(system, chosen)
    rows = [chosen] if together else [[u] for u in chosen]
    if len(rows) * len(shown) > MAPS:
        raise InputError(
            f"plot.flights: {len(rows)} x {len(shown)} maps, more than {MAPS}; give fewer slots or vehicles"
        )
    fields = [Field(system, row) for row in rows]
    most = max(field.most(shown) for field in fields)
    columns = len(shown)
    shape = float(np.clip(system.area.length / system.area.width, 0.35, 1.6))
    width, height = max(7.5, 2.0 + 3.5 * columns), max(4.4, 1.5 + (0.3 + 3.4 * shape) * len(rows))
    figure, axes = _subplots(len(rows), columns, figsize=(width, height), sharex=True, sharey=True, squeeze=False)
    figure.set_layout_engine("compressed")
    maps = [[Map(axis, field, most) for axis in line] for line, field in zip(axes, fields, strict=True)]
    for line, field in zip(maps, fields, strict=True):
        for each, slot in zip(line, shown, strict=True):
            each.show(slot)
        who = "" if together and len(chosen) > 1 else f"vehicle {field.vehicles[0]}\n"
        line[0].axis.set_ylabel(f"{who}second coordinate [m]")
    for axis in axes[-1]:
        axis.set_xlabel("first coordinate [m]")
    _intensity(figure, axes, most, several=together and len(chosen) > 1)
    _legend(figure, words, len(chosen) > 1, width=width)
    figure.suptitle(_headline(system, chosen, title or f"{system.name}: what is to be seen where, and who flies there"))
    _settle(figure)
    for line in maps:
        for each, slot in zip(line, shown, strict=True):
            each.label(_on_map(words), [slot])
    return figure


def _settle(figure: Any) -> None:
    """Lay the figure out once and for all, so that labels are placed by it and frames do not jump."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    figure.draw_without_rendering()


def animate(
    system: AerialSystem,
    *,
    run: Any = None,
    vehicles: Sequence[int] | None = None,
    names: Sequence[str] | None = None,
    fps: float = 4.0,
) -> FuncAnimation:
    """Return the map of `flights` slot by slot, beside it the classes in the buffer and a run's accuracy so far.

    Parameters
    ----------
    run : TrainingResult, optional
        Of this system.
    vehicles, names : optional
        As for `flights`; vehicles with class places of their own one at a time.
    fps : float
        Slots per second, above 0 and at most 50.

    Raises
    ------
    InputError
        For unknown vehicles, several that do not share places, another number of names, a run of another system.
    """
    from matplotlib.animation import FuncAnimation

    figure, show = _moving(system, run, vehicles, names, fps, "animate")
    slots = system.area.slots
    return FuncAnimation(figure, show, frames=slots, init_func=lambda: show(0), interval=1000.0 / fps)


def _moving(
    system: Any, run: Any, vehicles: Any, names: Any, fps: Any, where: str
) -> tuple[Figure, Callable[[int], list[Any]]]:
    """Return the figure of an animation, and what brings it to a slot."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    system = check_system(system, where)
    chosen = _chosen(system, vehicles, where)
    words = check_names(names, system.sensing.classes, where)
    if not share_places(system, chosen):
        raise InputError(f"plot.{where}: vehicles {chosen} see classes at places of their own; name one of them")
    if not (is_real(fps) and 0.0 < fps <= FPS_MAX):
        raise InputError(f"plot.{where}: fps={fps!r} must be above 0 and at most {FPS_MAX:g}")
    if run is not None:
        check_run(run, where)
        there = zip(system.times, system.arrivals.sum(axis=0), system.buffered.sum(axis=0), strict=True)
        if len(run.rows) > system.area.slots or any(
            (row["time"], row["arrived"], row["held"]) != own for row, own in zip(run.rows, there, strict=False)
        ):
            raise InputError(f"plot.{where}: the run is of another system: its slots, or what is seen in them, differ")
    slots = range(system.area.slots)
    field = Field(system, chosen)
    most = field.most(slots)
    figure, axes = _subplots(2, 2, figsize=(10.5, 6.3), width_ratios=[1.45, 1.0])
    FigureCanvasAgg(figure)
    grid = axes[0, 0].get_gridspec()
    axes[0, 0].remove()
    axes[1, 0].remove()
    ground = Map(figure.add_subplot(grid[:, 0]), field, most)
    ground.axis.set_xlabel("first coordinate [m]")
    ground.axis.set_ylabel("second coordinate [m]")
    if run is None:
        axes[0, 1].remove()
        axes[1, 1].remove()
        buffer = _Buffer(figure.add_subplot(grid[:, 1]), system, chosen, words)
    else:
        buffer = _Buffer(axes[0, 1], system, chosen, words)
    accuracy = None if run is None else _Accuracy(axes[1, 1], run, float(system.times[-1]))
    _intensity(figure, ground.axis, most, several=len(chosen) > 1)
    _legend(figure, words, len(chosen) > 1, width=10.5)
    figure.suptitle(_headline(system, chosen, system.name))

    def show(slot: int) -> list[Any]:
        for part in (ground, buffer, accuracy):
            if part is not None:
                part.show(slot)
        return []

    show(slots[-1])
    _settle(figure)
    ground.label(_on_map(words), slots)
    return figure, show


class _Buffer:
    """Classes in the buffers as bars, beside the mix that is there."""

    def __init__(self, axis: Any, system: AerialSystem, vehicles: list[int], words: list[str]) -> None:
        held = held_classes(system)[vehicles].sum(axis=0)
        self.axis, self.samples = axis, held.sum(axis=1)
        self.room = float(system.sensing.buffer[vehicles].sum())
        total = self.samples[:, None]
        self.share = np.divide(100.0 * held, total, out=np.zeros_like(held), where=total > 0.0)
        self.mix = 100.0 * system.class_mix[vehicles[0]]
        colours = [colour(c) for c in range(len(words))]
        rows = np.arange(len(words))
        self.bars = axis.barh(rows, np.zeros(len(words)), color=colours, height=0.75)
        self.there = axis.plot([], [], linestyle="none", marker="D", markersize=5, color="black", mfc="white")[0]
        axis.set_yticks(rows, [_spoken(word) for word in words], fontsize=8)
        axis.set_ylim(len(words) - 0.4, -0.6)
        axis.set_xlim(0.0, min(100.0, 1.08 * max(self.share.max(), self.mix.max())))
        axis.set_xlabel("share [%]: held (bar), there to be seen (diamond)", fontsize=9)
        axis.grid(axis="x", alpha=0.3)
        self.who = f"buffer of vehicle {vehicles[0]}" if len(vehicles) == 1 else f"buffers of {len(vehicles)} vehicles"

    def show(self, slot: int) -> None:
        for bar, share in zip(self.bars, self.share[slot], strict=True):
            bar.set_width(share)
        self.there.set_data(self.mix[slot], np.arange(self.mix.shape[1]))
        self.axis.set_title(f"{self.who}: {self.samples[slot]:.0f} of {self.room:.0f} samples", fontsize=10)


class _Accuracy:
    """A run's accuracies up to a slot."""

    def __init__(self, axis: Any, run: Any, last: float) -> None:
        self.lines = []
        for key, label, style in (
            ("test_accuracy", "test data", {"color": TEST_COLOUR, "linewidth": 2.0}),
            ("arrival_accuracy", "samples new to all", {"color": "0.45", "linewidth": 1.0}),
        ):
            rows = [(row["round"], row["time"], 100.0 * row[key]) for row in run.rows if known(row[key])]
            rounds, times, values = np.array(rows, dtype=np.float64).reshape(-1, 3).T
            line = axis.plot([], [], marker=".", markersize=4, label=label, **style)[0]
            self.lines.append((line, rounds, times, values))
        axis.set_xlim(0.0, last)
        axis.set_ylim(0.0, 100.0)
        axis.set_xlabel("time [s]")
        axis.set_ylabel("accuracy so far [%]")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)

    def show(self, slot: int) -> None:
        for line, rounds, time, values in self.lines:
            so_far = rounds <= slot + 1
            line.set_data(time[so_far], values[so_far])


def save_animation(
    system: AerialSystem,
    path: str | os.PathLike[str],
    *,
    run: Any = None,
    vehicles: Sequence[int] | None = None,
    names: Sequence[str] | None = None,
    fps: float = 4.0,
    dpi: float = 90.0,
    progress: bool = False,
) -> Path:
    """Write `animate` as a GIF that plays over and over, a frame for each slot, whole or not at all.

    `progress` draws a bar on standard error.

    Raises
    ------
    InputError
        For an ending other than .gif, a file that cannot be written, and as `animate`.
    """
    if Path(path).suffix.lower() != ".gif":
        raise InputError(f"plot.save_animation: {path}: unknown ending {Path(path).suffix!r}; known: .gif")
    if not (is_real(dpi) and 20.0 <= dpi <= 400.0):
        raise InputError(f"plot.save_animation: dpi={dpi!r} must be from 20 to 400")
    figure, show = _moving(system, run, vehicles, names, fps, "save_animation")
    figure.set_dpi(dpi)

    def write(file: BinaryIO) -> None:
        colours, frames = _colours(), []
        with counting_bar(progress, "drawing slots", system.area.slots) as tell:
            for slot in range(system.area.slots):
                show(slot)
                canvas: Any = figure.canvas
                canvas.draw()
                frames.append(_indexed(np.asarray(canvas.buffer_rgba())[..., :3], colours))
                tell(slot + 1)
        frames[0].save(
            file, format="GIF", save_all=True, append_images=frames[1:], duration=round(1000.0 / fps), loop=0
        )

    return atomic_write(path, write)


def _colours() -> npt.NDArray[np.uint8]:
    """At most 256 colours [colours, 3] that keep every class's hue: its shades to white and black, and greys."""
    from matplotlib.colors import to_rgb

    shades = [np.linspace(0.0, 1.0, 36)[:, None] * np.ones(3)]
    for hue in (np.array(to_rgb(c)) for c in COLOURS):
        # most shades where fields are faint
        shades.append(1.0 - (np.arange(1.0, 19.0)[:, None] / 18.0) ** 1.5 * (1.0 - hue))
        shades.append(np.linspace(0.3, 0.8, 3)[:, None] * hue)
    shades.append(1.0 - np.array([[0.25], [0.6], [1.0]]) * (1.0 - np.array(to_rgb(TEST_COLOUR))))
    return np.round(255.0 * np.concatenate(shades)).astype(np.uint8)


def _indexed(pixels: npt.NDArray[np.uint8], colours: npt.NDArray[np.uint8]) -> Any:
    """Return pixels [height, width, 3] as a picture of the nearest of the colours.

    Pillow's own search looks at the first bits of a colour only, which turns white into another.
    """
    from PIL import Image

    packed = pixels.astype(np.int64) @ np.array([65536, 256, 1])
    found, index = np.unique(packed, return_inverse=True)
    each = np.stack([found >> 16, found >> 8 & 255, found & 255], axis=-1)
    away = ((each[:, None] - colours.astype(np.int64)) ** 2).sum(axis=-1)
    image = Image.fromarray(away.argmin(axis=-1).astype(np.uint8)[index].reshape(packed.shape))
    image.putpalette(colours.ravel().tolist())
    return image

"""Figures of learning in the air show the numbers of the system and of the runs they were given."""

from __future__ import annotations

import importlib
import itertools
import math
from collections import deque
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image, ImageSequence

import jointopt as jo
from jointopt.errors import InputError

# as modules, whose functions bear the same names in the package
figures: Any = importlib.import_module("jointopt.plot.aerial")
maps: Any = importlib.import_module("jointopt.plot.flights")
COLOURS, Field, held_classes, share_places = figures.COLOURS, figures.Field, figures.held_classes, figures.share_places
class_mixes, online = figures.class_mixes, figures.online
animate, flights, save_animation = maps.animate, maps.flights, maps.save_animation
# an animation that nobody plays is what these tests are about
pytestmark = pytest.mark.filterwarnings("ignore:Animation was deleted")
NAMES = ["T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot"]
ROWS = (
    *("test_accuracy", "current_accuracy", "arrival_accuracy"),
    *("cumulative_energy", "cumulative_bits", "cumulative_flight_energy"),
)


@pytest.fixture(scope="module")
def system() -> Any:
    return jo.systems.aerial(devices=3, seed=0, slots=8).with_(held=[30, 0, 5], buffer=[90, 500, 40])


@pytest.fixture(scope="module")
def shared() -> Any:
    return jo.systems.aerial(devices=4, seed=1, slots=5, shared_places=True).with_(
        field_of_view=[1.0, 1.0, 1.6, 1.0], samples_max=[50, 200, 80, 50]
    )


def run(system: Any, seed: int = 0, *, flight: float = 800.0, every: int = 2) -> Any:
    rng = np.random.default_rng(seed)
    rows = []
    for t in range(system.area.slots):
        values = {key: float(rng.uniform(0.1, 0.9)) for key in ROWS[:3]}
        values |= {"cumulative_energy": 0.2 * (t + 1) * (1 + seed), "cumulative_bits": 3e5 * (t + 1)}
        row: dict[str, Any] = {"round": t + 1, **values, "cumulative_flight_energy": flight * (t + 1)}
        row["time"] = float(system.times[t])
        row["arrived"], row["held"] = int(system.arrivals[:, t].sum()), int(system.buffered[:, t].sum())
        if (t + 1) % every:
            row["test_accuracy"] = None
        row["unseen"] = (row["arrived"] + 1) // 2
        if row["unseen"] == 0:
            row["arrival_accuracy"] = None
        rows.append(row)
    return SimpleNamespace(rows=rows)


def panels(figure: Any) -> list[Any]:
    return [axis for axis in figure.axes if axis.images]


def ways(axis: Any, length: int) -> list[np.ndarray]:
    """Grey lines of a map: all of a way, as against its dark end."""
    lines = [line for line in axis.lines if line.get_color() == "0.55"]
    assert all(len(line.get_xdata()) == length for line in lines)
    return [line.get_xydata() for line in lines]


def seen(system: Any, u: int, place: np.ndarray, slot: int) -> np.ndarray:
    """Expected samples of each class from a place, before they are rounded up: written out from theory 5a."""
    sensing, values = system.sensing, []
    for c in range(sensing.classes):
        away = math.dist(place, sensing.class_means[u, c])
        inside = away <= system.area.altitude * math.tan(sensing.field_of_view[u] / 2.0)
        values.append(system.class_mix[u, slot, c] * math.exp(-away / sensing.length_scale) if inside else 0.0)
    return sensing.samples_max[u] * np.array(values)


# --- the ground -------------------------------------------------------------------------------------------------


def test_field_is_what_a_vehicle_at_a_place_would_see(system: Any, shared: Any) -> None:
    rng = np.random.default_rng(0)
    met = 0
    for world, vehicles in ((system, [1]), (shared, [0, 1, 2, 3]), (shared, [2, 0])):
        field = Field(world, vehicles)
        slot = int(rng.integers(world.area.slots))
        new, best = field.at(slot)
        most = field.most([slot])
        picture = field.picture(slot, most)
        assert most == new.max() > 0.0
        near = np.argwhere(new > 0.0)
        cells = [*rng.integers(0, new.shape, (60, 2)), *rng.permutation(near)[:120]]
        for row, column in cells:
            place = np.array([field.x[column], field.y[row]])
            each = [seen(world, u, place, slot) for u in vehicles]
            assert new[row, column] == pytest.approx(np.mean([math.ceil(e.sum() - 1e-9) for e in each]))
            total = np.sum(each, axis=0)
            met += total.max() > 0.0
            assert best[row, column] == (int(np.argmax(total)) if total.max() > 0.0 else -1)
            hue = np.array(to_rgb(COLOURS[best[row, column]]))
            np.testing.assert_allclose(picture[row, column], 1.0 - new[row, column] / most * (1.0 - hue), atol=1e-12)
    assert met >= 360


def test_who_gathers_more_decides_what_is_seen_most() -> None:
    base = jo.systems.aerial(devices=2, slots=1, shared_places=True)
    means = np.tile([[[450.0, 500.0], [560.0, 500.0]]], (2, 1, 1))
    mapping = np.tile([[[0.0], [1.0]]], (2, 1, 1))
    sensing = {"class_means": means, "class_map": mapping, "mixture_weights": None, "mixture_covariances": None}
    given = {name: getattr(base, name) for name in ("vehicles", "area", "link", "learner", "bound", "flight")}
    eyes = {"field_of_view": [1.0, 2.2], "samples_max": [400, 40]}
    system = type(base)(**given, sensing=base.sensing.replace(**sensing, **eyes))
    field = Field(system, [0, 1])
    _, best = field.at(0)
    for x, expected in ((500.0, 0), (530.0, 1)):
        cell = np.argmin(np.abs(field.y - 500.0)), np.argmin(np.abs(field.x - x))
        place = np.array([field.x[cell[1]], field.y[cell[0]]])
        both = [seen(system, u, place, 0) for u in (0, 1)]
        assert best[cell] == expected == int(np.argmax(np.sum(both, axis=0)))
        if expected == 0:  # the wide view alone, or both counted alike, would say otherwise
            assert int(np.argmax(both[1])) == 1 == int(np.argmax(both[0] / 400 + both[1] / 40))


def test_cells_of_an_area_that_is_no_square() -> None:
    system = jo.systems.aerial(devices=1, slots=2)
    wide = system.with_(width=2000.0, length=1000.0)
    field = Field(wide, [0])
    assert field.at(0)[0].shape == (figures.CELLS // 2, figures.CELLS)
    np.testing.assert_allclose(field.x[[0, -1]], [1000.0 / figures.CELLS, 2000.0 - 1000.0 / figures.CELLS])
    assert np.diff(field.y) == pytest.approx(2000.0 / figures.CELLS)


def test_nothing_to_see_is_white(system: Any) -> None:
    field = Field(system.with_(samples_max=0), [0])
    assert field.most(range(8)) == 0.0
    assert np.all(field.picture(0, 0.0) == 1.0)


# --- maps -------------------------------------------------------------------------------------------------------


def test_maps_show_ways_positions_and_views(system: Any) -> None:
    slots = [0, 4, 7]
    figure = flights(system, slots=slots, vehicles=[2, 0], names=NAMES)
    shown = panels(figure)
    assert len(shown) == 6
    full = np.concatenate([system.vehicles.start[:, None], system.trajectory], axis=1)
    most = max(Field(system, [u]).most(slots) for u in (2, 0))
    for index, axis in enumerate(shown):
        u, slot = (2, 0)[index // 3], slots[index % 3]
        (way,) = ways(axis, slot + 2)
        np.testing.assert_allclose(way, full[u, : slot + 2])
        (view,) = axis.patches
        assert view.get_radius() == pytest.approx(system.view_radius[u])
        assert view.center == pytest.approx(system.trajectory[u, slot])
        heads = [line.get_xydata() for line in axis.lines if line.get_markersize() == 11]
        np.testing.assert_allclose(heads, [system.trajectory[u, slot][None]])
        assert str(u) in [text.get_text() for text in axis.texts]
        (places,) = axis.collections
        np.testing.assert_allclose(places.get_offsets(), system.sensing.class_means[u])
        np.testing.assert_allclose(places.get_sizes(), np.maximum(220.0 * system.class_mix[u, slot], 5.0))
        assert axis.get_title() == f"slot {slot}: t = {5 * (slot + 1)} s"
        words = [text.get_text() for text in axis.texts]
        assert {f"{c} {name}" for c, name in enumerate(NAMES)} <= set(words)
        np.testing.assert_allclose(axis.images[0].get_array(), Field(system, [u]).picture(slot, most))
        dots = [tuple(line.get_xydata()[0]) for line in axis.lines if line.get_marker() == "^"]
        assert dots == [(500.0, 500.0)]
    assert "2 of 3 vehicles; class places are each vehicle's own" in figure._suptitle.get_text()


def test_class_names_are_beside_their_places_and_not_on_one_another(system: Any) -> None:
    figure = flights(system, slots=[7], vehicles=[1], names=NAMES)
    (axis,) = panels(figure)
    window = axis.get_window_extent()
    labels = [text for text in axis.texts if " " in text.get_text()]
    boxes = [text.get_window_extent() for text in labels]
    for i, box in enumerate(boxes):
        assert window.x0 <= box.x0 and box.x1 <= window.x1 and window.y0 <= box.y0 and box.y1 <= window.y1
        place = axis.transData.transform(labels[i].xy)
        away = np.clip(place, [box.x0, box.y0], [box.x1, box.y1]) - place
        assert np.hypot(*away) < 25.0
        assert not any(box.overlaps(other) for other in boxes[:i])


def test_vehicles_that_share_places_are_on_one_map(system: Any, shared: Any) -> None:
    assert share_places(shared, range(4)) and not share_places(system, range(3))
    figure = flights(shared)
    axes = panels(figure)
    assert len(axes) == 3
    full = np.concatenate([shared.vehicles.start[:, None], shared.trajectory], axis=1)
    np.testing.assert_allclose(ways(axes[2], 6), full)
    assert [patch.get_radius() for patch in axes[0].patches] == pytest.approx(list(shared.view_radius))
    np.testing.assert_allclose(ways(panels(flights(shared, slots=[1], vehicles=[3, 1]))[0], 3), full[[3, 1], :3])


def test_first_vehicle_alone_when_places_are_their_own(system: Any) -> None:
    figure = flights(system)
    assert [axis.get_title() for axis in panels(figure)] == [
        "slot 0: t = 5 s",
        "slot 3: t = 20 s",
        "slot 7: t = 40 s",
    ]
    assert "1 of 3" in figure._suptitle.get_text()


def test_long_or_many_names_leave_numbers_on_the_map(system: Any) -> None:
    names = [*NAMES[:9], "ankle boots of leather"]
    figure = flights(system, slots=[0], names=names)
    words = [text.get_text() for text in panels(figure)[0].texts]
    assert set(words) == {str(c) for c in range(10)}
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert "9 ankle boots of leather" in legend


def test_ways_found_by_a_solver_are_drawn(system: Any) -> None:
    problem = jo.problems.AerialTrajectory(system, points=20)
    result = jo.solve(problem)
    assert result.decision is not None
    way = problem.trajectory(result.decision)
    (axis,) = panels(flights(system.flown(way), slots=[7]))
    np.testing.assert_allclose(ways(axis, 9)[0][1:], way[0])


# --- classes ----------------------------------------------------------------------------------------------------


def test_buffers_hold_what_a_queue_would(system: Any) -> None:
    held = held_classes(system)
    np.testing.assert_allclose(held.sum(axis=2), system.buffered)
    for u in range(3):
        queue = deque([system.class_mix[u, 0]] * int(system.vehicles.held[u]), maxlen=int(system.sensing.buffer[u]))
        for t in range(system.area.slots):
            count = int(system.arrivals[u, t])
            if count:
                share = seen(system, u, system.trajectory[u, t], t)
                queue.extend([share / share.sum()] * count)
            np.testing.assert_allclose(held[u, t], np.sum(queue, axis=0) if queue else 0.0, atol=1e-9)
    # the cases that matter are among them: a buffer that overflows, one that stays empty at first
    assert np.any(system.vehicles.held + system.arrivals.sum(axis=1) > system.sensing.buffer)
    assert system.buffered[1, 0] == 0.0


def layers(axis: Any) -> np.ndarray:
    """Shares of stacked areas, [slots, classes], each from the top of the one below."""
    bottom, shares = 0.0, []
    for patch in axis.patches:
        data = patch.get_data()
        np.testing.assert_allclose(data.baseline, bottom)
        shares.append(data.values - data.baseline)
        bottom = data.values
    return np.stack(shares, axis=1)


@pytest.mark.parametrize("vehicle", [0, 2, None])
def test_stacked_shares_are_those_of_the_system(system: Any, vehicle: int | None) -> None:
    figure = class_mixes(system, vehicle=vehicle, names=NAMES)
    there, came, held, counts = figure.axes
    chosen = slice(None) if vehicle is None else [vehicle]
    np.testing.assert_allclose(layers(there), 100.0 * system.class_mix[chosen].mean(axis=0))
    np.testing.assert_allclose(layers(there).sum(axis=1), 100.0)
    new = np.zeros((8, 10))
    for t in range(8):
        for u in range(3) if vehicle is None else [vehicle]:
            share = seen(system, u, system.trajectory[u, t], t)
            new[t] += share / max(share.sum(), 1e-300) * system.arrivals[u, t]
    total = new.sum(axis=1, keepdims=True)
    assert np.any(total > 0.0)
    np.testing.assert_allclose(layers(came), 100.0 * np.divide(new, total, out=0.0 * new, where=total > 0.0))
    full = held_classes(system)[chosen].sum(axis=0)
    some = system.buffered[chosen].sum(axis=0) > 0.0
    np.testing.assert_allclose(layers(held)[some], 100.0 * full[some] / full[some].sum(axis=1, keepdims=True))
    np.testing.assert_array_equal(layers(held)[~some], 0.0)
    for axis in (there, came, held):
        np.testing.assert_allclose(axis.patches[0].get_data().edges, 5.0 * np.arange(9))
    np.testing.assert_allclose(counts.patches[0].get_data().values, system.arrivals[chosen].sum(axis=0))
    np.testing.assert_allclose(counts.patches[1].get_data().values, system.buffered[chosen].sum(axis=0))
    colours = {tuple(patch.get_facecolor()[:3]) for patch in there.patches}
    assert len(colours) == 10 == len({to_rgb(colour) for colour in COLOURS})


def test_hues_can_be_told_apart_by_everyone() -> None:
    """Least distance in CIELAB, as seen with full deficiency of each cone (matrices of Machado et al. 2009)."""
    rgb = np.array([to_rgb(c) for c in COLOURS])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    views = {
        "full": np.eye(3),
        "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
        "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
        "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
    }
    xyz = np.array([[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.072175], [0.0193339, 0.119192, 0.9503]])
    for view in views.values():
        light = np.clip(linear @ np.array(view).T, 0.0, 1.0) @ xyz.T / [0.95047, 1.0, 1.08883]
        f = np.where(light > 0.008856, np.cbrt(light), 7.787 * light + 16.0 / 116.0)
        lab = np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], axis=1)
        away = np.linalg.norm(lab[:, None] - lab, axis=2)
        assert away[~np.eye(len(lab), dtype=bool)].min() > 22.0


# --- training ---------------------------------------------------------------------------------------------------


def test_online_draws_means_and_deviations_over_seeds(system: Any) -> None:
    runs = {"exact": [run(system, s) for s in range(3)], "dense": run(system, 7)}
    figure = online(runs, title="two methods")
    assert figure._suptitle.get_text() == "two methods"
    axes = {axis.get_ylabel().split("[")[0].strip(): axis for axis in figure.axes}
    keys = dict(zip(axes, ROWS, strict=False))
    assert len(axes) == 5  # nobody flew another way
    for label, axis in axes.items():
        rows = [[r for r in one.rows if r[keys[label]] is not None] for one in runs["exact"]]
        values = np.array([[r[keys[label]] for r in each] for each in rows])
        unit = 0.01 if "accuracy" in label else {"energy of learning so far": 1.0, "sent so far": 1e6}[label]
        exact, dense = axis.lines
        np.testing.assert_allclose(exact.get_xdata(), [5.0 * r["round"] for r in rows[0]])
        np.testing.assert_allclose(exact.get_ydata(), values.mean(axis=0) / unit)
        (band,) = axis.collections
        corners = band.get_paths()[0].vertices
        spread = np.array([np.std(v, ddof=1) for v in values.T])
        for edge in ((values.mean(axis=0) + spread) / unit, (values.mean(axis=0) - spread) / unit):
            assert all(np.min(np.abs(corners[:, 1] - y)) < 1e-9 * max(1.0, abs(y)) for y in edge)
        expected = [r[keys[label]] / unit for r in runs["dense"].rows if r[keys[label]] is not None]
        np.testing.assert_allclose(dense.get_ydata(), expected)
    assert axes["sent so far"].get_ylabel() == "sent so far [Mbit]"
    words = [text.get_text() for text in figure.legends[0].get_texts()]
    assert words == ["joint design (exact)", "dense, floats sent"]
    assert figure.legends[0].get_title().get_text() == "mean over 1 to 3 seeds, band: standard deviation"


def test_online_leaves_out_what_no_run_has_and_draws_flights_that_differ(system: Any) -> None:
    plain = run(system)
    for row in plain.rows:
        row["current_accuracy"] = None
        row["arrival_accuracy"] = math.nan
    figure = online({"static": plain, "greedy": run(system, 1, flight=900.0)})
    labels = [axis.get_ylabel() for axis in figure.axes]
    assert labels[-1] == "energy of flying so far [kJ]" and len(labels) == 6
    assert [len(axis.lines) for axis in figure.axes] == [2, 1, 1, 2, 2, 2]
    assert len(online({"static": plain}).axes) == 3


def test_accuracy_on_arrivals_is_of_the_samples_of_the_last_slots() -> None:
    long = jo.systems.aerial(devices=2, slots=95)
    training = run(long)
    axis = online({"exact": training}).axes[2]
    assert axis.get_title() == "over the last 3 slots"
    expected = {}
    for t in range(95):
        rows = [r for r in training.rows[max(0, t - 2) : t + 1] if r["arrival_accuracy"] is not None]
        if rows:
            right = sum(r["arrival_accuracy"] * r["unseen"] for r in rows)
            expected[5.0 * (t + 1)] = 100.0 * right / sum(r["unseen"] for r in rows)
    assert 10 < len(expected) < 95
    np.testing.assert_allclose(axis.lines[0].get_xdata(), list(expected))
    np.testing.assert_allclose(axis.lines[0].get_ydata(), list(expected.values()))


def test_seeds_are_compared_where_all_have_values(system: Any) -> None:
    figure = online({"exact": [run(system, 0, every=2), run(system, 1, every=3)]})
    assert list(figure.axes[0].lines[0].get_xdata()) == [30.0]


# --- motion -----------------------------------------------------------------------------------------------------


def test_animation_has_a_frame_for_each_slot(shared: Any) -> None:
    moving = animate(shared, fps=8.0)
    assert list(moving.new_frame_seq()) == list(range(5))
    assert moving.event_source is None or moving.event_source.interval == 125


def test_frames_show_the_buffer_the_map_and_the_accuracy_so_far(shared: Any, system: Any) -> None:
    for world, vehicles in ((shared, [0, 1, 2, 3]), (system, [0])):
        training = run(world)
        figure, show = maps._moving(world, training, None, NAMES, 4.0, "animate")
        ground = panels(figure)[0]
        bars = next(axis for axis in figure.axes if "diamond" in axis.get_xlabel())
        accuracy = next(axis for axis in figure.axes if "accuracy" in axis.get_ylabel())
        full = np.concatenate([world.vehicles.start[:, None], world.trajectory], axis=1)
        for slot in (0, 4, 1, 3):
            show(slot)
            np.testing.assert_allclose(ways(ground, slot + 2), full[vehicles, : slot + 2])
            widths = np.array([bar.get_width() for bar in bars.patches])
            held = held_classes(world)[vehicles, slot].sum(axis=0)
            np.testing.assert_allclose(widths, 100.0 * held / max(held.sum(), 1.0), atol=1e-9)
            assert widths.sum() == pytest.approx(100.0 if held.sum() else 0.0)
            (diamonds,) = bars.lines
            np.testing.assert_allclose(diamonds.get_xdata(), 100.0 * world.class_mix[0, slot])
            room = world.sensing.buffer[vehicles].sum()
            assert bars.get_title().endswith(f": {held.sum():.0f} of {room:.0f} samples")
            rows = [r for r in training.rows[: slot + 1] if r["test_accuracy"] is not None]
            line = accuracy.lines[0]
            np.testing.assert_allclose(line.get_xdata(), [5.0 * r["round"] for r in rows])
            np.testing.assert_allclose(line.get_ydata(), [100.0 * r["test_accuracy"] for r in rows])


def test_gif_has_a_frame_for_each_slot(shared: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = save_animation(shared, tmp_path / "new" / "flight.GIF", names=NAMES, fps=5.0, dpi=50, progress=True)
    assert "drawing slots" in capsys.readouterr().err
    assert [p.name for p in path.parent.iterdir()] == ["flight.GIF"]
    assert path.stat().st_size < 500_000
    with Image.open(path) as image:
        assert image.info["loop"] == 0 and image.info["duration"] == 200
        frames = [np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(image)]
    assert len(frames) == 5
    assert all(np.any(a != b) for a, b in itertools.pairwise(frames))
    assert np.all(frames[0][0, 0] == 255), "the ground of the figure stays white"
    # every class's own colour is in the picture (bars or legend), none is turned into another
    for c in (2, 3, 6):
        near = np.abs(frames[-1].astype(int) - np.round(255 * np.array(to_rgb(COLOURS[c])))).max(axis=-1) <= 1
        assert near.any()


def test_nothing_that_moves_is_still_a_frame_for_each_slot(tmp_path: Path) -> None:
    still = jo.systems.aerial(devices=1, slots=3).with_(samples_max=0)
    hovering = still.flown(np.repeat(still.vehicles.start[:, None], 3, axis=1))
    with Image.open(save_animation(hovering, tmp_path / "still.gif", dpi=40)) as image:
        assert len(list(ImageSequence.Iterator(image))) == 3


def test_gif_is_written_whole_or_not_at_all(shared: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "old.gif").write_bytes(b"before")
    indexed, calls = maps._indexed, []

    def interrupted(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return indexed(*arguments)

    monkeypatch.setattr(maps, "_indexed", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_animation(shared, tmp_path / "old.gif", dpi=30)
    assert [p.name for p in tmp_path.iterdir()] == ["old.gif"]
    assert (tmp_path / "old.gif").read_bytes() == b"before"
    with pytest.raises(InputError, match="cannot be written"):
        save_animation(shared, tmp_path / "old.gif" / "inside.gif", dpi=30)
    assert len(calls) == 2, "a file that cannot be written is refused before anything is drawn"


def test_pixels_take_the_nearest_colour() -> None:
    colours = maps._colours()
    assert len(colours) <= 256
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 3)).astype(np.uint8)
    image = maps._indexed(pixels, colours)
    away = ((pixels[:, :, None].astype(int) - colours.astype(int)) ** 2).sum(axis=-1)
    found = ((np.asarray(image.convert("RGB")).astype(int) - pixels.astype(int)) ** 2).sum(axis=-1)
    np.testing.assert_array_equal(found, away.min(axis=-1))


# --- what is refused --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"slots": [0, 8]}, "unknown slot 8; known: 0 to 7"),
        ({"slots": [-1]}, "unknown slot -1"),
        ({"slots": [1.5]}, r"unknown slot 1\.5"),
        ({"slots": []}, "slots is empty"),
        ({"slots": [2, 2]}, "slot 2 is named twice"),
        ({"slots": "12"}, "unknown slot '12'"),
        ({"vehicles": [3]}, "unknown vehicle 3; known: 0 to 2"),
        ({"vehicles": [True]}, "unknown vehicle True"),
        ({"names": NAMES[:9]}, "9 names for 10 classes"),
        ({"names": "abcdefghij"}, "names must be words"),
        ({"names": list(range(10))}, "names must be words"),
        ({"names": 3}, "names must be words"),
        ({"names": [*NAMES[:9], ""]}, "names must be words"),
    ],
)
def test_flights_refuse(system: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"^plot.flights: .*{message}"):
        flights(system, **options)


def test_too_many_maps_are_refused() -> None:
    with pytest.raises(InputError, match="7 x 6 maps, more than 40"):
        flights(jo.systems.aerial(devices=7, slots=6), slots=range(6), vehicles=range(7))


def test_systems_on_the_ground_are_refused() -> None:
    ground = jo.systems.ltfl(devices=2)
    for draw in (flights, class_mixes, animate):
        with pytest.raises(InputError, match="expected an AerialSystem, got System"):
            draw(ground)


def test_class_mixes_refuse(system: Any) -> None:
    with pytest.raises(InputError, match=r"^plot.class_mixes: unknown vehicle 3; known: 0 to 2"):
        class_mixes(system, vehicle=3)
    with pytest.raises(InputError, match="2 names for 10 classes"):
        class_mixes(system, names=["a", "b"])


def test_online_refuses(system: Any) -> None:
    good = run(system)
    ground = SimpleNamespace(rows=[{"round": 1, "test_accuracy": 0.5}])
    for runs, message in (
        ({}, "expected a mapping"),
        ([good], "expected a mapping"),
        ({"exact": []}, "no run of 'exact'"),
        ({"exact": ground}, "run of 'exact': its rows have no 'time', so it is no online training"),
        ({"exact": [good, None]}, "expected a run of online training, got NoneType"),
        ({"exact": SimpleNamespace(rows=[])}, "the run has no slots"),
        (
            {"exact": SimpleNamespace(rows=[dict.fromkeys(("round", "time", "arrived", "unseen", "held"), 1)])},
            "'test_accuracy'",
        ),
        ({"exact": [good, run(system.with_(slot=6.0))]}, r"slots of different duration \[5.0, 6.0\] s"),
        ({"exact": run(system, every=99)}, "no run has an evaluated slot"),
    ):
        with pytest.raises(InputError, match=message):
            online(runs)


def test_animations_refuse(system: Any, shared: Any, tmp_path: Path) -> None:
    for options, message in (
        ({"vehicles": [0, 1]}, r"vehicles \[0, 1\] see classes at places of their own"),
        ({"vehicles": [9]}, "unknown vehicle 9"),
        ({"fps": 0}, "fps=0 must be above 0"),
        ({"fps": math.nan}, "fps=nan"),
        ({"fps": 51}, "at most 50"),
        ({"run": run(shared)}, "the run is of another system"),
        ({"run": run(system.with_(samples_max=1))}, "the run is of another system"),
        ({"run": object()}, "expected a run of online training, got object"),
        ({"names": []}, "0 names for 10 classes"),
    ):
        with pytest.raises(InputError, match=message):
            animate(system, **options)
    for ending in ("flight.mp4", "flight", "flight.gif.png"):
        with pytest.raises(InputError, match="unknown ending"):
            save_animation(system, tmp_path / ending)
    for dpi in (0, math.inf, True):
        with pytest.raises(InputError, match="dpi="):
            save_animation(system, tmp_path / "flight.gif", dpi=dpi)
    assert not list(tmp_path.iterdir())

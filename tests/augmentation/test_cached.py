"""Generators by name, kept in a folder; the command that makes them; the figure of what they make."""

from __future__ import annotations

import dataclasses
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jointopt import cli
from jointopt.augmentation import GENERATORS, DiffusionGenerator, GaussianGenerator, Generator, Recipe, generator
from jointopt.augmentation.cached import places
from jointopt.data import Dataset
from jointopt.errors import DataError, InputError
from jointopt.plot.samples import samples

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    def call(*arguments: Any) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["jointopt", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        captured = capsys.readouterr()
        assert isinstance(stop.value.code, int)
        return stop.value.code, captured.out, captured.err

    return call


def test_names() -> None:
    assert set(GENERATORS) == {"diffusion", "gaussian"}
    assert all(issubclass(kind, Generator) and kind.name == name for name, kind in GENERATORS.items())


def test_a_second_call_takes_it_from_the_folder(
    digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = generator("gaussian", digits, cache=tmp_path, share=0.5, seed=2)
    assert [p.name for p in tmp_path.iterdir()] == [places("gaussian", digits, tmp_path, share=0.5, seed=2)[0].name]
    monkeypatch.setattr(GaussianGenerator, "make", lambda *_, **__: pytest.fail("made again"))
    again = generator("gaussian", digits, cache=tmp_path, share=0.5, seed=2)
    assert again.fingerprint == first.fingerprint
    assert generator(again, digits) is again


def test_whatever_decides_the_outcome_is_in_the_name(digits: Dataset, make_dataset: Callable[..., Dataset]) -> None:
    labels = digits.train_labels.clone()
    labels[5] = (labels[5] + 1) % 10
    cases: list[tuple[Dataset, dict[str, Any]]] = [
        (digits, {}),
        (digits, {"share": 0.5}),
        (digits, {"seed": 1}),
        (digits, {"steps": 7}),
        (digits, {"recipe": Recipe()}),
        (dataclasses.replace(digits, train_labels=labels), {}),
        (make_dataset(), {}),
    ]
    names = {places("diffusion", dataset, "x", **options)[0].name for dataset, options in cases}
    assert len(names) == len(cases)
    # how often it is kept decides nothing
    assert places("diffusion", digits, "x", checkpoint_every=7)[0].name in names
    odd = dataclasses.replace(digits, name="../my data")
    assert places("gaussian", odd, "x")[0].parent == Path("x")


def test_files_of_others_and_damaged_ones_are_refused(
    digits: Dataset, make_dataset: Callable[..., Dataset], tmp_path: Path
) -> None:
    path, _, _ = places("gaussian", digits, tmp_path)
    GaussianGenerator.fit(make_dataset()).save(path)
    with pytest.raises(InputError, match=r"gaussian-digits-.*was made for data set 'bars'"):
        generator("gaussian", digits, cache=tmp_path)
    GaussianGenerator.fit(digits, share=0.5).save(path)
    with pytest.raises(InputError, match=r"made otherwise \(source\.share was 0\.5, is 1\.0\); delete it"):
        generator("gaussian", digits, cache=tmp_path)
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"is damaged .*; delete it to make it anew"):
        generator("gaussian", digits, cache=tmp_path)
    path.unlink()
    assert generator("gaussian", digits, cache=tmp_path).share == 1.0


def test_bad_names_and_options(digits: Dataset) -> None:
    with pytest.raises(InputError, match="unknown generator 'gausian'; did you mean 'gaussian'"):
        generator("gausian", digits)
    with pytest.raises(InputError, match="unknown generator 'None'"):
        generator(None, digits)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="generator 'gaussian' has no option 'steps'"):
        generator("gaussian", digits, steps=3)
    with pytest.raises(InputError, match="has no option 'stepps'; did you mean 'steps'"):
        generator("diffusion", digits, stepps=3)
    with pytest.raises(InputError, match="only for a kind by name"):
        generator(GaussianGenerator.fit(digits), digits, share=0.5)


def test_an_interrupted_training_is_gone_on_from(
    digits: Dataset, tiny: Recipe, tmp_path: Path, diffusers: None
) -> None:
    def interrupt(step: int, steps: int, loss: float) -> None:
        if step == 4:
            raise KeyboardInterrupt

    path, checkpoint, _ = places("diffusion", digits, tmp_path, recipe=tiny)
    with pytest.raises(KeyboardInterrupt, match="kept in"):
        generator("diffusion", digits, cache=tmp_path, recipe=tiny, callback=interrupt)
    assert list(tmp_path.iterdir()) == [checkpoint]
    done: list[int] = []
    made = generator(
        "diffusion", digits, cache=tmp_path, recipe=tiny, checkpoint_every=2, callback=lambda s, *_: done.append(s)
    )
    assert done == [5, 6, 7, 8, 9]
    assert list(tmp_path.iterdir()) == [path]
    assert made.fingerprint == DiffusionGenerator.train(digits, recipe=tiny).fingerprint
    assert generator("diffusion", digits, cache=tmp_path, recipe=tiny).fingerprint == made.fingerprint


def test_the_command(run: Cli, tmp_path: Path) -> None:
    figure = tmp_path / "grid.png"
    common = ("generator", "digits", "--kind", "gaussian", "--share", 0.5, "--cache", tmp_path)
    status, out, _ = run(*common, "--quality", "--plot", figure, "--samples", 2)
    assert status == 0
    assert "8424 operations per sample" in out
    assert "ratio 0.9" in out
    assert figure.read_bytes().startswith(b"\x89PNG")
    status, out, _ = run(*common)
    assert status == 0
    assert "taken from" in out


def test_the_command_trains_and_goes_on(
    run: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, diffusers: None
) -> None:
    from jointopt.augmentation import diffusion

    honest = diffusion._advance

    def interrupted(denoiser: Any, state: Any, *rest: Any) -> Any:
        if state.step == 2:
            signal.raise_signal(signal.SIGINT)
        return honest(denoiser, state, *rest)

    call = ("generator", "digits", "--steps", 4, "--cache", tmp_path)
    monkeypatch.setattr(diffusion, "_advance", interrupted)
    status, _, err = run(*call)
    assert status == 130
    assert "interrupted after step 2 of 4; kept in" in " ".join(err.split())
    monkeypatch.setattr(diffusion, "_advance", honest)
    status, out, _ = run(*call)
    assert status == 0
    assert "steps 3 to 4 in" in out
    assert "operations per sample" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("digits", "--samples", 3), "--samples: needs --plot"),
        (("digits", "--samples", 0, "--plot", "x.png"), "must be at least 1"),
        (("digits", "--share", 2), "share must be above 0 and at most 1"),
        (("digits", "--steps", 0), "steps must be whole"),
        (("digit",), "unknown data set"),
        (("digits", "--kind", "gan"), "unknown generator"),
    ],
)
def test_the_command_refuses(run: Cli, tmp_path: Path, arguments: tuple[Any, ...], message: str) -> None:
    status, out, err = run("generator", *arguments, "--cache", tmp_path)
    assert (status, out) == (2, "")
    assert message in " ".join(err.split())
    assert list(tmp_path.iterdir()) == []


def test_the_figure_shows_real_beside_synthetic(digits: Dataset) -> None:
    fitted = GaussianGenerator.fit(digits)
    figure = samples(fitted, digits, per_class=3, seed=1)
    real, made = figure.axes
    assert [t.get_text() for t in real.get_yticklabels()] == [str(c) for c in range(10)]
    assert (real.get_title(), made.get_title(), real.get_ylabel()) == ("real", "synthetic", "class")
    # each tile is 8 x 8 within a line of 1
    picture = np.asarray(made.images[0].get_array())
    tiles = picture.reshape(10, 10, 3, 10)[:, 1:9, :, 1:9].transpose(0, 2, 1, 3)
    expected = fitted.sample(np.repeat(np.arange(10), 3), seed=1).numpy().reshape(10, 3, 8, 8)
    np.testing.assert_array_equal(tiles, expected)
    shown = np.asarray(real.images[0].get_array()).reshape(10, 10, 3, 10)[:, 1:9, :, 1:9].transpose(0, 2, 1, 3)
    known = {row.tobytes(): int(c) for row, c in zip(digits.train_inputs.numpy(), digits.train_labels, strict=True)}
    assert all(known[np.ascontiguousarray(shown[c, i]).tobytes()] == c for c in range(10) for i in range(3))


def test_figures_of_odd_data(make_dataset: Callable[..., Dataset]) -> None:
    colour = make_dataset(shape=(3, 5, 9), counts=(2, 3))
    figure = samples(GaussianGenerator.fit(colour), colour, per_class=4)
    assert np.asarray(figure.axes[0].images[0].get_array()).shape == (2 * 7, 4 * 11, 3)
    many = make_dataset(counts=(1,) * 40)
    assert "the first 30 of 40 classes" in samples(GaussianGenerator.fit(many), many)._suptitle.get_text()
    two = make_dataset(shape=(2, 5, 5))
    with pytest.raises(InputError, match="images of 1 or 3 channels"):
        samples(GaussianGenerator.fit(two), two)
    with pytest.raises(InputError, match="per_class must be whole and at least 1"):
        samples(GaussianGenerator.fit(colour), colour, per_class=0)
    with pytest.raises(InputError, match="was made for data set 'bars'"):
        samples(GaussianGenerator.fit(colour), many)

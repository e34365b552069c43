"""The diffusion generator: really trained on the digits; resumed bit for bit; refusing what it cannot use."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import multiprocessing
import os
import random
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from jointopt.augmentation import DiffusionGenerator, GaussianGenerator, Recipe, quality, recipe_for
from jointopt.augmentation import container as containers
from jointopt.augmentation.denoiser import Denoiser
from jointopt.data import Dataset
from jointopt.errors import DataError, InputError, MissingExtraError, NonFiniteError

needs_diffusers = pytest.mark.skipif(importlib.util.find_spec("diffusers") is None, reason="diffusers is not installed")


@pytest.fixture(scope="module")
def whole(digits: Dataset, tiny: Recipe, diffusers: None) -> DiffusionGenerator:
    return DiffusionGenerator.train(digits, seed=3, share=0.5, recipe=tiny)


def again(digits: Dataset, tiny: Recipe, **options: Any) -> DiffusionGenerator:
    return DiffusionGenerator.train(digits, seed=3, share=0.5, recipe=tiny, **options)


def same(one: DiffusionGenerator, other: DiffusionGenerator) -> bool:
    return torch.equal(one._denoiser.weights, other._denoiser.weights) and torch.equal(one.losses, other.losses)


def test_a_short_training_makes_samples_worth_having(short: DiffusionGenerator, digits: Dataset) -> None:
    assert float(short.losses[-20:].mean()) < 0.45 < 0.9 < float(short.losses[0])
    found = quality(short, digits, samples=400)
    assert found.real > 0.9
    assert found.ratio > 0.85


def test_samples_are_of_the_class_asked_for_and_differ(short: DiffusionGenerator, digits: Dataset) -> None:
    labels = np.arange(60) % 10
    made = short.sample(labels, seed=0)
    assert made.shape == (60, 1, 8, 8)
    assert made.dtype == torch.float32
    assert 0.0 <= float(made.min()) < 0.01
    assert 0.99 < float(made.max()) <= 1.0
    means = torch.stack([digits.train_inputs[digits.train_labels == c].mean(0).flatten() for c in range(10)])
    nearest = torch.cdist(made.flatten(1), means).argmin(1).numpy()
    assert (nearest == labels).mean() > 0.7
    same_class = made[labels == 3].flatten(1)
    assert float(torch.pdist(same_class).min()) > 0.3


def test_samples_hang_on_seed_place_and_label_only(short: DiffusionGenerator) -> None:
    labels = np.arange(140) % 10  # more than one chunk
    made = short.sample(labels, seed=4)
    assert torch.equal(made, short.sample(labels, seed=4))
    for fewer in (1, 5, 130):
        torch.testing.assert_close(short.sample(labels[:fewer], seed=4), made[:fewer], rtol=0, atol=2e-4)
    others = labels.copy()
    others[::2] = (others[::2] + 5) % 10
    torch.testing.assert_close(short.sample(others, seed=4)[1::2], made[1::2], rtol=0, atol=2e-4)
    assert float((short.sample(labels[:10], seed=5) - made[:10]).abs().mean()) > 0.01
    torch.manual_seed(0)
    before = torch.get_rng_state()
    short.sample([1], seed=0)
    assert torch.equal(torch.get_rng_state(), before)


def test_operations_are_counted_on_the_network(short: DiffusionGenerator) -> None:
    counted = 0.0

    def count(layer: Any, _: Any, out: torch.Tensor) -> None:
        nonlocal counted
        if isinstance(layer, nn.Conv2d):
            counted += 2.0 * out[0].numel() * layer.in_channels * layer.kernel_size[0] * layer.kernel_size[1]
        else:
            counted += 2.0 * layer.in_features * out[0].numel()

    layers = [m for m in short._denoiser.network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    short._denoiser.network(torch.zeros(1, 1, 8, 8), torch.tensor([5]), torch.tensor([0]))
    for hook in hooks:
        hook.remove()
    # the two products inside attention, over 4 x 4 places of 32 channels
    expected = 10 * (counted + 2 * 2 * 16 * 16 * 32)
    assert short.operations_per_sample == pytest.approx(expected, rel=1e-12)
    assert short.operations_per_sample > 1e7


def test_v_and_the_noising_are_those_of_the_literature(digits: Dataset, tiny: Recipe, diffusers: None) -> None:
    denoiser = Denoiser(tiny, (1, 8, 8), 10, 0)
    # Nichol and Dhariwal 2021, eq. 17, with their offset
    angle = (np.arange(1001) / 1000 + 0.008) / 1.008 * np.pi / 2
    expected = np.cos(angle[1:-1]) ** 2 / np.cos(angle[0]) ** 2
    np.testing.assert_allclose(denoiser._noising.alphas_cumprod[:-1].numpy(), expected, rtol=1e-3, atol=1e-6)
    clean, noise = torch.randn(2, 4, 1, 8, 8)
    times = torch.tensor([0, 300, 700, 999])
    a = denoiser._noising.alphas_cumprod[times].sqrt()[:, None, None, None]
    s = (1 - a * a).sqrt()
    torch.testing.assert_close(denoiser._noising.add_noise(clean, noise, times), a * clean + s * noise)
    torch.testing.assert_close(
        denoiser._noising.get_velocity(clean, noise, times), a * noise - s * clean, atol=1e-4, rtol=0
    )


@needs_diffusers
@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 7, 10)])
def test_images_survive_the_way_into_the_network_and_back(shape: tuple[int, ...], tiny: Recipe) -> None:
    denoiser = Denoiser(dataclasses.replace(tiny, patch=2), shape, 3, 0)
    images = torch.rand(2, *shape)
    inner = denoiser.encode(images)
    assert inner.shape[1:] == denoiser.inner
    assert inner.shape[1] == 4 * shape[0]
    assert float(inner.min()) >= -1.0
    torch.testing.assert_close(denoiser.decode(inner), images)


@needs_diffusers
def test_a_perfect_network_denoises_to_the_image(tiny: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    denoiser = Denoiser(dataclasses.replace(tiny, denoise_steps=10), (1, 8, 8), 10, 0)
    image = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    clean = denoiser.encode(image)

    class Perfect:
        """Knows the image, so that v is known: v = (alpha z - x) / sigma."""

        def __call__(self, z: torch.Tensor, time: torch.Tensor, labels: torch.Tensor) -> Any:
            a = denoiser._noising.alphas_cumprod[time].sqrt()
            s = (1 - a * a).sqrt()
            return type("Out", (), {"sample": (a * z - clean) / s})

    monkeypatch.setattr(denoiser, "network", Perfect())
    told: list[int] = []
    made = denoiser.denoise(torch.randn(1, 64), torch.tensor([0]), told.append)
    torch.testing.assert_close(made, image, atol=1e-4, rtol=0)
    assert told == list(range(1, 11))


def test_training_is_its_arguments(whole: DiffusionGenerator, digits: Dataset, tiny: Recipe) -> None:
    torch.manual_seed(99)
    before = torch.get_rng_state()
    assert same(again(digits, tiny), whole)
    assert torch.equal(torch.get_rng_state(), before)
    assert len(whole.losses) == tiny.steps
    assert not same(DiffusionGenerator.train(digits, seed=4, share=0.5, recipe=tiny), whole)
    assert again(digits, tiny, steps=5).recipe.steps == 5
    told: list[Any] = []
    again(digits, tiny, callback=lambda *row: told.append(row))
    assert [row[:2] for row in told] == [(i, 9) for i in range(1, 10)]
    assert [row[2] for row in told] == whole.losses.tolist()


@pytest.mark.parametrize("stop", [1, 4, 8])
def test_an_interrupted_training_goes_on_bit_for_bit(
    whole: DiffusionGenerator, digits: Dataset, tiny: Recipe, tmp_path: Path, stop: int
) -> None:
    path = tmp_path / "checkpoint.safetensors"

    def interrupt(step: int, steps: int, loss: float) -> None:
        if step == stop:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt, match=f"interrupted after step {stop} of 9; kept in .*checkpoint"):
        again(digits, tiny, checkpoint=path, callback=interrupt)
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.safetensors"]
    done: list[int] = []
    assert same(again(digits, tiny, checkpoint=path, callback=lambda step, *_: done.append(step)), whole)
    assert done == list(range(stop + 1, 10))
    # a finished one is not trained again
    assert same(again(digits, tiny, checkpoint=path, callback=lambda *_: pytest.fail("trained")), whole)
    done.clear()
    assert same(again(digits, tiny, checkpoint=path, resume=False, callback=lambda s, *_: done.append(s)), whole)
    assert len(done) == 9


def test_interrupted_inside_a_step(
    whole: DiffusionGenerator, digits: Dataset, tiny: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "checkpoint.safetensors"
    honest = Denoiser.loss
    calls = 0

    def loss(self: Denoiser, *arguments: Any) -> float:
        nonlocal calls
        calls += 1
        found = honest(self, *arguments)
        if calls == 6:
            self.weights.add_(1.0)
            raise KeyboardInterrupt
        return found

    monkeypatch.setattr(Denoiser, "loss", loss)
    with pytest.raises(KeyboardInterrupt, match="after step 5 of 9"):
        again(digits, tiny, checkpoint=path)
    assert same(again(digits, tiny, checkpoint=path), whole)


def test_interrupted_before_the_first_step(
    whole: DiffusionGenerator, digits: Dataset, tiny: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loss(*arguments: Any) -> float:
        raise KeyboardInterrupt

    path = tmp_path / "checkpoint.safetensors"
    with monkeypatch.context() as patch:
        patch.setattr(Denoiser, "loss", loss)
        with pytest.raises(KeyboardInterrupt, match="after step 0 of 9"):
            again(digits, tiny, checkpoint=path)
    assert same(again(digits, tiny, checkpoint=path), whole)


def test_interrupted_without_a_checkpoint(digits: Dataset, tiny: Recipe, diffusers: None) -> None:
    def interrupt(step: int, steps: int, loss: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match="nothing was kept"):
        again(digits, tiny, callback=interrupt)


def _work(path: str, recipe: Recipe) -> None:
    from jointopt.augmentation import DiffusionGenerator
    from jointopt.data import load

    DiffusionGenerator.train(load("digits"), seed=3, share=0.5, recipe=recipe, checkpoint=path, checkpoint_every=1)


def test_a_damaged_checkpoint_is_refused(
    digits: Dataset, tiny: Recipe, tmp_path: Path, whole: DiffusionGenerator
) -> None:
    path = tmp_path / "checkpoint.safetensors"
    again(digits, tiny, checkpoint=path)
    good = path.read_bytes()
    for bad in (good[:-1], good[: len(good) // 2], b"", b"{}", good[:-50] + bytes(50)):
        path.write_bytes(bad)
        with pytest.raises(DataError, match=r"checkpoint\.safetensors: is damaged"):
            again(digits, tiny, checkpoint=path)
    whole.save(path)
    with pytest.raises(DataError, match=r"has schema 'jointopt\.generator/1'"):
        again(digits, tiny, checkpoint=path)
    path.unlink()
    path.mkdir()
    with pytest.raises(DataError):
        again(digits, tiny, checkpoint=path)


def test_a_checkpoint_whose_tensors_do_not_fit(digits: Dataset, tiny: Recipe, tmp_path: Path, diffusers: None) -> None:
    path = tmp_path / "checkpoint.safetensors"
    again(digits, tiny, checkpoint=path)
    data, tensors = containers.read(path, "jointopt.generator-training/1")
    for change in ({"losses": torch.zeros(3)}, {"first": torch.zeros(7)}, {"extra": torch.zeros(1)}):
        containers.write(path, "jointopt.generator-training/1", data, {**tensors, **change})
        with pytest.raises(DataError, match="tensors do not fit"):
            again(digits, tiny, checkpoint=path)


def test_a_checkpoint_of_another_training_is_refused(
    digits: Dataset, make_dataset: Callable[..., Dataset], tiny: Recipe, tmp_path: Path, diffusers: None
) -> None:
    path = tmp_path / "checkpoint.safetensors"
    again(digits, tiny, checkpoint=path)
    faster = dataclasses.replace(tiny, learning_rate=1e-3)
    for options, message in (
        ({"seed": 4}, r"source\.seed was 3, is 4"),
        ({"share": 0.6}, r"source\.share was 0\.5, is 0\.6"),
        ({"steps": 10}, r"recipe\.steps was 9, is 10"),
        ({"recipe": faster}, r"recipe\.learning_rate was 0\.002, is 0\.001"),
    ):
        with pytest.raises(InputError, match=message):
            DiffusionGenerator.train(digits, **{"seed": 3, "share": 0.5, "recipe": tiny, "checkpoint": path, **options})
    with pytest.raises(InputError, match=r"source\.data was 'digits', is 'bars'"):
        again(make_dataset(), tiny, checkpoint=path)


def test_saving_and_loading(whole: DiffusionGenerator, digits: Dataset, tmp_path: Path) -> None:
    path = whole.save(tmp_path / "generator.safetensors")
    found = DiffusionGenerator.load(path, digits)
    assert same(found, whole)
    assert found.fingerprint == whole.fingerprint
    assert found.operations_per_sample == whole.operations_per_sample
    assert (found.share, found.seed, found.recipe) == (0.5, 3, whole.recipe)
    assert torch.equal(found.sample([1, 2], seed=0), whole.sample([1, 2], seed=0))
    with pytest.raises(DataError, match="holds a generator 'diffusion', expected 'gaussian'"):
        GaussianGenerator.load(path)
    # plain safetensors: any tool reads it, no code in it
    assert set(safetensors.torch.load_file(path)) == {"weights", "losses"}


def test_a_file_that_fits_no_network(whole: DiffusionGenerator, tmp_path: Path) -> None:
    path = tmp_path / "generator.safetensors"
    tensors = whole._tensors()
    recipe = whole.settings["recipe"]
    for settings, parts in (
        (whole.settings, {**tensors, "weights": tensors["weights"][:-1]}),
        (whole.settings, {**tensors, "weights": tensors["weights"] * torch.nan}),
        (whole.settings, {"losses": tensors["losses"]}),
        ({**whole.settings, "recipe": {**recipe, "channels": [7]}}, tensors),
        ({**whole.settings, "recipe": {**recipe, "magic": 1}}, tensors),
        ({**whole.settings, "source": {}}, tensors),
    ):
        containers.write(path, "jointopt.generator/1", json.loads(json.dumps(settings)), parts)
        with pytest.raises(DataError, match="holds no usable generator"):
            DiffusionGenerator.load(path)


def test_a_class_without_samples_is_named(make_dataset: Callable[..., Dataset], tiny: Recipe) -> None:
    dataset = make_dataset(classes=4)
    with pytest.raises(InputError, match="generator 'diffusion': data set 'bars', class 3: no real sample"):
        DiffusionGenerator.train(dataset, recipe=tiny)


@pytest.mark.parametrize("module", ["diffusers", "diffusers.models.unets.unet_2d"])
def test_missing_extra(monkeypatch: pytest.MonkeyPatch, digits: Dataset, tiny: Recipe, module: str) -> None:
    for loaded in [name for name in sys.modules if name == module or name.startswith(f"{module}.")]:
        monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=r"pip install 'jointopt\[diffusion\]'") as caught:
        DiffusionGenerator.train(digits, recipe=tiny)
    assert (caught.value.package, caught.value.extra) == ("diffusers", "diffusion")


def test_nothing_touches_the_network(
    monkeypatch: pytest.MonkeyPatch, digits: Dataset, tiny: Recipe, recwarn: pytest.WarningsRecorder, diffusers: None
) -> None:
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("opened a connection"))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: pytest.fail("looked up a name"))
    DiffusionGenerator.train(digits, recipe=tiny).sample([0], seed=0)
    assert [str(w.message) for w in recwarn] == []


def test_divergence_is_said(digits: Dataset, tiny: Recipe, diffusers: None) -> None:
    wild = dataclasses.replace(tiny, learning_rate=1e30, warmup=0)
    with pytest.raises(NonFiniteError, match=r"diverged in step \d; try a learning rate below 1e\+30"):
        DiffusionGenerator.train(digits, recipe=wild)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps must be whole and at least 1, found 0"),
        ({"steps": 2.5}, "steps must be whole"),
        ({"seed": None}, "seed must be a whole number"),
        ({"share": 0.0}, "share must be above 0"),
        ({"checkpoint_every": 0}, "checkpoint_every must be whole"),
        ({"recipe": {"steps": 3}}, "recipe must be a Recipe, found dict"),
    ],
)
def test_bad_arguments(digits: Dataset, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        DiffusionGenerator.train(digits, **options)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"channels": (12,)}, "channels must be a tuple of multiples of 8"),
        ({"channels": ()}, "channels must be"),
        ({"channels": [8]}, "channels must be"),
        ({"patch": 0}, "patch must be whole and at least 1"),
        ({"layers": True}, "layers must be whole"),
        ({"batch": 1.5}, "batch must be whole"),
        ({"warmup": -1}, "warmup must be whole and at least 0"),
        ({"denoise_steps": 1001}, "denoise_steps must be whole, 1 to 1000"),
        ({"learning_rate": float("nan")}, "learning_rate must be above 0"),
        ({"learning_rate": float("inf")}, "learning_rate must be above 0"),
        ({"average": 1.0}, "average must lie in"),
        ({"average": "much"}, "average must lie in"),
    ],
)
def test_bad_recipes(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Recipe(**fields)


def test_every_image_has_a_recipe(make_dataset: Callable[..., Dataset], diffusers: None) -> None:
    for shape, patch in (((1, 8, 8), 1), ((1, 16, 16), 1), ((3, 17, 9), 2), ((3, 32, 32), 2), ((1, 40, 64), 4)):
        recipe = recipe_for(make_dataset(shape=shape), "test")
        assert recipe.patch == patch
        assert Recipe.from_plain(json.loads(json.dumps(recipe.plain()))) == recipe
    dataset = make_dataset(shape=(3, 7, 10))
    few = dataclasses.replace(recipe_for(dataset, "test"), channels=(8, 16), steps=2, batch=4, denoise_steps=2)
    assert DiffusionGenerator.train(dataset, recipe=few).sample([0, 1], seed=0).shape == (2, 3, 7, 10)
    flat = make_dataset(shape=(9, 4))
    with pytest.raises(InputError, match=r"inputs \[channels, height, width\], found shape \(9, 4\)"):
        DiffusionGenerator.train(flat)
    with pytest.raises(InputError, match="found shape"):
        DiffusionGenerator.train(flat, recipe=few)


@pytest.mark.slow
def test_a_killed_training_goes_on_bit_for_bit(whole: DiffusionGenerator, digits: Dataset, tmp_path: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["diffusers.models.unets.unet_2d", "jointopt.augmentation"])
    path = tmp_path / "checkpoint.safetensors"
    rng = random.Random(3)
    kills = 0
    for _ in range(12):
        before = path.stat().st_mtime_ns if path.exists() else 0
        process = context.Process(target=_work, args=(str(path), whole.recipe))
        process.start()
        limit = time.monotonic() + 60.0
        while process.is_alive() and time.monotonic() < limit:
            if path.exists() and path.stat().st_mtime_ns != before:
                break
            time.sleep(0.002)
        time.sleep(rng.uniform(0.0, 0.05))
        if process.is_alive() and process.pid is not None:
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
        process.join()
        if kills >= 3:
            break
    assert kills >= 1
    assert same(again(digits, whole.recipe, checkpoint=path), whole)

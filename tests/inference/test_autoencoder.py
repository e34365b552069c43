"""The autoencoder: its start, that it learns, and that an interrupted training ends at the same bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from jointopt.data import load
from jointopt.errors import DataError, InputError
from jointopt.inference import SplitNetwork, autoencoder, dense_network, load_network, save_network, train_autoencoder

QUICK: dict[str, Any] = {"epochs": 4, "encoder": (32, 16, 8)}


def equal(a: SplitNetwork, b: SplitNetwork) -> bool:
    return all(torch.equal(v, w) for (_, _, v), (_, _, w) in zip(a.prunable(), b.prunable(), strict=True))


def test_the_start_is_linear_and_seeded() -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    network = autoencoder(20, 3)
    assert torch.equal(torch.get_rng_state(), state)
    assert equal(network, autoencoder(20, 3)) and not equal(network, autoencoder(20, 4))
    assert len(network) == 16 and network.bounded
    x = torch.randn(6, 20, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(network.run(-2 * x), -2 * network.run(x), atol=1e-4)


def test_training_on_digits_beats_the_mean_image() -> None:
    # 10 epochs of the full network; the mean image has .0727
    seen: list[tuple[int, int, float]] = []
    trained = train_autoencoder("digits", 0, epochs=10, progress=lambda *step: seen.append(step))
    digits = load("digits")
    test = digits.test_inputs.flatten(1)
    mean = float((test - digits.train_inputs.flatten(1).mean(0)).square().mean())
    error = float((trained.network.run(test) - test).square().mean())
    assert error < 0.45 * mean
    assert torch.equal(trained.test_inputs, test)
    assert trained.status == "completed" and len(trained.losses) == 10
    assert seen == [(i + 1, 10, loss) for i, loss in enumerate(trained.losses)]


@pytest.mark.parametrize("how", ["progress", "keyboard"])
def test_resuming_gives_the_same_bits(tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = train_autoencoder("digits", 1, **QUICK)

    def stop(done: int, _total: int, _loss: float) -> bool:
        if how == "keyboard" and done == 2:
            raise KeyboardInterrupt
        return done < 2

    cut = train_autoencoder("digits", 1, cache=tmp_path, progress=stop, **QUICK)
    assert cut.status == "interrupted" and cut.losses == whole.losses[:2] and not equal(cut.network, whole.network)
    resumed = train_autoencoder("digits", 1, cache=tmp_path, **QUICK)
    assert resumed.status == "completed" and resumed.losses == whole.losses and equal(resumed.network, whole.network)
    # a finished training is read, not repeated
    calls: list[Any] = []
    again = train_autoencoder("digits", 1, cache=tmp_path, progress=lambda *a: calls.append(a), **QUICK)
    assert not calls and equal(again.network, whole.network) and again.losses == whole.losses
    files = list(tmp_path.iterdir())
    assert len(files) == 1
    assert equal(load_network(files[0]), whole.network)


def test_interrupted_within_an_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from jointopt.inference import fcdnn as module

    whole = train_autoencoder("digits", 2, **QUICK)
    rate, steps = module._learning_rate, []

    def interrupting(step: int, total: int, peak: float) -> float:
        steps.append(step)
        if step == 40:  # in the second of four epochs of 23 steps
            raise KeyboardInterrupt
        return rate(step, total, peak)

    monkeypatch.setattr(module, "_learning_rate", interrupting)
    cut = train_autoencoder("digits", 2, cache=tmp_path, **QUICK)
    assert cut.status == "interrupted" and len(cut.losses) == 1 and steps[-1] == 40
    monkeypatch.setattr(module, "_learning_rate", rate)
    resumed = train_autoencoder("digits", 2, cache=tmp_path, **QUICK)
    assert equal(resumed.network, whole.network)


def test_save_and_load(tmp_path: Path) -> None:
    network = autoencoder(12, 0, encoder=(6, 4), input_levels=16)
    path = save_network(network, tmp_path / "deep" / "net.npz")
    found = load_network(path)
    assert equal(found, network) and found.input_levels == 16 and found.name == network.name
    with pytest.raises(InputError, match="without biases"):
        save_network(dense_network([np.ones((2, 2))], biases=[np.ones(2)]), path)


@pytest.mark.parametrize("damage", ["cut", "flip", "text", "other", "missing"])
def test_damaged_weights(tmp_path: Path, damage: str) -> None:
    path = save_network(autoencoder(12, 0, encoder=(6, 4)), tmp_path / "net.npz")
    data = bytearray(path.read_bytes())
    if damage == "cut":
        path.write_bytes(data[: len(data) // 2])
    elif damage == "flip":
        data[len(data) // 3] ^= 0xFF
        path.write_bytes(data)
    elif damage == "text":
        path.write_text("no archive")
    elif damage == "other":
        np.savez(path, meta=np.zeros(3))
    else:
        path.unlink()
    with pytest.raises(DataError, match=r"net\.npz"):
        load_network(path)


def test_damaged_cache(tmp_path: Path) -> None:
    train_autoencoder("digits", 0, cache=tmp_path, **QUICK)
    file = next(tmp_path.iterdir())
    file.write_bytes(file.read_bytes()[:-200])
    with pytest.raises(DataError, match=file.name):
        train_autoencoder("digits", 0, cache=tmp_path, **QUICK)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", 0),
        ("batch", 1.5),
        ("learning_rate", float("nan")),
        ("learning_rate", -1.0),
        ("seed", -1),
        ("encoder", (3, 2)),
        ("encoder", ()),
        ("data", "cifar"),
    ],
)
def test_bad_settings(field: str, value: Any) -> None:
    with pytest.raises(InputError):
        train_autoencoder(**{**QUICK, field: value})


def test_divergence_is_named() -> None:
    with pytest.raises(InputError, match=r"diverged .* below 1e\+10"):
        train_autoencoder("digits", 0, learning_rate=1e10, **QUICK)

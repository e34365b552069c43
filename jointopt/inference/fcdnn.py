"""The autoencoder FCDNN-16: 16 linear layers without biases, ReLU between them [C, theory 4a].

Encoder widths 64, 128, 256, 512, 256, 128, 64, 32, the decoder mirrored; the last layer has no ReLU [S], as one
would stop all gradients of a pixel that starts below 0. Trained to reproduce images in mean squared error.

Start [K, Balduzzi et al. 2017, "looks linear"]: layers of the form [[W, -W], [-W, W]] with orthogonal W, for which
the network with ReLU is a linear one of half the width. Under the usual Gaussian start of variance 2/n (Kaiming),
different images are mapped to nearly the same direction after 16 layers of ReLU, and training ends at nearly twice
the error on the digits.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from jointopt.data import load
from jointopt.errors import DataError, InputError, is_real, is_whole
from jointopt.files import atomic_write
from jointopt.inference.split import SplitNetwork, dense_network

__all__ = ["ENCODER", "Trained", "autoencoder", "load_network", "save_network", "train_autoencoder"]

ENCODER = (64, 128, 256, 512, 256, 128, 64, 32)
"""Widths of the encoder of FCDNN-16 [C]."""

# Chosen so that training takes seconds on the digits and a few minutes on Fashion-MNIST, on one thread [S].
_EPOCHS = {"digits": 40, "fashion-mnist": 12}
_BATCH = {"digits": 64, "fashion-mnist": 256}
_LEVELS = {"digits": 16, "fashion-mnist": 255}
_WARMUP = 50
_BETAS = (0.9, 0.999)
_FORMAT = "jointopt.autoencoder/1"


def _widths(inputs: int, encoder: Sequence[int]) -> list[int]:
    for width in encoder:
        # halves of a layer mirror each other at the start
        if not (is_whole(width) and width >= 2 and width % 2 == 0):
            raise InputError(f"autoencoder: encoder widths must be even and at least 2, found {tuple(encoder)}")
    if not encoder:
        raise InputError("autoencoder: needs at least one encoder width")
    return [inputs, *encoder, *list(encoder)[-2::-1], inputs]


def autoencoder(
    inputs: int, seed: int, *, encoder: Sequence[int] = ENCODER, input_levels: int | None = None
) -> SplitNetwork:
    """Build an untrained autoencoder without biases; the global generators stay as they were.

    Parameters
    ----------
    inputs
        Number of values of one input.
    seed
        Seed of the initial weights, at least 0.
    encoder
        Widths of the encoder, even numbers.
    input_levels
        As in `SplitNetwork`.

    Returns
    -------
    SplitNetwork
        2 x len(encoder) blocks.
    """
    if not (is_whole(inputs) and inputs >= 1):
        raise InputError(f"autoencoder: inputs must be whole and at least 1, found {inputs!r}")
    if not (is_whole(seed) and 0 <= seed < 2**63):
        raise InputError(f"autoencoder: seed must be a whole number in 0 .. 2**63 - 1, found {seed!r}")
    generator = torch.Generator().manual_seed(int(seed))
    widths = _widths(inputs, encoder)
    weights = []
    for i, (before, after) in enumerate(itertools.pairwise(widths)):
        first, last = i == 0, i == len(widths) - 2
        core = torch.empty(after if last else after // 2, before if first else before // 2)
        nn.init.orthogonal_(core, generator=generator)
        core = core if last else torch.cat([core, -core], 0)
        weights.append(core if first else torch.cat([core, -core], 1))
    return dense_network(weights, name=f"fcdnn-{len(weights)}", input_levels=input_levels)


@dataclass(frozen=True, eq=False)
class Trained:
    """A trained autoencoder and how it got there.

    Attributes
    ----------
    network
        The network, with the weights of the last finished epoch.
    losses
        Mean squared error over the training images during each finished epoch.
    status
        "completed", or "interrupted": by Ctrl-C or by `progress`; the next call goes on from there.
    test_inputs
        Test images, shape [N, inputs].
    """

    network: SplitNetwork
    losses: tuple[float, ...]
    status: Literal["completed", "interrupted"]
    test_inputs: Tensor


def _pack(meta: dict[str, Any], arrays: dict[str, Tensor], path: Path) -> None:
    buffer = io.BytesIO()
    text = np.frombuffer(json.dumps(meta).encode(), dtype=np.uint8)
    # savez stores a checksum of each array, so that damage is noticed on reading
    np.savez(buffer, allow_pickle=False, meta=text, **{k: v.detach().numpy() for k, v in arrays.items()})
    atomic_write(path, lambda file: file.write(buffer.getbuffer()))


def _unpack(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in archive.files}
        meta = json.loads(arrays.pop("meta").tobytes())
        known = isinstance(meta, dict) and meta.get("format") == _FORMAT
        tensors = {key: torch.from_numpy(np.array(value)) for key, value in arrays.items()}
    except Exception as error:  # a damaged archive raises whatever its decoder meets
        raise DataError(f"{path}: is damaged or no saved autoencoder ({error!r})") from None
    if not known:
        raise DataError(f"{path}: is no saved autoencoder (no format {_FORMAT!r})")
    return meta, tensors


def save_network(network: SplitNetwork, path: str | os.PathLike[str]) -> Path:
    """Write a chain of linear layers without biases to one .npz file, whole or not at all; no pickle.

    Raises
    ------
    InputError
        It is another kind of network, or the file cannot be written.
    """
    if not network.bounded:
        raise InputError(f"{network.name}: only chains of linear layers without biases can be saved")
    meta = {"format": _FORMAT, "layers": len(network), "name": network.name, "input_levels": network.input_levels}
    _pack(meta, {f"weight.{i}": w for i, (_, _, w) in enumerate(network.prunable())}, Path(path))
    return Path(path)


def _network_of(path: Path, meta: dict[str, Any], arrays: dict[str, Tensor]) -> SplitNetwork:
    try:
        weights = [arrays[f"weight.{i}"] for i in range(int(meta["layers"]))]
        return dense_network(weights, name=str(meta["name"]), input_levels=meta["input_levels"])
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: holds no usable network ({error})") from None


def load_network(path: str | os.PathLike[str]) -> SplitNetwork:
    """Read a network that `save_network` or `train_autoencoder` wrote; `DataError` when the file is unusable."""
    return _network_of(Path(path), *_unpack(Path(path)))


def _learning_rate(step: int, steps: int, peak: float) -> float:
    """Linear warm-up, then half a cosine down to 0."""
    return peak * min(1.0, (step + 1) / _WARMUP) * 0.5 * (1.0 + math.cos(math.pi * step / steps))


def _fingerprint(inputs: Tensor) -> str:
    # 1,000 images spread over the set tell data sets apart, in milliseconds
    rows = inputs[:: max(1, len(inputs) // 1000)].contiguous().numpy()
    return hashlib.sha256(f"{tuple(inputs.shape)}".encode() + rows.tobytes()).hexdigest()[:16]


def train_autoencoder(
    data: str = "digits",
    seed: int = 0,
    *,
    cache: str | os.PathLike[str] | None = None,
    folder: str | os.PathLike[str] | None = None,
    epochs: int | None = None,
    batch: int | None = None,
    learning_rate: float = 1e-3,
    encoder: Sequence[int] = ENCODER,
    progress: Callable[[int, int, float], object] | None = None,
) -> Trained:
    """Train the autoencoder on the CPU with Adam, or take up where an earlier call ended.

    The same arguments give the same weights, bit for bit, on one machine with the same number of threads, however
    often training was interrupted.

    Parameters
    ----------
    data
        "digits" or "fashion-mnist" (`jointopt.data.load`).
    seed
        Seed of the initial weights and of the order of images.
    cache
        Folder for the state after each epoch, one file for each set of arguments; nothing is kept by default.
    folder
        Where the files of the data set lie.
    epochs, batch
        Passes over the training images, and images per step; by default 40 and 64 on the digits, 12 and 256 on
        Fashion-MNIST.
    learning_rate
        Largest step size; a cosine falls from it to 0.
    encoder
        Widths of the encoder.
    progress
        Called after each epoch with (finished epochs, all epochs, mean loss); returning False stops.

    Raises
    ------
    InputError
        An argument is out of range, or training diverges.
    DataError
        The data set is missing, or the file in `cache` is damaged.
    """
    images = load(data, folder)
    inputs, test = images.train_inputs.flatten(1), images.test_inputs.flatten(1)
    epochs = _EPOCHS[data] if epochs is None else epochs
    batch = _BATCH[data] if batch is None else batch
    for name, value in (("epochs", epochs), ("batch", batch)):
        if not (is_whole(value) and value >= 1):
            raise InputError(f"train_autoencoder: {name} must be whole and at least 1, found {value!r}")
    if not (is_real(learning_rate) and math.isfinite(learning_rate) and learning_rate > 0):
        raise InputError(f"train_autoencoder: learning_rate must be above 0, found {learning_rate!r}")
    network = autoencoder(inputs.shape[1], seed, encoder=encoder, input_levels=_LEVELS[data])
    weights = [network.block(i).get_parameter("linear.weight") for i in range(len(network))]
    settings = {
        "data": data,
        "fingerprint": _fingerprint(inputs),
        "seed": int(seed),
        "epochs": int(epochs),
        "batch": int(batch),
        "learning_rate": float(learning_rate),
        "encoder": [int(width) for width in encoder],
    }
    first = [torch.zeros_like(w) for w in weights]
    second = [torch.zeros_like(w) for w in weights]
    losses: list[float] = []
    path: Path | None = None
    if cache is not None:
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
        path = Path(cache) / f"autoencoder-{data}-seed{int(seed)}-{digest}.npz"
        if path.is_file():
            losses = _restore(path, settings, weights, first, second)

    each = math.ceil(len(inputs) / batch)
    status: Literal["completed", "interrupted"] = "completed"
    # what a finished epoch left; an epoch cut short is done again from here
    kept = [w.detach().clone() for w in weights]
    try:
        while len(losses) < epochs:
            epoch = len(losses)
            mean = _epoch(weights, first, second, inputs, epoch, epochs * each, batch, learning_rate, int(seed))
            if not math.isfinite(mean):
                raise InputError(
                    f"train_autoencoder: diverged in epoch {epoch}; try a learning rate below {learning_rate:g}"
                )
            kept = [w.detach().clone() for w in weights]
            losses.append(mean)
            if path is not None:
                arrays = {f"weight.{i}": w for i, w in enumerate(kept)}
                if len(losses) < epochs:
                    arrays |= {f"first.{i}": m for i, m in enumerate(first)}
                    arrays |= {f"second.{i}": m for i, m in enumerate(second)}
                meta = {
                    "format": _FORMAT,
                    "layers": len(network),
                    "name": network.name,
                    "input_levels": network.input_levels,
                    "settings": settings,
                    "losses": losses,
                }
                _pack(meta, arrays, path)
            if progress is not None and progress(len(losses), epochs, mean) is False and len(losses) < epochs:
                status = "interrupted"
                break
    except KeyboardInterrupt:
        status = "interrupted"
    with torch.no_grad():
        for weight, last in zip(weights, kept, strict=True):
            weight.copy_(last)
            weight.requires_grad_(False)
    return Trained(network, tuple(losses), status, test)


def _restore(
    path: Path, settings: dict[str, Any], weights: list[nn.Parameter], first: list[Tensor], second: list[Tensor]
) -> list[float]:
    """Copy a saved state into the tensors given and return the losses so far."""
    meta, arrays = _unpack(path)
    try:
        if meta["settings"] != settings:
            raise ValueError("it was trained with other settings")
        losses = [float(value) for value in meta["losses"]]
        done = len(losses) == settings["epochs"]
        with torch.no_grad():
            for i in range(len(weights)):
                parts: list[tuple[str, Tensor]] = [("weight", weights[i])]
                parts += [] if done else [("first", first[i]), ("second", second[i])]
                for name, target in parts:
                    value = arrays[f"{name}.{i}"]
                    if value.shape != target.shape or value.dtype != target.dtype:
                        raise ValueError(f"{name}.{i} has shape {tuple(value.shape)}")
                    if not bool(torch.isfinite(value).all()):
                        raise ValueError(f"{name}.{i} is not finite")
                    target.copy_(value)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: cannot be resumed from ({error}); delete it to train anew") from None
    return losses


def _epoch(
    weights: list[nn.Parameter],
    first: list[Tensor],
    second: list[Tensor],
    inputs: Tensor,
    epoch: int,
    steps: int,
    batch: int,
    peak: float,
    seed: int,
) -> float:
    """One pass of Adam [K, Kingma and Ba 2015] over the images in an order drawn for this epoch alone."""
    # of seed and epoch only, so that resuming needs no generator state
    order = torch.from_numpy(np.random.default_rng([seed, epoch]).permutation(len(inputs)))
    total = 0.0
    step = epoch * math.ceil(len(inputs) / batch)
    parameters: list[Tensor] = list(weights)
    for rows in order.split(batch):
        images = inputs[rows]
        out = images
        for i, weight in enumerate(parameters):
            out = nn.functional.linear(out, weight)
            if i + 1 < len(parameters):
                out = torch.relu(out)
        loss = (out - images).square().mean()
        gradients = torch.autograd.grad(loss, parameters)
        rate = _learning_rate(step, steps, peak)
        step += 1
        ups = [1.0 - beta**step for beta in _BETAS]
        with torch.no_grad():
            for weight, gradient, m, v in zip(parameters, gradients, first, second, strict=True):
                m.lerp_(gradient, 1.0 - _BETAS[0])
                v.mul_(_BETAS[1]).addcmul_(gradient, gradient, value=1.0 - _BETAS[1])
                weight.addcdiv_(m, (v / ups[1]).sqrt_().add_(1e-8), value=-rate / ups[0])
        total += float(loss.detach()) * len(rows)
    return total / len(inputs)

"""A small diffusion model, trained by this package on the CPU."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor

from jointopt.augmentation import container
from jointopt.augmentation.base import Callback, Generator, difference
from jointopt.augmentation.denoiser import Denoiser
from jointopt.augmentation.progress import progress_bar
from jointopt.augmentation.recipe import Recipe, recipe_for
from jointopt.augmentation.split import Source
from jointopt.augmentation.streams import torch_stream
from jointopt.data import Dataset
from jointopt.errors import DataError, InputError, NonFiniteError, is_whole

__all__ = ["DiffusionGenerator"]

CHECKPOINT = "jointopt.generator-training/1"
_BETAS = (0.9, 0.99)
_LARGEST = 1.0


class DiffusionGenerator(Generator):
    """Images denoised from noise by a class-conditional U-net (`Denoiser`); `train` makes one."""

    name: ClassVar[str] = "diffusion"
    options: ClassVar[tuple[str, ...]] = ("share", "seed", "steps", "recipe", "checkpoint_every", "resume")

    def __init__(self, source: Source, settings: dict[str, Any], weights: Tensor, losses: Tensor) -> None:
        super().__init__(source, settings)
        self.recipe = Recipe.from_plain(settings["recipe"])
        self._denoiser = Denoiser(self.recipe, source.shape, source.classes, source.seed)
        expected = self._denoiser.weights.shape
        if weights.dtype != torch.float32 or weights.shape != expected or not bool(torch.isfinite(weights).all()):
            raise ValueError(f"weights must be finite float32 of shape {tuple(expected)}, found {tuple(weights.shape)}")
        self._denoiser.weights.copy_(weights)
        self._denoiser.network.eval().requires_grad_(False)
        self.losses = losses
        """Loss of each training step, shape [steps]."""

    @property
    def parameters(self) -> int:
        """Weights of the network."""
        return self._denoiser.weights.numel()

    @cached_property
    def operations_per_sample(self) -> float:
        """Products in all denoising steps, counted on the network; a product with addition counts two."""
        return self._denoiser.operations()

    @classmethod
    def plan(cls, dataset: Dataset, **options: Any) -> dict[str, Any]:
        """Settings of a training, see `train`."""
        return _plan(dataset, **options)[0]

    @classmethod
    def make(
        cls,
        dataset: Dataset,
        *,
        checkpoint: str | os.PathLike[str] | None = None,
        progress: bool = False,
        callback: Callback | None = None,
        **options: Any,
    ) -> Self:
        """Train, see `train`."""
        return cls.train(dataset, checkpoint=checkpoint, progress=progress, callback=callback, **options)

    @classmethod
    def train(
        cls,
        dataset: Dataset,
        *,
        share: float = 1.0,
        seed: int = 0,
        steps: int | None = None,
        recipe: Recipe | None = None,
        checkpoint: str | os.PathLike[str] | None = None,
        checkpoint_every: int = 100,
        resume: bool = True,
        progress: bool = False,
        callback: Callback | None = None,
    ) -> Self:
        """Train on the public share of a data set with Adam, or take up where an earlier call ended.

        The same arguments give the same weights, bit for bit, on one machine with the same number of threads, however
        often training was interrupted: batch, times and noise of a step are drawn from the seed and its number.

        Parameters
        ----------
        dataset
            What to learn from; test samples are not touched.
        share, seed
            Of `public_split`; the seed is also that of training.
        steps
            Training steps, in place of the recipe's.
        recipe
            Sizes of network and training; by default `RECIPES`, or by the size of the images (`recipe_for`).
        checkpoint
            File for the state of training, replaced as it goes on and when it is interrupted; nothing is kept by
            default.
        checkpoint_every
            Steps between checkpoints.
        resume
            Whether to go on from the checkpoint, where there is one, or to start anew.
        progress
            Whether to draw a bar on standard error.
        callback
            Called after each step with (steps done, all steps, loss).

        Raises
        ------
        InputError
            An argument is out of range, a class has no sample to learn from, or the checkpoint is of another training;
            the message names what differs.
        DataError
            The checkpoint is damaged.
        NonFiniteError
            Training diverges.
        MissingExtraError
            The package `diffusers` is not installed.
        KeyboardInterrupt
            Training was interrupted; the message says where it was kept.
        """
        where = f"generator '{cls.name}'"
        settings, source = _plan(dataset, share=share, seed=seed, steps=steps, recipe=recipe)
        if not (is_whole(checkpoint_every) and checkpoint_every >= 1):
            raise InputError(f"{where}: checkpoint_every must be whole and at least 1, found {checkpoint_every!r}")
        inputs, labels = source.samples(dataset, where)
        how = Recipe.from_plain(settings["recipe"])
        denoiser = Denoiser(how, source.shape, source.classes, source.seed)
        path = None if checkpoint is None else Path(checkpoint)
        state = _start(denoiser)
        if path is not None and resume and path.exists():
            state = _resume(path, settings, state)
        try:
            with progress_bar(progress, "training", how.steps, state.step) as tell:
                while state.step < how.steps:
                    state = _advance(denoiser, state, inputs, labels, source.seed)
                    loss = float(state.losses[-1])
                    tell(state.step, f", loss {loss:.3f}")
                    if callback is not None:
                        callback(state.step, how.steps, loss)
                    if path is not None and (state.step % checkpoint_every == 0 or state.step == how.steps):
                        _keep(path, settings, state)
        except KeyboardInterrupt:
            at = f"{where}: interrupted after step {state.step} of {how.steps}"
            if path is None:
                raise KeyboardInterrupt(f"{at}; nothing was kept, as no checkpoint was named") from None
            _keep(path, settings, state)
            raise KeyboardInterrupt(f"{at}; kept in {path}, the same call goes on from there") from None
        return cls(source, settings, state.average, state.losses)

    def _tensors(self) -> dict[str, Tensor]:
        return {"weights": self._denoiser.weights, "losses": self.losses}

    @classmethod
    def _restore(cls, source: Source, settings: dict[str, Any], tensors: dict[str, Tensor]) -> Self:
        return cls(source, settings, tensors["weights"], tensors["losses"])

    @property
    def _noise_size(self) -> int:
        return self._denoiser.noise_size

    @property
    def _rounds(self) -> int:
        return self.recipe.denoise_steps

    def _generate(self, labels: Tensor, noise: Tensor, tell: Callable[[int], None]) -> Tensor:
        return self._denoiser.denoise(noise, labels, tell)


def _plan(
    dataset: Dataset,
    share: float = 1.0,
    seed: int = 0,
    steps: int | None = None,
    recipe: Recipe | None = None,
    **how: Any,
) -> tuple[dict[str, Any], Source]:
    """Settings and source; what only says how to go about it (checkpoints) decides nothing."""
    where = "generator 'diffusion'"
    source = Source.of(dataset, share, seed, where)
    chosen = recipe_for(dataset, where)
    if recipe is not None:
        if not isinstance(recipe, Recipe):
            raise InputError(f"{where}: recipe must be a Recipe, found {type(recipe).__name__}")
        chosen = recipe
    if steps is not None:
        chosen = dataclasses.replace(chosen, steps=steps)
    return {"kind": "diffusion", "source": source.plain(), "recipe": chosen.plain()}, source


class _State(NamedTuple):
    """Training after some steps; never changed in place, so that an interrupted step leaves it whole."""

    step: int
    weights: Tensor
    average: Tensor
    first: Tensor
    second: Tensor
    losses: Tensor


def _start(denoiser: Denoiser) -> _State:
    # each its own memory: safetensors writes no tensor twice
    weights, average = denoiser.weights.clone(), denoiser.weights.clone()
    return _State(0, weights, average, torch.zeros_like(weights), torch.zeros_like(weights), torch.zeros(0))


def _learning_rate(step: int, recipe: Recipe) -> float:
    """Linear warm-up, then half a cosine down to 0."""
    rise = min(1.0, (step + 1) / (recipe.warmup + 1))
    return recipe.learning_rate * rise * 0.5 * (1.0 + math.cos(math.pi * step / recipe.steps))


def _advance(denoiser: Denoiser, state: _State, inputs: Tensor, labels: Tensor, seed: int) -> _State:
    """One step of Adam [K, Kingma and Ba 2015] with the gradient's norm limited, and of the moving average."""
    recipe, step = denoiser.recipe, state.step + 1
    rows = torch.randint(len(inputs), (recipe.batch,), generator=torch_stream(seed, "step", state.step, 0))
    denoiser.weights.copy_(state.weights)
    loss = denoiser.loss(inputs[rows], labels[rows], seed, state.step)
    norm = float(torch.linalg.vector_norm(denoiser.gradients))
    if not (math.isfinite(loss) and math.isfinite(norm)):
        raise NonFiniteError(
            f"generator 'diffusion': training diverged in step {step}; try a learning rate below "
            f"{recipe.learning_rate:g}"
        )
    gradient = denoiser.gradients * min(1.0, _LARGEST / max(norm, 1e-12))
    first = torch.lerp(state.first, gradient, 1.0 - _BETAS[0])
    second = (state.second * _BETAS[1]).addcmul_(gradient, gradient, value=1.0 - _BETAS[1])
    ups = [1.0 - beta**step for beta in _BETAS]
    rate = _learning_rate(state.step, recipe)
    weights = state.weights.addcdiv(first, (second / ups[1]).sqrt_().add_(1e-8), value=-rate / ups[0])
    # the start is forgotten sooner
    average = torch.lerp(state.average, weights, 1.0 - min(recipe.average, step / (step + 9.0)))
    return _State(step, weights, average, first, second, torch.cat([state.losses, torch.tensor([loss])]))


def _keep(path: Path, settings: dict[str, Any], state: _State) -> None:
    tensors = {name: value for name, value in state._asdict().items() if name != "step"}
    container.write(path, CHECKPOINT, {**settings, "step": state.step}, tensors)


def _resume(path: Path, settings: dict[str, Any], start: _State) -> _State:
    """Read a checkpoint of the same training."""
    data, tensors = container.read(path, CHECKPOINT)
    step = data.pop("step", None)
    differs = difference(settings, data)
    if differs:
        raise InputError(f"{path}: is the checkpoint of another training ({differs}); name another file, or delete it")
    shapes = {name: tuple(value.shape) for name, value in start._asdict().items() if name != "step"}
    shapes["losses"] = (step,)
    if {name: tuple(value.shape) for name, value in tensors.items()} != shapes or not is_whole(step):
        raise DataError(f"{path}: is a damaged checkpoint (its tensors do not fit the network)")
    return _State(step=int(step), **tensors)

"""The network of the diffusion model and its mathematics, as in the package `diffusers`.

Noise: z_t = alpha_t x + sigma_t e with alpha_t^2 + sigma_t^2 = 1, cosine schedule over 1,000 times [K, Nichol and
Dhariwal 2021]. The network predicts v = alpha_t e - sigma_t x [K, Salimans and Ho 2022]. Samples come from DDIM
without noise of its own [K, Song et al. 2021], at times spread from the last one down.

Classifier-free guidance [K, Ho and Salimans 2022] is left out on purpose: on the digits, at strength 1, it doubled the
work and lowered the accuracy of what was trained on the samples (0.92 instead of 0.96), as they become too alike.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from jointopt.augmentation.recipe import Recipe
from jointopt.augmentation.streams import torch_stream
from jointopt.errors import MissingExtraError

__all__ = ["Denoiser"]

TIMES = 1000
_GROUPS = 8
_HEAD = 16


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise MissingExtraError("diffusers", "diffusion", "the generator 'diffusion'") from None


def _attention(query: Any, key: Any, value: Any, *rest: Any, out_shape: Any = None, **options: Any) -> int:
    return int(sdpa_flop_count(query, key, value))


class Denoiser:
    """A U-net for images of one shape, all its weights in one flat vector.

    Parameters
    ----------
    recipe, shape, classes
        Sizes; images [channels, height, width].
    seed
        Seed of the initial weights; the global generators stay as they were.

    Attributes
    ----------
    weights, gradients : Tensor
        float32, shape [parameters]; views of what the network computes with.

    Raises
    ------
    MissingExtraError
        The package `diffusers` is not installed.
    """

    def __init__(self, recipe: Recipe, shape: tuple[int, ...], classes: int, seed: int) -> None:
        # the two modules alone: the package as a whole imports far more
        unet = _module("diffusers.models.unets.unet_2d").UNet2DModel
        ddim = _module("diffusers.schedulers.scheduling_ddim").DDIMScheduler
        self.recipe, self.shape = recipe, shape
        levels, patch = len(recipe.channels), recipe.patch
        multiple = patch * 2 ** (levels - 1)
        self._padded = tuple(-(-size // multiple) * multiple for size in shape[1:])
        self.inner = (shape[0] * patch**2, self._padded[0] // patch, self._padded[1] // patch)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(torch_stream(seed, "network").initial_seed())
            self.network: nn.Module = unet(
                sample_size=self.inner[1:],
                in_channels=self.inner[0],
                out_channels=self.inner[0],
                layers_per_block=recipe.layers,
                block_out_channels=recipe.channels,
                down_block_types=("DownBlock2D",) * levels,
                up_block_types=("UpBlock2D",) * levels,
                norm_num_groups=_GROUPS,
                attention_head_dim=min(_HEAD, recipe.channels[-1]),
                num_class_embeds=classes,
            )
        self._schedule = lambda: ddim(
            num_train_timesteps=TIMES,
            beta_schedule="squaredcos_cap_v2",
            prediction_type="v_prediction",
            clip_sample=True,
            timestep_spacing="trailing",
        )
        self._noising = self._schedule()
        parameters = list(self.network.parameters())
        self.weights = torch.cat([p.detach().reshape(-1) for p in parameters])
        self.gradients = torch.zeros_like(self.weights)
        sizes = [p.numel() for p in parameters]
        for p, w, g in zip(parameters, self.weights.split(sizes), self.gradients.split(sizes), strict=True):
            p.data = w.view_as(p)
            p.grad = g.view_as(p)

    def encode(self, images: Tensor) -> Tensor:
        """Images [n, *shape] in [0, 1] as the network takes them: in [-1, 1], padded at the edges, in patches."""
        rows, columns = (have - want for have, want in zip(self._padded, self.shape[1:], strict=True))
        z = images * 2.0 - 1.0
        if rows or columns:
            z = nn.functional.pad(z, (0, columns, 0, rows), mode="replicate")
        return nn.functional.pixel_unshuffle(z, self.recipe.patch)

    def decode(self, z: Tensor) -> Tensor:
        """Undo `encode`."""
        images = nn.functional.pixel_shuffle(z, self.recipe.patch)
        return (images[..., : self.shape[1], : self.shape[2]] + 1.0) / 2.0

    def loss(self, images: Tensor, labels: Tensor, seed: int, step: int) -> float:
        """Mean squared error of v on a batch, noised as drawn for this step alone; leaves it in `gradients`."""
        generator = torch_stream(seed, "step", step, 1)
        count = len(images)
        # one time from each of n equal stretches: less scatter than n independent ones
        times = (torch.arange(count) + torch.rand(count, generator=generator)) * (TIMES / count)
        times = times.long().clamp_(max=TIMES - 1)
        clean = self.encode(images)
        noise = torch.randn(clean.shape, generator=generator)
        mixed = self._noising.add_noise(clean, noise, times)
        self.gradients.zero_()
        predicted = self.network(mixed, times, labels).sample
        loss = (predicted - self._noising.get_velocity(clean, noise, times)).square().mean()
        loss.backward()
        return float(loss.detach())

    def denoise(self, noise: Tensor, labels: Tensor, tell: Callable[[int], None]) -> Tensor:
        """Images [n, *shape] from noise [n, size]; ``tell`` is told the steps done."""
        schedule = self._schedule()
        schedule.set_timesteps(self.recipe.denoise_steps)
        z = noise.reshape(-1, *self.inner)
        for done, time in enumerate(schedule.timesteps):
            z = schedule.step(self.network(z, time, labels).sample, time, z).prev_sample
            tell(done + 1)
        return self.decode(z)

    @property
    def noise_size(self) -> int:
        """Values of one noise."""
        return math.prod(self.inner)

    def operations(self) -> float:
        """Floating-point operations of all denoising steps of one sample, counted on the network: products only [S]."""
        # attention on the CPU is a kernel that torch does not count by itself
        attention = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention}
        with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=attention) as counter:
            self.network(
                torch.zeros(1, *self.inner), torch.zeros(1, dtype=torch.long), torch.zeros(1, dtype=torch.long)
            )
        return float(counter.get_total_flops() * self.recipe.denoise_steps)

"""A small transformer encoder over the patches of an image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention

from jointopt.errors import InputError
from jointopt.federated.networks.checks import images_shape, positive

__all__ = ["transformer"]


class _Attention(nn.Module):
    """Self-attention whose four maps are plain linear layers, so that each can be pruned or narrowed."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def _by_head(self, tokens: Tensor) -> Tensor:
        return tokens.unflatten(2, (self.heads, -1)).transpose(1, 2)  # -1: narrower heads after removal

    def forward(self, tokens: Tensor) -> Tensor:
        query, key, value = (self._by_head(layer(tokens)) for layer in (self.query, self.key, self.value))
        mixed = scaled_dot_product_attention(query, key, value)
        found: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return found


class _Layer(nn.Module):
    """Attention, then a feed-forward part, each normalised before and added to its input."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = _Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.wide = nn.Linear(width, hidden)
        self.narrow = nn.Linear(hidden, width)

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.attention(self.norm1(tokens))
        found: Tensor = tokens + self.narrow(gelu(self.wide(self.norm2(tokens))))
        return found


class _Transformer(nn.Module):
    def __init__(
        self, channels: int, tokens: int, classes: int, patch: int, width: int, depth: int, heads: int, hidden: int
    ) -> None:
        super().__init__()
        self.embed = nn.Conv2d(channels, width, patch, stride=patch)
        self.position = nn.Parameter(0.02 * torch.randn(1, tokens, width))
        self.layers = nn.Sequential(*(_Layer(width, heads, hidden) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, inputs: Tensor) -> Tensor:
        tokens = self.embed(inputs).flatten(2).transpose(1, 2) + self.position
        logits: Tensor = self.head(self.norm(self.layers(tokens)).mean(dim=1))
        return logits


def transformer(
    inputs_shape: Sequence[int],
    classes: int,
    patch: int = 4,
    width: int = 64,
    depth: int = 2,
    heads: int = 4,
    hidden: int | None = None,
) -> nn.Module:
    """Transformer encoder over image patches (Dosovitskiy et al. 2021), with the mean of the tokens classified.

    Parameters
    ----------
    inputs_shape
        [channels, height, width], height and width multiples of `patch`; [3, 32, 32] gives 74,954 parameters
        with 10 classes.
    classes
        Number of outputs.
    patch
        Side of a patch, in pixels.
    width
        Size of a token, a multiple of `heads`.
    depth
        Number of layers.
    heads
        Heads of each attention.
    hidden
        Width of the feed-forward part, twice `width` by default.

    Returns
    -------
    Module
        Maps [N, channels, height, width] to logits [N, classes].

    Raises
    ------
    InputError
        A size is not a whole number of at least 1, or does not divide what it must.
    """
    channels, height, wide = images_shape("transformer", inputs_shape)
    positive("classes", (classes,))
    for field, value in {"patch": patch, "width": width, "depth": depth, "heads": heads}.items():
        positive(field, (value,))
    hidden = 2 * width if hidden is None else hidden
    positive("hidden", (hidden,))
    if height % patch or wide % patch:
        raise InputError(f"patch must divide the height {height} and the width {wide} of the images, found {patch}")
    if width % heads:
        raise InputError(f"width must be a multiple of the {heads} heads, found {width}")
    tokens = (height // patch) * (wide // patch)
    return _Transformer(channels, tokens, int(classes), int(patch), int(width), int(depth), int(heads), int(hidden))

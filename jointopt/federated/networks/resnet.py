"""Residual networks for small images."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from types import MappingProxyType

from torch import Tensor, nn
from torch.nn.functional import relu

from jointopt.errors import InputError, nearest
from jointopt.federated.networks.checks import images_shape, positive

__all__ = ["NORMS", "resnet8", "resnet18"]

NORMS: MappingProxyType[str, Callable[[int], nn.Module]] = MappingProxyType(
    {
        "batch": nn.BatchNorm2d,
        # Two groups, so that any even number of channels may remain when some are removed.
        "group": lambda channels: nn.GroupNorm(math.gcd(2, channels), channels),
        "none": lambda channels: nn.Identity(),
    }
)
"""The normalisations a residual network may have, each made for a number of channels."""


class _Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut, the basic block of He et al. (2016)."""

    def __init__(self, inputs: int, outputs: int, stride: int, norm: str) -> None:
        super().__init__()
        # A bias before a normalisation has no effect.
        bias = norm == "none"
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=bias)
        self.norm1 = NORMS[norm](outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=bias)
        self.norm2 = NORMS[norm](outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride=stride, bias=bias), NORMS[norm](outputs))

    def forward(self, inputs: Tensor) -> Tensor:
        inner = relu(self.norm1(self.conv1(inputs)))
        return relu(self.norm2(self.conv2(inner)) + self.shortcut(inputs))


class _ResNet(nn.Module):
    """A 3x3 convolution, stages of blocks of which all but the first halve the image, mean, linear layer."""

    def __init__(self, channels: int, classes: int, width: int, stages: Sequence[int], norm: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=norm == "none")
        self.norm1 = NORMS[norm](width)
        blocks: list[nn.Module] = []
        inputs = width
        for stage, count in enumerate(stages):
            for block in range(count):
                stride = 2 if stage > 0 and block == 0 else 1
                blocks.append(_Block(inputs, width << stage, stride, norm))
                inputs = width << stage
        self.blocks = nn.Sequential(*blocks)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(inputs, classes)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.blocks(relu(self.norm1(self.conv1(inputs))))
        logits: Tensor = self.head(self.pool(hidden).flatten(1))
        return logits


def _resnet(
    name: str, inputs_shape: Sequence[int], classes: int, width: int, stages: Sequence[int], norm: str
) -> nn.Module:
    channels, _, _ = images_shape(name, inputs_shape)
    positive("classes", (classes,))
    positive("width", (width,))
    if not isinstance(norm, str) or norm not in NORMS:
        raise InputError(f"unknown norm '{norm}'{nearest(str(norm), NORMS)}")
    return _ResNet(channels, classes, int(width), stages, norm)


def resnet8(inputs_shape: Sequence[int], classes: int, norm: str = "batch", width: int = 16) -> nn.Module:
    """Residual network of three stages of one block each, 16, 32 and 64 channels.

    The member n = 1 of the CIFAR family with 6n + 2 layers (He et al. 2016), shortcuts by 1x1 convolutions.

    Parameters
    ----------
    inputs_shape
        [channels, height, width]; [3, 32, 32] gives 78,042 parameters with 10 classes.
    classes
        Number of outputs.
    norm
        "batch", "group" (two groups of equally many channels, so an even number must remain when channels are
        removed) or "none" (the convolutions get biases instead).
    width
        Channels of the first stage; each further stage has twice as many.

    Returns
    -------
    Module
        Maps [N, channels, height, width] to logits [N, classes]. Batch normalisation has buffers.

    Raises
    ------
    InputError
        A size is not a whole number of at least 1, the images are not three-axed, or the norm is not known.
    """
    return _resnet("resnet8", inputs_shape, classes, width, (1, 1, 1), norm)


def resnet18(inputs_shape: Sequence[int], classes: int, norm: str = "batch", width: int = 64) -> nn.Module:
    """Residual network of four stages of two blocks each, 64, 128, 256 and 512 channels.

    ResNet-18 (He et al. 2016) with the first layer for small images: 3x3, stride 1, not pooled.

    Parameters
    ----------
    inputs_shape
        [channels, height, width]; [3, 32, 32] gives 11,173,962 parameters with 10 classes.
    classes, norm, width
        As in `resnet8`.

    Returns
    -------
    Module
        Maps [N, channels, height, width] to logits [N, classes]. Batch normalisation has buffers.

    Raises
    ------
    InputError
        As in `resnet8`.
    """
    return _resnet("resnet18", inputs_shape, classes, width, (2, 2, 2, 2), norm)

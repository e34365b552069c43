"""Networks without branches: fully connected, and two small convolutional ones."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import nn

from jointopt.federated.networks.checks import images_shape, positive

__all__ = ["cnn", "lenet", "mlp"]


def mlp(inputs_shape: Sequence[int], classes: int, hidden: Sequence[int] | None = None) -> nn.Module:
    """Fully connected network with ReLU.

    Parameters
    ----------
    inputs_shape
        Shape of one input, any number of axes; [1, 8, 8] gives 4,810 parameters with 10 classes.
    classes
        Number of outputs.
    hidden
        Width of each hidden layer; may be empty. By default (64,) for up to 256 input values and (128,) above:
        101,770 parameters on [1, 28, 28].

    Returns
    -------
    Module
        Maps [N, *inputs_shape] to logits [N, classes].

    Raises
    ------
    InputError
        A size is not a whole number of at least 1.
    """
    positive("inputs_shape", inputs_shape)
    positive("classes", (classes,))
    width = math.prod(inputs_shape)
    hidden = ((64,) if width <= 256 else (128,)) if hidden is None else hidden
    positive("hidden", hidden)
    layers: list[nn.Module] = [nn.Flatten()]
    for wide in hidden:
        layers += [nn.Linear(width, wide), nn.ReLU()]
        width = wide
    layers.append(nn.Linear(width, classes))
    return nn.Sequential(*layers)


def cnn(inputs_shape: Sequence[int], classes: int) -> nn.Module:
    """Two 5x5 convolutions (16 and 32 channels), each pooled by 2, and a hidden layer of 64.

    Parameters
    ----------
    inputs_shape
        [channels, height, width], height and width at least 4; [1, 28, 28] gives 114,314 parameters.
    classes
        Number of outputs.

    Returns
    -------
    Module
        Maps [N, channels, height, width] to logits [N, classes].

    Raises
    ------
    InputError
        A size is not a whole number of at least 1, or the images are not three-axed or too small.
    """
    channels, height, width = images_shape("cnn", inputs_shape, least=4)
    positive("classes", (classes,))
    return nn.Sequential(
        nn.Conv2d(channels, 16, kernel_size=5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, kernel_size=5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * (height // 4) * (width // 4), 64),
        nn.ReLU(),
        nn.Linear(64, classes),
    )


def lenet(inputs_shape: Sequence[int], classes: int) -> nn.Module:
    """Two 5x5 convolutions (6 and 16 channels), each pooled by 2, and hidden layers of 120 and 84.

    The layers of LeNet-5 (LeCun et al. 1998) with ReLU and max-pooling, as in use today. Its images are 32x32;
    smaller ones are padded by 2 on each side in the first layer, as MNIST's 28x28 were there.

    Parameters
    ----------
    inputs_shape
        [channels, height, width], height and width at least 12; with 10 classes, 61,706 parameters on
        [1, 28, 28] and [1, 32, 32], 62,006 on [3, 32, 32].
    classes
        Number of outputs.

    Returns
    -------
    Module
        Maps [N, channels, height, width] to logits [N, classes].

    Raises
    ------
    InputError
        A size is not a whole number of at least 1, or the images are not three-axed or too small.
    """
    channels, height, width = images_shape("lenet", inputs_shape, least=12)
    positive("classes", (classes,))
    padding = 2 if min(height, width) < 32 else 0
    tall, wide = (((size + 2 * padding - 4) // 2 - 4) // 2 for size in (height, width))
    return nn.Sequential(
        nn.Conv2d(channels, 6, kernel_size=5, padding=padding),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 16, kernel_size=5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(16 * tall * wide, 120),
        nn.ReLU(),
        nn.Linear(120, 84),
        nn.ReLU(),
        nn.Linear(84, classes),
    )

"""A data set in memory."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from jointopt.errors import InputError, is_whole

__all__ = ["Dataset"]


def _check_finite(where: str, inputs: Tensor) -> None:
    # The extremes are NaN if any entry is, and need no mask as large as the data.
    if inputs.numel() == 0 or all(math.isfinite(float(extreme)) for extreme in torch.aminmax(inputs)):
        return
    bad = torch.nonzero(~torch.isfinite(inputs))[0].tolist()
    raise InputError(f"{where}: inputs must be finite, found {float(inputs[tuple(bad)])} in sample {bad[0]}")


@dataclass(frozen=True, eq=False)
class Dataset:
    """One classification data set, already split.

    Attributes
    ----------
    name
        The name it was loaded under.
    train_inputs, test_inputs
        float32, shape [N, channels, height, width], entries in [0, 1].
    train_labels, test_labels
        int64, shape [N], entries in 0 .. classes - 1.
    classes
        Number of classes.
    writers
        Who made each training sample, int64, shape [N], where the data set tells; None where not.

    Raises
    ------
    InputError
        Inputs, labels or writers differ in number, type or range from the above; an input is NaN or infinite.
    """

    name: str
    train_inputs: Tensor
    train_labels: Tensor
    test_inputs: Tensor
    test_labels: Tensor
    classes: int
    writers: Tensor | None = None

    def __post_init__(self) -> None:
        if not (is_whole(self.classes) and self.classes >= 1):
            raise InputError(
                f"data set '{self.name}': classes must be a whole number of at least 1, found {self.classes!r}"
            )
        for part, inputs, labels in (
            ("train", self.train_inputs, self.train_labels),
            ("test", self.test_inputs, self.test_labels),
        ):
            where = f"data set '{self.name}', {part}"
            if inputs.dtype != torch.float32 or labels.dtype != torch.int64:
                raise InputError(
                    f"{where}: expected float32 inputs and int64 labels, found {inputs.dtype} and {labels.dtype}"
                )
            if labels.ndim != 1 or inputs.ndim < 2 or len(inputs) != len(labels) or len(labels) == 0:
                raise InputError(
                    f"{where}: expected inputs [N, ...] and labels [N] with N >= 1, "
                    f"found {tuple(inputs.shape)} and {tuple(labels.shape)}"
                )
            if int(labels.min()) < 0 or int(labels.max()) >= self.classes:
                raise InputError(
                    f"{where}: labels must lie in 0 .. {self.classes - 1}, "
                    f"found {int(labels.min())} .. {int(labels.max())}"
                )
            _check_finite(where, inputs)
        if self.train_inputs.shape[1:] != self.test_inputs.shape[1:]:
            raise InputError(
                f"data set '{self.name}': inputs to train and to test must have one shape, "
                f"found {tuple(self.train_inputs.shape[1:])} and {tuple(self.test_inputs.shape[1:])}"
            )
        if self.writers is not None and (
            self.writers.dtype != torch.int64 or self.writers.shape != self.train_labels.shape
        ):
            raise InputError(
                f"data set '{self.name}': expected writers int64 of shape {tuple(self.train_labels.shape)}, "
                f"found {self.writers.dtype} of shape {tuple(self.writers.shape)}"
            )

    @property
    def inputs_shape(self) -> tuple[int, ...]:
        """Shape of one input, without the sample axis."""
        return tuple(self.train_inputs.shape[1:])

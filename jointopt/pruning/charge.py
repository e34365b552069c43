"""What evidence is collected from, and what collecting it costs a device."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from jointopt.errors import InputError, is_real, nearest

__all__ = ["NEEDS", "Batch", "Charge", "check_batch", "check_needs", "check_samples"]

NEEDS = frozenset({"gradient", "gradient_rms", "inputs", "outputs", "explorers", "initial"})
"""What a rule may declare that it needs."""


def check_needs(needs: Iterable[str], who: str) -> frozenset[str]:
    """Return the needs as a set; `InputError` for one that no evidence has."""
    out = frozenset(needs)
    for need in sorted(out - NEEDS):
        raise InputError(f"{who}: unknown need '{need}'{nearest(str(need), NEEDS)}")
    return out


class Batch(NamedTuple):
    """Samples of one device.

    Attributes
    ----------
    inputs : Tensor, shape [N, ...]
        What the module is called with.
    labels : Tensor, shape [N, ...]
        What the loss compares with.
    share : float
        Weight of the device in averages; shares need not add up to 1.
    """

    inputs: Tensor
    labels: Tensor
    share: float = 1.0


@dataclass(frozen=True)
class Charge:
    """What collecting evidence costs one device.

    Attributes
    ----------
    forward_samples : float
        Samples passed forward, about 1/3 of a training sample each.
    backward_samples : float
        Samples passed backward, about 2/3 of a training sample each.
    upload_bits : float
        Bits sent to the server.
    """

    forward_samples: float = 0.0
    backward_samples: float = 0.0
    upload_bits: float = 0.0

    @property
    def training_samples(self) -> float:
        """The passes as training samples: a backward pass takes twice the multiplications of a forward pass."""
        return (self.forward_samples + 2.0 * self.backward_samples) / 3.0

    def __add__(self, other: Charge) -> Charge:
        return Charge(
            self.forward_samples + other.forward_samples,
            self.backward_samples + other.backward_samples,
            self.upload_bits + other.upload_bits,
        )


def check_batch(device: int, batch: Batch | tuple[Tensor, Tensor, float]) -> Batch:
    """Return a device's batch; `InputError` where it is empty, of unequal lengths, or has a bad share."""
    try:
        inputs, labels, share = batch
    except (TypeError, ValueError):
        raise InputError(f"evidence: device {device}: a batch is (inputs, labels, share), found {batch!r}") from None
    if len(inputs) == 0 or len(inputs) != len(labels):
        raise InputError(
            f"evidence: device {device}: inputs and labels must be as many, at least one; "
            f"found {len(inputs)} and {len(labels)}"
        )
    if not is_real(share) or not math.isfinite(share) or share < 0.0:
        raise InputError(f"evidence: device {device}: share must be a finite number of at least 0, found {share!r}")
    return Batch(inputs, labels, float(share))


def check_samples(samples: Sequence[float] | None, explorers: int) -> list[float]:
    """Return the samples that each explorer trained on, 0 where none are given; `InputError` for bad ones."""
    if samples is None:
        return [0.0] * explorers
    if len(samples) != explorers:
        raise InputError(f"evidence: explorer_samples must be one per explorer, found {len(samples)} for {explorers}")
    for explorer, count in enumerate(samples):
        if not is_real(count) or not math.isfinite(count) or count < 0:
            raise InputError(f"evidence: explorer {explorer}: samples must be at least 0, found {count!r}")
    return [float(count) for count in samples]

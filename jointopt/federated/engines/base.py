"""What an engine is asked to do: the local steps of clients whose models have the same shape."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

__all__ = ["Client", "Engine", "Job", "Loss", "Trained"]

Loss = Callable[[Tensor, Tensor], Tensor]
"""Maps the network's outputs and the labels of some samples to the mean loss over these samples."""


@dataclass(frozen=True, eq=False)
class Client:
    """One client's local work; p parameters and b buffer entries are those of the job's module.

    Attributes
    ----------
    weights : float32 tensor, shape [p]
        Where its steps start; never written to. Entries that `keep` leaves out are 0.
    rows : int64 tensor, shape [steps, batch] or [n]
        The samples of each step, by their number in the job's data; one axis: the same samples in every step.
    keep : bool tensor, shape [p], optional
        Entries that are trained; the others stay 0.
    buffers : float32 tensor, shape [b]
        Running statistics at the start; never written to.
    correction : float32 tensor, shape [p], optional
        Added to every gradient.
    seed : int
        Seed of what the network itself draws (dropout).
    """

    weights: Tensor
    rows: Tensor
    keep: Tensor | None
    buffers: Tensor
    correction: Tensor | None = None
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Job:
    """What clients have in common.

    One step is ``g = keep * (multiplier * grad F(w) + proximal * (w - start) + correction)``,
    ``w <- w - learning_rate * g``.

    Attributes
    ----------
    module : Module
        A module of their shape; its own weights do not matter and may be overwritten.
    inputs, labels : tensors
        All training samples, on the device where training happens.
    loss : callable
        The mean loss of some samples.
    multiplier : float32 tensor, shape [p], optional
        Factor on the gradient of each entry.
    precision : {"float32", "bfloat16"}
        In which the network is evaluated (autocast); weights stay float32.
    """

    module: nn.Module
    inputs: Tensor
    labels: Tensor
    loss: Loss
    steps: int
    learning_rate: float
    proximal: float = 0.0
    multiplier: Tensor | None = None
    precision: str = "float32"


@dataclass(frozen=True, eq=False)
class Trained:
    """What one client did.

    `number` is its place in the clients given; `loss` the loss of its first step, before it; `total` [p] the sum of
    its g over the steps; `buffers` [b] its running statistics afterwards. The tensors may be overwritten once the
    next client is asked for.
    """

    number: int
    loss: float
    total: Tensor
    buffers: Tensor


class Engine(Protocol):
    """A way to do the local steps of many clients."""

    name: str

    def supports(self, job: Job) -> bool:
        """Whether this engine can do the job (its network, its loss)."""
        ...

    def run(self, job: Job, clients: Iterable[Client]) -> Iterator[Trained]:
        """Do the steps of every client, in order; clients are taken from the iterable only as they are needed."""
        ...

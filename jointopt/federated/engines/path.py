"""The weights along the local steps, as a function of the sum of the gradients so far."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from jointopt.errors import InputError
from jointopt.federated.engines.base import Client, Job

__all__ = ["CHUNK", "Path", "check"]

CHUNK = 4096
"""Most samples in one pass, for the memory of wide layers."""


def check(job: Job, client: Client, number: int, parameters: int, buffers: int) -> None:
    """Refuse a client that is not about the job's network.

    Raises
    ------
    InputError
        A tensor has another shape than the module's parameters, buffers or the job's steps ask for.
    """
    asked = {
        "weights": (client.weights, parameters),
        "buffers": (client.buffers, buffers),
        "keep": (client.keep, parameters),
        "correction": (client.correction, parameters),
    }
    for name, (tensor, size) in asked.items():
        if tensor is not None and tuple(tensor.shape) != (size,):
            raise InputError(f"client {number}: {name} must have shape [{size}], found {list(tensor.shape)}")
    rows = client.rows
    if rows.ndim not in (1, 2) or rows.shape[-1] == 0 or (rows.ndim == 2 and len(rows) != job.steps):
        raise InputError(
            f"client {number}: rows must have shape [{job.steps}, batch] or [n] with at least one sample, "
            f"found {list(rows.shape)}"
        )


class Path:
    """Where the steps of one client lead, shape [p], or of several clients at once, shape [clients, p].

    After k steps ``w = start - learning_rate * T`` with T the sum of the g so far, and the proximal term makes T a
    linear recursion: ``T <- decay * T + keep * (multiplier * grad F + correction)`` with
    ``decay = 1 - learning_rate * proximal``. So it is enough to sum up plain gradients, ``R <- decay * R + grad F``,
    which backward passes do in place: ``T = keep * (multiplier * R + s * correction)`` with ``s <- decay * s + 1``.
    """

    def __init__(self, job: Job, clients: Sequence[Client], device: torch.device) -> None:
        self.decay = 1.0 - job.learning_rate * job.proximal
        self._rate = job.learning_rate
        self._share = 0.0
        first = clients[0].weights
        # Unpruned clients start from one vector; read from one place it stays in the cache.
        alike = all(client.weights is first for client in clients)
        starts = [first] if alike else [client.weights for client in clients]
        self._start = _stack(starts).to(device, torch.float32)
        one = job.multiplier
        self._scale: Tensor | None = None if one is None else one.to(device, torch.float32)[None]
        if any(client.keep is not None for client in clients):
            whole = torch.ones(first.shape, dtype=torch.bool, device=first.device)
            keep = _stack([whole if c.keep is None else c.keep for c in clients]).to(device, torch.float32)
            self._scale = keep if self._scale is None else keep.mul_(self._scale)
        self._shift: Tensor | None = None
        if any(client.correction is not None for client in clients):
            zero = torch.zeros_like(first)
            shift = [zero if c.correction is None else c.correction for c in clients]
            kept = [s if c.keep is None else s.masked_fill(~c.keep, 0.0) for s, c in zip(shift, clients, strict=True)]
            self._shift = _stack(kept).to(device, torch.float32)

    def weights(self, summed: Tensor, out: Tensor) -> None:
        """Write the weights that the summed gradients R lead to, both of shape [clients, p]."""
        if self._scale is None:
            torch.add(self._start, summed, alpha=-self._rate, out=out)
        else:
            torch.addcmul(self._start, summed, self._scale, value=-self._rate, out=out)
        if self._shift is not None and self._share:
            out.add_(self._shift, alpha=-self._rate * self._share)

    def begin(self, out: Tensor) -> None:
        """Write the weights of the start, shape [clients, p]."""
        out.copy_(self._start)

    def step(self) -> None:
        """Count one step; its gradient is in the sum."""
        self._share = self.decay * self._share + 1.0

    def total(self, summed: Tensor) -> Tensor:
        """Turn the summed gradients R into T, in place."""
        if self._scale is not None:
            summed.mul_(self._scale)
        if self._shift is not None:
            summed.add_(self._shift, alpha=self._share)
        return summed


def _stack(rows: list[Tensor]) -> Tensor:
    return rows[0][None] if len(rows) == 1 else torch.stack(rows)

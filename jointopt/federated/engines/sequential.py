"""One client after another in one module, whose weights and gradients are views of flat vectors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from copy import deepcopy

import torch
from torch import Tensor, nn

from jointopt.federated.engines.base import Client, Job, Trained
from jointopt.federated.engines.path import CHUNK, Path, check
from jointopt.pruning.layout import Layout

__all__ = ["SequentialEngine"]


class SequentialEngine:
    """Any network and loss; works on a copy of the job's module, in training mode.

    Running statistics are those of the client's own steps. Buffers that are not floating point (the number of
    batches that batch normalisation counts) start at the module's for every client. More than 4,096 samples in one
    step are taken in passes of so many, so batch normalisation then sees one pass at a time.
    """

    name = "sequential"

    def supports(self, job: Job) -> bool:
        """Return True: every network can be trained one client at a time."""
        return True

    def run(self, job: Job, clients: Iterable[Client]) -> Iterator[Trained]:
        """Do the steps of every client, in order.

        Raises
        ------
        InputError
            A client does not fit the job's module or steps.
        """
        work = _Work(job)
        for number, client in enumerate(clients):
            check(job, client, number, work.weights.numel(), work.buffers.numel())
            with _seeded(client.seed, work.device), torch.enable_grad():
                loss = work.train(client)
            yield Trained(number, loss, work.summed, work.buffers)


class _Work:
    """A copy of the module whose parameters, gradients and buffers are views of flat vectors [p], [p], [b]."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.device = job.inputs.device
        self.module: nn.Module = deepcopy(job.module).to(self.device, torch.float32)
        self.module.train()
        layout = Layout.of(self.module)
        self.weights = torch.zeros(layout.size, device=self.device)
        self.summed = torch.zeros(layout.size, device=self.device)
        self.buffers = torch.zeros(layout.buffer_size, device=self.device)
        weights, summed = layout.split(self.weights), layout.split(self.summed)
        for name, parameter in self.module.named_parameters():
            parameter.data, parameter.grad = weights[name], summed[name]
        floating = layout.split_buffers(self.buffers)
        named = dict(self.module.named_buffers())
        for name, view in floating.items():
            named[name].data = view
        self._counters = [(buffer, buffer.clone()) for name, buffer in named.items() if name not in floating]

    def train(self, client: Client) -> float:
        """Do one client's steps; return the loss of the first. `summed` then holds the sum of its g."""
        job, first = self.job, 0.0
        path = Path(job, [client], self.device)
        path.begin(self.weights[None])
        self.buffers.copy_(client.buffers)
        for buffer, start in self._counters:
            buffer.copy_(start)
        self.summed.zero_()
        rows = client.rows.to(self.device)
        same = self._gather(rows) if rows.ndim == 1 and len(rows) <= CHUNK else None
        for step in range(job.steps):
            if step:
                path.weights(self.summed[None], self.weights[None])
                if path.decay != 1.0:
                    self.summed.mul_(path.decay)
            loss = self._backward(rows if rows.ndim == 1 else rows[step], same)
            path.step()
            if step == 0:
                first = float(loss)
        path.total(self.summed[None])
        return first

    def _gather(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        return self.job.inputs.index_select(0, rows), self.job.labels.index_select(0, rows)

    def _backward(self, rows: Tensor, same: tuple[Tensor, Tensor] | None) -> Tensor:
        """Add the gradient of the mean loss over some samples to `summed`; return the loss."""
        count = len(rows)
        if count <= CHUNK:
            loss = self._loss(*(same or self._gather(rows)))
            loss.backward()
            return loss.detach()
        value = torch.zeros((), device=self.device)
        for some in rows.split(CHUNK):
            loss = self._loss(*self._gather(some)) * (len(some) / count)
            loss.backward()
            value += loss.detach()
        return value

    def _loss(self, inputs: Tensor, labels: Tensor) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.job.precision == "bfloat16"):
            return self.job.loss(self.module(inputs), labels)


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed what torch draws on the device inside, and leave its generators as they were afterwards."""
    if device.type == "cpu":
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            yield
        return
    # Dropout draws on the device, but a network may also draw on the CPU.
    place = torch.cuda.current_device() if device.index is None else device.index
    with torch.random.fork_rng(devices=[place], device_type=device.type):
        torch.default_generator.manual_seed(seed)
        torch.cuda.default_generators[place].manual_seed(seed)
        yield

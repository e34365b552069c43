"""Many clients at once: their fully connected networks as stacks of matrices, with an explicit backward pass.

A small layer leaves most of a step's time to the bookkeeping of autograd and the optimiser. One batched product does
the same layer of every client, gradients are added to their running sum by the product that makes them, and the
weights follow from that sum in one pass (see `jointopt.federated.engines.path.Path`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from types import MappingProxyType

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from jointopt.federated.engines.base import Client, Job, Trained
from jointopt.federated.engines.path import CHUNK, Path, check
from jointopt.pruning.layout import Layout

__all__ = ["BatchedEngine", "Dense", "dense"]

_BYTES = 64 * 2**20
"""Most memory of the weights, gradients and activations of the clients that are trained at once."""
_CACHE = 8 * 2**20
"""The same on a processor, where more leaves its cache and takes longer."""
_PADDING = 1.25
"""Most rows computed per row asked for, where clients with unequal batches are trained at once."""

_aten = torch.ops.aten
Activation = tuple[Callable[[Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]
"""In place: the outputs, and the gradient by the inputs from that by the outputs and the outputs."""
_ACTIVATIONS: MappingProxyType[type[nn.Module], Activation] = MappingProxyType(
    {
        nn.ReLU: (torch.relu_, lambda d, h: _aten.threshold_backward.grad_input(d, h, 0, grad_input=d)),
        nn.Tanh: (torch.tanh_, lambda d, h: _aten.tanh_backward.grad_input(d, h, grad_input=d)),
        nn.Sigmoid: (torch.sigmoid_, lambda d, h: _aten.sigmoid_backward.grad_input(d, h, grad_input=d)),
    }
)


@dataclass(frozen=True)
class Dense:
    """A linear layer and what follows it; `weight` [width, inputs] and `bias` [width] are places in the flat vector."""

    inputs: int
    width: int
    weight: slice
    bias: slice | None
    activation: Activation | None


def dense(module: nn.Module, inputs_shape: torch.Size) -> tuple[Dense, ...] | None:
    """Return the layers of a fully connected network, or None if the module is not one.

    It is one if it is made of nothing but (nested) `Sequential`, `Flatten`, `Linear`, `ReLU`, `Tanh`, `Sigmoid` and
    `Identity`, each activation right after a linear layer, all parameters float32, trained, and used once, no hooks.

    Parameters
    ----------
    module
        The network.
    inputs_shape
        Shape of one input.
    """
    parts: list[nn.Module] = []
    if not _unfold(module, parts):
        return None
    where = {id(p): e.where for (_, p), e in zip(module.named_parameters(), Layout.of(module).parameters, strict=True)}
    layers: list[Dense] = []
    flat, used = len(inputs_shape) == 1, []
    for part in parts:
        if type(part) is nn.Flatten and (part.start_dim, part.end_dim) == (1, -1):
            flat = True
        elif type(part) is nn.Linear and flat:
            bias = None if part.bias is None else where[id(part.bias)]
            used += list(part.parameters())
            layers.append(Dense(part.in_features, part.out_features, where[id(part.weight)], bias, None))
        elif type(part) in _ACTIVATIONS and layers and layers[-1].activation is None:
            last = layers.pop()
            layers.append(Dense(last.inputs, last.width, last.weight, last.bias, _ACTIVATIONS[type(part)]))
        elif type(part) is not nn.Identity:
            return None
    plain = all(p.requires_grad and p.dtype == torch.float32 and not p._backward_hooks for p in used)
    once = len({id(p) for p in used}) == len(used) == len(where)
    fitting = layers and layers[0].inputs == math.prod(inputs_shape) and min(a.width for a in layers) > 0
    joined = all(a.width == b.inputs for a, b in pairwise(layers))
    return tuple(layers) if plain and once and fitting and joined else None


def _unfold(module: nn.Module, parts: list[nn.Module]) -> bool:
    """Append the modules of nested sequences; return whether they do nothing but what their types say."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    if any(hooks) or "forward" in vars(module):
        return False
    if type(module) is nn.Sequential:
        return all(_unfold(child, parts) for child in module)
    parts.append(module)
    return True


class BatchedEngine:
    """Fully connected networks (see `dense`) with the cross entropy, in float32.

    So many clients are trained at once as fit a few megabytes, at least one; those whose numbers of samples differ by
    too much are not, so as not to compute padding.
    """

    name = "batched"

    def supports(self, job: Job) -> bool:
        """Return whether the network is fully connected and the loss is `torch.nn.functional.cross_entropy`."""
        inputs, labels = job.inputs, job.labels
        if job.loss is not cross_entropy or job.precision != "float32":
            return False
        if inputs.dtype != torch.float32 or labels.dtype != torch.int64 or labels.ndim != 1 or len(labels) == 0:
            return False
        layers = dense(job.module, inputs.shape[1:])
        if layers is None:
            return False
        # A label outside the classes is an error or, if negative, may be one to leave out: not for here.
        low, high = labels.aminmax()
        return int(low) >= 0 and int(high) < layers[-1].width

    def run(self, job: Job, clients: Iterable[Client]) -> Iterator[Trained]:
        """Do the steps of every client, in order; the job must be supported.

        Raises
        ------
        InputError
            A client does not fit the job's module or steps.
        """
        layers = dense(job.module, job.inputs.shape[1:])
        assert layers is not None, "the job is not supported"
        size = Layout.of(job.module).size
        work: _Work | None = None
        nothing = torch.zeros(0, device=job.inputs.device)
        number = 0
        for group in _groups(job, layers, size, clients):
            shape = (len(group), *_blocks(max(client.rows.shape[-1] for client in group)))
            if work is None or work.shape != shape:
                work = None  # frees its memory before the next takes as much
                work = _Work(job, layers, size, shape)
            losses = work.train(group)
            for loss, total in zip(losses, work.summed, strict=True):
                yield Trained(number, loss, total, nothing)
                number += 1


def _blocks(rows: int) -> tuple[int, int]:
    """Return into how many passes of equal size so many samples are divided, and that size."""
    count = -(-rows // CHUNK)
    return count, -(-rows // count)


def _groups(job: Job, layers: tuple[Dense, ...], size: int, clients: Iterable[Client]) -> Iterator[list[Client]]:
    """Yield clients to be trained at once."""
    activations = layers[0].inputs + 2 * sum(layer.width for layer in layers)
    limit = _CACHE if job.inputs.device.type == "cpu" else _BYTES
    group: list[Client] = []
    most = asked = need = 0
    for number, client in enumerate(clients):
        check(job, client, number, size, 0)
        rows = client.rows.shape[-1]
        # Its weights and gradients, and unless it has none: its own start and scale, and its correction.
        vectors = 2 + 2 * (client.keep is not None) + (client.correction is not None)
        need = max(need, vectors)
        count, most, asked = len(group) + 1, max(most, rows), asked + rows
        memory = 4 * count * (need * size + min(most, CHUNK) * activations)
        if group and (memory > limit or count * most > _PADDING * asked):
            yield group
            group, most, asked, need = [], rows, rows, vectors
        group.append(client)
    if group:
        yield group


class _Work:
    """The tensors of c clients, which take the samples of a step in b passes of n; weights and sums are [c, p]."""

    def __init__(self, job: Job, layers: tuple[Dense, ...], size: int, shape: tuple[int, int, int]) -> None:
        self.job, self.layers, self.shape = job, layers, shape
        self.device = job.inputs.device
        self.flat = job.inputs.flatten(1)
        clients, _, rows = shape
        self.weights = self._empty(clients, size)
        self.summed = self._empty(clients, size)
        self.inputs = self._empty(clients * rows, layers[0].inputs)
        self.labels = torch.empty(clients * rows, dtype=torch.int64, device=self.device)
        self.outputs = [self._empty(clients, rows, layer.width) for layer in layers]
        self.deltas = [self._empty(clients, rows, layer.width) for layer in layers]
        self.minus = torch.full((), -1.0, device=self.device).expand(clients, rows, 1)
        self.matrices = [self._views(layer, self.weights) for layer in layers]
        self.gradients = [self._views(layer, self.summed) for layer in layers]

    def _empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, device=self.device)

    @staticmethod
    def _views(layer: Dense, flat: Tensor) -> tuple[Tensor, Tensor | None]:
        matrix = flat[:, layer.weight].unflatten(1, (layer.width, layer.inputs))
        return matrix, None if layer.bias is None else flat[:, layer.bias]

    @torch.no_grad()
    def train(self, group: list[Client]) -> list[float]:
        """Do the clients' steps; return the losses of the first. `summed` then holds the sums of their g."""
        job, path = self.job, Path(self.job, group, self.device)
        rows, share = self._rows(group)
        losses = self._empty(len(group)).zero_()
        path.begin(self.weights)
        self.summed.zero_()
        steps, blocks = rows.shape[:2]
        for step in range(job.steps):
            if step:
                path.weights(self.summed, self.weights)
                if path.decay != 1.0:
                    self.summed.mul_(path.decay)
            for block in range(blocks):
                if step < steps or blocks > 1:
                    self._gather(rows[step % steps, block])
                self._forward()
                truth = self.labels.view(*self.shape[::2], 1)
                # as autograd does it: the logarithm first, then its exponential
                delta = torch.log_softmax(self.outputs[-1], 2, out=self.deltas[-1])
                if step == 0:
                    losses -= (delta.gather(2, truth) * share[:, block]).sum(dim=(1, 2))
                delta.exp_().scatter_add_(2, truth, self.minus).mul_(share[:, block])
                self._backward()
            path.step()
        path.total(self.summed)
        return [float(loss) for loss in losses.tolist()]

    def _rows(self, group: list[Client]) -> tuple[Tensor, Tensor]:
        """Return the samples of the steps, shape [steps or 1, b, c * n], and the weight of each, shape [c, b, n, 1]."""
        clients, blocks, width = self.shape
        steps = 1 if all(client.rows.ndim == 1 for client in group) else self.job.steps
        rows = torch.empty((clients, steps, blocks * width), dtype=torch.int64, device=self.device)
        share = torch.zeros((clients, blocks * width), device=self.device)
        for number, client in enumerate(group):
            count = client.rows.shape[-1]
            rows[number, :, :count] = client.rows.to(self.device)
            # padding repeats a sample of the client, with no weight
            rows[number, :, count:] = rows[number, :, :1]
            share[number, :count] = 1.0 / count
        rows = rows.view(clients, steps, blocks, width).permute(1, 2, 0, 3).reshape(steps, blocks, -1)
        return rows, share.view(clients, blocks, width, 1)

    def _gather(self, rows: Tensor) -> None:
        torch.index_select(self.flat, 0, rows, out=self.inputs)
        torch.index_select(self.job.labels, 0, rows, out=self.labels)

    def _below(self, number: int) -> Tensor:
        """Return what enters a layer, shape [c, n, inputs]."""
        return self.outputs[number - 1] if number else self.inputs.view(*self.shape[::2], -1)

    def _forward(self) -> None:
        for number, layer in enumerate(self.layers):
            matrix, bias = self.matrices[number]
            out, below = self.outputs[number], self._below(number)
            if bias is None:
                torch.bmm(below, matrix.mT, out=out)
            else:
                torch.baddbmm(bias[:, None], below, matrix.mT, out=out)
            if layer.activation is not None:
                layer.activation[0](out)

    def _backward(self) -> None:
        """Add to the sums what follows from `deltas[-1]`, the gradient by the outputs."""
        for number in reversed(range(len(self.layers))):
            activation, delta = self.layers[number].activation, self.deltas[number]
            if activation is not None:
                activation[1](delta, self.outputs[number])
            gradient, bias = self.gradients[number]
            gradient.baddbmm_(delta.mT, self._below(number))
            if bias is not None:
                bias += delta.sum(1)
            if number:
                torch.bmm(delta, self.matrices[number][0], out=self.deltas[number - 1])

"""What is trained: a data set split over the devices, and a network.

`Task` says what is trained and by whom; `Losses` computes the losses F_u of its devices and their gradients
as functions of one flat weight vector, which is all that training and measuring need.
"""

from __future__ import annotations

import operator
import os
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from jointopt.data import Dataset, load, partition
from jointopt.errors import InputError
from jointopt.federated.networks import build, cnn, count_parameters, prunable
from jointopt.system import System

__all__ = ["Losses", "Task"]

Loss = Callable[[Tensor, Tensor], Tensor]
"""Maps the network's outputs and the labels of some samples to the mean loss over these samples."""

_CHUNK = 4096
"""Most samples in one pass, for the memory of wide layers."""


@dataclass(frozen=True, eq=False)
class Task:
    """A data set partitioned over devices, and a network to train on it.

    Attributes
    ----------
    data : Dataset
        Training and test samples.
    module : Module
        The network with its initial weights; training works on copies.
    parts : tuple of int arrays
        For each device the indices of its training samples.
    batch_size : int or None
        Samples per local step; all of a device's samples when None.
    network, scheme, alpha, seed
        How the task was made, for the record.
    loss : callable
        ``loss(outputs, labels)``, the mean over the samples given.
    """

    data: Dataset
    module: nn.Module
    parts: tuple[NDArray[np.int64], ...]
    batch_size: int | None = None
    network: str = "custom"
    scheme: str = "custom"
    alpha: float | None = None
    seed: int = 0
    loss: Loss = field(default=cross_entropy, repr=False)

    def __post_init__(self) -> None:
        if not self.parts or any(len(part) == 0 for part in self.parts):
            raise InputError("task: every device needs at least one sample")
        if self.batch_size is not None and (isinstance(self.batch_size, bool) or operator.index(self.batch_size) < 1):
            raise InputError(f"task: batch_size must be a whole number of at least 1, found {self.batch_size!r}")
        if any(True for _ in self.module.buffers()):
            # The server would have to merge them, and no cost or bound covers that.
            raise InputError("task: networks with buffers (such as batch normalisation) are not supported")
        if self.parameters == 0:
            raise InputError("task: the network has no linear or convolution layer, so nothing could be pruned")

    @classmethod
    def make(
        cls,
        data: str | Dataset = "digits",
        network: str | nn.Module = "mlp",
        devices: int = 20,
        alpha: float = 0.5,
        scheme: str = "dirichlet",
        sizes: ArrayLike | None = None,
        batch_size: int | None = None,
        seed: int = 0,
        folder: str | os.PathLike[str] | None = None,
        loss: Loss = cross_entropy,
        **options: Any,
    ) -> Self:
        """Make a task.

        Parameters
        ----------
        data
            "digits", "fashion-mnist" (see `jointopt.data.load`) or a `Dataset`.
        network
            "mlp" or "cnn" (see `jointopt.federated.networks.build`), or a module, whose present weights are
            the initial ones.
        devices, alpha, scheme, sizes
            The split over the devices (see `jointopt.data.partition`).
        batch_size
            Samples per local step; all of a device's samples when not given.
        seed
            Seed of the split and of the initial weights.
        folder
            Where the files of "fashion-mnist" are.
        loss
            ``loss(outputs, labels)``, the mean over the samples given; the cross entropy by default.
        **options
            Passed to the network, such as ``hidden=(128,)`` for "mlp".

        Raises
        ------
        InputError
            An argument is out of its range, or data or network are not known.
        """
        dataset = load(data, folder) if isinstance(data, str) else data
        parts = partition(dataset.train_labels, devices, scheme=scheme, alpha=alpha, sizes=sizes, seed=seed, minimum=1)
        if isinstance(network, str):
            module = build(network, dataset.inputs_shape, dataset.classes, seed, **options)
        else:
            module = deepcopy(network)
        return cls(
            data=dataset,
            module=module,
            parts=tuple(parts),
            batch_size=batch_size,
            network=network if isinstance(network, str) else "custom",
            scheme=scheme,
            alpha=float(alpha) if scheme == "dirichlet" else None,
            seed=int(seed),
            loss=loss,
        )

    @classmethod
    def for_system(
        cls,
        system: System,
        data: str | Dataset = "digits",
        network: str | nn.Module | None = None,
        alpha: float = 0.5,
        scheme: str = "dirichlet",
        seed: int = 0,
        folder: str | os.PathLike[str] | None = None,
        loss: Loss = cross_entropy,
        **options: Any,
    ) -> Self:
        """Make a task with exactly the system's sample counts and batch size; arguments as in `make`.

        Without `network`, the known one that has the learner's parameter counts on the data is taken.

        Raises
        ------
        InputError
            The data set has fewer samples than the system's devices hold together, or the network's parameter
            counts are not those of the system's learner.
        """
        dataset = load(data, folder) if isinstance(data, str) else data
        wanted, there = int(system.devices.samples.sum()), len(dataset.train_labels)
        if wanted > there:
            raise InputError(
                f"task: the scenario's devices hold {wanted} samples together, '{dataset.name}' has {there} "
                "to train on; choose another data set, lower devices.samples, or take the task's own counts "
                "with System.from_task(Task.make(...), template=system)"
            )
        if network is None:
            want = (system.learner.parameters, system.learner.unpruned_parameters)
            network, found = _matching(dataset, want) or ("mlp", {})
            options = {**found, **options}
        task = cls.make(
            data=dataset,
            network=network,
            devices=len(system),
            alpha=alpha,
            scheme=scheme,
            sizes=system.devices.samples.astype(np.int64),
            batch_size=system.learner.batch_size,
            seed=seed,
            loss=loss,
            **options,
        )
        task.check(system)
        return task

    def __len__(self) -> int:
        return len(self.parts)

    def __repr__(self) -> str:
        batch = "full batch" if self.batch_size is None else f"batches of {self.batch_size}"
        return (
            f"Task({self.name}, {self.network}: {len(self)} devices, {int(self.samples.sum())} samples, "
            f"{self.parameters + self.unpruned_parameters} parameters, {batch})"
        )

    __str__ = __repr__

    @property
    def name(self) -> str:
        """Name of the data set."""
        return self.data.name

    @property
    def samples(self) -> NDArray[np.int64]:
        """Samples of each device, N_u, shape [devices]."""
        return np.array([len(part) for part in self.parts], dtype=np.int64)

    @property
    def parameters(self) -> int:
        """Weights that can be pruned, V."""
        return count_parameters(self.module)[0]

    @property
    def unpruned_parameters(self) -> int:
        """Parameters that are never pruned: biases, normalisation."""
        return count_parameters(self.module)[1]

    def check(self, system: System) -> None:
        """Refuse a system that is not about this task.

        Raises
        ------
        InputError
            The numbers of devices, samples or parameters, or the batch size differ; the message names both.
        """
        cure = "System.from_task(task, template=system) takes the task's numbers"
        if len(system) != len(self):
            raise InputError(
                f"task: is split over {len(self)} devices, the scenario has {len(system)}; "
                "Task.for_system(system, ...) makes one that fits"
            )
        wrong = self.samples != system.devices.samples
        if np.any(wrong):
            u = int(np.argmax(wrong))
            raise InputError(
                f"task: device {u} holds {self.samples[u]} samples, the scenario says "
                f"{int(system.devices.samples[u])}; Task.for_system(system, ...) makes one that fits, {cure}"
            )
        learner = system.learner
        have, want = (
            (self.parameters, self.unpruned_parameters),
            (learner.parameters, learner.unpruned_parameters),
        )
        if have != want:
            match = _matching(self.data, want)
            fitting = f"network='{match[0]}' with options {match[1]} would fit; " if match else ""
            raise InputError(
                f"task: the network '{self.network}' on '{self.name}' has {have[0]} prunable and {have[1]} "
                f"other parameters, the scenario's learner has {want[0]} and {want[1]}; "
                f"{fitting}{cure}"
            )
        if self.batch_size != learner.batch_size:
            raise InputError(
                f"task: batch_size is {self.batch_size}, the scenario's learner has {learner.batch_size} "
                "(None is the full batch); give both the same"
            )


def _matching(data: Dataset, want: tuple[int, int]) -> tuple[str, dict[str, Any]] | None:
    """Return the known network and its options that have the wanted parameter counts on the data, if any."""
    shape, classes = data.inputs_shape, data.classes
    # An MLP with one hidden layer has hidden x (inputs + classes) weights, so the count tells its width.
    hidden, rest = divmod(want[0], int(np.prod(shape)) + classes)
    if rest == 0 and hidden > 0 and want[1] == hidden + classes:
        return "mlp", {"hidden": (hidden,)}
    if len(shape) == 3 and min(shape[1:]) >= 4 and count_parameters(cnn(shape, classes)) == want:
        return "cnn", {}
    return None


class Losses:
    """The devices' losses F_u of a task, and F = sum_u pi_u F_u, as functions of one flat weight vector.

    Attributes
    ----------
    start : Tensor [P]
        The task's initial weights, float32, in the order of ``named_parameters()``.
    prunable : Tensor [P]
        Which of them may be pruned, bool.
    """

    def __init__(self, task: Task) -> None:
        parameters = dict(task.module.named_parameters())
        may = prunable(task.module)
        self._module = task.module
        self._loss = task.loss
        self._names = list(parameters)
        self._shapes = [parameter.shape for parameter in parameters.values()]
        self._sizes = [parameter.numel() for parameter in parameters.values()]
        self.start = torch.cat([p.detach().reshape(-1).to(torch.float32) for p in parameters.values()])
        self.prunable = torch.cat([torch.full((parameters[n].numel(),), may[n]) for n in self._names])
        # One copy in the order of the devices, so that a device's data are a slice, not a gather every round.
        order = torch.from_numpy(np.concatenate(task.parts))
        self._inputs, self._labels = task.data.train_inputs[order], task.data.train_labels[order]
        ends = np.cumsum(task.samples)
        self._slices = [slice(int(end - n), int(end)) for end, n in zip(ends, task.samples, strict=True)]
        self._test = task.data.test_inputs, task.data.test_labels

    def outputs(self, weights: Tensor, inputs: Tensor) -> Tensor:
        """Return the network's outputs with the flat weights, differentiable in them."""
        pieces = weights.split(self._sizes)
        named = {n: p.view(s) for n, p, s in zip(self._names, pieces, self._shapes, strict=True)}
        result: Tensor = functional_call(self._module, named, (inputs,))
        return result

    def samples_of(self, device: int) -> tuple[Tensor, Tensor]:
        """Return inputs and labels of a device."""
        where = self._slices[device]
        return self._inputs[where], self._labels[where]

    def sample_loss(self, weights: Tensor, inputs: Tensor, labels: Tensor) -> Tensor:
        """Return the mean loss over some samples, differentiable in the weights."""
        return self._loss(self.outputs(weights, inputs), labels)

    def _gradient(self, weights: Tensor, inputs: Tensor, labels: Tensor) -> tuple[float, Tensor]:
        leaf = weights.detach().requires_grad_()
        count = len(labels)
        if count <= _CHUNK:
            loss = self.sample_loss(leaf, inputs, labels)
            return float(loss.detach()), torch.autograd.grad(loss, leaf)[0]
        value, total = 0.0, torch.zeros_like(weights, dtype=torch.float64)
        for start in range(0, count, _CHUNK):
            some = slice(start, start + _CHUNK)
            loss = self.sample_loss(leaf, inputs[some], labels[some])
            share = len(labels[some]) / count
            value += share * float(loss.detach())
            total += share * torch.autograd.grad(loss, leaf)[0]
        return value, total.to(weights.dtype)

    def device_gradient(
        self, weights: Tensor, device: int, rows: NDArray[np.int64] | None = None
    ) -> tuple[float, Tensor]:
        """Return F_u and its gradient [P] over all samples of a device, or over some of them by number."""
        inputs, labels = self.samples_of(device)
        if rows is not None:
            index = torch.from_numpy(rows)
            inputs, labels = inputs[index], labels[index]
        return self._gradient(weights, inputs, labels)

    def global_gradient(self, weights: Tensor) -> tuple[float, Tensor]:
        """Return F and its gradient [P] over the samples of all devices."""
        return self._gradient(weights, self._inputs, self._labels)

    @torch.no_grad()
    def test(self, weights: Tensor) -> tuple[float, float]:
        """Return mean loss and accuracy on the test data; an output's class is its largest entry."""
        inputs, labels = self._test
        loss, right = 0.0, 0
        for start in range(0, len(labels), _CHUNK):
            some = slice(start, start + _CHUNK)
            outputs = self.outputs(weights, inputs[some])
            loss += float(self._loss(outputs, labels[some])) * len(labels[some])
            right += int((outputs.argmax(dim=1) == labels[some]).sum())
        return loss / len(labels), right / len(labels)

"""What is trained: a data set split over the devices, and a network.

`Task` says what is trained and by whom; `Losses` computes the losses F_u of its devices and their gradients
as functions of one flat weight vector, which is all that training and measuring need.
"""

from __future__ import annotations

import hashlib
import math
import operator
import os
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from jointopt.data import Dataset, load, partition
from jointopt.errors import InputError, is_whole
from jointopt.federated.ledger import BUFFER_BITS
from jointopt.federated.networks import build, cnn, count_parameters
from jointopt.federated.synthetic import Synthetic, checked_level, missing, synthesize
from jointopt.pruning.layout import Layout
from jointopt.system import FloatArray, Learner, System

if TYPE_CHECKING:
    from jointopt.augmentation import Generator

__all__ = ["Losses", "Task"]

Loss = Callable[[Tensor, Tensor], Tensor]
"""Maps the network's outputs and the labels of some samples to the mean loss over these samples."""

_CHUNK = 4096
"""Most samples in one pass."""
_MEMORY = 2**25
"""Most bytes of layers' outputs in one pass: more is slower, since they leave the cache."""


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
    synthetic : Synthetic or None
        How it was augmented, None where all samples are real; see `augmented`.
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
    synthetic: Synthetic | None = None

    online: ClassVar[bool] = False
    """Whether what devices hold changes from round to round."""

    def __post_init__(self) -> None:
        if not self.parts:
            raise InputError("task: needs at least one device")
        for device, part in enumerate(self.parts):
            if len(part) == 0 and not self.online:
                raise InputError(f"task: device {device} holds no sample; every device needs at least one")
        if self.batch_size is not None and (isinstance(self.batch_size, bool) or operator.index(self.batch_size) < 1):
            raise InputError(f"task: batch_size must be a whole number of at least 1, found {self.batch_size!r}")
        if self.parameters == 0:
            raise InputError("task: the network has no linear or convolution layer, so nothing could be pruned")
        self._check_network()

    def _check_network(self) -> None:
        """Let the network try one sample, so that what does not fit is said before any work starts."""
        example = self.data.train_inputs[:1]
        try:
            with torch.no_grad():
                outputs = deepcopy(self.module).cpu().eval()(example)
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            raise InputError(f"task: the network cannot take inputs of shape {list(example.shape)}: {error}") from error
        if self.loss is cross_entropy and (outputs.ndim < 2 or outputs.shape[1] < self.data.classes):
            raise InputError(
                f"task: the network has outputs of shape {list(outputs.shape)}, but '{self.data.name}' has "
                f"{self.data.classes} classes"
            )

    @classmethod
    def make(
        cls,
        data: str | Dataset = "digits",
        network: str | nn.Module = "mlp",
        devices: int = 20,
        alpha: float = 0.5,
        scheme: str = "dirichlet",
        sizes: ArrayLike | None = None,
        shards: int | None = None,
        among: ArrayLike | None = None,
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
            "digits", "fashion-mnist", "cifar10", "femnist" (see `jointopt.data.load`) or a `Dataset`.
        network
            "mlp", "cnn", "lenet", "resnet8", "resnet18" or "transformer" (see `jointopt.federated.networks.build`), or
            a module, whose present weights are the initial ones.
        devices, alpha, scheme, sizes, shards
            The split over the devices (see `jointopt.data.partition`).
        among
            Indices of the training samples that devices may hold, such as those that are not public
            (`jointopt.augmentation.public_split`); all when not given.
        batch_size
            Samples per local step; all of a device's samples when not given.
        seed
            Seed of the split and of the initial weights.
        folder
            Where the data set's files are.
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
        held = np.arange(len(dataset.train_labels)) if among is None else _rows(among, len(dataset.train_labels))
        parts = partition(
            dataset.train_labels[held],
            devices,
            scheme=scheme,
            alpha=alpha,
            sizes=sizes,
            shards=shards,
            writers=None if dataset.writers is None else dataset.writers[held],
            seed=seed,
            minimum=1,
        )
        if among is not None:
            parts = [held[part] for part in parts]
        return cls(
            data=dataset,
            module=_module(network, dataset, seed, options),
            parts=tuple(parts),
            batch_size=batch_size,
            network=network if isinstance(network, str) else "custom",
            scheme=scheme,
            alpha=float(alpha) if scheme in ("dirichlet", "quantity") else None,
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
        among: ArrayLike | None = None,
        folder: str | os.PathLike[str] | None = None,
        loss: Loss = cross_entropy,
        **options: Any,
    ) -> Self:
        """Make a task with exactly the system's sample counts and batch size; arguments as in `make`.

        Without `network`, the known one that has the learner's parameter counts on the data is taken. Where the system
        says which classes its devices hold (section `augmentation`), they get random samples of exactly these, and
        `scheme` and `alpha` play no part.

        Raises
        ------
        InputError
            The data set has fewer samples than the system's devices hold together, or fewer of a class or other
            classes, or the network's parameter counts are not those of the system's learner.
        """
        if not isinstance(system, System):
            raise InputError(
                f"system: expected a System, found {type(system).__name__}; vehicles in the air have an OnlineTask"
            )
        dataset = load(data, folder) if isinstance(data, str) else data
        held = np.arange(len(dataset.train_labels)) if among is None else _rows(among, len(dataset.train_labels))
        wanted, there = int(system.devices.samples.sum()), len(held)
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
        if system.augmentation is not None:
            parts = _dealt(dataset, system.augmentation.class_counts.astype(np.int64), held, seed)
            task = cls(
                data=dataset,
                module=_module(network, dataset, seed, options),
                parts=parts,
                batch_size=system.learner.batch_size,
                network=network if isinstance(network, str) else "custom",
                scheme="class counts",
                seed=int(seed),
                loss=loss,
            )
        else:
            task = cls.make(
                data=dataset,
                network=network,
                devices=len(system),
                alpha=alpha,
                scheme=scheme,
                sizes=system.devices.samples.astype(np.int64),
                among=among,
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
        made = "" if self.synthetic is None else f" ({int(self.synthetic.counts.sum())} of them synthetic)"
        return (
            f"Task({self.name}, {self.network}: {len(self)} devices, {int(self.samples.sum())} samples{made}, "
            f"{self.parameters + self.unpruned_parameters} parameters, {batch})"
        )

    __str__ = __repr__

    @cached_property
    def data_fingerprint(self) -> str:
        """Digest of the data and of who holds what."""
        out = hashlib.blake2b(digest_size=16)
        data = self.data
        for tensor in (data.train_inputs, data.train_labels, data.test_inputs, data.test_labels):
            out.update(np.ascontiguousarray(tensor.numpy()).view(np.uint8).data)
        for part in self.parts:
            out.update(np.int64(len(part)).tobytes())
            out.update(np.ascontiguousarray(part).view(np.uint8).data)
        return out.hexdigest()

    @property
    def loss_name(self) -> str:
        """Where the loss is defined."""
        return f"{getattr(self.loss, '__module__', '')}.{getattr(self.loss, '__qualname__', type(self.loss))}"

    @cached_property
    def fingerprint(self) -> str:
        """Digest of all that is trained: data, who holds what, network, initial weights, loss."""
        out = hashlib.blake2b(self.data_fingerprint.encode(), digest_size=16)
        for values in (Layout.flatten(self.module), Layout.flatten_buffers(self.module)):
            out.update(values.numpy().tobytes())
        out.update(f"{self.module!r}|{self.loss_name}|{self.batch_size}".encode())
        return out.hexdigest()

    @property
    def name(self) -> str:
        """Name of the data set."""
        return self.data.name

    @property
    def samples(self) -> NDArray[np.int64]:
        """Samples of each device, N_u, shape [devices]."""
        return np.array([len(part) for part in self.parts], dtype=np.int64)

    @property
    def class_counts(self) -> NDArray[np.int64]:
        """Samples of each class on each device, shape [devices, classes]."""
        labels, classes = self.data.train_labels.numpy(), self.data.classes
        return np.stack([np.bincount(labels[part], minlength=classes) for part in self.parts]).astype(np.int64)

    def augmented(
        self,
        generator: Generator | None,
        level: ArrayLike,
        *,
        seed: int = 0,
        folder: str | os.PathLike[str] | None = None,
        progress: bool = False,
    ) -> Task:
        """Return the task with synthetic samples of the rarer classes on every device; the test set stays real.

        A synthetic sample depends on the seed, the generator, its device, its class, its number and the devices' class
        counts, not on the level. Where a level adds nothing, the task itself is returned.

        Parameters
        ----------
        generator : Generator
            What makes them; may be None where the level adds nothing.
        level : float or array, shape [devices]
            From 0, which adds nothing, to 1, which makes all classes of a device as large as the largest (see
            `jointopt.models.augmentation.augmented_counts`).
        seed : int
            Seed of the samples.
        folder : path, optional
            Where samples are kept as they are made, so that stopped work goes on and other levels find them.
        progress : bool
            Show a bar with the time left, on standard error.

        Raises
        ------
        InputError
            The task is augmented already, an argument is out of its range, or the generator was made for other data.
        """
        if self.synthetic is not None:
            raise InputError(
                f"task: holds {int(self.synthetic.counts.sum())} synthetic samples already; augment the task it was "
                "made from"
            )
        if not (is_whole(seed) and seed >= 0):
            raise InputError(f"seed: must be a whole number of at least 0, found {seed!r}")
        levels, held = checked_level(level, len(self)), self.class_counts
        counts = missing(held, levels)
        if not np.any(counts):
            return self
        if generator is None:
            raise InputError(
                f"generator: augmentation_level adds {int(counts.sum())} synthetic samples, which a generator must "
                "make; give generator=..."
            )
        generator.check(self.data)
        where = None if folder is None else Path(folder)
        inputs, labels = synthesize(held, counts, generator, int(seed), where, progress)
        first = len(self.data.train_labels)
        data = replace(
            self.data,
            train_inputs=torch.cat([self.data.train_inputs, inputs]),
            train_labels=torch.cat([self.data.train_labels, torch.from_numpy(labels)]),
            writers=None,
        )
        added = np.split(first + np.arange(len(labels)), np.cumsum(counts.sum(axis=1))[:-1])
        return replace(
            self,
            data=data,
            parts=tuple(np.concatenate([part, more]) for part, more in zip(self.parts, added, strict=True)),
            synthetic=Synthetic(levels, generator.name, generator.fingerprint, int(seed), first, counts),
        )

    @property
    def parameters(self) -> int:
        """Weights that can be pruned, V."""
        return count_parameters(self.module)[0]

    @property
    def unpruned_parameters(self) -> int:
        """Parameters that are never pruned: biases, normalisation."""
        return count_parameters(self.module)[1]

    @property
    def buffers(self) -> int:
        """Running statistics (of batch normalisation) that travel beside the parameters, as float32 each."""
        return Layout.of(self.module).buffer_size

    def check(self, system: Any) -> None:
        """Refuse a system that is not about this task.

        Raises
        ------
        InputError
            It is no `System`, or the numbers of devices, samples (of a class, where the system tells) or parameters,
            or the batch size differ; the message names both.
        """
        cure = "System.from_task(task, template=system) takes the task's numbers"
        if not isinstance(system, System):
            raise InputError(f"task: is about devices on the ground, the scenario is a {type(system).__name__}")
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
        if system.augmentation is not None:
            self._check_classes(system.augmentation.class_counts, cure)
        self._check_learner(system.learner, cure)

    def _check_learner(self, learner: Learner, cure: str, header: float = 0.0) -> None:
        """Refuse a learner of other sizes, or whose header cannot hold what travels beside the parameters."""
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
        if learner.header_bits < BUFFER_BITS * self.buffers + header:
            least = BUFFER_BITS * self.buffers + header
            raise InputError(
                f"task: {self.buffers} running statistics of the network travel with every payload, "
                f"{BUFFER_BITS} bits each, but learner.header_bits is {learner.header_bits:g}; "
                f"{cure if header == 0.0 else f'with the norm it must be at least {least:g}'}"
            )
        if self.batch_size != learner.batch_size:
            raise InputError(
                f"task: batch_size is {self.batch_size}, the scenario's learner has {learner.batch_size} "
                "(None is the full batch); give both the same"
            )

    def _check_classes(self, wanted: FloatArray, cure: str) -> None:
        """Refuse class counts that are not the task's."""
        held = self.class_counts
        if held.shape != wanted.shape:
            raise InputError(
                f"task: '{self.name}' has {held.shape[1]} classes, the scenario's augmentation.class_counts "
                f"{wanted.shape[1]}; {cure}"
            )
        if np.any(held != wanted):
            u, label = (int(i) for i in np.argwhere(held != wanted)[0])
            raise InputError(
                f"task: device {u} holds {held[u, label]} samples of class {label}, the scenario says "
                f"{int(wanted[u, label])}; Task.for_system(system, ...) makes one that fits, {cure}"
            )


def fixed_data(task: Task, what: str) -> None:
    """Refuse a task whose devices hold other samples from round to round.

    Raises
    ------
    InputError
        For an `OnlineTask`; the message names `what` needs data that stay.
    """
    if getattr(task, "online", False):
        raise InputError(f"{what}: needs data that stay as they are; an OnlineTask's change from slot to slot")


def _module(network: str | nn.Module, data: Dataset, seed: int, options: dict[str, Any]) -> nn.Module:
    """Return a network for some data, with initial weights of its own."""
    if isinstance(network, str):
        return build(network, data.inputs_shape, data.classes, seed, **options)
    return deepcopy(network)


def _dealt(
    data: Dataset, counts: NDArray[np.int64], held: NDArray[np.int64], seed: int
) -> tuple[NDArray[np.int64], ...]:
    """Deal random ones of the samples `held` out: so many of each class to each device, counts [devices, classes]."""
    if counts.shape[1] != data.classes:
        raise InputError(
            f"task: the scenario's augmentation.class_counts are of {counts.shape[1]} classes, '{data.name}' has "
            f"{data.classes}"
        )
    rng, labels = np.random.default_rng(seed), data.train_labels.numpy()
    pieces: list[list[NDArray[np.int64]]] = [[] for _ in counts]
    for label, wanted in enumerate(counts.T):
        pool = held[labels[held] == label]
        if wanted.sum() > len(pool):
            raise InputError(
                f"task: the scenario's devices hold {wanted.sum()} samples of class {label} together, '{data.name}' "
                f"has {len(pool)} to train on; choose another data set, or lower augmentation.class_counts"
            )
        dealt = np.split(rng.permutation(pool)[: wanted.sum()], np.cumsum(wanted)[:-1])
        for piece, samples in zip(pieces, dealt, strict=True):
            piece.append(samples)
    return tuple(np.sort(np.concatenate(piece)).astype(np.int64) for piece in pieces)


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


def _rows(among: ArrayLike, count: int) -> NDArray[np.int64]:
    """Return indices of training samples, each at most once."""
    try:
        rows = np.asarray(among)
    except ValueError:
        rows = np.empty(0)
    if rows.ndim != 1 or rows.size == 0 or rows.dtype.kind not in "iu":
        raise InputError(f"task: among must be a list of indices of training samples, found {among!r}")
    bad = (rows < 0) | (rows >= count)
    if np.any(bad):
        raise InputError(f"task: among holds {int(rows[np.argmax(bad)])}; there are {count} training samples")
    if len(np.unique(rows)) != rows.size:
        raise InputError("task: among holds a sample twice")
    return rows.astype(np.int64)


class Losses:
    """The devices' losses F_u of a task, and F = sum_u pi_u F_u, as functions of one flat weight vector.

    Attributes
    ----------
    start : Tensor [P]
        The task's initial weights, float32, in the order of ``named_parameters()``.
    start_buffers : Tensor [B]
        The network's running statistics at first.
    prunable : Tensor [P]
        Which of the weights may be pruned, bool.
    layout : Layout
        Where each parameter is.
    module, loss
        The task's.
    inputs, labels : tensors
        All training samples that a device holds, in the order of the devices; all samples of the data where what
        devices hold changes.
    """

    def __init__(self, task: Task, device: torch.device | str = "cpu") -> None:
        self.layout = Layout.of(task.module)
        self.module, self.loss = task.module, task.loss
        self._module = deepcopy(task.module).to(device).eval()
        self.start = Layout.flatten(task.module).to(device)
        self.start_buffers = Layout.flatten_buffers(task.module).to(device)
        self.prunable = self.layout.prunable_mask().to(device)
        if task.online:
            order = torch.arange(len(task.data.train_labels))
            self.inputs, self.labels = task.data.train_inputs.to(device), task.data.train_labels.to(device)
            self._held: list[slice] | tuple[Tensor, ...] = tuple(torch.from_numpy(part) for part in task.parts)
        else:
            # One copy in the order of the devices, so that a device's data are a slice, not a gather every round.
            order = torch.from_numpy(np.concatenate(task.parts))
            self.inputs = task.data.train_inputs[order].to(device)
            self.labels = task.data.train_labels[order].to(device)
            ends = np.cumsum(task.samples)
            self._held = [slice(int(end - n), int(end)) for end, n in zip(ends, task.samples, strict=True)]
        real = len(task.data.train_labels) if task.synthetic is None else task.synthetic.first
        self._real, self._classes = (order < real).to(device), task.data.classes
        self._test = task.data.test_inputs.to(device), task.data.test_labels.to(device)
        self._chunk = _chunk(self._module, self.inputs[:1])

    def hold(self, rows: Sequence[Tensor]) -> None:
        """Let devices hold other samples, by number in the data, where what they hold changes."""
        self._held = tuple(rows)

    def rows_of(self, device: int, which: Tensor | None = None) -> Tensor:
        """Return where in `inputs` a device's samples are, or those of them whose numbers on the device are given."""
        held = self._held[device]
        if isinstance(held, slice):
            return torch.arange(held.start, held.stop) if which is None else which + held.start
        return held if which is None else held[which]

    def outputs(self, weights: Tensor, inputs: Tensor, buffers: Tensor | None = None) -> Tensor:
        """Return the network's outputs with the flat weights, differentiable in them; running statistics are used."""
        named = self.layout.split(weights)
        if self.layout.buffers:
            named |= self.layout.split_buffers(self.start_buffers if buffers is None else buffers)
        result: Tensor = functional_call(self._module, named, (inputs,))
        return result

    def samples_of(self, device: int) -> tuple[Tensor, Tensor]:
        """Return inputs and labels of a device."""
        where = self._held[device]
        return self.inputs[where], self.labels[where]

    def sample_loss(self, weights: Tensor, inputs: Tensor, labels: Tensor, buffers: Tensor | None = None) -> Tensor:
        """Return the mean loss over some samples, differentiable in the weights."""
        return self.loss(self.outputs(weights, inputs, buffers), labels)

    def _gradient(
        self, weights: Tensor, inputs: Tensor, labels: Tensor, buffers: Tensor | None = None
    ) -> tuple[float, Tensor]:
        leaf = weights.detach().requires_grad_()
        count = len(labels)
        if count <= self._chunk:
            loss = self.sample_loss(leaf, inputs, labels, buffers)
            return float(loss.detach()), torch.autograd.grad(loss, leaf)[0]
        value, total = 0.0, torch.zeros_like(weights, dtype=torch.float64)
        for start in range(0, count, self._chunk):
            some = slice(start, start + self._chunk)
            loss = self.sample_loss(leaf, inputs[some], labels[some], buffers)
            share = len(labels[some]) / count
            value += share * float(loss.detach())
            total += share * torch.autograd.grad(loss, leaf)[0]
        return value, total.to(weights.dtype)

    def gradient(self, weights: Tensor, inputs: Tensor, labels: Tensor) -> Tensor:
        """Return the gradient [P] of the mean loss over any samples."""
        return self._gradient(weights, inputs.to(self.inputs.device), labels.to(self.labels.device))[1]

    def device_gradient(
        self, weights: Tensor, device: int, rows: NDArray[np.int64] | None = None
    ) -> tuple[float, Tensor]:
        """Return F_u and its gradient [P] over all samples of a device, or over some of them by number."""
        inputs, labels = self.samples_of(device)
        if rows is not None:
            index = torch.from_numpy(rows)
            inputs, labels = inputs[index], labels[index]
        return self._gradient(weights, inputs, labels)

    def global_gradient(self, weights: Tensor, buffers: Tensor | None = None) -> tuple[float, Tensor]:
        """Return F and its gradient [P] over the samples of all devices, NaN where there are none."""
        inputs, labels = self._together()
        if len(labels) == 0:
            return math.nan, torch.full_like(weights, math.nan)
        return self._gradient(weights, inputs, labels, buffers)

    def _together(self) -> tuple[Tensor, Tensor]:
        """Return inputs and labels of all devices."""
        if isinstance(self._held, list):
            return self.inputs, self.labels
        where = torch.cat(self._held)
        return self.inputs[where], self.labels[where]

    @torch.no_grad()
    def global_loss(self, weights: Tensor, buffers: Tensor | None = None) -> float:
        """Return F over the samples of all devices, NaN where there are none."""
        return self._tested(weights, *self._together(), buffers)[0]

    @cached_property
    def class_rows(self) -> list[Tensor]:
        """The real samples of each class that any device holds, by number."""
        return [torch.nonzero(self._real & (self.labels == c))[:, 0] for c in range(self._classes)]

    def class_gradient(self, weights: Tensor, label: int, buffers: Tensor | None = None) -> tuple[float, Tensor]:
        """Return F^c and its gradient [P] over the real samples of a class, which must have some."""
        rows = self.class_rows[label]
        return self._gradient(weights, self.inputs[rows], self.labels[rows], buffers)

    def mixture_gradient(self, weights: Tensor, mix: FloatArray, buffers: Tensor | None = None) -> tuple[float, Tensor]:
        """Return sum_c mix_c F^c and its gradient [P] over real samples (theory 2b), shares `mix` [classes].

        A class of which no device holds a real sample is left out, its share given to the others.
        """
        share = np.where([len(rows) > 0 for rows in self.class_rows], mix, 0.0)
        share = share / share.sum() if share.sum() > 0.0 else share
        value, total = 0.0, torch.zeros_like(weights, dtype=torch.float64)
        for label in np.flatnonzero(share).tolist():
            loss, gradient = self.class_gradient(weights, label, buffers)
            value += float(share[label]) * loss
            total += float(share[label]) * gradient
        return value, total.to(weights.dtype)

    def test(self, weights: Tensor, buffers: Tensor | None = None) -> tuple[float, float]:
        """Return mean loss and accuracy on the test data; an output's class is its largest entry."""
        loss, right = self.verdicts(weights, buffers)
        return loss, int(right.sum()) / len(right)

    def verdicts(self, weights: Tensor, buffers: Tensor | None = None) -> tuple[float, Tensor]:
        """Return the mean loss on the test data, and for each of them whether its class was told right, 0 or 1."""
        return self._tested(weights, *self._test, buffers)

    def mixed_accuracy(self, right: Tensor, mix: FloatArray) -> float:
        """Return the accuracy that verdicts on the test data mean for shares of the classes, NaN of a missing class."""
        labels = self._test[1].cpu().numpy()
        found = np.bincount(labels, weights=right.cpu().numpy(), minlength=self._classes)
        with np.errstate(invalid="ignore"):
            each = found / np.bincount(labels, minlength=self._classes)
        return float(np.sum(np.where(mix > 0.0, each, 0.0) * mix))

    def accuracy(self, weights: Tensor, rows: Tensor, buffers: Tensor | None = None) -> float:
        """Return the accuracy on training samples by number in `inputs`, NaN of none."""
        right = self._tested(weights, self.inputs[rows], self.labels[rows], buffers)[1]
        return float(right.mean()) if len(right) else math.nan

    @torch.no_grad()
    def _tested(
        self, weights: Tensor, inputs: Tensor, labels: Tensor, buffers: Tensor | None = None
    ) -> tuple[float, Tensor]:
        """Return the mean loss over some samples, NaN of none, and for each whether it was told right, 0 or 1."""
        loss, right = 0.0, []
        for start in range(0, len(labels), self._chunk):
            some = slice(start, start + self._chunk)
            outputs = self.outputs(weights, inputs[some], buffers)
            loss += float(self.loss(outputs, labels[some])) * len(labels[some])
            right.append((outputs.argmax(dim=1) == labels[some]).to(torch.float64))
        return (loss / len(labels), torch.cat(right)) if right else (math.nan, torch.empty(0, dtype=torch.float64))


def _chunk(module: nn.Module, example: Tensor) -> int:
    """Return how many samples to pass at once, so that what autograd keeps stays below `_MEMORY`."""
    if len(example) == 0:
        return _CHUNK
    entries = 0

    def count(_: nn.Module, __: object, output: object) -> None:
        nonlocal entries
        entries += output.numel() if isinstance(output, Tensor) else 0

    leaves = [layer for layer in module.modules() if not any(True for _ in layer.children())]
    handles = [layer.register_forward_hook(count) for layer in leaves]
    try:
        with torch.no_grad():
            module(example)
    finally:
        for handle in handles:
            handle.remove()
    return max(16, min(_CHUNK, _MEMORY // max(4 * entries, 1)))

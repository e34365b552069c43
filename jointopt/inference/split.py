"""Networks that can be pruned and cut between two blocks, and what a system has to know of them.

A `SplitNetwork` is an ordered list of blocks. Split i leaves the first i blocks on the device and the others on the
server: split 0 sends the raw input, the last split sends nothing. Head and tail run the very blocks that the whole
network runs, in the same order, so that splitting changes no bit of the output.
"""

from __future__ import annotations

import copy
import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from jointopt.errors import InputError, is_real, is_whole
from jointopt.pruning import keep_mask
from jointopt.system.inference import Network

__all__ = ["Block", "DenseBlock", "SplitNetwork", "State", "check_ratio", "dense_network"]

State: TypeAlias = Tensor | tuple[Tensor, ...]
"""What one block hands to the next: a tensor, or several (hidden states and which of them are padding)."""

VALUE_BITS = 32
"""Bits of one intermediate value as sent: float32, as the network computes it."""


def check_ratio(ratio: object, where: str = "pruning_ratio") -> float:
    """Return a pruning ratio as a float; `InputError` unless it is a number in [0, 1)."""
    if not is_real(ratio) or not 0.0 <= float(ratio) < 1.0:  # type: ignore[arg-type]
        raise InputError(f"{where}: must be a number of at least 0 and below 1, found {ratio!r}")
    return float(ratio)  # type: ignore[arg-type]


class Block(nn.Module, ABC):
    """One step of a network, the smallest part that is not cut. Subclasses say what they compute and cost."""

    def matrices(self) -> dict[str, Tensor]:
        """Weight matrices that may be pruned, by name: those of linear layers, never biases or normalisations."""
        return {
            f"{name}.weight" if name else "weight": layer.weight
            for name, layer in self.named_modules()
            if isinstance(layer, nn.Linear)
        }

    @abstractmethod
    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of what one input of this shape becomes, without the sample axis."""

    @abstractmethod
    def work(self, shape: tuple[int, ...]) -> tuple[float, float]:
        """Operations for one input of this shape: (those that fall with the kept weights, all others).

        A multiplication and an addition count as two (4g [D]: only products with prunable weights fall).
        """


class DenseBlock(Block):
    """A linear layer and, unless it is the last, ReLU.

    Parameters
    ----------
    inputs, outputs
        Numbers of values, at least 1.
    relu
        Whether ReLU follows.
    bias
        Whether there are biases. With them the bound of theory 4b does not hold.
    """

    def __init__(self, inputs: int, outputs: int, *, relu: bool = True, bias: bool = False) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs, bias=bias)
        self.relu = relu

    def forward(self, state: Tensor) -> Tensor:
        """Map [N, inputs] to [N, outputs]."""
        out = self.linear(state)
        return torch.relu(out) if self.relu else out

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """(outputs,)."""
        return (self.linear.out_features,)

    def work(self, shape: tuple[int, ...]) -> tuple[float, float]:
        """Products 2 x inputs x outputs; biases and ReLU one operation for each output."""
        inputs, outputs = self.linear.in_features, self.linear.out_features
        return 2.0 * inputs * outputs, float(outputs * (self.relu + (self.linear.bias is not None)))


class SplitNetwork(nn.Module):
    """A network as a list of blocks that is pruned by magnitude and split between a device and a server.

    Parameters
    ----------
    blocks
        The blocks in order; at least one has weights to prune.
    input_shape
        Shape of one input, without the sample axis: what `profile` counts for.
    name
        What reports call the network.
    task
        How outputs are judged: ``"reconstruction"`` against the inputs, or ``"similarity"``: pairwise cosines
        against those of the dense network.
    input_levels
        Raw inputs are multiples of 1/input_levels in [0, 1], at most 255, and travel as one byte for each value;
        by default they travel as float32.

    Raises
    ------
    InputError
        There is nothing to prune, or a weight is NaN or infinite.
    """

    def __init__(
        self,
        blocks: Iterable[Block],
        *,
        input_shape: Sequence[int],
        name: str = "network",
        task: Literal["reconstruction", "similarity"] = "reconstruction",
        input_levels: int | None = None,
    ) -> None:
        super().__init__()
        listed = list(blocks)
        if not listed or not all(isinstance(block, Block) for block in listed):
            raise InputError(f"{name}: a split network needs a list of at least one Block")
        for size in input_shape:
            if not (is_whole(size) and size >= 1):
                raise InputError(f"{name}: input_shape must be whole and at least 1, found {tuple(input_shape)}")
        if input_levels is not None and not (is_whole(input_levels) and 1 <= input_levels <= 255):
            raise InputError(f"{name}: input_levels must be whole, 1 to 255, found {input_levels!r}")
        self.blocks = nn.ModuleList(listed)
        self.input_shape = tuple(int(size) for size in input_shape)
        self.name = name
        self.task = task
        self.input_levels = input_levels
        if not any(block.matrices() for block in listed):
            raise InputError(f"{name}: has no weight matrices, so there is nothing to prune")
        for i, matrix, weight in self.prunable():
            bad = ~torch.isfinite(weight)
            if bool(bad.any()):
                row, column = (int(v) for v in torch.nonzero(bad)[0])
                raise InputError(
                    f"{name}: block {i}, {matrix}[{row}, {column}] is {float(weight[row, column])}; "
                    "weights must be finite"
                )
        self.eval()

    # -- structure -----------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self.blocks)

    def block(self, index: int) -> Block:
        """Block `index`."""
        block = self.blocks[index]
        assert isinstance(block, Block)
        return block

    def prunable(self) -> list[tuple[int, str, Tensor]]:
        """(block, name, weights) of every matrix that may be pruned, in order; the weights are not copied."""
        return [
            (i, name, weight.detach()) for i in range(len(self)) for name, weight in self.block(i).matrices().items()
        ]

    @property
    def bounded(self) -> bool:
        """Whether the bound of theory 4b holds: a chain of linear layers without biases, with ReLU or nothing."""
        return all(isinstance(block, DenseBlock) and block.linear.bias is None for block in self.blocks)

    # -- running -------------------------------------------------------------------------------

    def check_split(self, split: object) -> int:
        """Return a split as an int; `InputError` unless the network has it."""
        if is_real(split) and not is_whole(split) and float(split).is_integer():  # type: ignore[arg-type]
            split = int(split)  # type: ignore[call-overload]
        if not is_whole(split) or not 0 <= split <= len(self):  # type: ignore[operator]
            raise InputError(
                f"{self.name}: has no split {split!r}; its {len(self)} blocks are split at 0 (all on the server) "
                f"to {len(self)} (all on the device)"
            )
        return int(split)  # type: ignore[call-overload]

    def check_inputs(self, inputs: Tensor) -> Tensor:
        """Return a batch as the first block takes it; `InputError` if it is no batch of such inputs."""
        if not isinstance(inputs, Tensor):
            raise InputError(f"{self.name}: inputs must be a torch tensor, found {type(inputs).__name__}")
        size = math.prod(self.input_shape)
        if inputs.ndim < 2 or len(inputs) == 0 or math.prod(inputs.shape[1:]) != size:
            raise InputError(
                f"{self.name}: inputs must have shape [N, {', '.join(map(str, self.input_shape))}] with N >= 1, "
                f"found {tuple(inputs.shape)}"
            )
        if not inputs.is_floating_point() or not bool(torch.isfinite(inputs).all()):
            raise InputError(f"{self.name}: inputs must be finite floating-point numbers, found {inputs.dtype}")
        return inputs.reshape(len(inputs), *self.input_shape)

    def forward(self, inputs: Tensor) -> Tensor:
        """The whole network on a batch; gradients flow."""
        state: Any = self.check_inputs(inputs)
        for block in self.blocks:
            state = block(state)
        return state

    @torch.no_grad()
    def run(self, inputs: Tensor) -> Tensor:
        """The whole network on a batch, without gradients."""
        return self(inputs)

    @torch.no_grad()
    def head(self, inputs: Tensor, split: int) -> State:
        """The device's part: blocks 0 .. split - 1 on a batch; split 0 returns the inputs themselves."""
        split = self.check_split(split)
        state: Any = self.check_inputs(inputs)
        for block in list(self.blocks)[:split]:
            state = block(state)
        return state

    @torch.no_grad()
    def tail(self, state: State, split: int) -> Tensor:
        """The server's part: the remaining blocks on what `head` returned."""
        split = self.check_split(split)
        self._check_state(state, split)
        result: Any = state
        for block in list(self.blocks)[split:]:
            result = block(result)
        return result

    def _check_state(self, state: State, split: int) -> None:
        expected, found = self.shape_at(split), state if isinstance(state, Tensor) else state[0]
        if tuple(found.shape[1:]) != expected:
            raise InputError(
                f"{self.name}: at split {split} the intermediate tensor has shape [N, "
                f"{', '.join(map(str, expected))}], found {tuple(found.shape)}"
            )

    def shape_at(self, split: int) -> tuple[int, ...]:
        """Shape of one intermediate tensor at a split, for an input of `input_shape`."""
        shape = self.input_shape
        for i in range(self.check_split(split)):
            shape = self.block(i).output_shape(shape)
        return shape

    # -- sending -------------------------------------------------------------------------------

    def cut_bits(self, split: int) -> float:
        """Bits sent at a split for one input of `input_shape`."""
        if self.check_split(split) == len(self):
            return 0.0
        per_value = 8 if split == 0 and self.input_levels is not None else VALUE_BITS
        return float(per_value * math.prod(self.shape_at(split)))

    def encode(self, state: State, split: int) -> list[bytes]:
        """Packets that carry an intermediate state to the server without loss, one for each input.

        Raises
        ------
        InputError
            At split 0, when an input is no multiple of 1/input_levels.
        """
        split = self.check_split(split)
        assert isinstance(state, Tensor)
        if split == len(self):
            return [b""] * len(state)
        values = state.detach().cpu().numpy()
        if split == 0 and self.input_levels is not None:
            whole = np.rint(values * np.float32(self.input_levels))
            if whole.min() < 0 or whole.max() > 255 or not np.array_equal(self._levels(whole), values):
                raise InputError(
                    f"{self.name}: raw inputs must be multiples of 1/{self.input_levels} to travel as bytes"
                )
            return [row.tobytes() for row in whole.astype(np.uint8)]
        return [row.astype("<f4").tobytes() for row in values]

    def decode(self, packets: Sequence[bytes], split: int) -> State:
        """The intermediate state that `encode` packed (not at the last split, where nothing travels)."""
        split = self.check_split(split)
        shape = self.shape_at(split)
        if split == 0 and self.input_levels is not None:
            whole = np.stack([np.frombuffer(packet, dtype=np.uint8) for packet in packets])
            return torch.from_numpy(self._levels(whole.astype(np.float32))).reshape(len(packets), *shape)
        values = np.stack([np.frombuffer(packet, dtype="<f4") for packet in packets])
        return torch.from_numpy(values.astype(np.float32)).reshape(len(packets), *shape)

    def _levels(self, whole: Any) -> Any:
        return whole.astype(np.float32) / np.float32(self.input_levels)

    # -- pruning -------------------------------------------------------------------------------

    def block_ratios(self, ratio: float | Sequence[float] | np.ndarray) -> list[float]:
        """One pruning ratio for each block, from one for all or a sequence; `InputError` outside [0, 1)."""
        if np.ndim(ratio) == 0:
            return [check_ratio(ratio)] * len(self)
        values = np.asarray(ratio)
        if values.shape != (len(self),):
            raise InputError(
                f"{self.name}: needs one pruning ratio, or one for each of {len(self)} blocks; "
                f"found shape {values.shape}"
            )
        return [check_ratio(float(value), f"pruning_ratio[block {i}]") for i, value in enumerate(values)]

    @torch.no_grad()
    def prune(self, ratio: float | Sequence[float] | np.ndarray) -> SplitNetwork:
        """Return a copy without the smallest weights.

        The ratio is the fraction removed, the same in every prunable matrix of a block (4g). What is never pruned
        is shared with the original, not copied.

        Parameters
        ----------
        ratio
            In [0, 1): one for all, or one for each block.

        Raises
        ------
        InputError
            A ratio is out of range, or their number is not that of the blocks.
        """
        ratios = self.block_ratios(ratio)
        pruned = {id(weight) for i in range(len(self)) for weight in self.block(i).matrices().values()}
        shared: dict[int, Any] = {id(p): p for p in self.parameters() if id(p) not in pruned}
        twin = copy.deepcopy(self, shared)
        for i, _, weight in twin.prunable():
            weight *= keep_mask(weight.flatten(), ratios[i]).reshape(weight.shape)
        return twin

    def parameter_distortion(self, other: SplitNetwork) -> np.ndarray:
        """||W - W^||_1 (sum over entries) of each block between this network and a pruned copy, shape [blocks]."""
        sums = np.zeros(len(self))
        for (i, _, mine), (_, _, its) in zip(self.prunable(), other.prunable(), strict=True):
            sums[i] += float((mine - its).abs().sum(dtype=torch.float64))
        return sums

    # -- what a system has to know -------------------------------------------------------------

    def amplification(self) -> np.ndarray:
        """A^(l) = product over j != l of ||W^(j)||_1, the induced norm, shape [blocks] (4b [C], 4g; every tau = 0).

        Pruning never raises a norm, so tau = 0 is allowed and A does not depend on the ratios [D]. Ones where the
        bound does not hold (biases, attention): the surrogate H ||W - W^||_1 takes its place.
        """
        if not self.bounded:
            return np.ones(len(self))
        logs = np.array([math.log(max(float(w.abs().sum(0).max()), 1e-300)) for _, _, w in self.prunable()])
        with np.errstate(over="ignore"):
            return np.exp(logs.sum() - logs)

    def profile(self) -> dict[str, np.ndarray]:
        """Fields of `jointopt.system.inference.Network` for one input of `input_shape`.

        Returns
        -------
        dict
            Per block ``flops`` (falling with the kept weights), ``fixed_flops`` (attention products, activations,
            normalisations, embeddings), ``parameters`` (prunable), ``weight_rate`` (1 / mean |w|; 1 for a block
            without prunable weights, where it has no effect) and ``amplification``; ``cut_bits`` for each split.
        """
        shape = self.input_shape
        flops, fixed = [], []
        for i in range(len(self)):
            falling, other = self.block(i).work(shape)
            flops.append(falling)
            fixed.append(other)
            shape = self.block(i).output_shape(shape)
        counts, sums = np.zeros(len(self)), np.zeros(len(self))
        for i, _, weight in self.prunable():
            counts[i] += weight.numel()
            sums[i] += float(weight.abs().sum(dtype=torch.float64))
        zero = (counts > 0) & (sums == 0)
        if zero.any():
            raise InputError(f"{self.name}: all weights of block {int(np.argmax(zero))} are 0; 1/mean|w| is not finite")
        return {
            "flops": np.array(flops),
            "fixed_flops": np.array(fixed),
            "parameters": counts.astype(np.int64),
            "weight_rate": np.where(counts > 0, counts / np.where(sums > 0, sums, 1.0), 1.0),
            "amplification": self.amplification(),
            "cut_bits": np.array([self.cut_bits(split) for split in range(len(self) + 1)]),
        }

    def section(self, **changes: Any) -> Network:
        """The profile as the `network` section of an `InferenceSystem`; `changes` are further fields of it."""
        return Network(**{**self.profile(), **changes})


def dense_network(
    weights: Sequence[Any],
    *,
    biases: Sequence[Any] | None = None,
    name: str = "dense",
    input_levels: int | None = None,
) -> SplitNetwork:
    """Build a chain of linear layers with ReLU between them, from given weights.

    Parameters
    ----------
    weights
        Matrices [outputs, inputs], the first layer first; arrays or tensors, kept as float32.
    biases
        One vector for each layer, or none at all.
    name, input_levels
        As in `SplitNetwork`.

    Raises
    ------
    InputError
        The shapes do not fit one another, or a weight is not finite.
    """
    matrices = [torch.as_tensor(np.asarray(w), dtype=torch.float32) for w in weights]
    if not matrices or any(w.ndim != 2 or w.numel() == 0 for w in matrices):
        raise InputError(
            f"{name}: weights must be a list of matrices, found shapes {[tuple(w.shape) for w in matrices]}"
        )
    for i, (w, after) in enumerate(itertools.pairwise(matrices)):
        if after.shape[1] != w.shape[0]:
            raise InputError(f"{name}: layer {i} has {w.shape[0]} outputs, layer {i + 1} takes {after.shape[1]}")
    if biases is not None and len(biases) != len(matrices):
        raise InputError(f"{name}: {len(biases)} biases for {len(matrices)} layers")
    blocks = []
    for i, w in enumerate(matrices):
        block = _dense(w.shape[1], w.shape[0], i + 1 < len(matrices), biases is not None)
        state: Mapping[str, Tensor] = {"linear.weight": w}
        if biases is not None:
            vector = torch.as_tensor(np.asarray(biases[i]), dtype=torch.float32)
            if vector.shape != (len(w),):
                raise InputError(f"{name}: bias {i} must have shape ({len(w)},), found {tuple(vector.shape)}")
            state = {**state, "linear.bias": vector}
        block.load_state_dict(state)
        blocks.append(block)
    return SplitNetwork(blocks, input_shape=(matrices[0].shape[1],), name=name, input_levels=input_levels)


def _dense(inputs: int, outputs: int, relu: bool, bias: bool) -> DenseBlock:
    # torch draws initial weights, which are replaced; the global generator must not notice
    with torch.random.fork_rng(devices=[]):
        return DenseBlock(inputs, outputs, relu=relu, bias=bias)

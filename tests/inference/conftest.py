"""What the tests of co-inference share: small networks, MiniLM where it is installed, and a system for any network."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from jointopt.errors import MissingExtraError
from jointopt.inference import SentenceEncoder, SplitNetwork, dense_network, load_minilm, sentences
from jointopt.system.inference import InferenceDevices, InferenceSystem, Link


def random_weights(widths: tuple[int, ...], seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.laplace(size=(b, a)) / np.sqrt(a) for a, b in itertools.pairwise(widths)]


@pytest.fixture
def small() -> SplitNetwork:
    return dense_network(random_weights((6, 8, 5, 6)), name="small")


@pytest.fixture
def batch() -> Tensor:
    return torch.rand(20, 6, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="session")
def minilm() -> SentenceEncoder:
    try:
        return load_minilm()
    except MissingExtraError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def tokens(minilm: SentenceEncoder) -> Tensor:
    return minilm.tokenize(sentences(60)[0])


@pytest.fixture
def make_inference() -> Callable[..., InferenceSystem]:
    def build(network: SplitNetwork, devices: int = 1, **changes: Any) -> InferenceSystem:
        return InferenceSystem(
            devices=InferenceDevices(frequency=2e9, power_max=0.2, delay_budget=1.0, energy_budget=1.0, count=devices),
            link=Link(bandwidth=5e6, gain=1e-9),
            network=network.section(**changes),
        )

    return build

"""Splitting changes no bit; profiles agree with counts by hand; pruning removes what it says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from jointopt.errors import InputError
from jointopt.inference import Block, SentenceEncoder, SplitNetwork, autoencoder, dense_network
from jointopt.pruning import pruned_count
from jointopt.system.inference import Network


def same(a: object, b: object) -> bool:
    if isinstance(a, tuple) and isinstance(b, tuple):
        return all(same(x, y) for x, y in zip(a, b, strict=True))
    assert isinstance(a, Tensor) and isinstance(b, Tensor)
    return torch.equal(a, b)


@pytest.mark.parametrize("ratio", [0.0, 0.4])
def test_head_and_tail_equal_the_whole(small: SplitNetwork, batch: Tensor, ratio: float) -> None:
    network = small.prune(ratio)
    whole = network.run(batch)
    for split in range(len(network) + 1):
        state = network.head(batch, split)
        assert torch.equal(network.tail(state, split), whole)
        if split < len(network):
            packets = network.encode(state, split)
            assert torch.equal(network.tail(network.decode(packets, split), split), whole)
            assert {8.0 * len(packet) for packet in packets} == {network.cut_bits(split)}
    assert network.encode(network.head(batch, 3), 3) == [b""] * len(batch)


@pytest.mark.parametrize("ratio", [0.0, 0.5])
def test_minilm_head_and_tail_equal_the_whole(minilm: SentenceEncoder, tokens: Tensor, ratio: float) -> None:
    network, tokens = minilm.prune(ratio), tokens[:12]
    whole = network.run(tokens)
    real = (tokens != 0).sum(1).tolist()
    for split in range(len(network) + 1):
        state = network.head(tokens, split)
        assert same(network.tail(state, split), whole)
        packets = network.encode(state, split)
        per_token = 16 if split == 0 else 0 if split == len(network) else 384 * 32
        assert [8 * len(packet) for packet in packets] == [per_token * n for n in real]
        if split < len(network):
            assert same(network.tail(network.decode(packets, split), split), whole)


def test_raw_images_travel_as_bytes() -> None:
    network = autoencoder(12, 0, encoder=(4, 2), input_levels=255)
    images = torch.randint(0, 256, (5, 12), generator=torch.Generator().manual_seed(0)).float() / 255
    packets = network.encode(network.head(images, 0), 0)
    assert [len(packet) for packet in packets] == [12] * 5 and network.cut_bits(0) == 96.0
    assert torch.equal(network.decode(packets, 0), images)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="multiples of 1/255"):
        network.encode(images + 1e-3, 0)


def test_profile_of_a_chain_by_hand() -> None:
    weights = [np.array([[1.0, -2.0], [0.5, 0.5], [-3.0, 1.0]]), np.array([[2.0, 0.0, -1.0]])]
    profile = dense_network(weights).profile()
    assert profile["flops"].tolist() == [2 * 2 * 3, 2 * 3 * 1]
    assert profile["fixed_flops"].tolist() == [3.0, 0.0]  # ReLU
    assert profile["parameters"].tolist() == [6, 3]
    assert profile["weight_rate"] == pytest.approx([6 / 8, 3 / 3])
    # greatest column sums: 1 + .5 + 3 = 4.5 and 2 + .5 + 1 = 3.5; 2, 0, 1
    assert profile["amplification"] == pytest.approx([2.0, 4.5])
    assert profile["cut_bits"].tolist() == [64.0, 96.0, 0.0]
    with_bias = dense_network(weights, biases=[np.ones(3), np.ones(1)])
    assert with_bias.profile()["fixed_flops"].tolist() == [6.0, 1.0]
    assert with_bias.profile()["amplification"].tolist() == [1.0, 1.0]
    assert not with_bias.bounded


def test_profile_of_fcdnn16_by_hand() -> None:
    network = autoencoder(784, 0, input_levels=255)
    profile = network.profile()
    half = [784 * 64, 64 * 128, 128 * 256, 256 * 512, 512 * 256, 256 * 128, 128 * 64, 64 * 32]
    assert profile["parameters"].tolist() == half + half[::-1]
    assert profile["flops"].tolist() == [2.0 * n for n in half + half[::-1]]
    assert profile["cut_bits"][[0, 8, 16]].tolist() == [784 * 8, 32 * 32, 0]
    section = network.section(pruning_ratio_max=0.8)
    assert isinstance(section, Network) and section.layers == 16 and section.pruning_ratio_max == 0.8


def test_profile_of_minilm_by_hand(minilm: SentenceEncoder) -> None:
    profile = minilm.profile()
    assert profile["parameters"].tolist() == [0, *[4 * 384**2 + 2 * 384 * 1536] * 6, 0]
    assert profile["flops"][1] == 2 * 128 * 1_769_472
    assert profile["cut_bits"].tolist() == [2048.0, *[128 * 384 * 32.0] * 7, 0.0]
    assert sum(p.numel() for p in minilm.parameters()) == pytest.approx(22.7e6, rel=0.01)
    # 4g: attention is 5 % of a layer at 128 tokens, 18 % at 512
    for length, share in ((128, 0.05), (512, 0.18)):
        products, fixed = minilm.block(1).work((length, 384))
        attention = 4.0 * length**2 * 384
        assert attention / (products + attention) == pytest.approx(share, abs=0.005)
        assert attention < fixed < 1.2 * attention
    minilm.section()


def test_pruning_removes_the_smallest_of_every_matrix(small: SplitNetwork) -> None:
    before = [w.clone() for _, _, w in small.prunable()]
    pruned = small.prune(0.3)
    for (_, _, w), (_, _, v), old in zip(small.prunable(), pruned.prunable(), before, strict=True):
        assert torch.equal(w, old)  # the original is left alone
        gone = v == 0
        assert int(gone.sum()) == pruned_count(0.3, w.numel())
        assert w[gone].abs().max() <= w[~gone].abs().min()
        assert torch.equal(w[~gone], v[~gone])
    layered = small.prune([0.0, 0.5, 0.2])
    change = small.parameter_distortion(layered)
    assert change[0] == 0.0 and change[1] > 0 and change[2] > 0
    assert torch.equal(small.prune(0.0).run(torch.ones(1, 6)), small.run(torch.ones(1, 6)))


def test_pruning_shares_what_is_never_pruned(minilm: SentenceEncoder) -> None:
    pruned = minilm.prune(0.2)
    assert isinstance(pruned, SentenceEncoder)
    theirs, mine = dict(pruned.named_parameters()), dict(minilm.named_parameters())
    assert theirs["blocks.0.words.weight"] is mine["blocks.0.words.weight"]
    assert theirs["blocks.1.up.weight"] is not mine["blocks.1.up.weight"]


@pytest.mark.parametrize("split", [-1, 4, 1.5, "2", True])
def test_unknown_split(small: SplitNetwork, batch: Tensor, split: object) -> None:
    with pytest.raises(InputError, match="has no split"):
        small.head(batch, split)  # type: ignore[arg-type]


@pytest.mark.parametrize("ratio", [1.0, -0.1, float("nan"), "0.5", True])
def test_ratio_out_of_range(small: SplitNetwork, ratio: object) -> None:
    with pytest.raises(InputError, match="pruning_ratio"):
        small.prune(ratio)  # type: ignore[arg-type]


def test_ratios_of_another_number_of_blocks(small: SplitNetwork) -> None:
    with pytest.raises(InputError, match="one for each of 3 blocks"):
        small.prune([0.1, 0.2])
    with pytest.raises(InputError, match=r"block 1\]"):
        small.prune([0.1, 1.0, 0.2])


@pytest.mark.parametrize(
    "inputs",
    [torch.ones(6), torch.ones(3, 5), torch.ones(0, 6), torch.full((2, 6), torch.nan), torch.ones(2, 6).long()],
)
def test_wrong_inputs(small: SplitNetwork, inputs: Tensor) -> None:
    with pytest.raises(InputError, match="inputs must"):
        small.run(inputs)


def test_wrong_intermediate(small: SplitNetwork) -> None:
    with pytest.raises(InputError, match=r"split 1 .* \[N, 8\]"):
        small.tail(torch.ones(2, 5), 1)


def test_unusable_networks() -> None:
    class Nothing(Block):
        def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
            return shape

        def work(self, shape: tuple[int, ...]) -> tuple[float, float]:
            return 0.0, 1.0

    with pytest.raises(InputError, match="nothing to prune"):
        SplitNetwork([Nothing()], input_shape=(3,))
    with pytest.raises(InputError, match="at least one Block"):
        SplitNetwork([nn.Linear(2, 2)], input_shape=(2,))  # type: ignore[list-item]
    bad = np.ones((2, 3))
    bad[1, 2] = np.nan
    with pytest.raises(InputError, match=r"block 1, linear.weight\[1, 2\] is nan"):
        dense_network([np.ones((3, 4)), bad])
    with pytest.raises(InputError, match="layer 1 takes 5"):
        dense_network([np.ones((3, 4)), np.ones((2, 5))])
    with pytest.raises(InputError, match="1/mean"):
        dense_network([np.zeros((3, 4)), np.ones((2, 3))]).profile()

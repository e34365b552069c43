"""Sweeps, splits, and carrying out co-inference decisions: what must agree, and what comes out."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from jointopt import systems
from jointopt.errors import InputError, MissingExtraError
from jointopt.inference import SplitNetwork, autoencoder, load_minilm, sentences
from jointopt.problems import CoInference, LayerwiseCoInference
from jointopt.problems.feel import FEEL
from jointopt.problems.ltfl import LTFL
from jointopt.solvers import solve
from jointopt.study import (
    best_method,
    carry_out,
    inference_system,
    inputs_per_inference,
    split_values,
    sweep,
)


@pytest.fixture(scope="module")
def network() -> SplitNetwork:
    return autoencoder(12, 0, encoder=(16, 8), input_levels=255)


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randint(0, 256, (9, 12), generator=torch.Generator().manual_seed(0)).float() / 255


# ------------------------------------------------------------------ sweeps


def test_sweep_is_the_design_solved_again_and_again() -> None:
    problem = LTFL(systems.ltfl(3, 0)).restrict(bits=(4.0, 8.0))
    said: list[str] = []
    frame = sweep(problem, "delay_budget", [0.5, 1.0, 2.0], methods=["exact", "uniform"], report=said.append)
    assert frame["method"].tolist() == ["exact", "uniform"] * 3
    assert len(said) == 6
    for factor, rows in frame.groupby("factor"):
        system = problem.system.with_(delay_budget=problem.system.devices.delay_budget * factor)
        expected = solve(LTFL(system).restrict(bits=(4.0, 8.0)))
        exact = rows[rows["method"] == "exact"].iloc[0]
        assert exact["status"] == expected.status
        assert exact["delay_budget"] == pytest.approx(system.devices.delay_budget.mean())
        if expected.value is None:
            assert np.isnan(exact["value"])
        else:
            assert exact["value"] == expected.value
            assert exact["lower_bound"] == expected.lower_bound
    values = frame[frame["method"] == "exact"]["value"].to_numpy()
    assert np.all(np.diff(values[np.isfinite(values)]) <= 1e-9)


def test_sweep_of_every_structure() -> None:
    assert best_method(LayerwiseCoInference(systems.coinference())) == "convex"
    assert best_method(FEEL(systems.feel(2))) == "exact"
    frame = sweep(LayerwiseCoInference(systems.coinference()), "energy_budget", [1.0, 2.0])
    assert set(frame["status"]) <= {"optimal", "feasible"}
    assert frame["value"].iloc[1] <= frame["value"].iloc[0]


@pytest.mark.parametrize(
    ("field", "factors", "words"),
    [
        ("delay_budgt", [1.0], "did you mean 'delay_budget'"),
        ("gradient_proxy", [1.0], "unknown field 'gradient_proxy'"),
        ("fading", [1.0], "'fading' is no number"),
        ("delay_budget", [0.0], "factor 0.0 must be"),
        ("delay_budget", [float("nan")], "factor nan must be"),
    ],
)
def test_bad_sweeps(field: str, factors: list[float], words: str) -> None:
    with pytest.raises(InputError, match=words):
        sweep(LTFL(systems.ltfl(2, 0)), field, factors)


def test_split_values_hold_the_best_one() -> None:
    problem = CoInference(systems.coinference(3, 3))
    best = solve(problem)
    frame = split_values(problem)
    assert len(frame) == 3 * 17
    assert best.decision is not None
    assert best.evaluation is not None
    for u in range(3):
        rows = frame[(frame["device"] == u) & frame["feasible"]]
        assert rows["pruning_ratio"].min() == pytest.approx(best.decision["pruning_ratio"][u], abs=1e-9)
        chosen = rows[rows["split"] == best.decision["split"][u]].iloc[0]
        assert chosen["distortion"] == pytest.approx(best.evaluation.quantities["distortion"][u], rel=1e-9)
    assert frame.loc[~frame["feasible"], "distortion"].isna().all()
    some = split_values(problem.restrict(split=(2.0, 4.0)))
    assert sorted(some["split"].unique()) == [2, 3, 4]
    with pytest.raises(InputError, match="chooses no split"):
        split_values(LTFL(systems.ltfl(2, 0)))


# ------------------------------------------------------------------ scenario and network


def test_sampled_autoencoder_has_the_sizes_of_the_real_one() -> None:
    sampled = systems.coinference(data="autoencoder").network
    assert inputs_per_inference(sampled, autoencoder(784, 5, input_levels=255)) == 1000
    with pytest.raises(InputError, match=r"network.parameters\[layer 0\]: the scenario has 50176, fcdnn-16 has 4096"):
        inputs_per_inference(sampled, autoencoder(64, 0, input_levels=16))
    with pytest.raises(InputError, match=r"8 layers, fcdnn-16 has 16 blocks; derive the scenario"):
        inputs_per_inference(systems.coinference(data="minilm").network, autoencoder(64, 0))


def test_sampled_minilm_has_the_sizes_of_the_real_one() -> None:
    try:
        real = load_minilm()
    except MissingExtraError as error:
        pytest.skip(str(error))
    system = systems.coinference(data="minilm")
    assert inputs_per_inference(system.network, real) == 1
    own = real.profile()
    for name in ("flops", "fixed_flops", "parameters", "cut_bits"):
        np.testing.assert_array_equal(getattr(system.network, name), own[name], err_msg=name)
    # one rate for all layers: the measured one of all weights
    counts = own["parameters"]
    assert system.network.weight_rate[1] == pytest.approx(counts.sum() / (counts / own["weight_rate"]).sum(), rel=0.01)
    carried = carry_out(solve(CoInference(system)), real, real.tokenize(sentences(8)[0]))
    assert carried.exact.all()


def test_weights_may_differ_sizes_may_not(network: SplitNetwork) -> None:
    section = network.section(lipschitz=3.0, distortion="laplace")
    assert inputs_per_inference(section, network) == 1
    assert inputs_per_inference(section.replace(weight_rate=9.0, amplification=2.0, fixed_flops=0.0), network) == 1
    batch = section.replace(flops=40 * section.flops, cut_bits=40 * section.cut_bits)
    assert inputs_per_inference(batch, network) == 40
    with pytest.raises(InputError, match=r"network.flops\[layer 0\].*for one input"):
        inputs_per_inference(section.replace(flops=1.5 * section.flops), network)
    # 40 times the work for one input's bits
    with pytest.raises(InputError, match=r"network.cut_bits\[split 0\]"):
        inputs_per_inference(batch.replace(cut_bits=section.cut_bits), network)


@pytest.mark.parametrize("measured", [True, False])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_inference_system_is_feasible(seed: int, measured: bool) -> None:
    net = autoencoder(64, seed, input_levels=16)
    system = inference_system(net, 4, seed, measured=measured)
    assert system.network.distortion == ("measured" if measured else "laplace")
    assert inputs_per_inference(system.network, net) == 1000
    result = solve(CoInference(system))
    assert result.status == "optimal"
    layered = solve(LayerwiseCoInference(inference_system(net, 1, seed, measured=measured)))
    assert layered.status == "optimal"
    with pytest.raises(InputError, match="inputs: 0"):
        inference_system(net, inputs=0)


def test_carry_out_a_result(network: SplitNetwork, images: torch.Tensor) -> None:
    system = inference_system(network, 3, 0, inputs=50)
    result = solve(CoInference(system))
    assert result.decision is not None
    report = carry_out(result, network, images)
    assert report.settings["inputs_per_inference"] == 50
    assert report.split.tolist() == result.decision["split"].tolist()
    # planned for one input, not for the fifty of an inference
    assert report.planned_bits.tolist() == [network.cut_bits(int(s)) for s in report.split]
    assert np.all(report.sent_bits == report.planned_bits)
    assert np.all(report.exact)
    assert np.all(report.output_distortion_max <= report.bound)
    same = carry_out(dict(result.decision), network, images, system=system)
    assert same.to_dict() == report.to_dict()


def test_carry_out_ratios_per_layer(network: SplitNetwork, images: torch.Tensor) -> None:
    system = inference_system(network, 1, 0, measured=False)
    result = solve(LayerwiseCoInference(system))
    assert result.decision is not None
    ratios = result.decision["pruning_ratio"]
    assert ratios.shape == (4,)
    report = carry_out(result, network, images)
    share = float(np.sum(ratios * system.network.parameters) / system.network.parameters.sum())
    assert report.pruning_ratio[0] == pytest.approx(share, rel=1e-9)
    # whole weights of every layer by its own ratio
    assert report.removed[0] == pytest.approx(
        float(np.floor(ratios * system.network.parameters + 1e-6).sum() / system.network.parameters.sum())
    )


def test_what_cannot_be_carried_out(network: SplitNetwork, images: torch.Tensor) -> None:
    with pytest.raises(InputError, match="needs its system"):
        carry_out({"pruning_ratio": [0.1], "split": [0]}, network, images)
    federated = solve(LTFL(systems.ltfl(2, 0)))
    with pytest.raises(InputError, match="expected an InferenceSystem, got System"):
        carry_out(federated, network, images)
    none = solve(CoInference(systems.coinference(2, 0, tightness=1e4)), method="random")
    assert none.decision is None
    with pytest.raises(InputError, match="holds no decision"):
        carry_out(none, network, images)

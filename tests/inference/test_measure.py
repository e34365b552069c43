"""Fits, curves, bounds and sensitivities against brute force, closed forms, and the figures of theory 4g."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor
from torch.func import functional_call, jacrev

from jointopt.errors import InputError
from jointopt.inference import (
    RATIOS,
    SentenceEncoder,
    SplitNetwork,
    autoencoder,
    dense_network,
    distortion_curve,
    laplace_fit,
    output_distortion,
    quality,
    sensitivity,
    unit_inputs,
)
from jointopt.models.distortion import curve_distortion, magnitude_distortion


@pytest.mark.parametrize("kind", ["laplace", "normal"])
def test_fit_knows_laplace_from_gauss(kind: str) -> None:
    rng = np.random.default_rng(0)
    weights = getattr(rng, kind)(scale=0.25, size=(300, 400))
    fit = laplace_fit(dense_network([weights, weights[:, :300]]))
    assert fit.names == ("0.linear.weight", "1.linear.weight", "pooled") and fit.count.tolist()[2] == 210_000
    rate = 4.0 if kind == "laplace" else np.sqrt(np.pi / 2) / 0.25
    assert fit.weight_rate == pytest.approx([rate] * 3, rel=0.01)
    good, poor = (fit.ks_laplace, fit.ks_gaussian) if kind == "laplace" else (fit.ks_gaussian, fit.ks_laplace)
    assert (good < 0.006).all() and (poor > 0.03).all()
    assert fit.closer_to_gaussian == (0 if kind == "laplace" else 2)
    # the same distances as SciPy's
    flat = weights.astype(np.float32).flatten().astype(float)
    assert fit.ks_laplace[0] == pytest.approx(stats.kstest(flat, "laplace", (0, np.abs(flat).mean())).statistic)
    assert fit.ks_gaussian[0] == pytest.approx(stats.kstest(flat, "norm", (flat.mean(), flat.std())).statistic)
    assert list(fit.to_frame().index) == list(fit.names)


def test_curve_is_what_pruning_removes(small: SplitNetwork) -> None:
    curve = distortion_curve(small, [0.37, 0.1, 0.8])
    total = sum(float(w.abs().sum()) for _, _, w in small.prunable())
    assert curve["curve_ratio"].tolist() == [0.0, 0.1, 0.37, 0.8]
    for ratio, value in zip(curve["curve_ratio"], curve["curve_distortion"], strict=True):
        assert value == pytest.approx(small.parameter_distortion(small.prune(ratio)).sum() / total, abs=1e-6)
    section = small.section(distortion="measured", pruning_ratio_max=0.9, **distortion_curve(small))
    assert section.curve_ratio[0] == 0.0


def test_curve_of_laplace_weights_is_the_formula() -> None:
    rng = np.random.default_rng(3)
    network = dense_network([rng.laplace(size=(800, 1000)), rng.laplace(size=(500, 800))])
    curve = distortion_curve(network)
    assert curve["curve_distortion"] == pytest.approx(magnitude_distortion(curve["curve_ratio"]), abs=0.002)
    # between points a straight line does not lie below the exact value
    fine = distortion_curve(network, np.linspace(0, 0.98, 337).tolist())
    line = curve_distortion(fine["curve_ratio"], curve["curve_ratio"], curve["curve_distortion"])
    assert (line >= fine["curve_distortion"] - 1e-6).all()


def test_curve_with_weights_that_are_0() -> None:
    weights = np.ones((10, 10))
    weights[:5] = 0.0
    curve = distortion_curve(dense_network([weights]), [0.2, 0.4, 0.6, 0.8])
    assert curve["curve_ratio"].tolist() == [0.0, 0.6, 0.8]
    assert curve["curve_distortion"] == pytest.approx([0.0, 0.2, 0.6])


@pytest.mark.parametrize("seed", range(5))
def test_bound_holds_without_biases(seed: int) -> None:
    rng = np.random.default_rng(seed)
    widths = rng.integers(3, 12, size=5)
    network = dense_network([rng.normal(size=(b, a)) for a, b in itertools.pairwise(widths)])
    inputs = torch.from_numpy(rng.normal(size=(200, widths[0]))).float()
    found = output_distortion(network, inputs, calibration=5)
    assert (found.mean <= found.worst).all() and (found.worst <= found.induced_bound * (1 + 1e-5)).all()
    assert (found.induced_bound <= found.bound * (1 + 1e-9)).all()
    # by hand at one ratio: product of the other layers' greatest column sums
    pruned = network.prune(0.5)
    norms = [float(w.abs().sum(0).max()) for _, _, w in network.prunable()]
    expected = sum(
        np.prod([n for j, n in enumerate(norms) if j != i]) * c
        for i, c in enumerate(network.parameter_distortion(pruned))
    )
    assert found.bound[list(RATIOS).index(0.5)] == pytest.approx(expected)
    assert found.fitted()[list(RATIOS).index(0.5)] == pytest.approx(1.0)
    assert list(found.to_frame().index) == list(RATIOS)


def test_bound_holds_with_equality_for_one_layer() -> None:
    network = dense_network([np.array([[4.0], [-1.0], [2.0], [-3.0]])])
    found = output_distortion(network, torch.ones(1, 1), [0.5])
    assert found.parameter[0] == found.worst[0] == found.bound[0] == 3.0


def test_bound_fails_with_biases() -> None:
    # The bias alone drives the second layer, whatever ||x||_1 is: 4b does not cover it.
    weights = [np.full((2, 2), 1e-3), np.array([[1.0, 2.0], [3.0, 4.0]])]
    inputs = unit_inputs(torch.rand(50, 2, generator=torch.Generator().manual_seed(0)))
    without = output_distortion(dense_network(weights), inputs, [0.5])
    network = dense_network(weights, biases=[np.array([10.0, 10.0]), np.zeros(2)])
    found = output_distortion(network, inputs, [0.5])
    assert without.worst[0] <= without.bound[0]
    assert found.bound[0] == pytest.approx(without.bound[0])
    assert found.worst[0] > 100 * found.bound[0]


def brute_force(network: SplitNetwork, inputs: Tensor) -> float:
    names = [f"blocks.{i}.{name}" for i in range(len(network)) for name in network.block(i).matrices()]
    weights = {name: network.get_parameter(name).detach() for name in names}
    most = 0.0
    for x in inputs:
        slopes = jacrev(lambda w, x=x: functional_call(network, w, (x[None],)).flatten())(weights)
        most = max(most, *(float(slope.detach().abs().sum(0).max()) for slope in slopes.values()))
    return most


@pytest.mark.parametrize("bias", [False, True])
def test_sensitivity_against_all_derivatives(small: SplitNetwork, batch: Tensor, bias: bool) -> None:
    if bias:
        weights = [w.numpy() for _, _, w in small.prunable()]
        small = dense_network(weights, biases=[np.full(len(w), 0.3) for w in weights])
    exact = sensitivity(small, batch[:5])
    assert exact.estimator == "exact" and exact.value == pytest.approx(brute_force(small, batch[:5]), rel=1e-5)
    screened = sensitivity(small, batch[:5], screen=True)
    assert screened.estimator == "screened"
    assert 0.9 * exact.value <= screened.value <= exact.value * (1 + 1e-5)


def test_sensitivity_bounds_small_changes(small: SplitNetwork, batch: Tensor) -> None:
    found = output_distortion(small, batch, [0.05], calibration=len(batch))
    assert 0 < found.worst[0] <= found.surrogate[0] * 1.05
    assert np.isnan(output_distortion(small, batch, [0.05]).surrogate[0])


def test_psnr_is_that_of_the_error() -> None:
    network = autoencoder(16, 0, encoder=(8, 4))
    table = quality(network, torch.rand(30, 16, generator=torch.Generator().manual_seed(0)), [0.0, 0.5])
    assert table["psnr"].to_numpy() == pytest.approx(-10 * np.log10(table["mse"].to_numpy()))


def test_refusals(small: SplitNetwork, batch: Tensor) -> None:
    for ratios in ([], [1.0], [0.1, float("nan")], 0.5):
        with pytest.raises(InputError, match="ratios"):
            output_distortion(small, batch, ratios)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="calibration"):
        output_distortion(small, batch, calibration=21)
    with pytest.raises(InputError, match="was not measured"):
        output_distortion(small, batch, [0.1]).fitted()
    with pytest.raises(InputError, match="all weights of a matrix are the same"):
        laplace_fit(dense_network([np.ones((3, 3))]))
    with pytest.raises(InputError, match="all weights are 0"):
        distortion_curve(dense_network([np.zeros((3, 3))]))
    with pytest.raises(InputError, match="probes"):
        sensitivity(small, batch, probes=0)


# -- MiniLM: the figures of theory 4g ----------------------------------------------------------


def test_minilm_weights_are_roughly_laplace(minilm: SentenceEncoder) -> None:
    fit = laplace_fit(minilm)
    assert len(fit.count) == 37 and fit.closer_to_gaussian == 27
    assert fit.weight_rate[-1] == pytest.approx(21.9, abs=0.05)
    assert fit.ks_laplace[-1] == pytest.approx(0.023, abs=0.0005)
    # the Laplace formula is no upper bound: of all weights sorted together by 31, 17 and 5 %
    pooled = np.concatenate([w.abs().flatten().numpy() for _, _, w in minilm.prunable()]).astype(float)
    sums = np.cumsum(np.sort(pooled))
    together, ratios = [], np.array([0.1, 0.5, 0.9])
    for ratio in ratios:
        together.append(sums[int(ratio * len(pooled)) - 1] / sums[-1])
    assert together / magnitude_distortion(ratios) == pytest.approx([1.31, 1.17, 1.05], abs=0.01)
    # and by more where every matrix is pruned alike, as it is here
    each = distortion_curve(minilm, ratios.tolist())["curve_distortion"][1:]
    assert each / magnitude_distortion(ratios) == pytest.approx([1.41, 1.24, 1.07], abs=0.01)


def test_minilm_outputs_after_pruning(minilm: SentenceEncoder, tokens: Tensor) -> None:
    spearman = quality(minilm, tokens[:40], [0.0, 0.2, 0.3, 0.5])["spearman"]
    assert spearman.iloc[0] == 1.0
    # 4g: .975, .93, .72 on other sentences
    assert spearman.iloc[1:].tolist() == pytest.approx([0.975, 0.93, 0.72], abs=0.08)
    found = output_distortion(minilm, tokens[:10], [0.2, 0.5, 0.8], calibration=1)
    assert np.isnan(found.bound).all() and (np.diff(found.mean) > 0).all()
    # a constant fitted at .5 holds above and is violated below
    fitted = found.fitted()
    assert fitted[0] > 1.5 and fitted[2] < 0.8
    assert found.sensitivity is not None and found.sensitivity.estimator == "screened"
    assert (found.surrogate > found.worst).all()

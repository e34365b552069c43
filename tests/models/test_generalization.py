"""The generalization gap against golden values, sampling, and training on a problem whose gradients are known."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from jointopt.models import convergence, generalization

LN2 = math.log(2.0)

# ------------------------------------------------------------------ proposition 3


def gap(**changes: Any) -> Any:
    given: dict[str, Any] = {
        "samples": 50.0,
        "gradient_proxy": 1.0,
        "mutual_information": 0.0,
        "pruning_ratio": 0.0,
        "parameters": 20.0,
        **changes,
    }
    return generalization.gradient_gap(**given)


@pytest.mark.parametrize(
    ("noise", "information", "bound"), [(0.05, 21.972, 2.312), (0.2, 4.0547, 0.8789), (1.0, 0.19803, 0.5704)]
)
def test_golden_gaussian(noise: float, information: float, bound: float) -> None:
    # 3f: d = 20, n = 50, sigma_g = 1, and the gap itself is 0.4; half a unit of the last printed digit
    known = generalization.gaussian_information(noise, 1.0, 50.0, 20.0)
    assert float(known) == pytest.approx(information, rel=2.5e-5)
    assert float(gap(mutual_information=known)) == pytest.approx(bound, rel=3e-4)
    assert float(gap(mutual_information=known)) > 0.4


@pytest.mark.parametrize("noise", [0.05, 0.2, 1.0])
def test_proposition_covers_sampled_gaussians(noise: float) -> None:
    """F = E||w - x||^2 / 2: the gradients differ by the mean's error, and W tells the more of it the less its noise."""
    rng = np.random.default_rng(0)
    means = rng.standard_normal((4000, 50, 20)).mean(axis=1)
    weights = means + noise * rng.standard_normal(means.shape)
    training, population = weights - means, weights
    measured = np.square(training - population).sum(axis=1).mean()
    assert measured == pytest.approx(0.4, rel=0.02)
    # the closed form of I is that of the jointly Gaussian pair (W, mean), coordinate by coordinate
    correlation = np.mean([np.corrcoef(weights[:, i], means[:, i])[0, 1] ** 2 for i in range(20)])
    known = generalization.gaussian_information(noise, 1.0, 50.0, 20.0)
    assert -10.0 * math.log1p(-correlation) == pytest.approx(float(known), rel=0.03)
    assert measured < float(gap(mutual_information=known))


def test_independent_weights_leave_sampling_noise() -> None:
    # I = 0: the true gap is sigma^2 d / n and the bound 2 ln 2 times that (3b: sampled 1.25, bound 1.73)
    assert float(gap()) / (20.0 / 50.0) == pytest.approx(2.0 * LN2)


def test_sanity_of_the_gap() -> None:
    ratio = np.linspace(0.0, 0.9, 10)
    for law in ("fixed", "proportional"):
        value = gap(mutual_information=3.0, pruning_ratio=ratio, unpruned=2.0, law=law)
        assert np.all(np.diff(value) < 0)
        assert gap(mutual_information=3.0, pruning_ratio=ratio, samples=100.0, unpruned=2.0, law=law) == pytest.approx(
            value / 2
        )
        assert float(gap(mutual_information=3.0, samples=1e12, law=law)) < 1e-9
    fixed, falling = (gap(mutual_information=3.0, pruning_ratio=ratio, law=law) for law in ("fixed", "proportional"))
    assert fixed[0] == falling[0]
    assert fixed - falling == pytest.approx(4.0 / 50.0 * 3.0 * ratio)
    # by hand: 4 x 2 / 50 x (3 x 0.75 + ln 2 / 2 x (0.75 x 20 + 2))
    value = gap(mutual_information=3.0, gradient_proxy=2.0, pruning_ratio=0.25, unpruned=2.0, law="proportional")
    assert value == pytest.approx(8 / 50 * (2.25 + LN2 / 2 * 17))


def test_loss_level_statements() -> None:
    assert generalization.loss_gap(0.5, 4.0, 100.0) == pytest.approx(0.2)
    assert generalization.gradient_gap_from_loss_gap(3.0, 0.2) == pytest.approx(4.8)
    # h = Fhat - F = eps cos(k x) with |h| <= eps: its gradient is at most eps k, its curvature eps k^2 = 2L
    epsilon, k = 0.3, 5.0
    assert (epsilon * k) ** 2 <= generalization.gradient_gap_from_loss_gap(epsilon * k**2 / 2, epsilon)


def test_loss_gap_covers_the_gaussian_mean() -> None:
    """A loss <w, x> of unit w chosen by the data: E|F - Fhat| of the worst direction, seen through noise."""
    rng = np.random.default_rng(1)
    error = rng.standard_normal((20000, 2)) / math.sqrt(30)
    # W is one of two directions, so I <= ln 2; each loss has proxy 1
    picked = error.max(axis=1).mean()
    assert 0.0 < picked < generalization.loss_gap(1.0, LN2, 30.0)


def test_surrogates_of_the_information() -> None:
    assert generalization.entropy_cap(0.5, 100.0, 8.0, 10.0) == pytest.approx(60 * 8 * LN2)
    one = generalization.langevin_information(0.1, 4.0, 0.01, 20.0)
    assert float(one) == pytest.approx(10 * math.log1p(0.01 * 4.0 / (20 * 0.01)))
    assert float(generalization.langevin_information(0.1, 4.0, 0.01, 20.0, 7.0)) == pytest.approx(7 * float(one))
    # one step w = -eta (mean x + noise) from 0 is the Gaussian channel: exact where the signal is Gaussian
    sigma2, n, d, eta, tau = 2.0, 30.0, 5.0, 0.3, 0.2
    channel = generalization.langevin_information(eta, d * sigma2 / n, eta**2 * tau**2, d)
    assert float(channel) == pytest.approx(float(generalization.gaussian_information(tau, sigma2, n, d)))


# ------------------------------------------------------------------ theorem 3

CONSTANTS: dict[str, Any] = {
    "smoothness": 2.0,
    "weight_norm_squared": 3.0,
    "mask_energy": 0.7,
    "gradient_offset": 1.5,
    "gradient_slope": 0.1,
}


def theorem(selected: Any, samples: Any, gradient_gap: Any, ratio: Any, **changes: Any) -> Any:
    given = {"pruning_error": ratio, **CONSTANTS, **changes}
    return convergence.generalization_gap(
        selected=np.asarray(selected, dtype=float),
        samples=np.asarray(samples, dtype=float),
        gradient_gap=np.asarray(gradient_gap, dtype=float),
        pruning_ratio=np.asarray(ratio, dtype=float),
        **given,
    )


def test_theorem_by_hand() -> None:
    got = theorem(
        [1, 0, 1], [10, 20, 30], [0.1, 9.9, 0.3], np.array([0.2, 0.9, 0.5]), pruning_error=np.array([0.1, 0.5, 0.3])
    )
    assert got.generalization == pytest.approx([0.25 * 0.4, 0.0, 0.75 * 1.2])
    assert got.pruning == pytest.approx([0.25 * (48 * 0.1 + 1.4 * 0.2), 0.0, 0.75 * (48 * 0.3 + 1.4 * 0.5)])
    assert got.generalization[1] == got.pruning[1] == 0.0
    assert float(got.selection) == pytest.approx(8 * 1.5 / 9)
    assert float(got.contraction) == pytest.approx(0.8 / 9)
    assert float(got.total) == pytest.approx(float((got.generalization + got.pruning).sum() + got.selection))


def test_golden_selection() -> None:
    # 3f: prefixes of six clients of equal size; chi = 4 Phi when nothing is pruned
    chi = np.array([0.2, 0.3, 0.5, 0.9, 1.5, 3.0])
    selected = np.tril(np.ones((6, 6)))
    got = theorem(selected, np.full(6, 50.0), chi / 4, np.zeros(6), gradient_offset=0.4).total
    assert got == pytest.approx([2.42222, 1.67222, 1.13333, 0.83056, 0.76889, 1.06667], abs=5.1e-6)


def test_nobody_selected_is_infinite_and_left_out_is_nothing() -> None:
    got = theorem([[0, 0], [1, 0]], [10, 20], [0.1, np.inf], np.array([0.2, np.nan]))
    assert got.total[0] == np.inf
    assert np.isfinite(got.total[1])
    assert got.generalization[1].tolist() == [0.4, 0.0]
    assert np.isfinite(got.contraction).all()
    assert float(theorem([1, 1], [10, 20], [0.0, 0.0], np.zeros(2)).total) == 0.0


def test_sanity_of_the_theorem() -> None:
    samples, selected = np.array([10.0, 40.0]), np.ones(2)
    ratio = np.linspace(0.0, 0.9, 7)[:, None] * np.array([1.0, 0.0])
    for k in range(2):
        # sigma_g = 0: pruning only hurts
        assert np.all(np.diff(theorem(selected, samples, np.zeros(2), np.roll(ratio, k, axis=1)).total) > 0)
    known = gap(samples=1e15 * samples, mutual_information=5.0)
    assert float(theorem(selected, samples, known, np.zeros(2)).total) < 1e-12


def test_torch_gives_the_same_and_gradients() -> None:
    samples = torch.tensor([30.0, 50.0, 20.0], dtype=torch.float64)

    def total(selected: Any, ratio: Any) -> Any:
        known = generalization.gradient_gap(
            samples=samples,
            gradient_proxy=0.01,
            mutual_information=40.0,
            pruning_ratio=ratio,
            parameters=1000.0,
            unpruned=10.0,
            law="proportional",
        )
        found = convergence.generalization_gap(
            selected=selected,
            samples=samples,
            gradient_gap=known,
            pruning_ratio=ratio,
            pruning_error=ratio**2,
            **CONSTANTS,
        )
        return found.total + found.contraction

    ratio = torch.tensor([0.1, 0.5, 0.8], dtype=torch.float64, requires_grad=True)
    selected = torch.tensor([1.0, 0.5, 0.25], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(total, (selected, ratio))
    binary = torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64, requires_grad=True)
    slopes = torch.autograd.grad(total(binary, ratio), (binary, ratio))
    assert float(slopes[0][1]) != 0.0  # what taking the second client would change
    assert float(slopes[1][1]) == 0.0
    nobody = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    assert float(total(nobody, ratio).detach()) == math.inf
    for tensor in torch.autograd.grad(total(nobody, ratio), (nobody, ratio)):
        assert bool(torch.isfinite(tensor).all())


@pytest.mark.parametrize("seed", range(4))
def test_theorem_covers_training_on_quadratics(seed: int) -> None:
    """F_k = E_x ||w - x||_H^2 / 2 of Gaussians with known means: rounds of some clients, each with its mask."""
    rng = np.random.default_rng(seed)
    clients, d, rounds, eta, repeats = 4, 30, 25, 0.5, 40
    samples = np.array([20.0, 40.0, 60.0, 30.0])
    selected = np.array([1.0, 1.0, 1.0, 0.0])
    ratio = np.array([0.1, 0.3, 0.2, 0.0])
    curvature = rng.uniform(0.3, 1.0, d)
    centers = rng.normal(0.0, 0.2, d) + 0.05 * rng.standard_normal((clients, d))
    share = samples / samples.sum()
    weight = selected * samples / (selected * samples).sum()
    middle, first = share @ centers, np.full(d, 0.3)
    squares, norm, masked, offset = [], 0.0, 0.0, 0.0
    for _ in range(repeats):
        means = np.stack([rng.normal(c, 0.5, (int(n), d)).mean(axis=0) for c, n in zip(centers, samples, strict=True)])
        w = first
        for _ in range(rounds):
            squares.append(float(np.square(curvature * (w - middle)).sum()))
            norm = max(norm, float(w @ w))
            rank = np.argsort(np.argsort(np.abs(w), kind="stable"))
            step = np.zeros(d)
            for k in range(clients):
                own = curvature * (w - centers[k])
                offset = max(offset, float(own @ own))
                keep = rank >= math.floor(ratio[k] * d + 1e-9)
                if ratio[k] > 0.0:
                    masked = max(masked, float(np.square(own[~keep]).sum()) / ratio[k])
                step += weight[k] * keep * curvature * (w * keep - means[k])
            w = w - eta * step
    known = generalization.gradient_gap(
        samples=samples,
        # a sample's gradient is Gaussian with variance (H_i / 2)^2 in coordinate i
        gradient_proxy=0.25 * float((curvature**2).max()),
        # the two gradients of a quadratic differ by the same vector at every w: what w knows does not matter
        mutual_information=0.0,
        pruning_ratio=ratio,
        parameters=float(d),
    )
    found = convergence.generalization_gap(
        selected=selected,
        samples=samples,
        gradient_gap=known,
        pruning_ratio=ratio,
        pruning_error=ratio,
        smoothness=1.0,
        weight_norm_squared=norm,
        mask_energy=masked,
        gradient_offset=offset,
        gradient_slope=0.0,
    )
    start = 0.5 * float(curvature @ np.square(first - middle))
    bound = float(convergence.average_gradient_bound(found.total, found.contraction, start, eta, float(rounds)))
    print(f"mean ||grad F||^2 {np.mean(squares):.4g}, bound {bound:.4g}")
    assert 0.0 < np.mean(squares) <= bound

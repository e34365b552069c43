"""Theorem 5: its terms by hand, its limits, and a quadratic task whose trajectory it must bound."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from jointopt.models import compression, online

CONSTANTS = {
    "smoothness": 2.0,
    "weight_norm_squared": 3.0,
    "mask_energy": 0.5,
    "learning_rate": 0.02,
    "local_steps": 5,
    "gradient_energy": 4.0,
}


def test_terms_by_hand():
    alpha, rho, omega, sigma = np.array([0.2, 0.5, 0.3]), np.array([0.0, 0.4, 0.8]), np.array([3.0, 0.1, 0.0]), 0.7
    gap = online.online_gap(
        weight=alpha, pruning_ratio=rho, quantization_factor=omega, gradient_variance=sigma, **CONSTANTS
    )
    ell, dd, mm, eta, k, gg = CONSTANTS.values()
    for u in range(3):
        a = alpha[u]
        assert gap.local[u] == pytest.approx(a * ell**2 * eta**2 * k**2 * gg / 3)
        assert gap.pruning[u] == pytest.approx(a * (ell**2 * dd + mm) * rho[u])
        assert gap.quantization[u] == pytest.approx(2 * ell * eta * k * a**2 * omega[u] * gg)
        assert gap.sampling[u] == pytest.approx(2 * ell * eta * k * a**2 * sigma / k)
        assert gap.transmission[u] == 0.0
    c_rho, c_omega = online.online_weights(alpha, **CONSTANTS)
    np.testing.assert_allclose(c_rho * rho, gap.pruning)
    np.testing.assert_allclose(c_omega * omega, gap.quantization)
    lost = online.online_gap(weight=alpha, pruning_ratio=rho, quantization_factor=omega, packet_error=0.25, **CONSTANTS)
    np.testing.assert_allclose(lost.transmission, 2 * ell * eta * k * alpha**2 / 3 * gg * (1 + omega))
    total = float(gap.total.sum())
    bound = online.online_bound(
        total, initial_gap=1.5, drift=0.6, learning_rate=eta, local_steps=k, slots=40, smoothness=ell
    )
    assert float(bound) == pytest.approx(2 * (1.5 + 0.6) / (eta * k * 40) + total)


def test_limits():
    """Nothing pruned, nothing quantized, nothing moving: local SGD; a step too long: no bound."""
    weight = np.full(10, 0.1)
    omega = compression.qsgd_factor(np.full(10, 5000.0), np.array(1e12))
    assert omega.max() < 1e-15
    gap = online.online_gap(
        weight=weight, pruning_ratio=0.0 * weight, quantization_factor=omega, gradient_variance=1.0, **CONSTANTS
    )
    steps = {"learning_rate": 0.02, "local_steps": 5, "smoothness": 2.0, "initial_gap": 1.0}
    value = online.online_bound(gap.total.sum(), drift=0.0, slots=1e9, **steps)
    assert float(value) == pytest.approx(4 * 0.01 * 4 / 3 + 2 * 2 * 0.02 * 0.1 * 1.0, rel=1e-6)
    # of data that stay the bound knows no drift
    assert online.online_bound(0.3, drift=0.0, slots=10, **steps) < online.online_bound(
        0.3, drift=0.1, slots=10, **steps
    )
    assert np.isfinite(online.online_bound(0.3, drift=0.0, slots=10, **steps | {"local_steps": 12}))
    assert np.isinf(online.online_bound(0.3, drift=0.0, slots=10, **steps | {"local_steps": 13}))
    # more levels and fewer components: less noise
    s, d = np.array([1.0, 3.0, 7.0, 255.0]), 4000.0
    assert np.all(np.diff(compression.qsgd_factor(np.full(4, d), s)) < 0)
    assert np.all(np.diff(compression.qsgd_factor((1 - np.linspace(0, 0.9, 9)) * d, np.array(7.0))) < 0)


def test_differentiates_in_torch():
    rho = torch.tensor([0.1, 0.5], dtype=torch.float64, requires_grad=True)
    omega = compression.qsgd_factor((1 - rho) * 1000.0, torch.tensor(7.0, dtype=torch.float64))
    gap = online.online_gap(
        weight=torch.tensor([0.5, 0.5], dtype=torch.float64),
        pruning_ratio=rho,
        quantization_factor=omega,
        **CONSTANTS,
    )
    bound = online.online_bound(
        gap.total.sum(), initial_gap=1.0, drift=0.0, learning_rate=0.02, local_steps=5, slots=10, smoothness=2.0
    )
    (slope,) = torch.autograd.grad(bound, rho)
    # sqrt(d)/s applies here
    noise = 2 * 2 * 0.02 * 5 * 0.25 * 4
    expected = 0.5 * 12.5 - noise * 0.5 * np.sqrt(1000.0 / (1 - rho.detach().numpy())) / 7
    np.testing.assert_allclose(slope, expected, rtol=1e-10)


def qsgd(vector, levels, rng):
    norm = np.linalg.norm(vector)
    if norm == 0.0:
        return vector
    scaled = np.abs(vector) / norm * levels
    low = np.floor(scaled)
    return np.sign(vector) * norm * (low + (rng.random(vector.size) < scaled - low)) / levels


@pytest.mark.parametrize(("levels", "ratio", "moving"), [(7, 0.4, 0.02), (1, 0.2, 0.0), (255, 0.6, 0.05)])
def test_bound_of_a_quadratic_task(levels, ratio, moving):
    """6 vehicles, 50 weights, targets that drift: what is measured stays below the bound."""
    rng = np.random.default_rng(levels)
    size, users, slots, steps, noise = 50, 6, 120, 5, 0.3
    curvature = rng.uniform(0.2, 1.0, (users, size))
    target = rng.normal(0.0, 1.0, (users, size))
    share = rng.dirichlet(np.full(users, 5.0))
    eta = 0.5 / (steps * 1.0)
    drifts = moving * rng.normal(size=(slots, users, size))
    targets = target + np.cumsum(drifts, axis=0)
    ratios = np.floor(ratio * size) / size
    w = np.zeros(size)
    left, norms, energies, hidden, gradients = [], [], [], [], []
    for t in range(slots):
        a = targets[t]
        every = curvature * (w - a)
        left.append(np.linalg.norm(share @ every) ** 2)
        norms.append(w @ w)
        step = np.zeros(size)
        for u in range(users):
            mask = np.ones(size)
            mask[np.argsort(np.abs(w), kind="stable")[: int(ratio * size)]] = 0.0
            hidden.append(np.linalg.norm((1 - mask) * every[u]) ** 2 / ratios)
            x, total = mask * w, np.zeros(size)
            for _ in range(steps):
                gradient = curvature[u] * (x - a[u]) + noise * rng.normal(size=size)
                gradients.append(np.linalg.norm(curvature[u] * (x - a[u])) ** 2)
                energies.append(np.linalg.norm(mask * gradient) ** 2)
                total += mask * gradient
                x = x - eta * mask * gradient
            # the accumulated gradient is what was moved, on kept coordinates
            np.testing.assert_allclose(mask * (mask * w - x) / eta, total, atol=1e-12)
            step += share[u] * qsgd(total, levels, rng)
        w = w - eta * step
    # constants of the trajectory
    radius = np.sqrt(max(norms)) * 1.01
    least = min(0.5 * share @ (curvature * (minimum(curvature, a, share) - a) ** 2).sum(axis=1) for a in targets)
    first = 0.5 * share @ (curvature * targets[0] ** 2).sum(axis=1)
    drift = 0.0
    for t in range(slots - 1):
        old, new = targets[t], targets[t + 1]
        slope = share @ (curvature * (old - new))
        offset = 0.5 * share @ (curvature * (new**2 - old**2)).sum(axis=1)
        drift += radius * np.linalg.norm(slope) + abs(offset)
    omega = compression.qsgd_factor(np.full(users, (1 - ratios) * size), np.array(float(levels)))
    gap = online.online_gap(
        weight=share,
        pruning_ratio=np.full(users, ratios),
        quantization_factor=omega,
        smoothness=1.0,
        weight_norm_squared=radius**2,
        mask_energy=max(hidden),
        learning_rate=eta,
        local_steps=steps,
        gradient_energy=max(*energies, *gradients),
        gradient_variance=noise**2 * size,
    )
    bound = online.online_bound(
        gap.total.sum(),
        initial_gap=first - least,
        drift=drift,
        learning_rate=eta,
        local_steps=steps,
        slots=slots,
        smoothness=1.0,
    )
    assert np.isfinite(bound)
    # of the size that theory 5f names: about 2, below some tens
    assert 0.5 < np.mean(left) < 4.0
    assert np.mean(left) <= float(bound) < 100.0


def minimum(curvature, targets, share):
    weight = share[:, None] * curvature
    return (weight * targets).sum(axis=0) / weight.sum(axis=0)

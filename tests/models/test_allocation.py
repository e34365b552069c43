"""Closed-form split of one band."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.optimize import minimize

from jointopt.errors import InputError
from jointopt.models.allocation import liu_ratio_bandwidth

WORKED: dict[str, Any] = {
    "compute_delay": [0.3, 0.5, 0.4],
    "spectral_efficiency": [2.0, 1.0, 4.0],
    "payload": 1e6,
    "deadline": 0.35,
    "total_bandwidth": 2e6,
}


def test_worked_split() -> None:
    """Theory 3f: bands, ratios and price of the three-device example."""
    answer = liu_ratio_bandwidth(**WORKED)
    assert answer.feasible
    np.testing.assert_allclose(answer.bandwidth, [978160, 244209, 777631], atol=1.0)
    np.testing.assert_allclose(answer.pruning_ratio, [0.568521, 0.923828, 0.514892], atol=1e-6)
    assert answer.price == pytest.approx(2.77972e-7, rel=1e-5)
    assert answer.bandwidth.sum() == pytest.approx(2e6, rel=1e-12)


def test_is_the_optimum() -> None:
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(60):
        t, r = rng.uniform(0.05, 0.6, 4), rng.uniform(0.5, 5.0, 4)
        weight, most = rng.uniform(0.2, 3.0, 4), float(rng.choice([0.5, 0.8, 0.95, 1.0]))
        band = 10.0 ** rng.uniform(5.5, 8.0)
        deadline = rng.uniform(0.2, 1.0)
        answer = liu_ratio_bandwidth(
            compute_delay=t,
            spectral_efficiency=r,
            payload=1e6,
            deadline=deadline,
            total_bandwidth=band,
            weight=weight,
            pruning_ratio_max=most,
        )
        with np.errstate(divide="ignore"):
            room = deadline / (1.0 - most) - t if most < 1.0 else np.full(4, np.inf)
        least = np.where(room > 0.0, 1e6 / (r * np.where(room > 0.0, room, 1.0)), np.inf)
        assert answer.feasible == bool(least.sum() <= band)
        if not answer.feasible:
            seen.add("infeasible")
            continue
        with np.errstate(divide="ignore"):
            ratio = np.maximum(1.0 - deadline / (t + 1e6 / (answer.bandwidth * r)), 0.0)
        np.testing.assert_allclose(answer.pruning_ratio, ratio, rtol=1e-12)
        assert np.all(ratio <= most + 1e-12)
        assert answer.bandwidth.sum() <= band * (1.0 + 1e-12)
        seen.add("clipped" if np.any(answer.bandwidth <= least * (1.0 + 1e-12)) else "free")
        if answer.price == 0.0:
            seen.add("ample")
            np.testing.assert_allclose(answer.pruning_ratio, 0.0, atol=1e-14)
            continue

        def loss(
            share: Any, t: Any = t, r: Any = r, weight: Any = weight, T: float = deadline, B: float = band
        ) -> float:
            return float(weight @ np.maximum(1.0 - T / (t + 1e6 / (np.maximum(share, 1e-12) * B * r)), 0.0))

        other = minimize(
            loss,
            least / band + (1.0 - least.sum() / band) / 4.0,
            method="SLSQP",
            bounds=[(low / band, 1.0) for low in np.maximum(least, 1e-9)],
            constraints={"type": "ineq", "fun": lambda x: 1.0 - x.sum()},
            options={"ftol": 1e-12, "maxiter": 300},
        )
        assert weight @ ratio <= other.fun + 1e-7
    assert seen == {"infeasible", "clipped", "free", "ample"}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("compute_delay", [0.3, 0.0, 0.4]),
        ("payload", -1.0),
        ("deadline", np.nan),
        ("total_bandwidth", np.inf),
        ("weight", 0.0),
        ("pruning_ratio_max", 1.5),
    ],
)
def test_bad_input(name: str, value: Any) -> None:
    with pytest.raises(InputError, match=name):
        liu_ratio_bandwidth(**{**WORKED, name: value})

"""Builders shared by the tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from jointopt.system import Bound, Devices, Learner, Radio, System

# The one-device golden instance of theory 1f T6 at budgets (2 s, 0.05 J): C_rho = 2 L^2 D^2 = 1.
GOLDEN = {
    "samples": 500,
    "cycles_per_sample": 2e5,
    "frequency": 35e6,
    "capacitance": 1e-26,
    "power_min": 0.01,
    "power_max": 0.1,
    "delay_budget": 2.0,
    "energy_budget": 0.05,
    "bandwidth": 1e6,
    "noise_density": 10**-20.4,
    "interference": 0.0,
    "gain": 1e-3 / 200**2,
    "waterfall_threshold": 10**0.0023,
    "parameters": 1_000_000,
    "bits_min": 1,
    "bits_max": 16,
    "header_bits": 0.0,
    "pruning_ratio_max": 0.9,
    "smoothness": 1.0,
    "weight_norm_squared": 0.5,
    "mask_energy": 0.0,
    "gradient_offset": 1.0,
    "quantizer_range": (2.0 / 1e6) ** 0.5,
}


@pytest.fixture(scope="session")
def make_system() -> Callable[..., System]:
    """A system from flat fields over the golden instance; a value of None leaves a field out."""

    def build(devices: int | None = None, **changes: Any) -> System:
        fields = {**GOLDEN, "count": devices, **changes}
        if devices is None and not any(isinstance(v, (list, tuple)) or getattr(v, "ndim", 0) for v in fields.values()):
            fields["count"] = 1
        sections: dict[str, dict[str, Any]] = {"devices": {}, "radio": {}, "learner": {}, "bound": {}}
        kinds = {"devices": Devices, "radio": Radio, "learner": Learner, "bound": Bound}
        for key, value in fields.items():
            owner = next(name for name, kind in kinds.items() if key in kind.model_fields)
            if value is not None:
                sections[owner][key] = value
        return System(**{name: kind(**sections[name]) for name, kind in kinds.items()})

    return build

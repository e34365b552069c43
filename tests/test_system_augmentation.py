"""Sections `augmentation` and `target`: what they refuse, and what becomes of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import jointopt as jo
from jointopt.errors import InputError
from jointopt.system import Augmentation, System, Target

FIELDS: dict[str, Any] = {
    "class_counts": [[3, 1, 0], [2, 2, 2]],
    "gradient_bound": 1.0,
    "synthetic_gap": 0.2,
    "generation_cycles": 1e6,
}


def section(**changes: Any) -> Augmentation:
    return Augmentation(**{**FIELDS, **changes})


@pytest.fixture(scope="module")
def system() -> System:
    return jo.systems.feddpq(4, seed=3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"class_counts": [[3, -1, 0], [2, 2, 2]]}, r"class_counts\[device 0, class 1\]: -1.*at least 0"),
        ({"class_counts": [[3, 1.5, 0], [2, 2, 2]]}, r"class_counts\[device 0, class 1\].*whole number"),
        ({"class_counts": [[3, np.nan, 0], [2, 2, 2]]}, r"class_counts\[device 0, class 1\].*finite"),
        ({"class_counts": [[3, np.inf, 0], [2, 2, 2]]}, r"class_counts\[device 0, class 1\].*finite"),
        ({"class_counts": [[3, 1, 0], [2, 2]]}, r"class_counts\[device 1\]: has 2 values, device 0 has 3"),
        ({"class_counts": [3, 1, 0]}, "class_counts"),
        ({"class_counts": 3}, "class_counts"),
        ({"class_counts": []}, "class_counts"),
        ({"class_counts": [[], []]}, "class_counts"),
        ({"class_counts": "many"}, "class_counts"),
        ({"class_counts": [[True, False, True]]}, "class_counts"),
        ({"class_counts": [["3", 1, 0], [2, 2, 2]]}, "class_counts"),
        ({"class_counts": np.ones((2, 3, 1))}, "class_counts"),
        ({"class_counts": [[3, 1, 0], [0, 0, 0]]}, r"class_counts\[device 1\]: holds no sample"),
        ({"class_mix": [0.5, 0.25, 0.2]}, r"class_mix: the shares add up to 0.95"),
        ({"class_mix": [0.5, 0.5]}, r"class_mix: has 2 values, class_counts has 3"),
        ({"class_mix": [0.5, 0.75, -0.25]}, r"class_mix\[class 2\].*at least 0"),
        ({"class_mix": [0.5, 0.5, np.nan]}, r"class_mix\[class 2\].*finite"),
        ({"gradient_bound": -1.0}, "gradient_bound"),
        ({"gradient_bound": np.nan}, "gradient_bound"),
        ({"synthetic_gap": -0.1}, "synthetic_gap"),
        ({"generation_cycles": -1.0}, "generation_cycles"),
        ({"generation_frequency": 0.0}, "generation_frequency"),
        ({"download_rate": 0.0}, "download_rate"),
        ({"sample_bits": [1.0, 2.0]}, "sample_bits"),
        ({"colour": 1.0}, "augmentation: unknown key 'colour'"),
    ],
)
def test_bad_sections_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        section(**changes)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "gradient_norm: is missing"),
        ({"gradient_norm": 0.0}, "gradient_norm.*above 0"),
        ({"gradient_norm": np.inf}, "gradient_norm.*finite"),
        ({"gradient_norm": 1.0, "participation": 0.0}, "participation.*above 0"),
        ({"gradient_norm": 1.0, "participation": 1.1}, "participation.*at most 1"),
        ({"gradient_norm": 1.0, "margin": 1.0}, "margin.*below gradient_norm"),
        ({"gradient_norm": 1.0, "margin": 0.0}, "margin.*above 0"),
        ({"gradient_norm": 1.0, "delay_limit": -2.0}, "delay_limit.*above 0"),
        ({"gradient_norm": [1.0]}, "gradient_norm"),
    ],
)
def test_bad_targets_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Target(**fields)


def test_counts_must_agree_with_the_devices(system: System) -> None:
    counts = system.augmentation.class_counts.copy()  # type: ignore[union-attr]
    counts[2, 0] += 1.0
    with pytest.raises(InputError, match=r"augmentation.class_counts\[device 2\]: .* samples in all classes"):
        system.with_(class_counts=counts)
    with pytest.raises(InputError, match=r"augmentation.class_counts: has 3 rows for 4 devices"):
        system.with_(class_counts=counts[:3])
    with pytest.raises(InputError, match="generation_frequency"):
        system.with_(generation_frequency=[1e9, 1e9])


def test_mix_is_uniform_when_not_given() -> None:
    np.testing.assert_allclose(section().class_mix, 1.0 / 3.0)
    np.testing.assert_allclose(section(class_mix=1.0 / 3.0).class_mix, 1.0 / 3.0)
    assert section().classes == 3


def test_costs_of_a_sample() -> None:
    own = section().sample_energy(np.array([1e9, 2e9]), np.array([1e-27, 1e-27]))
    np.testing.assert_allclose(own, [1e-3, 4e-3])
    server = section(
        generation_frequency=3e9, generation_capacitance=1e-27, sample_bits=1e3, download_energy=1e-6, download_rate=1e4
    ).spread(2)
    np.testing.assert_allclose(server.sample_energy(np.full(2, 1e9), np.full(2, 1.0)), 9e-3 + 1e-3)
    np.testing.assert_allclose(server.sample_delay(np.full(2, 1e9)), 1e6 / 3e9 + 0.1)


def test_dictionary_and_json_round_trip(system: System) -> None:
    again = System.from_dict(system.to_dict())
    assert again == system
    assert again.augmentation is not None and again.target is not None


def test_copies_have_the_same_mix_to_the_bit() -> None:
    for seed in range(60):
        rng = np.random.default_rng(seed)
        classes = int(rng.integers(2, 30))
        one = section(class_counts=np.ones((1, classes)), class_mix=rng.dirichlet(np.ones(classes)))
        assert Augmentation(**one.to_dict()) == one


def test_tables_are_read_from_toml(system: System, tmp_path: Path) -> None:
    sections = {k: v for k, v in system.to_dict().items() if isinstance(v, dict)}
    lines = []
    for name, fields in sections.items():
        lines.append(f"[{name}]")
        lines += [f"{key} = {value!r}" for key, value in fields.items()]
    path = tmp_path / "one.toml"
    path.write_text("\n".join(lines), encoding="utf-8")
    again = System.from_toml(path)
    assert again.augmentation == system.augmentation and again.target == system.target


def test_take_keeps_both_sections(system: System) -> None:
    some = system.take([2, 0])
    assert some.target == system.target
    before, after = system.augmentation, some.augmentation
    assert before is not None and after is not None
    np.testing.assert_array_equal(after.class_counts, before.class_counts[[2, 0]])
    np.testing.assert_allclose(after.class_mix, before.class_mix, rtol=1e-15)


def test_augmented_fills_up_classes(system: System) -> None:
    full = system.augmented(1.0)
    assert full.augmentation is not None and system.augmentation is not None
    counts = full.augmentation.class_counts
    np.testing.assert_array_equal(counts, counts[:, :1] + np.zeros(counts.shape[1]))
    np.testing.assert_array_equal(full.devices.samples, counts.sum(axis=1))
    assert system.augmented(0.0) == system
    mixed = system.augmented([0.0, 1.0, 0.0, 0.5]).augmentation
    assert mixed is not None
    np.testing.assert_array_equal(mixed.class_counts[0], system.augmentation.class_counts[0])
    np.testing.assert_array_equal(mixed.class_counts[1], counts[1])


@pytest.mark.parametrize("level", [-0.1, 1.1, np.nan, [0.5, 0.5], "half", [0.1, 0.2, 0.3, 2.0]])
def test_bad_levels_are_refused(system: System, level: Any) -> None:
    with pytest.raises(InputError, match="augmentation_level"):
        system.augmented(level)


def test_augmented_needs_the_section() -> None:
    with pytest.raises(InputError, match="augmentation"):
        jo.systems.ltfl(3, 0).augmented(0.5)
    with pytest.raises(InputError, match="augmentation"):
        jo.systems.ltfl(3, 0).with_(synthetic_gap=0.5)


@pytest.mark.parametrize("alpha", [0.0, -1.0, np.nan, "one", True])
def test_sampling_refuses_bad_concentrations(alpha: Any) -> None:
    with pytest.raises(InputError, match="alpha"):
        jo.systems.feddpq(4, 0, alpha=alpha)


def test_sampling_is_seeded_and_keeps_to_the_data_set() -> None:
    one, two, other = (jo.systems.feddpq(8, seed) for seed in (5, 5, 6))
    assert one == two and one != other
    for data, per_class in (("digits", 139), ("fashion-mnist", 6000)):
        system = jo.systems.feddpq(10, 1, data=data, alpha=0.05)
        assert system.augmentation is not None
        counts = system.augmentation.class_counts
        np.testing.assert_array_equal(counts.sum(axis=1), system.devices.samples)
        if counts.sum() <= 10 * per_class:
            assert counts.sum(axis=0).max() <= per_class

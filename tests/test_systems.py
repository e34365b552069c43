"""Sampled systems: seeds, ranges, and an interior worth optimising."""

from __future__ import annotations

import importlib.util
import math
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import scipy.special as sc

from jointopt import systems
from jointopt.errors import InputError, MissingExtraError
from jointopt.federated import Task, train
from jointopt.problems.ltfl import LTFL
from jointopt.solvers import solve
from jointopt.system import System


def test_same_seed_same_system() -> None:
    assert systems.ltfl(7, 3) == systems.ltfl(7, 3)
    assert systems.ltfl(7, 3) != systems.ltfl(7, 4)
    assert systems.ltfl(7, 3).name == "ltfl-digits-7-seed3"


def test_global_random_state_is_left_alone() -> None:
    np.random.seed(1)  # noqa: NPY002
    expected = np.random.random()  # noqa: NPY002
    np.random.seed(1)  # noqa: NPY002
    systems.ltfl(5, 0)
    assert np.random.random() == expected  # noqa: NPY002


@pytest.mark.parametrize("data", ["digits", "fashion-mnist"])
@pytest.mark.parametrize("seed", range(3))
def test_ranges(data: str, seed: int) -> None:
    system = systems.ltfl(50, seed, data=data)
    preset = systems.PRESETS[data]
    devices = system.devices
    assert len(system) == 50
    assert np.all((devices.samples >= preset.samples[0]) & (devices.samples <= preset.samples[1]))
    assert np.all(devices.samples == np.rint(devices.samples))
    assert np.all((devices.frequency >= 20e6) & (devices.frequency <= 50e6))
    assert np.all((system.radio.distance >= 100) & (system.radio.distance <= 500))
    assert system.radio.gain == pytest.approx(1e-3 * system.radio.distance**-3.8)
    assert np.ptp(devices.delay_budget) == 0.0
    assert devices.energy_budget.max() / devices.energy_budget.min() < 3.0
    assert (system.learner.parameters, system.learner.unpruned_parameters) == (
        preset.parameters,
        preset.unpruned_parameters,
    )
    assert system.learner.batch_size == preset.batch_size
    assert np.all(devices.cycles_per_sample == 40 * (preset.parameters + preset.unpruned_parameters))


def test_delay_budget_by_hand() -> None:
    """0.7 of the median delay of a dense round at 8 bits and sqrt(0.01 x 0.1) W, over the tightness."""
    system = systems.ltfl(9, 2, tightness=1.25)
    delays = []
    for u in range(9):
        d = system.devices
        snr = math.sqrt(1e-3) * system.radio.gain[u] / (50e3 * 10**-17.4 * 1e-3)
        rate = 50e3 * math.exp(1 / snr) * sc.exp1(1 / snr) / math.log(2)
        delays.append(d.samples[u] * 40 * 4810 / d.frequency[u] + (4810 * 8 + 64) / rate)
    assert system.devices.delay_budget == pytest.approx(0.7 * np.median(delays) / 1.25, rel=1e-9)


def test_tightness_divides_the_budgets() -> None:
    one, two = systems.ltfl(5, 0), systems.ltfl(5, 0, tightness=2.0)
    assert two.devices.delay_budget == pytest.approx(one.devices.delay_budget / 2)
    assert two.devices.energy_budget == pytest.approx(one.devices.energy_budget / 2)
    assert np.array_equal(one.radio.gain, two.radio.gain)


def test_given_sizes_are_used() -> None:
    system = systems.ltfl(3, 0, samples=[10, 20, 30], parameters=100, unpruned_parameters=5, batch_size=8)
    assert system.devices.samples.tolist() == [10, 20, 30]
    assert (system.learner.parameters, system.learner.unpruned_parameters) == (100, 5)
    assert system.learner.batch_size == 8
    assert systems.ltfl(3, 0, batch_size=16).learner.batch_size == 16
    assert systems.ltfl(3, 0, data="fashion-mnist", batch_size=16).learner.batch_size == 16
    assert systems.ltfl(3, 0, samples=[10, 20, 30]).learner.batch_size is None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"devices": 0}, "devices"),
        ({"devices": -3}, "devices"),
        ({"devices": 2.5}, "devices"),
        ({"devices": True}, "devices"),
        ({"devices": "3"}, "devices"),
        ({"seed": -1}, "seed"),
        ({"seed": 0.5}, "seed"),
        ({"seed": None}, "seed"),
        ({"data": "digts"}, "did you mean 'digits'"),
        ({"tightness": 0.0}, "tightness"),
        ({"tightness": -1.0}, "tightness"),
        ({"tightness": math.nan}, "tightness"),
        ({"tightness": math.inf}, "tightness"),
        ({"devices": 3, "samples": [1, 2]}, "samples"),
        ({"devices": 3, "samples": [1, 2, 0]}, r"samples\[device 2\]"),
        ({"devices": 3, "samples": [1, 2.5, 3]}, r"samples\[device 1\]"),
        ({"parameters": 0}, "parameters"),
        ({"batch_size": 0}, "batch_size"),
    ],
)
def test_errors(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        systems.ltfl(**arguments)


def test_default_scenario_is_interior() -> None:
    """On average over seeds at least half of the devices have an interior ratio, bit-width and power."""
    shares: dict[str, list[float]] = {"pruning_ratio": [], "bits": [], "power": []}
    for seed in range(5):
        problem = LTFL(systems.ltfl(20, seed))
        result = solve(problem)
        assert result.status == "optimal"
        assert result.decision is not None
        for variable in problem.variables:
            value, span = result.decision[variable.name], variable.upper - variable.lower
            inside = (value > variable.lower + 1e-6 * span) & (value < variable.upper - 1e-6 * span)
            shares[variable.name].append(float(inside.mean()))
    print({name: [f"{s:.0%}" for s in many] for name, many in shares.items()})
    for name, many in shares.items():
        assert np.mean(many) >= 0.5, (name, many)


@pytest.mark.parametrize("tightness", [0.9, 1.0, 1.1, 1.2])
def test_default_scenario_is_feasible_nearby(tightness: float) -> None:
    for seed in range(3):
        assert solve(LTFL(systems.ltfl(20, seed, tightness=tightness))).status == "optimal"


# ------------------------------------------------------------------ FEEL


def test_feel_same_seed_same_system() -> None:
    assert systems.feel(7, 3) == systems.feel(7, 3)
    assert systems.feel(7, 3) != systems.feel(7, 4)
    assert systems.feel(7, 3).name == "feel-digits-7-seed3"
    assert System.from_dict(systems.feel(7, 3).to_dict()) == systems.feel(7, 3)


@pytest.mark.parametrize("data", ["digits", "fashion-mnist"])
@pytest.mark.parametrize("seed", range(3))
def test_feel_ranges(data: str, seed: int) -> None:
    system, preset = systems.feel(20, seed, data=data), systems.PRESETS[data]
    devices, radio, learner = system.devices, system.radio, system.learner
    assert (radio.fading, radio.packet_error, radio.total_bandwidth) == ("none", "none", 1e6)
    assert radio.bandwidth == pytest.approx(5e4)
    assert radio.gain == pytest.approx(1e-3 * radio.distance**-3.8)
    assert np.array_equal(radio.distance, systems.ltfl(20, seed, data=data).radio.distance)
    assert np.all((devices.power_max >= 0.1) & (devices.power_max <= 0.2))
    assert np.all((devices.frequency >= 20e6) & (devices.frequency <= 50e6))
    # clients differ much in size, and together fit into the data set
    assert devices.samples.max() / devices.samples.min() > 3.5
    assert devices.samples.mean() == pytest.approx(sum(preset.samples) / 2, rel=0.01)
    assert np.all(devices.samples == np.rint(devices.samples))
    assert (learner.bits_max, learner.parameters, learner.batch_size) == (32, preset.parameters, preset.batch_size)
    assert system.bound.pruning_error == "laplace"
    assert system.generalization is not None
    assert np.all(system.generalization.gradient_proxy == preset.gradient_proxy)
    assert np.all(system.generalization.mutual_information == preset.mutual_information)


def test_feel_budgets_by_hand() -> None:
    """0.7 of the median dense round: raw floats, half of the power, an equal split of the band."""
    system = systems.feel(5, 1, tightness=1.25)
    d, delays, energies = system.devices, [], []
    for u in range(5):
        power = d.power_max[u] / 2
        rate = 50e3 * math.log2(1 + power * system.radio.gain[u] / (50e3 * 10**-17.4 * 1e-3))
        cycles = d.samples[u] * 40 * 4810
        delays.append(cycles / d.frequency[u] + (4810 * 32 + 64) / rate)
        energies.append(2.5e-25 * cycles * d.frequency[u] ** 2 + power * (4810 * 32 + 64) / rate)
    assert d.delay_budget == pytest.approx(0.7 * np.median(delays) / 1.25, rel=1e-9)
    share = d.energy_budget / (0.7 * np.median(energies) / 1.25)
    assert np.all((share >= 0.5) & (share <= 1.5))
    assert systems.feel(5, 1).devices.energy_budget == pytest.approx(1.25 * d.energy_budget)


def test_feel_takes_other_sizes() -> None:
    system = systems.feel(3, 0, samples=[10, 20, 30], parameters=100, unpruned_parameters=5, batch_size=8)
    assert system.devices.samples.tolist() == [10, 20, 30]
    assert (system.learner.parameters, system.learner.unpruned_parameters) == (100, 5)
    assert system.learner.batch_size == 8
    for arguments, words in (
        ({"devices": 0}, "devices"),
        ({"data": "digts"}, "did you mean 'digits'"),
        ({"tightness": 0.0}, "tightness"),
        ({"devices": 3, "samples": [1, 2]}, "samples"),
    ):
        with pytest.raises(InputError, match=words):
            systems.feel(**arguments)  # type: ignore[arg-type]


def test_feel_from_a_task() -> None:
    task = Task.make(devices=6, seed=2)
    system = System.from_task(task, design="feel", seed=1)
    task.check(system)
    assert system == systems.feel(6, 1, samples=task.samples)
    assert System.from_task(task, seed=1) == systems.ltfl(6, 1, samples=task.samples)
    assert System.from_task(task, template=system) == system
    with pytest.raises(InputError, match="design: unknown 'fel'; did you mean 'feel'"):
        System.from_task(task, design="fel")  # type: ignore[arg-type]
    other = Task.make(data=replace(task.data, name="mine"), devices=6, seed=2)
    with pytest.raises(
        InputError, match=r"systems\.feel\(devices=6\)\.with_\(\*\*measure_constants\(task\), \*\*measure_gen"
    ):
        System.from_task(other, design="feel")


def test_feel_trains() -> None:
    """Half of the clients on an equal split of the band: costs are booked for them alone."""
    system = systems.feel(6, 0)
    task = Task.for_system(system, seed=0)
    selected = np.array([1.0, 0.0] * 3)
    decision = {
        "selected": selected,
        "pruning_ratio": 0.25 * selected,
        "bandwidth": system.radio.total_bandwidth / 3 * selected,
        "frequency": system.devices.frequency * selected,
        "power": system.devices.power_max * selected,
    }
    result = train(decision, system, task, rounds=150, learning_rate=0.5, measure_gradient_every=0)
    assert result.status == "completed"
    assert not result.ledger.lost.any()
    assert np.all((result.ledger.bits > 0) == (selected > 0))
    assert result.ledger.bits[0, 0] == (4736 * 3 // 4 + 74) * 32 + 64
    assert result.final_accuracy is not None
    assert result.final_accuracy > 0.4


def test_feel_scenario_has_something_to_choose() -> None:
    """The best selections leave out a fifth to a half, and no ratio is at an end of its range."""
    pytest.importorskip("jointopt.problems.feel")
    from jointopt.problems.feel import FEEL

    for data, seed in (("digits", 0), ("digits", 1), ("fashion-mnist", 0)):
        result = solve(FEEL(systems.feel(20, seed, data=data)))
        assert result.status == "optimal"
        assert result.decision is not None
        taken = result.decision["selected"] > 0.5
        assert 9 <= taken.sum() <= 17, (data, seed, taken.sum())
        ratio = result.decision["pruning_ratio"][taken]
        assert np.mean((ratio > 1e-6) & (ratio < 0.9 - 1e-6)) >= 0.5


# ------------------------------------------------------------------ Sionna

needs_sionna = pytest.mark.skipif(importlib.util.find_spec("sionna") is None, reason="sionna is not installed")


@needs_sionna
def test_sionna_gains() -> None:
    """One test, since the import alone takes ten seconds."""
    from sionna.phy import config

    for scenario in ("umi", "rma"):
        first = systems.sionna_gains(3, 1, draws=2, scenario=scenario)
        assert first.shape == (3,)
        assert first.dtype == np.float64
        assert np.all((first > 1e-18) & (first < 1e-3))
        systems.sionna_gains(2, 9, draws=1)  # draws in between do not matter
        assert np.array_equal(first, systems.sionna_gains(3, 1, draws=2, scenario=scenario))
        assert not np.array_equal(first, systems.sionna_gains(3, 2, draws=2, scenario=scenario))
        assert config.seed is None
        solve(LTFL(systems.ltfl(3, 0).with_(gain=first)))


@pytest.mark.parametrize("module", ["sionna", "sionna.phy"])
def test_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    for loaded in [name for name in sys.modules if name == module or name.startswith(f"{module}.")]:
        monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=r"pip install 'jointopt\[sionna\]'") as caught:
        systems.sionna_gains(2)
    assert caught.value.extra == "sionna"
    assert isinstance(caught.value, ImportError)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"scenario": "uml"}, "did you mean 'um"),
        ({"scenario": "indoor"}, "unknown 'indoor'"),
        ({"devices": 0}, "at least 1"),
        ({"draws": 0}, "at least 1"),
        ({"seed": -1}, "seed"),
        ({"carrier_frequency": -5.0}, "carrier_frequency"),
        ({"carrier_frequency": math.inf}, "carrier_frequency"),
        ({"indoor_probability": 1.5}, "indoor_probability"),
        ({"indoor_probability": math.nan}, "indoor_probability"),
    ],
)
def test_sionna_errors_need_no_sionna(monkeypatch: pytest.MonkeyPatch, arguments: dict[str, Any], words: str) -> None:
    monkeypatch.setitem(sys.modules, "sionna", None)
    with pytest.raises(InputError, match=words):
        systems.sionna_gains(**{"devices": 2, **arguments})

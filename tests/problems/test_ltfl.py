from __future__ import annotations

import math
from typing import Any

import mpmath as mp  # type: ignore[import-untyped]
import numpy as np
import pytest

from jointopt import systems
from jointopt.decision import Decision
from jointopt.errors import InputError
from jointopt.problems import DESIGNS, get
from jointopt.problems.ltfl import LTFL
from jointopt.solvers import solve
from jointopt.system import System

torch = pytest.importorskip("torch")

THREE = {
    "samples": [300, 500, 1200],
    "frequency": [30e6, 40e6, 1e9],
    "bandwidth": [1e6, 2e6, 0.5e6],
    "gain": [2.5e-8, 1e-9, 4e-8],
    "interference": [0.0, 1e-15, 3e-15],
    "delay_budget": [2.0, 3.0, 1.0],
    "energy_budget": [0.05, 0.02, 0.3],
    "quantizer_range": [2e-3, 1e-3, 4e-3],
    "mask_energy": 0.3,
    "gradient_offset": 1.7,
    "gradient_slope": 0.01,
    "header_bits": 64.0,
    "initial_gap": 1.5,
    "learning_rate": 0.05,
    "rounds": 80,
}
DECISION = {"pruning_ratio": [0.0, 0.35, 0.9], "bits": [3, 8, 16], "power": [0.01, 0.043, 0.1]}


def by_hand(system: System, decision: dict[str, Any], objective: str = "gap") -> dict[str, Any]:
    """Theory 1a and 1b, one device at a time, in arithmetic of 40 digits."""
    d, r, m, b = system.devices, system.radio, system.learner, system.bound
    count = len(d.samples)
    total_samples = mp.mpf(float(sum(d.samples)))

    def phi(ratio: Any) -> Any:
        if b.pruning_error == "linear":
            return ratio
        x = -mp.log(1 - ratio)
        return 1 - (1 - ratio) * (1 + x + x**2 / 2)

    def sampling(u: int) -> Any:
        if m.batch_size is None or m.batch_size >= d.samples[u]:
            return mp.mpf(0)  # the full batch has no sampling noise
        return mp.mpf(b.gradient_variance) / m.batch_size

    worst = mp.mpf(m.pruning_ratio_max)
    cap = (
        mp.mpf(b.smoothness) ** 2 * b.weight_norm_squared * phi(worst)
        + b.mask_energy * worst
        + (m.parameters + m.unpruned_parameters)
        * mp.mpf(float(max(b.quantizer_range))) ** 2
        / (4 * (mp.mpf(2) ** m.bits_min - 1) ** 2)
        + max(sampling(u) for u in range(count))
    )
    out: dict[str, Any] = {name: [] for name in ("delay", "energy", "packet_error", "rate", "snr", "payload_bits")}
    parts = dict.fromkeys(("transmission", "pruning", "quantization", "sampling"), mp.mpf(0))
    contraction = mp.mpf(0)
    for u in range(count):
        ratio, bits, power = (mp.mpf(float(decision[k][u])) for k in ("pruning_ratio", "bits", "power"))
        pi = mp.mpf(float(d.samples[u])) / total_samples
        s = power * r.gain[u] / (mp.mpf(float(r.interference[u])) + mp.mpf(float(r.bandwidth[u])) * r.noise_density)
        threshold = r.outage_threshold if r.packet_error == "outage" else r.waterfall_threshold
        x = threshold / s
        if r.fading == "rayleigh":
            rate = r.bandwidth[u] * mp.exp(1 / s) * mp.e1(1 / s) / mp.log(2)
        else:
            rate = r.bandwidth[u] * mp.log(1 + s) / mp.log(2)
        if r.fading == "rayleigh" and r.packet_error == "waterfall":
            lost = 1 - 2 * mp.sqrt(x) * mp.besselk(1, 2 * mp.sqrt(x))
        else:
            lost = 1 - mp.exp(-x)
        kept = (1 - ratio) * m.parameters
        payload = kept * bits + m.unpruned_parameters * bits + m.header_bits
        if m.mask_encoding == "bitmap":
            payload += m.parameters
        if m.mask_encoding == "indices":
            payload += kept * math.ceil(math.log2(m.parameters))
        batch = d.samples[u] if m.batch_size is None else min(m.batch_size, d.samples[u])
        cycles = mp.mpf(float(batch)) * d.cycles_per_sample[u] * (1 if m.compute_law == "mask" else 1 - ratio)
        out["delay"].append(cycles / d.frequency[u] + payload / rate)
        out["energy"].append(d.capacitance[u] * mp.mpf(float(d.frequency[u])) ** 2 * cycles + power * payload / rate)
        out["packet_error"].append(lost)
        out["rate"].append(rate)
        out["snr"].append(s)
        out["payload_bits"].append(payload)
        variance = (kept + m.unpruned_parameters) * mp.mpf(float(b.quantizer_range[u])) ** 2 / (4 * (2**bits - 1) ** 2)
        parts["transmission"] += pi * (8 * b.gradient_offset + 2 * cap) * lost
        parts["pruning"] += (
            pi * 2 * (mp.mpf(b.smoothness) ** 2 * b.weight_norm_squared * phi(ratio) + b.mask_energy * ratio)
        )
        parts["quantization"] += pi * 2 * variance
        parts["sampling"] += pi * 2 * sampling(u)
        contraction += pi * 8 * b.gradient_slope * lost
    gap = sum(parts.values())
    bound = (2 * mp.mpf(b.initial_gap) / (mp.mpf(b.learning_rate) * b.rounds) + gap) / (1 - contraction)
    out |= {"gap": gap, "contraction": contraction, "bound": bound, "parts": parts}
    out["objective"] = bound if objective == "bound" else gap
    return out


def assert_same(system: System, decision: dict[str, Any], objective: Any = "gap") -> None:
    evaluation = LTFL(system, objective=objective).evaluate(Decision(decision))
    with mp.workdps(40):
        expected = by_hand(system, decision, objective)
        for name, value in expected["parts"].items():
            assert float(evaluation.parts[name]) == pytest.approx(float(value), rel=1e-12), name
        for name in (
            "delay",
            "energy",
            "packet_error",
            "rate",
            "snr",
            "payload_bits",
            "gap",
            "contraction",
            "bound",
        ):
            values = np.array(expected[name], dtype=np.float64)
            np.testing.assert_allclose(evaluation.quantities[name], values, rtol=1e-12, err_msg=name)
        assert float(evaluation.objective) == pytest.approx(float(expected["objective"]), rel=1e-12)
        for name, budget in (
            ("delay", system.devices.delay_budget),
            ("energy", system.devices.energy_budget),
        ):
            slack = budget - np.array(expected[name], dtype=np.float64)
            np.testing.assert_allclose(evaluation.slack[name], slack, atol=1e-12 * budget.max(), err_msg=name)
            np.testing.assert_array_equal(evaluation.scale[name], budget)


# ------------------------------------------------------------------ the functions themselves


@pytest.mark.parametrize(
    "laws",
    [
        {},
        {"compute_law": "mask"},
        {"mask_encoding": "bitmap"},
        {"mask_encoding": "indices", "parameters": 1_000_001},
        {"unpruned_parameters": 12_345},
        {"header_bits": 1e6},
        {"batch_size": 32, "gradient_variance": 0.7},
        {"batch_size": 400, "gradient_variance": 0.7},  # more than the first device holds
        {"batch_size": 10_000, "gradient_variance": 0.7},
        {"pruning_error": "laplace"},
        {"fading": "none"},
        {"packet_error": "outage", "outage_threshold": 3.0},
        {"bits_min": 3, "bits_max": 32},
        {
            "compute_law": "mask",
            "mask_encoding": "indices",
            "unpruned_parameters": 777,
            "batch_size": 64,
            "gradient_variance": 2.0,
            "pruning_error": "laplace",
            "fading": "none",
        },
    ],
    ids=lambda laws: "-".join(map(str, laws.values())) or "default",
)
@pytest.mark.parametrize("objective", ["gap", "bound"])
def test_evaluate_by_hand(make_system: Any, laws: dict[str, Any], objective: str) -> None:
    assert_same(make_system(**{**THREE, **laws}), DECISION, objective)


def test_memory(make_system: Any) -> None:
    fields = {
        **THREE,
        "activations": 5000.0,
        "batch_size": 400,
        "unpruned_parameters": 100,
        "parameters": 10_000,
    }
    for law, factor in (("linear", 0.36), ("channels", 0.6), ("mask", 1.0)):
        problem = LTFL(make_system(**fields, memory_law=law))
        memory = problem.evaluate(Decision({**DECISION, "pruning_ratio": [0.64] * 3})).quantities["memory"]
        batch = np.array([300, 400, 400])
        np.testing.assert_allclose(memory, 4 * (3600 + 100) + 4 * 5000 * batch * factor)


def test_error_cap_golden(make_system: Any) -> None:
    # theory 1f T6: E_cap = 3.361111 and Gamma = 1.850387 through a whole system
    system = make_system(
        samples=[50, 30, 20],
        parameters=1000,
        quantizer_range=[0.1, 0.2, 0.1],
        weight_norm_squared=4.0,
        mask_energy=0.5,
        gradient_offset=1.0,
        pruning_ratio_max=0.5,
        bits_min=2,
        fading="none",
        waterfall_threshold=1.0,
    )
    problem = LTFL(system)
    assert problem.error_cap() == pytest.approx(3.361111, abs=5e-7)
    # without fading q = 1 - exp(-1/s): the powers that lose 1, 2 and 5 %
    snr = -1 / np.log1p(-np.array([0.01, 0.02, 0.05]))
    power = snr * system.noise_power / system.radio.gain
    evaluation = problem.evaluate(Decision(pruning_ratio=[0.1, 0.2, 0.3], bits=[4, 6, 8], power=power))
    assert float(evaluation.parts["transmission"]) == pytest.approx(0.309167, abs=5e-7)
    assert float(evaluation.parts["pruning"]) == pytest.approx(1.53, abs=1e-9)
    assert float(evaluation.parts["quantization"]) == pytest.approx(0.011220, abs=5e-7)
    assert float(evaluation.objective) == pytest.approx(1.850387, abs=1e-6)


# ------------------------------------------------------------------ batches, torch, order


def random_decisions(rng: np.random.Generator, *shape: int) -> dict[str, Any]:
    return {
        "pruning_ratio": rng.uniform(0, 0.9, shape),
        "bits": rng.integers(1, 17, shape).astype(float),
        "power": rng.uniform(0.01, 0.1, shape),
    }


def test_a_batch_is_a_loop(make_system: Any) -> None:
    problem = LTFL(make_system(**THREE, pruning_error="laplace"), objective="bound")
    values = random_decisions(np.random.default_rng(0), 4, 5, 3)
    batch = problem.evaluate(Decision(values))
    assert batch.objective.shape == (4, 5)
    assert batch.violation().shape == batch.feasible().shape == (4, 5)
    for i in np.ndindex(4, 5):
        one = problem.evaluate(Decision({k: v[i] for k, v in values.items()}))
        assert float(one.objective) == pytest.approx(batch.objective[i], rel=1e-14)
        assert float(one.violation()) == pytest.approx(batch.violation()[i], rel=1e-12)
        for kind in ("parts", "slack", "quantities"):
            for name, value in getattr(one, kind).items():
                np.testing.assert_allclose(getattr(batch, kind)[name][i], value, rtol=1e-13, err_msg=name)


def test_one_value_serves_all_devices(make_system: Any) -> None:
    problem = LTFL(make_system(**THREE))
    short = problem.evaluate(Decision(pruning_ratio=0.3, bits=8, power=0.05))
    full = problem.evaluate(Decision(pruning_ratio=[0.3] * 3, bits=[8] * 3, power=[0.05] * 3))
    assert float(short.objective) == float(full.objective)
    assert float(short.violation()) == float(full.violation())


def test_torch_gives_the_same_and_gradients(make_system: Any) -> None:
    problem = LTFL(make_system(**THREE, pruning_error="laplace"), objective="bound")
    values = random_decisions(np.random.default_rng(1), 2, 3)
    expected = problem.evaluate(Decision(values))
    actual = problem.evaluate(Decision({k: torch.tensor(v) for k, v in values.items()}))
    np.testing.assert_allclose(actual.objective.numpy(), expected.objective, rtol=1e-13)
    for name, slack in expected.slack.items():
        np.testing.assert_allclose(actual.slack[name].numpy(), slack, rtol=1e-12, atol=1e-15, err_msg=name)
    np.testing.assert_allclose(actual.violation(), expected.violation(), rtol=1e-12)

    bits = torch.tensor(values["bits"])

    def outputs(ratio: Any, power: Any) -> Any:
        at = problem.evaluate(Decision(pruning_ratio=ratio, bits=bits, power=power))
        return at.objective, at.slack["delay"], at.slack["energy"], at.quantities["contraction"]

    ratio = torch.tensor(values["pruning_ratio"], requires_grad=True)
    power = torch.tensor(values["power"], requires_grad=True)
    assert torch.autograd.gradcheck(outputs, (ratio, power))
    assert torch.autograd.gradgradcheck(outputs, (ratio, power))


def test_violation_of_tensors_that_need_gradients(make_system: Any) -> None:
    problem = LTFL(make_system(**THREE))
    power = torch.full((3,), 0.05, dtype=torch.float64, requires_grad=True)
    fixed = {k: torch.tensor(DECISION[k], dtype=torch.float64) for k in ("pruning_ratio", "bits")}
    evaluation = problem.evaluate(Decision(**fixed, power=power))
    plain = problem.evaluate(Decision(**{k: v.numpy() for k, v in fixed.items()}, power=[0.05] * 3))
    assert float(evaluation.violation()) == pytest.approx(float(plain.violation()), rel=1e-12)
    assert bool(evaluation.feasible()) == bool(plain.feasible())


def test_order_of_devices(make_system: Any) -> None:
    system = make_system(**THREE)
    values = random_decisions(np.random.default_rng(2), 3)
    order = [2, 0, 1]
    one = LTFL(system).evaluate(Decision(values))
    other = LTFL(system.take(order)).evaluate(Decision({k: v[order] for k, v in values.items()}))
    assert float(other.objective) == pytest.approx(float(one.objective), rel=1e-14)
    for kind in ("slack", "quantities"):
        for name, value in getattr(one, kind).items():
            moved = np.asarray(value)[order] if np.ndim(value) else value
            np.testing.assert_allclose(getattr(other, kind)[name], moved, rtol=1e-13, err_msg=name)


# ------------------------------------------------------------------ constraints


def test_slack_and_what_is_broken(make_system: Any) -> None:
    problem = LTFL(make_system(**{**THREE, "delay_budget": 1e3, "energy_budget": 1e3}))
    good = {"pruning_ratio": [0.1, 0.2, 0.9], "bits": [1, 8, 16], "power": [0.01, 0.05, 0.1]}
    fine = problem.evaluate(Decision(good))
    assert fine.feasible()
    assert float(fine.violation()) == 0.0
    assert list(fine.broken()) == []
    for name in ("delay", "energy"):
        assert np.all(fine.slack[name] > 0)
    assert float(fine.slack["pruning_ratio"][2]) == 0.0

    def broken(**changes: Any) -> list[tuple[str, int | None, float]]:
        evaluation = problem.evaluate(Decision({**good, **changes}))
        found = list(evaluation.broken())
        assert bool(evaluation.feasible()) == (not found)
        return found

    for changes, name, device, short in (
        ({"pruning_ratio": [0.1, 0.95, 0.9]}, "pruning_ratio", 1, 0.05),
        ({"pruning_ratio": [-0.1, 0.2, 0.9]}, "pruning_ratio", 0, 0.1),
        ({"bits": [1, 8, 17]}, "bits", 2, 1.0),
        ({"bits": [1, 7.75, 16]}, "bits", 1, 0.25),
        ({"power": [0.009, 0.05, 0.1]}, "power", 0, 0.001),
        ({"power": [0.01, 0.05, 0.12]}, "power", 2, 0.02),
    ):
        ((what, where, by),) = broken(**changes)
        assert (what, where) == (name, device)
        assert by == pytest.approx(short, rel=1e-9)


def test_shortfalls_are_in_si_and_violation_is_relative(make_system: Any) -> None:
    generous = LTFL(make_system(**{**THREE, "delay_budget": 1e3, "energy_budget": 1e3}))
    use = generous.evaluate(Decision(DECISION)).quantities
    delay, energy = use["delay"] * [1.0, 0.5, 2.0], use["energy"] * [2.0, 1.0, 0.25]
    evaluation = LTFL(make_system(**{**THREE, "delay_budget": delay, "energy_budget": energy})).evaluate(
        Decision(DECISION)
    )
    found = {(name, device): by for name, device, by in evaluation.broken()}
    assert set(found) == {("delay", 1), ("energy", 2)}
    assert found["delay", 1] == pytest.approx(use["delay"][1] / 2)
    assert found["energy", 2] == pytest.approx(use["energy"][2] * 0.75)
    assert float(evaluation.violation()) == pytest.approx(3.0)  # four times the energy allowed
    assert not evaluation.feasible()
    assert evaluation.feasible(3.1)


def test_contraction_is_a_constraint_of_all(make_system: Any) -> None:
    system = make_system(**{**THREE, "delay_budget": 1e3, "energy_budget": 1e3})
    contraction = float(LTFL(system).evaluate(Decision(DECISION)).quantities["contraction"])
    steep = LTFL(system.with_(gradient_slope=0.01 * 1.5 / contraction), objective="bound")
    evaluation = steep.evaluate(Decision(DECISION))
    assert np.isinf(evaluation.objective)
    ((name, device, by),) = evaluation.broken()
    assert (name, device) == ("contraction", None)
    assert by == pytest.approx(0.5, rel=1e-5)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"pruning_ratio": [0.1] * 2, "bits": [8] * 2, "power": [0.05] * 2}, "2 devices.*has 3"),
        ({**DECISION, "frequency": [1e9] * 3}, "unknown variable 'frequency'"),
        ({**DECISION, "powr": [0.1] * 3}, "unknown variable 'powr'; did you mean 'power'"),
        ({k: v for k, v in DECISION.items() if k != "bits"}, "'bits' is missing"),
    ],
)
def test_check(make_system: Any, values: Any, message: str) -> None:
    problem = LTFL(make_system(**THREE))
    with pytest.raises(InputError, match=message):
        problem.evaluate(Decision(values))


def test_decisions_refuse_what_is_no_decision() -> None:
    for values, message in (
        ({}, "holds no variable"),
        ({"power": [0.1, math.nan]}, r"power\[device 1\].*finite"),
        ({"power": "much"}, "expected numbers"),
        ({"power": [0.1, 0.2], "bits": [1, 2, 3]}, "different numbers of devices"),
    ):
        with pytest.raises(InputError, match=message):
            Decision(values)
    source = np.array([0.1, 0.2])
    decision = Decision(power=source)
    source[0] = 5.0
    assert decision["power"][0] == 0.1
    with pytest.raises(ValueError, match="read-only"):
        decision["power"][0] = 1.0
    assert decision == Decision({"power": [0.1, 0.2]})
    assert decision.with_(bits=[1, 2]).to_dict() == {"power": [0.1, 0.2], "bits": [1.0, 2.0]}


# ------------------------------------------------------------------ the problem as an object


def test_variables_and_settings(make_system: Any) -> None:
    system = make_system(**THREE)
    problem = LTFL(system)
    assert [v.name for v in problem.variables] == ["pruning_ratio", "bits", "power"]
    ratio, bits, power = problem.variables
    assert (ratio.lower[0], ratio.upper[0], bits.lower[0], bits.upper[0]) == (0.0, 0.9, 1.0, 16.0)
    np.testing.assert_array_equal(power.upper, system.devices.power_max)
    assert [v.kind for v in problem.variables] == ["real", "integer", "real"]
    assert problem.settings() == {"objective": "gap"}
    assert LTFL(system, objective="bound").settings() == {"objective": "bound"}
    assert DESIGNS["ltfl"] is LTFL is get("ltfl")
    with pytest.raises(InputError, match="unknown 'ltlf'; did you mean 'ltfl'"):
        get("ltlf")
    with pytest.raises(InputError, match="objective: unknown 'bond'; did you mean 'bound'"):
        LTFL(system, objective="bond")  # type: ignore[arg-type]


def test_restrict(make_system: Any) -> None:
    problem = LTFL(make_system(**THREE), objective="bound")
    narrow = problem.restrict(bits=8, power=(0.02, [0.03, 0.04, 0.05]))
    assert narrow.objective == "bound"
    settings = narrow.settings()
    assert settings["bits"] == {"lower": [8.0] * 3, "upper": [8.0] * 3}
    assert settings["power"] == {"lower": [0.02] * 3, "upper": [0.03, 0.04, 0.05]}
    assert "pruning_ratio" not in settings
    # the objective does not change with the ranges, what is allowed does
    decision = Decision(DECISION)
    assert float(narrow.evaluate(decision).objective) == float(problem.evaluate(decision).objective)
    assert not narrow.evaluate(decision).feasible()
    # step by step is the same as at once, and the parent keeps its ranges
    assert problem.restrict(bits=8).restrict(power=(0.02, [0.03, 0.04, 0.05])).settings() == settings
    assert problem.settings() == {"objective": "bound"}
    assert problem.restrict(bits=32).variables[1].upper[0] == 32


@pytest.mark.parametrize(
    ("ranges", "message"),
    [
        ({"powr": 0.1}, "unknown variable 'powr'; did you mean 'power'"),
        ({"power": (0.2, 0.1)}, "power.*not a finite range"),
        ({"power": math.nan}, "power.*not a finite range"),
        ({"power": math.inf}, "power.*not a finite range"),
        ({"power": 0.0}, "power must lie within"),
        ({"bits": 7.5}, "whole numbers from 2 to 32"),
        ({"bits": 33}, "whole numbers from 2 to 32"),
        ({"bits": 1}, "whole numbers from 2 to 32"),
        ({"pruning_ratio": 0.95}, "pruning_ratio must lie within 0 and 0.9"),
        ({"pruning_ratio": -0.1}, "pruning_ratio must lie within 0 and 0.9"),
    ],
)
def test_restrict_refuses(make_system: Any, ranges: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        LTFL(make_system(**THREE, bits_min=2)).restrict(**ranges)


@pytest.mark.parametrize("value", [[0.1, 0.2], (0.1, 0.2, 0.3), "much", ([0.1, 0.2], 0.3)])
def test_restrict_refuses_other_shapes_with_our_error(make_system: Any, value: Any) -> None:
    with pytest.raises(InputError, match="power"):
        LTFL(make_system(**THREE)).restrict(power=value)


@pytest.mark.parametrize("fading", ["rayleigh", "none"])
def test_without_packet_errors(fading: str) -> None:
    """Nothing is lost, so Gamma is pruning and quantization alone; the exact answer beats every point of a grid."""
    for seed in range(2):
        system = systems.ltfl(1, seed, tightness=1.2).with_(packet_error="none", fading=fading, gradient_slope=50.0)
        problem = LTFL(system)
        result = solve(problem)
        assert result.status == "optimal"
        assert result.decision is not None
        found = problem.evaluate(result.decision)
        assert float(found.parts["transmission"]) == float(found.quantities["contraction"]) == 0.0
        ratio, power = np.meshgrid(np.linspace(0.0, 0.9, 451), np.geomspace(0.01, 0.1, 100))
        least = np.inf
        for bits in range(2, 17):
            points = Decision(
                pruning_ratio=ratio.reshape(-1, 1),
                power=power.reshape(-1, 1),
                bits=np.full((ratio.size, 1), float(bits)),
            )
            grid = problem.evaluate(points)
            least = min(least, float(np.min(grid.objective[grid.feasible()], initial=np.inf)))
        assert float(found.objective) <= least * (1 + 1e-9)
        assert float(found.objective) > 0.97 * least

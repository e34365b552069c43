"""Shadow prices against closed forms and against re-solving with changed budgets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import numpy as np
import pytest

import jointopt as jo
from jointopt.decision import Array, Decision
from jointopt.errors import InputError
from jointopt.models._array import namespace
from jointopt.problem import Evaluation, Problem, Variable
from jointopt.problems.coinference import CoInference
from jointopt.problems.coinference_layers import LayerwiseCoInference
from jointopt.problems.feel import FEEL
from jointopt.problems.ltfl import LTFL
from jointopt.sensitivity import sensitivity
from jointopt.system.base import Quantity, Scenario, Section

BUDGETS = ("delay_budget", "energy_budget")


class Pipes(Section):
    """What each device asks for and may have."""

    title = "devices"
    weight: Annotated[Any, Quantity("J", above=0, axis="device")]
    cap: Annotated[Any, Quantity("W", above=0, axis="device")]


class Source(Section):
    """What all share."""

    supply: Annotated[float, Quantity("W", above=0)]
    offset: Annotated[float, Quantity("J")] = 0.0


class Town(Scenario):
    """Devices at one source."""

    devices: Pipes
    source: Source

    def __len__(self) -> int:
        return int(self.devices.weight.size)


class Filling(Problem):
    """min sum of weight/x with x <= cap and sum of x <= supply: x in proportion to the roots of the weights."""

    name = "filling"
    system_type = Town

    def __init__(self, system: Town) -> None:
        self.system = system

    @property
    def variables(self) -> tuple[Variable, ...]:
        cap = self.system.devices.cap
        return (Variable("x", 1e-3 + 0.0 * cap, cap, unit="W"),)

    def evaluate(self, decision: Decision) -> Evaluation:
        x: Array = decision["x"]
        xp = namespace(x)
        devices, source = self.system.devices, self.system.source
        value = xp.sum(xp.asarray(np.array(devices.weight)) / x, axis=-1) + source.offset
        slack = {"supply": source.supply - xp.sum(x, axis=-1)}
        return Evaluation(objective=value, parts={}, slack=slack, scale={"supply": source.supply}, quantities={})


def town(cap: Any = (9.0, 9.0, 9.0), supply: float = 6.0) -> Filling:
    return Filling(Town(devices=Pipes(weight=[1.0, 4.0, 9.0], cap=list(cap)), source=Source(supply=supply)))


def test_water_filling_by_hand() -> None:
    # V = (sum of sqrt(a))^2/B = 36/6, x = (1, 2, 3); dV/dB = -V/B, dV/da_u = 1/x_u
    found = sensitivity(town(), Decision(x=[1.1, 1.95, 2.9]))
    assert found.value == pytest.approx(6.0, rel=1e-12)
    assert found.decision["x"] == pytest.approx([1.0, 2.0, 3.0], rel=1e-9)
    assert found["supply"] == pytest.approx(1.0, rel=1e-9)
    assert found["weight"] == pytest.approx([-1.0, -1.0 / 2.0, -1.0 / 3.0], rel=1e-9)
    assert np.array_equal(found["cap"], np.zeros(3))
    # an offset of 0 can only grow
    assert found["offset"] == pytest.approx(-1.0, rel=1e-6)
    assert found.multipliers["supply"] == pytest.approx(1.0, rel=1e-9)
    assert found.residual < 1e-9
    assert all(np.all(mask) for mask in found.reliable.values())


def test_a_cap_that_binds_has_a_price_of_its_own() -> None:
    # x_2 = 2 at its cap; the others share 4 as 1 : 2; price (3/4)^2; the cap is worth 9/4 - 9/16
    found = sensitivity(town(cap=(9.0, 9.0, 2.0)), Decision(x=[1.3, 2.6, 2.0]))
    assert found.decision["x"] == pytest.approx([4.0 / 3.0, 8.0 / 3.0, 2.0], rel=1e-9)
    assert found["supply"] == pytest.approx(9.0 / 16.0, rel=1e-9)
    assert found["cap"] == pytest.approx([0.0, 0.0, 9.0 / 4.0 - 9.0 / 16.0], rel=1e-9, abs=1e-12)


def test_kinks_are_marked() -> None:
    # every cap and their sum bind at once: more supply is worth nothing, less costs something
    found = sensitivity(town(cap=(1.0, 2.0, 3.0)), Decision(x=[1.0, 2.0, 3.0]))
    assert not found.reliable["supply"]
    assert not np.any(found.reliable["cap"])
    assert np.all(found.reliable["weight"])
    assert found["weight"] == pytest.approx([-1.0, -1.0 / 2.0, -1.0 / 3.0], rel=1e-9)
    assert "[kink]" in str(found)


def test_shown() -> None:
    found = sensitivity(town(), Decision(x=[1.0, 2.0, 3.0]), ["supply", "weight"])
    assert "1 W more supply lowers the objective by 1 (1 % of 6 W: 0.06)" in str(found)
    assert "1 J more weight for device 1 raises the objective by 0.5" in found.summary()
    table = found.to_pandas()
    assert list(table["parameter"]) == ["supply", "weight", "weight", "weight"]
    assert list(table["device"]) == [-1, 0, 1, 2]
    row = table.iloc[0]
    assert row["improvement_per_percent"] == pytest.approx(0.06, rel=1e-9)
    assert row["unit"] == "W"
    assert row["reliable"]
    assert "more entries" in found.summary(shown=1)


def test_refusals() -> None:
    problem = town()
    with pytest.raises(InputError, match=r"'suply' is no real parameter.*supply"):
        sensitivity(problem, Decision(x=[1.0, 2.0, 3.0]), ["suply"])
    with pytest.raises(InputError, match="unknown parameter"):
        _ = sensitivity(problem, Decision(x=[1.0, 2.0, 3.0]), "supply")["cap"]
    tight = LTFL(jo.systems.ltfl(2, 0, tightness=20))
    with pytest.raises(InputError, match="relaxation"):
        jo.solve(tight).sensitivity()
    # one band is shared, no interference is allowed for
    feel = jo.solve(FEEL(jo.systems.feel(3, 0)))
    with pytest.raises(InputError, match="'interference' cannot be changed here"):
        feel.sensitivity(["interference"])


# ---------------------------------------------------------------------- against re-solving


def resolved(problem: Problem, found: Any, name: str, entry: tuple[int, ...], relative: float = 1e-4) -> float:
    """Improvement per unit by central differences (fourth order) of problems solved anew."""
    amount = found.amount[name]
    step = relative * amount[entry]
    values = []
    for k in (-2, -1, 1, 2):
        changed = np.array(amount)
        changed[entry] += k * step
        system = problem.system.with_(**{name: changed if changed.ndim else float(changed)})
        value = jo.solve(problem.with_system(system), gap=1e-12).value
        assert value is not None
        values.append(value)
    return -(values[0] - 8.0 * values[1] + 8.0 * values[2] - values[3]) / (12.0 * step)


def check(problem: Problem, names: tuple[str, ...], *, largest: bool = False, tolerance: float = 1e-6) -> Any:
    """Solve, fix the integers, and compare prices (or the largest of each kind) with re-solving."""
    result = jo.solve(problem)
    assert result.decision is not None
    assert result.value is not None
    integers = {v.name: result.decision[v.name] for v in problem.variables if v.kind != "real"}
    fixed = problem.restrict(**integers)
    found = result.sensitivity(names)
    assert found.residual < 1e-9
    assert found.value <= result.value * (1.0 + 1e-12)
    assert bool(problem.evaluate(found.decision).feasible())
    for name in names:
        improvement = found[name]
        size = np.abs(improvement)
        # the largest, the smallest that is not 0, and one that is
        places = {int(np.argmax(size))}
        if not largest:
            places |= {int(np.argmin(np.where(size > 0, size, np.inf))), int(np.argmin(size))}
        for place in places:
            entry = (place,) if improvement.ndim else ()
            if not found.reliable[name][entry]:
                continue
            expected = resolved(fixed, found, name, entry)
            rounding = 1e-8 * abs(result.value) / found.amount[name][entry]
            assert improvement[entry] == pytest.approx(expected, rel=tolerance, abs=rounding), (name, entry)
    for name in BUDGETS:
        if name in names:
            assert np.all(found[name] >= 0.0)
    return found


LAWS = {
    "rayleigh": {},
    "steady": {"fading": "none", "pruning_error": "laplace", "mask_encoding": "bitmap"},
    "outage": {"packet_error": "outage", "mask_encoding": "indices", "batch_size": 32},
    "lossless": {"packet_error": "none", "fading": "none", "pruning_error": "laplace"},
    "masked": {"compute_law": "mask", "pruning_error": "laplace", "delay_budget": 3.0},
}


@pytest.mark.parametrize("law", LAWS)
def test_ltfl(law: str) -> None:
    system = jo.systems.ltfl(3, 4).with_(**LAWS[law])
    names = (*BUDGETS, "power_max", "power_min", "frequency", "bandwidth", "gain", "noise_density")
    check(LTFL(system), names)


def test_ltfl_full_bound_and_corner() -> None:
    system = jo.systems.ltfl(3, 2, tightness=0.5).with_(gradient_slope=0.01)
    found = check(LTFL(system, objective="bound"), (*BUDGETS, "power_min", "power_max"))
    # somewhere power ends at its bound, somewhere both budgets bind
    assert np.any(found["power_max"] > 0.0) or np.any(found["power_min"] < 0.0)


def test_one_device_where_both_budgets_bind(make_system: Callable[..., Any]) -> None:
    found = check(LTFL(make_system(energy_budget=0.01)), (*BUDGETS, "frequency", "gain"))
    assert found["energy_budget"][0] > 0.0


def test_interference_of_nothing_may_only_grow(make_system: Callable[..., Any]) -> None:
    problem = LTFL(make_system())
    result = jo.solve(problem, gap=1e-12)
    assert result.decision is not None
    assert result.value is not None
    found = result.sensitivity(["interference"])
    step = 1e-6 * problem.system.noise_power[0]
    fixed = problem.restrict(bits=result.decision["bits"])
    after = [
        jo.solve(fixed.with_system(problem.system.with_(interference=k * step)), gap=1e-12).value for k in (1000, 2000)
    ]
    expected = -(4.0 * after[0] - after[1] - 3.0 * result.value) / (2000.0 * step)
    assert found["interference"][0] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("seed", [0, 1])
def test_feel_and_the_price_of_the_band(seed: int) -> None:
    problem = FEEL(jo.systems.feel(4 - seed, seed))
    found = check(problem, ("total_bandwidth", *BUDGETS, "frequency"), largest=True)
    assert float(found["total_bandwidth"]) > 0.0
    # who is left out has no use for anything
    left = found.decision["selected"] < 0.5
    for name in BUDGETS:
        assert np.all(found[name][left] == 0.0)


@pytest.mark.parametrize(("data", "seed"), [("autoencoder", 1), ("minilm", 0), ("minilm", 1)])
def test_coinference(data: str, seed: int) -> None:
    system = jo.systems.coinference(2, seed, data=data)
    check(CoInference(system), (*BUDGETS, "power_max", "frequency", "bandwidth", "gain", "server_frequency"))


@pytest.mark.parametrize("seed", [0, 1])
def test_coinference_by_layer(seed: int) -> None:
    system = jo.systems.coinference(1, seed)
    found = check(LayerwiseCoInference(system), (*BUDGETS, "power_max", "frequency"), tolerance=1e-5)
    assert found["delay_budget"][0] > 0.0


def test_many_devices_at_once_agree_with_each_alone() -> None:
    problem = LTFL(jo.systems.ltfl(30, 3))
    result = jo.solve(problem)
    everyone = result.sensitivity()
    assert everyone.residual < 1e-9
    assert result.decision is not None
    # the weight of a device in the whole is what it takes along
    few = np.array([3, 17])
    alone = LTFL(problem.system.take(few))
    share = problem.system.weight[few].sum()
    part = sensitivity(alone, Decision({name: value[few] for name, value in result.decision.items()}))
    for name in (*BUDGETS, "power_max", "gain", "bandwidth"):
        assert everyone[name][few] == pytest.approx(part[name] * share, rel=1e-6, abs=1e-9 * np.abs(part[name]).max())

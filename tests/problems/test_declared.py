"""Problems in their users' words."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import jointopt as jo
from jointopt.errors import InputError
from jointopt.models import channel, compression, convergence, cost
from jointopt.models._array import namespace
from jointopt.problem import Variable
from jointopt.problems import DESIGNS
from jointopt.problems.declared import DeclaredProblem
from jointopt.problems.terms import Block, Inner, each, total, worst


def ltfl_model(system: jo.System) -> Any:
    """LTFL's own functions, as a user would write them."""
    learner, bound = system.learner, system.bound
    cap = DESIGNS["ltfl"](system).error_cap()

    def model(s: Any, x: Any) -> dict[str, Any]:
        snr = channel.snr(x.power, s.radio.gain, s.noise_power)
        rate = channel.rate(s.radio.bandwidth, snr, s.radio.fading)
        kept = (1.0 - x.pruning_ratio) * learner.parameters
        payload = compression.payload_bits(
            kept, x.bits, unpruned=float(learner.unpruned_parameters), header=learner.header_bits
        )
        share = compression.compute_factor(x.pruning_ratio, learner.compute_law)
        work = cost.cycles(s.batch, s.devices.cycles_per_sample, share)
        noise = compression.quantization_variance(
            kept + float(learner.unpruned_parameters), s.bound.quantizer_range, x.bits
        )
        lost = channel.packet_error(snr, s.radio.waterfall_threshold, s.radio.packet_error, s.radio.fading)
        gap = convergence.gap(
            weight=s.weight,
            packet_error=lost,
            pruning_ratio=x.pruning_ratio,
            pruning_error=compression.pruning_error(x.pruning_ratio, bound.pruning_error),
            quantization_variance=noise,
            smoothness=bound.smoothness,
            weight_norm_squared=bound.weight_norm_squared,
            mask_energy=bound.mask_energy,
            gradient_offset=bound.gradient_offset,
            gradient_slope=bound.gradient_slope,
            error_cap=cap,
        )
        frequency = s.devices.frequency
        return {
            "gap": gap.total,
            "delay": cost.compute_delay(work, frequency) + cost.upload_delay(payload, rate),
            "energy": cost.compute_energy(work, frequency, s.devices.capacitance)
            + cost.upload_energy(payload, rate, x.power),
        }

    return model


def ltfl_variables(system: jo.System) -> list[Variable]:
    return [
        Variable("pruning_ratio", 0.0, system.learner.pruning_ratio_max),
        Variable("bits", system.learner.bits_min, system.learner.bits_max, kind="integer"),
        Variable("power", system.devices.power_min, system.devices.power_max, unit="W"),
    ]


BUDGETS = {"delay": each("delay") <= "devices.delay_budget", "energy": each("energy") <= "devices.energy_budget"}


def declared_ltfl(system: jo.System, **changes: Any) -> DeclaredProblem:
    words: dict[str, Any] = {
        "variables": ltfl_variables(system),
        "model": ltfl_model(system),
        "objective": total("gap"),
        "constraints": BUDGETS,
    }
    return DeclaredProblem(system, **{**words, **changes})


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("fading", ["rayleigh", "none"])
def test_ltfl_declared_has_the_optimum_of_ltfl(seed: int, fading: str) -> None:
    system = jo.systems.ltfl(devices=4, seed=seed).with_(fading=fading)
    known = jo.solve(DESIGNS["ltfl"](system))
    found = jo.solve(declared_ltfl(system), gap=1e-4)
    assert found.status == known.status == "optimal"
    assert found.value is not None and known.value is not None and found.lower_bound is not None
    assert found.lower_bound <= known.value * (1 + 1e-9)
    assert found.value == pytest.approx(known.value, rel=2e-4)
    assert found.value >= known.value * (1 - 1e-9)
    ours, theirs = declared_ltfl(system).evaluate(known.decision), known.evaluation
    assert theirs is not None
    np.testing.assert_allclose(ours.quantities["energy"], theirs.quantities["energy"], rtol=1e-12)


def test_least_delay_at_a_target_gap_is_where_ltfl_just_reaches_it() -> None:
    system = jo.systems.ltfl(devices=3, seed=1)
    target = 1.1 * float(jo.solve(DESIGNS["ltfl"](system)).value)
    problem = declared_ltfl(
        system,
        objective=worst("delay"),
        constraints={"target": total("gap") <= target, "energy": BUDGETS["energy"]},
    )
    result = jo.solve(problem, gap=1e-3)
    assert result.status == "optimal" and result.value is not None and result.lower_bound is not None

    def least_gap(deadline: float) -> float:
        value = jo.solve(DESIGNS["ltfl"](system.with_(delay_budget=np.full(3, deadline)))).value
        return np.inf if value is None else value

    assert least_gap(result.value * (1 + 1e-9)) <= target * (1 + 1e-6)
    assert least_gap(result.lower_bound * (1 - 1e-6)) > target * (1 - 1e-9)
    assert "shared" in result.message


def test_a_shared_variable_is_settled_by_branch_and_bound() -> None:
    system = jo.systems.ltfl(devices=3, seed=2)
    model = ltfl_model(system)

    def fair(s: Any, x: Any) -> dict[str, Any]:
        q = model(s, x)
        burden = q["energy"] / s.devices.energy_budget
        return {**q, "above": burden - x.least, "below": burden - 1.2 * x.least}

    problem = declared_ltfl(
        system,
        variables=[*ltfl_variables(system), Variable("least", 0.01, 1.0, axis="common")],
        model=fair,
        constraints={**BUDGETS, "above": each("above") >= 0.0, "below": each("below") <= 0.0},
    )
    result = jo.solve(problem, gap=2e-3)
    assert result.status == "optimal" and result.decision is not None and result.evaluation is not None
    assert result.evaluation.feasible()
    burden = np.asarray(result.evaluation.quantities["energy"]) / system.devices.energy_budget
    assert burden.max() <= 1.2 * burden.min() * (1 + 1e-6)
    unfair = jo.solve(declared_ltfl(system)).value
    assert unfair is not None and result.value is not None and result.value >= unfair * (1 - 1e-4)
    # no value on a grid of the shared variable lies below the bound
    for least in np.linspace(0.05, 1.0, 12):
        fixed = jo.solve(problem.restrict(least=float(least)), gap=1e-3)
        if fixed.value is not None and result.lower_bound is not None:
            assert fixed.value >= result.lower_bound * (1 - 1e-9)


def test_other_methods_find_no_better_than_the_bound() -> None:
    system = jo.systems.ltfl(devices=3, seed=3)
    problem = declared_ltfl(system)
    bound = jo.solve(problem, gap=1e-5).lower_bound
    assert bound is not None
    near = jo.solve(problem, method="nlp", starts=3)
    assert near.value is not None and bound * (1 - 1e-9) <= near.value <= bound * 1.02
    assert near.lower_bound is None and near.certificate.kind == "none"
    other = jo.solve(problem, method="bayesian", iterations=3)
    assert other.value is None or other.value >= bound * (1 - 1e-9)
    turn = jo.solve(problem, method="alternating", max_iterations=3)
    assert turn.value is None or turn.value >= bound * (1 - 1e-9)


def quadratic(system: Any, **changes: Any) -> DeclaredProblem:
    """min sum (a - x)^2 + b (1 - x)(1 - y) ...: convex in each of two variables."""

    def model(s: Any, x: Any) -> dict[str, Any]:
        xp = namespace(x.a, x.b)
        return {
            "loss": xp.square(x.a - 0.3) + xp.square(x.b - 0.6) + 0.5 * x.a * x.b,
            "use": x.a + x.b,
            "odd": x.a * x.b,
        }

    words: dict[str, Any] = {
        "variables": [Variable("a", 0.0, 1.0), Variable("b", 0.0, 1.0)],
        "model": model,
        "objective": total("loss"),
        "constraints": {"use": total("use") <= 0.5 * len(system)},
    }
    return DeclaredProblem(system, **{**words, **changes})


def test_convex_blocks_reach_the_optimum_of_a_convex_problem() -> None:
    system = jo.systems.ltfl(devices=3, seed=0)
    blocks = {"a": Block(("a",), convex=True), "b": Block(("b",), convex=True)}
    exact = jo.solve(quadratic(system), gap=1e-6)
    assert exact.value is not None
    # one budget for both variables stops the alternation, as it does everywhere; without it the optimum is reached
    free = jo.solve(quadratic(system, constraints={}), gap=1e-6).value
    turn = jo.solve(quadratic(system, constraints={}, blocks=blocks), method="alternating")
    assert free is not None and turn.value == pytest.approx(free, rel=1e-5)
    tight = jo.solve(quadratic(system, blocks=blocks), method="alternating")
    assert tight.value is not None and tight.value >= exact.value * (1 - 1e-6)


def test_a_closed_step_and_a_gradient_step() -> None:
    system = jo.systems.ltfl(devices=2, seed=0)
    blocks = {"a": Block(("a",), step=lambda s, x: {"a": np.clip(0.3 - 0.25 * x.b, 0.0, 1.0)}), "b": Block(("b",))}
    free = jo.solve(quadratic(system, constraints={}), gap=1e-6).value
    turn = jo.solve(quadratic(system, constraints={}, blocks=blocks), method="alternating")
    assert free is not None and turn.value == pytest.approx(free, rel=1e-6)


def test_a_block_that_is_not_convex_is_named() -> None:
    system = jo.systems.ltfl(devices=2, seed=0)
    problem = quadratic(
        system,
        constraints={"odd": each("odd") >= 0.1},
        blocks={"both": Block(("a", "b"), convex=True)},
    )
    with pytest.raises(InputError, match=r"block 'both': constraint 'odd' is not convex"):
        jo.solve(problem, method="alternating")


def test_the_inner_solution_is_used_for_points_and_never_for_bounds() -> None:
    system = jo.systems.ltfl(devices=3, seed=0)
    good = Inner(("a",), lambda s, x, p: {"a": 0.3 - 0.25 * x.b - 0.5 * p.use / p.loss})
    wrong = Inner(("a",), lambda s, x, p: {"a": 0.9 + 0.0 * x.b})
    plain = jo.solve(quadratic(system), gap=1e-5)
    for inner in (good, wrong):
        other = jo.solve(quadratic(system, inner=inner), gap=1e-5)
        assert other.value == pytest.approx(plain.value, rel=2e-5)
        assert other.lower_bound == pytest.approx(plain.lower_bound, rel=2e-5)


def test_a_ratio_of_totals() -> None:
    system = jo.systems.ltfl(devices=3, seed=0)

    def model(s: Any, x: Any) -> dict[str, Any]:
        return {"spent": 1.0 + x.a * x.a, "gained": 0.5 + x.a}

    problem = DeclaredProblem(
        system, variables=[Variable("a", 0.0, 3.0)], model=model, objective=total("spent") / total("gained")
    )
    result = jo.solve(problem, gap=1e-6)
    a = np.linspace(0.0, 3.0, 300_001)
    assert result.value == pytest.approx(float(np.min((1 + a * a) / (0.5 + a))), rel=1e-6)
    assert result.status == "optimal"


def test_a_limit_on_what_is_free_without_it() -> None:
    """Without the limit the objective is 0, so it gives no scale for the limit's price."""
    system = jo.systems.ltfl(devices=3, seed=0)
    problem = DeclaredProblem(
        system,
        variables=[Variable("a", 0.0, 1.0)],
        model=lambda s, x: {"loss": (1.0 - x.a) ** 2, "cost": x.a + 0.1 * x.a**2},
        objective=total("loss"),
        constraints={"cost": total("cost") <= 2.5},
    )
    result = jo.solve(problem, gap=1e-4)
    # by symmetry everyone takes the same share
    a = (-1.0 + np.sqrt(1.0 + 0.4 * 2.5 / 3.0)) / 0.2
    assert result.value == pytest.approx(3.0 * (1.0 - a) ** 2, rel=2e-4)
    assert result.gap is not None and result.gap <= 1e-4


def small(variables: list[Variable], model: Any, devices: int = 2, **words: Any) -> DeclaredProblem:
    system = jo.systems.ltfl(devices=devices, seed=0)
    given: dict[str, Any] = {"objective": total("cost"), **words}
    return DeclaredProblem(system, variables=variables, model=model, **given)


def test_a_search_that_ends_early_proves_nothing() -> None:
    """Where c is 1 only a thin band is feasible, which no search of boxes hits; it holds the optimum."""

    def model(s: Any, x: Any) -> dict[str, Any]:
        miss = abs(x.a * x.b - 1.0) - 1e-6 - 2.0 * (1.0 - x.c)
        return {"miss": miss, "cost": (x.a - 1.3) ** 2 + (x.b - 1.1) ** 2 - 3.0 * x.c}

    a, b = Variable("a", 0.1, 3.0), Variable("b", 0.1, 3.0)
    problem = small(
        [a, b, Variable("c", 0, 1, kind="binary", axis="common")], model, constraints={"thin": each("miss") <= 0.0}
    )
    good = jo.Decision(a=[1.1, 1.1], b=[1 / 1.1, 1 / 1.1], c=[1.0])
    evaluation = problem.evaluate(good)
    assert evaluation.feasible()
    result = jo.solve(problem, time_limit=20.0)
    assert result.lower_bound is None or result.lower_bound <= float(evaluation.objective) + 1e-9


@pytest.mark.parametrize("devices", [3, 20])
@pytest.mark.parametrize("largest", ["variable", "system"])
def test_a_largest_value_over_the_devices_is_found_out(devices: int, largest: str) -> None:
    def model(s: Any, x: Any) -> dict[str, Any]:
        xp = namespace(x.a)
        top = xp.max(x.a, axis=-1, keepdims=True) if largest == "variable" else np.max(s.radio.gain)
        return {"cost": x.a * s.radio.gain / top + 0.1 / x.a if largest == "system" else top + 0.1 / x.a}

    assert "exact" not in jo.methods(small([Variable("a", 0.1, 1.0)], model, devices))


def test_devices_that_leave_a_shared_variable_little_room_are_not_called_infeasible() -> None:
    """Each device allows two intervals of c; only one is common, and the middle of the range is in neither."""

    def model(s: Any, x: Any) -> dict[str, Any]:
        first = s.radio.gain == problem_system.radio.gain[0]
        xp = namespace(x.c)
        one = xp.minimum(abs(x.c - 0.15) - 0.05, abs(x.c - 0.61) - 0.01)
        two = xp.minimum(abs(x.c - 0.61) - 0.01, abs(x.c - 0.95) - 0.05)
        return {"out": first * one + (1.0 - first) * two, "cost": 1.0 + 0.0 * x.a + (x.c - 0.6) ** 2}

    problem_system = jo.systems.ltfl(devices=2, seed=0)
    problem = DeclaredProblem(
        problem_system,
        variables=[Variable("a", 0.0, 1.0), Variable("c", 0.0, 1.0, axis="common")],
        model=model,
        objective=total("cost"),
        constraints={"within": each("out") <= 0.0},
    )
    result = jo.solve(problem, gap=1e-3)
    assert result.status == "optimal" and result.decision is not None
    assert 0.6 - 1e-9 <= float(result.decision["c"][0]) <= 0.62 + 1e-9


def test_equality_like_limits_are_kept_by_a_local_search() -> None:
    problem = small(
        [Variable("a", 0.1, 3.0), Variable("b", 0.1, 3.0)],
        lambda s, x: {"cost": (x.a - 1.3) ** 2 + (x.b - 1.1) ** 2, "sum": x.a},
        constraints={"least": total("sum") >= 2.0, "most": total("sum") <= 2.0},
    )
    result = jo.solve(problem)
    assert result.feasible and result.value == pytest.approx(2 * 0.09, rel=1e-3)


def test_an_inner_solution_of_whole_numbers_is_rounded() -> None:
    problem = small(
        [Variable("a", 0.0, 3.0), Variable("n", 1, 5, kind="integer")],
        lambda s, x: {"cost": (x.n - 2.45) ** 2 + 0.1 * x.a},
        inner=Inner(("n",), lambda s, x, p: {"n": 2.45 + 0.0 * x.a}),
    )
    result = jo.solve(problem, gap=1e-6)
    assert result.evaluation is not None and result.evaluation.feasible()
    assert result.value == pytest.approx(2 * 0.45**2)


def test_a_limit_of_one_device_leaves_no_duality_gap() -> None:
    problem = small(
        [Variable("n", 0, 10, kind="integer")],
        lambda s, x: {"cost": (x.n - 7.0) ** 2, "use": 3.0 * x.n},
        devices=1,
        constraints={"most": total("use") <= 10.0},
    )
    result = jo.solve(problem)
    assert result.status == "optimal" and result.value == pytest.approx(16.0)


def test_a_quotient_whose_lower_part_may_vanish_has_no_bound() -> None:
    problem = small(
        [Variable("a", 0.0, 2.0)],
        lambda s, x: {"above": x.a + 0.1, "below": x.a - 0.5},
        objective=total("above") / total("below"),
    )
    result = jo.solve(problem, time_limit=10.0)
    assert result.status != "optimal" and result.gap is None


def test_the_worst_of_what_no_variable_moves() -> None:
    problem = small(
        [Variable("a", 0.0, 1.0)],
        lambda s, x: {"fixed": s.devices.delay_budget, "use": x.a},
        objective=worst("fixed"),
        constraints={"some": total("use") >= 0.5},
    )
    result = jo.solve(problem)
    assert result.value == pytest.approx(float(np.max(problem.system.devices.delay_budget)))
    ratio = small([Variable("a", 0.1, 1.0)], lambda s, x: {"z": x.a}, objective=total("z") / total("z"))
    assert "exact" not in jo.methods(ratio)


def test_functions_of_their_own_cost_the_certificate() -> None:
    system = jo.systems.ltfl(devices=2, seed=0)
    problem = quadratic(
        system,
        objective=lambda q: (q.loss**2).sum(-1),
        constraints={"spread": lambda q: 0.5 - abs(q.a[..., 0] - q.a[..., 1])},
    )
    assert "exact" not in jo.methods(problem)
    with pytest.raises(InputError, match="objective is a function of its own"):
        jo.solve(problem, method="exact")
    result = jo.solve(problem)
    assert result.method == "nlp" and result.lower_bound is None and result.certificate.kind == "none"
    assert "function of its own" in result.message
    assert result.feasible


def test_devices_that_depend_on_each_other_are_found_out() -> None:
    system = jo.systems.ltfl(devices=3, seed=0)

    def model(s: Any, x: Any) -> dict[str, Any]:
        return {"loss": (x.a - x.a.mean(axis=-1, keepdims=True)) ** 2 + x.a}

    problem = DeclaredProblem(system, variables=[Variable("a", 0.1, 1.0)], model=model, objective=total("loss"))
    assert "exact" not in jo.methods(problem)
    assert problem.capabilities().note


def test_limits_follow_the_system() -> None:
    problem = declared_ltfl(jo.systems.ltfl(devices=3, seed=0))
    wider = problem.with_system(problem.system.with_(energy_budget=2.0 * problem.system.devices.energy_budget))
    first, second = jo.solve(problem, gap=1e-4), jo.solve(wider, gap=1e-4)
    assert first.value is not None and second.value is not None and second.value < first.value


def test_infeasible_says_so() -> None:
    system = jo.systems.ltfl(devices=3, seed=0)
    result = jo.solve(declared_ltfl(system, constraints={**BUDGETS, "all": total("energy") <= 1e-9}))
    assert result.status == "infeasible" and result.value is None and result.lower_bound is None
    assert result.infeasibility and "energy" in result.infeasibility[0].text
    alone = jo.solve(declared_ltfl(system.with_(delay_budget=np.array([1e-6, 1.0, 1.0]))))
    assert alone.status == "infeasible" and alone.decision is not None


def test_callback_and_time_limit_keep_the_incumbent() -> None:
    system = jo.systems.ltfl(devices=3, seed=1)
    problem = declared_ltfl(system, objective=worst("delay"), constraints={"energy": BUDGETS["energy"]})
    seen = []

    def stop(progress: Any) -> None:
        seen.append(progress)
        if len(seen) == 2:
            raise KeyboardInterrupt

    result = jo.solve(problem, gap=1e-9, callback=stop)
    assert result.status == "interrupted" and result.value is not None and result.lower_bound is not None
    assert result.lower_bound <= result.value

    class MistakeError(Exception):
        pass

    def fail(progress: Any) -> None:
        if progress.best is not None:
            raise MistakeError

    with pytest.raises(MistakeError) as caught:
        jo.solve(problem, gap=1e-9, callback=fail)
    assert caught.value.incumbent.value is not None  # type: ignore[attr-defined]


def test_a_saved_result_is_read_with_its_problem(tmp_path: Any) -> None:
    from jointopt.study import load_result

    problem = declared_ltfl(jo.systems.ltfl(devices=3, seed=0)).restrict(bits=(2, 5))
    result = jo.solve(problem, gap=1e-3)
    path = result.save(tmp_path / "result.json")
    other = declared_ltfl(jo.systems.ltfl(devices=3, seed=9))
    loaded, decision, data = load_result(path, problem=other)
    assert float(loaded.evaluate(decision).objective) == pytest.approx(data["value"], rel=1e-12)
    assert loaded.variables[1].upper.max() == 5
    with pytest.raises(InputError, match="unknown"):
        load_result(path)
    with pytest.raises(InputError, match="is about 'declared', not 'other'"):
        load_result(path, problem=declared_ltfl(problem.system, name="other"))


BAD = {
    "unknown quantity": ({"objective": total("los")}, "gives no 'los'; did you mean 'loss'"),
    "each as objective": ({"objective": each("loss")}, "many numbers"),
    "objective of no kind": ({"objective": 3.0}, "objective: expected total"),
    "crossed bounds": ({"variables": lambda s: [Variable("a", 1.0, 0.0)]}, "lower bound 1 is above upper bound 0"),
    "infinite bound": ({"variables": [Variable("a", 0.0, np.inf), Variable("b", 0, 1)]}, "must be finite"),
    "fractional integer": ({"variables": [Variable("a", 0.5, 2, kind="integer")]}, "no whole number"),
    "wrong number of bounds": ({"variables": [Variable("a", np.zeros(2), 1.0)]}, r"shape \(2,\), expected \(3,\)"),
    "twice": ({"variables": [Variable("a", 0, 1), Variable("a", 0, 1)]}, "declared twice"),
    "no variables": ({"variables": []}, "none are declared"),
    "limit nan": ({"constraints": {"use": total("use") <= np.nan}}, "must be finite"),
    "limit of wrong length": ({"constraints": {"use": each("use") <= [1.0, 2.0]}}, "must be a number or 3 numbers"),
    "limit unknown": ({"constraints": {"use": each("use") <= "devices.nothing"}}, "the system has no"),
    "constraint of no kind": ({"constraints": {"use": 3.0}}, "must be a constraint or a function"),
    "worst as constraint": ({"constraints": {"use": worst("use") <= 1.0}}, "say each"),
    "inner unknown": ({"inner": Inner(("c",), lambda s, x, p: {})}, "inner: unknown variable 'c'"),
    "block unknown": ({"blocks": {"k": Block(("c",))}}, "block 'k': unknown variable 'c'"),
    "nan": ({"model": lambda s, x: {"loss": x.a * np.nan, "use": x.b}}, r"'loss'\[device 0\] is nan at a=0"),
    "complex": ({"model": lambda s, x: {"loss": x.a + 1j, "use": x.b}}, "'loss' is complex"),
    "text": ({"model": lambda s, x: {"loss": "much", "use": x.b}}, "'loss' is"),
    "wrong shape": ({"model": lambda s, x: {"loss": np.zeros(7), "use": x.b}}, r"'loss' has shape \(7,\)"),
    "no mapping": ({"model": lambda s, x: x.a}, "expected quantities by name"),
    "undeclared variable": ({"model": lambda s, x: {"loss": x.c, "use": x.b}}, "no variable 'c' is declared"),
    "objective of wrong shape": ({"objective": lambda q: q.loss}, r"objective: gave shape \(3,\)"),
    "constraint of wrong shape": ({"constraints": {"k": lambda q: np.zeros(5)}}, r"'k': gave shape \(5,\)"),
    "constraint nan": ({"constraints": {"k": lambda q: q.loss.sum(-1) * np.nan}}, "'k' is nan"),
    "quantity named like a variable": (
        {"model": lambda s, x: {"loss": x.a, "use": x.b, "a": x.b}},
        "name of a variable",
    ),
    "named like a variable": ({"constraints": {"a": total("use") <= 1.0}}, "'a' is the name of a variable"),
    "axis": ({"variables": [Variable("a", 0, 1, axis="layer"), Variable("b", 0, 1)]}, "axis 'layer'"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_declarations_are_refused_before_any_work(case: str) -> None:
    changes, text = BAD[case]
    with pytest.raises(InputError, match=text):
        quadratic(jo.systems.ltfl(devices=3, seed=0), **changes)


def test_bad_steps_are_refused() -> None:
    system = jo.systems.ltfl(devices=2, seed=0)
    for step, text in (
        (lambda s, x: {}, "gave no 'a'"),
        (lambda s, x: {"a": np.array([np.nan, 0.0])}, "is nan"),
        (lambda s, x: {"a": np.array([1j, 0.0])}, "is complex"),
    ):
        problem = quadratic(system, blocks={"k": Block(("a",), step=step)})
        with pytest.raises(InputError, match=text):
            jo.solve(problem, method="alternating")
    with pytest.raises(InputError, match="takes whole numbers only"):
        jo.solve(
            declared_ltfl(jo.systems.ltfl(devices=2), blocks={"k": Block(("bits",), convex=True)}), method="alternating"
        )

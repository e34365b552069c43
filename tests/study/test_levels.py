"""What synthetic samples cost and save; constants of unbiased aggregation."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

import jointopt as jo
from jointopt.errors import InputError
from jointopt.problems import FedDPQ
from jointopt.study import level_tradeoff, task_system


def test_levels_are_the_restricted_problem_and_hold_the_optimum() -> None:
    problem = FedDPQ(jo.systems.feddpq(4, 1))
    frame = level_tradeoff(problem, count=5, gap=1e-3)
    good = frame.dropna(subset=["energy"])
    assert len(good) >= 2
    np.testing.assert_allclose(good["generation"] + good["computing"] + good["upload"], good["energy"], rtol=1e-9)
    assert np.all(np.diff(frame["synthetic_samples"]) > 0.0)
    best = jo.solve(problem, gap=1e-3)
    assert best.lower_bound is not None
    assert good["energy"].min() >= best.lower_bound * (1.0 - 1e-9)
    level = float(good["augmentation_level"].iloc[0])
    again = jo.solve(problem.restrict(augmentation_level=level), gap=1e-3)
    assert again.value == pytest.approx(float(good["energy"].iloc[0]), rel=1e-9)


def test_levels_out_of_reach_have_no_energy() -> None:
    system = jo.systems.feddpq(4, 1)
    floor = jo.solve(FedDPQ(system, objective="floor").restrict(augmentation_level=0.0)).value
    assert floor is not None
    frame = level_tradeoff(FedDPQ(system.with_(gradient_norm=0.97 * floor)), count=3)
    assert np.isinf(frame["rounds"].iloc[0]) and np.isnan(frame["energy"].iloc[0])


def test_bad_arguments() -> None:
    with pytest.raises(InputError, match="FedDPQ"):
        level_tradeoff(jo.problems.LTFL(jo.systems.ltfl(2)))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="count"):
        level_tradeoff(FedDPQ(jo.systems.feddpq(3)), count=1)


@pytest.fixture(scope="module")
def task() -> jo.Task:
    return jo.Task.make("digits", devices=5, alpha=0.3, sizes=np.full(5, 40), seed=0)


def test_every_federated_design_has_a_system_for_a_task(task: jo.Task) -> None:
    for name, design in jo.problems.DESIGNS.items():
        if design.system_type is jo.System:
            system = task_system(design, task, seed=0)
            task.check(system)
            assert design(system).name == name
    with pytest.raises(InputError, match="coinference"):
        task_system(jo.problems.CoInference, task)


def test_typical_constants_of_unbiased_aggregation(task: jo.Task) -> None:
    system = jo.System.from_task(task, seed=0, design="feddpq").with_(learning_rate=0.1, rounds=20)
    calibration = jo.calibrate(task, rounds=20, learning_rate=0.1, seed=0, points=3, draws=20)
    fitted = calibration.apply(system, aggregation="unbiased")
    walk, bound, section = calibration.walk, fitted.bound, fitted.augmentation
    assert section is not None
    assert bound.learning_rate * bound.smoothness <= 1.0 + 1e-12
    # what Z_u stands for on average is what was measured of it
    mix = section.class_counts / section.class_counts.sum(axis=1, keepdims=True)
    skew = np.abs(mix - section.class_mix).sum(axis=1)
    square = walk.weight**2
    counted = float(np.sum(square * 3.0 * (section.gradient_bound * skew) ** 2))
    assert counted == pytest.approx(float(np.sum(square * walk.apart.mean(axis=0))), rel=1e-9)
    # the product with L^2 is that of the other bound
    other = calibration.apply(system).bound
    assert bound.smoothness**2 * bound.weight_norm_squared == pytest.approx(
        other.smoothness**2 * other.weight_norm_squared, rel=1e-9
    )
    assert math.isfinite(float(bound.quantizer_range.max()))
    for text, arguments in (
        ("aggregation", {"aggregation": "unbiase"}),
        ("typical", {"aggregation": "unbiased", "kind": "worst"}),
    ):
        with pytest.raises(InputError, match=text):
            calibration.apply(system, **arguments)
    with pytest.raises(InputError, match="augmentation"):
        calibration.apply(system.replace(augmentation=None), aggregation="unbiased")


def test_results_train_as_their_bound_assumes(task: jo.Task) -> None:
    system = jo.System.from_task(task, seed=0, design="feddpq")
    result = jo.solve(FedDPQ(system).restrict(augmentation_level=0.0), method="no_power_control", gap=0.05)
    decision = FedDPQ(system).capabilities().blocks.start()  # type: ignore[union-attr]
    result = replace(result, decision=decision.with_(augmentation_level=np.zeros(1)))
    run = jo.train(result, task, rounds=2, measure_gradient_every=0)
    assert run.settings["aggregation"] == "unbiased" and set(run.settings["attendance"]) == {0.3}
    other = jo.train(result, task, rounds=2, measure_gradient_every=0, aggregation="received")
    assert other.settings["aggregation"] == "received"

"""Training with synthetic samples: what is trained, what it costs, what is refused, what is read off it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from jointopt.decision import Decision
from jointopt.errors import InputError
from jointopt.federated.ledger import generation_cost
from jointopt.federated.outcome import Curve, Reached
from jointopt.federated.plan import trainable
from jointopt.federated.task import Losses, Task
from jointopt.federated.training import train
from jointopt.problems.ltfl import LTFL
from jointopt.system import System

DECISION = {"pruning_ratio": 0.3, "bits": 6, "power": 0.1}
LEVEL = {**DECISION, "augmentation_level": 0.4}
OPTIONS: dict[str, Any] = {"rounds": 6, "seed": 1, "learning_rate": 0.1}


@pytest.fixture(scope="module")
def skewed() -> Task:
    return Task.make(data="digits", network="mlp", devices=4, alpha=0.3, seed=3, hidden=(16,))


@pytest.fixture
def skewed_system(skewed: Task, dpq_system: Callable[..., System]) -> System:
    return dpq_system(skewed)


# What is trained --------------------------------------------------------------------------------------------


def test_it_is_training_on_the_augmented_task(
    skewed: Task, skewed_system: System, drawn: Callable[..., Any], system_for: Callable[..., System]
) -> None:
    result = train(LEVEL, skewed_system, skewed, generator=drawn(skewed.data), **OPTIONS)
    task = skewed.augmented(drawn(skewed.data), 0.4, seed=OPTIONS["seed"])
    bare = system_for(task)  # without sections that have anything to do with it
    by_hand = train(DECISION, bare, task, **OPTIONS)
    np.testing.assert_array_equal(result.weights, by_hand.weights)
    for one, two in zip(result.rows, by_hand.rows, strict=True):
        for name in ("train_loss", "global_loss", "gradient_norm_squared", "test_accuracy", "round_energy"):
            assert one[name] == two[name]
    assert result.system is skewed_system
    np.testing.assert_array_equal(result.ledger.system.devices.samples, task.samples)
    assert result.decision["augmentation_level"].tolist() == [0.4] * 4


def test_a_level_that_adds_nothing_is_the_plain_run(skewed: Task, skewed_system: System) -> None:
    plain = train(DECISION, skewed_system, skewed, **OPTIONS)
    none = train({**DECISION, "augmentation_level": 0.0}, skewed_system, skewed, **OPTIONS)
    assert none.rows == plain.rows
    np.testing.assert_array_equal(none.weights, plain.weights)
    for name, booked in plain.ledger.state().items():
        np.testing.assert_array_equal(booked, none.ledger.state()[name], err_msg=name)
    one, two = plain.to_dict(), none.to_dict()
    assert two["decision"].pop("augmentation_level") == [0.0] * 4
    assert {**one, "seconds": 0} == {**two, "seconds": 0}


def test_common_random_numbers_over_levels(skewed: Task, skewed_system: System, drawn: Callable[..., Any]) -> None:
    runs = [
        train({**DECISION, "augmentation_level": level}, skewed_system, skewed, generator=drawn(skewed.data),
              attendance=0.5, **OPTIONS)
        for level in (0.0, 0.3, 1.0)
    ]  # fmt: skip
    for run in runs[1:]:
        np.testing.assert_array_equal(run.ledger.worked, runs[0].ledger.worked)
        np.testing.assert_array_equal(run.ledger.gain, runs[0].ledger.gain)
    assert not np.array_equal(runs[1].weights, runs[2].weights)


def test_who_is_left_out_makes_nothing(skewed: Task, skewed_system: System, drawn: Callable[..., Any]) -> None:
    decision = {**LEVEL, "selected": [1, 0, 1, 1], "frequency": [1e9, 0.0, 1e9, 1e9]}
    result = train(decision, skewed_system, skewed, generator=drawn(skewed.data), **OPTIONS)
    made = result.ledger.synthetic_samples
    assert made[1] == 0
    assert np.all(made[[0, 2, 3]] > 0)
    assert np.all(np.isfinite(result.ledger.generation_energy))
    assert result.ledger.generation_energy[1] == result.ledger.generation_delay[1] == 0.0


# What it costs ----------------------------------------------------------------------------------------------


def test_energy_and_delay_replayed(skewed: Task, dpq_system: Callable[..., System], drawn: Callable[..., Any]) -> None:
    """Booked is the cost model's round for everyone who joined, plus k f^2 c_gen for each synthetic sample."""
    system = dpq_system(skewed, frequency=[1e9, 2e9, 5e8, 1e9], generation_cycles=3e5)
    decision = {**LEVEL, "pruning_ratio": [0.0, 0.2, 0.5, 0.9], "bits": [4, 6, 8, 16]}
    result = train(decision, system, skewed, generator=drawn(skewed.data), attendance=[0.5, 0.7, 1.0, 0.3], **OPTIONS)
    carried_out = Decision({name: result.decision[name] for name in DECISION})
    model = LTFL(system.augmented(0.4)).evaluate(carried_out).quantities
    worked, frequency = result.ledger.worked, np.array([1e9, 2e9, 5e8, 1e9])
    assert 0 < worked.sum() < worked.size
    made = skewed.augmented(drawn(skewed.data), 0.4).samples - skewed.samples
    generation = made * 3e5 * frequency**2 * 1e-28
    np.testing.assert_allclose(result.ledger.generation_energy, generation, rtol=1e-12)
    np.testing.assert_allclose(result.ledger.generation_delay, made * 3e5 / frequency, rtol=1e-12)
    last = result.rows[-1]
    assert last["cumulative_energy"] == pytest.approx(generation.sum() + (worked @ model["energy"]).sum(), rel=1e-9)
    longest = [model["delay"][there].max(initial=0.0) for there in worked]
    assert last["cumulative_delay"] == pytest.approx((made * 3e5 / frequency).max() + sum(longest), rel=1e-9)
    # shown apart, and not in any round
    assert result.rows[0]["round_energy"] == pytest.approx(model["energy"][worked[0]].sum(), rel=1e-9)
    assert result.rows[0]["round_delay"] == pytest.approx(longest[0], rel=1e-9)
    assert f"to make {made.sum()} synthetic samples" in result.summary()
    saved = result.to_dict()
    assert saved["ledger"]["generation_energy"] == result.ledger.generation_energy.tolist()
    assert saved["ledger"]["generation_delay"] == result.ledger.generation_delay.tolist()
    assert saved["ledger"]["synthetic_samples"] == made.tolist()
    assert saved["settings"]["augmentation"] == {
        "level": 0.4, "generator": "drawn", "fingerprint": "0123456789abcdea", "seed": 1, "samples": int(made.sum())
    }  # fmt: skip
    json.dumps(saved, allow_nan=False)


@pytest.mark.parametrize(
    ("changes", "decision", "energy", "delay"),
    [
        ({}, {}, 1e-28 * 1e18 * 1e5, 1e5 / 1e9),
        ({}, {"frequency": 5e8}, 1e-28 * 2.5e17 * 1e5, 1e5 / 5e8),
        ({"generation_frequency": 3e9}, {"frequency": 5e8}, 1e-28 * 9e18 * 1e5, 1e5 / 3e9),
        ({"generation_capacitance": 4e-28}, {}, 4e-28 * 1e18 * 1e5, 1e5 / 1e9),
        (
            {"sample_bits": 1e4, "download_energy": 1e-7, "download_rate": 1e6},
            {},
            1e-28 * 1e18 * 1e5 + 1e-3,
            1e5 / 1e9 + 1e-2,
        ),
    ],
)
def test_a_sample_by_hand(
    skewed: Task,
    dpq_system: Callable[..., System],
    changes: dict[str, Any],
    decision: dict[str, Any],
    energy: float,
    delay: float,
) -> None:
    system = dpq_system(skewed, **changes)
    made = np.array([0, 3, 10, 1])
    booked = generation_cost(system, trainable({**LEVEL, **decision}, system), made)
    np.testing.assert_allclose(booked[0], made * energy, rtol=1e-12)
    np.testing.assert_allclose(booked[1], made * delay, rtol=1e-12)


@pytest.mark.parametrize("clock", ["asynchronous", {"name": "interval", "seconds": 0.05}])
def test_any_clock_starts_when_all_samples_are_made(
    skewed: Task, skewed_system: System, drawn: Callable[..., Any], clock: Any
) -> None:
    result = train(LEVEL, skewed_system, skewed, generator=drawn(skewed.data), clock=clock, **OPTIONS)
    first = float(result.ledger.generation_delay.max())
    assert first > 0
    steps = np.cumsum([row["round_delay"] for row in result.rows])
    np.testing.assert_allclose([row["cumulative_delay"] for row in result.rows], first + steps, rtol=1e-12)


def test_a_task_augmented_beforehand_is_booked_too(
    skewed: Task, skewed_system: System, drawn: Callable[..., Any]
) -> None:
    task = skewed.augmented(drawn(skewed.data), 0.4, seed=1)
    one = train(LEVEL, skewed_system, skewed, generator=drawn(skewed.data), **OPTIONS)
    two = train(DECISION, skewed_system.augmented(0.4), task, **OPTIONS)
    assert one.rows == two.rows
    assert one.settings["augmentation"] == two.settings["augmentation"]


# The target -------------------------------------------------------------------------------------------------


def test_the_target_s_gradient(skewed: Task, dpq_system: Callable[..., System], drawn: Callable[..., Any]) -> None:
    """At the start it is the same for every level: over real samples, with the section's class mix."""
    mix = np.arange(1.0, 11.0) / 55.0
    system = dpq_system(skewed, target={"gradient_norm": 1.0}, class_mix=mix)
    losses = Losses(skewed)
    gradient = losses.mixture_gradient(losses.start, mix)[1].double()
    for level in (0.0, 0.5):
        decision = {**DECISION, "augmentation_level": level}
        result = train(decision, system, skewed, generator=drawn(skewed.data), measure_gradient_every=2, **OPTIONS)
        assert result.rows[0]["target_gradient_norm_squared"] == pytest.approx(float(gradient.square().sum()), rel=1e-4)
        measured = [row["target_gradient_norm_squared"] is not None for row in result.rows]
        assert measured == [row["gradient_norm_squared"] is not None for row in result.rows]
        assert measured == [True, True, False, True, False, True]
    assert result.rows[0]["gradient_norm_squared"] != result.rows[0]["target_gradient_norm_squared"]


def curve(accuracies: list[float | None], norms: list[float | None] | None = None, **more: list[float | None]) -> Curve:
    out = Curve()
    norms = norms or [None] * len(accuracies)
    out.rows = [
        {
            "round": i + 1,
            "test_accuracy": accuracy,
            "gradient_norm_squared": norm,
            "cumulative_energy": 10.0 + i,
            "cumulative_delay": 0.5 * (i + 1),
            "cumulative_bits": 100 * (i + 1),
            **{name: values[i] for name, values in more.items()},
        }
        for i, (accuracy, norm) in enumerate(zip(accuracies, norms, strict=True))
    ]
    return out


def test_reached_by_accuracy() -> None:
    run = curve([0.1, None, 0.5, 0.9, None, 0.7, 0.8, 0.9])
    assert run.reached(0.5) == Reached(round=3, energy=12.0, delay=1.5, bits=300)
    assert run.reached(0.1) == Reached(round=1, energy=10.0, delay=0.5, bits=100)
    assert run.reached(0.95) is None
    assert run.reached(0.7, window=2) == Reached(round=4, energy=13.0, delay=2.0, bits=400)
    assert run.reached(0.8, window=3) == Reached(round=7, energy=16.0, delay=3.5, bits=700)
    assert run.reached(0.1, window=7) is None
    assert curve([None, None]).reached(0.0) is None
    assert curve([0.7, 0.7, 0.7]).reached(0.7, window=3) is not None  # whatever rounding makes of the mean
    assert run.energy_to(0.9) == 13.0  # the same row as reached


def test_reached_by_gradient() -> None:
    none: list[float | None] = [None] * 6
    run = curve(none, [8.0, 4.0, 3.0, 1.0, 1.0, 1.0])
    for target, number in ((8.0, 1), (6.0, 2), (5.0, 3), (4.0, 4), (3.4, 5), (3.0, 6)):
        found = run.reached(gradient_norm=target)
        assert found is not None
        assert found.round == number
    assert run.reached(gradient_norm=2.9) is None
    # what was measured stands until it is measured again: 8, 8, 8, 1, 1, 0.5
    some = curve(none, [8.0, None, None, 1.0, None, 0.5])
    assert some.reached(gradient_norm=25.0 / 4) == Reached(round=4, energy=13.0, delay=2.0, bits=400)
    assert some.reached(gradient_norm=26.5 / 6) == Reached(round=6, energy=15.0, delay=3.0, bits=600)
    assert some.reached(gradient_norm=26.4 / 6) is None
    # the loss that the target is about comes first
    both = curve(none, [8.0] * 6, target_gradient_norm_squared=[2.0, None, 1.0, 1.0, 1.0, 1.0])
    assert both.reached(gradient_norm=2.0) is not None
    assert curve(none).reached(gradient_norm=1e9) is None


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((), {}, "give accuracy or gradient_norm, one of them"),
        ((0.5,), {"gradient_norm": 1.0}, "one of them"),
        ((1.5,), {}, "accuracy must lie in 0 .. 1, found 1.5"),
        ((float("nan"),), {}, "accuracy must lie"),
        (("high",), {}, "accuracy must lie"),
        ((), {"gradient_norm": 0.0}, "gradient_norm must be finite and above 0"),
        ((), {"gradient_norm": float("inf")}, "gradient_norm must be finite"),
        ((0.5,), {"window": 0}, "window must be a whole number"),
        ((0.5,), {"window": 1.5}, "window must be a whole number"),
        ((), {"gradient_norm": 1.0, "window": 2}, "window is for accuracy"),
    ],
)
def test_reached_refuses(arguments: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        curve([0.5]).reached(*arguments, **options)


# Refusals and checkpoints -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("level", "message"),
    [
        (1.5, r"decision.augmentation_level\[device 0\]: 1.5 must lie between 0 and 1"),
        ([0.1, 0.2, -0.3, 0.4], r"decision.augmentation_level\[device 2\]: -0.3 must lie"),
        (float("nan"), r"decision.augmentation_level\[device 0\]: nan must be finite"),
        ([0.1, 0.2], "decision"),
        ("half", "decision.augmentation_level: expected numbers"),
    ],
)
def test_bad_levels(skewed: Task, skewed_system: System, drawn: Callable[..., Any], level: Any, message: str) -> None:
    generator = drawn(skewed.data)
    with pytest.raises(InputError, match=message):
        train({**DECISION, "augmentation_level": level}, skewed_system, skewed, generator=generator, **OPTIONS)
    assert generator.asked == []  # refused before any work


def test_what_does_not_go_together(
    skewed: Task,
    skewed_system: System,
    system_for: Callable[..., System],
    drawn: Callable[..., Any],
    tmp_path: Path,
) -> None:
    generator = drawn(skewed.data)
    with pytest.raises(InputError, match=r"augmentation_level: the scenario has no section 'augmentation'"):
        train(LEVEL, system_for(skewed), skewed, generator=generator, **OPTIONS)
    with pytest.raises(InputError, match=r"adds \d+ synthetic samples, .* give generator"):
        train(LEVEL, skewed_system, skewed, **OPTIONS)
    task = skewed.augmented(generator, 0.4)
    for system in (skewed_system, skewed_system.augmented(0.4)):
        with pytest.raises(InputError, match="is augmented already, and the decision has an augmentation_level"):
            train(LEVEL, system, task, generator=generator, **OPTIONS)
    with pytest.raises(InputError, match=r"device \d holds \d+ samples"):
        train(LEVEL, skewed_system.augmented(0.4), skewed, generator=generator, **OPTIONS)
    generator = drawn(skewed.data)
    generator.data = "cifar10"
    with pytest.raises(InputError, match="was made for data set 'cifar10'"):
        train(LEVEL, skewed_system, skewed, generator=generator, **OPTIONS)
    # bad arguments are found before a sample is made
    for wrong in ({"checkpoint": 3}, {"learning_rate": -1.0}, {"attendance": 0.0}, {"engine": "steam"}):
        with pytest.raises(InputError):
            train(LEVEL, skewed_system, skewed, generator=generator, **{**OPTIONS, **wrong})
    assert generator.asked == []


def test_stopped_and_resumed_bit_for_bit(
    skewed: Task, dpq_system: Callable[..., System], drawn: Callable[..., Any], tmp_path: Path
) -> None:
    system = dpq_system(skewed, target={"gradient_norm": 1.0, "participation": 0.5})
    options = {**OPTIONS, "rounds": 10, "aggregation": "unbiased"}
    whole = train(LEVEL, system, skewed, generator=drawn(skewed.data), **options)

    def stop(row: dict[str, Any]) -> None:
        if row["round"] == 4:
            raise KeyboardInterrupt

    kept = {"checkpoint": tmp_path, "checkpoint_every": 3}
    first, second = drawn(skewed.data), drawn(skewed.data)
    stopped = train(LEVEL, system, skewed, generator=first, **options, **kept, callback=stop)
    assert stopped.status == "interrupted"
    assert first.asked
    rest = train(LEVEL, system, skewed, generator=second, **options, **kept)
    assert second.asked == []  # what was made was found again
    assert rest.rows == whole.rows
    np.testing.assert_array_equal(rest.weights, whole.weights)
    for name, booked in whole.ledger.state().items():
        np.testing.assert_array_equal(booked, rest.ledger.state()[name], err_msg=name)
    for name in ("generation_energy", "generation_delay", "synthetic_samples"):
        np.testing.assert_array_equal(getattr(whole.ledger, name), getattr(rest.ledger, name))
    one, two = whole.to_dict(), rest.to_dict()
    assert {**one, "seconds": 0, "message": ""} == {**two, "seconds": 0, "message": ""}
    # any other augmentation is another run
    for decision, mark in (({**LEVEL, "augmentation_level": 0.5}, "a"), (LEVEL, "b"), (DECISION, "a")):
        with pytest.raises(InputError, match="is of another run"):
            train(decision, system, skewed, generator=drawn(skewed.data, mark=mark), **options, **kept)


def test_an_interrupt_while_samples_are_made(
    skewed: Task, skewed_system: System, drawn: Callable[..., Any], tmp_path: Path
) -> None:
    generator, again = drawn(skewed.data), drawn(skewed.data)
    right = generator.sample

    def stop(labels: Any, *, seed: int) -> Any:
        if generator.asked:
            raise KeyboardInterrupt
        return right(labels, seed=seed)

    generator.sample = stop
    decision = {**DECISION, "augmentation_level": 1.0}
    with pytest.raises(KeyboardInterrupt):
        train(decision, skewed_system, skewed, generator=generator, checkpoint=tmp_path, **OPTIONS)
    rest = train(decision, skewed_system, skewed, generator=again, checkpoint=tmp_path, **OPTIONS)
    whole = train(decision, skewed_system, skewed, generator=drawn(skewed.data), **OPTIONS)
    assert rest.rows == whole.rows
    assert sum(again.asked) + generator.asked[0] == rest.ledger.synthetic_samples.sum()


def test_a_real_generator_end_to_end(skewed: Task, skewed_system: System) -> None:
    from jointopt.augmentation.gaussian import GaussianGenerator

    generator = GaussianGenerator.fit(skewed.data)
    other = GaussianGenerator.fit(Task.make(data="digits", devices=4).data, share=0.5)
    one, same, apart = (
        train(LEVEL, skewed_system, skewed, generator=g, **OPTIONS) for g in (generator, generator, other)
    )
    assert one.rows == same.rows
    np.testing.assert_array_equal(one.weights, same.weights)
    assert one.rows[-1]["train_loss"] < one.rows[0]["train_loss"]
    assert one.settings["augmentation"]["fingerprint"] != apart.settings["augmentation"]["fingerprint"]
    assert not np.array_equal(one.weights, apart.weights)
    assert isinstance(one.weights, np.ndarray)
    assert torch.isfinite(torch.from_numpy(one.weights)).all()

"""Calibrations: what is measured, against closed forms; what is made of it; what is kept and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import jointopt as jo
from jointopt.data import Dataset
from jointopt.errors import DataError, InputError
from jointopt.federated.codecs import codec
from jointopt.federated.task import Losses
from jointopt.models.compression import quantization_variance
from jointopt.study.calibration import Calibration, calibrate
from jointopt.study.estimates import bootstrap
from jointopt.study.forecast import effective_range
from jointopt.study.observing import observe, quantization_error
from jointopt.study.walk import Walk


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Shift(nn.Module):
    """Maps x to w - x, with w the prunable weights of a linear layer."""

    def __init__(self, start: Any) -> None:
        super().__init__()
        self.layer = nn.Linear(1, len(start), bias=False)
        self.layer.weight.data = torch.as_tensor(start, dtype=torch.float32).reshape(-1, 1).clone()

    def forward(self, inputs: Tensor) -> Tensor:
        return self.layer.weight[:, 0] - inputs


def half_square(outputs: Tensor, labels: Tensor) -> Tensor:
    return 0.5 * outputs.square().sum(dim=1).mean()


def quadratic(start: Any, samples: list[Any], **options: Any) -> jo.Task:
    """F_u(w) = mean over the device's samples x of ||w - x||^2 / 2; so L = 1 and grad F_u = w - mean x."""
    inputs = torch.as_tensor(np.concatenate(samples), dtype=torch.float32)
    ends = np.cumsum([len(part) for part in samples])
    parts = tuple(np.arange(end - len(part), end) for end, part in zip(ends, samples, strict=True))
    labels = torch.zeros(len(inputs), dtype=torch.int64)
    data = Dataset("quadratic", inputs, labels, inputs[:2], labels[:2], classes=1)
    return jo.Task(data=data, module=Shift(start), parts=parts, loss=half_square, **options)


@pytest.fixture(scope="module")
def digits() -> jo.Task:
    return jo.Task.make(data="digits", devices=6, seed=1)


@pytest.fixture(scope="module")
def system(digits: jo.Task) -> jo.System:
    return jo.System.from_task(digits, seed=0).with_(rounds=20, learning_rate=0.2)


@pytest.fixture(scope="module")
def calibrated(digits: jo.Task) -> Calibration:
    return calibrate(digits, rounds=20, learning_rate=0.2, points=5, ratios=(0.2, 0.5, 0.8), seed=3)


# ------------------------------------------------------------------ what is observed


def test_quantization_error_by_hand() -> None:
    # knobs 0, 1 and 0, 1/3, 2/3, 1 of the range 2: an entry at a quarter of it
    found = quantization_error(torch.tensor([-1.0, -0.5, 1.0]), (1, 2))
    assert found == pytest.approx([4 * 0.25 * 0.75, 4 * 0.75 * 0.25 / 9], rel=1e-12)
    assert quantization_error(torch.full((5,), 0.3), (1, 8)).tolist() == [0.0, 0.0]


def test_quantization_error_is_that_of_the_codec() -> None:
    values = torch.from_numpy(np.random.default_rng(0).normal(size=300)).float()
    for bits in (1, 3):
        errors = []
        for seed in range(400):
            sent = codec("uniform").simulate(values, bits, torch.Generator().manual_seed(seed))
            errors.append(float((sent - values).double().square().sum()))
        spread = np.std(errors) / 20.0
        assert abs(np.mean(errors) - quantization_error(values, (bits,))[0]) < 4.0 * spread


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.floats(-1e3, 1e3, width=32), min_size=2, max_size=30),
    st.integers(1, 16),
)
def test_quantization_error_keeps_the_law(values: list[float], bits: int) -> None:
    entries = torch.tensor(values)
    span = float(entries.max()) - float(entries.min())
    error = float(quantization_error(entries, (bits,))[0])
    assert 0.0 <= error <= float(quantization_variance(len(values), span, bits)) * (1 + 1e-9)


@pytest.fixture(scope="module")
def square_walk() -> tuple[Walk, np.ndarray, list[np.ndarray], np.ndarray]:
    rng = np.random.default_rng(0)
    start, samples = rng.normal(0, 2, 30), [rng.normal(u, 1.0, (40 + 10 * u, 30)) for u in range(3)]
    walk = observe(
        quadratic(start, samples),
        rounds=6,
        learning_rate=0.2,
        seed=0,
        pruner=jo.pruning.pruner("magnitude"),
        ratios=(0.3, 0.7),
        bits=(1, 4),
        points=7,
        samples=None,
    )
    mean = np.concatenate(samples).mean(axis=0)
    return walk, start, samples, mean


def test_a_quadratic_in_closed_form(square_walk: tuple[Walk, np.ndarray, list[np.ndarray], np.ndarray]) -> None:
    walk, start, samples, mean = square_walk
    assert walk.at.tolist() == list(range(7))
    centres = [part.mean(axis=0) for part in samples]
    share = np.array([len(part) for part in samples]) / sum(len(part) for part in samples)
    assert walk.weight == pytest.approx(share)
    for p in range(7):
        w = mean + 0.8**p * (start - mean)
        total = w - mean
        assert walk.square[p] == pytest.approx(total @ total, rel=1e-4)
        assert walk.loss[p] == pytest.approx(
            0.5 * np.mean(np.sum((w - np.concatenate(samples)) ** 2, axis=1)), rel=1e-5
        )
        assert walk.norm[p] == pytest.approx(w @ w, rel=1e-4)
        for u, centre in enumerate(centres):
            own = w - centre
            assert walk.dense[p, u] == pytest.approx(own @ own, rel=1e-4)
            assert walk.apart[p, u] == pytest.approx((own - total) @ (own - total), rel=1e-4)
            assert walk.aligned[p, u] == pytest.approx(total @ own, rel=1e-3, abs=1e-3)
        for r, ratio in enumerate((0.3, 0.7)):
            gone = np.zeros(30, dtype=bool)
            gone[np.argsort(np.abs(w))[: round(ratio * 30)]] = True
            assert walk.removed[p, r] == pytest.approx(np.sum(w[gone] ** 2) / (w @ w), rel=1e-3)
            # on what is kept the gradient is the dense one, elsewhere nothing is sent
            assert walk.bias[p, r] == pytest.approx(np.sum(total[gone] ** 2), rel=1e-3)
            assert walk.steepness[p, r] == pytest.approx([1.0] * 3, rel=1e-4)
            for u, centre in enumerate(centres):
                own = w - centre
                assert walk.error[p, r, u] == pytest.approx(np.sum(own[gone] ** 2), rel=1e-3)
                assert walk.hidden[p, r, u] == pytest.approx(np.sum(own[gone] ** 2), rel=1e-3)
                assert walk.progress[p, r, u] == pytest.approx(np.sum((total * own)[~gone]), rel=1e-3, abs=1e-3)
        # the Hessian is the identity; batches are full, so their noise is none
        assert walk.curvature[p, [0, 2]] == pytest.approx([1.0, 1.0], rel=1e-2)
        assert walk.bending[p, [0, 2]] == pytest.approx([1.0, 1.0], rel=1e-2)
        assert walk.curvature[p, 1] == walk.bending[p, 1] == 0.0
    assert walk.moved[1:] == pytest.approx(np.ones((6, 3)), rel=1e-4)


def test_variance_of_a_sample_is_unbiased() -> None:
    rng = np.random.default_rng(1)
    samples = [rng.normal(0, 1.0, (60, 8)) for _ in range(40)]
    task = quadratic(np.zeros(8), samples, batch_size=20)
    walk = observe(
        task,
        rounds=1,
        learning_rate=0.1,
        seed=0,
        pruner=jo.pruning.pruner("magnitude"),
        ratios=(0.5,),
        bits=(2,),
        points=2,
        samples=None,
    )
    true = np.array([part.var(axis=0, ddof=1).sum() for part in samples])
    ratio = walk.variance.mean(axis=0) / true
    # 80 batches, each with a chi-square like spread of 2/8
    assert abs(ratio.mean() - 1.0) < 4.0 * np.sqrt(0.25 / 80)


def test_the_error_of_pruning_is_that_of_training(digits: jo.Task) -> None:
    # an oracle of its own: gradients by autograd of the module itself
    walk = observe(
        digits,
        rounds=1,
        learning_rate=0.2,
        seed=0,
        pruner=jo.pruning.pruner("magnitude"),
        ratios=(0.6,),
        bits=(2,),
        points=2,
        samples=None,
    )
    losses = Losses(digits)
    weights, u = losses.start, 2
    keep = torch.ones_like(losses.prunable)
    ratio = float(jo.pruning.snap(0.6, digits.parameters))
    keep[losses.prunable] = jo.pruning.keep_mask(weights[losses.prunable], ratio)
    inputs, labels = losses.samples_of(u)

    def own(point: Tensor) -> Tensor:
        leaf = point.clone().requires_grad_()
        return torch.autograd.grad(nn.functional.cross_entropy(losses.outputs(leaf, inputs), labels), leaf)[0]

    apart = own(weights) - own(weights * keep) * keep
    assert walk.error[0, 0, u] == pytest.approx(float(apart.double().square().sum()), rel=1e-4)


# ------------------------------------------------------------------ networks and pruners


def batch_norm(digits: jo.Task) -> jo.Task:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 10))
    return replace(digits, module=module, network="custom")


def test_batch_normalisation_as_in_training(digits: jo.Task) -> None:
    task = batch_norm(digits)
    walk = observe(
        task,
        rounds=1,
        learning_rate=0.1,
        seed=0,
        pruner=jo.pruning.pruner("magnitude"),
        ratios=(0.5,),
        bits=(2,),
        points=2,
        samples=30,
    )
    before = {name: value.clone() for name, value in task.module.state_dict().items()}
    assert np.all(walk.variance > 0.0)
    # 30 samples of each device make one batch: the gradient is that of the module in training mode
    rng = np.random.default_rng([0, 1])
    for u, part in enumerate(task.parts):
        rows = part if len(part) <= 30 else rng.choice(part, 30, replace=False)
        task.module.train().zero_grad()
        nn.functional.cross_entropy(task.module(task.data.train_inputs[rows]), task.data.train_labels[rows]).backward()
        square = sum(float(p.grad.double().square().sum()) for p in task.module.parameters() if p.grad is not None)
        assert walk.dense[0, u] == pytest.approx(square, rel=1e-4)
        task.module.load_state_dict(before)
    assert calibrate(task, rounds=2, points=2, samples=30).forecast(
        {"pruning_ratio": 0.2, "bits": 8, "power": 0.05},
        jo.System.from_task(task, template=jo.systems.ltfl(devices=6, seed=0)).with_(header_bits=64 + 32 * 24),
        rounds=2,
    ).final_loss == pytest.approx(float(walk.loss[0]), rel=0.1)
    with pytest.raises(InputError, match="gradients of single samples"):
        calibrate(task, rounds=2, points=2, samples=30, generalization=True)


@pytest.mark.parametrize("name", ["snip", "exploration", "channel-magnitude"])
def test_other_pruners(digits: jo.Task, name: str) -> None:
    made = calibrate(digits, rounds=1, points=2, pruner=name, ratios=(0.3, 0.6), samples=20)
    assert made.pruner == name
    assert np.all(np.diff(made.walk.removed, axis=1) > 0.0)
    assert np.all(made.walk.ratios >= (0.3, 0.6))


def test_a_convolutional_network() -> None:
    task = jo.Task.make(data="digits", network="cnn", devices=3, seed=0, batch_size=16)
    made = calibrate(task, rounds=2, points=2, ratios=(0.5,), samples=32)
    fitted = made.apply(jo.System.from_task(task, seed=0))
    assert fitted.bound.pruning_error == "measured"


# ------------------------------------------------------------------ constants


def test_typical_terms_are_what_was_measured(calibrated: Calibration, system: jo.System) -> None:
    fitted, walk, eta = calibrated.apply(system), calibrated.walk, 0.2
    weight = walk.weight

    def parts(**decision: float) -> dict[str, float]:
        chosen = jo.Decision({name: np.full(6, value) for name, value in decision.items()})
        own = fitted.with_(bits_min=int(decision["bits"]), bits_max=16)
        return {k: float(v) for k, v in jo.problems.LTFL(own).evaluate(chosen).parts.items()}

    for r, ratio in enumerate(walk.ratios):
        measured = float(walk.bias[:, r].mean())
        assert parts(pruning_ratio=ratio, bits=8, power=0.05)["pruning"] == pytest.approx(measured, rel=0.45)
    steep = np.maximum(walk.curvature, 0.0).mean(axis=0)
    for b, bits in enumerate((1, 2, 4, 8)):
        noise = float((walk.quantized[:, b] @ weight**2).mean())
        term = parts(pruning_ratio=0.0, bits=bits, power=0.05)["quantization"]
        # one range for all widths: where most entries, near 0, lie in their cell differs from width to width
        assert term == pytest.approx(eta * float(steep[0]) * noise, rel=0.5)
    # lost packets add eta n^T H n too; E_cap, of which the bound adds 2 q, is that of the other terms
    chosen = {"pruning_ratio": 0.0, "bits": 16.0, "power": 0.03}
    lost = jo.problems.LTFL(fitted).evaluate(jo.Decision({k: np.full(6, v) for k, v in chosen.items()}))
    q = np.asarray(lost.quantities["packet_error"])
    own = fitted.bound
    level = 8.0 * own.gradient_offset + 8.0 * own.gradient_slope * float(walk.square[walk.at.astype(int)].mean())
    expected = eta * float(steep[2]) * float((walk.apart @ weight**2).mean())
    assert level == pytest.approx(expected, rel=0.05)
    assert np.all(q > 0.0)


def test_the_dense_term_is_the_warm_up(calibrated: Calibration, system: jo.System) -> None:
    for rounds, eta in ((20, 0.2), (10, 0.2), (40, 0.1)):
        gap = calibrated.apply(system.with_(rounds=rounds, learning_rate=eta)).bound.initial_gap
        square = calibrated.walk.square
        if eta == 0.2:
            mean = float(square[:rounds].mean())
        else:  # half the step, the same way: between rounds on straight lines
            mean = float(np.interp(np.arange(rounds) / 2, np.arange(21), square).mean())
        assert 2.0 * gap / (eta * rounds) == pytest.approx(mean, rel=1e-9)


def test_device_terms_are_those_of_a_device(calibrated: Calibration) -> None:
    found, walk = calibrated.constants("device"), calibrated.walk
    for r, ratio in enumerate(walk.ratios):
        removed = np.interp(ratio, found["pruning_curve_ratio"], found["pruning_curve_error"])
        law = found["smoothness"] ** 2 * found["weight_norm_squared"] * removed + found["mask_energy"] * ratio
        assert law == pytest.approx(float((walk.error[:, r] @ walk.weight).mean()), rel=0.3)
    dense = float((walk.dense @ walk.weight).mean())
    assert found["gradient_offset"] == pytest.approx(dense, rel=0.3)


def test_worst_constants_are_those_of_measure_constants(digits: jo.Task) -> None:
    ratios = (0.125, 0.875)  # whole numbers of weights
    mine = calibrate(digits, rounds=1, learning_rate=0.2, points=2, ratios=ratios, kind="worst").constants()
    theirs = jo.measure_constants(digits, rounds=1, learning_rate=0.2, ratios=ratios)
    for name in ("smoothness", "weight_norm_squared", "mask_energy", "gradient_offset", "initial_gap"):
        assert mine[name] == pytest.approx(theirs[name], rel=1e-3), name
    assert mine["quantizer_range"] == pytest.approx(theirs["quantizer_range"], rel=1e-3)


def test_worst_constants_cover_the_typical_ones(calibrated: Calibration, system: jo.System) -> None:
    worst, device, typical = (calibrated.constants(kind) for kind in ("worst", "device", "typical"))
    for name in ("mask_energy", "gradient_offset", "gradient_variance", "smoothness", "weight_norm_squared"):
        assert worst[name] >= device[name] >= typical[name]
    assert np.all(worst["quantizer_range"] >= device["quantizer_range"])
    decision = jo.Decision(pruning_ratio=np.full(6, 0.4), bits=np.full(6, 4.0), power=np.full(6, 0.05))
    values = [
        float(jo.problems.LTFL(calibrated.apply(system, kind)).evaluate(decision).quantities["bound"])
        for kind in ("worst", "device", "typical")
    ]
    assert values[0] > values[1] > values[2] > 0.0


def test_the_measured_curve_is_never_below_what_was_removed(calibrated: Calibration) -> None:
    for kind, removed in (
        ("typical", calibrated.walk.removed.mean(axis=0)),
        ("worst", calibrated.walk.removed.max(axis=0)),
    ):
        found = calibrated.constants(kind)
        at = np.interp(calibrated.walk.ratios, found["pruning_curve_ratio"], found["pruning_curve_error"])
        assert np.all(at >= removed - 1e-12)
        assert found["pruning_curve_ratio"][-1] == found["pruning_curve_error"][-1] == 1.0


@pytest.mark.parametrize("removed", [(0.5, 0.6, 0.9), (0.001, 0.2, 0.97), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0)])
def test_curves_of_any_shape_are_covered(calibrated: Calibration, system: jo.System, removed: Any) -> None:
    walk = replace(calibrated.walk, removed=np.tile(removed, (5, 1)))
    found = replace(calibrated, walk=walk).constants("worst")
    ratio, error = found["pruning_curve_ratio"], found["pruning_curve_error"]
    inside = walk.ratios <= ratio[-1]
    assert np.all(np.interp(walk.ratios, ratio, error)[inside] >= np.asarray(removed)[inside] - 1e-12)
    assert error[-1] == 1.0
    # the system checks that it is a convex curve
    fitted = system.with_(pruning_ratio_max=float(ratio[-1]) * 0.99, **found)
    assert float(jo.models.compression.pruning_error(np.asarray(0.0), fitted.bound.pruning_law)) == 0.0


def test_a_problem_is_solved_with_calibrated_constants(calibrated: Calibration, system: jo.System) -> None:
    for kind in ("typical", "worst"):
        result = jo.solve(jo.problems.LTFL(calibrated.apply(system, kind)))
        assert result.status == "optimal"
        result.verify()


# ------------------------------------------------------------------ intervals


def test_intervals_hold_their_means_and_are_reproducible(digits: jo.Task, calibrated: Calibration) -> None:
    for name, one in calibrated.estimates.items():
        assert np.all(one.low <= np.asarray(one.value) + 1e-12), name
        assert np.all(one.high >= np.asarray(one.value) - 1e-12), name
    again = calibrate(digits, rounds=20, learning_rate=0.2, points=5, ratios=(0.2, 0.5, 0.8), seed=3)
    assert again.to_dict() == calibrated.to_dict()
    other = calibrate(digits, rounds=20, learning_rate=0.2, points=5, ratios=(0.2, 0.5, 0.8), seed=4)
    assert other.estimates["smoothness"].low != calibrated.estimates["smoothness"].low
    assert other.estimates["smoothness"].value == calibrated.estimates["smoothness"].value


def test_the_callers_threads_change_nothing(digits: jo.Task) -> None:
    def telling(outputs: Tensor, labels: Tensor) -> Tensor:
        # shows the number of threads in its first digits, where others show it in their last bits
        return cross_entropy(outputs, labels) * (1.0 + 0.125 * torch.get_num_threads())

    task = replace(digits, loss=telling, parts=tuple(part[:8] for part in digits.parts))
    options: dict[str, Any] = {"rounds": 1, "points": 2, "ratios": (0.5,), "bits": (2,), "draws": 20}

    def made(callers: int, **more: Any) -> dict[str, Any]:
        torch.set_num_threads(callers)
        out = calibrate(task, **options, **more).to_dict()
        assert torch.get_num_threads() == callers
        return out

    assert made(1, generalization=True) == made(2, generalization=True)
    assert made(1, threads=2) == made(2, threads=None) != made(2)


def drawn(walk: Walk, rng: np.random.Generator | None, points: int = 8) -> Walk:
    """A walk of points and devices that are drawn alike and apart, all around the means of another."""
    values = {one.name: getattr(walk, one.name) for one in fields(Walk)}
    size = len(walk.weight)
    values |= {"at": np.arange(points, dtype=float), "loss": np.ones(points), "square": np.ones(points)}
    values["weight"] = np.full(size, 1.0 / size)
    for name, axes in (("norm", 0), ("removed", 1), ("bias", 1), ("curvature", 1), ("bending", 1)):
        shape = (points, *np.shape(values[name])[1:])
        noise = 1.0 if rng is None else rng.uniform(0.5, 1.5, (points,) + (1,) * axes)
        values[name] = np.full(shape, 0.5) * noise
    for name in ("error", "progress", "hidden", "steepness", "moved", "dense", "apart", "aligned", "span", "variance"):
        shape = (points, *np.shape(values[name])[1:])
        noise = 1.0 if rng is None else rng.uniform(0.5, 1.5, shape)
        values[name] = np.full(shape, 0.5) * noise
    values["quantized"] = np.full((points, *np.shape(values["quantized"])[1:]), 0.5)
    return Walk(**values)


def test_what_never_varies_has_no_width(calibrated: Calibration) -> None:
    walk = drawn(calibrated.walk, None)
    for name, one in bootstrap(walk, effective_range(walk), 0.9, 50, 0).items():
        assert np.allclose(one.low, one.high, rtol=1e-9), name


def test_intervals_cover_the_mean_as_often_as_they_say(calibrated: Calibration) -> None:
    rng = np.random.default_rng(0)
    inside = []
    for _ in range(40):
        walk = drawn(calibrated.walk, rng, points=20)
        one = bootstrap(walk, effective_range(walk), 0.9, 40, 0)["weight_norm_squared"]
        inside.append(one.low <= 0.5 <= one.high)
    # 0.9, less what a bootstrap of 20 points and 40 draws loses; three standard deviations of 40 trials are 0.14
    assert np.mean(inside) >= 0.7
    widths = [
        np.ptp([one.low, one.high])
        for level in (0.5, 0.9)
        for one in [bootstrap(walk, effective_range(walk), level, 100, 0)["weight_norm_squared"]]
    ]
    assert 0.0 < widths[0] < widths[1]


def test_generalization_and_speed(digits: jo.Task, system: jo.System) -> None:
    made = calibrate(
        digits, rounds=1, points=2, ratios=(0.5,), samples=30, generalization=True, speed=True, pruner="channel-random"
    )
    expected = jo.measure_generalization(digits, rounds=1, learning_rate=0.1, seed=0)
    assert made.estimates["gradient_proxy"].value == pytest.approx(expected["gradient_proxy"])
    floor = made.estimates["compute_floor"]
    assert 0.0 <= floor.low <= floor.value <= floor.high <= 1.0
    fitted = made.apply(system)
    assert (fitted.learner.compute_law, fitted.learner.compute_floor) == ("affine", floor.value)
    assert fitted.generalization is not None
    assert np.array_equal(fitted.generalization.gradient_proxy, expected["gradient_proxy"])
    assert Calibration.from_dict(json.loads(json.dumps(made.to_dict()))).to_dict() == made.to_dict()


# ------------------------------------------------------------------ forecasts


def test_a_dense_forecast_is_the_warm_up_itself(digits: jo.Task, system: jo.System) -> None:
    made = calibrate(digits, rounds=12, learning_rate=0.2, points=13, ratios=(0.5,))
    silent = system.with_(packet_error="none")
    told = made.forecast({"pruning_ratio": 0.0, "bits": 32, "power": 0.05}, silent, 12)
    assert told.loss == pytest.approx(made.walk.loss, rel=1e-6)
    assert told.square == pytest.approx(made.walk.square[:12], rel=1e-5)
    assert told.mean_square == pytest.approx(made.walk.square[:12].mean(), rel=1e-5)


def test_forecasts_of_a_quadratic_follow_the_recursion(
    square_walk: tuple[Walk, np.ndarray, list[np.ndarray], np.ndarray],
) -> None:
    # quantizer noise of curvature 1 adds eta^2/2 ||n||^2 to the loss of each round
    _, start, samples, _ = square_walk
    task = quadratic(start, samples)
    made = calibrate(task, rounds=6, learning_rate=0.2, points=7, ratios=(0.3, 0.7), bits=(1, 4))
    template = jo.systems.ltfl(devices=3, seed=0)
    silent = jo.System.from_task(task, template=template).with_(learning_rate=0.2, packet_error="none")
    exact = made.forecast({"pruning_ratio": 0.0, "bits": 32, "power": 0.05}, silent, 1)
    noisy = made.forecast({"pruning_ratio": 0.0, "bits": 1, "power": 0.05}, silent, 1)
    variance = effective_range(made.walk)[0] / 4.0
    added = 0.5 * 0.2**2 * float(made.walk.curvature[0, 0]) * float(made.walk.weight**2 @ variance)
    assert noisy.final_loss - exact.final_loss == pytest.approx(added, rel=1e-6)
    assert noisy.final_loss > exact.final_loss


def test_forecasts_of_noise_on_a_quadratic_are_what_training_does(
    square_walk: tuple[Walk, np.ndarray, list[np.ndarray], np.ndarray],
) -> None:
    _, start, samples, _ = square_walk
    task = quadratic(start, samples)
    made = calibrate(task, rounds=8, learning_rate=0.3, points=9, ratios=(0.5,), bits=(2,))
    template = jo.systems.ltfl(devices=3, seed=0)
    silent = jo.System.from_task(task, template=template).with_(learning_rate=0.3, packet_error="none")
    decision = {"pruning_ratio": 0.0, "bits": 2, "power": 0.05}
    losses = []
    for seed in range(12):
        run = jo.train(decision, task, system=silent, rounds=9, seed=seed, measure_gradient_every=1)
        losses.append([(row["global_loss"], row["gradient_norm_squared"]) for row in run.rows])
    loss, square = np.moveaxis(np.array(losses), 2, 0)
    told = made.forecast(decision, silent, 9)
    dense = made.forecast({**decision, "bits": 32}, silent, 9)
    for round_ in range(1, 9):
        # what quantization added to the loss so far, within four standard errors of the mean over seeds
        added = told.loss[round_] - dense.loss[round_]
        error = 4.0 * loss[:, round_].std() / np.sqrt(12) + 1e-4
        assert loss[:, round_].mean() - dense.loss[round_] == pytest.approx(added, abs=error + 0.1 * added)
        assert square[:, round_].mean() == pytest.approx(
            told.square[round_], abs=4.0 * square[:, round_].std() / np.sqrt(12) + 0.05 * told.square[round_]
        )


def test_forecasts_order_what_is_clear(calibrated: Calibration, system: jo.System) -> None:
    def final(**changes: float) -> float:
        decision = {"pruning_ratio": 0.2, "bits": 8, "power": 0.05} | changes
        return calibrated.forecast(decision, system, 20).final_loss

    assert final(pruning_ratio=0.0) < final() < final(pruning_ratio=0.5) < final(pruning_ratio=0.85)
    assert final(bits=8) <= final(bits=2) < final(bits=1)
    assert calibrated.forecast({"pruning_ratio": 0.2, "bits": 8, "power": 0.05}, system, 0).loss.size == 1
    few = {"pruning_ratio": 0.2, "bits": 8, "power": 0.05, "selected": [1, 0, 0, 0, 0, 0]}
    assert np.isfinite(calibrated.forecast(few, system, 20).final_loss)


def test_beyond_the_warm_up_losses_fall_towards_nothing(calibrated: Calibration, system: jo.System) -> None:
    told = calibrated.forecast({"pruning_ratio": 0.0, "bits": 32, "power": 0.05}, system, 2000)
    assert np.all(np.diff(told.loss) < 1e-9)
    assert 0.0 <= told.final_loss < calibrated.walk.loss[-1]
    assert np.all(told.square >= 0.0)


# ------------------------------------------------------------------ files and errors


def test_saved_and_read_back(calibrated: Calibration, system: jo.System, tmp_path: Path) -> None:
    path = calibrated.save(tmp_path / "c.json")
    read = Calibration.load(path)
    assert read.to_dict() == calibrated.to_dict()
    assert read.apply(system) == calibrated.apply(system)
    assert read.summary() == calibrated.summary()
    assert repr(read) == repr(calibrated)


def _without(data: dict[str, Any], *path: str) -> dict[str, Any]:
    for name in path[:-1]:
        data = data[name]
    del data[path[-1]]
    return data


def _set(data: dict[str, Any], value: Any, *path: str) -> None:
    for name in path[:-1]:
        data = data[name]
    data[path[-1]] = value


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda d: _set(d, "jointopt.calibration/2", "schema"), "calibration/2' is not known"),
        (lambda d: _set(d, "jointopt.result/1", "schema"), "not a saved calibration"),
        (lambda d: _without(d, "schema"), "not a saved calibration"),
        (lambda d: _set(d, 1, "extra"), "unknown key 'extra'"),
        (lambda d: _without(d, "walk"), "'walk' is missing"),
        (lambda d: _set(d, "best", "kind"), "kind: cannot be 'best'"),
        (lambda d: _set(d, 1.5, "confidence"), "confidence: cannot be 1.5"),
        (lambda d: _set(d, None, "learning_rate"), "learning_rate: cannot be None"),
        (lambda d: _set(d, True, "parameters"), "parameters: cannot be True"),
        (lambda d: _without(d, "walk", "bias"), "walk: expected"),
        (lambda d: _set(d, [1.0], "walk", "norm"), r"walk.norm: expected shape \(5,\)"),
        (lambda d: _set(d, ["a"] * 5, "walk", "norm"), "walk.norm: holds something else"),
        (lambda d: _set(d, [None] * 5, "walk", "norm"), "walk.norm: must be finite"),
        (lambda d: _set(d, 3, "walk"), "walk: expected"),
        (lambda d: _without(d, "estimates", "removed"), "'removed' is missing"),
        (lambda d: _set(d, {}, "estimates", "luck"), "unknown 'luck'"),
        (lambda d: _set(d, {"value": 1}, "estimates", "smoothness"), "expected value, low and high"),
        (lambda d: _set(d, [1.0, 2.0], "estimates", "smoothness", "low"), "smoothness.low: expected finite"),
        (lambda d: _set(d, 1e9, "estimates", "smoothness", "low"), "low is above high"),
        (lambda d: _set(d, None, "estimates"), "estimates: expected a table"),
    ],
)
def test_damaged_files_are_refused(calibrated: Calibration, damage: Callable[[Any], Any], words: str) -> None:
    data = json.loads(json.dumps(calibrated.to_dict()))
    damage(data)
    with pytest.raises(DataError, match=words):
        Calibration.from_dict(data)


def test_unreadable_files_are_refused(calibrated: Calibration, tmp_path: Path) -> None:
    path = calibrated.save(tmp_path / "c.json")
    path.write_text(path.read_text()[:200])
    for where in (path, tmp_path / "none.json"):
        with pytest.raises(InputError, match=where.name):
            Calibration.load(where)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rounds": 0}, "rounds must be a whole number of at least 1, found 0"),
        ({"rounds": 2.5}, "rounds"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**63}, "seed must be below"),
        ({"points": 1}, "points must be a whole number of at least 2"),
        ({"draws": 1}, "draws"),
        ({"samples": 0}, "samples"),
        ({"threads": 0}, "threads: must be a whole number of at least 1, found 0"),
        ({"threads": True}, "threads"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"learning_rate": float("nan")}, "learning_rate"),
        ({"confidence": 1.0}, "confidence"),
        ({"kind": "typicl"}, "did you mean 'typical'"),
        ({"ratios": ()}, "ratios must rise"),
        ({"ratios": (0.5, 0.4)}, "ratios must rise"),
        ({"ratios": (0.0, 0.4)}, "ratios must lie above 0"),
        ({"ratios": 0.4}, "ratios must be a sequence"),
        ({"bits": (0, 1)}, "bits must be whole numbers from 1 to 16"),
        ({"bits": (1.5,)}, "bits"),
        ({"pruner": "magnitud"}, "did you mean 'magnitude'"),
        ({"pruner": 3}, "pruner must be a name or a Pruner"),
        ({"pruner": "mean-std-band"}, "chooses the ratio itself"),
        ({"learning_rate": 1e30, "rounds": 20}, "diverged after"),
    ],
)
def test_bad_arguments_are_refused(digits: jo.Task, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        calibrate(digits, **{"rounds": 1, "points": 2, "samples": 5, **changes})


def test_too_few_samples_for_the_noise_of_batches(digits: jo.Task) -> None:
    with pytest.raises(InputError, match="samples must exceed the batch size 32"):
        calibrate(replace(digits, batch_size=32), rounds=1, points=2, samples=32)
    # a batch of everything has none
    assert not calibrate(replace(digits, batch_size=10**6), rounds=1, points=2, samples=8).walk.curvature[:, 1].any()


def test_no_task_is_refused() -> None:
    with pytest.raises(InputError, match="expected a Task"):
        calibrate("digits")  # type: ignore[arg-type]


def test_what_does_not_fit_is_refused(calibrated: Calibration, system: jo.System) -> None:
    decision = {"pruning_ratio": 0.2, "bits": 8, "power": 0.05}
    for other, words in (
        (jo.systems.ltfl(devices=5, seed=0), "is of 6 devices, the system has 5"),
        (system.with_(parameters=100), "other parameters, the system's learner has 100"),
        (system.with_(samples=system.devices.samples + 1), "device 0 had"),
        ("system", "expected a System"),
    ):
        with pytest.raises(InputError, match=words):
            calibrated.apply(other)  # type: ignore[arg-type]
        with pytest.raises(InputError, match=words):
            calibrated.forecast(decision, other)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="did you mean 'worst'"):
        calibrated.apply(system, "wurst")
    with pytest.raises(InputError, match="rounds"):
        calibrated.forecast(decision, system, -1)
    with pytest.raises(InputError, match="bits"):
        calibrated.forecast(decision | {"bits": 0}, system)


def test_summary_and_plot(calibrated: Calibration) -> None:
    text = calibrated.summary()
    assert "digits with mlp" in text
    assert "bootstrap over observed rounds and devices" in text
    assert all(name in text for name in calibrated.estimates)
    figure = calibrated.plot()
    labels = [axis.get_xlabel() + axis.get_ylabel() for axis in figure.axes]
    assert len(labels) == 3
    assert all("[" in label for label in labels)
    shown = figure.axes[1].lines[0].get_ydata()
    assert np.allclose(shown, calibrated.walk.quantized.mean(axis=0) @ calibrated.walk.weight)
    figure.canvas.draw()

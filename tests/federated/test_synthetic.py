"""Tasks with synthetic samples: class counts, what each level adds, what may be asked for, what is kept on disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jointopt.errors import InputError
from jointopt.federated import synthetic
from jointopt.federated.synthetic import missing, synthesize
from jointopt.federated.task import Losses, Task
from jointopt.system import System

PARTS = ("train_inputs", "train_labels", "test_inputs", "test_labels")


@pytest.fixture(scope="module")
def skewed() -> Task:
    return Task.make(data="digits", network="mlp", devices=5, alpha=0.3, batch_size=16, seed=3, hidden=(16,))


def made_by_device(task: Task) -> dict[tuple[int, int], torch.Tensor]:
    """The synthetic samples of each device and class, in order."""
    assert task.synthetic is not None
    out = {}
    for u, part in enumerate(task.parts):
        own = part[part >= task.synthetic.first]
        labels = task.data.train_labels[own].numpy()
        for c in range(task.data.classes):
            out[u, c] = task.data.train_inputs[own[labels == c]]
    return out


# Class counts -----------------------------------------------------------------------------------------------


def test_class_counts_are_those_of_the_labels(skewed: Task) -> None:
    assert skewed.class_counts.shape == (5, 10)
    np.testing.assert_array_equal(skewed.class_counts.sum(axis=1), skewed.samples)
    for u, part in enumerate(skewed.parts):
        labels = skewed.data.train_labels[part].tolist()
        assert skewed.class_counts[u].tolist() == [labels.count(c) for c in range(10)]


def test_for_system_deals_exactly_the_class_counts(dpq_system: Callable[..., System], skewed: Task) -> None:
    counts = np.random.default_rng(0).integers(0, 9, (5, 10))
    system = dpq_system(skewed).with_(class_counts=counts, samples=counts.sum(axis=1))
    task, same, other = (Task.for_system(system, "digits", seed=s) for s in (4, 4, 5))
    np.testing.assert_array_equal(task.class_counts, counts)
    assert task.batch_size == 16
    assert task.network == "mlp"  # found by its counts
    every = np.concatenate(task.parts)
    assert len(np.unique(every)) == len(every)  # nobody shares a sample
    assert all(np.array_equal(a, b) for a, b in zip(task.parts, same.parts, strict=True))
    assert not np.array_equal(every, np.concatenate(other.parts))
    task.check(system)


@pytest.mark.parametrize(
    ("device", "label", "message"),
    [(2, 7, "samples of class 7 together, 'digits' has"), (None, 0, "of 9 classes, 'digits' has 10")],
)
def test_class_counts_that_the_data_cannot_give(
    dpq_system: Callable[..., System], skewed: Task, device: int | None, label: int, message: str
) -> None:
    counts = np.full((5, 10), 3)
    if device is None:
        counts = np.full((5, 9), 3)
        system = dpq_system(skewed).with_(class_counts=counts, samples=counts.sum(axis=1), class_mix=np.full(9, 1 / 9))
    else:
        counts[device, label] = 400  # fewer than all samples together
        system = dpq_system(skewed).with_(class_counts=counts, samples=counts.sum(axis=1))
    with pytest.raises(InputError, match=message):
        Task.for_system(system, "digits", "mlp", hidden=(16,))


def test_other_class_counts_are_refused_and_from_task_takes_the_task_s(
    dpq_system: Callable[..., System], skewed: Task
) -> None:
    other = Task.make(data="digits", network="mlp", devices=5, alpha=0.3, batch_size=16, seed=4, hidden=(16,))
    system = dpq_system(skewed)
    fitted = System.from_task(other, template=system)
    other.check(fitted)
    assert fitted.augmentation is not None
    np.testing.assert_array_equal(fitted.augmentation.class_counts, other.class_counts)
    swapped = skewed.class_counts.copy()
    a, b = np.argmax(swapped[1]), np.argmin(swapped[1])
    swapped[1, [a, b]] = swapped[1, [b, a]]
    with pytest.raises(InputError, match=r"device 1 holds \d+ samples of class \d, the scenario says"):
        skewed.check(system.with_(class_counts=swapped))


# Levels -----------------------------------------------------------------------------------------------------


def test_what_a_level_adds(skewed: Task, drawn: Callable[..., Any], dpq_system: Callable[..., System]) -> None:
    before = {name: getattr(skewed.data, name).clone() for name in PARTS}
    generator, system = drawn(skewed.data), dpq_system(skewed)
    for level in (0.2, 0.5, 1.0, [0.0, 0.1, 0.3, 0.9, 1.0]):
        task = skewed.augmented(generator, level, seed=2)
        np.testing.assert_array_equal(
            task.class_counts,
            np.maximum(
                skewed.class_counts,
                np.ceil(np.round(np.broadcast_to(level, 5)[:, None] * skewed.class_counts.max(axis=1)[:, None], 8)),
            ),
        )
        task.check(system.augmented(level))
        assert task.synthetic is not None
        np.testing.assert_array_equal(task.class_counts - skewed.class_counts, task.synthetic.counts)
        for old, new in zip(skewed.parts, task.parts, strict=True):
            np.testing.assert_array_equal(new[: len(old)], old)
        # a real image of the very class it is labelled with
        for (_, c), images in made_by_device(task).items():
            known = skewed.data.train_inputs[skewed.data.train_labels == c].flatten(1)
            for image in images.flatten(1)[:2]:
                assert bool((known == image).all(dim=1).any())
        for name in ("test_inputs", "test_labels"):
            assert torch.equal(getattr(task.data, name), before[name])
    for name in PARTS:
        assert torch.equal(getattr(skewed.data, name), before[name])  # what was given stays as it was
    assert skewed.augmented(None, 0.0) is skewed
    assert "of them synthetic" in repr(task)


def test_a_sample_does_not_depend_on_the_level(skewed: Task, drawn: Callable[..., Any]) -> None:
    """Though every sample of this generator depends on the whole request."""
    generator = drawn(skewed.data)
    full = made_by_device(skewed.augmented(generator, 1.0, seed=5))
    others: list[Any] = [0.1, 0.33, 0.7, [0.0, 1.0, 0.2, 0.0, 0.6]]
    for level in others:
        some = made_by_device(skewed.augmented(generator, level, seed=5))
        assert any(len(images) for images in some.values())
        for key, images in some.items():
            assert torch.equal(images, full[key][: len(images)]), key
    other = made_by_device(skewed.augmented(generator, 1.0, seed=6))
    assert not all(torch.equal(other[key], images) for key, images in full.items())


def test_few_calls_and_little_waste(skewed: Task, drawn: Callable[..., Any]) -> None:
    for level in (0.05, 0.5, 1.0):
        generator = drawn(skewed.data)
        task = skewed.augmented(generator, level)
        assert task.synthetic is not None
        wanted = int(task.synthetic.counts.sum())
        assert wanted <= sum(generator.asked) < wanted + synthetic.BLOCK
        assert len(generator.asked) <= -(-wanted // synthetic.BLOCK)


def test_progress_is_shown_on_standard_error(
    skewed: Task, drawn: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    task = skewed.augmented(drawn(skewed.data), 0.3, progress=True)
    assert task.synthetic is not None
    shown = capsys.readouterr()
    made = int(task.synthetic.counts.sum())
    assert shown.out == ""
    assert f"{made} synthetic samples" in shown.err
    assert f"{made}/{made}" in shown.err
    skewed.augmented(drawn(skewed.data), 0.3)
    assert capsys.readouterr().err == ""


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.lists(st.integers(0, 7), min_size=3, max_size=3), min_size=1, max_size=4).filter(
        lambda rows: all(sum(row) for row in rows)
    ),
    levels=st.data(),
    block=st.integers(1, 9),
)
def test_any_counts_levels_and_blocks(counts: list[list[int]], levels: st.DataObject, block: int) -> None:
    class Numbered:
        """Samples that tell the request, the place in it, and their class."""

        name, fingerprint, shape = "numbered", "0", (3,)

        def sample(self, labels: Any, *, seed: int) -> torch.Tensor:
            request = float(seed % 65_537)
            return torch.tensor([[request, i, int(c)] for i, c in enumerate(labels)], dtype=torch.float32)

    held = np.array(counts, dtype=np.int64)
    unit = st.floats(0.0, 1.0)
    level = np.array(levels.draw(st.lists(unit, min_size=len(held), max_size=len(held))))
    before, synthetic.BLOCK = synthetic.BLOCK, block
    try:
        full, labels = synthesize(held, missing(held, np.ones(len(held))), Numbered(), 1)  # type: ignore[arg-type]
        some, own = synthesize(held, missing(held, level), Numbered(), 1)  # type: ignore[arg-type]
    finally:
        synthetic.BLOCK = before
    most, asked = missing(held, np.ones(len(held))), missing(held, level)
    assert np.array_equal(own, some[:, 2].numpy())
    assert np.array_equal(labels, full[:, 2].numpy())
    assert len({tuple(row) for row in full.tolist()}) == len(full)  # none given twice
    starts = np.concatenate([[0], np.cumsum(most.ravel())])
    expected = [full[starts[i] : starts[i] + n] for i, n in enumerate(asked.ravel())]
    assert torch.equal(some, torch.cat(expected))


@pytest.mark.parametrize(
    ("level", "message"),
    [
        (1.5, r"augmentation_level\[device 0\]: 1.5 must lie between 0 and 1"),
        (float("nan"), r"augmentation_level\[device 0\]: nan must lie"),
        ([0.1, 0.2, 0.3, -0.1, 0.5], r"\[device 3\]: -0.1 must lie"),
        ([0.1, 0.2], r"expected a number or one per device \(5\)"),
        ("much", "expected a number or one per device"),
        (True, "expected a number or one per device"),
    ],
)
def test_bad_levels(skewed: Task, drawn: Callable[..., Any], level: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        skewed.augmented(drawn(skewed.data), level)


def test_what_cannot_be_augmented(skewed: Task, drawn: Callable[..., Any]) -> None:
    generator = drawn(skewed.data)
    with pytest.raises(InputError, match=r"augmentation_level adds \d+ synthetic samples, .* give generator"):
        skewed.augmented(None, 0.4)
    for seed in (-1, 1.5, True):
        with pytest.raises(InputError, match="seed: must be a whole number of at least 0"):
            skewed.augmented(generator, 0.4, seed=seed)  # type: ignore[arg-type]
    task = skewed.augmented(generator, 0.4)
    with pytest.raises(InputError, match="synthetic samples already"):
        task.augmented(generator, 0.8)
    generator.data = "fashion-mnist"
    with pytest.raises(InputError, match="was made for data set 'fashion-mnist', not for 'digits'"):
        skewed.augmented(generator, 0.4)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda made: made.double(), "expected float32"),
        (lambda made: made[1:], "expected float32 samples of shape"),
        (lambda made: made.numpy(), "got ndarray"),
        (lambda made: made * float("nan"), "not finite"),
    ],
)
def test_generators_that_make_something_else(
    skewed: Task, drawn: Callable[..., Any], wrong: Callable[[Any], Any], message: str
) -> None:
    generator = drawn(skewed.data)
    right = generator.sample
    generator.sample = lambda labels, *, seed: wrong(right(labels, seed=seed))
    with pytest.raises(InputError, match=message):
        skewed.augmented(generator, 0.4)


# On disk ----------------------------------------------------------------------------------------------------


def test_stopped_work_goes_on_and_levels_share_it(skewed: Task, drawn: Callable[..., Any], tmp_path: Path) -> None:
    whole = skewed.augmented(drawn(skewed.data), 1.0, seed=3)
    generator = drawn(skewed.data)
    right = generator.sample

    def stop(labels: Any, *, seed: int) -> Any:
        if len(generator.asked) == 3:
            raise KeyboardInterrupt
        return right(labels, seed=seed)

    generator.sample = stop
    with pytest.raises(KeyboardInterrupt):
        skewed.augmented(generator, 1.0, seed=3, folder=tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) == 3
    again = drawn(skewed.data)
    task = skewed.augmented(again, 1.0, seed=3, folder=tmp_path)
    assert torch.equal(task.data.train_inputs, whole.data.train_inputs)
    blocks = len(list(tmp_path.glob("*.safetensors")))
    assert len(again.asked) == blocks - 3
    # damage is made good, other levels find what is there, other seeds and generators do not
    damaged = min(tmp_path.glob("*.safetensors"))
    damaged.write_bytes(damaged.read_bytes()[:-7])
    third = drawn(skewed.data)
    assert torch.equal(skewed.augmented(third, 1.0, seed=3, folder=tmp_path).data.train_inputs, whole.data.train_inputs)
    assert len(third.asked) == 1
    skewed.augmented(third, 0.5, seed=3, folder=tmp_path)
    assert len(third.asked) == 1
    for other, seed in ((drawn(skewed.data), 4), (drawn(skewed.data, mark="b"), 3)):
        found = skewed.augmented(other, 0.5, seed=seed, folder=tmp_path)
        assert torch.equal(found.data.train_inputs, skewed.augmented(other, 0.5, seed=seed).data.train_inputs)


def test_tasks_that_share_a_folder_keep_their_own(skewed: Task, drawn: Callable[..., Any], tmp_path: Path) -> None:
    generator = drawn(skewed.data)
    skewed.augmented(generator, 1.0, folder=tmp_path)
    for seed in (4, 5):
        other = Task.make(data="digits", devices=5, alpha=0.3, seed=seed)
        expected = other.augmented(generator, 1.0)
        found = other.augmented(generator, 1.0, folder=tmp_path)
        assert torch.equal(found.data.train_inputs, expected.data.train_inputs)


def test_a_folder_that_cannot_be_written_stops_nothing(skewed: Task, drawn: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.warns(RuntimeWarning, match="synthetic samples are not kept"):
        task = skewed.augmented(drawn(skewed.data), 1.0, folder=tmp_path / "file")
    assert torch.equal(task.data.train_inputs, skewed.augmented(drawn(skewed.data), 1.0).data.train_inputs)


# Gradients --------------------------------------------------------------------------------------------------


def test_class_gradients_are_over_real_samples(skewed: Task, drawn: Callable[..., Any]) -> None:
    task = skewed.augmented(drawn(skewed.data), 0.6)
    real, mixed = Losses(skewed), Losses(task)
    start = real.start
    mix = np.random.default_rng(0).dirichlet(np.ones(10))
    expected = torch.zeros_like(start, dtype=torch.float64)
    every = np.concatenate(skewed.parts)
    for c in range(10):
        rows = every[skewed.data.train_labels[every].numpy() == c]
        gradient = real.gradient(start, skewed.data.train_inputs[rows], skewed.data.train_labels[rows])
        torch.testing.assert_close(mixed.class_gradient(start, c)[1], gradient, rtol=1e-4, atol=1e-7)
        expected += mix[c] * gradient.double()
    torch.testing.assert_close(mixed.mixture_gradient(start, mix)[1].double(), expected, rtol=1e-4, atol=1e-7)
    # with the classes' own shares it is the loss of all devices before augmentation
    own = skewed.class_counts.sum(axis=0) / skewed.samples.sum()
    value, gradient = mixed.mixture_gradient(start, own)
    whole = real.global_gradient(start)
    assert value == pytest.approx(whole[0], rel=1e-5)
    torch.testing.assert_close(gradient, whole[1], rtol=1e-3, atol=1e-6)


def test_a_class_that_nobody_holds_is_left_out(skewed: Task) -> None:
    labels = skewed.data.train_labels.numpy()
    parts = tuple(part[labels[part] != 4] for part in skewed.parts)
    losses = Losses(Task(data=skewed.data, module=skewed.module, parts=parts))
    assert len(losses.class_rows[4]) == 0
    mix = np.full(10, 0.1)
    without = np.where(np.arange(10) == 4, 0.0, 1 / 9)
    one, two = (losses.mixture_gradient(losses.start, m)[1] for m in (mix, without))
    torch.testing.assert_close(one, two)

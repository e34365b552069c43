"""How far a client's training gradient is off, measured on samples held out of its training (theory 3b (iii)).

What is *measured*: each client's samples are split; the network is trained for some rounds on the training parts;
along the way, and at several pruning ratios, the squared distance of the client's training gradient to the gradient
on its held-out part is taken on the kept coordinates of the pruned model. The held-out part misses the population
gradient too, by its own sampling noise, whose mean square is estimated from its per-sample gradients and taken off.

What is a *model*: that the gap falls as 1/n, by which it is carried over from the training part to all n samples;
that it is affine in the kept coordinates, with the slope and offset that proposition 3 gives sigma_g^2 and I; and
that the few rounds looked at stand for the whole training. Proposition 3 is an upper bound and the fit goes through
the measured values, so that sigma_g^2 and I are effective numbers: Phi with them is what was seen, not proven to
cover what comes. Client data that are all there is (rather than a sample) have no population to miss; then the held
out samples stand for those the model will meet.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import nnls
from torch import Tensor

from jointopt.errors import InputError, is_real, is_whole
from jointopt.federated.task import Losses, Task, fixed_data
from jointopt.federated.threads import torch_threads
from jointopt.federated.warmup import sample_variance
from jointopt.models.generalization import entropy_cap
from jointopt.pruning import keep_mask, pruned_count
from jointopt.system import FloatArray

__all__ = ["GradientGaps", "measure_generalization", "measure_gradient_gaps"]

_RAW_BITS = 32.0
"""Bits of a raw parameter, for the largest information a model can hold."""


@dataclass(frozen=True, eq=False)
class GradientGaps:
    """Measured gaps between training and population gradients, means over splits and the path.

    Attributes
    ----------
    ratios : array [ratios]
        Pruning ratios.
    kept : array [ratios]
        Coordinates trained at each: kept weights plus parameters never pruned.
    samples, trained_on, held_out : arrays [clients]
        All samples, those of the training part, those held out.
    gap : array [ratios, clients]
        Phi as measured, carried over to all samples of the client; may be below 0 by chance.
    raw : array [ratios, clients]
        ||m * (training gradient - held-out gradient)||^2, with the noise of the held-out part, for the training part.
    error : array [ratios, clients]
        Standard deviation of `gap` over the splits by the square root of their number, infinite for one split. Splits
        share samples, so this says what more splits would still change, not what other samples would.
    """

    ratios: FloatArray
    kept: FloatArray
    samples: NDArray[np.int64]
    trained_on: NDArray[np.int64]
    held_out: NDArray[np.int64]
    gap: FloatArray
    raw: FloatArray
    error: FloatArray

    def generalization(self) -> dict[str, Any]:
        """Fit sigma_g^2 and I of each client, the fields of `jointopt.system.Generalization`.

        Non-negative least squares of Phi = offset + slope x kept. By proposition 3 slope = 2 ln 2 sigma_g^2 / n and
        offset = 4 sigma_g^2 I / n. Where the measured gaps do not grow with the kept coordinates, I would be
        without limit; it is kept at what the parameters can hold as raw floats (the entropy cap, theory 3b (i)).
        """
        most = float(entropy_cap(0.0, float(self.kept.max()), _RAW_BITS))
        proxy, information = np.zeros(len(self.samples)), np.zeros(len(self.samples))
        for k, count in enumerate(self.samples):
            # coordinates as a share of the largest number, so that both columns are of one size
            (offset, slope), _ = nnls(
                np.stack([np.ones_like(self.kept), self.kept / self.kept.max()], 1), self.gap[:, k]
            )
            slope /= self.kept.max()
            if offset * math.log(2.0) > 2.0 * slope * most:
                shape = most * 2.0 / math.log(2.0) + self.kept
                slope = max(float(shape @ self.gap[:, k] / (shape @ shape)), 0.0)
                offset = slope * most * 2.0 / math.log(2.0)
            proxy[k] = slope * count / (2.0 * math.log(2.0))
            information[k] = offset * math.log(2.0) / (2.0 * slope) if slope > 0.0 else 0.0
        return {"gradient_proxy": proxy, "mutual_information": information, "mutual_information_law": "fixed"}


_Split = list[tuple[NDArray[np.int64], NDArray[np.int64]]]


def _split(task: Task, held_out: float, seed: int, number: int) -> _Split:
    """Return (training rows, held-out rows) of each client, sorted.

    The draw depends on the seed and the count of samples alone, so that the order of the clients does not matter.
    """
    parts = []
    for k, count in enumerate(task.samples.tolist()):
        if count < 3:
            held = "1 sample" if count == 1 else f"{count} samples"
            raise InputError(
                f"measure_generalization: client {k} has {held}, too few to hold some out; it takes 3 (one to train "
                "on, two for the noise of the held-out part)"
            )
        aside = min(max(round(held_out * count), 2), count - 1)
        order = np.random.default_rng(np.random.SeedSequence([seed, number, count])).permutation(count)
        parts.append((np.sort(order[aside:]), np.sort(order[:aside])))
    return parts


def measure_gradient_gaps(
    task: Task,
    *,
    rounds: int = 10,
    learning_rate: float = 0.1,
    seed: int = 0,
    splits: int = 4,
    held_out: float = 0.3,
    ratios: Sequence[float] = (0.0, 0.3, 0.6, 0.9),
    variance_samples: int = 64,
    threads: int | None = 1,
) -> GradientGaps:
    """Measure the gaps that `measure_generalization` fits; same arguments and errors."""
    fixed_data(task, "measure_gradient_gaps")
    if not (is_whole(rounds) and rounds >= 1):
        raise InputError(f"measure_generalization: rounds must be a whole number of at least 1, found {rounds!r}")
    if not (is_real(learning_rate) and math.isfinite(learning_rate) and learning_rate > 0.0):
        raise InputError(f"measure_generalization: learning_rate must be finite and above 0, found {learning_rate!r}")
    if not (is_whole(seed) and seed >= 0):
        raise InputError(f"measure_generalization: seed must be a whole number of at least 0, found {seed!r}")
    if not (is_whole(splits) and splits >= 1):
        raise InputError(f"measure_generalization: splits must be a whole number of at least 1, found {splits!r}")
    if not (is_real(held_out) and 0.0 < held_out < 1.0):
        raise InputError(f"measure_generalization: held_out must lie above 0 and below 1, found {held_out!r}")
    if not (is_whole(variance_samples) and variance_samples >= 2):
        raise InputError(f"measure_generalization: variance_samples must be at least 2, found {variance_samples!r}")
    ratios = tuple(ratios)
    if not all(is_real(ratio) and 0.0 <= ratio < 1.0 for ratio in ratios):
        raise InputError(f"measure_generalization: ratios must lie in 0 to below 1, found {ratios}")
    losses = Losses(task)
    asked = np.array(ratios, dtype=np.float64)
    kept = len(losses.start) - np.asarray(pruned_count(asked, task.parameters), dtype=np.float64)
    if len(set(kept.tolist())) < 2:
        raise InputError(f"measure_generalization: needs two ratios that prune differently, found {ratios}")
    made = [_split(task, held_out, seed, number) for number in range(splits)]
    with torch_threads(threads):
        walks = [
            _walk(losses, task, split, asked, rounds, learning_rate, variance_samples, (seed, number))
            for number, split in enumerate(made)
        ]
    squares, noise = (np.stack([walk[which] for walk in walks]) for which in (0, 1))
    trained_on, aside = (np.array([len(part[side]) for part in made[0]], dtype=np.int64) for side in (0, 1))
    gaps = (squares - noise) * (trained_on / task.samples)
    several = splits > 1
    return GradientGaps(
        ratios=asked,
        kept=kept,
        samples=task.samples,
        trained_on=trained_on,
        held_out=aside,
        gap=gaps.mean(axis=0),
        raw=squares.mean(axis=0),
        error=gaps.std(axis=0, ddof=1) / math.sqrt(splits) if several else np.full(gaps.shape[1:], np.inf),
    )


def _diverged(number: int, learning_rate: float) -> InputError:
    return InputError(
        f"measure_generalization: diverged after {number + 1} rounds; try a learning rate below {learning_rate:g}"
    )


def _walk(
    losses: Losses,
    task: Task,
    parts: _Split,
    ratios: FloatArray,
    rounds: int,
    learning_rate: float,
    most: int,
    seed: tuple[int, int],
) -> tuple[FloatArray, FloatArray]:
    """Train on the training parts; return mean squared distances and their noise along the way [ratios, clients]."""
    share = np.array([len(train) for train, _ in parts], dtype=np.float64)
    share /= share.sum()
    weights = losses.start.clone()
    squares, noise = (np.zeros((len(ratios), len(parts))) for _ in range(2))
    for number in range(rounds):
        total = torch.zeros_like(weights, dtype=torch.float64)
        for k, (train, _) in enumerate(parts):
            total += share[k] * losses.device_gradient(weights, k, train)[1].to(torch.float64)
        weights = weights - learning_rate * total.to(weights.dtype)
        if not bool(torch.isfinite(weights).all()):
            raise _diverged(number, learning_rate)
        for j, ratio in enumerate(ratios):
            keep = torch.ones_like(losses.prunable)
            keep[losses.prunable] = keep_mask(weights[losses.prunable], float(ratio))
            pruned = weights * keep
            for k, (train, test) in enumerate(parts):
                rng = np.random.default_rng(np.random.SeedSequence([*seed, int(task.samples[k]), number]))
                square, own = _apart(losses, pruned, keep, k, train, test, most, rng)
                squares[j, k] += square / rounds
                noise[j, k] += own / rounds
        if not (np.all(np.isfinite(squares)) and np.all(np.isfinite(noise))):
            raise _diverged(number, learning_rate)
    return squares, noise


def _apart(
    losses: Losses,
    weights: Tensor,
    keep: Tensor,
    client: int,
    train: NDArray[np.int64],
    test: NDArray[np.int64],
    most: int,
    rng: np.random.Generator,
) -> tuple[float, float]:
    """Squared distance of training to held-out gradient on the kept coordinates, and the latter's sampling noise."""
    difference = losses.device_gradient(weights, client, train)[1] - losses.device_gradient(weights, client, test)[1]
    rows = rng.choice(test, min(most, len(test)), replace=False)
    variance = sample_variance(losses, weights, client, rows, keep)
    return float((difference * keep).to(torch.float64).square().sum()), variance / len(test)


def measure_generalization(
    task: Task,
    *,
    rounds: int = 10,
    learning_rate: float = 0.1,
    seed: int = 0,
    splits: int = 4,
    held_out: float = 0.3,
    ratios: Sequence[float] = (0.0, 0.3, 0.6, 0.9),
    variance_samples: int = 64,
    threads: int | None = 1,
) -> dict[str, Any]:
    """Measure sigma_g^2 and I of each client on samples held out of a short dense warm-up (theory 3b (iii) [S]).

    The numbers are effective ones, see the module: the gaps at several pruning ratios are measured, without the
    noise of the held-out samples; the law of proposition 3 in n and in the kept coordinates is then fitted to them.
    They are noisy for clients of few samples: their gap may even vanish by chance. `measure_gradient_gaps` returns
    what was measured, with an idea of its error.

    Parameters
    ----------
    task : Task
        What will be trained; it is left as it is.
    rounds : int
        Steps of full-batch gradient descent on the training parts; the gaps are measured after each.
    learning_rate : float
        Step size of the warm-up.
    seed : int
        Seed of the splits and of the samples drawn.
    splits : int
        Splits made; each repeats the warm-up. One alone is noisy, since its noise is the same all along the path.
    held_out : float
        Share of each client's samples that is held out, in (0, 1); at least two samples are.
    ratios : sequence of float
        Pruning ratios at which the gap is measured, in [0, 1), two of them different.
    variance_samples : int
        Held-out samples per client, ratio and round from which the noise of the held-out gradient is estimated.
    threads : int, optional
        Torch threads while measuring; the caller's number when None. One is fastest for networks this small.

    Returns
    -------
    dict
        The fields of `jointopt.system.Generalization`, arrays of shape ``[clients]``, so that
        ``system.replace(generalization=Generalization(**measure_generalization(task)))`` uses them.

    Raises
    ------
    InputError
        An argument is out of its range, a client has fewer than 3 samples, or the warm-up diverges.
    """
    fixed_data(task, "measure_generalization")
    return measure_gradient_gaps(
        task,
        rounds=rounds,
        learning_rate=learning_rate,
        seed=seed,
        splits=splits,
        held_out=held_out,
        ratios=ratios,
        variance_samples=variance_samples,
        threads=threads,
    ).generalization()

"""How a training run should go, from what a warm-up showed (theory L4, round by round).

One step along g = (mean of g) + n changes F by -eta <grad F, g> + (eta^2/2) g^T H g, the noise n having mean zero. The
warm-up knows, as functions of the loss reached so far: how large the gradient is, how much of a step along it the
curvature leaves, which part of the progress each device keeps at a pruning ratio, and how steep the loss is along the
noise of quantizer, batches and lost packets.

The noise adds a loss of its own, (eta^2/2) n^T H n a round, which later rounds take away again as they would on a
quadratic: what is left of it is multiplied by (1 - eta h)^2, with h = ||H n||^2 / n^T H n, since that loss lies in the
steep ones of the directions that noise goes into. Putting all that together round by round gives a loss and a gradient
norm.

It is a forecast and proves nothing: but for the noise, the model is taken to be where the dense model was when it had
that loss. Unlike in the bound, an error that shrinks with the gradient does so here, errors of many devices cancel as
they do in the mean, and noise counts by the curvature it meets, not by the steepest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from jointopt.errors import InputError, is_whole
from jointopt.federated.ledger import round_cost
from jointopt.federated.plan import trainable
from jointopt.study.walk import Walk
from jointopt.system import FloatArray, System

__all__ = ["Forecast", "effective_range", "forecast"]


@dataclass(frozen=True, eq=False)
class Forecast:
    """What is expected of a run of T rounds.

    Attributes
    ----------
    loss : array [T + 1]
        F after each round, from the start.
    square : array [T]
        ||grad F||^2 at the start of each round.
    """

    loss: FloatArray
    square: FloatArray

    @property
    def final_loss(self) -> float:
        """F after the last round."""
        return float(self.loss[-1])

    @property
    def mean_square(self) -> float:
        """||grad F||^2, the mean over rounds."""
        return float(self.square.mean())

    def __repr__(self) -> str:
        return (
            f"Forecast({len(self.square)} rounds: loss {self.loss[0]:.4g} to {self.final_loss:.4g}, "
            f"mean ||grad F||^2 {self.mean_square:.4g})"
        )


def effective_range(walk: Walk) -> FloatArray:
    """Delta^2 [P, U] with which n Delta^2 / (4 (2^bits - 1)^2) is the measured error, in geometric mean over widths."""
    steps = (2.0**walk.bits - 1.0)[:, None]
    with np.errstate(divide="ignore"):
        logarithm = np.log(walk.quantized * 4.0 * steps**2)
    out: FloatArray = np.exp(logarithm.mean(axis=1))
    return out


def _kept_progress(walk: Walk, ratio: FloatArray) -> FloatArray:
    """Progress <grad F, m grad F_u(m w)> at the devices' ratios, [P, U]; straight between the ratios measured."""
    knots = np.concatenate([[0.0], walk.ratios, [1.0]])
    ends = np.zeros_like(walk.aligned)[:, None]
    table = np.concatenate([walk.aligned[:, None], walk.progress, ends], axis=1)
    return np.stack([[np.interp(r, knots, table[p, :, u]) for u, r in enumerate(ratio)] for p in range(len(walk.at))])


def forecast(walk: Walk, decision: Mapping[str, Any], system: System, rounds: int, learning_rate: float) -> Forecast:
    """Return how a run under a decision should go.

    Parameters
    ----------
    walk : Walk
        The warm-up, made with step size `learning_rate`.
    decision : mapping
        As in `jointopt.federated.train`.
    system : System
        Its step size is that of the run.

    Raises
    ------
    InputError
        Training could not carry out the decision, or the rounds are no whole number of at least 0.
    """
    if not (is_whole(rounds) and rounds >= 0):
        raise InputError(f"forecast: rounds must be a whole number of at least 0, found {rounds!r}")
    chosen = trainable(decision, system)
    cost, learner = round_cost(system, chosen), system.learner
    share = walk.weight * cost.selected
    arrives = 1.0 - cost.packet_error
    mass = float(np.sum(share * arrives))
    somebody = 1.0 - float(np.prod(np.where(cost.selected, cost.packet_error, 1.0)))
    eta = system.bound.learning_rate

    # what the mean over those who arrive is expected to be: its progress, and the squares of its noises, by point [P]
    kept = _kept_progress(walk, chosen["pruning_ratio"])
    mean = share * arrives / max(mass, 1e-300)
    dense = walk.square[walk.at.astype(np.int64)]
    drift = somebody * np.sum(mean * kept, axis=1) * _curving(walk, dense, learning_rate)
    entries = (1.0 - chosen["pruning_ratio"]) * learner.parameters + learner.unpruned_parameters
    entries /= learner.parameters + learner.unpruned_parameters
    steps = 2.0 ** chosen["bits"] - 1.0
    exact = chosen["bits"] >= 32.0
    squares = share**2 * arrives / max(mass, 1e-300) ** 2
    sampled = system.batch < walk.samples
    noise = np.stack(
        [
            np.sum(squares * np.where(exact, 0.0, entries * effective_range(walk) / (4.0 * steps**2)), axis=1),
            np.sum(squares * walk.variance * np.where(sampled, 1.0 / system.batch - 1.0 / walk.samples, 0.0), axis=1),
            np.sum(squares * cost.packet_error * walk.apart, axis=1),
        ],
        axis=1,
    )
    return _integrate(walk, eta, eta * drift, noise, dense, int(rounds))


def _curving(walk: Walk, dense: FloatArray, learning_rate: float) -> FloatArray:
    """Share of a dense step's first-order decrease that curvature left, by point [P]."""
    before = np.minimum(walk.at.astype(np.int64), walk.rounds - 1)
    first_order = learning_rate * walk.square[before]
    decrease = walk.loss[before] - walk.loss[before + 1]
    return np.divide(decrease, first_order, out=np.ones_like(dense), where=first_order > 0.0)


def _integrate(
    walk: Walk, eta: float, fall: FloatArray, noise: FloatArray, square: FloatArray, rounds: int
) -> Forecast:
    """Go round by round: `fall` [P] of the loss, squares of `noise` [P, 3] and of the gradient [P], by point."""
    reached = walk.loss[walk.at.astype(np.int64)]
    order = np.argsort(reached)
    at, least = reached[order], float(reached.min())
    rise, turn = np.maximum(walk.curvature, 0.0) * noise, walk.bending * noise
    table = np.column_stack([fall, square, rise, turn])[order]
    kinds = noise.shape[1]
    smooth, added = float(walk.loss[0]), np.zeros(kinds)
    losses, squares = [smooth], []
    for _ in range(rounds):
        row = np.array([np.interp(smooth, at, column) for column in table.T])
        # beyond the warm-up's end gradients shrink with the loss, which is never negative
        row[:2] *= min(1.0, max(smooth, 0.0) / least) if least > 0.0 else 1.0
        rising, turning = row[2 : 2 + kinds], row[2 + kinds :]
        steep = np.divide(turning, rising, out=np.zeros(kinds), where=rising > 0.0)
        squares.append(row[1] + 2.0 * float(steep @ added))
        smooth -= row[0]
        added = np.minimum((1.0 - eta * steep) ** 2, 1.0) * added + 0.5 * eta**2 * rising
        losses.append(smooth + float(added.sum()))
    return Forecast(np.array(losses), np.array(squares))

"""The gap between training and population gradients (theory 3b, proposition 3).

A device trains on its n samples but is judged on the distribution they were drawn from. How far the gradient of the
training loss may be off depends on how noisy one sample's gradient is (the proxy sigma_g^2), on how many coordinates
are trained, and on how much the model W already knows about these very samples: the mutual information I(W; D) in
nats. The statements are "in the manner of" the published one: derived here [D], not quoted.

All functions take NumPy arrays or torch tensors of any broadcastable shape and differentiate in torch.
"""

from __future__ import annotations

import math
from typing import Any, Literal

from jointopt.models._array import as_array, namespace

__all__ = [
    "InformationLaw",
    "entropy_cap",
    "gaussian_information",
    "gradient_gap",
    "gradient_gap_from_loss_gap",
    "information",
    "langevin_information",
    "loss_gap",
]

Array = Any
InformationLaw = Literal["fixed", "proportional"]

_LN2 = math.log(2.0)


def information(mutual_information: Array, pruning_ratio: Array, law: InformationLaw = "fixed") -> Array:
    """Mutual information left after pruning [nats] (3b [S]).

    Parameters
    ----------
    mutual_information : array
        I of the dense model [nats].
    pruning_ratio : array
        Fraction of the prunable weights removed.
    law : {"fixed", "proportional"}
        Fixed: pruning forgets nothing, a bound by the data-processing inequality where the pruned model is a
        function of the dense one. Proportional: I falls with the kept fraction 1 - ratio (an assumption).
    """
    if law == "proportional":
        return mutual_information * (1.0 - pruning_ratio)
    return mutual_information + 0.0 * pruning_ratio


def gradient_gap(
    *,
    samples: Array,
    gradient_proxy: Array,
    mutual_information: Array,
    pruning_ratio: Array,
    parameters: Array,
    unpruned: Array = 0.0,
    law: InformationLaw = "fixed",
) -> Array:
    """Bound Phi >= E||m * (grad Fhat(W) - grad F(W))||^2 for any W that depends on the data (proposition 3, 3b [D]).

    Phi = (4 sigma_g^2 / n) [I + (ln 2 / 2) d] with d = (1 - r) V + unpruned, the coordinates that are trained. For
    a fixed w the difference v of the gradients has proxy s^2 = sigma_g^2 / n in every direction, so that
    E exp(lambda ||v||^2) <= (1 - 2 lambda s^2)^(-d/2); Donsker-Varadhan with lambda = 1/(4 s^2) gives Phi.

    Parameters
    ----------
    samples : array
        n, above 0.
    gradient_proxy : array
        sigma_g^2: sub-Gaussian proxy of one sample's gradient in one coordinate.
    mutual_information : array
        I(W; D) of the dense model and the samples [nats].
    pruning_ratio : array
        r: fraction of the prunable weights removed.
    parameters : array
        V: weights that can be pruned.
    unpruned : array
        Parameters that are trained but never pruned.
    law : {"fixed", "proportional"}
        What pruning does to I, see `information`.
    """
    known = information(mutual_information, pruning_ratio, law)
    trained = (1.0 - pruning_ratio) * parameters + unpruned
    return 4.0 * gradient_proxy / samples * (known + 0.5 * _LN2 * trained)


def loss_gap(loss_proxy: Array, mutual_information: Array, samples: Array) -> Array:
    """Bound sqrt(2 sigma^2 I / n) of |E[F(W) - Fhat(W)]| (3b [K], Xu and Raginsky 2017).

    `loss_proxy` is the sub-Gaussian proxy sigma^2 of one sample's loss, `mutual_information` is in nats.
    """
    return (2.0 * loss_proxy * mutual_information / samples) ** 0.5


def gradient_gap_from_loss_gap(smoothness: Array, loss_gap: Array) -> Array:
    """Bound 8 L eps of ||grad Fhat - grad F||^2 where |Fhat - F| <= eps everywhere (3b [D]).

    h = Fhat - F is 2L-smooth, so ||grad h||^2 <= 4 L (h - inf h), and h - inf h <= 2 eps.
    """
    return 8.0 * smoothness * loss_gap


def entropy_cap(pruning_ratio: Array, parameters: Array, bits: Array, unpruned: Array = 0.0) -> Array:
    """Largest I of a model of d kept parameters of some bits [nats]: its entropy, at most d x bits x ln 2 (3b (i) [K]).

    Parameters
    ----------
    pruning_ratio : array
        Fraction of the prunable weights removed.
    parameters : array
        Weights that can be pruned.
    bits : array
        Bits per kept parameter.
    unpruned : array
        Parameters that are never pruned.
    """
    return ((1.0 - pruning_ratio) * parameters + unpruned) * bits * _LN2


def langevin_information(
    learning_rate: Array, gradient_norm_squared: Array, noise_variance: Array, coordinates: Array, steps: Array = 1.0
) -> Array:
    """I after steps of noisy gradient descent [nats], at most T (d/2) ln(1 + eta^2 G^2 / (d sigma^2)) (3b (ii) [K]).

    Each step adds Gaussian noise of variance sigma^2 per coordinate, and a Gaussian channel of d inputs with total
    power eta^2 G^2 carries at most so much; the chain rule adds the steps up (Pensia, Jog and Loh 2018). For
    training without such noise it is a surrogate only, with a noise one has to choose [S].

    Parameters
    ----------
    learning_rate : array
        Step size eta.
    gradient_norm_squared : array
        G^2: bound of ||gradient||^2 that one step takes from the samples.
    noise_variance : array
        sigma^2 of the noise of one step per coordinate, above 0.
    coordinates : array
        d.
    steps : array
        T, steps alike.
    """
    signal = as_array(
        learning_rate**2 * gradient_norm_squared / (coordinates * noise_variance),
        namespace(learning_rate, gradient_norm_squared, noise_variance, coordinates),
    )
    return steps * 0.5 * coordinates * namespace(signal).log1p(signal)


def gaussian_information(noise: Array, gradient_proxy: Array, samples: Array, coordinates: Array) -> Array:
    """I(W; D) of W = mean of D + tau z [nats], in closed form: (d/2) ln(1 + sigma^2 / (n tau^2)) (3f [D]).

    D are n samples of N(mu, sigma^2 1_d) and z is standard normal, so W depends on D through its mean alone, a
    Gaussian channel. For the loss ||w - x||^2 / 2 the gradient gap ||mean - mu||^2 is then sigma^2 d / n on
    average, whatever tau is, which makes this the case to test `gradient_gap` with.

    Parameters
    ----------
    noise : array
        tau, above 0: standard deviation of the noise added.
    gradient_proxy : array
        sigma^2, the variance of one sample in one coordinate.
    samples : array
        n.
    coordinates : array
        d.
    """
    ratio = gradient_proxy / (samples * noise**2)
    xp = namespace(ratio)
    return 0.5 * coordinates * xp.log1p(as_array(ratio, xp))

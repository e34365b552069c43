"""Global magnitude pruning of a flat weight vector, and the pruning ratios such a vector allows."""

from __future__ import annotations

from typing import overload

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from jointopt.errors import InputError

__all__ = ["keep_mask", "pruned_count", "snap"]

_MOST_PARAMETERS = 10**9


def _product(ratio: ArrayLike, parameters: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return ratio x parameters and how far from a whole number still counts as whole."""
    ratios = np.asarray(ratio, dtype=np.float64)
    counts = np.asarray(parameters)
    bad = ~((ratios >= 0) & (ratios <= 1))  # so that NaN is bad too
    if bad.any():
        raise InputError(f"ratio must lie in [0, 1], found {ratios[bad].flat[0]}")
    if counts.dtype.kind not in "iu":
        raise InputError(f"parameters must be whole numbers, found type {counts.dtype}")
    if counts.size and (counts.min() < 1 or counts.max() > _MOST_PARAMETERS):
        raise InputError(f"parameters must lie in 1 .. {_MOST_PARAMETERS}, found {counts.min()} .. {counts.max()}")
    product = np.asarray(ratios * counts)
    # 1e-9 alone is below the spacing of float64 from about 4 million on, where (j / V) * V may miss j.
    return product, np.maximum(1e-9, 4 * np.finfo(np.float64).eps * product)


@overload
def snap(ratio: float, parameters: int) -> float: ...
@overload
def snap(ratio: ArrayLike, parameters: ArrayLike) -> float | NDArray[np.float64]: ...
def snap(ratio: ArrayLike, parameters: ArrayLike) -> float | NDArray[np.float64]:
    """Round pruning ratios up to the next multiple of 1 / parameters.

    A ratio within 1e-9 / parameters (or four rounding errors, if more) of a multiple goes to that multiple,
    also when this is downwards, so that snapping again changes nothing.

    Parameters
    ----------
    ratio
        Pruned share of the prunable weights, in [0, 1], any shape.
    parameters
        Number of prunable weights V, 1 .. 1e9, of a shape that broadcasts with `ratio`.

    Returns
    -------
    float or ndarray
        A float if both are scalars, else float64 of the broadcast shape, in [0, 1].

    Raises
    ------
    InputError
        A ratio or a number of parameters is out of its range.
    """
    product, slack = _product(ratio, parameters)
    # maximum: ceil of a tiny negative number is -0.0.
    snapped = np.maximum(np.ceil(product - slack), 0.0) / np.asarray(parameters)
    return float(snapped) if snapped.ndim == 0 else snapped


@overload
def pruned_count(ratio: float, parameters: int) -> int: ...
@overload
def pruned_count(ratio: ArrayLike, parameters: ArrayLike) -> int | NDArray[np.int64]: ...
def pruned_count(ratio: ArrayLike, parameters: ArrayLike) -> int | NDArray[np.int64]:
    """Number of weights a ratio prunes: floor(ratio x parameters), with the tolerance of `snap`.

    On a snapped ratio j / parameters this is exactly j. Arguments and errors as in `snap`; an int if both
    are scalars, else int64 of the broadcast shape.
    """
    product, slack = _product(ratio, parameters)
    count = np.floor(product + slack).astype(np.int64)
    return int(count) if count.ndim == 0 else count


def check_weights(weights: Tensor) -> None:
    """Raise `InputError` unless `weights` is a finite floating-point vector."""
    if weights.ndim != 1 or not weights.is_floating_point():
        raise InputError(
            f"weights must be a 1-D floating-point tensor, found {weights.dtype} of shape {tuple(weights.shape)}"
        )
    finite = torch.isfinite(weights)
    if not bool(finite.all()):
        first = int(torch.nonzero(~finite)[0])
        raise InputError(f"weights must be finite, found {float(weights[first])} at index {first}")


def prune_rank(weights: Tensor) -> Tensor:
    """Return the order in which the weights would be pruned, int64, shape [V].

    ``prune_rank(weights) >= pruned_count(ratio, V)`` equals ``keep_mask(weights, ratio)``: one sort serves every
    ratio. Errors as in `keep_mask`.
    """
    check_weights(weights)
    order = torch.sort(weights.detach().abs(), stable=True).indices
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order), device=order.device)
    return rank


def keep_mask(weights: Tensor, ratio: float) -> Tensor:
    """Mask out the smallest magnitudes of the whole vector.

    Exactly ``pruned_count(ratio, V)`` entries are pruned, whatever ties there are: of equal magnitudes the
    lowest index goes first. A larger ratio therefore prunes a superset.

    Parameters
    ----------
    weights
        The V prunable weights, shape [V], floating point.
    ratio
        Share to prune, in [0, 1].

    Returns
    -------
    Tensor
        bool, shape [V], on the device of `weights`: True where the weight is kept.

    Raises
    ------
    InputError
        A weight is NaN or infinite, the vector is not one, or the ratio is out of its range.
    """
    check_weights(weights)
    magnitudes = weights.detach().abs()
    keep = torch.ones_like(magnitudes, dtype=torch.bool)
    # An empty vector has nothing to prune, but its ratio is still checked.
    pruned = min(pruned_count(float(ratio), max(len(magnitudes), 1)), len(magnitudes))
    if pruned > 0:
        # The same mask as a stable sort, several times faster: the k-th value, then its ties by index.
        threshold = torch.kthvalue(magnitudes, pruned).values
        below = magnitudes < threshold
        ties = torch.nonzero(magnitudes == threshold).squeeze(1)
        keep[below] = False
        keep[ties[: pruned - int(below.sum())]] = False
    return keep

"""Global magnitude pruning of a flat weight vector, and the pruning ratios such a vector allows."""

from __future__ import annotations

import math
from typing import overload

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from jointopt.errors import InputError, NonFiniteError

__all__ = ["keep_mask", "prune_rank", "pruned_count", "random_mask", "snap"]

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
    if len(weights) == 0:
        return
    low, high = torch.aminmax(weights.detach())  # one pass without a temporary; NaN if any entry is
    if not (math.isfinite(low) and math.isfinite(high)):
        first = int(torch.nonzero(~torch.isfinite(weights))[0])
        raise NonFiniteError(f"weights must be finite, found {float(weights[first])} at index {first}")


def sort_keys(keys: Tensor) -> Tensor:
    """Return keys in rising order, for `lowest` to look thresholds up in."""
    return torch.from_numpy(np.sort(keys.numpy())) if _in_numpy(keys) else keys.sort().values


def lowest(keys: Tensor, count: int, ordered: Tensor | None = None) -> Tensor:
    """Return False for the `count` lowest keys, of equal ones the lowest index first; bool [n].

    The same as a stable sort, many times faster: the count-th key, then its ties by index. `ordered` is what
    `sort_keys` returns of the keys, if known.
    """
    if count == 0:
        return torch.ones_like(keys, dtype=torch.bool)
    if ordered is not None:
        threshold = float(ordered[count - 1])
    elif _in_numpy(keys):
        threshold = float(np.partition(keys.numpy(), count - 1)[count - 1])
    else:
        threshold = float(torch.kthvalue(keys, count).values)
    keep = keys > threshold
    too_many = len(keys) - count - int(torch.count_nonzero(keep))
    if too_many > 0:
        keep[torch.nonzero(keys == threshold)[-too_many:, 0]] = True
    return keep


def _in_numpy(keys: Tensor) -> bool:
    """Whether NumPy may sort the keys: with vector instructions, ten times faster than torch."""
    return keys.device.type == "cpu" and keys.dtype in (torch.float32, torch.float64)


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
    # An empty vector has nothing to prune, but its ratio is still checked.
    return lowest(magnitudes, min(pruned_count(float(ratio), max(len(magnitudes), 1)), len(magnitudes)))


def random_mask(weights: Tensor, ratio: float, generator: torch.Generator | None = None, /) -> Tensor:
    """Mask out weights chosen uniformly at random: the baseline for any cleverer rule.

    From the same state of the generator, a larger ratio prunes a superset. Arguments, result and errors as
    in `jointopt.pruning.keep_mask`; `InputError` too without a generator.
    """
    check_weights(weights)
    if generator is None:
        raise InputError("random pruning needs a seeded torch.Generator, found None")
    order = torch.randperm(len(weights), generator=generator, device=generator.device).to(weights.device)
    keep = torch.ones_like(weights, dtype=torch.bool)
    keep[order[: pruned_count(float(ratio), max(len(weights), 1))]] = False
    return keep

"""Split of a data set's samples over the devices, alike (iid) or with skewed labels (Dirichlet)."""

from __future__ import annotations

import math
import operator

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from jointopt.errors import InputError, nearest

__all__ = ["SCHEMES", "partition"]

SCHEMES = ("dirichlet", "iid")
"""The schemes `partition` knows."""

_LARGEST_ALPHA = 1e12  # numpy's Dirichlet overflows near 1e308, and above this the mix is flat anyway


def _whole(field: str, value: object, least: int) -> int:
    try:
        if isinstance(value, bool | np.bool_):
            raise TypeError
        number = operator.index(value)  # type: ignore[arg-type]  # refused at run time
    except TypeError:
        raise InputError(f"{field} must be a whole number, found {value!r}") from None
    if number < least:
        raise InputError(f"{field} must be at least {least}, found {number}")
    return number


def _checked_sizes(sizes: ArrayLike, devices: int, samples: int, minimum: int) -> NDArray[np.int64]:
    given = np.asarray(sizes)
    if given.shape != (devices,):
        raise InputError(f"sizes must have shape ({devices},), one per device, found {given.shape}")
    if given.dtype.kind not in "iu":
        raise InputError(f"sizes must be whole numbers, found type {given.dtype}")
    # Compared and added as Python integers: uint64 entries could wrap around in int64.
    wanted = [int(size) for size in given]
    for device, size in enumerate(wanted):
        if size < minimum:
            raise InputError(f"sizes[{device}] must be at least the minimum {minimum}, found {size}")
    if sum(wanted) > samples:
        raise InputError(f"sizes add up to {sum(wanted)} samples, but only {samples} are available")
    return np.array(wanted, dtype=np.int64)


def _class_over_devices(
    pools: list[NDArray[np.int64]], devices: int, alpha: float, minimum: int, rng: np.random.Generator
) -> list[NDArray[np.int64]]:
    """Cut every class by its own Dirichlet proportions over the devices, then top up the short devices."""
    parts: list[list[int]] = [[] for _ in range(devices)]
    for pool in pools:
        shares = rng.dirichlet(np.full(devices, alpha))
        cuts = np.floor(np.cumsum(shares)[:-1] * len(pool)).astype(np.int64)
        for part, piece in zip(parts, np.split(pool, np.minimum(cuts, len(pool))), strict=True):
            part.extend(piece.tolist())

    # Moving, rather than drawing again until all have enough, always ends and disturbs no other device.
    sizes = np.array([len(part) for part in parts], dtype=np.int64)
    for device in np.flatnonzero(sizes < minimum):
        while sizes[device] < minimum:
            donor = int(np.argmax(sizes))
            parts[device].append(parts[donor].pop(int(rng.integers(sizes[donor]))))
            sizes[donor] -= 1
            sizes[device] += 1
    return [np.array(part, dtype=np.int64) for part in parts]


def _devices_over_class(
    pools: list[NDArray[np.int64]], sizes: NDArray[np.int64], alpha: float, rng: np.random.Generator
) -> list[NDArray[np.int64]]:
    """Fill every device by its own Dirichlet mix of classes, falling back where a class has run out."""
    left = np.array([len(pool) for pool in pools], dtype=np.int64)
    parts: list[NDArray[np.int64]] = [np.empty(0, dtype=np.int64)] * len(sizes)
    # In random order, because the last ones served get what is left, and that should not follow the index.
    for device in rng.permutation(len(sizes)):
        mix = rng.dirichlet(np.full(len(pools), alpha))
        taken = np.zeros(len(pools), dtype=np.int64)
        need = int(sizes[device])
        while need > 0:  # each round ends the need or exhausts a class, so there are few
            open_classes = np.flatnonzero(left > taken)
            weights = mix[open_classes]
            if weights.sum() < 1e-9:
                weights = rng.dirichlet(np.full(len(open_classes), alpha))
            drawn = rng.multinomial(need, weights / weights.sum())
            drawn = np.minimum(drawn, (left - taken)[open_classes])
            taken[open_classes] += drawn
            need -= int(drawn.sum())
        # The pools are shuffled, so taking from their end is a draw without replacement.
        parts[device] = np.concatenate(
            [pool[end - count : end] for pool, end, count in zip(pools, left, taken, strict=True)]
        )
        left -= taken
    return parts


def partition(
    labels: ArrayLike | Tensor,
    devices: int,
    *,
    scheme: str = "dirichlet",
    alpha: float = 0.5,
    sizes: ArrayLike | None = None,
    seed: int,
    minimum: int = 1,
) -> list[NDArray[np.int64]]:
    """Split samples over devices without overlap; the same arguments give the same split.

    Without `sizes`, all samples are used: "iid" cuts a random order into equal parts (to within one sample),
    "dirichlet" cuts each class by proportions over the devices drawn from Dirichlet(alpha) (Yurochkin et al.
    2019; Li et al. 2022); a device left with fewer than `minimum` samples gets random ones of the device
    that has most. With `sizes`, device u gets exactly sizes[u] samples: random ones under "iid", and under
    "dirichlet" in a mix of classes drawn from Dirichlet(alpha) for each device (Hsu et al. 2019). Where a
    class has run out, the mix is followed over the classes that remain; if the sizes use nearly all samples,
    the devices served last (a random few) therefore get what is left more than the mix they drew.

    Parameters
    ----------
    labels
        Whole numbers, shape [N]: the class of each sample.
    devices
        Number of devices, at least 1.
    scheme
        "dirichlet" or "iid".
    alpha
        Concentration, finite and > 0: small means few classes on each device. Not used by "iid".
    sizes
        Whole numbers, shape [devices]: samples of each device. All samples are shared out without it.
    seed
        Seed of this split, at least 0.
    minimum
        Fewest samples of any device, at least 0.

    Returns
    -------
    list of ndarray
        For each device its sample indices, int64, ascending.

    Raises
    ------
    InputError
        Any argument is out of its range, the samples are fewer than `devices` x `minimum`, or the sizes add
        up to more than there are.
    """
    classes = np.asarray(labels)
    if classes.ndim != 1 or classes.dtype.kind not in "iu":
        raise InputError(
            f"labels must be whole numbers of shape [N], found type {classes.dtype}, shape {classes.shape}"
        )
    devices = _whole("devices", devices, 1)
    minimum = _whole("minimum", minimum, 0)
    rng = np.random.default_rng(_whole("seed", seed, 0))
    samples = len(classes)
    if scheme not in SCHEMES:
        raise InputError(f"unknown scheme '{scheme}'{nearest(str(scheme), SCHEMES)}")
    if sizes is None and devices * minimum > samples:
        raise InputError(
            f"{devices} devices with at least {minimum} samples each need {devices * minimum} samples, "
            f"but only {samples} are available"
        )
    wanted = None if sizes is None else _checked_sizes(sizes, devices, samples, minimum)

    if scheme == "iid":
        order = rng.permutation(samples)
        if wanted is None:
            parts = np.array_split(order, devices)
        else:
            parts = np.split(order, np.cumsum(wanted))[:devices]
    else:
        if not (math.isfinite(alpha) and alpha > 0):
            raise InputError(f"alpha must be finite and > 0, found {alpha}")
        alpha = min(float(alpha), _LARGEST_ALPHA)
        pools = [rng.permutation(np.flatnonzero(classes == label)) for label in np.unique(classes)]
        if wanted is None:
            parts = _class_over_devices(pools, devices, alpha, minimum, rng)
        else:
            parts = _devices_over_class(pools, wanted, alpha, rng)
    return [np.sort(part).astype(np.int64) for part in parts]

"""Split of a data set's samples over the devices: alike, or with skewed labels, skewed sizes, or whole writers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from jointopt.data.sizes import LARGEST_ALPHA, LAWS, share_out, whole
from jointopt.errors import InputError, is_real, nearest

__all__ = ["SCHEMES", "partition"]

Parts = list[NDArray[np.int64]]


@dataclass(frozen=True)
class _Order:
    """What a scheme is asked for, checked."""

    labels: NDArray[np.integer]
    devices: int
    alpha: float
    sizes: NDArray[np.int64] | None
    minimum: int
    shards: int
    writers: NDArray[np.integer] | None
    rng: np.random.Generator

    def pools(self) -> Parts:
        """Return the shuffled samples of each class."""
        return [self.rng.permutation(np.flatnonzero(self.labels == label)) for label in np.unique(self.labels)]


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


def _iid(order: _Order) -> Parts:
    shuffled = order.rng.permutation(len(order.labels))
    if order.sizes is None:
        return np.array_split(shuffled, order.devices)
    return np.split(shuffled, np.cumsum(order.sizes))[: order.devices]


def _dirichlet(order: _Order) -> Parts:
    if order.sizes is None:
        return _class_over_devices(order.pools(), order.devices, order.alpha, order.minimum, order.rng)
    return _devices_over_class(order.pools(), order.sizes, order.alpha, order.rng)


def _even(total: int, pieces: int) -> NDArray[np.int64]:
    """Return a total cut into whole pieces, equal to within one."""
    return total // pieces + (np.arange(pieces) < total % pieces).astype(np.int64)


def _shards(order: _Order) -> Parts:
    samples = len(order.labels)
    sizes = _even(samples, order.devices) if order.sizes is None else order.sizes
    used = order.rng.permutation(samples)[: int(sizes.sum())]
    by_label = used[np.argsort(order.labels[used], kind="stable")]
    # The pieces lie along the sorted samples in random order, which deals them at random.
    lengths = np.concatenate([_even(int(size), order.shards) for size in sizes])
    owners = np.repeat(np.arange(order.devices), order.shards)
    deal = order.rng.permutation(len(owners))
    pieces = np.split(by_label, np.cumsum(lengths[deal]))
    parts: list[list[NDArray[np.int64]]] = [[] for _ in range(order.devices)]
    for piece, owner in zip(pieces, owners[deal], strict=False):  # the last piece is what lies behind all: nothing
        parts[owner].append(piece)
    return [np.concatenate(part) for part in parts]


def _quantity(order: _Order) -> Parts:
    if order.sizes is not None:
        raise InputError("scheme 'quantity' draws the sizes itself; give sizes to another scheme, such as 'iid'")
    samples = len(order.labels)
    sizes = share_out(samples, LAWS["dirichlet"](order.devices, order.alpha, order.rng), order.minimum)
    return np.split(order.rng.permutation(samples), np.cumsum(sizes))[: order.devices]


def _writer(order: _Order) -> Parts:
    if order.sizes is not None:
        raise InputError("scheme 'writer' gives each device whole writers, so it takes no sizes")
    if order.writers is None:
        raise InputError("scheme 'writer' needs writers, who made each sample (Dataset.writers, where known)")
    names, of_sample = np.unique(order.writers, return_inverse=True)
    if order.devices > len(names):
        raise InputError(f"{order.devices} devices need as many writers, but only {len(names)} are there")
    owner = np.empty(len(names), dtype=np.int64)
    for device, some in enumerate(np.array_split(order.rng.permutation(len(names)), order.devices)):
        owner[some] = device
    device_of = owner[of_sample]
    ends = np.cumsum(np.bincount(device_of, minlength=order.devices))
    return np.split(np.argsort(device_of, kind="stable"), ends[:-1])


_SCHEMES: dict[str, Callable[[_Order], Parts]] = {
    "dirichlet": _dirichlet,
    "iid": _iid,
    "quantity": _quantity,
    "shards": _shards,
    "writer": _writer,
}
SCHEMES = tuple(_SCHEMES)
"""The schemes `partition` knows."""


def _samplewise(field: str, given: ArrayLike | Tensor, samples: int | None = None) -> NDArray[np.integer]:
    """Return one whole number for each sample, or raise `InputError`."""
    found: NDArray[np.integer] = np.asarray(given)
    if found.ndim != 1 or found.dtype.kind not in "iu":
        raise InputError(f"{field} must be whole numbers of shape [N], found type {found.dtype}, shape {found.shape}")
    if samples is not None and len(found) != samples:
        raise InputError(f"{field} must be as many as the labels, {samples}, found {len(found)}")
    return found


def partition(
    labels: ArrayLike | Tensor,
    devices: int,
    *,
    scheme: str = "dirichlet",
    alpha: float = 0.5,
    sizes: ArrayLike | None = None,
    seed: int,
    minimum: int = 1,
    shards: int | None = None,
    writers: ArrayLike | Tensor | None = None,
) -> list[NDArray[np.int64]]:
    """Split samples over devices without overlap; the same arguments give the same split.

    Without `sizes` all samples are used; with it, device u gets exactly sizes[u] samples. The schemes:

    "iid"
        Random samples; equally many (to within one) without `sizes`.
    "dirichlet"
        Without `sizes`, each class is cut by proportions over the devices drawn from Dirichlet(alpha) (Yurochkin
        et al. 2019; Li et al. 2022); a device left with fewer than `minimum` samples gets random ones of the
        device that has most. With `sizes`, each device has a mix of classes drawn from Dirichlet(alpha) (Hsu et
        al. 2019). Where a class has run out, the mix is followed over the classes that remain; if the sizes use
        nearly all samples, the devices served last (a random few) therefore get what is left more than the mix
        they drew.
    "shards"
        The samples sorted by label are cut into devices x `shards` runs, and each device gets `shards` of them at
        random (McMahan et al. 2017); equally many samples (to within one) without `sizes`.
    "quantity"
        Random samples, the numbers in proportions drawn from Dirichlet(alpha), raised to `minimum` where less (Li
        et al. 2022). Takes no `sizes`: for other laws give `draw_sizes` to another scheme.
    "writer"
        Each device gets all samples of some writers, chosen at random, equally many writers (to within one).
        Takes no `sizes`.

    Parameters
    ----------
    labels
        Whole numbers, shape [N]: the class of each sample.
    devices
        Number of devices, at least 1.
    scheme
        "dirichlet", "iid", "quantity", "shards" or "writer".
    alpha
        Concentration, finite and > 0: small means few classes on each device, or sizes far apart. Used by
        "dirichlet" and "quantity" only.
    sizes
        Whole numbers, shape [devices]: samples of each device. All samples are shared out without it.
    seed
        Seed of this split, at least 0.
    minimum
        Fewest samples of any device, at least 0.
    shards
        Runs of each device under "shards", at least 1, by default 2; refused by the other schemes.
    writers
        Whole numbers, shape [N]: who made each sample. Used by "writer" only.

    Returns
    -------
    list of ndarray
        For each device its sample indices, int64, ascending.

    Raises
    ------
    InputError
        Any argument is out of its range, the samples are fewer than `devices` x `minimum`, the sizes add up to
        more than there are, the writers are fewer than the devices, or a device's writers made fewer samples than
        `minimum`.
    """
    classes = _samplewise("labels", labels)
    devices = whole("devices", devices, 1)
    minimum = whole("minimum", minimum, 0)
    rng = np.random.default_rng(whole("seed", seed, 0))
    samples = len(classes)
    split = _SCHEMES.get(scheme) if isinstance(scheme, str) else None
    if split is None:
        raise InputError(f"unknown scheme '{scheme}'{nearest(str(scheme), SCHEMES)}")
    if shards is not None and split is not _shards:
        raise InputError(f"shards is for the scheme 'shards' only, found {shards!r} with '{scheme}'")
    if split in (_dirichlet, _quantity) and not (is_real(alpha) and 0 < alpha < float("inf")):
        raise InputError(f"alpha must be finite and > 0, found {alpha}")
    if sizes is None and devices * minimum > samples:
        raise InputError(
            f"{devices} devices with at least {minimum} samples each need {devices * minimum} samples, "
            f"but only {samples} are available"
        )
    order = _Order(
        labels=classes,
        devices=devices,
        alpha=min(float(alpha), LARGEST_ALPHA) if split in (_dirichlet, _quantity) else 0.0,
        sizes=None if sizes is None else _checked_sizes(sizes, devices, samples, minimum),
        minimum=minimum,
        shards=2 if shards is None else whole("shards", shards, 1),
        writers=None if writers is None else _samplewise("writers", writers, samples),
        rng=rng,
    )
    parts = split(order)
    for device, part in enumerate(parts):
        if len(part) < minimum:
            raise InputError(f"device {device} gets {len(part)} samples, fewer than the minimum {minimum}")
    return [np.sort(part).astype(np.int64) for part in parts]

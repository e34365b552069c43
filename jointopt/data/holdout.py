"""A stratified split of samples into those to train and those to test on."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from jointopt.errors import InputError, is_real, is_whole

__all__ = ["held_out"]


def held_out(groups: NDArray[np.int64], share: float, seed: int) -> NDArray[np.bool_]:
    """Choose samples to test on, at random, the same share of each group to within one sample.

    Parameters
    ----------
    groups
        The class or the writer of each sample, shape [N].
    share
        Share to hold out, in (0, 1); in all it is met to within half a sample.
    seed
        Seed of the choice, at least 0.

    Returns
    -------
    ndarray
        bool, shape [N], True for the samples to test on.

    Raises
    ------
    InputError
        Share or seed is out of its range, or one part would be empty.
    """
    if not (is_real(share) and 0 < share < 1):
        raise InputError(f"test_share must lie between 0 and 1, found {share!r}")
    if not (is_whole(seed) and seed >= 0):
        raise InputError(f"seed must be a whole number of at least 0, found {seed!r}")
    order = np.random.default_rng(int(seed)).permutation(len(groups))
    order = order[np.argsort(groups[order], kind="stable")]
    # One sample each time the running share passes a half: a group's count is off by less than one.
    passed = np.floor(np.arange(len(groups) + 1) * float(share) + 0.5)
    chosen = np.zeros(len(groups), dtype=np.bool_)
    chosen[order] = np.diff(passed) > 0
    if not 0 < int(chosen.sum()) < len(groups):
        raise InputError(f"test_share {share} of {len(groups)} samples leaves none to train or none to test on")
    return chosen

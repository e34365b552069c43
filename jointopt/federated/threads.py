"""Threads of torch. How many share a sum decides its last bits, so whoever promises the same bits says how many."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from jointopt.errors import InputError, is_whole

__all__ = ["torch_threads"]


@contextmanager
def torch_threads(number: int | None) -> Iterator[None]:
    """Use so many torch threads inside (the caller's number when None), and the caller's number again afterwards.

    Raises
    ------
    InputError
        The number is not whole or below 1.
    """
    if number is not None and not (is_whole(number) and number >= 1):
        raise InputError(f"threads: must be a whole number of at least 1, found {number!r}")
    before = torch.get_num_threads()
    if number is not None:
        torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)

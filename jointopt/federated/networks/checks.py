"""Checks that all networks share."""

from __future__ import annotations

from collections.abc import Sequence

from jointopt.errors import InputError, is_whole

__all__ = ["images_shape", "positive"]


def positive(field: str, values: Sequence[int]) -> None:
    """Raise `InputError` unless every value is a whole number of at least 1."""
    try:
        values = tuple(values)
    except TypeError:
        raise InputError(f"{field} must be whole numbers in a row, found {values!r}") from None
    for value in values:
        if not (is_whole(value) and value >= 1):
            raise InputError(f"{field} must be whole and at least 1, found {value!r} in {values}")


def images_shape(network: str, inputs_shape: Sequence[int], least: int = 1) -> tuple[int, int, int]:
    """Return channels, height and width, or raise `InputError` where they are no image of that size or larger."""
    positive("inputs_shape", inputs_shape)
    if len(inputs_shape) != 3 or min(inputs_shape[1:]) < least:
        raise InputError(
            f"{network} needs inputs [channels, height, width] of height and width at least {least}, "
            f"found {tuple(inputs_shape)}"
        )
    channels, height, width = (int(size) for size in inputs_shape)
    return channels, height, width

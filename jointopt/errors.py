"""The errors a caller can meet, one tree.

Infeasible budgets are not here: they are an answer (see `jointopt.result.Result`), not an error.
"""

from __future__ import annotations

import difflib
import numbers
from collections.abc import Iterable

__all__ = [
    "DataError",
    "InputError",
    "JointoptError",
    "MissingExtraError",
    "NonFiniteError",
    "SolverError",
    "VerificationError",
    "is_real",
    "is_whole",
    "nearest",
]


class JointoptError(Exception):
    """Base of every error jointopt raises on purpose."""


class InputError(JointoptError, ValueError):
    """What the caller gave cannot be used; the message names the field, the device and the value."""


class NonFiniteError(InputError):
    """A number that must be finite is not: bad input where it was given, divergence where it was computed."""


class DataError(InputError):
    """A data set or file is missing, damaged, or of another kind than its name says."""


class MissingExtraError(JointoptError, ImportError):
    """An optional dependency is not installed; the message names the extra that brings it."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package '{package}', which is not installed; "
            f"install it with: pip install 'jointopt[{extra}]'"
        )
        self.package = package
        self.extra = extra


class SolverError(JointoptError, RuntimeError):
    """A numerical engine failed, or its answer did not pass the check for optimality."""


class VerificationError(JointoptError):
    """A result does not stand up to being recomputed; the message names what differs, where and by how much."""


def nearest(word: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the closest known word, or the list of known ones."""
    known = list(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    if close:
        return f"; did you mean '{close[0]}'?"
    return f"; known: {', '.join(sorted(known))}"


def is_whole(value: object) -> bool:
    """Whether a value is a whole number (bool is not)."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def is_real(value: object) -> bool:
    """Whether a value is a real number (bool is not; NaN and infinity are)."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)

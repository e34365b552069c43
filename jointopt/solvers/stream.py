"""A problem solved again and again while its scenario changes, such as with the channels of every round.

What carries over is where the search begins: the multipliers of shared limits, the ratio, the selection and its price.
Every bound is proved anew for the round at hand, so each answer stands on its own; where the beginning was a bad one,
the search goes on until the gap is reached, as from scratch.
"""

from __future__ import annotations

from typing import Any

from jointopt.errors import InputError, is_real, is_whole
from jointopt.problem import Problem
from jointopt.result import Result
from jointopt.solvers.dispatch import methods, solve
from jointopt.system import Scenario

__all__ = ["Stream"]


class Stream:
    """Solves one problem round after round, each from the answer before.

    Parameters
    ----------
    problem : Problem
        The problem of the first round; its design and settings stay.
    gap : float
        Relative certified gap of every round. A tighter one leaves less to what is carried over.
    seed : int, optional
        Seed of every random draw.

    Examples
    --------
    >>> stream = Stream(problem)  # doctest: +SKIP
    >>> for gain in channels:
    ...     result = stream.step(gain=gain)  # doctest: +SKIP
    """

    def __init__(self, problem: Problem, *, gap: float = 1e-3, seed: int | None = 0) -> None:
        if not isinstance(problem, Problem):
            raise InputError(f"problem: expected a Problem, got {type(problem).__name__}")
        if not (is_real(gap) and 0.0 < gap < 1.0):
            raise InputError(f"gap: {gap!r} must be a number between 0 and 1")
        if seed is not None and not (is_whole(seed) and seed >= 0):
            raise InputError(f"seed: {seed!r} must be a whole number of at least 0")
        if "exact" not in methods(problem):
            raise InputError(f"{problem.name}: lacks the structure for the exact method, which a stream repeats")
        self.problem, self.gap, self.seed = problem, gap, seed
        self.result: Result | None = None
        """The latest answer."""
        self.known: Result | None = None
        """The answer from which the next round begins: the latest one in which limits were felt, else the latest."""
        self.rounds = 0

    def step(self, system: Scenario | None = None, **changes: Any) -> Result:
        """Solve the next round.

        Parameters
        ----------
        system : Scenario, optional
            The scenario of the round; the last one when not given.
        **changes
            Fields that differ from it, by name, as for `System.with_`.

        Returns
        -------
        Result
            With its own certificate, whose bound holds for this round.

        Raises
        ------
        InputError
            For fields out of range, or another number of devices.
        """
        now = self.problem.system if system is None else system
        if len(now) != len(self.problem.system):
            raise InputError(f"system: has {len(now)} devices, the stream is for {len(self.problem.system)}")
        if changes:
            now = now.with_(**changes)
        if now is not self.problem.system:
            self.problem = self.problem.with_system(now)
        self.result = solve(self.problem, method="exact", gap=self.gap, seed=self.seed, start=self.known, leaves=False)
        # limits that are no matter now may be again: what they cost last is the better beginning
        if self.result.feasible and (self.known is None or _costs(self.result) or not _costs(self.known)):
            self.known = self.result
        self.rounds += 1
        return self.result


def _costs(result: Result) -> bool:
    """Whether a shared limit was felt."""
    return any(multiplier > 0.0 for multiplier in result.certificate.multipliers.values())

"""When masks are cut, and how far: the share of the target ratio that a round reaches.

Rounds are counted from 1 to `rounds`, as the training loop counts them.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

from jointopt.errors import InputError, is_real, is_whole

__all__ = ["Cubic", "EveryRound", "Geometric", "OneShot", "Schedule", "cubic", "every_round", "geometric", "one_shot"]


class Schedule(ABC):
    """How far masks are cut at each round."""

    @abstractmethod
    def share(self, round_: int, rounds: int) -> float | None:
        """Return the share of the target reached if masks are cut at this round, in [0, 1]; None: no cut."""

    def ratio(self, round_: int, rounds: int, target: float) -> float | None:
        """Return the pruning ratio to cut to at this round for a final ratio `target`; None: no cut."""
        share = self.share(round_, rounds)
        return None if share is None else share * target


@dataclass(frozen=True)
class EveryRound(Schedule):
    """New masks of the full ratio at every round, from the weights of that round."""

    def share(self, round_: int, rounds: int) -> float | None:
        """Return 1."""
        _check_round(round_, rounds)
        return 1.0


@dataclass(frozen=True)
class OneShot(Schedule):
    """One cut to the full ratio.

    Parameters
    ----------
    at : int
        The round of the cut, from 1.
    """

    at: int = 1

    def __post_init__(self) -> None:
        _check_whole("one_shot", "at", self.at, 1)

    def share(self, round_: int, rounds: int) -> float | None:
        """Return 1 at the round of the cut, else None."""
        _check_round(round_, rounds)
        return 1.0 if round_ == self.at else None


@dataclass(frozen=True)
class Cubic(Schedule):
    """Gradual pruning: fast at first, slower towards the end (Zhu & Gupta, To prune, or not to prune, 2017).

    ``share = 1 + (first - 1) (1 - (t - start) / (end - start))**3`` at t = start, start + every, ..., end.

    Parameters
    ----------
    start : int
        First round that cuts.
    end : int, optional
        Round that reaches the target. None: three quarters of the rounds, so that training can recover.
    every : int
        Rounds from one cut to the next.
    first : float
        Share of the target at `start`, in [0, 1].
    """

    start: int = 1
    end: int | None = None
    every: int = 1
    first: float = 0.0

    def __post_init__(self) -> None:
        _check_whole("cubic", "start", self.start, 1)
        _check_whole("cubic", "every", self.every, 1)
        if self.end is not None:
            _check_whole("cubic", "end", self.end, self.start)
        _check_share("cubic", "first", self.first)

    def share(self, round_: int, rounds: int) -> float | None:
        """Return the share at a round that cuts, else None."""
        _check_round(round_, rounds)
        end = max(math.ceil(0.75 * rounds), self.start) if self.end is None else self.end
        if not self.start <= round_ <= end:
            return None
        if round_ == end:
            return 1.0
        if (round_ - self.start) % self.every:
            return None
        return 1.0 + (self.first - 1.0) * (1.0 - (round_ - self.start) / (end - self.start)) ** 3


@dataclass(frozen=True)
class Geometric(Schedule):
    """Each cut removes the same share of what is left, until the target (iterative magnitude pruning).

    After n cuts the density is ``(1 - rate)**n`` (Frankle & Carbin, The lottery ticket hypothesis, 2019).

    Parameters
    ----------
    every : int
        Rounds from one cut to the next; the first cut is after that many rounds of dense training.
    rate : float
        Share of the remaining weights that a cut removes, in (0, 1).
    """

    every: int = 1
    rate: float = 0.2

    def __post_init__(self) -> None:
        _check_whole("geometric", "every", self.every, 1)
        _check_share("geometric", "rate", self.rate)
        if self.rate in (0, 1):
            raise InputError(f"geometric: rate must lie inside (0, 1), found {self.rate}")

    def share(self, round_: int, rounds: int) -> float | None:
        """Return the ratio reached at a cut with no target to stop at, else None."""
        _check_round(round_, rounds)
        cuts, rest = divmod(round_ - 1, self.every)
        return None if rest or cuts == 0 else -math.expm1(cuts * math.log1p(-self.rate))

    def ratio(self, round_: int, rounds: int, target: float) -> float | None:
        """Return the ratio to cut to, at most the target; None between cuts and once the target is reached."""
        reached = self.share(round_, rounds)
        if reached is None:
            return None
        before = self.share(round_ - self.every, rounds) if round_ > 2 * self.every else 0.0
        return None if before is not None and before >= target else min(reached, target)


def every_round() -> EveryRound:
    """Return the schedule of new masks at every round."""
    return EveryRound()


def one_shot(at: int = 1) -> OneShot:
    """Return the schedule of one cut; see `OneShot`."""
    return OneShot(at)


def cubic(start: int = 1, end: int | None = None, every: int = 1, first: float = 0.0) -> Cubic:
    """Return the schedule of gradual pruning; see `Cubic`."""
    return Cubic(start, end, every, first)


def geometric(every: int = 1, rate: float = 0.2) -> Geometric:
    """Return the schedule of iterative pruning; see `Geometric`."""
    return Geometric(every, rate)


def _check_round(round_: int, rounds: int) -> None:
    if not (is_whole(round_) and is_whole(rounds) and 1 <= round_ <= rounds):
        raise InputError(f"schedule: round must lie in 1 .. rounds, found {round_!r} of {rounds!r}")


def _check_whole(who: str, field: str, value: object, least: int) -> None:
    if not is_whole(value) or value < least:  # type: ignore[operator]
        raise InputError(f"{who}: {field} must be a whole number of at least {least}, found {value!r}")


def _check_share(who: str, field: str, value: object) -> None:
    if not is_real(value) or not 0.0 <= value <= 1.0:  # type: ignore[operator]
        raise InputError(f"{who}: {field} must lie in [0, 1], found {value!r}")

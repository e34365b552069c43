"""The published steps applied in turn until nothing moves: without a certificate."""

from __future__ import annotations

import numpy as np

from jointopt.decision import Decision
from jointopt.errors import InputError, is_real, is_whole
from jointopt.problem import Problem
from jointopt.solvers.monitor import Monitor

__all__ = ["alternating"]


def alternating(
    problem: Problem,
    monitor: Monitor,
    *,
    seed: int | None = None,
    max_iterations: int | None = None,
    tolerance: float = 1e-12,
) -> str:
    """Apply a problem's `Blocks` in turn; every decision on the way is offered to the monitor.

    A fixed point is all it can find. Where one budget is active, each closed form returns exactly what the other
    one needs, so that every point on the budget's curve is a fixed point and the start decides the answer.

    Parameters
    ----------
    problem : Problem
        Must offer `Blocks`.
    monitor : Monitor
        Receives the decisions and keeps the best.
    seed : int, optional
        Ignored: nothing is drawn.
    max_iterations : int, optional
        Most sweeps over all steps; the problem's own when not given.
    tolerance : float
        Relative change of every variable under which a sweep counts as at rest.

    Returns
    -------
    str
        After how many sweeps it stopped, and why.

    Raises
    ------
    InputError
        When the problem offers no blocks, or an option is out of range.
    """
    blocks = problem.capabilities().blocks
    if blocks is None:
        raise InputError(f"{problem.name}: offers no steps to alternate")
    if max_iterations is None:
        max_iterations = blocks.max_iterations
    if not (is_whole(max_iterations) and max_iterations >= 1):
        raise InputError(f"max_iterations: {max_iterations!r} must be a whole number of at least 1")
    if not (is_real(tolerance) and tolerance >= 0.0):
        raise InputError(f"tolerance: {tolerance!r} must be a number of at least 0")
    decision = blocks.start()
    value = monitor.offer(decision)
    names = ", ".join(blocks.steps)
    for sweep in range(1, max_iterations + 1):
        before, earlier = decision, value
        for step in blocks.steps.values():
            decision = step(decision)
            value = monitor.offer(decision)
        if _at_rest(before, decision, tolerance):
            return (
                f"alternating ({names}): at rest after {sweep} sweep{'s' if sweep > 1 else ''}; a fixed point need "
                "not be an optimum (every point on an active budget's curve is one)"
            )
        if sweep > 1 and abs(earlier - value) <= blocks.tolerance * abs(earlier):
            return f"alternating ({names}): sweep {sweep} changed the objective by less than {blocks.tolerance:g}"
    return f"alternating ({names}): still moving after {max_iterations} sweeps"


def _at_rest(before: Decision, after: Decision, tolerance: float) -> bool:
    """Whether no variable changed by more than a relative tolerance."""
    return all(
        bool(np.all(abs(after[name] - before[name]) <= tolerance * np.maximum(abs(after[name]), abs(before[name]))))
        for name in after
    )

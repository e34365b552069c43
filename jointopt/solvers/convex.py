"""Problems that are convex programs: a conic solver finds the point, duality proves it without the solver."""

from __future__ import annotations

import warnings
from collections.abc import Callable

from jointopt.decision import Decision
from jointopt.errors import SolverError
from jointopt.problem import Convex

__all__ = ["SOLVER", "minimize_convex"]

SOLVER = "CLARABEL"
"""Named, so that what else is installed does not change results."""
STEP_FRACTIONS = (0.99, 0.9)
"""Of the way to the boundary of the cones: the solver's own, and a shorter one where that one stalls."""


def minimize_convex(convex: Convex, *, stop: Callable[[], None] | None = None) -> tuple[Decision, float, str]:
    """Return (decision, proved lower bound, message) of a convex program.

    The decision lies within the budgets whatever the solver's tolerance; how good it is, the bound says, not the
    solver's status.

    Parameters
    ----------
    convex : Convex
        Program, the decision at its solution, and the proof.
    stop : callable, optional
        Called before and after the solver; an exception it raises ends the search.

    Raises
    ------
    SolverError
        When the program does not follow the rules of disciplined convex programming.
    """
    import cvxpy

    if stop is not None:
        stop()
    program = convex.program()
    if not program.is_dcp():
        raise SolverError("convex: the program does not follow the rules of disciplined convex programming")
    status = "nothing to solve"
    for fraction in STEP_FRACTIONS if program.variables() else ():
        try:
            with warnings.catch_warnings():
                # an inaccurate solution is still a start; the bound tells how good it is
                warnings.simplefilter("ignore")
                program.solve(solver=SOLVER, max_step_fraction=fraction)
            status = str(program.status)
        except cvxpy.SolverError as error:
            status = f"failed ({error})"
        if not (status == cvxpy.OPTIMAL_INACCURATE or status.startswith("failed")):
            break
    if stop is not None:
        stop()
    decision = convex.decision()
    return decision, convex.lower_bound(decision), f"{SOLVER}: {status}"

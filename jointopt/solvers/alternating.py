"""Steps applied in turn until nothing moves: closed forms, convex programs, searches. No certificate."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np

from jointopt.decision import Decision
from jointopt.errors import InputError, SolverError, is_real, is_whole
from jointopt.problem import Problem, Step
from jointopt.solvers.convex import SOLVER
from jointopt.solvers.monitor import Monitor
from jointopt.solvers.nlp import improve
from jointopt.system import FloatArray

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
        Seed of steps that are searches; the others draw nothing.
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
        When the problem offers no blocks, an option is out of range, or a block said to be convex is not.
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
    seeds = np.random.SeedSequence(seed)
    steps = {name: _step(problem, monitor, name, step, seeds) for name, step in blocks.steps.items()}
    decision = blocks.start()
    value = monitor.offer(decision)
    names = ", ".join(steps)
    ended = f"still moving after {max_iterations} sweeps"
    for sweep in range(1, max_iterations + 1):
        before, earlier = decision, value
        for step in steps.values():
            decision = step(decision)
            value = monitor.offer(decision)
        if _at_rest(before, decision, tolerance):
            ended = (
                f"at rest after {sweep} sweep{'s' if sweep > 1 else ''}; a fixed point need "
                "not be an optimum (every point on an active budget's curve is one)"
            )
            break
        if sweep > 1 and abs(earlier - value) <= blocks.tolerance * abs(earlier):
            ended = f"sweep {sweep} changed the objective by less than {blocks.tolerance:g}"
            break
    if blocks.last is not None:
        _step(problem, monitor, "last", blocks.last, seeds)(decision)
        ended += f"; then {', '.join(blocks.last.variables)} together"
    return f"alternating ({names}): {ended}"


def _at_rest(before: Decision, after: Decision, tolerance: float) -> bool:
    """Whether no variable changed by more than a relative tolerance."""
    return all(
        bool(np.all(abs(after[name] - before[name]) <= tolerance * np.maximum(abs(after[name]), abs(before[name]))))
        for name in after
    )


def _step(
    problem: Problem,
    monitor: Monitor,
    name: str,
    step: Callable[[Decision], Decision] | Step,
    seeds: np.random.SeedSequence,
) -> Callable[[Decision], Decision]:
    """Return what takes a step."""
    if not isinstance(step, Step):
        return step
    if step.search is not None:
        from jointopt.solvers.bayesian import bayesian_step

        around = step.search

        def searched(decision: Decision) -> Decision:
            drawn = int(seeds.spawn(1)[0].generate_state(1)[0])
            return bayesian_step(problem, monitor, around(decision), decision, seed=drawn)

        return searched
    if not step.convex:
        return lambda decision: improve(problem, decision, step.variables)
    kinds = {v.name: v.kind for v in problem.variables}
    for variable in step.variables:
        if kinds[variable] != "real":
            raise InputError(f"block '{name}': '{variable}' takes whole numbers only, no convex program can choose it")
    return lambda decision: _convex_step(problem, name, step.variables, decision)


def _convex_step(problem: Problem, name: str, variables: tuple[str, ...], decision: Decision) -> Decision:
    """Minimise over some variables by a convex program traced from the problem's own functions.

    The variables run from 0 to 1 inside, the objective and every constraint are divided by their size: conic solvers
    fail without a word on plain hertz and watts.
    """
    import cvxpy as cp

    from jointopt.arithmetic.convex import Convex, first_non_dcp

    ranges = {v.name: (v.lower, v.upper) for v in problem.variables}
    shares = {n: cp.Variable(ranges[n][0].size) for n in variables}
    chosen = {n: Convex(ranges[n][0] + cp.multiply(ranges[n][1] - ranges[n][0], s)) for n, s in shares.items()}
    traced = problem.evaluate(Decision({**decision, **chosen}))
    here = problem.evaluate(decision)
    size = max(abs(float(here.objective)), 1e-300)
    constraints = [c for share in shares.values() for c in (share >= 0.0, share <= 1.0)]
    for key, slack in traced.slack.items():
        if key in ranges or not isinstance(slack, Convex):
            continue
        if not slack.expression.is_concave():
            text = first_non_dcp(slack.expression, "concave")
            raise InputError(f"block '{name}': constraint '{key}' is not convex as it is written: {text}")
        constraints.append(slack.expression / np.broadcast_to(traced.scale[key], slack.shape) >= 0.0)
    if not isinstance(traced.objective, Convex):
        return decision
    if not traced.objective.expression.is_convex():
        text = first_non_dcp(traced.objective.expression, "convex")
        raise InputError(f"block '{name}': the objective is not convex as it is written: {text}")
    program = cp.Problem(cp.Minimize(traced.objective.expression / size), constraints)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program.solve(solver=SOLVER)
    except cp.SolverError as error:
        raise SolverError(f"block '{name}': {SOLVER} failed ({error})") from None
    new = {}
    for n, share in shares.items():
        if share.value is None:
            return decision
        low, high = ranges[n]
        part: FloatArray = np.clip(np.asarray(share.value, dtype=np.float64), 0.0, 1.0)
        new[n] = np.clip(low + part * (high - low), low, high)
    return _not_worse(problem, decision, decision.with_(**new))


def _not_worse(problem: Problem, old: Decision, new: Decision) -> Decision:
    """The new decision, drawn towards the old one as far as rounding left it outside the constraints."""
    before = problem.evaluate(old)
    share = 1.0
    for _ in range(30):
        mixed = Decision({name: old[name] + share * (new[name] - old[name]) for name in new})
        after = problem.evaluate(mixed)
        if after.feasible() or after.violation() < before.violation():
            return mixed
        share = 1.0 - 2.0 * (1.0 - share) if share < 1.0 else 1.0 - 1e-9
        if share <= 0.0:
            break
    return old

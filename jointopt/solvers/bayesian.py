"""Bayesian optimization over a few complicating variables, the rest by the problem's completion: no certificate.

The published procedure: a Gaussian process (Matérn 5/2, one length scale per variable) learns the objective as a
function of the complicating variables, and the next point maximises the logarithm of the expected improvement.
Variables may be real, whole or binary. Where the objective is a sum over units of functions of one variable each, the
same is done for every unit on its own, all units at once in one batch of Gaussian processes.

A run may begin at what an earlier one found (`start`), and may be written to a file after every evaluation (`save`)
and taken up from there (`resume`), to the same end as if it had never been stopped.
"""

from __future__ import annotations

import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np

from jointopt.decision import Decision
from jointopt.errors import InputError, is_whole, nearest
from jointopt.problem import FEASIBILITY_TOLERANCE, Evaluation, Problem, Search
from jointopt.result import Result
from jointopt.solvers.acquisition import BACKENDS, Backend, Known
from jointopt.solvers.checkpoint import Checkpoint, earlier_points
from jointopt.solvers.monitor import Monitor
from jointopt.solvers.space import ENUMERATED, Box, Cube, key, line
from jointopt.system import FloatArray

__all__ = ["bayesian", "bayesian_step"]

MODES = ("auto", "joint", "separate", "policy")

# A policy's line may leave the box by this share of its width at either end and is then clipped.
_OVERSHOOT = 0.5

# Draws after which a cube of whole numbers counts as exhausted.
_TRIES = 256


def bayesian(
    problem: Problem,
    monitor: Monitor,
    *,
    seed: int | None,
    iterations: int = 40,
    initial: int | None = None,
    backend: Literal["botorch", "skopt-gp", "skopt-rf"] = "botorch",
    mode: Literal["auto", "joint", "separate", "policy"] = "auto",
    batch: int = 1,
    start: Result | Decision | str | os.PathLike[str] | None = None,
    save: str | os.PathLike[str] | None = None,
    resume: bool = False,
) -> str:
    """Minimise a problem over its `Search` variables; every completed decision is offered to the monitor.

    Parameters
    ----------
    problem : Problem
        Must offer a `Search`.
    monitor : Monitor
        Receives the decisions and keeps the best.
    seed : int, optional
        Seed of every draw; global random states are left alone.
    iterations : int
        Evaluations beyond the initial design.
    initial : int, optional
        Points of the Sobol design; ``max(8, 2 d)`` for d variables when not given.
    backend : {"botorch", "skopt-gp", "skopt-rf"}
        Gaussian process and log expected improvement (BoTorch), or the Gaussian process or random forest with
        expected improvement of scikit-optimize.
    mode : {"auto", "joint", "separate", "policy"}
        ``joint``: one search over all variables, the plain published loop. ``separate``: one search in one variable
        per unit, in lockstep; needs `Search.unit_values`. ``policy``: two numbers, a line (in the logarithm, where
        the search is logarithmic) from the `attribute` to the variables. ``auto``: separate where possible, which
        learns as many values from an evaluation as there are units; else joint.
    batch : int
        Points proposed at once, from one fit, and then evaluated; `iterations` counts points.
    start : Result, Decision or path, optional
        An earlier answer, its file, or a file that `save` wrote, for a problem of this name and as many variables.
        Its best points are evaluated first and take the place of half of the initial design.
    save : path, optional
        JSON file that holds the whole run, written anew (whole or not at all) after every evaluation.
    resume : bool
        Take up the run in `save`, with more iterations if asked; where there is no such file, begin.

    Returns
    -------
    str
        What was run.

    Raises
    ------
    InputError
        When the problem lacks what the mode needs, an option is unknown or out of range, or a file is damaged or was
        made for something else.
    StopSearch
        From the monitor, when time is up.
    """
    search = problem.capabilities().search
    if search is None:
        raise InputError(f"{problem.name}: offers no variables to search (Bayesian optimization)")
    if backend not in BACKENDS:
        raise InputError(f"backend: unknown '{backend}'{nearest(str(backend), BACKENDS)}")
    if mode not in MODES:
        raise InputError(f"mode: unknown '{mode}'{nearest(str(mode), MODES)}")
    if not (is_whole(iterations) and iterations >= 0):
        raise InputError(f"iterations: {iterations!r} must be a whole number of at least 0")
    for name, value in (("initial", initial), ("batch", batch)):
        if value is not None and not (is_whole(value) and value >= 1):
            raise InputError(f"{name}: {value!r} must be a whole number of at least 1")
    if resume and save is None:
        raise InputError("resume: needs the file of the run; name it with save")
    box = Box(search)
    if box.free.size == 0:
        monitor.offer(search.complete(box.lower))
        return f"bayesian: {search.name} is fixed, only the inner solution was computed"
    target = _target(problem, search, monitor, box, mode)
    count = max(8, 2 * target.cube.dimension) if initial is None else initial
    options = {"backend": backend, "mode": target.mode, "initial": initial, "batch": batch}
    checkpoint = None if save is None else Checkpoint(save, problem, search, box, seed, options)
    loop = _Loop(target, monitor, BACKENDS[backend](target.cube), batch, checkpoint)
    if not (resume and loop.resume()):
        starts = None if start is None else earlier_points(start, problem, search, box)
        loop.begin(seed, count, starts)
    loop.run(iterations)
    text = (
        f"bayesian ({backend}): {search.name} of {box.free.size} units searched {target.meaning}, "
        f"{loop.initial} initial points and {iterations} iterations; no bound is claimed"
    )
    if loop.started:
        text += f"; {loop.started} of the initial points are from an earlier run"
    if loop.failures:
        text += f"; the model could not be fitted in {loop.failures} iterations, random points were taken instead"
    if loop.exhausted:
        text += f"; stopped after {len(loop.points)} points, no other was found"
    return text


def bayesian_step(
    problem: Problem,
    monitor: Monitor,
    search: Search,
    decision: Decision,
    *,
    seed: int | None,
    initial: int = 15,
    iterations: int = 25,
) -> Decision:
    """Search some variables from a decision on, as one step of an alternation; return the best seen by then.

    Parameters
    ----------
    problem, monitor
        As for `bayesian`.
    search : Search
        What is searched, around the decision.
    decision : Decision
        Evaluated first, as the search sees it.
    seed : int, optional
        Seed of the step's draws.
    initial, iterations : int
        Points of the Sobol design, and those proposed after it (theory 2d [S]).
    """
    box = Box(search)
    if box.free.size:
        target = _target(problem, search, monitor, box, "joint")
        loop = _Loop(target, monitor, BACKENDS["botorch"](target.cube), 1, None)
        here = target.nearest(search.locate(decision))
        # the start takes one place beside a design of the asked size
        loop.begin(seed, 2 * initial, lambda target: [here])
        loop.run(iterations)
    assert monitor.best is not None
    return monitor.best


def _target(problem: Problem, search: Search, monitor: Monitor, box: Box, mode: str) -> _Target:
    """Return what is searched, in the mode asked for."""
    separable = search.unit_values(box.lower) is not None
    if mode == "auto":
        mode = "separate" if separable and box.free.size > 1 else "joint"
    if mode == "separate":
        if not separable:
            raise InputError(f"mode: 'separate' needs an objective that is a sum over units, {problem.name}'s is not")
        return _Separate(search, monitor, box)
    if mode == "policy":
        attribute = getattr(search, "attribute", None)
        if attribute is None:
            raise InputError(f"mode: 'policy' needs an attribute per unit, {problem.name}'s search has none")
        spread, fit = line(box, attribute, _OVERSHOOT)
        meaning = "by a line in the attribute"
        return _Joint(problem, search, monitor, mode, meaning, Cube(np.zeros(2, dtype=np.int64)), spread, fit)
    return _Joint(problem, search, monitor, mode, "jointly", box.cube, box.spread, box.share)


# ---------------------------------------------------------------------------------- the loop


class _Loop:
    """Evaluates the initial design, then what the backend proposes; all of its state can be written and read."""

    def __init__(
        self, target: _Target, monitor: Monitor, backend: Backend, batch: int, checkpoint: Checkpoint | None
    ) -> None:
        self.target, self.monitor, self.backend, self.batch = target, monitor, backend, batch
        self.checkpoint = checkpoint
        self.points: list[FloatArray] = []
        # evaluated together: proposed before any of them was evaluated
        self.queue: list[FloatArray] = []
        self.chunk: list[FloatArray] = []
        self.done = 0
        self.entropy = 0
        self.initial = self.started = self.rounds = self.failures = self.drawn = 0
        self.exhausted = False

    @property
    def shape(self) -> tuple[int, int]:
        """Functions and variables of each."""
        return self.target.functions, self.target.cube.dimension

    def begin(self, seed: int | None, count: int, starts: Callable[[_Target], list[FloatArray]] | None) -> None:
        """Draw the initial design: Sobol points, after at most as many of an earlier run."""
        self.entropy = int(np.random.SeedSequence(seed).entropy)  # type: ignore[arg-type]
        self._sources()
        first = [] if starts is None else starts(self.target)[: count - count // 2]
        taken: set[tuple[float, ...]] = set()
        for point in first:
            point = self.target.settle(point)
            if self.target.functions > 1 or key(point[0]) not in taken:
                taken.add(key(point[0]))
                self.queue.append(point)
        self.started = len(self.queue)
        for _ in range(count if starts is None else count // 2):
            uniform = self.design.draw(1).numpy().astype(np.float64).reshape(self.shape)
            new = self._fresh(self.target.cube.spread(uniform), taken, None)
            if new is None:
                break
            taken.add(key(new[0]))
            self.queue.append(new)
        self.initial = len(self.queue)

    def _sources(self) -> None:
        """Make the generators of the design and of the points that replace what cannot be used."""
        from torch.quasirandom import SobolEngine

        first, second = (int(s) for s in np.random.SeedSequence(self.entropy).generate_state(2))
        size = self.shape[0] * self.shape[1]
        self.design, self.spare = (SobolEngine(size, scramble=True, seed=s) for s in (first, second))
        self.spare.fast_forward(self.drawn)

    def run(self, iterations: int) -> None:
        """Evaluate until the initial design and so many more points are done."""
        total = self.initial + iterations
        seeds = [int(s) for s in np.random.SeedSequence(self.entropy).generate_state(2 + iterations)[2:]]
        while True:
            while self.done < len(self.chunk) or self.queue:
                if self.done == len(self.chunk):
                    self.chunk, self.queue, self.done = self.queue[: self.batch], self.queue[self.batch :], 0
                self._evaluate()
            count = min(self.batch, total - len(self.points))
            if count <= 0 or self.exhausted:
                break
            self.monitor.check()
            self.queue = self._propose(count, seeds[len(self.points) - self.initial])

    def _evaluate(self) -> None:
        """Evaluate the rest of the chunk."""
        decisions = self.target.complete(self.chunk)
        for point, decision in list(zip(self.chunk, decisions, strict=True))[self.done :]:
            known = len(self.points)
            try:
                self.target.evaluate(point, decision)
            finally:
                # what was evaluated is kept, whatever the callback made of it
                if self.target.count > known:
                    self.points.append(point)
                    self.done += 1
                    self._write()

    def _propose(self, count: int, seed: int) -> list[FloatArray]:
        """Return the next points, the backend's where they can be used."""
        self.rounds += 1
        try:
            with _quiet(seed):
                found = self.backend.propose(self.target.known(np.stack(self.points, axis=1)), count, seed)
        except _recoverable():
            found = np.full((count, *self.shape), np.nan)
        taken = {key(p[0]) for p in self.points} if self.target.functions == 1 else set()
        rng = np.random.default_rng(seed)
        out = []
        failed = False
        for point in found:
            if not np.all(np.isfinite(point)):
                failed = True
                uniform = self.target.cube.spread(self._draw())
                point = np.where(np.isfinite(point), point, uniform)
            new = self._fresh(self.target.cube.snap(point), taken, rng)
            if new is None:
                self.exhausted = True
                break
            taken.add(key(new[0]))
            out.append(new)
        self.failures += failed
        return out

    def _draw(self) -> FloatArray:
        self.drawn += 1
        return np.asarray(self.spare.draw(1).numpy().astype(np.float64).reshape(self.shape))

    def _fresh(
        self, point: FloatArray, taken: set[tuple[float, ...]], rng: np.random.Generator | None
    ) -> FloatArray | None:
        """Return the point, or where it is known another: near the best, at random, or None where there is none."""
        if self.target.finished:
            return None
        point = self.target.settle(point)
        if self.target.functions > 1 or key(point[0]) not in taken:
            return point
        cube = self.target.cube
        near = [] if rng is None else list(rng.permutation(cube.neighbours(self.points[self.target.best()][0])))
        if cube.size <= ENUMERATED:
            listed = cube.list()
            near += list(listed[np.random.default_rng(self.drawn).permutation(len(listed))])
        for i in range(len(near) + (0 if cube.size <= ENUMERATED else _TRIES)):
            other = near[i][None] if i < len(near) else cube.spread(self._draw())
            if key(other[0]) in taken:
                continue
            other = self.target.settle(other)
            if key(other[0]) not in taken:
                return other
        return None

    # -- state

    def _write(self) -> None:
        if self.checkpoint is None:
            return
        self.checkpoint.write(
            {
                "entropy": str(self.entropy),
                "points": self._flat(self.points),
                "queue": self._flat(self.queue),
                "chunk": self._flat(self.chunk),
                "counts": {
                    name: int(getattr(self, name))
                    for name in ("done", "initial", "started", "rounds", "failures", "drawn", "exhausted")
                },
                "backend": self.backend.state(),
                "target": self.target.state(),
            },
            self.target.positions(self.points),
            self.monitor,
        )

    def _flat(self, points: list[FloatArray]) -> FloatArray:
        return np.array(points, dtype=np.float64).reshape(len(points), self.shape[0] * self.shape[1])

    def resume(self) -> bool:
        """Take up the run in the file; False where there is no file."""
        assert self.checkpoint is not None
        with self.checkpoint.reading(self.monitor) as state:
            if state is None:
                return False
            self.entropy = int(state["entropy"])
            self.points, self.queue, self.chunk = (
                [np.asarray(p, dtype=np.float64).reshape(self.shape) for p in state[name]]
                for name in ("points", "queue", "chunk")
            )
            for name, value in state["counts"].items():
                setattr(self, name, bool(value) if name == "exhausted" else int(value))
            self.backend.restore(state["backend"])
            self.target.restore(state["target"])
            if not (self.target.count == len(self.points) == self.monitor.n_evaluations):
                raise ValueError("the numbers of points, values and evaluations differ")
            self._sources()
        return True


def _recoverable() -> tuple[type[Exception], ...]:
    """Return what a failed fit raises; anything else is a mistake and must be seen."""
    from botorch.exceptions.errors import BotorchError, ModelFittingError

    return (BotorchError, ModelFittingError, RuntimeError, ValueError, ArithmeticError)


@contextmanager
def _quiet(seed: int) -> Iterator[None]:
    """Seed torch's global generator and use one thread, both restored afterwards; keep fits' warnings in."""
    import torch
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    threads = torch.get_num_threads()
    # The matrices are small: on a busy machine, threads that wait for each other (torch's, and those of the BLAS
    # that L-BFGS-B calls) cost up to ten times the work.
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]), threadpool_limits(1):
        warnings.simplefilter("ignore")
        # not torch.manual_seed, which would reseed GPUs too
        torch.random.default_generator.manual_seed(seed)
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)


# ---------------------------------------------------------------------------------- what is searched


class _Target(ABC):
    """What a loop evaluates: `functions` functions of one cube each."""

    functions: int
    cube: Cube
    mode: str
    meaning: str
    finished: bool = False
    """Whether there is nothing left to evaluate."""

    @property
    @abstractmethod
    def count(self) -> int:
        """Points evaluated so far."""

    @abstractmethod
    def settle(self, point: FloatArray) -> FloatArray:
        """Return the point [functions, dimension] that will be evaluated in place of this one."""

    @abstractmethod
    def complete(self, points: list[FloatArray]) -> list[Decision | None]:
        """Return the decisions at points, or None where they depend on what is evaluated before."""

    @abstractmethod
    def evaluate(self, point: FloatArray, decision: Decision | None) -> None:
        """Evaluate at a point and offer a decision to the monitor."""

    @abstractmethod
    def known(self, points: FloatArray) -> Known:
        """Return all that is known, at points [functions, n, dimension]."""

    @abstractmethod
    def best(self) -> int:
        """Return which point is best so far."""

    @abstractmethod
    def positions(self, points: list[FloatArray]) -> tuple[FloatArray, FloatArray]:
        """Return x [n, variables] of points and their values, [n, variables] where every variable has its own."""

    @abstractmethod
    def nearest(self, x: FloatArray) -> FloatArray:
        """Return the point [functions, dimension] that leads to x [variables], or nearly so."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """Return all values as plain data."""

    @abstractmethod
    def restore(self, state: dict[str, Any]) -> None:
        """Take up a state."""


class _Joint(_Target):
    """One function of all parameters."""

    functions = 1

    def __init__(
        self,
        problem: Problem,
        search: Search,
        monitor: Monitor,
        mode: str,
        meaning: str,
        cube: Cube,
        spread: Callable[[FloatArray], FloatArray],
        share: Callable[[FloatArray], FloatArray],
    ) -> None:
        self.search, self.monitor, self.mode, self.meaning = search, monitor, mode, meaning
        self.cube, self.spread, self.share = cube, spread, share
        self.variables = frozenset(v.name for v in problem.variables)
        self.separable = search.unit_values(np.asarray(search.lower, dtype=np.float64)) is not None
        # a completion may be costly, and many selections that do not fit lead to one that does
        self.settled: dict[tuple[float, ...], FloatArray] = {}
        self.value: list[float] = []
        self.violation: list[float] = []
        self.excess: list[FloatArray] = []

    @property
    def count(self) -> int:
        return len(self.value)

    def settle(self, point: FloatArray) -> FloatArray:
        """Whole numbers as the completion left them."""
        if not np.any(self.cube.discrete):
            return point
        asked = key(point[0])
        if asked not in self.settled:
            moved = self.share(self.search.locate(self.search.complete(self.spread(point[0]))))
            self.settled[asked] = np.where(self.cube.discrete, moved, point[0])[None]
        return self.settled[asked]

    def complete(self, points: list[FloatArray]) -> list[Decision | None]:
        if len(points) == 1:
            return [self.search.complete(self.spread(points[0][0]))]
        decisions = self.search.complete(self.spread(np.stack(points)[:, 0]))
        return [
            Decision({name: v[i] if np.ndim(v) > 1 else v for name, v in decisions.items()}) for i in range(len(points))
        ]

    def evaluate(self, point: FloatArray, decision: Decision | None) -> None:
        assert decision is not None
        before = len(self.monitor.history)
        try:
            self.monitor.offer(decision)
        finally:
            if len(self.monitor.history) > before:
                self._record(point)

    def _record(self, point: FloatArray) -> None:
        last, evaluation = self.monitor.history[-1], self.monitor.latest
        assert evaluation is not None
        parts = self.search.unit_values(self.spread(point[0])) if self.separable else None
        value = last["value"] if parts is None else float(np.sum(parts))
        self.value.append(value)
        self.violation.append(last["violation"] if parts is None else 0.0)
        self.excess.append(_excess(evaluation, self.variables) if parts is None else np.zeros(0))

    def known(self, points: FloatArray) -> Known:
        value, violation = np.array(self.value), np.array(self.violation)
        excess = np.stack(self.excess, axis=-1)
        # a constraint that never failed says nothing yet
        failed = excess[np.any(excess > 0.0, axis=-1)]
        if failed.size == 0:
            return Known(points, self.penalised()[None])
        return Known(points, self.penalised()[None], value, failed, violation <= FEASIBILITY_TOLERANCE)

    def penalised(self) -> FloatArray:
        """Return the objective, penalised so that no infeasible point beats the best feasible one."""
        value, violation = np.array(self.value), np.array(self.violation)
        fits = violation <= FEASIBILITY_TOLERANCE
        if not fits.any():
            return violation
        best = value[fits].min()
        known = value[np.isfinite(value)]
        # Continuous where the constraint cuts the objective off, since a jump there is what a Gaussian process
        # models worst; bounded, since one huge penalty would flatten everything else.
        with np.errstate(invalid="ignore"):
            penalty = max(np.ptp(known) if known.size else 0.0, 1e-12 * abs(best)) * np.where(
                np.isfinite(violation), violation / (1.0 + violation), 1.0
            )
        return np.where(fits, value, np.maximum(value, best) + penalty)

    def best(self) -> int:
        return int(np.argmin(self.penalised()))

    def positions(self, points: list[FloatArray]) -> tuple[FloatArray, FloatArray]:
        return self.spread(np.stack(points)[:, 0]), self.penalised()

    def nearest(self, x: FloatArray) -> FloatArray:
        return self.share(x)[None]

    def state(self) -> dict[str, Any]:
        return {"value": self.value, "violation": self.violation, "excess": [e.tolist() for e in self.excess]}

    def restore(self, state: dict[str, Any]) -> None:
        self.value, self.violation = ([float(v) for v in state[name]] for name in ("value", "violation"))
        self.excess = [np.array(e, dtype=np.float64) for e in state["excess"]]
        if not len(self.value) == len(self.violation) == len(self.excess):
            raise ValueError("the numbers of values differ")


def _excess(evaluation: Evaluation, variables: frozenset[str]) -> FloatArray:
    """Return how far each constraint, named once for all devices, is from its limit: above 0 where it is missed.

    Relative excesses e as sign(e) ln(1 + |e|), since a delay may be missed by orders of magnitude. The range of a
    variable counts only where it is left: within it, nothing is closer to the limit than anything else.
    """
    out = []
    for name, slack in evaluation.slack.items():
        short = np.nan_to_num(-np.asarray(slack, dtype=np.float64), nan=np.inf, posinf=np.inf, neginf=-np.inf)
        worst = float(np.max(short / np.asarray(evaluation.scale[name])))
        if abs(worst) <= FEASIBILITY_TOLERANCE or (name in variables and worst < 0.0):
            worst = 0.0
        out.append(np.sign(worst) * np.log1p(min(abs(worst), 1e3)))
    return np.array(out)


class _Separate(_Target):
    """One function of one variable per unit; the incumbent joins the units' best points.

    To the backend all variables are real. Whole numbers are settled before they are evaluated, on the nearest that a
    unit has not tried yet.
    """

    mode = "separate"
    meaning = "each unit on its own"
    cube = Cube(np.zeros(1, dtype=np.int64))

    def __init__(self, search: Search, monitor: Monitor, box: Box) -> None:
        self.search, self.monitor, self.box = search, monitor, box
        self.functions = box.free.size
        self.levels = box.cube.levels
        self.tried = np.zeros((self.functions, int(self.levels.max(initial=0))), dtype=np.bool_)
        self.best_x = box.lower.copy()
        self.least = np.full(self.functions, np.inf)
        self.seen: list[FloatArray] = []

    @property
    def count(self) -> int:
        return len(self.seen)

    def settle(self, point: FloatArray) -> FloatArray:
        if not np.any(self.levels):
            return point
        place = np.arange(self.tried.shape[1])
        steps = np.maximum(self.levels - 1, 1)[:, None]
        off = np.abs(place / steps - point) + np.where(place < self.levels[:, None], 2.0 * self.tried, np.inf)
        level = np.argmin(off, axis=1)
        whole = self.levels > 0
        self.tried[whole, level[whole]] = True
        self.finished = bool(np.all(self.tried.sum(axis=1) == self.levels) and np.all(whole))
        return np.where(whole[:, None], level[:, None] / steps, point)

    def complete(self, points: list[FloatArray]) -> list[Decision | None]:
        return [None] * len(points)

    def evaluate(self, point: FloatArray, decision: Decision | None) -> None:
        x = self.box.spread(point[:, 0])
        values = self.search.unit_values(x)
        assert values is not None
        value = values[self.box.free]
        better = value < self.least
        best_x = self.best_x.copy()
        moved = self.box.free[better]
        best_x[moved] = x[moved]
        before = len(self.monitor.history)
        try:
            self.monitor.offer(self.search.complete(best_x.copy()))
        finally:
            if len(self.monitor.history) > before:
                self.best_x, self.least = best_x, np.where(better, value, self.least)
                self.seen.append(value)

    def known(self, points: FloatArray) -> Known:
        return Known(points, np.stack(self.seen, axis=-1))

    def best(self) -> int:
        return int(np.argmin(np.sum(self.seen, axis=-1)))

    def positions(self, points: list[FloatArray]) -> tuple[FloatArray, FloatArray]:
        x = self.box.spread(np.stack(points)[:, :, 0])
        values = np.zeros(x.shape)
        values[:, self.box.free] = self.seen
        return x, values

    def nearest(self, x: FloatArray) -> FloatArray:
        return self.box.share(x)[:, None]

    def state(self) -> dict[str, Any]:
        return {"seen": np.stack(self.seen), "best_x": self.best_x, "least": self.least, "tried": self.tried}

    def restore(self, state: dict[str, Any]) -> None:
        self.seen = [np.array(row, dtype=np.float64).reshape(self.functions) for row in state["seen"]]
        self.best_x = np.array(state["best_x"], dtype=np.float64).reshape(self.box.lower.size)
        self.least = np.array(state["least"], dtype=np.float64).reshape(self.functions)
        self.tried = np.array(state["tried"], dtype=np.bool_).reshape(self.tried.shape)
        self.finished = bool(np.all(self.levels) and np.all(self.tried.sum(axis=1) == self.levels))

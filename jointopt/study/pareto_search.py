"""Trade-offs without proof: Bayesian optimization of the hypervolume (BoTorch) and NSGA-II (pymoo)."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import moocore
import numpy as np

from jointopt.decision import Decision
from jointopt.errors import InputError, MissingExtraError, is_whole, nearest
from jointopt.problem import FEASIBILITY_TOLERANCE, Evaluation, Problem, Search
from jointopt.search import FlatSearch
from jointopt.solvers.bayesian import _quiet, _recoverable
from jointopt.solvers.space import Box, line
from jointopt.study.front import Goal, nondominated, reference_of
from jointopt.system import FloatArray

__all__ = ["Ends", "Found", "limited", "nsga2", "qlognehvi", "warm_up"]

SPACES = ("auto", "flat", "search", "policy")

_SAMPLES = 64
"""Draws of the models by which the expected improvement is computed."""
_RAW = 512
_RESTARTS = 4
_OVERSHOOT = 0.5


@dataclass(frozen=True)
class Ends:
    """Least and largest values of the limited goals, and a reference point over all, from certified solves."""

    goals: tuple[Goal, ...]
    low: FloatArray
    high: FloatArray
    reference: FloatArray


@dataclass(frozen=True)
class Found:
    """What a heuristic found: feasible points that no other found one beats."""

    values: FloatArray
    decisions: tuple[Decision, ...]
    n_evaluations: int
    message: str
    reference: FloatArray | None = None
    compiling: float = 0.0


def limited(problem: Problem, goals: Sequence[Goal], limits: FloatArray) -> Problem:
    """Return the problem with each goal at most its limit; inf limits nothing."""
    each: dict[str, float] = {}
    total: dict[str, float] = {}
    for goal, limit in zip(goals, limits, strict=True):
        if np.isfinite(limit):
            assert goal.quantity is not None
            (total if goal.over == "total" else each)[goal.quantity] = float(limit)
    return problem.limited(each, total=total) if each or total else problem


# ---------------------------------------------------------------------------------- what is searched


class _Space(Protocol):
    """Points of a unit cube as decisions."""

    name: str
    dimension: int

    def snap(self, points: FloatArray) -> FloatArray:
        """Return the nearest points ``[n, dimension]`` whose whole numbers are whole."""
        ...

    def decisions(self, points: FloatArray) -> Decision:
        """Return the decisions, a batch ``[n, devices]``, at points ``[n, dimension]``."""
        ...


class _Flat:
    """All decision variables."""

    name = "all variables"

    def __init__(self, problem: Problem) -> None:
        self.search = FlatSearch(problem)
        self.box = Box(self.search)
        self.dimension = self.box.cube.dimension

    def snap(self, points: FloatArray) -> FloatArray:
        return self.box.cube.snap(points)

    def decisions(self, points: FloatArray) -> Decision:
        return self.search.complete(self.box.spread(points))


class _Limited:
    """The complicating variables, or a line of them, and limits on the other goals; the rest in closed form.

    Under the problem's own budgets alone the closed form would use them up, whatever the complicating variables: the
    limits are what trades off.
    """

    def __init__(self, problem: Problem, search: Search, ends: Ends, policy: bool) -> None:
        self.problem, self.ends = problem, ends
        self.box = Box(search)
        self.policy: Callable[..., FloatArray] | None = None
        own = self.box.cube.dimension
        self.name = f"{search.name} and limits"
        if policy:
            attribute = getattr(search, "attribute", None)
            if attribute is None:
                raise InputError(f"variables: 'policy' needs an attribute per unit, {problem.name}'s search has none")
            self.policy, _ = line(self.box, attribute, _OVERSHOOT)
            own = 2
            self.name = f"{search.name} on a line, and limits"
        self.own, self.dimension = own, own + len(ends.goals)

    def snap(self, points: FloatArray) -> FloatArray:
        if self.policy is not None:
            return np.clip(points, 0.0, 1.0)
        return np.concatenate(
            [self.box.cube.snap(points[:, : self.own]), np.clip(points[:, self.own :], 0.0, 1.0)], axis=1
        )

    def decisions(self, points: FloatArray) -> Decision:
        x = (self.box.spread if self.policy is None else self.policy)(points[:, : self.own])
        limits = self.ends.low + points[:, self.own :] * (self.ends.high - self.ends.low)
        found = [self._complete(row, limit) for row, limit in zip(x, limits, strict=True)]
        return Decision({name: np.stack([np.asarray(d[name]) for d in found]) for name in found[0]})

    def _complete(self, x: FloatArray, limits: FloatArray) -> Decision:
        search = limited(self.problem, self.ends.goals, limits).capabilities().search
        assert search is not None
        return search.complete(x)


def _space(problem: Problem, ends: Ends | None, variables: str) -> _Space:
    if variables not in SPACES:
        raise InputError(f"variables: unknown '{variables}'{nearest(str(variables), SPACES)}")
    search = problem.capabilities().search
    closed = search is not None and not isinstance(search, FlatSearch) and ends is not None
    if variables == "auto":
        variables = "search" if closed else "flat"
    if variables == "flat":
        return _Flat(problem)
    if not closed:
        raise InputError(
            f"variables: '{variables}' needs complicating variables with a completion and goals that the problem can "
            f"limit; {problem.name} allows 'flat'"
        )
    assert search is not None and ends is not None
    return _Limited(problem, search, ends, variables == "policy")


class _Archive:
    """Everything evaluated: feasible points that no other beats are kept, at most `most`."""

    def __init__(self, problem: Problem, goals: tuple[Goal, ...], most: int) -> None:
        self.problem, self.goals, self.most = problem, goals, most
        self.values = np.empty((0, len(goals)))
        self.decisions: list[Decision] = []
        self.evaluated = 0

    def evaluate(self, decision: Decision) -> tuple[FloatArray, Evaluation]:
        """Return the values [n, goals] of a batch of decisions and its evaluation; keep what is good."""
        with np.errstate(all="ignore"):
            evaluation = self.problem.evaluate(decision)
        values = np.stack([goal.values(evaluation) for goal in self.goals], axis=-1)
        self.evaluated += len(values)
        good = np.flatnonzero(evaluation.feasible() & np.all(np.isfinite(values), axis=-1))
        if good.size:
            every = np.concatenate([self.values, values[good]])
            keep = nondominated(every)
            old = len(self.values)
            self.decisions = [
                self.decisions[i] if i < old else Decision({k: v[good[i - old]] for k, v in decision.items()})
                for i in keep
            ]
            self.values = every[keep]
            self.thin(4 * self.most)
        return values, evaluation

    def thin(self, most: int) -> None:
        """Leave out points that add least to the hypervolume, a few at a time."""
        while len(self.values) > most:
            lost = moocore.hv_contributions(self.values, ref=reference_of(self.values))
            drop = max(1, (len(self.values) - most) // 4)
            keep = np.sort(np.argsort(lost, kind="stable")[drop:])
            self.values, self.decisions = self.values[keep], [self.decisions[i] for i in keep]

    def found(self, message: str, **more: Any) -> Found:
        """Return the best `most` points."""
        self.thin(self.most)
        order = nondominated(self.values)
        if not order.size:
            message += "; no feasible decision was found"
        return Found(self.values[order], tuple(self.decisions[i] for i in order), self.evaluated, message, **more)


def _whole(value: object, name: str, least: int) -> None:
    if not (is_whole(value) and value >= least):  # type: ignore[operator]
        raise InputError(f"{name}: {value!r} must be a whole number of at least {least}")


# ---------------------------------------------------------------------------------- NSGA-II


def nsga2(
    problem: Problem,
    goals: tuple[Goal, ...],
    *,
    ends: Ends | None,
    points: int,
    seed: int,
    reference: FloatArray | None,
    over: float | None,
    evaluations: int = 20_000,
    population: int | None = None,
    variables: str = "flat",
) -> Found:
    """Run NSGA-II over the unit cube of a space; whole numbers by repair, constraints by relative violation."""
    try:
        from pymoo.algorithms.moo.nsga2 import NSGA2
        from pymoo.core.problem import Problem as Pymoo
        from pymoo.core.repair import Repair
        from pymoo.operators.sampling.rnd import FloatRandomSampling
    except ImportError:
        raise MissingExtraError("pymoo", "moo", "method 'nsga2'") from None

    size = max(points, 20) if population is None else population
    _whole(size, "population", 4)
    _whole(evaluations, "evaluations", 1)
    space = _space(problem, ends, variables)
    archive = _Archive(problem, goals, points)

    def constraints(evaluation: Evaluation, rows: int) -> FloatArray:
        parts = []
        for name, slack in evaluation.slack.items():
            short = np.nan_to_num(-np.asarray(slack, dtype=np.float64), nan=1e30, posinf=1e30, neginf=-1e30)
            parts.append((short / np.asarray(evaluation.scale[name])).reshape(rows, -1))
        return np.concatenate(parts, axis=1) - FEASIBILITY_TOLERANCE

    middle = space.decisions(space.snap(np.full((1, space.dimension), 0.5)))
    with np.errstate(all="ignore"):
        count = constraints(problem.evaluate(middle), 1).shape[1]

    class Trade(Pymoo):
        def __init__(self) -> None:
            super().__init__(n_var=space.dimension, n_obj=len(goals), n_ieq_constr=count, xl=0.0, xu=1.0)

        def _evaluate(self, X: FloatArray, out: dict[str, Any], *args: Any, **kwargs: Any) -> None:
            values, evaluation = archive.evaluate(space.decisions(X))
            out["F"] = np.nan_to_num(values, nan=1e30, posinf=1e30)
            out["G"] = constraints(evaluation, len(X))

    class Snap(Repair):
        def _do(self, problem: Any, X: FloatArray, **kwargs: Any) -> FloatArray:
            return space.snap(np.asarray(X, dtype=np.float64))

    algorithm = NSGA2(pop_size=size, sampling=FloatRandomSampling(), repair=Snap())
    algorithm.setup(Trade(), termination=("n_eval", evaluations), seed=seed, verbose=False)
    while algorithm.has_next() and (over is None or time.perf_counter() < over):
        algorithm.next()
    return archive.found(
        f"NSGA-II over {space.name} ({space.dimension} dimensions), population {size}, "
        f"{archive.evaluated} evaluations; no bound is claimed"
    )


# ---------------------------------------------------------------------------------- qLogNEHVI


def warm_up() -> float:
    """Let BoTorch compile what it does at its first use, on a tiny problem; return the seconds that took.

    Where there is no C++ compiler, BoTorch computes the same in Python, several times slower, and a RuntimeWarning
    says so once.
    """
    from botorch.acquisition.multi_objective import logei

    if getattr(logei, "_load_attempted", False):
        return 0.0
    start = time.perf_counter()
    rng = np.random.default_rng(0)
    points = rng.uniform(size=(4, 1))
    with _quiet(0):
        model = _model(points, np.concatenate([points, 1.0 - points], axis=1))
        _improvement(model, points, np.full(2, 1.1), 2, 0)
    if not _compiled():
        warnings.warn(
            "BoTorch could not compile its hypervolume improvement (is there a C++ compiler?); "
            "it computes the same in Python, several times slower",
            RuntimeWarning,
            stacklevel=2,
        )
    return time.perf_counter() - start


def _compiled() -> bool:
    from botorch.acquisition.multi_objective import logei

    return getattr(logei, "_C", None) is not None


def _model(points: FloatArray, outcomes: FloatArray) -> Any:
    """Fit one Gaussian process to each outcome ``[n, outcomes]``, which is minimised or must be at most 0."""
    import torch
    from botorch.fit import fit_gpytorch_mll
    from botorch.models import ModelListGP, SingleTaskGP
    from gpytorch.mlls import SumMarginalLogLikelihood

    x = torch.tensor(points, dtype=torch.float64)
    # the functions are deterministic; the noise only keeps matrices invertible
    noise = torch.full((len(points), 1), 1e-6, dtype=torch.float64)
    models = [
        SingleTaskGP(x, torch.tensor(y[:, None].copy(), dtype=torch.float64), noise, outcome_transform=None)
        for y in outcomes.T
    ]
    model = ModelListGP(*models)
    fit_gpytorch_mll(
        SumMarginalLogLikelihood(model.likelihood, model),
        warning_handler=lambda _: True,
        max_attempts=2,
        optimizer_kwargs={"options": {"maxiter": 75}},
    )
    return model


def _improvement(model: Any, known: FloatArray, reference: FloatArray, goals: int, seed: int) -> Any:
    """Return the acquisition; models beyond the first `goals` are of constraints."""
    import torch
    from botorch.acquisition.multi_objective.logei import qLogNoisyExpectedHypervolumeImprovement
    from botorch.acquisition.multi_objective.objective import GenericMCMultiOutputObjective
    from botorch.sampling.normal import SobolQMCNormalSampler

    def at(i: int) -> Callable[[Any], Any]:
        return lambda samples: samples[..., i]

    def negative(samples: Any, X: Any = None) -> Any:
        return -samples[..., :goals]

    constraints = [at(i) for i in range(goals, model.num_outputs)] or None
    return qLogNoisyExpectedHypervolumeImprovement(
        model,
        # BoTorch maximises
        ref_point=torch.tensor(-reference, dtype=torch.float64),
        X_baseline=torch.tensor(known, dtype=torch.float64),
        sampler=SobolQMCNormalSampler(torch.Size([_SAMPLES]), seed=seed),
        objective=GenericMCMultiOutputObjective(negative),
        constraints=constraints,
        prune_baseline=True,
    )


def qlognehvi(
    problem: Problem,
    goals: tuple[Goal, ...],
    *,
    ends: Ends | None,
    points: int,
    seed: int,
    reference: FloatArray | None,
    over: float | None,
    evaluations: int = 100,
    initial: int | None = None,
    batch: int = 1,
    variables: str = "auto",
) -> Found:
    """Evaluate a Sobol design, then again and again where the expected hypervolume improvement is largest."""
    from torch.quasirandom import SobolEngine

    _whole(evaluations, "evaluations", 2)
    _whole(batch, "batch", 1)
    space = _space(problem, ends, variables)
    compiling = warm_up()
    over = None if over is None else over + compiling
    count = min(max(8, 2 * space.dimension + 2), max(evaluations // 2, 2)) if initial is None else initial
    _whole(count, "initial", 2)
    if reference is None and ends is not None:
        reference = ends.reference
    archive = _Archive(problem, goals, points)
    first, second, *seeds = (int(s) for s in np.random.SeedSequence(seed).generate_state(2 + evaluations))
    design = SobolEngine(space.dimension, scramble=True, seed=first).draw(min(count, evaluations)).numpy()
    spare = SobolEngine(space.dimension, scramble=True, seed=second)
    known = space.snap(design.astype(np.float64))
    values, excess = _observe(archive, space, known)
    failures = 0
    while archive.evaluated < evaluations and (over is None or time.perf_counter() < over):
        step = seeds[archive.evaluated]
        number = min(batch, evaluations - archive.evaluated)
        try:
            with _quiet(step):
                new = _propose(known, values, excess, archive.values, reference, number, step)
        except _recoverable():
            failures += 1
            new = spare.draw(number).numpy().astype(np.float64)
        new = space.snap(new)
        more, missed = _observe(archive, space, new)
        known, values = np.concatenate([known, new]), np.concatenate([values, more])
        excess = np.concatenate([excess, missed])
    message = (
        f"qLogNEHVI over {space.name} ({space.dimension} dimensions), {archive.evaluated} evaluations, {count} of them "
        "a Sobol design; no bound is claimed"
    )
    if failures:
        message += f"; the models could not be fitted in {failures} steps, random points were taken instead"
    if compiling > 1.0:
        message += f"; {compiling:.0f} s of compilation are not counted"
    if not _compiled():
        message += "; no C++ compiler was found, BoTorch computed in Python, which is slower"
    return archive.found(message, reference=reference, compiling=compiling)


def _observe(archive: _Archive, space: _Space, points: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return values [n, goals] and the largest excess of each constraint [n, constraints], on a bounded scale."""
    values, evaluation = archive.evaluate(space.decisions(points))
    excess = []
    for name, slack in evaluation.slack.items():
        short = np.nan_to_num(-np.asarray(slack, dtype=np.float64), nan=np.inf, posinf=np.inf, neginf=-np.inf)
        worst = (short / np.asarray(evaluation.scale[name])).reshape(len(points), -1).max(axis=1)
        worst = np.where(np.abs(worst) <= FEASIBILITY_TOLERANCE, 0.0, worst)
        # a delay may be exceeded by orders of magnitude
        excess.append(np.sign(worst) * np.log1p(np.minimum(np.abs(worst), 1e3)))
    return values, np.stack(excess, axis=1)


def _propose(
    known: FloatArray,
    values: FloatArray,
    excess: FloatArray,
    best: FloatArray,
    reference: FloatArray | None,
    number: int,
    seed: int,
) -> FloatArray:
    """Return the next points ``[number, dimension]``."""
    import torch
    from botorch.optim import optimize_acqf
    from torch.quasirandom import SobolEngine

    # what is worse than anything wanted is as good as equal, and would only flatten the rest
    shown = best if len(best) else values[np.all(np.isfinite(values), axis=1)]
    at = reference_of(shown) if reference is None else reference
    top = np.maximum(at, shown.max(axis=0)) + (np.ptp(shown, axis=0) + 1e-12 * np.abs(at))
    values = np.minimum(np.where(np.isfinite(values), values, np.inf), top)
    centre, spread = values.mean(axis=0), values.std(axis=0)
    spread = np.where(spread > 0.0, spread, 1.0)
    failed = np.flatnonzero(np.any(excess > 0.0, axis=0))
    missed = excess[:, failed]
    scale = np.maximum(np.sqrt(np.mean(missed**2, axis=0)), 1e-12)
    goals = values.shape[1]
    model = _model(known, np.concatenate([(values - centre) / spread, missed / scale], axis=1))
    gain = _improvement(model, known, (at - centre) / spread, goals, seed)

    dimension = known.shape[1]
    raw = SobolEngine(dimension, scramble=True, seed=seed).draw(_RAW, dtype=torch.float64)
    held = np.flatnonzero(np.all(missed <= 0.0, axis=1))
    if held.size:
        # near the best points known
        front = held[nondominated(values[held])]
        rows = torch.tensor(known[np.resize(front, _RAW)], dtype=torch.float64)
        raw = torch.cat([raw, (rows + 0.05 * torch.randn(rows.shape, dtype=torch.float64)).clamp(0.0, 1.0)])
    bounds = torch.stack([torch.zeros(dimension), torch.ones(dimension)]).to(torch.float64)
    out: list[Any] = []
    for _ in range(number):
        with torch.no_grad():
            order = gain(raw.unsqueeze(-2)).argsort(descending=True)
        found, _ = optimize_acqf(
            gain,
            bounds,
            q=1,
            num_restarts=_RESTARTS,
            batch_initial_conditions=raw[order[:_RESTARTS]].unsqueeze(-2),
            options={"maxiter": 60},
        )
        out.append(found[0].detach())
        if len(out) < number:
            gain.set_X_pending(torch.stack(out))
    return torch.stack(out).numpy().astype(np.float64)

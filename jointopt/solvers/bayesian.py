"""Bayesian optimization over a few complicating variables, the rest in closed form: no certificate.

The published procedure: a Gaussian process (Matérn 5/2, one length scale per variable) learns the objective as a
function of the complicating variables, and the next point maximises the logarithm of the expected improvement.
Where the objective is a sum over units of functions of one variable each, the same is done for every unit on its
own, all units at once in one batch of Gaussian processes.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np

from jointopt.errors import InputError, is_whole, nearest
from jointopt.problem import FEASIBILITY_TOLERANCE, Problem, Search
from jointopt.solvers.monitor import Monitor
from jointopt.system import FloatArray

__all__ = ["bayesian"]

BACKENDS = ("botorch", "skopt-gp", "skopt-rf")
MODES = ("auto", "joint", "separate", "policy")

JOINT_LIMIT = 15
"""Most variables for which `auto` searches jointly although the units are separable."""

# A policy's line may leave the box by this share of its width at either end and is then clipped, so that it can
# be steeper than the box.
_OVERSHOOT = 0.5

# Variance of an observation over that of all: the model is deterministic, this only keeps matrices invertible.
_NUGGET = 1e-6

_RAW_SAMPLES = 1024
_RESTARTS = 8

Propose = Callable[[FloatArray, FloatArray, int], FloatArray]
"""(points [batch, n, d] in the unit cube, values [batch, n], seed) -> next point of each batch [batch, d]."""


def bayesian(
    problem: Problem,
    monitor: Monitor,
    *,
    seed: int | None,
    iterations: int = 40,
    initial: int | None = None,
    backend: Literal["botorch", "skopt-gp", "skopt-rf"] = "botorch",
    mode: Literal["auto", "joint", "separate", "policy"] = "auto",
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
        ``joint``: one search over all units' variables, the plain published loop. ``separate``: one search in one
        variable per unit, in lockstep; needs `Search.unit_values`. ``policy``: two numbers, a line (in the
        logarithm, where the search is logarithmic) from the units' `attribute` to their variables.
        ``auto``: joint up to 15 variables, beyond that separate where possible.

    Returns
    -------
    str
        What was run.

    Raises
    ------
    InputError
        When the problem lacks what the mode needs, or an option is unknown or out of range.
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
    if initial is not None and not (is_whole(initial) and initial >= 1):
        raise InputError(f"initial: {initial!r} must be a whole number of at least 1")
    box = _Box(search)
    if box.free.size == 0:
        monitor.offer(search.complete(box.lower))
        return f"bayesian: {search.name} is fixed, only the inner solution was computed"
    separable = search.unit_values(box.lower) is not None
    chosen = mode
    if mode == "auto":
        chosen = "separate" if separable and box.free.size > JOINT_LIMIT else "joint"
    target: _Target
    if chosen == "separate":
        if not separable:
            raise InputError(f"mode: 'separate' needs an objective that is a sum over units, {problem.name}'s is not")
        target = _Separate(search, monitor, box)
    elif chosen == "policy":
        target = _Joint(search, monitor, _policy(problem, search, box), 2, separable)
    else:
        target = _Joint(search, monitor, box.spread, box.free.size, separable)
    root = np.random.SeedSequence(seed)
    count = max(8, 2 * target.dimension) if initial is None else initial
    failures = _loop(target, monitor, _PROPOSE[backend](), count, iterations, root)
    what = {"joint": "jointly", "separate": "each unit on its own", "policy": "by a line in the attribute"}[chosen]
    text = (
        f"bayesian ({backend}): {search.name} of {box.free.size} units searched {what}, "
        f"{count} initial points and {iterations} iterations; no bound is claimed"
    )
    if failures:
        text += f"; the model could not be fitted in {failures} iterations, random points were taken instead"
    return text


def _loop(
    target: _Target,
    monitor: Monitor,
    propose: Propose,
    count: int,
    iterations: int,
    root: np.random.SeedSequence,
) -> int:
    """Evaluate the initial design, then what the backend proposes; return how often it failed."""
    from torch.quasirandom import SobolEngine

    first, second, *rest = (int(s) for s in root.generate_state(2 + iterations))
    shape = (target.batch, target.dimension)
    design = SobolEngine(target.batch * target.dimension, scramble=True, seed=first)
    points = [design.draw(1).numpy().astype(np.float64).reshape(shape) for _ in range(count)]
    spare = SobolEngine(target.batch * target.dimension, scramble=True, seed=second)
    for point in points:
        target.evaluate(point)
    failures = 0
    recoverable = _recoverable()
    for step in range(iterations):
        monitor.check()
        try:
            with _quiet(rest[step]):
                point = propose(np.stack(points, axis=1), _scaled(target.values()), rest[step])
        except recoverable:
            point = np.full(shape, np.nan)
        if not np.all(np.isfinite(point)):
            failures += 1
            point = np.where(np.isfinite(point), point, spare.draw(1).numpy().astype(np.float64).reshape(shape))
        point = np.clip(point, 0.0, 1.0)
        points.append(point)
        target.evaluate(point)
    return failures


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


class _Box:
    """Unit cube over the variables that can move."""

    def __init__(self, search: Search) -> None:
        self.logarithmic = search.logarithmic
        self.lower, self.upper = (np.asarray(b, dtype=np.float64) for b in (search.lower, search.upper))
        self.free = np.flatnonzero(self.upper > self.lower)
        self.low, self.high = (np.log(b) if search.logarithmic else b for b in (self.lower, self.upper))

    def clip(self, scaled: FloatArray) -> FloatArray:
        """Return x from its (logarithmic) scale, exactly within the bounds."""
        return np.clip(np.exp(scaled) if self.logarithmic else scaled, self.lower, self.upper)

    def spread(self, point: FloatArray) -> FloatArray:
        """Return x of all units from the free ones in the unit cube."""
        share = np.zeros(self.lower.size)
        share[self.free] = point
        return self.clip(self.low + share * (self.high - self.low))


def _policy(problem: Problem, search: Search, box: _Box) -> Callable[[FloatArray], FloatArray]:
    """Return the map from two numbers, the line's ends over the attribute's range, to x."""
    attribute = getattr(search, "attribute", None)
    if attribute is None:
        raise InputError(f"mode: 'policy' needs an attribute per unit, {problem.name}'s search has none")
    z = np.asarray(attribute, dtype=np.float64)
    width = float(np.ptp(z))
    share = (z - z.min()) / width if width > 0.0 else np.zeros(z.size)
    low, high = float(box.low.min()), float(box.high.max())

    def spread(point: FloatArray) -> FloatArray:
        ends = (1.0 + 2.0 * _OVERSHOOT) * point - _OVERSHOOT
        return box.clip(low + (high - low) * (ends[0] + (ends[1] - ends[0]) * share))

    return spread


class _Target(ABC):
    """What a loop evaluates: `batch` functions of `dimension` variables each."""

    batch: int
    dimension: int

    @abstractmethod
    def evaluate(self, point: FloatArray) -> None:
        """Evaluate at a point [batch, dimension] and offer a decision to the monitor."""

    @abstractmethod
    def values(self) -> FloatArray:
        """Return all values so far, shape [batch, n]."""


class _Joint(_Target):
    """One function of all parameters."""

    batch = 1

    def __init__(
        self,
        search: Search,
        monitor: Monitor,
        spread: Callable[[FloatArray], FloatArray],
        dimension: int,
        separable: bool,
    ) -> None:
        self.search, self.monitor, self.spread = search, monitor, spread
        self.dimension, self.separable = dimension, separable
        self.seen: list[tuple[float, float]] = []

    def evaluate(self, point: FloatArray) -> None:
        x = self.spread(point[0])
        value = self.monitor.offer(self.search.complete(x))
        parts = self.search.unit_values(x) if self.separable else None
        if parts is None:
            self.seen.append((value, self.monitor.history[-1]["violation"]))
        else:
            self.seen.append((float(np.sum(parts)), 0.0))

    def values(self) -> FloatArray:
        """Return the objective, penalised so that no infeasible point beats the best feasible one."""
        value, violation = np.array(self.seen).T
        fits = violation <= FEASIBILITY_TOLERANCE
        if not fits.any():
            return violation[None]
        best = value[fits].min()
        # Continuous where the constraint cuts the objective off, since a jump there is what a Gaussian process
        # models worst; bounded, since one huge penalty would flatten everything else.
        penalty = max(np.ptp(value), 1e-12 * abs(best)) * violation / (1.0 + violation)
        return np.where(fits, value, np.maximum(value, best) + penalty)[None]


class _Separate(_Target):
    """One function of one variable per unit; the incumbent joins the units' best points."""

    dimension = 1

    def __init__(self, search: Search, monitor: Monitor, box: _Box) -> None:
        self.search, self.monitor, self.box = search, monitor, box
        self.batch = box.free.size
        self.best_x = box.lower.copy()
        self.best = np.full(self.batch, np.inf)
        self.seen: list[FloatArray] = []

    def evaluate(self, point: FloatArray) -> None:
        x = self.box.spread(point[:, 0])
        values = self.search.unit_values(x)
        assert values is not None
        value = values[self.box.free]
        better = value < self.best
        self.best = np.where(better, value, self.best)
        moved = self.box.free[better]
        self.best_x[moved] = x[moved]
        self.seen.append(value)
        self.monitor.offer(self.search.complete(self.best_x.copy()))

    def values(self) -> FloatArray:
        return np.stack(self.seen, axis=-1)


def _scaled(values: FloatArray) -> FloatArray:
    """Return values [batch, n] with mean 0 and standard deviation 1.

    Scaled here, once, so that the model and the best value it is compared with share one scale. BoTorch's own
    standardisation leaves outcomes alone whose deviation is below 1e-8, which gaps are; and the expected
    improvement of scikit-optimize has a margin of 0.01 in the unit of the outcomes.
    """
    known = np.isfinite(values)
    top = np.where(known, values, -np.inf).max(axis=-1, keepdims=True)
    values = np.where(known, values, np.where(np.isfinite(top), top, 0.0))
    centred = values - values.mean(axis=-1, keepdims=True)
    deviation = centred.std(axis=-1, keepdims=True)
    return centred / np.where(deviation > 0.0, deviation, 1.0)


# ---------------------------------------------------------------------------------- backends


class _BoTorch:
    """Gaussian processes and log expected improvement; each fit starts from the one before."""

    def __init__(self) -> None:
        self.last: dict[str, Any] = {}

    def __call__(self, points: FloatArray, values: FloatArray, seed: int) -> FloatArray:
        """Fit the batch of Gaussian processes and maximise the acquisition of each."""
        import torch
        from botorch.acquisition.analytic import LogExpectedImprovement

        batch = points.shape[0]
        if batch == 1:
            points, values = points[0], values[0]
        train_x = torch.tensor(points, dtype=torch.float64)
        # botorch maximises
        train_y = -torch.tensor(values, dtype=torch.float64).unsqueeze(-1)
        model = self._fit(train_x, train_y)
        # on the model's own scale, since there is no outcome transform; shape [batch, 1] as its posterior's means
        gain = LogExpectedImprovement(model, best_f=train_y.max(dim=-2).values)
        if batch == 1:
            return _ascend(gain, train_x, train_x[train_y[:, 0].argmax()], seed)[None]
        return _zoom(gain, batch)

    def _fit(self, train_x: Any, train_y: Any) -> Any:
        """Return a model fitted to data [..., n, d] and [..., n, 1]."""
        import torch
        from botorch.fit import fit_gpytorch_mll
        from botorch.models import SingleTaskGP
        from botorch.models.utils.gpytorch_modules import get_covar_module_with_dim_scaled_prior
        from gpytorch.mlls import ExactMarginalLogLikelihood

        kernel = get_covar_module_with_dim_scaled_prior(
            train_x.shape[-1], batch_shape=train_x.shape[:-2], use_rbf_kernel=False
        )
        noise = torch.full_like(train_y, _NUGGET)
        model = SingleTaskGP(train_x, train_y, noise, covar_module=kernel, outcome_transform=None)
        model.load_state_dict(self.last, strict=False)
        self.last = {}  # a fit that fails is not started from again
        # A warning (line search ended early, iterations used up) leaves a usable fit; the default discards it and
        # begins anew from draws of the priors, up to five times.
        fit_gpytorch_mll(
            ExactMarginalLogLikelihood(model.likelihood, model),
            warning_handler=lambda _: True,
            max_attempts=2,
            optimizer_kwargs={"options": {"maxiter": 100}},
        )
        self.last = {name: value.detach().clone() for name, value in model.named_parameters()}
        return model


def _ascend(gain: Any, known: Any, best: Any, seed: int) -> FloatArray:
    """Maximise an acquisition by L-BFGS from the best of many raw samples, some of them around the incumbent."""
    import torch
    from botorch.optim import optimize_acqf
    from torch.quasirandom import SobolEngine

    dimension = known.shape[-1]
    raw = SobolEngine(dimension, scramble=True, seed=seed).draw(_RAW_SAMPLES, dtype=torch.float64)
    near = best + 0.1 * torch.randn(_RAW_SAMPLES // 4, dimension, dtype=torch.float64)
    raw = torch.cat([raw, near.clamp(0.0, 1.0)])
    with torch.no_grad():
        order = gain(raw.unsqueeze(-2)).argsort(descending=True)
    bounds = torch.stack([torch.zeros(dimension), torch.ones(dimension)]).to(torch.float64)
    found, _ = optimize_acqf(
        gain,
        bounds,
        q=1,
        num_restarts=_RESTARTS,
        batch_initial_conditions=raw[order[:_RESTARTS]].unsqueeze(-2),
        options={"maxiter": 100},
    )
    return np.asarray(found[0].numpy(), dtype=np.float64)


def _zoom(gain: Any, batch: int) -> FloatArray:
    """Maximise a batch of acquisitions of one variable each: a grid, then a finer one around its best point."""
    import torch

    with torch.no_grad():
        grid = torch.linspace(0.0, 1.0, _RAW_SAMPLES, dtype=torch.float64)[:, None].expand(-1, batch)
        width = 1.0 / (_RAW_SAMPLES - 1)
        for _ in range(2):
            top = grid.gather(0, gain(grid[..., None, None]).argmax(dim=0, keepdim=True))
            grid = (top + width * torch.linspace(-1.0, 1.0, 33, dtype=torch.float64)[:, None]).clamp(0.0, 1.0)
            width /= 16.0
        top = grid.gather(0, gain(grid[..., None, None]).argmax(dim=0, keepdim=True))
    return np.asarray(top.T.numpy(), dtype=np.float64)


def _skopt(estimator: Literal["GP", "RF"]) -> Propose:
    """Return the adapter to scikit-optimize: a fresh optimizer is told everything, which costs one fit."""

    def propose(points: FloatArray, values: FloatArray, seed: int) -> FloatArray:
        from skopt import Optimizer

        asked = []
        for x, y in zip(points, values, strict=True):
            optimizer = Optimizer(
                [(0.0, 1.0)] * x.shape[-1],
                base_estimator=estimator,
                acq_func="EI",
                n_initial_points=1,
                random_state=seed % 2**31,
            )
            optimizer.tell(x.tolist(), y.tolist())
            asked.append([float(v) for v in optimizer.ask()])
        return np.array(asked)

    return propose


_PROPOSE: dict[str, Callable[[], Propose]] = {
    "botorch": _BoTorch,
    "skopt-gp": lambda: _skopt("GP"),
    "skopt-rf": lambda: _skopt("RF"),
}

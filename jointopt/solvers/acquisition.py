"""Where to evaluate next: Gaussian processes with expected improvement (BoTorch), and scikit-optimize's two models.

With BoTorch, a problem whose constraints the completion cannot guarantee gets one Gaussian process for the objective
and one for every constraint that was violated so far; what is maximised is the logarithm of the expected improvement
times the probability that these hold, or that probability alone while nothing feasible is known. The other backends
get the penalised objective.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from jointopt.solvers.space import ENUMERATED, Cube, key
from jointopt.system import FloatArray

__all__ = ["BACKENDS", "Backend", "Known", "standardised"]

# Variance of an observation over that of all: the model is deterministic, this only keeps matrices invertible.
_NUGGET = 1e-6

_RAW_SAMPLES = 1024
_RESTARTS = 8
_MIXED_SAMPLES = 256
_MIXED_RESTARTS = 2
_SPRAYED = 32

_GOLDEN = 0.5 * (3.0 - 5.0**0.5)


@dataclass(frozen=True)
class Known:
    """What was evaluated: `functions` functions of one cube each, in lockstep.

    Attributes
    ----------
    points : array, shape [functions, n, dimension]
        In the unit cube.
    values : array, shape [functions, n]
        To be minimised; where constraints do not hold, more than wherever they do.
    objective : array, shape [n], optional
        The objective of the only function where there are constraints, whether they hold or not.
    excess : array, shape [constraints, n], optional
        By how much each constraint is missed (on a bounded, increasing scale); at most 0 where it holds.
    feasible : bool array, shape [n], optional
        Where all of them hold.
    """

    points: FloatArray
    values: FloatArray
    objective: FloatArray | None = None
    excess: FloatArray | None = None
    feasible: npt.NDArray[np.bool_] | None = None


class Backend(Protocol):
    """What proposes points."""

    def propose(self, known: Known, count: int, seed: int) -> FloatArray:
        """Return the next `count` points, shape [count, functions, dimension]."""
        ...

    def state(self) -> dict[str, Any]:
        """Return what a later proposal depends on beside its arguments, as plain data."""
        ...

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take up a state."""
        ...


def standardised(values: FloatArray) -> FloatArray:
    """Return values [..., n] with mean 0 and standard deviation 1; what is not finite becomes the largest that is.

    Scaled here, once, so that the model and the best value it is compared with share one scale. BoTorch's own
    standardisation leaves outcomes alone whose deviation is below 1e-8, which gaps are; and the expected
    improvement of scikit-optimize has a margin of 0.01 in the unit of the outcomes.
    """
    values = _finite(values)
    centred = values - values.mean(axis=-1, keepdims=True)
    deviation = centred.std(axis=-1, keepdims=True)
    return centred / np.where(deviation > 0.0, deviation, 1.0)


def _finite(values: FloatArray) -> FloatArray:
    """Return values [..., n] with what is not finite as large as the largest that is."""
    known = np.isfinite(values)
    top = np.where(known, values, -np.inf).max(axis=-1, keepdims=True)
    return np.where(known, values, np.where(np.isfinite(top), top, 0.0))


# ---------------------------------------------------------------------------------- BoTorch


class BoTorch:
    """Gaussian processes and log expected improvement; each fit starts from the one before."""

    def __init__(self, cube: Cube) -> None:
        self.cube = cube
        self.last: dict[str, Any] = {}

    def state(self) -> dict[str, Any]:
        """Return the last fit's parameters."""
        return {name: value.tolist() for name, value in self.last.items()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Start the next fit from these parameters."""
        import torch

        self.last = {name: torch.tensor(value, dtype=torch.float64) for name, value in state.items()}

    def propose(self, known: Known, count: int, seed: int) -> FloatArray:
        """Fit once and maximise the acquisition for one point after another, each taken as if it had met its mean."""
        import torch

        functions = known.points.shape[0]
        points = known.points[0] if functions == 1 else known.points
        train_x = torch.tensor(points, dtype=torch.float64)
        # botorch maximises
        if known.excess is None:
            train_y = -torch.tensor(standardised(known.values), dtype=torch.float64)
            train_y = train_y[0].unsqueeze(-1) if functions == 1 else train_y.unsqueeze(-1)
        else:
            assert known.objective is not None
            # not centred: 0 is where the constraint begins to hold
            spread = np.maximum(np.sqrt(np.mean(known.excess**2, axis=-1, keepdims=True)), 1e-12)
            rows = np.concatenate([-standardised(known.objective)[None], known.excess / spread])
            train_y = torch.tensor(rows.T, dtype=torch.float64)
        best = self._best(known, train_y)
        model = self._fit(train_x, train_y)
        out: list[FloatArray] = []
        for i in range(count):
            gain = self._acquisition(model, train_y, best)
            if functions > 1:
                # every other point narrows the best one's surroundings: where budgets cut a unit's function off it has
                # a kink, which a Gaussian process takes for a reason to look elsewhere
                narrow = (known.points.shape[1] + i) % 2 == 1
                found = _between(known) if narrow and i < 2 else _zoom(gain, functions)
            else:
                centre = train_x[int(np.argmin(known.values[0]))]
                found = self._maximise(gain, known.points[0], out, centre, seed + i)[None]
            out.append(found)
            if i + 1 < count:
                new = torch.tensor(found[0][None] if functions == 1 else found[:, None], dtype=torch.float64)
                with torch.no_grad():
                    mean = model.posterior(new).mean
                train_x, train_y = torch.cat([train_x, new], dim=-2), torch.cat([train_y, mean], dim=-2)
                model = self._model(train_x, train_y)
                model.eval()
        return np.stack(out)

    @staticmethod
    def _best(known: Known, train_y: Any) -> Any:
        """Best value on the model's own scale, since there is no outcome transform; None where nothing is feasible."""
        if known.excess is None:
            return train_y.max(dim=-2).values
        assert known.feasible is not None
        feasible = np.flatnonzero(known.feasible)
        return train_y[feasible, :1].max(dim=-2).values if feasible.size else None

    @staticmethod
    def _acquisition(model: Any, train_y: Any, best: Any) -> Any:
        from botorch.acquisition import analytic

        limits: dict[int, tuple[float | None, float | None]] = dict.fromkeys(range(1, train_y.shape[-1]), (None, 0.0))
        if not limits:
            # shape [batch, 1] of the best value, as of the posterior's means
            return analytic.LogExpectedImprovement(model, best_f=best)
        if best is None:
            return analytic.LogProbabilityOfFeasibility(model, limits)
        return analytic.LogConstrainedExpectedImprovement(model, best, 0, limits)

    def _model(self, train_x: Any, train_y: Any) -> Any:
        """Return the model at data [..., n, d] and [..., n, m], with the last fit's parameters where they match."""
        import torch
        from botorch.models import SingleTaskGP
        from botorch.models.utils.gpytorch_modules import get_covar_module_with_dim_scaled_prior

        outputs = train_y.shape[-1]
        shape = train_x.shape[:-2] + (torch.Size([outputs]) if outputs > 1 else torch.Size([]))
        kernel = get_covar_module_with_dim_scaled_prior(train_x.shape[-1], batch_shape=shape, use_rbf_kernel=False)
        noise = torch.full_like(train_y, _NUGGET)
        model = SingleTaskGP(train_x, train_y, noise, covar_module=kernel, outcome_transform=None)
        own = model.state_dict()
        if all(name in own and own[name].shape == value.shape for name, value in self.last.items()):
            model.load_state_dict(self.last, strict=False)
        return model

    def _fit(self, train_x: Any, train_y: Any) -> Any:
        from botorch.fit import fit_gpytorch_mll
        from gpytorch.mlls import ExactMarginalLogLikelihood

        model = self._model(train_x, train_y)
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

    def _maximise(self, gain: Any, points: FloatArray, chosen: list[FloatArray], centre: Any, seed: int) -> FloatArray:
        """Return the best point of one function's cube; one that is not known, where the pool holds such."""
        cube = self.cube
        taken = {key(p) for p in points} | {key(p[0]) for p in chosen}
        if cube.size <= ENUMERATED:
            return _best_of(gain, cube.list(), taken)
        found = _alternate(gain, cube, seed) if np.any(cube.discrete) else _ascend(gain, centre, seed)
        found = cube.snap(found)
        if key(found) not in taken:
            return found
        rng = np.random.default_rng(seed)
        near = [cube.neighbours(p) for p in (found, centre.numpy())]
        return _best_of(gain, np.concatenate([*near, cube.spread(rng.random((_RAW_SAMPLES, cube.dimension)))]), taken)


def _best_of(gain: Any, pool: FloatArray, taken: set[tuple[float, ...]]) -> FloatArray:
    """Return the pool's best point that is not taken; any, where all are."""
    import torch

    fresh = [i for i, point in enumerate(pool) if key(point) not in taken]
    pool = pool[fresh] if fresh else pool
    with torch.no_grad():
        order = gain(torch.tensor(pool, dtype=torch.float64).unsqueeze(-2)).argmax()
    return np.asarray(pool[int(order)], dtype=np.float64)


def _ascend(gain: Any, best: Any, seed: int) -> FloatArray:
    """Maximise an acquisition by L-BFGS from the best of many raw samples, some of them around the incumbent."""
    import torch
    from botorch.optim import optimize_acqf
    from torch.quasirandom import SobolEngine

    dimension = best.shape[-1]
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


def _alternate(gain: Any, cube: Cube, seed: int) -> FloatArray:
    """Maximise an acquisition over real variables and whole numbers in turn."""
    import torch
    from botorch.optim.optimize_mixed import optimize_acqf_mixed_alternating

    bounds = torch.stack([torch.zeros(cube.dimension), torch.ones(cube.dimension)]).to(torch.float64)
    levels = {int(i): np.linspace(0.0, 1.0, int(cube.levels[i])).tolist() for i in np.flatnonzero(cube.discrete)}
    found, _ = optimize_acqf_mixed_alternating(
        gain,
        bounds,
        discrete_dims=levels,
        raw_samples=_MIXED_SAMPLES,
        num_restarts=_MIXED_RESTARTS,
        options={"num_spray_points": _SPRAYED, "maxiter_alternating": 4},
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


def _between(known: Known) -> FloatArray:
    """Return, for functions of one variable, a point inside the wider gap beside the best one; [functions, 1]."""
    points = known.points[:, :, 0]
    best = np.take_along_axis(points, np.argmin(known.values, axis=1)[:, None], axis=1)
    left = np.where(points < best, points, -np.inf).max(axis=1, keepdims=True)
    right = np.where(points > best, points, np.inf).min(axis=1, keepdims=True)
    # nothing was evaluated on one side: up to the cube's side
    left, right = np.where(np.isfinite(left), left, 0.0), np.where(np.isfinite(right), right, 1.0)
    end = np.where(right - best > best - left, right, left)
    return best + _GOLDEN * (end - best)


# ---------------------------------------------------------------------------------- scikit-optimize


class SkOpt:
    """The adapter to scikit-optimize: a fresh optimizer is told everything, which costs one fit."""

    def __init__(self, estimator: Literal["GP", "RF"], cube: Cube) -> None:
        self.estimator, self.cube = estimator, cube

    def state(self) -> dict[str, Any]:
        """Return nothing: every optimizer is fresh."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take up nothing."""

    def propose(self, known: Known, count: int, seed: int) -> FloatArray:
        """Ask once per function; several points are each taken as if they had met the least value."""
        from skopt import Optimizer
        from skopt.space import Integer, Real

        steps = np.maximum(self.cube.levels - 1, 1)
        whole = self.cube.discrete
        sides = [Integer(0, int(n) - 1) if n > 0 else Real(0.0, 1.0) for n in self.cube.levels]
        asked = []
        for points, values in zip(known.points, standardised(known.values), strict=True):
            optimizer = Optimizer(
                sides,
                base_estimator=self.estimator,
                acq_func="EI",
                n_initial_points=1,
                random_state=seed % 2**31,
            )
            rows = np.where(whole, np.rint(points * steps), points)
            told = [[int(v) if w else float(v) for v, w in zip(row, whole, strict=True)] for row in rows]
            optimizer.tell(told, values.tolist())
            # its own types are NumPy's
            found = [optimizer.ask()] if count == 1 else optimizer.ask(n_points=count, strategy="cl_min")
            asked.append(np.array([[float(v) for v in x] for x in found]) / np.where(whole, steps, 1))
        return np.stack(asked, axis=1)


BACKENDS: dict[str, Callable[[Cube], Backend]] = {
    "botorch": BoTorch,
    "skopt-gp": lambda cube: SkOpt("GP", cube),
    "skopt-rf": lambda cube: SkOpt("RF", cube),
}

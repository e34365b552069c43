"""Local search with derivatives from many starts, for any problem; without a certificate.

Variables fill the unit cube, on a logarithmic scale where their bounds are positive and far apart. Constraints are the
slacks of `Problem.evaluate` over their scales, whose derivatives come from torch through the same function; slacks that
only repeat a variable's own bounds are left to the cube. Whole numbers are relaxed, rounded, and improved one at a time
while the rest is optimised again.

One evaluation on a batch gives all derivatives: each copy of the point is differentiated for a group of constraints
that share no variable. The groups are found by trial, so that per-device constraints of many devices cost one copy.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.optimize
import scipy.stats

from jointopt.arithmetic.differentiable import Differentiable, unwrapped
from jointopt.arithmetic.elementwise import Elementwise, symbols
from jointopt.decision import Array, Decision
from jointopt.errors import InputError, MissingExtraError, is_whole, nearest
from jointopt.problem import Problem
from jointopt.solvers.monitor import Monitor, StopSearch
from jointopt.system import FloatArray

__all__ = ["BACKENDS", "Cube", "Derivatives", "improve", "nlp"]

BACKENDS = ("slsqp", "trust-constr", "ipopt")
"""Engines of the local search; ``ipopt`` needs the extra ``ipopt``."""

LOGARITHMIC_FROM = 1e3
"""Ratio of positive bounds from which a variable is searched on a logarithmic scale."""
MARGIN = 1e-9
"""Share of its scale by which every constraint is tightened, so that rounding leaves it kept."""
NOT_A_NUMBER = 1e10
"""What stands for a value that is no number: worse than anything real, and finite as the engines need it."""
ENUMERATED = 64
"""Most combinations of whole numbers for which each one is searched."""
SAME = 1e-4
"""Distance in the cube under which two relaxed solutions count as one."""
CHUNK = 4_000_000
"""Most elements of a batch in one evaluation."""


def nlp(
    problem: Problem,
    monitor: Monitor,
    *,
    seed: int | None = None,
    starts: int = 20,
    backend: str = "slsqp",
    max_iterations: int = 200,
) -> str:
    """Search from many starts along derivatives; decisions are offered to the monitor.

    A local optimum is all it can find, and it proves nothing. Memory grows with variables times constraints.

    Parameters
    ----------
    problem : Problem
        Any; `evaluate` must take torch tensors (or, with ``ipopt``, expressions).
    monitor : Monitor
        Receives the decisions and keeps the best.
    seed : int, optional
        Seed of the starts.
    starts : int
        Starts: the middle of all ranges, then Sobol points.
    backend : {"slsqp", "trust-constr", "ipopt"}
        Engine. ``ipopt`` gets exact sparse derivatives where the problem's functions can be traced by CasADi.
    max_iterations : int
        Most iterations of the engine from one start.

    Returns
    -------
    str
        From how many starts something feasible was found, and how often the best.

    Raises
    ------
    InputError
        When an option is out of range, or the problem cannot be differentiated.
    MissingExtraError
        For ``ipopt`` without CasADi.
    """
    if not (is_whole(starts) and starts >= 1):
        raise InputError(f"starts: {starts!r} must be a whole number of at least 1")
    if not (is_whole(max_iterations) and max_iterations >= 1):
        raise InputError(f"max_iterations: {max_iterations!r} must be a whole number of at least 1")
    if backend not in BACKENDS:
        raise InputError(f"backend: unknown '{backend}'{nearest(str(backend), BACKENDS)}")
    cube = Cube(problem)
    search = _Search(cube, monitor, backend, max_iterations)
    return search.run(starts, seed)


def improve(
    problem: Problem,
    decision: Decision,
    variables: Sequence[str],
    *,
    max_iterations: int = 200,
    stop: Callable[[], None] | None = None,
) -> Decision:
    """Return a decision improved over some variables by one local search from it, the others as they are.

    A feasible decision is never made worse; of one that is not feasible the violation is not made larger.
    """
    cube, monitor = (
        Cube(problem, {name: decision[name] for name in decision if name not in variables}),
        Monitor(problem),
    )
    if cube.size == 0:
        return decision
    monitor.offer(decision)
    values = np.concatenate([np.broadcast_to(np.asarray(decision[v.name]), v.lower.shape) for v in cube.variables])
    search = _Search(cube, monitor, "slsqp", max_iterations)
    if stop is not None:
        search.functions.check = stop
    point = cube.point(values[cube.free])
    if cube.whole.any():
        search.offered(search.local(point, whole_fixed=True))
    search.from_start(point)
    return decision if monitor.best is None else monitor.best


# The cube -------------------------------------------------------------------------------------------------------


class Cube:
    """The unit cube of a problem's variables that are not fixed.

    Parameters
    ----------
    problem : Problem
        What is searched.
    fixed : mapping of str to arrays, optional
        Values of variables that are to stay as they are, beside those whose bounds meet.

    Attributes
    ----------
    size : int
        Number of coordinates: all entries of all variables whose bounds differ.
    whole : bool array, shape [size]
        Coordinates of integers and binaries.
    """

    def __init__(self, problem: Problem, fixed: Mapping[str, Array] | None = None) -> None:
        self.problem = problem
        self.variables = problem.variables
        given = {} if fixed is None else {name: np.asarray(value) for name, value in fixed.items()}

        def ends(end: str) -> FloatArray:
            own = (np.atleast_1d(getattr(v, end)) for v in self.variables)
            each = [np.broadcast_to(given.get(v.name, e), e.shape) for v, e in zip(self.variables, own, strict=True)]
            return np.concatenate(each).astype(np.float64)

        low, high = ends("lower"), ends("upper")
        sizes = [np.atleast_1d(v.lower).size for v in self.variables]
        self.ends = np.cumsum([0, *sizes])
        whole = np.repeat([v.kind != "real" for v in self.variables], sizes)
        self.free = np.flatnonzero(high > low)
        self.size = int(self.free.size)
        self.low, self.high, self.whole = low[self.free], high[self.free], whole[self.free]
        self._fixed = low
        with np.errstate(divide="ignore"):
            far = (self.low > 0.0) & (self.high > LOGARITHMIC_FROM * self.low)
        self.logarithmic = far & ~self.whole

    def values(self, point: FloatArray) -> FloatArray:
        """Return the variables' values at points, shape ``[..., size]``."""
        with np.errstate(divide="ignore", invalid="ignore"):
            geometric = self.low * (self.high / np.where(self.low > 0.0, self.low, 1.0)) ** point
        out: FloatArray = np.where(self.logarithmic, geometric, self.low + (self.high - self.low) * point)
        return np.clip(out, self.low, self.high)

    def point(self, values: FloatArray) -> FloatArray:
        """Return the point of values, the inverse of `values`."""
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.where(self.logarithmic, self.high / self.low, np.e)
            geometric = np.log(np.where(self.logarithmic, values / self.low, 1.0)) / np.log(ratio)
        out: FloatArray = np.where(self.logarithmic, geometric, (values - self.low) / (self.high - self.low))
        return np.clip(out, 0.0, 1.0)

    def rounded(self, point: FloatArray, how: Callable[[FloatArray], FloatArray] = np.rint) -> FloatArray:
        """Return a point with whole numbers in its whole coordinates."""
        values = self.values(point)
        # an engine's 2.9999999 is 3 also when rounding down
        whole = how(np.where(abs(values - np.rint(values)) < 1e-6, np.rint(values), values))
        return np.where(self.whole, self.point(np.clip(whole, self.low, self.high)), point)

    def decision(self, point: FloatArray) -> Decision:
        """Return the decision at a rounded point, shape ``[size]``, or points."""
        values = self.values(point)
        return self._named(np.where(self.whole, np.rint(values), values))

    def _named(self, values: FloatArray) -> Decision:
        everything = np.broadcast_to(self._fixed, (*values.shape[:-1], self._fixed.size)).copy()
        everything[..., self.free] = values
        return Decision({v.name: everything[..., a:b] for v, a, b in self._parts()})

    def _parts(self) -> Iterator[tuple[Any, int, int]]:
        return zip(self.variables, self.ends[:-1], self.ends[1:], strict=True)

    def tensors(self, point: Any) -> Decision:
        """Return the decision at a torch point ``[batch, size]``, with its graph."""
        import torch

        low, high = torch.from_numpy(self.low), torch.from_numpy(self.high)
        where = torch.from_numpy(self.logarithmic)
        safe = torch.where(where, high / torch.where(where, low, torch.ones_like(low)), torch.ones_like(low))
        values = torch.where(where, low * torch.exp(point * torch.log(safe)), low + (high - low) * point)
        fixed = torch.from_numpy(self._fixed).expand(*point.shape[:-1], -1)
        everything = fixed.clone().index_copy(-1, torch.from_numpy(self.free), values)
        return Decision({v.name: everything[..., a:b] for v, a, b in self._parts()})

    def symbols(self, point: Elementwise) -> Decision:
        """Return the decision at expressions of shape ``[size]``; variables that are fixed stay numbers."""
        growth = np.log(np.where(self.logarithmic, self.high / np.where(self.low > 0.0, self.low, 1.0), 1.0))
        xp = point.__array_namespace__()
        values = xp.where(
            self.logarithmic, self.low * xp.exp(point * growth), self.low + (self.high - self.low) * point
        )
        named: dict[str, Array] = {}
        for variable, a, b in self._parts():
            inside = (self.free >= a) & (self.free < b)
            if not inside.any():
                named[variable.name] = self._fixed[a:b]
                continue
            entries = np.array(self._fixed[a:b], dtype=object)
            entries[self.free[inside] - a] = values.values[inside]
            named[variable.name] = Elementwise(entries, point.kind)
        return Decision(named)

    def rows(self, evaluation: Any) -> list[tuple[str, Any, Any]]:
        """Return (name, slack, scale) of the constraints that are more than a variable's own bounds."""
        names = {v.name for v in self.variables}
        return [(k, s, evaluation.scale[k]) for k, s in evaluation.slack.items() if k not in names]


# Derivatives ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Values:
    """Objective and constraints at a point, with derivatives; everything finite."""

    objective: float
    gradient: FloatArray
    constraints: FloatArray
    jacobian: FloatArray


class Derivatives:
    """Objective and constraints of a problem over its cube, with derivatives by torch.

    Row 0 is the objective, the others the constraints asinh(slack / scale - MARGIN), at least 0 where kept: the
    logarithm of a large violation, the violation itself where it is small.
    """

    def __init__(self, cube: Cube, check: Callable[[], None] = lambda: None) -> None:
        self.cube, self.check = cube, check
        self.magnitude = 1.0
        self.evaluations = 0
        self._wrap = False
        self._last: tuple[FloatArray, _Values] | None = None

    def _evaluate(self, point: Any) -> Any:
        """Rows at torch points [batch, size], shape [batch, rows]."""
        import torch

        self.check()
        decision = self.cube.tensors(point)
        if not self._wrap:
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", DeprecationWarning)
                    evaluation = self.cube.problem.evaluate(decision)
            except (TypeError, AttributeError, RuntimeError):
                # functions of NumPy on tensors, perhaps
                self._wrap = True
        if self._wrap:
            try:
                wrapped = Decision({name: Differentiable(value) for name, value in decision.items()})
                evaluation = self.cube.problem.evaluate(wrapped)
            except InputError:
                raise
            except (TypeError, AttributeError, RuntimeError) as error:
                raise InputError(f"{self.cube.problem.name}: cannot be differentiated by torch ({error})") from error
        self.evaluations += 1
        batch = point.shape[0]

        def rows(value: Any) -> Any:
            value = torch.as_tensor(unwrapped(value), dtype=torch.float64)
            return value.reshape(1, -1).expand(batch, -1) if value.ndim == 0 else value.reshape(batch, -1)

        parts = [rows(evaluation.objective)]
        for _, slack, scale in self.cube.rows(evaluation):
            relative = unwrapped(slack) / torch.tensor(np.asarray(scale, dtype=np.float64))
            parts.append(torch.asinh(rows(relative) - MARGIN))
        return torch.cat(parts, dim=-1)

    def _rows(
        self, point: FloatArray, groups: Sequence[npt.NDArray[np.int64]], weights: FloatArray | None = None
    ) -> tuple[FloatArray, FloatArray]:
        """Values of all rows at a point, and for every group the gradient of its (weighted) sum, [groups, size]."""
        import torch

        gradients, values = [], None
        width = max(1, CHUNK // max(1, 4 * self.cube._fixed.size))
        for first in range(0, len(groups), width):
            some = groups[first : first + width]
            batch = torch.from_numpy(np.repeat(point[None, :], len(some), axis=0)).requires_grad_()
            out = self._evaluate(batch)
            chosen = torch.zeros(out.shape, dtype=torch.bool)
            for i, group in enumerate(some):
                chosen[i, torch.from_numpy(group)] = True
            if not out.requires_grad:
                raise InputError(f"{self.cube.problem.name}: cannot be differentiated by torch (its graph is lost)")
            each = out if weights is None else out * torch.from_numpy(weights)
            total = torch.where(chosen, each, torch.zeros_like(out)).sum()
            (gradient,) = torch.autograd.grad(total, batch, allow_unused=True)
            values = out[0].detach().numpy() if values is None else values
            gradients.append(np.zeros(batch.shape) if gradient is None else gradient.numpy())
        assert values is not None
        return values, np.concatenate(gradients)

    @cached_property
    def count(self) -> int:
        """Number of constraints."""
        import torch

        return int(self._evaluate(torch.full((1, self.cube.size), 0.5, dtype=torch.float64)).shape[-1]) - 1

    @cached_property
    def pattern(self) -> npt.NDArray[np.bool_]:
        """Which variables each row depends on, shape [rows, size], at four points tried and those of `confirm`."""
        rng = np.random.default_rng(0)
        points = rng.uniform(0.05, 0.95, (4, self.cube.size))
        # who takes part and who does not may depend on different variables
        points[:3, self.cube.whole] = np.array([[1.0], [0.0], [0.5]])
        return np.any([self._dependence(point) for point in points], axis=0)

    def _dependence(self, point: FloatArray) -> npt.NDArray[np.bool_]:
        return self._rows(point, [np.array([i]) for i in range(self.count + 1)])[1] != 0.0

    def confirm(self, point: FloatArray) -> bool:
        """Check the derivatives at a point along one combination of all rows; correct the pattern if they are wrong."""
        weights = np.random.default_rng(1).uniform(0.5, 1.5, self.count + 1)
        at = self.at(point)
        known = weights[0] * at.gradient * self.magnitude + weights[1:] @ at.jacobian
        whole = self._rows(point, [np.arange(self.count + 1)], weights)[1][0]
        whole = np.where(np.isfinite(whole), whole, known)
        if np.allclose(known, whole, rtol=1e-6, atol=1e-9 * float(np.max(abs(known), initial=0.0))):
            return True
        self.pattern = self.pattern | self._dependence(point)
        self.__dict__.pop("groups", None)
        self._last = None
        return False

    @cached_property
    def groups(self) -> list[npt.NDArray[np.int64]]:
        """Rows that share no variable, together; greedy, in the order of the rows."""
        used: list[npt.NDArray[np.bool_]] = []
        groups: list[list[int]] = []
        for i, row in enumerate(self.pattern):
            home = next((k for k, taken in enumerate(used) if not np.any(taken & row)), None)
            if home is None:
                used.append(row.copy())
                groups.append([i])
            else:
                used[home] |= row
                groups[home].append(i)
        return [np.array(group) for group in groups]

    def moving(self, free: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Constraints that depend on some of the coordinates; the margin would break constant ones that are tight."""
        return np.flatnonzero(self.pattern[1:][:, free].any(axis=1))

    def at(self, point: FloatArray) -> _Values:
        """Return everything at a point, remembering the last one."""
        if self._last is not None and np.array_equal(self._last[0], point):
            return self._last[1]
        values, sums = self._rows(point, self.groups)
        jacobian = np.zeros(self.pattern.shape)
        for group, gradient in zip(self.groups, sums, strict=True):
            jacobian[group] = np.where(self.pattern[group], gradient, 0.0)
        values = np.nan_to_num(values, nan=np.nan, posinf=NOT_A_NUMBER, neginf=-NOT_A_NUMBER)
        values = np.where(np.isnan(values), np.where(np.arange(values.size) == 0, 1.0, -1.0) * NOT_A_NUMBER, values)
        jacobian = np.where(np.isfinite(jacobian), jacobian, 0.0)
        answer = _Values(
            objective=float(values[0]) / self.magnitude,
            gradient=jacobian[0] / self.magnitude,
            constraints=values[1:],
            jacobian=jacobian[1:],
        )
        self._last = (point.copy(), answer)
        return answer

    def scale_by(self, point: FloatArray) -> None:
        """Divide the objective by its size at a point from now on."""
        self.magnitude, self._last = 1.0, None
        size = abs(self.at(point).objective)
        self.magnitude, self._last = (size if 0.0 < size < NOT_A_NUMBER else 1.0), None


# Engines --------------------------------------------------------------------------------------------------------


def _scipy(
    method: str, functions: Derivatives, start: FloatArray, free: npt.NDArray[np.int64], most: int
) -> FloatArray:
    """Run SLSQP or trust-constr over the free coordinates; the others stay as they are at the start."""

    def full(x: FloatArray) -> FloatArray:
        point = start.copy()
        point[free] = np.clip(x, 0.0, 1.0)
        return point

    bounds = scipy.optimize.Bounds(np.zeros(free.size), np.ones(free.size), keep_feasible=True)
    options: dict[str, Any]
    constraints: Any = ()
    rows = functions.moving(free)
    if method == "slsqp":
        options = {"maxiter": most, "ftol": 1e-10}
        if rows.size:
            constraints = {
                "type": "ineq",
                "fun": lambda x: functions.at(full(x)).constraints[rows],
                "jac": lambda x: functions.at(full(x)).jacobian[np.ix_(rows, free)],
            }
    else:
        options = {"maxiter": most, "gtol": 1e-9, "xtol": 1e-12, "initial_barrier_parameter": 0.01}
        if rows.size:
            constraints = scipy.optimize.NonlinearConstraint(
                lambda x: functions.at(full(x)).constraints[rows],
                0.0,
                np.inf,
                jac=lambda x: functions.at(full(x)).jacobian[np.ix_(rows, free)],
                hess=scipy.optimize.BFGS(),
            )
    minimize: Any = scipy.optimize.minimize
    answer = minimize(
        lambda x: functions.at(full(x)).objective,
        start[free],
        jac=lambda x: functions.at(full(x)).gradient[free],
        method=method,
        bounds=bounds,
        constraints=constraints,
        options=options,
    )
    return full(np.nan_to_num(np.asarray(answer.x, dtype=np.float64), nan=0.5))


class _Ipopt:
    """IPOPT by way of CasADi: on the traced functions where that can be done, else on those of torch."""

    def __init__(self, functions: Derivatives, monitor: Monitor, most: int) -> None:
        try:
            import casadi
        except ImportError:
            raise MissingExtraError("casadi", "ipopt", "the backend 'ipopt'") from None
        self.casadi: Any = casadi
        self.functions, self.monitor, self.most = functions, monitor, most
        self.why_not = ""
        try:
            self.traced: Any = self._trace()
        except InputError as error:
            self.traced, self.why_not = None, str(error)
        self._stopped: BaseException | None = None
        self._solver: Any = None

    def _trace(self) -> Any:
        """Return the rows as a CasADi function of the cube, unscaled objective first."""
        cube = self.functions.cube
        point = symbols("x", (cube.size,))
        evaluation = cube.problem.evaluate(cube.symbols(point))
        xp = point.__array_namespace__()
        rows: list[Any] = [*np.ravel(xp._raw(evaluation.objective))]
        for _, slack, scale in cube.rows(evaluation):
            relative = xp.asarray(slack) / np.asarray(scale) - MARGIN
            rows.extend(self.casadi.asinh(v) for v in np.ravel(relative.values))
        return self.casadi.Function("rows", [self.casadi.vertcat(*point.values)], [self.casadi.vertcat(*rows)])

    def _callback(self) -> Any:
        """The rows of torch as a CasADi function with a Jacobian."""
        ca, functions, outer = self.casadi, self.functions, self
        base: Any = ca.Callback
        size, count = functions.cube.size, functions.count + 1
        pattern = functions.pattern

        def guarded(compute: Callable[[FloatArray], Any]) -> Callable[[FloatArray], Any]:
            def run(point: FloatArray) -> Any:
                # what is raised inside a callback reaches nobody
                try:
                    return compute(point)
                except (StopSearch, KeyboardInterrupt, InputError) as error:
                    outer._stopped = error
                    raise RuntimeError("stopped") from error

            return run

        @guarded
        def rows(point: FloatArray) -> FloatArray:
            at = functions.at(np.clip(point, 0.0, 1.0))
            return np.concatenate([[at.objective * functions.magnitude], at.constraints])

        @guarded
        def slopes(point: FloatArray) -> FloatArray:
            at = functions.at(np.clip(point, 0.0, 1.0))
            return np.concatenate([at.gradient[None] * functions.magnitude, at.jacobian])

        class Slopes(base):
            def __init__(self) -> None:
                base.__init__(self)
                self.construct("slopes", {})

            def get_n_in(self) -> int:
                return 2

            def get_n_out(self) -> int:
                return 1

            def get_sparsity_in(self, i: int) -> Any:
                return ca.Sparsity.dense(size, 1) if i == 0 else ca.Sparsity(count, 1)

            def get_sparsity_out(self, i: int) -> Any:
                return _sparsity(ca, pattern)

            def eval(self, arguments: Any) -> Any:
                values = slopes(np.asarray(arguments[0]).reshape(-1))
                out = ca.DM(_sparsity(ca, pattern))
                out.nz[:] = values.T[pattern.T]
                return [out]

        class Rows(base):
            def __init__(self) -> None:
                base.__init__(self)
                self.slopes = Slopes()
                self.construct("rows", {})

            def get_n_in(self) -> int:
                return 1

            def get_n_out(self) -> int:
                return 1

            def get_sparsity_in(self, i: int) -> Any:
                return ca.Sparsity.dense(size, 1)

            def get_sparsity_out(self, i: int) -> Any:
                return ca.Sparsity.dense(count, 1)

            def eval(self, arguments: Any) -> Any:
                return [ca.DM(rows(np.asarray(arguments[0]).reshape(-1)))]

            def has_jacobian(self) -> bool:
                return True

            def get_jacobian(self, name: str, inputs: Any, outputs: Any, options: Any) -> Any:
                return self.slopes

        return Rows()

    def solver(self) -> Any:
        """Return the solver, compiled once; the objective's size is its parameter."""
        if self._solver is None:
            ca, size = self.casadi, self.functions.cube.size
            self._rows = self.traced if self.traced is not None else self._callback()
            make = ca.SX if self.traced is not None else ca.MX
            x, magnitude = make.sym("x", size), make.sym("magnitude")
            out = self._rows(x)
            program = {"x": x, "p": magnitude, "f": out[0] / magnitude, "g": out[1:]}
            options: dict[str, Any] = {
                "ipopt.print_level": 0,
                "print_time": False,
                "ipopt.sb": "yes",
                "ipopt.max_iter": self.most,
                "ipopt.tol": 1e-9,
                "ipopt.acceptable_tol": 1e-7,
                "ipopt.constr_viol_tol": MARGIN,
                "ipopt.bound_relax_factor": 0.0,
                "ipopt.honor_original_bounds": "yes",
                "ipopt.mu_strategy": "adaptive",
                "ipopt.fixed_variable_treatment": "make_parameter",
                "show_eval_warnings": False,
                "error_on_fail": False,
            }
            if self.traced is None:
                options["ipopt.hessian_approximation"] = "limited-memory"
            if self.monitor.time_limit is not None:
                left = self.monitor.time_limit - self.monitor.seconds
                options["ipopt.max_wall_time"] = max(left, 1e-3)
            self._solver = ca.nlpsol("search", "ipopt", program, options)
        return self._solver

    def forget(self) -> None:
        """Compile anew, for a pattern that has changed."""
        if self.traced is None:
            self._solver = None

    def solve(self, start: FloatArray, free: npt.NDArray[np.int64]) -> FloatArray:
        """Search from a start over the free coordinates."""
        self.monitor.check()
        low, high = start.copy(), start.copy()
        low[free], high[free] = 0.0, 1.0
        least = np.full(self.functions.count, -np.inf)
        least[self.functions.moving(free)] = 0.0
        self._stopped = None
        try:
            answer = self.solver()(x0=start, lbx=low, ubx=high, lbg=least, ubg=np.inf, p=self.functions.magnitude)
        except RuntimeError:
            if self._stopped is not None:
                raise self._stopped from None
            return start
        if self._stopped is not None:
            raise self._stopped
        point = np.asarray(answer["x"]).reshape(-1)
        return np.where(np.isfinite(point), np.clip(point, low, high), start)


def _sparsity(ca: Any, pattern: npt.NDArray[np.bool_]) -> Any:
    """A CasADi pattern; entries are in the order of columns."""
    columns, rows = np.nonzero(pattern.T)
    return ca.Sparsity.triplet(*pattern.shape, rows.tolist(), columns.tolist())


# Search ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Found:
    """A rounded point with what it is worth; inf where it is not feasible."""

    point: FloatArray
    value: float


class _Search:
    """Local searches of one problem, from many starts."""

    def __init__(self, cube: Cube, monitor: Monitor, backend: str, most: int) -> None:
        self.cube, self.monitor, self.backend, self.most = cube, monitor, backend, most
        self.functions = Derivatives(cube, monitor.check)
        self.ipopt = _Ipopt(self.functions, monitor, most) if backend == "ipopt" and cube.size else None
        self.relaxed: list[tuple[FloatArray, _Found]] = []

    def local(self, start: FloatArray, whole_fixed: bool) -> FloatArray:
        """Run the engine from a start, over the real coordinates only where whole numbers are to stay."""
        free = np.flatnonzero(~self.cube.whole) if whole_fixed else np.arange(self.cube.size)
        if free.size == 0:
            return start
        self.functions.scale_by(start)
        if not self.functions.confirm(start) and self.ipopt is not None:
            self.ipopt.forget()
        if self.ipopt is not None:
            return self.ipopt.solve(start, free)
        return _scipy(self.backend, self.functions, start, free, self.most)

    def repaired(self, point: FloatArray) -> FloatArray:
        """Move a point into its constraints by least steps of its real coordinates, where it is outside by a little."""
        free = np.flatnonzero(~self.cube.whole)
        rows = self.functions.moving(free)
        for attempt in range(12):
            at = self.functions.at(point)
            wanted = MARGIN * min(2.0**attempt, 64.0)
            short = rows[at.constraints[rows] < 0.0]
            if short.size == 0:
                break
            inside = free[(point[free] > 0.0) & (point[free] < 1.0)] if attempt < 6 else free
            step = np.linalg.lstsq(at.jacobian[np.ix_(short, inside)], wanted - at.constraints[short], rcond=1e-12)[0]
            point = point.copy()
            point[inside] = np.clip(point[inside] + step, 0.0, 1.0)
        return point

    def offered(self, point: FloatArray) -> _Found:
        """Repair a rounded point, offer its decision, and return what it is worth."""
        return self._judged(self.repaired(point) if self.functions.count else point)

    def _judged(self, point: FloatArray) -> _Found:
        decision = self.cube.decision(point)
        with np.errstate(all="ignore"):
            evaluation = self.cube.problem.evaluate(decision)
        value = float(evaluation.objective)
        # nothing compares with nan: it would stay the best
        if not np.isnan(value):
            self.monitor.offer(decision)
        kept = bool(evaluation.feasible())
        return _Found(point, value if kept and np.isfinite(value) else np.inf)

    def from_start(self, start: FloatArray) -> _Found:
        """Search from a start, with whole numbers relaxed first and, in case that leads nowhere, as they are there."""
        relaxed = self.local(start, whole_fixed=False)
        if not self.cube.whole.any():
            return self.offered(relaxed)
        for other, result in self.relaxed:
            if np.max(abs(other - relaxed)) < SAME:
                return result
        found = self._rounded(start, relaxed)
        self.relaxed.append((relaxed, found))
        return found

    def _rounded(self, start: FloatArray, relaxed: FloatArray) -> _Found:
        """Round what is whole to the nearest numbers; down, up, or as at the start, where that is not feasible."""
        best = _Found(start, np.inf)
        tried: list[FloatArray] = []
        for source, how in ((relaxed, np.rint), (relaxed, np.floor), (relaxed, np.ceil), (start, np.rint)):
            if np.isfinite(best.value):
                break
            point = self.cube.rounded(source, how)
            whole = point[self.cube.whole]
            if any(np.array_equal(whole, other) for other in tried):
                continue
            tried.append(whole)
            found = self.offered(self.local(point, whole_fixed=True))
            if best.value == np.inf or found.value < best.value:
                best = found
            if source is relaxed and how is np.rint and not np.isfinite(found.value):
                # whoever is outside takes the other whole number
                point = self._other_side(relaxed, found.point)
                found = self.offered(self.local(point, whole_fixed=True))
                best = found if found.value < best.value else best
        return best

    def _other_side(self, relaxed: FloatArray, rounded: FloatArray) -> FloatArray:
        """Return the rounded point with the other neighbour in the whole coordinates of broken constraints."""
        at = self.functions.at(rounded)
        involved = self.functions.pattern[1:][at.constraints < 0.0].any(axis=0) & self.cube.whole
        exact, taken = self.cube.values(relaxed), np.rint(self.cube.values(rounded))
        other = np.clip(np.where(exact > taken, taken + 1.0, taken - 1.0), self.cube.low, self.cube.high)
        return np.where(involved, self.cube.point(other), rounded)

    def improved(self, best: _Found) -> tuple[_Found, int]:
        """Move one whole number at a time to a neighbour while that helps; returns the best and the moves made."""
        moves = 0
        for _ in range(4):
            before = moves
            for i in np.flatnonzero(self.cube.whole):
                for step in (-1.0, 1.0):
                    values = self.cube.values(best.point)
                    moved = np.rint(values[i]) + step
                    if not self.cube.low[i] <= moved <= self.cube.high[i]:
                        continue
                    values[i] = moved
                    found = self.offered(self.local(self.cube.point(values), whole_fixed=True))
                    if found.value < best.value - 1e-9 * abs(best.value):
                        best, moves = found, moves + 1
            if moves == before:
                break
        return best, moves

    def run(self, starts: int, seed: int | None) -> str:
        """Search from all starts and say how it went."""
        cube = self.cube
        middle = np.full(cube.size, 0.5)
        if cube.size == 0:
            self.monitor.offer(cube.decision(middle))
            return "nlp: every variable is fixed"
        # before anything that takes time, so that there is something to return when it is over
        self._judged(cube.rounded(middle))
        values = []
        best = _Found(middle, np.inf)
        combinations = self._combinations()
        each: list[FloatArray | None] = [*combinations] or [None]
        for start in self._starts(-(-starts // len(each)), seed):
            best_here = np.inf
            for whole in each:
                try:
                    found = self.from_start(start) if whole is None else self.at_whole(start, whole)
                except np.linalg.LinAlgError:
                    continue
                best_here = min(best_here, found.value)
                if found.value < best.value:
                    best = found
            values.append(best_here)
        moves = 0
        if not combinations and cube.whole.any() and np.isfinite(best.value):
            best, moves = self.improved(best)
        return self._message(np.array(values), moves, len(combinations))

    def at_whole(self, start: FloatArray, whole: FloatArray) -> _Found:
        """Search from a start with the whole numbers given."""
        values = self.cube.values(start)
        values[self.cube.whole] = whole
        return self.offered(self.local(self.cube.point(values), whole_fixed=True))

    def _combinations(self) -> list[FloatArray]:
        """All combinations of whole numbers where they are few, else none."""
        low, high = self.cube.low[self.cube.whole], self.cube.high[self.cube.whole]
        if low.size == 0 or float(np.prod(high - low + 1.0)) > ENUMERATED:
            return []
        ranges = [np.arange(a, b + 1.0) for a, b in zip(low, high, strict=True)]
        return [np.array(c) for c in itertools.product(*ranges)]

    def _starts(self, count: int, seed: int | None) -> Iterator[FloatArray]:
        yield np.full(self.cube.size, 0.5)
        if count > 1:
            sampler = scipy.stats.qmc.Sobol(self.cube.size, scramble=True, rng=np.random.default_rng(seed))
            exponent = int(np.ceil(np.log2(count)))
            # away from the faces, where times may be infinite
            yield from 0.02 + 0.96 * sampler.random_base2(exponent)[: count - 1]

    def _message(self, values: FloatArray, moves: int, combinations: int) -> str:
        feasible = np.isfinite(values)
        often = int(np.sum(values[feasible] <= values[feasible].min() * (1.0 + 1e-6))) if feasible.any() else 0
        text = f"nlp ({self.backend}): {int(feasible.sum())} of {values.size} starts led to a feasible decision"
        if often:
            text += f", {often} of them to the best"
        if combinations:
            text += f"; each with all {combinations} combinations of whole numbers"
        if moves:
            text += f"; {moves} whole number{'s' if moves > 1 else ''} moved afterwards"
        if self.ipopt is not None and self.ipopt.why_not:
            text += f"; derivatives by torch, since not all could be traced ({self.ipopt.why_not})"
        return text + "; a local search proves nothing"

"""What one more joule, second, hertz or watt is worth: derivatives of the optimum at its integer part.

At an optimum with real part x, the Lagrangian is L = f - sum_i lambda_i s_i - sum_j mu_j (distance to bound j), with
f the objective, s >= 0 the slacks, and multipliers at least 0. Where the multipliers are unique, the value V changes
with any parameter theta of the system as L does at fixed x and multipliers (envelope theorem):

    dV/dtheta = df/dtheta - sum_i lambda_i ds_i/dtheta - sum_j mu_j d(distance to bound j)/dtheta.

A solver's gap leaves the decision right to the root of the gap only, and multipliers are no better. So the decision is
first moved to where the Karush-Kuhn-Tucker conditions hold to rounding, by Newton's method on an active set at fixed
integers. Everything is found through `Problem.evaluate` alone: first derivatives by torch, second ones as differences
of these, those in the parameters as differences (fourth order) of problems rebuilt with a changed system. That devices
share nothing but a few sums is found by probing and used; where it does not hold, derivatives are taken one by one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import scipy.optimize
import scipy.sparse
import scipy.sparse.linalg

from jointopt.decision import Decision
from jointopt.errors import InputError, nearest
from jointopt.problem import Problem, Variable
from jointopt.system import FloatArray, Scenario
from jointopt.system.base import Quantity
from jointopt.units import format_si

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Local", "Sensitivity", "Values", "owner", "real_fields", "sensitivity"]

Mask = npt.NDArray[np.bool_]

CONVERGED = 1e-9
"""Relative residual of the optimality conditions below which Newton's method stops once it no longer improves."""

RELIABLE = 1e-7
"""Relative residual above which the derivatives of a device are not called reliable."""

_SWEEPS, _STEPS = 40, 12
_STEP = 1e-3
_SHOWN = 12


@dataclass(frozen=True)
class Sensitivity:
    """How much the optimum improves per unit of every parameter, at fixed integers.

    Attributes
    ----------
    value : float
        The objective at the polished decision.
    improvement : dict of arrays, shape [devices] or []
        Decrease of the least objective per SI unit more of a parameter; at least 0 for budgets.
    amount : dict of arrays, shape [devices] or []
        The parameters as they are, SI.
    units : dict of str
        SI unit of each parameter.
    reliable : dict of bool arrays, shape [devices] or []
        False where multipliers are not unique or hardly above 0 while the constraint is tight (the optimum may have
        a kink there, with another derivative on either side), or the optimality conditions were not met.
    multipliers : dict of arrays, shape [devices] or []
        Decrease of the least objective per SI unit by which a constraint's slack is widened.
    decision : Decision
        The decision moved to where the optimality conditions hold.
    residual : float
        Largest residual of the optimality conditions, over the device's gradient of the objective.
    """

    value: float
    improvement: Mapping[str, FloatArray]
    amount: Mapping[str, FloatArray]
    units: Mapping[str, str]
    reliable: Mapping[str, Mask]
    multipliers: Mapping[str, FloatArray]
    decision: Decision
    residual: float

    def __getitem__(self, parameter: str) -> FloatArray:
        """Improvement per unit of one parameter."""
        if parameter not in self.improvement:
            raise InputError(f"sensitivity: unknown parameter '{parameter}'{nearest(parameter, self.improvement)}")
        return self.improvement[parameter]

    def to_pandas(self) -> pd.DataFrame:
        """Return one row per parameter and device (-1: shared), with what one percent more is worth."""
        import pandas as pd

        frames = []
        for name, improvement in self.improvement.items():
            each = np.atleast_1d(improvement)
            frames.append(
                pd.DataFrame(
                    {
                        "parameter": name,
                        "device": np.arange(each.size) if np.ndim(improvement) else [-1],
                        "amount": np.atleast_1d(self.amount[name]),
                        "unit": self.units[name],
                        "improvement_per_unit": each,
                        "improvement_per_percent": each * np.atleast_1d(self.amount[name]) / 100.0,
                        "reliable": np.atleast_1d(self.reliable[name]),
                    }
                )
            )
        columns = ["parameter", "device", "amount", "unit", "improvement_per_unit", "improvement_per_percent"]
        return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=[*columns, "reliable"])

    def summary(self, shown: int = _SHOWN) -> str:
        """Return the entries that matter most in words, by what one percent more changes."""
        rows = [
            (abs(per_unit * now / 100.0), name, u if np.ndim(improvement) else None, per_unit, now, sure)
            for name, improvement in self.improvement.items()
            for u, (per_unit, now, sure) in enumerate(
                zip(
                    np.atleast_1d(improvement).tolist(),
                    np.atleast_1d(self.amount[name]).tolist(),
                    np.atleast_1d(self.reliable[name]).tolist(),
                    strict=True,
                )
            )
            if per_unit != 0.0
        ]
        rows.sort(key=lambda row: -row[0])
        lines = [f"objective {self.value:.6g}; rates at this optimum, integers as they are"]
        for percent, name, device, per_unit, now, sure in rows[:shown]:
            unit = self.units[name]
            whose = "" if device is None else f" for device {device}"
            verb = "lowers" if per_unit > 0.0 else "raises"
            lines.append(
                f"  {f'1 {unit}' if unit else '1'} more {name}{whose} {verb} the objective by {abs(per_unit):.4g} "
                f"(1 % of {format_si(now, unit) if unit else f'{now:.3g}'}: {percent:.3g})"
                + ("" if sure else "  [kink]")
            )
        if len(rows) > shown:
            lines.append(f"  ... and {len(rows) - shown} more entries that are not 0")
        if len(rows) == 0:
            lines.append("  nothing that was asked about is worth anything: no budget binds")
        lines.append(f"residual of the optimality conditions {self.residual:.1e}")
        if not all(np.all(mask) for mask in self.reliable.values()):
            lines.append("[kink]: multipliers are not unique or not settled; more and less may differ in worth")
        return "\n".join(lines)

    __str__ = summary


def sensitivity(problem: Problem, decision: Decision, parameters: Iterable[str] | None = None) -> Sensitivity:
    """Return how much the least objective falls per unit more of parameters of the system.

    Parameters
    ----------
    problem : Problem
        What was solved.
    decision : Decision
        Its optimum, or a point near it: integers are kept, the real part is moved to the optimum it is near.
    parameters : iterable of str, optional
        Fields of the system, one number or one per device (``"energy_budget"``, ``"total_bandwidth"``); when not
        given, all with a unit, and `gain`, that the problem depends on.

    Raises
    ------
    InputError
        For an unknown parameter, one that counts things, or one that cannot be changed in this problem.
    """
    problem.check(decision)
    fields = real_fields(problem.system)
    asked = None if parameters is None else [parameters] if isinstance(parameters, str) else list(parameters)
    for name in asked or ():
        if name not in fields:
            raise InputError(f"sensitivity: '{name}' is no real parameter of the system{nearest(name, fields)}")
    local = Local(problem, decision)
    point = _Polish(local).run()
    changes = _Changes(local, point)
    names = (
        asked if asked is not None else [n for n, q in fields.items() if n != "distance" and (q.unit or n == "gain")]
    )
    improvement, amount, units, reliable = {}, {}, {}, {}
    for name in names:
        try:
            found = changes.derivative(name)
        except InputError as error:
            if asked is not None:
                raise InputError(f"sensitivity: '{name}' cannot be changed here ({error})") from None
            continue
        if found is None and asked is None:
            continue
        amount[name] = np.array(getattr(owner(problem.system, name), name), dtype=np.float64)
        units[name] = fields[name].unit
        if found is None:
            found = np.zeros(amount[name].shape), np.ones(amount[name].shape, dtype=np.bool_)
        # no minus in front of 0
        improvement[name], reliable[name] = found[0] + 0.0, found[1]
    return Sensitivity(
        value=float(problem.evaluate(local.decision(point.x)).objective),
        improvement=improvement,
        amount=amount,
        units=units,
        reliable=reliable,
        multipliers=local.by_name(point.multipliers),
        decision=local.decision(point.x),
        residual=float(np.max(point.residual, initial=0.0)),
    )


def real_fields(system: Any) -> dict[str, Quantity]:
    """Real quantities of a system that are one number or one per device; none where it has no sections."""
    found: dict[str, Quantity] = {}
    if not isinstance(system, Scenario):
        return found
    for section in system.sections():
        if getattr(system, section) is None:
            continue
        for name, info in type(getattr(system, section)).model_fields.items():
            quantity = next((m for m in info.metadata if isinstance(m, Quantity)), None)
            value = getattr(getattr(system, section), name)
            if (
                quantity is not None
                and value is not None
                and not quantity.integer
                and quantity.axis in (None, "device")
                and quantity.inner is None
            ):
                found[name] = quantity
    return found


def owner(system: Scenario, name: str) -> Any:
    """Section of a system that holds a field."""
    return next(
        getattr(system, section)
        for section, kind in system.sections().items()
        if getattr(system, section) is not None and name in kind.model_fields
    )


# ---------------------------------------------------------------------------------------- the problem near a point


@dataclass(frozen=True)
class Values:
    """Objective, constraints [rows] (those that are no bounds of a variable) and bounds [coordinates] of the reals."""

    objective: float
    slack: FloatArray
    lower: FloatArray
    upper: FloatArray

    def minus(self, other: Values) -> Values:
        """Difference, exactly 0 where nothing changed."""
        return Values(
            self.objective - other.objective,
            self.slack - other.slack,
            self.lower - other.lower,
            self.upper - other.upper,
        )

    @staticmethod
    def combine(weights: Iterable[float], values: Iterable[Values]) -> Values:
        """Weighted sum."""
        pairs = list(zip(weights, values, strict=True))
        parts = ("objective", "slack", "lower", "upper")
        return Values(*(sum(w * getattr(v, part) for w, v in pairs) for part in parts))


def _moving(variables: tuple[Variable, ...]) -> list[Variable]:
    """Variables that have derivatives."""
    return [v for v in variables if v.kind == "real" and not v.stepwise]


class Local:
    """A problem around a decision: its real coordinates in one vector, its constraints in another."""

    def __init__(self, problem: Problem, decision: Decision) -> None:
        self.problem = problem
        self.devices = len(problem.system)
        variables = problem.variables
        self.real = _moving(variables)
        names = {v.name for v in self.real}
        self.fixed = {v.name: np.array(decision[v.name]) for v in variables if v.name not in names}
        if not self.real:
            raise InputError(f"{problem.name}: sensitivity needs variables that are real")
        self.start = np.concatenate([np.broadcast_to(decision[v.name], v.lower.shape) for v in self.real])
        edges = np.cumsum([0, *(v.lower.size for v in self.real)])
        self.place = {v.name: slice(a, b) for v, a, b in zip(self.real, edges[:-1], edges[1:], strict=True)}
        self.unit = np.concatenate(
            [
                np.arange(self.devices)
                if v.axis == "device" and v.lower.size == self.devices
                else np.full(v.lower.size, 0 if self.devices == 1 else -1)
                for v in self.real
            ]
        )
        self.lower, self.upper = self.bounds(problem)
        # a ratio is of size 1; what has a unit is judged against itself
        self.size = np.concatenate(
            [
                np.maximum(np.abs(self.start[self.place[v.name]]), 1e-3 * np.abs(v.upper) + 1e-300)
                if v.unit
                else np.ones(v.lower.size)
                for v in self.real
            ]
        )
        named = {v.name for v in variables}
        evaluation = problem.evaluate(decision)
        self.constraints = {name: np.shape(s) for name, s in evaluation.slack.items() if name not in named}
        self.rows = {}
        row_unit, scale, at = [np.empty(0, dtype=np.int64)], [np.empty(0)], 0
        for name, shape in self.constraints.items():
            count = int(np.prod(shape))
            self.rows[name] = slice(at, at + count)
            at += count
            per_device = shape == (self.devices,)
            row_unit.append(np.arange(count) if per_device else np.full(count, 0 if self.devices == 1 else -1))
            scale.append(np.broadcast_to(np.abs(np.asarray(evaluation.scale[name])), shape).reshape(-1))
        self.row_unit, self.scale = np.concatenate(row_unit), np.concatenate(scale)
        # coordinates whose derivative is no number (0 W sends nothing) stay where they are
        self.moving = self.upper > self.lower
        self.separable = False
        gradient, jacobian = self.derivatives(self.start)
        self.moving &= np.isfinite(gradient) & np.isfinite(np.asarray(jacobian.sum(axis=0)).reshape(-1))
        self.separable = self._separable()

    def bounds(self, problem: Problem) -> tuple[FloatArray, FloatArray]:
        """Bounds of the real coordinates."""
        real = _moving(problem.variables)
        return np.concatenate([v.lower for v in real]), np.concatenate([v.upper for v in real])

    def decision(self, x: Any) -> Decision:
        """Return the decision at real coordinates; a tensor keeps its graph."""
        values: dict[str, Any] = {name: x[where] for name, where in self.place.items()}
        if not isinstance(x, np.ndarray):
            import torch

            values |= {name: torch.from_numpy(value.copy()) for name, value in self.fixed.items()}
        else:
            values |= self.fixed
        return Decision({v.name: values[v.name] for v in self.problem.variables})

    def values(self, x: FloatArray, problem: Problem | None = None) -> Values:
        """Objective, constraints and bounds at real coordinates, of this or a changed problem."""
        problem = self.problem if problem is None else problem
        with np.errstate(all="ignore"):
            evaluation = problem.evaluate(self.decision(x))
        slack = [np.reshape(evaluation.slack[name], -1) for name in self.constraints]
        return Values(float(evaluation.objective), np.concatenate([np.empty(0), *slack]), *self.bounds(problem))

    def by_name(self, rows: FloatArray) -> dict[str, FloatArray]:
        """Split a vector over constraints by their names."""
        return {name: rows[where].reshape(self.constraints[name]) for name, where in self.rows.items()}

    def _torch(self, x: FloatArray) -> tuple[Any, Any, Any]:
        import torch

        tensor = torch.tensor(x, dtype=torch.float64, requires_grad=True)
        evaluation = self.problem.evaluate(self.decision(tensor))
        return tensor, evaluation.objective, [evaluation.slack[name] for name in self.constraints]

    def derivatives(self, x: FloatArray) -> tuple[FloatArray, Any]:
        """Gradient of the objective and sparse Jacobian of the constraints [rows, coordinates]."""
        tensor, objective, slacks = self._torch(x)
        gradient = self._pull(objective, tensor)
        everyone, blocks = np.arange(x.size), []
        for slack in slacks:
            count = slack.numel()
            if count > 1 and self.separable:
                pulled = self._pull(slack.sum(), tensor)
                blocks.append(scipy.sparse.csr_matrix((pulled, (self.unit, everyone)), shape=(count, x.size)))
            else:
                flat = slack.reshape(-1)
                blocks.append(scipy.sparse.csr_matrix(np.stack([self._pull(flat[i], tensor) for i in range(count)])))
        if not blocks:
            return gradient, scipy.sparse.csr_matrix((0, x.size))
        return gradient, scipy.sparse.vstack(blocks, format="csr")

    @staticmethod
    def _pull(value: Any, tensor: Any) -> FloatArray:
        import torch

        if not value.requires_grad:
            return np.zeros(tensor.shape)
        (pulled,) = torch.autograd.grad(value, tensor, retain_graph=True, allow_unused=True)
        return np.zeros(tensor.shape) if pulled is None else np.asarray(pulled.numpy(), dtype=np.float64)

    def lagrangian(self, x: FloatArray, multipliers: FloatArray) -> FloatArray:
        """Gradient of objective - multipliers . constraints."""
        import torch

        tensor, objective, slacks = self._torch(x)
        total = objective
        for slack, where in zip(slacks, self.rows.values(), strict=True):
            total = total - torch.sum(torch.from_numpy(multipliers[where].copy()) * slack.reshape(-1))
        return self._pull(total, tensor)

    def _separable(self) -> bool:
        """Whether every device's constraints depend on its own coordinates alone, by moving half of the devices."""
        if self.devices == 1 or np.any(self.unit < 0):
            return False
        rng = np.random.default_rng(0)
        base = self.values(self.start).slack
        for _ in range(2):
            half = rng.permutation(self.devices) < self.devices // 2
            moved = np.where(half[self.unit] & self.moving, 1e-3 * rng.uniform(0.2, 1.0, self.unit.size), 0.0)
            toward = np.where(self.start < 0.5 * (self.lower + self.upper), 1.0, -1.0)
            after = self.values(self.start + moved * toward * self.size).slack
            still = (self.row_unit >= 0) & ~half[self.row_unit]
            if np.any(after[still] != base[still]):
                return False
        return True

    def hessian(self, x: FloatArray, multipliers: FloatArray, free: Mask, separable: bool) -> Any:
        """Second derivatives of the Lagrangian in scaled free coordinates, as differences of its gradient."""
        index = np.flatnonzero(free)
        groups = [np.array([j]) for j in index]
        if separable:
            groups = [np.arange(w.start, w.stop)[free[w]] for w in self.place.values() if np.any(free[w])]
        rows, columns, entries = [], [], []
        for group in groups:
            step = np.zeros(x.size)
            step[group] = 1e-4 * self.size[group]
            change = (self.lagrangian(x + step, multipliers) - self.lagrangian(x - step, multipliers)) / 2e-4
            change = np.nan_to_num(change * self.size)
            if separable:
                column = np.full(self.devices, -1)
                column[self.unit[group]] = group
                here = free & (column[self.unit] >= 0)
                rows.append(np.flatnonzero(here))
                columns.append(column[self.unit[here]])
                entries.append(change[here])
            else:
                rows.append(index)
                columns.append(np.full(index.size, group[0]))
                entries.append(change[index])
        if not groups:
            return scipy.sparse.csr_matrix((x.size, x.size))
        matrix = scipy.sparse.csr_matrix(
            (np.concatenate(entries), (np.concatenate(rows), np.concatenate(columns))), shape=(x.size, x.size)
        )
        return 0.5 * (matrix + matrix.T)


# ---------------------------------------------------------------------------------------- the point itself


@dataclass(frozen=True)
class _Point:
    """A point at which the optimality conditions hold, and how well.

    `reduced` is the gradient of the Lagrangian [coordinates], the multiplier of a bound where there is one; `ties`
    are directions in which the multipliers [rows] and `reduced` may move together without breaking the conditions.
    """

    x: FloatArray
    multipliers: FloatArray
    reduced: FloatArray
    residual: FloatArray
    ties: list[tuple[FloatArray, FloatArray]]


class _Polish:
    """Newton's method on the optimality conditions with an active set, in scaled variables."""

    def __init__(self, local: Local) -> None:
        self.local = local
        self.x = local.start.copy()
        self.multipliers = np.zeros(local.scale.size)
        self.refresh()
        self.weight = float(np.max(np.abs(self.gradient), initial=0.0)) or 1.0
        each = np.zeros(local.devices + 1)
        np.maximum.at(each, local.unit, np.abs(self.gradient))
        each[-1] = self.weight
        # how strongly each device moves the objective; one that hardly does is judged by the rest
        self.strength = np.maximum(each, 1e-9 * self.weight)
        self.additive = local.separable and self._additive()

    def refresh(self) -> None:
        """Take first derivatives, in scaled variables, and slacks over their budgets."""
        local = self.local
        gradient, jacobian = local.derivatives(self.x)
        self.gradient = np.where(local.moving, np.nan_to_num(gradient * local.size), 0.0)
        keep = scipy.sparse.diags(np.where(local.moving, local.size, 0.0))
        jacobian.data = np.nan_to_num(jacobian.data)
        self.jacobian = scipy.sparse.diags(1.0 / local.scale) @ jacobian @ keep
        self.slack = local.values(self.x).slack / local.scale

    def _additive(self) -> bool:
        """Whether the objective is a sum over devices: its gradient for some does not feel the others."""
        local = self.local
        half = np.random.default_rng(1).permutation(local.devices) < local.devices // 2
        toward = np.where(self.x < 0.5 * (local.lower + local.upper), 1e-3, -1e-3)
        moved = np.where(half[local.unit] & local.moving, toward * local.size, 0.0)
        nothing = np.zeros(local.scale.size)
        before, after = (local.lagrangian(x, nothing) * local.size for x in (self.x, self.x + moved))
        change = np.abs(np.nan_to_num(after - before))
        return bool(np.all(change[~half[local.unit]] <= 1e-10 * self.weight))

    # -- which constraints hold

    def _identify(self) -> None:
        """Constraints and bounds whose multiplier outweighs their slack, both relative."""
        local = self.local
        low, high = self._room()
        near = np.flatnonzero(self.slack <= 0.05)
        at_low, at_high = (np.flatnonzero(local.moving & (room <= 1e-3)) for room in (low, high))
        strength = self.strength[local.unit]
        unit_columns = scipy.sparse.identity(self.x.size, format="csc")
        columns = scipy.sparse.hstack(
            [self.jacobian[near].T, unit_columns[:, at_low], -unit_columns[:, at_high]], format="csr"
        )
        size = np.concatenate([self.strength[local.row_unit[near]], strength[at_low], strength[at_high]])
        room = np.concatenate([np.abs(self.slack[near]), low[at_low], high[at_high]])
        self.active = np.zeros(local.scale.size, dtype=np.bool_)
        self.held = ~local.moving
        if size.size == 0:
            return
        # multipliers in units of their device's strength; a slack stands against its multiplier
        matrix = scipy.sparse.vstack(
            [scipy.sparse.diags(1.0 / strength) @ columns @ scipy.sparse.diags(size), scipy.sparse.diags(room)]
        )
        target = np.concatenate([self.gradient / strength, np.zeros(size.size)])
        if size.size <= 300:
            found = scipy.optimize.nnls(matrix.toarray(), target)[0]
        else:
            found = scipy.optimize.lsq_linear(matrix.tocsr(), target, bounds=(0.0, np.inf), tol=1e-12).x
        strong = found > np.maximum(room, 1e-9)
        self.active[near[strong[: near.size]]] = True
        low_strong, high_strong = np.split(strong[near.size :], [at_low.size])
        self.x[at_low[low_strong]] = local.lower[at_low[low_strong]]
        self.x[at_high[high_strong]] = local.upper[at_high[high_strong]]
        self.held[at_low[low_strong]] = self.held[at_high[high_strong]] = True

    def _room(self) -> tuple[FloatArray, FloatArray]:
        local = self.local
        return (self.x - local.lower) / local.size, (local.upper - self.x) / local.size

    # -- Newton

    def _reduced(self) -> FloatArray:
        return self.gradient - np.asarray(self.jacobian.T @ (self.multipliers * self.weight))

    def _residual(self) -> FloatArray:
        """Per device (and, last, shared): gradient of the Lagrangian where free, slack where active."""
        local = self.local
        out = np.zeros(local.devices + 1)
        wrong = np.where(self.held, 0.0, np.abs(self._reduced())) / self.strength[local.unit]
        np.maximum.at(out, local.unit, wrong)
        np.maximum.at(out, local.row_unit, np.where(self.active, np.abs(self.slack), 0.0))
        return out

    def _newton(self) -> Mask:
        """Solve the conditions on the present active set; return coordinates that ran into a bound."""
        local, last = self.local, np.inf
        for _ in range(_STEPS):
            free = ~self.held
            rows, columns = np.flatnonzero(self.active), np.flatnonzero(free)
            scaled = self.multipliers * self.weight / local.scale
            curve = local.hessian(self.x, scaled, free, self.additive)[columns][:, columns] / self.weight
            jacobian = self.jacobian[rows][:, columns]
            # the shifts keep coordinates that matter to nothing, and constraints that repeat others, solvable
            system = scipy.sparse.bmat(
                [
                    [curve + 1e-13 * scipy.sparse.identity(columns.size), -jacobian.T],
                    [jacobian, 1e-13 * scipy.sparse.identity(rows.size)],
                ],
                format="csc",
            )
            right = np.concatenate([-self.gradient[columns] / self.weight, -self.slack[rows]])
            if right.size == 0:
                return np.zeros(self.x.size, dtype=np.bool_)
            with np.errstate(all="ignore"):
                found = np.atleast_1d(scipy.sparse.linalg.spsolve(system, right))
            step = np.zeros(self.x.size)
            step[columns] = np.nan_to_num(found[: columns.size])
            length = min(1.0, 0.3 / max(float(np.max(np.abs(step), initial=0.0)), 1e-300))
            before = self.x.copy()
            self.multipliers = np.zeros(local.scale.size)
            self.multipliers[rows] = np.nan_to_num(found[columns.size :])
            for _ in range(30):
                wanted = before + length * step * local.size
                self.x = np.clip(wanted, local.lower, local.upper)
                self.refresh()
                if np.all(np.isfinite(self.slack)):
                    break
                length *= 0.5
            hit = free & (self.x != wanted)
            if np.any(hit):
                return hit
            left = float(np.max(self._residual()))
            if (left <= CONVERGED and left > 0.3 * last) or np.max(np.abs(step), initial=0.0) <= 1e-15:
                break
            last = left
        return np.zeros(self.x.size, dtype=np.bool_)

    def _worst(self, score: FloatArray, unit: Any) -> Mask:
        """The most negative entry of every device."""
        order = np.lexsort((score, unit))
        first = np.unique(unit[order], return_index=True)[1]
        out = np.zeros(score.size, dtype=np.bool_)
        out[order[first]] = True
        return out & (score < 0.0)

    def _change(self, hit: Mask) -> bool:
        """Correct the active set; False where nothing is wrong with it."""
        local = self.local
        violated = np.where(self.active, 0.0, np.minimum(self.slack + 1e-10, 0.0))
        if np.any(hit) or np.any(violated < 0.0):
            self.held |= hit
            self.active |= self._worst(violated, local.row_unit)
            return True
        low, high = self._room()
        reduced = self._reduced() / self.strength[local.unit]
        # at a lower bound the objective must not fall on the way up
        sign = np.where(low <= high, reduced, -reduced)
        pulled = np.where(self.held & local.moving, np.minimum(sign + 1e-9, 0.0), 0.0)
        strength = self.strength[local.row_unit] / self.weight
        slackened = np.where(self.active, np.minimum(self.multipliers / strength + 1e-9, 0.0), 0.0)
        free, drop = self._worst(pulled, local.unit), self._worst(slackened, local.row_unit)
        self.held &= ~free
        self.active &= ~drop
        self.multipliers[drop] = 0.0
        return bool(np.any(free) or np.any(drop))

    def run(self) -> _Point:
        """Return the point the conditions hold at, or come closest to holding."""
        self._identify()
        self.refresh()
        for _ in range(_SWEEPS):
            if not self._change(self._newton()):
                break
        reduced = self._reduced()
        residual = np.maximum(self._residual(), self._signs(reduced))
        return _Point(
            x=self.x,
            multipliers=self.multipliers * self.weight / self.local.scale,
            reduced=reduced / self.local.size,
            residual=residual,
            ties=self._ties(),
        )

    def _signs(self, reduced: FloatArray) -> FloatArray:
        """How far multipliers are below 0 and slacks violated, per device and shared."""
        local = self.local
        out = np.zeros(local.devices + 1)
        low, high = self._room()
        wrong = np.where(self.held & local.moving, np.maximum(-np.where(low <= high, reduced, -reduced), 0.0), 0.0)
        np.maximum.at(out, local.unit, wrong / self.strength[local.unit])
        strength = self.strength[local.row_unit] / self.weight
        np.maximum.at(out, local.row_unit, np.maximum(-self.multipliers / strength, 0.0))
        np.maximum.at(out, local.row_unit, np.maximum(-self.slack, 0.0))
        return np.where(out <= 2e-9, 0.0, out)

    def _ties(self) -> list[tuple[FloatArray, FloatArray]]:
        """Directions in which multipliers of tight constraints are not unique (linear dependence of gradients)."""
        local = self.local
        low, high = self._room()
        # a bound that is touched counts whether or not it presses
        inner = ~self.held & (np.minimum(low, high) > 1e-8)
        size = np.sqrt(np.asarray(self.jacobian.multiply(self.jacobian).sum(axis=1))).reshape(-1)
        tight = np.flatnonzero((self.slack <= 1e-8) & (size > 0.0))
        if tight.size == 0:
            return []
        joint = np.any(local.row_unit[tight] < 0) or not local.separable
        if joint and tight.size <= 600:
            groups = [tight]
        else:
            order = tight[np.argsort(local.row_unit[tight], kind="stable")]
            groups = np.split(order, np.flatnonzero(np.diff(local.row_unit[order])) + 1)
        found = []
        for rows in groups:
            own = self.jacobian[rows]
            columns = np.unique(own.indices)
            dense = own[:, columns].toarray() / size[rows, None]
            left, values, _ = np.linalg.svd(dense * inner[columns], full_matrices=True)
            rank = int(np.sum(values > 1e-7))
            for direction in left[:, rank:].T:
                multipliers, reduced = np.zeros(local.scale.size), np.zeros(self.x.size)
                multipliers[rows] = direction / size[rows] / local.scale[rows]
                reduced[columns] = -(direction @ dense) / local.size[columns]
                found.append((multipliers, reduced))
        return found


# ---------------------------------------------------------------------------------------- changed systems


class _Changes:
    """The Lagrangian's derivatives in parameters of the system, at a fixed point."""

    def __init__(self, local: Local, point: _Point) -> None:
        self.local, self.point = local, point
        self.base = local.values(point.x)
        self.settled = point.residual <= RELIABLE
        self.shared = local.row_unit < 0
        # a bound that presses: the lower one where the Lagrangian rises
        self.at_lower = point.x - local.lower <= local.upper - point.x

    def _at(self, name: str, value: Any) -> Values:
        changed = self.local.problem.system.with_(**{name: value})
        return self.local.values(self.point.x, self.local.problem.with_system(changed))

    def derivative(self, name: str) -> tuple[FloatArray, Mask] | None:
        """Improvement per unit of a parameter and whether it is reliable; None where nothing depends on it."""
        local = self.local
        value = np.array(getattr(owner(local.problem.system, name), name), dtype=np.float64)
        if value.ndim == 0:
            change = self._difference(name, value, np.ones(()))
            if change is None:
                return None
            return np.array(-self._worth(change)), np.array(self._sure(change))
        everyone = self._difference(name, value, np.ones(value.size))
        if everyone is None:
            return None
        if local.separable and self._own(name, value):
            improvement, sure = -self._worth_each(everyone), self._sure_each(everyone)
            if everyone.objective == 0.0 and not np.any(everyone.slack[self.shared]):
                return improvement, sure
            for u in range(value.size):
                one = self._difference(name, value, np.arange(value.size) == u)
                if one is not None:
                    together = Values(
                        one.objective, np.where(self.shared, one.slack, 0.0), 0.0 * one.lower, 0.0 * one.upper
                    )
                    improvement[u] -= self._worth(together)
            return improvement, sure
        improvement, sure = np.zeros(value.size), np.ones(value.size, dtype=np.bool_)
        for u in range(value.size):
            one = self._difference(name, value, np.arange(value.size) == u)
            if one is not None:
                improvement[u], sure[u] = -self._worth(one), self._sure(one)
        return improvement, sure

    def _own(self, name: str, value: FloatArray) -> bool:
        """Whether a device's parameter moves its own constraints and bounds only."""
        local = self.local
        half = np.random.default_rng(2).permutation(value.size) < value.size // 2
        after = self._at(name, np.where(half, value * (1.0 + _STEP), value))
        rows = (local.row_unit >= 0) & ~half[local.row_unit]
        others = ~half[local.unit]
        return not (
            np.any(after.slack[rows] != self.base.slack[rows])
            or np.any(after.lower[others] != self.base.lower[others])
            or np.any(after.upper[others] != self.base.upper[others])
        )

    def _difference(self, name: str, value: FloatArray, which: Any) -> Values | None:
        """Derivative of all values when the entries `which` move; None where nothing moves."""
        step = _STEP * np.abs(value)
        if np.any(step == 0.0):
            step = np.where(step == 0.0, self._small(name, value, which), step)
        unit = step * which

        def at(k: int) -> Values:
            return self._at(name, value + k * unit).minus(self.base)

        ahead = at(1)
        if not (ahead.objective or any(np.any(v) for v in (ahead.slack, ahead.lower, ahead.upper))):
            return None
        try:
            if np.any(value[step > _STEP * np.abs(value)] == 0.0):
                raise InputError("no way below 0")
            points, weights = [at(-2), at(-1), ahead, at(2)], (1.0 / 12.0, -8.0 / 12.0, 8.0 / 12.0, -1.0 / 12.0)
        except InputError:
            # at the end of what is allowed: one side only
            points, weights = [ahead, at(2), at(3), at(4)], (4.0, -3.0, 4.0 / 3.0, -0.25)
        slope = Values.combine(weights, points)
        return self._per_unit(slope, step, which)

    def _per_unit(self, slope: Values, step: FloatArray, which: Any) -> Values:
        """Divide a change by the steps that made it: one step, or every device's own."""
        local = self.local
        if np.ndim(step) == 0 or np.sum(which) == 1:
            one = float(np.sum(step * which))
            return Values.combine([1.0 / one], [slope])
        by_row = np.append(step, 1.0)[local.row_unit]
        by_coordinate = np.append(step, 1.0)[local.unit]
        return Values(slope.objective, slope.slack / by_row, slope.lower / by_coordinate, slope.upper / by_coordinate)

    def _small(self, name: str, value: FloatArray, which: Any) -> float:
        """Smallest power of ten by which a parameter that is 0 must grow to move anything visibly."""
        for exponent in range(-30, 7):
            after = self._at(name, np.where((value == 0.0) & (which != 0.0), 10.0**exponent, value))
            moved = np.abs(after.slack - self.base.slack) / self.local.scale
            shift = abs(after.objective - self.base.objective) / (abs(self.base.objective) or 1.0)
            if np.max(moved, initial=shift) > 1e-4:
                return 10.0**exponent
        return 1.0

    def _terms(self, change: Values, rows: FloatArray, reduced: FloatArray) -> tuple[FloatArray, FloatArray]:
        bound = np.where(self.at_lower, change.lower, change.upper)
        # where a variable cannot move, more room counts on the side it presses against
        fixed = self.local.lower == self.local.upper
        bound = np.where(fixed, np.where(reduced > 0.0, change.lower, change.upper), bound)
        pressing = np.where(np.abs(reduced) > 0.0, reduced * bound, 0.0)
        return -rows * change.slack, pressing

    def _worth(self, change: Values) -> float:
        rows, bounds = self._terms(change, self.point.multipliers, self._pressing())
        return change.objective + float(rows.sum() + bounds.sum())

    def _worth_each(self, change: Values) -> FloatArray:
        """Every device's own part: its constraints and bounds, without the objective and what is shared."""
        local = self.local
        rows, bounds = self._terms(change, self.point.multipliers, self._pressing())
        out: FloatArray = np.bincount(local.unit, bounds, minlength=local.devices).astype(np.float64)
        own = ~self.shared
        return out + np.bincount(local.row_unit[own], rows[own], minlength=local.devices)

    def _pressing(self) -> FloatArray:
        """Multipliers of bounds: nothing where a coordinate is away from both."""
        local, x = self.local, self.point.x
        touched = np.minimum(x - local.lower, local.upper - x) <= 1e-8 * local.size
        return np.where(touched, self.point.reduced, 0.0)

    def _sure(self, change: Values) -> bool:
        """Whether the worth of a change is the same for all multipliers that meet the conditions."""
        if not np.all(self.settled):
            return False
        for rows, reduced in self.point.ties:
            by_row, by_bound = self._terms(change, rows, reduced)
            terms = np.concatenate([by_row, by_bound])
            if abs(terms.sum()) > 1e-6 * np.abs(terms).max(initial=0.0):
                return False
        return True

    def _sure_each(self, change: Values) -> Mask:
        local = self.local
        sure = self.settled[:-1] & self.settled[-1]
        own = ~self.shared
        for rows, reduced in self.point.ties:
            by_row, by_bound = self._terms(change, rows, reduced)
            by_row = np.where(own, by_row, 0.0)
            total, size = (
                np.bincount(local.unit, b, minlength=local.devices)
                + np.bincount(local.row_unit[own], r[own], minlength=local.devices)
                for b, r in ((by_bound, by_row), (np.abs(by_bound), np.abs(by_row)))
            )
            sure &= ~(np.abs(total) > 1e-6 * size)
        return sure

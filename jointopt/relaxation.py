"""Why a problem has no feasible decision, and the smallest change of its budgets that gives it one.

Three relaxations are told, each on its own: all budgets raised by a common factor (every device its own, where devices
share nothing), one budget raised alone, and the least sum of relative raises. With them comes an irreducible set of
constraints in conflict: together they cannot be met, without any one of them they can.

A design that explains its conflicts (`Conflict`) has these in closed form, and they are taken from it as proved. For
any other problem, and for the least sum, they are found: with u_i the use of constraint i over its budget, the excess
max log u_i is minimised over the real variables in logarithms (where products and quotients make it convex) by SQP
from several starts at several integer choices; irreducible sets by leaving out constraints one at a time. What is
found is a relaxation that suffices, checked by `Problem.evaluate`; that no smaller one does is not proved.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import scipy.optimize

from jointopt.decision import Decision
from jointopt.errors import InputError
from jointopt.problem import FEASIBILITY_TOLERANCE, Conflict, Problem
from jointopt.sensitivity import Local, owner, real_fields
from jointopt.system import FloatArray

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Relaxation", "Way", "relaxation"]

Rows = npt.NDArray[np.int64]
_Set = tuple[tuple[str, int | None], ...]
_Start = tuple[FloatArray, dict[str, FloatArray]]

_DRAWS = 1024
_STARTS = 4
_FAR = 1e4
"""How far beyond its bound a variable may go whose bound is a budget."""

_MARGIN = 2e-10
"""Share of a budget by which constraints that must hold are kept, for rounding: well inside what is allowed."""

_CONFLICT = 1e-8
"""Relative excess above which constraints count as in conflict."""


@dataclass(frozen=True)
class Way:
    """One way to make a problem feasible.

    Attributes
    ----------
    factor : dict of arrays, shape [devices] or []
        What each budget is multiplied by; 1 where it may stay.
    budget : dict of arrays, shape [devices] or []
        The budgets that result, SI.
    decision : Decision
        What to do with them.
    proved : bool
        Whether nothing smaller of this kind suffices by a closed form of the design; else it was found by search.
    verified : bool
        Whether `Problem.evaluate` finds the decision feasible under these budgets.
    """

    factor: Mapping[str, FloatArray]
    budget: Mapping[str, FloatArray]
    decision: Decision
    proved: bool
    verified: bool

    @property
    def largest(self) -> float:
        """The greatest factor of all."""
        return max(float(np.max(f)) for f in self.factor.values())

    @property
    def increase(self) -> float:
        """Sum of the relative raises."""
        return float(sum(np.sum(f - 1.0) for f in self.factor.values()))


@dataclass(frozen=True)
class Relaxation:
    """The smallest relaxations that make an infeasible problem feasible, and what is in conflict.

    Attributes
    ----------
    together : Way, optional
        All budgets raised by one factor, per device where devices share nothing. None where no budgets help.
    alone : dict of Way
        Each budget raised with all others as they are; without those that cannot help.
    smallest : Way, optional
        The least sum of relative raises (found).
    irreducible : tuple of tuples
        Sets of (constraint, device or None) that cannot be met together but can without any one of them.
    irreducible_proved : bool
        Whether the sets follow from a closed form.
    """

    together: Way | None
    alone: Mapping[str, Way]
    smallest: Way | None
    irreducible: tuple[_Set, ...]
    irreducible_proved: bool

    def ways(self) -> dict[str, Way]:
        """Return all ways by name."""
        named = {
            "together": self.together,
            **{f"{k} alone": w for k, w in self.alone.items()},
            "smallest": self.smallest,
        }
        return {name: way for name, way in named.items() if way is not None}

    def to_pandas(self) -> pd.DataFrame:
        """Return one row per way, budget and device (-1: shared) whose budget is raised."""
        import pandas as pd

        rows = [
            {"way": name, "budget": key, "device": u, "factor": f, "needed": b, "proved": way.proved}
            for name, way in self.ways().items()
            for key, factor in way.factor.items()
            for u, f, b in zip(
                range(np.size(factor)) if np.ndim(factor) else [-1],
                np.atleast_1d(factor).tolist(),
                np.atleast_1d(way.budget[key]).tolist(),
                strict=True,
            )
            if f > 1.0
        ]
        return pd.DataFrame(rows, columns=["way", "budget", "device", "factor", "needed", "proved"])

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, arrays as NumPy arrays."""
        return {
            "ways": {
                name: {
                    "factor": dict(way.factor),
                    "budget": dict(way.budget),
                    "decision": {k: np.asarray(v) for k, v in way.decision.items()},
                    "proved": way.proved,
                    "verified": way.verified,
                }
                for name, way in self.ways().items()
            },
            "irreducible": [[list(item) for item in group] for group in self.irreducible],
            "irreducible_proved": self.irreducible_proved,
        }

    def summary(self) -> str:
        """Return the relaxations in words."""
        lines = []
        for group in self.irreducible:
            names = " and ".join(name if u is None else f"{name} of device {u}" for name, u in group)
            lines.append(f"cannot be met{' together' if len(group) > 1 else ''}: {names}")
        for name, way in self.ways().items():
            raised = [
                f"{key}{'' if np.ndim(factor) == 0 else f' of {int(np.sum(factor > 1.0))} devices'} "
                f"x {np.max(factor):.4g}"
                for key, factor in way.factor.items()
                if np.any(factor > 1.0)
            ]
            how = "proved" if way.proved else "found, not proved to be the least"
            what = {"together": "all budgets", "smallest": "least sum of raises"}.get(name, name)
            lines.append(f"feasible with {what}: {', '.join(raised)} ({how}{'' if way.verified else ', not verified'})")
        if self.together is None and not self.alone:
            lines.append("no relaxation of budgets was found that makes the problem feasible")
        how = "proved" if self.irreducible_proved else "found by search, not proved"
        return "\n".join([*lines, f"conflicts: {how}"] if self.irreducible else lines)

    __str__ = summary


def relaxation(
    problem: Problem, decision: Decision | None, conflicts: Sequence[Conflict] = (), *, seed: int = 0
) -> Relaxation:
    """Return the smallest relaxations of an infeasible problem's budgets and what is in conflict.

    Parameters
    ----------
    problem : Problem
        An infeasible problem.
    decision : Decision, optional
        The least violating decision known, a start; binary variables stay as in it.
    conflicts : sequence of Conflict
        What the design itself says.
    seed : int
        Seed of the starts that are drawn.

    Raises
    ------
    InputError
        When the decision is feasible, or the problem has no constraint beside the bounds of its variables.
    """
    if decision is None:
        decision = _middle(problem)
    evaluation = problem.evaluate(decision)
    if bool(evaluation.feasible()):
        raise InputError("relaxation: the decision keeps every budget; there is nothing to relax")
    search = _Search(problem, decision, seed)
    return search.run([c for c in conflicts if c.factor is None or c.factor > 1.0])


def _middle(problem: Problem) -> Decision:
    values = {}
    for v in problem.variables:
        if v.kind == "binary":
            values[v.name] = v.upper
        else:
            middle = 0.5 * (v.lower + v.upper)
            values[v.name] = np.rint(middle) if v.kind == "integer" else middle
    return Decision(values)


@dataclass(frozen=True)
class _Budget:
    """A field of the system that is the limit of a constraint: more of it is as much more slack."""

    field: str
    rows: slice
    amount: FloatArray


class _Search:
    """The numerical search: uses over budgets, their minimisation, ways and conflicts from it."""

    def __init__(self, problem: Problem, decision: Decision, seed: int) -> None:
        self.problem = problem
        self.rng = np.random.default_rng(seed)
        self.local = Local(problem, decision)
        local = self.local
        if local.scale.size == 0:
            raise InputError(f"{problem.name}: has no constraint beside the bounds of its variables")
        if np.any(~(local.scale > 0.0)):
            raise InputError(f"{problem.name}: a constraint without a scale above 0 cannot be relaxed relative to it")
        self.tied: Rows = np.empty(0, dtype=np.int64)
        self.partner: Rows = np.empty(0, dtype=np.int64)
        self.budgets = self._budgets()
        self.high = local.upper.copy()
        self.high[self.tied] *= _FAR
        self.row_unit = np.concatenate([local.row_unit, local.unit[self.tied]])
        self.soft = np.zeros(local.scale.size, dtype=np.bool_)
        for budget in self.budgets.values():
            self.soft[budget.rows] = True
        # logarithmic coordinates for what has a unit
        unit = np.concatenate([np.full(v.lower.size, bool(v.unit)) for v in local.real])
        self.log = unit & (local.lower >= 0.0) & (local.upper > 0.0)
        self.low = np.where(self.log, np.maximum(local.lower, 1e-6 * local.upper), local.lower)
        self.integers = [v for v in problem.variables if v.kind == "integer"]
        self.groups = self._groups()
        self.earlier: dict[int | None, list[_Start]] = {}

    # -- what may be relaxed

    def _budgets(self) -> dict[str, _Budget]:
        """Budgets by constraint: fields of the system that move one slack by what they move; else the limits."""
        local = self.local
        found: dict[str, _Budget] = {}
        base = local.values(local.start).slack
        system = self.problem.system
        for field in real_fields(system):
            value = np.array(getattr(owner(system, field), field), dtype=np.float64)
            try:
                changed = self.problem.with_system(system.with_(**{field: value * 1.001}))
            except InputError:
                continue
            after = local.values(local.start, changed)
            moved = after.slack - base
            for name, rows in local.rows.items():
                if value.shape not in ((), tuple(local.constraints[name])):
                    continue
                wanted = np.broadcast_to(1e-3 * value, local.constraints[name]).reshape(-1)
                # as large as the budget itself, so that the difference is well above rounding
                alike = np.abs(1e3 * wanted - local.scale[rows]) <= 1e-6 * local.scale[rows]
                rounding = 1e-13 * (np.abs(base[rows]) + local.scale[rows])
                if wanted.size and np.all(alike & (np.abs(moved[rows] - wanted) <= rounding)):
                    found[name] = _Budget(field, rows, value)
                    self._tie(rows, value, after.upper)
        if found:
            return found
        # a problem whose system does not show its limits: every constraint's own scale stands for its budget
        return {
            name: _Budget(name, rows, local.scale[rows].reshape(local.constraints[name]))
            for name, rows in local.rows.items()
        }

    def _tie(self, rows: slice, value: FloatArray, upper: FloatArray) -> None:
        """Bounds that are themselves the budget (a share is at most the whole) are raised with it."""
        local = self.local
        alike = np.abs(upper - 1.001 * local.upper) <= 1e-9 * np.abs(local.upper)
        tied = np.flatnonzero(alike & (local.upper > 0.0) & (local.upper > local.lower))
        self.tied = np.concatenate([self.tied, tied])
        partner = rows.start + (local.unit[tied] if value.ndim else np.zeros(tied.size, dtype=np.int64))
        self.partner = np.concatenate([self.partner, partner])

    def _groups(self) -> list[tuple[int | None, Rows, Rows]]:
        """(device, its rows, its coordinates), one by one where devices share nothing that is short, else as one."""
        local = self.local
        slack = local.values(local.start).slack / local.scale
        moving = local.upper > local.lower
        shared = local.row_unit < 0
        if (local.separable or local.devices == 1) and not np.any(
            shared & (self.soft | ~(slack >= -FEASIBILITY_TOLERANCE))
        ):
            short = np.unique(local.row_unit[~shared & ~(slack >= -FEASIBILITY_TOLERANCE)])
            return [
                (int(u), np.flatnonzero(self.row_unit == u), np.flatnonzero((local.unit == u) & moving)) for u in short
            ]
        # coordinates that nothing depends on (devices left out) only make the search longer
        _, jacobian = local.derivatives(local.start)
        matters = np.asarray(abs(jacobian).sum(axis=0)).reshape(-1) != 0.0
        return [(None, np.arange(self.row_unit.size), np.flatnonzero(moving & matters))]

    # -- the search

    def use(self, x: FloatArray, local: Local | None = None) -> FloatArray:
        """Use of every constraint over its budget; last, of bounds that are budgets."""
        local = self.local if local is None else local
        share = 1.0 - local.values(x).slack / local.scale
        return np.concatenate([np.nan_to_num(share, nan=np.inf), x[self.tied] / local.upper[self.tied]])

    def _slopes(self, x: FloatArray, local: Local, order: Rows, columns: Rows) -> FloatArray:
        """Derivatives of `use`, dense, [order, columns]."""
        _, jacobian = local.derivatives(x)
        bounds = np.zeros((self.tied.size, x.size))
        bounds[np.arange(self.tied.size), self.tied] = 1.0 / local.upper[self.tied]
        own = order < local.scale.size
        out = np.empty((order.size, columns.size))
        out[own] = -jacobian[order[own]][:, columns].toarray() / local.scale[order[own]][:, None]
        out[~own] = bounds[order[~own] - local.scale.size][:, columns]
        return out

    def _at(self, fixed: Mapping[str, FloatArray]) -> Local:
        other = copy.copy(self.local)
        other.fixed = {**self.local.fixed, **fixed}
        return other

    @staticmethod
    def _excess(use: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Logarithm of the use above 1, its tangent below, and the slope."""
        above = np.maximum(use, 1.0)
        return np.where(use > 1.0, np.log(above), use - 1.0), 1.0 / above

    def starts(self, rows: Rows, columns: Rows, soft: Rows) -> list[_Start]:
        """Real and integer parts to start from: the decision, and the best of many draws, of different integers."""
        local = self.local
        kept = [(np.clip(local.start, self.low, local.upper), dict(local.fixed))]
        share = self.rng.uniform(size=(_DRAWS, local.start.size))
        with np.errstate(divide="ignore", invalid="ignore"):
            draws = np.where(
                self.log, self.low * (local.upper / self.low) ** share, self.low + share * (local.upper - self.low)
            )
        x = np.tile(kept[0][0], (_DRAWS, 1))
        x[:, columns] = draws[:, columns]
        units = np.unique(local.unit[columns])
        whole: dict[str, FloatArray] = {}
        for v in self.integers:
            values = np.tile(np.broadcast_to(local.fixed[v.name], v.lower.shape), (_DRAWS, 1))
            drawn = self.rng.integers(v.lower.astype(np.int64), v.upper.astype(np.int64) + 1, values.shape)
            which = np.isin(np.arange(v.lower.size), units) if np.all(units >= 0) else np.full(v.lower.size, True)
            whole[v.name] = np.where(which, drawn, values)
        fixed = {**{k: np.tile(np.atleast_1d(v), (_DRAWS, 1)) for k, v in local.fixed.items()}, **whole}
        parts: dict[str, Any] = {name: x[:, where] for name, where in local.place.items()} | fixed
        with np.errstate(all="ignore"):
            evaluation = self.problem.evaluate(Decision({v.name: parts[v.name] for v in self.problem.variables}))
        use = [np.reshape(np.asarray(evaluation.slack[name]), (_DRAWS, -1)) for name in local.constraints]
        every = np.nan_to_num(1.0 - np.concatenate(use, axis=1) / local.scale, nan=np.inf)
        every = np.concatenate([every, x[:, self.tied] / local.upper[self.tied]], axis=1)
        hard = np.setdiff1d(rows, soft)
        judged = np.max(every[:, soft], axis=1, initial=0.0)
        judged = np.where(
            np.max(every[:, hard], axis=1, initial=0.0) > 1.0, 1e3 + np.max(every[:, rows], axis=1), judged
        )
        seen: set[tuple[float, ...]] = set()
        for i in np.argsort(judged, kind="stable"):
            label = tuple(float(v) for name in whole for v in whole[name][i])
            if label in seen:
                continue
            if len(kept) > (_STARTS if whole else 1):
                break
            if whole:
                seen.add(label)
            kept.append((x[i], {name: values[i] for name, values in fixed.items()}))
        return kept

    def minimise(
        self,
        rows: Rows,
        columns: Rows,
        soft: Rows,
        group: Rows,
        starts: list[_Start],
        enough: float = 0.0,
    ) -> tuple[FloatArray, FloatArray, dict[str, FloatArray]] | None:
        """Least sum of relative raises, one for each group of soft rows, with all other rows kept; `enough` ends it.

        Returns the raise of each group, the real and the integer part; None where the rest was never met.
        """
        best = None
        for x, fixed in starts:
            found = self._descend(rows, columns, soft, group, x, fixed)
            if found is not None and (best is None or found[0].sum() < best[0].sum() * (1.0 - 1e-12)):
                best = found
            if best is not None and best[0].sum() <= enough:
                break
        return best

    def _descend(
        self, rows: Rows, columns: Rows, soft: Rows, group: Rows, x: FloatArray, fixed: dict[str, FloatArray]
    ) -> tuple[FloatArray, FloatArray, dict[str, FloatArray]] | None:
        local = self._at(fixed)
        low, high, log = self.low[columns], self.high[columns], self.log[columns]
        ratio = np.log(np.where(log, high / np.where(log, low, 1.0), np.e))
        hard = np.setdiff1d(rows, soft)
        order = np.concatenate([soft, hard])
        groups = int(group.max(initial=-1)) + 1
        full = x.copy()

        def place(y: FloatArray) -> FloatArray:
            share = y[: columns.size]
            full[columns] = np.clip(np.where(log, low * np.exp(ratio * share), low + share * (high - low)), low, high)
            return full

        def slack(y: FloatArray) -> FloatArray:
            excess, _ = self._excess(self.use(place(y), local)[order])
            raised = y[columns.size :][group]
            return np.nan_to_num(
                np.concatenate([raised - excess[: soft.size], -excess[soft.size :] - _MARGIN]), nan=-1e3, neginf=-1e3
            )

        def slopes(y: FloatArray) -> FloatArray:
            at = place(y)
            _, slope = self._excess(self.use(at, local)[order])
            inner = np.where(log, at[columns] * ratio, high - low)
            out = np.zeros((order.size, columns.size + groups))
            out[:, : columns.size] = -self._slopes(at, local, order, columns) * slope[:, None] * inner
            out[np.arange(soft.size), columns.size + group] = 1.0
            return np.nan_to_num(out)

        def total(y: FloatArray) -> float:
            return float(np.expm1(y[columns.size :]).sum())

        def steepness(y: FloatArray) -> FloatArray:
            return np.concatenate([np.zeros(columns.size), np.exp(y[columns.size :])])

        with np.errstate(divide="ignore", invalid="ignore"):
            share = np.where(
                log, np.log(x[columns] / np.where(log, low, 1.0)) / ratio, (x[columns] - low) / (high - low)
            )
        share = np.clip(np.nan_to_num(share), 0.0, 1.0)
        excess, _ = self._excess(self.use(place(share), local)[order])
        if not np.all(np.isfinite(excess)):
            return None
        raised = np.zeros(groups)
        np.maximum.at(raised, group, excess[: soft.size])
        most = max(float(raised.max(initial=0.0)), 1.0) + 5.0
        with np.errstate(all="ignore"):
            minimize: Any = scipy.optimize.minimize
            answer = minimize(
                total,
                np.concatenate([share, raised]),
                jac=steepness,
                bounds=[(0.0, 1.0)] * columns.size + [(0.0, most)] * groups,
                constraints=[{"type": "ineq", "fun": slack, "jac": slopes}],
                method="SLSQP",
                options={"maxiter": 100, "ftol": 1e-13},
            )
        if not np.all(np.isfinite(answer.x)):
            return None
        at = place(np.clip(answer.x, 0.0, None)).copy()
        use = self.use(at, local)
        if np.any(use[hard] > 1.0 + 0.9 * FEASIBILITY_TOLERANCE):
            return None
        # what the point asks for, whatever the solver said
        needed = np.zeros(groups)
        # a raise below rounding is none: budgets may be exceeded by FEASIBILITY_TOLERANCE, which is far more
        np.maximum.at(needed, group, np.where(use[soft] > 1.0 + 1e-11, use[soft] - 1.0, 0.0))
        return needed, at, fixed

    # -- ways

    def _kinds(self) -> dict[str, tuple[str, ...]]:
        return {
            "together": tuple(self.budgets),
            **{name: (name,) for name in self.budgets},
            "smallest": tuple(self.budgets),
        }

    def _rows_of(self, names: Iterable[str]) -> Rows:
        picked = np.zeros(self.local.scale.size, dtype=np.bool_)
        for name in names:
            picked[self.budgets[name].rows] = True
        picked = np.concatenate([picked, picked[self.partner]])
        return np.flatnonzero(picked)

    def run(self, conflicts: Sequence[Conflict]) -> Relaxation:
        """Return all ways and the irreducible sets."""
        closed = self._closed(conflicts)
        self.shared = [c for c in conflicts if c.device is None and len(c.relax) == 1]
        ways = {kind: self._way(kind, names, closed) for kind, names in self._kinds().items()}
        own = sorted((c for c in conflicts if c.device is not None and c.irreducible), key=lambda c: c.device or 0)
        proved = bool(own)
        if own:
            sets = tuple(group for conflict in own for group in _sets(conflict))
            if self.tied.size:
                limited = [self._with_limits(group) for group in sets]
                sets, proved = tuple(group for group, _ in limited), all(sure for _, sure in limited)
        else:
            sets = tuple(found for rows in self.groups if (found := self._irreducible(*rows)))
        return Relaxation(
            together=ways.pop("together"),
            smallest=ways.pop("smallest"),
            alone={self.budgets[name].field: way for name, way in ways.items() if way is not None},
            irreducible=sets,
            irreducible_proved=proved,
        )

    def _closed(self, conflicts: Sequence[Conflict]) -> dict[int, Conflict] | None:
        """Closed forms by device, where they say all: every device that is short, every budget, nothing shared."""
        devices = {u for u, _, _ in self.groups}
        fields = {budget.field for budget in self.budgets.values()}
        by_device = {c.device: c for c in conflicts if c.device is not None}
        if None in devices or devices != set(by_device) or len(by_device) != len(conflicts):
            return None
        if any(set(c.relax) != fields or c.factor is None or not c.irreducible for c in conflicts):
            return None
        return {u: c for u, c in by_device.items() if u is not None}

    def _way(self, kind: str, names: tuple[str, ...], closed: dict[int, Conflict] | None) -> Way | None:
        local = self.local
        allowed = self._rows_of(names)
        raised = np.zeros(self.row_unit.size)
        x, fixed = np.clip(local.start, local.lower, local.upper), {k: v.copy() for k, v in local.fixed.items()}
        proved = closed is not None and kind != "smallest"
        for u, rows, columns in self.groups:
            soft = np.intersect1d(rows, allowed)
            group = self._own_groups(soft) if kind == "smallest" else np.zeros(soft.size, dtype=np.int64)
            enough = 0.0
            if closed is not None and u is not None and proved:
                if kind in self.budgets and closed[u].relax[self.budgets[kind].field] is None:
                    return None
                enough = self._closed_raise(kind, closed[u])
            starts = self.starts(rows, columns, soft)
            if kind == "smallest":
                # what the other ways came to is where the least sum is looked for first
                starts = [*self.earlier.get(u, []), *starts]
            found = self.minimise(rows, columns, soft, group, starts, enough * (1.0 + 1e-10))
            if found is None:
                return None
            self.earlier.setdefault(u, []).append(found[1:])
            needed, at, whole = found
            raised[soft] = needed[group]
            x[columns] = at[columns]
            for name, values in whole.items():
                mine = np.arange(values.size) == u if u is not None and values.size > 1 else np.full(values.size, True)
                fixed[name] = np.where(mine, values, fixed[name])
            if proved:
                raised[soft] = enough
        decision = self._at(fixed).decision(x)
        factor = {
            budget.field: _with_shape(1.0 + raised[budget.rows], local.constraints[name], budget.amount.shape)
            for name, budget in self.budgets.items()
        }
        amount = {budget.field: budget.amount for budget in self.budgets.values()}
        new = {field: amount[field] * factor[field] for field in factor}
        proved = proved or self._least_shared(kind, new)
        return Way(factor, new, decision, proved, self._verified(new, raised, decision))

    def _own_groups(self, soft: Rows) -> Rows:
        """One raise for each constraint, which a bound that is the same budget shares."""
        count = self.local.scale.size
        bound = soft >= count
        leader = np.where(bound, 0, soft)
        leader[bound] = self.partner[soft[bound] - count]
        return np.unique(leader, return_inverse=True)[1]

    def _least_shared(self, kind: str, new: Mapping[str, FloatArray]) -> bool:
        """Whether a shared budget raised alone is at the least use that the solver proved for it."""
        if kind not in self.budgets or self.budgets[kind].amount.ndim:
            return False
        budget = self.budgets[kind]
        return any(
            limit == float(budget.amount) and need is not None and float(new[budget.field]) <= need * (1.0 + 1e-9)
            for c in self.shared
            for limit, need in zip(c.budget.values(), c.relax.values(), strict=True)
        )

    def _closed_raise(self, kind: str, conflict: Conflict) -> float:
        if kind == "together":
            assert conflict.factor is not None
            return conflict.factor - 1.0
        field = self.budgets[kind].field
        need = conflict.relax[field]
        assert need is not None
        return max(need / conflict.budget[field] - 1.0, 0.0)

    def _verified(self, budget: Mapping[str, FloatArray], raised: FloatArray, decision: Decision) -> bool:
        """Whether the decision is feasible with the new budgets, by the problem itself where its system holds them."""
        system = self.problem.system
        fields = real_fields(system)
        if all(field in fields for field in budget):
            changed = self.problem.with_system(
                system.with_(**{f: v if np.ndim(v) else float(v) for f, v in budget.items()})
            )
            return bool(changed.evaluate(decision).feasible())
        evaluation = self.problem.evaluate(decision)
        bounds = {name: s for name, s in evaluation.slack.items() if name not in self.local.constraints}
        slack = np.concatenate([np.reshape(evaluation.slack[name], -1) for name in self.local.constraints])
        kept = bool(np.all(slack / self.local.scale + raised[: slack.size] >= -FEASIBILITY_TOLERANCE))
        inside = all(
            np.all(np.asarray(s) >= -FEASIBILITY_TOLERANCE * np.asarray(evaluation.scale[name]))
            for name, s in bounds.items()
        )
        return kept and inside

    # -- conflicts

    def _irreducible(self, device: int | None, rows: Rows, columns: Rows) -> _Set:
        """Leave out constraints one at a time as long as what remains is still in conflict (deletion filter)."""

        def least(some: Rows) -> tuple[float, FloatArray, dict[str, FloatArray]]:
            nothing = np.zeros(some.size, dtype=np.int64)
            every = np.concatenate([some, bounds])
            found = self.minimise(every, columns, some, nothing, self.starts(every, columns, some))
            return (np.inf, self.local.start, {}) if found is None else (float(found[0][0]), found[1], found[2])

        count = self.local.scale.size
        rows, bounds = rows[rows < count], rows[rows >= count]
        level, x, fixed = least(rows)
        if not level > _CONFLICT:
            return ()
        # at the least excess, what is not tight is not in this conflict
        tight = rows[self.use(x, self._at(fixed))[rows] >= (1.0 + level) * (1.0 - 1e-6)]
        if tight.size < rows.size and least(tight)[0] > _CONFLICT:
            rows = tight
        for row in rows.tolist():
            without = rows[rows != row]
            if without.size and least(without)[0] > _CONFLICT:
                rows = without
        return tuple(self._named(row) for row in rows.tolist())

    def _with_limits(self, group: _Set) -> tuple[_Set, bool]:
        """Add the shared budget to a device's conflict where more of it would resolve it; whether that is settled.

        A device's own conflict is proved with the whole of what is shared. A point at which it is resolved with more
        shows that the shared budget is part of it; that none was found proves nothing.
        """
        local = self.local
        device = group[0][1]
        assert device is not None
        names = {budget.field: name for name, budget in self.budgets.items()}
        rows = np.array([local.rows[names[field]].start + device for field, _ in group], dtype=np.int64)
        columns = np.flatnonzero((local.unit == device) & (local.upper > local.lower))
        found = self.minimise(rows, columns, rows, 0 * rows, self.starts(rows, columns, rows))
        if found is None or found[0][0] > 0.0:
            return group, False
        shared = [
            b.field
            for b in self.budgets.values()
            if np.any((self.partner >= b.rows.start) & (self.partner < b.rows.stop))
        ]
        return (*group, *((field, None) for field in shared)), True

    def _named(self, row: int) -> tuple[str, int | None]:
        local = self.local
        name = next(name for name, where in local.rows.items() if where.start <= row < where.stop)
        shown = self.budgets[name].field if name in self.budgets else name
        return shown, (row - local.rows[name].start if local.constraints[name] else None)


def _sets(conflict: Conflict) -> list[_Set]:
    """Irreducible sets of a device: each budget by itself where none can make up for another."""
    if len(conflict.relax) > 1 and all(need is None for need in conflict.relax.values()):
        return [((name, conflict.device),) for name in conflict.relax]
    return [tuple((name, conflict.device) for name in conflict.irreducible)]


def _with_shape(values: FloatArray, from_shape: tuple[int, ...], to_shape: tuple[int, ...]) -> FloatArray:
    """Factors of rows as factors of a field: one number where the field is one."""
    if to_shape == ():
        return np.array(float(np.max(values)))
    return np.broadcast_to(values.reshape(from_shape), to_shape).copy()

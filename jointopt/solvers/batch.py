"""Many instances solved at once.

Instances whose cells can be joined become one problem on a flat axis of (instance, unit): one priced response settles
all of them, which costs what one instance of that many units does. An instance is then solved on its own only where
its shared limits bind, its objective is a ratio, or some unit is infeasible. Problems of other kinds are solved one by
one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from jointopt.decision import Decision
from jointopt.errors import InputError, is_real, nearest
from jointopt.problem import Problem, Sums
from jointopt.result import Certificate, Result
from jointopt.solvers.dispatch import solve
from jointopt.solvers.exact import ROUNDING
from jointopt.solvers.priced import CellsPriced
from jointopt.system import FloatArray

__all__ = ["ResultBatch", "solve_many"]


@dataclass(frozen=True)
class ResultBatch:
    """Answers to many instances.

    Attributes
    ----------
    values, lower_bounds : array, shape [instances]
        As in `Result`; nan where there is none.
    status : array of str, shape [instances]
        As in `Result`.
    decision : dict of arrays, shape [instances, devices]
        What was chosen; nan beyond the devices of an instance that has fewer than others, and throughout for an
        instance that is infeasible (its `Result` holds the least violating decision).
    """

    values: FloatArray
    lower_bounds: FloatArray
    status: npt.NDArray[np.str_]
    decision: Mapping[str, FloatArray]
    gap: float
    seed: int | None
    problem_of: Callable[[int], Problem] = field(repr=False)
    known: dict[int, Result] = field(repr=False)
    unit_bounds: FloatArray = field(repr=False)

    def __len__(self) -> int:
        return int(self.values.size)

    @property
    def gaps(self) -> FloatArray:
        """Relative certified gap of each instance; nan without a bound."""
        gaps: FloatArray = np.maximum(self.values - self.lower_bounds, 0.0) / np.maximum(np.abs(self.values), 1e-12)
        return gaps

    def __getitem__(self, instance: int) -> Result:
        """Return one instance's result, as `solve` would."""
        count = len(self)
        if not -count <= instance < count:
            raise IndexError(f"instance {instance} of {count}")
        instance = int(instance) % count
        if instance not in self.known:
            self.known[instance] = self._result(instance)
        return self.known[instance]

    def __iter__(self) -> Iterator[Result]:
        return (self[i] for i in range(len(self)))

    def _result(self, instance: int) -> Result:
        problem = self.problem_of(instance)
        if not np.isfinite(self.values[instance]):
            return solve(problem, method="exact", gap=self.gap, seed=self.seed)
        size = len(problem.system)
        decision = Decision({v.name: self.decision[v.name][instance, :size] for v in problem.variables})
        evaluation = problem.evaluate(decision)
        value = float(evaluation.objective)
        sums = problem.capabilities().sums
        assert sums is not None
        status: Any = str(self.status[instance])
        return Result(
            problem=problem,
            method="exact",
            status=status,
            decision=decision,
            evaluation=evaluation,
            value=value,
            lower_bound=min(float(self.lower_bounds[instance]), value),
            certificate=Certificate(
                kind="exact",
                prices=dict(zip(sums.features, (float(p) for p in sums.numerator), strict=True)),
                multipliers=dict.fromkeys(sums.features, 0.0),
                unit_bounds=self.unit_bounds[instance, :size],
                tolerance=self.gap,
                text="every unit's range is covered by cells whose lower bounds are proved",
            ),
            message=f"one of {len(self)} instances solved together",
            seed=self.seed,
        )


class _Answers:
    """Arrays of a batch being filled."""

    def __init__(self, instances: int, most: int, gap: float | None, seed: int | None) -> None:
        self.instances, self.most, self.gap, self.seed = instances, most, gap, seed
        self.values, self.lower = np.full(instances, np.nan), np.full(instances, np.nan)
        self.status = np.full(instances, "infeasible", dtype="<U11")
        self.decision: dict[str, FloatArray] = {}
        self.unit_bounds = np.full((instances, most), np.nan)
        self.known: dict[int, Result] = {}
        self.latest: Result | None = None

    def together(self, which: npt.NDArray[np.int64], sums: list[Sums], cells: Any, sizes: npt.NDArray[np.int64]) -> Any:
        """Settle instances whose units are numbered one after the other; return those to be solved on their own."""
        gap = 1e-6 if self.gap is None else self.gap
        prices = np.repeat(np.stack([s.numerator for s in sums], axis=1), sizes, axis=1)
        if np.all(prices == prices[:, :1]):
            prices = prices[:, 0]
        response = CellsPriced(cells).respond(prices, gap=0.25 * gap)
        starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
        total = np.add.reduceat(response.features, starts, axis=1)
        bound = np.add.reduceat(response.lower_bound, starts)
        feasible = np.logical_and.reduceat(response.feasible, starts)
        limits = np.stack([s.limits for s in sums], axis=1)
        with np.errstate(invalid="ignore"):
            kept = np.all(total <= np.where(np.isfinite(limits), limits * (1.0 + ROUNDING), np.inf), axis=0)
        offset = np.array([s.numerator_offset for s in sums])
        below = np.array([s.denominator_offset for s in sums])
        value = (np.einsum("fi,fi->i", np.stack([s.numerator for s in sums], axis=1), total) + offset) / below
        lower = np.minimum((bound + offset) / below, value)
        done = feasible & kept & np.array([not s.is_ratio for s in sums])
        rows = which[done]
        self.values[rows], self.lower[rows] = value[done], lower[done]
        settled = value - lower <= gap * np.maximum(np.abs(value), 1e-12)
        self.status[rows] = np.where(settled, "optimal", "feasible")[done]
        inside = np.repeat(done, sizes)
        place = np.repeat(which, sizes)[inside]
        column = (np.arange(sizes.sum()) - np.repeat(starts, sizes))[inside]
        self.unit_bounds[place, column] = response.lower_bound[inside]
        for name, values in response.decision.items():
            array = self.decision.setdefault(name, np.full((self.instances, self.most), np.nan))
            array[place, column] = values[inside]
        # an instance whose units are infeasible is asked again only by who wants to know why
        return which[feasible & ~done]

    def alone(self, instance: int, problem: Problem) -> None:
        """Solve one instance, beginning with the prices of the one before where it is alike."""
        start = self.latest
        if start is not None and (
            start.problem.name != problem.name or len(start.problem.system) != len(problem.system)
        ):
            start = None
        result = solve(problem, method="exact", gap=self.gap, seed=self.seed, start=start, leaves=False)
        self.known[instance] = result
        if result.feasible:
            self.latest = result
        self.status[instance] = result.status
        if result.value is None or result.decision is None:
            return
        self.values[instance] = result.value
        self.lower[instance] = np.nan if result.lower_bound is None else result.lower_bound
        for name, values in result.decision.items():
            array = self.decision.setdefault(name, np.full((self.instances, self.most), np.nan))
            array[instance, : values.size] = values

    def batch(self, problem_of: Callable[[int], Problem]) -> ResultBatch:
        gap = 1e-6 if self.gap is None else self.gap
        return ResultBatch(
            values=self.values,
            lower_bounds=self.lower,
            status=self.status,
            decision=self.decision,
            gap=gap,
            seed=self.seed,
            problem_of=problem_of,
            known=self.known,
            unit_bounds=self.unit_bounds,
        )


def solve_many(
    problems: Problem | Sequence[Problem],
    *,
    gap: float | None = None,
    seed: int | None = 0,
    **stacked: Mapping[str, Any],
) -> ResultBatch:
    """Solve many instances with certificates, all at once where their structure allows it.

    Parameters
    ----------
    problems : sequence of Problem, or one Problem
        The instances; or one problem, of which instances differ in what `stacked` says.
    gap : float, optional
        Relative certified gap, as for `solve`.
    seed : int, optional
        Seed of every random draw.
    **stacked : dict of arrays, shape [instances, devices]
        By section of the system, fields per device that differ among instances:
        ``solve_many(problem, devices={"delay_budget": budgets}, radio={"gain": gains})``. A shape of [instances, 1]
        holds for all devices of an instance. This spares building a system for each.

    Returns
    -------
    ResultBatch
        Arrays over instances; indexing gives the `Result` of one.

    Raises
    ------
    InputError
        For an empty list, an unknown section or field, shapes that disagree, values out of range (the device is
        counted through all instances), or problems without a certificate.
    """
    if gap is not None and not (is_real(gap) and 0.0 < gap < 1.0):
        raise InputError(f"gap: {gap!r} must be a number between 0 and 1")
    if isinstance(problems, Problem):
        return _stacked(problems, stacked, gap, seed)
    if stacked:
        raise InputError(f"{next(iter(stacked))}: fields that differ can only be given with one problem")
    problems = list(problems)
    if not problems:
        raise InputError("problems: the list is empty")
    for i, problem in enumerate(problems):
        if not isinstance(problem, Problem):
            raise InputError(f"problems[{i}]: expected a Problem, got {type(problem).__name__}")
    answers = _Answers(len(problems), max(len(p.system) for p in problems), gap, seed)
    groups: dict[Any, list[tuple[int, Sums, Any]]] = {}
    rest: list[int] = []
    for i, problem in enumerate(problems):
        offered = problem.capabilities()
        if offered.sums is None or offered.selection is not None or not hasattr(offered.cells, "kin"):
            rest.append(i)
            continue
        cells: Any = offered.cells
        groups.setdefault((type(cells), offered.sums.features, cells.kin()), []).append((i, offered.sums, cells))
    for (kind, _, _), members in groups.items():
        which = np.array([i for i, _, _ in members])
        sizes = np.array([cells.units for _, _, cells in members])
        joined = kind.join([cells for _, _, cells in members])
        rest += list(answers.together(which, [sums for _, sums, _ in members], joined, sizes))
    for i in sorted(rest):
        answers.alone(int(i), problems[int(i)])
    return answers.batch(problems.__getitem__)


def _stacked(
    problem: Problem, stacked: Mapping[str, Mapping[str, Any]], gap: float | None, seed: int | None
) -> ResultBatch:
    """Solve instances of one problem."""
    system = problem.system
    size = len(system)
    sections = type(system).sections()
    given: dict[str, FloatArray] = {}
    for section, fields in stacked.items():
        if section not in sections:
            raise InputError(f"solve_many: unknown section '{section}'{nearest(section, sections)}")
        known = sections[section].fields_over("device")
        for name, values in fields.items():
            if name not in known:
                raise InputError(f"{section}.{name}: is no field per device{nearest(name, known)}")
            array = np.asarray(values, dtype=np.float64)
            if array.ndim != 2 or array.shape[1] not in (1, size):
                raise InputError(f"{section}.{name}: has shape {array.shape}, not (instances, {size})")
            given[name] = array
    counts = {name: array.shape[0] for name, array in given.items()}
    if not counts:
        raise InputError("solve_many: with one problem, say which fields differ, such as devices={'delay_budget': ...}")
    instances = next(iter(counts.values()))
    for name, count in counts.items():
        if count != instances or count == 0:
            raise InputError(f"{name}: is for {count} instances, others are for {instances}")
    changes = {name: np.broadcast_to(array, (instances, size)) for name, array in given.items()}

    def problem_of(instance: int) -> Problem:
        return problem.with_system(system.with_(**{name: array[instance] for name, array in changes.items()}))

    answers = _Answers(instances, size, gap, seed)
    stack: Any = getattr(problem, "stack", None)
    if stack is None:
        rest = np.arange(instances)
    else:
        sums, cells = stack(instances, changes)
        rest = answers.together(np.arange(instances), [sums] * instances, cells, np.full(instances, size))
    for i in rest:
        answers.alone(int(i), problem_of(int(i)))
    return answers.batch(problem_of)

"""What a problem is, and the structure it may offer to solvers.

A solver never knows a design. It asks `Problem.capabilities()` for structure objects and uses those it understands:

* `Sums`: objective and budgets are functions of a few sums over units, h(z) with z = sum_u phi_u(x_u); together
  with `Cells` this yields the *priced response*, from which exact, dual and ratio solvers are one program;
* `Cells`: given prices on the sums, each unit is a search over one real variable and an enumerated label, with a
  rigorous lower bound on every cell;
* `Priced`: the priced response itself, where a problem computes it in a way of its own;
* `Boxes`: units with a few variables each, whose functions take intervals, which bounds any box of them;
* `Shared`: a few variables common to all units, around `Boxes`;
* `Search`: a few complicating variables and a completion of the rest, for Bayesian optimization;
* `Blocks`: steps to alternate, in closed form or convex;
* `Selection`: units that may be left out, and what the number taken does to the objective;
* `Convex`: a whole problem that is a convex program;
* `Staged`: units that move from state to state, stage by stage, for backward induction;
* `Scenarios`: the problems of several systems, for one decision that must do for all;
* `Baseline`: what the design is compared with.

Without `Sums` and `Cells`, `Convex`, or `Staged`, there is no certificate, and no lower bound is claimed.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, Self

import numpy as np
import numpy.typing as npt

from jointopt.decision import Array, Decision
from jointopt.errors import InputError, is_real, nearest
from jointopt.models._array import namespace
from jointopt.system import FEASIBILITY_TOLERANCE, FloatArray, Scenario, System

if TYPE_CHECKING:
    import cvxpy

__all__ = [
    "FEASIBILITY_TOLERANCE",
    "Baseline",
    "Blocks",
    "Boxes",
    "Capabilities",
    "CellList",
    "Cells",
    "Conflict",
    "Convex",
    "CostToGo",
    "Evaluation",
    "Leaves",
    "Outer",
    "Priced",
    "Problem",
    "Response",
    "Scenarios",
    "Search",
    "SelectableCells",
    "Selection",
    "SelectionTree",
    "Shared",
    "SharedTree",
    "Staged",
    "Step",
    "Sums",
    "Variable",
    "range_slack",
]


@dataclass(frozen=True)
class Variable:
    """One decision variable: bounds of shape ``[devices]`` (or ``[1]`` on the common axis), SI."""

    name: str
    lower: FloatArray
    upper: FloatArray
    unit: str = ""
    kind: Literal["real", "integer", "binary"] = "real"
    axis: Literal["device", "common", "layer", "slot"] = "device"
    meaning: str = ""
    stepwise: bool = False
    """Whether what follows from it changes in steps only, so that derivatives say nothing."""

    def __post_init__(self) -> None:
        for end in ("lower", "upper"):
            value = np.atleast_1d(np.asarray(getattr(self, end), dtype=np.float64))
            object.__setattr__(self, end, value)
        if np.any(self.lower > self.upper):
            u = int(np.argmax(self.lower > self.upper))
            raise InputError(
                f"{self.name}[device {u}]: lower bound {self.lower[u]:g} is above upper bound {self.upper[u]:g}"
            )


def _plain(values: Array) -> FloatArray:
    """Values as a NumPy array, whatever a torch tensor's graph."""
    return np.asarray(values.detach() if hasattr(values, "detach") else values)


@dataclass(frozen=True)
class Evaluation:
    """A problem's functions at a decision (or a batch of decisions, shape ``[...]``).

    Attributes
    ----------
    objective : array, shape [...]
        What is minimised.
    parts : dict of arrays, shape [...]
        The terms of the objective.
    slack : dict of arrays, shape [..., devices] or [...]
        Budget minus use of every constraint, SI; at least 0 is feasible.
    scale : dict of arrays
        The size against which each slack is small (the budget).
    quantities : dict of arrays, shape [..., devices] or [...]
        Everything else worth knowing: delay, energy, packet_error, rate, payload_bits, ...
    """

    objective: Array
    parts: Mapping[str, Array]
    slack: Mapping[str, Array]
    scale: Mapping[str, Array]
    quantities: Mapping[str, Array]

    def violation(self) -> FloatArray:
        """Largest relative violation over constraints and devices, shape [...]; 0 when feasible."""
        worst: Any = 0.0
        for name, slack in self.slack.items():
            # what is no number is not kept
            relative = np.maximum(
                np.nan_to_num(-_plain(slack), nan=np.inf, posinf=np.inf, neginf=-np.inf) / _plain(self.scale[name]), 0.0
            )
            batch = np.ndim(self.objective)
            worst = np.maximum(worst, relative.max(axis=-1) if relative.ndim > batch else relative)
        return np.asarray(worst, dtype=np.float64)

    def feasible(self, tolerance: float = FEASIBILITY_TOLERANCE) -> npt.NDArray[np.bool_]:
        """Whether every constraint holds, shape [...]."""
        return self.violation() <= tolerance

    def broken(self, tolerance: float = FEASIBILITY_TOLERANCE) -> Iterator[tuple[str, int | None, float]]:
        """Yield (constraint, device or None, shortfall in SI) of every violated constraint of one decision."""
        for name, slack in self.slack.items():
            short = np.nan_to_num(-np.atleast_1d(_plain(slack)), nan=np.inf, posinf=np.inf, neginf=-np.inf)
            scale = np.broadcast_to(_plain(self.scale[name]), short.shape)
            for u in np.flatnonzero(short > tolerance * scale):
                yield name, (int(u) if np.ndim(slack) else None), float(short[u])


@dataclass(frozen=True)
class Conflict:
    """Why one unit cannot be feasible, and the smallest relaxations that would make it so.

    Each entry of `relax` is one alternative on its own: a budget's name and the least value that suffices with
    everything else as given (None where raising this budget alone cannot help). `factor` raises all budgets of
    the unit together. `irreducible` names budgets that cannot be met together but can without any one of them; for
    one unit with at most two budgets it follows from `relax`.
    """

    device: int | None
    binding: str
    relax: Mapping[str, float | None]
    budget: Mapping[str, float]
    factor: float | None
    text: str
    irreducible: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        told = self.irreducible or self.device is None or not 1 <= len(self.relax) <= 2
        if told or (self.factor is not None and self.factor <= 1.0):
            return
        names = tuple(self.relax)
        # a budget that all others together cannot make up for is short by itself
        alone = [name for name in names if all(self.relax[other] is None for other in names if other != name)]
        object.__setattr__(self, "irreducible", (alone[0],) if alone else names)


@dataclass(frozen=True)
class Sums:
    """Objective c + (a.z + a0)/(b.z + b0) and budgets z_j <= limit_j over the sums z of the units' features."""

    features: tuple[str, ...]
    numerator: FloatArray
    numerator_offset: float
    denominator: FloatArray
    denominator_offset: float
    limits: FloatArray
    constant: float = 0.0

    @property
    def is_ratio(self) -> bool:
        """Whether the objective is a true ratio."""
        return bool(np.any(self.denominator != 0.0))

    def objective(self, sums: FloatArray) -> float:
        """Return h(z)."""
        below = float(self.denominator @ sums) + self.denominator_offset
        return self.constant + (float(self.numerator @ sums) + self.numerator_offset) / below


@dataclass
class CellList:
    """Cells ``[low, high]`` of the complicating variable, one row each, with the data probed at both ends."""

    unit: npt.NDArray[np.int64]
    label: npt.NDArray[np.int64]
    low: FloatArray
    high: FloatArray
    data_low: FloatArray
    data_high: FloatArray

    def __len__(self) -> int:
        return int(self.unit.size)

    def take(self, index: Any) -> CellList:
        """Return some rows."""
        return CellList(
            self.unit[index],
            self.label[index],
            self.low[index],
            self.high[index],
            self.data_low[:, index],
            self.data_high[:, index],
        )

    @staticmethod
    def join(lists: list[CellList]) -> CellList:
        """Return all rows of several lists."""
        return CellList(
            np.concatenate([c.unit for c in lists]),
            np.concatenate([c.label for c in lists]),
            np.concatenate([c.low for c in lists]),
            np.concatenate([c.high for c in lists]),
            np.concatenate([c.data_low for c in lists], axis=1),
            np.concatenate([c.data_high for c in lists], axis=1),
        )


class Cells(Protocol):
    """Each unit's subproblem: one real variable x, one label; everything vectorised over rows.

    `units` numbers all units. The methods may be called from several threads, each with its own slice of units.
    """

    units: int

    def cover(self, prices: FloatArray, units: slice) -> CellList:
        """Return cells that cover every feasible (x, label) of the units.

        Cells whose value is nowhere below that of some end of a returned cell may be left out.
        """
        ...

    def probe(self, unit: Any, x: Any) -> FloatArray:
        """Return what `value` and `bound` need at a point, shape [rows of data, points] (the costly part)."""
        ...

    def value(self, prices: FloatArray, unit: Any, label: Any, x: Any, data: Any) -> FloatArray:
        """Return the least priced value at (x, label) over the remaining variables; inf where infeasible."""
        ...

    def bound(self, prices: FloatArray, cells: CellList) -> tuple[FloatArray, FloatArray]:
        """Return (lower bound, hint) of each cell; the bound is rigorous, inf where nothing is feasible."""
        ...

    def split(self, prices: FloatArray, cells: CellList, hint: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return the one or two points (equal where one) at which each cell is split, from `bound`'s hint."""
        ...

    def complete(self, prices: FloatArray, unit: Any, label: Any, x: Any) -> tuple[dict[str, FloatArray], FloatArray]:
        """Return the full decision and the features, shape [features, points], at (x, label)."""
        ...

    def capped(self, feature: int, caps: FloatArray) -> Cells:
        """Return the same units, each with feature `feature` at most `caps` [units] (every cap can be met)."""
        ...

    def least_violating(self, unit: Any) -> dict[str, FloatArray]:
        """Return the decision of units without a feasible point that exceeds their budgets least."""
        ...


@dataclass(frozen=True)
class Leaves:
    """Boxes that together cover all that the units can choose, each with a proved bound of its priced value.

    Attributes
    ----------
    names : tuple of str
        The coordinates; a label of `Cells` is the first of two.
    unit : int array, shape [boxes]
        Whose box it is.
    low, high : array, shape [coordinates, boxes]
        Ends of each box.
    bound : array, shape [boxes]
        Lower bound of the priced value over the feasible points of the box; inf where none is feasible.
    """

    names: tuple[str, ...]
    unit: npt.NDArray[np.int64]
    low: FloatArray
    high: FloatArray
    bound: FloatArray

    def __len__(self) -> int:
        return int(self.unit.size)

    @staticmethod
    def join(parts: list[Leaves]) -> Leaves:
        """Return all boxes of several (at least one), which have the same coordinates."""
        return Leaves(
            names=parts[0].names,
            unit=np.concatenate([p.unit for p in parts]),
            low=np.concatenate([p.low for p in parts], axis=1),
            high=np.concatenate([p.high for p in parts], axis=1),
            bound=np.concatenate([p.bound for p in parts]),
        )


@dataclass(frozen=True)
class SelectionTree:
    """Why a bound over selections holds: a tree of sets of selections, each bounded at a price of its own.

    A node is about the selections that take the units of state 1, leave out those of state -1, and have a mass within
    [low, high]; its bound is the one of `jointopt.solvers.selection` at its price, and holds for these. Nodes without a
    parent share the units decided beforehand, and their ranges of masses cover all that is possible. The children of
    a node decide further units of it, or none where it was bounded again at another price. Left out are selections out
    of order among interchangeable units (`Selection.kind`): of those, the first are taken. Hence

        lower_bound = min over nodes without children of the greatest bound among the node and its ancestors.

    Attributes
    ----------
    parent : int array, shape [nodes]
        Row of the node's parent; -1 for none.
    state : int8 array, shape [nodes, units]
        1 taken, -1 left out, 0 either.
    low, high : array, shape [nodes]
        Range of masses.
    price : array, shape [nodes]
        Price on the limited sum; nan where the units taken exceed the limit even with `least`.
    bound : array, shape [nodes]
        Bound at that price, without that of the ancestors; inf where no selection is left.
    prices : array, shape [prices]
        The prices used, sorted.
    unit_bounds : array, shape [prices, units]
        Lower bound of each unit's cost plus price times use; inf where it has no feasible decision.
    least : array, shape [units]
        Least use of the limited sum by each unit; those above the limit are left out from the start.
    """

    parent: npt.NDArray[np.int64]
    state: npt.NDArray[np.int8]
    low: FloatArray
    high: FloatArray
    price: FloatArray
    bound: FloatArray
    prices: FloatArray
    unit_bounds: FloatArray
    least: FloatArray

    def __len__(self) -> int:
        return int(self.parent.size)


@dataclass(frozen=True)
class Response:
    """Every unit's best decision at given prices, with a bound; arrays over units.

    Attributes
    ----------
    value : array, shape [units]
        Least priced value found; inf where a unit has no feasible decision.
    lower_bound : array, shape [units]
        Holds for the unit's least priced value.
    decision : dict of arrays, shape [units]
        Where the value is taken; the least violating decision where there is none.
    features : array, shape [features, units]
        What the unit adds to every sum; 0 where it has no feasible decision.
    cells : int
        Cells examined.
    leaves : Leaves, optional
        Why the bound holds; kept when asked for.
    """

    value: FloatArray
    lower_bound: FloatArray
    decision: Mapping[str, FloatArray]
    features: FloatArray
    cells: int
    leaves: Leaves | None = None

    @property
    def feasible(self) -> npt.NDArray[np.bool_]:
        """Units with a feasible decision."""
        return np.isfinite(self.value)


class Priced(Protocol):
    """Best decision of every unit at prices on the sums; what exact, dual, Pareto and streaming solvers share."""

    units: int

    def respond(
        self,
        prices: FloatArray,
        *,
        units: npt.NDArray[np.int64] | None = None,
        gap: float = 5e-7,
        stop: Callable[[], None] | None = None,
        keep: bool = False,
    ) -> Response:
        """Return the response at prices, shape [features], or [features, units] for one vector a unit.

        Parameters
        ----------
        prices : array
            Price of every sum.
        units : int array, optional
            Units asked for, by number, repeats allowed; all in order when not given. Every array of the answer is
            about these.
        gap : float
            Relative gap at which a unit is settled.
        stop : callable, optional
            Called now and then; an exception it raises ends the search.
        keep : bool
            Whether the leaves are wanted.
        """
        ...


class Boxes(Protocol):
    """Units with a few variables each, whose functions also take intervals: boxes can be bounded without a proof.

    `lower` and `upper` have shape [coordinates, units]; `integer` and `logarithmic` (how boxes are halved) one entry
    a coordinate.
    """

    units: int
    names: tuple[str, ...]
    lower: FloatArray
    upper: FloatArray
    integer: npt.NDArray[np.bool_]
    logarithmic: npt.NDArray[np.bool_]

    def derive(self, prices: FloatArray, unit: Any, x: FloatArray) -> FloatArray:
        """Return points [coordinates, rows] made better where a closed form knows how; the same where none does."""
        ...

    def terms(self, prices: FloatArray, unit: Any, x: Any) -> tuple[Array, list[Array]]:
        """Return (priced value, excess of every constraint over its limit, relative) at points or intervals.

        `prices` [features, rows], `unit` [rows], `x` one array or interval [rows] a coordinate; an excess of at most
        0 is feasible. Prices hold for each row on its own.
        """
        ...

    def complete(self, prices: FloatArray, unit: Any, x: FloatArray) -> tuple[dict[str, FloatArray], FloatArray]:
        """Return the full decision and the features [features, rows] at points [coordinates, rows]."""
        ...


class Shared(Protocol):
    """A few variables that all units share; between given ends the rest is `Sums` over `Boxes`, `Cells` or `Priced`.

    Each unit may then take its own value between the ends: a relaxation, exact where the ends meet. With an attribute
    `first`, a number, that variable is branched on until its ends meet, before the others.
    """

    names: tuple[str, ...]
    lower: FloatArray
    upper: FloatArray
    integer: npt.NDArray[np.bool_]

    def within(self, low: FloatArray, high: FloatArray) -> tuple[Sums, Boxes | Cells | Priced]:
        """Return the problem with the shared variables between `low` and `high`, shape [names].

        Where the ends differ it may be any relaxation of what lies between them.
        """
        ...

    def chosen(self, decision: Mapping[str, FloatArray]) -> FloatArray:
        """Return the values [names, units] that a relaxation's decision gave the shared variables."""
        ...

    def judge(self, decision: Mapping[str, FloatArray]) -> tuple[dict[str, FloatArray], float]:
        """Return the problem's own variables of such a decision, the shared ones averaged, and the objective there.

        The objective is inf where that is not feasible.
        """
        ...


@dataclass(frozen=True)
class SharedTree:
    """Parts of the ranges of shared variables that together cover them, each with a proved bound.

    Attributes
    ----------
    names : tuple of str
        The shared variables.
    low, high : array, shape [parts, variables]
        Ends of each part.
    bound : array, shape [parts]
        Lower bound of the objective over the feasible decisions of the part; inf where there is none.
    prices, multipliers : array, shape [parts, features]
        Prices (multipliers of the limits included) at which the bound follows from `Shared.within(low, high)`;
        of no meaning where the bound is inf.
    ratio : array, shape [parts]
        The ratio t at which N - t D was bounded; 0 where the objective is no ratio.
    """

    names: tuple[str, ...]
    low: FloatArray
    high: FloatArray
    bound: FloatArray
    prices: FloatArray
    multipliers: FloatArray
    ratio: FloatArray


class SelectableCells(Cells, Protocol):
    """Cells whose units can be taken apart, for problems with a `Selection`."""

    def take(self, index: Any) -> SelectableCells:
        """Return some units by number, repeats allowed; `prices` may then be one vector per unit, [features, units]."""
        ...


class Search(Protocol):
    """A few complicating variables and a completion of the rest; `jointopt.search.FlatSearch` holds all of them.

    All arrays are over the search's variables: as a rule one per unit.
    """

    name: str
    lower: FloatArray
    upper: FloatArray

    @property
    def logarithmic(self) -> bool | npt.NDArray[np.bool_]:
        """Real variables searched on a logarithmic scale: all or none, or one truth value each."""
        ...

    @property
    def kind(self) -> str | npt.NDArray[np.str_]:
        """``"real"``, ``"integer"`` or ``"binary"``: for all, or one each; a search without it is real."""
        ...

    @property
    def attribute(self) -> FloatArray | None:
        """One number per variable that a policy may depend on, such as the logarithm of the mean gain; or None."""
        ...

    def complete(self, x: FloatArray) -> Decision:
        """Return the best decision at x, shape ``[..., variables]``; the least violating one where none is feasible.

        It may change variables of whole numbers that allow nothing feasible; `locate` then tells the new ones.
        """
        ...

    def locate(self, decision: Decision) -> FloatArray:
        """Return the x that leads to a decision, or to one like it, shape ``[..., variables]``: for warm starts."""
        ...

    def unit_values(self, x: FloatArray) -> FloatArray | None:
        """Return values ``[..., units]`` whose sum is the objective (penalised where infeasible), or None."""
        ...


@dataclass(frozen=True)
class Step:
    """Some variables to choose with the others as they are, by the solver: along derivatives, unless it says otherwise.

    `convex`: the objective and the constraints are convex in these variables by the rules of disciplined convex
    programming, as `Problem.evaluate` writes them. `search`: what Bayesian optimization is to search, from a decision.
    """

    variables: tuple[str, ...]
    convex: bool = False
    search: Callable[[Decision], Search] | None = None


@dataclass(frozen=True)
class Blocks:
    """Steps that each improve some variables with the others fixed, from a start.

    The alternation rests when no variable moved, or when a sweep lowered the objective by less than `tolerance`
    (relative; 0: never for that reason), or after `max_iterations` sweeps. Then the `last` step is taken once.
    """

    start: Callable[[], Decision]
    steps: Mapping[str, Callable[[Decision], Decision] | Step]
    tolerance: float = 0.0
    max_iterations: int = 100
    last: Step | None = None


class Outer(Protocol):
    """The objective as a function of the summed cost and mass of the units that are taken."""

    def value(self, cost: Any, mass: Any) -> Any:
        """Return the objective, increasing in the cost; inf where the mass is not allowed."""
        ...

    def least(self, offset: Any, slope: Any, low: Any, high: Any) -> Any:
        """Return a lower bound of `value` over masses in [low, high] at cost offset + slope x mass; vectorised."""
        ...


@dataclass(frozen=True)
class Selection:
    """Units may be left out, and then count for nothing; `Sums` and `Cells` are about those that are taken.

    Attributes
    ----------
    mass : array, shape [units]
        What a taken unit adds to the mass (> 0), whatever its own decision.
    outer : Outer
        The objective.
    required, excluded : bool arrays, shape [units]
        Units that must be taken or left out.
    kind : int array, shape [units]
        Units of one number are interchangeable.
    """

    mass: FloatArray
    outer: Outer
    required: npt.NDArray[np.bool_]
    excluded: npt.NDArray[np.bool_]
    kind: npt.NDArray[np.int64]


class Convex(Protocol):
    """A convex program whose optimum is the problem's, normalised for a conic solver, and its proof in SI."""

    def program(self) -> cvxpy.Problem:
        """Return the program, compiled once."""
        ...

    def decision(self) -> Decision:
        """Return the decision at the program's solution, moved into the budgets where rounding left it outside."""
        ...

    def lower_bound(self, decision: Decision) -> float:
        """Return a bound on the objective over all decisions, proved from duality at a decision without the solver."""
        ...


class Staged(Protocol):
    """Units that go from state to state in stages, each on its own; the objective is the sum of what this costs.

    In every stage a unit takes an action, which costs something and leads to a state, in which to arrive costs
    something. States, actions and where these lead are the same for all units and stages; what a unit cannot do or be
    costs inf.
    """

    units: int
    stages: int
    states: int
    successor: npt.NDArray[np.int64]
    """State to which an action leads from a state, -1 where it leads nowhere; shape [actions, states]."""
    start: npt.NDArray[np.int64]
    """State of each unit before the first stage, shape [units]."""

    def moving(self, stage: int, action: int, units: slice) -> FloatArray:
        """Return the cost of an action, shape [units, 1], or [units, states] where it depends on the state left."""
        ...

    def arriving(self, stage: int, units: slice) -> FloatArray:
        """Return the cost of arriving in every state, shape [units, states]."""
        ...

    def complete(self, path: npt.NDArray[np.int64]) -> dict[str, FloatArray]:
        """Return the decision whose states after each stage are those of a path, shape [stages, units]."""
        ...


@dataclass(frozen=True)
class CostToGo:
    """Why a bound over the states of `Staged` holds: no action is cheaper than what this table says of its end.

    `values`, shape [stages, units, states]: for every stage, unit, state left, action and state reached,

        values[stage] <= moving + arriving + values[stage + 1] at the state reached, with 0 after the last stage,

    so that values[0] at the starts is no more than the cost of any path.
    """

    values: FloatArray


@dataclass(frozen=True)
class Scenarios:
    """The problems of several systems, one decision for all; what the objective is over them."""

    problems: tuple[Problem, ...]
    measure: Literal["worst", "mean", "chance"]


@dataclass(frozen=True)
class Baseline:
    """Something the design is compared with.

    One of: the problem with variables restricted, another problem (drawn with a generator) whose answer is judged by
    this one, or a rule that gives a decision.
    """

    meaning: str
    restrict: Mapping[str, Any] | None = None
    instead: Callable[[np.random.Generator], Problem] | None = None
    rule: Callable[[np.random.Generator], Decision | None] | None = None


@dataclass(frozen=True)
class Capabilities:
    """The structure a problem offers; every part optional."""

    sums: Sums | None = None
    cells: Cells | None = None
    priced: Priced | None = None
    boxes: Boxes | None = None
    shared: Shared | None = None
    scenarios: Scenarios | None = None
    staged: Staged | None = None
    search: Search | None = None
    blocks: Blocks | None = None
    selection: Selection | None = None
    convex: Convex | None = None
    baselines: Mapping[str, Baseline] = field(default_factory=dict)
    conflicts: Callable[[npt.NDArray[np.int64]], list[Conflict]] | None = None
    thresholds: Mapping[str, Problem] = field(default_factory=dict)
    """Fields of the system that limit all units together, each with the problem whose least value it must reach."""
    note: str = ""
    """Why there is no certificate, where there is none."""


def range_slack(variables: tuple[Variable, ...], decision: Mapping[str, Array]) -> dict[str, Array]:
    """Return how far inside its range each variable is, in the kind of its array; below 0 also off whole numbers."""
    slack = {}
    for variable in variables:
        value = decision[variable.name]
        xp = namespace(value)
        low, high = (xp.asarray(np.array(end)) for end in (variable.lower, variable.upper))
        inside = xp.minimum(value - low, high - value)
        if variable.kind != "real":
            broken = abs(value - xp.round(value))
            inside = xp.where(broken > 0, xp.minimum(inside, -broken), inside)
        slack[variable.name] = inside
    return slack


class Problem(ABC):
    """A system together with what can be chosen in it, what is minimised and what must hold."""

    name: str = "problem"
    minimises: str = ""
    system_type: ClassVar[type[Scenario]] = System
    """What kind of system the problem is about."""
    budgets: ClassVar[Mapping[str, str]] = {}
    """Quantities that the system limits for every device, to the fields that hold the limits."""
    overlooks: ClassVar[tuple[str, ...]] = ()
    """What neither the objective nor the constraints depend on, in the words of `jointopt.study.designs.OVERLOOKED`."""
    system: Any

    @property
    def training(self) -> Mapping[str, Any]:
        """Options with which `jointopt.federated.train` carries a decision out as the design's bound assumes."""
        return {}

    @classmethod
    def sample(
        cls, *, devices: int | None = None, seed: int = 0, data: str | None = None, tightness: float = 1.0
    ) -> Scenario:
        """Sample a system to solve: number of devices, whose network sizes, and what divides its budgets."""
        raise InputError(f"{cls.name}: no scenario can be sampled; give one")

    @property
    @abstractmethod
    def variables(self) -> tuple[Variable, ...]:
        """The decision variables with their bounds."""

    @abstractmethod
    def evaluate(self, decision: Decision) -> Evaluation:
        """Return objective, parts, slack and quantities at a decision or a batch; NumPy or torch."""

    def capabilities(self) -> Capabilities:
        """Return the structure a solver may use."""
        return Capabilities()

    def restrict(self, **ranges: Any) -> Self:
        """Return the same problem with variables fixed (a number) or narrowed (a pair)."""
        raise InputError(f"{self.name}: variables cannot be restricted")

    def limited(self, each: Mapping[str, float] | None = None, *, total: Mapping[str, float] | None = None) -> Self:
        """Return the same problem with some quantities limited further: ``limited({"delay": 0.2})``.

        Parameters
        ----------
        each : mapping of str to float
            Quantity, to the most that any device may have of it, SI; budgets of the system's own that are lower stay.
        total : mapping of str to float
            The same for the sum over the devices.

        Raises
        ------
        InputError
            For quantities that the problem cannot limit in this way, or limits out of range.
        """
        for over, limits in (("each device", each), ("all devices together", total)):
            for quantity, limit in (limits or {}).items():
                if over != "each device" or quantity not in self.budgets:
                    can = f"it limits {' and '.join(self.budgets)} of each device" if self.budgets else "it limits none"
                    raise InputError(f"limited: {self.name} cannot limit '{quantity}' of {over}; {can}")
                if not (is_real(limit) and 0.0 < limit < np.inf):
                    raise InputError(f"limited: {quantity}={limit!r} must be a finite number above 0")
        owners = {key: name for name, kind in self.system.sections().items() for key in kind.model_fields}
        changes = {}
        for quantity, limit in (each or {}).items():
            field_name = self.budgets[quantity]
            own = getattr(getattr(self.system, owners[field_name]), field_name)
            changes[field_name] = np.minimum(own, limit)
        return self.with_system(self.system.with_(**changes)) if changes else self

    def settings(self) -> dict[str, Any]:
        """Return the options beside the system that define the problem, for the record."""
        return {}

    @classmethod
    def from_settings(cls, system: Scenario, settings: Mapping[str, Any]) -> Self:
        """Return the problem that `settings` described of a system: options, and ranges as tables of two lists.

        Raises
        ------
        InputError
            For unknown options, or ranges the design does not allow.
        """
        ranges, options = {}, {}
        for name, value in settings.items():
            if isinstance(value, Mapping):
                if set(value) != {"lower", "upper"}:
                    raise InputError(f"settings.{name}: expected lower and upper, found {sorted(map(str, value))}")
                ranges[name] = (value["lower"], value["upper"])
            else:
                options[name] = value
        make: Any = cls
        known = list(inspect.signature(cls).parameters)
        for name in options:
            if name not in known:
                raise InputError(f"settings: '{cls.name}' does not know '{name}'{nearest(name, known)}")
        problem: Self = make(system, **options)
        return problem.restrict(**ranges) if ranges else problem

    def with_system(self, system: Scenario) -> Self:
        """Return the same design with the same options for another system.

        Raises
        ------
        InputError
            For a system in which ranges that were set on this problem are not allowed.
        """
        return type(self).from_settings(system, self.settings())

    def check(self, decision: Decision) -> None:
        """Raise `InputError` unless the decision names the problem's variables, for as many devices."""
        if not isinstance(decision, Decision):
            raise InputError(f"decision: expected a Decision, got {type(decision).__name__}")
        names = [v.name for v in self.variables]
        for name in decision:
            if name not in names:
                raise InputError(f"decision: unknown variable '{name}'{nearest(name, names)}")
        missing = [name for name in names if name not in decision]
        if missing:
            raise InputError(f"decision: '{missing[0]}' is missing")
        if decision.devices not in (1, len(self.system)):
            raise InputError(f"decision: was made for {decision.devices} devices, the scenario has {len(self.system)}")

    def deployed(self, decision: Decision) -> Decision:
        """Return what training carries out of a decision: all of it, and what follows from the system alone."""
        return decision

    def after(self, decision: Decision) -> Any:
        """Return the system as a decision leaves it, from which other designs go on."""
        return self.system

    def remarks(self, evaluation: Evaluation) -> list[str]:
        """Return what an evaluation says beside its value and parts, as lines of a summary."""
        known = evaluation.quantities
        if "contraction" not in known or "bound" not in known:
            return []
        return [
            f"A = {float(known['contraction']):.4g} (must stay below 1); "
            f"bound of the mean ||grad F||^2: {float(known['bound']):.4g}"
        ]

    def explain(self, decision: Decision) -> Any:
        """Return a table: which constraint is tight for whom, and why."""
        from jointopt.report import explain

        return explain(self, decision)

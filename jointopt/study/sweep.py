"""One quantity of a scenario swept, every split tried: what plots of trade-offs are drawn from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jointopt.errors import InputError, is_real, nearest
from jointopt.problem import FEASIBILITY_TOLERANCE, Problem
from jointopt.solvers import methods as known_methods
from jointopt.solvers import solve

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["best_method", "split_values", "sweep"]


def best_method(problem: Problem) -> str:
    """Return the method with a certificate that the problem's structure allows, or else the first it has."""
    known = list(known_methods(problem))
    return next((name for name in ("exact", "convex") if name in known), known[0])


def _joining(result: Any) -> dict[str, int]:
    """Return how many take part where that follows from the budgets: values compare only where as many do."""
    quantities = {} if result.evaluation is None else result.evaluation.quantities
    return {"taking_part": int(np.sum(quantities["takes_part"]))} if "takes_part" in quantities else {}


def sweep(
    problem: Problem,
    field: str,
    factors: Sequence[float],
    *,
    methods: Sequence[str] | None = None,
    seed: int = 0,
    solve_options: Mapping[str, Mapping[str, Any]] | None = None,
    report: Callable[[str], Any] | None = None,
) -> pd.DataFrame:
    """Solve a problem with one field of its scenario multiplied by each factor, by every method.

    Parameters
    ----------
    problem : Problem
        The design with its system; its settings are kept. Baselines may read their own values off the system.
    field : str
        Any numeric field of the scenario, such as ``"delay_budget"``.
    factors : list of float
        What the field is multiplied by, each above 0.
    methods : list of str, optional
        The certified method alone when not given.
    seed : int
        Seed of methods that draw.
    solve_options : mapping, optional
        Further options by method.
    report : callable, optional
        Told one line per solve.

    Returns
    -------
    DataFrame
        One row per factor and method: `factor`, the field's mean value (column of its name), `method`, `status`,
        `value` and `lower_bound` (NaN where there is none); `taking_part` where who takes part follows from the
        budgets.
    """
    import pandas as pd

    system = problem.system
    owners = {key: name for name, kind in system.sections().items() for key in kind.model_fields}
    if field not in owners or getattr(system, owners[field]) is None:
        raise InputError(f"sweep: unknown field '{field}'{nearest(field, owners)}")
    base = getattr(getattr(system, owners[field]), field)
    if not (is_real(base) or isinstance(base, np.ndarray)):
        raise InputError(f"sweep: '{field}' is no number")
    for factor in factors:
        if not (is_real(factor) and np.isfinite(factor) and factor > 0):
            raise InputError(f"sweep: factor {factor!r} must be a number above 0")
    names = list(methods) if methods is not None else [best_method(problem)]
    rows = []
    for factor in factors:
        changed = type(problem).from_settings(system.with_(**{field: base * factor}), problem.settings())
        for name in names:
            result = solve(changed, method=name, **{"seed": seed, **dict((solve_options or {}).get(name, {}))})
            if report is not None:
                report(f"{field} x {factor:g}: {name}")
            rows.append(
                {
                    "factor": float(factor),
                    field: float(np.mean(base * factor)),
                    "method": name,
                    "status": result.status,
                    "value": np.nan if result.value is None else result.value,
                    "lower_bound": np.nan if result.lower_bound is None else result.lower_bound,
                    **_joining(result),
                }
            )
    return pd.DataFrame(rows)


def split_values(problem: Problem, *, method: str | None = None) -> pd.DataFrame:
    """Solve a co-inference problem with every split fixed.

    Returns
    -------
    DataFrame
        One row per split and device: `split`, `device`, `feasible`, `pruning_ratio` (the mean where it is chosen per
        layer), `distortion`; NaN where the split is not feasible for the device.
    """
    import pandas as pd

    ranges = {v.name: (v.lower, v.upper) for v in problem.variables}
    if "split" not in ranges:
        raise InputError(f"split_values: '{problem.name}' chooses no split")
    size = len(problem.system)
    rows = []
    for split in problem.system.network.choices:
        if np.any(split < ranges["split"][0]) or np.any(split > ranges["split"][1]):
            continue
        result = solve(problem.restrict(split=float(split)), method=method or best_method(problem))
        kept = np.zeros(size, dtype=bool)
        ratio = distortion = np.full(size, np.nan)
        if result.decision is not None and result.evaluation is not None:
            broken = {u for _, u, _ in result.evaluation.broken(FEASIBILITY_TOLERANCE)}
            kept = np.array([u not in broken and None not in broken for u in range(size)])
            chosen = np.asarray(result.decision["pruning_ratio"])
            ratio = chosen if chosen.shape == (size,) else np.full(size, chosen.mean())
            each = result.evaluation.quantities.get("distortion", result.evaluation.objective)
            distortion = np.broadcast_to(np.asarray(each), (size,))
        rows += [
            {
                "split": int(split),
                "device": u,
                "feasible": bool(kept[u]),
                "pruning_ratio": float(ratio[u]) if kept[u] else np.nan,
                "distortion": float(distortion[u]) if kept[u] else np.nan,
            }
            for u in range(size)
        ]
    return pd.DataFrame(rows)

"""What synthetic samples cost and save, by the number of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from jointopt.errors import InputError, is_whole
from jointopt.problems.feddpq import FedDPQ
from jointopt.solvers import solve

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["level_tradeoff"]


def level_tradeoff(problem: FedDPQ, *, count: int = 21, gap: float = 1e-3) -> pd.DataFrame:
    """Solve the design at augmentation levels over its range, everything else chosen anew at each.

    Parameters
    ----------
    problem : FedDPQ
        With its ranges.
    count : int
        Levels, equally spaced; each is moved to the nearest that makes a difference.
    gap : float
        Relative certified gap of every solution.

    Returns
    -------
    DataFrame
        One row per level: `augmentation_level`, `synthetic_samples`, `rounds` (inf where the target is out of reach),
        `generation`, `computing`, `upload` and `energy` [J].

    Raises
    ------
    InputError
        For another problem, or fewer than two levels.
    """
    import pandas as pd

    if not isinstance(problem, FedDPQ):
        raise InputError(f"level_tradeoff: expected a FedDPQ problem, got {type(problem).__name__}")
    if problem.objective != "energy":
        raise InputError(f"level_tradeoff: the objective must be 'energy', found '{problem.objective}'")
    if not (is_whole(count) and count >= 2):
        raise InputError(f"level_tradeoff: count must be a whole number of at least 2, found {count!r}")
    known = problem.levels
    wanted = np.linspace(known[0], known[-1], count)
    chosen = np.unique([known[np.argmin(np.abs(known - level))] for level in wanted])
    rows: list[dict[str, Any]] = []
    for level in chosen:
        result = solve(problem.restrict(augmentation_level=float(level)), gap=gap)
        row: dict[str, Any] = {"augmentation_level": float(level), "rounds": np.inf}
        if result.evaluation is not None:
            row["synthetic_samples"] = float(np.sum(result.evaluation.quantities["synthetic_samples"]))
        if result.feasible and result.evaluation is not None:
            row |= {name: float(value) for name, value in result.evaluation.parts.items()}
            row |= {"rounds": float(result.evaluation.quantities["rounds"]), "energy": result.value}
        rows.append(row)
    columns = ["augmentation_level", "synthetic_samples", "rounds", "generation", "computing", "upload", "energy"]
    return pd.DataFrame(rows, columns=columns)

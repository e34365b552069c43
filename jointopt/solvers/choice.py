"""One candidate per unit, at least cost, with every limit on summed uses kept.

The linear relaxation has a solution in which at most as many units are in part as there are limits. Where units are
many, multipliers on the candidates alone say which units are undecided; only these enter the program, the others take
their best candidate. Units in part are rounded together, and what is left of the limits goes where it gains most.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import LinearConstraint, linprog, milp
from scipy.sparse import coo_array, csr_array, vstack

from jointopt.solvers.dual import Cuts, climb
from jointopt.system import FloatArray

__all__ = ["choose", "undecided"]

UNDECIDED = 600
"""Units that enter the linear program."""
PAIRED = 400
"""Switches of one unit that are tried in pairs."""
FEW = 40
"""Units whose choices an integer program settles."""
TOGETHER = 20_000
"""Combinations of candidates tried for the units in part."""


def choose(
    cost: FloatArray,
    use: FloatArray,
    limits: FloatArray,
    start: FloatArray | None = None,
    *,
    whole: bool = False,
    enough: float = 0.0,
) -> npt.NDArray[np.int64] | None:
    """Return the candidate of every unit, or None where none was found that keeps the limits.

    Parameters
    ----------
    cost : array, shape [units, candidates]
        Cost; inf where there is no such candidate.
    use : array, shape [limits, units, candidates]
        What a candidate takes.
    limits : array, shape [limits]
        Most that all may take together.
    start : array, shape [limits], optional
        Multipliers to begin with.
    whole : bool
        Whether a small integer program may improve on rounding (much slower).
    enough : float
        Distance from the least possible cost at which to stop.
    """
    units = cost.shape[0]
    use = np.where(np.isfinite(cost), use, 0.0)
    prices = _multipliers(cost, use, limits, start)
    chosen = np.argmin(_reduced(cost, use, prices), axis=1)
    order = np.argsort(_margin(cost, use, prices), kind="stable")
    if enough > 0.0:
        # switches alone are often enough, and take no program
        some = np.sort(order[: min(UNDECIDED, units)])
        rest = np.setdiff1d(np.arange(units), some, assume_unique=True)
        room = limits - use[:, rest, chosen[rest]].sum(axis=1)
        trial, everyone = chosen.copy(), np.arange(units)
        least = float(_reduced(cost, use, prices).min(axis=1).sum() - prices @ limits)
        for improve in (_moves, _pairs):
            trial[some] = improve(cost[some], use[:, some], room, prices, trial[some])
            kept = bool(np.all(use[:, everyone, trial].sum(axis=1) <= limits))
            if kept and cost[everyone, trial].sum() <= least + enough:
                return trial
    for count in dict.fromkeys((min(UNDECIDED, units), min(20 * UNDECIDED, units))):
        some = np.sort(order[:count])
        rest = np.setdiff1d(np.arange(units), some, assume_unique=True)
        room = limits - use[:, rest, chosen[rest]].sum(axis=1)
        found = _relaxed(cost[some], use[:, some], room, prices, whole)
        if found is not None:
            chosen[some] = found
            return chosen
    return None


def undecided(cost: FloatArray, use: FloatArray, prices: FloatArray, count: int) -> npt.NDArray[np.int64]:
    """Return the units whose best two candidates are closest at the multipliers."""
    return np.sort(np.argsort(_margin(cost, use, prices), kind="stable")[:count])


def _reduced(cost: FloatArray, use: FloatArray, prices: FloatArray) -> FloatArray:
    out: FloatArray = cost + np.tensordot(prices, use, axes=1)
    return out


def _margin(cost: FloatArray, use: FloatArray, prices: FloatArray) -> FloatArray:
    """By how much the best candidate of each unit is ahead of the next that differs from it."""
    reduced = _reduced(cost, use, prices)
    first = np.argmin(reduced, axis=1)[:, None]
    here = np.take_along_axis(cost, first, axis=1)
    same = cost == here
    for resource in use:
        same &= resource == np.take_along_axis(resource, first, axis=1)
    best = np.take_along_axis(reduced, first, axis=1)[:, 0]
    return np.where(same, np.inf, reduced).min(axis=1, initial=np.inf) - best


def _multipliers(cost: FloatArray, use: FloatArray, limits: FloatArray, start: FloatArray | None) -> FloatArray:
    """Multipliers of the limits for these candidates alone."""
    size = np.maximum(np.abs(limits), 1e-300)
    worth = max(float(np.abs(cost.min(axis=1)).sum()), 1e-300)
    everyone = np.arange(cost.shape[0])

    def evaluate(prices: FloatArray) -> tuple[float, float, FloatArray]:
        pick = np.argmin(_reduced(cost, use, prices), axis=1)
        total, slope = float(cost[everyone, pick].sum()), use[:, everyone, pick].sum(axis=1) - limits
        return total + float(prices @ slope), total, slope

    nothing = np.zeros(limits.size)
    prices, _, _ = climb(
        evaluate,
        Cuts(worth / size),
        nothing if start is None else start,
        tolerance=lambda best: 1e-9 * abs(best),
        steps=60,
    )
    return prices


def _relaxed(
    cost: FloatArray, use: FloatArray, room: FloatArray, prices: FloatArray, whole: bool
) -> npt.NDArray[np.int64] | None:
    """Solve the linear relaxation for some units and round it."""
    unit, candidate = np.nonzero(np.isfinite(cost))
    if unit.size == 0:
        return None
    reduced = _reduced(cost, use, prices)[unit, candidate]
    size = np.maximum(np.abs(room), np.abs(use).sum(axis=(1, 2)) / max(unit.size, 1) + 1e-300)
    worth = max(float(np.abs(cost[unit, candidate]).max()), 1e-300)
    rows = vstack(
        [csr_array(use[j, unit, candidate][None] / size[j]) for j in range(room.size)],
        format="csr",
    )
    one = coo_array((np.ones(unit.size), (unit, np.arange(unit.size))), shape=(cost.shape[0], unit.size)).tocsr()
    solve: Any = linprog
    answer = solve(
        cost[unit, candidate] / worth,
        A_ub=rows,
        b_ub=room / size,
        A_eq=one,
        b_eq=np.ones(cost.shape[0]),
        method="highs",
    )
    if answer.x is None:
        return None
    share = np.zeros(cost.shape)
    share[unit, candidate] = answer.x
    chosen = np.argmax(share, axis=1)
    part = np.flatnonzero(share.max(axis=1) < 1.0 - 1e-7)
    table = np.full(cost.shape, np.inf)
    table[unit, candidate] = reduced
    everyone = np.arange(cost.shape[0])
    if part.size:
        chosen = _together(cost, use, room, table, chosen, part)
    chosen = _pairs(cost, use, room, prices, _moves(cost, use, room, prices, chosen))
    kept = bool(np.all(use[:, everyone, chosen].sum(axis=1) <= room))
    best = float(cost[everyone, chosen].sum()) if kept else np.inf
    bound = float(answer.fun) * worth
    few = cost.shape[0] <= FEW
    if ((whole and few) or not kept) and best - bound > 1e-7 * max(abs(bound), 1e-300):
        other = _whole(cost, use, room, table, share, chosen, size, worth)
        if other is not None and float(cost[everyone, other].sum()) < best:
            chosen, kept = other, True
    return chosen if kept else None


def _together(
    cost: FloatArray,
    use: FloatArray,
    room: FloatArray,
    reduced: FloatArray,
    chosen: npt.NDArray[np.int64],
    part: npt.NDArray[np.int64],
) -> npt.NDArray[np.int64]:
    """Choose for the units in part all at once: the cheapest combination that fits."""
    part = part[:8]
    width = max(2, min(cost.shape[1], int(TOGETHER ** (1.0 / part.size))))
    choices = [np.argsort(reduced[u], kind="stable")[: min(width, int(np.isfinite(reduced[u]).sum()))] for u in part]
    combined = np.array(list(product(*choices)), dtype=np.int64)
    others = np.setdiff1d(np.arange(cost.shape[0]), part)
    left = room - use[:, others, chosen[others]].sum(axis=1)
    taken = use[:, part[None], combined].sum(axis=2)
    total = np.where(np.all(taken <= left[:, None], axis=0), cost[part[None], combined].sum(axis=1), np.inf)
    best = int(np.argmin(total))
    out = chosen.copy()
    if np.isfinite(total[best]):
        out[part] = combined[best]
    return out


def _moves(
    cost: FloatArray, use: FloatArray, room: FloatArray, prices: FloatArray, chosen: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """Switch one unit at a time: first until the limits are kept, then as long as it gains."""
    everyone = np.arange(cost.shape[0])
    chosen = chosen.copy()
    size = np.maximum(np.abs(room), 1e-300)
    for _ in range(4 * cost.shape[0] + 50):
        change = cost - cost[everyone, chosen][:, None]
        more = use - use[:, everyone, chosen][:, :, None]
        total = use[:, everyone, chosen].sum(axis=1)
        over = np.maximum(total - room, 0.0) / size
        after = np.maximum(total[:, None, None] + more - room[:, None, None], 0.0) / size[:, None, None]
        if np.any(over > 0.0):
            relief = over.sum() - after.sum(axis=0)
            with np.errstate(divide="ignore", invalid="ignore"):
                worse = np.maximum(change + np.tensordot(prices, more, axes=1), 0.0)
                score = np.where(relief > 0.0, worse / relief, np.inf)
        else:
            fits = np.all(after <= 0.0, axis=0)
            score = np.where(fits & (change < -1e-12 * np.abs(cost[everyone, chosen]).sum()), change, np.inf)
        unit, candidate = np.unravel_index(int(np.argmin(score)), score.shape)
        if not np.isfinite(score[unit, candidate]):
            break
        chosen[unit] = candidate
    return chosen


def _pairs(
    cost: FloatArray, use: FloatArray, room: FloatArray, prices: FloatArray, chosen: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """Switch two units at a time as long as that gains, among the switches that lose least at the multipliers."""
    everyone = np.arange(cost.shape[0])
    chosen = chosen.copy()
    for _ in range(100):
        left = room - use[:, everyone, chosen].sum(axis=1)
        if np.any(left < 0.0):
            break
        change = cost - cost[everyone, chosen][:, None]
        more = use - use[:, everyone, chosen][:, :, None]
        with np.errstate(invalid="ignore"):
            loss = np.where(np.isfinite(cost), change + np.tensordot(prices, more, axes=1), np.inf)
        loss[everyone, chosen] = np.inf
        count = min(PAIRED, int(np.isfinite(loss).sum()))
        if count < 2:
            break
        flat = np.argpartition(loss.ravel(), count - 1)[:count]
        unit, candidate = np.unravel_index(np.sort(flat), loss.shape)
        gain, takes = change[unit, candidate], more[:, unit, candidate]
        # who comes first gains; the other may lose
        both = gain[:, None] + gain[None]
        fits = (gain[:, None] < 0.0) & (both < -1e-9 * np.abs(cost[everyone, chosen]).sum() / everyone.size)
        fits &= unit[:, None] != unit[None]
        for takes_one, free in zip(takes, left, strict=True):
            fits &= takes_one[:, None] + takes_one[None] <= free
        if not fits.any():
            break
        first, second = np.unravel_index(int(np.argmin(np.where(fits, both, np.inf))), both.shape)
        chosen[unit[first]], chosen[unit[second]] = candidate[first], candidate[second]
    return chosen


def _whole(
    cost: FloatArray,
    use: FloatArray,
    room: FloatArray,
    reduced: FloatArray,
    share: FloatArray,
    chosen: npt.NDArray[np.int64],
    size: FloatArray,
    worth: float,
) -> npt.NDArray[np.int64] | None:
    """Choose whole candidates for the least decided units by a small integer program, the others as they are."""
    count = min(FEW, cost.shape[0])
    two = np.partition(reduced, 1, axis=1)[:, :2] if cost.shape[1] > 1 else np.zeros((cost.shape[0], 2))
    with np.errstate(invalid="ignore"):
        margin = np.nan_to_num(two[:, 1] - two[:, 0], nan=np.inf)
    margin[share.max(axis=1) < 1.0 - 1e-7] = -1.0
    some = np.argsort(margin, kind="stable")[:count]
    others = np.setdiff1d(np.arange(cost.shape[0]), some)
    left = room - use[:, others, chosen[others]].sum(axis=1)
    unit, candidate = np.nonzero(np.isfinite(cost[some]))
    one = coo_array((np.ones(unit.size), (unit, np.arange(unit.size))), shape=(count, unit.size)).tocsr()
    rows = csr_array(use[:, some[unit], candidate] / size[:, None])
    # a limit on nodes, not on time: the same program has the same answer
    solve: Any = milp
    answer = solve(
        cost[some[unit], candidate] / worth,
        integrality=np.ones(unit.size),
        bounds=(0.0, 1.0),
        constraints=[LinearConstraint(one, 1.0, 1.0), LinearConstraint(rows, -np.inf, left / size)],
        options={"node_limit": 200, "mip_rel_gap": 1e-9},
    )
    if answer.x is None:
        return None
    out = chosen.copy()
    taken = answer.x > 0.5
    out[some[unit[taken]]] = candidate[taken]
    everyone = np.arange(cost.shape[0])
    return out if np.all(use[:, everyone, out].sum(axis=1) <= room) else None

"""FEEL written by hand for other solvers: for IPOPT through CasADi, and for SCIP.

Both use the logarithms of the kept fraction, of the share of the band, of the SNR and of the computing share of the
deadline. With the selection given, constraints are convex there; the uploading share is what the deadline leaves.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from jointopt.decision import Decision
from jointopt.problems.feel import FEEL
from jointopt.problems.feel_cells import LN2, FEELCells
from jointopt.system import FloatArray

MARGIN = 1e-10
"""Share of a constraint that is kept free, so that what IPOPT ends with is feasible."""
LOWEST = -12.0
"""Least logarithm of a share or an SNR."""
IDLE = 0.02
"""What a client left out still pays for band in the relaxation, so that its band stays near what it would need."""
SURPRISE = 0.03
"""Least probability with which a drawn selection departs from the relaxed one in a client."""
DRAWN = 3
"""Selections drawn from each relaxed solution of IPOPT, beside the rounded one."""


def coefficients(cells: FEELCells) -> FloatArray:
    """The numbers of every client that enter the constraints and the cost, shape [12, clients]; all normalised."""
    c = cells.client
    T, E = c.delay_budget, c.energy_budget
    ones = np.ones(cells.units)
    return np.stack(
        [
            ones * c.bits_once / (c.band * T),
            ones * c.bits_each / (c.band * T),
            c.cycles_once / (c.frequency_max * T),
            c.cycles_each / (c.frequency_max * T),
            np.log(c.band / (c.gain * c.power_max)),
            # energy of computing within the whole deadline at the highest frequency's cycles, as a share of the budget
            c.capacitance * (c.frequency_max * T) ** 3 / (T**2 * E),
            c.power_max * T / E,
            cells.weight,
            cells.gap_once,
            cells.gap_each,
            ones * cells.smooth,
            ones * cells.masked,
        ]
    )


@dataclass(frozen=True)
class Attempt:
    """The best of many starts of IPOPT, judged by the problem itself."""

    value: float
    decision: Decision | None
    solves: int
    feasible: int
    fixed_seconds: float
    """Least time of a solution with the selection fixed."""


class Ipopt:
    """FEEL for one number of clients, compiled once; every system of that size is a set of parameters."""

    def __init__(self, clients: int, law: str) -> None:
        import casadi as ca

        self.clients = clients
        x, p, offset = ca.SX.sym("x", clients, 5), ca.SX.sym("p", clients, 12), ca.SX.sym("offset")
        idle = ca.SX.sym("idle")
        a, kept, band, snr, compute = (x[:, i] for i in range(5))
        bits_once, bits_each, work_once, work_each, power, strength, sending = (p[:, i] for i in range(7))
        weight, gap_once, gap_each, smooth, masked = (p[:, i] for i in range(7, 12))
        s = ca.exp(kept)
        upload, work = 1.0 - ca.exp(compute), work_once + work_each * s
        rate = ca.log1p(ca.exp(snr)) / LN2
        error = 1.0 - s * (1.0 - kept + 0.5 * kept**2) if law == "laplace" else 1.0 - s
        cost = weight * (gap_once + gap_each * s + smooth * error + masked * (1.0 - s))
        mass = ca.dot(weight, a)
        value = ca.dot(a + idle, cost) / mass + offset * (1.0 - mass) ** 2
        strong = band + snr + power
        # all at most 0
        rows = ca.vertcat(
            ca.log(bits_once + bits_each * s) - band - ca.log(upload) - ca.log(rate),
            ca.log(work) - compute,
            strong,
            strength * work**3 * ca.exp(-2.0 * compute) + sending * ca.exp(strong) * upload - 1.0,
            ca.dot(a + idle, ca.exp(band)) - 1.0,
        )
        program = {"x": ca.vec(x), "p": ca.vertcat(ca.vec(p), offset, idle), "f": value, "g": rows}
        options = {
            "print_time": False,
            "error_on_fail": False,
            "show_eval_warnings": False,
            "ipopt.print_level": 0,
            "ipopt.sb": "yes",
            "ipopt.constr_viol_tol": MARGIN,
            "ipopt.bound_relax_factor": 0.0,
            "ipopt.honor_original_bounds": "yes",
            "ipopt.mu_strategy": "monotone",
            "ipopt.fixed_variable_treatment": "make_parameter",
        }
        # the relaxation is only there to be rounded
        self.relaxed, self.fixed = (
            ca.nlpsol("feel", "ipopt", program, options | {"ipopt.tol": tolerance, "ipopt.max_iter": most})
            for tolerance, most in ((1e-4, 250), (1e-9, 200))
        )

    def minimize(self, problem: FEEL, starts: int, seed: int) -> Attempt:
        """Search from many starts: half from points drawn with the selection relaxed, half from drawn selections.

        A relaxed solution is rounded, and selections are drawn from it as from probabilities; the rest is solved again
        with each of them.
        """
        search = _IpoptSearch(self, problem, np.random.default_rng(seed))
        for start in range(starts):
            if start % 2:
                search.fixed(search.drawn(np.full(self.clients, search.rng.uniform(0.3, 1.0))), search.point())
            else:
                search.relaxed()
        return Attempt(search.value, search.decision, search.solves, search.feasible, search.fastest)


class _IpoptSearch:
    def __init__(self, ipopt: Ipopt, problem: FEEL, rng: np.random.Generator) -> None:
        self.ipopt, self.problem, self.rng = ipopt, problem, rng
        self.cells = FEELCells(problem)
        self.numbers = coefficients(self.cells)
        self.parameters = np.r_[self.numbers.ravel(), 8.0 * problem.system.bound.gradient_offset]
        ones = np.ones(self.cells.units)
        fits = self.cells.fits & (problem.ranges["selected"][1] > 0.5)
        self.least_band = np.where(fits, np.exp(self.cells.least_log_bandwidth()) / self.cells.client.band, np.inf)
        # [5, clients], clients running fastest, as CasADi stacks columns
        self.low = np.stack([0.0 * ones, np.log(self.cells.least), *[LOWEST * ones] * 3])
        self.high = np.stack([fits + 0.0, np.log(self.cells.most), 0.0 * ones, 25.0 * ones, -1e-9 * ones])
        self.fits = fits
        self.value, self.decision, self.solves, self.feasible = np.inf, None, 0, 0
        self.tried: set[bytes] = set()
        self.fastest = np.inf

    def point(self) -> FloatArray:
        """A point drawn within the bounds, near which the constraints can be kept."""
        rng, n = self.rng, self.cells.units
        kept = self.low[1] * rng.uniform(0.3, 1.0, n) + self.high[1] * 0.3 * rng.random(n)
        kept = np.clip(kept, self.low[1], self.high[1])
        share = rng.dirichlet(np.full(n, 2.0))
        compute = np.log(rng.uniform(0.1, 0.7, n))
        return np.stack([rng.uniform(0.2, 1.0, n) * self.fits, kept, np.log(share), rng.uniform(0.0, 4.0, n), compute])

    def drawn(self, chance: FloatArray) -> FloatArray:
        """A selection drawn from probabilities, as many in a random order as fit into the band."""
        taken = np.zeros(self.cells.units, dtype=bool)
        room = 1.0
        for k in self.rng.permutation(np.flatnonzero(self.rng.random(self.cells.units) < chance)):
            if self.least_band[k] <= room:
                taken[k], room = True, room - self.least_band[k]
        return taken

    def relaxed(self) -> None:
        """Solve with the selection relaxed, then for selections made from it."""
        point = self._solve(self.point(), self.low, self.high, self.fits, IDLE)
        share = np.clip(point[0], 0.0, 1.0)
        order = np.argsort(-share, kind="stable")
        rounded = np.zeros(self.cells.units, dtype=bool)
        room = 1.0
        for k in order[share[order] >= 0.5]:
            if self.least_band[k] <= room:
                rounded[k], room = True, room - self.least_band[k]
        self.fixed(rounded, point)
        for _ in range(DRAWN):
            self.fixed(self.drawn(np.clip(share, SURPRISE, 1.0 - SURPRISE)), point)

    def fixed(self, taken: Any, start: FloatArray) -> None:
        """Solve with the selection fixed and judge the result; a selection is solved once."""
        if not taken.any() or taken.tobytes() in self.tried:
            return
        self.tried.add(taken.tobytes())
        start = start.copy()
        start[0] = taken
        low, high = (np.where(taken, bound, start) for bound in (self.low, self.high))
        low[0] = high[0] = taken
        begun = time.perf_counter()
        point = self._solve(start, low, high, taken)
        self.fastest = min(self.fastest, time.perf_counter() - begun)
        self._judge(taken, point)

    def _solve(self, start: FloatArray, low: FloatArray, high: FloatArray, kept: Any, idle: float = 0.0) -> FloatArray:
        """Run IPOPT; only the constraints of the clients in `kept` are asked for."""
        self.solves += 1
        most = np.where(np.r_[np.tile(kept, 4), True], -MARGIN, np.inf)
        answer = (self.ipopt.relaxed if idle else self.ipopt.fixed)(
            x0=start.ravel(), p=np.r_[self.parameters, idle], lbx=low.ravel(), ubx=high.ravel(), lbg=-np.inf, ubg=most
        )
        return np.asarray(answer["x"]).reshape(5, -1)

    def _judge(self, taken: Any, point: FloatArray) -> None:
        client = self.cells.client
        _, kept, band, snr, compute = point
        cycles = client.cycles_once + client.cycles_each * np.exp(kept)
        frequency = np.minimum(cycles / (client.delay_budget * np.exp(compute)), client.frequency_max)
        power = np.minimum(np.exp(band + snr) * client.band / client.gain, client.power_max)
        decision = Decision(
            {
                "selected": taken + 0.0,
                "pruning_ratio": np.clip(1.0 - np.exp(kept), *self.problem.ranges["pruning_ratio"]),
                "bandwidth": np.where(taken, np.exp(band) * client.band, 0.0),
                "frequency": np.where(taken, frequency, 0.0),
                "power": np.where(taken, power, 0.0),
            }
        )
        evaluation = self.problem.evaluate(decision)
        if not bool(evaluation.feasible()):
            return
        self.feasible += 1
        if float(evaluation.objective) < self.value:
            self.value, self.decision = float(evaluation.objective), decision


@dataclass(frozen=True)
class Proved:
    """What SCIP found and proved within its time."""

    value: float
    bound: float
    seconds: float


def scip(problem: FEEL, *, seconds: float, gap: float, levels: tuple[float, ...] | None = None) -> Proved:
    """Solve with SCIP, one thread; with `levels`, transmit power is the largest and frequencies are of these shares.

    Where energy binds nobody, the largest power and the highest frequency are the best, so that the levels leave the
    optimum where it is.
    """
    from pyscipopt import Model, exp, log, quicksum

    cells = FEELCells(problem)
    rows, least_band = coefficients(cells), cells.least_log_bandwidth() - np.log(cells.client.band)
    able = cells.fits & (problem.ranges["selected"][1] > 0.5)
    needed = problem.ranges["selected"][0] > 0.5
    model = Model()
    model.hideOutput()
    model.setParam("limits/time", seconds)
    model.setParam("limits/gap", gap)
    model.setParam("parallel/maxnthreads", 1)
    costs, masses, bands, ratios = [], [], [], []
    for k in np.flatnonzero(able):
        bits_once, bits_each, work_once, work_each, power, strength, sending, weight, *cost_of = map(float, rows[:, k])
        gap_once, gap_each, smooth, masked = cost_of
        low, high = float(np.log(cells.least[k])), float(np.log(cells.most[k]))
        a = model.addVar(vtype="B", lb=float(needed[k]))
        s = model.addVar(lb=low, ub=high)
        kept, log_kept = (exp(s), s) if low < high else (float(np.exp(low)), low)
        band = model.addVar(lb=float(least_band[k]) - 1e-9, ub=0.0)
        compute = model.addVar(lb=float(np.log(work_once + work_each * np.exp(low))) - 1e-9, ub=0.0)
        upload = model.addVar(lb=LOWEST, ub=0.0)
        model.addCons(exp(compute) + exp(upload) <= 1.0)
        work = work_once + work_each * kept
        if levels is None:
            snr: Any = model.addVar(lb=LOWEST, ub=25.0)
            model.addCons(band + snr + power <= 0.0)
            model.addCons(work * exp(-compute) <= 1.0)
            used = strength * work**3 * exp(-2.0 * compute) + sending * exp(band + snr + power + upload)
            model.addCons(used <= 1.0)
        else:
            snr = -power - band
            chosen = [model.addVar(vtype="B") for _ in levels]
            model.addCons(quicksum(chosen) == 1.0)
            slower = quicksum(float(-np.log(level)) * y for level, y in zip(levels, chosen, strict=True))
            model.addCons(work * exp(slower - compute) <= 1.0)
        model.addCons((bits_once + bits_each * kept) * exp(-band - upload) <= log(1.0 + exp(snr)) / LN2)
        error = 1.0 - kept * (1.0 - log_kept + 0.5 * log_kept * log_kept) if cells.law == "laplace" else 1.0 - kept
        # per sample; the weight turns it into a share of the sum
        cost = gap_once + gap_each * kept + smooth * error + masked * (1.0 - kept)
        ends = cells.cost(np.array([k, k]), np.array([cells.least[k], cells.free()[k]])) / weight
        each = model.addVar(lb=float(ends.min()) - 1e-9, ub=float(ends.max()) * 1.01)
        model.addCons(each >= cost)
        ratios.append(float(ends.min()))
        taken_cost, taken_band = model.addVar(lb=0.0), model.addVar(lb=0.0, ub=1.0)
        model.addCons(taken_cost >= each - float(ends.max()) * 1.01 * (1.0 - a))
        model.addCons(taken_cost >= float(ends.min()) * a)
        model.addCons(taken_band >= exp(band) - (1.0 - a))
        model.addCons(taken_band >= float(np.exp(least_band[k])) * (1.0 - 1e-9) * a)
        costs.append(weight * taken_cost)
        masses.append(weight * a)
        bands.append(taken_band)
    mass = model.addVar(lb=float(cells.weight[able].min()), ub=1.0)
    model.addCons(mass == quicksum(masses))
    model.addCons(quicksum(bands) <= 1.0)
    average, value = model.addVar(lb=min(ratios)), model.addVar(lb=0.0)
    model.addCons(average * mass >= quicksum(costs))
    model.addCons(value >= average + 8.0 * problem.system.bound.gradient_offset * (1.0 - mass) * (1.0 - mass))
    model.setObjective(value)
    start = time.perf_counter()
    model.optimize()
    spent = time.perf_counter() - start
    return Proved(model.getObjVal() if model.getNSols() else np.nan, model.getDualbound(), spent)

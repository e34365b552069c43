"""Co-inference of one device with a pruning ratio per layer: a convex program for every split point.

    min  sum_l A_l n_l psi(r_l)/lambda_l   s.t.  T <= T0, E <= E0, ranges        (theory 4d, last sentence [D])

Why it is convex. The loads W_d and W_s are affine in the ratios, the cut does not depend on them, and the least
energy by the deadline E_min(W_d, W_s) is the least over the times of perspectives x^3/t^2 and t 2^{S/(Bt)}, jointly
convex in loads and times; psi is convex. The splits are blocks of one program without a common variable.

Why the bound needs no solver. E_min lies above its tangent at any loads, so E_min <= E0 implies one linear
inequality in the kept shares; meeting the deadline at the greatest speeds is another. The Lagrangian dual of the
separable problem under these two has a closed form, and every pair of multipliers gives a bound. At the optimum
the tangent's bound is the value itself. The best pair is found on rays: under one weighted sum of the two inequalities
the excess falls with the multiplier, and the shares that are best there are feasible for every sum that gives the
inequality they violate less weight, which halves the range of weights.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from jointopt.decision import Decision
from jointopt.errors import InputError
from jointopt.models import distortion, inference
from jointopt.models._array import namespace
from jointopt.models.inference import Chains
from jointopt.problem import Baseline, Capabilities, Conflict, Evaluation, Problem, Variable
from jointopt.problems.coinference import CoInference, _Cells, unit_distortion
from jointopt.system import FloatArray, InferenceSystem, Scenario

if TYPE_CHECKING:
    import cvxpy

__all__ = ["LayerwiseCoInference"]

_LN2 = float(np.log(2.0))
_ONE = np.zeros(1, dtype=np.int64)

NEARLY_CONVEX = 0.05
"""How far a measured curve may lie above its lower convex hull, as a share of its end."""


def _lower_hull(ratios: FloatArray, values: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return the corners of the greatest convex curve that lies nowhere above a measured one."""
    corners: list[int] = []
    for i in range(ratios.size):
        while len(corners) > 1:
            a, b = corners[-2:]
            if (values[b] - values[a]) * (ratios[i] - ratios[b]) < (values[i] - values[b]) * (ratios[b] - ratios[a]):
                break
            corners.pop()
        corners.append(i)
    return ratios[corners], values[corners]


class LayerwiseCoInference(Problem):
    """The co-inference design for one device, with one pruning ratio per layer.

    Parameters
    ----------
    system : InferenceSystem
        One device. The distortion must be convex in the ratio and the cut fixed: with channels removed, what is
        sent depends on the root of one layer's kept share. Laplace's is; of a measured curve that is only nearly
        convex (whole weights: within `NEARLY_CONVEX` of its end) the program and the bound take the lower convex
        hull, while decisions are evaluated on the curve itself. The gap then includes what separates the two,
        which is nothing for layers whose ratio is a corner of the hull.
    """

    name = "coinference-layers"
    minimises = "bound on the output distortion with a ratio per layer under delay and energy budgets"
    system_type = InferenceSystem
    budgets: ClassVar[Mapping[str, str]] = {"delay": "delay_budget", "energy": "energy_budget"}

    def __init__(
        self, system: InferenceSystem, *, ranges: dict[str, tuple[FloatArray, FloatArray]] | None = None
    ) -> None:
        ranges = dict(ranges or {})
        own = ranges.pop("pruning_ratio", None)
        self.common = CoInference(system, ranges=ranges)
        self.system = system
        network = system.network
        if len(system) != 1:
            raise InputError(f"system: has {len(system)} devices; ratios per layer are chosen for one device (take)")
        if network.cut_law != "fixed":
            raise InputError(f"network.cut_law: {network.cut_law!r} is not convex in ratios per layer; use 'fixed'")
        if network.distortion == "rate":
            raise InputError("network.distortion: 'rate' is a certificate, not an objective; use 'laplace'")
        if network.distortion == "measured":
            ratios, values = np.asarray(network.curve_ratio), np.asarray(network.curve_distortion)
            above = (values - distortion.curve_distortion(ratios, *_lower_hull(ratios, values))) / values[-1]
            if above.max() > NEARLY_CONVEX:
                i = int(np.argmax(above))
                raise InputError(
                    f"network.curve_distortion[point {i}]: the curve is not convex there; it lies {above[i]:.2g} of "
                    f"its end above its lower convex hull, more than the {NEARLY_CONVEX:g} that counts as nearly convex"
                )
        top = np.full(network.layers, network.pruning_ratio_max)
        self._ratio: tuple[FloatArray, FloatArray] = own if own is not None else (0.0 * top, top)

    @classmethod
    def sample(
        cls, *, devices: int | None = None, seed: int = 0, data: str | None = None, tightness: float = 1.0
    ) -> Scenario:
        """Sample a system of one device (`jointopt.systems.coinference`)."""
        if devices not in (None, 1):
            raise InputError(f"devices: {devices!r} must be 1; ratios per layer are chosen for one device")
        return CoInference.sample(devices=1, seed=seed, data=data, tightness=tightness)

    @property
    def variables(self) -> tuple[Variable, ...]:
        """Pruning ratio per layer; split, power [W] and both frequencies [Hz] of the device."""
        low, high = self._ratio
        ratio = Variable("pruning_ratio", low, high, axis="layer", meaning="fraction of a layer's weights removed")
        return (ratio, *self.common.variables[1:])

    def settings(self) -> dict[str, Any]:
        """Return the ranges that differ from the system's own."""
        out = self.common.settings()
        low, high = self._ratio
        if np.any(low > 0) or np.any(high < self.system.network.pruning_ratio_max):
            out["pruning_ratio"] = {"lower": low.tolist(), "upper": high.tolist()}
        return out

    def restrict(self, **ranges: Any) -> Self:
        """Return the problem with variables fixed or narrowed; ratios as one number or one per layer."""
        network = self.system.network
        ratio = self._ratio
        if "pruning_ratio" in ranges:
            value = ranges.pop("pruning_ratio")
            pair = value if isinstance(value, tuple) else (value, value)
            try:
                low, high = (np.broadcast_to(np.asarray(v, dtype=np.float64), network.layers).copy() for v in pair)
            except (TypeError, ValueError):
                raise InputError(
                    f"restrict: pruning_ratio={value!r} must be a number, an array over {network.layers} layers, or "
                    "a pair of these"
                ) from None
            good = (low >= 0.0) & (low <= high) & (high <= network.pruning_ratio_max)
            if not np.all(good):
                i = int(np.argmin(good))
                raise InputError(
                    f"restrict: pruning_ratio[layer {i}] = {low[i]:g} to {high[i]:g} must be a range within 0 and "
                    f"{network.pruning_ratio_max:g}"
                )
            ratio = low, high
        narrower = self.common.restrict(**ranges)
        return type(self)(self.system, ranges={**narrower._ranges, "pruning_ratio": ratio})

    def check(self, decision: Decision) -> None:
        """Raise `InputError` unless ratios are given for every layer and the rest for one device."""
        if isinstance(decision, Decision) and "pruning_ratio" in decision:
            layers = self.system.network.layers
            if decision["pruning_ratio"].shape[-1] not in (1, layers):
                raise InputError(
                    f"decision.pruning_ratio: has {decision['pruning_ratio'].shape[-1]} values for {layers} layers"
                )
            decision = Decision({**decision, "pruning_ratio": decision["pruning_ratio"][..., :1]})
        super().check(decision)

    # ------------------------------------------------------------------ evaluation

    @property
    def _weights(self) -> FloatArray:
        """H A_l n_l / lambda_l, shape [layers]."""
        n = self.system.network
        weights: FloatArray = n.lipschitz * n.amplification * n.parameters / n.weight_rate
        return weights

    def evaluate(self, decision: Decision) -> Evaluation:
        """Return the distortion bound, slack and quantities (theory 4a, 4b); ratios ``[..., layers]``."""
        self.check(decision)
        system = self.system
        devices, server, network = system.devices, system.server, system.network
        xp = namespace(*decision.values())

        def array(values: Any) -> Any:
            return xp.asarray(np.array(values))

        ratio, power, split = decision["pruning_ratio"], decision["power"], decision["split"]
        ratio = ratio + xp.zeros_like(array(network.flops))
        plain = np.asarray(split.detach().cpu() if hasattr(split, "detach") else split)
        at = np.clip(np.rint(plain), 0, network.layers).astype(np.int64)
        nearest_choice = np.abs(plain[..., None] - network.choices).min(axis=-1)
        early = array((np.arange(network.layers) < at).astype(np.float64))
        flops = (1.0 - ratio) * array(network.flops) + array(network.fixed_flops)

        def total(values: Any) -> Any:
            return xp.sum(values, axis=-1, keepdims=True)

        work, rest = total(flops * early), total(flops * (1.0 - early))
        work, rest = work / array(devices.flops_per_cycle), rest / server.server_flops_per_cycle
        bits = array(network.cut_bits[at])
        device_delay = inference.compute_delay(work, decision["frequency"])
        server_delay = inference.compute_delay(rest, decision["server_frequency"])
        send_delay = inference.send_delay(bits, array(system.link.bandwidth), power, array(system.noise_power))
        device_energy = inference.compute_energy(
            work, decision["frequency"], array(devices.capacitance), array(devices.pue)
        )
        server_energy = inference.compute_energy(
            rest, decision["server_frequency"], server.server_capacitance, server.server_pue
        )
        send_energy = inference.send_energy(send_delay, power)
        delay, energy = device_delay + send_delay + server_delay, device_energy + send_energy + server_energy
        each = array(self._weights) * unit_distortion(ratio, network)
        value = xp.sum(each, axis=-1)
        slack: dict[str, Any] = {
            "delay": array(devices.delay_budget) - delay,
            "energy": array(devices.energy_budget) - energy,
        }
        scale: dict[str, Any] = {"delay": devices.delay_budget, "energy": devices.energy_budget}
        for variable in self.variables:
            chosen = ratio if variable.name == "pruning_ratio" else decision[variable.name]
            inside = xp.minimum(chosen - array(variable.lower), array(variable.upper) - chosen)
            if variable.name == "split":
                broken = array(nearest_choice)
                inside = xp.where(broken > 0, xp.minimum(inside, -broken), inside)
            slack[variable.name] = inside
            scale[variable.name] = variable.upper if variable.unit else 1.0
        return Evaluation(
            objective=value,
            parts={"distortion": value},
            slack=slack,
            scale=scale,
            quantities={
                "delay": delay,
                "energy": energy,
                "device_delay": device_delay,
                "send_delay": send_delay,
                "server_delay": server_delay,
                "device_energy": device_energy,
                "send_energy": send_energy,
                "server_energy": server_energy,
                "compute_delay": device_delay + server_delay,
                "upload_delay": send_delay,
                "compute_energy": device_energy + server_energy,
                "upload_energy": send_energy,
                "layer_distortion": each,
            },
        )

    # ------------------------------------------------------------------ structure

    def capabilities(self) -> Capabilities:
        """One convex program over all splits, search over split and price, and the common ratio as a baseline."""
        splits = _Splits(self)
        return Capabilities(
            convex=splits,
            search=_PriceSearch(splits),
            baselines={"uniform": Baseline("one ratio for all layers", rule=splits.uniform)},
            conflicts=splits.conflicts,
        )


class _Splits:
    """The convex program of every split, their common solution and its proof."""

    def __init__(self, problem: LayerwiseCoInference) -> None:
        self.problem = problem
        system = problem.system
        network = system.network
        self.network = network
        self.ratio_low, self.ratio_high = problem._ratio
        self.least, self.most = 1.0 - self.ratio_high, 1.0 - self.ratio_low
        # what `CoInference` calls one ratio is here the common share of the way from least to most kept
        self.cells = _Cells(problem.common)
        self.deadline, self.budget = float(system.devices.delay_budget[0]), float(system.devices.energy_budget[0])
        _, self.labels = self.cells.pairs(_ONE)
        weights = problem._weights
        self.scale = float(weights.sum())
        self.weights = weights / self.scale if self.scale > 0.0 else weights
        self.curve = self.slopes = np.zeros((2, 0))
        if network.distortion == "measured":
            corners = _lower_hull(np.asarray(network.curve_ratio), np.asarray(network.curve_distortion))
            self.curve = np.stack(corners)
            self.slopes = np.diff(corners[1]) / np.diff(corners[0])
        # the greatest slope of every layer's distortion
        self.steepest = -np.log(self.least) if network.distortion == "laplace" else self.slopes[-1]
        layers = np.arange(network.layers)
        device = network.flops / system.devices.flops_per_cycle[0]
        server = network.flops / system.server.server_flops_per_cycle
        early = layers < self.labels[:, None]
        # cycles per kept share of every layer, [splits, layers]
        self.device, self.server = np.where(early, device, 0.0), np.where(early, 0.0, server)
        self.base = self.cells.chains(np.zeros(self.labels.size, dtype=np.int64), self.labels)
        self.kept: FloatArray | None = None
        self._compiled: tuple[Any, dict[int, Any]] | None = None
        fastest = self._energy(np.broadcast_to(self.least, self.device.shape))
        # exact: the least energy increases with every load
        self.possible = fastest <= self.budget * (1.0 + 1e-12)

    # -- E_min at loads

    def _with_loads(self, rows: Any, **loads: Any) -> Chains:
        return dataclasses.replace(self.base.take(rows), **loads)

    def _loads(self, kept: FloatArray, rows: Any = slice(None)) -> tuple[FloatArray, FloatArray]:
        base = self.base.take(rows)
        return (
            (self.device[rows] * kept).sum(axis=-1) + base.device_fixed,
            (self.server[rows] * kept).sum(axis=-1) + base.server_fixed,
        )

    def _energy(self, kept: FloatArray) -> FloatArray:
        """E_min of every split at kept shares [splits, layers]."""
        work, rest = self._loads(kept)
        nothing = np.zeros(work.size)
        chains = self._with_loads(
            slice(None), device_work=nothing, device_fixed=work, server_work=nothing, server_fixed=rest
        )
        return inference.least_energy(chains, nothing + 1.0, nothing + self.deadline).energy

    def _tangent(self, row: int, kept: FloatArray) -> tuple[float, FloatArray]:
        """E_min of one split and its slope in every kept share.

        Where the shares miss the deadline, if only by rounding, E_min by the earliest time they can meet: less than
        E_min by the deadline wherever that is finite, so that its tangent is below both.
        """
        work, rest = self._loads(kept[None], [row])
        zero = np.zeros(1)
        # two copies: in one the device's work moves, in the other the server's
        chains = self._with_loads(
            [row, row],
            device_work=np.concatenate([work, zero]),
            device_fixed=np.concatenate([zero, work]),
            server_work=np.concatenate([zero, rest]),
            server_fixed=np.concatenate([rest, zero]),
        )
        found = inference.least_energy(chains, np.ones(2), np.full(2, self.deadline))
        if not np.all(np.isfinite(found.energy)):
            # times of what is late are the shortest
            shortest = float((found.device_time + found.server_time + found.send_time).max())
            found = inference.least_energy(chains, np.ones(2), np.full(2, shortest * (1.0 + 1e-11)))
        per_device = found.slope[0] / work[0] if work[0] > 0.0 else 0.0
        per_server = found.slope[1] / rest[0] if rest[0] > 0.0 else 0.0
        return float(found.energy[0]), per_device * self.device[row] + per_server * self.server[row]

    def _inside(self, kept: FloatArray) -> FloatArray:
        """Kept shares [splits, layers], moved towards the least ones as far as the budgets ask."""
        low, high = self._loads(np.broadcast_to(self.least, kept.shape)), self._loads(kept)
        chains = self._with_loads(
            slice(None),
            device_work=np.maximum(high[0] - low[0], 0.0),
            device_fixed=low[0],
            server_work=np.maximum(high[1] - low[1], 0.0),
            server_fixed=low[1],
        )
        size = kept.shape[0]
        found = inference.least_ratio(
            chains, np.full(size, self.deadline), np.full(size, self.budget), np.zeros(size), np.full(size, 1.0 - 1e-9)
        )
        share = np.where(found.feasible, 1.0 - found.ratio, 0.0)[:, None]
        moved: FloatArray = self.least + share * (kept - self.least)
        return moved

    # -- the separable objective

    def _value(self, kept: FloatArray) -> FloatArray:
        """Distortion, normalised, a measured curve by its hull; sum over layers."""
        laplace = self.network.distortion == "laplace"
        ratio = 1.0 - kept
        unit = unit_distortion(ratio, self.network) if laplace else distortion.curve_distortion(ratio, *self.curve)
        value: FloatArray = (self.weights * unit).sum(axis=-1)
        return value

    def _cheapest(self, price: FloatArray) -> FloatArray:
        """Kept shares of least distortion plus price x kept share, layer by layer in closed form."""
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            each = np.where(self.weights > 0.0, price / self.weights, np.where(price > 0.0, np.inf, 0.0))
        if self.network.distortion == "laplace":
            # d/dk [k ln k - k + 1] = ln k
            return np.clip(np.exp(-each), self.least, self.most)
        # prune along the pieces that cost less than they save
        return np.clip(1.0 - self.curve[0][np.searchsorted(self.slopes, each)], self.least, self.most)

    def _dual(self, row: int, kept: FloatArray) -> tuple[float, FloatArray]:
        """Largest Lagrangian bound from the tangent at kept shares and the deadline, and the shares that reach it."""
        energy, slope = self._tangent(row, kept)
        base = self.base.take([row])
        fastest = np.log1p(base.power_high[0] / base.noise[0]) * base.bandwidth[0] / _LN2
        sending = base.bits[0] / fastest if base.bits[0] > 0.0 else 0.0
        late = self.device[row] / base.frequency_high[0] + self.server[row] / base.server_high[0]
        fixed = base.device_fixed[0] / base.frequency_high[0] + base.server_fixed[0] / base.server_high[0]
        cuts = np.stack([slope / self.budget, late / self.deadline])
        limits = np.array(
            [
                (self.budget - energy + float(slope @ kept)) / self.budget,
                (self.deadline - sending - fixed) / self.deadline,
            ]
        )
        best, found = -np.inf, self.most
        # the weight of the deadline in the sum of both; the bound is quasi-concave in it
        low, high = 0.0, 1.0
        for step in range(80):
            share = float(step) if step < 2 else 0.5 * (low + high)
            weights = np.array([1.0 - share, share])
            price, bound, here = self._under_one(weights @ cuts, float(weights @ limits))
            over = cuts @ here - limits
            if bound > best:
                best, found = bound, here
            # `here` is best for this sum, hence for every sum that gives the violated cut less weight
            worst = float(over.max())
            if worst <= 0.0 or 0.0 < price * worst <= 1e-13 * abs(bound):
                break
            if step >= 2:
                low, high = (share, high) if over[1] > over[0] else (low, share)
        return max(best, float(self._value(self.most))), found

    def _under_one(self, cut: FloatArray, limit: float) -> tuple[float, float, FloatArray]:
        """Return (multiplier, bound, kept shares) of least distortion under one linear inequality."""
        full = self._cheapest(0.0 * cut)
        if float(cut @ full) <= limit:
            return 0.0, float(self._value(full)), full
        # beyond this price every layer that the cut prices is at its least
        with np.errstate(divide="ignore", invalid="ignore"):
            last = float(np.max(np.where(cut > 0.0, self.weights * self.steepest / cut, 0.0)))
        low, high = 0.0, max(2.0 * last, 1e-300)
        below, above = full, self._cheapest(high * cut)
        steps = np.linspace(0.0, 1.0, 33)[1:-1]
        if float(cut @ above) <= limit:
            for _ in range(16):
                prices = low + (high - low) * steps
                tried = self._cheapest(prices[:, None] * cut)
                # the excess falls with the price
                kept = int(np.count_nonzero(tried @ cut > limit))
                if kept > 0:
                    low, below = float(prices[kept - 1]), tried[kept - 1]
                if kept < prices.size:
                    high, above = float(prices[kept]), tried[kept]
                if high - low <= 1e-16 * high:
                    break
        bound = float(self._value(above)) + high * (float(cut @ above) - limit)
        # where a price leaves several shares equally good, those that use the limit up
        drop = float(cut @ (below - above))
        share = np.clip((limit - float(cut @ above)) / drop, 0.0, 1.0) if drop > 0.0 else 0.0
        return high, bound, above + share * (below - above)

    # -- what the convex solver asks

    def program(self) -> cvxpy.Problem:
        """Return the program: every split a block in fractions of T0, E0 and the kept shares."""
        import cvxpy as cp

        if self._compiled is not None:
            return self._compiled[0]
        constraints: list[Any] = []
        terms: list[Any] = []
        variables: dict[int, Any] = {}
        for row in np.flatnonzero(self.possible):
            kept = cp.Variable(self.network.layers)
            terms.append(self._objective(cp, kept))
            constraints += [kept >= self.least, kept <= self.most, *self._budgets(cp, int(row), kept)]
            variables[int(row)] = kept
        program = cp.Problem(cp.Minimize(sum(terms) if terms else cp.Constant(0.0)), constraints)
        self._compiled = (program, variables)
        return program

    def _objective(self, cp: Any, kept: Any) -> Any:
        if self.network.distortion == "laplace":
            return self.weights @ (-cp.entr(kept) + 1.0 - kept)
        ratios, values = self.curve[:, :-1]
        pieces = [s * (1.0 - kept - r) + v for s, r, v in zip(self.slopes, ratios, values, strict=True)]
        return self.weights @ (cp.maximum(*pieces) if len(pieces) > 1 else pieces[0])

    def _budgets(self, cp: Any, row: int, kept: Any) -> list[Any]:
        """Deadline and energy of one split."""
        c = self.base.take([row])
        t0, e0 = self.deadline, self.budget
        out: list[Any] = []
        spent: list[Any] = []
        times: list[Any] = []
        stages = (
            (self.device[row], c.device_fixed[0], c.device_coefficient[0], c.frequency_low[0], c.frequency_high[0]),
            (self.server[row], c.server_fixed[0], c.server_coefficient[0], c.server_low[0], c.server_high[0]),
        )
        for cycles, fixed, coefficient, slow, fast in stages:
            full = float(cycles @ self.most + fixed)
            if full == 0.0:
                continue
            load = (cycles / full) @ kept + fixed / full
            time, energy = cp.Variable(), cp.Variable()
            # load^3/time^2 <= energy at the scale at which both are near 1
            share = full / fast / t0
            factor = coefficient * full * fast**2 / e0
            root = factor ** (1.0 / 3.0)
            out += [time >= load, cp.PowCone3D(energy, time, root * load, 1.0 / 3.0)]
            if slow > 0.0:
                out.append(time <= load * (fast / slow))
            times.append(share * time)
            spent.append(energy)
        if c.bits[0] > 0.0:
            n0 = c.noise[0]
            nats = c.bits[0] * _LN2 / (c.bandwidth[0] * t0)
            fastest = nats / np.log1p(c.power_high[0] / n0)
            time, energy = cp.Variable(), cp.Variable()
            # time = fastest x its variable; n0 t (e^{nats/t} - 1), the constant drawn into the exponent
            factor = n0 * t0 * fastest / e0
            out += [
                time >= 1.0,
                cp.ExpCone(nats / fastest + np.log(factor) * time, time, energy + factor * time),
            ]
            if c.power_low[0] > 0.0:
                out.append(time <= nats / np.log1p(c.power_low[0] / n0) / fastest)
            times.append(fastest * time)
            spent.append(energy)
        return [*out, sum(times) <= 1.0, sum(spent) <= 1.0]

    def decision(self) -> Decision:
        """Return the best split's decision: the program's solution inside the budgets, sharpened by tangent steps."""
        kept = np.broadcast_to(self.least, self.device.shape).copy()
        variables = self._compiled[1] if self._compiled is not None else {}
        for row in np.flatnonzero(self.possible):
            variable = variables.get(int(row))
            solved = None if variable is None else variable.value
            # without a solution everything is kept as far as the budgets allow: the common ratio
            start = self.most if solved is None or not np.all(np.isfinite(solved)) else solved
            kept[row] = np.clip(start, self.least, self.most)
        dense = self._energy(np.broadcast_to(self.most, kept.shape)) <= self.budget
        kept = np.where(dense[:, None], self.most, self._inside(kept))
        value = np.where(self.possible, self._value(kept), np.inf)
        if not np.any(self.possible):
            self.kept = kept
            return self._infeasible()
        # all splits that might be better than the best, the most promising first
        for row in np.argsort(value, kind="stable")[: int(np.count_nonzero(self.possible))]:
            if not dense[row] and self._dual(int(row), kept[row])[0] < value.min():
                kept[row] = self._sharpen(int(row), kept[row])
                value[row] = float(self._value(kept[row]))
        if self.network.distortion == "measured":
            # what is left to choose between, by the curve itself
            value = np.where(
                self.possible, (self.weights * unit_distortion(1.0 - kept, self.network)).sum(axis=-1), np.inf
            )
        # ties: least energy, then least split
        ties = value <= value.min() + 1e-12
        energy = np.where(ties, self._energy(kept), np.inf)
        best = int(np.flatnonzero(energy <= energy.min() * (1.0 + 1e-12))[0])
        self.kept = kept
        return self._complete(best, kept[best])

    def _sharpen(self, row: int, kept: FloatArray) -> FloatArray:
        """Solve under the tangent, step into the budgets, repeat while that improves."""
        value = float(self._value(kept))
        every = np.broadcast_to(self.least, self.device.shape).copy()
        for _ in range(30):
            _, target = self._dual(row, kept)
            # the whole way as a rule; less where the tangent was taken far from the optimum
            for share in 0.25 ** np.arange(6):
                every[row] = kept + share * (target - kept)
                moved = self._inside(every)[row]
                better = float(self._value(moved))
                if better < value * (1.0 - 1e-14):
                    break
            else:
                break
            kept, value = moved, better
        return kept

    def _complete(self, row: int, kept: FloatArray) -> Decision:
        work, rest = self._loads(kept[None], [row])
        zero = np.zeros(1)
        chains = self._with_loads([row], device_work=zero, device_fixed=work, server_work=zero, server_fixed=rest)
        inner = inference.least_energy(chains, np.ones(1), np.full(1, self.deadline))
        return Decision(
            pruning_ratio=np.clip(1.0 - kept, self.ratio_low, self.ratio_high),
            split=np.full(1, float(self.labels[row])),
            power=inner.power,
            frequency=inner.frequency,
            server_frequency=inner.server_frequency,
        )

    def _infeasible(self) -> Decision:
        found = self._most_pruned().least_violating(_ONE)
        return Decision({**found, "pruning_ratio": self.ratio_high})

    def lower_bound(self, decision: Decision) -> float:
        """Return the least over the splits of their dual bounds, each from the tangent at its own shares."""
        kept = np.array(self.kept if self.kept is not None else np.broadcast_to(self.least, self.device.shape))
        at = np.flatnonzero(self.labels == int(decision["split"][0]))
        kept[at] = 1.0 - np.broadcast_to(decision["pruning_ratio"], (self.network.layers,))
        bounds = [np.inf]
        for row in np.flatnonzero(self.possible):
            bounds.append(self._dual(int(row), kept[row])[0])
        return self.scale * min(bounds)

    # -- infeasible budgets and the baseline

    def _most_pruned(self) -> _Cells:
        """Cells whose only ratio is the largest of every layer: its work counts as fixed."""
        cells = _Cells(self.problem.common)
        network = self.network
        left = network.flops * self.least + network.fixed_flops
        nothing = np.zeros(network.layers + 1)
        cells.device_flops = nothing, network.before(left)
        cells.server_flops = nothing, network.after(left)
        return cells

    def conflicts(self, unit: npt.NDArray[np.int64]) -> list[Conflict]:
        """Say which budget is short with every layer at its largest ratio, and the smallest relaxations."""
        return self._most_pruned().conflicts(unit)

    def uniform(self, rng: np.random.Generator) -> Decision | None:
        """Return the least common ratio over all splits, or None."""
        low, high = float(self.ratio_low.max()), float(self.ratio_high.min())
        if low > high:
            return None
        cells = _Cells(self.problem.common.restrict(pruning_ratio=(low, high)))
        found = cells.cover(np.ones(1), slice(0, 1))
        if len(found) == 0:
            return None
        decision, _ = cells.complete(np.ones(1), found.unit, found.label, found.low)
        return Decision({**decision, "pruning_ratio": np.full(self.network.layers, float(found.low[0]))})


_PRICE_DECADES = 3.0
"""Decades over which the search moves the ratio of the two prices, either way."""

_STEPS = 33


class _PriceSearch:
    """Bayesian optimization's view: the split, and how cycles on the device are priced against those on the server.

    At the optimum the shares are those of least distortion plus a price on either kind of cycles (the multipliers of
    the tangent and the deadline), so a split, the ratio of the two prices and a budget that is used up say all.
    """

    name = "split and price ratio"
    kind = np.array(["integer", "real"])
    logarithmic = False
    attribute = None

    def __init__(self, splits: _Splits) -> None:
        self.splits = splits
        self.rows = np.flatnonzero(splits.possible)
        last = float(max(self.rows.size - 1, 0))
        self.lower, self.upper = np.zeros(2), np.array([last, 1.0 if self.rows.size else 0.0])
        self._slopes: dict[int, tuple[FloatArray, FloatArray]] = {}

    def _reference(self, row: int) -> tuple[FloatArray, FloatArray]:
        """Slope of the least energy in every kept share, on the device and on the server, at the common ratio."""
        if row not in self._slopes:
            s = self.splits
            common = s._inside(np.broadcast_to(s.most, s.device.shape))[row]
            slope = s._tangent(row, common)[1]
            self._slopes[row] = np.where(s.device[row] > 0.0, slope, 0.0), np.where(s.server[row] > 0.0, slope, 0.0)
        return self._slopes[row]

    def _fits(self, row: int, kept: FloatArray) -> npt.NDArray[np.bool_]:
        """Whether kept shares [n, layers] meet both budgets."""
        s = self.splits
        size = kept.shape[0]
        rows = np.full(size, row)
        work, rest = s._loads(kept, rows)
        nothing = np.zeros(size)
        chains = s._with_loads(rows, device_work=nothing, device_fixed=work, server_work=nothing, server_fixed=rest)
        fits: npt.NDArray[np.bool_] = (
            inference.least_energy(chains, nothing + 1.0, nothing + s.deadline).energy <= s.budget
        )
        return fits

    def _kept(self, row: int, share: float) -> FloatArray:
        """Best kept shares at a ratio of prices, as many as both budgets allow."""
        s = self.splits
        device, server = self._reference(row)
        tilt = 10.0 ** (_PRICE_DECADES * (share - 0.5))
        price = tilt * device + server / tilt
        with np.errstate(divide="ignore", invalid="ignore"):
            last = float(np.max(np.where(price > 0.0, s.weights * s.steepest / price, 0.0)))
        ends = np.stack([s.most, s._cheapest(2.0 * last * price)])
        # beyond a price at which every layer is at its least, only layers without a price are left: all by one share
        free = self._between(row, ends[1], s.least) if not self._fits(row, ends[1:])[0] else None
        if free is not None:
            return free
        if self._fits(row, ends[:1])[0]:
            return s.most
        low, high = 0.0, 2.0 * last
        for _ in range(12):
            prices = low + (high - low) * np.linspace(0.0, 1.0, _STEPS)
            at = int(np.argmax(self._fits(row, s._cheapest(prices[:, None] * price))))
            low, high = float(prices[max(at - 1, 0)]), float(prices[at])
            if high - low <= 1e-15 * high:
                break
        return self._between(row, s._cheapest(low * price), s._cheapest(high * price))

    def _between(self, row: int, outside: FloatArray, inside: FloatArray) -> FloatArray:
        """Last point on the way from inside the budgets to outside that is still inside (they are convex)."""
        low, high = 0.0, 1.0
        for _ in range(10):
            share = low + (high - low) * np.linspace(0.0, 1.0, _STEPS)
            fits = self._fits(row, inside + share[:, None] * (outside - inside))
            at = int(np.argmin(fits)) if not np.all(fits) else _STEPS
            low, high = float(share[max(at - 1, 0)]), float(share[min(at, _STEPS - 1)])
        return inside + low * (outside - inside)

    def complete(self, x: Any) -> Decision:
        """Return the best decision at (split, price ratio) ``[..., 2]``; the least violating one where none fits."""
        x = np.asarray(x, dtype=np.float64)
        flat = x.reshape(-1, 2)
        parts = []
        for split, share in flat:
            if self.rows.size == 0:
                parts.append(self.splits._infeasible())
                continue
            row = int(self.rows[int(np.clip(np.rint(split), 0, self.rows.size - 1))])
            parts.append(self.splits._complete(row, self._kept(row, float(share))))
        return Decision({k: np.stack([p[k] for p in parts]).reshape(*x.shape[:-1], -1) for k in parts[0]})

    def locate(self, decision: Decision) -> FloatArray:
        """Return the split's place among the possible ones, and the price ratio that explains the ratios best."""
        s = self.splits
        split = float(np.asarray(decision["split"]).reshape(-1)[0])
        if self.rows.size == 0:
            return self.lower
        place = int(np.argmin(np.abs(s.labels[self.rows] - split)))
        row = int(self.rows[place])
        kept = 1.0 - np.broadcast_to(np.asarray(decision["pruning_ratio"], dtype=np.float64), (s.network.layers,))
        free = (kept > s.least * (1.0 + 1e-9)) & (kept < s.most * (1.0 - 1e-9)) & (s.weights > 0.0)
        device, server = self._reference(row)
        share = 0.5
        if s.network.distortion == "laplace" and np.any(free & (device > 0.0)) and np.any(free & (server > 0.0)):
            asked = -np.log(kept[free]) * s.weights[free]
            on_device = device[free] > 0.0
            first, second = (
                float(np.median(asked[part] / price[free][part]))
                for part, price in ((on_device, device), (~on_device, server))
            )
            share = 0.5 + 0.5 * float(np.log10(max(first, 1e-300) / max(second, 1e-300))) / _PRICE_DECADES
        return np.array([float(place), np.clip(share, 0.0, 1.0)])

    def unit_values(self, x: Any) -> None:
        """Return None: one device."""
        return None

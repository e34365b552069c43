"""Co-inference of one device with a pruning ratio per layer: a convex program for every split point.

    min  sum_l A_l n_l psi(r_l)/lambda_l   s.t.  T <= T0, E <= E0, ranges        (theory 4d, last sentence [D])

Why it is convex. The loads W_d and W_s are affine in the ratios, the cut does not depend on them, and the least
energy by the deadline E_min(W_d, W_s) is the least over the times of perspectives x^3/t^2 and t 2^{S/(Bt)}, jointly
convex in loads and times; psi is convex. The splits are blocks of one program without a common variable.

Why the bound needs no solver. E_min lies above its tangent at any loads, so E_min <= E0 implies one linear
inequality in the kept shares; meeting the deadline at the greatest speeds is another. The Lagrangian dual of the
separable problem under these two has a closed form, and every pair of multipliers gives a bound. At the optimum
the tangent's bound is the value itself.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt

from jointopt.decision import Decision
from jointopt.errors import InputError
from jointopt.models import inference
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


class LayerwiseCoInference(Problem):
    """The co-inference design for one device, with one pruning ratio per layer.

    Parameters
    ----------
    system : InferenceSystem
        One device. The distortion must be convex in the ratio (Laplace, or a convex measured curve) and the cut
        fixed: with channels removed, what is sent depends on the root of one layer's kept share.
    """

    name = "coinference-layers"
    minimises = "bound on the output distortion with a ratio per layer under delay and energy budgets"
    system_type = InferenceSystem

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
            slopes = np.diff(network.curve_distortion) / np.diff(network.curve_ratio)
            if np.any(np.diff(slopes) < -1e-12 * slopes[1:]):
                i = int(np.argmax(np.diff(slopes) < -1e-12 * slopes[1:])) + 1
                raise InputError(f"network.curve_distortion[point {i}]: the curve is not convex there")
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
        """One convex program over all splits, and the common ratio as a baseline."""
        splits = _Splits(self)
        return Capabilities(
            convex=splits,
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
        """E_min of one split and its slope in every kept share."""
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
        """Distortion, normalised; sum over layers."""
        value: FloatArray = (self.weights * unit_distortion(1.0 - kept, self.network)).sum(axis=-1)
        return value

    def _cheapest(self, price: FloatArray) -> FloatArray:
        """Kept shares of least distortion plus price x kept share, layer by layer in closed form."""
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            each = np.where(self.weights > 0.0, price / self.weights, np.where(price > 0.0, np.inf, 0.0))
        if self.network.distortion == "laplace":
            # d/dk [k ln k - k + 1] = ln k
            return np.clip(np.exp(-each), self.least, self.most)
        ratios = np.asarray(self.network.curve_ratio)
        slopes = np.diff(self.network.curve_distortion) / np.diff(ratios)
        # prune along the pieces that cost less than they save
        return np.clip(1.0 - ratios[np.searchsorted(slopes, each)], self.least, self.most)

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
        prices = np.zeros(2)

        def excess(prices: FloatArray) -> FloatArray:
            return cuts @ self._cheapest(prices @ cuts) - limits

        best = -np.inf
        for _ in range(12):
            for j in (0, 1):
                # the dual is concave: its slope in one multiplier is the excess, which falls
                prices[j] = 0.0
                if excess(prices)[j] <= 0.0:
                    continue
                low, high = 0.0, 1.0
                for _ in range(200):
                    prices[j] = high
                    if excess(prices)[j] <= 0.0:
                        break
                    low, high = high, 4.0 * high
                for _ in range(70):
                    prices[j] = middle = 0.5 * (low + high)
                    low, high = (middle, high) if excess(prices)[j] > 0.0 else (low, middle)
                prices[j] = high
            found = self._cheapest(prices @ cuts)
            bound = float(self._value(found) + prices @ (cuts @ found - limits))
            if bound <= best + 1e-14 * abs(best):
                break
            best = bound
        return max(best, float(self._value(self.most))), self._cheapest(prices @ cuts)

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
        ratios, values = np.asarray(self.network.curve_ratio), np.asarray(self.network.curve_distortion)
        slopes = np.diff(values) / np.diff(ratios)
        pieces = [s * (1.0 - kept - r) + v for s, r, v in zip(slopes, ratios[:-1], values[:-1], strict=True)]
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
        # ties: least energy, then least split
        ties = value <= value.min() + 1e-12
        energy = np.where(ties, self._energy(kept), np.inf)
        best = int(np.flatnonzero(energy <= energy.min() * (1.0 + 1e-12))[0])
        if not dense[best]:
            kept[best] = self._sharpen(best, kept[best])
        self.kept = kept
        return self._complete(best, kept[best])

    def _sharpen(self, row: int, kept: FloatArray) -> FloatArray:
        """Solve under the tangent, step into the budgets, repeat while that improves."""
        value = float(self._value(kept))
        for _ in range(20):
            _, target = self._dual(row, kept)
            every = np.broadcast_to(self.least, self.device.shape).copy()
            every[row] = target
            moved = self._inside(every)[row]
            better = float(self._value(moved))
            if not better < value * (1.0 - 1e-14):
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
            here = kept[row]
            if not np.isfinite(self._tangent(int(row), here)[0]):
                here = self.least
            bounds.append(self._dual(int(row), here)[0])
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

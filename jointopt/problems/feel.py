"""FEEL: who takes part, how far each prunes, and how band, power and processors are shared.

In the manner of "Closing the Generalization Gap in Parameter-efficient Federated Edge Learning": the problem statement
is the published one [R], the bound is derived here [D] (theory 3b), not quoted.

    min  Gamma(a, r) = sum_k v_k [4 Phi_k(r_k) + 4 L^2 D^2 e(r_k) + 2 M^2 r_k] + 8 zeta1 (1 - n_S/n)^2
    s.t. T_k <= T_max and E_k <= E_max for all k taken, sum of a_k b_k <= B, A < 1,
         0 <= f_k <= f_max, 0 <= p_k <= p_max, 0 <= r_k <= r_max, a_k in {0, 1}, at least one taken,

with v_k = a_k n_k/n_S, n_S = sum of a_k n_k, n = sum of n_k (theory 3c). Symbols: a `selected`, r `pruning_ratio`,
b `bandwidth`, f `frequency`, p `power`; T_max, E_max the devices' budgets, B `total_bandwidth`, Q_b the learner's
`bits_max`, Phi the gradient's generalization gap (proposition 3).

**Certificate.** Gamma is cost/mass + 8 zeta1 (1 - mass)^2, with cost and mass summed over the clients taken. A
client's least bandwidth for a kept fraction is convex in logarithms (proof in `jointopt.problems.feel_cells`), which
gives its exact response to a price on bandwidth; at a price, the clients form a continuous knapsack in the mass
(`jointopt.solvers.selection`), whose bound holds for every selection. Branching on clients closes what is left.

**The published algorithm** (theory 3d) alternates: time split, joint convex (ratio, bandwidth) step, selection by
prefix and swaps; method ``alternating``. Monotone, without certificate.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

import cvxpy as cp
import numpy as np

from jointopt import systems
from jointopt.decision import Decision
from jointopt.errors import InputError, SolverError, nearest
from jointopt.models import channel, compression, convergence, cost, generalization
from jointopt.models._array import namespace
from jointopt.models.allocation import least_bandwidth
from jointopt.problem import (
    Baseline,
    Blocks,
    Capabilities,
    Evaluation,
    Problem,
    Selection,
    Sums,
    Variable,
    range_slack,
)
from jointopt.problems.feel_cells import LN2, FEELCells
from jointopt.problems.feel_search import SelectionSearch
from jointopt.ranges import changed_ranges, narrowed
from jointopt.system import FloatArray, System

__all__ = ["FEEL", "RatioBandwidthStep"]

CONTRACTION_LIMIT = 1.0 - 1e-6
"""A < 1 is strict; a closed limit just below it keeps the minimum attained and the bound finite."""

_LARGEST = 1e60
STEP = 0.2
"""Change of the kept fraction over which step 3 models a curved pruning error."""
PREFIXES, SWAPS, FINALISTS, ROUNDS = 40, 8, 4, 6
"""Prefixes and swaps that a selection step of the published algorithm tries; rounds of steps 2 and 3 for the best."""


class FEEL(Problem):
    """The generalization-aware FEEL design for one system.

    Parameters
    ----------
    system : System
        With `radio.total_bandwidth` to share, no fading and no interference (rates are b log2(1 + p h/(b N0))), and a
        section `generalization`.
    objective : {"gap", "bound"}
        Gamma (default), or the full bound (2 Delta_0/(eta T) + Gamma)/(1 - A) of theorem 3.
    ranges : mapping, optional
        Bounds of `selected` and `pruning_ratio` by device, as `restrict` makes and checks them.
    """

    name = "feel"
    minimises = "gradient-norm bound with generalization gap, by selection, pruning and a shared band"
    budgets: ClassVar[Mapping[str, str]] = {"delay": "delay_budget", "energy": "energy_budget"}
    overlooks: ClassVar[tuple[str, ...]] = (
        "lost packets",
        "quantization error",
        "noise of batches",
        "class mixes",
        "rounds to a target",
        "tiers by time",
        "a price on latency",
        "the way to the cloud",
    )

    def __init__(
        self,
        system: System,
        *,
        objective: Literal["gap", "bound"] = "gap",
        ranges: Mapping[str, tuple[FloatArray, FloatArray]] | None = None,
    ) -> None:
        if not isinstance(system, System):
            raise InputError(f"system: expected a System, got {type(system).__name__}")
        if objective not in ("gap", "bound"):
            raise InputError(f"objective: unknown '{objective}'{nearest(str(objective), ['gap', 'bound'])}")
        radio = system.radio
        if system.generalization is None:
            raise InputError(
                "generalization: this design needs the section; estimate it from held-out data with "
                "Generalization(**measure_generalization(task)), or give gradient_proxy and mutual_information"
            )
        if radio.total_bandwidth is None:
            raise InputError("radio.total_bandwidth: this design shares one band; give it in place of radio.bandwidth")
        if radio.fading != "none":
            raise InputError(
                f"radio.fading: {radio.fading!r}; this design is stated for rates at the mean gain ('none')"
            )
        if np.any(radio.interference > 0.0):
            k = int(np.argmax(radio.interference > 0.0))
            raise InputError(
                f"radio.interference[device {k}]: {float(radio.interference[k])!r} W; this design is stated without"
            )
        for name in ranges or {}:
            if name not in ("selected", "pruning_ratio"):
                raise InputError(f"ranges: unknown variable '{name}'{nearest(name, ['selected', 'pruning_ratio'])}")
        self.system = system
        self.objective = objective
        ones = np.ones(len(system))
        self.ranges: dict[str, tuple[FloatArray, FloatArray]] = {
            "selected": (0.0 * ones, ones),
            "pruning_ratio": (0.0 * ones, system.learner.pruning_ratio_max * ones),
            **(ranges or {}),
        }
        self._check_magnitudes()

    @classmethod
    def sample(
        cls, *, devices: int | None = None, seed: int = 0, data: str | None = None, tightness: float = 1.0
    ) -> System:
        """Sample a system: `jointopt.systems.feel`."""
        return systems.feel(20 if devices is None else devices, seed, data=data or "digits", tightness=tightness)

    @property
    def variables(self) -> tuple[Variable, ...]:
        """Selection, pruning ratio, bandwidth [Hz], processor frequency [Hz], power [W], each per device."""
        devices, radio = self.system.devices, self.system.radio
        zero = np.zeros(len(self.system))
        assert radio.total_bandwidth is not None
        return (
            Variable("selected", *self.ranges["selected"], kind="binary", meaning="takes part in the round"),
            Variable("pruning_ratio", *self.ranges["pruning_ratio"], meaning="fraction of weights removed"),
            Variable("bandwidth", zero, zero + radio.total_bandwidth, unit="Hz", meaning="share of the band"),
            Variable("frequency", zero, devices.frequency, unit="Hz", meaning="processor frequency"),
            Variable("power", zero, devices.power_max, unit="W", meaning="transmit power"),
        )

    def settings(self) -> dict[str, Any]:
        """Return the objective and the ranges that differ from the system's own."""
        return {"objective": self.objective} | changed_ranges(self.ranges, FEEL(self.system).ranges)

    def restrict(self, **ranges: Any) -> Self:
        """Return the problem with `selected` or `pruning_ratio` fixed (a number or array) or narrowed (a pair)."""
        for name in ranges:
            if name in ("bandwidth", "frequency", "power"):
                raise InputError(f"restrict: {name} follows from the ratio in this design; its range is the system's")
        new = narrowed(self.ranges, ranges, len(self.system))
        most = self.system.learner.pruning_ratio_max
        for value in new["pruning_ratio"]:
            if np.any(bad := (value > most) | (value < 0.0)):
                k = int(np.argmax(bad))
                raise InputError(f"restrict: pruning_ratio[device {k}]: {value[k]:g} must lie within 0 and {most:g}")
        for value in new["selected"]:
            if np.any(bad := ~np.isin(value, (0.0, 1.0))):
                k = int(np.argmax(bad))
                raise InputError(f"restrict: selected[device {k}]: {value[k]:g} must be 0 or 1")
        if not np.any(new["selected"][1]):
            raise InputError("restrict: selected=0 for every device leaves nobody to train")
        return type(self)(self.system, objective=self.objective, ranges=new)

    def _check_magnitudes(self) -> None:
        """Refuse numbers that are valid one by one but overflow together."""
        system = self.system
        devices, radio, bound, general = system.devices, system.radio, system.bound, system.generalization
        assert radio.gain is not None and radio.total_bandwidth is not None and general is not None
        with np.errstate(all="ignore"):
            work = cost.cycles(system.batch, devices.cycles_per_sample)
            full = channel.snr(devices.power_max, radio.gain, radio.noise_density * radio.total_bandwidth)
            derived = {
                "SNR over the whole band (gain, power_max, noise_density, total_bandwidth)": full,
                "computing delay (samples, cycles_per_sample, frequency)": cost.compute_delay(work, devices.frequency),
                "computing energy (samples, cycles_per_sample, frequency, capacitance)": cost.compute_energy(
                    work, devices.frequency, devices.capacitance
                ),
                "generalization gap (gradient_proxy, mutual_information, samples, parameters)": self.gradient_gap(
                    np.zeros(len(system))
                ),
            }
            for what, values in derived.items():
                bad = ~(np.abs(values) < _LARGEST)
                if what.startswith("SNR"):
                    bad |= ~(values > 1.0 / _LARGEST)
                if np.any(bad):
                    k = int(np.argmax(bad))
                    raise InputError(f"device {k}: the {what} is {float(values[k]):g}, beyond what can be computed")
            constant = 4.0 * bound.smoothness**2 * bound.weight_norm_squared + bound.mask_energy
            constant += 8.0 * (bound.gradient_offset + bound.gradient_slope)
        if not constant < _LARGEST:
            raise InputError(
                f"bound: the constant 4 L^2 D^2 + M^2 + 8 zeta1 + 8 zeta2 is {constant:g}, beyond what can be computed"
            )

    # ------------------------------------------------------------------ evaluation

    def gradient_gap(self, ratio: Any) -> Any:
        """Phi_k at pruning ratios ``[..., devices]`` (proposition 3)."""
        general, learner = self.system.generalization, self.system.learner
        assert general is not None
        xp = namespace(ratio)
        return generalization.gradient_gap(
            samples=xp.asarray(np.array(self.system.devices.samples)),
            gradient_proxy=xp.asarray(np.array(general.gradient_proxy)),
            mutual_information=xp.asarray(np.array(general.mutual_information)),
            pruning_ratio=ratio,
            parameters=float(learner.parameters),
            unpruned=float(learner.unpruned_parameters),
            law=general.mutual_information_law,
        )

    def evaluate(self, decision: Decision) -> Evaluation:
        """Return Gamma, its parts, slack and quantities (theory 3a to 3c); arrays ``[..., devices]``.

        Clients that are not selected have no delay, no energy and no band, whatever else is said of them.

        Raises
        ------
        InputError
            For unknown or missing variables, or another number of devices.
        """
        self.check(decision)
        system = self.system
        devices, radio, learner, bound = system.devices, system.radio, system.learner, system.bound
        xp = namespace(*decision.values())

        def array(values: Any) -> Any:
            return xp.asarray(np.array(values))

        a, ratio = decision["selected"], decision["pruning_ratio"]
        taken = a > 0.5

        def chosen(name: str, most: Any) -> Any:
            # whoever is left out may be given 0 Hz or 0 W; the most there is avoids 0/0 before it is set to 0
            value = decision[name]
            return xp.where(taken, value, array(most) * xp.ones_like(value))

        bandwidth, frequency = chosen("bandwidth", radio.total_bandwidth), chosen("frequency", devices.frequency)
        power = chosen("power", devices.power_max)
        per_weight, once = compression.index_bits(learner.parameters, learner.mask_encoding)
        payload = compression.payload_bits(
            (1.0 - ratio) * learner.parameters,
            float(learner.bits_max),
            unpruned=float(learner.unpruned_parameters),
            header=learner.header_bits,
            index_per_weight=per_weight,
            index_once=once,
        )
        work = cost.cycles(
            array(system.batch),
            array(devices.cycles_per_sample),
            learner.compute_factor(ratio),
        )
        with np.errstate(divide="ignore", invalid="ignore"):
            snr = channel.snr(power, array(radio.gain), bandwidth * radio.noise_density)
            rate = channel.rate(bandwidth, snr, "none")
            stages = {
                "compute_delay": cost.compute_delay(work, frequency),
                "upload_delay": cost.upload_delay(payload, rate),
                "compute_energy": cost.compute_energy(work, frequency, array(devices.capacitance)),
                "upload_energy": cost.upload_energy(payload, rate, power),
            }
        nothing = xp.zeros_like(ratio)
        stages = {name: xp.where(taken, value, nothing) for name, value in stages.items()}
        delay = stages["compute_delay"] + stages["upload_delay"]
        energy = stages["compute_energy"] + stages["upload_energy"]
        gradient_gap = self.gradient_gap(ratio)
        gap = convergence.generalization_gap(
            selected=a,
            samples=array(devices.samples),
            gradient_gap=gradient_gap,
            pruning_ratio=ratio,
            pruning_error=compression.pruning_error(ratio, bound.pruning_law),
            smoothness=bound.smoothness,
            weight_norm_squared=bound.weight_norm_squared,
            mask_energy=bound.mask_energy,
            gradient_offset=bound.gradient_offset,
            gradient_slope=bound.gradient_slope,
        )
        parts = {
            "generalization": xp.sum(gap.generalization, axis=-1),
            "pruning": xp.sum(gap.pruning, axis=-1),
            "selection": gap.selection,
        }
        total = parts["generalization"] + parts["pruning"] + parts["selection"]
        average = convergence.average_gradient_bound(
            total, gap.contraction, bound.initial_gap, bound.learning_rate, float(bound.rounds)
        )
        band = xp.sum(xp.where(taken, decision["bandwidth"], nothing), axis=-1)
        assert radio.total_bandwidth is not None
        slack = {
            "delay": array(devices.delay_budget) - delay,
            "energy": array(devices.energy_budget) - energy,
            "total_bandwidth": radio.total_bandwidth - band,
            "contraction": CONTRACTION_LIMIT - gap.contraction,
            # at least one client
            "participants": xp.sum(a, axis=-1) - 1.0,
        }
        scale = {
            "delay": devices.delay_budget,
            "energy": devices.energy_budget,
            "total_bandwidth": radio.total_bandwidth,
            "contraction": 1.0,
            "participants": 1.0,
        }
        for variable, inside in zip(self.variables, range_slack(self.variables, decision).values(), strict=True):
            slack[variable.name] = inside if variable.kind == "binary" else xp.where(taken, inside, nothing)
            scale[variable.name] = 1.0 if variable.name in ("selected", "pruning_ratio") else variable.upper
        return Evaluation(
            objective=total if self.objective == "gap" else average,
            parts=parts,
            slack=slack,
            scale=scale,
            quantities={
                "delay": delay,
                "energy": energy,
                **stages,
                "rate": xp.where(taken, rate, nothing),
                "snr": xp.where(taken, snr, nothing),
                "payload_bits": xp.where(taken, payload, nothing),
                "gradient_gap": gradient_gap,
                "gap": total,
                "contraction": gap.contraction,
                "bound": average,
                "samples_selected": xp.sum(a * array(devices.samples), axis=-1),
            },
        )

    # ------------------------------------------------------------------ structure

    def capabilities(self) -> Capabilities:
        """Sums, cells and selection (exact with certificate), search over selections, the alternation, baselines."""
        cells = FEELCells(self)
        low, high = self.ranges["selected"]
        samples = self.system.devices.samples
        assert self.system.radio.total_bandwidth is not None
        # what the cost of a client depends on: clients equal in all of it are interchangeable
        client = cells.client
        alike = np.stack(
            [
                low,
                high,
                samples,
                client.gain,
                client.delay_budget,
                client.energy_budget,
                client.frequency_max,
                client.capacitance,
                client.power_max,
                client.cycles_once,
                client.cycles_each,
                cells.gap_once,
                cells.gap_each,
                cells.least,
                cells.most,
            ]
        )
        return Capabilities(
            sums=Sums(
                features=("cost", "bandwidth"),
                numerator=np.array([1.0, 0.0]),
                numerator_offset=0.0,
                denominator=np.zeros(2),
                denominator_offset=1.0,
                limits=np.array([np.inf, self.system.radio.total_bandwidth]),
            ),
            cells=cells,
            selection=Selection(
                mass=self.system.weight,
                outer=SelectionObjective(self),
                required=low > 0.5,
                excluded=high < 0.5,
                kind=np.unique(alike, axis=1, return_inverse=True)[1].reshape(-1),
            ),
            search=SelectionSearch(self, cells),
            blocks=Alternation(self, cells).blocks(),
            baselines=self._baselines(cells),
            conflicts=cells.conflicts,
        )

    def _baselines(self, cells: FEELCells) -> dict[str, Baseline]:
        (_, may), (low, high) = self.ranges["selected"], self.ranges["pruning_ratio"]
        # within the problem's own ranges: whoever may take part, the ratio nearest to the one meant
        half, dense = np.clip(0.5, low, high), np.clip(0.0, low, high)
        return {
            "random_selection": Baseline(
                "half of the clients that can take part, drawn at random; everything else optimised",
                instead=lambda rng: self._drawn(cells, rng),
            ),
            "full_participation": Baseline("everyone takes part; the rest optimised", restrict={"selected": may}),
            "fixed_ratio": Baseline(
                f"ratio {half.min():g} for all; the rest optimised", restrict={"pruning_ratio": half}
            ),
            "no_pruning": Baseline("the design without pruning", restrict={"pruning_ratio": dense}),
            "resources_only": Baseline(
                "everyone at one common ratio, the least that the budgets allow; only band, power, frequency chosen",
                rule=lambda rng: self._common_ratio(cells),
            ),
            "unaware": Baseline(
                "the design that does not know of the generalization gap (Phi = 0), judged with it",
                instead=lambda rng: self._unaware(),
            ),
            "fedavg": Baseline(
                "everyone takes part with the dense model; the rest optimised",
                restrict={"selected": may, "pruning_ratio": dense},
            ),
        }

    def _unaware(self) -> FEEL:
        general = self.system.generalization
        assert general is not None
        blind = self.system.replace(generalization=general.replace(gradient_proxy=np.zeros(len(self.system))))
        return FEEL(blind, objective=self.objective, ranges=self.ranges)

    def _drawn(self, cells: FEELCells, rng: np.random.Generator) -> FEEL:
        """Restrict to half of the clients that can take part, as many of them as fit the band."""
        low, high = self.ranges["selected"]
        least = np.exp(cells.least_log_bandwidth())
        able = np.flatnonzero(np.isfinite(least) & (high > 0.5))
        selected = low.copy()
        room = cells.client.band - float(least[low > 0.5].sum())
        want = (able.size + 1) // 2
        for k in rng.permutation(able):
            if selected.sum() >= want:
                break
            if selected[k] == 0.0 and least[k] <= room:
                selected[k] = 1.0
                room -= float(least[k])
        # with nobody able, the same infeasible answer as for the design itself
        return self.restrict(selected=selected) if selected.any() else self

    def _common_ratio(self, cells: FEELCells) -> Decision | None:
        """Return everyone at the least common ratio, None where not even the largest one fits the band."""
        units = np.flatnonzero(self.ranges["selected"][1] > 0.5)
        client = cells.client
        low, high = float(cells.least[units].max()), float(cells.most[units].min())
        if low > high:
            return None

        def band(kept: float) -> float:
            return float(np.exp(client.least_bandwidth(units, np.full(units.size, kept))[0]).sum())

        if not band(low) <= client.band:
            return None
        if band(high) <= client.band:
            low = high
        for _ in range(60):
            middle = 0.5 * (low + high)
            low, high = (middle, high) if band(middle) <= client.band else (low, middle)
        decision, _ = cells.complete(np.array([1.0, 0.0]), units, None, np.full(units.size, low))
        return Decision({name: _placed(cells.units, units, values) for name, values in decision.items()})


class SelectionObjective:
    """Gamma (or the full bound) as a function of cost and mass, for `jointopt.problem.Outer`.

    Gamma = cost/mass + 8 zeta1 (1 - mass)^2, the mass being n_S/n; the bound adds 2 Delta_0/(eta T). On a stretch of
    masses where the cost is offset + slope x mass, Gamma - theta (1 - A) = offset/mass + slope - theta
    + 8 (zeta1 + theta zeta2)(1 - mass)^2. With a positive offset it falls; with a negative one the only minimum inside
    is the larger root of mass^2 (1 - mass) = -offset/(16 (zeta1 + theta zeta2)). For the bound, theta is Dinkelbach's
    ratio.
    """

    def __init__(self, problem: FEEL) -> None:
        bound = problem.system.bound
        # costs at prices of at least 0 are at least 0 here, so theta is never below 0 where the offset is above it
        self.zeta1, self.zeta2 = 8.0 * bound.gradient_offset, 8.0 * bound.gradient_slope
        self.ratio = problem.objective == "bound"
        self.constant = 2.0 * bound.initial_gap / (bound.learning_rate * bound.rounds) if self.ratio else 0.0
        # A <= its limit bounds the mass from below
        worst = CONTRACTION_LIMIT / self.zeta2 if self.zeta2 > 0.0 else np.inf
        self.least_mass = 1.0 - np.sqrt(worst) if worst < 1.0 else 0.0

    def value(self, cost: Any, mass: Any) -> Any:
        """Return the objective; inf below the mass at which A reaches its limit."""
        missing = (1.0 - mass) ** 2
        with np.errstate(over="ignore"):
            # next to no mass at all: more than any number
            total = self.constant + cost / mass + self.zeta1 * missing
        if self.ratio:
            total = total / (1.0 - self.zeta2 * missing)
        return np.where(mass >= self.least_mass * (1.0 - 1e-12), total, np.inf)

    def least(self, offset: Any, slope: Any, low: Any, high: Any) -> Any:
        """Return the least value over masses in [low, high] at cost offset + slope x mass."""
        low = np.maximum(low, self.least_mass)
        allowed = low <= high
        low = np.minimum(low, high)
        # beside finite numbers an infinite cost would only make NaN; it is put back at the end
        known = np.isfinite(offset) & np.isfinite(slope)
        offset, slope = np.where(known, offset, 0.0), np.where(known, slope, 0.0)
        return np.where(allowed, np.where(known, self._lowest(offset, slope, low, high, allowed), np.inf), np.inf)

    def _lowest(self, offset: Any, slope: Any, low: Any, high: Any, allowed: Any) -> Any:
        if not self.ratio or self.zeta2 == 0.0:
            return self._least(offset, slope, low, high, self.zeta1)[0]
        # Dinkelbach: theta falls to the least ratio; every step's theta is attained, so the last one is checked below
        _, at = self._least(offset, slope, low, high, self.zeta1)
        theta = self.value(offset + slope * at, at)
        # below the least mass nothing is allowed and nothing is asked
        theta = np.where(np.isfinite(theta), theta, 0.0)
        for _ in range(30):
            # N - theta D at its least; N/D >= theta + (N - theta D)/D, least where D is, for the last theta below
            _, at = self._least(offset, slope, low, high, self.zeta1 + theta * self.zeta2)
            better = self.value(offset + slope * at, at)
            moved = better < theta * (1.0 - 1e-15)
            theta = np.where(moved, better, theta)
            if not np.any(moved & allowed):
                break
        short = np.minimum(self._least(offset, slope, low, high, self.zeta1 + theta * self.zeta2)[0] - theta, 0.0)
        smallest = 1.0 - self.zeta2 * (1.0 - low) ** 2
        return theta + short / smallest

    def _least(self, offset: Any, slope: Any, low: Any, high: Any, weight: Any) -> tuple[Any, Any]:
        """Least of constant + offset/m + slope + weight (1-m)^2 over [low, high], and where."""
        with np.errstate(divide="ignore", invalid="ignore"):
            share = np.clip(-offset / (2.0 * weight), 0.0, 4.0 / 27.0)
            root = 1.0 / 3.0 + 2.0 / 3.0 * np.cos(np.arccos(1.0 - 13.5 * share) / 3.0)
        root = np.clip(np.where(np.isfinite(root), root, low), low, high)
        best, at = None, None
        for m in (low, high, root):
            with np.errstate(divide="ignore", invalid="ignore"):
                value = self.constant + offset / m + slope + weight * (1.0 - m) ** 2
            if best is None:
                best, at = value, m
            else:
                better = value < best
                best, at = np.where(better, value, best), np.where(better, m, at)
        return best, at


class RatioBandwidthStep:
    """Step 3 of theory 3d: at given computing times, the best kept fractions and bands; convex, compiled once.

    All variables are shares: kept fraction s, beta = b/B, q = p/p_max. Per client taken, with t_u = T_max - t_c,

        (S_0 + S_1 s)/(t_u B) <= beta log2(1 + q G/beta),  G = p_max h/(N0 B)   (rate; an exponential cone)
        (k_c/(t_c^2 E_max))^{1/3} W(s) = x,  x^3 + q p_max t_u/E_max <= 1         (energy)
        sum of beta <= 1,  0 <= q <= 1,

    and the weighted sum of s is maximised; a convex pruning error (Laplace, measured) enters as a parabola around the
    present s instead of a weight alone. With t_c alone the processor's limit W(s) <= t_c f_max would freeze every
    client that already computes at f_max, and the alternation with it. Such a client may take longer at f_max, which
    stays convex: its rate constraint is also held with t_u = T_max - W(s)/f_max, a constant plus a multiple of
    1/(D - s); the energy of the shorter computing time and the longer upload bounds the true one. Every coefficient is
    a parameter that enters linearly (DPP), so that a new step re-solves the compiled program; clients left out have
    coefficients 0.

    **Check.** An answer counts only when it is proved near the optimum from closed forms, whatever status the solver
    gives: the bands its kept fractions need must fit, and their weighted sum must come within `TOLERANCE` of
    `lower_bound` at the solver's price of the band. `gap` holds what was proved of the last answer.
    """

    TOLERANCE = 1e-5
    STEP_FRACTIONS = (0.99, 0.9)
    """Of the way to the boundary of the cones, in turn; shorter steps get through where Clarabel's own stall."""

    def __init__(self, clients: int) -> None:
        self.kept, self.share, self.drive = (cp.Variable(clients, nonneg=True) for _ in range(3))
        work, late = (cp.Variable(clients, nonneg=True) for _ in range(2))
        positive = ("gain", "bits_each", "energy_each", "upload", "top", "late_each", "late_scale", "per_room", "curve")
        self.parameters = {name: cp.Parameter(clients, nonneg=True) for name in positive}
        free = ("bits_once", "energy_once", "least", "late_once", "centre", "weight")
        self.parameters |= {name: cp.Parameter(clients) for name in free}
        p = self.parameters
        # one cone for the rate, though two constraints use it
        rate = cp.Variable(clients)
        self._band = cp.sum(self.share) <= 1.0
        self.gap = np.inf
        constraints = [
            rate <= -cp.rel_entr(self.share, self.share + cp.multiply(p["gain"], self.drive)) / LN2,
            p["bits_once"] + cp.multiply(p["bits_each"], self.kept) <= rate,
            p["late_once"] + cp.multiply(p["late_each"], self.kept) + cp.multiply(p["late_scale"], late) <= rate,
            cp.inv_pos(1.0 - cp.multiply(p["per_room"], self.kept)) <= late,
            work == p["energy_once"] + cp.multiply(p["energy_each"], self.kept),
            cp.power(work, 3) + cp.multiply(p["upload"], self.drive) <= 1.0,
            self._band,
            self.drive <= 1.0,
            self.kept <= p["top"],
            self.kept >= p["least"],
        ]
        bend = cp.sum_squares(cp.multiply(p["curve"], self.kept) - p["centre"])
        self.problem = cp.Problem(cp.Minimize(bend - p["weight"] @ self.kept), constraints)

    def solve(self, **values: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Set the parameters, solve, and return kept fractions and shares of the band.

        Raises
        ------
        SolverError
            When the conic solver finds no solution, or none that passes the check.
        """
        for name, value in values.items():
            self.parameters[name].value = value
        found = ""
        for fraction in self.STEP_FRACTIONS:
            self.gap = np.inf
            try:
                with warnings.catch_warnings():
                    # what the solver calls inaccurate is judged by the check
                    warnings.simplefilter("ignore", UserWarning)
                    self.problem.solve(
                        solver=cp.CLARABEL, canon_backend=cp.COO_CANON_BACKEND, max_step_fraction=fraction
                    )
            except cp.error.SolverError as error:
                found = str(error)
                continue
            if self.problem.status not in (cp.OPTIMAL, cp.OPTIMAL_INACCURATE) or self.kept.value is None:
                raise SolverError(f"(ratio, bandwidth) step: the conic solver says '{self.problem.status}'")
            kept, share = np.asarray(self.kept.value), np.asarray(self.share.value)
            self.gap = self._relative_gap(kept, max(float(self._band.dual_value), 0.0), values)
            if self.gap <= self.TOLERANCE:
                return kept, share
            found = f"the conic solver says '{self.problem.status}', {self.gap:.1e} from its bound"
        raise SolverError(f"(ratio, bandwidth) step: {found}")

    def lower_bound(self, kept: FloatArray, price: float, values: Mapping[str, FloatArray]) -> float:
        """Bound the program's least value from below by its Lagrangian dual at a price of the whole band, at least 0.

        At a price the clients part, and each has a convex function of its kept fraction to minimise, with its least
        share of the band in closed form. Two tangents on either side of the minimum bound it; they are taken as near
        to `kept` as they enclose it. The bound holds at any price and any fractions; both only make it tight.
        """
        steps = 10.0 ** -np.arange(9.0, 0.0, -1.0)[:, None]
        low, high = values["least"], values["top"]
        points = np.clip(np.concatenate([kept - steps * kept, kept[None], kept + steps * kept]), low, high)
        points = np.sort(np.concatenate([low[None], points, high[None]]), axis=0)
        share, rise = self._least_share(points, values)
        bend = values["curve"] * points - values["centre"]
        with np.errstate(invalid="ignore"):
            value = bend**2 - values["weight"] * points + np.where(share > 0.0, price * share, 0.0)
            slope = 2.0 * values["curve"] * bend - values["weight"] + np.where(rise > 0.0, price * rise, 0.0)
        value, slope = (np.where(np.isfinite(share), part, np.inf) for part in (value, slope))
        rising = slope >= 0.0
        first = np.where(rising.any(axis=0), rising.argmax(axis=0), len(points))
        every = np.arange(kept.size)
        left, right = np.maximum(first - 1, 0), np.minimum(first, len(points) - 1)
        start, stop = points[left, every], points[right, every]
        with np.errstate(invalid="ignore"):
            # where the tangents meet; the left one alone at the end where the right end cannot be reached
            steeper = slope[right, every] - slope[left, every]
            above = value[left, every] + slope[left, every] * (stop - start) - value[right, every]
            back = np.where(np.isfinite(steeper) & (steeper > 0.0), above, 0.0) / np.where(steeper > 0.0, steeper, 1.0)
        meet = stop + np.clip(np.nan_to_num(back), start - stop, 0.0)
        between = value[left, every] + slope[left, every] * (meet - start)
        least = np.where(first == 0, value[0], np.where(first == len(points), value[-1], between))
        return float(least.sum() - price)

    def _relative_gap(self, kept: FloatArray, price: float, values: Mapping[str, FloatArray]) -> float:
        """Distance of the value from its bound, or of the bands needed from those there are, the larger in proportion.

        Shares are ratios of quantities in SI; of the solver only its fractions and its price enter.
        """
        if not np.all(np.isfinite(kept)):
            return np.inf
        inside = np.clip(kept, values["least"], values["top"])
        need = float(self._least_share(inside, values)[0].sum()) - 1.0
        reached = float(values["weight"] @ inside)
        value = float(np.sum((values["curve"] * inside - values["centre"]) ** 2)) - reached
        size = max(abs(value), abs(reached), 1e-300)
        gap = abs(value - self.lower_bound(inside, price, values)) / size
        return float(np.nan_to_num(max(gap, need, float(np.abs(kept - inside).max())), nan=np.inf))

    @staticmethod
    def _least_share(kept: FloatArray, values: Mapping[str, FloatArray]) -> tuple[FloatArray, FloatArray]:
        """Least shares of the band for kept fractions ``[..., clients]``, and their slopes; inf where none suffices."""
        v = values
        with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
            room = 1.0 - v["per_room"] * kept
            late = v["late_scale"] / room
            early, later = v["bits_once"] + v["bits_each"] * kept, v["late_once"] + v["late_each"] * kept + late
            need = np.maximum(early, later)
            rise = np.where(early >= later, v["bits_each"], v["late_each"] + v["per_room"] * late / room)
            work = v["energy_once"] + v["energy_each"] * kept
            sends = v["upload"] > 0.0
            drive = np.where(sends, (1.0 - work**3) / np.where(sends, v["upload"], 1.0), 1.0)
            fall = np.where(
                sends & (drive < 1.0), -3.0 * work**2 * v["energy_each"] / np.where(sends, v["upload"], 1.0), 0.0
            )
            drive = np.minimum(drive, 1.0)
            can, idle = (room > 0.0) & (drive > 0.0), need <= 0.0
            share = least_bandwidth(
                payload=np.where(can & ~idle, need, 1.0),
                deadline=1.0,
                gain=v["gain"],
                noise_density=1.0,
                power_max=np.where(can, drive, 1.0),
            )
            share = np.where(can, np.where(idle, 0.0, share), np.inf)
            # nats per share; the rate's slopes are (y - 1 + e^-y)/ln 2 in the share and G e^-y/ln 2 in the power
            y = LN2 * need / share
            slope = (LN2 * rise - v["gain"] * np.exp(-y) * fall) / (y + np.expm1(-y))
        return share, np.where(np.isfinite(share), np.where(share > 0.0, slope, 0.0), np.inf)


class Alternation:
    """The published alternation (theory 3d): time split, joint (ratio, bandwidth), selection by prefix and swaps."""

    def __init__(self, problem: FEEL, cells: FEELCells) -> None:
        self.problem, self.cells, self.client = problem, cells, cells.client
        self.outer = SelectionObjective(problem)
        self._step: RatioBandwidthStep | None = None

    def blocks(self) -> Blocks:
        """Return the steps in their order: the time split first, since it frees the energy that step 3 uses."""
        return Blocks(
            start=self.start,
            steps={"time split": self.split, "ratio and bandwidth": self.share, "selection": self.select},
            tolerance=1e-4,
            max_iterations=30,
        )

    def start(self) -> Decision:
        """Return a feasible start: as many clients as fit at the largest ratio, bands in proportion to their need."""
        least = np.exp(self.cells.least_log_bandwidth())
        low, high = self.problem.ranges["selected"]
        taken = low > 0.5
        order = np.argsort(np.where(taken, -1.0, least), kind="stable")
        for k in order:
            if not taken[k] and high[k] > 0.5 and float(least[taken].sum()) + least[k] <= self.client.band:
                taken[k] = True
        if not taken.any():
            taken[int(np.argmin(least))] = True
        return self._proportional(taken, least)

    def _proportional(self, taken: Any, least: FloatArray) -> Decision:
        """Split the band in proportion to what the clients need at least; each keeps as much as its share allows."""
        units = np.flatnonzero(taken)
        cells = self.cells
        empty = Decision({v.name: np.zeros(cells.units) for v in self.problem.variables})
        if not float(least[units].sum()) <= self.client.band:
            parts = cells.least_violating(units)
            return Decision({name: _placed(cells.units, units, values) for name, values in parts.items()})
        share = least[units] * (self.client.band / float(least[units].sum()))
        top = np.maximum(cells.free()[units], cells.least[units])
        kept = self.client.largest_kept(units, cells.least[units], top, share)
        return self._least_band(empty, units, kept)

    def _least_band(self, decision: Decision, units: Any, kept: FloatArray) -> Decision:
        """Give the units the computing time, power and band that send their kept fractions in the least band."""
        parts, _ = self.cells.complete(np.array([1.0, 0.0]), units, None, kept)
        full = {name: np.array(decision[name]) for name in decision}
        for name, values in parts.items():
            full[name][units] = values
        return Decision(full)

    def split(self, decision: Decision) -> Decision:
        """Step 2: at fixed ratios, the split of the round between computing and sending that needs the least band.

        Theory 3d splits for the least energy. That frees what step 3 can use only where energy binds, and stalls where
        time does; the least band frees the shared resource in both cases, and agrees where energy binds.
        """
        units = np.flatnonzero(decision["selected"] > 0.5)
        kept = np.clip(1.0 - decision["pruning_ratio"][units], self.cells.least[units], self.cells.most[units])
        if not np.all(np.isfinite(self.client.least_bandwidth(units, kept)[0])):
            # nothing to split for who cannot take part at all
            return decision
        return self._least_band(decision, units, kept)

    def _timed(self, decision: Decision, units: Any, kept: Any, band: Any, compute: Any) -> Decision:
        """Return the decision with the frequency and power that follow from the computing times."""
        client = self.client
        cycles = client.cycles_once[units] + client.cycles_each[units] * kept
        bits = client.bits_once + client.bits_each * kept
        upload = client.delay_budget[units] - compute
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
            power = band / client.gain[units] * np.expm1(LN2 * bits / (band * upload))
        strongest = client.power_max[units]
        full = {name: np.array(decision[name]) for name in decision}
        full["pruning_ratio"][units] = 1.0 - kept
        full["bandwidth"][units] = band
        full["frequency"][units] = np.minimum(cycles / np.maximum(compute, 1e-300), client.frequency_max[units])
        full["power"][units] = np.where(np.isfinite(power), np.minimum(power, strongest), strongest)
        return Decision(full)

    def share(self, decision: Decision) -> Decision:
        """Step 3: at fixed computing times, ratios and bands together (cvxpy), then what rounding left is put right."""
        client, cells = self.client, self.cells
        a = decision["selected"] > 0.5
        units = np.flatnonzero(a)
        cycles = client.cycles_once + client.cycles_each * (1.0 - decision["pruning_ratio"])
        compute = np.where(a, cycles / np.where(a, decision["frequency"], 1.0), 0.5 * client.delay_budget)
        if np.any(client.delay_budget[units] <= compute[units]):
            return decision
        if self._step is None:
            self._step = RatioBandwidthStep(cells.units)
        try:
            new, band = self._step.solve(**self.coefficients(decision, compute))
        except SolverError:
            return decision
        band = np.maximum(band[units], 1e-9)
        band *= client.band / band.sum()
        new = np.clip(new[units], cells.least[units], np.maximum(cells.free(), cells.least)[units])
        before = self._value(decision)
        for shrink in (0.0, 1e-9, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4):
            # a conic solver's answer is right to its tolerance, a budget holds exactly
            kept = np.maximum(new * (1.0 - shrink), cells.least[units])
            needed = (client.cycles_once[units] + client.cycles_each[units] * kept) / client.frequency_max[units]
            out = self._timed(decision, units, kept, band, np.maximum(compute[units], needed))
            after = self._value(out)
            if after < np.inf:
                return out if after <= before else decision
        return decision

    def coefficients(self, decision: Decision, compute: FloatArray) -> dict[str, FloatArray]:
        """Parameters of `RatioBandwidthStep` at computing times [s] of all clients."""
        client, cells = self.client, self.cells
        a = decision["selected"] > 0.5
        kept = np.clip(1.0 - decision["pruning_ratio"], cells.least, cells.most)
        every = np.arange(cells.units)
        top = np.maximum(cells.free(), cells.least)
        weight = np.where(a, -cells.slope_of_cost(every, kept), 0.0)
        # the linear pruning error is its tangent; other curves bend, judged by their slope a step further down
        away = np.maximum(kept - STEP, cells.least)
        with np.errstate(divide="ignore", invalid="ignore"):
            bend = (-cells.slope_of_cost(every, away) - weight) / (kept - away)
        bend = np.where(a & (kept > away), np.maximum(np.nan_to_num(bend), 0.0), 0.0)
        scale = max(float(np.abs(weight).max()), float(bend.max()), 1e-300)
        curve = np.sqrt(0.5 * bend / scale)
        upload = np.where(a, client.delay_budget - compute, 1.0)
        strength = (client.capacitance / (compute**2 * client.energy_budget)) ** (1.0 / 3.0)
        # time left at f_max, in kept fractions: T_max - W(s)/f_max = (D - s) W_1/f_max. Where computing at f_max takes
        # next to nothing of the round, the difference of two large numbers is left out and the longest one taken.
        slow = client.cycles_each > client.frequency_max * client.delay_budget / 20.0
        each = np.where(slow, client.cycles_each, 1.0)
        room = np.where(slow, (client.delay_budget * client.frequency_max - client.cycles_once) / each, np.inf)
        pace = np.where(slow, client.frequency_max / (each * client.band), 0.0)
        full = client.delay_budget - (client.cycles_once + client.cycles_each * top) / client.frequency_max
        brisk = np.where(slow, 0.0, 1.0 / (np.maximum(full, upload) * client.band))
        values = {
            "bits_once": client.bits_once / (upload * client.band),
            "bits_each": client.bits_each / (upload * client.band),
            "energy_once": strength * client.cycles_once,
            "energy_each": strength * client.cycles_each,
            "late_once": client.bits_once * brisk - client.bits_each * pace,
            "late_each": client.bits_each * brisk,
            "late_scale": np.where(slow, (client.bits_once / room + client.bits_each) * pace, 0.0),
            "per_room": 1.0 / room,
            "upload": client.power_max * upload / client.energy_budget,
        }
        return {
            **{name: np.where(a, value, 0.0) for name, value in values.items()},
            "gain": client.power_max * client.gain / client.band,
            "weight": weight / scale,
            "curve": curve,
            "centre": curve * kept,
            "top": top,
            "least": cells.least,
        }

    def select(self, decision: Decision) -> Decision:
        """Step 4: clients ranked by chi; steps 2 and 3 for prefixes, then for the best swaps; kept if Gamma falls."""
        cells, client = self.cells, self.client
        low, high = self.problem.ranges["selected"]
        every = np.arange(cells.units)
        least = np.exp(cells.least_log_bandwidth())
        taken, must = decision["selected"] > 0.5, low > 0.5
        able = (high > 0.5) & (least <= client.band)
        # who is left out is judged by the ratio that an equal share of the band would give
        kept = np.where(taken, 1.0 - decision["pruning_ratio"], cells.least)
        equal = client.band / (taken.sum() + 1)
        others = np.flatnonzero(~taken & (least <= equal))
        if others.size:
            top = np.maximum(cells.free()[others], cells.least[others])
            kept[others] = client.largest_kept(others, cells.least[others], top, np.full(others.size, equal))
        cost, mass = cells.cost(every, kept), cells.weight
        best, chosen = decision, taken
        value = self._value(decision)
        ranked = [k for k in np.argsort(cost / mass, kind="stable") if able[k] and not must[k]]
        sizes = np.unique(np.linspace(0 if must.any() else 1, len(ranked), PREFIXES).round().astype(int))
        candidates = []
        for size in sizes[: len(ranked) + 1]:
            some = must.copy()
            some[ranked[:size]] = True
            candidates.append(some)
        best, value, chosen = self._best(candidates, least, best, value, chosen)
        # swaps, and one client more or less, that look best at fixed chi
        inside, outside = np.flatnonzero(chosen & ~must), np.flatnonzero(~chosen & able)
        moves: list[tuple[int, ...]] = [(int(k),) for k in (*inside, *outside)]
        moves += [(int(i), int(j)) for i in inside for j in outside]
        judged = []
        for move in moves:
            some = chosen.copy()
            some[list(move)] ^= True
            if some.any():
                judged.append((float(self.outer.value(cost[some].sum(), mass[some].sum())), move, some))
        judged.sort(key=lambda entry: entry[:2])
        single = [some for _, move, some in judged if len(move) == 1]
        double = [some for _, move, some in judged if len(move) == 2]
        return self._best(single[:SWAPS] + double[:SWAPS], least, best, value, chosen)[0]

    def _value(self, decision: Decision) -> float:
        evaluation = self.problem.evaluate(decision)
        return float(evaluation.objective) if bool(evaluation.feasible()) else float("inf")

    def _best(
        self, candidates: list[Any], least: FloatArray, best: Decision, value: float, chosen: Any
    ) -> tuple[Decision, float, Any]:
        """Run step 3 once on every selection that can be feasible, steps 2 and 3 to rest on the best of them."""
        tried: list[tuple[float, int, Decision, Any]] = []
        for some in candidates:
            if not some.any() or np.array_equal(some, chosen) or float(least[some].sum()) > self.client.band:
                continue
            trial = self.share(self._proportional(some, least))
            tried.append((self._value(trial), len(tried), trial, some))
        for after, _, trial, some in sorted(tried, key=lambda entry: entry[:2])[:FINALISTS]:
            for _ in range(ROUNDS):
                if after < value:
                    best, value, chosen = trial, after, some
                trial, earlier = self.share(self.split(trial)), after
                after = self._value(trial)
                if not after < earlier * (1.0 - 1e-4):
                    break
            if after < value:
                best, value, chosen = trial, after, some
        return best, value, chosen


def _placed(size: int, units: Any, values: FloatArray) -> FloatArray:
    full = np.zeros(size)
    full[units] = values
    return full

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.special as sc
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from jointopt.decision import Decision
from jointopt.problem import CellList
from jointopt.problems.ltfl import CONTRACTION_LIMIT, LTFL
from jointopt.solvers.exact import Exact, minimize_sums
from jointopt.solvers.priced import CellsPriced
from jointopt.system import System

GAP = 1e-6
GOLDEN_SECTION = (math.sqrt(5.0) - 1.0) / 2.0

# ------------------------------------------------------------------ the same mathematics, written anew


class Reference:
    """Theory 1a to 1c from a system's numbers alone (scipy.special only), and a search over all decisions."""

    def __init__(self, system: System, **ranges: tuple[Any, Any]) -> None:
        d, r, m, b = system.devices, system.radio, system.learner, system.bound
        self.count = len(d.samples)
        ones = np.ones(self.count)
        self.fading, self.law = r.fading, r.packet_error
        self.noise = r.interference + r.bandwidth * r.noise_density
        self.gain, self.band = r.gain, r.bandwidth
        self.threshold = r.outage_threshold if self.law == "outage" else r.waterfall_threshold
        self.pi = d.samples / d.samples.sum()
        batch = d.samples if m.batch_size is None else np.minimum(d.samples, m.batch_size)
        self.cycles = batch * d.cycles_per_sample
        self.frequency, self.capacitance = d.frequency, d.capacitance
        self.T, self.E = d.delay_budget, d.energy_budget
        self.V, self.W = m.parameters, m.unpruned_parameters
        self.mask = m.compute_law == "mask"
        self.index = math.ceil(math.log2(self.V)) if m.mask_encoding == "indices" else 0
        self.header = m.header_bits + (self.V if m.mask_encoding == "bitmap" else 0)
        self.ratio = ranges.get("pruning_ratio", (0.0 * ones, m.pruning_ratio_max * ones))
        self.bits = ranges.get("bits", (m.bits_min * ones, m.bits_max * ones))
        self.power = ranges.get("power", (d.power_min, d.power_max))
        self.laplace = b.pruning_error == "laplace"
        self.LD, self.M = b.smoothness**2 * b.weight_norm_squared, b.mask_energy
        self.range = b.quantizer_range
        self.sampling = np.where(batch < d.samples, b.gradient_variance / batch, 0.0)
        worst = m.pruning_ratio_max
        cap = self.LD * self.phi(np.asarray(worst)) + self.M * worst + self.sampling.max()
        cap += (self.V + self.W) * self.range.max() ** 2 / (4 * (2.0**m.bits_min - 1) ** 2)
        self.loss = 8 * b.gradient_offset + 2 * float(cap)
        self.contraction = 8 * b.gradient_slope

    def phi(self, ratio: Any) -> Any:
        if not self.laplace:
            return ratio
        x = -np.log1p(-ratio)
        exact = 1 - (1 - ratio) * (1 + x + x * x / 2)
        return np.where(x < 1e-2, x**3 / 6 - x**4 / 8 + x**5 / 20 - x**6 / 72 + x**7 / 336, exact)

    def efficiency(self, s: Any) -> Any:
        if self.fading == "none":
            return np.log1p(s) / math.log(2)
        small = s * (1 - s + 2 * s**2 - 6 * s**3 + 24 * s**4)
        x = 1 / np.maximum(s, 2e-3)
        return np.where(s < 2e-3, small, np.exp(x) * sc.exp1(x)) / math.log(2)

    def lost(self, s: Any) -> Any:
        x = self.threshold / s
        if self.law == "outage" or self.fading == "none":
            return -np.expm1(-x)
        # below 0.02 the power series of x K1(x) about 0, whose leading 1 cancels; six terms leave 1e-15
        y = np.minimum(x, 0.02)
        series = sum(
            -(y ** (k + 1)) / (math.factorial(k) * math.factorial(k + 1)) * (np.log(y) - sc.psi(k + 1) - sc.psi(k + 2))
            for k in range(6)
        )
        root = 2 * np.sqrt(np.clip(x, 0.02, 1e5))
        return np.where(x < 0.02, series, 1 - root * sc.k1(root))

    def use(self, u: int, ratio: Any, bits: Any, power: Any) -> tuple[Any, Any]:
        """Delay and energy of a round."""
        rate = self.band[u] * self.efficiency(power * self.gain[u] / self.noise[u])
        work = self.cycles[u] * (1.0 if self.mask else 1 - ratio)
        upload = ((1 - ratio) * self.V * (bits + self.index) + self.W * bits + self.header) / rate
        return work / self.frequency[u] + upload, (self.capacitance[u] * self.frequency[u] ** 2 * work + power * upload)

    def error(self, u: int, ratio: Any, bits: Any) -> Any:
        """Pruning, quantization and sampling terms, not weighted."""
        quant = ((1 - ratio) * self.V + self.W) * self.range[u] ** 2 / (4 * (2.0**bits - 1) ** 2)
        return 2 * (self.LD * self.phi(ratio) + self.M * ratio) + 2 * quant + 2 * self.sampling[u]

    def gap(self, u: int, ratio: Any, bits: Any, power: Any) -> Any:
        """The device's share of the gap."""
        lost = self.lost(power * self.gain[u] / self.noise[u])
        return self.pi[u] * (self.loss * lost + self.error(u, ratio, bits))

    def best_ratio(self, u: int, bits: Any, power: Any) -> Any:
        """Best ratio that keeps both budgets; nan where there is none. Both uses are affine in the ratio."""
        least = np.full(np.broadcast(bits, power).shape, self.ratio[0][u])
        for budget, (dense, empty) in zip(
            (self.T[u], self.E[u]),
            zip(self.use(u, 0.0, bits, power), self.use(u, 1.0, bits, power), strict=True),
            strict=True,
        ):
            least = np.maximum(least, (dense - budget) / (dense - empty))
        top = self.ratio[1][u]
        possible = least <= top
        least = np.minimum(least, top)
        if self.laplace:  # a convex function of the ratio
            a, b = least.copy(), np.full(least.shape, top)
            for _ in range(50):
                c, d = b - GOLDEN_SECTION * (b - a), a + GOLDEN_SECTION * (b - a)
                left = self.error(u, c, bits) < self.error(u, d, bits)
                a, b = np.where(left, a, c), np.where(left, d, b)
            choices = [least, 0.5 * (a + b), np.full(least.shape, top)]
        else:  # an affine one
            choices = [least, np.full(least.shape, top)]
        values = np.stack([self.error(u, c, bits) for c in choices])
        ratio = np.take_along_axis(np.stack(choices), values.argmin(axis=0)[None], axis=0)[0]
        return np.where(possible, ratio, np.nan)

    def best_gap(self, u: int, bits: Any, power: Any) -> Any:
        """Least gap of the device at bits and power; inf where infeasible."""
        ratio = self.best_ratio(u, bits, power)
        value = self.gap(u, np.where(np.isnan(ratio), 0.0, ratio), bits, power)
        return np.where(np.isnan(ratio), np.inf, value)

    def excess(self, u: int, power: Any) -> Any:
        """Larger of delay and energy over its budget, at the cheapest ratio and bits."""
        delay, energy = self.use(u, self.ratio[1][u], self.bits[0][u], power)
        return np.maximum(delay / self.T[u], energy / self.E[u])

    def cheapest_power(self, u: int) -> float:
        """Power at which `excess` is least; it falls and then rises."""
        a, b = np.log(self.power[0][u]), np.log(self.power[1][u])
        for _ in range(12):
            points = np.linspace(a, b, 25)
            k = int(self.excess(u, np.exp(points)).argmin())
            a, b = points[max(k - 1, 0)], points[min(k + 1, 24)]
        ends = [self.power[0][u], self.power[1][u], math.exp(0.5 * (a + b))]
        return float(min(ends, key=lambda p: float(self.excess(u, np.asarray(p)))))

    def grid(self, u: int, points: int) -> Any:
        """Powers from least to greatest, evenly spread in decades, and the cheapest one."""
        low, high = self.power[0][u], self.power[1][u]
        cheapest = self.cheapest_power(u)
        near = cheapest * np.array([1 - 1e-4, 1 - 1e-7, 1 - 1e-10, 1.0, 1 + 1e-10, 1 + 1e-7, 1 + 1e-4])
        grid = np.concatenate([np.geomspace(low, high, points), near])
        return np.unique(np.clip(grid, low, high))

    def widths(self, u: int) -> Any:
        return np.arange(self.bits[0][u], self.bits[1][u] + 1)

    def search(self, u: int, points: int = 300) -> tuple[float, float, float]:
        """Least gap of one device with its power and bits: grid over power, every local minimum refined."""
        powers, widths = self.grid(u, points), self.widths(u)
        table = self.best_gap(u, widths[:, None], powers[None, :])
        padded = np.pad(table, ((0, 0), (1, 1)), constant_values=np.inf)
        local = np.isfinite(table) & (table <= padded[:, :-2]) & (table <= padded[:, 2:])
        rows, columns = np.nonzero(local)
        if rows.size == 0:
            return np.inf, np.nan, np.nan
        best = table[rows, columns]
        keep = np.argsort(best)[:12]
        rows, columns, best = rows[keep], columns[keep], best[keep]
        where = powers[columns]
        bits = widths[rows]
        left = powers[np.maximum(columns - 1, 0)]
        right = powers[np.minimum(columns + 1, powers.size - 1)]
        for _ in range(14):
            inner = left[:, None] + (right - left)[:, None] * np.linspace(0, 1, 13)
            values = self.best_gap(u, bits[:, None], inner)
            k = values.argmin(axis=1)
            every = np.arange(k.size)
            better = values[every, k] < best
            best = np.where(better, values[every, k], best)
            where = np.where(better, inner[every, k], where)
            left, right = inner[every, np.maximum(k - 1, 0)], inner[every, np.minimum(k + 1, 12)]
        k = int(best.argmin())
        return float(best[k]), float(where[k]), float(bits[k])

    def minimum(self, points: int = 300) -> float:
        """Least gap over all decisions; inf when some device has none."""
        return float(sum(self.search(u, points)[0] for u in range(self.count)))


def solve(problem: LTFL, gap: float = GAP) -> Exact:
    offered = problem.capabilities()
    assert offered.sums is not None
    assert offered.cells is not None
    return minimize_sums(offered.sums, CellsPriced(offered.cells), gap=gap)


# ------------------------------------------------------------------ random scenarios


def random_fields(rng: np.random.Generator, devices: int | None = None, **fixed: Any) -> dict[str, Any]:
    """Fields of a random scenario whose budgets lie around what some random decision uses."""
    n = int(rng.integers(1, 4)) if devices is None else devices

    def each(low: float, high: float) -> Any:
        return 10.0 ** rng.uniform(low, high, n)

    V = round(10.0 ** rng.uniform(2, 7))
    bits_min = int(rng.integers(1, 9))
    bits_max = bits_min + int(rng.integers(0, 6))
    power_min = each(-3, -1)
    spread = np.where(rng.uniform(size=n) < 0.1, 1.0, each(0.0, 3.0))
    band = each(4, 7)
    noise_density = 10**-20.4
    interference = np.where(rng.uniform(size=n) < 0.5, 0.0, each(-16, -12))
    # mean SNR at full power from -10 to 60 dB
    snr = each(-1, 6)
    fields: dict[str, Any] = {
        "samples": np.rint(each(0, 3.5)),
        "cycles_per_sample": each(3, 6),
        "frequency": each(7, 9.5),
        "capacitance": each(-29, -25) * (rng.uniform(size=n) < 0.9),
        "power_min": power_min,
        "power_max": power_min * spread,
        "bandwidth": band,
        "noise_density": noise_density,
        "interference": interference,
        "gain": snr * (interference + band * noise_density) / (power_min * spread),
        "waterfall_threshold": 10.0 ** rng.uniform(-1, 1),
        "outage_threshold": 10.0 ** rng.uniform(-1, 1),
        "parameters": V,
        "unpruned_parameters": int(rng.choice([0, 0, V // 50])),
        "bits_min": bits_min,
        "bits_max": bits_max,
        "header_bits": float(rng.choice([0.0, 64.0, V])),
        "pruning_ratio_max": float(rng.uniform(0.05, 0.95)),
        "batch_size": [None, None, 32][rng.integers(3)],
        "compute_law": str(rng.choice(["linear", "linear", "mask"])),
        "mask_encoding": str(rng.choice(["none", "none", "bitmap", "indices"])),
        "smoothness": 10.0 ** rng.uniform(-1, 1),
        "weight_norm_squared": 10.0 ** rng.uniform(-2, 2) * (rng.uniform() < 0.9),
        "mask_energy": 10.0 ** rng.uniform(-3, 1) * (rng.uniform() < 0.7),
        "gradient_offset": 10.0 ** rng.uniform(-3, 2) * (rng.uniform() < 0.9),
        "gradient_variance": 10.0 ** rng.uniform(-3, 1) * (rng.uniform() < 0.5),
        "pruning_error": str(rng.choice(["linear", "laplace"])),
    }
    kind = rng.choice(["rayleigh", "none", "outage"], p=[0.6, 0.25, 0.15])
    fields["fading"] = "none" if kind == "none" else "rayleigh"
    fields["packet_error"] = "outage" if kind == "outage" else "waterfall"
    # the quantization noise is comparable with the pruning error at some width of the range
    energy = fields["smoothness"] ** 2 * fields["weight_norm_squared"] + fields["mask_energy"] + 1e-3
    middle = rng.uniform(bits_min, bits_max + 2)
    fields["quantizer_range"] = np.sqrt(4 * energy * each(-1, 1) / V) * 2.0**middle
    fields |= fixed
    return fields


def random_system(
    make: Callable[..., System], rng: np.random.Generator, devices: int | None = None, **fixed: Any
) -> System:
    """A random scenario; in most, budgets bind."""
    fields = random_fields(rng, devices, **fixed)
    system = make(**{**fields, "delay_budget": 1.0, "energy_budget": 1.0})
    reference = Reference(system)
    delay, energy = [], []
    for u in range(reference.count):
        ratio = rng.uniform(0, system.learner.pruning_ratio_max)
        bits = rng.integers(system.learner.bits_min, system.learner.bits_max + 1)
        power = math.exp(rng.uniform(math.log(reference.power[0][u]), math.log(reference.power[1][u])))
        t, e = reference.use(u, ratio, bits, power)
        delay.append(t * 10.0 ** rng.choice([-0.1, 0.0, 0.02, 0.1, 0.3, 2.0], p=[0.1, 0.2, 0.2, 0.2, 0.2, 0.1]))
        energy.append(e * 10.0 ** rng.choice([-0.1, 0.0, 0.02, 0.1, 0.3, 2.0], p=[0.1, 0.2, 0.2, 0.2, 0.2, 0.1]))
    return make(
        **{
            **fields,
            "delay_budget": fixed.get("delay_budget", delay),
            "energy_budget": fixed.get("energy_budget", energy),
        }
    )


def near(least: float, value: float) -> bool:
    """Whether a value is no worse than one found by search, up to the tolerance asked for."""
    return value <= least * (1 + GAP) + 1e-15


def check_answer(problem: LTFL, answer: Exact, reference: Reference) -> None:
    """The value is the decision's, the decision keeps its budgets and ranges, the gap is met."""
    assert answer.value is not None
    assert answer.lower_bound is not None
    assert answer.lower_bound <= answer.value
    assert answer.value - answer.lower_bound <= GAP * answer.value
    decision = Decision(answer.decision)
    evaluation = problem.evaluate(decision)
    assert evaluation.feasible()
    assert float(evaluation.objective) == pytest.approx(answer.value, rel=1e-11)
    total = 0.0
    for u in range(reference.count):
        ratio, bits, power = (float(decision[name][u]) for name in ("pruning_ratio", "bits", "power"))
        delay, energy = reference.use(u, ratio, bits, np.asarray(power))
        assert delay <= reference.T[u] * (1 + 1e-9)
        assert energy <= reference.E[u] * (1 + 1e-9)
        assert reference.ratio[0][u] <= ratio <= reference.ratio[1][u]
        assert reference.power[0][u] <= power <= reference.power[1][u]
        assert reference.bits[0][u] <= bits <= reference.bits[1][u]
        assert bits == round(bits)
        total += float(reference.gap(u, ratio, bits, np.asarray(power)))
    assert total == pytest.approx(answer.value, rel=1e-9)


def check_against_search(problem: LTFL, reference: Reference, points: int = 300) -> Exact:
    """The answer is no worse than a search finds, the bound never above it, and feasibility agrees."""
    answer = solve(problem)
    least = reference.minimum(points)
    if answer.value is None:
        assert not np.isfinite(least)
        assert answer.infeasible.size > 0
        return answer
    check_answer(problem, answer, reference)
    assert answer.lower_bound is not None
    assert near(least, answer.value)
    assert answer.lower_bound <= least * (1 + 1e-12)
    if np.isfinite(least):  # a search may miss a sliver, but never by much
        assert least <= answer.value * (1 + 1e-3)
    return answer


# ------------------------------------------------------------------ golden instances (theory 1f)


@pytest.mark.parametrize(
    ("c_delta", "delay", "energy", "power", "bits", "ratio", "gap", "digits"),
    [
        (1, 3.5, 0.08, 0.05, 11, 0.0, 2.39e-7, 3e-3),
        (1, 2.0, 0.05, 0.05, 3, 0.339778, 0.353252, 2e-6),
        (1, 1.0, 0.05, 0.05, 3, 0.669889, 0.669889 + 0.330111 / 49, 2e-6),
        (100, 2.0, 0.05, 0.05, 7, 0.386278, 0.390083, 2e-6),
        (100, 3.5, 0.012, 0.01, 9, 0.0, 3.83e-4, 2e-3),
        (100, 3.5, 0.012, 0.05, 5, 0.2293, 0.3095, 2e-4),
        (100, 3.5, 0.012, 0.1, 5, 0.5768, 0.6209, 2e-4),
    ],
)
def test_golden_instances_at_a_fixed_power(
    make_system: Any,
    c_delta: float,
    delay: float,
    energy: float,
    power: float,
    bits: int,
    ratio: float,
    gap: float,
    digits: float,
) -> None:
    system = make_system(quantizer_range=math.sqrt(2 * c_delta / 1e6), delay_budget=delay, energy_budget=energy)
    problem = LTFL(system).restrict(power=power)
    answer = solve(problem)
    assert answer.decision["power"] == pytest.approx([power], rel=1e-12)
    assert answer.decision["bits"] == [bits]
    assert answer.decision["pruning_ratio"] == pytest.approx([ratio], abs=digits)
    parts = problem.evaluate(Decision(answer.decision)).parts
    assert float(parts["pruning"] + parts["quantization"]) == pytest.approx(gap, rel=digits)
    reference = Reference(system, power=(np.array([power]), np.array([power])))
    assert near(reference.minimum(2), float(answer.value))


def test_power_backs_off_where_energy_is_short(make_system: Any) -> None:
    system = make_system(quantizer_range=math.sqrt(200 / 1e6), delay_budget=3.5, energy_budget=0.012)
    answer = check_against_search(LTFL(system), Reference(system))
    assert answer.decision["power"][0] < 0.05


@pytest.mark.parametrize(
    ("bits_max", "c_delta", "ratio"),
    [(16, 1.0, 0.0), (16, 1e4, 0.0), (2, 8.9, 0.0), (2, 9.1, 0.9), (1, 1.1, 0.9)],
)
def test_generous_budgets_give_full_power_and_most_bits(
    make_system: Any, bits_max: int, c_delta: float, ratio: float
) -> None:
    # T4: pruning pays only where C_delta/(2^bits - 1)^2 exceeds C_rho = 1
    system = make_system(
        bits_max=bits_max, quantizer_range=math.sqrt(2 * c_delta / 1e6), delay_budget=1e9, energy_budget=1e9
    )
    answer = solve(LTFL(system))
    assert answer.decision["power"] == [system.devices.power_max[0]]
    assert answer.decision["bits"] == [bits_max]
    assert answer.decision["pruning_ratio"] == [ratio]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32 - 1))
def test_an_interior_ratio_means_a_tight_budget(make_system: Any, seed: int) -> None:
    # T5; holds where the error is linear in the ratio
    system = random_system(make_system, np.random.default_rng(seed), pruning_error="linear")
    problem = LTFL(system)
    answer = solve(problem)
    assume(answer.value is not None)
    quantities = problem.evaluate(Decision(answer.decision)).quantities
    ratio = answer.decision["pruning_ratio"]
    inside = (ratio > 1e-9) & (ratio < system.learner.pruning_ratio_max * (1 - 1e-9))
    tight = np.maximum(
        quantities["delay"] / system.devices.delay_budget, quantities["energy"] / system.devices.energy_budget
    )
    np.testing.assert_allclose(tight[inside], 1.0, rtol=1e-9)


# ------------------------------------------------------------------ against search


@settings(max_examples=200, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32 - 1))
def test_no_decision_found_by_search_is_better(make_system: Any, seed: int) -> None:
    system = random_system(make_system, np.random.default_rng(seed))
    check_against_search(LTFL(system), Reference(system))


@pytest.mark.parametrize("pruning_error", ["linear", "laplace"])
@pytest.mark.parametrize("channel", [("rayleigh", "waterfall"), ("none", "waterfall"), ("rayleigh", "outage")])
@pytest.mark.parametrize("compute_law", ["linear", "mask"])
@pytest.mark.parametrize("mask_encoding", ["none", "bitmap", "indices"])
def test_every_combination_of_laws(
    make_system: Any, pruning_error: str, channel: tuple[str, str], compute_law: str, mask_encoding: str
) -> None:
    laws = {
        "pruning_error": pruning_error,
        "fading": channel[0],
        "packet_error": channel[1],
        "compute_law": compute_law,
        "mask_encoding": mask_encoding,
    }
    for seed in range(2):
        system = random_system(make_system, np.random.default_rng(seed), devices=1, **laws)
        check_against_search(LTFL(system), Reference(system))


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32 - 1),
    names=st.sets(st.sampled_from(["bits", "power", "pruning_ratio"]), min_size=1),
)
def test_restricted_problems(make_system: Any, seed: int, names: set[str]) -> None:
    rng = np.random.default_rng(seed)
    system = random_system(make_system, rng)
    ranges: dict[str, tuple[Any, Any]] = {}
    for name in sorted(names):
        low, high = {
            "bits": (system.learner.bits_min, system.learner.bits_max + 2),
            "power": (system.devices.power_min, system.devices.power_max),
            "pruning_ratio": (0.0, system.learner.pruning_ratio_max),
        }[name]
        ends = np.sort(rng.uniform(low, high, (2, len(system))), axis=0)
        if name == "bits":
            ends = np.floor(ends)
        if rng.uniform() < 0.5:
            ends[1] = ends[0]
        ranges[name] = (ends[0], ends[1])
    check_against_search(LTFL(system).restrict(**ranges), Reference(system, **ranges), 150)


def regime(make: Any, name: str) -> System:
    """Scenarios made so that the optimum lies where the name says."""
    quiet = {"gradient_offset": 0.0, "weight_norm_squared": 0.5, "bits_min": 4, "bits_max": 8}
    if name == "crossing":  # pruning is dear, packet loss is not: as little pruning as both budgets allow
        return make(**quiet, delay_budget=1.6, energy_budget=0.008)
    if name == "interior":  # packet loss is about as dear, energy short, time is not
        changes = {"gradient_offset": 30.0, "gain": 1e-9}
        return make(**{**quiet, **changes}, delay_budget=1e3, energy_budget=0.004)
    if name == "most power":
        return make(**{**quiet, "gradient_offset": 1e4}, delay_budget=1.6, energy_budget=10.0)
    if name == "least power":
        return make(**quiet, delay_budget=1e3, energy_budget=0.003)
    assert name == "ratio cap"  # one bit is so coarse that a dropped weight errs less than a sent one
    return make(bits_min=1, bits_max=1, quantizer_range=0.1, delay_budget=2.0, energy_budget=0.05)


@pytest.mark.parametrize("name", ["crossing", "interior", "most power", "least power", "ratio cap"])
def test_optimum_where_it_was_designed_to_be(make_system: Any, name: str) -> None:
    system = regime(make_system, name)
    problem = LTFL(system)
    answer = check_against_search(problem, Reference(system), 2000)
    assert answer.value is not None
    slack = problem.evaluate(Decision(answer.decision)).slack
    power, ratio = answer.decision["power"][0], answer.decision["pruning_ratio"][0]
    tight_delay = abs(slack["delay"][0]) < 1e-9 * system.devices.delay_budget[0]
    tight_energy = abs(slack["energy"][0]) < 1e-9 * system.devices.energy_budget[0]
    at_least, at_most = power == system.devices.power_min[0], power == system.devices.power_max[0]
    expected = {
        "crossing": tight_delay and tight_energy and not at_least and not at_most,
        "interior": tight_energy and not tight_delay and ratio > 0.01 and not at_least and not at_most,
        "most power": at_most and tight_delay,
        "least power": at_least and tight_energy and ratio > 0,
        "ratio cap": ratio == 0.9,
    }
    assert expected[name], (power, ratio, tight_delay, tight_energy)


def test_the_better_of_several_local_minima(make_system: Any) -> None:
    found = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        system = random_system(make_system, rng, devices=1, power_max=[1.0], power_min=[0.001], bits_max=10, bits_min=2)
        reference = Reference(system)
        powers = np.geomspace(0.001, 1.0, 700)
        values = reference.best_gap(0, reference.widths(0)[:, None], powers[None, :]).min(axis=0)
        if not np.all(np.isfinite(values)):
            continue
        inner = values[1:-1]
        minima = inner[(inner < values[:-2] * (1 - 1e-7)) & (inner < values[2:] * (1 - 1e-7))]
        ends = [v for v, w in ((values[0], values[1]), (values[-1], values[-2])) if v < w * (1 - 1e-7)]
        minima = np.sort(np.concatenate([minima, ends]))
        if minima.size < 2 or minima[1] < minima[0] * (1 + 1e-4):
            continue
        found += 1
        answer = solve(LTFL(system))
        assert answer.value is not None
        assert answer.value <= minima[0] * (1 + GAP)
        assert answer.lower_bound is not None
        assert answer.lower_bound <= minima[0] * (1 + 1e-12)
        if found == 12:
            return
    pytest.fail(f"only {found} scenarios with several local minima")


# ------------------------------------------------------------------ the bound of one cell


def random_cells(system: System, rng: np.random.Generator, count: int) -> tuple[LTFL, CellList]:
    """Cells of any width anywhere, many beside or around the crossing of the two budgets."""
    problem = LTFL(system)
    cells: Any = problem.capabilities().cells
    unit = rng.integers(0, len(system), count)
    label = rng.integers(system.learner.bits_min, system.learner.bits_max + 1, count)
    least, most = cells.low[unit], cells.high[unit]
    whole = CellList(unit, label, least, most, cells.probe(unit, least), cells.probe(unit, most))
    left, right = cells.split(np.array([1.0, 0.0]), whole, np.full(count, np.nan))
    crossing = np.sqrt(left * right)
    width = 10.0 ** rng.uniform(-13, 1.5, count)
    kind = rng.integers(0, 4, count)
    anywhere = least * (most / least) ** rng.uniform(size=count)
    after = right * (most / right) ** (rng.uniform(size=count) ** 3)
    low = np.select([kind == 0, kind == 1], [anywhere, crossing * np.exp(-(10.0 ** rng.uniform(-13, 0, count)))], after)
    low = np.clip(low, least, most)
    high = np.clip(np.where(kind == 1, crossing, low) * np.exp(width), low, most)
    return problem, CellList(unit, label, low, high, cells.probe(unit, low), cells.probe(unit, high))


def random_prices(rng: np.random.Generator) -> Any:
    choices = [
        np.array([1.0, 0.0]),
        np.array([0.0, 1.0]),
        np.array([-0.0, 1.0]),  # what negating a denominator without the gap gives
        np.array([1.0, 10.0 ** rng.uniform(-10, 10)]),
        10.0 ** rng.uniform(-12, 12, 2),
    ]
    return choices[rng.integers(len(choices))]


@settings(max_examples=80, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32 - 1))
def test_no_point_of_a_cell_lies_below_its_bound(make_system: Any, seed: int) -> None:
    # the key of the certificate: mean SNR from -40 to 80 dB, any prices, budgets short or generous
    rng = np.random.default_rng(seed)
    system = random_system(make_system, rng, devices=6)
    snr = 10.0 ** rng.uniform(-4, 8, 6)
    system = system.with_(
        gain=snr * system.noise_power / system.devices.power_max, gradient_slope=10.0 ** rng.uniform(-6, 6)
    )
    reference = Reference(system)
    budgets = []
    for u in range(6):
        power = reference.power[0][u] * (reference.power[1][u] / reference.power[0][u]) ** rng.uniform()
        ratio = rng.uniform(0, system.learner.pruning_ratio_max) * rng.choice([0.2, 1.0])
        bits = rng.integers(system.learner.bits_min, system.learner.bits_max + 1)
        budgets.append(np.array(reference.use(u, ratio, bits, power)) * 10.0 ** rng.uniform(-0.02, 0.5, 2))
    delay, energy = np.transpose(budgets)
    system = system.with_(delay_budget=delay, energy_budget=energy)
    problem, rows = random_cells(system, rng, 150)
    cells: Any = problem.capabilities().cells
    prices = random_prices(rng)
    lower, hint = cells.bound(prices, rows)
    assert not np.any(np.isnan(lower))
    share = rng.uniform(size=(50, 1))
    share[:2, 0] = 0.0, 1.0
    x = rows.low + share * (rows.high - rows.low)
    x[2:20] = rows.low * (rows.high / rows.low) ** share[2:20]
    x[20] = np.where(np.isnan(hint), rows.low, hint)
    x = np.clip(x, rows.low, rows.high)
    unit, label = (np.broadcast_to(a, x.shape).ravel() for a in (rows.unit, rows.label))
    value = cells.value(prices, unit, label, x.ravel(), cells.probe(unit, x.ravel())).reshape(x.shape)
    reference = Reference(system)
    size = reference.pi * (
        prices[0] * (reference.loss + np.array([reference.error(u, 0.99, 1.0 * rows.label.min()) for u in range(6)]))
        + prices[1] * reference.contraction
    )
    assert np.all(value >= lower - 1e-12 * size[rows.unit])
    feasible = np.isfinite(value).any(axis=0)
    assert np.all(np.isfinite(lower[feasible]))
    # and the value is that of the decision it completes to, by the other implementation
    for k in np.flatnonzero(np.isfinite(value[5]))[:5]:
        where = slice(k, k + 1)
        decision, features = cells.complete(prices, rows.unit[where], rows.label[where], x[5, where])
        assert float(prices @ features[:, 0]) == pytest.approx(float(value[5, k]), rel=1e-12, abs=1e-300)
        u, power = int(rows.unit[k]), decision["power"]
        gap = float(reference.gap(u, decision["pruning_ratio"], decision["bits"], power)[0])
        lost = float(reference.lost(power * reference.gain[u] / reference.noise[u])[0])
        assert features[0, 0] == pytest.approx(gap, rel=1e-9)
        assert features[1, 0] == pytest.approx(reference.pi[u] * reference.contraction * lost, rel=1e-9)


# ------------------------------------------------------------------ how answers must relate


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32 - 1),
    name=st.sampled_from(["delay_budget", "energy_budget", "power_max"]),
    factor=st.floats(1.0, 10.0),
)
@example(seed=3, name="power_max", factor=1.0)
def test_more_room_never_hurts(make_system: Any, seed: int, name: str, factor: float) -> None:
    system = random_system(make_system, np.random.default_rng(seed))
    tight = solve(LTFL(system))
    loose = solve(LTFL(system.with_(**{name: getattr(system.devices, name) * factor})))
    if tight.value is not None:
        assert loose.value is not None
        assert loose.value <= tight.value * (1 + GAP)
    else:
        assert set(loose.infeasible) <= set(tight.infeasible)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32 - 1))
def test_order_of_devices_does_not_matter(make_system: Any, seed: int) -> None:
    rng = np.random.default_rng(seed)
    system = random_system(make_system, rng, devices=5)
    order = rng.permutation(5)
    one, other = solve(LTFL(system)), solve(LTFL(system.take(order)))
    for name, values in one.decision.items():
        np.testing.assert_array_equal(values[order], other.decision[name])
    if one.value is None:
        assert set(order[other.infeasible]) == set(one.infeasible)
    else:
        assert other.value == pytest.approx(one.value, rel=1e-13)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32 - 1), factor=st.sampled_from([1e-6, 0.3, 7.0, 1e6]))
def test_units_do_not_matter(make_system: Any, seed: int, factor: float) -> None:
    system = random_system(make_system, np.random.default_rng(seed), gradient_slope=0.0)
    d, r, b, k = system.devices, system.radio, system.bound, factor
    slower = system.with_(  # every time k-fold at the same powers
        bandwidth=r.bandwidth / k,
        noise_density=r.noise_density * k,
        frequency=d.frequency / k,
        capacitance=d.capacitance * k**3,
        delay_budget=d.delay_budget * k,
        energy_budget=d.energy_budget * k,
    )
    stronger = system.with_(  # every power k-fold at the same times and received powers
        power_min=d.power_min * k,
        power_max=d.power_max * k,
        gain=r.gain / k,
        capacitance=d.capacitance * k,
        energy_budget=d.energy_budget * k,
    )
    louder = system.with_(  # every squared error k-fold
        weight_norm_squared=b.weight_norm_squared * k,
        mask_energy=b.mask_energy * k,
        gradient_offset=b.gradient_offset * k,
        gradient_variance=b.gradient_variance * k,
        quantizer_range=b.quantizer_range * math.sqrt(k),
    )
    base = solve(LTFL(system))
    for changed, scale in ((slower, 1.0), (stronger, 1.0), (louder, k)):
        answer = solve(LTFL(changed))
        assert (answer.value is None) == (base.value is None)
        if base.value is not None:
            assert answer.value == pytest.approx(base.value * scale, rel=2 * GAP)


def test_a_device_split_into_equal_halves_changes_nothing(make_system: Any) -> None:
    fields = {"batch_size": 100, "gradient_variance": 1e-3}
    one = solve(LTFL(make_system(samples=[1000], **fields)))
    four = solve(LTFL(make_system(samples=[250] * 4, **fields)))
    assert four.value == pytest.approx(one.value, rel=1e-12)


@pytest.mark.parametrize("gap", [1e-2, 1e-4, 1e-6, 1e-9])
def test_the_gap_asked_for_is_reached(make_system: Any, gap: float) -> None:
    system = regime(make_system, "interior")
    answer = solve(LTFL(system), gap)
    least = Reference(system).minimum(2000)
    assert answer.value is not None
    assert answer.lower_bound is not None
    assert answer.lower_bound <= answer.value <= answer.lower_bound * (1 + 1.01 * gap)
    assert answer.lower_bound <= least * (1 + 1e-12)


@pytest.mark.parametrize("ratio", [1e-8, 1e-10])
def test_the_gap_is_reached_where_very_little_pruning_is_needed(make_system: Any, ratio: float) -> None:
    system = make_system(
        quantizer_range=1e-9, gradient_offset=0.0, bits_min=8, bits_max=8, gain=1e-3, pruning_ratio_max=1e-3
    )
    delay, energy = Reference(system).use(0, ratio, 8, 0.05)
    answer = solve(LTFL(system.with_(delay_budget=delay, energy_budget=energy)))
    assert answer.value is not None
    assert answer.lower_bound is not None
    assert answer.value - answer.lower_bound <= GAP * answer.value
    assert answer.cells < 100


# ------------------------------------------------------------------ the shared limit A < 1 and the ratio


def contracting_system(make: Any, rng: np.random.Generator, devices: int, share: float) -> System | None:
    """A random scenario whose least gap has A = `share`; None where it is infeasible."""
    system = random_system(
        make,
        rng,
        devices,
        initial_gap=10.0 ** rng.uniform(-3, 1),
        learning_rate=0.1,
        rounds=100,
        gradient_slope=0.0,
    )
    answer = solve(LTFL(system))
    if answer.value is None:
        return None
    lost = LTFL(system).evaluate(Decision(answer.decision)).quantities["packet_error"]
    return system.with_(gradient_slope=share / (8 * float(system.weight @ lost)))


def shared_search(system: System, objective: str, points: int) -> tuple[float, float]:
    """Least value for one or two devices over a grid of powers with A in its limit, and the least A."""
    reference, b = Reference(system), system.bound
    gaps, contractions = [], []
    for u in range(reference.count):
        powers = reference.grid(u, points)
        widths = reference.widths(u)
        gaps.append(reference.best_gap(u, widths[:, None], powers[None, :]).min(axis=0))
        lost = reference.lost(powers * reference.gain[u] / reference.noise[u])
        contractions.append(np.where(np.isfinite(gaps[-1]), reference.pi[u] * reference.contraction * lost, np.inf))
    if reference.count == 2:
        gaps = [(gaps[0][:, None] + gaps[1][None, :]).ravel()]
        contractions = [(contractions[0][:, None] + contractions[1][None, :]).ravel()]
    gap, contraction = gaps[0], contractions[0]
    inside = contraction <= CONTRACTION_LIMIT
    if not inside.any():
        return np.inf, float(contraction.min())
    value = gap[inside]
    if objective == "bound":
        value = (2 * b.initial_gap / (b.learning_rate * b.rounds) + value) / (1 - contraction[inside])
    return float(value.min()), float(contraction.min())


@pytest.mark.parametrize("objective", ["gap", "bound"])
@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32 - 1),
    devices=st.integers(1, 2),
    share=st.sampled_from([0.3, 0.9, 0.99, 0.999, 1.0001, 1.01, 1.1, 1.5, 3.0]),
)
def test_contraction_limit_and_ratio(make_system: Any, objective: Any, seed: int, devices: int, share: float) -> None:
    system = contracting_system(make_system, np.random.default_rng(seed), devices, share)
    assume(system is not None)
    assert system is not None
    problem = LTFL(system, objective=objective)
    answer = solve(problem)
    least, contraction = shared_search(system, objective, 1500 if devices == 1 else 400)
    if answer.value is None:
        assert not np.isfinite(least)
        (conflict,) = answer.shared
        assert conflict.binding == "contraction"
        assert conflict.relax["contraction"] <= contraction * (1 + 1e-6)
        assert conflict.relax["contraction"] > CONTRACTION_LIMIT
        return
    assert answer.lower_bound is not None
    evaluation = problem.evaluate(Decision(answer.decision))
    assert evaluation.feasible()
    room = 1 - float(evaluation.quantities["contraction"])
    assert float(evaluation.objective) == pytest.approx(answer.value, rel=1e-12 / room + 1e-11)
    assert answer.lower_bound <= answer.value
    assert answer.lower_bound <= least * (1 + 1e-11 / room)
    if answer.kind == "exact":
        assert answer.value <= least * (1 + 1e-5)


@pytest.mark.parametrize(("seed", "share"), [(10, 1.01), (19, 1.01), (19, 1.1)])
def test_a_binding_contraction_limit_of_one_device(make_system: Any, seed: int, share: float) -> None:
    # with one device A in its limit is a least power and nothing more
    system = contracting_system(make_system, np.random.default_rng(seed), 1, share)
    assert system is not None
    answer = solve(LTFL(system))
    least, _ = shared_search(system, "gap", 1500)
    assert answer.value is not None
    assert answer.value <= least * (1 + 1e-4)


@pytest.mark.parametrize("share", [0.999, 0.9999])
def test_the_gap_of_the_ratio_is_reached_near_the_limit(make_system: Any, share: float) -> None:
    system = contracting_system(make_system, np.random.default_rng(22), 1, share)
    assert system is not None
    answer = solve(LTFL(system, objective="bound"))
    assert answer.value is not None
    assert answer.lower_bound is not None
    assert answer.value - answer.lower_bound <= GAP * answer.value


@pytest.mark.parametrize("objective", ["gap", "bound"])
def test_a_contraction_that_nobody_can_reach(make_system: Any, objective: Any) -> None:
    system = make_system(samples=[500, 500], gradient_slope=1.0)
    worst = Reference(system)
    lost = worst.lost(np.array([0.1]) * 2.5e-8 / worst.noise[0])[0]
    problem = LTFL(
        system.with_(gradient_slope=1.2 / (8 * lost), delay_budget=1e3, energy_budget=1e3),
        objective=objective,
    )
    answer = solve(problem)
    assert answer.value is None
    assert answer.infeasible.size == 0
    (conflict,) = answer.shared
    assert conflict.device is None
    assert conflict.relax["contraction"] == pytest.approx(1.2, rel=1e-6)
    assert conflict.factor == pytest.approx(1.2 / CONTRACTION_LIMIT, rel=1e-6)


def test_objective_bound_without_slope_orders_like_the_gap(make_system: Any) -> None:
    system = make_system(gradient_slope=0.0, initial_gap=2.0, learning_rate=0.05, rounds=40)
    gap, bound = solve(LTFL(system)), solve(LTFL(system, objective="bound"))
    assert bound.value == pytest.approx(gap.value + 2 * 2.0 / (0.05 * 40), rel=1e-6)
    assert bound.lower_bound <= bound.value


# ------------------------------------------------------------------ infeasible devices


@settings(max_examples=60, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32 - 1), shrink=st.tuples(st.floats(0.05, 1.0), st.floats(0.05, 1.0)))
def test_conflicts_name_the_least_relaxation(make_system: Any, seed: int, shrink: tuple[float, float]) -> None:
    system = random_system(make_system, np.random.default_rng(seed), devices=1)
    reference = Reference(system)
    power = reference.cheapest_power(0)
    delay, energy = reference.use(0, reference.ratio[1][0], reference.bits[0][0], power)
    system = system.with_(delay_budget=float(delay) * shrink[0], energy_budget=float(energy) * shrink[1])
    problem = LTFL(system)
    answer = solve(problem)
    assume(answer.value is None)
    assert list(answer.infeasible) == [0]
    conflicts = problem.capabilities().conflicts
    assert conflicts is not None
    (conflict,) = conflicts(answer.infeasible)

    def feasible(**budgets: float) -> bool:
        return solve(LTFL(system.with_(**budgets))).value is not None

    assert set(conflict.relax) == {"delay_budget", "energy_budget"}
    for name, needed in conflict.relax.items():
        if needed is None:
            assert not feasible(**{name: 1e12 * conflict.budget[name]})
        else:
            assert needed >= conflict.budget[name] * (1 - 1e-9)
            assert feasible(**{name: needed * (1 + 1e-9)})
            assert not feasible(**{name: needed * 0.999})
    assert conflict.factor is not None
    assert conflict.factor >= 1 - 1e-12
    both = dict(conflict.budget)
    assert feasible(**{name: value * conflict.factor * (1 + 1e-9) for name, value in both.items()})
    assert not feasible(**{name: value * conflict.factor * 0.999 for name, value in both.items()})
    # the decision reported is the one that needs this factor
    violation = float(problem.evaluate(Decision(answer.decision)).violation())
    assert violation == pytest.approx(conflict.factor - 1, abs=1e-9 * conflict.factor)
    expected = {
        (True, True): "delay and energy, each alone",
        (False, True): "delay",
        (True, False): "energy",
        (False, False): "delay and energy together",
    }
    # raising one budget cannot help where the other one is too small by itself
    nowhere = (conflict.relax["energy_budget"] is None, conflict.relax["delay_budget"] is None)
    names = {
        (True, True): (True, True),
        (True, False): (False, True),
        (False, True): (True, False),
        (False, False): (False, False),
    }
    assert conflict.binding == expected[names[nowhere]]
    assert "device 0" in conflict.text


def test_only_the_infeasible_devices_are_named(make_system: Any) -> None:
    system = make_system(samples=[500] * 3, delay_budget=[2.0, 0.01, 2.0], energy_budget=[0.05, 0.05, 1e-9])
    problem = LTFL(system)
    answer = solve(problem)
    assert list(answer.infeasible) == [1, 2]
    assert answer.value is None
    conflicts = problem.capabilities().conflicts
    assert conflicts is not None
    first, second = conflicts(answer.infeasible)
    assert (first.device, first.binding) == (1, "delay")
    assert (second.device, second.binding) == (2, "energy")
    # the others still get their best decision
    alone = solve(LTFL(system.take([0])))
    assert answer.decision["bits"][0] == alone.decision["bits"][0]


def test_a_budget_at_the_edge(make_system: Any) -> None:
    # budgets that one decision alone meets, and 1e-9 more or less than it needs
    base = make_system()
    reference = Reference(base)
    for power in np.geomspace(0.01, 0.1, 13):
        delay, energy = reference.use(0, 0.9, 1.0, power)
        for factor, expected in ((1 - 1e-6, False), (1 + 1e-9, True), (1 + 1e-6, True)):
            system = base.with_(delay_budget=float(delay) * factor, energy_budget=float(energy) * factor)
            answer = solve(LTFL(system))
            assert (answer.value is not None) == expected
            if expected:
                assert answer.decision["power"] == pytest.approx([power], rel=1e-5)
                assert answer.value == pytest.approx(float(reference.gap(0, 0.9, 1.0, power)), rel=1e-5)


def test_no_problem_is_infeasible_whose_decision_is_feasible(make_system: Any) -> None:
    wrong = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        system = random_system(make_system, rng, 1)
        reference = Reference(system)
        power = reference.power[0][0] * (reference.power[1][0] / reference.power[0][0]) ** rng.uniform()
        delay, energy = reference.use(0, reference.ratio[1][0], reference.bits[0][0], power)
        problem = LTFL(system.with_(delay_budget=float(delay), energy_budget=float(energy)))
        answer = solve(problem)
        if answer.value is None and problem.evaluate(Decision(answer.decision)).feasible():
            wrong.append(seed)
    assert wrong == []

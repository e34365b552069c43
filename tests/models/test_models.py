from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import mpmath as mp  # type: ignore[import-untyped]
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jointopt.models import channel, compression, convergence, cost

torch = pytest.importorskip("torch")

# ------------------------------------------------------------------ golden values (theory 0.4)


@pytest.mark.parametrize(
    ("ratio", "energy", "magnitude"),
    [
        (0.1, 1.80e-4, 0.005176),
        (0.3, 5.80e-3, 0.050328),
        (0.5, 0.03331, 0.153426),
        (0.7, 0.12138, 0.338808),
        (0.9, 0.40465, 0.669741),
    ],
)
def test_pruning_error_of_laplace_weights(ratio: float, energy: float, magnitude: float) -> None:
    # L0; half a unit of the last printed digit
    value = float(compression.pruning_error(np.float64(ratio), "laplace"))
    assert value == pytest.approx(energy, abs=0.51 * 10.0 ** (math.floor(math.log10(energy)) - 2))
    assert float(compression.pruning_error_l1(np.float64(ratio))) == pytest.approx(magnitude, abs=5.1e-7)
    assert float(compression.pruning_error(np.float64(ratio))) == ratio


def test_pruning_error_is_that_of_sampled_weights() -> None:
    weights = np.sort(np.abs(np.random.default_rng(0).laplace(size=1_000_000)))
    for ratio in (0.1, 0.5, 0.9):
        gone = weights[: int(ratio * weights.size)]
        phi = (gone**2).sum() / (weights**2).sum()
        psi = gone.sum() / weights.sum()
        assert float(compression.pruning_error(np.float64(ratio), "laplace")) == pytest.approx(phi, rel=0.02)
        assert float(compression.pruning_error_l1(np.float64(ratio))) == pytest.approx(psi, rel=0.02)
        assert phi < ratio


@pytest.mark.parametrize(("x", "lost"), [(1e-3, 0.00675745), (1e-2, 0.0448055), (1e-1, 0.233433), (1.0, 0.720268)])
def test_waterfall_packet_error(x: float, lost: float) -> None:
    # L5; any threshold and SNR with this quotient
    for threshold in (1.0, 10**0.0023, 7.0):
        value = float(channel.packet_error(np.float64(threshold / x), threshold))
        assert value == pytest.approx(lost, rel=1e-5)


@pytest.mark.parametrize(("snr", "efficiency"), [(0.1, 0.132098), (1.0, 0.860347), (10.0, 2.906515), (100.0, 5.884048)])
def test_ergodic_rate(snr: float, efficiency: float) -> None:
    assert float(channel.spectral_efficiency(np.float64(snr))) == pytest.approx(efficiency, abs=5.1e-7)
    assert float(channel.rate(3e6, np.float64(snr))) == pytest.approx(3e6 * efficiency, rel=5e-6)


@pytest.mark.parametrize(
    ("power", "rate", "lost"),
    [(0.05, 17.42765e6, 4.00138e-5), (0.01, 15.10593e6, 1.74305e-4), (0.1, 18.42763e6, 2.11165e-5)],
)
def test_golden_link(power: float, rate: float, lost: float) -> None:
    # T6
    snr = channel.snr(np.float64(power), channel.path_gain(200.0), 1e6 * 10**-20.4)
    assert channel.path_gain(200.0) == pytest.approx(2.5e-8, rel=1e-14)
    assert float(channel.rate(1e6, snr)) == pytest.approx(rate, abs=5.1)
    assert float(channel.packet_error(snr, 10**0.0023)) == pytest.approx(lost, rel=2e-6)


def test_rate_and_packet_error_on_both_sides_of_the_usual_switches() -> None:
    # theory 0.5: below s = 2e-3 and x = 1e-9 the closed forms cancel or overflow
    with mp.workdps(50):
        for s in (1e-300, 1e-12, 1e-6, 1.999e-3, 2e-3, 2.001e-3, 1 / 701, 0.03, 1e3, 1e12):
            z = 1 / mp.mpf(s)
            exact = (mp.exp(z) * mp.e1(z) if s > 1e-20 else mp.mpf(s)) / mp.log(2)
            assert float(channel.spectral_efficiency(np.float64(s))) == pytest.approx(float(exact), rel=1e-13)
        for x in (1e-300, 1e-30, 0.999e-9, 1e-9, 1.001e-9, 1e-4, 0.5, 30.0, 1e5):
            root = 2 * mp.sqrt(x)
            exact = 1 - root * mp.besselk(1, root) if x > 1e-20 else -x * (mp.log(x) + 2 * mp.euler - 1)
            assert float(channel.packet_error(np.float64(1 / x), 1.0)) == pytest.approx(float(exact), rel=1e-13)
    s = np.geomspace(1e-5, 1e-1, 4001)
    ratio = channel.spectral_efficiency(s) / s
    assert np.all(np.diff(ratio) < 0)


def test_gap_golden() -> None:
    # T6, last line
    pi, q = np.array([0.5, 0.3, 0.2]), np.array([0.01, 0.02, 0.05])
    ratio, bits = np.array([0.1, 0.2, 0.3]), np.array([4.0, 6.0, 8.0])
    cap = convergence.error_cap(
        smoothness=1.0,
        weight_norm_squared=4.0,
        mask_energy=0.5,
        pruning_ratio_max=0.5,
        pruning_error_max=0.5,
        parameters=1000,
        range_max=0.2,
        bits_min=np.float64(2),
    )
    assert float(cap) == pytest.approx(3.361111, abs=5e-7)
    gap = convergence.gap(
        weight=pi,
        packet_error=q,
        pruning_ratio=ratio,
        pruning_error=compression.pruning_error(ratio),
        quantization_variance=compression.quantization_variance((1 - ratio) * 1000, np.array([0.1, 0.2, 0.1]), bits),
        smoothness=1.0,
        weight_norm_squared=4.0,
        mask_energy=0.5,
        gradient_offset=1.0,
        gradient_slope=0.25,
        error_cap=cap,
    )
    assert gap.transmission.sum() == pytest.approx(0.309167, abs=5e-7)
    assert gap.pruning.sum() == pytest.approx(1.53, abs=1e-12)
    assert gap.quantization.sum() == pytest.approx(0.011220, abs=5e-7)
    assert gap.sampling.sum() == 0.0
    assert gap.total.sum() == pytest.approx(1.850387, abs=5e-7)
    assert gap.contraction.sum() == pytest.approx(8 * 0.25 * 0.021, rel=1e-14)


@pytest.mark.parametrize(("parameters", "levels", "factor"), [(100, 4, 2.5), (100, 10, 1.0), (100, 100, 0.01)])
def test_qsgd_factor(parameters: int, levels: int, factor: float) -> None:
    assert float(compression.qsgd_factor(np.float64(parameters), np.float64(levels))) == pytest.approx(factor)


# ------------------------------------------------------------------ quantizer variance against simulation


def quantize(values: Any, bits: int, rng: np.random.Generator) -> Any:
    low, high = values.min(), values.max()
    step = (high - low) / (2**bits - 1)
    place = (values - low) / step
    down = np.floor(place)
    return low + step * (down + (rng.uniform(size=values.shape) < place - down))


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_quantization_variance_bounds_the_simulated_one(bits: int) -> None:
    rng = np.random.default_rng(bits)
    smooth = rng.uniform(-0.7, 0.9, 4000)
    spread = smooth.max() - smooth.min()
    bound = float(compression.quantization_variance(4000, spread, np.float64(bits)))
    draws = np.stack([quantize(smooth, bits, rng) for _ in range(200)])
    measured = ((draws - smooth) ** 2).sum(axis=1).mean()
    assert np.abs(draws.mean(axis=0) - smooth).max() < 6 * spread / (2**bits - 1) / 2 / math.sqrt(200)
    # uniform values: E[f(1-f)] = 1/6 of a step squared, the bound has 1/4
    assert measured == pytest.approx(bound * 2 / 3, rel=0.03)
    # and half-way values attain it
    step = spread / (2**bits - 1)
    worst = np.concatenate([[0.0, spread], np.full(3998, step / 2)])
    draws = np.stack([quantize(worst, bits, rng) for _ in range(50)])
    tight = ((draws - worst) ** 2).sum(axis=1).mean()
    assert tight == pytest.approx(bound * 3998 / 4000, rel=1e-9)


# ------------------------------------------------------------------ simple laws


def test_kept_parameters_floors_what_is_removed() -> None:
    kept = compression.kept_parameters
    assert float(kept(np.float64(0.3), 10)) == 7  # 0.3 x 10 is 3 although 0.3 is not
    assert float(kept(np.float64(0.7), 10)) == 3
    assert float(kept(np.float64(0.29), 10)) == 8
    assert float(kept(np.float64(0.0), 10)) == 10
    assert float(kept(np.float64(1.0), 10)) == 0
    assert float(kept(np.float64(0.1), 11_173_962)) == 11_173_962 - 1_117_396
    np.testing.assert_array_equal(kept(np.array([0.0, 0.5, 0.95]), 7), [7, 4, 1])


@settings(max_examples=300, deadline=None)
@given(parameters=st.integers(1, 10**10), share=st.floats(0, 1))
def test_a_whole_number_of_removed_weights_is_taken_as_whole(parameters: int, share: float) -> None:
    removed = round(share * parameters)
    assert float(compression.kept_parameters(np.float64(removed / parameters), parameters)) == parameters - removed
    kept = float(compression.kept_parameters(np.float64(share), parameters))
    assert kept >= (1 - share) * parameters - 1e-8 * parameters**0.5 - 1e-5
    assert kept == round(kept)


def test_payload() -> None:
    # L_u = kept x (bits + index) + unpruned x bits + header + mask
    assert compression.payload_bits(90.0, 4.0) == 360.0
    assert compression.payload_bits(90.0, 4.0, unpruned=7.0, header=64.0) == 360 + 28 + 64
    per_weight, once = compression.index_bits(100, "indices")
    assert (per_weight, once) == (7.0, 0.0)
    assert (
        compression.payload_bits(90.0, 4.0, unpruned=7.0, header=64.0, index_per_weight=per_weight) == 90 * 11 + 28 + 64
    )
    per_weight, once = compression.index_bits(100, "bitmap")
    assert (per_weight, once) == (0.0, 100.0)
    assert compression.payload_bits(90.0, 4.0, index_once=once) == 460
    assert compression.index_bits(100) == (0.0, 0.0)
    assert [compression.index_bits(v, "indices")[0] for v in (1, 2, 3, 4, 5, 1024, 1025)] == [
        1,
        1,
        2,
        2,
        3,
        10,
        11,
    ]


def test_compute_and_memory_laws() -> None:
    ratio = np.array([0.0, 0.19, 0.75, 1.0])
    np.testing.assert_allclose(compression.compute_factor(ratio), [1, 0.81, 0.25, 0])
    np.testing.assert_array_equal(compression.compute_factor(ratio, "mask"), 1.0)
    np.testing.assert_allclose(compression.memory_factor(ratio), [1, 0.81, 0.25, 0])
    np.testing.assert_allclose(compression.memory_factor(ratio, "channels"), [1, 0.9, 0.5, 0])
    np.testing.assert_array_equal(compression.memory_factor(ratio, "mask"), 1.0)
    np.testing.assert_allclose((1 - compression.channel_ratio(ratio)) ** 2, 1 - ratio, atol=1e-15)


def test_cost() -> None:
    cycles = cost.cycles(500.0, 2e5, 0.5)
    assert cycles == 5e7
    assert cost.compute_delay(cycles, 35e6) == pytest.approx(10 / 7)
    assert cost.compute_energy(cycles, 35e6, 1e-26) == pytest.approx(1e-26 * 35e6**2 * 5e7)
    assert cost.upload_delay(1e6, 2e6) == 0.5
    assert cost.upload_energy(1e6, 2e6, 0.1) == 0.05
    assert channel.energy_per_bit(0.1, 2e6) == pytest.approx(5e-8)


def test_packet_error_laws() -> None:
    s = np.array([0.5, 1.0, 4.0, 1e4])
    np.testing.assert_allclose(channel.packet_error(s, 2.0, "outage", "rayleigh"), 1 - np.exp(-2 / s), rtol=1e-11)
    np.testing.assert_allclose(channel.packet_error(s, 2.0, "waterfall", "none"), 1 - np.exp(-2 / s), rtol=1e-11)
    np.testing.assert_array_equal(channel.packet_error(s, 1.0, "outage", "none"), [1, 0, 0, 0])
    np.testing.assert_allclose(channel.spectral_efficiency(s, "none"), np.log2(1 + s))
    # no cancellation where hardly anything is lost
    assert float(channel.packet_error(np.float64(1e20), 1.0, "outage")) == pytest.approx(1e-20)
    assert float(channel.spectral_efficiency(np.float64(1e-20), "none")) == pytest.approx(1e-20 / math.log(2))


@pytest.mark.parametrize("law", ["linear", "laplace"])
def test_slope_of_the_pruning_error(law: Any) -> None:
    with mp.workdps(40):
        for r in (1e-6, 1e-3, 0.0487, 0.0488, 0.05, 0.3, 0.9, 0.999):
            x = -mp.log(1 - mp.mpf(r))
            phi = 1 - (1 - mp.mpf(r)) * (1 + x + x * x / 2) if law == "laplace" else mp.mpf(r)
            slope = x * x / 2 if law == "laplace" else mp.mpf(1)
            assert float(compression.pruning_error(np.float64(r), law)) == pytest.approx(float(phi), rel=1e-11)
            assert float(compression.pruning_error_slope(np.float64(r), law)) == pytest.approx(float(slope), rel=1e-13)
    assert float(compression.pruning_error(np.float64(0), law)) == 0.0


# ------------------------------------------------------------------ convergence bounds


def test_average_gradient_bound() -> None:
    value = convergence.average_gradient_bound(np.float64(0.3), np.float64(0.25), 2.0, 0.1, 50.0)
    assert float(value) == pytest.approx((2 * 2.0 / (0.1 * 50) + 0.3) / 0.75)
    many = convergence.average_gradient_bound(np.full(4, 0.3), np.array([0.0, 0.999, 1.0, 1.5]), 2.0, 0.1, 50.0)
    np.testing.assert_array_equal(np.isinf(many), [False, False, True, True])
    assert np.all(many > 0)
    tensor = convergence.average_gradient_bound(torch.full((2,), 0.3), torch.tensor([0.5, 1.0]), 2.0, 0.1, 50.0)
    assert torch.isinf(tensor).tolist() == [False, True]


@pytest.mark.parametrize("contraction", [0.0, 0.4, 0.9])
def test_optimality_gap_is_the_recursion(contraction: float) -> None:
    # F_{t+1} - F* <= c (F_t - F*) + (eta/2) Gamma
    gap, start, eta, mu = 0.37, 5.0, 0.05, 0.8
    excess = start
    for rounds in range(1, 61):
        excess = (1 - eta * mu * (1 - contraction)) * excess + eta / 2 * gap
        value = convergence.optimality_gap(gap, contraction, start, eta, float(rounds), mu)
        assert float(value) == pytest.approx(excess, rel=1e-12)
    far = convergence.optimality_gap(gap, contraction, start, eta, 1e6, mu)
    assert float(far) == pytest.approx(gap / (2 * mu * (1 - contraction)))


def test_nothing_lost_pruned_or_rounded_leaves_plain_gradient_descent() -> None:
    # T3 and the consistency note of 1b: with ratio 0 and ever more bits only 8 zeta_1 q + 2 E_cap q remains
    def total(q: float, ratio: float, bits: float) -> float:
        gap = convergence.gap(
            weight=np.float64(1),
            packet_error=np.float64(q),
            pruning_ratio=np.float64(ratio),
            pruning_error=np.float64(ratio),
            quantization_variance=compression.quantization_variance((1 - ratio) * 1e6, 0.1, np.float64(bits)),
            smoothness=2.0,
            weight_norm_squared=3.0,
            mask_energy=0.5,
            gradient_offset=0.7,
            gradient_slope=0.0,
            error_cap=0.0,
        )
        return float(gap.total)

    assert total(0.0, 0.0, 500.0) < 1e-290
    assert total(0.1, 0.0, 500.0) == pytest.approx(8 * 0.7 * 0.1, rel=1e-14)
    assert total(0.0, 0.2, 500.0) == pytest.approx(2 * (4 * 3 + 0.5) * 0.2, rel=1e-14)
    rate = convergence.average_gradient_bound(np.float64(total(0.0, 0.0, 500.0)), np.float64(0), 3.0, 0.5, 100.0)
    assert float(rate) == pytest.approx(2 * 3.0 / (0.5 * 100))
    # every device's squared error is at most E_cap
    cap = convergence.error_cap(
        smoothness=2.0,
        weight_norm_squared=3.0,
        mask_energy=0.5,
        pruning_ratio_max=0.6,
        pruning_error_max=0.6,
        parameters=1e6,
        range_max=0.1,
        bits_min=np.float64(3),
    )
    for ratio in (0.0, 0.3, 0.6):
        for bits in (3.0, 5.0):
            assert total(0.0, ratio, bits) / 2 <= float(cap) * (1 + 1e-15)


# ------------------------------------------------------------------ monotonicity (T2, T3)

LAWS = [("waterfall", "rayleigh"), ("outage", "rayleigh"), ("waterfall", "none")]


@pytest.mark.parametrize(("law", "fading"), LAWS)
@settings(max_examples=200, deadline=None)
@given(snr=st.floats(-4, 8).map(lambda e: 10.0**e), factor=st.floats(1e-6, 3))
def test_more_power_means_fewer_losses_more_rate_and_dearer_bits(
    law: Any, fading: Any, snr: float, factor: float
) -> None:
    s = np.array([snr, snr * (1 + factor)])
    lost = channel.packet_error(s, 1.0, law, fading)
    rate = channel.rate(1e6, s, fading)
    assert lost[1] < lost[0] or lost[0] > 1 - 1e-9
    assert rate[1] > rate[0]
    joules = channel.energy_per_bit(s, rate)
    assert joules[1] > joules[0] * (1 - 1e-15)
    assert joules[1] > joules[0] or factor * snr < 1e-9
    assert np.all((lost >= 0) & (lost <= 1))


@settings(max_examples=300, deadline=None)
@given(
    q=st.floats(0, 0.9),
    ratio=st.floats(0, 0.9),
    step=st.floats(1e-3, 0.09),
    bits=st.integers(1, 15),
    energy=st.floats(1e-3, 1e3),
    spread=st.floats(1e-4, 1),
)
def test_gap_rises_with_losses_and_falls_with_bits(
    q: float, ratio: float, step: float, bits: int, energy: float, spread: float
) -> None:
    parameters = 1e5

    def total(q: float, ratio: float, bits: float) -> float:
        gap = convergence.gap(
            weight=np.float64(0.5),
            packet_error=np.float64(q),
            pruning_ratio=np.float64(ratio),
            pruning_error=np.float64(ratio),
            quantization_variance=compression.quantization_variance((1 - ratio) * parameters, spread, np.float64(bits)),
            smoothness=1.0,
            weight_norm_squared=energy,
            mask_energy=0.1,
            gradient_offset=1.0,
            gradient_slope=0.0,
            error_cap=2.0,
        )
        return float(gap.total)

    here = total(q, ratio, bits)
    assert total(q + step, ratio, bits) > here
    # the noise that one more bit saves may be less than a rounding of the gap
    saved = parameters * (1 - ratio) * spread**2 / 4 * ((2.0**bits - 1) ** -2 - (2.0 ** (bits + 1) - 1) ** -2)
    assert here - total(q, ratio, bits + 1) == pytest.approx(saved, rel=1e-9, abs=4e-16 * here)
    slope = 2 * (energy + 0.1) - parameters * spread**2 / (2 * (2.0**bits - 1) ** 2)
    change = total(q, ratio + step, bits) - here
    assert change == pytest.approx(0.5 * slope * step, rel=1e-6, abs=1e-11 * here)


# ------------------------------------------------------------------ NumPy and torch


def _gap_total(q: Any, ratio: Any, variance: Any) -> Any:
    gap = convergence.gap(
        weight=0.3,
        packet_error=q,
        pruning_ratio=ratio,
        pruning_error=compression.pruning_error(ratio, "laplace"),
        quantization_variance=variance,
        smoothness=1.2,
        weight_norm_squared=3.0,
        mask_energy=0.2,
        gradient_offset=0.4,
        gradient_slope=0.1,
        error_cap=1.5,
        sampling_variance=0.05,
    )
    return gap.total + gap.contraction


SNR, RATIO, BITS, POSITIVE = (0.02, 30.0), (0.01, 0.9), (1.0, 9.0), (0.5, 3.0)
FUNCTIONS: dict[str, tuple[Callable[..., Any], list[tuple[float, float]]]] = {
    "path_gain": (lambda d: channel.path_gain(d, 1e-3, 2.7), [POSITIVE]),
    "snr": (channel.snr, [POSITIVE] * 3),
    "efficiency": (channel.spectral_efficiency, [SNR]),
    "efficiency, no fading": (lambda s: channel.spectral_efficiency(s, "none"), [SNR]),
    "rate": (channel.rate, [POSITIVE, SNR]),
    "waterfall": (lambda s: channel.packet_error(s, 1.3), [SNR]),
    "waterfall, no fading": (lambda s: channel.packet_error(s, 1.3, "waterfall", "none"), [SNR]),
    "outage": (lambda s: channel.packet_error(s, 1.3, "outage"), [SNR]),
    "energy_per_bit": (channel.energy_per_bit, [POSITIVE] * 2),
    "cycles": (cost.cycles, [POSITIVE] * 3),
    "compute_delay": (cost.compute_delay, [POSITIVE] * 2),
    "compute_energy": (cost.compute_energy, [POSITIVE] * 3),
    "upload_delay": (cost.upload_delay, [POSITIVE] * 2),
    "upload_energy": (cost.upload_energy, [POSITIVE] * 3),
    "channel_ratio": (compression.channel_ratio, [RATIO]),
    "compute_factor": (compression.compute_factor, [RATIO]),
    "memory_factor": (lambda r: compression.memory_factor(r, "channels"), [RATIO]),
    "payload": (lambda k, b: compression.payload_bits(k, b, unpruned=3.0, header=5.0), [POSITIVE, BITS]),
    "pruning_error": (lambda r: compression.pruning_error(r, "laplace"), [RATIO]),
    "pruning_error near 0": (lambda r: compression.pruning_error(r, "laplace"), [(1e-3, 0.045)]),
    "pruning_error_slope": (lambda r: compression.pruning_error_slope(r, "laplace"), [RATIO]),
    "pruning_error_l1": (compression.pruning_error_l1, [RATIO]),
    "quantization_variance": (compression.quantization_variance, [POSITIVE, POSITIVE, BITS]),
    "qsgd_factor": (compression.qsgd_factor, [(10.0, 20.0), (30.0, 40.0)]),
    "gap": (_gap_total, [(0.01, 0.5), RATIO, POSITIVE]),
    "average_gradient_bound": (
        lambda g, a: convergence.average_gradient_bound(g, a, 2.0, 0.1, 50.0),
        [POSITIVE, (0.0, 0.9)],
    ),
    "optimality_gap": (
        lambda g, a: convergence.optimality_gap(g, a, 2.0, 0.1, 50.0, 0.7),
        [POSITIVE, (0.0, 0.9)],
    ),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_numpy_and_torch_agree(name: str) -> None:
    function, ranges = FUNCTIONS[name]
    rng = np.random.default_rng(0)
    arguments = [rng.uniform(*span, (2, 3, 4)) for span in ranges]
    expected = np.asarray(function(*arguments))
    assert expected.shape == (2, 3, 4)
    actual = function(*[torch.tensor(a) for a in arguments])
    assert actual.dtype == torch.float64
    np.testing.assert_allclose(actual.numpy(), expected, rtol=1e-14)
    # one point at a time gives the same
    each = [float(function(*[np.float64(a[i]) for a in arguments])) for i in np.ndindex(2, 3, 4)]
    np.testing.assert_allclose(np.array(each).reshape(2, 3, 4), expected, rtol=1e-14)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_first_and_second_derivatives(name: str) -> None:
    function, ranges = FUNCTIONS[name]
    generator = np.random.default_rng(1)
    arguments = [torch.tensor(generator.uniform(*span, 4), requires_grad=True) for span in ranges]
    assert torch.autograd.gradcheck(function, arguments)
    assert torch.autograd.gradgradcheck(function, arguments)


def test_derivatives_stay_finite_at_the_ends() -> None:
    for law in ("linear", "laplace"):
        ratio = torch.tensor([0.0, 1e-12, 0.05], dtype=torch.float64, requires_grad=True)
        (slope,) = torch.autograd.grad(compression.pruning_error(ratio, law).sum(), ratio)
        expected = compression.pruning_error_slope(ratio.detach(), law)
        np.testing.assert_allclose(slope.numpy(), expected.numpy(), rtol=1e-9, atol=1e-20)
    contraction = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64, requires_grad=True)
    value = convergence.average_gradient_bound(torch.ones(3, dtype=torch.float64), contraction, 1.0, 0.1, 10.0)
    (slope,) = torch.autograd.grad(value[0], contraction)
    assert torch.isfinite(slope).all()

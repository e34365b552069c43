"""What a reader sees: the right numbers, the right words."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from jointopt import systems
from jointopt.decision import Decision
from jointopt.problems import FEEL, LTFL, CoInference, LayerwiseCoInference
from jointopt.report import text_table
from jointopt.solvers import solve
from jointopt.system import System
from jointopt.units import format_si

# The golden device without fading: 1e8 cycles at 35 MHz, 1e6 weights, gain 2.5e-8 over 10^-14.4 W of noise.
RATIO, BITS, POWER = 0.5, 8.0, 0.05
RATE = 1e6 * math.log2(1 + POWER * 2.5e-8 / 10**-14.4)
COMPUTE_DELAY, UPLOAD_DELAY = 0.5e8 / 35e6, 4e6 / RATE
COMPUTE_ENERGY, UPLOAD_ENERGY = 1e-26 * 35e6**2 * 0.5e8, POWER * 4e6 / RATE
DELAY, ENERGY = COMPUTE_DELAY + UPLOAD_DELAY, COMPUTE_ENERGY + UPLOAD_ENERGY
LOST = -math.expm1(-(10**0.0023) * 10**-14.4 / (POWER * 2.5e-8))


def chosen(devices: int = 1) -> Decision:
    ones = np.ones(devices)
    return Decision(pruning_ratio=RATIO * ones, bits=BITS * ones, power=POWER * ones)


@pytest.fixture
def tiny(make_system: Callable[..., System]) -> Callable[..., LTFL]:
    def make(devices: int = 1, **changes: Any) -> LTFL:
        return LTFL(make_system(devices, **{"fading": "none", "interference": 0.0, **changes}))

    return make


# ------------------------------------------------------------------ explain


def test_both_budgets_tight(tiny: Callable[..., LTFL]) -> None:
    found = tiny(delay_budget=DELAY, energy_budget=ENERGY).explain(chosen())
    row = found.rows[0]
    assert row["tight"] == "delay + energy"
    assert row["delay_use"] == pytest.approx(1.0, abs=1e-12)
    assert row["energy_use"] == pytest.approx(1.0, abs=1e-12)
    assert row["why"] == "between both budgets: more power breaks energy, less breaks delay"
    assert found.totals == {"delay": 1, "energy": 1}
    assert found.shared == []


def test_energy_alone_tight(tiny: Callable[..., LTFL]) -> None:
    found = tiny(delay_budget=2 * DELAY, energy_budget=ENERGY).explain(chosen())
    row = found.rows[0]
    assert row["tight"] == "energy"
    assert row["delay_use"] == pytest.approx(0.5)
    share = UPLOAD_ENERGY / ENERGY
    assert row["why"] == f"energy limits it ({1 - share:.0%} computing, {share:.0%} sending)"


def test_delay_alone_tight(tiny: Callable[..., LTFL]) -> None:
    row = tiny(delay_budget=DELAY, energy_budget=4 * ENERGY).explain(chosen()).rows[0]
    assert row["tight"] == "delay"
    assert row["energy_use"] == pytest.approx(0.25)
    share = UPLOAD_DELAY / DELAY
    assert row["why"] == f"delay limits it ({1 - share:.0%} computing, {share:.0%} sending)"


def test_nothing_tight(tiny: Callable[..., LTFL]) -> None:
    found = tiny(delay_budget=2 * DELAY, energy_budget=2 * ENERGY).explain(chosen())
    row = found.rows[0]
    assert (row["tight"], row["limits"], row["why"]) == ("-", "-", "budgets have room")
    assert found.totals == {}
    assert "tight, by number of devices: nothing" in str(found)


def test_just_about_tight(tiny: Callable[..., LTFL]) -> None:
    for more, expected in ((2e-6, "-"), (0.5e-6, "energy"), (0.0, "energy")):
        row = tiny(delay_budget=2 * DELAY, energy_budget=ENERGY * (1 + more)).explain(chosen()).rows[0]
        assert row["tight"] == expected


def test_over_budget(tiny: Callable[..., LTFL]) -> None:
    row = tiny(delay_budget=DELAY / 2, energy_budget=2 * ENERGY).explain(chosen()).rows[0]
    assert row["delay_use"] == pytest.approx(2.0)
    assert row["why"].startswith("over budget: delay (")
    assert "energy" not in row["why"]
    both = tiny(delay_budget=DELAY / 2, energy_budget=ENERGY / 3).explain(chosen()).rows[0]
    assert "over budget: delay (" in both["why"]
    assert ", energy (" in both["why"]
    assert both["energy_use"] == pytest.approx(3.0)


def test_variables_at_their_ends(tiny: Callable[..., LTFL]) -> None:
    wide = tiny(delay_budget=100.0, energy_budget=100.0)
    ends = Decision(pruning_ratio=[0.9], bits=[1], power=[0.1])
    row = wide.explain(ends).rows[0]
    assert row["limits"] == "pruning_ratio at its most, bits at its least, power at its most"
    assert row["why"] == f"budgets have room; {row['limits']}"
    fixed = wide.restrict(bits=8.0).explain(chosen())
    assert fixed.rows[0]["limits"] == "bits at its only value"
    assert fixed.totals == {}


def test_shared_limit(tiny: Callable[..., LTFL]) -> None:
    """A = 8 zeta_2 q, here at, above and below its limit."""
    slope = (1 - 1e-6) / (8 * LOST)
    for factor, expected in (
        (1.0, ["contraction is tight for the system"]),
        (1.1, ["contraction is violated for the system"]),
        (0.9, []),
    ):
        found = tiny(delay_budget=100.0, energy_budget=100.0, gradient_slope=factor * slope).explain(chosen())
        assert found.shared == expected
        assert all(line in str(found) for line in expected)


def test_explanation_table(tiny: Callable[..., LTFL]) -> None:
    found = tiny(23, delay_budget=DELAY, energy_budget=2 * ENERGY).explain(chosen(23))
    text = str(found)
    assert repr(found) == text
    lines = text.splitlines()
    assert lines[0].split() == ["device", "delay", "used", "energy", "used", "tight", "why"]
    assert lines[2].split()[:3] == ["0", "100.0%", "50.0%"]
    assert "... and 3 more devices" in lines
    assert lines[-1] == "tight, by number of devices: delay: 23"
    frame = found.to_pandas()
    assert frame.shape[0] == 23
    assert frame.index.name == "device"
    assert frame["energy_use"].to_numpy() == pytest.approx(0.5)


# ------------------------------------------------------------------ to_pandas, repr, summary


def test_numbers_of_a_hand_made_device(tiny: Callable[..., LTFL]) -> None:
    asked = tiny(delay_budget=2 * DELAY, energy_budget=2 * ENERGY).restrict(pruning_ratio=RATIO, bits=BITS, power=POWER)
    result = solve(asked)
    table = result.to_pandas()
    assert table.index.name == "device"
    expected = {
        "pruning_ratio": RATIO,
        "bits": BITS,
        "power": POWER,
        "delay": DELAY,
        "energy": ENERGY,
        "packet_error": LOST,
        "compute_delay": COMPUTE_DELAY,
        "upload_delay": UPLOAD_DELAY,
        "compute_energy": COMPUTE_ENERGY,
        "upload_energy": UPLOAD_ENERGY,
        "rate": RATE,
        "payload_bits": 4e6,
        "delay_slack": DELAY,
        "energy_slack": ENERGY,
    }
    for name, value in expected.items():
        assert table.loc[0, name] == pytest.approx(value, rel=1e-12), name
    assert repr(result).startswith(f"Result(ltfl/exact: optimal, value {result.value:.6g}, gap ")
    assert "1 devices" in repr(result)

    text = result.summary()
    cap = 0.5 * 0.9 + 1e6 * (2 / 1e6) / (4 * 1.0)
    transmission = (8 + 2 * cap) * LOST
    quantization = 2 * 0.5e6 * (2 / 1e6) / (4 * 255**2)
    assert result.value == pytest.approx(transmission + 0.5 + quantization, rel=1e-12)
    assert text.splitlines()[0] == "ltfl, method exact: optimal"
    assert f"value {result.value:.8g}; proved at least {result.lower_bound:.8g}" in text
    assert f"pruning 0.5 ({0.5 / result.value:.0%})" in text
    assert f"transmission {transmission:.4g} (0%)" in text
    assert f"quantization {quantization:.4g} (0%)" in text
    assert "A = 0 (must stay below 1)" in text
    # 2 Delta_0/(eta T) = 2 x 1/(0.1 x 100)
    assert f"bound of the mean ||grad F||^2: {result.value + 0.2:.4g}" in text
    row = text.splitlines()[-1]
    assert row.split() == [
        "0",
        "0.5",
        "8",
        *format_si(POWER, "W").split(),
        *format_si(DELAY, "s").split(),
        *format_si(ENERGY, "J").split(),
        f"{LOST:.4g}",
    ]


def test_many_devices_are_cut(tiny: Callable[..., LTFL]) -> None:
    result = solve(tiny(23, delay_budget=3.0, energy_budget=1.0))
    lines = result.summary().splitlines()
    assert lines[-1] == "... and 3 more devices (to_pandas() has all)"
    assert lines[-2].split()[0] == "19"
    assert len(result.to_pandas()) == 23
    exactly = solve(tiny(20, delay_budget=3.0, energy_budget=1.0)).summary()
    assert "more devices" not in exactly


def test_no_bound_is_said(tiny: Callable[..., LTFL]) -> None:
    result = solve(tiny(2, delay_budget=3.0, energy_budget=1.0), method="random")
    assert "no bound" in repr(result)
    assert "no lower bound (no lower bound is known for this method)" in result.summary()


def test_infeasible_names_budgets_and_numbers(tiny: Callable[..., LTFL]) -> None:
    """At ratio 0.9 and 1 bit the device computes 1e7 cycles and sends 1e5 bits: 0.2857 s and more."""
    result = solve(tiny(2, delay_budget=[0.2, 3.0], energy_budget=[1.0, 1.0]))
    assert result.status == "infeasible"
    assert repr(result).startswith("Result(ltfl/exact: infeasible, value none, no bound, 2 devices")
    best = 1e7 / 35e6 + 1e5 / (1e6 * math.log2(1 + 0.1 * 2.5e-8 / 10**-14.4))
    text = result.summary()
    assert "1 devices cannot meet their budgets" in text
    assert (
        f"device 0: delay; feasible with delay budget 200 ms -> {format_si(best, 's', 4)}, or both budgets x "
        f"{best / 0.2:.4g}" in text
    )
    assert "the decision that exceeds the budgets least:" in text
    assert "value" not in text.splitlines()[1]
    assert result.explain().rows[0]["why"].startswith("over budget: delay")


def test_infeasible_in_energy(tiny: Callable[..., LTFL]) -> None:
    result = solve(tiny(1, delay_budget=3.0, energy_budget=1e-5))
    conflict = result.infeasibility[0]
    assert conflict.binding == "energy"
    assert "energy budget 10 µJ -> " in conflict.text
    assert "delay budget" not in conflict.text
    assert conflict.relax["delay_budget"] is None


def test_many_reasons_are_cut(tiny: Callable[..., LTFL]) -> None:
    text = solve(tiny(25, delay_budget=0.2)).summary()
    assert "25 devices cannot meet their budgets" in text
    assert "  ... and 5 more" in text.splitlines()
    assert sum(line.startswith("  device ") for line in text.splitlines()) == 20


# ------------------------------------------------------------------ text_table, format_si


def test_text_table_is_aligned() -> None:
    text = text_table([["1", "long cell"], ["22222", "x"]], ["a", "b"])
    assert text == "\n".join(["    a          b", "-----  ---------", "    1  long cell", "22222          x"])
    rows = [[str(i), "µ" * i, "x"] for i in range(12)]
    lines = text_table(rows, ["number", "greek", "end"]).splitlines()
    assert len(lines) == 14
    assert len({len(line) for line in lines}) == 1


def test_text_table_edges() -> None:
    assert text_table([], ["a", "bb"]) == "a  bb\n-  --"
    assert text_table([["", ""]], ["a", "b"]) == "a  b\n-  -\n"
    with pytest.raises((ValueError, IndexError)):
        text_table([["only one"]], ["a", "b"])


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.0, "J", "0 J"),
        (-0.0, "J", "0 J"),
        (0.0502, "J", "50.2 mJ"),
        (1.0, "s", "1 s"),
        (999.4, "s", "999 s"),
        (999.6, "s", "1 ks"),
        (0.9996, "W", "1 W"),
        (0.9994, "W", "999 mW"),
        (-0.05, "W", "-50 mW"),
        (1e6, "Hz", "1 MHz"),
        (2.5e9, "Hz", "2.5 GHz"),
        (3e12, "Hz", "3e+03 GHz"),
        (1e-6, "s", "1 µs"),
        (9.9996e-7, "s", "1 µs"),
        (1e-12, "J", "1 pJ"),
        (4e-21, "J", "4e-21 J"),
        (12.0, "", "12"),
        (1200.0, "", "1.2 k"),
        (math.nan, "J", "nan J"),
        (math.inf, "J", "inf J"),
        (np.float64(0.25), "J", "250 mJ"),
    ],
)
def test_format_si(value: float, unit: str, text: str) -> None:
    assert format_si(value, unit) == text


def test_format_si_digits() -> None:
    assert format_si(0.123456, "s", 5) == "123.46 ms"
    assert format_si(0.99999, "s", 5) == "999.99 ms"
    assert format_si(0.999996, "s", 5) == "1 s"
    for value in 10.0 ** np.linspace(-11.9, 11.9, 500):
        number, unit = format_si(value, "s", 4).split()
        factor = {"p": 1e-12, "n": 1e-9, "µ": 1e-6, "m": 1e-3, "": 1, "k": 1e3, "M": 1e6, "G": 1e9}[unit[:-1]]
        assert float(number) * factor == pytest.approx(value, rel=5.1e-4)
        assert "e" not in number


# ------------------------------------------------------------------ further designs


def test_who_is_left_out_and_what_is_shared() -> None:
    result = solve(FEEL(systems.feel(4, 3)))
    assert result.decision is not None
    found = result.explain()
    taken = result.decision["selected"] > 0.5
    assert [row["taken"] for row in found.rows] == taken.tolist()
    assert taken.tolist() == [True, False, True, True]
    assert found.rows[1]["why"] == "left out: could take part alone"
    assert (found.rows[1]["tight"], found.rows[1]["limits"]) == ("-", "-")
    assert found.totals["left out"] == 1
    assert found.shared == ["total_bandwidth is tight for the system"]
    for row in found.rows:
        if row["taken"]:
            assert row["tight"] == "delay + energy"
            assert row["why"].startswith("between both budgets: more power breaks energy")
            assert "selected" not in row["limits"]
    # one who could not take part even alone is told so
    budgets = np.array(result.problem.system.devices.delay_budget)
    budgets[1] *= 0.01
    poor = solve(FEEL(result.problem.system.with_(delay_budget=budgets))).explain()
    assert poor.rows[1]["why"] == "left out: cannot take part, delay is short even alone"


def test_over_the_band_is_said() -> None:
    problem = FEEL(systems.feel(4, 3))
    result = solve(problem)
    assert result.decision is not None
    wide = result.decision.with_(bandwidth=2.0 * result.decision["bandwidth"])
    assert "total_bandwidth is violated for the system" in problem.explain(wide).shared
    evaluation = problem.evaluate(wide)
    text = replace(result, decision=wide, evaluation=evaluation).summary()
    assert "total bandwidth: 400 kHz of 200 kHz used (200.0%; EXCEEDED)" in text


def test_stages_of_split_inference() -> None:
    result = solve(CoInference(systems.coinference(4, 3)))
    rows = result.explain().rows
    assert result.evaluation is not None
    delay = {name: result.evaluation.quantities[f"{name}_delay"][0] for name in ("device", "send", "server")}
    whole = sum(delay.values())
    words = f"delay ({delay['device'] / whole:.0%} device, {delay['send'] / whole:.0%} sending"
    assert words in rows[0]["why"]
    assert rows[0]["why"].startswith("between both budgets: more server frequency breaks energy")
    # all on the device: nothing is sent, and stages that are not there are not named
    assert rows[2]["why"].startswith("delay limits it (100% device); split at its most")
    table = result.summary().splitlines()
    header = next(line for line in table if line.startswith("device "))
    for name in ("split", "device_delay", "send_delay", "server_delay", "distortion"):
        assert name in header


def test_ratios_per_layer_are_in_the_summary() -> None:
    result = solve(LayerwiseCoInference(systems.coinference(1, 3)))
    assert result.decision is not None
    line = result.summary().splitlines()[-1]
    assert line.startswith("pruning_ratio per layer: ")
    assert [float(v) for v in line.split(": ")[1].split()] == pytest.approx(
        result.decision["pruning_ratio"].tolist(), rel=1e-3
    )
    assert "pruning_ratio" not in result.to_pandas()

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jointopt.errors import InputError
from jointopt.problems.ltfl import LTFL
from jointopt.system import Bound, Devices, Learner, Radio, System
from jointopt.units import format_si, parse_quantity

DEVICES: dict[str, Any] = {
    "samples": [100, 300],
    "cycles_per_sample": 2e5,
    "frequency": [30e6, 50e6],
    "capacitance": 1e-26,
    "power_min": 0.01,
    "power_max": 0.1,
    "delay_budget": 2.0,
    "energy_budget": [0.05, 0.07],
}
RADIO: dict[str, Any] = {"bandwidth": 1e6, "gain": [2.5e-8, 1e-8]}
LEARNER: dict[str, Any] = {"parameters": 1000}
BOUND: dict[str, Any] = {
    "smoothness": 1.0,
    "weight_norm_squared": 4.0,
    "mask_energy": 0.5,
    "gradient_offset": 1.0,
    "quantizer_range": 0.1,
}
SECTIONS = {
    "devices": (Devices, DEVICES),
    "radio": (Radio, RADIO),
    "learner": (Learner, LEARNER),
    "bound": (Bound, BOUND),
}


def tables(**changes: Any) -> dict[str, Any]:
    """The four tables, with fields changed (None removes one)."""
    out = {name: dict(fields) for name, (_, fields) in SECTIONS.items()}
    for key, value in changes.items():
        section = next(name for name, (kind, _) in SECTIONS.items() if key in kind.model_fields)
        if value is None:
            out[section].pop(key, None)
        else:
            out[section][key] = value
    return out


def system(**changes: Any) -> System:
    return System.from_dict(tables(**changes))


TOML = """
name = "street"

[devices]
samples = [100, 300]
cycles_per_sample = "0.2 Mcycles"
frequency = ["30 MHz", "0.05 GHz"]
capacitance = "1e-26 J*s**2"
power_min = "10 dBm"
power_max = ["20 dBm", "200 mW"]
delay_budget = "1500 ms"
energy_budget = ["50 mJ", 0.07]

[radio]
total_bandwidth = "2 MHz"
noise_density = "-174 dBm/Hz"
interference = "1 fW"
distance = ["200 m", "0.3 km"]
reference_gain = "-30 dB"
waterfall_threshold = "0.023 dB"

[learner]
parameters = 1_000_000
bits_min = 2
mask_encoding = "bitmap"

[bound]
smoothness = 1.0
weight_norm_squared = 4.0
mask_energy = 0.5
gradient_offset = 1.0
quantizer_range = [0.1, 0.2]
pruning_error = "laplace"
"""


# ------------------------------------------------------------------ quantities


@pytest.mark.parametrize(
    ("text", "unit", "value"),
    [
        ("23 dBm", "W", 10**2.3 * 1e-3),
        ("-10 dBW", "W", 0.1),
        ("200 mW", "W", 0.2),
        ("0.2W", "W", 0.2),
        ("-174 dBm/Hz", "W/Hz", 10**-20.4),
        ("-174dBm / Hz", "W/Hz", 10**-20.4),
        ("-114 dBm/MHz", "W/Hz", 10**-20.4),
        ("4e-21 W/Hz", "W/Hz", 4e-21),
        ("1 MHz", "Hz", 1e6),
        ("180 kHz", "Hz", 180e3),
        ("1.5 GHz", "Hz", 1.5e9),
        ("50 mJ", "J", 0.05),
        ("1 kW*h", "J", 3.6e6),
        ("150 ms", "s", 0.15),
        ("2 min", "s", 120.0),
        ("0.3 km", "m", 300.0),
        ("1e-27 J*s**2", "J*s**2", 1e-27),
        ("0.2 Mcycles", "", 2e5),
        ("3 cycles", "", 3.0),
        ("0.023 dB", "", 10**0.0023),
        ("3 dBi", "", 10**0.3),
        ("-30 dB", "", 1e-3),
        ("50 %", "", 0.5),
        ("1.0053", "", 1.0053),
        ("1_000", "", 1000.0),
        (" +.5e1 ", "", 5.0),
    ],
)
def test_quantities(text: str, unit: str, value: float) -> None:
    assert parse_quantity(text, unit) == pytest.approx(value, rel=1e-14)


def test_a_processor_cycle_is_no_turn() -> None:
    # pint's own cycle is 2 pi radian, which would make 35 Mcycle/s into 2.2e8 Hz
    for text in ("35e6 cycle/s", "35 Mcycles/s", "0.035 Gcycle/s"):
        try:
            value = parse_quantity(text, "Hz")
        except InputError:
            continue  # refusing is safe, a factor 2 pi is not
        assert value == pytest.approx(35e6, rel=1e-12)


@pytest.mark.parametrize(
    ("text", "unit", "message"),
    [
        ("5", "W", "'5' has no unit; write a quantity like '23 dBm'"),
        ("5 m", "W", "'5 m' is a length, expected a quantity like '23 dBm'"),
        ("23 dBm", "Hz", "is a power, expected"),
        ("1 MHz", "s", "is a frequency, expected"),
        ("3 dB", "W", "is a pure number, expected"),
        ("5 W", "", "is a power, expected"),
        ("5 foo", "W", "cannot read '5 foo'"),
        ("5 W/", "W", "cannot read"),
        ("5 (", "W", "cannot read"),
        ("5 W/0", "W", "cannot read"),
        ("5 J^0", "W", "cannot read|pure number"),
        ("", "W", "is not a quantity"),
        ("W", "W", "is not a quantity"),
        ("nan W", "W", "is not a quantity"),
        ("inf W", "W", "is not a quantity"),
        ("1e400 W", "W", "not finite"),
        ("4000 dBm", "W", "too large|not finite"),
        ("5 W; import os", "W", "cannot read"),
        ("5 __import__('os')", "W", "cannot read"),
    ],
)
def test_quantities_that_cannot_be_used(text: str, unit: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        parse_quantity(text, unit, "devices.thing")
    assert str(caught.value).startswith("devices.thing: ")


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=12), unit=st.sampled_from(["W", "Hz", "", "W/Hz"]))
def test_any_text_is_read_or_refused(text: str, unit: str) -> None:
    for written in (text, f"5 {text}"):
        with contextlib.suppress(InputError):
            assert math.isfinite(parse_quantity(written, unit))


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.0502, "J", "50.2 mJ"),
        (0.0, "W", "0 W"),
        (1e6, "Hz", "1 MHz"),
        (999.9999, "s", "1 ks"),
        (-0.2, "W", "-200 mW"),
        (1e-15, "W", "1e-15 W"),
        (math.inf, "s", "inf s"),
    ],
)
def test_format_si(value: float, unit: str, text: str) -> None:
    assert format_si(value, unit) == text


# ------------------------------------------------------------------ validation


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"samples": [100, -1]}, r"devices\.samples\[device 1\]: -1\.0 must be at least 1"),
        ({"samples": [100, 2.5]}, r"devices\.samples\[device 1\]: 2\.5 must be a whole number"),
        ({"samples": []}, r"devices\.samples: the list of devices is empty"),
        ({"frequency": [1e6, 0.0]}, r"devices\.frequency\[device 1\]: 0\.0 Hz must be above 0"),
        ({"frequency": [1e6, math.nan]}, r"devices\.frequency\[device 1\]: nan Hz must be finite"),
        ({"delay_budget": math.inf}, r"devices\.delay_budget: inf s must be finite"),
        ({"delay_budget": -2.0}, r"devices\.delay_budget: -2\.0 s must be above 0"),
        (
            {"energy_budget": [1.0, 2.0, 3.0]},
            r"devices\.energy_budget: has 3 values for 2 devices|has 2 values for 3",
        ),
        ({"power_min": [0.01, 0.2]}, r"devices\.power_min\[device 1\]: 0\.2 W is above power_max 0\.1 W"),
        ({"power_max": "0.5"}, r"devices\.power_max: '0\.5' has no unit"),
        (
            {"power_max": "1 MHz"},
            r"devices\.power_max: '1 MHz' is a frequency, expected a quantity like '23 dBm'",
        ),
        ({"power_max": ["20 dBm", "x"]}, r"devices\.power_max\[device 1\]: 'x' is not a quantity"),
        ({"power_max": True}, r"devices\.power_max: expected numbers, got True"),
        ({"power_max": [0.1, False]}, r"devices\.power_max: expected numbers"),
        ({"power_max": {"a": 1}}, r"devices\.power_max: expected numbers"),
        ({"power_max": [[0.1, 0.1]]}, r"devices\.power_max: expected one number per device"),
        ({"power_max": [[0.1], 0.1]}, r"devices\.power_max: expected numbers"),
        ({"power_max": 10**400}, r"devices\.power_max: expected numbers"),
        ({"power_max": None}, r"devices\.power_max: is missing"),
        ({"gain": None}, r"radio\.gain: is missing"),
        ({"gain": [1e-8] * 3}, r"radio\.gain: has 3 values for 2 devices"),
        ({"gain": [1e-8, 0.0]}, r"radio\.gain\[device 1\]: 0\.0 must be above 0"),
        ({"bandwidth": None}, r"radio\.bandwidth: is missing"),
        ({"noise_density": [1e-21]}, r"radio\.noise_density: expected one number, got a list of 1"),
        ({"fading": "rice"}, r"radio\.fading: 'rice' should be 'rayleigh' or 'none'"),
        ({"fading": "none", "packet_error": "outage"}, r"radio\.packet_error: 'outage' needs fading"),
        ({"bits_min": 0}, r"learner\.bits_min: 0\.0 must be at least 1"),
        ({"bits_max": 33}, r"learner\.bits_max: 33\.0 must be at most 32"),
        ({"bits_min": 9, "bits_max": 8}, r"learner\.bits_min: 9 is above bits_max 8"),
        ({"bits_min": 2.5}, r"learner\.bits_min: 2\.5 must be a whole number"),
        ({"parameters": 0}, r"learner\.parameters: 0\.0 must be at least 1"),
        ({"pruning_ratio_max": 1.0}, r"learner\.pruning_ratio_max: 1\.0 must be below 1"),
        ({"compute_law": "quadratic"}, r"learner\.compute_law: 'quadratic' should be"),
        ({"smoothness": 0.0}, r"bound\.smoothness: 0\.0 must be above 0"),
        ({"quantizer_range": [0.1, 0.0]}, r"bound\.quantizer_range\[device 1\]: 0\.0 must be above 0"),
        ({"quantizer_range": [0.1] * 3}, r"bound\.quantizer_range: has 3 values for 2 devices"),
        ({"mask_energy": -1.0}, r"bound\.mask_energy: -1\.0 must be at least 0"),
        ({"rounds": 0}, r"bound\.rounds: 0\.0 must be at least 1"),
    ],
    ids=str,
)
def test_fields_that_cannot_be_used(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        system(**changes)


@pytest.mark.parametrize("section", SECTIONS)
def test_unknown_keys_name_the_nearest(section: str) -> None:
    kind, fields = SECTIONS[section]
    known = next(iter(fields))
    wrong = known[:-1] + "x"
    with pytest.raises(InputError, match=f"{section}: unknown key '{wrong}'; did you mean '{known}'"):
        kind(**fields, **{wrong: 1})
    data = tables()
    data[section][wrong] = 1
    with pytest.raises(InputError, match=f"{section}: unknown key '{wrong}'"):
        System.from_dict(data)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "expected tables"),
        (None, "expected tables"),
        ({"device": {}}, "unknown key 'device'; did you mean 'devices'"),
        ({k: v for k, v in tables().items() if k != "bound"}, r"the table \[bound\] is missing"),
        ({**tables(), "radio": 5}, "radio: expected a table of fields, got 5"),
        ({**tables(), "name": 5}, "name"),
    ],
)
def test_tables_that_cannot_be_used(data: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        System.from_dict(data)


def test_the_number_of_devices_must_be_known() -> None:
    with pytest.raises(InputError, match=r"devices\.count: is needed"):
        Devices(**{**DEVICES, "samples": 5, "frequency": 1e6, "energy_budget": 1.0})
    devices = Devices(**{**DEVICES, "samples": 5, "frequency": 1e6, "energy_budget": 1.0, "count": 4})
    assert devices.samples.shape == (4,)
    with pytest.raises(InputError, match="has 2 values for 3 devices"):
        Devices(**DEVICES, count=3)


# ------------------------------------------------------------------ what is derived


def test_numbers_are_spread_frozen_and_read_only() -> None:
    built = system()
    assert len(built) == 2
    for section in (built.devices, built.radio, built.bound):
        for value in section.__dict__.values():
            if isinstance(value, np.ndarray):
                assert value.shape == (2,)
                assert value.dtype == np.float64
                with pytest.raises(ValueError, match="read-only"):
                    value[0] = 1.0
    for section, name in ((built.devices, "power_max"), (built.learner, "parameters"), (built, "name")):
        with pytest.raises(Exception, match="frozen"):
            setattr(section, name, 1)
    source = np.array([0.1, 0.2])
    mine = system(power_max=source)
    source[0] = 9.0
    assert mine.devices.power_max[0] == 0.1


def test_derived_arrays() -> None:
    built = system(interference=[0.0, 1e-15], batch_size=200)
    np.testing.assert_allclose(built.weight, [0.25, 0.75])
    np.testing.assert_array_equal(built.batch, [100, 200])
    np.testing.assert_array_equal(system().batch, [100, 300])
    np.testing.assert_allclose(built.noise_power, 1e6 * 10**-20.4 + np.array([0, 1e-15]), rtol=1e-14)
    shared = system(bandwidth=None, total_bandwidth=3e6)
    np.testing.assert_allclose(shared.radio.bandwidth, [1.5e6, 1.5e6])
    far = system(gain=None, distance=[100.0, 200.0], path_loss_exponent=3.0, reference_gain=1e-2)
    np.testing.assert_allclose(far.radio.gain, [1e-8, 1.25e-9])


# ------------------------------------------------------------------ copies


def test_take_and_permutation() -> None:
    built = System.from_dict(tables(interference=[0.0, 1e-15], quantizer_range=[0.1, 0.3]), folder=None)
    swapped = built.take([1, 0])
    assert swapped != built
    assert swapped.take([1, 0]) == built
    np.testing.assert_array_equal(swapped.devices.samples, [300, 100])
    np.testing.assert_array_equal(swapped.radio.gain, [1e-8, 2.5e-8])
    np.testing.assert_array_equal(swapped.bound.quantizer_range, [0.3, 0.1])
    one = built.take(slice(1, 2))
    assert len(one) == 1
    assert one.noise_power == built.noise_power[1]
    np.testing.assert_array_equal(one.weight, [1.0])
    assert len(built.take(np.array([False, True]))) == 1
    with pytest.raises(InputError, match="empty"):
        built.take([])


def test_take_keeps_the_band_of_a_device() -> None:
    shared = system(bandwidth=None, total_bandwidth=3e6)
    np.testing.assert_array_equal(shared.take([0]).radio.bandwidth, [1.5e6])


def test_with() -> None:
    built = system()
    changed = built.with_(delay_budget="0.5 s", bits_max=12, gradient_slope=0.1)
    np.testing.assert_array_equal(changed.devices.delay_budget, [0.5, 0.5])
    assert (changed.learner.bits_max, changed.bound.gradient_slope) == (12, 0.1)
    assert built.learner.bits_max == 16
    assert built.with_() == built
    assert changed != built
    with pytest.raises(InputError, match="unknown field 'delay_budgets'; did you mean 'delay_budget'"):
        built.with_(delay_budgets=1.0)
    with pytest.raises(InputError, match=r"devices\.delay_budget"):
        built.with_(delay_budget=-1.0)
    with pytest.raises(InputError, match="power_min"):
        built.with_(power_min=1.0)
    far = system(gain=None, distance=[100.0, 200.0])
    np.testing.assert_allclose(far.with_(distance=50.0).radio.gain, [4e-7, 4e-7])
    np.testing.assert_allclose(far.with_(distance=50.0, gain=1.0).radio.gain, [1.0, 1.0])


@pytest.mark.parametrize(
    ("fields", "change", "name", "expected"),
    [
        ({"gain": None, "distance": [100.0, 200.0]}, {"path_loss_exponent": 3.0}, "gain", [1e-9, 1.25e-10]),
        ({"gain": None, "distance": [100.0, 200.0]}, {"reference_gain": 1e-2}, "gain", [1e-6, 2.5e-7]),
        ({"bandwidth": None, "total_bandwidth": 2e6}, {"total_bandwidth": 6e6}, "bandwidth", [3e6, 3e6]),
    ],
)
def test_with_follows_what_is_derived(fields: Any, change: Any, name: str, expected: Any) -> None:
    np.testing.assert_allclose(getattr(system(**fields).with_(**change).radio, name), expected)


# ------------------------------------------------------------------ files


def test_toml_with_the_units_of_engineers(tmp_path: Path) -> None:
    path = tmp_path / "street.toml"
    path.write_text(TOML)
    built = System.from_toml(path)
    assert built.name == "street"
    devices, radio = built.devices, built.radio
    np.testing.assert_allclose(devices.cycles_per_sample, 2e5, rtol=1e-14)
    np.testing.assert_allclose(devices.frequency, [30e6, 50e6], rtol=1e-14)
    np.testing.assert_allclose(devices.capacitance, 1e-26, rtol=1e-14)
    np.testing.assert_allclose(devices.power_min, 0.01, rtol=1e-14)
    np.testing.assert_allclose(devices.power_max, [0.1, 0.2], rtol=1e-14)
    np.testing.assert_allclose(devices.delay_budget, 1.5, rtol=1e-14)
    np.testing.assert_allclose(devices.energy_budget, [0.05, 0.07], rtol=1e-14)
    np.testing.assert_allclose(radio.bandwidth, 1e6, rtol=1e-14)
    np.testing.assert_allclose(radio.noise_density, 10**-20.4, rtol=1e-14)
    np.testing.assert_allclose(radio.interference, 1e-15, rtol=1e-14)
    np.testing.assert_allclose(radio.gain, [1e-3 / 200**2, 1e-3 / 300**2], rtol=1e-14)
    assert radio.waterfall_threshold == pytest.approx(10**0.0023, rel=1e-14)
    assert built.bound.pruning_error == "laplace"
    assert LTFL(built).evaluate is not None


def test_toml_takes_its_name_from_the_file(tmp_path: Path) -> None:
    path = tmp_path / "alley.toml"
    path.write_text(TOML.replace('name = "street"\n', ""))
    assert System.from_toml(path).name == "alley"


def test_dictionaries_and_json_give_everything_back(tmp_path: Path, make_system: Callable[..., System]) -> None:
    path = tmp_path / "street.toml"
    path.write_text(TOML)
    odd = make_system(samples=[3, 5], gain=[1 / 3, 0.1 + 0.2], quantizer_range=[1e-300, math.pi], batch_size=7)
    for built in (System.from_toml(path), system(), odd, system(gain=None, distance=[1.0, 2.0])):
        again = System.from_dict(built.to_dict())
        assert again == built
        assert again.to_dict() == built.to_dict()
        written = tmp_path / "copy.json"
        written.write_text(json.dumps(built.to_dict()))
        assert System.from_json(written) == built
        written.write_text(json.dumps({"schema": "jointopt.result/1", "scenario": built.to_dict()}))
        assert System.from_json(written) == built


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[devices\n", "is not valid TOML"),
        (b"", r"the table \[devices\] is missing"),
        (b"\xff\xfe\x00", "cannot be read|is not valid TOML"),
        (TOML.replace("power_max", "powr_max").encode(), "unknown key 'powr_max'; did you mean 'power_max'"),
        (TOML.replace('"1500 ms"', '"1500 MHz"').encode(), "delay_budget: '1500 MHz' is a frequency"),
        (TOML.replace("bits_min = 2", "bits_min = 0").encode(), "bits_min"),
        (
            TOML.replace("smoothness = 1.0", "smoothness = 1979-05-27").encode(),
            "smoothness: expected numbers",
        ),
        (TOML.replace("smoothness = 1.0", "smoothness = nan").encode(), "smoothness: nan must be finite"),
        (TOML[: len(TOML) // 2].encode(), "TOML|missing"),
    ],
)
def test_damaged_toml(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "bad.toml"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        System.from_toml(path)


@pytest.mark.parametrize(
    "content", [b"{", b"", b"[1, 2]", b"5", b"null", b'{"scenario": 3}', b"\xff\xff", b"[" * 100_000]
)
def test_damaged_json(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.json"
    path.write_bytes(content)
    with pytest.raises(InputError):
        System.from_json(path)


def test_missing_files(tmp_path: Path) -> None:
    for read in (System.from_toml, System.from_json):
        with pytest.raises(InputError, match=r"nowhere: cannot be read"):
            read(tmp_path / "nowhere")
        with pytest.raises(InputError):
            read(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        "2.5e-8\n1e-8\n",
        "# measured\ngain\n2.5e-8\n1e-8\n",
        "device,gain\n0,2.5e-8\n1,1e-8\n",
        "-76.0205999 dB\n-80 dB\n",
    ],
)
def test_gain_files(tmp_path: Path, content: str) -> None:
    (tmp_path / "gains.csv").write_text(content)
    data = tables(gain=None, gain_file="gains.csv")
    built = System.from_dict(data, folder=tmp_path)
    np.testing.assert_allclose(built.radio.gain, [2.5e-8, 1e-8], rtol=1e-8)
    # the numbers travel, the file need not
    assert System.from_dict(built.to_dict()).radio.gain.tolist() == built.radio.gain.tolist()
    scenario = tmp_path / "s.json"
    scenario.write_text(json.dumps(data))
    assert System.from_json(scenario) == built


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no gains"),
        ("gain\n", "holds no gains"),
        ("1e-8\nx\n", "device 1.*'x'"),
        ("1e-8\n-1\n", "device 1.*above 0"),
        ("1e-8\n0\n", "device 1.*above 0"),
        ("1e-8\n1e-8\n1e-8\n", "has 3 values for 2 devices"),
        ("device,gain\n0,1e-8\n1\n", "device 1.*no column"),
        ("1e-8\n5 W\n", "device 1.*is a power"),
        ("1e-8\nnan\n", "device 1"),
    ],
)
def test_damaged_gain_files(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "gains.csv").write_text(content)
    with pytest.raises(InputError, match=message):
        System.from_dict(tables(gain=None, gain_file="gains.csv"), folder=tmp_path)
    with pytest.raises(InputError, match=r"radio\.gain_file"):
        System.from_dict(tables(gain=None, gain_file="nowhere.csv"), folder=tmp_path)


@settings(max_examples=50, deadline=None)
@given(
    gains=st.lists(st.floats(1e-15, 1.0), min_size=1, max_size=6),
    order=st.randoms(use_true_random=False),
)
def test_any_order_of_devices_round_trips(gains: list[float], order: Any) -> None:
    count = len(gains)
    built = system(samples=list(range(1, count + 1)), frequency=1e6, energy_budget=1.0, gain=gains, quantizer_range=0.1)
    where = list(range(count))
    order.shuffle(where)
    moved = built.take(where)
    np.testing.assert_array_equal(moved.radio.gain, np.array(gains)[where])
    np.testing.assert_allclose(moved.weight, built.weight[where], rtol=1e-15)
    assert moved.take(np.argsort(where)) == built
    assert System.from_dict(json.loads(json.dumps(moved.to_dict()))) == moved

"""The scenario of vehicles in the air: fields, bad input, files, what is sensed along the ways, sampling."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from jointopt import systems
from jointopt.errors import InputError
from jointopt.models import mobility
from jointopt.system import AerialSystem, AirLink, Area, Learner, OnlineBound, Quantity, Sensing, Vehicles

MEANS = [[[100.0, 100.0], [300.0, 300.0]], [[500.0, 500.0], [700.0, 120.0]]]


def vehicles(**changes):
    fields = {
        "start": [[100.0, 100.0], [900.0, 200.0]],
        "speed_max": "15 m/s",
        "frequency": "1 GHz",
        "cycles_per_sample": 1e5,
        "capacitance": 1e-28,
        "power": "20 dBm",
        "delay_budget": "50 ms",
        "energy_budget": [0.02, 0.03],
    }
    return Vehicles(**{**fields, **changes})


def sensing(**changes):
    fields = {
        "class_means": MEANS,
        "class_map": np.zeros((2, 2, 3)),
        "period": "60 s",
        "samples_max": [100, 50],
    }
    return Sensing(**{**fields, **changes})


def system(**changes):
    fields = {
        "vehicles": vehicles(),
        "area": Area(slots=4),
        "sensing": sensing(),
        "link": AirLink(bandwidth="200 kHz"),
        "learner": Learner(parameters=1000, header_bits=32),
        "bound": OnlineBound(smoothness=1, weight_norm_squared=1, mask_energy=1, gradient_energy=2, learning_rate=0.02),
    }
    return AerialSystem(**{**fields, **changes})


def test_numbers_are_spread_and_defaults_follow():
    s = system()
    assert len(s) == 2
    assert s.vehicles.speed_max.tolist() == [15.0, 15.0]
    np.testing.assert_allclose(s.vehicles.power, 0.1)
    assert s.sensing.field_of_view.tolist() == [math.pi / 3] * 2
    assert s.sensing.mixture_weights.tolist() == [[0.5, 0.5]] * 2
    assert s.sensing.mixture_covariances[1, 0].tolist() == [[2500.0, 0.0], [0.0, 2500.0]]
    assert s.total_drift == 0.0 and s.with_(drift=0.1).total_drift == pytest.approx(0.4)
    assert s.with_(drift=[0.1, 0.2, 0.3, 0.0]).total_drift == pytest.approx(0.6)
    assert s.with_(slots=7).area.slots == 7
    np.testing.assert_allclose(s.reach, 75.0)
    np.testing.assert_allclose(s.times, [5.0, 10.0, 15.0, 20.0])
    np.testing.assert_allclose(s.station, [500.0, 500.0])
    np.testing.assert_allclose(s.view_radius, 100.0 * math.tan(math.pi / 6))
    np.testing.assert_allclose(s.noise_power, 2e5 * 10**-20.4)
    assert sensing(field_of_view="60 degree").field_of_view == pytest.approx(math.pi / 3)


def test_what_is_sensed_along_the_ways():
    s = system(vehicles=vehicles(held=[10, 0]), sensing=sensing(buffer=[120, 50]))
    # the first hovers over a mean with half of the mix, the second sees nothing
    assert s.arrivals.tolist() == [[50.0] * 4, [0.0] * 4]
    assert s.buffered.tolist() == [[60.0, 110.0, 120.0, 120.0], [0.0] * 4]
    np.testing.assert_allclose(s.class_mix.sum(axis=-1), 1.0)
    way = np.array([[[150, 100], [150, 100], [100, 100], [100, 100]], [[900, 200]] * 4], dtype=float)
    flown = s.flown(way)
    away = 0.5 * 100 * math.exp(-50 / 75)
    assert flown.arrivals[0].tolist() == [math.ceil(away), math.ceil(away), 50.0, 50.0]
    assert flown.gain[0, 0] > s.gain[0, 0]
    assert s.flight is None and flown.flown(s.trajectory).arrivals.tolist() == s.arrivals.tolist()
    # the mix at time t x slot
    s = system(sensing=sensing(class_map=[[[0, 4, 0], [0, -4, 0]]] * 2, period="20 s"))
    up, down = 100 / (1 + math.exp(-8)), 100 / (1 + math.exp(8))
    assert s.arrivals[0].tolist() == [math.ceil(up), 50.0, math.ceil(down), 50.0]


def test_files_and_changes(tmp_path):
    s = system().flown(system().trajectory + 1.0).with_(drift=[0.1, 0.2, 0.3, 0.4], station=[10, 20])
    assert AerialSystem.from_dict(s.to_dict()) == s
    path = tmp_path / "aerial.json"
    path.write_text(json.dumps(s.to_dict()))
    assert AerialSystem.from_json(path) == s
    path = tmp_path / "flight.toml"
    path.write_text(
        """
        [vehicles]
        start = [[100, 100], [900, 200]]
        speed_max = "54 km/h"
        frequency = "1 GHz"
        cycles_per_sample = 1e5
        capacitance = 1e-28
        power = "20 dBm"
        delay_budget = "50 ms"
        energy_budget = ["20 mJ", "30 mJ"]
        [area]
        slots = 4
        [sensing]
        class_means = [[[100, 100], [300, 300]], [[500, 500], [700, 120]]]
        class_map = [[[0, 0, 0], [0, 0, 0]], [[0, 0, 0], [0, 0, 0]]]
        period = "1 minute"
        samples_max = [100, 50]
        [link]
        bandwidth = "200 kHz"
        [learner]
        parameters = 1000
        header_bits = 32
        [bound]
        smoothness = 1
        weight_norm_squared = 1
        mask_energy = 1
        gradient_energy = 2
        learning_rate = 0.02
        [flight]
        trajectory = [
            [[110, 100], [120, 100], [130, 100], [140, 100]],
            [[900, 210], [900, 220], [900, 230], [900, 240]],
        ]
        """
    )
    read = AerialSystem.from_toml(path)
    assert read.name == "flight"
    assert read.sensing == system().sensing and read.link == system().link and read.bound == system().bound
    np.testing.assert_allclose(read.vehicles.speed_max, 15.0)
    assert read.trajectory[0, 3].tolist() == [140.0, 100.0]
    one = read.take([1])
    assert len(one) == 1 and one.trajectory.tolist() == read.trajectory[1:].tolist()
    np.testing.assert_array_equal(one.gain, read.gain[1:])


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: vehicles(start=[[100, 100], [900, float("nan")]]),
            "vehicles.start[device 1, coordinate 1]: nan m must",
        ),
        (lambda: vehicles(start=[[100, 100], [900]]), "vehicles.start[device 1]: has 1 values, device 0 has 2"),
        (lambda: vehicles(start=[[1, 2, 3], [4, 5, 6]]), "a position is 2 coordinates, got 3"),
        (lambda: vehicles(speed_max=-1), "vehicles.speed_max: -1.0 m/s must be at least 0"),
        (lambda: vehicles(speed_max="20 s"), "vehicles.speed_max: '20 s' is a time"),
        (lambda: vehicles(power=[0.1]), "vehicles.power: has 1 values for 2 devices"),
        (lambda: vehicles(altitude=3), "vehicles: unknown key 'altitude'"),
        (
            lambda: sensing(class_means=[[1, 2], [3, 4]]),
            "class_means[device 0, class 0]: expected a number per coordinate, got 1",
        ),
        (lambda: sensing(class_means=[1, 2]), "class_means[device 0]: expected a row per class, got 1"),
        (
            lambda: sensing(class_means=np.ones((2, 2))),
            "a row per device with a row per class with a number per coordin",
        ),
        (
            lambda: sensing(class_means=[[[1, 2], [3, "x"]], MEANS[1]]),
            "class_means[device 0, class 1]: expected numbers",
        ),
        (lambda: sensing(class_means=[MEANS[0], MEANS[1][:1]]), "class_means[device 1]: has 1 values, device 0 has 2"),
        (
            lambda: sensing(class_map=np.zeros((2, 3, 3))),
            "class_map: is for 2 vehicles and 3 classes, class_means for 2",
        ),
        (
            lambda: sensing(class_map=np.full((2, 2, 1), np.inf)),
            "class_map[device 0, class 0, basis 0]: inf must be finite",
        ),
        (
            lambda: sensing(mixture_weights=[[0.5, 0.4], [0.5, 0.5]]),
            "mixture_weights[device 0]: the weights add up to 0.9",
        ),
        (
            lambda: sensing(mixture_covariances=np.broadcast_to([[1.0, 2.0], [2.0, 1.0]], (2, 2, 2, 2))),
            "[device 0, class 0]: [[1.0, 2.0], [2.0, 1.0]] is no covariance",
        ),
        (lambda: sensing(mixture_covariances=np.ones((2, 2, 1, 1))), "must be two by two, got 1 by 1"),
        (lambda: sensing(field_of_view=4.0), "sensing.field_of_view: 4.0 rad must be below 3.14159"),
        (lambda: system(area=Area(width=600, slots=4)), "vehicles.start[device 1]: (900, 200) m lies outside the area"),
        (
            lambda: system(area=Area(length=400, slots=4)),
            "sensing.class_means[device 1, class 0]: (500, 500) m lies outs",
        ),
        (lambda: system(vehicles=vehicles(held=2000)), "vehicles.held[device 0]: 2000 samples do not fit"),
        (lambda: system(sensing=sensing(samples_max=[1, 2, 3])), "sensing.samples_max: has 3 values for 2 devices"),
        (lambda: system(link=AirLink(bandwidth=1e5, station=[1, 2, 3])), "link.station: a position is 2 coordinates"),
        (lambda: system(link=AirLink(bandwidth=1e5, station=[5, 2000])), "link.station: (5, 2000) m lies outs"),
        (lambda: system(bound=system().bound.replace(drift=[1, 2])), "bound.drift: has 2 values for 4 slots"),
        (
            lambda: system().flown(system().trajectory - 150.0),
            "[device 0, slot 0, coordinate 0]: -50.0 m must be at least",
        ),
        (lambda: system().flown(np.full((2, 3, 2), 5.0)), "flight.trajectory: has 3 positions for 4 slots"),
        (lambda: system().flown(np.full((1, 4, 2), 5.0)), "flight.trajectory: has 1 rows for 2 devices"),
        (
            lambda: system().flown(system().trajectory + 950.0),
            "flight.trajectory[device 0, slot 0]: (1050, 1050) m lies outside the area",
        ),
        (
            lambda: system().flown(system().trajectory + np.array([[[0, 0]] * 2 + [[60, 60]] * 2] * 2)),
            "flight.trajectory[device 0, slot 2]: a speed of 16.9706 m/s is above speed_max 15 m/s",
        ),
        (lambda: system().with_(trajectory=0), "has no section 'flight' to change"),
    ],
)
def test_bad_input(build, message):
    with pytest.raises(InputError) as error:
        build()
    assert message in str(error.value)


def test_tables_with_more_axes():
    quantity = Quantity("m", axis="device", inner=("class", "row", "column"))
    assert quantity.axes == ("device", "class", "row", "column")
    assert Quantity(axis="device", inner="class").axes == ("device", "class")
    assert Quantity().axes == ()


def test_sampled_systems():
    s = systems.aerial(devices=6, seed=3)
    assert s == systems.aerial(devices=6, seed=3)
    assert s != systems.aerial(devices=6, seed=4)
    assert AerialSystem.from_dict(s.to_dict()) == s
    assert s.arrivals.sum() > 0 and s.buffered.max() <= s.sensing.buffer.max()
    tight = systems.aerial(devices=6, seed=3, tightness=2.0)
    np.testing.assert_allclose(tight.vehicles.delay_budget, s.vehicles.delay_budget / 2)
    np.testing.assert_allclose(tight.vehicles.energy_budget, s.vehicles.energy_budget / 2)
    other = systems.aerial(devices=2, data="fashion-mnist", slots=3)
    assert other.area.slots == 3 and other.learner.parameters == 101_632
    assert other.bound.learning_rate * other.bound.local_steps * other.bound.smoothness <= 0.5
    for bad in ({"data": "x"}, {"devices": 0}, {"seed": -1}, {"tightness": 0.0}, {"slots": 0}):
        with pytest.raises(InputError):
            systems.aerial(**bad)


def test_shared_places():
    own, shared = (systems.aerial(devices=4, seed=3, slots=5, shared_places=each) for each in (False, True))
    np.testing.assert_array_equal(shared.sensing.class_means, np.repeat(own.sensing.class_means[:1], 4, axis=0))
    np.testing.assert_array_equal(shared.class_mix, np.repeat(own.class_mix[:1], 4, axis=0))
    # all else is drawn alike
    for name in ("start", "speed_max", "frequency", "power"):
        np.testing.assert_array_equal(getattr(own.vehicles, name), getattr(shared.vehicles, name))
    np.testing.assert_array_equal(own.sensing.samples_max, shared.sensing.samples_max)
    with pytest.raises(InputError, match="shared_places: must be True or False, got 1"):
        systems.aerial(shared_places=1)


def test_energy_of_flying():
    s = systems.aerial(devices=3, seed=0, slots=4)
    still = s.flown(np.repeat(s.vehicles.start[:, None], 4, axis=1))
    hovering = mobility.rotary_wing_power(0.0) * s.area.slot
    np.testing.assert_allclose(still.flight_energy, hovering)
    way = np.concatenate([s.vehicles.start[:, None], s.trajectory], axis=1)
    for u in range(3):
        for t in range(4):
            speed = np.hypot(*(way[u, t + 1] - way[u, t])) / s.area.slot
            assert s.flight_energy[u, t] == pytest.approx(mobility.rotary_wing_power(speed) * s.area.slot)

"""The scenario of split inference: fields, bad input, files, sampling."""

from __future__ import annotations

import numpy as np
import pytest

from jointopt import systems
from jointopt.errors import InputError
from jointopt.system import InferenceDevices, InferenceSystem, Link, Network, Server


def network(**changes):
    fields = {
        "flops": [1e9, 2e9, 3e9],
        "parameters": [100, 200, 300],
        "weight_rate": 20.0,
        "cut_bits": [5e5, 3e5, 2e5, 0.0],
    }
    return Network(**{**fields, **changes})


def system(**changes):
    fields = {
        "devices": InferenceDevices(
            frequency=[1e9, 2e9], power_max="23 dBm", delay_budget="1 s", energy_budget=[0.5, 0.6]
        ),
        "link": Link(bandwidth="5 MHz", gain=[1e-9, 1e-10]),
        "network": network(),
    }
    return InferenceSystem(**{**fields, **changes})


def test_numbers_are_spread_and_defaults_are_the_companion_s():
    s = system()
    assert len(s) == 2
    assert s.devices.flops_per_cycle.tolist() == [32.0, 32.0]
    assert s.devices.capacitance.tolist() == [2e-29, 2e-29]
    assert s.devices.pue.tolist() == [1.0, 1.0]
    np.testing.assert_allclose(s.devices.power_max, 10**2.3 * 1e-3)
    assert s.server == Server(server_frequency=10e9, server_flops_per_cycle=128, server_capacitance=1e-28, server_pue=2)
    assert s.network.fixed_flops.tolist() == [0.0, 0.0, 0.0]
    np.testing.assert_allclose(s.noise_power, 5e6 * 10**-20.4 / np.array([1e-9, 1e-10]))


def test_loads_before_and_after_a_split():
    n = network()
    assert n.before(n.flops).tolist() == [0, 1e9, 3e9, 6e9]
    assert n.after(n.flops).tolist() == [6e9, 5e9, 3e9, 0]
    assert n.choices.tolist() == [0, 1, 2, 3]
    assert network(splits=[1, 3]).choices.tolist() == [1, 3]
    assert network(splits=2).choices.tolist() == [2]


def test_files_and_changes(tmp_path):
    s = system(network=network(splits=[0, 2], curve_ratio=[0, 0.5, 1], curve_distortion=[0, 0.2, 1]))
    assert InferenceSystem.from_dict(s.to_dict()) == s
    assert s.with_(delay_budget="2 s").devices.delay_budget.tolist() == [2.0, 2.0]
    assert s.with_(server_frequency=1e9).server.server_frequency == 1e9
    path = tmp_path / "split.toml"
    path.write_text(
        """
        [devices]
        frequency = ["1 GHz", "2 GHz"]
        power_max = "23 dBm"
        delay_budget = "1 s"
        energy_budget = [0.5, 0.6]
        [link]
        bandwidth = "5 MHz"
        gain = [1e-9, 1e-10]
        [network]
        flops = [1e9, 2e9, 3e9]
        parameters = [100, 200, 300]
        weight_rate = 20
        cut_bits = [5e5, 3e5, 2e5, 0]
        """
    )
    read = InferenceSystem.from_toml(path)
    assert read.devices == system().devices
    assert read.network == system().network


def test_take_keeps_what_is_shared():
    s = system()
    one = s.take([1])
    assert len(one) == 1
    assert one.link.gain.tolist() == [1e-10]
    assert one.devices.energy_budget.tolist() == [0.6]
    assert one.network == s.network
    assert len(s.take(slice(0, 2))) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parameters": 0}, r"network.parameters: all are 0; a network without weights to prune"),
        ({"parameters": [0, 1, 1]}, r"network.flops\[layer 0\]: 1e\+09 operations fall .* no weights"),
        ({"flops": [0.0, 0.0, 0.0]}, r"network.flops: all are 0"),
        ({"splits": [0, 4]}, r"network.splits\[choice 1\]: 4 is a split the network does not have; .* 0 to 3"),
        ({"splits": [2, 1]}, r"network.splits\[choice 1\]: 1 must be above"),
        ({"splits": [0.5]}, r"network.splits\[choice 0\]: 0.5 must be a whole number"),
        ({"splits": []}, r"network.splits: the list of choices is empty"),
        ({"cut_bits": [1.0, 2.0]}, r"network.cut_bits: has 2 values; 3 layers have 4 splits"),
        ({"weight_rate": [1.0, 2.0]}, r"network.weight_rate: has 2 values for 3 layers"),
        ({"weight_rate": [1.0, 2.0, 0.0]}, r"network.weight_rate\[layer 2\]: 0.0 must be above 0"),
        ({"pruning_ratio_max": 1.0}, r"network.pruning_ratio_max: 1.0 must be below 1"),
        ({"distortion": "measured"}, r"network.curve_ratio: is missing"),
        ({"distortion": "gauss"}, r"network.distortion: 'gauss' should be"),
        (
            {"distortion": "measured", "curve_ratio": [0.1, 1], "curve_distortion": [0, 1]},
            r"network.curve_ratio\[point 0\]: 0.1 must be 0",
        ),
        (
            {"distortion": "measured", "curve_ratio": [0, 0.5, 1], "curve_distortion": [0, 0.3, 0.3]},
            r"network.curve_distortion\[point 2\]: 0.3 must be above",
        ),
        (
            {"distortion": "measured", "curve_ratio": [0, 0.5], "curve_distortion": [0, 0.3]},
            r"network.curve_ratio\[point 1\]: the curve ends at 0.5, below pruning_ratio_max 0.95",
        ),
        (
            {"curve_ratio": [0, 0.5, 1], "curve_distortion": [0, 1]},
            r"network.curve_distortion: has 2 values for 3 points",
        ),
        ({"wieght_rate": 3}, r"network: unknown key 'wieght_rate'.*weight_rate"),
    ],
)
def test_bad_networks(changes, message):
    with pytest.raises(InputError, match=message):
        network(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pue": 0.9}, r"devices.pue: 0.9 must be at least 1"),
        ({"capacitance": 0.0}, r"devices.capacitance: 0.0 J\*s\*\*2 must be above 0"),
        ({"gain": [1e-9]}, r"link.gain: has 1 values for 2 devices"),
        ({"gain": [1e-9, -1.0]}, r"link.gain\[device 1\]: -1.0 must be above 0"),
        ({"delay_budget": [1.0, np.nan]}, r"devices.delay_budget\[device 1\]: nan s must be finite"),
    ],
)
def test_bad_devices(changes, message):
    with pytest.raises(InputError, match=message):
        system().with_(**changes)


def test_sampled_systems_are_reproducible_and_nested_names_are_checked():
    assert systems.coinference(5, 3) == systems.coinference(5, 3)
    assert systems.coinference(5, 3) != systems.coinference(5, 4)
    tight, loose = systems.coinference(5, 3, tightness=2.0), systems.coinference(5, 3)
    np.testing.assert_allclose(2.0 * tight.devices.delay_budget, loose.devices.delay_budget)
    np.testing.assert_allclose(2.0 * tight.devices.energy_budget, loose.devices.energy_budget)
    with pytest.raises(InputError, match=r"data: unknown 'autoencodr'.*autoencoder"):
        systems.coinference(data="autoencodr")
    with pytest.raises(InputError, match="devices: 0"):
        systems.coinference(0)
    with pytest.raises(InputError, match="tightness: 0"):
        systems.coinference(1, tightness=0)


def test_networks_have_the_published_sizes():
    auto = systems.NETWORKS["autoencoder"]()
    assert auto.layers == 16  # FCDNN-16
    assert auto.parameters[0] == 784 * 64
    assert auto.parameters[7] == 64 * 32
    assert auto.parameters.sum() == 792_576
    assert auto.cut_bits[0] == 1000 * 784 * 8
    assert auto.cut_bits[-1] == 0.0
    mini = systems.NETWORKS["minilm"]()
    assert mini.parameters.sum() == 6 * 12 * 384**2
    assert mini.cut_bits.tolist() == [2048.0, *[128 * 384 * 32.0] * 7, 0.0]
    # attention products and what is done value by value are 6 % of a layer at 128 tokens
    share = mini.fixed_flops[1] / (mini.fixed_flops[1] + mini.flops[1])
    assert 0.04 < share < 0.06

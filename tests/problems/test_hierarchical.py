"""Two tiers of servers: one band at a time as an oracle, latency over two hops, bad input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import jointopt as jo
from jointopt.errors import InputError
from jointopt.problems import Hierarchical, RatioBandwidth
from jointopt.study import load_result
from jointopt.system import Edges, System
from jointopt.verification import verify, verify_saved


def alone(system: System, edge: int) -> RatioBandwidth:
    """The devices of one edge server as a problem of one band."""
    edges = system.edges
    assert edges is not None
    rows = np.flatnonzero(edges.number == edge)
    problem = Hierarchical(system)
    deadline = (system.devices.delay_budget - problem.backhaul_delay) / edges.local_aggregations
    part = system.take(rows).replace(edges=None)
    return RatioBandwidth(part.with_(delay_budget=deadline[rows], total_bandwidth=float(edges.edge_bandwidth[edge])))


@pytest.mark.parametrize("seed", range(4))
def test_every_edge_server_is_a_problem_of_its_own(seed: int) -> None:
    system = Hierarchical.sample(devices=20, seed=seed)
    result = jo.solve(Hierarchical(system), gap=1e-6)
    assert result.value is not None and result.lower_bound is not None and system.edges is not None
    total = 0.0
    for edge in range(len(system.edges)):
        rows = system.edges.number == edge
        part = jo.solve(alone(system, edge), gap=1e-6)
        assert part.value is not None
        # its weights add up to one
        total += part.value * float(system.weight[rows].sum())
    assert result.value == pytest.approx(total, rel=3e-6)


def test_latency_counts_all_aggregations_and_the_way_to_the_cloud() -> None:
    system = Hierarchical.sample(devices=20, seed=0)
    result = jo.solve(Hierarchical(system), gap=1e-5)
    assert result.evaluation is not None and result.decision is not None and system.edges is not None
    found, learner = result.evaluation, system.learner
    bits = (learner.parameters + learner.unpruned_parameters) * learner.bits_max + learner.header_bits
    way = bits / system.edges.backhaul_rate[system.edges.number]
    whole = 3.0 * found.quantities["delay"] + way
    np.testing.assert_allclose(found.quantities["global_delay"], whole, rtol=1e-12)
    pruned = result.decision["pruning_ratio"] > 1e-6
    np.testing.assert_allclose(whole[pruned], system.devices.delay_budget[pruned], rtol=1e-8)
    for edge, name in enumerate(("edge_bandwidth_0", "edge_bandwidth_1")):
        used = result.decision["bandwidth"][system.edges.number == edge].sum()
        assert used <= system.edges.edge_bandwidth[edge] * (1.0 + 1e-9) and result.certificate.multipliers[name] > 0.0


def test_more_aggregations_or_a_slower_way_to_the_cloud_prune_more() -> None:
    system = Hierarchical.sample(devices=20, seed=1)
    plain = jo.solve(Hierarchical(system), gap=1e-5)
    fewer = jo.solve(Hierarchical(system.with_(local_aggregations=2)), gap=1e-5)
    assert system.edges is not None
    faster = jo.solve(Hierarchical(system.with_(backhaul_rate=10.0 * system.edges.backhaul_rate)), gap=1e-5)
    later = jo.solve(Hierarchical(system.with_(delay_budget=1.2 * system.devices.delay_budget)), gap=1e-5)
    assert plain.value is not None
    for better in (fewer, faster, later):
        assert better.value is not None and better.value < plain.value


def test_closed_forms_and_baselines() -> None:
    problem = Hierarchical(Hierarchical.sample(devices=20, seed=2), limit="density")
    best = jo.solve(problem, gap=1e-6)
    closed = jo.solve(problem, method="alternating")
    assert best.value is not None and closed.value == pytest.approx(best.value, rel=2e-6)
    equal = jo.solve(problem, method="equal_bandwidth")
    assert equal.value is not None and equal.value > best.value
    dense = jo.solve(problem, method="no_pruning")
    assert dense.status == "infeasible"


def test_results_are_verified_saved_and_carried_out(tmp_path: Path) -> None:
    system = Hierarchical.sample(devices=20, seed=0)
    result = jo.solve(Hierarchical(system), gap=1e-5)
    assert verify(result).complete
    loaded, decision, data = load_result(result.save(tmp_path / "edges.json"))
    assert decision == result.decision and loaded.system == system
    verify_saved(loaded, decision, data)
    assert jo.train(result, jo.Task.for_system(system, data="digits"), rounds=2).summary()


def test_some_devices_keep_their_servers() -> None:
    system = Hierarchical.sample(devices=20, seed=0)
    assert system.edges is not None
    rows = np.flatnonzero(system.edges.number == 1)[:3]
    part = system.take(rows)
    assert part.edges is not None and len(part.edges) == 1
    assert part.edges.edge_bandwidth[0] == system.edges.edge_bandwidth[1]
    assert System.from_dict(system.to_dict()) == system


def test_infeasible_devices_are_named() -> None:
    system = Hierarchical.sample(devices=20, seed=0)
    budget = system.devices.delay_budget.copy()
    # not even the way to the cloud
    budget[5] = 1e-3
    result = jo.solve(Hierarchical(system.with_(delay_budget=budget)))
    assert result.status == "infeasible" and [c.device for c in result.infeasibility] == [5]
    assert "to the cloud" in result.infeasibility[0].text
    verify(result)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"edge": [0, 1, 2]}, r"edge\[device 2\]: 2 is no edge server; there are 2"),
        ({"edge": [0, 0, 0]}, "no device is under edge server 1"),
        ({"edge": [0, -1, 1]}, "at least 0"),
        ({"edge": [0, 0.5, 1]}, "whole number"),
        ({"edge_bandwidth": [1e6, 0.0]}, "above 0"),
        ({"backhaul_rate": [1e6, 1e6, 1e6]}, "for"),
        ({"local_aggregations": 0}, "at least 1"),
    ],
)
def test_bad_input_is_refused(changes: dict[str, Any], text: str) -> None:
    good: dict[str, Any] = {"edge": [0, 1, 1], "edge_bandwidth": [1e6, 2e6], "backhaul_rate": 1e7}
    assert len(Edges(**good)) == 2
    with pytest.raises(InputError, match=text):
        Edges(**{**good, **changes})


def test_the_section_is_needed_for_as_many_devices() -> None:
    with pytest.raises(InputError, match=r"needs the table \[edges\]"):
        Hierarchical(jo.systems.feel(4))
    edges = Edges(edge=[0, 0, 0], edge_bandwidth=1e6, backhaul_rate=1e7)
    with pytest.raises(InputError, match="3 values for 4 devices"):
        jo.systems.feel(4).replace(edges=edges)

"""From a co-inference decision to a real network: what the scenario must agree with, and carrying it out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from jointopt import systems
from jointopt.decision import Decision
from jointopt.errors import InputError, is_whole
from jointopt.problems import CoInference
from jointopt.result import Result
from jointopt.system import InferenceSystem, Network

if TYPE_CHECKING:
    from torch import Tensor

    from jointopt.inference import CarriedOut, SplitNetwork

__all__ = ["carry_out", "inference_system", "inputs_per_inference"]

_CURE = (
    "; derive the scenario from the network, InferenceSystem(..., network=network.section()) or "
    "study.inference_system(network), as `jointopt demo coinference` does, and solve anew"
)


def inputs_per_inference(section: Network, network: SplitNetwork) -> int:
    """Return how many inputs one inference of a scenario has, after checking that its sizes are the network's.

    Layers and weights must be equal; operations and bits at the cuts must be those of one input, times one whole
    number. What pruning leaves alone and what depends on the weights (rates, curve, amplification) may differ.

    Raises
    ------
    InputError
        For other sizes, saying how to derive the scenario from the network.
    """
    own = network.profile()
    if section.layers != len(network):
        raise InputError(
            f"network: the scenario's has {section.layers} layers, {network.name} has {len(network)} blocks{_CURE}"
        )
    wrong = section.parameters != own["parameters"]
    if np.any(wrong):
        i = int(np.argmax(wrong))
        raise InputError(
            f"network.parameters[layer {i}]: the scenario has {section.parameters[i]:g}, {network.name} has "
            f"{own['parameters'][i]:g}{_CURE}"
        )
    times = float(section.flops.sum() / own["flops"].sum())
    count = max(round(times), 1)
    for name, axis in (("flops", "layer"), ("cut_bits", "split")):
        mine, its = getattr(section, name), count * own[name]
        wrong = ~np.isclose(mine, its, rtol=1e-9, atol=0.0)
        if np.any(wrong):
            i = int(np.argmax(wrong))
            raise InputError(
                f"network.{name}[{axis} {i}]: the scenario has {mine[i]:g}, {network.name} has {own[name][i]:g} for "
                f"one input ({its[i]:g} for the {count} that an inference seems to have){_CURE}"
            )
    return count


def carry_out(
    decision: Result | Decision | Mapping[str, Any],
    network: SplitNetwork,
    inputs: Tensor,
    *,
    system: InferenceSystem | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> CarriedOut:
    """Carry out a co-inference decision on a real network (`jointopt.inference.carry_out`), bits counted per input.

    Parameters
    ----------
    decision : Result, Decision or mapping
        A solver's answer (which knows its system), or chosen values by name; ratios per device or per layer.
    network : SplitNetwork
        The dense network; its sizes must be the scenario's (`inputs_per_inference`).
    inputs : Tensor
        What to run it on.
    system : InferenceSystem, optional
        Needed when `decision` is no Result.
    progress : callable, optional
        As in `jointopt.inference.carry_out`.
    """
    from jointopt.inference import carry_out as carry

    if isinstance(decision, Result):
        if decision.decision is None:
            raise InputError(
                f"carry_out: the result of method '{decision.method}' holds no decision ({decision.message})"
            )
        system = decision.problem.system if system is None else system
        decision = decision.decision
    if system is None:
        raise InputError("carry_out: a decision alone needs its system (system=...)")
    if not isinstance(system, InferenceSystem):
        raise InputError(f"system: expected an InferenceSystem, got {type(system).__name__}")
    section = system.network
    count = inputs_per_inference(section, network)
    chosen = dict(decision)
    ratio = np.asarray(chosen.get("pruning_ratio", np.zeros(1)))
    if len(system) == 1 and ratio.shape == (section.layers,) and section.layers > 1:
        # ratios per layer of the only device
        chosen["pruning_ratio"] = ratio[:, None]
    one = system.with_(
        flops=section.flops / count, fixed_flops=section.fixed_flops / count, cut_bits=section.cut_bits / count
    )
    carried = carry(chosen, one, network, inputs, progress=progress)
    return dataclasses.replace(carried, settings={**carried.settings, "inputs_per_inference": count})


def inference_system(
    network: SplitNetwork,
    devices: int = 1,
    seed: int = 0,
    *,
    inputs: int = 1000,
    measured: bool = True,
    bandwidth: float = 500e3,
    flops_per_cycle: float = 16.0,
    tightness: float = 1.0,
    name: str | None = None,
) -> InferenceSystem:
    """Sample a system around a real network: channels, processors and server of `jointopt.systems.coinference`.

    Parameters
    ----------
    network : SplitNetwork
        Sizes, weight rates and amplification are its own.
    devices, seed
        As in `jointopt.systems.coinference`.
    inputs : int
        Inputs of one inference (a batch); one small input alone takes microseconds [S].
    measured : bool
        Whether the law of distortion is the curve measured on the weights, or the Laplace formula.
    bandwidth, flops_per_cycle : float
        Of every device [Hz], operations per cycle. With the defaults [S], an autoencoder of small images runs on the
        device where the channel is weak and on the server where it is strong.
    tightness : float
        Divides the budgets: 0.95 and 0.25 to 0.75 of the delay and energy of the dense network at its fastest split,
        full frequencies and half the power, each device's own [S].
    """
    from jointopt.inference import distortion_curve

    if not (is_whole(inputs) and inputs >= 1):
        raise InputError(f"inputs: {inputs!r} must be a whole number of at least 1")
    template = systems.coinference(devices, seed, tightness=tightness).with_(
        bandwidth=bandwidth, flops_per_cycle=flops_per_cycle
    )
    law: dict[str, Any] = {"distortion": "measured", **distortion_curve(network)} if measured else {}
    own = network.section(**law)
    section = own.replace(
        flops=inputs * own.flops, fixed_flops=inputs * own.fixed_flops, cut_bits=inputs * own.cut_bits
    )
    system = InferenceSystem(
        name=name or f"coinference-{network.name}-{devices}-seed{seed}",
        devices=template.devices,
        server=template.server,
        link=template.link,
        network=section,
    )
    delay, energy = _dense_needs(system)
    spread = np.random.default_rng(np.random.SeedSequence([seed, devices, 1])).uniform(0.5, 1.5, size=devices)
    return system.with_(delay_budget=0.95 * delay / tightness, energy_budget=0.5 * energy * spread / tightness)


def _dense_needs(system: InferenceSystem) -> tuple[np.ndarray, np.ndarray]:
    """Delay and energy of the dense network at each device's fastest split, full frequencies, half the power."""
    size = len(system)
    problem = CoInference(system)
    tables = []
    for split in system.network.choices:
        quantities = problem.evaluate(
            Decision(
                pruning_ratio=np.zeros(size),
                split=np.full(size, float(split)),
                power=0.5 * system.devices.power_max,
                frequency=system.devices.frequency,
                server_frequency=np.full(size, system.server.server_frequency),
            )
        ).quantities
        tables.append([np.asarray(quantities["delay"]), np.asarray(quantities["energy"])])
    delay, energy = np.swapaxes(np.array(tables), 0, 1)
    best = np.argmin(delay, axis=0)
    devices = np.arange(size)
    return delay[best, devices], energy[best, devices]

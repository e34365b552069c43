"""LTFL with one pool of bandwidth and one budget of energy: ratio, bits, power and band for the least gap.

    min  Gamma(pruning_ratio, bits, power, bandwidth)
         = sum_u pi_u [C_q q_u + 2 (L^2 D^2 e(r_u) + M^2 r_u) + 2 sigma_Q,u^2]
    s.t. sum_u bandwidth_u <= total bandwidth, sum_u E_u <= energy budget, T_u <= T_max,u, A < 1,
         0 <= r_u <= r_max, bits integer, p_min <= p_u <= p_max.

System, delay, energy and gap are those of `jointopt.problems.ltfl`; what differs is that the split of the band is
chosen and that energy is limited in sum (a budget of the fleet, or of the cell's operator) and not for each device.

Both limits are sums over devices. At prices on them each device is on its own, with the mean SNR as its one
complicating variable (`jointopt.problems.pooled_cells`), so the answer comes with a bound from duality; its gap shrinks
with the number of devices.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import numpy as np

from jointopt.decision import Decision
from jointopt.errors import InputError, is_real
from jointopt.models import channel, convergence
from jointopt.models._array import namespace
from jointopt.problem import (
    Baseline,
    Capabilities,
    Evaluation,
    Problem,
    Sums,
    Variable,
    range_slack,
)
from jointopt.problems.ltfl import CONTRACTION_LIMIT, GAP_PARTS, LTFL, device_round
from jointopt.problems.pooled_cells import PooledCells
from jointopt.ranges import changed_ranges, learning_limits, narrowed
from jointopt.system import FloatArray, System

__all__ = ["PooledLTFL"]

ENERGY_SHARE = 0.5
"""Share of the devices' energy budgets that they have together where no total is given."""


class PooledLTFL(Problem):
    """LTFL whose devices share a band and an energy budget.

    Parameters
    ----------
    system : System
        Devices, radio without interference, learner and bound constants. The band to share is
        `radio.total_bandwidth`, or where that is not given the sum of `radio.bandwidth`. The devices' own energy
        budgets are not imposed.
    energy_budget : float, optional
        Most energy of all devices together in a round [J]; `ENERGY_SHARE` of the sum of their budgets when not given.
    ranges : mapping, optional
        Bounds of the variables by device, as `restrict` makes and checks them.
    """

    name = "ltfl-pool"
    minimises = "convergence gap with a shared band and a total energy budget"
    budgets: ClassVar[Mapping[str, str]] = {"delay": "delay_budget"}
    overlooks: ClassVar[tuple[str, ...]] = (
        "each device's own energy budget",
        "generalization gap",
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
        energy_budget: float | None = None,
        ranges: Mapping[str, tuple[FloatArray, FloatArray]] | None = None,
    ) -> None:
        if not isinstance(system, System):
            raise InputError(f"system: expected a System, got {type(system).__name__}")
        radio, devices, learner = system.radio, system.devices, system.learner
        if np.any(radio.interference > 0.0):
            u = int(np.argmax(radio.interference > 0.0))
            raise InputError(
                f"radio.interference[device {u}]: {float(radio.interference[u])!r} W; this design is stated without"
            )
        if energy_budget is not None and not (is_real(energy_budget) and 0.0 < energy_budget < np.inf):
            raise InputError(f"energy_budget: {energy_budget!r} J must be a finite number above 0")
        self.system = system
        self.own_budget = None if energy_budget is None else float(energy_budget)
        self.energy_budget = (
            ENERGY_SHARE * float(devices.energy_budget.sum()) if energy_budget is None else float(energy_budget)
        )
        assert radio.bandwidth is not None
        self.total_bandwidth = float(radio.total_bandwidth or radio.bandwidth.sum())
        # checks magnitudes, and has the constants that both designs share
        design = LTFL(system)
        self.constants, self.sampling = design.constants, design._sampling()
        ones = np.ones(len(system))
        self.ranges: dict[str, tuple[FloatArray, FloatArray]] = {
            "pruning_ratio": (0.0 * ones, learner.pruning_ratio_max * ones),
            "bits": (learner.bits_min * ones, learner.bits_max * ones),
            "power": (devices.power_min, devices.power_max),
            "bandwidth": (0.0 * ones, self.total_bandwidth * ones),
            **(ranges or {}),
        }

    @classmethod
    def sample(
        cls, *, devices: int | None = None, seed: int = 0, data: str | None = None, tightness: float = 1.0
    ) -> System:
        """Sample a system (`jointopt.systems.ltfl`), whose sub-bands become the pool."""
        return LTFL.sample(devices=devices, seed=seed, data=data, tightness=tightness)

    @property
    def variables(self) -> tuple[Variable, ...]:
        """Pruning ratio, bits, power [W] and bandwidth [Hz], each per device."""
        ranges = self.ranges
        return (
            Variable("pruning_ratio", *ranges["pruning_ratio"], meaning="fraction of weights removed"),
            Variable("bits", *ranges["bits"], unit="bit", kind="integer", meaning="bits per parameter sent"),
            Variable("power", *ranges["power"], unit="W", meaning="transmit power"),
            Variable("bandwidth", *ranges["bandwidth"], unit="Hz", meaning="share of the band"),
        )

    def settings(self) -> dict[str, Any]:
        """Return the energy budget, where it was given, and the ranges that differ from the system's own."""
        given = {} if self.own_budget is None else {"energy_budget": self.own_budget}
        return given | changed_ranges(self.ranges, PooledLTFL(self.system).ranges)

    def restrict(self, **ranges: Any) -> Self:
        """Return the problem with variables fixed or narrowed: ``restrict(bits=8, bandwidth=50e3)``.

        Bits may be fixed above `bits_max` (32 is an unquantized float). Ratios above `pruning_ratio_max` and bits
        below `bits_min` are refused, since the gap's constant E_cap covers only those ranges.
        """
        limits = learning_limits(self.system, self.system.learner.bits_min)
        new = narrowed(self.ranges, ranges, len(self.system), limits)
        band = new["bandwidth"]
        if np.any(band[0] < 0.0) or np.any(band[1] <= 0.0) or np.any(band[1] > self.total_bandwidth):
            raise InputError(
                f"restrict: bandwidth must lie within 0 and the {self.total_bandwidth:g} Hz of all, and end above 0"
            )
        return type(self)(self.system, energy_budget=self.own_budget, ranges=new)

    # ------------------------------------------------------------------ evaluation

    def evaluate(self, decision: Decision) -> Evaluation:
        """Return the gap, its parts, slack and quantities; arrays ``[..., devices]``.

        Raises
        ------
        InputError
            For unknown or missing variables, or another number of devices.
        """
        self.check(decision)
        system = self.system
        devices, radio, bound = system.devices, system.radio, system.bound
        xp = namespace(*decision.values())

        def array(values: Any) -> Any:
            return xp.asarray(np.array(values))

        power, band = decision["power"], decision["bandwidth"]
        with np.errstate(divide="ignore", invalid="ignore"):
            # no band: no rate, so an infinite delay or none that is a number, which no budget covers
            snr = channel.snr(power, array(radio.gain), band * radio.noise_density)
            rate = channel.rate(band, snr, radio.fading)
        spent, gap = device_round(system, decision, snr, rate, self.sampling, self.constants)
        delay, energy = spent["delay"], spent["energy"]
        total = xp.sum(gap.total, axis=-1)
        contraction = xp.sum(gap.contraction, axis=-1)
        slack = {
            "delay": array(devices.delay_budget) - delay,
            "total_bandwidth": self.total_bandwidth - xp.sum(band, axis=-1),
            "total_energy": self.energy_budget - xp.sum(energy, axis=-1),
            "contraction": CONTRACTION_LIMIT - contraction,
        }
        scale: dict[str, Any] = {
            "delay": devices.delay_budget,
            "total_bandwidth": self.total_bandwidth,
            "total_energy": self.energy_budget,
            "contraction": 1.0,
        }
        slack |= range_slack(self.variables, decision)
        scale |= {v.name: v.upper if v.name in ("power", "bandwidth") else 1.0 for v in self.variables}
        return Evaluation(
            objective=total,
            parts={name: xp.sum(getattr(gap, name), axis=-1) for name in GAP_PARTS},
            slack=slack,
            scale=scale,
            quantities={
                **spent,
                "rate": rate,
                "snr": snr,
                "gap": total,
                "contraction": contraction,
                "bound": convergence.average_gradient_bound(
                    total, contraction, bound.initial_gap, bound.learning_rate, float(bound.rounds)
                ),
            },
        )

    # ------------------------------------------------------------------ structure

    def capabilities(self) -> Capabilities:
        """Sums with two limits (three where A depends on the loss) and cells; baselines."""
        coupled = self.system.bound.gradient_slope > 0.0
        size = 4 if coupled else 3
        cells = PooledCells(self)
        return Capabilities(
            sums=Sums(
                features=("gap", "bandwidth", "energy", "contraction")[:size],
                numerator=np.eye(size)[0],
                numerator_offset=0.0,
                denominator=np.zeros(size),
                denominator_offset=1.0,
                limits=np.array([np.inf, self.total_bandwidth, self.energy_budget, CONTRACTION_LIMIT])[:size],
            ),
            cells=cells,
            baselines=self._baselines(),
            conflicts=cells.conflicts,
        )

    def _baselines(self) -> dict[str, Baseline]:
        devices = self.system.devices
        return {
            "equal_bandwidth": Baseline(
                "the band split evenly; the rest optimised",
                restrict={"bandwidth": self.total_bandwidth / len(self.system)},
            ),
            "no_pruning": Baseline("the design without pruning", restrict={"pruning_ratio": 0.0}),
            "no_quantization": Baseline("the design without quantization (32-bit floats)", restrict={"bits": 32}),
            "no_power_control": Baseline("the design at full power", restrict={"power": devices.power_max}),
        }

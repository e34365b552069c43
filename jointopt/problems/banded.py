"""What designs share whose devices prune, send at full power, and divide a band: variables, a round, ranges."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt

from jointopt.decision import Array, Decision
from jointopt.errors import InputError, nearest
from jointopt.models import channel, compression
from jointopt.models._array import namespace
from jointopt.problem import (
    Baseline,
    Blocks,
    Problem,
    Sums,
    Variable,
    range_slack,
)
from jointopt.problems.band_cells import BandCells
from jointopt.problems.band_split import closed_form
from jointopt.problems.round import check_magnitudes, round_costs
from jointopt.ranges import Limit, changed_ranges, narrowed
from jointopt.system import FloatArray, System

__all__ = ["BandProblem"]

LIMITS = ("power", "density")


class BandProblem(Problem):
    """Base of designs that choose pruning ratios and how one band (or several) is divided.

    Parameters
    ----------
    system : System
        Devices, radio without interference, learner (`bits_max` bits a parameter), bound constants. The band to divide
        is `radio.total_bandwidth`, or where that is not given the sum of `radio.bandwidth`.
    limit : {"power", "density"}
        What is fixed: every device's power, at `power_max` whatever its band (default), or its power per hertz, at
        that of `power_max` in its own `radio.bandwidth`. The published closed forms are about the second, where the
        spectral efficiency does not depend on the band [S]; power then grows with the band.
    ranges : mapping, optional
        Bounds of the variables by device, as `restrict` makes and checks them.

    Raises
    ------
    InputError
        For interference, an unknown limit, or constants out of range.
    """

    budgets: ClassVar[Mapping[str, str]] = {"delay": "delay_budget"}
    sections: ClassVar[tuple[str, ...]] = ()
    """Sections that the design needs."""
    selects: ClassVar[bool] = False
    """Whether devices may be left out."""
    transmission: float = 0.0
    """Learning cost of a device whose every packet is lost; 0 where loss is no part of the design."""

    def __init__(
        self,
        system: System,
        *,
        limit: Literal["power", "density"] = "power",
        ranges: Mapping[str, tuple[FloatArray, FloatArray]] | None = None,
    ) -> None:
        if not isinstance(system, System):
            raise InputError(f"system: expected a System, got {type(system).__name__}")
        for section in self.sections:
            if getattr(system, section) is None:
                raise InputError(f"{section}: is missing; this design needs the table [{section}]")
        if limit not in LIMITS:
            raise InputError(f"limit: unknown '{limit}'{nearest(str(limit), LIMITS)}")
        radio, devices = system.radio, system.devices
        if np.any(radio.interference > 0.0):
            u = int(np.argmax(radio.interference > 0.0))
            raise InputError(
                f"radio.interference[device {u}]: {float(radio.interference[u])!r} W; this design is stated without"
            )
        check_magnitudes(system)
        assert radio.bandwidth is not None
        bound = system.bound
        if not 0.0 < bound.smoothness**2 * bound.weight_norm_squared + bound.mask_energy < 1e60:
            raise InputError("bound: smoothness^2 weight_norm_squared + mask_energy must be above 0 and below 1e60")
        self.system = system
        self.limit = limit
        self.density = devices.power_max / radio.bandwidth
        self.pool, self.bands = self._pools()
        ones = np.ones(len(system))
        self.ranges: dict[str, tuple[FloatArray, FloatArray]] = {
            "pruning_ratio": (0.0 * ones, system.learner.pruning_ratio_max * ones),
            "bandwidth": (0.0 * ones, self.bands[self.pool]),
            **({"selected": (0.0 * ones, ones)} if self.selects else {}),
            **(ranges or {}),
        }

    def _pools(self) -> tuple[npt.NDArray[np.int64], FloatArray]:
        """Return whose band each device shares, and the bands [Hz]."""
        radio = self.system.radio
        assert radio.bandwidth is not None
        return np.zeros(len(self.system), dtype=np.int64), np.array(
            [float(radio.total_bandwidth or radio.bandwidth.sum())]
        )

    @property
    def band_names(self) -> tuple[str, ...]:
        """Names of the limits on the bands."""
        return ("total_bandwidth",)

    @property
    def features(self) -> tuple[str, ...]:
        """Sums over devices: the learning cost, and the bands."""
        return ("cost", "bandwidth")

    @property
    def variables(self) -> tuple[Variable, ...]:
        """Pruning ratio, bandwidth [Hz], power [W] (which follows) and, where devices may be left out, who is not."""
        power = self.system.devices.power_max
        low, high = (power, power) if self.limit == "power" else (0.0 * power, self.density * self.bands[self.pool])
        out = (
            Variable("pruning_ratio", *self.ranges["pruning_ratio"], meaning="fraction of weights removed"),
            Variable("bandwidth", *self.ranges["bandwidth"], unit="Hz", meaning="share of the band"),
            Variable("power", low, high, unit="W", meaning="transmit power, which follows from the band or is fixed"),
        )
        if not self.selects:
            return out
        return (Variable("selected", *self.ranges["selected"], kind="binary", meaning="takes part in the round"), *out)

    def settings(self) -> dict[str, Any]:
        """Return what limits the power, and the ranges that differ from the system's own."""
        return {"limit": self.limit} | changed_ranges(self.ranges, type(self)(self.system, limit=self.limit).ranges)

    def restrict(self, **ranges: Any) -> Self:
        """Return the problem with variables fixed or narrowed: ``restrict(pruning_ratio=0, bandwidth=50e3)``."""
        for name in ranges:
            if name == "power":
                raise InputError("restrict: power follows from the band or is fixed in this design; change power_max")
        limits = {"pruning_ratio": Limit.between(0, self.system.learner.pruning_ratio_max)}
        new = narrowed(self.ranges, ranges, len(self.system), limits)
        low, high = new["bandwidth"]
        if np.any(low < 0.0) or np.any(high <= 0.0) or np.any(high > self.bands[self.pool]):
            raise InputError("restrict: bandwidth must lie within 0 and the band to be shared, and end above 0")
        if self.selects and not np.all(np.isin(np.concatenate(new["selected"]), (0.0, 1.0))):
            raise InputError("restrict: selected must be 0 or 1")
        return self._again(self.system, new)

    def _again(self, system: System, ranges: Mapping[str, tuple[FloatArray, FloatArray]]) -> Self:
        return type(self)(system, limit=self.limit, ranges=ranges)

    # ------------------------------------------------------------------ evaluation

    def _round(self, decision: Decision) -> tuple[dict[str, Any], Any, Any, Any]:
        """Return (what a round costs, band, learning cost of pruning, who takes part), each [..., devices].

        Devices that are left out spend nothing, whatever else is said of them, and cost as if all were pruned.
        """
        self.check(decision)
        system, bound = self.system, self.system.bound
        radio = system.radio
        xp = namespace(*decision.values())
        ratio, band, power = decision["pruning_ratio"], decision["bandwidth"], decision["power"]
        taken = decision["selected"] > 0.5 if self.selects else ratio == ratio

        def array(values: Any) -> Any:
            return xp.asarray(np.array(values))

        # whoever is left out may be given nothing: what there is avoids 0/0 before it is set to 0
        whole = array(self.bands[self.pool]) * xp.ones_like(band)
        used = xp.where(taken, band, whole)
        sent = xp.where(taken, power, array(system.devices.power_max) * xp.ones_like(power))
        with np.errstate(divide="ignore", invalid="ignore"):
            # no band: no rate, so an infinite delay or none that is a number, which no budget covers
            snr = channel.snr(sent, array(radio.gain), used * radio.noise_density)
            rate = channel.rate(used, snr, radio.fading)
            own = {"pruning_ratio": ratio, "power": sent}
            bits = float(system.learner.bits_max) + 0.0 * ratio
            spent = round_costs(system, Decision({**own, "bits": bits}), snr, rate, array(system.batch))
        spent |= {"rate": rate, "snr": snr}
        nothing = xp.zeros_like(ratio)
        spent = {name: xp.where(taken, value + nothing, nothing) for name, value in spent.items()}
        error = bound.smoothness**2 * bound.weight_norm_squared * compression.pruning_error(ratio, bound.pruning_law)
        most = bound.smoothness**2 * bound.weight_norm_squared + bound.mask_energy
        error = xp.where(taken, error + bound.mask_energy * ratio, most + nothing)
        return spent, xp.where(taken, band, nothing), array(system.weight) * (2.0 * error), taken

    def _limits(self, decision: Decision, band: Any, taken: Any) -> tuple[dict[str, Array], dict[str, Any]]:
        """Slack and scale of the bands, of the power's density, and of the ranges."""
        xp = namespace(band)
        slack: dict[str, Array] = {}
        scale: dict[str, Any] = {}
        for number, name in enumerate(self.band_names):
            inside = xp.asarray(np.array(self.pool == number))
            slack[name] = float(self.bands[number]) - xp.sum(xp.where(inside, band, xp.zeros_like(band)), axis=-1)
            scale[name] = float(self.bands[number])
        if self.limit == "density":
            slack["power_density"] = xp.asarray(np.array(self.density)) * decision["bandwidth"] - decision["power"]
            scale["power_density"] = self.system.devices.power_max
        for variable, inside in zip(self.variables, range_slack(self.variables, decision).values(), strict=True):
            slack[variable.name] = (
                inside if variable.kind == "binary" else xp.where(taken, inside, xp.zeros_like(inside))
            )
            scale[variable.name] = variable.upper if variable.name in ("bandwidth", "power") else 1.0
        return slack, scale

    # ------------------------------------------------------------------ structure

    def _sums(self) -> Sums:
        """The learning cost, with the bands as limits."""
        size = len(self.features)
        limits = np.full(size, np.inf)
        limits[1 : 1 + self.bands.size] = self.bands
        return Sums(self.features, np.eye(size)[0], 0.0, np.zeros(size), 1.0, limits)

    def _filled(self, cells: BandCells, band: FloatArray, taken: npt.NDArray[np.bool_], label: Any = 0) -> Decision:
        """Return the decision of least pruning in given bands."""
        unit = np.arange(cells.units)
        used = np.where(taken & (band > 0.0), band, cells.band_high)
        number = np.broadcast_to(label, unit.shape)
        ratio = np.minimum(1.0 - cells.kept(unit, number, cells.rate(unit, used)), 1.0 - cells.kept_low)
        made = cells._decision(unit, np.maximum(ratio, 0.0), band, ~taken)
        return Decision({name: value for name, value in made.items() if name not in cells.marks})

    def _shares(self) -> FloatArray:
        """Equal shares of the bands [Hz]."""
        shares: FloatArray = (self.bands / np.maximum(np.bincount(self.pool, minlength=self.bands.size), 1))[self.pool]
        return np.clip(shares, *self.ranges["bandwidth"])

    def _published(
        self, cells: BandCells, taken: npt.NDArray[np.bool_], *, sweeps: int = 30
    ) -> tuple[FloatArray, bool]:
        """Return the closed-form split, efficiencies taken at the split before until it rests, and whether it fits."""
        band = self._shares()
        unit = np.arange(cells.units)
        for _ in range(1 if cells.by_density else sweeps):
            efficiency = cells.rate(unit, np.where(band > 0.0, band, self._shares()))
            efficiency = efficiency / np.where(band > 0.0, band, self._shares())
            new = closed_form(cells, self.bands, efficiency, taken)
            if new is None:
                return band, False
            moved = np.max(np.abs(new - band) / self.bands[self.pool])
            band = new
            if moved <= 1e-12:
                break
        # the last efficiency is not quite that of the last band
        return band, True

    def _blocks(self, cells: BandCells) -> Blocks:
        """The closed forms in turn: bands at the present efficiencies, then the least ratios."""
        everyone = np.ones(cells.units, dtype=bool)
        unit = np.arange(cells.units)

        def bands(decision: Decision) -> Decision:
            band = np.asarray(decision["bandwidth"])
            used = np.where(band > 0.0, band, self._shares())
            new = closed_form(cells, self.bands, cells.rate(unit, used) / used, everyone)
            return decision if new is None else self._filled(cells, new, everyone)

        return Blocks(
            start=lambda: self._filled(cells, self._shares(), everyone),
            steps={"bandwidth, pruning_ratio": bands},
            tolerance=1e-12,
        )

    def _common_baselines(self) -> dict[str, Baseline]:
        low, high = self.ranges["pruning_ratio"]
        return {
            "equal_bandwidth": Baseline(
                "the band split evenly; the rest optimised", restrict={"bandwidth": self._shares()}
            ),
            "no_pruning": Baseline("the design without pruning", restrict={"pruning_ratio": np.clip(0.0, low, high)}),
        }

"""Least-energy split of a band as a conic program: normalised inside, checked in SI outside.

The closed form is `jointopt.models.allocation.minimum_energy_bandwidth`. The program is how the same sub-problem is
stated where it grows terms without a closed form, and what the closed form is checked against. Its unit of band is B
and its unit of power each client's own at equal spectral efficiency. In plain hertz and watts the same program ends
with the status ``optimal`` tens of per cent above the optimum, at points that satisfy every constraint: neither the
status nor a test of feasibility tells, a bound from duality does.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import cvxpy as cp
import numpy as np

from jointopt.errors import InputError, SolverError
from jointopt.models.allocation import bandwidth_dual_bound, bandwidth_energy, least_bandwidth
from jointopt.system import FloatArray

__all__ = ["BandwidthProgram", "CheckedBandwidth"]

LN2 = float(np.log(2.0))
STEP_FRACTION = 0.95
"""Of the way to the boundary of the cones; at Clarabel's own 0.99, some programs like this end without a solution."""
_LARGEST_CAP = 1e6


@dataclass(frozen=True)
class CheckedBandwidth:
    """What the conic solver found, and what was proved of it without the solver.

    Attributes
    ----------
    bandwidth, power, energy : array, shape [devices]
        [Hz], [W] and [J]; power and energy follow from the bands in SI, not from the solver's variables.
    price : float
        Its multiplier of the band [J/Hz].
    lower_bound : float
        Lagrangian dual value at that price [J]: no split needs less.
    gap : float
        (sum of the energies - lower bound)/sum of the energies; inf where the bands are not allowed.
    passed : bool
        Whether the gap is within the program's tolerance.
    status : str
        The solver's own word.
    """

    bandwidth: FloatArray
    power: FloatArray
    energy: FloatArray
    price: float
    lower_bound: float
    gap: float
    passed: bool
    status: str


class BandwidthProgram:
    """The conic program for a number of devices, compiled once (DPP) and re-solved with new numbers.

    With shares beta = b/B and powers q in units of p_ref,

        min sum of w q,  beta e^{a/beta} <= beta + G q  (s <= t b log2(1 + p h/(N0 b)); an exponential cone),
        sum of beta <= 1,  q <= p_max/p_ref,

    with a = ln2 s/(t B), G = p_ref h/(N0 B), w = t p_ref/sum of t p_ref, and p_ref each client's power when the band
    is split in proportion to s/t. The cone implies that beta and q are above 0; said again, that would cost the solver
    half as many iterations more.

    Parameters
    ----------
    devices : int
        Number of devices.
    limited : bool
        Whether powers have limits.
    normalised : bool
        False states the same program in hertz and watts as they are, which is how not to do it; for tests.
    tolerance : float
        Largest gap that passes.
    """

    def __init__(
        self, devices: int, *, limited: bool = False, normalised: bool = True, tolerance: float = 1e-6
    ) -> None:
        if devices < 1:
            raise InputError(f"devices: {devices!r} must be at least 1")
        self.devices, self.limited, self.normalised, self.tolerance = devices, limited, normalised, tolerance
        self.share, self.drive = cp.Variable(devices), cp.Variable(devices)
        names = ("nats", "gain", "weight") + (("cap",) if limited else ())
        self.parameters = {name: cp.Parameter(devices, nonneg=True) for name in names}
        self.total = cp.Parameter(nonneg=True)
        p = self.parameters
        self._band = cp.sum(self.share) <= self.total
        constraints = [
            cp.ExpCone(p["nats"], self.share, self.share + cp.multiply(p["gain"], self.drive)),
            self._band,
        ]
        if limited:
            constraints.append(self.drive <= p["cap"])
        self.problem = cp.Problem(cp.Minimize(p["weight"] @ self.drive), constraints)

    def solve(
        self,
        *,
        payload: Any,
        deadline: Any,
        gain: Any,
        noise_density: float,
        total_bandwidth: float,
        power_max: Any | None = None,
    ) -> CheckedBandwidth:
        """Re-solve with new numbers and check the answer in SI by the Lagrangian dual at the solver's multiplier.

        Parameters as in `jointopt.models.allocation.minimum_energy_bandwidth`, for one scenario.

        Raises
        ------
        InputError
            For numbers that are not above 0 and finite, another number of devices, or `power_max` where the program
            was made without (and the reverse).
        SolverError
            When the solver returns no point at all, as for an infeasible program. A poor point is returned, flagged.
        """
        if (power_max is not None) != self.limited:
            raise InputError(f"power_max: the program was made with limited={self.limited}")
        links: dict[str, Any] = {
            "payload": payload,
            "deadline": deadline,
            "gain": gain,
            "noise_density": noise_density,
        }
        everyone = np.ones(self.devices)
        try:
            s, t, h = (everyone * np.asarray(v, dtype=np.float64) for v in (payload, deadline, gain))
            top = None if power_max is None else everyone * np.asarray(power_max, dtype=np.float64)
        except ValueError as error:
            raise InputError(f"BandwidthProgram: made for {self.devices} devices ({error})") from None
        band, noise = float(total_bandwidth), float(noise_density)
        if not 0.0 < band < np.inf:
            raise InputError(f"total_bandwidth: {band!r}; must be finite and above 0")
        equal = band * (s / t) / np.sum(s / t)
        reference = bandwidth_energy(bandwidth=equal, **links) / t
        if np.any(bad := ~np.isfinite(reference)):
            k = int(np.argmax(bad))
            raise InputError(f"payload[device {k}]: {s[k]!r} bit in {t[k]!r} s needs more power than can be computed")
        unit_band, unit_power, unit_energy = 1.0, everyone, 1.0
        if self.normalised:
            unit_band, unit_power, unit_energy = band, reference, float(t @ reference)
        values = {
            "nats": LN2 * s / (t * unit_band),
            "gain": unit_power * h / (noise * unit_band),
            "weight": t * unit_power / unit_energy,
        }
        if top is not None:
            # a limit far above what anybody uses binds nobody
            values["cap"] = np.minimum(top / unit_power, _LARGEST_CAP) if self.normalised else top
        for name, value in values.items():
            self.parameters[name].value = value
        self.total.value = band / unit_band
        self._run()
        price = max(float(self._band.dual_value), 0.0) * unit_energy / unit_band
        return self._checked(np.asarray(self.share.value) * unit_band, price, links, band, top)

    def _run(self) -> None:
        try:
            with warnings.catch_warnings():
                # how inaccurate an inaccurate solution is, the bound tells
                warnings.simplefilter("ignore", UserWarning)
                self.problem.solve(solver=cp.CLARABEL, max_step_fraction=STEP_FRACTION)
        except cp.error.SolverError as error:
            raise SolverError(f"band program: {error}") from None
        if self.share.value is None or self._band.dual_value is None:
            raise SolverError(f"band program: the conic solver says '{self.problem.status}'")

    def _checked(
        self, bands: FloatArray, price: float, links: dict[str, Any], band: float, top: FloatArray | None
    ) -> CheckedBandwidth:
        """The solver's bands, moved into the constraints where rounding left them outside, and their certificate."""
        least = np.zeros(self.devices) if top is None else least_bandwidth(**links, power_max=top)
        above = np.maximum(bands - least, 0.0)
        room = band - float(least.sum())
        if room >= 0.0 and float(above.sum()) > room:
            above *= room / float(above.sum())
        bands = least + above
        energy = bandwidth_energy(bandwidth=bands, **links)
        bound = float(bandwidth_dual_bound(price, **links, total_bandwidth=band, power_max=top))
        total = float(energy.sum())
        gap = (total - bound) / total if room >= 0.0 and np.isfinite(total) else float("inf")
        power = energy / np.asarray(links["deadline"], dtype=np.float64)
        return CheckedBandwidth(
            bands, power, energy, price, bound, gap, bool(gap <= self.tolerance), str(self.problem.status)
        )

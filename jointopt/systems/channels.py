"""Channel gains of a standard cell, drawn with Sionna."""

from __future__ import annotations

import numpy as np

from jointopt.errors import InputError, MissingExtraError, nearest
from jointopt.system import FloatArray

__all__ = ["sionna_gains"]


def sionna_gains(
    devices: int,
    seed: int = 0,
    *,
    scenario: str = "umi",
    carrier_frequency: float = 3.5e9,
    draws: int = 8,
    indoor_probability: float = 0.0,
) -> FloatArray:
    """Draw mean channel gains of devices in a 3GPP TR 38.901 cell with Sionna, shape [devices].

    Devices are dropped uniformly in a sector; path loss, shadowing and line of sight follow the standard [K]. The
    mean over small-scale fading is taken over `draws` channel realisations with one omnidirectional antenna at
    each end. Sionna keeps one global generator: it is seeded here and put back to a random state afterwards.

    Parameters
    ----------
    devices : int
        Number of devices.
    seed : int
        Seed of drop, shadowing and fading.
    scenario : {"umi", "uma", "rma"}
        Street canyon, urban macro or rural macro cell.
    carrier_frequency : float
        Carrier [Hz].
    draws : int
        Channel realisations averaged.
    indoor_probability : float
        Share of devices indoors.

    Raises
    ------
    MissingExtraError
        When Sionna is not installed (extra ``sionna``).
    InputError
        For an unknown scenario or numbers out of range.
    """
    if scenario not in ("umi", "uma", "rma"):
        raise InputError(f"scenario: unknown '{scenario}'{nearest(str(scenario), ['umi', 'uma', 'rma'])}")
    if devices < 1 or draws < 1:
        raise InputError(f"devices: {devices!r} and draws: {draws!r} must be at least 1")
    if seed < 0:
        raise InputError(f"seed: {seed!r} must be at least 0")
    if not (np.isfinite(carrier_frequency) and carrier_frequency > 0.0):
        raise InputError(f"carrier_frequency: {carrier_frequency!r} Hz must be a finite number above 0")
    if not 0.0 <= indoor_probability <= 1.0:
        raise InputError(f"indoor_probability: {indoor_probability!r} must lie between 0 and 1")
    try:
        from sionna.phy import config
        from sionna.phy.channel import gen_single_sector_topology, tr38901
    except ImportError:
        raise MissingExtraError("sionna-no-rt", "sionna", "drawing TR 38.901 channels") from None
    antenna = tr38901.Antenna(
        polarization="single",
        polarization_type="V",
        antenna_pattern="omni",
        carrier_frequency=carrier_frequency,
    )
    kind = {"umi": tr38901.UMi, "uma": tr38901.UMa, "rma": tr38901.RMa}[scenario]
    options = {} if scenario == "rma" else {"o2i_model": "low"}
    try:
        config.seed = seed
        model = kind(
            carrier_frequency=carrier_frequency,
            ut_array=antenna,
            bs_array=antenna,
            direction="uplink",
            **options,
        )
        topology = gen_single_sector_topology(1, devices, scenario, indoor_probability=indoor_probability)
        model.set_topology(*topology)
        total = np.zeros(devices)
        for _ in range(draws):
            # [batch, receivers, antennas, transmitters, antennas, paths, time]
            paths, _ = model(1, 1.0)
            total += (paths.abs() ** 2).sum(dim=5)[0, 0, 0, :, 0, 0].double().cpu().numpy()
    finally:
        config.seed = None
    gains: FloatArray = total / draws
    return gains

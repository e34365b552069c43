"""The published split of bands at fixed spectral efficiencies, in closed form up to one price for each band."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from jointopt.problems.band_cells import BandCells
from jointopt.system import FloatArray

__all__ = ["closed_form"]


def closed_form(
    cells: BandCells, bands: FloatArray, efficiency: FloatArray, taken: npt.NDArray[np.bool_]
) -> FloatArray | None:
    """Return the published split of the bands of all pools at fixed spectral efficiencies (theory 6 [D]).

        b_u = clip([sqrt(w_u C (c1 (T-t0) + c0 t1) r_u/nu) - c1]/(t1 r_u), b_min, b_max)

    with nu from the pool's band by bisection; nu = 0 where everyone's b_max fits. It is the optimum where the
    efficiency r does not depend on the band and the pruning error is linear. At the first label, for devices
    `taken`; None where the least bands exceed a pool.
    """
    unit = np.arange(cells.units)
    room = cells.deadlines[0] - cells.time_once
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        ends = []
        for kept in (cells.kept_low, cells.kept_high):
            left = room - cells.time_each * kept
            need = np.where(left > 0.0, (cells.bits_once + cells.bits_each * kept) / (left * efficiency), np.inf)
            ends.append(need)
        low = np.where(taken, np.maximum(ends[0], cells.band_low), 0.0)
        high = np.where(taken, np.maximum(np.minimum(ends[1], cells.band_high), low), 0.0)
        gain = cells.weight * (cells.smooth + cells.mask) * cells.turn(unit, 0) * efficiency
        each = cells.time_each * efficiency

        def split(price: FloatArray) -> FloatArray:
            ask = np.sqrt(gain / price[cells.pool]) - cells.bits_each
            free = np.where(each > 0.0, ask / np.where(each > 0.0, each, 1.0), np.where(ask > 0.0, np.inf, 0.0))
            out: FloatArray = np.clip(free, low, high)
            return out

        def used(split: FloatArray) -> FloatArray:
            out: FloatArray = np.bincount(cells.pool, split, minlength=bands.size).astype(np.float64)
            return out

        if np.any(used(low) > bands) or np.any(low[taken] > cells.band_high[taken]):
            return None
        dear = np.full(bands.size, -np.inf)
        np.maximum.at(dear, cells.pool, np.log(np.maximum(gain, 1e-300) / cells.bits_each**2))
        right = dear + 1.0
        left = right - 200.0
        for _ in range(100):
            middle = 0.5 * (left + right)
            over = used(split(np.exp(middle))) > bands
            left, right = np.where(over, middle, left), np.where(over, right, middle)
        fits = used(high) <= bands
        return np.where(fits[cells.pool], high, split(np.exp(right)))

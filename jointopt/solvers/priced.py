"""The priced response of a problem: from its cells, or in a way of its own.

Everything above (`exact`, `batch`, `stream`) asks for `Priced` and knows no cells.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from jointopt.errors import InputError
from jointopt.problem import Boxes, Capabilities, Cells, Leaves, Priced, Response
from jointopt.solvers.boxes import BoxesPriced
from jointopt.solvers.branch import CellsResponse, respond
from jointopt.system import FloatArray

__all__ = ["CellsPriced", "priced_from", "priced_of"]


class CellsPriced:
    """`Priced` for `Cells`: branch and bound over one real variable and a label per unit.

    Leaves have the coordinates ``label`` and ``x``. Where the cells offer ``left_out`` the leaves cover the units'
    whole range; otherwise they cover what ``cover`` returns, and the problem's own argument says why that is enough.
    """

    sharp = True
    """Units can be settled to rounding: their bounds close with the square of the cells' widths or faster."""
    nonnegative = True
    """Cells are bounded by what rises and falls in them, which holds for prices of at least 0."""

    def __init__(self, cells: Cells) -> None:
        self.cells = cells
        self.units = cells.units

    def respond(
        self,
        prices: FloatArray,
        *,
        units: npt.NDArray[np.int64] | None = None,
        gap: float = 5e-7,
        stop: Callable[[], None] | None = None,
        keep: bool = False,
    ) -> Response:
        """Return every asked unit's best decision at the prices (`jointopt.problem.Priced.respond`)."""
        prices = np.asarray(prices, dtype=np.float64)
        take: Any = getattr(self.cells, "take", None)
        if units is None and (prices.ndim == 1 or take is not None):
            return self._all(self.cells, prices, gap, stop, keep)
        index = np.arange(self.units) if units is None else np.asarray(units, dtype=np.int64)
        if take is not None:
            return self._all(take(index), prices, gap, stop, keep)
        return self._by_price(index, prices, gap, stop, keep)

    def capped(self, feature: int, caps: FloatArray) -> CellsPriced | None:
        """Return the units with one feature of each at most `caps` [units]; None where the cells cannot do that."""
        try:
            return CellsPriced(self.cells.capped(feature, caps))
        except InputError:
            return None

    @staticmethod
    def _all(cells: Cells, prices: FloatArray, gap: float, stop: Callable[[], None] | None, keep: bool) -> Response:
        return completed(cells, prices, respond(cells, prices, gap=gap, stop=stop, keep=keep))

    def _by_price(
        self, index: npt.NDArray[np.int64], prices: FloatArray, gap: float, stop: Any, keep: bool
    ) -> Response:
        """Answer about some units of cells that cannot be taken apart: everybody, once per vector of prices."""
        columns = prices[:, None] if prices.ndim == 1 else prices
        vectors, which = np.unique(columns, axis=1, return_inverse=True)
        which = np.broadcast_to(which.reshape(-1), index.shape)
        answers = [self._all(self.cells, vector, gap, stop, keep) for vector in vectors.T]

        def pick(arrays: list[FloatArray]) -> FloatArray:
            return np.stack(arrays)[which, ..., index]

        return Response(
            value=pick([a.value for a in answers]),
            lower_bound=pick([a.lower_bound for a in answers]),
            decision={name: pick([a.decision[name] for a in answers]) for name in answers[0].decision},
            features=pick([a.features for a in answers]).T,
            cells=sum(a.cells for a in answers),
            leaves=_pick_leaves([cast(Leaves, a.leaves) for a in answers], which, index) if keep else None,
        )


def completed(cells: Cells, prices: FloatArray, found: CellsResponse) -> Response:
    """Return the whole decision and the features of what was found at the prices."""
    chosen = np.flatnonzero(found.feasible)
    # prices of all units: cells look up those of the units they are asked about
    decision, features = cells.complete(prices, chosen, found.label[chosen], found.x[chosen])
    if chosen.size == cells.units:
        return Response(found.value, found.lower_bound, decision, features, found.cells, found.leaves)
    missing = np.flatnonzero(~found.feasible)
    fallback = cells.least_violating(missing)
    full = {name: np.empty(cells.units) for name in decision}
    for name, values in full.items():
        values[chosen], values[missing] = decision[name], fallback[name]
    spread = np.zeros((features.shape[0], cells.units))
    spread[:, chosen] = features
    return Response(found.value, found.lower_bound, full, spread, found.cells, found.leaves)


def _pick_leaves(leaves: list[Leaves], which: npt.NDArray[np.int64], index: npt.NDArray[np.int64]) -> Leaves:
    """Leaves of (vector of prices, unit) pairs, numbered by their place in the question."""
    rows, unit, source = [], [], []
    for place, (vector, number) in enumerate(zip(which, index, strict=True)):
        found = np.flatnonzero(leaves[vector].unit == number)
        rows.append(found)
        unit.append(np.full(found.size, place))
        source.append(np.full(found.size, vector))
    row, of = np.concatenate(rows), np.concatenate(source)

    def pick(name: str) -> FloatArray:
        parts = np.concatenate([getattr(leaf, name) for leaf in leaves], axis=-1)
        starts = np.cumsum([0] + [len(leaf) for leaf in leaves])[of]
        return parts[..., starts + row]

    return Leaves(leaves[0].names, np.concatenate(unit), pick("low"), pick("high"), pick("bound"))


def priced_from(units: Boxes | Cells | Priced) -> Priced:
    """Return the priced response of units, whichever structure they come as."""
    if hasattr(units, "respond"):
        return cast(Priced, units)
    return CellsPriced(cast(Cells, units)) if hasattr(units, "cover") else BoxesPriced(units)


def priced_of(offered: Capabilities) -> Priced | None:
    """Return the priced response a problem offers: its own, else from its cells or boxes; None where it has none."""
    for units in (offered.priced, offered.cells, offered.boxes):
        if units is not None:
            return priced_from(units)
    return None

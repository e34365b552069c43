"""Hierarchical learning with pruning: devices under edge servers, each with a band of its own, under one cloud.

In the manner of "Hierarchical Federated Learning with Model Pruning" (ratios and radio resources of a device-edge-cloud
hierarchy under a latency, closed forms by KKT conditions [R]), of which parallel HFL with more layers is a parent [R];
latency and learning cost are derived here [D], not quoted.

For one aggregation in the cloud every edge server aggregates kappa times. Masks differ between devices, so an edge
server's model is dense again and its whole payload travels to the cloud [S]:

    kappa T_u(r_u, bandwidth_u) + payload/backhaul_e <= T_max,u for every device u under edge server e.

    min  sum_u pi_u 2 [L^2 D^2 e(r_u) + M^2 r_u]
    s.t. sum over u under e of bandwidth_u <= bandwidth of e, the latency above, 0 <= r_u <= r_max.

That the aggregations at the edge add nothing to the bound is a choice [S]: their number is not chosen, so it would be a
constant. With T = (T_max - payload/backhaul)/kappa it is the problem of `jointopt.problems.spectrum` with one band for
each edge server, so with one price for each.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from jointopt import systems
from jointopt.decision import Decision
from jointopt.models import compression
from jointopt.models._array import namespace
from jointopt.problem import Capabilities, Conflict, Evaluation
from jointopt.problems.band_cells import BandCells
from jointopt.problems.banded import BandProblem
from jointopt.system import Edges, FloatArray, System
from jointopt.units import format_si

__all__ = ["Hierarchical"]


class Hierarchical(BandProblem):
    """Least pruning under a latency over two hops, by the ratios and the splits of the edge servers' bands.

    The system needs the section `edges`. Other parameters are those of `jointopt.problems.banded.BandProblem`.
    """

    name = "hierarchical"
    minimises = "pruning error under a latency over edge and cloud, by ratios and the edge servers' bands"
    sections: ClassVar[tuple[str, ...]] = ("edges",)
    overlooks: ClassVar[tuple[str, ...]] = (
        "energy budgets",
        "lost packets",
        "quantization error",
        "noise of batches",
        "generalization gap",
        "class mixes",
        "rounds to a target",
        "tiers by time",
        "a price on latency",
    )

    @classmethod
    def sample(
        cls, *, devices: int | None = None, seed: int = 0, data: str | None = None, tightness: float = 1.0
    ) -> System:
        """Sample a system: `jointopt.systems.feel` with the linear pruning error, an edge server for ten devices.

        There are at most ten of them: the search for their prices takes ever longer with their number.
        """
        count = 20 if devices is None else devices
        made = systems.feel(count, seed, data=data or "digits", tightness=tightness).with_(pruning_error="linear")
        rng = np.random.default_rng(np.random.SeedSequence([seed, count, 1]))
        edges = min(max(1, count // 10), MOST_EDGES)
        # every server has a device; the others fall where they may
        edge = rng.permutation(np.concatenate([np.arange(edges), rng.integers(edges, size=count - edges)]))
        assert made.radio.total_bandwidth is not None
        payload = float(made.learner.parameters + made.learner.unpruned_parameters) * made.learner.bits_max
        budget = float(made.devices.delay_budget[0])
        return made.with_(delay_budget=AGGREGATIONS * budget + BACKHAUL * budget).replace(
            edges=Edges(
                edge=edge,
                edge_bandwidth=made.radio.total_bandwidth / edges,
                backhaul_rate=payload / (BACKHAUL * budget) * rng.uniform(1.0, 2.0, edges),
                local_aggregations=AGGREGATIONS,
            )
        )

    @property
    def edges(self) -> Edges:
        """The system's edge servers."""
        assert self.system.edges is not None
        return self.system.edges

    def _pools(self) -> tuple[npt.NDArray[np.int64], FloatArray]:
        return self.edges.number, self.edges.edge_bandwidth

    @property
    def band_names(self) -> tuple[str, ...]:
        """One limit for each edge server."""
        return tuple(f"edge_bandwidth_{e}" for e in range(len(self.edges)))

    @property
    def features(self) -> tuple[str, ...]:
        """The learning cost, and the band of every edge server."""
        return ("cost", *self.band_names)

    @property
    def backhaul_delay(self) -> FloatArray:
        """Time for the whole model from each device's edge server to the cloud [s], shape [devices]."""
        learner = self.system.learner
        index, once = compression.index_bits(learner.parameters, learner.mask_encoding)
        payload = compression.payload_bits(
            float(learner.parameters),
            float(learner.bits_max),
            unpruned=float(learner.unpruned_parameters),
            header=learner.header_bits,
            index_per_weight=index,
            index_once=once,
        )
        out: FloatArray = (payload / self.edges.backhaul_rate)[self.edges.number]
        return out

    def evaluate(self, decision: Decision) -> Evaluation:
        """Return the learning cost, slack and quantities; arrays ``[..., devices]``.

        `delay` is that of one aggregation at the edge, `global_delay` that of one in the cloud.

        Raises
        ------
        InputError
            For unknown or missing variables, or another number of devices.
        """
        spent, band, learned, taken = self._round(decision)
        xp = namespace(learned)
        total = xp.sum(learned, axis=-1)
        limits, scales = self._limits(decision, band, taken)
        budget = self.system.devices.delay_budget
        longest = self.edges.local_aggregations * spent["delay"] + xp.asarray(np.array(self.backhaul_delay))
        return Evaluation(
            objective=total,
            parts={"pruning": total},
            slack={"delay": xp.asarray(np.array(budget)) - longest, **limits},
            scale={"delay": budget, **scales},
            quantities={**spent, "global_delay": longest, "gap": total},
        )

    def capabilities(self) -> Capabilities:
        """Sums with a limit for each edge server and cells (exact with certificate), closed forms, baselines."""
        deadline = (self.system.devices.delay_budget - self.backhaul_delay) / self.edges.local_aggregations
        cells = BandCells(self, deadline[None])
        return Capabilities(
            sums=self._sums(),
            cells=cells,
            blocks=self._blocks(cells),
            baselines=self._common_baselines(),
            conflicts=lambda devices: [self._explained(c) for c in cells.conflicts(devices)],
        )

    def _explained(self, conflict: Conflict) -> Conflict:
        """Count all aggregations and the way to the cloud."""
        need, u = conflict.relax["delay_budget"], conflict.device
        assert need is not None and u is not None
        whole = self.edges.local_aggregations * need + float(self.backhaul_delay[u])
        budget = float(self.system.devices.delay_budget[u])
        where = f"{format_si(float(self.backhaul_delay[u]), 's')} to the cloud"
        return replace(
            conflict,
            relax={"delay_budget": whole},
            budget={"delay_budget": budget},
            factor=whole / budget,
            text=f"device {u}: delay, even with all the band of edge server {int(self.edges.number[u])} ({where}); "
            f"feasible with delay budget {format_si(budget, 's')} -> {format_si(whole, 's', 4)}",
        )


MOST_EDGES = 10
"""Edge servers of `Hierarchical.sample`, at most."""
AGGREGATIONS = 3
"""Aggregations at the edge for each one in the cloud, of `Hierarchical.sample`."""
BACKHAUL = 0.5
"""Longest way to the cloud there, over the deadline of `jointopt.systems.feel`, to which it is added."""

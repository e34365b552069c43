"""What designs near the five published ones need to know beside devices and radio: tiers, a trade-off, edge servers."""

from __future__ import annotations

from typing import Annotated, Any, Self

import numpy as np
from pydantic import model_validator

from jointopt.errors import InputError
from jointopt.system.base import FloatArray, Quantity, Section

__all__ = ["Edges", "Tiers", "Tradeoff"]


class Tiers(Section):
    """The clock of time-triggered learning: the server aggregates at whole multiples of an interval."""

    interval: Annotated[float, Quantity("s", above=0)]
    """Time between two aggregations [s]."""
    periods: Annotated[Any, Quantity(at_least=1, integer=True, axis="tier")]
    """Intervals that each tier has for a round, rising: tier m delivers at every multiple of its period."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        periods = np.atleast_1d(self.periods)
        if periods.size == 0:
            raise InputError("tiers.periods: the list of tiers is empty")
        if np.any(wrong := np.diff(periods) <= 0):
            m = int(np.argmax(wrong))
            raise InputError(
                f"tiers.periods[tier {m + 1}]: {periods[m + 1]:.0f} does not lie above the {periods[m]:.0f} of the "
                "tier before; order them from the fastest to the slowest"
            )
        periods.setflags(write=False)
        object.__setattr__(self, "periods", periods)
        return self


class Tradeoff(Section):
    """What a round's time is worth against what it teaches."""

    latency_weight: Annotated[float, Quantity("1/s", above=0)]
    """What one second of a round's latency costs, in units of the learning cost [1/s]."""


class Edges(Section):
    """Edge servers between devices and cloud, each with a band of its own."""

    edge: Annotated[Any, Quantity(integer=True, axis="device")]
    """Number of each device's edge server, from 0."""
    edge_bandwidth: Annotated[Any, Quantity("Hz", above=0, axis="edge")]
    """Band that the devices of each edge server share [Hz], shape [edges]."""
    backhaul_rate: Annotated[Any, Quantity("bit/s", above=0, axis="edge")]
    """Rate from each edge server to the cloud [bit/s], shape [edges]."""
    local_aggregations: Annotated[int, Quantity(at_least=1, integer=True)] = 1
    """Aggregations at the edge servers for each one in the cloud."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        count = self.common_size("edge", 1 if self.edge_bandwidth.ndim == self.backhaul_rate.ndim == 0 else None)
        object.__setattr__(self, "__dict__", self.spread(count, "edge").__dict__)
        number = np.atleast_1d(self.edge)
        if np.any(outside := number >= count):
            u = int(np.argmax(outside))
            raise InputError(
                f"edges.edge[device {u}]: {number[u]:.0f} is no edge server; there are {count}, numbered from 0"
            )
        empty = np.setdiff1d(np.arange(count), number)
        if empty.size:
            raise InputError(f"edges.edge: no device is under edge server {int(empty[0])}")
        return self

    def __len__(self) -> int:
        return int(self.edge_bandwidth.size)

    @property
    def number(self) -> Any:
        """Number of each device's edge server as whole numbers, shape [devices]."""
        return self.edge.astype(np.int64)

    @property
    def share(self) -> FloatArray:
        """Equal share of its edge server's band for each device [Hz], shape [devices]."""
        out: FloatArray = (self.edge_bandwidth / np.bincount(self.number, minlength=len(self)))[self.number]
        return out

    def take(self, devices: Any) -> Edges:
        """Return the servers of some devices, numbered anew; a server's band is not split anew."""
        kept, number = np.unique(self.number[devices], return_inverse=True)
        return self.replace(
            edge=number, edge_bandwidth=self.edge_bandwidth[kept], backhaul_rate=self.backhaul_rate[kept]
        )

"""How the server makes one step of what the devices sent: which mean it takes, and what step it makes of it.

What a device sends is the sum of its gradients over its local steps (for one step, its gradient), on the coordinates
it holds. An `Aggregation` makes one pseudo-gradient of these, a `ServerRule` the step.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor

from jointopt.errors import InputError, is_real, nearest
from jointopt.federated.registry import Registry

__all__ = [
    "AGGREGATIONS",
    "SERVERS",
    "Adam",
    "Aggregation",
    "Holders",
    "Momentum",
    "Received",
    "ServerRule",
    "Sgd",
    "Unbiased",
    "aggregation",
]


class Aggregation(ABC):
    """A weighted mean of what arrived in one event, added up packet by packet.

    Parameters
    ----------
    size : int
        Length P of the flat vector.
    nominal : float
        Expected sum of the weights of everyone who was to send, losses aside.
    """

    name: ClassVar[str]

    def __init__(self, size: int, nominal: float, device: torch.device | str = "cpu") -> None:
        self.total = torch.zeros(size, dtype=torch.float64, device=device)
        self.nominal = float(nominal)
        self.received = 0.0

    def add(self, index: Tensor | None, entries: Tensor, weight: float, arrival: float) -> None:
        """Take one packet that arrived.

        Parameters
        ----------
        index : int64 tensor, shape [n], optional
            The coordinates sent; all when None. The others count as zeros.
        entries : tensor, shape [n]
            What was decoded.
        weight : float
            The device's weight, above 0.
        arrival : float
            The probability with which its packet arrives, in (0, 1].
        """
        scaled = self._scaled(weight, arrival)
        if index is None:
            self.total.add_(entries, alpha=scaled)
        else:
            self.total.index_add_(0, index, entries.to(torch.float64), alpha=scaled)
        self.received += weight

    def _scaled(self, weight: float, arrival: float) -> float:
        return weight

    @abstractmethod
    def mean(self) -> Tensor | None:
        """Return the pseudo-gradient, float64 [P]; None if nothing arrived."""


class Received(Aggregation):
    """sum N_u x_u / sum N_u over the packets that arrived (L3): never too large, biased where losses differ."""

    name = "received"

    def mean(self) -> Tensor | None:
        """Return the mean over what arrived."""
        return self.total / self.received if self.received > 0.0 else None


class Unbiased(Aggregation):
    """sum N_u x_u / s_u / N over the packets that arrived, s_u the probability of that (L3').

    Its mean over losses, and over who joins by chance, is that of everyone without losses.
    """

    name = "unbiased"

    def _scaled(self, weight: float, arrival: float) -> float:
        return weight / arrival

    def mean(self) -> Tensor | None:
        """Return the sum over what arrived, divided by everyone's weight."""
        return self.total / self.nominal if self.received > 0.0 else None


class Holders(Aggregation):
    """For each coordinate the mean over the packets that hold it (as in HeteroFL); 0 where none does."""

    name = "holders"

    def __init__(self, size: int, nominal: float, device: torch.device | str = "cpu") -> None:
        super().__init__(size, nominal, device)
        self._held = torch.zeros(size, dtype=torch.float64, device=device)

    def add(self, index: Tensor | None, entries: Tensor, weight: float, arrival: float) -> None:
        """Take one packet that arrived (see `Aggregation.add`)."""
        super().add(index, entries, weight, arrival)
        if index is None:
            self._held += weight
        else:
            self._held[index] += weight

    def mean(self) -> Tensor | None:
        """Return the mean over those who hold each coordinate."""
        if self.received == 0.0:
            return None
        return torch.where(self._held > 0.0, self.total / self._held.clamp(min=1e-300), 0.0)


AGGREGATIONS: dict[str, type[Aggregation]] = {one.name: one for one in (Received, Unbiased, Holders)}
"""The aggregations by name; one more is added as a further entry."""


class ServerRule(ABC):
    """What step the server makes of a pseudo-gradient; `state` is all it remembers, tensors by name."""

    name: ClassVar[str]

    def __init__(self) -> None:
        self.state: dict[str, Tensor] = {}

    def start(self) -> None:
        """Prepare for a run, forgetting any earlier one."""
        self.state = {}

    @abstractmethod
    def step(self, weights: Tensor, gradient: Tensor, learning_rate: float) -> Tensor:
        """Return the next weights, float32 [P]; `gradient` is float64 [P], `learning_rate` that of the devices."""

    def settings(self) -> dict[str, Any]:
        """Return name and options, plain data."""
        return {"name": self.name, **{k: v for k, v in vars(self).items() if k != "state"}}


def _number(field: str, value: Any, least: float, below: float) -> float:
    if not (is_real(value) and math.isfinite(value) and least <= value < below):
        raise InputError(f"server: {field} must lie in {least:g} .. {below:g}, found {value!r}")
    return float(value)


class Sgd(ServerRule):
    """w - rate x learning_rate x g: federated averaging with a rate of 1."""

    name = "sgd"

    def __init__(self, rate: float = 1.0) -> None:
        super().__init__()
        self.rate = _number("rate", rate, 0.0, math.inf)

    def step(self, weights: Tensor, gradient: Tensor, learning_rate: float) -> Tensor:
        """Return the next weights."""
        return weights - (self.rate * learning_rate) * gradient.to(weights.dtype)


class Momentum(ServerRule):
    """m <- beta m + g, w - rate x learning_rate x m (FedAvgM, Hsu et al. 2019)."""

    name = "momentum"

    def __init__(self, rate: float = 1.0, beta: float = 0.9) -> None:
        super().__init__()
        self.rate, self.beta = _number("rate", rate, 0.0, math.inf), _number("beta", beta, 0.0, 1.0)

    def step(self, weights: Tensor, gradient: Tensor, learning_rate: float) -> Tensor:
        """Return the next weights."""
        before = self.state.get("momentum")
        momentum = gradient.clone() if before is None else self.beta * before + gradient
        self.state["momentum"] = momentum
        return weights - (self.rate * learning_rate) * momentum.to(weights.dtype)


class Adam(ServerRule):
    """FedAdam (Reddi et al. 2021): means m and v of d = -learning_rate g; w + rate m / (sqrt v + tau)."""

    name = "adam"

    def __init__(self, rate: float = 0.01, beta1: float = 0.9, beta2: float = 0.99, tau: float = 1e-3) -> None:
        super().__init__()
        self.rate = _number("rate", rate, 0.0, math.inf)
        self.beta1, self.beta2 = _number("beta1", beta1, 0.0, 1.0), _number("beta2", beta2, 0.0, 1.0)
        self.tau = _number("tau", tau, 1e-30, math.inf)

    def step(self, weights: Tensor, gradient: Tensor, learning_rate: float) -> Tensor:
        """Return the next weights."""
        change = gradient * -learning_rate
        first = self.state.get("first", torch.zeros_like(change))
        second = self.state.get("second", torch.full_like(change, self.tau**2))
        self.state["first"] = first = self.beta1 * first + (1.0 - self.beta1) * change
        self.state["second"] = second = self.beta2 * second + (1.0 - self.beta2) * change.square()
        return weights + (self.rate * first / (second.sqrt() + self.tau)).to(weights.dtype)


SERVERS: Registry[ServerRule] = Registry("server", ServerRule, Sgd, Momentum, Adam)
"""The server rules by name."""


def aggregation(name: str) -> type[Aggregation]:
    """Return an aggregation by name; `InputError` if there is none."""
    if not isinstance(name, str) or name not in AGGREGATIONS:
        raise InputError(f"aggregation: unknown {name!r}{nearest(str(name), AGGREGATIONS)}")
    return AGGREGATIONS[name]

"""What a device does between taking the server's model and sending: the client side of an algorithm."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from jointopt.errors import InputError, is_real
from jointopt.federated.registry import Registry

__all__ = ["ALGORITHMS", "FedAvg", "FedProx", "FedSgd", "LocalRule", "Scaffold"]


class LocalRule:
    """Local steps of gradient descent; `state` is all it remembers, tensors by name.

    Attributes
    ----------
    one_step : bool
        Whether exactly one local step is made.
    packets : int
        Vectors as long as the kept entries that are sent in a round.
    proximal : float
        mu of the term mu/2 ||w - start||^2 added to every local loss.
    """

    name: ClassVar[str] = ""
    one_step: ClassVar[bool] = False
    packets: ClassVar[int] = 1
    proximal: float = 0.0

    def __init__(self) -> None:
        self.state: dict[str, Tensor] = {}

    def start(self, size: int, device: torch.device | str) -> None:
        """Prepare for a network of `size` parameters."""

    def correction(self, device: int) -> Tensor | None:
        """Return what is added to every gradient of a device, [P], or nothing."""
        return None

    def beside(self, device: int, mean: Tensor, index: Tensor | None) -> Tensor | None:
        """Return what the device sends beside its update, [n], given the mean of its steps' g, [n], at `index`.

        Called once per work done; remembers what the device keeps for itself.
        """
        return None

    def receive(self, sent: Tensor, index: Tensor | None, devices: int) -> None:
        """Let the server take what `beside` sent, as decoded, [n]; `devices` is how many there are in all."""

    def settings(self) -> dict[str, Any]:
        """Return name and options, plain data."""
        return {"name": self.name, **{k: v for k, v in vars(self).items() if k != "state"}}


class FedSgd(LocalRule):
    """One step, one gradient: what the published bounds are about."""

    name = "fedsgd"
    one_step = True


class FedAvg(LocalRule):
    """Several steps (McMahan et al. 2017)."""

    name = "fedavg"


class FedProx(LocalRule):
    """Several steps on the local loss plus mu/2 ||w - start||^2 (Li et al. 2020)."""

    name = "fedprox"

    def __init__(self, proximal: float = 0.01) -> None:
        super().__init__()
        if not (is_real(proximal) and math.isfinite(proximal) and proximal >= 0.0):
            raise InputError(f"algorithm 'fedprox': proximal must be finite and at least 0, found {proximal!r}")
        self.proximal = float(proximal)


class Scaffold(LocalRule):
    """Steps corrected by control variates, g + c - c_u (SCAFFOLD, Karimireddy et al. 2020, option II).

    After its steps a device's c_u becomes c_u - c + (start - end)/(steps x learning rate), which is the mean of its
    uncorrected gradients. The change is sent beside the update, so a round costs twice the payload.
    """

    name = "scaffold"
    packets = 2

    def start(self, size: int, device: torch.device | str) -> None:
        """Set the server's control variate to 0; a device's is 0 until it takes part."""
        self.state.setdefault("server", torch.zeros(size, device=device))

    def correction(self, device: int) -> Tensor | None:
        """Return c - c_u."""
        own = self.state.get(f"device-{device}")
        server = self.state["server"]
        return server if own is None else server - own

    def beside(self, device: int, mean: Tensor, index: Tensor | None) -> Tensor | None:
        """Return the change of c_u on the coordinates held, and remember the new c_u."""
        server = self.state["server"]
        name = f"device-{device}"
        own = self.state.get(name, torch.zeros_like(server))
        # the mean of the corrected steps is that of the plain gradients plus c - c_u
        if index is None:
            change = mean - server
            self.state[name] = own + change
        else:
            change = mean - server[index]
            self.state[name] = own.index_add(0, index, change)
        return change

    def receive(self, sent: Tensor, index: Tensor | None, devices: int) -> None:
        """Move c by the device's change over the number of devices."""
        if index is None:
            self.state["server"] = self.state["server"] + sent / devices
        else:
            self.state["server"] = self.state["server"].index_add(0, index, sent / devices)


ALGORITHMS: Registry[LocalRule] = Registry("algorithm", LocalRule, FedSgd, FedAvg, FedProx, Scaffold)
"""The algorithms by name."""

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
        """Prepare for a run with a network of `size` parameters, forgetting any earlier one."""
        self.state = {}

    def begin(self, device: int) -> None:
        """Note that a device takes the server's model now; its work may end much later."""

    def correction(self, device: int) -> Tensor | None:
        """Return what is added to every gradient of a device's present work, [P], or nothing."""
        return None

    def beside(self, device: int, mean: Tensor, index: Tensor | None) -> Tensor | None:
        """Return what the device sends beside its update, [n], given the mean of its steps' g, [n], at `index`."""
        return None

    def receive(self, device: int, sent: Tensor, index: Tensor | None, share: float) -> None:
        """Take what `beside` sent and arrived, as decoded, [n]; `share` is the device's of all samples.

        Called once all work of a round is done, so that the order of the devices does not matter.
        """

    def end(self, device: int) -> None:
        """Note that a device's work has been taken, whether or not anything arrived."""

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

    After its steps a device's c_u becomes c_u - c + (start - end)/(steps x learning rate), the mean of its uncorrected
    gradients. The change is sent beside the update, so a round costs twice the payload; device and server take it as
    decoded, and only if it arrived, so that c stays the mean of the c_u. The mean is weighted by samples, as F is.
    """

    name = "scaffold"
    packets = 2

    def start(self, size: int, device: torch.device | str) -> None:
        """Set the server's control variate to 0; a device's is 0 until it takes part."""
        self.state = {"server": torch.zeros(size, device=device)}

    def begin(self, device: int) -> None:
        """Keep the server's control variate of now for the device's work."""
        self.state[f"start-{device}"] = self.state["server"]

    def end(self, device: int) -> None:
        """Forget it."""
        self.state.pop(f"start-{device}", None)

    def correction(self, device: int) -> Tensor | None:
        """Return c - c_u, with the c of the start, or of now where a device only explores."""
        start = self.state.get(f"start-{device}", self.state["server"])
        own = self.state.get(f"device-{device}")
        return start if own is None else start - own

    def beside(self, device: int, mean: Tensor, index: Tensor | None) -> Tensor | None:
        """Return the change of c_u on the coordinates held."""
        # the mean of the corrected steps is that of the plain gradients plus c - c_u
        start = self.state[f"start-{device}"]
        return mean - (start if index is None else start[index])

    def receive(self, device: int, sent: Tensor, index: Tensor | None, share: float) -> None:
        """Add the change to c_u, and the device's share of it to c."""
        server = self.state["server"]
        own = self.state.get(f"device-{device}", torch.zeros_like(server))
        if index is None:
            self.state[f"device-{device}"], self.state["server"] = own + sent, server + share * sent
        else:
            self.state[f"device-{device}"] = own.index_add(0, index, sent)
            self.state["server"] = server.index_add(0, index, share * sent)


ALGORITHMS: Registry[LocalRule] = Registry("algorithm", LocalRule, FedSgd, FedAvg, FedProx, Scaffold)
"""The algorithms by name."""

"""Split inference: devices that run the first layers of a pruned network, a server that runs the rest.

Quantities that differ between devices are arrays of shape ``[devices]``, those that differ between layers of shape
``[layers]``; a single number is spread over all. A network of L layers can be split at 0 (everything on the server,
the raw input is sent) to L (everything on the device).
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import model_validator

from jointopt.errors import InputError
from jointopt.system.base import FloatArray, Quantity, Scenario, Section

__all__ = ["InferenceDevices", "InferenceSystem", "Link", "Network", "Server"]


class InferenceDevices(Section):
    """The devices: processor, radio power, budgets per inference. Arrays of shape ``[devices]``."""

    title: ClassVar[str] = "devices"

    frequency: Annotated[Any, Quantity("Hz", above=0, axis="device")]
    """Greatest processor frequency f_max [cycle/s]."""
    flops_per_cycle: Annotated[Any, Quantity(above=0, axis="device")] = np.array(32.0)
    """Operations per cycle, c [C]."""
    capacitance: Annotated[Any, Quantity("J*s**2", above=0, axis="device")] = np.array(2e-29)
    """Chip coefficient psi [W/(cycle/s)^3 = J s^2]: power = psi f^3 [C]."""
    pue: Annotated[Any, Quantity(at_least=1, axis="device")] = np.array(1.0)
    """Power usage effectiveness eta: energy drawn per energy that computes [C]."""
    power_max: Annotated[Any, Quantity("W", above=0, axis="device")]
    """Greatest transmit power [W]."""
    delay_budget: Annotated[Any, Quantity("s", above=0, axis="device")]
    """Longest allowed inference T0 [s]: device, uplink and server."""
    energy_budget: Annotated[Any, Quantity("J", above=0, axis="device")]
    """Most energy allowed in an inference E0 [J]: device, uplink and server."""
    count: Annotated[int | None, Quantity(at_least=1, integer=True, optional=True)] = None
    """Number of devices; needed only when every array is given as one number."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        count = self.common_size("device", self.count)
        object.__setattr__(self, "__dict__", {**self.spread(count).__dict__, "count": count})
        return self


class Server(Section):
    """The processor that runs the layers after the split, as much of it as one device may use."""

    server_frequency: Annotated[float, Quantity("Hz", above=0)] = 10e9
    """Greatest frequency [cycle/s] [C]."""
    server_flops_per_cycle: Annotated[float, Quantity(above=0)] = 128.0
    """Operations per cycle [C]."""
    server_capacitance: Annotated[float, Quantity("J*s**2", above=0)] = 1e-28
    """Chip coefficient [W/(cycle/s)^3 = J s^2] [C]."""
    server_pue: Annotated[float, Quantity(at_least=1)] = 2.0
    """Power usage effectiveness [C]."""


class Link(Section):
    """The uplink, known and constant during an inference. Per-device fields have shape ``[devices]``."""

    bandwidth: Annotated[Any, Quantity("Hz", above=0, axis="device")]
    """Band of each device [Hz]."""
    noise_density: Annotated[float, Quantity("W/Hz", above=0)] = 10 ** (-17.4) * 1e-3
    """Noise power spectral density N0 [W/Hz]; the default is -174 dBm/Hz."""
    gain: Annotated[Any, Quantity(above=0, axis="device")]
    """Channel power gain."""


class Network(Section):
    """The network that is pruned and split. `pruning_ratio` is the fraction of prunable weights removed.

    * ``distortion``: what removing a fraction of the weights costs in L1 norm per weight. ``"laplace"``: magnitude
      pruning of Laplace weights; ``"rate"``: the rate-distortion bound with `bits` per kept weight; ``"measured"``:
      the cumulative curve of real weights, `curve_ratio` and `curve_distortion` (in units of the mean magnitude).
    * ``cut_law``: ``"fixed"``: pruning leaves what is sent at the cut alone (removed weights); ``"channels"``: it
      falls with the kept channels, the root of the kept fraction (removed channels). The raw input never shrinks.
    """

    flops: Annotated[Any, Quantity(axis="layer")]
    """Operations of one inference that fall with the kept weights, per layer."""
    fixed_flops: Annotated[Any, Quantity(axis="layer")] = np.zeros(())
    """Operations that pruning does not remove: attention products, normalisation, embedding."""
    parameters: Annotated[Any, Quantity(integer=True, axis="layer")]
    """Prunable weights n_l per layer."""
    weight_rate: Annotated[Any, Quantity(above=0, axis="layer")]
    """lambda_l = 1/mean|w| per layer."""
    amplification: Annotated[Any, Quantity(axis="layer")] = np.array(1.0)
    """A^(l): how much a layer's L1 weight error may move the output (theory 4b); 1 for the surrogate."""
    cut_bits: Annotated[Any, Quantity("bit", axis="split")]
    """Bits sent when the network is split after i layers, i = 0 (the raw input) to all (0: nothing is sent)."""
    splits: Annotated[Any, Quantity(integer=True, axis="choice", optional=True)] = None
    """Splits that may be chosen; all when not given."""
    pruning_ratio_max: Annotated[float, Quantity(below=1.0)] = 0.95
    """Largest pruning ratio."""
    distortion: Literal["laplace", "rate", "measured"] = "laplace"
    """Law of the parameter distortion."""
    bits: Annotated[float, Quantity(above=0, at_most=64)] = 32.0
    """Bits per kept weight, for the rate-distortion bound."""
    curve_ratio: Annotated[Any, Quantity(at_most=1.0, axis="point", optional=True)] = None
    """Pruning ratios of the measured curve, increasing from 0."""
    curve_distortion: Annotated[Any, Quantity(axis="point", optional=True)] = None
    """L1 norm removed per weight at these ratios, over the mean magnitude; increasing from 0."""
    cut_law: Literal["fixed", "channels"] = "fixed"
    """How the bits at the cut follow from the pruning ratio."""
    lipschitz: Annotated[float, Quantity(above=0)] = 1.0
    """H: output distortion per L1 norm of weight distortion."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        layers = self.common_size("layer")
        spread = self.spread(layers, "layer")
        object.__setattr__(self, "__dict__", spread.__dict__)
        if not np.any(self.parameters > 0):
            raise InputError("network.parameters: all are 0; a network without weights to prune cannot be pruned")
        orphan = (self.parameters == 0) & (self.flops > 0)
        if np.any(orphan):
            i = int(np.argmax(orphan))
            raise InputError(
                f"network.flops[layer {i}]: {self.flops[i]:g} operations fall with pruning, but the layer has no "
                "weights to prune; give them as fixed_flops"
            )
        if not np.any(self.flops > 0):
            raise InputError("network.flops: all are 0; pruning saves no operations")
        if self.cut_bits.ndim == 0 or self.cut_bits.size != layers + 1:
            raise InputError(
                f"network.cut_bits: has {self.cut_bits.size} values; {layers} layers have {layers + 1} splits, "
                "from the raw input to everything on the device"
            )
        self._check_splits(layers)
        self._check_curve()
        return self

    def _check_splits(self, layers: int) -> None:
        if self.splits is None:
            return
        splits = np.atleast_1d(self.splits)
        if splits.size == 0:
            raise InputError("network.splits: the list of choices is empty")
        if np.any(splits > layers):
            i = int(np.argmax(splits > layers))
            raise InputError(
                f"network.splits[choice {i}]: {splits[i]:g} is a split the network does not have; it has {layers} "
                f"layers and is split at 0 to {layers}"
            )
        if np.any(np.diff(splits) <= 0):
            i = int(np.argmax(np.diff(splits) <= 0)) + 1
            raise InputError(f"network.splits[choice {i}]: {splits[i]:g} must be above the one before it")
        splits.setflags(write=False)
        object.__setattr__(self, "splits", splits)

    def _check_curve(self) -> None:
        ratio, curve = self.curve_ratio, self.curve_distortion
        for name, values in (("curve_ratio", ratio), ("curve_distortion", curve)):
            if values is None:
                if self.distortion == "measured":
                    raise InputError(f"network.{name}: is missing; distortion 'measured' needs a curve")
                continue
            if values.ndim == 0 or values.size < 2:
                raise InputError(f"network.{name}: a curve needs at least 2 points")
            if values[0] != 0.0:
                raise InputError(f"network.{name}[point 0]: {values[0]:g} must be 0: nothing pruned, nothing lost")
            # a ratio of one distortion must have one ratio back, hence strictly
            if np.any(np.diff(values) <= 0.0):
                i = int(np.argmax(np.diff(values) <= 0.0)) + 1
                raise InputError(f"network.{name}[point {i}]: {values[i]:g} must be above the point before it")
        if ratio is not None and curve is not None:
            if ratio.size != curve.size:
                raise InputError(f"network.curve_distortion: has {curve.size} values for {ratio.size} points")
            if ratio[-1] < self.pruning_ratio_max:
                raise InputError(
                    f"network.curve_ratio[point {ratio.size - 1}]: the curve ends at {ratio[-1]:g}, below "
                    f"pruning_ratio_max {self.pruning_ratio_max:g}"
                )

    @property
    def layers(self) -> int:
        """Number of layers."""
        return int(self.flops.size)

    @property
    def choices(self) -> npt.NDArray[np.int64]:
        """Splits that may be chosen, increasing."""
        if self.splits is None:
            return np.arange(self.layers + 1)
        return np.rint(self.splits).astype(np.int64)

    def before(self, values: FloatArray) -> FloatArray:
        """Sum of per-layer values before each split, shape [layers + 1]: what runs on the device."""
        return np.concatenate([[0.0], np.cumsum(values)])

    def after(self, values: FloatArray) -> FloatArray:
        """Sum of per-layer values after each split, shape [layers + 1]: what runs on the server."""
        return np.concatenate([np.cumsum(values[::-1])[::-1], [0.0]])


class InferenceSystem(Scenario):
    """Devices that share a network's layers with a server: a scenario of split inference, complete.

    Build one from sections, from TOML (`from_toml`), from a dictionary, or sample one
    (`jointopt.systems.coinference`).
    """

    devices: InferenceDevices
    server: Server = Server()
    link: Link
    network: Network

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        object.__setattr__(self, "link", self.link.spread(len(self)))
        return self

    def __len__(self) -> int:
        return int(self.devices.frequency.size)

    def __repr__(self) -> str:
        network = self.network
        return (
            f"InferenceSystem({self.name!r}: {len(self)} devices, {network.layers} layers, "
            f"{int(network.parameters.sum())} prunable parameters)"
        )

    __str__ = __repr__

    @property
    def noise_power(self) -> FloatArray:
        """n0 = B N0 / g [W], shape [devices]: transmit power at which the signal-to-noise ratio is 1."""
        return self.link.bandwidth * self.link.noise_density / self.link.gain

    def take(self, devices: Any) -> InferenceSystem:
        """Return the system of some devices only (index array or slice)."""
        sections: dict[str, Any] = {"server": self.server, "network": self.network, "name": self.name}
        for name in ("devices", "link"):
            section = getattr(self, name)
            changed: dict[str, Any] = {key: getattr(section, key)[devices] for key in section.fields_over("device")}
            if name == "devices":
                changed["count"] = None
            sections[name] = section.replace(**changed)
        return InferenceSystem(**sections)

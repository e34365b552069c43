"""Aerial vehicles that sense as they fly and learn online: the world of theory section 5.

Quantities that differ between vehicles are arrays of shape ``[devices]``, those about what they see ``[devices,
classes, ...]``; positions are pairs of metres in the area, which reaches from (0, 0) to (width, length).
"""

from __future__ import annotations

from functools import cached_property
from typing import Annotated, Any, ClassVar, Self

import numpy as np
from pydantic import model_validator

from jointopt.errors import InputError, is_whole
from jointopt.models import aerial, mobility
from jointopt.system.base import FEASIBILITY_TOLERANCE, FloatArray, Quantity, Scenario, Section
from jointopt.system.federated import Bound, Devices, Learner, Radio, System

__all__ = ["AerialSystem", "AirLink", "Area", "Flight", "OnlineBound", "Sensing", "Vehicles"]


class Vehicles(Section):
    """The vehicles: processor, radio power, speed, budgets per slot. Arrays of shape ``[devices]``."""

    start: Annotated[Any, Quantity("m", axis="device", inner="coordinate")]
    """Position before the first slot, a pair of coordinates each [m]."""
    speed_max: Annotated[Any, Quantity("m/s", axis="device")]
    """Greatest speed v_max [m/s]; 0 for one that hovers."""
    frequency: Annotated[Any, Quantity("Hz", above=0, axis="device")]
    """Processor frequency f_u [cycle/s]."""
    cycles_per_sample: Annotated[Any, Quantity(above=0, axis="device")]
    """Processor cycles to train on one sample with the dense model, c0."""
    capacitance: Annotated[Any, Quantity("J*s**2", axis="device")]
    """Effective capacitance k_c [J s^2/cycle^3]: energy = k_c f^2 x cycles."""
    power: Annotated[Any, Quantity("W", above=0, axis="device")]
    """Transmit power [W]."""
    delay_budget: Annotated[Any, Quantity("s", above=0, axis="device")]
    """Longest allowed round in a slot [s]: compute plus upload."""
    energy_budget: Annotated[Any, Quantity("J", above=0, axis="device")]
    """Most energy allowed for a slot's round [J]: compute plus upload, without flying."""
    flight_price: Annotated[Any, Quantity("1/J", axis="device")] = np.zeros(())
    """lambda_f: samples that a joule of flying must bring in to be worth it, for those who choose their way [1/J]."""
    held: Annotated[Any, Quantity(integer=True, axis="device")] = np.zeros(())
    """Samples in the buffer before the first slot."""
    count: Annotated[int | None, Quantity(at_least=1, integer=True, optional=True)] = None
    """Number of vehicles; as many as there are starts."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        count = self.common_size("device", self.count)
        _pairs("vehicles.start", self.start)
        object.__setattr__(self, "__dict__", {**self.spread(count).__dict__, "count": count})
        return self


class Area(Section):
    """Where and for how long the vehicles fly."""

    width: Annotated[float, Quantity("m", above=0)] = 1000.0
    """Size along the first coordinate [m]."""
    length: Annotated[float, Quantity("m", above=0)] = 1000.0
    """Size along the second coordinate [m]."""
    altitude: Annotated[float, Quantity("m", above=0)] = 100.0
    """Height H of the flight above the ground [m]."""
    slot: Annotated[float, Quantity("s", above=0)] = 5.0
    """Duration tau of a slot [s]: a move, then a round of training."""
    slots: Annotated[int, Quantity(at_least=1, integer=True)] = 20
    """Number of slots T."""


class Sensing(Section):
    """What the vehicles see: where classes lie, how their mix changes with time, how much fits into the buffer.

    New samples in slot t (counted from 1, at time t x slot): ceil(N_max sum_c psi_c exp(-|q - mu_c|/l) I_c), with
    psi = softmax(M z(t)) and I_c = 1 where the class lies within the footprint of the sensor.
    """

    class_means: Annotated[Any, Quantity("m", at_least=None, axis="device", inner=("class", "coordinate"))]
    """Where each class lies for each vehicle, mu_{u,c} [m]."""
    class_map: Annotated[Any, Quantity(at_least=None, axis="device", inner=("class", "basis"))]
    """M_u: logits of the classes over the time basis [1, sin, cos, sin of twice the angle, ...]."""
    period: Annotated[float, Quantity("s", above=0)]
    """Period P of the time basis [s]."""
    samples_max: Annotated[Any, Quantity(axis="device")]
    """N_max: samples of a slot right above a class that is all there is."""
    field_of_view: Annotated[Any, Quantity("rad", above=0, below=float(np.pi), axis="device")] = np.array(np.pi / 3.0)
    """Opening angle theta_u of the sensor [rad]."""
    length_scale: Annotated[float, Quantity("m", above=0)] = 75.0
    """Distance over which what is seen of a class falls by e [m]."""
    buffer: Annotated[Any, Quantity(at_least=1, integer=True, axis="device")] = np.array(1000.0)
    """Most samples held, first in first out, D_max."""
    mixture_weights: Annotated[Any, Quantity(axis="device", inner="class", optional=True)] = None
    """Pi_{u,c}: weights of the spatial mixture, adding up to 1; equal when not given."""
    mixture_covariances: Annotated[
        Any, Quantity("m**2", at_least=None, axis="device", inner=("class", "row", "column"), optional=True)
    ] = None
    """Lambda_{u,c}: covariances of the spatial mixture [m^2], two by two each; (50 m)^2 when not given."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        devices, classes = self.class_means.shape[:2]
        _pairs("sensing.class_means", self.class_means)
        for name in ("class_map", "mixture_weights", "mixture_covariances"):
            value = getattr(self, name)
            if value is not None and value.shape[:2] != (devices, classes):
                raise InputError(
                    f"sensing.{name}: is for {value.shape[0]} vehicles and {value.shape[1]} classes, class_means for "
                    f"{devices} and {classes}"
                )
        if self.mixture_weights is None:
            object.__setattr__(self, "mixture_weights", _frozen(np.full((devices, classes), 1.0 / classes)))
        total = self.mixture_weights.sum(axis=1)
        if np.any(np.abs(total - 1.0) > 1e-6):
            u = int(np.argmax(np.abs(total - 1.0)))
            raise InputError(f"sensing.mixture_weights[device {u}]: the weights add up to {total[u]:.9g}, expected 1")
        if self.mixture_covariances is None:
            plain = np.broadcast_to(2500.0 * np.eye(2), (devices, classes, 2, 2))
            object.__setattr__(self, "mixture_covariances", _frozen(plain))
        self._check_covariances()
        return self

    def _check_covariances(self) -> None:
        matrices = self.mixture_covariances
        if matrices.shape[2:] != (2, 2):
            raise InputError(
                f"sensing.mixture_covariances: each must be two by two, got {matrices.shape[2]} by {matrices.shape[3]}"
            )
        off = np.abs(matrices[..., 0, 1] - matrices[..., 1, 0])
        diagonal = matrices[..., 0, 0], matrices[..., 1, 1]
        determinant = diagonal[0] * diagonal[1] - matrices[..., 0, 1] * matrices[..., 1, 0]
        size = np.maximum(np.abs(diagonal[0]), np.abs(diagonal[1]))
        bad = (off > 1e-9 * size) | (diagonal[0] <= 0.0) | ~(determinant > 0.0)
        if np.any(bad):
            u, c = (int(i) for i in np.argwhere(bad)[0])
            raise InputError(
                f"sensing.mixture_covariances[device {u}, class {c}]: {matrices[u, c].tolist()} is no covariance "
                "(symmetric and positive definite)"
            )

    @property
    def classes(self) -> int:
        """Number of classes."""
        return int(self.class_means.shape[1])


class AirLink(Section):
    """The link to the station on the ground. Per-device fields have shape ``[devices]``."""

    title: ClassVar[str] = "link"

    bandwidth: Annotated[Any, Quantity("Hz", above=0, axis="device")]
    """Band of each vehicle [Hz]."""
    noise_density: Annotated[float, Quantity("W/Hz", above=0)] = 10 ** (-17.4) * 1e-3
    """Noise power spectral density N0 [W/Hz]; the default is -174 dBm/Hz."""
    carrier_frequency: Annotated[float, Quantity("Hz", above=0)] = 2.4e9
    """Carrier [Hz]."""
    los_loss: Annotated[float, Quantity(at_least=1)] = 10**0.1
    """Loss beyond free space in line of sight, linear; the default is 1 dB."""
    nlos_loss: Annotated[float, Quantity(at_least=1)] = 10**2.0
    """Loss beyond free space without line of sight, linear; the default is 20 dB."""
    los_offset: Annotated[float, Quantity(above=0)] = 9.61
    """Constant a of the probability of line of sight [K]."""
    los_slope: Annotated[float, Quantity(above=0)] = 0.16
    """Constant b of the probability of line of sight, per degree [K]."""
    station: Annotated[Any, Quantity("m", axis="coordinate", optional=True)] = None
    """Position of the station [m]; the middle of the area when not given."""


class OnlineBound(Bound):
    """Constants of the convergence bound (theory 5b): those of `Bound`, and what online learning adds.

    Averages are over the scenario's slots, so `rounds` has no meaning here; nor have the fields about packets that are
    lost and about the uniform quantizer, which may be left out.
    """

    title: ClassVar[str] = "bound"

    gradient_offset: Annotated[float, Quantity()] = 0.0
    """zeta_1 of ||grad F_u||^2 <= zeta_1 + zeta_2 ||grad F||^2; not used by this bound."""
    quantizer_range: Annotated[Any, Quantity(above=0, axis="device")] = np.array(1.0)
    """Range of what the uniform quantizer quantizes, shape [devices]; not used by this bound."""
    local_steps: Annotated[int, Quantity(at_least=1, integer=True)] = 5
    """Local steps K_l of a slot's round."""
    gradient_energy: Annotated[float, Quantity(above=0)]
    """G^2: bound of the expected squared norm of a masked stochastic gradient."""
    drift: Annotated[Any, Quantity(axis="slot")] = np.zeros(())
    """V_t: how far the objective moves from a slot to the next, as the data do; one number or one per slot."""


class Flight(Section):
    """Ways that are given."""

    trajectory: Annotated[Any, Quantity("m", axis="device", inner=("slot", "coordinate"))]
    """Position of each vehicle in each slot, after its move [m]."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        _pairs("flight.trajectory", self.trajectory)
        return self


def _pairs(name: str, value: FloatArray) -> None:
    """Refuse positions that are no pairs of coordinates."""
    if value.shape[-1] != 2:
        raise InputError(f"{name}: a position is 2 coordinates, got {value.shape[-1]}")


def _frozen(value: Any) -> FloatArray:
    out = np.array(value, dtype=np.float64)
    out.setflags(write=False)
    return out


class AerialSystem(Scenario):
    """Vehicles in the air, what they sense, their link and what they learn: a scenario, complete.

    Build one from sections, from TOML (`from_toml`), from a dictionary, or sample one (`jointopt.systems.aerial`).
    Vehicles without a `flight` hover where they start; `flown` gives them trajectories.
    """

    vehicles: Vehicles
    area: Area = Area()
    sensing: Sensing
    link: AirLink
    learner: Learner
    bound: OnlineBound
    flight: Flight | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        count, area = len(self), self.area
        object.__setattr__(self, "sensing", self.sensing.spread(count))
        object.__setattr__(self, "link", self.link.spread(count))
        object.__setattr__(self, "bound", self.bound.spread(count))
        if self.bound.drift.ndim and self.bound.drift.size != area.slots:
            raise InputError(f"bound.drift: has {self.bound.drift.size} values for {area.slots} slots")
        over = self.vehicles.held > self.sensing.buffer
        if np.any(over):
            u = int(np.argmax(over))
            raise InputError(
                f"vehicles.held[device {u}]: {self.vehicles.held[u]:g} samples do not fit into sensing.buffer "
                f"{self.sensing.buffer[u]:g}"
            )
        self._check_inside("vehicles.start", self.vehicles.start, ("device",))
        self._check_inside("sensing.class_means", self.sensing.class_means, ("device", "class"))
        if self.link.station is not None:
            if self.link.station.shape != (2,):
                raise InputError(f"link.station: a position is 2 coordinates, got {self.link.station.size}")
            self._check_inside("link.station", self.link.station, ())
        if self.flight is not None:
            object.__setattr__(self, "flight", self.flight.spread(count))
            self._check_flight(self.flight.trajectory)
        return self

    def _check_inside(self, name: str, positions: FloatArray, axes: tuple[str, ...]) -> None:
        """Refuse positions outside the area."""
        size = np.array([self.area.width, self.area.length])
        slack = FEASIBILITY_TOLERANCE * size
        outside = np.any((positions < -slack) | (positions > size + slack), axis=-1)
        if np.any(outside):
            at = tuple(int(i) for i in np.argwhere(outside)[0])
            where = ", ".join(f"{axis} {i}" for axis, i in zip(axes, at, strict=True))
            x, y = positions[at].tolist()
            raise InputError(
                f"{name}{f'[{where}]' if where else ''}: ({x:g}, {y:g}) m lies outside the area of {size[0]:g} m by "
                f"{size[1]:g} m"
            )

    def _check_flight(self, trajectory: FloatArray) -> None:
        slots = self.area.slots
        if trajectory.shape[1] != slots:
            raise InputError(f"flight.trajectory: has {trajectory.shape[1]} positions for {slots} slots")
        self._check_inside("flight.trajectory", trajectory, ("device", "slot"))
        before = np.concatenate([self.vehicles.start[:, None], trajectory[:, :-1]], axis=1)
        fast = ~mobility.within_reach(trajectory, before, self.reach[:, None])
        if np.any(fast):
            u, t = (int(i) for i in np.argwhere(fast)[0])
            speed = float(mobility.distance(trajectory[u, t], before[u, t])) / self.area.slot
            raise InputError(
                f"flight.trajectory[device {u}, slot {t}]: a speed of {speed:.6g} m/s is above speed_max "
                f"{self.vehicles.speed_max[u]:g} m/s"
            )

    def __len__(self) -> int:
        return int(self.vehicles.start.shape[0])

    def __repr__(self) -> str:
        return (
            f"AerialSystem({self.name!r}: {len(self)} vehicles, {self.area.slots} slots, {self.sensing.classes} "
            f"classes, {self.learner.parameters + self.learner.unpruned_parameters} parameters)"
        )

    __str__ = __repr__

    @property
    def reach(self) -> FloatArray:
        """Farthest move in a slot, v_max tau [m], shape [devices]."""
        return np.asarray(self.vehicles.speed_max * self.area.slot)

    @property
    def trajectory(self) -> FloatArray:
        """Positions [devices, slots, 2]: the given ones, or the start throughout."""
        if self.flight is not None:
            return np.asarray(self.flight.trajectory)
        return np.repeat(self.vehicles.start[:, None], self.area.slots, axis=1)

    @property
    def times(self) -> FloatArray:
        """Time of every slot t = 1, 2, ..., at which the class mix is taken [s], shape [slots]."""
        return self.area.slot * np.arange(1.0, self.area.slots + 1.0)

    @cached_property
    def class_mix(self) -> FloatArray:
        """psi_{u,t,c}, shape [devices, slots, classes]."""
        sensing = self.sensing
        basis = mobility.time_basis(self.times, sensing.period, sensing.class_map.shape[2])
        return np.asarray(mobility.class_mix(sensing.class_map[:, None], basis))

    @property
    def view_radius(self) -> FloatArray:
        """Radius of every sensor's footprint [m], shape [devices]."""
        return np.asarray(mobility.view_radius(self.area.altitude, self.sensing.field_of_view))

    @cached_property
    def class_yield(self) -> FloatArray:
        """What is seen of every class along the trajectories, per N_max, shape [devices, slots, classes]."""
        return np.asarray(
            mobility.class_yield(
                self.trajectory,
                self.sensing.class_means[:, None],
                self.class_mix,
                self.sensing.length_scale,
                self.view_radius[:, None, None],
            )
        )

    @property
    def arrivals(self) -> FloatArray:
        """New samples along the trajectories, shape [devices, slots]."""
        return np.asarray(mobility.arrivals(self.class_yield, self.sensing.samples_max[:, None]))

    @cached_property
    def buffered(self) -> FloatArray:
        """Samples in the buffers after each slot's sensing, shape [devices, slots]."""
        held = self.vehicles.held[:, None] + np.cumsum(self.arrivals, axis=1)
        return np.minimum(held, self.sensing.buffer[:, None])

    @property
    def total_drift(self) -> float:
        """sum_t V_t: how far the objective moves over all slots."""
        drift = self.bound.drift
        return float(drift.sum()) if drift.ndim else float(drift) * self.area.slots

    @property
    def station(self) -> FloatArray:
        """Position of the station [m], shape [2]."""
        middle = 0.5 * np.array([self.area.width, self.area.length])
        return middle if self.link.station is None else np.asarray(self.link.station)

    @cached_property
    def gain(self) -> FloatArray:
        """Mean power gain of the links along the trajectories, shape [devices, slots]."""
        link = self.link
        return np.asarray(
            aerial.air_gain(
                np.asarray(mobility.distance(self.trajectory, self.station)),
                self.area.altitude,
                link.carrier_frequency,
                los_loss=link.los_loss,
                nlos_loss=link.nlos_loss,
                offset=link.los_offset,
                slope=link.los_slope,
            )
        )

    @property
    def noise_power(self) -> FloatArray:
        """B_u N0 [W], shape [devices]."""
        return np.asarray(self.link.bandwidth * self.link.noise_density)

    @cached_property
    def flight_energy(self) -> FloatArray:
        """Energy of flying in every slot, P(|q_t - q_{t-1}|/tau) tau [J], shape [devices, slots] (5g)."""
        way = np.concatenate([self.vehicles.start[:, None], self.trajectory], axis=1)
        away = np.asarray(mobility.distance(way[:, 1:], way[:, :-1]))
        return np.asarray(mobility.flight_energy(away, self.area.slot))

    def in_slot(self, slot: int) -> System:
        """Return what a slot's round is to designs on the ground: the samples held, the mean gains, no fading, no loss.

        Vehicles that hold nothing count as holding one sample, which a system's devices must. The header is 32 bits
        larger: a system's is that of the uniform quantizer, whose range takes two floats where a norm takes one.

        Raises
        ------
        InputError
            For a slot that does not exist.
        """
        if not (is_whole(slot) and 0 <= slot < self.area.slots):
            raise InputError(f"slot: {slot!r} must be a whole number from 0 to {self.area.slots - 1}")
        vehicles, link = self.vehicles, self.link
        return System(
            name=f"{self.name}-slot{slot}",
            devices=Devices(
                samples=np.maximum(self.buffered[:, slot], 1.0),
                cycles_per_sample=vehicles.cycles_per_sample,
                frequency=vehicles.frequency,
                capacitance=vehicles.capacitance,
                power_min=vehicles.power,
                power_max=vehicles.power,
                delay_budget=vehicles.delay_budget,
                energy_budget=vehicles.energy_budget,
            ),
            radio=Radio(
                bandwidth=link.bandwidth,
                noise_density=link.noise_density,
                gain=self.gain[:, slot],
                fading="none",
                packet_error="none",
            ),
            learner=self.learner.replace(header_bits=self.learner.header_bits + 32.0),
            bound=Bound(**{name: getattr(self.bound, name) for name in Bound.model_fields}),
        )

    def flown(self, trajectory: Any) -> AerialSystem:
        """Return the system with the vehicles on given ways, shape [devices, slots, 2] [m].

        Raises
        ------
        InputError
            For positions outside the area or moves above the speed limits.
        """
        given = {name: section for name, section in self._given().items() if name != "flight"}
        return type(self)(**given, flight=Flight(trajectory=trajectory), name=self.name)

    def take(self, devices: Any) -> AerialSystem:
        """Return the system of some vehicles only (index array or slice)."""
        sections: dict[str, Any] = {"area": self.area, "learner": self.learner, "name": self.name}
        for name in ("vehicles", "sensing", "link", "bound", "flight"):
            section = getattr(self, name)
            if section is None:
                continue
            changed: dict[str, Any] = {key: getattr(section, key)[devices] for key in section.fields_over("device")}
            if name == "vehicles":
                changed["count"] = None
            sections[name] = section.replace(**changed)
        return AerialSystem(**sections)

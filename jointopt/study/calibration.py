"""Constants of a task from a short warm-up, with intervals, and what they forecast.

A bound is right for every network because its constants are the worst that may happen, and for the same reason it is
no forecast. Here the warm-up's errors themselves are measured (`jointopt.study.observing`), and three sets of
constants are made of them:

* ``"typical"``: every term of the bound is the mean of what that error was along the warm-up *in the step that the
  server takes*. Pruning counts by ||grad F(w) - sum pi_u m grad F_u(m w)||^2; the errors of mean zero (quantizer,
  batches, lost packets) by the excess eta n^T H n that the descent lemma gives them (theory L4b), with the curvature
  measured along them, so that they average out over devices as they do in the mean.
* ``"device"``: every term is the mean of the squared error of a *device*, which is what the bound's proof bounds. The
  constants say how much of its looseness comes from worst cases; the rest is the proof's.
* ``"worst"``: maxima along the warm-up, with a margin as in `jointopt.federated.measure_constants`: a bound informed
  by the task.

The first two give a forecast and no proof.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from jointopt._version import __version__
from jointopt.errors import DataError, InputError, is_real, is_whole, nearest
from jointopt.federated.task import Task, fixed_data
from jointopt.federated.threads import torch_threads
from jointopt.files import read_json, write_json
from jointopt.pruning import PRUNERS, Pruner, pruner
from jointopt.report import text_table
from jointopt.study.constants import KINDS, bound_constants, unbiased_constants
from jointopt.study.estimates import MEANINGS, Estimate, bootstrap, compute_floor, generalization_estimates
from jointopt.study.forecast import Forecast, effective_range, forecast
from jointopt.study.observing import observe
from jointopt.study.walk import Walk
from jointopt.system import Generalization, System

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["SCHEMA", "Calibration", "calibrate"]

SCHEMA = "jointopt.calibration/1"
_FACTS = ("kind", "confidence", "learning_rate", "pruner", "data", "network", "parameters", "unpruned_parameters")


@dataclass(frozen=True, eq=False)
class Calibration:
    """What a warm-up showed of a task; made by `calibrate` or `load`.

    Attributes
    ----------
    walk : Walk
        The observations.
    estimates : dict of Estimate
        Means along the warm-up with intervals; `jointopt.study.estimates.MEANINGS` says what each is.
    kind : {"typical", "device", "worst"}
        Which constants `constants` and `apply` give when not told.
    confidence : float
        Of the intervals.
    learning_rate : float
        Step size of the warm-up.
    pruner, data, network : str
        What was calibrated.
    parameters, unpruned_parameters : int
        The network's.
    """

    walk: Walk
    estimates: Mapping[str, Estimate]
    kind: str
    confidence: float
    learning_rate: float
    pruner: str
    data: str
    network: str
    parameters: int
    unpruned_parameters: int

    def __len__(self) -> int:
        return len(self.walk.weight)

    def __repr__(self) -> str:
        return (
            f"Calibration({self.data}/{self.network}, {self.pruner}: {len(self)} devices, {self.walk.rounds} rounds, "
            f"{len(self.walk.at)} points, {self.kind})"
        )

    # Constants ------------------------------------------------------------------------------------------------

    def constants(
        self, kind: str | None = None, *, learning_rate: float | None = None, rounds: int | None = None
    ) -> dict[str, Any]:
        """Return the fields of `jointopt.system.Bound`.

        Parameters
        ----------
        kind : {"typical", "device", "worst"}, optional
            The calibration's own when not given.
        learning_rate, rounds : optional
            Step size and rounds that typical constants are for (noise counts by the step size, and the initial gap is
            what the gradients of so many rounds add up to); the warm-up's when not given.

        Raises
        ------
        InputError
            For an unknown kind.
        """
        kind = self.kind if kind is None else kind
        if kind not in KINDS:
            raise InputError(f"calibration: unknown kind {kind!r}{nearest(str(kind), KINDS)}")
        return bound_constants(
            self.walk,
            {name: one.value for name, one in self.estimates.items()},
            kind,
            walked=self.learning_rate,
            learning_rate=self.learning_rate if learning_rate is None else float(learning_rate),
            rounds=self.walk.rounds if rounds is None else int(rounds),
        )

    def apply(self, system: System, kind: str | None = None, *, aggregation: str = "received") -> System:
        """Return the system with these constants, for its own step size and rounds.

        Where they were measured, the law of computing times and the constants of the generalization gap are set too.

        Parameters
        ----------
        system : System
            About the devices and the network of the calibration.
        kind : {"typical", "device", "worst"}, optional
            The calibration's own when not given.
        aggregation : {"received", "unbiased"}
            Whose bound they are for: theorem 1 and 3 (theory 1b, 3b), or theorem 2 (2b), which needs the section
            `augmentation`, has typical constants only, and gets its `gradient_bound` too.

        Raises
        ------
        InputError
            The system is about other devices or another network, the kind or aggregation is unknown, or the system
            lacks what it needs.
        """
        self._check(system)
        bound = system.bound
        if aggregation not in ("received", "unbiased"):
            known = ("received", "unbiased")
            raise InputError(f"calibration: unknown aggregation {aggregation!r}{nearest(str(aggregation), known)}")
        if aggregation == "unbiased":
            changes = self._unbiased(system, kind)
        else:
            changes = self.constants(kind, learning_rate=bound.learning_rate, rounds=bound.rounds)
        if "compute_floor" in self.estimates:
            floor = float(self.estimates["compute_floor"].value)
            changes |= {"compute_law": "affine", "compute_floor": floor}
        out = system.with_(**changes)
        if "gradient_proxy" not in self.estimates:
            return out
        section = Generalization(
            gradient_proxy=np.asarray(self.estimates["gradient_proxy"].value),
            mutual_information=np.asarray(self.estimates["mutual_information"].value),
            mutual_information_law="fixed",
        )
        return out.replace(generalization=section)

    def _unbiased(self, system: System, kind: str | None) -> dict[str, Any]:
        """Constants of theorem 2, and the bound of the classes' gradients."""
        section, bound = system.augmentation, system.bound
        if section is None:
            raise InputError(
                "augmentation: is missing; typical constants of unbiased aggregation need the class counts"
            )
        kind = self.kind if kind is None else kind
        if kind != "typical":
            raise InputError(f"calibration: unbiased aggregation has constants of kind 'typical' only, found {kind!r}")
        counts = section.class_counts
        mix = counts / counts.sum(axis=1, keepdims=True)
        return unbiased_constants(
            self.walk,
            {name: one.value for name, one in self.estimates.items()},
            skew=np.abs(mix - section.class_mix).sum(axis=1),
            walked=self.learning_rate,
            learning_rate=bound.learning_rate,
            rounds=bound.rounds,
        )

    def forecast(self, decision: Mapping[str, Any], system: System, rounds: int | None = None) -> Forecast:
        """Return how a run of FedSGD under a decision should go (see `jointopt.study.forecast`).

        Parameters
        ----------
        decision : mapping
            As in `jointopt.federated.train`.
        system : System
            Devices, radio, step size and, when `rounds` is not given, rounds. Its other constants are not used.

        Raises
        ------
        InputError
            System and calibration do not fit each other, or training could not carry out the decision.
        """
        self._check(system)
        return forecast(
            self.walk, decision, system, system.bound.rounds if rounds is None else rounds, self.learning_rate
        )

    def _check(self, system: System) -> None:
        if not isinstance(system, System):
            raise InputError(f"calibration: expected a System, got {type(system).__name__}")
        if len(system) != len(self):
            raise InputError(f"calibration: is of {len(self)} devices, the system has {len(system)}")
        have = (system.learner.parameters, system.learner.unpruned_parameters)
        if have != (self.parameters, self.unpruned_parameters):
            raise InputError(
                f"calibration: is of a network with {self.parameters} prunable and {self.unpruned_parameters} other "
                f"parameters, the system's learner has {have[0]} and {have[1]}"
            )
        wrong = system.devices.samples != self.walk.samples
        if np.any(wrong):
            u = int(np.argmax(wrong))
            raise InputError(
                f"calibration: device {u} had {self.walk.samples[u]:.0f} samples, the system says "
                f"{system.devices.samples[u]:.0f}"
            )

    # For reading and keeping ----------------------------------------------------------------------------------

    def summary(self) -> str:
        """Return the estimates with their intervals in words; of arrays the mean over their entries."""
        rows = []
        for name, one in self.estimates.items():
            value, low, high = (float(np.mean(part)) for part in (one.value, one.low, one.high))
            shown = [f"{part:.4g}" for part in (value, low, high)]
            rows.append([name, *shown, MEANINGS[name]])
        table = text_table(rows, ["constant", "mean", "low", "high", "what it is"], words=1)
        return (
            f"{self.data} with {self.network}, pruner {self.pruner}, {len(self)} devices: {self.walk.rounds} rounds of "
            f"step size {self.learning_rate:g}, observed {len(self.walk.at)} times\n{table}\n"
            f"{self.confidence:.0%} percentile intervals of a bootstrap over observed rounds and devices; arrays "
            "are averaged over their entries here"
        )

    def plot(self) -> Figure:
        """Draw what was measured against the laws fitted to it."""
        from jointopt.plot.predictions import calibration

        return calibration(self)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, the contract of the saved file (schema "jointopt.calibration/1")."""
        return {
            "schema": SCHEMA,
            "version": __version__,
            **{name: getattr(self, name) for name in _FACTS},
            "estimates": {name: one.to_dict() for name, one in self.estimates.items()},
            "walk": self.walk.to_dict(),
        }

    def save(self, path: str | Path) -> Path:
        """Write `to_dict` as JSON, whole or not at all (see `jointopt.files.write_json`)."""
        return write_json(self.to_dict(), path)

    @classmethod
    def from_dict(cls, data: Any, where: str = "calibration") -> Self:
        """Read what `to_dict` returned.

        Raises
        ------
        DataError
            It is something else, of a newer version, or damaged.
        """
        if not isinstance(data, Mapping) or not str(data.get("schema", "")).startswith("jointopt.calibration/"):
            raise DataError(f"{where}: is not a saved calibration (no schema 'jointopt.calibration/...')")
        if data["schema"] != SCHEMA:
            raise DataError(f"{where}: schema {data['schema']!r} is not known to this version ({SCHEMA})")
        known = ("schema", "version", *_FACTS, "estimates", "walk")
        for name in data:
            if name not in known:
                raise DataError(f"{where}: unknown key '{name}'{nearest(str(name), known)}")
        for name in known:
            if name not in data:
                raise DataError(f"{where}: '{name}' is missing")
        _check_facts(data, where)
        walk = Walk.from_dict(data["walk"], f"{where}.walk")
        return cls(
            walk=walk,
            estimates=Estimate.read_all(data["estimates"], walk, f"{where}.estimates"),
            **{name: data[name] for name in _FACTS},
        )

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a file that `save` wrote; `InputError` or `DataError` where it is missing, damaged or newer."""
        return cls.from_dict(read_json(path), str(path))


def _check_facts(data: Mapping[str, Any], where: str) -> None:
    rules = {
        "kind": data["kind"] in KINDS,
        "confidence": is_real(data["confidence"]) and 0.0 < data["confidence"] < 1.0,
        "learning_rate": is_real(data["learning_rate"]) and 0.0 < data["learning_rate"] < math.inf,
        **{name: isinstance(data[name], str) for name in ("pruner", "data", "network")},
        "parameters": is_whole(data["parameters"]) and data["parameters"] >= 1,
        "unpruned_parameters": is_whole(data["unpruned_parameters"]) and data["unpruned_parameters"] >= 0,
    }
    for name, good in rules.items():
        if not good:
            raise DataError(f"{where}.{name}: cannot be {data[name]!r}")


def calibrate(
    task: Task,
    *,
    rounds: int = 40,
    learning_rate: float = 0.1,
    seed: int = 0,
    kind: str = "typical",
    pruner: str | Pruner = "magnitude",
    ratios: Sequence[float] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
    bits: Sequence[int] = (1, 2, 4, 8),
    points: int = 7,
    samples: int | None = None,
    confidence: float = 0.95,
    draws: int = 200,
    generalization: bool = False,
    speed: bool = False,
    threads: int | None = 1,
) -> Calibration:
    """Measure the constants of the bounds along a short warm-up of a task, with intervals.

    Same arguments, same result, bit for bit (on one machine with one number of threads), but for what `speed` measures.

    Parameters
    ----------
    task : Task
        What will be trained; left as it is. A network with running statistics (of batch normalisation) is measured
        on those of its batches, as in training.
    rounds : int
        Steps of gradient descent of the dense model, best about as many as will be trained, at the same step size:
        forecasts beyond the end of the warm-up are extrapolated.
    learning_rate : float
        Step size.
    seed : int
        Seed of all that is drawn.
    kind : {"typical", "device", "worst"}
        Which constants to give by default (see the module); all are measured.
    pruner : str or Pruner
        The rule whose distortion is measured.
    ratios : sequence of float
        Pruning ratios looked at, rising, in (0, 1). Each costs a pass over all data at each point.
    bits : sequence of int
        Widths from 1 to 16 at which the error of the uniform quantizer is measured.
    points : int
        Points of the path that are looked at, at least 2, first and last among them.
    samples : int, optional
        Look at so many samples of each device, drawn once, more than a batch; all when not given.
    confidence : float
        Of the intervals, in (0, 1).
    draws : int
        Bootstrap draws.
    generalization : bool
        Measure the constants of the generalization gap as well (`jointopt.federated.measure_gradient_gaps`, which
        repeats up to 10 rounds of the warm-up several times; not for networks with running statistics).
    speed : bool
        Measure how the time of a training step falls with the ratio, in time of the process.
    threads : int, optional
        Torch threads while measuring; the caller's number when None. One is fastest for networks this small, most of
        all on a busy machine.

    Returns
    -------
    Calibration

    Notes
    -----
    The intervals are percentile intervals of a bootstrap that draws observed rounds and devices anew. Rounds of one
    path follow each other and hang together, so an interval says how uniform path and devices are, not how far other
    data would lead. Maxima (kind "worst") have a margin instead.

    Raises
    ------
    InputError
        An argument is out of its range, or the warm-up diverges.
    """
    fixed_data(task, "calibrate")
    if not isinstance(task, Task):
        raise InputError(f"calibrate: expected a Task, got {type(task).__name__}")
    for name, value, least in (("rounds", rounds, 1), ("seed", seed, 0), ("points", points, 2), ("draws", draws, 20)):
        if not (is_whole(value) and value >= least):
            raise InputError(f"calibrate: {name} must be a whole number of at least {least}, found {value!r}")
    if seed >= 2**63:
        raise InputError(f"calibrate: seed must be below 2**63, found {seed!r}")
    if samples is not None and not (is_whole(samples) and samples >= 1):
        raise InputError(f"calibrate: samples must be a whole number of at least 1, found {samples!r}")
    if samples is not None and task.batch_size is not None and samples <= task.batch_size < task.samples.max():
        raise InputError(
            f"calibrate: samples must exceed the batch size {task.batch_size}, or the noise of batches cannot be "
            f"measured, found {samples}"
        )
    if not (is_real(learning_rate) and math.isfinite(learning_rate) and learning_rate > 0.0):
        raise InputError(f"calibrate: learning_rate must be finite and above 0, found {learning_rate!r}")
    if not (is_real(confidence) and 0.0 < confidence < 1.0):
        raise InputError(f"calibrate: confidence must lie above 0 and below 1, found {confidence!r}")
    if kind not in KINDS:
        raise InputError(f"calibrate: unknown kind {kind!r}{nearest(str(kind), KINDS)}")
    ratios, bits = _rising("ratios", ratios), _rising("bits", bits)
    if not all(is_real(ratio) and 0.0 < ratio < 1.0 for ratio in ratios):
        raise InputError(f"calibrate: ratios must lie above 0 and below 1, found {ratios}")
    if not all(is_whole(width) and 1 <= width <= 16 for width in bits):
        raise InputError(f"calibrate: bits must be whole numbers from 1 to 16, found {bits}")
    rule = _rule(pruner)
    with torch_threads(threads):
        walk = observe(
            task,
            rounds=rounds,
            learning_rate=float(learning_rate),
            seed=int(seed),
            pruner=rule,
            ratios=ratios,
            bits=bits,
            points=points,
            samples=samples,
        )
    if np.any(np.diff(walk.ratios) <= 0.0) or walk.ratios[0] <= 0.0 or walk.ratios[-1] >= 1.0:
        reached = ", ".join(f"{ratio:.4g}" for ratio in walk.ratios)
        raise InputError(f"calibrate: pruner '{rule.name}' reached the ratios {reached}; ask for others further apart")
    size = task.parameters + task.unpruned_parameters
    estimates = bootstrap(walk, effective_range(walk) / size, confidence, draws, seed)
    if generalization:
        with torch_threads(threads):
            estimates |= generalization_estimates(task, rounds, float(learning_rate), seed, confidence, draws)
    if speed:
        estimates["compute_floor"] = compute_floor(task, rule, seed, confidence)
    return Calibration(
        walk=walk,
        estimates=estimates,
        kind=kind,
        confidence=float(confidence),
        learning_rate=float(learning_rate),
        pruner=rule.name,
        data=task.name,
        network=task.network,
        parameters=task.parameters,
        unpruned_parameters=task.unpruned_parameters,
    )


def _rising(name: str, values: Any) -> tuple[Any, ...]:
    try:
        given = tuple(values)
        rising = all(one < other for one, other in itertools.pairwise(given))
    except TypeError:
        raise InputError(f"calibrate: {name} must be a sequence of numbers, found {values!r}") from None
    if not given or not rising:
        raise InputError(f"calibrate: {name} must rise and hold at least one number, found {values!r}")
    return given


def _rule(which: str | Pruner) -> Pruner:
    if not isinstance(which, (str, Pruner)):
        raise InputError(f"calibrate: pruner must be a name or a Pruner, found {which!r}")
    if isinstance(which, str) and which not in PRUNERS:
        raise InputError(f"calibrate: unknown pruner {which!r}{nearest(which, PRUNERS)}")
    rule = pruner(which) if isinstance(which, str) else which
    if rule.chooses_ratio:
        raise InputError(f"calibrate: pruner '{rule.name}' chooses the ratio itself and has no curve")
    return rule

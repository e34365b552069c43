"""What a training run did."""

from __future__ import annotations

import math
from collections.abc import Mapping
from copy import copy, deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from jointopt._version import __version__
from jointopt.decision import Decision
from jointopt.errors import InputError, is_real, is_whole
from jointopt.federated.ledger import Ledger
from jointopt.federated.task import Task
from jointopt.files import write_json
from jointopt.pruning.layout import Layout
from jointopt.pruning.mask import Mask
from jointopt.system import AerialSystem, System

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["SCHEMA", "Curve", "Reached", "Status", "TrainingResult"]

SCHEMA = "jointopt.training/1"

Status = Literal["completed", "interrupted", "diverged"]


@dataclass(frozen=True)
class Reached:
    """When a run first reached a target, and what it had cost by then: energy [J], delay [s], bits sent."""

    round: int
    energy: float
    delay: float
    bits: int | float


class Curve:
    """What can be read off the rows of a run."""

    rows: list[dict[str, Any]]

    @property
    def final_accuracy(self) -> float | None:
        """Test accuracy last evaluated, None if never."""
        return next((r["test_accuracy"] for r in reversed(self.rows) if r["test_accuracy"] is not None), None)

    def accuracy_at(self, *, energy: float | None = None, delay: float | None = None) -> float | None:
        """Return the test accuracy last evaluated within a total energy [J] or delay [s]; None if none."""
        if (energy is None) == (delay is None):
            raise InputError("accuracy_at: give energy or delay, one of them")
        key, most = ("cumulative_energy", energy) if delay is None else ("cumulative_delay", delay)
        assert most is not None
        # a running total may exceed the amount it was summed up to by rounding
        most *= 1.0 + 1e-9
        reached = [r["test_accuracy"] for r in self.rows if r["test_accuracy"] is not None and r[key] <= most]
        return reached[-1] if reached else None

    def reached(
        self, accuracy: float | None = None, *, gradient_norm: float | None = None, window: int = 1
    ) -> Reached | None:
        """Return the round at which a target was met, and all that it took, generation included.

        Parameters
        ----------
        accuracy : float
            Test accuracy to be reached, by the mean of the last `window` evaluations.
        gradient_norm : float
            Instead: what the mean of ||grad F||^2 over the rounds so far is to fall to for good (theory 2b). F is the
            loss of the system's target, over real samples and with its class mix, where the system has sections
            `target` and `augmentation`; else that over all samples. For rounds not measured the value measured last
            stands.
        window : int
            Evaluations in the mean of the accuracy.

        Returns
        -------
        Reached or None
            None where it was never met, or not measured.

        Raises
        ------
        InputError
            Both targets or none are given, or one is out of its range.
        """
        if (accuracy is None) == (gradient_norm is None):
            raise InputError("reached: give accuracy or gradient_norm, one of them")
        if not (is_whole(window) and window >= 1):
            raise InputError(f"reached: window must be a whole number of at least 1, found {window!r}")
        if gradient_norm is None:
            if not (is_real(accuracy) and 0.0 <= float(accuracy) <= 1.0):  # type: ignore[arg-type]
                raise InputError(f"reached: accuracy must lie in 0 .. 1, found {accuracy!r}")
            row = self._accurate(float(accuracy), window)  # type: ignore[arg-type]
        else:
            if not (is_real(gradient_norm) and math.isfinite(gradient_norm) and gradient_norm > 0.0):
                raise InputError(f"reached: gradient_norm must be finite and above 0, found {gradient_norm!r}")
            if window != 1:
                raise InputError("reached: window is for accuracy; gradient_norm takes the mean over all rounds")
            row = self._flat(float(gradient_norm))
        if row is None:
            return None
        return Reached(
            round=int(row["round"]),
            energy=float(row["cumulative_energy"]),
            delay=float(row["cumulative_delay"]),
            bits=row["cumulative_bits"],
        )

    def _accurate(self, accuracy: float, window: int) -> dict[str, Any] | None:
        last: list[float] = []
        for row in self.rows:
            if row["test_accuracy"] is None:
                continue
            last = [*last, row["test_accuracy"]][-window:]
            # a mean of equal numbers may differ from them by rounding
            if len(last) == window and math.fsum(last) / window >= accuracy * (1.0 - 1e-12):
                return row
        return None

    def _flat(self, most: float) -> dict[str, Any] | None:
        """Return the first measured row from which on the mean over the rounds so far is at most so much.

        Gradients often start small and grow before they fall: a mean that was low once need not stay so.
        """
        total, last, counted = 0.0, None, 0
        first: dict[str, Any] | None = None
        for row in self.rows:
            measured = row.get("target_gradient_norm_squared", row["gradient_norm_squared"])
            if measured is None:
                continue
            between = row["round"] - counted - 1
            total += (measured if last is None else last) * between + measured
            last, counted = measured, row["round"]
            if total / counted > most:
                first = None
            elif first is None:
                first = row
        return first

    def energy_to(self, accuracy: float) -> float | None:
        """Return the energy [J] of all devices until a test accuracy was first evaluated; None if never."""
        row = self._accurate(accuracy, 1)
        return None if row is None else float(row["cumulative_energy"])

    def delay_to(self, accuracy: float) -> float | None:
        """Return the delay [s] until a test accuracy was first evaluated; None if never."""
        row = self._accurate(accuracy, 1)
        return None if row is None else float(row["cumulative_delay"])


def _words(loss: float | None) -> str:
    return "none" if loss is None else f"{loss:.4g}"


@dataclass(frozen=True, eq=False)
class TrainingResult(Curve):
    """What a training run did: one row per round, a ledger, the final weights.

    Attributes
    ----------
    rows : list of dict
        One per finished round:

        ``round`` (from 1); ``train_loss``, the mean of F_u(w_u), weighted by samples, over the devices whose work was
        taken, of the pruned models on this round's samples before their steps (None where there was none);
        ``test_loss`` and ``test_accuracy`` of the server's model after the update, and ``global_loss`` F(w) and
        ``gradient_norm_squared`` ||grad F(w)||^2 of the server's model before it, over the samples of all devices (None
        in rounds that are not evaluated); ``round_delay`` [s] on the clock, with one that waits the largest of the
        devices; ``round_energy`` [J], the sum over devices; ``round_bits``; ``cumulative_delay``,
        ``cumulative_energy``, ``cumulative_bits``, all with what synthetic samples took before round 1; ``received``,
        packets that arrived; ``violations``, budgets broken by the booked costs. Where the system has sections `target`
        and `augmentation`, ``target_gradient_norm_squared`` too: that of the loss the target is about, over real
        samples and with the section's class mix.

        In the air F is the loss over the samples of those who take part in the slot, and there are more: ``slot`` from
        0 and its ``time`` [s]; samples that ``arrived``, ``unseen`` by all before, and ``held``, of all vehicles;
        vehicles ``taking_part``; ``flight_energy`` and ``cumulative_flight_energy`` [J], which the energies above do
        not count; ``drift`` F_t(w_t) - F_{t-1}(w_t), from slot to slot where both were measured; ``arrival_accuracy``
        of the server's model on the unseen samples before it learns from them; ``current_accuracy`` on the test data
        with the class mix of those who are to take part.
    system : System or AerialSystem
        As given, before augmentation; that of the ledger is the one after it, or of the last slot.
    decision : Decision
        What was carried out: pruning ratios rounded up to whole numbers of weights.
    ledger : Ledger
        Costs per round and device.
    weights : array [parameters]
        The server's final weights, float32, in the order of the network's ``named_parameters()``.
    buffers : array [buffers]
        Its running statistics (of batch normalisation), in the order of ``named_buffers()``.
    mask : Mask or None
        What is left where one mask was cut for all; see `module`.
    status : {"completed", "interrupted", "diverged"}
        Whatever was done until then is kept; `message` says what happened.
    """

    system: System | AerialSystem
    decision: Decision
    rows: list[dict[str, Any]]
    ledger: Ledger
    weights: NDArray[np.float32]
    buffers: NDArray[np.float32]
    mask: Mask | None
    status: Status
    message: str
    data: str
    network: str
    rounds: int
    algorithm: str
    learning_rate: float
    seed: int
    seconds: float
    settings: Mapping[str, Any]

    @property
    def violations(self) -> int:
        """Budgets broken by the booked costs, counted over devices, both budgets and all rounds."""
        return sum(int(row["violations"]) for row in self.rows)

    def module(self, task: Task) -> nn.Module:
        """Return the trained network of the task, really narrower where channels or blocks were pruned for all."""
        layout = Layout.of(task.module)
        if len(self.weights) != layout.size:
            raise InputError(f"task: has {layout.size} parameters, the run trained {len(self.weights)}")
        module = deepcopy(task.module)
        with torch.no_grad():
            parameters, buffers = dict(module.named_parameters()), dict(module.named_buffers())
            for name, value in layout.split(torch.from_numpy(self.weights)).items():
                parameters[name].copy_(value)
            for name, value in layout.split_buffers(torch.from_numpy(self.buffers)).items():
                buffers[name].copy_(value)
        if self.mask is None or not self.mask.structured:
            return module
        groups = copy(self.mask.groups)
        groups.module = module
        return groups.narrow(self.mask.units)

    def __repr__(self) -> str:
        accuracy = "not evaluated" if self.final_accuracy is None else f"accuracy {self.final_accuracy:.3f}"
        cost = ""
        if self.rows:
            last = self.rows[-1]
            cost = f", {last['cumulative_energy']:.4g} J, {last['cumulative_delay']:.4g} s"
        return (
            f"TrainingResult({self.data}/{self.network}: {self.status}, {len(self.rows)} of {self.rounds} "
            f"rounds, {accuracy}{cost}, ran {self.seconds:.3g} s)"
        )

    def summary(self) -> str:
        """Return the run in words, for reading."""
        lines = [
            f"{self.status}: {len(self.rows)} of {self.rounds} rounds of {self.algorithm} on {self.data} "
            f"with {self.network}, {len(self.system)} devices, seed {self.seed}, {self.seconds:.3g} s"
        ]
        if self.message:
            lines.append(self.message)
        if not self.rows:
            return "\n".join(lines)
        last, ledger = self.rows[-1], self.ledger
        accuracy = self.final_accuracy
        lines += [
            f"test accuracy    {'not evaluated' if accuracy is None else f'{accuracy:.4f}'}",
            f"training loss    {_words(self.rows[0]['train_loss'])} at first, {_words(last['train_loss'])} at last",
            f"delay            {last['cumulative_delay']:.4g} s ({last['round_delay']:.4g} s a round)",
            f"energy           {last['cumulative_energy']:.4g} J ({last['round_energy']:.4g} J a round)",
            f"bits sent        {last['cumulative_bits']:.4g}",
        ]
        made = int(ledger.synthetic_samples.sum())
        if made:
            lines.append(
                f"of this, before  {ledger.generation_energy.sum():.4g} J, {ledger.generation_delay.max():.4g} s "
                f"to make {made} synthetic samples"
            )
        sent = int(ledger.sent.sum())
        lost = int(ledger.lost.sum())
        lines.append(f"packets lost     {lost} of {sent}" + (f" ({lost / sent:.2%})" if sent else ""))
        if self.violations:
            lines.append(f"budgets broken   {self.violations} in all rounds (devices x budgets, booked costs)")
        else:
            rate = "" if ledger.system.radio.fading == "none" else " (booked at the ergodic rate)"
            lines.append(f"budgets          kept by every device in every round{rate}")
        if ledger.system.radio.fading == "none":
            return "\n".join(lines)
        slow, costly = ledger.faded_delay_exceeded, ledger.faded_energy_exceeded
        worked = max(int(ledger.worked.sum()), 1)
        lines.append(
            f"faded blocks     {slow.sum() / worked:.2%} took longer than the delay budget, "
            f"{costly.sum() / worked:.2%} more than the energy budget"
        )
        return "\n".join(lines)

    def to_pandas(self) -> pd.DataFrame:
        """Return one row per round, the columns of `rows`."""
        import pandas as pd

        return pd.DataFrame(self.rows)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, strict JSON: the contract of the saved file (schema "jointopt.training/1")."""
        totals = {name: values.tolist() for name, values in self.ledger.totals().items()}
        return {
            "schema": SCHEMA,
            "version": __version__,
            "seed": self.seed,
            "data": self.data,
            "network": self.network,
            "rounds": self.rounds,
            "algorithm": self.algorithm,
            "learning_rate": self.learning_rate,
            "settings": dict(self.settings),
            "status": self.status,
            "message": self.message,
            "seconds": self.seconds,
            "violations": self.violations,
            "decision": self.decision.to_dict(),
            "packet_error": np.where(self.ledger.cost.selected, self.ledger.cost.packet_error, 0.0).tolist(),
            "rows": [dict(row) for row in self.rows],
            "ledger": {
                **totals,
                "faded_delay_exceeded": self.ledger.faded_delay_exceeded.tolist(),
                "faded_energy_exceeded": self.ledger.faded_energy_exceeded.tolist(),
                **self._generation(),
            },
            "scenario": self.system.to_dict(),
        }

    def _generation(self) -> dict[str, Any]:
        """Return what synthetic samples took by device, nothing where there are none."""
        ledger = self.ledger
        if not np.any(ledger.synthetic_samples):
            return {}
        names = ("synthetic_samples", "generation_energy", "generation_delay")
        return {name: getattr(ledger, name).tolist() for name in names}

    def save(self, path: str | Path) -> Path:
        """Write `to_dict` as JSON, whole or not at all (see `jointopt.files.write_json`)."""
        return write_json(self.to_dict(), path, devices=len(self.system))

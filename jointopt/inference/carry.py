"""Carrying out a co-inference decision: prune, split, send, finish, and compare with what was planned."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from jointopt._version import __version__
from jointopt.decision import Decision
from jointopt.errors import InputError
from jointopt.files import write_json
from jointopt.inference.measure import judge, run_batches
from jointopt.inference.split import SplitNetwork
from jointopt.models import distortion
from jointopt.models.inference import cut_factor
from jointopt.report import text_table
from jointopt.system.inference import InferenceSystem, Network

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["SCHEMA", "CarriedOut", "carry_out"]

SCHEMA = "jointopt.inference/1"

_RATIO_SLACK = 1e-9
"""By how much a ratio may lie above `pruning_ratio_max`: rounding of a solver."""

_BATCH = 64

_CHANNELS = (
    "cut_law 'channels' plans with removed channels; masks set weights to 0 and leave what is sent at the cut as it is"
)


@dataclass(frozen=True, eq=False)
class CarriedOut:
    """What each device's pruned and split network did on real inputs; arrays of shape ``[devices]``.

    Attributes
    ----------
    network, task
        Name of the network, and how it is judged.
    inputs
        Number of inputs, the same for all devices.
    pruning_ratio, split
        The decision; a layer-wise ratio is given as the share removed of all prunable weights.
    removed
        Weights that are 0 in the pruned network and were not before, as a share of the prunable ones.
    planned_bits, sent_bits, sent_bits_max
        Bits at the cut, all for one input: what the system plans, the mean really sent, and the most. Where an
        inference of the system is a batch, its bits over the number of inputs, ``settings["inputs_per_inference"]``.
    exact
        Whether the server's output equals that of the unsplit pruned network, bit for bit.
    quality, dense_quality
        Measures of `jointopt.inference.measure.judge`, of the device's outputs and of the dense network's.
    parameter_distortion, planned_parameter_distortion
        ||W - W^||_1 measured, and by the system's law of distortion.
    output_distortion, output_distortion_max
        Mean and maximum of ||f(x, W) - f(x, W^)||_1 over the inputs. Where the bound applies, of inputs scaled to
        ||x||_1 <= 1.
    bound
        sum_l A^(l) ||W^(l) - W^^(l)||_1 with measured differences (4b [C]); NaN where it does not hold.
    planned_bound
        What the system makes of it: A^(l) of the system x its law of distortion x `lipschitz`. It is a bound on
        the output only where the system's amplification and law are.
    settings
        Of the system: its name, its law of distortion, that of the cut, and how many inputs an inference has.
    notes
        Where the plan counts on what is not carried out.
    """

    network: str
    task: str
    inputs: int
    pruning_ratio: np.ndarray
    split: np.ndarray
    removed: np.ndarray
    planned_bits: np.ndarray
    sent_bits: np.ndarray
    sent_bits_max: np.ndarray
    exact: np.ndarray
    quality: Mapping[str, np.ndarray]
    dense_quality: Mapping[str, float]
    parameter_distortion: np.ndarray
    planned_parameter_distortion: np.ndarray
    output_distortion: np.ndarray
    output_distortion_max: np.ndarray
    bound: np.ndarray
    planned_bound: np.ndarray
    settings: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.split)

    @property
    def _arrays(self) -> dict[str, np.ndarray]:
        names = [name for name in self.__dataclass_fields__ if isinstance(getattr(self, name), np.ndarray)]
        return {name: getattr(self, name) for name in names}

    def to_frame(self) -> pd.DataFrame:
        """Return one row for each device."""
        import pandas as pd

        return pd.DataFrame({**self._arrays, **self.quality}, index=pd.RangeIndex(len(self), name="device"))

    def summary(self) -> str:
        """Return a table: what was decided, sent, and lost, next to what was planned."""
        header = ["device", "ratio", "split", "kbit sent", "planned", "distortion", "bound", *self.quality]
        rows = []
        shown = min(len(self), 20)
        for u in range(shown):
            bound = "-" if np.isnan(self.bound[u]) else f"{self.bound[u]:.3g}"
            rows.append(
                [
                    str(u),
                    f"{self.pruning_ratio[u]:.4f}",
                    str(int(self.split[u])),
                    f"{self.sent_bits[u] / 1e3:.4g}",
                    f"{self.planned_bits[u] / 1e3:.4g}",
                    f"{self.output_distortion_max[u]:.3g}",
                    bound,
                    *(f"{values[u]:.4g}" for values in self.quality.values()),
                ]
            )
        dense = ", ".join(f"{name} {value:.4g}" for name, value in self.dense_quality.items())
        same = "equal" if bool(self.exact.all()) else "DIFFER FROM"
        lines = [
            f"{self.network}, {self.inputs} inputs, {len(self)} devices; dense: {dense}",
            f"outputs of head and tail {same} those of the unsplit network",
            text_table(rows, header),
        ]
        if shown < len(self):
            lines.append(f"... and {len(self) - shown} more devices")
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data; NaN, where a bound does not hold, as None."""
        arrays = {
            name: [None if isinstance(v, float) and v != v else v for v in values.tolist()]
            for name, values in self._arrays.items()
        }
        return {
            "schema": SCHEMA,
            "version": __version__,
            "network": self.network,
            "task": self.task,
            "inputs": self.inputs,
            "devices": len(self),
            **arrays,
            "quality": {name: values.tolist() for name, values in self.quality.items()},
            "dense_quality": dict(self.dense_quality),
            "settings": dict(self.settings),
            "notes": list(self.notes),
        }

    def save(self, path: str | Path) -> Path:
        """Write `to_dict` as JSON, whole or not at all."""
        return write_json(self.to_dict(), path, devices=len(self))


def _unit(ratio: np.ndarray, network: Network) -> np.ndarray:
    """Distortion per weight in units of 1/lambda by the system's law."""
    if network.distortion == "rate":
        return np.asarray(distortion.rate_distortion(distortion.pruned_rate(ratio, network.bits)))
    if network.distortion == "measured":
        last = network.curve_ratio[-1]
        return np.asarray(
            distortion.curve_distortion(np.minimum(ratio, last), network.curve_ratio, network.curve_distortion)
        )
    return np.asarray(distortion.magnitude_distortion(ratio))


def _plain(value: Any) -> np.ndarray:
    return np.asarray(value.detach().cpu() if isinstance(value, Tensor) else value, dtype=np.float64)


def _check_system(system: InferenceSystem, network: SplitNetwork) -> None:
    section = system.network
    if section.layers != len(network):
        raise InputError(f"system: its network has {section.layers} layers, {network.name} has {len(network)} blocks")
    counts = network.profile()["parameters"]
    if not np.array_equal(section.parameters, counts):
        i = int(np.argmax(section.parameters != counts))
        raise InputError(
            f"network.parameters[layer {i}]: the system has {section.parameters[i]:g}, {network.name} has {counts[i]}"
        )


def _inputs_per_inference(section: Network, network: SplitNetwork) -> int:
    """Return how many inputs an inference of the system has: 1 unless work and bits are the same multiple."""
    own = network.profile()
    count = max(round(float(section.flops.sum() / own["flops"].sum())), 1)
    same = all(
        np.allclose(getattr(section, name), count * own[name], rtol=1e-9, atol=0.0) for name in ("flops", "cut_bits")
    )
    return count if same else 1


def _check_decision(
    decision: Mapping[str, Any], system: InferenceSystem, network: SplitNetwork
) -> tuple[np.ndarray, np.ndarray]:
    """Ratios [blocks, devices] and splits [devices] of a decision that can be carried out."""
    size = len(system)
    for name in ("pruning_ratio", "split"):
        if name not in decision:
            raise InputError(f"decision: '{name}' is missing")
    ratio, split = (_plain(decision[name]) for name in ("pruning_ratio", "split"))
    if ratio.ndim not in (0, 1, 2) or (ratio.ndim == 2 and len(ratio) != len(network)):
        raise InputError(
            f"decision.pruning_ratio: must have shape [devices] or [{len(network)} layers, devices], "
            f"found {ratio.shape}"
        )
    for name, value in (("pruning_ratio", ratio), ("split", split)):
        if value.ndim and value.shape[-1] not in (1, size):
            raise InputError(f"decision.{name}: is for {value.shape[-1]} devices, the system has {size}")
    ratios = np.broadcast_to(ratio, (len(network), size))
    splits = np.broadcast_to(split, (size,))
    most = system.network.pruning_ratio_max
    for u in range(size):
        if float(splits[u]) not in [float(s) for s in system.network.choices]:
            raise InputError(
                f"decision.split[device {u}]: {splits[u]:g} is a split the network does not have; "
                f"splits: {system.network.choices.tolist()}"
            )
        bad = ~((ratios[:, u] >= 0.0) & (ratios[:, u] <= most + _RATIO_SLACK))
        if bad.any():
            raise InputError(
                f"decision.pruning_ratio[device {u}]: {ratios[np.argmax(bad), u]:g} must lie in 0 .. {most:g}"
            )
    return ratios, splits.astype(np.int64)


def carry_out(
    decision: Decision | Mapping[str, Any],
    system: InferenceSystem,
    network: SplitNetwork,
    inputs: Tensor,
    *,
    progress: Callable[[int, int], object] | None = None,
) -> CarriedOut:
    """Prune and split a real network as decided, run it on inputs, and measure what is sent and what is lost.

    Every device runs the head of its pruned network on all inputs; what stands at the cut is packed into bytes,
    which are counted; the server unpacks them and runs the tail. Pruned weights are 0, no channel is removed: under
    ``cut_law="channels"`` more is sent than planned, which the result notes.

    Parameters
    ----------
    decision : Decision or mapping
        ``pruning_ratio``, shape ``[devices]`` (or ``[layers, devices]``), and ``split``, shape ``[devices]``; its
        other variables do not matter here.
    system : InferenceSystem
        The system it was made for; its layers are the network's blocks (`SplitNetwork.section`).
    network : SplitNetwork
        The dense network.
    inputs : Tensor
        A batch as the network takes it.
    progress : callable, optional
        Called after each different (ratio, split) with (done, all).

    Returns
    -------
    CarriedOut

    Raises
    ------
    InputError
        The decision is not for this system, or the system is not of this network; the message names field and
        device.
    """
    if not isinstance(system, InferenceSystem):
        raise InputError(f"system: expected an InferenceSystem, got {type(system).__name__}")
    if not isinstance(network, SplitNetwork):
        raise InputError(f"network: expected a SplitNetwork, got {type(network).__name__}")
    _check_system(system, network)
    ratios, splits = _check_decision(decision, system, network)
    inputs = network.check_inputs(inputs)
    section = system.network
    dense = run_batches(network, inputs)
    dense_quality = judge(network, inputs, dense, dense)
    # f(c x) = c f(x) without biases: dividing what was measured is the same as scaling the inputs
    scale = inputs.flatten(1).abs().sum(1).clamp(min=1.0).double() if network.bounded else torch.ones(len(inputs))
    amplification = network.amplification()

    size = len(system)
    columns: dict[str, np.ndarray] = {
        name: np.zeros(size, dtype=bool if name == "exact" else np.float64)
        for name in (
            "pruning_ratio",
            "removed",
            "sent_bits",
            "sent_bits_max",
            "exact",
            "parameter_distortion",
            "planned_parameter_distortion",
            "output_distortion",
            "output_distortion_max",
            "bound",
            "planned_bound",
        )
    }
    qualities = {name: np.zeros(size) for name in dense_quality}
    total = float(section.parameters.sum())
    count = _inputs_per_inference(section, network)
    groups: dict[tuple[bytes, int], list[int]] = {}
    for u in range(size):
        groups.setdefault((np.ascontiguousarray(ratios[:, u]).tobytes(), int(splits[u])), []).append(u)
    order = sorted(groups.values(), key=lambda members: (ratios[:, members[0]].tobytes(), members[0]))
    pruned, at = network, None
    for number, members in enumerate(order):
        ratio, split = np.minimum(ratios[:, members[0]], section.pruning_ratio_max), int(splits[members[0]])
        if at is None or not np.array_equal(at, ratio):
            pruned, at = network.prune(ratio), ratio
        whole, outputs, sizes = [], [], []
        for part in inputs.split(_BATCH):
            state = pruned.head(part, split)
            packets = pruned.encode(state, split)
            sizes += [8 * len(packet) for packet in packets]
            received = state if split == len(pruned) else pruned.decode(packets, split)
            outputs.append(pruned.tail(received, split))
            whole.append(pruned.run(part))
        out = torch.cat(outputs)
        moved = (out.double() - dense).abs().flatten(1).sum(1) / scale
        change = network.parameter_distortion(pruned)
        zeros = sum(
            int(((v == 0) & (w != 0)).sum())
            for (_, _, w), (_, _, v) in zip(network.prunable(), pruned.prunable(), strict=True)
        )
        unit = _unit(ratio, section)
        values: dict[str, Any] = {
            "pruning_ratio": float(np.sum(ratio * section.parameters) / total),
            "removed": zeros / total,
            "sent_bits": float(np.mean(sizes)),
            "sent_bits_max": float(np.max(sizes)),
            "exact": torch.equal(out, torch.cat(whole)),
            "parameter_distortion": change.sum(),
            "planned_parameter_distortion": float(np.sum(unit * section.parameters / section.weight_rate)),
            "output_distortion": float(moved.mean()),
            "output_distortion_max": float(moved.max()),
            "bound": float(np.sum(amplification * change)) if network.bounded else np.nan,
            "planned_bound": section.lipschitz
            * float(distortion.output_distortion(unit, section.amplification, section.parameters, section.weight_rate)),
        }
        for name, value in values.items():
            columns[name][members] = value
        for name, value in judge(network, inputs, out.double(), dense).items():
            qualities[name][members] = value
        if progress is not None:
            progress(number + 1, len(order))
    # the raw input never shrinks
    left = cut_factor(1.0 - columns["pruning_ratio"], section.cut_law)
    notes = (_CHANNELS,) if np.any((splits > 0) & (left < 1.0)) else ()
    return CarriedOut(
        network=network.name,
        task=network.task,
        inputs=len(inputs),
        split=splits,
        planned_bits=section.cut_bits[splits] * np.where(splits > 0, left, 1.0) / count,
        quality=qualities,
        dense_quality=dense_quality,
        settings={
            "system": system.name,
            "distortion": section.distortion,
            "cut_law": section.cut_law,
            "inputs_per_inference": count,
        },
        notes=notes,
        **columns,
    )

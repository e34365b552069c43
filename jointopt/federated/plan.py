"""Which decisions training can carry out, and how they are rounded to what a network allows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jointopt.decision import Decision
from jointopt.errors import InputError, nearest
from jointopt.federated.codecs.base import listed
from jointopt.federated.codecs.uniform import Uniform
from jointopt.pruning.magnitude import snap
from jointopt.system import System

__all__ = ["plain_values", "trainable"]

_NEEDED = ("pruning_ratio", "power")
_OPTIONAL = ("bits", "bandwidth", "frequency", "selected", "augmentation_level")


def plain_values(decision: Mapping[str, Any]) -> dict[str, Any]:
    """Return a decision's values as they are, tensors as NumPy arrays of at least one axis."""
    return {k: np.atleast_1d(v.detach().cpu().numpy()) if hasattr(v, "detach") else v for k, v in decision.items()}


def trainable(decision: Mapping[str, Any], system: System, widths: Sequence[int] = Uniform.widths) -> Decision:
    """Check a decision and round its pruning ratios up to whole numbers of weights.

    Rounding up only lowers delay and energy, so budgets that held still hold. Where it leads above
    `pruning_ratio_max`, by less than 1/V, that is accepted, since rounding down could break a budget.
    A design that does not choose bits sends the learner's `bits_max` per parameter. `widths` are the bits that the
    codec can send.

    Returns
    -------
    Decision
        All variables of shape ``[devices]``, bits among them. Devices that are not selected keep whatever values
        they were given (0 W or 0 Hz, say), except that they prune nothing and make no synthetic samples; none of it
        is used.

    Raises
    ------
    InputError
        A variable is missing, unknown, for another number of devices, not finite or out of its range; the message
        names variable and device.
    """
    size = len(system)
    known = (*_NEEDED, *_OPTIONAL)
    for name in decision:
        if name not in known:
            raise InputError(f"decision: training cannot carry out '{name}'{nearest(name, known)}")
    for name in _NEEDED:
        if name not in decision:
            raise InputError(f"decision: '{name}' is missing")
    plain = Decision(plain_values(decision))
    for name, value in plain.items():
        if value.ndim != 1:
            raise InputError(f"decision.{name}: is a batch of shape {value.shape}; training takes one decision")
        if value.shape[0] not in (1, size):
            raise InputError(f"decision: was made for {value.shape[0]} devices, the scenario has {size}")
    values = {name: np.broadcast_to(value, (size,)).copy() for name, value in plain.items()}
    if "augmentation_level" in values and system.augmentation is None:
        raise InputError(
            "decision.augmentation_level: the scenario has no section 'augmentation', so nothing is known of its "
            "classes or of what synthetic samples cost"
        )

    selected = values.get("selected", np.ones(size))
    learner = system.learner
    if "bits" not in values:
        # a codec of one width needs no choice
        most_bits = widths[0] if len(widths) == 1 else learner.bits_max
        if most_bits not in widths:
            raise InputError(
                f"learner.bits_max: {most_bits} bits are sent where the decision names none, which training "
                f"cannot do with this codec; it takes {listed(widths)}"
            )
        values["bits"] = np.full(size, float(most_bits))
    ratio, most = values["pruning_ratio"], learner.pruning_ratio_max
    rules = [
        ("selected", ~np.isin(selected, (0.0, 1.0)), "must be 0 or 1"),
        (
            "pruning_ratio",
            (ratio < 0) | (ratio > most + 1.0 / learner.parameters),
            f"must lie in 0 .. {most:g}",
        ),
        (
            "bits",
            ~np.isin(values["bits"], widths),
            f"must be {listed(widths)}",
        ),
        *(
            (name, values[name] <= 0, "must be above 0")
            for name in ("power", "bandwidth", "frequency")
            if name in values
        ),
        *(
            (name, (values[name] < 0.0) | (values[name] > 1.0), "must lie between 0 and 1")
            for name in ("augmentation_level",)
            if name in values
        ),
    ]
    for name, bad, rule in rules:
        if name != "selected":
            bad = bad & (selected == 1.0)
        if np.any(bad):
            u = int(np.argmax(bad))
            raise InputError(f"decision.{name}[device {u}]: {float(values[name][u])!r} {rule}")
    if not np.any(selected == 1.0):
        raise InputError("decision.selected: no device takes part")
    if "augmentation_level" in values:
        values["augmentation_level"] = np.where(selected == 1.0, values["augmentation_level"], 0.0)
    values["pruning_ratio"] = np.asarray(snap(np.where(selected == 1.0, ratio, 0.0), learner.parameters))
    return Decision(values)

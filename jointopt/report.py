"""Answers in words and tables. Works on any problem through its variables, slack and quantities."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from jointopt.units import format_si

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Explanation", "device_table", "explain", "summary", "text_table"]

TIGHT = 1e-6
"""A constraint is called tight when its slack is below this share of its budget."""

_SHOWN = 20


def text_table(rows: list[list[str]], header: list[str], *, words: int = 0) -> str:
    """Return rows as aligned text columns, numbers to the right, the last `words` columns to the left."""
    cells = [header, *rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    lines = []
    for row in cells:
        padded = [
            cell.ljust(width) if i >= len(row) - words else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(padded).rstrip())
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def device_table(problem: Any, decision: Any, evaluation: Any) -> pd.DataFrame:
    """Return one row per device: decision, per-device quantities (SI), slack; index `device`."""
    import pandas as pd

    size = len(problem.system)
    columns: dict[str, Any] = {}
    if decision is not None:
        # what is chosen per layer has no row here
        elsewhere = {v.name for v in problem.variables if v.axis == "layer"}
        columns |= {
            name: np.broadcast_to(np.asarray(value), (size,))
            for name, value in decision.items()
            if name not in elsewhere and np.shape(value)[-1] in (1, size)
        }
    if evaluation is not None:
        for name, value in evaluation.quantities.items():
            if np.shape(value)[-1:] == (size,):
                columns[name] = np.asarray(value)
        for name, value in evaluation.slack.items():
            if np.shape(value)[-1:] == (size,) and name not in columns:
                columns[f"{name}_slack"] = np.asarray(value)
        for name in ("delay", "energy"):
            if name in evaluation.slack and np.shape(evaluation.slack[name])[-1:] == (size,):
                columns[f"{name}_slack"] = np.asarray(evaluation.slack[name])
    return pd.DataFrame(columns, index=pd.RangeIndex(size, name="device"))


@dataclass(frozen=True)
class Explanation:
    """Which constraint is tight for which device, and why; prints as a table."""

    rows: list[dict[str, Any]]
    totals: dict[str, int]
    shared: list[str]
    """What is tight or used up for all devices together; who takes part."""

    def to_pandas(self) -> pd.DataFrame:
        """Return one row per device."""
        import pandas as pd

        return pd.DataFrame(self.rows).set_index("device")

    def __str__(self) -> str:
        table = text_table(
            [
                [
                    str(row["device"]),
                    f"{row['delay_use']:.1%}" if row["taken"] else "-",
                    f"{row['energy_use']:.1%}" if row["taken"] else "-",
                    row["tight"],
                    row["why"],
                ]
                for row in self.rows[:_SHOWN]
            ],
            ["device", "delay used", "energy used", "tight", "why"],
            words=2,
        )
        more = f"\n... and {len(self.rows) - _SHOWN} more devices" if len(self.rows) > _SHOWN else ""
        counts = ", ".join(f"{name}: {count}" for name, count in self.totals.items()) or "nothing"
        shared = "".join(f"\n{line}" for line in self.shared)
        return f"{table}{more}\ntight, by number of devices: {counts}{shared}"

    __repr__ = __str__


def explain(problem: Any, decision: Any) -> Explanation:
    """Say for one decision which constraint is tight for whom, and why (see `Problem.explain`)."""
    evaluation = problem.evaluate(decision)
    size = len(problem.system)
    taken = _taken(decision, size)
    use, short, tight = {}, {}, {}
    shared = []
    for name, slack in evaluation.slack.items():
        slack, scale = np.asarray(slack), np.asarray(evaluation.scale[name])
        if slack.ndim == 0:
            # a count that must reach 1 is met where it is 1, which is no news
            if slack < TIGHT * scale and not (name == "participants" and slack >= 0.0):
                shared.append(f"{name} is {'violated' if slack < -1e-9 * scale else 'tight'} for the system")
            continue
        if any(name == v.name for v in problem.variables):
            continue
        use[name] = np.broadcast_to(1.0 - slack / scale, (size,))
        short[name] = use[name] > 1.0 + 1e-9
        tight[name] = use[name] > 1.0 - TIGHT
    quantities = {k: np.asarray(v) for k, v in evaluation.quantities.items()}
    limits: dict[str, Any] = {}
    chosen: dict[str, Any] = {}
    for variable in problem.variables:
        if variable.axis in ("layer", "common") or variable.kind == "binary":
            continue
        value = chosen[variable.name] = np.broadcast_to(np.asarray(decision[variable.name]), (size,))
        span = np.maximum(variable.upper - variable.lower, 1e-300)
        fixed = variable.upper == variable.lower
        limits[variable.name] = [
            ("at its only value", fixed),
            ("at its least", ~fixed & (value - variable.lower <= TIGHT * span)),
            ("at its most", ~fixed & (variable.upper - value <= TIGHT * span)),
        ]
    speeds = [name for name in ("power", "frequency", "server_frequency") if name in limits]
    left_out = _left_out(problem, taken)
    rows, totals = [], Counter[str]()
    for u in range(size):
        names = [name for name in tight if taken[u] and tight[name][u]]
        bounds = [f"{name} {word}" for name, pairs in limits.items() for word, mask in pairs if taken[u] and mask[u]]
        totals.update(names + [b for b in bounds if "only" not in b])
        # what is fixed, at its most or not used at all cannot be raised to any effect
        faster = [
            name.replace("_", " ")
            for name in speeds
            if not limits[name][0][1][u] and not limits[name][2][1][u] and chosen[name][u] > 0.0
        ]
        why = _why(u, names, [n for n in names if short[n][u]], bounds, quantities, faster)
        rows.append(
            {
                "device": u,
                "taken": bool(taken[u]),
                "delay_use": float(use["delay"][u]) if "delay" in use else float("nan"),
                "energy_use": float(use["energy"][u]) if "energy" in use else float("nan"),
                "tight": " + ".join(names) or "-",
                "limits": ", ".join(bounds) or "-",
                "why": why if taken[u] else left_out[u],
            }
        )
    if not taken.all():
        totals["left out"] = int((~taken).sum())
    return Explanation(rows, dict(totals.most_common()), shared)


def _taken(decision: Any, size: int) -> np.ndarray:
    """Who takes part, bool [devices]."""
    if "selected" not in decision:
        return np.ones(size, dtype=bool)
    return np.broadcast_to(np.asarray(decision["selected"]) > 0.5, (size,))


def _left_out(problem: Any, taken: np.ndarray) -> dict[int, str]:
    """Why devices are left out: they could not take part even alone, or others are worth more."""
    who = np.flatnonzero(~taken)
    if not who.size:
        return {}
    find = problem.capabilities().conflicts
    alone = {} if find is None else {c.device: c for c in find(who)}
    words = {}
    for u in who:
        conflict = alone.get(int(u))
        if conflict is not None and (conflict.factor is None or conflict.factor > 1.0):
            words[int(u)] = f"left out: cannot take part, {conflict.binding} is short even alone"
        else:
            words[int(u)] = "left out: could take part alone"
    return words


_STAGES = {
    True: (("device", "device"), ("send", "sending"), ("server", "server")),
    False: (("compute", "computing"), ("upload", "sending")),
}
"""Stages of a delay or an energy by whether a server computes too: prefix of the quantity, and word."""


def _shares(u: int, name: str, quantities: dict[str, Any]) -> str:
    stages = _STAGES[f"server_{name}" in quantities]
    parts = [quantities.get(f"{stage}_{name}") for stage, _ in stages]
    if any(part is None for part in parts):
        return ""
    values = [float(part[u]) for part in parts if part is not None]
    total = sum(values)
    if not total > 0.0:
        return ""
    return (
        " (" + ", ".join(f"{v / total:.0%} {word}" for v, (_, word) in zip(values, stages, strict=True) if v > 0) + ")"
    )


def _why(
    u: int, tight: list[str], short: list[str], bounds: list[str], quantities: dict[str, Any], faster: list[str]
) -> str:
    if short:
        text = "over budget: " + ", ".join(f"{name}{_shares(u, name, quantities)}" for name in short)
    elif {"delay", "energy"} <= set(tight):
        text = "both budgets are used up"
        if faster:
            text = f"between both budgets: more {' or '.join(faster)} breaks energy, less breaks delay"
        if "server_delay" in quantities:
            text += "; " + ", ".join(f"{name}{_shares(u, name, quantities)}" for name in ("delay", "energy"))
    elif tight:
        text = f"{tight[0]} limits it{_shares(u, tight[0], quantities)}"
    else:
        text = "budgets have room"
    return f"{text}; {', '.join(bounds)}" if bounds else text


def summary(result: Any) -> str:
    """Return a result in words and a table (see `Result.summary`)."""
    problem, system = result.problem, result.problem.system
    lines = [f"{problem.name}, method {result.method}: {result.status}"]
    if result.value is not None:
        if result.lower_bound is None:
            proof = f"no lower bound ({result.certificate.text})"
        else:
            proof = f"proved at least {result.lower_bound:.8g}, gap {result.gap:.1e} ({result.certificate.text})"
        lines.append(f"value {result.value:.8g}; {proof}")
    if result.evaluation is not None and result.value is not None:
        total = sum(float(v) for v in result.evaluation.parts.values())
        parts = [
            f"{name} {float(value):.4g} ({float(value) / total:.0%})" if total > 0 else f"{name} {float(value):.4g}"
            for name, value in result.evaluation.parts.items()
        ]
        lines.append("parts: " + ", ".join(parts))
        lines += problem.remarks(result.evaluation)
    lines += _shared_lines(result)
    if result.message:
        lines.append(f"{result.message}; {format_si(result.seconds, 's')}, {result.n_evaluations} evaluations")
    if result.infeasibility:
        lines.append("what is short, and the smallest change that would do:")
        lines += [f"  {c.text}" for c in result.infeasibility[:_SHOWN]]
        if len(result.infeasibility) > _SHOWN:
            lines.append(f"  ... and {len(result.infeasibility) - _SHOWN} more")
    if result.decision is not None:
        if result.status == "infeasible":
            lines.append("the decision that exceeds the budgets least:")
        lines.append(_decision_table(result, min(len(system), _SHOWN)))
        for variable in problem.variables:
            if variable.axis in ("layer", "common"):
                values = " ".join(f"{v:.4g}" for v in np.ravel(result.decision[variable.name]))
                lines.append(f"{variable.name} {'per layer' if variable.axis == 'layer' else 'of all'}: {values}")
        if len(system) > _SHOWN:
            lines.append(f"... and {len(system) - _SHOWN} more devices (to_pandas() has all)")
    return "\n".join(lines)


def _shared_lines(result: Any) -> list[str]:
    """Who takes part, and how much is used of what all devices share."""
    evaluation, system = result.evaluation, result.problem.system
    if evaluation is None or result.decision is None:
        return []
    lines = []
    if "selected" in result.decision:
        taken = _taken(result.decision, len(system))
        held = float(system.devices.samples[taken].sum())
        lines.append(
            f"selected {int(taken.sum())} of {len(system)} devices, n_S = {held:.0f} of "
            f"{float(system.devices.samples.sum()):.0f} samples"
        )
    units = {f"total_{v.name}": v.unit for v in result.problem.variables}
    for name, slack in evaluation.slack.items():
        if name in units and np.ndim(slack) == 0:
            whole = float(evaluation.scale[name])
            used = whole - float(slack)
            over = "; EXCEEDED" if used > whole * (1.0 + 1e-9) else ""
            lines.append(
                f"{name.replace('_', ' ')}: {format_si(used, units[name], 4)} of {format_si(whole, units[name], 4)} "
                f"used ({used / whole:.1%}{over})"
            )
    return lines


_SHOWN_QUANTITIES = (
    *("delay", "energy", "packet_error", "device_delay", "send_delay", "server_delay", "distortion"),
    *("slots_joined", "mean_pruning_ratio", "total_energy", "total_samples", "total_flight_energy", "utility"),
)


def _decision_table(result: Any, shown: int) -> str:
    table = result.to_pandas()
    variables = {v.name: v for v in result.problem.variables}
    units = {v.name: v.unit for v in result.problem.variables}
    own = [n for n in result.decision if n not in variables or variables[n].axis != "common"]
    names = [n for n in (*own, *_SHOWN_QUANTITIES) if n in table]
    taken = _taken(result.decision, len(table))

    def cell(name: str, value: float, takes_part: bool) -> str:
        if name == "selected":
            return "yes" if takes_part else "-"
        if not takes_part:
            return "-"
        unit = units.get(name, "J" if name.endswith("energy") else "s" if name.endswith("delay") else "")
        if unit in ("W", "J", "s", "Hz"):
            return format_si(value, unit)
        whole = name in variables and variables[name].kind != "real"
        return f"{value:.0f}" if whole else f"{value:.4g}"

    rows = [[str(u), *(cell(n, float(table[n].iloc[u]), bool(taken[u])) for n in names)] for u in range(shown)]
    return text_table(rows, ["device", *names])

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


def text_table(rows: list[list[str]], header: list[str]) -> str:
    """Return rows as aligned text columns, numbers to the right."""
    cells = [header, *rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    lines = []
    for row in cells:
        lines.append("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def device_table(problem: Any, decision: Any, evaluation: Any) -> pd.DataFrame:
    """Return one row per device: decision, per-device quantities (SI), slack; index `device`."""
    import pandas as pd

    size = len(problem.system)
    columns: dict[str, Any] = {}
    if decision is not None:
        # what is chosen per layer has no row here
        columns |= {
            name: np.broadcast_to(np.asarray(value), (size,))
            for name, value in decision.items()
            if np.shape(value)[-1] in (1, size)
        }
    if evaluation is not None:
        for name, value in evaluation.quantities.items():
            if np.shape(value)[-1:] == (size,):
                columns[name] = np.asarray(value)
        for name, value in evaluation.slack.items():
            if np.shape(value)[-1:] == (size,) and name not in columns:
                columns[f"{name}_slack"] = np.asarray(value)
        for name in ("delay", "energy"):
            if name in evaluation.slack:
                columns[f"{name}_slack"] = np.asarray(evaluation.slack[name])
    return pd.DataFrame(columns, index=pd.RangeIndex(size, name="device"))


@dataclass(frozen=True)
class Explanation:
    """Which constraint is tight for which device, and why; prints as a table."""

    rows: list[dict[str, Any]]
    totals: dict[str, int]
    shared: list[str]

    def to_pandas(self) -> pd.DataFrame:
        """Return one row per device."""
        import pandas as pd

        return pd.DataFrame(self.rows).set_index("device")

    def __str__(self) -> str:
        table = text_table(
            [
                [
                    str(row["device"]),
                    f"{row['delay_use']:.1%}",
                    f"{row['energy_use']:.1%}",
                    row["tight"],
                    row["why"],
                ]
                for row in self.rows[:_SHOWN]
            ],
            ["device", "delay used", "energy used", "tight", "why"],
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
    use, short, tight = {}, {}, {}
    shared = []
    for name, slack in evaluation.slack.items():
        slack, scale = np.asarray(slack), np.asarray(evaluation.scale[name])
        if slack.ndim == 0:
            if slack < TIGHT * scale:
                shared.append(f"{name} is {'violated' if slack < -1e-9 * scale else 'tight'} for the system")
            continue
        if any(name == v.name for v in problem.variables):
            continue
        use[name] = np.broadcast_to(1.0 - slack / scale, (size,))
        short[name] = use[name] > 1.0 + 1e-9
        tight[name] = use[name] > 1.0 - TIGHT
    quantities = {k: np.asarray(v) for k, v in evaluation.quantities.items()}
    limits: dict[str, Any] = {}
    for variable in problem.variables:
        if np.shape(decision[variable.name])[-1] not in (1, size):
            continue
        value = np.broadcast_to(np.asarray(decision[variable.name]), (size,))
        span = np.maximum(variable.upper - variable.lower, 1e-300)
        fixed = variable.upper == variable.lower
        limits[variable.name] = [
            ("at its only value", fixed),
            ("at its least", ~fixed & (value - variable.lower <= TIGHT * span)),
            ("at its most", ~fixed & (variable.upper - value <= TIGHT * span)),
        ]
    rows, totals = [], Counter[str]()
    for u in range(size):
        names = [name for name in tight if tight[name][u]]
        bounds = [f"{name} {word}" for name, pairs in limits.items() for word, mask in pairs if mask[u]]
        totals.update(names + [b for b in bounds if "only" not in b])
        rows.append(
            {
                "device": u,
                "delay_use": float(use["delay"][u]) if "delay" in use else float("nan"),
                "energy_use": float(use["energy"][u]) if "energy" in use else float("nan"),
                "tight": " + ".join(names) or "-",
                "limits": ", ".join(bounds) or "-",
                "why": _why(u, names, [n for n in names if short[n][u]], bounds, quantities),
            }
        )
    return Explanation(rows, dict(totals.most_common()), shared)


def _why(u: int, tight: list[str], short: list[str], bounds: list[str], quantities: dict[str, Any]) -> str:
    def split(name: str) -> str:
        compute, upload = quantities.get(f"compute_{name}"), quantities.get(f"upload_{name}")
        if compute is None or upload is None:
            return ""
        share = float(upload[u] / (compute[u] + upload[u]))
        return f" ({1 - share:.0%} computing, {share:.0%} sending)"

    if short:
        text = "over budget: " + ", ".join(f"{name}{split(name)}" for name in short)
    elif {"delay", "energy"} <= set(tight):
        text = "between both budgets: more power breaks energy, less breaks delay"
    elif tight:
        text = f"{tight[0]} limits it{split(tight[0])}"
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
        contraction = result.evaluation.quantities.get("contraction")
        if contraction is not None:
            bound = float(result.evaluation.quantities["bound"])
            lines.append(
                f"A = {float(contraction):.4g} (must stay below 1); bound of the mean ||grad F||^2: {bound:.4g}"
            )
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
            if variable.axis == "layer":
                values = " ".join(f"{v:.4g}" for v in np.ravel(result.decision[variable.name]))
                lines.append(f"{variable.name} per layer: {values}")
        if len(system) > _SHOWN:
            lines.append(f"... and {len(system) - _SHOWN} more devices (to_pandas() has all)")
    return "\n".join(lines)


def _decision_table(result: Any, shown: int) -> str:
    table = result.to_pandas()
    units = {v.name: v.unit for v in result.problem.variables} | {"delay": "s", "energy": "J"}
    names = [n for n in (*result.decision, "delay", "energy", "packet_error") if n in table]

    def cell(name: str, value: float) -> str:
        unit = units.get(name, "")
        if unit in ("W", "J", "s", "Hz"):
            return format_si(value, unit)
        return f"{value:.0f}" if name == "bits" else f"{value:.4g}"

    rows = [[str(u), *(cell(n, float(table[n].iloc[u])) for n in names)] for u in range(shown)]
    return text_table(rows, ["device", *names])

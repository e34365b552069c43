"""Figures of predictions held against training, and of what a warm-up measured."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from jointopt.errors import InputError
from jointopt.plot.figures import _subplots

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["calibration", "predictions"]

_BLUE, _ORANGE, _GREEN, _GREY = "#0072B2", "#D55E00", "#009E73", "0.45"
_NAMED = 12
"""Above so many decisions points bear no names."""


def predictions(prediction: Any, *, title: str | None = None) -> Figure:
    """Draw predicted against measured, one point per decision, with the line where both are equal.

    On the left the bound against the mean squared gradient norm over all rounds; beside it, where there are forecasts,
    the loss after all rounds, and at equal energy and equal delay.

    Parameters
    ----------
    prediction : Prediction
        From `jointopt.study.Comparison.prediction`.
    title : str, optional
        Above all.
    """
    table = {basis: prediction.to_pandas(basis) for basis in ("rounds", "energy", "delay")}
    forecasts = bool(np.isfinite(table["rounds"]["forecast_loss"]).any())
    if not (np.isfinite(table["rounds"]["bound"]) & np.isfinite(table["rounds"]["square"])).any() and not forecasts:
        raise InputError("plot.predictions: nothing was both predicted and measured")
    figure, axes = _subplots(*((2, 2) if forecasts else (1, 1)), figsize=(10, 9.2) if forecasts else (5.6, 5.2))
    axes = np.ravel(axes)
    rows = table["rounds"]
    _scatter(axes[0], rows, "bound", "square", _BLUE, "bound", log=True)
    label = "bound"
    if forecasts:
        _scatter(axes[0], rows, "forecast_square", "square", _ORANGE, "forecast", log=True, marker="s", names=False)
        axes[0].legend(fontsize=8, loc="best")
        label = "bound or forecast"
    _diagonal(axes[0], log=True)
    axes[0].set_xlabel("measured mean $\\|\\nabla F\\|^2$ over all rounds [1]")
    axes[0].set_ylabel(f"{label} of the mean $\\|\\nabla F\\|^2$ [1]")
    axes[0].set_title(_tau(prediction, "bound", "square", "rounds", "gradient norm, all rounds"), fontsize=10)
    if forecasts:
        for axis, basis, words in (
            (axes[1], "rounds", "after all rounds"),
            (axes[2], "energy", f"at equal energy ({prediction.equal_energy:.3g} J)"),
            (axes[3], "delay", f"at equal delay ({prediction.equal_delay:.3g} s)"),
        ):
            _scatter(axis, table[basis], "forecast_loss", "loss", _ORANGE, "forecast", log=True, marker="s")
            _diagonal(axis, log=True)
            axis.set_xlabel(f"measured loss $F$ {words} [nat]")
            axis.set_ylabel("forecast loss $F$ [nat]")
            axis.set_title(_tau(prediction, "forecast_loss", "loss", basis, f"loss {words}"), fontsize=10)
    figure.suptitle(title or f"{len(prediction.costs)} decisions, constants of {prediction.constants}")
    return figure


def _tau(prediction: Any, predictor: str, quality: str, basis: str, words: str) -> str:
    tau, pairs = prediction.tau(predictor, quality, basis)
    return words if not np.isfinite(tau) else f"{words}: Kendall's $\\tau$ = {tau:.2f} ({pairs} pairs)"


def _scatter(
    axis: Any, table: Any, y: str, x: str, color: str, label: str, *, log: bool, marker: str = "o", names: bool = True
) -> None:
    good = np.isfinite(table[x]) & np.isfinite(table[y]) & ((table[x] > 0) & (table[y] > 0) if log else True)
    shown = table[good]
    axis.scatter(shown[x], shown[y], s=26, color=color, marker=marker, label=label, alpha=0.85, linewidths=0, zorder=3)
    if names and len(shown) <= _NAMED:
        for name, row in shown.iterrows():
            axis.annotate(
                str(name), (row[x], row[y]), textcoords="offset points", xytext=(5, 3), fontsize=7, color="0.3"
            )
    left_out = len(table) - len(shown)
    if left_out:
        axis.annotate(
            f"{left_out} of {len(table)} not shown (no rounds afforded, diverged or vacuous)",
            (0.02, 0.06),
            xycoords="axes fraction",
            fontsize=7,
            color="0.3",
        )


def _diagonal(axis: Any, *, log: bool) -> None:
    """Make both axes alike and draw the line of equality."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

    if log:
        axis.set_xscale("log")
        axis.set_yscale("log")
    axis.autoscale_view()
    low = min(axis.get_xlim()[0], axis.get_ylim()[0])
    high = max(axis.get_xlim()[1], axis.get_ylim()[1])
    axis.plot([low, high], [low, high], color=_GREY, linewidth=1.0, linestyle="--", zorder=1)
    axis.annotate(
        "dashed: predicted = measured",
        (0.985, 0.015),
        xycoords="axes fraction",
        ha="right",
        va="bottom",
        fontsize=8,
        color=_GREY,
    )
    axis.set_xlim(low, high)
    axis.set_ylim(low, high)
    axis.set_aspect("equal")
    if log:
        for one in (axis.xaxis, axis.yaxis):
            # on a narrow axis powers of ten leave one number or none
            narrow = high / low <= 5.0
            one.set_major_locator(
                MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10]) if narrow else LogLocator(base=10, subs=(1.0, 2.0, 5.0))
            )
            one.set_minor_locator(NullLocator())
            one.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            one.set_minor_formatter(NullFormatter())
    axis.grid(alpha=0.3)


def calibration(calibrated: Any, *, title: str | None = None) -> Figure:
    """Draw what a warm-up measured against the laws fitted to it.

    Left the error of pruning, with its interval, and the bound's law; in the middle the error of the quantizer; right
    the path itself.

    Parameters
    ----------
    calibrated : Calibration
        From `jointopt.calibrate`.
    title : str, optional
        Above all.
    """
    walk, estimates = calibrated.walk, calibrated.estimates
    figure, axes = _subplots(1, 3, figsize=(13.5, 4.4))
    for name, kind, color, words in (
        ("pruning_error_device", "device", _ORANGE, "a device"),
        ("pruning_error_round", "typical", _BLUE, "the server's mean"),
    ):
        one, constants = estimates[name], calibrated.constants(kind)
        value = np.asarray(one.value)
        axes[0].errorbar(
            walk.ratios,
            value,
            yerr=np.maximum([value - one.low, one.high - value], 0.0),
            color=color,
            marker="o",
            linestyle="",
            capsize=2,
            label=f"measured, {words}",
        )
        # the term of the bound has the factor 2 that typical constants take off
        factor = 2.0 if kind == "typical" else 1.0
        ratio = np.asarray(constants["pruning_curve_ratio"])[1:-1]  # 0 has no place on a logarithmic axis
        removed = np.asarray(constants["pruning_curve_error"])[1:-1]
        law = constants["smoothness"] ** 2 * constants["weight_norm_squared"] * removed
        axes[0].plot(ratio, factor * (law + constants["mask_energy"] * ratio), color=color, label=f"law, {words}")
    axes[0].set_yscale("log")
    axes[0].set_xlabel("pruning ratio (share of weights removed) [1]")
    axes[0].set_ylabel("squared error of the gradient [1]")
    axes[0].legend(fontsize=8)
    axes[0].set_title("pruning", fontsize=10)

    weight, size = walk.weight, calibrated.parameters + calibrated.unpruned_parameters
    measured = walk.quantized.mean(axis=0) @ weight
    width = np.arange(1, 17)
    spread = float(weight @ np.asarray(estimates["quantizer_range"].value) ** 2)
    axes[1].plot(walk.bits, measured, "o", color=_BLUE, label="measured, a device")
    axes[1].plot(width, size * spread / (4.0 * (2.0**width - 1.0) ** 2), color=_BLUE, label="law, fitted range")
    widest = float(weight @ walk.span.max(axis=0) ** 2)
    axes[1].plot(
        width, size * widest / (4.0 * (2.0**width - 1.0) ** 2), ":", color=_GREY, label="law, widest range seen"
    )
    axes[1].set_yscale("log")
    axes[1].set_xlabel("bits per parameter [bit]")
    axes[1].set_ylabel("squared error of the quantizer [1]")
    axes[1].legend(fontsize=8)
    axes[1].set_title("quantization", fontsize=10)

    rounds = np.arange(walk.rounds + 1)
    axes[2].plot(rounds, walk.loss, color=_ORANGE, label="loss $F$ [nat]")
    axes[2].plot(rounds, walk.square, color=_BLUE, label="$\\|\\nabla F\\|^2$ [1]")
    axes[2].plot(walk.at, walk.square[walk.at.astype(int)], "o", color=_BLUE, label="observed here")
    axes[2].set_yscale("log")
    axes[2].set_xlabel("round of the warm-up")
    axes[2].set_ylabel("loss [nat], squared gradient norm [1]")
    axes[2].legend(fontsize=8)
    axes[2].set_title("path", fontsize=10)
    for axis in axes:
        axis.grid(alpha=0.3)
    figure.suptitle(
        title or f"{calibrated.data}, {calibrated.network}, pruner {calibrated.pruner}: {len(calibrated)} devices"
    )
    return figure

"""From what a warm-up showed to constants of the bound, of three kinds (see `jointopt.study.calibration`)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy.optimize import nnls

from jointopt.federated.warmup import MARGIN
from jointopt.pruning import DistortionCurve
from jointopt.study.walk import Walk
from jointopt.system import FloatArray

__all__ = ["KINDS", "bound_constants", "unbiased_constants"]

KINDS = ("typical", "device", "worst")
_LEAST = 1e-12
"""Constants that must be above 0 are at least this."""


def bound_constants(
    walk: Walk, means: Mapping[str, Any], kind: str, *, walked: float, learning_rate: float, rounds: int
) -> dict[str, Any]:
    """Return the fields of `jointopt.system.Bound`.

    Parameters
    ----------
    walk : Walk
        The warm-up, of step size `walked`.
    means : mapping
        Values of the estimates by name.
    kind : str
        One of `KINDS`.
    learning_rate, rounds
        What they are for.
    """
    if kind == "worst":
        return _worst(walk)
    norm = float(means["weight_norm_squared"])
    curve = DistortionCurve(walk.ratios, np.asarray(means["removed"])).bound()
    typical = kind == "typical"
    error = np.asarray(means["pruning_error_round" if typical else "pruning_error_device"])
    # Gamma counts every error twice (Young), so half of what was measured makes the term what was measured
    smooth, mask = _fit_pruning(walk.ratios, curve, error * (0.5 if typical else 1.0))
    out: dict[str, Any] = {
        "smoothness": max(math.sqrt(smooth / norm) if norm > 0.0 else 0.0, _LEAST),
        "weight_norm_squared": norm,
        "mask_energy": mask,
        # with the slope regressed A passes 1 at small losses already: its mean goes into the offset instead
        "gradient_slope": 0.0,
        "gradient_offset": float(means["gradient_offset"] + means["gradient_slope"] * means["dense_gradient"]),
        "quantizer_range": np.maximum(np.asarray(means["quantizer_range"]), _LEAST),
        "gradient_variance": float(means["gradient_variance"]),
        "initial_gap": max(_initial_gap(walk, walked, learning_rate, rounds), _LEAST),
        **curve,
    }
    if typical:
        steep = learning_rate * np.maximum(np.asarray(means["curvature"]), 0.0)
        out["quantizer_range"] = np.maximum(out["quantizer_range"] * np.sqrt(0.5 * steep[0] * walk.weight), _LEAST)
        out["gradient_variance"] *= 0.5 * float(steep[1] * np.sum(walk.weight**2))
        offset, slope = np.asarray(means["transmission"])
        out["gradient_offset"] = float(steep[2] * offset) / 8.0
        out["gradient_slope"] = float(steep[2] * slope) / 8.0
    return out


def unbiased_constants(
    walk: Walk, means: Mapping[str, Any], *, skew: FloatArray, walked: float, learning_rate: float, rounds: int
) -> dict[str, Any]:
    """Return typical constants of theorem 2 (theory 2b): fields of `Bound`, and `gradient_bound` of `Augmentation`.

    There noise counts by L eta and pruning by L^2 D^2. L is the curvature along the noise of devices that are missing;
    the other noises and D^2 are scaled to what was measured of them. Gamma counts 3 Z_u^2 for what one device's
    gradient is away from the mean one: G is such that this is what was measured.

    Parameters
    ----------
    walk, means, walked, learning_rate, rounds
        As for `bound_constants`.
    skew : array, shape [devices]
        ||P_u - mix||_1 of the devices' class mixes.
    """
    out = bound_constants(walk, means, "typical", walked=walked, learning_rate=learning_rate, rounds=rounds)
    curvature = np.maximum(np.asarray(means["curvature"]), 0.0)
    smooth = max(min(float(curvature[2]), 1.0 / learning_rate), _LEAST)
    square = walk.weight**2
    apart = float(np.sum(walk.apart.mean(axis=0) * square))
    skewed = float(np.sum(skew**2 * square))
    return {
        **out,
        "gradient_slope": 0.0,
        "gradient_offset": float(means["gradient_offset"]),
        "smoothness": smooth,
        # only the product with L^2 counts
        "weight_norm_squared": out["smoothness"] ** 2 * out["weight_norm_squared"] / smooth**2,
        "quantizer_range": np.maximum(np.asarray(means["quantizer_range"]) * math.sqrt(curvature[0] / smooth), _LEAST),
        "gradient_variance": float(means["gradient_variance"]) * float(curvature[1]) / smooth,
        "gradient_bound": math.sqrt(apart / (3.0 * skewed)) if skewed > 0.0 else 0.0,
    }


def _worst(walk: Walk) -> dict[str, Any]:
    steepness = max(float(walk.steepness.max()), float(walk.moved.max()))
    return {
        "smoothness": max(MARGIN * steepness, _LEAST),
        "weight_norm_squared": MARGIN * float(walk.norm.max()),
        "mask_energy": float((walk.hidden / walk.ratios[:, None]).max()),
        "gradient_offset": float(walk.dense.max()),
        "gradient_slope": 0.0,
        "quantizer_range": np.maximum(walk.span.max(axis=0), _LEAST),
        "gradient_variance": float(walk.variance.max()),
        "initial_gap": max(float(walk.loss[0]), _LEAST),
        **DistortionCurve(walk.ratios, walk.removed.max(axis=0)).bound(),
    }


def _initial_gap(walk: Walk, walked: float, eta: float, rounds: int) -> float:
    """Delta_0 for which 2 Delta_0/(eta T) is the warm-up's mean ||grad F||^2 over as long a way, eta T."""
    way = np.arange(walk.rounds + 1) * walked
    # the last gradient goes on: an upper estimate where gradients fall
    places = np.minimum(np.arange(rounds) * eta, way[-1])
    return 0.5 * eta * float(np.interp(places, way, walk.square).sum())


def _fit_pruning(ratios: FloatArray, curve: Mapping[str, Any], error: FloatArray) -> tuple[float, float]:
    """L^2 D^2 and M^2, at least 0, with which L^2 D^2 e(r) + M^2 r is nearest to an error, relative to it."""
    removed = np.interp(ratios, curve["pruning_curve_ratio"], curve["pruning_curve_error"])
    good = error > 0.0
    if not np.any(good):
        return 0.0, 0.0
    found, _ = nnls(np.stack([removed, ratios], axis=1)[good] / error[good, None], np.ones(int(good.sum())))
    return float(found[0]), float(found[1])

"""What the analysis of co-inference claims, measured on a real network (theory 4b, 4e, 4g).

Whether weights are Laplace; what magnitude pruning removes from them; how far the output moves, against the bound
and the surrogate; and what that does to the task.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from scipy import stats
from scipy.special import ndtr
from torch import Tensor
from torch.func import functional_call, jvp

from jointopt.errors import InputError, is_whole
from jointopt.inference.split import DenseBlock, SplitNetwork, check_ratio

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "RATIOS",
    "OutputDistortion",
    "Sensitivity",
    "WeightFit",
    "distortion_curve",
    "judge",
    "laplace_fit",
    "output_distortion",
    "quality",
    "run_batches",
    "sensitivity",
    "unit_inputs",
]

RATIOS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Pruning ratios measured by default."""

_BATCH = 64


def _ratios(ratios: Sequence[float]) -> list[float]:
    if np.ndim(ratios) != 1 or len(ratios) == 0:
        raise InputError(f"ratios: needs a list of at least one pruning ratio, found {ratios!r}")
    return [check_ratio(float(ratio), f"ratios[{i}]") for i, ratio in enumerate(ratios)]


# -- weights -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class WeightFit:
    """How well Laplace and Gaussian fit the weights of each prunable matrix, and all together.

    Attributes
    ----------
    names
        Block and matrix; the last is "pooled".
    count
        Weights of each, shape [matrices + 1].
    weight_rate
        lambda^ = 1 / mean |w|.
    ks_laplace, ks_gaussian
        Kolmogorov-Smirnov distance to the Laplace distribution around 0 with that rate, and to the Gaussian with
        the weights' mean and variance.
    """

    names: tuple[str, ...]
    count: np.ndarray
    weight_rate: np.ndarray
    ks_laplace: np.ndarray
    ks_gaussian: np.ndarray

    @property
    def closer_to_gaussian(self) -> int:
        """Number of matrices (without the pooled weights) that are closer to a Gaussian."""
        return int((self.ks_gaussian < self.ks_laplace)[:-1].sum())

    def to_frame(self) -> pd.DataFrame:
        """Return one row for each matrix, and the pooled weights last."""
        import pandas as pd

        columns = {key: getattr(self, key) for key in ("count", "weight_rate", "ks_laplace", "ks_gaussian")}
        return pd.DataFrame(columns, index=pd.Index(self.names, name="matrix"))


def _ks(ordered: np.ndarray, cdf: np.ndarray) -> float:
    """Largest distance between the step function of a sorted sample and a distribution function."""
    n = len(ordered)
    steps = np.arange(1, n + 1) / n
    return float(max(np.max(steps - cdf), np.max(cdf - (steps - 1.0 / n))))


def _fit(weights: np.ndarray) -> tuple[float, float, float]:
    ordered = np.sort(weights.astype(np.float64))
    mean_magnitude = float(np.abs(ordered).mean())
    deviation = float(ordered.std())
    if mean_magnitude == 0.0 or deviation == 0.0:
        raise InputError("laplace_fit: all weights of a matrix are the same; there is no distribution to fit")
    tail = 0.5 * np.exp(-np.abs(ordered) / mean_magnitude)
    laplace = np.where(ordered < 0, tail, 1.0 - tail)
    gaussian = ndtr((ordered - ordered.mean()) / deviation)
    return 1.0 / mean_magnitude, _ks(ordered, laplace), _ks(ordered, gaussian)


def laplace_fit(network: SplitNetwork) -> WeightFit:
    """Fit Laplace and Gaussian distributions to the prunable weights (4b [C]; 4f: check before trusting lambda^).

    Raises
    ------
    InputError
        All weights of a matrix are equal.
    """
    named = [(f"{i}.{name}", weight.flatten().numpy()) for i, name, weight in network.prunable()]
    named.append(("pooled", np.concatenate([weights for _, weights in named])))
    fits = np.array([_fit(weights) for _, weights in named])
    return WeightFit(
        tuple(name for name, _ in named), np.array([w.size for _, w in named]), fits[:, 0], fits[:, 1], fits[:, 2]
    )


def distortion_curve(network: SplitNetwork, ratios: Sequence[float] | None = None) -> dict[str, np.ndarray]:
    """What magnitude pruning removes from these weights, exactly, by sorting each matrix (4g [D]).

    Parameters
    ----------
    network
        The network to be pruned, every matrix with the same ratio.
    ratios
        Points of the curve, in [0, 1), in any order; by default 0, .01, ..., .99. Between points the curve is
        convex up to one weight, so that a straight line does not lie below it.

    Returns
    -------
    dict
        ``curve_ratio`` (from 0) and ``curve_distortion``: the L1 norm removed per weight in units of mean |w|, for
        ``network.section(distortion="measured", **distortion_curve(network))``. Points that remove nothing more
        than the one before are left out, as the curve has to increase.

    Raises
    ------
    InputError
        A ratio is out of range, or all weights are 0.
    """
    points = sorted({0.0, *_ratios(np.linspace(0.0, 0.99, 100).tolist() if ratios is None else ratios)})
    removed, total = np.zeros(len(points)), 0.0
    for _, _, weight in network.prunable():
        sums = np.concatenate([[0.0], np.cumsum(np.sort(weight.abs().flatten().numpy().astype(np.float64)))])
        total += sums[-1]
        places = np.array(points) * (len(sums) - 1)
        # the same rounding as the pruner's, which takes whole weights only
        removed += sums[np.floor(places + np.maximum(1e-9, 4 * np.finfo(np.float64).eps * places)).astype(np.int64)]
    if total == 0.0:
        raise InputError(f"{network.name}: all weights are 0; there is no distortion to measure")
    values = removed / total
    keep = [0]
    for i in range(1, len(points)):
        if values[i] > values[keep[-1]]:
            keep.append(i)
    return {"curve_ratio": np.array(points)[keep], "curve_distortion": values[keep]}


# -- outputs -----------------------------------------------------------------------------------


def _batches(inputs: Tensor) -> Iterator[Tensor]:
    yield from inputs.split(_BATCH)


def run_batches(network: SplitNetwork, inputs: Tensor) -> Tensor:
    """Run the whole network on inputs of any number, some at a time; float64 [N, ...]."""
    inputs = network.check_inputs(inputs)
    return torch.cat([network.run(part).double() for part in _batches(inputs)])


def unit_inputs(inputs: Tensor) -> Tensor:
    """Scale inputs with ||x||_1 above 1 down to 1, as 4b assumes (||x||_1^2 <= 1)."""
    norms = inputs.flatten(1).abs().sum(1).clamp(min=1.0)
    return inputs / norms.reshape(-1, *[1] * (inputs.ndim - 1))


@dataclass(frozen=True)
class Sensitivity:
    """H = max ||df/dw_i||_1 over weights and calibration inputs (4g).

    Attributes
    ----------
    value
        The largest found.
    estimator
        ``"exact"``: the maximum over all weights. ``"screened"``: a lower estimate, exact for the weights that
        random projections single out.
    inputs
        Number of calibration inputs.
    """

    value: float
    estimator: Literal["exact", "screened"]
    inputs: int


def _chain_sensitivity(network: SplitNetwork, sample: Tensor) -> float:
    """The exact maximum for one input of a chain of linear layers.

    df/dW_ij = J_i h_j with h the layer's input and J_i the derivative of f by its i-th sum, so the largest L1 norm
    is max_i ||J_i||_1 max_j |h_j| [D].
    """
    states, gates = [], []
    state: Tensor = sample.double()
    layers: list[DenseBlock] = [block for block in network.blocks if isinstance(block, DenseBlock)]
    for block in layers:
        states.append(float(state.abs().max()))
        bias = block.linear.bias
        state = torch.nn.functional.linear(state, block.linear.weight.double(), None if bias is None else bias.double())
        gates.append((state > 0).double() if block.relu else torch.ones_like(state))
        state = state * gates[-1]
    most = 0.0
    # derivative of f by what layer l puts out, from the last layer back
    slope = torch.eye(state.numel(), dtype=torch.float64)
    for block, largest, gate in zip(reversed(layers), reversed(states), reversed(gates), strict=True):
        slope = slope * gate.reshape(1, -1)
        most = max(most, float(slope.abs().sum(0).max()) * largest)
        slope = slope @ block.linear.weight.double()
    return most


def _screened_sensitivity(
    network: SplitNetwork, sample: Tensor, probes: int, candidates: int, generator: torch.Generator
) -> float:
    """A lower estimate for one input of any network.

    E (v . df/dw_i)^2 = ||df/dw_i||_2^2 for standard normal v: some backward passes rank all weights. For those
    ranked highest df/dw_i is computed by a forward-mode pass each.
    """
    names, tensors = [], []
    for i in range(len(network)):
        for name, weight in network.block(i).matrices().items():
            names.append(f"blocks.{i}.{name}")
            tensors.append(weight.detach().clone().requires_grad_())

    def outputs(parameters: dict[str, Tensor]) -> Tensor:
        return functional_call(network, parameters, (sample,)).flatten()

    # parameters that are not named are taken from the network itself
    full = dict(zip(names, tensors, strict=True))
    result = outputs(full)
    scores = [torch.zeros_like(t) for t in tensors]
    for number in range(probes):
        v = torch.randn(result.shape, generator=generator, dtype=result.dtype)
        gradients = torch.autograd.grad(result, tensors, v, retain_graph=number + 1 < probes)
        for score, gradient in zip(scores, gradients, strict=True):
            score += gradient.square()
    best: list[tuple[float, int, int]] = []
    for t, score in enumerate(scores):
        top = torch.topk(score.flatten(), min(candidates, score.numel()))
        best += [(float(v), t, int(j)) for v, j in zip(top.values, top.indices, strict=True)]
    best.sort(reverse=True)
    most = 0.0
    for _, t, place in best[:candidates]:
        tangent = torch.zeros_like(tensors[t])
        tangent.view(-1)[place] = 1.0
        name = names[t]
        column = jvp(lambda w, name=name: outputs({name: w}), (tensors[t].detach(),), (tangent,))[1]
        most = max(most, float(column.detach().abs().sum(dtype=torch.float64)))
    return most


def sensitivity(
    network: SplitNetwork,
    inputs: Tensor,
    *,
    probes: int = 8,
    candidates: int = 16,
    seed: int = 0,
    screen: bool = False,
) -> Sensitivity:
    """Measure H = max_i ||df/dw_i||_1, the constant of the surrogate H ||W - W^||_1 (4b [C], 4g).

    Exact for chains of linear layers; else, or with `screen`, a lower estimate: per input, `probes` random
    projections rank all weights by the L2 norm of their derivative, and the `candidates` highest get the exact L1
    norm.

    Parameters
    ----------
    network
        The dense network.
    inputs
        Calibration inputs; all are used, one at a time.
    probes, candidates, seed
        Of the screening.
    screen
        Screen although the exact value is known.
    """
    for name, value in (("probes", probes), ("candidates", candidates)):
        if not (is_whole(value) and value >= 1):
            raise InputError(f"sensitivity: {name} must be whole and at least 1, found {value!r}")
    inputs = network.check_inputs(inputs)
    exact = not screen and all(isinstance(block, DenseBlock) for block in network.blocks)
    generator = torch.Generator().manual_seed(int(seed))
    most = 0.0
    for sample in inputs:
        if exact:
            with torch.no_grad():
                most = max(most, _chain_sensitivity(network, sample))
        else:
            found = _screened_sensitivity(network, sample[None], probes, candidates, generator)
            most = max(most, found)
    return Sensitivity(most, "exact" if exact else "screened", len(inputs))


@dataclass(frozen=True)
class OutputDistortion:
    """How far pruning moves the output, and how far the analysis allows it to, arrays of shape [ratios].

    Attributes
    ----------
    ratios
        Pruning ratios.
    parameter
        ||W - W^||_1, entry sum over all prunable matrices.
    mean, worst
        Mean and maximum of ||f(x, W) - f(x, W^)||_1 over the inputs.
    bound
        sum_l A^(l) ||W^(l) - W^^(l)||_1 (4b, proposition [C]); NaN where it does not apply.
    induced_bound
        The same telescope with the induced norm of the differences and of the pruned matrices behind them, which
        is never above `bound` [D].
    sensitivity
        H, or None when not asked for.
    """

    ratios: np.ndarray
    parameter: np.ndarray
    mean: np.ndarray
    worst: np.ndarray
    bound: np.ndarray
    induced_bound: np.ndarray
    sensitivity: Sensitivity | None = None

    @property
    def surrogate(self) -> np.ndarray:
        """H ||W - W^||_1; NaN without H."""
        return self.parameter * (np.nan if self.sensitivity is None else self.sensitivity.value)

    def fitted(self, at: float = 0.5) -> np.ndarray:
        """Worst distortion over what a constant fitted at one of the ratios allows; above 1 where it is violated."""
        where = np.flatnonzero(np.isclose(self.ratios, at, rtol=0, atol=1e-12))
        if not where.size or self.parameter[where[0]] == 0.0:
            raise InputError(f"fitted: ratio {at!r} was not measured; measured: {self.ratios.tolist()}")
        constant = self.worst[where[0]] / self.parameter[where[0]]
        with np.errstate(invalid="ignore"):
            return self.worst / (constant * self.parameter)

    def to_frame(self) -> pd.DataFrame:
        """Return one row for each ratio."""
        import pandas as pd

        names = ("parameter", "mean", "worst", "bound", "induced_bound", "surrogate")
        return pd.DataFrame(
            {name: getattr(self, name) for name in names}, index=pd.Index(self.ratios, name="pruning_ratio")
        )


def _induced(weight: Tensor) -> float:
    return float(weight.abs().sum(0, dtype=torch.float64).max())


def _induced_bound(network: SplitNetwork, pruned: SplitNetwork) -> float:
    """sum_l prod_{j<l} ||W_j|| ||W_l - W^_l|| prod_{k>l} ||W^_k||, all norms induced by the 1-norm."""
    pairs = [(w, v) for (_, _, w), (_, _, v) in zip(network.prunable(), pruned.prunable(), strict=True)]
    before = np.cumprod([1.0] + [_induced(w) for w, _ in pairs])[:-1]
    after = np.cumprod([1.0] + [_induced(v) for _, v in reversed(pairs)])[:-1][::-1]
    return float(sum(b * _induced(w - v) * a for b, (w, v), a in zip(before, pairs, after, strict=True)))


def output_distortion(
    network: SplitNetwork,
    inputs: Tensor,
    ratios: Sequence[float] = RATIOS,
    *,
    calibration: int = 0,
    seed: int = 0,
) -> OutputDistortion:
    """Measure the output distortion of magnitude pruning and compare it with bound and surrogate (4e).

    Parameters
    ----------
    network
        The dense network.
    inputs
        A batch of inputs. For chains of linear layers those with ||x||_1 above 1 are scaled down to 1, as the bound
        assumes.
    ratios
        Pruning ratios, in [0, 1).
    calibration
        Number of the inputs, spread over them, for which H is measured (`sensitivity`); 0 for none.
    seed
        Of that measurement.

    Returns
    -------
    OutputDistortion
        The bound is NaN for networks with attention. It is computed for chains with biases too, where nothing
        guarantees it: so one can see it fail.
    """
    points = _ratios(ratios)
    inputs = network.check_inputs(inputs)
    chain = all(isinstance(block, DenseBlock) for block in network.blocks)
    if chain:
        inputs = unit_inputs(inputs)
    if not (is_whole(calibration) and 0 <= calibration <= len(inputs)):
        raise InputError(f"calibration: must be whole, 0 to {len(inputs)} inputs, found {calibration!r}")
    dense = run_batches(network, inputs)
    norms = np.array([_induced(w) for _, _, w in network.prunable()])
    amplification = np.array([np.prod(np.delete(norms, i)) for i in range(len(norms))]) if chain else np.array([np.nan])
    rows = []
    for ratio in points:
        pruned = network.prune(ratio)
        moved = (run_batches(pruned, inputs) - dense).abs().flatten(1).sum(1)
        change = network.parameter_distortion(pruned)
        rows.append(
            (
                change.sum(),
                float(moved.mean()),
                float(moved.max()),
                float(np.sum(amplification * change)) if chain else math.nan,
                _induced_bound(network, pruned) if chain else math.nan,
            )
        )
    found = None
    if calibration:
        picked = inputs[torch.linspace(0, len(inputs) - 1, calibration).round().long()]
        found = sensitivity(network, picked, seed=seed)
    parameter, mean, worst, bound, induced = np.array(rows).T
    return OutputDistortion(np.array(points), parameter, mean, worst, bound, induced, found)


# -- quality -----------------------------------------------------------------------------------


def _cosines(outputs: Tensor) -> np.ndarray:
    rows = torch.nn.functional.normalize(outputs.flatten(1), dim=1)
    upper = torch.triu_indices(len(rows), len(rows), offset=1)
    return (rows @ rows.T)[upper[0], upper[1]].numpy()


def judge(network: SplitNetwork, inputs: Tensor, outputs: Tensor, dense: Tensor) -> dict[str, float]:
    """Quality of outputs on the network's task.

    Returns
    -------
    dict
        Reconstruction: ``mse`` against the inputs and ``psnr`` [dB] for values in [0, 1]. Similarity: ``spearman``,
        the rank correlation of all pairwise cosines with those of the dense outputs (4g).
    """
    if network.task == "similarity":
        if len(outputs) < 3:
            raise InputError(f"{network.name}: similarity needs at least 3 inputs, found {len(outputs)}")
        correlation: Any = stats.spearmanr(_cosines(outputs), _cosines(dense))
        return {"spearman": float(correlation.statistic)}
    mse = float((outputs.flatten(1) - inputs.flatten(1).double()).square().mean())
    return {"mse": mse, "psnr": 10.0 * math.log10(1.0 / mse) if mse > 0 else math.inf}


def quality(network: SplitNetwork, inputs: Tensor, ratios: Sequence[float] = (0.0, *RATIOS)) -> pd.DataFrame:
    """Judge the network pruned to each ratio on inputs (`judge`); one row for each ratio."""
    import pandas as pd

    points = _ratios(ratios)
    inputs = network.check_inputs(inputs)
    dense = run_batches(network, inputs)
    rows = [judge(network, inputs, run_batches(network.prune(ratio), inputs), dense) for ratio in points]
    return pd.DataFrame(rows, index=pd.Index(points, name="pruning_ratio"))

"""The pruners of single weights by name, each a choice of score, allocation, schedule and hooks.

Options have the meaning that they have in the parts; every one that a preset does not name stays as the parts have it,
and `Pruner.with_` changes any part.
"""

from __future__ import annotations

from collections.abc import Callable

from jointopt.pruning.allocate import Erk, Global, Rows, Uniform
from jointopt.pruning.candidates import Candidates
from jointopt.pruning.growth import ProgressiveGrowth, Regrow
from jointopt.pruning.patterns import Pattern
from jointopt.pruning.pq import PQ
from jointopt.pruning.pruner import Pruner, pruner, register
from jointopt.pruning.rate_distortion import RateDistortion
from jointopt.pruning.recovery import Guidance, Rewind, with_reinit
from jointopt.pruning.schedules import Cubic, Geometric, OneShot
from jointopt.pruning.scores import Exploration, Magnitude, Random, Snip, Taylor, Wanda
from jointopt.pruning.synflow import SynFlow

__all__: list[str] = []


def _magnitude(min_keep: int = 1) -> Pruner:
    """Global magnitude; every layer keeps `min_keep` weights."""
    return Pruner("magnitude", Magnitude(), Global(min_keep))


def _random(min_keep: int = 1) -> Pruner:
    """Random weights over the whole network."""
    return Pruner("random", Random(), Global(min_keep))


def _uniform(min_keep: int = 1) -> Pruner:
    """Magnitude, the same share of every layer."""
    return Pruner("uniform", Magnitude(), Uniform(min_keep))


def _erk(at: int = 1, min_keep: int = 1) -> Pruner:
    """Random weights at Erdos-Renyi-Kernel densities, chosen once."""
    return Pruner("erk", Random(), Erk(min_keep), schedule=OneShot(at), scope="global", persist=True)


def _gmp(start: int = 1, end: int | None = None, every: int = 1, min_keep: int = 1) -> Pruner:
    """Gradual global magnitude pruning on the cubic schedule (Zhu & Gupta, 2017)."""
    return Pruner("gmp", Magnitude(), Global(min_keep), schedule=Cubic(start, end, every), scope="global", persist=True)


def _granet(start: int = 1, end: int | None = None, every: int = 1, rate: float = 0.5, min_keep: int = 1) -> Pruner:
    """Gradual magnitude pruning that grows weights back after each cut (Liu et al., 2021)."""
    return Pruner(
        "granet",
        Magnitude(),
        Global(min_keep),
        schedule=Cubic(start, end, every),
        hooks=(Regrow(rate, end),),
        scope="global",
        persist=True,
    )


def _imp(every: int = 1, rate: float = 0.2, min_keep: int = 1) -> Pruner:
    """Iterative magnitude pruning, weights back to the initial ones after each cut."""
    return Pruner(
        "imp",
        Magnitude(),
        Global(min_keep),
        schedule=Geometric(every, rate),
        hooks=(Rewind(0),),
        scope="global",
        persist=True,
    )


def _imp_rewind(to: int = 1, every: int = 2, rate: float = 0.2, min_keep: int = 1) -> Pruner:
    """Iterative magnitude pruning, weights back to those after round `to`."""
    return _imp(every, rate, min_keep).with_(name="imp-rewind", hooks=(Rewind(to),))


def _snip(at: int = 1, min_keep: int = 1) -> Pruner:
    """Connection sensitivity, global, cut once."""
    return Pruner("snip", Snip(), Global(min_keep), schedule=OneShot(at), scope="global", persist=True)


def _synflow(steps: int = 100, density: float = 0.01, at: int = 1, min_keep: int = 1) -> Pruner:
    """Synaptic flow without data, cut once."""
    return Pruner(
        "synflow", SynFlow(steps, density), Global(min_keep), schedule=OneShot(at), scope="global", persist=True
    )


def _taylor(min_keep: int = 1) -> Pruner:
    """Squared first-order effect, global."""
    return Pruner("taylor", Taylor(), Global(min_keep))


def _wanda(min_keep: int = 1) -> Pruner:
    """Weights times input norms, compared within output rows."""
    return Pruner("wanda", Wanda(), Rows(min_keep))


def _gblm(alpha: float = 100.0, min_keep: int = 1) -> Pruner:
    """Wanda with gradients blended in."""
    return Pruner("gblm", Wanda(alpha), Rows(min_keep))


def _exploration(guidance: bool = False, at: int = 1, min_keep: int = 1) -> Pruner:
    """Keep what explorers of the loss landscape moved most; with guidance, steer gradients by it too."""
    return Pruner(
        "exploration",
        Exploration(),
        Global(min_keep),
        schedule=OneShot(at),
        hooks=(Guidance(),) if guidance else (),
        scope="global",
        persist=True,
    )


def _rd_dp(levels: int = 8, buckets: int = 256, min_keep: int = 1) -> Pruner:
    """Magnitude within layers, ratios of layers by dynamic programming over measured distortion."""
    return Pruner("rd-dp", Magnitude(), RateDistortion(levels, buckets, min_keep))


def _pq_index(
    p: float = 0.5,
    q: float = 1.0,
    eta: float = 0.0,
    gamma: float = 1.0,
    beta: float = 0.9,
    max_ratio: float = 0.95,
    within: str = "all",
    min_keep: int = 1,
) -> Pruner:
    """Magnitude, as much as the PQ index allows."""
    rule = PQ(p, q, eta, gamma, beta, max_ratio, within, min_keep)
    return Pruner("pq-index", Magnitude(), rule, scope="global", persist=True)


def _pattern(m: int = 4) -> Pruner:
    """Magnitude, N of every M consecutive weights."""
    return Pruner("n:m", Magnitude(), Pattern(m))


def _fedtiny(
    count: int = 8, spread: float = 0.5, seed: int = 0, every: int = 1, stop: int | None = None, min_keep: int = 1
) -> Pruner:
    """Candidates chosen by devices' losses, then swapping weights layer by layer."""
    return Pruner(
        "fedtiny",
        Magnitude(),
        Candidates(count, spread, seed, min_keep),
        hooks=(ProgressiveGrowth(every, stop),),
        scope="global",
        persist=True,
    )


def _reinit(base: str = "magnitude", at: int = 1) -> Pruner:
    """Control arm of another pruner: its masks, cut once, with weights drawn anew."""
    return with_reinit(pruner(base)).with_(name="reinit", schedule=OneShot(at), scope="global", persist=True)


_PRESETS: dict[str, Callable[..., Pruner]] = {
    "magnitude": _magnitude,
    "random": _random,
    "uniform": _uniform,
    "erk": _erk,
    "gmp": _gmp,
    "granet": _granet,
    "imp": _imp,
    "imp-rewind": _imp_rewind,
    "snip": _snip,
    "synflow": _synflow,
    "taylor": _taylor,
    "wanda": _wanda,
    "gblm": _gblm,
    "exploration": _exploration,
    "rd-dp": _rd_dp,
    "pq-index": _pq_index,
    "n:m": _pattern,
    "fedtiny": _fedtiny,
    "reinit": _reinit,
}

for _name, _factory in _PRESETS.items():
    register(_name, _factory)

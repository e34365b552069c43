"""Images from a Gaussian for each class in the leading principal components: light, without training."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jointopt.augmentation.base import Callback, Generator
from jointopt.augmentation.split import Source
from jointopt.data import Dataset
from jointopt.errors import InputError, is_whole

__all__ = ["COMPONENTS", "GaussianGenerator"]

COMPONENTS = 40
"""Principal components kept by default, where the data have so many [S]."""

_JITTER = 1e-6  # relative to the mean variance; makes the factor of a singular covariance exist


class GaussianGenerator(Generator):
    """x = mean + basis (m_c + F_c z), z standard normal, clipped to [0, 1].

    F_c F_c' is the covariance of class c in the components, shrunk towards the one pooled over classes with the
    weight of as many samples as there are components [K, Friedman 1989, regularized discriminant analysis]:
    (n_c S_c + k S) / (n_c + k). So a class of few samples has a usable one.
    """

    name: ClassVar[str] = "gaussian"
    options: ClassVar[tuple[str, ...]] = ("share", "seed", "components")

    def __init__(self, source: Source, settings: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        super().__init__(source, settings)
        size, k = int(np.prod(source.shape)), int(settings["components"])
        shapes = {
            "mean": (size,),
            "basis": (k, size),
            "centres": (source.classes, k),
            "factors": (source.classes, k, k),
        }
        for name, shape in shapes.items():
            value = tensors[name]
            if value.dtype != torch.float32 or tuple(value.shape) != shape or not bool(torch.isfinite(value).all()):
                raise ValueError(f"{name} must be finite float32 of shape {shape}, found {tuple(value.shape)}")
        # another layout in memory would change the last bits of products
        self._parts = {name: tensors[name].contiguous() for name in shapes}

    @property
    def components(self) -> int:
        """Principal components kept."""
        return len(self._parts["basis"])

    @property
    def operations_per_sample(self) -> float:
        """Two products of a matrix and a vector, two sums of vectors."""
        k, size = self._parts["basis"].shape
        return float(2 * k * k + k + 2 * k * size + size)

    @classmethod
    def plan(cls, dataset: Dataset, **options: Any) -> dict[str, Any]:
        """Settings of a fit, see `fit`."""
        return _plan(dataset, **options)[0]

    @classmethod
    def make(
        cls,
        dataset: Dataset,
        *,
        checkpoint: str | os.PathLike[str] | None = None,
        progress: bool = False,
        callback: Callback | None = None,
        **options: Any,
    ) -> Self:
        """Fit, see `fit`; takes seconds, so there are no checkpoints, bar or callback."""
        settings, source = _plan(dataset, **options)
        inputs, labels = source.samples(dataset, f"generator '{cls.name}'")
        tensors = _fit(inputs.flatten(1).double().numpy(), labels.numpy(), source.classes, settings["components"])
        return cls(source, settings, {key: torch.from_numpy(v.astype(np.float32)) for key, v in tensors.items()})

    @classmethod
    def fit(cls, dataset: Dataset, share: float = 1.0, seed: int = 0, components: int | None = None) -> Self:
        """Fit to the public share of a data set.

        Parameters
        ----------
        dataset
            What to learn from; test samples are not touched.
        share, seed
            Of `public_split`.
        components
            Principal components kept, 1 to the number of values of one input; by default up to `COMPONENTS`.

        Raises
        ------
        InputError
            An argument is out of range, or a class has no sample to learn from.
        """
        return cls.make(dataset, share=share, seed=seed, components=components)

    def _tensors(self) -> dict[str, Tensor]:
        return self._parts

    @classmethod
    def _restore(cls, source: Source, settings: dict[str, Any], tensors: dict[str, Tensor]) -> Self:
        return cls(source, settings, tensors)

    @property
    def _noise_size(self) -> int:
        return self.components

    def _generate(self, labels: Tensor, noise: Tensor, tell: Callable[[int], None]) -> Tensor:
        parts = self._parts
        inner = parts["centres"][labels] + torch.einsum("nij,nj->ni", parts["factors"][labels], noise)
        return (parts["mean"] + inner @ parts["basis"]).reshape(-1, *self.shape)


def _plan(
    dataset: Dataset, share: float = 1.0, seed: int = 0, components: int | None = None
) -> tuple[dict[str, Any], Source]:
    where = "generator 'gaussian'"
    source = Source.of(dataset, share, seed, where)
    size = int(np.prod(source.shape))
    if components is None:
        components = min(COMPONENTS, size)
    if not (is_whole(components) and 1 <= components <= size):
        raise InputError(f"{where}: components must be whole, 1 to {size}, found {components!r}")
    return {"kind": "gaussian", "source": source.plain(), "components": int(components)}, source


def _fit(x: NDArray[Any], labels: NDArray[Any], classes: int, k: int) -> dict[str, NDArray[Any]]:
    """Mean [d], basis [k, d], centres [C, k] and factors [C, k, k] of inputs [N, d]."""
    mean = x.mean(0)
    x = x - mean
    _, vectors = np.linalg.eigh(x.T @ x / len(x))
    basis = vectors[:, ::-1][:, :k].T
    # an eigenvector's sign is the library's whim
    basis = basis * np.sign(basis[np.arange(k), np.abs(basis).argmax(1)])[:, None]
    inner = x @ basis.T
    centres = np.stack([inner[labels == c].mean(0) for c in range(classes)])
    spread = inner - centres[labels]
    pooled = spread.T @ spread / len(x)
    factors = []
    for c in range(classes):
        own = spread[labels == c]
        covariance = (own.T @ own + k * pooled) / (len(own) + k)
        covariance += (_JITTER * np.trace(covariance) / k + 1e-12) * np.eye(k)
        factors.append(np.linalg.cholesky(covariance))
    return {"mean": mean, "basis": basis, "centres": centres, "factors": np.stack(factors)}

"""Tensors behind NumPy's functions: values of NumPy, derivatives of torch."""

import numpy as np
import pytest
import torch

from jointopt.arithmetic.differentiable import Differentiable, unwrapped
from jointopt.errors import InputError
from jointopt.models import special

X = np.array([0.1, 0.5, 1.1, 2.0, 3.5])
Y = np.array([3.0, 0.25, 0.9, 7.0, 2.2])

FUNCTIONS = {
    "operators": lambda x, y: (2.0 * x + y / 3.0 - x * y) / (1.0 + x) - (-y) + 1.0 / x + 2.0**y - (1.0 - x) ** 2,
    "elementary": lambda x, y: np.exp(-x) + np.expm1(x) + np.log(y) + np.log1p(x) + np.sqrt(x) + np.log2(y),
    "kinks": lambda x, y: np.maximum(x, y) - np.minimum(x, 1.0) + abs(x - y) + np.clip(y, 0.5, 2.0),
    "choice": lambda x, y: np.where(x > y, x, 2.0 * y) + np.where((x < 1.0) | ~(y >= 2.0), x, 0.0),
    "numpy first": lambda x, y: X * x + np.float64(2.0) * y + np.power(x, 3),
    "sums": lambda x, y: np.sum(x * y, axis=-1) + x.sum() + np.mean(y) + np.max(x) - np.min(y),
    "shapes": lambda x, y: np.sum(x[..., None] * y, axis=0) + np.concatenate([x[:2], y[2:]]),
    "filled": lambda x, y: np.zeros_like(x) + np.ones_like(y) * np.square(y) + np.stack([x, y]).sum(axis=0),
    "special": lambda x, y: special.rayleigh_rate(x) + special.rayleigh_packet_error(y),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_values_and_derivatives(name):
    function = FUNCTIONS[name]
    x, y = (torch.tensor(v, requires_grad=True) for v in (X, Y))
    found = function(Differentiable(x), Differentiable(y))
    expected = function(X, Y)
    assert np.shape(found) == np.shape(expected)
    np.testing.assert_allclose(np.asarray(found), expected, rtol=1e-13)
    slopes = torch.autograd.grad(found.tensor.sum(), (x, y), allow_unused=True)
    for k, slope in enumerate(slopes):
        for i in range(X.size):
            moved = [[X.copy(), Y.copy()] for _ in range(2)]
            moved[0][k][i] += 1e-6
            moved[1][k][i] -= 1e-6
            difference = (np.sum(function(*moved[0])) - np.sum(function(*moved[1]))) / 2e-6
            assert (0.0 if slope is None else float(slope[i])) == pytest.approx(difference, rel=1e-6, abs=1e-7)


def test_unknown_functions_are_named():
    x = Differentiable(torch.ones(2, dtype=torch.float64))
    with pytest.raises(InputError, match="interp"):
        np.interp(x, X, Y)
    with pytest.raises(InputError, match="add"):
        np.add.accumulate(x)
    assert unwrapped(x) is x.tensor

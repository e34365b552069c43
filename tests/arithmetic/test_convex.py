"""Expressions of cvxpy behind NumPy's functions, and the name of what is not convex."""

import cvxpy as cp
import numpy as np
import pytest
import torch

from jointopt.arithmetic.convex import Convex, first_non_dcp, perspective_log
from jointopt.arithmetic.elementwise import extended
from jointopt.errors import InputError
from jointopt.models import special

X = np.array([0.1, 0.5, 1.0, 2.0, 3.5])
Y = np.array([3.0, 0.25, 1.0, 7.0, 2.0])

CONVEX = {
    "affine": lambda x, y: 2.0 * x - y / 3.0 + X,
    "inverse": lambda x, y: X / x + np.exp(y) * X,
    "powers": lambda x, y: x**2 + 2.0**y + np.square(y) + x * x,
    "concave": lambda x, y: np.log1p(x) + np.sqrt(y) + perspective_log(x, y),
    "sums": lambda x, y: np.sum(np.exp(x), axis=-1) + y.sum() + np.maximum(x, Y).sum(),
    "choice": lambda x, y: np.where(X > 0.7, x, y),
    "shapes": lambda x, y: x[1:] + y[..., None][1:, 0] + np.zeros_like(x)[1:],
}


@pytest.mark.parametrize("name", CONVEX)
def test_convex_expressions_follow_numpy(name):
    x, y = cp.Variable(X.size, pos=True), cp.Variable(Y.size, nonneg=True)
    x.value, y.value = X, Y
    found, expected = CONVEX[name](Convex(x), Convex(y)), CONVEX[name](X, Y)
    assert np.shape(found) == np.shape(expected)
    np.testing.assert_allclose(found.expression.value, expected, rtol=1e-12)
    assert first_non_dcp(found) == ""


def test_perspective_log_in_other_arrays():
    expected = X * np.log1p(Y / X)
    np.testing.assert_allclose(perspective_log(X, Y), expected)
    np.testing.assert_allclose(perspective_log(torch.tensor(X), torch.tensor(Y)).numpy(), expected)
    np.testing.assert_allclose(np.asarray(perspective_log(extended(X), extended(Y))), expected)


def test_first_non_dcp_names_the_smallest_part():
    a, b = cp.Variable(pos=True, name="a"), cp.Variable(nonneg=True, name="b")
    x, y = Convex(a), Convex(b)
    assert first_non_dcp(3.0 * x + np.exp(x * y)) == "a * b"
    assert first_non_dcp(np.log(np.exp(x) + 1.0)).startswith("log(exp(a)")
    assert "b" in first_non_dcp(np.exp(x) - y**2, "convex")
    assert "a" not in first_non_dcp(np.exp(x) - y**2, "convex")
    assert first_non_dcp(np.log(x) + x, "convex") == "log(a)"
    assert first_non_dcp(np.exp(x) + x, "convex") == ""


def test_convex_refuses_choices_and_special_functions():
    x = Convex(cp.Variable(2))
    with pytest.raises(InputError, match="greater"):
        np.where(x > 1.0, x, 0.0)
    with pytest.raises(InputError, match="rayleigh_rate: cvxpy"):
        special.rayleigh_rate(x)
    with pytest.raises(InputError, match="floor"):
        np.floor(x)

"""The convergence bound, with constants estimated from the task, holds on a real training run."""

from __future__ import annotations

import numpy as np

import jointopt as jo


def test_measured_gradient_norm_stays_below_the_bound(capsys) -> None:
    rounds = 60
    task = jo.Task.make(data="digits", devices=20, alpha=0.5, seed=0)
    system = jo.System.from_task(task, seed=0)
    constants = jo.measure_constants(task, rounds=rounds, learning_rate=system.bound.learning_rate, seed=0)
    problem = jo.problems.LTFL(system.with_(**constants, rounds=rounds))
    assert problem.system.bound.learning_rate <= 1.0 / constants["smoothness"], "the theorem needs eta <= 1/L"
    result = jo.solve(problem)
    run = jo.train(result, task, rounds=rounds, measure_gradient_every=1, seed=0)
    norms = [row["gradient_norm_squared"] for row in run.rows]
    assert len(norms) == rounds
    bound = float(problem.evaluate(run.decision).quantities["bound"])
    assert np.mean(norms) <= bound
    # A2 and A3 as measured in the warm-up cover this run too: else the comparison above would prove nothing
    weights = run.weights[jo.federated.task.Losses(task).prunable.numpy()]
    assert float(np.sum(weights.astype(np.float64) ** 2)) <= constants["weight_norm_squared"]
    looser = bound / np.mean(norms)
    with capsys.disabled():
        print(f"\ndigits: mean ||grad F||^2 {np.mean(norms):.4g}, bound {bound:.4g}, {looser:.0f} times looser")

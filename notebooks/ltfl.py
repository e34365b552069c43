# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # LTFL: how far to prune, how many bits, at what power
#
# Twenty devices train one network together over a radio. Each round, each device prunes the model, computes a
# gradient, quantizes it and sends it; the packet may be lost. *Lightweight Federated Learning over Wireless Edge
# Networks* chooses each device's **pruning ratio**, **bits** and **transmit power** so that the convergence gap
# is least while delay and energy budgets hold. The gap used here is in the manner of that paper, derived anew and
# proved in the documentation; it is not a quotation.
#
# This notebook goes the whole way: a scenario, a decision with its certificate, the alternatives, and a training run
# on real data under each of them.

# %%
import jointopt as jo

# %% [markdown]
# ## 1. A scenario
#
# `Task` splits real data over devices (here scikit-learn's digits, unevenly: Dirichlet 0.5); `System.from_task` takes
# its true sample and parameter counts and samples the rest: processors, distances, channels, budgets.

# %%
task = jo.Task.make(data="digits", network="mlp", devices=20, alpha=0.5, seed=0)
system = jo.System.from_task(task, seed=0)
print(system)
print(f"delay budget {system.devices.delay_budget[0]:.3f} s for all;", end=" ")
energy = 1e3 * system.devices.energy_budget
print(f"energy budgets {energy.min():.2f} to {energy.max():.2f} mJ")

# %% [markdown]
# ## 2. The decision, and why it can be trusted
#
# `jo.solve` returns the global optimum with a lower bound that is proved, not sampled: `gap` is how far the value can
# at most be from the best possible.

# %%
problem = jo.problems.LTFL(system)
result = jo.solve(problem)
assert result.gap is not None and result.gap <= 1e-6
print(result.summary())

# %%
jo.plot.decision(result)

# %% [markdown]
# Which budget holds whom back? Between both budgets there is nothing to gain by power alone: more of it breaks the
# energy budget, less of it the delay budget.

# %%
print(problem.explain(result.decision))

# %% [markdown]
# ## 3. The alternatives
#
# The published procedure searches the powers by Bayesian optimization around the closed-form inner solution; its two
# closed forms can also be alternated, which stalls wherever a budget is active. The baselines drop one of the three
# levers, or choose the same for everybody.

# %%
methods = ["exact", "bayesian", "alternating", "uniform", "random", "no_quantization", "no_power_control"]
comparison = jo.compare(
    problem,
    task,
    methods=methods,
    rounds=100,
    solve_options={"bayesian": {"iterations": 15}},
)
print(comparison.summary())

# %%
jo.plot.convergence(comparison.results, title="Best value found by each method")

# %% [markdown]
# ## 4. Did it really learn, and what did it really cost?
#
# Every decision was trained on the same data with the same fading, losses and start. The ledger books bits, seconds and
# joules with the cost functions of the solver, so its budgets hold exactly; a single faded block may still take longer
# or cost more than the ergodic rate says, and that is counted apart.

# %%
run = jo.train(result, task, rounds=100, seed=0)
print(run.summary())
assert run.violations == 0

# %%
jo.plot.accuracy(comparison.runs, against="energy", mark=comparison.equal_energy, title="accuracy for energy")

# %%
jo.plot.accuracy(comparison.runs, against="delay", mark=comparison.equal_delay, title="accuracy for time")

# %% [markdown]
# ## 5. How loose is the bound?
#
# The theory bounds the mean squared gradient norm over the rounds. With constants measured on this very task it holds,
# and it is loose: it is a guide for choosing between decisions, not a forecast.

# %%
constants = jo.measure_constants(task, rounds=60, learning_rate=system.bound.learning_rate, seed=0)
measured = jo.problems.LTFL(system.with_(**constants, rounds=100))
bound = float(measured.evaluate(run.decision).quantities["bound"])
norms = [row["gradient_norm_squared"] for row in run.rows if row["gradient_norm_squared"] is not None]
mean = sum(norms) / len(norms)
assert mean <= bound
print(f"mean ||grad F||^2 measured {mean:.4g}, bound {bound:.4g}: {bound / mean:.0f} times looser")

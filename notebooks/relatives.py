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
# # Relatives: pruning ratios and shares of a band, under other clocks and hierarchies
#
# Five published designs choose how far each device prunes and how a band is divided. They differ in what a round is:
# it has a deadline; some may be left out; tiers deliver at multiples of an interval; a second has a price and packets
# get lost; edge servers stand between devices and cloud. Statements and closed forms are published, latency and
# learning cost are derived in the documentation; none of this is a quotation.
#
# For each: the scenario, the decision with its certificate, the published closed form beside it, and what their
# authors would plot.

# %%
import matplotlib.pyplot as plt
import numpy as np

import jointopt as jo
from jointopt.problems import Hierarchical, RatioBandwidth, RatioBandwidthSelection, RatioError, TimeTriggered

plt.rcParams["figure.constrained_layout.use"] = True
JOINT, OTHER, THIRD, GREY = "#D55E00", "#0072B2", "#009E73", "#777777"


def beside(problem, methods, **options):
    """Print what methods reach beside what is proved."""
    best = jo.solve(problem, **options)
    print(f"{'exact':20s} {best.value:9.2f}   proved at least {best.lower_bound:.2f} ({best.status})")
    for name in methods:
        other = jo.solve(problem, method=name)
        words = (
            f"{other.value:9.2f}   {100 * (other.value / best.value - 1):+.2f} %" if other.feasible else "infeasible"
        )
        print(f"{name:20s} {words}")
    return best


# %% [markdown]
# ## 1. Ratio and bandwidth under a deadline
#
# Twenty devices share 1 MHz. With whole models on the best split of the band nobody could keep the deadline.

# %%
system = RatioBandwidth.sample(devices=20, seed=0)
problem = RatioBandwidth(system)
result = beside(problem, ["alternating", "equal_bandwidth", "no_pruning"], gap=1e-6)
print()
print(result.summary())

# %% [markdown]
# The published split is in closed form for a given power per hertz. There it is the optimum, and the certificate
# agrees; at a given power per device, where the spectral efficiency falls with the band, it is only close.

# %%
for limit in ("density", "power"):
    one = RatioBandwidth(system, limit=limit)
    exact, closed = jo.solve(one, gap=1e-9), jo.solve(one, method="alternating")
    excess = closed.value / exact.lower_bound - 1.0
    print(f"fixed {limit:8s} exact {exact.value:.6f}, closed form {closed.value:.6f}: {100 * excess:+.5f} %")
    assert excess < (1e-6 if limit == "density" else 2e-2)

# %%
evenly = jo.solve(problem, method="equal_bandwidth")
dense = jo.Decision({"pruning_ratio": np.zeros(20), "bandwidth": np.full(20, 50e3), "power": system.devices.power_max})
alone = problem.evaluate(dense).quantities["delay"] / system.devices.delay_budget
gain = 10 * np.log10(system.radio.gain)
figure, axes = plt.subplots(1, 3, figsize=(12, 3.6))
for one, label, color, mark in ((result, "joint", JOINT, "o"), (evenly, "band split evenly", OTHER, "x")):
    axes[0].scatter(gain, one.decision["pruning_ratio"], label=label, color=color, marker=mark)
    axes[1].scatter(alone, one.decision["pruning_ratio"], color=color, marker=mark)
    axes[2].scatter(100 * system.weight, one.decision["bandwidth"] / 1e3, color=color, marker=mark)
axes[0].set(xlabel="channel gain [dB]", ylabel="pruning ratio", title="ratio against channel")
axes[1].set(xlabel="delay of the whole model / deadline", ylabel="pruning ratio", title="ratio against lateness")
axes[2].set(xlabel="share of the samples [%]", ylabel="band [kHz]", title="who gets how much of the band")
axes[0].legend(fontsize=8)
for axis in axes:
    axis.grid(alpha=0.3)
plt.show()

# %% [markdown]
# The channel alone decides little, since processors and batches differ as well. Who prunes is who would be late with
# a whole model. The band tends to go where samples are many, whatever the channel: the joint design lets small devices
# prune more than an equal split would.
#
# More time or more band never hurts, a property of the exact optimum:

# %%
factors = [0.4, 0.6, 0.8, 1.0, 1.2, 1.4]
methods = ["exact", "alternating", "equal_bandwidth", "no_pruning"]
deadline = jo.study.sweep(problem, "delay_budget", factors, methods=methods)
values = deadline[deadline["method"] == "exact"]["value"].to_numpy()
assert np.all(np.diff(values) <= 1e-6 * values[:-1])
jo.plot.tradeoff(deadline, "delay_budget", title="deadline of a round")

# %%
band = jo.study.sweep(problem, "total_bandwidth", factors, methods=methods)
jo.plot.tradeoff(band, "total_bandwidth", title="band to share")

# %% [markdown]
# ## 2. Who takes part
#
# Deadlines are short now. A device that is left out costs as if all of its model were pruned.

# %%
early = RatioBandwidthSelection.sample(devices=20, seed=0)
problem = RatioBandwidthSelection(early)
chosen = beside(problem, ["full_participation", "random_selection"], gap=1e-3)
taken = chosen.decision["selected"] > 0.5
print(f"exact leaves out {np.flatnonzero(~taken)}")

# %% [markdown]
# The published rule leaves out whoever would have to prune more than a threshold. On the left, what each device needs
# at least (its band at the greatest ratio) and what it brings (its share of the samples); on the right, how many take
# part as deadlines get longer.

# %%
least = problem.capabilities().cells.low[0]
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6))
for inside, label, color, mark in ((taken, "takes part", JOINT, "o"), (~taken, "left out", GREY, "x")):
    left.scatter(least[inside] / 1e3, 100 * early.weight[inside], color=color, marker=mark, label=label)
left.set(xscale="log", xlabel="least band [kHz]", ylabel="share of the samples [%]", title="the exact choice")
print(f"{np.isinf(least).sum()} devices cannot take part with all of the band")
left.legend()
left.set_xticks([20, 50, 100, 200, 400], ["20", "50", "100", "200", "400"])
left.minorticks_off()
every = [0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2]
for name, shares, color, mark in (("exact", every, JOINT, "o-"), ("threshold", [1.2], OTHER, "x")):
    values, counts = [], []
    for share in shares:
        one = RatioBandwidthSelection(early.with_(delay_budget=share * early.devices.delay_budget))
        found = jo.solve(one, method=name, **({"gap": 1e-3} if name == "exact" else {}))
        values.append(found.value)
        counts.append(np.sum(found.decision["selected"] > 0.5))
    right.plot(shares, counts, mark, color=color, label=name, markersize=8 if mark == "x" else 5)
    print(f"{name:10s}", " ".join(f"{v:9.2f}" for v in values))
right.set(xlabel="deadline, times that of the sample", ylabel="devices that take part", title="selection by deadline")
right.legend()
for axis in (left, right):
    axis.grid(alpha=0.3)
plt.show()

# %% [markdown]
# ## 3. Time-triggered tiers
#
# The server aggregates at every interval; a device that needs m intervals is m - 1 aggregations stale. Ratio and band
# decide on the tier.

# %%
system = TimeTriggered.sample(devices=20, seed=0)
problem = TimeTriggered(system)
tiered = beside(problem, ["smallest_tier", "synchronous", "equal_bandwidth", "no_pruning"], gap=5e-3)

# %%
interval = system.tiers.interval
quantities = tiered.evaluation.quantities
order = np.argsort(quantities["delay"] + 1e-6 * tiered.decision["pruning_ratio"])
whole = jo.solve(problem, method="synchronous").evaluation.quantities
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6))
left.bar(range(20), quantities["delay"][order] / interval, color=JOINT)
for period in (1, 2, 3, 4):
    left.axhline(period, color="0.5", linewidth=0.8, linestyle="--")
left.set(xlabel="device", ylabel="delay [intervals]", title="tiers over devices")
left.set_xticks(range(20), [str(u) for u in order], fontsize=8)
factors = [0.5, 0.75, 1.0, 1.5, 2.0, 3.0]
costs = {"joint": [], "everyone in the fastest tier": []}
for factor in factors:
    one = TimeTriggered(system.with_(interval=factor * interval, delay_budget=4 * factor * interval))
    for label, method in zip(costs, ("exact", "synchronous"), strict=True):
        options = {"gap": 1e-2} if method == "exact" else {}
        found = jo.solve(one, method=method, **options)
        costs[label].append(found.value if found.feasible else np.nan)
for (label, found), color in zip(costs.items(), (JOINT, OTHER), strict=True):
    right.plot(factors, found, "o-", label=label, color=color)
right.set(xlabel="interval, times that of the sample", ylabel="bound of the gradient norm", yscale="log")
right.legend()
right.grid(alpha=0.3)
plt.show()

# %% [markdown]
# What a bound predicts is saved in bits beside synchronous learning of whole models. The published figure is about
# 40 % "at equal performance" [R].

# %%
targets = np.geomspace(1.2 * tiered.value, 60 * tiered.value, 20)
saved = [1 - problem.course(tiered.decision, t).bits / problem.synchronous(t).bits for t in targets]
figure, axis = plt.subplots(figsize=(6, 3.4))
axis.plot(targets, 100 * np.array(saved), color=JOINT)
axis.axhline(40, color="0.4", linestyle="--", linewidth=0.8)
axis.axhline(0, color="0.4", linewidth=0.8)
axis.annotate("published", (targets[-1], 40), ha="right", va="bottom", fontsize=9)
axis.set(xscale="log", xlabel="gradient norm to reach", ylabel="bits saved [%]", title="predicted saving")
axis.grid(alpha=0.3, which="both")
plt.show()

# %% [markdown]
# ### Measured
#
# A device of period m counts m times, else fast devices would decide alone. So tiers make longer steps than their step
# size says, and a comparison at one step size mixes that up with what is sent. Both are shown: at one step size, and
# with the synchronous run at the step that tiers make on average. Whole models get the band split that makes their
# rounds shortest.

# %%
task = jo.Task.for_system(system, alpha=0.5, seed=0)
clock = {"name": "tiers", "seconds": interval, "periods": [1, 2, 3, 4]}
period = float(np.sum(system.weight * quantities["period"]))
course = problem.synchronous(1.0)
shortest = course.seconds / course.aggregations * (1.0 + 1e-6)
dense = jo.solve(RatioBandwidth(system.with_(delay_budget=shortest)).restrict(pruning_ratio=0.0))
options = {"evaluate_every": 2, "measure_gradient_every": 0, "seed": 0}
runs = {
    "tiers, joint": jo.train(tiered, task, rounds=240, clock=clock, **options),
    "synchronous": jo.train(dense, task, rounds=150, **options),
    "synchronous, steps as long": jo.train(
        dense, task, rounds=150, learning_rate=period * system.bound.learning_rate, **options
    ),
}
figure, axis = plt.subplots(figsize=(6.5, 3.8))
for (label, run), color in zip(runs.items(), (JOINT, OTHER, THIRD), strict=True):
    seen = [row for row in run.rows if row["test_accuracy"] is not None]
    axis.plot(
        [row["cumulative_bits"] / 1e6 for row in seen],
        [100 * row["test_accuracy"] for row in seen],
        label=label,
        color=color,
    )
    reached = run.reached(0.85, window=3)
    words = "never" if reached is None else f"{reached.bits / 1e6:6.1f} Mbit, {reached.delay:6.1f} s"
    print(f"{label:28s} 85 % after {words}")
axis.set(xlabel="bits sent [Mbit]", ylabel="test accuracy [%]", title="digits, one seed")
axis.legend()
axis.grid(alpha=0.3)
plt.show()

# %% [markdown]
# What was booked is the model's: delays and bits of every upload, at multiples of every device's period.

# %%
run = runs["tiers, joint"]
model = problem.evaluate(jo.Decision({v.name: run.decision[v.name] for v in problem.variables})).quantities
ticks = np.rint(np.array([row["cumulative_delay"] for row in run.rows]) / interval).astype(int)
assert np.array_equal(run.ledger.sent, ticks[:, None] % model["period"].astype(int) == 0)
assert np.allclose(run.ledger.bits, run.ledger.sent * model["payload_bits"], rtol=1e-12)
print(f"{run.ledger.sent.sum()} uploads in {ticks[-1]} intervals, all as modelled")

# %% [markdown]
# ## 4. Pruning against packet error
#
# A wider band brings a higher rate and a lower SNR: less to prune, more packets lost. The weighted sum of latency and
# learning cost is minimised; moving the weight gives the trade-off.

# %%
system = RatioError.sample(devices=6, seed=0)
tradeoff = beside(RatioError(system), ["alternating", "equal_bandwidth"], gap=1e-2)

# %%
prices = [0.03, 0.3, 1.0, 10.0]
points = {"joint (exact)": [], "alternating closed forms": []}
bounds = []
for price in prices:
    one = RatioError(system.with_(latency_weight=price * system.tradeoff.latency_weight))
    for label, method in zip(points, ("exact", "alternating"), strict=True):
        found = jo.solve(one, method=method, **({"gap": 1e-2} if method == "exact" else {}))
        parts = found.evaluation.quantities
        points[label].append((float(parts["latency"]), float(parts["gap"]), found.value))
        if method == "exact":
            bounds.append(found.lower_bound)
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8))
for (label, found), color, mark in zip(points.items(), (JOINT, OTHER), "ox", strict=True):
    found = np.array(found)
    left.plot(found[:, 0], found[:, 1], mark + "-", label=label, color=color, linewidth=1)
    right.plot(prices, found[:, 2] / np.array(bounds), mark + "-", color=color, linewidth=1)
left.set(xlabel="latency of a round [s]", ylabel="learning cost", title="trade-off as the price of a second moves")
right.set(xlabel="price of a second, times the sample's", xscale="log", ylabel="value over what is proved")
left.legend(fontsize=8)
for axis in (left, right):
    axis.grid(alpha=0.3)
plt.show()

# %% [markdown]
# ## 5. Edge servers
#
# Every edge server has a band of its own and aggregates three times before its model goes to the cloud. Each band has a
# price of its own; the published closed forms follow from the same conditions.

# %%
system = Hierarchical.sample(devices=20, seed=0)
problem = Hierarchical(system)
nested = beside(problem, ["alternating", "equal_bandwidth", "no_pruning"])
print("way to the cloud [s]", np.round(np.unique(problem.backhaul_delay), 2))

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6))
gain = 10 * np.log10(system.radio.gain)
for server, color in zip(range(len(problem.edges)), (JOINT, OTHER), strict=True):
    under = problem.edges.number == server
    left.scatter(gain[under], nested.decision["pruning_ratio"][under], color=color, label=f"edge server {server}")
left.set(xlabel="channel gain [dB]", ylabel="pruning ratio", title="who prunes")
left.legend()
shares = [0.3, 0.4, 0.6, 0.8, 1.0, 1.2]
for name, label, color in (("exact", "joint", JOINT), ("equal_bandwidth", "bands split evenly", OTHER)):
    values = [
        jo.solve(Hierarchical(system.with_(delay_budget=share * system.devices.delay_budget)), method=name).value
        for share in shares
    ]
    right.plot(shares, [np.nan if v is None else v for v in values], "o-", color=color, label=label)
right.set(xlabel="deadline, times that of the sample", ylabel="learning cost", title="joint beside equal bands")
right.legend()
for axis in (left, right):
    axis.grid(alpha=0.3)
plt.show()

# %% [markdown]
# ## 6. What is confirmed, and what is not
#
# * *The closed forms* [R] are the optimum where they are stated, at a given power per hertz, and within a few per mille
#   of it at a given power, under one band or several. Where packets get lost, alternating them stopped 12 % above what
#   is proved at one price.
# * *Selection by a threshold* [R]: it takes more devices than the exact choice, for 1.4 % more here.
# * *About 40 % of the bits saved at equal performance* [R]: the run above saves more beside synchronous learning at one
#   step size, and hardly any beside steps as long as its own; what tiers save here is time. On Fashion-MNIST over three
#   seeds, every arm at its best step size, 40 % is met by pruning (where 39 % of the weights go and everybody is in one
#   tier), not by tiers: beside synchronous pruning with equally long rounds they save 1 to 16 %.
#
# All measured figures stand in the documentation of these designs (`benchmarks/results_relatives.py`).

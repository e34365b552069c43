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
# # A problem of your own: the shortest round that still learns well enough
#
# The published design asks for the best learning within a deadline. Turn it around: how short can a round be, if the
# convergence gap must not exceed a target? The objective is now the *slowest* device's delay, which no sum expresses;
# it becomes one number that all devices share, and branch and bound over that number settles it with a certificate.

# %%
import matplotlib.pyplot as plt
import numpy as np

import jointopt as jo
from jointopt.models import channel, compression, convergence, cost

# %%
system = jo.systems.ltfl(devices=6, seed=1)
learner, constants = system.learner, jo.problems.LTFL(system).constants


def model(s, x):
    snr = channel.snr(x.power, s.radio.gain, s.noise_power)
    rate = channel.rate(s.radio.bandwidth, snr, s.radio.fading)
    weights = (1 - x.pruning_ratio) * learner.parameters + learner.unpruned_parameters
    upload = cost.upload_delay(weights * x.bits + learner.header_bits, rate)
    work = cost.cycles(s.batch, s.devices.cycles_per_sample, 1 - x.pruning_ratio)
    energy = cost.compute_energy(work, s.devices.frequency, s.devices.capacitance) + x.power * upload
    gap = convergence.gap(
        weight=s.weight,
        packet_error=channel.packet_error(snr, s.radio.waterfall_threshold, s.radio.packet_error, s.radio.fading),
        pruning_ratio=x.pruning_ratio,
        pruning_error=x.pruning_ratio,
        quantization_variance=compression.quantization_variance(weights, s.bound.quantizer_range, x.bits),
        **constants,
    ).total
    return {"gap": gap, "delay": cost.compute_delay(work, s.devices.frequency) + upload, "energy": energy}


variables = [
    jo.Variable("pruning_ratio", 0, learner.pruning_ratio_max),
    jo.Variable("bits", 2, 8, unit="bit", kind="integer"),
    jo.Variable("power", system.devices.power_min, system.devices.power_max, unit="W"),
]


def shortest_round(target):
    limits = {"target": jo.total("gap") <= target, "battery": jo.each("energy") <= "devices.energy_budget"}
    return jo.DeclaredProblem(system, variables=variables, model=model, objective=jo.worst("delay"), constraints=limits)


# %% [markdown]
# That is all. The target here is a tenth above what the published design reaches with its own deadline of a second or
# so per device.

# %%
reference = jo.solve(jo.problems.LTFL(system))
result = jo.solve(shortest_round(1.1 * reference.value), gap=2e-3)
print(result.summary())
print(result.message)

# %%
print(result.verify())

# %% [markdown]
# **A check from the other side.** Give LTFL this delay as everybody's deadline: it must just reach the target. With a
# deadline a little below the proved bound it must not.

# %%
for deadline in (result.value, 0.995 * result.lower_bound):
    same = jo.solve(jo.problems.LTFL(system.with_(delay_budget=np.full(len(system), deadline))))
    print(f"deadline {deadline:.5f} s: gap / target = {same.value / (1.1 * reference.value):.5f}")

# %% [markdown]
# **The trade-off.** The better the learning that is asked for, the longer the round.

# %%
factors = np.array([1.0, 1.1, 1.25, 1.5, 2.0])
points = [jo.solve(shortest_round(factor * reference.value), gap=5e-3) for factor in factors]
delays = np.array([p.value for p in points]) * 1e3
bounds = np.array([p.lower_bound for p in points]) * 1e3

fig, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
left.plot(factors * reference.value, delays, "o-", label="decision found")
left.fill_between(factors * reference.value, bounds, delays, alpha=0.3, label="where the optimum can be")
left.set(xlabel="largest convergence gap allowed", ylabel="delay of the round [ms]", title="Patience buys learning")
left.legend()
each = result.evaluation.quantities["delay"] * 1e3
right.bar(np.arange(len(system)), each)
right.axhline(result.value * 1e3, color="black", linestyle="--", label="the round")
right.set(xlabel="device", ylabel="delay [ms]", title="Who sets the pace", xticks=np.arange(len(system)))
right.set_ylim(0, 1.25 * 1e3 * result.value)
right.legend(loc="upper center")
plt.show()

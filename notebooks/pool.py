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
# # A problem of your own: one pool of bandwidth, one battery for all
#
# The published design LTFL gives every device its own band and its own energy budget, so devices do not meet. Here they
# share both: a pool of bandwidth, and one total energy per round. Two sums couple everybody, and the problem is not
# separable any more. Declared in a few lines it still comes back with a certified gap.
#
# The variables are the pruning ratio, the bits per weight, and the signal-to-noise ratio at which a device sends. The
# band follows: the upload takes what the deadline leaves after computing, and using all of it needs the least band.

# %%
import matplotlib.pyplot as plt
import numpy as np

import jointopt as jo
from jointopt.models import channel, compression, convergence, cost

# %%
system = jo.systems.ltfl(devices=10, seed=1)
learner, constants = system.learner, jo.problems.LTFL(system).constants


def model(s, x):
    weights = (1 - x.pruning_ratio) * learner.parameters + learner.unpruned_parameters
    work = cost.cycles(s.batch, s.devices.cycles_per_sample, 1 - x.pruning_ratio)
    left = s.devices.delay_budget - cost.compute_delay(work, s.devices.frequency)
    band = (weights * x.bits + learner.header_bits) / (left * channel.spectral_efficiency(x.snr, s.radio.fading))
    power = x.snr * band * s.radio.noise_density / s.radio.gain
    energy = cost.compute_energy(work, s.devices.frequency, s.devices.capacitance) + power * left
    lost = channel.packet_error(x.snr, s.radio.waterfall_threshold, s.radio.packet_error, s.radio.fading)
    noise = compression.quantization_variance(weights, s.bound.quantizer_range, x.bits)
    gap = convergence.gap(
        weight=s.weight,
        packet_error=lost,
        pruning_ratio=x.pruning_ratio,
        pruning_error=x.pruning_ratio,
        quantization_variance=noise,
        **constants,
    )
    return {"gap": gap.total, "left": left, "band": band, "power": power, "energy": energy}


limits = {
    "time to send": jo.each("left") >= 1e-3,
    "power": jo.each("power") <= "devices.power_max",
    "pool": jo.total("band") <= 0.9e6,
    "battery": jo.total("energy") <= 0.026,
}
variables = [
    jo.Variable("pruning_ratio", 0, learner.pruning_ratio_max),
    jo.Variable("bits", 2, 8, unit="bit", kind="integer"),
    jo.Variable("snr", 1, 1e4),
]
problem = jo.DeclaredProblem(system, variables=variables, model=model, objective=jo.total("gap"), constraints=limits)

# %% [markdown]
# That is the whole declaration. The same function is now evaluated by NumPy, differentiated by torch, and run on
# intervals, which bound it over whole boxes of decisions: nobody wrote a solver, and yet:

# %%
result = jo.solve(problem, gap=1e-3)
print(result.summary())
print(result.message)

# %% [markdown]
# `verify` computes value, feasibility and bound again, from the problem as declared, in 50 digits where it can.

# %%
print(result.verify())

# %% [markdown]
# **What the pool is worth.** The multipliers of the two limits are prices: by how much the gap falls per hertz and per
# joule.

# %%
for name, unit in (("band", "Hz"), ("energy", "J")):
    print(f"{name}: {result.certificate.multipliers[name]:.3g} per {unit}")

# %% [markdown]
# **Other methods on the same declaration.** A local search from a few starts finds about the same point and proves
# nothing; its values never lie below the bound.

# %%
near = jo.solve(problem, method="nlp", starts=3)
print(near, "\n", near.message)
print(f"bound {result.lower_bound:.5g} <= exact {result.value:.5g}, local search {near.value:.5g}")

# %% [markdown]
# ## More band, better learning: every point with its own certificate

# %%
pools = np.array([0.82e6, 0.9e6, 1.0e6, 1.15e6, 1.4e6])


def with_pool(pool):
    given = {**limits, "pool": jo.total("band") <= pool}
    return jo.DeclaredProblem(system, variables=variables, model=model, objective=jo.total("gap"), constraints=given)


points = [jo.solve(with_pool(pool), gap=2e-3) for pool in pools]
values = np.array([np.nan if p.value is None else p.value for p in points])
bounds = np.array([np.nan if p.lower_bound is None else p.lower_bound for p in points])

fig, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
left.plot(pools / 1e6, values, "o-", label="decision found")
left.fill_between(pools / 1e6, bounds, values, alpha=0.3, label="where the optimum can be")
left.set(xlabel="bandwidth pool [MHz]", ylabel="convergence gap", title="The more band, the smaller the gap")
left.legend()
shares = result.evaluation.quantities["band"] / 1e3
right.bar(np.arange(len(system)), shares)
right.axhline(900 / len(system), color="black", linestyle="--", label="an even share")
right.set(xlabel="device", ylabel="bandwidth [kHz]", title="Who gets the band", xticks=np.arange(len(system)))
right.legend()
plt.show()

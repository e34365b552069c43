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
# # A problem of your own: nobody's battery is drained for the others
#
# Budgets per device say what each may spend, not that the burden is shared. Here is a fairness constraint *across*
# devices: nobody may spend more than so many times the share of its battery that anybody else spends. That couples all
# devices through one number, the least share, which is a variable of its own: `axis="common"`.

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
    burden = energy / s.devices.energy_budget
    delay = cost.compute_delay(work, s.devices.frequency) + upload
    return {"gap": gap, "delay": delay, "burden": burden, "above": burden - x.least, "share": burden / x.least}


def fair(times):
    limits = {"deadline": jo.each("delay") <= "devices.delay_budget", "battery": jo.each("burden") <= 1}
    limits |= {"at least": jo.each("above") >= 0, "at most": jo.each("share") <= times}
    variables = [
        jo.Variable("pruning_ratio", 0, learner.pruning_ratio_max),
        jo.Variable("bits", 2, 8, unit="bit", kind="integer"),
        jo.Variable("power", system.devices.power_min, system.devices.power_max, unit="W"),
        jo.Variable("least", 0.05, 1, axis="common"),
    ]
    return jo.DeclaredProblem(system, variables=variables, model=model, objective=jo.total("gap"), constraints=limits)


# %% [markdown]
# ## Nobody spends more than 1.1 times what another does

# %%
result = jo.solve(fair(1.1), gap=2e-3)
print(result.summary())
print(result.message)

# %%
print(result.verify())

# %% [markdown]
# ## What fairness costs

# %%
factors = np.array([1.02, 1.1, 1.3, 2.0])
points = [jo.solve(fair(times), gap=2e-3) for times in factors]
values = np.array([p.value for p in points])
bounds = np.array([p.lower_bound for p in points])
alone = jo.solve(jo.problems.LTFL(system).restrict(bits=(2, 8)))

fig, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
left.plot(factors, values, "o-", label="decision found")
left.fill_between(factors, bounds, values, alpha=0.3, label="where the optimum can be")
left.axhline(alone.value, color="black", linestyle="--", label="without fairness")
left.set(xlabel="largest burden over smallest", ylabel="convergence gap", title="The price of fairness")
left.legend()
width = 0.4
place = np.arange(len(system))
unfair = alone.evaluation.quantities["energy"] / system.devices.energy_budget
right.bar(place - width / 2, 100 * unfair, width, label="without fairness")
right.bar(place + width / 2, 100 * result.evaluation.quantities["burden"], width, label="at most 1.1 times")
right.set(xlabel="device", ylabel="share of the battery [%]", title="Who carries the burden", xticks=place)
right.set_ylim(0, 130)
right.legend(loc="upper center", ncols=2)
plt.show()

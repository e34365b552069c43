"""Codecs: how the vectors of federated learning become bits that travel."""

from __future__ import annotations

from jointopt.federated.codecs.base import Codec, Payload
from jointopt.federated.codecs.feedback import ErrorFeedback
from jointopt.federated.codecs.mask import MaskPayload, decode_mask, encode_mask, mask_bits
from jointopt.federated.codecs.qsgd import Qsgd
from jointopt.federated.codecs.raw import Raw
from jointopt.federated.codecs.registry import CODECS, codec
from jointopt.federated.codecs.sign import Sign
from jointopt.federated.codecs.ternary import Ternary
from jointopt.federated.codecs.uniform import Uniform

__all__ = [
    "CODECS",
    "Codec",
    "ErrorFeedback",
    "MaskPayload",
    "Payload",
    "Qsgd",
    "Raw",
    "Sign",
    "Ternary",
    "Uniform",
    "codec",
    "decode_mask",
    "encode_mask",
    "mask_bits",
]

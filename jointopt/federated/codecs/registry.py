"""The codecs by name."""

from __future__ import annotations

from typing import Any

from jointopt.federated.codecs.base import Codec
from jointopt.federated.codecs.qsgd import Qsgd
from jointopt.federated.codecs.raw import Raw
from jointopt.federated.codecs.sign import Sign
from jointopt.federated.codecs.ternary import Ternary
from jointopt.federated.codecs.uniform import Uniform
from jointopt.federated.registry import Registry

__all__ = ["CODECS", "codec"]

CODECS: Registry[Codec] = Registry("codec", Codec, Uniform, Qsgd, Sign, Ternary, Raw)
"""The codecs by name."""


def codec(name: str, **options: Any) -> Codec:
    """Return the codec of that name with its options, such as ``density`` of "ternary"; `InputError` if unknown."""
    return CODECS.make({"name": name, **options})

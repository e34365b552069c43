"""Error feedback: what a codec left out of one round is added to the vector of the next."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from jointopt.errors import InputError
from jointopt.federated.codecs.base import Codec, Payload

__all__ = ["ErrorFeedback"]


@dataclass(frozen=True)
class ErrorFeedback:
    """Memory of the residual, e <- (x + e) - C(x + e), around any codec C (Karimireddy et al. 2019).

    Around a contraction, as the biased codecs are, the residual stays bounded and everything arrives in the end. Around
    a codec whose error may exceed the vector itself (qsgd with few bits) it grows without bound; an unbiased codec
    needs no memory anyway. The residual is the caller's: one float32 vector per sender, shape [n], zeros at first
    (`start`).

    Attributes
    ----------
    codec
        What compresses x + e.
    """

    codec: Codec

    def start(self, count: int) -> Tensor:
        """Return the residual before the first round, zeros of shape [count]."""
        return torch.zeros(count)

    def encode(
        self, values: Tensor, state: Tensor, bits: int, generator: torch.Generator | None = None
    ) -> tuple[Payload, Tensor]:
        """Compress values + state.

        Parameters
        ----------
        values, state
            The vector and the residual so far, float32, shape [n].
        bits, generator
            As in `Codec.encode`.

        Returns
        -------
        payload : Payload
        state : Tensor
            The next residual, new memory: values + state = decoded + next residual to within float32 rounding.

        Raises
        ------
        InputError
            As in `Codec.encode`, or the residual does not fit the values.
        """
        total = self._total(values, state)
        payload = self.codec.encode(total, bits, generator)
        return payload, total - self.codec.decode(payload).to(total.device)

    def simulate(
        self, values: Tensor, state: Tensor, bits: int, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return what the receiver of `encode` would decode, and the same next residual, without packing."""
        total = self._total(values, state)
        sent = self.codec.simulate(total, bits, generator)
        return sent, total - sent

    @staticmethod
    def _total(values: Tensor, state: Tensor) -> Tensor:
        if not isinstance(state, Tensor) or state.dtype != torch.float32 or state.shape != values.shape:
            found = f"{state.dtype} of shape {tuple(state.shape)}" if isinstance(state, Tensor) else repr(state)
            raise InputError(f"state must be float32 of the shape {tuple(values.shape)} of the values, found {found}")
        return values.detach() + state.detach()

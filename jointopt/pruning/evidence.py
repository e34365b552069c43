"""What a pruning rule may look at besides the weights, collected on first use and charged to who collects it.

A rule declares what it needs. It is handed a view that refuses all else, so that the declaration is honest, and
everything collected is added up as passes over samples and bits sent, which a time and energy model can price.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.func import functional_call

from jointopt.errors import InputError
from jointopt.pruning.charge import NEEDS, Batch, Charge, check_batch, check_needs, check_samples
from jointopt.pruning.layout import Layout
from jointopt.pruning.magnitude import check_weights
from jointopt.pruning.mask import Mask
from jointopt.pruning.statistics import InputStatistics, evaluating, input_statistics, norm_statistics

__all__ = ["NEEDS", "Batch", "Charge", "Evidence", "check_needs"]

Loss = Callable[[Tensor, Tensor], Tensor]

_BITS = 32


@dataclass
class _Collected:
    """What views of the same evidence share."""

    charges: list[Charge]
    gradients: tuple[Tensor, Tensor] | None = None
    statistics: dict[str, InputStatistics] | None = None
    dense_outputs: Tensor | None = None
    explorers: Tensor | None = None
    sent: set[str] = field(default_factory=set)


class Evidence:
    """Gradients, inputs, outputs and the like of a module at given weights, each collected when first asked for.

    The module runs in evaluation mode with the buffers that it has, so that collecting changes nothing.

    Parameters
    ----------
    module : Module
        The dense module; its own parameters are not used.
    weights : Tensor, shape [P]
        Where everything is measured.
    batches : sequence of Batch or of (inputs, labels, share)
        One per device.
    loss : callable
        Mean loss of (outputs, labels), such as ``torch.nn.functional.cross_entropy``.
    initial : Tensor, shape [P], optional
        The weights before any training.
    explorers : Tensor, shape [E, P], or callable, optional
        Weights of devices that trained some steps from `weights`, sent to the server; or a function without arguments
        that returns them, called once they are asked for (`explorer_samples` then says how many there are).
    explorer_samples : sequence of float, length E, optional
        Samples that each explorer trained on, charged when the explorers are used. None: whoever trained them has
        booked that already, and only the upload is charged.
    generator : torch.Generator, optional
        For rules that draw.

    Raises
    ------
    InputError
        A vector that is not finite or not of the module's size, a batch that is empty or of unequal lengths, a share
        that is negative or not finite, or shares that are all 0.
    """

    def __init__(
        self,
        module: nn.Module,
        weights: Tensor,
        batches: Sequence[Batch | tuple[Tensor, Tensor, float]] = (),
        loss: Loss | None = None,
        *,
        initial: Tensor | None = None,
        explorers: Tensor | Callable[[], Tensor] | None = None,
        explorer_samples: Sequence[float] | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        self.module = module
        self.layout = Layout.of(module)
        self.weights = self._checked("weights", weights)
        self.batches = tuple(check_batch(device, batch) for device, batch in enumerate(batches))
        total = sum(batch.share for batch in self.batches)
        if self.batches and not total > 0.0:
            raise InputError(f"evidence: the shares of the {len(self.batches)} devices are all 0")
        self._shares = [batch.share / total for batch in self.batches]
        self.loss = loss
        self.generator = generator
        self._initial = None if initial is None else self._checked("initial", initial)
        self._explore = explorers if callable(explorers) else None
        count = len(explorers) if isinstance(explorers, Tensor) else len(explorer_samples or ())
        self._explorer_samples = check_samples(explorer_samples, count)
        self._collected = _Collected([Charge()] * max(len(self.batches), count))
        if isinstance(explorers, Tensor):
            self._collected.explorers = self._checked_explorers(explorers)
        self._granted = NEEDS

    def _checked(self, name: str, vector: Tensor) -> Tensor:
        if vector.ndim != 1 or len(vector) != self.layout.size:
            raise InputError(
                f"evidence: {name} must have the {self.layout.size} parameters of the module, "
                f"found shape {tuple(vector.shape)}"
            )
        check_weights(vector)
        return vector.detach()

    def _checked_explorers(self, explorers: Tensor) -> Tensor:
        if explorers.ndim != 2 or len(explorers) == 0:
            raise InputError(
                f"evidence: explorers must have shape [explorers, {self.layout.size}] with at least one, "
                f"found {tuple(explorers.shape)}"
            )
        return torch.stack([self._checked(f"explorer {e}", row) for e, row in enumerate(explorers)])

    # What a rule is handed -------------------------------------------------------------------

    def granted(self, needs: Iterable[str], who: str = "pruning") -> Evidence:
        """Return a view that gives only what is declared, of what this one gives; what is collected is shared."""
        view = object.__new__(Evidence)
        view.__dict__.update(self.__dict__)
        view._granted = check_needs(needs, who) & self._granted
        return view

    @property
    def charges(self) -> tuple[Charge, ...]:
        """What was collected so far, per device: the batches in order, explorer e being device e."""
        return tuple(self._collected.charges)

    def _need(self, need: str) -> None:
        if need not in self._granted:
            raise InputError(
                f"evidence: '{need}' was not declared; declared needs: {', '.join(sorted(self._granted)) or 'none'}"
            )

    def _need_batches(self, need: str, *, loss: bool) -> None:
        if not self.batches:
            raise InputError(f"evidence: '{need}' needs batches of samples, found none")
        if loss and self.loss is None:
            raise InputError(f"evidence: '{need}' needs a loss, found None")

    def _charge(self, device: int, *, forward: float = 0.0, backward: float = 0.0, bits: float = 0.0) -> None:
        self._collected.charges[device] += Charge(float(forward), float(backward), float(bits))

    def _send_once(self, what: str, bits: float) -> None:
        """Charge every device with batches once for sending something."""
        if what not in self._collected.sent:
            self._collected.sent.add(what)
            for device in range(len(self.batches)):
                self._charge(device, bits=bits)

    # Vectors that are given ------------------------------------------------------------------

    @property
    def initial(self) -> Tensor:
        """The weights before any training, [P]."""
        self._need("initial")
        if self._initial is None:
            raise InputError("evidence: 'initial' needs the initial weights, found None")
        return self._initial

    @property
    def explorers(self) -> Tensor:
        """Weights of the devices that explored, [E, P]; each sent all of them."""
        self._need("explorers")
        if self._collected.explorers is None and self._explore is not None:
            self._collected.explorers = self._checked_explorers(self._explore())
        if self._collected.explorers is None:
            raise InputError("evidence: 'explorers' needs weights of devices that trained from here, found None")
        if "explorers" not in self._collected.sent:
            self._collected.sent.add("explorers")
            for device, samples in enumerate(self._explorer_samples):
                self._charge(device, forward=samples, backward=samples, bits=_BITS * self.layout.size)
        return self._collected.explorers

    # Gradients -------------------------------------------------------------------------------

    @property
    def gradient(self) -> Tensor:
        """Gradient of the loss, the mean over devices by share, float32 [P]."""
        self._need("gradient")
        return self._gradients("gradient")[0]

    @property
    def gradient_rms(self) -> Tensor:
        """Root mean square over devices, by share, of their gradients, float32 [P]."""
        self._need("gradient_rms")
        return self._gradients("gradient_rms")[1]

    def _gradients(self, need: str) -> tuple[Tensor, Tensor]:
        if self._collected.gradients is None:
            self._need_batches(need, loss=True)
            mean = torch.zeros(self.layout.size, dtype=torch.float64)
            square = torch.zeros_like(mean)
            for device, (batch, share) in enumerate(zip(self.batches, self._shares, strict=True)):
                gradient = self._gradient_of(batch)
                mean += share * gradient
                square += share * gradient.to(torch.float64).square()
                samples = len(batch.inputs)
                # The server forms both the mean and the mean square from what each device sends once.
                self._charge(device, forward=samples, backward=samples, bits=_BITS * self.layout.size)
            self._collected.gradients = (mean.to(torch.float32), square.sqrt().to(torch.float32))
        return self._collected.gradients

    def top_gradient(self, where: Tensor, count: int) -> Tensor:
        """Return the mean by share of the `count` largest gradient entries of each device, float32 [P].

        Each device sends only those entries with their places, so that it needs no memory for the others.

        Parameters
        ----------
        where : bool tensor, shape [P]
            Entries that may be sent.
        count : int
            How many at most.
        """
        self._need("gradient")
        self._need_batches("gradient", loss=True)
        places = torch.nonzero(where)[:, 0]
        count = min(count, len(places))
        mean = torch.zeros(self.layout.size, dtype=torch.float64)
        for device, (batch, share) in enumerate(zip(self.batches, self._shares, strict=True)):
            values = self._gradient_of(batch)[places]
            top = torch.sort(values.abs(), descending=True, stable=True).indices[:count]
            mean[places[top]] += share * values[top].to(torch.float64)
            samples = len(batch.inputs)
            index_bits = math.ceil(math.log2(max(len(places), 2)))
            self._charge(device, forward=samples, backward=samples, bits=count * (_BITS + index_bits))
        return mean.to(torch.float32)

    def _gradient_of(self, batch: Batch) -> Tensor:
        assert self.loss is not None
        flat = self.weights.clone().requires_grad_(True)
        (gradient,) = torch.autograd.grad(self.loss(self._forward(flat, batch.inputs), batch.labels), flat)
        return gradient

    # Inputs of layers ------------------------------------------------------------------------

    @property
    def input_norms(self) -> dict[str, Tensor]:
        """L2 norm of each input feature over all samples and positions, by prunable parameter, [in features]."""
        statistics = self._statistics()
        self._send_once("squares", _BITS * sum(len(s.norm) for s in statistics.values()))
        return {name: s.norm for name, s in statistics.items()}

    @property
    def input_means(self) -> dict[str, Tensor]:
        """Mean of each input feature over all samples and positions, by prunable parameter, [in features]."""
        statistics = self._statistics()
        self._send_once("sums", _BITS * sum(len(s.norm) for s in statistics.values()))
        return {name: s.mean for name, s in statistics.items()}

    @property
    def input_vars(self) -> dict[str, Tensor]:
        """Variance of each input feature over all samples and positions, by prunable parameter, [in features]."""
        statistics = self._statistics()
        for what in ("squares", "sums"):
            self._send_once(what, _BITS * sum(len(s.norm) for s in statistics.values()))
        return {name: s.var for name, s in statistics.items()}

    def _statistics(self) -> dict[str, InputStatistics]:
        self._need("inputs")
        if self._collected.statistics is None:
            self._need_batches("inputs", loss=False)
            self._collected.statistics = input_statistics(self.module, self.layout, self._passes())
        return self._collected.statistics

    def _passes(self) -> Iterator[None]:
        for device, batch in enumerate(self.batches):
            with torch.no_grad():
                self._forward(self.weights, batch.inputs)
            self._charge(device, forward=len(batch.inputs))
            yield

    # Outputs ---------------------------------------------------------------------------------

    def outputs(self, at: Mask | Tensor | None = None) -> Tensor:
        """Return the outputs on all samples, [N, ...]; every call is a forward pass whose outputs are sent.

        Parameters
        ----------
        at : Mask, bool tensor [P], or floating-point tensor [P]
            What is kept, or weights to use instead. None: the dense weights.
        """
        out = self._outputs(at)
        for device, batch in enumerate(self.batches):
            self._charge(device, bits=_BITS * out[0].numel() * len(batch.inputs))
        return out

    def output_change(self, at: Mask | Tensor) -> float:
        """Return the mean squared change of the outputs against the dense weights; each device sends one number.

        The mean is over devices by share, and over the samples and outputs of each. Arguments as in `outputs`.
        """
        if self._collected.dense_outputs is None:
            self._collected.dense_outputs = self._outputs(None)
        change = (self._outputs(at) - self._collected.dense_outputs).to(torch.float64).square()
        parts = change.split([len(batch.inputs) for batch in self.batches])
        for device in range(len(self.batches)):
            self._charge(device, bits=_BITS)
        return sum(share * float(part.mean()) for share, part in zip(self._shares, parts, strict=True))

    def mean_loss(self, at: Mask | Tensor | None = None, *, refresh: bool = False) -> float:
        """Return the loss, the mean over devices by share; each device sends one number.

        Parameters
        ----------
        at : Mask, bool tensor [P], or floating-point tensor [P]
            As in `outputs`.
        refresh : bool
            Whether the statistics of batch normalisation are first measured at these weights, on each device by one
            forward pass, sent, and averaged by share.
        """
        self._need("outputs")
        self._need_batches("outputs", loss=True)
        assert self.loss is not None
        flat = self._weights_at(at)
        buffers: dict[str, Tensor] = {}
        if refresh:
            with evaluating(self.module):
                buffers = norm_statistics(self.module, self._refreshing(flat))
        total = 0.0
        for device, (batch, share) in enumerate(zip(self.batches, self._shares, strict=True)):
            with torch.no_grad():
                total += share * float(self.loss(self._forward(flat, batch.inputs, buffers), batch.labels))
            self._charge(device, forward=len(batch.inputs), bits=_BITS)
        return total

    def _refreshing(self, flat: Tensor) -> Iterator[tuple[float, Callable[[dict[str, Tensor]], object]]]:
        for device, (batch, share) in enumerate(zip(self.batches, self._shares, strict=True)):

            def run(buffers: dict[str, Tensor], device: int = device, batch: Batch = batch) -> None:
                with torch.no_grad():
                    functional_call(self.module, self.layout.split(flat) | buffers, (batch.inputs,))
                sent = sum(b.numel() for name, b in buffers.items() if name.endswith(("running_mean", "running_var")))
                self._charge(device, forward=len(batch.inputs), bits=_BITS * sent)

            yield share, run

    def mean_over_devices(self, measure: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the mean by share of what devices measure in one forward pass of their own, float64 [n].

        Parameters
        ----------
        measure : callable
            From the inputs of a device to a vector [n], which it sends.
        """
        self._need("outputs")
        self._need_batches("outputs", loss=False)
        total: Tensor | None = None
        for device, (batch, share) in enumerate(zip(self.batches, self._shares, strict=True)):
            measured = share * measure(batch.inputs).to(torch.float64)
            total = measured if total is None else total + measured
            self._charge(device, forward=len(batch.inputs), bits=_BITS * len(measured))
        assert total is not None
        return total

    def _outputs(self, at: Mask | Tensor | None) -> Tensor:
        self._need("outputs")
        self._need_batches("outputs", loss=False)
        flat = self._weights_at(at)
        parts = []
        for device, batch in enumerate(self.batches):
            with torch.no_grad():
                parts.append(self._forward(flat, batch.inputs))
            self._charge(device, forward=len(batch.inputs))
        return torch.cat(parts)

    def _weights_at(self, at: Mask | Tensor | None) -> Tensor:
        if at is None:
            return self.weights
        if isinstance(at, Mask):
            at = at.keep
        if at.shape != self.weights.shape:
            raise InputError(f"evidence: expected {len(self.weights)} parameters, found shape {tuple(at.shape)}")
        return torch.where(at, self.weights, 0.0) if at.dtype == torch.bool else at

    def _forward(self, flat: Tensor, inputs: Tensor, buffers: dict[str, Tensor] | None = None) -> Tensor:
        with evaluating(self.module):
            return functional_call(self.module, self.layout.split(flat) | (buffers or {}), (inputs,))

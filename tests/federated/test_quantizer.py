"""The stochastic quantiser: unbiased, bounded variance, exact packing, counted bits."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from jointopt.errors import InputError
from jointopt.federated.quantizer import (
    HEADER_BITS,
    WIDTHS,
    Payload,
    decode,
    encode,
    pack_codes,
    quantize,
    unpack_codes,
)

NARROW = [width for width in WIDTHS if width <= 16]
FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def raw_bits(values: torch.Tensor) -> list[int]:
    """The bit patterns, which tell -0.0 from 0.0."""
    return values.view(torch.int32).tolist()


def knob_table(low: float, high: float, bits: int) -> np.ndarray:
    """All knobs by the definition, in extended precision, as float32."""
    steps = 2**bits - 1
    span = np.longdouble(high) - np.longdouble(low)
    return (np.longdouble(low) + np.arange(steps + 1) * span / steps).astype(np.float32)


@pytest.mark.parametrize("width", NARROW)
@given(data=st.data())
def test_codes_pack_exactly(width: int, data: st.DataObject) -> None:
    codes = np.array(data.draw(st.lists(st.integers(0, 2**width - 1), max_size=40)), dtype=np.int64)
    body = pack_codes(codes, width)
    assert len(body) == -(-len(codes) * width // 8)
    as_text = "".join(f"{code:0{width}b}" for code in codes)
    assert body == int(as_text.ljust(8 * len(body), "0") or "0", 2).to_bytes(len(body), "big")
    np.testing.assert_array_equal(unpack_codes(body, len(codes), width), codes)


@pytest.mark.parametrize("width", NARROW)
def test_every_knob_survives(width: int) -> None:
    # All knobs as the input: nothing to round, so each must come back as itself, with its own code.
    table = torch.from_numpy(knob_table(-1.0, 3.0, width))
    payload = encode(table, width, seeded())
    np.testing.assert_array_equal(unpack_codes(payload.body, len(table), width), np.arange(2**width))
    assert torch.equal(decode(payload), table)


@pytest.mark.parametrize("width", WIDTHS)
@given(values=st.lists(FLOATS, max_size=20), seed=st.integers(0, 2**40))
def test_fast_path_is_bit_identical(width: int, values: list[float], seed: int) -> None:
    tensor = torch.tensor(values, dtype=torch.float32)
    slow, fast = seeded(seed), seeded(seed)
    payload = encode(tensor, width, slow)
    decoded = decode(payload)
    assert decoded.dtype == torch.float32
    assert decoded.shape == tensor.shape
    assert raw_bits(decoded) == raw_bits(quantize(tensor, width, fast))
    assert torch.equal(slow.get_state(), fast.get_state())
    assert payload.bits == len(values) * width + HEADER_BITS
    assert len(payload.body) == -(-len(values) * width // 8)
    if width == 32:
        assert raw_bits(decoded) == raw_bits(tensor)


@pytest.mark.parametrize("width", [1, 3, 8, 16])
@given(values=st.lists(FLOATS, min_size=1, max_size=20))
def test_goes_to_one_of_the_two_nearest_knobs(width: int, values: list[float]) -> None:
    tensor = torch.tensor(values, dtype=torch.float32)
    found = quantize(tensor, width, seeded(1)).double()
    exact = tensor.double()
    low, high = float(exact.min()), float(exact.max())
    # A whole step at most, and what the float32 rounding of the knob adds.
    allowed = (high - low) / (2**width - 1) * (1 + 1e-9) + max(abs(low), abs(high)) * 2.0**-23 + 2.0**-149
    assert ((found - exact).abs() <= allowed).all()
    assert (found[exact == low] == low).all()
    assert (found[exact == high] == high).all()


@pytest.mark.parametrize("offset", [0.0, 1000.0])
@pytest.mark.parametrize("bits", [1, 2, 5, 8, 12, 16])
def test_unbiased_and_variance_bounded(bits: int, offset: float) -> None:
    # With the offset, 12 and 16 bits put the knobs as close as float32 can tell apart.
    inputs = torch.rand(50, generator=seeded(3)) * 0.03 + offset
    draws = 4000
    generator = seeded(4)
    many = torch.stack([quantize(inputs, bits, generator) for _ in range(draws)]).double()
    exact = inputs.double()
    low, high = float(exact.min()), float(exact.max())
    table = knob_table(low, high, bits).astype(np.float64)
    index = np.clip(np.searchsorted(table, exact.numpy(), side="right") - 1, 0, len(table) - 2)
    below, above = torch.from_numpy(table[index]), torch.from_numpy(table[index + 1])
    variance = (exact - below) * (above - exact)  # of the two-point law
    error = many.mean(dim=0) - exact
    assert (error[variance == 0] == 0).all()
    score = error[variance > 0] / (variance[variance > 0] / draws).sqrt()
    if len(score):
        assert float(score.abs().max()) < 4.5  # each entry by itself
        assert abs(float(score.sum())) < 4.0 * len(score) ** 0.5  # and no common drift
        assert float((score**2).mean()) == pytest.approx(1.0, abs=0.9)  # the law has this variance, not less
    bound = ((high - low) / (2**bits - 1)) ** 2 / 4
    gap = float((above - below).max())
    assert (variance <= gap**2 / 4 * (1 + 1e-12)).all()
    if offset == 0.0:
        assert gap <= 2 * bound**0.5 + high * 2.0**-23  # the knobs are rounded to float32
        # The fourth moment of a two-point law is small enough for 10% at 4,000 draws.
        assert float(((many - exact) ** 2).mean(dim=0).max()) <= bound * 1.1


def test_sixteen_bits_has_no_drift() -> None:
    # One long vector: a float32 floor(t + u) drifts upwards by a part of a step that this resolves.
    inputs = torch.rand(400_000, generator=seeded(8))
    found = quantize(inputs, 16, seeded(9)).double()
    step = float(inputs.max() - inputs.min()) / 65535
    drift = float((found - inputs.double()).mean()) / step
    assert abs(drift) < 4.5 * (1 / 6 / 400_000) ** 0.5  # a uniform position has variance step^2 / 6


@pytest.mark.parametrize("width", WIDTHS)
def test_degenerate_vectors(width: int) -> None:
    for values in ([], [0.1], [-7.5] * 9, [0.0, -0.0, 0.0], [3e38, 3e38]):
        tensor = torch.tensor(values, dtype=torch.float32)
        payload = encode(tensor, width, seeded())
        assert torch.equal(decode(payload), tensor)
        assert payload.count == len(values)
        assert payload.bits == len(values) * width + 64
    extreme = torch.tensor([-3.4e38, 1.0, 3.4e38])
    assert torch.isfinite(quantize(extreme, width, seeded())).all()


def test_same_number_of_draws_whatever_the_values() -> None:
    states = []
    for values in (torch.ones(6), torch.arange(6.0)):
        generator = seeded(2)
        quantize(values, 4, generator)
        states.append(generator.get_state())
    assert torch.equal(*states)


def test_only_the_given_generator_is_used() -> None:
    values = torch.rand(100, generator=seeded(5))
    state = torch.get_rng_state()
    first = encode(values, 3, seeded(1))
    assert torch.equal(torch.get_rng_state(), state)
    assert encode(values, 3, seeded(1)) == first != encode(values, 3, seeded(2))


def test_result_is_detached_and_apart() -> None:
    values = torch.ones(3, requires_grad=True)
    found = quantize(values, 32, seeded())
    found[0] = 5.0
    assert not found.requires_grad
    assert values.tolist() == [1.0, 1.0, 1.0]


def test_more_bits_less_error() -> None:
    values = torch.randn(2000, generator=seeded(6))
    errors = [float((quantize(values, bits, seeded(7)) - values).square().mean()) for bits in WIDTHS]
    assert all(a > 2 * b for a, b in pairwise(errors))
    assert errors[-1] == 0.0


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("bits", [4, 32])
def test_not_finite_is_refused(bad: float, bits: int) -> None:
    for function in (encode, quantize):
        with pytest.raises(InputError, match="at index 2"):
            function(torch.tensor([0.0, 1.0, bad, 2.0]), bits, seeded())


@pytest.mark.parametrize("bits", [0, -1, 17, 31, 33, 8.0, True, "8", None])
def test_unknown_width_is_refused(bits: Any) -> None:
    for function in (encode, quantize):
        with pytest.raises(InputError, match=r"1 \.\. 16, or 32"):
            function(torch.ones(3), bits, seeded())


@pytest.mark.parametrize("values", [torch.ones(2, 2), torch.tensor(1.0), torch.ones(3).double()])
def test_not_a_float32_vector_is_refused(values: torch.Tensor) -> None:
    with pytest.raises(InputError, match="1-D float32"):
        encode(values, 8, seeded())


def test_payload_is_frozen_and_checked() -> None:
    payload = encode(torch.arange(5.0), 3, seeded())
    assert payload == Payload(payload.body, 0.0, 4.0, 5, 3)
    with pytest.raises(FrozenInstanceError):
        payload.width = 4  # type: ignore[misc]
    for change in ({"body": b""}, {"count": 6}, {"width": 7}, {"width": 20}):
        with pytest.raises(InputError):
            replace(payload, **change)  # type: ignore[arg-type]
    for low, high in ((1.0, 0.0), (float("nan"), 1.0), (0.0, float("inf"))):
        with pytest.raises(InputError, match="finite and ordered"):
            replace(payload, low=low, high=high)

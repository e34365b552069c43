"""The stochastic quantiser: unbiased, bounded variance, exact packing, counted bits."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, replace
from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from jointopt.errors import InputError
from jointopt.federated.codecs.base import Payload
from jointopt.federated.codecs.grid import Grid, Rounder, Words
from jointopt.federated.codecs.packing import CHUNK, code_type, pack_codes, unpack_codes
from jointopt.federated.codecs.uniform import Uniform

WIDTHS, HEADER_BITS = Uniform.widths, Uniform.header_bits
encode, decode, quantize = Uniform().encode, Uniform().decode, Uniform().simulate
NARROW = [width for width in WIDTHS if width <= 24]
FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
LARGEST = float(np.finfo(np.float32).max)
TINIEST = float(np.finfo(np.float32).smallest_subnormal)


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


# ------------------------------------------------------------------------------------------ packing


@pytest.mark.parametrize("width", range(1, 33))
@settings(max_examples=25)
@given(data=st.data())
def test_codes_pack_exactly(width: int, data: st.DataObject) -> None:
    codes = np.array(data.draw(st.lists(st.integers(0, 2**width - 1), max_size=40)), dtype=np.int64)
    body = pack_codes(codes, width)
    assert len(body) == -(-len(codes) * width // 8)
    as_text = "".join(f"{code:0{width}b}" for code in codes)
    assert body == int(as_text.ljust(8 * len(body), "0") or "0", 2).to_bytes(len(body), "big")
    np.testing.assert_array_equal(unpack_codes(body, len(codes), width), codes)


@pytest.mark.parametrize("width", [1, 5, 8, 11, 16, 21])
def test_chunks_leave_no_seam(width: int) -> None:
    codes = np.random.default_rng(0).integers(0, 2**width, 2 * CHUNK + 13)
    body = pack_codes(codes, width)
    octets = codes.astype(">u4").view(np.uint8).reshape(-1, 4)
    assert body == np.packbits(np.unpackbits(octets, axis=1)[:, 32 - width :]).tobytes()
    np.testing.assert_array_equal(unpack_codes(body, len(codes), width), codes)


@pytest.mark.parametrize("codes", [[0, 8], [-1, 3]])
def test_codes_that_do_not_fit_are_refused(codes: list[int]) -> None:
    with pytest.raises(InputError, match=r"0 \.\. 7, found"):
        pack_codes(np.array(codes), 3)
    with pytest.raises(InputError, match="fill 2 bytes, found 1"):
        unpack_codes(b"1", 3, 5)


# ------------------------------------------------------------------------------------------ unbiasedness

RANGES = {
    "gradient": (-0.3, 0.7),
    "mirrored": (-0.7, 0.3),
    "to zero": (-2.5, 0.0),
    "from a hair": (1e-30, 1.0),
    "to a hair": (-1.0, 1e-30),
    "offset": (2.0, 3.0),
    "far offset": (-1000.03, -1000.0),  # knobs collide in float32 from 9 bits on
    "neighbours": (1.0, float(np.nextafter(np.float32(1.0), np.float32(2.0)))),
    "huge": (-LARGEST, LARGEST),
    "huge and lopsided": (-1e30, LARGEST),
    "denormal": (-40 * TINIEST, 90 * TINIEST),
    "smallest": (0.0, TINIEST),
}


def cases(low: float, high: float, count: int = 60) -> NDArray[np.float32]:
    """Entries all over a range: its ends, its smallest magnitudes, knobs and what lies around them."""
    rng = np.random.default_rng(5)
    start, end = np.float32(low), np.float32(high)
    spread = low + (high - low) * rng.random(count)
    close = np.concatenate(
        [low + (high - low) * 10.0 ** -rng.uniform(0, 12, count // 3), 10.0 ** -rng.uniform(0, 40, 9)]
    )
    near = [np.nextafter(knob_table(low, high, b)[:99], side) for b in (1, 4, 16) for side in (start, end)]
    found = np.concatenate([[start, end], spread, close, *near, knob_table(low, high, 8)[100:140]]).astype(np.float32)
    return np.clip(found, start, end)


def ups(rounder: Rounder, values: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[Any], NDArray[Any]]:
    """How many of all 2**32 words send each entry away from `near`, and the codes of the first and the last word.

    The codes are monotone in the word, so bisection finds the count without asking every word.
    """

    def at(words: NDArray[np.int64]) -> NDArray[Any]:
        out = np.empty(len(values), dtype=code_type(rounder.grid.steps.bit_length()))
        rounder.codes(values, words.astype(np.uint32), out)
        return out

    first, last = at(np.zeros(len(values), np.int64)), at(np.full(len(values), 2**32 - 1))
    below, above = np.full(len(values), -1), np.full(len(values), 2**32)
    above[first != last] = 2**32 - 1
    below[first != last] = 0
    while (above - below > 1).any():
        middle = np.where(above - below > 1, (below + above) // 2, np.clip(below, 0, None))
        same = at(middle) == first
        move = above - below > 1
        below = np.where(move & same, middle, below)
        above = np.where(move & ~same, middle, above)
    rng = np.random.default_rng(1)
    for _ in range(8):  # monotone also elsewhere
        words = rng.integers(0, 2**32, len(values))
        np.testing.assert_array_equal(at(words), np.where(words < above, first, last))
    return 2**32 - above, first, last


@pytest.mark.parametrize("width", [1, 2, 4, 8, 12, 16, 17, 24])
@pytest.mark.parametrize("name", RANGES)
def test_expectation_over_all_draws_is_the_entry(name: str, width: int) -> None:
    low, high = (float(np.float32(end)) for end in RANGES[name])
    values = cases(low, high)
    rounder = Rounder(Grid(low, high, 2**width - 1), code_type(width), len(values))
    count, first, last = ups(rounder, values)
    knob = [np.empty(len(values), dtype=np.float32) for _ in range(2)]
    rounder.knobs(first, knob[0])
    rounder.knobs(last, knob[1])
    span = Fraction(high) - Fraction(low)
    for i, value in enumerate(values.tolist()):
        stay, go = Fraction(float(knob[0][i])), Fraction(float(knob[1][i]))
        expected = stay + (go - stay) * Fraction(int(count[i]), 2**32)
        assert abs(expected - Fraction(value)) <= abs(go - stay) / 2**31 + span / 2**48, (value, width)
        if value in (low, high):
            assert expected == Fraction(value)
    # the rule itself, without the shortcut, decides every draw alike
    rounder._margin = None
    for found, wanted in zip(ups(rounder, values), (count, first, last), strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_most_entries_take_the_shortcut() -> None:
    for width in range(1, 17):
        margin = Rounder(Grid(-0.4, 1.0, 2**width - 1), code_type(width), 1)._margin
        assert margin is not None
        assert 2 * margin / 2 ** (32 - width) < 0.01
    assert Rounder(Grid(1000.0, 1000.03, 2**12 - 1), code_type(12), 1)._margin is None


@pytest.mark.parametrize("width", NARROW)
@pytest.mark.parametrize(("low", "high"), [(-1.0, 3.0), (-3.0, 1.0)])
def test_every_knob_survives(width: int, low: float, high: float) -> None:
    # Knobs as the input: nothing to round, so each must come back as itself, with its own code.
    table = knob_table(low, high, min(width, 16)) if width <= 16 else cases(low, high)
    once = quantize(torch.from_numpy(table), width, seeded())
    payload = encode(once, width, seeded(1))
    assert torch.equal(decode(payload), once)
    if width <= 16:
        np.testing.assert_array_equal(unpack_codes(payload.body, len(table), width), np.arange(2**width))
        np.testing.assert_array_equal(once.numpy(), table)


@pytest.mark.parametrize("width", [1, 2, 5, 8, 13, 16, 24])
@pytest.mark.parametrize("name", RANGES)
def test_knobs_are_even_ordered_and_end_exactly(name: str, width: int) -> None:
    low, high = (float(np.float32(end)) for end in RANGES[name])
    steps = 2**width - 1
    codes = np.unique(np.linspace(0, steps, 300).astype(np.int64)).astype(code_type(width))
    found = np.empty(len(codes), dtype=np.float32)
    Rounder(Grid(low, high, steps), code_type(width), len(codes)).knobs(codes, found)
    assert (found[0], found[-1]) == (low, high)
    assert (found[1:] >= found[:-1]).all()
    for code, knob in zip(codes.tolist(), found.tolist(), strict=True):
        exact = Fraction(low) + (Fraction(high) - Fraction(low)) * code / steps
        slack = abs(exact) * Fraction(1, 2**24) + Fraction(TINIEST) / 2 + Fraction(max(-low, high)) / 2**50
        assert abs(Fraction(knob) - exact) <= slack


@pytest.mark.parametrize("offset", [0.0, 1000.0])
@pytest.mark.parametrize("bits", [1, 2, 5, 8, 12, 16, 20])
def test_unbiased_and_variance_bounded(bits: int, offset: float) -> None:
    # With the offset, 12 and more bits put the knobs as close as float32 can tell apart.
    inputs = torch.rand(50, generator=seeded(3)) * 0.03 + offset
    draws = 4000
    many = quantize(inputs.repeat(draws), bits, seeded(4)).reshape(draws, 50).double()
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
        if bits <= 16:  # the fourth moment of a two-point law is small enough for 10% at 4,000 draws
            assert float(((many - exact) ** 2).mean(dim=0).max()) <= bound * 1.1


def test_sixteen_bits_has_no_drift() -> None:
    # One long vector: a float32 floor(t + u) drifts upwards by a part of a step that this resolves.
    inputs = torch.rand(400_000, generator=seeded(8))
    found = quantize(inputs, 16, seeded(9)).double()
    step = float(inputs.max() - inputs.min()) / 65535
    drift = float((found - inputs.double()).mean()) / step
    assert abs(drift) < 4.5 * (1 / 6 / 400_000) ** 0.5  # a uniform position has variance step^2 / 6


def test_words_are_even_and_independent() -> None:
    words = Words(seeded(1)).draw(2**17 + 1)
    assert words.dtype == np.uint32 and len(words) == 2**17 + 1
    bits = np.unpackbits(words.view(np.uint8)).reshape(-1, 32)
    assert abs(bits.mean(axis=0) - 0.5).max() < 5 * 0.5 / len(words) ** 0.5
    u = words / 2.0**32 - 0.5
    for lag in (1, 2, 3):
        assert abs((u[lag:] * u[:-lag]).mean()) < 5 / 12 / len(u) ** 0.5


# ------------------------------------------------------------------------------------------ encode, decode, quantize


@pytest.mark.parametrize("width", WIDTHS)
@settings(max_examples=25)
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


@pytest.mark.parametrize("width", [3, 8, 12, 20])
def test_long_vectors_are_bit_identical(width: int) -> None:
    values = torch.randn(2 * CHUNK + 11, generator=seeded(2))
    assert torch.equal(decode(encode(values, width, seeded(1))), quantize(values, width, seeded(1)))
    # what a chunk holds does not depend on where the vector ends
    ends = torch.cat([torch.stack(values.aminmax()), values])
    whole, part = quantize(ends, width, seeded(1)), quantize(ends[: CHUNK + 3], width, seeded(1))
    assert torch.equal(whole[: CHUNK + 3], part)


@pytest.mark.parametrize("width", [1, 3, 8, 16, 24])
@settings(max_examples=40)
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


def test_same_bytes_on_every_machine() -> None:
    values = torch.tensor([-1.0, -0.75, 2.0, 0.1, 0.25, 1.5, 1.9, -0.3, 0.0])
    payload = encode(values, 3, seeded(7))
    assert (payload.body.hex(), payload.header) == ("07a7b940", (-1.0, 2.0))
    assert encode(values, 11, seeded(7)).body.hex() == "0002afffaee6abaabdd9dd5540"


def test_same_number_of_draws_whatever_the_values() -> None:
    states = []
    for values in (torch.ones(6), torch.arange(6.0), torch.empty(0)):
        generator = seeded(2)
        quantize(values, 4, generator)
        states.append(generator.get_state())
    assert torch.equal(states[0], states[1]) and torch.equal(states[0], states[2])
    assert not torch.equal(states[0], seeded(2).get_state())


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
    strided = torch.arange(12.0)[::3]
    assert torch.equal(quantize(strided, 2, seeded()), torch.tensor([0.0, 3.0, 6.0, 9.0]))


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


@pytest.mark.parametrize("bits", [0, -1, 25, 31, 33, 8.0, True, "8", None])
def test_unknown_width_is_refused(bits: Any) -> None:
    for function in (encode, quantize):
        with pytest.raises(InputError, match=r"1 \.\. 24 or 32"):
            function(torch.ones(3), bits, seeded())


@pytest.mark.parametrize("values", [torch.ones(2, 2), torch.tensor(1.0), torch.ones(3).double(), np.ones(3), [1.0]])
def test_not_a_float32_vector_is_refused(values: Any) -> None:
    with pytest.raises(InputError, match="1-D float32"):
        encode(values, 8, seeded())


def test_payload_is_frozen_and_checked() -> None:
    payload = encode(torch.arange(5.0), 3, seeded())
    assert payload == Payload("uniform", payload.body, (0.0, 4.0), 5, 3, 15, 64)
    with pytest.raises(FrozenInstanceError):
        payload.width = 4  # type: ignore[misc]
    for change in ({"body": b""}, {"count": 6}, {"width": 7}, {"width": 28}, {"body_bits": 16}, {"header_bits": 32}):
        with pytest.raises(InputError):
            decode(replace(payload, **change))  # type: ignore[arg-type]
    for header in ((1.0, 0.0), (float("nan"), 1.0), (0.0, float("inf")), (0.0,), (0.0, 0.1)):
        with pytest.raises(InputError, match="finite"):
            decode(replace(payload, header=header))

"""What every codec must keep, asked of all that are registered, and what single ones add."""

from __future__ import annotations

import math
from dataclasses import FrozenInstanceError, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jointopt.errors import InputError
from jointopt.federated.codecs import CODECS, Codec, ErrorFeedback, Qsgd, Ternary, Uniform, codec
from jointopt.federated.codecs.packing import CHUNK, join_bits, split_bits
from jointopt.models import compression

FLOATS = st.floats(-(2.0**60), 2.0**60, width=32)

# options to try beside the defaults
OPTIONS: dict[str, list[dict[str, Any]]] = {"ternary": [{"density": 0.3}, {"density": 1.0}]}


def some(widths: tuple[int, ...]) -> list[int]:
    """The ends, the middle, and the steps between packed types."""
    return sorted({widths[0], widths[len(widths) // 2], widths[-1]} | ({3, 8, 9, 16, 17} & set(widths)))


MEMBERS = [codec(name, **options) for name in CODECS for options in [{}, *OPTIONS.get(name, [])]]
CASES = [pytest.param(member, bits, id=f"{member}-{bits}") for member in MEMBERS for bits in some(member.widths)]
every = pytest.mark.parametrize(("member", "bits"), CASES)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pattern(values: torch.Tensor) -> list[int]:
    """The bit patterns, which tell -0.0 from 0.0."""
    return values.view(torch.int32).tolist()


def check_one(member: Codec, values: torch.Tensor, bits: int, seed: int = 0) -> torch.Tensor:
    """Everything that holds of a single vector."""
    packed, simulated = seeded(seed), seeded(seed)
    payload = member.encode(values, bits, packed)
    decoded = member.decode(payload)
    assert decoded.dtype == torch.float32 and decoded.shape == values.shape
    assert pattern(decoded) == pattern(member.simulate(values, bits, simulated))
    assert torch.equal(packed.get_state(), simulated.get_state())
    assert torch.isfinite(decoded).all()
    assert payload.bits == payload.body_bits + payload.header_bits == member.payload_bits(len(values), bits)
    assert 0 <= 8 * len(payload.body) - payload.body_bits < 8
    assert 32 * len(payload.header) >= payload.header_bits
    return decoded


def error(decoded: torch.Tensor, values: torch.Tensor) -> float:
    return float((decoded.double() - values.double()).square().sum())


@every
@settings(max_examples=25)
@given(values=st.lists(FLOATS, max_size=40), seed=st.integers(0, 2**40))
def test_simulation_is_what_arrives(member: Codec, bits: int, values: list[float], seed: int) -> None:
    check_one(member, torch.tensor(values, dtype=torch.float32), bits, seed)


@every
def test_long_vectors(member: Codec, bits: int) -> None:
    values = torch.randn(CHUNK + 1003, generator=seeded(1))
    assert error(check_one(member, values, bits), values) <= 1.2 * member.error_bound(values, bits)


@every
def test_empty_and_constant(member: Codec, bits: int) -> None:
    assert len(check_one(member, torch.empty(0), bits)) == 0
    assert member.error_bound(torch.empty(0), bits) == 0.0
    zeros = check_one(member, torch.zeros(11), bits)
    assert torch.equal(zeros, torch.zeros(11))
    for constant in (-0.75, 3.0, 1e-42):
        values = torch.full((11,), constant)
        found = check_one(member, values, bits)
        if not member.random:
            assert error(found, values) <= member.error_bound(values, bits)


VECTORS = {
    "normal": torch.randn(300, generator=seeded(1)),
    "one-sided": torch.rand(300, generator=seeded(2)) + 1.0,
    "sparse": torch.randn(300, generator=seeded(3)) * (torch.rand(300, generator=seeded(4)) < 0.1),
    "one large": torch.cat([torch.tensor([100.0]), torch.randn(299, generator=seeded(5))]),
    "small": torch.randn(300, generator=seeded(6)) * 1e-39,
    "large": torch.randn(300, generator=seeded(7)) * 1e36,
}


@every
@pytest.mark.parametrize("kind", VECTORS)
def test_error_and_bias(member: Codec, bits: int, kind: str) -> None:
    values = VECTORS[kind]
    draws = 60 if member.random else 1
    generator = seeded(11)
    many = torch.stack([member.simulate(values, bits, generator) for _ in range(draws)]).double()
    errors = (many - values.double()).square().sum(dim=1)
    mean, bound = float(errors.mean()), member.error_bound(values, bits)
    spread = float(errors.std()) / draws**0.5 if draws > 1 else 0.0
    assert mean <= bound * (1 + 1e-9) + 5 * spread
    if not member.random:
        assert mean == 0.0 if member.unbiased else 0.0 < mean >= bound * (1 - 1e-5)  # stated as exact
    elif member.unbiased:
        # of the mean over the draws, what a bias would leave as it is falls as 1 / draws
        left = float((many.mean(dim=0) - values.double()).square().sum())
        assert left <= 2.0 * mean / draws


@every
def test_same_seed_same_bytes(member: Codec, bits: int) -> None:
    values = VECTORS["normal"]
    state = torch.get_rng_state()
    first, again, other = (member.encode(values, bits, seeded(seed)) for seed in (1, 1, 2))
    assert first == again
    assert (first != other) == (member.random and bits != 32)
    assert torch.equal(torch.get_rng_state(), state)


@every
def test_generator_moves_alike_whatever_the_values(member: Codec, bits: int) -> None:
    states = []
    for values in (torch.zeros(40), VECTORS["normal"], torch.empty(0)):
        generator = seeded(2)
        member.encode(values, bits, generator)
        states.append(generator.get_state())
    assert torch.equal(states[0], states[1]) and torch.equal(states[0], states[2])
    assert torch.equal(states[0], seeded(2).get_state()) != (member.random and bits != 32)


@every
def test_input_stays_and_result_is_apart(member: Codec, bits: int) -> None:
    values = VECTORS["normal"].clone().requires_grad_()
    for found in (member.simulate(values, bits, seeded()), member.decode(member.encode(values, bits, seeded()))):
        assert not found.requires_grad
        found.fill_(7.0)
    assert torch.equal(values.detach(), VECTORS["normal"])
    strided = torch.randn(90, generator=seeded(3))[::3]
    assert torch.equal(member.simulate(strided, bits, seeded(1)), member.simulate(strided.clone(), bits, seeded(1)))


@every
def test_bad_values_are_refused(member: Codec, bits: int) -> None:
    for function in (member.encode, member.simulate):
        for bad in (math.nan, math.inf, -math.inf):
            with pytest.raises(InputError, match=r"found -?(nan|inf) at index 2"):
                function(torch.tensor([0.0, 1.0, bad, 2.0]), bits, seeded())
        for wrong in (torch.ones(2, 2), torch.tensor(1.0), torch.ones(3).double(), torch.ones(3).int(), [1.0], None):
            with pytest.raises(InputError, match="1-D float32"):
                function(wrong, bits, seeded())  # type: ignore[arg-type]
    with pytest.raises(InputError, match="index 0"):
        member.error_bound(torch.tensor([math.nan]), bits)
    if member.random and bits != 32:
        with pytest.raises(InputError, match=r"seeded torch\.Generator, found None"):
            member.encode(torch.ones(3), bits)
    else:
        assert member.encode(torch.ones(3), bits) == member.encode(torch.ones(3), bits, seeded())


@pytest.mark.parametrize("member", MEMBERS, ids=str)
def test_bad_bits_are_refused(member: Codec) -> None:
    values = torch.ones(3)
    for bits in (0, -1, 33, 25, 8.0, True, "8", None, max(member.widths) + 1):
        for call in (
            lambda bits=bits: member.encode(values, bits, seeded()),
            lambda bits=bits: member.simulate(values, bits, seeded()),
            lambda bits=bits: member.payload_bits(3, bits),
            lambda bits=bits: member.error_bound(values, bits),
        ):
            with pytest.raises(InputError, match="bits must be"):
                call()
    for count in (-1, 2.0, None, True):
        with pytest.raises(InputError, match="count must be"):
            member.payload_bits(count, member.widths[0])  # type: ignore[arg-type]


@every
def test_damaged_payload_is_refused(member: Codec, bits: int) -> None:
    payload = member.encode(VECTORS["normal"], bits, seeded())
    changes: list[dict[str, Any]] = [
        {"body": payload.body[:-1]},
        {"body": payload.body + b"\0"},
        {"count": -1},
        {"count": 400},
        {"width": 33},
        {"width": 5 if bits != 5 else 6},
        {"header": (*payload.header, 0.0)},
        {"header": (math.nan, *payload.header[1:])},
        {"header": (math.inf, *payload.header[1:])},
        {"header": (0.1, *payload.header[1:])},
        {"header_bits": payload.header_bits + 1},
        {"codec": "other"},
    ]
    if payload.header:
        changes += [{"header": payload.header[:-1]}, {"header": (1e30, *[-1e30] * (len(payload.header) - 1))}]
    for change in changes:
        with pytest.raises(InputError):
            member.decode(replace(payload, **change))
    with pytest.raises(FrozenInstanceError):
        payload.width = 1  # type: ignore[misc]


@pytest.mark.parametrize("member", MEMBERS, ids=str)
def test_padding_must_be_zero(member: Codec) -> None:
    payload = member.encode(torch.arange(1.0, 6.0), member.widths[0], seeded())
    if payload.body_bits % 8:
        with pytest.raises(InputError, match="padding"):
            replace(payload, body=payload.body[:-1] + bytes([payload.body[-1] | 1]))
    else:
        assert member.name in ("raw", "ternary")


@every
@settings(max_examples=20)
@given(data=st.data())
def test_any_body_is_decoded_or_refused(member: Codec, bits: int, data: st.DataObject) -> None:
    payload = member.encode(VECTORS["normal"][:16], bits, seeded())
    body = data.draw(st.binary(min_size=len(payload.body), max_size=len(payload.body)))
    try:
        found = member.decode(replace(payload, body=body))
    except InputError:
        return
    assert found.shape == (16,) and torch.isfinite(found).all()


# ------------------------------------------------------------------------------------------ registry


def test_names_and_options() -> None:
    assert [codec(name).name for name in CODECS] == list(CODECS)
    assert codec("ternary", density=0.5) == Ternary(0.5)
    for name, message in (("unifrom", "did you mean 'uniform'"), ("x", "known: "), (3, "unknown 3")):
        with pytest.raises(InputError, match=message):
            codec(name)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="unknown option 'densty'; did you mean 'density'"):
        codec("ternary", densty=0.5)
    with pytest.raises(InputError, match="unknown option 'density'; it takes none"):
        codec("uniform", density=0.5)
    for density in (0.0, -0.1, 1.1, math.nan, "1", None, True):
        with pytest.raises(InputError, match="density must lie in"):
            codec("ternary", density=density)


# ------------------------------------------------------------------------------------------ single codecs


@pytest.mark.parametrize("bits", [1, 4, 12])
def test_uniform_states_the_formulas(bits: int) -> None:
    values = VECTORS["normal"]
    span = float(values.max() - values.min())
    assert Uniform().payload_bits(300, bits) == compression.payload_bits(300, bits, header=64)
    stated = compression.quantization_variance(300, span, bits)
    assert stated <= Uniform().error_bound(values, bits) <= stated * 1.01
    assert Uniform().error_bound(torch.full((4,), 3.0), bits) == 0.0


def test_uniform_reaches_its_bound() -> None:
    # halfway between two knobs the variance is as large as it can be
    values = torch.cat([torch.tensor([0.0, 15.0]), torch.full((500,), 7.5)])
    found = [error(Uniform().simulate(values, 4, seeded(s)), values) for s in range(5)]
    assert np.mean(found) == pytest.approx(Uniform().error_bound(values, 4), rel=0.01)


def test_qsgd_by_hand() -> None:
    values = torch.tensor([3.0, -4.0, 0.0])
    payload = Qsgd().encode(values, 3, seeded())  # levels 0, 5/3, 10/3, 5
    assert payload.header == (5.0,)
    assert payload.bits == 3 * 3 + 32
    codes = int.from_bytes(payload.body, "big") >> 7
    levels = [(codes >> shift) & 7 for shift in (6, 3, 0)]
    assert levels[0] in (1, 2) and levels[1] - 4 in (2, 3) and levels[2] == 0
    steps = torch.tensor([levels[0], 4 - levels[1], 0]) * 5 / 3
    torch.testing.assert_close(Qsgd().decode(payload), steps)


def test_qsgd_states_the_formulas_and_is_unbiased() -> None:
    values = VECTORS["normal"]
    square = float(values.double().square().sum())
    for bits in (2, 5, 8):
        omega = compression.qsgd_factor(300.0, 2.0 ** (bits - 1) - 1)
        assert Qsgd().error_bound(values, bits) == pytest.approx(omega * square, rel=1e-4)
        mean = Qsgd().simulate(values.repeat(1), bits, seeded()).double()
        assert set((mean.abs() / math.sqrt(square) * (2 ** (bits - 1) - 1)).round(decimals=4).tolist()) <= {
            float(level) for level in range(2 ** (bits - 1))
        }
    with pytest.raises(InputError, match=r"norm 6e\+38 .* does not fit float32"):
        Qsgd().encode(torch.full((4,), 3e38), 4, seeded())


def test_qsgd_norm_is_never_below_an_entry() -> None:
    for value in (0.1, 1e-45, 3.3e38, 1 / 3):
        values = torch.tensor([value, 0.0])
        assert torch.equal(Qsgd().simulate(values, 6, seeded()), values)


def test_sign_by_hand() -> None:
    values = torch.tensor([1.0, -2.0, 0.0, -0.0, 5.0])
    member = codec("sign")
    payload = member.encode(values, 1)
    assert (payload.body, payload.header, payload.bits) == (bytes([0b01000000]), (1.6000000238418579,), 5 + 32)
    assert torch.equal(member.decode(payload), 1.6 * torch.tensor([1.0, -1.0, 1.0, 1.0, 1.0]))
    square, absolute = 30.0, 8.0
    assert member.error_bound(values, 1) == pytest.approx(square - absolute**2 / 5, rel=1e-9)


def test_ternary_by_hand() -> None:
    values = torch.tensor([0.5, -4.0, 1.0, 0.0, 2.0, -1.0, 0.1, 0.2, 0.3, 0.4])
    member = Ternary(0.2)  # places 1 and 4, four bits each: shorter than ten
    payload = member.encode(values, 1)
    assert payload.header == (3.0, 1.0)
    assert (payload.body_bits, payload.header_bits) == (2 * 4 + 2, 33)
    assert payload.body == bytes([0b0001_0100, 0b10_000000])
    expected = torch.zeros(10)
    expected[1], expected[4] = -3.0, 3.0
    assert torch.equal(member.decode(payload), expected)
    rest = float(values.double().square().sum()) - 20.0
    assert member.error_bound(values, 1) == pytest.approx(rest + 20.0 - 36.0 / 2, rel=1e-6)
    bitmap = Ternary(0.5).encode(values, 1)
    assert bitmap.header[1] == 0.0 and bitmap.body_bits == 10 + 5
    wide = member.encode(torch.arange(1.0, 6.0), 1)  # one of five: three bits for the place, one for the sign
    assert (wide.body, wide.bits) == (bytes([0b1000_0000]), 4 + 33)


@pytest.mark.parametrize(("density", "count", "kept"), [(0.01, 50, 1), (0.01, 1000, 10), (0.3, 10, 3), (1.0, 7, 7)])
def test_ternary_keeps_so_many(density: float, count: int, kept: int) -> None:
    found = Ternary(density).simulate(torch.randn(count, generator=seeded()), 1)
    assert Ternary(density).kept(count) == int((found != 0).sum()) == kept
    assert Ternary(density).kept(0) == 0


def test_ternary_takes_the_largest_and_breaks_ties_by_place() -> None:
    values = torch.tensor([1.0, -1.0, 1.0, 1.0, 0.5, -3.0])
    found = Ternary(0.5).simulate(values, 1)
    assert (found != 0).tolist() == [False, False, True, True, False, True]


def test_ternary_places_must_ascend() -> None:
    payload = Ternary(0.2).encode(torch.tensor([0.0, -4.0, 0.0, 0.0, 2.0, 0.0, 0.0, 0.0, 0.0, 0.0]), 1)
    for places in (0x41, 0x44, 0x1F):
        with pytest.raises(InputError, match="places must ascend"):
            Ternary(0.2).decode(replace(payload, body=bytes([places]) + payload.body[1:]))
    with pytest.raises(InputError, match="form 'indices'"):
        Ternary(0.2).decode(replace(payload, header=(3.0, 0.0)))


@given(parts=st.lists(st.lists(st.booleans(), max_size=20), min_size=1, max_size=4))
def test_streams_join_and_split(parts: list[list[bool]]) -> None:
    streams = [(np.packbits(np.array(part, dtype=bool)).tobytes(), len(part)) for part in parts]
    joined = join_bits(streams)
    whole = np.array([bit for part in parts for bit in part], dtype=bool)
    assert joined == np.packbits(whole).tobytes()
    assert split_bits(joined, [size for _, size in streams]) == [body for body, _ in streams]


# ------------------------------------------------------------------------------------------ error feedback


@pytest.mark.parametrize(("member", "bits"), [(codec("sign"), 1), (Ternary(0.1), 1), (codec("qsgd"), 8)], ids=str)
def test_feedback_brings_everything_in_the_end(member: Codec, bits: int) -> None:
    feedback = ErrorFeedback(member)
    values = torch.randn(200, generator=seeded(1))
    rounds, generator = 400, seeded(2)
    state, total = feedback.start(200), torch.zeros(200, dtype=torch.float64)
    for _ in range(rounds):
        sent, state = feedback.simulate(values, state, bits, generator)
        total += sent.double()
    # what was sent and what is left add up to what was put in
    torch.testing.assert_close(total + state.double(), rounds * values.double(), rtol=1e-4, atol=1e-3)
    if not member.unbiased:
        alone = error(member.simulate(values, bits), values)
        assert error((total / rounds).float(), values) < 0.02 * alone


@every
def test_feedback_packs_what_it_simulates(member: Codec, bits: int) -> None:
    feedback = ErrorFeedback(member)
    values, state = VECTORS["normal"], torch.randn(300, generator=seeded(9))
    before = state.clone()
    payload, packed = feedback.encode(values, state, bits, seeded(3))
    sent, simulated = feedback.simulate(values, state, bits, seeded(3))
    assert torch.equal(member.decode(payload), sent)
    assert torch.equal(packed, simulated)
    assert torch.equal(packed, values + state - sent)
    assert torch.equal(state, before)


def test_feedback_refuses_another_state() -> None:
    feedback = ErrorFeedback(codec("sign"))
    for state in (torch.zeros(4), torch.zeros(3).double(), torch.zeros(3, 1), None, 0.0):
        with pytest.raises(InputError, match="state must be float32"):
            feedback.simulate(torch.ones(3), state, 1)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="found inf at index 0"):
        feedback.encode(torch.full((2,), 3e38), torch.full((2,), 3e38), 1)

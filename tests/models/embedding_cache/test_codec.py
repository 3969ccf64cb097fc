"""Entries: what was written is read, anything else is a miss."""

from __future__ import annotations

import hashlib
import os
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graph.errors import InvalidInput
from models.embedding_cache.codec import VectorCodec, widen

CODEC = VectorCodec(7)  # odd: the numbers are padded to whole words
KEYS = [bytes([n]) * 32 for n in range(5)]


def some_vectors(count: int = 5, dimensions: int = 7) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((count, dimensions)).astype(np.float32)


def entries() -> list[bytes]:
    return CODEC.encode_many(KEYS, some_vectors(), np.arange(-1, 4, dtype=np.int32))


def found_of(keys, values) -> list[bool]:
    return CODEC.decode_many(keys, values).found.tolist()


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("dimensions", [1, 2, 7, 384])
@pytest.mark.parametrize("count", [0, 1, 5, 600])
def test_what_was_written_is_read(dtype, dimensions, count):
    codec = VectorCodec(dimensions, dtype)
    keys, vectors = [os.urandom(32) for _ in range(count)], some_vectors(count, dimensions)
    tokens = np.arange(-1, count - 1, dtype=np.int32)
    values = codec.encode_many(keys, vectors, tokens)
    assert {len(value) for value in values} <= {codec.entry_bytes}
    decoded = codec.decode_many(keys, values)
    assert decoded.vectors.dtype == np.float32 and decoded.vectors.flags.writeable
    np.testing.assert_array_equal(decoded.vectors, vectors.astype(dtype).astype(np.float32))
    np.testing.assert_array_equal(decoded.vectors, codec.through_codec(vectors))
    np.testing.assert_array_equal(decoded.tokens, tokens)
    assert decoded.found.all() and decoded.damaged == 0


def test_widening_is_exact_for_every_finite_float16():
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    halves = halves[np.isfinite(halves)].reshape(-1, 64)
    wide, expected = widen(halves), halves.astype(np.float32)
    np.testing.assert_array_equal(wide.view(np.uint32), expected.view(np.uint32))  # -0.0 and subnormals too


@settings(max_examples=300)
@given(st.integers(0, 4), st.data())
def test_any_change_of_any_byte_is_a_miss(which, data):
    values = entries()
    at = data.draw(st.integers(0, CODEC.entry_bytes - 1))
    flip = data.draw(st.integers(1, 255))
    damaged = bytearray(values[which])
    damaged[at] ^= flip
    values[which] = bytes(damaged)
    decoded = CODEC.decode_many(KEYS, values)
    assert decoded.found.tolist() == [n != which for n in range(5)] and decoded.damaged == 1
    assert not decoded.vectors[which].any() and decoded.tokens[which] == -1


def test_every_single_bit_counts():
    value = entries()[0]
    flipped = []
    for bit in range(8 * len(value)):
        changed = bytearray(value)
        changed[bit // 8] ^= 1 << bit % 8
        flipped.append(bytes(changed))
    decoded = CODEC.decode_many([KEYS[0]] * len(flipped), flipped)
    assert not decoded.found.any() and decoded.damaged == len(flipped)


@given(st.binary(max_size=80))
def test_foreign_bytes_are_a_miss(value):
    decoded = CODEC.decode_many(KEYS[:2], [value, entries()[1]])
    assert decoded.found.tolist() == [False, True] and decoded.damaged == 1


@given(st.integers(0, 40))
def test_short_and_long_entries_are_a_miss(cut):
    value = entries()[0]
    assert found_of(KEYS[:1], [value[: min(cut, len(value) - 1)]]) == [False]
    assert found_of(KEYS[:1], [value + bytes(cut + 1)]) == [False]


def test_nothing_is_a_miss_that_is_not_damage():
    decoded = CODEC.decode_many(KEYS[:3], [None, entries()[1], None])
    assert decoded.found.tolist() == [False, True, False] and decoded.damaged == 0
    assert CODEC.decode_many(KEYS[:2], [None, None]).damaged == 0


def test_an_entry_of_another_key_is_a_miss():
    values = entries()
    values[1], values[3] = values[3], values[1]
    assert found_of(KEYS, values) == [True, False, True, False, True]
    for bit in range(256):
        near = bytearray(KEYS[0])
        near[bit // 8] ^= 1 << bit % 8
        assert found_of([bytes(near)], values[:1]) == [False]


def test_an_entry_of_another_dtype_or_dimension_is_a_miss():
    vectors, tokens = np.ones((1, 8), np.float32), np.zeros(1, np.int32)
    wide = VectorCodec(4, "float32").encode_many(KEYS[:1], vectors[:, :4], tokens)
    narrow = VectorCodec(8)
    assert len(wide[0]) == narrow.entry_bytes
    assert narrow.decode_many(KEYS[:1], wide).damaged == 1
    seven = CODEC.encode_many(KEYS[:1], vectors[:, :7], tokens)
    assert len(seven[0]) == narrow.entry_bytes
    assert narrow.decode_many(KEYS[:1], seven).damaged == 1


def test_a_well_formed_entry_of_infinities_is_a_miss():
    class Careless(VectorCodec):
        def narrow(self, vectors):
            return vectors.astype(np.float16)

    for bad in (np.inf, -np.inf, np.nan):
        vectors = some_vectors(2)
        vectors[1, 3] = bad
        values = Careless(7).encode_many(KEYS[:2], vectors, np.zeros(2, np.int32))
        assert found_of(KEYS[:2], values) == [True, False]


def test_pickles_are_a_miss():
    assert found_of(KEYS[:1], [pickle.dumps(some_vectors(1))]) == [False]


@pytest.mark.parametrize("bad", [65520.0, -70000.0, np.inf, np.nan, 65505.0])
def test_what_float16_cannot_hold_is_refused(bad):
    vectors = some_vectors(3)
    vectors[2, 6] = bad
    assert CODEC.storable(vectors).tolist() == [True, True, False]
    with pytest.raises(InvalidInput, match=r"vector 2 .*float16"):
        CODEC.encode_many(KEYS[:3], vectors, np.zeros(3, np.int32))
    with pytest.raises(InvalidInput):
        CODEC.through_codec(vectors)


def test_float32_holds_what_is_finite():
    codec = VectorCodec(2, "float32")
    vectors = np.array([[1e30, -1e-30], [np.inf, 0]], np.float32)
    assert codec.storable(vectors).tolist() == [True, False]
    assert codec.through_codec(vectors[:1]).tolist() == vectors[:1].tolist()


@pytest.mark.parametrize("dimensions", [0, 65536])
def test_dimensions_fit_the_header(dimensions):
    with pytest.raises(InvalidInput, match="dimensions"):
        VectorCodec(dimensions)


def test_the_format_is_what_it_was():
    """Entries outlive the code. The checksum is worked out here a second way, by Python's integers."""
    key = bytes(range(32))
    header = b"WEV1" + bytes([1, 0]) + (2).to_bytes(2, "little") + (5).to_bytes(4, "little")
    numbers = bytes.fromhex("003c00c0")  # 1 and -2
    stream = hashlib.shake_256(b"weft embedding checksum 1").digest(8 * 14)
    odd = [int.from_bytes(stream[at : at + 8], "little") | 1 for at in range(0, 8 * 14, 8)]
    covered = key + header + bytes(8) + numbers
    words = [int.from_bytes(covered[at : at + 4], "little") for at in range(0, len(covered), 4)]
    checksum = sum(word * factor for word, factor in zip(words, odd, strict=True)) % (1 << 64)
    value = VectorCodec(2).encode_many([key], np.array([[1, -2]], np.float32), np.array([5], np.int32))[0]
    assert value == header + checksum.to_bytes(8, "little") + numbers
    assert value.hex() == "5745563101000200050000" + "0023eee3ebddddebaa003c00c0"

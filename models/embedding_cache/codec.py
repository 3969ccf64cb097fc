"""The bytes of a cache entry: a header of 20 bytes, then the vector's numbers. Never pickle.

    offset  bytes
         0      4  magic and format, "WEV1"
         4      1  dtype: 1 float16, 2 float32
         5      1  zero
         6      2  dimensions d
         8      4  tokens of prompt and text, -1 unknown
        12      8  checksum
        20      .  d numbers, and zeros up to a multiple of four bytes

Little-endian throughout. The checksum is a sum over 32-bit words times fixed odd 64-bit numbers, modulo 2^64
(multilinear hashing, Lemire and Kaser 2014, "Strongly universal string hashing is fast"), over the key, the
header and the numbers: a single changed word always shows, and so does an entry under another entry's key. It
finds damage; it is no signature.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from graph.errors import InvalidInput
from models.embedding_cache.store import KEY_BYTES
from models.text_encoder.protocol import Float32, Int32

Numbers: TypeAlias = npt.NDArray[np.float16] | npt.NDArray[np.float32]
Bools: TypeAlias = npt.NDArray[np.bool_]
DtypeName: TypeAlias = Literal["float16", "float32"]

MAX_FLOAT16 = 65504.0
_MAGIC = int.from_bytes(b"WEV1", "little")
_DTYPES: dict[str, tuple[int, str]] = {"float16": (1, "<f2"), "float32": (2, "<f4")}
_HEADER_WORDS, _CHECKSUM_WORD = 5, 3
_BLOCK_ROWS = 256  # what is widened and multiplied at a time stays in the second-level cache


class Decoded(NamedTuple):
    """Vectors of `decode_many`."""

    vectors: Float32  # [n, d]; rows that were not found are zero
    tokens: Int32  # [n]; -1 where unknown or not found
    found: Bools  # [n]
    damaged: int
    """Values that were there and are no entry of their key."""


class DecodedRows(NamedTuple):
    """Numbers of `decode_rows`, as the entries hold them."""

    rows: Numbers  # [hits, d] in the order of the keys that were found
    tokens: Int32  # [hits]
    found: Bools  # [n]
    damaged: int


class VectorCodec:
    """Entries of vectors with `dimensions` numbers, kept as `dtype`."""

    def __init__(self, dimensions: int, dtype: DtypeName = "float16") -> None:
        if not 0 < dimensions < 1 << 16:
            raise InvalidInput(f"dimensions is {dimensions}; an entry holds 1 to 65535")
        if dtype not in _DTYPES:
            raise InvalidInput(f"dtype is {dtype!r}; an entry holds one of {', '.join(_DTYPES)}")
        code, self._numbers = _DTYPES[dtype]
        self.dimensions, self.dtype = dimensions, np.dtype(self._numbers)
        words = _HEADER_WORDS + -(-dimensions * self.dtype.itemsize // 4)
        self.entry_bytes = 4 * words
        self._kind = code | dimensions << 16
        multipliers = _odd_numbers(KEY_BYTES // 4 + words)
        self._of_key, self._of_words = multipliers[: KEY_BYTES // 4], multipliers[KEY_BYTES // 4 :]
        self._of_words[_CHECKSUM_WORD:_HEADER_WORDS] = 0

    def storable(self, vectors: Float32) -> Bools:
        """[n] Whether the entry's dtype holds every number of a row."""
        if self.dtype.itemsize == 4:
            return np.asarray(np.isfinite(vectors).all(axis=1))
        largest = np.abs(vectors).max(axis=1, initial=0.0)
        return np.asarray(largest <= MAX_FLOAT16)  # false for NaN too

    def narrow(self, vectors: Float32) -> Numbers:
        """[n, d] The numbers as an entry holds them. Raises InvalidInput where it cannot."""
        storable = self.storable(vectors)
        if not storable.all():
            row = int(np.flatnonzero(~storable)[0])
            raise InvalidInput(f"vector {row} has numbers that {self.dtype.name} cannot hold")
        return vectors.astype(self.dtype)

    def through_codec(self, vectors: Float32) -> Float32:
        """[n, d] What vectors are once they were written and read. Raises InvalidInput as `narrow`."""
        return widen(self.narrow(vectors))

    def encode_many(self, keys: Sequence[bytes], vectors: Float32, tokens: Int32) -> list[bytes]:
        """Entries of vectors float32 [n, d] under keys. Raises InvalidInput as `narrow`."""
        count = len(keys)
        if vectors.shape != (count, self.dimensions) or tokens.shape != (count,):
            raise InvalidInput(
                f"{count} keys need vectors ({count}, {self.dimensions}) and tokens ({count},); "
                f"got {vectors.shape} and {tokens.shape}"
            )
        words = np.zeros((count, self.entry_bytes // 4), "<u4")
        words[:, 0], words[:, 1] = _MAGIC, self._kind
        words[:, 2] = tokens.astype("<i4").view("<u4")
        words[:, _HEADER_WORDS:].view(self._numbers)[:, : self.dimensions] = self.narrow(vectors)
        checksums = self._checksums(keys, words)
        words[:, _CHECKSUM_WORD] = checksums & np.uint64(0xFFFFFFFF)
        words[:, _CHECKSUM_WORD + 1] = checksums >> np.uint64(32)
        joined, size = words.tobytes(), self.entry_bytes
        return [joined[start : start + size] for start in range(0, count * size, size)]

    def decode_many(self, keys: Sequence[bytes], values: Sequence[bytes | None]) -> Decoded:
        """The vectors of values under keys, [n]; whatever is not an entry of its key is not found."""
        rows, tokens, found, damaged = self.decode_rows(keys, values)
        if len(rows) == len(keys):
            return Decoded(widen(rows), tokens, found, damaged)
        vectors = np.zeros((len(keys), self.dimensions), np.float32)
        vectors[found] = widen(rows)
        all_tokens = np.full(len(keys), -1, np.int32)
        all_tokens[found] = tokens
        return Decoded(vectors, all_tokens, found, damaged)

    def decode_rows(self, keys: Sequence[bytes], values: Sequence[bytes | None]) -> DecodedRows:
        """The same without making float32 of it."""
        count, size = len(keys), self.entry_bytes
        if len(values) != count:
            raise ValueError(f"{count} keys and {len(values)} values")
        if _all_have_length(values, size):
            rows, tokens, valid = self._read(keys, values)
            damaged = count - int(np.count_nonzero(valid))
            return (
                DecodedRows(rows, tokens, valid, 0)
                if not damaged
                else DecodedRows(rows[valid], tokens[valid], valid, damaged)
            )
        places = [at for at, value in enumerate(values) if value is not None and len(value) == size]
        rows, tokens, valid = self._read([keys[at] for at in places], [values[at] for at in places])
        found = np.zeros(count, np.bool_)
        found[np.asarray(places, np.int64)[valid]] = True
        present = count - sum(value is None for value in values)
        return DecodedRows(rows[valid], tokens[valid], found, present - int(np.count_nonzero(valid)))

    def _read(self, keys: Sequence[bytes], values: Sequence[bytes | None]) -> tuple[Numbers, Int32, Bools]:
        """Numbers, tokens and validity of values that have an entry's length."""
        words = np.frombuffer(b"".join(values), "<u4")  # type: ignore[arg-type]
        words = words.reshape(len(keys), self.entry_bytes // 4)
        rows: Any = words[:, _HEADER_WORDS:].view(self._numbers)[:, : self.dimensions]
        stored = words[:, _CHECKSUM_WORD + 1].astype(np.uint64) << np.uint64(32)
        stored |= words[:, _CHECKSUM_WORD]
        valid = (words[:, 0] == _MAGIC) & (words[:, 1] == self._kind)
        valid &= self._checksums(keys, words) == stored
        valid &= _finite(rows)
        return rows, words[:, 2].astype(np.int32), valid

    def _checksums(self, keys: Sequence[bytes], words: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint64]:
        key_words = np.frombuffer(b"".join(keys), "<u4").reshape(len(keys), KEY_BYTES // 4)
        sums = key_words.astype(np.uint64) @ self._of_key
        for start in range(0, len(keys), _BLOCK_ROWS):
            stop = start + _BLOCK_ROWS
            # einsum and not @: numpy's product of integer matrices has no vector instructions.
            sums[start:stop] += np.einsum("ij,j->i", words[start:stop].astype(np.uint64), self._of_words)
        return sums


def widen(rows: Numbers) -> Float32:
    """[n, d] float32 of finite numbers, always a copy.

    numpy converts float16 one number at a time; shifting exponent and fraction into their places in float32
    and scaling by the difference of the biases is exact, subnormals included, and runs on vectors.
    """
    if rows.dtype.itemsize == 4:
        return rows.astype(np.float32)
    wide = np.empty(rows.shape, np.int32)
    result = wide.view(np.float32)
    halves = rows.view("<i2")
    for start in range(0, len(rows), _BLOCK_ROWS):
        block = wide[start : start + _BLOCK_ROWS]
        np.left_shift(halves[start : start + _BLOCK_ROWS], 13, out=block, dtype=np.int32)
        block &= _SIGN_AND_MAGNITUDE
        result[start : start + _BLOCK_ROWS] *= _BIAS
    return result


_SIGN_AND_MAGNITUDE = np.int32(0x8FFFE000 - (1 << 32))
_BIAS = np.float32(2.0**112)


def _all_have_length(values: Sequence[bytes | None], size: int) -> bool:
    try:
        return set(map(len, values)) == {size}  # type: ignore[arg-type]
    except TypeError:  # None, which has no length
        return False


def _finite(rows: Numbers) -> Bools:
    """[n] Whether all numbers of a row are finite."""
    if rows.dtype.itemsize == 4:
        return np.asarray(np.isfinite(rows).all(axis=1))
    finite, halves = np.empty(len(rows), np.bool_), rows.view("<u2")
    for start in range(0, len(rows), _BLOCK_ROWS):
        stop = start + _BLOCK_ROWS
        magnitudes = halves[start:stop] & np.uint16(0x7FFF)
        # Over the whole block first: row by row takes twice as long.
        finite[start:stop] = magnitudes.max() < 0x7C00 or magnitudes.max(axis=1) < 0x7C00
    return finite


def _odd_numbers(count: int) -> npt.NDArray[np.uint64]:
    """The checksum's multipliers: the same for ever, whatever library draws random numbers."""
    stream = hashlib.shake_256(b"weft embedding checksum 1").digest(8 * count)
    return np.frombuffer(stream, "<u8").astype(np.uint64) | np.uint64(1)

"""Hashed bags of tokens: which tokens a node has, and the sparse rows that they make."""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

import numpy as np
import scipy.sparse as sp

from graph.schema import Attributes, AttributeValue

FeatureMatrix: TypeAlias = "sp.csr_matrix[np.float32]"

_WORD = re.compile(r"[^\W_]+")


def tag_tokens(tags: Iterable[str]) -> list[str]:
    return [f"tag:{_plain(tag)}" for tag in tags]


def year_tokens(year: int | None) -> list[str]:
    """The year and its decade, so that near years share a bucket."""
    return [] if year is None else [f"year:{year}", f"decade:{year // 10}"]


def word_tokens(prefix: str, text: str) -> list[str]:
    return [f"{prefix}:{word}" for word in _WORD.findall(text.casefold())]


def attribute_tokens(attributes: Attributes) -> list[str]:
    """`key=value`, one per list entry; numbers also by magnitude, so that near numbers share a bucket."""
    return [token for key, value in attributes.items() for token in _tokens_of(_plain(key), value)]


def add_tokens(
    row: dict[int, float], tokens: Iterable[str], norm: float, buckets: int, *, signed: bool = False
) -> None:
    """Add a field to a row, spread evenly over its distinct tokens, with this L2 norm but for collisions."""
    # A word counts once: how often a plot repeats it says little about taste.
    distinct = dict.fromkeys(tokens)
    if not distinct or norm == 0:
        return
    amount = norm / math.sqrt(len(distinct))
    for token in distinct:
        code = zlib.crc32(token.encode("utf-8", "surrogatepass"))
        sign = -1.0 if signed and code >> 31 else 1.0
        bucket = (code & 0x7FFFFFFF) % buckets
        row[bucket] = row.get(bucket, 0.0) + sign * amount


def normalised(row: Mapping[int, float]) -> dict[int, float]:
    """The row at L2 norm 1, or empty."""
    norm = math.sqrt(sum(value * value for value in row.values()))
    # Signed collisions may cancel to nothing.
    return {bucket: value / norm for bucket, value in row.items()} if norm > 1e-12 else {}


def sparse_rows(rows: Sequence[Mapping[int, float]], buckets: int) -> FeatureMatrix:
    """float32 [len(rows), buckets] with columns ascending in each row."""
    indptr, indices, data = [0], list[int](), list[float]()
    for row in rows:
        for bucket in sorted(row):
            indices.append(bucket)
            data.append(row[bucket])
        indptr.append(len(indices))
    return sp.csr_matrix(
        (np.array(data, np.float32), np.array(indices, np.int32), np.array(indptr, np.int32)),
        shape=(len(rows), buckets),
    )


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


def _tokens_of(key: str, value: AttributeValue) -> list[str]:
    if isinstance(value, bool):
        return [f"{key}={str(value).lower()}"]
    if isinstance(value, str):
        return [f"{key}={_plain(value)}"]
    if isinstance(value, int | float):
        return _number_tokens(key, value)
    return [f"{key}={_plain(str(entry))}" for entry in value]


def _number_tokens(key: str, value: float) -> list[str]:
    # An integer may be a code (an occupation) as well as a quantity: it keeps its exact token too.
    exact = [f"{key}={value}"] if isinstance(value, int) else []
    try:
        number = float(value)
    except OverflowError:
        return exact
    if not math.isfinite(number):
        return exact
    if number == 0:
        return [*exact, f"{key}~0"]
    sign, octaves = ("-" if number < 0 else "+"), math.log2(abs(number))
    return [*exact, f"{key}~{sign}{math.floor(octaves * 2)}/2", f"{key}~{sign}{math.floor(octaves * 8)}/8"]

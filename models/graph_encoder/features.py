"""Feature rows of items and users: what the encoder knows of a node besides its ratings.

`HashedFeatures` is a hashed bag of words (Weinberger et al. 2009). Anything with the same methods can stand
in for it, for example vectors of a text model: the encoder only sees `FeatureExtractor`.
"""

from __future__ import annotations

import dataclasses
import math
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
import scipy.sparse as sp

from graph.errors import InvalidInput
from graph.schema import Attributes, AttributeValue, Item, User

FeatureMatrix: TypeAlias = "sp.csr_matrix[np.float32]"
"""float32; every row has L2 norm 1, or is empty where nothing is known."""


class FeatureExtractor(Protocol):
    """Maps nodes to sparse feature rows. Deterministic: equal nodes give equal rows in every process."""

    @property
    def item_buckets(self) -> int:
        """F, columns of an item's row."""

    @property
    def user_buckets(self) -> int:
        """G, columns of a user's row."""

    def item_features(self, items: Sequence[Item]) -> FeatureMatrix:
        """Rows [n, F] of items, in order."""

    def user_features(self, users: Sequence[User]) -> FeatureMatrix:
        """Rows [n, G] of users, in order."""

    def config(self) -> dict[str, object]:
        """Plain JSON from which `extractor_from_config` builds an equal extractor."""


_WORD = re.compile(r"[^\W_]+")
_MAX_BUCKETS = 2**22


@dataclass(frozen=True, slots=True)
class HashedFeatures:
    """Hashed bag of words over tags, year, title and text, and over users' attributes.

    Each field of an item is scaled to the L2 norm given here before the fields are added, so that a long text
    does not drown three tags; the sum is normalised. `signed` halves the bias of collisions.
    """

    item_buckets: int = 4096
    user_buckets: int = 512
    tag_weight: float = 1.0
    year_weight: float = 0.5
    title_weight: float = 0.25
    text_weight: float = 0.5
    signed: bool = False

    def __post_init__(self) -> None:
        for name in ("item_buckets", "user_buckets"):
            if not 1 <= getattr(self, name) <= _MAX_BUCKETS:
                raise InvalidInput(f"{name} is {getattr(self, name)!r}: allowed are 1 to {_MAX_BUCKETS}")
        for name in ("tag_weight", "year_weight", "title_weight", "text_weight"):
            value = getattr(self, name)
            if not math.isfinite(value) or value < 0:
                raise InvalidInput(f"{name} is {value!r}: feature weights are finite and not negative")

    def item_features(self, items: Sequence[Item]) -> FeatureMatrix:
        return self._matrix((self._item_row(item) for item in items), len(items), self.item_buckets)

    def user_features(self, users: Sequence[User]) -> FeatureMatrix:
        return self._matrix(
            (self._user_row(user.attributes) for user in users), len(users), self.user_buckets
        )

    def config(self) -> dict[str, object]:
        return {"kind": "hashed", **dataclasses.asdict(self)}

    def _item_row(self, item: Item) -> dict[int, float]:
        row: dict[int, float] = {}
        fields = (
            (self.tag_weight, [f"tag:{_plain(tag)}" for tag in item.tags]),
            (self.year_weight, _year_tokens(item.year)),
            (self.title_weight, [f"title:{word}" for word in _words(item.title)]),
            (self.text_weight, [f"text:{word}" for word in _words(item.text)]),
        )
        for weight, tokens in fields:
            self._add(row, tokens, weight, self.item_buckets)
        return row

    def _user_row(self, attributes: Attributes) -> dict[int, float]:
        row: dict[int, float] = {}
        tokens = [
            token for key, value in attributes.items() for token in _attribute_tokens(_plain(key), value)
        ]
        self._add(row, tokens, 1.0, self.user_buckets)
        return row

    def _add(self, row: dict[int, float], tokens: Iterable[str], norm: float, buckets: int) -> None:
        # A word counts once: how often a plot repeats it says little about taste.
        distinct = dict.fromkeys(tokens)
        if not distinct or norm == 0:
            return
        amount = norm / math.sqrt(len(distinct))
        for token in distinct:
            code = zlib.crc32(token.encode("utf-8", "surrogatepass"))
            sign = -1.0 if self.signed and code >> 31 else 1.0
            bucket = (code & 0x7FFFFFFF) % buckets
            row[bucket] = row.get(bucket, 0.0) + sign * amount

    @staticmethod
    def _matrix(rows: Iterable[dict[int, float]], count: int, buckets: int) -> FeatureMatrix:
        indptr, indices, data = [0], list[int](), list[float]()
        for row in rows:
            norm = math.sqrt(sum(value * value for value in row.values()))
            if norm > 1e-12:  # signed collisions may cancel to nothing
                for bucket in sorted(row):
                    indices.append(bucket)
                    data.append(row[bucket] / norm)
            indptr.append(len(indices))
        return sp.csr_matrix(
            (np.array(data, np.float32), np.array(indices, np.int32), np.array(indptr, np.int32)),
            shape=(count, buckets),
        )


def extractor_from_config(config: Mapping[str, object]) -> FeatureExtractor:
    """The extractor whose `config()` this is; raises InvalidInput for an unknown kind or option."""
    options = dict(config)
    kind = options.pop("kind", None)
    if kind != "hashed":
        raise InvalidInput(f"feature kind {kind!r} is unknown: this version reads 'hashed'")
    known = {f.name: f.type for f in dataclasses.fields(HashedFeatures)}
    for name, value in options.items():
        if name not in known:
            raise InvalidInput(f"feature option {name!r} is unknown: allowed are {', '.join(sorted(known))}")
        if not _fits(value, str(known[name])):
            raise InvalidInput(f"feature option {name!r} is {value!r}: it must be a {known[name]}")
    return HashedFeatures(**options)  # type: ignore[arg-type]


def _fits(value: object, type_name: str) -> bool:
    if isinstance(value, bool) or type_name == "bool":
        return isinstance(value, bool) and type_name == "bool"
    return isinstance(value, int) or (type_name == "float" and isinstance(value, float))


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


def _words(text: str) -> list[str]:
    return _WORD.findall(text.casefold())


def _year_tokens(year: int | None) -> list[str]:
    return [] if year is None else [f"year:{year}", f"decade:{year // 10}"]


def _attribute_tokens(key: str, value: AttributeValue) -> list[str]:
    """`key=value`, one per list entry; numbers also by magnitude, so that near numbers share a bucket."""
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

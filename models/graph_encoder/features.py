"""What the encoder knows of a node besides its ratings: feature rows of items and users.

`HashedFeatures` is a hashed bag of words (Weinberger et al. 2009) and needs nothing but the node.
`TextFeatures` has the vector of a text model in place of the words of title and text.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from graph.errors import InvalidInput
from graph.schema import Item, User
from models.graph_encoder.feature_tokens import (
    FeatureMatrix,
    add_tokens,
    attribute_tokens,
    normalised,
    sparse_rows,
    tag_tokens,
    word_tokens,
    year_tokens,
)
from models.graph_encoder.item_features import ItemFeatures

Float32: TypeAlias = npt.NDArray[np.float32]

_MAX_BUCKETS = 2**22
_MAX_TEXT_DIM = 2**16


class FeatureExtractor(Protocol):
    """Maps nodes to feature rows. Deterministic: equal nodes give equal rows in every process."""

    @property
    def item_columns(self) -> int:
        """F, columns of an item's row."""

    @property
    def user_buckets(self) -> int:
        """G, columns of a user's row."""

    @property
    def text_model(self) -> str | None:
        """Name of the text model whose vectors `item_features` takes; None: it takes none."""

    def item_features(self, items: Sequence[Item], vectors: Float32 | None = None) -> ItemFeatures:
        """Rows [n, F] of items, in order.

        `vectors` float32 [n, d] are their text vectors, a row of zeros where there is none yet; None: no item
        has one. Each row depends on its own item and vector alone.
        """

    def user_features(self, users: Sequence[User]) -> FeatureMatrix:
        """Rows [n, G] of users, in order, of L2 norm 1, or empty where nothing is known."""

    def config(self) -> dict[str, object]:
        """Plain JSON from which `extractor_from_config` builds an equal extractor."""


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
        _check_sizes(self, item_buckets=_MAX_BUCKETS, user_buckets=_MAX_BUCKETS)
        _check_weights(self, "tag_weight", "year_weight", "title_weight", "text_weight")

    @property
    def item_columns(self) -> int:
        return self.item_buckets

    @property
    def text_model(self) -> None:
        return None

    def item_features(self, items: Sequence[Item], vectors: Float32 | None = None) -> ItemFeatures:
        return ItemFeatures(sparse_rows([self._item_row(item) for item in items], self.item_buckets))

    def user_features(self, users: Sequence[User]) -> FeatureMatrix:
        return _user_rows(users, self.user_buckets, self.signed)

    def config(self) -> dict[str, object]:
        return {"kind": "hashed", **dataclasses.asdict(self)}

    def _item_row(self, item: Item) -> dict[int, float]:
        row: dict[int, float] = {}
        for weight, tokens in (
            (self.tag_weight, tag_tokens(item.tags)),
            (self.year_weight, year_tokens(item.year)),
            (self.title_weight, word_tokens("title", item.title)),
            (self.text_weight, word_tokens("text", item.text)),
        ):
            add_tokens(row, tokens, weight, self.item_buckets, signed=self.signed)
        return normalised(row)


@dataclass(frozen=True, slots=True)
class TextFeatures:
    """Hashed tags and year beside the item's text vector, and users' attributes hashed.

    With f = sqrt(tag_weight^2 + year_weight^2 + text_weight^2) an item's row is

        [tag_weight / f * tags, year_weight / f * year  |  text_weight / f * (1, v)]

    in item_buckets sparse and 1 + text_dim dense columns, tags and year of L2 norm 1 each, v the text vector
    scaled to norm 1. The 1 says that there is a vector: its weights hold what training subtracts from every
    vector (see `text_projection.py`). An item without a vector has zeros in the dense columns; its tags weigh
    what they weigh with one, so that their share of the item's vector does not move when the vector arrives.
    """

    text_model: str
    text_dim: int
    item_buckets: int = 4096
    user_buckets: int = 512
    tag_weight: float = 1.0
    year_weight: float = 0.5
    text_weight: float = 1.0

    def __post_init__(self) -> None:
        if not self.text_model:
            raise InvalidInput("text_model is empty: name the model whose vectors are the features")
        _check_sizes(self, item_buckets=_MAX_BUCKETS, user_buckets=_MAX_BUCKETS, text_dim=_MAX_TEXT_DIM)
        _check_weights(self, "tag_weight", "year_weight", "text_weight")
        if not self.tag_weight or not self.text_weight:
            raise InvalidInput("tag_weight and text_weight of text features must be above 0")

    @property
    def item_columns(self) -> int:
        return self.item_buckets + 1 + self.text_dim

    def item_features(self, items: Sequence[Item], vectors: Float32 | None = None) -> ItemFeatures:
        """See `FeatureExtractor`; raises InvalidInput for vectors of another shape than [n, text_dim]."""
        dense = np.zeros((len(items), 1 + self.text_dim), np.float32)
        if vectors is not None:
            if vectors.shape != (len(items), self.text_dim):
                raise InvalidInput(
                    f"text vectors are {list(vectors.shape)}: {len(items)} items with vectors of "
                    f"{self.text_model!r} need [{len(items)}, {self.text_dim}]"
                )
            norms = np.linalg.norm(vectors, axis=1)
            here = np.flatnonzero(norms > 0)
            dense[here, 0] = 1
            dense[here, 1:] = vectors[here] / norms[here, None]
            dense *= np.float32(self.text_weight / self._norm)
        return ItemFeatures(sparse_rows([self._item_row(item) for item in items], self.item_buckets), dense)

    def user_features(self, users: Sequence[User]) -> FeatureMatrix:
        return _user_rows(users, self.user_buckets)

    def config(self) -> dict[str, object]:
        return {"kind": "text", **dataclasses.asdict(self)}

    @property
    def _norm(self) -> float:
        return math.hypot(self.tag_weight, self.year_weight, self.text_weight)

    def _item_row(self, item: Item) -> dict[int, float]:
        row: dict[int, float] = {}
        add_tokens(row, tag_tokens(item.tags), self.tag_weight / self._norm, self.item_buckets)
        add_tokens(row, year_tokens(item.year), self.year_weight / self._norm, self.item_buckets)
        return row


_KINDS: Mapping[str, type[HashedFeatures] | type[TextFeatures]] = {
    "hashed": HashedFeatures,
    "text": TextFeatures,
}


def extractor_from_config(config: Mapping[str, object]) -> FeatureExtractor:
    """The extractor whose `config()` this is; raises InvalidInput for an unknown kind or option."""
    options = dict(config)
    kind = options.pop("kind", None)
    extractor = _KINDS.get(kind) if isinstance(kind, str) else None
    if extractor is None:
        raise InvalidInput(f"feature kind {kind!r} is unknown: this version reads {', '.join(_KINDS)}")
    fields = {f.name: f for f in dataclasses.fields(extractor)}
    for name, value in options.items():
        if name not in fields:
            raise InvalidInput(f"feature option {name!r} is unknown: allowed are {', '.join(sorted(fields))}")
        if not _fits(value, str(fields[name].type)):
            raise InvalidInput(f"feature option {name!r} is {value!r}: it must be a {fields[name].type}")
    for name, field in fields.items():
        if field.default is dataclasses.MISSING and name not in options:
            raise InvalidInput(f"features of kind {kind!r} need the option {name!r}")
    return extractor(**options)  # type: ignore[arg-type]


def _fits(value: object, type_name: str) -> bool:
    if type_name in ("bool", "str"):
        return type(value).__name__ == type_name
    if isinstance(value, bool):
        return False
    return isinstance(value, int) or (type_name == "float" and isinstance(value, float))


def _check_sizes(features: object, **limits: int) -> None:
    for name, limit in limits.items():
        if not 1 <= getattr(features, name) <= limit:
            raise InvalidInput(f"{name} is {getattr(features, name)!r}: allowed are 1 to {limit}")


def _check_weights(features: object, *names: str) -> None:
    for name in names:
        value = getattr(features, name)
        if not math.isfinite(value) or value < 0:
            raise InvalidInput(f"{name} is {value!r}: feature weights are finite and not negative")


def _user_rows(users: Sequence[User], buckets: int, signed: bool = False) -> FeatureMatrix:
    rows = []
    for user in users:
        row: dict[int, float] = {}
        add_tokens(row, attribute_tokens(user.attributes), 1.0, buckets, signed=signed)
        rows.append(normalised(row))
    return sparse_rows(rows, buckets)

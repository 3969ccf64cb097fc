"""Plain data that crosses deployment handles and the ingress' backend protocol.

What crosses with every recommendation defines `__reduce__`: pickling a slotted dataclass field by field, with
a hook per object, costs more than ranking does (137 against 26 microseconds for ten items with reasons).
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from operator import attrgetter
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from graph.schema import ApiKey, Item, User

Float32 = npt.NDArray[np.float32]
Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]


T = TypeVar("T")


def _flat(cls: type[T]) -> type[T]:
    """Pickle a dataclass as its class and its values."""
    values = attrgetter(*(f.name for f in fields(cls)))  # type: ignore[arg-type]

    def reduce(self: T) -> tuple[Any, ...]:
        return cls, values(self)

    cls.__reduce__ = reduce  # type: ignore[assignment]
    return cls


@_flat
@dataclass(frozen=True, slots=True)
class RecommendQuery:
    """One user's (or one anonymous session's) request for recommendations.

    Exactly one of `user_id` and `session` is given. `min_version` is a version of this store, 0 for none.
    """

    user_id: str | None = None
    session: tuple[tuple[str, float], ...] = ()  # (item_id, rating value), oldest first
    n: int = 10
    exclude_seen: bool = True
    exclude_below: float | None = (
        None  # drop what the user rated under this value, even if seen items may return
    )
    tags: tuple[str, ...] = ()  # keep items that carry all of these
    exclude: tuple[str, ...] = ()  # item ids never to return; unknown ids are ignored
    candidates: tuple[str, ...] | None = None  # restrict to these item ids; unknown ids are ignored
    because: bool = True  # name the rated items that are the reasons
    exact_items: bool = False  # pull item vectors up to min_version before searching
    min_version: int = 0


@_flat
@dataclass(frozen=True, slots=True)
class UserQuery:
    """Asks the graph encoder for the vector of a user or of an anonymous session (exactly one is given)."""

    user_id: str | None
    session: tuple[tuple[str, float], ...] = ()
    min_version: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class UserVector:
    """A user's own side of a recommendation, all of one version. Seen items are oldest first."""

    vector: Float32 | None  # [D]; None when nothing the user liked is known
    seen_rows: Int64  # [s]
    seen_weights: Float32  # [s] a(value), 0 = seen but not liked
    seen_values: Float32  # [s]
    version: int
    encoder: str

    def with_vector(self, vector: Float32) -> UserVector:
        return UserVector(
            vector, self.seen_rows, self.seen_weights, self.seen_values, self.version, self.encoder
        )

    def __reduce__(self) -> tuple[Any, ...]:
        # Bytes: numpy's own pickling costs ten times as much for arrays this small. They arrive read-only.
        vector = None if self.vector is None else self.vector.astype(np.float32, copy=False).tobytes()
        seen = (self.seen_rows.tobytes(), self.seen_weights.tobytes(), self.seen_values.tobytes())
        return _restore_vector, (vector, *seen, self.version, self.encoder)


def _restore_vector(
    vector: bytes | None, rows: bytes, weights: bytes, values: bytes, version: int, encoder: str
) -> UserVector:
    return UserVector(
        None if vector is None else np.frombuffer(vector, np.float32),
        np.frombuffer(rows, np.int64),
        np.frombuffer(weights, np.float32),
        np.frombuffer(values, np.float32),
        version,
        encoder,
    )


@dataclass(frozen=True, slots=True, eq=False)
class ItemVectors:
    """Item side of one encoder generation for some rows, as of `version`; `more` rows follow the last one."""

    rows: Int64  # [m] ascending
    source: Float32  # [m, D]
    target: Float32  # [m, D]
    bias: Float32  # [m]
    degree: Float32  # [m]
    version: int
    more: bool


# Forty of these are made twice for every answer; freezing a dataclass triples what one costs.
@dataclass(slots=True)
class Reason:
    """A rated item that contributed to a recommendation, and how much of the score it added."""

    item_id: str
    title: str
    contribution: float


@dataclass(slots=True)
class Recommendation:
    item_id: str
    title: str
    score: float
    because: tuple[Reason, ...] = ()


@dataclass(frozen=True, slots=True)
class RecommendAnswer:
    """`basis` is "personal" or "popular" (nothing the user liked is known: the most liked items).

    `version` is that of the user's vector and seen items, `item_version` that of the item vectors.
    """

    user_id: str | None
    recommendations: tuple[Recommendation, ...]
    basis: str
    version: int
    item_version: int
    encoder: str  # digest of the encoder generation

    def __reduce__(self) -> tuple[Any, ...]:
        entries = tuple(
            (r.item_id, r.title, r.score, tuple((b.item_id, b.title, b.contribution) for b in r.because))
            for r in self.recommendations
        )
        return _restore, (self.user_id, entries, self.basis, self.version, self.item_version, self.encoder)


def _restore(user_id: str | None, entries: tuple[tuple[Any, ...], ...], *rest: Any) -> RecommendAnswer:
    recommendations = tuple(
        Recommendation(item_id, title, score, tuple(Reason(*b) for b in because))
        for item_id, title, score, because in entries
    )
    return RecommendAnswer(user_id, recommendations, *rest)


@dataclass(frozen=True, slots=True)
class SimilarAnswer:
    """`basis` is "graph" (vectors of the encoder) or "text" (vectors of the text model)."""

    item_id: str
    similar: tuple[Recommendation, ...]
    version: int
    item_version: int
    basis: str
    model: str  # digest of the encoder or name of the text model


@dataclass(frozen=True, slots=True)
class EmbedQuery:
    """Texts to embed. `model` is a fingerprint's name, None for the active text model."""

    texts: tuple[str, ...]
    model: str | None = None
    prompt: str | None = None  # stands before every text; None: the model's own
    dimensions: int | None = None  # of the answer, where the model is trained for shortening
    truncate: bool = True


@dataclass(frozen=True, slots=True, eq=False)
class EmbedAnswer:
    vectors: Float32  # [n, d]
    tokens: Int32  # [n] before truncation, -1 where nobody knows
    hits: int  # vectors that the cache had
    truncated: int  # texts that were cut to the model's window
    model_name: str  # as people call it
    text_model: str  # fingerprint's name


@dataclass(frozen=True, slots=True)
class TextModelInfo:
    """A text model that an embedder has open."""

    name: str  # fingerprint's name
    spec: dict[str, object]  # how to open it again, without secrets


@dataclass(frozen=True, slots=True)
class SearchQuery:
    """A text's nearest items."""

    text: str
    n: int = 10
    tags: tuple[str, ...] = ()  # keep items that carry all of these
    exclude: tuple[str, ...] = ()  # item ids never to return; unknown ids are ignored
    candidates: tuple[str, ...] | None = None  # restrict to these item ids; unknown ids are ignored
    min_version: int = 0


@dataclass(frozen=True, slots=True)
class SearchAnswer:
    """`because` of a result is empty; `score` is what results are ordered by, greatest first.

    Without `text_model` no vectors took part: the text model does not answer, and words alone were compared.
    """

    results: tuple[Recommendation, ...]
    version: int
    text_model: str | None
    waiting: int  # items whose text has no vector yet


@dataclass(frozen=True, slots=True)
class RerankQuery:
    query: str
    documents: tuple[str, ...]
    top_n: int | None = None  # None: all


@dataclass(frozen=True, slots=True)
class RerankAnswer:
    """Documents by place in the query, best first, with the cosine to it."""

    order: tuple[int, ...]
    scores: tuple[float, ...]
    tokens: int
    text_model: str


@dataclass(frozen=True, slots=True)
class CacheInvalidation:
    """What to drop from the embedding cache: exactly one of the three is given."""

    everything: bool = False
    model: str | None = None  # every entry of this fingerprint's name
    texts: tuple[str, ...] = ()  # of the active text model, under its own prompt


@dataclass(frozen=True, slots=True)
class RatingRecord:
    item_id: str
    value: float
    timestamp: int


@dataclass(frozen=True, slots=True)
class UserRecord:
    user: User
    num_ratings: int
    version: int  # of the view that answered


@dataclass(frozen=True, slots=True)
class ItemRecord:
    item: Item
    num_ratings: int
    version: int


@dataclass(frozen=True, slots=True)
class Page:
    """One page of a listing, in the order of creation; `next` is the cursor of the page after it.

    Keys come in the order of their ids, and without their digests.
    """

    records: tuple[UserRecord | ItemRecord | RatingRecord | ApiKey, ...]
    next: str | None
    version: int


@dataclass(frozen=True, slots=True)
class NodeEmbedding:
    node_id: str
    kind: str  # "user", "item" or "memory"
    vector: Float32  # [D]
    encoder: str
    version: int


@dataclass(frozen=True, slots=True)
class EncoderInfo:
    """An encoder known to the service: `state` is "active", "candidate" or "available"."""

    digest: str
    state: str
    dim: int
    metadata: dict[str, object] = field(default_factory=dict)

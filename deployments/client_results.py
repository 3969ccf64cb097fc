"""What calls of the HTTP API answer: frozen dataclasses, read from its JSON."""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Written:
    version: str
    changed: int
    replayed: bool


@dataclass(frozen=True, slots=True)
class User:
    user_id: str
    attributes: dict[str, Any]
    num_ratings: int
    version: str


@dataclass(frozen=True, slots=True)
class Item:
    item_id: str
    title: str
    tags: tuple[str, ...]
    year: int | None
    text: str
    num_ratings: int
    version: str


@dataclass(frozen=True, slots=True)
class Rating:
    item_id: str
    value: float
    timestamp: int


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """`next` is the `after` of the page that follows, None on the last."""

    records: tuple[T, ...]
    next: str | None
    version: str


@dataclass(frozen=True, slots=True)
class Reason:
    item_id: str
    title: str
    contribution: float


@dataclass(frozen=True, slots=True)
class Recommendation:
    """`explanation` is the language model's sentence, where it was asked for and could be had."""

    item_id: str
    title: str
    score: float
    because: tuple[Reason, ...] = ()
    explanation: str | None = None


@dataclass(frozen=True, slots=True)
class Recommendations:
    user_id: str | None
    basis: str
    recommendations: tuple[Recommendation, ...]
    version: str
    item_version: str
    encoder: str


@dataclass(frozen=True, slots=True)
class UserFailure:
    """A user of a many-user request that could not be answered."""

    user_id: str
    code: str
    message: str
    retryable: bool


@dataclass(frozen=True, slots=True)
class Similar:
    """`model` is the encoder's digest by "graph", the text model's exact name by "text".

    `encoder` is `model` by "graph" and None by "text".
    """

    item_id: str
    similar: tuple[Recommendation, ...]
    version: str
    item_version: str
    by: str
    model: str
    encoder: str | None


@dataclass(frozen=True, slots=True)
class Embedding:
    node_id: str
    kind: str
    embedding: tuple[float, ...]
    encoder: str
    version: str


@dataclass(frozen=True, slots=True)
class Encoder:
    digest: str
    state: str
    dim: int
    metadata: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Readiness:
    ready: bool
    parts: dict[str, Any]


@dataclass(frozen=True, slots=True, eq=False)
class TextVectors:
    """Vectors of texts, in order. `text_model` says exactly which model made them, `model` is its own name.

    `tokens` counts all texts before truncation; `cached` vectors were known, `truncated` texts did not fit.
    """

    vectors: Float32  # [n, d]
    model: str
    text_model: str
    tokens: int
    cached: int
    truncated: int


@dataclass(frozen=True, slots=True)
class Found:
    """Items a text is closest to, best first. `waiting` items have a text that has no vector yet.

    `text_model` is None while the text model does not answer and words alone are compared.
    """

    query: str
    results: tuple[Recommendation, ...]
    version: str
    text_model: str | None
    waiting: int


@dataclass(frozen=True, slots=True)
class RankedDocument:
    """`index` counts the documents that were sent, from 0; `relevance_score` is the cosine to the query."""

    index: int
    relevance_score: float


@dataclass(frozen=True, slots=True)
class Reranked:
    results: tuple[RankedDocument, ...]
    model: str
    tokens: int


def build(kind: type[T], data: Mapping[str, Any]) -> T:
    """A dataclass from JSON. Keys it does not know are left out: the service may be newer than the client."""
    values = {f.name: data[f.name] for f in fields(kind)}  # type: ignore[arg-type]
    return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


def entry_of(data: Mapping[str, Any]) -> Recommendation:
    because = tuple(build(Reason, reason) for reason in data.get("because", ()))
    explanation = data.get("explanation") or {}
    return Recommendation(data["item_id"], data["title"], data["score"], because, explanation.get("text"))


def recommendations_of(data: Mapping[str, Any]) -> Recommendations:
    entries = [entry_of(entry) for entry in data["recommendations"]]
    return build(Recommendations, {**data, "recommendations": entries})


def similar_of(data: Mapping[str, Any]) -> Similar:
    return build(Similar, {**data, "similar": [entry_of(entry) for entry in data["similar"]]})


def failure_of(data: Mapping[str, Any]) -> UserFailure:
    return build(UserFailure, {"user_id": data["user_id"], **data["error"]})


def text_vectors_of(data: Mapping[str, Any]) -> TextVectors:
    entries = data["data"]
    joined = b"".join(b64decode(entry["embedding"], validate=True) for entry in entries)
    vectors = np.frombuffer(joined, "<f4").reshape(len(entries), -1).astype(np.float32)
    facts = data["weft"]
    return TextVectors(
        vectors,
        data["model"],
        facts["text_model"],
        data["usage"]["prompt_tokens"],
        facts["cached"],
        facts["truncated"],
    )


def found_of(data: Mapping[str, Any]) -> Found:
    return build(Found, {**data, "results": [entry_of(entry) for entry in data["results"]]})


def reranked_of(data: Mapping[str, Any]) -> Reranked:
    results = tuple(build(RankedDocument, entry) for entry in data["results"])
    return Reranked(results, data["model"], data["usage"]["total_tokens"])

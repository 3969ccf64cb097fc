"""The calls of the HTTP API as data: one function per route builds a Call.

Nothing here sends anything. `deployments.client` turns every function into a method of both clients.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, NotRequired, TypedDict, TypeVar
from urllib.parse import quote

from deployments.client_results import (
    Embedding,
    Encoder,
    Found,
    Item,
    Page,
    Rating,
    Readiness,
    Recommendations,
    Reranked,
    Similar,
    TextVectors,
    User,
    UserFailure,
    Written,
    build,
    failure_of,
    found_of,
    recommendations_of,
    reranked_of,
    similar_of,
    text_vectors_of,
)

T = TypeVar("T")

GENERATION_TIMEOUT_S = 150.0
"""Longer than the service's own limit, so that its error arrives."""


@dataclass(frozen=True, slots=True)
class Upload:
    """A body that is too large to hold: `chunks` starts over for every attempt."""

    content_type: str
    length: int
    chunks: Callable[[], Iterator[bytes]]


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """A request and how to read its answer.

    `idempotent`: may be repeated, whatever became of the first. `once`: not even when the service asks
    for it, as it also does when it cannot tell what became of a write.
    """

    method: str
    path: str
    parse: Callable[[Any], T]
    params: Mapping[str, Any] = field(default_factory=dict)
    body: object = None
    headers: Mapping[str, str] = field(default_factory=dict)
    idempotent: bool = True
    once: bool = False
    reads: bool = True  # carries the remembered version
    accepted: tuple[int, ...] = (200,)
    upload: Upload | None = None  # instead of `body`
    timeout_s: float | None = None  # when it may take longer than the client's own limits


# -------------------------------------------------------------------------------------------------- inputs


class RatingInput(TypedDict):
    """One row of `rate_many`."""

    user_id: str
    item_id: str
    value: float
    timestamp: NotRequired[int]


class ItemInput(TypedDict):
    """One row of `put_items`."""

    item_id: str
    title: str
    tags: NotRequired[list[str]]
    year: NotRequired[int | None]
    text: NotRequired[str]


# --------------------------------------------------------------------------------------------------- users


def put_user(user_id: str, attributes: Mapping[str, Any] | None = None) -> Call[Written]:
    """Create a user or replace its attributes."""
    return writing("PUT", f"/v1/users/{segment(user_id)}", {"attributes": dict(attributes or {})})


def get_user(user_id: str) -> Call[User]:
    return Call("GET", f"/v1/users/{segment(user_id)}", lambda data: build(User, data))


def delete_user(user_id: str) -> Call[Written]:
    return writing("DELETE", f"/v1/users/{segment(user_id)}")


def list_users(limit: int = 100, after: str | None = None) -> Call[Page[User]]:
    return paged("/v1/users", "users", User, limit, after)


# --------------------------------------------------------------------------------------------------- items


def put_item(
    item_id: str, title: str, tags: Sequence[str] = (), year: int | None = None, text: str = ""
) -> Call[Written]:
    """Create an item or replace its metadata."""
    body = {"title": title, "tags": list(tags), "year": year, "text": text}
    return writing("PUT", f"/v1/items/{segment(item_id)}", body)


def put_items(items: Iterable[ItemInput]) -> Call[Written]:
    """Create or replace many items as one version."""
    return writing("POST", "/v1/items", {"items": list(items)})


def get_item(item_id: str) -> Call[Item]:
    return Call("GET", f"/v1/items/{segment(item_id)}", lambda data: build(Item, data))


def delete_item(item_id: str) -> Call[Written]:
    return writing("DELETE", f"/v1/items/{segment(item_id)}")


def list_items(limit: int = 100, after: str | None = None) -> Call[Page[Item]]:
    return paged("/v1/items", "items", Item, limit, after)


def similar_items(
    item_id: str,
    n: int = 10,
    tags: Sequence[str] = (),
    exclude: Sequence[str] = (),
    *,
    by: str = "graph",
) -> Call[Similar]:
    """The items closest to one item, by who rated them ("graph") or by what they say ("text")."""
    params = {"n": n, "tags": list(tags), "exclude": list(exclude), "by": by}
    return Call("GET", f"/v1/items/{segment(item_id)}/similar", similar_of, params)


# ------------------------------------------------------------------------------------------------- ratings


def rate(user_id: str, item_id: str, value: float, timestamp: int | None = None) -> Call[Written]:
    """Rate an item; without a timestamp it is the server's time."""
    body: dict[str, Any] = {"user_id": user_id, "item_id": item_id, "value": value}
    return writing("POST", "/v1/ratings", body if timestamp is None else body | {"timestamp": timestamp})


def rate_many(ratings: Iterable[RatingInput]) -> Call[Written]:
    """Write many ratings as one version."""
    return writing("POST", "/v1/ratings", {"ratings": list(ratings)})


def delete_rating(user_id: str, item_id: str) -> Call[Written]:
    return writing("DELETE", f"/v1/users/{segment(user_id)}/ratings/{segment(item_id)}")


def list_ratings(user_id: str, limit: int = 100, after: str | None = None) -> Call[Page[Rating]]:
    return paged(f"/v1/users/{segment(user_id)}/ratings", "ratings", Rating, limit, after)


# ----------------------------------------------------------------------------------------- recommendations


def recommend(
    user_id: str,
    n: int = 10,
    *,
    tags: Sequence[str] = (),
    exclude: Sequence[str] = (),
    candidates: Sequence[str] | None = None,
    exclude_seen: bool = True,
    exclude_below: float | None = None,
    because: bool = True,
    explain: bool = False,
    exact_items: bool = False,
) -> Call[Recommendations]:
    """What a user may like; with `explain`, which takes longer, the language model says why of the first."""
    params: dict[str, Any] = {"n": n}
    given = {"tags": list(tags), "exclude": list(exclude), "exclude_below": exclude_below}
    params |= {name: value for name, value in given.items() if value not in (None, [])}
    if candidates is not None:
        params["candidates"] = list(candidates) or ""  # an empty list is a restriction too
    for name, flag, default in (
        ("exclude_seen", exclude_seen, True),
        ("because", because, True),
        ("explain", explain, False),
        ("exact_items", exact_items, False),
    ):
        if flag is not default:
            params[name] = "true" if flag else "false"
    path = f"/v1/users/{segment(user_id)}/recommendations"
    timeout_s = GENERATION_TIMEOUT_S if explain else None
    return Call("GET", path, recommendations_of, params, timeout_s=timeout_s)


def recommend_many(
    user_ids: Iterable[str], **options: Any
) -> Call[tuple[Recommendations | UserFailure, ...]]:
    """Recommendations for many users, in their order; `options` are those of `recommend`."""

    def parse(data: Any) -> tuple[Recommendations | UserFailure, ...]:
        return tuple(failure_of(r) if "error" in r else recommendations_of(r) for r in data["results"])

    return Call("POST", "/v1/recommendations", parse, body={"user_ids": list(user_ids), **options})


def recommend_session(items: Iterable[str | tuple[str, float]], **options: Any) -> Call[Recommendations]:
    """Recommendations from what was liked just now, oldest first: ids, or (id, value)."""
    rows = [item if isinstance(item, str) else {"item_id": item[0], "value": item[1]} for item in items]
    return Call("POST", "/v1/recommendations/session", recommendations_of, body={"items": rows, **options})


# ---------------------------------------------------------------------------------------------------- text


def embed(
    texts: str | Iterable[str],
    *,
    model: str | None = None,
    dimensions: int | None = None,
    truncate: bool = True,
    prompt: str | None = None,
) -> Call[TextVectors]:
    """Vectors of one text or up to 2,048; without `truncate`, a text beyond the model's window is refused."""
    body: dict[str, Any] = {"input": _texts(texts), "encoding_format": "base64"}
    body |= given(model=model, dimensions=dimensions)
    options = {"truncate": truncate} | given(prompt=prompt)
    return Call("POST", "/v1/embeddings", text_vectors_of, body=body | {"weft": options}, reads=False)


def search(
    query: str,
    n: int = 10,
    *,
    tags: Sequence[str] = (),
    exclude: Sequence[str] = (),
    candidates: Sequence[str] | None = None,
) -> Call[Found]:
    """The items that mean what a text says."""
    body = {"query": query, "n": n, "tags": list(tags), "exclude": list(exclude)}
    body |= given(candidates=None if candidates is None else list(candidates))
    return Call("POST", "/v1/search", found_of, body=body)


def rerank(query: str, documents: Iterable[str], top_n: int | None = None) -> Call[Reranked]:
    """Up to 1,000 documents in the order of their closeness to a query."""
    body = {"query": query, "documents": _texts(documents)} | given(top_n=top_n)
    return Call("POST", "/v1/rerank", reranked_of, body=body, reads=False)


def cache_statistics() -> Call[dict[str, Any]]:
    return Call("GET", "/v1/cache/stats", dict, reads=False)


def invalidate_cache(
    *, everything: bool = False, model: str | None = None, texts: str | Iterable[str] = ()
) -> Call[int]:
    """Drop entries of the embedding cache: all, those of a model, or those of texts; answers how many."""
    what: dict[str, Any] = {"all": True} if everything else {}
    what |= given(model=model, texts=_texts(texts) or None)
    if len(what) != 1:
        raise ValueError("invalidate_cache takes exactly one of everything=True, model and texts")
    return Call("POST", "/v1/cache/invalidate", lambda data: int(data["dropped"]), body=what, reads=False)


# -------------------------------------------------------------------------------- encoders and operations


def embedding(node_id: str, kind: str | None = None, *, user_id: str | None = None) -> Call[Embedding]:
    """The vector of a user, an item, or, with kind="memory" and its owner in `user_id`, a memory."""
    params = given(kind=kind, user_id=user_id)
    return Call("GET", f"/v1/nodes/{segment(node_id)}/embedding", lambda data: build(Embedding, data), params)


def list_encoders() -> Call[tuple[Encoder, ...]]:
    return Call(
        "GET", "/v1/encoders", lambda data: tuple(build(Encoder, entry) for entry in data["encoders"])
    )


def activate_encoder(digest: str) -> Call[Written]:
    # Takes no Idempotency-Key, and a second activation is a second entry in the audit.
    path = f"/v1/encoders/{segment(digest)}/activate"
    return Call("POST", path, lambda data: build(Written, data), idempotent=False, reads=False)


def live() -> Call[bool]:
    return Call("GET", "/livez", lambda data: data["status"] == "ok", reads=False)


def ready() -> Call[Readiness]:
    """Whether the service is ready, and its parts; does not wait."""
    return Call("GET", "/readyz", lambda data: build(Readiness, data), reads=False, accepted=(200, 503))


def status() -> Call[dict[str, Any]]:
    return Call("GET", "/v1/status", dict, reads=False)


# ------------------------------------------------------------------------------------------------- helpers


def segment(text: str) -> str:
    if not text or "/" in text or text in (".", ".."):
        raise ValueError(f"{text!r} cannot be an id: ids are not empty, not '.' or '..', and hold no '/'")
    return quote(text, safe="")


def _texts(texts: str | Iterable[str]) -> list[str]:
    return [texts] if isinstance(texts, str) else list(texts)


def given(**values: object) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def writing(method: str, path: str, body: object = None) -> Call[Written]:
    """A write with a key of its own."""
    # One key per call, not per attempt: a retried write is answered like the first and written once.
    headers = {"idempotency-key": uuid.uuid4().hex}
    return Call(method, path, lambda data: build(Written, data), body=body, headers=headers, reads=False)


def paged(path: str, plural: str, record: type[T], limit: int, after: str | None) -> Call[Page[T]]:
    def parse(data: Any) -> Page[T]:
        version = data["version"]
        records = tuple(build(record, {"version": version, **entry}) for entry in data[plural])
        return Page(records, data["next"], version)

    params = {"limit": limit} if after is None else {"limit": limit, "after": after}
    return Call("GET", path, parse, params)

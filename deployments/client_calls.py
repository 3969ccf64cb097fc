"""The calls of the HTTP API as data: one function per route builds a Call, results are frozen dataclasses.

Nothing here sends anything. `deployments.client` turns every function into a method of both clients.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Generic, NotRequired, TypedDict, TypeVar
from urllib.parse import quote

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """A request and how to read its answer. `idempotent`: may be repeated, whatever became of the first."""

    method: str
    path: str
    parse: Callable[[Any], T]
    params: Mapping[str, Any] = field(default_factory=dict)
    body: object = None
    headers: Mapping[str, str] = field(default_factory=dict)
    idempotent: bool = True
    reads: bool = True  # carries the remembered version
    accepted: tuple[int, ...] = (200,)


# ------------------------------------------------------------------------------------------------- results


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
    item_id: str
    title: str
    score: float
    because: tuple[Reason, ...] = ()


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
    item_id: str
    similar: tuple[Recommendation, ...]
    version: str
    item_version: str
    encoder: str


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
    return _write("PUT", f"/v1/users/{_segment(user_id)}", {"attributes": dict(attributes or {})})


def get_user(user_id: str) -> Call[User]:
    return Call("GET", f"/v1/users/{_segment(user_id)}", lambda data: _build(User, data))


def delete_user(user_id: str) -> Call[Written]:
    return _write("DELETE", f"/v1/users/{_segment(user_id)}")


def list_users(limit: int = 100, after: str | None = None) -> Call[Page[User]]:
    return _page("/v1/users", "users", User, limit, after)


# --------------------------------------------------------------------------------------------------- items


def put_item(
    item_id: str, title: str, tags: Sequence[str] = (), year: int | None = None, text: str = ""
) -> Call[Written]:
    """Create an item or replace its metadata."""
    body = {"title": title, "tags": list(tags), "year": year, "text": text}
    return _write("PUT", f"/v1/items/{_segment(item_id)}", body)


def put_items(items: Iterable[ItemInput]) -> Call[Written]:
    """Create or replace many items as one version."""
    return _write("POST", "/v1/items", {"items": list(items)})


def get_item(item_id: str) -> Call[Item]:
    return Call("GET", f"/v1/items/{_segment(item_id)}", lambda data: _build(Item, data))


def delete_item(item_id: str) -> Call[Written]:
    return _write("DELETE", f"/v1/items/{_segment(item_id)}")


def list_items(limit: int = 100, after: str | None = None) -> Call[Page[Item]]:
    return _page("/v1/items", "items", Item, limit, after)


def similar_items(
    item_id: str, n: int = 10, tags: Sequence[str] = (), exclude: Sequence[str] = ()
) -> Call[Similar]:
    params = {"n": n, "tags": list(tags), "exclude": list(exclude)}
    return Call("GET", f"/v1/items/{_segment(item_id)}/similar", _similar, params)


# ------------------------------------------------------------------------------------------------- ratings


def rate(user_id: str, item_id: str, value: float, timestamp: int | None = None) -> Call[Written]:
    """Rate an item; without a timestamp it is the server's time."""
    body: dict[str, Any] = {"user_id": user_id, "item_id": item_id, "value": value}
    return _write("POST", "/v1/ratings", body if timestamp is None else body | {"timestamp": timestamp})


def rate_many(ratings: Iterable[RatingInput]) -> Call[Written]:
    """Write many ratings as one version."""
    return _write("POST", "/v1/ratings", {"ratings": list(ratings)})


def delete_rating(user_id: str, item_id: str) -> Call[Written]:
    return _write("DELETE", f"/v1/users/{_segment(user_id)}/ratings/{_segment(item_id)}")


def list_ratings(user_id: str, limit: int = 100, after: str | None = None) -> Call[Page[Rating]]:
    return _page(f"/v1/users/{_segment(user_id)}/ratings", "ratings", Rating, limit, after)


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
    explain: bool = True,
    exact_items: bool = False,
) -> Call[Recommendations]:
    """What a user may like."""
    params: dict[str, Any] = {"n": n}
    given = {"tags": list(tags), "exclude": list(exclude), "exclude_below": exclude_below}
    params |= {name: value for name, value in given.items() if value not in (None, [])}
    if candidates is not None:
        params["candidates"] = list(candidates) or ""  # an empty list is a restriction too
    for name, flag, default in (
        ("exclude_seen", exclude_seen, True),
        ("explain", explain, True),
        ("exact_items", exact_items, False),
    ):
        if flag is not default:
            params[name] = "true" if flag else "false"
    return Call("GET", f"/v1/users/{_segment(user_id)}/recommendations", _recommendations, params)


def recommend_many(
    user_ids: Iterable[str], **options: Any
) -> Call[tuple[Recommendations | UserFailure, ...]]:
    """Recommendations for many users, in their order; `options` are those of `recommend`."""

    def parse(data: Any) -> tuple[Recommendations | UserFailure, ...]:
        return tuple(_failure(r) if "error" in r else _recommendations(r) for r in data["results"])

    return Call("POST", "/v1/recommendations", parse, body={"user_ids": list(user_ids), **options})


def recommend_session(items: Iterable[str | tuple[str, float]], **options: Any) -> Call[Recommendations]:
    """Recommendations from what was liked just now, oldest first: ids, or (id, value)."""
    rows = [item if isinstance(item, str) else {"item_id": item[0], "value": item[1]} for item in items]
    return Call("POST", "/v1/recommendations/session", _recommendations, body={"items": rows, **options})


# -------------------------------------------------------------------------------- encoders and operations


def embedding(node_id: str, kind: str | None = None) -> Call[Embedding]:
    params = {} if kind is None else {"kind": kind}
    return Call(
        "GET", f"/v1/nodes/{_segment(node_id)}/embedding", lambda data: _build(Embedding, data), params
    )


def list_encoders() -> Call[tuple[Encoder, ...]]:
    return Call(
        "GET", "/v1/encoders", lambda data: tuple(_build(Encoder, entry) for entry in data["encoders"])
    )


def activate_encoder(digest: str) -> Call[Written]:
    # Takes no Idempotency-Key, and a second activation is a second entry in the audit.
    path = f"/v1/encoders/{_segment(digest)}/activate"
    return Call("POST", path, lambda data: _build(Written, data), idempotent=False, reads=False)


def live() -> Call[bool]:
    return Call("GET", "/livez", lambda data: data["status"] == "ok", reads=False)


def ready() -> Call[Readiness]:
    """Whether the service is ready, and its parts; does not wait."""
    return Call("GET", "/readyz", lambda data: _build(Readiness, data), reads=False, accepted=(200, 503))


def status() -> Call[dict[str, Any]]:
    return Call("GET", "/v1/status", dict, reads=False)


# ------------------------------------------------------------------------------------------------- helpers


def _segment(text: str) -> str:
    if not text or "/" in text or text in (".", ".."):
        raise ValueError(f"{text!r} cannot be an id: ids are not empty, not '.' or '..', and hold no '/'")
    return quote(text, safe="")


def _write(method: str, path: str, body: object = None) -> Call[Written]:
    # One key per call, not per attempt: a retried write is answered like the first and written once.
    headers = {"idempotency-key": uuid.uuid4().hex}
    return Call(method, path, lambda data: _build(Written, data), body=body, headers=headers, reads=False)


def _page(path: str, plural: str, record: type[T], limit: int, after: str | None) -> Call[Page[T]]:
    def parse(data: Any) -> Page[T]:
        version = data["version"]
        records = tuple(_build(record, {"version": version, **entry}) for entry in data[plural])
        return Page(records, data["next"], version)

    params = {"limit": limit} if after is None else {"limit": limit, "after": after}
    return Call("GET", path, parse, params)


def _build(kind: type[T], data: Mapping[str, Any]) -> T:
    """A dataclass from JSON. Keys it does not know are left out: the service may be newer than the client."""
    values = {f.name: data[f.name] for f in fields(kind)}  # type: ignore[arg-type]
    return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


def _entry(data: Mapping[str, Any]) -> Recommendation:
    because = tuple(_build(Reason, reason) for reason in data.get("because", ()))
    return Recommendation(data["item_id"], data["title"], data["score"], because)


def _recommendations(data: Mapping[str, Any]) -> Recommendations:
    entries = [_entry(entry) for entry in data["recommendations"]]
    return _build(Recommendations, {**data, "recommendations": entries})


def _similar(data: Mapping[str, Any]) -> Similar:
    return _build(Similar, {**data, "similar": [_entry(entry) for entry in data["similar"]]})


def _failure(data: Mapping[str, Any]) -> UserFailure:
    return _build(UserFailure, {"user_id": data["user_id"], **data["error"]})

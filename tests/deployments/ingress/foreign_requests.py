"""Requests for what is Bo's, on every route that names a user: what nobody else's key may be answered."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

RATING = {"user_id": "bo", "item_id": "i0", "value": 4}
CHAT = {"messages": [{"role": "user", "content": "what next?"}]}

BODIES: dict[tuple[str, str], list[Any]] = {
    ("PUT", "/v1/users/{user_id}"): [{"attributes": {"a": 1}}],
    ("POST", "/v1/ratings"): [
        RATING,
        {"ratings": [RATING]},
        {"ratings": [RATING | {"user_id": "ada"}, RATING]},
    ],
    ("POST", "/v1/recommendations"): [{"user_ids": ["bo"]}, {"user_ids": ["ada", "bo"]}],
    ("POST", "/v1/users/{user_id}/memories"): [{"text": "x"}, {"memories": [{"text": "x"}]}],
    ("PUT", "/v1/users/{user_id}/memories/{memory_id}"): [{"text": "x"}],
    ("POST", "/v1/users/{user_id}/memories/search"): [{"query": "bees"}],
    ("POST", "/v1/users/{user_id}/relations"): [{"memory_id": "m-bo", "name": "about", "item_id": "i0"}],
    ("POST", "/v1/chat/completions"): [
        CHAT | {"user": "bo"},
        CHAT | {"user": "bo", "stream": True},
        CHAT | {"model": "user/bo"},
        CHAT | {"model": "user/bo", "stream": True},
        CHAT | {"model": "d" * 64},
        CHAT | {"user": "ada", "weft": {"adapter": "user/bo/v1"}},
        CHAT | {"weft": {"adapter": "user/bo"}},
        CHAT | {"weft": {"adapter": "d" * 64}},
        CHAT | {"weft": {"blend": [{"adapter": "domain/films"}, {"adapter": "user/bo"}]}},
    ],
    ("POST", "/v1/completions"): [
        {"prompt": "a", "user": "bo"},
        {"prompt": "a", "user": "bo", "stream": True},
        {"prompt": "a", "model": "user/bo"},
    ],
    ("POST", "/v1/generate"): [
        {"text": "a", "user_id": "bo"},
        {"text": "a", "user_id": "bo", "stream": True},
        {"text": "a", "adapter": "user/bo"},
        {"text": "a", "adapter": "user/bo", "stream": True},
        {"user_id": "bo", "explain_item": "i0"},
    ],
    ("POST", "/v1/generate/batch"): [
        {"requests": [{"text": "a", "user_id": "bo"}]},
        {"requests": [{"text": "a", "user_id": "ada"}, {"text": "a", "adapter": "user/bo"}]},
    ],
}
QUERIES: dict[tuple[str, str], list[str]] = {
    ("GET", "/v1/users/{user_id}/recommendations"): ["", "?explain=true", "?n=3&exclude_seen=false"],
    ("GET", "/v1/users/{user_id}/context"): ["?query=bees", "?explain_item=i0"],
    ("GET", "/v1/users/{user_id}/graph"): ["", "?depth=3"],
    ("DELETE", "/v1/users/{user_id}/relations"): ["?memory_id=m-bo&name=about&item_id=i0"],
    ("GET", "/v1/nodes/{node_id}/embedding"): ["", "?kind=user", "?kind=memory&user_id=bo"],
}
ACCEPTED = ("application/json", "text/event-stream", "application/x-ndjson")


class ForeignRequest(NamedTuple):
    """`names`: whether it names Bo, so that it must be refused."""

    method: str
    path: str
    options: dict[str, Any]
    names: bool


def routes(document: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Every route of an OpenAPI document."""
    for path, operations in document["paths"].items():
        for method in operations:
            yield method.upper(), path


def filled(path: str, user: str = "bo", digest: str = "e" * 16) -> str:
    """A route's path with ids of that user in it."""
    for name, value in {
        "user_id": user,
        "item_id": "i0",
        "memory_id": f"m-{user}",
        "node_id": user,
        "digest": digest,
        "scope": "user",
        "name": user,
        "version": "v1",
        "model_id": f"user/{user}",
        "key_id": "weft_0000000000000000",
    }.items():
        path = path.replace("{" + name + "}", value)
    return path


def foreign_requests(document: dict[str, Any]) -> Iterator[ForeignRequest]:
    """All routes there are, those that name a user in every way they can."""
    for method, path in routes(document):
        named = "{user_id}" in path or "{node_id}" in path or (method, path) in BODIES
        for query in QUERIES.get((method, path), [""]):
            # An id of no kind is looked for among the items.
            names = named and not (path.startswith("/v1/nodes") and not query)
            for body in BODIES.get((method, path), [None]):
                for accept in ACCEPTED:
                    options: dict[str, Any] = {"headers": {"accept": accept}}
                    if body is not None:
                        options["json"] = body
                    yield ForeignRequest(method, filled(path) + query, options, names)


def in_place(path: str) -> bool:
    """Whether a route answers many requests at once, each with an error of its own in its place."""
    return path in ("/v1/recommendations", "/v1/generate/batch")

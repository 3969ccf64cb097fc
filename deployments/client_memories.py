"""Memories and context as the clients see them: the calls and what they answer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, NotRequired, TypeAlias, TypedDict

from deployments.client_calls import Call, given, segment, writing
from deployments.client_results import Page, Written, build

Time: TypeAlias = datetime | str | int | float
"""ISO 8601, Unix seconds, or a datetime; without a time zone it is UTC."""


@dataclass(frozen=True, slots=True)
class Related:
    """Where a memory's relation leads: `kind` is "item" or "memory"."""

    name: str
    kind: str
    id: str
    title: str


@dataclass(frozen=True, slots=True)
class Memory:
    """A fact a user owns. Times are ISO 8601; `valid`: it holds now."""

    memory_id: str
    user_id: str
    text: str
    valid_at: str | None
    invalid_at: str | None
    source: str
    valid: bool
    relations: tuple[Related, ...]
    version: str


@dataclass(frozen=True, slots=True)
class MemoriesWritten:
    """`memory_ids` are in the order the memories were given in."""

    memory_ids: tuple[str, ...]
    version: str
    changed: int
    replayed: bool


@dataclass(frozen=True, slots=True)
class FoundMemories:
    """Memories with the score of each, best first; `text_model` None: words alone decided."""

    memories: tuple[tuple[Memory, float], ...]
    text_model: str | None
    version: str


@dataclass(frozen=True, slots=True)
class Node:
    """`kind` is "user", "item" or "memory"; `depth` counts edges from the user."""

    kind: str
    id: str
    label: str
    depth: int


@dataclass(frozen=True, slots=True)
class Edge:
    """From and to nodes, each as (kind, id); `value` is a rating's."""

    source: tuple[str, str]
    name: str
    target: tuple[str, str]
    value: float | None


@dataclass(frozen=True, slots=True)
class UserGraph:
    """A user's own part of the graph; `complete` False: the limit left nodes out."""

    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]
    complete: bool
    version: str


@dataclass(frozen=True, slots=True)
class ContextLine:
    """A line of a prompt, and the node it comes from as (kind, id)."""

    kind: str
    source: tuple[str, str]
    text: str
    score: float
    why: str


@dataclass(frozen=True, slots=True)
class Context:
    """What a prompt would hold about a user; `missing` names what could not take part."""

    text: str
    tokens: int
    max_tokens: int
    counted_by: str
    lines: tuple[ContextLine, ...]
    missing: tuple[str, ...]
    version: str


class MemoryInput(TypedDict):
    """One row of `put_memories`."""

    text: str
    memory_id: NotRequired[str]
    valid_at: NotRequired[Time | None]
    invalid_at: NotRequired[Time | None]
    source: NotRequired[str]
    relations: NotRequired[list[Mapping[str, str]]]


class RelationInput(TypedDict):
    """One row of `relate_many`: exactly one of `item_id` and `to_memory_id`."""

    memory_id: str
    name: str
    item_id: NotRequired[str]
    to_memory_id: NotRequired[str]


def remember(
    user_id: str,
    text: str,
    *,
    memory_id: str | None = None,
    valid_at: Time | None = None,
    invalid_at: Time | None = None,
    source: str = "",
    about: Sequence[str] = (),
) -> Call[MemoriesWritten]:
    """Write a fact of a user's, related as "about" to the items of `about`. Answers its id."""
    memory: MemoryInput = {"text": text, "source": source, "valid_at": valid_at, "invalid_at": invalid_at}
    if memory_id is not None:
        memory["memory_id"] = memory_id
    if about:
        memory["relations"] = [{"name": "about", "item_id": item_id} for item_id in about]
    return put_memories(user_id, [memory])


def put_memories(user_id: str, memories: Iterable[MemoryInput]) -> Call[MemoriesWritten]:
    """Write many facts of a user's as one version."""
    body = {"memories": [_sent(memory) for memory in memories]}
    write = writing("POST", f"/v1/users/{segment(user_id)}/memories", body)

    return Call(
        write.method,
        write.path,
        lambda data: build(MemoriesWritten, data),
        body=body,
        headers=write.headers,
        reads=False,
    )


def put_memory(
    user_id: str,
    memory_id: str,
    text: str,
    *,
    valid_at: Time | None = None,
    invalid_at: Time | None = None,
    source: str = "",
) -> Call[Written]:
    """Create a memory under an id of one's own, or replace it; its relations stay."""
    body = _sent({"text": text, "valid_at": valid_at, "invalid_at": invalid_at, "source": source})
    return writing("PUT", _path(user_id, memory_id), body)


def get_memory(user_id: str, memory_id: str) -> Call[Memory]:
    return Call("GET", _path(user_id, memory_id), memory_of)


def delete_memory(user_id: str, memory_id: str) -> Call[Written]:
    return writing("DELETE", _path(user_id, memory_id))


def list_memories(user_id: str, limit: int = 100, after: str | None = None) -> Call[Page[Memory]]:
    """A user's memories, oldest first."""

    def parse(data: Any) -> Page[Memory]:
        return Page(
            tuple(_memory_in(data, entry) for entry in data["memories"]), data["next"], data["version"]
        )

    params = {"limit": limit} | given(after=after)
    return Call("GET", f"/v1/users/{segment(user_id)}/memories", parse, params)


def search_memories(
    user_id: str, query: str, n: int = 10, *, valid_only: bool = False
) -> Call[FoundMemories]:
    """A user's memories that mean what a text says."""

    def parse(data: Any) -> FoundMemories:
        found = tuple((_memory_in(data, entry), float(entry["score"])) for entry in data["memories"])
        return FoundMemories(found, data["text_model"], data["version"])

    body = {"query": query, "n": n, "valid_only": valid_only}
    return Call("POST", f"/v1/users/{segment(user_id)}/memories/search", parse, body=body)


def relate(
    user_id: str, memory_id: str, name: str, *, item_id: str | None = None, to_memory_id: str | None = None
) -> Call[Written]:
    """Relate a memory to an item, or to another memory of the same user."""
    row = {"memory_id": memory_id, "name": name} | given(item_id=item_id, to_memory_id=to_memory_id)
    return relate_many(user_id, [row])  # type: ignore[list-item]


def relate_many(user_id: str, relations: Iterable[RelationInput]) -> Call[Written]:
    """Write many relations as one version."""
    return writing("POST", f"/v1/users/{segment(user_id)}/relations", {"relations": list(relations)})


def unrelate(
    user_id: str, memory_id: str, name: str, *, item_id: str | None = None, to_memory_id: str | None = None
) -> Call[Written]:
    """Remove a relation."""
    params = {"memory_id": memory_id, "name": name} | given(item_id=item_id, to_memory_id=to_memory_id)
    return replace(writing("DELETE", f"/v1/users/{segment(user_id)}/relations"), params=params)


def user_graph(user_id: str, depth: int = 2, limit: int = 100) -> Call[UserGraph]:
    """A user with memories, ratings and what they are related to."""

    def parse(data: Any) -> UserGraph:
        nodes = tuple(build(Node, node) for node in data["nodes"])
        edges = tuple(
            Edge(_end(edge["source"]), edge["name"], _end(edge["target"]), edge["value"])
            for edge in data["edges"]
        )
        return UserGraph(nodes, edges, data["complete"], data["version"])

    path = f"/v1/users/{segment(user_id)}/graph"
    return Call("GET", path, parse, {"depth": depth, "limit": limit})


def context(
    user_id: str, query: str = "", *, max_tokens: int | None = None, explain_item: str | None = None
) -> Call[Context]:
    """What a prompt with this question would say about the user."""

    def parse(data: Any) -> Context:
        lines = tuple(
            ContextLine(line["kind"], _end(line["source"]), line["text"], line["score"], line["why"])
            for line in data["lines"]
        )
        return build(Context, {**data, "lines": lines, "missing": tuple(data["missing"])})

    params = given(query=query or None, max_tokens=max_tokens, explain_item=explain_item)
    return Call("GET", f"/v1/users/{segment(user_id)}/context", parse, params)


def memory_of(data: Mapping[str, Any]) -> Memory:
    return build(Memory, {**data, "relations": tuple(build(Related, r) for r in data["relations"])})


def _memory_in(answer: Mapping[str, Any], entry: Mapping[str, Any]) -> Memory:
    shared = {"version": answer["version"], "user_id": answer["user_id"]}
    return memory_of({**shared, **entry})


def _path(user_id: str, memory_id: str) -> str:
    return f"/v1/users/{segment(user_id)}/memories/{segment(memory_id)}"


def _end(data: Mapping[str, str]) -> tuple[str, str]:
    return data["kind"], data["id"]


def _sent(memory: MemoryInput) -> dict[str, Any]:
    """The row as JSON; a datetime goes as ISO 8601."""
    return {
        name: value.isoformat() if isinstance(value, datetime) else value
        for name, value in memory.items()
        if value is not None
    }

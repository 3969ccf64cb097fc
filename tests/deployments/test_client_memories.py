"""The clients' calls of memories and context: what they send and how they read answers."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import httpx
import orjson
import pytest

from deployments.client import WeftClient
from deployments.client_memories import Edge, MemoryInput, Node

WRITTEN = {"version": "s.7", "changed": 1, "replayed": False}
MEMORY = {
    "memory_id": "mem_1",
    "text": "I live in Oslo.",
    "valid_at": "2026-03-01T00:00:00Z",
    "invalid_at": None,
    "source": "chat",
    "valid": True,
    "relations": [{"name": "about", "kind": "item", "id": "i1", "title": "Stalker"}],
}

Ask = Callable[..., tuple[Any, httpx.Request]]


@pytest.fixture
def ask() -> Ask:
    """Calls one method of a client whose service answers `data`; gives the result and what was sent."""

    def call(data: object, method: str, *args: object, **options: object) -> tuple[Any, httpx.Request]:
        sent: list[httpx.Request] = []

        def answer(request: httpx.Request) -> httpx.Response:
            sent.append(request)
            return httpx.Response(200, json=data)

        with WeftClient("http://t", transport=httpx.MockTransport(answer)) as client:
            result = getattr(client, method)(*args, **options)
        (request,) = sent
        return result, request

    return call


def test_a_fact_is_remembered_with_what_it_is_about(ask: Ask) -> None:
    when = datetime(2026, 3, 1, tzinfo=UTC)
    data = {"memory_ids": ["mem_1"], **WRITTEN}
    result, request = ask(data, "remember", "a b", "I live in Oslo.", valid_at=when, about=["i1"])
    assert (result.memory_ids, result.version) == (("mem_1",), "s.7")
    assert request.url.raw_path == b"/v1/users/a%20b/memories"
    assert "idempotency-key" in request.headers
    (memory,) = orjson.loads(request.content)["memories"]
    assert memory == {
        "text": "I live in Oslo.",
        "valid_at": "2026-03-01T00:00:00+00:00",
        "source": "",
        "relations": [{"name": "about", "item_id": "i1"}],
    }


def test_many_facts_go_in_one_write(ask: Ask) -> None:
    rows: list[MemoryInput] = [{"text": "One.", "memory_id": "m1"}, {"text": "Two.", "valid_at": 5}]
    _, request = ask({"memory_ids": ["m1", "m2"], **WRITTEN}, "put_memories", "ada", rows)
    assert orjson.loads(request.content) == {"memories": rows}


def test_a_memory_is_written_read_and_deleted_under_its_id(ask: Ask) -> None:
    written, request = ask(WRITTEN, "put_memory", "ada", "mem 1", "I live in Bergen.", source="chat")
    assert (request.method, request.url.raw_path) == ("PUT", b"/v1/users/ada/memories/mem%201")
    assert orjson.loads(request.content) == {"text": "I live in Bergen.", "source": "chat"}
    assert written.version == "s.7"
    found, request = ask({**MEMORY, "user_id": "ada", "version": "s.7"}, "get_memory", "ada", "mem_1")
    assert found.relations[0].title == "Stalker"
    assert (found.valid_at, found.invalid_at, found.valid) == ("2026-03-01T00:00:00Z", None, True)
    _, request = ask(WRITTEN, "delete_memory", "ada", "mem_1")
    assert (request.method, request.url.path) == ("DELETE", "/v1/users/ada/memories/mem_1")


def test_pages_and_searches_answer_memories_of_the_user(ask: Ask) -> None:
    answer = {"user_id": "ada", "memories": [MEMORY], "next": "4", "version": "s.7"}
    page, request = ask(answer, "list_memories", "ada", 1, "3")
    assert (page.next, page.records[0].user_id, page.records[0].version) == ("4", "ada", "s.7")
    assert request.url.query == b"limit=1&after=3"
    answer = {"user_id": "ada", "memories": [{**MEMORY, "score": 0.5}], "text_model": None, "version": "s.7"}
    found, request = ask(answer, "search_memories", "ada", "home", 3, valid_only=True)
    assert orjson.loads(request.content) == {"query": "home", "n": 3, "valid_only": True}
    assert [(memory.memory_id, score) for memory, score in found.memories] == [("mem_1", 0.5)]


def test_relations_are_written_and_removed(ask: Ask) -> None:
    _, request = ask(WRITTEN, "relate", "ada", "mem_1", "about", item_id="i1")
    row = {"memory_id": "mem_1", "name": "about", "item_id": "i1"}
    assert orjson.loads(request.content) == {"relations": [row]}
    _, request = ask(WRITTEN, "unrelate", "ada", "mem_1", "follows", to_memory_id="mem_2")
    assert (request.method, request.url.path) == ("DELETE", "/v1/users/ada/relations")
    assert request.url.query == b"memory_id=mem_1&name=follows&to_memory_id=mem_2"


def test_the_graph_and_the_context_are_read_as_nodes_edges_and_lines(ask: Ask) -> None:
    user, item = {"kind": "user", "id": "ada"}, {"kind": "item", "id": "i1"}
    answer = {
        "user_id": "ada",
        "nodes": [{**user, "label": "ada", "depth": 0}, {**item, "label": "Stalker", "depth": 1}],
        "edges": [{"source": user, "name": "rated", "target": item, "value": 5.0}],
        "complete": True,
        "version": "s.7",
    }
    graph, request = ask(answer, "user_graph", "ada", 1, 5)
    assert request.url.query == b"depth=1&limit=5"
    assert graph.nodes[1] == Node("item", "i1", "Stalker", 1)
    assert graph.edges == (Edge(("user", "ada"), "rated", ("item", "i1"), 5.0),)
    line = {"kind": "liked", "source": item, "text": "Stalker", "score": 1.0, "why": "rated 5.0"}
    answer = {
        "user_id": "ada",
        "text": "What is known about this user:\n- liked: Stalker",
        "tokens": 9,
        "max_tokens": 64,
        "counted_by": "tiny",
        "lines": [line],
        "missing": ["suggestions"],
        "version": "s.7",
    }
    context, request = ask(answer, "context", "ada", "what now?", max_tokens=64)
    assert request.url.query == b"query=what+now%3F&max_tokens=64"
    assert context.lines[0].source == ("item", "i1")
    assert context.missing == ("suggestions",)


def test_explanations_are_read_where_there_are_any(ask: Ask) -> None:
    entry = {"item_id": "i", "title": "I", "score": 1.0, "because": []}
    answer = {
        "user_id": "ada",
        "basis": "personal",
        "recommendations": [
            {**entry, "explanation": {"text": "You liked Stalker.", "sources": []}},
            {**entry, "explanation": None, "explanation_error": "model_unavailable"},
            entry,
        ],
        "version": "s.5",
        "item_version": "s.5",
        "encoder": "e",
    }
    found, _ = ask(answer, "recommend", "ada", 3, explain=True)
    assert [r.explanation for r in found.recommendations] == ["You liked Stalker.", None, None]

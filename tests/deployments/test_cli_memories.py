"""`weft memories` against a scripted service: what it sends and prints."""

from __future__ import annotations

import json

import httpx
import pytest

from tests.deployments.scripted_cli import Weft
from tests.deployments.test_client_memories import MEMORY, WRITTEN


def answered(data: object) -> list[httpx.Response]:
    return [httpx.Response(200, json=data)]


def test_add_prints_the_id(weft: Weft) -> None:
    answers = answered({"memory_ids": ["mem_1"], **WRITTEN})
    ended = weft("memories", "add", "ada", "I live in Oslo.", "--about", "i1", "--id", "m", answers=answers)
    assert (ended.status, ended.out) == (0, "mem_1\n")
    method, path, body = ended.sent[0]
    assert (method, path) == ("POST", "/v1/users/ada/memories")
    assert body["memories"][0]["relations"] == [{"name": "about", "item_id": "i1"}]
    assert body["memories"][0]["memory_id"] == "m"


def test_the_list_goes_over_all_pages(weft: Weft) -> None:
    first = {"user_id": "ada", "memories": [MEMORY], "next": "9", "version": "s.7"}
    last = {**first, "memories": [{**MEMORY, "memory_id": "mem_2"}], "next": None}
    pages = [httpx.Response(200, json=first), httpx.Response(200, json=last)]
    found = json.loads(weft("memories", "list", "ada", "--json", answers=pages).out)
    assert [memory["memory_id"] for memory in found] == ["mem_1", "mem_2"]
    table = weft("memories", "list", "ada", answers=[httpx.Response(200, json=last)]).out
    assert "mem_2" in table
    assert "from" in table
    assert "2026-03-01" in table
    empty = weft("memories", "list", "ada", answers=answered({**last, "memories": []}))
    assert "Nothing is remembered of ada" in empty.err


def test_search_says_when_words_alone_decided(weft: Weft) -> None:
    found = {"user_id": "ada", "memories": [{**MEMORY, "score": 0.5}], "text_model": None, "version": "s.7"}
    ended = weft("memories", "search", "ada", "home", "--valid", answers=answered(found))
    assert "0.50" in ended.out
    assert "words alone" in ended.err
    assert ended.sent[0][2] == {"query": "home", "n": 10, "valid_only": True}


def test_relate_takes_exactly_one_end(weft: Weft) -> None:
    ended = weft("memories", "relate", "ada", "mem_1", "about", "--item", "i1", answers=answered(WRITTEN))
    assert ended.sent[0][2] == {"relations": [{"memory_id": "mem_1", "name": "about", "item_id": "i1"}]}
    ended = weft(
        "memories", "relate", "ada", "m", "about", "--memory", "n", "--remove", answers=answered(WRITTEN)
    )
    assert ended.sent[0][:2] == ("DELETE", "/v1/users/ada/relations")
    assert "no longer related" in ended.err
    for ends in ((), ("--item", "i", "--memory", "m")):
        refused = weft("memories", "relate", "ada", "m", "about", *ends, answers=answered(WRITTEN))
        assert (refused.status, refused.sent) == (1, [])


def test_graph_and_context_are_tables(weft: Weft) -> None:
    user, item = {"kind": "user", "id": "ada"}, {"kind": "item", "id": "i1"}
    graph = {
        "user_id": "ada",
        "nodes": [{**user, "label": "ada", "depth": 0}, {**item, "label": "Stalker", "depth": 1}],
        "edges": [{"source": user, "name": "rated", "target": item, "value": 4.5}],
        "complete": False,
        "version": "s.7",
    }
    ended = weft("memories", "graph", "ada", "--limit", "2", answers=answered(graph))
    assert "rated 4.5" in ended.out
    assert "Stalker" in ended.out
    assert "more than 2 nodes" in ended.err
    line = {"kind": "liked", "source": item, "text": "Stalker", "score": 1.0, "why": "rated 5.0"}
    context = {
        "text": "...",
        "tokens": 9,
        "max_tokens": 64,
        "counted_by": "tiny",
        "lines": [line],
        "missing": ["suggestions"],
        "version": "s.7",
    }
    ended = weft("memories", "context", "ada", "what now", answers=answered(context))
    assert "liked: Stalker" in ended.out
    assert "9 of 64 tokens, counted by tiny; without suggestions" in ended.err


@pytest.mark.parametrize("command", [("put", "ada", "m", "Text."), ("delete", "ada", "m")])
def test_writes_say_what_they_did(weft: Weft, command: tuple[str, ...]) -> None:
    ended = weft("memories", *command, answers=answered(WRITTEN))
    assert (ended.status, ended.out) == (0, "")
    assert "m is" in ended.err
    assert json.loads(weft("memories", *command, "--json", answers=answered(WRITTEN)).out)["version"] == "s.7"

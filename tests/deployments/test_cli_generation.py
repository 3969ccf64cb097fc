"""`weft generate`, `weft chat` and `weft adapters` against a scripted service: what they send and print."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.deployments.scripted_cli import Weft
from tests.deployments.test_client_generation import ERROR, GENERATED, STATE, event, streamed

ENTRY = {
    "scope": "user",
    "name": "ada",
    "version": "v2",
    "digest": "d" * 64,
    "size_bytes": 123_456,
    "rank": 8,
    "modules": ["q_proj", "v_proj"],
    "created_at": 0.0,
    "active": True,
    "resident": False,
}
CANDIDATES = [
    {"path": "fresh", "digest": "e" * 64, "size_bytes": 5, "problem": None},
    {"path": "broken", "digest": None, "size_bytes": 5, "problem": "no adapter_config.json"},
]


def spoken(*pieces: str) -> httpx.Response:
    return streamed(
        *(event(text=p) for p in pieces), event(finished={**GENERATED, "output": "".join(pieces)})
    )


def models(name: str = "tiny") -> httpx.Response:
    data = [{"id": name}]
    return httpx.Response(200, json={"object": "list", "data": data})


def test_generate_prints_the_answer_and_what_it_was_made_with(weft: Weft) -> None:
    ended = weft("generate", "hi", "--user", "ada", "--seed", "1", answers=[spoken("Hel", "lo")])
    assert (ended.status, ended.out) == (0, "Hello\n")
    assert "user/ada/v2: ada's own adapter; 2 tokens" in ended.err
    _, path, body = ended.sent[0]
    assert path == "/v1/generate"
    assert body["stream"] is True
    assert (body["text"], body["user_id"], body["seed"]) == ("hi", "ada", 1)


def test_generate_takes_the_question_from_standard_input_and_prints_json(weft: Weft) -> None:
    answers = [httpx.Response(200, json=GENERATED)]
    ended = weft("generate", "--json", answers=answers, stdin="hi there")
    assert json.loads(ended.out)["output"] == GENERATED["output"]
    assert ended.sent[0][2]["text"] == "hi there"
    assert weft("generate", answers=answers, stdin=" \n").status == 1


def test_a_chat_carries_its_turns_and_outlives_an_error(weft: Weft) -> None:
    answers = [models(), spoken("one"), streamed(event(error=ERROR)), spoken("three"), models()]
    ended = weft("chat", "-u", "ada", "--system", "be kind", answers=answers, stdin="a\nb\nc\n\n")
    assert ended.status == 0
    assert ended.out == "one\nthree\n"
    assert "256 requests wait" in ended.err
    assert [turn["content"] for turn in ended.sent[-1][2]["messages"]] == ["be kind", "a", "one", "c"]


def test_an_answer_shows_what_it_was_told_about_the_user(weft: Weft) -> None:
    sources = [{"kind": "memory", "id": "mem_1"}, {"kind": "item", "id": "i1"}]
    context = {"sources": sources, "tokens": 57, "missing": ["suggestions"], "version": "s.3"}
    told = streamed(event(text="Hi"), event(finished={**GENERATED, "output": "Hi", "context": context}))
    ended = weft("chat", "-u", "ada", "--max-context-tokens", "64", answers=[models(), told], stdin="a\n\n")
    assert "context: memory mem_1, item i1; 57 tokens; without suggestions" in ended.err
    assert ended.sent[-1][2]["max_context_tokens"] == 64
    ended = weft("generate", "hi", "-u", "ada", "--no-context", answers=[spoken("Hi")])
    assert ended.sent[0][2]["use_context"] is False
    assert "context:" not in ended.err


def test_an_item_is_explained_without_a_question(weft: Weft) -> None:
    ended = weft("generate", "-u", "ada", "--explain", "i1", answers=[spoken("Because.")], stdin="unread")
    body = ended.sent[0][2]
    assert (body["explain_item"], "text" in body) == ("i1", False)


def test_a_chat_with_wefts_own_model_says_what_it_is(weft: Weft) -> None:
    assert "knows nothing else" in weft("chat", answers=[models("weft-small")], stdin="\n").err
    assert "knows nothing else" not in weft("chat", answers=[models()], stdin="\n").err


def test_adapters_are_listed_over_all_pages_with_the_inbox(weft: Weft) -> None:
    def page(version: str, after: str | None) -> httpx.Response:
        listing = {"adapters": [{**ENTRY, "version": version}], "states": [STATE], "candidates": CANDIDATES}
        return httpx.Response(200, json={**listing, "version": "s.3", "next": after})

    ended = weft("adapters", "list", answers=[page("v1", "cursor"), page("v2", None)])
    assert "user/ada/v1" in ended.out
    assert "user/ada/v2" in ended.out
    assert "fresh: ready to be put" in ended.out
    assert "broken: no adapter_config.json" in ended.out
    data = json.loads(weft("adapters", "list", "user/ada", "--json", answers=[page("v1", None)]).out)
    assert [entry["version"] for entry in data["adapters"]] == ["v1"]


def test_a_list_without_adapters_says_what_to_do(weft: Weft) -> None:
    empty = {"adapters": [], "states": [], "candidates": [], "version": "s.3", "next": None}
    ended = weft("adapters", "list", answers=[httpx.Response(200, json=empty)])
    assert ended.out == ""
    assert "weft adapters put" in ended.err


def test_put_and_activate(weft: Weft, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_model.safetensors").write_bytes(b"x")
    written = {"version": "s.8", "changed": 1, "replayed": False}
    answers = [
        httpx.Response(200, json={**written, "adapter": ENTRY}),
        httpx.Response(200, json={**written, "state": STATE}),
    ]
    ended = weft("adapters", "put", "user/ada", "v2", str(tmp_path), "--activate", answers=answers)
    assert ended.status == 0
    assert ended.out == f"user/ada/v2: {'d' * 64}\n"
    assert ended.err == "Active for user/ada: v2.\n"
    assert [path for _, path, _ in ended.sent] == [
        "/v1/adapters/user/ada/versions/v2",
        "/v1/adapters/user/ada/activate",
    ]


def test_several_versions_share_the_users(weft: Weft) -> None:
    def moved(arms: list[dict[str, Any]]) -> httpx.Response:
        state = {**STATE, "arms": arms}
        return httpx.Response(200, json={"version": "s.9", "changed": 1, "replayed": False, "state": state})

    answers = [moved(STATE["arms"])]
    ended = weft("adapters", "activate", "domain/films", "v1=0.9", "v2=0.1", answers=answers)
    assert ended.sent[0][2] == {
        "arms": [{"version": "v1", "weight": 0.9}, {"version": "v2", "weight": 0.1}],
    }
    two = [
        {"version": "v1", "digest": "d" * 64, "weight": 0.9},
        {"version": "v2", "digest": "e" * 64, "weight": 0.1},
    ]
    told = weft("adapters", "rollback", "user/ada", answers=[moved(two)]).err
    assert told == "Active for user/ada: v1=0.9, v2=0.1, shares of the users.\n"
    assert weft("adapters", "rollback", "user/ada", answers=[moved([])]).err == "Active for user/ada: none.\n"
    assert weft("adapters", "activate", "user/ada", "--none", answers=answers).sent[0][2] == {"version": None}
    assert weft("adapters", "rollback", "global", answers=answers).sent[0][1] == (
        "/v1/adapters/global/default/rollback"
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ("adapters", "history", "alice"),
        ("adapters", "history", "user/"),
        ("adapters", "history", "team/x"),
        ("adapters", "history", "user/a/b"),
        ("adapters", "put", "user/ada", "v1"),
        ("adapters", "put", "user/ada", "v1", "/nowhere"),
        ("adapters", "activate", "user/ada"),
        ("adapters", "activate", "user/ada", "v1", "--none"),
        ("adapters", "activate", "user/ada", "v1=much", "v2"),
        ("adapters", "activate", "user/ada", "v1=1", "v1=2"),
    ],
)
def test_mistakes_are_one_sentence(weft: Weft, arguments: tuple[str, ...]) -> None:
    ended = weft(*arguments, answers=[httpx.Response(500)])
    assert (ended.status, ended.out, ended.sent) == (1, "", [])
    assert ended.err.startswith("error: ")
    assert "Traceback" not in ended.err

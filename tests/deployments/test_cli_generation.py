"""`weft generate`, `weft chat` and `weft adapters` against a scripted service: what they send and print."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest

import deployments.client
from deployments.cli import main
from deployments.client import WeftClient
from tests.deployments.test_client_generation import ERROR, GENERATED, STATE, event, streamed


class Ended(NamedTuple):
    status: int
    out: str
    err: str
    sent: list[tuple[str, str, Any]]


Weft = Callable[..., Ended]
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


@pytest.fixture
def weft(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Weft:
    """Runs a command; `answers` are handed out in order, the last one again and again."""

    def run(*arguments: str, answers: list[httpx.Response], stdin: str = "") -> Ended:
        sent: list[tuple[str, str, Any]] = []
        left = list(answers)

        def answer(request: httpx.Request) -> httpx.Response:
            is_json = request.headers.get("content-type") == "application/json"
            sent.append((request.method, request.url.path, json.loads(request.read()) if is_json else None))
            return left.pop(0) if len(left) > 1 else left[0]

        transport = httpx.MockTransport(answer)
        monkeypatch.setattr(deployments.client, "WeftClient", partial(WeftClient, transport=transport))
        monkeypatch.setattr(sys, "argv", ["weft", *arguments])
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        return Ended(int(ended.value.code or 0), captured.out, captured.err, sent)

    return run


def spoken(*pieces: str) -> httpx.Response:
    return streamed(
        *(event(text=p) for p in pieces), event(finished={**GENERATED, "output": "".join(pieces)})
    )


def models(meaningful: bool = True) -> httpx.Response:
    data = [{"id": "tiny", "weft": {"meaningful": meaningful}}]
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


def test_a_chat_with_the_stand_in_says_that_it_means_nothing(weft: Weft) -> None:
    assert "its words mean nothing" in weft("chat", answers=[models(meaningful=False)], stdin="\n").err
    assert "mean nothing" not in weft("chat", answers=[models()], stdin="\n").err


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

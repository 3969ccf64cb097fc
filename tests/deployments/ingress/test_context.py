"""What a prompt holds about its user: shown by /context, put into chats, left out where it is away."""

from __future__ import annotations

import asyncio
import logging

import httpx
import openai
import pytest
from fastapi import FastAPI

from deployments.ingress.application import create_app
from deployments.ingress.generation_answers import ChatAnswer, GenerateBatchAnswer, GeneratedAnswer
from deployments.setting_groups import ContextSettings
from graph.context_lines import EXPLAIN_QUESTION
from graph.errors import (
    InvalidInput,
    ModelUnavailable,
    NotYet,
    Overloaded,
    SnapshotRequired,
    Unavailable,
    UnknownItem,
)
from graph.schema import MAX_TEXT_CHARS
from models.language_model.protocol import Message
from tests.deployments.ingress.connection import Connection, asked
from tests.deployments.ingress.error_shape import error_of
from tests.deployments.ingress.fake_backend import FakeBackend
from tests.deployments.ingress.fake_memories import COUNTED_BY, NO_TIMINGS
from tests.deployments.ingress.test_generate import events_of

CONTEXT = "/v1/users/ada/context"
TURNS = [
    {"role": "user", "content": "first"},
    {"role": "assistant", "content": "rain"},
    {"role": "user", "content": "what of rain"},
    {"role": "assistant", "content": "and"},
]
SOURCES = [{"kind": "memory", "id": "m0"}, {"kind": "memory", "id": "m1"}, {"kind": "item", "id": "i1"}]
WHY = EXPLAIN_QUESTION.format(title="Title 2")


@pytest.fixture
async def known(http: httpx.AsyncClient) -> httpx.AsyncClient:
    """Ada said two things and liked an item; Bob said one. The view is far beyond what ada wrote."""
    rows = [{"memory_id": "m1", "text": "sleeps late"}, {"memory_id": "m0", "text": "loves rain"}]
    for user, memories in (("ada", rows), ("bob", [{"memory_id": "b0", "text": "secret sun"}])):
        await http.post(f"/v1/users/{user}/memories", json={"memories": memories})
    await http.post("/v1/ratings", json={"user_id": "ada", "item_id": "i1", "value": 5.0})
    return http


def facts(backend: FakeBackend, *sources: dict, tokens: int, missing: tuple[str, ...] = ()) -> dict:
    return {
        "sources": list(sources),
        "tokens": tokens,
        "missing": list(missing),
        "timings_ms": NO_TIMINGS,
        "version": f"store1.{backend.version}",
    }


async def test_the_route_shows_what_a_prompt_gets(known: httpx.AsyncClient, backend: FakeBackend) -> None:
    shown = (await known.get(CONTEXT, params={"query": "and rain", "max_tokens": 40})).json()
    lines = ("said: loves rain", "said: sleeps late", "liked: Title 1")
    assert shown == {
        "user_id": "ada",
        "text": "\n- ".join(("What is known about this user:", *lines)),
        "tokens": 18,
        "max_tokens": 40,
        "counted_by": COUNTED_BY,
        "lines": [
            {"kind": "said", "source": SOURCES[0], "text": "loves rain", "score": 1.0, "why": "words"},
            {"kind": "said", "source": SOURCES[1], "text": "sleeps late", "score": 0.0, "why": "words"},
            {"kind": "liked", "source": SOURCES[2], "text": "Title 1", "score": 1.0, "why": "rated 5.0"},
        ],
        "missing": [],
        "timings_ms": NO_TIMINGS,
        "version": f"store1.{backend.version}",
    }
    body = {"user_id": "ada", "text": "and rain", "max_context_tokens": 40}
    told = (await known.post("/v1/generate", json=body)).json()["context"]
    assert told["sources"] == [line["source"] for line in shown["lines"]]
    assert (told["tokens"], told["version"]) == (shown["tokens"], shown["version"])
    first, second = backend.asked_context[-2:]
    assert first == second == ("ada", "and rain", backend.version, None)


async def test_options_of_the_route(known: httpx.AsyncClient, backend: FakeBackend) -> None:
    shown = (await known.get(CONTEXT)).json()
    assert (shown["max_tokens"], backend.asked_context[-1][1]) == (384, "")
    few = (await known.get(f"{CONTEXT}?max_tokens=10&query=rain")).json()
    assert [line["source"] for line in few["lines"]] == SOURCES[:1]
    assert few["tokens"] <= 10
    explained = (await known.get(f"{CONTEXT}?explain_item=i2")).json()
    assert explained["lines"][-1]["text"] == "Title 2, because of Title 1"
    assert backend.asked_context[-1] == ("ada", WHY, backend.version, "i2")
    await known.get(f"{CONTEXT}?explain_item=i2&query=what+for")
    assert backend.asked_context[-1][1] == "what for"
    error_of(await known.get(f"{CONTEXT}?explain_item=none"), 404, "unknown_item")
    error_of(await known.get("/v1/users/nobody/context"), 404, "unknown_user")
    for query in (
        "max_tokens=0",
        "max_tokens=32769",
        "explain_item=a/b",
        "explain_item=",
        "query=a%00",
        f"query={'x' * (MAX_TEXT_CHARS + 1)}",
        "query=a&query=b",
    ):
        error = error_of(await known.get(f"{CONTEXT}?{query}"), 422, "invalid_input")
        assert error["param"] == query.partition("=")[0]
        assert "xxx" not in error["message"]
    backend.context_misses = ("similarity", "suggestions")
    assert (await known.get(CONTEXT)).json()["missing"] == ["similarity", "suggestions"]
    backend.context_fails = Unavailable("the encoder restarts")
    error_of(await known.get(CONTEXT), 503, "unavailable")  # nothing to show without it


async def test_chats_know_their_user(known: httpx.AsyncClient, backend: FakeBackend) -> None:
    chat = {"messages": TURNS, "user": "ada"}
    found = (await known.post("/v1/chat/completions", json=chat)).json()
    ChatAnswer.model_validate(found, strict=True)
    assert found["weft"]["context"] == facts(backend, *SOURCES, tokens=18)
    assert backend.asked_context == [("ada", "what of rain", backend.version, None)]
    query = backend.generated[-1]
    assert query.prompt == tuple(Message(**turn) for turn in TURNS)  # the context comes apart from it
    assert [line.source_id for line in query.context.lines] == ["m0", "m1", "i1"]
    assert query.max_context_tokens == 384
    chunks = events_of((await known.post("/v1/chat/completions", json=chat | {"stream": True})).text)
    assert chunks[0]["weft"]["context"] == found["weft"]["context"]
    assert all("context" not in chunk.get("weft", {}) for chunk in chunks[1:-1])


async def test_generate_knows_its_user(known: httpx.AsyncClient, backend: FakeBackend) -> None:
    body = {"user_id": "ada", "text": "rain?", "max_context_tokens": 10, "system_prompt": "be kind"}
    found = (await known.post("/v1/generate", json=body)).json()
    GeneratedAnswer.model_validate(found, strict=True)
    assert found["context"] == facts(backend, SOURCES[1], tokens=10)
    assert backend.generated[-1].max_context_tokens == 10
    first, *_, last = events_of((await known.post("/v1/generate", json=body | {"stream": True})).text)
    assert first["started"]["context"] == found["context"]
    assert last == {"finished": found}


@pytest.mark.parametrize("route", ["/v1/chat/completions", "/v1/generate"])
async def test_who_gets_none(known: httpx.AsyncClient, backend: FakeBackend, route: str) -> None:
    is_chat = "chat" in route
    body = {"messages": TURNS}
    for user, options, expected in (
        (None, {}, False),
        (None, {"use_context": False}, False),
        ("ada", {"use_context": False}, False),
        ("ada", {"use_context": None}, True),
        ("ada", {"use_context": True}, True),
    ):
        named = {} if user is None else {"user" if is_chat else "user_id": user}
        more = {"weft": options} if is_chat else options
        found = (await known.post(route, json=body | named | more)).json()
        context = (found["weft"] if is_chat else found)["context"]
        assert (context is not None) is (backend.generated[-1].context is not None) is expected
    assert len(backend.asked_context) == 2


@pytest.mark.parametrize("option", [{"max_context_tokens": 5}, {"explain_item": "i1"}])
async def test_options_of_a_context_that_is_refused(known: httpx.AsyncClient, option: dict) -> None:
    body = {"user_id": "ada", "messages": TURNS, "use_context": False} | option
    error = error_of(await known.post("/v1/generate", json=body), 422, "invalid_input")
    assert error["param"] == next(iter(option))


async def test_a_text_to_continue_has_none(known: httpx.AsyncClient, backend: FakeBackend) -> None:
    for weft in ({}, {"use_context": False}, {"use_context": None, "explain_item": None}):
        body = {"prompt": "rain", "user": "ada", "weft": weft}
        assert (await known.post("/v1/completions", json=body)).json()["weft"]["context"] is None
    assert backend.asked_context == []


async def test_settings_decide_for_who_does_not_say(backend: FakeBackend) -> None:
    settings = ContextSettings(enabled=False, max_tokens=7)
    app = create_app(lambda: backend, context=settings)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as http:
        await http.post("/v1/users/ada/memories", json={"text": "a"})
        for options, expected in (
            ({}, 0),
            ({"max_context_tokens": 9}, 9),
            ({"use_context": True}, 7),
            ({"explain_item": "i0"}, 7),
            ({"use_context": True, "max_context_tokens": 9}, 9),
        ):
            body = {"user_id": "ada", "text": "a"} | options
            assert (await http.post("/v1/generate", json=body)).status_code == 200
            assert backend.generated[-1].max_context_tokens == expected
            assert (backend.generated[-1].context is not None) is bool(expected)
        assert (await http.get("/v1/users/ada/context")).json()["max_tokens"] == 7


async def test_an_item_to_explain(known: httpx.AsyncClient, backend: FakeBackend) -> None:
    body = {"user_id": "ada", "explain_item": "i2", "system_prompt": "be kind"}
    found = (await known.post("/v1/generate", json=body)).json()
    assert found["output"] == f"echo: {WHY}"
    assert backend.generated[-1].prompt == (Message("system", "be kind"), Message("user", WHY))
    assert backend.asked_context[-1] == ("ada", WHY, backend.version, "i2")
    assert found["context"]["sources"][-1] == {"kind": "item", "id": "i2"}
    await known.post("/v1/generate", json=body | {"text": "and why?"})
    assert backend.asked_context[-1][1:] == ("and why?", backend.version, "i2")
    chat = {"user": "ada", "messages": TURNS, "weft": {"explain_item": "i2"}}
    found = (await known.post("/v1/chat/completions", json=chat)).json()
    assert found["weft"]["context"]["sources"][-1] == {"kind": "item", "id": "i2"}
    for route, body in (
        ("/v1/generate", {"user_id": "ada", "explain_item": "none"}),
        ("/v1/generate", {"user_id": "ada", "explain_item": "none", "text": "a"}),
        ("/v1/chat/completions", chat | {"weft": {"explain_item": "none"}}),
    ):
        for stream in (False, True):
            response = await known.post(route, json=body | {"stream": stream})
            error_of(response, 404, "unknown_item")


async def test_nobody_says_anything(known: httpx.AsyncClient, backend: FakeBackend) -> None:
    body = {"user_id": "ada", "messages": [{"role": "system", "content": "rain"}]}
    assert (await known.post("/v1/generate", json=body)).status_code == 200
    assert backend.asked_context[-1][1] == ""


@pytest.mark.parametrize("route", ["/v1/chat/completions", "/v1/generate"])
@pytest.mark.parametrize(
    "error", [Unavailable("away"), NotYet("behind"), Overloaded("full"), SnapshotRequired("old")]
)
async def test_a_chat_goes_on_without(
    known: httpx.AsyncClient,
    backend: FakeBackend,
    caplog: pytest.LogCaptureFixture,
    route: str,
    error: Exception,
) -> None:
    caplog.set_level(logging.WARNING, "weft.ingress")
    backend.context_fails = error
    name = "user" if "chat" in route else "user_id"
    body = {name: "ada", "messages": TURNS}
    response = await known.post(route, json=body)
    assert response.status_code == 200
    context = response.json().get("weft", response.json())["context"]
    assert context == {
        "sources": [],
        "tokens": 0,
        "missing": ["context"],
        "timings_ms": NO_TIMINGS,
        "version": None,
    }
    (record,) = caplog.records
    assert response.headers["x-request-id"] in record.getMessage()
    assert "rain" not in caplog.text
    streamed = events_of((await known.post(route, json=body | {"stream": True})).text)[0]
    assert streamed.get("weft", streamed.get("started"))["context"] == context


async def test_a_version_that_is_not_there_yet(known: httpx.AsyncClient, backend: FakeBackend) -> None:
    """The client's own is waited for; without one, what was there before is told, and that it is old."""
    body = {"user_id": "ada", "messages": TURNS}
    lines = backend.context_lines
    asked: list[int] = []

    async def lagging(user_id: str, query: str, min_version: int, explain_item: str | None = None) -> object:
        asked.append(min_version)
        if min_version:
            raise NotYet("not yet")
        return await lines(user_id, query, min_version, explain_item)

    backend.context_lines = lagging  # type: ignore[method-assign,assignment]
    response = await known.post("/v1/generate", json=body)
    assert response.status_code == 200
    context = response.json()["context"]
    assert (context["missing"], context["sources"]) == (["writes"], SOURCES)
    assert len(asked) == 2 and asked[0] > asked[1] == 0
    version = (await known.post("/v1/ratings", json={"user_id": "ada", "item_id": "i1", "value": 4.0})).json()
    header = {"x-weft-min-version": version["version"]}
    response = await known.post("/v1/generate", json=body, headers=header)
    assert error_of(response)["code"] == "not_yet"


async def test_parts_and_users_that_are_missing(known: httpx.AsyncClient, backend: FakeBackend) -> None:
    backend.context_misses = ("similarity",)
    found = (await known.post("/v1/generate", json={"user_id": "ada", "text": "rain"})).json()
    assert found["context"] == facts(backend, *SOURCES, tokens=18, missing=("similarity",))
    found = (await known.post("/v1/generate", json={"user_id": "nobody", "text": "rain"})).json()
    assert found["context"] == {
        "sources": [],
        "tokens": 0,
        "missing": ["user"],
        "timings_ms": NO_TIMINGS,
        "version": None,
    }


async def test_what_is_wrong_is_told(known: httpx.AsyncClient, backend: FakeBackend) -> None:
    for error, status in (
        (InvalidInput("no", param="query"), 422),
        (UnknownItem("no", param="explain_item"), 404),
        (RuntimeError("secret"), 500),
    ):
        backend.context_fails = error
        response = await known.post("/v1/generate", json={"user_id": "ada", "text": "rain"})
        error_of(response, status, getattr(error, "code", "internal"))
        assert backend.generated == []


async def test_batches(known: httpx.AsyncClient, backend: FakeBackend, monkeypatch) -> None:
    """Contexts are asked for at once, each for its own request's user."""
    ask, waiting, all_there = backend.context_lines, [], asyncio.Event()

    async def together(*args, **kwargs):
        waiting.append(args)
        if len(waiting) == 3:
            all_there.set()
        await asyncio.wait_for(all_there.wait(), 5)
        return await ask(*args, **kwargs)

    monkeypatch.setattr(backend, "context_lines", together)
    requests = [
        {"user_id": "ada", "text": "rain"},
        {"text": "nobody's"},
        {"user_id": "bob", "text": "sun"},
        {"user_id": "ada", "text": "rain", "use_context": False},
        {"text": "nobody's", "use_context": True},
        {"user_id": "ada", "explain_item": "none"},
        {"user_id": "ada", "explain_item": "i0"},
    ]
    response = await known.post("/v1/generate/batch", json={"requests": requests})
    GenerateBatchAnswer.model_validate(response.json(), strict=True)
    found = response.json()["results"]
    ids = [
        [source["id"] for source in (entry.get("context") or {}).get("sources", ())]
        if "output" in entry
        else entry["error"]["code"]
        for entry in found
    ]
    assert ids == [
        ["m0", "m1", "i1"],
        [],
        ["b0"],
        [],
        "invalid_input",
        "unknown_item",
        ["m1", "m0", "i1", "i0"],
    ]
    assert [found[n]["context"] for n in (1, 3)] == [None, None]


async def test_another_user_gets_nothing_of_it(known: httpx.AsyncClient, backend: FakeBackend) -> None:
    for user, own in (("ada", {"m0", "m1", "i1"}), ("bob", {"b0"})):
        body = {"user_id": user, "text": "rain and secret sun"}
        found = (await known.post("/v1/generate", json=body)).json()
        assert {source["id"] for source in found["context"]["sources"]} == own
        assert backend.asked_context[-1][0] == user


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("route", ["/v1/chat/completions", "/v1/generate", "/v1/generate/batch"])
async def test_hanging_up_while_context_is_asked_for(
    app: FastAPI, backend: FakeBackend, monkeypatch: pytest.MonkeyPatch, route: str, stream: bool
) -> None:
    entered, left = asyncio.Event(), asyncio.Event()

    async def waits(*args, **kwargs):
        entered.set()
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            left.set()

    monkeypatch.setattr(backend, "context_lines", waits)
    body = {"user" if "chat" in route else "user_id": "ada", "messages": TURNS}
    body = {"requests": [body]} if "batch" in route else body | {"stream": stream}
    connection = Connection(body)
    call = asyncio.create_task(app(asked(route), connection.receive, connection.send))
    await asyncio.wait_for(entered.wait(), 5)
    connection.hung_up.set()
    await asyncio.wait_for(call, 5)
    assert left.is_set()
    assert backend.generated == []


def test_with_the_openai_client(client: openai.OpenAI, backend: FakeBackend) -> None:
    options = {"model": "fake/Language-Model", "messages": TURNS, "user": "ada"}
    found = client.chat.completions.create(
        **options, extra_body={"weft": {"use_context": True, "max_context_tokens": 50, "explain_item": "i0"}}
    )
    assert found.model_extra["weft"]["context"]["sources"] == [{"kind": "item", "id": "i0"}]
    assert backend.generated[-1].max_context_tokens == 50
    with pytest.raises(openai.UnprocessableEntityError, match=r"weft\.use_context"):
        client.completions.create(
            model="fake/Language-Model", prompt="a", user="ada", extra_body={"weft": {"use_context": True}}
        )


async def test_the_language_model_is_away(known: httpx.AsyncClient, backend: FakeBackend) -> None:
    backend.raises_for["ada"] = ModelUnavailable("off")
    body = {"user_id": "ada", "text": "rain"}
    error_of(await known.post("/v1/generate", json=body), 503, "model_unavailable")

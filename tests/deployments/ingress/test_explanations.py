"""Recommendations with a sentence of the language model for the first of them, whole and streamed."""

from __future__ import annotations

import asyncio
import json

import httpx
import pytest
from fastapi import FastAPI

from deployments.ingress.application import create_app
from deployments.ingress.explanations import Explanations
from deployments.ingress.schemas import RecommendationsAnswer
from deployments.setting_groups import ContextSettings
from graph.context_lines import EXPLAIN_QUESTION
from graph.errors import ModelUnavailable, Overloaded, Unavailable, UnknownItem
from graph.schema import Item
from models.language_model.protocol import Message
from tests.deployments.ingress.connection import Connection, asked
from tests.deployments.ingress.error_shape import error_of
from tests.deployments.ingress.fake_backend import FakeBackend

PATH = "/v1/users/ada/recommendations"
STREAM = {"accept": "text/event-stream"}


@pytest.fixture
async def known(http: httpx.AsyncClient, backend: FakeBackend) -> httpx.AsyncClient:
    """Ada said something; there are more items than get an explanation."""
    for n in (3, 4):
        backend.known_items[f"i{n}"] = Item(n, f"i{n}", f"Title {n}", (), None, "", 1)
    await http.post("/v1/users/ada/memories", json={"memory_id": "m0", "text": "loves rain"})
    return http


def why(n: int) -> str:
    return EXPLAIN_QUESTION.format(title=f"Title {n}")


def sources(n: int) -> list[dict]:
    return [{"kind": "memory", "id": "m0"}, {"kind": "item", "id": f"i{n}"}]


def events_of(text: str) -> list[tuple[str, dict]]:
    """Name and payload of each event."""
    assert text.endswith("\n\n")
    *blocks, done = [block for block in text.split("\n\n") if block and not block.startswith(":")]
    assert done == "data: [DONE]"
    found = []
    for block in blocks:
        name, data = block.split("\n")
        assert (name[:7], data[:6]) == ("event: ", "data: ")
        found.append((name[7:], json.loads(data[6:])))
    return found


async def test_the_first_items_are_explained(known: httpx.AsyncClient, backend: FakeBackend) -> None:
    plain = (await known.get(f"{PATH}?n=4")).json()
    assert backend.generated == []
    found = (await known.get(f"{PATH}?n=4&explain=true")).json()

    class Exact(RecommendationsAnswer, extra="forbid"): ...

    Exact.model_validate(found, strict=True)
    entries = found["recommendations"]
    told = [entry.pop("explanation", None) for entry in entries]
    assert found == plain
    assert told == [
        *({"text": f"echo: {why(n)}", "sources": sources(n)} for n in range(3)),
        None,
    ]
    assert [set(entry) for entry in entries] == [{"item_id", "title", "score", "because"}] * 4
    assert backend.queries[0] == backend.queries[1]


async def test_what_is_asked_of_the_language_model(known: httpx.AsyncClient, backend: FakeBackend) -> None:
    await known.get(f"{PATH}?n=2&explain=1", headers={"x-request-id": "r"})
    backend.generated.sort(key=lambda query: query.request_id)
    for n, query in enumerate(backend.generated):
        assert query.prompt == (Message("user", why(n)),)
        assert (query.user_id, query.adapter, query.request_id) == ("ada", None, f"r-{n}")
        assert (query.sampling.temperature, query.sampling.max_tokens) == (0.0, 64)
        assert query.max_context_tokens == 384
        assert query.min_version == backend.version  # what ada wrote here last
    assert sorted(backend.asked_context) == [("ada", why(n), backend.version, f"i{n}") for n in range(2)]


async def test_settings_bound_it(backend: FakeBackend) -> None:
    settings = ContextSettings(explained_items=1, explanation_tokens=2, max_tokens=30)
    app = create_app(lambda: backend, context=settings)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as http:
        entries = (await http.get(f"{PATH}?explain=true")).json()["recommendations"]
    assert ["explanation" in entry for entry in entries] == [True, False, False]
    assert entries[0]["explanation"]["text"] == "echo: Why"
    assert backend.generated[0].max_context_tokens == 30


async def test_a_stream_says_the_same(known: httpx.AsyncClient) -> None:
    plain = (await known.get(f"{PATH}?n=4")).json()
    whole = (await known.get(f"{PATH}?n=4&explain=true")).json()
    response = await known.get(f"{PATH}?n=4&explain=true", headers=STREAM | {"x-request-id": "r"})
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.headers["x-request-id"] == "r"
    first, *rest = events_of(response.text)
    assert first == ("recommendations", plain)
    for entry in whole["recommendations"][:3]:
        own = [(name, data) for name, data in rest if data["item_id"] == entry["item_id"]]
        assert [name for name, _ in own[:-1]] == ["explanation"] * (len(own) - 1)
        assert len(own) > 3
        assert "".join(data["text"] for _, data in own[:-1]) == entry["explanation"]["text"]
        assert own[-1] == ("explained", {"item_id": entry["item_id"], **entry["explanation"]})
    assert {data["item_id"] for _, data in rest} == {"i0", "i1", "i2"}


async def test_without_explain_there_is_no_stream(known: httpx.AsyncClient) -> None:
    response = await known.get(f"{PATH}?explain=false", headers=STREAM)
    assert response.headers["content-type"] == "application/json"
    assert response.json() == (await known.get(PATH)).json()


async def test_they_are_asked_for_together(
    known: httpx.AsyncClient, backend: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream, waiting, all_there = backend.stream, [], asyncio.Event()

    async def together(query):
        waiting.append(query)
        if len(waiting) % 3 == 0:
            all_there.set()
        await asyncio.wait_for(all_there.wait(), 5)
        async for event in stream(query):
            yield event

    monkeypatch.setattr(backend, "stream", together)  # `generate` of the fake reads it too
    for headers in ({}, STREAM):
        all_there.clear()
        response = await known.get(f"{PATH}?explain=true", headers=headers)
        assert response.text.count("echo: ") >= 3
    assert len(waiting) == 6


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ModelUnavailable("off"), "model_unavailable"),
        (Overloaded("full"), "overloaded"),
        (RuntimeError("the secret"), "internal"),
    ],
)
async def test_the_recommendations_come_all_the_same(
    known: httpx.AsyncClient,
    backend: FakeBackend,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    code: str,
) -> None:
    async def away(query):
        raise error
        yield

    monkeypatch.setattr(backend, "stream", away)
    plain = (await known.get(PATH)).json()
    response = await known.get(f"{PATH}?explain=true")
    assert response.status_code == 200
    found = response.json()
    for entry in found["recommendations"][:3]:
        assert (entry.pop("explanation"), entry.pop("explanation_error")) == (None, code)
    assert found == plain
    streamed = await known.get(f"{PATH}?explain=true", headers=STREAM)
    first, *rest = events_of(streamed.text)
    assert first == ("recommendations", plain)
    assert sorted(data["item_id"] for _, data in rest) == ["i0", "i1", "i2"]
    for name, data in rest:
        assert (name, data["text"], data["explanation_error"]) == ("explained", None, code)
    assert "secret" not in response.text + streamed.text


async def test_one_that_breaks_in_the_middle(known: httpx.AsyncClient, backend: FakeBackend) -> None:
    backend.fails_after = 2
    _, *rest = events_of((await known.get(f"{PATH}?explain=true", headers=STREAM)).text)
    for n in range(3):
        own = [(name, data) for name, data in rest if data["item_id"] == f"i{n}"]
        assert [name for name, _ in own] == ["explanation", "explanation", "explained"]
        assert own[-1][1]["explanation_error"] == "internal"
    assert backend.open_streams == backend.closed_streams == 3


@pytest.mark.parametrize("error", [Unavailable("away"), UnknownItem("gone")])
async def test_nothing_is_explained_without_context(
    known: httpx.AsyncClient, backend: FakeBackend, error: Exception
) -> None:
    backend.context_fails = error
    entries = (await known.get(f"{PATH}?explain=true")).json()["recommendations"]
    assert [entry.get("explanation_error") for entry in entries] == [error.code] * 3 + [None] * 2
    assert backend.generated == []


@pytest.mark.parametrize("headers", [{}, STREAM])
async def test_what_fails_before_is_an_error(
    known: httpx.AsyncClient, backend: FakeBackend, headers: dict
) -> None:
    path = "/v1/users/nobody/recommendations?explain=true"
    error_of(await known.get(path, headers=headers), 404, "unknown_user")
    error_of(await known.get(f"{PATH}?explain=true&n=0", headers=headers), 422, "invalid_input")
    error_of(await known.get("/v1/users/%20a/recommendations?explain=true"), 422, "invalid_input")
    token = {"x-weft-min-version": "other.1"}
    error_of(await known.get(f"{PATH}?explain=true", headers=headers | token), 409, "foreign_token")
    backend.view_version = 7
    error_of(await known.get(f"{PATH}?explain=true", headers=headers), 503, "not_yet")
    assert backend.generated == []
    await known.delete("/v1/items/i0")
    for entry in list(backend.known_items):
        del backend.known_items[entry]
    backend.view_version = None
    response = await known.get(f"{PATH}?explain=true", headers=headers)
    assert response.status_code == 200
    if headers:
        assert [name for name, _ in events_of(response.text)] == ["recommendations"]


@pytest.mark.parametrize("accept", ["application/json", "text/event-stream"])
async def test_hanging_up_ends_every_explanation(app: FastAPI, backend: FakeBackend, accept: str) -> None:
    backend.stalls_after, backend.stalled = 1, asyncio.Event()
    connection = Connection()
    scope = asked(PATH, "GET", "explain=true", accept)
    call = asyncio.create_task(app(scope, connection.receive, connection.send))
    await asyncio.wait_for(backend.stalled.wait(), 5)
    if accept == "text/event-stream":  # what there was has been sent before the rest is known
        await connection.wait_for(b"event: recommendations")
        for n in range(3):
            await connection.wait_for(b'{"item_id":"i%d","text":"echo:"}' % n)
    assert (backend.open_streams, backend.closed_streams) == (3, 0)
    connection.hung_up.set()
    await asyncio.wait_for(call, 5)
    assert backend.closed_streams == 3
    running = {task.get_coro().__qualname__ for task in asyncio.all_tasks()}
    assert not any(name.startswith(Explanations.__name__) for name in running)


async def test_a_cancelled_request_ends_every_explanation(app: FastAPI, backend: FakeBackend) -> None:
    """Serve cancels the request's task when the client goes away."""
    for accept in ("application/json", "text/event-stream"):
        backend.stalls_after, backend.stalled = 1, asyncio.Event()
        backend.open_streams = backend.closed_streams = 0
        connection = Connection()
        scope = asked(PATH, "GET", "explain=true", accept)
        call = asyncio.create_task(app(scope, connection.receive, connection.send))
        await asyncio.wait_for(backend.stalled.wait(), 5)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert backend.open_streams == backend.closed_streams > 0


async def test_the_other_forms_have_none(known: httpx.AsyncClient) -> None:
    for path, body in (
        ("/v1/recommendations", {"user_ids": ["ada"]}),
        ("/v1/recommendations/session", {"items": ["i0"]}),
    ):
        response = await known.post(path, json=body | {"explain": True})
        assert error_of(response, 422, "invalid_input")["param"] == "explain"

"""/v1/generate and its batches, streams included."""

from __future__ import annotations

import asyncio
import functools
import json

import httpx
import pytest
from fastapi import FastAPI
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deployments.ingress import event_stream
from deployments.ingress.application import create_app
from deployments.ingress.generation_answers import (
    ChatAnswer,
    CompletionAnswer,
    GenerateBatchAnswer,
    GeneratedAnswer,
)
from graph.errors import NotYet, OutOfMemory, Overloaded, TextTooLong
from models.language_model.protocol import Message
from tests.deployments.ingress.connection import Connection, asked
from tests.deployments.ingress.error_shape import error_of
from tests.deployments.ingress.fake_backend import FakeBackend
from tests.deployments.ingress.fake_generation import LANGUAGE_MODEL

CHAT = {"messages": [{"role": "user", "content": "hello there"}]}
ROUTES = {
    "/v1/chat/completions": CHAT,
    "/v1/completions": {"prompt": "hello there"},
    "/v1/generate": {"text": "hello there"},
}


def events_of(text: str) -> list:
    """Payloads of a stream; comments are passed over."""
    assert text.endswith("\n\n")
    blocks = [block for block in text.split("\n\n") if block and not block.startswith(":")]
    assert all(block.startswith("data: ") and "\n" not in block for block in blocks)
    return [json.loads(b[6:]) if b != "data: [DONE]" else "[DONE]" for b in blocks]


async def test_an_answer(http: httpx.AsyncClient, backend: FakeBackend) -> None:
    body = {
        "user_id": "ada",
        "text": "hello there",
        "system_prompt": "be kind",
        "domain": "films",
        "blend": [{"adapter": "user/ada", "weight": 0.5}, {"adapter": "domain/films"}],
        "max_tokens": 9,
        "temperature": 0,
        "top_p": 0.5,
        "top_k": 3,
        "min_p": 0.1,
        "repetition_penalty": 1.1,
        "seed": -1,
        "stop": "end",
        "logprobs": 1,
    }
    response = await http.post("/v1/generate", json=body, headers={"x-request-id": "r1"})
    found = response.json()
    GeneratedAnswer.model_validate(found, strict=True)
    assert {name: found[name] for name in ("output", "user_id", "model", "adapter", "source", "version")} == {
        "output": "echo: hello there",
        "user_id": "ada",
        "model": LANGUAGE_MODEL,
        "adapter": "user/ada+domain/films",
        "source": "request",
        "version": "store1.7",
    }
    assert found["tokens"] == {"prompt": 2, "completion": 3, "cached": 1}
    assert found["logprobs"][1]["token"] == " hello"
    assert found["logprobs"][1]["top_logprobs"] == [{"token": "w0", "bytes": [119, 48], "logprob": -1.0}]
    (query,) = backend.generated
    assert query.prompt == (Message("system", "be kind"), Message("user", "hello there"))
    assert query.blend == (("user/ada", 0.5), ("domain/films", 1.0))
    assert (query.user_id, query.domain, query.request_id, query.model) == ("ada", "films", "r1", None)
    sampling = query.sampling
    assert (sampling.max_tokens, sampling.temperature, sampling.top_p, sampling.top_k) == (9, 0, 0.5, 3)
    assert (sampling.min_p, sampling.repetition_penalty, sampling.seed) == (0.1, 1.1, -1)
    assert (sampling.stop, sampling.logprobs) == (("end",), 1)


async def test_null_is_the_default(http: httpx.AsyncClient, backend: FakeBackend) -> None:
    document = create_app(FakeBackend).openapi()
    for route, body in ROUTES.items():
        plain = await http.post(route, json=body)
        fields = document["paths"][route]["post"]["requestBody"]
        name = fields["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
        properties = document["components"]["schemas"][name]["properties"]
        nulls = dict.fromkeys(set(properties) - set(body))
        response = await http.post(route, json=nulls | body)
        assert response.status_code == plain.status_code == 200, response.text
        first, second = backend.generated[-2:]
        assert (first.prompt, first.sampling, first.adapter) == (second.prompt, second.sampling, None)
        assert "logprobs" not in response.json()


async def test_streams_say_the_same(http: httpx.AsyncClient) -> None:
    text = "  Zoë ☃\n\n  said:\r\n data: 𝄞  "
    body = {"text": text, "logprobs": 0, "user_id": "ada"}
    whole = (await http.post("/v1/generate", json=body)).json()
    response = await http.post("/v1/generate", json=body | {"stream": True}, headers={"x-request-id": "r2"})
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.headers["cache-control"] == "no-cache"
    assert response.headers["x-request-id"] == "r2"
    assert "content-length" not in response.headers
    first, *pieces, last = events_of(response.text)
    assert set(first) == {"started"}
    assert first["started"]["version"] == "store1.7"
    assert len(pieces) > 3
    assert "".join(piece["text"] for piece in pieces) == whole["output"]
    assert last == {"finished": whole}

    chat = {"messages": [{"role": "user", "content": text}], "stream": True}
    *chunks, done = events_of((await http.post("/v1/chat/completions", json=chat)).text)
    assert done == "[DONE]"
    deltas = [choice["delta"] for chunk in chunks for choice in chunk["choices"]]
    assert deltas[0]["role"] == "assistant"
    assert "".join(delta.get("content", "") for delta in deltas) == whole["output"]
    old = {"prompt": text, "stream": True}
    *chunks, done = events_of((await http.post("/v1/completions", json=old)).text)
    assert done == "[DONE]"
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == whole["output"]


@pytest.mark.parametrize("route", ROUTES)
async def test_what_fails_before_the_first_event_is_an_error(
    http: httpx.AsyncClient, backend: FakeBackend, route: str
) -> None:
    for error, status in (
        (Overloaded("full"), 429),
        (OutOfMemory("4 GiB"), 503),
        (NotYet("behind"), 503),
        (TextTooLong("too long", param="text"), 422),
        (RuntimeError("secret"), 500),
    ):
        backend.raises = error
        for stream in (False, True):
            response = await http.post(route, json=ROUTES[route] | {"stream": stream})
            found = error_of(response, status, getattr(error, "code", "internal"))
            if isinstance(error, OutOfMemory):
                assert "memory did not suffice" in found["message"]
                assert "4 GiB" not in found["message"]
    assert backend.open_streams == backend.closed_streams == 10


@pytest.mark.parametrize("route", ROUTES)
async def test_what_fails_in_the_middle_is_the_last_event(
    http: httpx.AsyncClient, backend: FakeBackend, route: str
) -> None:
    backend.fails_after = 1
    response = await http.post(route, json=ROUTES[route] | {"stream": True})
    assert response.status_code == 200
    *_, last = events_of(response.text)
    assert last["error"]["code"] == "internal"
    assert last["error"]["request_id"] == response.headers["x-request-id"]
    assert "secret" not in response.text
    assert backend.open_streams == backend.closed_streams == 1


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("route", ROUTES)
async def test_hanging_up_ends_the_generation(
    app: FastAPI, backend: FakeBackend, route: str, stream: bool
) -> None:
    backend.stalls_after, backend.stalled = 1, asyncio.Event()
    body = ROUTES[route] | {"stream": stream}
    connection = Connection(body)
    call = asyncio.create_task(app(asked(route), connection.receive, connection.send))
    await asyncio.wait_for(backend.stalled.wait(), 5)
    assert backend.closed_streams == 0
    if stream:  # what there was has been sent before the rest is known
        await connection.wait_for(b"echo:")
    connection.hung_up.set()
    await asyncio.wait_for(call, 5)
    assert backend.closed_streams == 1


async def test_hanging_up_before_the_first_event(
    app: FastAPI, backend: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered, left = asyncio.Event(), asyncio.Event()

    async def queued(query):
        try:
            entered.set()
            await asyncio.get_running_loop().create_future()
            yield
        finally:
            left.set()

    monkeypatch.setattr(backend, "stream", queued)
    body = ROUTES["/v1/generate"] | {"stream": True}
    connection = Connection(body)
    call = asyncio.create_task(app(asked("/v1/generate"), connection.receive, connection.send))
    await asyncio.wait_for(entered.wait(), 5)
    connection.hung_up.set()
    await asyncio.wait_for(call, 5)
    assert left.is_set()


async def test_a_cancelled_request_ends_the_generation(app: FastAPI, backend: FakeBackend) -> None:
    """Serve cancels the request's task when the client goes away."""
    backend.stalls_after, backend.stalled = 1, asyncio.Event()
    body = CHAT | {"stream": True}
    connection = Connection(body)
    call = asyncio.create_task(app(asked("/v1/chat/completions"), connection.receive, connection.send))
    await asyncio.wait_for(backend.stalled.wait(), 5)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert backend.closed_streams == 1


async def test_silence_is_kept_alive(
    app: FastAPI, backend: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_stream, "KEEP_ALIVE_S", 0.01)
    backend.stalls_after, backend.stalled = 1, asyncio.Event()
    body = CHAT | {"stream": True}
    connection = Connection(body)
    call = asyncio.create_task(app(asked("/v1/chat/completions"), connection.receive, connection.send))
    await connection.wait_for(b"\n\n: keep-alive\n\n: keep-alive\n\n")
    connection.hung_up.set()
    await asyncio.wait_for(call, 5)


async def test_a_batch(http: httpx.AsyncClient, backend: FakeBackend) -> None:
    backend.raises_for["bad"] = Overloaded("full")
    requests = [
        {"text": "one", "user_id": "ada"},
        {"text": "two", "temperature": 9},
        {"text": "three", "user_id": "bad"},
        "four",
        {"text": "five", "stream": True},
        {"text": "six", "surprise": 1},
        {"messages": [{"role": "user", "content": "seven"}]},
        {},
    ]
    response = await http.post("/v1/generate/batch", json={"requests": requests})
    assert response.status_code == 200
    results = response.json()["results"]
    GenerateBatchAnswer.model_validate(response.json(), strict=True)
    told = [r["output"] if "output" in r else (r["error"]["code"], r["error"]["param"]) for r in results]
    assert told == [
        "echo: one",
        ("invalid_input", "temperature"),
        ("overloaded", None),
        ("invalid_input", None),
        ("invalid_input", "stream"),
        ("invalid_input", "surprise"),
        "echo: seven",
        ("invalid_input", "text"),
    ]
    request_id = response.headers["x-request-id"]
    assert {r["error"]["request_id"] for r in results if "error" in r} == {request_id}
    assert {query.request_id for query in backend.generated} == {f"{request_id}-{n}" for n in (0, 2, 6)}


async def test_a_batch_runs_at_once(http: httpx.AsyncClient, backend: FakeBackend, monkeypatch) -> None:
    generate, waiting, all_there = backend.generate, [], asyncio.Event()

    async def together(query):
        waiting.append(query)
        if len(waiting) == 64:
            all_there.set()
        await asyncio.wait_for(all_there.wait(), 5)
        return await generate(query)

    monkeypatch.setattr(backend, "generate", together)
    body = {"requests": [{"text": str(n)} for n in range(64)]}
    results = (await http.post("/v1/generate/batch", json=body)).json()["results"]
    assert [result["output"] for result in results] == [f"echo: {n}" for n in range(64)]
    for size in (0, 65):
        response = await http.post("/v1/generate/batch", json={"requests": [{"text": "a"}] * size})
        assert error_of(response, 422, "invalid_input")["param"] == "requests"


TURN = {"role": "user", "content": "a"}
COMMON = [
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": 32_769}, "max_tokens"),
    ({"max_tokens": True}, "max_tokens"),
    ({"max_tokens": "9"}, "max_tokens"),
    ({"temperature": -0.1}, "temperature"),
    ({"temperature": 2.1}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"top_p": 1.1}, "top_p"),
    ({"seed": 2**63}, "seed"),
    ({"seed": 1.5}, "seed"),
    ({"stop": ""}, "stop[0]"),
    ({"stop": ["a"] * 5}, "stop"),
    ({"stop": ["a", "x" * 65]}, "stop[1]"),
    ({"stop": 1}, "stop"),
    ({"stream": 1}, "stream"),
    ({"surprise": None}, "surprise"),
]
OPENAI = [
    *COMMON,
    ({"n": 2}, "n"),
    ({"presence_penalty": 0.1}, "presence_penalty"),
    ({"frequency_penalty": -1}, "frequency_penalty"),
    ({"logit_bias": {"1": 1}}, "logit_bias"),
    ({"user": "a/b"}, "user"),
    ({"user": "x" * 129}, "user"),
    ({"model": ""}, "model"),
    ({"model": "x" * 301}, "model"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x"),
    ({"weft": {"top_k": -1}}, "weft.top_k"),
    ({"weft": {"min_p": 2}}, "weft.min_p"),
    ({"weft": {"repetition_penalty": 0}}, "weft.repetition_penalty"),
    ({"weft": {"domain": ".."}}, "weft.domain"),
    ({"weft": {"adapter": "films"}}, "weft.adapter"),
    ({"weft": {"adapter": "user/.."}}, "weft.adapter"),
    ({"weft": {"adapter": "global/films"}}, "weft.adapter"),
    ({"weft": {"adapter": "user/a/../b"}}, "weft.adapter"),
    ({"weft": {"adapter": "user/a/v1\n"}}, "weft.adapter"),
    ({"weft": {"adapter": "user/a\x00"}}, "weft.adapter"),
    ({"weft": {"adapter": "user/" + "x" * 400}}, "weft.adapter"),
    ({"weft": {"blend": [{"adapter": "x"}]}}, "weft.blend[0].adapter"),
    ({"weft": {"adapter": "user/a", "blend": [{"adapter": "user/b"}]}}, "weft"),
    ({"weft": {"blend": [{"adapter": "user/b"}] * 9}}, "weft.blend"),
    ({"weft": {"blend": [{"adapter": "user/b", "weight": 11}]}}, "weft.blend[0].weight"),
    ({"weft": {"surprise": 1}}, "weft.surprise"),
]
CONTEXT = [
    ({"use_context": True}, "use_context"),
    ({"max_context_tokens": 5}, "max_context_tokens"),
    ({"explain_item": "i0"}, "explain_item"),
    ({"use_context": 1}, "use_context"),
    ({"max_context_tokens": 0}, "max_context_tokens"),
    ({"max_context_tokens": 32_769}, "max_context_tokens"),
    ({"max_context_tokens": True}, "max_context_tokens"),
    ({"explain_item": "a/b"}, "explain_item"),
]
REFUSED = {
    "/v1/chat/completions": [
        *OPENAI,
        *(({"weft": change}, f"weft.{param}") for change, param in CONTEXT),
        ({"user": "ada", "weft": {"use_context": False, "explain_item": "i0"}}, "weft.explain_item"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "messages[0].role"),
        ({"messages": [TURN, TURN | {"tool_calls": [{"id": "1"}]}]}, "messages[1].tool_calls"),
        ({"messages": [TURN | {"content": [{"type": "image_url"}]}]}, "messages[0].content[0].type"),
        ({"messages": [TURN | {"content": "a\x00"}]}, "messages[0].content[0].text"),
        ({"top_logprobs": 1}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"logprobs": 1}, "logprobs"),
        ({"max_tokens": 1, "max_completion_tokens": 2}, "max_completion_tokens"),
        ({"response_format": {"type": "json_object"}}, "response_format.type"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"functions": [{}]}, "functions"),
        ({"function_call": {"name": "f"}}, "function_call"),
    ],
    "/v1/completions": [
        *OPENAI,
        *(({"user": "ada", "weft": change}, f"weft.{param}") for change, param in CONTEXT),
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ["a", "b"]}, "prompt"),
        ({"logprobs": 21}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"echo": True}, "echo"),
        ({"best_of": 2}, "best_of"),
        ({"suffix": "x"}, "suffix"),
    ],
    "/v1/generate": [
        *COMMON,
        *CONTEXT,
        ({"user_id": "ada", "use_context": False, "explain_item": "i0"}, "explain_item"),
        ({"user_id": "ada", "explain_item": "i0", "messages": [TURN]}, "text"),
        ({"text": None}, "text"),
        ({"messages": [TURN]}, "text"),
        ({"user_id": " a"}, "user_id"),
        ({"logprobs": 21}, "logprobs"),
        ({"top_k": 2**32}, "top_k"),
        ({"adapter": "user/a", "blend": [{"adapter": "user/b"}]}, None),
        ({"model": "x"}, "model"),
    ],
}


@pytest.mark.parametrize(
    ("route", "change", "param"), [(route, *row) for route, rows in REFUSED.items() for row in rows]
)
async def test_refused_values(
    http: httpx.AsyncClient, backend: FakeBackend, route: str, change: dict, param: str | None
) -> None:
    response = await http.post(route, json=ROUTES[route] | change)
    error = error_of(response, 422, "invalid_input")
    assert error["param"] == param
    assert "Value error" not in error["message"]  # pydantic's own word for ours
    assert backend.generated == []


async def test_tokens_are_no_prompt(http: httpx.AsyncClient) -> None:
    for prompt in ([1, 2], [[1]]):
        response = await http.post("/v1/completions", json={"prompt": prompt})
        assert error_of(response, 400, "unsupported_input")["param"] == "prompt"


async def test_versions(http: httpx.AsyncClient, backend: FakeBackend) -> None:
    await http.put("/v1/users/zoe", json={})  # acknowledged here, so it is waited for without a header
    assert backend.version == 8
    for user, expected in (("zoe", 8), ("ada", 0)):
        await http.post("/v1/generate", json={"text": "a", "user_id": user})
        await http.post("/v1/chat/completions", json=CHAT | {"user": user})
        assert [query.min_version for query in backend.generated[-2:]] == [expected] * 2
    headers = {"x-weft-min-version": "store1.7"}
    await http.post("/v1/completions", json={"prompt": "a"}, headers=headers)
    assert backend.generated[-1].min_version == 7
    for path, body in (*ROUTES.items(), ("/v1/generate/batch", {"requests": [{"text": "a"}]})):
        response = await http.post(path, json=body, headers={"x-weft-min-version": "other.1"})
        error_of(response, 409, "foreign_token")
        backend.view_version = 6
        if "batch" not in path:
            error_of(await http.post(path, json=body, headers=headers), 503, "not_yet")
        backend.view_version = None


_NAMES = sorted({"messages", "prompt", "text", "user", "model", "stop", "weft", "logprobs", "stream", "seed"})
_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(["user", "a"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*_NAMES, "role"]), inner),
    max_leaves=8,
)


_fuzzed = functools.cache(lambda: create_app(FakeBackend))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from([*ROUTES, "/v1/generate/batch"]), st.dictionaries(st.sampled_from(_NAMES), _VALUES))
def test_no_body_is_a_500(route: str, body: dict) -> None:
    async def ask() -> None:
        transport = httpx.ASGITransport(_fuzzed())
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
            given = {"requests": [body, ROUTES["/v1/generate"] | body]} if "batch" in route else body
            whole = ROUTES.get(route, {}) | given
            response = await http.post(
                route, content=json.dumps(whole).encode(), headers={"content-type": "application/json"}
            )
            assert response.status_code in (200, 400, 404, 422), response.text
            if response.status_code != 200:
                error_of(response)
            elif "batch" in route:
                assert "internal" not in {r.get("error", {}).get("code") for r in response.json()["results"]}

    asyncio.run(ask())


async def test_answers_are_as_documented(http: httpx.AsyncClient) -> None:
    for route, model in (("/v1/chat/completions", ChatAnswer), ("/v1/completions", CompletionAnswer)):
        logprobs = {"logprobs": True, "top_logprobs": 2} if "chat" in route else {"logprobs": 2}
        for more in ({}, logprobs):
            model.model_validate((await http.post(route, json=ROUTES[route] | more)).json(), strict=True)


async def test_a_client_that_went_before_the_first_byte(app: FastAPI, backend: FakeBackend) -> None:
    connection = Connection(CHAT | {"stream": True})

    async def closed(message: dict) -> None:
        raise OSError("the connection is closed")

    await app(asked("/v1/chat/completions"), connection.receive, closed)
    assert backend.open_streams == backend.closed_streams == 1


async def test_an_oserror_of_the_backend_is_told(http: httpx.AsyncClient, backend: FakeBackend) -> None:
    backend.fails_after, backend.failure = 1, OSError("the disk")
    response = await http.post("/v1/generate", json={"text": "a", "stream": True})
    assert events_of(response.text)[-1]["error"]["code"] == "internal"

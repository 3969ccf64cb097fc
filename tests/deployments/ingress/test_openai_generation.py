"""OpenAI's own Python client against chat, completions and models."""

from __future__ import annotations

import asyncio
import json
import socket

import httpx2
import openai
import pytest

from deployments.ingress.application import create_app
from graph.errors import OutOfMemory, Overloaded, TextTooLong, Unavailable
from models.adapter_pointers import AdapterArm
from models.language_model.protocol import Message
from tests.deployments.ingress.fake_backend import FakeBackend
from tests.deployments.ingress.fake_generation import LANGUAGE_MODEL
from tests.deployments.ingress.fake_memories import NO_TIMINGS

TURNS = [{"role": "developer", "content": "be kind"}, {"role": "user", "content": "Zoë ☃ 𝄞 said"}]
TEXT = "echo: Zoë ☃ 𝄞 said"
CHOSEN = {
    "user": "ada",
    "adapter": None,
    "digest": None,
    "source": "base",
    "why": "because",
    "version": "store1.7",
    "cached_tokens": 1,
    "context": {"sources": [], "tokens": 0, "missing": [], "timings_ms": NO_TIMINGS, "version": "store1.7"},
}
TIMES = {"queued_ms": 1.0, "first_token_ms": 2.0, "latency_ms": 3.0}


def test_chat(client: openai.OpenAI, backend: FakeBackend) -> None:
    answer = client.chat.completions.create(
        model=LANGUAGE_MODEL, messages=TURNS, user="ada", n=1, metadata={"a": "b"}, store=False, stop="never"
    )
    (choice,) = answer.choices
    assert (answer.object, answer.model) == ("chat.completion", LANGUAGE_MODEL)
    assert answer.id.startswith("chatcmpl-")
    assert (choice.message.role, choice.message.content, choice.finish_reason) == ("assistant", TEXT, "stop")
    assert choice.logprobs is None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (
        4,
        5,
        9,
    )
    assert answer.usage.prompt_tokens_details.cached_tokens == 1
    assert answer.model_extra["weft"] == CHOSEN | TIMES
    (query,) = backend.generated
    assert query.prompt == (Message("system", "be kind"), Message("user", TURNS[1]["content"]))
    assert (query.user_id, query.model, query.sampling.stop) == ("ada", LANGUAGE_MODEL, ("never",))
    # The answer's message goes back as it came, and parts are joined.
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    turns = [*TURNS, choice.message, {"role": "user", "content": parts}]
    client.chat.completions.create(model=LANGUAGE_MODEL, messages=turns, max_completion_tokens=3)
    assert backend.generated[-1].prompt[2:] == (Message("assistant", TEXT), Message("user", "ab"))
    assert backend.generated[-1].sampling.max_tokens == 3
    # What clients of functions send while they have none.
    client.chat.completions.create(model=LANGUAGE_MODEL, messages=TURNS, functions=[], function_call="none")
    short = client.chat.completions.create(model=LANGUAGE_MODEL, messages=TURNS, max_tokens=2)
    assert (short.choices[0].finish_reason, short.choices[0].message.content) == ("length", "echo: Zoë")


def test_chat_stream(client: openai.OpenAI) -> None:
    with client.chat.completions.create(
        model=LANGUAGE_MODEL,
        messages=TURNS,
        user="ada",
        stream=True,
        stream_options={"include_usage": True},
        logprobs=True,
        top_logprobs=1,
    ) as stream:
        chunks = list(stream)
        headers = stream.response.headers
    assert headers["content-type"] == "text/event-stream; charset=utf-8"
    assert chunks[0].id == f"chatcmpl-{headers['x-request-id']}"
    assert {(chunk.id, chunk.object, chunk.model) for chunk in chunks} == {
        (chunks[0].id, "chat.completion.chunk", LANGUAGE_MODEL)
    }
    first, *middle, end, usage = chunks
    assert (first.choices[0].delta.role, first.choices[0].delta.content) == ("assistant", "")
    assert first.model_extra["weft"] == CHOSEN
    assert "".join(chunk.choices[0].delta.content for chunk in middle) == TEXT
    assert middle[0].choices[0].logprobs.content[0].token == "echo:"
    assert len(middle[0].choices[0].logprobs.content[0].top_logprobs) == 1
    assert end.choices[0].finish_reason == "stop"
    assert end.model_extra["weft"] == TIMES
    assert [chunk.usage for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert (usage.choices, usage.usage.total_tokens) == ([], 9)
    plain = client.chat.completions.create(model=LANGUAGE_MODEL, messages=TURNS, stream=True)
    assert all(chunk.choices and "usage" not in chunk.model_fields_set for chunk in plain)


def test_the_stream_helper_of_the_client(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(model=LANGUAGE_MODEL, messages=TURNS) as stream:
        assert stream.get_final_completion().choices[0].message.content == TEXT


def test_completions(client: openai.OpenAI, backend: FakeBackend) -> None:
    answer = client.completions.create(model=LANGUAGE_MODEL, prompt="Zoë ☃ 𝄞 said", user="ada", logprobs=2)
    (choice,) = answer.choices
    assert (answer.object, choice.text, choice.finish_reason) == ("text_completion", TEXT, "stop")
    assert choice.logprobs.tokens == ["echo:", " Zoë", " ☃", " 𝄞", " said"]
    assert choice.logprobs.text_offset == [0, 5, 9, 11, 13]
    assert choice.logprobs.token_logprobs == [-0.5] * 5
    assert choice.logprobs.top_logprobs == [{"w0": -1.0, "w1": -2.0}] * 5
    assert answer.usage.total_tokens == 9
    assert answer.model_extra["weft"] == CHOSEN | TIMES | {"context": None}
    assert (backend.generated[-1].prompt, backend.generated[-1].sampling.max_tokens) == ("Zoë ☃ 𝄞 said", 16)
    assert client.completions.create(model=LANGUAGE_MODEL, prompt=["one"]).choices[0].text == "echo: one"
    options = {"stream": True, "stream_options": {"include_usage": True}, "logprobs": 0}
    chunks = list(client.completions.create(model=LANGUAGE_MODEL, prompt="Zoë ☃ 𝄞 said", **options))
    assert "".join(choice.text for chunk in chunks for choice in chunk.choices) == TEXT
    assert chunks[-1].usage.total_tokens == 9
    assert chunks[-2].choices[0].finish_reason == "stop"
    offsets = [
        o for c in chunks for choice in c.choices if choice.logprobs for o in choice.logprobs.text_offset
    ]
    assert offsets == [0, 5, 9, 11, 13]


def test_logprobs_of_chat(client: openai.OpenAI) -> None:
    options = {"model": LANGUAGE_MODEL, "messages": TURNS, "logprobs": True}
    answer = client.chat.completions.create(**options, top_logprobs=2)
    second = answer.choices[0].logprobs.content[1]
    assert (second.token, second.bytes, second.logprob) == (" Zoë", list(" Zoë".encode()), -0.5)
    assert [(top.token, top.logprob) for top in second.top_logprobs] == [("w0", -1.0), ("w1", -2.0)]
    alone = client.chat.completions.create(**options)
    assert [entry.top_logprobs for entry in alone.choices[0].logprobs.content] == [[]] * 5


def test_models(client: openai.OpenAI, backend: FakeBackend) -> None:
    backend._moved("user", "ada", (AdapterArm("v1", "d" * 64),), "activate")
    assert [model.id for model in client.models.list()] == [LANGUAGE_MODEL, "user/ada"]
    for name in (LANGUAGE_MODEL, "user/ada"):
        assert (client.models.retrieve(name).id, client.models.retrieve(name).owned_by) == (name, "weft")
    answer = client.chat.completions.create(model="user/ada", messages=TURNS)
    assert answer.model_extra["weft"]["adapter"] == "user/ada"
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("gpt-4")
    assert caught.value.code == "model_not_found"


@pytest.mark.parametrize(
    ("options", "raised", "kind", "code", "param"),
    [
        ({"model": "gpt-4"}, None, openai.NotFoundError, "model_not_found", "model"),
        (
            {"extra_body": {"weft": {"adapter": "user/x"}}},
            None,
            openai.NotFoundError,
            "unknown_adapter",
            "adapter",
        ),
        ({"n": 2}, None, openai.UnprocessableEntityError, "invalid_input", "n"),
        ({"tools": [{"type": "function"}]}, None, openai.UnprocessableEntityError, "invalid_input", "tools"),
        (
            {},
            TextTooLong("x", param="messages"),
            openai.UnprocessableEntityError,
            "text_too_long",
            "messages",
        ),
        ({}, Overloaded("full"), openai.RateLimitError, "overloaded", None),
        ({}, Unavailable("away"), openai.InternalServerError, "unavailable", None),
        ({}, OutOfMemory("away"), openai.InternalServerError, "out_of_memory", None),
    ],
)
def test_errors(client: openai.OpenAI, backend: FakeBackend, options, raised, kind, code, param) -> None:
    backend.raises = raised
    for stream in (False, True):
        with pytest.raises(openai.APIStatusError) as caught:
            client.chat.completions.create(
                **{"model": LANGUAGE_MODEL, "messages": TURNS, "stream": stream} | options
            )
        error = caught.value
        assert type(error) is kind
        assert (error.code, error.param) == (code, param)
        assert error.request_id == error.body["request_id"]
        assert ("retry-after" in error.response.headers) is (error.status_code in (429, 503))


def test_an_error_in_the_middle(client: openai.OpenAI, backend: FakeBackend) -> None:
    backend.fails_after, backend.failure = 2, OutOfMemory("secret")
    got = []
    with pytest.raises(openai.APIError, match="memory did not suffice") as caught:
        for chunk in client.chat.completions.create(model=LANGUAGE_MODEL, messages=TURNS, stream=True):
            got.append(chunk.choices[0].delta.content)
    assert "".join(got) == "echo: Zoë"
    assert caught.value.code == "out_of_memory"


async def test_closing_the_asynchronous_client_ends_the_generation(served: str, backend: FakeBackend) -> None:
    backend.stalls_after = 2
    async with openai.AsyncOpenAI(base_url=served, api_key="x", max_retries=0) as client:
        stream = await client.chat.completions.create(model=LANGUAGE_MODEL, messages=TURNS, stream=True)
        got = [(await anext(stream)).choices[0].delta.content for _ in range(3)]
        assert got == ["", "echo:", " Zoë"]
        assert backend.closed_streams == 0
        await stream.close()
        whole = asyncio.create_task(client.completions.create(model=LANGUAGE_MODEL, prompt="a b c"))
        async with asyncio.timeout(5):
            while backend.open_streams < 2:
                await asyncio.sleep(0.005)
            whole.cancel()
            while backend.closed_streams < 2:
                await asyncio.sleep(0.005)


async def test_in_process(backend: FakeBackend) -> None:
    transport = httpx2.ASGITransport(create_app(lambda: backend, loopback_only=True))
    http_client = httpx2.AsyncClient(transport=transport)
    async with openai.AsyncOpenAI(
        base_url="http://localhost:8000/v1", api_key="x", max_retries=0, http_client=http_client
    ) as client:
        stream = await client.chat.completions.create(model=LANGUAGE_MODEL, messages=TURNS, stream=True)
        assert "".join([c.choices[0].delta.content or "" async for c in stream]) == TEXT


def test_bytes_may_be_split_anywhere(served: str) -> None:
    """A reader that takes the socket's bytes one at a time finds the same text."""
    host, port = served.removeprefix("http://").removesuffix("/v1").split(":")
    body = json.dumps({"text": TURNS[1]["content"], "stream": True}).encode()
    head = (
        f"POST /v1/generate HTTP/1.1\r\nhost: {host}:{port}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
    )
    received = bytearray()
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(head.encode() + body)
        while byte := connection.recv(1):
            received += byte
    _, _, chunked = bytes(received).partition(b"\r\n\r\n")
    stream = bytearray()
    while chunked:
        size, _, rest = chunked.partition(b"\r\n")
        stream += rest[: int(size, 16)]
        chunked = rest[int(size, 16) + 2 :]
    events = [json.loads(block.removeprefix(b"data: ")) for block in bytes(stream).split(b"\n\n") if block]
    assert "".join(event.get("text", "") for event in events) == TEXT == events[-1]["finished"]["output"]

"""The clients' generation and adapter calls: what they send, how they read streams. No network."""

from __future__ import annotations

import asyncio
import io
import tarfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest

from deployments.client import AsyncWeftClient, WeftClient
from deployments.client_adapters import AdapterArm
from deployments.client_errors import InternalServerError, RateLimitError, UnavailableError, WeftAPIError
from deployments.client_generation import BlendPart, Generated, GenerationFailure

GENERATED: dict[str, Any] = {
    "output": "Hello é",
    "user_id": "ada",
    "model": "tiny",
    "adapter": "user/ada/v2",
    "digest": "d" * 64,
    "source": "user",
    "why": "ada's own adapter",
    "finish_reason": "stop",
    "tokens": {"prompt": 3, "completion": 2, "cached": 0},
    "queued_ms": 0.1,
    "first_token_ms": 2.0,
    "latency_ms": 5.0,
    "version": "s.7",
}
STATE = {
    "scope": "user",
    "name": "ada",
    "arms": [{"version": "v2", "digest": "d", "weight": 1.0}],
    "previous": [],
    "action": "activate",
    "version": "s.9",
}
BLEND: list[BlendPart] = [{"adapter": "domain/films"}]
ERROR = {
    "code": "overloaded",
    "message": "256 requests wait",
    "type": "rate_limit_error",
    "param": None,
    "request_id": "r1",
    "retryable": True,
}


def client(answer: Callable[[httpx.Request], httpx.Response]) -> WeftClient:
    return WeftClient("http://t", transport=httpx.MockTransport(answer), sleep=lambda s: None)


def streamed(*lines: str, status: int = 200) -> httpx.Response:
    """An event stream that arrives byte by byte: nothing may depend on where the network cuts."""

    def content() -> Iterator[bytes]:
        for byte in "".join(line + "\n\n" for line in lines).encode():
            yield bytes([byte])

    return httpx.Response(status, headers={"content-type": "text/event-stream"}, content=content())


def event(**what: object) -> str:
    return "data: " + orjson.dumps(what).decode()


def test_generate_sends_what_was_given_and_remembers_the_version() -> None:
    seen: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200, json=GENERATED)

    with client(answer) as weft:
        found = weft.generate("hi", user_id="ada", temperature=0.0, stop="\n", blend=BLEND)
        assert found == Generated(**GENERATED)
        assert weft.version == "s.7"
    assert orjson.loads(seen[0].content) == {
        "text": "hi",
        "user_id": "ada",
        "temperature": 0.0,
        "stop": ["\n"],
        "blend": BLEND,
    }
    assert seen[0].extensions["timeout"]["read"] > 100, "a long answer is no time-out"


def test_a_generation_whose_fate_is_unknown_is_not_repeated() -> None:
    count = 0

    def answer(request: httpx.Request) -> httpx.Response:
        nonlocal count
        count += 1
        raise httpx.ReadTimeout("slow")

    with client(answer) as weft, pytest.raises(WeftAPIError):
        weft.generate("hi")
    assert count == 1


def test_a_batch_has_an_entry_for_every_request() -> None:
    with client(lambda r: httpx.Response(200, json={"results": [GENERATED, {"error": ERROR}]})) as weft:
        found = weft.generate_batch([{"text": "a"}, {"text": "b"}])
    assert found == (Generated(**GENERATED), GenerationFailure("overloaded", "256 requests wait", True))


def test_a_stream_gives_text_as_it_comes_and_the_answer_at_its_end() -> None:
    lines = [
        ": keep-alive",
        event(started={"adapter": "user/ada/v2"}),
        event(text="Hello "),
        event(text="é"),
    ]
    with client(lambda r: streamed(*lines, event(finished=GENERATED), "data: [DONE]")) as weft:
        stream = weft.stream("hi", user_id="ada")
        with pytest.raises(RuntimeError, match="not ended"):
            _ = stream.result
        assert list(stream) == ["Hello ", "é"]
        assert stream.started == {"adapter": "user/ada/v2"}
        assert stream.result.output == "Hello é"
        assert weft.version == "s.7"


async def test_the_asynchronous_stream_is_the_same() -> None:
    async def content() -> AsyncIterator[bytes]:
        for line in (event(text="a"), event(finished=GENERATED)):
            yield line.encode() + b"\n\n"

    transport = httpx.MockTransport(lambda r: httpx.Response(200, content=content()))
    async with AsyncWeftClient("http://t", transport=transport) as weft:
        stream = await weft.stream("hi")
        assert [piece async for piece in stream] == ["a"]
        assert stream.result.adapter == "user/ada/v2"


def test_a_stream_that_fails_raises_what_the_service_said() -> None:
    with client(lambda r: streamed(event(text="a"), event(error=ERROR))) as weft:
        stream = iter(weft.stream("hi"))
        assert next(stream) == "a"
        with pytest.raises(RateLimitError, match="256 requests") as caught:
            next(stream)
    assert (caught.value.request_id, caught.value.retryable) == ("r1", True)


def test_a_stream_that_breaks_off_is_no_answer() -> None:
    for lines in ([event(text="a")], ["data: {]"], ['data: {"text": 7}']):
        with (
            client(lambda r, lines=lines: streamed(*lines)) as weft,
            pytest.raises(InternalServerError),
        ):
            list(weft.stream("hi"))


def test_a_refused_stream_raises_before_its_first_piece() -> None:
    with (
        client(lambda r: httpx.Response(503, json={"error": {**ERROR, "type": "unavailable_error"}})) as weft,
        pytest.raises(UnavailableError),
    ):
        weft.stream("hi")


def test_an_adapter_is_sent_as_a_tar_with_its_length(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_model.safetensors").write_bytes(bytes(range(256)) * 9_000)
    entry = {
        "scope": "user",
        "name": "ada",
        "version": "v2",
        "digest": "d",
        "size_bytes": 1,
        "rank": 8,
        "modules": ["q_proj"],
        "created_at": 1.0,
        "active": False,
        "resident": False,
    }
    bodies: list[bytes] = []

    def answer(request: httpx.Request) -> httpx.Response:
        bodies.append(request.read())
        assert int(request.headers["content-length"]) == len(bodies[-1])
        assert request.headers["content-type"] == "application/x-tar"
        assert request.url.raw_path == b"/v1/adapters/user/a%40b/versions/v2"
        return httpx.Response(200, json={"version": "s.8", "changed": 1, "replayed": False, "adapter": entry})

    with client(answer) as weft:
        assert weft.put_adapter("user", "a@b", "v2", tmp_path).modules == ("q_proj",)
        assert weft.version == "s.8"

    async def main() -> None:
        transport = httpx.MockTransport(answer)
        async with AsyncWeftClient("http://t", transport=transport) as weft:
            await weft.put_adapter("user", "a@b", "v2", tmp_path)

    asyncio.run(main())
    assert bodies[0] == bodies[1]
    with tarfile.open(fileobj=io.BytesIO(bodies[0])) as archive:
        assert archive.getnames() == ["adapter_config.json", "adapter_model.safetensors"]
        weights = archive.extractfile("adapter_model.safetensors")
        assert weights is not None
        assert weights.read() == bytes(range(256)) * 9_000


def test_a_folder_that_is_no_adapter_is_named(tmp_path: Path) -> None:
    with (
        client(lambda r: httpx.Response(500)) as weft,
        pytest.raises(FileNotFoundError, match=r"adapter_config\.json"),
    ):
        weft.put_adapter("user", "ada", "v1", tmp_path)


def test_a_rollback_is_sent_once_even_when_the_service_would_have_it_again() -> None:
    sent: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        sent.append(request.url.path.rpartition("/")[2])
        error = {**ERROR, "code": "unavailable", "type": "unavailable_error"}
        return httpx.Response(503, json={"error": error}, headers={"retry-after": "0"})

    with client(answer) as weft:
        with pytest.raises(UnavailableError):
            weft.roll_back_adapter("user", "ada")
        assert sent == ["rollback"]
        with pytest.raises(UnavailableError):
            weft.activate_adapter("user", "ada", "v2")
        assert sent.count("activate") > 1  # the same once more changes nothing


def test_activation_rollback_and_history() -> None:
    seen: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        if request.method == "GET":
            entry = {k: v for k, v in STATE.items() if k not in ("scope", "name")}
            return httpx.Response(200, json={"history": [entry]})
        return httpx.Response(200, json={"version": "s.9", "changed": 1, "replayed": False, "state": STATE})

    with client(answer) as weft:
        assert weft.activate_adapter("user", "ada", "v2").arms == (AdapterArm("v2", "d", 1.0),)
        weft.activate_adapter("user", "ada", arms={"v1": 1, "v2": 3})
        weft.activate_adapter("user", "ada", None)
        weft.roll_back_adapter("user", "ada")
        assert weft.adapter_history("user", "ada")[0].scope == "user"
    assert [orjson.loads(request.content) for request in seen[:4]] == [
        {"version": "v2"},
        {"arms": [{"version": "v1", "weight": 1}, {"version": "v2", "weight": 3}]},
        {"version": None},
        {},
    ]

"""The backend in front of a server that answers badly, late and not at all, and its own end."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator

import httpx
import pytest

from graph.errors import InvalidInput, Overloaded, TextTooLong, Unavailable, WeftError
from models.language_model.openai_compatible import OpenAICompatibleModel
from models.language_model.opening import LanguageModelSpec
from models.language_model.protocol import Admitted, Event, Piece
from tests.models.language_model.completions_server import (
    WAIT_S,
    CompletionsServer,
    Reply,
    event,
    refusal,
    said,
)
from tests.models.language_model.remote_model import KEY, Heard, Remote, until


@pytest.fixture
def remote() -> Iterator[Remote]:
    with Remote() as found:
        yield found


@pytest.fixture
def model(remote: Remote) -> OpenAICompatibleModel:
    return remote.open()


@pytest.mark.parametrize(
    ("status", "message", "error"),
    [
        (400, "bad", InvalidInput),
        (400, "maximum context length is 8", TextTooLong),
        (413, "bad", InvalidInput),
        (422, "bad", InvalidInput),
        (401, "bad", Unavailable),
        (403, "bad", Unavailable),
        (404, "bad", Unavailable),
        (429, "bad", Overloaded),
        (500, "bad", Unavailable),
        (503, "bad", Unavailable),
    ],
)
def test_refusals_are_typed_and_hold_no_key(
    remote: Remote,
    model: OpenAICompatibleModel,
    caplog: pytest.LogCaptureFixture,
    status: int,
    message: str,
    error: type[WeftError],
) -> None:
    caplog.set_level(logging.DEBUG)
    remote.server.reply = lambda request: refusal(status, f"{message}: your key\n is {KEY}" + "." * 1000)
    found = remote.ask(model).failure()
    assert type(found) is error and len(found.message) < 400
    if status != 429:
        assert f"{message}: your key is [key]" in found.message
    assert KEY not in found.message and KEY not in caplog.text
    assert ("check the key" in caplog.text) == (status in (401, 403))


def test_redirects_do_not_carry_the_key_away(
    remote: Remote, model: OpenAICompatibleModel, caplog: pytest.LogCaptureFixture
) -> None:
    with CompletionsServer() as other:
        location = {"location": f"{other.url}/chat/completions"}
        for status in (301, 302, 307, 308):
            remote.server.reply = lambda request, status=status: Reply([], status, location)
            assert "redirects are not followed" in remote.ask(model).failure().message
        assert other.connections == 0
    location = {"location": "http://[oops"}
    remote.server.reply = lambda request: Reply([], 307, location)
    assert type(remote.ask(model).failure()) is Unavailable


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([said("x")], "ended its answer in the middle"),
        ([], "ended its answer in the middle"),
        ([said("x"), b"data: {oops\n\n"], "no chunk"),
        ([said("x"), b"data: " + b"[" * 200_000 + b"\n\n"], "no chunk"),
        ([said("x"), event({"error": {"message": f"it broke {KEY}"}})], "in the middle: it broke [key]"),
        ([b"data: " + b"a" * (1 << 20)] * 3, "more than 1,048,576 bytes"),
        ([b"data: x\n" * (1 << 16)] * 1000, "more than 1,048,576 bytes"),
    ],
)
def test_broken_streams(
    remote: Remote, model: OpenAICompatibleModel, parts: list[bytes], message: str
) -> None:
    remote.server.reply = lambda request: Reply(parts)
    found = remote.ask(model).failure()
    assert type(found) is Unavailable and message in found.message and KEY not in found.message


def test_a_lost_connection(remote: Remote, model: OpenAICompatibleModel) -> None:
    remote.server.reply = lambda request: Reply([said("x")], cut=True)
    heard = remote.ask(model)
    assert heard.text == "x" and "no connection" in heard.failure().message
    nowhere = remote.open(url="http://127.0.0.1:9/v1")
    assert "no connection (ConnectError)" in remote.ask(nowhere).failure().message


def test_the_whole_answer_has_a_deadline(remote: Remote) -> None:
    model, server = remote.open(timeout_s=1.5, max_running=2), remote.server

    def forever() -> Iterator[bytes | Callable[[], object]]:
        never = threading.Event()
        while True:
            yield said("x")
            yield lambda: never.wait(0.02)

    server.reply = lambda request: Reply(forever() if len(server.requests) == 1 else [server.stall])
    began = time.monotonic()
    talking, silent, waiting = (remote.submit(model)[0] for _ in range(3))
    for heard in (talking, silent, waiting):
        assert "no whole answer within 1.5 s" in heard.failure().message
    assert time.monotonic() - began < 5
    assert server.hung_up.acquire(timeout=WAIT_S) and server.hung_up.acquire(timeout=WAIT_S)
    assert not any(isinstance(event, Admitted) for event in waiting.events), "waiting did not count"
    server.reply = lambda request: Reply()
    assert remote.ask(model).text == "hello"


def test_what_nobody_foresaw_fails_one_request_alone(
    remote: Remote,
    model: OpenAICompatibleModel,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*args: object, **kwargs: object) -> None:
        raise httpx.InvalidURL(f"no url: {KEY}")

    with monkeypatch.context() as patch:
        patch.setattr(model._client, "stream", broken)
        assert "unexpected InvalidURL" in remote.ask(model).failure().message
    assert "no url: [key]" in caplog.text and KEY not in caplog.text
    assert "unexpected KeyError" in remote.ask(model, choose=lambda failed: {}[0]).failure().message
    assert remote.ask(model, "\ud800").failure().param == "prompt"
    assert remote.ask(model).text == "hello"


def test_a_listener_that_fails_hears_nothing_more(
    remote: Remote, model: OpenAICompatibleModel, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(event: Event) -> None:
        if isinstance(event, Piece):
            raise ValueError("deaf")

    remote.server.reply = lambda request: Reply([said("x"), said("y"), remote.server.stall])
    heard, _ = remote.submit(model, heard=Heard(fail))
    remote.accepted.remove(heard)
    assert remote.server.hung_up.acquire(timeout=WAIT_S)
    until(lambda: model.status()["running"] == 0)
    assert [type(event) for event in heard.events] == [Admitted, Piece] and "deaf" in caplog.text


# --- The end ---


@pytest.mark.parametrize("by_listener", [False, True])
def test_closing_fails_what_is_open(remote: Remote, by_listener: bool) -> None:
    model, server = remote.open(max_running=2), remote.server
    go = threading.Event()
    server.reply = lambda request: Reply([lambda: go.wait(WAIT_S), said("x"), server.stall])
    # A listener that would wait for its own thread is the first to hear of a piece.
    close = Heard(lambda event: model.close() if by_listener and isinstance(event, Piece) else None)
    heard = [remote.submit(model, heard=close)[0], *(remote.submit(model)[0] for _ in range(3))]
    until(lambda: len(server.requests) == 2)
    go.set()
    close.wait(Piece)
    model.close()
    for each in heard:
        failure = each.failure()
        assert type(failure) is Unavailable and "was closed" in failure.message
    assert server.hung_up.acquire(timeout=WAIT_S)
    with pytest.raises(Unavailable, match="is closed"):
        remote.submit(model)
    model.close()


def test_closing_while_others_submit(remote: Remote) -> None:
    remote.server.reply = lambda request: Reply([remote.server.stall])
    for _ in range(10):
        model, started = remote.open(max_queued=100_000), threading.Semaphore(0)

        def submit(model: OpenAICompatibleModel = model, started: threading.Semaphore = started) -> None:
            with pytest.raises(Unavailable, match="is closed"):
                while True:
                    remote.submit(model)
                    started.release()

        threads = [threading.Thread(target=submit) for _ in range(3)]
        for thread in threads:
            thread.start()
        for _ in range(10):
            assert started.acquire(timeout=WAIT_S)
        model.close()
        for thread in threads:
            thread.join(WAIT_S)
            assert not thread.is_alive()


def test_what_it_cannot_do(remote: Remote, model: OpenAICompatibleModel) -> None:
    with pytest.raises(InvalidInput, match="ignore"):
        remote.submit(model, ignore_eos=True)
    with pytest.raises(Unavailable, match="count"):
        model.count_tokens("x")
    assert model.room_for_context("x", None) is None
    assert KEY not in repr(model) and KEY not in str(model.status())


@pytest.mark.parametrize(
    "change", [{"api_key": "sk\n"}, {"api_key": "clé"}, {"model": "a\nb"}, {"url": "ftp://x"}]
)
def test_settings_that_cannot_be(change: dict[str, str]) -> None:
    spec = LanguageModelSpec(**{"model": "m", "backend": "openai", "url": "http://x", **change})  # type: ignore[arg-type]
    with pytest.raises(InvalidInput) as caught:
        OpenAICompatibleModel(spec)
    assert caught.value.param == next(iter(change)) and change.get("api_key", KEY) not in caught.value.message


def test_sizes_and_names_that_cannot_be() -> None:
    spec = LanguageModelSpec("m", "openai", "http://x")
    for options in ({"max_running": 0}, {"max_queued": 0}, {"adapter_names": "lora"}):
        with pytest.raises(InvalidInput):
            OpenAICompatibleModel(spec, **options)  # type: ignore[arg-type]

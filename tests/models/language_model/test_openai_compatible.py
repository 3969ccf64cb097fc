"""The backend in front of an OpenAI-compatible server: what is sent, adapters, many requests at once."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from graph.errors import InvalidInput, Overloaded, Unavailable, UnknownAdapter
from models.adapter_cascade import AdapterCascade, MemoryPointers
from models.adapter_pointers import AdapterArm
from models.language_model import openai_compatible, remote_ticket
from models.language_model.generator import Generator
from models.language_model.openai_compatible import OpenAICompatibleModel
from models.language_model.protocol import AdapterChoice, AdapterPart, Admitted, Finished, Piece
from tests.models.language_model.completions_server import DONE, WAIT_S, Reply, ended, event, refusal, said
from tests.models.language_model.remote_model import KEY, Remote, until

ALICE, FILMS = "a" * 64, "f" * 64


@pytest.fixture
def remote() -> Iterator[Remote]:
    with Remote() as found:
        yield found


@pytest.fixture
def model(remote: Remote) -> OpenAICompatibleModel:
    return remote.open()


# --- What is sent and read ---


def test_chat(remote: Remote, model: OpenAICompatibleModel) -> None:
    usage = event({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 5}})
    remote.server.reply = lambda request: Reply([said("he"), said("llo"), ended("length"), usage, DONE])
    heard = remote.ask(model)
    admitted, *_, last = heard.events
    assert isinstance(admitted, Admitted) and admitted.choice == AdapterChoice()
    assert heard.text == "hello"
    assert (last.reason, last.prompt_tokens, last.completion_tokens) == ("length", 3, 5)
    assert 0 < last.first_token_ms < last.latency_ms
    (request,), (headers,) = remote.server.requests, remote.server.headers
    assert request["path"] == "/v1/chat/completions"
    assert (request["model"], request["messages"]) == ("m", [{"role": "user", "content": "hello"}])
    assert (headers["Authorization"], headers["Content-Type"]) == (f"Bearer {KEY}", "application/json")
    assert model.status()["tokens_generated"] == 5


def test_completions(remote: Remote, model: OpenAICompatibleModel) -> None:
    logprobs = {"tokens": ["a", "b"], "token_logprobs": [-1, -2], "top_logprobs": [{"a": -1}, {"c": -1}]}
    parts = [
        event({"choices": [{"text": "ab", "logprobs": logprobs}]}),
        event({"choices": [{"text": "", "finish_reason": "stop"}]}),
    ]
    remote.server.reply = lambda request: Reply(parts)  # and no [DONE]
    heard = remote.ask(model, "once", logprobs=1, top_k=4)
    request = remote.server.requests[0]
    assert (request["path"], request["prompt"], request["logprobs"]) == ("/v1/completions", "once", 1)
    assert (request["top_k"], "min_p" in request) == (4, False)
    assert [(t.token, t.top[0][0]) for t in heard.wait(Piece).logprobs] == [("a", "a"), ("b", "c")]
    assert heard.wait(Finished).completion_tokens == 2  # without usage: tokens with log-probabilities


def test_text_is_whole_wherever_the_bytes_are_cut(remote: Remote, model: OpenAICompatibleModel) -> None:
    raw = 'data: {"choices":[{"delta":{"content":"é☃𝄞"}}]}\r\n\r\n'.encode() + ended() + DONE
    remote.server.reply = lambda request: Reply([bytes([byte]) for byte in raw])
    heard = remote.ask(model)
    assert (heard.text, heard.wait(Finished).reason) == ("é☃𝄞", "stop")
    assert heard.wait(Finished).completion_tokens == 1  # a piece counts as a token where nobody counts


def test_connections_are_used_again(remote: Remote, monkeypatch: pytest.MonkeyPatch) -> None:
    for patience in ("_DRAIN_S", "_IDLE_S"):  # on a busy machine
        monkeypatch.setattr(openai_compatible, patience, WAIT_S)
    model = remote.open()
    for _ in range(3):
        assert remote.ask(model).text == "hello"
    remote.ask(
        model, choose=lambda failed: AdapterChoice() if failed else AdapterChoice((AdapterPart(ALICE),))
    )
    assert (len(remote.server.requests), remote.server.connections) == (5, 1)


def test_a_server_that_does_not_hang_up_after_the_end(remote: Remote, model: OpenAICompatibleModel) -> None:
    server = remote.server
    server.reply = lambda request: Reply([said("hello"), ended(), DONE, server.stall])
    assert isinstance(remote.ask(model).end(), Finished)
    assert server.hung_up.acquire(timeout=WAIT_S)


def test_times_count_from_submission(remote: Remote, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(remote_ticket, "time", SimpleNamespace(monotonic=lambda: clock.now))
    model, go = remote.open(max_running=1), threading.Event()
    remote.server.reply = lambda request: Reply([lambda: go.wait(WAIT_S), said("x"), ended(), DONE])
    first, _ = remote.submit(model)
    second, _ = remote.submit(model)
    first.wait(Admitted)
    clock.now += 7
    go.set()
    last = second.wait(Finished)
    assert second.wait(Admitted).queued_ms == last.first_token_ms == last.latency_ms == 7000
    assert first.wait(Admitted).queued_ms == 0


# --- Adapters ---


def test_an_adapter_the_server_does_not_know_falls_down_the_cascade(remote: Remote) -> None:
    pointers, server = MemoryPointers(), remote.server
    pointers.activate("user", "alice", AdapterArm("v1", ALICE))
    pointers.activate("domain", "films", AdapterArm("v2", FILMS))
    server.known = {"m", FILMS}
    with Generator(remote.open(), AdapterCascade(lambda: pointers)) as generator:
        found = generator.run("alice", "x", domain="films")
        assert (found.output, found.adapter, found.digest) == ("hello", "domain/films/v2", FILMS)
        assert found.source == "domain" and "user/alice/v1 could not be loaded" in found.why
        assert [request["model"] for request in server.requests] == [ALICE, FILMS]
        alone = generator.run("alice", "x")
        assert (alone.source, alone.digest) == ("base", None) and "the server does not know it" in alone.why
        assert generator.run("bob", "x", domain="films").why == "domain/films has v2 active"
        with pytest.raises(UnknownAdapter, match="user/alice"):
            generator.run("bob", "x", adapter="user/alice")
        server.known = set()
        with pytest.raises(Unavailable, match="404: no such model"):
            generator.run("alice", "x", domain="films")


def test_other_names_and_other_words_for_unknown(remote: Remote) -> None:
    model = remote.open(adapter_names="m:{digest}")
    remote.server.known |= {f"m:{FILMS}", f"m:{ALICE}"}
    unknown = refusal(400, "which?", code="model_not_found")
    remote.server.reply = lambda request: unknown if request["model"] == f"m:{ALICE}" else Reply()
    heard = remote.ask(model, choose=lambda failed: AdapterChoice((AdapterPart(FILMS if failed else ALICE),)))
    assert heard.text == "hello"
    assert [request["model"] for request in remote.server.requests] == [f"m:{ALICE}", f"m:{FILMS}"]
    stubborn = remote.ask(model, choose=lambda failed: AdapterChoice((AdapterPart(ALICE),)))
    assert "which?" in stubborn.failure().message and len(remote.server.requests) == 4


@pytest.mark.parametrize("blend", [[(ALICE, 1.0), (FILMS, 1.0)], [(ALICE, 0.5)]])
def test_blends_are_refused(remote: Remote, blend: list[tuple[str, float]]) -> None:
    remote.server.known |= {ALICE, FILMS}
    with Generator(remote.open(), AdapterCascade(MemoryPointers)) as generator:
        with pytest.raises(InvalidInput, match="one adapter of weight 1") as caught:
            generator.run("a", "x", blend=blend)
        assert (caught.value.param, remote.server.requests) == ("blend", [])
        assert generator.run("a", "x", blend=[(ALICE, 1.0)]).digest == ALICE


# --- Many at once ---


def test_slow_streams_run_at_the_same_time(remote: Remote) -> None:
    model, together = remote.open(max_running=24), threading.Barrier(24)

    def slow(request: dict[str, Any]) -> Reply:
        parts = [together.wait, said("a"), together.wait, said("b"), together.wait, ended(), DONE]
        return Reply([part if isinstance(part, bytes) else lambda: together.wait(WAIT_S) for part in parts])

    remote.server.reply = slow
    heard = [remote.submit(model)[0] for _ in range(24)]
    assert [isinstance(each.end(), Finished) for each in heard] == [True] * 24
    assert [each.text for each in heard] == ["ab"] * 24


def test_a_full_queue_is_overloaded(remote: Remote) -> None:
    model, server = remote.open(max_running=2, max_queued=3), remote.server
    go = threading.Event()
    server.reply = lambda request: Reply([lambda: go.wait(WAIT_S), said("x"), ended(), DONE])
    heard = [remote.submit(model)[0] for _ in range(5)]
    with pytest.raises(Overloaded, match="5 requests"):
        remote.submit(model)
    until(lambda: len(server.requests) == 2)
    assert (model.status()["running"], model.status()["queued"]) == (2, 3)
    go.set()
    assert [isinstance(each.end(), Finished) for each in heard] == [True] * 5
    assert (remote.ask(model).text, server.most_at_once) == ("x", 2)


def test_cancelling(remote: Remote) -> None:
    model, server = remote.open(max_running=1), remote.server
    server.reply = lambda request: Reply([said("x"), server.stall])
    running, ticket = remote.submit(model)
    waiting, other = remote.submit(model)
    running.wait(Piece)
    other.cancel()
    assert waiting.wait(Finished).reason == "cancelled" and len(waiting.events) == 1
    ticket.cancel()
    assert running.wait(Finished).reason == "cancelled"
    assert server.hung_up.acquire(timeout=WAIT_S), "the connection stays open"
    ticket.cancel()  # harmless at the end
    # At once, before the request has begun.
    server.reply = lambda request: Reply()
    for _ in range(20):
        heard, ticket = remote.submit(model)
        ticket.cancel()
        heard.end()
    assert remote.ask(model).text == "hello"
    with model._lock:  # as when a stream is collected in the middle of something
        ticket.cancel()
    model.close()
    ticket.cancel()

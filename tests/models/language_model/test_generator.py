"""The generator in front of a backend without a model: answers, streams, cancelling, errors, time limits."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator

import pytest

from graph.errors import InvalidInput, OutOfMemory, Overloaded, Unavailable, UnknownAdapter
from models.adapter_cascade import AdapterCascade, MemoryPointers
from models.adapter_pointers import AdapterArm
from models.language_model.generator import Generator
from models.language_model.protocol import Message, Sampling
from tests.models.language_model.fake_language_backend import FakeLanguageBackend

ALICE, GLOBAL = "a" * 64, "b" * 64


@pytest.fixture
def backend() -> Iterator[FakeLanguageBackend]:
    found = FakeLanguageBackend(max_queued=2)
    yield found
    found.close()


@pytest.fixture
def generator(backend: FakeLanguageBackend) -> Generator:
    pointers = MemoryPointers()
    for scope, name, digest in (("user", "alice", ALICE), ("global", "default", GLOBAL)):
        pointers.put_version(scope, name, "v1", digest)  # type: ignore[arg-type]
        pointers.activate(scope, name, AdapterArm("v1", digest))  # type: ignore[arg-type]
    return Generator(backend, AdapterCascade(lambda: pointers))


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_an_answer_says_what_it_was_made_with(generator: Generator, backend: FakeLanguageBackend) -> None:
    found = generator.run("alice", "hello big world", "Be kind", sampling=Sampling(max_tokens=2))
    assert (found.output, found.finish_reason, found.completion_tokens) == ("HELLO BIG ", "length", 2)
    assert (found.user_id, found.digest, found.source, found.model) == ("alice", ALICE, "user", "fake")
    assert found.latency_ms >= found.first_token_ms >= 0 and found.why
    assert backend.requests[0].prompt == (Message("system", "Be kind"), Message("user", "hello big world"))
    assert backend.requests[0].owner == "alice"


def test_a_stream_equals_the_answer(generator: Generator) -> None:
    stream = generator.stream("bob", messages=[Message("user", "one two three")])
    with pytest.raises(Unavailable):
        _ = stream.result
    assert list(stream) == ["ONE ", "TWO ", "THREE "]
    assert (stream.result.output, stream.result.digest) == ("ONE TWO THREE ", GLOBAL)


def test_an_adapter_that_cannot_be_loaded_is_passed_by_unless_asked_for(
    generator: Generator, backend: FakeLanguageBackend
) -> None:
    backend.missing = {ALICE: "its file is gone"}
    assert generator.run("alice", "hi").digest == GLOBAL
    with pytest.raises(UnknownAdapter):
        generator.run("alice", "hi", adapter="user/alice")
    assert generator.run("alice", "hi", adapter="base").digest is None


@pytest.mark.parametrize("way", ["close", "collect", "with"])
def test_letting_go_of_a_stream_cancels(generator: Generator, backend: FakeLanguageBackend, way: str) -> None:
    backend.hold()
    stream = generator.stream("alice", "a b c", request_id="r1")
    if way == "close":
        stream.close()
        assert list(stream) == []
    elif way == "with":
        with pytest.raises(KeyError), stream:
            raise KeyError
    else:
        del stream
        gc.collect()
    until(lambda: backend.cancelled == ["r1"])


def test_time_limit_cancels(generator: Generator, backend: FakeLanguageBackend) -> None:
    backend.hold()
    with pytest.raises(Unavailable, match=r"within 0\.01 s"):
        generator.run("alice", "a b", timeout_s=0.01)
    until(lambda: len(backend.cancelled) == 1)


def test_errors_come_out_as_they_are(generator: Generator, backend: FakeLanguageBackend) -> None:
    backend.error = OutOfMemory("no room")
    with pytest.raises(OutOfMemory):
        generator.run("alice", "a b")
    backend.hold()
    streams = [generator.stream("alice", "x y") for _ in range(2)]
    with pytest.raises(Overloaded):
        generator.run("alice", "x")
    backend.go()
    assert [list(stream) for stream in streams] == [["X ", "Y "]] * 2


def test_what_contradicts_itself_is_refused(generator: Generator) -> None:
    with pytest.raises(InvalidInput):
        generator.run("alice")
    with pytest.raises(InvalidInput):
        generator.run("alice", "x", messages=[Message("user", "y")])
    with pytest.raises(InvalidInput):
        generator.run("alice", "x", adapter="base", blend=[("user/alice", 1.0)])


def test_closing_fails_what_waits(generator: Generator, backend: FakeLanguageBackend) -> None:
    backend.hold()
    stream = generator.stream("alice", "x")
    generator.close()
    with pytest.raises(Unavailable):
        next(stream)

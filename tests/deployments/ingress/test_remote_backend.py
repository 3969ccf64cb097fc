"""The backend for OpenAI-compatible servers against this service's own HTTP, on a real socket."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from deployments.generation_messages import GenerateQuery, Started
from graph.errors import (
    InvalidInput,
    OutOfMemory,
    Overloaded,
    TextTooLong,
    Unavailable,
    UnknownAdapter,
    WeftError,
)
from models.adapter_cascade import AdapterCascade, MemoryPointers
from models.adapter_pointers import AdapterArm, is_adapter_digest
from models.language_model.generator import Generator
from models.language_model.openai_compatible import OpenAICompatibleModel
from models.language_model.opening import LanguageModelSpec
from models.language_model.protocol import Admitted, Finished, Message, Piece, Sampling
from tests.deployments.ingress.fake_backend import FakeBackend
from tests.deployments.ingress.fake_generation import LANGUAGE_MODEL, WINDOW_CHARS
from tests.models.language_model.remote_model import Heard, until

ALICE, FILMS = "a" * 64, "f" * 64
TEXT = "Zoë ☃ 𝄞 said"
ECHO = f"echo: {TEXT}"


class Backend(FakeBackend):
    """Takes digests in `digests` as models, as the service does."""

    digests: frozenset[str] = frozenset()

    def _chosen(self, query: GenerateQuery, tokens: int, version: int) -> Started:
        named = query.model or ""
        if not is_adapter_digest(named) or named not in self.digests:
            return super()._chosen(query, tokens, version)
        return replace(
            super()._chosen(replace(query, model=None), tokens, version),
            adapter=named,
            digest=named,
            source="request",
        )


@pytest.fixture
def backend(tmp_path: Path) -> Backend:
    return Backend(version=7, upload_dir=tmp_path)


@pytest.fixture
def pointers() -> MemoryPointers:
    pointers = MemoryPointers()
    pointers.activate("user", "alice", AdapterArm("v1", ALICE))
    pointers.activate("domain", "films", AdapterArm("v2", FILMS))
    return pointers


@pytest.fixture
def generator(served: str, pointers: MemoryPointers) -> Iterator[Generator]:
    spec = LanguageModelSpec(LANGUAGE_MODEL, "openai", served, "sk-secret", timeout_s=10)
    with Generator(OpenAICompatibleModel(spec), AdapterCascade(lambda: pointers)) as generator:
        yield generator


def test_chat(generator: Generator, backend: Backend) -> None:
    sampling = Sampling(max_tokens=4, temperature=0.5, top_p=0.9, seed=3, stop=("never",), logprobs=2)
    with generator.stream("bob", TEXT, "be kind", sampling=sampling) as stream:
        assert list(stream) == ["echo:", " Zoë", " ☃", " 𝄞"]
    found = stream.result
    assert (found.output, found.model, found.finish_reason) == ("echo: Zoë ☃ 𝄞", LANGUAGE_MODEL, "length")
    assert (found.prompt_tokens, found.completion_tokens) == (4, 4)
    assert (found.digest, found.source) == (None, "base")
    assert [entry.token for entry in found.logprobs] == ["echo:", " Zoë", " ☃", " 𝄞"]
    assert found.logprobs[0].logprob == -0.5
    assert found.logprobs[0].top == (("w0", -1, -1.0), ("w1", -1, -2.0))
    (query,) = backend.generated
    assert (query.prompt, query.sampling) == ((Message("system", "be kind"), Message("user", TEXT)), sampling)
    # What an adapter is chosen by is decided here, and nothing of the user goes further.
    assert (query.model, query.user_id) == (LANGUAGE_MODEL, None)


@pytest.mark.parametrize("logprobs", [None, 0, 2])
def test_completions(generator: Generator, backend: Backend, logprobs: int | None) -> None:
    heard = Heard()
    generator.submit("bob", TEXT, heard, sampling=Sampling(max_tokens=32, logprobs=logprobs))
    last = heard.end()
    assert isinstance(last, Finished) and last.reason == "stop"
    assert (heard.text, last.prompt_tokens, last.completion_tokens) == (ECHO, 4, 5)
    tokens = [entry for event in heard.events if isinstance(event, Piece) for entry in event.logprobs]
    assert len(tokens) == (0 if logprobs is None else 5)
    assert {len(entry.top) for entry in tokens} == (set() if logprobs is None else {logprobs})
    assert backend.generated[0].prompt == TEXT


def test_an_adapter_is_a_model_named_by_its_digest(generator: Generator, backend: Backend) -> None:
    backend.digests = frozenset((FILMS,))
    found = generator.run("alice", TEXT, domain="films")
    assert (found.output, found.adapter, found.digest) == (ECHO, "domain/films/v2", FILMS)
    assert "user/alice/v1 could not be loaded (the server does not know it)" in found.why
    assert [query.model for query in backend.generated] == [ALICE, FILMS]
    with pytest.raises(UnknownAdapter, match="does not know it"):
        generator.run("bob", TEXT, adapter=ALICE)
    assert generator.run("alice", TEXT).source == "base"
    with pytest.raises(InvalidInput, match="blend"):
        generator.run("bob", TEXT, blend=[(ALICE, 0.5), (FILMS, 0.5)])


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (Overloaded("full"), Overloaded),
        (Unavailable("away"), Unavailable),
        (OutOfMemory("none left"), Unavailable),
        (InvalidInput("not so"), InvalidInput),
        (TextTooLong("too long"), TextTooLong),
        (ValueError("a defect"), Unavailable),
    ],
)
def test_errors_before_the_answer(
    generator: Generator, backend: Backend, raised: Exception, expected: type[WeftError]
) -> None:
    backend.raises = raised
    with pytest.raises(WeftError) as caught:
        generator.run("bob", TEXT)
    assert type(caught.value) is expected
    backend.raises = None
    assert generator.run("bob", TEXT).output == ECHO


def test_what_the_service_refuses(generator: Generator) -> None:
    with pytest.raises(TextTooLong, match="422"):
        generator.run("bob", "x" * (WINDOW_CHARS + 1))
    # The service has it under `weft`, other servers beside the rest: nothing is left out in silence.
    with pytest.raises(InvalidInput, match="top_k: unknown field"):
        generator.run("bob", TEXT, sampling=Sampling(top_k=3))


def test_an_error_in_the_middle(generator: Generator, backend: Backend) -> None:
    backend.fails_after, backend.failure = 2, OutOfMemory("none left")
    with generator.stream("bob", TEXT) as stream:
        assert [next(stream), next(stream)] == ["echo:", " Zoë"]
        with pytest.raises(Unavailable, match="failed in the middle"):
            next(stream)


def test_cancelling_reaches_the_service(generator: Generator, backend: Backend) -> None:
    backend.stalls_after = 1
    heard = Heard()
    ticket = generator.submit("bob", TEXT, heard)
    heard.wait(Piece)
    assert (backend.open_streams, backend.closed_streams) == (1, 0)
    ticket.cancel()
    last = heard.end()
    assert isinstance(last, Finished) and last.reason == "cancelled"
    until(lambda: backend.closed_streams == 1)


def test_many_at_once(generator: Generator) -> None:
    heard = [Heard() for _ in range(24)]
    for place, each in enumerate(heard):
        generator.submit(None, (Message("user", f"number {place}"),), each)
    for place, each in enumerate(heard):
        assert isinstance(each.end(), Finished) and each.text == f"echo: number {place}"
        assert isinstance(each.events[0], Admitted)

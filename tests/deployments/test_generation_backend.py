"""The ingress' side of generation: what it makes of replicas that lag, end, or are not there."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import RayActorError

with warnings.catch_warnings():
    # Ray Serve 2.60 defines its schemas in a way that pydantic will no longer take some day.
    warnings.simplefilter("ignore")
    from ray.serve.context import _get_serve_request_context, _set_request_context
    from ray.serve.exceptions import BackPressureError

    import deployments.ingress.generation_backend as module
    from deployments.ingress.generation_backend import GenerationBackend
    from deployments.ingress.text_status import degraded
from deployments.generation_messages import (
    Delta,
    Ended,
    GenerateAnswer,
    GenerateQuery,
    LanguageModelInfo,
    Started,
)
from deployments.memory_messages import ContextCandidates, FittedContext
from graph.context_lines import ContextLine
from graph.errors import ModelUnavailable, NotYet, OutOfMemory, Overloaded, Unavailable, UnknownAdapter
from tests.deployments.local_state import make_settings

STARTED = Started("m", None, None, "base", "because", 3, 0, 7)
ENDED = Ended("stop", 3, 2, 0.1, 0.2, 0.3)
ANSWER = GenerateAnswer("text", STARTED, ENDED)


class Response:
    """A call in flight: to be awaited, or iterated when it streams."""

    def __init__(self, handle: Handle, found: Any) -> None:
        self._handle, self._found = handle, found

    def __await__(self) -> Any:
        return self._found.__await__()

    def __aiter__(self) -> Any:
        return self

    async def __anext__(self) -> Any:
        return await anext(self._found)

    def cancel(self) -> None:
        self._handle.cancelled += 1


class Handle:
    """A deployment handle over replicas of which each call meets the next."""

    def __init__(self, *replicas: Any) -> None:
        self.replicas = replicas
        self.calls: list[tuple[str | None, str]] = []
        self.requests: list[str] = []  # as Serve tells them apart
        self.cancelled = 0
        self._session: str | None = None

    def options(self, *, session_id: str | None = None, stream: bool = False) -> Handle:
        found = Handle(*self.replicas)
        found.__dict__ = {**self.__dict__, "_session": session_id or self._session}
        found._root = getattr(self, "_root", self)  # type: ignore[attr-defined]
        return found

    def __getattr__(self, method: str) -> Any:
        if method.startswith("_"):
            raise AttributeError(method)
        root = getattr(self, "_root", self)

        def remote(*args: Any) -> Response:
            replica = root.replicas[len(root.calls) % len(root.replicas)]
            root.calls.append((self._session, method))
            root.requests.append(_get_serve_request_context()._internal_request_id)
            return Response(root, getattr(replica, method)(*args))

        return type("Method", (), {"remote": staticmethod(remote)})

    def broadcast(self, method: str) -> Any:
        replicas = self.replicas

        class Found:
            async def results_async(self, *, timeout_s: float) -> list[Any]:
                return [await getattr(replica, method)() for replica in replicas]

        return Found()


class Replica:
    """Is behind until somebody waited; then does what the test says."""

    def __init__(self, behind: bool = False) -> None:
        self.behind = behind
        self.answer: Callable[[], Any] = lambda: ANSWER
        self.events: Callable[[], AsyncIterator[Any]] = self._whole
        self.failure: str | None = None

    async def _whole(self) -> AsyncIterator[Any]:
        yield [STARTED]
        yield [Delta("a"), Delta("b")]
        yield [Delta("c"), ENDED]

    async def generate(self, query: GenerateQuery) -> Any:
        if self.behind:
            return NotYet("behind")
        found = self.answer()
        return await found if asyncio.iscoroutine(found) else found

    async def stream(self, query: GenerateQuery) -> AsyncIterator[Any]:
        if self.behind:
            yield [NotYet("behind")]
            return
        async for part in self.events():
            yield part

    async def wait_for(self, version: int, timeout_s: float) -> bool:
        self.behind = False
        return True

    async def info(self) -> Any:
        return LanguageModelInfo("m", ())

    async def adapter_history(self, scope: str, name: str, min_version: int) -> Any:
        return NotYet("behind") if self.behind else ()

    async def fit_context(self, lines: Any, max_tokens: int) -> Any:
        found = self.answer()
        return await found if asyncio.iscoroutine(found) else found

    async def status(self) -> dict[str, Any]:
        return {"replica": "r", "failure": self.failure, "audit": None}


@pytest.fixture
def make(tmp_path: Path) -> Any:
    def backend(*replicas: Replica) -> tuple[GenerationBackend, Handle]:
        handle = Handle(*replicas)
        settings = make_settings(tmp_path, ingress={"min_version_timeout_s": 0.3})
        return GenerationBackend(settings, handle), handle  # type: ignore[arg-type]

    return backend


async def test_a_users_calls_carry_the_user_as_session(make: Any) -> None:
    backend, handle = make(Replica(behind=True))
    assert await backend.generate(GenerateQuery("x", user_id="alice", min_version=3)) == ANSWER
    assert handle.calls == [("alice", "generate"), ("alice", "wait_for"), ("alice", "generate")]
    await backend.generate(GenerateQuery("x"))
    assert handle.calls[-1] == (None, "generate")


async def test_a_stream_waits_for_the_version_and_then_flows(make: Any) -> None:
    backend, handle = make(Replica(behind=True))
    events = [e async for e in backend.stream(GenerateQuery("x", user_id="alice", min_version=3))]
    assert events == [STARTED, Delta("a"), Delta("b"), Delta("c"), ENDED]
    assert handle.calls == [("alice", "stream"), ("alice", "wait_for"), ("alice", "stream")]


async def test_a_replica_that_stays_behind_is_not_yet(make: Any) -> None:
    replica = Replica(behind=True)

    async def in_vain(version: int, timeout_s: float) -> bool:
        return False

    replica.wait_for = in_vain  # type: ignore[method-assign]
    backend, _ = make(replica)
    with pytest.raises(NotYet):
        await backend.generate(GenerateQuery("x", min_version=3))
    with pytest.raises(NotYet):
        [e async for e in backend.stream(GenerateQuery("x", min_version=3))]
    with pytest.raises(NotYet):
        await backend.adapter_history("user", "alice", 3)


async def test_an_error_of_the_replica_is_raised(make: Any) -> None:
    replica = Replica()
    replica.answer = lambda: UnknownAdapter("none")

    async def breaks() -> AsyncIterator[Any]:
        yield [STARTED, Delta("a")]
        yield [Delta("b"), OutOfMemory("full")]

    replica.events = breaks
    backend, _ = make(replica)
    with pytest.raises(UnknownAdapter):
        await backend.generate(GenerateQuery("x"))
    seen: list[Any] = []
    with pytest.raises(OutOfMemory):
        async for event in backend.stream(GenerateQuery("x")):
            seen.append(event)
    assert seen == [STARTED, Delta("a"), Delta("b")]


async def test_a_replica_that_dies_or_falls_silent_is_unavailable(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    replica = Replica()
    backend, handle = make(replica)

    async def dies() -> AsyncIterator[Any]:
        yield [STARTED]
        raise RayActorError()

    async def silent() -> AsyncIterator[Any]:
        yield [STARTED]
        await asyncio.Event().wait()

    async def short() -> AsyncIterator[Any]:
        yield [STARTED, Delta("a")]

    backend._timeout_s = 0.05
    for events in (dies, silent, short):
        replica.events = events
        before = handle.cancelled
        with pytest.raises(Unavailable):
            [e async for e in backend.stream(GenerateQuery("x"))]
        assert handle.cancelled == before + 1

    def full() -> Any:
        raise BackPressureError(1, 1)

    replica.answer = full
    with pytest.raises(Overloaded):
        await backend.generate(GenerateQuery("x"))
    replica.answer = lambda: asyncio.Event().wait()
    before = handle.cancelled
    with pytest.raises(Unavailable, match="no answer within"):
        await backend.generate(GenerateQuery("x"))
    assert handle.cancelled == before + 1


async def test_who_stops_listening_cancels_the_work(make: Any) -> None:
    replica = Replica()

    async def endless() -> AsyncIterator[Any]:
        yield [STARTED]
        while True:
            yield [Delta("a")]
            await asyncio.sleep(0.001)

    replica.events = endless
    backend, handle = make(replica)
    stream = backend.stream(GenerateQuery("x"))
    assert await anext(stream) == STARTED
    await stream.aclose()
    assert handle.cancelled == 1

    replica.answer = lambda: asyncio.Event().wait()
    task = asyncio.create_task(backend.generate(GenerateQuery("x")))
    await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert handle.cancelled == 2


async def test_calls_are_not_taken_for_parts_of_the_request_they_are_made_for(make: Any) -> None:
    """The router would take those that wait together for one call; see `handles.begun`."""
    _set_request_context(_internal_request_id="one")
    backend, handle = make(Replica(behind=True))
    query = GenerateQuery("x", user_id="u", min_version=3)
    await asyncio.gather(*(backend.generate(query) for _ in range(3)), backend.language_model())
    assert [event async for event in backend.stream(query)]
    assert _get_serve_request_context()._internal_request_id == "one"
    assert len(handle.requests) == len(handle.calls) >= 5
    assert set(handle.requests) == {""}


LINES = ContextCandidates((ContextLine("said", "memory", "m1", "fünf"),), 7, ("similarity",))
FITTED = FittedContext("text", LINES.lines, 3, "m", 7)


async def test_a_context_is_counted_by_the_model(make: Any) -> None:
    replica = Replica()
    replica.answer = lambda: FITTED
    backend, handle = make(replica)
    assert await backend.fit_context(LINES, 100) == FITTED
    assert handle.calls == [(None, "fit_context")]


def _full() -> Any:
    raise BackPressureError(1, 1)


@pytest.mark.parametrize(
    "answer", [lambda: ModelUnavailable("loading"), lambda: asyncio.Event().wait(), _full, None]
)
async def test_a_context_is_counted_in_bytes_where_no_model_counts(make: Any, answer: Any) -> None:
    replica = Replica()
    replica.answer = answer
    backend, _ = make(replica)
    backend._count_s = 0.05
    if answer is None:
        backend._handle_or_none = None  # switched off
    found = await backend.fit_context(LINES, 100)
    assert found.text == "What is known about this user:\n- said: fünf"
    assert (found.tokens, found.counted_by) == (len(found.text) + 1, "bytes")
    assert (found.lines, found.version, found.missing) == (LINES.lines, 7, ("similarity",))
    assert (await backend.fit_context(LINES, 10)).lines == ()


async def test_switched_off_it_says_so(tmp_path: Path) -> None:
    backend = GenerationBackend(make_settings(tmp_path), None)
    for asked in (backend.generate(GenerateQuery("x")), backend.language_model()):
        with pytest.raises(ModelUnavailable, match="switched off"):
            await asked
    with pytest.raises(ModelUnavailable, match="switched off"):
        await anext(backend.stream(GenerateQuery("x")))
    status = await backend.language_model_status()
    assert status == {"enabled": False}
    assert degraded({"text_embedder": {}, "text_indexer": {}, "language_model": status}) == {}


async def test_status_shows_what_is_wrong_with_any_replica(make: Any) -> None:
    good, bad = Replica(), Replica()
    backend, _ = make(good, bad)
    parts: dict[str, dict[str, Any]] = {"text_embedder": {}, "text_indexer": {}}
    parts["language_model"] = await backend.language_model_status()
    assert "language_model" not in degraded(parts)
    bad.failure = "no such model"
    parts["language_model"] = await backend.language_model_status()
    assert "no such model" in degraded(parts)["language_model"]
    assert module._STATUS_TIMEOUT_S > 0

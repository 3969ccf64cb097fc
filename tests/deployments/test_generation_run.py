"""One generation: cancelled, late, refused, and its line of the audit log."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from deployments.generation_messages import (
    GenerateQuery,
    Started,
)
from deployments.memory_messages import ContextCandidates
from graph.context_lines import ContextLine
from graph.errors import (
    InvalidInput,
    Overloaded,
    TextTooLong,
    Unavailable,
)
from models.language_model.protocol import Message, Sampling
from tests.deployments.local_adapters import digest_of, plain
from tests.deployments.local_language_model import World, answered, audit
from tests.deployments.local_state import make_settings, until


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    world = World(make_settings(tmp_path))
    yield world
    await world.close()


async def test_closing_a_stream_cancels_the_generation(world: World) -> None:
    replica = await world.replica()
    backend, _, _ = plain(replica._opened)
    backend.token_s = 0.01
    stream = replica.stream(GenerateQuery("hello", Sampling(max_tokens=10_000), request_id="r1"))
    assert isinstance((await anext(stream))[0], Started)
    await stream.aclose()
    assert backend.tickets[0].cancelled.is_set()
    assert replica._audit is not None
    await until(lambda: replica._audit.flush() and bool(replica._audit.status()["written"]))
    (line,) = audit(world.settings)
    assert (line["request_id"], line["finish_reason"], line["error"]) == ("r1", "cancelled", None)


async def test_a_caller_that_goes_away_cancels_the_generation(world: World) -> None:
    replica = await world.replica()
    backend, _, _ = plain(replica._opened)
    backend.token_s = 0.01
    task = asyncio.create_task(replica.generate(GenerateQuery("hello", Sampling(max_tokens=10_000))))
    await until(lambda: bool(backend.tickets))
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert backend.tickets[0].cancelled.is_set()
    # Also while a long prompt is still being read.
    long = asyncio.create_task(replica.generate(GenerateQuery("x" * 100_000, Sampling(max_tokens=10_000))))
    await asyncio.sleep(0)
    long.cancel()
    await asyncio.gather(long, return_exceptions=True)
    await until(lambda: all(ticket.cancelled.is_set() for ticket in backend.tickets))


async def test_what_takes_too_long_is_cancelled(world: World) -> None:
    limits = world.settings.language_model.model_copy(update={"timeout_s": 0.2})
    replica = await world.replica(language_model=limits)
    backend, _, _ = plain(replica._opened)
    backend.token_s = 0.01
    query = GenerateQuery("hello", Sampling(max_tokens=10_000))
    found = await replica.generate(query)
    assert isinstance(found, Unavailable)
    assert "0.2 s" in found.message
    events = [event async for part in replica.stream(query) for event in part]
    assert isinstance(events[0], Started)
    assert isinstance(events[-1], Unavailable)
    assert all(ticket.cancelled.is_set() for ticket in backend.tickets)


@pytest.mark.parametrize("refusal", [Overloaded("full"), TextTooLong("long"), InvalidInput("no")])
async def test_what_the_backend_refuses_comes_back_typed_and_is_audited(world: World, refusal: Any) -> None:
    replica = await world.replica()
    backend, _, _ = plain(replica._opened)
    backend.refusal = refusal
    found = await replica.generate(GenerateQuery("hello"))
    assert type(found) is type(refusal)
    events = [event async for part in replica.stream(GenerateQuery("hello")) for event in part]
    assert [type(event) for event in events] == [type(refusal)]
    assert replica._audit is not None
    assert replica._audit.flush()
    assert [line["error"] for line in audit(world.settings)] == [refusal.code] * 2


async def test_the_audit_log_says_who_got_what_and_nothing_private(world: World) -> None:
    replica = await world.replica()
    version = await world.activate(replica, "user", "alice", "v1", "one")
    assert await replica.wait_for(version, 5.0)
    sampling = Sampling(max_tokens=2, temperature=0.5, stop=("secret stop",))
    await replica.generate(GenerateQuery("a secret", sampling, user_id="alice", request_id="r1"))
    await replica.generate(GenerateQuery("a secret", user_id="bob", domain="films", request_id="r2"))
    assert replica._audit is not None
    assert replica._audit.flush()
    first, second = audit(world.settings)
    assert first["time"] > 1e9
    assert (first["request_id"], first["user"], first["device"]) == ("r1", "alice", "cpu")
    assert first["digest"] == digest_of("one")
    assert (first["source"], first["adapter_active"]) == ("user", True)
    assert first["sampling"]["temperature"] == 0.5
    tokens = (first["prompt_tokens"], first["cached_tokens"], first["completion_tokens"])
    assert tokens == (3, 1, 2)
    assert (first["finish_reason"], first["error"]) == ("length", None)
    assert first["latency_ms"] > 0
    assert (second["adapter_active"], second["digest"], second["domain"]) == (False, None, "films")
    assert second["why"]
    assert "a secret" not in (world.settings.audit_dir / "generations-0.jsonl").read_text()


async def test_prompt_and_output_are_in_the_audit_log_when_switched_on(world: World) -> None:
    replica = await world.replica(audit=world.settings.audit.model_copy(update={"texts": True}))
    turns = (Message("system", "be brief"), Message("user", "hello"))
    await replica.generate(GenerateQuery(turns, Sampling(max_tokens=1)))
    await replica.generate(GenerateQuery("plain", Sampling(max_tokens=1)))
    assert replica._audit is not None
    assert replica._audit.flush()
    first, second = audit(world.settings)
    assert first["prompt"] == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "hello"},
    ]
    assert (second["prompt"], second["output"]) == ("plain", "base ")


async def test_without_an_audit_log_it_answers_all_the_same(world: World) -> None:
    replica = await world.replica(audit=world.settings.audit.model_copy(update={"enabled": False}))
    answered(await replica.generate(GenerateQuery("hello")))
    assert not world.settings.audit_dir.exists()
    assert (await replica.status())["audit"] is None


@pytest.mark.parametrize("texts", [False, True])
async def test_the_audit_log_names_the_sources_of_a_context(world: World, texts: bool) -> None:
    replica = await world.replica(audit=world.settings.audit.model_copy(update={"texts": texts}))
    lines = (
        ContextLine("said", "memory", "m1", "a private fact"),
        ContextLine("liked", "item", "i1", "A film"),
        ContextLine("said", "memory", "m2", "one that does not fit any more, for it is too long"),
    )
    query = GenerateQuery(
        (Message("user", "hello"),), context=ContextCandidates(lines, 1), max_context_tokens=17
    )
    found = answered(await replica.generate(query))
    await replica.generate(GenerateQuery("hello"))
    assert replica._audit is not None
    assert replica._audit.flush()
    first, second = audit(world.settings)
    assert found.started.context is not None
    assert first["context"] == [{"kind": "memory", "id": "m1"}, {"kind": "item", "id": "i1"}]
    assert first["context_tokens"] == found.started.context.tokens > 0
    assert (second["context"], second["context_tokens"]) == (None, None)
    written = (world.settings.audit_dir / "generations-0.jsonl").read_text()
    assert ("a private fact" in written) == texts
    if texts:
        assert (first["context_text"], second["context_text"]) == (found.started.context.text, None)

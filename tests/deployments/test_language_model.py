"""The language model deployment: versions, cascade, streams, failures, swaps."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

import deployments.language_model as module
from deployments.generation_messages import (
    ActivateAdapter,
    Delta,
    Ended,
    GenerateQuery,
    PutAdapter,
    Started,
)
from deployments.memory_messages import ContextCandidates
from deployments.opening_language_model import OpenedLanguageModel
from deployments.settings import Settings
from graph.context_lines import ContextLine, render
from graph.errors import (
    InvalidInput,
    ModelUnavailable,
    NotYet,
    Overloaded,
    Unavailable,
    UnknownAdapter,
    UnknownModel,
)
from graph.schema import DeleteUser, PutUser
from models.language_model.protocol import GenerationRequest, Listener, Message, Sampling, Ticket
from tests.deployments.local_adapters import digest_of, open_plain, plain, put_in_inbox
from tests.deployments.local_language_model import World, answered, done
from tests.deployments.local_state import make_settings, until, write


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    world = World(make_settings(tmp_path))
    yield world
    await world.close()


async def test_it_answers_with_the_base_model_when_nothing_is_active(world: World) -> None:
    replica = await world.replica()
    found = answered(await replica.generate(GenerateQuery("hello", Sampling(max_tokens=2))))
    assert found.text == "base base "
    assert found.started == Started("plain", None, None, "base", found.started.why, 3, 1, world.state._head)
    assert (found.ended.finish_reason, found.ended.completion_tokens, found.ended.queued_ms) == (
        "length",
        2,
        0.5,
    )
    assert [t.token_id for t in found.logprobs] == [1, 2]


async def test_a_swap_shows_in_the_next_request_that_carries_its_version(world: World) -> None:
    replica, other = await world.replica(), await world.replica()
    for n, word in enumerate(("one", "two", "three")):
        version = await world.activate(replica, "user", "alice", f"v{n}", word)
        query = GenerateQuery("hello", Sampling(max_tokens=1), user_id="alice", min_version=version)
        for asked in (replica, other):
            while isinstance(found := await asked.generate(query), NotYet):
                assert await asked.wait_for(version, 5.0)
            assert answered(found).text == f"{word} "
            assert found.started.digest == digest_of(word)
            assert found.started.version >= version
    back = done(await other.roll_back_adapter("user", "alice", version))
    assert await replica.wait_for(back.version, 5.0)
    found = await replica.generate(replace(query, min_version=back.version))
    assert answered(found).text == "two "


async def test_a_replica_that_lags_says_so_and_generates_nothing(world: World) -> None:
    replica = await world.replica()
    backend, _, _ = plain(replica._opened)
    ahead = GenerateQuery("hello", min_version=world.state._head + 1)
    assert isinstance(await replica.generate(ahead), NotYet)
    assert [type(e) for part in [p async for p in replica.stream(ahead)] for e in part] == [NotYet]
    for found in (
        await replica.list_adapters(10, None, None, None, world.state._head + 1),
        await replica.roll_back_adapter("user", "alice", world.state._head + 1),
    ):
        assert isinstance(found, NotYet)
    assert backend.tickets == []
    waiting = asyncio.create_task(replica.wait_for(world.state._head + 1, 5.0))
    await write(world.state, PutUser("somebody"))  # a version without pointers counts too
    assert await waiting
    answered(await replica.generate(ahead))


async def test_a_stream_says_what_it_uses_then_the_words_then_how_it_ended(world: World) -> None:
    replica = await world.replica()
    version = await world.activate(replica, "domain", "films", "v1", "film")
    assert await replica.wait_for(version, 5.0)
    backend, _, _ = plain(replica._opened)
    backend.token_s = 0.002
    query = GenerateQuery("hello", Sampling(max_tokens=40), user_id="bob", domain="films")
    parts = [part async for part in replica.stream(query)]
    events = [event for part in parts for event in part]
    assert isinstance(events[0], Started)
    assert (events[0].source, events[0].digest) == ("domain", digest_of("film"))
    assert isinstance(events[-1], Ended)
    deltas = events[1:-1]
    assert all(isinstance(event, Delta) for event in deltas)
    assert "".join(d.text for d in deltas) == "film " * 40
    assert [t for d in deltas for t in d.token_ids] == list(range(1, 41))
    assert [t.token_id for d in deltas for t in d.logprobs] == list(range(1, 41))
    assert 2 < len(parts) < 30  # pieces that come together travel together


async def test_an_error_in_the_middle_ends_the_stream(world: World) -> None:
    replica = await world.replica()
    version = await world.activate(replica, "user", "alice", "v1", "breaks")
    assert await replica.wait_for(version, 5.0)
    query = GenerateQuery("hello", user_id="alice")
    events = [event async for part in replica.stream(query) for event in part]
    assert [type(event) for event in events] == [Started, Overloaded]
    assert isinstance(await replica.generate(query), Overloaded)


async def test_an_adapter_may_be_named_as_the_model(world: World) -> None:
    replica = await world.replica()
    version = await world.activate(replica, "user", "alice", "v1", "one")
    assert await replica.wait_for(version, 5.0)
    for model, text in (
        ("plain", "base "),
        ("user/alice", "one "),
        ("user/alice/v1", "one "),
        (digest_of("one"), "one "),
        ("base", "base "),
    ):
        found = await replica.generate(GenerateQuery("hello", Sampling(max_tokens=1), model=model))
        assert answered(found).text == text
    for model in ("gpt-4", "user/bob", "user/alice/v9", "../etc"):
        found = await replica.generate(GenerateQuery("hello", model=model))
        assert isinstance(found, UnknownModel), found
        assert (found.status, found.param) == (404, "model")
        events = [
            event async for part in replica.stream(GenerateQuery("hello", model=model)) for event in part
        ]
        assert [type(event) for event in events] == [UnknownModel]
    found = await replica.generate(GenerateQuery("hello", adapter="user/bob"))
    assert type(found) is UnknownAdapter
    for query in (
        GenerateQuery("hello", model="user/alice", adapter="base"),
        GenerateQuery("hello", adapter="base", blend=(("user/alice", 1.0),)),
    ):
        assert type(await replica.generate(query)) is InvalidInput


async def test_a_file_that_vanishes_falls_down_the_cascade(world: World) -> None:
    replica = await world.replica()
    await world.activate(replica, "global", "default", "v1", "all")
    version = await world.activate(replica, "user", "alice", "v1", "one")
    assert await replica.wait_for(version, 5.0)
    _, store, _ = plain(replica._opened)
    (store.root / digest_of("one")).unlink()
    query = GenerateQuery("hello", Sampling(max_tokens=1), user_id="alice")
    assert answered(await replica.generate(query)).text == "all "


async def test_a_users_adapter_goes_with_the_user(world: World) -> None:
    """It was trained on that user's texts: whoever gets the id next speaks with the base model."""
    replicas = [await world.replica(), await world.replica()]
    await world.activate(replicas[0], "user", "alice", "v1", "one")
    shared = await world.activate(replicas[0], "user", "bob", "v1", "both")
    await world.activate(replicas[0], "user", "carl", "v1", "both")
    _, store, _ = plain(replicas[0]._opened)
    assert (store.root / digest_of("one")).exists()
    await write(world.state, PutUser("alice"), PutUser("bob"))
    await write(world.state, DeleteUser("alice"), DeleteUser("bob"))
    version = (await write(world.state, PutUser("alice"))).version
    assert version > shared
    for replica in replicas:
        assert await replica.wait_for(version, 5.0)
        query = GenerateQuery("hello", Sampling(max_tokens=1), user_id="alice")
        assert answered(await replica.generate(query)).text == "base "
    await until(lambda: not (store.root / digest_of("one")).exists())
    assert (store.root / digest_of("both")).exists(), "somebody else's too"
    query = GenerateQuery("hello", Sampling(max_tokens=1), user_id="carl")
    assert answered(await replicas[1].generate(query)).text == "both "


async def test_a_model_that_cannot_be_opened_keeps_nobody_waiting(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_RETRY_S", 0.01)
    broken = [RuntimeError("a defect"), InvalidInput("model 'x' is not there: look here")]

    def opener(settings: Settings) -> OpenedLanguageModel:
        if broken:
            raise broken[-1]
        return open_plain(settings)

    replica = await world.replica(opener)
    status = await replica.status()
    assert (status["open"], status["failure"]) == (False, "model 'x' is not there: look here")
    query = GenerateQuery("hello", Sampling(max_tokens=1))
    for found in (
        await replica.generate(query),
        await replica.info(),
        await replica.list_adapters(10, None, None, None, 0),
        next(iter([event async for part in replica.stream(query) for event in part])),
    ):
        assert type(found) is ModelUnavailable
        assert "look here" in found.message
    replica.check_health()
    broken.pop()
    await until(lambda: replica._failure == "unexpected RuntimeError, see the log")
    broken.pop()
    await until(lambda: replica._opened is not None)
    assert answered(await replica.generate(query)).text == "base "
    assert (await replica.status())["failure"] is None


async def test_a_model_that_takes_long_does_not_hold_up_the_start(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_START_WAIT_S", 0.05)
    loaded = asyncio.Event()
    loop = asyncio.get_running_loop()

    def opener(settings: Settings) -> OpenedLanguageModel:
        asyncio.run_coroutine_threadsafe(loaded.wait(), loop).result(20)
        return open_plain(settings)

    replica = await world.replica(opener)
    found = await replica.generate(GenerateQuery("hello"))
    assert isinstance(found, Unavailable)
    assert "being opened" in found.message
    loaded.set()
    await until(lambda: replica._opened is not None)
    answered(await replica.generate(GenerateQuery("hello")))


async def test_status_and_info_say_what_is_there(world: World) -> None:
    replica = await world.replica()
    version = await world.activate(replica, "user", "alice", "v1", "one")
    await world.activate(replica, "domain", "films", "v1", "film")
    version = done(await replica.activate_adapter(ActivateAdapter("domain", "films", ()), version)).version
    assert await replica.wait_for(version, 5.0)
    info = await replica.info()
    assert (info.model, info.adapters) == ("plain", ("user/alice",))  # type: ignore[union-attr]
    status = await replica.status()
    assert json.loads(json.dumps(status)) == status
    assert (status["device"], status["version"]) == ("cpu", version)
    assert (status["open"], status["following"], status["active_adapters"]) == (True, True, 1)


async def test_hot_swaps_under_load(world: World) -> None:
    """Every answer comes from one adapter, the one its line of the log names, and none fails."""
    replica = await world.replica()
    words = {digest_of(f"w{n}"): f"w{n}" for n in range(4)}
    for n in range(4):
        put_in_inbox(world.settings, f"w{n}", f"w{n}")
        done(await replica.put_adapter(PutAdapter("user", "alice", f"v{n}", path=f"w{n}"), 0))
    version = done(await replica.activate_adapter(ActivateAdapter("user", "alice", (("v0", 1),)), 0)).version
    swapping = True
    known = version

    async def swap() -> None:
        nonlocal swapping, known
        for n in range(40):
            if n % 4 == 3:
                known = done(await replica.roll_back_adapter("user", "alice", 0)).version
            else:
                arms = ((f"v{n % 3 + 1}", 1.0),)
                known = done(
                    await replica.activate_adapter(ActivateAdapter("user", "alice", arms), 0)
                ).version
        swapping = False

    async def ask() -> int:
        asked = 0
        while swapping:
            carried = known
            query = GenerateQuery("hello", Sampling(max_tokens=3), user_id="alice", min_version=carried)
            found = await replica.generate(query)
            if isinstance(found, NotYet):
                await replica.wait_for(carried, 5.0)
                continue
            answer = answered(found)
            assert answer.started.digest is not None
            assert answer.text == f"{words[answer.started.digest]} " * 3
            assert answer.started.version >= carried
            asked += 1
        return asked

    *asked, _ = await asyncio.gather(*(ask() for _ in range(8)), swap())
    assert sum(asked) > 100


async def test_a_replica_that_stops_closes_what_it_opened_and_what_is_being_opened(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_START_WAIT_S", 0.05)
    go, made = threading.Event(), []

    def opener(settings: Settings) -> OpenedLanguageModel:
        assert go.wait(20)
        made.append(open_plain(settings))
        return made[-1]

    replica = await world.replica(opener)
    await asyncio.wait_for(replica.stop(), 5.0)
    go.set()
    await until(lambda: bool(made) and made[0].backend.closed and made[0].residents.closed)
    other = await world.replica(opener)
    await until(lambda: other._opened is not None)
    await other.stop()
    assert made[1].backend.closed
    assert made[1].residents.closed
    world.replicas.clear()


# -------------------------------------------------------------------------------------------------- context

LINES = tuple(ContextLine("said", "memory", f"m{n}", f"fact {n}") for n in range(9))
KNOWN = ContextCandidates(LINES, 5, ("similarity",))


async def test_a_context_goes_to_the_backend_beside_the_prompt_and_into_the_first_event(world: World) -> None:
    replica = await world.replica()
    backend, _, _ = plain(replica._opened)
    prompt = (Message("system", "be brief"), Message("user", "hello"))
    query = GenerateQuery(
        prompt, Sampling(max_tokens=1), "alice", context=KNOWN, max_context_tokens=14, request_id="r"
    )
    found = answered(await replica.generate(query))
    fitted = found.started.context
    assert fitted is not None
    assert (fitted.text, fitted.missing, fitted.version) == (render(LINES[:2]), ("similarity",), 5)
    assert (fitted.tokens, fitted.counted_by) == (14, "plain")
    (request,) = backend.requests
    assert (request.prompt, request.context, request.owner) == (prompt, fitted.text, "alice")
    events = [event async for part in replica.stream(query) for event in part]
    assert isinstance(events[0], Started) and events[0].context == fitted
    assert await replica.fit_context(KNOWN, 14) == fitted


async def test_without_a_context_there_is_none(world: World) -> None:
    replica = await world.replica()
    backend, _, _ = plain(replica._opened)
    assert answered(await replica.generate(GenerateQuery("hello"))).started.context is None
    nothing = replace(KNOWN, lines=())
    query = GenerateQuery("hello", context=nothing, max_context_tokens=100)
    fitted = answered(await replica.generate(query)).started.context
    assert fitted is not None and (fitted.text, fitted.lines, fitted.tokens) == ("", (), 0)
    assert [request.context for request in backend.requests] == ["", ""]


async def test_a_long_conversation_shrinks_its_context_and_then_does_without(world: World) -> None:
    replica = await world.replica()
    backend, _, _ = plain(replica._opened)
    backend.window = 60
    for words, lines in ((1, 9), (30, 5), (49, 1), (58, 0)):
        prompt = (Message("user", "word " * words),)
        query = GenerateQuery(prompt, Sampling(max_tokens=1), context=KNOWN, max_context_tokens=1_000)
        fitted = answered(await replica.generate(query)).started.context
        assert fitted is not None and len(fitted.lines) == lines, words


async def test_a_context_that_the_model_cannot_read_is_left_out(world: World) -> None:
    replica = await world.replica()
    backend, _, _ = plain(replica._opened)
    submit = backend.submit

    def refuse(request: GenerationRequest, listener: Listener) -> Ticket:
        if request.context or request.prompt == "bad":
            raise InvalidInput("a control token", param="prompt")
        return submit(request, listener)

    backend.submit = refuse  # type: ignore[method-assign,assignment]
    prompt = (Message("user", "hello"),)
    query = GenerateQuery(prompt, Sampling(max_tokens=1), context=KNOWN, max_context_tokens=100)
    fitted = answered(await replica.generate(query)).started.context
    assert fitted is not None
    assert (fitted.text, fitted.lines, fitted.tokens) == ("", (), 0)
    assert fitted.missing == ("similarity", "context")
    assert isinstance(await replica.generate(GenerateQuery("bad", context=KNOWN)), InvalidInput)


async def test_before_the_model_is_open_no_context_is_counted(world: World) -> None:
    def fail(settings: Settings) -> OpenedLanguageModel:
        raise Unavailable("no such model")

    replica = await world.replica(fail)
    assert isinstance(await replica.fit_context(KNOWN, 10), ModelUnavailable)
    query = GenerateQuery("hello", context=KNOWN, max_context_tokens=10)
    assert isinstance(await replica.generate(query), ModelUnavailable)

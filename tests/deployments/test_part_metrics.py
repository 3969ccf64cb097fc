"""What the parts measure: writes, the feed, the cache, generations."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError

import deployments.following as following
from deployments import metrics
from deployments.cache_metrics import measure_cache, observe_slice
from deployments.following import Follower
from deployments.generation_messages import GenerateQuery
from deployments.generation_metrics import count_generation, measure_backend
from deployments.generation_run import GenerationRun
from deployments.graph_state import GraphState
from deployments.key_ring import KeyRing
from deployments.metric_types import Counter, Distribution, Histogram, Labels
from deployments.write_metrics import outcome_of
from graph.errors import Conflict, NotYet, OutcomeUnknown, Overloaded, Unavailable, UnknownUser
from graph.schema import ChangeSet, DeleteUser, PutItem, PutRating, PutUser, WriteRequest, WriteResult
from graph.view import GraphView
from models.embedding_cache.cached_encoder import CachedEncoder
from models.embedding_cache.memory_store import MemoryStore
from models.language_model.protocol import AdapterChoice, Admitted, Finished, Sampling
from models.text_encoder.hashing_encoder import HashingEncoder
from tests.deployments.local_adapters import plain
from tests.deployments.local_language_model import World, answered
from tests.deployments.local_state import make_settings, until, write


def counts(metric: Counter | Histogram) -> dict[Labels, float]:
    if isinstance(metric, Counter):
        return metric.values()
    return {labels: found.count for labels, found in metric.values().items()}


def growth(metric: Counter | Histogram) -> Callable[[], dict[Labels, float]]:
    """What a metric grows by from here on."""
    before = counts(metric)

    def grown() -> dict[Labels, float]:
        found = {labels: total - before.get(labels, 0) for labels, total in counts(metric).items()}
        return {labels: count for labels, count in found.items() if count}

    return grown


# ----------------------------------------------------------------------------------------------------- writes


@pytest.fixture
async def state(tmp_path: Path) -> AsyncIterator[GraphState]:
    state = GraphState(make_settings(tmp_path))
    yield state
    await state.close()


@pytest.mark.parametrize(
    ("outcome", "name"),
    [
        (WriteResult(3, 2), "changed"),
        (WriteResult(3, 0), "unchanged"),
        (WriteResult(3, 2, replayed=True), "replayed"),
        (UnknownUser("u"), "refused"),
        (Conflict("c"), "refused"),
        (Overloaded("o"), "overloaded"),
        (Unavailable("u"), "unavailable"),
        (NotYet("n"), "unavailable"),
        (OutcomeUnknown("?"), "unknown"),
    ],
)
def test_every_outcome_has_a_name(outcome: Any, name: str) -> None:
    assert outcome_of(outcome) == name


async def test_writes_count_by_what_became_of_them(state: GraphState) -> None:
    outcomes, groups, commits = growth(metrics.WRITES), growth(metrics.COMMIT_GROUP), growth(metrics.COMMIT)
    await write(state, PutUser("ada", {}), PutItem("i", "I"), key="k")
    await write(state, PutUser("ada", {}), PutItem("i", "I"), key="k")
    await write(state, PutUser("ada", {}))
    with pytest.raises(UnknownUser):
        await write(state, DeleteUser("nobody"))
    await state.write([WriteRequest((PutRating("ada", "i", 2.0, 1),)), WriteRequest((PutUser("bob", {}),))])
    assert outcomes() == {("changed",): 3, ("replayed",): 1, ("unchanged",): 1, ("refused",): 1}
    assert groups() == commits() == {(): 5}
    state.measure()
    assert metrics.HEAD_VERSION.values()[()] == 3
    assert metrics.NODES.values() == {("user",): 2, ("item",): 1, ("rating",): 1, ("memory",): 0}
    assert metrics.STORE_UP.values() == {(): 1}


async def test_a_store_that_does_not_answer_is_down_until_it_does(
    state: GraphState, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcomes = growth(metrics.WRITES)

    def away(*_: Any, **__: Any) -> Any:
        raise OperationalError("statement", {}, OSError("no server"))

    with monkeypatch.context() as broken:
        broken.setattr(state._store, "commit", away)
        with pytest.raises(Unavailable):
            await write(state, PutUser("ada", {}))
        assert metrics.STORE_UP.values() == {(): 0}
    await write(state, PutUser("ada", {}))
    assert metrics.STORE_UP.values() == {(): 1}
    assert outcomes() == {("unavailable",): 1, ("changed",): 1}


async def test_what_is_refused_at_the_door_counts(tmp_path: Path) -> None:
    state = GraphState(make_settings(tmp_path, graph_state={"max_queued_writes": 1}))
    outcomes = growth(metrics.WRITES)
    await state.write([WriteRequest(()), WriteRequest(())])
    await state.close()
    await state.write([WriteRequest(())])
    assert outcomes() == {("overloaded",): 2, ("unavailable",): 1}


# --------------------------------------------------------------------------------------------------- the feed


class PlainReplica:
    """Applies when it is let."""

    def __init__(self) -> None:
        self.view = GraphView()
        self.free = asyncio.Event()
        self.free.set()

    async def load(self, view: GraphView) -> None:
        self.view = view

    async def apply(self, changes: ChangeSet) -> None:
        await self.free.wait()
        self.view.apply(changes)

    def generations(self) -> tuple[str, ...]:
        return ()

    def failed(self) -> tuple[str, ...]:
        return ()


async def test_a_replica_that_falls_behind_says_since_when(
    state: GraphState, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "_SILENCE_S", 600.0)  # it hears all the time
    replica = PlainReplica()
    follower = Follower("test", replica, state, tmp_path / "snapshots", tail_timeout_s=0.05)
    await follower.start()
    try:
        await until(lambda: follower.seconds_behind == 0)
        replica.free.clear()
        await write(state, PutUser("ada", {}))
        await until(lambda: follower.seconds_behind > 0.05)
        replica.free.set()
        await until(lambda: follower.seconds_behind == 0)
        follower.measure()
        assert metrics.REPLICA_VERSION.values()[()] == follower.version == 1
        assert metrics.FEED_LAG.values()[()] == 0
    finally:
        await follower.stop()


async def test_a_replica_that_hears_nothing_is_behind_though_it_was_level(
    state: GraphState, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "_SILENCE_S", 0.2)
    follower = Follower("test", PlainReplica(), state, tmp_path / "snapshots", tail_timeout_s=0.05)
    await follower.start()
    try:
        await until(lambda: follower.seconds_behind == 0)
        since = time.monotonic()

        async def silent(*_: Any) -> Any:
            await asyncio.Event().wait()

        monkeypatch.setattr(state, "tail", silent)
        await until(lambda: follower.seconds_behind >= 0.2)
        assert follower.seconds_behind <= time.monotonic() - since + 1.0
    finally:
        await follower.stop()


async def test_the_keys_of_an_ingress_say_how_old_they_may_be(state: GraphState, tmp_path: Path) -> None:
    keys = KeyRing(state, tmp_path / "snapshots", 0.2)
    await keys.start()
    try:

        def fresh() -> bool:
            keys.measure()
            return 0 <= metrics.KEYS_LAG.values()[()] < 0.2

        await until(fresh)
    finally:
        await keys.stop()


# -------------------------------------------------------------------------------------------------- the cache


def test_the_tiers_of_the_cache_are_told_apart() -> None:
    queue, inference = growth(metrics.QUEUE), growth(metrics.INFERENCE)
    hits, misses = growth(metrics.CACHE_HITS), growth(metrics.CACHE_MISSES)
    encoded, errors = growth(metrics.TEXTS_ENCODED), growth(metrics.CACHE_ERRORS)
    store = MemoryStore()
    encoder = HashingEncoder(dimensions=16)
    model = encoder.fingerprint.name
    with CachedEncoder(encoder, store, on_slice=observe_slice) as cache:
        cache.encode(["a", "b", "d"])
        cache.encode(["a"])
        cache.flush()
        measure_cache(cache.statistics(of_store=False))
    assert hits() == {(model, "memory"): 1}
    assert misses() == {(model, "memory"): 3, (model, "store"): 3}
    with CachedEncoder(HashingEncoder(dimensions=16), store, on_slice=observe_slice) as again:
        again.encode(["a", "c"])
        for _ in range(2):  # looked at twice, counted once
            measure_cache(again.statistics(of_store=False))
    assert hits() == {(model, "memory"): 1, (model, "store"): 1}
    assert misses() == {(model, "memory"): 5, (model, "store"): 4}
    assert encoded() == {(model,): 4}
    assert errors() == {}
    assert metrics.BREAKER_OPEN.values()[(model,)] == 0
    assert queue() == inference() == {("text_embedder",): 2}


def test_statistics_without_the_store_do_not_ask_it() -> None:
    class Deaf(MemoryStore):
        def statistics(self) -> Any:
            raise AssertionError("asked")

    with CachedEncoder(HashingEncoder(dimensions=16), Deaf()) as cache:
        assert cache.statistics(of_store=False).store is None


# ------------------------------------------------------------------------------------------------- generation


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    world = World(make_settings(tmp_path))
    yield world
    await world.close()


async def test_generations_count_by_whose_adapter_and_how_they_ended(world: World) -> None:
    replica = await world.replica()
    await world.activate(replica, "user", "ada", "v1", "sea")
    found, prompts = growth(metrics.GENERATIONS), growth(metrics.PROMPT_TOKENS)
    first, rest = growth(metrics.FIRST_TOKEN), growth(metrics.OUTPUT_TOKEN)
    queue, inference = growth(metrics.QUEUE), growth(metrics.INFERENCE)
    sampling = Sampling(max_tokens=4)
    answers = [
        answered(await replica.generate(GenerateQuery("hello", sampling, user_id=user)))
        for user in ("ada", "bob", None)
    ]
    backend, _, _ = plain(replica._opened)
    backend.refusal = Overloaded("full")
    await replica.generate(GenerateQuery("hello", sampling))
    ends = {answer.ended.finish_reason for answer in answers}
    assert len(ends) == 1
    (end,) = ends
    assert found() == {("user", end): 1, ("base", end): 2, ("none", "overloaded"): 1}
    assert prompts() == {(): sum(answer.ended.prompt_tokens for answer in answers)}
    assert first() == {(): 3}
    assert rest() == {(): sum(answer.ended.completion_tokens > 1 for answer in answers)}
    assert queue() == inference() == {("language_model",): 3}
    replica.measure()
    assert metrics.ENGINE_ROWS.values()[("busy",)] == 0


def test_times_of_a_generation_are_told_apart() -> None:
    """In line for 0.1 s, the first of eleven tokens after 0.35 s, the last after 1.35 s."""

    def sums() -> tuple[float, ...]:
        own = ("language_model",)
        series = ((metrics.QUEUE, own), (metrics.INFERENCE, own), (metrics.FIRST_TOKEN, ()))
        all_series = (*series, (metrics.OUTPUT_TOKEN, ()))
        return tuple(m.values().get(labels, Distribution((), 0.0)).sum for m, labels in all_series)

    before = sums()
    run = GenerationRun(GenerateQuery("hello"), "m", 60.0, count_generation)
    run.take(Admitted(AdapterChoice(), 7, 3, 100.0))
    run.take(Finished("stop", 7, 11, 350.0, 1_350.0))
    grown = [now - then for now, then in zip(sums(), before, strict=True)]
    assert grown == pytest.approx([0.1, 1.25, 0.35, 0.1])


def test_what_an_engine_says_of_itself() -> None:
    events, tokens = growth(metrics.ADAPTER_EVENTS), growth(metrics.COMPLETION_TOKENS)
    prefixes, memory = growth(metrics.PREFIX_LOOKUPS), growth(metrics.OUT_OF_MEMORY)
    said = {
        "running": 3,
        "queued": 2,
        "max_batch": 16,
        "tokens_generated": 70,
        "out_of_memory": 1,
        "kv_cache_bytes": 4096,
        "prefix_cache": {"bytes": 10, "max_bytes": 20, "hits": 5, "misses": 6, "hit_tokens": 7},
        "adapters": {
            **{"slots": 32, "in_slots": [], "resident": 2, "resident_bytes": 99},
            **{"loads": 4, "failures": 1, "hits": 9, "misses": 5, "evictions": 2},
        },
    }
    measure_backend(said)
    assert metrics.ENGINE_ROWS.values() == {("busy",): 3, ("free",): 13}
    assert metrics.WAITING.values()[("language_model",)] == 2
    assert prefixes() == {("hit",): 5, ("miss",): 6}
    assert events() == {("load",): 4, ("failure",): 1, ("hit",): 9, ("miss",): 5, ("eviction",): 2}
    assert (memory(), metrics.KV_CACHE.values()) == ({(): 1}, {(): 4096})
    assert (metrics.ADAPTERS_RESIDENT.values(), metrics.ADAPTER_MEMORY.values()) == ({(): 2}, {(): 99})
    assert metrics.PREFIX_BYTES.values() == {(): 10}
    assert tokens()[()] > 0


def test_a_backend_elsewhere_says_less() -> None:
    measure_backend({"running": 1, "queued": 0, "max_batch": 4, "tokens_generated": 3})
    assert metrics.ENGINE_ROWS.values() == {("busy",): 1, ("free",): 3}

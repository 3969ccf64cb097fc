"""The cached encoder for tasks of an event loop, alone and together with threads."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Callable

import numpy as np
import pytest

from graph.errors import Overloaded, TextTooLong, Unavailable
from models.embedding_cache.cached_encoder import CachedEncoder
from models.embedding_cache.memory_store import MemoryStore
from models.text_encoder.hashing_encoder import HashingEncoder

from .unreliable_store import UnreliableStore

TEXTS = [f"film number {n} of series {n % 7}" for n in range(40)]
D = 32


async def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        await asyncio.sleep(0.001)


def right(cached: CachedEncoder, texts, prompt=None) -> bytes:
    return cached.through_codec(HashingEncoder(D).encode(texts, prompt)).tobytes()


class Recording(HashingEncoder):
    """Keeps what it was asked for, and lets slices through one at a time once `stepping`."""

    def __init__(self) -> None:
        super().__init__(D)
        self.slices: list[list[str]] = []
        self.steps: threading.Semaphore | None = None

    def encode_counted(self, texts, prompt=None, *, truncate=True):
        self.slices.append(list(texts))
        if self.steps is not None:
            assert self.steps.acquire(timeout=20)
        return super().encode_counted(texts, prompt, truncate=truncate)


@pytest.mark.parametrize("memory_bytes", [0, 1 << 20])
async def test_a_hundred_tasks_and_twenty_threads_encode_the_same_text_once(memory_bytes):
    encoder = HashingEncoder(D)
    encoder.gate.clear()
    async with CachedEncoder(encoder, MemoryStore(), memory_bytes=memory_bytes) as cached:
        tasks = [asyncio.create_task(cached.aencode(["the same text"])) for _ in range(100)]
        threads = [
            asyncio.create_task(asyncio.to_thread(cached.encode, ["the same text"])) for _ in range(20)
        ]
        await until(lambda: encoder.waiting == 1)
        encoder.gate.set()
        answers = await asyncio.gather(*tasks, *threads)
        assert encoder.texts_encoded == 1
        assert {answer.tobytes() for answer in answers} == {right(cached, ["the same text"])}
        found = cached.statistics()
        assert found.lookups == 120 == found.hits + found.coalesced + found.misses and found.misses == 1


async def test_async_and_sync_answers_are_the_same():
    async with CachedEncoder(HashingEncoder(D), MemoryStore()) as cached:
        fresh = await cached.aencode(TEXTS + TEXTS[:3], "prompt ")
        assert fresh.tobytes() == right(cached, TEXTS + TEXTS[:3], "prompt ")
        assert cached.encode(TEXTS + TEXTS[:3], "prompt ").tobytes() == fresh.tobytes()
        counted = await cached.aencode_counted(TEXTS, "prompt ")
        assert counted.tokens.tolist() == [7] * 40
        assert (await cached.aanswer(TEXTS, "prompt ")).hits == 40


async def test_turned_off_it_still_answers_as_the_encoder():
    encoder = HashingEncoder(D, max_tokens=3)
    async with CachedEncoder(encoder, memory_bytes=0) as cached:
        for _ in range(2):
            assert (await cached.aencode(TEXTS)).tobytes() == encoder.encode(TEXTS).tobytes()
        with pytest.raises(TextTooLong, match="text 1 "):
            await cached.aencode_counted(["fits", TEXTS[0]], truncate=False)
        assert encoder.texts_encoded == 162 and cached.statistics().lookups == 0


async def test_what_waits_together_is_encoded_together():
    encoder = Recording()
    encoder.gate.clear()
    async with CachedEncoder(encoder, MemoryStore(), slice_texts=16) as cached:
        first = asyncio.create_task(cached.aencode(["first"]))
        await until(lambda: encoder.waiting == 1)
        rest = [asyncio.create_task(cached.aencode([text])) for text in TEXTS[:10]]
        await until(lambda: cached.statistics().waiting == 10)
        encoder.gate.set()
        answers = await asyncio.gather(first, *rest)
        assert [len(each) for each in encoder.slices] == [1, 10]
        assert [answer.tobytes() for answer in answers[1:]] == [right(cached, [text]) for text in TEXTS[:10]]


async def test_an_urgent_text_overtakes_a_bulk():
    encoder = Recording()
    encoder.steps = threading.Semaphore(0)
    async with CachedEncoder(encoder, MemoryStore(), slice_texts=8) as cached:
        bulk = asyncio.create_task(cached.aencode(TEXTS))
        await until(lambda: len(encoder.slices) == 1)
        query = asyncio.create_task(cached.aencode_counted(["query"], urgent=True))
        # Part of the bulk, still waiting: asked for urgently, it comes forward too.
        waiting = next(text for text in reversed(TEXTS) if text not in encoder.slices[0])
        hastened = asyncio.create_task(cached.aencode_counted([waiting], urgent=True))
        await until(lambda: cached.statistics().waiting >= 33 and len(cached._fetcher.queue._urgent) == 2)
        encoder.steps.release(2)
        await asyncio.gather(query, hastened)
        assert not bulk.done() and set(encoder.slices[1]) == {"query", waiting}
        encoder.steps.release(100)
        assert (await bulk).tobytes() == right(cached, TEXTS)
        assert encoder.texts_encoded == 41 and max(map(len, encoder.slices)) == 8


async def test_a_small_call_does_not_wait_for_a_whole_bulk():
    encoder = Recording()
    encoder.steps = threading.Semaphore(0)
    async with CachedEncoder(encoder, MemoryStore(), slice_texts=8) as cached:
        bulk = asyncio.create_task(cached.aencode(TEXTS))
        await until(lambda: len(encoder.slices) == 1)
        small = asyncio.create_task(cached.aencode(["small"]))
        await until(lambda: cached.statistics().waiting == 33)
        encoder.steps.release(3)
        await small
        assert not bulk.done()
        encoder.steps.release(100)
        await bulk


async def test_too_many_waiting_texts_are_refused_at_once():
    encoder = HashingEncoder(D)
    encoder.gate.clear()
    async with CachedEncoder(encoder, MemoryStore(), max_waiting_texts=10, slice_texts=4) as cached:
        first = asyncio.create_task(cached.aencode(TEXTS[:4]))
        await until(lambda: encoder.waiting == 1)
        many = asyncio.create_task(cached.aencode(TEXTS[4:24]))  # nobody waits: any number will do
        await until(lambda: cached.statistics().waiting == 20)
        with pytest.raises(Overloaded, match="20 texts wait"):
            await cached.aencode(["one more"])
        urgent = asyncio.create_task(cached.aencode_counted(["urgent"], urgent=True))
        joined = asyncio.create_task(cached.aencode([TEXTS[7]]))  # on its way already
        await until(lambda: cached.statistics().waiting == 21)
        encoder.gate.set()
        await asyncio.gather(first, many, urgent, joined)
        assert (await cached.aencode(["one more"])).tobytes() == right(cached, ["one more"])


async def test_a_cancelled_caller_leaves_the_text_to_those_who_wait():
    encoder = HashingEncoder(D)
    encoder.gate.clear()
    store = MemoryStore()
    async with CachedEncoder(encoder, store, slice_texts=4) as cached:
        first = asyncio.create_task(cached.aencode(["first"]))
        await until(lambda: encoder.waiting == 1)
        owner = asyncio.create_task(cached.aencode(TEXTS[:20]))
        await until(lambda: cached.statistics().waiting == 20)
        joined = asyncio.create_task(cached.aencode([TEXTS[3], TEXTS[5], "own"]))
        thread = asyncio.create_task(asyncio.to_thread(cached.encode, [TEXTS[5]]))
        await until(lambda: sum(len(flight.waiters) for flight in set(cached._flights._table.values())) == 5)
        owner.cancel()
        with pytest.raises(asyncio.CancelledError):
            await owner
        assert cached.statistics().waiting == 3, "what nobody wants any more is not encoded"
        encoder.gate.set()
        assert (await joined).tobytes() == right(cached, [TEXTS[3], TEXTS[5], "own"])
        assert (await thread).tobytes() == right(cached, [TEXTS[5]])
        await first
        assert encoder.texts_encoded == 4
        await asyncio.to_thread(cached.flush)
        assert store.namespaces() == {cached.namespace: 4} and len(cached._flights) == 0
        assert (await cached.aencode(TEXTS[:20])).tobytes() == right(cached, TEXTS[:20])


async def test_a_joiner_that_is_cancelled_takes_nothing_away():
    encoder = HashingEncoder(D)
    encoder.gate.clear()
    async with CachedEncoder(encoder) as cached:
        owner = asyncio.create_task(cached.aencode(["a", "b"]))
        await until(lambda: encoder.waiting == 1)
        joiner = asyncio.create_task(cached.aencode(["a"]))
        await until(lambda: sum(len(f.waiters) for f in set(cached._flights._table.values())) == 2)
        joiner.cancel()
        with pytest.raises(asyncio.CancelledError):
            await joiner
        encoder.gate.set()
        assert (await owner).tobytes() == right(cached, ["a", "b"])


async def test_what_was_cancelled_while_the_store_was_read_does_not_survive_an_invalidation():
    store = UnreliableStore(time.time)
    async with CachedEncoder(HashingEncoder(D), store) as before:
        await before.aencode(["a"])
    store.read_gate.clear()
    async with CachedEncoder(HashingEncoder(D), store) as cached:
        call = asyncio.create_task(cached.aencode(["a"]))
        await until(lambda: store.reading == 1)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert await cached.ainvalidate() == 1
        store.read_gate.set()
        await until(lambda: store.reading == 0)
        assert (await cached.aanswer(["a"])).hits == 0


async def test_a_failed_encode_fails_all_who_wait_and_the_next_call_tries_again():
    encoder, store = HashingEncoder(D), MemoryStore()
    encoder.gate.clear()
    encoder.fail(Unavailable("the model is gone"))
    async with CachedEncoder(encoder, store) as cached:
        tasks = [asyncio.create_task(cached.aencode(["a"])) for _ in range(10)]
        await until(lambda: encoder.waiting == 1)
        encoder.gate.set()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(each, Unavailable) for each in outcomes)
        encoder.recover()
        assert (await cached.aencode(["a"])).tobytes() == right(cached, ["a"])
        await asyncio.to_thread(cached.flush)
        assert store.namespaces() == {cached.namespace: 1}


async def test_a_stalled_store_does_not_stall_the_loop():
    store = UnreliableStore(time.time)
    async with CachedEncoder(HashingEncoder(D), store) as cached:
        await cached.aencode(["in memory"])
        store.read_gate.clear()
        stalled = asyncio.create_task(cached.aencode(["stalled"]))
        await until(lambda: store.reading == 1)
        assert (await cached.aencode(["in memory"])).tobytes() == right(cached, ["in memory"])
        assert not stalled.done()
        store.read_gate.set()
        await stalled


async def test_the_answer_does_not_wait_for_the_write():
    store = UnreliableStore(time.time)
    store.gate.clear()
    async with CachedEncoder(HashingEncoder(D), store) as cached:
        await cached.aencode(TEXTS)
        await until(lambda: store.writing == 1)
        assert store.namespaces() == {}
        store.gate.set()
    assert store.namespaces() == {cached.namespace: 40}, "closing writes what waits"


def test_several_event_loops_share_one_encoder():
    encoder = HashingEncoder(D)
    encoder.gate.clear()
    with CachedEncoder(encoder, MemoryStore()) as cached:
        answers: list[bytes] = []

        def loop() -> None:
            answers.append(asyncio.run(cached.aencode(TEXTS)).tobytes())

        threads = [threading.Thread(target=loop) for _ in range(4)]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + 10
        while not encoder.waiting and time.monotonic() < deadline:
            time.sleep(0.001)
        encoder.gate.set()
        for thread in threads:
            thread.join(20)
        assert answers == [right(cached, TEXTS)] * 4 and encoder.texts_encoded == 40


@pytest.mark.parametrize("seed", range(6))
async def test_a_crowd_with_cancellations_gets_right_answers(seed):
    chance = random.Random(seed)
    store = UnreliableStore(time.time, lambda: chance.random() < (0.0, 0.2)[seed % 2])
    encoder = HashingEncoder(D)
    with CachedEncoder(HashingEncoder(D)) as oracle:
        vectors = dict(zip(TEXTS, oracle.encode(TEXTS), strict=True))
    async with CachedEncoder(
        encoder, store, memory_bytes=(0, 3000, 1 << 20)[seed % 3], slice_texts=3
    ) as cached:

        async def call() -> str:
            texts = chance.choices(TEXTS, k=chance.randrange(1, 12))
            await asyncio.sleep(0)
            found = await cached.aencode_counted(texts, urgent=chance.random() < 0.3)
            expected = np.array([vectors[text] for text in texts])
            return "right" if found.vectors.tobytes() == expected.tobytes() else "wrong"

        for _ in range(8):
            tasks = [asyncio.create_task(call()) for _ in range(30)]
            for _ in range(chance.randrange(6)):
                await asyncio.sleep(0)
            cancelled = chance.sample(tasks, 8)
            for task in cancelled:
                task.cancel()
            if chance.random() < 0.5:
                await cached.ainvalidate(TEXTS[:5]) if not seed % 2 else cached.statistics()
            async with asyncio.timeout(20):
                outcomes = await asyncio.gather(*tasks, return_exceptions=True)
            assert set(outcomes) - {"right"} <= {
                each for each in outcomes if isinstance(each, asyncio.CancelledError)
            }
            assert outcomes.count("right") >= 22
        await asyncio.to_thread(cached.flush)
        await until(lambda: len(cached._flights) == 0 and cached.statistics().waiting == 0)


def test_a_caller_whose_loop_was_closed_harms_nobody():
    encoder, store = HashingEncoder(D), MemoryStore()
    encoder.gate.clear()
    with CachedEncoder(encoder, store) as cached:
        loop = asyncio.new_event_loop()
        loop.set_exception_handler(lambda *_: None)  # which is told of the task that nobody awaits
        task = loop.create_task(cached.aencode(TEXTS))
        loop.run_until_complete(until(lambda: encoder.waiting == 1))
        loop.close()
        encoder.gate.set()
        assert cached.encode(TEXTS).tobytes() == right(cached, TEXTS)
        cached.flush()
        assert store.namespaces() == {cached.namespace: 40} and len(cached._flights) == 0
        assert not task.done()
        task.get_coro().close()

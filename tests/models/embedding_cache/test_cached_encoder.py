"""The cached encoder for callers on threads: always the encoder's answer, from wherever."""

from __future__ import annotations

import json
import logging
import random
import threading
import time
from collections.abc import Callable

import numpy as np
import pytest

from graph.errors import InvalidInput, TextTooLong, Unavailable
from models.embedding_cache.cached_encoder import CachedEncoder
from models.embedding_cache.memory_store import MemoryStore
from models.embedding_cache.store import StoreUnavailable
from models.text_encoder.hashing_encoder import HashingEncoder

from .unreliable_store import UnreliableStore

TEXTS = [f"film number {n} of series {n % 7}" for n in range(40)]
D = 32


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def wait_until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.001)


def expected(cached: CachedEncoder, texts, prompt=None) -> np.ndarray:
    return cached.through_codec(HashingEncoder(D).encode(texts, prompt))


def same(one: np.ndarray, other: np.ndarray) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()


def run_all(calls: list[Callable[[], None]]) -> None:
    threads = [threading.Thread(target=call) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()


@pytest.mark.parametrize("memory_bytes", [0, 1 << 20])
@pytest.mark.parametrize("with_store", [False, True])
def test_fresh_partly_cached_and_cached_answers_are_identical(memory_bytes, with_store):
    encoder = HashingEncoder(D)
    store = MemoryStore() if with_store else None
    with CachedEncoder(encoder, store, memory_bytes=memory_bytes) as cached:
        fresh = cached.encode(TEXTS[:20])
        cached.flush()
        partly = cached.encode(list(reversed(TEXTS)))
        cached.flush()
        whole = cached.encode(TEXTS)
        kept = with_store or memory_bytes
        assert encoder.texts_encoded == (40 if kept else 100)
        assert same(fresh, whole[:20]) and same(partly[::-1].copy(), whole)
        if kept:
            assert same(whole, expected(cached, TEXTS))
        else:
            assert same(whole, HashingEncoder(D).encode(TEXTS))
            assert not same(whole, cached.through_codec(whole))


def test_turned_off_it_is_the_encoder():
    encoder, store = HashingEncoder(D, max_tokens=3), MemoryStore()
    with CachedEncoder(encoder, store, enabled=False) as cached:
        assert not cached.is_enabled()
        for _ in range(2):
            assert same(cached.encode(TEXTS[:5] * 2), encoder.encode(TEXTS[:5] * 2))
        assert encoder.texts_encoded == 40 and store.namespaces() == {}
        with pytest.raises(TextTooLong, match="text 1 "):
            cached.encode_counted(["short", TEXTS[0]], truncate=False)
        assert cached.fingerprint == encoder.fingerprint


def test_what_another_process_wrote_is_a_hit():
    store = MemoryStore()
    with CachedEncoder(HashingEncoder(D), store) as cached:
        first = cached.encode_counted(TEXTS)
    encoder = HashingEncoder(D)
    with CachedEncoder(encoder, store) as cached:
        again = cached.answer(TEXTS)
    assert encoder.calls == 0 and again.hits == len(TEXTS)
    assert same(first.vectors, again.vectors) and (first.tokens == again.tokens).all()
    assert (again.tokens == 6).all()


def test_answers_belong_to_the_caller():
    with CachedEncoder(HashingEncoder(D), MemoryStore()) as cached:
        for _ in range(3):
            vectors, tokens, _ = cached.answer(TEXTS)
            vectors[:] = tokens[:] = 7
            cached.flush()
        assert same(cached.encode(TEXTS), expected(cached, TEXTS))


def test_one_read_and_one_write_for_a_call_whatever_its_size():
    store = UnreliableStore(time.time)
    with CachedEncoder(HashingEncoder(D), store, memory_bytes=0, slice_texts=100) as cached:
        cached.encode(TEXTS + TEXTS)
        cached.flush()
        assert (store.gets, store.puts) == ([40], [40])
        cached.encode([*TEXTS[:30], "new"])
        cached.flush()
        assert (store.gets, store.puts) == ([40, 31], [40, 1])
        cached.encode([])
        assert store.gets == [40, 31]


def test_nothing_in_nothing_out():
    for encoder in (CachedEncoder(HashingEncoder(D)), CachedEncoder(HashingEncoder(D), memory_bytes=0)):
        with encoder:
            vectors, tokens = encoder.encode_counted([])
            assert vectors.shape == (0, D) and tokens.shape == (0,)


def test_repeated_texts_are_encoded_once_and_counted():
    encoder = HashingEncoder(D)
    with CachedEncoder(encoder, MemoryStore()) as cached:
        batch = ["a", "b", "a", "c", "a"]
        assert same(cached.encode(batch), expected(cached, batch))
        assert encoder.texts_encoded == 3
        found = cached.statistics()
        assert (found.lookups, found.misses, found.coalesced, found.hits) == (5, 3, 2, 0)
        cached.encode(batch)
        assert cached.statistics().memory_hits == 5


def test_prompts_and_parameters_do_not_mix():
    encoder, store = HashingEncoder(D, prompt="about "), MemoryStore()
    with CachedEncoder(encoder, store) as cached, CachedEncoder(encoder, store, side="query") as other:
        own = cached.encode(TEXTS[:5])
        assert same(cached.encode(TEXTS[:5], "about "), own) and encoder.texts_encoded == 5
        none = cached.encode(TEXTS[:5], "")
        assert encoder.texts_encoded == 10 and not same(none, own)
        cached.flush()
        other.encode(TEXTS[:5])
        assert encoder.texts_encoded == 15
        other.flush()
        assert store.namespaces() == {cached.namespace: 15}


def test_another_model_has_its_own_entries():
    store = MemoryStore()
    with (
        CachedEncoder(HashingEncoder(D), store) as one,
        CachedEncoder(HashingEncoder(D, "b"), store) as other,
    ):
        one.encode(TEXTS)
        one.flush()
        assert other.answer(TEXTS).hits == 0


def test_cached_texts_beyond_the_window_are_refused_too():
    encoder = HashingEncoder(D, max_tokens=4)
    with CachedEncoder(encoder, MemoryStore()) as cached:
        for _ in range(2):
            with pytest.raises(TextTooLong, match="text 1 has 6 tokens"):
                cached.encode_counted(["fits", TEXTS[0]], truncate=False)
        assert encoder.texts_encoded == 2
        assert cached.encode_counted(["fits", TEXTS[0]]).tokens.tolist() == [1, 6]


@pytest.mark.parametrize("bad", [["fine", "\ud800"], "one string", ["fine", 3], ["fine", ("a", "b")]])
def test_what_is_no_text_is_refused_and_nothing_is_asked(bad):
    encoder = HashingEncoder(D)
    with CachedEncoder(encoder, MemoryStore()) as cached:
        cached.encode(["fine"])
        with pytest.raises(InvalidInput, match=r"text 1 |one string"):
            cached.encode(bad)
        with pytest.raises(InvalidInput, match="prompt"):
            cached.encode(["new"], "\ud800")
        assert encoder.calls == 1 and cached.encode(["new"]).shape == (1, D)


@pytest.mark.parametrize(
    ("memory_bytes", "store"), [(1 << 20, None), (0, MemoryStore), (1 << 20, MemoryStore)]
)
def test_threads_that_ask_for_the_same_text_encode_it_once(memory_bytes, store):
    encoder = HashingEncoder(D)
    encoder.gate.clear()
    answers: list[np.ndarray] = []
    with CachedEncoder(encoder, store and store(), memory_bytes=memory_bytes) as cached:
        threads = [
            threading.Thread(target=lambda: answers.append(cached.encode(["same", "text"])))
            for _ in range(20)
        ]
        for thread in threads:
            thread.start()
        wait_until(lambda: encoder.waiting == 1)
        encoder.gate.set()
        for thread in threads:
            thread.join(20)
        assert encoder.texts_encoded == 2 and len(answers) == 20
        assert all(same(answer, expected(cached, ["same", "text"])) for answer in answers)
        found = cached.statistics()
        assert found.misses == 2 and found.lookups == 40 == found.misses + found.coalesced + found.hits


def test_a_failed_encode_fails_everybody_who_waits_and_is_not_kept():
    encoder, store = HashingEncoder(D), MemoryStore()
    encoder.gate.clear()
    encoder.fail(Unavailable("the model is gone"))
    errors: list[BaseException] = []
    with CachedEncoder(encoder, store) as cached:

        def call() -> None:
            try:
                cached.encode(["a", "b"])
            except Unavailable as error:
                errors.append(error)

        threads = [threading.Thread(target=call) for _ in range(10)]
        for thread in threads:
            thread.start()
        wait_until(lambda: encoder.waiting == 1 and sum(map(len, _waiters(cached))) == 10)
        encoder.gate.set()
        for thread in threads:
            thread.join(20)
        assert [str(error) for error in errors] == ["the model is gone"] * 10
        assert len(set(map(id, errors))) == 10, "each has a traceback of its own"
        assert encoder.calls == 1
        cached.flush()
        assert store.namespaces() == {} and cached.statistics().memory_entries == 0
        encoder.recover()
        assert same(cached.encode(["a", "b"]), expected(cached, ["a", "b"]))


def _waiters(cached: CachedEncoder) -> list[list[object]]:
    return [flight.waiters for flight in set(cached._flights._table.values())]


def test_a_text_the_model_refuses_fails_its_own_callers_alone():
    class Picky(HashingEncoder):
        def encode_counted(self, texts, prompt=None, *, truncate=True):
            if "bad" in texts:
                raise InvalidInput("bad is no text for this model")
            return super().encode_counted(texts, prompt, truncate=truncate)

    encoder = Picky(D)
    outcome: dict[str, object] = {}
    with CachedEncoder(encoder, MemoryStore()) as cached:

        def call(name: str, texts: list[str]) -> None:
            try:
                outcome[name] = cached.encode(texts)
            except InvalidInput as error:
                outcome[name] = str(error)

        encoder.gate.clear()
        first = threading.Thread(target=call, args=("first", ["holds the worker"]))
        first.start()
        wait_until(lambda: encoder.waiting == 1)
        rest = [
            threading.Thread(target=call, args=("bad", ["x", "bad"])),
            threading.Thread(target=call, args=("good", ["x", "y"])),
        ]
        for number, thread in enumerate(rest):
            thread.start()
            wait_until(lambda number=number: cached.statistics().waiting == 2 + number)
        encoder.gate.set()
        for thread in (first, *rest):
            thread.join(20)
        assert outcome["bad"] == "bad is no text for this model"
        assert same(outcome["good"], expected(cached, ["x", "y"]))


def test_an_encoder_that_answers_another_shape_is_an_error():
    class Wrong(HashingEncoder):
        def encode_counted(self, texts, prompt=None, *, truncate=True):
            vectors, tokens = super().encode_counted(texts, prompt, truncate=truncate)
            return type(super().encode_counted([]))(vectors[:, :-1].copy(), tokens)

    with CachedEncoder(Wrong(D), MemoryStore()) as cached, pytest.raises(Unavailable, match="dimensions"):
        cached.encode(["a"])


@pytest.mark.parametrize("bad", [np.inf, np.nan, 70000.0])
def test_a_vector_no_entry_holds_is_answered_and_not_kept(bad):
    class Huge(HashingEncoder):
        def encode_counted(self, texts, prompt=None, *, truncate=True):
            found = super().encode_counted(texts, prompt, truncate=truncate)
            for row, text in enumerate(texts):
                if text == "huge":
                    found.vectors[row, 3] = bad
            return found

    encoder, store = Huge(D), MemoryStore()
    with CachedEncoder(encoder, store) as cached:
        batch = ["a", "huge", "b", "huge"]
        for _ in range(2):
            vectors = cached.encode(batch)
            assert same(vectors[[1, 3]], encoder.encode(["huge", "huge"]))
            assert same(vectors[[0, 2]], expected(cached, ["a", "b"]))
            cached.flush()
        assert store.namespaces() == {cached.namespace: 2}
        assert cached.statistics().unstorable == 2


def test_a_dead_store_is_skipped_counted_and_found_again(caplog):
    clock, dead = Clock(), True
    store = UnreliableStore(clock, lambda: dead)
    encoder = HashingEncoder(D)
    caplog.set_level(logging.INFO, "weft.embedding_cache")
    with CachedEncoder(encoder, store, memory_bytes=0, clock=clock) as cached:
        for _ in range(10):
            assert same(cached.encode(TEXTS), expected(cached, TEXTS))
            cached.flush()
        found = cached.statistics()
        assert found.store_errors == 3 and found.breaker == "open" and found.store is None
        assert found.store_skipped > 0 and found.writes_dropped == 400 and found.misses == 400
        assert len(store.gets) + len(store.puts) == 3
        dead = False
        clock.now += 1
        cached.encode(TEXTS)
        cached.flush()
        assert cached.answer(TEXTS).hits == 40
        assert cached.statistics().breaker == "closed"
    levels = [record.levelname for record in caplog.records if "texts" not in record.getMessage()]
    assert levels == ["WARNING", "INFO"]


def test_a_fault_in_a_stores_code_reaches_the_caller_and_hangs_nobody():
    class Faulty(MemoryStore):
        def get_many(self, namespace, keys):
            raise ZeroDivisionError("a fault")

    with CachedEncoder(HashingEncoder(D), Faulty()) as cached, pytest.raises(ZeroDivisionError):
        cached.encode(["a"])


def test_writes_that_find_the_queue_full_are_counted(monkeypatch):
    monkeypatch.setattr("models.embedding_cache.cached_encoder._MAX_WAITING_ENTRIES", 10)
    store = UnreliableStore(time.time)
    store.gate.clear()
    with CachedEncoder(HashingEncoder(D), store, slice_texts=5) as cached:
        assert same(cached.encode(TEXTS), expected(cached, TEXTS))
        assert cached.statistics().writes_dropped == 30
        store.gate.set()
        cached.flush()
        assert store.namespaces() == {cached.namespace: 10}


def test_while_a_write_waits_its_texts_are_not_encoded_again():
    store, encoder = UnreliableStore(time.time), HashingEncoder(D)
    store.gate.clear()
    with CachedEncoder(encoder, store, memory_bytes=0) as cached:
        first = cached.encode_counted(["a"])
        first.vectors[:] = first.tokens[:] = 7
        wait_until(lambda: store.writing == 1)
        vectors, tokens = cached.encode_counted(["a"])
        assert same(vectors, expected(cached, ["a"])) and tokens.tolist() == [1]
        assert encoder.texts_encoded == 1
        store.gate.set()
        cached.flush()
        assert len(cached._flights) == 0 and cached.answer(["a"]).hits == 1


def test_entries_expire_in_both_tiers():
    clock, encoder = Clock(), HashingEncoder(D)
    with CachedEncoder(encoder, MemoryStore(clock), ttl_s=60.0, clock=clock) as cached:
        cached.encode(TEXTS)
        cached.flush()
        clock.now += 59
        cached.encode(TEXTS)
        assert encoder.texts_encoded == 40
        clock.now += 2
        cached.encode(TEXTS)
        assert encoder.texts_encoded == 80
    with pytest.raises(InvalidInput, match="ttl_s"):
        CachedEncoder(encoder, ttl_s=0)


def test_memory_does_not_prolong_what_the_store_had():
    clock, encoder, day = Clock(), HashingEncoder(D), 24 * 3600.0
    store = MemoryStore(clock)
    with CachedEncoder(encoder, store, ttl_s=day, clock=clock) as cached:
        cached.encode(["a"])
    clock.now += day - 10
    with CachedEncoder(encoder, store, ttl_s=day, clock=clock) as cached:
        cached.encode(["a"])
        assert encoder.texts_encoded == 1
        clock.now += 3600
        cached.encode(["a"])
        assert encoder.texts_encoded == 2


def test_invalidating_drops_from_both_tiers_and_says_how_many():
    store, encoder = MemoryStore(), HashingEncoder(D)
    with CachedEncoder(encoder, store) as cached, CachedEncoder(HashingEncoder(D, "b"), store) as other:
        other.encode(["a"])
        other.flush()
        cached.encode(TEXTS)
        cached.encode(TEXTS[:2], "prompt ")
        cached.flush()
        assert cached.invalidate([TEXTS[0], TEXTS[0], TEXTS[1], "never seen"]) == 2
        assert cached.answer(TEXTS[:3]).hits == 1
        assert cached.answer(TEXTS[:2], "prompt ").hits == 2
        assert cached.invalidate(TEXTS[:2], "prompt ") == 2
        cached.flush()
        assert cached.invalidate() == 40
        assert cached.answer(TEXTS).hits == 0 and other.answer(["a"]).hits == 1
        with pytest.raises(InvalidInput, match="prompt"):
            cached.invalidate(prompt="prompt ")
    with CachedEncoder(encoder) as cached:
        cached.encode(TEXTS)
        assert cached.invalidate() == 40


@pytest.mark.parametrize("what", [None, ["a"]])
@pytest.mark.parametrize("at", ["encoder", "write", "read"])
def test_what_flies_while_it_is_invalidated_does_not_come_back(what, at):
    store, encoder = UnreliableStore(time.time), HashingEncoder(D)
    with CachedEncoder(encoder, store) as cached:
        if at == "read":
            with CachedEncoder(HashingEncoder(D), store) as before:
                before.encode(["a"])
        gate = {"encoder": encoder.gate, "write": store.gate, "read": store.read_gate}[at]
        gate.clear()
        answers: list[np.ndarray] = []
        call = threading.Thread(target=lambda: answers.append(cached.encode(["a"])))
        call.start()
        wait_until(lambda: encoder.waiting + store.writing + store.reading == 1)
        dropped: list[int] = []
        invalidation = threading.Thread(target=lambda: dropped.append(cached.invalidate(what)))
        invalidation.start()
        wait_until(lambda: len(cached._flights) == 0)
        gate.set()
        invalidation.join(20)
        call.join(20)
        cached.flush()
        assert same(answers[0], expected(cached, ["a"]))
        assert store.namespaces() == {} and cached.statistics().memory_entries == 0
        assert cached.answer(["a"]).hits == 0


def test_an_invalidation_the_store_did_not_hear_is_an_error():
    store = UnreliableStore(time.time, lambda: True)
    with CachedEncoder(HashingEncoder(D), store) as cached, pytest.raises(StoreUnavailable):
        cached.invalidate()


def test_statistics_are_plain_json_and_add_up():
    store = MemoryStore()
    with CachedEncoder(HashingEncoder(D), store, memory_bytes=100_000, ttl_s=5.0) as cached:
        assert cached.statistics().hit_rate == 0.0
        cached.encode(TEXTS[:20])
        cached.encode(TEXTS)
        cached.flush()
        plain = json.loads(json.dumps(cached.statistics().as_dict()))
        assert plain["hit_rate"] == 20 / 60 and plain["hits"] == plain["memory_hits"] == 20
        assert plain["encoded"] == plain["misses"] == plain["memory_entries"] == 40
        assert plain["store"]["entries"] == 40 and plain["store"]["kind"] == "memory"
        assert plain["namespace"] == cached.namespace and plain["enabled"] is True and plain["ttl_s"] == 5.0
        assert 0 < plain["memory_bytes"] <= plain["memory_max_bytes"] == 100_000


def test_one_line_per_batch(caplog):
    caplog.set_level(logging.INFO, "weft.embedding_cache")
    with CachedEncoder(HashingEncoder(D)) as cached:
        cached.encode(TEXTS[:3])
        cached.encode(TEXTS[:4])
    assert [record.getMessage() for record in caplog.records] == [
        f"{cached.namespace}: 3 texts, 0 hits, 3 misses (0.0% hits)",
        f"{cached.namespace}: 4 texts, 3 hits, 1 misses (75.0% hits)",
    ]


def test_closed_it_refuses():
    cached = CachedEncoder(HashingEncoder(D), MemoryStore())
    cached.encode(["a"])
    cached.close()
    cached.close()
    with pytest.raises(Unavailable, match="closed"):
        cached.encode(["a"])


def test_closing_fails_what_waits_and_finishes_what_runs():
    encoder = HashingEncoder(D)
    encoder.gate.clear()
    cached = CachedEncoder(encoder, slice_texts=1)
    outcomes: list[str] = []

    def call(text: str) -> None:
        try:
            cached.encode([text])
            outcomes.append(f"{text} answered")
        except Unavailable:
            outcomes.append(f"{text} refused")

    threads = [threading.Thread(target=call, args=(text,)) for text in ("first", "second")]
    threads[0].start()
    wait_until(lambda: encoder.waiting == 1)
    threads[1].start()
    wait_until(lambda: cached.statistics().waiting == 1)
    closing = threading.Thread(target=cached.close)
    closing.start()
    wait_until(lambda: "second refused" in outcomes)
    encoder.gate.set()
    for thread in (*threads, closing):
        thread.join(20)
    assert sorted(outcomes) == ["first answered", "second refused"]


@pytest.mark.parametrize("seed", range(12))
def test_whatever_happens_to_the_store_answers_are_right(seed):
    """Failures, damage, swapped entries, expiry and eviction at random; some from several threads."""
    chance = random.Random(seed)
    clock = Clock()
    store = UnreliableStore(clock)
    if seed % 3:
        store.failing = lambda: chance.random() < 0.3
    encoder = HashingEncoder(D)
    memory_bytes = [0, 2_000, 1 << 20][seed % 3 if seed < 6 else chance.randrange(3)]
    oracle = CachedEncoder(HashingEncoder(D))
    right = dict(zip(TEXTS, expected(oracle, TEXTS), strict=True))
    oracle.close()

    def damage(held: dict[bytes, bytes]) -> dict[bytes, bytes]:
        keys = list(held)
        for key in chance.sample(keys, min(len(keys), 6)):
            kind = chance.randrange(4)
            if kind == 0:
                held[key] = held[key][: chance.randrange(max(1, len(held[key])))]
            elif kind == 1:
                changed = bytearray(held[key])
                if changed:
                    changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
                held[key] = bytes(changed)
            elif kind == 2:
                held[key] = held[chance.choice(keys)]
            else:
                held[key] = chance.randbytes(chance.randrange(100))
        return held

    with CachedEncoder(
        encoder, store, memory_bytes=memory_bytes, ttl_s=30.0, clock=clock, slice_texts=7
    ) as cached:
        asked = 0
        for _ in range(60):
            texts = chance.choices(TEXTS, k=chance.randrange(1, 30))
            callers = chance.choice([1, 1, 3])
            wrong: list[object] = []

            def call(texts=texts, wrong=wrong) -> None:
                vectors, tokens = cached.encode_counted(texts)
                if not same(vectors, np.array([right[text] for text in texts])) or not (tokens == 6).all():
                    wrong.append(texts)

            run_all([call] * callers)
            assert not wrong
            asked += callers * len(texts)
            happens = chance.randrange(8)
            if happens == 0:
                store.change(cached.namespace, damage)
            elif happens == 1:
                clock.now += chance.choice([1.0, 20.0, 31.0])
            elif happens == 2:
                cached.flush()
        cached.flush()
        found = cached.statistics()
        assert found.lookups == asked == found.hits + found.coalesced + found.misses
        assert found.encoded == encoder.texts_encoded == found.misses
        assert found.memory_bytes <= memory_bytes and len(cached._flights) == 0
        if not seed % 3:
            assert found.store_errors == 0


def test_damaged_entries_are_counted_encoded_again_and_replaced():
    encoder, store = HashingEncoder(D), UnreliableStore(time.time)
    with CachedEncoder(encoder, store, memory_bytes=0) as cached:
        cached.encode(TEXTS)
        cached.flush()

        def swap_and_cut(held: dict[bytes, bytes]) -> dict[bytes, bytes]:
            one, other, short, foreign, *_ = held
            held[one], held[other] = held[other], held[one]
            return held | {short: held[short][:-1], foreign: b"\x80\x04not ours"}

        store.change(cached.namespace, swap_and_cut)
        assert same(cached.encode(TEXTS), expected(cached, TEXTS))
        cached.flush()
        found = cached.statistics()
        assert found.damaged == 4 and encoder.texts_encoded == 44
        assert cached.answer(TEXTS).hits == 40 and cached.statistics().damaged == 4


def test_a_text_that_lands_between_looking_and_setting_out_is_not_encoded_again(monkeypatch):
    encoder = HashingEncoder(D)
    with CachedEncoder(encoder) as cached:
        look = cached._memory.get_many

        def slow_look(names):
            found = look(names)
            monkeypatch.undo()
            other = threading.Thread(target=cached.encode, args=(["a", "b"],))
            other.start()
            other.join(20)
            return found

        monkeypatch.setattr(cached._memory, "get_many", slow_look)
        batch = ["new", "a", "b", "a"]
        vectors, tokens, hits = cached.answer(batch)
        assert same(vectors, expected(cached, batch)) and tokens.tolist() == [1] * 4
        assert hits == 3 and encoder.texts_encoded == 3

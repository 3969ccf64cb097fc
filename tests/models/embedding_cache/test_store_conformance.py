"""What every embedding store does, against dictionaries as the oracle."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from models.embedding_cache.moving import copy_entries
from models.embedding_cache.store import EmbeddingStore, Entry
from tests.conftest import missing

from .store_places import KINDS, Place, a_place, flush

KEYS = (
    bytes(range(32)),
    bytes(range(224, 256)),
    bytes(32),
    b"\xff" * 32,
    b"*" * 32,
    b"{}" * 16,
    b"\r\n" * 16,
    b":f}:" * 8,
)
NAMESPACES = ("model", "model-a", "model-a:", "m*del[?]\\^-]", "{model}", "}", "модель/100% \U0001f600", "")
HOUR = 3600.0

keys = st.sampled_from(KEYS)
namespaces = st.sampled_from(NAMESPACES)
values = st.binary(max_size=40) | st.sampled_from([b"", bytes(range(256)) * 3])
pairs = st.lists(st.tuples(keys, values), max_size=6)


@pytest.fixture(scope="module", params=KINDS)
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with a_place(request.param, tmp_path_factory.mktemp("store"), missing) as found:
        yield found


@pytest.fixture
def store(place: Place) -> Iterator[EmbeddingStore]:
    with place.opened() as found:
        found.clear()
        yield found


class StoreMachine(RuleBasedStateMachine):
    place: Place

    @initialize()
    def start(self) -> None:
        self.store = self.place.open()
        self.store.clear()
        self.oracle: dict[tuple[str, bytes], Entry] = {}

    def live(self) -> dict[tuple[str, bytes], Entry]:
        now = self.place.clock.now
        return {at: e for at, e in self.oracle.items() if e.expires_at is None or e.expires_at > now}

    @rule(namespace=namespaces, written=pairs, ttl_s=st.sampled_from([None, HOUR, 50 * HOUR]))
    def put(self, namespace: str, written: list[tuple[bytes, bytes]], ttl_s: float | None) -> None:
        self.store.put_many(namespace, [key for key, _ in written], [value for _, value in written], ttl_s)
        now = self.place.clock.now
        for key, value in written:
            expires_at = None if ttl_s is None else now + ttl_s
            self.oracle[namespace, key] = Entry(namespace, key, value, now, expires_at)

    @rule(namespace=namespaces, asked=st.lists(keys, max_size=9))
    def get(self, namespace: str, asked: list[bytes]) -> None:
        live = self.live()
        expected = [live[namespace, key].value if (namespace, key) in live else None for key in asked]
        assert self.store.get_many(namespace, asked) == expected

    @rule(namespace=namespaces, dropped=st.lists(keys, max_size=5))
    def delete(self, namespace: str, dropped: list[bytes]) -> None:
        live = self.live()
        assert self.store.delete(namespace, dropped) == len({(namespace, key) for key in dropped} & set(live))
        for key in dropped:
            self.oracle.pop((namespace, key), None)

    @rule(namespace=st.none() | namespaces)
    def clear(self, namespace: str | None) -> None:
        gone = [at for at in self.live() if namespace in (None, at[0])]
        assert self.store.clear(namespace) == len(gone)
        self.oracle = {at: e for at, e in self.oracle.items() if namespace not in (None, at[0])}

    @rule(hours=st.sampled_from([0.5, 2.0, 30.0]))
    def time_passes(self, hours: float) -> None:
        if self.place.own_time or not any(e.expires_at is not None for e in self.oracle.values()):
            self.place.clock.now += hours * HOUR

    @rule(older_than_s=st.sampled_from([0.25 * HOUR, HOUR, 29 * HOUR]))
    def prune(self, older_than_s: float) -> None:
        live, horizon = self.live(), self.place.clock.now - older_than_s
        kept = {at: e for at, e in live.items() if e.written_at is None or e.written_at >= horizon}
        # Expired ones count where the store still had them.
        assert len(live) - len(kept) <= self.store.prune(older_than_s) <= len(self.oracle) - len(kept)
        self.oracle = kept

    @rule(
        namespace=namespaces,
        moved=pairs,
        age_s=st.sampled_from([None, 0.0, 10 * HOUR]),
        left_s=st.sampled_from([None, -1.0, HOUR]),
    )
    def put_entries(
        self, namespace: str, moved: list[tuple[bytes, bytes]], age_s: float | None, left_s: float | None
    ) -> None:
        now = self.place.clock.now
        written_at = None if age_s is None else now - age_s
        expires_at = None if left_s is None else now + left_s
        entries = [Entry(namespace, key, value, written_at, expires_at) for key, value in moved]
        dead = left_s is not None and left_s < 0
        assert self.store.put_entries(iter(entries)) == (0 if dead else len(entries))
        for entry in [] if dead else entries:
            kept = entry._replace(written_at=now if written_at is None else written_at)
            self.oracle[namespace, entry.key] = kept

    @rule()
    def counts(self) -> None:
        live = self.live()
        expected = {name: sum(at[0] == name for at in live) for name in {at[0] for at in live}}
        assert self.store.namespaces() == expected
        statistics = self.store.statistics()
        assert statistics.entries == len(live)
        assert statistics.bytes is not None and (statistics.bytes > 0 or not live)

    @rule(namespace=st.none() | namespaces)
    def entries(self, namespace: str | None) -> None:
        found = list(self.store.entries(namespace))
        expected = {at: e for at, e in self.live().items() if namespace in (None, at[0])}
        assert len(found) == len(expected)
        for entry in found:
            known = expected[entry.namespace, entry.key]
            assert entry.value == known.value
            assert entry.written_at == pytest.approx(known.written_at, abs=1e-3)
            # A server counts on while the clock of the test stands still.
            assert (entry.expires_at is None) == (known.expires_at is None)
            assert entry.expires_at == pytest.approx(
                known.expires_at, abs=0.01 if self.place.own_time else 60
            )

    @precondition(lambda self: self.place.lasting)
    @rule()
    def reopen(self) -> None:
        self.store.close()
        self.store = self.place.open()

    @precondition(lambda self: self.place.lasting)
    @rule(namespace=namespaces)
    def second_handle(self, namespace: str) -> None:
        flush(self.store)
        with self.place.opened() as other:
            mine, theirs = (handle.get_many(namespace, KEYS) for handle in (self.store, other))
        assert mine == theirs

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.store.close()


def test_any_sequence_of_calls_agrees_with_the_oracle(place: Place) -> None:
    machine = type("Machine", (StoreMachine,), {"place": place})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=12, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )


def test_values_of_any_size_come_back_as_they_were(store: EmbeddingStore) -> None:
    sent = [b"", b"\0", bytes(range(256)), os.urandom(800), os.urandom(1_000_000)]
    names = [os.urandom(32) for _ in sent]
    store.put_many("sizes", names, sent, None)
    assert store.get_many("sizes", names) == sent
    assert {entry.key: entry.value for entry in store.entries("sizes")} == dict(zip(names, sent, strict=True))


def test_batches_beyond_every_chunk(place: Place) -> None:
    with place.opened() as store:
        store.clear()
        names = [os.urandom(32) for _ in range(2_300)]
        sent = [bytes([n % 251]) * (n % 90) for n in range(len(names))]
        store.put_many("many", names, sent, 100 * HOUR)
        asked = [*names[::-1], os.urandom(32), *names[:3]]
        assert store.get_many("many", asked) == [*sent[::-1], None, *sent[:3]]
        assert sorted(entry.key for entry in store.entries()) == sorted(names)
        assert store.delete("many", names[:1_200]) == 1_200
        assert store.namespaces() == {"many": 1_100}
    if place.lasting:
        with place.opened() as store:
            assert store.get_many("many", names) == [None] * 1_200 + sent[1_200:]


def test_an_empty_batch_is_nothing(store: EmbeddingStore) -> None:
    store.put_many("empty", [], [], None)
    assert store.get_many("empty", []) == []
    assert store.delete("empty", []) == 0
    assert store.put_entries([]) == 0
    assert store.namespaces() == {}


def test_an_entry_expires(place: Place, store: EmbeddingStore) -> None:
    store.put_many("expiry", [KEYS[0], KEYS[1]], [b"short", b"long"], 100 * HOUR)
    store.put_many("expiry", [KEYS[0]], [b"short"], 0.02)
    if place.own_time:
        place.clock.now += 0.03
    else:
        wait_for_expiry(store)
    assert store.get_many("expiry", KEYS[:2]) == [None, b"long"]
    assert store.namespaces() == {"expiry": 1}
    assert [entry.key for entry in store.entries()] == [KEYS[1]]
    assert store.delete("expiry", KEYS[:1]) == 0
    store.put_many("expiry", [KEYS[0]], [b"again"], None)
    assert store.get_many("expiry", KEYS[:1]) == [b"again"]


def wait_for_expiry(store: EmbeddingStore) -> None:
    from .redis_server import wait_until

    wait_until(lambda: store.get_many("expiry", KEYS[:1]) == [None], 5, "the entry expires")


def test_threads_share_a_store(store: EmbeddingStore) -> None:
    names = [os.urandom(32) for _ in range(64)]
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for turn in range(6):
                # Every writer of a key writes the same value, as the cache does.
                store.put_many("threads", names, names, None)
                found = store.get_many("threads", names)
                assert all(value in (None, name) for name, value in zip(names, found, strict=True))
                store.delete("threads", names[(8 * number + turn) % 64 :][:2])
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    store.put_many("threads", names, names, None)
    assert store.get_many("threads", names) == names


def test_two_handles_write_to_one_place(place: Place, store: EmbeddingStore) -> None:
    if not place.lasting:
        return  # memory has one handle
    with place.opened() as other:
        store.put_many("handles", KEYS[:2], [b"one", b"one"], None)
        flush(store)
        other.put_many("handles", KEYS[1:3], [b"two", b"two"], None)
        flush(other)
        for handle in (store, other):
            assert handle.get_many("handles", KEYS[:4]) == [b"one", b"two", b"two", None]
        assert other.clear() == 3
        assert store.get_many("handles", KEYS[:3]) == [None] * 3


@pytest.mark.parametrize("kind", KINDS[:2])
def test_moving_keeps_bytes_and_times(
    kind: str, place: Place, store: EmbeddingStore, tmp_path: object
) -> None:
    now = place.clock.now
    sent = [
        Entry("a", KEYS[0], b"\0value", now - 90, now + 50 * HOUR),
        Entry("b*", KEYS[1], os.urandom(800), now - 5, None),
    ]
    with a_place(kind, tmp_path, missing) as other_place, other_place.opened() as other:  # type: ignore[arg-type]
        other_place.clock.now = now
        other.clear()
        assert other.put_entries(sent) == 2
        told: list[int] = []
        assert copy_entries(other, store, batch=1, progress=told.append) == 2
        assert told == [1, 2]
        other.clear()
        assert copy_entries(store, other, namespace="b*") == 1
        assert list(other.entries()) == sent[1:]
        assert copy_entries(store, other, namespace="a") == 1
        (back,) = other.entries("a")
        assert back[:4] == sent[0][:4]
        assert back.expires_at == pytest.approx(sent[0].expires_at, abs=5)


def test_a_store_says_what_and_where_it_is(place: Place, store: EmbeddingStore) -> None:
    expected = {"cluster": "redis", "jsonl.gz": "jsonl"}.get(place.kind, place.kind)
    statistics = store.statistics()
    assert store.kind == statistics.kind == expected
    assert store.location == statistics.location != ""

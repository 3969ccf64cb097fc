"""A PostgreSQL server that dies, is shut down at once, or stops under writes: nothing acknowledged is lost,
nothing that was refused is there, and the same writer goes on afterwards.
"""

from __future__ import annotations

import random
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from graph.errors import OutcomeUnknown, Unavailable
from graph.lock import holder_of, lock_of
from graph.schema import ChangeSet, Idempotency, PutItem, PutRating, WriteRequest, WriteResult
from graph.store import GraphStore
from graph.view import GraphView
from graph.writer import GraphWriter
from tests.graph.plain_model import assert_same_view, read_view
from tests.postgres_server import PostgresServer, postgres_schema, postgres_server
from tests.processes import wait_until

pytestmark = [pytest.mark.faults, pytest.mark.timeout(180)]


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with postgres_server() as server:
        yield server


@pytest.fixture
def url(server: PostgresServer) -> Iterator[str]:
    with postgres_schema(server.url) as url:
        yield url


@dataclass
class Load:
    """One writer at work in a thread, and a book of what it was told; every request has names of its own."""

    store: GraphStore
    seed: int
    acknowledged: dict[str, int] = field(default_factory=dict)
    refused: set[str] = field(default_factory=set)
    unknown: set[str] = field(default_factory=set)
    slowest_s: float = 0.0

    def __enter__(self) -> Load:
        self.writer = GraphWriter(self.store)
        self.follower = GraphView(self.store.store_id)
        self.follower.apply(ChangeSet.concatenate(list(self.store.changes_since(0))))
        self._random = random.Random(self.seed)
        self._stopped = threading.Event()
        self._errors: list[BaseException] = []
        self._thread = threading.Thread(target=self._work)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join(60)
        assert not self._thread.is_alive()
        assert not self._errors, self._errors

    def _work(self) -> None:
        try:
            while not self._stopped.is_set():
                self._write()
        except BaseException as error:
            self._errors.append(error)

    def _write(self) -> None:
        number = len(self.acknowledged) + len(self.refused) + len(self.unknown)
        names = [f"{self.seed}.{number}.{k}" for k in range(self._random.randint(1, 6))]
        group = [
            WriteRequest(
                (PutItem(x, "I"), PutRating(x, x, 4.0), PutRating("all", x, 1.5)), Idempotency("s", x, "")
            )
            for x in names
        ]
        began = time.monotonic()
        committed = self.writer.commit(group)
        self.slowest_s = max(self.slowest_s, time.monotonic() - began)
        for name, outcome in zip(names, committed.outcomes, strict=True):
            if isinstance(outcome, WriteResult):
                self.acknowledged[name] = outcome.version
            elif isinstance(outcome, OutcomeUnknown):
                self.unknown.add(name)
            else:
                assert isinstance(outcome, Unavailable), outcome
                self.refused.add(name)
        for changes in committed.changes:
            assert changes.from_version == self.follower.version
            self.follower.apply(changes)

    def wait_for(self, writes: int) -> None:
        goal = len(self.acknowledged) + writes
        wait_until(lambda: len(self.acknowledged) >= goal or self._errors, 60, f"{writes} writes")
        assert not self._errors, self._errors

    def check(self) -> None:
        """The store, the writer's view and a follower's are one, and what the book says."""
        for changes in self.writer.settle():
            self.follower.apply(changes)
        view = read_view(self.store)
        found = {item.item_id: item.version for item in view.items()}
        assert self.acknowledged.items() <= found.items()
        assert not self.refused & found.keys()
        assert found.keys() <= self.acknowledged.keys() | self.unknown
        # A request is there whole, under a version of its own, or not at all.
        assert sorted(found.values()) == list(range(1, self.store.head().version + 1))
        rows = {item.item_id: item.row for item in view.items()}
        assert set(view.ratings_of(view.user("all").row).item_rows.tolist()) == set(rows.values())
        for item_id, row in rows.items():
            assert view.ratings_of(view.user(item_id).row).item_rows.tolist() == [row]
        assert_same_view(view, self.writer.view)
        assert_same_view(view, self.follower)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGQUIT, signal.SIGINT], ids=lambda s: s.name)
def test_a_server_that_goes_down_under_writes(server: PostgresServer, url: str, how: signal.Signals) -> None:
    store = GraphStore(url)
    chance = random.Random(how.value)
    with Load(store, how.value) as load:
        for _ in range(5):
            load.wait_for(chance.randrange(20, 120))
            server.kill() if how == signal.SIGKILL else server.stop(how)
            server.start()
        load.wait_for(50)
    load.check()
    print(
        f"{how.name}: {len(load.acknowledged)} acknowledged, {len(load.refused)} refused, "
        f"{len(load.unknown)} unknown; slowest {load.slowest_s:.2f} s"
    )
    store.close()


def test_a_server_that_stays_away_for_long(
    server: PostgresServer, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Commits caught in the middle end as unknown, what comes later is refused at once."""
    monkeypatch.setattr("graph.store.SETTLE_S", 0.2)
    store = GraphStore(url)
    with Load(store, 77) as load:
        for _ in range(8):
            load.wait_for(30)
            server.kill()
            before = len(load.refused)
            wait_until(lambda before=before: len(load.refused) > before, 20, "refusals")
            server.start()
        load.wait_for(50)
    load.check()
    print(f"{len(load.acknowledged)} acknowledged, {len(load.refused)} refused, {len(load.unknown)} unknown")
    store.close()


def test_a_server_that_stops_for_a_while(server: PostgresServer, url: str) -> None:
    store = GraphStore(url)
    with Load(store, 5) as load:
        for _ in range(2):
            load.wait_for(30)
            server.send(signal.SIGSTOP)
            count = len(load.acknowledged)
            time.sleep(1.0)  # long enough for a commit to be caught in it
            assert len(load.acknowledged) <= count + 6
            server.send(signal.SIGCONT)
        load.wait_for(50)
    load.check()
    assert not load.refused | load.unknown
    assert load.slowest_s > 0.9
    store.close()


def test_a_stopped_server_is_unavailable_to_whoever_comes(server: PostgresServer, url: str) -> None:
    store = GraphStore(url)
    server.send(signal.SIGSTOP)
    try:
        with pytest.raises(Unavailable, match="does not answer"):
            GraphStore(f"{url}&connect_timeout=2")
    finally:
        server.send(signal.SIGCONT)
    assert store.head().version == 0
    store.close()


def test_readers_come_back_with_the_server(server: PostgresServer, url: str) -> None:
    store = GraphStore(url)
    with Load(store, 9) as load:
        load.wait_for(20)
    server.stop(signal.SIGQUIT)
    for read in (store.head, lambda: list(store.changes_since(0)), lambda: store.pointer_history("s", "n")):
        with pytest.raises(Unavailable, match="does not answer"):
            read()
    server.start()
    load.check()
    store.close()


def test_the_lock_is_taken_again_after_a_restart(
    server: PostgresServer, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("graph.postgres_lock.CHECK_S", 0.05)
    with lock_of(url, server.folder, "the running service"):
        server.kill()
        server.start()
        wait_until(lambda: holder_of(url, server.folder), 20, "the lock is taken again")

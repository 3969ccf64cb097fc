"""Commits whose connection breaks: nobody is told that a write happened, or did not, unless it is known."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from graph.errors import Fenced, OutcomeUnknown, Unavailable
from graph.schema import Idempotency, Operation, PutPointer, PutUser, WriteRequest, WriteResult
from graph.store import GraphStore
from graph.writer import GraphWriter
from tests.graph.breaking_proxy import Break, BreakingProxy, breaking_proxy
from tests.graph.plain_model import assert_same_view, read_view, write
from tests.postgres_server import postgres_schema

pytestmark = pytest.mark.timeout(60)


class Way:
    """Where the next commit's transaction breaks: its COMMIT, not that of a read before it."""

    def __init__(self, proxy: BreakingProxy, store: GraphStore) -> None:
        self.store = store
        self.broken, self.heal, self.let_through = proxy.broken, proxy.heal, proxy.let_through
        self._proxy = proxy

    def break_next(self, how: Break, *, then_refuse: bool = False) -> None:
        write = self.store._write

        def armed(*arguments: Any) -> None:
            self.store._write = write  # type: ignore[method-assign]
            write(*arguments)
            self._proxy.break_next(how, then_refuse=then_refuse)

        self.store._write = armed  # type: ignore[method-assign,assignment]


@pytest.fixture
def url() -> Iterator[str]:
    with postgres_schema() as url:
        yield url


@pytest.fixture
def proxy(url: str) -> Iterator[Way]:
    with breaking_proxy(url) as (proxy, there):
        store = GraphStore(there)
        yield Way(proxy, store)
        store.close()


@pytest.fixture
def store(proxy: Way) -> GraphStore:
    """Reached through the proxy."""
    return proxy.store


@pytest.fixture
def observer(url: str) -> Iterator[GraphStore]:
    """The same store, reached directly."""
    store = GraphStore(url)
    yield store
    store.close()


@pytest.fixture
def writer(store: GraphStore) -> GraphWriter:
    writer = GraphWriter(store)
    write(writer, PutUser("first"))
    return writer


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("graph.store.SETTLE_S", 0.2)


def keyed(*operations: Operation, key: str) -> WriteRequest:
    return WriteRequest(operations, Idempotency("s", key, "d"))


def test_a_commit_whose_answer_is_lost_is_acknowledged(
    proxy: Way, writer: GraphWriter, observer: GraphStore
) -> None:
    proxy.break_next("after")
    committed = writer.commit([keyed(PutUser("a"), key="a"), keyed(PutUser("b"), key="b")])
    assert proxy.broken.is_set()
    assert committed.outcomes == (WriteResult(2, 1), WriteResult(3, 1))
    assert [(c.from_version, c.to_version) for c in committed.changes] == [(1, 3)]
    assert_same_view(read_view(observer), writer.view)
    assert write(writer, PutUser("c")).version == 4


def test_a_commit_that_never_arrived_is_not_acknowledged(
    proxy: Way, writer: GraphWriter, observer: GraphStore
) -> None:
    proxy.break_next("before")
    committed = writer.commit([keyed(PutUser("a"), key="a")])
    assert proxy.broken.is_set()
    (failed,) = committed.outcomes
    assert type(failed) is Unavailable
    assert "nothing was changed" in failed.message
    assert committed.changes == ()
    assert_same_view(read_view(observer), writer.view)
    assert writer.commit([keyed(PutUser("a"), key="a")]).outcomes == (WriteResult(2, 1),)


def test_a_commit_that_is_still_on_its_way_is_waited_for(
    proxy: Way, writer: GraphWriter, observer: GraphStore
) -> None:
    """The head still says no when the connection breaks, and yes a moment later."""
    proxy.break_next("late")
    done: list[Any] = []
    writing = threading.Thread(target=lambda: done.append(writer.commit([keyed(PutUser("a"), key="a")])))
    writing.start()
    assert proxy.broken.wait(20)
    assert observer.head().version == 1
    writing.join(0.5)
    assert not done, "answered although nobody could know"
    proxy.let_through()
    writing.join(30)
    assert done[0].outcomes == (WriteResult(2, 1),)
    assert_same_view(read_view(observer), writer.view)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("how", ["before", "after"])
def test_while_the_server_is_away_the_outcome_is_unknown(
    proxy: Way, writer: GraphWriter, observer: GraphStore, how: Break
) -> None:
    follower = writer.view.copy()
    proxy.break_next(how, then_refuse=True)
    lost = [keyed(PutUser("a"), key="a"), keyed(PutUser("b"), key="b")]
    committed = writer.commit(lost)
    assert [type(o) for o in committed.outcomes] == [OutcomeUnknown, OutcomeUnknown]
    assert "Idempotency-Key" in str(committed.outcomes[0])
    assert (writer.uncertain, committed.changes) == (True, ())
    # Nothing else is written before that is settled.
    refused = writer.commit([keyed(PutUser("c"), key="c"), keyed(PutUser("d"), key="d")])
    assert [type(o) for o in refused.outcomes] == [Unavailable, Unavailable]
    with pytest.raises(Unavailable, match="does not answer"):
        writer.settle()
    proxy.heal()
    happened = how == "after"
    settled = writer.settle()
    assert [(c.from_version, c.to_version) for c in settled] == ([(1, 3)] if happened else [])
    assert not writer.uncertain
    assert_same_view(read_view(observer), writer.view)
    # Whoever repeats has the write once.
    again = writer.commit(lost)
    assert again.outcomes == (
        WriteResult(2, 1, replayed=happened),
        WriteResult(3, 1, replayed=happened),
    )
    for changes in (*settled, *again.changes):
        follower.apply(changes)
    assert_same_view(follower, writer.view)
    assert_same_view(read_view(observer), writer.view)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("how", ["before", "after"])
def test_the_next_write_settles_what_was_unknown(
    proxy: Way, writer: GraphWriter, observer: GraphStore, how: Break
) -> None:
    follower = writer.view.copy()
    proxy.break_next(how, then_refuse=True)
    writer.commit([keyed(PutUser("a"), key="a")])
    proxy.heal()
    committed = writer.commit([keyed(PutUser("b"), key="b")])
    assert committed.outcomes == (WriteResult(3 if how == "after" else 2, 1),)
    for changes in committed.changes:
        assert changes.from_version == follower.version
        follower.apply(changes)
    assert_same_view(follower, writer.view)
    assert_same_view(read_view(observer), writer.view)


@pytest.mark.usefixtures("impatient")
def test_after_a_takeover_nobody_can_tell(proxy: Way, writer: GraphWriter, observer: GraphStore) -> None:
    proxy.break_next("before", then_refuse=True)
    assert type(writer.commit([keyed(PutUser("a"), key="a")]).outcomes[0]) is OutcomeUnknown
    # The other one's write has the version that ours would have had.
    assert write(GraphWriter(observer), PutUser("b")).version == 2
    proxy.heal()
    with pytest.raises(Fenced, match="before it was known"):
        writer.commit([keyed(PutUser("c"), key="c")])


def test_a_record_of_a_key_alone_is_written_again(
    proxy: Way, writer: GraphWriter, observer: GraphStore
) -> None:
    """No version tells whether such a commit happened; nothing depends on it but the repetition."""
    proxy.break_next("after")
    request = keyed(PutUser("first"), key="same")
    (failed,) = writer.commit([request]).outcomes
    assert type(failed) is Unavailable
    assert writer.commit([request]).outcomes == (WriteResult(1, 0, replayed=True),)
    assert observer.head().version == 1


def test_a_connection_that_was_lost_meanwhile_is_no_error(url: str, observer: GraphStore) -> None:
    store = GraphStore(url)
    writer = GraphWriter(store)
    with store._engine.connect() as connection:
        pid = connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
    with observer._engine.connect() as connection:
        assert connection.exec_driver_sql(f"SELECT pg_terminate_backend({pid})").scalar_one()
    assert write(writer, PutUser("a"), PutPointer("s", "n", {"x": 1})).version == 1
    store.close()


def test_a_server_that_is_not_there_is_unavailable() -> None:
    with pytest.raises(Unavailable, match="does not answer") as caught:
        GraphStore("postgresql://weft:secret@127.0.0.1:1/weft?password=secret")
    assert "secret" not in caught.value.message
    assert caught.value.retryable

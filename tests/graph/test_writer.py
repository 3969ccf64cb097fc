"""Every write operation, every refusal, group commit, idempotency and recovery."""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Iterator
from typing import Any

import numpy as np
import psycopg
import pytest
from sqlalchemy.exc import OperationalError

from graph.errors import (
    Conflict,
    Fenced,
    IdempotencyConflict,
    InvalidInput,
    PointerMoved,
    Unavailable,
    UnknownItem,
    UnknownMemory,
    UnknownRating,
    UnknownUser,
    WeftError,
)
from graph.schema import (
    MAX_ROWS_PER_WRITE,
    ChangeSet,
    DeleteItem,
    DeleteMemory,
    DeleteRating,
    DeleteUser,
    Idempotency,
    Operation,
    PutItem,
    PutMemory,
    PutPointer,
    PutRating,
    PutUser,
    WriteRequest,
    WriteResult,
)
from graph.store import GraphStore, Head
from graph.view import GraphView
from graph.writer import ApplyFailed, GraphWriter
from tests.graph.plain_model import assert_same_view, model_of, read_view, write


@pytest.fixture
def store(store_url: str) -> Iterator[GraphStore]:
    store = GraphStore(store_url)
    yield store
    store.close()


@pytest.fixture
def writer(store: GraphStore) -> GraphWriter:
    writer = GraphWriter(store)
    write(writer, PutItem("i0", "Zero", ("a",), 1990, "plot"), PutItem("i1", "One"))
    write(writer, PutUser("u0", {"age": 7}), PutRating("u0", "i0", 4.0, 100), PutMemory("m0", "u0", "tea"))
    return writer


def requests(*operations: Operation) -> list[WriteRequest]:
    return [WriteRequest((operation,)) for operation in operations]


def keyed(*operations: Operation, key: str = "k", digest: str = "d", scope: str = "s") -> WriteRequest:
    return WriteRequest(operations, Idempotency(scope, key, digest))


def assert_stored(writer: GraphWriter, store: GraphStore) -> None:
    assert_same_view(read_view(store), writer.view)
    assert store.head() == writer.head


# ------------------------------------------------------------------------------------------- operations


def test_put_user_creates_and_replaces(writer: GraphWriter, store: GraphStore) -> None:
    assert write(writer, PutUser("u1", {"x": 1, "tags": ["a", "b"]})) == WriteResult(3, 1)
    row = writer.view.user("u1").row
    assert write(writer, PutUser("u1", {"y": True})) == WriteResult(4, 1)
    assert (writer.view.user("u1").row, writer.view.user("u1").attributes) == (row, {"y": True})
    assert_stored(writer, store)


def test_put_item_creates_and_replaces(writer: GraphWriter, store: GraphStore) -> None:
    write(writer, PutItem("i2", "Two", ("b", "a", "b"), -44, "long"))
    item = writer.view.item("i2")
    assert (item.title, item.tags, item.year, item.text) == ("Two", ("b", "a"), -44, "long")
    write(writer, PutItem("i2", "Zwei"))
    changed = writer.view.item("i2")
    assert (changed.row, changed.title, changed.tags, changed.year) == (item.row, "Zwei", (), None)
    assert_stored(writer, store)


def test_a_rating_by_an_unknown_user_creates_the_user(writer: GraphWriter, store: GraphStore) -> None:
    assert write(writer, PutRating("new", "i0", 5.0)) == WriteResult(3, 2)
    assert writer.view.rating(writer.view.user("new").row, 0) == (5.0, 0)
    assert_stored(writer, store)


def test_a_rating_is_kept_in_the_precision_of_the_view(writer: GraphWriter) -> None:
    write(writer, PutRating("u0", "i1", 3.3, 9))
    assert writer.view.rating(0, 1) == (float(np.float32(3.3)), 9)
    assert write(writer, PutRating("u0", "i1", 3.3, 9)).changed == 0


@pytest.mark.parametrize(
    "operation",
    [
        PutUser("u0", {"age": 7}),
        PutItem("i0", "Zero", ("a", "a"), 1990, "plot"),
        PutRating("u0", "i0", 4.0, 100),
        PutRating("u0", "i0", 4.0, 0),
        PutMemory("m0", "u0", "tea"),
    ],
)
def test_what_changes_nothing_takes_no_version(
    writer: GraphWriter, store: GraphStore, operation: Operation
) -> None:
    before = store.head()
    committed = writer.commit(requests(operation))
    assert committed.outcomes == (WriteResult(2, 0),)
    assert committed.changes == ()
    assert store.head() == before


def test_rerating_changes_value_or_time(writer: GraphWriter) -> None:
    write(writer, PutRating("u0", "i0", 4.0, 101))
    assert writer.view.rating(0, 0) == (4.0, 101)
    write(writer, PutRating("u0", "i0", 2.5, 102))
    assert writer.view.rating(0, 0) == (2.5, 102)
    assert writer.view.num_ratings == 1


def test_deleting_a_user_leaves_tombstones_for_everything_of_hers(
    writer: GraphWriter, store: GraphStore
) -> None:
    write(writer, PutRating("u0", "i1", 3.0), PutRating("other", "i1", 2.0), PutMemory("m1", "u0", "dog"))
    write(writer, PutMemory("m2", "other", "stays"))
    (changes,) = writer.commit(requests(DeleteUser("u0"))).changes
    assert [(u.user_id, u.deleted, u.attributes) for u in changes.users] == [("u0", True, {})]
    assert sorted((m.memory_id, m.deleted, m.text) for m in changes.memories) == [
        ("m0", True, ""),
        ("m1", True, ""),
    ]
    assert sorted(changes.ratings[["user_row", "item_row", "deleted"]].tolist()) == [
        (0, 0, True),
        (0, 1, True),
    ]
    page = ChangeSet.concatenate(list(store.changes_since(changes.from_version)))
    assert len(page) == len(changes) == 5
    assert {u.version for u in page.users} | set(page.ratings["version"].tolist()) == {changes.to_version}
    assert set(model_of(writer.view).memories) == {"m2"}
    assert_stored(writer, store)


def test_deleting_an_item_leaves_tombstones_of_its_ratings(writer: GraphWriter, store: GraphStore) -> None:
    write(writer, PutRating("u1", "i0", 1.0), PutRating("u1", "i1", 1.0))
    (changes,) = writer.commit(requests(DeleteItem("i0"))).changes
    assert [(i.item_id, i.deleted) for i in changes.items] == [("i0", True)]
    assert sorted(changes.ratings[["user_row", "item_row", "deleted"]].tolist()) == [
        (0, 0, True),
        (1, 0, True),
    ]
    assert_stored(writer, store)


def test_deleting_a_rating_and_a_memory(writer: GraphWriter, store: GraphStore) -> None:
    write(writer, DeleteRating("u0", "i0"), DeleteMemory("m0", "u0"))
    assert (writer.view.num_ratings, writer.view.num_memories) == (0, 0)
    with pytest.raises(UnknownRating):
        write(writer, DeleteRating("u0", "i0"))
    with pytest.raises(UnknownMemory):
        write(writer, DeleteMemory("m0", "u0"))
    write(writer, PutRating("u0", "i0", 1.0), PutMemory("m0", "u0", "back"))
    assert_stored(writer, store)


def test_one_request_sees_its_own_operations(writer: GraphWriter, store: GraphStore) -> None:
    result = write(
        writer,
        PutItem("n", "New"),
        PutRating("v", "n", 4.0),
        PutRating("v", "n", 3.0),
        PutMemory("mv", "v", "x"),
        PutRating("w", "n", 2.0),
        DeleteUser("v"),
        DeleteItem("i0"),
        PutItem("i0", "Again"),
        PutRating("u0", "i0", 1.0),
    )
    assert result.version == 3
    model = model_of(writer.view)
    assert model.ratings == {("w", "n"): (2.0, 0), ("u0", "i0"): (1.0, 0)}
    assert set(model.users) == {"u0", "w"}
    assert model.items["i0"][0] == "Again"
    assert_stored(writer, store)


def test_an_id_that_comes_back_gets_another_row(writer: GraphWriter, store: GraphStore) -> None:
    write(writer, DeleteItem("i1"))
    write(writer, PutItem("i1", "Again"))
    assert writer.view.item("i1").row == 2
    write(writer, DeleteUser("u0"), PutUser("u0"), PutMemory("m0", "u0", "new"))
    assert writer.view.user("u0").row == 1
    assert model_of(writer.view).memories == {"m0": ("u0", "new", None, None, "")}
    assert_stored(writer, store)


def test_rows_are_never_given_twice_even_after_purge_and_restart(
    writer: GraphWriter, store: GraphStore
) -> None:
    write(writer, PutItem("last", "I"), PutUser("last"), PutMemory("last", "last", "x"))
    rows = writer.view.num_item_rows, writer.view.num_user_rows
    write(writer, DeleteItem("last"), DeleteUser("last"))
    writer.purge(writer.head.version)
    again = GraphWriter(store)
    assert (again.view.num_item_rows, again.view.num_user_rows) < rows  # nothing in the tables tells
    write(again, PutItem("new", "I"), PutUser("new"), PutMemory("new", "new", "x"))
    assert (again.view.item("new").row, again.view.user("new").row) == rows
    memory = again.view.find_memory("new")
    assert memory is not None
    assert memory.row == 2
    assert_stored(again, store)


# --------------------------------------------------------------------------------------------- refusals

LONG = "x" * 30_000


@pytest.mark.parametrize(
    ("operation", "kind", "param"),
    [
        (PutRating("u0", "nope", 3.0), UnknownItem, "item_id"),
        (PutRating("u0", "i0", 0.4), InvalidInput, "value"),
        (PutRating("u0", "i0", 5.1), InvalidInput, "value"),
        (PutRating("u0", "i0", math.nan), InvalidInput, "value"),
        (PutRating("u0", "i0", math.inf), InvalidInput, "value"),
        (PutRating("u0", "i0", 3.0, -1), InvalidInput, "timestamp"),
        (PutRating("u0", "i0", 3.0, 2**32), InvalidInput, "timestamp"),
        (PutRating(" u", "i0", 3.0), InvalidInput, "user_id"),
        (PutUser(""), InvalidInput, "user_id"),
        (PutUser("a/b"), InvalidInput, "user_id"),
        (PutUser("a\n"), InvalidInput, "user_id"),
        (PutUser("x" * 129), InvalidInput, "user_id"),
        (PutUser(".."), InvalidInput, "user_id"),
        (PutUser("u", {str(n): n for n in range(65)}), InvalidInput, "attributes"),
        (PutUser("u", {"x": math.nan}), InvalidInput, "attributes"),
        (PutUser("u", {"x": LONG}), InvalidInput, "attributes"),
        (PutUser("u", {LONG: 1}), InvalidInput, "attributes"),
        (PutUser("u", {"x": ["y"] * 65}), InvalidInput, "attributes"),
        (PutUser("u", {"x": "\ud800"}), InvalidInput, "attributes"),
        (PutUser("u", {"x": "a\0"}), InvalidInput, "attributes"),
        (PutUser("u", {"a\n": 1}), InvalidInput, "attributes"),
        (PutItem("a/b", "I"), InvalidInput, "item_id"),
        (PutItem("i", LONG), InvalidInput, "title"),
        (PutItem("i", " "), InvalidInput, "title"),
        (PutItem("i", "a\x85b"), InvalidInput, "title"),
        (PutItem("i", "I", text="a\0"), InvalidInput, "text"),
        (PutItem("i", "I", ("a\tb",)), InvalidInput, "tags"),
        (PutItem("i", "half a \ud83d"), InvalidInput, "title"),
        (PutItem("i", "I", text=LONG), InvalidInput, "text"),
        (PutItem("i", "I", text="\udc00"), InvalidInput, "text"),
        (PutItem("i", "I", ("",)), InvalidInput, "tags"),
        (PutItem("i", "I", ("\ud800",)), InvalidInput, "tags"),
        (PutItem("i", "I", ("x" * 65,)), InvalidInput, "tags"),
        (PutItem("i", "I", tuple(map(str, range(65)))), InvalidInput, "tags"),
        (PutItem("i", "I", year=10_000), InvalidInput, "year"),
        (PutMemory("m", "a/b", "x"), InvalidInput, "user_id"),
        (PutMemory("m", "u0", ""), InvalidInput, "text"),
        (PutMemory("m", "u0", LONG), InvalidInput, "text"),
        (PutMemory("m", "u0", "\ud800"), InvalidInput, "text"),
        (PutMemory("", "u0", "x"), InvalidInput, "memory_id"),
        (DeleteUser("nope"), UnknownUser, "user_id"),
        (DeleteItem("nope"), UnknownItem, "item_id"),
        (DeleteRating("nope", "i0"), UnknownUser, "user_id"),
        (DeleteRating("u0", "nope"), UnknownItem, "item_id"),
        (DeleteRating("u0", "i1"), UnknownRating, None),
        (DeleteMemory("nope", "u0"), UnknownMemory, "memory_id"),
    ],
)
@pytest.mark.parametrize("store_url", ["sqlite"], indirect=True)  # it does not get as far as the store
def test_refusals(
    writer: GraphWriter, store: GraphStore, operation: Operation, kind: type[WeftError], param: str | None
) -> None:
    before = store.head()
    # The good operation before it goes with it; the neighbours in the group do not.
    bad = WriteRequest((PutItem("with", "it"), operation))
    first, refused, last = writer.commit([*requests(PutUser("a")), bad, *requests(PutUser("b"))]).outcomes
    assert type(refused) is kind
    assert isinstance(refused, WeftError)
    assert refused.param == param
    assert (first, last) == (WriteResult(before.version + 1, 1), WriteResult(before.version + 2, 1))
    assert writer.view.find_item("with") is None
    assert_stored(writer, store)


def test_a_memory_stays_with_its_owner(writer: GraphWriter) -> None:
    write(writer, PutUser("thief"))
    with pytest.raises(Conflict, match="taken"):
        write(writer, PutMemory("m0", "thief", "mine"))


def test_a_write_has_at_most_so_many_operations(writer: GraphWriter) -> None:
    many = [PutUser(f"n{n}") for n in range(MAX_ROWS_PER_WRITE + 1)]
    with pytest.raises(InvalidInput, match="at most 5000"):
        write(writer, *many)
    assert write(writer, *many[1:]).changed == MAX_ROWS_PER_WRITE


# ----------------------------------------------------------------------------------------- group commits


def test_a_group_gives_each_request_a_version_in_one_transaction(
    writer: GraphWriter, store: GraphStore, monkeypatch: Any
) -> None:
    commits: list[Head] = []
    commit = store.commit
    monkeypatch.setattr(store, "commit", lambda *a, **k: (commits.append(k["after"]), commit(*a, **k)))
    follower = writer.view.copy()
    committed = writer.commit(
        requests(
            PutItem("g", "G"),
            PutRating("u5", "g", 4.0),
            PutUser("u5"),
            DeleteItem("g"),
            PutItem("g", "G2"),
            PutRating("u5", "g", 1.0),
        )
    )
    assert [o.version for o in committed.outcomes if isinstance(o, WriteResult)] == [3, 4, 4, 5, 6, 7]
    assert len(commits) == len(committed.changes) == 1
    follower.apply(committed.changes[0])
    assert_same_view(follower, writer.view)
    assert_stored(writer, store)
    assert model_of(writer.view).ratings["u5", "g"] == (1.0, 0)
    assert "u5" in model_of(writer.view).users


class FailingStore(GraphStore):
    """Refuses transactions that write certain users, as a full disk might."""

    poison: frozenset[str] = frozenset()
    attempts = 0

    def commit(self, before: Head, changes: ChangeSet, *rest: Any, after: Head) -> None:
        self.attempts += 1
        if self.poison & {u.user_id for u in changes.users}:
            raise OperationalError("INSERT", {}, Exception("database or disk is full"))
        super().commit(before, changes, *rest, after=after)


def test_a_transaction_that_fails_is_tried_one_by_one(store_url: str, caplog: Any) -> None:
    store = FailingStore(store_url)
    writer = GraphWriter(store)
    store.poison = frozenset({"bad"})
    follower = writer.view.copy()
    committed = writer.commit(
        [
            keyed(PutUser("a"), key="a"),
            keyed(PutUser("bad"), key="bad"),
            keyed(PutUser("a"), key="a"),
            keyed(PutUser("b"), key="b"),
            keyed(PutUser("bad/"), key="worse"),
        ]
    )
    first, failed, again, last, refused = committed.outcomes
    assert first == WriteResult(1, 1)
    assert isinstance(failed, Unavailable)
    assert "disk is full" not in failed.message
    assert again == WriteResult(1, 1, replayed=True)
    assert last == WriteResult(2, 1)
    assert isinstance(refused, InvalidInput)
    for changes in committed.changes:
        assert changes.from_version == follower.version
        follower.apply(changes)
    assert_same_view(follower, writer.view)
    assert_stored(writer, store)
    store.poison = frozenset()
    assert writer.commit([keyed(PutUser("bad"), key="bad")]).outcomes == (WriteResult(3, 1),)
    assert "one by one" in caplog.text
    store.close()


@pytest.mark.parametrize("happens", [True, False])
def test_a_commit_that_breaks_off_is_looked_up(writer: GraphWriter, store: GraphStore, happens: bool) -> None:
    dialect, write_rows = store._engine.dialect, store._write
    do_commit = dialect.do_commit
    error = {"sqlite": sqlite3.OperationalError, "postgresql": psycopg.OperationalError}[dialect.name]

    def broken(connection: Any) -> None:
        dialect.do_commit = do_commit  # type: ignore[method-assign]
        if happens:
            do_commit(connection)
        raise error("broke off")

    def armed(*arguments: Any) -> None:
        write_rows(*arguments)
        dialect.do_commit = broken  # type: ignore[method-assign]

    store._write = armed  # type: ignore[method-assign,assignment]
    (outcome,) = writer.commit(requests(PutUser("late"))).outcomes
    store._write = write_rows  # type: ignore[method-assign]
    if happens:
        assert outcome == WriteResult(3, 1)
    else:
        assert isinstance(outcome, Unavailable)
    assert_stored(writer, store)
    assert write(writer, PutUser("later")).version == (4 if happens else 3)


def test_no_refused_request_reaches_the_store(writer: GraphWriter, store: GraphStore) -> None:
    before = store.head()
    committed = writer.commit(requests(DeleteUser("x"), DeleteItem("y")))
    assert committed.changes == ()
    assert store.head() == before


def test_a_commit_that_cannot_be_applied_ends_the_writer(writer: GraphWriter, store: GraphStore) -> None:
    def fail(_: ChangeSet) -> None:
        raise MemoryError

    writer.view.apply = fail  # type: ignore[method-assign,assignment]
    with pytest.raises(ApplyFailed, match="version 3 is committed"):
        write(writer, PutUser("durable"))
    assert GraphWriter(store).view.user("durable").version == 3


# ------------------------------------------------------------------------------------------- idempotency


def test_a_repeated_key_is_answered_without_writing_again(writer: GraphWriter, store: GraphStore) -> None:
    put, take = keyed(PutRating("u0", "i1", 2.0)), DeleteRating("u0", "i1")
    assert writer.commit([put]).outcomes == (WriteResult(3, 1),)
    write(writer, take)
    committed = writer.commit([put])
    assert committed.outcomes == (WriteResult(3, 1, replayed=True),)
    assert committed.changes == ()
    assert writer.view.rating(0, 1) is None
    # Also by the next writer, and within one batch.
    assert GraphWriter(store).commit([put, put]).outcomes == (WriteResult(3, 1, replayed=True),) * 2


def test_a_key_within_one_batch(writer: GraphWriter, store: GraphStore) -> None:
    one, other = keyed(PutUser("a")), keyed(PutUser("b"), digest="another body")
    first, second, third = writer.commit([one, one, other]).outcomes
    assert (first, second) == (WriteResult(3, 1), WriteResult(3, 1, replayed=True))
    assert isinstance(third, IdempotencyConflict)
    assert writer.view.find_user("b") is None
    assert_stored(writer, store)


def test_another_body_is_a_conflict_and_another_scope_is_not(writer: GraphWriter) -> None:
    writer.commit([keyed(PutUser("a"))])
    (conflict,) = writer.commit([keyed(PutUser("b"), digest="e")]).outcomes
    assert isinstance(conflict, IdempotencyConflict)
    assert (conflict.status, conflict.param) == (409, "Idempotency-Key")
    (fine,) = writer.commit([keyed(PutUser("b"), digest="e", scope="t")]).outcomes
    assert fine == WriteResult(4, 1)


def test_a_write_that_changed_nothing_is_remembered_too(writer: GraphWriter, store: GraphStore) -> None:
    same = keyed(PutUser("u0", {"age": 7}))
    assert writer.commit([same]).outcomes == (WriteResult(2, 0),)
    write(writer, DeleteUser("u0"))
    assert writer.commit([same]).outcomes == (WriteResult(2, 0, replayed=True),)
    assert writer.view.find_user("u0") is None
    assert store.head().version == 3


def test_a_refused_request_does_not_use_its_key_up(writer: GraphWriter) -> None:
    refused = keyed(PutRating("u0", "later", 3.0))
    assert isinstance(writer.commit([refused]).outcomes[0], UnknownItem)
    write(writer, PutItem("later", "I"))
    assert writer.commit([refused]).outcomes == (WriteResult(4, 1),)


def test_a_key_expires_after_a_day(writer: GraphWriter, monkeypatch: Any) -> None:
    now = [1_000_000.0]
    monkeypatch.setattr("graph.writer.time.time", lambda: now[0])  # the store looks at the same clock
    writer.commit([keyed(PutUser("a"))])
    write(writer, DeleteUser("a"))
    now[0] += 24 * 3600 - 1
    assert writer.commit([keyed(PutUser("a"))]).outcomes == (WriteResult(3, 1, replayed=True),)
    now[0] += 2
    assert writer.commit([keyed(PutUser("a"), digest="any")]).outcomes == (WriteResult(5, 1),)


# ---------------------------------------------------------------------------------------------- recovery


def test_a_new_writer_recovers_the_same_view(writer: GraphWriter, store: GraphStore) -> None:
    snapshot = writer.view.copy()
    write(writer, DeleteItem("i0"), PutUser("late"))
    assert_same_view(GraphWriter(store).view, writer.view)
    assert_same_view(GraphWriter(store, snapshot).view, writer.view)


def test_a_view_that_the_feed_does_not_reach_is_dropped(writer: GraphWriter, store: GraphStore) -> None:
    old = writer.view.copy()
    write(writer, DeleteUser("u0"))
    writer.purge(writer.head.version)
    assert_same_view(GraphWriter(store, old).view, writer.view)
    future = GraphView(store.store_id, version=99)
    assert_same_view(GraphWriter(store, future).view, writer.view)


def test_an_old_writer_can_no_longer_purge_or_write(writer: GraphWriter, store: GraphStore) -> None:
    GraphWriter(store)
    with pytest.raises(Fenced):
        writer.commit(requests(PutUser("a"), PutUser("b")))
    with pytest.raises(Fenced):
        writer.purge(1)
    assert store.head().version == 2


def test_a_pointer_moved_twice_in_one_group_has_both_values_in_its_history(store: GraphStore) -> None:
    writer = GraphWriter(store)
    writer.commit([WriteRequest((PutPointer("encoder", "active", {"digest": d}),)) for d in ("one", "two")])
    assert [p.value["digest"] for p in store.pointer_history("encoder", "active")] == ["one", "two"]
    assert [p.version for p in store.pointer_history("encoder", "active")] == [1, 2]


def test_a_pointer_moved_twice_in_one_write_has_the_last_value(store: GraphStore) -> None:
    writer = GraphWriter(store)
    write(writer, *(PutPointer("encoder", "active", {"digest": d}) for d in ("one", "two")))
    assert [(p.value["digest"], p.version) for p in store.pointer_history("encoder", "active")] == [
        ("two", 1)
    ]
    assert_stored(writer, store)


def test_a_pointer_moves_only_from_the_version_it_is_expected_at(writer: GraphWriter) -> None:
    first = write(writer, PutPointer("adapter.user", "u0", {"digest": "a"}, if_version=0))
    with pytest.raises(PointerMoved):
        write(writer, PutPointer("adapter.user", "u0", {"digest": "b"}, if_version=0))
    # Two changes in one group: the second sees the first.
    requests = [
        WriteRequest((PutPointer("adapter.user", "u0", {"digest": d}, if_version=first.version),))
        for d in "cd"
    ]
    outcomes = writer.commit(requests).outcomes
    assert isinstance(outcomes[0], WriteResult)
    assert isinstance(outcomes[1], PointerMoved)
    pointer = writer.view.pointer("adapter.user", "u0")
    assert pointer is not None
    assert (pointer.value, pointer.version) == ({"digest": "c"}, outcomes[0].version)

"""The durable store: its feed, its fencing and what it refuses to open."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest
from sqlalchemy import event, inspect
from sqlalchemy.exc import OperationalError

from graph.errors import Corrupt, Fenced, InvalidInput, SnapshotRequired, Unavailable
from graph.migration import bring_up_to_date
from graph.node_text import item_text, text_digest
from graph.schema import (
    ALL_KINDS,
    RATING_DTYPE,
    ChangeSet,
    DeleteItem,
    DeleteMemory,
    DeleteRelation,
    DeleteUser,
    Idempotency,
    PutItem,
    PutMemory,
    PutPointer,
    PutRating,
    PutRelation,
    PutTextVector,
    PutUser,
    WriteRequest,
)
from graph.store import GraphStore, IdempotencyRecord
from graph.store_backends import backend_of
from graph.view import GraphView
from graph.writer import GraphWriter
from tests.graph.plain_model import assert_same_view, open_store, read_view, write


@pytest.fixture
def store(store_url: str) -> Iterator[GraphStore]:
    store = GraphStore(store_url)
    yield store
    store.close()


def fill(writer: GraphWriter) -> None:
    write(writer, *(PutItem(f"i{n}", f"Film {n}", ("a", "b"), 1990, "plot") for n in range(6)))
    write(writer, *(PutUser(f"u{n}", {"age": n, "likes": ["x", "y"]}) for n in range(4)))
    write(writer, *(PutRating(f"u{n % 4}", f"i{n % 6}", 1.0 + n % 4, n) for n in range(12)))
    write(writer, PutMemory("m1", "u1", "likes tea"), PutPointer("encoder", "active", {"digest": "d"}))


def relate(writer: GraphWriter) -> None:
    """Memories of validity and source, related to items and to each other."""
    write(
        writer,
        PutMemory("m2", "u1", "moved", 5, 9, "chat"),
        PutMemory("m3", "u2", "a dog", source="survey"),
        PutRelation("u1", "m1", "about", "item", "i2"),
        PutRelation("u1", "m2", "about", "item", "i0"),
        PutRelation("u1", "m2", "follows", "memory", "m1"),
        PutRelation("u2", "m3", "about", "item", "i2"),
    )


def test_a_new_store_is_empty_and_keeps_its_id(store_url: str, tmp_path: Path) -> None:
    first = GraphStore(store_url)
    assert first.is_empty()
    assert first.head().version == 0
    assert [len(page) for page in first.changes_since(0)] == [0]
    first.close()
    second = GraphStore(store_url)
    other = open_store(tmp_path / "deep" / "er")
    assert first.store_id == second.store_id != other.store_id
    second.close()
    other.close()


def test_processes_that_start_at_once_open_one_store(store_url: str) -> None:
    with ThreadPoolExecutor(8) as pool:
        stores = list(pool.map(GraphStore, [store_url] * 8))
    assert len({store.store_id for store in stores}) == 1
    for store in stores:
        assert store.is_empty()
        store.close()


def test_an_acknowledged_write_survives_power_loss(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    with store._engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2  # FULL
    store.close()


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+psycopg2://u:secret@h/db",
        "mysql://u:secret@h/db",
        "u:secret@h",
        "postgresql://u:secret@h:port/",
    ],
)
def test_other_databases_are_refused_without_showing_the_password(url: str) -> None:
    with pytest.raises(InvalidInput, match="allowed are sqlite:////PATH/FILE and postgresql://") as caught:
        GraphStore(url)
    assert "secret" not in caught.value.message
    assert caught.value.param == "store.url"


def test_what_is_no_store_is_corrupt(tmp_path: Path) -> None:
    path = tmp_path / "weft.sqlite"
    path.write_bytes(b"this is no database, whatever its name says" * 100)
    with pytest.raises(Corrupt, match="not a database"):
        GraphStore(path)


def execute(url: str, *statements: str) -> None:
    engine = backend_of(url).engine()
    with engine.connect().execution_options(weft_write=True) as connection, connection.begin():
        for statement in statements:
            connection.exec_driver_sql(statement)
    engine.dispose()


def test_tables_of_something_else_are_left_alone(store_url: str) -> None:
    execute(store_url, "CREATE TABLE users (id INTEGER)")
    with pytest.raises(Corrupt, match=r"no Weft store's \(users\)"):
        GraphStore(store_url)
    execute(store_url, "DROP TABLE users", "CREATE TABLE meta (name INTEGER)")
    with pytest.raises(Corrupt, match="not a database that Weft can"):
        GraphStore(store_url)
    execute(store_url, "DROP TABLE meta")
    GraphStore(store_url).close()


def test_another_schema_is_refused(store_url: str) -> None:
    GraphStore(store_url).close()
    execute(store_url, "UPDATE meta SET schema_version = 99")
    with pytest.raises(Corrupt, match="schema 99"):
        GraphStore(store_url)


def as_version_1(url: str) -> None:
    """Turn a store without text vectors and relations into what the version before them wrote."""
    columns = ("valid_at", "invalid_at", "source")
    execute(
        url,
        "DROP TABLE text_vectors",
        "DROP TABLE relations",
        *(f"ALTER TABLE memories DROP COLUMN {column}" for column in columns),
        "UPDATE meta SET schema_version = 1",
    )


def test_a_store_from_before_text_vectors_is_brought_up_to_date(store_url: str) -> None:
    store = GraphStore(store_url)
    writer = GraphWriter(store)
    fill(writer)
    write(writer, DeleteItem("i5"))
    before, epoch = writer.view, writer.head.epoch
    store.close()
    as_version_1(store_url)
    for _ in range(2):  # the second finds it up to date
        store = GraphStore(store_url)
        assert store.store_id == before.store_id
        assert store.head().epoch == epoch  # nobody is fenced by a look
        assert_same_view(read_view(store), before)
        store.close()
    store = GraphStore(store_url)
    writer = GraphWriter(store)
    digest = text_digest(item_text(writer.view.item("i0")))
    put = PutTextVector("item", "i0", "m", digest, np.ones(3, "<f2").tobytes())
    assert write(writer, put).version == before.version + 1
    behind = before.copy()
    behind.apply(ChangeSet.concatenate(list(store.changes_since(before.version))))
    assert behind.text_vectors("item", "m").rows().tolist() == [0]
    assert_same_view(behind, writer.view)
    store.close()


def test_an_older_store_that_many_open_at_once_is_brought_up_to_date_once(store_url: str) -> None:
    GraphStore(store_url).close()
    as_version_1(store_url)
    with ThreadPoolExecutor(6) as pool:
        stores = list(pool.map(GraphStore, [store_url] * 6))
    for store in stores:
        assert store.is_empty()
        store.close()


def test_a_migration_that_breaks_off_changes_nothing(store_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = GraphStore(store_url)
    writer = GraphWriter(store)
    fill(writer)
    store.close()
    as_version_1(store_url)

    def power_loss(connection: Any) -> None:
        bring_up_to_date(connection)
        raise KeyboardInterrupt

    monkeypatch.setattr("graph.store.bring_up_to_date", power_loss)
    with pytest.raises(KeyboardInterrupt):
        GraphStore(store_url)
    engine = backend_of(store_url).engine()
    assert "text_vectors" not in inspect(engine).get_table_names()
    assert "source" not in {column["name"] for column in inspect(engine).get_columns("memories")}
    engine.dispose()
    monkeypatch.undo()
    store = GraphStore(store_url)
    assert_same_view(read_view(store), writer.view)
    store.close()


def test_another_schema_is_left_as_it_is(store_url: str) -> None:
    GraphStore(store_url).close()
    as_version_1(store_url)
    execute(store_url, "UPDATE meta SET schema_version = 99")
    with pytest.raises(Corrupt, match="schema 99"):
        GraphStore(store_url)
    engine = backend_of(store_url).engine()
    names = inspect(engine).get_table_names()
    engine.dispose()
    assert "items" in names
    assert "text_vectors" not in names


def test_a_store_that_another_process_writes_to_is_busy(tmp_path: Path, monkeypatch: Any) -> None:
    open_store(tmp_path).close()
    monkeypatch.setattr("graph.store_backends.create_engine", _impatient)
    connection = sqlite3.connect(tmp_path / "weft.sqlite", isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    with pytest.raises(Unavailable, match="busy"):
        open_store(tmp_path)
    connection.execute("ROLLBACK")
    connection.close()


def _impatient(url: Any, **_: Any) -> Any:
    from sqlalchemy import create_engine

    return create_engine(url, connect_args={"timeout": 0.01})


# ----------------------------------------------------------------------------------------------- the feed


@pytest.mark.parametrize("page_rows", [1, 3, 50_000])
def test_pages_add_up_to_the_whole(store: GraphStore, page_rows: int) -> None:
    writer = GraphWriter(store)
    fill(writer)
    relate(writer)
    pages = list(store.changes_since(0, page_rows=page_rows))
    assert {(p.from_version, p.to_version) for p in pages} == {(0, 5)}
    assert all(len(p) <= max(page_rows, 1) for p in pages)
    view = GraphView(store.store_id)
    view.apply(ChangeSet.concatenate(pages))
    assert_same_view(view, writer.view)


def test_every_version_catches_up_to_the_head(store: GraphStore) -> None:
    writer, views = GraphWriter(store), []
    fill(writer)
    relate(writer)
    views.append(writer.view.copy())
    for operation in (
        DeleteRelation("u1", "m2", "about", "item", "i0"),
        DeleteItem("i2"),
        PutRelation("u1", "m1", "about", "item", "i4"),
        PutRating("u0", "i0", 2.0, 5),
        DeleteUser("u1"),
        PutItem("i2", "Again"),
        PutRating("u9", "i2", 4.0),
    ):
        write(writer, operation)
        views.append(writer.view.copy())
    for view in views:
        view.apply(ChangeSet.concatenate(list(store.changes_since(view.version))))
        assert_same_view(view, writer.view)


def test_one_scan_reads_one_state(store: GraphStore) -> None:
    writer = GraphWriter(store)
    fill(writer)
    before = writer.view.copy()
    scan = store.changes_since(0, page_rows=2)
    pages = [next(scan)]
    write(writer, DeleteUser("u3"))
    write(writer, PutItem("i9", "Late"), PutRating("u0", "i0", 5.0, 99))
    pages += scan
    view = GraphView(store.store_id)
    view.apply(ChangeSet.concatenate(pages))
    assert_same_view(view, before)


def test_kinds_are_filtered_in_the_store(store: GraphStore) -> None:
    writer = GraphWriter(store)
    fill(writer)
    relate(writer)
    counts = {"user": 4, "item": 6, "rating": 12, "memory": 3, "relation": 4, "pointer": 1}
    for kind, count in counts.items():
        part = ChangeSet.concatenate(list(store.changes_since(0, frozenset((kind,)))))  # type: ignore[arg-type]
        assert (len(part), part.to_version) == (count, 5)
        assert len(part.only(ALL_KINDS - {kind})) == 0  # type: ignore[arg-type]


def test_a_purge_drops_tombstones_and_moves_the_horizon(store: GraphStore) -> None:
    writer = GraphWriter(store)
    fill(writer)
    write(writer, DeleteUser("u1"))
    rated = int(writer.view.item_degrees.sum())
    assert writer.purge(4) == 0  # nothing was deleted up to there
    assert writer.purge(5) == 1 + (12 - rated) + 1  # user, ratings, memory
    assert store.head().horizon == writer.head.horizon == 5
    for version in (1, 4):
        with pytest.raises(SnapshotRequired, match=f"5, not to {version}"):
            next(store.changes_since(version))
    assert sum(len(p) for p in store.changes_since(5)) == 0
    assert_same_view(read_view(store), writer.view)
    with pytest.raises(Fenced):
        store.purge(writer.head.epoch, 6)  # beyond the head


def test_a_purge_drops_relations_with_their_ends(store: GraphStore) -> None:
    writer = GraphWriter(store)
    fill(writer)
    relate(writer)
    version = write(writer, DeleteMemory("m2", "u1")).version
    assert [len(p.relations) for p in store.changes_since(version - 1) if p.relations] == [2]
    assert writer.purge(version) == 1 + 2
    with store._engine.connect() as connection:
        left = connection.exec_driver_sql("SELECT memory_row, name, target_kind, target_row FROM relations")
        assert sorted(map(tuple, left)) == [(0, "about", "item", 2), (2, "about", "item", 2)]
    assert_same_view(read_view(store), writer.view)


def test_a_purge_keeps_later_tombstones_and_live_rows(store: GraphStore) -> None:
    writer = GraphWriter(store)
    fill(writer)
    relate(writer)
    write(writer, DeleteItem("i0"))
    follower = writer.view.copy()
    write(writer, DeleteItem("i1"))
    writer.purge(follower.version)
    follower.apply(ChangeSet.concatenate(list(store.changes_since(follower.version))))
    assert_same_view(follower, writer.view)


# ---------------------------------------------------------------------------------------------- fencing


def test_taking_over_fences_whoever_was_before(store: GraphStore) -> None:
    first = GraphWriter(store)
    fill(first)
    second = GraphWriter(store)
    assert second.head.epoch == first.head.epoch + 1
    with pytest.raises(Fenced, match=rf"epoch {second.head.epoch}.*was {first.head.epoch}"):
        first.commit([WriteRequest((PutUser("late"),))])
    with pytest.raises(Fenced):
        first.purge(1)
    assert store.head() == second.head
    write(second, PutUser("in time"))
    assert_same_view(read_view(store), second.view)


def test_a_commit_from_an_old_head_is_fenced(store: GraphStore) -> None:
    writer = GraphWriter(store)
    before = writer.head
    write(writer, PutUser("u"))
    with pytest.raises(Fenced):
        store.commit(before, ChangeSet(0, 1), after=replace(before, version=1))


def test_a_commit_is_whole_or_not_at_all(store: GraphStore) -> None:
    writer = GraphWriter(store)
    fill(writer)
    head, before = store.head(), read_view(store)
    ratings = np.array([(0, 0, 5.0, 1, head.version + 1, False)], RATING_DTYPE)

    errors = {"sqlite": sqlite3.OperationalError, "postgresql": psycopg.errors.IoError}
    error = errors[store._engine.dialect.name]

    def fail(_c: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if statement.casefold().startswith("insert into ratings"):
            raise error("disk I/O error")

    event.listen(store._engine, "before_cursor_execute", fail)
    with pytest.raises(OperationalError, match="disk I/O"):
        store.commit(
            writer.head,
            ChangeSet(head.version, head.version + 1, users=list(writer.view.users()), ratings=ratings),
            after=replace(writer.head, version=head.version + 1),
        )
    event.remove(store._engine, "before_cursor_execute", fail)
    assert store.head() == head
    assert_same_view(read_view(store), before)


# ------------------------------------------------------------------------------------ idempotency, pointers


def test_outcomes_are_remembered_until_they_expire(store: GraphStore, monkeypatch: Any) -> None:
    writer = GraphWriter(store)
    monkeypatch.setattr("graph.store.time.time", lambda: 1_000.0)
    keys = [Idempotency("s", f"k{n}", "d") for n in range(3)]
    records = [IdempotencyRecord(k, 0, n, 1_000.0 + n) for n, k in enumerate(keys)]
    store.commit(writer.head, ChangeSet(0, 0), records, after=writer.head)
    found = store.remembered([*keys, Idempotency("other scope", "k1", "d")])
    assert {k: (r.digest, r.version, r.changed) for k, r in found.items()} == {
        ("s", "k1"): ("d", 0, 1),
        ("s", "k2"): ("d", 0, 2),
    }
    assert store.remembered([]) == {}
    monkeypatch.setattr("graph.store.time.time", lambda: 1_001.5)
    assert set(store.remembered(keys)) == {("s", "k2")}
    assert writer.purge(0) == 1  # k1: the commit itself dropped k0, which had expired by then


def test_a_pointer_keeps_its_history(store: GraphStore) -> None:
    writer = GraphWriter(store)
    for digest in ("a", "b", "a"):
        write(writer, PutPointer("encoder", "active", {"digest": digest}))
    write(writer, PutPointer("encoder", "candidate", {"digest": "c"}))
    history = store.pointer_history("encoder", "active")
    assert [(p.value["digest"], p.version) for p in history] == [("a", 1), ("b", 2), ("a", 3)]
    assert store.pointer_history("encoder", "none") == []

"""Stores that older versions of Weft wrote, brought up to date in place."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, inspect

from graph import migration
from graph.schema import ChangeSet, DeleteMemory, Memory, PutMemory, PutRelation
from graph.store import GraphStore
from graph.writer import GraphWriter
from tests.graph.plain_model import assert_same_view, open_store, read_view, write

VERSION_2 = """
CREATE TABLE meta (id INTEGER NOT NULL, store_id VARCHAR(32) NOT NULL, schema_version INTEGER NOT NULL,
    epoch BIGINT NOT NULL, head BIGINT NOT NULL, horizon BIGINT NOT NULL, next_user_row BIGINT NOT NULL,
    next_item_row BIGINT NOT NULL, next_memory_row BIGINT NOT NULL, PRIMARY KEY (id));
CREATE TABLE users ("row" BIGINT NOT NULL, user_id TEXT NOT NULL, attributes JSON NOT NULL,
    version BIGINT NOT NULL, deleted BOOLEAN NOT NULL, PRIMARY KEY ("row"));
CREATE INDEX users_by_version ON users (version);
CREATE INDEX users_by_id ON users (user_id);
CREATE TABLE items ("row" BIGINT NOT NULL, item_id TEXT NOT NULL, title TEXT NOT NULL, tags JSON NOT NULL,
    year INTEGER, text TEXT NOT NULL, version BIGINT NOT NULL, deleted BOOLEAN NOT NULL, PRIMARY KEY ("row"));
CREATE INDEX items_by_version ON items (version);
CREATE INDEX items_by_id ON items (item_id);
CREATE TABLE ratings (user_row BIGINT NOT NULL, item_row BIGINT NOT NULL, value FLOAT NOT NULL,
    timestamp BIGINT NOT NULL, version BIGINT NOT NULL, deleted BOOLEAN NOT NULL,
    PRIMARY KEY (user_row, item_row)) WITHOUT ROWID;
CREATE INDEX ratings_by_version ON ratings (version);
CREATE TABLE memories ("row" BIGINT NOT NULL, memory_id TEXT NOT NULL, user_row BIGINT NOT NULL,
    text TEXT NOT NULL, version BIGINT NOT NULL, deleted BOOLEAN NOT NULL, PRIMARY KEY ("row"));
CREATE INDEX memories_by_version ON memories (version);
CREATE INDEX memories_by_user ON memories (user_row);
CREATE TABLE text_vectors (kind VARCHAR(16) NOT NULL, "row" BIGINT NOT NULL, model VARCHAR(128) NOT NULL,
    text_digest VARCHAR(32) NOT NULL, vector BLOB NOT NULL, version BIGINT NOT NULL,
    deleted BOOLEAN NOT NULL, PRIMARY KEY (kind, "row", model));
CREATE INDEX text_vectors_by_version ON text_vectors (version);
CREATE TABLE pointers (scope VARCHAR(256) NOT NULL, name VARCHAR(256) NOT NULL, value JSON NOT NULL,
    version BIGINT NOT NULL, deleted BOOLEAN NOT NULL, PRIMARY KEY (scope, name));
CREATE INDEX pointers_by_version ON pointers (version);
CREATE TABLE pointer_history (version BIGINT NOT NULL, scope VARCHAR(256) NOT NULL,
    name VARCHAR(256) NOT NULL, value JSON NOT NULL, written_at FLOAT NOT NULL,
    PRIMARY KEY (version, scope, name));
CREATE TABLE idempotency (scope VARCHAR(512) NOT NULL, "key" VARCHAR(256) NOT NULL,
    digest VARCHAR(64) NOT NULL, version BIGINT NOT NULL, changed INTEGER NOT NULL,
    expires_at FLOAT NOT NULL, PRIMARY KEY (scope, "key"));
CREATE INDEX idempotency_by_expiry ON idempotency (expires_at);
"""

CONTENT = """
INSERT INTO meta VALUES (1, 'a-store', 2, 7, 5, 0, 2, 1, 4);
INSERT INTO users VALUES (0, 'ann', '{"n": 1}', 1, 0), (1, 'bo', '{}', 1, 0);
INSERT INTO items VALUES (0, 'film', 'A Film', '["a"]', 1990, 'plot', 2, 0);
INSERT INTO ratings VALUES (0, 0, 4.5, 99, 3, 0);
INSERT INTO memories VALUES (0, 'm0', 0, 'likes tea', 4, 0);
INSERT INTO memories VALUES (1, 'm1', 1, '', 5, 1), (3, 'm3', 1, 'a dog', 5, 0);
INSERT INTO text_vectors VALUES ('item', 0, 't', '0123456789abcdef0123456789abcdef', x'003c0040', 5, 0);
INSERT INTO pointers VALUES ('encoder', 'active', '{"digest": "d"}', 5, 0);
"""


@pytest.fixture
def old(tmp_path: Path) -> Path:
    path = tmp_path / "weft.sqlite"
    connection = sqlite3.connect(path)
    connection.executescript(VERSION_2 + CONTENT)
    connection.close()
    return path


def shape(path: Path) -> dict[str, Any]:
    """Columns, keys and indexes of every table."""
    engine = create_engine(f"sqlite:///{path}")
    found = inspect(engine)
    tables = {
        name: (
            {c["name"]: (str(c["type"]), c["nullable"]) for c in found.get_columns(name)},
            found.get_pk_constraint(name)["constrained_columns"],
            {i["name"]: i["column_names"] for i in found.get_indexes(name)},
        )
        for name in found.get_table_names()
    }
    engine.dispose()
    return tables


def test_a_store_of_version_2_keeps_everything_and_takes_more(old: Path, tmp_path: Path) -> None:
    for _ in range(2):  # the second finds it up to date
        store = GraphStore(old)
        assert store.store_id == "a-store"
        assert (store.head().version, store.head().epoch) == (5, 7)  # nobody is fenced by a look
        view = read_view(store)
        store.close()
        assert sorted(view.memories(), key=lambda m: m.row) == [
            Memory(0, "m0", 0, "likes tea", 4),
            Memory(3, "m3", 1, "a dog", 5),
        ]
        assert view.rating(0, 0) == (4.5, 99)
        assert view.text_vectors("item", "t").rows().tolist() == [0]
        assert view.num_relations == 0
    open_store(tmp_path / "new").close()
    assert shape(old) == shape(tmp_path / "new" / "weft.sqlite")

    store = GraphStore(old)
    writer = GraphWriter(store)
    follower = writer.view.copy()
    write(
        writer,
        PutMemory("m0", "ann", "likes tea", 5, 9, "chat"),
        PutMemory("m4", "ann", "new"),
        PutRelation("ann", "m4", "about", "item", "film"),
        DeleteMemory("m3", "bo"),
    )
    memory = writer.view.find_memory("m4")
    assert memory is not None
    assert memory.row == 4
    follower.apply(ChangeSet.concatenate(list(store.changes_since(follower.version))))
    assert_same_view(follower, writer.view)
    assert_same_view(read_view(store), writer.view)
    store.close()


def test_a_migration_that_breaks_off_changes_nothing(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = shape(old)

    def power_loss(connection: Any) -> None:
        bring_up_to_date(connection)
        raise KeyboardInterrupt

    bring_up_to_date = migration.bring_up_to_date
    monkeypatch.setattr("graph.store.bring_up_to_date", power_loss)
    with pytest.raises(KeyboardInterrupt):
        GraphStore(old)
    assert shape(old) == before
    connection = sqlite3.connect(old)
    assert connection.execute("SELECT schema_version FROM meta").fetchone() == (2,)
    connection.close()
    monkeypatch.undo()
    store = GraphStore(old)
    assert read_view(store).num_memories == 2
    store.close()


def test_a_service_of_version_2_goes_on_writing(old: Path) -> None:
    """One that holds the store while a newer command looks at it: its statements still fit."""
    running = sqlite3.connect(old)
    GraphStore(old).close()
    running.execute(
        'INSERT INTO memories ("row", memory_id, user_row, text, version, deleted) '
        "VALUES (4, 'm4', 0, 'late', 6, 0)"
    )
    running.execute("UPDATE meta SET head = 6, next_memory_row = 5")
    running.commit()
    running.close()
    store = GraphStore(old)
    assert read_view(store).memory_at(4) == Memory(4, "m4", 0, "late", 6)
    store.close()

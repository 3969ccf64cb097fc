"""Durable truth: the graph in a relational database, through SQLAlchemy Core.

One writer at a time. `take_over` gives a writer its epoch; every commit starts by moving the head *where the
epoch is still its own*, so a writer that was replaced while it slept cannot commit anything (fencing).
Readers see a consistent state per read transaction.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy import (
    Connection,
    Engine,
    Table,
    create_engine,
    delete,
    event,
    insert,
    select,
    tuple_,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import DatabaseError

from graph import tables
from graph.errors import Corrupt, Fenced, InvalidInput, SnapshotRequired, Unavailable
from graph.migration import bring_up_to_date
from graph.schema import (
    ALL_KINDS,
    RATING_DTYPE,
    ChangeSet,
    Idempotency,
    Item,
    Kind,
    Memory,
    Pointer,
    RatingArray,
    Relation,
    TextVector,
    User,
)


@dataclass(frozen=True, slots=True)
class Head:
    """Where the store stands."""

    version: int
    horizon: int
    epoch: int
    next_user_row: int
    next_item_row: int
    next_memory_row: int


@dataclass(frozen=True, slots=True)
class Remembered:
    """The outcome of a write that carried an idempotency key."""

    digest: str
    version: int
    changed: int


@dataclass(frozen=True, slots=True)
class IdempotencyRecord:
    key: Idempotency
    version: int
    changed: int
    expires_at: float


class GraphStore:
    """One graph in one database. Threads may share it; each call uses a connection of its own."""

    def __init__(self, url: str | URL | Path) -> None:
        """Open the store at a SQLAlchemy URL or SQLite file path, creating its tables if there are none.

        A store of an older schema is brought to this version's, which older versions of Weft cannot read.
        Raises InvalidInput for a URL that cannot be used, Corrupt for a database that is not a Weft store.
        """
        self._url = make_url(f"sqlite:///{url}") if isinstance(url, Path) else make_url(url)
        if self._url.get_backend_name() != "sqlite":
            raise InvalidInput(
                f"store url {self._url.render_as_string()!r}: only sqlite is supported by this version",
                param="store.url",
            )
        if self._url.database and self._url.database != ":memory:":
            Path(self._url.database).parent.mkdir(parents=True, exist_ok=True)
        self._engine: Engine = create_engine(self._url, connect_args={"timeout": 10})
        event.listen(self._engine, "connect", _configure_sqlite)
        event.listen(self._engine, "begin", _begin_sqlite)
        self._upserts: dict[Table, object] = {}
        try:
            self.store_id = self._create_or_check()
        except DatabaseError as error:
            self._engine.dispose()
            if "locked" in str(error):
                raise Unavailable(
                    f"the store {self.location} is busy: another process is writing to it"
                ) from error
            raise Corrupt(f"{self.location} is not a database that Weft can read: {error.orig}") from error

    @property
    def location(self) -> str:
        return self._url.render_as_string(hide_password=True)

    def close(self) -> None:
        self._engine.dispose()

    # ------------------------------------------------------------------------------------------- writing

    def take_over(self) -> Head:
        """Become the writer: every earlier writer's next commit raises Fenced."""
        with self._transaction(write=True) as connection:
            connection.execute(update(tables.meta).values(epoch=tables.meta.c.epoch + 1))
            return self._head(connection)

    def commit(
        self,
        before: Head,
        changes: ChangeSet,
        idempotency: Sequence[IdempotencyRecord] = (),
        pointer_writes: Sequence[Pointer] = (),
        *,
        after: Head,
    ) -> None:
        """Write the final states of `changes`, moving the head from `before` to `after`, or nothing at all.

        `pointer_writes` go into the history of pointers, one row each.

        Raises Fenced when another writer took over.
        """
        with self._transaction(write=True) as connection:
            moved = connection.execute(
                update(tables.meta)
                .where(tables.meta.c.epoch == before.epoch, tables.meta.c.head == before.version)
                .values(
                    head=after.version,
                    next_user_row=after.next_user_row,
                    next_item_row=after.next_item_row,
                    next_memory_row=after.next_memory_row,
                )
            )
            if moved.rowcount != 1:
                raise Fenced(
                    f"another writer holds {self.location} (epoch {self._head(connection).epoch}, "
                    f"this writer's was {before.epoch}); nothing was written"
                )
            self._upsert(connection, tables.users, [_values(u) for u in changes.users])
            self._upsert(connection, tables.items, [_values(i) for i in changes.items])
            self._upsert(connection, tables.memories, [_values(m) for m in changes.memories])
            self._upsert(connection, tables.relations, [_values(r) for r in changes.relations])
            self._upsert(connection, tables.pointers, [_values(p) for p in changes.pointers])
            self._upsert(connection, tables.ratings, _rating_values(changes.ratings))
            self._upsert(connection, tables.text_vectors, [_values(v) for v in changes.text_vectors])
            now = time.time()
            history = [
                {"version": p.version, "scope": p.scope, "name": p.name, "value": p.value, "written_at": now}
                for p in pointer_writes
            ]
            self._upsert(connection, tables.pointer_history, history)
            records = [
                {
                    "scope": r.key.scope,
                    "key": r.key.key,
                    "digest": r.key.digest,
                    "version": r.version,
                    "changed": r.changed,
                    "expires_at": r.expires_at,
                }
                for r in idempotency
            ]
            self._upsert(connection, tables.idempotency, records)
            if records:
                self._forget_expired(connection, 2 * len(records) + 10)

    def purge(self, epoch: int, upto: int) -> int:
        """Drop tombstones of versions up to `upto` and expired idempotency keys; returns rows dropped.

        Afterwards the feed no longer reaches back before `upto`. Call only when a snapshot at `upto` or later
        is on disk. Raises Fenced when another writer took over.
        """
        dropped = 0
        with self._transaction(write=True) as connection:
            moved = connection.execute(
                update(tables.meta)
                .where(tables.meta.c.epoch == epoch, tables.meta.c.head >= upto)
                .values(horizon=upto)
            )
            if moved.rowcount != 1:
                raise Fenced(f"another writer holds {self.location}; nothing was purged")
            for table in (
                tables.users,
                tables.items,
                tables.ratings,
                tables.memories,
                tables.relations,
                tables.text_vectors,
                tables.pointers,
            ):
                gone = connection.execute(delete(table).where(table.c.deleted, table.c.version <= upto))
                dropped += gone.rowcount
            dropped += self._forget_expired(connection)
        return dropped

    # ------------------------------------------------------------------------------------------- reading

    def head(self) -> Head:
        with self._transaction() as connection:
            return self._head(connection)

    def is_empty(self) -> bool:
        """Whether nothing was ever written."""
        return self.head().version == 0

    def remembered(self, keys: Sequence[Idempotency]) -> dict[tuple[str, str], Remembered]:
        """Outcomes of writes that carried these keys and have not expired, by (scope, key)."""
        if not keys:
            return {}
        t = tables.idempotency.c
        wanted = tuple_(t.scope, t.key).in_([(k.scope, k.key) for k in keys])
        query = select(t.scope, t.key, t.digest, t.version, t.changed).where(
            wanted, t.expires_at > time.time()
        )
        with self._transaction() as connection:
            return {(r[0], r[1]): Remembered(*r[2:]) for r in connection.execute(query)}

    def pointer_history(self, scope: str, name: str) -> list[Pointer]:
        """Every value the pointer ever had, oldest first."""
        t = tables.pointer_history.c
        query = select(t.value, t.version).where(t.scope == scope, t.name == name).order_by(t.version)
        with self._transaction() as connection:
            return [Pointer(scope, name, value, version) for value, version in connection.execute(query)]

    def changes_since(
        self, version: int, kinds: frozenset[Kind] = ALL_KINDS, page_rows: int = 50_000
    ) -> Iterator[ChangeSet]:
        """Everything that changed after `version`, as pages read in one read transaction.

        Rows hold latest states only, so a page in the middle is no state the graph ever had: apply all pages,
        then publish the `to_version` of the last, the head that was read. The last page may be empty.
        Version 0 asks for the whole graph. Raises SnapshotRequired when tombstones after `version` are gone.
        """
        with self._transaction() as connection:
            head = self._head(connection)
            if 0 < version < head.horizon:
                raise SnapshotRequired(
                    f"the feed reaches back to {head.horizon}, not to {version}: start from a snapshot"
                )
            span = (version, head.version)
            if "user" in kinds:
                for rows in self._rows_since(connection, tables.users, version, page_rows):
                    yield ChangeSet(*span, users=[User(*r) for r in rows])
            if "item" in kinds:
                for rows in self._rows_since(connection, tables.items, version, page_rows):
                    yield ChangeSet(*span, items=[_item(r) for r in rows])
            if "rating" in kinds:
                for rows in self._rows_since(connection, tables.ratings, version, page_rows):
                    yield ChangeSet(*span, ratings=np.array([tuple(r) for r in rows], RATING_DTYPE))
            if "memory" in kinds:
                for rows in self._rows_since(connection, tables.memories, version, page_rows):
                    yield ChangeSet(*span, memories=[Memory(*r) for r in rows])
            if "relation" in kinds:
                for rows in self._rows_since(connection, tables.relations, version, page_rows):
                    yield ChangeSet(*span, relations=[Relation(*r) for r in rows])
            if "text_vector" in kinds:
                for rows in self._rows_since(connection, tables.text_vectors, version, page_rows):
                    yield ChangeSet(*span, text_vectors=[TextVector(*r) for r in rows])
            pointers: list[Pointer] = []
            if "pointer" in kinds:
                for rows in self._rows_since(connection, tables.pointers, version, page_rows):
                    pointers += [Pointer(*r) for r in rows]
            yield ChangeSet(*span, pointers=pointers)

    # ----------------------------------------------------------------------------------------- internals

    def _create_or_check(self) -> str:
        with self._transaction(write=True) as connection:
            tables.metadata.create_all(connection)
            found = connection.execute(select(tables.meta.c.store_id, tables.meta.c.schema_version)).first()
            if found is not None:
                if found.schema_version not in range(1, tables.SCHEMA_VERSION + 1):
                    raise Corrupt(
                        f"{self.location} has schema {found.schema_version}, this version reads "
                        f"{tables.SCHEMA_VERSION}: use the Weft version that wrote it"
                    )
                if found.schema_version < tables.SCHEMA_VERSION:
                    bring_up_to_date(connection)
                return str(found.store_id)
            store_id = uuid.uuid4().hex[:12]
            connection.execute(
                insert(tables.meta).values(
                    id=1,
                    store_id=store_id,
                    schema_version=tables.SCHEMA_VERSION,
                    epoch=0,
                    head=0,
                    horizon=0,
                    next_user_row=0,
                    next_item_row=0,
                    next_memory_row=0,
                )
            )
            return store_id

    @contextmanager
    def _transaction(self, *, write: bool = False) -> Iterator[Connection]:
        with self._engine.connect().execution_options(weft_write=write) as connection, connection.begin():
            yield connection

    @staticmethod
    def _head(connection: Connection) -> Head:
        t = tables.meta.c
        row = connection.execute(
            select(t.head, t.horizon, t.epoch, t.next_user_row, t.next_item_row, t.next_memory_row)
        ).one()
        return Head(*row)

    def _upsert(self, connection: Connection, table: Table, values: list[dict[str, object]]) -> None:
        if not values:
            return
        statement = self._upserts.get(table)
        if statement is None:
            dialect = {"sqlite": sqlite, "postgresql": postgresql}[self._engine.dialect.name]
            fresh = dialect.insert(table)
            keys = [c.name for c in table.primary_key]
            rest = {c.name: fresh.excluded[c.name] for c in table.columns if c.name not in keys}
            statement = self._upserts[table] = fresh.on_conflict_do_update(index_elements=keys, set_=rest)
        connection.execute(statement, values)  # type: ignore[call-overload]

    @staticmethod
    def _forget_expired(connection: Connection, limit: int | None = None) -> int:
        """Drop expired idempotency keys, at most `limit`: commits drop more than they add, yet stay short."""
        t = tables.idempotency.c
        expired = select(t.scope, t.key).where(t.expires_at <= time.time()).limit(limit)
        gone = connection.execute(delete(tables.idempotency).where(tuple_(t.scope, t.key).in_(expired)))
        return gone.rowcount

    @staticmethod
    def _rows_since(
        connection: Connection, table: Table, version: int, page_rows: int
    ) -> Iterator[Sequence[Any]]:
        query = select(table).order_by(*table.primary_key)
        query = query.where(table.c.version > version if version else ~table.c.deleted)
        result = connection.execution_options(stream_results=True).execute(query)
        yield from result.partitions(page_rows)


def _configure_sqlite(connection: object, _record: object) -> None:
    # The driver's own implicit BEGIN comes too late and is never IMMEDIATE: we begin ourselves.
    connection.isolation_level = None  # type: ignore[attr-defined]
    cursor = connection.cursor()  # type: ignore[attr-defined]
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")  # an acknowledged write survives power loss
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    # IMMEDIATE takes the write lock before the first read, so the epoch check cannot go stale.
    write = connection.get_execution_options().get("weft_write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")


def _item(row: Any) -> Item:
    row_number, item_id, title, tags, year, text, version, deleted = row
    return Item(row_number, item_id, title, tuple(tags), year, text, version, deleted)


def _values(record: User | Item | Memory | Relation | Pointer | TextVector) -> dict[str, object]:
    """A record as its table's columns, which have its fields' names."""
    return {field.name: getattr(record, field.name) for field in fields(record)}


def _rating_values(ratings: RatingArray) -> list[dict[str, object]]:
    names = RATING_DTYPE.names or ()
    return [dict(zip(names, record, strict=True)) for record in ratings.tolist()]


__all__ = [
    "GraphStore",
    "Head",
    "IdempotencyRecord",
    "Remembered",
]

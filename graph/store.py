"""Durable truth: the graph in SQLite or PostgreSQL, through SQLAlchemy Core.

One writer at a time. `take_over` gives a writer its epoch; every commit starts by moving the head *where the
epoch is still its own*, so a writer that was replaced while it slept cannot commit anything (fencing).
Readers see a consistent state per read transaction. What the two databases do differently is in
`graph.store_backends`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Table, delete, insert, inspect, select, tuple_, update
from sqlalchemy.engine import URL
from sqlalchemy.exc import DatabaseError, DBAPIError

from graph import tables
from graph.errors import Corrupt, Fenced, OutcomeUnknown, SnapshotRequired, Unavailable
from graph.migration import bring_up_to_date
from graph.schema import (
    ALL_KINDS,
    ChangeSet,
    Idempotency,
    Kind,
    Pointer,
)
from graph.store_backends import backend_of
from graph.store_identity import new_store_id
from graph.store_rows import PAGES, rows_of

log = logging.getLogger(__name__)

SETTLE_S = 5.0
"""How long a commit whose connection broke asks what became of it, before it says that it does not know."""
_SETTLE_INTERVAL_S = 0.1


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
        Raises InvalidInput for a URL that cannot be used, Corrupt for a database that is not a Weft store,
        Unavailable for one that does not answer.
        """
        self._backend = backend_of(url)
        self._engine = self._backend.engine()
        try:
            self.store_id = self._create_or_check()
        except DatabaseError as error:
            self._engine.dispose()
            raise self._backend.refusal(error) from error
        except BaseException:
            self._engine.dispose()
            raise

    @property
    def location(self) -> str:
        """The URL without its password."""
        return self._backend.location

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

        Raises Fenced when another writer took over, OutcomeUnknown when the connection broke while the
        database committed and it has not come back since (`committed` finds out later). After any other
        error, Unavailable and what SQLAlchemy raises, nothing was written.
        """
        committing = False
        try:
            with self._transaction(write=True) as connection:
                self._write(connection, before, changes, idempotency, pointer_writes, after)
                committing = True
        except (DBAPIError, Unavailable) as error:
            if not committing or not self._happened_after_all(before, after):
                raise
            log.warning("the commit of version %d broke off but happened: %s", after.version, error)

    def committed(self, before: Head, after: Head) -> bool:
        """Whether a commit from `before` to `after` happened, of which its own transaction did not learn.

        Waits for that transaction if the database is still at it. A commit that moves no version cannot be
        told from one that failed, and counts as one.

        Raises Unavailable while the database does not answer, and Fenced when another writer took over,
        after which nobody can tell.
        """
        t = tables.meta.c
        with self._transaction(write=True) as connection:
            # The row's lock: the transaction in question has it until it has committed or was rolled back.
            epoch, head = connection.execute(select(t.epoch, t.head).with_for_update()).one()
        if epoch != before.epoch:
            raise Fenced(
                f"another writer took {self.location} over (epoch {epoch}, this writer's was {before.epoch}) "
                f"before it was known whether version {after.version} had been written"
            )
        return bool(head == after.version != before.version)

    def _happened_after_all(self, before: Head, after: Head) -> bool:
        deadline = time.monotonic() + SETTLE_S
        while True:
            try:
                return self.committed(before, after)
            except Unavailable as error:
                if time.monotonic() >= deadline:
                    raise OutcomeUnknown(
                        f"the store {self.location} broke off while it committed and does not answer: "
                        "whether the write happened is unknown; repeat it with the same Idempotency-Key"
                    ) from error
            time.sleep(_SETTLE_INTERVAL_S)

    def _write(
        self,
        connection: Connection,
        before: Head,
        changes: ChangeSet,
        idempotency: Sequence[IdempotencyRecord],
        pointer_writes: Sequence[Pointer],
        after: Head,
    ) -> None:
        """The statements of a commit, the fence first."""
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
        for table, rows in rows_of(changes):
            self._upsert(connection, table, rows)
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
                tables.api_keys,
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
        """Whether no item was ever written: keys and settings may have been."""
        return self.head().next_item_row == 0

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
        Version 0 asks for the whole graph. Raises SnapshotRequired when tombstones after `version` are gone,
        Unavailable when the database is away.
        """
        with self._transaction() as connection:
            self._backend.begin_scan(connection)
            head = self._head(connection)
            if 0 < version < head.horizon:
                raise SnapshotRequired(
                    f"the feed reaches back to {head.horizon}, not to {version}: start from a snapshot"
                )
            span = (version, head.version)
            for kind, table, contents in PAGES:
                if kind in kinds:
                    for rows in self._rows_since(connection, table, version, page_rows):
                        yield ChangeSet(*span, **contents(rows))
            pointers: list[Pointer] = []
            if "pointer" in kinds:
                for rows in self._rows_since(connection, tables.pointers, version, page_rows):
                    pointers += [Pointer(*r) for r in rows]
            yield ChangeSet(*span, pointers=pointers)

    # ----------------------------------------------------------------------------------------- internals

    def _create_or_check(self) -> str:
        with self._connected(write=True) as connection:
            self._backend.lock_schema(connection)
            there = set(inspect(connection).get_table_names())
            taken = sorted(there & set(tables.metadata.tables))
            if taken and tables.meta.name not in there:
                raise Corrupt(
                    f"{self.location} has tables that are no Weft store's ({', '.join(taken)}): give Weft a "
                    "database of its own"
                )
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
            store_id = new_store_id()
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
        """Committed at the end. Raises Unavailable when the database is away."""
        try:
            with self._connected(write) as connection:
                yield connection
        except DBAPIError as error:
            away = self._backend.away(error)
            if away is None:
                raise
            raise away from error

    @contextmanager
    def _connected(self, write: bool) -> Iterator[Connection]:
        options = self._backend.transaction_options(write)
        with self._engine.connect().execution_options(**options) as connection, connection.begin():
            yield connection

    @staticmethod
    def _head(connection: Connection) -> Head:
        t = tables.meta.c
        row = connection.execute(
            select(t.head, t.horizon, t.epoch, t.next_user_row, t.next_item_row, t.next_memory_row)
        ).one()
        return Head(*row)

    def _upsert(self, connection: Connection, table: Table, rows: Sequence[dict[str, Any]]) -> None:
        if rows:
            self._backend.upsert(connection, table, rows)

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


__all__ = [
    "GraphStore",
    "Head",
    "IdempotencyRecord",
    "Remembered",
]

"""Which store a database holds, read without changing it, and a new identity for a restored one."""

from __future__ import annotations

import shlex
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from sqlalchemy import Connection, func, inspect, select, update
from sqlalchemy.exc import DatabaseError

from graph import tables
from graph.errors import Conflict
from graph.schema import Pointer
from graph.store_backends import PostgreSQL, backend_of


@dataclass(frozen=True, slots=True)
class StoreFacts:
    """A store at one moment."""

    store_id: str
    version: int
    schema_version: int
    pointers: tuple[Pointer, ...]


def new_store_id() -> str:
    """An id that no other store has."""
    return uuid.uuid4().hex[:12]


def read_facts(url: str) -> StoreFacts | None:
    """What the store at `url` is, of whatever schema; None for a database that holds none.

    Raises what opening a GraphStore does. A SQLite file has to be there.
    """
    with _connected(url, write=False) as connection:
        if not inspect(connection).has_table(tables.meta.name):
            return None
        t = tables.meta.c
        store_id, version, schema = connection.execute(select(t.store_id, t.head, t.schema_version)).one()
        query = select(tables.pointers).where(~tables.pointers.c.deleted)
        pointers = tuple(Pointer(*row) for row in connection.execute(query))
        return StoreFacts(store_id, version, schema, pointers)


def give_new_id(url: str, store_id: str) -> str:
    """Make the store another one than `store_id`, which it was, and shut out its writers; the new id.

    The versions after its head will be given to other writes than those that a copy of it was without. Under
    a new id neither tokens nor snapshots of the lost ones pass for its own. Raises Conflict when it is not
    that store.
    """
    fresh = new_store_id()
    with _connected(url, write=True) as connection:
        t = tables.meta
        renamed = connection.execute(
            update(t).where(t.c.store_id == store_id).values(store_id=fresh, epoch=t.c.epoch + 1)
        )
        if renamed.rowcount != 1:
            raise Conflict(f"{backend_of(url).location} does not hold store {store_id}; nothing was changed")
    return fresh


def dump_command(url: str) -> str | None:
    """What copies a PostgreSQL store, to be run in a shell; without the password. None for SQLite."""
    backend = backend_of(url)
    if not isinstance(backend, PostgreSQL):
        return None
    with _connected(url, write=False) as connection:
        schema = connection.execute(select(func.current_schema())).scalar_one()
    # Naming the schema that every database has would make its restoration fail at creating it.
    only = [] if schema == "public" else [f'--schema="{schema}"']
    return shlex.join(["pg_dump", "--format=custom", "--file=weft.dump", *only, backend.address])


@contextmanager
def _connected(url: str, *, write: bool) -> Iterator[Connection]:
    backend = backend_of(url)
    engine = backend.engine()
    options = backend.transaction_options(write)
    try:
        with engine.connect().execution_options(**options) as connection, connection.begin():
            yield connection
    except DatabaseError as error:
        raise backend.refusal(error) from error
    finally:
        engine.dispose()

"""What SQLite and PostgreSQL do differently: opening, transactions, upserts, and what errors mean."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from sqlalchemy import (
    Connection,
    Engine,
    Insert,
    Table,
    bindparam,
    column,
    create_engine,
    event,
    func,
    select,
    text,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, OperationalError

from graph.errors import Corrupt, InvalidInput, Unavailable, WeftError

Row = dict[str, Any]

URL_RULE = (
    "allowed are sqlite:////PATH/FILE and postgresql://USER:PASSWORD@HOST/DATABASE, as SQLAlchemy writes them"
)

PAUSE_S = 10
"""A writer that stops between two statements for so long loses its transaction, and with it the lock."""
_LOCK_WAIT_S = 2 * PAUSE_S  # by then a writer that was stopped in mid-commit has lost it
_SCHEMA_LOCK = 0x77656674  # "weft": any number, the same in every process

# What a URL's own query says goes before these. A peer that vanished is noticed within half a minute.
_CONNECT_ARGS: dict[str, Any] = {
    "connect_timeout": 5,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 25_000,
    "application_name": "weft",
    "client_encoding": "utf8",
}

# SQLSTATEs of a server that will take the same statement another time.
_AWAY = frozenset(
    {
        "25006",  # a standby, or a server that was made one
        "25P03",  # the transaction was idle for longer than PAUSE_S
        "53300",  # no connection left
        "55P03",  # a lock was not to be had in time
        "57014",  # cancelled, as by a statement_timeout
        "57P01",  # shutting down
        "57P02",  # crashed
        "57P03",  # starting
        "57P05",  # idle for too long
    }
)
# A server that refuses a connection says so in words alone.
_REFUSED = (
    "does not exist",
    "authentication failed",
    "no pg_hba.conf entry",
    "no password supplied",
    "permission denied for database",
)


class Backend(Protocol):
    """One kind of database, under SQLAlchemy Core."""

    location: str
    """Where the database is, without a password: for messages."""

    def engine(self, **options: Any) -> Engine:
        """A new engine; `options` are those of `create_engine`."""

    def transaction_options(self, write: bool) -> dict[str, Any]:
        """Execution options of a connection that then begins a transaction."""

    def lock_schema(self, connection: Connection) -> None:
        """Let one process at a time create or change tables, until the transaction ends.

        Raises InvalidInput for a database that cannot hold every text.
        """

    def begin_scan(self, connection: Connection) -> None:
        """Called first in a read transaction whose reader may take its time."""

    def upsert(self, connection: Connection, table: Table, rows: Sequence[Row]) -> None:
        """Insert rows or replace those of the same primary key; of several with one key the last counts."""

    def away(self, error: DBAPIError) -> Unavailable | None:
        """What to raise when the database cannot be used for now; None for an error of another kind."""

    def refusal(self, error: DBAPIError) -> WeftError:
        """What an error means that opening the store met."""


def backend_of(url: str | URL | Path) -> Backend:
    """The database at a SQLAlchemy URL or SQLite file path; raises InvalidInput for any other."""
    try:
        parsed = make_url(f"sqlite:///{url}") if isinstance(url, Path) else make_url(url)
    except (ArgumentError, ValueError):  # not repeated: it may hold a password
        raise InvalidInput(f"the store's url cannot be read: {URL_RULE}", param="store.url") from None
    if parsed.drivername in ("sqlite", "sqlite+pysqlite"):
        return SQLite(parsed)
    if parsed.drivername in ("postgresql", "postgresql+psycopg"):
        return PostgreSQL(parsed)
    raise InvalidInput(f"the store's url begins with {parsed.drivername}://; {URL_RULE}", param="store.url")


class SQLite:
    """A file on this machine, in WAL mode with synchronous=FULL."""

    def __init__(self, url: URL) -> None:
        self._url = url
        self.location = url.render_as_string(hide_password=True)

    @property
    def file(self) -> Path:
        """Where it is. Raises InvalidInput for a database that is in no file."""
        if not self._url.database or self._url.database == ":memory:":
            raise InvalidInput(f"the store {self.location} is in memory, not in a file", param="store.url")
        return Path(self._url.database)

    def engine(self, **options: Any) -> Engine:
        if self._url.database and self._url.database != ":memory:":
            Path(self._url.database).parent.mkdir(parents=True, exist_ok=True)
        engine = create_engine(self._url, connect_args={"timeout": 10}, **options)
        event.listen(engine, "connect", _configure_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
        return engine

    def transaction_options(self, write: bool) -> dict[str, Any]:
        return {"weft_write": write}

    def lock_schema(self, connection: Connection) -> None:
        """The transaction has begun with the lock."""

    def begin_scan(self, connection: Connection) -> None:
        """A reader is in nobody's way."""

    def upsert(self, connection: Connection, table: Table, rows: Sequence[Row]) -> None:
        connection.execute(_sqlite_upsert(table), list(rows))

    def away(self, error: DBAPIError) -> Unavailable | None:
        return None

    def refusal(self, error: DBAPIError) -> WeftError:
        if "locked" in str(error):
            return Unavailable(f"the store {self.location} is busy: another process is writing to it")
        return Corrupt(f"{self.location} is not a database that Weft can read: {error.orig}")


class PostgreSQL:
    """A schema of a PostgreSQL database: the one that the connection's search_path names first.

    Write transactions are READ COMMITTED: their first statement updates the one row of `meta`, whose lock
    lets one writer in at a time, and whoever waited for it looks at the row again and finds the other's
    epoch. Read transactions are REPEATABLE READ: all pages of a scan show one state.
    """

    def __init__(self, url: URL) -> None:
        self._url = url.set(drivername="postgresql+psycopg")
        # The query may hold a password of its own.
        shown = {key: value for key, value in url.query.items() if key in ("host", "port")}
        self.location = url.set(drivername="postgresql", query=shown).render_as_string(hide_password=True)
        self.address = URL.create(
            "postgresql", url.username, None, url.host, url.port, url.database, shown
        ).render_as_string()
        """For PostgreSQL's own tools, without the password."""

    def engine(self, **options: Any) -> Engine:
        query = self._url.query
        engine = create_engine(
            self._url,
            **{"pool_pre_ping": True, "isolation_level": "READ COMMITTED"} | options,
            connect_args={key: value for key, value in _CONNECT_ARGS.items() if key not in query},
            hide_parameters=True,  # private texts, in an error that is logged
        )
        event.listen(engine, "connect", _configure_postgresql)
        return engine

    def transaction_options(self, write: bool) -> dict[str, Any]:
        return {} if write else {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}

    def lock_schema(self, connection: Connection) -> None:
        encoding = connection.execute(text("SHOW server_encoding")).scalar_one()
        if encoding != "UTF8":
            raise InvalidInput(
                f"the database {self.location} has the encoding {encoding}, which cannot hold every text: "
                "create one with ENCODING 'UTF8'",
                param="store.url",
            )
        # CREATE TABLE IF NOT EXISTS fails when another transaction creates the same table meanwhile.
        connection.execute(select(func.pg_advisory_xact_lock(_SCHEMA_LOCK)))

    def begin_scan(self, connection: Connection) -> None:
        connection.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))

    def upsert(self, connection: Connection, table: Table, rows: Sequence[Row]) -> None:
        keys = [c.name for c in table.primary_key]
        # One statement may not touch a row twice.
        last = {tuple(row[key] for key in keys): row for row in rows}.values()
        columns = {c.name: [row[c.name] for row in last] for c in table.columns}
        connection.execute(_postgresql_upsert(table), columns)

    def away(self, error: DBAPIError) -> Unavailable | None:
        state = _sqlstate(error)
        connecting = state is None and isinstance(error, OperationalError)
        if not (error.connection_invalidated or connecting or state in _AWAY or (state or "")[:2] == "08"):
            return None
        return Unavailable(f"the store {self.location} does not answer ({_reason(error)}); try again")

    def refusal(self, error: DBAPIError) -> WeftError:
        reason = _reason(error)
        if _sqlstate(error) is None and any(words in reason for words in _REFUSED):
            return InvalidInput(f"the store {self.location} cannot be opened: {reason}", param="store.url")
        away = self.away(error)
        return away or Corrupt(f"{self.location} is not a database that Weft can use: {reason}")


# --------------------------------------------------------------------------------------------------- SQLite


def _configure_sqlite(connection: Any, _record: object) -> None:
    # The driver's own implicit BEGIN comes too late and is never IMMEDIATE: we begin ourselves.
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")  # an acknowledged write survives power loss
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    # IMMEDIATE takes the write lock before the first read, so the epoch check cannot go stale.
    write = connection.get_execution_options().get("weft_write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")


@cache
def _sqlite_upsert(table: Table) -> Insert:
    return _replacing(sqlite.insert(table), table)


# ----------------------------------------------------------------------------------------------- PostgreSQL


def _configure_postgresql(connection: Any, _record: object) -> None:
    settings = {
        "idle_in_transaction_session_timeout": f"{PAUSE_S}s",
        "lock_timeout": f"{_LOCK_WAIT_S}s",
        # The server's side of a connection whose client is gone without a word.
        "tcp_keepalives_idle": "10",
        "tcp_keepalives_interval": "5",
        "tcp_keepalives_count": "3",
    }
    each = ", ".join(["set_config(%s, %s, false)"] * len(settings))
    connection.execute(f"SELECT {each}", [part for pair in settings.items() for part in pair])
    # An acknowledged write survives power loss; remote_apply promises that and more.
    connection.execute(
        "SELECT set_config('synchronous_commit', 'on', false)"
        " WHERE current_setting('synchronous_commit') <> 'remote_apply'"
    )
    connection.commit()


@cache
def _postgresql_upsert(table: Table) -> Insert:
    # An array for each column: one statement, prepared once, for any number of rows.
    columns = [column(c.name, c.type) for c in table.columns]
    arrays = [bindparam(c.name, type_=postgresql.ARRAY(c.type, dimensions=1)) for c in columns]
    given = func.unnest(*arrays).table_valued(*columns).render_derived("given")
    names = [c.name for c in columns]
    return _replacing(postgresql.insert(table).from_select(names, select(*given.c)), table)


def _sqlstate(error: DBAPIError) -> str | None:
    state = getattr(error.orig, "sqlstate", None)
    return state if isinstance(state, str) else None


def _reason(error: DBAPIError) -> str:
    """The first line of what the driver says, which never holds a password."""
    lines = str(error.orig).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error.orig).__name__


def _replacing(fresh: Any, table: Table) -> Insert:
    keys = [c.name for c in table.primary_key]
    rest = {c.name: fresh.excluded[c.name] for c in table.columns if c.name not in keys}
    replacing: Insert = fresh.on_conflict_do_update(index_elements=keys, set_=rest)
    return replacing


__all__ = ["PAUSE_S", "Backend", "PostgreSQL", "SQLite", "backend_of"]

"""The SQLite file of the cache: telling ours from others', moving a damaged one aside, connections to it."""

from __future__ import annotations

import fcntl
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from models.embedding_cache.store import StoreUnavailable

_log = logging.getLogger(__name__)

APPLICATION_ID = 0x57454654  # "WEFT"
FORMAT = 1
_MAGIC = b"SQLite format 3\0"
_PAGE_BYTES = 8192
_DAMAGE = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_SCHEMA = (
    "CREATE TABLE namespaces (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE)",
    # Not WITHOUT ROWID: rows of 800 bytes under random keys would each be written into another page, at a
    # quarter of the speed. Here they are appended, and the order of ids is the order of writing.
    "CREATE TABLE entries (id INTEGER PRIMARY KEY, namespace INTEGER NOT NULL, key BLOB NOT NULL,"
    " written_at REAL, expires_at REAL, value BLOB NOT NULL, UNIQUE (namespace, key))",
)


class SQLiteFile:
    """Connections to one cache file, each used by one thread at a time; reopened after a fork."""

    def __init__(self, path: Path, busy_timeout_s: float) -> None:
        """Open or create the file. Raises StoreUnavailable where it cannot, or it is somebody else's."""
        self.path = path
        self._busy_timeout_s = busy_timeout_s
        self._lock = threading.Lock()
        self._idle: list[sqlite3.Connection] = []
        self._generation = 0
        self._pid = os.getpid()
        self._closed = False
        with self._failures():
            self._prepare()

    @contextmanager
    def connection(self) -> Iterator[sqlite3.Connection]:
        """A connection for one call, in autocommit mode. A damaged file is replaced by an empty one.

        Raises StoreUnavailable for whatever SQLite or the disk refuses.
        """
        with self._failures():
            connection, generation = self._take()
            try:
                yield connection
            except BaseException as error:
                connection.close()
                if isinstance(error, sqlite3.DatabaseError) and _damaged(error):
                    self._renew(generation)
                raise
            self._give_back(connection, generation)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._drop_idle()

    def _take(self) -> tuple[sqlite3.Connection, int]:
        with self._lock:
            if self._closed:
                raise StoreUnavailable(f"the SQLite cache {self.path} is closed")
            if self._pid != os.getpid():
                # SQLite's connections do not cross a fork; closing them here would be using them.
                self._pid, self._inherited, self._idle = os.getpid(), self._idle, []
            if self._idle:
                return self._idle.pop(), self._generation
            generation = self._generation
        return self._connect(), generation

    def _give_back(self, connection: sqlite3.Connection, generation: int) -> None:
        with self._lock:
            if not self._closed and generation == self._generation:
                self._idle.append(connection)
                return
        connection.close()

    def _renew(self, generation: int) -> None:
        with self._lock:
            if generation == self._generation:
                self._generation += 1
                self._drop_idle()
                self._prepare()

    def _drop_idle(self) -> None:
        while self._idle:
            self._idle.pop().close()

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self.path, timeout=self._busy_timeout_s, isolation_level=None, check_same_thread=False
        )
        try:
            connection.execute("PRAGMA synchronous=NORMAL")
        except BaseException:
            connection.close()
            raise
        return connection

    def _prepare(self) -> None:
        """Make sure that a usable file of ours is there; one process at a time decides."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._exclusively():
            try:
                self._create_or_check()
            except sqlite3.DatabaseError as error:
                if not _damaged(error):
                    raise
                self._move_aside(str(error))
                self._create_or_check()

    def _create_or_check(self) -> None:
        if self.path.exists():
            with self.path.open("rb") as file:
                head = file.read(len(_MAGIC))
            if head and head != _MAGIC:
                raise _damage("it does not begin as a SQLite file does")
        with closing(self._connect()) as connection:
            tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
            ours = connection.execute("PRAGMA application_id").fetchone()[0] == APPLICATION_ID
            if not ours and tables:
                raise StoreUnavailable(
                    f"{self.path} is the SQLite database of another program (tables {sorted(tables)[:5]}):"
                    " it was left alone; name another file for the cache"
                )
            if ours and connection.execute("PRAGMA user_version").fetchone()[0] != FORMAT:
                raise _damage("it has the format of another version")
            if ours:
                if not {"namespaces", "entries"} <= tables:
                    raise _damage("its tables are missing")
                connection.execute("SELECT id, written_at FROM entries ORDER BY id LIMIT 1").fetchone()
                return
            connection.execute(f"PRAGMA page_size={_PAGE_BYTES}")
            connection.execute("PRAGMA auto_vacuum=INCREMENTAL")
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("BEGIN IMMEDIATE")
            for statement in _SCHEMA:
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id={APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version={FORMAT}")
            connection.execute("COMMIT")

    def _move_aside(self, reason: str) -> None:
        aside = self.path.with_name(f"{self.path.name}.damaged-{time.time_ns()}")
        os.replace(self.path, aside)
        for suffix in ("-wal", "-shm"):
            # Left behind, they would be replayed into the new file.
            beside = self.path.with_name(self.path.name + suffix)
            if beside.exists():
                os.replace(beside, aside.with_name(aside.name + suffix))
        _log.warning(
            "the SQLite cache %s could not be used (%s): moved to %s, going on with an empty one",
            self.path,
            reason,
            aside.name,
        )

    @contextmanager
    def _exclusively(self) -> Iterator[None]:
        deadline = time.monotonic() + self._busy_timeout_s
        with self.path.with_name(self.path.name + ".lock").open("ab") as lock:
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(0.01)
            yield

    @contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise StoreUnavailable(f"the SQLite cache {self.path} failed: {error}") from error


def _damage(reason: str) -> sqlite3.DatabaseError:
    error = sqlite3.DatabaseError(reason)
    error.sqlite_errorcode = sqlite3.SQLITE_NOTADB
    return error


def _damaged(error: sqlite3.DatabaseError) -> bool:
    # The low byte: extended codes say which part is corrupt.
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in _DAMAGE

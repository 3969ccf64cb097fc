"""The cache in one SQLite file: what serves when no Redis answers."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

from models.embedding_cache.sqlite_file import SQLiteFile
from models.embedding_cache.store import Entry, StoreStatistics

_CHUNK = 500
_BATCH = 1000
_EVICT_ROWS = 256
_EXPIRE_ROWS = 2 * _BATCH  # looked at per write: more than it adds, so that the file does not grow for ever
_MARKS = ",".join("?" * _CHUNK)  # one statement whatever the batch: SQLite keeps it compiled
_GET = (
    "SELECT key, value FROM entries WHERE namespace = ? AND (expires_at IS NULL OR expires_at > ?)"  # noqa: S608
    f" AND key IN ({_MARKS})"
)
_DELETE_OLD = (
    "DELETE FROM entries WHERE id IN (SELECT id FROM"
    " (SELECT id, expires_at FROM entries ORDER BY id LIMIT ?) WHERE expires_at <= ?)"
)
_DELETE_EXPIRED = f"DELETE FROM entries WHERE namespace = ? AND expires_at <= ? AND key IN ({_MARKS})"  # noqa: S608
_DELETE = f"DELETE FROM entries WHERE namespace = ? AND key IN ({_MARKS})"  # noqa: S608


class SQLiteStore:
    """An EmbeddingStore in a file (WAL), for any number of threads and processes of one machine.

    A damaged file is moved aside with a warning and the store starts empty; a healthy database of another
    program is refused with StoreUnavailable. A crash of the machine may cost the last entries, never their
    integrity (synchronous=NORMAL).
    """

    kind = "sqlite"

    def __init__(
        self,
        path: str | Path,
        *,
        max_bytes: int | None = None,
        busy_timeout_s: float = 2.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`max_bytes` bounds the pages in use: beyond it the entries written longest ago are dropped.

        `busy_timeout_s` bounds the wait for another process that writes. Raises StoreUnavailable.
        """
        self._file = SQLiteFile(Path(path).absolute(), busy_timeout_s)
        self._max_bytes = max_bytes
        self._clock = clock
        # SQLite lets writers poll for their turn, and an unlucky one starves: threads queue here instead.
        self._writing = threading.Lock()
        self.location = str(self._file.path)

    def __repr__(self) -> str:
        return f"SQLiteStore({self.location!r})"

    def get_many(self, namespace: str, keys: Sequence[bytes]) -> list[bytes | None]:
        if not keys:
            return []
        now = self._clock()
        found: dict[bytes, bytes] = {}
        with self._file.connection() as connection:
            number = _number(connection, namespace)
            for chunk in _chunks(keys):
                found.update(connection.execute(_GET, (number, now, *chunk)))
        return [found.get(key) for key in keys]

    def put_many(
        self, namespace: str, keys: Sequence[bytes], values: Sequence[bytes], ttl_s: float | None
    ) -> None:
        now = self._clock()
        expires_at = None if ttl_s is None else now + ttl_s
        if keys:
            self._write(
                Entry(namespace, key, value, now, expires_at) for key, value in zip(keys, values, strict=True)
            )

    def delete(self, namespace: str, keys: Sequence[bytes]) -> int:
        now = self._clock()
        dropped = 0
        with self._transaction() as connection:
            number = _number(connection, namespace)
            for chunk in _chunks(keys):
                # Expired entries go as well, but were not there any more.
                connection.execute(_DELETE_EXPIRED, (number, now, *chunk))
                dropped += connection.execute(_DELETE, (number, *chunk)).rowcount
        return dropped

    def clear(self, namespace: str | None = None) -> int:
        with self._transaction() as connection:
            connection.execute("DELETE FROM entries WHERE expires_at <= ?", (self._clock(),))
            if namespace is None:
                dropped = connection.execute("DELETE FROM entries").rowcount
            else:
                dropped = connection.execute(
                    "DELETE FROM entries WHERE namespace = ?", (_number(connection, namespace),)
                ).rowcount
        self._shrink()
        return dropped

    def prune(self, older_than_s: float) -> int:
        now = self._clock()
        with self._transaction() as connection:
            dropped = connection.execute(
                "DELETE FROM entries WHERE written_at < ? OR expires_at <= ?", (now - older_than_s, now)
            ).rowcount
        self._shrink()
        return dropped

    def namespaces(self) -> dict[str, int]:
        with self._file.connection() as connection:
            return dict(
                connection.execute(
                    "SELECT name, count(*) FROM entries JOIN namespaces ON namespaces.id = namespace"
                    " WHERE expires_at IS NULL OR expires_at > ? GROUP BY name",
                    (self._clock(),),
                )
            )

    def entries(self, namespace: str | None = None) -> Iterator[Entry]:
        with self._file.connection() as connection:
            # What is replaced meanwhile gets a higher id, and would come a second time.
            end = connection.execute("SELECT max(id) FROM entries").fetchone()[0] or 0
        last = 0
        while True:
            # By pages: an open read transaction would keep the write-ahead log growing.
            with self._file.connection() as connection:
                rows = connection.execute(
                    "SELECT entries.id, name, key, value, written_at, expires_at FROM entries"
                    " JOIN namespaces ON namespaces.id = namespace"
                    " WHERE entries.id > ?1 AND entries.id <= ?2 AND (?3 IS NULL OR name = ?3)"
                    " AND (expires_at IS NULL OR expires_at > ?4) ORDER BY entries.id LIMIT ?5",
                    (last, end, namespace, self._clock(), _BATCH),
                ).fetchall()
            if not rows:
                return
            last = rows[-1][0]
            yield from (Entry(*row[1:]) for row in rows)

    def put_entries(self, entries: Iterable[Entry]) -> int:
        written = 0
        left = iter(entries)
        while batch := list(islice(left, _BATCH)):
            now = self._clock()
            live = [entry for entry in batch if entry.expires_at is None or entry.expires_at > now]
            self._write(
                entry if entry.written_at is not None else entry._replace(written_at=now) for entry in live
            )
            written += len(live)
        return written

    def statistics(self) -> StoreStatistics:
        """`bytes` are those of the pages in use."""
        with self._file.connection() as connection:
            entries = connection.execute(
                "SELECT count(*) FROM entries WHERE expires_at IS NULL OR expires_at > ?", (self._clock(),)
            ).fetchone()[0]
            used = _used_bytes(connection)
        return StoreStatistics(self.kind, self.location, entries, used, server_max_bytes=self._max_bytes)

    def flush(self) -> None:
        """Nothing is held back."""

    def close(self) -> None:
        self._file.close()

    def _write(self, entries: Iterable[Entry]) -> None:
        with self._transaction() as connection:
            numbers: dict[str, int] = {}
            rows = []
            for entry in entries:
                if entry.namespace not in numbers:
                    connection.execute("INSERT OR IGNORE INTO namespaces (name) VALUES (?)", entry[:1])
                    numbers[entry.namespace] = _number(connection, entry.namespace)
                rows.append(
                    (numbers[entry.namespace], entry.key, entry.written_at, entry.expires_at, entry.value)
                )
            # REPLACE, not UPDATE: the new row goes to the end, where the latest written are.
            connection.executemany(
                "INSERT OR REPLACE INTO entries (namespace, key, written_at, expires_at, value)"
                " VALUES (?, ?, ?, ?, ?)",
                rows,
            )
            # Of the entries written longest ago: with one TTL for all, these are the ones to expire.
            connection.execute(_DELETE_OLD, (_EXPIRE_ROWS, self._clock()))
            if self._max_bytes is not None:
                _evict(connection, self._max_bytes)

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._writing, self._file.connection() as connection:
            connection.execute("BEGIN IMMEDIATE")
            yield connection
            connection.execute("COMMIT")

    def _shrink(self) -> None:
        """Give freed pages back to the disk."""
        with self._writing, self._file.connection() as connection:
            # As a script: `execute` takes one step of a statement without columns, and a step frees a page.
            connection.executescript("PRAGMA incremental_vacuum")


def _number(connection: sqlite3.Connection, namespace: str) -> int:
    row = connection.execute("SELECT id FROM namespaces WHERE name = ?", (namespace,)).fetchone()
    return int(row[0]) if row else -1


def _chunks(keys: Sequence[bytes]) -> Iterator[list[bytes]]:
    """Distinct keys, filled up to the size of the statements by repeating the last."""
    wanted = list(dict.fromkeys(keys))
    for at in range(0, len(wanted), _CHUNK):
        chunk = wanted[at : at + _CHUNK]
        yield chunk + chunk[-1:] * (_CHUNK - len(chunk))


def _evict(connection: sqlite3.Connection, max_bytes: int) -> None:
    while _used_bytes(connection) > max_bytes:
        dropped = connection.execute(
            "DELETE FROM entries WHERE id IN (SELECT id FROM entries ORDER BY id LIMIT ?)", (_EVICT_ROWS,)
        ).rowcount
        if not dropped:
            return


def _used_bytes(connection: sqlite3.Connection) -> int:
    pages, free, page_bytes = (
        connection.execute(f"PRAGMA {name}").fetchone()[0]
        for name in ("page_count", "freelist_count", "page_size")
    )
    return int((pages - free) * page_bytes)

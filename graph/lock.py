"""Who holds a store: an advisory lock beside it, so that a command and a service do not write at once.

For SQLite it is a file in the data directory; for PostgreSQL the server has it (`graph.postgres_lock`). The
lock only makes for a clear sentence; what protects the data is the store's epoch. It is released by the
operating system when its process ends, however it ends.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from graph.errors import StoreLocked
from graph.postgres_lock import PostgresLock, read_postgres_holder
from graph.store_backends import PostgreSQL, backend_of


def lock_of(store_url: str, data_dir: Path, holder: str, url: str | None = None) -> StoreLock | PostgresLock:
    """The lock on the store at `store_url`, not taken yet; `holder` and `url` as for StoreLock."""
    backend = backend_of(store_url)
    if isinstance(backend, PostgreSQL):
        return PostgresLock(backend, holder, url)
    return StoreLock(data_dir, holder, url)


def holder_of(store_url: str, data_dir: Path) -> dict[str, Any] | None:
    """Description of the process that holds the lock of that store now, or None when nobody does."""
    backend = backend_of(store_url)
    return read_postgres_holder(backend) if isinstance(backend, PostgreSQL) else read_holder(data_dir)


class StoreLock:
    """An exclusive lock on `<data_dir>/store.lock`, with a description of its holder inside."""

    def __init__(self, data_dir: Path, holder: str, url: str | None = None) -> None:
        """`holder` says what the process is; `url` is where it takes requests, if it does."""
        self._path = data_dir / "store.lock"
        self._holder = {"pid": os.getpid(), "holder": holder, "url": url}
        self._file: IO[str] | None = None

    def acquire(self, timeout_s: float = 0.0) -> None:
        """Take the lock, waiting up to `timeout_s`; raises StoreLocked with the holder's description."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        deadline = time.monotonic() + timeout_s
        file = self._path.open("a+", encoding="utf-8")
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if time.monotonic() >= deadline:
                    file.close()
                    holder = read_holder(self._path.parent) or {}
                    whom, pid = holder.get("holder", "another process"), holder.get("pid", "?")
                    raise StoreLocked(
                        f"{self._path.parent} is held by {whom} (pid {pid}): stop it, or send the write to it"
                    ) from None
                time.sleep(0.05)
        file.truncate(0)
        json.dump(self._holder, file)
        file.flush()
        self._file = file

    def release(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> StoreLock:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def read_holder(data_dir: Path) -> dict[str, Any] | None:
    """Description of the process that holds the lock now, or None when nobody does."""
    path = data_dir / "store.lock"
    try:
        with path.open("r", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError:
                try:
                    found = json.loads(file.read())
                except ValueError:
                    return {}
                return found if isinstance(found, dict) else {}
    except FileNotFoundError:
        return None
    return None

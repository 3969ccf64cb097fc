"""A consistent copy of a SQLite store, taken while its writer goes on."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from graph.errors import Corrupt, Unavailable

_PAGES_PER_STEP = 1_024
_BUSY_S = 10.0


def copy_sqlite(source: Path, target: Path, report: Callable[[int, int], None]) -> None:
    """Copy the database to `target`, which is not there yet, as it is when this begins.

    `report` takes pages copied and pages in all. In WAL mode neither readers nor the writer are held up; the
    log grows by what is written meanwhile. Raises Corrupt for a database that is damaged, Unavailable where
    the disk does not suffice or another process holds the file exclusively.
    """
    try:
        # Not read-only: after a crash the first to open it recovers the log. Never to create it.
        with (
            closing(sqlite3.connect(f"{source.absolute().as_uri()}?mode=rw", uri=True)) as reading,
            closing(sqlite3.connect(target)) as writing,
        ):
            reading.isolation_level = None
            reading.execute(f"PRAGMA busy_timeout = {int(_BUSY_S * 1000)}")
            # A read transaction around all steps: without it every commit of the service would make the copy
            # begin again, and a busy one would never let it end.
            reading.execute("BEGIN")
            reading.execute("SELECT count(*) FROM sqlite_master").fetchone()
            reading.backup(
                writing,
                pages=_PAGES_PER_STEP,
                progress=lambda _status, left, total: report(total - left, total),
            )
            found = writing.execute("PRAGMA quick_check(1)").fetchone()[0]
    except sqlite3.OperationalError as error:
        raise Unavailable(f"{source} cannot be copied: {error}") from error
    except sqlite3.DatabaseError as error:
        raise Corrupt(f"{source} is damaged: {error}") from error
    if found != "ok":
        raise Corrupt(f"{source} is damaged: {found}")

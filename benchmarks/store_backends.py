"""The store in SQLite and in PostgreSQL: bulk writes, single and grouped commits, a scan of everything.

    python -m benchmarks.store_backends

Both on this machine, in turn in every round. The server is WEFT_TEST_POSTGRES, by default
postgresql://postgres@127.0.0.1:5432/postgres; a schema is made in it and dropped afterwards. `executemany`
writes the same rows as the store's own statement beside it, each in a transaction of its own.
"""

from __future__ import annotations

import os
import tempfile
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
from sqlalchemy import delete
from sqlalchemy.dialects import postgresql

from benchmarks.report import percentiles, spread, write
from graph.schema import MAX_ROWS_PER_WRITE, PutItem, PutRating, PutUser, WriteRequest
from graph.store import GraphStore
from graph.store_rows import rows_of
from graph.writer import GraphWriter

SERVER = os.environ.get("WEFT_TEST_POSTGRES", "postgresql://postgres@127.0.0.1:5432/postgres")
USERS, ITEMS = 500, 1_000
BULKS = 10
COMMITS = 200
GROUP = 32


@contextmanager
def schema() -> Iterator[str]:
    name = f"weft_benchmark_{uuid.uuid4().hex}"
    with psycopg.connect(SERVER, autocommit=True) as connection:
        connection.execute(f"CREATE SCHEMA {name}".encode())
        try:
            yield f"{SERVER}?options=-csearch_path%3D{name}"
        finally:
            connection.execute(f"DROP SCHEMA {name} CASCADE".encode())


def timed(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


class Side:
    def __init__(self, url: str) -> None:
        self.store = GraphStore(url)
        self.writer = GraphWriter(self.store)
        self.times: dict[str, list[float]] = defaultdict(list)
        self._pairs = iter([(f"u{n % USERS}", f"i{(n * 7 + n // USERS) % ITEMS}") for n in range(10**6)])
        self.writer.commit([WriteRequest(tuple(PutUser(f"u{n}") for n in range(USERS)))])
        self.writer.commit([WriteRequest(tuple(PutItem(f"i{n}", "Film") for n in range(ITEMS)))])

    def _request(self, rows: int) -> WriteRequest:
        value = 0.5 + len(self.times["bulk"]) % 9 / 2
        return WriteRequest(tuple(PutRating(*next(self._pairs), value, n + 1) for n in range(rows)))

    def bulk(self) -> None:
        """A version of 5,000 ratings: the whole commit, and of it the upsert in a transaction of its own."""
        request = self._request(MAX_ROWS_PER_WRITE)
        committed: list[Any] = []
        self.times["bulk"].append(timed(lambda: committed.append(self.writer.commit([request]))))
        (changes,) = committed[0].changes
        ((table, rows),) = [(t, r) for t, r in rows_of(changes) if r]
        self.times["upsert"].append(timed(lambda: self._again(table, rows, self.store._upsert)))
        if self.store._engine.dialect.name == "postgresql":
            self.times["executemany"].append(timed(lambda: self._again(table, rows, executemany)))

    def _again(self, table: Any, rows: Any, upsert: Callable[..., None]) -> None:
        with self.store._transaction(write=True) as connection:
            connection.execute(delete(table).where(table.c.version == rows[0]["version"]))
            upsert(connection, table, rows)

    def single(self) -> None:
        request = self._request(1)
        self.times["single"].append(timed(lambda: self.writer.commit([request])))

    def group(self) -> None:
        requests = [self._request(1) for _ in range(GROUP)]
        self.times["group"].append(timed(lambda: self.writer.commit(requests)) / GROUP)

    def scan(self) -> None:
        self.times["scan"].append(timed(lambda: list(self.store.changes_since(0))))

    def figures(self) -> dict[str, Any]:
        rows = MAX_ROWS_PER_WRITE
        found = {
            "bulk_commit_rows_per_s": spread([rows / t for t in self.times["bulk"]]),
            "upsert_rows_per_s": spread([rows / t for t in self.times["upsert"]]),
            "single_commit_us": percentiles([t * 1e6 for t in self.times["single"]]),
            f"commit_of_{GROUP}_us_per_write": percentiles([t * 1e6 for t in self.times["group"]]),
            "scan_rows_per_s": spread([self.writer.view.num_ratings / t for t in self.times["scan"]]),
        }
        if self.times["executemany"]:
            found["executemany_rows_per_s"] = spread([rows / t for t in self.times["executemany"]])
        return found


def executemany(connection: Any, table: Any, rows: Any) -> None:
    fresh = postgresql.insert(table)
    keys = [c.name for c in table.primary_key]
    rest = {c.name: fresh.excluded[c.name] for c in table.columns if c.name not in keys}
    connection.execute(fresh.on_conflict_do_update(index_elements=keys, set_=rest), rows)


def measure(folder: Path) -> dict[str, Any]:
    with schema() as url:
        sides = {"sqlite": Side(f"sqlite:///{folder / 'weft.sqlite'}"), "postgresql": Side(url)}
        for steps, number in (("bulk", BULKS), ("single", COMMITS), ("group", COMMITS // 5), ("scan", 5)):
            for _ in range(number):
                for side in sides.values():
                    getattr(side, steps)()
        for side in sides.values():
            side.store.close()
    ratios = {
        step: spread(
            [p / s for p, s in zip(sides["postgresql"].times[step], sides["sqlite"].times[step], strict=True)]
        )
        for step in ("bulk", "upsert", "single", "group", "scan")
    }
    figures = {name: side.figures() for name, side in sides.items()}
    return {**figures, "postgresql_over_sqlite_time": ratios}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        write("store_backends", measure(Path(name)))

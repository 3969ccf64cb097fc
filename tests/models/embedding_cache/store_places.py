"""Places where an embedding store can be opened, one per implementation, for the tests all of them share."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from models.embedding_cache.memory_store import MemoryStore
from models.embedding_cache.redis_store import RedisStore
from models.embedding_cache.sqlite_store import SQLiteStore
from models.embedding_cache.store import EmbeddingStore

from .redis_server import EXECUTABLE, redis_cluster, redis_server

KINDS = ("memory", "sqlite", "redis", "cluster", "jsonl", "jsonl.gz", "parquet", "datasets")


@dataclass
class Clock:
    """Time that passes when told to."""

    now: float

    def __call__(self) -> float:
        return self.now


@dataclass(frozen=True)
class Place:
    kind: str
    clock: Clock
    open: Callable[[], EmbeddingStore]
    lasting: bool
    """Whether a second handle finds what a first wrote."""
    own_time: bool
    """Whether entries expire by `clock` alone."""

    @contextmanager
    def opened(self) -> Iterator[EmbeddingStore]:
        store = self.open()
        try:
            yield store
        finally:
            store.close()


def flush(store: EmbeddingStore) -> None:
    """Let other handles see what this one wrote."""
    if hasattr(store, "flush"):
        store.flush()


@contextmanager
def a_place(kind: str, folder: Path, missing: Callable[[str], None]) -> Iterator[Place]:
    clock = Clock(time.time())
    if kind in ("redis", "cluster"):
        if EXECUTABLE is None:
            missing("no redis-server on the path")
        serving = redis_server if kind == "redis" else redis_cluster
        with serving(folder) as server:
            yield Place(
                kind,
                clock,
                lambda: RedisStore(server.url, cluster=kind == "cluster", timeout_s=5.0, clock=clock),
                lasting=True,
                own_time=False,
            )
        return
    yield Place(kind, clock, _opener(kind, folder, clock), lasting=kind != "memory", own_time=True)


def _opener(kind: str, folder: Path, clock: Clock) -> Callable[[], EmbeddingStore]:
    if kind == "memory":
        return lambda: MemoryStore(clock=clock)
    if kind == "sqlite":
        return lambda: SQLiteStore(folder / "cache.sqlite", clock=clock)
    from models.embedding_cache.datasets_store import DatasetsStore
    from models.embedding_cache.jsonl_store import JSONLStore
    from models.embedding_cache.parquet_store import ParquetStore

    if kind.startswith("jsonl"):
        return lambda: JSONLStore(folder, compressed=kind.endswith(".gz"), clock=clock)
    if kind == "parquet":
        return lambda: ParquetStore(folder, clock=clock)
    return lambda: DatasetsStore(folder, clock=clock)

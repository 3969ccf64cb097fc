"""A store from a URL, and the one to take when nothing, or nothing reachable, was named."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from graph.errors import InvalidInput
from models.embedding_cache.memory_store import MemoryStore
from models.embedding_cache.sqlite_store import SQLiteStore
from models.embedding_cache.store import EmbeddingStore, StoreUnavailable

_log = logging.getLogger(__name__)

DEFAULT_REDIS_URL = "redis://localhost:6379"
_REDIS = ("redis", "rediss", "unix", "redis+cluster", "rediss+cluster")
_FILES = ("jsonl", "parquet", "datasets")
SCHEMES = (*_REDIS, "sqlite", *_FILES, "memory", "none")


@dataclass(frozen=True, slots=True)
class Opened:
    """The store found, and why it is not the one asked for."""

    store: EmbeddingStore | None
    """None: every text is encoded anew."""
    degraded: str | None
    """None: it is the one asked for."""


def open_store(
    url: str,
    *,
    username: str | None = None,
    password: str | None = None,
    ca_file: str | None = None,
    connect_timeout_s: float = 0.25,
    timeout_s: float = 0.25,
    sqlite_max_bytes: int | None = None,
) -> EmbeddingStore | None:
    """The store at `url`, asked whether it answers; None for `none://`.

    `redis://`, `rediss://`, `unix://` and `redis+cluster://` as in `parse_redis_url`; `sqlite:///file`,
    `jsonl:///folder` (`?gz=1` to compress), `parquet:///folder`, `datasets:///folder` with absolute paths
    after three slashes, or relative ones as in `sqlite://./cache.sqlite`; `memory://`. User, password and
    certificate authority may be given apart from the URL of a Redis, and then go before what it says.

    Raises InvalidInput for a URL that cannot be read, StoreUnavailable if the store does not answer.
    """
    scheme, separator, _ = url.partition("://")
    if not separator or scheme not in SCHEMES:
        allowed = ", ".join(f"{known}://" for known in SCHEMES)
        # Nothing of the URL beyond its scheme: it may hold a password.
        named = f"begins with {scheme!r}" if separator else "has no scheme"
        raise InvalidInput(f"the URL of the embedding cache {named}; allowed are {allowed}")
    store: EmbeddingStore
    if scheme == "none":
        return None
    if scheme == "memory":
        store = MemoryStore()
    elif scheme in _REDIS:
        # Here and below: what is not asked for need not be installed.
        from models.embedding_cache.redis_store import RedisStore

        store = redis_store = RedisStore(
            url,
            username=username,
            password=password,
            ca_file=ca_file,
            connect_timeout_s=connect_timeout_s,
            timeout_s=timeout_s,
        )
        try:
            redis_store.ping()
        except StoreUnavailable:
            redis_store.close()
            raise
    elif scheme == "sqlite":
        store = SQLiteStore(_path(url), max_bytes=sqlite_max_bytes)
    else:
        store = _open_files(scheme, url)
    _log.info("connected to the embedding cache: %s at %s", store.kind, store.location)
    return store


def open_with_fallback(
    url: str | None,
    sqlite_path: Path,
    *,
    username: str | None = None,
    password: str | None = None,
    ca_file: str | None = None,
    connect_timeout_s: float = 0.25,
    timeout_s: float = 0.25,
    sqlite_max_bytes: int | None = None,
) -> Opened:
    """The store at `url`, else the SQLite file, else none: a cache that is away costs time, not answers.

    `url` None: the Redis on this machine when it answers, else the SQLite file, neither of which is degraded.
    Raises InvalidInput for a URL that cannot be read: that is a mistake, not an outage.
    """
    reason: str | None = None
    try:
        store = open_store(
            url if url is not None else DEFAULT_REDIS_URL,
            username=username,
            password=password,
            ca_file=ca_file,
            connect_timeout_s=connect_timeout_s,
            timeout_s=timeout_s,
            sqlite_max_bytes=sqlite_max_bytes,
        )
        return Opened(store, None)
    except StoreUnavailable as error:
        if url is None:
            _log.info("no Redis on this machine (%s): the embedding cache is a SQLite file", error)
        else:
            reason = f"{error}; using the SQLite file {sqlite_path} instead"
            _log.warning("embedding cache unavailable: %s", reason)
    try:
        fallback = SQLiteStore(sqlite_path, max_bytes=sqlite_max_bytes)
    except StoreUnavailable as error:
        reason = f"{reason}, and {error}" if reason else str(error)
        reason += "; nothing is cached"
        _log.warning("embedding cache unavailable: %s", reason)
        return Opened(None, reason)
    _log.info("connected to the embedding cache: %s at %s", fallback.kind, fallback.location)
    return Opened(fallback, reason)


def _open_files(scheme: str, url: str) -> EmbeddingStore:
    if scheme == "jsonl":
        from models.embedding_cache.jsonl_store import JSONLStore

        return JSONLStore(_path(url), compressed=urlsplit(url).query in ("gz=1", "gz=true"))
    if scheme == "parquet":
        from models.embedding_cache.parquet_store import ParquetStore

        return ParquetStore(_path(url))
    from models.embedding_cache.datasets_store import DatasetsStore

    return DatasetsStore(_path(url))


def _path(url: str) -> Path:
    split = urlsplit(url)
    path = unquote(split.netloc + split.path)
    if not path.strip("/"):
        raise InvalidInput(f"{url} names no path; write it as in {split.scheme}:///var/lib/weft/cache")
    return Path(path)

"""The cache in Redis: one server over TCP, TLS or a Unix socket, or a Redis Cluster.

A key is `weft:emb:{<namespace>:<bucket>}:<digest>`: the namespace readable (percent-encoded where it holds
anything that means something in a pattern or a hash tag), the digest raw. The braces are the hash tag of
Redis Cluster: a namespace spreads over 16 slots, and a batch still goes out in few commands. A value is
preceded by the time of writing (8 bytes, big-endian float64, Unix seconds), which `prune` needs: the
remaining TTL does not tell it without the TTL of each entry, and OBJECT IDLETIME counts from the last read.
"""

from __future__ import annotations

import math
import struct
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from itertools import islice
from operator import itemgetter
from typing import Any
from urllib.parse import quote, unquote

import redis
from redis.exceptions import RedisClusterException, ResponseError

from models.embedding_cache.redis_address import RedisAddress, parse_redis_url
from models.embedding_cache.redis_link import ClusterLink, Parts, RedisLink, Reply, ServerLink
from models.embedding_cache.store import KEY_BYTES, Entry, StoreStatistics, StoreUnavailable

PREFIX = b"weft:emb:"
BUCKETS = 16
_STAMP = struct.Struct(">d")
_WITHOUT_STAMP: Callable[[Any], bytes] = itemgetter(slice(_STAMP.size, None))
_SAFE = "/:@+=,;!$&'() "
_COUNTED_KEYS = 200_000
_COUNTED_S = 0.5
_SAMPLE = 32


class RedisStore:
    """An EmbeddingStore in Redis. Making one does not connect; `ping` does."""

    kind = "redis"

    def __init__(
        self,
        url: str | RedisAddress,
        *,
        username: str | None = None,
        password: str | None = None,
        ca_file: str | None = None,
        cluster: bool = False,
        connect_timeout_s: float = 0.25,
        timeout_s: float = 0.25,
        chunk: int = 500,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`url` as in `parse_redis_url`; the credentials may come apart from it.

        `connect_timeout_s` bounds each address that a host name resolves to (the look-up of the name itself
        is the resolver's), `timeout_s` every silence of the server. `chunk`: keys to a command.

        Raises InvalidInput for a URL that cannot be read.
        """
        if isinstance(url, RedisAddress):
            address = url
        else:
            address = parse_redis_url(
                url, username=username, password=password, ca_file=ca_file, cluster=cluster
            )
        link = ClusterLink if address.cluster else ServerLink
        self._link: RedisLink = link(address, connect_timeout_s=connect_timeout_s, timeout_s=timeout_s)
        self._password = address.password
        self._chunk = chunk
        self._clock = clock
        self.location = address.location

    def __repr__(self) -> str:
        return f"RedisStore({self.location!r})"

    def ping(self) -> None:
        """Raises StoreUnavailable unless the server answers and lets us in."""
        with self._failures():
            for reply in self._link.everywhere((b"PING",)):
                self._checked(reply)

    def get_many(self, namespace: str, keys: Sequence[bytes]) -> list[bytes | None]:
        if not self._link.sharded:
            # Made as they are sent: keys may be digested only when asked for.
            commands = (
                (b"MGET", *_names(namespace, keys[at : at + self._chunk]))
                for at in range(0, len(keys), self._chunk)
            )
            found: list[bytes | None] = []
            with self._failures():
                for reply in self._link.execute(commands):
                    found += _unstamped(self._checked(reply))
            return found
        names = _names(namespace, keys)
        groups = self._groups(names)
        found = [None] * len(names)
        with self._failures():
            replies = self._link.execute([(b"MGET", *(names[place] for place in group)) for group in groups])
            for group, reply in zip(groups, replies, strict=True):
                for place, value in zip(group, _unstamped(self._checked(reply)), strict=True):
                    found[place] = value
        return found

    def put_many(
        self, namespace: str, keys: Sequence[bytes], values: Sequence[bytes], ttl_s: float | None
    ) -> None:
        stamp = _STAMP.pack(self._clock())
        expiry = () if ttl_s is None else (b"PX", _milliseconds(ttl_s))
        self._write(
            [
                (b"SET", name, stamp + value, *expiry)
                for name, value in zip(_names(namespace, keys), values, strict=True)
            ]
        )

    def delete(self, namespace: str, keys: Sequence[bytes]) -> int:
        return self._unlink(_names(namespace, keys))

    def clear(self, namespace: str | None = None) -> int:
        return sum(self._unlink(names) for names in self._scan(namespace))

    def prune(self, older_than_s: float) -> int:
        before = self._clock() - older_than_s
        dropped = 0
        for names in self._scan(None):
            with self._failures():
                stamps = self._link.execute([(b"GETRANGE", name, b"0", b"7") for name in names])
            old = []
            for name, stamp in zip(names, stamps, strict=True):
                written_at = None if isinstance(stamp, ResponseError) else _written_at(stamp)
                if written_at is not None and written_at < before:
                    old.append(name)
            dropped += self._unlink(old)
        return dropped

    def namespaces(self) -> dict[str, int]:
        found: dict[str, int] = {}
        for names in self._scan(None):
            for name in names:
                namespace = _namespace(name)
                found[namespace] = found.get(namespace, 0) + 1
        return found

    def entries(self, namespace: str | None = None) -> Iterator[Entry]:
        for names in self._scan(namespace):
            with self._failures():
                values = self._link.execute([(b"MGET", name) for name in names])
                ttls = self._link.execute([(b"PTTL", name) for name in names])
            now = self._clock()
            for name, reply, ttl_ms in zip(names, values, ttls, strict=True):
                value = self._checked(reply)[0]
                if value is None or len(value) < _STAMP.size or self._checked(ttl_ms) == -2:
                    continue
                expires_at = None if ttl_ms == -1 else now + ttl_ms / 1000
                yield Entry(
                    _namespace(name),
                    name[-KEY_BYTES:],
                    value[_STAMP.size :],
                    _written_at(value[: _STAMP.size]),
                    expires_at,
                )

    def put_entries(self, entries: Iterable[Entry]) -> int:
        written = 0
        left = iter(entries)
        while batch := list(islice(left, self._chunk)):
            now = self._clock()
            commands: list[Parts] = []
            for entry in batch:
                if entry.expires_at is not None and entry.expires_at <= now:
                    continue
                (name,) = _names(entry.namespace, [entry.key])
                stamp = _STAMP.pack(now if entry.written_at is None else entry.written_at)
                expiry = () if entry.expires_at is None else (b"PX", _milliseconds(entry.expires_at - now))
                commands.append((b"SET", name, stamp + entry.value, *expiry))
            self._write(commands)
            written += len(commands)
        return written

    def statistics(self) -> StoreStatistics:
        """`entries` and `bytes` are None beyond 200,000 keys in the database or half a second of counting."""
        with self._failures():
            memory = [_fields(self._checked(reply)) for reply in self._link.everywhere((b"INFO", b"memory"))]
            keys = sum(self._checked(reply) for reply in self._link.everywhere((b"DBSIZE",)))
        names = self._counted() if keys <= _COUNTED_KEYS else None
        limit = sum(fields.get("maxmemory", 0) for fields in memory)
        return StoreStatistics(
            self.kind,
            self.location,
            entries=None if names is None else len(names),
            bytes=None if names is None else self._bytes(names),
            server_memory_bytes=sum(fields.get("used_memory", 0) for fields in memory) or None,
            server_max_bytes=limit or None,
        )

    def flush(self) -> None:
        """Nothing is held back."""

    def close(self) -> None:
        self._link.close()

    def _counted(self) -> list[bytes] | None:
        deadline = time.monotonic() + _COUNTED_S
        found: list[bytes] = []
        for names in self._scan(None):
            found += names
            if time.monotonic() > deadline:
                return None
        return found

    def _bytes(self, names: list[bytes]) -> int | None:
        sample = names[:: max(1, len(names) // _SAMPLE)]
        with self._failures():
            replies = self._link.execute([(b"MEMORY", b"USAGE", name) for name in sample])
        sizes = [reply for reply in replies if isinstance(reply, int)]
        if len(sizes) < len(sample) / 2:
            return 0 if not names else None
        return round(sum(sizes) / len(sizes) * len(names)) if sizes else 0

    def _scan(self, namespace: str | None) -> Iterator[list[bytes]]:
        """Names of our keys by pages, each once; SCAN may repeat some while the server's table grows."""
        start = PREFIX + b"{" + (b"" if namespace is None else _encoded(namespace) + b":")
        seen: set[bytes] = set()
        pages = self._link.scan(start + b"*", self._chunk)
        while True:
            with self._failures():
                page = next(pages, None)
            if page is None:
                return
            fresh = [name for name in dict.fromkeys(page) if name not in seen and _ours(name, namespace)]
            if fresh:
                seen.update(fresh)
                yield fresh

    def _write(self, commands: Sequence[Parts]) -> None:
        with self._failures():
            for reply in self._link.execute(commands):
                self._checked(reply)

    def _unlink(self, names: Sequence[bytes]) -> int:
        commands = [(b"UNLINK", *(names[place] for place in group)) for group in self._groups(names)]
        with self._failures():
            return sum(self._checked(reply) for reply in self._link.execute(commands))

    def _groups(self, names: Sequence[bytes]) -> list[list[int]]:
        """Places of the names, so many to a command, and on a cluster of one hash tag."""
        by_tag: dict[bytes, list[int]] = {}
        for place, name in enumerate(names):
            by_tag.setdefault(name[:-KEY_BYTES] if self._link.sharded else b"", []).append(place)
        return [
            places[at : at + self._chunk]
            for places in by_tag.values()
            for at in range(0, len(places), self._chunk)
        ]

    def _checked(self, reply: Reply) -> Reply:
        if isinstance(reply, ResponseError):
            raise reply
        return reply

    @contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except (redis.RedisError, RedisClusterException, OSError) as error:
            text = " ".join(str(error).split())
            # A server may repeat the words of a command it refuses, those of AUTH included.
            secret = bool(self._password) and str(self._password) in text
            reason = type(error).__name__ if secret or not text else f"{type(error).__name__}: {text}"
            if isinstance(error, redis.exceptions.OutOfMemoryError):
                reason = (
                    "out of memory and evicting nothing: raise maxmemory or set maxmemory-policy allkeys-lru"
                )
            raise StoreUnavailable(f"Redis at {self.location} failed: {reason}") from (
                None if secret else error
            )


@lru_cache(maxsize=256)
def _encoded(namespace: str) -> bytes:
    return quote(namespace, safe=_SAFE).encode("ascii")


@lru_cache(maxsize=256)
def _prefixes(namespace: str) -> tuple[bytes, ...]:
    """By first byte of the key."""
    return tuple(PREFIX + b"{%b:%x}:" % (_encoded(namespace), byte % BUCKETS) for byte in range(256))


def _names(namespace: str, keys: Sequence[bytes]) -> list[bytes]:
    prefixes = _prefixes(namespace)
    return [prefixes[key[0]] + key for key in keys]


def _ours(name: bytes, namespace: str | None) -> bool:
    """Whether the cache writes such names: a pattern alone would also find what others put beside them."""
    found = _namespace_of_prefix(name[:-KEY_BYTES])
    return (
        found is not None
        and namespace in (None, found)
        and name[:-KEY_BYTES] == _prefixes(found)[name[-KEY_BYTES]]
    )


def _namespace(name: bytes) -> str:
    found = _namespace_of_prefix(name[:-KEY_BYTES])
    assert found is not None
    return found


@lru_cache(maxsize=4096)
def _namespace_of_prefix(prefix: bytes) -> str | None:
    head, tail = PREFIX + b"{", b":f}:"
    if len(prefix) < len(head) + len(tail) or not prefix.startswith(head):
        return None
    try:
        return unquote(prefix[len(head) : -len(tail)].decode("ascii"), errors="strict")
    except UnicodeDecodeError:
        return None


def _unstamped(values: Sequence[bytes | None]) -> list[bytes | None]:
    try:
        # In C over all: even a comprehension costs twice as much.
        entries: list[bytes | None] = list(map(_WITHOUT_STAMP, values))
        if b"" not in entries:
            return entries
    except TypeError:  # None, which has no bytes
        pass
    # A value shorter than a stamp is not ours.
    return [None if value is None or len(value) < 8 else value[8:] for value in values]


def _written_at(stamp: bytes) -> float | None:
    if len(stamp) != _STAMP.size:
        return None
    (found,) = _STAMP.unpack(stamp)
    return found if math.isfinite(found) and found >= 0 else None


def _milliseconds(ttl_s: float) -> bytes:
    return b"%d" % max(1, math.ceil(ttl_s * 1000))


def _fields(info: bytes) -> dict[str, int]:
    pairs = (line.partition(":") for line in info.decode("utf-8", "replace").splitlines())
    return {name: int(value) for name, _, value in pairs if value.isdigit()}

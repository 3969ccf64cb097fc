"""A store of the embedding cache in this process's memory: for tests, and the fake beside the protocol."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from models.embedding_cache.store import Entry, StoreStatistics


class _Kept(NamedTuple):
    value: bytes
    written_at: float
    expires_at: float | None


class MemoryStore:
    """Entries in dictionaries, unbounded.

    Args:
        clock: Unix seconds.
    """

    kind = "memory"
    location = "this process"

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._spaces: dict[str, dict[bytes, _Kept]] = {}

    def get_many(self, namespace: str, keys: Sequence[bytes]) -> list[bytes | None]:
        now = self._clock()
        with self._lock:
            space = self._spaces.get(namespace, {})
            found = [space.get(key) for key in keys]
        return [
            None if kept is None or (kept[2] is not None and kept[2] <= now) else kept[0] for kept in found
        ]

    def put_many(
        self, namespace: str, keys: Sequence[bytes], values: Sequence[bytes], ttl_s: float | None
    ) -> None:
        now = self._clock()
        expires_at = None if ttl_s is None else now + ttl_s
        with self._lock:
            space = self._spaces.setdefault(namespace, {})
            for key, value in zip(keys, values, strict=True):
                space[key] = _Kept(value, now, expires_at)

    def delete(self, namespace: str, keys: Sequence[bytes]) -> int:
        with self._lock:
            space = self._spaces.get(namespace, {})
            dropped = sum(self._counts(space.pop(key, None)) for key in keys)
            self._forget_empty()
        return dropped

    def clear(self, namespace: str | None = None) -> int:
        with self._lock:
            names = list(self._spaces) if namespace is None else [namespace]
            spaces = [self._spaces.pop(name, {}) for name in names]
            return sum(self._counts(kept) for space in spaces for kept in space.values())

    def prune(self, older_than_s: float) -> int:
        with self._lock:
            horizon = self._clock() - older_than_s
            dropped = 0
            for space in self._spaces.values():
                old = [
                    key for key, kept in space.items() if kept.written_at < horizon or not self._counts(kept)
                ]
                for key in old:
                    del space[key]
                dropped += len(old)
            self._forget_empty()
        return dropped

    def namespaces(self) -> dict[str, int]:
        with self._lock:
            counts = {
                name: sum(map(self._counts, space.values())) for name, space in sorted(self._spaces.items())
            }
        return {name: count for name, count in counts.items() if count}

    def entries(self, namespace: str | None = None) -> Iterator[Entry]:
        with self._lock:
            found = [
                Entry(name, key, *kept)
                for name, space in self._spaces.items()
                if namespace is None or name == namespace
                for key, kept in space.items()
                if self._counts(kept)
            ]
        yield from found

    def put_entries(self, entries: Iterable[Entry]) -> int:
        now, written = self._clock(), 0
        for entry in entries:
            if entry.expires_at is not None and entry.expires_at <= now:
                continue
            kept = _Kept(entry.value, now if entry.written_at is None else entry.written_at, entry.expires_at)
            with self._lock:
                self._spaces.setdefault(entry.namespace, {})[entry.key] = kept
            written += 1
        return written

    def statistics(self) -> StoreStatistics:
        with self._lock:
            sizes = [
                len(key) + len(kept.value)
                for space in self._spaces.values()
                for key, kept in space.items()
                if self._counts(kept)
            ]
        return StoreStatistics(self.kind, self.location, len(sizes), sum(sizes))

    def flush(self) -> None:
        """Nothing is held back."""

    def close(self) -> None:
        """Nothing to close: the entries stay readable."""

    def _counts(self, kept: _Kept | None) -> bool:
        """Whether there is an entry that has not expired."""
        return kept is not None and (kept.expires_at is None or kept.expires_at > self._clock())

    def _forget_empty(self) -> None:
        self._spaces = {name: space for name, space in self._spaces.items() if space}

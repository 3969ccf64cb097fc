"""A store as the cache sees it: behind a circuit breaker, and written behind the answer."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from models.embedding_cache.circuit_breaker import CircuitBreaker
from models.embedding_cache.store import EmbeddingStore, StoreStatistics, StoreUnavailable

T = TypeVar("T")

_LOG = logging.getLogger("weft.embedding_cache")
_READERS = 4


class StoreAccess:
    """A store that does not answer has nothing and takes nothing; it is counted, never raised.

    Args:
        store: closed by whoever opened it.
        namespace: of all entries.
        ttl_s: of what is written.
        max_waiting_entries: entries waiting to be written; beyond them they are dropped and counted.
    """

    def __init__(
        self,
        store: EmbeddingStore,
        namespace: str,
        breaker: CircuitBreaker,
        ttl_s: float | None,
        max_waiting_entries: int,
    ) -> None:
        self.store, self.breaker = store, breaker
        self._namespace, self._ttl_s, self._max_waiting = namespace, ttl_s, max_waiting_entries
        self._readers = ThreadPoolExecutor(_READERS, thread_name_prefix="cache-read")
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="cache-write")
        self._writing = threading.Lock()
        self._counting = threading.Lock()
        self._waiting = 0
        self._closed = False
        self.errors = 0
        self.writes_dropped = 0

    def read_soon(self, read: Callable[[], None]) -> None:
        """Run something that reads on a thread that may block."""
        self._readers.submit(read)

    def read(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """One value or None per key."""
        found = self._ask(lambda: self.store.get_many(self._namespace, keys))
        return [None] * len(keys) if found is None else found

    def write_soon(
        self,
        keys: Sequence[bytes],
        values: Sequence[bytes],
        current: Callable[[], Sequence[bool]],
        written: Callable[[], None],
    ) -> bool:
        """Write entries on the writer's thread; False where too many wait already.

        Args:
            keys: of the entries.
            values: of the entries.
            current: asked right before writing, for each entry: whether it may still be written.
            written: called on that thread in the end, whatever came of it.
        """
        with self._counting:
            if self._waiting and self._waiting + len(keys) > self._max_waiting:
                self.writes_dropped += len(keys)
                return False
            self._waiting += len(keys)
        self._writer.submit(self._write, keys, values, current, written)
        return True

    def delete(self, keys: Sequence[bytes] | None) -> int:
        """Drop entries (None: the namespace), after the write in progress. Raises StoreUnavailable."""
        with self._writing:
            if keys is None:
                return self.store.clear(self._namespace)
            return self.store.delete(self._namespace, keys)

    def flush(self) -> None:
        """Wait until everything handed over before has been written or dropped."""
        done: Future[None] = self._writer.submit(self._flush)
        done.result()

    def _flush(self) -> None:
        # Past the breaker: most stores hold nothing back, and that says nothing about whether they answer.
        try:
            self.store.flush()
        except StoreUnavailable as error:
            self.errors += 1
            _LOG.warning("entries could not be written: %s", error)

    def statistics(self) -> StoreStatistics | None:
        """None while the store does not answer."""
        return self._ask(self.store.statistics)

    def close(self) -> None:
        """Finish reads and writes; the store stays open."""
        self._readers.shutdown()
        if not self._closed:
            self._closed = True
            self.flush()
        self._writer.shutdown()

    def _write(
        self,
        keys: Sequence[bytes],
        values: Sequence[bytes],
        current: Callable[[], Sequence[bool]],
        written: Callable[[], None],
    ) -> None:
        try:
            with self._writing:
                fresh = [each for each in zip(keys, values, current(), strict=True) if each[2]]
                if fresh:
                    self._put([key for key, _, _ in fresh], [value for _, value, _ in fresh])
        except Exception:
            # The answer went out long ago; an error of this kind is a fault of the store's code.
            _LOG.exception("%s: could not write %d entries", self._namespace, len(keys))
            with self._counting:
                self.errors += 1
                self.writes_dropped += len(keys)
        finally:
            with self._counting:
                self._waiting -= len(keys)
            written()

    def _put(self, keys: Sequence[bytes], values: Sequence[bytes]) -> None:
        def put() -> bool:
            self.store.put_many(self._namespace, keys, values, self._ttl_s)
            return True

        if not self._ask(put):
            with self._counting:
                self.writes_dropped += len(keys)

    def _ask(self, call: Callable[[], T]) -> T | None:
        """None when the store does not answer or did not before."""
        if not self.breaker.allow():
            return None
        try:
            answer = call()
        except StoreUnavailable as error:
            with self._counting:
                self.errors += 1
            self.breaker.failed(error)
            return None
        except BaseException as error:
            self.breaker.failed(error)
            raise
        self.breaker.succeeded()
        return answer

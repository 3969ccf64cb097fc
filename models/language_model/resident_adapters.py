"""Adapters in host memory, loaded in the background."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

from graph.errors import OutOfMemory, Unavailable, WeftError
from models.language_model.lora_weights import AdapterWeights

_logger = logging.getLogger(__name__)
_ERROR_S = 1.0


class ResidentAdapters:
    """The least recently used go when there are too many or they are too large; pinned ones stay.

    Thread-safe; no lock is held while an adapter loads, so nobody waits for a disk.
    """

    def __init__(
        self,
        load: Callable[[str], AdapterWeights],
        *,
        max_count: int,
        max_bytes: int,
        num_threads: int = 2,
        on_change: Callable[[], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`load` reads the adapter of a digest, on a thread of ours. What was just loaded stays even if it
        alone is beyond `max_bytes`; so do all pinned ones.
        """
        self.on_change = on_change
        """Called after each load, with or without success, on the thread that loaded, and when this closes.
        It must not raise. An engine sets it to be woken."""
        self.max_count = max(1, max_count)
        self._load, self._clock, self._max_bytes = load, clock, max_bytes
        self._threads = ThreadPoolExecutor(num_threads, thread_name_prefix="load-adapter")
        self._lock = threading.Lock()
        self._adapters: dict[str, AdapterWeights] = {}  # least recently used first
        self._pins: dict[str, int] = {}
        self._loading: dict[str, object] = {}  # to a mark of this load; a forgotten one's result is dropped
        self._errors: dict[str, tuple[WeftError, float]] = {}  # and until when it is remembered
        self._nbytes = 0
        self._counts = dict.fromkeys(("loads", "hits", "misses", "evictions", "failures"), 0)
        self._is_closed = False

    def request(self, digest: str) -> Literal["ready", "loading"] | WeftError:
        """Whether an adapter is there; starts loading it if not.

        An error of the last load is answered for a second before the next try, so that not every request
        goes to the disk.
        """
        with self._lock:
            if digest in self._adapters:
                self._touch(digest)
                self._counts["hits"] += 1
                return "ready"
            if self._is_closed:
                return Unavailable("adapters are no longer loaded: the server is stopping")
            if digest in self._loading:
                return "loading"
            error = self._errors.get(digest)
            if error is not None:
                if self._clock() < error[1]:
                    return error[0]
                del self._errors[digest]
            self._counts["misses"] += 1
            mark = self._loading[digest] = object()
            self._threads.submit(self._run, digest, mark)
            return "loading"

    def holds(self, digest: str) -> bool:
        """Whether it is there; unlike `request` without starting anything or touching the order."""
        with self._lock:
            return digest in self._adapters

    def get(self, digest: str) -> AdapterWeights:
        """Raises KeyError if it is not there (any more): another load may have pushed it out."""
        with self._lock:
            self._touch(digest)
            return self._adapters[digest]

    def pin(self, digest: str) -> None:
        """Keep an adapter until as many `unpin`. Raises KeyError if it is not there."""
        with self._lock:
            self._touch(digest)
            self._pins[digest] = self._pins.get(digest, 0) + 1

    def unpin(self, digest: str) -> None:
        """Raises KeyError if it is not pinned."""
        with self._lock:
            self._pins[digest] -= 1
            if not self._pins[digest]:
                del self._pins[digest]
            self._shrink()

    def forget(self, digest: str) -> None:
        """Drop a deleted adapter, even if it is pinned or just loading; who has its weights may go on."""
        with self._lock:
            self._loading.pop(digest, None)
            self._errors.pop(digest, None)
            if digest in self._adapters:
                self._drop(digest)

    def evict_idle(self) -> int:
        """Drop all that are not pinned; how many bytes went."""
        with self._lock:
            before = self._nbytes
            for digest in [d for d in self._adapters if d not in self._pins]:
                self._drop(digest)
                self._counts["evictions"] += 1
            return before - self._nbytes

    def resident(self) -> tuple[str, ...]:
        """Digests, the most recently used last."""
        with self._lock:
            return tuple(self._adapters)

    def statistics(self) -> dict[str, int]:
        """How many are resident, pinned and loading, their bytes and bounds, and counts since the start.

        A miss is a request that started a load; one that finds it loading counts as nothing.
        """
        with self._lock:
            return {
                "resident": len(self._adapters),
                "max_resident": self.max_count,
                "resident_bytes": self._nbytes,
                "max_resident_bytes": self._max_bytes,
                "pinned": len(self._pins),
                "loading": len(self._loading),
                **self._counts,
            }

    def close(self) -> None:
        """Wait for the loads that run; requests for what is not there answer Unavailable from here on.

        Harmless when repeated. Whoever opened this closes it, after the engine that uses it.
        """
        with self._lock:
            self._is_closed = True
        self._threads.shutdown(wait=True, cancel_futures=True)
        with self._lock:
            self._loading.clear()  # of those that had not begun
        self._tell_change()

    def _run(self, digest: str, mark: object) -> None:
        loaded: AdapterWeights | WeftError
        try:
            loaded = self._load(digest)
        except WeftError as error:
            loaded = error
        except OSError as error:
            loaded = Unavailable(f"adapter {digest[:12]} cannot be read now: {error.strerror or error}")
        except MemoryError:
            loaded = OutOfMemory(f"no memory to load adapter {digest[:12]}")
        except Exception as error:  # a mistake of ours: told, as nobody may wait for this load for ever
            _logger.exception("loading adapter %s failed", digest)
            loaded = Unavailable(f"adapter {digest[:12]} cannot be loaded: {type(error).__name__}")
        with self._lock:
            if self._loading.get(digest) is mark:
                del self._loading[digest]
                self._take(digest, loaded)
        self._tell_change()

    def _tell_change(self) -> None:
        on_change = self.on_change  # another thread may take it away
        if on_change is not None:
            on_change()

    def _take(self, digest: str, loaded: AdapterWeights | WeftError) -> None:
        if isinstance(loaded, WeftError):
            now = self._clock()
            self._errors = {d: e for d, e in self._errors.items() if now < e[1]}
            self._errors[digest] = loaded, now + _ERROR_S
            self._counts["failures"] += 1
            _logger.warning("adapter %s cannot be loaded; its requests fall back: %s", digest, loaded)
            return
        self._counts["loads"] += 1
        self._adapters[digest] = loaded
        self._nbytes += loaded.nbytes
        self._shrink(keep=digest)

    def _shrink(self, keep: str | None = None) -> None:
        for digest in list(self._adapters):
            if len(self._adapters) <= self.max_count and self._nbytes <= self._max_bytes:
                return
            if digest not in self._pins and digest != keep:
                self._drop(digest)
                self._counts["evictions"] += 1

    def _drop(self, digest: str) -> None:
        self._nbytes -= self._adapters.pop(digest).nbytes

    def _touch(self, digest: str) -> None:
        self._adapters[digest] = self._adapters.pop(digest)

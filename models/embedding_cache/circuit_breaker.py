"""Stops asking a store that does not answer, and finds out when it does again."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

_LOG = logging.getLogger("weft.embedding_cache")


class CircuitBreaker:
    """Thread-safe. Closed: calls go through. Open: none does. Half-open: one is on its way to find out.

    Every `allow()` that answers True is followed by `succeeded()` or `failed()`.

    Args:
        name: of what is behind it, for the log.
        failures: in a row, after which it opens.
        retry_after_s: from opening to the first probe; doubles with every failed one.
        max_retry_after_s: bound of that.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        name: str,
        *,
        failures: int = 3,
        retry_after_s: float = 0.25,
        max_retry_after_s: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if failures < 1 or not 0 < retry_after_s <= max_retry_after_s:
            raise ValueError("failures must be at least 1, and 0 < retry_after_s <= max_retry_after_s")
        self._name, self._failures_allowed, self._clock = name, failures, clock
        self._first_retry_s, self._max_retry_s = retry_after_s, max_retry_after_s
        self._lock = threading.Lock()
        self._state = "closed"
        self._failures_in_row = 0
        self._retry_after_s = retry_after_s
        self._retry_at = 0.0
        self.opened = 0
        """How often it went from closed to open."""
        self.skipped = 0
        """Calls that were not let through."""

    @property
    def state(self) -> str:
        """One of "closed", "open" and "half-open"."""
        return self._state

    def allow(self) -> bool:
        """Whether to make a call now."""
        if self._state == "closed":
            return True
        with self._lock:
            if self._state == "open" and self._clock() >= self._retry_at:
                self._state = "half-open"
            elif self._state != "closed":
                self.skipped += 1
                return False
            return True

    def succeeded(self) -> None:
        """A call was answered: whatever the state, the store is there."""
        if self._state == "closed" and not self._failures_in_row:
            return
        with self._lock:
            closes = self._state != "closed"
            self._state, self._failures_in_row = "closed", 0
            self._retry_after_s = self._first_retry_s
        if closes:
            _LOG.info("%s: connected", self._name)

    def failed(self, error: BaseException) -> None:
        """A call was not answered."""
        with self._lock:
            self._failures_in_row += 1
            opens = self._state == "closed" and self._failures_in_row >= self._failures_allowed
            if opens:
                self._retry_after_s = self._first_retry_s
                self.opened += 1
            elif self._state == "half-open":
                self._retry_after_s = min(2 * self._retry_after_s, self._max_retry_s)
            else:
                return
            self._state, self._retry_at = "open", self._clock() + self._retry_after_s
        if opens:
            _LOG.warning("%s: unavailable, going on without it: %s", self._name, error)

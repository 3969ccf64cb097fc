"""Reads of a view that take milliseconds, beside an event loop that everybody waits for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

from graph.errors import Overloaded

T = TypeVar("T")

MAX_WAITING = 256
"""Reads that wait for their turn: more would wait for many seconds."""


class LongReads:
    """Runs reads on a thread while no commit is applied: a view is not thread-safe.

    The loop goes on with everything that only reads. Copying what a read needs instead would take about as
    long as the read. One at a time, for the interpreter's lock lets no two of them run at once anyway; so a
    commit waits for one read at most, whatever number of them wait.
    """

    def __init__(self, max_waiting: int = MAX_WAITING) -> None:
        self._turn, self._view = asyncio.Lock(), asyncio.Lock()
        self._max_waiting, self._waiting = max_waiting, 0
        self._running: set[asyncio.Task[object]] = set()

    async def run(self, read: Callable[[], T]) -> T:
        """The result of `read`; what it raises is raised. Raises Overloaded when too many wait already.

        Where the caller gives up while it waits, nothing is read; a read that has begun ends.
        """
        if self._waiting >= self._max_waiting:
            raise Overloaded(f"{self._max_waiting} long reads wait already; try again later")
        self._waiting += 1
        try:
            await self._turn.acquire()
        finally:
            self._waiting -= 1
        # From here on shielded: a thread cannot be stopped, and no commit may be applied before it has ended.
        task = asyncio.ensure_future(self._alone(read))
        self._running.add(task)
        task.add_done_callback(self._ended)
        return await asyncio.shield(task)

    @asynccontextmanager
    async def none(self) -> AsyncIterator[None]:
        """No read runs meanwhile."""
        async with self._view:
            yield

    async def _alone(self, read: Callable[[], T]) -> T:
        """Read, and let the next one in."""
        try:
            async with self._view:
                return await asyncio.to_thread(read)
        finally:
            self._turn.release()

    def _ended(self, task: asyncio.Task[object]) -> None:
        self._running.discard(task)
        if not task.cancelled():
            task.exception()  # is the caller's, also where there is no caller any more

"""Reads of a view that take milliseconds, beside an event loop that everybody waits for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

T = TypeVar("T")


class LongReads:
    """Runs reads on a thread while no commit is applied: a view is not thread-safe.

    The loop goes on with everything that only reads. Copying what a read needs instead would take about as
    long as the read. One at a time, for the interpreter's lock lets no two of them run at once anyway; so a
    commit waits for one read at most, whatever number of them wait.
    """

    def __init__(self) -> None:
        self._turn, self._view = asyncio.Lock(), asyncio.Lock()
        self._running: set[asyncio.Task[object]] = set()

    async def run(self, read: Callable[[], T]) -> T:
        """The result of `read`; what it raises is raised. Where the caller gives up, the read still ends."""
        task = asyncio.ensure_future(self._alone(read))
        self._running.add(task)
        task.add_done_callback(self._ended)
        # Shielded: a thread cannot be stopped, and no commit may be applied before it has ended.
        return await asyncio.shield(task)

    @asynccontextmanager
    async def none(self) -> AsyncIterator[None]:
        """No read runs meanwhile."""
        async with self._view:
            yield

    async def _alone(self, read: Callable[[], T]) -> T:
        async with self._turn, self._view:
            return await asyncio.to_thread(read)

    def _ended(self, task: asyncio.Task[object]) -> None:
        self._running.discard(task)
        if not task.cancelled():
            task.exception()  # is the caller's, also where there is no caller any more

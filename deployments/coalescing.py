"""Caller-side batching: everything that waits while a call is in flight leaves in the next call.

The call is made under the ids of all its requests: a line in the log about it is about each of them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextvars import Context
from typing import Generic, TypeVar

from deployments import request_ids
from graph.errors import Overloaded, Unavailable, WeftError

Item = TypeVar("Item")
Result = TypeVar("Result")

_PASSING = (ConnectionError, TimeoutError)
"""What the other side raises by being away or slow: the same request may succeed later."""


class Coalescer(Generic[Item, Result]):
    """Turns many concurrent `call(item)` into few `send([items])`.

    `send` takes up to `max_batch` items, in order of arrival, and answers one result per item, in that order;
    an `Exception` in place of a result is raised in the caller of that item alone. When `send` itself fails,
    or takes longer than `send_timeout_s`, its batch fails and no other. An error that is no `WeftError`
    reaches callers as `translate(error)`. By default that is a retryable `Unavailable` for a timeout or a
    broken connection and, for anything else, a plain `WeftError` that says: a defect, do not repeat. Neither
    carries the error's text; both have it as their `__cause__`.

    At most `max_in_flight` sends run at a time. At most `max_waiting` items wait for one; the next call
    raises `Overloaded`. Callers that gave up (cancelled, or past their deadline) leave the queue at once and
    hold up nobody; one whose item is in flight already just stops listening.

    Belongs to the event loop it is first used on. There is no task while nothing is asked, so an unused
    coalescer need not be closed.
    """

    def __init__(
        self,
        send: Callable[[list[Item]], Awaitable[Sequence[Result | Exception]]],
        *,
        max_batch: int = 64,
        max_in_flight: int = 1,
        max_waiting: int = 1024,
        send_timeout_s: float | None = 30.0,
        translate: Callable[[Exception], Exception] | None = None,
        waited: Callable[[float], None] | None = None,
        name: str = "coalesced call",
    ) -> None:
        """`waited` is told, of each send, the seconds that the first of its items waited for it."""
        if min(max_batch, max_in_flight, max_waiting) < 1:
            raise ValueError("max_batch, max_in_flight and max_waiting must be at least 1")
        self._send = send
        self._max_batch = max_batch
        self._max_in_flight = max_in_flight
        self._max_waiting = max_waiting
        self._send_timeout_s = send_timeout_s
        self._translate = translate or self._unexpected
        self._waited = waited
        self._name = name
        # Ordered by arrival; a dict, so that a caller who gives up leaves in O(1) and frees its place. Beside
        # an item: the requests it is for, and when it came.
        self._waiting: dict[asyncio.Future[Result], tuple[Item, str, float]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    @property
    def num_waiting(self) -> int:
        """Items that no send has taken yet."""
        return len(self._waiting)

    @property
    def num_in_flight(self) -> int:
        """Sends under way."""
        return len(self._tasks)

    async def call(self, item: Item, *, timeout_s: float | None = None) -> Result:
        """The result for `item`.

        Raises Overloaded when the queue is full, Unavailable past `timeout_s` (waiting and flight together)
        or after `close`, and whatever `send` answered or raised for this item.
        """
        if self._closed:
            raise Unavailable(f"{self._name}: shutting down; repeat the request")
        if len(self._waiting) >= self._max_waiting:
            raise Overloaded(
                f"{self._name}: {self._max_waiting} requests are waiting already; repeat the request later"
            )
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting[future] = item, request_ids.current(), time.perf_counter()
        self._pump()
        deadline = asyncio.timeout(timeout_s)
        try:
            async with deadline:
                return await future
        except TimeoutError:
            if not deadline.expired():
                raise
            raise Unavailable(f"{self._name}: no answer within {timeout_s} s; repeat the request") from None
        finally:
            self._waiting.pop(future, None)

    async def close(self) -> None:
        """Fail what waits or is in flight with Unavailable, and refuse further calls."""
        self._closed = True
        for future in self._take(len(self._waiting)):
            if not future.done():
                future.set_exception(Unavailable(f"{self._name}: shutting down; repeat the request"))
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _pump(self) -> None:
        # The task takes its batch when it first runs, so calls made in the same turn of the loop share it.
        if self._closed or not self._waiting or len(self._tasks) >= self._max_in_flight:
            return
        # An empty context: Ray Serve finds the request a handle call belongs to in a context variable, and
        # cancels the call when that request's client disconnects (serve/_private/replica.py, 2.60). Inherited
        # from the first caller, that would take down everybody else's items.
        task = asyncio.get_running_loop().create_task(self._run(), context=Context())
        self._tasks.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        # A callback and not the end of `_run`: it also happens to a task cancelled before its first step.
        self._tasks.discard(task)
        self._pump()

    def _take(self, limit: int) -> dict[asyncio.Future[Result], tuple[Item, str, float]]:
        taken: dict[asyncio.Future[Result], tuple[Item, str, float]] = {}
        for future in list(self._waiting)[:limit]:
            entry = self._waiting.pop(future)
            if not future.done():  # cancelled, but its caller has not run since
                taken[future] = entry
        return taken

    async def _run(self) -> None:
        batch = self._take(self._max_batch)
        self._pump()  # more than one batch waits and more than one send is allowed
        if not batch:
            return
        items, ids, since = zip(*batch.values(), strict=True)
        if self._waited is not None:
            self._waited(time.perf_counter() - since[0])
        try:
            with request_ids.about(request_ids.joined(ids)):
                async with asyncio.timeout(self._send_timeout_s):
                    results = await self._send(list(items))
            if len(results) != len(batch):
                raise RuntimeError(f"{self._name}: {len(results)} results for {len(batch)} items")
        except Exception as error:
            # Reported, not swallowed: every caller of this batch raises it.
            self._fail(batch, error)
            return
        except BaseException:  # cancelled: by close(), or by a loop that is going away
            self._fail(batch, Unavailable(f"{self._name}: interrupted; repeat the request"))
            raise
        for future, result in zip(batch, results, strict=True):
            if future.done():
                continue
            if isinstance(result, Exception):
                future.set_exception(self._typed(result))
            else:
                future.set_result(result)

    def _fail(self, batch: Iterable[asyncio.Future[Result]], error: Exception) -> None:
        for future in batch:
            if not future.done():
                # Translated for each: raising one shared object from many tasks would grow one traceback.
                future.set_exception(self._typed(error))

    def _typed(self, error: Exception) -> Exception:
        return error if isinstance(error, WeftError) else self._translate(error)

    def _unexpected(self, error: Exception) -> Exception:
        failure: WeftError
        if isinstance(error, _PASSING):
            failure = Unavailable(f"{self._name} failed; repeat the request")
        else:
            failure = WeftError(f"{self._name} failed on an unexpected {type(error).__name__}")
        failure.__cause__ = error
        return failure

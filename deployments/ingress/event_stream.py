"""Server-sent events: pieces of an answer while it is made, and an end to it as soon as nobody listens."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import suppress
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from deployments.ingress.errors import failure_of
from deployments.ingress.exchange import Exchange, encoded
from graph.errors import WeftError

EVENT_STREAM = "text/event-stream"
KEEP_ALIVE_S = 15.0
"""A comment is sent when nothing else was for so long: proxies close connections that are silent."""
DONE = b"data: [DONE]\n\n"

_KEEP_ALIVE = b": keep-alive\n\n"

T = TypeVar("T")


class ClientGone(WeftError):
    """The client closed the connection before its answer: nobody will read this."""

    code, status = "client_closed_request", 499


def event(payload: object, name: str | None = None) -> bytes:
    """One event, with a name where a stream has several kinds. JSON holds no line break: it is one line."""
    named = b"" if name is None else b"event: " + name.encode() + b"\n"
    return named + b"data: " + encoded(payload) + b"\n\n"


async def close(events: AsyncIterator[Any]) -> None:
    """Close an iterator, where it can be closed."""
    aclose = getattr(events, "aclose", None)
    if aclose is not None:
        await aclose()


async def until_gone(request: Request, work: Awaitable[T]) -> T:
    """The result of `work`, which is cancelled when the client goes away; raises ClientGone then.

    The body must have been read.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.create_task(disconnected(request.receive))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone("the client closed the connection")
        return task.result()
    finally:
        await _cancel(gone)
        await _cancel(task)


async def disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _cancel(task: asyncio.Future[Any]) -> None:
    if not task.done():
        task.cancel()
    # Its outcome was taken where it mattered.
    with suppress(asyncio.CancelledError, Exception):
        await task


class EventStream(Response):
    """Sends what `chunks` yields, each at once; an exception of theirs becomes the last event, `{"error"}`.

    `source` is what `chunks` are made from, if they do not begin it themselves. Both are closed at the end,
    and as soon as the client goes away.
    """

    media_type = EVENT_STREAM
    charset = "utf-8"

    def __init__(
        self,
        exchange: Exchange,
        chunks: AsyncIterator[bytes],
        source: AsyncIterator[Any] | None = None,
    ) -> None:
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._exchange = exchange
        self._chunks = chunks
        self._source = source
        self._sent_at = 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        clock = asyncio.get_running_loop().time
        gone = asyncio.create_task(disconnected(receive))
        pump: asyncio.Task[None] | None = None
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            self._sent_at = clock()
            pump = asyncio.create_task(self._pump(send))
            while True:
                silent_until = self._sent_at + KEEP_ALIVE_S
                done, _ = await asyncio.wait(
                    (pump, gone),
                    timeout=max(silent_until - clock(), 0.0),
                    return_when=asyncio.FIRST_COMPLETED,
                )
                if pump in done:
                    pump.result()
                if done:
                    return
                if clock() >= self._sent_at + KEEP_ALIVE_S:
                    await self._send(send, _KEEP_ALIVE)
        except OSError:
            # Some servers say with it that the connection is closed.
            return
        finally:
            await _cancel(gone)
            if pump is not None:
                await _cancel(pump)
            await close(self._chunks)
            # Chunks that were never asked for one have nothing to close with.
            if self._source is not None:
                await close(self._source)

    async def _pump(self, send: Send) -> None:
        async for chunk in self._with_error():
            await self._send(send, chunk)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _with_error(self) -> AsyncIterator[bytes]:
        try:
            async for chunk in self._chunks:
                yield chunk
        except Exception as exception:
            yield event({"error": failure_of(exception, self._exchange.request_id).error})

    async def _send(self, send: Send, chunk: bytes) -> None:
        await send({"type": "http.response.body", "body": chunk, "more_body": True})
        self._sent_at = asyncio.get_running_loop().time()

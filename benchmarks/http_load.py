"""Closed-loop HTTP load on keep-alive connections, with as little client CPU as Python allows.

The client shares the machine's cores with the service, so absolute rates are low; ratios between two
endpoints measured by the same client in turn are what counts.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class LoadResult:
    """Requests per second and latency percentiles in milliseconds; `errors` counts answers other than 200."""

    rate: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    requests: int
    errors: int


class _Client(asyncio.Protocol):
    """One connection: sends the next request when an answer is complete."""

    def __init__(self, next_request: Callable[[], bytes], latencies: list[float]) -> None:
        self._next, self._latencies = next_request, latencies
        self._transport: asyncio.WriteTransport | None = None
        self._buffer = b""
        self._sent = 0.0
        self.errors = 0
        self.stopping = False
        self.stopped: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]
        self._send()

    def _send(self) -> None:
        assert self._transport is not None
        if self.stopping:
            self._transport.close()
            return
        self._sent = time.perf_counter()
        self._transport.write(self._next())

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        head = self._buffer[:end].lower()
        at = head.find(b"content-length: ")
        length = int(head[at + 16 :].split(b"\r\n", 1)[0])
        if len(self._buffer) < end + 4 + length:
            return
        self._latencies.append(time.perf_counter() - self._sent)
        if b" 200 " not in head[:16]:
            self.errors += 1
        self._buffer = b""
        self._send()

    def connection_lost(self, _error: Exception | None) -> None:
        if not self.stopped.done():
            self.stopped.set_result(None)


def get(path: str) -> bytes:
    """A GET request, ready to be sent."""
    return f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: application/json\r\n\r\n".encode()


def post(path: str, body: object) -> bytes:
    """A POST request with a JSON body, ready to be sent."""
    content = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content


async def _run(
    host: str, port: int, requests: Sequence[bytes], connections: int, seconds: float
) -> LoadResult:
    place = 0

    def next_request() -> bytes:
        nonlocal place
        place += 1
        return requests[place % len(requests)]

    latencies: list[float] = []
    loop = asyncio.get_running_loop()
    clients = []
    start = time.perf_counter()
    for _ in range(connections):
        _, client = await loop.create_connection(lambda: _Client(next_request, latencies), host, port)
        clients.append(client)
    await asyncio.sleep(seconds)
    elapsed, done = time.perf_counter() - start, len(latencies)
    for client in clients:
        client.stopping = True
    await asyncio.wait([c.stopped for c in clients], timeout=5)
    p50, p90, p99 = np.percentile(np.array(latencies[:done]) * 1e3, [50, 90, 99])
    return LoadResult(
        done / elapsed, float(p50), float(p90), float(p99), done, sum(c.errors for c in clients)
    )


def load(host: str, port: int, requests: Sequence[bytes], *, connections: int, seconds: float) -> LoadResult:
    """Send `requests` in turn on `connections` connections for `seconds`, one at a time on each."""
    return asyncio.run(_run(host, port, requests, connections, seconds))

"""A TCP proxy before a PostgreSQL server that breaks a connection at its COMMIT, as networks do."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal
from urllib.parse import urlsplit, urlunsplit

Break = Literal["before", "after", "late"]

_COMMIT = b"COMMIT\0"


class BreakingProxy:
    """Passes everything on, until `break_next` says what becomes of the next COMMIT.

    before: the server never gets it. after: the server's answer to it is lost. late: the server gets it when
    `let_through` is called, long after the client has lost the connection.
    """

    def __init__(self, server: tuple[str, int]) -> None:
        self._server = server
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._break: Break | None = None
        self._refusing = False
        self._late = threading.Event()
        self._sockets: list[socket.socket] = []
        self.broken = threading.Event()
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    @property
    def port(self) -> int:
        port: int = self._listener.getsockname()[1]
        return port

    def break_next(self, how: Break, *, then_refuse: bool = False) -> None:
        """`then_refuse`: the client cannot connect again until `heal`."""
        self._break, self._then_refuse = how, then_refuse
        self.broken.clear()
        self._late.clear()

    def let_through(self) -> None:
        self._late.set()

    def heal(self) -> None:
        self._refusing = False

    def close(self) -> None:
        self._late.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for one in self._sockets:
            _close(one)
        for thread in self._threads:
            thread.join(10)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self._refusing:
                client.close()
                continue
            server = socket.create_connection(self._server)
            self._sockets += [client, server]
            for target, ends in ((self._requests, (client, server)), (self._answers, (server, client))):
                thread = threading.Thread(target=target, args=ends)
                self._threads.append(thread)
                thread.start()

    def _requests(self, client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := client.recv(1 << 16):
                if self._break is not None and _COMMIT in data:
                    how, self._break = self._break, None
                    self._refusing = self._then_refuse
                    _close(client)
                    self.broken.set()
                    if how == "late":
                        self._late.wait(30)
                    if how != "before":
                        server.sendall(data)
                    break
                server.sendall(data)
            # What was sent is read before the end of the stream.
            server.shutdown(socket.SHUT_WR)

    def _answers(self, server: socket.socket, client: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := server.recv(1 << 16):
                with contextlib.suppress(OSError):
                    client.sendall(data)
        _close(client)
        _close(server)


@contextmanager
def breaking_proxy(url: str) -> Iterator[tuple[BreakingProxy, str]]:
    """A proxy before the server of a URL, and the URL that leads through it."""
    parts = urlsplit(url)
    proxy = BreakingProxy((parts.hostname or "127.0.0.1", parts.port or 5432))
    userinfo, at, _ = parts.netloc.rpartition("@")
    try:
        yield proxy, urlunsplit(parts._replace(netloc=f"{userinfo}{at}127.0.0.1:{proxy.port}"))
    finally:
        proxy.close()


def _close(one: socket.socket) -> None:
    with contextlib.suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
    one.close()

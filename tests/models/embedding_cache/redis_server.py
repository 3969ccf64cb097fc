"""A redis-server of one's own, on a port of its own, for tests that stop, fill, stall or kill it."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

EXECUTABLE = shutil.which("redis-server")


class RedisServer:
    """Started with `start`, gone after `stop`; keeps its port, so that it can come back."""

    def __init__(self, folder: Path, *settings: str, password: str | None = None) -> None:
        self.folder = folder
        self.port = _spare_port()
        self.socket_path = folder / "redis.sock"
        self.password = password
        self._settings = settings
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def set(self, *settings: str) -> None:
        """Settings from the next start on; of repeated ones the last counts."""
        self._settings += settings

    def start(self) -> RedisServer:
        assert EXECUTABLE is not None and self._process is None
        self.folder.mkdir(parents=True, exist_ok=True)
        command = [EXECUTABLE, "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder)]
        command += ["--unixsocket", str(self.socket_path), "--save", "", "--loglevel", "warning"]
        if self.password is not None:
            command += ["--requirepass", self.password]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [*command, *self._settings], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        wait_until(self._answers, 10, f"redis-server on port {self.port} answers")
        return self

    def client(self) -> redis.Redis:
        """By the Unix socket: it works whatever the port speaks."""
        return redis.Redis(
            unix_socket_path=str(self.socket_path), password=self.password, retry=Retry(NoBackoff(), 0)
        )

    def send(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        """As a crash would; the port is free afterwards."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(10)
        self._process = None

    def stop(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)
            self.kill()

    def _answers(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise AssertionError((self.folder / "log").read_text(errors="replace"))
        with self.client() as client:
            try:
                return bool(client.ping())
            except redis.RedisError:
                return False


@contextmanager
def redis_server(folder: Path, *settings: str, password: str | None = None) -> Iterator[RedisServer]:
    server = RedisServer(folder, *settings, password=password)
    try:
        yield server.start()
    finally:
        server.stop()


@contextmanager
def redis_cluster(folder: Path) -> Iterator[RedisServer]:
    """A cluster of one node that holds all slots."""
    with redis_server(folder, "--cluster-enabled", "yes") as server:
        with server.client() as client:
            client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
            wait_until(
                lambda: b"cluster_state:ok" in _raw(client.execute_command("CLUSTER INFO")),
                10,
                "the cluster forms",
            )
        yield server


def wait_until(condition: Callable[[], bool], timeout_s: float, what: str) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {timeout_s:g} s"
        time.sleep(0.01)


def _raw(info: object) -> bytes:
    if isinstance(info, dict):
        return b"\n".join(f"{name}:{value}".encode() for name, value in info.items())
    return info if isinstance(info, bytes) else str(info).encode()


def _spare_port() -> int:
    # Below 55536: a cluster node also listens 10,000 higher.
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
        if port < 55_000:
            return port

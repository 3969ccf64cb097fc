"""PostgreSQL for tests: a schema on the server that is there, and servers of one's own to stop and kill.

The server that is there is WEFT_TEST_POSTGRES, by default postgresql://postgres@127.0.0.1:5432/postgres.
Where the default does not answer, the tests start one of their own for all of them.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from urllib.parse import quote

import psycopg
import pytest

from tests.conftest import missing
from tests.processes import NO_MARK, Process, family, wait_until

_DEFAULT = "postgresql://postgres@127.0.0.1:5432/postgres"


@cache
def server_url() -> str:
    """The server for tests that do not break it; the test is skipped where there is none."""
    named = os.environ.get("WEFT_TEST_POSTGRES")
    try:
        psycopg.connect(named or _DEFAULT, connect_timeout=3).close()
    except psycopg.OperationalError as error:
        if named is not None:
            missing(f"no PostgreSQL server at WEFT_TEST_POSTGRES: {str(error).splitlines()[0]}")
        stack = contextlib.ExitStack()
        own = stack.enter_context(postgres_server())
        atexit.register(stack.close)
        return own.url
    return named or _DEFAULT


@contextmanager
def postgres_schema(server: str | None = None) -> Iterator[str]:
    """The URL of an empty schema, which is dropped afterwards; the test is skipped without a server."""
    server = server_url() if server is None else server
    name = f"weft_test_{uuid.uuid4().hex}"
    _administer(server, f"CREATE SCHEMA {name}")
    separator = "&" if "?" in server else "?"
    try:
        yield f"{server}{separator}options={quote(f'-csearch_path={name}')}"
    finally:
        _administer(server, "SET lock_timeout = '10s'", f"DROP SCHEMA {name} CASCADE")


@pytest.fixture(params=["sqlite", "postgresql"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Where a store may be created, on either database; for a conftest to import."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'weft.sqlite'}"
        return
    with postgres_schema() as url:
        yield url


def _administer(server: str, *statements: str) -> None:
    with psycopg.connect(server, autocommit=True, connect_timeout=10) as connection:
        for statement in statements:
            connection.execute(statement.encode())


class PostgresServer:
    """Started with `start`, gone after `stop`; keeps its port and data, so that it can come back."""

    def __init__(self, folder: Path, binaries: Path) -> None:
        self.folder = folder
        self.port = _spare_port()
        self.url = f"postgresql://postgres@127.0.0.1:{self.port}/postgres"
        self._binaries = binaries
        self._process: subprocess.Popen[bytes] | None = None
        self._family: set[Process] = set()
        if os.getuid() == 0:  # it refuses to run as root
            owner = pwd.getpwnam("postgres")
            os.chown(folder, owner.pw_uid, owner.pw_gid)
            self._as_user = [
                "setpriv",
                f"--reuid={owner.pw_uid}",
                f"--regid={owner.pw_gid}",
                "--clear-groups",
            ]
        else:
            self._as_user = []
        options = ["--username=postgres", "--auth=trust", "--encoding=UTF8", "--no-locale", "--no-sync"]
        self._run("initdb", f"--pgdata={self._data}", *options)

    @property
    def _data(self) -> Path:
        return self.folder / "data"

    def _run(self, program: str, *arguments: str) -> None:
        command = [*self._as_user, str(self._binaries / program), *arguments]
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr

    def start(self) -> PostgresServer:
        """Start it and wait until it answers, after a crash also for what is left of its predecessor."""
        wait_until(lambda: not any(p.alive for p in self._family), 20, "end of the server's processes")
        settings = {
            "port": str(self.port),
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": str(self.folder),
            "shared_buffers": "16MB",
        }
        flags = [flag for name, value in settings.items() for flag in ("-c", f"{name}={value}")]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [*self._as_user, str(self._binaries / "postgres"), "-D", str(self._data), *flags],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        wait_until(self._answers, 30, f"PostgreSQL on port {self.port} answers")
        return self

    def processes(self) -> set[Process]:
        """The postmaster and its children, now."""
        assert self._process is not None
        self._family = family(self._process.pid, NO_MARK)
        return self._family

    def send(self, number: signal.Signals) -> None:
        """To all of its processes, the postmaster first."""
        assert self._process is not None
        own = self._process.pid
        for process in sorted(self.processes(), key=lambda p: p.pid != own):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, number)

    def kill(self) -> None:
        """SIGKILL to every process, as when the machine goes down with its caches kept."""
        assert self._process is not None
        self.send(signal.SIGKILL)
        self._process.wait(20)

    def stop(self, number: signal.Signals = signal.SIGQUIT) -> None:
        """SIGQUIT: at once, to be recovered at the next start; SIGINT: in order."""
        if self._process is not None and self._process.poll() is None:
            self.send(signal.SIGCONT)
            self._process.send_signal(number)
            self._process.wait(20)

    def _answers(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise AssertionError((self.folder / "log").read_text(errors="replace")[-3000:])
        try:
            psycopg.connect(self.url, connect_timeout=3).close()
        except psycopg.OperationalError:
            return False
        return True


@contextmanager
def postgres_server() -> Iterator[PostgresServer]:
    """A running server of one's own; the test is skipped where PostgreSQL is not installed."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb")) or [
        Path(path) for path in [shutil.which("initdb")] if path
    ]
    if not found:
        missing("PostgreSQL's initdb is not installed")
    # Not pytest's folder, which belongs to one user alone.
    folder = Path(tempfile.mkdtemp(prefix="weft-postgres-"))
    server: PostgresServer | None = None
    try:
        server = PostgresServer(folder, found[-1].parent)
        yield server.start()
    finally:
        if server is not None:
            server.stop()
        shutil.rmtree(folder, ignore_errors=True)


def _spare_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])

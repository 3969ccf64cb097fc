"""Who holds a PostgreSQL store: an advisory lock of a session, seen by every machine that reaches the server.

Like the lock of a file (`graph.lock`) it only makes for a clear sentence; what protects the data is the
store's epoch. The server lets go of it when the session ends, however its process ended.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import socket
import threading
import time
from types import TracebackType
from typing import Any

from sqlalchemy import Connection, Engine, String, func, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from graph.errors import StoreLocked
from graph.store_backends import PostgreSQL

log = logging.getLogger(__name__)

CHECK_S = 2.0
"""How often a holder looks whether its session is still there."""
_POLL_S = 0.1
_RELEASE_S = 5.0

_CLASS = 0x77656674  # "weft": any number, the same in every process
# One key for each schema: a database may hold several stores.
_KEY = func.hashtext("weft store " + func.coalesce(func.current_schema(), "", type_=String))
_TAKE = select(func.pg_try_advisory_lock(_CLASS, _KEY))
_HOLDER = text(
    "SELECT coalesce(application_name, '') FROM pg_locks l JOIN pg_stat_activity USING (pid)"
    " WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 2"
    " AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    " AND l.classid = CAST(:class AS oid) AND l.objid = CAST(:key AS oid)"
)
# What others see of a session is its application_name, of which a server keeps 63 bytes.
_DESCRIBE = text("SELECT set_config('application_name', :name, false)")
_DESCRIPTION = re.compile(r"weft (?P<pid>\d+)@(?P<machine>\w+) (?P<url>\S+) (?P<holder>.*)")


def _machine() -> str:
    """Which machine this is, in six letters."""
    return hashlib.blake2b(socket.gethostname().encode(), digest_size=3).hexdigest()


class PostgresLock:
    """An exclusive lock on a store, with a description of its holder that others can read.

    A server that restarts forgets it; a thread of the holder then takes it again.
    """

    def __init__(self, database: PostgreSQL, holder: str, url: str | None = None) -> None:
        """`holder` says what the process is; `url` is where it takes requests, if it does."""
        self._database = database
        self._name = f"weft {os.getpid()}@{_machine()} {url or '-'} {holder}"
        self._engine = database.engine(poolclass=NullPool, pool_pre_ping=False)
        self._connection: Connection | None = None
        self._released = threading.Event()
        self._keeper: threading.Thread | None = None

    def acquire(self, timeout_s: float = 0.0) -> None:
        """Take the lock, waiting up to `timeout_s`.

        Raises StoreLocked with the holder's description, Unavailable when the server does not answer.
        """
        deadline = time.monotonic() + timeout_s
        try:
            while not self._try():
                if time.monotonic() >= deadline:
                    raise StoreLocked(self._occupied())
                time.sleep(_POLL_S)
        except DBAPIError as error:
            self._let_go()
            raise self._database.refusal(error) from error
        except BaseException:
            self._let_go()
            raise
        self._keeper = threading.Thread(target=self._keep, name="store-lock", daemon=True)
        self._keeper.start()

    def release(self) -> None:
        """Let go, once and for all; a server that does not answer is not waited for."""
        self._released.set()
        if self._keeper is not None:
            self._keeper.join(_RELEASE_S)

    def __enter__(self) -> PostgresLock:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def _try(self) -> bool:
        """Whether the lock is now this session's, which is opened for it and kept."""
        if self._connection is None:
            self._connection = _session(self._engine)
            self._connection.execute(_DESCRIBE, {"name": self._name})
        return bool(self._connection.execute(_TAKE).scalar_one())

    def _occupied(self) -> str:
        holder = read_postgres_holder(self._database) or {}
        whom, pid = holder.get("holder", "another process"), holder.get("pid", "?")
        return f"{self._database.location} is held by {whom} (pid {pid}): stop it, or send the write to it"

    def _keep(self) -> None:
        held = True
        while not self._released.wait(CHECK_S):
            try:
                if held and self._connection is not None:
                    self._connection.execute(text("SELECT 1"))
                elif self._try():  # not as long as somebody else has it now
                    held = True
                    log.warning("the lock on the store is back")
            except DBAPIError as error:
                if held:
                    log.warning("the lock on the store is lost: %s", error.orig)
                held = False
                self._let_go()
        self._let_go()
        self._engine.dispose()

    def _let_go(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


def read_postgres_holder(database: PostgreSQL) -> dict[str, Any] | None:
    """Description of the process that holds the lock now, or None when nobody does.

    Without `url` when the process is on another machine: services listen on loopback, and at that address
    another one may answer here. Raises Unavailable when the server does not answer.
    """
    engine = database.engine(poolclass=NullPool, pool_pre_ping=False)
    try:
        with _session(engine) as connection:
            key = connection.execute(select(_KEY)).scalar_one() & 0xFFFFFFFF  # pg_locks has it unsigned
            name = connection.execute(_HOLDER, {"class": _CLASS, "key": key}).scalar()
    except DBAPIError as error:
        raise database.refusal(error) from error
    finally:
        engine.dispose()
    if name is None:
        return None
    found = _DESCRIPTION.fullmatch(name)
    if found is None:  # hidden from other roles
        return {}
    pid, holder = int(found["pid"]), found["holder"]
    if found["machine"] != _machine():
        return {"pid": pid, "holder": f"{holder} on another machine", "url": None}
    return {"pid": pid, "holder": holder, "url": None if found["url"] == "-" else found["url"]}


def _session(engine: Engine) -> Connection:
    return engine.connect().execution_options(isolation_level="AUTOCOMMIT")

"""What is PostgreSQL's alone: its settings, a writer that stops holding the lock, the lock on the store."""

from __future__ import annotations

import signal
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy.engine import make_url

from graph.errors import Corrupt, Fenced, InvalidInput, StoreLocked, Unavailable
from graph.lock import holder_of, lock_of
from graph.schema import PutItem, PutUser
from graph.store import GraphStore
from graph.writer import GraphWriter
from tests.graph.plain_model import assert_same_view, read_view, write
from tests.graph.test_fencing import hear, process, say
from tests.postgres_server import postgres_schema, server_url
from tests.processes import wait_until

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def url() -> Iterator[str]:
    with postgres_schema() as url:
        yield url


def setting(store: GraphStore, name: str) -> str:
    with store._engine.connect() as connection:
        return str(connection.exec_driver_sql(f"SHOW {name}").scalar_one())


# ----------------------------------------------------------------------------------------------- opening


@pytest.mark.parametrize(
    ("default", "found"), [("off", "on"), ("local", "on"), ("on", "on"), ("remote_apply", "remote_apply")]
)
def test_an_acknowledged_write_survives_power_loss(url: str, default: str, found: str) -> None:
    store = GraphStore(f"{url}%20-csynchronous_commit%3D{default}")
    assert setting(store, "synchronous_commit") == found
    GraphWriter(store)
    assert setting(store, "synchronous_commit") == found  # also on a connection that has been used
    store.close()


def test_transactions_are_isolated_whatever_the_default(url: str) -> None:
    store = GraphStore(f"{url}%20-cdefault_transaction_isolation%3Dserializable")
    for write_too, level, read_only in ((True, "read committed", "off"), (False, "repeatable read", "on")):
        with store._transaction(write=write_too) as connection:
            assert connection.exec_driver_sql("SHOW transaction_isolation").scalar_one() == level
            assert connection.exec_driver_sql("SHOW transaction_read_only").scalar_one() == read_only
    store.close()


def test_where_a_store_is_said_to_be_holds_no_password(url: str) -> None:
    store = GraphStore(url)
    assert store.location == "postgresql://" + server_url().partition("://")[2]
    store.close()
    secret = "postgresql://postgres:hush1@127.0.0.1/postgres?password=hush2&host=127.0.0.1&sslpassword=hush3"
    location = lock_of(secret, Path(), "me")._database.location  # type: ignore[union-attr]
    assert location == "postgresql://postgres:***@127.0.0.1/postgres?host=127.0.0.1"


@pytest.mark.parametrize("name", ["no_such_database", "no_such_role"])
def test_a_database_that_is_not_there_is_invalid(name: str) -> None:
    parts = psycopg.conninfo.conninfo_to_dict(server_url())
    user, database = ("postgres", name) if name.endswith("base") else (name, "postgres")
    address = (
        f"postgresql://{user}:hush@{parts.get('host', '127.0.0.1')}:{parts.get('port', 5432)}/{database}"
    )
    with pytest.raises(InvalidInput, match=name) as caught:
        GraphStore(address)
    assert caught.value.param == "store.url"
    assert "hush" not in caught.value.message


def test_a_role_that_may_not_create_tables_is_told_so(url: str) -> None:
    with pytest.raises(Corrupt, match="no schema has been selected"):
        GraphStore(url.replace("weft_test_", "not_weft_test_"))


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII"])
def test_a_database_that_cannot_hold_every_text_is_refused(url: str, encoding: str) -> None:
    name = f"weft_test_{uuid.uuid4().hex}"
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            f"CREATE DATABASE {name} TEMPLATE template0 ENCODING '{encoding}' LOCALE 'C'".encode()
        )
        try:
            with pytest.raises(InvalidInput, match=f"encoding {encoding}.*UTF8"):
                GraphStore(make_url(server_url()).set(database=name))
        finally:
            connection.execute(f"DROP DATABASE {name}".encode())


# ------------------------------------------------------------------------------------------- who may write


def test_a_writer_waits_for_another_ones_transaction_and_is_then_fenced(url: str) -> None:
    store, other = GraphStore(url), GraphStore(url)
    writer = GraphWriter(store)
    taken: list[GraphWriter] = []
    inside, go_on = threading.Event(), threading.Event()
    upsert = store._upsert

    def hesitate(*arguments: Any) -> None:
        inside.set()
        assert go_on.wait(30)
        upsert(*arguments)

    store._upsert = hesitate  # type: ignore[method-assign,assignment]
    writing = threading.Thread(target=write, args=(writer, PutUser("in time")))
    writing.start()
    assert inside.wait(20)
    taking = threading.Thread(target=lambda: taken.append(GraphWriter(other)))
    taking.start()
    taking.join(0.3)
    assert not taken
    go_on.set()
    writing.join(20)
    taking.join(20)
    # What the first one had begun was committed before the second one looked.
    assert [user.user_id for user in taken[0].view.users()] == ["in time"]
    with pytest.raises(Fenced):
        write(writer, PutUser("late"))
    store.close()
    other.close()


def test_a_commit_that_waits_behind_a_takeover_is_fenced(url: str) -> None:
    """It looks at the epoch again once it has the lock."""
    store, other = GraphStore(url), GraphStore(url)
    writer = GraphWriter(store)
    errors: list[BaseException] = []

    def late() -> None:
        try:
            write(writer, PutUser("late"))
        except Fenced as error:
            errors.append(error)

    with other._transaction(write=True) as connection:
        connection.exec_driver_sql("UPDATE meta SET epoch = epoch + 1")
        writing = threading.Thread(target=late)
        writing.start()
        wait_until(lambda: _waiting(url), 10, "the commit waits for the lock")
    writing.join(20)
    assert len(errors) == 1
    assert read_view(other).num_users == 0
    store.close()
    other.close()


def _waiting(url: str) -> bool:
    with psycopg.connect(url) as connection:
        found = connection.execute(
            "SELECT 1 FROM pg_locks l JOIN pg_class c ON c.oid = l.relation"
            " JOIN pg_locks w ON w.pid = l.pid AND NOT w.granted"
            " WHERE c.relname = 'meta' AND c.relnamespace = current_schema()::regnamespace"
        ).fetchone()
    return found is not None


PAUSING = """
import sys
import graph.store_backends
from graph.errors import Fenced
from graph.schema import PutItem, PutUser, WriteRequest
from graph.store import GraphStore
from graph.writer import GraphWriter

graph.store_backends.PAUSE_S = 1
store = GraphStore(sys.argv[1])
writer = GraphWriter(store)
upsert = store._upsert

def pause(connection, table, rows):  # the lock taken, and half of it written
    upsert(connection, table, rows)
    if table.name == "users":
        print("in the middle", flush=True)
        sys.stdin.readline()

store._upsert = pause
for n in range(3):
    try:
        request = WriteRequest((PutUser(f"paused-{n}"), PutItem(f"paused-{n}", "I")))
        (outcome,) = writer.commit([request]).outcomes
    except Fenced:
        print("fenced", flush=True)
        sys.exit(7)
    print(type(outcome).__name__, flush=True)
"""


@pytest.mark.faults
def test_a_writer_stopped_with_an_open_transaction_holds_nobody_up(url: str) -> None:
    with process(PAUSING, url) as paused:
        assert hear(paused) == "in the middle"
        paused.send_signal(signal.SIGSTOP)
        store = GraphStore(url)
        began = time.monotonic()
        writer = GraphWriter(store)
        assert time.monotonic() - began < 10
        write(writer, PutUser("second"), PutItem("second", "I"))
        say(paused)
        paused.send_signal(signal.SIGCONT)
        assert hear(paused) == "Unavailable"  # its transaction is gone
        assert hear(paused) == "fenced"  # and its place taken
        assert paused.wait(20) == 7
    assert [user.user_id for user in read_view(store).users()] == ["second"]
    assert_same_view(read_view(store), writer.view)
    store.close()


def test_a_store_whose_writer_does_not_let_go_is_unavailable(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("graph.store_backends._LOCK_WAIT_S", 1)
    store, other = GraphStore(url), GraphStore(url)
    with other._transaction(write=True) as connection:
        connection.exec_driver_sql("UPDATE meta SET epoch = epoch")
        with pytest.raises(Unavailable, match="lock timeout"):
            GraphWriter(store)
    GraphWriter(store)
    store.close()
    other.close()


def test_a_scan_may_be_read_slowly(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("graph.store_backends.PAUSE_S", 1)
    store = GraphStore(url)
    writer = GraphWriter(store)
    write(writer, *(PutUser(f"u{n}") for n in range(4)))
    scan = store.changes_since(0, page_rows=1)
    pages = [next(scan)]
    time.sleep(1.5)
    pages += scan
    assert sum(len(page) for page in pages) == 4
    store.close()


# ---------------------------------------------------------------------------------------------- the lock

HOLD = """
import sys
from pathlib import Path
from graph.lock import lock_of
lock = lock_of(sys.argv[1], Path(), "the other process", "http://127.0.0.1:1")
lock.acquire()
print("held", flush=True)
sys.stdin.read()
"""


@pytest.mark.integration
def test_another_process_holds_the_lock_until_it_is_killed(url: str, tmp_path: Path) -> None:
    assert holder_of(url, tmp_path) is None
    with process(HOLD, url) as other:
        assert hear(other) == "held"
        with pytest.raises(StoreLocked, match=rf"held by the other process \(pid {other.pid}\)"):
            lock_of(url, tmp_path, "me").acquire()
        expected = {"pid": other.pid, "holder": "the other process", "url": "http://127.0.0.1:1"}
        assert holder_of(url, tmp_path) == expected
        other.kill()
        lock = lock_of(url, tmp_path, "me")
        lock.acquire(timeout_s=20)
        found = holder_of(url, tmp_path)
        assert found is not None
        assert (found["holder"], found["url"]) == ("me", None)
        lock.release()
    assert holder_of(url, tmp_path) is None
    assert list(tmp_path.iterdir()) == []  # no file has a part in it


def test_a_holder_on_another_machine_is_not_sent_to(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its address is one of loopback, where here somebody else may answer."""
    with lock_of(url, tmp_path, "the running service", "http://127.0.0.1:8000"):
        monkeypatch.setattr("graph.postgres_lock.socket.gethostname", lambda: "elsewhere")
        found = holder_of(url, tmp_path)
        assert found is not None
        assert (found["holder"], found["url"]) == ("the running service on another machine", None)
        with pytest.raises(StoreLocked, match="on another machine"):
            lock_of(url, tmp_path, "me").acquire()


def test_stores_of_one_database_are_held_apart(url: str, tmp_path: Path) -> None:
    with postgres_schema() as other, lock_of(url, tmp_path, "one"), lock_of(other, tmp_path, "other"):
        for place, name in ((url, "one"), (other, "other")):
            found = holder_of(place, tmp_path)
            assert found is not None
            assert found["holder"] == name


def test_a_lock_that_the_server_forgot_is_taken_again(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("graph.postgres_lock.CHECK_S", 0.05)
    with lock_of(url, tmp_path, "me") as lock:
        connection = lock._connection  # type: ignore[union-attr]
        assert connection is not None
        pid = connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
        with psycopg.connect(url) as admin:
            admin.execute("SELECT pg_terminate_backend(%s)", (pid,))
        wait_until(lambda: "is back" in caplog.text, 10, "the lock is taken again")
        with pytest.raises(StoreLocked, match="held by me"):
            lock_of(url, tmp_path, "you").acquire()
    assert "is lost" in caplog.text
    assert holder_of(url, tmp_path) is None


def test_a_server_that_is_away_is_unavailable(tmp_path: Path) -> None:
    nowhere = "postgresql://weft:hush@127.0.0.1:1/weft"
    for ask in (lambda: holder_of(nowhere, tmp_path), lock_of(nowhere, tmp_path, "me").acquire):
        with pytest.raises(Unavailable, match="does not answer") as caught:
            ask()
        assert "hush" not in caught.value.message


def test_private_texts_are_in_no_error(url: str) -> None:
    store = GraphStore(url)
    with store._engine.connect() as connection, pytest.raises(Exception, match="no_such_table") as caught:
        connection.exec_driver_sql("SELECT * FROM no_such_table WHERE x = %s", ("likes tea",))
    assert "likes tea" not in str(caught.value)
    store.close()

"""A real Redis that dies, stalls, forgets, fills up or refuses: errors in bounded time, no wrong value."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from redis.crc import key_slot

from models.embedding_cache.redis_store import RedisStore, _names
from models.embedding_cache.store import StoreUnavailable
from tests.conftest import missing

from .redis_server import EXECUTABLE, RedisServer, redis_cluster, redis_server, wait_until

pytestmark = pytest.mark.faults

TIMEOUT_S = 0.25
BOUND_S = 4 * TIMEOUT_S  # connecting, one silence, and room for a busy machine
KEYS = [os.urandom(32) for _ in range(1_500)]
PASSWORD = "correct-horse"


def value_of(key: bytes) -> bytes:
    return key * 25


VALUES = [value_of(key) for key in KEYS]


@pytest.fixture(autouse=True)
def needs_redis() -> None:
    if EXECUTABLE is None:
        missing("no redis-server on the path")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with redis_server(tmp_path / "redis") as found:
        yield found


def open_store(server: RedisServer, **options: object) -> RedisStore:
    return RedisStore(server.url, connect_timeout_s=TIMEOUT_S, timeout_s=TIMEOUT_S, **options)  # type: ignore[arg-type]


class Callers:
    """Threads that read and write all the while, and keep what they saw."""

    def __init__(self, store: RedisStore, threads: int = 4) -> None:
        self.hits = self.failures = 0
        self.slowest_s = 0.0
        self.wrong: list[object] = []
        self._store = store
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._work, args=(n,)) for n in range(threads)]

    def __enter__(self) -> Callers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    def _work(self, number: int) -> None:
        turn = number
        while not self._stopping.is_set():
            turn += 1
            keys = KEYS[turn * 37 % 1_000 :][:300]
            started = time.monotonic()
            try:
                if turn % 3 == 0:
                    self._store.put_many("model", keys, [value_of(key) for key in keys], 60.0)
                    found: list[bytes | None] = []
                else:
                    found = self._store.get_many("model", keys)
            except StoreUnavailable:
                with self._lock:
                    self.failures += 1
                found = []
                # What the circuit breaker above the store would do, in short.
                self._stopping.wait(0.005)
            except BaseException as error:
                self.wrong.append(error)
                return
            with self._lock:
                self.slowest_s = max(self.slowest_s, time.monotonic() - started)
                self.hits += sum(value is not None for value in found)
                self.wrong += [
                    key
                    for key, value in zip(keys, found, strict=False)
                    if value is not None and value != value_of(key)
                ]

    def see(self, what: str, condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
        wait_until(condition, timeout_s, what)


def test_killed_under_load_and_started_again(server: RedisServer) -> None:
    store = open_store(server)
    with Callers(store) as callers:
        callers.see("hits", lambda: callers.hits > 1_000)
        server.kill()
        before = callers.failures
        callers.see("failures", lambda: callers.failures > before + 20)
        server.start()
        hits = callers.hits
        started = time.monotonic()
        callers.see("hits again", lambda: callers.hits > hits)
        assert time.monotonic() - started < 1.0
    assert callers.wrong == []
    assert callers.slowest_s < BOUND_S
    store.close()


def test_flushed_under_load(server: RedisServer) -> None:
    store = open_store(server)
    with Callers(store) as callers, server.client() as client:
        for _ in range(5):
            hits = callers.hits
            client.flushall()
            callers.see("hits again", lambda hits=hits: callers.hits > hits + 500)  # type: ignore[misc]
    assert callers.wrong == []
    assert callers.failures == 0
    store.close()


@pytest.mark.parametrize("over", ["tcp", "unix", "cluster"])
def test_a_stalled_server_costs_one_timeout(tmp_path: Path, over: str) -> None:
    serving = redis_cluster if over == "cluster" else redis_server
    with serving(tmp_path / "redis") as server:
        url = f"unix://{server.socket_path}" if over == "unix" else server.url
        store = RedisStore(url, cluster=over == "cluster", connect_timeout_s=TIMEOUT_S, timeout_s=TIMEOUT_S)
        store.put_many("model", KEYS, VALUES, None)
        calls: list[Callable[[], object]] = [
            store.ping,
            lambda: store.get_many("model", KEYS),
            lambda: store.put_many("model", KEYS, VALUES, 60.0),
            lambda: store.delete("model", KEYS),
            lambda: store.clear(),
            lambda: store.prune(1.0),
            store.namespaces,
            lambda: list(store.entries()),
            store.statistics,
        ]
        server.send(signal.SIGSTOP)
        try:
            for call in calls:
                started = time.monotonic()
                with pytest.raises(StoreUnavailable):
                    call()
                assert time.monotonic() - started < BOUND_S
        finally:
            server.send(signal.SIGCONT)
        # What was sent before the stall may still be carried out; what is read is never another's answer.
        wait_until(lambda: _answers(store), 5, "the server answers again")
        found = store.get_many("model", KEYS)
        assert all(value in (None, expected) for value, expected in zip(found, VALUES, strict=True))
        store.put_many("model", KEYS, VALUES, None)
        assert store.get_many("model", KEYS) == VALUES
        store.close()


def _answers(store: RedisStore) -> bool:
    try:
        store.ping()
    except StoreUnavailable:
        return False
    return True


def test_a_stalled_socket_under_load(server: RedisServer) -> None:
    store = open_store(server)
    with Callers(store) as callers:
        callers.see("hits", lambda: callers.hits > 1_000)
        server.send(signal.SIGSTOP)
        callers.see("failures", lambda: callers.failures >= 8)
        server.send(signal.SIGCONT)
        hits = callers.hits
        callers.see("hits again", lambda: callers.hits > hits + 1_000)
    assert callers.wrong == []
    assert callers.slowest_s < BOUND_S
    store.close()


def test_filled_to_the_brim_with_eviction(tmp_path: Path) -> None:
    settings = ("--maxmemory", "2mb", "--maxmemory-policy", "allkeys-lru")
    with redis_server(tmp_path / "redis", *settings) as server:
        store = open_store(server)
        keys = [os.urandom(32) for _ in range(6_000)]
        for at in range(0, len(keys), 500):
            chunk = keys[at : at + 500]
            store.put_many("model", chunk, [value_of(key) for key in chunk], 60.0)
        found = store.get_many("model", keys)
        assert all(value in (None, value_of(key)) for key, value in zip(keys, found, strict=True))
        assert 0 < sum(value is not None for value in found) < len(keys)
        with server.client() as client:
            assert client.info("stats")["evicted_keys"] > 0  # type: ignore[index]
        statistics = store.statistics()
        assert statistics.server_max_bytes == 2 * 1024 * 1024
        store.close()


def test_full_without_eviction(tmp_path: Path) -> None:
    with redis_server(tmp_path / "redis", "--maxmemory", "2mb", "--maxmemory-policy", "noeviction") as server:
        store = open_store(server)
        with pytest.raises(StoreUnavailable, match=r"out of memory.*maxmemory-policy allkeys-lru"):
            for _ in range(10):
                keys = [os.urandom(32) for _ in range(500)]
                store.put_many("model", keys, [value_of(key) for key in keys], 60.0)
        # It still reads, and answers are still those to the questions asked.
        names = [entry.key for entry in store.entries()]
        assert names
        assert store.get_many("model", names) == [value_of(key) for key in names]
        store.close()


def test_passwords(tmp_path: Path) -> None:
    with redis_server(tmp_path / "redis", password=PASSWORD) as server:
        for wrong in (None, "hunter2-wrong"):
            store = open_store(server, password=wrong)
            with pytest.raises(StoreUnavailable) as refused:
                store.get_many("model", KEYS)
            shown = "".join(traceback.format_exception(refused.value)) + repr(store) + store.location
            assert "hunter2" not in shown
            assert server.url in str(refused.value)
            store.close()
        for url, password in (
            (server.url, PASSWORD),
            (f"redis://:{PASSWORD}@127.0.0.1:{server.port}", None),
            (f"unix://:{PASSWORD}@{server.socket_path}", None),
        ):
            store = RedisStore(url, password=password)
            store.put_many("model", KEYS[:1], VALUES[:1], None)
            assert store.get_many("model", KEYS[:1]) == VALUES[:1]
            assert PASSWORD not in repr(store) + store.location + repr(store.statistics())
            store.close()


def test_a_server_that_repeats_the_password_is_not_quoted(tmp_path: Path) -> None:
    with redis_server(tmp_path / "redis", "--rename-command", "AUTH", "") as server:
        store = open_store(server, password=PASSWORD)
        with pytest.raises(StoreUnavailable) as refused:
            store.ping()
        assert PASSWORD not in "".join(traceback.format_exception(refused.value))
        store.close()


def test_users_with_few_rights(tmp_path: Path) -> None:
    rights = ["~weft:emb:*", "+mget", "+set", "+scan", "+unlink", "+pttl", "+getrange", "+ping"]
    with redis_server(tmp_path / "redis") as server:
        with server.client() as client:
            client.execute_command("ACL", "SETUSER", "weft", "on", f">{PASSWORD}", *rights)
        store = RedisStore(f"redis://weft:{PASSWORD}@127.0.0.1:{server.port}")
        store.put_many("model", KEYS, VALUES, 60.0)
        assert store.get_many("model", KEYS) == VALUES
        assert store.namespaces() == {"model": len(KEYS)}
        with pytest.raises(StoreUnavailable, match="NoPermission"):
            store.statistics()
        assert store.clear() == len(KEYS)
        store.close()


def test_tls(tmp_path: Path) -> None:
    openssl = shutil.which("openssl")
    if openssl is None:
        missing("no openssl to make a certificate with")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    request = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    request += ["-keyout", str(key), "-out", str(certificate), "-days", "2", "-subj", "/CN=cache"]
    subprocess.run(
        [str(openssl), *request, "-addext", "subjectAltName=DNS:localhost"], check=True, capture_output=True
    )
    try:
        server = RedisServer(tmp_path / "redis")
        server.set("--port", "0", "--tls-port", str(server.port), "--tls-auth-clients", "no")
        server.set("--tls-cert-file", str(certificate), "--tls-key-file", str(key))
        server.set("--tls-ca-cert-file", str(certificate))
        try:
            server.start()
        except AssertionError as failed:
            if "tls" in str(failed).lower():
                missing("this redis-server was built without TLS")
            raise
        url = f"rediss://localhost:{server.port}"
        store = RedisStore(url, ca_file=str(certificate), connect_timeout_s=2.0, timeout_s=2.0)
        store.put_many("model", KEYS, VALUES, None)
        assert store.get_many("model", KEYS) == VALUES
        store.close()
        for other in (
            RedisStore(url, connect_timeout_s=2.0),  # signed by nobody it knows
            RedisStore(url.replace("localhost", "127.0.0.1"), ca_file=str(certificate)),  # another name
            RedisStore(url.replace("rediss", "redis"), timeout_s=2.0),  # in the clear
        ):
            with pytest.raises(StoreUnavailable):
                other.get_many("model", KEYS[:1])
            other.close()
        unnamed = f"rediss://127.0.0.1:{server.port}?ssl_check_hostname=false&ssl_ca_certs={certificate}"
        store = RedisStore(unnamed, connect_timeout_s=2.0, timeout_s=2.0)
        assert store.get_many("model", KEYS[:3]) == VALUES[:3]
        store.close()
    finally:
        server.stop()


def test_a_restart_loses_nothing_with_an_append_only_file(tmp_path: Path) -> None:
    with redis_server(tmp_path / "redis", "--appendonly", "yes", "--appendfsync", "always") as server:
        store = open_store(server)
        store.put_many("model", KEYS, VALUES, 3_600.0)
        server.kill()
        with pytest.raises(StoreUnavailable):
            store.get_many("model", KEYS)
        server.start()
        assert store.get_many("model", KEYS) == VALUES
        store.close()


def test_a_cluster_node_that_comes_back(tmp_path: Path) -> None:
    with redis_cluster(tmp_path / "redis") as server:
        store = open_store(server, cluster=True)
        store.put_many("model", KEYS, VALUES, None)
        server.kill()
        for _ in range(3):
            started = time.monotonic()
            with pytest.raises(StoreUnavailable):
                store.get_many("model", KEYS)
            assert time.monotonic() - started < BOUND_S
        server.start()
        wait_until(lambda: _takes(store), 10, "the cluster is whole again")
        assert store.get_many("model", KEYS) == VALUES
        store.close()


def test_slots_that_move_to_another_node(tmp_path: Path) -> None:
    with (
        redis_cluster(tmp_path / "a") as first,
        redis_server(tmp_path / "b", "--cluster-enabled", "yes") as other,
        first.client() as one,
        other.client() as two,
    ):
        two.execute_command("CLUSTER", "MEET", "127.0.0.1", first.port)
        nodes = {client: client.execute_command("CLUSTER", "MYID").decode("ascii") for client in (one, two)}
        wait_until(
            lambda: all(
                nodes[known].encode() in _text(client.execute_command("CLUSTER NODES"))
                for client, known in ((one, two), (two, one))
            ),
            10,
            "the nodes know each other",
        )
        store = open_store(first, cluster=True)
        store.put_many("model", KEYS, VALUES, None)
        assert store.clear() == len(KEYS)
        for slot in {key_slot(name) for name in _names("model", KEYS[:200])}:
            for client in (two, one):
                client.execute_command("CLUSTER", "SETSLOT", slot, "NODE", nodes[two])
        wait_until(lambda: _takes(store), 10, "the cluster is whole again")
        assert one.dbsize() == 0
        assert two.dbsize() == len(KEYS)
        assert store.get_many("model", KEYS) == VALUES
        assert store.namespaces() == {"model": len(KEYS)}
        assert store.clear() == len(KEYS)
        store.close()


def _text(reply: object) -> bytes:
    return reply if isinstance(reply, bytes) else repr(reply).encode()


def _takes(store: RedisStore) -> bool:
    try:
        store.put_many("model", KEYS, VALUES, None)
    except StoreUnavailable:
        return False
    return True


def test_answers_that_trickle_are_not_waited_for_to_the_end() -> None:
    chunks = 40
    with socket.create_server(("127.0.0.1", 0)) as listening:
        hung_up = threading.Event()

        def trickle() -> None:
            connection, _ = listening.accept()
            with connection, contextlib.suppress(OSError):
                connection.recv(1 << 20)
                for _ in range(chunks):
                    for piece in (b"*1\r\n", b"$-1\r\n"):
                        connection.sendall(piece)
                        hung_up.wait(0.8 * TIMEOUT_S)

        trickling = threading.Thread(target=trickle)
        trickling.start()
        # Keys so long that every one is a flight of its own.
        store = RedisStore(f"redis://127.0.0.1:{listening.getsockname()[1]}", timeout_s=TIMEOUT_S, chunk=1)
        started = time.monotonic()
        with pytest.raises(StoreUnavailable, match="slower"):
            store.get_many("model", [bytes(140_000)] * chunks)
        assert time.monotonic() - started < chunks * TIMEOUT_S
        hung_up.set()
        trickling.join()
        store.close()


def test_a_server_that_speaks_something_else() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def babble() -> None:
            for _ in range(2):
                connection, _ = listening.accept()
                with connection:
                    connection.recv(1 << 16)
                    connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n" + os.urandom(100))

        speaking = threading.Thread(target=babble)
        speaking.start()
        store = RedisStore(f"redis://127.0.0.1:{listening.getsockname()[1]}")
        for _ in range(2):
            with pytest.raises(StoreUnavailable):
                store.get_many("model", KEYS[:1])
        speaking.join()
        store.close()

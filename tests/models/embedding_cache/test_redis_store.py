"""The Redis store: addresses without secrets, keys to count and drop by model, nobody else's data."""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterator

import pytest

from graph.errors import InvalidInput
from models.embedding_cache.redis_address import parse_redis_url
from models.embedding_cache.redis_store import RedisStore
from models.embedding_cache.store import StoreUnavailable
from tests.conftest import missing

from .redis_server import EXECUTABLE, RedisServer, redis_server

KEY = bytes(range(32))
NAME = b"weft:emb:{model:0}:" + KEY
OTHERS = {
    b"somebody": b"else",
    b"weft:emb:": b"x",
    b"weft:emb:{model:0}:short": b"x",
    b"weft:emb:{model:1}:" + KEY: b"in a bucket the cache would not use",
    b"weft:emb:{mo*del:0}:" + KEY: b"not encoded as the cache does",
    b"weft:emb:{%ff%fe:0}:" + KEY: b"not UTF-8",
    b"weft:emb:\xff\xfe" + KEY: b"x",
    b"weft:embedding": b"x",
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    if EXECUTABLE is None:
        missing("no redis-server on the path")
    with redis_server(tmp_path_factory.mktemp("redis")) as found:
        yield found


@pytest.fixture
def store(server: RedisServer) -> Iterator[RedisStore]:
    with server.client() as client:
        client.flushall()
    found = RedisStore(server.url, timeout_s=5.0)
    yield found
    found.close()


@pytest.mark.parametrize(
    ("url", "location"),
    [
        ("redis://localhost", "redis://localhost:6379"),
        ("redis://:hunter2@cache:6380/3", "redis://cache:6380/3"),
        ("redis://user:hunter2@[::1]:6380?db=3", "redis://[::1]:6380/3"),
        ("rediss://user:hunter2@cache?ssl_ca_certs=/ca.pem&ssl_check_hostname=false", "rediss://cache:6379"),
        ("unix://user:hunter2@/run/redis.sock?db=1", "unix:///run/redis.sock?db=1"),
        ("redis+cluster://:hunter2@cache", "redis+cluster://cache:6379"),
        ("rediss+cluster://:hunter2@cache", "rediss+cluster://cache:6379"),
    ],
)
def test_an_address_is_shown_without_its_secrets(url: str, location: str) -> None:
    address = parse_redis_url(url)
    assert address.location == location
    assert "hunter2" not in repr(address)
    store = RedisStore(url)
    assert store.location == location
    assert "hunter2" not in repr(store)
    assert "hunter2" in url or address.password is None
    assert address.password in (None, "hunter2")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://:hunter2@cache", "redis+cluster://"),
        ("redis://:hunter2@cache:port", "port"),
        ("redis://:hunter2@cache:65536", "port"),
        ("redis://:hunter2@cache/first", "database"),
        ("redis://:hunter2@cache?timeout=3", "unknown parameters ['timeout']"),
        ("unix://:hunter2@", "path of a socket"),
        ("redis+cluster://:hunter2@cache/1", "database 0"),
    ],
)
def test_a_url_that_cannot_be_read_is_refused_without_repeating_it(url: str, message: str) -> None:
    with pytest.raises(InvalidInput, match=re.escape(message)) as refused:
        RedisStore(url)
    assert "hunter2" not in str(refused.value)


def test_credentials_apart_from_the_url_go_first() -> None:
    address = parse_redis_url("redis://a:b%40@cache", username="user", password="p@ss", ca_file="/ca.pem")
    assert (address.username, address.password, address.ca_file) == ("user", "p@ss", "/ca.pem")
    assert parse_redis_url("redis://a:b%40@cache").password == "b@"


def test_a_key_names_its_model_and_a_value_says_when_it_was_written(
    server: RedisServer, store: RedisStore
) -> None:
    store.put_many("model", [KEY], [b"vector"], 100.0)
    with server.client() as client:
        assert client.keys() == [NAME]
        stamp, value = struct.unpack(">d6s", client.get(NAME))  # type: ignore[misc]
        assert value == b"vector"
        assert abs(stamp - client.time()[0]) < 60  # type: ignore[index]
        assert 99_000 < client.pttl(NAME) <= 100_000  # type: ignore[operator]


def test_namespaces_cannot_reach_into_patterns_or_hash_tags(server: RedisServer, store: RedisStore) -> None:
    awkward = ["*", "m?del", "[a-z]", "\\", "{", "}", "%2A", "a:0}:"]
    for namespace in awkward:
        store.put_many(namespace, [KEY], [namespace.encode()], None)
    with server.client() as client:
        for name in client.keys():  # noqa: SIM118  # a client is no dict
            assert re.fullmatch(rb"weft:emb:\{[^*?\[\]\\{}]+:[0-9a-f]\}:.{32}", name, re.DOTALL)  # type: ignore[arg-type]
    assert store.namespaces() == dict.fromkeys(awkward, 1)
    assert store.clear("*") == 1
    assert store.namespaces() == dict.fromkeys(awkward[1:], 1)


def test_what_others_keep_in_the_same_database_is_left_alone(server: RedisServer, store: RedisStore) -> None:
    with server.client() as client:
        client.mset(OTHERS)
        store.put_many("model", [KEY, KEY[::-1]], [b"1", b"2"], None)
        assert store.namespaces() == {"model": 2}
        assert store.statistics().entries == 2
        assert sorted(entry.value for entry in store.entries()) == [b"1", b"2"]
        assert store.prune(-60.0) == 2
        assert store.clear() == 0
        assert {name: client.get(name) for name in OTHERS} == OTHERS
        assert client.dbsize() == len(OTHERS)


def test_a_key_that_scan_repeats_counts_once(store: RedisStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.put_many("model", [KEY], [b"vector"], None)
    monkeypatch.setattr(store._link, "scan", lambda pattern, count: iter([[NAME, NAME], [], [NAME]]))
    assert store.namespaces() == {"model": 1}
    assert len(list(store.entries())) == 1
    assert store.statistics().entries == 1


def test_foreign_bytes_and_types_at_our_keys_are_no_entries(server: RedisServer, store: RedisStore) -> None:
    with server.client() as client:
        client.set(NAME, b"short")
        assert store.get_many("model", [KEY]) == [None]
        assert list(store.entries()) == []
        client.delete(NAME)
        client.lpush(NAME, "a", "list")
        assert store.get_many("model", [KEY]) == [None]
        assert list(store.entries()) == []
        assert store.prune(-60.0) == 0
        store.put_many("model", [KEY], [b"vector"], None)
        assert store.get_many("model", [KEY]) == [b"vector"]
        client.set(NAME, struct.pack(">d", float("nan")) + b"value")
        (entry,) = store.entries()
        assert entry.written_at is None


def test_statistics_know_the_servers_memory(server: RedisServer, store: RedisStore) -> None:
    keys = [os.urandom(32) for _ in range(200)]
    store.put_many("model", keys, [os.urandom(800)] * 200, None)
    with server.client() as client:
        client.config_set("maxmemory", 10**9)
        try:
            statistics = store.statistics()
        finally:
            client.config_set("maxmemory", 0)
    assert statistics.entries == 200
    assert statistics.bytes is not None and 200 * 840 < statistics.bytes < 200 * 1400
    assert statistics.server_memory_bytes is not None and statistics.server_memory_bytes > statistics.bytes
    assert statistics.server_max_bytes == 10**9
    assert store.statistics().server_max_bytes is None


def test_many_keys_are_not_counted_for_statistics(store: RedisStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.put_many("model", [os.urandom(32) for _ in range(20)], [b"v"] * 20, None)
    monkeypatch.setattr("models.embedding_cache.redis_store._COUNTED_KEYS", 19)
    statistics = store.statistics()
    assert (statistics.entries, statistics.bytes) == (None, None)


def test_a_batch_takes_one_command_per_five_hundred_keys(server: RedisServer, store: RedisStore) -> None:
    keys = [os.urandom(32) for _ in range(2_500)]
    with server.client() as client:
        client.config_resetstat()
        store.put_many("model", keys, keys, 60.0)
        assert store.get_many("model", keys) == keys
        calls = {name: stats["calls"] for name, stats in client.info("commandstats").items()}  # type: ignore[union-attr]
    assert calls["cmdstat_mget"] == 5
    assert calls["cmdstat_set"] == 2_500
    assert "cmdstat_get" not in calls


def test_a_forked_child_has_connections_of_its_own(store: RedisStore) -> None:
    store.put_many("model", [KEY], [b"vector"], None)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writing, store.get_many("model", [KEY])[0] or b"-")
        os._exit(0)
    assert [store.get_many("model", [KEY]) for _ in range(50)] == [[b"vector"]] * 50
    os.waitpid(child, 0)
    assert os.read(reading, 100) == b"vector"
    os.close(reading)
    os.close(writing)


def test_a_server_that_is_not_there_is_told_quickly_and_without_secrets() -> None:
    store = RedisStore("redis://:hunter2@127.0.0.1:1")
    with pytest.raises(StoreUnavailable, match=re.escape("redis://127.0.0.1:1")) as failed:
        store.ping()
    assert "hunter2" not in str(failed.value)
    with pytest.raises(StoreUnavailable):
        RedisStore("redis+cluster://127.0.0.1:1").get_many("model", [KEY])
    with pytest.raises(StoreUnavailable):
        RedisStore("unix:///nowhere/redis.sock").get_many("model", [KEY])

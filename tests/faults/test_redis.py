"""What happens to a service when its Redis dies, stalls, fills up or is written to by somebody else.

Never an error for a caller, never a vector of another text, and every answer quick again within a second.
"""

from __future__ import annotations

import base64
import random
import signal
import statistics
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np
import pytest

from models.text_encoder.hashing_encoder import HashingEncoder
from tests.models.embedding_cache.redis_server import RedisServer, redis_server
from tests.processes import wait_until
from tests.service import Service, running_service
from tests.small_store import SmallStore, make_small_store

pytestmark = pytest.mark.faults

KNOWN = [f"known text {n} about {word}" for n, word in enumerate(["trees", "rain", "trains", "bread"] * 50)]
BACK_TO_NORMAL_S = 1.0
SLOW_S = 1.0
ORACLE = HashingEncoder(32)


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> SmallStore:
    return make_small_store(tmp_path_factory.mktemp("data"))


def start(store: SmallStore, folder: Any, redis: RedisServer, replicas: int = 2) -> Any:
    extra = {
        "WEFT_CACHE__URL": redis.url,
        "WEFT_CACHE__MEMORY_BYTES": "0",  # so that every request asks Redis
        "WEFT_TEXT_EMBEDDER__NUM_REPLICAS": str(replicas),
    }
    return running_service(store.data_dir, folder, extra=extra)


@pytest.fixture(scope="module")
def cached(
    store: SmallStore, redis: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    with start(store, tmp_path_factory.mktemp("logs"), redis) as service:
        yield service


@dataclass
class Load:
    """Callers that ask for known and new texts and check every vector."""

    service: Service
    failures: list[str] = field(default_factory=list)
    done: list[tuple[float, float]] = field(default_factory=list)  # began, seconds

    def __enter__(self) -> Load:
        self._stopped = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(n,)) for n in range(3)]
        for thread in self._threads:
            thread.start()
        wait_until(lambda: len(self.done) >= 20, 20, "the first answers")
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join(30)

    def _run(self, number: int) -> None:
        chance = random.Random(number)
        with httpx.Client(base_url=self.service.url, timeout=20.0, trust_env=False) as http:
            while not self._stopped.is_set():
                texts = [*chance.sample(KNOWN, 8), f"new {uuid.uuid4().hex}"]
                began = time.monotonic()
                try:
                    check(http, texts)
                except Exception as error:
                    self.failures.append(f"{type(error).__name__}: {error}")
                self.done.append((began, time.monotonic() - began))

    def settle(self) -> None:
        """Answers that began a second after now are right and quick."""
        fault = time.monotonic()
        wait_until(
            lambda: sum(began > fault + BACK_TO_NORMAL_S for began, _ in self.done) >= 30,
            20,
            "answers after the fault",
        )
        later = [seconds for began, seconds in self.done if began > fault + BACK_TO_NORMAL_S]
        assert not self.failures, self.failures[:3]
        assert statistics.median(later) < 0.25, sorted(later)[-5:]
        assert max(later) < SLOW_S, sorted(later)[-5:]


def check(http: httpx.Client, texts: list[str]) -> dict[str, Any]:
    """Ask for the texts; every vector must be the model's own, as entries hold it."""
    answer = http.post("/v1/embeddings", json={"input": texts, "encoding_format": "base64"})
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    found = np.array([np.frombuffer(base64.b64decode(d["embedding"]), "<f4") for d in body["data"]])
    expected = ORACLE.encode(texts).astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(found, expected)
    return body


def counters(service: Service) -> dict[str, Any]:
    found: dict[str, Any] = service.get("/v1/cache/stats").json()
    assert found["lookups"] == found["hits"] + found["misses"] + found["coalesced"]
    return found


def until_hits(service: Service) -> int:
    """Redis is asked again, and has what it is asked for; how often everything was asked for."""
    asked = 0

    def hits() -> bool:
        nonlocal asked
        asked += 1
        with httpx.Client(base_url=service.url, timeout=20.0, trust_env=False) as http:
            return bool(check(http, KNOWN)["weft"]["cached"] == len(KNOWN))

    wait_until(hits, 10, "hits")
    return asked


def rubbish(redis: RedisServer) -> int:
    """Overwrite every entry with something else; returns how many."""
    chance = random.Random(7)
    with redis.client() as client:
        keys = list(client.scan_iter("weft:emb:*", count=1000))
        values = {key: client.get(key) for key in keys}
        for place, key in enumerate(keys):
            value = values[key] or b""
            other = values[keys[place - 1]] or b""  # of another text
            flipped = bytes([*value[:-3], value[-3] ^ 1, *value[-2:]])
            client.set(
                key, [b"", b"junk", value[:-7], other, flipped, chance.randbytes(len(value))][place % 6]
            )
        for key in keys[:5]:
            client.delete(key)
            client.lpush(key, "not a string")
    return len(keys)


def kill_and_return(redis: RedisServer, load: Load) -> None:
    redis.kill()
    load.settle()
    redis.start()


def stall(redis: RedisServer, load: Load) -> None:
    redis.send(signal.SIGSTOP)
    try:
        load.settle()
    finally:
        redis.send(signal.SIGCONT)


def flush(redis: RedisServer, load: Load) -> None:
    with redis.client() as client:
        client.flushall()


def fill(redis: RedisServer, load: Load) -> None:
    """Redis evicts, later refuses to write."""
    with redis.client() as client:
        for policy in ("allkeys-lru", "noeviction"):
            used = int(client.info("memory")["used_memory"])
            client.config_set("maxmemory-policy", policy)
            client.config_set("maxmemory", used - 100_000 if policy == "noeviction" else used)
            load.settle()
        client.config_set("maxmemory", 0)


def write_rubbish(redis: RedisServer, load: Load) -> None:
    assert rubbish(redis) >= 50


@pytest.mark.parametrize("fault", [kill_and_return, stall, flush, fill, write_rubbish])
def test_callers_notice_nothing(
    cached: Service, redis: RedisServer, fault: Callable[[RedisServer, Load], None]
) -> None:
    until_hits(cached)
    before = counters(cached)
    with Load(cached) as load:
        fault(redis, load)
        load.settle()
    assert not load.failures
    asked = until_hits(cached)
    after = counters(cached)
    assert after["lookups"] - before["lookups"] == 9 * len(load.done) + len(KNOWN) * asked
    # Each request brings a text that nobody asked for before, and nothing is encoded without a miss.
    misses = after["misses"] - before["misses"]
    assert misses >= len(load.done)
    assert after["encoded"] - before["encoded"] == misses
    if fault in (kill_and_return, stall, fill):
        assert after["store_errors"] > before["store_errors"]
    assert (after["damaged"] > before["damaged"]) == (fault is write_rubbish)
    assert all(r["models"] for r in after["replicas"])
    print(f"{fault.__name__}: {len(load.done)} requests, max {max(s for _, s in load.done):.3f} s")


def test_a_hundred_callers_of_one_new_text(cached: Service) -> None:
    """Two replicas encode it at most once each."""
    before = counters(cached)["encoded"]
    # All are kept open: httpx closes those beyond 20 while other threads are about to take them.
    limits = httpx.Limits(max_connections=100, max_keepalive_connections=100)
    with (
        httpx.Client(base_url=cached.url, timeout=20.0, trust_env=False, limits=limits) as http,
        ThreadPoolExecutor(100) as pool,
    ):
        list(pool.map(lambda _: check(http, ["a text that nobody asked for yet"]), range(100)))
    assert 1 <= counters(cached)["encoded"] - before <= 2


def test_another_start_finds_everything(
    redis: RedisServer, tmp_path_factory: pytest.TempPathFactory, cached: Service
) -> None:
    until_hits(cached)
    elsewhere = make_small_store(tmp_path_factory.mktemp("elsewhere"))
    with start(elsewhere, tmp_path_factory.mktemp("again"), redis, replicas=1) as service:
        before = counters(service)["encoded"]
        with httpx.Client(base_url=service.url, timeout=20.0, trust_env=False) as http:
            assert check(http, KNOWN)["weft"]["cached"] == len(KNOWN)
        assert counters(service)["encoded"] == before
